//! A stand-in for the agent: the real API on a temporary socket, with a plain configuration behind it and no kernel.

#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lb_userspace::api::types::{
    ApplyResult, BackendCount, BackendView, ConfigFileStatus, ConfigView, HealthState, HealthView,
    InterfaceStatus, MapUsage, MapUsages, MovedSlots, NextHop, ReasonCount, RouteView, SaveResult,
    SchemaVersion, ServiceCount, ServiceView, StatsView, Status, Totals, Verdict,
};
use lb_userspace::api::{ApiError, ApiHandle, Request, server};
use lb_userspace::config::{self, Admin, Config, ConfigDiff, HealthKind, XdpMode};

/// What the stand-in starts with.
pub const CONFIG: &str = r#"
[node]
interfaces = ["eth0"]

[[service]]
name = "web"
address = "192.0.2.10"
port = 80
protocol = "tcp"
[[service.backend]]
name = "web-1"
address = "10.0.0.11"
[[service.backend]]
name = "web-2"
address = "10.0.0.12"
site = "berlin"

[[service]]
name = "dns"
address = "2001:db8::53"
port = "any"
protocol = "udp"
"#;

/// A running stand-in; ends when dropped.
pub struct FakeAgent {
    pub directory: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FakeAgent {
    pub fn start() -> Self {
        Self::start_with(Duration::from_secs(5))
    }

    /// `patience` is how long the API waits for the stand-in.
    pub fn start_with(patience: Duration) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wattline.toml");
        std::fs::write(&path, CONFIG).expect("written");
        let socket = directory.path().join("wattline.sock");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = server::bind(&socket).expect("a socket");
                let (handle, requests) = ApiHandle::channel(16, patience);
                ready.send(()).expect("the test waits");
                let owner = tokio::spawn(own(path, requests));
                let shutdown = async move { drop(stopped.await) };
                server::serve(listener, handle, shutdown).await.expect("served");
                owner.abort();
            });
        });
        is_ready.recv().expect("the stand-in starts");
        Self { directory, stop: Some(stop), thread: Some(thread) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("wattline.sock")
    }

    /// Runs the command line against the stand-in.
    pub fn wattline(&self, args: &[&str]) -> Ran {
        wattline_in(self.directory.path(), args, "")
    }

    /// The same, demanding success; gives what was printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.wattline(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.stdout
    }

    /// The same as JSON.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.ok(&[args, &["-o", "json"]].concat());
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["schema_version"], 1, "{text}");
        value
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The binary with a clean environment, its runtime directory in `directory`.
pub fn command_in(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wattline"));
    command.args(args).env_clear().env("WATTLINE_RUNTIME_DIR", directory).current_dir(directory);
    command
}

/// Runs the binary with `input` as standard input.
pub fn wattline_in(directory: &Path, args: &[&str], input: &str) -> Ran {
    use std::io::Write as _;
    let mut child = command_in(directory, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut stdin = child.stdin.take().expect("piped");
    // A command that does not read its input may be gone already.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("ended").into()
}

struct Owner {
    path: PathBuf,
    config: Config,
    generation: u64,
    reads: u64,
}

async fn own(path: PathBuf, mut requests: tokio::sync::mpsc::Receiver<Request>) {
    let config = config::load(&path).expect("valid");
    let mut owner = Owner { path, config, generation: 1, reads: 0 };
    while let Some(request) = requests.recv().await {
        owner.answer(request);
    }
}

impl Owner {
    fn answer(&mut self, request: Request) {
        match request {
            Request::Status(reply) => drop(reply.send(Ok(self.status()))),
            Request::Services(reply) => drop(reply.send(Ok(self.services()))),
            Request::Backends { service, reply } => drop(reply.send(self.backends(service.as_deref()))),
            Request::Health(reply) => drop(reply.send(Ok(self.health()))),
            Request::Stats(reply) => {
                self.reads += 1;
                drop(reply.send(Ok(stats(self.reads))));
            }
            Request::Config(reply) => {
                let config = self.config.clone();
                let view = ConfigView { schema_version: SchemaVersion, generation: self.generation, config };
                drop(reply.send(Ok(view)));
            }
            Request::Route { query, reply } => drop(reply.send(Ok(RouteView {
                schema_version: SchemaVersion,
                verdict: Verdict::Forward,
                reason: format!("{} belongs to web", query.destination),
                service: Some("web".into()),
                hash: Some(0x1234),
                slot: Some(u32::from(query.source_port)),
                backend: Some("web-1".into()),
                encapsulation: Some("ipip".into()),
                next_hop: Some(resolved()),
            }))),
            Request::Mutate { change, if_generation, dry_run, reply } => {
                let mut next = self.config.clone();
                let done = change.apply(&mut next).and_then(|()| self.replace(next, if_generation, dry_run));
                drop(reply.send(done));
            }
            Request::Apply { config, if_generation, dry_run, reply } => {
                drop(reply.send(self.replace(*config, if_generation, dry_run)));
            }
            Request::Save { if_generation, reply } => drop(reply.send(self.save(if_generation))),
            Request::Attach { interface, mode, reply } => drop(reply.send(attach(&interface, mode))),
            // Never answered: the way a hung agent looks.
            Request::Detach { reply, .. } => std::mem::forget(reply),
        }
    }

    fn replace(
        &mut self,
        next: Config,
        demanded: Option<u64>,
        dry_run: bool,
    ) -> Result<ApplyResult, ApiError> {
        if let Some(demanded) = demanded.filter(|demanded| *demanded != self.generation) {
            return Err(ApiError::wrong_generation(demanded, self.generation));
        }
        next.validate()?;
        let diff = ConfigDiff::between(&self.config, &next);
        let changed = !diff.is_empty();
        let moved_slots = if changed {
            vec![MovedSlots { service: "web".into(), moved: 101, total: 211 }]
        } else {
            Vec::new()
        };
        if changed && !dry_run {
            self.config = next;
            self.generation += 1;
        }
        let generation = self.generation;
        Ok(ApplyResult { schema_version: SchemaVersion, generation, changed, dry_run, diff, moved_slots })
    }

    fn save(&self, demanded: Option<u64>) -> Result<SaveResult, ApiError> {
        if let Some(demanded) = demanded.filter(|demanded| *demanded != self.generation) {
            return Err(ApiError::wrong_generation(demanded, self.generation));
        }
        config::file::write_atomic(&self.path, self.config.to_toml().as_bytes())
            .map_err(|error| ApiError::internal(format!("{error:#}"), "look at the disk"))?;
        let path = self.path.display().to_string();
        Ok(SaveResult { schema_version: SchemaVersion, path, generation: self.generation })
    }

    fn status(&self) -> Status {
        Status {
            schema_version: SchemaVersion,
            node: "lb1".into(),
            version: "0.1.0".into(),
            abi: 1,
            pid: 1,
            uptime_seconds: 3723,
            generation: self.generation,
            config: ConfigFileStatus {
                path: self.path.display().to_string(),
                loaded_at: Some(1),
                error: None,
                unsaved: self.generation > 1,
            },
            interfaces: vec![interface("eth0", XdpMode::Native)],
            services: self.config.services.len() as u64,
            backends: self.config.backend_count() as u64,
            backends_usable: 2,
            maps: MapUsages { services: MapUsage { used: 2, capacity: 4096 }, ..MapUsages::default() },
        }
    }

    fn services(&self) -> Vec<ServiceView> {
        let view = |service: &config::Service| ServiceView {
            name: service.name.clone(),
            address: service.address,
            port: service.port,
            protocol: service.protocol,
            mode: service.mode,
            ring_slots: 211,
            all_down: service.all_down,
            fail_open: false,
            backends_total: service.backends.len() as u32,
            backends_usable: service.backends.len() as u32,
            packets: 12,
            bytes: 3456,
            dropped_packets: 0,
        };
        self.config.services.iter().map(view).collect()
    }

    fn backends(&self, only: Option<&str>) -> Result<Vec<BackendView>, ApiError> {
        if let Some(name) = only
            && self.config.service(name).is_none()
        {
            return Err(ApiError::no_service(name));
        }
        let mut views = Vec::new();
        for service in
            self.config.services.iter().filter(|service| only.is_none_or(|name| name == service.name))
        {
            for backend in &service.backends {
                let ready = backend.admin == Admin::Ready;
                views.push(BackendView {
                    service: service.name.clone(),
                    name: backend.name.clone(),
                    address: backend.address,
                    weight: backend.weight,
                    admin: backend.admin,
                    health: HealthState::Healthy,
                    site: backend.site.clone(),
                    effective_weight: if ready { u32::from(backend.weight) } else { 0 },
                    slots: 105,
                    share: 0.5,
                    next_hop: resolved(),
                    packets: 6,
                    bytes: 1728,
                });
            }
        }
        Ok(views)
    }

    fn health(&self) -> Vec<HealthView> {
        let mut views = Vec::new();
        for service in &self.config.services {
            for backend in &service.backends {
                views.push(HealthView {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                    address: backend.address,
                    kind: HealthKind::Tcp,
                    port: Some(80),
                    state: HealthState::Healthy,
                    since: Some(1),
                    last_check: Some(2),
                    last_result: Some("ok".into()),
                    latency_ms: Some(0.25),
                    consecutive: 7,
                });
            }
        }
        views
    }
}

fn resolved() -> NextHop {
    NextHop::Resolved { interface: "eth0".into(), mac: "02:00:00:00:00:01".into(), mtu: 1500 }
}

fn interface(name: &str, mode: XdpMode) -> InterfaceStatus {
    InterfaceStatus {
        name: name.into(),
        ifindex: 2,
        mode,
        link_id: Some(5),
        program_id: Some(6),
        program_tag: Some("0123456789abcdef".into()),
        error: None,
    }
}

fn attach(name: &str, mode: Option<XdpMode>) -> Result<InterfaceStatus, ApiError> {
    match name {
        "eth9" => Err(ApiError::kernel("eth9: the driver has no native mode", "use --mode generic")),
        _ => Ok(interface(name, mode.unwrap_or_default())),
    }
}

/// Counters that grow by the same amount each second of their own clock.
fn stats(reads: u64) -> StatsView {
    let packets = reads * 100;
    StatsView {
        schema_version: SchemaVersion,
        time_ms: reads * 1000,
        totals: Totals {
            received_packets: packets + packets / 10,
            forwarded_packets: packets,
            forwarded_bytes: packets * 60,
            passed_packets: 0,
            dropped_packets: packets / 10,
        },
        reasons: vec![
            ReasonCount {
                reason: "no_backend".into(),
                verdict: Verdict::Drop,
                packets: packets / 10,
                description: "no backend".into(),
            },
            ReasonCount {
                reason: "icmp".into(),
                verdict: Verdict::Pass,
                packets: 0,
                description: "ICMP".into(),
            },
        ],
        services: vec![ServiceCount {
            service: "web".into(),
            packets,
            bytes: packets * 60,
            dropped_packets: packets / 10,
        }],
        backends: vec![BackendCount {
            service: "web".into(),
            backend: "web-1".into(),
            packets,
            bytes: packets * 60,
        }],
    }
}
