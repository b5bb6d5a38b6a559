//! `wattline doctor` in the lab: a healthy machine has no problem, and each trap is named with its cure.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::time::Duration;

use etherparse::PacketBuilder;
use serde_json::Value;
use tests::capture::{Capture, RawSender};
use tests::host::Host;
use tests::link::{Link, veth};
use tests::peer::{Action, FixedProgram};
use tests::topology::Lab;
use tests::wait;
use tests::wattline::{self, Agent};

const CONFIG: &str = r#"
[node]
interfaces = ["eth0"]

[[service]]
name = "web"
address = "192.0.2.10"
port = 80
protocol = "tcp"

[[service.backend]]
name = "a1"
address = "10.2.0.11"
"#;
/// The kernel's limit on a veth's peer in native mode, measured.
const MOST_PEER_MTU: u32 = 3506;

/// An examination of a host.
struct Examination {
    report: Value,
    code: Option<i32>,
}

fn doctor(host: &Host, args: &[&str]) -> Examination {
    let output = wattline::command(host, &[&["doctor", "-o", "json"], args].concat()).unwrap();
    let report = serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {output:?}"));
    let examination = Examination { report, code: output.status.code() };
    examination.keeps_its_promises();
    examination
}

impl Examination {
    fn findings(&self) -> &Vec<Value> {
        self.report["findings"].as_array().unwrap()
    }

    /// What is documented of every report, whatever was found.
    fn keeps_its_promises(&self) {
        assert_eq!(self.report["schema_version"], 1);
        for severity in ["ok", "note", "warning", "problem"] {
            let count = self.findings().iter().filter(|finding| finding["severity"] == severity).count();
            assert_eq!(self.report["summary"][severity], count, "{:#}", self.report);
        }
        for finding in self.findings() {
            let cure = finding["cure"].as_str();
            assert_eq!(cure.is_none(), finding["severity"] == "ok", "{finding}");
            assert!(cure.is_none_or(|cure| cure.matches('`').count() >= 2), "no command: {finding}");
        }
        let problems = self.report["summary"]["problem"] != 0;
        assert_eq!(self.code, Some(if problems { 6 } else { 0 }), "{:#}", self.report);
    }

    fn find(&self, subject: &str, id: &str) -> &Value {
        let same = |finding: &&Value| finding["subject"] == subject && finding["id"] == id;
        self.findings().iter().find(same).unwrap_or_else(|| panic!("no {subject} {id} in {:#}", self.report))
    }

    #[track_caller]
    fn says(&self, subject: &str, id: &str, severity: &str, finding: &str, cure: &str) {
        let found = self.find(subject, id);
        assert_eq!(found["severity"], severity, "{found}");
        assert!(found["finding"].as_str().unwrap().contains(finding), "{finding} in {found}");
        assert!(found["cure"].as_str().unwrap_or_default().contains(cure), "{cure} in {found}");
    }

    #[track_caller]
    fn is_ok(&self, subject: &str, id: &str) {
        assert_eq!(self.find(subject, id)["severity"], "ok", "{:#}", self.find(subject, id));
    }

    #[track_caller]
    fn has_no_problem(&self) {
        assert_eq!(self.report["summary"]["problem"], 0, "{:#}", self.report);
        assert_eq!(self.report["summary"]["warning"], 0, "{:#}", self.report);
    }
}

/// A machine with one veth, as somebody finds it who did nothing yet, and the machine at its other end.
struct Bare {
    machine: Host,
    near: Link,
    neighbour: Host,
    far: Link,
}

fn bare() -> Bare {
    let (machine, neighbour) = (Host::new("machine").unwrap(), Host::new("neighbour").unwrap());
    let (near, far) = veth((&machine, "eth0"), (&neighbour, "port"), 1500).unwrap();
    for end in [&near, &far] {
        end.up().unwrap();
    }
    for end in [&near, &far] {
        end.wait_ready().unwrap();
    }
    Bare { machine, near, neighbour, far }
}

#[test]
fn a_healthy_balancer_and_a_healthy_backend_have_no_problem() {
    let lab = Lab::builder().site_a(1).build().unwrap();
    let backend = &lab.backends[0].host;
    wattline::decap(backend, &["10.2.0.2"]).unwrap();
    let agent = Agent::start(lab.lb(), CONFIG).unwrap();
    for args in [&[][..], &["eth0"]] {
        let balancer = doctor(lab.lb(), args);
        balancer.has_no_problem();
        for id in ["kernel", "capabilities", "load", "jit", "bpffs"] {
            balancer.is_ok("system", id);
        }
        for id in ["agent", "config", "pins"] {
            balancer.is_ok("agent", id);
        }
        for id in [
            "attachment",
            "link",
            "driver",
            "mode",
            "program",
            "mtu",
            "peer-program",
            "peer-checksum",
            "peer-mtu",
        ] {
            balancer.is_ok("eth0", id);
        }
    }
    let backend = doctor(backend, &[]);
    backend.has_no_problem();
    backend.is_ok("eth0", "decap");

    // A bad file, and then no agent at all.
    Agent::write_config(lab.lb(), "nonsense = 1\n").unwrap();
    wait::until("the agent to refuse the file", Duration::from_secs(30), || {
        let log = agent.log();
        if log.contains("nonsense") { Ok(()) } else { Err(log) }
    })
    .unwrap();
    doctor(lab.lb(), &[]).says("agent", "config", "problem", "is refused", "wattline config validate -f");
    agent.kill().unwrap();
    doctor(lab.lb(), &[]).says("agent", "agent", "warning", "forwards on", "systemctl start wattline");
}

#[test]
fn the_traps_of_a_fresh_veth_are_named_and_the_cures_cure() {
    let Bare { machine, near: _, neighbour, far } = bare();
    let found = doctor(&machine, &["eth0"]);
    found.says(
        "eth0",
        "peer-program",
        "problem",
        "vanishes",
        "wattline decap attach port --allow 0.0.0.0/32`",
    );
    found.says("eth0", "peer-checksum", "problem", "unfinished", "ethtool -K port tx off`");
    found.says("eth0", "mtu", "warning", "more than 1448 bytes", "ip link set dev eth0 mtu 1552");
    found.says("agent", "agent", "note", "nothing is pinned", "wattline agent --config");
    // Not asked about this interface, it is only worth a note.
    assert_eq!(doctor(&machine, &[]).code, Some(0));

    wattline::run(&neighbour, &["decap", "attach", "port", "--allow", "0.0.0.0/32"]).unwrap();
    far.tx_checksum_offload(false).unwrap();
    let found = doctor(&machine, &["eth0"]);
    found.is_ok("eth0", "peer-program");
    found.is_ok("eth0", "peer-checksum");
    assert_eq!(found.code, Some(0), "{:#}", found.report);
}

#[test]
fn a_program_that_passes_everything_makes_a_peer_take_frames() {
    let Bare { machine, near, neighbour, far } = bare();
    let _reflect = FixedProgram::attach(&machine, "eth0", Action::Tx).unwrap();
    let sender = RawSender::open(&neighbour, "port").unwrap();
    let frame = |number: u16| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(far.mac().unwrap().0, near.mac().unwrap().0)
            .ipv4([10, 9, 9, 1], [10, 9, 9, 2], 64)
            .udp(7, number)
            .write(&mut frame, b"reflected")
            .unwrap();
        frame
    };
    let returned = |capture: &Capture, bytes: &[u8]| {
        capture.frames().iter().any(|frame| !frame.sent && frame.bytes == bytes)
    };
    let capture = Capture::start(&neighbour, "port").unwrap();
    let (lost, kept) = (frame(1), frame(2));
    sender.send(&lost).unwrap();

    wattline::run(&neighbour, &["decap", "attach", "port", "--allow", "0.0.0.0/32"]).unwrap();
    wait::until("a frame to come back", Duration::from_secs(30), || {
        sender.send(&kept).unwrap();
        if returned(&capture, &kept) { Ok(()) } else { Err("none yet") }
    })
    .unwrap();
    assert!(!returned(&capture, &lost), "the peer took a frame before it had a program");
}

#[test]
fn another_program_is_named_and_not_touched() {
    let Bare { machine, neighbour: _neighbour, .. } = bare();
    let _foreign = FixedProgram::attach(&machine, "eth0", Action::Pass).unwrap();
    for _ in 0..2 {
        let found = doctor(&machine, &["eth0"]);
        found.says(
            "eth0",
            "program",
            "problem",
            "another XDP program `lab_fixed` (id ",
            "bpftool link detach id ",
        );
        assert_eq!(found.code, Some(6));
    }
}

#[test]
fn links_that_are_down_or_too_large_are_named() {
    let Bare { machine, near, neighbour: _, far } = bare();
    far.down().unwrap();
    doctor(&machine, &["eth0"]).says("eth0", "link", "problem", "no carrier", "ip link show dev eth0");
    near.down().unwrap();
    doctor(&machine, &["eth0"]).says("eth0", "link", "problem", "set down", "`ip link set dev eth0 up`");

    for (mtu, expected) in [(MOST_PEER_MTU + 1, "problem"), (MOST_PEER_MTU, "ok")] {
        far.set_mtu(mtu).unwrap();
        near.set_mtu(mtu).unwrap();
        let found = doctor(&machine, &["eth0"]);
        assert_eq!(found.find("eth0", "peer-mtu")["severity"], expected, "{:#}", found.report);
        // The limit is the kernel's word, not ours: decapsulation is attached under the same one.
        let attached =
            wattline::command(&machine, &["decap", "attach", "eth0", "--allow", "0.0.0.0/32"]).unwrap();
        assert_eq!(attached.status.success(), expected == "ok", "{attached:?}");
    }
}

#[test]
fn an_attachment_that_died_is_named() {
    let Bare { machine, near, neighbour, .. } = bare();
    let agent = Agent::start(&machine, CONFIG).unwrap();
    doctor(&machine, &[]).is_ok("eth0", "attachment");
    agent.kill().unwrap();
    near.delete().unwrap();
    veth((&machine, "eth0"), (&neighbour, "port"), 1500).unwrap();
    doctor(&machine, &[]).says("eth0", "attachment", "problem", "dead", "wattline dataplane detach eth0");
}

#[test]
fn generic_mode_is_said_loudly_and_a_peer_no_longer_matters() {
    let Bare { machine, neighbour: _neighbour, .. } = bare();
    let config = CONFIG.replace("[\"eth0\"]", "[\"eth0\"]\nxdp_mode = \"generic\"");
    let _agent = Agent::start(&machine, &config).unwrap();
    let found = doctor(&machine, &[]);
    found.says("eth0", "mode", "warning", "GENERIC XDP", "xdp_mode = \"native\"");
    found.says("eth0", "gro", "warning", "too_big", "ethtool -K eth0 gro off");
    found.says("eth0", "mtu", "warning", "more than 1480 bytes", "ip link set dev eth0 mtu 1520");
    assert!(found.findings().iter().all(|finding| finding["id"] != "peer-program"), "{:#}", found.report);
    assert_eq!(found.code, Some(0));
    // The table says the same, and what to do.
    let table = wattline::run(&machine, &["doctor"]).unwrap();
    assert!(table.contains("warning  eth0    mode") && table.contains("What to do:"), "{table}");
}

#[test]
fn an_interface_that_does_not_exist_is_wrong_usage() {
    let machine = Host::new("machine").unwrap();
    let output = wattline::command(&machine, &["doctor", "eth7"]).unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stderr.contains("there is no interface eth7"), "{output:?}");
}
