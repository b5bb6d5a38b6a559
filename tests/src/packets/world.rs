//! A node with a service of every kind: forwarding mode, families, protocol, way out, and everything that can be wrong.
//!
//! The tables come from a configuration by the code that the agent uses; only what a sound agent never writes is broken
//! by hand afterwards. Frames come in by the interface [`INGRESS`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::{
    datapath::Verdict,
    host::MemoryTables,
    node::Node,
    ring::Slot,
    service::{Service as Entry, ServiceKey},
};
use lb_userspace::{
    agent::flow_key,
    config::{Backend, Config, FlowHashKey, HealthKind, Mode, Port, Protocol, Service},
    dataplane::nexthop::NextHop,
    fleet::{ids::Ids, image, weigh::Weights},
};

/// Where frames come in: the number of `lo`, which a test run in the kernel names too.
pub const INGRESS: u32 = 1;
/// An interface that is not in the device map, and that no kernel has.
pub const NO_DEVICE: u32 = 4_000_000;
/// MTU towards ordinary backends.
pub const MTU: u16 = 1500;
/// MTU towards backends of the services called "narrow".
pub const NARROW: u16 = 600;
/// The service that every TCP port without one of its own belongs to.
pub const ANY_PORT_HOST: u8 = 20;
/// Host part of the addresses of services that refuse or fail.
pub const FAULTY_HOST: u8 = 30;

/// Configuration, ways to backends, and the tables that follow from them.
#[derive(Clone, Debug)]
pub struct World {
    /// What is configured.
    pub config: Config,
    /// The ways to the backends that have one.
    pub hops: BTreeMap<IpAddr, NextHop>,
    /// By service: the name of the owner of each slot.
    pub rings: BTreeMap<String, Vec<String>>,
    /// Services whose tables contradict each other.
    pub broken: BTreeSet<String>,
    /// Whether the agent has filled in the node's entry.
    pub ready: bool,
    /// The tables.
    pub tables: MemoryTables,
    /// What a counter counts: `SERVICE` (what it dropped) or `SERVICE/BACKEND` (what was forwarded).
    pub names: BTreeMap<u32, String>,
}

/// What kind of world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// Outer sources out of prefixes: they carry entropy.
    Prefixes,
    /// Outer sources are the node's own address.
    OwnAddress,
    /// The tables are there, but the node's entry is not filled in.
    NotConfigured,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Prefixes, Self::OwnAddress, Self::NotConfigured];
}

/// A combination of mode, family of the outer packet (`None`: that of the inner) and way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Forwarding mode.
    pub mode: Mode,
    /// Whether the client speaks IPv6.
    pub inner_v6: bool,
    /// Whether the backend has an IPv6 address.
    pub outer_v6: bool,
    /// [`Verdict::Transmit`] or [`Verdict::Redirect`].
    pub verdict: Verdict,
    /// The port of its services, one of TCP and one of UDP.
    pub port: u16,
}

impl Kind {
    /// All ten combinations of mode and families, in both directions.
    pub fn all() -> Vec<Self> {
        let mut kinds = Vec::new();
        for inner_v6 in [false, true] {
            for (mode, outer_v6) in [
                (Mode::Ipip, false),
                (Mode::Ipip, true),
                (Mode::Gue, false),
                (Mode::Gue, true),
                (Mode::L2, inner_v6),
            ] {
                for verdict in [Verdict::Transmit, Verdict::Redirect] {
                    let port = 8000 + kinds.len() as u16;
                    kinds.push(Self { mode, inner_v6, outer_v6, verdict, port });
                }
            }
        }
        kinds
    }

    /// What it is called in names of services and packets.
    pub fn name(&self) -> String {
        let family = |v6: bool| if v6 { 6 } else { 4 };
        let way = if self.verdict == Verdict::Transmit { "tx" } else { "redirect" };
        format!("{}-{}in{}-{way}", self.mode, family(self.inner_v6), family(self.outer_v6))
    }

    /// The name of its service.
    pub fn service(&self, protocol: Protocol) -> String {
        format!("{}-{protocol}", self.name())
    }

    /// The service's address.
    pub fn vip(&self) -> IpAddr {
        vip(self.inner_v6, 10)
    }

    /// Bytes in front of the inner packet, Ethernet header not counted.
    pub fn overhead(&self) -> u16 {
        let ip = if self.outer_v6 { 40 } else { 20 };
        match self.mode {
            Mode::L2 => 0,
            Mode::Ipip => ip,
            Mode::Gue => ip + 12,
        }
    }
}

/// The service address with this last byte.
pub fn vip(v6: bool, host: u8) -> IpAddr {
    if v6 {
        IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(host)])
    } else {
        IpAddr::from([192, 0, 2, host])
    }
}

/// Which net a backend is in, and so how it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Net {
    Ingress = 0,
    Other = 9,
    NoDevice = 10,
    Narrow = 11,
    Unreached = 12,
}

fn backend_address(v6: bool, net: Net, host: u8) -> IpAddr {
    let net = net as u8;
    if v6 {
        IpAddr::from([0xfd00, u16::from(net), 0, 0, 0, 0, 0, u16::from(host)])
    } else {
        IpAddr::from([10, 0, net, host])
    }
}

fn service(
    name: String,
    address: IpAddr,
    port: Port,
    protocol: Protocol,
    mode: Mode,
    to: (bool, Net),
) -> Service {
    let mut service = Service::new(name, address, port, protocol);
    service.mode = mode;
    service.ring_slots = Some(101);
    service.health.kind = Some(HealthKind::None);
    service.backends = (1..=3u8)
        .map(|n| Backend {
            weight: u16::from(n),
            ..Backend::new(format!("b{n}"), backend_address(to.0, to.1, 10 + n))
        })
        .collect();
    service
}

/// The services that are as they should be.
fn sound_services() -> Vec<Service> {
    let mut services = Vec::new();
    for kind in Kind::all() {
        let net = if kind.verdict == Verdict::Transmit { Net::Ingress } else { Net::Other };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            services.push(service(
                kind.service(protocol),
                kind.vip(),
                Port::Number(kind.port),
                protocol,
                kind.mode,
                (kind.outer_v6, net),
            ));
        }
    }
    for v6 in [false, true] {
        let (family, address) = (if v6 { 6 } else { 4 }, vip(v6, ANY_PORT_HOST));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let name = format!("any-{family}-{protocol}");
            services.push(service(name, address, Port::Any, protocol, Mode::Ipip, (v6, Net::Ingress)));
        }
        let name = format!("exact-{family}-tcp");
        services.push(service(
            name,
            address,
            Port::Number(443),
            Protocol::Tcp,
            Mode::Gue,
            (!v6, Net::Ingress),
        ));
    }
    services
}

/// Services that cannot take some packets or any, by port of [`FAULTY_HOST`].
pub const FAULTY: [(&str, u16); 14] = [
    ("empty", 1),
    ("unreached", 2),
    ("no-device", 3),
    ("narrow-ipip", 4),
    ("narrow-gue", 5),
    ("narrow-l2", 6),
    ("ring-outside", 11),
    ("owner-outside", 12),
    ("region-outside", 13),
    ("no-mode", 14),
    ("no-family", 15),
    ("unknown-mode", 16),
    ("ring-wraps", 17),
    ("region-wraps", 18),
];

fn faulty_services(v6: bool) -> Vec<Service> {
    let family = if v6 { 6 } else { 4 };
    let build = |&(name, port): &(&str, u16)| {
        let (mode, net) = match name {
            "unreached" => (Mode::Ipip, Net::Unreached),
            "no-device" => (Mode::Ipip, Net::NoDevice),
            "narrow-ipip" => (Mode::Ipip, Net::Narrow),
            "narrow-gue" => (Mode::Gue, Net::Narrow),
            "narrow-l2" => (Mode::L2, Net::Narrow),
            _ => (Mode::Ipip, Net::Ingress),
        };
        let name = format!("{name}-{family}");
        let mut service =
            service(name, vip(v6, FAULTY_HOST), Port::Number(port), Protocol::Tcp, mode, (v6, net));
        if port == 1 {
            service.backends.iter_mut().for_each(|backend| backend.weight = 0);
        }
        service
    };
    FAULTY.iter().map(build).collect()
}

/// Writes what a sound agent never would.
fn break_tables(name: &str, entry: &mut Entry, tables: &mut MemoryTables) {
    let backends = entry.backend_base as usize..(entry.backend_base + entry.backend_count) as usize;
    match name {
        "ring-outside" => entry.ring_offset = 1 << 30,
        "owner-outside" => entry.backend_count = 0,
        // So far up that an index into it is a number at the bottom again, where others are.
        "ring-wraps" => entry.ring_offset = u32::MAX,
        "region-wraps" => entry.backend_base = u32::MAX,
        "region-outside" => entry.backend_base = 1 << 30,
        "no-mode" => tables.backends[backends].iter_mut().for_each(|backend| backend.mode = 0),
        "unknown-mode" => tables.backends[backends].iter_mut().for_each(|backend| backend.mode = 4),
        "no-family" => tables.backends[backends].iter_mut().for_each(|backend| backend.flags &= !7),
        _ => {}
    }
}

impl World {
    /// Builds a world; `other` is the interface that frames are redirected to.
    pub fn new(setting: Setting, other: u32) -> Self {
        let mut config = Config { services: sound_services(), ..Config::default() };
        for v6 in [false, true] {
            config.services.extend(faulty_services(v6));
        }
        config.node.flow_hash_key = Some(FlowHashKey(std::array::from_fn(|i| i as u8)));
        if setting != Setting::OwnAddress {
            config.node.source_v4 = "10.200.0.0/16".parse().ok();
            config.node.source_v6 = "fd00:200::/64".parse().ok();
        }
        let valid = config.validate();
        assert!(valid.is_ok(), "the configuration of the tests is not valid: {valid:?}");
        let hops = hops(&config, other);
        let mut world = Self {
            config,
            hops,
            rings: BTreeMap::new(),
            broken: BTreeSet::new(),
            ready: setting != Setting::NotConfigured,
            tables: MemoryTables { ingress: INGRESS, devices: [other].into(), ..MemoryTables::default() },
            names: BTreeMap::new(),
        };
        world.fill();
        world
    }

    fn fill(&mut self) {
        let key = self.config.node.flow_hash_key.map(|key| key.0).unwrap_or_default();
        self.tables.node = Some(Node {
            flow_key: flow_key::expand(&key),
            gue_port: self.config.node.gue_port,
            ready: if self.ready { Node::READY } else { 0 },
            reserved: [0; 3],
        });
        let (ids, _) = Ids::new(u32::MAX).update(&self.config).expect("numbers for everything");
        for service in &self.config.services {
            let numbers = ids.service(&service.name).expect("every service has numbers");
            let weights = service.backends.iter().map(|backend| backend.weight).collect();
            let weights = Weights { weights, fail_open: false };
            let desired =
                image::desired(&self.config.node, service, numbers, &weights, |to| self.hops.get(&to))
                    .expect("a valid service has an image");
            let mut entry = Entry {
                ring_offset: self.tables.rings.len() as u32,
                ring_slots: desired.ring.len() as u32,
                backend_base: self.tables.backends.len() as u32,
                backend_count: desired.backends.len() as u32,
                counter: desired.counter,
                generation: 1,
                ..Entry::default()
            };
            let owners = desired.ring.iter().map(|&index| {
                let owner = numbers.backends.iter().find(|(_, ids)| ids.index == index);
                owner.expect("every slot has an owner").0.clone()
            });
            self.rings.insert(service.name.clone(), owners.collect());
            self.tables.rings.extend(desired.ring.iter().copied().map(Slot::settled));
            self.tables.backends.extend(desired.backends);
            let stem = service.name.rsplit_once('-').map_or("", |(stem, _)| stem);
            if FAULTY.iter().any(|&(name, port)| name == stem && port > 10) {
                break_tables(stem, &mut entry, &mut self.tables);
                self.broken.insert(service.name.clone());
            }
            self.tables.services.insert(image::key(service), entry);
            self.names.insert(desired.counter + 1, service.name.clone());
            for (backend, ids) in &numbers.backends {
                self.names.insert(ids.counter, format!("{}/{backend}", service.name));
            }
        }
    }

    /// The service of that name.
    ///
    /// # Panics
    ///
    /// Where there is none.
    pub fn service(&self, name: &str) -> &Service {
        self.config.service(name).unwrap_or_else(|| panic!("no service {name}"))
    }

    /// The key and table entry of every service.
    pub fn entries(&self) -> impl Iterator<Item = (&ServiceKey, &Entry)> {
        self.tables.services.iter()
    }
}

/// Ways to all backends: MAC addresses that tell interfaces and backends apart.
fn hops(config: &Config, other: u32) -> BTreeMap<IpAddr, NextHop> {
    let mut hops = BTreeMap::new();
    for backend in config.services.iter().flat_map(|service| &service.backends) {
        let (net, host) = match backend.address {
            IpAddr::V4(v4) => (v4.octets()[2], v4.octets()[3]),
            IpAddr::V6(v6) => (v6.octets()[3], v6.octets()[15]),
        };
        let is = |candidate: Net| net == candidate as u8;
        if is(Net::Unreached) {
            continue;
        }
        let ifindex = match net {
            _ if is(Net::Other) => other,
            _ if is(Net::NoDevice) => NO_DEVICE,
            _ => INGRESS,
        };
        let own = if backend.address.is_ipv6() {
            IpAddr::from([0xfd00, u16::from(net), 0, 0, 0, 0, 0, 2])
        } else {
            IpAddr::from([10, 0, net, 2])
        };
        hops.insert(
            backend.address,
            NextHop {
                ifindex,
                gateway: backend.address,
                source_mac: [2, 0, 0, 0, net, 2],
                destination_mac: [2, 0, 0, u8::from(backend.address.is_ipv6()), net, host],
                preferred_source: Some(own),
                mtu: u32::from(if is(Net::Narrow) { NARROW } else { MTU }),
            },
        );
    }
    hops
}
