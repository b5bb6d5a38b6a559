//! How a command ends: its exit code, and the message that goes with a failure.

use std::io;
use std::process::ExitCode;

use serde::Serialize;

use super::context::Context;
use super::output::Format;
use crate::api::client::ClientError;
use crate::api::types::SchemaVersion;
use crate::api::{ApiError, ErrorKind};
use crate::config::{ConfigError, Problem};

/// The exit codes; `EXIT_CODES` in the parent module tells users what they mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub(super) enum Code {
    /// All is well.
    Ok = 0,
    /// There are differences.
    Differences = 1,
    /// Wrong usage, or a name that does not exist.
    Usage = 2,
    /// The agent cannot be reached.
    Unreachable = 3,
    /// The configuration or a value is not valid.
    Invalid = 4,
    /// It exists already, or the generation is another one.
    Conflict = 5,
    /// The kernel or a permission refused.
    Kernel = 6,
    /// It took too long.
    Timeout = 7,
    /// Anything else.
    Other = 8,
}

/// Why a command failed.
#[derive(Debug)]
pub(super) struct Failure {
    code: Code,
    message: String,
    help: String,
    problems: Vec<Problem>,
}

impl Failure {
    /// A failure with its cure.
    pub(super) fn new(code: Code, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: help.into(), problems: Vec::new() }
    }

    /// A failure of something that works on the kernel; what the chain of causes tells decides the code.
    pub(super) fn kernel(error: &anyhow::Error) -> Self {
        let mut before = String::new();
        for cause in error.chain() {
            if let Some(config) = cause.downcast_ref::<ConfigError>() {
                return config.clone().into();
            }
            if let Some(api) = cause.downcast_ref::<ApiError>() {
                let message = format!("{before}{}", api.message);
                return Self { message, ..Self::from(api.clone()) };
            }
            before.push_str(&cause.to_string());
            before.push_str(": ");
        }
        let denied = error.chain().any(|cause| {
            let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
            let errno = cause.downcast_ref::<nix::errno::Errno>();
            io == Some(io::ErrorKind::PermissionDenied)
                || matches!(errno, Some(nix::errno::Errno::EPERM | nix::errno::Errno::EACCES))
        });
        let help = if denied {
            "run it as root or with the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
        } else {
            "`wattline doctor` looks for the cause"
        };
        Self::new(Code::Kernel, format!("{error:#}"), help)
    }

    /// Says what went wrong on standard error, and gives the exit code.
    pub(super) fn report(&self, format: Format, context: &Context) -> ExitCode {
        // The reader of our output went away: there is nobody to tell.
        if self.message == BROKEN_PIPE {
            return ExitCode::SUCCESS;
        }
        if format == Format::Json {
            #[derive(Serialize)]
            struct Body<'a> {
                schema_version: SchemaVersion,
                code: Code,
                message: &'a str,
                #[serde(skip_serializing_if = "str::is_empty")]
                help: &'a str,
                #[serde(skip_serializing_if = "<[Problem]>::is_empty")]
                problems: &'a [Problem],
            }
            let Self { code, message, help, problems } = self;
            let body = Body { schema_version: SchemaVersion, code: *code, message, help, problems };
            context.message(&serde_json::to_string(&body).unwrap_or_else(|_| message.clone()));
        } else {
            context.message(&self.text());
        }
        ExitCode::from(self.code as u8)
    }

    fn text(&self) -> String {
        let mut text = format!("error: {}", self.message);
        if !self.problems.is_empty() {
            let problems = ConfigError { problems: self.problems.clone() };
            text.push('\n');
            text.push_str(&problems.to_string());
        }
        if !self.help.is_empty() {
            text.push_str("\n  help: ");
            text.push_str(&self.help);
        }
        text
    }
}

/// Marks a failed write to a reader that went away.
const BROKEN_PIPE: &str = "broken pipe";

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Code::Ok, BROKEN_PIPE, "");
        }
        Self::new(Code::Other, format!("cannot write the output: {error}"), "")
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let code = match error.kind {
            ErrorKind::NotFound => Code::Usage,
            ErrorKind::Invalid => Code::Invalid,
            ErrorKind::Conflict => Code::Conflict,
            ErrorKind::Kernel => Code::Kernel,
            ErrorKind::Timeout => Code::Timeout,
            ErrorKind::Internal => Code::Other,
        };
        Self { code, message: error.message, help: error.help, problems: error.problems }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Unreachable { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                Self::new(
                    Code::Kernel,
                    message,
                    "run it as root, or join the group wattline: usermod -aG wattline NAME",
                )
            }
            ClientError::Unreachable { .. } => Self::new(
                Code::Unreachable,
                message,
                "is the agent running? start it: wattline agent --config /etc/wattline/wattline.toml",
            ),
            ClientError::Timeout(_) => Self::new(
                Code::Timeout,
                message,
                "give it more time with --timeout 60s; look at the agent's log",
            ),
            ClientError::Refused(error) => error.into(),
            ClientError::Garbled(_) => Self::new(
                Code::Other,
                message,
                "are agent and command line of the same version? see `wattline version` and `wattline status`",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_chain_of_causes_decides_the_code() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let failure = Failure::kernel(&anyhow::Error::from(denied).context("opening a pin"));
        assert_eq!(failure.code, Code::Kernel);
        assert!(failure.help.contains("CAP_BPF"), "{}", failure.help);
        let conflict = Err::<(), _>(ApiError::new(ErrorKind::Conflict, "it is held", "let go"));
        let failure = Failure::kernel(&conflict.context("starting").unwrap_err());
        assert_eq!(failure.text(), "error: starting: it is held\n  help: let go");
        assert_eq!(failure.code, Code::Conflict);
        let invalid = crate::config::parse("x = 1", "c.toml").unwrap_err();
        let failure = Failure::kernel(&anyhow::Error::from(invalid));
        assert_eq!((failure.code, failure.problems.len()), (Code::Invalid, 1));
        assert_eq!(Failure::kernel(&anyhow::anyhow!("no")).code, Code::Kernel);
    }
}
