//! Loading the balancer, attaching it, and taking over what an earlier agent left running.
//!
//! Everything is pinned before it matters, so that the end of this process never ends forwarding.

use anyhow::{Context as _, Result, bail};
use aya::{
    EbpfLoader,
    maps::MapInfo,
    programs::{
        ProgramError, ProgramInfo, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use aya_obj::programs::XdpAttachType;
use lb_common::abi::forward;

use super::{layout, object, pins::Pins};

/// Sizes of the maps, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Keys of the service table.
    pub services: u32,
    /// Entries of the backend array.
    pub backends: u32,
    /// Slots of the ring array.
    pub ring_slots: u32,
}

impl Sizes {
    /// Counters: one for each backend, two for each service and for the node.
    pub const fn counters(&self) -> u32 {
        self.backends + 2 * self.services + 2
    }
}

/// Reads what the XDP program says in the rare cases that it says something.
pub type Logger = aya_log::EbpfLogger<&'static dyn log::Log>;

/// The balancer, loaded and pinned.
pub struct Forward {
    program: Xdp,
    pins: Pins,
    logger: Option<Logger>,
    adopted: bool,
}

/// How an interface got its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// A new link.
    Fresh,
    /// The link was there and runs this program already.
    Adopted,
    /// The link was there; its program was replaced without a gap.
    Replaced,
}

impl Forward {
    /// Loads the program over the pinned maps, or over new ones that it pins.
    ///
    /// # Errors
    ///
    /// Where a pinned map has another layout, only some maps are pinned while links are, or the kernel refuses.
    pub fn load(pins: &Pins, sizes: Sizes) -> Result<Self> {
        pins.prepare()?;
        let adopted = check_pins(pins)?;
        let mut loader = EbpfLoader::new();
        for (name, entries) in [
            (forward::SERVICES, sizes.services),
            (forward::BACKENDS, sizes.backends),
            (forward::RINGS, sizes.ring_slots),
            (forward::COUNTERS, sizes.counters()),
        ] {
            loader.map_max_entries(name, entries);
        }
        for name in forward::MAPS.into_iter().chain([LOG_MAP]) {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut object = loader.load(object::FORWARD).context("creating the maps of the balancer")?;
        let logger = aya_log::EbpfLogger::init(&mut object)
            .map_err(|error| log::warn!("messages of the XDP program cannot be read: {error}"))
            .ok();
        let program = pin_program(load_program(&mut object, forward::PROGRAM)?, pins)?;
        Ok(Self { program, pins: pins.clone(), logger, adopted })
    }

    /// Whether maps of an earlier agent were taken over.
    pub const fn adopted(&self) -> bool {
        self.adopted
    }

    /// The number of an interface's link.
    pub fn link_id(&self, interface: &str) -> Result<u32> {
        let pin = self.pins.link(interface);
        let link = PinnedLink::from_pin(&pin).with_context(|| format!("opening {}", pin.display()))?;
        Ok(FdLink::from(link).info().context("asking the kernel about a link")?.id())
    }

    /// What the kernel says of the program.
    pub fn info(&self) -> Result<ProgramInfo> {
        self.program.info().context("asking the kernel about the program")
    }

    /// The reader of the program's messages; to be polled by the agent's runtime.
    pub fn take_logger(&mut self) -> Option<Logger> {
        self.logger.take()
    }

    /// Attaches to an interface by a link and pins the link, or takes the pinned link over.
    ///
    /// `running` is the program that the kernel says runs on the interface now, if any.
    pub fn attach(&mut self, interface: &str, mode: XdpMode, running: Option<u32>) -> Result<Attached> {
        let pin = self.pins.link(interface);
        if pin.exists() {
            let link = PinnedLink::from_pin(&pin)
                .with_context(|| format!("opening the pinned link {}", pin.display()))?;
            let info = FdLink::from(link).info().context("asking the kernel about a link")?;
            // A link whose interface was deleted is dead: the kernel keeps the object, but nothing runs it.
            if running == Some(info.program_id()) {
                if info.program_id() == self.info()?.id() {
                    return Ok(Attached::Adopted);
                }
                self.replace(interface)?;
                return Ok(Attached::Replaced);
            }
            log::warn!("{interface}: the pinned link is dead (its interface was deleted); attaching anew");
            self.pins.unpin_link(interface)?;
        }
        let id = self
            .program
            .attach(interface, mode)
            .map_err(|error| explain_attach(error, interface, mode, running))?;
        let link = self.program.take_link(id).context("taking the link")?;
        let link = FdLink::try_from(link).map_err(|_| {
            anyhow::anyhow!("{interface}: this kernel attaches XDP without links, which cannot be pinned; 5.9 or later is needed")
        })?;
        link.pin(&pin).with_context(|| format!("pinning the link of {interface}"))?;
        Ok(Attached::Fresh)
    }

    /// Puts this program behind the interface's link, without a moment in which none runs.
    fn replace(&mut self, interface: &str) -> Result<()> {
        let pin = self.pins.link(interface);
        let link = PinnedLink::from_pin(&pin).with_context(|| format!("opening {}", pin.display()))?;
        // The pin holds the link, so a failure here leaves the old program attached.
        let link = XdpLink::try_from(FdLink::from(link)).context("the pinned link is not one of XDP")?;
        let id = self
            .program
            .attach_to_link(link)
            .with_context(|| format!("{interface}: replacing the program; the old one keeps running"))?;
        // Taken and dropped: the pin alone holds it.
        drop(self.program.take_link(id));
        Ok(())
    }
}

/// The ring buffer of aya-log.
const LOG_MAP: &str = "AYA_LOGS";

/// Has the kernel verify a program of an object.
pub(super) fn load_program<'o>(object: &'o mut aya::Ebpf, name: &str) -> Result<&'o mut Xdp> {
    let program = object.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    let program: &mut Xdp = program.try_into().with_context(|| format!("{name} is not an XDP program"))?;
    program.load().with_context(|| {
        format!("loading the program {name} (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)")
    })?;
    Ok(program)
}

/// Whether a program uses all of the pinned maps.
fn maps_of(program: &ProgramInfo, pins: &Pins) -> Result<bool> {
    let used = program.map_ids().context("asking the kernel which maps a program uses")?.unwrap_or_default();
    for name in forward::MAPS {
        let map =
            MapInfo::from_pin(pins.map(name)).with_context(|| format!("asking the kernel about {name}"))?;
        if !used.contains(&map.id()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes the pin name this program, and opens it. If the pinned one has the same instructions, it stays.
fn pin_program(program: &mut Xdp, pins: &Pins) -> Result<Xdp> {
    let pin = pins.program();
    let open = || {
        Xdp::from_pin(&pin, XdpAttachType::Interface)
            .with_context(|| format!("opening the pinned program {}", pin.display()))
    };
    if pin.exists() {
        let pinned = open()?;
        let old = pinned.info().context("asking the kernel about the pinned program")?;
        let new = program.info().context("asking the kernel about the program")?;
        // The same instructions over other maps would forward by tables that nobody fills any more.
        if old.tag() == new.tag() && maps_of(&old, pins)? {
            return Ok(pinned);
        }
        log::info!("the pinned program {:016x} is of another version and is replaced", old.tag());
    }
    let aside = pin.with_file_name("program_new");
    // Left over from a crash between the two steps below.
    let _ = std::fs::remove_file(&aside);
    program.pin(&aside).with_context(|| format!("pinning the program at {}", aside.display()))?;
    std::fs::rename(&aside, &pin)
        .with_context(|| format!("renaming {} over {}", aside.display(), pin.display()))?;
    open()
}

/// Whether there is something to adopt; cleans up after a start that did not get as far as attaching.
fn check_pins(pins: &Pins) -> Result<bool> {
    let pinned = pins.pinned_maps(&forward::MAPS);
    if pinned.len() == forward::MAPS.len() {
        for map in layout::FORWARD {
            map.verify(pins)?;
        }
        return Ok(true);
    }
    let links = pins.linked_interfaces()?;
    if !links.is_empty() {
        bail!(
            "{} holds only some maps ({}) while {} is attached: the pins were tampered with. Remove them with \
             `wattline dataplane clean` (which ends forwarding) and start again",
            pins.root().display(),
            if pinned.is_empty() { "none".to_owned() } else { pinned.join(", ") },
            links.join(", ")
        );
    }
    if !pinned.is_empty() || pins.program().exists() {
        log::warn!("{}: removing what an interrupted start left", pins.root().display());
        pins.remove()?;
        pins.prepare()?;
    }
    Ok(false)
}

/// Why the kernel refused, with what to do about it.
pub(super) fn explain_attach(
    error: ProgramError,
    interface: &str,
    mode: XdpMode,
    running: Option<u32>,
) -> anyhow::Error {
    let code = match &error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    let why = match (code, running) {
        (Some(libc::EBUSY | libc::EEXIST), Some(id)) => format!(
            "another XDP program (id {id}) is attached; it was left alone. `bpftool prog show id {id}` says which: \
             remove it with what attached it (`wattline decap detach {interface}` for Wattline's own decapsulation), \
             or with `ip link set dev {interface} xdp off` if no link holds it"
        ),
        (Some(libc::EOPNOTSUPP), _) if mode == XdpMode::Driver => {
            "its driver has no native XDP; `xdp_mode = \"generic\"` works everywhere, but is slow".to_owned()
        }
        (Some(libc::EINVAL | libc::ERANGE | libc::EOPNOTSUPP), _) => {
            "the kernel refuses XDP there: the MTU (or that of a veth's peer) may be too large for native XDP, or \
             LRO may be on; `wattline doctor` looks for both"
                .to_owned()
        }
        (Some(libc::EPERM), _) => "not permitted: root, or CAP_BPF and CAP_NET_ADMIN, are needed".to_owned(),
        _ => "the kernel refused".to_owned(),
    };
    anyhow::Error::new(error).context(format!("attaching to {interface}: {why}"))
}
