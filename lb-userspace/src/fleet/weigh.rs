//! Who takes packets: configured weight, administrative state, health and reachability make the weight in the ring.

use crate::{
    api::types::HealthState,
    config::{Admin, AllDown, Backend},
};

/// What is known of a backend besides its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What its checks say.
    pub health: HealthState,
    /// Whether a way to it was ever found.
    pub reachable: bool,
}

/// The weights of a service's backends, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// Weight in the ring; 0 takes nothing.
    pub weights: Vec<u16>,
    /// True when none is usable and all take packets nevertheless.
    pub fail_open: bool,
}

impl Weights {
    /// Backends that take packets because they are fit to.
    pub fn usable(&self) -> usize {
        if self.fail_open { 0 } else { self.weights.iter().filter(|&&weight| weight > 0).count() }
    }
}

/// Weighs the backends of a service.
///
/// A backend takes packets when it is ready, its last word is good (or it is not checked) and it can be reached. When
/// none is, the service's policy decides, but only once every one that could be was checked: a start is not an outage. A
/// service that `was_open` stays so when a backend joins that nobody has checked yet.
pub fn weigh(policy: AllDown, backends: &[(&Backend, Known)], was_open: bool) -> Weights {
    let ready = |backend: &Backend| backend.admin == Admin::Ready && backend.weight > 0;
    let fit = |known: &Known| matches!(known.health, HealthState::Healthy | HealthState::Disabled);
    let checked = |known: &Known| known.health != HealthState::Unknown;
    let with = |takes: &dyn Fn(&Known) -> bool| -> Option<Vec<u16>> {
        let takes = |backend: &Backend, known: &Known| ready(backend) && takes(known);
        let weights: Vec<u16> = backends
            .iter()
            .map(|(backend, known)| if takes(backend, known) { backend.weight } else { 0 })
            .collect();
        weights.iter().any(|&weight| weight > 0).then_some(weights)
    };
    if let Some(weights) = with(&|known| known.reachable && fit(known)) {
        return Weights { weights, fail_open: false };
    }
    let pending = backends.iter().any(|(backend, known)| ready(backend) && !checked(known));
    if policy == AllDown::Open && (was_open || !pending) {
        // Those that there is no way to would only swallow their share.
        let open = with(&|known| known.reachable && checked(known)).or_else(|| with(&checked));
        if let Some(weights) = open {
            return Weights { weights, fail_open: true };
        }
    }
    Weights { weights: vec![0; backends.len()], fail_open: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weigh_after(
        policy: AllDown,
        states: &[(u16, Admin, HealthState, bool)],
        was_open: bool,
    ) -> (Vec<u16>, bool) {
        let backends: Vec<Backend> = states
            .iter()
            .map(|&(weight, admin, ..)| Backend { weight, admin, ..Backend::new("b", [10, 0, 0, 1].into()) })
            .collect();
        let known: Vec<_> = backends
            .iter()
            .zip(states)
            .map(|(backend, &(_, _, health, reachable))| (backend, Known { health, reachable }))
            .collect();
        let weights = weigh(policy, &known, was_open);
        (weights.weights, weights.fail_open)
    }

    fn weigh_all(policy: AllDown, states: &[(u16, Admin, HealthState, bool)]) -> (Vec<u16>, bool) {
        weigh_after(policy, states, false)
    }

    use Admin::{Drain, Maint, Ready};
    use HealthState::{Disabled, Healthy, Unhealthy, Unknown};

    #[test]
    fn only_ready_fit_and_reachable_backends_take_packets() {
        let states = [
            (100, Ready, Healthy, true),
            (50, Ready, Disabled, true),
            (100, Drain, Healthy, true),
            (100, Maint, Healthy, true),
            (100, Ready, Unhealthy, true),
            (100, Ready, Unknown, true),
            (100, Ready, Healthy, false),
            (0, Ready, Healthy, true),
        ];
        assert_eq!(weigh_all(AllDown::Open, &states), (vec![100, 50, 0, 0, 0, 0, 0, 0], false));
    }

    #[test]
    fn when_all_fail_the_policy_decides() {
        let states =
            [(100, Ready, Unhealthy, true), (50, Ready, Healthy, false), (100, Drain, Healthy, true)];
        assert_eq!(
            weigh_all(AllDown::Open, &states),
            (vec![100, 0, 0], true),
            "a share for nobody helps nobody"
        );
        assert_eq!(weigh_all(AllDown::Drop, &states), (vec![0, 0, 0], false));
    }

    #[test]
    fn before_the_first_checks_nobody_takes_packets() {
        let states = [(100, Ready, Unhealthy, true), (50, Ready, Unknown, true)];
        assert_eq!(weigh_all(AllDown::Open, &states), (vec![0, 0], false));
        assert_eq!(weigh_all(AllDown::Open, &[(100, Drain, Healthy, true)]), (vec![0], false));
        assert_eq!(weigh_all(AllDown::Open, &[]), (vec![], false));
    }

    #[test]
    fn a_backend_that_joins_does_not_end_failing_open() {
        let states = [(100, Ready, Unhealthy, true), (50, Ready, Unknown, true)];
        assert_eq!(weigh_after(AllDown::Open, &states, true), (vec![100, 0], true));
        let joined = [(100, Ready, Unhealthy, true), (50, Ready, Healthy, true)];
        assert_eq!(weigh_after(AllDown::Open, &joined, true), (vec![0, 50], false));
        assert_eq!(weigh_after(AllDown::Drop, &states, true), (vec![0, 0], false));
    }

    #[test]
    fn open_to_all_where_no_way_is_known_to_any() {
        let states = [(100, Ready, Unhealthy, false), (50, Ready, Healthy, false)];
        assert_eq!(weigh_all(AllDown::Open, &states), (vec![100, 50], true));
    }
}
