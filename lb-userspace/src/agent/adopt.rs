//! Starting over what an earlier agent left: its numbers, its verdicts, its ways, and no flow moved.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use anyhow::Result;
use lb_common::backend::Backend as Entry;

use super::{
    STATE_FILE,
    checks::Verdicts,
    core::{Agent, Running},
    state::State,
};
use crate::{
    config::Config,
    dataplane::apply::Dataplane,
    fleet::{
        ids::{BackendIds, Found, Ids, NODE_COUNTER},
        image,
        weigh::Weights,
    },
};

impl Agent {
    /// The numbers that the maps use for what `config` names.
    pub(super) fn recover_ids(config: &Config, plane: &Dataplane) -> Ids {
        Ids::recover(config, plane.maps().counters_capacity(), |service| {
            let held = plane.held(&image::key(service))?;
            let backends = held.backends.iter().enumerate().filter_map(|(index, entry)| {
                let numbers = BackendIds { index: index as u16, counter: entry.counter };
                entry.ip().map(|address| (numbers, address))
            });
            Some(Found { counter: held.service.counter, backends: backends.collect() })
        })
    }

    /// What the maps tell of health: backends that own slots were healthy, or, where the service failed open, were not.
    pub(super) fn recover_verdicts(config: &Config, plane: &Dataplane) -> Verdicts {
        let mut verdicts = Verdicts::new();
        for service in &config.services {
            let Some(held) = plane.held(&image::key(service)) else { continue };
            let healthy = held.service.flags & lb_common::service::Service::FAIL_OPEN == 0;
            let owners: HashSet<u16> = held.ring.iter().map(|slot| slot.current).collect();
            let addresses: HashSet<IpAddr> = owners
                .into_iter()
                .filter_map(|index| held.backends.get(usize::from(index)).and_then(Entry::ip))
                .collect();
            let owners = service.backends.iter().filter(|backend| addresses.contains(&backend.address));
            verdicts.extend(owners.map(|backend| ((service.name.clone(), backend.name.clone()), healthy)));
        }
        verdicts
    }

    /// Services that failed open by the maps.
    pub(super) fn recover_open(config: &Config, plane: &Dataplane) -> BTreeMap<String, Running> {
        let open = config.services.iter().filter(|service| {
            let held = plane.held(&image::key(service));
            held.is_some_and(|held| held.service.flags & lb_common::service::Service::FAIL_OPEN != 0)
        });
        let running =
            Running { weights: Weights { fail_open: true, ..Weights::default() }, ..Running::default() };
        open.map(|service| (service.name.clone(), running.clone())).collect()
    }

    /// Counters that the maps name for what is not configured (an earlier agent ended in the middle of a change), each
    /// with the one that inherits its count.
    fn orphan_counters(&self) -> Vec<(u32, u32)> {
        let mut orphans = BTreeSet::new();
        for key in self.plane.keys() {
            let Some(held) = self.plane.held(key) else { continue };
            orphans.insert((NODE_COUNTER, held.service.counter));
            orphans.insert((NODE_COUNTER + 1, held.service.counter + 1));
            let entries = held.backends.iter().filter(|entry| entry.mode().is_some());
            orphans.extend(entries.map(|entry| (NODE_COUNTER, entry.counter)));
        }
        orphans.retain(|(_, counter)| !self.ids.counters().contains(counter));
        orphans.into_iter().collect()
    }

    /// Adds the counts of orphans to their heirs, now that no published entry names them.
    fn inherit(&mut self, orphans: &[(u32, u32)]) -> Result<()> {
        for &(heir, counter) in orphans {
            self.plane.retire_counter(heir, counter)?;
        }
        self.ids.release(&orphans.iter().map(|&(_, counter)| counter).collect::<Vec<_>>());
        Ok(())
    }

    /// The first steps after a start: numbers, ways, checks and maps for the running configuration, then the
    /// interfaces. Over an earlier agent's maps this writes nothing that is not different by now.
    pub(super) async fn begin(&mut self, adopted: bool) -> Result<()> {
        let addresses = Self::addresses(&self.running);
        self.hops.refresh(&addresses).await?;
        let held: Vec<Entry> =
            self.plane.keys().filter_map(|key| self.plane.held(key)).flat_map(|held| held.backends).collect();
        self.hops.adopt(held.into_iter());
        self.checks.set_targets(&self.running).await;
        self.add_devices(&addresses);
        let orphans = self.orphan_counters();
        self.ids.reserve(orphans.iter().map(|&(_, counter)| counter));
        let known = self.ids.counters().clone();
        let (ids, _) = self.ids.update(&self.running)?;
        let fresh: Vec<u32> = ids.counters().difference(&known).copied().collect();
        self.plane.clear_counters(&fresh)?;
        self.ids = ids;
        State::new(self.generation, self.from_file.clone(), self.running.clone())
            .write(&self.options.runtime_dir.join(STATE_FILE))?;
        if !adopted {
            self.check_room(&self.running)?;
        }
        let all: BTreeSet<String> =
            self.running.services.iter().map(|service| service.name.clone()).collect();
        match self.refresh(&all) {
            Err(error) if !adopted => return Err(error),
            Err(error) => log::error!("{error:#}"),
            Ok(()) => self.inherit(&orphans)?,
        }
        self.update_devices(&addresses);
        if adopted {
            // What forwards already must not wait for an interface that is missing at the moment.
            self.keep_interfaces().await;
        } else {
            self.attach_all(&self.running.clone()).await?;
        }
        self.drop_interfaces();
        Ok(())
    }
}
