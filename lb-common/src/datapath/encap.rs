//! Putting a packet into another one, and the arithmetic of the outer headers.
//!
//! The inner packet is never touched: bytes behind its end (Ethernet padding) travel along but are in no length field.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use super::{
    checksum,
    hash::FlowHash,
    packet::Packet,
    parse::{Parsed, protocol},
};
use crate::{
    address::{AddressBytes, Family},
    backend::{Backend, Mode},
    node::Node,
    reason::Reason,
};

/// Bytes of the GUE base header.
pub const GUE_HEADER: usize = 4;
/// Bytes of UDP and GUE headers together.
pub const GUE_OVERHEAD: usize = UdpHdr::LEN + GUE_HEADER;

/// Hop limit of what we send: it starts a journey of its own.
const TTL: u8 = 64;
/// "Don't fragment": the outer packet is never cut, so its identification is without meaning (RFC 6864).
const DONT_FRAGMENT: u16 = 0x4000;

/// The protocol number that says "a packet of `family` follows".
#[inline(always)]
pub const fn payload_protocol(family: Family) -> u8 {
    match family {
        Family::V4 => protocol::IPV4,
        Family::V6 => protocol::IPV6,
    }
}

/// Bytes that a mode puts between the Ethernet header and the inner packet.
pub const fn overhead(mode: Mode, outer: Family) -> usize {
    let ip = match outer {
        Family::V4 => Ipv4Hdr::LEN,
        Family::V6 => Ipv6Hdr::LEN,
    };
    match mode {
        Mode::Ipip => ip,
        Mode::Gue => ip + GUE_OVERHEAD,
        Mode::L2 => 0,
    }
}

/// The folded sum of the outer IPv4 header's words that never change for a backend: version and header length, flags,
/// hop limit, the prefix of the source and the destination. Type of service, length, protocol and entropy are added
/// per packet.
pub const fn constant_sum(source: [u8; 4], destination: [u8; 4]) -> u16 {
    let mut sum = checksum::add(0, 0x4500);
    sum = checksum::add(sum, DONT_FRAGMENT);
    sum = checksum::add(sum, (TTL as u16) << 8);
    sum = checksum::add32(sum, u32::from_be_bytes(source));
    sum = checksum::add32(sum, u32::from_be_bytes(destination));
    checksum::fold(sum)
}

/// Turns the frame into one for the backend: new Ethernet header, and an outer packet where the mode has one.
#[inline(always)]
pub fn encapsulate<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    hash: FlowHash,
    node: &Node,
    backend: &Backend,
) -> Result<(), Reason> {
    let mode = backend.mode().ok_or(Reason::BadState)?;
    let outer = backend.family().ok_or(Reason::BadState)?;
    // L2 with a backend of the other family would name an Ethernet type the frame does not have.
    if matches!(mode, Mode::L2) {
        return if parsed.ip_length > backend.mtu {
            Err(Reason::TooBig)
        } else {
            rewrite(packet, parsed, backend)
        };
    }
    let length = parsed.ip_length as usize + overhead(mode, outer);
    if length > backend.mtu as usize {
        return Err(Reason::TooBig);
    }
    let length = length as u16;
    match (outer, mode) {
        (Family::V4, Mode::Gue) => {
            packet.grow(Ipv4Hdr::LEN + GUE_OVERHEAD).ok_or(Reason::NoHeadroom)?;
            put_v4(packet, protocol::UDP, length, parsed, hash, backend)?;
            put_gue(packet, EthHdr::LEN + Ipv4Hdr::LEN, length - Ipv4Hdr::LEN as u16, parsed, hash, node)
        }
        (Family::V4, _) => {
            packet.grow(Ipv4Hdr::LEN).ok_or(Reason::NoHeadroom)?;
            put_v4(packet, payload_protocol(parsed.flow.family), length, parsed, hash, backend)
        }
        (Family::V6, Mode::Gue) => {
            packet.grow(Ipv6Hdr::LEN + GUE_OVERHEAD).ok_or(Reason::NoHeadroom)?;
            put_v6(packet, protocol::UDP, length, parsed, hash, backend)?;
            put_gue(packet, EthHdr::LEN + Ipv6Hdr::LEN, length - Ipv6Hdr::LEN as u16, parsed, hash, node)
        }
        (Family::V6, _) => {
            packet.grow(Ipv6Hdr::LEN).ok_or(Reason::NoHeadroom)?;
            put_v6(packet, payload_protocol(parsed.flow.family), length, parsed, hash, backend)
        }
    }
}

/// L2: the MAC addresses of the next hop, the type of the frame that came.
#[inline(always)]
fn rewrite<P: Packet>(packet: &mut P, parsed: &Parsed, backend: &Backend) -> Result<(), Reason> {
    let mut ethernet = backend.ethernet;
    [ethernet[12], ethernet[13]] = super::parse::ethertype(parsed.flow.family).to_be_bytes();
    packet.store(0, ethernet).ok_or(Reason::BadState)
}

/// A source's last four bytes with the entropy in them.
#[inline(always)]
const fn entropic(last: [u8; 4], hash: FlowHash, mask: u32) -> u32 {
    u32::from_be_bytes(last) | hash.entropy() & mask
}

#[inline(always)]
fn put_v4<P: Packet>(
    packet: &mut P,
    proto: u8,
    length: u16,
    parsed: &Parsed,
    hash: FlowHash,
    backend: &Backend,
) -> Result<(), Reason> {
    let source = entropic(first_word(&backend.source), hash, backend.entropy_mask);
    let mut sum = checksum::add(u32::from(backend.constant_sum), u16::from(parsed.traffic_class));
    sum = checksum::add(sum, length);
    sum = checksum::add(sum, u16::from(proto));
    sum = checksum::add32(sum, hash.entropy() & backend.entropy_mask);
    let header = Ipv4Hdr {
        vihl: 0x45,
        tos: parsed.traffic_class,
        tot_len: length.to_be_bytes(),
        id: [0; 2],
        frags: DONT_FRAGMENT.to_be_bytes(),
        ttl: TTL,
        proto,
        check: (!checksum::fold(sum)).to_be_bytes(),
        src_addr: source.to_be_bytes(),
        dst_addr: first_word(&backend.destination),
    };
    packet.store(0, backend.ethernet).ok_or(Reason::BadState)?;
    packet.store(EthHdr::LEN, header).ok_or(Reason::BadState)
}

#[inline(always)]
fn put_v6<P: Packet>(
    packet: &mut P,
    next_hdr: u8,
    length: u16,
    parsed: &Parsed,
    hash: FlowHash,
    backend: &Backend,
) -> Result<(), Reason> {
    let mut src_addr = backend.source;
    let last = entropic([src_addr[12], src_addr[13], src_addr[14], src_addr[15]], hash, backend.entropy_mask);
    [src_addr[12], src_addr[13], src_addr[14], src_addr[15]] = last.to_be_bytes();
    // The flow label carries the flow's entropy too (RFC 6438), for routers that spread by it.
    let label = hash.entropy() & 0x000f_ffff;
    let vcf = (6 << 28 | u32::from(parsed.traffic_class) << 20 | label).to_be_bytes();
    let header = Ipv6Hdr {
        vcf,
        payload_len: (length - Ipv6Hdr::LEN as u16).to_be_bytes(),
        next_hdr,
        hop_limit: TTL,
        src_addr,
        dst_addr: backend.destination,
    };
    packet.store(0, backend.ethernet).ok_or(Reason::BadState)?;
    packet.store(EthHdr::LEN, header).ok_or(Reason::BadState)
}

/// UDP and GUE headers at `at`. The source port carries entropy from the dynamic range (RFC 6335). The UDP checksum is
/// zero, which IPv4 allows and RFC 6935 and 6936 allow tunnels over IPv6: the inner packet has its own.
#[inline(always)]
fn put_gue<P: Packet>(
    packet: &mut P,
    at: usize,
    udp_length: u16,
    parsed: &Parsed,
    hash: FlowHash,
    node: &Node,
) -> Result<(), Reason> {
    let source_port = 0xc000 | hash.entropy() as u16 & 0x3fff;
    let [sh, sl] = source_port.to_be_bytes();
    let [dh, dl] = node.gue_port.to_be_bytes();
    let [lh, ll] = udp_length.to_be_bytes();
    // GUE: variant 0, no control message, no optional fields; then the inner protocol and no flags.
    let headers = [sh, sl, dh, dl, lh, ll, 0, 0, 0, payload_protocol(parsed.flow.family), 0, 0];
    packet.store(at, headers).ok_or(Reason::BadState)
}

#[inline(always)]
const fn first_word(address: &AddressBytes) -> [u8; 4] {
    [address[0], address[1], address[2], address[3]]
}
