//! Packet and byte counters, one copy per CPU.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An entry of the `COUNTERS` map on one CPU: 16 bytes.
///
/// A backend owns one entry: what was forwarded to it. A service owns two, side by side: what backends that have since
/// left it had forwarded (kept by the agent, so that a service's total never falls), and what it dropped. The first two
/// entries are the same for services that are gone. A packet therefore costs one counter update, and totals are derived
/// by the reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the packets as they arrived, Ethernet header included.
    pub bytes: u64,
}

impl core::ops::Add for Counter {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }
}

impl core::iter::Sum for Counter {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |total, counter| total + counter)
    }
}
