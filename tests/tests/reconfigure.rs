//! The configuration changes under continuous traffic: what does not change is not disturbed.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

mod balanced;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;

use balanced::{
    LIMIT, NODE, STEADY, Steady, WEB, backend, fails, flows, generation, json, ok, ring, running, service,
    until, usable, wait_usable, web,
};
use tests::long_lived::{LongLived, LongLivedSpec};
use tests::server::ServerSpec;
use tests::topology::{Lab, VIP4};
use tests::traffic::{FlowReport, Flows};
use tests::wattline::Agent;

/// Only connections whose slot changed hands at some time may have failed, and of those only such that were open just
/// then: no more than are open at a time, at each change.
#[track_caller]
fn only_moved_flows_failed(reports: &[FlowReport], changes: usize) {
    let mut backends: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for (flow, backend) in reports.iter().flat_map(|report| &report.answered) {
        backends.entry(*flow).or_default().insert(backend);
    }
    let failed: Vec<_> = reports.iter().flat_map(|report| &report.failed).collect();
    let undisturbed: Vec<_> = failed.iter().filter(|(flow, _)| backends[flow].len() == 1).collect();
    assert!(undisturbed.is_empty(), "flows that were never moved failed: {undisturbed:?}");
    assert!(failed.len() <= 16 * changes, "{} connections failed: {failed:?}", failed.len());
}

/// Slots of each backend of `web`, by name.
fn slots(lab: &Lab) -> BTreeMap<String, u64> {
    let list = json(lab, &["backend", "list", "web"]);
    let backends = list["backends"].as_array().unwrap();
    backends
        .iter()
        .map(|backend| (backend["name"].as_str().unwrap().to_owned(), backend["slots"].as_u64().unwrap()))
        .collect()
}

fn wait_generation(lab: &Lab, wanted: u64) {
    until("the next generation", || {
        let found = generation(lab);
        if found == wanted { Ok(()) } else { Err(found) }
    });
}

/// The configuration of `web` with these weights.
fn weighted(lab: &Lab, weights: &[(&str, u32)]) -> String {
    let mut text = NODE.to_owned() + &web(lab, &[]);
    for (name, weight) in weights {
        let address = lab.backend(name).v4;
        let _ = write!(
            text,
            "[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\nweight = {weight}\n"
        );
    }
    text
}

#[test]
fn backends_come_change_and_go_by_file_apply_and_command() {
    let lab = balanced::lab(Lab::builder().site_a(4));
    let _agent = Agent::start(lab.lb(), &weighted(&lab, &[("a1", 100), ("a2", 100), ("a3", 100)])).unwrap();
    wait_usable(&lab, &["a1", "a2", "a3"]);
    let steady = Steady::start(&lab.client, WEB, 100);
    assert_eq!(generation(&lab), 1);

    // By the file.
    let all = [("a1", 100), ("a2", 100), ("a3", 100), ("a4", 100)];
    Agent::write_config(lab.lb(), &weighted(&lab, &all)).unwrap();
    wait_generation(&lab, 2);
    wait_usable(&lab, &["a1", "a2", "a3", "a4"]);
    steady.more(1);
    Agent::write_config(lab.lb(), &weighted(&lab, &[("a1", 100), ("a2", 0), ("a3", 100), ("a4", 200)]))
        .unwrap();
    wait_generation(&lab, 3);
    assert_eq!((slots(&lab)["a2"], slots(&lab)["a4"].abs_diff(504) <= 1), (0, true), "{:?}", slots(&lab));
    steady.more(1);

    // By `config apply`: whole, as the file.
    lab.lb().write("/run/lab/other.toml", weighted(&lab, &[("a1", 100), ("a2", 100), ("a4", 100)])).unwrap();
    let applied = json(&lab, &["config", "apply", "-f", "/run/lab/other.toml"]);
    assert_eq!((&applied["generation"], &applied["changed"]), (&4.into(), &true.into()));
    assert!(applied["moved_slots"][0]["moved"].as_u64().unwrap() > 300, "{applied}");
    assert!(!slots(&lab).contains_key("a3"));
    assert_eq!(json(&lab, &["status"])["config"]["unsaved"], true);
    steady.more(1);

    // One by one.
    let a3 = lab.backend("a3").v4.to_string();
    ok(&lab, &["backend", "add", "web/a3", "--address", &a3, "--weight", "50", "--site", "here"]);
    wait_usable(&lab, &["a1", "a2", "a3", "a4"]);
    steady.more(1);
    let (_, said) = ok(&lab, &["backend", "set", "web/a3", "--weight", "100"]);
    assert!(said.contains("of 1009 slots moved"), "{said}");
    steady.more(1);
    ok(&lab, &["backend", "delete", "web/a1"]);
    assert_eq!(slots(&lab).keys().collect::<Vec<_>>(), ["a2", "a3", "a4"]);
    steady.more(1);

    let reports = steady.stop();
    only_moved_flows_failed(&reports, 8);
    assert_eq!(balanced::answers(&reports).len(), 4);
    let last = Flows::tcp(WEB, 100).first(STEADY).run(&lab.client).unwrap().expect_all();
    assert_eq!(last.moved(reports.last().unwrap()), [0u32; 0]);
    assert!(!last.per_backend().contains_key("a1"));
}

#[test]
fn a_flood_of_changes_breaks_no_connection_whose_slot_stays() {
    const CHANGES: usize = 200;
    let servers = ServerSpec { tcp: vec![80, 81], ..ServerSpec::default() };
    let lab = balanced::lab(Lab::builder().site_a(3).servers(servers));
    let other = service(&lab, "other", "port = 81", &["a1", "a2"]);
    let config = NODE.to_owned() + &web(&lab, &["a1", "a2", "a3"]) + &other;
    let _agent = Agent::start(lab.lb(), &config).unwrap();
    until("all to be healthy", || if usable(&lab).len() == 5 { Ok(()) } else { Err(usable(&lab)) });

    // The two states that alternate, at rest.
    let set = |weight: usize| ok(&lab, &["backend", "set", "web/a3", "--weight", &weight.to_string()]);
    let at_rest = || Flows::tcp(WEB, 300).first(STEADY).run(&lab.client).unwrap().expect_all();
    let full = at_rest();
    let open_full = Flows::tcp(WEB, 60).first(1_000_000).run(&lab.client).unwrap().expect_all();
    let before = ring(&lab, WEB);
    set(40);
    let less = at_rest();
    let open_less = Flows::tcp(WEB, 60).first(1_000_000).run(&lab.client).unwrap().expect_all();
    set(100);
    assert_eq!(ring(&lab, WEB), before, "a ring depends on nothing but what is configured");
    let moving: BTreeSet<u32> = full.moved(&less).into_iter().collect();
    let open_moving: BTreeSet<u32> = open_full.moved(&open_less).into_iter().collect();
    assert!((20..150).contains(&moving.len()), "{} of 300 flows move", moving.len());

    let steady = Steady::start(&lab.client, WEB, 300);
    let mut open = LongLived::start(&lab.client, LongLivedSpec::to(WEB, 60)).unwrap();
    let generation_before = generation(&lab);
    for change in 1..=CHANGES {
        set(if change % 2 == 1 { 40 } else { 100 });
    }
    assert_eq!(generation(&lab), generation_before + CHANGES as u64);
    assert_eq!(ring(&lab, WEB), before);
    // Those that stayed go on; the others' stories end.
    let stories = open.stories();
    let _ = open.wait_more(0, LIMIT);
    for (index, story) in stories.iter().enumerate() {
        let moves = open_moving.contains(&(1_000_000 + u32::try_from(index).unwrap()));
        assert!(moves || story.failure.is_none(), "connection {index}: {story:?}");
    }
    let reports = steady.stop();
    let failed: BTreeSet<u32> = reports.iter().flat_map(|report| report.failed.keys().copied()).collect();
    assert_eq!(failed.difference(&moving).collect::<Vec<_>>(), [&0u32; 0], "{reports:?}");
    for report in &reports {
        assert!(full.moved(report).iter().all(|flow| moving.contains(flow)));
    }
    assert_eq!(json(&lab, &["status"])["maps"]["ring_slots"]["used"], 2018, "no region was lost");
    // Drops would be a ring that points nowhere for a moment.
    assert_eq!(json(&lab, &["stats"])["totals"]["dropped_packets"], 0);
}

#[test]
fn drain_ready_and_maint() {
    let (lab, _agent) = running(3);
    let before = flows(&lab, 300);
    let (out, said) = ok(&lab, &["backend", "drain", "web/a2"]);
    assert!(out.contains("admin ready -> drain"), "{out}");
    let a2 = slots(&lab)["a2"];
    assert_eq!(a2, 0);
    for part in
        ["drain sets the weight of web/a2 to 0", "slots moved", "open connections in those slots move"]
    {
        assert!(said.contains(part), "{part:?} is missing in {said}");
    }
    let drained = flows(&lab, 300);
    assert!(!drained.per_backend().contains_key("a2"));
    // What was elsewhere hardly moves.
    let strangers = before.moved(&drained).iter().filter(|flow| before.answered[flow] != "a2").count();
    assert!(strangers <= 30, "{strangers} of 300 flows of other backends moved");
    assert_eq!(backend(&lab, "a2")["health"], "healthy", "it is still checked");
    let (_, said) = ok(&lab, &["backend", "drain", "web/a2"]);
    assert!(said.contains("nothing to change") && !said.contains("warning"), "{said}");
    ok(&lab, &["backend", "ready", "web/a2"]);
    assert_eq!(before.moved(&flows(&lab, 300)), [0u32; 0], "back where it was, at once");

    ok(&lab, &["backend", "maint", "web/a2"]);
    assert_eq!((slots(&lab)["a2"], &backend(&lab, "a2")["health"]), (0, &"unknown".into()));
    let checks = || lab.backend("a2").server.stats().health_checks;
    let others = || lab.backend("a1").server.stats().health_checks;
    let (mine, theirs) = (checks(), others());
    until("other backends' checks", || if others() >= theirs + 3 { Ok(()) } else { Err(others()) });
    // One may have been on its way.
    assert!(checks() <= mine + 1, "nobody asks a backend in maintenance");
    lab.backend("a2").server.stop();
    ok(&lab, &["backend", "ready", "web/a2"]);
    assert_eq!(slots(&lab)["a2"], 0, "nothing is known of it any more");
    until("its first check", || {
        let state = backend(&lab, "a2")["health"].clone();
        if state == "unhealthy" { Ok(()) } else { Err(state) }
    });
    assert_eq!(slots(&lab)["a2"], 0);
    lab.backend("a2").server.restart().unwrap();
    wait_usable(&lab, &["a1", "a2", "a3"]);
    assert_eq!(before.moved(&flows(&lab, 300)), [0u32; 0]);
}

#[test]
fn services_come_change_their_port_and_go() {
    let servers = ServerSpec { tcp: vec![80, 8080], ..ServerSpec::default() };
    let lab = balanced::lab(Lab::builder().site_a(2).servers(servers));
    let _agent = Agent::start(lab.lb(), &(NODE.to_owned() + &web(&lab, &["a1", "a2"]))).unwrap();
    wait_usable(&lab, &["a1", "a2"]);
    let other: SocketAddr = (VIP4, 8080).into();
    let reaches = |target: SocketAddr, count: usize| {
        assert_eq!(Flows::tcp(target, 20).run(&lab.client).unwrap().answered.len(), count, "{target}");
    };
    let steady = Steady::start(&lab.client, WEB, 50);
    reaches(other, 0);

    let vip = VIP4.to_string();
    ok(&lab, &["service", "add", "api", "--address", &vip, "--port", "8080", "--health-interval-ms", "1000"]);
    fails(&lab, 5, &["service", "add", "api", "--address", &vip, "--port", "8081"]);
    let said = fails(&lab, 4, &["service", "add", "third", "--address", &vip, "--port", "80"]);
    assert!(said.contains("\"third\""), "{said}");
    let a1 = lab.backend("a1").v4.to_string();
    ok(&lab, &["backend", "add", "api/a1", "--address", &a1]);
    until("api/a1", || if usable(&lab).contains("api/a1") { Ok(()) } else { Err(usable(&lab)) });
    reaches(other, 20);
    let counted = json(&lab, &["service", "get", "api"])["packets"].as_u64().unwrap();
    assert!(counted > 0);

    // The ring moves to another key whole; nobody answers for the old one.
    ok(&lab, &["service", "set", "api", "--port", "8090"]);
    reaches(other, 0);
    ok(&lab, &["service", "set", "api", "--port", "8080"]);
    reaches(other, 20);
    assert!(json(&lab, &["service", "get", "api"])["packets"].as_u64().unwrap() >= 2 * counted);
    ok(&lab, &["service", "delete", "api"]);
    reaches(other, 0);
    fails(&lab, 2, &["service", "get", "api"]);
    fails(&lab, 2, &["backend", "set", "api/a1", "--weight", "1"]);
    let maps = json(&lab, &["status"])["maps"].clone();
    assert_eq!((&maps["services"]["used"], &maps["ring_slots"]["used"]), (&1.into(), &1009.into()), "{maps}");
    steady.more(1);
    steady.stop_undisturbed();
}

#[test]
fn interfaces_come_and_go() {
    let lab = balanced::lab(Lab::builder().site_a(2).two_arm());
    let config = NODE.to_owned() + &web(&lab, &["a1", "a2"]);
    let _agent = Agent::start(lab.lb(), &config).unwrap();
    wait_usable(&lab, &["a1", "a2"]);
    let before = flows(&lab, 50);
    // Through the second arm; backends are behind the first.
    let through = |last: u8| {
        let gateway = format!("10.{last}.0.2").parse().unwrap();
        lab.router.route("192.0.2.0/24".parse().unwrap(), &[gateway]).unwrap();
    };
    let attached = || -> Vec<String> {
        let status = json(&lab, &["dataplane", "status"]);
        let interfaces = status["interfaces"].as_array().unwrap();
        interfaces.iter().map(|interface| interface["name"].as_str().unwrap().to_owned()).collect()
    };
    let both = config.replace("\"eth0\"", "\"eth0\", \"eth1\"");
    Agent::write_config(lab.lb(), &both).unwrap();
    wait_generation(&lab, 2);
    assert_eq!(attached(), ["eth0", "eth1"]);
    through(3);
    assert_eq!(before.moved(&flows(&lab, 50)), [0u32; 0], "the same answer on every interface");
    through(2);

    Agent::write_config(lab.lb(), &config).unwrap();
    wait_generation(&lab, 3);
    assert_eq!(attached(), ["eth0"]);
    assert_eq!(json(&lab, &["dataplane", "attach", "eth1"])["mode"], "native");
    assert_eq!((attached().len(), generation(&lab)), (2, 4));
    through(3);
    assert_eq!(before.moved(&flows(&lab, 50)), [0u32; 0]);
    through(2);
    assert_eq!(json(&lab, &["dataplane", "detach", "eth1"])["detached"], serde_json::json!(["eth1"]));
    assert_eq!(attached(), ["eth0"]);
    fails(&lab, 2, &["dataplane", "detach", "eth1"]);
    let said = fails(&lab, 6, &["dataplane", "attach", "eth7"]);
    assert!(said.contains("there is no interface eth7"), "{said}");
    let said = fails(&lab, 4, &["dataplane", "attach", "eth1", "--mode", "generic"]);
    assert!(said.contains("one mode holds for all interfaces"), "{said}");
    assert_eq!((attached(), generation(&lab)), (vec!["eth0".to_owned()], 5));
    flows(&lab, 50);
}
