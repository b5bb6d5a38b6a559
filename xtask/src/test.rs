//! `cargo xtask test`: runs every test that needs nothing but Rust and Linux; with `--all`, also the foreign group.
//!
//! Most tests make network namespaces and load programs, so they run as root: as we are, or each test binary through
//! sudo. The foreign group holds the tests in `tests/tests/foreign_*.rs` that use somebody else's tools.

use std::{
    env,
    ffi::OsString,
    io::{BufRead as _, BufReader},
    ops::AddAssign,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::workspace;

/// Options of the command.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run the foreign group too; a tool that it needs and that is missing is a failure
    #[arg(long)]
    all: bool,
    /// Run nothing; print the Debian packages that `--all` would miss, one a line
    #[arg(long, conflicts_with = "all")]
    missing: bool,
}

/// A test of the foreign group.
struct Foreign {
    /// Its file in `tests/tests`, without the ending.
    test: &'static str,
    /// The programs it calls, and the Debian package of each.
    tools: &'static [(&'static str, &'static str)],
}

const FOREIGN: [Foreign; 3] = [
    Foreign {
        test: "foreign_guide",
        tools: &[
            ("ip", "iproute2"),
            ("nsenter", "util-linux"),
            ("unshare", "util-linux"),
            ("curl", "curl"),
            ("ethtool", "ethtool"),
            ("python3", "python3"),
        ],
    },
    Foreign { test: "foreign_object", tools: &[("readelf", "binutils")] },
    Foreign { test: "foreign_unit", tools: &[("systemd-analyze", "systemd"), ("setpriv", "util-linux")] },
];

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let missing = missing_packages(|tool| in_path(tool).is_some());
    if arguments.missing {
        for package in missing {
            println!("{package}");
        }
        return Ok(());
    }
    if arguments.all && !missing.is_empty() {
        bail!("`--all` needs tools that are not here: {}", install_line(&missing));
    }
    let root = workspace::root()?;
    let mut environment = vec![("WATTLINE_BIN".to_owned(), build_wattline(&root)?.into_os_string())];
    environment.extend(runner()?);
    let features: &[&str] = if arguments.all { &["--features", "tests/foreign"] } else { &[] };
    let tally = cargo_test(&root, &environment, features)?;
    let foreign = if arguments.all { String::new() } else { not_run(&missing) };
    println!("\n{} in {} s{foreign}", tally.summary(), started.elapsed().as_secs());
    if !tally.good {
        bail!("tests failed");
    }
    Ok(())
}

/// Says which tests were left out, and what it takes to run them.
fn not_run(missing: &[&str]) -> String {
    let tests = FOREIGN.map(|foreign| foreign.test).join(", ");
    let cure = if missing.is_empty() { String::new() } else { format!(" after {}", install_line(missing)) };
    format!("; not run: {tests}, which use foreign tools (`cargo xtask test --all`{cure})")
}

fn install_line(packages: &[&str]) -> String {
    format!("`apt-get install {}`", packages.join(" "))
}

/// Packages of the foreign group's tools that `present` denies, each once.
fn missing_packages(present: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let tools = FOREIGN.iter().flat_map(|foreign| foreign.tools);
    let mut packages: Vec<_> =
        tools.filter(|(tool, _)| !present(tool)).map(|&(_, package)| package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Finds a program as a shell would.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}

/// Builds the binary that the scenarios start, and returns where it is.
pub(crate) fn build_wattline(root: &Path) -> Result<PathBuf> {
    let mut command = cargo(root);
    command.args(["build", "--locked", "--bin", "wattline"]);
    command.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("building wattline failed ({})", output.status);
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .context("cargo built no wattline")
}

/// What makes cargo run test binaries as root: nothing if we are, otherwise sudo, which asks for the password now.
fn runner() -> Result<Option<(String, OsString)>> {
    if workspace::is_root() {
        return Ok(None);
    }
    if in_path("sudo").is_none() {
        bail!("the tests need root (namespaces, loading programs), and there is no sudo: run this as root");
    }
    if !Command::new("sudo").arg("--validate").status().context("cannot run sudo")?.success() {
        bail!("the tests need root (namespaces, loading programs), and sudo refused");
    }
    let version = workspace::output(Command::new("rustc").arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not tell its host")?;
    Ok(Some((runner_variable(host), "sudo -E".into())))
}

/// The environment variable in which cargo looks for the runner of a target.
fn runner_variable(triple: &str) -> String {
    format!("CARGO_TARGET_{}_RUNNER", triple.to_uppercase().replace(['-', '.'], "_"))
}

/// Runs `cargo test`, passes its output on, and counts.
fn cargo_test(root: &Path, environment: &[(String, OsString)], options: &[&str]) -> Result<Tally> {
    let mut command = cargo(root);
    command.args(["test", "--locked", "--no-fail-fast"]).args(options).stdout(Stdio::piped());
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo's output is not piped")?;
    let mut tally = Tally { good: true, ..Tally::default() };
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read cargo's output")?;
        println!("{line}");
        if let Some(result) = Tally::of_line(&line) {
            tally += result;
        }
    }
    tally.good &= child.wait()?.success();
    Ok(tally)
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// False where anything failed, a build included.
    good: bool,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.good &= other.good;
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl Tally {
    /// Reads `test result: ok. 7 passed; 0 failed; 0 ignored; ...`; `None` for any other line.
    fn of_line(line: &str) -> Option<Self> {
        let (verdict, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            let number = counts.split("; ").find_map(|part| part.strip_suffix(what))?;
            number.trim().parse().ok()
        };
        Some(Self {
            good: verdict == "ok",
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }

    fn summary(&self) -> String {
        let verdict = if self.good { "ok" } else { "FAILED" };
        let other =
            |count: u64, what: &str| if count > 0 { format!(", {count} {what}") } else { String::new() };
        let (failed, ignored) = (other(self.failed, "failed"), other(self.ignored, "ignored"));
        format!("{verdict}: {} tests passed{failed}{ignored}", self.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_libtest() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.15s";
        let tally = Tally::of_line(line).unwrap();
        assert_eq!(tally, Tally { good: false, passed: 12, failed: 3, ignored: 1 });
        assert_eq!(tally.summary(), "FAILED: 12 tests passed, 3 failed, 1 ignored");
        assert_eq!(Tally::of_line("test result_parser ... ok"), None);
        assert_eq!(Tally::of_line("running 3 tests"), None);
    }

    #[test]
    fn one_failure_spoils_the_sum() {
        let mut tally = Tally { good: true, passed: 2, ..Tally::default() };
        tally += Tally { good: false, failed: 1, ..Tally::default() };
        assert_eq!(tally, Tally { good: false, passed: 2, failed: 1, ignored: 0 });
    }

    #[test]
    fn runner_variable_is_cargos() {
        assert_eq!(
            runner_variable("x86_64-unknown-linux-gnu"),
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER"
        );
    }

    #[test]
    fn missing_tools_name_their_packages_once() {
        assert!(missing_packages(|_| true).is_empty());
        let all = missing_packages(|_| false);
        assert!(all.contains(&"binutils"));
        assert!(all.is_sorted_by(|one, other| one < other), "{all:?}");
        assert!(not_run(&all).contains("`apt-get install "));
        assert!(!not_run(&[]).contains("apt-get"));
    }

    #[test]
    fn every_foreign_test_is_listed_with_its_tools() {
        let directory = workspace::root().unwrap().join("tests/tests");
        let mut files: Vec<_> = directory
            .read_dir()
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
            .filter(|name| name.starts_with("foreign_"))
            .collect();
        files.sort();
        let mut listed = FOREIGN.map(|foreign| foreign.test);
        listed.sort_unstable();
        assert_eq!(files, listed, "files in tests/tests, and the list in xtask/src/test.rs");
    }
}
