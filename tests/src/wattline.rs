//! The `wattline` program in a host: its agent as a guarded process, its commands, their JSON.
//!
//! The program under test is the built binary and nothing else; this file must never call into its library.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::host::Host;
use crate::process::{Output, Process};

/// Where a host keeps its agent's configuration: on the host's own `/run`, gone with it.
pub const CONFIG: &str = "/run/lab/wattline.toml";
/// Limit for one command.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// Limit for an agent to get ready: loading the programs and filling the maps on a busy machine.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(50);

/// The binary: `$WATTLINE_BIN`, or `wattline` in the directory of the running test or tool (`target/debug`).
pub fn binary() -> Result<PathBuf> {
    let current = std::env::current_exe().context("cannot find the running program")?;
    locate(std::env::var_os("WATTLINE_BIN"), &current)
}

/// Finds the binary, given the variable's value and the running program.
fn locate(chosen: Option<OsString>, current: &Path) -> Result<PathBuf> {
    if let Some(path) = chosen {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "WATTLINE_BIN is {}, which is no file", path.display());
        return Ok(path);
    }
    // Tests lie in target/debug/deps, tools in target/debug.
    let found =
        current.ancestors().skip(1).take(2).map(|dir| dir.join("wattline")).find(|path| path.is_file());
    found.with_context(|| {
        format!("no `wattline` beside {}: run `cargo build` first, or set WATTLINE_BIN", current.display())
    })
}

/// Runs a command of the program in a host, with whatever outcome.
pub fn command(host: &Host, args: &[&str]) -> Result<Output> {
    host.command(binary()?).args(args).output(COMMAND_LIMIT)
}

/// Runs a command that has to succeed; returns its standard output.
pub fn run(host: &Host, args: &[&str]) -> Result<String> {
    let output = command(host, args)?;
    ensure!(
        output.status.success(),
        "{}: `wattline {}` failed ({}): {}",
        host.name(),
        args.join(" "),
        output.status,
        output.stderr.trim()
    );
    Ok(output.stdout)
}

/// Runs a command that has to succeed, with `-o json`, and parses its answer.
pub fn json(host: &Host, args: &[&str]) -> Result<Value> {
    let text = run(host, &[args, &["-o", "json"]].concat())?;
    serde_json::from_str(&text)
        .with_context(|| format!("`wattline {}` printed no JSON: {text}", args.join(" ")))
}

/// Starts decapsulation on a backend's `eth0`, for outer sources in these prefixes.
pub fn decap(host: &Host, allow: &[&str]) -> Result<()> {
    let mut args = vec!["decap", "attach", "eth0"];
    for prefix in allow {
        args.extend(["--allow", prefix]);
    }
    run(host, &args).map(drop)
}

/// An agent running in a host; dropping it kills it, and what it pinned stays until the host ends.
#[derive(Debug)]
pub struct Agent {
    host: Host,
    process: Process,
}

impl Agent {
    /// Writes the configuration, starts the agent and waits until it answers.
    pub fn start(host: &Host, config: &str) -> Result<Self> {
        Self::write_config(host, config)?;
        let mut agent = Self::spawn(host)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts an agent with the configuration that is there, without waiting.
    pub fn spawn(host: &Host) -> Result<Self> {
        let log = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
        let process =
            host.command(binary()?).args(["agent", "--config", CONFIG]).env("RUST_LOG", log).spawn()?;
        Ok(Self { host: host.clone(), process })
    }

    /// Replaces the configuration file at once, as an editor does: a running agent notices by itself.
    pub fn write_config(host: &Host, config: &str) -> Result<()> {
        let new = format!("{CONFIG}.new");
        host.write(&new, config)?;
        host.run(|| std::fs::rename(&new, CONFIG)).with_context(|| format!("cannot rename {new}"))
    }

    /// Waits until `wattline status` succeeds; an agent that ends before that is an error with its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let ended = self.process.try_wait()?;
            if ended.is_some() {
                bail!("{}; its log:\n{}", self.process.describe(), self.process.stderr());
            }
            let status = command(&self.host, &["status", "-o", "json"])?;
            if status.status.success() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "the agent is not ready after {READY_LIMIT:?}: {}\nits log:\n{}",
                    status.stderr.trim(),
                    self.process.stderr()
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Kills the agent with SIGKILL and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill(Signal::SIGKILL)?;
        self.process.wait(COMMAND_LIMIT).map(drop)
    }

    /// Asks the agent to end with SIGTERM and waits; an exit status other than success is an error with its log.
    pub fn terminate(mut self) -> Result<()> {
        self.process.kill(Signal::SIGTERM)?;
        let status = self.process.wait(COMMAND_LIMIT)?;
        ensure!(status.success(), "{}; its log:\n{}", self.process.describe(), self.process.stderr());
        Ok(())
    }

    /// The agent's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What the agent has logged so far.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Where the agent runs.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_beside_tests_and_tools() {
        let target = tempfile::tempdir().unwrap();
        let deps = target.path().join("deps");
        let (test, tool) = (deps.join("lab-0123"), target.path().join("xtask"));
        let error = locate(None, &test).unwrap_err();
        assert!(error.to_string().contains("run `cargo build` first"), "{error:#}");

        let built = target.path().join("wattline");
        std::fs::write(&built, "").unwrap();
        assert_eq!(locate(None, &test).unwrap(), built);
        assert_eq!(locate(None, &tool).unwrap(), built);
        assert_eq!(locate(Some(built.clone().into()), Path::new("/elsewhere/x")).unwrap(), built);
        let error = locate(Some("/nowhere/wattline".into()), &test).unwrap_err();
        assert!(error.to_string().contains("WATTLINE_BIN is /nowhere/wattline"), "{error:#}");
    }
}
