//! The messages between the API server and the agent's single owner of state.
//!
//! The owner takes one [`Request`] after the other, so no two writes can interleave. A request that nobody answers any
//! more (its client went away) is harmless: the owner ignores a reply that cannot be delivered.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

use super::Change;
use super::types::{
    ApplyResult, BackendView, ConfigView, ErrorBody, HealthView, InterfaceStatus, RouteQuery, RouteView,
    SaveResult, SchemaVersion, ServiceView, StatsView, Status,
};
use crate::config::{Config, ConfigError, Problem, XdpMode};

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// What can be asked of the agent.
#[derive(Debug)]
pub enum Request {
    /// The agent and the data plane at a glance.
    Status(Reply<Status>),
    /// All services, in the order of the configuration.
    Services(Reply<Vec<ServiceView>>),
    /// Backends of one service, or of all.
    Backends {
        /// Name of the service; an unknown one is an error.
        service: Option<String>,
        /// Where the answer goes.
        reply: Reply<Vec<BackendView>>,
    },
    /// The checks of all backends.
    Health(Reply<Vec<HealthView>>),
    /// All counters.
    Stats(Reply<StatsView>),
    /// The running configuration.
    Config(Reply<ConfigView>),
    /// Where a flow would go.
    Route {
        /// The flow.
        query: RouteQuery,
        /// Where the answer goes.
        reply: Reply<RouteView>,
    },
    /// One edit of the running configuration.
    Mutate {
        /// The edit; it is applied to a copy, which is then validated.
        change: Change,
        /// Demanded generation; another one is a conflict.
        if_generation: Option<u64>,
        /// Only tell what would happen.
        dry_run: bool,
        /// Where the answer goes.
        reply: Reply<ApplyResult>,
    },
    /// A whole new configuration, already validated.
    Apply {
        /// The configuration.
        config: Box<Config>,
        /// Demanded generation; another one is a conflict.
        if_generation: Option<u64>,
        /// Only tell what would happen.
        dry_run: bool,
        /// Where the answer goes.
        reply: Reply<ApplyResult>,
    },
    /// Write the running configuration to its file.
    Save {
        /// Demanded generation; another one is a conflict.
        if_generation: Option<u64>,
        /// Where the answer goes.
        reply: Reply<SaveResult>,
    },
    /// Attach the data plane to an interface.
    Attach {
        /// Name of the interface.
        interface: String,
        /// How; none: as the configuration says.
        mode: Option<XdpMode>,
        /// Where the answer goes.
        reply: Reply<InterfaceStatus>,
    },
    /// Detach the data plane from an interface.
    Detach {
        /// Name of the interface.
        interface: String,
        /// Where the answer goes.
        reply: Reply<InterfaceStatus>,
    },
}

/// The sending side of the agent's mailbox.
#[derive(Debug, Clone)]
pub struct ApiHandle {
    requests: mpsc::Sender<Request>,
    timeout: Duration,
}

impl ApiHandle {
    /// A mailbox for `capacity` waiting requests; an answer that takes longer than `timeout` is an error.
    pub fn channel(capacity: usize, timeout: Duration) -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(capacity);
        (Self { requests, timeout }, receiver)
    }

    /// Asks the owner and waits for the answer: `handle.ask(Request::Status).await`, or with a closure for requests
    /// that carry more than the reply.
    pub async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let gone = || ApiError::internal("the agent is shutting down", "ask again once it runs");
            self.requests.send(request(reply)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::new(
                ErrorKind::Timeout,
                format!("the agent did not answer within {} s", self.timeout.as_secs()),
                "a write may still take effect; see `wattline status`",
            )),
        }
    }
}

/// What kind of failure it is; decides HTTP status and exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// What was named does not exist.
    NotFound,
    /// What was asked for is not valid.
    Invalid,
    /// It exists already, or the generation is another one.
    Conflict,
    /// The kernel refused.
    Kernel,
    /// It took too long.
    Timeout,
    /// A defect or a shutdown.
    Internal,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// What went wrong.
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
    /// All problems of a refused configuration.
    pub problems: Vec<Problem>,
}

impl ApiError {
    /// A failure without problems of a configuration.
    pub fn new(kind: ErrorKind, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { kind, message: message.into(), help: help.into(), problems: Vec::new() }
    }

    /// No such service.
    pub fn no_service(name: &str) -> Self {
        let message = format!("there is no service {name:?}");
        Self::new(ErrorKind::NotFound, message, "`wattline service list` shows all")
    }

    /// No such backend.
    pub fn no_backend(service: &str, name: &str) -> Self {
        let message = format!("service {service:?} has no backend {name:?}");
        Self::new(ErrorKind::NotFound, message, format!("`wattline backend list {service}` shows all"))
    }

    /// The generation is not the demanded one.
    pub fn wrong_generation(demanded: u64, present: u64) -> Self {
        let message = format!("the running configuration is generation {present}, not {demanded}");
        Self::new(ErrorKind::Conflict, message, "look at what changed, then repeat with the new generation")
    }

    /// The kernel refused.
    pub fn kernel(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(ErrorKind::Kernel, message, help)
    }

    /// A defect or a shutdown.
    pub fn internal(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message, help)
    }

    /// The error as it goes over the socket.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            schema_version: SchemaVersion,
            code: self.kind,
            message: self.message.clone(),
            help: self.help.clone(),
            problems: self.problems.clone(),
        }
    }
}

impl From<ErrorBody> for ApiError {
    fn from(body: ErrorBody) -> Self {
        Self { kind: body.code, message: body.message, help: body.help, problems: body.problems }
    }
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        let count = error.problems.len();
        let message = match count {
            1 => "the configuration is not valid".to_owned(),
            _ => format!("the configuration is not valid: {count} problems"),
        };
        Self { problems: error.problems, ..Self::new(ErrorKind::Invalid, message, "") }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.problems.is_empty() {
            write!(f, "\n{}", ConfigError { problems: self.problems.clone() })?;
        }
        if !self.help.is_empty() {
            write!(f, "\n  help: {}", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for ApiError {}
