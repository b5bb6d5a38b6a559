//! What outlives the agent beside the maps: the running configuration, which may hold changes that its file does not.
//!
//! It is written before the maps are, so it always names everything that they hold. Numbers are not in it: they are read
//! back from the maps themselves.

use std::{io, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::{self, Config};

/// Version of the file.
const SCHEMA_VERSION: u32 = 1;

/// The agent's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    schema_version: u32,
    /// Counts the changes of the running configuration.
    pub generation: u64,
    /// The configuration as its file had it when it was last taken; tells a changed file from changed runtime.
    pub from_file: Config,
    /// The running configuration.
    pub running: Config,
}

impl State {
    /// A state to write.
    pub const fn new(generation: u64, from_file: Config, running: Config) -> Self {
        Self { schema_version: SCHEMA_VERSION, generation, from_file, running }
    }

    /// Reads the file; `None` where there is none.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let state: Self =
            serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
        ensure!(
            state.schema_version == SCHEMA_VERSION,
            "{} has version {} instead of {SCHEMA_VERSION}",
            path.display(),
            state.schema_version
        );
        state
            .running
            .validate()
            .with_context(|| format!("{} holds an invalid configuration", path.display()))?;
        Ok(Some(state))
    }

    /// Removes the file, if there is one.
    pub fn remove(path: &Path) -> Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Writes the file whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).context("encoding the state")?;
        config::file::write_atomic(path, &text).with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_went() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        assert_eq!(State::read(&path).unwrap(), None);
        let state = State::new(7, Config::default(), Config::default());
        state.write(&path).unwrap();
        assert_eq!(State::read(&path).unwrap(), Some(state));
        State::remove(&path).unwrap();
        State::remove(&path).unwrap();
        assert_eq!(State::read(&path).unwrap(), None);
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        for damaged in ["", "{", "{\"schema_version\":9}", "null"] {
            std::fs::write(&path, damaged).unwrap();
            assert!(format!("{:#}", State::read(&path).unwrap_err()).contains("state.json"), "{damaged:?}");
        }
    }
}
