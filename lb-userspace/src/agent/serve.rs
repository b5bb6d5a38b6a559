//! The agent's loop: one event after another, from requests, checks, the kernel, the file and signals.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{core::Agent, watch::Watch};
use crate::{
    api::{ApiError, Reply, Request},
    dataplane::netlink::{Change, Changes},
    health::Transition,
};

/// How often what could not be done is tried again.
const TICK: Duration = Duration::from_secs(5);
/// After so many ticks all ways are looked at again, though nothing was heard of a change: the kernel lets neighbours
/// that only XDP talks to go stale, and asking keeps them.
const TICKS_TO_LOOK: u32 = 6;
/// Editors write a file in several steps: it is read when nothing has happened to it for this long.
const SETTLE: Duration = Duration::from_millis(100);
/// But somebody may write into its directory all the time.
const SETTLE_AT_MOST: Duration = Duration::from_secs(2);

/// Where events come from.
pub(super) struct Sources {
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) transitions: mpsc::UnboundedReceiver<Transition>,
    pub(super) network: Changes,
    pub(super) file: Watch,
}

/// Runs until a signal says to stop.
pub(super) async fn serve(agent: &mut Agent, mut sources: Sources) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks = 0u32;
    let mut settling: Option<Settling> = None;
    // systemd wants a sign of life twice as often as it looks.
    let mut alive =
        interval(sd_notify::watchdog_enabled().map_or(Duration::from_hours(1), |period| period / 2));
    loop {
        tokio::select! {
            Some(request) = sources.requests.recv() => answer(agent, request).await,
            Some(transition) = sources.transitions.recv() => {
                let mut touched = BTreeSet::from([note(agent, &transition)]);
                while let Ok(more) = sources.transitions.try_recv() {
                    touched.insert(note(agent, &more));
                }
                report("following health", agent.refresh(&touched));
            }
            change = sources.network.next() => {
                if change.touches(Change::LINK) {
                    agent.keep_interfaces().await;
                }
                report("following routes and neighbours", agent.follow_routes().await);
            }
            () = sources.file.changed() => {
                settling = Some(Settling::again(settling));
            }
            () = settled(settling) => {
                settling = None;
                agent.reload(false).await;
            }
            _ = hangup.recv() => agent.reload(true).await,
            _ = tick.tick() => {
                ticks = ticks.wrapping_add(1);
                agent.keep_interfaces().await;
                if agent.hops.any_unknown() || ticks.is_multiple_of(TICKS_TO_LOOK) {
                    report("following routes and neighbours", agent.follow_routes().await);
                }
                if !agent.stale.is_empty() {
                    report("bringing services up to date", agent.refresh(&BTreeSet::new()));
                }
            }
            _ = alive.tick() => drop(sd_notify::notify(&[sd_notify::NotifyState::Watchdog])),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    Ok(())
}

/// A file that is being written.
#[derive(Clone, Copy)]
struct Settling {
    first: Instant,
    last: Instant,
}

impl Settling {
    /// Something happened to the file.
    fn again(before: Option<Self>) -> Self {
        let last = Instant::now();
        Self { first: before.map_or(last, |before| before.first), last }
    }
}

/// Waits until the file may be read; for ever where nothing happened to it.
async fn settled(settling: Option<Settling>) {
    match settling {
        Some(Settling { first, last }) => sleep_until((last + SETTLE).min(first + SETTLE_AT_MOST)).await,
        None => std::future::pending().await,
    }
}

fn report(what: &str, result: Result<()>) {
    if let Err(error) = result {
        log::error!("{what}: {error:#}");
    }
}

fn note(agent: &mut Agent, transition: &Transition) -> String {
    let Transition { id, from, to, reason } = transition;
    match reason {
        Some(reason) => log::warn!("{id}: {from} -> {to}: {reason}"),
        None => log::info!("{id}: {from} -> {to}"),
    }
    agent.checks.note(transition);
    transition.id.service.clone()
}

/// Answers; somebody who no longer waits is no error.
fn send<T>(reply: Reply<T>, answer: Result<T, ApiError>) {
    drop(reply.send(answer));
}

fn kernel<T>(result: Result<T>) -> Result<T, ApiError> {
    result.map_err(|error| ApiError::kernel(format!("{error:#}"), ""))
}

async fn answer(agent: &mut Agent, request: Request) {
    match request {
        Request::Status(reply) => send(reply, Ok(agent.status())),
        Request::Services(reply) => send(reply, kernel(agent.service_views())),
        Request::Backends { service, reply } => send(reply, agent.backend_views(service.as_deref())),
        Request::Health(reply) => send(reply, Ok(agent.health_views())),
        Request::Stats(reply) => send(reply, kernel(agent.stats())),
        Request::Config(reply) => send(reply, Ok(agent.config_view())),
        Request::Route { query, reply } => send(reply, agent.route(&query)),
        Request::Mutate { change, if_generation, dry_run, reply } => {
            send(reply, agent.mutate(&change, if_generation, dry_run).await);
        }
        Request::Apply { config, if_generation, dry_run, reply } => {
            send(reply, agent.change(*config, if_generation, dry_run, false).await);
        }
        Request::Save { if_generation, reply } => send(reply, agent.save_if(if_generation)),
        Request::Attach { interface, mode, reply } => send(reply, agent.attach(&interface, mode).await),
        Request::Detach { interface, reply } => send(reply, agent.detach(&interface).await),
    }
}
