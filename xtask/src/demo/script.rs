//! What happens when: one backend goes down and comes back, and each act ends when it is seen to have ended.
//!
//! Pure: it decides and finds the words, others do.

use std::time::Duration;

use super::cast::{self, MEMBERS, VICTIM};
use super::numbers::percent;

/// An act of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Everything is up.
    Calm,
    /// The server is stopped, and its backend still in the rings.
    Down,
    /// The backend is out of the rings.
    Out,
    /// The server runs again, and its backend is not yet in all rings.
    Returning,
    /// The backend is back.
    Back,
}

/// When acts begin that begin by the clock, as parts of the whole time.
const DOWN_AT: f64 = 0.40;
const UP_AT: f64 = 0.65;

/// When the server is stopped.
pub(super) fn down_at(total: Duration) -> Duration {
    total.mul_f64(DOWN_AT)
}

/// When it is started again.
pub(super) fn up_at(total: Duration) -> Duration {
    total.mul_f64(UP_AT)
}

/// What there is to see of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    /// Rings that hold it.
    pub rings: usize,
    /// It passes its checks and is in every ring.
    pub healthy: bool,
}

impl Act {
    /// The act that follows, if its time has come.
    pub(super) fn next(self, elapsed: Duration, total: Duration, sight: Sight) -> Option<Self> {
        match self {
            Self::Calm => (elapsed >= down_at(total)).then_some(Self::Down),
            Self::Down => (sight.rings == 0).then_some(Self::Out),
            Self::Out => (elapsed >= up_at(total)).then_some(Self::Returning),
            Self::Returning => sight.healthy.then_some(Self::Back),
            Self::Back => None,
        }
    }

    /// What is going on, in one line.
    pub(super) fn headline(self, total: Duration) -> String {
        let name = MEMBERS[VICTIM].name;
        let seconds = |time: Duration| format!("{:.0} s", time.as_secs_f64());
        match self {
            Self::Calm => {
                format!(
                    "everything is up; at {} the server of {name} will be stopped",
                    seconds(down_at(total))
                )
            }
            Self::Down => format!("{name} is down: its connections fail until its health checks notice"),
            Self::Out => format!(
                "{name} is out of the rings, the others carry its share; back up at {}",
                seconds(up_at(total))
            ),
            Self::Returning => format!("{name} runs again and has to pass two health checks"),
            Self::Back => format!("{name} takes its share again; traffic goes on until {}", seconds(total)),
        }
    }

    /// What to say as the act begins, so long after the one before began.
    pub(super) fn announcement(self, since: Duration) -> String {
        let name = MEMBERS[VICTIM].name;
        let share = percent(cast::weight_share(VICTIM));
        let after = format!("{:.1} s", since.as_secs_f64());
        match self {
            Self::Calm => "traffic starts".to_owned(),
            Self::Down => {
                format!("taking {name} down: its server stops, {share} of the connections are refused")
            }
            Self::Out => {
                format!(
                    "health checks noticed after {after}: {name} left the rings, its slots went to the others"
                )
            }
            Self::Returning => format!("starting the server of {name} again"),
            Self::Back => format!("back up after {after}: {name} is healthy and owns its {share} again"),
        }
    }
}

/// What to say when the backend has got its last packet, so long after its stop.
pub(super) fn quiet(after: Duration) -> String {
    let name = MEMBERS[VICTIM].name;
    format!("traffic has moved: {name} got its last packet {:.1} s after its stop", after.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_follow_the_clock_and_what_is_seen() {
        let total = Duration::from_secs(20);
        let next = |act: Act, seconds, rings, healthy| {
            act.next(Duration::from_secs(seconds), total, Sight { rings, healthy })
        };
        assert_eq!(next(Act::Calm, 7, 2, true), None);
        assert_eq!(next(Act::Calm, 8, 2, true), Some(Act::Down));
        assert_eq!(next(Act::Down, 19, 1, false), None, "it leaves when all rings have let it go");
        assert_eq!(next(Act::Down, 9, 0, false), Some(Act::Out));
        assert_eq!(next(Act::Out, 12, 0, false), None);
        assert_eq!(next(Act::Out, 13, 0, false), Some(Act::Returning));
        assert_eq!(next(Act::Returning, 14, 1, false), None);
        assert_eq!(next(Act::Returning, 14, 2, true), Some(Act::Back));
        assert_eq!(next(Act::Back, 99, 0, false), None);
    }
}
