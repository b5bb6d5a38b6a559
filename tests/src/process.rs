//! Child processes inside a host: started on the host's own thread, killed with it, output kept in memory.
//!
//! A child must never outlive the lab: the guard kills it on drop, and the kernel kills it when the host's thread dies.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::host::Host;

/// How often a child is looked at while waiting for its end.
const POLL: Duration = Duration::from_millis(5);

/// A command to run inside a host; see [`Host::command`].
#[derive(Debug)]
#[must_use]
pub struct HostCommand {
    host: Host,
    command: Command,
}

impl HostCommand {
    pub(crate) fn new(host: Host, program: &OsStr) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { host, command }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Starts the child. It gets SIGKILL as soon as the host's thread ends, however that comes about.
    pub fn spawn(mut self) -> Result<Process> {
        let program = self.command.get_program().to_string_lossy().into_owned();
        let lab = std::process::id();
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe {
            self.command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                // The lab may have died before the call above.
                if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(lab) {
                    return Err(std::io::ErrorKind::Interrupted.into());
                }
                Ok(())
            });
        }
        let Self { host, mut command } = self;
        // The signal is bound to the parent *thread*, so the host's long-lived one has to be the parent.
        let mut child = host
            .run(|| command.spawn())
            .with_context(|| format!("{}: cannot start {program}", host.name()))?;
        let stdout = Captured::read(child.stdout.take().context("stdout is piped")?)?;
        let stderr = Captured::read(child.stderr.take().context("stderr is piped")?)?;
        Ok(Process { title: format!("{program} in {}", host.name()), child, stdout, stderr })
    }

    /// Runs the command to its end; at the deadline it is killed and an error returned. The exit status is the
    /// caller's to judge.
    pub fn output(self, timeout: Duration) -> Result<Output> {
        let mut process = self.spawn()?;
        let status = process.wait(timeout)?;
        process.stdout.wait_end(Duration::from_secs(1));
        process.stderr.wait_end(Duration::from_secs(1));
        Ok(Output { status, stdout: process.stdout(), stderr: process.stderr() })
    }
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

/// A running child; killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    title: String,
    child: Child,
    stdout: Captured,
    stderr: Captured,
}

impl Process {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; an ended child is no error.
    pub fn kill(&mut self, signal: Signal) -> Result<()> {
        // A reaped child's id may belong to somebody else by now.
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id()).context("process id")?);
        nix::sys::signal::kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.title))
    }

    /// The exit status, if it has ended.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the end; at the deadline the child stays alive and an error with its output is returned.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} did not end within {timeout:?}; stderr: {}", self.title, self.stderr());
            }
            thread::sleep(POLL);
        }
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// "Still running", "exit status: 1" and the like, for messages.
    pub fn describe(&mut self) -> String {
        match self.child.try_wait() {
            Ok(None) => format!("{} is running", self.title),
            Ok(Some(status)) if status.signal().is_some() => format!("{} was killed: {status}", self.title),
            Ok(Some(status)) => format!("{} ended: {status}", self.title),
            Err(error) => format!("{}: {error}", self.title),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pipe drained into memory by a thread of its own, so that a talkative child never blocks.
#[derive(Clone, Debug)]
struct Captured(Arc<(Mutex<Buffer>, Condvar)>);

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    ended: bool,
}

impl Captured {
    fn read(mut pipe: impl Read + Send + 'static) -> Result<Self> {
        let captured = Self(Arc::default());
        let shared = captured.clone();
        thread::Builder::new()
            .name("child output".into())
            .spawn(move || {
                let mut chunk = [0; 8192];
                loop {
                    let read = match pipe.read(&mut chunk) {
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                        Ok(0) | Err(_) => break,
                        Ok(read) => read,
                    };
                    shared.lock().bytes.extend_from_slice(&chunk[..read]);
                }
                shared.lock().ended = true;
                shared.0.1.notify_all();
            })
            .context("cannot start a thread for a child's output")?;
        Ok(captured)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Buffer> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of the pipe, but not for ever: a grandchild may hold it open.
    fn wait_end(&self, timeout: Duration) {
        let _ = self.0.1.wait_timeout_while(self.lock(), timeout, |buffer| !buffer.ended);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }
}
