//! IP addresses as the maps hold them: 16 bytes in network order, IPv4 in the first four and zeros behind.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The version of IP, as its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

/// 16 bytes of address; which family they are stands beside them.
pub type AddressBytes = [u8; 16];

/// The bytes of an IPv4 address, padded.
#[inline(always)]
pub const fn v4_bytes(address: [u8; 4]) -> AddressBytes {
    let [a, b, c, d] = address;
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The family and bytes of an address.
pub fn to_bytes(address: IpAddr) -> (Family, AddressBytes) {
    match address {
        IpAddr::V4(v4) => (Family::V4, v4_bytes(v4.octets())),
        IpAddr::V6(v6) => (Family::V6, v6.octets()),
    }
}

/// The address that `bytes` stand for in `family`.
pub fn from_bytes(family: Family, bytes: AddressBytes) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(bytes)),
    }
}
