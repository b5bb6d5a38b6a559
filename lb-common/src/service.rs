//! Services: what a packet is addressed to, and where its ring and backends are.

use core::net::IpAddr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::{self, AddressBytes, Family};

/// Key of the `SERVICES` map: 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceKey {
    /// The service's address.
    pub address: AddressBytes,
    /// Destination port in host order; [`ServiceKey::ANY_PORT`] for a service on all ports of its address.
    pub port: u16,
    /// IP protocol number: 6 TCP, 17 UDP.
    pub protocol: u8,
    /// 4 or 6: IPv4 addresses are not IPv6 addresses that begin alike.
    pub family: u8,
}

impl ServiceKey {
    /// The port of a service that covers every port. No packet can ask for it: port 0 is reserved.
    pub const ANY_PORT: u16 = 0;

    /// The key of a service; `port` is `None` for every port.
    pub fn new(address: IpAddr, port: Option<u16>, protocol: u8) -> Self {
        let (family, address) = address::to_bytes(address);
        Self { address, port: port.unwrap_or(Self::ANY_PORT), protocol, family: family as u8 }
    }

    /// The address, or `None` where the family byte is neither 4 nor 6.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.family {
            4 => Some(address::from_bytes(Family::V4, self.address)),
            6 => Some(address::from_bytes(Family::V6, self.address)),
            _ => None,
        }
    }
}

/// Value of the `SERVICES` map: 32 bytes. The kernel replaces it whole, so a packet sees the old rings and backends or
/// the new, never a mixture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Service {
    /// First slot of the ring in the `RINGS` map.
    pub ring_offset: u32,
    /// Slots of the ring; 0 when no backend may take packets.
    pub ring_slots: u32,
    /// Entry of local index 0 in the `BACKENDS` map.
    pub backend_base: u32,
    /// Entries of the backend region; every slot's owner is below it.
    pub backend_count: u32,
    /// The service's first entry in the `COUNTERS` map (see [`crate::counter::Counter`]).
    pub counter: u32,
    /// Generation of the configuration that wrote this value, modulo 2³²; for people who look.
    pub generation: u32,
    /// [`Service::FAIL_OPEN`] or 0; read by agents only.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

impl Service {
    /// Flag: no backend was usable when the ring was made, and all of them take packets. A later agent must not take
    /// them for healthy.
    pub const FAIL_OPEN: u32 = 1;
}
