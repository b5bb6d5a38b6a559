//! Reading and writing whole files: with a size limit, and so that a crash leaves the old file or the new one.
//!
//! This is the only place of the configuration module that touches the disk. It must never leave a half-written file
//! under the final name, nor follow the temporary name of somebody else.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

/// Reads a file of at most `limit` bytes.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    // Without O_NONBLOCK, a path that names a FIFO would hang the open until somebody writes to it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .context("cannot open the file")?;
    let metadata = file.metadata().context("cannot inspect the file")?;
    if metadata.is_dir() {
        bail!("this is a directory, not a file");
    }
    if !metadata.is_file() {
        bail!("this is not a regular file; pipe it to standard input with -f - instead");
    }
    read_to_limit(file, limit)
}

/// Reads everything from `source`, which may be at most `limit` bytes long.
pub fn read_to_limit(source: impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(limit.saturating_add(1)).read_to_end(&mut bytes).context("cannot read")?;
    if bytes.len() as u64 > limit {
        bail!("longer than {limit} bytes");
    }
    Ok(bytes)
}

/// Replaces the file at `path` by `bytes`: whole or not at all, also across a power failure. The mode of an existing
/// file is kept; a new one is readable by its owner and group only.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    // A link is followed once, so that the link stays and its target changes.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let name = path.file_name().context("the path has no file name")?;
    let mode = std::fs::metadata(&path).map_or(0o640, |metadata| metadata.permissions().mode() & 0o777);
    let temporary = directory.join(temporary_name(name));
    let result = write_and_rename(&temporary, &path, bytes, mode).and_then(|()| {
        File::open(&directory)
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("cannot flush directory {}", directory.display()))
    });
    if result.is_err() {
        // Already renamed or never made: then there is nothing to remove, and the first error is the one that matters.
        let _ = std::fs::remove_file(&temporary);
    }
    result.with_context(|| format!("cannot write {}", path.display()))
}

fn write_and_rename(temporary: &Path, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
        .with_context(|| format!("cannot make {}", temporary.display()))?;
    file.write_all(bytes)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(temporary, path).context("cannot rename the new file over the old one")
}

/// A name beside the final one that no other writer uses.
fn temporary_name(name: &std::ffi::OsStr) -> OsString {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    temporary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_the_whole_file_and_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.toml");
        write_atomic(&path, b"first, and longer").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o604);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn keeps_a_link_and_writes_its_target() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let link = directory.path().join("link");
        std::fs::write(&target, b"old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_atomic(&link, b"new").unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing").join("a.toml");
        assert!(write_atomic(&path, b"x").is_err());
        let path = directory.path().join("kept");
        std::fs::create_dir(&path).unwrap();
        assert!(write_atomic(&path, b"x").is_err(), "a directory is not replaced");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_limit_is_exact_and_odd_paths_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_limited(&path, 5).unwrap(), b"12345");
        assert!(read_limited(&path, 4).unwrap_err().to_string().contains("longer than 4 bytes"));
        assert!(read_limited(directory.path(), 4).unwrap_err().to_string().contains("directory"));
        assert!(read_limited(&directory.path().join("none"), 4).is_err());
        assert!(read_limited(Path::new("/dev/zero"), 4).is_err());
    }
}
