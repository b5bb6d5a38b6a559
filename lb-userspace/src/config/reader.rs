//! Takes typed values out of a TOML tree and notes every problem with its place, instead of stopping at the first.
//!
//! It knows types and places, not what the configuration means. It must never panic, whatever the tree holds.

use std::collections::HashMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;
use super::validate::Locus;

/// A problem with its place as a byte offset.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) offset: usize,
    pub(super) message: String,
    pub(super) help: String,
}

/// What went wrong with one value: message and cure.
pub(super) type Refusal = (String, String);

/// Collects problems and the places of values while a tree is read.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) found: Vec<Found>,
    places: HashMap<Locus, usize>,
}

/// A table that is being read.
pub(super) struct Fields<'t, 'i> {
    pub(super) table: &'t DeTable<'i>,
    /// Start of every message about this table, such as `service "web": `.
    pub(super) context: String,
    /// Where the table is.
    pub(super) offset: usize,
    /// Makes the locus of one of the table's fields.
    pub(super) locus: Box<dyn Fn(&'static str) -> Locus + 't>,
}

impl Reader {
    /// Notes a problem.
    pub(super) fn refuse(&mut self, offset: usize, message: String, help: impl Into<String>) {
        self.found.push(Found { offset, message, help: help.into() });
    }

    /// Where the value of `locus` stands in the text, or else the item that should hold it.
    pub(super) fn place(&self, locus: Locus) -> usize {
        self.places.get(&locus).or_else(|| self.places.get(&locus.item())).copied().unwrap_or(0)
    }

    /// Notes where an item stands.
    pub(super) fn note(&mut self, locus: Locus, offset: usize) {
        self.places.insert(locus, offset);
    }

    /// Notes every key of the table that is not among `known`.
    pub(super) fn refuse_unknown(&mut self, fields: &Fields<'_, '_>, known: &[&'static str]) {
        for key in fields.table.keys() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let help = match nearest(name, known) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                let message = format!("{}unknown key {}", fields.context, quote(name));
                self.refuse(key.span().start, message, help);
            }
        }
    }

    /// Reads an optional field; a refused value is noted and counts as absent.
    pub(super) fn optional<T>(
        &mut self,
        fields: &Fields<'_, '_>,
        key: &'static str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, Refusal>,
    ) -> Option<T> {
        let value = fields.table.get(key)?;
        self.note((fields.locus)(key), value.span().start);
        match read(value.get_ref()) {
            Ok(read) => Some(read),
            Err((message, help)) => {
                self.refuse(value.span().start, format!("{}{key} {message}", fields.context), help);
                None
            }
        }
    }

    /// Reads a field that must be there; its absence is noted at the table.
    pub(super) fn required<T>(
        &mut self,
        fields: &Fields<'_, '_>,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, Refusal>,
    ) -> Option<T> {
        if fields.table.get(key).is_none() {
            let message = format!("{}{key} is missing", fields.context);
            self.refuse(fields.offset, message, format!("add `{key} = {example}`"));
        }
        self.optional(fields, key, read)
    }

    /// The table under `key`, if there is one.
    pub(super) fn table<'t, 'i>(
        &mut self,
        parent: &Fields<'t, 'i>,
        key: &'static str,
    ) -> Option<(&'t DeTable<'i>, usize)> {
        let value = parent.table.get(key)?;
        if let DeValue::Table(table) = value.get_ref() {
            return Some((table, value.span().start));
        }
        let message = format!("{}{key} is {}, not a table", parent.context, kind(value.get_ref()));
        self.refuse(value.span().start, message, format!("write a section [{key}]"));
        None
    }

    /// The list of tables under `key`; empty if there is none.
    pub(super) fn tables<'t, 'i>(
        &mut self,
        parent: &Fields<'t, 'i>,
        key: &'static str,
        header: &str,
    ) -> Vec<(&'t DeTable<'i>, usize)> {
        let Some(value) = parent.table.get(key) else { return Vec::new() };
        let help = format!("write one {header} section for each");
        let DeValue::Array(list) = value.get_ref() else {
            let message =
                format!("{}{key} is {}, not a list of tables", parent.context, kind(value.get_ref()));
            self.refuse(value.span().start, message, help);
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(list.len());
        for item in list {
            match item.get_ref() {
                DeValue::Table(table) => tables.push((table, item.span().start)),
                other => {
                    let message = format!("{}{key} holds {}, not a table", parent.context, kind(other));
                    self.refuse(item.span().start, message, help.clone());
                }
            }
        }
        tables
    }

    /// The problems as the user sees them, in the order of the text.
    pub(super) fn into_problems(mut self, text: &str, origin: &str) -> Vec<Problem> {
        self.found.sort_by_key(|found| found.offset);
        let mut places = Places::new(text);
        self.found
            .into_iter()
            .map(|found| {
                let (line, column) = places.at(found.offset);
                Problem {
                    file: Some(origin.to_owned()),
                    line: Some(line),
                    column: Some(column),
                    message: found.message,
                    help: found.help,
                }
            })
            .collect()
    }
}

/// Turns byte offsets, asked in rising order, into lines and columns without reading the text again each time.
pub(super) struct Places<'a> {
    bytes: &'a [u8],
    offset: usize,
    line: usize,
    column: usize,
}

impl<'a> Places<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { bytes: text.as_bytes(), offset: 0, line: 1, column: 1 }
    }

    /// Line and column, counted from 1, columns in characters.
    pub(super) fn at(&mut self, offset: usize) -> (usize, usize) {
        let end = offset.min(self.bytes.len());
        while self.offset < end {
            match self.bytes[self.offset] {
                b'\n' => {
                    self.line += 1;
                    self.column = 1;
                }
                // The later bytes of a character in UTF-8 begin with the bits 10.
                byte if byte & 0xc0 == 0x80 => {}
                _ => self.column += 1,
            }
            self.offset += 1;
        }
        (self.line, self.column)
    }
}

/// What a value is, for people.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A text from outside, quoted and cut to a length that fits a message.
pub(super) fn quote(text: &str) -> String {
    const LONGEST: usize = 64;
    if text.chars().count() <= LONGEST {
        return format!("{text:?}");
    }
    let short: String = text.chars().take(LONGEST).collect();
    format!("{short:?}...")
}

/// Reads a text.
pub(super) fn text(value: &DeValue<'_>) -> Result<String, Refusal> {
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        other => Err((format!("is {}, not a text", kind(other)), "put it in quotes".to_owned())),
    }
}

/// Reads a text that has a meaning.
pub(super) fn parsed<T: std::str::FromStr>(
    value: &DeValue<'_>,
    what: &str,
    help: &str,
) -> Result<T, Refusal> {
    let text = text(value)?;
    text.parse().map_err(|_| (format!("{} is not {what}", quote(&text)), help.to_owned()))
}

/// Reads one of a few words.
pub(super) fn word<T: std::str::FromStr>(value: &DeValue<'_>, words: &[&'static str]) -> Result<T, Refusal> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        let help = nearest(&text, words).map_or_else(
            || format!("write one of \"{}\"", words.join("\", \"")),
            |near| format!("did you mean {near:?}?"),
        );
        (format!("{} is not known", quote(&text)), help)
    })
}

/// Reads a whole number between `range.start` and `range.end`, both included.
pub(super) fn number<T: TryFrom<i128>>(value: &DeValue<'_>, range: &Range<i128>) -> Result<T, Refusal> {
    let DeValue::Integer(integer) = value else {
        return Err((
            format!("is {}, not a whole number", kind(value)),
            format!("write a number from {} to {}, without quotes", range.start, range.end),
        ));
    };
    let shown = integer.as_str().to_owned();
    let help = format!("choose a number from {} to {}", range.start, range.end);
    let Ok(number) = i128::from_str_radix(&shown, integer.radix()) else {
        return Err((format!("{} is far too large", quote(&shown)), help));
    };
    if number > range.end {
        return Err((format!("{number} is above {}", range.end), help));
    }
    if number < range.start {
        return Err((format!("{number} is below {}", range.start), help));
    }
    T::try_from(number).map_err(|_| (format!("{number} is out of range"), help))
}

/// Reads a list; the first refused item refuses the list.
pub(super) fn list<T>(
    value: &DeValue<'_>,
    read: impl Fn(&DeValue<'_>) -> Result<T, Refusal>,
) -> Result<Vec<T>, Refusal> {
    match value {
        DeValue::Array(items) => items
            .iter()
            .map(|item: &Spanned<DeValue<'_>>| {
                read(item.get_ref()).map_err(|(message, help)| (format!("has an item that {message}"), help))
            })
            .collect(),
        other => Err((format!("is {}, not a list", kind(other)), "put it in square brackets".to_owned())),
    }
}

/// The known word that `word` is most likely a slip of.
fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    if word.len() > 32 {
        return None;
    }
    let word = word.to_ascii_lowercase();
    known
        .iter()
        .map(|candidate| (distance(&word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
