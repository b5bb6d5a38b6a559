//! What backends run: HTTP over TCP, echo over UDP, and a health page that can be broken on purpose.
//!
//! Every answer says which backend gave it and follows from the question alone, so that a client can verify each byte.
//! The server must never answer from another address than the one that was asked.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the backend's name |
//! | `GET /bytes/N?seed=S` | `N` bytes of [`payload::bytes`] of seed `S` |
//! | `POST /echo` | the request's body |
//! | `GET /healthz` | as set by [`Server::set_health`]: `200 ok` at first |
//! | UDP datagram | the backend's name, a newline, the datagram |
//!
//! HTTP answers carry `x-backend` (the name) and `x-client` (the client's address as the backend sees it).

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::oneshot;

use crate::host::Host;
use crate::payload;

/// Header with the answering backend's name.
pub const BACKEND_HEADER: &str = "x-backend";
/// Header with the client's socket address as the backend sees it.
pub const CLIENT_HEADER: &str = "x-client";
/// Largest answer of `/bytes` in bytes.
const MAX_BYTES: usize = 64 << 20;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// What a server listens on.
#[derive(Clone, Debug)]
pub struct ServerSpec {
    /// TCP ports, on all addresses of the host.
    pub tcp: Vec<u16>,
    /// UDP ports, on each address by itself, so that answers come from the address that was asked.
    pub udp: Vec<u16>,
}

impl Default for ServerSpec {
    fn default() -> Self {
        Self { tcp: vec![80], udp: vec![53] }
    }
}

/// How `/healthz` answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// `200` with body `ok`.
    #[default]
    Ok,
    /// This status, with body `unwell`.
    Status(u16),
    /// Accepts the request and never answers.
    Hang,
    /// Closes the connection without an answer.
    Close,
}

/// What a server has done since it was first started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// TCP connections accepted, health checks included.
    pub connections: u64,
    /// HTTP requests, health checks not included.
    pub requests: u64,
    /// Requests for `/healthz`.
    pub health_checks: u64,
    /// UDP datagrams answered.
    pub datagrams: u64,
}

/// A backend's server; dropping it stops it.
#[derive(Debug)]
pub struct Server {
    host: Host,
    spec: ServerSpec,
    udp_addresses: Vec<IpAddr>,
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<Infallible>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    health: Mutex<Health>,
    connections: AtomicU64,
    requests: AtomicU64,
    health_checks: AtomicU64,
    datagrams: AtomicU64,
}

impl Server {
    /// Starts a server inside a host; when this returns it accepts connections.
    pub fn start(host: &Host, name: &str, spec: &ServerSpec, udp_addresses: &[IpAddr]) -> Result<Self> {
        let server = Self {
            host: host.clone(),
            spec: spec.clone(),
            udp_addresses: udp_addresses.to_vec(),
            shared: Arc::new(Shared {
                name: name.to_owned(),
                health: Mutex::default(),
                connections: AtomicU64::new(0),
                requests: AtomicU64::new(0),
                health_checks: AtomicU64::new(0),
                datagrams: AtomicU64::new(0),
            }),
            running: Mutex::new(None),
        };
        server.restart()?;
        Ok(server)
    }

    /// Stops the server as a crash would: sockets close, connections break, ports refuse.
    pub fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { stop, thread }) = running {
            drop(stop);
            let _ = thread.join();
        }
    }

    /// Starts the server again, after stopping it if need be.
    pub fn restart(&self) -> Result<()> {
        self.stop();
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let (ready, is_ready) = mpsc::channel();
        let (spec, addresses, shared) =
            (self.spec.clone(), self.udp_addresses.clone(), Arc::clone(&self.shared));
        let thread = self.host.spawn_thread(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = ready.send(Err(error.into()));
                    return;
                }
            };
            runtime.block_on(async {
                let bound = bind(&spec, &addresses, &shared);
                let failed = bound.is_err();
                let _ = ready.send(bound);
                if !failed {
                    let _ = stopped.await;
                }
            });
            // Dropping the runtime drops all sockets.
        })?;
        is_ready.recv().context("the server's thread died")??;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Running { stop, thread });
        Ok(())
    }

    /// Changes how `/healthz` answers from the next request on.
    pub fn set_health(&self, health: Health) {
        *self.shared.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// Reads the counters.
    pub fn stats(&self) -> ServerStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServerStats {
            connections: read(&self.shared.connections),
            requests: read(&self.shared.requests),
            health_checks: read(&self.shared.health_checks),
            datagrams: read(&self.shared.datagrams),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Opens all sockets and starts a task for each, on the current runtime.
fn bind(spec: &ServerSpec, udp_addresses: &[IpAddr], shared: &Arc<Shared>) -> Result<()> {
    for port in &spec.tcp {
        let socket = TcpSocket::new_v6()?;
        socket.set_reuseaddr(true)?;
        // The IPv6 wildcard takes IPv4 too.
        socket
            .bind((Ipv6Addr::UNSPECIFIED, *port).into())
            .with_context(|| format!("cannot bind TCP port {port}"))?;
        tokio::spawn(accept(Listening(socket.listen(BACKLOG)?), Arc::clone(shared)));
    }
    for port in &spec.udp {
        for address in udp_addresses {
            let socket = std::net::UdpSocket::bind((*address, *port))
                .with_context(|| format!("cannot bind UDP {address} port {port}"))?;
            socket.set_nonblocking(true)?;
            tokio::spawn(echo(UdpSocket::from_std(socket)?, Arc::clone(shared)));
        }
    }
    Ok(())
}

/// A listener that ends when it is dropped, even while a child process that is being started has a copy of its
/// descriptor: until that copy is closed, the port would go on taking connections, and could not be bound again.
struct Listening(TcpListener);

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = nix::sys::socket::shutdown(self.0.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

async fn accept(listener: Listening, shared: Arc<Shared>) {
    loop {
        match listener.0.accept().await {
            Ok((stream, client)) => {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, client, Arc::clone(&shared)));
            }
            // Out of descriptors, or a connection reset before it was accepted: neither ends a server.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
        }
    }
}

async fn serve(stream: TcpStream, client: SocketAddr, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let service = hyper::service::service_fn(|request| answer(request, client, &shared));
    // A broken connection is the client's to notice.
    let _ = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Answers one request; an error closes the connection.
async fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    shared: &Shared,
) -> Result<Response<Full<Bytes>>> {
    let path = request.uri().path();
    let counter = if path == "/healthz" { &shared.health_checks } else { &shared.requests };
    counter.fetch_add(1, Ordering::Relaxed);
    let (status, body) = if path == "/healthz" {
        let health = *shared.health.lock().unwrap_or_else(PoisonError::into_inner);
        match health {
            Health::Ok => (StatusCode::OK, Bytes::from_static(b"ok")),
            Health::Status(status) => (StatusCode::from_u16(status)?, Bytes::from_static(b"unwell")),
            Health::Hang => std::future::pending().await,
            Health::Close => anyhow::bail!("closed on purpose"),
        }
    } else if path == "/" {
        (StatusCode::OK, Bytes::copy_from_slice(shared.name.as_bytes()))
    } else if let Some((len, seed)) = parse_bytes(path, request.uri().query()) {
        (StatusCode::OK, payload::bytes(seed, len).into())
    } else if path == "/echo" && request.method() == Method::POST {
        (StatusCode::OK, request.into_body().collect().await?.to_bytes())
    } else {
        (StatusCode::NOT_FOUND, Bytes::from_static(b"no such page"))
    };
    let response = Response::builder()
        .status(status)
        .header(BACKEND_HEADER, &shared.name)
        .header(CLIENT_HEADER, client.to_string())
        .body(Full::new(body))?;
    Ok(response)
}

/// `/bytes/N?seed=S` as `(N, S)`.
fn parse_bytes(path: &str, query: Option<&str>) -> Option<(usize, u64)> {
    let len = path.strip_prefix("/bytes/")?.parse().ok().filter(|len| *len <= MAX_BYTES)?;
    let seed = query.and_then(|query| query.strip_prefix("seed="))?.parse().ok()?;
    Some((len, seed))
}

async fn echo(socket: UdpSocket, shared: Arc<Shared>) {
    let mut buffer = vec![0; 65_536];
    let prefix = format!("{}\n", shared.name).into_bytes();
    loop {
        // Errors are ICMP messages about earlier answers: the client's affair.
        let Ok((len, client)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = [&prefix, &buffer[..len]].concat();
        // Counted before the answer leaves, so that who has the answer finds it counted.
        shared.datagrams.fetch_add(1, Ordering::Relaxed);
        let _ = socket.send_to(&answer, client).await;
    }
}
