//! What the operator wants: the configuration as plain values, read from TOML, checked, compared and written back.
//!
//! Everything here is pure except [`file`]. Nothing in this module may touch the network, the kernel or a clock, and
//! nothing may accept a part of a configuration: a text is taken whole or refused whole, with every problem named.

pub mod diff;
pub mod file;
pub mod health;
pub mod model;
mod parse;
mod problem;
mod reader;
mod validate;

use std::path::Path;

pub use diff::ConfigDiff;
pub use health::{HealthCheck, HealthKind, HealthProbe, HealthSettings};
pub use model::{
    Admin, AllDown, Backend, Config, FlowHashKey, Limits, Mode, Node, Port, Protocol, Service, XdpMode,
};
pub use parse::parse;
pub use problem::{ConfigError, Problem};
pub use validate::{MAX_BACKENDS_PER_SERVICE, MAX_RING_SLOTS, is_name, is_prime, next_prime};

/// Largest configuration that is read at all, in bytes.
pub const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Reads and checks the configuration file at `path`.
///
/// The error lists every problem found, each with its place in the file; an unreadable file is one problem. An empty one
/// is too: it is what somebody has begun to write, or what a full disk left, and never what was meant.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let name = path.display().to_string();
    let bytes = file::read_limited(path, MAX_BYTES)
        .map_err(|error| ConfigError::unreadable(&name, &format!("{error:#}")))?;
    if bytes.trim_ascii().is_empty() {
        return Err(ConfigError {
            problems: vec![Problem {
                file: Some(name),
                line: Some(1),
                column: Some(1),
                message: "the file is empty".to_owned(),
                help: "to run nothing on purpose, write `[node]` into it".to_owned(),
            }],
        });
    }
    parse_bytes(&bytes, &name)
}

/// Reads and checks a configuration that came as bytes (a file, standard input, a request body).
pub fn parse_bytes(bytes: &[u8], origin: &str) -> Result<Config, ConfigError> {
    parse(parse::text(bytes, origin)?, origin)
}

#[cfg(test)]
mod tests;
