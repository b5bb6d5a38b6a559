//! The stage: the lab with a load balancer's agent in it, and decapsulation on each backend.
//!
//! Real programs, started as an operator would; whatever fails here ends the demo with the program's own words.

use std::thread;

use anyhow::{Context as _, Result};
use lb_userspace::config::Config;
use tests::topology::Lab;
use tests::wattline::{self, Agent};

use super::cast;

/// A running stage; dropping it ends and removes everything on it.
pub(super) struct Stage {
    /// The load balancer's agent. Before the lab, so that it ends before its host does.
    pub agent: Agent,
    /// The network.
    pub lab: Lab,
    /// What the agent was configured with.
    pub config: Config,
}

/// Lays the network: client, router, load balancer, and backends with their servers.
pub(super) fn lay() -> Result<Lab> {
    let in_site = |site: &str| cast::MEMBERS.iter().filter(|member| member.site == site).count() as u8;
    Lab::builder().site_a(in_site("berlin")).site_b(in_site("oslo")).build().context("cannot make the lab")
}

/// Starts `wattline decap` on every backend, all at a time.
pub(super) fn attach_decap(lab: &Lab) -> Result<()> {
    thread::scope(|scope| {
        let attach = |host| move || wattline::decap(host, &cast::OUTER_SOURCES);
        let running: Vec<_> = lab.backends.iter().map(|backend| scope.spawn(attach(&backend.host))).collect();
        running
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Starts the agent and waits until it answers.
pub(super) fn start_agent(lab: Lab) -> Result<Stage> {
    let text = cast::config(&lab.backends);
    let config = lb_userspace::config::parse(&text, "demo.toml").context("the demo's configuration")?;
    let agent = Agent::start(lab.lb(), &text).context("cannot start the agent")?;
    Ok(Stage { agent, lab, config })
}
