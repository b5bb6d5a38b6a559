//! Checks that values of a configuration fit each other and the data plane.
//!
//! The same checks run on a text that was just read and on a configuration edited in memory; a finding names its place
//! as a [`Locus`], and whoever has the text turns that into line and column. Pure: no look at this machine.

pub(super) mod health;
mod network;

use std::collections::HashMap;

use super::model::{Backend, Config, Mode, Service};
use super::problem::{ConfigError, Problem};

/// Largest size of the service table.
pub(super) const MAX_SERVICES: u32 = 1 << 20;
/// Largest size of the backend array.
pub(super) const MAX_BACKENDS: u32 = 1 << 22;
/// Largest size of the ring array, 2 GiB.
pub(super) const MAX_TOTAL_SLOTS: u32 = 1 << 28;
/// Most slots of one service's ring: the largest prime below 2^24.
pub const MAX_RING_SLOTS: u32 = 16_777_213;
/// Most backends of one service: a slot names them by 16 bits, and one number stays free for "none".
pub const MAX_BACKENDS_PER_SERVICE: usize = 65_535;

/// Where in a configuration something is: the item, and the field of it ("" is the item itself).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Locus {
    /// The whole text.
    Root,
    /// A field of `[node]`.
    Node(&'static str),
    /// A field of `[limits]`.
    Limits(&'static str),
    /// A field of `[health]`.
    Health(&'static str),
    /// A field of a service, by its number.
    Service(usize, &'static str),
    /// A field of a service's health settings.
    ServiceHealth(usize, &'static str),
    /// A field of a backend, by the numbers of service and backend.
    Backend(usize, usize, &'static str),
}

impl Locus {
    /// The item that the field belongs to.
    pub(super) fn item(self) -> Self {
        match self {
            Self::Root | Self::Node(_) | Self::Limits(_) => Self::Root,
            Self::Health(_) => Self::Health(""),
            Self::ServiceHealth(service, "") | Self::Service(service, _) => Self::Service(service, ""),
            Self::ServiceHealth(service, _) => Self::ServiceHealth(service, ""),
            Self::Backend(service, backend, _) => Self::Backend(service, backend, ""),
        }
    }
}

/// One thing that does not fit.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) locus: Locus,
    pub(super) message: String,
    pub(super) help: String,
}

/// Collects findings.
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn add(&mut self, locus: Locus, message: impl Into<String>, help: impl Into<String>) {
        self.0.push(Finding { locus, message: message.into(), help: help.into() });
    }
}

impl Config {
    /// Checks a configuration that was edited in memory; its problems have no line and column.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let problems: Vec<Problem> = check(self)
            .into_iter()
            .map(|finding| Problem {
                file: None,
                line: None,
                column: None,
                message: finding.message,
                help: finding.help,
            })
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }
}

/// Everything that does not fit.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    network::check_node(&config.node, &mut findings);
    health::check_settings(&config.health, "health: ", Locus::Health, &mut findings);
    check_sizes(config, &mut findings);
    let mut names = HashMap::new();
    let mut keys = HashMap::new();
    for (index, service) in config.services.iter().enumerate() {
        let context = format!("service {:?}: ", service.name);
        check_service(service, index, &context, &mut findings);
        health::check_service(service, &config.health, index, &context, &mut findings);
        if names.insert(service.name.as_str(), index).is_some() {
            findings.add(
                Locus::Service(index, "name"),
                format!("{context}a service before has the same name"),
                "give each service its own name",
            );
        }
        if let Some(first) = keys.insert((service.address, service.port, service.protocol), index) {
            findings.add(
                Locus::Service(index, "address"),
                format!(
                    "{context}address {}, port {} and protocol {} are those of service {:?}",
                    service.address, service.port, service.protocol, config.services[first].name
                ),
                "put the backends into one service, or change the address or the port",
            );
        }
    }
    findings.0
}

fn check_sizes(config: &Config, findings: &mut Findings) {
    let limits = &config.limits;
    let bounds = [
        ("services", limits.services, MAX_SERVICES),
        ("backends", limits.backends, MAX_BACKENDS),
        ("ring_slots", limits.ring_slots, MAX_TOTAL_SLOTS),
    ];
    for (field, value, most) in bounds {
        if value == 0 || value > most {
            findings.add(
                Locus::Limits(field),
                format!("limits: {field} {value} is not between 1 and {most}"),
                format!("choose a number from 1 to {most}"),
            );
        }
    }
    let fixed_slots: u64 =
        config.services.iter().filter_map(|service| service.ring_slots).map(u64::from).sum();
    let uses = [
        ("services", config.services.len() as u64, limits.services),
        ("backends", config.backend_count() as u64, limits.backends),
        ("ring_slots", fixed_slots, limits.ring_slots),
    ];
    for (field, used, limit) in uses {
        if used > u64::from(limit) {
            findings.add(
                Locus::Limits(field),
                format!("limits: {used} {field} are configured, above the limit of {limit}"),
                format!(
                    "raise limits.{field} (room for twice as many lets rings change while they are in use)"
                ),
            );
        }
    }
}

fn check_service(service: &Service, index: usize, context: &str, findings: &mut Findings) {
    let at = |field| Locus::Service(index, field);
    check_name(&service.name, at("name"), context, findings);
    network::check_address(service.address, at("address"), context, findings);
    if service.port.number() == Some(0) {
        findings.add(at("port"), format!("{context}port 0 cannot be served"), "choose 1 to 65535 or \"any\"");
    }
    if let Some(slots) = service.ring_slots {
        check_ring(slots, service.backends.len(), at("ring_slots"), context, findings);
    }
    if service.backends.len() > MAX_BACKENDS_PER_SERVICE {
        findings.add(
            at("backend"),
            format!("{context}{} backends are more than {MAX_BACKENDS_PER_SERVICE}", service.backends.len()),
            "split the service over two addresses",
        );
    }
    let mut names = HashMap::new();
    let mut addresses = HashMap::new();
    for (number, backend) in service.backends.iter().enumerate() {
        let at = |field| Locus::Backend(index, number, field);
        let context = format!("{context}backend {:?}: ", backend.name);
        check_backend(service, backend, at, &context, findings);
        if names.insert(backend.name.as_str(), number).is_some() {
            findings.add(
                at("name"),
                format!("{context}a backend of this service before has the same name"),
                "give each backend of a service its own name",
            );
        }
        if let Some(first) = addresses.insert(backend.address, number) {
            findings.add(
                at("address"),
                format!(
                    "{context}address {} is that of backend {:?}",
                    backend.address, service.backends[first].name
                ),
                "list each machine once, and give it more weight if it should take more",
            );
        }
    }
}

fn check_backend(
    service: &Service,
    backend: &Backend,
    at: impl Fn(&'static str) -> Locus,
    context: &str,
    findings: &mut Findings,
) {
    check_name(&backend.name, at("name"), context, findings);
    network::check_address(backend.address, at("address"), context, findings);
    if backend.address == service.address {
        findings.add(
            at("address"),
            format!("{context}address {} is the service's own", backend.address),
            "name the machine by an address that only it has; the service address goes on its lo",
        );
    }
    if service.mode == Mode::L2 && backend.address.is_ipv4() != service.address.is_ipv4() {
        findings.add(
            at("address"),
            format!(
                "{context}address {} is of another family than service address {}, which mode l2 cannot cross",
                backend.address, service.address
            ),
            "use mode \"ipip\" or \"gue\", or give an address of the same family",
        );
    }
    if let Some(site) = &backend.site
        && !is_name(site)
    {
        findings.add(at("site"), format!("{context}site {site:?} is not a valid label"), NAME_HELP);
    }
}

fn check_ring(slots: u32, backends: usize, locus: Locus, context: &str, findings: &mut Findings) {
    if slots > MAX_RING_SLOTS {
        findings.add(
            locus,
            format!("{context}ring_slots {slots} is above {MAX_RING_SLOTS}"),
            format!("choose a prime up to {MAX_RING_SLOTS}"),
        );
    } else if !is_prime(slots) {
        findings.add(
            locus,
            format!("{context}ring_slots {slots} is not a prime"),
            format!("write {}, or leave it out to have it chosen", next_prime(slots)),
        );
    } else if (slots as usize) < backends {
        findings.add(
            locus,
            format!("{context}ring_slots {slots} is below the number of backends, {backends}"),
            "use at least 100 slots a backend, or leave it out to have it chosen",
        );
    }
}

/// What a name may look like, for error messages.
const NAME_HELP: &str =
    "use 1 to 63 letters, digits, dots, dashes and underscores, the first a letter or digit";

fn check_name(name: &str, locus: Locus, context: &str, findings: &mut Findings) {
    if !is_name(name) {
        findings.add(locus, format!("{context}the name is not valid"), NAME_HELP);
    }
}

/// True for `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 63
        && bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// True for primes; by trial division, which is quick for 32 bits.
pub fn is_prime(number: u32) -> bool {
    number >= 2 && (2..=number.isqrt()).all(|divisor| !number.is_multiple_of(divisor))
}

/// The smallest prime that is not below `number` (the largest 32-bit prime if there is none).
pub fn next_prime(number: u32) -> u32 {
    (number..=u32::MAX).find(|candidate| is_prime(*candidate)).unwrap_or(4_294_967_291)
}
