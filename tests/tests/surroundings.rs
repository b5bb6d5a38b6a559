//! The agent and what surrounds it: the service manager, the BPF file system, signals, and the examples people start from.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

mod balanced;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use balanced::{NODE, WEB, backend, file_error, flows, json, ok, ring, running, until, wait_usable, web};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tests::topology::Lab;
use tests::wattline::{Agent, CONFIG, binary, command};

/// The next message on a socket that the service manager listens on, or an error after a while.
fn told(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).expect("the service manager to be told something");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn the_service_manager_is_told_of_readiness_life_and_the_end() {
    let lab = balanced::lab(Lab::builder().site_a(1));
    Agent::write_config(lab.lb(), &(NODE.to_owned() + &web(&lab, &["a1"]))).unwrap();
    let path = "/run/lab/notify";
    let socket = lab.lb().run(|| UnixDatagram::bind(path)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut agent = lab
        .lb()
        .command(binary().unwrap())
        .args(["agent", "--config", CONFIG])
        .env("NOTIFY_SOCKET", path)
        .env("WATCHDOG_USEC", "500000")
        .spawn()
        .unwrap();
    // A sign of life may come first: it is the loop's, and so is readiness.
    let mut early = Vec::new();
    while !early.iter().any(|message: &String| message.contains("READY=1")) {
        early.push(told(&socket));
    }
    assert!(command(lab.lb(), &["status"]).unwrap().status.success(), "ready means that it answers");
    for _ in 0..2 {
        assert!(told(&socket).contains("WATCHDOG=1"));
    }
    agent.kill(Signal::SIGTERM).unwrap();
    let mut last = told(&socket);
    while last.contains("WATCHDOG=1") {
        last = told(&socket);
    }
    assert!(last.contains("STOPPING=1"), "{last}");
    assert!(agent.wait(Duration::from_secs(30)).unwrap().success());
}

#[test]
fn a_bpffs_is_mounted_where_there_is_none() {
    let lab = balanced::lab(Lab::builder().site_a(1));
    lab.lb().run(|| umount2("/sys/fs/bpf", MntFlags::MNT_DETACH)).unwrap();
    let _agent = Agent::start(lab.lb(), &(NODE.to_owned() + &web(&lab, &["a1"]))).unwrap();
    wait_usable(&lab, &["a1"]);
    let kind = lab.lb().run(|| statfs("/sys/fs/bpf")).unwrap().filesystem_type();
    assert_eq!(kind, BPF_FS_MAGIC);
    flows(&lab, 20);
    let nowhere = balanced::run(
        &lab,
        &["--bpffs", "/nowhere", "--runtime-dir", "/run/other", "agent", "--config", CONFIG],
    );
    assert_eq!(nowhere.status.code(), Some(6), "{}", nowhere.stderr);
    assert!(nowhere.stderr.contains("/nowhere is not a directory"), "{}", nowhere.stderr);
}

#[test]
fn a_hangup_reads_the_file_again_and_spares_what_runs() {
    let (lab, mut agent) = running(2);
    let before = ring(&lab, WEB);
    let config = NODE.to_owned() + &web(&lab, &["a1", "a2"]);
    Agent::write_config(lab.lb(), &(config.clone() + "nonsense")).unwrap();
    until("the file to be refused", || file_error(&lab).ok_or(()));
    Agent::write_config(lab.lb(), &config).unwrap();
    agent.process().kill(Signal::SIGHUP).unwrap();
    until("the complaint to go", || file_error(&lab).map_or(Ok(()), Err));
    assert_eq!(ring(&lab, WEB), before);
    assert_eq!(backend(&lab, "a1")["admin"], "ready");
}

#[test]
fn every_example_runs_as_it_stands() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut examples: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    examples.sort();
    assert!(examples.len() >= 7, "{examples:?}");
    // Two interfaces, as one of the examples has. Their backends are not here; that is no reason not to run.
    let lab = balanced::lab(Lab::builder().site_a(1).two_arm());
    for example in examples {
        let text = std::fs::read_to_string(&example).unwrap();
        let agent =
            Agent::start(lab.lb(), &text).unwrap_or_else(|error| panic!("{}: {error:#}", example.display()));
        let status = json(&lab, &["status"]);
        assert_eq!(
            status["interfaces"][0]["error"],
            serde_json::Value::Null,
            "{}: {status}",
            example.display()
        );
        assert!(status["services"].as_u64() > Some(0), "{}: {status}", example.display());
        agent.terminate().unwrap();
        ok(&lab, &["--yes", "dataplane", "clean"]);
    }
}
