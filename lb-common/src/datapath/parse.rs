//! From bytes to a flow, or to the reason why there is none.
//!
//! Lengths are checked against the frame before they are believed, and what this version does not handle is told apart
//! from what is wrong: the first goes up to the kernel, the second ends here.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use super::{hash::Flow, packet::Packet};
use crate::{
    address::{Family, v4_bytes},
    reason::Reason,
};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// IP protocol numbers (IANA).
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// Mobility header.
    pub const MOBILITY: u8 = 135;
}

/// A packet of a flow, and what encapsulating it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The flow.
    pub flow: Flow,
    /// Length of the IP packet in bytes, header included, as it says itself and as fits the frame.
    pub ip_length: u16,
    /// Type of service or traffic class, which the outer header repeats (RFC 6040, RFC 2983 uniform model).
    pub traffic_class: u8,
}

/// The family that the frame's Ethernet type announces.
#[inline(always)]
pub fn family<P: Packet>(packet: &P) -> Result<Family, Reason> {
    let ethernet: EthHdr = packet.load(0).ok_or(Reason::ShortFrame)?;
    match u16::from_be(ethernet.ether_type) {
        ETHERTYPE_IPV4 => Ok(Family::V4),
        ETHERTYPE_IPV6 => Ok(Family::V6),
        ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => Err(Reason::Vlan),
        _ => Err(Reason::NotIp),
    }
}

/// The Ethernet type of a family.
#[inline(always)]
pub const fn ethertype(family: Family) -> u16 {
    match family {
        Family::V4 => ETHERTYPE_IPV4,
        Family::V6 => ETHERTYPE_IPV6,
    }
}

/// Reads a frame down to its ports.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Result<Parsed, Reason> {
    match family(packet)? {
        Family::V4 => parse_v4(packet),
        Family::V6 => parse_v6(packet),
    }
}

#[inline(always)]
fn parse_v4<P: Packet>(packet: &P) -> Result<Parsed, Reason> {
    let ip: Ipv4Hdr = packet.load(EthHdr::LEN).ok_or(Reason::TruncatedIp)?;
    if ip.vihl != 0x45 {
        return Err(match (ip.vihl >> 4, ip.vihl & 15) {
            (4, 6..) => Reason::Ipv4Options,
            _ => Reason::BadIpHeader,
        });
    }
    let ip_length = u16::from_be_bytes(ip.tot_len);
    if (ip_length as usize) < Ipv4Hdr::LEN || ip_length as usize > packet.len() - EthHdr::LEN {
        return Err(Reason::BadLength);
    }
    // More fragments, or an offset: all but the flags "reserved" and "don't fragment".
    if u16::from_be_bytes(ip.frags) & 0x3fff != 0 {
        return Err(Reason::Fragment);
    }
    let (source_port, destination_port) = match ip.proto {
        protocol::TCP => ports::<P, { EthHdr::LEN + Ipv4Hdr::LEN }>(packet, ip_length, TcpHdr::LEN)?,
        protocol::UDP => ports::<P, { EthHdr::LEN + Ipv4Hdr::LEN }>(packet, ip_length, UdpHdr::LEN)?,
        protocol::ICMP => return Err(Reason::Icmp),
        _ => return Err(Reason::OtherProtocol),
    };
    Ok(Parsed {
        flow: Flow {
            family: Family::V4,
            protocol: ip.proto,
            source: v4_bytes(ip.src_addr),
            destination: v4_bytes(ip.dst_addr),
            source_port,
            destination_port,
        },
        ip_length,
        traffic_class: ip.tos,
    })
}

#[inline(always)]
fn parse_v6<P: Packet>(packet: &P) -> Result<Parsed, Reason> {
    let ip: Ipv6Hdr = packet.load(EthHdr::LEN).ok_or(Reason::TruncatedIp)?;
    if ip.vcf[0] >> 4 != 6 {
        return Err(Reason::BadIpHeader);
    }
    // A payload length of 0 is a jumbogram (RFC 2675) or an empty packet: neither carries a transport header we know.
    let payload = u16::from_be_bytes(ip.payload_len);
    let ip_length = payload as usize + Ipv6Hdr::LEN;
    if payload == 0 || ip_length > packet.len() - EthHdr::LEN || ip_length > u16::MAX as usize {
        return Err(Reason::BadLength);
    }
    let ip_length = ip_length as u16;
    let (source_port, destination_port) = match ip.next_hdr {
        protocol::TCP => ports::<P, { EthHdr::LEN + Ipv6Hdr::LEN }>(packet, ip_length, TcpHdr::LEN)?,
        protocol::UDP => ports::<P, { EthHdr::LEN + Ipv6Hdr::LEN }>(packet, ip_length, UdpHdr::LEN)?,
        protocol::ICMPV6 => return Err(Reason::Icmp),
        protocol::FRAGMENT => return Err(Reason::Fragment),
        protocol::HOP_BY_HOP
        | protocol::ROUTING
        | protocol::AUTHENTICATION
        | protocol::DESTINATION_OPTIONS
        | protocol::MOBILITY => return Err(Reason::ExtensionHeader),
        _ => return Err(Reason::OtherProtocol),
    };
    Ok(Parsed {
        flow: Flow {
            family: Family::V6,
            protocol: ip.next_hdr,
            source: ip.src_addr,
            destination: ip.dst_addr,
            source_port,
            destination_port,
        },
        ip_length,
        traffic_class: ip.vcf[0] << 4 | ip.vcf[1] >> 4,
    })
}

/// The ports of the transport header at `AT`, once all `header` bytes of it are known to be inside the IP packet.
#[inline(always)]
fn ports<P: Packet, const AT: usize>(
    packet: &P,
    ip_length: u16,
    header: usize,
) -> Result<(u16, u16), Reason> {
    if (ip_length as usize) < AT - EthHdr::LEN + header {
        return Err(Reason::TruncatedTransport);
    }
    let [a, b, c, d] = packet.load::<[u8; 4]>(AT).ok_or(Reason::TruncatedTransport)?;
    Ok((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}
