//! The performance: sets the stage, lets traffic flow, acts out the script, shows what is seen, and sums up.
//!
//! All effects meet here; what they mean is decided elsewhere. Whatever way this ends, the stage is gone afterwards.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lb_userspace::agent::flow_key;
use lb_userspace::api::types::HealthState;

use super::cast::{MEMBERS, SERVICES, VICTIM};
use super::connections::{self, Connection};
use super::interrupt::{Interrupt, Interrupted};
use super::observe::{History, Observation, Observer};
use super::paint::{Line, Tone};
use super::screen::Screen;
use super::script::{self, Act, Sight};
use super::stage::{self, Stage};
use super::summary::{self, OutageSummary, Summary};
use super::traffic::{FRESH_PER_SECOND, LASTING, Log, Traffic};
use super::verdict::{Outage, Tally, Verdict, judge};
use super::view::{BackendRow, Event, Picture, ServiceRow};
use super::{Arguments, INTERRUPTED, Output};

/// How often the script looks at the clock.
const BEAT: Duration = Duration::from_millis(50);
/// How long backends may take to become healthy.
const PATIENCE: Duration = Duration::from_mins(1);
/// How much longer than planned the play may last, so that it ends with the backend back.
const ENCORE: Duration = Duration::from_secs(30);
/// Who got no packet for so long gets none any more.
const QUIET: Duration = Duration::from_secs(1);
/// Observed shares on the live picture are of the connections of so long.
const LATELY: Duration = Duration::from_secs(4);

/// Plays the demo.
pub(super) fn play(arguments: &Arguments) -> Result<ExitCode> {
    let mut interrupt = Interrupt::listen()?;
    match perform(arguments, &mut interrupt) {
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("Interrupted: everything has been ended and removed.");
            Ok(ExitCode::from(INTERRUPTED))
        }
        result => result,
    }
}

fn perform(arguments: &Arguments, interrupt: &mut Interrupt) -> Result<ExitCode> {
    let mut screen = if arguments.output == Output::Json { Screen::stderr() } else { Screen::stdout() };
    let total = Duration::from_secs(arguments.seconds.into());
    let stage = set_stage(&mut screen, interrupt)?;
    let mut show = Show::start(stage, screen, total)?;
    show.run(interrupt)?;
    let (summary, events, mut screen) = show.end(interrupt)?;

    let complaints = summary.complaints();
    if arguments.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        for line in summary.page(&events, screen.width()) {
            screen.say(&line)?;
        }
    }
    if !complaints.is_empty() {
        bail!("not as it should be: {}", complaints.join("; "));
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the lab and starts every program in it.
fn set_stage(screen: &mut Screen, interrupt: &mut Interrupt) -> Result<Stage> {
    let mut step = |text: &str| {
        screen.say(&Line::new(Tone::Dim, text))?;
        interrupt.check().map_err(anyhow::Error::from)
    };
    step("Laying a network of namespaces: a client, a router, a load balancer, six backends in two sites …")?;
    let lab = stage::lay()?;
    step("On every backend: `wattline decap attach eth0` …")?;
    stage::attach_decap(&lab)?;
    step("On the load balancer: `wattline agent`, which attaches XDP to eth0 …")?;
    let stage = stage::start_agent(lab)?;
    step("Waiting for the first health checks …")?;
    Ok(stage)
}

/// A running show. Fields are dropped in this order: the stage is the last to go.
struct Show {
    screen: Screen,
    traffic: Option<Traffic>,
    observer: Observer,
    stage: Stage,
    log: Log,
    started: Instant,
    total: Duration,
    act: Act,
    act_began: Instant,
    outage: Option<Outage>,
    noticed: Option<Duration>,
    quiet: bool,
    back: Option<Duration>,
    first: Option<Observation>,
    events: Vec<Event>,
}

impl Show {
    fn start(stage: Stage, screen: Screen, total: Duration) -> Result<Self> {
        let observer = Observer::start(stage.lab.lb(), &stage.config)?;
        let now = Instant::now();
        Ok(Self {
            screen,
            traffic: None,
            observer,
            stage,
            log: Log::default(),
            started: now,
            total,
            act: Act::Calm,
            act_began: now,
            outage: None,
            noticed: None,
            quiet: false,
            back: None,
            first: None,
            events: Vec::new(),
        })
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Everything from the first connection to the last.
    fn run(&mut self, interrupt: &mut Interrupt) -> Result<()> {
        self.wait_all_healthy(interrupt)?;
        self.first = self.observer.history().latest().cloned();
        let key = self.stage.config.node.flow_hash_key.as_ref().context("the configuration has no key")?;
        let slots = self.observer.history().timelines.iter().map(super::timeline::Timeline::slots).collect();
        let traffic = Traffic::start(&self.stage.lab.client, flow_key::expand(&key.0), slots)?;
        self.log = traffic.log().clone();
        self.traffic = Some(traffic);
        self.started = Instant::now();
        self.act_began = self.started;
        self.tell(format!(
            "traffic starts: to each of {} services {FRESH_PER_SECOND} short connections a second, and {LASTING} that last",
            SERVICES.len(),
        ))?;
        while self.elapsed() < self.total || (self.act != Act::Back && self.elapsed() < self.total + ENCORE) {
            self.look_after()?;
            self.advance()?;
            self.notice_quiet()?;
            if self.screen.is_due() {
                let picture = self.picture();
                self.screen.show(&picture)?;
            }
            interrupt.wait(BEAT)?;
        }
        Ok(())
    }

    /// Begins the next act, if its time has come.
    fn advance(&mut self) -> Result<()> {
        let sight = {
            let history = self.observer.history();
            let Some(latest) = history.latest() else { return Ok(()) };
            Sight { rings: latest.rings_holding(VICTIM), healthy: latest.healthy(VICTIM) }
        };
        let Some(next) = self.act.next(self.elapsed(), self.total, sight) else { return Ok(()) };
        let now = Instant::now();
        let since = match next {
            // Counted from the stop and the start, not from when they were done.
            Act::Out => self.outage.map_or(Duration::ZERO, |outage| now - outage.from),
            Act::Back => {
                self.outage.and_then(|outage| outage.until).map_or(Duration::ZERO, |until| now - until)
            }
            _ => now - self.act_began,
        };
        self.tell(next.announcement(since))?;
        let server = &self.stage.lab.backend(MEMBERS[VICTIM].lab).server;
        match next {
            Act::Calm => {}
            Act::Down => {
                self.outage = Some(Outage { member: VICTIM, from: now, until: None });
                server.stop();
            }
            Act::Out => self.noticed = Some(since),
            Act::Returning => {
                server.restart()?;
                if let Some(outage) = &mut self.outage {
                    outage.until = Some(Instant::now());
                }
            }
            Act::Back => self.back = Some(since),
        }
        self.act = next;
        self.act_began = now;
        Ok(())
    }

    /// Says, once, that the backend that is out gets nothing any more.
    fn notice_quiet(&mut self) -> Result<()> {
        let Some(outage) = self.outage else { return Ok(()) };
        if self.quiet || self.act != Act::Out || self.act_began.elapsed() < QUIET {
            return Ok(());
        }
        let last = self.observer.history().last_packet_between(VICTIM, outage.from, Instant::now());
        if last.is_none_or(|last| last.elapsed() >= QUIET) {
            self.quiet = true;
            let after = last.map_or(Duration::ZERO, |last| last - outage.from);
            self.tell(script::quiet(after))?;
        }
        Ok(())
    }

    /// Ends traffic and the stage, and sums up.
    fn end(mut self, interrupt: &mut Interrupt) -> Result<(Summary, Vec<Event>, Screen)> {
        let lasted = self.elapsed();
        let picture = self.picture();
        self.screen.show(&picture)?;
        self.screen.leave();
        self.tell("traffic ends")?;
        if let Some(traffic) = self.traffic.take() {
            traffic.stop()?;
        }
        // What the last connections met is known only from answers after them.
        let quiet = Instant::now();
        let deadline = quiet + PATIENCE;
        while !self.observer.history().timelines.iter().all(|timeline| timeline.covers(quiet)) {
            self.look_after()?;
            interrupt.wait(BEAT)?;
            anyhow::ensure!(Instant::now() < deadline, "the agent fell silent at the end");
        }
        // Who is still ill then is named in the summary.
        match self.wait_all_healthy(interrupt) {
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => eprintln!("{error:#}"),
            Ok(()) => {}
        }
        let summary = self.sum_up(lasted)?;
        let Self { screen, events, .. } = self;
        Ok((summary, events, screen))
    }

    fn wait_all_healthy(&mut self, interrupt: &mut Interrupt) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.look_after()?;
            if self.observer.history().latest().is_some_and(Observation::all_healthy) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "not all backends became healthy in {PATIENCE:?}; the agent's log:\n{}",
                    self.stage.agent.log()
                );
            }
            interrupt.wait(BEAT)?;
        }
    }

    /// Fails when the agent has ended or fallen silent.
    fn look_after(&mut self) -> Result<()> {
        let agent = self.stage.agent.process();
        if agent.try_wait()?.is_some() {
            bail!("{}; its log:\n{}", agent.describe(), agent.stderr());
        }
        self.observer.history().check()
    }

    fn tell(&mut self, text: impl Into<String>) -> Result<()> {
        let event = Event { at: self.elapsed(), text: text.into() };
        self.screen.tell(&event)?;
        self.events.push(event);
        Ok(())
    }

    fn picture(&self) -> Picture {
        let history = self.observer.history();
        let log = self.log.read();
        let now = Instant::now();
        let lately = |connection: &Connection| {
            connection.answer.is_some_and(|(_, at)| now.saturating_duration_since(at) < LATELY)
        };
        let observed = connections::parts(&connections::answered_by(&log, MEMBERS.len(), lately));
        let backends = (0..MEMBERS.len()).map(|member| BackendRow {
            health: worst_health(history.latest(), member),
            ring_share: ring_share(history.latest(), member),
            observed_share: observed[member],
            packets_per_second: history.rate(|seen| seen.packets(member)),
        });
        let services = (0..SERVICES.len()).map(|service| ServiceRow {
            usable: history.latest().map_or(0, |latest| usable(latest, service)),
            packets_per_second: history.rate(|seen| service_packets(seen, service)),
            tally: tally(&log, service, &history, self.outage.as_ref()),
        });
        Picture {
            elapsed: self.elapsed(),
            total: self.total,
            headline: self.act.headline(self.total),
            services: services.collect(),
            backends: backends.collect(),
            packets_per_second: history.rate(|seen| seen.forwarded),
            events: self.events.clone(),
        }
    }

    fn sum_up(&self, lasted: Duration) -> Result<Summary> {
        let history = self.observer.history();
        let log = self.log.read();
        let (Some(first), Some(last)) = (&self.first, history.latest()) else {
            bail!("the agent was never seen");
        };
        let outage = self.outage.as_ref();
        let mut summary = Summary::new(OutageSummary {
            backend: MEMBERS[VICTIM].name,
            noticed_after_seconds: self.noticed.map(seconds),
            traffic_for_seconds: self.traffic_after_stop(&history).map(seconds),
            back_after_seconds: self.back.map(seconds),
        });
        let mut tally = Tally::default();
        for connection in log.iter() {
            let verdict = judge(connection, &history.timelines[connection.service], outage);
            tally += &verdict;
            if let Verdict::Unexplained(why) = verdict {
                let opened = connection.opened.saturating_duration_since(self.started);
                let name = SERVICES[connection.service].name;
                summary.unexplained(format!("{name}, opened at {:.3} s: {why}", opened.as_secs_f64()));
            }
        }
        summary.seconds = seconds(lasted);
        summary.connections = tally.tried;
        summary.failed_connections = tally.explained();
        summary.taken_down_connections = tally.taken_down;
        summary.moved_connections = tally.moved;
        summary.unexplained_failures = tally.unexplained;
        summary.packets = last.forwarded - first.forwarded;
        summary.dropped_packets = last.dropped - first.dropped;

        let members = || 0..MEMBERS.len();
        let all_up = |connection: &Connection| match outage {
            None => true,
            Some(outage) => connection.opened < outage.from || self.is_back_at(connection.opened),
        };
        let observed = connections::answered_by(&log, MEMBERS.len(), all_up);
        let answered = connections::answered_by(&log, MEMBERS.len(), |_| true);
        let packets: Vec<u64> =
            members().map(|member| last.packets(member) - first.packets(member)).collect();
        let shares: Vec<f64> = members().map(|member| ring_share(Some(last), member)).collect();
        let healthy: Vec<bool> = members().map(|member| last.healthy(member)).collect();
        summary.backends =
            summary::backends(&shares, &connections::parts(&observed), &answered, &packets, &healthy);
        let of_service =
            |service| log.iter().filter(|connection| connection.service == service).count() as u64;
        let tried: Vec<u64> = (0..SERVICES.len()).map(of_service).collect();
        let packets: Vec<u64> = (0..SERVICES.len())
            .map(|service| service_packets(last, service) - service_packets(first, service))
            .collect();
        summary.services = summary::services(&tried, &packets);
        Ok(summary)
    }

    /// True after the backend was seen to be back.
    fn is_back_at(&self, time: Instant) -> bool {
        self.act == Act::Back && time >= self.act_began
    }

    /// From the stop of the server until its backend got its last packet before it came back.
    fn traffic_after_stop(&self, history: &History) -> Option<Duration> {
        let stopped = self.outage?.from;
        let last = history.last_packet_between(VICTIM, stopped, self.outage?.until?)?;
        Some(last - stopped)
    }
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// A backend's part of the rings, on average over the services.
fn ring_share(seen: Option<&Observation>, member: usize) -> f64 {
    let Some(seen) = seen else { return 0.0 };
    seen.of(member).map(|backend| backend.share).sum::<f64>() / SERVICES.len() as f64
}

/// The worst that the checks of any service say of a backend.
fn worst_health(seen: Option<&Observation>, member: usize) -> HealthState {
    let rank = |state: &HealthState| match state {
        HealthState::Unhealthy => 0,
        HealthState::Unknown => 1,
        HealthState::Disabled => 2,
        HealthState::Healthy => 3,
    };
    let states = seen.into_iter().flat_map(|seen| seen.of(member)).map(|backend| backend.health);
    states.min_by_key(rank).unwrap_or(HealthState::Unknown)
}

fn usable(seen: &Observation, service: usize) -> usize {
    seen.backends.get(service).map_or(0, |all| all.iter().filter(|backend| backend.slots > 0).count())
}

fn service_packets(seen: &Observation, service: usize) -> u64 {
    seen.backends.get(service).map_or(0, |all| all.iter().map(|backend| backend.packets).sum())
}

/// The connections of a service so far; those that cannot be judged yet count as served.
fn tally(log: &[Connection], service: usize, history: &History, outage: Option<&Outage>) -> Tally {
    let timeline = &history.timelines[service];
    let mut tally = Tally::default();
    for connection in log.iter().filter(|connection| connection.service == service) {
        let failed = connection.failure.is_some();
        let judged = failed && connection.ended.is_some_and(|ended| timeline.covers(ended));
        tally += &if judged { judge(connection, timeline, outage) } else { Verdict::Served };
    }
    tally
}
