//! Frames of an interface: capturing them into memory, and sending raw ones.
//!
//! What an XDP program of the interface itself drops, sends back or redirects never reaches a capture there: capture at
//! the other end of the cable, that is, at the router's port. The kernel takes VLAN tags off received frames before a
//! capture gets them. Nothing here may change a frame.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::host::Host;

/// Largest frame that is kept whole; merged segments can reach 64 KiB.
const SNAP: usize = 65_536 + 64;
/// Bytes of kernel buffer, so that a burst is not lost while the reader waits for a turn.
const RECEIVE_BUFFER: libc::c_int = 64 << 20;
/// How long the reader sleeps when there is nothing, and so how long stopping may take.
const POLL: Duration = Duration::from_millis(10);

/// A captured frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When the reader got it.
    pub at: SystemTime,
    /// Whether the interface sent it; otherwise it received it.
    pub sent: bool,
    /// The frame from its Ethernet header on.
    pub bytes: Vec<u8>,
}

/// A running capture; dropping it stops it.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Frame>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Capture {
    /// Captures everything that passes an interface from now on, both ways.
    pub fn start(host: &Host, interface: &str) -> Result<Self> {
        let socket = open(host, interface, libc::ETH_P_ALL)
            .with_context(|| format!("{}: cannot capture on {interface}", host.name()))?;
        let (frames, stop) = (Arc::<Mutex<Vec<Frame>>>::default(), Arc::new(AtomicBool::new(false)));
        let (frames_in, stopped) = (Arc::clone(&frames), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name(format!("capture {interface}"))
            .spawn(move || {
                let mut buffer = vec![0; SNAP];
                loop {
                    // Asked before the socket is emptied: what came before the stop is all kept.
                    let last = stopped.load(Ordering::Acquire);
                    while let Some(frame) = receive(&socket, &mut buffer) {
                        frames_in.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
                    }
                    if last {
                        return check_complete(&socket);
                    }
                    wait_readable(&socket);
                }
            })
            .context("cannot start a capture's thread")?;
        Ok(Self { frames, stop, thread: Some(thread) })
    }

    /// What has been captured so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops and returns everything that passed before. An error if the kernel had to leave out frames.
    pub fn stop(mut self) -> Result<Vec<Frame>> {
        self.end()?;
        Ok(std::mem::take(&mut *self.frames.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(result) => result.unwrap_or_else(|_| bail!("the capture's thread panicked")),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Sends frames as they are given, from their Ethernet header on.
#[derive(Debug)]
pub struct RawSender {
    socket: OwnedFd,
}

impl RawSender {
    /// Opens an interface for sending.
    pub fn open(host: &Host, interface: &str) -> Result<Self> {
        // Protocol 0: this socket receives nothing.
        let socket = open(host, interface, 0)
            .with_context(|| format!("{}: cannot send raw frames on {interface}", host.name()))?;
        Ok(Self { socket })
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        loop {
            // SAFETY: the pointer and length are those of a live slice.
            let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            if sent >= 0 {
                return Ok(());
            }
            match io::Error::last_os_error() {
                // The interface's queue is full for the moment.
                error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR)) => {
                    thread::yield_now();
                }
                error => {
                    return Err(error)
                        .with_context(|| format!("cannot send a frame of {} bytes", frame.len()));
                }
            }
        }
    }
}

/// Opens a non-blocking packet socket on an interface. A socket stays in the namespace that it was made in.
fn open(host: &Host, interface: &str, protocol: libc::c_int) -> Result<OwnedFd> {
    let index = libc::c_int::try_from(host.link(interface).index()?)?;
    let socket = host.run(|| {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0 until it is bound, so that no other interface's frames get in.
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        // SAFETY: the descriptor, if there is one, is new and ours.
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
    })?;
    // SAFETY: the option takes an `int`.
    let grown = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            std::ptr::from_ref(&RECEIVE_BUFFER).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check(grown)?;
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = u16::try_from(protocol)?.to_be();
    address.sll_ifindex = index;
    // SAFETY: a live `sockaddr_ll` and its size.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    check(bound)?;
    Ok(socket)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes one frame from the socket, if there is one. An interface that goes down is no frame either.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<Frame> {
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut from_len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the buffer and the address are live and their sizes are given.
    let len = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut from_len,
        )
    };
    let len = usize::try_from(len).ok()?;
    let sent = from.sll_pkttype == libc::PACKET_OUTGOING;
    Some(Frame { at: SystemTime::now(), sent, bytes: buffer[..len].to_vec() })
}

/// Fails if frames found the socket's buffer full.
fn check_complete(socket: &OwnedFd) -> Result<()> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: a live `tpacket_stats` and its size.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    };
    check(asked).context("cannot read the capture's statistics")?;
    ensure!(stats.tp_drops == 0, "the capture lost {} of {} frames", stats.tp_drops, stats.tp_packets);
    Ok(())
}

/// Waits a little for something to read.
fn wait_readable(socket: &OwnedFd) {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live `pollfd`. A failure means another look a little sooner.
    unsafe { libc::poll(&raw mut poll, 1, POLL.as_millis() as libc::c_int) };
    if poll.revents & !libc::POLLIN != 0 {
        // The interface went down or away: the error stays set, so poll returns at once.
        thread::sleep(POLL);
    }
}
