//! What is pinned and attached, and somebody tampered with: the agent repairs its own, refuses what it does not know, and
//! leaves alone what belongs to others.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

mod balanced;

use std::time::Duration;

use aya::maps::MapData;
use balanced::{
    NODE, PINS, Steady, WEB, flows, json, ok, refused, restart, ring, running, tree, until, wait_usable, web,
};
use serde_json::Value;
use tests::peer::{Action, FixedProgram};
use tests::topology::Lab;
use tests::traffic::Flows;
use tests::wattline::Agent;

/// The one attachment, as the kernel has it.
fn attachment(lab: &Lab) -> Value {
    let status = json(lab, &["dataplane", "status"]);
    assert_eq!(status["interfaces"].as_array().unwrap().len(), 1, "{status}");
    status["interfaces"][0].clone()
}

/// Waits until nobody forwards: the kernel takes a link away some time after its pin.
fn wait_no_flow(lab: &Lab) {
    until("forwarding to end", || {
        let report = Flows::tcp(WEB, 1).timeout(Duration::from_secs(1)).run(&lab.client).unwrap();
        if report.answered.is_empty() { Ok(()) } else { Err(report) }
    });
}

#[test]
fn another_program_is_replaced_without_a_gap() {
    let (lab, agent) = running(3);
    let before = attachment(&lab);
    let steady = Steady::start(&lab.client, WEB, 100);
    agent.kill().unwrap();
    // As after an upgrade: the link runs a program that is not the one that is pinned for new links.
    lab.lb().run(|| std::fs::remove_file(format!("{PINS}/program"))).unwrap();
    let agent = restart(&lab);
    balanced::wait_logged(&agent, "replaced the program on eth0 without a gap");
    steady.more(1);
    steady.stop_undisturbed();
    let after = attachment(&lab);
    assert_eq!(after["link_id"], before["link_id"], "the link was never taken away");
    assert_ne!(after["program_id"], before["program_id"]);
    assert_eq!(json(&lab, &["status"])["interfaces"][0]["program_id"], after["program_id"]);
}

#[test]
fn a_stranger_behind_our_own_link_is_replaced() {
    let (lab, agent) = running(2);
    let before = (attachment(&lab), flows(&lab, 100));
    agent.kill().unwrap();
    FixedProgram::put_behind(lab.lb(), &format!("{PINS}/links/eth0"), Action::Pass).unwrap();
    wait_no_flow(&lab);
    let _agent = restart(&lab);
    assert_eq!(attachment(&lab), before.0);
    assert_eq!(before.1.moved(&flows(&lab, 100)), [0u32; 0]);
}

#[test]
fn pinned_maps_of_another_shape_are_refused_and_left_alone() {
    let (lab, agent) = running(2);
    let before = flows(&lab, 100);
    agent.terminate().unwrap();
    let maps = format!("{PINS}/maps");
    for (name, imposter, difference) in [
        ("RINGS", "BACKENDS", "value size 64 instead of 8"),
        ("COUNTERS", "REASONS", "value size 8 instead of 16"),
        ("SERVICES", "NODE", "type Some(Array) instead of Hash"),
        ("REASONS", "COUNTERS", "entries"),
    ] {
        let (pin, aside) = (format!("{maps}/{name}"), format!("{maps}/aside"));
        lab.lb().run(|| {
            std::fs::rename(&pin, &aside).unwrap();
            MapData::from_pin(format!("{maps}/{imposter}")).unwrap().pin(&pin).unwrap();
        });
        let pinned = tree(lab.lb(), "/sys/fs/bpf");
        let said = refused(&lab, 6);
        for part in [pin.as_str(), difference, "left untouched", "wattline dataplane clean"] {
            assert!(said.contains(part), "{part:?} is missing in {said}");
        }
        assert_eq!(tree(lab.lb(), "/sys/fs/bpf"), pinned);
        assert_eq!(
            before.moved(&flows(&lab, 100)),
            [0u32; 0],
            "the program has the maps that it was loaded with"
        );
        lab.lb().run(|| std::fs::rename(&aside, &pin)).unwrap();
    }
    let agent = restart(&lab);
    assert_eq!(before.moved(&flows(&lab, 100)), [0u32; 0]);
    agent.terminate().unwrap();

    // Nothing forwards any more; the stranger's map is left alone all the same.
    ok(&lab, &["dataplane", "detach"]);
    lab.lb().run(|| {
        std::fs::remove_file(format!("{maps}/RINGS")).unwrap();
        MapData::from_pin(format!("{maps}/BACKENDS")).unwrap().pin(format!("{maps}/RINGS")).unwrap();
    });
    let pinned = tree(lab.lb(), "/sys/fs/bpf");
    refused(&lab, 6);
    assert_eq!(tree(lab.lb(), "/sys/fs/bpf"), pinned);
    ok(&lab, &["dataplane", "clean"]);
    let _agent = restart(&lab);
    wait_usable(&lab, &["a1", "a2"]);
    flows(&lab, 10);
}

#[test]
fn some_maps_without_the_others() {
    let (lab, agent) = running(2);
    agent.kill().unwrap();
    lab.lb().run(|| std::fs::remove_file(format!("{PINS}/maps/NODE"))).unwrap();
    let pinned = tree(lab.lb(), "/sys/fs/bpf");
    let said = refused(&lab, 6);
    assert!(said.contains("holds only some maps") && said.contains("while eth0 is attached"), "{said}");
    assert_eq!(tree(lab.lb(), "/sys/fs/bpf"), pinned);
    flows(&lab, 50);
    // Without an attachment it is what a start leaves that was killed too early, and no reason not to start.
    ok(&lab, &["dataplane", "detach"]);
    let agent = restart(&lab);
    balanced::wait_logged(&agent, "removing what an interrupted start left");
    wait_usable(&lab, &["a1", "a2"]);
    flows(&lab, 50);
}

#[test]
fn a_lost_or_dead_link_is_made_anew() {
    let (lab, agent) = running(2);
    let ring_before = ring(&lab, WEB);
    agent.kill().unwrap();
    lab.lb().run(|| std::fs::remove_file(format!("{PINS}/links/eth0"))).unwrap();
    wait_no_flow(&lab);
    let _agent = restart(&lab);
    assert_eq!(ring(&lab, WEB), ring_before);
    flows(&lab, 50);
}

#[test]
fn a_foreign_program_is_reported_and_never_overwritten() {
    let lab = balanced::lab(Lab::builder().site_a(1));
    Agent::write_config(lab.lb(), &(NODE.to_owned() + &web(&lab, &["a1"]))).unwrap();
    let foreign = FixedProgram::attach(lab.lb(), "eth0", Action::Pass).unwrap();
    let id = foreign.id().unwrap();
    let said = refused(&lab, 6);
    for part in ["attaching to eth0", &format!("another XDP program (id {id})"), "It was left alone"] {
        assert!(said.contains(part), "{part:?} is missing in {said}");
    }
    assert!(FixedProgram::attach(lab.lb(), "eth0", Action::Pass).is_err(), "it is still there");
    assert_eq!(tree(lab.lb(), "/sys/fs/bpf"), [""; 0], "a failed start leaves nothing");
    drop(foreign);
    let agent = restart(&lab);
    wait_usable(&lab, &["a1"]);
    flows(&lab, 10);

    // It took our place while no agent lived: forwarding is over, but nobody is thrown out.
    agent.kill().unwrap();
    lab.lb().run(|| std::fs::remove_file(format!("{PINS}/links/eth0"))).unwrap();
    wait_no_flow(&lab);
    let foreign = FixedProgram::attach(lab.lb(), "eth0", Action::Pass).unwrap();
    let id = foreign.id().unwrap();
    let _agent = restart(&lab);
    let error = json(&lab, &["status"])["interfaces"][0]["error"].as_str().unwrap().to_owned();
    assert!(error.contains(&format!("id {id}")), "{error}");
    wait_no_flow(&lab);
    drop(foreign);
    until("the program to be attached again", || {
        let status = json(&lab, &["status"]);
        if status["interfaces"][0]["error"].is_null() { Ok(()) } else { Err(status) }
    });
    flows(&lab, 10);
}

#[test]
fn a_failed_first_start_is_forgotten() {
    let lab = balanced::lab(Lab::builder().site_a(1));
    let config = NODE.to_owned() + &web(&lab, &["a1"]);
    Agent::write_config(lab.lb(), &config.replace("\"eth0\"", "\"eth0\", \"eth7\"")).unwrap();
    let said = refused(&lab, 6);
    assert!(said.contains("there is no interface eth7"), "{said}");
    assert_eq!(tree(lab.lb(), "/sys/fs/bpf"), [""; 0], "not even the interface that could be attached");
    FixedProgram::attach(lab.lb(), "eth0", Action::Pass).unwrap();
    assert!(!tree(lab.lb(), "/run").iter().any(|path| path.contains("state") || path.contains("sock")));

    Agent::write_config(lab.lb(), &format!("[limits]\nring_slots = 500\n{config}")).unwrap();
    let said = refused(&lab, 4);
    assert!(said.contains("1009 ring_slots are configured, above the limit of 500"), "{said}");
    // It fits, but could never be changed without a break: not even a failing backend could leave.
    Agent::write_config(lab.lb(), &format!("[limits]\nring_slots = 2000\n{config}")).unwrap();
    let said = refused(&lab, 6);
    assert!(said.contains("2018 ring slots (1009 of them") && said.contains("do not fit the 2000"), "{said}");
    // What is wrong was the file's: put right, it runs.
    let _agent = Agent::start(lab.lb(), &config).unwrap();
    wait_usable(&lab, &["a1"]);
    flows(&lab, 10);
}

#[test]
fn generic_mode_is_only_taken_when_asked_for_and_then_said_loudly() {
    let lab = balanced::lab(Lab::builder().site_a(1));
    let config = NODE.replace("eth0", "lo") + &web(&lab, &["a1"]);
    Agent::write_config(lab.lb(), &config).unwrap();
    let said = refused(&lab, 6);
    assert!(said.contains("attaching to lo: its driver has no native XDP"), "{said}");
    assert!(said.contains("xdp_mode = \"generic\""), "{said}");

    let generic = config.replace("[node]", "[node]\nxdp_mode = \"generic\"");
    let agent = Agent::start(lab.lb(), &generic).unwrap();
    balanced::wait_logged(&agent, "lo: GENERIC XDP");
    assert_eq!(json(&lab, &["status"])["interfaces"][0]["mode"], "generic");
    assert_eq!(attachment(&lab)["mode"], "generic");
    assert!(ok(&lab, &["status"]).0.contains("generic"));
    // Taken back, it is refused, and generic mode goes on.
    Agent::write_config(lab.lb(), &config).unwrap();
    until("the file to be refused", || balanced::file_error(&lab).ok_or(()));
    let eth0 = attachment(&lab);
    assert_eq!((&eth0["mode"], &eth0["error"]), (&"generic".into(), &Value::Null));

    // On eth0 there is a way back, and the maps stay.
    let becomes = |name: &str, mode: &str| {
        until("another attachment", || {
            // A change of mode is a moment without any.
            let status = json(&lab, &["dataplane", "status"]);
            let (now, error) = (&status["interfaces"][0], balanced::file_error(&lab));
            if now["name"] == name && now["mode"] == mode { Ok(()) } else { Err((status, error)) }
        });
        wait_usable(&lab, &["a1"]);
        flows(&lab, 20);
    };
    Agent::write_config(lab.lb(), &generic.replace("\"lo\"", "\"eth0\"")).unwrap();
    becomes("eth0", "generic");
    Agent::write_config(lab.lb(), &config.replace("\"lo\"", "\"eth0\"")).unwrap();
    becomes("eth0", "native");
}
