//! What the load balancer puts around a packet, byte by byte, as seen on the cable.
//!
//! Frames are made by hand and sent straight at the load balancer, so that every byte that comes out is accounted for:
//! new headers in front, the packet inside untouched, padding behind.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tests::capture::{Capture, RawSender};
use tests::config::{Config, Family, Service};
use tests::counters::{self, Stats};
use tests::frames::{ETHERNET, Maker, Tunnelled};
use tests::link::Mac;
use tests::topology::{Lab, Site, VIP4, VIP6};
use tests::wait;

const LIMIT: Duration = Duration::from_secs(30);
/// The shortest frame that Ethernet carries, without its check sequence.
const SHORTEST_FRAME: usize = 60;
/// What fills short frames up: not zero, so that it is recognised.
const PADDING: u8 = 0xee;
/// Bytes of UDP and GUE headers.
const UDP_AND_GUE: usize = 12;
/// Where the ports that carry entropy begin (RFC 6335's dynamic ports).
const FIRST_DYNAMIC_PORT: u16 = 49_152;

/// One service with one backend.
#[derive(Clone, Copy, Debug)]
struct Case {
    mode: &'static str,
    family: Family,
    backend_family: Family,
    site: Site,
    port: u16,
}

impl Case {
    fn all(two_arm: bool) -> Vec<Self> {
        let mut cases = Vec::new();
        for mode in ["ipip", "gue", "l2"] {
            for family in Family::ALL {
                for backend_family in Family::ALL {
                    for site in [Site::A, Site::B] {
                        let port = 2000 + cases.len() as u16;
                        let possible =
                            mode != "l2" || family == backend_family && (two_arm || site == Site::A);
                        cases.extend(possible.then_some(Self { mode, family, backend_family, site, port }));
                    }
                }
            }
        }
        cases
    }

    fn vip(self) -> IpAddr {
        match self.family {
            Family::V4 => VIP4,
            Family::V6 => VIP6,
        }
    }

    fn target(self) -> SocketAddr {
        SocketAddr::new(self.vip(), self.port)
    }

    fn overhead(self) -> usize {
        let ip = match self.backend_family {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        match self.mode {
            "ipip" => ip,
            "gue" => ip + UDP_AND_GUE,
            _ => 0,
        }
    }

    /// Number of the inner packet's protocol.
    fn inner_protocol(self) -> u8 {
        match self.family {
            Family::V4 => 4,
            Family::V6 => 41,
        }
    }

    fn ethertype(self) -> u16 {
        match self.backend_family {
            Family::V4 => 0x0800,
            Family::V6 => 0x86dd,
        }
    }
}

/// Where frames of a case have to come out, and between which addresses.
struct Way {
    /// The router's port.
    port: &'static str,
    from_mac: Mac,
    to_mac: Mac,
    source: IpAddr,
    destination: IpAddr,
}

impl Way {
    fn of(case: Case, lab: &Lab, two_arm: bool) -> Self {
        let lb = &lab.lbs[0];
        let backend = lab.backends.iter().find(|backend| backend.site == case.site).unwrap();
        let through_eth1 = two_arm && case.site == Site::B;
        let own = backend.host.link("eth0").mac().unwrap();
        let (to_mac, destination) = match case.site {
            // Behind the router.
            Site::B if !two_arm => {
                (lab.router.link("br0").mac().unwrap(), case.backend_family.address(backend))
            }
            _ => (own, case.backend_family.address(backend)),
        };
        let source: IpAddr = match (case.backend_family, through_eth1) {
            (Family::V4, false) => lb.v4.into(),
            (Family::V6, false) => lb.v6.into(),
            (Family::V4, true) => "10.3.0.2".parse().unwrap(),
            (Family::V6, true) => "fd03::2".parse().unwrap(),
        };
        let (interface, port) = if through_eth1 { ("eth1", "lb1-b") } else { ("eth0", "lb1") };
        Self { port, from_mac: lb.host.link(interface).mac().unwrap(), to_mac, source, destination }
    }
}

/// Frames to a service that differ in everything that the outer headers depend on.
fn frames(case: Case, maker: Maker) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    // Shorter than the shortest frame, odd, ordinary, and the largest that a client's link carries.
    let largest = 1500 - if case.family == Family::V4 { 20 } else { 40 } - 20;
    for (number, size) in [0, 1, 2, 13, 700, largest].into_iter().enumerate() {
        for class in [0, 0xb9, 0xff] {
            let source = Lab::flow_source(case.vip(), 1000 * u32::from(class) + number as u32);
            let data = tests::payload::bytes(size as u64, size);
            let maker = maker.traffic_class(class);
            for mut frame in
                [maker.udp(source, case.target(), &data), maker.tcp(source, case.target(), &data)]
            {
                frame.resize(frame.len().max(SHORTEST_FRAME), PADDING);
                frames.push(frame);
            }
        }
    }
    frames
}

/// Compares what came out with what went in.
fn check(case: Case, way: &Way, gue_port: u16, sent: &[u8], got: &[u8]) {
    let before = Tunnelled::parse(sent, gue_port).unwrap();
    let after = Tunnelled::parse(got, gue_port).unwrap();
    assert_eq!((after.to, after.from), (way.to_mac, way.from_mac), "{case:?}");
    if case.mode == "l2" {
        assert_eq!(got[12..], sent[12..], "{case:?}: more than the MAC addresses changed");
        return;
    }
    assert_eq!(after.ethertype, case.ethertype(), "{case:?}");
    let outer = &after.outer;
    assert_eq!((outer.source, outer.destination), (way.source, way.destination), "{case:?}");
    assert_eq!((outer.ttl, outer.dont_fragment), (64, true), "{case:?}");
    assert!(outer.checksum_ok, "{case:?}: the header's checksum is wrong in {:02x?}", &outer.bytes[..20]);
    assert_eq!(outer.traffic_class, before.outer.traffic_class, "{case:?}");
    assert_eq!(outer.length, before.outer.length + case.overhead(), "{case:?}");
    assert_eq!(after.inner.bytes, before.outer.bytes, "{case:?}: the packet inside changed");
    // Padding travels along behind the packet and is counted in no length.
    assert_eq!(after.trailer, before.trailer, "{case:?}");
    assert_eq!(got.len(), sent.len() + case.overhead(), "{case:?}");
    let Some(gue) = after.gue else {
        assert_eq!((case.mode, outer.protocol), ("ipip", case.inner_protocol()), "{case:?}");
        return;
    };
    assert_eq!((case.mode, outer.protocol, gue.destination_port), ("gue", 17, gue_port), "{case:?}");
    assert!(gue.source_port >= FIRST_DYNAMIC_PORT, "{case:?}: {gue:?}");
    assert_eq!(gue.length, before.outer.length + UDP_AND_GUE, "{case:?}");
    // Zero is "no checksum": allowed over IPv4, and for tunnels over IPv6 (RFC 6935).
    assert_eq!(gue.checksum, 0, "{case:?}");
    assert_eq!(gue.header, [0, case.inner_protocol(), 0, 0], "{case:?}");
}

fn run(two_arm: bool, gue_port: u16) {
    let builder = Lab::builder().site_a(1).site_b(1);
    let lab = if two_arm { builder.two_arm() } else { builder }.build().unwrap();
    let cases = Case::all(two_arm);
    let mut config = Config::new().node("gue_port", &gue_port.to_string());
    for case in &cases {
        let backends = lab.backends.iter().filter(|backend| backend.site == case.site);
        let backends: Vec<_> = backends.collect();
        let name = |protocol| format!("{protocol}-{}", case.port);
        for service in [Service::udp(&name("udp"), case.target()), Service::tcp(&name("tcp"), case.target())]
        {
            let service = service.mode(case.mode).set("health", r#"{ type = "none" }"#);
            config = config.service(service.backends(case.backend_family, backends.iter().copied()));
        }
    }
    let _agent = counters::balance(&lab, &config).unwrap();

    let maker = Maker::new(lab.router.link("lb1").mac().unwrap(), lab.lb().link("eth0").mac().unwrap());
    let sender = RawSender::open(&lab.router, "lb1").unwrap();
    let mut total = 0;
    for case in &cases {
        let way = Way::of(*case, &lab, two_arm);
        let capture = Capture::start(&lab.router, way.port).unwrap();
        let frames = frames(*case, maker);
        for frame in &frames {
            sender.send(frame).unwrap();
        }
        total += frames.len() as u64;
        for sent in frames {
            let packet = Tunnelled::parse(&sent, gue_port).unwrap().outer.bytes;
            let got = wait::until("the packet to come back out", LIMIT, || {
                let frames = capture.frames();
                let mut back = frames.iter().filter(|frame| !frame.sent);
                // Found by what the client sent, wherever it lies in the frame.
                let found =
                    back.find(|frame| frame.bytes[ETHERNET..].windows(packet.len()).any(|w| w == packet));
                found.map(|frame| frame.bytes.clone()).ok_or((case, frames.len()))
            });
            check(*case, &way, gue_port, &sent, &got.unwrap());
        }
    }
    let stats = Stats::read(lab.lb()).unwrap();
    assert_eq!((stats.forwarded, stats.dropped), (total, 0), "{:?}", stats.reasons);
}

#[test]
fn outer_headers_are_right_over_one_interface() {
    run(false, 6080);
}

#[test]
fn outer_headers_are_right_over_two_interfaces_and_another_gue_port() {
    run(true, 7000);
}
