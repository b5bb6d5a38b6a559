//! Packets that are not forwarded: what is passed up arrives at the kernel as it came, what is dropped does not, and each
//! is counted under its reason.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tests::capture::{Capture, RawSender};
use tests::config::{Config, Family, Service};
use tests::counters::{self, Stats};
use tests::frames::{ETHERNET, Maker, checksum};
use tests::topology::{Lab, VIP4, VIP6};
use tests::traffic::{self, Flow};
use tests::wattline::Agent;
use tests::{payload, wait};

const LIMIT: Duration = Duration::from_secs(30);
/// Reasons under which the lab's own packets are counted too.
const NOISY: [&str; 5] = ["not_a_service", "not_ip", "icmp", "extension_header", "other_protocol"];

/// A frame, and the reason that is due to it.
type Due = (&'static str, Vec<u8>);

/// One UDP service per family.
fn config(lab: &Lab, mode: &str) -> Config {
    let services = [("dns4", VIP4), ("dns6", VIP6)].map(|(name, vip)| {
        Service::udp(name, SocketAddr::new(vip, 53)).mode(mode).backends(Family::of(vip), &lab.backends)
    });
    services.into_iter().fold(Config::new(), Config::service)
}

fn maker(lab: &Lab) -> Maker {
    Maker::new(lab.router.link("lb1").mac().unwrap(), lab.lb().link("eth0").mac().unwrap())
}

/// A datagram of the first flow to the service of a family.
fn datagram(maker: Maker, vip: IpAddr, data: &[u8]) -> Vec<u8> {
    maker.udp(Lab::flow_source(vip, 1), SocketAddr::new(vip, 53), data)
}

/// Sets bytes of the IPv4 header and makes its checksum right again.
fn patched(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    let header = &mut frame[ETHERNET..];
    header[at..at + bytes.len()].copy_from_slice(bytes);
    header[10..12].fill(0);
    let length = (usize::from(header[0] & 15) * 4).min(header.len());
    let sum = checksum(&header[..length]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// An IPv6 packet to the service with `header` (whose first byte says that UDP follows) between IP and UDP.
fn extended(maker: Maker, number: u8, header: [u8; 8]) -> Vec<u8> {
    let udp = datagram(maker, VIP6, b"behind a header");
    let payload = [&header, &udp[ETHERNET + 40..]].concat();
    maker.ip(Lab::flow_source(VIP6, 1).ip(), VIP6, number, &payload)
}

fn tagged(frame: &[u8], ethertype: u16) -> Vec<u8> {
    [&frame[..12], &ethertype.to_be_bytes(), &[0, 42], &frame[12..]].concat()
}

/// An IPv4 packet to the service with four bytes of options: no-operations and the end of the list.
fn with_options(maker: Maker) -> Vec<u8> {
    let frame = datagram(maker, VIP4, b"behind options");
    let (front, back) = frame.split_at(ETHERNET + 20);
    let frame = [front, &[1, 1, 1, 0], back].concat();
    let length = (frame.len() - ETHERNET) as u16;
    let frame = patched(frame, 2, &length.to_be_bytes());
    patched(frame, 0, &[0x46])
}

/// Everything that goes up to the kernel.
fn passed(maker: Maker) -> Vec<Due> {
    let v4 = datagram(maker, VIP4, &payload::bytes(1, 64));
    let v6 = datagram(maker, VIP6, &payload::bytes(2, 64));
    let ip = |vip: IpAddr, protocol, payload: &[u8]| {
        maker.ip(Lab::flow_source(vip, 1).ip(), vip, protocol, payload)
    };
    let elsewhere = |vip: IpAddr, port| maker.udp(Lab::flow_source(vip, 1), SocketAddr::new(vip, port), b"x");
    vec![
        // First, middle and last fragment.
        ("fragment", patched(v4.clone(), 6, &[0x20, 0])),
        ("fragment", patched(v4.clone(), 6, &[0x20, 0xb9])),
        ("fragment", patched(v4.clone(), 6, &[0, 0xb9])),
        ("fragment", extended(maker, 44, [17, 0, 0, 1, 0, 0, 0, 7])),
        ("ipv4_options", with_options(maker)),
        ("extension_header", extended(maker, 0, [17, 0, 1, 4, 0, 0, 0, 0])),
        ("extension_header", extended(maker, 43, [17, 0, 4, 0, 0, 0, 0, 0])),
        ("extension_header", extended(maker, 60, [17, 0, 1, 4, 0, 0, 0, 0])),
        ("icmp", ip(VIP4, 1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0])),
        ("icmp", ip(VIP4, 1, &[&[3, 4, 0, 0, 0, 0, 5, 0xdc], &v4[ETHERNET..ETHERNET + 28]].concat())),
        ("icmp", ip(VIP6, 58, &[&[2, 0, 0, 0, 0, 0, 5, 0xdc], &v6[ETHERNET..]].concat())),
        ("other_protocol", ip(VIP4, 47, b"no tunnel of ours")),
        ("other_protocol", ip(VIP6, 132, b"a stream protocol")),
        ("vlan", tagged(&v4, 0x8100)),
        ("vlan", tagged(&v6, 0x88a8)),
        ("not_ip", maker.frame(0x88b5, b"an experiment of somebody's, long enough for a frame")),
        ("not_a_service", elsewhere(VIP4, 54)),
        ("not_a_service", elsewhere(VIP6, 54)),
        ("not_a_service", maker.tcp(Lab::flow_source(VIP4, 1), SocketAddr::new(VIP4, 53), b"x")),
    ]
}

/// Everything that is wrong in itself and ends at the load balancer.
fn dropped(maker: Maker) -> Vec<Due> {
    let v4 = datagram(maker, VIP4, &payload::bytes(3, 64));
    let v6 = datagram(maker, VIP6, &payload::bytes(4, 64));
    let ip = |vip: IpAddr, protocol, payload: &[u8]| {
        maker.ip(Lab::flow_source(vip, 1).ip(), vip, protocol, payload)
    };
    let mut version = v6.clone();
    version[ETHERNET] = 0x50;
    let mut long = v6.clone();
    long[ETHERNET + 5] += 1;
    let mut jumbo = v6.clone();
    jumbo[ETHERNET + 4..ETHERNET + 6].fill(0);
    vec![
        ("truncated_ip", v4[..ETHERNET + 19].to_vec()),
        ("truncated_ip", v6[..ETHERNET + 39].to_vec()),
        ("bad_ip_header", patched(v4.clone(), 0, &[0x44])),
        ("bad_ip_header", patched(v4.clone(), 0, &[0x65])),
        ("bad_ip_header", version),
        ("bad_length", v4[..v4.len() - 1].to_vec()),
        ("bad_length", patched(v4, 2, &[0, 19])),
        ("bad_length", long),
        ("bad_length", jumbo),
        ("truncated_transport", ip(VIP4, 17, &[0x30, 0x39, 0, 53, 0, 8, 0])),
        ("truncated_transport", ip(VIP4, 6, &[0x30; 19])),
        ("truncated_transport", ip(VIP6, 17, &[0x30, 0x39, 0, 53, 0, 8, 0])),
        ("truncated_transport", ip(VIP6, 6, &[0x30; 19])),
    ]
}

/// Sends frames and waits until each is counted under its reason. The noisy ones may have grown by more.
fn send_counted(lab: &Lab, frames: &[Due]) {
    let sender = RawSender::open(&lab.router, "lb1").unwrap();
    let before = Stats::read(lab.lb()).unwrap();
    let mut due = BTreeMap::<&str, u64>::new();
    for (reason, frame) in frames {
        sender.send(frame).unwrap();
        *due.entry(reason).or_default() += 1;
    }
    wait::until("all frames to be counted", LIMIT, || {
        let stats = Stats::read(lab.lb()).unwrap();
        let lacks: Vec<_> = due
            .iter()
            .map(|(reason, due)| (*reason, stats.reason(reason) - before.reason(reason), *due))
            .filter(|(_, counted, due)| counted < due)
            .collect();
        if lacks.is_empty() { Ok(()) } else { Err(lacks) }
    })
    .unwrap();
    let stats = Stats::read(lab.lb()).unwrap();
    for (reason, packets) in &stats.reasons {
        let (grown, due) = (packets - before.reason(reason), due.get(reason.as_str()).copied().unwrap_or(0));
        assert!(grown == due || NOISY.contains(&reason.as_str()), "{reason}: {grown} instead of {due}");
    }
    assert_eq!(stats.forwarded, before.forwarded);
    assert_eq!(stats.received, stats.forwarded + stats.passed + stats.dropped);
}

#[test]
fn what_is_not_handled_goes_up_as_it_came() {
    let lab = Lab::builder().site_a(1).build().unwrap();
    let _agent = counters::balance(&lab, &config(&lab, "ipip")).unwrap();
    let inside = Capture::start(lab.lb(), "eth0").unwrap();
    let frames = passed(maker(&lab));
    send_counted(&lab, &frames);
    for (reason, frame) in &frames {
        // The kernel takes the tag off before a capture sees the frame.
        let untagged = [&frame[..12], &frame[16..]].concat();
        let expected = if *reason == "vlan" { &untagged } else { frame };
        wait::until("the frame to go up", LIMIT, || {
            let seen = inside.frames();
            let same = seen.iter().filter(|seen| !seen.sent && seen.bytes == *expected).count();
            if same == 1 { Ok(()) } else { Err((reason, same, seen.len())) }
        })
        .unwrap();
    }
    // The service goes on as if nothing had been.
    traffic::udp(&lab.client, Flow::to(SocketAddr::new(VIP4, 53))).unwrap();
}

#[test]
fn what_is_wrong_in_itself_ends_at_the_load_balancer() {
    let lab = Lab::builder().site_a(1).build().unwrap();
    let _agent = counters::balance(&lab, &config(&lab, "gue")).unwrap();
    let inside = Capture::start(lab.lb(), "eth0").unwrap();
    let frames = dropped(maker(&lab));
    send_counted(&lab, &frames);
    // This one is behind all of them.
    let last = maker(&lab).frame(0x88b5, b"the last frame of all, long enough not to be filled up");
    send_counted(&lab, &[("not_ip", last.clone())]);
    let seen = wait::until("the last frame to go up", LIMIT, || {
        let seen = inside.frames();
        if seen.iter().any(|seen| seen.bytes == last) { Ok(seen) } else { Err(seen.len()) }
    })
    .unwrap();
    for (reason, frame) in &frames {
        assert!(!seen.iter().any(|seen| seen.bytes == *frame), "{reason} went up");
    }
}

#[test]
fn a_packet_that_outgrows_the_mtu_is_dropped_and_counted() {
    // Inside carries no more than outside: there is no room for an outer header around a full packet.
    let lab = Lab::builder().site_a(1).inner_mtu(1500).build().unwrap();
    let mut config = Config::new();
    let mut cases = Vec::new();
    for (mode, between) in [("ipip", 0), ("gue", 12), ("l2", 0)] {
        for family in Family::ALL {
            for backend in Family::ALL {
                if mode == "l2" && family != backend {
                    continue;
                }
                let vip = if family == Family::V4 { VIP4 } else { VIP6 };
                let target = SocketAddr::new(vip, 100 + cases.len() as u16);
                let name = format!("{mode}-{family}in{backend}");
                config =
                    config.service(Service::udp(&name, target).mode(mode).backends(backend, &lab.backends));
                let outer = match (mode, backend) {
                    ("l2", _) => 0,
                    (_, Family::V4) => 20,
                    (_, Family::V6) => 40,
                };
                let inner = if family == Family::V4 { 20 } else { 40 };
                // Data of the largest datagram that fits.
                cases.push((name, target, 1500 - outer - between - inner - 8));
            }
        }
    }
    let _agent = counters::balance(&lab, &config).unwrap();
    let maker = maker(&lab);
    let sender = RawSender::open(&lab.router, "lb1").unwrap();
    let mut dropped = 0;
    for (name, target, fits) in &cases {
        let inside = Capture::start(lab.lb(), "eth0").unwrap();
        let source = Lab::flow_source(target.ip(), 1);
        sender.send(&maker.udp(source, *target, &payload::bytes(5, *fits))).unwrap();
        let mut due = (1, 0);
        let larger = maker.udp(source, *target, &payload::bytes(6, fits + 1));
        if larger.len() <= ETHERNET + 1500 {
            sender.send(&larger).unwrap();
            due.1 += 1;
            dropped += 1;
        }
        let stats = wait::until("both to be counted", LIMIT, || {
            let stats = Stats::read(lab.lb()).unwrap();
            let counts = (stats.services[name], stats.service_drops[name]);
            if counts == due { Ok(stats) } else { Err((name, counts, stats.reasons)) }
        })
        .unwrap();
        assert_eq!((stats.reason("too_big"), stats.dropped), (dropped, dropped), "{name}");
        let up = inside.frames().iter().filter(|seen| !seen.sent && seen.bytes == larger).count();
        assert_eq!(up, 0, "{name}");
    }
    // The same from an ordinary socket: 1,500 bytes leave the client and never arrive.
    let target = cases[0].1;
    let flow = Flow::to(target).bytes(1472).timeout(Duration::from_secs(1));
    traffic::udp(&lab.client, flow).unwrap_err();
    assert_eq!(Stats::read(lab.lb()).unwrap().reason("too_big"), dropped + 1);
}

#[test]
fn a_service_without_a_way_to_its_backends_drops() {
    let lab = Lab::builder().site_a(1).build().unwrap();
    let target = |port| SocketAddr::new(VIP4, port);
    let a1 = lab.backend("a1").v4.into();
    let config = Config::new()
        .service(Service::udp("empty", target(100)))
        .service(Service::udp("weightless", target(101)).backend("a1", a1, 0))
        // On the load balancer's own Ethernet, and nobody answers for it.
        .service(Service::udp("absent", target(102)).backend("a9", "10.2.0.209".parse().unwrap(), 1))
        .service(Service::udp("given-up", target(103)).set("all_down", r#""drop""#).backend(
            "a9",
            "10.2.0.209".parse().unwrap(),
            1,
        ))
        .service(Service::udp("dns", target(53)).backend("a1", a1, 1));
    let _agent = Agent::start(lab.lb(), &config.to_string()).unwrap();
    let maker = maker(&lab);
    let to = |port| maker.udp(Lab::flow_source(VIP4, 1), target(port), b"anybody?");
    send_counted(
        &lab,
        &[
            ("no_backend", to(100)),
            ("no_backend", to(101)),
            ("no_next_hop", to(102)),
            ("no_backend", to(103)),
        ],
    );
    let stats = Stats::read(lab.lb()).unwrap();
    for service in ["empty", "weightless", "absent", "given-up"] {
        assert_eq!((stats.services[service], stats.service_drops[service]), (0, 1), "{service}");
    }
    assert_eq!(stats.service_drops["dns"], 0);
}
