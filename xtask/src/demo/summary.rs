//! The end: what was seen, as JSON or as a page, and whether it is as it must be.

use serde::Serialize;

use super::cast::{self, MEMBERS, SERVICES};
use super::numbers::{count, grouped, percent};
use super::paint::{Align, Line, Tone, table, wrap};
use super::view::Event;

/// Version of the JSON.
const SCHEMA_VERSION: u32 = 1;
/// Unexplained failures shown one by one.
const EXAMPLES: usize = 10;

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    schema_version: u32,
    /// How long traffic flowed.
    pub seconds: f64,
    /// Connections tried.
    pub connections: u64,
    /// Those of them that failed for a good reason: taken down or moved.
    pub failed_connections: u64,
    /// Failed because their backend was down.
    pub taken_down_connections: u64,
    /// Failed because their slot changed hands while they were open.
    pub moved_connections: u64,
    /// Failed for no reason that is known. There must be none.
    pub unexplained_failures: u64,
    /// Some of those.
    pub unexplained_examples: Vec<String>,
    /// Packets that the XDP program sent to backends.
    pub packets: u64,
    /// Packets that it dropped.
    pub dropped_packets: u64,
    /// By service.
    pub services: Vec<ServiceSummary>,
    /// By backend, of both services together.
    pub backends: Vec<BackendSummary>,
    /// The failure that was staged.
    pub outage: OutageSummary,
}

/// What was seen of a service.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ServiceSummary {
    /// Its name.
    pub name: &'static str,
    /// Address and port.
    pub address: String,
    /// How packets get to backends.
    pub mode: &'static str,
    /// Connections tried.
    pub connections: u64,
    /// Packets sent to backends.
    pub packets: u64,
}

/// What was seen of a backend.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BackendSummary {
    /// Its name.
    pub name: &'static str,
    /// Its site label.
    pub site: &'static str,
    /// Its weight.
    pub weight: u16,
    /// Its part of the rings at the end.
    pub share: f64,
    /// Its part of the answered connections that were opened while all backends were up.
    pub observed_share: f64,
    /// It passes its checks and takes packets at the end, in all services.
    pub healthy: bool,
    /// Connections that it answered.
    pub connections: u64,
    /// Packets sent to it.
    pub packets: u64,
}

/// What was seen of the staged failure; times that never came are absent.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct OutageSummary {
    /// Whose server was stopped.
    pub backend: &'static str,
    /// From its stop until no ring held it.
    pub noticed_after_seconds: Option<f64>,
    /// From its stop until the last packet was sent to it.
    pub traffic_for_seconds: Option<f64>,
    /// From its start until it was healthy and in all rings.
    pub back_after_seconds: Option<f64>,
}

impl Summary {
    /// What is filled in by the caller on top of the version.
    pub(super) fn new(outage: OutageSummary) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            seconds: 0.0,
            connections: 0,
            failed_connections: 0,
            taken_down_connections: 0,
            moved_connections: 0,
            unexplained_failures: 0,
            unexplained_examples: Vec::new(),
            packets: 0,
            dropped_packets: 0,
            services: Vec::new(),
            backends: Vec::new(),
            outage,
        }
    }

    /// Notes a failure that nothing explains.
    pub(super) fn unexplained(&mut self, what: String) {
        if self.unexplained_examples.len() < EXAMPLES {
            self.unexplained_examples.push(what);
        }
    }

    /// What is not as it must be.
    pub(super) fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        if self.unexplained_failures > 0 {
            let failures = count(self.unexplained_failures, "connection");
            complaints.push(format!("{failures} failed without an explanation"));
        }
        for backend in self.backends.iter().filter(|backend| !backend.healthy) {
            complaints.push(format!("{} is not healthy at the end", backend.name));
        }
        let OutageSummary { backend, noticed_after_seconds, back_after_seconds, .. } = &self.outage;
        if noticed_after_seconds.is_none() {
            complaints.push(format!("the health checks did not notice that {backend} was down"));
        } else if back_after_seconds.is_none() {
            complaints.push(format!("{backend} did not come back"));
        }
        if self.connections == 0 || self.packets == 0 {
            complaints.push("there was no traffic".to_owned());
        }
        complaints
    }

    /// The page at the end.
    pub(super) fn page(&self, events: &[Event], width: usize) -> Vec<Line> {
        let heading = |text: &str| Line::new(Tone::Bold, text);
        let mut lines = vec![heading("What happened")];
        lines.extend(events.iter().flat_map(|event| event.lines(width)));
        lines.extend([Line::default(), heading("What was seen")]);
        lines
            .extend(self.facts().into_iter().flat_map(|(name, tone, value)| fact(name, tone, &value, width)));
        lines.push(Line::default());
        lines.extend(self.backend_table());
        for example in &self.unexplained_examples {
            lines.extend(fact("unexplained", Tone::Bad, example, width));
        }
        lines.extend([Line::default(), heading("Next")]);
        for (command, purpose) in HINTS {
            lines.push(Line::new(Tone::Plain, format!("  {command:<46}")).and(Tone::Dim, *purpose));
        }
        lines
    }

    fn facts(&self) -> Vec<(&'static str, Tone, String)> {
        let per_service: Vec<String> = self
            .services
            .iter()
            .map(|service| {
                format!("{} to {} by {}", grouped(service.connections), service.address, service.mode)
            })
            .collect();
        let good = if self.unexplained_failures == 0 { Tone::Good } else { Tone::Bad };
        let mut facts = vec![
            (
                "connections",
                Tone::Plain,
                format!("{}: {}", grouped(self.connections), per_service.join(", ")),
            ),
            (
                "failed",
                Tone::Plain,
                format!(
                    "{}: {} to {} while it was down, {} open while their slot moved",
                    grouped(self.failed_connections),
                    grouped(self.taken_down_connections),
                    self.outage.backend,
                    grouped(self.moved_connections)
                ),
            ),
            ("unexplained", good, grouped(self.unexplained_failures)),
            (
                "packets",
                Tone::Plain,
                format!(
                    "{} forwarded by XDP, {} dropped; answers go straight back to the client",
                    grouped(self.packets),
                    grouped(self.dropped_packets)
                ),
            ),
        ];
        let seconds = |time: Option<f64>| time.map_or("never".to_owned(), |time| format!("{time:.1} s"));
        let outage = &self.outage;
        facts.push((
            "outage",
            Tone::Plain,
            format!(
                "{}: noticed after {}, got its last packet after {}, back {} after its start",
                outage.backend,
                seconds(outage.noticed_after_seconds),
                seconds(outage.traffic_for_seconds),
                seconds(outage.back_after_seconds)
            ),
        ));
        facts
    }

    fn backend_table(&self) -> Vec<Line> {
        let columns = [
            ("BACKEND", Align::Left),
            ("SITE", Align::Left),
            ("WEIGHT", Align::Right),
            ("RING", Align::Right),
            ("OBSERVED", Align::Right),
            ("CONNECTIONS", Align::Right),
            ("PACKETS", Align::Right),
            ("AT THE END", Align::Left),
        ];
        let plain = |text: String| Line::new(Tone::Plain, text);
        let row = |backend: &BackendSummary| {
            let end = if backend.healthy { (Tone::Good, "healthy") } else { (Tone::Bad, "unhealthy") };
            vec![
                Line::new(Tone::Bold, backend.name),
                plain(backend.site.to_owned()),
                plain(backend.weight.to_string()),
                plain(percent(backend.share)),
                plain(percent(backend.observed_share)),
                plain(grouped(backend.connections)),
                plain(grouped(backend.packets)),
                Line::new(end.0, end.1),
            ]
        };
        let mut lines = table(&columns, self.backends.iter().map(row).collect());
        lines.push(Line::new(Tone::Dim, "OBSERVED counts connections that were opened while all were up."));
        lines
    }
}

/// What to try after the demo.
const HINTS: &[(&str, &str)] = &[
    ("cargo xtask demo --seconds 60 -o json", "longer, for a program to read"),
    ("cargo xtask test", "all tests that need no tools"),
    ("target/debug/wattline doctor", "is this machine ready for XDP?"),
    ("target/debug/wattline config validate -f FILE", "check one of examples/*.toml"),
    ("target/debug/wattline --help", "all commands"),
];

fn fact(name: &str, tone: Tone, value: &str, width: usize) -> Vec<Line> {
    const INDENT: usize = 13;
    let values = wrap(value, width.saturating_sub(INDENT).max(30));
    let line = |(number, value)| {
        let name = if number == 0 { name } else { "" };
        Line::new(Tone::Dim, format!("{name:<INDENT$}")).and(tone, value)
    };
    values.into_iter().enumerate().map(line).collect()
}

/// The backends' rows, from what was counted by member.
pub(super) fn backends(
    ring_shares: &[f64],
    observed: &[f64],
    connections: &[u64],
    packets: &[u64],
    healthy: &[bool],
) -> Vec<BackendSummary> {
    (0..MEMBERS.len())
        .map(|member| BackendSummary {
            name: MEMBERS[member].name,
            site: MEMBERS[member].site,
            weight: MEMBERS[member].weight,
            share: rounded(ring_shares[member]),
            observed_share: rounded(observed[member]),
            healthy: healthy[member],
            connections: connections[member],
            packets: packets[member],
        })
        .collect()
}

/// To as many digits as mean something.
fn rounded(share: f64) -> f64 {
    (share * 10_000.0).round() / 10_000.0
}

/// The services' rows, from what was counted by service.
pub(super) fn services(connections: &[u64], packets: &[u64]) -> Vec<ServiceSummary> {
    let row = |(at, service): (usize, &cast::Service)| ServiceSummary {
        name: service.name,
        address: service.target.to_string(),
        mode: service.mode,
        connections: connections[at],
        packets: packets[at],
    };
    SERVICES.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        let outage = OutageSummary {
            backend: "oslo-1",
            noticed_after_seconds: Some(1.4),
            traffic_for_seconds: Some(1.5),
            back_after_seconds: Some(0.9),
        };
        let members = MEMBERS.len();
        Summary {
            connections: 2400,
            failed_connections: 40,
            taken_down_connections: 38,
            moved_connections: 2,
            packets: 20_000,
            services: services(&[1200, 1200], &[10_000, 10_000]),
            backends: backends(
                &vec![0.25; members],
                &vec![0.25; members],
                &vec![400; members],
                &vec![3000; members],
                &vec![true; members],
            ),
            ..Summary::new(outage)
        }
    }

    #[test]
    fn only_a_demo_without_surprises_is_good() {
        assert_eq!(summary().complaints(), Vec::<String>::new());
        let mut ill = summary();
        ill.backends[2].healthy = false;
        assert_eq!(ill.complaints(), ["berlin-3 is not healthy at the end"]);
        let surprise = Summary { unexplained_failures: 1, ..summary() };
        assert_eq!(surprise.complaints(), ["1 connection failed without an explanation"]);
        let mut unnoticed = summary();
        unnoticed.outage.noticed_after_seconds = None;
        assert_eq!(unnoticed.complaints().len(), 1);
        assert_eq!(Summary { connections: 0, ..summary() }.complaints(), ["there was no traffic"]);
    }

    #[test]
    fn the_json_has_what_is_promised() {
        let json = serde_json::to_value(summary()).unwrap();
        for key in [
            "schema_version",
            "connections",
            "failed_connections",
            "moved_connections",
            "unexplained_failures",
            "packets",
            "seconds",
        ] {
            assert!(json[key].is_number(), "{key}: {json}");
        }
        let backends = json["backends"].as_array().unwrap();
        assert_eq!(backends.len(), 6);
        for key in ["name", "site", "share", "weight", "healthy", "packets"] {
            assert!(backends.iter().all(|backend| !backend[key].is_null()), "{key}: {json}");
        }
    }

    #[test]
    fn the_page_fits() {
        let event = Event { at: std::time::Duration::ZERO, text: "something happened ".repeat(8) };
        for line in summary().page(&[event], 80) {
            assert!(line.width() <= 80, "{}", line.render(false));
        }
    }
}
