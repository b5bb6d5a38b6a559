//! What the agent knows of the ways to its backends, kept true to the kernel's routes and neighbours.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use anyhow::Result;
use lb_common::{address, backend::Backend};

use crate::dataplane::{
    netlink::Netlink,
    nexthop::{Mac, NextHop, NextHopState, merge},
};

/// The ways to a set of addresses.
pub(super) struct Hops {
    netlink: Netlink,
    states: HashMap<IpAddr, NextHopState>,
    /// The last way that worked, for addresses whose way is lost at the moment.
    last: HashMap<IpAddr, NextHop>,
}

impl Hops {
    pub(super) fn new(netlink: Netlink) -> Self {
        Self { netlink, states: HashMap::new(), last: HashMap::new() }
    }

    pub(super) const fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// Asks the kernel about `addresses`, forgets all others, and has it resolve neighbours that it does not know.
    ///
    /// Returns the addresses whose next hop is another than before.
    pub(super) async fn refresh(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<BTreeSet<IpAddr>> {
        let wanted: Vec<IpAddr> = addresses.iter().copied().collect();
        let fresh = self.netlink.resolve_all(&wanted).await?;
        let before: HashMap<IpAddr, Option<NextHop>> =
            wanted.iter().map(|address| (*address, self.next_hop(*address).copied())).collect();
        let mut states = HashMap::with_capacity(fresh.len());
        for (address, fresh) in fresh {
            let merged = merge(self.states.get(&address), fresh);
            if let Some((ifindex, gateway)) = merged.solicit
                && let Err(error) = self.netlink.solicit(ifindex, gateway).await
            {
                log::debug!("asking for the MAC address of {gateway}: {error}");
            }
            if let Some(hop) = merged.state.next_hop() {
                self.last.insert(address, *hop);
            }
            states.insert(address, merged.state);
        }
        self.last.retain(|address, _| states.contains_key(address));
        self.states = states;
        Ok(before
            .into_iter()
            .filter(|(address, hop)| self.next_hop(*address) != hop.as_ref())
            .map(|(a, _)| a)
            .collect())
    }

    /// Takes an earlier agent's word for addresses that the kernel knows no way to at the moment: a restart moves no flow
    /// that a lost neighbour or route would not have moved.
    pub(super) fn adopt(&mut self, entries: impl Iterator<Item = Backend>) {
        for entry in entries.filter(Backend::resolved) {
            let Some((address, hop)) = pinned_hop(&entry) else { continue };
            match self.states.get(&address) {
                Some(NextHopState::Unresolved(path)) if path.ifindex == hop.ifindex => {
                    let hop = path.with_mac(hop.destination_mac);
                    self.last.insert(address, hop);
                    self.states.insert(address, NextHopState::Resolved(hop));
                }
                Some(NextHopState::Unreachable { .. }) => drop(self.last.insert(address, hop)),
                _ => {}
            }
        }
    }

    /// The way to an address: the present one, else the last that worked. A lost route moves no flow: whether the
    /// backend still answers is for its health checks to say.
    pub(super) fn next_hop(&self, address: IpAddr) -> Option<&NextHop> {
        self.states.get(&address).and_then(NextHopState::next_hop).or_else(|| self.last.get(&address))
    }

    /// Whether the way to some address is not known at the moment.
    pub(super) fn any_unknown(&self) -> bool {
        self.states.values().any(|state| state.next_hop().is_none())
    }

    /// Why there is no way to an address.
    pub(super) fn problem(&self, address: IpAddr) -> Option<String> {
        match self.states.get(&address) {
            Some(NextHopState::Resolved(_)) => None,
            Some(state) => Some(state.to_string()),
            None => Some("not asked for yet".to_owned()),
        }
    }
}

/// The way that a pinned entry was made from, as far as it tells: whether there was a gateway, it does not.
fn pinned_hop(entry: &Backend) -> Option<(IpAddr, NextHop)> {
    let (family, address) = (entry.family()?, entry.ip()?);
    let mac = |at: usize| -> Mac { std::array::from_fn(|i| entry.ethernet[at + i]) };
    let hop = NextHop {
        ifindex: entry.ifindex,
        gateway: address,
        destination_mac: mac(0),
        source_mac: mac(6),
        preferred_source: Some(address::from_bytes(family, entry.source)),
        mtu: entry.mtu.into(),
    };
    Some((address, hop))
}
