//! Active health checks: whether each backend answers, found out by asking it.
//!
//! [`check`] asks once, [`state`] decides what a row of answers means, [`scheduler`] asks everybody at their intervals.
//! This module reports; it must never decide who gets traffic, and it knows neither the configuration's format nor the
//! maps.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

pub mod check;
pub mod scheduler;
pub mod state;

pub use self::check::{Failure, Phase};
pub use self::scheduler::{HealthMonitor, LastResult, NetworkProber, Prober, Settings, Status, Transition};
pub use self::state::{State, Thresholds};

/// Which backend of which service is probed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId {
    /// The service's name.
    pub service: String,
    /// The backend's name, unique within its service.
    pub backend: String,
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// One backend to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Whose health this is.
    pub id: TargetId,
    /// How it is found out.
    pub probe: Probe,
    /// What was known before this process started; counts only where the target is new to the monitor.
    pub adopt: Option<bool>,
}

/// How one backend is probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Where: the backend's own address, and the service's port unless configured otherwise.
    pub address: SocketAddr,
    /// With what question.
    pub kind: ProbeKind,
    /// From the start of one probe to the start of the next, give or take a tenth.
    pub interval: Duration,
    /// For the whole probe: connecting, asking and reading.
    pub timeout: Duration,
    /// When answers become a verdict.
    pub thresholds: Thresholds,
}

/// The question a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeKind {
    /// None: the backend counts as usable.
    None,
    /// "Do you accept a TCP connection?"
    Tcp,
    /// An HTTP/1.1 GET.
    Http(HttpProbe),
}

/// An HTTP health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// What to GET, from the slash on; may have a query.
    pub path: String,
    /// The `Host` header; by default the probed address.
    pub host: Option<String>,
    /// The status codes that mean health. A redirect is a status like any other and is not followed.
    pub statuses: Vec<u16>,
    /// Bytes that must occur in the body. Without it the body is not read.
    pub body: Option<String>,
    /// Most bytes of the body that are read in search of them.
    pub max_body_bytes: usize,
}

/// What is known about a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Health {
    /// Not asked yet.
    Unknown,
    /// It answers.
    Healthy,
    /// It does not.
    Unhealthy,
    /// It is not asked; whoever configured that takes it for usable.
    Disabled,
}

impl Health {
    /// Whether health is no reason to keep traffic away.
    pub fn is_usable(self) -> bool {
        match self {
            Self::Healthy | Self::Disabled => true,
            Self::Unknown | Self::Unhealthy => false,
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Disabled => "disabled",
        })
    }
}
