//! Interfaces of a host and their addresses.
//!
//! Plain questions (index, address, counters) are answered by the host's own sysfs. Nothing here may touch an interface
//! outside the lab.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoBridge, InfoData, InfoVeth, LinkMessage};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::host::Host;
use crate::netlink::request;
use crate::offload;
use crate::wait;

/// The state of a bridge's port that lets frames through.
const BR_STATE_FORWARDING: u8 = 3;
/// How long the kernel may take to bring a link up on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(30);

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
    request(one.0, async |handle| handle.link().add(message).execute().await).with_context(|| {
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
        request(self, async |handle| handle.link().add(message).execute().await)
            .with_context(|| format!("{}: cannot make bridge {name}", self.name()))?;
        let bridge = self.link(name);
        // A bridge's address follows its ports until it is set; neighbours must not see it change.
        bridge.set_mac(bridge.mac()?)?;
        Ok(bridge)
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

    /// Waits until an end of a veth pair really carries frames: the kernel finishes bringing it up in the background,
    /// and what is sent before that is lost. A port of a bridge must forward, too. Not for bridges: those are ready as
    /// soon as they are up, and may never say more than "unknown".
    pub fn wait_ready(&self) -> Result<()> {
        wait::until(&format!("{self} to get ready"), READY_LIMIT, || {
            let state: String = self.attribute("operstate").map_err(|error| format!("{error:#}"))?;
            let port = self.attribute::<u8>("brport/state").unwrap_or(BR_STATE_FORWARDING);
            // A fresh veth says "unknown" while it still drops everything: only "up" will do.
            if state == "up" && port == BR_STATE_FORWARDING {
                Ok(())
            } else {
                Err(format!("operational state {state}, bridge port state {port}"))
            }
        })?;
        // The kernel says "up" a moment before it lets frames through, but holds its lock until it does: any change
        // waits for that.
        self.up()
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
        request(&self.host, async |handle| handle.link().del(index).execute().await)
            .with_context(|| format!("cannot delete {self}"))
    }

    /// Adds an address; usable at once, there is no duplicate address detection.
    pub fn address(&self, address: IpNet) -> Result<()> {
        let index = self.index()?;
        request(&self.host, async |handle| {
            let mut add = handle.address().add(index, address.addr(), address.prefix_len());
            if address.addr().is_ipv6() {
                add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            add.execute().await
        })
        .with_context(|| format!("cannot give {address} to {self}"))
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
        request(&self.host, async |handle| handle.link().set(message).execute().await)
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
