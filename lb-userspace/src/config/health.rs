//! Health check settings as they are written, and the check that results for a service.
//!
//! Settings are layers (service over defaults over built-in values); nothing outside this file may merge them. No probe
//! is made here.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::model::{Protocol, Service};

/// Built-in values, used where neither the service nor the defaults say anything.
mod builtin {
    pub(super) const INTERVAL_MS: u32 = 2000;
    pub(super) const TIMEOUT_MS: u32 = 1000;
    pub(super) const RISE: u32 = 2;
    pub(super) const FALL: u32 = 3;
    pub(super) const MAX_BODY_BYTES: u32 = 65_536;
    pub(super) const PATH: &str = "/";
    pub(super) const STATUS: u16 = 200;
}

/// One layer of health check settings; what is absent comes from the layer below.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HealthSettings {
    /// What is asked of the backend.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<HealthKind>,
    /// Path of the HTTP request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// HTTP status codes that count as success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Vec<u16>>,
    /// Text that the HTTP answer's body must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// `Host` header of the HTTP request; absent: the backend's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port that is checked; absent: the service's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Milliseconds between two checks of a backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u32>,
    /// Milliseconds that one whole check may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// Successes in a row that make an unhealthy backend healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rise: Option<u32>,
    /// Failures in a row that make a healthy backend unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fall: Option<u32>,
    /// Bytes of an HTTP body that are read at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body_bytes: Option<u32>,
}

impl HealthSettings {
    /// True when this layer says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a check asks of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthKind {
    /// That a TCP connection can be made.
    Tcp,
    /// That an HTTP GET is answered as expected.
    Http,
    /// Nothing; the backend counts as usable.
    None,
}

impl HealthKind {
    /// Every value as it is written.
    pub const WORDS: &'static [&'static str] = &["tcp", "http", "none"];

    /// The value as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::None => "none",
        }
    }
}

impl std::fmt::Display for HealthKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for HealthKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "http" => Ok(Self::Http),
            "none" => Ok(Self::None),
            _ => Err(format!("health type {text:?} is not one of {}", Self::WORDS.join(", "))),
        }
    }
}

/// The check of one service with every value settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: HealthProbe,
    /// Time between two checks of a backend.
    pub interval: Duration,
    /// Time that one whole check may take; never above the interval.
    pub timeout: Duration,
    /// Successes in a row that make an unhealthy backend healthy.
    pub rise: u32,
    /// Failures in a row that make a healthy backend unhealthy.
    pub fall: u32,
}

/// What a settled check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthProbe {
    /// Nothing: the backend counts as usable.
    None,
    /// A TCP connection to this port.
    Tcp {
        /// Destination port.
        port: u16,
    },
    /// An HTTP GET.
    Http {
        /// Destination port.
        port: u16,
        /// Path and query, starting with `/`.
        path: String,
        /// Status codes that count as success; never empty.
        status: Vec<u16>,
        /// Text that the body must contain.
        body: Option<String>,
        /// `Host` header; none: the backend's address.
        host: Option<String>,
        /// Bytes of the body that are read at most.
        max_body_bytes: u32,
    },
}

impl HealthProbe {
    /// The port that is asked, if anything is.
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::None => None,
            Self::Tcp { port } | Self::Http { port, .. } => Some(*port),
        }
    }
}

/// The kind of check a service gets. The default section's type is for TCP services: a UDP service has nothing to
/// connect to unless it says so itself.
pub(super) fn kind(service: &Service, defaults: &HealthSettings) -> HealthKind {
    match (service.health.kind, service.protocol) {
        (Some(kind), _) => kind,
        (None, Protocol::Udp) => HealthKind::None,
        (None, Protocol::Tcp) => defaults.kind.unwrap_or(HealthKind::Tcp),
    }
}

/// Settles the check of `service`. A check that has no port to go to (refused by `validate`) becomes no check.
pub(super) fn resolve(service: &Service, defaults: &HealthSettings) -> HealthCheck {
    let own = &service.health;
    let interval = own.interval_ms.or(defaults.interval_ms).unwrap_or(builtin::INTERVAL_MS);
    let timeout = own.timeout_ms.or(defaults.timeout_ms).unwrap_or(builtin::TIMEOUT_MS.min(interval));
    let port = own.port.or(defaults.port).or(service.port.number());
    let probe = match (kind(service, defaults), port) {
        (HealthKind::None, _) | (_, None) => HealthProbe::None,
        (HealthKind::Tcp, Some(port)) => HealthProbe::Tcp { port },
        (HealthKind::Http, Some(port)) => HealthProbe::Http {
            port,
            path: own
                .path
                .clone()
                .or_else(|| defaults.path.clone())
                .unwrap_or_else(|| builtin::PATH.to_owned()),
            status: own
                .status
                .clone()
                .or_else(|| defaults.status.clone())
                .unwrap_or_else(|| vec![builtin::STATUS]),
            body: own.body.clone().or_else(|| defaults.body.clone()),
            host: own.host.clone().or_else(|| defaults.host.clone()),
            max_body_bytes: own.max_body_bytes.or(defaults.max_body_bytes).unwrap_or(builtin::MAX_BODY_BYTES),
        },
    };
    HealthCheck {
        probe,
        interval: Duration::from_millis(u64::from(interval)),
        timeout: Duration::from_millis(u64::from(timeout)),
        rise: own.rise.or(defaults.rise).unwrap_or(builtin::RISE),
        fall: own.fall.or(defaults.fall).unwrap_or(builtin::FALL),
    }
}
