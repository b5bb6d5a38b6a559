//! The one place where the command line touches the kernel without the agent.
//!
//! Each function is one call into the data plane, turned into the values that commands print. Nothing here decides
//! anything.

use std::path::Path;

use anyhow::Result;
use ipnet::IpNet;
use lb_common::{decap::Outcome, reason::Fate};
use serde::Serialize;

use crate::api::types::{InterfaceStatus, ReasonCount, Verdict};
use crate::config::XdpMode;
use crate::dataplane::{decap, inspect, pins::Pins};

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
    let pins = Pins::forward(bpffs);
    let found = inspect::forward_pins(bpffs)?;
    let interfaces = found.attachments.iter().map(|attachment| InterfaceStatus {
        name: attachment.interface.clone(),
        ifindex: attachment.now.as_ref().map_or(0, |link| link.ifindex),
        mode: if attachment.native() { XdpMode::Native } else { XdpMode::Generic },
        link_id: Some(attachment.link_id),
        program_id: Some(attachment.program_id),
        program_tag: None,
        error: attachment.problem(),
    });
    Ok(DataplaneStatus {
        pins: pins.root().display().to_string(),
        pinned: pins.exists(),
        maps: found.maps.iter().map(ToString::to_string).collect(),
        interfaces: interfaces.collect(),
    })
}

/// Detaches from one interface, or from all; gives the names of those it was attached to.
pub(super) fn dataplane_detach(bpffs: &Path, interface: Option<&str>) -> Result<Vec<String>> {
    inspect::detach(bpffs, interface)
}

/// Starts decapsulation on an interface, or changes its settings.
pub(super) fn decap_attach(bpffs: &Path, interface: &str, settings: &DecapSettings) -> Result<()> {
    let settings = decap::Settings {
        allow: settings.allow.clone(),
        gue_port: settings.gue_port,
        mode: match settings.mode {
            XdpMode::Native => aya::programs::XdpMode::Driver,
            XdpMode::Generic => aya::programs::XdpMode::Skb,
        },
    };
    decap::attach(bpffs, interface, &settings)
}

/// Ends decapsulation on an interface; false if there was none.
pub(super) fn decap_detach(bpffs: &Path, interface: &str) -> Result<bool> {
    decap::detach(bpffs, interface)
}

/// Decapsulation on one interface, or on all.
pub(super) fn decap_status(bpffs: &Path, interface: Option<&str>) -> Result<Vec<DecapStatus>> {
    let found = decap::status(bpffs, interface)?;
    let statuses = found.into_iter().map(|status| DecapStatus {
        interface: status.interface,
        allow: status.allow,
        gue_port: status.gue_port,
        program_id: status.program_id,
        program_tag: status.program_tag,
        outcomes: status
            .outcomes
            .into_iter()
            .map(|(outcome, packets)| outcome_count(outcome, packets))
            .collect(),
    });
    Ok(statuses.collect())
}

fn outcome_count(outcome: Outcome, packets: u64) -> ReasonCount {
    let verdict = match outcome.fate() {
        Fate::Pass => Verdict::Pass,
        Fate::Drop => Verdict::Drop,
    };
    ReasonCount {
        reason: outcome.name().to_owned(),
        verdict,
        packets,
        description: outcome.text().to_owned(),
    }
}
