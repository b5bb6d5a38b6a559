//! Lines of text with tones, and tables of them: layout without knowing where it will be shown.
//!
//! Widths are counted in characters, so only characters of one column's width belong in here.

use std::fmt::Write as _;

use super::numbers::filled;

/// How text stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it is.
    Plain,
    /// Of less interest.
    Dim,
    /// Of more interest.
    Bold,
    /// All is well.
    Good,
    /// Not yet or not any more well.
    Warn,
    /// Wrong.
    Bad,
}

impl Tone {
    /// Parameters of the SGR sequence (ECMA-48 section 8.3.117).
    const fn sgr(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Dim => "2",
            Self::Bold => "1",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "1;31",
        }
    }
}

/// A line: pieces of text, each in a tone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line(Vec<(Tone, String)>);

impl Line {
    /// A line of one piece.
    pub(super) fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self(vec![(tone, text.into())])
    }

    /// With another piece behind.
    pub(super) fn and(mut self, tone: Tone, text: impl Into<String>) -> Self {
        self.0.push((tone, text.into()));
        self
    }

    /// Characters.
    pub(super) fn width(&self) -> usize {
        self.0.iter().map(|(_, text)| text.chars().count()).sum()
    }

    /// Cut to so many characters.
    pub(super) fn fit(mut self, width: usize) -> Self {
        let mut left = width;
        for (_, text) in &mut self.0 {
            if let Some((end, _)) = text.char_indices().nth(left) {
                text.truncate(end);
            }
            left -= text.chars().count();
        }
        self
    }

    /// For a terminal, or plain.
    pub(super) fn render(&self, colour: bool) -> String {
        let mut out = String::new();
        for (tone, text) in &self.0 {
            if colour && *tone != Tone::Plain {
                // Writing into a String cannot fail.
                let _ = write!(out, "\x1b[{}m{text}\x1b[0m", tone.sgr());
            } else {
                out.push_str(text);
            }
        }
        out.truncate(out.trim_end_matches(' ').len());
        out
    }

    fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// Which way a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Lays out columns two spaces apart, titles dim.
pub(super) fn table(columns: &[(&str, Align)], rows: Vec<Vec<Line>>) -> Vec<Line> {
    let titles = columns.iter().map(|(title, _)| Line::new(Tone::Dim, *title)).collect();
    let rows: Vec<Vec<Line>> = std::iter::once(titles).chain(rows).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(Line::width).max().unwrap_or(0))
        .collect();
    let lay = |row: Vec<Line>| {
        let mut line = Line::default();
        for (column, cell) in row.into_iter().enumerate() {
            let padding = " ".repeat(widths[column] - cell.width());
            let gap = if column == 0 { "" } else { "  " };
            line = line.and(Tone::Plain, gap);
            match columns[column].1 {
                Align::Left => {
                    line.append(cell);
                    line = line.and(Tone::Plain, padding);
                }
                Align::Right => {
                    line = line.and(Tone::Plain, padding);
                    line.append(cell);
                }
            }
        }
        line
    };
    rows.into_iter().map(lay).collect()
}

/// A text in lines of at most so many characters, broken between words.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is always one");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

/// A bar of so many characters: filled for `part`, with a mark where `target` ends; both of `full`.
pub(super) fn bar(part: f64, target: f64, full: f64, width: usize) -> Line {
    let (filled, mark) = (filled(part / full, width), filled(target / full, width));
    let mut line = Line::default();
    for at in 0..width {
        // A mark at the end of the target's last cell; none for an empty target.
        let marked = mark > 0 && at + 1 == mark;
        line = match (at < filled, marked) {
            (true, false) => line.and(Tone::Good, "█"),
            (true, true) => line.and(Tone::Good, "▓"),
            (false, true) => line.and(Tone::Plain, "▏"),
            (false, false) => line.and(Tone::Dim, "·"),
        };
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_in_line() {
        let cell = |text: &str| Line::new(Tone::Good, text);
        let rows = vec![vec![cell("a"), cell("1,000")], vec![cell("long name"), cell("7")]];
        let lines = table(&[("NAME", Align::Left), ("N", Align::Right)], rows);
        let plain: Vec<_> = lines.iter().map(|line| line.render(false)).collect();
        assert_eq!(plain, ["NAME           N", "a          1,000", "long name      7"]);
    }

    #[test]
    fn a_line_is_cut_without_breaking_its_tones() {
        let line = Line::new(Tone::Good, "grün").and(Tone::Bad, "rot").fit(5);
        assert_eq!(line.render(false), "grünr");
        assert_eq!(line.render(true), "\x1b[32mgrün\x1b[0m\x1b[1;31mr\x1b[0m");
        assert_eq!(Line::new(Tone::Plain, "ab").fit(0).width(), 0);
    }

    #[test]
    fn text_breaks_between_words() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("unbreakable", 4), ["unbreakable"]);
    }

    #[test]
    fn bars_show_part_and_target() {
        assert_eq!(bar(0.2, 0.2, 0.4, 4).render(false), "█▓··");
        assert_eq!(bar(0.1, 0.4, 0.4, 4).render(false), "█··▏");
        assert_eq!(bar(9.0, 0.0, 0.4, 4).render(false), "████");
        assert_eq!(bar(0.0, 0.0, 0.4, 4).render(false), "····");
    }
}
