//! `wattline service`: the addresses clients connect to.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use hyper::Method;

use super::context::Context;
use super::exit::{Code, Failure};
use super::output::{Column, Page};
use super::{WriteArgs, written};
use crate::api::change::ServicePatch;
use crate::api::client::{Payload, encode};
use crate::api::types::{ApplyResult, ConfigView, ServiceList, ServiceView, Versioned};
use crate::config::{AllDown, HealthKind, HealthSettings, Mode, Port, Protocol, Service};

#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// List all services
    List,
    /// Show one service
    Get {
        /// Name of the service
        service: String,
    },
    /// Add a service without backends
    Add(Box<AddArgs>),
    /// Change fields of a service
    Set(Box<SetArgs>),
    /// Delete a service and its backends
    Delete {
        /// Name of the service
        service: String,
        #[command(flatten)]
        write: WriteArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Name of the service
    service: String,
    /// Address that clients connect to
    #[arg(long, value_name = "IP")]
    address: IpAddr,
    /// Port that clients connect to, or "any"
    #[arg(long)]
    port: Port,
    /// tcp or udp
    #[arg(long, default_value = "tcp")]
    protocol: Protocol,
    /// How packets get to backends: ipip, gue or l2
    #[arg(long, default_value = "ipip")]
    mode: Mode,
    /// Slots of the ring, a prime [default: from the number of backends]
    #[arg(long, value_name = "PRIME")]
    ring_slots: Option<u32>,
    /// When no backend is usable: open (send to all) or drop
    #[arg(long, value_name = "POLICY", default_value = "open")]
    all_down: AllDown,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// Name of the service
    service: String,
    /// Address that clients connect to
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Port that clients connect to, or "any"
    #[arg(long)]
    port: Option<Port>,
    /// tcp or udp
    #[arg(long)]
    protocol: Option<Protocol>,
    /// How packets get to backends: ipip, gue or l2
    #[arg(long)]
    mode: Option<Mode>,
    /// Slots of the ring, a prime; "auto": from the number of backends
    #[arg(long, value_name = "PRIME|auto", value_parser = ring_slots)]
    ring_slots: Option<RingSlots>,
    /// When no backend is usable: open (send to all) or drop
    #[arg(long, value_name = "POLICY")]
    all_down: Option<AllDown>,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    write: WriteArgs,
}

/// A ring size, or none to have it chosen.
#[derive(Debug, Clone, Copy)]
struct RingSlots(Option<u32>);

fn ring_slots(text: &str) -> Result<RingSlots, String> {
    match text {
        "auto" => Ok(RingSlots(None)),
        number => number
            .parse()
            .map(|slots| RingSlots(Some(slots)))
            .map_err(|_| "write a prime number, or auto".to_owned()),
    }
}

/// Health settings of one service; what is not given comes from the `[health]` section.
#[derive(Debug, Args)]
#[command(next_help_heading = "Health check")]
#[allow(clippy::struct_field_names, reason = "the names of the flags are made of them")]
struct HealthArgs {
    /// tcp, http or none
    #[arg(long, value_name = "TYPE")]
    health_type: Option<HealthKind>,
    /// Path of the HTTP request
    #[arg(long, value_name = "PATH")]
    health_path: Option<String>,
    /// HTTP status codes that count as success
    #[arg(long, value_name = "CODE,...", value_delimiter = ',')]
    health_status: Option<Vec<u16>>,
    /// Text that the HTTP body must contain
    #[arg(long, value_name = "TEXT")]
    health_body: Option<String>,
    /// Host header of the HTTP request
    #[arg(long, value_name = "HOST")]
    health_host: Option<String>,
    /// Port that is checked
    #[arg(long, value_name = "PORT")]
    health_port: Option<u16>,
    /// Milliseconds between two checks
    #[arg(long, value_name = "MS")]
    health_interval_ms: Option<u32>,
    /// Milliseconds that one check may take
    #[arg(long, value_name = "MS")]
    health_timeout_ms: Option<u32>,
    /// Successes in a row that make a backend healthy
    #[arg(long, value_name = "N")]
    health_rise: Option<u32>,
    /// Failures in a row that make a backend unhealthy
    #[arg(long, value_name = "N")]
    health_fall: Option<u32>,
    /// Bytes of an HTTP body that are read at most
    #[arg(long, value_name = "BYTES")]
    health_max_body_bytes: Option<u32>,
}

impl HealthArgs {
    /// What is given, over `base`.
    fn over(&self, base: HealthSettings) -> HealthSettings {
        HealthSettings {
            kind: self.health_type.or(base.kind),
            path: self.health_path.clone().or(base.path),
            status: self.health_status.clone().or(base.status),
            body: self.health_body.clone().or(base.body),
            host: self.health_host.clone().or(base.host),
            port: self.health_port.or(base.port),
            interval_ms: self.health_interval_ms.or(base.interval_ms),
            timeout_ms: self.health_timeout_ms.or(base.timeout_ms),
            rise: self.health_rise.or(base.rise),
            fall: self.health_fall.or(base.fall),
            max_body_bytes: self.health_max_body_bytes.or(base.max_body_bytes),
        }
    }
}

/// Path of a service in the API.
pub(super) fn path(service: &str) -> String {
    format!("/v1/services/{}", encode(service))
}

pub(super) fn run(context: &Context, command: ServiceCommand) -> Result<Code, Failure> {
    match command {
        ServiceCommand::List => context.watched(|| {
            context
                .print(&context.get::<ServiceList>("/v1/services")?, |list, page| table(&list.services, page))
        }),
        ServiceCommand::Get { service } => context.watched(|| {
            let view: Versioned<ServiceView> = context.get(&path(&service))?;
            context.print(&view, |view, page| details(&view.item, page))
        }),
        ServiceCommand::Add(args) => add(context, &args),
        ServiceCommand::Set(args) => set(context, &args),
        ServiceCommand::Delete { service, write } => {
            if !write.dry_run {
                context.confirm(&format!("Delete service {service} and its backends?"))?;
            }
            let result: ApplyResult = context.write(Method::DELETE, &path(&service), write, Payload::None)?;
            written::print(context, &result)?;
            Ok(Code::Ok)
        }
    }
}

fn add(context: &Context, args: &AddArgs) -> Result<Code, Failure> {
    let mut service = Service::new(&args.service, args.address, args.port, args.protocol);
    service.mode = args.mode;
    service.ring_slots = args.ring_slots;
    service.all_down = args.all_down;
    service.health = args.health.over(HealthSettings::default());
    let payload = Payload::json(&service)?;
    let result: ApplyResult = context.write(Method::POST, "/v1/services", args.write, payload)?;
    written::print(context, &result)?;
    Ok(Code::Ok)
}

fn set(context: &Context, args: &SetArgs) -> Result<Code, Failure> {
    let mut write = args.write;
    let mut patch = ServicePatch {
        address: args.address,
        port: args.port,
        protocol: args.protocol,
        mode: args.mode,
        ring_slots: args.ring_slots.map(|slots| slots.0),
        all_down: args.all_down,
        health: None,
    };
    if !args.health.over(HealthSettings::default()).is_empty() {
        // Health settings are replaced as a whole, so the new ones are laid over the present ones; the generation
        // makes sure that nobody else changes them between reading and writing.
        let present: ConfigView = context.get("/v1/config")?;
        let base = present.config.service(&args.service).map(|service| service.health.clone());
        patch.health = Some(args.health.over(base.unwrap_or_default()));
        write.if_generation = write.if_generation.or(Some(present.generation));
    }
    let result: ApplyResult =
        context.write(Method::PATCH, &path(&args.service), write, Payload::json(&patch)?)?;
    written::print(context, &result)?;
    Ok(Code::Ok)
}

fn table(services: &[ServiceView], page: &mut Page) {
    let mut columns = vec![
        Column::text("NAME"),
        Column::text("ADDRESS"),
        Column::number("PORT"),
        Column::text("PROTO"),
        Column::text("MODE"),
        Column::number("USABLE"),
        Column::number("BACKENDS"),
        Column::number("PACKETS"),
        Column::number("DROPPED"),
    ];
    if page.wide() {
        columns.extend([Column::number("BYTES"), Column::number("SLOTS"), Column::text("ALL DOWN")]);
    }
    let rows = services
        .iter()
        .map(|service| {
            let mut row = vec![
                service.name.clone(),
                service.address.to_string(),
                service.port.to_string(),
                service.protocol.to_string(),
                service.mode.to_string(),
                service.backends_usable.to_string(),
                service.backends_total.to_string(),
                service.packets.to_string(),
                service.dropped_packets.to_string(),
            ];
            if page.wide() {
                let all_down =
                    format!("{}{}", service.all_down, if service.fail_open { " (now)" } else { "" });
                row.extend([service.bytes.to_string(), service.ring_slots.to_string(), all_down]);
            }
            row
        })
        .collect();
    page.table(&columns, rows, "no services; add one: wattline service add NAME --address IP --port PORT");
    for service in services.iter().filter(|service| service.fail_open) {
        page.line(format!("service {}: every backend is down, packets go to all of them", service.name));
    }
}

fn details(service: &ServiceView, page: &mut Page) {
    page.pairs(&[
        ("name", service.name.clone()),
        ("address", service.address.to_string()),
        ("port", service.port.to_string()),
        ("protocol", service.protocol.to_string()),
        ("mode", service.mode.to_string()),
        ("ring slots", service.ring_slots.to_string()),
        ("backends", format!("{} usable of {}", service.backends_usable, service.backends_total)),
        (
            "all down",
            format!(
                "{}{}",
                service.all_down,
                if service.fail_open { ", in force now: every backend is down" } else { "" }
            ),
        ),
        ("forwarded", format!("{} packets, {} bytes", service.packets, service.bytes)),
        ("dropped", format!("{} packets", service.dropped_packets)),
    ]);
}
