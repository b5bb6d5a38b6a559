//! The live picture: a full screen for terminals, one line for everything else. Pure.

use std::time::Duration;

use lb_userspace::api::types::HealthState;

use super::cast::{MEMBERS, SERVICES};
use super::numbers::{count, filled, grouped, percent, rate};
use super::paint::{Align, Line, Tone, bar, table, wrap};
use super::verdict::Tally;

/// A share that fills a bar.
const FULL_BAR: f64 = 0.40;
/// Columns of a screen's backend table without the bar.
const WITHOUT_BAR: usize = 68;
/// A longer bar says no more.
const LONGEST_BAR: usize = 44;

/// All that a picture shows.
#[derive(Clone, Debug)]
pub(super) struct Picture {
    /// Since traffic began.
    pub elapsed: Duration,
    /// How long it will flow.
    pub total: Duration,
    /// What is going on.
    pub headline: String,
    /// By service.
    pub services: Vec<ServiceRow>,
    /// By member.
    pub backends: Vec<BackendRow>,
    /// Packets per second.
    pub packets_per_second: f64,
    /// What happened so far.
    pub events: Vec<Event>,
}

/// What the picture says of a service.
#[derive(Clone, Debug)]
pub(super) struct ServiceRow {
    /// Backends in its ring.
    pub usable: usize,
    /// Packets per second.
    pub packets_per_second: f64,
    /// Its connections.
    pub tally: Tally,
}

/// What the picture says of a backend.
#[derive(Clone, Debug)]
pub(super) struct BackendRow {
    /// The worst that the checks of any service say.
    pub health: HealthState,
    /// Its part of the rings.
    pub ring_share: f64,
    /// Its part of the connections that were answered lately.
    pub observed_share: f64,
    /// Packets per second.
    pub packets_per_second: f64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// When, since traffic began.
    pub at: Duration,
    /// What.
    pub text: String,
}

impl Event {
    /// The event as lines of at most `width` characters.
    pub(super) fn lines(&self, width: usize) -> Vec<Line> {
        let at = format!("{:>6.1} s  ", self.at.as_secs_f64());
        let indent = " ".repeat(at.len());
        let text = wrap(&self.text, width.saturating_sub(at.len()).max(20));
        let line = |(number, text)| {
            Line::new(Tone::Dim, if number == 0 { at.clone() } else { indent.clone() }).and(Tone::Plain, text)
        };
        text.into_iter().enumerate().map(line).collect()
    }
}

impl Picture {
    fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        for ServiceRow { tally, .. } in &self.services {
            sum.tried += tally.tried;
            sum.taken_down += tally.taken_down;
            sum.moved += tally.moved;
            sum.unexplained += tally.unexplained;
        }
        sum
    }

    /// A screen of at most so many lines.
    pub(super) fn screen(&self, width: usize, height: usize) -> Vec<Line> {
        let mut lines = vec![self.title(width), self.subtitle(), Line::default()];
        lines.extend(self.service_table());
        lines.push(Line::default());
        lines.extend(self.backend_table(width));
        lines.push(Line::default());
        lines.push(Line::new(Tone::Bold, "now  ").and(Tone::Warn, self.headline.as_str()));
        lines.push(Line::default());
        let events: Vec<Line> = self.events.iter().flat_map(|event| event.lines(width)).collect();
        // The latest are of most interest.
        let room = height.saturating_sub(lines.len());
        lines.extend(events.iter().skip(events.len().saturating_sub(room)).cloned());
        lines.truncate(height);
        lines.into_iter().map(|line| line.fit(width)).collect()
    }

    fn title(&self, width: usize) -> Line {
        let clock = format!("{:>5.1} of {} s", self.elapsed.as_secs_f64(), self.total.as_secs());
        let title = "Wattline demo";
        let rest = width.saturating_sub(title.len() + clock.len() + 4).min(60);
        let done = filled(self.elapsed.as_secs_f64() / self.total.as_secs_f64(), rest);
        Line::new(Tone::Bold, title)
            .and(Tone::Good, format!("  {}", "━".repeat(done)))
            .and(Tone::Dim, "━".repeat(rest - done))
            .and(Tone::Plain, format!("  {clock}"))
    }

    fn subtitle(&self) -> Line {
        let packets = rate(self.packets_per_second);
        Line::new(Tone::Dim, "XDP, native mode, on one load balancer: ")
            .and(Tone::Plain, format!("{packets} packets/s"))
            .and(Tone::Dim, "; answers bypass it")
    }

    fn service_table(&self) -> Vec<Line> {
        let columns = [
            ("SERVICE", Align::Left),
            ("ADDRESS", Align::Left),
            ("MODE", Align::Left),
            ("BACKENDS", Align::Right),
            ("PACKETS/S", Align::Right),
            ("CONNECTIONS", Align::Right),
            ("FAILED", Align::Right),
        ];
        let plain = |text: String| Line::new(Tone::Plain, text);
        let row = |(at, service): (usize, &ServiceRow)| {
            let tone = if service.usable == MEMBERS.len() { Tone::Good } else { Tone::Warn };
            vec![
                Line::new(Tone::Bold, SERVICES[at].name),
                plain(SERVICES[at].target.to_string()),
                plain(SERVICES[at].mode.to_owned()),
                Line::new(tone, format!("{}/{}", service.usable, MEMBERS.len())),
                plain(rate(service.packets_per_second)),
                plain(grouped(service.tally.tried)),
                failed_cell(&service.tally),
            ]
        };
        table(&columns, self.services.iter().enumerate().map(row).collect())
    }

    fn backend_table(&self, width: usize) -> Vec<Line> {
        let columns = [
            ("BACKEND", Align::Left),
            ("SITE", Align::Left),
            ("WEIGHT", Align::Right),
            ("RING", Align::Right),
            ("OBSERVED", Align::Right),
            ("", Align::Left),
            ("PACKETS/S", Align::Right),
            ("HEALTH", Align::Left),
        ];
        let bar_width = width.saturating_sub(WITHOUT_BAR).min(LONGEST_BAR);
        let plain = |text: String| Line::new(Tone::Plain, text);
        let row = |(at, backend): (usize, &BackendRow)| {
            vec![
                Line::new(Tone::Bold, MEMBERS[at].name),
                plain(MEMBERS[at].site.to_owned()),
                plain(MEMBERS[at].weight.to_string()),
                plain(percent(backend.ring_share)),
                plain(percent(backend.observed_share)),
                bar(backend.observed_share, backend.ring_share, FULL_BAR, bar_width),
                plain(rate(backend.packets_per_second)),
                Line::new(health_tone(backend.health), backend.health.as_str()),
            ]
        };
        table(&columns, self.backends.iter().enumerate().map(row).collect())
    }

    /// Everything in one line, for where there is no terminal.
    pub(super) fn line(&self) -> Line {
        let tally = self.tally();
        let healthy = self.backends.iter().filter(|backend| backend.health == HealthState::Healthy).count();
        let shares: Vec<String> = self
            .backends
            .iter()
            .zip(&MEMBERS)
            .map(|(backend, member)| format!("{} {:.0} %", member.name, backend.observed_share * 100.0))
            .collect();
        Line::new(Tone::Plain, format!("{:>6.1} s  ", self.elapsed.as_secs_f64())).and(
            Tone::Dim,
            format!(
                "{}, {} failed; {} packets/s; {healthy} of {} healthy; {}",
                count(tally.tried, "connection"),
                grouped(tally.failed()),
                rate(self.packets_per_second),
                MEMBERS.len(),
                shares.join(", ")
            ),
        )
    }
}

fn failed_cell(tally: &Tally) -> Line {
    let tone = match (tally.failed(), tally.unexplained) {
        (0, _) => Tone::Plain,
        (_, 0) => Tone::Warn,
        _ => Tone::Bad,
    };
    Line::new(tone, grouped(tally.failed()))
}

/// The colour of a health state.
pub(super) const fn health_tone(health: HealthState) -> Tone {
    match health {
        HealthState::Healthy => Tone::Good,
        HealthState::Unhealthy => Tone::Bad,
        HealthState::Unknown | HealthState::Disabled => Tone::Warn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let backend = |health| BackendRow {
            health,
            ring_share: 0.3,
            observed_share: 0.295,
            packets_per_second: 12_345.0,
        };
        let tally = Tally { tried: 123_456, taken_down: 1234, ..Tally::default() };
        let event =
            |second| Event { at: Duration::from_secs(second), text: format!("event {second} ").repeat(9) };
        Picture {
            elapsed: Duration::from_millis(12_340),
            total: Duration::from_secs(30),
            headline: "all is well".into(),
            services: vec![ServiceRow { usable: 5, packets_per_second: 99_999.0, tally }; 2],
            backends: vec![backend(HealthState::Unhealthy); 6],
            packets_per_second: 199_998.0,
            events: (0..20).map(event).collect(),
        }
    }

    #[test]
    fn a_screen_fits_the_terminal_and_shows_the_latest() {
        for (width, height) in [(80, 24), (120, 40), (40, 10), (1, 1)] {
            let lines = picture().screen(width, height);
            assert!(lines.len() <= height);
            assert!(lines.iter().all(|line| line.width() <= width), "{width} columns");
        }
        let lines: Vec<_> = picture().screen(80, 24).iter().map(|line| line.render(false)).collect();
        assert!(lines[0].contains("12.3 of 30 s"), "{lines:#?}");
        assert!(lines.iter().any(|line| line.ends_with("unhealthy")), "nothing is cut at 80: {lines:#?}");
        assert!(lines[23].contains("event 19"), "{lines:#?}");
    }

    #[test]
    fn a_line_says_the_same_shorter() {
        let line = picture().line().render(false);
        assert!(
            line.contains("246,912 connections, 2,468 failed; 199,998 packets/s; 0 of 6 healthy"),
            "{line}"
        );
        assert!(line.contains("oslo-1 30 %") || line.contains("oslo-1 29 %"), "{line}");
    }
}
