//! Configurations that are refused: whole, with the place and the reason, while the last good one runs.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

mod balanced;

use balanced::{
    NODE, Steady, WEB, backend, fails, file_error, flows, generation, json, ok, ring, running, until,
    wait_usable, web,
};
use tests::topology::Lab;
use tests::wattline::{Agent, CONFIG};

/// Waits until the file is refused with this text.
#[track_caller]
fn wait_refused(lab: &Lab, text: &str) {
    until(text, || {
        let error = file_error(lab);
        if error.as_ref().is_some_and(|error| error.contains(text)) { Ok(()) } else { Err(error) }
    });
}

#[test]
fn a_bad_file_is_refused_whole_and_a_later_good_one_is_taken() {
    let (lab, agent) = running(3);
    let good = NODE.to_owned() + &web(&lab, &["a1", "a2", "a3"]);
    let steady = Steady::start(&lab.client, WEB, 50);
    let (ring_before, generation_before) = (ring(&lab, WEB), generation(&lab));
    let a1 = "[[service.backend]]\nname = \"a1\"\naddress = \"10.2.0.11\"\n";
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("broken syntax", good.replace("[node]", "[node").into(), ":1:6: "),
        ("an unknown key", good.replace("interfaces", "interface").into(), ":2:1: "),
        ("a name twice", (good.clone() + a1).into(), "the same name"),
        (
            "an address and port twice",
            (good.clone() + &web(&lab, &["a1"]).replace("\"web\"", "\"web2\"")).into(),
            "\"web2\"",
        ),
        (
            "a bad weight",
            (good.clone() + "weight = 70000\n").into(),
            "service \"web\": backend \"a3\": weight 70000 is above 65535",
        ),
        ("a negative weight", (good.clone() + "weight = -1\n").into(), "weight -1"),
        ("no prime", good.replace("1009", "1008").into(), "1008"),
        ("a multicast service", good.replace("192.0.2.10", "224.0.0.1").into(), "224.0.0.1"),
        ("a bad interface", good.replace("eth0", "no/such").into(), "no/such"),
        ("an interface that is not there", good.replace("eth0", "eth9").into(), "there is no interface eth9"),
        (
            "another flow-hash key",
            good.replace("[node]", "[node]\nflow_hash_key = \"00112233445566778899aabbccddeeff\"").into(),
            "flow_hash_key",
        ),
        ("half of it", good.as_bytes()[..good.len() - 12].to_vec(), &*format!("{CONFIG}:")),
        ("nothing", Vec::new(), ":1:1: the file is empty"),
        ("garbage", (0..=255).cycle().take(5000).collect(), "UTF-8"),
        ("a NUL byte", (good.clone() + "\0").into(), "a NUL byte"),
        ("depth", ("a = ".to_owned() + &"[".repeat(100_000)).into(), "recurse"),
        ("far too much", vec![b'#'; (64 << 20) + 1], "longer than 67108864 bytes"),
    ]
    .into_iter()
    .map(|(what, text, error)| (what, text, Box::leak(error.to_owned().into_boxed_str()) as &str))
    .collect();
    for (what, text, error) in cases {
        lab.lb().write("/run/lab/next", &text).unwrap();
        lab.lb().run(|| std::fs::rename("/run/lab/next", CONFIG)).unwrap();
        wait_refused(&lab, error);
        assert_eq!((generation(&lab), ring(&lab, WEB)), (generation_before, ring_before.clone()), "{what}");
        let (table, _) = ok(&lab, &["status"]);
        assert!(
            table.contains("REFUSED, the last good one runs") && table.contains(error),
            "{what}: {table}"
        );
        let output = balanced::run(&lab, &["config", "apply", "-f", CONFIG]);
        assert!([Some(4), Some(6)].contains(&output.status.code()), "{what}: {output:?}");
        assert_eq!(generation(&lab), generation_before, "{what}");
    }
    balanced::wait_logged(&agent, "the configuration file is refused; generation 1 runs on");
    // Gone altogether is no order to stop either.
    lab.lb().run(|| std::fs::remove_file(CONFIG)).unwrap();
    wait_refused(&lab, "cannot open the file");
    // The old text again: nothing to do, and nothing to complain of.
    Agent::write_config(lab.lb(), &good).unwrap();
    until("the complaint to go", || file_error(&lab).map_or(Ok(()), Err));
    assert_eq!(generation(&lab), generation_before);
    steady.more(1);
    steady.stop_undisturbed();
    Agent::write_config(lab.lb(), &good.replace("name = \"web\"", "name = \"shop\"")).unwrap();
    until("the good file to run", || {
        let services = json(&lab, &["service", "list"]);
        if services["services"][0]["name"] == "shop" { Ok(()) } else { Err(services) }
    });
    assert_eq!(file_error(&lab), None);
}

#[test]
fn a_refused_file_does_not_undo_what_was_changed_at_run_time() {
    let (lab, _agent) = running(2);
    let good = NODE.to_owned() + &web(&lab, &["a1", "a2"]);
    ok(&lab, &["backend", "drain", "web/a2"]);
    Agent::write_config(lab.lb(), &(good.clone() + "nonsense")).unwrap();
    wait_refused(&lab, "key with no value");
    Agent::write_config(lab.lb(), &good).unwrap();
    until("the complaint to go", || file_error(&lab).map_or(Ok(()), Err));
    assert_eq!(backend(&lab, "a2")["admin"], "drain", "the file says what it said before");
    // A file that says something else is an order.
    Agent::write_config(lab.lb(), &good.replace("1009", "2003")).unwrap();
    until("the file to run", || {
        let a2 = backend(&lab, "a2")["admin"].clone();
        if a2 == "ready" { Ok(()) } else { Err(a2) }
    });
}

#[test]
fn what_does_not_fit_the_maps_changes_nothing() {
    let lab = balanced::lab(Lab::builder().site_a(3));
    let limits = "[limits]\nservices = 2\nbackends = 30\nring_slots = 3100\n";
    let config = limits.to_owned() + NODE + &web(&lab, &["a1", "a2"]);
    let _agent = Agent::start(lab.lb(), &config).unwrap();
    wait_usable(&lab, &["a1", "a2"]);
    let before = flows(&lab, 100);
    let state = || (generation(&lab), ring(&lab, WEB), json(&lab, &["status"])["maps"].clone());
    let unchanged = state();
    let add = |name: &str, port: &str, ring_slots: &str| -> Vec<String> {
        ["service", "add", name, "--address", "192.0.2.10", "--port", port, "--ring-slots", ring_slots]
            .map(str::to_owned)
            .to_vec()
    };
    let tries = [(4, add("big", "81", "2099"), "ring_slots"), (6, add("big", "81", "1499"), "ring slots")];
    for (code, args, part) in tries {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let said = fails(&lab, code, &args);
        assert!(said.contains(part) && said.contains("limits"), "{said}");
        assert_eq!(state(), unchanged);
    }
    let second: Vec<String> = add("second", "81", "7");
    ok(&lab, &second.iter().map(String::as_str).collect::<Vec<_>>());
    let third: Vec<String> = add("third", "82", "7");
    let said = fails(&lab, 4, &third.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(said.contains("3 services"), "{said}");
    // Sixteen backends, and sixteen more to change them.
    ok(&lab, &["backend", "add", "web/a3", "--address", "10.2.0.13"]);
    let many =
        (101..115).map(|n| format!("[[service.backend]]\nname = \"x{n}\"\naddress = \"10.2.0.{n}\"\n"));
    lab.lb().write("/run/lab/many.toml", config.clone() + &many.collect::<String>()).unwrap();
    let unchanged = state();
    let said = fails(&lab, 6, &["config", "apply", "-f", "/run/lab/many.toml"]);
    assert!(said.contains("backends") && said.contains("limits.backends"), "{said}");
    assert_eq!(state(), unchanged);
    wait_usable(&lab, &["a1", "a2", "a3"]);
    // Nearly full maps can still be changed.
    for weight in ["10", "20", "100"] {
        ok(&lab, &["backend", "set", "web/a3", "--weight", weight]);
    }
    ok(&lab, &["backend", "delete", "web/a3"]);
    ok(&lab, &["service", "delete", "second"]);
    assert_eq!(before.moved(&flows(&lab, 100)), [0u32; 0]);
}

#[test]
fn diff_dry_run_generation_and_save() {
    let (lab, _agent) = running(3);
    assert_eq!(ok(&lab, &["config", "diff"]).0, "");
    let (out, said) = ok(&lab, &["backend", "drain", "web/a2", "--dry-run"]);
    assert!(out.contains("web/a2") && said.contains("dry run") && said.contains("would set"), "{out}{said}");
    let dry = json(&lab, &["backend", "set", "web/a1", "--weight", "1", "--dry-run"]);
    assert_eq!((&dry["dry_run"], &dry["generation"]), (&true.into(), &1.into()));
    let would = dry["moved_slots"][0]["moved"].clone();
    assert_eq!((generation(&lab), backend(&lab, "a1")["weight"].as_u64()), (1, Some(100)));

    let said = fails(&lab, 5, &["backend", "set", "web/a1", "--weight", "1", "--if-generation", "7"]);
    assert!(said.contains('7') && said.contains('1'), "{said}");
    let done = json(&lab, &["backend", "set", "web/a1", "--weight", "1", "--if-generation", "1"]);
    assert_eq!(done["moved_slots"][0]["moved"], would, "what the dry run said");
    assert_eq!(generation(&lab), 2);
    fails(&lab, 5, &["backend", "ready", "web/a1", "--if-generation", "1"]);
    fails(&lab, 5, &["config", "save", "--if-generation", "1"]);

    let output = balanced::run(&lab, &["config", "diff"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.contains("web/a1") && output.stdout.contains("weight"), "{}", output.stdout);
    let output = balanced::run(&lab, &["config", "diff", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let diff: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&diff["schema_version"], &diff["generation"]), (&1.into(), &2.into()));
    assert_eq!(json(&lab, &["config", "save", "--if-generation", "2"])["generation"], 2);
    assert_eq!(balanced::run(&lab, &["config", "diff"]).status.code(), Some(0));
    assert_eq!(json(&lab, &["status"])["config"]["unsaved"], false);
    assert!(lab.lb().read(CONFIG).unwrap().contains("weight = 1\n"));
    ok(&lab, &["config", "validate", "-f", CONFIG]);
    assert_eq!(generation(&lab), 2, "its own file is no news");
    // A loser of a race is told, and the file's text shown is the text that runs.
    let (shown, _) = ok(&lab, &["config", "show"]);
    lab.lb().write("/run/lab/shown.toml", &shown).unwrap();
    assert_eq!(json(&lab, &["config", "apply", "-f", "/run/lab/shown.toml"])["changed"], false);
}
