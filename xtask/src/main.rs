//! Development commands, `cargo xtask COMMAND`: what builds, checks and tests this repository beyond plain cargo.
//!
//! A file per command. Nothing here may be needed to build or to run Wattline itself.

mod demo;
mod ebpf;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development commands of this repository.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Rebuild the committed eBPF objects, or check that they are what the sources make
    Ebpf(ebpf::Arguments),
    /// See it work: real connections through a load balancer to six backends, one of which fails and returns
    Demo(demo::Arguments),
    /// Run the tests, as root (through sudo where needed)
    Test(test::Arguments),
    /// Check tracked files: purpose stated, not too long, nothing of this machine in them
    Tidy,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => return finish(demo::run(&arguments)),
        Command::Ebpf(arguments) => ebpf::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Tidy => tidy::run(),
    };
    finish(result.map(|()| ExitCode::SUCCESS))
}

/// The exit code of a command, after saying why it failed.
fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
