//! `wattline config`: texts, the running configuration, and the way between them.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hyper::Method;
use serde::Serialize;

use super::context::Context;
use super::exit::{Code, Failure};
use super::{WriteArgs, written};
use crate::api::client::Payload;
use crate::api::types::{ApplyResult, ConfigView, SaveResult, SchemaVersion, Status};
use crate::config::{self, Config, ConfigDiff, ConfigError, MAX_BYTES, Problem};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a file; needs no agent
    Validate(FileArgs),
    /// Show the running configuration as TOML
    Show,
    /// Show how a file differs from the running configuration; exits with 1 if it does
    Diff {
        /// The file, or - for standard input [default: the agent's configuration file]
        #[arg(short, long)]
        file: Option<PathBuf>,
    },
    /// Make a file the running configuration, whole or not at all
    Apply {
        #[command(flatten)]
        file: FileArgs,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Write the running configuration to the agent's configuration file; comments there are lost
    Save {
        /// Only save if the running configuration has this generation
        #[arg(long, value_name = "N")]
        if_generation: Option<u64>,
    },
}

#[derive(Debug, Args)]
pub(super) struct FileArgs {
    /// The file, or - for standard input
    #[arg(short, long)]
    file: PathBuf,
}

pub(super) fn run(context: &Context, command: ConfigCommand) -> Result<Code, Failure> {
    match command {
        ConfigCommand::Validate(args) => validate(context, &args.file),
        ConfigCommand::Show => context.watched(|| {
            let view: ConfigView = context.get("/v1/config")?;
            context.print(&view, |view, page| view.config.to_toml().lines().for_each(|line| page.line(line)))
        }),
        ConfigCommand::Diff { file } => diff(context, file),
        ConfigCommand::Apply { file, write } => {
            let config = read(&file.file)?.1;
            let result: ApplyResult =
                context.write(Method::PUT, "/v1/config", write, Payload::Toml(config.to_toml()))?;
            written::print(context, &result)?;
            Ok(Code::Ok)
        }
        ConfigCommand::Save { if_generation } => {
            let write = WriteArgs { if_generation, dry_run: false };
            let result: SaveResult = context.write(Method::POST, "/v1/config/save", write, Payload::None)?;
            context.print(&result, |result, page| {
                page.line(format!("generation {} saved to {}", result.generation, result.path));
            })?;
            Ok(Code::Ok)
        }
    }
}

/// Reads and checks a file or standard input; also gives the name for messages.
fn read(path: &Path) -> Result<(String, Config), ConfigError> {
    if path != Path::new("-") {
        return Ok((path.display().to_string(), config::load(path)?));
    }
    let name = "standard input";
    let bytes = config::file::read_to_limit(io::stdin().lock(), MAX_BYTES).map_err(|error| ConfigError {
        problems: vec![Problem {
            file: Some(name.to_owned()),
            line: None,
            column: None,
            message: format!("{error:#}"),
            help: "pipe the configuration into this command".to_owned(),
        }],
    })?;
    Ok((name.to_owned(), config::parse_bytes(&bytes, name)?))
}

/// What a check found.
#[derive(Serialize)]
struct Verdict {
    schema_version: SchemaVersion,
    valid: bool,
    file: String,
    services: usize,
    backends: usize,
    problems: Vec<Problem>,
}

fn validate(context: &Context, path: &Path) -> Result<Code, Failure> {
    match read(path) {
        Ok((file, config)) => {
            let verdict = Verdict {
                schema_version: SchemaVersion,
                valid: true,
                file,
                services: config.services.len(),
                backends: config.backend_count(),
                problems: Vec::new(),
            };
            context.print(&verdict, |verdict, page| {
                page.line(format!(
                    "{}: valid, {}, {}",
                    verdict.file,
                    count(verdict.services, "service"),
                    count(verdict.backends, "backend")
                ));
            })?;
            Ok(Code::Ok)
        }
        Err(error) => {
            let verdict = Verdict {
                schema_version: SchemaVersion,
                valid: false,
                file: path.display().to_string(),
                services: 0,
                backends: 0,
                problems: error.problems.clone(),
            };
            // The verdict is data and the refusal a message: a program reads the one, a person the other.
            if context.format() == super::output::Format::Json {
                context.print(&verdict, |_, _| {})?;
                return Ok(Code::Invalid);
            }
            Err(error.into())
        }
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What a comparison found.
#[derive(Serialize)]
struct Comparison {
    schema_version: SchemaVersion,
    generation: u64,
    file: String,
    #[serde(flatten)]
    diff: ConfigDiff,
}

fn diff(context: &Context, file: Option<PathBuf>) -> Result<Code, Failure> {
    let file = match file {
        Some(file) => file,
        None => context.get::<Status>("/v1/status")?.config.path.into(),
    };
    let (file, new) = read(&file)?;
    let running: ConfigView = context.get("/v1/config")?;
    let diff = ConfigDiff::between(&running.config, &new);
    let code = if diff.is_empty() { Code::Ok } else { Code::Differences };
    let comparison = Comparison { schema_version: SchemaVersion, generation: running.generation, file, diff };
    context.print(&comparison, |comparison, page| {
        comparison.diff.to_string().lines().for_each(|line| page.line(line));
    })?;
    if code == Code::Ok {
        context.note(&format!("{} is what runs (generation {})", comparison.file, comparison.generation));
    }
    Ok(code)
}
