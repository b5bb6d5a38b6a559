//! Outer sources: a configured prefix that carries flow entropy, and backends that believe only certain sources.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tests::capture::{Capture, RawSender};
use tests::config::{Config, Family, Service};
use tests::counters::{self, OWN_SOURCES, Stats};
use tests::frames::{IPV4, IPV6, Maker, Tunnelled};
use tests::topology::{Backend, Lab, VIP4, VIP6};
use tests::traffic::{self, Flow, Flows};
use tests::{wait, wattline};

const LIMIT: Duration = Duration::from_secs(30);
const GUE_PORT: u16 = 6080;
const FLOWS: u32 = 300;
/// The prefixes of the configurations below.
const PREFIXES: [&str; 2] = ["10.200.0.0/16", "fd00:200::/64"];

/// `udp-MODE-FAMILY` on ports 53 to 56, with the address family of the service over backends of `family`.
fn config(lab: &Lab, vip: IpAddr) -> Config {
    let mut config = Config::new();
    let mut port = 53;
    for mode in ["ipip", "gue"] {
        for family in Family::ALL {
            let service = Service::udp(&format!("{mode}-{family}"), SocketAddr::new(vip, port));
            config = config.service(service.mode(mode).backends(family, &lab.backends));
            port += 1;
        }
    }
    config
}

fn lab() -> Lab {
    let servers = tests::server::ServerSpec { tcp: vec![80], udp: vec![53, 54, 55, 56] };
    Lab::builder().site_a(1).site_b(1).servers(servers).build().unwrap()
}

/// What identifies a flow on the way, seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Marks {
    source: IpAddr,
    gue_port: Option<u16>,
    label: Option<u32>,
}

/// The marks of every tunnelled packet that left the load balancer, by flow.
fn marks(capture: &Capture) -> BTreeMap<(SocketAddr, SocketAddr), Vec<Marks>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for frame in capture.frames().iter().filter(|frame| !frame.sent) {
        let Ok(packet) = Tunnelled::parse(&frame.bytes, GUE_PORT) else { continue };
        if packet.outer == packet.inner {
            continue;
        }
        let label = packet.outer.source.is_ipv6().then(|| {
            let [_, a, b, c] = *packet.outer.bytes.first_chunk().unwrap();
            u32::from(a & 0x0f) << 16 | u32::from(b) << 8 | u32::from(c)
        });
        let marks =
            Marks { source: packet.outer.source, gue_port: packet.gue.map(|gue| gue.source_port), label };
        flows.entry(packet.inner.ends().unwrap()).or_default().push(marks);
    }
    flows
}

/// Sends two datagrams of every flow through every service, and returns the marks by service port.
fn send_twice(lab: &Lab, vip: IpAddr) -> BTreeMap<u16, Vec<Marks>> {
    let capture = Capture::start(&lab.router, "lb1").unwrap();
    for port in 53..=56 {
        for _ in 0..2 {
            Flows::udp(SocketAddr::new(vip, port), FLOWS).run(&lab.client).unwrap().expect_all();
        }
    }
    let seen = |flows: &BTreeMap<_, Vec<Marks>>| flows.values().map(Vec::len).sum::<usize>();
    let flows = wait::until("all tunnelled packets", LIMIT, || {
        let flows = marks(&capture);
        if seen(&flows) == 4 * 2 * FLOWS as usize { Ok(flows) } else { Err(seen(&flows)) }
    });
    let mut by_port = BTreeMap::<u16, Vec<_>>::new();
    for ((source, target), marks) in flows.unwrap() {
        assert!(
            marks.len() == 2 && marks[0] == marks[1],
            "{source} to {target} looks different twice: {marks:?}"
        );
        by_port.entry(target.port()).or_default().push(marks[0]);
    }
    by_port
}

fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> usize {
    values.collect::<BTreeSet<_>>().len()
}

#[test]
fn without_a_prefix_the_source_is_the_load_balancer_itself() {
    let lab = lab();
    let _agent = counters::balance(&lab, &config(&lab, VIP4)).unwrap();
    for (port, marks) in send_twice(&lab, VIP4) {
        let own: IpAddr = if port % 2 == 1 { lab.lbs[0].v4.into() } else { lab.lbs[0].v6.into() };
        assert!(marks.iter().all(|marks| marks.source == own), "port {port}");
        // GUE's port and IPv6's label carry entropy all the same.
        let ports = distinct(marks.iter().filter_map(|marks| marks.gue_port));
        assert!(ports == 0 && port < 55 || ports > 250, "port {port}: {ports} source ports");
        let labels = distinct(marks.iter().filter_map(|marks| marks.label));
        assert!(labels == 0 && own.is_ipv4() || labels > 290, "port {port}: {labels} labels");
    }
}

#[test]
fn a_prefix_carries_entropy_and_backends_believe_it() {
    for vip in [VIP4, VIP6] {
        let lab = lab();
        // As routers do it in earnest: what is sent to a source goes back to the load balancer.
        for (prefix, lb) in PREFIXES.iter().zip([IpAddr::from(lab.lbs[0].v4), lab.lbs[0].v6.into()]) {
            lab.router.route(prefix.parse().unwrap(), &[lb]).unwrap();
        }
        let config = config(&lab, vip)
            .node("source_v4", &format!("{:?}", PREFIXES[0]))
            .node("source_v6", &format!("{:?}", PREFIXES[1]));
        // Nothing else: not the load balancer's own address either.
        let _agent = counters::balance_allowing(&lab, &config, &PREFIXES).unwrap();
        for (port, marks) in send_twice(&lab, vip) {
            let prefix: IpNet = PREFIXES[usize::from(port % 2 == 0)].parse().unwrap();
            assert!(marks.iter().all(|marks| prefix.contains(&marks.source)), "port {port}");
            // 300 flows over 2^16 sources: about one pair may meet.
            let sources = distinct(marks.iter().map(|marks| marks.source));
            assert!(sources > 290, "port {port}: {sources} sources");
        }
        for backend in &lab.backends {
            let outcomes = counters::decap_outcomes(&backend.host).unwrap();
            assert_eq!(outcomes["source_not_allowed"], 0, "{outcomes:?}");
            assert!(outcomes["ipip"] > 0 && outcomes["gue"] > 0, "{outcomes:?}");
        }
    }
}

#[test]
fn a_narrow_prefix_bounds_the_sources() {
    let lab = lab();
    let config =
        config(&lab, VIP4).node("source_v4", r#""10.2.0.248/30""#).node("source_v6", r#""fd02::f8/126""#);
    let _agent = counters::balance(&lab, &config).unwrap();
    for (port, marks) in send_twice(&lab, VIP4) {
        let prefix: IpNet = if port % 2 == 1 { "10.2.0.248/30" } else { "fd02::f8/126" }.parse().unwrap();
        let sources: BTreeSet<_> = marks.iter().map(|marks| marks.source).collect();
        assert!(sources.iter().all(|source| prefix.contains(source)), "port {port}: {sources:?}");
        assert_eq!(sources.len(), 4, "port {port}: {sources:?}");
    }
}

#[test]
fn a_backend_that_does_not_believe_the_load_balancer_serves_nothing() {
    let lab = lab();
    let services = [("web", VIP4), ("web6", VIP6)].map(|(name, vip)| {
        Service::tcp(name, SocketAddr::new(vip, 80)).backends(Family::of(vip), &lab.backends)
    });
    let config = services.into_iter().fold(Config::new(), Config::service);
    let _agent = counters::balance(&lab, &config).unwrap();
    let believers = &OWN_SOURCES[..];
    for (allow, believes) in [(&PREFIXES[..], false), (believers, true)] {
        wattline::decap(&lab.backend("b1").host, allow).unwrap();
        for (service, vip) in [("web", VIP4), ("web6", VIP6)] {
            let before = Stats::read(lab.lb()).unwrap();
            // Where some have to fail there is no point in waiting long for them.
            let timeout = if believes { LIMIT } else { Duration::from_secs(2) };
            let flows = Flows { timeout, ..Flows::tcp(SocketAddr::new(vip, 80), 60) };
            let report = flows.run(&lab.client).unwrap();
            let answered = report.per_backend();
            assert!(answered.contains_key("a1"), "{report:?}");
            assert_eq!(answered.contains_key("b1"), believes, "{report:?}");
            assert_eq!(report.failed.is_empty(), believes, "{report:?}");
            // The load balancer cannot know: the checks go to the backend's own address.
            let stats = Stats::read(lab.lb()).unwrap();
            assert!(stats.backend(service, "b1") > before.backend(service, "b1"));
        }
        let refused = counters::decap_outcomes(&lab.backend("b1").host).unwrap()["source_not_allowed"];
        assert!(refused > 0);
    }
}

#[test]
fn a_forged_tunnel_packet_is_not_delivered() {
    let lab = Lab::builder().site_a(1).build().unwrap();
    let backend = lab.backend("a1");
    wattline::decap(&backend.host, &["10.200.0.0/16", "fd00:200::/64"]).unwrap();
    let maker = Maker::new(lab.router.link("br0").mac().unwrap(), backend.host.link("eth0").mac().unwrap());
    let sender = RawSender::open(&lab.router, &backend.port).unwrap();
    let inside = Capture::start(&backend.host, "eth0").unwrap();
    let mut delivered = 0;
    let mut refused = 0;
    for (source, allowed) in [
        ("10.200.3.4", true),
        ("10.201.0.1", false),
        ("10.2.0.2", false),
        ("fd00:200::7:1", true),
        ("fd00:200:0:1::1", false),
        ("fd02::2", false),
    ] {
        for (number, vip) in [VIP4, VIP6].into_iter().enumerate() {
            let frame = tunnelled(maker, source.parse().unwrap(), backend, vip, number as u32);
            sender.send(&frame).unwrap();
            let count = if allowed { &mut delivered } else { &mut refused };
            *count += 1;
            wait::until("the packet to be counted", LIMIT, || {
                let outcomes = counters::decap_outcomes(&backend.host).unwrap();
                let counts = (outcomes["ipip"], outcomes["source_not_allowed"]);
                if counts == (delivered, refused) { Ok(()) } else { Err(counts) }
            })
            .unwrap();
            if !allowed {
                // It went up as it came, for the kernel to refuse.
                wait::until("the packet to pass", LIMIT, || {
                    let frames = inside.frames();
                    let same = frames.iter().any(|seen| !seen.sent && seen.bytes == frame);
                    if same { Ok(()) } else { Err(frames.len()) }
                })
                .unwrap();
            }
        }
    }
    // A later exchange is behind everything that was sent: had the server got more, it would have answered it by now.
    traffic::udp(&lab.client, Flow::to(SocketAddr::new(backend.v4.into(), 53))).unwrap();
    wait::until("the allowed ones to be served", LIMIT, || {
        let served = backend.server.stats().datagrams;
        if served == delivered + 1 { Ok(()) } else { Err(served) }
    })
    .unwrap();
}

/// A datagram for a service inside an IP packet to a backend.
fn tunnelled(maker: Maker, source: IpAddr, backend: &Backend, vip: IpAddr, number: u32) -> Vec<u8> {
    let inner = maker.udp(Lab::flow_source(vip, number), SocketAddr::new(vip, 53), b"forged");
    let protocol = if vip.is_ipv4() { IPV4 } else { IPV6 };
    maker.ip(source, backend.address(source), protocol, &inner[tests::frames::ETHERNET..])
}
