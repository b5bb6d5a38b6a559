//! What the agent says: asked over its socket a few times a second, kept as a history.
//!
//! The same answers that `wattline backend list` and `wattline stats` print. Nothing here looks behind the agent's back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::api::client::Client;
use lb_userspace::api::types::{BackendList, BackendView, HealthState, StatsView};
use lb_userspace::config::Config;
use lb_userspace::fleet::image;
use tests::host::Host;
use tokio::sync::watch;

use super::cast::{MEMBERS, SERVICES};
use super::timeline::{Timeline, Weighted};

/// Where the agent listens, as its host sees it.
const SOCKET: &str = "/run/wattline/wattline.sock";
/// How often the agent is asked: changes of rings are known this exactly.
const PERIOD: Duration = Duration::from_millis(150);
/// Limit for one answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Rates are taken over about this time.
const RATE_OVER: Duration = Duration::from_millis(1500);

/// A backend of a service, as the agent sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Seen {
    /// What its checks say.
    pub health: HealthState,
    /// Slots of the ring that name it.
    pub slots: u32,
    /// Its part of the ring.
    pub share: f64,
    /// Packets forwarded to it.
    pub packets: u64,
}

/// One round of answers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Observation {
    /// When the last answer had come.
    pub at: Instant,
    /// By service and member.
    pub backends: Vec<Vec<Seen>>,
    /// Packets that the XDP program sent to a backend.
    pub forwarded: u64,
    /// Packets that it dropped.
    pub dropped: u64,
}

impl Observation {
    /// True when every backend passes its checks and takes packets, in all services.
    pub(super) fn all_healthy(&self) -> bool {
        (0..MEMBERS.len()).all(|member| self.healthy(member))
    }

    /// True when a backend passes its checks and takes packets, in all services.
    pub(super) fn healthy(&self, member: usize) -> bool {
        self.of(member).all(|seen| seen.health == HealthState::Healthy && seen.slots > 0)
    }

    /// Rings that hold a backend.
    pub(super) fn rings_holding(&self, member: usize) -> usize {
        self.of(member).filter(|seen| seen.slots > 0).count()
    }

    /// Packets forwarded to a backend, of all services.
    pub(super) fn packets(&self, member: usize) -> u64 {
        self.of(member).map(|seen| seen.packets).sum()
    }

    /// A backend in every service.
    pub(super) fn of(&self, member: usize) -> impl Iterator<Item = &Seen> {
        self.backends.iter().filter_map(move |service| service.get(member))
    }
}

/// All that was seen so far.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// The rings of each service.
    pub timelines: Vec<Timeline>,
    /// Times at which each backend was seen to have got packets since the time before.
    busy: Vec<Vec<Instant>>,
    /// The last seconds, oldest first.
    recent: VecDeque<Observation>,
    /// Since when there is no answer, and why.
    silence: Option<(Instant, String)>,
}

impl History {
    /// The last observation.
    pub(super) fn latest(&self) -> Option<&Observation> {
        self.recent.back()
    }

    /// What grew how fast lately, in units per second.
    pub(super) fn rate(&self, counter: impl Fn(&Observation) -> u64) -> f64 {
        let Some(last) = self.recent.back() else { return 0.0 };
        let first = self.recent.iter().rev().find(|seen| last.at - seen.at >= RATE_OVER);
        let Some(first) = first.or(self.recent.front()) else { return 0.0 };
        let seconds = (last.at - first.at).as_secs_f64();
        if seconds > 0.0 { counter(last).saturating_sub(counter(first)) as f64 / seconds } else { 0.0 }
    }

    /// When a backend was last seen to have got packets, between two moments.
    pub(super) fn last_packet_between(&self, member: usize, from: Instant, to: Instant) -> Option<Instant> {
        self.busy.get(member)?.iter().rev().copied().find(|at| (from..to).contains(at))
    }

    /// Fails when the agent has been silent for long.
    pub(super) fn check(&self) -> Result<()> {
        if let Some((since, why)) = &self.silence {
            ensure!(since.elapsed() < LIMIT, "no use of the agent for {LIMIT:?}: {why}");
        }
        Ok(())
    }

    fn note(&mut self, asked: Instant, seen: Observation) -> Result<()> {
        for (timeline, backends) in self.timelines.iter_mut().zip(&seen.backends) {
            let holds: Vec<bool> = backends.iter().map(|backend| backend.slots > 0).collect();
            timeline.note(asked, seen.at, &holds)?;
            // Explanations rest on these rings, so they have to be the agent's.
            let theirs: Vec<u32> = backends.iter().map(|backend| backend.slots).collect();
            ensure!(timeline.slots_owned() == theirs, "the agent's ring is not the one of its backends");
        }
        if let Some(before) = self.recent.back() {
            for (member, busy) in self.busy.iter_mut().enumerate() {
                if seen.packets(member) > before.packets(member) {
                    busy.push(seen.at);
                }
            }
        }
        self.recent.push_back(seen);
        while self.recent.len() > 2 && self.recent[1].at + 2 * RATE_OVER < Instant::now() {
            self.recent.pop_front();
        }
        self.silence = None;
        Ok(())
    }
}

/// Asks the agent in the background; dropping it ends that.
pub(super) struct Observer {
    history: Arc<Mutex<History>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Observer {
    /// Starts asking the agent on `host`, which runs `config`.
    pub(super) fn start(host: &Host, config: &Config) -> Result<Self> {
        let timelines = config.services.iter().map(|service| {
            let weighted = |backend: &lb_userspace::config::Backend| Weighted {
                name: backend.name.clone(),
                weight: backend.weight,
            };
            Timeline::new(image::ring_slots(service), service.backends.iter().map(weighted).collect())
        });
        let history = Arc::new(Mutex::new(History {
            timelines: timelines.collect(),
            busy: vec![Vec::new(); MEMBERS.len()],
            recent: VecDeque::new(),
            silence: None,
        }));
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::clone(&history);
        let thread = host.spawn_thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("cannot start a runtime")?.block_on(keep_asking(&shared, stopped))
        })?;
        Ok(Self { history, stop, thread: Some(thread) })
    }

    /// What was seen so far.
    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep_asking(history: &Mutex<History>, mut stopped: watch::Receiver<bool>) -> Result<()> {
    let client = Client::new(SOCKET, LIMIT);
    loop {
        let asked = Instant::now();
        let noted = ask(&client).await.and_then(|seen| lock(history).note(asked, seen));
        if let Err(error) = noted {
            lock(history).silence.get_or_insert((asked, format!("{error:#}")));
        }
        tokio::select! {
            _ = stopped.changed() => return Ok(()),
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

async fn ask(client: &Client) -> Result<Observation> {
    let list: BackendList = client.get("/v1/backends").await?;
    let stats: StatsView = client.get("/v1/stats").await?;
    Ok(Observation {
        at: Instant::now(),
        backends: arrange(&list.backends)?,
        forwarded: stats.totals.forwarded_packets,
        dropped: stats.totals.dropped_packets,
    })
}

/// The backends by service and member.
fn arrange(views: &[BackendView]) -> Result<Vec<Vec<Seen>>> {
    let find = |service: &str, backend: &str| {
        let view = views.iter().find(|view| view.service == service && view.name == backend);
        let view = view.with_context(|| format!("the agent does not list {service}/{backend}"))?;
        let BackendView { health, slots, share, packets, .. } = *view;
        Ok(Seen { health, slots, share, packets })
    };
    SERVICES
        .iter()
        .map(|service| MEMBERS.iter().map(|member| find(service.name, member.name)).collect())
        .collect()
}
