//! Everything between the agent and the kernel: objects, pins, maps, links and netlink.
//!
//! Only `apply` writes the balancer's maps; only `netlink` knows netlink; only `pins` knows where things are pinned.

pub mod apply;
pub mod decap;
pub mod ethtool;
pub mod forward;
mod grace;
pub mod inspect;
mod layout;
mod link;
mod mapped;
pub mod maps;
pub mod netlink;
pub mod nexthop;
mod object;
pub mod pins;
pub mod plan;
mod regions;
pub mod trial;

/// The XDP program that runs on an interface, asked from outside any runtime.
pub(crate) fn xdp_of(interface: &str) -> anyhow::Result<Option<nexthop::XdpAttachment>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let link = netlink::Netlink::open()?.link(interface).await?;
        Ok(link.and_then(|link| link.xdp))
    })
}
