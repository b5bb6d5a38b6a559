//! The agent's interface to everything else: JSON over HTTP on a Unix socket, and the messages behind it.
//!
//! `types` is what goes over the socket, `control` what goes to the agent's single owner of state. Nothing here may
//! hold state of its own or touch a map: every answer comes from the owner.

pub mod change;
pub mod client;
pub mod control;
mod extract;
mod handlers;
pub mod openapi;
pub mod server;
pub mod types;

pub use change::Change;
pub use control::{ApiError, ApiHandle, ErrorKind, Reply, Request};
pub use extract::WriteParams;
