//! Rings: which backend owns which slot of a service. Weighted Maglev hashing, defined exactly in `docs/maglev.md`.
//!
//! A ring is canonical. It depends on its number of slots and on the set of (name, weight) of its backends, and on
//! nothing else: not on their order, not on the rings before, not on the node. So nodes with one configuration agree on
//! every slot without talking. Nothing in here may do I/O, read a clock, draw a random number or use floating point.

mod apportion;
mod digest;
mod maglev;
mod prime;

use std::collections::HashSet;
use std::fmt;

pub use digest::{DIGEST_KEY, digest};
use maglev::Member;
pub use maglev::{OFFSET_KEY, SKIP_KEY};
pub use prime::{LARGEST_DEFAULT_RING, SLOTS_PER_BACKEND, is_prime, ring_slots_for};

/// The largest weight a backend may have.
pub const MAX_WEIGHT: u32 = 65_535;

/// A backend as a ring sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Unique among the candidates. Decides, alone, which slots the backend prefers: renaming moves flows.
    pub name: &'a str,
    /// This node's index of the backend, unique among the candidates: a label written into slots, without influence on
    /// the ring.
    pub index: u16,
    /// Share in proportion to the sum of all, 0 to [`MAX_WEIGHT`]; 0 owns no slot.
    pub weight: u32,
}

/// Why there is no ring, or no digest of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingError {
    /// Two candidates bear one name.
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Two candidates have one index.
    DuplicateIndex {
        /// The index.
        index: u16,
    },
    /// A weight above [`MAX_WEIGHT`].
    WeightTooLarge {
        /// The candidate's name.
        name: String,
        /// Its weight.
        weight: u32,
    },
    /// A ring size that is not prime: permutations would not reach all slots.
    SlotsNotPrime {
        /// The ring size.
        slots: u32,
    },
    /// More backends with a weight above 0 than slots: some would own none.
    TooFewSlots {
        /// The ring size.
        slots: u32,
        /// Backends with a weight above 0.
        backends: usize,
    },
    /// A slot names an index that no candidate has.
    UnknownOwner {
        /// The slot.
        slot: usize,
        /// The index in it.
        index: u16,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateName { name } => write!(f, "two backends are named {name:?}"),
            Self::DuplicateIndex { index } => write!(f, "two backends have the index {index}"),
            Self::WeightTooLarge { name, weight } => {
                write!(f, "the weight {weight} of backend {name:?} is above {MAX_WEIGHT}")
            }
            Self::SlotsNotPrime { slots } => write!(f, "a ring of {slots} slots: the number must be prime"),
            Self::TooFewSlots { slots, backends } => {
                write!(f, "a ring of {slots} slots is too small for {backends} backends")
            }
            Self::UnknownOwner { slot, index } => {
                write!(f, "slot {slot} names the unknown backend index {index}")
            }
        }
    }
}

impl std::error::Error for RingError {}

/// Builds a ring: the owner's index for each of `slots` slots, a prime. Empty where no candidate has a weight above 0.
///
/// Every weight above 0 owns at least one slot, and where there are at least [`SLOTS_PER_BACKEND`] slots for each of
/// them, a number within the larger of one slot and 1 % of its weight's exact share.
pub fn build(candidates: &[Candidate<'_>], slots: u32) -> Result<Vec<u16>, RingError> {
    let canonical = canonical_order(candidates)?;
    if !is_prime(slots) {
        return Err(RingError::SlotsNotPrime { slots });
    }
    if canonical.len() > slots as usize {
        return Err(RingError::TooFewSlots { slots, backends: canonical.len() });
    }
    if canonical.is_empty() {
        return Ok(Vec::new());
    }

    let weights: Vec<u32> = canonical.iter().map(|candidate| candidate.weight).collect();
    let members: Vec<Member<'_>> = canonical
        .iter()
        .zip(apportion::apportion(&weights, slots))
        .map(|(candidate, quota)| Member { name: candidate.name, weight: candidate.weight, quota })
        .collect();
    let mut owners = maglev::populate(&members, slots);
    for owner in &mut owners {
        *owner = canonical[usize::from(*owner)].index;
    }
    Ok(owners)
}

/// The candidates with a weight above 0, in bytewise order of their names, after checking all of them. At most 65,536,
/// since indices are unique.
fn canonical_order<'a>(candidates: &[Candidate<'a>]) -> Result<Vec<Candidate<'a>>, RingError> {
    let mut indices = HashSet::with_capacity(candidates.len());
    for &Candidate { name, index, weight } in candidates {
        if weight > MAX_WEIGHT {
            return Err(RingError::WeightTooLarge { name: name.to_owned(), weight });
        }
        if !indices.insert(index) {
            return Err(RingError::DuplicateIndex { index });
        }
    }
    let mut canonical = candidates.to_vec();
    canonical.sort_unstable_by_key(|candidate| candidate.name);
    if let Some(pair) = canonical.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(RingError::DuplicateName { name: pair[0].name.to_owned() });
    }
    canonical.retain(|candidate| candidate.weight > 0);
    Ok(canonical)
}
