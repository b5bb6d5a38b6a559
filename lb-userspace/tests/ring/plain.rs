//! Plain, slow rings, written separately from the rules in `docs/maglev.md` and from the paper's pseudo-code. They must
//! never share code with the crate, apart from the published keys and the hash's implementation.

use std::hash::Hasher as _;

use lb_userspace::ring::{OFFSET_KEY, SKIP_KEY};
use siphasher::sip::SipHasher24;

fn hash(key: [u8; 16], name: &str) -> usize {
    let mut hasher = SipHasher24::new_with_key(&key);
    hasher.write(name.as_bytes());
    usize::try_from(hasher.finish()).unwrap()
}

/// The dense permutation table of section 3.4: `permutation[i][j] = (offset + j * skip) mod M`.
fn permutations(names: &[&str], m: usize) -> Vec<Vec<usize>> {
    let mut permutation = Vec::new();
    for name in names {
        let offset = hash(OFFSET_KEY, name) % m;
        let skip = hash(SKIP_KEY, name) % (m - 1) + 1;
        permutation.push((0..m).map(|j| (offset + j * skip) % m).collect());
    }
    permutation
}

/// "Pseudocode 1: Populate Maglev hashing lookup table", line by line. `names` in canonical order.
pub(crate) fn paper(names: &[&str], m: usize) -> Vec<usize> {
    let permutation = permutations(names, m);
    let mut next = vec![0; names.len()];
    let mut entry: Vec<i64> = vec![-1; m];
    let mut n = 0;
    loop {
        for i in 0..names.len() {
            let mut c = permutation[i][next[i]];
            while entry[c] >= 0 {
                next[i] += 1;
                c = permutation[i][next[i]];
            }
            entry[c] = i64::try_from(i).unwrap();
            next[i] += 1;
            n += 1;
            if n == m {
                return entry.into_iter().map(|i| usize::try_from(i).unwrap()).collect();
            }
        }
    }
}

/// The slots each backend gets: the rules of `docs/maglev.md` with a linear search in place of the heap. `weights` in
/// canonical order, none of them 0, and small enough for 128 bits.
pub(crate) fn quotas(weights: &[u32], m: usize) -> Vec<usize> {
    let m = m as u128;
    let weight = |i: usize| u128::from(weights[i]);
    let sum: u128 = (0..weights.len()).map(weight).sum();
    let mut quotas: Vec<u128> = (0..weights.len()).map(|i| weight(i) * m / sum).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| (sum - weight(i) * m % sum, i));
    for &i in &order[..usize::try_from(m - quotas.iter().sum::<u128>()).unwrap()] {
        quotas[i] += 1;
    }
    // Deviation over tolerance after giving one slot, as (numerator, denominator), both scaled by 100 × sum.
    let cost = |i: usize, quota: u128| {
        ((weight(i) * m).abs_diff((quota - 1) * sum) * 100, (weight(i) * m).max(100 * sum))
    };
    for poor in 0..weights.len() {
        if quotas[poor] > 0 {
            continue;
        }
        let mut best: Option<usize> = None;
        for i in (0..weights.len()).filter(|&i| quotas[i] > 1) {
            let (mine, of_mine) = cost(i, quotas[i]);
            if best.is_none_or(|best| {
                let (its, of_its) = cost(best, quotas[best]);
                mine * of_its < its * of_mine
            }) {
                best = Some(i);
            }
        }
        quotas[best.unwrap()] -= 1;
        quotas[poor] = 1;
    }
    quotas.into_iter().map(|quota| usize::try_from(quota).unwrap()).collect()
}

/// The weighted ring: all turns written down and sorted by `k/w`, then by name, each taken from the dense table.
pub(crate) fn weighted(names: &[&str], weights: &[u32], m: usize) -> Vec<usize> {
    let mut turns = Vec::new();
    for (i, quota) in quotas(weights, m).into_iter().enumerate() {
        for k in 1..=quota as u64 {
            turns.push((k, u64::from(weights[i]), i));
        }
    }
    turns.sort_unstable_by(|&(k, w, i), &(l, v, j)| (k * v, i).cmp(&(l * w, j)));
    let permutation = permutations(names, m);
    let mut entry = vec![None; m];
    for (_, _, i) in turns {
        let slot = *permutation[i].iter().find(|&&slot| entry[slot].is_none()).unwrap();
        entry[slot] = Some(i);
    }
    entry.into_iter().map(Option::unwrap).collect()
}
