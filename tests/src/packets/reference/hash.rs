//! The flow hash as `docs/flow-hash.md` defines it, in 128-bit arithmetic, `SipHash` included.

use std::net::IpAddr;

/// A flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol number.
    pub protocol: u8,
}

const TWO_32: u128 = 1 << 32;
const TWO_64: u128 = 1 << 64;

/// The hash of a flow under a key.
pub fn flow_hash(key: &[u8; 16], flow: &Flow) -> u64 {
    let expanded: Vec<u128> = (0..6).map(|i| u128::from(siphash(key, &[i]))).collect();
    let k: Vec<u128> = expanded[..5].iter().flat_map(|word| [word % TWO_32, word / TWO_32]).collect();
    let ports = u128::from(flow.source_port) * 65_536 + u128::from(flow.destination_port);
    let version = if flow.destination.is_ipv6() { 6 } else { 4 };
    let tag = version * 256 + u128::from(flow.protocol);
    let (source, destination) = (words(flow.source), words(flow.destination));
    let message = if version == 4 {
        vec![source[0], ports, destination[0], tag]
    } else {
        let addresses = source.iter().zip(&destination).flat_map(|(s, d)| [*s, *d]);
        addresses.chain([ports, tag]).collect()
    };
    let products = message.chunks(2).zip(k.chunks(2)).map(|(w, k)| {
        let (one, other) = ((w[0] + k[0]) % TWO_32, (w[1] + k[1]) % TWO_32);
        one * other
    });
    let mut h = (products.sum::<u128>() % TWO_64) ^ expanded[5];
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        h = ((h ^ (h >> 33)) * factor) % TWO_64;
    }
    (h ^ (h >> 33)) as u64
}

/// The slot of a hash in a ring.
pub const fn slot(hash: u64, slots: usize) -> usize {
    (((hash >> 32) as u128 * slots as u128) / TWO_32) as usize
}

fn words(address: IpAddr) -> Vec<u128> {
    let bytes = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    bytes.chunks(4).map(|word| word.iter().fold(0, |n, &byte| n * 256 + u128::from(byte))).collect()
}

/// SipHash-2-4 (Aumasson and Bernstein, INDOCRYPT 2012, section 2), of less than 8 bytes.
fn siphash(key: &[u8; 16], message: &[u8]) -> u64 {
    let little = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
    let (k0, k1) = (little(&key[..8]), little(&key[8..]));
    let mut v = [
        k0 ^ little(b"uespemos"),
        k1 ^ little(b"modnarod"),
        k0 ^ little(b"arenegyl"),
        k1 ^ little(b"setybdet"),
    ];
    let last = little(message) | (message.len() as u64) << 56;
    v[3] ^= last;
    round(&mut v);
    round(&mut v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

const fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the reference implementation's `vectors.h`: key 00…0f, messages of 0 and 1 bytes 00.
    #[test]
    fn siphash_has_its_published_values() {
        let key = std::array::from_fn(|i| i as u8);
        assert_eq!(siphash(&key, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash(&key, &[0]), 0x74f8_39c5_93dc_67fd);
    }
}
