//! Bytes that look random but follow from a seed, so that both ends can tell a right answer from a wrong one.
//!
//! Must stay a pure function: servers and clients agree on nothing else.

use std::fmt;

/// `len` bytes of the sequence of `seed` (splitmix64, little endian).
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Where an answer differs from what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// First differing byte, or where the shorter one ends.
    pub at: usize,
    /// Length of what came.
    pub got: usize,
    /// Length of what was expected.
    pub expected: usize,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, got, expected } = self;
        write!(f, "payload is wrong from byte {at} ({got} bytes came, {expected} expected)")
    }
}

impl std::error::Error for Mismatch {}

/// Compares an answer with what was expected.
pub fn verify(got: &[u8], expected: &[u8]) -> Result<(), Mismatch> {
    if got == expected {
        return Ok(());
    }
    let at = got.iter().zip(expected).take_while(|(one, other)| one == other).count();
    Err(Mismatch { at, got: got.len(), expected: expected.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_one_sequence() {
        assert_eq!(bytes(7, 100), bytes(7, 200)[..100]);
        assert_ne!(bytes(7, 100), bytes(8, 100));
        // The published first output of splitmix64 for seed 0.
        assert_eq!(bytes(0, 8), 0xe220_a839_7b1d_cdaf_u64.to_le_bytes());
    }

    #[test]
    fn a_difference_is_located() {
        assert_eq!(verify(b"abc", b"abc"), Ok(()));
        assert_eq!(verify(b"abx", b"abc"), Err(Mismatch { at: 2, got: 3, expected: 3 }));
        assert_eq!(verify(b"ab", b"abc"), Err(Mismatch { at: 2, got: 2, expected: 3 }));
    }
}
