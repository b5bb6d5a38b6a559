//! Frames made by hand, and tunnelled frames taken apart: the lab's own reading of the formats.
//!
//! Shares no code with the packet path, so that an error there is not repeated here. Must judge nothing: it returns what
//! the bytes say, and the scenario compares.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use crate::link::Mac;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// IP protocol number of IPv4 in IP.
pub const IPV4: u8 = 4;
/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// IP protocol number of IPv6 in IP.
pub const IPV6: u8 = 41;

/// The Internet checksum (RFC 1071) of `bytes`; 0 over a header that holds its right checksum.
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    let sum: u64 = words.sum();
    // Ones-complement addition is addition modulo 65,535, with 0 written as 65,535 unless everything was 0.
    let folded = if sum == 0 { 0 } else { (sum - 1) % 0xffff + 1 };
    !(folded as u16)
}

/// How to make frames: who sends them on the cable, and the fields that tests vary.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Maker {
    /// Ethernet destination.
    pub to: Mac,
    /// Ethernet source.
    pub from: Mac,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
}

impl Maker {
    /// Frames from one interface to another.
    pub fn new(from: Mac, to: Mac) -> Self {
        Self { to, from, traffic_class: 0, ttl: 61 }
    }

    /// With this type of service or traffic class.
    pub fn traffic_class(self, traffic_class: u8) -> Self {
        Self { traffic_class, ..self }
    }

    /// A frame with one IP packet, its lengths and checksums right, without padding.
    ///
    /// # Panics
    /// If the addresses are of different families.
    pub fn ip(self, source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let (ethertype, header) = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (0x0800_u16, self.v4(source, destination, protocol, payload.len()))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                (0x86dd, self.v6(source, destination, protocol, payload.len()))
            }
            _ => panic!("{source} and {destination} are of different families"),
        };
        self.frame(ethertype, &[&header, payload].concat())
    }

    /// A frame with any content.
    pub fn frame(self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [self.to.0.as_slice(), &self.from.0, &ethertype.to_be_bytes(), payload].concat()
    }

    /// A UDP datagram.
    pub fn udp(self, source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
        let mut segment = ports(source, destination);
        segment.extend((8 + data.len() as u16).to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(data);
        let sum = match transport_checksum(source.ip(), destination.ip(), UDP, &segment) {
            0 => 0xffff,
            sum => sum,
        };
        segment[6..8].copy_from_slice(&sum.to_be_bytes());
        self.ip(source.ip(), destination.ip(), UDP, &segment)
    }

    /// A TCP segment with the SYN flag and data.
    pub fn tcp(self, source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
        let mut segment = ports(source, destination);
        // Sequence and acknowledgement numbers, header of five words, SYN, window, checksum, urgent pointer.
        segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x40, 0, 0, 0, 0, 0]);
        segment.extend(data);
        let sum = transport_checksum(source.ip(), destination.ip(), TCP, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.ip(source.ip(), destination.ip(), TCP, &segment)
    }

    fn v4(self, source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: usize) -> Vec<u8> {
        let [high, low] = (20 + payload as u16).to_be_bytes();
        let mut header =
            vec![0x45, self.traffic_class, high, low, 0x12, 0x34, 0x40, 0, self.ttl, protocol, 0, 0];
        header.extend(source.octets());
        header.extend(destination.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn v6(self, source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: usize) -> Vec<u8> {
        let [high, low] = (payload as u16).to_be_bytes();
        let class = self.traffic_class;
        // The flow label is 0x54321.
        let mut header = vec![0x60 | class >> 4, class << 4 | 5, 0x43, 0x21, high, low, protocol, self.ttl];
        header.extend(source.octets());
        header.extend(destination.octets());
        header
    }
}

fn ports(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat()
}

/// Over the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) and the segment.
pub fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut pseudo = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => pseudo.extend(v4.octets()),
            IpAddr::V6(v6) => pseudo.extend(v6.octets()),
        }
    }
    // The sum does not mind whether the length has 16 bits or 32.
    pseudo.extend((segment.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo.extend(segment);
    checksum(&pseudo)
}

/// An IP packet of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip<'f> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol or next header.
    pub protocol: u8,
    /// Type of service or traffic class.
    pub traffic_class: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// IPv4: "don't fragment" and nothing else is set where the fragment fields are. IPv6: true.
    pub dont_fragment: bool,
    /// Whether the header's checksum is right; true for IPv6, which has none.
    pub checksum_ok: bool,
    /// Length of the whole packet by its header.
    pub length: usize,
    /// The whole packet.
    pub bytes: &'f [u8],
    /// What follows the header.
    pub payload: &'f [u8],
}

impl<'f> Ip<'f> {
    /// Reads a packet at the start of `bytes`, which may go on behind it. Options are an error.
    pub fn parse(bytes: &'f [u8]) -> Result<Self> {
        match bytes.first().map(|byte| byte >> 4) {
            Some(4) => Self::v4(bytes),
            Some(6) => Self::v6(bytes),
            version => bail!("no IP packet: version {version:?}"),
        }
    }

    fn v4(bytes: &'f [u8]) -> Result<Self> {
        let header: &[u8; 20] = bytes.first_chunk().context("cut off in the IPv4 header")?;
        ensure!(header[0] == 0x45, "IPv4 header begins with {:#x}", header[0]);
        let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let packet = bytes.get(..length).with_context(|| format!("{length} bytes announced"))?;
        Ok(Self {
            source: address(12).into(),
            destination: address(16).into(),
            protocol: header[9],
            traffic_class: header[1],
            ttl: header[8],
            dont_fragment: header[6..8] == [0x40, 0],
            checksum_ok: checksum(header) == 0,
            length,
            bytes: packet,
            payload: packet.get(20..).context("shorter than its header")?,
        })
    }

    fn v6(bytes: &'f [u8]) -> Result<Self> {
        let header: &[u8; 40] = bytes.first_chunk().context("cut off in the IPv6 header")?;
        let address = |at: usize| -> Ipv6Addr {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            octets.into()
        };
        let length = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let packet = bytes.get(..length).with_context(|| format!("{length} bytes announced"))?;
        Ok(Self {
            source: address(8).into(),
            destination: address(24).into(),
            protocol: header[6],
            traffic_class: header[0] << 4 | header[1] >> 4,
            ttl: header[7],
            dont_fragment: true,
            checksum_ok: true,
            length,
            bytes: packet,
            payload: &packet[40..],
        })
    }

    /// Source and destination with their ports, of a TCP or UDP packet.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let [a, b, c, d] = *self.payload.first_chunk()?;
        matches!(self.protocol, TCP | UDP).then(|| {
            let port = |high, low| u16::from_be_bytes([high, low]);
            (SocketAddr::new(self.source, port(a, b)), SocketAddr::new(self.destination, port(c, d)))
        })
    }
}

/// The UDP and GUE headers of a tunnelled packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gue {
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub destination_port: u16,
    /// UDP length.
    pub length: usize,
    /// UDP checksum as it stands there.
    pub checksum: u16,
    /// The four bytes of the GUE header.
    pub header: [u8; 4],
}

/// A frame taken apart. Without a tunnel `outer` and `inner` are the same packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnelled<'f> {
    /// Ethernet destination.
    pub to: Mac,
    /// Ethernet source.
    pub from: Mac,
    /// Ethernet type.
    pub ethertype: u16,
    /// The outermost IP packet.
    pub outer: Ip<'f>,
    /// The headers between, if it is a UDP packet to a GUE port.
    pub gue: Option<Gue>,
    /// The innermost IP packet.
    pub inner: Ip<'f>,
    /// What follows the outer packet in the frame.
    pub trailer: &'f [u8],
}

impl<'f> Tunnelled<'f> {
    /// Takes a frame apart; UDP to `gue_port` is taken for GUE.
    pub fn parse(frame: &'f [u8], gue_port: u16) -> Result<Self> {
        let (ethernet, packet) =
            frame.split_at_checked(ETHERNET).context("cut off in the Ethernet header")?;
        let mac = |at: usize| Mac(std::array::from_fn(|i| ethernet[at + i]));
        let outer = Ip::parse(packet)?;
        let trailer = &packet[outer.length..];
        let (gue, inner) = match outer.protocol {
            IPV4 | IPV6 => (None, Ip::parse(outer.payload)?),
            UDP if outer.ends().is_some_and(|(_, to)| to.port() == gue_port) => {
                let headers: &[u8; 12] = outer.payload.first_chunk().context("cut off in UDP and GUE")?;
                let word = |at: usize| u16::from_be_bytes([headers[at], headers[at + 1]]);
                let gue = Gue {
                    source_port: word(0),
                    destination_port: word(2),
                    length: word(4).into(),
                    checksum: word(6),
                    header: [headers[8], headers[9], headers[10], headers[11]],
                };
                (Some(gue), Ip::parse(&outer.payload[12..])?)
            }
            _ => (None, outer.clone()),
        };
        let ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
        Ok(Self { to: mac(0), from: mac(6), ethertype, outer, gue, inner, trailer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_known_packets() {
        // The example of RFC 1071 section 3: the sum is 0xddf2.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff, 0xff]), 0);
        assert_eq!(checksum(&[0x12]), !0x1200);
    }

    #[test]
    fn other_code_reads_what_is_made_here() {
        let maker = Maker::new(Mac([2; 6]), Mac([4; 6])).traffic_class(0xb9);
        for (source, destination) in [("10.0.0.1:7", "192.0.2.1:9"), ("[fd00::1]:7", "[fd00::2]:9")] {
            let (source, destination): (SocketAddr, SocketAddr) =
                (source.parse().unwrap(), destination.parse().unwrap());
            for frame in [maker.udp(source, destination, b"odd"), maker.tcp(source, destination, b"even")] {
                let ours = Tunnelled::parse(&frame, 6080).unwrap();
                assert_eq!(ours.inner.ends(), Some((source, destination)));
                assert!(ours.outer.checksum_ok && ours.outer.traffic_class == 0xb9 && ours.outer.ttl == 61);
                let theirs = etherparse::PacketHeaders::from_ethernet_slice(&frame).unwrap();
                let net = theirs.net.unwrap();
                let transport = theirs.transport.unwrap();
                let payload = theirs.payload.slice();
                let (right, found) = match (&transport, &net) {
                    (etherparse::TransportHeader::Udp(udp), etherparse::NetHeaders::Ipv4(ip, _)) => {
                        (udp.calc_checksum_ipv4(ip, payload).unwrap(), udp.checksum)
                    }
                    (etherparse::TransportHeader::Udp(udp), etherparse::NetHeaders::Ipv6(ip, _)) => {
                        (udp.calc_checksum_ipv6(ip, payload).unwrap(), udp.checksum)
                    }
                    (etherparse::TransportHeader::Tcp(tcp), etherparse::NetHeaders::Ipv4(ip, _)) => {
                        (tcp.calc_checksum_ipv4(ip, payload).unwrap(), tcp.checksum)
                    }
                    (etherparse::TransportHeader::Tcp(tcp), etherparse::NetHeaders::Ipv6(ip, _)) => {
                        (tcp.calc_checksum_ipv6(ip, payload).unwrap(), tcp.checksum)
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(right, found);
            }
        }
    }

    #[test]
    fn a_damaged_header_is_noticed() {
        let maker = Maker::new(Mac([2; 6]), Mac([4; 6]));
        let mut frame = maker.udp("10.0.0.1:7".parse().unwrap(), "10.0.0.2:9".parse().unwrap(), b"x");
        frame[ETHERNET + 8] -= 1;
        assert!(!Tunnelled::parse(&frame, 6080).unwrap().outer.checksum_ok);
        Tunnelled::parse(&frame[..30], 6080).unwrap_err();
        frame[ETHERNET + 3] = 200;
        Tunnelled::parse(&frame, 6080).unwrap_err();
    }
}
