//! How data looks on a terminal: aligned columns without borders, colour only where a person watches.

use std::fmt::Write as _;

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns
    Table,
    /// Aligned columns, more of them
    Wide,
    /// JSON with a `schema_version` (with --watch one object a line)
    Json,
}

/// A column: its title, and how its cells stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    title: &'static str,
    kind: ColumnKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ColumnKind {
    Text,
    Number,
    State,
}

impl Column {
    /// A column of words.
    pub(super) const fn text(title: &'static str) -> Self {
        Self { title, kind: ColumnKind::Text }
    }

    /// A column of numbers, aligned right.
    pub(super) const fn number(title: &'static str) -> Self {
        Self { title, kind: ColumnKind::Number }
    }

    /// A column of words for good and bad, coloured at a terminal.
    pub(super) const fn state(title: &'static str) -> Self {
        Self { title, kind: ColumnKind::State }
    }
}

/// Text for a person, built piece by piece.
pub(super) struct Page {
    text: String,
    colour: bool,
    wide: bool,
}

impl Page {
    pub(super) fn new(colour: bool, wide: bool) -> Self {
        Self { text: String::new(), colour, wide }
    }

    /// True when more columns are wanted.
    pub(super) fn wide(&self) -> bool {
        self.wide
    }

    /// Adds a line.
    pub(super) fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref().trim_end());
        self.text.push('\n');
    }

    /// Adds pairs of name and value, aligned.
    pub(super) fn pairs(&mut self, pairs: &[(&str, String)]) {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in pairs {
            self.line(format!("{name:width$}  {value}"));
        }
    }

    /// Adds a table; `empty` is said instead of a table without rows.
    pub(super) fn table(&mut self, columns: &[Column], rows: Vec<Vec<String>>, empty: &str) {
        if rows.is_empty() {
            self.line(empty);
            return;
        }
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.iter().map(|column| column.title).collect::<Vec<_>>());
        for row in rows {
            table.add_row(row.into_iter().map(|cell| printable(&cell)).collect::<Vec<_>>());
        }
        for (index, column) in columns.iter().enumerate() {
            if let Some(made) = table.column_mut(index) {
                let right = if index + 1 < columns.len() { 2 } else { 0 };
                made.set_padding((0, right));
                if column.kind == ColumnKind::Number {
                    made.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        let lines: Vec<String> = table.lines().collect();
        // Left-aligned columns start under their titles, which is where the words to colour are.
        let starts: Vec<usize> = columns
            .iter()
            .filter(|column| column.kind == ColumnKind::State)
            .filter_map(|column| lines.first().and_then(|title| find_word(title, column.title)))
            .collect();
        for (index, line) in lines.iter().enumerate() {
            if self.colour && index > 0 {
                self.line(colour_words(line.trim_end(), &starts));
            } else {
                self.line(line);
            }
        }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

/// Text from outside without characters that would steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

/// Where a whole word stands in a line, in bytes.
fn find_word(line: &str, word: &str) -> Option<usize> {
    line.match_indices(word).map(|(start, _)| start).find(|start| {
        let before = line[..*start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        before.is_none_or(char::is_whitespace) && after.is_none_or(char::is_whitespace)
    })
}

/// The line with the words at `starts` in their colours.
fn colour_words(line: &str, starts: &[usize]) -> String {
    let mut coloured = String::with_capacity(line.len() + 16);
    let mut rest = 0;
    for start in starts {
        // Cells are ASCII up to here in practice; where they are not, the line simply stays as it is.
        let Some(tail) = line.get(*start..) else { continue };
        let word = tail.split_whitespace().next().unwrap_or("");
        if let Some(code) = colour_of(word)
            && *start >= rest
            && tail.starts_with(word)
        {
            let _ = write!(coloured, "{}\x1b[{code}m{word}\x1b[0m", &line[rest..*start]);
            rest = start + word.len();
        }
    }
    coloured.push_str(&line[rest..]);
    coloured
}

/// The colour of a word that says good or bad, as a number of the terminal's language.
fn colour_of(word: &str) -> Option<u8> {
    match word {
        "healthy" | "ready" | "native" | "ok" | "forward" => Some(32),
        "unknown" | "drain" | "generic" | "pass" | "disabled" | "maint" | "warning" => Some(33),
        "unhealthy" | "drop" | "failed" | "problem" => Some(31),
        _ => None,
    }
}

/// A duration as people say it, such as `3 h 20 min`.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// How long ago a time in seconds since 1970 was, such as `12 s ago`.
pub(super) fn ago(time: u64) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    if time > now { "just now".to_owned() } else { format!("{} ago", span(now - time)) }
}

/// A part of one as per cent.
pub(super) fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

/// A value or a dash.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(colour: bool) -> String {
        let columns = [Column::text("NAME"), Column::state("HEALTH"), Column::number("PACKETS")];
        let rows = vec![
            vec!["healthy".to_owned(), "healthy".to_owned(), "5".to_owned()],
            vec!["b\x1b[31m".to_owned(), "unhealthy".to_owned(), "12345".to_owned()],
        ];
        let mut page = Page::new(colour, false);
        page.table(&columns, rows, "nothing");
        page.into_text()
    }

    #[test]
    fn columns_are_aligned_and_numbers_stand_right() {
        assert_eq!(
            page(false),
            "\
NAME     HEALTH     PACKETS
healthy  healthy          5
b?[31m   unhealthy    12345
"
        );
    }

    #[test]
    fn only_states_are_coloured() {
        let text = page(true);
        assert!(text.contains("healthy  \x1b[32mhealthy\x1b[0m  "), "{text:?}");
        assert!(text.contains("b?[31m   \x1b[31munhealthy\x1b[0m"), "{text:?}");
        assert!(text.starts_with("NAME     HEALTH     PACKETS\n"));
    }

    #[test]
    fn an_empty_table_says_so() {
        let mut page = Page::new(false, false);
        page.table(&[Column::text("A")], Vec::new(), "no services");
        assert_eq!(page.into_text(), "no services\n");
    }

    #[test]
    fn spans_read_well() {
        let shown: Vec<_> = [0, 59, 61, 3600, 90_000].into_iter().map(span).collect();
        assert_eq!(shown, ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]);
    }
}
