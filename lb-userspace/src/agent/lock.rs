//! One agent a node: a lock on the runtime directory, held as long as the process lives.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::api::{ApiError, ErrorKind};

/// The held lock; the kernel releases it with the process, however that ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock in a directory, and leaves this process's number there for whoever comes second.
    ///
    /// # Errors
    ///
    /// Where another process holds it: the error names that process.
    pub fn take(directory: &Path) -> Result<Self> {
        let path = directory.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let message =
                    format!("another agent is running (process {}): it holds {}", holder.trim(), path.display());
                let help = "stop that one first, or give this one its own --runtime-dir and --bpffs";
                return Err(ApiError::new(ErrorKind::Conflict, message, help).into());
            }
            Err((_, error)) => return Err(error).with_context(|| format!("locking {}", path.display())),
        };
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { _file: file })
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
}
