//! The keyed flow hash from outside: what spreads evenly, what every field changes, and what no collision survives.
//!
//! The statistics have fixed inputs and bounds some six standard deviations away: if one fails, the hash has changed.

use std::collections::HashSet;

use lb_common::{
    address::{AddressBytes, Family, v4_bytes},
    datapath::hash::{Flow, FlowHash, FlowKey},
};
use proptest::prelude::*;

/// Sizes of rings: tiny, the smallest two of the product, one of its common ones, and one that is not prime.
const RINGS: [u32; 5] = [7, 1021, 2039, 8191, 4096];

fn key(seed: u64) -> FlowKey {
    // SplitMix64: any words will do, as long as they look like SipHash's.
    let mut state = seed;
    FlowKey::from_words(std::array::from_fn(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }))
}

fn v4(source: u32, source_port: u16, destination_port: u16) -> Flow {
    Flow {
        family: Family::V4,
        protocol: 6,
        source: v4_bytes(source.to_be_bytes()),
        destination: v4_bytes([192, 0, 2, 10]),
        source_port,
        destination_port,
    }
}

fn v6(source: u128, source_port: u16) -> Flow {
    Flow {
        family: Family::V6,
        protocol: 6,
        source: source.to_be_bytes(),
        destination: 0x2001_0db8_0001_0000_0000_0000_0000_0010_u128.to_be_bytes(),
        source_port,
        destination_port: 443,
    }
}

/// How many standard deviations chi-squared of flows over slots is away from its mean.
fn deviation(slots_hit: impl Iterator<Item = u32>, slots: u32) -> f64 {
    let mut hits = vec![0u32; slots as usize];
    let mut total = 0.0;
    for slot in slots_hit {
        hits[slot as usize] += 1;
        total += 1.0;
    }
    let mean = total / f64::from(slots);
    let chi: f64 = hits.iter().map(|&n| (f64::from(n) - mean).powi(2) / mean).sum();
    let freedom = f64::from(slots - 1);
    (chi - freedom) / (2.0 * freedom).sqrt()
}

/// Even, and not suspiciously so: flows dealt out in turn would have a chi-squared near 0.
fn assert_even(what: &str, flows: impl Fn() -> Box<dyn Iterator<Item = Flow>>) {
    for seed in 1..=3 {
        let key = key(seed);
        let hashes: Vec<FlowHash> = flows().map(|flow| flow.hash(&key)).collect();
        for slots in RINGS {
            let sigma = deviation(hashes.iter().map(|hash| hash.slot(slots)), slots);
            assert!(sigma.abs() < 6.0, "{what}, key {seed}, {slots} slots: {sigma:.1} standard deviations");
        }
    }
}

#[test]
fn sequential_ports_spread_evenly() {
    let ports = || 0..=u16::MAX;
    assert_even("IPv4 source ports", move || Box::new(ports().map(|port| v4(0xc633_6407, port, 80))));
    assert_even("IPv4 destination ports", move || {
        Box::new(ports().map(|port| v4(0xc633_6407, 40_000, port)))
    });
    assert_even("IPv6 source ports", move || Box::new(ports().map(|port| v6(7, port))));
}

#[test]
fn sequential_addresses_spread_evenly() {
    const BASE: u128 = 0x2001_0db8 << 96;
    let v4_at = |address| v4(address, 40_000, 80);
    let v6_at = |address| v6(address, 40_000);
    assert_even("IPv4 hosts", move || Box::new((0..65_536).map(move |n| v4_at(0x0a00_0000 | n))));
    assert_even("IPv4 networks", move || Box::new((0..65_536).map(move |n| v4_at(n << 16 | 1))));
    assert_even("IPv6 hosts", move || Box::new((0..65_536).map(move |n| v6_at(BASE | n))));
    assert_even("IPv6 /64 networks", move || Box::new((0..65_536).map(move |n| v6_at(BASE | n << 64 | 1))));
    assert_even("IPv6 /32 networks", move || Box::new((0..65_536).map(move |n| v6_at(n << 96 | 1))));
}

#[test]
fn addresses_and_ports_together_spread_evenly() {
    // 256 clients with 256 ports each, stepping in both.
    let pairs = || (0..65_536u32).map(|n| (n >> 8, 1024 + (n as u16 & 255)));
    assert_even("IPv4", move || Box::new(pairs().map(|(host, port)| v4(0x0a00_0000 | host, port, 80))));
    assert_even("IPv6", move || Box::new(pairs().map(|(host, port)| v6(host.into(), port))));
}

#[test]
fn entropy_spreads_evenly_within_one_slot() {
    let key = key(1);
    let hashes = (0..=u16::MAX).map(|port| v4(0xc633_6407, port, 80).hash(&key));
    let within = hashes.filter(|hash| hash.slot(7) == 3);
    // By bits that a GUE source port carries.
    let sigma = deviation(within.map(|hash| hash.entropy() & 0xff), 256);
    assert!(sigma.abs() < 6.0, "{sigma:.1} standard deviations");
}

#[test]
fn slots_under_two_keys_are_unrelated() {
    let (one, other) = (key(1), key(2));
    let flows_v4: Vec<Flow> = (0..100_000).map(|n| v4(0x0a00_0000 + n, n as u16, 80)).collect();
    let flows_v6: Vec<Flow> = (0..100_000u32).map(|n| v6(u128::from(n), n as u16)).collect();
    for slots in [1021u32, 2039] {
        for (what, flows) in [("IPv4", &flows_v4), ("IPv6", &flows_v6)] {
            // If the two slots of a flow are unrelated, their distance is even over the ring, 0 included.
            let distance = |flow: &Flow| {
                let slot = |key| flow.hash(key).slot(slots);
                (slot(&one) + slots - slot(&other)) % slots
            };
            let sigma = deviation(flows.iter().map(distance), slots);
            assert!(sigma.abs() < 6.0, "{what}, {slots} slots: {sigma:.1} standard deviations");
        }
    }
}

/// Somebody who knows one key makes flows that fall into one slot under it, by algebra and by search. Under another key
/// they are flows like any others.
#[test]
fn collisions_for_one_key_are_none_for_another() {
    const SLOTS: u32 = 1021;
    let (known, secret) = (key(1), key(2));
    // By algebra: with a port word of minus the key's, the source's product is 0 whatever the source is.
    let word = known.words[1].wrapping_neg();
    let [source_port, port] = [(word >> 16) as u16, word as u16];
    let solved: Vec<Flow> = (0..60_000).map(|n| v4(0x0a00_0000 + n * 7, source_port, port)).collect();
    assert_eq!(solved.iter().map(|flow| flow.hash(&known).0).collect::<HashSet<_>>().len(), 1);
    // By search: the flows out of many that the known key sends to slot 0.
    let searched: Vec<Flow> = (0..6_000_000u32)
        .map(|n| v4(0x0a00_0000 + (n >> 16), n as u16, 80))
        .filter(|flow| flow.hash(&known).slot(SLOTS) == 0)
        .collect();
    assert!(searched.len() > 5000, "{}", searched.len());
    for (what, flows) in [("solved", solved), ("searched", searched)] {
        let sigma = deviation(flows.iter().map(|flow| flow.hash(&secret).slot(SLOTS)), SLOTS);
        assert!(sigma.abs() < 6.0, "{what}: {sigma:.1} standard deviations from chance");
    }
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let fields =
        (any::<bool>(), any::<u8>(), any::<AddressBytes>(), any::<AddressBytes>(), any::<[u16; 2]>());
    fields.prop_map(|(is_v4, protocol, source, destination, [source_port, destination_port])| {
        let cut = |bytes: AddressBytes| {
            if is_v4 { v4_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) } else { bytes }
        };
        Flow {
            family: if is_v4 { Family::V4 } else { Family::V6 },
            protocol,
            source: cut(source),
            destination: cut(destination),
            source_port,
            destination_port,
        }
    })
}

/// Every flow that differs from `flow` in one bit of one field.
fn neighbours(flow: Flow) -> Vec<Flow> {
    let mut all = Vec::new();
    for bit in 0..8 {
        all.push(Flow { protocol: flow.protocol ^ 1 << bit, ..flow });
    }
    for bit in 0..16 {
        all.push(Flow { source_port: flow.source_port ^ 1 << bit, ..flow });
        all.push(Flow { destination_port: flow.destination_port ^ 1 << bit, ..flow });
    }
    let bytes = if flow.family == Family::V4 { 4 } else { 16 };
    for bit in 0..8 * bytes {
        let flip = |mut address: AddressBytes| {
            address[bit / 8] ^= 1 << (bit % 8);
            address
        };
        all.push(Flow { source: flip(flow.source), ..flow });
        all.push(Flow { destination: flip(flow.destination), ..flow });
    }
    all
}

#[test]
fn one_bit_of_a_field_changes_half_the_bits_of_the_hash() {
    // Summed over keys; a single pair may differ by anything.
    for base in [v4(0xc633_6407, 40_000, 80), v6(7, 40_000)] {
        for neighbour in neighbours(base) {
            let changed = |seed| {
                let key = key(seed);
                (base.hash(&key).0 ^ neighbour.hash(&key).0).count_ones()
            };
            let changed: u32 = (0..64).map(changed).sum();
            // 64 times 32 bits with standard deviation 32; 200 is six away.
            assert!(changed.abs_diff(64 * 32) < 200, "{base:?}, {neighbour:?}: {changed} of 4096 bits");
        }
    }
}

proptest! {
    /// A pair collides with a chance of 2⁻³² over the key.
    #[test]
    fn one_bit_of_any_field_changes_the_hash(flow in any_flow(), seed in any::<u64>()) {
        let key = key(seed);
        let hash = flow.hash(&key);
        for neighbour in neighbours(flow) {
            prop_assert_ne!(neighbour.hash(&key), hash, "{:?}", neighbour);
        }
    }

    #[test]
    fn the_family_is_part_of_the_hash(flow in any_flow(), seed in any::<u64>()) {
        let family = if flow.family == Family::V4 { Family::V6 } else { Family::V4 };
        prop_assert_ne!(flow.hash(&key(seed)), Flow { family, ..flow }.hash(&key(seed)));
    }
}
