//! A host of the lab: one long-lived thread with its own network namespace and mount namespace.
//!
//! Everything here is anonymous. There is no namespace name, no bind mount and no file outside: the kernel frees a
//! host when its last thread, process and descriptor are gone, so even SIGKILL leaves nothing behind. This file must
//! never create anything that outlives the process.

use std::any::Any;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle, ThreadId};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::netlink;
use crate::process::HostCommand;

/// Work for the host's thread. Results travel through channels that the work owns.
type Job = Box<dyn FnOnce() + Send>;

/// Sysctls of every host, set before the first interface exists so that interfaces inherit them. A lab has no
/// routers that advertise, no duplicate addresses and asymmetric paths on purpose.
const SYSCTLS: [(&str, &str); 9] = [
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
];

/// A host with its own network, `/sys`, `/sys/fs/bpf` and `/run`. Clones are handles to the same host; it ends,
/// with every process started in it, when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    id: ThreadId,
    netns: File,
}

impl Host {
    /// Starts a host; `name` is only for messages and need not be unique.
    ///
    /// # Panics
    /// Without root, naming the cure.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        require_root();
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("host {name}"))
            .spawn(move || {
                let prepared = prepare();
                let failed = prepared.is_err();
                if ready.send(prepared).is_err() || failed {
                    return;
                }
                for job in queue {
                    job();
                }
                netlink::forget_socket();
            })
            .context("cannot start the host's thread")?;
        let netns = is_ready
            .recv()
            .context("the host's thread died")?
            .with_context(|| format!("cannot prepare host {name}"))?;
        let id = thread.thread().id();
        let host = Self(Arc::new(Inner { name, jobs: Some(jobs), thread: Some(thread), id, netns }));
        for (key, value) in SYSCTLS {
            host.sysctl(key, value)?;
        }
        host.link("lo").up()?;
        Ok(host)
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs a short closure on the host's own thread and returns its value. Calls queue up behind each other: use
    /// [`Host::enter`] for work that waits. Called from that very thread, it runs in place.
    ///
    /// # Panics
    /// With the closure's own panic.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if thread::current().id() == self.0.id {
            return work();
        }
        let (done, result) = mpsc::channel();
        self.submit(move || {
            let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
        });
        unwrap_panic(result.recv().expect("the host's thread runs every job"))
    }

    /// Runs a closure on a new thread inside the host, waits for it and returns its value. Any number can run at
    /// once.
    ///
    /// # Panics
    /// With the closure's own panic.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let (done, result) = mpsc::channel();
        self.submit(move || {
            let inner: Box<dyn FnOnce() + Send + '_> = Box::new(move || {
                let _ = done.send(catch_unwind(AssertUnwindSafe(work)));
            });
            // SAFETY: the caller's stack, which the closure borrows from, stays put until `result.recv` returns:
            // the closure has consumed `work` by the time it sends, and if it is never run it is dropped together
            // with `done`.
            let inner: Job = unsafe { std::mem::transmute(inner) };
            // A thread starts in the namespaces of the thread that creates it. Without one the closure is dropped,
            // `done` with it, and the caller hears of it below.
            let _ = thread::Builder::new().name("enter".into()).spawn(inner);
        });
        unwrap_panic(result.recv().expect("cannot start a thread in a host"))
    }

    /// Starts a thread inside the host that may outlive the caller.
    pub fn spawn_thread<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<JoinHandle<R>> {
        let name = format!("in {}", self.name());
        self.run(|| thread::Builder::new().name(name).spawn(work)).context("cannot start a thread in a host")
    }

    /// A command that will run inside the host and die with it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> HostCommand {
        HostCommand::new(self.clone(), program.as_ref())
    }

    /// Writes `/proc/sys/KEY` (slashes, not dots) of this host.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.write(Path::new("/proc/sys").join(key), value)
    }

    /// Reads a file as this host sees it, without the trailing newline.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = path.as_ref();
        self.run(|| std::fs::read_to_string(path))
            .map(|text| text.trim_end().to_owned())
            .with_context(|| format!("{}: cannot read {}", self.name(), path.display()))
    }

    /// Writes a file as this host sees it, making parent directories; below `/run` it vanishes with the host.
    pub fn write(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> Result<()> {
        let (path, contents) = (path.as_ref(), contents.as_ref());
        self.run(|| {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, contents)
        })
        .with_context(|| format!("{}: cannot write {}", self.name(), path.display()))
    }

    /// The network namespace's inode number, as in `/proc/PID/ns/net`.
    pub fn netns_inode(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt as _;
        Ok(self.0.netns.metadata().context("cannot stat the network namespace")?.ino())
    }

    /// The network namespace's descriptor, for moving links into it.
    pub(crate) fn netns_fd(&self) -> RawFd {
        self.0.netns.as_raw_fd()
    }

    /// Hands a closure to the host's thread. The caller must wait for the closure to be used up or dropped before
    /// anything it borrows goes away; both callers do so by waiting on a channel whose sender the closure owns.
    fn submit<'a>(&self, job: impl FnOnce() + Send + 'a) {
        let job: Box<dyn FnOnce() + Send + 'a> = Box::new(job);
        // SAFETY: see above; only the lifetime changes, and both callers outwait the closure.
        let job: Job = unsafe { std::mem::transmute(job) };
        let jobs = self.0.jobs.as_ref().expect("set until drop");
        assert!(jobs.send(job).is_ok(), "the thread of host {} is gone", self.0.name);
    }
}

impl std::os::fd::AsFd for Host {
    /// The network namespace.
    fn as_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0.netns)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // The last handle may die in a closure on the host's own thread, which cannot wait for itself.
        if self.id != thread::current().id()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Panics unless the process may create namespaces.
pub fn require_root() {
    assert!(nix::unistd::geteuid().is_root(), "needs root: run `cargo xtask test`");
}

/// Continues a panic that was caught on another thread.
fn unwrap_panic<R>(result: Result<R, Box<dyn Any + Send>>) -> R {
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Moves the calling thread into namespaces of its own and returns the network namespace.
fn prepare() -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
        .context("needs root: run `cargo xtask test` (cannot unshare namespaces)")?;
    let none: Option<&str> = None;
    // Without this the mounts below would spread to the machine.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make mounts private")?;
    for (kind, target) in [("sysfs", "/sys"), ("bpf", "/sys/fs/bpf"), ("tmpfs", "/run")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("cannot mount {kind} on {target}"))?;
    }
    File::open("/proc/thread-self/ns/net").context("cannot open the network namespace")
}
