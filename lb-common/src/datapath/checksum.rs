//! The Internet checksum, RFC 1071: ones-complement sums of 16-bit words.

/// Adds a 16-bit word, in host order of its network value, to a running sum.
#[inline(always)]
pub const fn add(sum: u32, word: u16) -> u32 {
    sum + word as u32
}

/// Adds a 32-bit word as two 16-bit ones.
#[inline(always)]
pub const fn add32(sum: u32, word: u32) -> u32 {
    sum + (word >> 16) + (word & 0xffff)
}

/// Folds a sum of fewer than 2¹⁶ words to 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}
