//! The backend's side: attaching, inspecting and removing the program that takes encapsulation off.
//!
//! There is no agent on a backend: each command does its work on the pins and ends.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    EbpfLoader,
    maps::{
        Array, Map, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{ProgramInfo, XdpMode, links::FdLink},
};
use ipnet::IpNet;
use lb_common::{
    abi::{DECAP_SOURCES, decap},
    decap::{DecapNode, Outcome},
    node::Node,
};
use zerocopy::transmute;

use super::{
    forward::{explain_attach, load_program},
    layout,
    nexthop::XdpAttachMode,
    object,
    pins::{self, Pins},
};

/// What decapsulation on an interface is to accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Outer sources that are believed.
    pub allow: Vec<IpNet>,
    /// UDP port of GUE.
    pub gue_port: u16,
    /// Native or generic XDP.
    pub mode: XdpMode,
}

/// Decapsulation on an interface, as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The interface's name when it was attached.
    pub interface: String,
    /// Outer sources that are believed.
    pub allow: Vec<IpNet>,
    /// UDP port of GUE.
    pub gue_port: u16,
    /// Packets by what became of them, in the order of [`Outcome::ALL`].
    pub outcomes: Vec<(Outcome, u64)>,
    /// Instructions' fingerprint.
    pub program_tag: String,
    /// The program that the pinned link runs; it is on the interface if the interface says the same.
    pub program_id: u32,
}

/// Attaches to an interface, or changes the settings where it is attached already.
///
/// # Errors
///
/// Where nothing would be allowed, too many prefixes are, another XDP program is there, or the kernel refuses.
pub fn attach(bpffs: &Path, interface: &str, settings: &Settings) -> Result<()> {
    ensure!(
        !settings.allow.is_empty(),
        "no source is allowed, so nothing would be decapsulated: name the load balancers' prefixes with --allow"
    );
    for (family, count) in [
        ("IPv4", settings.allow.iter().filter(|net| matches!(net, IpNet::V4(_))).count()),
        ("IPv6", settings.allow.iter().filter(|net| matches!(net, IpNet::V6(_))).count()),
    ] {
        ensure!(
            count <= DECAP_SOURCES as usize,
            "{count} {family} prefixes are allowed, at most {DECAP_SOURCES} fit"
        );
    }
    ensure!(nix::net::if_::if_nametoindex(interface).is_ok(), "there is no interface {interface}");
    let pins = Pins::decap(bpffs, interface);
    if pins.link(interface).exists() {
        if is_as_wanted(&pins, interface, settings.mode)? {
            return set(&pins, settings);
        }
        pins.unpin_link(interface)?;
    }
    // Whatever else is left is of an interface that was deleted since, of another mode or of an interrupted start.
    pins.remove()?;
    pins.prepare()?;
    let result = attach_fresh(&pins, interface, settings);
    if result.is_err() {
        pins.remove().context("cleaning up after a failed attachment")?;
    }
    result
}

fn attach_fresh(pins: &Pins, interface: &str, settings: &Settings) -> Result<()> {
    let mut loader = EbpfLoader::new();
    for name in decap::MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    let mut object = loader.load(object::DECAP).context("creating the maps of the decapsulation")?;
    let program = load_program(&mut object, decap::PROGRAM)?;
    // Filled before it is attached: no packet meets an empty allow list.
    set(pins, settings)?;
    program.pin(pins.program()).context("pinning the program")?;
    let id = program
        .attach(interface, settings.mode)
        .map_err(|error| explain_attach(error, interface, settings.mode, None))?;
    let link = FdLink::try_from(program.take_link(id)?).map_err(|_| {
        anyhow::anyhow!("{interface}: this kernel attaches XDP without links; 5.9 or later is needed")
    })?;
    link.pin(pins.link(interface)).with_context(|| format!("pinning the link of {interface}"))?;
    Ok(())
}

/// Detaches from an interface; false where it was not attached.
pub fn detach(bpffs: &Path, interface: &str) -> Result<bool> {
    let pins = Pins::decap(bpffs, interface);
    if !pins.exists() {
        return Ok(false);
    }
    pins.unpin_link(interface)?;
    pins.remove()?;
    Ok(true)
}

/// Decapsulation on one interface, or on all of them, in alphabetical order.
pub fn status(bpffs: &Path, interface: Option<&str>) -> Result<Vec<Status>> {
    let names = match interface {
        Some(name) if Pins::decap(bpffs, name).exists() => vec![name.to_owned()],
        Some(_) => Vec::new(),
        None => pins::interfaces(&Pins::decap_parent(bpffs))?,
    };
    names.iter().map(|name| one_status(bpffs, name)).collect()
}

fn one_status(bpffs: &Path, interface: &str) -> Result<Status> {
    let pins = Pins::decap(bpffs, interface);
    for map in layout::DECAP {
        map.verify(&pins)?;
    }
    let node: Array<_, [u8; size_of::<DecapNode>()]> = Map::Array(open(&pins, decap::NODE)?).try_into()?;
    let node: DecapNode = transmute!(node.get(&0, 0)?);
    let outcomes: PerCpuArray<_, u64> = Map::PerCpuArray(open(&pins, decap::OUTCOMES)?).try_into()?;
    let outcomes = Outcome::ALL
        .iter()
        .map(|&outcome| Ok((outcome, outcomes.get(&(outcome as u32), 0)?.iter().sum())))
        .collect::<Result<_>>()?;
    let program = ProgramInfo::from_pin(pins.program()).context("asking the kernel about the program")?;
    Ok(Status {
        interface: interface.to_owned(),
        allow: allowed(&pins)?,
        gue_port: node.gue_port,
        outcomes,
        program_tag: format!("{:016x}", program.tag()),
        program_id: program.id(),
    })
}

fn open(pins: &Pins, name: &str) -> Result<MapData> {
    let path = pins.map(name);
    MapData::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))
}

type V4Sources = LpmTrie<MapData, [u8; 4], u32>;
type V6Sources = LpmTrie<MapData, [u8; 16], u32>;

fn open_sources(pins: &Pins) -> Result<(V4Sources, V6Sources)> {
    Ok((
        Map::LpmTrie(open(pins, decap::SOURCES_V4)?).try_into()?,
        Map::LpmTrie(open(pins, decap::SOURCES_V6)?).try_into()?,
    ))
}

fn allowed(pins: &Pins) -> Result<Vec<IpNet>> {
    let (v4, v6) = open_sources(pins)?;
    let mut nets = Vec::new();
    for key in v4.keys() {
        let key = key?;
        nets.push(IpNet::new(std::net::IpAddr::from(key.data()), key.prefix_len() as u8)?);
    }
    for key in v6.keys() {
        let key = key?;
        nets.push(IpNet::new(std::net::IpAddr::from(key.data()), key.prefix_len() as u8)?);
    }
    nets.sort();
    Ok(nets)
}

/// Writes settings: new prefixes first, then the old ones out, so that a source allowed before and after is never
/// refused in between.
fn set(pins: &Pins, settings: &Settings) -> Result<()> {
    for map in layout::DECAP {
        map.verify(pins)?;
    }
    let wanted: Vec<IpNet> = settings.allow.iter().map(IpNet::trunc).collect();
    let before = allowed(pins)?;
    let (mut v4, mut v6) = open_sources(pins)?;
    for net in &wanted {
        let length = u32::from(net.prefix_len());
        match net {
            IpNet::V4(net) => v4.insert(&Key::new(length, net.addr().octets()), 1, 0),
            IpNet::V6(net) => v6.insert(&Key::new(length, net.addr().octets()), 1, 0),
        }
        .with_context(|| format!("allowing {net}"))?;
    }
    for net in before.iter().filter(|net| !wanted.contains(net)) {
        let length = u32::from(net.prefix_len());
        match net {
            IpNet::V4(net) => v4.remove(&Key::new(length, net.addr().octets())),
            IpNet::V6(net) => v6.remove(&Key::new(length, net.addr().octets())),
        }
        .with_context(|| format!("no longer allowing {net}"))?;
    }
    let node = DecapNode { gue_port: settings.gue_port, ready: Node::READY, reserved: 0 };
    let mut map: Array<_, [u8; size_of::<DecapNode>()]> = Map::Array(open(pins, decap::NODE)?).try_into()?;
    let bytes: [u8; size_of::<DecapNode>()] = transmute!(node);
    map.set(0, bytes, 0).context("writing the settings")
}

/// Whether the pinned link still holds its program on an interface of that name, in that mode.
fn is_as_wanted(pins: &Pins, interface: &str, mode: XdpMode) -> Result<bool> {
    let program =
        ProgramInfo::from_pin(pins.program()).context("asking the kernel about the pinned program")?;
    let Some(running) = super::xdp_of(interface)? else { return Ok(false) };
    if running.program_id != Some(program.id()) {
        bail!(
            "{interface}: another XDP program (id {:?}) runs there than the pinned one",
            running.program_id
        );
    }
    Ok((running.mode == XdpAttachMode::Native) == (mode == XdpMode::Driver))
}
