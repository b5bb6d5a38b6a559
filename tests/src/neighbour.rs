//! Neighbour entries of a host: which hardware address an address on the link has.
//!
//! States are the kernel's own numbers, not another library's names for them, so that tests of code which reads
//! neighbours do not share its view of them. Nothing here waits for the kernel to find a neighbour.

use std::net::IpAddr;

use anyhow::{Context, Result};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};

use crate::link::{Link, Mac};
use crate::netlink::request;

/// What the kernel thinks of a neighbour entry; the numbers are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum NeighbourState {
    /// Confirmed a moment ago.
    Reachable = libc::NUD_REACHABLE,
    /// Not confirmed for a while, and not used since.
    Stale = libc::NUD_STALE,
    /// Used while stale; to be probed soon unless it is confirmed.
    Delay = libc::NUD_DELAY,
    /// Being probed.
    Probe = libc::NUD_PROBE,
    /// It did not answer.
    Failed = libc::NUD_FAILED,
    /// Valid for ever without being asked.
    NoArp = libc::NUD_NOARP,
    /// Fixed by the administrator.
    Permanent = libc::NUD_PERMANENT,
}

impl Link {
    /// Sets a permanent neighbour entry, replacing what was there.
    pub fn neighbour(&self, address: IpAddr, mac: Mac) -> Result<()> {
        self.neighbour_in(NeighbourState::Permanent, address, Some(mac))
    }

    /// Sets a neighbour entry of any state, replacing what was there. Without a hardware address it keeps the one that
    /// it has, if any.
    pub fn neighbour_in(&self, state: NeighbourState, address: IpAddr, mac: Option<Mac>) -> Result<()> {
        let index = self.index()?;
        request(self.host(), async |handle| {
            let mut add = handle.neighbours().add(index, address).replace().state((state as u16).into());
            if let Some(mac) = mac {
                add = add.link_layer_address(&mac.0);
            }
            add.execute().await
        })
        .with_context(|| format!("cannot set {state:?} neighbour {address} of {self}"))
    }

    /// Sets many permanent neighbour entries, one after the other.
    pub fn neighbours(&self, entries: &[(IpAddr, Mac)]) -> Result<()> {
        let index = self.index()?;
        request(self.host(), async |handle| {
            for &(address, mac) in entries {
                let add = handle.neighbours().add(index, address).replace();
                add.link_layer_address(&mac.0).execute().await?;
            }
            Ok::<_, rtnetlink::Error>(())
        })
        .with_context(|| format!("cannot set {} neighbours of {self}", entries.len()))
    }

    /// Deletes a neighbour entry.
    pub fn neighbour_delete(&self, address: IpAddr) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = self.index()?;
        let (family, destination) = match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
        };
        message.header.family = family;
        message.attributes.push(NeighbourAttribute::Destination(destination));
        request(self.host(), async |handle| handle.neighbours().del(message).execute().await)
            .with_context(|| format!("cannot delete neighbour {address} of {self}"))
    }
}
