//! The command line: nouns that show, verbs that change.
//!
//! One file a noun. Commands ask the agent over its socket, or look at a file or the kernel themselves; none of them
//! writes a map. Data goes to standard output, messages to standard error, and a failure never ends with 0.

mod agent;
mod backend;
mod config;
mod context;
mod dataplane;
mod decap;
mod doctor;
mod exit;
mod generate;
mod health;
mod kernel;
mod output;
mod route;
mod service;
mod stats;
mod status;
mod values;
mod version;
mod written;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use context::Context;
use exit::Failure;
use output::Format;

/// What the exit codes mean; also in `docs/cli.md`.
const EXIT_CODES: &str = "\
Exit codes:
  0  ok
  1  there are differences (config diff only)
  2  wrong usage, or a name that does not exist
  3  the agent cannot be reached
  4  the configuration or a value is not valid
  5  conflict: it exists already, or the generation is another one
  6  the kernel or a permission refused, or doctor found a problem
  7  timeout
  8  any other failure

Data goes to standard output, messages to standard error. With -o json, errors are JSON on standard error.";

/// A layer-4 load balancer in the network driver: agent and command line in one
#[derive(Debug, Parser)]
#[command(name = "wattline", version, about = "A layer-4 load balancer in the network driver: agent and command line in one", after_help = EXIT_CODES, propagate_version = false)]
#[command(arg_required_else_help = true, subcommand_required = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
struct Global {
    /// How to print data: table, wide (more columns) or json (with --watch one object a line)
    #[arg(hide_possible_values = true)]
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "FORMAT")]
    #[arg(help_heading = "Global options")]
    output: Format,
    /// Repeat every SECONDS (2 if not said) until interrupted
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_missing_value = "2")]
    #[arg(value_name = "SECONDS", value_parser = values::duration, help_heading = "Global options")]
    watch: Option<Duration>,
    /// Socket of the agent [default: wattline.sock in the runtime directory]
    #[arg(
        long,
        global = true,
        env = "WATTLINE_SOCKET",
        value_name = "PATH",
        help_heading = "Global options"
    )]
    socket: Option<PathBuf>,
    /// Directory of the agent's socket, lock and state
    #[arg(long, global = true, env = "WATTLINE_RUNTIME_DIR", default_value = "/run/wattline")]
    #[arg(value_name = "DIR", help_heading = "Global options")]
    runtime_dir: PathBuf,
    /// Root of the BPF file system
    #[arg(long, global = true, env = "WATTLINE_BPFFS", default_value = "/sys/fs/bpf", value_name = "DIR")]
    #[arg(help_heading = "Global options")]
    bpffs: PathBuf,
    /// How long to wait for the agent, such as 5, 5s or 500ms
    #[arg(long, global = true, default_value = "10s", value_parser = values::duration)]
    #[arg(value_name = "TIME", help_heading = "Global options")]
    timeout: Duration,
    /// Say more; twice for still more
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    quiet: bool,
    /// No colours; the environment variable `NO_COLOR` does the same
    #[arg(long, global = true, help_heading = "Global options")]
    no_color: bool,
    /// Do not ask before something is deleted (questions are only asked at a terminal)
    #[arg(short, long, global = true, help_heading = "Global options")]
    yes: bool,
}

/// Conditions of a write.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Conditions")]
struct WriteArgs {
    /// Only write if the running configuration has this generation (see `wattline status`)
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
    /// Only show what would happen
    #[arg(long)]
    dry_run: bool,
}

// Nouns don't change state, verbs do. The order is that of a newcomer's first hour.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent: load, attach, forward, check health, serve the API
    Agent(agent::AgentArgs),
    /// Show the agent and the data plane at a glance
    Status,
    /// Show and change services
    #[command(subcommand, visible_alias = "svc")]
    Service(service::ServiceCommand),
    /// Show and change backends, take them out and back in
    #[command(subcommand, visible_alias = "be")]
    Backend(backend::BackendCommand),
    /// Check, show, compare, apply and save configurations
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Show health checks
    #[command(subcommand)]
    Health(health::HealthCommand),
    /// Show where a flow would go, and why; sends nothing
    Route(route::RouteArgs),
    /// Show packet counters
    Stats(stats::StatsArgs),
    /// Attach, detach and inspect the forwarding program
    #[command(subcommand)]
    Dataplane(dataplane::DataplaneCommand),
    /// On a backend: remove the encapsulation of packets from load balancers
    #[command(subcommand)]
    Decap(decap::DecapCommand),
    /// Find out why this machine cannot forward, or not fast, and what to do about it
    Doctor(doctor::DoctorArgs),
    /// Show the version
    Version,
    /// Print a completion script for a shell
    Completions(generate::CompletionsArgs),
    /// Write manual pages to a directory
    Man(generate::ManArgs),
}

/// Parses the arguments of this process, does what they say, and tells how to end.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.global.output;
    let context = Context::new(cli.global);
    // The agent logs what it does; for everything else a log line is a warning.
    let level = if matches!(cli.command, Command::Agent(_)) {
        log::LevelFilter::Info
    } else {
        log::LevelFilter::Warn
    };
    context.start_log(level);
    match dispatch(&context, cli.command) {
        Ok(code) => ExitCode::from(code as u8),
        Err(failure) => failure.report(format, &context),
    }
}

fn dispatch(context: &Context, command: Command) -> Result<exit::Code, Failure> {
    match command {
        Command::Agent(args) => agent::run(context, args),
        Command::Status => status::run(context),
        Command::Service(command) => service::run(context, command),
        Command::Backend(command) => backend::run(context, command),
        Command::Config(command) => config::run(context, command),
        Command::Health(command) => health::run(context, &command),
        Command::Route(args) => route::run(context, &args),
        Command::Stats(args) => stats::run(context, &args),
        Command::Dataplane(command) => dataplane::run(context, command),
        Command::Decap(command) => decap::run(context, command),
        Command::Doctor(args) => doctor::run(context, &args),
        Command::Version => version::run(context),
        Command::Completions(args) => generate::completions(context, &args),
        Command::Man(args) => generate::man(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn docs_list_every_command_and_exit_code() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
        let text = std::fs::read_to_string(path).unwrap();
        for noun in Cli::command().get_subcommands() {
            let names: Vec<String> = if noun.has_subcommands() {
                noun.get_subcommands()
                    .map(|verb| format!("{} {}", noun.get_name(), verb.get_name()))
                    .collect()
            } else {
                vec![noun.get_name().to_owned()]
            };
            for name in names {
                assert!(text.contains(&format!("`wattline {name}")), "docs/cli.md lacks `wattline {name}`");
            }
        }
        for line in EXIT_CODES.lines().filter(|line| line.starts_with("  ")) {
            let code = line.trim_start().chars().next().unwrap();
            assert!(text.contains(&format!("| {code} |")), "docs/cli.md lacks exit code {code}");
        }
    }
}
