//! What a node makes sure of before it starts anything.

use std::net::{SocketAddr, UdpSocket};

use super::error::{CONTROL, NodeError, SERVICE, SHARD};
use super::{Plan, sip, system};
use crate::config::{MediaSteer, Node};
use crate::io::{sys_socket, sys_thread};

/// Files that a node holds besides its sockets: standard ones, the log, signals, and some air.
const OTHER_FILES: u64 = 24;
/// Epoll instance, waker and timer of a thread.
const FILES_A_THREAD: u64 = 3;

impl Plan<'_> {
    /// Raises the limit of open files and compares it with what the node's sockets need. A node may come to hold every
    /// service address.
    pub(super) fn check_files(&self) -> Result<(), NodeError> {
        let limit = sys_thread::raise_open_files().map_err(system("read the limit of open files"))?;
        let settings = self.settings;
        let links = settings.peers().count() as u64;
        let multicast = (self.fanouts.len() + self.listening.len()) as u64;
        let records = u64::from(settings.cdr.is_some());
        let shard = FILES_A_THREAD + links + multicast + records + settings.service.len() as u64;
        let control = FILES_A_THREAD + links + 1;
        let (steered, media) = match settings.media_steer {
            MediaSteer::On => (sip::media_sockets(settings), 0),
            MediaSteer::Off => (0, sip::media_sockets(settings)),
        };
        let needed = OTHER_FILES + control + shard * u64::from(settings.shards) + steered;
        if limit < needed {
            return Err(NodeError::OpenFiles { needed, limit });
        }
        if limit >= needed + media {
            return Ok(());
        }
        let range = settings.media_ports;
        let addresses = sip::addresses(settings).len() as u64;
        let fit = (limit - needed) / addresses;
        let fits = (fit > 1).then(|| range.first + (fit - 1).min(u64::from(range.last - range.first)) as u16);
        Err(NodeError::MediaFiles { range, addresses, needed: needed + media, limit, fits })
    }

    /// The node's sockets share their addresses among themselves, so the kernel would not mind a stranger.
    pub(super) fn check_addresses(&self) -> Result<(), NodeError> {
        let me = self.settings.node;
        let shards = (0..self.settings.shards).map(|shard| (SHARD, self.shard_address(me, shard)));
        for (purpose, address) in [(CONTROL, self.control_address(me))].into_iter().chain(shards) {
            sys_socket::probe_free(address).map_err(purpose.failed(address))?;
        }
        // A service endpoint may be held by another node on this machine, and then this node can hold it later.
        let here = |node: &Node| UdpSocket::bind(SocketAddr::new(node.address.ip(), 0)).is_ok();
        if self.settings.peers().any(here) {
            return Ok(());
        }
        for endpoint in &self.settings.service {
            sys_socket::bind_early(*endpoint, false).map_err(SERVICE.failed(*endpoint))?;
        }
        Ok(())
    }
}
