//! Where the committed objects come from: the inputs of their build, and what came out.
//!
//! Written by `cargo xtask ebpf`, compared by `--check`. Computing it needs no BPF toolchain, so a stale object is found
//! on any machine.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use toml::Value;

use super::{
    object::{MapDefinition, Substance},
    toolchain::{FLAGS, Versions},
};

/// The crates of this workspace that the objects are compiled from.
const CRATES: [&str; 2] = ["lb-ebpf", "lb-common"];
/// Compiled for user space only (feature `host`), so it cannot change the objects.
const HOST_ONLY: &str = "lb-common/src/host.rs";

/// The committed record, `lb-userspace/bpf/provenance.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Provenance {
    /// SHA-256 over the lines `HASH  NAME\n` of `inputs`, as `sha256sum` would print them.
    pub(crate) source_sha256: String,
    /// The tools that built the objects.
    pub(crate) tools: Versions,
    /// By program name.
    pub(crate) objects: BTreeMap<String, Record>,
    /// SHA-256 of every file, locked dependency and setting that the objects are made from.
    pub(crate) inputs: BTreeMap<String, String>,
}

/// What is recorded of one object.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Of the committed file.
    pub(crate) sha256: String,
    /// By section with code, as compiled: `xdp` holds the program, `.text` the functions that it calls.
    pub(crate) instructions: BTreeMap<String, u64>,
    pub(crate) maps: BTreeMap<String, MapDefinition>,
}

impl Record {
    /// Describes an object.
    pub(crate) fn of(object: &[u8]) -> Result<Self> {
        let substance = Substance::of(object)?;
        Ok(Self { sha256: sha256(object), instructions: substance.instructions(), maps: substance.maps })
    }
}

/// The hash over all inputs.
pub(crate) fn source_sha256(inputs: &BTreeMap<String, String>) -> String {
    let mut lines = String::new();
    for (name, hash) in inputs {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{hash}  {name}");
    }
    sha256(lines.as_bytes())
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Collects the inputs of the build from the workspace at `root`.
pub(crate) fn inputs(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut inputs = BTreeMap::new();
    let workspace = read_toml(&root.join("Cargo.toml"))?;
    let mut direct = BTreeSet::new();
    for name in CRATES {
        hash_tree(root, &format!("{name}/src"), &mut inputs)?;
        let manifest = format!("{name}/Cargo.toml");
        hash_file(root, &manifest, &mut inputs)?;
        direct.extend(dependency_names(&read_toml(&root.join(&manifest))?));
    }
    inputs.remove(HOST_ONLY);
    // Of the workspace's manifest only what reaches the objects, so that a dependency of the agent does not stale them.
    let table = |path: [&str; 2]| workspace.get(path[0])?.get(path[1]);
    let text = |value: Option<&Value>| value.map(ToString::to_string).unwrap_or_default();
    let mut settings = vec![
        format!("package: {}", text(table(["workspace", "package"]))),
        format!("profile: {}", text(table(["profile", "release"]))),
        format!("flags: {}", FLAGS.join(" ")),
    ];
    let requested =
        table(["workspace", "dependencies"]).context("Cargo.toml has no workspace.dependencies")?;
    settings.extend(direct.iter().map(|name| format!("{name} = {}", text(requested.get(name)))));
    inputs.insert("Cargo.toml (settings of the objects)".into(), sha256(settings.join("\n").as_bytes()));
    let external = direct.into_iter().filter(|name| !CRATES.contains(&name.as_str()));
    for (name, checksum) in locked(&read_toml(&root.join("Cargo.lock"))?, external)? {
        inputs.insert(format!("Cargo.lock ({name})"), checksum);
    }
    Ok(inputs)
}

/// Names what differs between recorded and present inputs, a line each.
pub(crate) fn changed(
    recorded: &BTreeMap<String, String>,
    present: &BTreeMap<String, String>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, hash) in present {
        match recorded.get(name) {
            None => lines.push(format!("{name}: new")),
            Some(old) if old != hash => lines.push(format!("{name}: changed")),
            Some(_) => {}
        }
    }
    lines.extend(
        recorded.keys().filter(|name| !present.contains_key(*name)).map(|name| format!("{name}: gone")),
    );
    lines
}

/// Packages of the lock file that `roots` stand for or depend on, as (`NAME VERSION`, checksum).
fn locked(lock: &Value, roots: impl Iterator<Item = String>) -> Result<BTreeMap<String, String>> {
    let packages = lock.get("package").and_then(Value::as_array).context("Cargo.lock lists no packages")?;
    let text = |package: &Value, key: &str| package.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let mut found = BTreeMap::new();
    let mut open: Vec<String> = roots.collect();
    while let Some(wanted) = open.pop() {
        // `name`, or `name version` where several versions are locked.
        let mut parts = wanted.split(' ');
        let (name, version) = (parts.next().unwrap_or(""), parts.next());
        let mut candidates = packages.iter().filter(|package| {
            text(package, "name") == name && version.is_none_or(|v| text(package, "version") == v)
        });
        let package = candidates.next().with_context(|| format!("Cargo.lock does not list {wanted}"))?;
        if candidates.next().is_some() {
            bail!("Cargo.lock lists several versions of {name}: name one of them in the manifest");
        }
        let btree_map::Entry::Vacant(entry) = found.entry(format!("{name} {}", text(package, "version")))
        else {
            continue;
        };
        entry.insert(text(package, "checksum"));
        let dependencies = package.get("dependencies").and_then(Value::as_array);
        open.extend(dependencies.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
    }
    Ok(found)
}

/// Names in `[dependencies]` and `[build-dependencies]`.
fn dependency_names(manifest: &Value) -> impl Iterator<Item = String> {
    ["dependencies", "build-dependencies"]
        .into_iter()
        .filter_map(|table| manifest.get(table).and_then(Value::as_table))
        .flat_map(toml::Table::keys)
        .cloned()
}

fn hash_tree(root: &Path, below: &str, inputs: &mut BTreeMap<String, String>) -> Result<()> {
    let directory = root.join(below);
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().with_context(|| format!("{} is not UTF-8", entry.path().display()))?;
        let path = format!("{below}/{name}");
        if entry.file_type()?.is_dir() {
            hash_tree(root, &path, inputs)?;
        } else {
            hash_file(root, &path, inputs)?;
        }
    }
    Ok(())
}

fn hash_file(root: &Path, path: &str, inputs: &mut BTreeMap<String, String>) -> Result<()> {
    let file = root.join(path);
    let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    inputs.insert(path.to_owned(), sha256(&bytes));
    Ok(())
}

fn read_toml(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A document is a table; parsing straight into a `Value` would expect a single value.
    let table: toml::Table = text.parse().with_context(|| format!("cannot parse {}", path.display()))?;
    Ok(Value::Table(table))
}
