//! The tools that make eBPF objects, and how they are called so that the same sources give the same bytes anywhere.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::workspace;

/// The compilation target; the objects are for little-endian machines.
const TARGET: &str = "bpfel-unknown-none";
/// The linker's version that the objects are made with: the newest that links the LLVM of rustc 1.95.
const BPF_LINKER: &str = "0.10.4";

/// Names of the programs: a binary of `lb-ebpf`, and an object in `lb-userspace/bpf`, each.
pub(crate) const PROGRAMS: [&str; 2] = ["forward", "decap"];

/// Flags that decide what code comes out; part of the provenance.
pub(crate) const FLAGS: [&str; 4] = [
    // BTF is made from the debug information.
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    // Atomics beyond addition, and 32-bit jumps.
    "-Ctarget-cpu=v3",
    // aya-ebpf selects the layout of registers by it; XDP programs never look at them.
    "--cfg=bpf_target_arch=\"x86_64\"",
];

/// Versions of the tools, as the provenance records them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Versions {
    /// `rustc --version` without the name.
    pub(crate) rustc: String,
    /// `bpf-linker --version` without the name.
    pub(crate) bpf_linker: String,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {} and bpf-linker {}", self.rustc, self.bpf_linker)
    }
}

/// A toolchain that can build the objects.
pub(crate) struct Toolchain {
    pub(crate) versions: Versions,
    sysroot: PathBuf,
}

impl Toolchain {
    /// Looks for the tools.
    ///
    /// # Errors
    ///
    /// Names every tool that is missing, with the command that installs it.
    pub(crate) fn find() -> Result<Self> {
        let mut missing = Vec::new();
        let rustc = workspace::output(Command::new("rustc").arg("--version"))?;
        let sysroot =
            PathBuf::from(workspace::output(Command::new("rustc").args(["--print", "sysroot"]))?.trim_end());
        if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
            missing
                .push("the sources of Rust's core library are missing: rustup component add rust-src".into());
        }
        let install = format!("cargo install bpf-linker@{BPF_LINKER} --locked");
        let linker = match workspace::output(Command::new("bpf-linker").arg("--version")) {
            Ok(version) => version,
            Err(error) => {
                missing.push(format!("bpf-linker does not run ({error:#}): {install}"));
                String::new()
            }
        };
        let bpf_linker = linker.trim().trim_start_matches("bpf-linker ").to_owned();
        if !linker.is_empty() && bpf_linker != BPF_LINKER {
            missing.push(format!("bpf-linker is {bpf_linker}, not {BPF_LINKER}: {install}"));
        }
        if !missing.is_empty() {
            bail!("the tools that build eBPF objects are not complete:\n  {}", missing.join("\n  "));
        }
        let rustc = rustc.trim().trim_start_matches("rustc ").to_owned();
        Ok(Self { versions: Versions { rustc, bpf_linker }, sysroot })
    }

    /// Builds `lb-ebpf` of the workspace at `root` and returns the linked objects, in the order of [`PROGRAMS`].
    pub(crate) fn build(&self, root: &Path) -> Result<Vec<Vec<u8>>> {
        let target = root.join("target/ebpf");
        let mut flags: Vec<String> = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
        for (from, to) in self.renamed_paths(root)? {
            let from = from.to_str().with_context(|| format!("{} is not UTF-8", from.display()))?;
            flags.push(format!("--remap-path-prefix={from}={to}"));
        }
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .current_dir(root)
            .args(["build", "--locked", "--release", "--package", "lb-ebpf", "--bins"])
            .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
            .arg(&target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            // Building the core library is unstable; this makes a stable compiler do it.
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .status()
            .context("cannot run cargo")?;
        if !status.success() {
            bail!("building lb-ebpf failed ({status})");
        }
        let output = target.join(TARGET).join("release");
        PROGRAMS
            .iter()
            .map(|name| {
                let path = output.join(name);
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
            })
            .collect()
    }

    /// Directories of this machine, and the names that they get in debug information and BTF. Of several that match,
    /// rustc takes the last.
    fn renamed_paths(&self, root: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
        let mut renamed = vec![(root.to_path_buf(), ".")];
        let cargo_home = match env::var_os("CARGO_HOME") {
            Some(home) => PathBuf::from(home),
            None => PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
                .join(".cargo"),
        };
        renamed.push((cargo_home.clone(), "cargo"));
        // Below `src` is a directory named after the host that crates were fetched from.
        if let Ok(registries) = cargo_home.join("registry/src").read_dir() {
            let mut registries: Vec<_> =
                registries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
            registries.sort();
            renamed.extend(registries.into_iter().map(|path| (path, "crates")));
        }
        renamed.push((self.sysroot.join("lib/rustlib/src/rust"), "rust"));
        Ok(renamed)
    }
}
