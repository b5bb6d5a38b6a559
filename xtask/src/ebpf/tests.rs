//! That the check turns red: every way in which a committed object can be wrong is done to a copy of the repository.

use std::fs::copy;

use ::object::{Object as _, ObjectSection as _};
use tempfile::TempDir;

use super::*;

/// What the check without tools looks at, copied into a directory of its own.
fn repository() -> TempDir {
    let (root, copied) = (workspace::root().unwrap(), tempfile::tempdir().unwrap());
    for file in ["Cargo.toml", "Cargo.lock", "lb-ebpf/Cargo.toml", "lb-common/Cargo.toml"] {
        fs::create_dir_all(copied.path().join(file).parent().unwrap()).unwrap();
        copy(root.join(file), copied.path().join(file)).unwrap();
    }
    for directory in ["lb-ebpf/src", "lb-common/src", DIRECTORY] {
        copy_tree(&root.join(directory), &copied.path().join(directory));
    }
    copied
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy_tree(&from, &to);
        } else {
            copy(from, to).unwrap();
        }
    }
}

fn object_path(repository: &TempDir, name: &str) -> std::path::PathBuf {
    repository.path().join(DIRECTORY).join(name).with_extension("o")
}

fn append(repository: &TempDir, file: &str, text: &str) {
    let path = repository.path().join(file);
    let changed = fs::read_to_string(&path).unwrap() + text;
    fs::write(path, changed).unwrap();
}

/// What the check without tools finds wrong.
fn wrong(repository: &TempDir) -> Vec<String> {
    let provenance: Provenance =
        read_json(&repository.path().join(DIRECTORY).join("provenance.json")).unwrap();
    let mut findings = Findings::default();
    check_committed(repository.path(), &provenance, &mut findings).unwrap();
    findings.wrong
}

fn committed(name: &str) -> Vec<u8> {
    fs::read(workspace::root().unwrap().join(DIRECTORY).join(name).with_extension("o")).unwrap()
}

/// Where a section's bytes are in the file.
fn file_range(object: &[u8], section: &str) -> std::ops::Range<usize> {
    let file = ::object::File::parse(object).unwrap();
    let (start, size) = file.section_by_name(section).unwrap().file_range().unwrap();
    start as usize..(start + size) as usize
}

fn differences(committed: &[u8], rebuilt: &[u8]) -> Vec<String> {
    Substance::of(committed).unwrap().differences(&Substance::of(rebuilt).unwrap())
}

#[test]
fn the_repository_as_it_is_passes() {
    assert_eq!(wrong(&repository()), Vec::<String>::new());
}

#[test]
fn a_flipped_byte_is_found() {
    let repository = repository();
    let path = object_path(&repository, "decap");
    let mut object = fs::read(&path).unwrap();
    let code = file_range(&object, "xdp");
    object[code.start + 100] ^= 1;
    fs::write(path, object).unwrap();
    let wrong = wrong(&repository);
    assert!(wrong.len() == 1 && wrong[0].starts_with("decap.o: sha256 "), "{wrong:?}");
}

#[test]
fn a_changed_source_is_named() {
    for file in ["lb-ebpf/src/bin/forward.rs", "lb-common/src/datapath/hash.rs", "lb-common/Cargo.toml"] {
        let repository = repository();
        append(&repository, file, "\n# //\n");
        let wrong = wrong(&repository);
        assert!(wrong.len() == 1 && wrong[0].contains(&format!("{file}: changed")), "{wrong:?}");
    }
}

#[test]
fn new_and_removed_sources_are_named() {
    let repository = repository();
    fs::rename(
        repository.path().join("lb-common/src/ring.rs"),
        repository.path().join("lb-common/src/wheel.rs"),
    )
    .unwrap();
    let wrong = wrong(&repository);
    assert!(wrong.len() == 1, "{wrong:?}");
    assert!(
        wrong[0].contains("lb-common/src/ring.rs: gone") && wrong[0].contains("lb-common/src/wheel.rs: new")
    );
}

#[test]
fn another_version_of_a_dependency_is_named() {
    let repository = repository();
    let path = repository.path().join("Cargo.lock");
    let lock = fs::read_to_string(&path).unwrap();
    let entry = "name = \"network-types\"\nversion = \"";
    assert!(lock.contains(entry));
    fs::write(path, lock.replace(entry, &format!("{entry}9."))).unwrap();
    let wrong = wrong(&repository);
    assert!(wrong.len() == 1 && wrong[0].contains("Cargo.lock (network-types 9."), "{wrong:?}");
}

#[test]
fn what_only_user_space_uses_may_change() {
    let repository = repository();
    append(&repository, "lb-common/src/host.rs", "// more\n");
    append(&repository, "Cargo.toml", "\n[profile.bench]\nlto = true\n");
    assert_eq!(wrong(&repository), Vec::<String>::new());
}

#[test]
fn a_record_that_describes_something_else_is_found() {
    let repository = repository();
    let path = repository.path().join(DIRECTORY).join("provenance.json");
    let text = fs::read_to_string(&path).unwrap();
    let changed = text.replace("\"max_entries\": 256", "\"max_entries\": 257");
    assert_ne!(text, changed);
    fs::write(path, changed).unwrap();
    let wrong = wrong(&repository);
    assert!(wrong.len() == 1 && wrong[0].contains("describes another object"), "{wrong:?}");
}

#[test]
fn a_different_instruction_is_located() {
    let one = committed("forward");
    let mut other = one.clone();
    let code = file_range(&other, "xdp");
    // The immediate of the eighth instruction.
    other[code.start + 7 * 8 + 4] ^= 1;
    let found = differences(&one, &other);
    assert!(
        found.len() == 1
            && found[0].contains("section xdp")
            && found[0].contains("in `forward`, instruction 7")
    );
    assert_eq!(differences(&one, &one), Vec::<String>::new());
}

#[test]
fn a_different_map_is_named() {
    let one = committed("decap");
    let mut other = one.clone();
    let maps = file_range(&other, "maps");
    // `max_entries` of the first definition.
    other[maps.start + 12] ^= 1;
    let found = differences(&one, &other);
    assert!(found.len() == 1 && found[0].starts_with("map DECAP_NODE: "), "{found:?}");
}

#[test]
fn a_different_licence_is_named() {
    let one = committed("decap");
    let mut other = one.clone();
    let licence = file_range(&other, "license");
    other[licence.start] = b'X';
    let found = differences(&one, &other);
    assert!(found.iter().any(|line| line.starts_with("licence: ")), "{found:?}");
}

#[test]
fn a_different_relocation_is_named() {
    let one = committed("decap");
    let mut other = one.clone();
    let relocations = file_range(&other, ".relxdp");
    // The symbol of the first: high half of `r_info`, behind the offset.
    other[relocations.start + 12] ^= 1;
    let found = differences(&one, &other);
    assert!(found.len() == 1 && found[0].starts_with("section xdp: relocations differ"), "{found:?}");
}

#[test]
fn debug_information_makes_no_difference() {
    let one = committed("forward");
    let mut other = one.clone();
    let lines = file_range(&other, ".BTF.ext");
    other[lines.end - 1] ^= 1;
    assert_eq!(differences(&one, &other), Vec::<String>::new());
}

#[test]
fn stripping_what_is_stripped_changes_nothing() {
    let object = committed("forward");
    assert_eq!(object::strip(&object).unwrap(), object);
}

#[test]
fn traces_of_the_machine_are_found() {
    assert_eq!(object::traces_of_the_machine(&committed("forward")), Vec::<String>::new());
    let found = object::traces_of_the_machine(b"\0/opt/rust/lib.rs\0fine/relative.rs\0a / b\0// text\0");
    assert_eq!(found, ["/opt/rust/lib.rs"]);
    let home = format!("\0x=/ho{}/someone\0", "me");
    assert_eq!(object::traces_of_the_machine(home.as_bytes()).len(), 1);
    assert_eq!(object::traces_of_the_machine(b"\0registry/src/host-1234/crate\0").len(), 1);
}

#[test]
fn a_program_over_its_budget_is_found() {
    let budget = Budget::from([("forward".to_owned(), 100)]);
    assert!(verifier::within_budget(&budget, "forward", 100).is_ok());
    assert!(verifier::within_budget(&budget, "forward", 101).unwrap_err().contains("1 over the budget"));
    assert!(verifier::within_budget(&budget, "decap", 1).unwrap_err().contains("no entry"));
}

#[test]
fn every_program_has_a_budget_and_a_source() {
    let root = workspace::root().unwrap();
    let budget: Budget = read_json(&root.join(DIRECTORY).join("budget.json")).unwrap();
    let mut sources: Vec<_> = fs::read_dir(root.join("lb-ebpf/src/bin"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    sources.sort();
    assert_eq!(budget.into_keys().collect::<Vec<_>>(), sources);
    let mut programs = PROGRAMS;
    programs.sort_unstable();
    assert_eq!(programs.as_slice(), sources, "PROGRAMS, and lb-ebpf/src/bin");
}
