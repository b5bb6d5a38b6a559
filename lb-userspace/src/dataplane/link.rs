//! Detaching a pinned link at once.
//!
//! Removing its pin is not enough: the kernel gives up the last reference some time later, and until then the program
//! runs on and the interface is taken. aya has no call for this, so it is made here; nothing else belongs here.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

// `enum bpf_cmd` in `include/uapi/linux/bpf.h`.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// The part of `union bpf_attr` that opening a pin reads.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that detaching reads.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// Detaches the link pinned at `pin`; the pin stays. One whose interface is gone counts as detached.
pub(super) fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attr = ObjGet { pathname: path.as_ptr().expose_provenance() as u64, bpf_fd: 0, file_flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let link_fd = u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?;
    bpf(BPF_LINK_DETACH, &LinkDetach { link_fd }).map(drop)
}

/// `bpf(2)`.
fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is the leading part of `union bpf_attr` for this command, the size says how much there is, and the
    // kernel takes the rest as zero. The pointer inside outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        libc::c_int::try_from(result).map_err(io::Error::other)
    }
}
