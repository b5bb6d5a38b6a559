//! The backend's side: removing the encapsulation, so that a server needs no tunnel device.
//!
//! Only packets from allowed outer sources are touched: whoever may send to this host could otherwise put any inner
//! packet past a filter that looks at outer headers. One layer is removed; what is inside goes to the kernel's stack.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    address::{AddressBytes, Family, v4_bytes},
    datapath::{
        Verdict,
        encap::{GUE_HEADER, GUE_OVERHEAD},
        packet::Packet,
        parse::{self, protocol},
    },
    reason::outcomes,
};

outcomes! {
    /// What became of a packet on the backend. Numbers are ABI: append, never renumber.
    Outcome {
        Ipip = 0, "ipip", Pass, "An IPIP header was removed.";
        Gue = 1, "gue", Pass, "UDP and GUE headers were removed.";
        NotConfigured = 2, "not_configured", Pass, "The maps are not filled yet.";
        NotTunnel = 3, "not_tunnel", Pass, "Not a packet of a tunnel.";
        SourceNotAllowed = 4, "source_not_allowed", Pass, "A tunnel packet from a source outside the allowed prefixes; left to the kernel.";
        OuterNotHandled = 5, "outer_not_handled", Pass, "A fragment or IPv4 options outside; left to the kernel.";
        BadOuter = 6, "bad_outer", Drop, "The outer headers contradict themselves or the frame.";
        GueNotHandled = 7, "gue_not_handled", Drop, "A GUE variant, control message or optional field that is not known.";
        BadInner = 8, "bad_inner", Drop, "The inner packet is cut short or not of the announced version.";
        NoRoom = 9, "no_room", Drop, "The driver could not move the start of the frame.";
    }
}

/// The single entry of the `DECAP_NODE` map: 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DecapNode {
    /// UDP port of GUE, host order.
    pub gue_port: u16,
    /// [`crate::node::Node::READY`] once filled in.
    pub ready: u16,
    /// Zero.
    pub reserved: u32,
}

/// The maps of the decapsulating program.
pub trait DecapTables {
    /// The node's settings; `None` before they are filled in.
    fn node(&self) -> Option<&DecapNode>;
    /// Whether the allow list of `family` covers an outer source.
    fn allowed(&self, family: Family, source: &AddressBytes) -> bool;
    /// Counts a packet.
    fn count(&self, outcome: Outcome);
}

/// The whole way of a packet through the backend's program.
#[inline(always)]
pub fn decapsulate<P: Packet, T: DecapTables>(packet: &mut P, tables: &T) -> Verdict {
    let outcome = decide(packet, tables).unwrap_or_else(|outcome| outcome);
    tables.count(outcome);
    outcome.fate().into()
}

/// An outer header that announces a tunnel.
struct Outer {
    family: Family,
    source: AddressBytes,
    protocol: u8,
    /// Bytes of the IP packet behind the outer header.
    payload: usize,
}

#[inline(always)]
fn decide<P: Packet, T: DecapTables>(packet: &mut P, tables: &T) -> Result<Outcome, Outcome> {
    let node = tables.node().ok_or(Outcome::NotConfigured)?;
    match parse::family(packet) {
        Ok(Family::V4) => {
            let outer = outer_v4(packet)?;
            strip::<_, _, { EthHdr::LEN + Ipv4Hdr::LEN }>(packet, tables, node, &outer)
        }
        Ok(Family::V6) => {
            let outer = outer_v6(packet)?;
            strip::<_, _, { EthHdr::LEN + Ipv6Hdr::LEN }>(packet, tables, node, &outer)
        }
        Err(_) => Err(Outcome::NotTunnel),
    }
}

const fn may_be_tunnel(number: u8) -> bool {
    matches!(number, protocol::IPV4 | protocol::IPV6 | protocol::UDP)
}

#[inline(always)]
fn outer_v4<P: Packet>(packet: &P) -> Result<Outer, Outcome> {
    let ip: Ipv4Hdr = packet.load(EthHdr::LEN).ok_or(Outcome::NotTunnel)?;
    if !may_be_tunnel(ip.proto) {
        return Err(Outcome::NotTunnel);
    }
    if ip.vihl != 0x45 || u16::from_be_bytes(ip.frags) & 0x3fff != 0 {
        return Err(Outcome::OuterNotHandled);
    }
    let length = u16::from_be_bytes(ip.tot_len) as usize;
    if length < Ipv4Hdr::LEN || length > packet.len() - EthHdr::LEN {
        return Err(Outcome::BadOuter);
    }
    Ok(Outer {
        family: Family::V4,
        source: v4_bytes(ip.src_addr),
        protocol: ip.proto,
        payload: length - Ipv4Hdr::LEN,
    })
}

#[inline(always)]
fn outer_v6<P: Packet>(packet: &P) -> Result<Outer, Outcome> {
    let ip: Ipv6Hdr = packet.load(EthHdr::LEN).ok_or(Outcome::NotTunnel)?;
    if !may_be_tunnel(ip.next_hdr) {
        return Err(Outcome::NotTunnel);
    }
    let payload = u16::from_be_bytes(ip.payload_len) as usize;
    if ip.vcf[0] >> 4 != 6 || payload > packet.len() - EthHdr::LEN - Ipv6Hdr::LEN {
        return Err(Outcome::BadOuter);
    }
    Ok(Outer { family: Family::V6, source: ip.src_addr, protocol: ip.next_hdr, payload })
}

/// Removes what stands between the Ethernet header and the inner packet; `AT` is where the outer IP header ends.
#[inline(always)]
fn strip<P: Packet, T: DecapTables, const AT: usize>(
    packet: &mut P,
    tables: &T,
    node: &DecapNode,
    outer: &Outer,
) -> Result<Outcome, Outcome> {
    if outer.protocol != protocol::UDP {
        check_source(tables, outer)?;
        let inner = inner_family(outer.protocol).ok_or(Outcome::NotTunnel)?;
        check_inner(packet, AT, inner, outer.payload)?;
        unwrap(packet, AT - EthHdr::LEN, inner)?;
        return Ok(Outcome::Ipip);
    }
    // A UDP packet is a tunnel's only if it goes to the port of GUE.
    let udp: UdpHdr = packet.load(AT).ok_or(Outcome::NotTunnel)?;
    if u16::from_be_bytes(udp.dst) != node.gue_port {
        return Err(Outcome::NotTunnel);
    }
    check_source(tables, outer)?;
    let length = u16::from_be_bytes(udp.len) as usize;
    if length < GUE_OVERHEAD || length > outer.payload {
        return Err(Outcome::BadOuter);
    }
    let gue: [u8; GUE_HEADER] = packet.load(AT + UdpHdr::LEN).ok_or(Outcome::BadOuter)?;
    // Variant 0, data, no optional fields, no flags.
    if gue[0] != 0 || gue[2] != 0 || gue[3] != 0 {
        return Err(Outcome::GueNotHandled);
    }
    let inner = inner_family(gue[1]).ok_or(Outcome::GueNotHandled)?;
    check_inner(packet, AT + GUE_OVERHEAD, inner, length - GUE_OVERHEAD)?;
    unwrap(packet, AT - EthHdr::LEN + GUE_OVERHEAD, inner)?;
    Ok(Outcome::Gue)
}

const fn inner_family(number: u8) -> Option<Family> {
    match number {
        protocol::IPV4 => Some(Family::V4),
        protocol::IPV6 => Some(Family::V6),
        _ => None,
    }
}

#[inline(always)]
fn check_source<T: DecapTables>(tables: &T, outer: &Outer) -> Result<(), Outcome> {
    if tables.allowed(outer.family, &outer.source) { Ok(()) } else { Err(Outcome::SourceNotAllowed) }
}

/// The inner packet is of its version and long enough for its fixed header; the kernel checks the rest.
#[inline(always)]
fn check_inner<P: Packet>(packet: &P, at: usize, family: Family, available: usize) -> Result<(), Outcome> {
    let (version, header) = match family {
        Family::V4 => (4, Ipv4Hdr::LEN),
        Family::V6 => (6, Ipv6Hdr::LEN),
    };
    let [first] = packet.load::<[u8; 1]>(at).ok_or(Outcome::BadInner)?;
    if first >> 4 == version && available >= header { Ok(()) } else { Err(Outcome::BadInner) }
}

/// Moves the Ethernet header over `bytes` of outer headers and names the inner family in it.
#[inline(always)]
fn unwrap<P: Packet>(packet: &mut P, bytes: usize, inner: Family) -> Result<(), Outcome> {
    let mut ethernet: EthHdr = packet.load(0).ok_or(Outcome::BadOuter)?;
    ethernet.ether_type = parse::ethertype(inner).to_be();
    packet.shrink(bytes).ok_or(Outcome::NoRoom)?;
    packet.store(0, ethernet).ok_or(Outcome::NoRoom)
}
