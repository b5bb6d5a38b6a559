//! The lab
pub mod host;
pub mod link;
mod offload;
pub mod payload;
pub mod peer;
pub mod process;
pub mod server;
pub mod topology;
pub mod traffic;
