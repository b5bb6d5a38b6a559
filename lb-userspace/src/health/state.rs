//! From a row of answers to a verdict: rise and fall.
//!
//! Pure: no clock, no I/O. It must never look at anything but the order of successes and failures.

use super::Health;

/// How many answers in a row change a verdict. Zero means one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes that make an unhealthy backend healthy.
    pub rise: u32,
    /// Failures that make a healthy backend unhealthy.
    pub fall: u32,
}

/// The verdict on one backend and what would change it.
///
/// The first answer ever decides at once, both ways: there is nothing yet that it could be a blip of. After that a
/// verdict changes only after `rise` or `fall` answers in a row against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    health: Health,
    successes: u32,
    failures: u32,
}

impl State {
    /// Of a backend nothing is known about.
    pub fn unknown() -> Self {
        Self::of(Health::Unknown)
    }

    /// Of a backend that is not to be asked.
    pub fn disabled() -> Self {
        Self::of(Health::Disabled)
    }

    /// Of a backend somebody else asked before us: their verdict holds until answers in a row say otherwise.
    pub fn adopt(healthy: bool) -> Self {
        Self::of(if healthy { Health::Healthy } else { Health::Unhealthy })
    }

    fn of(health: Health) -> Self {
        Self { health, successes: 0, failures: 0 }
    }

    /// The verdict.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Successes since the last failure.
    pub fn consecutive_successes(&self) -> u32 {
        self.successes
    }

    /// Failures since the last success.
    pub fn consecutive_failures(&self) -> u32 {
        self.failures
    }

    /// Takes one answer; returns the verdict before it if that changed.
    pub fn observe(&mut self, success: bool, thresholds: Thresholds) -> Option<Health> {
        if success {
            self.successes = self.successes.saturating_add(1);
            self.failures = 0;
        } else {
            self.failures = self.failures.saturating_add(1);
            self.successes = 0;
        }
        let before = self.health;
        self.health = match (before, success) {
            (Health::Disabled, _) => Health::Disabled,
            (Health::Unknown, true) => Health::Healthy,
            (Health::Unknown, false) => Health::Unhealthy,
            (Health::Healthy, false) if self.failures >= thresholds.fall => Health::Unhealthy,
            (Health::Unhealthy, true) if self.successes >= thresholds.rise => Health::Healthy,
            (Health::Healthy | Health::Unhealthy, _) => before,
        };
        (self.health != before).then_some(before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO_THREE: Thresholds = Thresholds { rise: 2, fall: 3 };

    fn after(start: State, answers: &[bool], thresholds: Thresholds) -> State {
        let mut state = start;
        for answer in answers {
            state.observe(*answer, thresholds);
        }
        state
    }

    #[test]
    fn the_first_answer_decides() {
        for (answer, health) in [(true, Health::Healthy), (false, Health::Unhealthy)] {
            let mut state = State::unknown();
            assert_eq!(state.observe(answer, TWO_THREE), Some(Health::Unknown));
            assert_eq!(state.health(), health);
        }
    }

    #[test]
    fn only_a_row_of_answers_changes_a_verdict() {
        let cases: [(State, &[bool], Health); 6] = [
            (State::adopt(true), &[false, false], Health::Healthy),
            (State::adopt(true), &[false, false, true, false, false], Health::Healthy),
            (State::adopt(true), &[false, false, false], Health::Unhealthy),
            (State::adopt(false), &[true], Health::Unhealthy),
            (State::adopt(false), &[true, false, true], Health::Unhealthy),
            (State::adopt(false), &[true, true], Health::Healthy),
        ];
        for (start, answers, health) in cases {
            assert_eq!(after(start, answers, TWO_THREE).health(), health, "{start:?} {answers:?}");
        }
    }

    #[test]
    fn a_disabled_state_never_changes() {
        let mut state = State::disabled();
        for answer in [false, false, false, true] {
            assert_eq!(state.observe(answer, TWO_THREE), None);
        }
        assert_eq!(state.health(), Health::Disabled);
    }

    #[test]
    fn counters_do_not_overflow() {
        let mut state = State { failures: u32::MAX, ..State::adopt(false) };
        state.observe(false, TWO_THREE);
        assert_eq!(state.consecutive_failures(), u32::MAX);
    }

    /// The same rule read off the whole history, as a person would: the last run of equal answers, of sufficient
    /// length, since when the verdict is what that run says.
    fn model(start: Health, history: &[bool], thresholds: Thresholds) -> Health {
        let mut health = start;
        for end in 1..=history.len() {
            let seen = &history[..end];
            let last = seen[end - 1];
            let run = seen.iter().rev().take_while(|answer| **answer == last).count();
            let needed = if last { thresholds.rise } else { thresholds.fall }.max(1) as usize;
            if health == Health::Unknown || run >= needed {
                health = if last { Health::Healthy } else { Health::Unhealthy };
            }
        }
        health
    }

    proptest! {
        #[test]
        fn agrees_with_the_model(
            start in prop_oneof![Just(None), Just(Some(true)), Just(Some(false))],
            history in prop::collection::vec(any::<bool>(), 0..60),
            rise in 0_u32..6,
            fall in 0_u32..6,
        ) {
            let thresholds = Thresholds { rise, fall };
            let mut state = start.map_or_else(State::unknown, State::adopt);
            let first = state.health();
            for end in 0..=history.len() {
                let seen = &history[..end];
                if let Some(answer) = seen.last() {
                    let before = state.health();
                    let told = state.observe(*answer, thresholds);
                    prop_assert_eq!(told, (state.health() != before).then_some(before));
                }
                prop_assert_eq!(state.health(), model(first, seen, thresholds));
                let run = seen.iter().rev().take_while(|answer| Some(*answer) == seen.last()).count() as u32;
                let (successes, failures) =
                    if seen.last() == Some(&true) { (run, 0) } else { (0, run) };
                prop_assert_eq!(state.consecutive_successes(), successes);
                prop_assert_eq!(state.consecutive_failures(), failures);
            }
        }
    }
}
