//! The committed eBPF objects, read by binutils: a reader that shares no code with what wrote and what loads them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is the failing test")]

use std::{path::Path, process::Command};

use lb_common::abi;

/// Runs readelf on a committed object.
fn readelf(options: &str, object: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lb-userspace/bpf").join(object);
    let output = Command::new("readelf").args(["--wide", options]).arg(&path).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && errors.is_empty(), "readelf complains about {object}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn objects_hold_btf_and_no_dwarf() {
    for object in ["forward.o", "decap.o"] {
        let sections = readelf("--sections", object);
        assert!(!sections.contains(".debug"), "{object} holds DWARF:\n{sections}");
        for name in [" xdp ", " license ", " maps ", " .BTF ", " .BTF.ext "] {
            assert!(sections.contains(name), "{object} has no section{name}:\n{sections}");
        }
    }
}

#[test]
fn programs_and_maps_are_symbols_of_the_objects() {
    for (object, program, maps) in [
        ("forward.o", abi::forward::PROGRAM, &abi::forward::MAPS[..]),
        ("decap.o", abi::decap::PROGRAM, &abi::decap::MAPS[..]),
    ] {
        let symbols = readelf("--symbols", object);
        let has = |kind: &str, name: &str| {
            symbols.lines().any(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                words.get(3) == Some(&kind) && words.last() == Some(&name)
            })
        };
        assert!(has("FUNC", program), "{object} has no program {program}:\n{symbols}");
        for map in maps {
            assert!(has("OBJECT", map), "{object} has no map {map}:\n{symbols}");
        }
    }
}
