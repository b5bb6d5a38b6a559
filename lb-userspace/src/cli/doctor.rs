//! `wattline doctor`: why this machine cannot forward, or not fast, and what to do about it.

use clap::Args;

use super::context::Context;
use super::exit::{Code, Failure};

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Also look at this interface
    interface: Option<String>,
}

pub(super) fn run(_context: &Context, args: &DoctorArgs) -> Result<Code, Failure> {
    let what = args.interface.as_deref().unwrap_or("this machine");
    Err(Failure::new(Code::Other, format!("cannot examine {what}: not wired yet"), ""))
}
