//! One agent a node: a lock on the runtime directory, held as long as the process lives.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::api::{ApiError, ErrorKind};

/// The held lock; the kernel releases it with the process, however that ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
    path: PathBuf,
}

/// Locks a directory of pins, whatever runtime directory its user has: two writers of one set of maps would hand out
/// the same regions.
pub(super) fn pins(directory: &Path) -> Result<Flock<File>> {
    let file = File::open(directory).with_context(|| format!("opening {}", directory.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let message = format!("another agent uses the pins in {}", directory.display());
            Err(ApiError::new(ErrorKind::Conflict, message, "stop that one first, or choose another --bpffs")
                .into())
        }
        Err((_, error)) => Err(error).with_context(|| format!("locking {}", directory.display())),
    }
}

impl Lock {
    /// Takes the lock in a directory, and leaves this process's number there for whoever comes second.
    ///
    /// # Errors
    ///
    /// Where another process holds it: the error names that process.
    pub fn take(directory: &Path) -> Result<Self> {
        let path = directory.join("lock");
        loop {
            if let Some(lock) = Self::try_take(&path)? {
                return Ok(lock);
            }
        }
    }

    /// `None` where the file was removed between opening and locking it: then the lock is on nothing.
    fn try_take(path: &Path) -> Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let message = format!(
                    "another agent is running (process {}): it holds {}",
                    holder.trim(),
                    path.display()
                );
                let help = "stop that one first, or give this one its own --runtime-dir and --bpffs";
                return Err(ApiError::new(ErrorKind::Conflict, message, help).into());
            }
            Err((_, error)) => return Err(error).with_context(|| format!("locking {}", path.display())),
        };
        let held = file.metadata().with_context(|| format!("inspecting {}", path.display()))?;
        if !std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
            return Ok(None);
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Some(Self { _file: file, path: path.to_owned() }))
    }

    /// Gives the lock up and removes its file.
    pub fn remove(self) -> Result<()> {
        // While it is held, so that nobody else's file is removed.
        std::fs::remove_file(&self.path).with_context(|| format!("removing {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let first = Lock::take(directory.path()).unwrap();
        let error = Lock::take(directory.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        Lock::take(directory.path()).unwrap();
    }

    #[test]
    fn a_removed_lock_leaves_nothing_and_can_be_taken_again() {
        let directory = tempfile::tempdir().unwrap();
        Lock::take(directory.path()).unwrap().remove().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        Lock::take(directory.path()).unwrap();
    }
}
