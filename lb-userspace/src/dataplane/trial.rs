//! Whether this kernel takes our programs: they are loaded into maps of the least size, looked at, and forgotten.
//!
//! Nothing is pinned or attached.

use anyhow::{Context as _, Result};
use aya::EbpfLoader;
use lb_common::abi;

use super::{forward::load_program, object};

/// A program that the kernel took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its name.
    pub name: &'static str,
    /// Bytes of machine code; 0 where the kernel interprets it.
    pub machine_code: u32,
}

/// Loads every program once.
///
/// # Errors
///
/// The first refusal, with what the verifier said.
pub fn load() -> Result<Vec<Loaded>> {
    let programs = [(abi::forward::PROGRAM, object::FORWARD), (abi::decap::PROGRAM, object::DECAP)];
    programs.into_iter().map(|(name, object)| load_one(name, object)).collect()
}

fn load_one(name: &'static str, object: &[u8]) -> Result<Loaded> {
    let mut object =
        EbpfLoader::new().load(object).with_context(|| format!("creating the maps of {name}"))?;
    let info = load_program(&mut object, name)?.info().context("asking the kernel about the program")?;
    Ok(Loaded { name, machine_code: info.size_jitted() })
}
