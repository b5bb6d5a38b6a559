//! `wattline agent`: from flags to a running agent.

use std::path::PathBuf;

use clap::Args;

use super::context::Context;
use super::exit::{Code, Failure};
use crate::agent::AgentOptions;

#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// Configuration file; changes to it are applied as they are saved
    #[arg(
        short,
        long,
        env = "WATTLINE_CONFIG",
        value_name = "FILE",
        default_value = "/etc/wattline/wattline.toml"
    )]
    config: PathBuf,
    /// Check the configuration file, change nothing, and end; `wattline doctor` checks the machine
    #[arg(long)]
    check: bool,
}

pub(super) fn run(context: &Context, args: AgentArgs) -> Result<Code, Failure> {
    let options = AgentOptions {
        config: args.config,
        runtime_dir: context.runtime_dir().to_owned(),
        socket: context.socket(),
        bpffs: context.bpffs().to_owned(),
        check: args.check,
    };
    crate::agent::run(&options).map_err(|error| Failure::kernel(&error))?;
    Ok(Code::Ok)
}
