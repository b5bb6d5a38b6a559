//! Configuration files for scenarios, put together from values instead of text.
//!
//! Writes TOML as a person would and must never use the program's own configuration code: what a scenario says is read
//! by the built binary alone.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use crate::topology::Backend;

/// The flow-hash key of all scenarios that do not set another: which flow goes where is then the same in every run.
pub const FLOW_KEY: &str = "000102030405060708090a0b0c0d0e0f";

/// The version of the addresses that backends are reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// A backend's own address of this family.
    pub fn address(self, backend: &Backend) -> IpAddr {
        match self {
            Self::V4 => backend.v4.into(),
            Self::V6 => backend.v6.into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "4",
            Self::V6 => "6",
        })
    }
}

/// A configuration file; `to_string` gives its text.
#[derive(Clone, Debug)]
#[must_use]
pub struct Config {
    node: Vec<(String, String)>,
    services: Vec<Service>,
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl Config {
    /// XDP on `eth0`, [`FLOW_KEY`], no service.
    pub fn new() -> Self {
        let config = Self { node: Vec::new(), services: Vec::new() };
        config.node("interfaces", r#"["eth0"]"#).node("flow_hash_key", &quoted(FLOW_KEY))
    }

    /// Sets a key of `[node]` to a value as TOML writes it; the last word on a key counts.
    pub fn node(mut self, key: &str, value: &str) -> Self {
        self.node.retain(|(other, _)| other != key);
        self.node.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds a service.
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[node]")?;
        for (key, value) in &self.node {
            writeln!(f, "{key} = {value}")?;
        }
        // Quick to call a backend healthy, slow to give it up: a busy machine is no outage.
        writeln!(f, "\n[health]\ninterval_ms = 1000\ntimeout_ms = 1000\nrise = 1\nfall = 10")?;
        self.services.iter().try_for_each(|service| write!(f, "\n{service}"))
    }
}

/// One service of a [`Config`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Service {
    lines: Vec<(String, String)>,
    backends: String,
}

impl Service {
    /// A TCP service on one port.
    pub fn tcp(name: &str, target: SocketAddr) -> Self {
        Self::new(name, target.ip(), &target.port().to_string(), "tcp")
    }

    /// A UDP service on one port.
    pub fn udp(name: &str, target: SocketAddr) -> Self {
        Self::new(name, target.ip(), &target.port().to_string(), "udp")
    }

    /// A service on every port of an address that no other service names.
    pub fn any_port(name: &str, address: IpAddr, protocol: &str) -> Self {
        Self::new(name, address, &quoted("any"), protocol)
    }

    fn new(name: &str, address: IpAddr, port: &str, protocol: &str) -> Self {
        let service = Self { lines: Vec::new(), backends: String::new() };
        service
            .set("name", &quoted(name))
            .set("address", &quoted(address))
            .set("port", port)
            .set("protocol", &quoted(protocol))
    }

    /// Sets a key of the service to a value as TOML writes it; the last word on a key counts.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.lines.retain(|(other, _)| other != key);
        self.lines.push((key.to_owned(), value.to_owned()));
        self
    }

    /// `ipip`, `gue` or `l2`.
    pub fn mode(self, mode: &str) -> Self {
        self.set("mode", &quoted(mode))
    }

    /// The size of its ring, a prime.
    pub fn ring_slots(self, slots: u32) -> Self {
        self.set("ring_slots", &slots.to_string())
    }

    /// Adds a backend.
    pub fn backend(mut self, name: &str, address: IpAddr, weight: u32) -> Self {
        let _ = write!(
            self.backends,
            "\n[[service.backend]]\nname = {}\naddress = {}\nweight = {weight}\n",
            quoted(name),
            quoted(address)
        );
        self
    }

    /// Adds the lab's backends under their own names, reached over `family`, all with the usual weight.
    pub fn backends<'b>(self, family: Family, backends: impl IntoIterator<Item = &'b Backend>) -> Self {
        backends
            .into_iter()
            .fold(self, |service, backend| service.backend(&backend.name, family.address(backend), 100))
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[[service]]")?;
        for (key, value) in &self.lines {
            writeln!(f, "{key} = {value}")?;
        }
        f.write_str(&self.backends)
    }
}

/// A TOML string. Nothing that scenarios write needs escapes.
fn quoted(text: impl fmt::Display) -> String {
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_as_a_person_would_write_it() {
        let config = Config::new().node("interfaces", r#"["eth1"]"#).service(
            Service::tcp("web", "192.0.2.10:80".parse().unwrap()).mode("gue").mode("l2").backend(
                "web-1",
                "10.0.0.1".parse().unwrap(),
                7,
            ),
        );
        let text = config.to_string();
        assert!(text.contains("[node]\nflow_hash_key = \"0001"), "{text}");
        assert!(text.contains("interfaces = [\"eth1\"]\n") && !text.contains("eth0"), "{text}");
        assert!(text.contains("port = 80\nprotocol = \"tcp\"\nmode = \"l2\"\n"), "{text}");
        assert!(text.ends_with("name = \"web-1\"\naddress = \"10.0.0.1\"\nweight = 7\n"), "{text}");
    }
}
