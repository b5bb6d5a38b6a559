//! Netlink messages to plain types and back: builds the queries and reads the answers.
//!
//! Pure: bytes are somebody else's business, and so is the socket. It must never panic on what the kernel sends;
//! attributes that are missing or odd make a field absent.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
    XdpAttached,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia,
};

use crate::dataplane::nexthop::{
    Link, Mac, Neighbour, Route, RouteAnswer, UnreachableReason, XdpAttachMode, XdpAttachment,
};

/// Asks which route the kernel would take to `destination`.
pub(super) fn route_query(destination: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
    message.header.flags = RouteFlags::LookupTable;
    message.attributes.push(RouteAttribute::Destination(destination.into()));
    RouteNetlinkMessage::GetRoute(message)
}

/// Asks for one link by index or name; with neither, for all of them (in a dump).
pub(super) fn link_query(ifindex: Option<u32>, name: Option<&str>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex.unwrap_or(0);
    if let Some(name) = name {
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    }
    // Statistics are half of a link's message and nobody here reads them.
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// Asks for all neighbours of both families (in a dump).
pub(super) fn neighbours_query() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())
}

/// Asks for one neighbour.
pub(super) fn neighbour_query(ifindex: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetNeighbour(neighbour_message(ifindex, address))
}

/// Makes the kernel use a neighbour, as if it had a packet for it.
pub(super) fn neighbour_use(ifindex: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = neighbour_message(ifindex, address);
    message.header.flags = NeighbourFlags::Use;
    RouteNetlinkMessage::NewNeighbour(message)
}

fn neighbour_message(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Reads the kernel's answer to [`route_query`].
pub(super) fn read_route(message: &RouteMessage) -> RouteAnswer {
    let nowhere = |reason| RouteAnswer::Nowhere(reason);
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local | RouteType::Anycast => return nowhere(UnreachableReason::Local),
        RouteType::Broadcast => return nowhere(UnreachableReason::Broadcast),
        RouteType::Multicast => return nowhere(UnreachableReason::Multicast),
        RouteType::BlackHole => return nowhere(UnreachableReason::BlackholeRoute),
        RouteType::Unreachable => return nowhere(UnreachableReason::UnreachableRoute),
        RouteType::Prohibit => return nowhere(UnreachableReason::ProhibitRoute),
        other => return nowhere(UnreachableReason::Refused(format!("route type {}", u8::from(other)))),
    }
    let mut ifindex = None;
    let mut gateway = None;
    let mut preferred_source = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = route_address(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::Via(_) => {
                return nowhere(UnreachableReason::Refused("a gateway that is no IP address".into()));
            }
            RouteAttribute::PrefSource(address) => preferred_source = route_address(address),
            RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => {
                return nowhere(UnreachableReason::EncapsulatedRoute);
            }
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    match ifindex {
        Some(ifindex) => RouteAnswer::Via(Route { ifindex, gateway, preferred_source, mtu }),
        None => nowhere(UnreachableReason::Refused("a route without an interface".into())),
    }
}

/// Reads the kernel's refusal of [`route_query`].
pub(super) fn read_route_refusal(errno: i32) -> UnreachableReason {
    match errno {
        libc::ENETUNREACH => UnreachableReason::NoRoute,
        libc::EHOSTUNREACH => UnreachableReason::UnreachableRoute,
        libc::EACCES => UnreachableReason::ProhibitRoute,
        libc::EINVAL => UnreachableReason::BlackholeRoute,
        other => UnreachableReason::Refused(std::io::Error::from_raw_os_error(other).to_string()),
    }
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// A neighbour entry with its key; none for entries that are no IP neighbours (proxies, bridge entries).
pub(super) fn read_neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let valid = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    let entry = mac.filter(|_| valid).map_or(Neighbour::Unknown, Neighbour::Known);
    Some(((message.header.ifindex, address?), entry))
}

/// Whether the kernel needs no asking for this neighbour: its MAC is fixed or was confirmed just now.
pub(super) fn is_settled(message: &NeighbourMessage) -> bool {
    matches!(
        message.header.state,
        NeighbourState::Permanent | NeighbourState::Noarp | NeighbourState::Reachable
    )
}

/// Reads a link; none without a name, which no real link lacks.
pub(super) fn read_link(message: &LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    let is_ethernet =
        message.header.link_layer_type == LinkLayerType::Ether && !flags.contains(LinkFlags::Loopback);
    let up = flags.contains(LinkFlags::Up);
    let mut name = None;
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up,
        carrier: up && flags.contains(LinkFlags::Running) && flags.contains(LinkFlags::LowerUp),
        xdp: None,
        kind: None,
        peer_ifindex: None,
        peer_elsewhere: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) if is_ethernet => link.mac = Mac::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Xdp(parts) => link.xdp = read_xdp(parts),
            LinkAttribute::LinkInfo(infos) => link.kind = infos.iter().find_map(read_kind),
            // A link that is stacked on nothing names itself or 0.
            LinkAttribute::Link(index) => {
                link.peer_ifindex = Some(*index).filter(|index| *index != 0 && *index != link.ifindex);
            }
            LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
            _ => {}
        }
    }
    // In another namespace the same index is a different link.
    if link.peer_elsewhere {
        link.peer_ifindex = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Link(index) if *index != 0 => Some(*index),
            _ => None,
        });
    }
    link.name = name?;
    Some(link)
}

fn read_kind(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(InfoKind::to_string(kind)),
        _ => None,
    }
}

fn read_xdp(parts: &[LinkXdp]) -> Option<XdpAttachment> {
    let attached = parts.iter().find_map(|part| match part {
        LinkXdp::Attached(attached) => Some(*attached),
        _ => None,
    })?;
    let mode = match attached {
        XdpAttached::None => return None,
        XdpAttached::Driver => XdpAttachMode::Native,
        XdpAttached::SocketBuffer => XdpAttachMode::Generic,
        XdpAttached::Hardware => XdpAttachMode::Offloaded,
        XdpAttached::Multiple => XdpAttachMode::Multiple,
        XdpAttached::Other(number) => XdpAttachMode::Other(number),
        // The enum may grow; all numbers that it does not name are above.
        _ => XdpAttachMode::Other(u8::MAX),
    };
    let program_id = parts.iter().find_map(|part| match part {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    Some(XdpAttachment { mode, program_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(state: NeighbourState, mac: Option<&[u8]>) -> NeighbourMessage {
        let mut message = neighbour_message(3, "10.0.0.2".parse().unwrap());
        message.header.state = state;
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }

    #[test]
    fn only_states_the_kernel_would_send_to_are_known() {
        let mac = [2, 0, 0, 0, 0, 2];
        let cases = [
            (NeighbourState::Reachable, true),
            (NeighbourState::Stale, true),
            (NeighbourState::Delay, true),
            (NeighbourState::Probe, true),
            (NeighbourState::Permanent, true),
            (NeighbourState::Noarp, true),
            (NeighbourState::Incomplete, false),
            (NeighbourState::Failed, false),
            (NeighbourState::None, false),
            (NeighbourState::Other(0x300), false),
        ];
        for (state, known) in cases {
            let (key, entry) = read_neighbour(&neighbour(state, Some(&mac))).expect("an IP neighbour");
            assert_eq!(key, (3, "10.0.0.2".parse().unwrap()));
            assert_eq!(entry, if known { Neighbour::Known(mac) } else { Neighbour::Unknown }, "{state}");
        }
    }

    #[test]
    fn odd_neighbours_are_not_believed() {
        for mac in [None, Some(&[1, 2, 3, 4][..])] {
            let read = read_neighbour(&neighbour(NeighbourState::Reachable, mac));
            assert_eq!(read.map(|(_, entry)| entry), Some(Neighbour::Unknown));
        }
        let mut proxy = neighbour(NeighbourState::Permanent, None);
        proxy.header.flags = NeighbourFlags::Proxy;
        assert_eq!(read_neighbour(&proxy), None);
    }

    fn unicast(attributes: Vec<RouteAttribute>) -> RouteAnswer {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        message.attributes = attributes;
        read_route(&message)
    }

    #[test]
    fn gateway_may_be_of_the_other_family() {
        let answer = unicast(vec![
            RouteAttribute::Oif(3),
            RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap())),
        ]);
        let RouteAnswer::Via(route) = answer else { panic!("{answer:?}") };
        assert_eq!(route.gateway, Some("fe80::1".parse().unwrap()));
    }

    #[test]
    fn types_that_lead_nowhere_say_why() {
        let cases = [
            (RouteType::Local, UnreachableReason::Local),
            (RouteType::Broadcast, UnreachableReason::Broadcast),
            (RouteType::BlackHole, UnreachableReason::BlackholeRoute),
            (RouteType::Prohibit, UnreachableReason::ProhibitRoute),
            (RouteType::Unreachable, UnreachableReason::UnreachableRoute),
        ];
        for (kind, reason) in cases {
            let mut message = RouteMessage::default();
            message.header.kind = kind;
            message.attributes = vec![RouteAttribute::Oif(1)];
            assert_eq!(read_route(&message), RouteAnswer::Nowhere(reason));
        }
    }

    #[test]
    fn incomplete_routes_are_refused() {
        assert!(matches!(unicast(vec![]), RouteAnswer::Nowhere(UnreachableReason::Refused(_))));
        let through_mpls = vec![RouteAttribute::Oif(3), RouteAttribute::Via(RouteVia::Packet(vec![0, 1]))];
        assert!(matches!(unicast(through_mpls), RouteAnswer::Nowhere(UnreachableReason::Refused(_))));
    }

    #[test]
    fn a_zero_metric_is_no_mtu() {
        for (metric, mtu) in [(0, None), (1400, Some(1400))] {
            let answer = unicast(vec![
                RouteAttribute::Oif(3),
                RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(3), RouteMetric::Mtu(metric)]),
            ]);
            let RouteAnswer::Via(route) = answer else { panic!("{answer:?}") };
            assert_eq!(route.mtu, mtu);
        }
    }

    #[test]
    fn loopback_has_no_mac() {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp | LinkFlags::Loopback;
        message.header.link_layer_type = LinkLayerType::Loopback;
        message.attributes = vec![LinkAttribute::IfName("lo".into()), LinkAttribute::Address(vec![0; 6])];
        let link = read_link(&message).expect("a link");
        assert_eq!((link.mac, link.up, link.carrier), (None, true, true));
    }
}
