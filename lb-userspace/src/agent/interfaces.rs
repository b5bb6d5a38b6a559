//! The interfaces that the balancer is attached to, and keeping it attached.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use aya::programs::XdpMode as AyaMode;

use crate::{
    api::types::InterfaceStatus,
    config::XdpMode,
    dataplane::{
        forward::{Attached, Forward},
        netlink::Netlink,
        nexthop::XdpAttachMode,
        pins::Pins,
    },
};

/// What is attached where.
pub(super) struct Interfaces {
    forward: Forward,
    pins: Pins,
    status: BTreeMap<String, InterfaceStatus>,
}

impl Interfaces {
    pub(super) const fn new(forward: Forward, pins: Pins) -> Self {
        Self { forward, pins, status: BTreeMap::new() }
    }

    /// The interfaces as last seen, in alphabetical order.
    pub(super) fn status(&self) -> Vec<InterfaceStatus> {
        self.status.values().cloned().collect()
    }

    /// Attaches to an interface, or takes over what is attached there already.
    pub(super) async fn attach(
        &mut self,
        netlink: &Netlink,
        name: &str,
        mode: XdpMode,
    ) -> Result<InterfaceStatus> {
        let link = netlink
            .link(name)
            .await
            .with_context(|| format!("looking for interface {name}"))?
            .with_context(|| format!("there is no interface {name}; `ip -br link` lists them"))?;
        let wanted = match mode {
            XdpMode::Native => AyaMode::Driver,
            XdpMode::Generic => AyaMode::Skb,
        };
        let native = link.xdp.as_ref().map(|xdp| xdp.mode == XdpAttachMode::Native);
        let other_mode = native.is_some_and(|native| native != (mode == XdpMode::Native));
        if other_mode && self.pins.link(name).exists() {
            log::warn!("{name}: changing to {mode} XDP; packets pass to the kernel for a moment");
            self.pins.unpin_link(name)?;
        }
        // Asked again: unpinning above may have taken the program away.
        let running = netlink.link(name).await?.and_then(|link| link.xdp).and_then(|xdp| xdp.program_id);
        let attached = self.forward.attach(name, wanted, running)?;
        let info = self.forward.info()?;
        let status = InterfaceStatus {
            name: name.to_owned(),
            ifindex: link.ifindex,
            mode,
            link_id: Some(self.forward.link_id(name)?),
            program_id: Some(info.id()),
            program_tag: Some(format!("{:016x}", info.tag())),
            error: None,
        };
        if self.status.insert(name.to_owned(), status.clone()).as_ref() != Some(&status) {
            match attached {
                Attached::Fresh => log::info!("attached to {name} in {mode} mode"),
                Attached::Adopted => log::info!("took over {name}, where this program runs already"),
                Attached::Replaced => log::info!("replaced the program on {name} without a gap"),
            }
            if mode == XdpMode::Generic {
                log::warn!(
                    "{name}: GENERIC XDP, as configured: every packet is copied first; for tests, not for load"
                );
            }
        }
        Ok(status)
    }

    /// Brings interfaces to what the configuration says after something changed about links: one that came back is
    /// attached again; what cannot be is reported, and tried again with the next change.
    pub(super) async fn keep(&mut self, netlink: &Netlink, wanted: &[String], mode: XdpMode) {
        for name in wanted {
            if let Err(error) = self.attach(netlink, name, mode).await {
                let text = format!("{error:#}");
                let status = self.status.entry(name.clone()).or_insert_with(|| InterfaceStatus {
                    name: name.clone(),
                    ifindex: 0,
                    mode,
                    link_id: None,
                    program_id: None,
                    program_tag: None,
                    error: None,
                });
                if status.error.as_ref() != Some(&text) {
                    log::error!("{name} is not attached: {text}");
                    status.error = Some(text);
                }
            }
        }
    }

    /// Detaches from an interface.
    pub(super) fn detach(&mut self, name: &str) -> Result<InterfaceStatus> {
        let Some(status) = self.status.get(name).cloned() else { bail!("{name} is not attached") };
        self.pins.unpin_link(name)?;
        self.status.remove(name);
        log::info!("detached from {name}");
        Ok(status)
    }

    /// Forgets what is known of interfaces that are not `wanted` and never were attached.
    pub(super) fn forget(&mut self, wanted: &[String]) {
        self.status.retain(|name, _| wanted.contains(name) || self.pins.link(name).exists());
    }

    /// Interfaces with a pinned link that the configuration does not name: an earlier agent attached them.
    pub(super) fn strays(&self, wanted: &[String]) -> Result<Vec<String>> {
        Ok(self.pins.linked_interfaces()?.into_iter().filter(|name| !wanted.contains(name)).collect())
    }

    /// Detaches a stray.
    pub(super) fn drop_stray(&mut self, name: &str) -> Result<()> {
        self.status.remove(name);
        self.pins.unpin_link(name)?;
        log::info!("detached from {name}, which the configuration does not name");
        Ok(())
    }
}
