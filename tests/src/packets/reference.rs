//! What should become of a packet, worked out the slow and obvious way from the RFCs and the project's documents.
//!
//! It takes the configuration as people write it, looks at bytes through [`etherparse`] or by plain indexing, and must
//! never use the packet path, the layouts of the maps, or their constants: an error copied from there would agree with
//! itself.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader,
};
use lb_userspace::{
    config::{Backend, Mode, Port, Protocol, Service},
    dataplane::nexthop::NextHop,
};

use self::hash::Flow;
use super::world::World;

pub mod hash;

/// What should become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is sent.
    Sent {
        /// Interface it leaves by.
        ifindex: u32,
        /// The frame that leaves.
        frame: Vec<u8>,
        /// `SERVICE/BACKEND`.
        to: String,
    },
    /// It is not.
    Refused {
        /// Name of the reason.
        reason: &'static str,
        /// The service that refused it, where it was one's.
        service: Option<String>,
    },
}

/// The packet of a flow, cut into what matters.
struct Packet<'f> {
    flow: Flow,
    traffic_class: u8,
    /// The IP packet as long as it says it is.
    ip: &'f [u8],
    /// What follows it in the frame.
    trailer: &'f [u8],
}

/// Judges a frame. `room` is how many bytes may be put in front of it.
pub fn judge(world: &World, frame: &[u8], room: usize) -> Judgement {
    let refused = |reason| Judgement::Refused { reason, service: None };
    if !world.ready {
        return refused("not_configured");
    }
    let packet = match read(frame) {
        Ok(packet) => packet,
        Err(reason) => return refused(reason),
    };
    let Some(service) = find(world, &packet.flow) else { return refused("not_a_service") };
    send(world, service, &packet, room)
        .unwrap_or_else(|reason| Judgement::Refused { reason, service: Some(service.name.clone()) })
}

/// A 16-bit number in network order.
fn number(bytes: &[u8], at: usize) -> usize {
    usize::from(bytes[at]) * 256 + usize::from(bytes[at + 1])
}

fn read(frame: &[u8]) -> Result<Packet<'_>, &'static str> {
    if frame.len() < 14 {
        return Err("short_frame");
    }
    match number(frame, 12) {
        0x0800 => read_v4(&frame[14..]),
        0x86dd => read_v6(&frame[14..]),
        0x8100 | 0x88a8 => Err("vlan"),
        _ => Err("not_ip"),
    }
}

/// RFC 791.
fn read_v4(bytes: &[u8]) -> Result<Packet<'_>, &'static str> {
    if bytes.len() < 20 {
        return Err("truncated_ip");
    }
    let (version, header_words) = (bytes[0] / 16, bytes[0] % 16);
    if version != 4 || header_words < 5 {
        return Err("bad_ip_header");
    }
    if header_words > 5 {
        return Err("ipv4_options");
    }
    let total = number(bytes, 2);
    if total < 20 || total > bytes.len() {
        return Err("bad_length");
    }
    let (more_fragments, fragment_offset) = (number(bytes, 6) & 0x2000 != 0, number(bytes, 6) % 0x2000);
    if more_fragments || fragment_offset != 0 {
        return Err("fragment");
    }
    let protocol = match bytes[9] {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        1 => return Err("icmp"),
        _ => return Err("other_protocol"),
    };
    let address = |at: usize| IpAddr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (source, destination) = (address(12), address(16));
    finish(bytes, total, 20, protocol, bytes[1], source, destination)
}

/// RFC 8200.
fn read_v6(bytes: &[u8]) -> Result<Packet<'_>, &'static str> {
    if bytes.len() < 40 {
        return Err("truncated_ip");
    }
    if bytes[0] / 16 != 6 {
        return Err("bad_ip_header");
    }
    let payload = number(bytes, 4);
    // 0 is the sign of a jumbogram (RFC 2675); and what exceeds 65,535 in all fits no outer length field.
    if payload == 0 || 40 + payload > bytes.len() || 40 + payload > 65_535 {
        return Err("bad_length");
    }
    let protocol = match bytes[6] {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        58 => return Err("icmp"),
        44 => return Err("fragment"),
        0 | 43 | 51 | 60 | 135 => return Err("extension_header"),
        _ => return Err("other_protocol"),
    };
    let address = |at: usize| {
        let bytes: [u8; 16] = std::array::from_fn(|i| bytes[at + i]);
        IpAddr::from(bytes)
    };
    let (source, destination) = (address(8), address(24));
    let traffic_class = (bytes[0] % 16) * 16 + bytes[1] / 16;
    finish(bytes, 40 + payload, 40, protocol, traffic_class, source, destination)
}

fn finish(
    bytes: &[u8],
    total: usize,
    header: usize,
    protocol: Protocol,
    traffic_class: u8,
    source: IpAddr,
    destination: IpAddr,
) -> Result<Packet<'_>, &'static str> {
    let (ip, trailer) = bytes.split_at(total);
    let transport = match protocol {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
    };
    if ip.len() < header + transport {
        return Err("truncated_transport");
    }
    let flow = Flow {
        source,
        source_port: number(ip, header) as u16,
        destination,
        destination_port: number(ip, header + 2) as u16,
        protocol: if protocol == Protocol::Tcp { 6 } else { 17 },
    };
    Ok(Packet { flow, traffic_class, ip, trailer })
}

/// The service of the very port, or else the one of any port; none for port 0, which is nobody's.
fn find<'w>(world: &'w World, flow: &Flow) -> Option<&'w Service> {
    let candidates = |port: Port| {
        world.config.services.iter().find(|service| {
            service.address == flow.destination
                && service.port == port
                && service.protocol == if flow.protocol == 6 { Protocol::Tcp } else { Protocol::Udp }
        })
    };
    if flow.destination_port == 0 {
        return None;
    }
    candidates(Port::Number(flow.destination_port)).or_else(|| candidates(Port::Any))
}

fn send(
    world: &World,
    service: &Service,
    packet: &Packet<'_>,
    room: usize,
) -> Result<Judgement, &'static str> {
    let owners = &world.rings[&service.name];
    if owners.is_empty() {
        return Err("no_backend");
    }
    if world.broken.contains(&service.name) {
        return Err("bad_state");
    }
    let key = world.config.node.flow_hash_key.ok_or("no key")?.0;
    let hash = hash::flow_hash(&key, &packet.flow);
    let owner = &owners[hash::slot(hash, owners.len())];
    let backend = service.backend(owner).ok_or("no such backend")?;
    let hop = world.hops.get(&backend.address).ok_or("no_next_hop")?;
    let entropy = (hash % (1 << 32)) as u32;
    let headers = headers(world, service.mode, packet, backend, hop, entropy)?;
    if headers.len() + packet.ip.len() > hop.mtu as usize {
        return Err("too_big");
    }
    if headers.len() > room {
        return Err("no_headroom");
    }
    if hop.ifindex != world.tables.ingress && !world.tables.devices.contains(&hop.ifindex) {
        return Err("no_device");
    }
    let outer_v6 =
        if service.mode == Mode::L2 { packet.flow.destination.is_ipv6() } else { backend.address.is_ipv6() };
    let ethernet = Ethernet2Header {
        destination: hop.destination_mac,
        source: hop.source_mac,
        ether_type: if outer_v6 { EtherType::IPV6 } else { EtherType::IPV4 },
    };
    Ok(Judgement::Sent {
        ifindex: hop.ifindex,
        frame: [&ethernet.to_bytes()[..], &headers, packet.ip, packet.trailer].concat(),
        to: format!("{}/{owner}", service.name),
    })
}

/// What stands between the Ethernet header and the packet.
fn headers(
    world: &World,
    mode: Mode,
    packet: &Packet<'_>,
    backend: &Backend,
    hop: &NextHop,
    entropy: u32,
) -> Result<Vec<u8>, &'static str> {
    let inner = if packet.flow.destination.is_ipv6() { 41 } else { 4 };
    match mode {
        Mode::L2 => Ok(Vec::new()),
        Mode::Ipip => outer_ip(world, packet, backend, hop, entropy, inner, packet.ip.len()),
        Mode::Gue => {
            let length = 8 + 4 + packet.ip.len();
            let udp = UdpHeader {
                // One of the 16,384 dynamic ports (RFC 6335).
                source_port: 49_152 + (entropy % 16_384) as u16,
                destination_port: world.config.node.gue_port,
                length: length as u16,
                checksum: 0,
            };
            // draft-ietf-intarea-gue-09, 3.2: version 0, C 0, Hlen 0; protocol; no flags.
            let gue = [0, inner, 0, 0];
            let ip = outer_ip(world, packet, backend, hop, entropy, 17, length)?;
            Ok([&ip[..], &udp.to_bytes(), &gue].concat())
        }
    }
}

fn outer_ip(
    world: &World,
    packet: &Packet<'_>,
    backend: &Backend,
    hop: &NextHop,
    entropy: u32,
    protocol: u8,
    payload: usize,
) -> Result<Vec<u8>, &'static str> {
    let node = &world.config.node;
    match backend.address {
        IpAddr::V4(destination) => {
            let source = match (node.source_v4, hop.preferred_source) {
                (Some(net), _) => net.network() | std::net::Ipv4Addr::from(entropy) & net.hostmask(),
                (None, Some(IpAddr::V4(own))) => own,
                _ => return Err("no_next_hop"),
            };
            let mut header = Ipv4Header::default();
            header.dscp = IpDscp::try_new(packet.traffic_class / 4).map_err(|_| "dscp")?;
            header.ecn = IpEcn::try_new(packet.traffic_class % 4).map_err(|_| "ecn")?;
            header.total_len = u16::try_from(20 + payload).map_err(|_| "too_big")?;
            header.dont_fragment = true;
            header.time_to_live = 64;
            header.protocol = IpNumber(protocol);
            header.source = source.octets();
            header.destination = destination.octets();
            header.header_checksum = header.calc_header_checksum();
            Ok(header.to_bytes().to_vec())
        }
        IpAddr::V6(destination) => {
            let source = match (node.source_v6, hop.preferred_source) {
                // Entropy fills the last 32 bits at most.
                (Some(net), _) => {
                    net.network() | std::net::Ipv6Addr::from(u128::from(entropy)) & net.hostmask()
                }
                (None, Some(IpAddr::V6(own))) => own,
                _ => return Err("no_next_hop"),
            };
            let header = Ipv6Header {
                traffic_class: packet.traffic_class,
                flow_label: Ipv6FlowLabel::try_new(entropy % (1 << 20)).map_err(|_| "label")?,
                payload_length: u16::try_from(payload).map_err(|_| "too_big")?,
                next_header: IpNumber(protocol),
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
            };
            Ok(header.to_bytes().to_vec())
        }
    }
}
