//! Whether a pinned map is what this program expects. aya reuses whatever is pinned under a name, so this comes first.

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapInfo, MapType};
use lb_common::{
    abi,
    backend::Backend,
    counter::Counter,
    decap::{DecapNode, Outcome},
    node::Node,
    reason::Reason,
    ring::Slot,
    service::{Service, ServiceKey},
};

use super::pins::Pins;

const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// The kernel itself sets it on device maps: the program may not write to them (`kernel/bpf/devmap.c`).
const BPF_F_RDONLY_PROG: u32 = 1 << 7;

/// The shape of a map.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its name in the object and among the pins.
    pub name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    flags: u32,
    /// Elements; `None` where the configuration decides.
    entries: Option<u32>,
}

const fn layout(
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    flags: u32,
    entries: Option<u32>,
) -> Layout {
    Layout { name, kind, key, value, flags, entries }
}

/// The maps of the balancer.
pub const FORWARD: [Layout; 7] = [
    layout(abi::forward::NODE, MapType::Array, 4, size_of::<Node>(), 0, Some(1)),
    layout(abi::forward::SERVICES, MapType::Hash, size_of::<ServiceKey>(), size_of::<Service>(), 0, None),
    layout(abi::forward::BACKENDS, MapType::Array, 4, size_of::<Backend>(), BPF_F_MMAPABLE, None),
    layout(abi::forward::RINGS, MapType::Array, 4, size_of::<Slot>(), BPF_F_MMAPABLE, None),
    layout(abi::forward::COUNTERS, MapType::PerCpuArray, 4, size_of::<Counter>(), 0, None),
    layout(abi::forward::REASONS, MapType::PerCpuArray, 4, 8, 0, Some(Reason::COUNT)),
    layout(abi::forward::DEVICES, MapType::DevMapHash, 4, 8, BPF_F_RDONLY_PROG, Some(abi::DEVICES)),
];

/// The maps of the decapsulation.
pub const DECAP: [Layout; 4] = [
    layout(abi::decap::NODE, MapType::Array, 4, size_of::<DecapNode>(), 0, Some(1)),
    layout(abi::decap::SOURCES_V4, MapType::LpmTrie, 8, 4, BPF_F_NO_PREALLOC, Some(abi::DECAP_SOURCES)),
    layout(abi::decap::SOURCES_V6, MapType::LpmTrie, 20, 4, BPF_F_NO_PREALLOC, Some(abi::DECAP_SOURCES)),
    layout(abi::decap::OUTCOMES, MapType::PerCpuArray, 4, 8, 0, Some(Outcome::COUNT)),
];

impl Layout {
    /// Compares with what is pinned, and names every difference.
    ///
    /// Returns the number of elements of the pinned map.
    pub fn verify(&self, pins: &Pins) -> Result<u32> {
        let path = pins.map(self.name);
        let info =
            MapInfo::from_pin(&path).with_context(|| format!("reading the pinned map {}", path.display()))?;
        let mut differences = Vec::new();
        if !info.map_type().is_ok_and(|kind| kind == self.kind) {
            differences.push(format!("type {:?} instead of {:?}", info.map_type().ok(), self.kind));
        }
        let flags = info.map_flags();
        for (what, found, wanted) in [
            ("key size", info.key_size(), self.key as u32),
            ("value size", info.value_size(), self.value as u32),
            ("flags", flags, self.flags),
            ("entries", info.max_entries(), self.entries.unwrap_or(info.max_entries())),
        ] {
            if found != wanted {
                differences.push(format!("{what} {found} instead of {wanted}"));
            }
        }
        if !differences.is_empty() {
            bail!(
                "the pinned map {} is not ours: {}. It is left untouched; move it away, or remove all pins with \
                 `wattline dataplane clean` (which ends forwarding)",
                path.display(),
                differences.join(", ")
            );
        }
        Ok(info.max_entries())
    }
}
