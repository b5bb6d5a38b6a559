//! Signals that end the demo, and waiting that notices them.
//!
//! Nothing is cleaned up here: who waits returns, and what it holds removes itself.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for Ctrl-C, SIGTERM and the end of the terminal.
pub(super) struct Interrupt {
    runtime: Runtime,
    signals: [Signal; 3],
}

/// Somebody wants the demo to end.
#[derive(Debug)]
pub(super) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Interrupt {
    /// From now on the signals do not end the process by themselves.
    pub(super) fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start a runtime")?;
        let signals = runtime.block_on(async {
            let listen = |kind| signal(kind).context("cannot listen for signals");
            Ok::<_, anyhow::Error>([
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
            ])
        })?;
        Ok(Self { runtime, signals })
    }

    /// Waits so long, or until interrupted.
    pub(super) fn wait(&mut self, time: Duration) -> Result<(), Interrupted> {
        let [interrupt, terminate, hangup] = &mut self.signals;
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = interrupt.recv() => Err(Interrupted),
                _ = terminate.recv() => Err(Interrupted),
                _ = hangup.recv() => Err(Interrupted),
                () = tokio::time::sleep(time) => Ok(()),
            }
        })
    }

    /// Says whether an interrupt is waiting.
    pub(super) fn check(&mut self) -> Result<(), Interrupted> {
        self.wait(Duration::ZERO)
    }
}
