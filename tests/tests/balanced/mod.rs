//! A lab with a running balancer in front of its backends: what the scenarios of the agent begin with.
//!
//! Only set-up and looking things up; judging is the scenarios' own business.

#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lb_common::service::ServiceKey;
use lb_userspace::dataplane::{apply::Dataplane, maps::Maps, pins::Pins};
use serde_json::Value;
use tests::host::Host;
use tests::process::Output;
use tests::topology::{Lab, LabBuilder, VIP4};
use tests::traffic::{FlowReport, Flows};
use tests::wait;
use tests::wattline::{self, Agent, CONFIG};

/// How long a broken system is given.
pub const LIMIT: Duration = Duration::from_mins(1);
/// Where the balancer pins.
pub const PINS: &str = "/sys/fs/bpf/wattline/v1";
/// Checks that answer fast, and that a busy machine does not fail by mistake.
pub const HTTP_HEALTH: &str =
    r#"{ type = "http", path = "/healthz", interval_ms = 1000, timeout_ms = 1000, rise = 1, fall = 3 }"#;
/// The service of [`web`].
pub const WEB: SocketAddr = SocketAddr::new(VIP4, 80);

/// The head of a configuration: `eth0` in native mode.
pub const NODE: &str = "[node]\ninterfaces = [\"eth0\"]\n";

/// The service `web` on [`WEB`], with these backends of the lab.
pub fn web(lab: &Lab, backends: &[&str]) -> String {
    service(lab, "web", "", backends)
}

/// A service on [`VIP4`], with lines of its own after the usual ones.
pub fn service(lab: &Lab, name: &str, more: &str, backends: &[&str]) -> String {
    let own = |key: &str| more.lines().any(|line| line.starts_with(key));
    let mut text = format!("\n[[service]]\nname = \"{name}\"\naddress = \"{VIP4}\"\n{more}\n");
    for (key, value) in [
        ("port", "80"),
        ("protocol", "\"tcp\""),
        ("mode", "\"ipip\""),
        ("ring_slots", "1009"),
        ("health", HTTP_HEALTH),
    ] {
        // A UDP service has nothing to ask by HTTP.
        let senseless = key == "health" && more.contains("\"udp\"");
        if !own(key) && !senseless {
            let _ = writeln!(text, "{key} = {value}");
        }
    }
    for backend in backends {
        let address = lab.backend(backend).v4;
        let _ = write!(text, "[[service.backend]]\nname = \"{backend}\"\naddress = \"{address}\"\n");
    }
    text
}

/// A lab whose backends take the encapsulation off.
pub fn lab(builder: LabBuilder) -> Lab {
    let lab = builder.build().unwrap();
    for backend in &lab.backends {
        wattline::decap(&backend.host, &["10.2.0.0/24", "10.3.0.0/24", "fd02::/64"]).unwrap();
    }
    lab
}

/// A lab of some backends in site A with a balancer of the service `web` over all of them, healthy.
pub fn running(backends: u8) -> (Lab, Agent) {
    let lab = lab(Lab::builder().site_a(backends));
    let names: Vec<&str> = lab.backends.iter().map(|backend| backend.name.as_str()).collect();
    let agent = Agent::start(lab.lb(), &(NODE.to_owned() + &web(&lab, &names))).unwrap();
    wait_usable(&lab, &names);
    (lab, agent)
}

/// Starts an agent again, with the configuration that is there.
pub fn restart(lab: &Lab) -> Agent {
    let mut agent = Agent::spawn(lab.lb()).unwrap();
    agent.wait_ready().unwrap();
    agent
}

/// Runs an agent that has to end by itself with this exit code; returns what it said.
pub fn refused(lab: &Lab, code: i32) -> String {
    let output = run(lab, &["agent", "--config", CONFIG]);
    assert_eq!(output.status.code(), Some(code), "{}", output.stderr);
    output.stderr
}

/// Runs a command on the balancer, whatever comes of it.
pub fn run(lab: &Lab, args: &[&str]) -> Output {
    wattline::command(lab.lb(), args).unwrap()
}

/// Runs a command on the balancer that has to fail with this exit code; returns what it said.
pub fn fails(lab: &Lab, code: i32, args: &[&str]) -> String {
    let output = run(lab, args);
    assert_eq!(output.status.code(), Some(code), "`wattline {}`: {}", args.join(" "), output.stderr);
    assert_eq!(output.stdout, "", "what failed printed data");
    output.stderr
}

/// Runs a command on the balancer that has to succeed; returns standard output and standard error.
pub fn ok(lab: &Lab, args: &[&str]) -> (String, String) {
    let output = run(lab, args);
    assert!(output.status.success(), "`wattline {}`: {}", args.join(" "), output.stderr);
    (output.stdout, output.stderr)
}

/// The JSON of a command on the balancer.
#[track_caller]
pub fn json(lab: &Lab, args: &[&str]) -> Value {
    let value = wattline::json(lab.lb(), args).unwrap();
    assert_eq!(value["schema_version"], 1, "`wattline {}`: {value}", args.join(" "));
    value
}

/// Full names of the backends that own slots although no service fails open.
pub fn usable(lab: &Lab) -> BTreeSet<String> {
    let list = json(lab, &["backend", "list"]);
    let backends = list["backends"].as_array().unwrap();
    backends
        .iter()
        .filter(|backend| {
            backend["slots"] != 0 && (backend["health"] == "healthy" || backend["health"] == "disabled")
        })
        .map(|backend| {
            format!("{}/{}", backend["service"].as_str().unwrap(), backend["name"].as_str().unwrap())
        })
        .collect()
}

/// Waits until exactly these backends of `web` take packets because they are fit to.
#[track_caller]
pub fn wait_usable(lab: &Lab, names: &[&str]) {
    let wanted: BTreeSet<String> = names.iter().map(|name| format!("web/{name}")).collect();
    until("the usable backends to be as expected", || {
        let found = usable(lab);
        if found == wanted { Ok(()) } else { Err(format!("{found:?} instead of {wanted:?}")) }
    });
}

/// Waits, within [`LIMIT`].
#[track_caller]
pub fn until<T, E: std::fmt::Debug>(what: &str, look: impl FnMut() -> Result<T, E>) -> T {
    wait::until(what, LIMIT, look).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Waits until something holds, within [`LIMIT`].
#[track_caller]
pub fn until_true(what: &str, mut look: impl FnMut() -> bool) {
    until(what, || if look() { Ok(()) } else { Err(()) });
}

/// Waits until the agent's log says something.
#[track_caller]
pub fn wait_logged(agent: &Agent, text: &str) {
    until("a line in the log", || if agent.log().contains(text) { Ok(()) } else { Err(agent.log()) });
}

/// The running generation.
pub fn generation(lab: &Lab) -> u64 {
    json(lab, &["status"])["generation"].as_u64().unwrap()
}

/// Why the configuration file was refused last, if it was.
pub fn file_error(lab: &Lab) -> Option<String> {
    json(lab, &["status"])["config"]["error"].as_str().map(str::to_owned)
}

/// One backend of the list.
pub fn backend(lab: &Lab, name: &str) -> Value {
    json(lab, &["backend", "get", &format!("web/{name}")])
}

/// So many flows to [`WEB`], none of which may fail.
#[track_caller]
pub fn flows(lab: &Lab, count: u32) -> FlowReport {
    Flows::tcp(WEB, count).run(&lab.client).unwrap().expect_all()
}

/// The owner's address of every slot of a service, read from the pinned maps. Works without an agent.
pub fn ring(lab: &Lab, service: SocketAddr) -> Vec<Option<IpAddr>> {
    with_maps(lab, |plane| {
        let held = plane.held(&ServiceKey::new(service.ip(), Some(service.port()), 6)).unwrap();
        let owner = |slot: &lb_common::ring::Slot| held.backends[usize::from(slot.current)].ip();
        held.ring.iter().map(owner).collect()
    })
}

/// Works on the pinned maps of the balancer.
pub fn with_maps<R: Send>(lab: &Lab, work: impl FnOnce(&Dataplane) -> R + Send) -> R {
    lab.lb().run(|| {
        let maps = Maps::open(&Pins::forward(Path::new("/sys/fs/bpf"))).unwrap();
        work(&Dataplane::adopt(maps).unwrap())
    })
}

/// Everything below a directory of a host, in alphabetical order.
pub fn tree(host: &Host, root: &str) -> Vec<String> {
    fn walk(directory: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            // A bpffs has two files of the kernel's own.
            if !entry.file_name().to_string_lossy().ends_with(".debug") {
                found.push(entry.path().display().to_string());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&entry.path(), found);
            }
        }
    }
    host.run(|| {
        let mut found = Vec::new();
        walk(Path::new(root), &mut found);
        found.sort();
        found
    })
}

/// Number of the first flow of [`Steady`], so that other flows can run beside it.
pub const STEADY: u32 = 500_000;

/// The same flows again and again, each a fresh connection, until told to stop.
pub struct Steady {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<FlowReport>>,
}

impl Steady {
    /// Starts so many flows to a service, 16 at a time, and waits for the first round.
    pub fn start(client: &Host, target: SocketAddr, count: u32) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (client, stopped, done) = (client.clone(), Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            let mut reports = Vec::new();
            while !stopped.load(Ordering::Acquire) {
                let flows = Flows::tcp(target, count).first(STEADY).concurrency(16);
                reports.push(flows.run(&client).unwrap());
                done.fetch_add(1, Ordering::Release);
            }
            reports
        });
        let this = Self { stop, rounds, thread };
        this.more(1);
        this
    }

    /// Waits until so many more rounds are complete, the one under way not counted.
    #[track_caller]
    pub fn more(&self, rounds: usize) {
        let now = self.rounds.load(Ordering::Acquire);
        let wanted = if now == 0 { rounds } else { now + 1 + rounds };
        until("more rounds of traffic", || {
            let done = self.rounds.load(Ordering::Acquire);
            if done >= wanted || self.thread.is_finished() { Ok(()) } else { Err((done, wanted)) }
        });
    }

    /// Stops after the round under way.
    pub fn stop(self) -> Vec<FlowReport> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }

    /// Stops; no flow may have failed, nor reached another backend than at first.
    #[track_caller]
    pub fn stop_undisturbed(self) {
        let reports = self.stop();
        let first = reports[0].clone().expect_all();
        for report in reports {
            assert_eq!(first.moved(&report.expect_all()), [0u32; 0], "flows that moved");
        }
    }
}

/// Answers of every backend over all rounds.
pub fn answers(reports: &[FlowReport]) -> BTreeMap<&str, usize> {
    let mut sums = BTreeMap::new();
    for (backend, count) in reports.iter().flat_map(|report| report.per_backend()) {
        *sums.entry(backend).or_default() += count;
    }
    sums
}
