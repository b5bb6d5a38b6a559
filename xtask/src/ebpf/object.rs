//! The ELF object as such: stripping it, searching it for traces of the build machine, and telling two apart.
//!
//! Pure functions over bytes; nothing here touches a file or the kernel.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, bail};
use aya_obj::generated::bpf_map_type;
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, RelocationTarget, SectionFlags,
    SymbolKind,
    build::elf::{Builder, SectionData},
    elf,
};
use serde::{Deserialize, Serialize};

/// Bytes of one BPF instruction.
const INSTRUCTION: u64 = 8;

/// Removes DWARF: it is most of the file and nobody loads it. BTF stays, which the kernel and the verifier's log use.
pub(crate) fn strip(linked: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(linked).context("bpf-linker's output is not a readable ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug") || name.starts_with(b".rel.debug");
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and of symbols in one table; the builder writes two.
    if !builder.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = builder.sections.add();
        names.name = b".shstrtab".as_slice().into();
        names.sh_type = elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the stripped object")?;
    Ok(stripped)
}

/// Finds strings that tell something about the machine that the object was built on: absolute paths, home directories,
/// and the directories that cargo names after the host that it fetched crates from.
pub(crate) fn traces_of_the_machine(object: &[u8]) -> Vec<String> {
    const TRACES: [&str; 4] = ["/home/", concat!("/ro", "ot/"), "/tmp/", "registry/src"];
    let printable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    let mut found: Vec<String> = object
        .split(|byte| !printable(byte))
        .filter(|run| run.len() >= 4)
        .map(|run| String::from_utf8_lossy(run).into_owned())
        .filter(|run| TRACES.iter().any(|trace| run.contains(trace)) || is_absolute_path(run))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// True for `/directory/...`; source lines, which BTF quotes, may hold a division or a comment.
fn is_absolute_path(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('/') else { return false };
    rest.starts_with(|first: char| first.is_ascii_alphanumeric()) && rest.contains('/')
}

/// A map as the object defines it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MapDefinition {
    /// The kernel's name of the type, without `BPF_MAP_TYPE_`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Bytes.
    pub(crate) key_size: u32,
    /// Bytes.
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    /// `BPF_F_*`.
    pub(crate) flags: u32,
}

#[derive(Debug, PartialEq, Eq)]
struct Section {
    bytes: Vec<u8>,
    executable: bool,
    /// (offset, type, target).
    relocations: Vec<(u64, u32, String)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Symbol {
    section: String,
    offset: u64,
    size: u64,
}

/// Everything about an object that changes what the kernel runs: not the debug information and not BTF.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Substance {
    licence: String,
    sections: BTreeMap<String, Section>,
    symbols: BTreeMap<String, Symbol>,
    /// By name.
    pub(crate) maps: BTreeMap<String, MapDefinition>,
}

impl Substance {
    /// Reads an object.
    pub(crate) fn of(object: &[u8]) -> Result<Self> {
        let parsed =
            aya_obj::Object::parse(object).map_err(|error| anyhow!("aya cannot read the object: {error}"))?;
        let maps = parsed
            .maps
            .iter()
            // Read-only data is a map for aya, but its bytes are compared as a section.
            .filter(|(name, _)| !name.starts_with('.'))
            .map(|(name, map)| Ok((name.clone(), map_definition(map)?)))
            .collect::<Result<_>>()?;
        let file = object::File::parse(object).context("the object is not a readable ELF file")?;
        let mut sections = BTreeMap::new();
        for section in file.sections() {
            let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
                bail!("the object is not an ELF file")
            };
            let name = section.name()?.to_owned();
            // Legacy map definitions are compared by name, so that their order in the section does not matter.
            if sh_flags & u64::from(elf::SHF_ALLOC) == 0 || name == "maps" {
                continue;
            }
            let mut relocations = Vec::new();
            for (offset, relocation) in section.relocations() {
                let RelocationFlags::Elf { r_type } = relocation.flags() else {
                    bail!("not an ELF relocation")
                };
                relocations.push((offset, r_type, target_name(&file, relocation.target())?));
            }
            let executable = sh_flags & u64::from(elf::SHF_EXECINSTR) != 0;
            sections.insert(name, Section { bytes: section.data()?.to_vec(), executable, relocations });
        }
        let mut symbols = BTreeMap::new();
        // Functions include those that only their object sees; other local symbols are names that LLVM made up.
        for symbol in file.symbols().filter(|symbol| symbol.is_global() || symbol.kind() == SymbolKind::Text)
        {
            let Some(index) = symbol.section_index() else { continue };
            let section = file.section_by_index(index)?.name()?.to_owned();
            if !sections.contains_key(&section) {
                continue;
            }
            let entry = Symbol { section, offset: symbol.address(), size: symbol.size() };
            symbols.insert(symbol.name()?.to_owned(), entry);
        }
        Ok(Self { licence: parsed.license.to_string_lossy().into_owned(), sections, symbols, maps })
    }

    /// Instructions of each section with code: `xdp` holds the program, `.text` what it calls.
    pub(crate) fn instructions(&self) -> BTreeMap<String, u64> {
        let code = self.sections.iter().filter(|(_, section)| section.executable);
        code.map(|(name, section)| (name.clone(), section.bytes.len() as u64 / INSTRUCTION)).collect()
    }

    /// Says in what `rebuilt` differs from `self`, which is the committed object; empty where both load the same.
    pub(crate) fn differences(&self, rebuilt: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.licence != rebuilt.licence {
            differences.push(format!("licence: committed {:?}, rebuilt {:?}", self.licence, rebuilt.licence));
        }
        for (name, committed, rebuilt) in both(&self.maps, &rebuilt.maps) {
            if committed != rebuilt {
                differences.push(format!("map {name}: committed {committed:?}, rebuilt {rebuilt:?}"));
            }
        }
        for (name, committed, again) in both(&self.sections, &rebuilt.sections) {
            match (committed, again) {
                (Some(committed), Some(again)) => {
                    differences.extend(self.section_difference(name, committed, again));
                }
                (Some(_), None) => differences.push(format!("section {name}: only in the committed object")),
                (None, _) => differences.push(format!("section {name}: only in the rebuilt object")),
            }
        }
        for (name, committed, rebuilt) in both(&self.symbols, &rebuilt.symbols) {
            if committed != rebuilt {
                differences.push(format!("symbol {name}: committed {committed:?}, rebuilt {rebuilt:?}"));
            }
        }
        differences
    }

    fn section_difference(&self, name: &str, committed: &Section, rebuilt: &Section) -> Option<String> {
        if committed.bytes != rebuilt.bytes {
            let same =
                committed.bytes.iter().zip(&rebuilt.bytes).take_while(|(one, other)| one == other).count();
            let inside = self.symbol_at(name, same as u64);
            let place = match inside {
                Some((symbol, offset)) if committed.executable => {
                    format!("in `{symbol}`, instruction {}", offset / INSTRUCTION)
                }
                Some((symbol, offset)) => format!("in `{symbol}`, byte {offset}"),
                None => format!("at byte {same}"),
            };
            let (committed, rebuilt) = (committed.bytes.len(), rebuilt.bytes.len());
            return Some(format!(
                "section {name}: the bytes differ, first {place} (committed {committed} bytes, rebuilt {rebuilt})"
            ));
        }
        let (committed, rebuilt) = (&committed.relocations, &rebuilt.relocations);
        if committed != rebuilt {
            let mut indices = 0..committed.len().max(rebuilt.len());
            let index = indices.find(|&index| committed.get(index) != rebuilt.get(index))?;
            let (one, other) = (committed.get(index), rebuilt.get(index));
            return Some(format!("section {name}: relocations differ: committed {one:?}, rebuilt {other:?}"));
        }
        None
    }

    /// The symbol that covers an offset of a section, and the offset in it.
    fn symbol_at(&self, section: &str, offset: u64) -> Option<(&str, u64)> {
        self.symbols
            .iter()
            .find(|(_, symbol)| {
                symbol.section == section && (symbol.offset..symbol.offset + symbol.size).contains(&offset)
            })
            .map(|(name, symbol)| (name.as_str(), offset - symbol.offset))
    }
}

/// The union of two maps, in order of names.
fn both<'a, T>(
    one: &'a BTreeMap<String, T>,
    other: &'a BTreeMap<String, T>,
) -> impl Iterator<Item = (&'a str, Option<&'a T>, Option<&'a T>)> {
    let only_other = other.keys().filter(|name| !one.contains_key(*name));
    one.keys().chain(only_other).map(|name| (name.as_str(), one.get(name), other.get(name)))
}

fn map_definition(map: &aya_obj::Map) -> Result<MapDefinition> {
    let kind =
        bpf_map_type::try_from(map.map_type()).map_err(|_| anyhow!("unknown map type {}", map.map_type()))?;
    Ok(MapDefinition {
        kind: format!("{kind:?}").trim_start_matches("BPF_MAP_TYPE_").to_owned(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        max_entries: map.max_entries(),
        flags: map.map_flags(),
    })
}

fn target_name(file: &object::File<'_>, target: RelocationTarget) -> Result<String> {
    let RelocationTarget::Symbol(index) = target else { bail!("a relocation without a symbol") };
    let symbol = file.symbol_by_index(index)?;
    match symbol.kind() {
        SymbolKind::Section => {
            let section = symbol.section_index().context("a section symbol without a section")?;
            Ok(file.section_by_index(section)?.name()?.to_owned())
        }
        _ => Ok(symbol.name()?.to_owned()),
    }
}
