//! XDP programs of two instructions that do the same with every frame.
//!
//! The one that matters passes: a veth takes frames that its peer sends with `XDP_TX` or a redirect only if it runs an
//! XDP program itself; without one they vanish, although they are counted as sent. The programs are fixed here and must
//! never look at a frame.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context, Result};

use crate::host::Host;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_ATTACH_TYPE_XDP: u32 = 37;
/// Says that the program copes with multi-buffer frames, which lifts the limit on the peer's MTU.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// What is done with every frame; the numbers are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Drops it.
    Drop = 1,
    /// Lets it through.
    Pass = 2,
    /// Sends it back unchanged where it came from.
    Tx = 3,
}

/// Where in its way a frame meets the program; the numbers are the kernel's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// After the kernel has made a socket buffer of it: works everywhere, slowly.
    Generic = 1 << 1,
    /// In the driver.
    Native = 1 << 2,
}

/// The part of `union bpf_attr` that loading a program reads.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The part of `union bpf_attr` that creating a link reads.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that opening a pin reads.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that updating a link reads.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The part of `union bpf_attr` that asking about an object reads.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Such a program attached to an interface; dropping it detaches.
#[derive(Debug)]
pub struct FixedProgram {
    link: OwnedFd,
}

impl FixedProgram {
    /// Attaches to an interface of the host, in native mode. Fails where another program is attached.
    pub fn attach(host: &Host, interface: &str, action: Action) -> Result<Self> {
        Self::attach_in(Mode::Native, host, interface, action)
    }

    /// Attaches to an interface of the host. Fails where another program is attached.
    pub fn attach_in(mode: Mode, host: &Host, interface: &str, action: Action) -> Result<Self> {
        let index = host.link(interface).index()?;
        let link = host.run(|| {
            let program = load(action)?;
            let attr = LinkCreate {
                prog_fd: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
                target_ifindex: index,
                attach_type: BPF_ATTACH_TYPE_XDP,
                flags: mode as u32,
            };
            // The link keeps the program alive.
            bpf(BPF_LINK_CREATE, &attr)
        });
        let link = link.with_context(|| {
            format!("{}: cannot attach the {action:?} program to {interface}", host.name())
        })?;
        Ok(Self { link })
    }

    /// The kernel's number of the program.
    pub fn id(&self) -> Result<u32> {
        // The beginning of `struct bpf_link_info`: type, id, prog_id.
        let mut info = [0u32; 3];
        let attr = GetInfo {
            bpf_fd: u32::try_from(self.link.as_raw_fd())?,
            info_len: u32::try_from(size_of_val(&info))?,
            info: info.as_mut_ptr().expose_provenance() as u64,
        };
        call(BPF_OBJ_GET_INFO_BY_FD, &attr).context("cannot ask about a link")?;
        Ok(info[2])
    }

    /// Makes a link that somebody pinned in the host run such a program instead of its own.
    pub fn put_behind(host: &Host, pin: &str, action: Action) -> Result<()> {
        let path = std::ffi::CString::new(pin)?;
        let updated = host.run(|| {
            let pathname = path.as_ptr().expose_provenance() as u64;
            let link = bpf(BPF_OBJ_GET, &ObjGet { pathname, bpf_fd: 0, file_flags: 0 })?;
            let program = load(action)?;
            let fd = |fd: &OwnedFd| u32::try_from(fd.as_raw_fd()).map_err(io::Error::other);
            let attr =
                LinkUpdate { link_fd: fd(&link)?, new_prog_fd: fd(&program)?, flags: 0, old_prog_fd: 0 };
            call(BPF_LINK_UPDATE, &attr).map(drop)
        });
        updated.with_context(|| format!("{}: cannot put another program behind {pin}", host.name()))
    }
}

/// Loads the program into the kernel.
fn load(action: Action) -> io::Result<OwnedFd> {
    // `r0 = action; exit`, eight bytes each: opcode, registers, offset, immediate.
    let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, action as u8, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let mut prog_name = [0; 16];
    prog_name[..9].copy_from_slice(b"lab_fixed");
    bpf(
        BPF_PROG_LOAD,
        &ProgLoad {
            prog_type: BPF_PROG_TYPE_XDP,
            insn_cnt: 2,
            insns: instructions.as_ptr().expose_provenance() as u64,
            license: c"GPL".as_ptr().expose_provenance() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: BPF_F_XDP_HAS_FRAGS,
            prog_name,
            prog_ifindex: 0,
            // Said already here, as other loaders do: a link takes only programs that say the same.
            expected_attach_type: BPF_ATTACH_TYPE_XDP,
        },
    )
}

/// `bpf(2)` for the commands that return a descriptor.
fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `bpf(2)`.
fn call<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is the leading part of `union bpf_attr` for this command, the size says how much there is, and
    // the kernel takes the rest as zero. The pointers inside outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}
