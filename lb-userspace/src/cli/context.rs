//! What every command works with: the agent's client, where output goes, and how much to say.

use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::exit::{Code, Failure};
use super::output::{Format, Page};
use super::{Global, WriteArgs};
use crate::api::WriteParams;
use crate::api::client::{Client, Payload};

/// What every command works with.
pub(super) struct Context {
    global: Global,
    colour: bool,
}

impl Context {
    pub(super) fn new(global: Global) -> Self {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = !global.no_color && !forbidden && !dumb && io::stdout().is_terminal();
        Self { global, colour }
    }

    /// Starts logging to standard error. `RUST_LOG`, where it is set, has the last word.
    pub(super) fn start_log(&self, default: log::LevelFilter) {
        let steps = [log::LevelFilter::Warn, log::LevelFilter::Info, log::LevelFilter::Debug];
        let level = match (self.global.quiet, self.global.verbose) {
            (true, _) => log::LevelFilter::Error,
            (false, 0) => default,
            (false, more) => {
                let start = steps.iter().position(|level| *level == default).unwrap_or(0);
                steps.get(start + usize::from(more)).copied().unwrap_or(log::LevelFilter::Trace)
            }
        };
        let mut builder = env_logger::Builder::new();
        builder.filter_level(level).parse_default_env();
        if std::env::var_os("JOURNAL_STREAM").is_some() {
            // The journal stamps every line itself.
            builder.format_timestamp(None);
        }
        // Only fails where a logger is set already, and then that one serves.
        let _ = builder.try_init();
    }

    pub(super) fn format(&self) -> Format {
        self.global.output
    }

    pub(super) fn bpffs(&self) -> &Path {
        &self.global.bpffs
    }

    pub(super) fn runtime_dir(&self) -> &Path {
        &self.global.runtime_dir
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.global.socket.clone().unwrap_or_else(|| self.global.runtime_dir.join("wattline.sock"))
    }

    pub(super) fn timeout(&self) -> Duration {
        self.global.timeout
    }

    pub(super) fn watch_interval(&self) -> Option<Duration> {
        self.global.watch
    }

    /// Asks the agent for a value.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let client = self.client();
        Self::block_on(client.get(path))?.map_err(Failure::from)
    }

    /// Sends the agent a request other than a question.
    pub(super) fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        payload: Payload,
    ) -> Result<T, Failure> {
        let client = self.client();
        Self::block_on(client.send(method, path, payload))?.map_err(Failure::from)
    }

    /// Sends a write with its conditions.
    pub(super) fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        args: WriteArgs,
        payload: Payload,
    ) -> Result<T, Failure> {
        let params = WriteParams { if_generation: args.if_generation, dry_run: args.dry_run };
        let mut query = Vec::new();
        if let Some(generation) = params.if_generation {
            query.push(format!("if_generation={generation}"));
        }
        if params.dry_run {
            query.push("dry_run=true".to_owned());
        }
        let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
        self.send(method, &path, payload)
    }

    /// True when an agent answers on the socket.
    pub(super) fn agent_answers(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
    }

    fn client(&self) -> Client {
        Client::new(self.socket(), self.global.timeout)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
                Failure::new(Code::Other, format!("cannot start: {error}"), "are there too many open files?")
            })?;
        Ok(runtime.block_on(future))
    }

    /// Prints a value: as JSON, or as the page that `human` makes of it.
    pub(super) fn print<T: Serialize>(
        &self,
        value: &T,
        human: impl FnOnce(&T, &mut Page),
    ) -> Result<(), Failure> {
        let text = if self.format() == Format::Json {
            let json = if self.global.watch.is_some() {
                serde_json::to_string(value)
            } else {
                serde_json::to_string_pretty(value)
            };
            let json =
                json.map_err(|error| Failure::new(Code::Other, format!("cannot write JSON: {error}"), ""))?;
            json + "\n"
        } else {
            let mut page = Page::new(self.colour, self.format() == Format::Wide);
            human(value, &mut page);
            page.into_text()
        };
        self.print_text(&text)
    }

    /// Prints text as it is.
    #[allow(clippy::unused_self, reason = "all output goes through the context")]
    pub(super) fn print_text(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(())
    }

    /// Does `show` once, or again and again where --watch is given.
    pub(super) fn watched(&self, mut show: impl FnMut() -> Result<(), Failure>) -> Result<Code, Failure> {
        let Some(interval) = self.global.watch else {
            show()?;
            return Ok(Code::Ok);
        };
        loop {
            self.clear_screen()?;
            show()?;
            std::thread::sleep(interval);
        }
    }

    /// Clears a terminal before the next page; anything else gets page after page.
    pub(super) fn clear_screen(&self) -> Result<(), Failure> {
        if self.format() != Format::Json && io::stdout().is_terminal() {
            self.print_text("\x1b[2J\x1b[H")?;
        }
        Ok(())
    }

    /// Says something on standard error that is not an error; --quiet keeps it back.
    pub(super) fn note(&self, text: &str) {
        if !self.global.quiet {
            self.message(text);
        }
    }

    /// Says something on standard error.
    #[allow(clippy::unused_self, reason = "all output goes through the context")]
    pub(super) fn message(&self, text: &str) {
        // If standard error is gone there is nowhere left to say so.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Asks at a terminal whether to go on. A script, or --yes, has decided already.
    pub(super) fn confirm(&self, question: &str) -> Result<(), Failure> {
        if self.global.yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Ok(());
        }
        let mut stderr = io::stderr().lock();
        write!(stderr, "{question} [y/N] ")?;
        stderr.flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Failure::new(Code::Usage, "nothing was done", "answer y, or give --yes")),
        }
    }
}
