//! Backends that fail and return, one by one and all at once.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

mod balanced;

use std::time::Duration;

use balanced::{
    NODE, Steady, WEB, backend, flows, json, ok, ring, running, service, until, wait_usable, web,
};
use serde_json::Value;
use tests::server::Health;
use tests::topology::Lab;
use tests::traffic::Flows;
use tests::wattline::Agent;

/// What the checks of a backend of `web` found last.
fn check(lab: &Lab, name: &str) -> Value {
    let list = json(lab, &["health", "list"]);
    let checks = list["health"].as_array().unwrap();
    checks.iter().find(|check| check["backend"] == name).unwrap().clone()
}

fn wait_state(lab: &Lab, name: &str, state: &str) {
    until(state, || {
        let check = check(lab, name);
        if check["state"] == state { Ok(()) } else { Err(check) }
    });
}

/// A counter of reasons.
fn reason(lab: &Lab, name: &str) -> u64 {
    let stats = json(lab, &["stats"]);
    let reasons = stats["reasons"].as_array().unwrap();
    reasons.iter().find(|reason| reason["reason"] == name).unwrap()["packets"].as_u64().unwrap()
}

#[test]
fn a_backend_that_fails_in_any_way_leaves_and_returns_to_its_slots() {
    let (lab, agent) = running(3);
    let (before, ring_before) = (flows(&lab, 300), ring(&lab, WEB));
    let a2 = lab.backend("a2");
    let ways: [(&str, &dyn Fn(), &str); 4] = [
        ("an error status", &|| a2.server.set_health(Health::Status(503)), "503"),
        ("no answer", &|| a2.server.set_health(Health::Hang), "time"),
        ("a closed connection", &|| a2.server.set_health(Health::Close), ""),
        ("a stopped server", &|| a2.server.stop(), "refused"),
    ];
    for (what, fail, said) in ways {
        fail();
        wait_usable(&lab, &["a1", "a3"]);
        let found = check(&lab, "a2");
        assert_eq!(found["state"], "unhealthy", "{what}: {found}");
        assert!(found["last_result"].as_str().unwrap().contains(said), "{what}: {found}");
        assert!(found["consecutive"].as_i64().unwrap() <= -3, "{what}: {found}");
        let without = flows(&lab, 300);
        assert!(!without.per_backend().contains_key("a2"), "{what}");
        let strangers = before.moved(&without).iter().filter(|flow| before.answered[flow] != "a2").count();
        assert!(strangers <= 30, "{what}: {strangers} flows of others moved");
        a2.server.set_health(Health::Ok);
        a2.server.restart().unwrap();
        wait_usable(&lab, &["a1", "a2", "a3"]);
        assert_eq!(ring(&lab, WEB), ring_before, "{what}");
    }
    assert_eq!(before.moved(&flows(&lab, 300)), [0u32; 0]);
    balanced::wait_logged(&agent, "web/a2: healthy -> unhealthy: ");
    balanced::wait_logged(&agent, "web/a2: unhealthy -> healthy");
}

#[test]
fn a_backend_enters_only_after_its_first_success() {
    let lab = balanced::lab(Lab::builder().site_a(3));
    // A server that answers, but says that it is not well, from the beginning; and one that is not there.
    lab.backend("a2").server.set_health(Health::Status(500));
    lab.backend("a3").server.stop();
    let _agent = Agent::start(lab.lb(), &(NODE.to_owned() + &web(&lab, &["a1", "a2", "a3"]))).unwrap();
    // Until the first answer nobody takes packets, and none is sent into the blue.
    wait_usable(&lab, &["a1"]);
    for name in ["a2", "a3"] {
        wait_state(&lab, name, "unhealthy");
    }
    assert_eq!(flows(&lab, 100).per_backend()["a1"], 100);
    lab.backend("a2").server.set_health(Health::Ok);
    wait_usable(&lab, &["a1", "a2"]);
    // One that is added while it is down never takes anything.
    assert_eq!(lab.backend("a3").server.stats().connections, 0);
    let counted = backend(&lab, "a3")["packets"].clone();
    assert_eq!(counted, 0);
    lab.backend("a3").server.restart().unwrap();
    wait_usable(&lab, &["a1", "a2", "a3"]);
    assert_eq!(flows(&lab, 100).per_backend().len(), 3);
}

#[test]
fn when_all_fail_open_sends_to_all_and_drop_drops_and_counts() {
    let lab = balanced::lab(Lab::builder().site_a(3));
    let config = NODE.to_owned()
        + &service(&lab, "web", "all_down = \"open\"", &["a1", "a2", "a3"])
        + &service(
            &lab,
            "strict",
            "port = 8080\nall_down = \"drop\"\nhealth = { type = \"http\", path = \"/healthz\", port = 80, interval_ms = 1000, timeout_ms = 1000, rise = 1, fall = 3 }",
            &["a1", "a2"],
        );
    let agent = Agent::start(lab.lb(), &config).unwrap();
    until("all to be healthy", || {
        let found = balanced::usable(&lab);
        if found.len() == 5 { Ok(()) } else { Err(found) }
    });
    let (before, ring_before) = (flows(&lab, 200), ring(&lab, WEB));
    let steady = Steady::start(&lab.client, WEB, 50);
    for backend in &lab.backends {
        backend.server.set_health(Health::Status(503));
    }
    let view = |name: &str| json(&lab, &["service", "get", name]);
    until("both services to be down", || {
        let (web, strict) = (view("web"), view("strict"));
        if web["fail_open"] == true && strict["ring_slots"] == 0 { Ok(()) } else { Err((web, strict)) }
    });
    assert_eq!((&view("web")["backends_usable"], &view("strict")["fail_open"]), (&0.into(), &false.into()));
    balanced::wait_logged(&agent, "service web: no backend is usable; sending to all of them");
    balanced::wait_logged(&agent, "service strict: no backend may take packets; dropping them");
    assert_eq!(ring(&lab, WEB), ring_before, "all of them, as if all were well");
    assert_eq!(before.moved(&flows(&lab, 200)), [0u32; 0]);
    assert!(ok(&lab, &["service", "get", "web"]).0.contains("open"));

    let dropped = (reason(&lab, "no_backend"), view("strict")["dropped_packets"].as_u64().unwrap());
    let attempts = Flows::udp((tests::topology::VIP4, 8080).into(), 1).timeout(Duration::from_millis(300));
    assert_eq!(attempts.run(&lab.client).unwrap().answered.len(), 0);
    assert_eq!(reason(&lab, "no_backend"), dropped.0, "another protocol is another service");
    let attempts = Flows::tcp((tests::topology::VIP4, 8080).into(), 20).timeout(Duration::from_millis(500));
    assert_eq!(attempts.run(&lab.client).unwrap().answered.len(), 0);
    let grown = reason(&lab, "no_backend") - dropped.0;
    assert!(grown >= 20, "{grown} packets for 20 flows");
    assert_eq!(
        view("strict")["dropped_packets"].as_u64().unwrap() - dropped.1,
        grown,
        "told by service, too"
    );
    let route = json(&lab, &["route", "10.1.0.2:1025", "192.0.2.10:8080", "tcp"]);
    assert_eq!(route["verdict"], "drop", "{route}");
    assert!(route["reason"].as_str().unwrap().starts_with("no_backend"), "{route}");

    // A fresh agent finds it as it was left.
    agent.kill().unwrap();
    let _agent = balanced::restart(&lab);
    assert_eq!(ring(&lab, WEB), ring_before);
    assert_eq!(view("web")["fail_open"], true);
    for backend in &lab.backends {
        backend.server.set_health(Health::Ok);
    }
    until("both services to be back", || {
        let (web, strict) = (view("web"), view("strict"));
        let back = web["backends_usable"] == 3 && strict["backends_usable"] == 2;
        if back { Ok(()) } else { Err((web, strict)) }
    });
    steady.more(1);
    // They fail and return one after the other, and connections that are open break as their slots move; nothing else.
    let reports = steady.stop();
    let failed: usize = reports.iter().map(|report| report.failed.len()).sum();
    assert!(failed <= 16 * 12, "{failed} connections failed");
    let last = reports.last().unwrap().clone().expect_all();
    assert_eq!(reports[0].moved(&last), [0u32; 0]);
    assert_eq!(ring(&lab, WEB), ring_before);
}

#[test]
fn failing_open_outlives_a_restart_and_a_newcomer() {
    let lab = balanced::lab(Lab::builder().site_a(3));
    let config = NODE.to_owned() + &service(&lab, "web", "all_down = \"open\"", &["a1", "a2"]);
    let agent = Agent::start(lab.lb(), &config).unwrap();
    wait_usable(&lab, &["a1", "a2"]);
    for backend in &lab.backends {
        backend.server.set_health(Health::Status(503));
    }
    let open = || json(&lab, &["service", "get", "web"])["fail_open"] == true;
    balanced::until_true("failing open", open);
    let before = ring(&lab, WEB);

    // A new agent checks everybody anew. Meanwhile, and afterwards, nothing moves.
    agent.kill().unwrap();
    let _agent = balanced::restart(&lab);
    until("both to be checked again", || {
        assert!(open(), "what failed counts as healthy after a restart");
        assert_eq!(ring(&lab, WEB), before);
        let checks = [check(&lab, "a1"), check(&lab, "a2")];
        if checks.iter().all(|check| check["consecutive"].as_i64() < Some(-3)) { Ok(()) } else { Err(checks) }
    });

    // A backend that nobody has checked yet, added to help, takes nothing from the others.
    let address = lab.backend("a3").v4.to_string();
    ok(&lab, &["backend", "add", "web/a3", "--address", &address]);
    until("the newcomer to be found unhealthy", || {
        assert!(open(), "the newcomer ended failing open");
        assert!(!ring(&lab, WEB).is_empty());
        let found = check(&lab, "a3");
        if found["state"] == "unhealthy" { Ok(()) } else { Err(found) }
    });
    flows(&lab, 50);
}

#[test]
fn one_failed_check_is_no_failure() {
    let (lab, agent) = running(2);
    let steady = Steady::start(&lab.client, WEB, 50);
    let a2 = &lab.backend("a2").server;
    for _ in 0..3 {
        // Two of three that it takes, then one that is fine.
        let asked = a2.stats().health_checks;
        a2.set_health(Health::Status(500));
        until("two checks to fail", || {
            let now = a2.stats().health_checks;
            if now >= asked + 2 { Ok(()) } else { Err(now) }
        });
        a2.set_health(Health::Ok);
        until("a check to succeed", || {
            let found = check(&lab, "a2");
            if found["consecutive"].as_i64().unwrap() > 0 { Ok(()) } else { Err(found) }
        });
    }
    steady.more(1);
    steady.stop_undisturbed();
    assert!(!agent.log().contains("web/a2: healthy -> unhealthy"), "{}", agent.log());
    assert_eq!(backend(&lab, "a2")["health"], "healthy");
}

#[test]
fn udp_services_are_not_checked_unless_told_to() {
    let lab = balanced::lab(Lab::builder().site_a(2));
    let text = service(&lab, "dns", "port = 53\nprotocol = \"udp\"", &["a1", "a2"]);
    let _agent = Agent::start(lab.lb(), &(NODE.to_owned() + &text)).unwrap();
    let target = (tests::topology::VIP4, 53).into();
    assert_eq!(check(&lab, "a1")["state"], "disabled");
    until("neighbours", || {
        let found = balanced::usable(&lab);
        if found.len() == 2 { Ok(()) } else { Err(found) }
    });
    let report = Flows::udp(target, 200).run(&lab.client).unwrap().expect_all();
    assert_eq!(report.per_backend().len(), 2);
    let stats = lab.backend("a1").server.stats();
    assert_eq!((stats.connections, stats.health_checks), (0, 0));
}
