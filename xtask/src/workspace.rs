//! Where the repository is and what surrounds a command: root, continuous integration, privileges.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

/// The root of the working tree that this binary was built from.
pub(crate) fn root() -> Result<PathBuf> {
    // Set at run time by `cargo run`; the compiled-in value is wrong after the working tree has moved.
    let manifest = env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&manifest).parent().context("xtask's directory has no parent")?;
    if !root.join("Cargo.lock").is_file() {
        bail!("{} is not the repository: run this as `cargo xtask`", root.display());
    }
    Ok(root.to_path_buf())
}

/// True under continuous integration (`CI=true`), where what could not be checked counts as failed.
pub(crate) fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

/// True where this process has user id 0.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Runs a command to its end and returns its standard output; its standard error is part of the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{shown} printed what is not UTF-8"))
}
