//! Packets that end at the parser, by layer, and those beside them that just do not.

use lb_common::{datapath::Verdict, reason::Reason};
use lb_userspace::config::Protocol;

use super::{Cases, Kind, Setting, offsets, packet};
use crate::packets::build::{self, ETHERNET, insert, with};

/// The kind whose packets are mutilated: the plainest of a family.
fn plain(v6: bool) -> Kind {
    let mut kinds = Kind::all().into_iter();
    kinds
        .find(|kind| kind.inner_v6 == v6 && kind.verdict == Verdict::Transmit)
        .expect("both families have one")
}

fn frame(v6: bool, protocol: Protocol) -> Vec<u8> {
    packet(plain(v6), protocol).frame()
}

/// Ethernet.
pub(super) fn link(cases: &mut Cases) {
    for length in 0..14 {
        let bytes = frame(false, Protocol::Tcp)[..length].to_vec();
        cases.refused(format!("frame of {length} bytes"), bytes, Reason::ShortFrame);
    }
    for (ether_type, what) in [
        (0x0806, "ARP"),
        (0x88cc, "LLDP"),
        (0x8863, "PPPoE discovery"),
        (0x8864, "PPPoE session"),
        (0x8847, "MPLS"),
        (0x88e5, "MACsec"),
        (0x9100, "an old double tag"),
        (0x0026, "a length instead of a type"),
        (0x0000, "type 0"),
        (0xffff, "type 0xffff"),
        (0x0008, "IPv4 with its bytes swapped"),
        (0xdd86, "IPv6 with its bytes swapped"),
    ] {
        let bytes = with(frame(false, Protocol::Tcp), 12, &u16::to_be_bytes(ether_type));
        cases.refused(format!("Ethernet: {what}"), bytes, Reason::NotIp);
        cases.refused(
            format!("Ethernet: {what}, nothing behind"),
            build::ethernet(ether_type, &[]),
            Reason::NotIp,
        );
    }
    for v6 in [false, true] {
        let family = if v6 { 6 } else { 4 };
        for (tag, what) in [(0x8100u16, "VLAN"), (0x88a8, "service VLAN")] {
            let [high, low] = tag.to_be_bytes();
            let bytes = insert(&frame(v6, Protocol::Tcp), 12, &[high, low, 0, 7]);
            cases.refused(format!("IPv{family} in a {what}"), bytes, Reason::Vlan);
            let priority = insert(&frame(v6, Protocol::Tcp), 12, &[high, low, 0xe0, 0]);
            cases.refused(format!("IPv{family} with a priority tag, {what}"), priority, Reason::Vlan);
            let double = insert(&frame(v6, Protocol::Tcp), 12, &[0x88, 0xa8, 0, 9, high, low, 0, 7]);
            cases.refused(format!("IPv{family} in two tags, {what} inside"), double, Reason::Vlan);
        }
        let other = with(frame(v6, Protocol::Tcp), 12, if v6 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
        let name = format!("IPv{family} under the type of the other version");
        cases.refused(name, other, Reason::BadIpHeader);
    }
}

/// Lengths of the IP packet that are wrong, or only just right.
fn lengths(cases: &mut Cases, v6: bool) {
    let family = if v6 { 6 } else { 4 };
    let (ip, transport) = offsets(v6);
    let (field, header) = if v6 { (ip + 4, 0) } else { (ip + 2, 20) };
    for (protocol, needed) in [(Protocol::Tcp, 20), (Protocol::Udp, 8)] {
        let whole = frame(v6, protocol);
        let set = |payload: usize| with(whole.clone(), field, &((header + payload) as u16).to_be_bytes());
        let service = plain(v6).service(protocol);
        let payload = whole.len() - transport;
        for shorter in [needed, needed + 1, payload - 1, payload] {
            let name = format!("IPv{family}, {protocol}: length field says {shorter} behind the header");
            cases.sent(name, set(shorter), &*service);
        }
        for short in [1, 2, 3, 4, needed - 1] {
            let name = format!("IPv{family}, {protocol}: {short} bytes behind the header");
            cases.refused(name, set(short), Reason::TruncatedTransport);
            let name = format!("IPv{family}, {protocol}: {short} bytes behind the header and in the frame");
            cases.refused(name, set(short)[..transport + short].to_vec(), Reason::TruncatedTransport);
        }
        for long in [payload + 1, payload + 256, 65_535 - header] {
            let name = format!("IPv{family}, {protocol}: length field says {long} behind the header");
            cases.refused(name, set(long), Reason::BadLength);
        }
    }
    for length in [0, 1, if v6 { 39 } else { 19 }] {
        let bytes = frame(v6, Protocol::Tcp)[..ETHERNET + length].to_vec();
        cases.refused(format!("IPv{family}, header cut after {length} bytes"), bytes, Reason::TruncatedIp);
    }
}

/// RFC 791.
pub(super) fn ipv4(cases: &mut Cases) {
    let tcp = frame(false, Protocol::Tcp);
    let service = plain(false).service(Protocol::Tcp);
    for words in 0..16u8 {
        let bytes = with(tcp.clone(), ETHERNET, &[0x40 | words]);
        let name = format!("IPv4, header of {words} words");
        match words {
            ..5 => cases.refused(name, bytes, Reason::BadIpHeader),
            5 => cases.sent(name, bytes, &*service),
            _ => cases.refused(name, bytes, Reason::Ipv4Options),
        };
    }
    for version in (0..16u8).filter(|&version| version != 4) {
        let bytes = with(tcp.clone(), ETHERNET, &[version << 4 | 5]);
        cases.refused(format!("IPv4, version {version}"), bytes, Reason::BadIpHeader);
    }
    // Real options, with the lengths that belong to them.
    for words in 1..=10u8 {
        let mut bytes = insert(&tcp, ETHERNET + 20, &vec![1; 4 * usize::from(words)]);
        bytes[ETHERNET] = 0x45 + words;
        bytes[ETHERNET + 3] += 4 * words;
        cases.refused(format!("IPv4, {words} words of options"), bytes, Reason::Ipv4Options);
    }
    lengths(cases, false);
    for total in [0u16, 1, 19] {
        let bytes = with(tcp.clone(), ETHERNET + 2, &total.to_be_bytes());
        cases.refused(format!("IPv4, total length {total}"), bytes, Reason::BadLength);
    }
    let bytes = with(tcp.clone(), ETHERNET + 2, &[0, 20]);
    cases.refused("IPv4, total length 20", bytes, Reason::TruncatedTransport);
    for (field, what) in [
        (0x2000u16, "first fragment"),
        (0x2001, "middle fragment"),
        (0x0001, "last fragment"),
        (0x1fff, "last possible offset"),
        (0x6000, "first fragment that must not be cut"),
        (0x3fff, "all bits of a fragment"),
    ] {
        let bytes = with(tcp.clone(), ETHERNET + 6, &field.to_be_bytes());
        cases.refused(format!("IPv4, {what}"), bytes, Reason::Fragment);
    }
    for protocol in (0..=255u8).filter(|protocol| ![6, 17].contains(protocol)) {
        // A few of each by name would do; all of them cost nothing.
        let reason = if protocol == 1 { Reason::Icmp } else { Reason::OtherProtocol };
        let bytes = with(tcp.clone(), ETHERNET + 9, &[protocol]);
        cases.refused(format!("IPv4, protocol {protocol}"), bytes, reason);
    }
}

/// RFC 8200.
pub(super) fn ipv6(cases: &mut Cases) {
    let tcp = frame(true, Protocol::Tcp);
    for version in (0..16u8).filter(|&version| version != 6) {
        let bytes = with(tcp.clone(), ETHERNET, &[version << 4]);
        cases.refused(format!("IPv6, version {version}"), bytes, Reason::BadIpHeader);
    }
    for label in [[0x60, 0, 0, 0], [0x60, 0x0f, 0xff, 0xff]] {
        let name = format!("IPv6, flow label {:02x}{:02x}{:02x}", label[1], label[2], label[3]);
        cases.sent(name, with(tcp.clone(), ETHERNET, &label), plain(true).service(Protocol::Tcp));
    }
    lengths(cases, true);
    for rest in [0, 20, 28] {
        let bytes = with(tcp[..ETHERNET + 40 + rest].to_vec(), ETHERNET + 4, &[0, 0]);
        let name = format!("IPv6, payload length 0 with {rest} bytes behind");
        cases.refused(name, bytes, Reason::BadLength);
    }
    for next in (0..=255u8).filter(|next| ![6, 17].contains(next)) {
        let reason = match next {
            58 => Reason::Icmp,
            44 => Reason::Fragment,
            0 | 43 | 51 | 60 | 135 => Reason::ExtensionHeader,
            _ => Reason::OtherProtocol,
        };
        let bytes = with(tcp.clone(), ETHERNET + 6, &[next]);
        cases.refused(format!("IPv6, next header {next}"), bytes, reason);
    }
    // Real extension headers in front of the TCP header.
    for (next, header, reason) in [
        (0u8, [6u8, 0, 1, 4, 0, 0, 0, 0], Reason::ExtensionHeader),
        (60, [6, 0, 1, 4, 0, 0, 0, 0], Reason::ExtensionHeader),
        (43, [6, 0, 4, 0, 0, 0, 0, 0], Reason::ExtensionHeader),
        (44, [6, 0, 0, 1, 0, 0, 0, 9], Reason::Fragment),
        (44, [6, 0, 0, 0, 0, 0, 0, 9], Reason::Fragment),
    ] {
        let mut bytes = insert(&tcp, ETHERNET + 40, &header);
        bytes[ETHERNET + 5] += 8;
        bytes[ETHERNET + 6] = next;
        cases.refused(format!("IPv6, header {next} {header:02x?} in front of TCP"), bytes, reason);
    }
}

/// Before the agent has filled in the node's entry, nothing is looked at.
pub(super) fn not_configured(cases: &mut Cases) {
    for (what, bytes) in [
        ("a packet of a service", frame(false, Protocol::Tcp)),
        ("a packet of an IPv6 service", frame(true, Protocol::Udp)),
        ("ARP", build::ethernet(0x0806, &[0; 28])),
        ("a bad packet", with(frame(false, Protocol::Tcp), ETHERNET, &[0])),
        ("a short frame", vec![0; 5]),
    ] {
        let name = format!("not configured: {what}");
        cases.refused(name, bytes, Reason::NotConfigured).setting = Setting::NotConfigured;
    }
}
