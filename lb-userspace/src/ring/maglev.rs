//! Quotas to a ring: who owns which slot. Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network
//! Load Balancer", NSDI 2016, section 3.4) with weights. Every constant and every order here is ABI between nodes: a
//! change must never go out unless all nodes change together, since two versions would send one flow to two backends.

use std::cmp::Ordering;
use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

/// Key of the hash that chooses where a backend's permutation starts: the bytes `wattline/offset1`.
pub const OFFSET_KEY: [u8; 16] = *b"wattline/offset1";

/// Key of the hash that chooses the stride of a backend's permutation: the bytes `wattline/stride1`.
pub const SKIP_KEY: [u8; 16] = *b"wattline/stride1";

/// Buckets of turns that are put in order at a time, at most. Bounds the working memory; the ring does not depend on it.
const WINDOW: usize = 1 << 16;

/// A backend that takes part: weight and quota above 0. Lists of them are in canonical order, by name.
pub(super) struct Member<'a> {
    pub(super) name: &'a str,
    pub(super) weight: u32,
    pub(super) quota: u32,
}

/// The ring: for each slot, the position of its owner in `members`. The quotas sum to `slots`, a prime; there are at
/// most 65,536 members.
///
/// The `k`-th turn of a backend (from 1, up to its quota) comes at the time `k/w`, an exact fraction; turns of one time
/// come in canonical order. At its turn a backend takes the next slot of its own permutation that is still free. Equal
/// weights make this the paper's round robin.
///
/// Time: about `slots · ln slots` looks at a bitmap. Memory: 17 bits for each slot, and a few megabytes.
pub(super) fn populate(members: &[Member<'_>], slots: u32) -> Vec<u16> {
    let mut walks: Vec<Walk> = members.iter().map(|member| Walk::new(member.name, slots)).collect();
    let mut taken = Occupancy::new(slots);
    let mut owners = vec![0_u16; slots as usize];
    for_each_turn(members, |member| {
        let slot = walks[usize::from(member)].next_free(&mut taken);
        owners[slot as usize] = member;
    });
    owners
}

/// The hash behind both halves of a permutation: SipHash-2-4 of the name's bytes.
fn name_hash(key: [u8; 16], name: &str) -> u64 {
    let mut hasher = SipHasher24::new_with_key(&key);
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// Where a backend stands in its permutation of all slots, which is `(offset + j·skip) mod slots` for `j` from 0: all
/// of them, since `slots` is prime and `skip` not a multiple of it.
struct Walk {
    next: u32,
    skip: u32,
    slots: u32,
}

impl Walk {
    fn new(name: &str, slots: u32) -> Self {
        let next = (name_hash(OFFSET_KEY, name) % u64::from(slots)) as u32;
        let skip = (name_hash(SKIP_KEY, name) % u64::from(slots - 1)) as u32 + 1;
        Self { next, skip, slots }
    }

    /// Takes the next free slot. There must be one; it lies ahead, since slots never become free again.
    fn next_free(&mut self, taken: &mut Occupancy) -> u32 {
        loop {
            let slot = self.step();
            if taken.take(slot) {
                return slot;
            }
        }
    }

    /// The next slot of the permutation, free or not.
    fn step(&mut self) -> u32 {
        let slot = self.next;
        // Adds modulo `slots` without leaving 32 bits.
        let before_wrap = self.slots - self.skip;
        self.next = if slot >= before_wrap { slot - before_wrap } else { slot + self.skip };
        slot
    }
}

/// Which slots are taken, a bit each: 2 MiB for the largest ring, so the random looks mostly stay in the cache.
struct Occupancy {
    words: Vec<u64>,
}

impl Occupancy {
    fn new(slots: u32) -> Self {
        Self { words: vec![0; (slots as usize).div_ceil(64)] }
    }

    /// Takes the slot; false where it was taken already.
    fn take(&mut self, slot: u32) -> bool {
        let word = &mut self.words[slot as usize / 64];
        let bit = 1_u64 << (slot % 64);
        let free = *word & bit == 0;
        *word |= bit;
        free
    }
}

/// The `k`-th turn of a backend, at the time `k/weight`.
#[derive(Clone, Copy, Default)]
struct Turn {
    k: u32,
    weight: u32,
    /// Position in canonical order.
    member: u16,
}

impl Turn {
    /// By time, exactly; turns of one time in canonical order.
    fn order(&self, other: &Self) -> Ordering {
        let mine = u64::from(self.k) * u64::from(other.weight);
        let its = u64::from(other.k) * u64::from(self.weight);
        mine.cmp(&its).then(self.member.cmp(&other.member))
    }

    /// The whole part of the time times the sum of all weights: grows with time, and has one turn on average.
    fn bucket(&self, sum_of_weights: u64) -> u64 {
        // Both factors are below 2^32.
        u64::from(self.k) * sum_of_weights / u64::from(self.weight)
    }
}

/// A backend's next turn and its last.
struct Turns {
    next: Turn,
    quota: u32,
}

/// Calls `turn` with the member whose turn it is, for all turns in their order.
///
/// Sorts the turns into buckets, one window of buckets at a time: a counting sort in linear time. Each bucket is then
/// put in exact order. That is cheap: a bucket is small unless many weights are alike, and equal weights are in order
/// already, since the turns are put in by member.
fn for_each_turn(members: &[Member<'_>], mut turn: impl FnMut(u16)) {
    let sum_of_weights: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let all_turns: u64 = members.iter().map(|member| u64::from(member.quota)).sum();
    let window = WINDOW.min(all_turns as usize);
    let mut waiting: Vec<Turns> = (0..=u16::MAX)
        .zip(members)
        .map(|(member, &Member { weight, quota, .. })| Turns { next: Turn { k: 1, weight, member }, quota })
        .collect();

    let mut due: Vec<(usize, Turn)> = Vec::new();
    let mut starts: Vec<usize> = Vec::new();
    let mut sorted: Vec<Turn> = Vec::new();
    while let Some(first) = waiting.iter().map(|turns| turns.next.bucket(sum_of_weights)).min() {
        due.clear();
        starts.clear();
        starts.resize(window + 1, 0);
        for Turns { next, quota } in &mut waiting {
            while next.k <= *quota {
                let bucket = (next.bucket(sum_of_weights) - first) as usize;
                if bucket >= window {
                    break;
                }
                due.push((bucket, *next));
                starts[bucket + 1] += 1;
                next.k += 1;
            }
        }
        waiting.retain(|turns| turns.next.k <= turns.quota);

        for bucket in 0..window {
            starts[bucket + 1] += starts[bucket];
        }
        sorted.clear();
        sorted.resize(due.len(), Turn::default());
        for &(bucket, next) in &due {
            sorted[starts[bucket]] = next;
            starts[bucket] += 1;
        }
        // Now each bucket's start has become its end.
        let mut start = 0;
        for &end in &starts[..window] {
            sorted[start..end].sort_by(Turn::order);
            start = end;
        }
        for next in &sorted {
            turn(next.member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_the_published_one() {
        // Appendix A of the SipHash paper: key 00..0f over the message 00..0e.
        let key: [u8; 16] = std::array::from_fn(|i| i as u8);
        let message: Vec<u8> = (0..15).collect();
        let message = std::str::from_utf8(&message).unwrap();
        assert_eq!(name_hash(key, message), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn a_walk_visits_every_slot_once() {
        for slots in [2, 3, 7, 251, 1_021] {
            let mut walk = Walk::new("web-1", slots);
            let mut taken = Occupancy::new(slots);
            assert!((0..slots).all(|_| taken.take(walk.step())), "{slots} slots: one came twice");
        }
    }

    #[test]
    fn a_walk_does_not_overflow() {
        let slots = 4_294_967_291;
        let mut walk = Walk { next: slots - 1, skip: slots - 2, slots };
        assert_eq!([walk.step(), walk.step(), walk.step()], [slots - 1, slots - 3, slots - 5]);
    }

    /// Several windows, weights far apart: the same order as sorting all turns at once.
    #[test]
    fn windows_do_not_show() {
        let cases = [
            &[60_000, 20_000, 40_000, 1][..],
            &[65_535, 1, 1, 40_000, 7],
            &[50_000; 4],
            &[65_000, 64_999, 1],
        ];
        for weights in cases {
            // One turn above their share for all, so that the last windows hold only light ones, far apart.
            let members: Vec<Member<'_>> =
                weights.iter().map(|&weight| Member { name: "", weight, quota: weight + 1 }).collect();
            let mut expected = Vec::new();
            for (i, member) in members.iter().enumerate() {
                for k in 1..=u64::from(member.quota) {
                    expected.push((k, u64::from(member.weight), i as u16));
                }
            }
            expected.sort_unstable_by(|&(k, w, i), &(l, v, j)| (k * v, i).cmp(&(l * w, j)));
            assert!(expected.len() > WINDOW, "one window would be no test");
            let mut turns = Vec::new();
            for_each_turn(&members, |member| turns.push(member));
            assert!(turns.iter().eq(expected.iter().map(|(_, _, member)| member)), "{weights:?}");
        }
    }
}
