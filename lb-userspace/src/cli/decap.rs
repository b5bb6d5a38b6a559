//! `wattline decap`: on a backend, the program that takes encapsulation off. There is no agent there.

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde::Serialize;

use super::context::Context;
use super::exit::{Code, Failure};
use super::kernel::{self, DecapSettings, DecapStatus};
use super::output::{Column, Page};
use crate::api::types::SchemaVersion;
use crate::config::XdpMode;
use crate::config::model::DEFAULT_GUE_PORT;

#[derive(Debug, Subcommand)]
pub(super) enum DecapCommand {
    /// Remove the encapsulation of packets that come in on an interface; again: change its settings
    Attach(AttachArgs),
    /// Stop removing encapsulation
    Detach {
        /// Name of the interface
        interface: String,
    },
    /// Show where encapsulation is removed, and counters
    Status {
        /// Only this interface
        interface: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// Name of the interface
    interface: String,
    /// Prefixes of outer source addresses that are believed: those of the load balancers
    #[arg(long, required = true, num_args = 1.., value_delimiter = ',', value_name = "PREFIX", value_parser = prefix)]
    allow: Vec<IpNet>,
    /// native or generic
    #[arg(long, default_value = "native")]
    mode: XdpMode,
    /// UDP port of GUE packets
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_GUE_PORT)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    gue_port: u16,
}

/// Reads a prefix; a lone address is one of full length.
fn prefix(text: &str) -> Result<IpNet, String> {
    let help = || "write a prefix such as 10.200.0.0/16 or fd00:200::/64".to_owned();
    let net: IpNet = match text.parse() {
        Ok(net) => net,
        Err(_) => text.parse::<std::net::IpAddr>().map(IpNet::from).map_err(|_| help())?,
    };
    if net == net.trunc() {
        Ok(net)
    } else {
        Err(format!("bits are set after the prefix; write {}", net.trunc()))
    }
}

/// Where encapsulation is removed.
#[derive(Serialize)]
struct List {
    schema_version: SchemaVersion,
    interfaces: Vec<DecapStatus>,
}

/// What a write did.
#[derive(Serialize)]
struct Done {
    schema_version: SchemaVersion,
    interface: String,
    attached: bool,
}

pub(super) fn run(context: &Context, command: DecapCommand) -> Result<Code, Failure> {
    let failed = |error: anyhow::Error| Failure::kernel(&error);
    match command {
        DecapCommand::Attach(args) => {
            let AttachArgs { interface, allow, mode, gue_port } = args;
            let settings = DecapSettings { allow, gue_port, mode };
            kernel::decap_attach(context.bpffs(), &interface, &settings).map_err(failed)?;
            if mode == XdpMode::Generic {
                context.note("warning: generic mode works everywhere and is slow; see `wattline doctor`");
            }
            let done = Done { schema_version: SchemaVersion, interface, attached: true };
            context.print(&done, |done, page| {
                page.line(format!("encapsulation is removed on {}", done.interface));
            })?;
        }
        DecapCommand::Detach { interface } => {
            if !kernel::decap_detach(context.bpffs(), &interface).map_err(failed)? {
                let message = format!("no encapsulation is removed on {interface}");
                return Err(Failure::new(Code::Usage, message, "`wattline decap status` shows where it is"));
            }
            let done = Done { schema_version: SchemaVersion, interface, attached: false };
            context.print(&done, |done, page| page.line(format!("detached from {}", done.interface)))?;
        }
        DecapCommand::Status { interface } => {
            return context.watched(|| {
                let interfaces =
                    kernel::decap_status(context.bpffs(), interface.as_deref()).map_err(failed)?;
                let list = List { schema_version: SchemaVersion, interfaces };
                context.print(&list, |list, page| show(&list.interfaces, page))
            });
        }
    }
    Ok(Code::Ok)
}

fn show(interfaces: &[DecapStatus], page: &mut Page) {
    if interfaces.is_empty() {
        page.line("no encapsulation is removed here; see wattline decap attach --help");
    }
    for (index, found) in interfaces.iter().enumerate() {
        if index > 0 {
            page.line("");
        }
        let allow: Vec<String> = found.allow.iter().map(IpNet::to_string).collect();
        page.pairs(&[
            ("interface", found.interface.clone()),
            ("allow", allow.join(" ")),
            ("gue port", found.gue_port.to_string()),
            ("program", format!("{} tag {}", found.program_id, found.program_tag)),
        ]);
        page.line("");
        let columns = [
            Column::text("OUTCOME"),
            Column::state("VERDICT"),
            Column::number("PACKETS"),
            Column::text("MEANING"),
        ];
        let rows = found
            .outcomes
            .iter()
            .filter(|count| page.wide() || count.packets > 0)
            .map(|count| {
                let (verdict, packets) = (count.verdict.as_str().to_owned(), count.packets.to_string());
                vec![count.reason.clone(), verdict, packets, count.description.clone()]
            })
            .collect();
        page.table(&columns, rows, "no packet yet");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_exact_or_lone_addresses() {
        assert_eq!(prefix("10.200.0.0/16"), Ok("10.200.0.0/16".parse().unwrap()));
        assert_eq!(prefix("10.0.0.1"), Ok("10.0.0.1/32".parse().unwrap()));
        assert_eq!(prefix("fd00::1"), Ok("fd00::1/128".parse().unwrap()));
        assert!(prefix("10.0.0.1/8").unwrap_err().contains("10.0.0.0/8"));
        assert!(prefix("x").is_err());
    }
}
