//! What a load balancer and its backends count, as their commands print it; and waiting until a load balancer is ready.
//!
//! Counters are read one after the other while packets move: compare them inside [`wait::until`], or after the traffic
//! has ended. Nothing here may change what it reads.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::config::Config;
use crate::host::Host;
use crate::topology::Lab;
use crate::wait;
use crate::wattline::{self, Agent};

/// How long a load balancer may take to find all backends well.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// Both sites: a load balancer without a source prefix sends from its address on the interface towards the backend.
pub const OWN_SOURCES: [&str; 4] = ["10.2.0.0/24", "fd02::/64", "10.3.0.0/24", "fd03::/64"];

/// Starts decapsulation on every backend of the lab, for the load balancers' own addresses, and an agent on the first
/// load balancer; returns when every configured backend may take packets.
pub fn balance(lab: &Lab, config: &Config) -> Result<Agent> {
    balance_allowing(lab, config, &OWN_SOURCES)
}

/// [`balance`] with backends that believe these outer sources.
pub fn balance_allowing(lab: &Lab, config: &Config, allow: &[&str]) -> Result<Agent> {
    for backend in &lab.backends {
        wattline::decap(&backend.host, allow)?;
    }
    let agent = Agent::start(lab.lb(), &config.to_string())?;
    wait_usable(lab.lb()).with_context(|| format!("the agent's log:\n{}", agent.log()))?;
    Ok(agent)
}

/// Waits until every backend is healthy, or not checked, and its next hop is known.
pub fn wait_usable(lb: &Host) -> Result<()> {
    wait::until("all backends to be usable", READY_LIMIT, || {
        let backends = backends(lb).map_err(|error| format!("{error:#}"))?;
        let unfit: Vec<_> = backends.iter().filter(|backend| !backend.usable).collect();
        if unfit.is_empty() { Ok(()) } else { Err(format!("{unfit:?}")) }
    })
}

/// A line of `wattline backend list`.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendLine {
    /// Its service.
    pub service: String,
    /// Its name within the service.
    pub name: String,
    /// Whether it is healthy (or not checked) and its next hop is known.
    pub usable: bool,
    /// Slots of the ring that name it.
    pub slots: u64,
    /// Packets forwarded to it.
    pub packets: u64,
}

/// `wattline backend list`.
pub fn backends(lb: &Host) -> Result<Vec<BackendLine>> {
    let answer = wattline::json(lb, &["backend", "list"])?;
    items(&answer, "backends")?
        .iter()
        .map(|line| {
            let health = text(line, "health")?;
            let resolved = line["next_hop"]["state"] == "resolved";
            Ok(BackendLine {
                service: text(line, "service")?,
                name: text(line, "name")?,
                usable: resolved && (health == "healthy" || health == "disabled"),
                slots: number(line, "slots")?,
                packets: number(line, "packets")?,
            })
        })
        .collect()
}

/// `wattline stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets that the program saw.
    pub received: u64,
    /// Packets sent to backends.
    pub forwarded: u64,
    /// Packets given to the kernel.
    pub passed: u64,
    /// Packets that ended at the load balancer.
    pub dropped: u64,
    /// Packets not forwarded, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Packets forwarded, by service.
    pub services: BTreeMap<String, u64>,
    /// Packets dropped, by service.
    pub service_drops: BTreeMap<String, u64>,
    /// Packets forwarded, by service and backend.
    pub backends: BTreeMap<(String, String), u64>,
}

impl Stats {
    /// Reads a load balancer's counters.
    pub fn read(lb: &Host) -> Result<Self> {
        let answer = wattline::json(lb, &["stats"])?;
        let totals = &answer["totals"];
        let mut stats = Self {
            received: number(totals, "received_packets")?,
            forwarded: number(totals, "forwarded_packets")?,
            passed: number(totals, "passed_packets")?,
            dropped: number(totals, "dropped_packets")?,
            ..Self::default()
        };
        for line in items(&answer, "reasons")? {
            stats.reasons.insert(text(line, "reason")?, number(line, "packets")?);
        }
        for line in items(&answer, "services")? {
            stats.services.insert(text(line, "service")?, number(line, "packets")?);
            stats.service_drops.insert(text(line, "service")?, number(line, "dropped_packets")?);
        }
        for line in items(&answer, "backends")? {
            let key = (text(line, "service")?, text(line, "backend")?);
            stats.backends.insert(key, number(line, "packets")?);
        }
        Ok(stats)
    }

    /// Packets of one reason.
    pub fn reason(&self, reason: &str) -> u64 {
        self.reasons.get(reason).copied().unwrap_or_default()
    }

    /// The reasons that have counted anything.
    pub fn reasons_seen(&self) -> Vec<&str> {
        self.reasons.iter().filter(|(_, packets)| **packets > 0).map(|(reason, _)| reason.as_str()).collect()
    }

    /// Packets forwarded to a backend of a service.
    pub fn backend(&self, service: &str, backend: &str) -> u64 {
        self.backends.get(&(service.to_owned(), backend.to_owned())).copied().unwrap_or_default()
    }
}

/// The outcomes that a backend's decapsulation has counted on `eth0`, by name.
pub fn decap_outcomes(backend: &Host) -> Result<BTreeMap<String, u64>> {
    let answer = wattline::json(backend, &["decap", "status", "eth0"])?;
    let interface = items(&answer, "interfaces")?.first().context("no decapsulation on eth0")?;
    let outcomes = items(interface, "outcomes")?.iter();
    outcomes.map(|line| Ok((text(line, "reason")?, number(line, "packets")?))).collect()
}

fn items<'v>(value: &'v Value, key: &str) -> Result<&'v Vec<Value>> {
    value[key].as_array().with_context(|| format!("no list {key:?} in {value}"))
}

fn text(value: &Value, key: &str) -> Result<String> {
    Ok(value[key].as_str().with_context(|| format!("no text {key:?} in {value}"))?.to_owned())
}

fn number(value: &Value, key: &str) -> Result<u64> {
    value[key].as_u64().with_context(|| format!("no number {key:?} in {value}"))
}
