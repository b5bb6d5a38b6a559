//! The monitor's bookkeeping, with a scripted prober and a clock that only moves when everybody waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lb_userspace::health::{
    Failure, Health, HealthMonitor, Probe, ProbeKind, Prober, Settings, Status, Target, TargetId, Thresholds,
    Transition,
};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::sleep;

const INTERVAL: Duration = Duration::from_secs(2);
/// More than an interval with its jitter.
const ROUND: Duration = Duration::from_millis(2300);

/// What a scripted backend does when asked.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Ok,
    Fail(Failure),
    After(Duration),
    Never,
    Panic,
}

/// Answers by port; success by default.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    answers: HashMap<u16, Answer>,
    asked: HashMap<u16, u32>,
    running: usize,
    most_running: usize,
}

impl Script {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no prober panics while it holds this")
    }

    fn set(&self, port: u16, answer: Answer) {
        self.inner().answers.insert(port, answer);
    }

    fn asked(&self, port: u16) -> u32 {
        self.inner().asked.get(&port).copied().unwrap_or(0)
    }

    fn running(&self) -> usize {
        self.inner().running
    }
}

/// Counts a probe as running until it ends or is dropped.
struct Running(Script);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.inner().running -= 1;
    }
}

impl Prober for Script {
    async fn probe(&self, probe: Probe) -> Result<(), Failure> {
        let port = probe.address.port();
        let (answer, _running) = {
            let mut inner = self.inner();
            *inner.asked.entry(port).or_default() += 1;
            inner.running += 1;
            inner.most_running = inner.most_running.max(inner.running);
            (inner.answers.get(&port).cloned().unwrap_or(Answer::Ok), Running(self.clone()))
        };
        match answer {
            Answer::Ok => Ok(()),
            Answer::Fail(failure) => Err(failure),
            Answer::After(time) => {
                sleep(time).await;
                Ok(())
            }
            Answer::Never => std::future::pending().await,
            Answer::Panic => panic!("scripted"),
        }
    }
}

fn id(port: u16) -> TargetId {
    TargetId { service: "web".into(), backend: format!("b{port}") }
}

fn target(port: u16) -> Target {
    let probe = Probe {
        address: ([192, 0, 2, 1], port).into(),
        kind: ProbeKind::Tcp,
        interval: INTERVAL,
        timeout: Duration::from_secs(1),
        thresholds: Thresholds { rise: 2, fall: 3 },
    };
    Target { id: id(port), probe, adopt: None }
}

fn start(concurrency: usize) -> (HealthMonitor, UnboundedReceiver<Transition>, Script) {
    let script = Script::default();
    let (monitor, transitions) =
        HealthMonitor::spawn_with(Settings { concurrency, seed: 42 }, script.clone());
    (monitor, transitions, script)
}

fn health(monitor: &HealthMonitor, port: u16) -> Health {
    status(monitor, port).health
}

fn status(monitor: &HealthMonitor, port: u16) -> Status {
    monitor.status(&id(port)).expect("a known target")
}

fn told(transitions: &mut UnboundedReceiver<Transition>) -> Vec<(TargetId, Health, Health)> {
    let mut all = Vec::new();
    while let Ok(Transition { id, from, to, .. }) = transitions.try_recv() {
        all.push((id, from, to));
    }
    all
}

#[tokio::test(start_paused = true)]
async fn new_targets_are_asked_soon_and_then_at_their_interval() {
    let (monitor, mut transitions, script) = start(256);
    let mut long = target(2);
    long.probe.interval = Duration::from_hours(1);
    monitor.set_targets(vec![target(1), long]).await;
    assert_eq!((health(&monitor, 1), health(&monitor, 2)), (Health::Unknown, Health::Unknown));
    sleep(Duration::from_millis(1001)).await;
    assert_eq!((health(&monitor, 1), health(&monitor, 2)), (Health::Healthy, Health::Healthy));
    let mut changes = told(&mut transitions);
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        changes,
        [(id(1), Health::Unknown, Health::Healthy), (id(2), Health::Unknown, Health::Healthy)]
    );
    sleep(INTERVAL * 100).await;
    assert!((91..=112).contains(&script.asked(1)), "{}", script.asked(1));
    assert_eq!(script.asked(2), 1);
    assert_eq!(told(&mut transitions), []);
}

#[tokio::test(start_paused = true)]
async fn verdicts_follow_rise_and_fall_with_their_reason() {
    let (monitor, mut transitions, script) = start(256);
    monitor.set_targets(vec![target(1)]).await;
    sleep(ROUND).await;
    told(&mut transitions);
    script.set(1, Answer::Fail(Failure::Refused));
    let asked = script.asked(1);
    let transition = transitions.recv().await.expect("a transition");
    assert_eq!(script.asked(1) - asked, 3, "as many failures as fall says");
    assert_eq!(
        transition,
        Transition {
            id: id(1),
            from: Health::Healthy,
            to: Health::Unhealthy,
            reason: Some(Failure::Refused)
        }
    );
    let now = status(&monitor, 1);
    assert_eq!((now.health, now.consecutive_failures, now.consecutive_successes), (Health::Unhealthy, 3, 0));
    assert_eq!(now.last.expect("a result").result, Err(Failure::Refused));

    script.set(1, Answer::Ok);
    let asked = script.asked(1);
    let transition = transitions.recv().await.expect("a transition");
    assert_eq!(script.asked(1) - asked, 2, "as many successes as rise says");
    assert_eq!((transition.to, transition.reason), (Health::Healthy, None));
}

#[tokio::test(start_paused = true)]
async fn what_this_node_cannot_ask_changes_no_verdict() {
    let (monitor, mut transitions, script) = start(256);
    monitor.set_targets(vec![target(1), target(2)]).await;
    script.set(2, Answer::Panic);
    sleep(ROUND).await;
    told(&mut transitions);
    script.set(1, Answer::Fail(Failure::Local("too many open files".into())));
    sleep(ROUND * 10).await;
    assert_eq!(health(&monitor, 1), Health::Healthy);
    assert_eq!(health(&monitor, 2), Health::Unknown);
    assert_eq!(told(&mut transitions), []);
    let last = status(&monitor, 1).last.expect("a result");
    assert!(last.result.is_err(), "the trouble is shown all the same");
    assert!(status(&monitor, 2).probes > 3, "a panic does not end the probing");
}

#[tokio::test(start_paused = true)]
async fn unchanged_targets_keep_everything_when_others_change() {
    let (monitor, mut transitions, script) = start(256);
    script.set(1, Answer::Fail(Failure::Refused));
    monitor.set_targets(vec![target(1), target(2)]).await;
    sleep(ROUND).await;
    let before = status(&monitor, 1);
    assert_eq!(before.health, Health::Unhealthy);
    told(&mut transitions);

    // Setting the same again and again must not keep a target from being asked.
    for round in 0..30 {
        sleep(Duration::from_millis(100)).await;
        let asked = script.asked(1);
        monitor.set_targets(vec![target(1), target(100 + round)]).await;
        assert_eq!(script.asked(1), asked);
    }
    let after = status(&monitor, 1);
    assert!(after.probes > before.probes, "still asked");
    assert_eq!((after.health, after.since), (before.health, before.since));
    assert!(told(&mut transitions).iter().all(|(of, ..)| *of != id(1)));
    assert_eq!(monitor.status(&id(2)), None);
    assert_eq!(monitor.snapshot().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn removed_targets_are_not_asked_any_more() {
    let (monitor, mut transitions, script) = start(256);
    script.set(2, Answer::Never);
    monitor.set_targets(vec![target(1), target(2)]).await;
    sleep(ROUND).await;
    assert_eq!(script.running(), 1, "one hangs");
    told(&mut transitions);
    monitor.set_targets(Vec::new()).await;
    let asked = (script.asked(1), script.asked(2));
    sleep(ROUND * 10).await;
    assert_eq!(script.running(), 0, "the hanging one was ended");
    assert_eq!((script.asked(1), script.asked(2)), asked);
    assert!(monitor.snapshot().is_empty());
    assert_eq!(told(&mut transitions), []);

    // Coming back, it starts afresh.
    monitor.set_targets(vec![target(1)]).await;
    assert_eq!((health(&monitor, 1), status(&monitor, 1).probes), (Health::Unknown, 0));
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_to_an_old_question_is_not_believed() {
    let (monitor, _transitions, script) = start(256);
    script.set(1, Answer::After(Duration::from_secs(5)));
    monitor.set_targets(vec![target(1)]).await;
    sleep(ROUND).await;
    let mut moved = target(1);
    moved.probe.address.set_port(2);
    script.set(2, Answer::Fail(Failure::Refused));
    monitor.set_targets(vec![moved]).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(health(&monitor, 1), Health::Unhealthy);
    assert_eq!(script.asked(1), 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_address_keeps_its_verdict_through_other_changes() {
    let (monitor, mut transitions, _script) = start(256);
    monitor.set_targets(vec![target(1)]).await;
    sleep(ROUND).await;
    told(&mut transitions);
    let probes = status(&monitor, 1).probes;

    let mut changed = target(1);
    changed.probe.interval = INTERVAL * 2;
    changed.probe.thresholds.fall = 5;
    monitor.set_targets(vec![changed.clone()]).await;
    let kept = status(&monitor, 1);
    assert_eq!((kept.health, kept.probes, kept.consecutive_successes), (Health::Healthy, probes, 0));
    assert_eq!(told(&mut transitions), []);

    changed.probe.address.set_port(9);
    monitor.set_targets(vec![changed]).await;
    assert_eq!(told(&mut transitions), [(id(1), Health::Healthy, Health::Unknown)]);
    assert_eq!(status(&monitor, 1).last, None, "what another address answered is forgotten");
}

#[tokio::test(start_paused = true)]
async fn disabled_targets_are_usable_and_never_asked() {
    let (monitor, mut transitions, script) = start(256);
    let mut silent = target(1);
    silent.probe.kind = ProbeKind::None;
    monitor.set_targets(vec![silent.clone()]).await;
    sleep(ROUND * 5).await;
    assert_eq!((health(&monitor, 1), script.asked(1)), (Health::Disabled, 0));
    assert!(health(&monitor, 1).is_usable());
    assert_eq!(told(&mut transitions), []);

    // Asked from now on, it stays in use until it has failed as often as any other.
    script.set(1, Answer::Fail(Failure::Refused));
    monitor.set_targets(vec![target(1)]).await;
    assert_eq!(told(&mut transitions), [(id(1), Health::Disabled, Health::Healthy)]);
    sleep(ROUND * 4).await;
    assert_eq!(told(&mut transitions), [(id(1), Health::Healthy, Health::Unhealthy)]);

    monitor.set_targets(vec![silent]).await;
    assert_eq!(told(&mut transitions), [(id(1), Health::Unhealthy, Health::Disabled)]);
}

#[tokio::test(start_paused = true)]
async fn adopted_verdicts_hold_until_answers_in_a_row_say_otherwise() {
    let (monitor, mut transitions, script) = start(256);
    for port in [1, 2] {
        script.set(port, Answer::Fail(Failure::Refused));
    }
    let adopt = |port, healthy| Target { adopt: Some(healthy), ..target(port) };
    monitor.set_targets(vec![adopt(1, true), adopt(2, false), adopt(3, true), adopt(4, false)]).await;
    for (port, expected) in
        [(1, Health::Healthy), (2, Health::Unhealthy), (3, Health::Healthy), (4, Health::Unhealthy)]
    {
        assert_eq!(health(&monitor, port), expected);
    }
    sleep(Duration::from_millis(1001)).await;
    assert_eq!(told(&mut transitions), [], "one answer is not enough");
    sleep(ROUND * 3).await;
    let mut changes = told(&mut transitions);
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        changes,
        [(id(1), Health::Healthy, Health::Unhealthy), (id(4), Health::Unhealthy, Health::Healthy)]
    );
}

#[tokio::test(start_paused = true)]
async fn never_more_probes_at_once_than_allowed() {
    let (monitor, _transitions, script) = start(8);
    for port in 1..=1000 {
        script.set(port, Answer::After(Duration::from_millis(30)));
    }
    monitor.set_targets((1..=1000).map(target).collect()).await;
    sleep(Duration::from_mins(1)).await;
    let most = script.inner().most_running;
    assert_eq!(most, 8);
    let counts: Vec<u32> = (1..=1000).map(|port| script.asked(port)).collect();
    // The bound is well below what the intervals ask for, so all must wait, and equally.
    let (least, greatest) = (counts.iter().min().copied(), counts.iter().max().copied());
    assert!(least >= Some(10), "{least:?}");
    assert!(greatest <= least.map(|least| least + 3), "{least:?} to {greatest:?}");
    assert!(monitor.snapshot().values().all(|status| status.health == Health::Healthy));
}

#[tokio::test(start_paused = true)]
async fn slow_targets_do_not_delay_others() {
    let (monitor, _transitions, script) = start(256);
    for port in 1..=100 {
        script.set(port, Answer::Never);
    }
    monitor.set_targets((1..=200).map(target).collect()).await;
    sleep(ROUND).await;
    assert_eq!(script.running(), 100);
    assert!((101..=200).all(|port| health(&monitor, port) == Health::Healthy));
    assert!((1..=100).all(|port| script.asked(port) == 1), "never asked again while it is still being asked");
}

#[tokio::test(start_paused = true)]
async fn shutting_down_and_dropping_end_all_probes() {
    for gracefully in [true, false] {
        let (monitor, mut transitions, script) = start(256);
        script.set(1, Answer::Never);
        monitor.set_targets(vec![target(1), target(2)]).await;
        sleep(ROUND).await;
        assert_eq!(script.running(), 1);
        if gracefully {
            monitor.shutdown().await;
        } else {
            drop(monitor);
            // Gone when the last sender is.
            while transitions.recv().await.is_some() {}
            tokio::task::yield_now().await;
        }
        let asked = script.asked(2);
        sleep(ROUND * 5).await;
        assert_eq!((script.running(), script.asked(2)), (0, asked));
    }
}
