//! Next hops asked of a real kernel.
//!
//! Two hosts joined by a veth pair: `lb`, which asks, and `peer`. What the lab sets and what the code under test reads
//! go through the same netlink library, so wherever the kernel tells the same by other means, that is compared too.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use lb_userspace::dataplane::netlink::{Change, Changes, Netlink};
use lb_userspace::dataplane::nexthop::{
    self, NextHop, NextHopState, Path, UnreachableReason, XdpAttachMode, merge,
};
use nix::sys::socket::{getsockopt, sockopt::IpMtu};
use tests::host::Host;
use tests::link::{Link, Mac, veth};
use tests::neighbour::NeighbourState;
use tests::peer::{Action, FixedProgram, Mode};
use tests::route::{DeadEnd, Route};

const LB_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const OTHER_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x50]);
/// Far longer than anything here takes: only a wedged test runs into it.
const PATIENCE: Duration = Duration::from_mins(2);

/// The two hosts: `lb0` with `10.0.0.1/24` and `fd00::1/64`, and beyond it `peer0` with `10.0.0.2` and `fd00::2`.
struct Net {
    lb: Host,
    lb0: Link,
    peer0: Link,
    /// The code under test, inside `lb`.
    netlink: Netlink,
}

/// Runs `test` inside `lb`.
fn in_lab(test: impl AsyncFnOnce(&Net) + Send) {
    let (lb, peer) = (Host::new("lb").unwrap(), Host::new("peer").unwrap());
    let (lb0, peer0) = veth((&lb, "lb0"), (&peer, "peer0"), 1500).unwrap();
    for (link, mac, addresses) in
        [(&lb0, LB_MAC, ["10.0.0.1/24", "fd00::1/64"]), (&peer0, PEER_MAC, ["10.0.0.2/24", "fd00::2/64"])]
    {
        link.set_mac(mac).unwrap();
        for address in addresses {
            link.address(address.parse().unwrap()).unwrap();
        }
        link.up().unwrap();
    }
    for link in [&lb0, &peer0] {
        link.wait_ready().unwrap();
    }
    let inside = lb.clone();
    inside.enter(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let net = Net { lb, lb0, peer0, netlink: Netlink::open().unwrap() };
            tokio::time::timeout(PATIENCE, test(&net)).await.expect("the test is stuck");
        });
    });
}

/// Polls until `probe` gives something; the kernel does its part on its own time.
async fn wait_for<T>(what: &str, probe: impl AsyncFn() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE / 2, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

impl Net {
    /// Asks both ways, which must agree, whatever the test is about.
    async fn ask(&self, destination: &str) -> NextHopState {
        let single = self.netlink.next_hop(addr(destination)).await.unwrap();
        let mut bulk = self.netlink.resolve_all(&[addr(destination)]).await.unwrap();
        assert_eq!(bulk.remove(&addr(destination)).as_ref(), Some(&single), "single and bulk answers differ");
        single
    }

    async fn resolved(&self, destination: &str) -> NextHop {
        match self.ask(destination).await {
            NextHopState::Resolved(hop) => hop,
            other => panic!("{destination}: expected a next hop, got {other:?}"),
        }
    }

    async fn unresolved(&self, destination: &str) -> Path {
        match self.ask(destination).await {
            NextHopState::Unresolved(path) => path,
            other => panic!("{destination}: expected unresolved, got {other:?}"),
        }
    }

    async fn unreachable(&self, destination: &str) -> UnreachableReason {
        match self.ask(destination).await {
            NextHopState::Unreachable { reason } => reason,
            other => panic!("{destination}: expected unreachable, got {other:?}"),
        }
    }

    /// Waits until the kernel has a MAC on the way to `destination`.
    async fn found(&self, destination: IpAddr) -> NextHop {
        wait_for(&format!("the neighbour towards {destination}"), async || {
            self.netlink.next_hop(destination).await.unwrap().next_hop().copied()
        })
        .await
    }

    /// Solicits until the kernel has the MAC.
    async fn learn(&self, destination: &str) -> NextHop {
        let path = self.unresolved(destination).await;
        self.netlink.solicit(path.ifindex, path.gateway).await.unwrap();
        self.found(addr(destination)).await
    }

    /// `lb0` as the code under test sees it.
    async fn seen(&self) -> nexthop::Link {
        self.netlink.link("lb0").await.unwrap().expect("lb0 exists")
    }

    /// Flags and MAC of an IPv4 neighbour in the kernel's own table for people.
    fn arp(&self, address: &str) -> (String, String) {
        let table = self.lb.read("/proc/thread-self/net/arp").unwrap();
        let line = table.lines().find(|line| line.split_whitespace().next() == Some(address)).unwrap();
        let fields: Vec<_> = line.split_whitespace().collect();
        (fields[2].to_owned(), fields[3].to_owned())
    }

    /// The MTU that a socket of `lb` gets to hear for an IPv4 destination.
    fn socket_mtu(&self, destination: &str) -> u32 {
        self.lb.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect((destination, 9)).unwrap();
            u32::try_from(getsockopt(&socket, IpMtu).unwrap()).unwrap()
        })
    }
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn route(prefix: &str, gateway: &str) -> Route {
    Route::via(prefix.parse().unwrap(), &[addr(gateway)]).unwrap()
}

/// Waits for a change of the given kind.
async fn await_change(changes: &mut Changes, kind: Change) {
    let waiting = async { while !changes.next().await.touches(kind) {} };
    tokio::time::timeout(PATIENCE / 2, waiting)
        .await
        .unwrap_or_else(|_| panic!("no change of {kind:?} was told"));
}

#[test]
fn solicited_on_link_neighbours_resolve() {
    in_lab(async |net| {
        for (destination, source) in [("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1")] {
            let hop = net.learn(destination).await;
            assert_eq!(
                hop,
                NextHop {
                    ifindex: net.lb0.index().unwrap(),
                    gateway: addr(destination),
                    source_mac: LB_MAC.0,
                    destination_mac: PEER_MAC.0,
                    preferred_source: Some(addr(source)),
                    mtu: 1500,
                }
            );
        }
        assert_eq!(net.arp("10.0.0.2").1, PEER_MAC.to_string());
    });
}

#[test]
fn gateways_are_the_neighbours_of_what_lies_beyond() {
    in_lab(async |net| {
        net.lb
            .routes(vec![
                route("192.0.2.0/24", "10.0.0.2"),
                route("2001:db8::/32", "fd00::2"),
                route("198.51.100.0/24", "fd00::2").over(&net.lb0).unwrap(),
            ])
            .unwrap();
        for (destination, gateway) in
            [("192.0.2.7", "10.0.0.2"), ("2001:db8::7", "fd00::2"), ("198.51.100.7", "fd00::2")]
        {
            let path = match net.ask(destination).await {
                NextHopState::Resolved(hop) => hop.gateway,
                NextHopState::Unresolved(_) => net.learn(destination).await.gateway,
                NextHopState::Unreachable { reason } => panic!("{destination}: {reason}"),
            };
            assert_eq!(path, addr(gateway), "{destination}");
            let hop = net.resolved(destination).await;
            assert_eq!((hop.source_mac, hop.destination_mac), (LB_MAC.0, PEER_MAC.0), "{destination}");
        }
        let over_v6 = net.resolved("198.51.100.7").await;
        assert_eq!(
            over_v6.preferred_source,
            Some(addr("10.0.0.1")),
            "the source is of the destination's family"
        );
    });
}

#[test]
fn neighbours_that_do_not_answer_stay_unresolved() {
    in_lab(async |net| {
        let path = net.unresolved("10.0.0.77").await;
        assert_eq!((path.gateway, path.source_mac), (addr("10.0.0.77"), LB_MAC.0));
        net.netlink.solicit(path.ifindex, path.gateway).await.unwrap();
        assert_eq!(net.unresolved("10.0.0.77").await, path);
        net.lb0.neighbour_in(NeighbourState::Failed, path.gateway, None).unwrap();
        assert_eq!(net.unresolved("10.0.0.77").await, path);
    });
}

#[test]
fn states_with_a_mac_resolve() {
    in_lab(async |net| {
        for state in [
            NeighbourState::Permanent,
            NeighbourState::Reachable,
            NeighbourState::Stale,
            NeighbourState::Delay,
            NeighbourState::Probe,
            NeighbourState::NoArp,
        ] {
            net.lb0.neighbour_in(state, addr("10.0.0.50"), Some(OTHER_MAC)).unwrap();
            assert_eq!(net.resolved("10.0.0.50").await.destination_mac, OTHER_MAC.0, "{state:?}");
            net.lb0.neighbour_delete(addr("10.0.0.50")).unwrap();
        }
    });
}

#[test]
fn soliciting_leaves_fixed_neighbours_fixed() {
    in_lab(async |net| {
        net.lb0.neighbour(addr("10.0.0.50"), OTHER_MAC).unwrap();
        let hop = net.resolved("10.0.0.50").await;
        net.netlink.solicit(hop.ifindex, hop.gateway).await.unwrap();
        // Complete and permanent.
        assert_eq!(net.arp("10.0.0.50"), ("0x6".into(), OTHER_MAC.to_string()));
    });
}

#[test]
fn a_new_mac_is_noticed() {
    in_lab(async |net| {
        assert_eq!(net.learn("10.0.0.2").await.destination_mac, PEER_MAC.0);
        let mut changes = net.netlink.changes().unwrap();
        net.peer0.set_mac(OTHER_MAC).unwrap();
        // What an ARP answer of the new owner does.
        net.lb0.neighbour_in(NeighbourState::Reachable, addr("10.0.0.2"), Some(OTHER_MAC)).unwrap();
        await_change(&mut changes, Change::NEIGHBOUR).await;
        assert_eq!(net.resolved("10.0.0.2").await.destination_mac, OTHER_MAC.0);
    });
}

#[test]
fn a_lost_neighbour_keeps_its_mac_until_it_is_found_again() {
    in_lab(async |net| {
        let before = NextHopState::Resolved(net.learn("10.0.0.2").await);
        net.lb0.neighbour_in(NeighbourState::Failed, addr("10.0.0.2"), None).unwrap();
        let merged = merge(Some(&before), net.ask("10.0.0.2").await);
        assert_eq!(merged.state, before);
        let (ifindex, gateway) = merged.solicit.expect("the neighbour is to be solicited");
        net.netlink.solicit(ifindex, gateway).await.unwrap();
        net.found(gateway).await;
    });
}

#[test]
fn the_lower_of_link_and_route_mtu_counts() {
    in_lab(async |net| {
        for gateway in ["10.0.0.2", "fd00::2"] {
            net.lb0.neighbour(addr(gateway), PEER_MAC).unwrap();
        }
        net.lb
            .routes(vec![
                route("192.0.2.0/24", "10.0.0.2").mtu(1400),
                route("2001:db8::/32", "fd00::2").mtu(1380),
            ])
            .unwrap();
        assert_eq!((net.resolved("192.0.2.1").await.mtu, net.socket_mtu("192.0.2.1")), (1400, 1400));
        assert_eq!(net.resolved("2001:db8::1").await.mtu, 1380);
        let mut changes = net.netlink.changes().unwrap();
        net.lb0.set_mtu(1300).unwrap();
        await_change(&mut changes, Change::LINK).await;
        assert_eq!(net.resolved("192.0.2.1").await.mtu, 1300);
        assert_eq!((net.resolved("10.0.0.2").await.mtu, net.socket_mtu("10.0.0.2")), (1300, 1300));
    });
}

#[test]
fn dead_ends_say_why() {
    in_lab(async |net| {
        let dead_ends = [
            ("203.0.113.0/26", DeadEnd::Blackhole),
            ("203.0.113.64/26", DeadEnd::Unreachable),
            ("203.0.113.128/26", DeadEnd::Prohibit),
            ("2001:db8:dead::/48", DeadEnd::Unreachable),
        ];
        let routes = dead_ends.map(|(prefix, end)| Route::dead_end(prefix.parse().unwrap(), end).unwrap());
        net.lb.routes(routes.into()).unwrap();
        for (destination, reason) in [
            ("198.18.0.1", UnreachableReason::NoRoute),
            ("2001:db8:1::1", UnreachableReason::NoRoute),
            ("10.0.0.1", UnreachableReason::Local),
            ("fd00::1", UnreachableReason::Local),
            ("127.0.0.1", UnreachableReason::Local),
            ("10.0.0.255", UnreachableReason::Broadcast),
            ("224.0.0.1", UnreachableReason::Multicast),
            ("ff02::1", UnreachableReason::Multicast),
            ("0.0.0.0", UnreachableReason::Unspecified),
            ("203.0.113.1", UnreachableReason::BlackholeRoute),
            ("203.0.113.65", UnreachableReason::UnreachableRoute),
            ("203.0.113.129", UnreachableReason::ProhibitRoute),
            ("2001:db8:dead::1", UnreachableReason::UnreachableRoute),
        ] {
            assert_eq!(net.unreachable(destination).await, reason, "{destination}");
        }
    });
}

#[test]
fn links_that_do_not_carry_are_dead_ends() {
    in_lab(async |net| {
        let mut changes = net.netlink.changes().unwrap();
        net.peer0.down().unwrap();
        await_change(&mut changes, Change::LINK).await;
        wait_for("the loss of carrier", async || (!net.seen().await.carrier).then_some(())).await;
        assert_eq!(net.unreachable("10.0.0.2").await, UnreachableReason::NoCarrier { name: "lb0".into() });
        net.lb0.down().unwrap();
        // The kernel takes the routes away with the link.
        assert_eq!(net.unreachable("10.0.0.2").await, UnreachableReason::NoRoute);
        assert!(!net.seen().await.up);
    });
}

#[test]
fn links_are_described() {
    in_lab(async |net| {
        let lb0 = net.seen().await;
        assert_eq!((lb0.ifindex, lb0.mac), (net.lb0.index().unwrap(), Some(LB_MAC.0)));
        assert_eq!((lb0.mtu, lb0.up, lb0.carrier, lb0.xdp), (1500, true, true, None));
        assert_eq!(lb0.kind.as_deref(), Some("veth"));
        assert!(lb0.peer_ifindex.is_some() && lb0.peer_elsewhere, "{lb0:?}");
        assert_eq!(net.netlink.driver("lb0").as_deref(), Some("veth"));

        let all = net.netlink.links().await.unwrap();
        assert!(all.contains(&lb0), "{all:?}");
        let lo = all.iter().find(|link| link.name == "lo").expect("lo exists");
        assert_eq!(lo.mac, None);

        for absent in ["nothere", "", "a-name-that-is-far-too-long-for-an-interface", "a/b"] {
            assert_eq!(net.netlink.link(absent).await.unwrap(), None, "{absent:?}");
            assert_eq!(net.netlink.driver(absent), None, "{absent:?}");
        }
    });
}

#[test]
fn attached_programs_are_seen() {
    in_lab(async |net| {
        for (mode, seen) in [(Mode::Generic, XdpAttachMode::Generic), (Mode::Native, XdpAttachMode::Native)] {
            let attached = FixedProgram::attach_in(mode, &net.lb, "lb0", Action::Pass).unwrap();
            let xdp = net.seen().await.xdp.expect("a program");
            assert_eq!(xdp.mode, seen);
            assert!(xdp.program_id.is_some_and(|id| id > 0), "{xdp:?}");
            drop(attached);
            assert_eq!(net.seen().await.xdp, None);
        }
    });
}

#[test]
fn many_destinations_are_resolved_at_once() {
    in_lab(async |net| {
        net.lb0.address("10.1.0.1/16".parse().unwrap()).unwrap();
        net.lb0.neighbour(addr("10.1.200.7"), OTHER_MAC).unwrap();
        let mut destinations: Vec<IpAddr> =
            (1..=10_000_u32).map(|n| IpAddr::from((0x0a01_0001 + n).to_be_bytes())).collect();
        destinations.push(addr("10.1.200.7"));
        destinations.push(addr("198.18.0.1"));
        let states = net.netlink.resolve_all(&destinations).await.unwrap();
        assert_eq!(states.len(), destinations.len());
        for destination in &destinations {
            let state = &states[destination];
            match destination.to_string().as_str() {
                "10.1.200.7" => assert!(state.next_hop().is_some(), "{state:?}"),
                "198.18.0.1" => assert!(matches!(state, NextHopState::Unreachable { .. }), "{state:?}"),
                _ => assert!(matches!(state, NextHopState::Unresolved(_)), "{destination}: {state:?}"),
            }
        }
    });
}

#[test]
fn concurrent_and_abandoned_dumps_do_not_hurt() {
    in_lab(async |net| {
        // So many that they take many messages.
        let entries: Vec<_> = (0..4_000_u32)
            .map(|n| {
                let [_, _, c, d] = n.to_be_bytes();
                (IpAddr::from([10, 3, c, d]), Mac([2, 0, 0, 0, c, d]))
            })
            .collect();
        net.lb0.address("10.3.255.1/16".parse().unwrap()).unwrap();
        net.lb0.neighbours(&entries).unwrap();
        let many = [addr("10.3.0.9"), addr("10.3.0.10")];
        for turns in 0..10 {
            let (one, two, links, ()) = tokio::join!(
                net.netlink.resolve_all(&many),
                net.netlink.resolve_all(&many),
                net.netlink.links(),
                // Given up half-way, with the kernel's answer still to come.
                async {
                    tokio::select! {
                        biased;
                        _ = net.netlink.resolve_all(&many) => {}
                        () = async { for _ in 0..turns { tokio::task::yield_now().await } } => {}
                    }
                },
            );
            for states in [one, two] {
                assert!(states.unwrap().values().all(|state| state.next_hop().is_some()));
            }
            assert!(links.unwrap().iter().any(|link| link.name == "lb0"));
        }
    });
}

#[test]
fn each_kind_of_change_is_told() {
    in_lab(async |net| {
        type Step<'a> = (&'a dyn Fn() -> anyhow::Result<()>, Change);
        let steps: [Step<'_>; 7] = [
            (&|| net.lb0.neighbour(addr("10.0.0.50"), OTHER_MAC), Change::NEIGHBOUR),
            (&|| net.lb0.address("10.7.0.1/24".parse()?), Change::ADDRESS),
            (&|| net.lb0.address("fd07::1/64".parse()?), Change::ADDRESS),
            (&|| net.lb.route("192.0.2.0/24".parse()?, &[addr("10.0.0.2")]), Change::ROUTE),
            (&|| net.lb.route("2001:db8::/32".parse()?, &[addr("fd00::2")]), Change::ROUTE),
            (&|| net.lb.rule_to_main("192.0.2.0/24".parse()?), Change::ROUTE),
            (&|| net.lb0.set_mtu(1400), Change::LINK),
        ];
        let mut changes = net.netlink.changes().unwrap();
        for (step, kind) in steps {
            // Forget what earlier steps brought.
            while tokio::time::timeout(Duration::from_millis(50), changes.next()).await.is_ok() {}
            step().unwrap();
            await_change(&mut changes, kind).await;
        }
    });
}

#[test]
fn a_storm_is_told_as_little_and_never_ends_the_telling() {
    in_lab(async |net| {
        let mut changes = net.netlink.changes().unwrap();
        // Far more events than the socket's buffer holds, while nobody reads.
        let routes = (0..20_000_u32).map(|n| {
            let [_, _, c, d] = n.to_be_bytes();
            route(&format!("100.64.{c}.{d}/32"), "10.0.0.2")
        });
        net.lb.routes(routes.collect()).unwrap();

        let mut seen = Change::NONE;
        let mut reports = 0;
        while let Ok(change) = tokio::time::timeout(Duration::from_millis(200), changes.next()).await {
            reports += 1;
            seen = if change == Change::ALL { change } else { seen };
        }
        assert_eq!(seen, Change::ALL, "the overrun is told as a change of everything");
        assert!(reports < 1000, "{reports} reports of 20,000 events");

        net.lb0.set_mtu(1400).unwrap();
        await_change(&mut changes, Change::LINK).await;
    });
}
