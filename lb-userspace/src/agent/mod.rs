//! The agent: the process that keeps the maps true to what is wanted.
//!
//! `run` starts it in the order that safety asks for: lock, pins, fewer privileges, maps, then everything that talks to
//! the outside. Its end leaves forwarding as it is.

mod adopt;
mod change;
mod checks;
mod core;
pub mod flow_key;
mod hops;
mod interfaces;
mod lock;
pub mod privilege;
mod requests;
mod serve;
mod state;
mod views;
mod watch;

use std::{
    collections::BTreeSet,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lb_common::{abi::forward, node::Node};

use self::{
    checks::Checks,
    core::{Agent, FileStatus},
    hops::Hops,
    interfaces::Interfaces,
    lock::Lock,
    serve::Sources,
    state::State,
    watch::Watch,
};
use crate::{
    api::{ApiHandle, server},
    config::{self, Config},
    dataplane::{
        apply::Dataplane,
        forward::{Forward, Logger, Sizes},
        inspect,
        maps::Maps,
        netlink::Netlink,
        pins::Pins,
    },
};

/// What the command line tells the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// Directory of the socket, the lock and the saved state.
    pub runtime_dir: PathBuf,
    /// The API's socket; by default in the runtime directory.
    pub socket: PathBuf,
    /// Root of the BPF file system.
    pub bpffs: PathBuf,
    /// Check everything that can be checked, then end without a change.
    pub check: bool,
}

/// The agent's memory, in the runtime directory.
const STATE_FILE: &str = "state.json";
/// How long a request waits for the agent's answer.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);

/// Runs the agent until it is told to stop.
///
/// # Errors
///
/// [`config::ConfigError`] where there is nothing valid to run; anything else is the kernel's or the system's refusal.
pub fn run(options: &AgentOptions) -> Result<()> {
    let loaded = config::load(&options.config);
    if options.check {
        let config = loaded?;
        log::info!("{}: {} services are fine", options.config.display(), config.services.len());
        return Ok(());
    }
    std::fs::create_dir_all(&options.runtime_dir)
        .with_context(|| format!("creating {}", options.runtime_dir.display()))?;
    let _lock = Lock::take(&options.runtime_dir)?;
    let plan = StartPlan::make(options, loaded)?;
    let pins = Pins::forward(&options.bpffs);
    let found = pins.pinned_maps(&forward::MAPS).len();
    let fresh = found < forward::MAPS.len() && pins.linked_interfaces()?.is_empty();
    // Mounting a bpffs and giving the socket to a group are the last things that need more than the three capabilities.
    pins.prepare()?;
    let _pins_lock = lock::pins(pins.root())?;
    let listener = server::bind(&options.socket)?;
    let outcome = run_with_privileges(options, plan, &pins, listener);
    let _ = std::fs::remove_file(&options.socket);
    // What was there before is left as it is, whatever is wrong with it.
    if outcome.is_err()
        && fresh
        && let Err(error) = forget(options, &pins)
    {
        log::error!("removing what the failed start left: {error:#}");
    }
    outcome
}

/// Ends all forwarding and removes every pin, and what agents keep in the runtime directory; false where nothing was
/// pinned.
///
/// # Errors
///
/// Where an agent runs, be it one that does not answer.
pub fn clean(runtime_dir: &Path, bpffs: &Path) -> Result<bool> {
    let pins = Pins::forward(bpffs);
    let _pins_lock = if pins.exists() { Some(lock::pins(pins.root())?) } else { None };
    if !runtime_dir.is_dir() {
        return inspect::clean(bpffs);
    }
    let lock = Lock::take(runtime_dir)?;
    let cleaned = inspect::clean(bpffs)?;
    State::remove(&runtime_dir.join(STATE_FILE))?;
    lock.remove()?;
    // Somebody else may keep something there.
    let _ = std::fs::remove_dir(runtime_dir);
    Ok(cleaned)
}

/// Leaves no trace of a start that failed where there was nothing before: the next one begins with the file again.
fn forget(options: &AgentOptions, pins: &Pins) -> Result<()> {
    for interface in pins.linked_interfaces()? {
        pins.unpin_link(&interface)?;
    }
    pins.remove()?;
    State::remove(&options.runtime_dir.join(STATE_FILE))
}

fn run_with_privileges(
    options: &AgentOptions,
    plan: StartPlan,
    pins: &Pins,
    listener: UnixListener,
) -> Result<()> {
    privilege::keep(&privilege::TO_LOAD)?;
    let started = start_dataplane(pins, &plan.running)?;
    privilege::keep(&privilege::TO_RUN)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let outcome = runtime.block_on(run_async(options, plan, pins.clone(), started, listener));
    // Probes and connections in flight end with the process; waiting for them would only delay a restart.
    runtime.shutdown_background();
    outcome
}

/// What to run at first.
struct StartPlan {
    running: Config,
    from_file: Config,
    generation: u64,
}

impl StartPlan {
    /// An earlier agent's running configuration comes first, so that what it pinned is taken over unchanged; the file
    /// follows as a reload. Without it the file is all there is, and must be valid.
    fn make(options: &AgentOptions, loaded: Result<Config, config::ConfigError>) -> Result<Self> {
        let state = State::read(&options.runtime_dir.join(STATE_FILE)).unwrap_or_else(|error| {
            log::error!("{error:#}; going on without it");
            None
        });
        // Without maps the state is that of a life long ago.
        let pinned = !Pins::forward(&options.bpffs).pinned_maps(&forward::MAPS).is_empty();
        if let Some(State { generation, from_file, running, .. }) = state.filter(|_| pinned) {
            return Ok(Self { running, from_file, generation });
        }
        let config = loaded?;
        Ok(Self { running: config.clone(), from_file: config, generation: 1 })
    }
}

/// The data plane, opened.
struct Started {
    forward: Forward,
    plane: Dataplane,
}

fn start_dataplane(pins: &Pins, config: &Config) -> Result<Started> {
    let limits = &config.limits;
    let sizes = Sizes { services: limits.services, backends: limits.backends, ring_slots: limits.ring_slots };
    let forward = Forward::load(pins, sizes)?;
    let mut plane = Dataplane::adopt(Maps::open(pins)?)?;
    warn_of_sizes(&plane, sizes);
    let held = plane.maps().node()?;
    let flow_key = match (&config.node.flow_hash_key, held) {
        (Some(key), held) => {
            let key = flow_key::expand(&key.0);
            anyhow::ensure!(
                held.is_none_or(|held| held.flow_key == key),
                "node.flow_hash_key is another than the one that the pinned maps were made with: it would move every \
                 flow. Take the old key, or remove the pins with `wattline dataplane clean` (which ends forwarding)"
            );
            key
        }
        (None, Some(held)) => held.flow_key,
        (None, None) => flow_key::random()?,
    };
    let node = Node { flow_key, gue_port: config.node.gue_port, ready: Node::READY, reserved: [0; 3] };
    plane.set_node(node)?;
    Ok(Started { forward, plane })
}

/// Maps that were taken over keep the sizes they were made with.
fn warn_of_sizes(plane: &Dataplane, wanted: Sizes) {
    let usage = plane.usage();
    for (what, held, wanted) in [
        ("services", usage.services.capacity, wanted.services),
        ("backends", usage.backends.capacity, wanted.backends),
        ("ring_slots", usage.ring_slots.capacity, wanted.ring_slots),
    ] {
        if held != wanted {
            log::warn!(
                "limits.{what} is {wanted}, but the pinned maps were made for {held}: stop the agent, `wattline \
                 dataplane clean` and start it again to change that"
            );
        }
    }
}

async fn run_async(
    options: &AgentOptions,
    plan: StartPlan,
    pins: Pins,
    started: Started,
    listener: UnixListener,
) -> Result<()> {
    let Started { mut forward, plane } = started;
    let messages = forward.take_logger().map(|logger| tokio::spawn(read_messages(logger)));
    let adopted = forward.adopted();
    let netlink = Netlink::open().context("opening netlink")?;
    let network = netlink.changes().context("listening for network changes")?;
    let (checks, transitions) = Checks::start(Agent::recover_verdicts(&plan.running, &plane))?;
    let ids = Agent::recover_ids(&plan.running, &plane);
    let open = Agent::recover_open(&plan.running, &plane);
    let mut agent = Agent {
        options: options.clone(),
        started: Instant::now(),
        running: plan.running,
        from_file: plan.from_file,
        file: FileStatus::taken(),
        generation: plan.generation,
        ids,
        plane,
        interfaces: Interfaces::new(forward, pins),
        hops: Hops::new(netlink),
        checks,
        services: open,
        stale: BTreeSet::new(),
    };
    agent.begin(adopted).await?;
    if adopted {
        log::info!("took over generation {} of an earlier agent", agent.generation);
    }
    // Watched before it is read again, so that no change falls in between.
    let file = Watch::start(&options.config)?;
    agent.reload(true).await;
    let (handle, requests) = ApiHandle::channel(64, ANSWER_WITHIN);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let api = tokio::spawn(server::serve(listener, handle, async {
        let _ = stopped.await;
    }));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    log::info!("running: generation {}, {} services", agent.generation, agent.running.services.len());
    let outcome = serve::serve(&mut agent, Sources { requests, transitions, network, file }).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    log::info!("stopping; forwarding goes on (`wattline dataplane detach` ends it)");
    let _ = stop.send(());
    api.abort();
    if let Some(messages) = messages {
        messages.abort();
    }
    outcome
}

/// Passes what the XDP program says on to the log. It speaks so rarely that looking once a second is enough.
async fn read_messages(mut logger: Logger) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        logger.flush();
    }
}
