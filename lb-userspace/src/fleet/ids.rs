//! Numbers in the maps: a backend's index in its service's rings, and counters.
//!
//! A number stays with its name for as long as the name is configured. It may be given to another as soon as it is
//! free: every slot is settled, so no ring names an index that has left.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result};

use crate::config::{Config, Service};

/// The numbers of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendIds {
    /// Its index in slots and in the service's backend region.
    pub index: u16,
    /// Its counter.
    pub counter: u32,
}

/// The numbers of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceIds {
    /// The first of its two counters.
    pub counter: u32,
    /// Its backends by name.
    pub backends: BTreeMap<String, BackendIds>,
}

impl ServiceIds {
    /// Elements of the backend region: one more than the highest index.
    pub fn region(&self) -> usize {
        self.backends.values().map(|ids| usize::from(ids.index) + 1).max().unwrap_or(0)
    }

    /// The counters of all its backends.
    pub fn backend_counters(&self) -> Vec<u32> {
        self.backends.values().map(|ids| ids.counter).collect()
    }
}

/// What an earlier agent left in the maps of one service, as far as numbers go.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The service's counter.
    pub counter: u32,
    /// Index, counter and address of each backend entry in use.
    pub backends: Vec<(BackendIds, IpAddr)>,
}

/// The numbers of all services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    services: BTreeMap<String, ServiceIds>,
    /// Counters with an owner.
    counters: BTreeSet<u32>,
    /// Where the search for a free counter begins; none below is free.
    lowest: u32,
    capacity: u32,
}

/// The first of the node's own two counters: what was forwarded, and dropped, for services that are gone.
pub const NODE_COUNTER: u32 = 0;

/// What a change of configuration set free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Counters without an owner, each with the one that inherits its count, so that no total ever falls.
    pub counters: Vec<(u32, u32)>,
}

impl Ids {
    /// No names yet, `counters` numbers to give.
    pub fn new(counters: u32) -> Self {
        let mut ids = Self { capacity: counters, ..Self::default() };
        ids.claim(NODE_COUNTER, 2);
        ids
    }

    /// The numbers that the maps already use for what is configured: a backend is recognised by its address.
    pub fn recover(config: &Config, counters: u32, found: impl Fn(&Service) -> Option<Found>) -> Self {
        let mut ids = Self::new(counters);
        for service in &config.services {
            let Some(mut found) = found(service) else { continue };
            if !ids.claim(found.counter, 2) {
                continue;
            }
            let mut known = ServiceIds { counter: found.counter, ..ServiceIds::default() };
            for backend in &service.backends {
                let Some(at) = found.backends.iter().position(|(_, address)| *address == backend.address)
                else {
                    continue;
                };
                let (numbers, _) = found.backends.swap_remove(at);
                if ids.claim(numbers.counter, 1) {
                    known.backends.insert(backend.name.clone(), numbers);
                }
            }
            ids.services.insert(service.name.clone(), known);
        }
        ids
    }

    /// Takes `count` counters from `first` on; false, and none taken, where one is taken or there are not so many.
    fn claim(&mut self, first: u32, count: u32) -> bool {
        let Some(end) = first.checked_add(count).filter(|&end| end <= self.capacity) else { return false };
        let free = (first..end).all(|counter| !self.counters.contains(&counter));
        if free {
            self.counters.extend(first..end);
        }
        free
    }

    /// The numbers of a service.
    pub fn service(&self, name: &str) -> Option<&ServiceIds> {
        self.services.get(name)
    }

    /// Takes counters that the maps name for what is not configured, so that nobody else gets them before their counts
    /// are inherited.
    pub fn reserve(&mut self, counters: impl IntoIterator<Item = u32>) {
        self.counters.extend(counters.into_iter().filter(|&counter| counter < self.capacity));
    }

    /// Gives reserved counters back.
    pub fn release(&mut self, counters: &[u32]) {
        for counter in counters {
            self.counters.remove(counter);
            self.lowest = self.lowest.min(*counter);
        }
    }

    /// All counters with an owner.
    pub const fn counters(&self) -> &BTreeSet<u32> {
        &self.counters
    }

    /// The numbers for `config`: what is known keeps its numbers, what is new gets the lowest free ones, what is gone
    /// is released. Counters that are new must be cleared before they count.
    pub fn update(&self, config: &Config) -> Result<(Self, Released)> {
        let mut next = self.clone();
        let mut released = Released::default();
        let wanted: BTreeMap<&str, &Service> = config.services.iter().map(|s| (s.name.as_str(), s)).collect();
        // First everything that goes, so that what comes finds the lowest numbers.
        let known: Vec<String> = next.services.keys().cloned().collect();
        for name in known {
            let service = wanted.get(name.as_str());
            let Some(ids) = next.services.get_mut(&name) else { continue };
            let gone: Vec<String> = ids
                .backends
                .keys()
                .filter(|backend| service.is_none_or(|service| service.backend(backend).is_none()))
                .cloned()
                .collect();
            let counter = ids.counter;
            let gone: Vec<u32> =
                gone.iter().filter_map(|b| ids.backends.remove(b)).map(|ids| ids.counter).collect();
            if service.is_some() {
                released.counters.extend(gone.iter().map(|&backend| (counter, backend)));
            } else {
                released.counters.extend(gone.iter().chain(&[counter]).map(|&gone| (NODE_COUNTER, gone)));
                released.counters.push((NODE_COUNTER + 1, counter + 1));
                next.services.remove(&name);
            }
        }
        for service in &config.services {
            next.add(service)?;
        }
        for (_, counter) in &released.counters {
            next.counters.remove(counter);
            next.lowest = next.lowest.min(*counter);
        }
        Ok((next, released))
    }

    fn add(&mut self, service: &Service) -> Result<()> {
        if !self.services.contains_key(&service.name) {
            let counter = self.free_counters(2)?;
            self.services.insert(service.name.clone(), ServiceIds { counter, ..ServiceIds::default() });
        }
        let taken: BTreeSet<u16> =
            self.services[&service.name].backends.values().map(|ids| ids.index).collect();
        let mut free = (0..=u16::MAX).filter(|index| !taken.contains(index));
        for backend in &service.backends {
            if self.services[&service.name].backends.contains_key(&backend.name) {
                continue;
            }
            let counter = self.free_counters(1)?;
            let index = free
                .next()
                .with_context(|| format!("service {:?} has more than 65,536 backends", service.name))?;
            let ids = self.services.entry(service.name.clone()).or_default();
            ids.backends.insert(backend.name.clone(), BackendIds { index, counter });
        }
        Ok(())
    }

    fn free_counters(&mut self, count: u32) -> Result<u32> {
        let mut first = self.lowest;
        while let Some(taken) =
            (first..first.saturating_add(count)).find(|counter| self.counters.contains(counter))
        {
            first = taken + 1;
        }
        anyhow::ensure!(
            first.saturating_add(count) <= self.capacity,
            "no counter is left of {}: raise limits.backends or limits.services, then `wattline dataplane clean` and \
             start the agent again",
            self.capacity
        );
        self.counters.extend(first..first + count);
        while self.counters.contains(&self.lowest) {
            self.lowest += 1;
        }
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Backend, Port, Protocol};

    fn config(services: &[(&str, &[u8])]) -> Config {
        let services = services.iter().map(|(name, backends)| {
            let mut service =
                Service::new(*name, "192.0.2.1".parse().unwrap(), Port::Number(80), Protocol::Tcp);
            service.backends =
                backends.iter().map(|n| Backend::new(format!("b{n}"), [10, 0, 0, *n].into())).collect();
            service
        });
        Config { services: services.collect(), ..Config::default() }
    }

    fn all_counters(ids: &Ids) -> Vec<u32> {
        let mut counters: Vec<u32> = ids
            .services
            .values()
            .flat_map(|s| [s.counter, s.counter + 1].into_iter().chain(s.backend_counters()))
            .collect();
        counters.sort_unstable();
        counters
    }

    #[test]
    fn names_keep_their_numbers() {
        let (first, _) = Ids::new(100).update(&config(&[("a", &[1, 2, 3]), ("b", &[1])])).unwrap();
        let (second, released) = first.update(&config(&[("a", &[3, 4, 1]), ("c", &[9])])).unwrap();
        for name in ["b1", "b3"] {
            assert_eq!(
                first.service("a").unwrap().backends[name],
                second.service("a").unwrap().backends[name]
            );
        }
        assert_eq!(second.service("a").unwrap().backends["b4"].index, 1, "the index of the one that left");
        let (a, b) = (first.service("a").unwrap(), first.service("b").unwrap());
        let gone = [
            (a.counter, a.backends["b2"].counter),
            (NODE_COUNTER, b.backends["b1"].counter),
            (NODE_COUNTER, b.counter),
            (NODE_COUNTER + 1, b.counter + 1),
        ];
        assert_eq!(released.counters, gone);
        let counters = all_counters(&second);
        assert!(counters.windows(2).all(|pair| pair[0] < pair[1]), "{counters:?}");
        // What was released in this step is cleared only after it: nobody new may count on it yet.
        assert!(released.counters.iter().all(|(_, gone)| !counters.contains(gone)));
    }

    #[test]
    fn running_out_is_an_error_and_changes_nothing() {
        let (ids, _) = Ids::new(7).update(&config(&[("a", &[1, 2, 3])])).unwrap();
        assert!(
            ids.update(&config(&[("a", &[1, 2, 3, 4])])).unwrap_err().to_string().contains("raise limits")
        );
        let (ids, _) = ids.update(&config(&[])).unwrap();
        assert_eq!(all_counters(&ids.update(&config(&[("b", &[1, 2, 3])])).unwrap().0), [2, 3, 4, 5, 6]);
    }

    #[test]
    fn recovers_by_address_what_the_maps_hold() {
        let configured = config(&[("a", &[1, 2, 3])]);
        let (ids, _) = Ids::new(20).update(&configured).unwrap();
        let before = ids.service("a").unwrap().clone();
        let found = Found {
            counter: before.counter,
            backends: configured.services[0]
                .backends
                .iter()
                .map(|b| (before.backends[&b.name], b.address))
                .collect(),
        };
        let recovered = Ids::recover(&configured, 20, |_| Some(found.clone()));
        assert_eq!(recovered.service("a"), Some(&before));
        let (updated, released) = recovered.update(&configured).unwrap();
        assert_eq!((updated.service("a"), released), (Some(&before), Released::default()));
    }
}
