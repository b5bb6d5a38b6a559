//! What became of a connection, and whether that is as it must be. Pure; the one place where failures are explained.
//!
//! A load balancer that keeps no flow state breaks two kinds of connections, and none besides: those to a backend that
//! is down, and those that are open while their slot changes hands.

use std::ops::AddAssign;
use std::time::Instant;

use super::{connections::Connection, timeline::Timeline};

/// A time during which a backend's server did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    /// Whose.
    pub member: usize,
    /// It ran before this.
    pub from: Instant,
    /// It runs again after this; `None`: it is still down.
    pub until: Option<Instant>,
}

impl Outage {
    fn overlaps(&self, from: Instant, to: Instant) -> bool {
        self.from <= to && self.until.is_none_or(|until| until >= from)
    }
}

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It was answered by the backend that its slot belonged to.
    Served,
    /// It was given up by the client itself before an answer.
    Abandoned,
    /// It failed because its backend was down.
    TakenDown,
    /// It failed because its slot changed hands while it was open.
    Moved,
    /// It should have been served.
    Unexplained(String),
}

/// Judges a connection that has ended, or that is answered and still open.
pub(super) fn judge(connection: &Connection, timeline: &Timeline, outage: Option<&Outage>) -> Verdict {
    let Connection { slot, opened, .. } = *connection;
    if let Some((member, at)) = connection.answer {
        let owners = timeline.owners(slot, opened, at);
        if !owners.contains(&member) {
            return Verdict::Unexplained(format!(
                "answered by {}, but its slot {slot} belonged to {}",
                timeline.names([member]),
                timeline.names(owners)
            ));
        }
    }
    let Some(failure) = &connection.failure else {
        return if connection.answer.is_some() { Verdict::Served } else { Verdict::Abandoned };
    };
    let ended = connection.ended.unwrap_or(opened);
    let owners = timeline.owners(slot, opened, ended);
    let went_to = |member| match connection.answer {
        Some((answering, _)) => answering == member,
        None => owners.contains(&member),
    };
    if outage.is_some_and(|outage| went_to(outage.member) && outage.overlaps(opened, ended)) {
        Verdict::TakenDown
    } else if owners.len() > 1 {
        Verdict::Moved
    } else {
        Verdict::Unexplained(format!("to {}: {failure}", timeline.names(owners)))
    }
}

/// How many connections met which fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Tried at all.
    pub tried: u64,
    /// Failed because their backend was down.
    pub taken_down: u64,
    /// Failed because their slot changed hands.
    pub moved: u64,
    /// Failed without a reason that is known.
    pub unexplained: u64,
}

impl Tally {
    /// Failed for one of the two reasons that there may be.
    pub(super) fn explained(&self) -> u64 {
        self.taken_down + self.moved
    }

    /// Failed at all.
    pub(super) fn failed(&self) -> u64 {
        self.explained() + self.unexplained
    }
}

impl AddAssign<&Verdict> for Tally {
    fn add_assign(&mut self, verdict: &Verdict) {
        self.tried += 1;
        match verdict {
            Verdict::Served | Verdict::Abandoned => {}
            Verdict::TakenDown => self.taken_down += 1,
            Verdict::Moved => self.moved += 1,
            Verdict::Unexplained(_) => self.unexplained += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::timeline::tests::{slots, three};
    use super::*;

    /// Backend 2 stops at 10 s, leaves the ring around 12 s, runs again at 20 s and is back around 22 s.
    struct Scene {
        start: Instant,
        timeline: Timeline,
        outage: Outage,
    }

    impl Scene {
        fn new() -> Self {
            let start = Instant::now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let mut timeline = three();
            for (second, third) in [(0, true), (11, true), (12, false), (21, false), (22, true), (40, true)] {
                let asked = at(second);
                timeline.note(asked, asked + Duration::from_millis(1), &[true, true, third]).unwrap();
            }
            Self { start, timeline, outage: Outage { member: 2, from: at(10), until: Some(at(20)) } }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn owner(&self, slot: u32, second: u64) -> usize {
            *self.timeline.owners(slot, self.at(second), self.at(second)).first().unwrap()
        }

        /// Judges a connection that failed after having been answered by the owner of its slot, or by nobody.
        fn failed(&self, slot: u32, opened: u64, ended: u64, answered: bool) -> Verdict {
            let opened_at = self.at(opened);
            let connection = Connection {
                service: 0,
                slot,
                opened: opened_at,
                answer: answered.then(|| (self.owner(slot, opened), opened_at)),
                ended: Some(self.at(ended)),
                failure: Some("connection reset".into()),
            };
            judge(&connection, &self.timeline, Some(&self.outage))
        }
    }

    #[test]
    fn failures_are_explained_by_the_outage_or_by_a_move_or_not_at_all() {
        let scene = Scene::new();
        let [victims, collateral, settled] = slots();
        for (slot, opened, ended, answered, expected) in [
            (victims, 10, 10, false, Verdict::TakenDown),
            (victims, 5, 10, true, Verdict::TakenDown),
            // Nobody was down any more: it was with another backend and went home.
            (victims, 15, 22, true, Verdict::Moved),
            (collateral, 5, 12, true, Verdict::Moved),
            (collateral, 15, 22, true, Verdict::Moved),
        ] {
            let verdict = scene.failed(slot, opened, ended, answered);
            assert_eq!(verdict, expected, "slot {slot}, {opened} s to {ended} s");
        }
        for (slot, opened, ended) in [(victims, 5, 6), (victims, 15, 16), (victims, 30, 31), (settled, 5, 35)]
        {
            for answered in [true, false] {
                let verdict = scene.failed(slot, opened, ended, answered);
                assert!(matches!(verdict, Verdict::Unexplained(_)), "{verdict:?}, {opened} s to {ended} s");
            }
        }
    }

    #[test]
    fn an_answer_must_come_from_the_slots_owner() {
        let scene = Scene::new();
        let [_, _, settled] = slots();
        let opened = scene.at(5);
        let mut connection =
            Connection { service: 0, slot: settled, opened, answer: None, ended: None, failure: None };
        assert_eq!(judge(&connection, &scene.timeline, None), Verdict::Abandoned);
        let owner = scene.owner(settled, 5);
        connection.answer = Some((owner, opened));
        assert_eq!(judge(&connection, &scene.timeline, None), Verdict::Served);
        connection.answer = Some(((owner + 1) % 3, opened));
        assert!(matches!(judge(&connection, &scene.timeline, None), Verdict::Unexplained(_)));
    }

    #[test]
    fn verdicts_add_up() {
        let mut tally = Tally::default();
        let unexplained = Verdict::Unexplained("why".into());
        for verdict in [Verdict::Served, Verdict::TakenDown, Verdict::Moved, unexplained, Verdict::Abandoned]
        {
            tally += &verdict;
        }
        assert_eq!(tally, Tally { tried: 5, taken_down: 1, moved: 1, unexplained: 1 });
        assert_eq!((tally.explained(), tally.failed()), (2, 3));
    }
}
