//! What differs between two configurations, field by field, for people and for programs.
//!
//! Services and backends are matched by name; their order means nothing. A flow hash key is never shown.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::model::{Backend, Config, Service};

/// All differences between two configurations, in the order of the new one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigDiff {
    /// Empty when both mean the same.
    pub changes: Vec<Difference>,
}

/// One thing that is new, gone or different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// Whether it is new, gone or different.
    pub op: Op,
    /// What kind of thing it is.
    pub kind: Kind,
    /// `SERVICE`, `SERVICE/BACKEND`, or empty for a section of the node.
    pub name: String,
    /// Its fields: all of a new or gone thing, the differing ones of a changed one.
    pub fields: Vec<FieldChange>,
}

/// What happened to a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Only in the new configuration.
    Added,
    /// Only in the old configuration.
    Removed,
    /// In both, with different fields.
    Changed,
}

impl Op {
    /// The sign that starts its line.
    pub const fn sign(self) -> char {
        match self {
            Self::Added => '+',
            Self::Removed => '-',
            Self::Changed => '~',
        }
    }
}

/// What kind of thing differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The `[node]` section.
    Node,
    /// The `[limits]` section.
    Limits,
    /// The `[health]` section.
    Health,
    /// A service.
    Service,
    /// A backend of a service.
    Backend,
}

impl Kind {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Limits => "limits",
            Self::Health => "health",
            Self::Service => "service",
            Self::Backend => "backend",
        }
    }
}

/// One field before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldChange {
    /// Name as in the file; fields of a health table are `health.NAME`.
    pub field: String,
    /// Value before; absent if it was not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// Value after; absent if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
}

impl ConfigDiff {
    /// True when both configurations mean the same.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How `old` becomes `new`.
    pub fn between(old: &Config, new: &Config) -> Self {
        let mut changes = Vec::new();
        section(Kind::Node, &old.node, &new.node, &mut changes);
        section(Kind::Limits, &old.limits, &new.limits, &mut changes);
        section(Kind::Health, &old.health, &new.health, &mut changes);
        let before: HashMap<&str, &Service> = by_name(&old.services, |service| &service.name);
        let after: HashMap<&str, &Service> = by_name(&new.services, |service| &service.name);
        for service in old.services.iter().filter(|service| !after.contains_key(service.name.as_str())) {
            gone(service, &mut changes);
        }
        for service in &new.services {
            let old = before.get(service.name.as_str()).copied();
            let op = if old.is_some() { Op::Changed } else { Op::Added };
            push(op, Kind::Service, service.name.clone(), old, Some(service), &mut changes);
            let old = old.map_or(&[][..], |old| &old.backends);
            backends(&service.name, old, &service.backends, &mut changes);
        }
        Self { changes }
    }
}

fn section<T: Serialize>(kind: Kind, old: &T, new: &T, changes: &mut Vec<Difference>) {
    push(Op::Changed, kind, String::new(), Some(old), Some(new), changes);
}

fn gone(service: &Service, changes: &mut Vec<Difference>) {
    push(Op::Removed, Kind::Service, service.name.clone(), Some(service), None, changes);
    backends(&service.name, &service.backends, &[], changes);
}

fn backends(service: &str, old: &[Backend], new: &[Backend], changes: &mut Vec<Difference>) {
    let before = by_name(old, |backend| &backend.name);
    let after = by_name(new, |backend| &backend.name);
    let full = |backend: &Backend| format!("{service}/{}", backend.name);
    for backend in old.iter().filter(|backend| !after.contains_key(backend.name.as_str())) {
        push(Op::Removed, Kind::Backend, full(backend), Some(backend), None, changes);
    }
    for backend in new {
        match before.get(backend.name.as_str()).copied() {
            None => push(Op::Added, Kind::Backend, full(backend), None, Some(backend), changes),
            // Most backends are the same; comparing them first spares two trees of values each.
            Some(old) if old == backend => {}
            Some(old) => push(Op::Changed, Kind::Backend, full(backend), Some(old), Some(backend), changes),
        }
    }
}

fn by_name<'a, T>(items: &'a [T], name: impl Fn(&'a T) -> &'a String) -> HashMap<&'a str, &'a T> {
    items.iter().map(|item| (name(item).as_str(), item)).collect()
}

/// Adds a difference, unless it is a change of nothing.
fn push<T: Serialize>(
    op: Op,
    kind: Kind,
    name: String,
    old: Option<&T>,
    new: Option<&T>,
    changes: &mut Vec<Difference>,
) {
    let before = old.map(flatten).unwrap_or_default();
    let after = new.map(flatten).unwrap_or_default();
    let mut fields = Vec::new();
    for (field, old) in &before {
        let new = after.get(field);
        if new != Some(old) {
            fields.push(FieldChange {
                field: field.clone(),
                old: Some(shown(field, old)),
                new: new.map(|new| shown(field, new)),
            });
        }
    }
    for (field, new) in after.iter().filter(|(field, _)| !before.contains_key(*field)) {
        fields.push(FieldChange { field: field.clone(), old: None, new: Some(shown(field, new)) });
    }
    // The name is in the title already.
    fields.retain(|change| change.field != "name");
    fields.sort_by(|a, b| a.field.cmp(&b.field));
    if op != Op::Changed || !fields.is_empty() {
        changes.push(Difference { op, kind, name, fields });
    }
}

/// The fields of a thing as values; nested tables get dotted names, and lists of backends are left out.
fn flatten<T: Serialize>(item: &T) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    if let Ok(Value::Object(fields)) = serde_json::to_value(item) {
        for (field, value) in fields {
            match value {
                Value::Object(inner) => {
                    flat.extend(inner.into_iter().map(|(name, value)| (format!("{field}.{name}"), value)));
                }
                _ if field == "backend" => {}
                value => {
                    flat.insert(field, value);
                }
            }
        }
    }
    flat
}

fn shown(field: &str, value: &Value) -> String {
    match value {
        // It is a secret; that it differs is enough.
        Value::String(key) if field == "flow_hash_key" => {
            format!("{}... (hidden)", key.chars().take(4).collect::<String>())
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl fmt::Display for ConfigDiff {
    /// One line for each thing, aligned: sign, kind, name, fields.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.changes.iter().map(|change| change.kind.as_str().len()).max().unwrap_or(0);
        let name = self.changes.iter().map(|change| change.name.len()).max().unwrap_or(0);
        for change in &self.changes {
            let fields: Vec<String> = change
                .fields
                .iter()
                .map(|field| match (&field.old, &field.new) {
                    (Some(old), Some(new)) => format!("{} {old} -> {new}", field.field),
                    (Some(old), None) if change.op == Op::Changed => {
                        format!("{} {old} -> (not set)", field.field)
                    }
                    (None, Some(new)) if change.op == Op::Changed => {
                        format!("{} (not set) -> {new}", field.field)
                    }
                    (Some(value), None) | (None, Some(value)) => format!("{} {value}", field.field),
                    (None, None) => field.field.clone(),
                })
                .collect();
            let line = format!(
                "{} {:kind$}  {:name$}  {}",
                change.op.sign(),
                change.kind.as_str(),
                change.name,
                fields.join(", ")
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
