//! From what is wanted and what is known to what the maps should hold. Pure: no I/O, no clock.
//!
//! `ids` gives every service and backend its numbers, `weigh` decides who takes packets, `image` writes it down in the
//! layout of the maps.

pub mod ids;
pub mod image;
pub mod weigh;
