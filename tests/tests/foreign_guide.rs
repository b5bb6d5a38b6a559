//! The five-minute guide and its variant in native mode, run command by command as printed: with iproute2, util-linux,
//! ethtool, curl and python3.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::collections::BTreeMap;
use std::time::Duration;

use tests::host::Host;
use tests::wattline;

const GUIDE: &str = include_str!("../../docs/five-minutes.md");
const NATIVE: &str = include_str!("../../docs/veth.md");
/// Between the outputs of two blocks.
const MARK: &str = "=== block";
/// Before the list of what is left afterwards.
const LEFT: &str = "=== left";

/// The shell commands of a page, block by block.
fn blocks(page: &str) -> Vec<&str> {
    page.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

/// Answers by server, from the output of `sort | uniq -c`.
fn answers(output: &str) -> BTreeMap<String, u32> {
    output
        .lines()
        .filter_map(|line| line.trim().split_once(" hello from "))
        .map(|(count, server)| (server.to_owned(), count.parse().unwrap()))
        .collect()
}

/// Runs blocks of commands in a network of their own and returns the answers of every loop of curl, and all that was
/// printed. Fails if a command fails, or if anything is left at the end.
fn follow(blocks: &[&str]) -> (Vec<BTreeMap<String, u32>>, String) {
    let host = Host::new("guide").unwrap();
    let binary = wattline::binary().unwrap();
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let commands: Vec<_> = blocks.iter().map(|block| format!("echo '{MARK}'\n{block}\n")).collect();
    // What could be left: files and mounts, namespaces, and processes other than this shell's own.
    let look = "ls /run\ngrep wattline /proc/mounts || true\nip netns list\n\
                cat /proc/[0-9]*/comm | grep -v -x -e sh -e cat -e grep || true\n";
    let script = format!("set -eu\n{}echo '{LEFT}'\n{look}", commands.concat());
    host.write("/run/guide.sh", &script).unwrap();
    // A process namespace of its own: whatever a failed run leaves in the background dies with it.
    let arguments = ["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "/run/guide.sh"];
    let output =
        host.command("unshare").args(arguments).env("PATH", path).output(Duration::from_mins(5)).unwrap();
    let told = format!("{}\n{}", output.stdout, output.stderr);
    assert!(output.status.success(), "{told}");

    let (run, left) = output.stdout.split_once(LEFT).unwrap();
    // Besides this script: `ip` and `mount` keep their own, empty directories.
    let expected = ["", "guide.sh", "mount", "netns"];
    let left: Vec<_> = left.lines().filter(|line| !expected.contains(line)).collect();
    assert!(left.is_empty(), "{left:?} is left:\n{told}");
    (run.split(MARK).map(answers).filter(|answers| !answers.is_empty()).collect(), told)
}

/// Both servers answered, and nothing was lost.
#[track_caller]
fn assert_shared(answers: &BTreeMap<String, u32>, told: &str) {
    assert_eq!(answers.values().sum::<u32>(), 30, "{told}");
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["web1", "web2"], "{told}");
}

#[test]
fn the_guide_works_as_printed_and_leaves_nothing() {
    let (asked, told) = follow(&blocks(GUIDE));
    let [both, drained, unattended] = &asked[..] else { panic!("three loops of curl answer:\n{told}") };
    assert_shared(both, &told);
    assert_eq!(*drained, BTreeMap::from([("web2".to_owned(), 30)]), "{told}");
    assert_shared(unattended, &told);
}

#[test]
fn the_guide_works_in_native_mode_too() {
    let mut commands = blocks(GUIDE);
    let step_4 = commands.iter().position(|block| block.contains("backend ready")).unwrap();
    commands.splice(step_4 + 1..=step_4, blocks(NATIVE));
    let (asked, told) = follow(&commands);
    let [_, _, native, unattended] = &asked[..] else { panic!("four loops of curl answer:\n{told}") };
    assert_shared(native, &told);
    assert_shared(unattended, &told);
    assert!(told.contains("0 problems, 0 warnings"), "{told}");
}
