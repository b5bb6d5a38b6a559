//! Interfaces, addresses, routes and neighbours of a host: the one file that speaks rtnetlink.
//!
//! Plain questions (index, address, counters) are answered by the host's own sysfs. Nothing here may touch an interface
//! outside the lab: every request goes through a socket that was opened inside a host.

use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoBridge, InfoData, InfoVeth, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteScope, RouteType};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, RouteNextHopBuilder,
};
use tokio::runtime::Runtime;

use crate::host::Host;
use crate::offload;

/// The number of the table that says which addresses are this host's own.
const TABLE_LOCAL: u32 = 255;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

impl FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part =
                parts.next().with_context(|| format!("`{text}` is too short for a hardware address"))?;
            *byte = u8::from_str_radix(part, 16).with_context(|| format!("hardware address `{text}`"))?;
        }
        if parts.next().is_some() {
            bail!("`{text}` is too long for a hardware address");
        }
        Ok(Self(mac))
    }
}

/// Counters of an interface since it was made. XDP programs run before most of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets dropped on receipt.
    pub rx_dropped: u64,
    /// Packets dropped on sending.
    pub tx_dropped: u64,
}

/// An interface of a host, by name; see [`Host::link`]. It need not exist until it is used.
#[derive(Clone, Debug)]
pub struct Link {
    host: Host,
    name: String,
}

/// Makes a pair of connected interfaces, one in each host, both down. Both vanish when either host ends.
pub fn veth(one: (&Host, &str), other: (&Host, &str), mtu: u32) -> Result<(Link, Link)> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(other.1)
        .mtu(mtu)
        .setns_by_fd(other.0.netns_fd())
        .build();
    let message =
        LinkVeth::new(one.1, other.1).mtu(mtu).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
    netlink(one.0, async |handle| handle.link().add(message).execute().await).with_context(|| {
        format!("cannot connect {}:{} to {}:{}", one.0.name(), one.1, other.0.name(), other.1)
    })?;
    Ok((one.0.link(one.1), other.0.link(other.1)))
}

impl Host {
    /// An interface of this host, by name.
    pub fn link(&self, name: impl Into<String>) -> Link {
        Link { host: self.clone(), name: name.into() }
    }

    /// Makes a bridge without spanning tree, so that its ports forward at once, and sets it up.
    pub fn bridge(&self, name: &str, mtu: u32) -> Result<Link> {
        let message =
            LinkBridge::new(name).append_info_data(InfoBridge::MulticastSnooping(false)).mtu(mtu).build();
        netlink(self, async |handle| handle.link().add(message).execute().await)
            .with_context(|| format!("{}: cannot make bridge {name}", self.name()))?;
        let bridge = self.link(name);
        // A bridge's address follows its ports until it is set; neighbours must not see it change.
        bridge.set_mac(bridge.mac()?)?;
        Ok(bridge)
    }

    /// Routes a prefix through gateways, replacing what was there; more than one shares flows among them (ECMP).
    pub fn route(&self, prefix: IpNet, gateways: &[IpAddr]) -> Result<()> {
        let result = (|| {
            let mut route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(prefix.addr(), prefix.prefix_len())?;
            route = match gateways {
                [] => bail!("a route needs a gateway"),
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
            };
            let message = route.build();
            netlink(self, async |handle| handle.route().add(message).replace().execute().await)
        })();
        result.with_context(|| format!("{}: cannot route {prefix} through {gateways:?}", self.name()))
    }

    /// Removes a route.
    pub fn route_delete(&self, prefix: IpNet) -> Result<()> {
        let result = (|| {
            let message = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(prefix.addr(), prefix.prefix_len())?
                .build();
            netlink(self, async |handle| handle.route().del(message).execute().await)
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
            netlink(self, async |handle| handle.route().add(message).replace().execute().await)
        })();
        result.with_context(|| format!("{}: cannot take {prefix} as its own", self.name()))
    }
}

impl Link {
    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host that it belongs to.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The interface's index in its host.
    pub fn index(&self) -> Result<u32> {
        self.attribute("ifindex")
    }

    /// The hardware address.
    pub fn mac(&self) -> Result<Mac> {
        self.attribute("address")
    }

    /// The largest packet in bytes, without the Ethernet header.
    pub fn mtu(&self) -> Result<u32> {
        self.attribute("mtu")
    }

    /// Reads the counters.
    pub fn stats(&self) -> Result<LinkStats> {
        let read = |name: &str| self.attribute::<u64>(&format!("statistics/{name}"));
        Ok(LinkStats {
            rx_packets: read("rx_packets")?,
            tx_packets: read("tx_packets")?,
            rx_bytes: read("rx_bytes")?,
            tx_bytes: read("tx_bytes")?,
            rx_dropped: read("rx_dropped")?,
            tx_dropped: read("tx_dropped")?,
        })
    }

    /// Sets the interface up.
    pub fn up(&self) -> Result<()> {
        self.change("set up", LinkMessageBuilder::up)
    }

    /// Sets the interface down; its peer loses its carrier.
    pub fn down(&self) -> Result<()> {
        self.change("set down", LinkMessageBuilder::down)
    }

    /// Changes the MTU, in bytes.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        self.change("set the MTU of", |link| link.mtu(mtu))
    }

    /// Changes the hardware address.
    pub fn set_mac(&self, mac: Mac) -> Result<()> {
        self.change("set the hardware address of", |link| link.address(mac.0.to_vec()))
    }

    /// Makes the interface a port of a bridge on the same host.
    pub fn join(&self, bridge: &str) -> Result<()> {
        let bridge = self.host.link(bridge).index()?;
        self.change("bridge", |link| link.controller(bridge))
    }

    /// Deletes the interface, and its peer with it.
    pub fn delete(&self) -> Result<()> {
        let index = self.index()?;
        netlink(&self.host, async |handle| handle.link().del(index).execute().await)
            .with_context(|| format!("cannot delete {self}"))
    }

    /// Adds an address; usable at once, there is no duplicate address detection.
    pub fn address(&self, address: IpNet) -> Result<()> {
        let index = self.index()?;
        netlink(&self.host, async |handle| {
            let mut add = handle.address().add(index, address.addr(), address.prefix_len());
            if address.addr().is_ipv6() {
                add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            add.execute().await
        })
        .with_context(|| format!("cannot give {address} to {self}"))
    }

    /// Sets a permanent neighbour entry, replacing what was there.
    pub fn neighbour(&self, address: IpAddr, mac: Mac) -> Result<()> {
        let index = self.index()?;
        netlink(&self.host, async |handle| {
            let add = handle.neighbours().add(index, address).replace();
            add.link_layer_address(&mac.0).execute().await
        })
        .with_context(|| format!("cannot set neighbour {address} of {self}"))
    }

    /// Deletes a neighbour entry.
    pub fn neighbour_delete(&self, address: IpAddr) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = self.index()?;
        let (family, destination) = match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
        };
        message.header.family = family;
        message.attributes.push(NeighbourAttribute::Destination(destination));
        netlink(&self.host, async |handle| handle.neighbours().del(message).execute().await)
            .with_context(|| format!("cannot delete neighbour {address} of {self}"))
    }

    /// Turns checksumming by the (virtual) device on or off. Off is what XDP on the other end needs: it sees the
    /// packet as it is, with a checksum that nobody has filled in yet.
    pub fn tx_checksum_offload(&self, on: bool) -> Result<()> {
        offload::set(&self.host, &self.name, offload::Feature::TxChecksum, on)
    }

    /// Turns generic receive offload (merging of segments) on or off.
    pub fn gro(&self, on: bool) -> Result<()> {
        offload::set(&self.host, &self.name, offload::Feature::Gro, on)
    }

    fn change(
        &self,
        what: &str,
        edit: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<()> {
        let message: LinkMessage = edit(LinkUnspec::new_with_index(self.index()?)).build();
        netlink(&self.host, async |handle| handle.link().set(message).execute().await)
            .with_context(|| format!("cannot {what} {self}"))
    }

    /// Reads `/sys/class/net/NAME/WHAT` of the host.
    fn attribute<T: FromStr>(&self, what: &str) -> Result<T>
    where
        T::Err: fmt::Display,
    {
        let text = self.host.read(format!("/sys/class/net/{}/{what}", self.name))?;
        text.parse().map_err(|error| anyhow::anyhow!("{what} of {self} is `{text}`: {error}"))
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host.name(), self.name)
    }
}

/// A netlink socket of a host with the runtime that drives it.
struct Socket {
    runtime: Runtime,
    handle: Handle,
}

thread_local! {
    /// Made at the first request on a host's thread, where it belongs to that host's network.
    static SOCKET: RefCell<Option<Rc<Socket>>> = const { RefCell::new(None) };
}

/// Closes the calling host thread's socket. To be called before the thread ends: a runtime must not be dropped among
/// the thread's other local values.
pub(crate) fn forget_socket() {
    SOCKET.with_borrow_mut(Option::take);
}

/// Runs one rtnetlink exchange on a host's thread.
fn netlink<R: Send, E: std::error::Error + Send + Sync + 'static>(
    host: &Host,
    exchange: impl AsyncFnOnce(Handle) -> Result<R, E> + Send,
) -> Result<R> {
    host.run(|| {
        let socket = SOCKET.with_borrow_mut(|slot| -> Result<Rc<Socket>> {
            if let Some(socket) = slot {
                return Ok(socket.clone());
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            let guard = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            runtime.spawn(connection);
            drop(guard);
            Ok(slot.insert(Rc::new(Socket { runtime, handle })).clone())
        })?;
        Ok(socket.runtime.block_on(exchange(socket.handle.clone()))?)
    })
}
