//! `wattline doctor`: why this machine cannot forward, or not fast, and what to do about it.

use clap::Args;
use serde::Serialize;

use super::context::Context;
use super::exit::{Code, Failure};
use super::output::{Column, Page};
use crate::api::types::SchemaVersion;
use crate::doctor::{self, Finding, Request, Severity, Summary};

/// Arguments of the command.
#[derive(Debug, Args)]
#[command(
    after_help = "Changes nothing. Exits with 0 if there is no problem (notes and warnings are none), otherwise 6."
)]
pub(super) struct DoctorArgs {
    /// Only look at this interface, as if it were to balance [default: those in use; if none, all that could be]
    interface: Option<String>,
}

/// The whole examination.
#[derive(Serialize)]
struct Report {
    schema_version: SchemaVersion,
    summary: Summary,
    findings: Vec<Finding>,
}

pub(super) fn run(context: &Context, args: &DoctorArgs) -> Result<Code, Failure> {
    let mut code = Code::Ok;
    context.watched(|| {
        let request = Request {
            interface: args.interface.as_deref(),
            bpffs: context.bpffs(),
            socket: context.socket(),
            timeout: context.timeout(),
        };
        let findings = doctor::examine(&request).map_err(|error| Failure::kernel(&error))?;
        let report = Report { schema_version: SchemaVersion, summary: Summary::of(&findings), findings };
        if report.summary.problem > 0 {
            code = Code::Kernel;
        }
        context.print(&report, show)
    })?;
    Ok(code)
}

fn show(report: &Report, page: &mut Page) {
    let columns =
        [Column::state("STATE"), Column::text("OF"), Column::text("CHECK"), Column::text("FINDING")];
    let rows = report.findings.iter().map(|finding| {
        let Finding { id, subject, severity, finding, .. } = finding;
        vec![severity.as_str().to_owned(), subject.clone(), (*id).to_owned(), finding.clone()]
    });
    page.table(&columns, rows.collect(), "nothing was looked at");
    let mut bad: Vec<_> =
        report.findings.iter().filter_map(|found| Some((found, found.cure.as_ref()?))).collect();
    // The worst first; among equals the order of the table.
    bad.sort_by_key(|(finding, _)| std::cmp::Reverse(finding.severity));
    if !bad.is_empty() {
        page.line("");
        page.line("What to do:");
    }
    for (finding, cure) in bad {
        page.line(format!("  {} {} {}: {cure}", finding.severity.as_str(), finding.subject, finding.id));
    }
    let Summary { ok, note, warning, problem } = report.summary;
    let some = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    page.line("");
    page.line(format!(
        "{}, {}, {}, {ok} ok",
        some(problem, Severity::Problem.as_str()),
        some(warning, Severity::Warning.as_str()),
        some(note, Severity::Note.as_str()),
    ));
}
