//! The packet path: parse, find the service, select the backend, encapsulate, account.
//!
//! Generic over [`packet::Packet`] and [`tables::Tables`], so that the kernel and the host run the same decisions. A
//! packet moves exactly one counter: its backend's when it is forwarded, otherwise that of the one
//! [`crate::reason::Reason`] why it was not (and, where a service dropped it, the service's own besides).

pub mod checksum;
pub mod encap;
pub mod hash;
pub mod packet;
pub mod parse;
pub mod select;
pub mod tables;

use self::{
    packet::Packet,
    select::Found,
    tables::{Egress, Tables},
};
use crate::reason::{Fate, Reason};

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it back out of the interface it came in by.
    Transmit,
    /// Send it out of the interface that the tables prepared.
    Redirect,
    /// Leave it to the kernel.
    Pass,
    /// End it.
    Drop,
}

impl From<Fate> for Verdict {
    #[inline(always)]
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Pass => Self::Pass,
            Fate::Drop => Self::Drop,
        }
    }
}

/// The whole way of a packet through the balancer.
#[inline(always)]
pub fn forward<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    match decide(packet, tables) {
        Ok(Egress::Transmit) => Verdict::Transmit,
        Ok(Egress::Redirect) => Verdict::Redirect,
        Err(reason) => {
            tables.count_reason(reason);
            reason.fate().into()
        }
    }
}

#[inline(always)]
fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Result<Egress, Reason> {
    let node = tables.node().ok_or(Reason::NotConfigured)?;
    let bytes = packet.len();
    let parsed = parse::parse(packet)?;
    let found = select::service(tables, &parsed.flow).ok_or(Reason::NotAService)?;
    send(packet, tables, node, &parsed, &found, bytes).inspect_err(|reason| {
        tables.count(found.service.counter.wrapping_add(1), bytes);
        if matches!(reason, Reason::BadState) {
            tables.report_bad_state(&found.key, &found.service);
        }
    })
}

/// Sends a packet that belongs to a service. From here on a failure is the service's, and never passes the packet up.
#[inline(always)]
fn send<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    node: &crate::node::Node,
    parsed: &parse::Parsed,
    found: &Found,
    bytes: usize,
) -> Result<Egress, Reason> {
    let service = &found.service;
    if service.ring_slots == 0 {
        return Err(Reason::NoBackend);
    }
    let hash = parsed.flow.hash(&node.flow_key);
    let (_, slot) = select::slot(tables, service, hash).ok_or(Reason::BadState)?;
    let backend = select::backend(tables, service, select::owner(slot)).ok_or(Reason::BadState)?;
    if !backend.resolved() {
        return Err(Reason::NoNextHop);
    }
    encap::encapsulate(packet, parsed, hash, node, backend)?;
    let egress = tables.egress(backend.ifindex).ok_or(Reason::NoDevice)?;
    tables.count(backend.counter, bytes);
    Ok(egress)
}
