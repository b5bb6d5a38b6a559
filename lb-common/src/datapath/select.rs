//! From a flow to a backend: service, slot, owner.

use super::{
    hash::{Flow, FlowHash},
    tables::Tables,
};
use crate::{
    backend::Backend,
    ring::Slot,
    service::{Service, ServiceKey},
};

/// A service and the key it was found under.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The key.
    pub key: ServiceKey,
    /// The service.
    pub service: Service,
}

/// The service that a flow is addressed to: first by its port, then by "any port" of its address.
#[inline(always)]
pub fn service<T: Tables>(tables: &T, flow: &Flow) -> Option<Found> {
    // Port 0 is reserved (RFC 6335): nobody serves it, and as a key it would mean "any".
    if flow.destination_port == ServiceKey::ANY_PORT {
        return None;
    }
    let mut key = ServiceKey {
        address: flow.destination,
        port: flow.destination_port,
        protocol: flow.protocol,
        family: flow.family as u8,
    };
    if let Some(service) = tables.service(&key) {
        return Some(Found { key, service });
    }
    key.port = ServiceKey::ANY_PORT;
    tables.service(&key).map(|service| Found { key, service })
}

/// The slot that a hash falls into: its index within the ring and its content. `None` where the ring is not there.
#[inline(always)]
pub fn slot<T: Tables>(tables: &T, service: &Service, hash: FlowHash) -> Option<(u32, Slot)> {
    let index = hash.slot(service.ring_slots);
    // Not wrapping: past the last number are other services' slots.
    tables.slot(service.ring_offset.checked_add(index)?).map(|slot| (index, slot))
}

/// The local index of the backend that a slot sends a flow to. Every slot is settled for now, and then it is the owner.
#[inline(always)]
pub const fn owner(slot: Slot) -> u16 {
    slot.current
}

/// The backend of a local index, if the service has such a one.
#[inline(always)]
pub fn backend<'t, T: Tables>(tables: &'t T, service: &Service, index: u16) -> Option<&'t Backend> {
    if u32::from(index) >= service.backend_count {
        return None;
    }
    tables.backend(service.backend_base.checked_add(u32::from(index))?)
}
