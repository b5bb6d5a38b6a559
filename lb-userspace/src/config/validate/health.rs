//! Checks of health check settings: that numbers are sane and that every check has something to ask.

use std::ops::Range;

use super::super::health::{HealthKind, HealthSettings, kind};
use super::super::model::Service;
use super::{Findings, Locus};

/// Milliseconds between checks; both ends included.
pub(in super::super) const INTERVAL_MS: Range<i128> = 10..86_400_000;
/// Milliseconds for one check; both ends included.
pub(in super::super) const TIMEOUT_MS: Range<i128> = 1..300_000;
/// Results in a row; both ends included.
pub(in super::super) const COUNT: Range<i128> = 1..1000;
/// Bytes of a body; both ends included.
pub(in super::super) const BODY_BYTES: Range<i128> = 1..16_777_216;

/// Longest path, host or body that is asked for, in bytes.
const LONGEST_TEXT: usize = 4096;

/// Checks one layer of settings by itself.
pub(super) fn check_settings(
    settings: &HealthSettings,
    context: &str,
    at: impl Fn(&'static str) -> Locus,
    findings: &mut Findings,
) {
    let numbers = [
        ("interval_ms", settings.interval_ms, INTERVAL_MS),
        ("timeout_ms", settings.timeout_ms, TIMEOUT_MS),
        ("rise", settings.rise, COUNT),
        ("fall", settings.fall, COUNT),
        ("max_body_bytes", settings.max_body_bytes, BODY_BYTES),
        ("port", settings.port.map(u32::from), 1..65_535),
    ];
    for (field, value, range) in numbers {
        if let Some(value) = value
            && !(range.start..=range.end).contains(&i128::from(value))
        {
            findings.add(
                at(field),
                format!("{context}{field} {value} is not between {} and {}", range.start, range.end),
                format!("choose a number from {} to {}", range.start, range.end),
            );
        }
    }
    if let Some(status) = &settings.status
        && (status.is_empty() || status.iter().any(|code| !(100..=599).contains(code)))
    {
        findings.add(
            at("status"),
            format!("{context}status must list codes from 100 to 599"),
            "write for instance status = [200, 204]",
        );
    }
    if let Some(path) = &settings.path
        && !(path.starts_with('/') && is_header_safe(path) && !path.contains('#'))
    {
        findings.add(
            at("path"),
            format!("{context}path {path:?} is not the path of a request"),
            "start it with / and write spaces and other special characters as %20 and so on",
        );
    }
    if let Some(host) = &settings.host
        && !is_header_safe(host)
    {
        findings.add(
            at("host"),
            format!("{context}host {host:?} is not the name of a host"),
            "write for instance host = \"www.example.org\"",
        );
    }
    if let Some(body) = &settings.body
        && (body.is_empty() || body.len() > LONGEST_TEXT)
    {
        findings.add(
            at("body"),
            format!("{context}body must be 1 to {LONGEST_TEXT} bytes long"),
            "leave body out to accept every body",
        );
    }
}

/// Checks a service's own settings and what they become together with the defaults.
pub(super) fn check_service(
    service: &Service,
    defaults: &HealthSettings,
    index: usize,
    context: &str,
    findings: &mut Findings,
) {
    let own = &service.health;
    let at = |field| Locus::ServiceHealth(index, field);
    check_settings(own, &format!("{context}health: "), at, findings);
    let kind = kind(service, defaults);
    if own.kind.is_none() && kind == HealthKind::None && !own.is_empty() && defaults.kind != Some(kind) {
        findings.add(
            at(""),
            format!("{context}health: a udp service is not checked unless its health says a type"),
            "add type = \"tcp\" or type = \"http\" and a port that answers, or remove health",
        );
    }
    if kind != HealthKind::None && own.port.or(defaults.port).or(service.port.number()).is_none() {
        findings.add(
            at("port"),
            format!("{context}health: a service on any port needs a port to check"),
            "write health = { port = 80 }, or health = { type = \"none\" } to go unchecked",
        );
    }
    let http_only = [
        ("path", own.path.is_some()),
        ("status", own.status.is_some()),
        ("body", own.body.is_some()),
        ("host", own.host.is_some()),
    ];
    for (field, set) in http_only {
        if set && kind != HealthKind::Http {
            findings.add(
                at(field),
                format!("{context}health: {field} means nothing to a check of type {kind}"),
                "add type = \"http\", or remove it",
            );
        }
    }
    let check = service.health(defaults);
    if check.timeout > check.interval {
        findings.add(
            at(if own.timeout_ms.is_some() { "timeout_ms" } else { "interval_ms" }),
            format!(
                "{context}health: timeout_ms {} is above interval_ms {}",
                check.timeout.as_millis(),
                check.interval.as_millis()
            ),
            "make the timeout as short as the interval or shorter",
        );
    }
    let (body, most) = match check.probe {
        super::super::health::HealthProbe::Http { body, max_body_bytes, .. } => {
            (body.map_or(0, |body| body.len()), max_body_bytes)
        }
        _ => (0, u32::MAX),
    };
    if body > most as usize {
        findings.add(
            at("body"),
            format!("{context}health: body is longer than max_body_bytes {most}, so it can never be found"),
            "raise max_body_bytes, or look for a shorter text",
        );
    }
}

/// True for text that fits a request line or header: visible ASCII, not empty, not endless.
fn is_header_safe(text: &str) -> bool {
    !text.is_empty() && text.len() <= LONGEST_TEXT && text.bytes().all(|byte| byte.is_ascii_graphic())
}
