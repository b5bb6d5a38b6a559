//! The command line without an agent: usage, files, scripts, and how it fails.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use support::{Ran, command_in, wattline_in};

fn run(args: &[&str]) -> Ran {
    run_with(args, "")
}

fn run_with(args: &[&str], input: &str) -> Ran {
    let directory = tempfile::tempdir().expect("a directory");
    wattline_in(directory.path(), args, input)
}

#[test]
fn help_and_version_succeed() {
    let help = run(&["--help"]);
    assert_eq!(help.code, 0);
    for part in ["service", "dataplane", "Exit codes:", "3  the agent cannot be reached"] {
        assert!(help.stdout.contains(part), "{part} in {}", help.stdout);
    }
    assert_eq!(run(&["backend", "drain", "--help"]).code, 0);
    let version = run(&["version"]);
    assert_eq!((version.code, version.stdout.as_str()), (0, "wattline 0.1.0\n"));
    let json: serde_json::Value = serde_json::from_str(&run(&["version", "-o", "json"]).stdout).unwrap();
    assert_eq!((&json["schema_version"], &json["version"]), (&1.into(), &"0.1.0".into()));
}

#[test]
fn wrong_usage_is_2_and_says_how() {
    for args in [
        &[][..],
        &["nonsense"],
        &["backend", "drain", "no-slash"],
        &["service", "add", "web", "--address", "192.0.2.1"],
        &["service", "add", "web", "--address", "192.0.2.1", "--port", "0"],
        &["route", "192.0.2.1", "192.0.2.2", "tcp"],
        &["route", "192.0.2.1", "192.0.2.2:80", "sctp"],
        &["status", "--timeout", "0"],
        &["status", "-o", "xml"],
        &["status", "-v", "-q"],
        &["decap", "attach", "eth0"],
        &["decap", "attach", "eth0", "--allow", "10.0.0.1/8"],
        &["config", "validate"],
    ] {
        let ran = run(args);
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
        assert!(ran.stdout.is_empty(), "{args:?}: {ran:?}");
        assert!(!ran.stderr.is_empty(), "{args:?}: {ran:?}");
    }
}

#[test]
fn an_absent_agent_is_3_and_the_cure_is_named() {
    for args in [
        &["status"][..],
        &["service", "list"],
        &["backend", "list"],
        &["backend", "drain", "web/web-1"],
        &["config", "show"],
        &["config", "save"],
        &["health", "list"],
        &["stats", "--rate"],
        &["route", "192.0.2.1", "192.0.2.2:80", "tcp"],
        &["dataplane", "attach", "eth0"],
    ] {
        let ran = run(args);
        assert_eq!(ran.code, 3, "{args:?}: {ran:?}");
        assert!(ran.stdout.is_empty(), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains("is the agent running? start it: wattline agent --config"), "{ran:?}");
    }
    let ran = run(&["status", "-o", "json"]);
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!((&error["schema_version"], &error["code"]), (&1.into(), &"unreachable".into()));
}

#[test]
fn validate_tells_every_problem_with_its_place() {
    let good = run_with(&["config", "validate", "-f", "-"], support::CONFIG);
    assert_eq!(
        (good.code, good.stdout.as_str()),
        (0, "standard input: valid, 2 services, 2 backends\n"),
        "{good:?}"
    );
    let bad = support::CONFIG.replace("port = 80", "port = 80000").replace("site", "sit");
    let ran = run_with(&["config", "validate", "-f", "-"], &bad);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stdout.is_empty());
    assert!(ran.stderr.contains("standard input:8:8: service \"web\": port 80000 is above 65535"), "{ran:?}");
    assert!(
        ran.stderr.contains("standard input:16:1: service \"web\": backend \"web-2\": unknown key \"sit\"")
    );
    assert!(ran.stderr.contains("help: did you mean \"site\"?"), "{ran:?}");
    let ran = run_with(&["config", "validate", "-f", "-", "-o", "json"], &bad);
    assert_eq!(ran.code, 4);
    let verdict: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(verdict["valid"], false);
    assert_eq!(verdict["problems"].as_array().unwrap().len(), 2);
    assert_eq!(verdict["problems"][0]["line"], 8);
}

#[test]
fn files_that_cannot_be_read_are_4_and_named() {
    let ran = run(&["config", "validate", "-f", "/nowhere/x.toml"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("/nowhere/x.toml: cannot open the file"), "{ran:?}");
    let ran = run(&["config", "validate", "-f", "/"]);
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("directory"), "{ran:?}");
    let ran = run_with(&["config", "validate", "-f", "-"], "a = 1\0");
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("standard input:1:6: a NUL byte"), "{ran:?}");
}

#[test]
fn examples_validate_by_hand_too() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let ran = wattline_in(&directory, &["config", "validate", "-f", "minimal.toml"], "");
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (0, "minimal.toml: valid, 1 service, 2 backends\n"),
        "{ran:?}"
    );
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("drain"), "{shell}");
    }
    let directory = tempfile::tempdir().unwrap();
    let ran = wattline_in(directory.path(), &["man", "."], "");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(directory.path().join("wattline-backend-drain.1").exists());
    let ran = wattline_in(directory.path(), &["man", "missing"], "");
    assert_eq!(ran.code, 8, "{ran:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let directory = tempfile::tempdir().unwrap();
    // A pipe whose reading end is closed before the command writes.
    let mut reader = std::process::Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
    let writer = reader.stdin.take().unwrap();
    reader.wait().unwrap();
    let output = command_in(directory.path(), &["completions", "bash"])
        .stdout(Stdio::from(writer))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let ran = Ran::from(output);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn an_agent_that_does_not_answer_is_7() {
    let directory = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(directory.path().join("wattline.sock")).unwrap();
    let ran = wattline_in(directory.path(), &["status", "--timeout", "100ms"], "");
    assert_eq!(ran.code, 7, "{ran:?}");
    assert!(ran.stderr.contains("no answer within 0.1 s"), "{ran:?}");
}

#[test]
fn something_else_on_the_socket_is_8() {
    for answer in [
        "",
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\n???",
        "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"schema_version\":2}",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("wattline.sock")).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        });
        let ran = wattline_in(directory.path(), &["status"], "");
        server.join().unwrap();
        assert_eq!(ran.code, 8, "{answer:?}: {ran:?}");
        assert!(ran.stderr.contains("same version?"), "{ran:?}");
    }
}

#[test]
fn clean_refuses_while_an_agent_answers() {
    let directory = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(directory.path().join("wattline.sock")).unwrap();
    let ran = wattline_in(directory.path(), &["dataplane", "clean", "--bpffs", "/nowhere"], "");
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.stderr.contains("stop the agent first"), "{ran:?}");
}
