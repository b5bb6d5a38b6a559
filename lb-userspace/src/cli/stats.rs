//! `wattline stats`: packet counters, as totals or per second.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;

use super::context::Context;
use super::exit::{Code, Failure};
use super::output::{Column, Page};
use crate::api::types::{StatsView, Verdict};

#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Per second, measured over one second or the interval of --watch
    #[arg(long)]
    rate: bool,
    /// Only packets that were not forwarded, by reason
    #[arg(long)]
    drops: bool,
}

pub(super) fn run(context: &Context, args: &StatsArgs) -> Result<Code, Failure> {
    let read = || context.get::<StatsView>("/v1/stats");
    if !args.rate {
        return context.watched(|| context.print(&read()?, |stats, page| show(stats, args.drops, "", page)));
    }
    let interval = context.watch_interval().unwrap_or(Duration::from_secs(1));
    let mut before = read()?;
    loop {
        std::thread::sleep(interval);
        let now = read()?;
        let rate = per_second(&before, &now);
        context.clear_screen()?;
        context.print(&rate, |stats, page| show(stats, args.drops, "/S", page))?;
        if context.watch_interval().is_none() {
            return Ok(Code::Ok);
        }
        before = now;
    }
}

/// The growth per second between two readings. A counter that fell (the maps were made anew) counts from zero.
fn per_second(before: &StatsView, now: &StatsView) -> StatsView {
    let elapsed = (now.time_ms.saturating_sub(before.time_ms)).max(1);
    let rate = |before: u64, now: u64| {
        let grown = if now >= before { now - before } else { now };
        u64::try_from(u128::from(grown) * 1000 / u128::from(elapsed)).unwrap_or(u64::MAX)
    };
    let mut rates = now.clone();
    let (was, is) = (&before.totals, &mut rates.totals);
    is.received_packets = rate(was.received_packets, is.received_packets);
    is.forwarded_packets = rate(was.forwarded_packets, is.forwarded_packets);
    is.forwarded_bytes = rate(was.forwarded_bytes, is.forwarded_bytes);
    is.passed_packets = rate(was.passed_packets, is.passed_packets);
    is.dropped_packets = rate(was.dropped_packets, is.dropped_packets);
    let was: HashMap<&str, u64> =
        before.reasons.iter().map(|count| (count.reason.as_str(), count.packets)).collect();
    for count in &mut rates.reasons {
        count.packets = rate(was.get(count.reason.as_str()).copied().unwrap_or(0), count.packets);
    }
    let was: HashMap<&str, _> = before.services.iter().map(|count| (count.service.as_str(), count)).collect();
    for count in &mut rates.services {
        let was = was.get(count.service.as_str());
        count.packets = rate(was.map_or(0, |was| was.packets), count.packets);
        count.bytes = rate(was.map_or(0, |was| was.bytes), count.bytes);
        count.dropped_packets = rate(was.map_or(0, |was| was.dropped_packets), count.dropped_packets);
    }
    let was: HashMap<(&str, &str), _> = before
        .backends
        .iter()
        .map(|count| ((count.service.as_str(), count.backend.as_str()), count))
        .collect();
    for count in &mut rates.backends {
        let was = was.get(&(count.service.as_str(), count.backend.as_str()));
        count.packets = rate(was.map_or(0, |was| was.packets), count.packets);
        count.bytes = rate(was.map_or(0, |was| was.bytes), count.bytes);
    }
    rates
}

fn show(stats: &StatsView, drops: bool, unit: &str, page: &mut Page) {
    if !drops {
        let totals = &stats.totals;
        let unit = unit.to_lowercase();
        page.pairs(&[
            ("received", format!("{} packets{unit}", totals.received_packets)),
            (
                "forwarded",
                format!("{} packets{unit}, {} bytes{unit}", totals.forwarded_packets, totals.forwarded_bytes),
            ),
            ("passed", format!("{} packets{unit} to the kernel", totals.passed_packets)),
            ("dropped", format!("{} packets{unit}", totals.dropped_packets)),
        ]);
        page.line("");
        let columns = [
            Column::text("SERVICE"),
            Column::text("BACKEND"),
            Column::number(if unit.is_empty() { "PACKETS" } else { "PACKETS/S" }),
            Column::number(if unit.is_empty() { "BYTES" } else { "BYTES/S" }),
            Column::number(if unit.is_empty() { "DROPPED" } else { "DROPPED/S" }),
        ];
        let mut rows = Vec::new();
        for service in &stats.services {
            rows.push(vec![
                service.service.clone(),
                "(all)".to_owned(),
                service.packets.to_string(),
                service.bytes.to_string(),
                service.dropped_packets.to_string(),
            ]);
            let own = stats.backends.iter().filter(|backend| backend.service == service.service);
            rows.extend(own.map(|backend| {
                let (packets, bytes) = (backend.packets.to_string(), backend.bytes.to_string());
                vec![backend.service.clone(), backend.backend.clone(), packets, bytes, String::new()]
            }));
        }
        page.table(&columns, rows, "no services");
        page.line("");
    }
    let columns = [
        Column::text("REASON"),
        Column::state("VERDICT"),
        Column::number(if unit.is_empty() { "PACKETS" } else { "PACKETS/S" }),
        Column::text("MEANING"),
    ];
    let wide = page.wide();
    let rows = stats
        .reasons
        .iter()
        .filter(|count| (wide || count.packets > 0) && (!drops || count.verdict == Verdict::Drop))
        .map(|count| {
            let verdict = count.verdict.as_str().to_owned();
            vec![count.reason.clone(), verdict, count.packets.to_string(), count.description.clone()]
        })
        .collect();
    page.table(
        &columns,
        rows,
        if drops { "no packets were dropped" } else { "no packet was passed to the kernel or dropped" },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{BackendCount, ReasonCount, SchemaVersion, ServiceCount, Totals};

    fn stats(time_ms: u64, packets: u64) -> StatsView {
        StatsView {
            schema_version: SchemaVersion,
            time_ms,
            totals: Totals {
                received_packets: packets * 2,
                forwarded_packets: packets,
                forwarded_bytes: packets * 100,
                passed_packets: 0,
                dropped_packets: packets,
            },
            reasons: vec![ReasonCount {
                reason: "no_backend".into(),
                verdict: Verdict::Drop,
                packets,
                description: String::new(),
            }],
            services: vec![ServiceCount {
                service: "web".into(),
                packets,
                bytes: packets * 100,
                dropped_packets: packets,
            }],
            backends: vec![BackendCount {
                service: "web".into(),
                backend: "web-1".into(),
                packets,
                bytes: packets * 100,
            }],
        }
    }

    #[test]
    fn rates_are_growth_over_time() {
        let rates = per_second(&stats(1000, 50), &stats(3000, 250));
        let mut expected = stats(3000, 100);
        assert_eq!(rates, expected);
        expected = stats(2000, 7);
        assert_eq!(per_second(&stats(1000, 50), &stats(2000, 7)), expected, "counters began anew");
        assert_eq!(per_second(&stats(1000, 5), &stats(1000, 5)).totals.received_packets, 0);
    }
}
