//! The lab: real kernels' network, sockets and processes for scenario tests and for `cargo xtask demo`.
//!
//! A [`Lab`](topology::Lab) is a client, a router, load balancers and backends, each a [`Host`](host::Host) with its own
//! network and mount namespace. All of it is anonymous and lives in the calling process: when that ends, by whatever
//! signal, the kernel frees everything. The README of this crate is the manual.
//!
//! Nothing in here may run another program to set something up, or leave anything outside the lab.

pub mod capture;
pub mod config;
pub mod counters;
pub mod frames;
pub mod host;
pub mod link;
pub mod long_lived;
pub mod neighbour;
mod netlink;
mod offload;
pub mod packets;
pub mod payload;
pub mod peer;
pub mod process;
pub mod route;
pub mod server;
pub mod topology;
pub mod traffic;
pub mod wait;
pub mod wattline;
