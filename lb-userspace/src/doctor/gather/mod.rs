//! Seeing: asks the kernel, the agent and the pins, and judges nothing. What cannot be seen is left open.

mod installation;
mod interfaces;
mod peer;
mod system;

use anyhow::{Context as _, Result};

use super::{Request, agent::Installation, interface::Interface};
use crate::dataplane::netlink::Netlink;

pub(super) use system::system;

/// What was seen of agent, pins and interfaces.
pub(super) struct Found {
    pub(super) installation: Installation,
    pub(super) interfaces: Vec<Interface>,
}

/// Looks at agent, pins and interfaces.
pub(super) fn network(request: &Request<'_>) -> Result<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // These ask the kernel through a runtime of their own.
    let pins = installation::Pins::look(request.bpffs);
    let programs = installation::Programs::look(request.bpffs, &pins);
    runtime.block_on(async {
        let agent = installation::ask_agent(request).await;
        let netlink = Netlink::open().context("asking for interfaces")?;
        let interfaces = interfaces::look(&netlink, request, &agent, &pins, &programs).await?;
        Ok(Found { installation: installation::describe(request, agent, pins), interfaces })
    })
}
