//! The node's kernel side: programs, maps, and the network state that they depend on.
//!
//! Everything that knows a kernel interface lives below this module, one interface a file. It must never decide what
//! is wanted: it reads the kernel's state and makes it what others decided.

pub mod netlink;
pub mod nexthop;
