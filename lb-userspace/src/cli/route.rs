//! `wattline route`: where would this flow go, and why. Nothing is sent.

use clap::Args;

use super::context::Context;
use super::exit::{Code, Failure};
use super::output::{Page, or_dash};
use super::values::End;
use crate::api::client::encode;
use crate::api::types::{NextHop, Protocol, RouteView};

#[derive(Debug, Args)]
pub(super) struct RouteArgs {
    /// Source address, with or without a port: `198.51.100.7:40000`, `[2001:db8::7]:40000`
    source: End,
    /// Destination address and port, such as 192.0.2.10:80
    destination: End,
    /// tcp or udp
    #[arg(value_parser = ["tcp", "udp"])]
    protocol: String,
}

pub(super) fn run(context: &Context, args: &RouteArgs) -> Result<Code, Failure> {
    let Some(port) = args.destination.port else {
        return Err(Failure::new(
            Code::Usage,
            "the destination has no port",
            "write it as 192.0.2.10:80 or [2001:db8::10]:80",
        ));
    };
    // Clap let only these words through.
    let protocol: Protocol = args.protocol.parse().unwrap_or_default();
    let path = format!(
        "/v1/route?source={}&source_port={}&destination={}&destination_port={port}&protocol={protocol}",
        encode(&args.source.address.to_string()),
        args.source.port.unwrap_or(0),
        encode(&args.destination.address.to_string()),
    );
    context.watched(|| context.print(&context.get::<RouteView>(&path)?, show))
}

fn show(route: &RouteView, page: &mut Page) {
    page.pairs(&[
        ("verdict", format!("{}: {}", route.verdict.as_str(), route.reason)),
        ("service", or_dash(route.service.as_ref())),
        ("hash", or_dash(route.hash.map(|hash| format!("{hash:#018x}")))),
        ("slot", or_dash(route.slot)),
        ("backend", or_dash(route.backend.as_ref())),
        ("carried", or_dash(route.encapsulation.as_ref())),
        ("next hop", or_dash(route.next_hop.as_ref().map(next_hop))),
    ]);
}

/// A next hop in one line.
pub(super) fn next_hop(hop: &NextHop) -> String {
    match hop {
        NextHop::Resolved { interface, mac, mtu } => format!("{mac} on {interface}, mtu {mtu}"),
        NextHop::Unresolved { reason } => format!("unresolved: {reason}"),
    }
}
