//! What is pinned and attached, found out from the kernel alone: works while no agent runs, or a broken one does.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::links::{FdLink, PinnedLink};
use lb_common::abi::forward;

use super::{
    layout,
    netlink::Netlink,
    nexthop::{Link, XdpAttachMode},
    pins::Pins,
};

/// A pinned attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the interface when it was attached.
    pub interface: String,
    /// Number of the link.
    pub link_id: u32,
    /// Number of the program that the link runs.
    pub program_id: u32,
    /// The interface as it is now, if there is one of that name.
    pub now: Option<Link>,
}

impl Attachment {
    /// Why packets do not meet the program; `None` where they do.
    pub fn problem(&self) -> Option<String> {
        let Some(link) = &self.now else { return Some("there is no such interface any more".to_owned()) };
        match link.xdp.as_ref().and_then(|xdp| xdp.program_id) {
            Some(id) if id == self.program_id => None,
            Some(id) => Some(format!("another XDP program runs there (id {id})")),
            None => Some("the link is dead: the interface was deleted and made again".to_owned()),
        }
    }

    /// Whether it runs in the driver.
    pub fn native(&self) -> bool {
        self.now
            .as_ref()
            .and_then(|link| link.xdp.as_ref())
            .is_some_and(|xdp| xdp.mode == XdpAttachMode::Native)
    }
}

/// The balancer's pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Names of the pinned maps.
    pub maps: Vec<&'static str>,
    /// Pinned attachments by interface.
    pub attachments: Vec<Attachment>,
}

/// Looks at the balancer's pins below a bpffs.
pub fn forward_pins(bpffs: &Path) -> Result<Found> {
    let pins = Pins::forward(bpffs);
    let names = pins.linked_interfaces()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let links =
        runtime.block_on(async { Netlink::open()?.links().await }).context("asking for interfaces")?;
    let attachments = names.into_iter().filter_map(|interface| {
        let pin = pins.link(&interface);
        let link = PinnedLink::from_pin(&pin);
        // An agent may have taken it away since the directory was read.
        if link.is_err() && !pin.exists() {
            return None;
        }
        Some((interface, pin, link))
    });
    let attachments = attachments.map(|(interface, pin, link)| {
        let link = link.with_context(|| format!("opening {}", pin.display()))?;
        let info = FdLink::from(link)
            .info()
            .with_context(|| format!("asking the kernel about {}", pin.display()))?;
        let now = links.iter().find(|link| link.name == interface).cloned();
        Ok(Attachment { interface, link_id: info.id(), program_id: info.program_id(), now })
    });
    Ok(Found { maps: pins.pinned_maps(&forward::MAPS), attachments: attachments.collect::<Result<_>>()? })
}

/// What is wrong with the balancer's pinned maps: missing ones, and ones of another shape. Empty where nothing is
/// pinned at all.
pub fn layout_problems(bpffs: &Path) -> Vec<String> {
    let pins = Pins::forward(bpffs);
    let pinned = pins.pinned_maps(&forward::MAPS);
    if pinned.is_empty() {
        return Vec::new();
    }
    let missing = forward::MAPS.iter().filter(|name| !pinned.contains(name));
    let missing = missing.map(|name| format!("the map {name} is missing among the pins"));
    let present = layout::FORWARD.iter().filter(|map| pinned.contains(&map.name));
    let differing = present.filter_map(|map| map.verify(&pins).err()).map(|error| format!("{error:#}"));
    missing.chain(differing).collect()
}

/// Detaches one interface or all; the names of those that were attached.
pub fn detach(bpffs: &Path, interface: Option<&str>) -> Result<Vec<String>> {
    let pins = Pins::forward(bpffs);
    let names = match interface {
        Some(name) => vec![name.to_owned()],
        None => pins.linked_interfaces()?,
    };
    let mut detached = Vec::new();
    for name in names {
        if pins.unpin_link(&name)? {
            detached.push(name);
        }
    }
    Ok(detached)
}

/// Detaches everything and removes all pins; false where there were none.
pub fn clean(bpffs: &Path) -> Result<bool> {
    let pins = Pins::forward(bpffs);
    if !pins.exists() {
        return Ok(false);
    }
    // Links first: while one is there, packets need the maps.
    detach(bpffs, None)?;
    pins.remove()?;
    Ok(true)
}
