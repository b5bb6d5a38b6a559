//! Where the demo is shown: in place on a terminal, else line by line.
//!
//! On a terminal the live picture has the alternate screen to itself, so nothing of the user's scrolls away; leaving it
//! is guaranteed by the guard. Failures to write end the demo, but nothing here may panic because of them.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::paint::Line;
use super::view::{Event, Picture};

/// How often a picture is drawn on a terminal.
const REDRAW: Duration = Duration::from_millis(500);
/// How often a line is printed elsewhere.
const REPEAT: Duration = Duration::from_secs(3);
/// A terminal that does not tell its size.
const USUAL_SIZE: (usize, usize) = (80, 24);

/// Standard output or standard error.
trait Stream: Write + AsRawFd {}
impl<S: Write + AsRawFd> Stream for S {}

/// A place to show things.
pub(super) struct Screen {
    stream: Box<dyn Stream>,
    terminal: bool,
    colour: bool,
    live: bool,
    drawn: Option<Instant>,
}

impl Screen {
    /// Standard output.
    pub(super) fn stdout() -> Self {
        let stream = io::stdout();
        let terminal = stream.is_terminal();
        Self::on(Box::new(stream), terminal)
    }

    /// Standard error, for when standard output is somebody else's to read.
    pub(super) fn stderr() -> Self {
        let stream = io::stderr();
        let terminal = stream.is_terminal();
        Self::on(Box::new(stream), terminal)
    }

    fn on(stream: Box<dyn Stream>, terminal: bool) -> Self {
        // https://no-color.org
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = terminal && !dumb;
        Self { stream, terminal, colour: terminal && !plain, live: false, drawn: None }
    }

    /// Characters in a line, for what is printed.
    pub(super) fn width(&self) -> usize {
        if self.terminal { self.size().0 } else { 110 }
    }

    /// Prints a line.
    pub(super) fn say(&mut self, line: &Line) -> Result<()> {
        self.write(&format!("{}\n", line.render(self.colour)))
    }

    /// Tells of an event; on a live screen the picture does.
    pub(super) fn tell(&mut self, event: &Event) -> Result<()> {
        if self.terminal {
            return Ok(());
        }
        self.drawn = Some(Instant::now());
        let width = self.width();
        event.lines(width).iter().try_for_each(|line| self.say(line))
    }

    /// True when it is time for another picture.
    pub(super) fn is_due(&self) -> bool {
        let period = if self.terminal { REDRAW } else { REPEAT };
        self.drawn.is_none_or(|drawn| drawn.elapsed() >= period)
    }

    /// Shows a picture.
    pub(super) fn show(&mut self, picture: &Picture) -> Result<()> {
        self.drawn = Some(Instant::now());
        if !self.terminal {
            return self.say(&picture.line());
        }
        let (width, height) = self.size();
        // Alternate screen without a cursor; from then on from the top, each line cleared behind its text.
        let mut frame = if self.live { String::new() } else { "\x1b[?1049h\x1b[?25l".to_owned() };
        self.live = true;
        frame.push_str("\x1b[H");
        let lines = picture.screen(width, height);
        for (number, line) in lines.iter().enumerate() {
            let end = if number + 1 < lines.len() { "\r\n" } else { "" };
            // Writing into a String cannot fail.
            let _ = write!(frame, "{}\x1b[K{end}", line.render(self.colour));
        }
        frame.push_str("\x1b[J");
        self.write(&frame)
    }

    /// Goes back to the normal screen, if it was left.
    pub(super) fn leave(&mut self) {
        if std::mem::take(&mut self.live) {
            let _ = self.write("\x1b[?25h\x1b[?1049l");
        }
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(text.as_bytes()).and_then(|()| self.stream.flush()).context("cannot write")
    }

    /// Columns and lines.
    fn size(&self) -> (usize, usize) {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCGWINSZ writes one `winsize`, which outlives the call.
        let done = unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
        if done == 0 && size.ws_col > 0 && size.ws_row > 0 {
            (size.ws_col.into(), size.ws_row.into())
        } else {
            USUAL_SIZE
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.leave();
    }
}
