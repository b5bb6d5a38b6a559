//! The agent's state and the one way in which it changes: a new configuration, or new knowledge, becomes new maps.
//!
//! One task owns it and does one thing after another. It holds no sockets and no timers; `serve` feeds it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use lb_common::{backend::Backend as Entry, service::ServiceKey};

use super::{AgentOptions, STATE_FILE, checks::Checks, hops::Hops, interfaces::Interfaces, state::State};
use crate::{
    api::{
        ApiError, Change, ErrorKind,
        types::{ApplyResult, MovedSlots, SchemaVersion},
    },
    config::{Config, ConfigDiff, Service},
    dataplane::{
        apply::{Dataplane, ServiceOrder},
        plan::{self, Desired},
    },
    fleet::{
        ids::{Found, Ids, ServiceIds},
        image,
        weigh::{Known, Weights, weigh},
    },
};

/// A service as its maps were last computed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Running {
    /// Weights in the ring, in the order of the configuration's backends.
    pub(super) weights: Weights,
    /// Slots of each backend, in the same order.
    pub(super) slots: Vec<u32>,
    /// Slots of the ring.
    pub(super) ring_slots: u32,
}

/// The configuration file, as last read.
#[derive(Clone, Debug, Default)]
pub(super) struct FileStatus {
    /// Seconds since 1970.
    pub(super) loaded_at: Option<u64>,
    /// Why it was refused.
    pub(super) error: Option<String>,
    /// What was refused although it is valid: something else stood in the way.
    refused: Option<Config>,
}

impl FileStatus {
    /// Read just now, and nothing wrong with it.
    pub(super) fn taken() -> Self {
        Self { loaded_at: Some(now()), error: None, refused: None }
    }
}

/// The single owner of everything.
pub(super) struct Agent {
    pub(super) options: AgentOptions,
    pub(super) started: Instant,
    pub(super) running: Config,
    pub(super) from_file: Config,
    pub(super) file: FileStatus,
    pub(super) generation: u64,
    pub(super) ids: Ids,
    pub(super) plane: Dataplane,
    pub(super) interfaces: Interfaces,
    pub(super) hops: Hops,
    pub(super) checks: Checks,
    pub(super) services: BTreeMap<String, Running>,
    /// Services whose maps could not be brought up to date, to be tried again.
    pub(super) stale: BTreeSet<String>,
}

/// A service, computed: what its maps should hold and what to tell people.
struct Computed {
    key: ServiceKey,
    desired: Desired,
    running: Running,
}

/// A change, worked out but not made.
struct Draft {
    config: Config,
    ids: Ids,
    released: crate::fleet::ids::Released,
    computed: Vec<(String, Computed)>,
    removals: Vec<ServiceKey>,
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

fn kernel(error: &anyhow::Error) -> ApiError {
    ApiError::kernel(format!("{error:#}"), "")
}

impl Agent {
    /// The numbers that the maps use for what `config` names.
    pub(super) fn recover_ids(config: &Config, plane: &Dataplane) -> Ids {
        Ids::recover(config, plane.maps().counters_capacity(), |service| {
            let held = plane.held(&image::key(service))?;
            let backends = held.backends.iter().enumerate().filter_map(|(index, entry)| {
                let numbers = crate::fleet::ids::BackendIds { index: index as u16, counter: entry.counter };
                entry.ip().map(|address| (numbers, address))
            });
            Some(Found { counter: held.service.counter, backends: backends.collect() })
        })
    }

    /// Backends that take packets by the maps of an earlier agent.
    pub(super) fn recover_health(config: &Config, plane: &Dataplane) -> HashSet<(String, String)> {
        let mut healthy = HashSet::new();
        for service in &config.services {
            let Some(held) = plane.held(&image::key(service)) else { continue };
            let owners: HashSet<u16> = held.ring.iter().map(|slot| slot.current).collect();
            let addresses: HashSet<IpAddr> = owners
                .into_iter()
                .filter_map(|index| held.backends.get(usize::from(index)).and_then(Entry::ip))
                .collect();
            let names = service.backends.iter().filter(|backend| addresses.contains(&backend.address));
            healthy.extend(names.map(|backend| (service.name.clone(), backend.name.clone())));
        }
        healthy
    }

    /// The addresses of all backends.
    pub(super) fn addresses(config: &Config) -> BTreeSet<IpAddr> {
        config
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| backend.address))
            .collect()
    }

    fn compute(&self, config: &Config, ids: &ServiceIds, service: &Service) -> Result<Computed> {
        let known: Vec<_> = service
            .backends
            .iter()
            .map(|backend| {
                let health = self.checks.state(&service.name, &backend.name);
                (backend, Known { health, reachable: self.hops.next_hop(backend.address).is_some() })
            })
            .collect();
        let weights = weigh(service.all_down, &known);
        let desired =
            image::desired(&config.node, service, ids, &weights, |address| self.hops.next_hop(address))?;
        let mut by_index = vec![0u32; desired.backends.len()];
        for &owner in &desired.ring {
            by_index[usize::from(owner)] += 1;
        }
        let slots =
            service.backends.iter().map(|b| by_index[usize::from(ids.backends[&b.name].index)]).collect();
        let running = Running { weights, slots, ring_slots: desired.ring.len() as u32 };
        Ok(Computed { key: image::key(service), desired, running })
    }

    /// The services of `config` that are `touched`, computed.
    fn compute_all(
        &self,
        config: &Config,
        ids: &Ids,
        touched: impl Fn(&Service) -> bool,
    ) -> Result<Vec<(String, Computed)>> {
        let services = config.services.iter().filter(|service| touched(service));
        let computed = services.map(|service| {
            let numbers = ids.service(&service.name).context("a service has no numbers")?;
            Ok((service.name.clone(), self.compute(config, numbers, service)?))
        });
        computed.collect()
    }

    /// Keys in the maps that `config` does not name.
    fn removals(&self, config: &Config) -> Vec<ServiceKey> {
        let keys: HashSet<ServiceKey> = config.services.iter().map(image::key).collect();
        self.plane.keys().filter(|key| !keys.contains(key)).copied().collect()
    }

    fn check_room(&self, config: &Config) -> Result<()> {
        let size = |service: &Service| (service.backends.len() as u64, image::ring_slots(service).into());
        self.plane.check_room(&config.services.iter().map(size).collect::<Vec<_>>())
    }

    /// Works out what a change to `config` takes.
    fn draft(&self, config: Config) -> Result<Draft> {
        let (ids, released) = self.ids.update(&config)?;
        self.check_room(&config)?;
        let everything = config.node != self.running.node;
        let computed = self.compute_all(&config, &ids, |service| {
            everything || self.running.service(&service.name) != Some(service)
        })?;
        let removals = self.removals(&config);
        Ok(Draft { config, ids, released, computed, removals })
    }

    fn moved(&self, draft: &Draft) -> Vec<MovedSlots> {
        let moved = draft.computed.iter().filter_map(|(name, computed)| {
            let moved = plan::plan(self.plane.held(&computed.key).as_ref(), &computed.desired).moved_slots;
            (moved > 0).then(|| MovedSlots {
                service: name.clone(),
                moved,
                total: computed.running.ring_slots,
            })
        });
        moved.collect()
    }

    /// Writes what was worked out. On failure the maps may hold a part of it, each service whole.
    fn write(
        &mut self,
        computed: &[(String, Computed)],
        removals: &[ServiceKey],
    ) -> Result<BTreeMap<ServiceOrder, u32>> {
        let desired: Vec<(ServiceKey, Desired)> =
            computed.iter().map(|(_, computed)| (computed.key, computed.desired.clone())).collect();
        Ok(self.plane.apply(&desired, removals, self.generation)?.moved_slots)
    }

    /// Brings the maps of some services to what is known now; the configuration stays. What cannot be written is tried
    /// again with the next tick.
    pub(super) fn refresh(&mut self, touched: &BTreeSet<String>) -> Result<()> {
        self.stale.extend(touched.iter().cloned());
        let computed =
            self.compute_all(&self.running, &self.ids, |service| self.stale.contains(&service.name))?;
        self.write(&computed, &[])?;
        self.stale.clear();
        self.remember(computed);
        Ok(())
    }

    fn remember(&mut self, computed: Vec<(String, Computed)>) {
        for (name, Computed { running, .. }) in computed {
            let before = self.services.insert(name.clone(), running.clone()).unwrap_or_default();
            if running.weights.fail_open && !before.weights.fail_open {
                log::error!(
                    "service {name}: no backend is usable; sending to all of them (all_down = \"open\")"
                );
            }
            if running.ring_slots == 0 && before.ring_slots != 0 {
                log::error!("service {name}: no backend may take packets; dropping them");
            }
        }
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
        let removals = self.removals(&self.running);
        let computed = self.compute_all(&self.running, &self.ids, |_| true)?;
        self.write(&computed, &removals)?;
        self.remember(computed);
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

    /// Makes `config` the running configuration, or says why not; then the old one runs on.
    pub(super) async fn change(
        &mut self,
        config: Config,
        if_generation: Option<u64>,
        dry_run: bool,
        from_file: bool,
    ) -> Result<ApplyResult, ApiError> {
        if let Some(demanded) = if_generation.filter(|&demanded| demanded != self.generation) {
            return Err(ApiError::wrong_generation(demanded, self.generation));
        }
        config.validate()?;
        self.check_fixed(&config)?;
        let diff = ConfigDiff::between(&self.running, &config);
        let changed = !diff.is_empty();
        if !changed && !from_file {
            return Ok(self.result(diff, dry_run, Vec::new()));
        }
        let mut addresses = Self::addresses(&config);
        addresses.extend(Self::addresses(&self.running));
        let moved = self.hops.refresh(&addresses).await.map_err(|error| kernel(&error))?;
        // Whatever becomes of this change: what was just learnt must reach the services that run.
        self.stale.extend(self.services_with(&moved));
        if dry_run {
            let draft = self.draft(config).map_err(|error| kernel(&error))?;
            return Ok(self.result(diff, true, self.moved(&draft)));
        }
        let before = self.interfaces.status().into_iter().map(|status| status.name).collect::<Vec<_>>();
        if let Err(error) = self.attach_all(&config).await {
            self.detach_new(&before);
            self.keep_interfaces().await;
            return Err(kernel(&error));
        }
        let healthy = self.checks.healthy();
        self.checks.set_targets(&config).await;
        // Before any ring names a backend behind a new interface.
        self.add_devices(&addresses);
        match self.commit(config, from_file) {
            Ok(moved) => {
                if let Err(error) = self.refresh(&BTreeSet::new()) {
                    log::error!("following routes and neighbours: {error:#}");
                }
                self.drop_interfaces();
                self.update_devices(&Self::addresses(&self.running));
                Ok(self.result(diff, false, moved))
            }
            Err(error) => {
                let running = self.running.clone();
                self.checks.adopt(healthy);
                self.checks.set_targets(&running).await;
                self.detach_new(&before);
                self.keep_interfaces().await;
                if let Err(again) = self.go_back() {
                    log::error!("going back to the running configuration: {again:#}");
                }
                Err(kernel(&error))
            }
        }
    }

    /// Brings every service back to the running configuration after a change failed half-way.
    fn go_back(&mut self) -> Result<()> {
        let removals = self.removals(&self.running);
        let computed = self.compute_all(&self.running, &self.ids, |_| true)?;
        self.write(&computed, &removals)?;
        Ok(())
    }

    /// What cannot change while maps and flows exist.
    fn check_fixed(&self, config: &Config) -> Result<(), ApiError> {
        if config.node.flow_hash_key != self.running.node.flow_hash_key {
            return Err(ApiError::new(
                ErrorKind::Invalid,
                "node.flow_hash_key cannot change while the data plane runs: it would move every flow",
                "stop the agent, `wattline dataplane clean`, start it again",
            ));
        }
        if config.limits != self.running.limits {
            log::warn!(
                "limits take effect when the maps are made anew: stop, `wattline dataplane clean`, start"
            );
        }
        Ok(())
    }

    /// The write itself: memory first, then maps, then numbers.
    fn commit(&mut self, config: Config, from_file: bool) -> Result<Vec<MovedSlots>> {
        let draft = self.draft(config)?;
        let file = if from_file { draft.config.clone() } else { self.from_file.clone() };
        let state_path = self.options.runtime_dir.join(STATE_FILE);
        State::new(self.generation + 1, file.clone(), draft.config.clone()).write(&state_path)?;
        let moved = self.commit_maps(&draft).inspect_err(|_| {
            let old = State::new(self.generation, self.from_file.clone(), self.running.clone());
            if let Err(error) = old.write(&state_path) {
                log::error!("{error:#}");
            }
        })?;
        self.generation += 1;
        self.running = draft.config;
        self.from_file = file;
        self.ids = draft.ids;
        self.remember(draft.computed);
        let running = &self.running;
        self.services.retain(|name, _| running.service(name).is_some());
        Ok(moved)
    }

    fn commit_maps(&mut self, draft: &Draft) -> Result<Vec<MovedSlots>> {
        if let Some(mut node) = self.plane.maps().node()? {
            node.gue_port = draft.config.node.gue_port;
            self.plane.set_node(node)?;
        }
        let fresh: Vec<u32> = draft.ids.counters().difference(self.ids.counters()).copied().collect();
        self.plane.clear_counters(&fresh)?;
        let moved = self.write(&draft.computed, &draft.removals)?;
        for &(heir, counter) in &draft.released.counters {
            self.plane.retire_counter(heir, counter)?;
        }
        let names = draft.computed.iter().filter_map(|(name, computed)| {
            let slots = moved.get(&ServiceOrder(computed.key)).copied().filter(|&slots| slots > 0)?;
            Some(MovedSlots { service: name.clone(), moved: slots, total: computed.running.ring_slots })
        });
        Ok(names.collect())
    }

    fn result(&self, diff: ConfigDiff, dry_run: bool, moved_slots: Vec<MovedSlots>) -> ApplyResult {
        ApplyResult {
            schema_version: SchemaVersion,
            generation: self.generation,
            changed: !diff.is_empty(),
            dry_run,
            diff,
            moved_slots,
        }
    }

    /// One edit of the running configuration.
    pub(super) async fn mutate(
        &mut self,
        change: &Change,
        if_generation: Option<u64>,
        dry_run: bool,
    ) -> Result<ApplyResult, ApiError> {
        let mut config = self.running.clone();
        change.apply(&mut config)?;
        self.change(config, if_generation, dry_run, false).await
    }

    /// Takes a configuration file's new content. One that was refused is tried again only when somebody `insists`: its
    /// directory stirs for many reasons, and trying may disturb an interface.
    pub(super) async fn reload(&mut self, insists: bool) {
        let loaded = crate::config::load(&self.options.config);
        let refused = loaded.as_ref().ok().cloned();
        let outcome = match loaded {
            Ok(config) if !insists && self.file.refused.as_ref() == Some(&config) => return,
            Ok(config) if config == self.from_file => {
                self.file = FileStatus::taken();
                return;
            }
            Ok(config) => self.change(config, None, false, true).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(result) => {
                self.file = FileStatus::taken();
                log::info!("{}: generation {} runs", self.options.config.display(), result.generation);
            }
            Err(error) => {
                if self.file.error.as_ref() != Some(&error) {
                    log::error!(
                        "the configuration file is refused; generation {} runs on:\n{error}",
                        self.generation
                    );
                }
                self.file = FileStatus { loaded_at: Some(now()), error: Some(error), refused };
            }
        }
    }

    /// Writes the running configuration to its file.
    pub(super) fn save(&mut self) -> Result<()> {
        let path = &self.options.config;
        crate::config::file::write_atomic(path, self.running.to_toml().as_bytes())
            .with_context(|| format!("writing {}", path.display()))?;
        self.from_file = self.running.clone();
        self.file = FileStatus::taken();
        State::new(self.generation, self.from_file.clone(), self.running.clone())
            .write(&self.options.runtime_dir.join(STATE_FILE))
    }

    /// Attaches to every interface of a configuration.
    pub(super) async fn attach_all(&mut self, config: &Config) -> Result<()> {
        for name in &config.node.interfaces {
            self.interfaces.attach(self.hops.netlink(), name, config.node.xdp_mode).await?;
        }
        Ok(())
    }

    /// Brings the interfaces to what the running configuration says; what cannot be is reported in the status. Also the
    /// way back from a refused change, which may have tried another mode.
    pub(super) async fn keep_interfaces(&mut self) {
        let node = &self.running.node;
        self.interfaces.keep(self.hops.netlink(), &node.interfaces, node.xdp_mode).await;
    }

    fn detach_new(&mut self, before: &[String]) {
        for status in self.interfaces.status() {
            if !before.contains(&status.name)
                && let Err(error) = self.interfaces.detach(&status.name)
            {
                log::error!("{error:#}");
            }
        }
    }

    /// Detaches from what the running configuration does not name.
    pub(super) fn drop_interfaces(&mut self) {
        let strays = self.interfaces.strays(&self.running.node.interfaces);
        let dropped =
            strays.and_then(|names| names.iter().try_for_each(|name| self.interfaces.drop_stray(name)));
        if let Err(error) = dropped {
            log::error!("{error:#}");
        }
    }

    fn devices(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<u32> {
        addresses.iter().filter_map(|address| self.hops.next_hop(*address)).map(|hop| hop.ifindex).collect()
    }

    /// Lets XDP redirect to every interface that these addresses are reached by, besides those that it may.
    fn add_devices(&mut self, addresses: &BTreeSet<IpAddr>) {
        if let Err(error) = self.plane.add_devices(&self.devices(addresses)) {
            log::error!("{error:#}");
        }
    }

    /// Lets XDP redirect to every interface that these addresses are reached by, and to no other: only when no backend's
    /// entry names one of those any more.
    pub(super) fn update_devices(&mut self, addresses: &BTreeSet<IpAddr>) {
        if let Err(error) = self.plane.set_devices(&self.devices(addresses)) {
            log::error!("{error:#}");
        }
    }

    /// The running services with a backend at one of these addresses.
    fn services_with(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<String> {
        let services = self.running.services.iter();
        services
            .filter(|service| service.backends.iter().any(|backend| addresses.contains(&backend.address)))
            .map(|service| service.name.clone())
            .collect()
    }

    /// Asks the kernel anew about every backend's next hop, and brings the services of those that changed up to date.
    pub(super) async fn follow_routes(&mut self) -> Result<()> {
        let addresses = Self::addresses(&self.running);
        let changed = self.hops.refresh(&addresses).await?;
        if changed.is_empty() {
            return Ok(());
        }
        self.add_devices(&addresses);
        self.refresh(&self.services_with(&changed))?;
        self.update_devices(&addresses);
        Ok(())
    }
}
