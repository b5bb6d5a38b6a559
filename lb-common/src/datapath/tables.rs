//! The maps as the path sees them.

use crate::{
    backend::Backend,
    node::Node,
    reason::Reason,
    ring::Slot,
    service::{Service, ServiceKey},
};

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Back out of the interface it came in by.
    Transmit,
    /// Out of another one.
    Redirect,
}

/// What the packet path reads, and the counters it moves. Implemented over BPF maps in `lb-ebpf` and over plain memory in
/// the `host` module.
pub trait Tables {
    /// What every packet of this node needs; `None` before the agent filled it in.
    fn node(&self) -> Option<&Node>;

    /// The service under exactly this key.
    fn service(&self, key: &ServiceKey) -> Option<Service>;

    /// The slot at an absolute index of the ring array.
    fn slot(&self, index: u32) -> Option<Slot>;

    /// The backend at an absolute index of the backend array.
    fn backend(&self, index: u32) -> Option<&Backend>;

    /// Prepares sending on an interface; `None` where that is not possible. Called at most once a packet, last.
    fn egress(&self, ifindex: u32) -> Option<Egress>;

    /// Counts a packet of `bytes` under a counter of a backend or service.
    fn count(&self, counter: u32, bytes: usize);

    /// Counts a packet that was not forwarded.
    fn count_reason(&self, reason: Reason);

    /// Told where the maps contradict each other, so that somebody can look; rare by design.
    fn report_bad_state(&self, key: &ServiceKey, service: &Service);
}
