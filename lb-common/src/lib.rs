//! What the XDP programs and user space must agree on: the layouts of the maps, and the packet path itself.
//!
//! Everything here is `no_std`, does no I/O, allocates nothing (but for the `host` feature) and reads no clock. The
//! same [`datapath`] functions run inside the kernel over raw packet memory and on the host over byte slices.
// The packet path is inlined on purpose: a BPF call costs more than most of these functions, and passing the packet
// through one loses the verifier's knowledge of its bounds.
#![allow(clippy::inline_always)]
#![cfg_attr(not(any(feature = "host", test)), no_std)]

pub mod abi;
pub mod address;
pub mod backend;
pub mod counter;
pub mod datapath;
pub mod decap;
#[cfg(feature = "host")]
pub mod host;
pub mod node;
pub mod reason;
pub mod ring;
pub mod service;
