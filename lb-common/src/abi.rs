//! The contract between the committed eBPF objects and user space: version, names and sizes of what is pinned.
//!
//! A change to any layout in this crate must raise [`LAYOUT_VERSION`]; pins live in a directory named after it, so an
//! agent never mistakes another version's maps for its own.

use core::mem::{align_of, size_of};

use crate::{
    backend::Backend, counter::Counter, decap::DecapNode, node::Node, ring::Slot, service::Service,
    service::ServiceKey,
};

/// The version of every layout in this crate; part of the pin directory's name (`v1`).
pub const LAYOUT_VERSION: u32 = 1;

/// Names of the forwarding program and its maps, as pinned below the versioned directory.
pub mod forward {
    /// The XDP program that balances.
    pub const PROGRAM: &str = "forward";
    /// `ARRAY[1]` of [`crate::node::Node`]: what every packet of this node needs.
    pub const NODE: &str = "NODE";
    /// `HASH` from [`crate::service::ServiceKey`] to [`crate::service::Service`].
    pub const SERVICES: &str = "SERVICES";
    /// `ARRAY` of [`crate::backend::Backend`], mmapable, holding the backend regions of all services.
    pub const BACKENDS: &str = "BACKENDS";
    /// `ARRAY` of [`crate::ring::Slot`], mmapable, holding the rings of all services as regions.
    pub const RINGS: &str = "RINGS";
    /// `PERCPU_ARRAY` of [`crate::counter::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// `PERCPU_ARRAY` of `u64`, indexed by [`crate::reason::Reason`].
    pub const REASONS: &str = "REASONS";
    /// `DEVMAP_HASH` from interface index to interface index: where XDP may redirect to.
    pub const DEVICES: &str = "DEVICES";
    /// All of the above, in the order they are listed to people.
    pub const MAPS: [&str; 7] = [NODE, SERVICES, BACKENDS, RINGS, COUNTERS, REASONS, DEVICES];
}

/// Names of the decapsulating program and its maps.
pub mod decap {
    /// The XDP program on a backend that removes the encapsulation.
    pub const PROGRAM: &str = "decap";
    /// `ARRAY[1]` of [`crate::decap::DecapNode`].
    pub const NODE: &str = "DECAP_NODE";
    /// `LPM_TRIE` of allowed outer IPv4 sources; key: prefix length `u32`, address `[u8; 4]`.
    pub const SOURCES_V4: &str = "SOURCES_V4";
    /// `LPM_TRIE` of allowed outer IPv6 sources; key: prefix length `u32`, address `[u8; 16]`.
    pub const SOURCES_V6: &str = "SOURCES_V6";
    /// `PERCPU_ARRAY` of `u64`, indexed by [`crate::decap::Outcome`].
    pub const OUTCOMES: &str = "OUTCOMES";
    /// All of the above.
    pub const MAPS: [&str; 4] = [NODE, SOURCES_V4, SOURCES_V6, OUTCOMES];
}

/// Entries of the decapsulation allow list, per address family.
pub const DECAP_SOURCES: u32 = 1024;

/// Entries of the device map: interfaces that a node may redirect to.
pub const DEVICES: u32 = 256;

/// The UDP port that IANA assigned to Generic UDP Encapsulation.
pub const GUE_PORT: u16 = 6080;

// Layouts shared with the kernel. Array values have an 8-byte stride, so sizes are multiples of 8 wherever user space
// maps the array as memory.
const _: () = assert!(size_of::<Slot>() == 8 && align_of::<Slot>() == 8);
const _: () = assert!(size_of::<Backend>() == 64);
const _: () = assert!(size_of::<Service>() == 32);
const _: () = assert!(size_of::<ServiceKey>() == 20);
const _: () = assert!(size_of::<Node>() == 64);
const _: () = assert!(size_of::<Counter>() == 16);
const _: () = assert!(size_of::<DecapNode>() == 8);
