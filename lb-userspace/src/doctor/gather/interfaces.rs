//! Seeing interfaces: which are worth looking at, and what kernel and driver say of them.

use anyhow::{Context as _, Result};

use super::installation::{Answer, Pins, Programs};
use super::{peer, system::number};
use crate::api::{ApiError, ErrorKind};
use crate::config::XdpMode;
use crate::dataplane::{
    ethtool::Ethtool,
    netlink::{Netlink, XdpFeatures},
    nexthop::Link,
};
use crate::doctor::Request;
use crate::doctor::interface::{Interface, Role};

/// Looks at the interfaces that the request is about.
pub(super) async fn look(
    netlink: &Netlink,
    request: &Request<'_>,
    answer: &Answer,
    pins: &Pins,
    programs: &Programs,
) -> Result<Vec<Interface>> {
    let ethtool = Ethtool::open().context("opening a socket to ask drivers")?;
    let links = netlink.links().await.context("asking for interfaces")?;
    let chosen = choose(netlink, request, answer, pins, &links).await?;
    let mut interfaces = Vec::with_capacity(chosen.len());
    for (link, role) in chosen {
        interfaces.push(look_at(netlink, &ethtool, link, role, answer, programs).await);
    }
    Ok(interfaces)
}

/// The interfaces to look at, and why each.
async fn choose(
    netlink: &Netlink,
    request: &Request<'_>,
    answer: &Answer,
    pins: &Pins,
    links: &[Link],
) -> Result<Vec<(Link, Role)>> {
    let configured = answer.interfaces();
    let role = |name: &str| {
        let pinned = pins.balancing().any(|pinned| pinned == name).then_some(XdpMode::Native);
        let balancer = configured.get(name).copied().or(pinned).map(Role::Balancer);
        balancer.or_else(|| pins.decapsulating().any(|pinned| pinned == name).then_some(Role::Decap))
    };
    if let Some(name) = request.interface {
        let link = links.iter().find(|link| link.name == name);
        let link = link.ok_or_else(|| {
            let message = format!("there is no interface {name}");
            ApiError::new(ErrorKind::NotFound, message, "`ip -br link` lists them")
        })?;
        return Ok(vec![(link.clone(), role(name).unwrap_or(Role::Asked))]);
    }
    let mut chosen: Vec<_> =
        links.iter().filter_map(|link| Some((link.clone(), role(&link.name)?))).collect();
    if chosen.is_empty() {
        for link in links.iter().filter(|link| could_balance(link)) {
            // Ports of bridges and bonds get no packets of their own.
            let placement = netlink.placement(link.ifindex).await.unwrap_or_default();
            if placement.controller.is_none() {
                chosen.push((link.clone(), Role::Candidate));
            }
        }
    }
    chosen.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    Ok(chosen)
}

/// Whether somebody might want to balance there: it is in use, carries Ethernet, and is no piece of plumbing.
fn could_balance(link: &Link) -> bool {
    let plumbing = ["bridge", "dummy", "ifb", "macvlan", "macvtap", "tun", "vxlan", "wireguard"];
    link.up && link.mac.is_some() && link.kind.as_deref().is_none_or(|kind| !plumbing.contains(&kind))
}

async fn look_at(
    netlink: &Netlink,
    ethtool: &Ethtool,
    link: Link,
    role: Role,
    answer: &Answer,
    programs: &Programs,
) -> Interface {
    let name = link.name.clone();
    let driver = ethtool.driver(&name);
    let peer = match link.kind.as_deref() {
        Some("veth") => Some(peer::look(netlink, &link).await),
        _ => None,
    };
    Interface {
        role,
        driver,
        features: XdpFeatures::of(link.ifindex),
        program: link.xdp.and_then(|xdp| xdp.program_id).map(|id| programs.describe(id)),
        lro: ethtool.lro(&name),
        gro: ethtool.gro(&name),
        queues: ethtool.receive_queues(&name),
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        overhead: answer.overhead(),
        rp_filter: rp_filter(&name),
        ip_forward: number("/proc/sys/net/ipv4/ip_forward").map(|setting| setting != 0),
        peer,
        link,
    }
}

/// The kernel takes the larger of the setting for all and that of the interface (`IN_DEV_RPFILTER`).
fn rp_filter(interface: &str) -> Option<u32> {
    let of = |name: &str| number(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
    of("all").max(of(interface))
}
