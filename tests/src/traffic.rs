//! Traffic from the client host: every byte of every answer is verified, and every answer names its backend.
//!
//! Flow number `n` of a target always has the same source address and port ([`Lab::flow_source`]), so that the same
//! flow can be opened again and must land where it did before. Connections end with a reset, which leaves no `TIME_WAIT`
//! behind. Nothing here retries: a failure is reported as what happened on that flow.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::host::Host;
use crate::payload;
use crate::server::{BACKEND_HEADER, CLIENT_HEADER};
use crate::topology::Lab;

/// What to send to a target, over TCP (HTTP) or UDP.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Flow {
    /// Service address and port.
    pub target: SocketAddr,
    /// Where it comes from; `None` lets the kernel choose.
    pub source: Option<SocketAddr>,
    /// Bytes of payload: of the answer over TCP, each way over UDP.
    pub bytes: usize,
    /// Seed of the payload.
    pub seed: u64,
    /// Limit for the whole exchange.
    pub timeout: Duration,
}

impl Flow {
    /// A small exchange from a source that the kernel chooses, limited to 5 s.
    pub fn to(target: SocketAddr) -> Self {
        Self { target, source: None, bytes: 64, seed: 1, timeout: Duration::from_secs(5) }
    }

    /// Flow number `index` to a target: always the same source, and a payload of its own.
    pub fn numbered(target: SocketAddr, index: u32) -> Self {
        let source = Some(Lab::flow_source(target.ip(), index));
        Self { source, seed: u64::from(index), ..Self::to(target) }
    }

    /// With that many bytes of payload.
    pub fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// With this limit for the whole exchange.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }
}

/// A verified answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Name of the backend that answered.
    pub backend: String,
    /// The client's end of the flow.
    pub source: SocketAddr,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP over a fresh TCP connection.
    Tcp,
    /// One datagram each way.
    Udp,
}

/// Many flows at once; see [`Flows::run`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Flows {
    /// TCP or UDP.
    pub transport: Transport,
    /// Service address and port.
    pub target: SocketAddr,
    /// Number of the first flow.
    pub first: u32,
    /// How many flows.
    pub count: u32,
    /// How many at a time.
    pub concurrency: usize,
    /// Bytes of payload of each flow.
    pub bytes: usize,
    /// Limit for each flow.
    pub timeout: Duration,
}

/// What became of many flows.
#[derive(Clone, Debug, Default)]
pub struct FlowReport {
    /// Backend of every flow that was answered right, by flow number.
    pub answered: BTreeMap<u32, String>,
    /// Why the others failed, by flow number.
    pub failed: BTreeMap<u32, String>,
}

impl FlowReport {
    /// Number of flows of each backend.
    pub fn per_backend(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for backend in self.answered.values() {
            *counts.entry(backend.as_str()).or_default() += 1;
        }
        counts
    }

    /// Flows that both reports answered, but from different backends.
    pub fn moved<'a>(&'a self, other: &'a Self) -> Vec<u32> {
        let both = self
            .answered
            .iter()
            .filter_map(|(flow, backend)| Some((flow, backend, other.answered.get(flow)?)));
        both.filter(|(_, here, there)| here != there).map(|(flow, ..)| *flow).collect()
    }

    /// The report itself if nothing failed.
    ///
    /// # Panics
    /// If anything failed, with the number of failures and some of them.
    #[track_caller]
    #[expect(clippy::return_self_not_must_use, reason = "often the check is all that is wanted")]
    pub fn expect_all(self) -> Self {
        let some: Vec<_> = self.failed.iter().take(5).collect();
        assert!(self.failed.is_empty(), "{} flows failed, among them {some:#?}", self.failed.len());
        self
    }
}

impl Flows {
    /// So many small TCP flows to a target, 64 at a time, each limited to 10 s.
    pub fn tcp(target: SocketAddr, count: u32) -> Self {
        let timeout = Duration::from_secs(10);
        Self { transport: Transport::Tcp, target, first: 0, count, concurrency: 64, bytes: 64, timeout }
    }

    /// So many small UDP flows to a target, 64 at a time, each limited to 10 s.
    pub fn udp(target: SocketAddr, count: u32) -> Self {
        Self { transport: Transport::Udp, ..Self::tcp(target, count) }
    }

    /// With flow numbers from `first` on.
    pub fn first(self, first: u32) -> Self {
        Self { first, ..self }
    }

    /// With that many at a time.
    pub fn concurrency(self, concurrency: usize) -> Self {
        Self { concurrency, ..self }
    }

    /// With that many bytes of payload each.
    pub fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// With this limit for each flow.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sends everything from `client` and waits for the last answer.
    pub fn run(self, client: &Host) -> Result<FlowReport> {
        client.enter(|| {
            block_on(async {
                let mut report = FlowReport::default();
                let mut answers = stream::iter(self.first..self.first + self.count)
                    .map(|index| async move {
                        let flow = Flow { timeout: self.timeout, ..Flow::numbered(self.target, index) };
                        let flow = flow.bytes(self.bytes);
                        let answer = match self.transport {
                            Transport::Tcp => http(flow).await,
                            Transport::Udp => datagram(flow).await,
                        };
                        (index, answer)
                    })
                    .buffer_unordered(self.concurrency.max(1));
                while let Some((index, answer)) = answers.next().await {
                    match answer {
                        Ok(reply) => report.answered.insert(index, reply.backend),
                        Err(error) => report.failed.insert(index, format!("{error:#}")),
                    };
                }
                Ok(report)
            })
        })
    }
}

/// One HTTP request on a fresh connection from `client`.
pub fn get(client: &Host, flow: Flow) -> Result<Reply> {
    client.enter(|| block_on(http(flow)))
}

/// One datagram from `client`, and its echo.
pub fn udp(client: &Host, flow: Flow) -> Result<Reply> {
    client.enter(|| block_on(datagram(flow)))
}

/// Runs a future on a runtime of its own, on the calling thread.
pub(crate) fn block_on<R>(work: impl Future<Output = Result<R>>) -> Result<R> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start a runtime")?.block_on(work)
}

async fn http(flow: Flow) -> Result<Reply> {
    let exchange = async {
        let mut connection = Connection::open(flow.target, flow.source).await?;
        connection.exchange(flow.bytes, flow.seed).await
    };
    let to = flow.target;
    timeout(flow.timeout, exchange)
        .await
        .with_context(|| format!("TCP to {to}: no answer in {:?}", flow.timeout))?
}

async fn datagram(flow: Flow) -> Result<Reply> {
    let exchange = async {
        let unspecified = if flow.target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = match flow.source {
            Some(source) => UdpSocket::bind(source).await,
            None => UdpSocket::bind(unspecified).await,
        }
        .context("cannot bind")?;
        // A connected socket takes answers only from the address that was asked.
        socket.connect(flow.target).await?;
        let question = payload::bytes(flow.seed, flow.bytes);
        socket.send(&question).await.context("cannot send")?;
        let mut answer = vec![0; flow.bytes + 256];
        let len = socket.recv(&mut answer).await.context("cannot receive")?;
        let answer = &answer[..len];
        let end = answer.iter().position(|byte| *byte == b'\n').context("the answer names no backend")?;
        payload::verify(&answer[end + 1..], &question)?;
        let backend = String::from_utf8(answer[..end].to_vec())?;
        Ok(Reply { backend, source: socket.local_addr()? })
    };
    let to = flow.target;
    timeout(flow.timeout, exchange)
        .await
        .with_context(|| format!("UDP to {to}: no answer in {:?}", flow.timeout))?
}

/// A stream that is never shut down politely: a FIN that is answered before the reset would leave a `TIME_WAIT`, and the
/// flow could not be opened again.
struct Abrupt(TcpStream);

impl Drop for Abrupt {
    /// Resets the connection now. Closing would do so only when the last descriptor goes, and a child process that is
    /// being started elsewhere has copies of all of them for a moment.
    fn drop(&mut self) {
        // SAFETY: all zeroes is a valid `sockaddr`, of the family `AF_UNSPEC`.
        let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
        let length = size_of_val(&nobody) as libc::socklen_t;
        // SAFETY: a live descriptor and a live address with its size. One that fails is closed a little later.
        unsafe { libc::connect(self.0.as_raw_fd(), &raw const nobody, length) };
    }
}

impl AsyncRead for Abrupt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Abrupt {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// An open HTTP connection, for callers that pace their own traffic; on a thread of the client host, inside a runtime.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    source: SocketAddr,
}

impl Connection {
    /// Connects. The task that drives the connection lives on the current runtime and ends with this value.
    pub async fn open(target: SocketAddr, source: Option<SocketAddr>) -> Result<Self> {
        let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        if let Some(source) = source {
            socket.bind(source).with_context(|| format!("cannot bind {source}"))?;
        }
        let stream = socket.connect(target).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        // Reset on close: the same flow can be opened again at once.
        stream.set_zero_linger()?;
        let source = stream.local_addr()?;
        let (sender, connection) = http1::handshake(TokioIo::new(Abrupt(stream))).await?;
        tokio::spawn(connection);
        Ok(Self { sender, source })
    }

    /// One request and its verified answer; the backend must also have seen the client's true address.
    pub async fn exchange(&mut self, bytes: usize, seed: u64) -> Result<Reply> {
        let request =
            Request::get(format!("/bytes/{bytes}?seed={seed}")).header("host", "lab").body(Full::default())?;
        self.sender.ready().await.context("the connection is closed")?;
        let response = self.sender.send_request(request).await.context("no answer")?;
        let header = |name: &str| -> Result<String> {
            let value = response.headers().get(name).with_context(|| format!("the answer lacks {name}"))?;
            Ok(value.to_str()?.to_owned())
        };
        let (backend, client) = (header(BACKEND_HEADER)?, header(CLIENT_HEADER)?);
        if response.status() != StatusCode::OK {
            bail!("{backend} answered {}", response.status());
        }
        ensure!(client == self.source.to_string(), "{backend} saw client {client}, not {}", self.source);
        let body = response.into_body().collect().await.context("the answer broke off")?.to_bytes();
        payload::verify(&body, &payload::bytes(seed, bytes))?;
        Ok(Reply { backend, source: self.source })
    }
}
