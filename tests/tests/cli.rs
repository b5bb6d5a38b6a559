//! Every command against a real agent: tables, JSON and exit codes.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

mod balanced;

use std::time::Duration;

use balanced::{NODE, PINS, fails, flows, json, ok, run, running, tree, until, wait_usable, web};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::wattline::{self, CONFIG};

const ROUTE: [&str; 4] = ["route", "10.1.0.2:40000", "192.0.2.10:80", "tcp"];

#[test]
fn every_reading_command_speaks_tables_and_json() {
    let (lab, _agent) = running(2);
    flows(&lab, 50);
    let commands: &[(&[&str], &str)] = &[
        (&["status"], "generation"),
        (&["service", "list"], "192.0.2.10"),
        (&["service", "get", "web"], "2 usable of 2"),
        (&["backend", "list"], "50.0"),
        (&["backend", "list", "web"], "healthy"),
        (&["backend", "get", "web/a1"], "10.2.0.11"),
        (&["config", "show"], "name = \"web\""),
        (&["config", "validate", "-f", CONFIG], "1 service, 2 backends"),
        (&["health", "list"], "http :80"),
        (&["health", "list", "web"], "ok"),
        (&ROUTE, "forward: slot"),
        (&["stats"], "forwarded"),
        (&["stats", "--drops"], ""),
        (&["stats", "--rate"], "PACKETS/S"),
        (&["dataplane", "status"], PINS),
        (&["decap", "status"], ""),
        (&["version"], "wattline"),
    ];
    for (command, part) in commands {
        let value = json(&lab, command);
        assert!(value.is_object(), "{command:?}: {value}");
        for format in ["table", "wide"] {
            let (out, said) = ok(&lab, &[command, &["-o", format][..]].concat());
            assert!(out.contains(part) || format == "wide", "{command:?}: {part:?} is missing in {out}");
            assert_eq!(said, "", "{command:?}");
            assert!(!out.contains('\x1b'), "{command:?}: colours for nobody");
        }
    }
    assert_eq!(json(&lab, &["config", "diff"])["generation"], 1);
    // What one command says of the same thing, the others say too.
    let (stats, list) = (json(&lab, &["stats"]), json(&lab, &["backend", "list"]));
    for (counted, listed) in
        stats["backends"].as_array().unwrap().iter().zip(list["backends"].as_array().unwrap())
    {
        assert_eq!((&counted["backend"], &counted["packets"]), (&listed["name"], &listed["packets"]));
        assert!(counted["packets"].as_u64().unwrap() > 0, "{counted}");
    }
    let sum: u64 = stats["backends"].as_array().unwrap().iter().map(|b| b["packets"].as_u64().unwrap()).sum();
    assert_eq!(stats["totals"]["forwarded_packets"], sum);
}

#[test]
fn route_tells_what_packets_find() {
    let (lab, _agent) = running(3);
    let report = flows(&lab, 100);
    for (flow, backend) in &report.answered {
        let source = tests::topology::Lab::flow_source(tests::topology::VIP4, *flow).to_string();
        let route = json(&lab, &["route", &source, "192.0.2.10:80", "tcp"]);
        assert_eq!((&route["backend"], &route["verdict"]), (&backend.as_str().into(), &"forward".into()));
        let address = lab.backend(backend).v4;
        assert_eq!(route["encapsulation"], format!("ipip 10.2.0.2 -> {address}"));
    }
    for (destination, protocol) in
        [("192.0.2.10:81", "tcp"), ("192.0.2.10:80", "udp"), ("192.0.2.99:80", "tcp")]
    {
        let route = json(&lab, &["route", "10.1.0.2:40000", destination, protocol]);
        assert_eq!(route["verdict"], "pass", "{route}");
        assert!(route["reason"].as_str().unwrap().starts_with("not_a_service"), "{route}");
    }
    fails(&lab, 2, &["route", "10.1.0.2:40000", "192.0.2.10", "tcp"]);
    fails(&lab, 2, &["route", "10.1.0.2:40000", "192.0.2.10:80", "icmp"]);
    fails(&lab, 4, &["route", "10.1.0.2:40000", "[2001:db8::1]:80", "tcp"]);
}

#[test]
fn every_writing_command_tells_what_it_did() {
    let (lab, _agent) = running(2);
    lab.lb().write("/run/lab/next.toml", NODE.to_owned() + &web(&lab, &["a2", "a1"])).unwrap();
    let commands: &[(&[&str], &str)] = &[
        (&["service", "add", "api", "--address", "192.0.2.20", "--port", "any", "--protocol", "udp"], "api"),
        (&["service", "set", "api", "--all-down", "drop"], "all_down"),
        (&["backend", "add", "api/a1", "--address", "10.2.0.11"], "api/a1"),
        (&["backend", "set", "api/a1", "--weight", "5"], "5"),
        (&["backend", "drain", "web/a1"], "drain"),
        (&["backend", "ready", "web/a1"], "ready"),
        (&["backend", "maint", "api/a1"], "maint"),
        (&["backend", "delete", "api/a1"], "api/a1"),
        (&["service", "delete", "api"], "api"),
        (&["config", "apply", "-f", "/run/lab/next.toml"], ""),
    ];
    for (command, part) in commands {
        let generation = balanced::generation(&lab);
        let (out, said) = ok(&lab, &[command, &["--dry-run"][..]].concat());
        assert!(out.contains(part) && said.contains("dry run"), "{command:?}: {out}{said}");
        let (out, said) = ok(&lab, command);
        assert!(out.contains(part) && said.contains("generation"), "{command:?}: {out}{said}");
        let now = balanced::generation(&lab);
        // Only the last one says what is so already, in another order.
        assert_eq!(now, generation + u64::from(command[1] != "apply"), "{command:?}");
    }
    for command in [&["backend", "set", "web/a1", "--weight", "7"][..], &["config", "save"]] {
        let done = json(&lab, command);
        assert_eq!(done["generation"], balanced::generation(&lab), "{done}");
    }
    // Quiet is quiet.
    let (out, said) = ok(&lab, &["backend", "drain", "web/a1", "-q", "-o", "json"]);
    assert_eq!(
        (serde_json::from_str::<Value>(&out).unwrap()["changed"].clone(), said.as_str()),
        (true.into(), "")
    );
}

#[test]
fn exit_codes_tell_why() {
    let (lab, mut agent) = running(2);
    lab.lb().write("/run/lab/bad.toml", "[node]\ninterfaces = 7\n").unwrap();
    let weight_7 = ["backend", "set", "web/a1", "--weight", "7"];
    let cases: &[(i32, &[&str])] = &[
        (2, &["nonsense"]),
        (2, &["status", "--nonsense"]),
        (2, &["service", "get", "nobody"]),
        (2, &["backend", "get", "web/nobody"]),
        (2, &["backend", "get", "nobody"]),
        (2, &["backend", "drain", "nobody/a1"]),
        (2, &["backend", "set", "web/a1", "--weight", "70000"]),
        (2, &["backend", "set", "web/a1", "--weight", "-1"]),
        (2, &["dataplane", "detach", "../maps/NODE"]),
        (4, &["config", "apply", "-f", "/run/lab/bad.toml"]),
        (4, &["config", "apply", "-f", "/run/lab/nothing.toml"]),
        (4, &["config", "diff", "-f", "/run/lab/bad.toml"]),
        (4, &["backend", "set", "web/a1"]),
        (4, &["backend", "add", "web/a3", "--address", "224.0.0.1"]),
        (4, &["backend", "add", "web/a 3", "--address", "10.2.0.13"]),
        (5, &["backend", "add", "web/a1", "--address", "10.2.0.99"]),
        (5, &[&weight_7[..], &["--if-generation", "99"]].concat()),
        (5, &["dataplane", "clean"]),
        (4, &["dataplane", "attach", "../eth0"]),
        (6, &["dataplane", "attach", "eth9"]),
        (6, &["decap", "attach", "eth9", "--allow", "10.0.0.0/8"]),
    ];
    // Its verdict is data: a program finds it on standard output.
    let output = run(&lab, &["config", "validate", "-f", "/run/lab/bad.toml", "-o", "json"]);
    let verdict: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &verdict["valid"], &verdict["problems"][0]["line"]),
        (Some(4), &false.into(), &2.into())
    );
    let said = fails(&lab, 4, &["config", "validate", "-f", "/run/lab/bad.toml"]);
    assert!(said.contains("/run/lab/bad.toml:2:14: "), "{said}");

    let pins = tree(lab.lb(), PINS);
    let generation = balanced::generation(&lab);
    for (code, command) in cases {
        let said = fails(&lab, *code, command);
        assert!(said.starts_with("error: "), "{command:?}: {said}");
        if *code == 2 && command.contains(&"nonsense") {
            continue;
        }
        // The same for programs, unless the arguments could not be understood at all.
        let said = fails(&lab, *code, &[command, &["-o", "json"][..]].concat());
        if let Ok(error) = serde_json::from_str::<Value>(&said) {
            assert_eq!(error["schema_version"], 1, "{command:?}: {error}");
            assert!(!error["message"].as_str().unwrap().is_empty(), "{command:?}: {error}");
        } else {
            assert_eq!(*code, 2, "{command:?}: {said}");
        }
    }
    assert_eq!((tree(lab.lb(), PINS), balanced::generation(&lab)), (pins, generation), "nothing was changed");

    lab.lb().write(CONFIG, NODE.to_owned() + &web(&lab, &["a1"])).unwrap();
    until("the file to run", || {
        let now = balanced::generation(&lab);
        if now == generation + 1 { Ok(()) } else { Err(now) }
    });
    lab.lb().write("/run/lab/old.toml", NODE.to_owned() + &web(&lab, &["a1", "a2"])).unwrap();
    let output = run(&lab, &["config", "diff", "-f", "/run/lab/old.toml"]);
    assert_eq!((output.status.code(), output.stdout.contains("web/a2")), (Some(1), true), "{output:?}");

    // An agent that hangs, and one that is gone.
    agent.process().kill(Signal::SIGSTOP).unwrap();
    for command in [&["status"][..], &weight_7, &["dataplane", "detach", "eth0"]] {
        let said = fails(&lab, 7, &[command, &["--timeout", "300ms"][..]].concat());
        assert!(said.contains("--timeout"), "{command:?}: {said}");
    }
    flows(&lab, 20);
    agent.process().kill(Signal::SIGCONT).unwrap();
    agent.kill().unwrap();
    for command in [&["status"][..], &["backend", "list"], &weight_7, &["config", "save"], &["stats"], &ROUTE]
    {
        let said = fails(&lab, 3, command);
        assert!(said.contains("is the agent running?"), "{command:?}: {said}");
    }
    // These need none.
    for command in [&["version"][..], &["dataplane", "status"], &["config", "validate", "-f", CONFIG]] {
        json(&lab, command);
    }
}

#[test]
fn watching_prints_one_object_a_line() {
    let (lab, _agent) = running(1);
    let mut watch = lab
        .lb()
        .command(wattline::binary().unwrap())
        .args(["stats", "--watch=0.05", "-o", "json"])
        .spawn()
        .unwrap();
    until("three lines", || {
        let lines = watch.stdout().lines().count();
        if lines > 3 { Ok(()) } else { Err(lines) }
    });
    watch.kill(Signal::SIGINT).unwrap();
    watch.wait(Duration::from_secs(30)).unwrap();
    let text = watch.stdout();
    for line in text.lines().take(3) {
        let value: Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["schema_version"], 1);
    }
}

#[test]
fn the_doctor_finds_the_balancer_in_good_health() {
    let (lab, _agent) = running(1);
    wait_usable(&lab, &["a1"]);
    let output = run(&lab, &["doctor", "eth0", "-o", "json"]);
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(report["schema_version"], 1, "{report}");
    assert_eq!((output.status.code(), &report["summary"]["problem"]), (Some(0), &0.into()), "{report}");
    let program =
        report["findings"].as_array().unwrap().iter().find(|finding| finding["id"] == "program").unwrap();
    assert_eq!(program["severity"], "ok", "our own program is no stranger: {program}");
}
