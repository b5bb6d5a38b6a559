//! The other end of the API: one request over the agent's Unix socket, with a deadline.
//!
//! It knows how to ask, not what to ask; a failure says whether the agent was reached at all.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::ApiError;
use super::types::ErrorBody;

/// Largest answer that is read, in bytes. A list of a hundred thousand backends stays below it.
const LARGEST_ANSWER: usize = 256 * 1024 * 1024;

/// A client of one agent.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens on the socket, or it may not be opened.
    Unreachable {
        /// Path of the socket.
        socket: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The answer did not come in time.
    Timeout(Duration),
    /// The agent refused.
    Refused(ApiError),
    /// What came back is not an answer of this API.
    Garbled(String),
}

/// A body to send.
#[derive(Debug)]
pub enum Payload {
    /// Nothing.
    None,
    /// JSON text.
    Json(String),
    /// TOML text.
    Toml(String),
}

impl Payload {
    /// A value as JSON.
    pub fn json(value: &impl Serialize) -> Result<Self, ClientError> {
        serde_json::to_string(value).map(Self::Json).map_err(|error| ClientError::Garbled(error.to_string()))
    }
}

impl Client {
    /// A client of the agent that listens on `socket`; each request may take `timeout`.
    pub fn new(socket: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { socket: socket.into(), timeout }
    }

    /// Path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for a value.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, Payload::None).await
    }

    /// Sends a request and reads the answer.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        payload: Payload,
    ) -> Result<T, ClientError> {
        let exchange = self.exchange(method, path, payload);
        let (status, body) = tokio::time::timeout(self.timeout, exchange)
            .await
            .map_err(|_| ClientError::Timeout(self.timeout))??;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| ClientError::Garbled(format!("answer to {path}: {error}")));
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) => Err(ClientError::Refused(error.into())),
            Err(error) => Err(ClientError::Garbled(format!("answer {status} to {path}: {error}"))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        payload: Payload,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| ClientError::Unreachable { socket: self.socket.clone(), error })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| garbled(&error))?;
        // Ends by itself when the sender is dropped; its error also reaches the sender.
        let driver = tokio::spawn(connection);
        let (kind, body) = match payload {
            Payload::None => (None, String::new()),
            Payload::Json(text) => (Some("application/json"), text),
            Payload::Toml(text) => (Some("application/toml"), text),
        };
        let mut request = Request::builder().method(method).uri(path).header(HOST, "wattline");
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Garbled(format!("cannot ask for {path:?}: {error}")))?;
        let response = sender.send_request(request).await.map_err(|error| garbled(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER)
            .collect()
            .await
            .map_err(|error| ClientError::Garbled(format!("cannot read the answer to {path}: {error}")))?
            .to_bytes();
        drop(sender);
        driver.abort();
        Ok((status, body))
    }
}

fn garbled(error: &hyper::Error) -> ClientError {
    ClientError::Garbled(format!("the exchange with the agent failed: {error}"))
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { socket, error } => {
                write!(f, "cannot reach the agent at {}: {error}", socket.display())
            }
            Self::Timeout(timeout) => write!(f, "no answer within {} s", timeout.as_secs_f64()),
            Self::Refused(error) => error.fmt(f),
            Self::Garbled(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for ClientError {}

/// A word as one segment of a path or one value of a query.
pub fn encode(word: &str) -> String {
    use fmt::Write as _;
    let mut encoded = String::with_capacity(word.len());
    for byte in word.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing into a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    // A segment of dots alone would name another path.
    if encoded.bytes().all(|byte| byte == b'.') { encoded.replace('.', "%2E") } else { encoded }
}
