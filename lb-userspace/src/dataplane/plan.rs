//! What has to change in the maps for one service: the difference between what they hold and what they should.
//!
//! Pure. A region is never edited while a service names it: what differs is written elsewhere and switched to.

use lb_common::{backend::Backend, ring::Slot, service::Service};

/// What the maps should hold for a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The owner of every slot; empty when no backend may take packets.
    pub ring: Vec<u16>,
    /// The backends by local index; a default entry where an index is not in use.
    pub backends: Vec<Backend>,
    /// The service's counter.
    pub counter: u32,
    /// [`Service::FAIL_OPEN`] or 0.
    pub flags: u32,
}

/// What the maps hold for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The published value.
    pub service: Service,
    /// The ring that it names.
    pub ring: Vec<Slot>,
    /// The backends that it names.
    pub backends: Vec<Backend>,
}

/// What is to be written for one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// A new ring.
    pub ring: bool,
    /// A new backend region.
    pub backends: bool,
    /// The published value: whenever one of the others is, or where the counter moved.
    pub publish: bool,
    /// Slots whose flows now reach another address than before.
    pub moved_slots: u32,
    /// Slots of the larger of the two rings.
    pub total_slots: u32,
}

/// Compares.
pub fn plan(held: Option<&Held>, desired: &Desired) -> Plan {
    let Some(held) = held else {
        let total_slots = desired.ring.len() as u32;
        return Plan { ring: true, backends: true, publish: true, moved_slots: 0, total_slots };
    };
    let ring = !held.ring.iter().copied().eq(desired.ring.iter().copied().map(Slot::settled));
    let backends = held.backends != desired.backends;
    let numbers = (held.service.counter, held.service.flags) != (desired.counter, desired.flags);
    let publish = ring || backends || numbers;
    let moved_slots = if publish { moved(held, desired) } else { 0 };
    Plan { ring, backends, publish, moved_slots, total_slots: held.ring.len().max(desired.ring.len()) as u32 }
}

/// Slots whose owner's address changes. A ring of another size shares no slot with the old one, and an empty one had
/// no flows to move.
fn moved(held: &Held, desired: &Desired) -> u32 {
    if held.ring.len() != desired.ring.len() {
        return held.ring.len() as u32;
    }
    let before = |slot: &Slot| held.backends.get(usize::from(slot.current)).and_then(Backend::ip);
    let after = |owner: &u16| desired.backends.get(usize::from(*owner)).and_then(Backend::ip);
    held.ring.iter().zip(&desired.ring).filter(|(slot, owner)| before(slot) != after(owner)).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::address;

    fn backend(last: u8) -> Backend {
        Backend { destination: address::v4_bytes([10, 0, 0, last]), flags: 4, mode: 1, ..Backend::default() }
    }

    fn held(desired: &Desired) -> Held {
        Held {
            service: Service { counter: desired.counter, ..Service::default() },
            ring: desired.ring.iter().copied().map(Slot::settled).collect(),
            backends: desired.backends.clone(),
        }
    }

    fn desired(ring: &[u16], backends: &[u8]) -> Desired {
        Desired {
            ring: ring.to_vec(),
            backends: backends.iter().map(|&n| backend(n)).collect(),
            counter: 4,
            flags: 0,
        }
    }

    #[test]
    fn nothing_to_do_writes_nothing() {
        let same = desired(&[0, 1, 0], &[1, 2]);
        assert_eq!(
            plan(Some(&held(&same)), &same),
            Plan { ring: false, backends: false, publish: false, moved_slots: 0, total_slots: 3 }
        );
    }

    #[test]
    fn counts_flows_that_reach_another_address() {
        let before = held(&desired(&[0, 1, 0, 1], &[1, 2]));
        let owner = desired(&[0, 1, 1, 1], &[1, 2]);
        assert_eq!(
            plan(Some(&before), &owner),
            Plan { ring: true, backends: false, publish: true, moved_slots: 1, total_slots: 4 }
        );
        // The same addresses under swapped indices: everything is written, nothing moves.
        let relabelled = desired(&[1, 0, 1, 0], &[2, 1]);
        assert_eq!(plan(Some(&before), &relabelled).moved_slots, 0);
        // Another address under the same index.
        let readdressed = desired(&[0, 1, 0, 1], &[1, 3]);
        assert_eq!(
            plan(Some(&before), &readdressed),
            Plan { ring: false, backends: true, publish: true, moved_slots: 2, total_slots: 4 }
        );
    }

    #[test]
    fn another_ring_size_moves_every_slot() {
        let before = held(&desired(&[0, 1, 0, 1], &[1, 2]));
        assert_eq!(plan(Some(&before), &desired(&[0, 1, 0], &[1, 2])).moved_slots, 4);
        assert_eq!(plan(Some(&held(&desired(&[], &[1]))), &desired(&[0, 0], &[1])).moved_slots, 0);
    }
}
