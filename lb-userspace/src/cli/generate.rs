//! `wattline completions` and `wattline man`: what the shell and the manual know of the commands.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::context::Context;
use super::exit::{Code, Failure};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// An existing directory, one page a command
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn completions(context: &Context, args: &CompletionsArgs) -> Result<Code, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "wattline", &mut script);
    context.print_text(&String::from_utf8_lossy(&script))?;
    Ok(Code::Ok)
}

pub(super) fn man(args: &ManArgs) -> Result<Code, Failure> {
    clap_mangen::generate_to(Cli::command(), &args.directory).map_err(|error| {
        let message = format!("cannot write manual pages to {}: {error}", args.directory.display());
        Failure::new(Code::Other, message, "name an existing directory that you may write to")
    })?;
    Ok(Code::Ok)
}
