//! A packet as the path sees it: bounds-checked loads and stores, and a movable head.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

/// A header that can be copied out of and into packet memory.
///
/// # Safety
///
/// The type has no padding, and every bit pattern is a valid value of it.
pub unsafe trait Header: Copy {}

// SAFETY: byte arrays.
unsafe impl<const N: usize> Header for [u8; N] {}
// SAFETY: `repr(C)`, two byte arrays and a u16, 14 bytes without padding.
unsafe impl Header for EthHdr {}
// SAFETY: `repr(C)`, nothing but bytes and byte arrays.
unsafe impl Header for Ipv4Hdr {}
// SAFETY: `repr(C)`, nothing but bytes and byte arrays.
unsafe impl Header for Ipv6Hdr {}
// SAFETY: `repr(C)`, byte arrays and a bit field over bytes.
unsafe impl Header for TcpHdr {}
// SAFETY: `repr(C)`, nothing but byte arrays.
unsafe impl Header for UdpHdr {}

/// A frame, from its Ethernet header on.
pub trait Packet {
    /// Bytes in the frame.
    fn len(&self) -> usize;

    /// Whether the frame is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The header at `offset`, or `None` where the frame ends before the header does.
    fn load<H: Header>(&self, offset: usize) -> Option<H>;

    /// Overwrites the bytes at `offset`; `None`, and nothing written, where the frame ends before the header does.
    fn store<H: Header>(&mut self, offset: usize, header: H) -> Option<()>;

    /// Moves the frame's start outwards by `bytes`, whose content is then undefined; `None`, and nothing moved, where
    /// there is no room.
    fn grow(&mut self, bytes: usize) -> Option<()>;

    /// Cuts `bytes` off the frame's start; `None`, and nothing moved, where fewer than an Ethernet header would be left.
    fn shrink(&mut self, bytes: usize) -> Option<()>;
}
