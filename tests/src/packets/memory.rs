//! The packet path on the host, over tables in memory.

use lb_common::{
    datapath, decap,
    host::{Frame, HEADROOM, MemoryDecapTables, MemoryTables},
};

use super::Observed;

/// Sends a frame through the balancer. `room` is how many bytes may be put in front; `None`: the usual.
pub fn forward(tables: &MemoryTables, bytes: &[u8], room: Option<usize>) -> Observed {
    tables.counters.borrow_mut().clear();
    tables.reasons.borrow_mut().clear();
    let mut frame = Frame::with_headroom(bytes, room.unwrap_or(HEADROOM));
    let verdict = datapath::forward(&mut frame, tables);
    Observed {
        verdict,
        frame: frame.bytes().to_vec(),
        counters: tables.counters.take(),
        reasons: tables.reasons.take(),
    }
}

/// Sends a frame through the decapsulation.
pub fn decapsulate(tables: &MemoryDecapTables, bytes: &[u8]) -> Observed {
    tables.outcomes.borrow_mut().clear();
    let mut frame = Frame::new(bytes);
    let verdict = decap::decapsulate(&mut frame, tables);
    Observed {
        verdict,
        frame: frame.bytes().to_vec(),
        counters: std::collections::BTreeMap::new(),
        reasons: tables.outcomes.take(),
    }
}
