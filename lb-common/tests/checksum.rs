//! The Internet checksum's arithmetic, against its definition and against published examples.

use lb_common::datapath::{checksum, encap};
use proptest::prelude::*;

/// Ones-complement sums are sums modulo 65,535 with two zeros: 0 only if every word was 0.
fn assert_folds(sum: u32) {
    let expected = if sum == 0 { 0 } else { (sum - 1) % 65_535 + 1 };
    assert_eq!(u32::from(checksum::fold(sum)), expected, "{sum:#x}");
}

#[test]
fn folding_carries_twice_where_it_must() {
    for sum in (0..0x4_0000).chain([0x1_ffff, 0xffff_0000, 65_535 * 65_535]) {
        assert_folds(sum);
    }
    // All that is near a second carry.
    for high in 0..0xffff_u32 {
        for low in 0xfff0..=0xffff_u32 {
            assert_folds(high << 16 | low);
        }
    }
}

#[test]
fn rfc_1071_has_this_example() {
    // Section 3: 00 01 f2 03 f4 f5 f6 f7 sums to ddf2.
    let sum = [0x0001, 0xf203, 0xf4f5, 0xf6f7].into_iter().fold(0, checksum::add);
    assert_eq!(checksum::fold(sum), 0xddf2);
    let sum = [0x0001_f203, 0xf4f5_f6f7].into_iter().fold(0, checksum::add32);
    assert_eq!(checksum::fold(sum), 0xddf2);
}

#[test]
fn constant_sum_and_the_rest_make_a_known_checksum() {
    // 4500 0073 0000 4000 4011 b861 c0a8 0001 c0a8 00c7: UDP, 115 bytes, 192.168.0.1 to 192.168.0.199.
    let constant = encap::constant_sum([192, 168, 0, 1], [192, 168, 0, 199]);
    let sum = checksum::add(checksum::add(u32::from(constant), 115), 17);
    assert_eq!(!checksum::fold(sum), 0xb861);
}

proptest! {
    #[test]
    fn a_sum_made_in_parts_is_the_sum_of_the_whole(words in prop::collection::vec(any::<u16>(), 0..200), cut in any::<prop::sample::Index>()) {
        let whole = words.iter().copied().fold(0, checksum::add);
        let (one, other) = words.split_at(cut.index(words.len() + 1));
        let part = checksum::fold(one.iter().copied().fold(0, checksum::add));
        let parts = other.iter().copied().fold(u32::from(part), checksum::add);
        prop_assert_eq!(checksum::fold(parts), checksum::fold(whole));
        assert_folds(whole);
    }
}
