//! Probes a changing set of targets, each at its interval, never too many at once, and keeps what was found.
//!
//! One task owns everything; probes run beside it and report back. It must never let one slow target delay another's
//! verdict, and never ask a target that was taken away.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::hash::Hasher as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use siphasher::sip::SipHasher24;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, Id, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::check::{Failure, check};
use super::state::State;
use super::{Health, Probe, ProbeKind, Target, TargetId};

/// New targets are first probed within this time, however long their interval is.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// No target is asked more often than this.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// How the monitor works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Most probes under way at once. Others wait, longest due first. Zero means one.
    pub concurrency: usize,
    /// Spreads the probes: different nodes need different seeds, or they ask in step.
    pub seed: u64,
}

impl Settings {
    /// 256 probes at once.
    pub fn with_seed(seed: u64) -> Self {
        Self { concurrency: 256, seed }
    }
}

/// Something that can ask a backend. There is one, [`NetworkProber`], and whatever tests need.
pub trait Prober: Send + Sync + 'static {
    /// Asks once. Must give up by itself in the end; it is dropped when its target is taken away.
    fn probe(&self, probe: Probe) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Asks over the network.
#[derive(Debug, Clone, Copy, Default)]
pub struct NetworkProber;

impl Prober for NetworkProber {
    async fn probe(&self, probe: Probe) -> Result<(), Failure> {
        check(&probe).await
    }
}

/// A verdict that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Whose.
    pub id: TargetId,
    /// What it was.
    pub from: Health,
    /// What it is.
    pub to: Health,
    /// The failure that decided it; none where a success did, or a change of what is probed.
    pub reason: Option<Failure>,
}

/// What is known about one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The verdict.
    pub health: Health,
    /// Since when.
    pub since: SystemTime,
    /// Successes since the last failure.
    pub consecutive_successes: u32,
    /// Failures since the last success.
    pub consecutive_failures: u32,
    /// Probes that came to an end, whatever their result.
    pub probes: u64,
    /// The last of them.
    pub last: Option<LastResult>,
}

/// One finished probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastResult {
    /// When it ended.
    pub at: SystemTime,
    /// How long it took, in all.
    pub latency: Duration,
    /// What it found.
    pub result: Result<(), Failure>,
}

type Board = Arc<RwLock<HashMap<TargetId, Status>>>;

/// A running monitor. Dropping it ends all probes.
#[derive(Debug)]
pub struct HealthMonitor {
    commands: mpsc::UnboundedSender<Command>,
    board: Board,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Command {
    SetTargets { targets: Vec<Target>, done: oneshot::Sender<()> },
    Stop,
}

impl HealthMonitor {
    /// Starts a monitor without targets on the current tokio runtime.
    ///
    /// Transitions come in order; they are few, and are kept until they are read.
    pub fn spawn(settings: Settings) -> (Self, mpsc::UnboundedReceiver<Transition>) {
        Self::spawn_with(settings, NetworkProber)
    }

    /// [`spawn`](Self::spawn) with another way of asking.
    pub fn spawn_with(
        settings: Settings,
        prober: impl Prober,
    ) -> (Self, mpsc::UnboundedReceiver<Transition>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (transitions, transitions_receiver) = mpsc::unbounded_channel();
        let board = Board::default();
        let scheduler = Scheduler {
            settings,
            prober: Arc::new(prober),
            entries: HashMap::new(),
            keys: HashMap::new(),
            next_key: 0,
            due: BTreeSet::new(),
            running: JoinSet::new(),
            running_keys: HashMap::new(),
            transitions,
            board: Arc::clone(&board),
        };
        let task = tokio::spawn(scheduler.run(receiver));
        (Self { commands, board, task }, transitions_receiver)
    }

    /// Replaces the set of targets, and returns once that is done.
    ///
    /// A target whose address stays keeps its verdict, also where other things about its probe change. Of two targets
    /// with one id the last counts. Targets that are gone are not probed any more, nor remembered.
    pub async fn set_targets(&self, targets: Vec<Target>) {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::SetTargets { targets, done }).is_ok() {
            // An error means that the monitor is ending; then there are no targets either.
            let _ = is_done.await;
        }
    }

    /// What is known about all targets.
    pub fn snapshot(&self) -> HashMap<TargetId, Status> {
        self.board.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is known about one target.
    pub fn status(&self, id: &TargetId) -> Option<Status> {
        self.board.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Ends all probes, and returns once they have ended.
    pub async fn shutdown(mut self) {
        // An error in either means that it ended already.
        let _ = self.commands.send(Command::Stop);
        let _ = (&mut self.task).await;
    }
}

impl Drop for HealthMonitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Names an entry for as long as its probe asks the same address; never used again.
type Key = u64;

struct Entry {
    id: TargetId,
    probe: Probe,
    state: State,
    jitter: Jitter,
    /// In `due`, unless disabled or being probed.
    due: Option<Instant>,
    running: Option<AbortHandle>,
    started: Instant,
}

struct Finished {
    result: Result<(), Failure>,
    latency: Duration,
}

struct Scheduler<P> {
    settings: Settings,
    prober: Arc<P>,
    entries: HashMap<Key, Entry>,
    keys: HashMap<TargetId, Key>,
    next_key: Key,
    due: BTreeSet<(Instant, Key)>,
    running: JoinSet<Finished>,
    running_keys: HashMap<Id, Key>,
    transitions: mpsc::UnboundedSender<Transition>,
    board: Board,
}

impl<P: Prober> Scheduler<P> {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            let may_start = self.running.len() < self.settings.concurrency.max(1);
            let next = self.due.first().filter(|_| may_start).copied();
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::SetTargets { targets, done }) => {
                        self.set_targets(targets);
                        // Nobody waiting any more is fine.
                        let _ = done.send(());
                    }
                    Some(Command::Stop) | None => break,
                },
                Some(ended) = self.running.join_next_with_id() => self.finish(ended),
                () = sleep_until(next.map_or_else(Instant::now, |(at, _)| at)), if next.is_some() => {
                    if let Some((_, key)) = self.due.pop_first() {
                        self.start(key);
                    }
                }
            }
        }
        self.running.shutdown().await;
    }

    fn set_targets(&mut self, targets: Vec<Target>) {
        let wanted: HashSet<&TargetId> = targets.iter().map(|target| &target.id).collect();
        let gone: Vec<Key> =
            self.keys.iter().filter(|(id, _)| !wanted.contains(id)).map(|(_, key)| *key).collect();
        for key in gone {
            if let Some(entry) = self.remove(key) {
                self.with_board(|board| board.remove(&entry.id));
            }
        }
        for target in targets {
            match self.keys.get(&target.id).copied() {
                Some(key) if self.entries.get(&key).is_some_and(|entry| entry.probe == target.probe) => {}
                Some(key) => self.change(key, target),
                None => {
                    let state = start_state(&target);
                    self.insert(target, state, None);
                }
            }
        }
    }

    /// Takes an entry and its running probe away.
    fn remove(&mut self, key: Key) -> Option<Entry> {
        let mut entry = self.entries.remove(&key)?;
        self.keys.remove(&entry.id);
        if let Some(due) = entry.due.take() {
            self.due.remove(&(due, key));
        }
        if let Some(running) = entry.running.take() {
            running.abort();
        }
        Some(entry)
    }

    /// Puts another probe in the place of an existing one.
    fn change(&mut self, key: Key, target: Target) {
        let Some(old) = self.remove(key) else { return };
        let before = old.state.health();
        let state = if target.probe.kind == ProbeKind::None {
            State::disabled()
        } else if old.probe.address != target.probe.address {
            start_state(&Target { adopt: None, ..target.clone() })
        } else {
            match before {
                // It was in use; asking it from now on is no reason to stop before it failed.
                Health::Disabled | Health::Healthy => State::adopt(true),
                Health::Unhealthy => State::adopt(false),
                Health::Unknown => State::unknown(),
            }
        };
        let same_address = old.probe.address == target.probe.address;
        let status = self.with_board(|board| board.get(&target.id).cloned()).filter(|_| same_address);
        let id = target.id.clone();
        self.insert(target, state, status);
        if state.health() != before {
            self.tell(Transition { id, from: before, to: state.health(), reason: None });
        }
    }

    fn insert(&mut self, target: Target, state: State, status: Option<Status>) {
        let Target { id, probe, .. } = target;
        let key = self.next_key;
        self.next_key += 1;
        let mut jitter = Jitter::new(self.settings.seed, &id);
        let now = Instant::now();
        let due = (probe.kind != ProbeKind::None).then(|| now + jitter.first(probe.interval));
        if let Some(due) = due {
            self.due.insert((due, key));
        }
        let health = state.health();
        let status = match status {
            Some(old) if old.health == health => {
                Status { consecutive_successes: 0, consecutive_failures: 0, ..old }
            }
            old => Status {
                health,
                since: SystemTime::now(),
                consecutive_successes: 0,
                consecutive_failures: 0,
                probes: old.as_ref().map_or(0, |old| old.probes),
                last: old.and_then(|old| old.last),
            },
        };
        self.with_board(|board| board.insert(id.clone(), status));
        self.keys.insert(id.clone(), key);
        self.entries.insert(key, Entry { id, probe, state, jitter, due, running: None, started: now });
    }

    fn start(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.due = None;
        entry.started = Instant::now();
        let (prober, probe) = (Arc::clone(&self.prober), entry.probe.clone());
        let running = self.running.spawn(async move {
            let started = Instant::now();
            let result = prober.probe(probe).await;
            Finished { result, latency: started.elapsed() }
        });
        self.running_keys.insert(running.id(), key);
        entry.running = Some(running);
    }

    fn finish(&mut self, ended: Result<(Id, Finished), JoinError>) {
        let (task, finished) = match ended {
            Ok((task, finished)) => (task, Some(finished)),
            Err(error) => (error.id(), None),
        };
        // A probe whose target changed under it answers a question nobody asks any more.
        let Some(key) = self.running_keys.remove(&task) else { return };
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.running = None;
        let finished = finished.unwrap_or_else(|| Finished {
            result: Err(Failure::Local("the probe panicked".into())),
            latency: entry.started.elapsed(),
        });
        // Counted from the start, so that slow answers do not stretch the interval; but never in the past.
        let due =
            (entry.started + entry.jitter.next(entry.probe.interval.max(MIN_INTERVAL))).max(Instant::now());
        entry.due = Some(due);
        self.due.insert((due, key));

        let conclusive = finished.result.as_ref().err().is_none_or(Failure::is_conclusive);
        let before = if conclusive {
            entry.state.observe(finished.result.is_ok(), entry.probe.thresholds)
        } else {
            None
        };
        let (id, state) = (entry.id.clone(), entry.state);
        let reason = finished.result.as_ref().err().cloned();
        let now = SystemTime::now();
        self.with_board(|board| {
            if let Some(status) = board.get_mut(&id) {
                status.health = state.health();
                if before.is_some() {
                    status.since = now;
                }
                status.consecutive_successes = state.consecutive_successes();
                status.consecutive_failures = state.consecutive_failures();
                status.probes += 1;
                status.last =
                    Some(LastResult { at: now, latency: finished.latency, result: finished.result });
            }
        });
        if let Some(from) = before {
            self.tell(Transition { id, from, to: state.health(), reason });
        }
    }

    fn tell(&self, transition: Transition) {
        // Whoever does not listen can still look at the snapshot.
        let _ = self.transitions.send(transition);
    }

    fn with_board<T>(&self, work: impl FnOnce(&mut HashMap<TargetId, Status>) -> T) -> T {
        work(&mut self.board.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn start_state(target: &Target) -> State {
    match (&target.probe.kind, target.adopt) {
        (ProbeKind::None, _) => State::disabled(),
        (_, Some(healthy)) => State::adopt(healthy),
        (_, None) => State::unknown(),
    }
}

/// A target's own row of random numbers: the same for the same seed and target.
struct Jitter {
    seed: u64,
    target: u64,
    drawn: u64,
}

impl Jitter {
    fn new(seed: u64, id: &TargetId) -> Self {
        let mut hasher = SipHasher24::new_with_keys(seed, 0);
        hasher.write(id.service.as_bytes());
        // Names cannot contain it, so "a/bc" and "ab/c" differ.
        hasher.write_u8(b'/');
        hasher.write(id.backend.as_bytes());
        Self { seed, target: hasher.finish(), drawn: 0 }
    }

    /// From 0 up to, not including, 1.
    fn draw(&mut self) -> f64 {
        let mut hasher = SipHasher24::new_with_keys(self.seed, self.target);
        hasher.write_u64(self.drawn);
        self.drawn += 1;
        // As many bits as an f64 holds exactly.
        (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From appearing to the first probe.
    fn first(&mut self, interval: Duration) -> Duration {
        interval.min(FIRST_WITHIN).mul_f64(self.draw())
    }

    /// From one probe to the next: the interval, give or take a tenth.
    fn next(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(0.9 + 0.2 * self.draw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(service: &str, backend: &str) -> TargetId {
        TargetId { service: service.into(), backend: backend.into() }
    }

    #[test]
    fn jitter_stays_within_its_bounds_and_fills_them() {
        let interval = Duration::from_secs(2);
        let mut jitter = Jitter::new(1, &id("web", "web-1"));
        let drawn: Vec<Duration> = (0..1000).map(|_| jitter.next(interval)).collect();
        assert!(drawn.iter().all(|gap| (1800..=2200).contains(&gap.as_millis())), "{drawn:?}");
        assert!(
            drawn.iter().any(|gap| gap.as_millis() < 1850) && drawn.iter().any(|gap| gap.as_millis() > 2150)
        );
    }

    #[test]
    fn first_probes_are_spread_over_a_second_or_less() {
        for (interval, bound) in [(100, 100), (1000, 1000), (60_000, 1000)] {
            let interval = Duration::from_millis(interval);
            let phases: Vec<u128> = (0..1000)
                .map(|n| Jitter::new(7, &id("web", &format!("b{n}"))).first(interval).as_millis())
                .collect();
            assert!(phases.iter().all(|phase| *phase <= bound), "{phases:?}");
            let late = phases.iter().filter(|phase| **phase > bound / 2).count();
            assert!((350..650).contains(&late), "{late} of 1000 in the later half");
        }
    }

    #[test]
    fn jitter_is_the_same_for_the_same_seed_and_target_only() {
        let interval = Duration::from_secs(1);
        let row = |seed, id: TargetId| {
            let mut jitter = Jitter::new(seed, &id);
            (0..4).map(|_| jitter.next(interval)).collect::<Vec<_>>()
        };
        let one = row(1, id("a", "bc"));
        assert_eq!(one, row(1, id("a", "bc")));
        assert_ne!(one, row(2, id("a", "bc")));
        assert_ne!(one, row(1, id("ab", "c")));
    }
}
