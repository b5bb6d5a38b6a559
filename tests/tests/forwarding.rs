//! Real traffic in every forwarding mode and combination of address families, over one interface and over two.
//!
//! Three witnesses have to agree: the client (every byte of every answer), the cables (every packet that reached the load
//! balancer left it again, unchanged inside), and the counters of the load balancer and of the backends.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tests::capture::{Capture, Frame};
use tests::config::{Config, Family, Service};
use tests::counters::{self, Stats};
use tests::frames::{Ip, Tunnelled};
use tests::topology::{Backend, Lab, SERVICES_V4, SERVICES_V6, Site};
use tests::traffic::Flows;
use tests::wait;

const LIMIT: Duration = Duration::from_secs(30);
const GUE_PORT: u16 = 6080;
/// Enough that each of four backends gets some.
const FLOWS: u32 = 40;
/// Reasons that the network's own chatter is counted under: answers to health checks, ARP and IPv6's neighbour and
/// multicast listener discovery.
const CHATTER: [&str; 4] = ["not_a_service", "not_ip", "icmp", "extension_header"];

/// A forwarding mode with the families of service and backend.
#[derive(Clone, Copy, Debug)]
struct Case {
    mode: &'static str,
    service: Family,
    backend: Family,
    /// Every case has an address of its own.
    vip: IpAddr,
}

impl Case {
    /// All that there are.
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for mode in ["ipip", "gue", "l2"] {
            for service in Family::ALL {
                for backend in Family::ALL {
                    let number = 20 + cases.len() as u8;
                    let vip = match service {
                        Family::V4 => Ipv4Addr::from([192, 0, 2, number]).into(),
                        Family::V6 => Ipv6Addr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, number.into()]).into(),
                    };
                    if mode != "l2" || service == backend {
                        cases.push(Self { mode, service, backend, vip });
                    }
                }
            }
        }
        cases
    }

    fn name(self, protocol: &str) -> String {
        format!("{}-{}in{}-{protocol}", self.mode, self.service, self.backend)
    }

    /// Backends that the mode can reach: layer 2 needs a shared Ethernet.
    fn reaches(self, backend: &Backend, two_arm: bool) -> bool {
        self.mode != "l2" || two_arm || backend.site == Site::A
    }

    fn services<'l>(self, lab: &'l Lab, two_arm: bool) -> [Service; 2] {
        let reached: Vec<&'l Backend> =
            lab.backends.iter().filter(|backend| self.reaches(backend, two_arm)).collect();
        [
            Service::tcp(&self.name("tcp"), SocketAddr::new(self.vip, 80)),
            Service::udp(&self.name("udp"), SocketAddr::new(self.vip, 53)),
        ]
        .map(|service| service.mode(self.mode).backends(self.backend, reached.iter().copied()))
    }

    /// What the outer packet says that it carries; `None` without an outer packet.
    fn outer_protocol(self) -> Option<u8> {
        match (self.mode, self.service) {
            ("ipip", Family::V4) => Some(4),
            ("ipip", Family::V6) => Some(41),
            ("gue", _) => Some(17),
            _ => None,
        }
    }
}

fn is_service(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => SERVICES_V4.contains(&v4),
        IpAddr::V6(v6) => SERVICES_V6.contains(&v6),
    }
}

/// IP packets for services among the frames that went to the load balancer, each with how often it was there.
fn arrived(frames: &[Frame]) -> BTreeMap<Vec<u8>, usize> {
    let mut packets = BTreeMap::new();
    for frame in frames.iter().filter(|frame| frame.sent) {
        if let Ok(ip) = Ip::parse(&frame.bytes[14..])
            && is_service(ip.destination)
            && ip.ends().is_some()
        {
            *packets.entry(ip.bytes.to_vec()).or_default() += 1;
        }
    }
    packets
}

/// The inner packets among the frames that came from the load balancer, after looking at what carries each.
fn left(frames: &[Frame], cases: &[Case], lab: &Lab) -> BTreeMap<Vec<u8>, usize> {
    let mut packets = BTreeMap::new();
    for frame in frames.iter().filter(|frame| !frame.sent) {
        let Ok(tunnelled) = Tunnelled::parse(&frame.bytes, GUE_PORT) else { continue };
        // Answers go directly to the client.
        assert!(
            !is_service(tunnelled.inner.source),
            "an answer came through the load balancer: {tunnelled:?}"
        );
        let Some(case) = cases.iter().find(|case| case.vip == tunnelled.inner.destination) else { continue };
        match case.outer_protocol() {
            Some(protocol) => {
                let backend = lab.backends.iter().map(|backend| case.backend.address(backend));
                let to = tunnelled.outer.destination;
                assert!(backend.into_iter().any(|address| address == to), "{case:?}: {tunnelled:?}");
                assert_eq!(tunnelled.outer.protocol, protocol, "{case:?}");
                assert_eq!(tunnelled.gue.is_some(), case.mode == "gue", "{case:?}");
            }
            None => assert_eq!(tunnelled.outer, tunnelled.inner, "{case:?}"),
        }
        *packets.entry(tunnelled.inner.bytes.to_vec()).or_default() += 1;
    }
    packets
}

/// Where the tunnelled packets among the frames that came from the load balancer go.
fn outer_targets(frames: &[Frame]) -> BTreeSet<IpAddr> {
    let left = frames.iter().filter(|frame| !frame.sent);
    let tunnelled = left.filter_map(|frame| Tunnelled::parse(&frame.bytes, GUE_PORT).ok());
    tunnelled
        .filter(|packet| is_service(packet.inner.destination) && packet.outer != packet.inner)
        .map(|packet| packet.outer.destination)
        .collect()
}

/// Packets that the load balancer says it has forwarded to a backend's host in a mode.
fn forwarded(stats: &Stats, backend: &str, mode: &str) -> u64 {
    let of_backend = stats.backends.iter().filter(|((_, name), _)| name == backend);
    of_backend.filter(|((service, _), _)| service.starts_with(mode)).map(|(_, packets)| packets).sum()
}

fn run(two_arm: bool) {
    let cases = Case::all();
    let builder = Lab::builder().site_a(2).site_b(2);
    let builder = if two_arm { builder.two_arm() } else { builder };
    let lab = cases.iter().fold(builder, |builder, case| builder.vip(case.vip)).build().unwrap();
    let services = cases.iter().flat_map(|case| case.services(&lab, two_arm));
    let config = services.fold(Config::new(), Config::service);
    let _agent = counters::balance(&lab, &config).unwrap();

    let ports: &[&str] = if two_arm { &["lb1", "lb1-b"] } else { &["lb1"] };
    let captures: Vec<_> = ports.iter().map(|port| Capture::start(&lab.router, port).unwrap()).collect();
    let mut datagrams = 0;
    for case in &cases {
        let reached = lab.backends.iter().filter(|backend| case.reaches(backend, two_arm)).count();
        let web = Flows::tcp(SocketAddr::new(case.vip, 80), FLOWS).bytes(20_000);
        let web = web.run(&lab.client).unwrap().expect_all();
        assert_eq!(web.per_backend().len(), reached, "{case:?}: {:?}", web.per_backend());
        let echo = Flows::udp(SocketAddr::new(case.vip, 53), FLOWS).bytes(1400);
        let echo = echo.run(&lab.client).unwrap().expect_all();
        assert_eq!(echo.per_backend().len(), reached, "{case:?}: {:?}", echo.per_backend());
        datagrams += u64::from(FLOWS);
    }

    // Connections are over for the client before their last packets are over for everybody.
    let frames = || captures.iter().flat_map(Capture::frames).collect::<Vec<_>>();
    wait::until("cables and counters to agree", LIMIT, || {
        let frames = frames();
        let total = |packets: &BTreeMap<_, usize>| packets.values().sum::<usize>() as u64;
        let (came, went) = (total(&arrived(&frames)), total(&left(&frames, &cases, &lab)));
        let stats = Stats::read(lab.lb()).unwrap();
        if came == went && came == stats.forwarded { Ok(()) } else { Err((came, went, stats.forwarded)) }
    })
    .unwrap();
    for (capture, port) in captures.iter().zip(ports) {
        let targets = outer_targets(&capture.frames());
        let of_site = |site| {
            let mut backends = lab.backends.iter().filter(move |backend| backend.site == site);
            backends
                .any(|backend| targets.contains(&backend.v4.into()) || targets.contains(&backend.v6.into()))
        };
        // Packets leave by the interface on the backend's side; with one interface the router carries them on.
        assert_eq!(of_site(Site::A), *port == "lb1", "{port}: {targets:?}");
        assert_eq!(of_site(Site::B), !two_arm || *port == "lb1-b", "{port}: {targets:?}");
    }
    let frames = frames();
    assert!(arrived(&frames) == left(&frames, &cases, &lab), "packets left otherwise than they came");

    let stats = Stats::read(lab.lb()).unwrap();
    assert_eq!((stats.dropped, stats.received), (0, stats.forwarded + stats.passed));
    let unexpected: Vec<_> =
        stats.reasons_seen().into_iter().filter(|reason| !CHATTER.contains(reason)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}: {:?}", stats.reasons);
    for case in &cases {
        // One datagram each, whatever else happens.
        assert_eq!(stats.services[&case.name("udp")], u64::from(FLOWS), "{case:?}");
        // A handshake, a request and an end at the least.
        assert!(stats.services[&case.name("tcp")] >= u64::from(FLOWS) * 4, "{case:?}: {stats:?}");
    }
    for backend in &lab.backends {
        let outcomes = counters::decap_outcomes(&backend.host).unwrap();
        for mode in ["ipip", "gue"] {
            assert_eq!(outcomes[mode], forwarded(&stats, &backend.name, mode), "{} {mode}", backend.name);
        }
        let refused =
            outcomes.iter().filter(|(name, _)| !["ipip", "gue", "not_tunnel"].contains(&name.as_str()));
        assert_eq!(refused.map(|(_, packets)| packets).sum::<u64>(), 0, "{}: {outcomes:?}", backend.name);
    }
    let answered: u64 = lab.backends.iter().map(|backend| backend.server.stats().datagrams).sum();
    assert_eq!(answered, datagrams);
}

#[test]
fn every_mode_and_family_carries_http_and_udp_over_one_interface() {
    run(false);
}

#[test]
fn every_mode_and_family_carries_http_and_udp_over_two_interfaces() {
    run(true);
}
