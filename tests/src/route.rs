//! Routes and routing rules of a host.
//!
//! Setting a route replaces what the table held for its prefix. Nothing here may look at routes: whether one works is
//! for packets, or for the code under test, to say.

use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{RouteMessageBuilder, RouteNextHopBuilder};

use crate::host::Host;
use crate::link::Link;
use crate::netlink::request;

/// The number of the table that says which addresses are this host's own.
const TABLE_LOCAL: u32 = 255;
/// The number of the table that routes are in unless something else is said.
const TABLE_MAIN: u32 = 254;

/// What becomes of packets that a route gives up on; the numbers are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeadEnd {
    /// They vanish.
    Blackhole = libc::RTN_BLACKHOLE,
    /// Their sender is told that the host is unreachable.
    Unreachable = libc::RTN_UNREACHABLE,
    /// Their sender is told that it may not.
    Prohibit = libc::RTN_PROHIBIT,
}

/// A route to set; see [`Host::routes`].
#[derive(Clone, Debug)]
pub struct Route {
    prefix: IpNet,
    message: RouteMessage,
}

impl Route {
    /// A route through gateways; more than one shares flows among them (ECMP). The gateways of an IPv4 prefix may be
    /// IPv6.
    pub fn via(prefix: IpNet, gateways: &[IpAddr]) -> Result<Self> {
        let build = || -> Result<RouteMessage> {
            let route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(prefix.addr(), prefix.prefix_len())?;
            Ok(match gateways {
                [] => anyhow::bail!("a route needs a gateway"),
                [gateway] => route.gateway(*gateway)?,
                gateways => {
                    let family =
                        if prefix.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                    let hops = gateways
                        .iter()
                        .map(|gateway| Ok(RouteNextHopBuilder::new(family).via(*gateway)?.build()))
                        .collect::<Result<Vec<_>>>()?;
                    route.multipath(hops)
                }
            }
            .build())
        };
        let message = build().with_context(|| format!("cannot route {prefix} through {gateways:?}"))?;
        Ok(Self { prefix, message })
    }

    /// A route that gives up on what is sent to the prefix.
    pub fn dead_end(prefix: IpNet, end: DeadEnd) -> Result<Self> {
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())?
            .kind(RouteType::from(end as u8))
            .build();
        Ok(Self { prefix, message })
    }

    /// Names the interface to leave by, where the gateway alone does not tell.
    pub fn over(mut self, link: &Link) -> Result<Self> {
        self.message.attributes.push(RouteAttribute::Oif(link.index()?));
        Ok(self)
    }

    /// Lowers the largest packet below what the link takes, in bytes without the Ethernet header.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        self
    }
}

impl Host {
    /// Routes a prefix through gateways, replacing what was there; more than one shares flows among them (ECMP).
    pub fn route(&self, prefix: IpNet, gateways: &[IpAddr]) -> Result<()> {
        self.routes(vec![Route::via(prefix, gateways)?])
            .with_context(|| format!("{}: cannot route {prefix} through {gateways:?}", self.name()))
    }

    /// Sets any number of routes, one after the other, each replacing what was there.
    pub fn routes(&self, routes: Vec<Route>) -> Result<()> {
        let mut prefix = None;
        request(self, async |handle| {
            for route in routes {
                prefix = Some(route.prefix);
                handle.route().add(route.message).replace().execute().await?;
            }
            Ok::<_, rtnetlink::Error>(())
        })
        .with_context(|| match prefix {
            Some(prefix) => format!("{}: cannot set the route to {prefix}", self.name()),
            None => format!("{}: cannot set routes", self.name()),
        })
    }

    /// Removes a route.
    pub fn route_delete(&self, prefix: IpNet) -> Result<()> {
        let result = (|| {
            let message = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(prefix.addr(), prefix.prefix_len())?
                .build();
            request(self, async |handle| handle.route().del(message).execute().await)
        })();
        result.with_context(|| format!("{}: cannot remove the route to {prefix}", self.name()))
    }

    /// Makes every address of a prefix this host's own, without configuring each ("any-IP").
    pub fn own_prefix(&self, prefix: IpNet) -> Result<()> {
        let index = self.link("lo").index()?;
        let result = (|| {
            let message = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(prefix.addr(), prefix.prefix_len())?
                .kind(RouteType::Local)
                .scope(RouteScope::Host)
                .table_id(TABLE_LOCAL)
                .output_interface(index)
                .build();
            request(self, async |handle| handle.route().add(message).replace().execute().await)
        })();
        result.with_context(|| format!("{}: cannot take {prefix} as its own", self.name()))
    }

    /// Adds a rule by which packets to a prefix are looked up in the main table. It says what holds without it, too;
    /// it is for those who watch rules.
    pub fn rule_to_main(&self, to: Ipv4Net) -> Result<()> {
        request(self, async |handle| {
            let rule = handle.rule().add().v4().destination_prefix(to.addr(), to.prefix_len());
            rule.table_id(TABLE_MAIN).action(RuleAction::ToTable).execute().await
        })
        .with_context(|| format!("{}: cannot add a rule for {to}", self.name()))
    }
}
