//! What a ring promises, through the public interface: shares, canonical order, agreement with separately written
//! implementations, golden vectors, disruption.

#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is the failing test; clippy.toml covers only test functions"
)]

#[path = "ring/disruption.rs"]
mod disruption;
#[path = "ring/plain.rs"]
mod plain;

use std::collections::BTreeMap;

use lb_userspace::ring::{
    Candidate, MAX_WEIGHT, RingError, SLOTS_PER_BACKEND, build, digest, ring_slots_for,
};
use proptest::prelude::*;

/// Backends as a test describes them: names and weights; the index is the position unless a test says otherwise.
type Backends = Vec<(String, u32)>;

fn candidates(backends: &[(String, u32)]) -> Vec<Candidate<'_>> {
    (0..=u16::MAX)
        .zip(backends)
        .map(|(index, (name, weight))| Candidate { name, index, weight: *weight })
        .collect()
}

fn numbered(prefix: &str, weights: impl IntoIterator<Item = u32>) -> Backends {
    weights.into_iter().enumerate().map(|(i, weight)| (format!("{prefix}{i}"), weight)).collect()
}

fn ring(backends: &[(String, u32)], slots: u32) -> Vec<u16> {
    build(&candidates(backends), slots).unwrap()
}

fn digest_of(backends: &[(String, u32)], slots: u32) -> u64 {
    digest(&candidates(backends), &ring(backends, slots)).unwrap()
}

fn counts(ring: &[u16], backends: usize) -> Vec<u64> {
    let mut counts = vec![0; backends];
    for &owner in ring {
        counts[usize::from(owner)] += 1;
    }
    counts
}

/// Every share within the larger of one slot and 1 % of its ideal, and nobody with a weight left without a slot.
fn assert_shares(backends: &[(String, u32)], slots: u32) {
    assert!(slots as usize >= SLOTS_PER_BACKEND as usize * backends.len());
    let ring = ring(backends, slots);
    assert_eq!(ring.len(), slots as usize);
    let sum: u64 = backends.iter().map(|(_, weight)| u64::from(*weight)).sum();
    for ((name, weight), count) in backends.iter().zip(counts(&ring, backends.len())) {
        let ideal_times_sum = u64::from(*weight) * u64::from(slots);
        let deviation = ideal_times_sum.abs_diff(count * sum);
        assert!(
            100 * deviation <= (100 * sum).max(ideal_times_sum),
            "{name}: {count} of {slots} slots for the weight {weight} of {sum}"
        );
        assert_eq!(count == 0, *weight == 0, "{name}: {count} slots for the weight {weight}");
    }
}

/// Primes from tiny to a few thousand, with backends to match.
const SMALL_PRIMES: [u32; 8] = [2, 3, 13, 101, 251, 509, 1_021, 4_093];

fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![1 => Just(0), 3 => 1..=10_u32, 3 => 1..=1_000_u32, 2 => 1..=MAX_WEIGHT, 1 => Just(MAX_WEIGHT)]
}

fn backends(most: usize) -> impl Strategy<Value = Backends> {
    prop::collection::btree_map("[a-z0-9][a-zA-Z0-9._-]{0,8}", weight(), 1..=most)
        .prop_map(|by_name| by_name.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

/// Backends and a ring large enough for them, but not always a hundred times as large.
fn backends_and_slots() -> impl Strategy<Value = (Backends, u32)> {
    backends(40).prop_flat_map(|backends| {
        let fitting: Vec<u32> =
            SMALL_PRIMES.into_iter().filter(|&slots| slots as usize >= backends.len()).collect();
        (Just(backends), prop::sample::select(fitting))
    })
}

proptest! {
    // Failures are printed with their input; nothing is written into the source tree.
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shares_follow_weights(backends in backends(60)) {
        prop_assume!(backends.iter().any(|(_, weight)| *weight > 0));
        assert_shares(&backends, ring_slots_for(backends.len()));
    }

    #[test]
    fn every_weight_owns_a_slot_however_small_the_ring((backends, slots) in backends_and_slots()) {
        let ring = ring(&backends, slots);
        let some = backends.iter().any(|(_, weight)| *weight > 0);
        prop_assert_eq!(ring.len(), if some { slots as usize } else { 0 });
        for ((_, weight), count) in backends.iter().zip(counts(&ring, backends.len())) {
            prop_assert_eq!(count > 0, *weight > 0);
        }
    }

    #[test]
    fn order_of_input_does_not_matter(
        ((backends, slots), shuffled) in backends_and_slots().prop_flat_map(|(backends, slots)| {
            let numbered = candidates(&backends).iter().map(|c| (c.name.to_owned(), c.index, c.weight)).collect::<Vec<_>>();
            (Just((backends, slots)), Just(numbered).prop_shuffle())
        })
    ) {
        let shuffled: Vec<Candidate<'_>> =
            shuffled.iter().map(|(name, index, weight)| Candidate { name, index: *index, weight: *weight }).collect();
        prop_assert_eq!(build(&shuffled, slots).unwrap(), ring(&backends, slots));
    }

    #[test]
    fn indices_are_only_labels((backends, slots) in backends_and_slots(), times in 0..32_768_u16, plus in any::<u16>()) {
        // An odd factor permutes the 16-bit numbers.
        let relabel = |index: u16| index.wrapping_mul(2 * times + 1).wrapping_add(plus);
        let mut relabeled = candidates(&backends);
        for candidate in &mut relabeled {
            candidate.index = relabel(candidate.index);
        }
        let before = ring(&backends, slots);
        let after = build(&relabeled, slots).unwrap();
        prop_assert_eq!(&after, &before.iter().map(|&owner| relabel(owner)).collect::<Vec<_>>());
        prop_assert_eq!(digest(&relabeled, &after).unwrap(), digest_of(&backends, slots));
    }

    #[test]
    fn weight_0_is_absence((backends, slots) in backends_and_slots()) {
        let names: BTreeMap<u16, &str> = candidates(&backends).iter().map(|c| (c.index, c.name)).collect();
        let present: Backends = backends.iter().filter(|(_, weight)| *weight > 0).cloned().collect();
        let by_name: Vec<&str> = ring(&backends, slots).iter().map(|owner| names[owner]).collect();
        let expected: Vec<&str> =
            ring(&present, slots).iter().map(|&owner| present[usize::from(owner)].0.as_str()).collect();
        prop_assert_eq!(by_name, expected);
        prop_assert_eq!(digest_of(&backends, slots), digest_of(&present, slots));
    }

    #[test]
    fn scaling_all_weights_changes_nothing((backends, slots) in backends_and_slots(), factor in 2..=65_535_u32) {
        let heaviest = backends.iter().map(|(_, weight)| *weight).max().unwrap().max(1);
        // The largest scale that fits, down to weights of at most a half.
        let factor = factor.min(MAX_WEIGHT / heaviest);
        let (small, factor): (Backends, u32) = if factor >= 2 {
            (backends, factor)
        } else {
            (backends.into_iter().map(|(name, weight)| (name, weight / 2)).collect(), 2)
        };
        let large: Backends = small.iter().map(|(name, weight)| (name.clone(), weight * factor)).collect();
        prop_assert_eq!(ring(&large, slots), ring(&small, slots));
    }

    #[test]
    fn the_papers_pseudo_code_agrees_for_equal_weights((backends, slots) in backends_and_slots(), weight in 1..=MAX_WEIGHT) {
        let equal: BTreeMap<String, u32> = backends.into_iter().map(|(name, _)| (name, weight)).collect();
        let names: Vec<&str> = equal.keys().map(String::as_str).collect();
        let equal: Backends = equal.iter().map(|(name, weight)| (name.clone(), *weight)).collect();
        let owners: Vec<usize> = ring(&equal, slots).into_iter().map(usize::from).collect();
        prop_assert_eq!(owners, plain::paper(&names, slots as usize));
    }

    #[test]
    fn a_plain_weighted_ring_agrees((backends, slots) in backends_and_slots()) {
        let present: BTreeMap<String, u32> = backends.into_iter().filter(|(_, weight)| *weight > 0).collect();
        prop_assume!(!present.is_empty());
        let names: Vec<&str> = present.keys().map(String::as_str).collect();
        let weights: Vec<u32> = present.values().copied().collect();
        let backends: Backends = present.iter().map(|(name, weight)| (name.clone(), *weight)).collect();
        let owners: Vec<usize> = ring(&backends, slots).into_iter().map(usize::from).collect();
        prop_assert_eq!(owners, plain::weighted(&names, &weights, slots as usize));
    }
}

#[test]
fn shares_at_the_extremes() {
    let cases: [(&str, Backends); 8] = [
        ("alone", numbered("b", [1])),
        ("equal", numbered("b", [7; 1_000])),
        ("1:1000", numbered("b", [1, 1_000])),
        ("one heavy, 999 light", numbered("b", (0..1_000).map(|i| if i == 500 { MAX_WEIGHT } else { 1 }))),
        // Ideals of 0.4 slots for the light: nearly all the slots they own must be given by the others.
        (
            "half heavy, half light",
            numbered("b", (0..1_000).map(|i| if i % 2 == 0 { MAX_WEIGHT } else { 130 })),
        ),
        // Middling ideals, just above a hundred slots, where 1 % is little more than one slot and rounding costs most.
        ("middling", numbered("b", (0..1_000).map(|i| if i < 900 { 60_000 + i } else { 1 }))),
        // Ideals of 1 to 3 slots, which can give nothing without leaving their tolerance.
        ("one heavy, small and tiny", {
            numbered(
                "b",
                (0..1_000).map(|i| {
                    if i == 0 {
                        MAX_WEIGHT
                    } else if i < 500 {
                        1 + i % 3
                    } else {
                        1
                    }
                }),
            )
        }),
        ("a few left", numbered("b", (0..1_000).map(|i| if i % 100 == 0 { 3 } else { 0 }))),
    ];
    for (what, backends) in cases {
        println!("{what}");
        assert_shares(&backends, ring_slots_for(backends.len()));
    }
}

#[test]
fn ten_thousand_backends() {
    let backends = numbered("backend-", (0..10_000).map(|i| 1 + i * 7_919 % 65_535));
    assert_shares(&backends, ring_slots_for(backends.len()));
}

#[test]
fn no_weight_no_ring() {
    assert_eq!(build(&[], 1_021), Ok(vec![]));
    assert_eq!(ring(&numbered("b", [0, 0]), 1_021), Vec::<u16>::new());
}

#[test]
fn refusals() {
    let candidate = |name, index, weight| Candidate { name, index, weight };
    let (a, b) = (candidate("a", 0, 1), candidate("b", 1, 1));
    assert_eq!(build(&[a, candidate("a", 1, 0)], 13), Err(RingError::DuplicateName { name: "a".to_owned() }));
    assert_eq!(build(&[a, candidate("b", 0, 1)], 13), Err(RingError::DuplicateIndex { index: 0 }));
    assert_eq!(
        build(&[a, candidate("b", 1, 65_536)], 13),
        Err(RingError::WeightTooLarge { name: "b".to_owned(), weight: 65_536 })
    );
    for slots in [0, 1, 4, 65_536] {
        assert_eq!(build(&[a, b], slots), Err(RingError::SlotsNotPrime { slots }));
    }
    assert_eq!(
        build(&[a, b, candidate("c", 2, 1)], 2),
        Err(RingError::TooFewSlots { slots: 2, backends: 3 })
    );
    assert!(build(&[a, b, candidate("c", 2, 0)], 2).is_ok());
    assert_eq!(digest(&[a, b], &[0, 1, 9]), Err(RingError::UnknownOwner { slot: 2, index: 9 }));
    assert_eq!(
        RingError::TooFewSlots { slots: 2, backends: 3 }.to_string(),
        "a ring of 2 slots is too small for 3 backends"
    );
}

#[test]
fn digest_tells_rings_apart() {
    let backends = numbered("b", [1, 1, 1]);
    let (candidates, mut ring) = (candidates(&backends), ring(&backends, 13));
    let before = digest(&candidates, &ring).unwrap();
    let other = ring.iter().position(|&owner| owner != ring[0]).unwrap();
    ring.swap(0, other);
    assert_ne!(digest(&candidates, &ring).unwrap(), before);
    assert_ne!(digest_of(&numbered("c", [1, 1, 1]), 13), digest_of(&backends, 13));
}

/// The contract between nodes of different versions. The vectors were computed by a third implementation, in another
/// language, with its own hash. If this test fails, the change at hand splits the flows of a mixed fleet.
#[test]
fn golden_vectors() {
    let named = |backends: &[(&str, u32)]| -> Backends {
        backends.iter().map(|&(name, weight)| (name.to_owned(), weight)).collect()
    };

    let small = named(&[("a", 1), ("b", 2), ("c", 4), ("drained", 0)]);
    let expected =
        [1, 2, 2, 1, 0, 1, 2, 2, 2, 2, 2, 0, 0, 2, 1, 2, 2, 2, 1, 2, 1, 2, 1, 2, 2, 0, 1, 2, 1, 2, 2];
    assert_eq!(ring(&small, 31), expected);
    assert_eq!(digest_of(&small, 31), 0x2ec2_4e8d_000b_031b);

    // Turns whose exact times disagree with the order of names: b at 3/5 comes before a at 2/3 and c at 3/4.
    let uneven = named(&[("a", 3), ("b", 5), ("c", 4)]);
    let expected =
        [1, 1, 2, 0, 0, 1, 2, 2, 0, 1, 2, 0, 0, 2, 1, 2, 1, 0, 1, 2, 1, 2, 1, 1, 1, 0, 1, 0, 1, 2, 2];
    assert_eq!(ring(&uneven, 31), expected);
    assert_eq!(digest_of(&uneven, 31), 0x58b0_136c_6161_1407);

    let equal = named(&[("web-1", 100), ("web-2", 100), ("web-3", 100)]);
    assert_eq!(ring(&equal, 13), [2, 1, 0, 1, 0, 2, 0, 1, 0, 2, 2, 0, 1]);
    assert_eq!(digest_of(&equal, 13), 0x14bb_8140_9b2f_da65);

    assert_eq!(digest(&[], &[]), Ok(0xbd63_0761_559c_519f));
    for (backends, slots, expected) in [
        (numbered("web-", [100; 10]), 1_021, 0x65f0_0921_506f_9601_u64),
        (numbered("web-", (0..100).map(|i| 1 + i * 37 % 100)), 16_381, 0x4aff_c7b5_b0d6_71b8),
        (numbered("web-", (0..1_000).map(|i| 1 + i * 7_919 % 65_535)), 131_071, 0x2095_0749_1086_f609),
        (named(&[("light", 1), ("heavy", 1_000)]), 1_021, 0xfb04_7cd8_02bd_6392),
        (
            [numbered("light-", [1; 999]), named(&[("heavy", 65_535)])].concat(),
            131_071,
            0xd05a_4d6b_c81a_8080,
        ),
        (numbered("b", (0..50).map(|i| [65_535, 300, 1, 7, 12_345][i % 5])), 8_191, 0xcc93_2d73_d4c0_689b),
        (numbered("b", (0..100).map(|i| [65_535, 1][i % 2])), 101, 0x68b6_f7a1_a20c_cd55),
    ] {
        assert_eq!(digest_of(&backends, slots), expected, "{} backends, {slots} slots", backends.len());
    }
}
