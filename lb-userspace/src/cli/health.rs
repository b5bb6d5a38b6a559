//! `wattline health`: what the checks say.

use clap::Subcommand;

use super::context::Context;
use super::exit::{Code, Failure};
use super::output::{Column, Page, ago, or_dash};
use crate::api::types::HealthList;

#[derive(Debug, Subcommand)]
pub(super) enum HealthCommand {
    /// List the checks of all backends, or of one service
    List {
        /// Only this service
        service: Option<String>,
    },
}

pub(super) fn run(context: &Context, command: &HealthCommand) -> Result<Code, Failure> {
    let HealthCommand::List { service } = command;
    context.watched(|| {
        let mut list: HealthList = context.get("/v1/health")?;
        if let Some(service) = service {
            list.health.retain(|check| check.service == *service);
        }
        context.print(&list, show)
    })
}

fn show(list: &HealthList, page: &mut Page) {
    let mut columns = vec![
        Column::text("SERVICE"),
        Column::text("BACKEND"),
        Column::state("STATE"),
        Column::text("CHECK"),
        Column::number("IN A ROW"),
        Column::number("LATENCY"),
        Column::text("LAST CHECK"),
        Column::text("RESULT"),
    ];
    if page.wide() {
        columns.extend([Column::text("ADDRESS"), Column::text("SINCE")]);
    }
    let rows = list
        .health
        .iter()
        .map(|check| {
            let port = check.port.map_or_else(String::new, |port| format!(" :{port}"));
            let mut row = vec![
                check.service.clone(),
                check.backend.clone(),
                check.state.as_str().to_owned(),
                format!("{}{port}", check.kind),
                format!("{:+}", check.consecutive),
                or_dash(check.latency_ms.map(|latency| format!("{latency:.1} ms"))),
                or_dash(check.last_check.map(ago)),
                or_dash(check.last_result.as_ref()),
            ];
            if page.wide() {
                row.extend([check.address.to_string(), or_dash(check.since.map(ago))]);
            }
            row
        })
        .collect();
    page.table(&columns, rows, "no backends");
}
