//! `wattline backend`: the machines that answer, and taking them out and back in.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use hyper::Method;

use super::context::Context;
use super::exit::{Code, Failure};
use super::output::{Column, Page, or_dash, percent};
use super::route::next_hop;
use super::values::BackendName;
use super::{WriteArgs, service, written};
use crate::api::change::BackendPatch;
use crate::api::client::{Payload, encode};
use crate::api::types::{Admin, AdminRequest, ApplyResult, BackendList, BackendView, NextHop, Versioned};
use crate::config::Backend;
use crate::config::model::DEFAULT_WEIGHT;

#[derive(Debug, Subcommand)]
pub(super) enum BackendCommand {
    /// List the backends of all services, or of one
    List {
        /// Only this service
        service: Option<String>,
    },
    /// Show one backend
    Get {
        /// Full name, SERVICE/BACKEND
        backend: BackendName,
    },
    /// Add a backend
    Add(AddArgs),
    /// Change fields of a backend
    Set(SetArgs),
    /// Delete a backend
    Delete(NameArgs),
    /// Give a backend weight 0, to empty it
    ///
    /// Until flow state exists, open connections of the moved slots move to other backends as well and break there.
    Drain(NameArgs),
    /// Put a backend back in
    Ready(NameArgs),
    /// Take a backend out for maintenance: weight 0, and no health checks
    ///
    /// Until flow state exists, open connections of the moved slots move to other backends as well and break there.
    Maint(NameArgs),
}

#[derive(Debug, Args)]
pub(super) struct NameArgs {
    /// Full name, SERVICE/BACKEND
    backend: BackendName,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Full name, SERVICE/BACKEND
    backend: BackendName,
    /// Address that packets are sent to
    #[arg(long, value_name = "IP")]
    address: IpAddr,
    /// Share of new connections relative to the other backends; 0 takes none
    #[arg(long, default_value_t = DEFAULT_WEIGHT)]
    weight: u16,
    /// Label for the place it stands at
    #[arg(long)]
    site: Option<String>,
    /// State to begin with: ready, drain or maint
    #[arg(long, value_name = "STATE", default_value = "ready")]
    admin: Admin,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// Full name, SERVICE/BACKEND
    backend: BackendName,
    /// Address that packets are sent to
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Share of new connections relative to the other backends; 0 takes none
    #[arg(long)]
    weight: Option<u16>,
    /// Label for the place it stands at; "" removes it
    #[arg(long)]
    site: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
}

fn path(name: &BackendName) -> String {
    format!("{}/backends/{}", service::path(&name.service), encode(&name.backend))
}

pub(super) fn run(context: &Context, command: BackendCommand) -> Result<Code, Failure> {
    let result: ApplyResult = match command {
        BackendCommand::List { service } => {
            let path = service.map_or_else(
                || "/v1/backends".to_owned(),
                |service| format!("{}/backends", service::path(&service)),
            );
            return context.watched(|| {
                context.print(&context.get::<BackendList>(&path)?, |list, page| table(&list.backends, page))
            });
        }
        BackendCommand::Get { backend } => {
            let path = path(&backend);
            return context.watched(|| {
                let view: Versioned<BackendView> = context.get(&path)?;
                context.print(&view, |view, page| details(&view.item, page))
            });
        }
        BackendCommand::Add(args) => {
            let mut backend = Backend::new(&args.backend.backend, args.address);
            backend.weight = args.weight;
            backend.site = args.site;
            backend.admin = args.admin;
            let path = format!("{}/backends", service::path(&args.backend.service));
            context.write(Method::POST, &path, args.write, Payload::json(&backend)?)?
        }
        BackendCommand::Set(args) => {
            let site = args.site.map(|site| if site.is_empty() { None } else { Some(site) });
            let patch = BackendPatch { address: args.address, weight: args.weight, site };
            context.write(Method::PATCH, &path(&args.backend), args.write, Payload::json(&patch)?)?
        }
        BackendCommand::Delete(args) => {
            if !args.write.dry_run {
                context.confirm(&format!("Delete backend {}?", args.backend))?;
            }
            context.write(Method::DELETE, &path(&args.backend), args.write, Payload::None)?
        }
        BackendCommand::Drain(args) => return set_admin(context, &args, Admin::Drain),
        BackendCommand::Ready(args) => return set_admin(context, &args, Admin::Ready),
        BackendCommand::Maint(args) => return set_admin(context, &args, Admin::Maint),
    };
    written::print(context, &result)?;
    Ok(Code::Ok)
}

fn set_admin(context: &Context, args: &NameArgs, admin: Admin) -> Result<Code, Failure> {
    let path = format!("{}/admin", path(&args.backend));
    let payload = Payload::json(&AdminRequest { admin })?;
    let result: ApplyResult = context.write(Method::PUT, &path, args.write, payload)?;
    written::print(context, &result)?;
    if admin != Admin::Ready && result.changed {
        let moved = written::moved(&result);
        let (sets, slots) = if result.dry_run {
            ("would set", format!("{moved} slots would move"))
        } else {
            ("sets", format!("{moved} slots moved"))
        };
        context.note(&format!(
            "warning: {admin} {sets} the weight of {} to 0, and {slots}. Until flow state exists, open connections in \
             those slots move to other backends too and break.",
            args.backend
        ));
    }
    Ok(Code::Ok)
}

fn table(backends: &[BackendView], page: &mut Page) {
    let mut columns = vec![
        Column::text("SERVICE"),
        Column::text("BACKEND"),
        Column::text("ADDRESS"),
        Column::state("ADMIN"),
        Column::state("HEALTH"),
        Column::number("WEIGHT"),
        Column::number("EFFECTIVE"),
        Column::number("SHARE"),
        Column::number("PACKETS"),
    ];
    if page.wide() {
        columns.extend([
            Column::number("BYTES"),
            Column::number("SLOTS"),
            Column::text("SITE"),
            Column::text("NEXT HOP"),
        ]);
    }
    let rows = backends
        .iter()
        .map(|backend| {
            let mut row = vec![
                backend.service.clone(),
                backend.name.clone(),
                backend.address.to_string(),
                backend.admin.to_string(),
                backend.health.as_str().to_owned(),
                backend.weight.to_string(),
                backend.effective_weight.to_string(),
                percent(backend.share),
                backend.packets.to_string(),
            ];
            if page.wide() {
                row.extend([
                    backend.bytes.to_string(),
                    backend.slots.to_string(),
                    or_dash(backend.site.as_ref()),
                    next_hop(&backend.next_hop),
                ]);
            }
            row
        })
        .collect();
    page.table(&columns, rows, "no backends; add one: wattline backend add SERVICE/BACKEND --address IP");
    for backend in backends {
        if let NextHop::Unresolved { reason } = &backend.next_hop {
            page.line(format!("backend {}/{}: no way to it: {reason}", backend.service, backend.name));
        }
    }
}

fn details(backend: &BackendView, page: &mut Page) {
    page.pairs(&[
        ("service", backend.service.clone()),
        ("backend", backend.name.clone()),
        ("address", backend.address.to_string()),
        ("admin", backend.admin.to_string()),
        ("health", backend.health.as_str().to_owned()),
        ("weight", format!("{}, effective {}", backend.weight, backend.effective_weight)),
        ("ring", format!("{} slots, {}", backend.slots, percent(backend.share))),
        ("site", or_dash(backend.site.as_ref())),
        ("next hop", next_hop(&backend.next_hop)),
        ("forwarded", format!("{} packets, {} bytes", backend.packets, backend.bytes)),
    ]);
}
