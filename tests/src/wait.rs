//! Waiting for something to become true.
//!
//! The limit is how long a broken system is given, never a measurement: nothing here may judge speed.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often the condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Calls `look` until it gives a value. At the limit it fails, naming `what` and the last reason that `look` gave.
pub fn until<T, E: Debug>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, E>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => {
                bail!("waited {limit:?} for {what} in vain: {reason:?}");
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}
