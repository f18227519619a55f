//! What a cluster on loopback needs of the machine: free ports, and a folder of its own.

use anyhow::Context;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The first of `count` neighbouring UDP ports on loopback, from `first` on, that nobody has.
pub(super) fn free_ports(first: u16, count: u16) -> anyhow::Result<u16> {
    let free = |port: u16| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let found = (first..u16::MAX - count).step_by(usize::from(count)).find(|p| (*p..p + count).all(free));
    found.with_context(|| format!("no {count} free UDP ports on 127.0.0.1 above {first}"))
}

/// A new folder in the system's place for temporary ones; removed, with everything in it, when this is dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn new() -> anyhow::Result<Folder> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tandem-local-{}-{number}", std::process::id()));
        // What is left of a process that was killed and had this one's id.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot create the folder {}", path.display()))?;
        Ok(Folder(path))
    }

    /// A folder in it, made when it is not there.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn folder(&self, of: &str, what: &str) -> anyhow::Result<PathBuf> {
        let path = self.path().join(of).join(what);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot create the folder {}", path.display()))?;
        Ok(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It is in the place for things that may be left.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_apart_and_go_with_their_cluster() {
        let (one, other) = (Folder::new().unwrap(), Folder::new().unwrap());
        let path = one.folder("n1", "data").unwrap();
        assert!(path.is_dir() && path.starts_with(one.path()) && !path.starts_with(other.path()));
        drop(one);
        assert!(!path.exists() && other.path().is_dir());
    }

    #[test]
    fn ports_that_somebody_has_are_left_out() {
        let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        if port < u16::MAX - 10 {
            assert!(free_ports(port, 2).unwrap() > port);
        }
    }
}
