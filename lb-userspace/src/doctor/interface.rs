//! Judging a network interface: link, driver, mode, other people's programs, room for encapsulation, offloads, queues.
//!
//! Pure: facts in, findings out. What only concerns veth is in `veth`.

use super::finding::{About, Finding, Severity};
use super::veth;
use crate::config::XdpMode;
use crate::dataplane::{
    ethtool::ReceiveQueues,
    netlink::XdpFeatures,
    nexthop::{Link, XdpAttachMode},
};

/// Why an interface is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It balances, or is configured to, in this mode.
    Balancer(XdpMode),
    /// Encapsulation is removed there.
    Decap,
    /// Somebody asked: may it balance?
    Asked,
    /// It could balance, but nobody said it should.
    Candidate,
}

/// What was seen of an interface. `None` is what could not be seen.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub(super) role: Role,
    pub(super) link: Link,
    pub(super) driver: Option<String>,
    pub(super) features: Option<XdpFeatures>,
    /// Whose program is attached, if one is.
    pub(super) program: Option<Program>,
    pub(super) lro: Option<bool>,
    pub(super) gro: Option<bool>,
    pub(super) queues: Option<ReceiveQueues>,
    /// CPUs of this machine.
    pub(super) cpus: u32,
    /// Most bytes that encapsulation adds for the configured services; none where those are not known.
    pub(super) overhead: Option<u32>,
    /// The stricter of the two `rp_filter` settings that apply.
    pub(super) rp_filter: Option<u32>,
    /// The kernel routes IPv4 packets.
    pub(super) ip_forward: Option<bool>,
    /// The other end, of a veth.
    pub(super) peer: Option<veth::Peer>,
}

/// An XDP program on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) id: u32,
    /// One of our pinned ones.
    pub(super) ours: bool,
    pub(super) name: Option<String>,
    /// The BPF link that holds it; `ip link set ... xdp off` cannot remove such a one.
    pub(super) link_id: Option<u32>,
}

/// Bytes of a full-sized packet of the internet.
pub(super) const CLIENT_MTU: u32 = 1500;
/// Most that encapsulation adds: GUE over IPv6.
const MOST_OVERHEAD: u32 = 52;
/// IPv6 and TCP headers without options, which a segment's size does not include.
const SMALLEST_HEADERS: u32 = 60;
/// Above about this MTU a frame and its headroom do not fit a page, and most drivers refuse a program that expects
/// frames in one piece.
const JUMBO: u32 = 3498;

/// Drivers with native XDP, for kernels that cannot be asked (before 6.3). From the drivers that set `ndo_bpf`.
const NATIVE: [&str; 40] = [
    "am65-cpsw-nuss",
    "atlantic",
    "bnxt_en",
    "bonding",
    "cpsw",
    "dpaa2-eth",
    "ena",
    "fec",
    "fsl_dpa",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "funeth",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ionic",
    "ixgbe",
    "ixgbevf",
    "lan966x-switch",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mtk_soc_eth",
    "mvneta",
    "mvpp2",
    "netsec",
    "nfp",
    "nicvf",
    "qede",
    "rvu_nicpf",
    "sfc",
    "st_gmac",
    "tsnep",
    "tun",
    "veth",
    "vif",
    "virtio_net",
];

impl Interface {
    /// Generic XDP runs there, or is what is configured.
    fn generic(&self) -> bool {
        match self.link.xdp {
            Some(xdp) => xdp.mode == XdpAttachMode::Generic,
            None => self.role == Role::Balancer(XdpMode::Generic),
        }
    }

    /// Frames are, or are to be, sent back from inside the driver.
    pub(super) fn sends_natively(&self) -> bool {
        self.role != Role::Decap && !self.generic()
    }
}

pub(super) fn judge(interface: &Interface) -> Vec<Finding> {
    let about = About(&interface.link.name);
    let mut findings = vec![link(about, interface)];
    if interface.link.mac.is_none() {
        // Nothing else makes sense there.
        return findings;
    }
    findings.push(native(about, interface));
    findings.extend(mode(about, interface));
    findings.push(program(about, interface));
    findings.push(mtu(about, interface));
    findings.extend(jumbo(about, interface));
    findings.extend(lro(about, interface));
    findings.extend(gro(about, interface));
    findings.extend(queues(about, interface));
    findings.extend(rp_filter(about, interface));
    findings.extend(ip_forward(about, interface));
    if let Some(peer) = &interface.peer {
        findings.extend(veth::judge(about, interface, peer));
    }
    if interface.role == Role::Candidate {
        findings.iter_mut().for_each(soften);
    }
    findings
}

/// Nobody said that this interface should balance, so what is in the way there is worth knowing, no more.
fn soften(finding: &mut Finding) {
    finding.severity = finding.severity.min(Severity::Note);
}

fn link(about: About<'_>, interface: &Interface) -> Finding {
    const ID: &str = "link";
    let Link { name, mac, up, carrier, .. } = &interface.link;
    if mac.is_none() {
        return about.problem(ID, "carries no Ethernet frames", "take another one: `ip -br link` lists them");
    }
    match (up, carrier) {
        (false, _) => about.problem(ID, "is set down", format!("`ip link set dev {name} up`")),
        (true, false) => about.problem(
            ID,
            "has no carrier",
            format!(
                "plug in the cable, or set the other end up (of a veth: `ip link set dev PEER up`); `ip link show dev \
                 {name}` shows the state"
            ),
        ),
        (true, true) => about.ok(ID, format!("up, MTU {}", interface.link.mtu)),
    }
}

fn native(about: About<'_>, interface: &Interface) -> Finding {
    const ID: &str = "driver";
    let driver = interface.driver.as_deref().or(interface.link.kind.as_deref()).unwrap_or("unknown driver");
    let attached = interface.link.xdp.is_some_and(|xdp| xdp.mode == XdpAttachMode::Native);
    let known =
        interface.features.map(XdpFeatures::native).or_else(|| NATIVE.contains(&driver).then_some(true));
    if attached || known == Some(true) {
        return about.ok(ID, format!("{driver} has native XDP"));
    }
    let name = &interface.link.name;
    let (finding, cure) = if driver == "veth" {
        (
            "this veth has no native XDP: its peer has more transmit queues than it has receive queues"
                .to_owned(),
            format!("give it as many as its peer sends on: `ethtool -L {name} rx N`"),
        )
    } else {
        let sure =
            if known == Some(false) { "has no native XDP here" } else { "is not known to have native XDP" };
        (
            format!("{driver} {sure}"),
            "another network card; or, slowly, `xdp_mode = \"generic\"` under [node]".to_owned(),
        )
    };
    // Generic mode was chosen, and has a finding of its own.
    let severity =
        if known == Some(false) && !interface.generic() { Severity::Problem } else { Severity::Note };
    about.bad(severity, ID, finding, cure)
}

fn mode(about: About<'_>, interface: &Interface) -> Option<Finding> {
    const ID: &str = "mode";
    let ours = interface.program.as_ref().is_none_or(|program| program.ours);
    if interface.generic() && ours {
        let name = &interface.link.name;
        let cure = if interface.role == Role::Decap {
            format!("`wattline decap detach {name}`, then attach again with `--mode native`")
        } else {
            "`xdp_mode = \"native\"` under [node] in the configuration file; the agent applies it when it is saved".to_owned()
        };
        return Some(about.warning(
            ID,
            "GENERIC XDP: the kernel builds and copies every packet before our program sees it; for tests, not for load",
            cure,
        ));
    }
    interface.link.xdp.filter(|_| ours).map(|_| about.ok(ID, "native"))
}

fn program(about: About<'_>, interface: &Interface) -> Finding {
    const ID: &str = "program";
    let Some(program) = &interface.program else { return about.ok(ID, "no other XDP program is attached") };
    if program.ours {
        return about.ok(ID, format!("ours (id {})", program.id));
    }
    let name = &interface.link.name;
    let id = program.id;
    let called = program.name.as_ref().map_or(String::new(), |name| format!(" `{name}`"));
    let remove = match (program.link_id, program.name.as_deref()) {
        (_, Some("xdp_dispatcher")) => format!("`xdp-loader unload {name} --all`"),
        (Some(link), _) => format!("stop the process that holds it, or `bpftool link detach id {link}`"),
        (None, _) if interface.generic() => format!("`ip link set dev {name} xdpgeneric off`"),
        (None, _) => format!("`ip link set dev {name} xdp off`"),
    };
    about.problem(
        ID,
        format!("another XDP program{called} (id {id}) is attached, so the balancer cannot be"),
        format!("see whose it is: `bpftool prog show id {id}`; remove it: {remove}"),
    )
}

fn mtu(about: About<'_>, interface: &Interface) -> Finding {
    const ID: &str = "mtu";
    let (mtu, name) = (interface.link.mtu, &interface.link.name);
    let overhead = interface.overhead.unwrap_or(MOST_OVERHEAD);
    let needed = CLIENT_MTU + overhead;
    if mtu >= needed {
        return about
            .ok(ID, format!("{mtu} leaves room for {overhead} bytes around packets of {CLIENT_MTU}"));
    }
    let fits = mtu.saturating_sub(overhead);
    let segment = fits.saturating_sub(SMALLEST_HEADERS);
    let finding = format!(
        "MTU {mtu}: with {overhead} bytes of encapsulation packets of more than {fits} bytes do not fit and are dropped \
         (reason too_big); clients send up to {CLIENT_MTU}"
    );
    let cure = format!(
        "`ip link set dev {name} mtu {needed}`, the same on backends and switches between; or have backends ask for \
         smaller segments: `ip route change default via GATEWAY advmss {segment}` on each"
    );
    // Packets get longer at the balancer; here they are past that.
    let severity = if interface.role == Role::Decap { Severity::Note } else { Severity::Warning };
    about.bad(severity, ID, finding, cure)
}

fn jumbo(about: About<'_>, interface: &Interface) -> Option<Finding> {
    // A veth's limit is about its peer and known exactly; a program that runs was accepted.
    let unsure = interface.link.xdp.is_none() && interface.peer.is_none() && interface.sends_natively();
    (unsure && interface.link.mtu > JUMBO).then(|| {
        about.warning(
            "jumbo",
            format!("MTU {}: most drivers refuse native XDP above about {JUMBO}", interface.link.mtu),
            format!("`ip link set dev {} mtu {JUMBO}` if the agent is refused", interface.link.name),
        )
    })
}

fn lro(about: About<'_>, interface: &Interface) -> Option<Finding> {
    (interface.lro? && interface.role != Role::Decap).then(|| {
        about.warning(
            "lro",
            "large receive offload merges packets in the device: some drivers refuse XDP then, and what is merged is too \
             large to be encapsulated",
            format!("`ethtool -K {} lro off`", interface.link.name),
        )
    })
}

fn gro(about: About<'_>, interface: &Interface) -> Option<Finding> {
    if interface.role == Role::Decap || !interface.generic() {
        return None;
    }
    let name = &interface.link.name;
    if interface.gro == Some(true) || interface.peer.is_some() {
        return Some(about.warning(
            "gro",
            "in generic mode packets arrive merged (GRO, and TSO of a veth's peer); merged ones are too large to be \
             encapsulated and are dropped (reason too_big)",
            format!("`ethtool -K {name} gro off`, and of a veth `ethtool -K PEER tso off gso off`; or native mode"),
        ));
    }
    None
}

fn queues(about: About<'_>, interface: &Interface) -> Option<Finding> {
    const ID: &str = "queues";
    let ReceiveQueues { count, most, combined } = interface.queues?;
    let cpus = interface.cpus;
    // A veth's packets are handled where they are sent, unless somebody made it otherwise.
    if interface.peer.is_some() || count >= cpus {
        return Some(about.ok(ID, format!("{count} for {cpus} CPUs")));
    }
    let kind = if combined { "combined" } else { "rx" };
    let name = &interface.link.name;
    let queues = if count == 1 { "1 queue".to_owned() } else { format!("{count} queues") };
    Some(if most > count {
        about.note(
            ID,
            format!("packets arrive on {queues}, so at most {count} of {cpus} CPUs forward"),
            format!("`ethtool -L {name} {kind} {}`", most.min(cpus)),
        )
    } else {
        about.note(
            ID,
            format!("the device has {queues}, so at most {count} of {cpus} CPUs forward"),
            format!("a device (or virtual machine) with more queues; `ethtool -l {name}` shows the limits"),
        )
    })
}

fn rp_filter(about: About<'_>, interface: &Interface) -> Option<Finding> {
    const STRICT: u32 = 1;
    let name = &interface.link.name;
    (interface.role == Role::Decap && interface.rp_filter == Some(STRICT)).then(|| {
        about.note(
            "rp-filter",
            "strict reverse-path filtering: clients' packets are dropped if the way back to them leaves elsewhere",
            format!("if it does: `sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{name}.rp_filter=2`"),
        )
    })
}

fn ip_forward(about: About<'_>, interface: &Interface) -> Option<Finding> {
    (matches!(interface.role, Role::Balancer(_)) && interface.ip_forward == Some(true)).then(|| {
        about.note(
            "ip-forward",
            "the kernel routes IPv4: packets for services that the balancer leaves to it (fragments, ICMP) go back to the \
             router, and round in a circle until their hop limit ends them",
            "unless this machine is a router: `sysctl -w net.ipv4.ip_forward=0`",
        )
    })
}

#[cfg(test)]
#[path = "interface_tests.rs"]
mod tests;
