//! Named packets for the balancer, and what is expected of each.
//!
//! Expectations are written here by hand, never computed from the packet path. The bytes of a packet that is sent come
//! from [`super::reference`], the rest follows from the reason.

use lb_common::reason::Reason;
use lb_userspace::config::{Mode, Protocol};

use super::{
    build::{self, Wanted, to, with},
    world::{ANY_PORT_HOST, FAULTY_HOST, Kind, MTU, NARROW, Setting, vip},
};

mod refused;

/// What is expected of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It is sent to a backend of this service.
    Sent(String),
    /// It is not sent, and this is why.
    Refused(Reason),
}

/// A named packet.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: String,
    /// The world it arrives in.
    pub setting: Setting,
    /// Bytes that may be put in front of it; `None`: as many as usual.
    pub room: Option<usize>,
    /// The packet.
    pub frame: Vec<u8>,
    /// What is expected.
    pub expected: Expected,
}

/// Cases in the making.
#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, name: impl Into<String>, frame: Vec<u8>, expected: Expected) -> &mut Case {
        self.0.push(Case { name: name.into(), setting: Setting::Prefixes, room: None, frame, expected });
        self.0.last_mut().expect("one was just added")
    }

    fn sent(&mut self, name: impl Into<String>, frame: Vec<u8>, service: impl Into<String>) -> &mut Case {
        self.add(name, frame, Expected::Sent(service.into()))
    }

    fn refused(&mut self, name: impl Into<String>, frame: Vec<u8>, reason: Reason) -> &mut Case {
        self.add(name, frame, Expected::Refused(reason))
    }
}

/// The whole corpus.
pub fn all() -> Vec<Case> {
    let mut cases = Cases::default();
    for kind in Kind::all() {
        every_way(&mut cases, kind);
    }
    for kind in Kind::all().into_iter().filter(|kind| kind.verdict == lb_common::datapath::Verdict::Transmit)
    {
        variations(&mut cases, kind);
        rooms(&mut cases, kind);
    }
    for v6 in [false, true] {
        ports(&mut cases, v6);
        nobody(&mut cases, v6);
        faulty(&mut cases, v6);
        destinations(&mut cases, v6);
    }
    refused::link(&mut cases);
    refused::ipv4(&mut cases);
    refused::ipv6(&mut cases);
    refused::not_configured(&mut cases);
    cases.0
}

fn packet(kind: Kind, protocol: Protocol) -> Wanted {
    to(kind.vip(), kind.port, protocol)
}

/// Where the IP header begins, and where the transport header does.
const fn offsets(v6: bool) -> (usize, usize) {
    (build::ETHERNET, build::ETHERNET + if v6 { 40 } else { 20 })
}

fn every_way(cases: &mut Cases, kind: Kind) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let frame = packet(kind, protocol).frame();
        let name = kind.service(protocol);
        cases.sent(name.clone(), frame.clone(), kind.service(protocol));
        cases.sent(format!("{name}, own source address"), frame, kind.service(protocol)).setting =
            Setting::OwnAddress;
    }
}

/// What must not matter, or must be carried outside.
fn variations(cases: &mut Cases, kind: Kind) {
    let service = kind.service(Protocol::Tcp);
    let wanted = packet(kind, Protocol::Tcp);
    let name = kind.name();
    let (ip, transport) = offsets(kind.inner_v6);
    for class in [0x01, 0x02, 0x03, 0xb8, 0xff] {
        let frame = wanted.traffic_class(class).frame();
        cases.sent(format!("{name}, traffic class {class:#04x}"), frame, &*service);
    }
    for hops in [0, 1, 255] {
        cases.sent(format!("{name}, {hops} hops left"), wanted.hops(hops).frame(), &*service);
    }
    for bytes in [0, 1, 2, 3] {
        cases.sent(format!("{name}, {bytes} bytes of payload"), wanted.payload(bytes).frame(), &*service);
    }
    for port in [0, 1, 80, 65_535] {
        cases.sent(format!("{name}, source port {port}"), wanted.from_port(port).frame(), &*service);
    }
    for bytes in [1, 6, 46] {
        let frame = build::padded(wanted.frame(), bytes);
        cases.sent(format!("{name}, {bytes} bytes of Ethernet padding"), frame, &*service);
    }
    let udp = packet(kind, Protocol::Udp).payload(0);
    cases.sent(format!("{name}, empty datagram"), udp.frame(), kind.service(Protocol::Udp));
    let no_checksum = with(udp.frame(), transport + 6, &[0, 0]);
    cases.sent(format!("{name}, datagram without a checksum"), no_checksum, kind.service(Protocol::Udp));
    let lying = with(udp.frame(), transport + 4, &[0xff, 0xff]);
    cases.sent(format!("{name}, datagram that lies about its length"), lying, kind.service(Protocol::Udp));
    for flags in [0x00, 0x3f, 0xff] {
        let frame = with(wanted.frame(), transport + 13, &[flags]);
        cases.sent(format!("{name}, TCP flags {flags:#04x}"), frame, &*service);
    }
    let no_offset = with(wanted.frame(), transport + 12, &[0]);
    cases.sent(format!("{name}, TCP data offset 0"), no_offset, &*service);
    let fits = usize::from(MTU - kind.overhead());
    cases.sent(format!("{name}, just fits"), wanted.ip_length(fits).frame(), &*service);
    let padded = build::padded(wanted.ip_length(fits).frame(), 4);
    cases.sent(format!("{name}, just fits, with padding"), padded, &*service);
    let too_big = wanted.ip_length(fits + 1).frame();
    cases.refused(format!("{name}, one byte too big"), too_big, Reason::TooBig);
    if !kind.inner_v6 {
        let frame = with(wanted.frame(), ip + 10, &[0xde, 0xad]);
        cases.sent(format!("{name}, wrong header checksum"), frame, &*service);
        for (flags, what) in [(0x40, "don't fragment"), (0x80, "reserved flag"), (0xc0, "both flags")] {
            cases.sent(format!("{name}, {what}"), with(wanted.frame(), ip + 6, &[flags]), &*service);
        }
    }
}

/// Room in front of the frame: just enough, too little, none.
fn rooms(cases: &mut Cases, kind: Kind) {
    let frame = packet(kind, Protocol::Tcp).frame();
    let (name, service) = (kind.name(), kind.service(Protocol::Tcp));
    let overhead = usize::from(kind.overhead());
    cases.sent(format!("{name}, just enough headroom"), frame.clone(), service).room = Some(overhead);
    if kind.mode != Mode::L2 {
        for room in [0, overhead - 4] {
            let name = format!("{name}, headroom of {room}");
            cases.refused(name, frame.clone(), Reason::NoHeadroom).room = Some(room);
        }
    }
}

fn ports(cases: &mut Cases, v6: bool) {
    let family = if v6 { 6 } else { 4 };
    let address = vip(v6, ANY_PORT_HOST);
    for (port, protocol, service) in [
        (1, Protocol::Tcp, "any"),
        (442, Protocol::Tcp, "any"),
        (443, Protocol::Tcp, "exact"),
        (443, Protocol::Udp, "any"),
        (65_535, Protocol::Udp, "any"),
    ] {
        let name = format!("IPv{family}, any port: {protocol} {port}");
        cases.sent(name, to(address, port, protocol).frame(), format!("{service}-{family}-{protocol}"));
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let frame = to(address, 0, protocol).frame();
        cases.refused(format!("IPv{family}, any port: {protocol} 0"), frame, Reason::NotAService);
    }
}

/// Packets that look like a service's.
fn nobody(cases: &mut Cases, v6: bool) {
    let family = if v6 { 6 } else { 4 };
    let address = vip(v6, FAULTY_HOST);
    for (what, wanted) in [
        ("another address", to(vip(v6, 99), 8000, Protocol::Tcp)),
        ("another port", to(address, 7, Protocol::Tcp)),
        ("another protocol", to(address, 1, Protocol::Udp)),
        ("port 0", to(address, 0, Protocol::Tcp)),
    ] {
        cases.refused(format!("IPv{family}, {what}"), wanted.frame(), Reason::NotAService);
    }
    // The bytes of the address are those of a service of the other family, as far as they go.
    let alike = if v6 {
        to(std::net::IpAddr::from([0xc000, 0x020a, 0, 0, 0, 0, 0, 0]), 8000, Protocol::Tcp)
    } else {
        to(std::net::IpAddr::from([0x20, 0x01, 0x0d, 0xb8]), 8010, Protocol::Tcp)
    };
    let name = format!("IPv{family}, begins like an address of the other family");
    cases.refused(name, alike.frame(), Reason::NotAService);
}

/// Services that fail their packets.
fn faulty(cases: &mut Cases, v6: bool) {
    use Reason::{BadState, NoBackend, NoDevice, NoNextHop};
    let family = if v6 { 6 } else { 4 };
    let wanted = |port| to(vip(v6, FAULTY_HOST), port, Protocol::Tcp);
    for (port, what, reason) in [
        (1, "no backend has weight", NoBackend),
        (2, "no way to the backends", NoNextHop),
        (3, "interface not in the device map", NoDevice),
        (11, "ring outside the array", BadState),
        (12, "owner outside the backends", BadState),
        (13, "backends outside the array", BadState),
        (14, "backend without a mode", BadState),
        (15, "backend without a family", BadState),
        (16, "backend of an unknown mode", BadState),
        (17, "ring past the last number", BadState),
        (18, "backends past the last number", BadState),
    ] {
        cases.refused(format!("IPv{family}, {what}"), wanted(port).frame(), reason);
    }
    let ip = if v6 { 40 } else { 20 };
    for (port, name, overhead) in
        [(4, "narrow-ipip", ip), (5, "narrow-gue", ip + 12), (6, "narrow-l2", 0usize)]
    {
        let fits = usize::from(NARROW) - overhead;
        let what = format!("IPv{family}, {name}");
        let service = format!("{name}-{family}");
        cases.sent(format!("{what}, just fits"), wanted(port).ip_length(fits).frame(), service);
        let frame = wanted(port).ip_length(fits + 1).frame();
        cases.refused(format!("{what}, one byte too big"), frame, Reason::TooBig);
    }
}

/// Whom the frame is for does not matter: what a port in promiscuous mode lets in is balanced too.
fn destinations(cases: &mut Cases, v6: bool) {
    let Some(kind) = Kind::all().into_iter().find(|kind| kind.inner_v6 == v6) else { return };
    for (what, mac) in [
        ("another host", [2, 0, 0, 0, 9, 9]),
        ("everybody", [0xff; 6]),
        ("a multicast group", [0x01, 0, 0x5e, 0, 0, 1]),
    ] {
        let frame = with(packet(kind, Protocol::Tcp).frame(), 0, &mac);
        let name = format!("{}, frame addressed to {what}", kind.name());
        cases.sent(name, frame, kind.service(Protocol::Tcp));
    }
}
