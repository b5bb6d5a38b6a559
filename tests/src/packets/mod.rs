//! Packets, and three ways to find out what becomes of them: the packet path on the host, the committed objects in the
//! kernel, and a reference that shares no code with either.
//!
//! [`world`] is a configuration with services of every kind, [`corpus`] and [`decapsulation`] are named packets with
//! what is expected of them, [`generate`] makes any number more from a seed. Nothing here sends a packet anywhere.

pub mod build;
pub mod corpus;
pub mod decapsulation;
pub mod generate;
pub mod kernel;
pub mod memory;
pub mod reference;
pub mod verify;
pub mod world;

use std::collections::BTreeMap;

use lb_common::{counter::Counter, datapath::Verdict};

/// What became of a packet, and everything that it moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// What was decided.
    pub verdict: Verdict,
    /// The frame afterwards, also of a packet that ends here.
    pub frame: Vec<u8>,
    /// Counters of backends and services that moved, by index, and by how much.
    pub counters: BTreeMap<u32, Counter>,
    /// Reasons (or outcomes, of decapsulation) that moved, by number, and by how much.
    pub reasons: BTreeMap<u32, u64>,
}
