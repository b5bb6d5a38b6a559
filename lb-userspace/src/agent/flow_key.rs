//! From the 128 bits that people configure to the words that the flow hash uses.

use std::hash::Hasher as _;

use lb_common::datapath::hash::FlowKey;
use siphasher::sip::SipHasher24;

/// Expands a key: word *i* of six is SipHash-2-4, under the configured key, of the byte *i*. ABI between nodes.
pub fn expand(key: &[u8; 16]) -> FlowKey {
    FlowKey::from_words(std::array::from_fn(|i| {
        let mut hasher = SipHasher24::new_with_key(key);
        hasher.write(&[i as u8]);
        hasher.finish()
    }))
}

/// A key nobody knows.
pub fn random() -> anyhow::Result<FlowKey> {
    let mut key = [0; 16];
    getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("drawing a flow-hash key: {error}"))?;
    Ok(expand(&key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{address, datapath::hash::Flow};
    use std::net::SocketAddr;

    fn flow(source: &str, destination: &str, protocol: u8) -> Flow {
        let (source, destination): (SocketAddr, SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        let (family, source_bytes) = address::to_bytes(source.ip());
        Flow {
            family,
            protocol,
            source: source_bytes,
            destination: address::to_bytes(destination.ip()).1,
            source_port: source.port(),
            destination_port: destination.port(),
        }
    }

    /// The vectors of `docs/flow-hash.md`, read from there: what is published is what is tested.
    #[test]
    fn published_vectors_hold() {
        let page = include_str!("../../../docs/flow-hash.md");
        let mut seen = 0;
        for line in page.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            let &[_, key, source, destination, protocol, hash, slot, _] = cells.as_slice() else {
                panic!("a vector has six cells: {line}")
            };
            let key = u128::from_str_radix(key, 16).unwrap().to_be_bytes();
            let protocol = if protocol == "tcp" { 6 } else { 17 };
            let found = flow(source, destination, protocol).hash(&expand(&key));
            assert_eq!(format!("{:016x}", found.0), hash, "{line}");
            assert_eq!(found.slot(65_537).to_string(), slot, "{line}");
            seen += 1;
        }
        assert!(seen >= 10, "{seen} vectors");
    }
}
