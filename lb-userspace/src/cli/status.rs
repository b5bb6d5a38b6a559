//! `wattline status`: the agent and the data plane at a glance.

use super::context::Context;
use super::exit::{Code, Failure};
use super::output::{Column, Page, ago, or_dash, span};
use crate::api::types::{InterfaceStatus, MapUsage, Status};

pub(super) fn run(context: &Context) -> Result<Code, Failure> {
    context.watched(|| context.print(&context.get::<Status>("/v1/status")?, show))
}

fn show(status: &Status, page: &mut Page) {
    let config = &status.config;
    let loaded = match (&config.error, config.loaded_at) {
        (Some(_), _) => "REFUSED, the last good one runs".to_owned(),
        (None, Some(time)) => format!("loaded {}", ago(time)),
        (None, None) => "not loaded".to_owned(),
    };
    let unsaved = if config.unsaved { ", unsaved changes (wattline config save)" } else { "" };
    let usage = |usage: MapUsage| format!("{} of {}", usage.used, usage.capacity);
    page.pairs(&[
        ("node", status.node.clone()),
        (
            "agent",
            format!("wattline {}, pid {}, up {}", status.version, status.pid, span(status.uptime_seconds)),
        ),
        ("config", format!("{}, {loaded}{unsaved}", config.path)),
        ("generation", status.generation.to_string()),
        ("services", format!("{}, map {}", status.services, usage(status.maps.services))),
        (
            "backends",
            format!(
                "{}, {} usable, map {}",
                status.backends,
                status.backends_usable,
                usage(status.maps.backends)
            ),
        ),
        ("ring slots", format!("map {}", usage(status.maps.ring_slots))),
    ]);
    if let Some(error) = &config.error {
        page.line("");
        page.line(error);
    }
    page.line("");
    interfaces(&status.interfaces, page);
}

/// The table of interfaces, also used by `dataplane`.
pub(super) fn interfaces(interfaces: &[InterfaceStatus], page: &mut Page) {
    let columns = [
        Column::text("INTERFACE"),
        Column::number("INDEX"),
        Column::state("MODE"),
        Column::number("LINK"),
        Column::number("PROGRAM"),
        Column::text("TAG"),
        Column::text("PROBLEM"),
    ];
    let rows = interfaces
        .iter()
        .map(|interface| {
            vec![
                interface.name.clone(),
                interface.ifindex.to_string(),
                interface.mode.to_string(),
                or_dash(interface.link_id),
                or_dash(interface.program_id),
                or_dash(interface.program_tag.as_ref()),
                or_dash(interface.error.as_ref()),
            ]
        })
        .collect();
    page.table(&columns, rows, "attached to no interface");
}
