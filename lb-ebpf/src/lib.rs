//! The kernel side of the packet path's traits; the programs are in `bin/`, a file each.
#![no_std]

pub mod packet;
