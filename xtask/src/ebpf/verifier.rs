//! Asks the kernel's verifier how many instructions it walks for each program, and holds that against the budget.
//!
//! The programs are loaded with minimal maps and dropped at once; nothing is pinned or attached.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::{EbpfLoader, programs::Xdp};

/// Verified instructions that each program may take, by name; `lb-userspace/bpf/budget.json`.
pub(crate) type Budget = BTreeMap<String, u32>;

/// Loads the program `name` of an object and returns how many instructions the verifier processed.
///
/// # Errors
///
/// Without root, where the verifier refuses the program, and on kernels before 5.16, which do not tell.
pub(crate) fn verified_instructions(object: &[u8], name: &str) -> Result<u32> {
    // The sizes in the object are placeholders of one entry each, just right here.
    let mut ebpf = EbpfLoader::new().load(object).with_context(|| format!("cannot load {name}'s maps"))?;
    let program: &mut Xdp = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?
        .try_into()
        .with_context(|| format!("{name} is not an XDP program"))?;
    program.load().with_context(|| format!("the verifier refused {name}"))?;
    program
        .info()?
        .verified_instruction_count()
        .context("this kernel does not tell the number of instructions")
}

/// Compares with the budget; the text is for people, and an error where the program outgrew it.
pub(crate) fn within_budget(budget: &Budget, name: &str, verified: u32) -> Result<String, String> {
    match budget.get(name) {
        None => Err(format!("{name}: {verified} verified instructions, and budget.json has no entry for it")),
        Some(&limit) if verified > limit => Err(format!(
            "{name}: {verified} verified instructions, {} over the budget of {limit}",
            verified - limit
        )),
        Some(&limit) => Ok(format!("{name}: {verified} verified instructions (budget {limit})")),
    }
}
