//! The agent: the process that keeps the maps true to what is wanted.

pub mod flow_key;
mod lock;
pub mod privilege;
mod state;

use std::path::PathBuf;

use anyhow::{Result, bail};

/// What the command line tells the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// Directory of the socket, the lock and the saved state.
    pub runtime_dir: PathBuf,
    /// The API's socket; by default in the runtime directory.
    pub socket: PathBuf,
    /// Root of the BPF file system.
    pub bpffs: PathBuf,
    /// Check everything that can be checked, then end without a change.
    pub check: bool,
}

/// Runs the agent until it is told to stop.
pub fn run(options: &AgentOptions) -> Result<()> {
    bail!("not wired yet: {}", options.config.display())
}
