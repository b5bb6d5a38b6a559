//! What is known about the way to an address: route, link and neighbour, put together into a next hop.
//!
//! Pure: it reads answers that somebody else got from the kernel. It must never ask the kernel itself, and never
//! invent a MAC address: a next hop is resolved only with an address the kernel holds or held for the same route.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

/// An Ethernet address, in the order it has on the wire.
pub type Mac = [u8; 6];

/// The usual way to write a MAC: `02:00:00:00:00:01`.
pub fn mac_text(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Everything the data plane needs to send a frame towards one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The interface the frame leaves by.
    pub ifindex: u32,
    /// Whom the frame is addressed to: the gateway, or the destination itself when it is on the link.
    /// May be of the other family (an IPv4 route through an IPv6 gateway).
    pub gateway: IpAddr,
    /// The MAC of the interface.
    pub source_mac: Mac,
    /// The MAC of the gateway.
    pub destination_mac: Mac,
    /// The source address the kernel would use; none where the node has no address of the family at all.
    pub preferred_source: Option<IpAddr>,
    /// Largest IP packet that may be sent, in bytes: the lower of the link's and the route's.
    pub mtu: u32,
}

/// A way to a destination whose neighbour is not known (yet): a [`NextHop`] without the destination's MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path {
    /// See [`NextHop::ifindex`].
    pub ifindex: u32,
    /// See [`NextHop::gateway`].
    pub gateway: IpAddr,
    /// See [`NextHop::source_mac`].
    pub source_mac: Mac,
    /// See [`NextHop::preferred_source`].
    pub preferred_source: Option<IpAddr>,
    /// See [`NextHop::mtu`].
    pub mtu: u32,
}

impl Path {
    /// The next hop along this path, its neighbour having `destination_mac`.
    pub fn with_mac(self, destination_mac: Mac) -> NextHop {
        let Self { ifindex, gateway, source_mac, preferred_source, mtu } = self;
        NextHop { ifindex, gateway, source_mac, destination_mac, preferred_source, mtu }
    }
}

/// The answer to "how is this destination reached?".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextHopState {
    /// Frames can be sent.
    Resolved(NextHop),
    /// There is a route and a working link, but the neighbour's MAC is not known: solicit it.
    Unresolved(Path),
    /// Nothing can be sent there until the node's network configuration changes.
    Unreachable {
        /// Why.
        reason: UnreachableReason,
    },
}

impl NextHopState {
    /// The next hop, if it is resolved.
    pub fn next_hop(&self) -> Option<&NextHop> {
        match self {
            Self::Resolved(hop) => Some(hop),
            Self::Unresolved(_) | Self::Unreachable { .. } => None,
        }
    }
}

impl fmt::Display for NextHopState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolved(hop) => write!(f, "{} ({})", mac_text(&hop.destination_mac), hop.gateway),
            Self::Unresolved(path) => write!(f, "waiting for the MAC address of {}", path.gateway),
            Self::Unreachable { reason } => write!(f, "{reason}"),
        }
    }
}

/// Why nothing can be sent to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnreachableReason {
    /// No route matches (ENETUNREACH).
    NoRoute,
    /// The address is one of this node's own.
    Local,
    /// The address is a broadcast address of a connected network.
    Broadcast,
    /// The address is a multicast address.
    Multicast,
    /// The address is the unspecified one (`0.0.0.0`, `::`).
    Unspecified,
    /// The route says so: type `unreachable` (EHOSTUNREACH).
    UnreachableRoute,
    /// The route says so: type `prohibit` (EACCES).
    ProhibitRoute,
    /// The route discards silently: type `blackhole` (EINVAL).
    BlackholeRoute,
    /// The kernel refused the query in another way, or answered with a route that cannot be followed.
    Refused(String),
    /// The route leaves through an encapsulation (a tunnel of the route's own, segment routing) that frames written here would skip.
    EncapsulatedRoute,
    /// The route points at an interface that is gone.
    LinkMissing {
        /// Its index.
        ifindex: u32,
    },
    /// The interface is set down.
    LinkDown {
        /// Its name.
        name: String,
    },
    /// The interface is up but has no carrier.
    NoCarrier {
        /// Its name.
        name: String,
    },
    /// The interface carries no Ethernet frames, or is the loopback.
    NotEthernet {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for UnreachableReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => write!(f, "no route"),
            Self::Local => write!(f, "the address belongs to this node"),
            Self::Broadcast => write!(f, "the address is a broadcast address"),
            Self::Multicast => write!(f, "the address is a multicast address"),
            Self::Unspecified => write!(f, "the address is the unspecified address"),
            Self::UnreachableRoute => write!(f, "the route is of type unreachable"),
            Self::ProhibitRoute => write!(f, "the route is of type prohibit"),
            Self::BlackholeRoute => write!(f, "the route is of type blackhole"),
            Self::Refused(why) => write!(f, "the kernel gives no usable route: {why}"),
            Self::EncapsulatedRoute => {
                write!(f, "the route encapsulates, which frames sent directly would skip")
            }
            Self::LinkMissing { ifindex } => write!(f, "the route's interface {ifindex} does not exist"),
            Self::LinkDown { name } => write!(f, "interface {name} is down"),
            Self::NoCarrier { name } => write!(f, "interface {name} has no carrier"),
            Self::NotEthernet { name } => write!(f, "interface {name} carries no Ethernet frames"),
        }
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index in this network namespace.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its MAC; none where frames are not Ethernet (and for the loopback).
    pub mac: Option<Mac>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Whether it is set up (`ip link set up`).
    pub up: bool,
    /// Whether it has a carrier and the kernel calls it running; never true while it is down.
    pub carrier: bool,
    /// The XDP program attached, if any.
    pub xdp: Option<XdpAttachment>,
    /// The kernel's word for a virtual interface: `veth`, `vlan`, `bond`...; none for hardware.
    pub kind: Option<String>,
    /// The interface it is stacked on or, for a veth, the other end.
    pub peer_ifindex: Option<u32>,
    /// Whether `peer_ifindex` counts in another network namespace.
    pub peer_elsewhere: bool,
}

/// An XDP program on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpAttachment {
    /// How it is attached.
    pub mode: XdpAttachMode,
    /// The program's id; none where the kernel names several (mode `multiple`) or hides it.
    pub program_id: Option<u32>,
}

/// How an XDP program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpAttachMode {
    /// In the driver ("native").
    Native,
    /// On socket buffers ("generic").
    Generic,
    /// On the card itself.
    Offloaded,
    /// In more than one of these places.
    Multiple,
    /// A mode this program does not know, by its number.
    Other(u8),
}

impl fmt::Display for XdpAttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => write!(f, "native"),
            Self::Generic => write!(f, "generic"),
            Self::Offloaded => write!(f, "offloaded"),
            Self::Multiple => write!(f, "multiple"),
            Self::Other(number) => write!(f, "mode {number}"),
        }
    }
}

/// What the kernel answered to one route query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteAnswer {
    /// A unicast route.
    Via(Route),
    /// A refusal, or a route of a type that leads nowhere.
    Nowhere(UnreachableReason),
}

/// A unicast route, resolved by the kernel for one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The interface it leaves by.
    pub ifindex: u32,
    /// The gateway; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address the kernel would use.
    pub preferred_source: Option<IpAddr>,
    /// The route's own MTU (configured, or learned by path-MTU discovery), in bytes.
    pub mtu: Option<u32>,
}

/// One entry of the neighbour table, reduced to what matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    /// The kernel holds a MAC that it would send to (REACHABLE, STALE, DELAY, PROBE, PERMANENT, NOARP).
    Known(Mac),
    /// The kernel is asking, or has given up asking (INCOMPLETE, FAILED, NONE).
    Unknown,
}

/// Links and neighbours, as one dump of each found them.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Links by index.
    pub links: HashMap<u32, Link>,
    /// Neighbours by interface and address.
    pub neighbours: HashMap<(u32, IpAddr), Neighbour>,
}

/// Puts the three answers of the kernel together.
pub fn resolve(destination: IpAddr, answer: &RouteAnswer, tables: &Tables) -> NextHopState {
    match find_path(destination, answer, tables) {
        Err(reason) => NextHopState::Unreachable { reason },
        Ok(path) => match tables.neighbours.get(&(path.ifindex, path.gateway)) {
            Some(Neighbour::Known(mac)) => NextHopState::Resolved(path.with_mac(*mac)),
            Some(Neighbour::Unknown) | None => NextHopState::Unresolved(path),
        },
    }
}

/// The route and link half of [`resolve`].
pub fn find_path(
    destination: IpAddr,
    answer: &RouteAnswer,
    tables: &Tables,
) -> Result<Path, UnreachableReason> {
    let route = match answer {
        RouteAnswer::Via(route) => route,
        RouteAnswer::Nowhere(reason) => return Err(reason.clone()),
    };
    let Some(link) = tables.links.get(&route.ifindex) else {
        return Err(UnreachableReason::LinkMissing { ifindex: route.ifindex });
    };
    let name = || link.name.clone();
    if !link.up {
        return Err(UnreachableReason::LinkDown { name: name() });
    }
    let Some(source_mac) = link.mac else {
        return Err(UnreachableReason::NotEthernet { name: name() });
    };
    if !link.carrier {
        return Err(UnreachableReason::NoCarrier { name: name() });
    }
    Ok(Path {
        ifindex: route.ifindex,
        gateway: route.gateway.unwrap_or(destination),
        source_mac,
        preferred_source: route.preferred_source,
        mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
    })
}

/// What to use from now on, and whether to ask for the neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The state to act on.
    pub state: NextHopState,
    /// The neighbour to solicit (interface, address), when the kernel does not know its MAC.
    pub solicit: Option<(u32, IpAddr)>,
}

/// Holds on to a MAC the kernel has just lost.
///
/// Neighbour entries expire, and fail while their owner reboots; dropping the traffic would gain nothing over sending
/// it to the last known address. So a neighbour that merely became unknown keeps its MAC and is solicited, provided
/// the way to it (interface and gateway) is the same. Everything else is taken as the kernel says it now.
pub fn merge(previous: Option<&NextHopState>, fresh: NextHopState) -> Merged {
    let NextHopState::Unresolved(path) = fresh else {
        return Merged { state: fresh, solicit: None };
    };
    let solicit = Some((path.ifindex, path.gateway));
    let kept = previous
        .and_then(NextHopState::next_hop)
        .filter(|hop| (hop.ifindex, hop.gateway) == (path.ifindex, path.gateway))
        .map(|hop| path.with_mac(hop.destination_mac));
    Merged { state: kept.map_or(NextHopState::Unresolved(path), NextHopState::Resolved), solicit }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const PEER: Mac = [2, 0, 0, 0, 0, 2];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link() -> Link {
        Link {
            ifindex: 7,
            name: "eth0".into(),
            mac: Some(OWN),
            mtu: 1500,
            up: true,
            carrier: true,
            xdp: None,
            kind: None,
            peer_ifindex: None,
            peer_elsewhere: false,
        }
    }

    fn route(gateway: Option<&str>) -> Route {
        Route { ifindex: 7, gateway: gateway.map(ip), preferred_source: Some(ip("10.0.0.1")), mtu: None }
    }

    fn tables(link: Link, neighbours: &[(&str, Neighbour)]) -> Tables {
        Tables {
            neighbours: neighbours.iter().map(|(at, entry)| ((link.ifindex, ip(at)), *entry)).collect(),
            links: HashMap::from([(link.ifindex, link)]),
        }
    }

    fn reason(link: Link, route: Route) -> UnreachableReason {
        match resolve(ip("10.0.0.9"), &RouteAnswer::Via(route), &tables(link, &[])) {
            NextHopState::Unreachable { reason } => reason,
            other => panic!("expected unreachable, got {other:?}"),
        }
    }

    #[test]
    fn on_link_destination_is_its_own_neighbour() {
        let tables = tables(link(), &[("10.0.0.9", Neighbour::Known(PEER))]);
        let state = resolve(ip("10.0.0.9"), &RouteAnswer::Via(route(None)), &tables);
        let hop = state.next_hop().expect("resolved");
        assert_eq!((hop.gateway, hop.destination_mac, hop.source_mac), (ip("10.0.0.9"), PEER, OWN));
        assert_eq!((hop.ifindex, hop.mtu, hop.preferred_source), (7, 1500, Some(ip("10.0.0.1"))));
    }

    #[test]
    fn gateway_of_either_family_is_the_neighbour() {
        for gateway in ["10.0.0.254", "fe80::1"] {
            let tables = tables(link(), &[(gateway, Neighbour::Known(PEER))]);
            let state = resolve(ip("192.0.2.1"), &RouteAnswer::Via(route(Some(gateway))), &tables);
            assert_eq!(state.next_hop().map(|hop| hop.gateway), Some(ip(gateway)));
        }
    }

    #[test]
    fn the_lower_mtu_counts() {
        for (of_route, expected) in [(None, 1500), (Some(1400), 1400), (Some(9000), 1500)] {
            let answer = RouteAnswer::Via(Route { mtu: of_route, ..route(None) });
            let path = find_path(ip("10.0.0.9"), &answer, &tables(link(), &[])).unwrap();
            assert_eq!(path.mtu, expected, "route MTU {of_route:?}");
        }
    }

    #[test]
    fn unknown_neighbours_are_unresolved() {
        for neighbours in [&[][..], &[("10.0.0.9", Neighbour::Unknown)]] {
            let state = resolve(ip("10.0.0.9"), &RouteAnswer::Via(route(None)), &tables(link(), neighbours));
            assert!(matches!(state, NextHopState::Unresolved(path) if path.gateway == ip("10.0.0.9")));
        }
    }

    #[test]
    fn each_dead_end_has_its_reason() {
        let name = || "eth0".to_owned();
        assert_eq!(
            reason(Link { up: false, carrier: false, ..link() }, route(None)),
            UnreachableReason::LinkDown { name: name() }
        );
        assert_eq!(
            reason(Link { carrier: false, ..link() }, route(None)),
            UnreachableReason::NoCarrier { name: name() }
        );
        assert_eq!(
            reason(Link { mac: None, ..link() }, route(None)),
            UnreachableReason::NotEthernet { name: name() }
        );
        assert_eq!(
            reason(link(), Route { ifindex: 8, ..route(None) }),
            UnreachableReason::LinkMissing { ifindex: 8 }
        );
    }

    fn path(gateway: &str, mtu: u32) -> Path {
        Path { ifindex: 7, gateway: ip(gateway), source_mac: OWN, preferred_source: None, mtu }
    }

    #[test]
    fn states_read_well() {
        let resolved = NextHopState::Resolved(path("10.0.0.2", 1500).with_mac([2, 0, 0xab, 0, 0, 0xf]));
        assert_eq!(resolved.to_string(), "02:00:ab:00:00:0f (10.0.0.2)");
        let unresolved = NextHopState::Unresolved(path("fe80::1", 1500));
        assert_eq!(unresolved.to_string(), "waiting for the MAC address of fe80::1");
        let reason = UnreachableReason::LinkDown { name: "eth0".into() };
        assert_eq!(NextHopState::Unreachable { reason }.to_string(), "interface eth0 is down");
    }

    #[test]
    fn lost_neighbour_keeps_its_mac_and_takes_the_rest_fresh() {
        let previous = NextHopState::Resolved(path("10.0.0.2", 1500).with_mac(PEER));
        let merged = merge(Some(&previous), NextHopState::Unresolved(path("10.0.0.2", 1400)));
        assert_eq!(merged.state, NextHopState::Resolved(path("10.0.0.2", 1400).with_mac(PEER)));
        assert_eq!(merged.solicit, Some((7, ip("10.0.0.2"))));
    }

    #[test]
    fn moved_route_drops_the_old_mac() {
        let elsewhere = Path { ifindex: 8, ..path("10.0.0.2", 1500) };
        let previous = NextHopState::Resolved(path("10.0.0.2", 1500).with_mac(PEER));
        for fresh in [elsewhere, path("10.0.0.3", 1500)] {
            let merged = merge(Some(&previous), NextHopState::Unresolved(fresh));
            assert_eq!(merged.state, NextHopState::Unresolved(fresh));
            assert_eq!(merged.solicit, Some((fresh.ifindex, fresh.gateway)));
        }
    }

    #[test]
    fn resolved_and_unreachable_are_taken_as_they_are() {
        let previous = NextHopState::Resolved(path("10.0.0.2", 1500).with_mac(PEER));
        let resolved = NextHopState::Resolved(path("10.0.0.2", 1500).with_mac([2, 0, 0, 0, 0, 3]));
        let unreachable = NextHopState::Unreachable { reason: UnreachableReason::NoRoute };
        for fresh in [resolved, unreachable] {
            let merged = merge(Some(&previous), fresh.clone());
            assert_eq!(merged, Merged { state: fresh, solicit: None });
        }
    }

    #[test]
    fn nothing_is_kept_from_an_unresolved_past() {
        for previous in [None, Some(NextHopState::Unresolved(path("10.0.0.2", 1500)))] {
            let fresh = NextHopState::Unresolved(path("10.0.0.2", 1500));
            assert_eq!(merge(previous.as_ref(), fresh.clone()).state, fresh);
        }
    }
}
