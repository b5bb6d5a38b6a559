//! Named packets for the decapsulation on a backend, and what is expected of each.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_common::{
    address::{Family, v4_bytes},
    decap::{DecapNode, Outcome},
    host::MemoryDecapTables,
    node::Node,
};
use lb_userspace::config::Protocol;

use super::{
    build::{self, ETHERNET, ethernet, insert, ipv4, ipv6, to, udp, with},
    world::vip,
};

/// The port of GUE.
const GUE_PORT: u16 = 6080;
/// An allowed source.
const LB4: [u8; 4] = [10, 200, 7, 9];
/// The backend.
const BACKEND4: [u8; 4] = [10, 0, 0, 11];

const fn lb6() -> [u8; 16] {
    Ipv6Addr::new(0xfd00, 0x200, 0, 0, 1, 2, 3, 4).octets()
}

const fn backend6() -> [u8; 16] {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x11).octets()
}

/// Settings and allow list of the backend.
pub fn tables() -> MemoryDecapTables {
    let v4 = |a, length| (Family::V4, v4_bytes(Ipv4Addr::from(a).octets()), length);
    let v6 = |address: Ipv6Addr, length| (Family::V6, address.octets(), length);
    MemoryDecapTables {
        node: Some(DecapNode { gue_port: GUE_PORT, ready: Node::READY, reserved: 0 }),
        sources: vec![
            v4([10, 200, 0, 0], 16),
            v4([10, 0, 0, 2], 32),
            v4([203, 0, 113, 128], 25),
            v6(Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 0), 64),
            v6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2), 128),
        ],
        ..MemoryDecapTables::default()
    }
}

/// A named packet.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: String,
    /// The packet.
    pub frame: Vec<u8>,
    /// What is expected to become of it.
    pub outcome: Outcome,
    /// The frame afterwards, where it is passed up changed.
    pub inside: Option<Vec<u8>>,
}

/// How a packet is wrapped.
#[derive(Clone, Copy, Debug)]
struct Wrap {
    v6: bool,
    gue: bool,
    inner_v6: bool,
}

impl Wrap {
    fn all() -> impl Iterator<Item = Self> {
        let bools = [false, true];
        bools.into_iter().flat_map(move |v6| {
            bools
                .into_iter()
                .flat_map(move |gue| bools.into_iter().map(move |inner_v6| Self { v6, gue, inner_v6 }))
        })
    }

    fn name(self) -> String {
        let family = |v6| if v6 { 6 } else { 4 };
        format!("{} {} in {}", if self.gue { "GUE" } else { "IPIP" }, family(self.inner_v6), family(self.v6))
    }

    const fn inner_protocol(self) -> u8 {
        if self.inner_v6 { 41 } else { 4 }
    }

    /// Where the outer IP header ends.
    const fn after_ip(self) -> usize {
        ETHERNET + if self.v6 { 40 } else { 20 }
    }

    /// Where the inner packet begins.
    const fn inner_at(self) -> usize {
        self.after_ip() + if self.gue { 12 } else { 0 }
    }

    const fn outcome(self) -> Outcome {
        if self.gue { Outcome::Gue } else { Outcome::Ipip }
    }

    /// A client's frame.
    fn client(self) -> Vec<u8> {
        to(vip(self.inner_v6, 10), 80, Protocol::Tcp).frame()
    }

    /// An IP packet around `payload`.
    fn outer(self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        if self.v6 {
            ethernet(0x86dd, &ipv6(lb6(), backend6(), protocol, payload))
        } else {
            ethernet(0x0800, &ipv4(LB4, BACKEND4, protocol, payload))
        }
    }

    /// A tunnel packet around an inner one.
    fn around(self, inner: &[u8]) -> Vec<u8> {
        if self.gue {
            let gue = [&[0, self.inner_protocol(), 0, 0], inner].concat();
            self.outer(17, &udp(50_000, GUE_PORT, &gue))
        } else {
            self.outer(self.inner_protocol(), inner)
        }
    }

    /// With another outer source.
    fn from(self, v4: [u8; 4], v6: Ipv6Addr) -> Vec<u8> {
        let frame = self.around(&self.client()[ETHERNET..]);
        if self.v6 { with(frame, ETHERNET + 8, &v6.octets()) } else { with(frame, ETHERNET + 12, &v4) }
    }
}

/// The whole corpus.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for wrap in Wrap::all() {
        removed(&mut cases, wrap);
        sources(&mut cases, wrap);
        outer_faults(&mut cases, wrap);
        inner_faults(&mut cases, wrap);
        if wrap.gue {
            gue_faults(&mut cases, wrap);
        }
    }
    others(&mut cases);
    cases
}

fn left(cases: &mut Vec<Case>, name: String, frame: Vec<u8>, outcome: Outcome) {
    cases.push(Case { name, frame, outcome, inside: None });
}

fn removed(cases: &mut Vec<Case>, wrap: Wrap) {
    let name = wrap.name();
    let mut add = |what: &str, frame: Vec<u8>, inside: Vec<u8>| {
        let name = format!("{name}{what}");
        cases.push(Case { name, frame, outcome: wrap.outcome(), inside: Some(inside) });
    };
    let client = wrap.client();
    let inner = &client[ETHERNET..];
    add("", wrap.around(inner), client.clone());
    add(", padded", build::padded(wrap.around(inner), 6), build::padded(client.clone(), 6));
    let header = &inner[..if wrap.inner_v6 { 40 } else { 20 }];
    let only = [&client[..ETHERNET], header].concat();
    add(", nothing but a header inside", wrap.around(header), only);
    let lengths = with(client.clone(), ETHERNET + 2, &[0xff, 0xff]);
    add(", inner lengths are the kernel's business", wrap.around(&lengths[ETHERNET..]), lengths);
    let double = Wrap { inner_v6: wrap.v6, ..wrap };
    add(", one layer of two", double.around(&wrap.around(inner)[ETHERNET..]), wrap.around(inner));
    if !wrap.v6 {
        let frame = with(wrap.around(inner), ETHERNET + 10, &[0xde, 0xad]);
        add(", outer header checksum is the driver's business", frame, client.clone());
        let frame = with(wrap.around(inner), ETHERNET + 6, &[0x40, 0]);
        add(", must not be cut", frame, client.clone());
    }
    if wrap.gue {
        let frame = with(wrap.around(inner), wrap.after_ip() + 6, &[0xbe, 0xef]);
        add(", with a checksum", frame, client.clone());
    }
    let frame = with(wrap.around(inner), ETHERNET + 1, &[if wrap.v6 { 0x3f } else { 0xff }]);
    add(", another outer traffic class", frame, client.clone());
}

fn sources(cases: &mut Vec<Case>, wrap: Wrap) {
    let client = wrap.client();
    for (v4, last) in [([10, 200, 0, 0], 0u16), ([10, 200, 255, 255], 0xffff)] {
        let frame = wrap.from(v4, Ipv6Addr::new(0xfd00, 0x200, 0, 0, last, last, last, last));
        let name = format!("{}, edge of a prefix ({last:#x})", wrap.name());
        cases.push(Case { name, frame, outcome: wrap.outcome(), inside: Some(client.clone()) });
    }
    let frame = wrap.from([10, 0, 0, 2], Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
    let name = format!("{}, single allowed address", wrap.name());
    cases.push(Case { name, frame, outcome: wrap.outcome(), inside: Some(client) });
    for (what, v4, v6) in [
        ("below the prefix", [10, 199, 255, 255], Ipv6Addr::new(0xfd00, 0x1ff, 0, 0xffff, 0, 0, 0, 1)),
        ("above the prefix", [10, 201, 0, 0], Ipv6Addr::new(0xfd00, 0x200, 0, 1, 0, 0, 0, 0)),
        ("beside the single address", [10, 0, 0, 3], Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3)),
        ("half of a prefix", [203, 0, 113, 127], Ipv6Addr::new(0xfd80, 0x200, 0, 0, 0, 0, 0, 1)),
        ("zero", [0; 4], Ipv6Addr::UNSPECIFIED),
        ("the client", [198, 51, 100, 7], Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7)),
    ] {
        let name = format!("{}, source {what}", wrap.name());
        left(cases, name, wrap.from(v4, v6), Outcome::SourceNotAllowed);
    }
}

fn outer_faults(cases: &mut Vec<Case>, wrap: Wrap) {
    let name = wrap.name();
    let good = wrap.around(&wrap.client()[ETHERNET..]);
    let longer = (good.len() - ETHERNET + 1) as u16;
    if wrap.v6 {
        let longer = longer - 40;
        let frame = with(good.clone(), ETHERNET + 4, &longer.to_be_bytes());
        left(cases, format!("{name}, longer than the frame"), frame, Outcome::BadOuter);
        for version in [0, 4, 15] {
            let frame = with(good.clone(), ETHERNET, &[version << 4]);
            left(cases, format!("{name}, version {version}"), frame, Outcome::BadOuter);
        }
        for next in [0u8, 43, 44, 51, 60] {
            let mut frame = insert(&good, ETHERNET + 40, &[good[ETHERNET + 6], 0, 0, 0, 0, 0, 0, 0]);
            frame[ETHERNET + 6] = next;
            left(cases, format!("{name}, behind extension header {next}"), frame, Outcome::NotTunnel);
        }
    } else {
        for total in [0, 19, longer, 0xffff] {
            let frame = with(good.clone(), ETHERNET + 2, &total.to_be_bytes());
            left(cases, format!("{name}, total length {total}"), frame, Outcome::BadOuter);
        }
        for field in [0x2000u16, 0x0001, 0x1fff] {
            let frame = with(good.clone(), ETHERNET + 6, &field.to_be_bytes());
            left(cases, format!("{name}, fragment {field:#06x}"), frame, Outcome::OuterNotHandled);
        }
        for first in [0x46, 0x4f, 0x44, 0x65, 0x05] {
            let frame = with(good.clone(), ETHERNET, &[first]);
            left(cases, format!("{name}, first byte {first:#04x}"), frame, Outcome::OuterNotHandled);
        }
    }
    for length in [0, if wrap.v6 { 39 } else { 19 }] {
        let frame = good[..ETHERNET + length].to_vec();
        left(cases, format!("{name}, {length} bytes of outer header"), frame, Outcome::NotTunnel);
    }
}

fn inner_faults(cases: &mut Vec<Case>, wrap: Wrap) {
    let name = wrap.name();
    let good = wrap.around(&wrap.client()[ETHERNET..]);
    for version in (0..16u8).filter(|&version| version != if wrap.inner_v6 { 6 } else { 4 }) {
        let frame = with(good.clone(), wrap.inner_at(), &[version << 4 | 5]);
        left(cases, format!("{name}, inner version {version}"), frame, Outcome::BadInner);
    }
    let header = if wrap.inner_v6 { 40 } else { 20 };
    for length in [0, 1, header - 1] {
        let inner = wrap.client()[ETHERNET..ETHERNET + length].to_vec();
        left(cases, format!("{name}, {length} bytes inside"), wrap.around(&inner), Outcome::BadInner);
        let padded = build::padded(wrap.around(&inner), 46);
        left(cases, format!("{name}, {length} bytes inside and padding"), padded, Outcome::BadInner);
    }
}

fn gue_faults(cases: &mut Vec<Case>, wrap: Wrap) {
    let name = wrap.name();
    let good = wrap.around(&wrap.client()[ETHERNET..]);
    let at = wrap.after_ip();
    for (what, first) in [
        ("variant 1", 0x40),
        ("variant 2", 0x80),
        ("variant 3", 0xc0),
        ("control message", 0x20),
        ("an optional word", 0x01),
        ("31 optional words", 0x1f),
        ("IPv4 without a GUE header", 0x45),
        ("IPv6 without a GUE header", 0x60),
    ] {
        let frame = with(good.clone(), at + 8, &[first]);
        left(cases, format!("{name}, {what}"), frame, Outcome::GueNotHandled);
    }
    for protocol in [0, 1, 6, 17, 47, 59, 255] {
        let frame = with(good.clone(), at + 9, &[protocol]);
        left(cases, format!("{name}, protocol {protocol} inside"), frame, Outcome::GueNotHandled);
    }
    for flags in [[0x80, 0], [0, 1], [0xff, 0xff]] {
        let frame = with(good.clone(), at + 10, &flags);
        left(cases, format!("{name}, flags {flags:02x?}"), frame, Outcome::GueNotHandled);
    }
    let length = (good.len() - at) as u16;
    for wrong in [0, 7, 8, 11, length + 1, 0xffff] {
        let frame = with(good.clone(), at + 4, &wrong.to_be_bytes());
        left(cases, format!("{name}, UDP length {wrong}"), frame, Outcome::BadOuter);
    }
    for port in [0, 6079, 6081, 80, 0xffff_u16] {
        let frame = with(good.clone(), at + 2, &port.to_be_bytes());
        left(cases, format!("{name}, port {port}"), frame, Outcome::NotTunnel);
    }
    let other = if wrap.inner_v6 { 4 } else { 41 };
    let frame = with(good, at + 9, &[other]);
    left(cases, format!("{name}, protocol of the other version"), frame, Outcome::BadInner);
    for length in [0, 7] {
        let frame = wrap.outer(17, &vec![0; length]);
        left(cases, format!("{name}, {length} bytes of UDP header"), frame, Outcome::NotTunnel);
    }
}

fn others(cases: &mut Vec<Case>) {
    for v6 in [false, true] {
        let family = if v6 { 6 } else { 4 };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let frame = to(vip(v6, 10), 80, protocol).frame();
            left(cases, format!("plain {protocol} over IPv{family}"), frame, Outcome::NotTunnel);
        }
        for protocol in [1u8, 2, 47, 50, 58, 132, 255] {
            let wrap = Wrap { v6, gue: false, inner_v6: false };
            let frame = wrap.outer(protocol, &[0; 40]);
            left(cases, format!("protocol {protocol} over IPv{family}"), frame, Outcome::NotTunnel);
        }
        let tagged = insert(&to(vip(v6, 10), 80, Protocol::Tcp).frame(), 12, &[0x81, 0, 0, 7]);
        left(cases, format!("IPv{family} in a VLAN"), tagged, Outcome::NotTunnel);
    }
    left(cases, "ARP".into(), ethernet(0x0806, &[0; 28]), Outcome::NotTunnel);
    for length in 0..14 {
        left(cases, format!("frame of {length} bytes"), vec![0; length], Outcome::NotTunnel);
    }
}
