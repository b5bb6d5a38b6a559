//! From TOML text to a checked configuration.
//!
//! All problems of a text are found in one go: those of its grammar, or else those of its keys, types and values. A
//! text with a problem yields no configuration.

use std::net::IpAddr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::health::{HealthKind, HealthSettings};
use super::model::{
    Admin, AllDown, Backend, Config, DEFAULT_GUE_PORT, DEFAULT_WEIGHT, Limits, Mode, Node, Port, Protocol,
    Service, XdpMode,
};
use super::problem::{ConfigError, Problem};
use super::reader::{
    Fields, Places, Reader, Refusal, kind, list, number, parsed, quote, text as string, word,
};
use super::validate::{Locus, check};
use super::{MAX_BYTES, MAX_RING_SLOTS};

/// Grammar errors shown at most: one slip often makes many.
const SYNTAX_ERRORS: usize = 20;

/// Reads and checks a configuration; `origin` names the text in error messages.
pub fn parse(text: &str, origin: &str) -> Result<Config, ConfigError> {
    if text.len() as u64 > MAX_BYTES {
        return Err(ConfigError::unreadable(origin, &format!("longer than {MAX_BYTES} bytes")));
    }
    if let Some(offset) = text.find('\0') {
        return Err(at(text, origin, offset, "a NUL byte", "save the file as plain UTF-8 text"));
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader::default();
    if !errors.is_empty() {
        for error in errors.iter().take(SYNTAX_ERRORS) {
            let offset = error.span().map_or(0, |span| span.start);
            reader.refuse(offset, error.message().replace('\n', ", "), "see https://toml.io for the grammar");
        }
        return Err(ConfigError { problems: reader.into_problems(text, origin) });
    }
    let config = read_config(&mut reader, &document);
    for finding in check(&config) {
        let offset = reader.place(finding.locus);
        reader.refuse(offset, finding.message, finding.help);
    }
    if reader.found.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError { problems: reader.into_problems(text, origin) })
    }
}

/// The bytes as text, or where they stop being text.
pub(super) fn text<'a>(bytes: &'a [u8], origin: &str) -> Result<&'a str, ConfigError> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ConfigError::unreadable(origin, &format!("longer than {MAX_BYTES} bytes")));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let message = format!("byte {:#04x} is not UTF-8 text", bytes[error.valid_up_to()]);
        at(&good, origin, error.valid_up_to(), &message, "save the file as plain UTF-8 text")
    })
}

/// An error with one problem.
fn at(text: &str, origin: &str, offset: usize, message: &str, help: &str) -> ConfigError {
    let (line, column) = Places::new(text).at(offset);
    let problem = Problem {
        file: Some(origin.to_owned()),
        line: Some(line),
        column: Some(column),
        message: message.to_owned(),
        help: help.to_owned(),
    };
    ConfigError { problems: vec![problem] }
}

fn read_config(reader: &mut Reader, document: &Spanned<DeTable<'_>>) -> Config {
    let root = Fields {
        table: document.get_ref(),
        context: String::new(),
        offset: 0,
        locus: Box::new(|_| Locus::Root),
    };
    reader.refuse_unknown(&root, &["node", "limits", "health", "service"]);
    let node = reader.table(&root, "node").map(|(table, offset)| read_node(reader, table, offset));
    let limits = reader.table(&root, "limits").map(|(table, offset)| read_limits(reader, table, offset));
    let health = reader.table(&root, "health").map(|(table, offset)| {
        reader.note(Locus::Health(""), offset);
        let fields = Fields { table, context: "health: ".to_owned(), offset, locus: Box::new(Locus::Health) };
        read_health(reader, &fields)
    });
    let mut services = Vec::new();
    for (table, offset) in reader.tables(&root, "service", "[[service]]") {
        let index = services.len();
        services.extend(read_service(reader, table, offset, index));
    }
    Config {
        node: node.unwrap_or_default(),
        limits: limits.unwrap_or_default(),
        health: health.unwrap_or_default(),
        services,
    }
}

fn read_node(reader: &mut Reader, table: &DeTable<'_>, offset: usize) -> Node {
    let fields = Fields { table, context: "node: ".to_owned(), offset, locus: Box::new(Locus::Node) };
    let known = ["interfaces", "xdp_mode", "flow_hash_key", "source_v4", "source_v6", "gue_port"];
    reader.refuse_unknown(&fields, &known);
    Node {
        interfaces: reader.optional(&fields, "interfaces", |value| list(value, string)).unwrap_or_default(),
        xdp_mode: reader
            .optional(&fields, "xdp_mode", |value| word(value, XdpMode::WORDS))
            .unwrap_or_default(),
        flow_hash_key: reader.optional(&fields, "flow_hash_key", |value| {
            // The text stays out of the message: it is meant to be a secret.
            string(value)?.parse().map_err(|_| {
                let help = "make one with: head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'";
                ("is not 32 hexadecimal digits".to_owned(), help.to_owned())
            })
        }),
        source_v4: reader.optional(&fields, "source_v4", |value| {
            parsed(value, "an IPv4 prefix", "write it like \"10.200.0.0/16\"")
        }),
        source_v6: reader.optional(&fields, "source_v6", |value| {
            parsed(value, "an IPv6 prefix", "write it like \"fd00:200::/64\"")
        }),
        gue_port: reader
            .optional(&fields, "gue_port", |value| number(value, &(1..65_535)))
            .unwrap_or(DEFAULT_GUE_PORT),
    }
}

fn read_limits(reader: &mut Reader, table: &DeTable<'_>, offset: usize) -> Limits {
    let fields = Fields { table, context: "limits: ".to_owned(), offset, locus: Box::new(Locus::Limits) };
    reader.refuse_unknown(&fields, &["services", "backends", "ring_slots"]);
    let default = Limits::default();
    let mut size = |key, most| {
        let range = 1..i128::from(most);
        reader.optional(&fields, key, |value| number::<u32>(value, &range))
    };
    Limits {
        services: size("services", super::validate::MAX_SERVICES).unwrap_or(default.services),
        backends: size("backends", super::validate::MAX_BACKENDS).unwrap_or(default.backends),
        ring_slots: size("ring_slots", super::validate::MAX_TOTAL_SLOTS).unwrap_or(default.ring_slots),
    }
}

/// Reads one service; none if it lacks what makes it one (then the problems are noted).
fn read_service(reader: &mut Reader, table: &DeTable<'_>, offset: usize, index: usize) -> Option<Service> {
    let fields = Fields {
        table,
        context: format!("{}: ", label(table, "service")),
        offset,
        locus: Box::new(move |field| Locus::Service(index, field)),
    };
    reader.note(Locus::Service(index, ""), offset);
    let known =
        ["name", "address", "port", "protocol", "mode", "ring_slots", "all_down", "health", "backend"];
    reader.refuse_unknown(&fields, &known);
    let name = reader.required(&fields, "name", "\"web\"", string);
    let address = reader.required(&fields, "address", "\"192.0.2.10\"", address);
    let port = reader.required(&fields, "port", "80", port);
    let protocol = reader.required(&fields, "protocol", "\"tcp\"", |value| word(value, Protocol::WORDS));
    let mode = reader.optional(&fields, "mode", |value| word(value, Mode::WORDS));
    let ring_slots = reader
        .optional(&fields, "ring_slots", |value| number::<u32>(value, &(1..i128::from(MAX_RING_SLOTS))));
    let all_down = reader.optional(&fields, "all_down", |value| word(value, AllDown::WORDS));
    let health = reader.table(&fields, "health").map(|(table, offset)| {
        reader.note(Locus::ServiceHealth(index, ""), offset);
        let health = Fields {
            table,
            context: format!("{}health: ", fields.context),
            offset,
            locus: Box::new(move |field| Locus::ServiceHealth(index, field)),
        };
        read_health(reader, &health)
    });
    let mut backends = Vec::new();
    for (table, offset) in reader.tables(&fields, "backend", "[[service.backend]]") {
        let place = (index, backends.len());
        backends.extend(read_backend(reader, table, offset, &fields.context, place));
    }
    Some(Service {
        name: name?,
        address: address?,
        port: port?,
        protocol: protocol?,
        mode: mode.unwrap_or_default(),
        ring_slots,
        all_down: all_down.unwrap_or_default(),
        health: health.unwrap_or_default(),
        backends,
    })
}

fn read_backend(
    reader: &mut Reader,
    table: &DeTable<'_>,
    offset: usize,
    context: &str,
    (service, backend): (usize, usize),
) -> Option<Backend> {
    let fields = Fields {
        table,
        context: format!("{context}{}: ", label(table, "backend")),
        offset,
        locus: Box::new(move |field| Locus::Backend(service, backend, field)),
    };
    reader.note(Locus::Backend(service, backend, ""), offset);
    reader.refuse_unknown(&fields, &["name", "address", "weight", "admin", "site"]);
    let name = reader.required(&fields, "name", "\"web-1\"", string);
    let address = reader.required(&fields, "address", "\"10.0.0.11\"", address);
    let weight = reader.optional(&fields, "weight", |value| number(value, &(0..65_535)));
    let admin = reader.optional(&fields, "admin", |value| word(value, Admin::WORDS));
    let site = reader.optional(&fields, "site", string);
    Some(Backend {
        name: name?,
        address: address?,
        weight: weight.unwrap_or(DEFAULT_WEIGHT),
        admin: admin.unwrap_or_default(),
        site,
    })
}

fn read_health(reader: &mut Reader, fields: &Fields<'_, '_>) -> HealthSettings {
    use super::validate::health::{BODY_BYTES, COUNT, INTERVAL_MS, TIMEOUT_MS};
    let known = [
        "type",
        "path",
        "status",
        "body",
        "host",
        "port",
        "interval_ms",
        "timeout_ms",
        "rise",
        "fall",
        "max_body_bytes",
    ];
    reader.refuse_unknown(fields, &known);
    HealthSettings {
        kind: reader.optional(fields, "type", |value| word(value, HealthKind::WORDS)),
        path: reader.optional(fields, "path", string),
        status: reader.optional(fields, "status", |value| list(value, |item| number(item, &(100..599)))),
        body: reader.optional(fields, "body", string),
        host: reader.optional(fields, "host", string),
        port: reader.optional(fields, "port", |value| number(value, &(1..65_535))),
        interval_ms: reader.optional(fields, "interval_ms", |value| number(value, &INTERVAL_MS)),
        timeout_ms: reader.optional(fields, "timeout_ms", |value| number(value, &TIMEOUT_MS)),
        rise: reader.optional(fields, "rise", |value| number(value, &COUNT)),
        fall: reader.optional(fields, "fall", |value| number(value, &COUNT)),
        max_body_bytes: reader.optional(fields, "max_body_bytes", |value| number(value, &BODY_BYTES)),
    }
}

/// `service "web"`, or `service` while it has no readable name.
fn label(table: &DeTable<'_>, what: &str) -> String {
    match table.get("name").map(Spanned::get_ref) {
        Some(DeValue::String(name)) => format!("{what} {}", quote(name)),
        _ => what.to_owned(),
    }
}

fn address(value: &DeValue<'_>) -> Result<IpAddr, Refusal> {
    parsed(value, "an IP address", "write an IPv4 or IPv6 address without port, such as \"192.0.2.10\"")
}

fn port(value: &DeValue<'_>) -> Result<Port, Refusal> {
    match value {
        DeValue::Integer(_) => number(value, &(1..65_535)).map(Port::Number),
        DeValue::String(text) => text.parse().map_err(|_| {
            let help = "write a number from 1 to 65535 without quotes, or \"any\"";
            (format!("{} is not a port", quote(text)), help.to_owned())
        }),
        other => {
            let help = "write a number from 1 to 65535, or \"any\"";
            Err((format!("is {}, not a port", kind(other)), help.to_owned()))
        }
    }
}
