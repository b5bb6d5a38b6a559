//! Connections that stay open and keep exchanging verified data, to see whether a change disturbs them.
//!
//! A connection that fails is reported and not replaced: nothing here may hide a broken flow.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::host::Host;
use crate::topology::Lab;
use crate::traffic::{Connection, block_on};

/// What to keep open.
#[derive(Clone, Copy, Debug)]
pub struct LongLivedSpec {
    /// Service address and port.
    pub target: SocketAddr,
    /// Number of the first flow; see [`Lab::flow_source`].
    pub first: u32,
    /// How many connections.
    pub connections: u32,
    /// Pause between two exchanges on a connection.
    pub interval: Duration,
    /// Bytes of each answer.
    pub bytes: usize,
    /// Limit for connecting and for each exchange; beyond it the connection has failed.
    pub timeout: Duration,
}

impl LongLivedSpec {
    /// So many connections that exchange 1000 bytes every 20 ms, with 10 s for each exchange.
    pub fn to(target: SocketAddr, connections: u32) -> Self {
        Self {
            target,
            first: 1_000_000,
            connections,
            interval: Duration::from_millis(20),
            bytes: 1000,
            timeout: Duration::from_secs(10),
        }
    }
}

/// One connection's story.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Story {
    /// The backend at the other end, once it has answered.
    pub backend: Option<String>,
    /// Exchanges that went right.
    pub exchanges: u64,
    /// What ended it, if it failed. A connection that answered from another backend has failed, too.
    pub failure: Option<String>,
}

/// Running connections; dropping it closes them.
#[derive(Debug)]
pub struct LongLived {
    stories: Arc<Mutex<Vec<Story>>>,
    running: Option<(oneshot::Sender<Infallible>, JoinHandle<Result<()>>)>,
}

impl LongLived {
    /// Opens the connections from `client` and waits for the first answer on each.
    pub fn start(client: &Host, spec: LongLivedSpec) -> Result<Self> {
        let stories = Arc::new(Mutex::new(vec![Story::default(); spec.connections as usize]));
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let shared = Arc::clone(&stories);
        let thread = client.spawn_thread(move || {
            block_on(async {
                let mut connections = JoinSet::new();
                for index in 0..spec.connections {
                    connections.spawn(keep_talking(spec, index, Arc::clone(&shared)));
                }
                // Every task ends by itself only after a failure; the stop ends the rest.
                let _ = stopped.await;
                connections.shutdown().await;
                Ok(())
            })
        })?;
        let mut this = Self { stories, running: Some((stop, thread)) };
        this.wait_exchanges(1, spec.timeout * 2)?;
        Ok(this)
    }

    /// How each connection fares, in order of flow numbers.
    pub fn stories(&self) -> Vec<Story> {
        lock(&self.stories).clone()
    }

    /// Failed connections: index and reason.
    pub fn failures(&self) -> Vec<(usize, String)> {
        let stories = lock(&self.stories);
        let failed = stories.iter().enumerate();
        failed.filter_map(|(index, story)| Some((index, story.failure.clone()?))).collect()
    }

    /// Waits until every connection has made this many exchanges *more* than now, or fails with the first failure.
    pub fn wait_more(&mut self, exchanges: u64, limit: Duration) -> Result<()> {
        let most = lock(&self.stories).iter().map(|story| story.exchanges).max().unwrap_or_default();
        self.wait_exchanges(most + exchanges, limit)
    }

    /// Closes the connections and returns how they fared.
    pub fn stop(mut self) -> Vec<Story> {
        self.end();
        self.stories()
    }

    fn wait_exchanges(&mut self, exchanges: u64, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            {
                let stories = lock(&self.stories);
                for (index, story) in stories.iter().enumerate() {
                    if let Some(failure) = &story.failure {
                        bail!("connection {index} to {:?} failed: {failure}", story.backend);
                    }
                }
                if stories.iter().all(|story| story.exchanges >= exchanges) {
                    return Ok(());
                }
                let slowest = stories.iter().map(|story| story.exchanges).min();
                ensure!(Instant::now() < deadline, "{slowest:?} of {exchanges} exchanges after {limit:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

impl Drop for LongLived {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(stories: &Mutex<Vec<Story>>) -> MutexGuard<'_, Vec<Story>> {
    stories.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drives connection `index` until it fails.
async fn keep_talking(spec: LongLivedSpec, index: u32, stories: Arc<Mutex<Vec<Story>>>) {
    let result: Result<Infallible> = async {
        let source = Lab::flow_source(spec.target.ip(), spec.first + index);
        let mut connection = timeout(spec.timeout, Connection::open(spec.target, Some(source)))
            .await
            .context("cannot connect in time")??;
        for seed in 0_u64.. {
            let reply = timeout(spec.timeout, connection.exchange(spec.bytes, seed))
                .await
                .context("no answer in time")??;
            {
                let mut stories = lock(&stories);
                let story = &mut stories[index as usize];
                match &story.backend {
                    Some(backend) => {
                        ensure!(*backend == reply.backend, "moved from {backend} to {}", reply.backend);
                    }
                    None => story.backend = Some(reply.backend),
                }
                story.exchanges += 1;
            }
            tokio::time::sleep(spec.interval).await;
        }
        bail!("ran out of numbers")
    }
    .await;
    let Err(error) = result;
    lock(&stories)[index as usize].failure = Some(format!("{error:#}"));
}
