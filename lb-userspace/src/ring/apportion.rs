//! Weights to slot quotas: how many slots of a ring each backend owns. Exact integer arithmetic throughout; it must
//! never use floating point, since nodes that round differently would build different rings.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// The tolerance of a share: one part in this many of its ideal, but never less than one slot.
const TOLERANCE_DIVISOR: u128 = 100;

/// The quota of each weight, in the order given, which must be the canonical one (it breaks ties). They sum to `slots`.
///
/// Requires: at least one weight, every weight between 1 and 65,535, at most 65,536 weights, and `slots` at least their
/// number. The caller has checked this.
///
/// With `M` slots, weights `w` summing to `W` and ideals `I = w·M/W`:
///
/// 1. Each gets the whole part of its ideal; the slots left over go one each to the largest fractional parts.
/// 2. Each that still has none gets one, taken from the backend that departs least from its ideal by giving it, measured
///    in its tolerance, the larger of one slot and 1 % of its ideal. Nobody gives away its last slot.
///
/// Where `M ≥ 100 × backends`, every quota ends within its tolerance; `docs/maglev.md` has the proof.
pub(super) fn apportion(weights: &[u32], slots: u32) -> Vec<u32> {
    let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let mut quotas = largest_remainder(weights, slots, total);
    raise_to_one(weights, slots, total, &mut quotas);
    quotas
}

/// Hamilton's method: whole parts first, then one slot for each of the largest remainders.
fn largest_remainder(weights: &[u32], slots: u32, total: u128) -> Vec<u32> {
    let scaled = |weight: u32| u128::from(weight) * u128::from(slots);
    let mut quotas: Vec<u32> = weights.iter().map(|&weight| (scaled(weight) / total) as u32).collect();
    let left_over = slots - quotas.iter().sum::<u32>();

    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    // Stable, so equal remainders stay in canonical order.
    by_remainder.sort_by_key(|&i| Reverse(scaled(weights[i]) % total));
    for &i in &by_remainder[..left_over as usize] {
        quotas[i] += 1;
    }
    quotas
}

/// Gives one slot to everybody who has none.
fn raise_to_one(weights: &[u32], slots: u32, total: u128, quotas: &mut [u32]) {
    let without: Vec<usize> = (0..quotas.len()).filter(|&i| quotas[i] == 0).collect();
    if without.is_empty() {
        return;
    }
    let offer =
        |backend: usize, quota: u32| Reverse(Offer::new(backend, weights[backend], quota, slots, total));
    let mut donors: BinaryHeap<Reverse<Offer>> =
        (0..quotas.len()).filter(|&i| quotas[i] >= 2).map(|i| offer(i, quotas[i])).collect();
    for poor in without {
        // The quotas sum to at least as many slots as there are backends: while one has none, another has two.
        let Reverse(Offer { backend: donor, .. }) =
            donors.pop().expect("a backend with two slots to spare one of");
        quotas[donor] -= 1;
        quotas[poor] = 1;
        if quotas[donor] >= 2 {
            donors.push(offer(donor, quotas[donor]));
        }
    }
}

/// What it would cost a backend to give one slot: its deviation afterwards divided by its tolerance, as a fraction.
struct Offer {
    /// `100·W` times the deviation. Below 2^56, and the other below 2^55, so that products stay inside `u128`.
    deviation: u128,
    /// `100·W` times the tolerance.
    tolerance: u128,
    /// Position in canonical order.
    backend: usize,
}

impl Offer {
    fn new(backend: usize, weight: u32, quota: u32, slots: u32, total: u128) -> Self {
        let ideal = u128::from(weight) * u128::from(slots);
        // Never negative: no quota of two or more exceeds its ideal by a whole slot.
        let deviation = TOLERANCE_DIVISOR * (ideal - u128::from(quota - 1) * total);
        Self { deviation, tolerance: ideal.max(TOLERANCE_DIVISOR * total), backend }
    }
}

impl Ord for Offer {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.deviation * other.tolerance)
            .cmp(&(other.deviation * self.tolerance))
            .then(self.backend.cmp(&other.backend))
    }
}

impl PartialOrd for Offer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Offer {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Offer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Ideals 3.67, 3.67, 3.67: two slots are left over and go to the first two.
        assert_eq!(apportion(&[7, 7, 7], 11), [4, 4, 3]);
        // Ideals 1.83, 3.67, 5.50: the two largest fractions get one more.
        assert_eq!(apportion(&[1, 2, 3], 11), [2, 4, 5]);
        assert_eq!(apportion(&[5], 1_021), [1_021]);
        // As many slots as backends: one each, whatever the weights.
        assert_eq!(apportion(&[65_535, 1, 1], 3), [1, 1, 1]);
    }

    #[test]
    fn the_poor_are_fed_by_those_it_hurts_least() {
        // Ideals 899.2, 99.9, 0.90, 0.10 and 0.90. The fourth has none. Rounded to 899, 100, 1, 0, 1, the second is above
        // its ideal: after giving it is off by 0.91 slots of a tolerance of 1, the first by 1.2 of its 8.99.
        assert_eq!(apportion(&[9_000, 1_000, 9, 1, 9], 1_001), [898, 100, 1, 1, 1]);
        // Two alike pay in canonical order: 500.5 each, rounded to 501 and 500, and the first is the cheaper.
        assert_eq!(apportion(&[50_000, 50_000, 1], 1_001), [500, 500, 1]);
    }

    #[test]
    fn extremes_stay_inside_the_arithmetic() {
        let mut weights = vec![65_535; 65_536];
        weights[7] = 1;
        let quotas = apportion(&weights, 4_294_967_291);
        assert_eq!(quotas.iter().map(|&quota| u64::from(quota)).sum::<u64>(), 4_294_967_291);
        assert_eq!(quotas[7], 1);
    }
}
