//! Quotas to a ring: who owns which slot. Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network
//! Load Balancer", NSDI 2016, section 3.4) with weights. Every constant and every order here is ABI between nodes: a
//! change must never go out unless all nodes change together, since two versions would send one flow to two backends.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

/// Key of the hash that chooses where a backend's permutation starts: the bytes `wattline/offset1`.
pub const OFFSET_KEY: [u8; 16] = *b"wattline/offset1";

/// Key of the hash that chooses the stride of a backend's permutation: the bytes `wattline/stride1`.
pub const SKIP_KEY: [u8; 16] = *b"wattline/stride1";

/// Turns that are put in order at a time, at least. Bounds the working memory; the ring does not depend on it.
const WINDOW_TURNS: usize = 1 << 16;

/// A backend that takes part: weight and quota above 0. Lists of them are in canonical order, by name.
pub(super) struct Member<'a> {
    pub(super) name: &'a str,
    pub(super) weight: u32,
    pub(super) quota: u32,
}

/// The ring: for each slot, the position of its owner in `members`. The quotas sum to `slots`, a prime; there are at
/// most 65,536 members.
///
/// The `k`-th turn of a backend (from 1) comes in round `⌈k·w_max/w⌉`, turns of one round in canonical order. At its
/// turn a backend takes the next slot of its own permutation that is still free. Equal weights make this the paper's
/// round robin. A backend stops at its quota.
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

/// The turns that a backend has still to make.
struct Turns {
    /// Position in canonical order.
    member: u16,
    weight: u64,
    made: u64,
    quota: u64,
}

impl Turns {
    /// The round of the next turn. Grows by at least one from turn to turn, since no weight is above `heaviest`.
    fn next_round(&self, heaviest: u64) -> u64 {
        ((self.made + 1) * heaviest).div_ceil(self.weight)
    }
}

/// Calls `turn` with the member whose turn it is, for all turns in their order.
///
/// Sorts the turns by round, one window of rounds at a time: a counting sort in linear time, which leaves turns of the
/// same round in canonical order because that is the order they are put in.
fn for_each_turn(members: &[Member<'_>], mut turn: impl FnMut(u16)) {
    let mut waiting: Vec<Turns> = (0..=u16::MAX)
        .zip(members)
        .map(|(member, &Member { weight, quota, .. })| Turns {
            member,
            weight: u64::from(weight),
            made: 0,
            quota: u64::from(quota),
        })
        .collect();
    let heaviest = waiting.iter().map(|turns| turns.weight).max().unwrap_or(0);
    let window_turns = WINDOW_TURNS.max(members.len()) as u64;

    let mut due: Vec<(u32, u16)> = Vec::new();
    let mut starts: Vec<u32> = Vec::new();
    let mut sorted: Vec<u16> = Vec::new();
    while let Some(first) = waiting.iter().map(|turns| turns.next_round(heaviest)).min() {
        // A round has on average `weight / heaviest` turns of those still waiting.
        let weight: u64 = waiting.iter().map(|turns| turns.weight).sum();
        let rounds = (window_turns * heaviest).div_ceil(weight).min(window_turns);

        due.clear();
        starts.clear();
        starts.resize(rounds as usize + 1, 0);
        for turns in &mut waiting {
            while turns.made < turns.quota {
                let round = turns.next_round(heaviest) - first;
                if round >= rounds {
                    break;
                }
                due.push((round as u32, turns.member));
                starts[round as usize + 1] += 1;
                turns.made += 1;
            }
        }
        waiting.retain(|turns| turns.made < turns.quota);

        for round in 1..starts.len() {
            starts[round] += starts[round - 1];
        }
        sorted.clear();
        sorted.resize(due.len(), 0);
        for &(round, member) in &due {
            let place = &mut starts[round as usize];
            sorted[*place as usize] = member;
            *place += 1;
        }
        sorted.iter().copied().for_each(&mut turn);
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
            let heaviest = u64::from(*weights.iter().max().unwrap());
            // One turn above their share for all, so that the last rounds hold only light ones, far apart.
            let members: Vec<Member<'_>> =
                weights.iter().map(|&weight| Member { name: "", weight, quota: weight + 1 }).collect();
            let mut expected = Vec::new();
            for (i, member) in members.iter().enumerate() {
                for k in 1..=u64::from(member.quota) {
                    expected.push(((k * heaviest).div_ceil(u64::from(member.weight)), i as u16));
                }
            }
            expected.sort_unstable();
            assert!(expected.len() > WINDOW_TURNS, "one window would be no test");
            let mut turns = Vec::new();
            for_each_turn(&members, |member| turns.push(member));
            assert!(turns.iter().eq(expected.iter().map(|(_, member)| member)), "{weights:?}");
        }
    }
}
