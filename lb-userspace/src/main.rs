//! The `wattline` binary: agent and command line in one.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}
