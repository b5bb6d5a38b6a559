//! Changes of the running configuration: worked out, written, and taken back where they fail.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use lb_common::{node::Node, service::ServiceKey};

use super::{
    STATE_FILE,
    core::{Agent, Computed, FileStatus, now},
    state::State,
};
use crate::{
    api::{
        ApiError, Change, ErrorKind,
        types::{ApplyResult, MovedSlots, SchemaVersion},
    },
    config::{Config, ConfigDiff, Service},
    dataplane::{
        apply::ServiceOrder,
        plan::{self, Plan},
    },
    fleet::{
        ids::{Ids, Released},
        image,
    },
};

/// A change, worked out but not made.
struct Draft {
    config: Config,
    ids: Ids,
    released: Released,
    computed: Vec<(String, Computed)>,
    removals: Vec<ServiceKey>,
}

fn kernel(error: &anyhow::Error) -> ApiError {
    ApiError::kernel(format!("{error:#}"), "")
}

/// What a plan does to flows, if it does anything.
fn moved_slots(service: &str, plan: Plan) -> Option<MovedSlots> {
    (plan.moved_slots > 0).then(|| MovedSlots {
        service: service.to_owned(),
        moved: plan.moved_slots,
        total: plan.total_slots,
    })
}

impl Agent {
    pub(super) fn check_room(&self, config: &Config) -> Result<()> {
        let size = |service: &Service| (service.backends.len() as u64, image::ring_slots(service).into());
        self.plane.check_room(&config.services.iter().map(size).collect::<Vec<_>>())
    }

    /// Works out what a change to `config` takes.
    fn draft(&self, config: Config) -> Result<Draft> {
        let (ids, released) = self.ids.update(&config)?;
        self.check_room(&config)?;
        let everything = config.node != self.running.node;
        let computed = self.compute_all(&config, &ids, |service| {
            everything || self.running.service(&service.name) != Some(service)
        })?;
        let removals = self.removals(&config);
        Ok(Draft { config, ids, released, computed, removals })
    }

    fn moved(&self, draft: &Draft) -> Vec<MovedSlots> {
        let moved = draft.computed.iter().filter_map(|(name, computed)| {
            moved_slots(name, plan::plan(self.plane.held(&computed.key).as_ref(), &computed.desired))
        });
        moved.collect()
    }

    /// Makes `config` the running configuration, or says why not; then the old one runs on.
    pub(super) async fn change(
        &mut self,
        config: Config,
        if_generation: Option<u64>,
        dry_run: bool,
        from_file: bool,
    ) -> Result<ApplyResult, ApiError> {
        if let Some(demanded) = if_generation.filter(|&demanded| demanded != self.generation) {
            return Err(ApiError::wrong_generation(demanded, self.generation));
        }
        config.validate()?;
        self.check_fixed(&config)?;
        let diff = ConfigDiff::between(&self.running, &config);
        let changed = !diff.is_empty();
        if !changed && !from_file {
            return Ok(self.result(diff, dry_run, Vec::new()));
        }
        let mut addresses = Self::addresses(&config);
        addresses.extend(Self::addresses(&self.running));
        let moved = self.hops.refresh(&addresses).await.map_err(|error| kernel(&error))?;
        // Whatever becomes of this change: what was just learnt must reach the services that run.
        self.stale.extend(self.services_with(&moved));
        if dry_run {
            let draft = self.draft(config).map_err(|error| kernel(&error))?;
            return Ok(self.result(diff, true, self.moved(&draft)));
        }
        let before = self.interfaces.status().into_iter().map(|status| status.name).collect::<Vec<_>>();
        if let Err(error) = self.attach_all(&config).await {
            self.detach_new(&before);
            self.keep_interfaces().await;
            return Err(kernel(&error));
        }
        let verdicts = self.checks.verdicts();
        self.checks.set_targets(&config).await;
        // Before any ring names a backend behind a new interface.
        self.add_devices(&addresses);
        match self.commit(config, from_file) {
            Ok(moved) => {
                if let Err(error) = self.refresh(&BTreeSet::new()) {
                    log::error!("following routes and neighbours: {error:#}");
                }
                self.drop_interfaces();
                self.update_devices(&Self::addresses(&self.running));
                Ok(self.result(diff, false, moved))
            }
            Err(error) => {
                let running = self.running.clone();
                self.checks.adopt(verdicts);
                self.checks.set_targets(&running).await;
                self.detach_new(&before);
                self.keep_interfaces().await;
                if let Err(again) = self.go_back() {
                    log::error!("going back to the running configuration: {again:#}");
                }
                Err(kernel(&error))
            }
        }
    }

    /// Brings everything back to the running configuration after a change failed half-way; what cannot be at once is
    /// stale, and tried again with every tick.
    fn go_back(&mut self) -> Result<()> {
        self.set_gue_port(self.running.node.gue_port)?;
        let all = self.running.services.iter().map(|service| service.name.clone()).collect();
        self.refresh(&all)
    }

    fn set_gue_port(&mut self, port: u16) -> Result<()> {
        let Some(node) = self.plane.maps().node()? else { return Ok(()) };
        self.plane.set_node(Node { gue_port: port, ..node })
    }

    /// What cannot change while maps and flows exist.
    fn check_fixed(&self, config: &Config) -> Result<(), ApiError> {
        if config.node.flow_hash_key != self.running.node.flow_hash_key {
            return Err(ApiError::new(
                ErrorKind::Invalid,
                "node.flow_hash_key cannot change while the data plane runs: it would move every flow",
                "stop the agent, `wattline dataplane clean`, start it again",
            ));
        }
        if config.limits != self.running.limits {
            log::warn!(
                "limits take effect when the maps are made anew: stop, `wattline dataplane clean`, start"
            );
        }
        Ok(())
    }

    /// The write itself: memory first, then maps, then numbers.
    fn commit(&mut self, config: Config, from_file: bool) -> Result<Vec<MovedSlots>> {
        let draft = self.draft(config)?;
        let file = if from_file { draft.config.clone() } else { self.from_file.clone() };
        let state_path = self.options.runtime_dir.join(STATE_FILE);
        State::new(self.generation + 1, file.clone(), draft.config.clone()).write(&state_path)?;
        let moved = self.commit_maps(&draft).inspect_err(|_| {
            let old = State::new(self.generation, self.from_file.clone(), self.running.clone());
            if let Err(error) = old.write(&state_path) {
                log::error!("{error:#}");
            }
        })?;
        self.generation += 1;
        self.running = draft.config;
        self.from_file = file;
        self.ids = draft.ids;
        self.remember(draft.computed);
        let running = &self.running;
        self.services.retain(|name, _| running.service(name).is_some());
        Ok(moved)
    }

    fn commit_maps(&mut self, draft: &Draft) -> Result<Vec<MovedSlots>> {
        self.set_gue_port(draft.config.node.gue_port)?;
        let fresh: Vec<u32> = draft.ids.counters().difference(self.ids.counters()).copied().collect();
        self.plane.clear_counters(&fresh)?;
        let (published, failed) = self.write(&draft.computed, &draft.removals);
        if let Some((name, error)) = failed.first() {
            bail!("service {name}: {error}");
        }
        for &(heir, counter) in &draft.released.counters {
            self.plane.retire_counter(heir, counter)?;
        }
        let moved = draft.computed.iter().filter_map(|(name, computed)| {
            published.get(&ServiceOrder(computed.key)).and_then(|plan| moved_slots(name, *plan))
        });
        Ok(moved.collect())
    }

    fn result(&self, diff: ConfigDiff, dry_run: bool, moved_slots: Vec<MovedSlots>) -> ApplyResult {
        ApplyResult {
            schema_version: SchemaVersion,
            generation: self.generation,
            changed: !diff.is_empty(),
            dry_run,
            diff,
            moved_slots,
        }
    }

    /// One edit of the running configuration.
    pub(super) async fn mutate(
        &mut self,
        change: &Change,
        if_generation: Option<u64>,
        dry_run: bool,
    ) -> Result<ApplyResult, ApiError> {
        let mut config = self.running.clone();
        change.apply(&mut config)?;
        self.change(config, if_generation, dry_run, false).await
    }

    /// Takes a configuration file's new content. One that was refused is tried again only when somebody `insists`: its
    /// directory stirs for many reasons, and trying may disturb an interface.
    pub(super) async fn reload(&mut self, insists: bool) {
        let loaded = crate::config::load(&self.options.config);
        let refused = loaded.as_ref().ok().cloned();
        let outcome = match loaded {
            Ok(config) if !insists && self.file.refused.as_ref() == Some(&config) => return,
            Ok(config) if config == self.from_file => {
                self.file = FileStatus::taken();
                return;
            }
            Ok(config) => self.change(config, None, false, true).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(result) => {
                self.file = FileStatus::taken();
                log::info!("{}: generation {} runs", self.options.config.display(), result.generation);
            }
            Err(error) => {
                if self.file.error.as_ref() != Some(&error) {
                    log::error!(
                        "the configuration file is refused; generation {} runs on:\n{error}",
                        self.generation
                    );
                }
                self.file = FileStatus { loaded_at: Some(now()), error: Some(error), refused };
            }
        }
    }

    /// Writes the running configuration to its file.
    pub(super) fn save(&mut self) -> Result<()> {
        let path = &self.options.config;
        crate::config::file::write_atomic(path, self.running.to_toml().as_bytes())
            .with_context(|| format!("writing {}", path.display()))?;
        self.from_file = self.running.clone();
        self.file = FileStatus::taken();
        State::new(self.generation, self.from_file.clone(), self.running.clone())
            .write(&self.options.runtime_dir.join(STATE_FILE))
    }

    fn detach_new(&mut self, before: &[String]) {
        for status in self.interfaces.status() {
            if !before.contains(&status.name)
                && let Err(error) = self.interfaces.detach(&status.name)
            {
                log::error!("{error:#}");
            }
        }
    }
}
