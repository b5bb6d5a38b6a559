//! Development commands, `cargo xtask COMMAND`: what builds, checks and tests this repository beyond plain cargo.
//!
//! A file per command. Nothing here may be needed to build or to run Wattline itself.

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
    /// Run the tests, as root (through sudo where needed)
    Test(test::Arguments),
    /// Check tracked files: purpose stated, not too long, nothing of this machine in them
    Tidy,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Ebpf(arguments) => ebpf::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Tidy => tidy::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
