//! Backends as the packet path needs them: one cache line each, with everything that can be prepared in advance.

use core::net::IpAddr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::{self, AddressBytes, Family};

/// How packets reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// IP in IP: RFC 2003 (4 in 4), RFC 2473 (in 6), RFC 4213 (6 in 4).
    Ipip = 1,
    /// Generic UDP Encapsulation, variant 0 (draft-ietf-intarea-gue-09).
    Gue = 2,
    /// Only the MAC addresses change: the backend is on the same segment and answers the client itself.
    L2 = 3,
}

/// An entry of the `BACKENDS` map: 64 bytes, one cache line, never changed while a service names its region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend {
    /// Outer destination: the backend's address.
    pub destination: AddressBytes,
    /// Outer source, host bits that carry entropy zero.
    pub source: AddressBytes,
    /// Ethernet header of the frame to send: destination, source, type. The type is the outer family's; for
    /// [`Mode::L2`] the arriving frame's is kept.
    pub ethernet: [u8; 14],
    /// Folded ones-complement sum of what never changes in the outer IPv4 header (see
    /// [`crate::datapath::encap::constant_sum`]); 0 for IPv6.
    pub constant_sum: u16,
    /// The bits of the source address's last 32 (IPv4: all 32) that carry flow entropy, as a number in host order.
    pub entropy_mask: u32,
    /// Interface to send on.
    pub ifindex: u32,
    /// Entry in the `COUNTERS` map.
    pub counter: u32,
    /// Largest IP packet, encapsulation included, that the way to the backend takes, in bytes.
    pub mtu: u16,
    /// A [`Mode`], or 0 in an entry that was never filled.
    pub mode: u8,
    /// Bits 0–2: outer IP version, 4 or 6. Bit 3: [`Backend::RESOLVED`].
    pub flags: u8,
}

impl Backend {
    /// Flag: interface and MAC addresses are known.
    pub const RESOLVED: u8 = 8;
    const FAMILY: u8 = 7;

    /// The outer family, or `None` in an entry that holds no sense.
    #[inline(always)]
    pub const fn family(&self) -> Option<Family> {
        match self.flags & Self::FAMILY {
            4 => Some(Family::V4),
            6 => Some(Family::V6),
            _ => None,
        }
    }

    /// The mode, or `None` in an entry that holds no sense.
    #[inline(always)]
    pub const fn mode(&self) -> Option<Mode> {
        match self.mode {
            1 => Some(Mode::Ipip),
            2 => Some(Mode::Gue),
            3 => Some(Mode::L2),
            _ => None,
        }
    }

    /// Whether the next hop is known.
    #[inline(always)]
    pub const fn resolved(&self) -> bool {
        self.flags & Self::RESOLVED != 0
    }

    /// The backend's address, or `None` in an entry that holds no sense.
    pub fn ip(&self) -> Option<IpAddr> {
        self.family().map(|family| address::from_bytes(family, self.destination))
    }
}
