//! The command line against the real API, with a stand-in behind it.

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use support::{FakeAgent, command_in, wattline_in};

#[test]
fn tables_are_aligned_and_plain_where_nobody_watches() {
    let agent = FakeAgent::start();
    assert_eq!(
        agent.ok(&["service", "list"]),
        "\
NAME  ADDRESS       PORT  PROTO  MODE  USABLE  BACKENDS  PACKETS  DROPPED
web   192.0.2.10      80  tcp    ipip       2         2       12        0
dns   2001:db8::53   any  udp    ipip       0         0       12        0
"
    );
    assert_eq!(
        agent.ok(&["backend", "list", "web"]),
        "\
SERVICE  BACKEND  ADDRESS    ADMIN  HEALTH   WEIGHT  EFFECTIVE   SHARE  PACKETS
web      web-1    10.0.0.11  ready  healthy     100        100  50.00%        6
web      web-2    10.0.0.12  ready  healthy     100        100  50.00%        6
"
    );
    let wide = agent.ok(&["backend", "list", "-o", "wide"]);
    assert!(wide.contains("02:00:00:00:00:01 on eth0, mtu 1500"), "{wide}");
    assert!(wide.contains("berlin"), "{wide}");
    assert!(agent.ok(&["health", "list"]).contains("tcp :80"));
    assert!(agent.ok(&["health", "list", "dns"]).contains("no backends"));
    assert!(agent.ok(&["status"]).contains("up 1 h 2 min"));
    assert!(agent.ok(&["service", "get", "web"]).contains("2 usable of 2"));
    assert!(agent.ok(&["backend", "get", "web/web-2"]).contains("berlin"));
}

#[test]
fn json_everywhere_with_its_version() {
    let agent = FakeAgent::start();
    assert_eq!(agent.json(&["status"])["generation"], 1);
    assert_eq!(agent.json(&["service", "list"])["services"][1]["port"], "any");
    assert_eq!(agent.json(&["service", "get", "web"])["port"], 80);
    assert_eq!(agent.json(&["backend", "list"])["backends"][1]["site"], "berlin");
    assert_eq!(agent.json(&["backend", "get", "web/web-1"])["next_hop"]["state"], "resolved");
    assert_eq!(agent.json(&["config", "show"])["config"]["service"][0]["backend"][0]["weight"], 100);
    assert_eq!(agent.json(&["health", "list"])["health"][0]["state"], "healthy");
    assert_eq!(agent.json(&["stats"])["reasons"][0]["verdict"], "drop");
    assert_eq!(
        agent.json(&["stats", "--rate", "--watch=0.01", "--drops"][..2])["totals"]["forwarded_packets"],
        100
    );
    let route = agent.json(&["route", "198.51.100.7:4711", "[2001:db8::10]:80", "tcp"]);
    assert_eq!((&route["slot"], &route["verdict"]), (&4711.into(), &"forward".into()));
    assert_eq!(route["reason"], "2001:db8::10 belongs to web");
    assert_eq!(agent.json(&["dataplane", "attach", "eth1", "--mode", "generic"])["mode"], "generic");
}

#[test]
fn services_and_backends_come_change_and_go() {
    let agent = FakeAgent::start();
    let ran = agent.wattline(&[
        "service",
        "add",
        "api",
        "--address",
        "192.0.2.11",
        "--port",
        "8080",
        "--health-type",
        "http",
        "--health-status",
        "200,204",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout
            .starts_with("+ service  api  address 192.0.2.11, all_down open, health.status [200,204], ")
    );
    assert!(ran.stderr.contains("generation 2; web: 101 of 211 slots moved"), "{ran:?}");
    agent.ok(&["backend", "add", "api/api-1", "--address", "10.0.0.21", "--weight", "7", "--site", "oslo"]);
    agent.ok(&["backend", "set", "api/api-1", "--weight", "9", "--site", ""]);
    let config = agent.json(&["config", "show"])["config"].clone();
    let backend = &config["service"][2]["backend"][0];
    assert_eq!((&backend["weight"], backend.get("site")), (&9.into(), None));
    // New health settings go over the present ones.
    agent.ok(&["service", "set", "api", "--health-path", "/up", "--ring-slots", "211"]);
    let config = agent.json(&["config", "show"])["config"].clone();
    assert_eq!(config["service"][2]["health"]["path"], "/up");
    assert_eq!(config["service"][2]["health"]["status"][1], 204);
    assert_eq!(config["service"][2]["ring_slots"], 211);
    agent.ok(&["service", "set", "api", "--ring-slots", "auto"]);
    agent.ok(&["backend", "delete", "api/api-1"]);
    agent.ok(&["service", "delete", "api"]);
    assert_eq!(agent.json(&["config", "show"])["config"]["service"].as_array().unwrap().len(), 2);
}

#[test]
fn drain_says_what_it_costs() {
    let agent = FakeAgent::start();
    let ran = agent.wattline(&["backend", "drain", "web/web-1"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "~ backend  web/web-1  admin ready -> drain\n"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("sets the weight of web/web-1 to 0, and 101 slots moved"), "{ran:?}");
    assert!(ran.stderr.contains("Until flow state exists, open connections"), "{ran:?}");
    assert_eq!(agent.json(&["backend", "get", "web/web-1"])["effective_weight"], 0);
    let again = agent.wattline(&["backend", "drain", "web/web-1", "-q"]);
    assert_eq!((again.code, again.stdout.as_str(), again.stderr.as_str()), (0, "", ""));
    let ready = agent.wattline(&["backend", "ready", "web/web-1"]);
    assert!(!ready.stderr.contains("warning"), "{ready:?}");
    let ran = agent.wattline(&["backend", "maint", "web/web-1", "--dry-run"]);
    assert!(ran.stderr.contains("would set"), "{ran:?}");
    assert_eq!(agent.json(&["backend", "get", "web/web-1"])["admin"], "ready");
}

#[test]
fn failures_have_their_codes_and_cures() {
    let agent = FakeAgent::start();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["service", "get", "x"], 2, "there is no service \"x\""),
        (&["service", "get", "../status"], 2, "there is no service \"../status\""),
        (&["backend", "list", "x"], 2, "`wattline service list` shows all"),
        (&["backend", "get", "web/x"], 2, "has no backend \"x\""),
        (&["backend", "drain", "web/x"], 2, "has no backend \"x\""),
        (&["backend", "set", "web/web-1"], 4, "no field to set"),
        (&["backend", "add", "web/b!", "--address", "10.0.0.9"], 4, "the name is not valid"),
        (&["backend", "add", "web/b", "--address", "127.0.0.1"], 4, "loopback"),
        (&["backend", "add", "web/web-1", "--address", "10.0.0.9"], 5, "has a backend \"web-1\" already"),
        (&["service", "add", "w2", "--address", "192.0.2.10", "--port", "80"], 4, "those of service \"web\""),
        (&["backend", "drain", "web/web-1", "--if-generation", "7"], 5, "is generation 1, not 7"),
        (&["dataplane", "attach", "eth9"], 6, "no native mode\n  help: use --mode generic"),
        (&["dataplane", "detach", "eth0", "--timeout", "100ms"], 7, "no answer"),
    ];
    for (args, code, text) in cases {
        let ran = agent.wattline(args);
        assert_eq!(ran.code, *code, "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(text) && ran.stderr.contains("help: "), "{args:?}: {ran:?}");
        assert!(ran.stdout.is_empty(), "{args:?}: {ran:?}");
    }
    let ran = agent.wattline(&["backend", "add", "web/b!", "--address", "127.0.0.1", "-o", "json"]);
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!((&error["code"], error["problems"].as_array().unwrap().len()), (&"invalid".into(), 2));
    assert_eq!(agent.json(&["status"])["generation"], 1, "nothing changed");
}

#[test]
fn an_agent_that_hangs_inside_is_7_too() {
    let agent = FakeAgent::start_with(Duration::from_millis(100));
    let ran = agent.wattline(&["dataplane", "detach", "eth0"]);
    assert_eq!(ran.code, 7, "{ran:?}");
    assert!(ran.stderr.contains("the agent did not answer"), "{ran:?}");
}

#[test]
fn configurations_are_compared_applied_and_saved() {
    let agent = FakeAgent::start();
    let same = agent.wattline(&["config", "diff"]);
    assert_eq!((same.code, same.stdout.as_str()), (0, ""), "{same:?}");
    let new = agent.path("new.toml");
    std::fs::write(&new, support::CONFIG.replace("10.0.0.12\"", "10.0.0.13\"\nweight = 5")).unwrap();
    let expected = "~ backend  web/web-2  address 10.0.0.12 -> 10.0.0.13, weight 100 -> 5\n";
    let diff = agent.wattline(&["config", "diff", "-f", "new.toml"]);
    assert_eq!((diff.code, diff.stdout.as_str()), (1, expected), "{diff:?}");
    let json = agent.wattline(&["config", "diff", "-f", "new.toml", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json.code, &value["changes"][0]["op"]), (1, &"changed".into()));
    assert_eq!(agent.ok(&["config", "apply", "-f", "new.toml", "--dry-run"]), expected);
    assert_eq!(agent.json(&["status"])["generation"], 1);
    assert_eq!(agent.wattline(&["config", "apply", "-f", "new.toml", "--if-generation", "9"]).code, 5);
    assert_eq!(agent.ok(&["config", "apply", "-f", "new.toml", "--if-generation", "1"]), expected);
    assert_eq!(agent.wattline(&["config", "diff"]).code, 1, "the file is behind");
    let saved = agent.ok(&["config", "save"]);
    assert!(saved.starts_with("generation 2 saved to "), "{saved}");
    assert_eq!(agent.wattline(&["config", "diff"]).code, 0);
    // What is shown can be applied again.
    let shown = agent.ok(&["config", "show"]);
    let ran = wattline_in(agent.directory.path(), &["config", "apply", "-f", "-"], &shown);
    assert_eq!((ran.code, ran.stderr.contains("nothing to change, generation 2")), (0, true), "{ran:?}");
    let ran = wattline_in(agent.directory.path(), &["config", "apply", "-f", "-"], "[nodes]\n");
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("standard input:1:2: unknown key \"nodes\""), "{ran:?}");
}

#[test]
fn rates_and_drops() {
    let agent = FakeAgent::start();
    let rates = agent.ok(&["stats", "--rate"]);
    assert!(rates.contains("forwarded  100 packets/s, 6000 bytes/s"), "{rates}");
    let drops = agent.ok(&["stats", "--drops"]);
    assert_eq!(drops.lines().count(), 2, "{drops}");
    assert!(drops.contains("no_backend  drop"), "{drops}");
}

#[test]
fn watching_prints_one_object_a_line() {
    let agent = FakeAgent::start();
    let mut child = command_in(agent.directory.path(), &["status", "--watch=0.01", "-o", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(3);
    for line in lines {
        let value: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(value["node"], "lb1");
    }
    // The reader is gone: the next line ends the command, quietly.
    assert!(child.wait().unwrap().success());
}
