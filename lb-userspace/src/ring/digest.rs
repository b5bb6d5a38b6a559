//! A short fingerprint of a ring, to compare nodes by. It must never depend on local backend indices, which differ from
//! node to node, nor on backends that own no slot.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

use super::{Candidate, RingError};

/// Key of the digest: the bytes `wattline/digest1`.
pub const DIGEST_KEY: [u8; 16] = *b"wattline/digest1";

/// Slots that are turned into bytes at a time.
const CHUNK: usize = 4096;

/// A stable 64-bit digest of a ring over the *names* of its owners: equal on two nodes when each slot has an owner of
/// the same name, whatever indices the nodes use. `candidates` tell which index bears which name; those that own no slot
/// and all weights are ignored.
///
/// It is SipHash-2-4 under [`DIGEST_KEY`] of: the number of slots (u32), the number of distinct owners (u32), for each
/// owner in bytewise order of names its length (u32) and bytes, then for each slot the position of its owner in that
/// list (u16); integers are little-endian. Not meant to resist forgery.
pub fn digest(candidates: &[Candidate<'_>], owners: &[u16]) -> Result<u64, RingError> {
    let mut named: Vec<Option<&str>> = vec![None; 1 << 16];
    for candidate in candidates {
        if named[usize::from(candidate.index)].replace(candidate.name).is_some() {
            return Err(RingError::DuplicateIndex { index: candidate.index });
        }
    }
    let mut owns = vec![false; 1 << 16];
    for (slot, &owner) in owners.iter().enumerate() {
        if named[usize::from(owner)].is_none() {
            return Err(RingError::UnknownOwner { slot, index: owner });
        }
        owns[usize::from(owner)] = true;
    }

    let mut present: Vec<(&str, u16)> = (0..=u16::MAX)
        .filter(|&index| owns[usize::from(index)])
        .filter_map(|index| named[usize::from(index)].map(|name| (name, index)))
        .collect();
    present.sort_unstable();
    let mut positions = vec![0_u16; 1 << 16];
    for (position, &(_, index)) in (0..=u16::MAX).zip(&present) {
        positions[usize::from(index)] = position;
    }

    let mut hasher = SipHasher24::new_with_key(&DIGEST_KEY);
    hasher.write(&(owners.len() as u32).to_le_bytes());
    hasher.write(&(present.len() as u32).to_le_bytes());
    for (name, _) in &present {
        hasher.write(&(name.len() as u32).to_le_bytes());
        hasher.write(name.as_bytes());
    }
    let mut bytes = Vec::with_capacity(2 * CHUNK);
    for chunk in owners.chunks(CHUNK) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|&owner| positions[usize::from(owner)].to_le_bytes()));
        hasher.write(&bytes);
    }
    Ok(hasher.finish())
}
