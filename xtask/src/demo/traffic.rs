//! The client: short HTTP connections at a steady pace and some that last, every byte of every answer verified.
//!
//! Nothing is retried: what fails is written down as it failed. Lasting ones make many requests, over seconds; the next
//! takes their place when they are done, or broken.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lb_common::address;
use lb_common::datapath::hash::{Flow, FlowKey};
use tests::host::Host;
use tests::topology::Lab;
use tests::traffic::{Connection as Http, Reply};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::cast::{self, SERVICES};
use super::connections::Connection;

/// Fresh connections to each service per second: two cores bear several times as many.
pub(super) const FRESH_PER_SECOND: u32 = 60;
/// Short connections to each service that may be open at once.
const MOST_OPEN: usize = 64;
/// Connections to each service that last some seconds, at any time.
pub(super) const LASTING: u32 = 24;
/// Requests on the shortest of them, and how many more on the longest.
const LASTING_REQUESTS: (u32, u32) = (12, 20);
/// Pause between two requests on a connection that lasts.
const LASTING_PAUSE: Duration = Duration::from_millis(250);
/// Pause before the next one takes its place.
const REOPEN_PAUSE: Duration = Duration::from_millis(250);
/// Bytes of each answer: several packets.
const ANSWER_BYTES: usize = 8_000;
/// Limit for connecting and for each exchange.
const LIMIT: Duration = Duration::from_secs(10);
/// Flow numbers of lasting connections begin here, far from the fresh ones.
const FIRST_LASTING: u32 = 1 << 30;
/// IP protocol number of TCP (RFC 9293).
const TCP: u8 = 6;

/// All connections so far, in the order in which they were opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Connection>>>);

impl Log {
    /// The records.
    pub(super) fn read(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, service: usize, slot: u32) -> usize {
        let mut connections = self.read();
        let opened = Instant::now();
        connections.push(Connection { service, slot, opened, answer: None, ended: None, failure: None });
        connections.len() - 1
    }

    fn answered(&self, id: usize, reply: &Reply) -> Result<()> {
        let member = cast::by_lab_name(&reply.backend)
            .with_context(|| format!("{:?} answered, which is no backend", reply.backend))?;
        let answer = &mut self.read()[id].answer;
        let (first, _) = *answer.get_or_insert_with(|| (member, Instant::now()));
        anyhow::ensure!(first == member, "moved from backend {first} to {member}");
        Ok(())
    }

    fn ended(&self, id: usize, result: Result<()>) {
        let connection = &mut self.read()[id];
        connection.ended = Some(Instant::now());
        connection.failure = result.err().map(|error| format!("{error:#}"));
    }
}

/// Running traffic; dropping it ends it.
pub(super) struct Traffic {
    log: Log,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Traffic {
    /// Starts traffic from `client` to all services; `slots` are those of each service's ring.
    pub(super) fn start(client: &Host, key: FlowKey, slots: Vec<u32>) -> Result<Self> {
        let log = Log::default();
        let (stop, stopped) = watch::channel(false);
        let line = Arc::new(Line { key, slots, log: log.clone(), stopped });
        let thread = client.spawn_thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("cannot start a runtime")?.block_on(run(&line));
            Ok(())
        })?;
        Ok(Self { log, stop, thread: Some(thread) })
    }

    /// The records, which grow as traffic flows.
    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    /// Opens no more connections, lets those under way come to their end, and returns when all is quiet.
    pub(super) fn stop(mut self) -> Result<Log> {
        self.end()?;
        Ok(self.log.clone())
    }

    fn end(&mut self) -> Result<()> {
        let _ = self.stop.send(true);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What every connection needs.
struct Line {
    key: FlowKey,
    slots: Vec<u32>,
    log: Log,
    stopped: watch::Receiver<bool>,
}

impl Line {
    /// The slot of flow number `number` to a service.
    fn slot(&self, service: usize, number: u32) -> u32 {
        let target = SERVICES[service].target;
        let source = Lab::flow_source(target.ip(), number);
        let (family, source_bytes) = address::to_bytes(source.ip());
        let flow = Flow {
            family,
            protocol: TCP,
            source: source_bytes,
            destination: address::to_bytes(target.ip()).1,
            source_port: source.port(),
            destination_port: target.port(),
        };
        flow.hash(&self.key).slot(self.slots[service])
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    async fn connect(service: usize, number: u32) -> Result<Http> {
        let target = SERVICES[service].target;
        let open = Http::open(target, Some(Lab::flow_source(target.ip(), number)));
        timeout(LIMIT, open).await.context("no connection in time")?
    }

    /// One request and its answer.
    async fn ask(&self, id: usize, http: &mut Http, seed: u64) -> Result<()> {
        let exchange = http.exchange(ANSWER_BYTES, seed);
        let reply = timeout(LIMIT, exchange).await.context("no answer in time")??;
        self.log.answered(id, &reply)
    }
}

/// All traffic, until told to stop.
async fn run(line: &Arc<Line>) {
    let mut all = JoinSet::new();
    for service in 0..SERVICES.len() {
        all.spawn(keep_opening(Arc::clone(line), service));
        for index in 0..LASTING {
            all.spawn(keep_talking(Arc::clone(line), service, index));
        }
    }
    all.join_all().await;
}

/// Opens short connections at a steady pace, whatever becomes of them.
async fn keep_opening(line: Arc<Line>, service: usize) {
    let mut tick = interval(Duration::from_secs(1) / FRESH_PER_SECOND);
    // What a busy machine could not open in time it opens as soon as it can.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut open = JoinSet::new();
    for number in 0.. {
        tick.tick().await;
        if line.is_stopped() {
            break;
        }
        while open.try_join_next().is_some() {}
        if open.len() >= MOST_OPEN {
            open.join_next().await;
        }
        let line = Arc::clone(&line);
        open.spawn(async move {
            let id = line.log.open(service, line.slot(service, number));
            let result = async {
                let mut http = Line::connect(service, number).await?;
                line.ask(id, &mut http, number.into()).await
            };
            line.log.ended(id, result.await);
        });
    }
    open.join_all().await;
}

/// One lasting connection after the other.
async fn keep_talking(line: Arc<Line>, service: usize, index: u32) {
    for round in 0.. {
        let number = FIRST_LASTING + round * LASTING + index;
        let id = line.log.open(service, line.slot(service, number));
        let result = async {
            let mut http = Line::connect(service, number).await?;
            for seed in 0..requests(number) {
                line.ask(id, &mut http, seed.into()).await?;
                if line.is_stopped() {
                    break;
                }
                sleep(LASTING_PAUSE).await;
            }
            Ok(())
        };
        line.log.ended(id, result.await);
        sleep(REOPEN_PAUSE).await;
        if line.is_stopped() {
            break;
        }
    }
}

/// How many requests a lasting connection makes: differing, so that they do not all end at once.
fn requests(number: u32) -> u32 {
    let (least, more) = LASTING_REQUESTS;
    // Any step that shares no factor with the range visits all of it.
    least + number.wrapping_mul(7) % (more + 1)
}
