//! The two traits over plain memory: how tests, simulations and `wattline route` run the packet path without a kernel.

use core::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    address::{AddressBytes, Family},
    backend::Backend,
    counter::Counter,
    datapath::{
        packet::{Header, Packet},
        tables::{Egress, Tables},
    },
    decap::{DecapNode, DecapTables, Outcome},
    node::Node,
    reason::Reason,
    ring::Slot,
    service::{Service, ServiceKey},
};

/// Bytes in front of a frame that native XDP drivers keep free (`XDP_PACKET_HEADROOM`, `include/uapi/linux/bpf.h`).
pub const HEADROOM: usize = 256;

/// A frame in a vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    buffer: Vec<u8>,
    start: usize,
}

impl Frame {
    /// A frame with the usual headroom.
    pub fn new(bytes: &[u8]) -> Self {
        Self::with_headroom(bytes, HEADROOM)
    }

    /// A frame with a headroom of so many bytes.
    pub fn with_headroom(bytes: &[u8], headroom: usize) -> Self {
        let mut buffer = vec![0; headroom];
        buffer.extend_from_slice(bytes);
        Self { buffer, start: headroom }
    }

    /// The frame as it is now.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

impl Packet for Frame {
    fn len(&self) -> usize {
        self.bytes().len()
    }

    fn load<H: Header>(&self, offset: usize) -> Option<H> {
        let bytes = self.bytes().get(offset..offset.checked_add(size_of::<H>())?)?;
        // SAFETY: the slice is as long as `H`, and every bit pattern is a valid `H`.
        Some(unsafe { bytes.as_ptr().cast::<H>().read_unaligned() })
    }

    fn store<H: Header>(&mut self, offset: usize, header: H) -> Option<()> {
        let start = self.start;
        let bytes = self.buffer[start..].get_mut(offset..offset.checked_add(size_of::<H>())?)?;
        // SAFETY: the slice is as long as `H`, which has no padding.
        unsafe { bytes.as_mut_ptr().cast::<H>().write_unaligned(header) };
        Some(())
    }

    fn grow(&mut self, bytes: usize) -> Option<()> {
        self.start = self.start.checked_sub(bytes)?;
        Some(())
    }

    fn shrink(&mut self, bytes: usize) -> Option<()> {
        // The kernel refuses to leave less than an Ethernet header (`bpf_xdp_adjust_head`).
        if self.len() < bytes + 14 {
            return None;
        }
        self.start += bytes;
        Some(())
    }
}

/// The forwarding maps in memory, with the counters they moved.
#[derive(Clone, Debug, Default)]
pub struct MemoryTables {
    /// What `node` returns.
    pub node: Option<Node>,
    /// The `SERVICES` map.
    pub services: HashMap<ServiceKey, Service>,
    /// The `RINGS` map.
    pub rings: Vec<Slot>,
    /// The `BACKENDS` map.
    pub backends: Vec<Backend>,
    /// The interface that packets come in by.
    pub ingress: u32,
    /// The interfaces in the `DEVICES` map.
    pub devices: HashSet<u32>,
    /// The `COUNTERS` map, as far as it was moved.
    pub counters: RefCell<BTreeMap<u32, Counter>>,
    /// The `REASONS` map, as far as it was moved.
    pub reasons: RefCell<BTreeMap<u32, u64>>,
}

impl Tables for MemoryTables {
    fn node(&self) -> Option<&Node> {
        self.node.as_ref().filter(|node| node.ready == Node::READY)
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.services.get(key).copied()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.rings.get(index as usize).copied()
    }

    fn backend(&self, index: u32) -> Option<&Backend> {
        self.backends.get(index as usize)
    }

    fn egress(&self, ifindex: u32) -> Option<Egress> {
        if ifindex == self.ingress {
            return Some(Egress::Transmit);
        }
        self.devices.contains(&ifindex).then_some(Egress::Redirect)
    }

    fn count(&self, counter: u32, bytes: usize) {
        let mut counters = self.counters.borrow_mut();
        let entry = counters.entry(counter).or_default();
        entry.packets += 1;
        entry.bytes += bytes as u64;
    }

    fn count_reason(&self, reason: Reason) {
        *self.reasons.borrow_mut().entry(reason as u32).or_default() += 1;
    }

    fn report_bad_state(&self, _key: &ServiceKey, _service: &Service) {}
}

/// The decapsulating maps in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryDecapTables {
    /// What `node` returns.
    pub node: Option<DecapNode>,
    /// Allowed sources: family, network, prefix length.
    pub sources: Vec<(Family, AddressBytes, u32)>,
    /// Packets by [`Outcome`].
    pub outcomes: RefCell<BTreeMap<u32, u64>>,
}

impl DecapTables for MemoryDecapTables {
    fn node(&self) -> Option<&DecapNode> {
        self.node.as_ref().filter(|node| node.ready == Node::READY)
    }

    fn allowed(&self, family: Family, source: &AddressBytes) -> bool {
        let source = u128::from_be_bytes(*source);
        self.sources.iter().any(|(network_family, network, length)| {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            *network_family == family && (u128::from_be_bytes(*network) ^ source) & mask == 0
        })
    }

    fn count(&self, outcome: Outcome) {
        *self.outcomes.borrow_mut().entry(outcome as u32).or_default() += 1;
    }
}
