//! Which driver an interface has, by the ethtool interface, which netlink does not cover.
//!
//! The only file with an ioctl on interfaces. It must only read.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `ETHTOOL_GDRVINFO` of linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware_version: [u8; 32],
    bus_info: [u8; 32],
    erom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// A socket that interfaces of the namespace it was made in are asked through.
#[derive(Debug)]
pub(super) struct DriverSocket(OwnedFd);

impl DriverSocket {
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: no pointers are passed; the result is checked before it is used.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is open and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The driver's name; none where the interface is unknown or its driver does not tell.
    pub(super) fn driver(&self, interface: &str) -> Option<String> {
        let mut info = DriverInfo {
            command: ETHTOOL_GDRVINFO,
            driver: [0; 32],
            version: [0; 32],
            firmware_version: [0; 32],
            bus_info: [0; 32],
            erom_version: [0; 32],
            reserved: [0; 12],
            counts: [0; 5],
        };
        // SAFETY: all-zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // One byte stays zero to end the name.
        if interface.len() >= request.ifr_name.len() {
            return None;
        }
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = (&raw mut info).cast();
        // SAFETY: `request` is a valid `ifreq` whose data points to an `ethtool_drvinfo` that outlives the call; the
        // kernel writes no more than that structure.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if result < 0 {
            return None;
        }
        let end = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
        let name = String::from_utf8_lossy(&info.driver[..end]).into_owned();
        Some(name).filter(|name| !name.is_empty())
    }
}
