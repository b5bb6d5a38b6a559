//! Asks one backend once, and says precisely what was wrong with the answer.
//!
//! One deadline covers everything, and everything a server sends is bounded, so that no server, however hostile, can
//! hold a probe. It must never retry, follow a redirect, or remember anything.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::{HttpProbe, Probe, ProbeKind};

/// Most bytes of status line and headers.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Most headers.
pub const MAX_HEADERS: usize = 100;

const AGENT: &str = concat!("wattline-health/", env!("CARGO_PKG_VERSION"));

/// How far a probe had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the TCP connection.
    Connect,
    /// Sending the request, waiting for the complete headers of the answer.
    Head,
    /// Reading the body.
    Body,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "while connecting",
            Self::Head => "before the answer's headers were complete",
            Self::Body => "while reading the body",
        })
    }
}

/// Why a probe did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// Nobody listens there.
    Refused,
    /// The deadline passed.
    TimedOut {
        /// What was still going on.
        phase: Phase,
        /// The time allowed for the whole probe.
        after: Duration,
    },
    /// The network has no way there; in the system's words.
    Unreachable(String),
    /// The connection was made, and broken off by the other side.
    Reset {
        /// When.
        phase: Phase,
    },
    /// The connection was closed in the middle of the answer, or instead of it.
    Closed {
        /// When.
        phase: Phase,
    },
    /// A status other than the wanted ones.
    Status {
        /// The status that came.
        got: u16,
        /// The wanted ones.
        wanted: Vec<u16>,
    },
    /// The body does not contain what it should.
    Body {
        /// What it should contain.
        wanted: String,
    },
    /// Nothing fitting in the part of the body that may be read.
    BodyTooLarge {
        /// How much may be read, in bytes.
        limit: usize,
    },
    /// The headers are more than is read of them.
    HeadTooLarge,
    /// The answer is not HTTP.
    Malformed(String),
    /// The request cannot be made from what is configured.
    BadRequest(String),
    /// Another error of the connection, in the system's words.
    Io(String),
    /// This node could not even ask: out of ports, files or memory, or forbidden by its own rules. Says nothing about
    /// the backend.
    Local(String),
}

impl Failure {
    /// Whether it tells something about the backend. What fails on this node must not take every backend down at once.
    pub fn is_conclusive(&self) -> bool {
        !matches!(self, Self::Local(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => write!(f, "connection refused"),
            Self::TimedOut { phase, after } => write!(f, "timed out after {} ms {phase}", after.as_millis()),
            Self::Unreachable(why) => write!(f, "unreachable: {why}"),
            Self::Reset { phase } => write!(f, "connection reset {phase}"),
            Self::Closed { phase } => write!(f, "connection closed {phase}"),
            Self::Status { got, wanted } => write!(f, "status {got} not in {wanted:?}"),
            Self::Body { wanted } => write!(f, "body has no {wanted:?}"),
            Self::BodyTooLarge { limit } => write!(f, "body larger than {limit} bytes"),
            Self::HeadTooLarge => {
                write!(f, "headers larger than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} lines")
            }
            Self::Malformed(why) => write!(f, "malformed answer: {why}"),
            Self::BadRequest(why) => write!(f, "the check cannot be made: {why}"),
            Self::Io(why) => write!(f, "{why}"),
            Self::Local(why) => write!(f, "not checked, this node failed: {why}"),
        }
    }
}

impl std::error::Error for Failure {}

/// Probes once. A probe of kind [`ProbeKind::None`] succeeds without asking.
pub async fn check(probe: &Probe) -> Result<(), Failure> {
    let deadline = Deadline { at: Instant::now() + probe.timeout, after: probe.timeout };
    match &probe.kind {
        ProbeKind::None => Ok(()),
        ProbeKind::Tcp => connect(probe.address, deadline).await.map(drop),
        ProbeKind::Http(http) => {
            let request = request(probe.address, http)?;
            let stream = connect(probe.address, deadline).await?;
            get(stream, request, http, deadline).await
        }
    }
}

/// The end of a whole probe: one instant, shared by all its phases.
#[derive(Clone, Copy)]
struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    async fn bound<T>(self, phase: Phase, work: impl Future<Output = T>) -> Result<T, Failure> {
        timeout_at(self.at, work).await.map_err(|_| Failure::TimedOut { phase, after: self.after })
    }
}

async fn connect(address: SocketAddr, deadline: Deadline) -> Result<TcpStream, Failure> {
    deadline
        .bound(Phase::Connect, TcpStream::connect(address))
        .await?
        .map_err(|error| io_failure(&error, Phase::Connect))
}

fn request(address: SocketAddr, http: &HttpProbe) -> Result<Request<Empty<Bytes>>, Failure> {
    let bad = |what: &str, error: &dyn fmt::Display| Failure::BadRequest(format!("{what}: {error}"));
    if !http.path.starts_with('/') {
        return Err(bad("path", &"does not begin with a slash"));
    }
    let path: Uri = http.path.parse().map_err(|error| bad("path", &error))?;
    let host = http.host.clone().unwrap_or_else(|| default_host(address));
    let host = HeaderValue::try_from(host).map_err(|error| bad("host", &error))?;
    Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, AGENT)
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| bad("request", &error))
}

/// The port is left out where it is HTTP's own, as clients do.
fn default_host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) if v4.port() == 80 => v4.ip().to_string(),
        SocketAddr::V6(v6) if v6.port() == 80 => format!("[{}]", v6.ip()),
        SocketAddr::V4(v4) => v4.to_string(),
        // Without the scope, which is of this node only.
        SocketAddr::V6(v6) => format!("[{}]:{}", v6.ip(), v6.port()),
    }
}

async fn get(
    stream: TcpStream,
    request: Request<Empty<Bytes>>,
    http: &HttpProbe,
    deadline: Deadline,
) -> Result<(), Failure> {
    let (mut sender, connection) = http1::Builder::new()
        // Headers that do not fit the buffer are too large, whether they end or not.
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| http_failure(&error, Phase::Head))?;
    let exchange = async {
        let response = deadline
            .bound(Phase::Head, sender.send_request(request))
            .await?
            .map_err(|error| http_failure(&error, Phase::Head))?;
        let got = response.status().as_u16();
        if !http.statuses.contains(&got) {
            return Err(Failure::Status { got, wanted: http.statuses.clone() });
        }
        match http.body.as_deref() {
            None | Some("") => Ok(()),
            Some(wanted) => {
                let searching = search(response.into_body(), wanted, http.max_body_bytes);
                deadline.bound(Phase::Body, searching).await?
            }
        }
    };
    let mut exchange = pin!(exchange);
    let mut connection = pin!(connection);
    // The connection moves the bytes. When it ends first, the exchange finds out from it why.
    tokio::select! {
        biased;
        result = &mut exchange => return result,
        _ = &mut connection => {}
    }
    exchange.await
}

/// Reads a body until it has shown what is wanted of it.
async fn search(mut body: Incoming, wanted: &str, limit: usize) -> Result<(), Failure> {
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| http_failure(&error, Phase::Body))?;
        let Some(data) = frame.data_ref() else { continue };
        // What was searched before need not be searched again, but a match may straddle the seam.
        let from = seen.len().saturating_sub(wanted.len() - 1);
        let room = limit - seen.len();
        seen.extend_from_slice(&data[..data.len().min(room)]);
        if seen[from..].windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
            return Ok(());
        }
        if data.len() > room {
            return Err(Failure::BodyTooLarge { limit });
        }
    }
    Err(Failure::Body { wanted: wanted.to_owned() })
}

fn io_failure(error: &io::Error, phase: Phase) -> Failure {
    // The resources of this node, or its own rules.
    let is_local = matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
                | libc::EACCES
                | libc::EPERM
                | libc::EAFNOSUPPORT
        )
    );
    match error.kind() {
        _ if is_local => Failure::Local(error.to_string()),
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::TimedOut => {
            Failure::Unreachable(error.to_string())
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
            Failure::Reset { phase }
        }
        io::ErrorKind::UnexpectedEof => Failure::Closed { phase },
        _ => Failure::Io(error.to_string()),
    }
}

fn http_failure(error: &hyper::Error, phase: Phase) -> Failure {
    if error.is_parse_too_large() {
        return Failure::HeadTooLarge;
    }
    if error.is_incomplete_message() {
        return Failure::Closed { phase };
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            // Broken chunks reach us as I/O errors that the system never made.
            return match io.kind() {
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                    Failure::Malformed(io.to_string())
                }
                _ => io_failure(io, phase),
            };
        }
        cause = inner.source();
    }
    if error.is_canceled() || error.is_closed() {
        return Failure::Closed { phase };
    }
    Failure::Malformed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(path: &str, host: Option<&str>) -> HttpProbe {
        HttpProbe {
            path: path.into(),
            host: host.map(str::to_owned),
            statuses: vec![200],
            body: None,
            max_body_bytes: 1024,
        }
    }

    #[test]
    fn the_host_is_the_address_unless_configured() {
        let cases = [
            ("192.0.2.1:80", None, "192.0.2.1"),
            ("192.0.2.1:8080", None, "192.0.2.1:8080"),
            ("[2001:db8::1]:80", None, "[2001:db8::1]"),
            ("[2001:db8::1]:8080", None, "[2001:db8::1]:8080"),
            ("[fe80::1%3]:8080", None, "[fe80::1]:8080"),
            ("192.0.2.1:8080", Some("www.example.org"), "www.example.org"),
        ];
        for (address, host, expected) in cases {
            let address = address.parse().unwrap();
            let request = request(address, &http("/", host)).expect("a request");
            assert_eq!(request.headers()[HOST], expected);
        }
    }

    #[test]
    fn what_cannot_be_asked_is_said_before_connecting() {
        let address = "192.0.2.1:80".parse().unwrap();
        for (path, host) in [
            ("healthz", None),
            ("", None),
            ("http://example.org/", None),
            ("/with a space", None),
            ("/line\r\nbreak", None),
            ("/", Some("a\r\nb: c")),
        ] {
            let refused = request(address, &http(path, host));
            assert!(matches!(refused, Err(Failure::BadRequest(_))), "{path:?} {host:?}");
        }
    }

    #[test]
    fn this_nodes_own_troubles_are_told_apart() {
        for errno in [libc::EMFILE, libc::EADDRNOTAVAIL, libc::ENOBUFS, libc::EPERM] {
            let failure = io_failure(&io::Error::from_raw_os_error(errno), Phase::Connect);
            assert!(!failure.is_conclusive(), "{failure}");
        }
        for errno in
            [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ETIMEDOUT, libc::ECONNRESET]
        {
            let failure = io_failure(&io::Error::from_raw_os_error(errno), Phase::Connect);
            assert!(failure.is_conclusive(), "{failure}");
        }
    }

    #[test]
    fn failures_read_well() {
        let cases = [
            (Failure::Refused, "connection refused"),
            (
                Failure::TimedOut { phase: Phase::Connect, after: Duration::from_secs(1) },
                "timed out after 1000 ms while connecting",
            ),
            (Failure::Status { got: 503, wanted: vec![200] }, "status 503 not in [200]"),
            (Failure::Body { wanted: "ok".into() }, "body has no \"ok\""),
            (Failure::BodyTooLarge { limit: 65536 }, "body larger than 65536 bytes"),
            (Failure::Closed { phase: Phase::Body }, "connection closed while reading the body"),
        ];
        for (failure, text) in cases {
            assert_eq!(failure.to_string(), text);
        }
    }
}
