//! Seeing the other end of a veth, in whichever network namespace it is.
//!
//! A thread of its own enters that namespace and only reads there.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use crate::dataplane::{
    ethtool::Ethtool,
    netlink::Netlink,
    nexthop::{Link, XdpAttachMode},
};
use crate::doctor::veth::{Peer, PeerEnd};

/// Looks at the other end of a veth.
pub(super) async fn look(netlink: &Netlink, link: &Link) -> Peer {
    let Some(index) = link.peer_ifindex else { return Peer::Hidden };
    let found = if link.peer_elsewhere {
        match namespace_of(netlink, link).await {
            Some(path) => in_namespace(path, index),
            None => return Peer::Hidden,
        }
    } else {
        here(index).map(|found| found.map(|end| PeerEnd { namespace: None, ..end }))
    };
    match found {
        Ok(Some(end)) => Peer::Seen(end),
        Ok(None) => Peer::Hidden,
        Err(error) => {
            log::debug!("the other end of {}: {error:#}", link.name);
            Peer::Hidden
        }
    }
}

/// A path to the network namespace of a link's other end, if it has a name or a process that can be seen.
async fn namespace_of(netlink: &Netlink, link: &Link) -> Option<PathBuf> {
    let wanted = netlink.placement(link.ifindex).await.ok()?.namespace?;
    let mut seen = HashSet::new();
    for path in namespaces() {
        let Ok(file) = File::open(&path) else { continue };
        let Ok(inode) = file.metadata().map(|metadata| metadata.ino()) else { continue };
        if seen.insert(inode) && netlink.namespace_id(file.as_fd()).await.ok()? == Some(wanted) {
            return Some(path);
        }
    }
    None
}

/// Paths to network namespaces, most telling first: named ones, those of processes, those of threads.
fn namespaces() -> impl Iterator<Item = PathBuf> {
    let named = entries(Path::new("/run/netns"));
    let processes = || entries(Path::new("/proc")).filter(|path| is_number(path));
    let threads = move || processes().flat_map(|process| entries(&process.join("task")));
    named.chain(processes().map(|path| path.join("ns/net"))).chain(threads().map(|path| path.join("ns/net")))
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn is_number(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

/// Enters a namespace on a thread of its own and looks at a link there.
fn in_namespace(path: PathBuf, index: u32) -> Result<Option<PeerEnd>> {
    let namespace = path.display().to_string();
    let enter = move || {
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", path.display()))?;
        here(index)
    };
    let found =
        std::thread::spawn(enter).join().unwrap_or_else(|_| anyhow::bail!("the thread that looks died"))?;
    Ok(found.map(|end| PeerEnd { namespace: Some(namespace), ..end }))
}

/// Looks at a link of the calling thread's network namespace.
fn here(index: u32) -> Result<Option<PeerEnd>> {
    let look = move || -> Result<Option<PeerEnd>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let links =
            runtime.block_on(async { Netlink::open()?.links().await }).context("asking for interfaces")?;
        let Some(link) = links.into_iter().find(|link| link.ifindex == index) else { return Ok(None) };
        let ethtool = Ethtool::open().context("opening a socket to ask drivers")?;
        Ok(Some(PeerEnd {
            namespace: None,
            program: link.xdp.is_some_and(|xdp| xdp.mode == XdpAttachMode::Native),
            mtu: link.mtu,
            tx_checksum: ethtool.tx_checksum(&link.name),
            name: link.name,
        }))
    };
    // A runtime cannot wait inside another one; a new thread starts in the namespace of the one that makes it.
    std::thread::spawn(look).join().unwrap_or_else(|_| anyhow::bail!("the thread that looks died"))
}
