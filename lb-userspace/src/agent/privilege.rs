//! What the agent may do, and giving up the rest before it talks to anybody.
//!
//! Capabilities belong to threads, so this runs before the runtime starts any. See `docs/privileges.md` for why each
//! one is needed.

use anyhow::{Context as _, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};

/// To load programs: maps and programs, interfaces and routes, and a verifier that lets ordinary packet code through.
pub const TO_LOAD: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// To run: maps, attaching and netlink.
pub const TO_RUN: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// Keeps only these capabilities, in every set, so that nothing can bring the others back.
///
/// # Errors
///
/// Where one of them is not held in the first place.
pub fn keep(wanted: &[Capability]) -> Result<()> {
    let wanted: CapsHashSet = wanted.iter().copied().collect();
    let held = caps::read(None, CapSet::Permitted).context("reading this process's capabilities")?;
    let missing: Vec<String> = wanted.difference(&held).map(ToString::to_string).collect();
    if !missing.is_empty() {
        bail!("{} missing: run as root, or give the capabilities in the systemd unit", missing.join(", "));
    }
    // The bounding set needs CAP_SETPCAP, which goes with the rest; without it there is nothing to bound. What is only
    // for loading goes from it at once: it limits what a program that is executed can gain, not what is held.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        for capability in caps::all().difference(&TO_RUN.into()) {
            // A kernel older than the crate does not know the newest ones, and so cannot drop them.
            let _ = caps::drop(None, CapSet::Bounding, *capability);
        }
    }
    caps::clear(None, CapSet::Ambient).context("clearing the ambient capabilities")?;
    let inheritable = CapsHashSet::new();
    caps::set(None, CapSet::Inheritable, &inheritable).context("clearing the inheritable capabilities")?;
    caps::set(None, CapSet::Effective, &wanted).context("reducing the effective capabilities")?;
    caps::set(None, CapSet::Permitted, &wanted).context("reducing the permitted capabilities")
}
