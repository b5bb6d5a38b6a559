//! Ring sizes: which prime number of slots a service gets. A pure function of the number of backends, so that every
//! node chooses the same; it must never look at weights, health or the ring that exists already.

/// Slots per backend that a default ring has at least. At this ratio every share is within 1 % of its weight's.
pub const SLOTS_PER_BACKEND: u32 = 100;

/// The largest primes below 2^10, 2^11, … 2^24. Few and far apart on purpose: the ring of a service that grows or
/// shrinks keeps its size, and with it nearly all of its flows, until the number of backends has about doubled.
const CLASSES: [u32; 15] = [
    1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_521, 131_071, 262_139, 524_287, 1_048_573, 2_097_143,
    4_194_301, 8_388_593, 16_777_213,
];

/// The largest ring size that [`ring_slots_for`] chooses.
pub const LARGEST_DEFAULT_RING: u32 = CLASSES[CLASSES.len() - 1];

const _: () = {
    let mut i = 0;
    while i < CLASSES.len() {
        assert!(is_prime(CLASSES[i]), "a ring size must be prime");
        assert!(CLASSES[i] >> (9 + i) == 1, "one class for each power of two");
        i += 1;
    }
};

/// The number of slots of a service with that many backends, those of weight 0 included: the smallest class with at
/// least [`SLOTS_PER_BACKEND`] slots for each, or the largest class where none is large enough (above 167,772
/// backends, far more than a ring's 16-bit owners can name).
///
/// Count every configured backend, not only the healthy ones: a ring that changed its size when a backend failed would
/// move nearly every flow.
pub fn ring_slots_for(backends: usize) -> u32 {
    let wanted = backends.saturating_mul(SLOTS_PER_BACKEND as usize);
    CLASSES.into_iter().find(|&slots| slots as usize >= wanted).unwrap_or(LARGEST_DEFAULT_RING)
}

/// Whether `n` is prime, by trial division: at most 22,000 divisions, and exact.
pub const fn is_prime(n: u32) -> bool {
    if n < 4 {
        return n >= 2;
    }
    if n.is_multiple_of(2) || n.is_multiple_of(3) {
        return false;
    }
    // All other primes are one below or one above a multiple of six.
    let mut divisor = 5_u32;
    while (divisor as u64) * (divisor as u64) <= n as u64 {
        if n.is_multiple_of(divisor) || n.is_multiple_of(divisor + 2) {
            return false;
        }
        divisor += 6;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_agree_with_a_sieve() {
        let mut composite = vec![false; 20_000];
        for i in 2..composite.len() {
            assert_eq!(is_prime(i as u32), !composite[i], "{i}");
            for multiple in (i * i..composite.len()).step_by(i) {
                composite[multiple] = true;
            }
        }
        assert!(!is_prime(0) && !is_prime(1));
        assert!(is_prime(65_537) && is_prime(2_147_483_647) && is_prime(4_294_967_291));
        assert!(!is_prime(u32::MAX) && !is_prime(65_521 * 65_519));
    }

    #[test]
    fn classes_are_the_largest_primes_below_powers_of_two() {
        for (i, &slots) in CLASSES.iter().enumerate() {
            let power = 1_u32 << (10 + i);
            assert!((slots + 1..power).all(|n| !is_prime(n)), "{slots} below {power}");
        }
    }

    #[test]
    fn sizes_at_the_edges() {
        for (backends, slots) in [
            (0, 1_021),
            (1, 1_021),
            (10, 1_021),
            (11, 2_039),
            (20, 2_039),
            (21, 4_093),
            (100, 16_381),
            (1_000, 131_071),
            (10_000, 1_048_573),
            (65_536, 8_388_593),
            (167_772, 16_777_213),
            (167_773, 16_777_213),
            (usize::MAX, 16_777_213),
        ] {
            assert_eq!(ring_slots_for(backends), slots, "{backends} backends");
        }
    }
}
