//! Frames, built with etherparse: an encoder that shares no code with the product's.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header,
    PacketBuilder, UdpHeader,
};
use lb_userspace::config::Protocol;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// MAC address of whom the frames come from: the router.
pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// MAC address of the load balancer.
pub const BALANCER: [u8; 6] = [2, 0, 0, 0, 1, 2];

/// A packet of a flow that is to be built.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Source.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Bytes behind the transport header.
    pub payload: usize,
    /// Type of service, or traffic class.
    pub traffic_class: u8,
    /// Time to live, or hop limit.
    pub hops: u8,
}

/// A client's packet to a service.
pub fn to(destination: IpAddr, port: u16, protocol: Protocol) -> Wanted {
    let source = if destination.is_ipv6() {
        IpAddr::from([0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 7])
    } else {
        IpAddr::from([198, 51, 100, 7])
    };
    Wanted {
        source: SocketAddr::new(source, 40_000),
        destination: SocketAddr::new(destination, port),
        protocol,
        payload: 8,
        traffic_class: 0,
        hops: 57,
    }
}

impl Wanted {
    /// With another source port.
    #[must_use]
    pub fn from_port(mut self, port: u16) -> Self {
        self.source.set_port(port);
        self
    }

    /// With so many bytes of payload.
    #[must_use]
    pub const fn payload(mut self, bytes: usize) -> Self {
        self.payload = bytes;
        self
    }

    /// Whose IP packet is so many bytes long.
    #[must_use]
    pub const fn ip_length(mut self, bytes: usize) -> Self {
        let ip = if self.destination.is_ipv6() { 40 } else { 20 };
        let transport = match self.protocol {
            Protocol::Tcp => 20,
            Protocol::Udp => 8,
        };
        self.payload = bytes - ip - transport;
        self
    }

    /// With this type of service or traffic class.
    #[must_use]
    pub const fn traffic_class(mut self, class: u8) -> Self {
        self.traffic_class = class;
        self
    }

    /// With this time to live or hop limit.
    #[must_use]
    pub const fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// The frame, with every length and checksum as it should be.
    ///
    /// # Panics
    ///
    /// Where source and destination are of different families.
    pub fn frame(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(ROUTER, BALANCER);
        let ip = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet.ip(etherparse::IpHeaders::Ipv4(
                self.v4(source.octets(), destination.octets()),
                <_>::default(),
            )),
            (IpAddr::V6(source), IpAddr::V6(destination)) => ethernet.ip(etherparse::IpHeaders::Ipv6(
                self.v6(source.octets(), destination.octets()),
                <_>::default(),
            )),
            other => panic!("no packet has addresses of two families: {other:?}"),
        };
        let payload: Vec<u8> = (0..self.payload).map(|i| (i as u8).wrapping_mul(7) ^ 0xa5).collect();
        let mut bytes = Vec::new();
        let (source, destination) = (self.source.port(), self.destination.port());
        match self.protocol {
            Protocol::Tcp => ip.tcp(source, destination, 1, 65_535).syn().write_to_vec(&mut bytes, &payload),
            Protocol::Udp => ip.udp(source, destination).write_to_vec(&mut bytes, &payload),
        }
        .expect("a vector takes any packet of this size");
        bytes
    }

    fn v4(&self, source: [u8; 4], destination: [u8; 4]) -> Ipv4Header {
        let mut header = Ipv4Header::new(0, self.hops, IpNumber::TCP, source, destination)
            .expect("an empty packet is short enough");
        header.dscp = IpDscp::try_new(self.traffic_class >> 2).expect("six bits");
        header.ecn = IpEcn::try_new(self.traffic_class & 3).expect("two bits");
        header.identification = 0x1234;
        header
    }

    fn v6(&self, source: [u8; 16], destination: [u8; 16]) -> Ipv6Header {
        Ipv6Header {
            traffic_class: self.traffic_class,
            flow_label: Ipv6FlowLabel::try_new(0xabcde).expect("twenty bits"),
            hop_limit: self.hops,
            source,
            destination,
            ..Ipv6Header::default()
        }
    }
}

/// The frame with bytes at an offset replaced.
#[must_use]
pub fn with(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The frame with bytes inserted at an offset; lengths and checksums are the caller's.
#[must_use]
pub fn insert(frame: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
    [&frame[..offset], bytes, &frame[offset..]].concat()
}

/// The frame with bytes behind its end: Ethernet padding.
#[must_use]
pub fn padded(mut frame: Vec<u8>, bytes: usize) -> Vec<u8> {
    frame.resize(frame.len() + bytes, 0xee);
    frame
}

/// An Ethernet header and a payload.
#[must_use]
pub fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: ROUTER, destination: BALANCER, ether_type: EtherType(ether_type) };
    [&header.to_bytes()[..], payload].concat()
}

/// An IPv4 packet of any protocol, header checksum included.
///
/// # Panics
///
/// Where the payload does not fit an IPv4 packet.
#[must_use]
pub fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short payload");
    let mut header = Ipv4Header::new(length, 64, IpNumber(protocol), source, destination).expect("it fits");
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes()[..], payload].concat()
}

/// An IPv6 packet of any protocol.
///
/// # Panics
///
/// Where the payload does not fit an IPv6 packet.
#[must_use]
pub fn ipv6(source: [u8; 16], destination: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: u16::try_from(payload.len()).expect("a short payload"),
        next_header: IpNumber(next),
        hop_limit: 64,
        source,
        destination,
        ..Ipv6Header::default()
    };
    [&header.to_bytes()[..], payload].concat()
}

/// A UDP datagram without a checksum.
///
/// # Panics
///
/// Where the payload does not fit a datagram.
#[must_use]
pub fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a short payload");
    let header = UdpHeader { source_port, destination_port, length, checksum: 0 };
    [&header.to_bytes()[..], payload].concat()
}
