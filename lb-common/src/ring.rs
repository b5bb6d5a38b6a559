//! Slots of a service's ring.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One slot: 8 bytes, read and written by the kernel as one word's worth of fields.
///
/// A *settled* slot (no [`Slot::UNSETTLED`]) sends every packet to `current`. The other fields serve slots whose owner
/// changed a short while ago; they are in the layout from the start so that flow state can be added without a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Slot {
    /// The owner, as an index local to the service.
    pub current: u16,
    /// The last settled owner; equal to `current` in a settled slot.
    pub previous: u16,
    /// The epoch in which a packet last went elsewhere than to `current`.
    pub last_divergent: u16,
    /// [`Slot::UNSETTLED`] or 0.
    pub flags: u16,
}

impl Slot {
    /// Flag: the owner changed, and flows begun before the change may be alive.
    pub const UNSETTLED: u16 = 1;

    /// A settled slot of `owner`.
    pub const fn settled(owner: u16) -> Self {
        Self { current: owner, previous: owner, last_divergent: 0, flags: 0 }
    }
}
