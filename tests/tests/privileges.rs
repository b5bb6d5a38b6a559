//! What the agent may do, and who may talk to it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

mod balanced;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use aya::programs::XdpMode;
use balanced::{NODE, fails, flows, ok, restart, running, tree, wait_usable, web};
use caps::{CapSet, Capability};
use lb_userspace::agent::privilege::{TO_LOAD, TO_RUN, keep};
use lb_userspace::dataplane::forward::{Attached, Forward, Sizes};
use lb_userspace::dataplane::{apply::Dataplane, decap, maps::Maps, pins::Pins};
use tests::host::Host;
use tests::link::veth;
use tests::topology::Lab;
use tests::wattline::{self, Agent, CONFIG};

/// `CAP_NET_ADMIN` and `CAP_BPF`, as a mask (`include/uapi/linux/capability.h`).
const RUNNING: u64 = 1 << 12 | 1 << 39;

/// The capability masks of every thread of a process, with their names.
fn masks(pid: u32) -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut masks = Vec::new();
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let lines = status.lines().filter_map(|line| line.split_once(':'));
        let caps = lines.filter(|(key, _)| key.starts_with("Cap"));
        masks.extend(
            caps.map(|(key, value)| (key.to_owned(), u64::from_str_radix(value.trim(), 16).unwrap())),
        );
    }
    masks
}

#[test]
fn a_running_agent_has_two_capabilities_and_no_way_to_more() {
    let (lab, mut agent) = running(2);
    for adopted in [false, true] {
        let masks = masks(agent.process().id());
        assert!(masks.len() >= 3 * 5, "a main thread and two workers, with five sets each: {masks:?}");
        for (set, mask) in &masks {
            let allowed = if ["CapInh", "CapAmb"].contains(&set.as_str()) { 0 } else { RUNNING };
            assert_eq!(*mask, allowed, "{set}, adopted: {adopted}");
        }
        // With those it can do everything that it has to.
        ok(&lab, &["backend", "set", "web/a1", "--weight", if adopted { "7" } else { "8" }]);
        ok(&lab, &["config", "save"]);
        ok(&lab, &["dataplane", "detach", "eth0"]);
        ok(&lab, &["dataplane", "attach", "eth0"]);
        flows(&lab, 20);
        agent.terminate().unwrap();
        agent = restart(&lab);
    }
}

#[test]
fn the_programs_load_under_exactly_the_three_capabilities() {
    let (host, peer) = (Host::new("lb").unwrap(), Host::new("peer").unwrap());
    let (eth0, _) = veth((&host, "eth0"), (&peer, "eth0"), 1500).unwrap();
    eth0.up().unwrap();
    // Capabilities belong to threads; this one ends with what it gave away.
    host.enter(|| {
        let pins = Pins::forward(Path::new("/sys/fs/bpf"));
        let sizes = Sizes { services: 16, backends: 64, ring_slots: 4096 };
        keep(&TO_LOAD).unwrap();
        assert_eq!(caps::read(None, CapSet::Effective).unwrap(), TO_LOAD.into());
        let mut forward = Forward::load(&pins, sizes).unwrap();
        Dataplane::adopt(Maps::open(&pins).unwrap()).unwrap();
        keep(&TO_RUN).unwrap();
        assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), TO_RUN.into());
        assert_eq!(forward.attach("eth0", XdpMode::Driver, None).unwrap(), Attached::Fresh);
        pins.unpin_link("eth0").unwrap();
        let error = format!("{:#}", keep(&TO_LOAD).unwrap_err());
        assert!(error.starts_with("CAP_PERFMON missing: run as root"), "{error}");
    });
    host.enter(|| {
        keep(&TO_LOAD).unwrap();
        let allow = vec!["10.0.0.0/8".parse().unwrap()];
        let settings = decap::Settings { allow, gue_port: 6080, mode: XdpMode::Driver };
        decap::attach(Path::new("/sys/fs/bpf"), "eth0", &settings).unwrap();
    });
    // Without CAP_PERFMON the verifier is stricter: this is why it is asked for.
    let other = Host::new("without").unwrap();
    other.enter(|| {
        keep(&TO_RUN).unwrap();
        let pins = Pins::forward(Path::new("/sys/fs/bpf"));
        let loaded = Forward::load(&pins, Sizes { services: 16, backends: 64, ring_slots: 4096 });
        let error = format!("{:#}", loaded.err().unwrap());
        assert!(error.contains("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed"), "{error}");
    });
}

#[test]
fn an_agent_without_a_capability_says_which() {
    let lab = balanced::lab(Lab::builder().site_a(1));
    Agent::write_config(lab.lb(), &(NODE.to_owned() + &web(&lab, &["a1"]))).unwrap();
    for (capability, name) in [(Capability::CAP_PERFMON, "CAP_PERFMON"), (Capability::CAP_BPF, "CAP_BPF")] {
        let output = lab.lb().enter(|| {
            // What this thread can never have again, its children cannot have either.
            caps::drop(None, CapSet::Bounding, capability).unwrap();
            Command::new(wattline::binary().unwrap()).args(["agent", "--config", CONFIG]).output().unwrap()
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{said}");
        assert!(said.contains(&format!("{name} missing: run as root")), "{said}");
        assert_eq!(tree(lab.lb(), "/sys/fs/bpf"), [""; 0]);
    }
    let _agent = restart(&lab);
    wait_usable(&lab, &["a1"]);
}

#[test]
fn owner_and_group_may_use_the_socket_and_nobody_else() {
    let (lab, _agent) = running(1);
    let socket = "/run/wattline/wattline.sock";
    let (kind, mode, owner) = lab.lb().run(|| {
        let found = std::fs::symlink_metadata(socket).unwrap();
        (found.file_type().is_socket(), found.mode() & 0o7777, found.uid())
    });
    assert_eq!((kind, mode, owner), (true, 0o660, 0));
    // It holds the key of the flow hash.
    let state = lab.lb().run(|| std::fs::metadata("/run/wattline/state.json").unwrap().mode());
    assert_eq!(state & 0o007, 0, "{state:o}");
    let connect = |uid: u32| {
        lab.lb().enter(|| {
            // Who one is to the file system belongs to a thread, and so do the capabilities that go with it.
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(uid));
            nix::unistd::setfsgid(nix::unistd::Gid::from_raw(uid));
            UnixStream::connect(socket).map(drop).map_err(|error| error.kind())
        })
    };
    assert_eq!(connect(0), Ok(()));
    assert_eq!(connect(65_534), Err(std::io::ErrorKind::PermissionDenied));
    lab.lb().write("/run/file", "").unwrap();
    let said = fails(&lab, 3, &["status", "--socket", "/run/nothing"]);
    assert!(said.contains("/run/nothing") && said.contains("is the agent running?"), "{said}");
    fails(&lab, 3, &["status", "--socket", "/run/file"]);
}
