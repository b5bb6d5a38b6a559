//! The node's routes, neighbours and links, asked of the kernel over rtnetlink.
//!
//! The only module that knows netlink. It reads, and makes the kernel look for neighbours; it must never change the
//! node's network configuration, and never sends a packet itself.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::sync::Mutex;

use super::ethtool::Ethtool;
use super::nexthop::{Link, NextHopState, RouteAnswer, Tables, UnreachableReason, find_path, resolve};

mod changes;
mod features;
mod namespaces;
mod wire;

pub use self::changes::{Change, Changes};
pub use self::features::XdpFeatures;
pub use self::namespaces::Placement;

/// The kernel answers at once; an answer that takes longer was lost (or could not be read).
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often a dump is repeated because the table changed under it, or because another dump was still running.
const DUMP_ATTEMPTS: usize = 20;
/// How long to wait before such a repetition.
const DUMP_AGAIN_AFTER: Duration = Duration::from_millis(5);
/// Route queries under way at once. They are answered in turn, so this only hides the hops between tasks.
const ROUTE_QUERIES: usize = 16;

/// Why the kernel could not be asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum NetlinkError {
    /// No socket could be opened.
    Open(io::Error),
    /// The socket is gone.
    Closed,
    /// No (readable) answer came.
    NoAnswer {
        /// What was asked.
        what: &'static str,
    },
    /// The kernel refused.
    Refused {
        /// What was asked.
        what: &'static str,
        /// The kernel's error number, positive.
        errno: i32,
    },
    /// A table kept changing while it was read.
    Unsteady {
        /// What was asked.
        what: &'static str,
    },
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => write!(f, "cannot open a netlink socket: {error}"),
            Self::Closed => write!(f, "the netlink socket is closed"),
            Self::NoAnswer { what } => write!(f, "the kernel did not answer when asked for {what}"),
            Self::Refused { what, errno } => {
                write!(f, "the kernel refuses {what}: {}", io::Error::from_raw_os_error(*errno))
            }
            Self::Unsteady { what } => write!(f, "{what} kept changing while they were read"),
        }
    }
}

impl std::error::Error for NetlinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open(error) => Some(error),
            _ => None,
        }
    }
}

impl NetlinkError {
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// A handle to the kernel's network state, in the network namespace of the thread that opened it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// The kernel runs one dump a socket at a time.
    dumping: Arc<Mutex<()>>,
    drivers: Arc<Ethtool>,
}

impl Netlink {
    /// Opens a socket. Must be called within a tokio runtime, which then serves it until the last clone is dropped.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        let drivers = Ethtool::open().map_err(NetlinkError::Open)?;
        Ok(Self { handle, dumping: Arc::default(), drivers: Arc::new(drivers) })
    }

    /// How `destination` is reached now.
    ///
    /// Where several paths are equal the kernel picks one by the address.
    pub async fn next_hop(&self, destination: IpAddr) -> Result<NextHopState, NetlinkError> {
        let answer = self.route(destination).await?;
        let mut tables = Tables::default();
        if let RouteAnswer::Via(route) = &answer
            && let Some(link) = self.link_by_index(route.ifindex).await?
        {
            tables.links.insert(link.ifindex, link);
        }
        if let Ok(path) = find_path(destination, &answer, &tables)
            && let Some(message) = self.neighbour(path.ifindex, path.gateway).await?
        {
            tables.neighbours.extend(wire::read_neighbour(&message));
        }
        Ok(resolve(destination, &answer, &tables))
    }

    /// [`next_hop`](Self::next_hop) for many destinations: one dump of links and of neighbours, one route query each.
    pub async fn resolve_all(
        &self,
        destinations: &[IpAddr],
    ) -> Result<HashMap<IpAddr, NextHopState>, NetlinkError> {
        let tables = Tables {
            links: self.links().await?.into_iter().map(|link| (link.ifindex, link)).collect(),
            neighbours: self.neighbours().await?,
        };
        let mut states = HashMap::with_capacity(destinations.len());
        let mut answers = futures_util::stream::iter(destinations)
            .map(|destination| async move { (*destination, self.route(*destination).await) })
            .buffer_unordered(ROUTE_QUERIES);
        while let Some((destination, answer)) = answers.next().await {
            states.insert(destination, resolve(destination, &answer?, &tables));
        }
        Ok(states)
    }

    /// Makes the kernel find out a neighbour's MAC, or confirm one that grew old, as if it had a packet for it.
    ///
    /// Returns once the kernel has started; [`changes`](Self::changes) tells when it is done. A neighbour that is
    /// fixed or was confirmed just now is left alone, so this may be called for all next hops from time to time: the
    /// kernel does not see the traffic that goes past it, and would let their entries grow old.
    pub async fn solicit(&self, ifindex: u32, address: IpAddr) -> Result<(), NetlinkError> {
        // "Using" a permanent entry would turn it into an ordinary one.
        if self.neighbour(ifindex, address).await?.is_some_and(|message| wire::is_settled(&message)) {
            return Ok(());
        }
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        self.request("the use of a neighbour", wire::neighbour_use(ifindex, address), flags).await?;
        Ok(())
    }

    /// Subscribes to changes, in the network namespace of the calling thread.
    pub fn changes(&self) -> Result<Changes, NetlinkError> {
        Changes::subscribe().map_err(NetlinkError::Open)
    }

    /// All links.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let replies = self.dump("links", || wire::link_query(None, None)).await?;
        Ok(replies.iter().filter_map(link_of).collect())
    }

    /// One link by its name.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        // The kernel answers EINVAL or ERANGE to names that cannot be; they simply do not exist.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0']) {
            return Ok(None);
        }
        self.one_link(wire::link_query(None, Some(name))).await
    }

    /// The driver of an interface (`veth`, `virtio_net`, `mlx5_core`); none where there is no telling.
    pub fn driver(&self, name: &str) -> Option<String> {
        self.drivers.driver(name)
    }

    async fn link_by_index(&self, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
        self.one_link(wire::link_query(Some(ifindex), None)).await
    }

    async fn one_link(&self, query: RouteNetlinkMessage) -> Result<Option<Link>, NetlinkError> {
        match self.request("a link", query, NLM_F_REQUEST).await {
            Ok(replies) => Ok(replies.iter().find_map(link_of)),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn route(&self, destination: IpAddr) -> Result<RouteAnswer, NetlinkError> {
        if destination.is_unspecified() {
            return Ok(RouteAnswer::Nowhere(UnreachableReason::Unspecified));
        }
        if destination.is_multicast() {
            return Ok(RouteAnswer::Nowhere(UnreachableReason::Multicast));
        }
        let replies = match self.request("a route", wire::route_query(destination), NLM_F_REQUEST).await {
            Ok(replies) => replies,
            Err(NetlinkError::Refused { errno, .. }) => {
                return Ok(RouteAnswer::Nowhere(wire::read_route_refusal(errno)));
            }
            Err(error) => return Err(error),
        };
        replies
            .iter()
            .find_map(|reply| match reply {
                RouteNetlinkMessage::NewRoute(message) => Some(wire::read_route(message)),
                _ => None,
            })
            .ok_or(NetlinkError::NoAnswer { what: "a route" })
    }

    async fn neighbour(
        &self,
        ifindex: u32,
        address: IpAddr,
    ) -> Result<Option<rtnetlink::packet_route::neighbour::NeighbourMessage>, NetlinkError> {
        match self.request("a neighbour", wire::neighbour_query(ifindex, address), NLM_F_REQUEST).await {
            Ok(replies) => Ok(replies.into_iter().find_map(|reply| match reply {
                RouteNetlinkMessage::NewNeighbour(message) => Some(message),
                _ => None,
            })),
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn neighbours(&self) -> Result<HashMap<(u32, IpAddr), super::nexthop::Neighbour>, NetlinkError> {
        let replies = self.dump("neighbours", wire::neighbours_query).await?;
        Ok(replies
            .iter()
            .filter_map(|reply| match reply {
                RouteNetlinkMessage::NewNeighbour(message) => wire::read_neighbour(message),
                _ => None,
            })
            .collect())
    }

    async fn dump(
        &self,
        what: &'static str,
        query: impl Fn() -> RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let _only_one = self.dumping.lock().await;
        for _ in 0..DUMP_ATTEMPTS {
            match self.exchange(what, query(), NLM_F_REQUEST | NLM_F_DUMP).await {
                Ok(Answer { messages, interrupted: false }) => return Ok(messages),
                Ok(_) => {}
                // A dump whose reader went away still runs.
                Err(error) if error.errno() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(DUMP_AGAIN_AFTER).await;
        }
        Err(NetlinkError::Unsteady { what })
    }

    async fn request(
        &self,
        what: &'static str,
        query: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        Ok(self.exchange(what, query, flags).await?.messages)
    }

    async fn exchange(
        &self,
        what: &'static str,
        query: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Answer, NetlinkError> {
        let mut message = NetlinkMessage::from(query);
        message.header.flags = flags;
        let mut replies = self.handle.clone().request(message).map_err(|_| NetlinkError::Closed)?;
        let collect = async {
            let mut answer = Answer { messages: Vec::new(), interrupted: false };
            while let Some(reply) = replies.next().await {
                answer.interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
                match reply.payload {
                    NetlinkPayload::InnerMessage(message) => answer.messages.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(NetlinkError::Refused { what, errno: error.raw_code().abs() });
                    }
                    NetlinkPayload::Overrun(_) => answer.interrupted = true,
                    _ => {}
                }
            }
            Ok(answer)
        };
        tokio::time::timeout(ANSWER_WITHIN, collect).await.unwrap_or(Err(NetlinkError::NoAnswer { what }))
    }
}

struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    /// The table changed while it was read, so that entries may be missing or there twice.
    interrupted: bool,
}

fn link_of(reply: &RouteNetlinkMessage) -> Option<Link> {
    match reply {
        RouteNetlinkMessage::NewLink(message) => wire::read_link(message),
        _ => None,
    }
}
