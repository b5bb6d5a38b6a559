//! Seeing the machine: files of /proc and /sys, this process's rights, and a trial of our programs.

use std::fs;
use std::path::Path;

use caps::{CapSet, Capability};

use crate::agent::privilege;
use crate::dataplane::{pins, trial};
use crate::doctor::system::{Bpffs, System};

pub(in crate::doctor) fn system(bpffs: &Path) -> System {
    let effective = held(CapSet::Effective);
    let may_load = privilege::TO_LOAD.iter().all(|needed| effective.contains(needed));
    System {
        release: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: number("/proc/sys/net/core/bpf_jit_enable"),
        jit_harden: number("/proc/sys/net/core/bpf_jit_harden"),
        unprivileged_bpf_disabled: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
        bpffs: Bpffs {
            path: bpffs.display().to_string(),
            mounted: pins::is_bpffs(bpffs),
            is_directory: bpffs.is_dir(),
        },
        own_mounts: pins::has_own_mounts(),
        bounding: held(CapSet::Bounding),
        trial: may_load.then(|| trial::load().map_err(|error| one_line(&format!("{error:#}")))),
        effective,
    }
}

/// Capabilities of this process in one of its sets, asked one by one: `caps::read` cannot read the bounding set, and a
/// kernel older than the crate does not know the newest ones.
fn held(set: CapSet) -> Vec<Capability> {
    caps::all().into_iter().filter(|one| caps::has_cap(None, set, *one).unwrap_or(false)).collect()
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

pub(super) fn number(path: &str) -> Option<u32> {
    text(path)?.parse().ok()
}

/// The verifier's log has many lines; the first few say what is wrong.
fn one_line(text: &str) -> String {
    let line: Vec<_> = text.split_whitespace().collect();
    let mut line = line.join(" ");
    if let Some((end, _)) = line.char_indices().nth(600) {
        line.truncate(end);
        line.push_str(" ...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_refusals_are_cut_to_a_line() {
        assert_eq!(one_line("a\n  b\n"), "a b");
        assert_eq!(one_line(&"x".repeat(2000)).len(), 604);
    }
}
