//! The systemd unit: well-formed to systemd itself, and granting what the agent needs and not more.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::time::Duration;

use tests::topology::Lab;
use tests::wait;
use tests::wattline;

const UNIT: &str = include_str!("../../packaging/wattline.service");
const LIMIT: Duration = Duration::from_mins(1);
const CONFIG: &str = "[node]\ninterfaces = [\"eth0\"]\n";

fn setting(name: &str) -> &'static str {
    let prefix = format!("{name}=");
    UNIT.lines().find_map(|line| line.strip_prefix(prefix.as_str())).unwrap()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let lab = Lab::builder().site_a(0).build().unwrap();
    // The program is not installed where the unit expects it.
    let unit = UNIT.replace("/usr/bin/wattline", wattline::binary().unwrap().to_str().unwrap());
    lab.lb().write("/run/lab/wattline.service", unit).unwrap();
    let arguments = ["verify", "--man=no", "/run/lab/wattline.service"];
    let output = lab.lb().command("systemd-analyze").args(arguments).output(LIMIT).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn the_agent_runs_with_the_capabilities_of_the_unit_and_keeps_two() {
    let lab = Lab::builder().site_a(0).build().unwrap();
    let lb = lab.lb();
    lb.write(wattline::CONFIG, CONFIG).unwrap();
    let granted: Vec<_> = setting("CapabilityBoundingSet").split(' ').collect();
    assert_eq!(granted, ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
    let bounding =
        granted.iter().map(|name| name.replace("CAP_", "+").to_lowercase()).collect::<Vec<_>>().join(",");
    let mut agent = lb
        .command("setpriv")
        .args([&format!("--bounding-set=-all,{bounding}"), "--no-new-privs"])
        .arg(wattline::binary().unwrap())
        .args(["agent", "--config", wattline::CONFIG])
        .spawn()
        .unwrap();
    wait::until("the agent to be ready", LIMIT, || {
        let status = wattline::command(lb, &["status"]).unwrap();
        if status.status.success() {
            Ok(())
        } else {
            Err(format!("{}\n{}", agent.describe(), agent.stderr()))
        }
    })
    .unwrap();
    let status = lb.read(format!("/proc/{}/status", agent.id())).unwrap();
    let set = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    // CAP_NET_ADMIN is bit 12 and CAP_BPF bit 39 (linux/capability.h).
    let kept = format!("{:016x}", (1_u64 << 12) | (1_u64 << 39));
    assert_eq!((set("CapEff:"), set("CapPrm:")), (kept.clone(), kept), "{status}");
    assert_eq!((set("CapInh:"), set("CapAmb:")), ("0".repeat(16), "0".repeat(16)), "{status}");
}
