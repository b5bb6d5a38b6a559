//! What every packet of this node needs to know: one value, written by the agent before it attaches.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::datapath::hash::FlowKey;

/// The single entry of the `NODE` map: 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Node {
    /// The expanded key of the flow hash.
    pub flow_key: FlowKey,
    /// UDP destination port of GUE, host order.
    pub gue_port: u16,
    /// [`Node::READY`] once the agent has filled this in; 0 in a fresh map.
    pub ready: u16,
    /// Zero.
    pub reserved: [u32; 3],
}

impl Node {
    /// The value of [`Node::ready`] that says "filled in".
    pub const READY: u16 = 1;
}
