//! `wattline doctor`: what on this machine keeps packets from being forwarded, or slows them down.
//!
//! `gather` asks kernel, agent and pins; the other files judge what it brings, without touching anything. An examination
//! changes nothing: no program is attached, nothing is pinned, no setting is written.

mod agent;
mod finding;
mod gather;
mod interface;
mod system;
mod veth;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

pub use finding::{Finding, Severity, Summary};

/// What to examine, and where things are.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Only this interface; none for those in use or, where none is, those that could be.
    pub interface: Option<&'a str>,
    /// Root of the BPF file system.
    pub bpffs: &'a Path,
    /// The agent's socket.
    pub socket: PathBuf,
    /// How long to wait for the agent.
    pub timeout: Duration,
}

/// Looks at everything; the findings in the order of their subjects: system, agent, interfaces.
///
/// # Errors
///
/// Where there is no such interface, or the kernel does not say which there are. Everything else that cannot be seen is
/// a finding.
pub fn examine(request: &Request<'_>) -> Result<Vec<Finding>> {
    let system = gather::system(request.bpffs);
    let gather::Found { installation, interfaces } = gather::network(request)?;
    let mut findings = system::judge(&system);
    findings.extend(agent::judge(&installation));
    for interface in &interfaces {
        findings.extend(interface::judge(interface));
    }
    Ok(findings)
}
