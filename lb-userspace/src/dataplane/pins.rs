//! What outlives the agent: where maps, program and links are pinned, and what is there now.
//!
//! ```text
//! /sys/fs/bpf/wattline/v1/maps/NAME         maps of the balancer
//!                        /program           the program that new links get
//!                        /links/INTERFACE   one attachment each
//! /sys/fs/bpf/wattline/decap-v1/INTERFACE/  the same for a backend's decapsulation
//! ```
//!
//! The version is the layout's: another layout is another directory, never a reinterpretation.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use lb_common::abi;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::link;

/// Where a bpffs is expected by everybody.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf";

/// A directory of pins.
#[derive(Clone, Debug)]
pub struct Pins {
    bpffs: PathBuf,
    root: PathBuf,
}

impl Pins {
    /// The balancer's pins below the bpffs at `bpffs`.
    pub fn forward(bpffs: &Path) -> Self {
        Self { bpffs: bpffs.into(), root: bpffs.join("wattline").join(format!("v{}", abi::LAYOUT_VERSION)) }
    }

    /// The pins of the decapsulation on one interface.
    pub fn decap(bpffs: &Path, interface: &str) -> Self {
        Self { bpffs: bpffs.into(), root: Self::decap_parent(bpffs).join(encode(interface)) }
    }

    /// The directory with one entry per interface with decapsulation.
    pub fn decap_parent(bpffs: &Path) -> PathBuf {
        bpffs.join("wattline").join(format!("decap-v{}", abi::LAYOUT_VERSION))
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Pin of the program.
    pub fn program(&self) -> PathBuf {
        self.root.join("program")
    }

    /// Pin of an interface's link.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.root.join("links").join(encode(interface))
    }

    /// Makes the directories, and mounts a bpffs first where there is none.
    pub fn prepare(&self) -> Result<()> {
        mount_bpffs(&self.bpffs)?;
        for directory in [self.root.join("maps"), self.root.join("links")] {
            fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        }
        Ok(())
    }

    /// Interfaces with a pinned link, in alphabetical order.
    pub fn linked_interfaces(&self) -> Result<Vec<String>> {
        interfaces(&self.root.join("links"))
    }

    /// Which of `maps` are pinned.
    pub fn pinned_maps<'a>(&self, maps: &[&'a str]) -> Vec<&'a str> {
        maps.iter().copied().filter(|name| self.map(name).exists()).collect()
    }

    /// Whether anything is pinned here.
    pub fn exists(&self) -> bool {
        self.root.exists()
    }

    /// Detaches an interface, and removes the pin of its link. False where it had none.
    pub fn unpin_link(&self, interface: &str) -> Result<bool> {
        let pin = self.link(interface);
        match link::detach(&pin) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            // Then it ends a little later, with its pin.
            Err(error) => log::warn!("{interface}: detaching by {}: {error}", pin.display()),
        }
        match fs::remove_file(&pin) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("removing {}", pin.display())),
        }
    }

    /// Removes every pin of this directory, and the directories above it that are empty then. What a link still holds
    /// lives on until that link is gone, so links must go first.
    pub fn remove(&self) -> Result<()> {
        // Before the maps: a program without them must never be found again.
        if let Err(error) = fs::remove_file(self.program())
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("removing {}", self.program().display()));
        }
        remove_tree(&self.root)?;
        let wattline = self.bpffs.join("wattline");
        let mut above = self.root.parent();
        while let Some(directory) = above.filter(|directory| directory.starts_with(&wattline)) {
            // Not empty: other versions or interfaces are there. That is no error.
            if fs::remove_dir(directory).is_err() {
                break;
            }
            above = directory.parent();
        }
        Ok(())
    }
}

/// An interface's name as a bpffs takes it: dots are reserved there (`bpf_lookup` in `kernel/bpf/inode.c`), and
/// interfaces of VLANs have them.
fn encode(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

/// The interfaces that the entries of a directory stand for, in alphabetical order.
pub fn interfaces(directory: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> =
        list(directory)?.into_iter().map(|name| name.replace("%2e", ".").replace("%25", "%")).collect();
    names.sort();
    Ok(names)
}

/// Names in a directory; none where it does not exist.
fn list(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", directory.display())),
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .with_context(|| format!("reading {}", directory.display()))
}

fn remove_tree(root: &Path) -> Result<()> {
    match fs::remove_dir_all(root) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", root.display())),
    }
}

/// Whether a bpffs is mounted at `path`.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a bpffs at `path` unless one is there.
fn mount_bpffs(path: &Path) -> Result<()> {
    if is_bpffs(path) {
        return Ok(());
    }
    if !path.is_dir() {
        bail!("{} is not a directory, so no bpffs can be mounted there", path.display());
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .with_context(|| format!("mounting a bpffs at {}: try `mount -t bpf bpf {0}` as root", path.display()))?;
    log::info!("mounted a bpffs at {}", path.display());
    if has_own_mounts() == Some(true) {
        log::warn!(
            "{} is mounted only for this process and its kin (as under `ip netns exec`): what is pinned there is gone \
             with the last of them, and forwarding with it. Enter only the network: `nsenter --net=/run/netns/NAME`",
            path.display()
        );
    }
    Ok(())
}

/// Whether this process has a mount namespace other than the machine's (or container's) first process; none where that
/// may not be seen.
pub fn has_own_mounts() -> Option<bool> {
    let of =
        |process: &str| fs::metadata(format!("/proc/{process}/ns/mnt")).ok().map(|namespace| namespace.ino());
    Some(of("1")? != of("self")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_carry_the_layout_version() {
        let pins = Pins::forward(Path::new("/bpf"));
        assert_eq!(pins.map("RINGS"), Path::new("/bpf/wattline/v1/maps/RINGS"));
        assert_eq!(pins.link("eth0"), Path::new("/bpf/wattline/v1/links/eth0"));
        assert_eq!(pins.link("eth0.7"), Path::new("/bpf/wattline/v1/links/eth0%2e7"));
        assert_eq!(
            Pins::decap(Path::new("/bpf"), "eth0").program(),
            Path::new("/bpf/wattline/decap-v1/eth0/program")
        );
    }

    #[test]
    fn interface_names_survive_the_encoding() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["eth0", "eth0.100", "a%2eb", "%"] {
            fs::write(directory.path().join(encode(name)), "").unwrap();
        }
        assert_eq!(interfaces(directory.path()).unwrap(), ["%", "a%2eb", "eth0", "eth0.100"]);
    }

    #[test]
    fn remove_leaves_nothing_and_spares_neighbours() {
        let directory = tempfile::tempdir().unwrap();
        let (forward, decap) = (Pins::forward(directory.path()), Pins::decap(directory.path(), "eth0"));
        fs::create_dir_all(forward.map("x").parent().unwrap()).unwrap();
        fs::create_dir_all(decap.root()).unwrap();
        forward.remove().unwrap();
        assert!(!forward.exists() && decap.exists());
        decap.remove().unwrap();
        assert_eq!(list(directory.path()).unwrap(), Vec::<String>::new());
    }
}
