//! The contract of the committed eBPF objects: what is embedded is what `lb-common` describes, and the kernel takes it.
//!
//! These tests look at the committed files on purpose, never at a fresh build. Loading needs root, and a test that
//! cannot load fails: a skipped test proves nothing.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::{collections::BTreeSet, mem::size_of};

use aya::{Ebpf, EbpfLoader, programs::Xdp};
use aya_obj::{Object, ProgramSection, generated::bpf_map_type, generated::bpf_map_type::*};
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

// Aligned, because aya reads ELF structures in place.
const FORWARD: &[u8] = aya::include_bytes_aligned!("../bpf/forward.o");
const DECAP: &[u8] = aya::include_bytes_aligned!("../bpf/decap.o");

/// `include/uapi/linux/bpf.h`.
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// A prefix length in front of an address, in the key of an `LPM_TRIE`.
const PREFIX: usize = size_of::<u32>();

/// What a map must look like: name, type, bytes of a key, bytes of a value, flags.
type Expected = (&'static str, bpf_map_type, usize, usize, u32);

fn assert_maps(object: &[u8], names: &[&str], expected: &[Expected]) {
    let object = Object::parse(object).unwrap();
    let listed: BTreeSet<_> = names.iter().copied().collect();
    assert_eq!(listed, expected.iter().map(|map| map.0).collect(), "abi's list and this test's differ");
    // `.rodata` and the log of aya are no part of the contract.
    let present: BTreeSet<_> = object
        .maps
        .keys()
        .map(String::as_str)
        .filter(|name| !name.starts_with('.') && *name != "AYA_LOGS")
        .collect();
    assert_eq!(present, listed, "maps in the object, and maps that abi names");
    for &(name, kind, key, value, flags) in expected {
        let map = &object.maps[name];
        assert_eq!(map.map_type(), kind as u32, "type of {name}");
        assert_eq!(map.key_size() as usize, key, "key size of {name}");
        assert_eq!(map.value_size() as usize, value, "value size of {name}");
        assert_eq!(map.map_flags(), flags, "flags of {name}");
    }
}

fn assert_program(object: &[u8], name: &str) {
    let object = Object::parse(object).unwrap();
    assert_eq!(object.license.to_str().unwrap(), "Dual MIT/GPL");
    assert_eq!(object.programs.keys().collect::<Vec<_>>(), [name], "one program an object");
    assert!(matches!(object.programs[name].section, ProgramSection::Xdp { .. }), "{name} is an XDP program");
    assert!(object.btf.is_some() && object.btf_ext.is_some(), "{name} lost its BTF");
}

/// Loads an object with tables of a few entries and its program into the kernel, which verifies it.
fn load(object: &[u8], program: &str, sizes: &[(&'static str, u32)]) -> Ebpf {
    assert!(nix::unistd::geteuid().is_root(), "needs root: run `cargo xtask test`");
    let mut loader = EbpfLoader::new();
    for &(name, entries) in sizes {
        loader.map_max_entries(name, entries);
    }
    let mut ebpf = loader.load(object).unwrap();
    let xdp: &mut Xdp = ebpf.program_mut(program).unwrap().try_into().unwrap();
    xdp.load().unwrap();
    ebpf
}

#[test]
fn forward_is_an_xdp_program_under_a_licence_the_kernel_accepts() {
    assert_program(FORWARD, abi::forward::PROGRAM);
}

#[test]
fn decap_is_an_xdp_program_under_a_licence_the_kernel_accepts() {
    assert_program(DECAP, abi::decap::PROGRAM);
}

#[test]
fn forward_has_the_maps_that_abi_describes() {
    use abi::forward as map;
    let index = size_of::<u32>();
    assert_maps(
        FORWARD,
        &map::MAPS,
        &[
            (map::NODE, BPF_MAP_TYPE_ARRAY, index, size_of::<Node>(), 0),
            (map::SERVICES, BPF_MAP_TYPE_HASH, size_of::<ServiceKey>(), size_of::<Service>(), 0),
            (map::BACKENDS, BPF_MAP_TYPE_ARRAY, index, size_of::<Backend>(), BPF_F_MMAPABLE),
            (map::RINGS, BPF_MAP_TYPE_ARRAY, index, size_of::<Slot>(), BPF_F_MMAPABLE),
            (map::COUNTERS, BPF_MAP_TYPE_PERCPU_ARRAY, index, size_of::<Counter>(), 0),
            (map::REASONS, BPF_MAP_TYPE_PERCPU_ARRAY, index, size_of::<u64>(), 0),
            // The value is the kernel's `struct bpf_devmap_val`: interface index and program.
            (map::DEVICES, BPF_MAP_TYPE_DEVMAP_HASH, index, 8, 0),
        ],
    );
}

#[test]
fn decap_has_the_maps_that_abi_describes() {
    use abi::decap as map;
    let (index, allowed) = (size_of::<u32>(), size_of::<u32>());
    assert_maps(
        DECAP,
        &map::MAPS,
        &[
            (map::NODE, BPF_MAP_TYPE_ARRAY, index, size_of::<DecapNode>(), 0),
            (map::SOURCES_V4, BPF_MAP_TYPE_LPM_TRIE, PREFIX + 4, allowed, BPF_F_NO_PREALLOC),
            (map::SOURCES_V6, BPF_MAP_TYPE_LPM_TRIE, PREFIX + 16, allowed, BPF_F_NO_PREALLOC),
            (map::OUTCOMES, BPF_MAP_TYPE_PERCPU_ARRAY, index, size_of::<u64>(), 0),
        ],
    );
}

#[test]
fn fixed_sizes_of_maps_are_those_of_abi() {
    let forward = Object::parse(FORWARD).unwrap();
    assert_eq!(forward.maps[abi::forward::NODE].max_entries(), 1);
    assert_eq!(forward.maps[abi::forward::REASONS].max_entries(), Reason::COUNT);
    assert_eq!(forward.maps[abi::forward::DEVICES].max_entries(), abi::DEVICES);
    let decap = Object::parse(DECAP).unwrap();
    assert_eq!(decap.maps[abi::decap::NODE].max_entries(), 1);
    assert_eq!(decap.maps[abi::decap::OUTCOMES].max_entries(), Outcome::COUNT);
    assert_eq!(decap.maps[abi::decap::SOURCES_V4].max_entries(), abi::DECAP_SOURCES);
    assert_eq!(decap.maps[abi::decap::SOURCES_V6].max_entries(), abi::DECAP_SOURCES);
}

#[test]
fn forward_loads_with_sizes_from_the_configuration() {
    let sizes = [
        (abi::forward::SERVICES, 8),
        (abi::forward::BACKENDS, 16),
        (abi::forward::RINGS, 1024),
        (abi::forward::COUNTERS, 32),
    ];
    let ebpf = load(FORWARD, abi::forward::PROGRAM, &sizes);
    for (name, entries) in sizes {
        let (aya::maps::Map::Array(map) | aya::maps::Map::HashMap(map) | aya::maps::Map::PerCpuArray(map)) =
            ebpf.map(name).unwrap()
        else {
            panic!("{name} has an unexpected type");
        };
        assert_eq!(map.info().unwrap().max_entries(), entries, "entries of {name} in the kernel");
    }
}

#[test]
fn decap_loads() {
    load(DECAP, abi::decap::PROGRAM, &[]);
}
