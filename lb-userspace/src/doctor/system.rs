//! Judging the machine: kernel, BPF settings, the BPF file system, capabilities, and whether our programs load.
//!
//! Pure: facts in, findings out.

use caps::Capability;

use super::finding::{About, Finding};
use crate::dataplane::trial::Loaded;

/// What was seen of the machine. `None` is what could not be seen.
#[derive(Debug, Clone)]
pub(super) struct System {
    /// `uname -r`.
    pub(super) release: String,
    /// The kernel describes its own types.
    pub(super) btf: bool,
    /// `net.core.bpf_jit_enable`.
    pub(super) jit: Option<u32>,
    /// `net.core.bpf_jit_harden`.
    pub(super) jit_harden: Option<u32>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub(super) unprivileged_bpf_disabled: Option<u32>,
    pub(super) bpffs: Bpffs,
    /// This process sees other mounts than the machine's first process.
    pub(super) own_mounts: Option<bool>,
    /// What this process may do.
    pub(super) effective: Vec<Capability>,
    /// What it could get at most.
    pub(super) bounding: Vec<Capability>,
    /// What became of loading our programs; none where it was not tried.
    pub(super) trial: Option<Result<Vec<Loaded>, String>>,
}

/// The place where pins are kept.
#[derive(Debug, Clone)]
pub(super) struct Bpffs {
    pub(super) path: String,
    pub(super) mounted: bool,
    pub(super) is_directory: bool,
}

/// XDP links, which let forwarding outlive the agent, came with this one.
const LEAST_KERNEL: (u32, u32) = (5, 9);
/// The oldest that is supported.
const SUPPORTED_KERNEL: (u32, u32) = (5, 15);

const ABOUT: About<'_> = About("system");

pub(super) fn judge(system: &System) -> Vec<Finding> {
    let mut findings = vec![
        kernel(&system.release),
        btf(system.btf),
        capabilities(system),
        load(system),
        jit(system),
        bpffs(system),
    ];
    findings.extend(jit_harden(system.jit_harden));
    findings.extend(mounts(system.own_mounts));
    findings.extend(unprivileged(system.unprivileged_bpf_disabled));
    findings
}

fn kernel(release: &str) -> Finding {
    const ID: &str = "kernel";
    let upgrade = "install a newer kernel of your distribution and reboot; `uname -r` tells which one runs";
    let Some(version) = version(release) else {
        return ABOUT.note(ID, format!("{release}: cannot be read as a version"), upgrade);
    };
    if version < LEAST_KERNEL {
        ABOUT.problem(ID, format!("{release} is too old: attaching XDP by links needs 5.9"), upgrade)
    } else if version < SUPPORTED_KERNEL {
        ABOUT.warning(
            ID,
            format!("{release} has what is needed, but is older than 5.15, the oldest supported"),
            upgrade,
        )
    } else {
        ABOUT.ok(ID, release)
    }
}

/// Major and minor number of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn btf(present: bool) -> Finding {
    if present {
        return ABOUT.ok("btf", "the kernel describes its types");
    }
    ABOUT.note(
        "btf",
        "no /sys/kernel/btf/vmlinux: forwarding works without it, tools that trace the kernel do not",
        "take a kernel built with CONFIG_DEBUG_INFO_BTF=y; `grep BTF /boot/config-$(uname -r)` tells",
    )
}

/// What loading and attaching needs; `docs/privileges.md` says why.
const NEEDED: [Capability; 3] = crate::agent::privilege::TO_LOAD;

fn capabilities(system: &System) -> Finding {
    const ID: &str = "capabilities";
    let missing = |held: &[Capability]| {
        let names: Vec<_> =
            NEEDED.iter().filter(|wanted| !held.contains(wanted)).map(ToString::to_string).collect();
        names.join(", ")
    };
    let (never, now) = (missing(&system.bounding), missing(&system.effective));
    if !never.is_empty() {
        ABOUT.problem(
            ID,
            format!("{never} cannot be had here: the container or the service does not allow it"),
            "allow it: `docker run --cap-add BPF --cap-add NET_ADMIN --cap-add PERFMON`, or CapabilityBoundingSet in \
             the unit (see packaging/wattline.service)",
        )
    } else if !now.is_empty() {
        ABOUT.note(
            ID,
            format!("this process lacks {now}, so some things could not be seen; the agent needs them"),
            "run `sudo wattline doctor`",
        )
    } else {
        ABOUT.ok(ID, "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
    }
}

fn load(system: &System) -> Finding {
    const ID: &str = "load";
    match &system.trial {
        None => ABOUT.note(
            ID,
            "not tried: it takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
            "run `sudo wattline doctor`",
        ),
        Some(Err(error)) => ABOUT.problem(
            ID,
            format!("the kernel refuses our programs: {error}"),
            "see what the kernel said with `dmesg | tail`; if it is the verifier, report it with `uname -r`",
        ),
        Some(Ok(programs)) => {
            let names: Vec<_> = programs.iter().map(|program| program.name).collect();
            ABOUT.ok(ID, format!("the kernel takes the programs {}", names.join(" and ")))
        }
    }
}

/// What a loaded program became is better evidence than the setting, which network namespaces do not show.
fn jit(system: &System) -> Finding {
    const ID: &str = "jit";
    let compiled = match &system.trial {
        Some(Ok(programs)) => Some(programs.iter().all(|program| program.machine_code > 0)),
        _ => system.jit.map(|setting| setting > 0),
    };
    let cure = "`sysctl -w net.core.bpf_jit_enable=1`, and load again: `wattline dataplane clean`, then start the agent";
    match compiled {
        Some(true) => ABOUT.ok(ID, "programs are compiled to machine code"),
        Some(false) => ABOUT.warning(ID, "programs are interpreted, which is many times slower", cure),
        None => ABOUT.note(
            ID,
            "it cannot be seen whether programs are compiled",
            "look as root: `sudo wattline doctor`",
        ),
    }
}

fn jit_harden(setting: Option<u32>) -> Option<Finding> {
    setting.filter(|setting| *setting >= 2).map(|_| {
        ABOUT.note(
            "jit-harden",
            "constants are blinded for all programs (bpf_jit_harden=2), which costs every packet a little",
            "if only root loads programs here, 1 is enough: `sysctl -w net.core.bpf_jit_harden=1`",
        )
    })
}

fn bpffs(system: &System) -> Finding {
    const ID: &str = "bpffs";
    let Bpffs { path, mounted, is_directory } = &system.bpffs;
    let may_mount = system.effective.contains(&Capability::CAP_SYS_ADMIN);
    let cure = format!("`mount -t bpf bpf {path}`, and a line in /etc/fstab: `bpf {path} bpf mode=0700 0 0`");
    match (mounted, is_directory) {
        (true, _) => ABOUT.ok(ID, format!("mounted at {path}")),
        (false, false) => ABOUT.problem(
            ID,
            format!("{path} is no directory, so pins cannot be kept there"),
            format!("`mkdir -p {path}`, or another place with --bpffs"),
        ),
        (false, true) if may_mount => {
            ABOUT.ok(ID, format!("not mounted at {path} yet; the agent mounts it when it starts"))
        }
        (false, true) => {
            ABOUT.note(ID, format!("not mounted at {path}, and this process may not mount it"), cure)
        }
    }
}

fn mounts(own: Option<bool>) -> Option<Finding> {
    own.filter(|own| *own).map(|_| {
        ABOUT.note(
            "mounts",
            "this process has mounts of its own (as `ip netns exec` and some containers make them): what is pinned in \
             a file system mounted here is gone with its last process, and forwarding with it",
            "enter only the network: `nsenter --net=/run/netns/NAME wattline ...`",
        )
    })
}

fn unprivileged(disabled: Option<u32>) -> Option<Finding> {
    let disabled = disabled?;
    Some(if disabled == 0 {
        ABOUT.warning(
            "unprivileged-bpf",
            "every user may load BPF programs, which has been a source of ways to become root",
            "`sysctl -w kernel.unprivileged_bpf_disabled=1`, and the same line in /etc/sysctl.d/",
        )
    } else {
        ABOUT.ok("unprivileged-bpf", "only the privileged may load BPF programs")
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::{Severity, tests::find};
    use super::*;

    fn good() -> System {
        System {
            release: "6.1.0-18-amd64".to_owned(),
            btf: true,
            jit: Some(1),
            jit_harden: Some(0),
            unprivileged_bpf_disabled: Some(2),
            bpffs: Bpffs { path: "/sys/fs/bpf".to_owned(), mounted: true, is_directory: true },
            own_mounts: Some(false),
            effective: caps::all().into_iter().collect(),
            bounding: caps::all().into_iter().collect(),
            trial: Some(Ok(vec![Loaded { name: "forward", machine_code: 4000 }])),
        }
    }

    #[test]
    fn a_good_machine_has_nothing_but_ok() {
        let findings = judge(&good());
        assert!(findings.iter().all(|finding| finding.severity == Severity::Ok), "{findings:#?}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_cure() {
        type Spoil = fn(&mut System);
        let cases: [(&str, Severity, &str, Spoil); 18] = [
            ("kernel", Severity::Problem, "needs 5.9", |s| s.release = "5.4.0-150-generic".to_owned()),
            ("kernel", Severity::Warning, "5.15", |s| s.release = "5.10.0".to_owned()),
            ("kernel", Severity::Note, "version", |s| s.release = "odd".to_owned()),
            ("btf", Severity::Note, "vmlinux", |s| s.btf = false),
            ("capabilities", Severity::Note, "CAP_BPF", |s| s.effective = Vec::new()),
            ("capabilities", Severity::Problem, "CAP_PERFMON", |s| {
                s.bounding.retain(|held| *held != Capability::CAP_PERFMON);
            }),
            ("load", Severity::Problem, "R6 pointer", |s| s.trial = Some(Err("R6 pointer".to_owned()))),
            ("load", Severity::Note, "not tried", |s| s.trial = None),
            ("jit", Severity::Warning, "interpreted", |s| {
                s.trial = Some(Ok(vec![Loaded { name: "forward", machine_code: 0 }]));
            }),
            ("jit", Severity::Warning, "interpreted", |s| (s.trial, s.jit) = (None, Some(0))),
            ("jit", Severity::Note, "cannot be seen", |s| (s.trial, s.jit) = (None, None)),
            ("jit", Severity::Ok, "machine code", |s| s.jit = Some(0)),
            ("jit-harden", Severity::Note, "blinded", |s| s.jit_harden = Some(2)),
            ("bpffs", Severity::Problem, "no directory", |s| {
                (s.bpffs.mounted, s.bpffs.is_directory) = (false, false);
            }),
            ("bpffs", Severity::Ok, "when it starts", |s| s.bpffs.mounted = false),
            ("bpffs", Severity::Note, "may not mount", |s| {
                s.bpffs.mounted = false;
                s.effective.retain(|held| *held != Capability::CAP_SYS_ADMIN);
            }),
            ("mounts", Severity::Note, "ip netns exec", |s| s.own_mounts = Some(true)),
            ("unprivileged-bpf", Severity::Warning, "every user", |s| s.unprivileged_bpf_disabled = Some(0)),
        ];
        for (id, severity, text, spoil) in cases {
            let mut system = good();
            spoil(&mut system);
            let findings = judge(&system);
            let finding = find(&findings, id);
            assert_eq!(finding.severity, severity, "{finding:?}");
            assert!(finding.finding.contains(text), "{finding:?}");
        }
    }

    #[test]
    fn releases_are_read() {
        for (release, expected) in [
            ("6.18.44-fc-v595", Some((6, 18))),
            ("5.9-rc1", Some((5, 9))),
            ("5.15.0-91-generic", Some((5, 15))),
            ("6", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
