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
    let flags = if weights.fail_open { lb_common::service::Service::FAIL_OPEN } else { 0 };
    Ok(Desired { ring, backends, counter: ids.counter, flags })
}

/// Why packets cannot be sent to a backend over a next hop; `None` where they can.
pub fn obstacle(node: &Node, mode: Mode, backend: IpAddr, hop: &NextHop) -> Option<String> {
    if mode == Mode::L2 {
        // The gateway would route the packet by its destination, the service's address: back to us.
        return (hop.gateway != backend)
            .then(|| format!("l2 needs the backend on the same link, but it is behind {}", hop.gateway));
    }
    let family = address::to_bytes(backend).0;
    outer_source(node, family, hop.preferred_source).is_none().then(|| {
        let version = family as u8;
        format!(
            "this node has no IPv{version} address to send from; give it one, or set node.source_v{version}"
        )
    })
}

/// One backend's cache line.
fn entry(node: &Node, service_mode: Mode, backend: &Backend, counter: u32, hop: Option<&NextHop>) -> Entry {
    let (family, destination) = address::to_bytes(backend.address);
    let mode = match service_mode {
        Mode::Ipip => EntryMode::Ipip,
        Mode::Gue => EntryMode::Gue,
        Mode::L2 => EntryMode::L2,
    };
    let mut entry = Entry { destination, counter, mode: mode as u8, flags: family as u8, ..Entry::default() };
    let usable = hop.filter(|hop| obstacle(node, service_mode, backend.address, hop).is_none());
    let Some(hop) = usable else { return entry };
    let (source, entropy_mask) = outer_source(node, family, hop.preferred_source).unwrap_or_default();
    if mode != EntryMode::L2 {
        entry.source = source;
        entry.entropy_mask = entropy_mask;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, Port, Protocol},
        fleet::ids::Ids,
    };

    fn hop(preferred_source: Option<&str>) -> NextHop {
        NextHop {
            ifindex: 7,
            gateway: "10.0.0.1".parse().unwrap(),
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            preferred_source: preferred_source.map(|source| source.parse().unwrap()),
            mtu: 1600,
        }
    }

    fn backend(address: &str, node: &Node, mode: Mode, hop: Option<&NextHop>) -> Entry {
        entry(node, mode, &Backend::new("b", address.parse().unwrap()), 9, hop)
    }

    #[test]
    fn the_outer_source_is_the_prefix_or_the_nodes_own_address() {
        let own = hop(Some("10.0.0.5"));
        let plain = backend("10.1.0.1", &Node::default(), Mode::Ipip, Some(&own));
        assert_eq!((plain.source[..4].to_vec(), plain.entropy_mask), (vec![10, 0, 0, 5], 0));
        let node = Node {
            source_v4: Some("10.200.0.0/16".parse().unwrap()),
            source_v6: Some("fd00:200::/96".parse().unwrap()),
            ..Node::default()
        };
        let spread = backend("10.1.0.1", &node, Mode::Ipip, Some(&own));
        assert_eq!((spread.source[..4].to_vec(), spread.entropy_mask), (vec![10, 200, 0, 0], 0xffff));
        assert_eq!(backend("fd00::1", &node, Mode::Gue, Some(&own)).entropy_mask, u32::MAX);
        let wide = Node { source_v6: Some("fd00:200::/32".parse().unwrap()), ..Node::default() };
        assert_eq!(
            backend("fd00::1", &wide, Mode::Gue, Some(&own)).entropy_mask,
            u32::MAX,
            "32 bits at most"
        );
    }

    #[test]
    fn what_cannot_be_sent_is_not_resolved() {
        let node = Node::default();
        assert!(!backend("10.1.0.1", &node, Mode::Ipip, None).resolved(), "no next hop");
        assert!(!backend("10.1.0.1", &node, Mode::Ipip, Some(&hop(None))).resolved(), "nothing to send from");
        assert!(
            !backend("fd00::1", &node, Mode::Ipip, Some(&hop(Some("10.0.0.5")))).resolved(),
            "the other family"
        );
        assert!(!backend("10.1.0.1", &node, Mode::L2, Some(&hop(None))).resolved(), "behind a gateway");
        assert!(backend("10.0.0.1", &node, Mode::L2, Some(&hop(None))).resolved(), "no outer header at all");
    }

    #[test]
    fn numbers_not_in_use_are_empty_entries() {
        let mut service = Service::new("s", "192.0.2.1".parse().unwrap(), Port::Number(80), Protocol::Tcp);
        service.backends = (1..=3).map(|n| Backend::new(format!("b{n}"), [10, 1, 0, n].into())).collect();
        let config = |service: &Service| Config { services: vec![service.clone()], ..Config::default() };
        let (ids, _) = Ids::new(100).update(&config(&service)).unwrap();
        service.backends.remove(1);
        let (ids, _) = ids.update(&config(&service)).unwrap();
        let weights = Weights { weights: vec![100, 0], fail_open: false };
        let hop = hop(Some("10.0.0.5"));
        let made =
            desired(&Node::default(), &service, ids.service("s").unwrap(), &weights, |_| Some(&hop)).unwrap();
        assert_eq!(made.backends.len(), 3);
        assert_eq!(made.backends[1], Entry::default());
        assert!(made.ring.iter().all(|&owner| owner == 0) && made.ring.len() == 1021);
        let nobody = Weights { weights: vec![0, 0], fail_open: false };
        let made =
            desired(&Node::default(), &service, ids.service("s").unwrap(), &nobody, |_| Some(&hop)).unwrap();
        assert!(made.ring.is_empty());
    }
}
