//! Offloads of an interface, by the old ethtool ioctls: one flag a call, which is all the lab needs.
//!
//! Must never be used on an interface outside a host.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context, Result, ensure};

use crate::host::Host;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_SGRO: u32 = 0x2c;

/// What can be turned on and off.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Feature {
    /// Checksums filled in by the device.
    TxChecksum,
    /// Generic receive offload.
    Gro,
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Turns a feature of an interface on or off.
pub(crate) fn set(host: &Host, interface: &str, feature: Feature, on: bool) -> Result<()> {
    ensure!(interface.len() < libc::IFNAMSIZ, "interface name `{interface}` is too long");
    let command = match feature {
        Feature::TxChecksum => ETHTOOL_STXCSUM,
        Feature::Gro => ETHTOOL_SGRO,
    };
    host.run(|| ioctl(interface, Value { command, data: on.into() }))
        .with_context(|| format!("{}: cannot change {feature:?} of {interface}", host.name()))
}

fn ioctl(interface: &str, mut value: Value) -> io::Result<()> {
    // SAFETY: plain system call; the result is checked.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: `request` names a terminated interface name and a live `ethtool_value`.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
