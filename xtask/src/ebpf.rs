//! `cargo xtask ebpf`: rebuilds the committed eBPF objects; with `--check`, proves that they are what the sources make.
//!
//! The objects are committed so that Wattline builds on bare stable Rust. The price is that they can go stale, which
//! the check turns into a failure: by the hash of the sources on any machine, by rebuilding where the tools are there.

mod object;
mod provenance;
mod toolchain;
mod verifier;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::{
    object::Substance,
    provenance::{Provenance, Record},
    toolchain::{PROGRAMS, Toolchain},
    verifier::Budget,
};
use crate::workspace;

/// Where the objects and their provenance are committed.
const DIRECTORY: &str = "lb-userspace/bpf";
const CURE: &str = "run `cargo xtask ebpf` and commit lb-userspace/bpf";

/// Options of the command.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Change nothing; fail if the committed objects are stale, tampered with, or over their verifier budget
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace::root()?;
    if arguments.check { check(&root) } else { rebuild(&root) }
}

fn rebuild(root: &Path) -> Result<()> {
    let toolchain = Toolchain::find()?;
    let built = build(&toolchain, root)?;
    let directory = root.join(DIRECTORY);
    let mut objects = BTreeMap::new();
    for (&name, object) in PROGRAMS.iter().zip(&built) {
        let path = directory.join(name).with_extension("o");
        fs::write(&path, object).with_context(|| format!("cannot write {}", path.display()))?;
        let record = Record::of(object)?;
        println!("{DIRECTORY}/{name}.o: {} bytes, sha256 {}", object.len(), record.sha256);
        objects.insert(name.to_owned(), record);
    }
    let inputs = provenance::inputs(root)?;
    let source_sha256 = provenance::source_sha256(&inputs);
    let provenance = Provenance { source_sha256, tools: toolchain.versions, objects, inputs };
    let mut text = serde_json::to_string_pretty(&provenance)?;
    text.push('\n');
    let path = directory.join("provenance.json");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Builds and strips the objects, and refuses to hand out any that tells about this machine.
fn build(toolchain: &Toolchain, root: &Path) -> Result<Vec<Vec<u8>>> {
    let mut objects = Vec::new();
    for (name, linked) in PROGRAMS.iter().zip(toolchain.build(root)?) {
        let object = object::strip(&linked)?;
        let traces = object::traces_of_the_machine(&object);
        if !traces.is_empty() {
            bail!("{name}.o holds traces of this machine:\n  {}", traces.join("\n  "));
        }
        objects.push(object);
    }
    Ok(objects)
}

/// What a check found.
#[derive(Default)]
struct Findings {
    /// What is wrong; any of it fails the check.
    wrong: Vec<String>,
    /// What could not be looked at here; fails the check under continuous integration only.
    unchecked: Vec<String>,
}

fn check(root: &Path) -> Result<()> {
    let mut findings = Findings::default();
    let provenance: Provenance = read_json(&root.join(DIRECTORY).join("provenance.json"))?;
    let committed = check_committed(root, &provenance, &mut findings)?;
    check_rebuilt(root, &provenance, &committed, &mut findings)?;
    check_budget(&read_json(&root.join(DIRECTORY).join("budget.json"))?, &committed, &mut findings);
    for line in &findings.unchecked {
        eprintln!("NOT CHECKED: {line}");
    }
    if !findings.wrong.is_empty() {
        bail!("the committed eBPF objects are not right:\n  {}", findings.wrong.join("\n  "));
    }
    if workspace::is_ci() && !findings.unchecked.is_empty() {
        bail!("CI is set, and not everything could be checked (see above)");
    }
    Ok(())
}

/// What needs no tools: the sources have not changed since the build, and the objects are those that were built.
fn check_committed(
    root: &Path,
    provenance: &Provenance,
    findings: &mut Findings,
) -> Result<BTreeMap<&'static str, Vec<u8>>> {
    let inputs = provenance::inputs(root)?;
    let changed = provenance::changed(&provenance.inputs, &inputs);
    if changed.is_empty() && provenance::source_sha256(&inputs) == provenance.source_sha256 {
        println!("sources: {} inputs unchanged since the objects were built", inputs.len());
    } else if changed.is_empty() {
        findings.wrong.push("provenance.json: source_sha256 is not the hash of its inputs".into());
    } else {
        let changed = changed.join("\n    ");
        findings.wrong.push(format!("stale: {CURE}; changed since the objects were built:\n    {changed}"));
    }
    let mut committed = BTreeMap::new();
    for name in PROGRAMS {
        let path = root.join(DIRECTORY).join(name).with_extension("o");
        let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let found = provenance::sha256(&object);
        match provenance.objects.get(name) {
            None => findings.wrong.push(format!("{name}.o: not in provenance.json")),
            Some(record) if record.sha256 != found => findings.wrong.push(format!(
                "{name}.o: sha256 {found}, but provenance.json says {}: {CURE}",
                record.sha256
            )),
            Some(record) => match Record::of(&object) {
                Ok(again) if again == *record => println!("{name}.o: as recorded, sha256 {found}"),
                Ok(_) => {
                    let line = format!("{name}.o: provenance.json describes another object: {CURE}");
                    findings.wrong.push(line);
                }
                Err(error) => findings.wrong.push(format!("{name}.o: {error:#}")),
            },
        }
        committed.insert(name, object);
    }
    Ok(committed)
}

/// What needs the BPF toolchain: the sources really make these objects.
fn check_rebuilt(
    root: &Path,
    provenance: &Provenance,
    committed: &BTreeMap<&'static str, Vec<u8>>,
    findings: &mut Findings,
) -> Result<()> {
    let toolchain = match Toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(error) => {
            findings.unchecked.push(format!("the objects were not rebuilt: {error:#}"));
            return Ok(());
        }
    };
    if toolchain.versions != provenance.tools {
        findings.unchecked.push(format!(
            "the objects were not rebuilt: they were made with {}, here are {}",
            provenance.tools, toolchain.versions
        ));
        return Ok(());
    }
    for (name, rebuilt) in PROGRAMS.iter().zip(build(&toolchain, root)?) {
        let object = &committed[name];
        if *object == rebuilt {
            println!("{name}.o: rebuilt, the same bytes");
            continue;
        }
        let committed = match Substance::of(object) {
            Ok(substance) => substance,
            Err(error) => {
                findings.wrong.push(format!("{name}.o: {error:#}"));
                continue;
            }
        };
        let differences = committed.differences(&Substance::of(&rebuilt)?);
        if differences.is_empty() {
            println!("{name}.o: rebuilt, the same programs, maps and data (debug information differs)");
        }
        findings
            .wrong
            .extend(differences.into_iter().map(|line| format!("{name}.o against a rebuilt one: {line}")));
    }
    Ok(())
}

/// What needs root: the verifier takes the programs, and does not work longer on them than budgeted.
fn check_budget(budget: &Budget, committed: &BTreeMap<&'static str, Vec<u8>>, findings: &mut Findings) {
    if !workspace::is_root() {
        let text = "the verified instructions were not measured: loading programs needs root";
        findings.unchecked.push(text.into());
        return;
    }
    for (name, object) in committed {
        match verifier::verified_instructions(object, name) {
            Ok(verified) => match verifier::within_budget(budget, name, verified) {
                Ok(line) => println!("{line}"),
                Err(line) => findings.wrong.push(line),
            },
            Err(error) => findings.wrong.push(format!("{name}: {error:#}")),
        }
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}: {CURE}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not what `cargo xtask ebpf` writes", path.display()))
}
