//! Who gets how much: observed shares against weights, flow by flow against the ring, and `wattline route` against both.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_common::address;
use lb_common::datapath::hash::{Flow as HashedFlow, FlowKey};
use lb_userspace::agent::flow_key;
use lb_userspace::ring::{self, Candidate};
use tests::capture::{Capture, RawSender};
use tests::config::{Config, FLOW_KEY, Family, Service};
use tests::counters::{self, Stats};
use tests::frames::{Maker, TCP, Tunnelled, UDP};
use tests::peer::{Action, FixedProgram};
use tests::topology::{Lab, VIP4, VIP6};
use tests::traffic::{self, Flow, Flows};
use tests::{payload, wait, wattline};

const LIMIT: Duration = Duration::from_mins(1);
const GUE_PORT: u16 = 6080;
/// Frames under way at a time: fewer than a veth's queue takes.
const WINDOW: usize = 100;

/// The key that the configuration names, as the packet path uses it.
fn key() -> FlowKey {
    flow_key::expand(&u128::from_str_radix(FLOW_KEY, 16).unwrap().to_be_bytes())
}

/// The slot of a flow in a ring of so many.
fn slot(key: &FlowKey, protocol: u8, source: SocketAddr, target: SocketAddr, slots: u32) -> u32 {
    let (family, source_address) = address::to_bytes(source.ip());
    let flow = HashedFlow {
        family,
        protocol,
        source: source_address,
        destination: address::to_bytes(target.ip()).1,
        source_port: source.port(),
        destination_port: target.port(),
    };
    flow.hash(key).slot(slots)
}

/// The owner's name for every slot.
fn owners<'n>(weights: &[(&'n str, u32)], slots: u32) -> Vec<&'n str> {
    let candidates: Vec<_> = weights
        .iter()
        .enumerate()
        .map(|(index, (name, weight))| Candidate { name, index: index as u16, weight: *weight })
        .collect();
    let ring = ring::build(&candidates, slots).unwrap();
    ring.into_iter().map(|index| weights[usize::from(index)].0).collect()
}

/// How often each name occurs.
fn tally<'n>(names: impl IntoIterator<Item = &'n str>) -> BTreeMap<&'n str, u64> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// The first flow to `target` that falls in each slot.
fn a_source_for_every_slot(target: SocketAddr, slots: u32) -> Vec<SocketAddr> {
    let key = key();
    let mut sources = vec![None; slots as usize];
    let mut missing = slots;
    for number in 0.. {
        let source = Lab::flow_source(target.ip(), number);
        let place = &mut sources[slot(&key, UDP, source, target, slots) as usize];
        if place.is_none() {
            *place = Some(source);
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    sources.into_iter().map(Option::unwrap).collect()
}

/// Sends one frame for every slot and compares who got it, by the cable and by the counters, with the ring.
fn one_flow_per_slot(target: SocketAddr, slots: u32, weights: &[(&str, u32)]) {
    let lab = Lab::builder().site_a(weights.len() as u8).build().unwrap();
    let family = Family::of(target.ip());
    let mut service = Service::udp("dns", target).ring_slots(slots);
    for ((name, weight), backend) in weights.iter().zip(&lab.backends) {
        service = service.backend(name, family.address(backend), *weight);
    }
    let agent = wattline::Agent::start(lab.lb(), &Config::new().service(service).to_string()).unwrap();
    counters::wait_usable(lab.lb()).unwrap();
    // From here on backends are silent, so that nothing but the frames below moves. Neighbours are known for good.
    let mut silence = Vec::new();
    for backend in &lab.backends {
        let mac = backend.host.link("eth0").mac().unwrap();
        for address in [IpAddr::from(backend.v4), backend.v6.into()] {
            lab.lb().link("eth0").neighbour(address, mac).unwrap();
        }
        silence.push(FixedProgram::attach(&backend.host, "eth0", Action::Drop).unwrap());
    }

    let maker = Maker::new(lab.router.link("lb1").mac().unwrap(), lab.lb().link("eth0").mac().unwrap());
    let sender = RawSender::open(&lab.router, "lb1").unwrap();
    let names: BTreeMap<IpAddr, &str> = lab
        .backends
        .iter()
        .zip(weights)
        .map(|(backend, (name, _))| (family.address(backend), *name))
        .collect();
    let sources = a_source_for_every_slot(target, slots);
    let mut got = BTreeMap::new();
    for window in sources.chunks(WINDOW) {
        let capture = Capture::start(&lab.router, "lb1").unwrap();
        for source in window {
            sender.send(&maker.udp(*source, target, b"one")).unwrap();
        }
        let answers = wait::until("the window's frames", LIMIT, || {
            let frames = capture.frames();
            let tunnelled: Vec<_> = frames
                .iter()
                .filter(|frame| !frame.sent)
                .filter_map(|frame| Tunnelled::parse(&frame.bytes, GUE_PORT).ok())
                .filter(|packet| packet.outer != packet.inner)
                .map(|packet| (packet.inner.ends().unwrap().0, names[&packet.outer.destination]))
                .collect();
            if tunnelled.len() == window.len() { Ok(tunnelled) } else { Err(tunnelled.len()) }
        });
        got.extend(answers.unwrap());
    }

    let owners = owners(weights, slots);
    for (slot, (source, owner)) in sources.iter().zip(&owners).enumerate() {
        assert_eq!(got[source], *owner, "slot {slot}, from {source}");
    }
    let expected = tally(owners.iter().copied());
    let stats = Stats::read(lab.lb()).unwrap();
    let lines = counters::backends(lab.lb()).unwrap();
    for (name, weight) in weights {
        let line = lines.iter().find(|line| line.name == *name).unwrap();
        let share = expected.get(name).copied().unwrap_or_default();
        assert_eq!((line.slots, line.packets, stats.backend("dns", name)), (share, share, share), "{name}");
        assert_eq!(share == 0, *weight == 0, "{name}");
    }
    assert_eq!((stats.services["dns"], stats.dropped), (slots.into(), 0), "log:\n{}", agent.log());
}

/// Uneven, one in a thousand, and none at all.
const WEIGHTS: [(&str, u32); 5] = [("large", 1000), ("tiny", 1), ("off", 0), ("middle", 333), ("other", 500)];

#[test]
fn one_ipv4_flow_per_slot_gives_every_backend_exactly_its_slots() {
    one_flow_per_slot(SocketAddr::new(VIP4, 53), 10_007, &WEIGHTS);
}

#[test]
fn one_ipv6_flow_per_slot_gives_every_backend_exactly_its_slots() {
    one_flow_per_slot(SocketAddr::new(VIP6, 53), 4099, &WEIGHTS);
}

#[test]
fn real_connections_follow_the_ring_and_so_the_weights() {
    const CONNECTIONS: u32 = 20_000;
    let weights = [("a1", 100), ("a2", 50), ("a3", 250), ("b1", 100), ("b2", 0)];
    let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
    let lab = Lab::builder().site_a(3).site_b(2).build().unwrap();
    let target = SocketAddr::new(VIP4, 80);
    let slots = 65_537;
    let service =
        weights.iter().fold(Service::tcp("web", target).ring_slots(slots), |service, (name, weight)| {
            service.backend(name, lab.backend(name).v4.into(), *weight)
        });
    let _agent = counters::balance(&lab, &Config::new().service(service)).unwrap();
    // Where nothing works this ends before 20,000 connections have waited in vain.
    Flows::tcp(target, 64).run(&lab.client).unwrap().expect_all();
    let report = Flows::tcp(target, CONNECTIONS).run(&lab.client).unwrap().expect_all();

    let owners = owners(&weights, slots);
    let key = key();
    for (number, backend) in &report.answered {
        let slot = slot(&key, TCP, Lab::flow_source(VIP4, *number), target, slots);
        assert_eq!(backend, owners[slot as usize], "flow {number} in slot {slot}");
    }
    let counts = report.per_backend();
    for (name, weight) in weights {
        let share = counts.get(name).copied().unwrap_or_default() as f64 / f64::from(CONNECTIONS);
        let wanted = f64::from(weight) / f64::from(total);
        assert!((share - wanted).abs() < 0.02, "{name}: {share} instead of {wanted}");
        assert_eq!(share > 0.0, weight > 0, "{name}");
    }
}

#[test]
fn route_names_the_backend_that_a_flow_reaches() {
    let lab = Lab::builder().site_a(2).site_b(2).build().unwrap();
    let mut config = Config::new();
    for (name, vip, mode) in [("v4", VIP4, "ipip"), ("v6", VIP6, "gue")] {
        for service in [
            Service::tcp(&format!("web{name}"), SocketAddr::new(vip, 80)),
            Service::udp(&format!("dns{name}"), SocketAddr::new(vip, 53)),
        ] {
            config = config.service(service.mode(mode).backends(Family::of(vip), &lab.backends));
        }
    }
    let _agent = counters::balance(&lab, &config).unwrap();
    let mut named = BTreeSet::new();
    let random = payload::bytes(42, 4 * 60);
    for (number, bytes) in random.chunks_exact(4).enumerate() {
        let flow = u32::from_le_bytes(bytes.try_into().unwrap()) % Lab::FLOWS;
        let (vip, family) = if number % 2 == 0 { (VIP4, "v4") } else { (VIP6, "v6") };
        let (port, protocol, name) = if number % 4 < 2 {
            (80, "tcp", format!("web{family}"))
        } else {
            (53, "udp", format!("dns{family}"))
        };
        let target = SocketAddr::new(vip, port);
        let source = Lab::flow_source(vip, flow).to_string();
        let route = wattline::json(lab.lb(), &["route", &source, &target.to_string(), protocol]).unwrap();
        let flow = Flow::numbered(target, flow);
        let reply =
            if protocol == "tcp" { traffic::get(&lab.client, flow) } else { traffic::udp(&lab.client, flow) };
        let backend = reply.unwrap().backend;
        assert_eq!(route["backend"], backend.as_str(), "{route}");
        assert_eq!((&route["verdict"], &route["service"]), (&"forward".into(), &name.into()), "{route}");
        named.insert(backend);
    }
    assert_eq!(named.len(), 4, "{named:?}");
    // And where a flow goes nowhere, it says so.
    let nowhere = wattline::json(lab.lb(), &["route", "10.100.0.1:1025", "192.0.2.99:80", "tcp"]).unwrap();
    assert_eq!((&nowhere["verdict"], &nowhere["backend"]), (&"pass".into(), &serde_json::Value::Null));
}
