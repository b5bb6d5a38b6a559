//! Judging a veth's other end: in native mode a veth loses frames for reasons that no counter shows.
//!
//! Pure: facts in, findings out. `docs/veth.md` tells each trap with what was measured.

use super::finding::{About, Finding};
use super::interface::{Interface, Role};

/// What was seen of the other end of a veth.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// It was found.
    Seen(PeerEnd),
    /// It is in a network namespace that this process may not, or cannot, enter.
    Hidden,
}

/// The other end.
#[derive(Debug, Clone)]
pub(super) struct PeerEnd {
    pub(super) name: String,
    /// A path to its network namespace; none where it is this one.
    pub(super) namespace: Option<String>,
    /// An XDP program runs there natively.
    pub(super) program: bool,
    pub(super) mtu: u32,
    pub(super) tx_checksum: Option<bool>,
}

/// The peer's MTU above which the kernel refuses native XDP with frames in one piece (`veth_xdp_set` in
/// `drivers/net/veth.c`; measured on x86-64).
const MOST_PEER_MTU: u32 = 3506;

impl PeerEnd {
    /// A command to be run where the peer is.
    fn there(&self, command: &str) -> String {
        match &self.namespace {
            Some(path) => format!("`nsenter --net={path} {command}`"),
            None => format!("`{command}`"),
        }
    }
}

pub(super) fn judge(about: About<'_>, interface: &Interface, peer: &Peer) -> Vec<Finding> {
    if !interface.sends_natively() {
        return Vec::new();
    }
    let name = &interface.link.name;
    match peer {
        Peer::Hidden => vec![about.note(
            "peer-program",
            "the other end of this veth cannot be seen from here: it needs an XDP program, and transmit checksum offload \
             off",
            format!("look as root, and in a process namespace that sees it: `sudo wattline doctor {name}`"),
        )],
        Peer::Seen(peer) => vec![program(about, peer), checksum(about, peer), mtu(about, interface, peer)],
    }
}

fn program(about: About<'_>, peer: &PeerEnd) -> Finding {
    const ID: &str = "peer-program";
    let name = &peer.name;
    if peer.program {
        return about.ok(ID, format!("the other end, {name}, has one, so it takes our frames"));
    }
    about.problem(
        ID,
        format!("the other end, {name}, has no XDP program: every frame that we send vanishes, though counted as sent"),
        format!(
            "any program will do; this one passes everything: {}",
            peer.there(&format!("wattline decap attach {name} --allow 0.0.0.0/32"))
        ),
    )
}

fn checksum(about: About<'_>, peer: &PeerEnd) -> Finding {
    const ID: &str = "peer-checksum";
    let name = &peer.name;
    let cure = peer.there(&format!("ethtool -K {name} tx off"));
    match peer.tx_checksum {
        Some(false) => about.ok(ID, format!("{name} fills checksums in before we see packets")),
        Some(true) => about.problem(
            ID,
            format!(
                "the other end, {name}, leaves checksums to the device: what we forward carries unfinished ones, and \
                 backends drop it"
            ),
            cure,
        ),
        None => about.note(ID, format!("the offloads of {name} cannot be seen; checksums must not be left to it"), cure),
    }
}

fn mtu(about: About<'_>, interface: &Interface, peer: &PeerEnd) -> Finding {
    const ID: &str = "peer-mtu";
    let PeerEnd { name, mtu, .. } = peer;
    let cure = peer.there(&format!("ip link set dev {name} mtu {MOST_PEER_MTU}"));
    if *mtu > MOST_PEER_MTU && interface.link.xdp.is_none() {
        return about.problem(
            ID,
            format!("{mtu} at the other end, {name}: native XDP is refused above {MOST_PEER_MTU}"),
            cure,
        );
    }
    if *mtu > interface.link.mtu && interface.role != Role::Decap {
        return about.warning(
            ID,
            format!(
                "{mtu} at the other end, {name}, but {} here: larger frames are lost on the way in",
                interface.link.mtu
            ),
            peer.there(&format!("ip link set dev {name} mtu {}", interface.link.mtu)),
        );
    }
    about.ok(ID, format!("{mtu} at {name}"))
}
