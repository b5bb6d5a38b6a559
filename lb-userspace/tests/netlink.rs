//! Next hops asked of a real kernel, in network namespaces that exist only as long as a test's thread.
//!
//! Two namespaces joined by a veth pair: `lb` (this thread) and `peer`. The `ip` command sets them up, so that our own
//! netlink code is not its own judge. No test may touch the namespace the tests were started in.

use std::fmt::Write as _;
use std::fs::File;
use std::future::Future;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use lb_userspace::dataplane::netlink::{Change, Changes, Netlink};
use lb_userspace::dataplane::nexthop::{
    Mac, NextHop, NextHopState, Path, UnreachableReason, XdpAttachMode, merge,
};
use nix::sched::{CloneFlags, setns, unshare};

const LB_MAC: Mac = [2, 0, 0, 0, 0, 1];
const PEER_MAC: Mac = [2, 0, 0, 0, 0, 2];
/// Far longer than anything here takes: only a wedged test runs into it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The far end of the veth pair. Freed with the last reference to it.
struct Peer(File);

impl Peer {
    /// Runs `ip ARGUMENTS` in the peer's namespace.
    fn ip(&self, arguments: &str) {
        std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("enter the peer's namespace");
                ip(arguments);
            });
            work.join().expect("ip in the peer's namespace");
        });
    }
}

/// Runs `ip ARGUMENTS` in the namespace of this thread.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("run ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs many `ip` commands, one a line, in the namespace of this thread.
fn ip_batch(commands: &str) {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    std::io::Write::write_all(&mut file, commands.as_bytes()).expect("write");
    ip(&format!("-batch {}", file.path().display()));
}

fn new_namespace() {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        panic!("needs root: run `cargo xtask test` (unshare: {error})");
    }
}

/// Runs `test` between two fresh namespaces: `lb0` with `10.0.0.1/24` and `fd00::1/64`, and
/// beyond it the peer with `10.0.0.2` and `fd00::2`.
fn in_lab<F, Fut>(test: F)
where
    F: FnOnce(Netlink, Peer) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    let thread = std::thread::spawn(move || {
        new_namespace();
        let peer = Peer(File::open("/proc/thread-self/ns/net").expect("open the peer's namespace"));
        new_namespace();
        let peer_path = format!("/proc/{}/fd/{}", std::process::id(), peer.0.as_raw_fd());
        ip("link set lo up");
        ip(&format!(
            "link add lb0 address 02:00:00:00:00:01 type veth peer name peer0 address 02:00:00:00:00:02 netns {peer_path}"
        ));
        ip("address add 10.0.0.1/24 dev lb0");
        ip("address add fd00::1/64 dev lb0 nodad");
        ip("link set lb0 up");
        peer.ip("address add 10.0.0.2/24 dev peer0");
        peer.ip("address add fd00::2/64 dev peer0 nodad");
        peer.ip("link set peer0 up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let netlink = Netlink::open().expect("open netlink");
            wait_for(&netlink, "the veth pair's carrier", async |netlink| {
                netlink.link("lb0").await.expect("ask").is_some_and(|link| link.carrier).then_some(())
            })
            .await;
            tokio::time::timeout(PATIENCE, test(netlink, peer)).await.expect("the test is stuck");
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Polls until `probe` gives something; the kernel does its part on its own time.
async fn wait_for<T>(netlink: &Netlink, what: &str, probe: impl AsyncFn(&Netlink) -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(value) = probe(netlink).await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

async fn ask(netlink: &Netlink, destination: &str) -> NextHopState {
    let single = netlink.next_hop(addr(destination)).await.expect("ask for one");
    let mut bulk = netlink.resolve_all(&[addr(destination)]).await.expect("ask for many");
    // Both ways must agree, whatever the test is about.
    assert_eq!(bulk.remove(&addr(destination)).as_ref(), Some(&single), "single and bulk answers differ");
    single
}

async fn resolved(netlink: &Netlink, destination: &str) -> NextHop {
    match ask(netlink, destination).await {
        NextHopState::Resolved(hop) => hop,
        other => panic!("{destination}: expected a next hop, got {other:?}"),
    }
}

async fn unresolved(netlink: &Netlink, destination: &str) -> Path {
    match ask(netlink, destination).await {
        NextHopState::Unresolved(path) => path,
        other => panic!("{destination}: expected unresolved, got {other:?}"),
    }
}

async fn unreachable(netlink: &Netlink, destination: &str) -> UnreachableReason {
    match ask(netlink, destination).await {
        NextHopState::Unreachable { reason } => reason,
        other => panic!("{destination}: expected unreachable, got {other:?}"),
    }
}

/// Solicits until the kernel has the MAC.
async fn learn(netlink: &Netlink, destination: &str) -> NextHop {
    let path = unresolved(netlink, destination).await;
    netlink.solicit(path.ifindex, path.gateway).await.expect("solicit");
    wait_for(netlink, destination, async |netlink| {
        netlink.next_hop(addr(destination)).await.expect("ask").next_hop().copied()
    })
    .await
}

#[test]
fn solicited_on_link_neighbours_resolve() {
    in_lab(async |netlink, _peer| {
        let lb0 = netlink.link("lb0").await.expect("ask").expect("lb0 exists");
        for (destination, source) in [("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1")] {
            let hop = learn(&netlink, destination).await;
            assert_eq!(
                hop,
                NextHop {
                    ifindex: lb0.ifindex,
                    gateway: addr(destination),
                    source_mac: LB_MAC,
                    destination_mac: PEER_MAC,
                    preferred_source: Some(addr(source)),
                    mtu: 1500,
                }
            );
        }
    });
}

#[test]
fn gateways_are_the_neighbours_of_what_lies_beyond() {
    in_lab(async |netlink, _peer| {
        ip("route add 192.0.2.0/24 via 10.0.0.2");
        ip("route add 2001:db8::/32 via fd00::2");
        ip("route add 198.51.100.0/24 via inet6 fd00::2 dev lb0");
        for (destination, gateway) in
            [("192.0.2.7", "10.0.0.2"), ("2001:db8::7", "fd00::2"), ("198.51.100.7", "fd00::2")]
        {
            let path = match netlink.next_hop(addr(destination)).await.expect("ask") {
                NextHopState::Resolved(hop) => hop.gateway,
                NextHopState::Unresolved(_) => learn(&netlink, destination).await.gateway,
                NextHopState::Unreachable { reason } => panic!("{destination}: {reason}"),
            };
            assert_eq!(path, addr(gateway), "{destination}");
            let hop = resolved(&netlink, destination).await;
            assert_eq!((hop.source_mac, hop.destination_mac), (LB_MAC, PEER_MAC), "{destination}");
        }
        let over_v6 = resolved(&netlink, "198.51.100.7").await;
        assert_eq!(
            over_v6.preferred_source,
            Some(addr("10.0.0.1")),
            "the source is of the destination's family"
        );
    });
}

#[test]
fn neighbours_that_do_not_answer_stay_unresolved() {
    in_lab(async |netlink, _peer| {
        let path = unresolved(&netlink, "10.0.0.77").await;
        assert_eq!((path.gateway, path.source_mac), (addr("10.0.0.77"), LB_MAC));
        netlink.solicit(path.ifindex, path.gateway).await.expect("solicit");
        assert_eq!(unresolved(&netlink, "10.0.0.77").await, path);
        ip("neighbour replace 10.0.0.77 dev lb0 nud failed");
        assert_eq!(unresolved(&netlink, "10.0.0.77").await, path);
    });
}

#[test]
fn states_with_a_mac_resolve() {
    in_lab(async |netlink, _peer| {
        for state in ["permanent", "reachable", "stale", "delay", "probe", "noarp"] {
            ip(&format!("neighbour replace 10.0.0.50 lladdr 02:00:00:00:00:50 dev lb0 nud {state}"));
            assert_eq!(
                resolved(&netlink, "10.0.0.50").await.destination_mac,
                [2, 0, 0, 0, 0, 0x50],
                "{state}"
            );
            ip("neighbour del 10.0.0.50 dev lb0");
        }
    });
}

#[test]
fn soliciting_leaves_fixed_neighbours_fixed() {
    in_lab(async |netlink, _peer| {
        ip("neighbour add 10.0.0.50 lladdr 02:00:00:00:00:50 dev lb0 nud permanent");
        let hop = resolved(&netlink, "10.0.0.50").await;
        netlink.solicit(hop.ifindex, hop.gateway).await.expect("solicit");
        let shown = Command::new("ip").args(["neighbour", "show", "10.0.0.50"]).output().expect("run ip");
        let shown = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.contains("PERMANENT"), "{shown}");
    });
}

#[test]
fn a_new_mac_is_noticed() {
    in_lab(async |netlink, peer| {
        assert_eq!(learn(&netlink, "10.0.0.2").await.destination_mac, PEER_MAC);
        let mut changes = netlink.changes().expect("subscribe");
        peer.ip("link set peer0 address 02:00:00:00:00:99");
        // What an ARP answer of the new owner does.
        ip("neighbour replace 10.0.0.2 lladdr 02:00:00:00:00:99 dev lb0 nud reachable");
        await_change(&mut changes, Change::NEIGHBOUR).await;
        assert_eq!(resolved(&netlink, "10.0.0.2").await.destination_mac, [2, 0, 0, 0, 0, 0x99]);
    });
}

#[test]
fn a_lost_neighbour_keeps_its_mac_until_it_is_found_again() {
    in_lab(async |netlink, _peer| {
        let before = NextHopState::Resolved(learn(&netlink, "10.0.0.2").await);
        ip("neighbour replace 10.0.0.2 dev lb0 nud failed");
        let merged = merge(Some(&before), ask(&netlink, "10.0.0.2").await);
        assert_eq!(merged.state, before);
        let (ifindex, gateway) = merged.solicit.expect("the neighbour is to be solicited");
        netlink.solicit(ifindex, gateway).await.expect("solicit");
        wait_for(&netlink, "the neighbour", async |netlink| {
            netlink.next_hop(gateway).await.expect("ask").next_hop().copied()
        })
        .await;
    });
}

#[test]
fn the_lower_of_link_and_route_mtu_counts() {
    in_lab(async |netlink, _peer| {
        ip("neighbour add 10.0.0.2 lladdr 02:00:00:00:00:02 dev lb0 nud permanent");
        ip("neighbour add fd00::2 lladdr 02:00:00:00:00:02 dev lb0 nud permanent");
        ip("route add 192.0.2.0/24 via 10.0.0.2 mtu 1400");
        ip("route add 2001:db8::/32 via fd00::2 mtu 1380");
        assert_eq!(resolved(&netlink, "192.0.2.1").await.mtu, 1400);
        assert_eq!(resolved(&netlink, "2001:db8::1").await.mtu, 1380);
        let mut changes = netlink.changes().expect("subscribe");
        ip("link set lb0 mtu 1300");
        await_change(&mut changes, Change::LINK).await;
        assert_eq!(resolved(&netlink, "192.0.2.1").await.mtu, 1300);
        assert_eq!(resolved(&netlink, "10.0.0.2").await.mtu, 1300);
    });
}

#[test]
fn dead_ends_say_why() {
    in_lab(async |netlink, _peer| {
        ip("route add blackhole 203.0.113.0/26");
        ip("route add unreachable 203.0.113.64/26");
        ip("route add prohibit 203.0.113.128/26");
        ip("route add unreachable 2001:db8:dead::/48");
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
            assert_eq!(unreachable(&netlink, destination).await, reason, "{destination}");
        }
    });
}

#[test]
fn links_that_do_not_carry_are_dead_ends() {
    in_lab(async |netlink, peer| {
        let mut changes = netlink.changes().expect("subscribe");
        peer.ip("link set peer0 down");
        await_change(&mut changes, Change::LINK).await;
        wait_for(&netlink, "the loss of carrier", async |netlink| {
            let link = netlink.link("lb0").await.expect("ask").expect("lb0 exists");
            (!link.carrier).then_some(())
        })
        .await;
        assert_eq!(
            unreachable(&netlink, "10.0.0.2").await,
            UnreachableReason::NoCarrier { name: "lb0".into() }
        );
        ip("link set lb0 down");
        // The kernel takes the routes away with the link.
        assert_eq!(unreachable(&netlink, "10.0.0.2").await, UnreachableReason::NoRoute);
        assert!(!netlink.link("lb0").await.expect("ask").expect("lb0 exists").up);
    });
}

#[test]
fn links_are_described() {
    in_lab(async |netlink, _peer| {
        let lb0 = netlink.link("lb0").await.expect("ask").expect("lb0 exists");
        assert_eq!(lb0.mac, Some(LB_MAC));
        assert_eq!((lb0.mtu, lb0.up, lb0.carrier, lb0.xdp), (1500, true, true, None));
        assert_eq!(lb0.kind.as_deref(), Some("veth"));
        assert!(lb0.peer_ifindex.is_some() && lb0.peer_elsewhere, "{lb0:?}");
        assert_eq!(netlink.driver("lb0").as_deref(), Some("veth"));

        let all = netlink.links().await.expect("ask");
        assert!(all.contains(&lb0), "{all:?}");
        let lo = all.iter().find(|link| link.name == "lo").expect("lo exists");
        assert_eq!(lo.mac, None);

        for absent in ["nothere", "", "a-name-that-is-far-too-long-for-an-interface", "a/b"] {
            assert_eq!(netlink.link(absent).await.expect("ask"), None, "{absent:?}");
            assert_eq!(netlink.driver(absent), None, "{absent:?}");
        }
    });
}

/// `bpf(2)` with the leading fields of its argument; returns a file descriptor.
fn bpf(command: libc::c_int, fields: &[u8]) -> OwnedFd {
    let mut argument = [0_u8; 128];
    argument[..fields.len()].copy_from_slice(fields);
    // SAFETY: the argument is long enough, initialised, and what it points to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, argument.as_mut_ptr(), argument.len()) };
    assert!(fd >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
    // SAFETY: both commands used here return a new descriptor.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) }
}

/// Attaches "pass everything" until the result is dropped.
fn attach_xdp(ifindex: u32, flags: u32) -> OwnedFd {
    const PROG_LOAD: libc::c_int = 5;
    const LINK_CREATE: libc::c_int = 28;
    const PROG_TYPE_XDP: u32 = 6;
    const ATTACH_XDP: u32 = 37;
    // r0 = XDP_PASS; exit
    let program: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    let license = c"GPL";
    let mut fields = [PROG_TYPE_XDP, program.len() as u32].map(u32::to_ne_bytes).concat();
    fields.extend([program.as_ptr() as u64, license.as_ptr() as u64].map(u64::to_ne_bytes).concat());
    let program = bpf(PROG_LOAD, &fields);
    let program_fd = program.as_raw_fd().cast_unsigned();
    bpf(LINK_CREATE, &[program_fd, ifindex, ATTACH_XDP, flags].map(u32::to_ne_bytes).concat())
}

#[test]
fn attached_programs_are_seen() {
    in_lab(async |netlink, _peer| {
        const SKB_MODE: u32 = 1 << 1;
        const DRV_MODE: u32 = 1 << 2;
        let ifindex = netlink.link("lb0").await.expect("ask").expect("lb0 exists").ifindex;
        for (flags, mode) in [(SKB_MODE, XdpAttachMode::Generic), (DRV_MODE, XdpAttachMode::Native)] {
            let attached = attach_xdp(ifindex, flags);
            let xdp = netlink.link("lb0").await.expect("ask").expect("lb0 exists").xdp.expect("a program");
            assert_eq!(xdp.mode, mode);
            assert!(xdp.program_id.is_some_and(|id| id > 0), "{xdp:?}");
            drop(attached);
            assert_eq!(netlink.link("lb0").await.expect("ask").expect("lb0 exists").xdp, None);
        }
    });
}

#[test]
fn many_destinations_are_resolved_at_once() {
    in_lab(async |netlink, _peer| {
        ip("address add 10.1.0.1/16 dev lb0");
        ip("neighbour add 10.1.200.7 lladdr 02:00:00:00:07:07 dev lb0 nud permanent");
        let mut destinations: Vec<IpAddr> =
            (1..=10_000_u32).map(|n| IpAddr::from((0x0a01_0001 + n).to_be_bytes())).collect();
        destinations.push(addr("10.1.200.7"));
        destinations.push(addr("198.18.0.1"));
        let states = netlink.resolve_all(&destinations).await.expect("ask");
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
    in_lab(async |netlink, _peer| {
        // So many that they take many messages.
        let mut batch = String::new();
        for n in 0..4_000_u32 {
            let [_, _, c, d] = n.to_be_bytes();
            writeln!(
                batch,
                "neighbour add 10.3.{c}.{d} lladdr 02:00:00:00:{c:02x}:{d:02x} dev lb0 nud permanent"
            )
            .expect("write to a string");
        }
        ip("address add 10.3.255.1/16 dev lb0");
        ip_batch(&batch);
        let many = [addr("10.3.0.9"), addr("10.3.0.10")];
        for turns in 0..10 {
            let (one, two, links, ()) = tokio::join!(
                netlink.resolve_all(&many),
                netlink.resolve_all(&many),
                netlink.links(),
                // Given up half-way, with the kernel's answer still to come.
                async {
                    tokio::select! {
                        biased;
                        _ = netlink.resolve_all(&many) => {}
                        () = async { for _ in 0..turns { tokio::task::yield_now().await } } => {}
                    }
                },
            );
            for states in [one, two] {
                assert!(states.expect("resolve").values().all(|state| state.next_hop().is_some()));
            }
            assert!(links.expect("links").iter().any(|link| link.name == "lb0"));
        }
    });
}

/// Waits for a change of the given kind.
async fn await_change(changes: &mut Changes, kind: Change) {
    let waiting = async { while !changes.next().await.touches(kind) {} };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("no change of {kind:?} was told"));
}

#[test]
fn each_kind_of_change_is_told() {
    in_lab(async |netlink, _peer| {
        let mut changes = netlink.changes().expect("subscribe");
        for (command, kind) in [
            ("neighbour add 10.0.0.50 lladdr 02:00:00:00:00:50 dev lb0", Change::NEIGHBOUR),
            ("address add 10.7.0.1/24 dev lb0", Change::ADDRESS),
            ("address add fd07::1/64 dev lb0 nodad", Change::ADDRESS),
            ("route add 192.0.2.0/24 via 10.0.0.2", Change::ROUTE),
            ("-6 route add 2001:db8::/32 via fd00::2", Change::ROUTE),
            ("rule add to 192.0.2.0/24 lookup main", Change::ROUTE),
            ("link set lb0 mtu 1400", Change::LINK),
        ] {
            // Forget what earlier commands brought.
            while tokio::time::timeout(Duration::from_millis(50), changes.next()).await.is_ok() {}
            ip(command);
            await_change(&mut changes, kind).await;
        }
    });
}

#[test]
fn a_storm_is_told_as_little_and_never_ends_the_telling() {
    in_lab(async |netlink, _peer| {
        let mut changes = netlink.changes().expect("subscribe");
        // Far more events than the socket's buffer holds, while nobody reads.
        let mut batch = String::new();
        for n in 0..20_000_u32 {
            let [_, _, c, d] = n.to_be_bytes();
            writeln!(batch, "route add 100.64.{c}.{d}/32 via 10.0.0.2").expect("write to a string");
        }
        ip_batch(&batch);

        let mut seen = Change::NONE;
        let mut reports = 0;
        while let Ok(change) = tokio::time::timeout(Duration::from_millis(200), changes.next()).await {
            reports += 1;
            seen = if change == Change::ALL { change } else { seen };
        }
        assert_eq!(seen, Change::ALL, "the overrun is told as a change of everything");
        assert!(reports < 1000, "{reports} reports of 20,000 events");

        ip("link set lb0 mtu 1400");
        await_change(&mut changes, Change::LINK).await;
    });
}
