//! `wattline version`: of this program; needs no agent.

use serde::Serialize;

use super::context::Context;
use super::exit::{Code, Failure};
use crate::api::types::SchemaVersion;

/// Releases and formats of this program.
#[derive(Serialize)]
struct Version {
    schema_version: SchemaVersion,
    version: &'static str,
}

pub(super) fn run(context: &Context) -> Result<Code, Failure> {
    let version = Version { schema_version: SchemaVersion, version: env!("CARGO_PKG_VERSION") };
    context.print(&version, |version, page| page.line(format!("wattline {}", version.version)))?;
    Ok(Code::Ok)
}
