//! A service as the maps should hold it: its ring, and its backends in the layout of the packet path.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use lb_common::{
    address::{self, Family},
    backend::{Backend as Entry, Mode as EntryMode},
    datapath::{encap, parse},
    service::ServiceKey,
};

use super::{ids::ServiceIds, weigh::Weights};
use crate::{
    config::{Backend, Mode, Node, Service},
    dataplane::{nexthop::NextHop, plan::Desired},
    ring,
};

/// The key of a service.
pub fn key(service: &Service) -> ServiceKey {
    ServiceKey::new(service.address, service.port.number(), service.protocol.number())
}

/// Slots of a service's ring: as configured, else by the number of its backends, usable or not, so that health does not
/// resize rings.
pub fn ring_slots(service: &Service) -> u32 {
    service.ring_slots.unwrap_or_else(|| ring::ring_slots_for(service.backends.len()))
}

/// What the maps should hold for a service.
pub fn desired<'h>(
    node: &Node,
    service: &Service,
    ids: &ServiceIds,
    weights: &Weights,
    next_hop: impl Fn(IpAddr) -> Option<&'h NextHop>,
) -> Result<Desired> {
    let numbers = |backend: &Backend| {
        ids.backends
            .get(&backend.name)
            .copied()
            .with_context(|| format!("backend {:?} has no number", backend.name))
    };
    let mut candidates = Vec::with_capacity(service.backends.len());
    let mut backends = vec![Entry::default(); ids.region()];
    for (backend, &weight) in service.backends.iter().zip(&weights.weights) {
        let numbers = numbers(backend)?;
        candidates.push(ring::Candidate {
            name: &backend.name,
            index: numbers.index,
            weight: u32::from(weight),
        });
        backends[usize::from(numbers.index)] =
            entry(node, service.mode, backend, numbers.counter, next_hop(backend.address));
    }
    let ring = ring::build(&candidates, ring_slots(service))
        .with_context(|| format!("ring of {:?}", service.name))?;
    Ok(Desired { ring, backends, counter: ids.counter })
}

/// One backend's cache line.
fn entry(node: &Node, mode: Mode, backend: &Backend, counter: u32, hop: Option<&NextHop>) -> Entry {
    let (family, destination) = address::to_bytes(backend.address);
    let mode = match mode {
        Mode::Ipip => EntryMode::Ipip,
        Mode::Gue => EntryMode::Gue,
        Mode::L2 => EntryMode::L2,
    };
    let mut entry = Entry { destination, counter, mode: mode as u8, flags: family as u8, ..Entry::default() };
    let Some(hop) = hop else { return entry };
    // Without an address to send from there is no outer packet; in L2 mode there is none anyway.
    let Some((source, entropy_mask)) =
        outer_source(node, family, hop.preferred_source).or((mode == EntryMode::L2).then_some(([0; 16], 0)))
    else {
        return entry;
    };
    entry.source = source;
    entry.entropy_mask = entropy_mask;
    entry.ethernet[..6].copy_from_slice(&hop.destination_mac);
    entry.ethernet[6..12].copy_from_slice(&hop.source_mac);
    entry.ethernet[12..].copy_from_slice(&parse::ethertype(family).to_be_bytes());
    if family == Family::V4 && mode != EntryMode::L2 {
        let word = |bytes: &[u8; 16]| [bytes[0], bytes[1], bytes[2], bytes[3]];
        entry.constant_sum = encap::constant_sum(word(&source), word(&destination));
    }
    entry.ifindex = hop.ifindex;
    entry.mtu = u16::try_from(hop.mtu).unwrap_or(u16::MAX);
    entry.flags |= Entry::RESOLVED;
    entry
}

/// The outer source and which of its last 32 bits carry entropy: the configured prefix and its host bits, or the
/// node's own address and none.
fn outer_source(node: &Node, family: Family, own: Option<IpAddr>) -> Option<(address::AddressBytes, u32)> {
    let configured: Option<(IpAddr, u32)> = match family {
        Family::V4 => node.source_v4.map(|net| (net.network().into(), u32::from(net.hostmask()))),
        // Entropy fills 32 bits at most: the rest of a wider prefix's host part stays zero.
        Family::V6 => node.source_v6.map(|net| (net.network().into(), u128::from(net.hostmask()) as u32)),
    };
    let (source, mask) = configured.or(own.map(|own| (own, 0)))?;
    let (source_family, bytes) = address::to_bytes(source);
    (source_family == family).then_some((bytes, mask))
}
