//! Tells that something about links, addresses, routes or neighbours changed.
//!
//! Only *that* it changed: the listener reads the state anew, so a lost event costs nothing as long as the loss itself
//! is told. It must never end by itself, and never hold more memory than one socket buffer however many events come.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket};
use tokio::time::{Instant, sleep, sleep_until};

/// Changes that follow within this time of a report are reported together.
const QUIET: Duration = Duration::from_millis(20);
/// How long to wait before trying again to open a socket that broke.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Most messages read before others get a turn; a storm must not starve the runtime.
const BURST: usize = 4096;
/// The kernel's buffer for events we have not read. More than this at once is an overrun, which is a change too.
const SOCKET_BUFFER_BYTES: i32 = 1 << 20;
/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];

/// What kinds of state changed: a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change(u8);

impl Change {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A link came, went or changed.
    pub const LINK: Self = Self(1);
    /// A neighbour entry came, went or changed.
    pub const NEIGHBOUR: Self = Self(2);
    /// An address of this node came or went.
    pub const ADDRESS: Self = Self(4);
    /// A route, routing rule or next-hop object came, went or changed.
    pub const ROUTE: Self = Self(8);
    /// Events were lost: anything may have changed.
    pub const ALL: Self = Self(15);

    /// Whether any of `other` is in it.
    pub fn touches(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether nothing changed.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[must_use]
    fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A subscription to changes, made by [`Netlink::changes`](super::Netlink::changes).
pub struct Changes {
    socket: Option<TokioSocket>,
    buffer: BytesMut,
    pending: Change,
    last_report: Option<Instant>,
}

impl Changes {
    pub(super) fn subscribe() -> io::Result<Self> {
        Ok(Self {
            socket: Some(open()?),
            buffer: BytesMut::with_capacity(64 * 1024),
            pending: Change::NONE,
            last_report: None,
        })
    }

    /// Waits for the next change. The first one is reported at once; those that follow closely are gathered.
    ///
    /// May be dropped and called again without losing anything.
    pub async fn next(&mut self) -> Change {
        while self.pending.is_empty() {
            self.receive().await;
        }
        if let Some(last) = self.last_report {
            sleep_until(last + QUIET).await;
        }
        self.drain();
        self.last_report = Some(Instant::now());
        std::mem::take(&mut self.pending)
    }

    async fn receive(&mut self) {
        let Some(socket) = &self.socket else {
            match open() {
                Ok(socket) => {
                    self.socket = Some(socket);
                    // Whatever happened while there was no socket went unheard.
                    self.pending = Change::ALL;
                }
                Err(error) => {
                    log::warn!("cannot listen for network changes, trying again: {error}");
                    sleep(REOPEN_AFTER).await;
                }
            }
            return;
        };
        self.buffer.clear();
        let received = socket.recv_from(&mut self.buffer).await;
        self.take(received);
    }

    /// Reads what else is there already.
    fn drain(&mut self) {
        for _ in 0..BURST {
            let Some(socket) = &self.socket else { return };
            self.buffer.clear();
            let received = socket.socket_ref().recv_from(&mut self.buffer, libc::MSG_DONTWAIT);
            if received.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                return;
            }
            self.take(received.map(|(_, from)| from));
        }
    }

    fn take(&mut self, received: io::Result<SocketAddr>) {
        let change = match received {
            // Port 0 is the kernel; nobody else's word counts.
            Ok(from) if from.port_number() == 0 => read_changes(&self.buffer),
            Ok(_) => Change::NONE,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Change::ALL,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Change::NONE,
            Err(error) => {
                log::warn!("listening for network changes failed, starting over: {error}");
                self.socket = None;
                Change::ALL
            }
        };
        self.pending = self.pending.and(change);
    }
}

fn open() -> io::Result<TokioSocket> {
    let mut mask = 0;
    for group in GROUPS.into_iter().filter(|group| !group.need_via_add_membership()) {
        mask |= 1 << (group as u32 - 1);
    }
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let inner: &mut Socket = socket.socket_mut();
    inner.set_rx_buf_sz(SOCKET_BUFFER_BYTES)?;
    inner.bind(&SocketAddr::new(0, mask))?;
    for group in GROUPS.into_iter().filter(|group| group.need_via_add_membership()) {
        inner.add_membership(group as u32)?;
    }
    Ok(socket)
}

/// The kinds of change that the messages in one datagram tell of.
fn read_changes(datagram: &[u8]) -> Change {
    let mut rest = datagram;
    let mut change = Change::NONE;
    while let Some((header, _)) = rest.split_at_checked(HEADER_BYTES) {
        // Native byte order: the kernel is on this machine.
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        change = change.and(change_of(kind));
        if length < HEADER_BYTES {
            break;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    change
}

fn change_of(kind: u16) -> Change {
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => Change::LINK,
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Change::ADDRESS,
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => Change::NEIGHBOUR,
        libc::RTM_NEWROUTE
        | libc::RTM_DELROUTE
        | libc::RTM_NEWRULE
        | libc::RTM_DELRULE
        | RTM_NEWNEXTHOP
        | RTM_DELNEXTHOP => Change::ROUTE,
        // Not one of ours: safer to look than to miss.
        _ => Change::ALL,
    }
}

// linux/rtnetlink.h; libc lacks them.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: usize) -> Vec<u8> {
        let length = (HEADER_BYTES + payload) as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize((length as usize).next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn each_message_of_a_datagram_counts() {
        let mut datagram = message(libc::RTM_NEWLINK, 5);
        datagram.extend(message(libc::RTM_DELNEIGH, 12));
        let change = read_changes(&datagram);
        assert_eq!(change, Change::LINK.and(Change::NEIGHBOUR));
        assert!(change.touches(Change::LINK) && !change.touches(Change::ROUTE.and(Change::ADDRESS)));
    }

    #[test]
    fn broken_lengths_end_the_walk() {
        for length in [0_u32, 4, 15, 17, u32::MAX] {
            let mut datagram = message(libc::RTM_NEWROUTE, 0);
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(read_changes(&datagram), Change::ROUTE, "length {length}");
        }
        assert_eq!(read_changes(&[1, 2, 3]), Change::NONE);
    }

    #[test]
    fn strange_messages_mean_anything_may_have_changed() {
        assert_eq!(read_changes(&message(libc::NLMSG_OVERRUN as u16, 0)), Change::ALL);
    }
}
