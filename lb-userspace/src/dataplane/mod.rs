//! Everything between the agent and the kernel: objects, pins, maps, links and netlink.
//!
//! Only `apply` writes the balancer's maps; only `netlink` knows netlink; only `pins` knows where things are pinned.

pub mod apply;
pub mod decap;
pub mod forward;
mod grace;
mod layout;
mod mapped;
pub mod maps;
pub mod nexthop;
mod object;
pub mod pins;
pub mod plan;
mod regions;

/// tmp
pub(crate) fn xdp_program_of(_interface: &str) -> anyhow::Result<Option<u32>> {
    Ok(None)
}
pub mod netlink;
