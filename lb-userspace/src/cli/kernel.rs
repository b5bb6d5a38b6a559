//! The one place where the command line touches the kernel without the agent.
//!
//! Each function is one call into the data plane, turned into the values that commands print. Nothing here decides
//! anything.

use std::path::Path;

use anyhow::{Result, bail};
use ipnet::IpNet;
use serde::Serialize;

use crate::api::types::{InterfaceStatus, ReasonCount};
use crate::config::XdpMode;

/// What is pinned and attached.
#[derive(Debug, Serialize)]
pub(super) struct DataplaneStatus {
    /// Directory of the pins.
    pub(super) pins: String,
    /// True when there are pins.
    pub(super) pinned: bool,
    /// Names of the pinned maps.
    pub(super) maps: Vec<String>,
    /// Interfaces with a pinned link.
    pub(super) interfaces: Vec<InterfaceStatus>,
}

/// What decapsulation on an interface accepts.
#[derive(Debug, Clone)]
pub(super) struct DecapSettings {
    /// Outer sources that are believed.
    pub(super) allow: Vec<IpNet>,
    /// UDP port of GUE.
    pub(super) gue_port: u16,
    /// How to attach.
    pub(super) mode: XdpMode,
}

/// Decapsulation on one interface, as found.
#[derive(Debug, Serialize)]
pub(super) struct DecapStatus {
    /// Name of the interface.
    pub(super) interface: String,
    /// Outer sources that are believed.
    pub(super) allow: Vec<IpNet>,
    /// UDP port of GUE.
    pub(super) gue_port: u16,
    /// Number of the program.
    pub(super) program_id: u32,
    /// Tag of the program.
    pub(super) program_tag: String,
    /// Packets by what became of them.
    pub(super) outcomes: Vec<ReasonCount>,
}

/// What is pinned below `bpffs`, and what the kernel says of it.
pub(super) fn dataplane_status(bpffs: &Path) -> Result<DataplaneStatus> {
    bail!("not wired yet: {}", bpffs.display())
}

/// Detaches from one interface, or from all; gives the names of those it was attached to.
pub(super) fn dataplane_detach(bpffs: &Path, interface: Option<&str>) -> Result<Vec<String>> {
    bail!("not wired yet: {} {interface:?}", bpffs.display())
}

/// Detaches from all interfaces and removes every pin; false if there was nothing.
pub(super) fn dataplane_clean(bpffs: &Path) -> Result<bool> {
    bail!("not wired yet: {}", bpffs.display())
}

/// Starts decapsulation on an interface, or changes its settings.
pub(super) fn decap_attach(bpffs: &Path, interface: &str, settings: &DecapSettings) -> Result<()> {
    bail!("not wired yet: {} {interface} {settings:?}", bpffs.display())
}

/// Ends decapsulation on an interface; false if there was none.
pub(super) fn decap_detach(bpffs: &Path, interface: &str) -> Result<bool> {
    bail!("not wired yet: {} {interface}", bpffs.display())
}

/// Decapsulation on one interface, or on all.
pub(super) fn decap_status(bpffs: &Path, interface: Option<&str>) -> Result<Vec<DecapStatus>> {
    bail!("not wired yet: {} {interface:?}", bpffs.display())
}
