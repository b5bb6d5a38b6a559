//! What an interface's driver says of itself, by the ethtool ioctls: its name, offloads and queues.
//!
//! The only file with an ioctl on interfaces. It must only read. Everything it asks for is open to every user.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// Commands of linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
/// Large receive offload among the flags.
const ETH_FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_drvinfo`.
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

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_channels`: limits, then what is set.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// Queues that packets arrive on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveQueues {
    /// In use.
    pub count: u32,
    /// As many as the device can have.
    pub most: u32,
    /// Whether they are changed as `combined` queues (`ethtool -L IFACE combined N`) rather than as `rx`.
    pub combined: bool,
}

/// A socket that interfaces of the namespace it was made in are asked through.
#[derive(Debug)]
pub struct Ethtool(OwnedFd);

impl Ethtool {
    /// Opens it in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        // SAFETY: no pointers are passed; the result is checked before it is used.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is open and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The driver's name; none where the interface is unknown or its driver does not tell.
    pub fn driver(&self, interface: &str) -> Option<String> {
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
        self.ask(interface, &mut info)?;
        let end = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
        let name = String::from_utf8_lossy(&info.driver[..end]).into_owned();
        Some(name).filter(|name| !name.is_empty())
    }

    /// Whether checksums of sent packets are left to the device.
    pub fn tx_checksum(&self, interface: &str) -> Option<bool> {
        self.value(interface, ETHTOOL_GTXCSUM).map(|value| value != 0)
    }

    /// Whether the kernel merges received packets (generic receive offload).
    pub fn gro(&self, interface: &str) -> Option<bool> {
        self.value(interface, ETHTOOL_GGRO).map(|value| value != 0)
    }

    /// Whether the device merges received packets (large receive offload).
    pub fn lro(&self, interface: &str) -> Option<bool> {
        self.value(interface, ETHTOOL_GFLAGS).map(|flags| flags & ETH_FLAG_LRO != 0)
    }

    /// The queues that packets arrive on; none where the driver has no notion of them.
    pub fn receive_queues(&self, interface: &str) -> Option<ReceiveQueues> {
        let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
        self.ask(interface, &mut channels)?;
        let combined = channels.max_combined > 0;
        Some(ReceiveQueues {
            count: channels.rx + channels.combined,
            most: if combined { channels.max_combined } else { channels.max_rx },
            combined,
        })
    }

    fn value(&self, interface: &str, command: u32) -> Option<u32> {
        let mut value = Value { command, data: 0 };
        self.ask(interface, &mut value)?;
        Some(value.data)
    }

    /// Has the kernel fill `answer`, which starts with the command; none where it refuses.
    ///
    /// `T` must be the structure that belongs to its command.
    fn ask<T>(&self, interface: &str, answer: &mut T) -> Option<()> {
        // SAFETY: all-zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // One byte stays zero to end the name.
        if interface.len() >= request.ifr_name.len() {
            return None;
        }
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = std::ptr::from_mut(answer).cast();
        // SAFETY: `request` is a valid `ifreq` whose data points to the command's structure, which outlives the call;
        // the kernel writes no more than that structure.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        (result == 0).then_some(())
    }
}
