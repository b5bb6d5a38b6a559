//! What the agent tells: its state, put into the API's words. Reads maps and changes nothing.

use std::{net::IpAddr, time::SystemTime};

use anyhow::Result;
use lb_common::{
    abi,
    address::{self, Family},
    backend::{Backend as Entry, Mode as EntryMode},
    counter::Counter,
    datapath::hash::Flow,
    reason::{Fate, Reason},
    service::ServiceKey,
};

use super::core::{Agent, Running};
use crate::{
    api::{
        ApiError,
        types::{
            BackendCount, BackendView, ConfigFileStatus, ConfigView, HealthKind, HealthView, MapUsage,
            MapUsages, NextHop, Protocol, ReasonCount, RouteQuery, RouteView, SchemaVersion, ServiceCount,
            ServiceView, StatsView, Status, Totals, Verdict,
        },
    },
    config::{Backend, HealthProbe, Mode, Service},
    dataplane::{apply::Usage, nexthop::mac_text},
    fleet::{ids::NODE_COUNTER, image},
    health::TargetId,
};

fn usage(usage: Usage) -> MapUsage {
    MapUsage { used: usage.used.into(), capacity: usage.capacity.into() }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

impl Agent {
    pub(super) fn status(&self) -> Status {
        let usages = self.plane.usage();
        let node =
            nix::unistd::gethostname().map_or_else(|_| String::new(), |name| name.to_string_lossy().into());
        Status {
            schema_version: SchemaVersion,
            node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: abi::LAYOUT_VERSION,
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            generation: self.generation,
            config: ConfigFileStatus {
                path: self.options.config.display().to_string(),
                loaded_at: self.file.loaded_at,
                error: self.file.error.clone(),
                unsaved: self.running != self.from_file,
            },
            interfaces: self.interfaces.status(),
            services: self.running.services.len() as u64,
            backends: self.running.backend_count() as u64,
            backends_usable: self.services.values().map(|running| running.weights.usable() as u64).sum(),
            maps: MapUsages {
                services: usage(usages.services),
                backends: usage(usages.backends),
                ring_slots: usage(usages.ring_slots),
            },
        }
    }

    fn running_of(&self, service: &Service) -> Running {
        self.services.get(&service.name).cloned().unwrap_or_default()
    }

    /// Forwarded and dropped by a service since the maps were made.
    fn totals_of(&self, service: &Service) -> Result<(Counter, Counter)> {
        let Some(ids) = self.ids.service(&service.name) else { return Ok(Default::default()) };
        self.plane.service_totals(ids.counter, &ids.backend_counters())
    }

    fn counter_of(&self, service: &Service, backend: &Backend) -> Result<Counter> {
        let ids = self.ids.service(&service.name).and_then(|ids| ids.backends.get(&backend.name));
        ids.map_or(Ok(Counter::default()), |ids| self.plane.maps().counter(ids.counter))
    }

    pub(super) fn service_views(&self) -> Result<Vec<ServiceView>> {
        self.running.services.iter().map(|service| self.service_view(service)).collect()
    }

    fn service_view(&self, service: &Service) -> Result<ServiceView> {
        let running = self.running_of(service);
        let (forwarded, dropped) = self.totals_of(service)?;
        Ok(ServiceView {
            name: service.name.clone(),
            address: service.address,
            port: service.port,
            protocol: service.protocol,
            mode: service.mode,
            ring_slots: running.ring_slots,
            all_down: service.all_down,
            fail_open: running.weights.fail_open,
            backends_total: service.backends.len() as u32,
            backends_usable: running.weights.usable() as u32,
            packets: forwarded.packets,
            bytes: forwarded.bytes,
            dropped_packets: dropped.packets,
        })
    }

    pub(super) fn backend_views(&self, only: Option<&str>) -> Result<Vec<BackendView>, ApiError> {
        if let Some(name) = only.filter(|name| self.running.service(name).is_none()) {
            return Err(ApiError::no_service(name));
        }
        let services =
            self.running.services.iter().filter(|service| only.is_none_or(|name| name == service.name));
        let mut views = Vec::new();
        for service in services {
            let running = self.running_of(service);
            for (at, backend) in service.backends.iter().enumerate() {
                let slots = running.slots.get(at).copied().unwrap_or(0);
                let counter = self
                    .counter_of(service, backend)
                    .map_err(|error| ApiError::kernel(format!("{error:#}"), ""))?;
                views.push(BackendView {
                    service: service.name.clone(),
                    name: backend.name.clone(),
                    address: backend.address,
                    weight: backend.weight,
                    admin: backend.admin,
                    health: self.checks.state(&service.name, &backend.name),
                    site: backend.site.clone(),
                    effective_weight: running.weights.weights.get(at).copied().unwrap_or(0).into(),
                    slots,
                    share: if running.ring_slots == 0 {
                        0.0
                    } else {
                        f64::from(slots) / f64::from(running.ring_slots)
                    },
                    next_hop: self.next_hop_view(service.mode, backend.address),
                    packets: counter.packets,
                    bytes: counter.bytes,
                });
            }
        }
        Ok(views)
    }

    fn next_hop_view(&self, mode: Mode, address: IpAddr) -> NextHop {
        let Some(hop) = self.hops.next_hop(address) else {
            return NextHop::Unresolved { reason: self.hops.problem(address).unwrap_or_default() };
        };
        match image::obstacle(&self.running.node, mode, address, hop) {
            Some(reason) => NextHop::Unresolved { reason },
            None => NextHop::Resolved {
                interface: nix::net::if_::if_indextoname(hop.ifindex)
                    .map_or_else(|_| hop.ifindex.to_string(), |name| name.to_string_lossy().into()),
                mac: mac_text(&hop.destination_mac),
                mtu: hop.mtu,
            },
        }
    }

    pub(super) fn health_views(&self) -> Vec<HealthView> {
        let statuses = self.checks.statuses();
        let mut views = Vec::new();
        for service in &self.running.services {
            let check = service.health(&self.running.health);
            let (kind, port) = match check.probe {
                HealthProbe::None => (HealthKind::None, None),
                HealthProbe::Tcp { port } => (HealthKind::Tcp, Some(port)),
                HealthProbe::Http { port, .. } => (HealthKind::Http, Some(port)),
            };
            for backend in &service.backends {
                let id = TargetId { service: service.name.clone(), backend: backend.name.clone() };
                let status = statuses.get(&id);
                let last = status.and_then(|status| status.last.as_ref());
                views.push(HealthView {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                    address: backend.address,
                    kind,
                    port,
                    state: self.checks.state(&service.name, &backend.name),
                    since: status.map(|status| seconds(status.since)),
                    last_check: last.map(|last| seconds(last.at)),
                    last_result: last.map(|last| {
                        last.result.as_ref().map_or_else(ToString::to_string, |()| "ok".to_owned())
                    }),
                    latency_ms: last.map(|last| last.latency.as_secs_f64() * 1000.0),
                    consecutive: status.map_or(0, |status| {
                        i64::from(status.consecutive_successes) - i64::from(status.consecutive_failures)
                    }),
                });
            }
        }
        views
    }

    pub(super) fn stats(&self) -> Result<StatsView> {
        let reasons = self.plane.reasons()?;
        let sum = |fate: Fate| {
            reasons.iter().filter(|(reason, _)| reason.fate() == fate).map(|(_, n)| n).sum::<u64>()
        };
        let mut totals =
            Totals { passed_packets: sum(Fate::Pass), dropped_packets: sum(Fate::Drop), ..Totals::default() };
        let former = self.plane.maps().counter(NODE_COUNTER)?;
        totals.forwarded_packets = former.packets;
        totals.forwarded_bytes = former.bytes;
        let (mut services, mut backends) = (Vec::new(), Vec::new());
        for service in &self.running.services {
            let (forwarded, dropped) = self.totals_of(service)?;
            totals.forwarded_packets += forwarded.packets;
            totals.forwarded_bytes += forwarded.bytes;
            services.push(ServiceCount {
                service: service.name.clone(),
                packets: forwarded.packets,
                bytes: forwarded.bytes,
                dropped_packets: dropped.packets,
            });
            for backend in &service.backends {
                let counter = self.counter_of(service, backend)?;
                backends.push(BackendCount {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                    packets: counter.packets,
                    bytes: counter.bytes,
                });
            }
        }
        totals.received_packets = totals.forwarded_packets + totals.passed_packets + totals.dropped_packets;
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(StatsView {
            schema_version: SchemaVersion,
            time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            totals,
            reasons: reasons.into_iter().map(|(reason, packets)| reason_count(reason, packets)).collect(),
            services,
            backends,
        })
    }

    pub(super) fn config_view(&self) -> ConfigView {
        ConfigView {
            schema_version: SchemaVersion,
            generation: self.generation,
            config: self.running.clone(),
        }
    }

    /// Where a flow would go, read from the maps as the XDP program reads them.
    pub(super) fn route(&self, query: &RouteQuery) -> Result<RouteView, ApiError> {
        if query.source.is_ipv4() != query.destination.is_ipv4() {
            return Err(ApiError::new(
                crate::api::ErrorKind::Invalid,
                "source and destination are of different families",
                "a flow has two IPv4 addresses or two IPv6 addresses",
            ));
        }
        let fail = |error: anyhow::Error| ApiError::kernel(format!("{error:#}"), "");
        let blank = |verdict: Verdict, reason: String| RouteView {
            schema_version: SchemaVersion,
            verdict,
            reason,
            service: None,
            hash: None,
            slot: None,
            backend: None,
            encapsulation: None,
            next_hop: None,
        };
        let refuse = |reason: Reason| {
            let verdict = if reason.fate() == Fate::Pass { Verdict::Pass } else { Verdict::Drop };
            blank(verdict, format!("{}: {}", reason.name(), reason.text()))
        };
        let protocol = query.protocol.number();
        let exact = ServiceKey::new(query.destination, Some(query.destination_port), protocol);
        let any = ServiceKey::new(query.destination, None, protocol);
        let found = if query.destination_port == ServiceKey::ANY_PORT {
            None
        } else {
            [exact, any].into_iter().find_map(|key| Some((key, self.plane.held(&key)?)))
        };
        let Some((key, held)) = found else { return Ok(refuse(Reason::NotAService)) };
        let service = self.running.services.iter().find(|service| image::key(service) == key);
        let name = service.map(|service| service.name.clone());
        if held.ring.is_empty() {
            return Ok(RouteView { service: name, ..refuse(Reason::NoBackend) });
        }
        let Some(node) = self.plane.maps().node().map_err(fail)? else {
            return Ok(refuse(Reason::NotConfigured));
        };
        let flow = flow(query);
        let hash = flow.hash(&node.flow_key);
        let slot = hash.slot(held.ring.len() as u32);
        let owner = held.ring[slot as usize].current;
        let entry = held.backends.get(usize::from(owner)).copied().unwrap_or_default();
        let ids = name.as_deref().and_then(|name| self.ids.service(name));
        let backend = ids.and_then(|ids| ids.backends.iter().find(|(_, ids)| ids.index == owner));
        let reason = if entry.resolved() {
            format!("slot {slot} of {} is owned by this backend", held.ring.len())
        } else {
            format!("{}: {}", Reason::NoNextHop.name(), Reason::NoNextHop.text())
        };
        let verdict = if entry.resolved() { Verdict::Forward } else { Verdict::Drop };
        Ok(RouteView {
            service: name,
            hash: Some(hash.0),
            slot: Some(slot),
            backend: backend.map(|(name, _)| name.clone()),
            encapsulation: describe(&entry, hash.entropy()),
            next_hop: service
                .zip(entry.ip())
                .map(|(service, address)| self.next_hop_view(service.mode, address)),
            ..blank(verdict, reason)
        })
    }
}

fn reason_count(reason: Reason, packets: u64) -> ReasonCount {
    let verdict = if reason.fate() == Fate::Pass { Verdict::Pass } else { Verdict::Drop };
    ReasonCount { reason: reason.name().to_owned(), verdict, packets, description: reason.text().to_owned() }
}

fn flow(query: &RouteQuery) -> Flow {
    let (family, source) = address::to_bytes(query.source);
    Flow {
        family,
        protocol: match query.protocol {
            Protocol::Tcp | Protocol::Udp => query.protocol.number(),
        },
        source,
        destination: address::to_bytes(query.destination).1,
        source_port: query.source_port,
        destination_port: query.destination_port,
    }
}

/// The outer packet in words: `ipip 10.200.0.7 -> 10.0.0.11`.
fn describe(entry: &Entry, entropy: u32) -> Option<String> {
    let (family, mode) = (entry.family()?, entry.mode()?);
    let destination = address::from_bytes(family, entry.destination);
    let mode = match mode {
        EntryMode::L2 => return Some(format!("l2 to {destination}")),
        EntryMode::Ipip => "ipip",
        EntryMode::Gue => "gue",
    };
    let mut source = entry.source;
    let last = match family {
        Family::V4 => 0..4,
        Family::V6 => 12..16,
    };
    let mut word = [0; 4];
    word.copy_from_slice(&source[last.clone()]);
    let word = u32::from_be_bytes(word) | entropy & entry.entropy_mask;
    source[last].copy_from_slice(&word.to_be_bytes());
    Some(format!("{mode} {} -> {destination}", address::from_bytes(family, source)))
}
