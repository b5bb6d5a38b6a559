//! `cargo xtask demo`: real connections through a load balancer to six backends in two sites; one fails and returns.
//!
//! Everything happens in a lab of anonymous namespaces, so nothing is left behind, however the demo ends. The parts:
//! `cast` (who takes part), `stage` (the lab and the programs in it), `traffic` (the client), `observe` (what the agent
//! says), `timeline` and `verdict` (what became of each connection, and why), `script` (what happens when), `view`,
//! `paint` and `screen` (drawing), `summary` (the end). Nothing here may count a connection as explained that is not.

mod cast;
mod connections;
mod interrupt;
mod numbers;
mod observe;
mod paint;
mod play;
mod screen;
mod script;
mod stage;
mod summary;
mod timeline;
mod traffic;
mod verdict;
mod view;

use std::{env, ffi::OsString, os::unix::process::CommandExt as _, process::Command, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{test, workspace};

/// Options of the command.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How long traffic flows, in seconds; setting up and taking down come on top
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(10..=86_400))]
    seconds: u32,
    /// What to print on standard output; with `json` exactly one object, and the progress on standard error
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The wattline binary is built already: set when the demo starts itself again as root
    #[arg(long, hide = true)]
    built: bool,
}

/// What to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A live table at a terminal, a line now and then elsewhere, and a summary
    Table,
    /// One JSON object at the end
    Json,
}

/// The option with which the demo starts itself again.
const BUILT: &str = "--built";
/// Exit code after an interrupt, as shells count: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !workspace::is_root() && test::in_path("sudo").is_none() {
        bail!("the demo needs root (namespaces, loading programs), and there is no sudo: run this as root");
    }
    if !arguments.built {
        // As whoever calls, so that `target` stays theirs.
        eprintln!("Building wattline (the first time takes minutes) …");
        test::build_wattline(&workspace::root()?)?;
    }
    if !workspace::is_root() {
        return Err(become_root());
    }
    play::play(arguments)
}

/// Replaces this process by itself under sudo; returns only if that fails.
fn become_root() -> anyhow::Error {
    eprintln!("The demo makes network namespaces and loads XDP programs, which takes root: asking sudo.");
    let own = match env::current_exe().context("cannot find the running program") {
        Ok(own) => own,
        Err(error) => return error,
    };
    let arguments: Vec<OsString> = env::args_os().skip(1).filter(|argument| argument != BUILT).collect();
    let error = Command::new("sudo").arg("-E").arg(own).args(arguments).arg(BUILT).exec();
    anyhow::Error::new(error).context("cannot run sudo")
}
