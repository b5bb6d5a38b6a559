//! Noticing that the configuration file changed.
//!
//! The directory is watched, not the file: editors and configuration management replace files by renaming.

use std::path::Path;

use anyhow::{Context as _, Result};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// A running watch; it ends when dropped.
pub(super) struct Watch {
    _watcher: RecommendedWatcher,
    changes: mpsc::Receiver<()>,
}

impl Watch {
    /// Watches the file at `path`, which need not exist.
    pub(super) fn start(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).with_context(|| format!("finding {}", path.display()))?;
        let directory = path.parent().context("a configuration file is in a directory")?.to_owned();
        // One waiting note is as good as many: the file is read once, whole, after it.
        let (sender, changes) = mpsc::channel(1);
        // A symbolic link may point anywhere (as Kubernetes' mounted maps do), so every event in the directory counts
        // that could have changed what the name leads to; reading again costs little.
        let handler = move |event: notify::Result<notify::Event>| match event {
            Ok(event) if event.kind.is_access() => {}
            Ok(_) => drop(sender.try_send(())),
            Err(error) => log::warn!("watching the configuration file: {error}"),
        };
        let mut watcher = notify::recommended_watcher(handler).context("starting a file watch")?;
        watcher
            .watch(&directory, RecursiveMode::NonRecursive)
            .with_context(|| format!("watching {}", directory.display()))?;
        Ok(Self { _watcher: watcher, changes })
    }

    /// Waits until something happened to the file.
    pub(super) async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            // The watcher is gone; then nothing will ever happen.
            std::future::pending::<()>().await;
        }
    }
}
