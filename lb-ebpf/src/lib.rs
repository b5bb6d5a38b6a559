//! The kernel side of the packet path's traits; the programs are in `bin/`, a file each.
#![no_std]
// As in lb-common: the verifier loses the packet's bounds at a call.
#![allow(clippy::inline_always)]

pub mod packet;
