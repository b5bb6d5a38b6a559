//! The agent's life: it is killed, stopped, started again and replaced while traffic goes on, and in the end it goes
//! without a trace.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

mod balanced;

use balanced::{
    LIMIT, NODE, PINS, Steady, WEB, backend, fails, flows, generation, json, ok, restart, ring, running,
    tree, until, usable, wait_usable, with_maps,
};
use tests::long_lived::{LongLived, LongLivedSpec};
use tests::server::Health;
use tests::topology::Lab;
use tests::traffic::Flows;
use tests::wattline::{self, Agent, CONFIG};

/// Frames that the router sent to the balancer and the packets that the balancer has counted, at a moment in which
/// nothing is under way.
fn accounts(lab: &Lab) -> (u64, u64) {
    let sent = || lab.router.link(&lab.lbs[0].port).stats().unwrap().tx_packets;
    until("a quiet moment", || {
        let before = sent();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let counted = with_maps(lab, |plane| {
            let reasons: u64 = plane.reasons().unwrap().iter().map(|(_, packets)| packets).sum();
            let all = 0..plane.maps().counters_capacity();
            // Every counter that is in use lies at the beginning; services' second counters are drops, which the
            // reasons hold already.
            let services: Vec<u32> =
                plane.keys().filter_map(|key| plane.held(key)).map(|held| held.service.counter + 1).collect();
            let forwarded: u64 = all
                .take(64)
                .filter(|counter| !services.contains(counter))
                .map(|counter| plane.maps().counter(counter).unwrap().packets)
                .sum();
            reasons + forwarded
        });
        let after = sent();
        if before == after { Ok((after, counted)) } else { Err((before, after)) }
    })
}

/// Packets that the backends have taken out of their encapsulation.
fn decapsulated(lab: &Lab) -> u64 {
    let of = |host| {
        let status = wattline::json(host, &["decap", "status"]).unwrap();
        let interfaces = status["interfaces"].as_array().unwrap().clone();
        interfaces
            .iter()
            .flat_map(|interface| interface["outcomes"].as_array().unwrap().clone())
            .filter(|outcome| outcome["reason"] == "ipip")
            .map(|outcome| outcome["packets"].as_u64().unwrap())
            .sum::<u64>()
    };
    lab.backends.iter().map(|backend| of(&backend.host)).sum()
}

#[test]
fn killed_under_traffic_nothing_is_lost_and_every_packet_is_counted() {
    let (lab, agent) = running(3);
    // Without an agent there are no health checks, so that a quiet moment comes.
    agent.kill().unwrap();
    let (sent, counted) = accounts(&lab);
    let agent = restart(&lab);

    let steady = Steady::start(&lab.client, WEB, 100);
    let mut open = LongLived::start(&lab.client, LongLivedSpec::to(WEB, 40)).unwrap();
    agent.kill().unwrap();
    // Forwarding goes on while no agent lives.
    steady.more(2);
    open.wait_more(5, LIMIT).unwrap();
    let agent = restart(&lab);
    steady.more(2);
    open.wait_more(5, LIMIT).unwrap();
    agent.kill().unwrap();
    steady.more(1);

    assert_eq!(open.failures(), []);
    open.stop();
    steady.stop_undisturbed();
    let (sent_after, counted_after) = accounts(&lab);
    assert_eq!(sent_after - sent, counted_after - counted, "frames to the balancer, and frames it counted");

    let _agent = restart(&lab);
    let totals = json(&lab, &["stats"])["totals"].clone();
    let number = |key: &str| totals[key].as_u64().unwrap();
    assert_eq!(
        number("received_packets"),
        ["forwarded", "passed", "dropped"].map(|key| number(&format!("{key}_packets"))).iter().sum::<u64>()
    );
    assert_eq!(number("dropped_packets"), 0, "{totals}");
    assert_eq!(number("forwarded_packets"), decapsulated(&lab), "forwarded, and arrived at the backends");
}

#[test]
fn a_restart_moves_nothing_and_forgets_nothing() {
    let (lab, agent) = running(4);
    ok(&lab, &["backend", "drain", "web/a2"]);
    ok(&lab, &["backend", "set", "web/a1", "--weight", "30"]);
    wait_usable(&lab, &["a1", "a3", "a4"]);
    let before = flows(&lab, 500);
    let (ring_before, generation_before) = (ring(&lab, WEB), generation(&lab));
    let mut stats = json(&lab, &["stats"]);

    agent.kill().unwrap();
    let agent = restart(&lab);
    let mut check = || {
        assert_eq!(usable(&lab).len(), 3, "healthy from the start: they took packets already");
        assert_eq!(ring(&lab, WEB), ring_before);
        assert_eq!(generation(&lab), generation_before);
        assert_eq!(before.moved(&flows(&lab, 500)), [0u32; 0]);
        let (a1, a2) = (backend(&lab, "a1"), backend(&lab, "a2"));
        assert_eq!((&a1["weight"], &a2["admin"]), (&30.into(), &"drain".into()));
        assert_eq!(json(&lab, &["status"])["config"]["unsaved"], true);
        let now = json(&lab, &["stats"]);
        for (was, is) in stats["backends"].as_array().unwrap().iter().zip(now["backends"].as_array().unwrap())
        {
            // Nobody sends to the drained one any more, and what it counted stays.
            let grown = is["packets"].as_u64().unwrap() > was["packets"].as_u64().unwrap();
            assert_eq!(grown, was["backend"] != "a2", "{was} {is}");
            assert!(is["packets"].as_u64() >= was["packets"].as_u64(), "{was} {is}");
        }
        stats = now;
    };
    check();
    agent.terminate().unwrap();
    let _agent = restart(&lab);
    check();
}

#[test]
fn a_restart_does_not_bring_an_unhealthy_backend_back() {
    let (lab, agent) = running(3);
    lab.backend("a2").server.set_health(Health::Status(503));
    wait_usable(&lab, &["a1", "a3"]);
    let ring_before = ring(&lab, WEB);
    agent.kill().unwrap();
    let steady = Steady::start(&lab.client, WEB, 100);
    let _agent = restart(&lab);
    assert_eq!(ring(&lab, WEB), ring_before);
    until("the first check of a2", || {
        let state = backend(&lab, "a2")["health"].clone();
        if state == "unhealthy" { Ok(()) } else { Err(state) }
    });
    steady.more(1);
    steady.stop_undisturbed();
    assert_eq!(ring(&lab, WEB), ring_before);
    lab.backend("a2").server.set_health(Health::Ok);
    wait_usable(&lab, &["a1", "a2", "a3"]);
}

#[test]
fn a_file_that_changed_while_no_agent_lived_is_taken_after_the_rest() {
    let (lab, agent) = running(3);
    ok(&lab, &["backend", "drain", "web/a2"]);
    let before = flows(&lab, 300);
    agent.kill().unwrap();
    Agent::write_config(lab.lb(), "[node\n").unwrap();
    let mut agent = Agent::spawn(lab.lb()).unwrap();
    agent.wait_ready().unwrap();
    let error = balanced::file_error(&lab).unwrap();
    assert!(error.starts_with(&format!("{CONFIG}:1:6: ")), "{error}");
    assert_eq!(before.moved(&flows(&lab, 300)), [0u32; 0]);
    agent.kill().unwrap();
    Agent::write_config(lab.lb(), &(NODE.to_owned() + &balanced::web(&lab, &["a1", "a3"]))).unwrap();
    let _agent = restart(&lab);
    until("the new file to run", || {
        let backends = json(&lab, &["status"])["backends"].clone();
        if backends == 2 { Ok(()) } else { Err(backends) }
    });
    // a2 owned nothing, so nothing moves with it.
    assert_eq!(before.moved(&flows(&lab, 300)), [0u32; 0]);
}

#[test]
fn stopping_leaves_forwarding_and_cleaning_leaves_nothing() {
    let (lab, mut agent) = running(2);
    let pid = agent.process().id();
    let before = flows(&lab, 200);
    agent.terminate().unwrap();
    assert_eq!(before.moved(&flows(&lab, 200)), [0u32; 0]);
    assert!(!tree(lab.lb(), "/run/wattline").contains(&"/run/wattline/wattline.sock".to_owned()));
    fails(&lab, 3, &["status"]);

    let status = json(&lab, &["dataplane", "status"]);
    assert_eq!((&status["pinned"], &status["pins"]), (&true.into(), &PINS.into()));
    let eth0 = &status["interfaces"][0];
    assert_eq!(
        (&eth0["name"], &eth0["mode"], &eth0["error"]),
        (&"eth0".into(), &"native".into(), &().into())
    );
    assert_eq!(status["maps"].as_array().unwrap().len(), 7);

    fails(&lab, 2, &["dataplane", "detach", "eth9"]);
    assert_eq!(json(&lab, &["dataplane", "detach"])["detached"], serde_json::json!(["eth0"]));
    let gone = Flows::tcp(WEB, 1).run(&lab.client).unwrap();
    assert_eq!(gone.answered.len(), 0, "nobody forwards any more");
    assert_eq!(json(&lab, &["dataplane", "detach"])["detached"], serde_json::json!([]));
    // The maps are still there: what comes next takes them over.
    let agent = restart(&lab);
    assert_eq!(before.moved(&flows(&lab, 200)), [0u32; 0]);
    fails(&lab, 5, &["dataplane", "clean"]);
    agent.terminate().unwrap();

    assert_eq!(json(&lab, &["dataplane", "clean"])["cleaned"], true);
    assert_eq!(json(&lab, &["dataplane", "clean"])["cleaned"], false);
    assert_eq!(json(&lab, &["dataplane", "status"])["pinned"], false);
    assert_eq!(tree(lab.lb(), "/sys/fs/bpf"), [""; 0]);
    assert_eq!(tree(lab.lb(), "/run"), ["/run/lab", CONFIG], "the test's own file, and nothing else");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    // Nothing is on the interface: somebody else can have it.
    tests::peer::FixedProgram::attach(lab.lb(), "eth0", tests::peer::Action::Pass).unwrap();
}

#[test]
fn a_second_agent_is_told_who_is_first() {
    let (lab, mut agent) = running(2);
    let pid = agent.process().id();
    let said = balanced::refused(&lab, 5);
    assert!(said.contains(&format!("process {pid}")), "{said}");
    // The first does not even notice, nor does one that hangs lose its place.
    flows(&lab, 50);
    assert_eq!(json(&lab, &["status"])["pid"], pid);
    agent.process().kill(nix::sys::signal::Signal::SIGSTOP).unwrap();
    assert!(balanced::refused(&lab, 5).contains(&format!("process {pid}")));
    let said = fails(&lab, 5, &["dataplane", "clean"]);
    assert!(said.contains("stop the agent first"), "{said}");
    agent.process().kill(nix::sys::signal::Signal::SIGCONT).unwrap();
    assert_eq!(json(&lab, &["status"])["pid"], pid);
    flows(&lab, 50);
}
