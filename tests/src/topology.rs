//! The lab's standard network: client, router, load balancers and backends in two sites, dual stack.
//!
//! ```text
//!   client ── router ──┬── br0  site A  10.2.0.0/24  fd02::/64   lb1 (eth0), lb2 …, backends a1, a2 …
//!                      └── br1  site B  10.3.0.0/24  fd03::/64   lb1 (eth1, if two-armed), backends b1, b2 …
//! ```
//!
//! Backends in site A share the load balancer's Ethernet (layer-2 mode works); those in site B are behind the router.
//! Every veth end computes checksums itself and every port towards a load balancer or a backend runs the pass program,
//! because native XDP loses frames otherwise. This file wires things up and must hold no expectation of a test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::host::Host;
use crate::link::{Link, veth};
use crate::peer::{Action, FixedProgram};
use crate::server::{Server, ServerSpec};

/// The prefix of IPv4 service addresses, routed to the load balancers.
pub const SERVICES_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24);
/// The prefix of IPv6 service addresses, routed to the load balancers.
pub const SERVICES_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0), 64);
/// The first IPv4 service address: what every lab has unless told otherwise.
pub const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
/// The first IPv6 service address.
pub const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10));
/// Every address in here is the client's own, so that it can open any number of flows.
pub const CLIENTS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 100, 0, 0), 16);
/// Every address in here is the client's own.
pub const CLIENTS_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd0a, 0, 0, 0, 0, 0, 0, 0), 64);

/// The client's link carries what the internet does.
const CLIENT_MTU: u32 = 1500;
/// Room for the outer headers of a full-sized client packet.
const INNER_MTU: u32 = 1600;
/// Host part of the first backend's addresses.
const FIRST_BACKEND: u8 = 11;
/// Host part of the first load balancer's addresses.
const FIRST_LB: u8 = 2;
/// Host part of the router's addresses.
const ROUTER: u8 = 1;

/// Where a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// On the load balancers' own Ethernet.
    A,
    /// Behind the router.
    B,
}

impl Site {
    /// The router's bridge of this site.
    pub const fn bridge(self) -> &'static str {
        match self {
            Self::A => "br0",
            Self::B => "br1",
        }
    }

    const fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }

    /// IPv4 and IPv6 address of a host on this site's Ethernet.
    fn addresses(self, host: u8) -> (Ipv4Addr, Ipv6Addr) {
        let net = match self {
            Self::A => 2,
            Self::B => 3,
        };
        on_net(net, host)
    }
}

/// Address number `host` on the lab's network number `net`.
fn on_net(net: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(10, net, 0, host), Ipv6Addr::new(0xfd00 | u16::from(net), 0, 0, 0, 0, 0, 0, host.into()))
}

/// What to build; see [`Lab::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct LabBuilder {
    site_a: u8,
    site_b: u8,
    load_balancers: u8,
    two_arm: bool,
    inner_mtu: u32,
    vips: Vec<IpAddr>,
    servers: ServerSpec,
}

impl LabBuilder {
    /// Number of backends in site A; 2 by default.
    pub fn site_a(mut self, backends: u8) -> Self {
        self.site_a = backends;
        self
    }

    /// Number of backends in site B; none by default.
    pub fn site_b(mut self, backends: u8) -> Self {
        self.site_b = backends;
        self
    }

    /// Number of load balancers; 1 by default. Service addresses are routed to the first.
    pub fn load_balancers(mut self, count: u8) -> Self {
        self.load_balancers = count;
        self
    }

    /// Gives every load balancer a second interface `eth1` in site B.
    pub fn two_arm(mut self) -> Self {
        self.two_arm = true;
        self
    }

    /// The MTU of both sites in bytes; 1600 by default, which leaves room for encapsulation.
    pub fn inner_mtu(mut self, mtu: u32) -> Self {
        self.inner_mtu = mtu;
        self
    }

    /// Adds a service address to every backend, besides [`VIP4`] and [`VIP6`].
    pub fn vip(mut self, address: IpAddr) -> Self {
        self.vips.push(address);
        self
    }

    /// The ports that every backend serves; TCP 80 and UDP 53 by default.
    pub fn servers(mut self, servers: ServerSpec) -> Self {
        self.servers = servers;
        self
    }

    /// Builds the network and starts the servers.
    ///
    /// # Panics
    /// Without root, naming the cure.
    pub fn build(self) -> Result<Lab> {
        ensure!(self.load_balancers <= FIRST_BACKEND - FIRST_LB, "too many load balancers");
        ensure!(self.site_a.max(self.site_b) < 255 - FIRST_BACKEND, "too many backends");
        for vip in &self.vips {
            let routed = match vip {
                IpAddr::V4(v4) => SERVICES_V4.contains(v4),
                IpAddr::V6(v6) => SERVICES_V6.contains(v6),
            };
            ensure!(routed, "{vip} is outside {SERVICES_V4} and {SERVICES_V6}, so nothing routes it");
        }
        let router = router(self.inner_mtu)?;
        let client = client(&router)?;
        let mut passes = Vec::new();
        let mut wire = Wire { router: &router, mtu: self.inner_mtu, passes: &mut passes, links: Vec::new() };
        let mut lbs = Vec::new();
        for index in 0..self.load_balancers {
            lbs.push(load_balancer(&mut wire, index, self.two_arm)?);
        }
        let mut backends = Vec::new();
        for (site, count) in [(Site::A, self.site_a), (Site::B, self.site_b)] {
            for index in 0..count {
                backends.push(backend(&mut wire, site, index, &self.vips, &self.servers)?);
            }
        }
        // All links have been coming up at the same time until here.
        wire.links.iter().try_for_each(Link::wait_ready)?;
        for (host, link) in [(&client, "eth0"), (&router, "client")] {
            host.link(link).wait_ready()?;
        }
        let lab = Lab { backends, lbs, client, router, _passes: passes };
        if !lab.lbs.is_empty() {
            lab.route_services_to(&[0])?;
        }
        Ok(lab)
    }
}

/// The network, running. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Lab {
    /// Backends of site A, then of site B.
    pub backends: Vec<Backend>,
    /// The load balancers.
    pub lbs: Vec<LoadBalancer>,
    /// The client.
    pub client: Host,
    /// The router between all of them.
    pub router: Host,
    _passes: Vec<FixedProgram>,
}

/// A load balancer's host. Interfaces: `eth0` in site A and, if two-armed, `eth1` in site B.
#[derive(Debug)]
pub struct LoadBalancer {
    /// Where it runs.
    pub host: Host,
    /// Its address in site A.
    pub v4: Ipv4Addr,
    /// Its address in site A.
    pub v6: Ipv6Addr,
    /// The router's port that it is connected to: the place to capture what goes in and out.
    pub port: String,
}

/// A backend: its interface is `eth0`, the service addresses are on `lo`.
#[derive(Debug)]
pub struct Backend {
    /// `a1`, `a2` …, `b1` …
    pub name: String,
    /// Where it is.
    pub site: Site,
    /// Where it runs.
    pub host: Host,
    /// Its own address.
    pub v4: Ipv4Addr,
    /// Its own address.
    pub v6: Ipv6Addr,
    /// The router's port that it is connected to.
    pub port: String,
    /// Its server.
    pub server: Server,
}

impl Lab {
    /// One client, one router, one load balancer and two backends in site A, unless told otherwise.
    pub fn builder() -> LabBuilder {
        LabBuilder {
            site_a: 2,
            site_b: 0,
            load_balancers: 1,
            two_arm: false,
            inner_mtu: INNER_MTU,
            vips: vec![VIP4, VIP6],
            servers: ServerSpec::default(),
        }
    }

    /// The first load balancer's host.
    pub fn lb(&self) -> &Host {
        &self.lbs[0].host
    }

    /// A backend by name.
    ///
    /// # Panics
    /// If there is none.
    pub fn backend(&self, name: &str) -> &Backend {
        self.backends
            .iter()
            .find(|backend| backend.name == name)
            .unwrap_or_else(|| panic!("no backend {name}"))
    }

    /// Routes all service addresses to these load balancers; more than one shares flows among them by ECMP.
    pub fn route_services_to(&self, lbs: &[usize]) -> Result<()> {
        let v4: Vec<IpAddr> = lbs.iter().map(|index| self.lbs[*index].v4.into()).collect();
        let v6: Vec<IpAddr> = lbs.iter().map(|index| self.lbs[*index].v6.into()).collect();
        self.router.route(SERVICES_V4.into(), &v4)?;
        self.router.route(SERVICES_V6.into(), &v6)
    }

    /// How many flows [`Lab::flow_source`] tells apart: every port it uses of every address of [`CLIENTS_V4`] but the
    /// last two.
    pub const FLOWS: u32 = 30_000 * 65_534;

    /// A client socket address for flow number `index`, below [`Lab::FLOWS`]: the same for the same number, different
    /// for different ones, of the same family as `target`.
    pub fn flow_source(target: IpAddr, index: u32) -> SocketAddr {
        // Ports below 1024 stay free, and so does the range that the kernel picks from (32768..61000).
        const PORTS: u32 = 30_000;
        let port = 1025 + u16::try_from(index % PORTS).unwrap_or_default();
        let host = index / PORTS + 1;
        let address = match target {
            IpAddr::V4(_) => Ipv4Addr::from(u32::from(CLIENTS_V4.network()) + host).into(),
            IpAddr::V6(_) => Ipv6Addr::from(u128::from(CLIENTS_V6.network()) + u128::from(host)).into(),
        };
        SocketAddr::new(address, port)
    }
}

impl Backend {
    /// The backend's own address of the same family as `like`.
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }
}

/// Lays cables between the router's bridges and hosts.
struct Wire<'a> {
    router: &'a Host,
    mtu: u32,
    passes: &'a mut Vec<FixedProgram>,
    links: Vec<Link>,
}

impl Wire<'_> {
    /// Connects `interface` of `host` to a site and gives it its addresses.
    fn connect(&mut self, host: &Host, interface: &str, site: Site, number: u8, port: &str) -> Result<()> {
        let (inside, outside) = veth((host, interface), (self.router, port), self.mtu)?;
        for end in [&inside, &outside] {
            end.tx_checksum_offload(false)?;
        }
        outside.join(site.bridge())?;
        self.passes.push(FixedProgram::attach(self.router, port, Action::Pass)?);
        outside.up()?;
        inside.up()?;
        let (v4, v6) = site.addresses(number);
        inside.address(IpNet::new(v4.into(), 24)?)?;
        inside.address(IpNet::new(v6.into(), 64)?)?;
        self.links.extend([inside, outside]);
        Ok(())
    }

    /// Sends everything else to the router of this site.
    fn default_route(host: &Host, site: Site) -> Result<()> {
        let (v4, v6) = site.addresses(ROUTER);
        default_route(host, v4, v6)
    }
}

fn default_route(host: &Host, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    host.route(IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0)?, &[v4.into()])?;
    host.route(IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0)?, &[v6.into()])
}

fn router(mtu: u32) -> Result<Host> {
    let router = Host::new("router")?;
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // Otherwise ICMP errors get scarce when a test wants many.
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
        // ECMP by ports as well as addresses, as routers before load balancers do.
        ("net/ipv4/fib_multipath_hash_policy", "1"),
        ("net/ipv6/fib_multipath_hash_policy", "1"),
    ] {
        router.sysctl(key, value)?;
    }
    for site in [Site::A, Site::B] {
        let bridge = router.bridge(site.bridge(), mtu)?;
        bridge.tx_checksum_offload(false)?;
        bridge.up()?;
        let (v4, v6) = site.addresses(ROUTER);
        bridge.address(IpNet::new(v4.into(), 24)?)?;
        bridge.address(IpNet::new(v6.into(), 64)?)?;
    }
    Ok(router)
}

fn client(router: &Host) -> Result<Host> {
    let client = Host::new("client")?;
    // Its extra addresses are routed, not configured; IPv6 binds to those only with this.
    client.sysctl("net/ipv6/ip_nonlocal_bind", "1")?;
    let (inside, outside) = veth((&client, "eth0"), (router, "client"), CLIENT_MTU)?;
    for (end, host) in [(&inside, 2), (&outside, 1)] {
        end.tx_checksum_offload(false)?;
        end.up()?;
        let (v4, v6) = on_net(1, host);
        end.address(IpNet::new(v4.into(), 24)?)?;
        end.address(IpNet::new(v6.into(), 64)?)?;
    }
    let (v4, v6) = on_net(1, 1);
    default_route(&client, v4, v6)?;
    let (v4, v6) = on_net(1, 2);
    for (prefix, gateway) in
        [(IpNet::from(CLIENTS_V4), IpAddr::from(v4)), (IpNet::from(CLIENTS_V6), IpAddr::from(v6))]
    {
        client.own_prefix(prefix)?;
        router.route(prefix, &[gateway])?;
    }
    Ok(client)
}

fn load_balancer(wire: &mut Wire<'_>, index: u8, two_arm: bool) -> Result<LoadBalancer> {
    let name = format!("lb{}", index + 1);
    let host = Host::new(&name)?;
    let number = FIRST_LB + index;
    wire.connect(&host, "eth0", Site::A, number, &name)?;
    if two_arm {
        wire.connect(&host, "eth1", Site::B, number, &format!("{name}-b"))?;
    }
    Wire::default_route(&host, Site::A)?;
    let (v4, v6) = Site::A.addresses(number);
    Ok(LoadBalancer { host, v4, v6, port: name })
}

fn backend(
    wire: &mut Wire<'_>,
    site: Site,
    index: u8,
    vips: &[IpAddr],
    servers: &ServerSpec,
) -> Result<Backend> {
    let name = format!("{}{}", site.letter(), u16::from(index) + 1);
    let host = Host::new(&name)?;
    // The service addresses are on every backend, so none may answer for them on the Ethernet.
    host.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    host.sysctl("net/ipv4/conf/all/arp_announce", "2")?;
    let number = FIRST_BACKEND + index;
    wire.connect(&host, "eth0", site, number, &name)?;
    Wire::default_route(&host, site)?;
    let lo = host.link("lo");
    for vip in vips {
        lo.address(IpNet::from(*vip))?;
    }
    let (v4, v6) = site.addresses(number);
    let mut udp_addresses = vips.to_vec();
    udp_addresses.extend([IpAddr::from(v4), IpAddr::from(v6)]);
    let server = Server::start(&host, &name, servers, &udp_addresses)
        .with_context(|| format!("cannot start the server of {name}"))?;
    Ok(Backend { port: name.clone(), name, site, host, v4, v6, server })
}
