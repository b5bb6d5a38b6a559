//! `wattline dataplane`: the forwarding program on interfaces, with the agent or without it.
//!
//! Attaching needs the agent, which holds the maps. Detaching asks the agent where it runs, so that it does not attach
//! again, and works on the pins where it does not.

use clap::Subcommand;
use hyper::Method;
use serde::Serialize;

use super::context::Context;
use super::exit::{Code, Failure};
use super::{kernel, status};
use crate::api::client::Payload;
use crate::api::types::{
    AttachRequest, DetachRequest, InterfaceStatus, SchemaVersion, Status, Versioned, XdpMode,
};

#[derive(Debug, Subcommand)]
pub(super) enum DataplaneCommand {
    /// Attach the forwarding program to an interface
    Attach {
        /// Name of the interface
        interface: String,
        /// native or generic [default: as the configuration says]
        #[arg(long)]
        mode: Option<XdpMode>,
    },
    /// Detach the forwarding program from an interface, or from all: forwarding there ends
    Detach {
        /// Name of the interface; all if absent
        interface: Option<String>,
    },
    /// Show what is pinned and attached; needs no agent
    Status,
    /// Detach from all interfaces and remove everything that is pinned; the agent must not run
    Clean,
}

/// What `detach` and `clean` did.
#[derive(Serialize)]
struct Removed {
    schema_version: SchemaVersion,
    detached: Vec<String>,
    cleaned: bool,
}

pub(super) fn run(context: &Context, command: DataplaneCommand) -> Result<Code, Failure> {
    match command {
        DataplaneCommand::Attach { interface, mode } => {
            let payload = Payload::json(&AttachRequest { interface, mode })?;
            let made: Versioned<InterfaceStatus> =
                context.send(Method::POST, "/v1/dataplane/attach", payload)?;
            context.print(&made, |made, page| status::interfaces(std::slice::from_ref(&made.item), page))?;
            if made.item.mode == XdpMode::Generic {
                context.note("warning: generic mode works everywhere and is slow; see `wattline doctor`");
            }
            Ok(Code::Ok)
        }
        DataplaneCommand::Detach { interface } => detach(context, interface.as_deref()),
        DataplaneCommand::Status => context.watched(|| {
            let found = kernel::dataplane_status(context.bpffs()).map_err(|error| Failure::kernel(&error))?;
            context.print(&Versioned::from(found), |found, page| {
                let found = &found.item;
                let pinned = if found.pinned { "" } else { " (nothing is pinned)" };
                page.pairs(&[("pins", format!("{}{pinned}", found.pins)), ("maps", found.maps.join(" "))]);
                page.line("");
                status::interfaces(&found.interfaces, page);
            })
        }),
        DataplaneCommand::Clean => {
            // Asked first, so that nobody confirms what will be refused; the agent's lock has the last word.
            if context.agent_answers() {
                let message = format!("the agent answers on {}", context.socket().display());
                return Err(Failure::new(
                    Code::Conflict,
                    message,
                    "stop the agent first: its maps are in use",
                ));
            }
            context.confirm("Stop all forwarding and remove every pinned map, program and link?")?;
            let cleaned = crate::agent::clean(context.runtime_dir(), context.bpffs())
                .map_err(|error| Failure::kernel(&error))?;
            let removed = Removed { schema_version: SchemaVersion, detached: Vec::new(), cleaned };
            context.print(&removed, |removed, page| {
                page.line(if removed.cleaned { "removed" } else { "nothing was pinned" });
            })?;
            Ok(Code::Ok)
        }
    }
}

fn detach(context: &Context, interface: Option<&str>) -> Result<Code, Failure> {
    let what = interface.unwrap_or("every interface");
    context.confirm(&format!("Stop forwarding on {what}?"))?;
    let detached = if context.agent_answers() {
        let interfaces = if let Some(interface) = interface {
            vec![interface.to_owned()]
        } else {
            let status: Status = context.get("/v1/status")?;
            status.interfaces.into_iter().map(|interface| interface.name).collect()
        };
        for interface in &interfaces {
            let payload = Payload::json(&DetachRequest { interface: interface.clone() })?;
            let _: Versioned<InterfaceStatus> =
                context.send(Method::POST, "/v1/dataplane/detach", payload)?;
        }
        interfaces
    } else {
        kernel::dataplane_detach(context.bpffs(), interface).map_err(|error| Failure::kernel(&error))?
    };
    if let (Some(interface), true) = (interface, detached.is_empty()) {
        let message = format!("the data plane is not attached to {interface}");
        return Err(Failure::new(Code::Usage, message, "`wattline dataplane status` shows where it is"));
    }
    let removed = Removed { schema_version: SchemaVersion, detached, cleaned: false };
    context.print(&removed, |removed, page| {
        for interface in &removed.detached {
            page.line(format!("detached from {interface}"));
        }
        if removed.detached.is_empty() {
            page.line("attached to no interface");
        }
    })?;
    Ok(Code::Ok)
}
