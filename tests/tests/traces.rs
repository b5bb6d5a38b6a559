//! That a lab leaves nothing behind, however it ends.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::host::Host;
use tests::process::Process;
use tests::topology::Lab;
use tests::wait;

/// Set for the process that is going to be killed.
const VICTIM: &str = "LAB_VICTIM";

fn sleeper(host: &Host) -> Process {
    host.command("sleep").arg("1000").spawn().unwrap()
}

/// Waits until a process is gone. Being a zombie that nobody has reaped yet counts: it holds nothing any more.
fn wait_gone(pid: u32) {
    wait::until("the child to die", Duration::from_secs(30), || {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Err(_) => Ok(()),
            Ok(stat) if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')) => Ok(()),
            Ok(stat) => Err(stat),
        }
    })
    .unwrap();
}

/// What the machine shows outside any lab and a lab could have left there.
fn outside() -> BTreeSet<PathBuf> {
    let list = |path: &str| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let links = ["client", "lb1", "lb2", "a1", "a2", "b1", "br0", "br1"];
    let is_lab_link = |path: &PathBuf| links.iter().any(|link| path.ends_with(link));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|mount| Path::new("mount").join(mount));
    list("/run/netns")
        .chain(list("/sys/fs/bpf"))
        .chain(list("/run/lab"))
        .chain(list("/run/wattline"))
        .chain(list("/sys/class/net").filter(is_lab_link))
        .chain(mounts)
        .collect()
}

#[test]
fn hosts_have_private_default_paths() {
    let before = outside();
    let (one, other) = (Host::new("one").unwrap(), Host::new("other").unwrap());
    for path in ["/run/wattline/state.json", "/run/lab/config"] {
        one.write(path, "mine").unwrap();
        other.read(path).unwrap_err();
    }
    one.run(|| fs::create_dir("/sys/fs/bpf/wattline")).unwrap();
    assert!(other.run(|| fs::metadata("/sys/fs/bpf/wattline")).is_err());
    // A host's sysfs shows its own network, and threads and children are inside, too.
    assert_eq!(one.run(|| fs::read_dir("/sys/class/net").unwrap().count()), 1);
    assert!(one.enter(|| fs::metadata("/run/lab/config").is_ok()));
    let output = one.command("cat").arg("/run/lab/config").output(Duration::from_secs(30)).unwrap();
    assert_eq!((output.status.success(), output.stdout.as_str()), (true, "mine"));
    let child = sleeper(&one);
    let inode = fs::metadata(format!("/proc/{}/ns/net", child.id())).unwrap().ino();
    assert_eq!(inode, one.netns_inode().unwrap());
    assert_ne!(inode, other.netns_inode().unwrap());
    assert_eq!(outside(), before);
}

#[test]
fn a_child_dies_with_its_guard_or_its_host() {
    let host = Host::new("host").unwrap();
    let child = sleeper(&host);
    let pid = child.id();
    drop(child);
    wait_gone(pid);

    let child = sleeper(&host);
    drop(host);
    wait_gone(child.id());
}

#[test]
fn a_child_that_hangs_is_killed_at_its_deadline() {
    let host = Host::new("host").unwrap();
    let error = host.command("sleep").arg("1000").output(Duration::from_millis(100)).unwrap_err();
    assert!(error.to_string().contains("did not end"), "{error:#}");
    let mut child = sleeper(&host);
    child.kill(Signal::SIGTERM).unwrap();
    assert!(!child.wait(Duration::from_secs(30)).unwrap().success());
    assert!(child.describe().contains("was killed"), "{}", child.describe());
}

#[test]
fn a_panic_leaves_nothing() {
    let before = outside();
    let (tell, told) = std::sync::mpsc::channel();
    let result = std::thread::spawn(move || {
        let lab = Lab::builder().build().unwrap();
        let child = sleeper(lab.lb());
        tell.send(child.id()).unwrap();
        lab.lb().run(|| panic!("inside the host"));
    })
    .join();
    let panic = result.unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"inside the host"));
    wait_gone(told.recv().unwrap());
    assert_eq!(outside(), before);
}

/// Not a test by itself: the process that `a_killed_lab_leaves_nothing` kills.
#[test]
#[ignore = "is run by another test"]
fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let lab = Lab::builder().site_a(2).site_b(1).two_arm().build().unwrap();
    lab.lb().write("/run/wattline/state.json", "{}").unwrap();
    lab.lb().run(|| fs::create_dir("/sys/fs/bpf/wattline")).unwrap();
    let children: Vec<_> = [lab.lb(), &lab.client].into_iter().map(sleeper).collect();
    println!("\nchildren {} {}", children[0].id(), children[1].id());
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_lab_leaves_nothing() {
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let before = outside();
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored", "--nocapture"])
            .env(VICTIM, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let children: Vec<u32> = lines
            .map_while(Result::ok)
            .find_map(|line| {
                let ids = line.strip_prefix("children ")?;
                Some(ids.split(' ').map(|id| id.parse().unwrap()).collect())
            })
            .expect("the victim builds a lab");
        assert_eq!(children.len(), 2);
        kill(Pid::from_raw(i32::try_from(victim.id()).unwrap()), signal).unwrap();
        victim.wait().unwrap();
        children.into_iter().for_each(wait_gone);
        assert_eq!(outside(), before);
    }
}
