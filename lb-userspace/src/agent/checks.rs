//! The health monitor as the agent sees it: targets from the configuration, states by name.

use std::{collections::HashMap, net::SocketAddr};

use crate::{
    api::types::HealthState,
    config::{Admin, Config, HealthProbe},
    health::{
        Health, HealthMonitor, HttpProbe, Probe, ProbeKind, Settings, Status, Target, TargetId, Thresholds,
        Transition,
    },
};

/// The monitor and its last words.
pub(super) struct Checks {
    monitor: HealthMonitor,
    states: HashMap<TargetId, HealthState>,
    /// Words taken from elsewhere for backends that are not watched yet.
    adopted: Verdicts,
}

/// What is known of backends, by service and name: true is healthy.
pub(super) type Verdicts = HashMap<(String, String), bool>;

impl Checks {
    /// Starts the monitor. What is `adopted` holds until the backend's own checks say otherwise.
    pub(super) fn start(
        adopted: Verdicts,
    ) -> anyhow::Result<(Self, tokio::sync::mpsc::UnboundedReceiver<Transition>)> {
        // Another seed on every node and at every start, or a fleet of balancers would ask in step.
        let mut seed = [0; 8];
        getrandom::fill(&mut seed)
            .map_err(|error| anyhow::anyhow!("drawing a seed for health checks: {error}"))?;
        let (monitor, transitions) = HealthMonitor::spawn(Settings::with_seed(u64::from_ne_bytes(seed)));
        Ok((Self { monitor, states: HashMap::new(), adopted }, transitions))
    }

    /// What the checks found of the backends that had a verdict.
    pub(super) fn verdicts(&self) -> Verdicts {
        let known = self.states.iter().filter_map(|(id, state)| match state {
            HealthState::Healthy => Some((id, true)),
            HealthState::Unhealthy => Some((id, false)),
            HealthState::Unknown | HealthState::Disabled => None,
        });
        known.map(|(id, healthy)| ((id.service.clone(), id.backend.clone()), healthy)).collect()
    }

    /// Takes somebody's word for those that are not watched at the moment.
    pub(super) fn adopt(&mut self, verdicts: Verdicts) {
        self.adopted = verdicts;
    }

    /// Watches exactly the backends of `config`; those that are watched already keep their state.
    pub(super) async fn set_targets(&mut self, config: &Config) {
        let mut targets = Vec::with_capacity(config.backend_count());
        for service in &config.services {
            let check = service.health(&config.health);
            // Somebody works on a backend in maintenance: its checks would only cry wolf, and when it comes back what
            // was known of it is worth nothing.
            for backend in service.backends.iter().filter(|backend| backend.admin != Admin::Maint) {
                let (kind, port) = match &check.probe {
                    HealthProbe::None => (ProbeKind::None, 0),
                    HealthProbe::Tcp { port } => (ProbeKind::Tcp, *port),
                    HealthProbe::Http { port, path, status, body, host, max_body_bytes } => {
                        let probe = HttpProbe {
                            path: path.clone(),
                            host: host.clone(),
                            statuses: status.clone(),
                            body: body.clone(),
                            max_body_bytes: *max_body_bytes as usize,
                        };
                        (ProbeKind::Http(probe), *port)
                    }
                };
                let adopted = self.adopted.remove(&(service.name.clone(), backend.name.clone()));
                targets.push(Target {
                    id: TargetId { service: service.name.clone(), backend: backend.name.clone() },
                    probe: Probe {
                        address: SocketAddr::new(backend.address, port),
                        kind,
                        interval: check.interval,
                        timeout: check.timeout,
                        thresholds: Thresholds { rise: check.rise, fall: check.fall },
                    },
                    adopt: adopted,
                });
            }
        }
        self.monitor.set_targets(targets).await;
        self.states =
            self.monitor.snapshot().into_iter().map(|(id, status)| (id, state_of(status.health))).collect();
    }

    /// Takes note of a transition.
    pub(super) fn note(&mut self, transition: &Transition) {
        if let Some(state) = self.states.get_mut(&transition.id) {
            *state = state_of(transition.to);
        }
    }

    /// What is known of a backend.
    pub(super) fn state(&self, service: &str, backend: &str) -> HealthState {
        let id = TargetId { service: service.to_owned(), backend: backend.to_owned() };
        self.states.get(&id).copied().unwrap_or(HealthState::Unknown)
    }

    /// Everything that the monitor knows.
    pub(super) fn statuses(&self) -> HashMap<TargetId, Status> {
        self.monitor.snapshot()
    }
}

const fn state_of(health: Health) -> HealthState {
    match health {
        Health::Unknown => HealthState::Unknown,
        Health::Healthy => HealthState::Healthy,
        Health::Unhealthy => HealthState::Unhealthy,
        Health::Disabled => HealthState::Disabled,
    }
}
