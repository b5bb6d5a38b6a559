//! The only writer of the balancer's maps.
//!
//! Make before break: a changed ring or backend region is written where nobody looks, then one update of the service's
//! value switches packets over, then, after a grace period, the old region is free. Killed at any instant it leaves a
//! service's old state or its new one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, Result, bail};
use lb_common::{
    counter::Counter,
    node::Node,
    reason::Reason,
    ring::Slot,
    service::{Service, ServiceKey},
};

use super::{
    grace,
    maps::Maps,
    plan::{self, Desired, Held, Plan},
    regions::Regions,
};

/// A region that may still be read by packets in flight.
#[derive(Clone, Copy, Debug)]
enum Retired {
    Ring(u32, u32),
    Backends(u32, u32),
}

/// Used and available elements of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub used: u32,
    /// In all.
    pub capacity: u32,
}

/// How full the maps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usages {
    /// The service table.
    pub services: Usage,
    /// The backend array.
    pub backends: Usage,
    /// The ring array.
    pub ring_slots: Usage,
}

/// What an application changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Services that were published anew, with what became of their flows.
    pub published: BTreeMap<ServiceOrder, Plan>,
    /// Services that could not be written, and still are as they were.
    pub failed: Vec<(ServiceKey, String)>,
}

/// A service key that sorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceOrder(pub ServiceKey);

impl ServiceOrder {
    const fn parts(&self) -> (u8, [u8; 16], u16, u8) {
        (self.0.family, self.0.address, self.0.port, self.0.protocol)
    }
}

impl PartialOrd for ServiceOrder {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ServiceOrder {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.parts().cmp(&other.parts())
    }
}

/// Gaps may be too short one by one though they suffice together.
fn no_room(what: &str, limit: &str) -> String {
    format!(
        "no room for its new {what} beside the old: raise limits.{limit}, then `wattline dataplane clean` and start the \
         agent again"
    )
}

/// The maps, and what is known of their use.
pub struct Dataplane {
    maps: Maps,
    rings: Regions,
    backends: Regions,
    held: HashMap<ServiceKey, Service>,
    retired: Vec<Retired>,
}

impl Dataplane {
    /// Takes maps over as they are.
    ///
    /// # Errors
    ///
    /// Where services name regions outside the arrays or each other's.
    pub fn adopt(maps: Maps) -> Result<Self> {
        let mut rings = Regions::new(maps.rings.len());
        let mut backends = Regions::new(maps.backends.len());
        let held: HashMap<_, _> = maps.services()?.into_iter().collect();
        for (key, service) in &held {
            let ring = rings.reserve(service.ring_offset, service.ring_slots);
            if !ring || !backends.reserve(service.backend_base, service.backend_count) {
                bail!(
                    "the pinned SERVICES map contradicts itself: the {} of {:?} port {} overlap another's. Remove the \
                     pins with `wattline dataplane clean` (which ends forwarding) and start again",
                    if ring { "backends" } else { "slots" },
                    key.ip(),
                    key.port
                );
            }
        }
        Ok(Self { maps, rings, backends, held, retired: Vec::new() })
    }

    /// The maps, to read counters.
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// How full the maps are.
    pub fn usage(&self) -> Usages {
        Usages {
            services: Usage { used: self.held.len() as u32, capacity: self.maps.services_capacity() },
            backends: Usage { used: self.backends.used(), capacity: self.backends.capacity() },
            ring_slots: Usage { used: self.rings.used(), capacity: self.rings.capacity() },
        }
    }

    /// Fills in what every packet needs; the same value again is no write.
    pub fn set_node(&mut self, node: Node) -> Result<()> {
        if self.maps.node()? == Some(node) { Ok(()) } else { self.maps.set_node(node) }
    }

    /// Makes these interfaces targets of redirection, besides those that are.
    pub fn add_devices(&mut self, interfaces: &BTreeSet<u32>) -> Result<()> {
        self.maps.add_devices(interfaces)
    }

    /// Makes exactly these interfaces targets of redirection.
    pub fn set_devices(&mut self, interfaces: &BTreeSet<u32>) -> Result<()> {
        self.maps.set_devices(interfaces)
    }

    /// What the maps hold for a service.
    pub fn held(&self, key: &ServiceKey) -> Option<Held> {
        let service = *self.held.get(key)?;
        Some(Held {
            service,
            ring: self.maps.rings.read(service.ring_offset, service.ring_slots),
            backends: self.maps.backends.read(service.backend_base, service.backend_count),
        })
    }

    /// The services that the maps hold.
    pub fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.held.keys()
    }

    /// Refuses what cannot fit, before anything is written: services of so many backends and ring slots each.
    ///
    /// The largest service counts twice. Without room for its second ring it could never change again, and a backend
    /// that fails could not leave it.
    pub fn check_room(&self, services: &[(u64, u64)]) -> Result<()> {
        let twice = |sizes: &dyn Fn(&(u64, u64)) -> u64| {
            let largest = services.iter().map(sizes).max().unwrap_or(0);
            (services.iter().map(sizes).sum::<u64>() + largest, largest)
        };
        for (what, limit, (wanted, spare), capacity) in [
            ("services", "services", (services.len() as u64, 0), self.maps.services_capacity()),
            ("backends", "backends", twice(&|service| service.0), self.backends.capacity()),
            ("ring slots", "ring_slots", twice(&|service| service.1), self.rings.capacity()),
        ] {
            let of_them = if spare == 0 {
                String::new()
            } else {
                format!(" ({spare} of them to change the largest service while its old state is in use)")
            };
            if wanted > u64::from(capacity) {
                bail!(
                    "{wanted} {what}{of_them} do not fit the {capacity} that the maps were loaded with: raise \
                     limits.{limit}, then `wattline dataplane clean` and start the agent again (the maps are sized \
                     when they are made)"
                );
            }
        }
        Ok(())
    }

    /// Brings the given services to what they should be, and removes those in `removals`.
    ///
    /// One service that cannot be written does not keep the others from it: `Applied::failed` names it.
    pub fn apply(
        &mut self,
        desired: &[(ServiceKey, Desired)],
        removals: &[ServiceKey],
        generation: u64,
    ) -> Applied {
        let mut applied = Applied::default();
        let mut waiting = self.publish_all(desired.iter(), generation, &mut applied);
        // Last, so that a failure above has taken nothing away; but the room may be what a second try needs.
        for key in removals {
            if let Err(error) = self.remove(key) {
                applied.failed.push((*key, format!("{error:#}")));
            }
        }
        self.reclaim();
        if !waiting.is_empty() {
            let again = waiting.into_iter().map(|(service, _)| service);
            waiting = self.publish_all(again, generation, &mut applied);
            self.reclaim();
        }
        applied.failed.extend(waiting.into_iter().map(|((key, _), error)| (*key, error)));
        applied
    }

    /// Publishes what differs; returns what could not be, and why.
    fn publish_all<'d>(
        &mut self,
        desired: impl Iterator<Item = &'d (ServiceKey, Desired)>,
        generation: u64,
        applied: &mut Applied,
    ) -> Vec<(&'d (ServiceKey, Desired), String)> {
        let mut failed = Vec::new();
        for service in desired {
            let (key, desired) = service;
            let plan = plan::plan(self.held(key).as_ref(), desired);
            if !plan.publish {
                continue;
            }
            match self.publish(*key, desired, plan, generation) {
                Ok(()) => drop(applied.published.insert(ServiceOrder(*key), plan)),
                Err(error) => failed.push((service, format!("{error:#}"))),
            }
        }
        failed
    }

    fn remove(&mut self, key: &ServiceKey) -> Result<()> {
        let Some(service) = self.held.get(key).copied() else { return Ok(()) };
        self.maps.remove_service(*key)?;
        self.held.remove(key);
        self.retire(&service, true, true);
        Ok(())
    }

    fn publish(&mut self, key: ServiceKey, desired: &Desired, plan: Plan, generation: u64) -> Result<()> {
        let old = self.held.get(&key).copied();
        let mut service = old.unwrap_or_default();
        if plan.ring {
            let slots = desired.ring.len() as u32;
            service.ring_offset =
                self.make_room(|plane| plane.rings.allocate(slots)).context(no_room("ring", "ring_slots"))?;
            service.ring_slots = slots;
            let ring: Vec<Slot> = desired.ring.iter().copied().map(Slot::settled).collect();
            self.maps.rings.write(service.ring_offset, &ring);
        }
        if plan.backends {
            let count = desired.backends.len() as u32;
            let base = self.make_room(|plane| plane.backends.allocate(count));
            let Some(base) = base else {
                if plan.ring {
                    self.rings.free(service.ring_offset, service.ring_slots);
                }
                bail!(no_room("backends", "backends"));
            };
            service.backend_base = base;
            service.backend_count = count;
            self.maps.backends.write(base, &desired.backends);
        }
        service.counter = desired.counter;
        service.flags = desired.flags;
        service.generation = generation as u32;
        if let Err(error) = self.maps.set_service(key, service) {
            // Nobody ever saw the new regions.
            if plan.ring {
                self.rings.free(service.ring_offset, service.ring_slots);
            }
            if plan.backends {
                self.backends.free(service.backend_base, service.backend_count);
            }
            return Err(error);
        }
        self.held.insert(key, service);
        if let Some(old) = old {
            self.retire(&old, plan.ring, plan.backends);
        }
        Ok(())
    }

    /// Allocates; where that fails for want of room, waits for retired regions and tries once more.
    fn make_room(&mut self, allocate: impl Fn(&mut Self) -> Option<u32>) -> Option<u32> {
        allocate(self).or_else(|| {
            self.reclaim();
            allocate(self)
        })
    }

    fn retire(&mut self, service: &Service, ring: bool, backends: bool) {
        if ring && service.ring_slots > 0 {
            self.retired.push(Retired::Ring(service.ring_offset, service.ring_slots));
        }
        if backends && service.backend_count > 0 {
            self.retired.push(Retired::Backends(service.backend_base, service.backend_count));
        }
    }

    /// Frees what was retired, once no packet can be reading it.
    fn reclaim(&mut self) {
        if self.retired.is_empty() {
            return;
        }
        grace::wait();
        for retired in self.retired.drain(..) {
            match retired {
                Retired::Ring(offset, length) => self.rings.free(offset, length),
                Retired::Backends(offset, length) => self.backends.free(offset, length),
            }
        }
    }

    /// What was forwarded to the backends of a service in all, its former ones included, and what it dropped.
    pub fn service_totals(&self, counter: u32, backends: &[u32]) -> Result<(Counter, Counter)> {
        let mut forwarded = self.maps.counter(counter)?;
        for &backend in backends {
            forwarded = forwarded + self.maps.counter(backend)?;
        }
        Ok((forwarded, self.maps.counter(counter + 1)?))
    }

    /// Moves what a former backend's counter holds to its service's, and clears it for its next owner. To be called
    /// when no published region names it any more.
    pub fn retire_counter(&mut self, service: u32, backend: u32) -> Result<()> {
        let last = self.maps.counter(backend)?;
        if last == Counter::default() {
            return Ok(());
        }
        let total = self.maps.counter(service)? + last;
        self.maps.set_counter(service, total)?;
        self.maps.set_counter(backend, Counter::default())
    }

    /// Clears counters for their next owner.
    pub fn clear_counters(&mut self, counters: &[u32]) -> Result<()> {
        counters.iter().try_for_each(|&counter| self.maps.set_counter(counter, Counter::default()))
    }

    /// Packets that were not forwarded, by reason.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>> {
        self.maps.reasons()
    }
}
