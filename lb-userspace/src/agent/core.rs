//! The agent's state and the one way in which it changes: a new configuration, or new knowledge, becomes new maps.
//!
//! One task owns it and does one thing after another. It holds no sockets and no timers; `serve` feeds it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow};
use lb_common::service::ServiceKey;

use super::{AgentOptions, checks::Checks, hops::Hops, interfaces::Interfaces};
use crate::{
    config::{Config, Service},
    dataplane::{
        apply::{Dataplane, ServiceOrder},
        plan::{Desired, Plan},
    },
    fleet::{
        ids::{Ids, ServiceIds},
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
    pub(super) refused: Option<Config>,
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
pub(super) struct Computed {
    pub(super) key: ServiceKey,
    pub(super) desired: Desired,
    pub(super) running: Running,
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

impl Agent {
    /// The addresses of all backends.
    pub(super) fn addresses(config: &Config) -> BTreeSet<IpAddr> {
        config
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| backend.address))
            .collect()
    }

    pub(super) fn compute(&self, config: &Config, ids: &ServiceIds, service: &Service) -> Result<Computed> {
        let known: Vec<_> = service
            .backends
            .iter()
            .map(|backend| {
                let health = self.checks.state(&service.name, &backend.name);
                let hop = self.hops.next_hop(backend.address);
                let sendable =
                    |hop| image::obstacle(&config.node, service.mode, backend.address, hop).is_none();
                (backend, Known { health, reachable: hop.is_some_and(sendable) })
            })
            .collect();
        let was_open = self.services.get(&service.name).is_some_and(|running| running.weights.fail_open);
        let weights = weigh(service.all_down, &known, was_open);
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
    pub(super) fn compute_all(
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
    pub(super) fn removals(&self, config: &Config) -> Vec<ServiceKey> {
        let keys: HashSet<ServiceKey> = config.services.iter().map(image::key).collect();
        self.plane.keys().filter(|key| !keys.contains(key)).copied().collect()
    }

    /// Writes what was computed, as far as that can be done. Names of services that could not be written come back with
    /// the reasons; each of those still is as it was.
    pub(super) fn write(
        &mut self,
        computed: &[(String, Computed)],
        removals: &[ServiceKey],
    ) -> (BTreeMap<ServiceOrder, Plan>, Vec<(String, String)>) {
        let desired: Vec<(ServiceKey, Desired)> =
            computed.iter().map(|(_, computed)| (computed.key, computed.desired.clone())).collect();
        let applied = self.plane.apply(&desired, removals, self.generation);
        let name = |key: ServiceKey| {
            let named =
                computed.iter().find(|(_, computed)| computed.key == key).map(|(name, _)| name.clone());
            named.unwrap_or_else(|| format!("{:?} port {}", key.ip(), key.port))
        };
        let failed = applied.failed.into_iter().map(|(key, error)| (name(key), error)).collect();
        (applied.published, failed)
    }

    /// Brings the maps of some services, and of those that are stale, to what is known now; the configuration stays. What
    /// cannot be written is stale, and tried again with the next tick.
    pub(super) fn refresh(&mut self, touched: &BTreeSet<String>) -> Result<()> {
        self.stale.extend(touched.iter().cloned());
        let removals = self.removals(&self.running);
        let stale = std::mem::take(&mut self.stale);
        let computed = self.compute_all(&self.running, &self.ids, |service| stale.contains(&service.name));
        let mut computed = computed.inspect_err(|_| self.stale.clone_from(&stale))?;
        let (_, failed) = self.write(&computed, &removals);
        computed.retain(|(name, _)| !failed.iter().any(|(stale, _)| stale == name));
        self.remember(computed);
        let Some((name, error)) = failed.first() else { return Ok(()) };
        let error = anyhow!("{} services are not up to date, among them {name}: {error}", failed.len());
        self.stale.extend(failed.into_iter().map(|(name, _)| name));
        Err(error)
    }

    pub(super) fn remember(&mut self, computed: Vec<(String, Computed)>) {
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

    /// Detaches from what the running configuration does not name.
    pub(super) fn drop_interfaces(&mut self) {
        let strays = self.interfaces.strays(&self.running.node.interfaces);
        let dropped =
            strays.and_then(|names| names.iter().try_for_each(|name| self.interfaces.drop_stray(name)));
        if let Err(error) = dropped {
            log::error!("{error:#}");
        }
        self.interfaces.forget(&self.running.node.interfaces);
    }

    fn devices(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<u32> {
        let hops = addresses.iter().filter_map(|address| self.hops.next_hop(*address));
        // The last way that worked may be over an interface that is gone since.
        hops.map(|hop| hop.ifindex)
            .filter(|&ifindex| nix::net::if_::if_indextoname(ifindex).is_ok())
            .collect()
    }

    /// Lets XDP redirect to every interface that these addresses are reached by, besides those that it may.
    pub(super) fn add_devices(&mut self, addresses: &BTreeSet<IpAddr>) {
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
    pub(super) fn services_with(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<String> {
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
