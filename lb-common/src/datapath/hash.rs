//! The keyed flow hash: which slot a flow falls into.
//!
//! It is ABI between nodes: all that share a key must agree, so `docs/flow-hash.md` publishes its test vectors.
//!
//! The heart is NH, the universal hash of UMAC (RFC 4418 section 5.2; Black, Halevi, Krawczyk, Krovetz, Rogaway,
//! "UMAC: Fast and Secure Message Authentication", CRYPTO 1999): `Σ (w[2i] + k[2i]) · (w[2i+1] + k[2i+1])` over 32-bit
//! words, sums modulo 2³², products and total modulo 2⁶⁴. For two different flows the chance over the key that they
//! collide is at most 2⁻³², whoever chose the flows: without the key nobody can aim at a slot, which the usual
//! multiply-and-shift mixers do not promise (they have collisions that hold under every seed). The products do not
//! wait for each other, so it is also quick. A bijective finaliser (Murmur3's `fmix64`, keyed) then spreads NH's
//! uneven bits over the word.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::{AddressBytes, Family};

/// The expanded key: 48 bytes. User space expands it from the 128 bits that people configure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowKey {
    /// Key words of NH.
    pub words: [u32; 10],
    /// Key of the finaliser.
    pub finish: u64,
}

impl FlowKey {
    /// Lays six 64-bit words out as a key: the first five give two NH words each, low half first; the sixth the
    /// finaliser's.
    pub const fn from_words(w: [u64; 6]) -> Self {
        let mut words = [0; 10];
        let mut i = 0;
        while i < 5 {
            words[2 * i] = w[i] as u32;
            words[2 * i + 1] = (w[i] >> 32) as u32;
            i += 1;
        }
        Self { words, finish: w[5] }
    }
}

/// A flow: what its packets have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Version of IP.
    pub family: Family,
    /// IP protocol number.
    pub protocol: u8,
    /// Source address.
    pub source: AddressBytes,
    /// Destination address: the service's.
    pub destination: AddressBytes,
    /// Source port, host order.
    pub source_port: u16,
    /// Destination port, host order.
    pub destination_port: u16,
}

/// The hash of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHash(pub u64);

#[inline(always)]
const fn word(bytes: &AddressBytes, at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
const fn nh(key: &FlowKey, pair: usize, a: u32, b: u32) -> u64 {
    (a.wrapping_add(key.words[2 * pair]) as u64).wrapping_mul(b.wrapping_add(key.words[2 * pair + 1]) as u64)
}

impl Flow {
    /// The flow's hash under `key`.
    ///
    /// Words: IPv4 `(source, ports), (destination, tag)`; IPv6 `(source[i], destination[i])` for the four words of the
    /// addresses, then `(ports, tag)`; `ports` is source port · 2¹⁶ + destination port, `tag` is IP version · 2⁸ +
    /// protocol, addresses are read in network order.
    #[inline(always)]
    pub fn hash(&self, key: &FlowKey) -> FlowHash {
        let ports = u32::from(self.source_port) << 16 | u32::from(self.destination_port);
        let tag = (self.family as u32) << 8 | u32::from(self.protocol);
        let sum = match self.family {
            Family::V4 => nh(key, 0, word(&self.source, 0), ports).wrapping_add(nh(
                key,
                1,
                word(&self.destination, 0),
                tag,
            )),
            Family::V6 => nh(key, 0, word(&self.source, 0), word(&self.destination, 0))
                .wrapping_add(nh(key, 1, word(&self.source, 4), word(&self.destination, 4)))
                .wrapping_add(nh(key, 2, word(&self.source, 8), word(&self.destination, 8)))
                .wrapping_add(nh(key, 3, word(&self.source, 12), word(&self.destination, 12)))
                .wrapping_add(nh(key, 4, ports, tag)),
        };
        FlowHash(finish(sum ^ key.finish))
    }
}

#[inline(always)]
const fn finish(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

impl FlowHash {
    /// The slot among `slots`: the upper half scaled by multiply and shift, so no division is on the path.
    #[inline(always)]
    pub const fn slot(self, slots: u32) -> u32 {
        (((self.0 >> 32) * slots as u64) >> 32) as u32
    }

    /// 32 bits that are independent of the slot, for the outer header to carry.
    #[inline(always)]
    pub const fn entropy(self) -> u32 {
        self.0 as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::v4_bytes;

    fn key() -> FlowKey {
        FlowKey::from_words([
            0x0123_4567_89ab_cdef,
            0x1122_3344_5566_7788,
            0x99aa_bbcc_ddee_ff00,
            0xdead_beef_cafe_f00d,
            0x0f1e_2d3c_4b5a_6978,
            0x8796_a5b4_c3d2_e1f0,
        ])
    }

    fn v4(source: [u8; 4], source_port: u16) -> Flow {
        Flow {
            family: Family::V4,
            protocol: 6,
            source: v4_bytes(source),
            destination: v4_bytes([192, 0, 2, 10]),
            source_port,
            destination_port: 80,
        }
    }

    /// The definition, written a second time with 128-bit arithmetic and no sharing of helpers.
    fn plain(flow: &Flow, key: &FlowKey) -> u64 {
        let k: Vec<u128> = key.words.iter().map(|&w| u128::from(w)).collect();
        let be = |b: &[u8]| b.iter().fold(0u128, |n, &byte| n * 256 + u128::from(byte));
        let ports = u128::from(flow.source_port) * 65_536 + u128::from(flow.destination_port);
        let tag = u128::from(flow.family as u8) * 256 + u128::from(flow.protocol);
        let mut message = Vec::new();
        if flow.family == Family::V4 {
            message.extend([be(&flow.source[..4]), ports, be(&flow.destination[..4]), tag]);
        } else {
            for i in 0..4 {
                message.extend([be(&flow.source[4 * i..4 * i + 4]), be(&flow.destination[4 * i..4 * i + 4])]);
            }
            message.extend([ports, tag]);
        }
        let two32 = 1u128 << 32;
        let two64 = 1u128 << 64;
        let mut total = 0u128;
        for (i, pair) in message.chunks(2).enumerate() {
            total = (total + ((pair[0] + k[2 * i]) % two32) * ((pair[1] + k[2 * i + 1]) % two32)) % two64;
        }
        let mut h = total ^ u128::from(key.finish);
        for factor in [0xff51_afd7_ed55_8ccd_u128, 0xc4ce_b9fe_1a85_ec53] {
            h = ((h ^ (h >> 33)) * factor) % two64;
        }
        (h ^ (h >> 33)) as u64
    }

    #[test]
    fn agrees_with_the_plain_definition() {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 16
        };
        for i in 0..2000 {
            let mut bytes = || core::array::from_fn(|_| next() as u8);
            let (source, destination): (AddressBytes, AddressBytes) = (bytes(), bytes());
            let family = if i % 2 == 0 { Family::V4 } else { Family::V6 };
            let flow = Flow {
                family,
                protocol: if i % 3 == 0 { 17 } else { 6 },
                source,
                destination,
                source_port: next() as u16,
                destination_port: next() as u16,
            };
            assert_eq!(flow.hash(&key()).0, plain(&flow, &key()), "{flow:?}");
        }
    }

    #[test]
    fn spreads_neighbouring_flows_evenly() {
        const SLOTS: usize = 1021;
        let mut hits = [0u32; SLOTS];
        for port in 0..=u16::MAX {
            hits[v4([10, 0, 0, 1], port).hash(&key()).slot(SLOTS as u32) as usize] += 1;
        }
        // 65,536 flows over 1,021 slots: 64.2 each. For a uniform hash chi-squared has mean 1,020 and standard
        // deviation 45; 1,300 is more than six away.
        let mean = 65_536.0 / SLOTS as f64;
        let chi: f64 = hits.iter().map(|&n| (f64::from(n) - mean).powi(2) / mean).sum();
        assert!(chi < 1300.0, "chi squared {chi}");
    }

    #[test]
    fn slot_is_always_below_the_count() {
        for slots in [1, 2, 1021, 16_777_213, u32::MAX] {
            assert_eq!(FlowHash(u64::MAX).slot(slots), slots - 1);
            assert_eq!(FlowHash(0).slot(slots), 0);
        }
    }
}
