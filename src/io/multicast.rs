//! Fan-out by IP multicast: one datagram for all members of a slot, to the group of that set of nodes.
//!
//! A group's address is computed from the set, so nobody has to agree on a table. Two sets may share a group:
//! a node that hears a bundle for slots it is no member of ignores them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use xxhash_rust::xxh3::xxh3_64;

use super::sys_socket::{self, Buffers};
use crate::types::NodeSet;

/// Groups follow the first one by less than this.
const GROUPS: u64 = 1 << 16;

/// Where a cluster multicasts.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// The first of 65,536 group addresses.
    pub first: Ipv4Addr,
    /// The port of shard 0; shard n has this plus n.
    pub port: u16,
    /// The address of the interface to send and listen on.
    pub interface: Ipv4Addr,
}

impl Groups {
    /// Where shard `shard` of all nodes of `members` listens.
    pub fn address(&self, members: NodeSet, shard: u16) -> SocketAddr {
        let offset = (xxh3_64(&members.0.to_le_bytes()) % GROUPS) as u32;
        let group = Ipv4Addr::from(u32::from(self.first).saturating_add(offset));
        SocketAddr::new(group.into(), self.port.saturating_add(shard))
    }

    /// A socket that hears what is sent to `members`. Other nodes on this machine may have the same.
    ///
    /// # Errors
    /// From `bind(2)` and `setsockopt(2)` (`ENODEV`: no interface has that address).
    pub fn listen(&self, members: NodeSet, shard: u16, buffers: Buffers) -> io::Result<UdpSocket> {
        let address = self.address(members, shard);
        let socket = sys_socket::bind(address, true)?;
        sys_socket::set_buffers(socket.as_fd(), buffers)?;
        if let SocketAddr::V4(group) = address {
            sys_socket::join_multicast(socket.as_fd(), *group.ip(), self.interface)?;
        }
        let _ = sys_socket::enable_gro(socket.as_fd());
        Ok(socket)
    }

    /// A socket that sends to `members`.
    ///
    /// # Errors
    /// From `connect(2)` and `setsockopt(2)`.
    pub fn sender(&self, members: NodeSet, shard: u16) -> io::Result<UdpSocket> {
        let socket = sys_socket::bind(SocketAddr::new(self.interface.into(), 0), false)?;
        sys_socket::send_multicast_by(socket.as_fd(), self.interface, 1)?;
        socket.connect(self.address(members, shard))?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sys_time::wait_readable;

    const BUFFERS: Buffers = Buffers { recv: 1 << 20, send: 1 << 20 };

    fn groups() -> Groups {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Groups {
            first: Ipv4Addr::new(239, 255, 84, 0),
            port: free.min(65_000),
            interface: Ipv4Addr::LOCALHOST,
        }
    }

    #[test]
    fn every_listener_of_a_set_hears_it_and_others_do_not() {
        let groups = groups();
        let (set, other) = (NodeSet(0b110), NodeSet(0b1010));
        assert_ne!(groups.address(set, 0), groups.address(other, 0));
        let (first, second) =
            (groups.listen(set, 1, BUFFERS).unwrap(), groups.listen(set, 1, BUFFERS).unwrap());
        let stranger = groups.listen(other, 1, BUFFERS).unwrap();
        let wrong_shard = groups.listen(set, 2, BUFFERS).unwrap();
        groups.sender(set, 1).unwrap().send(b"bundle").unwrap();
        let mut buffer = [0; 10];
        for socket in [&first, &second] {
            assert!(wait_readable(socket.as_fd(), 2_000).unwrap());
            assert_eq!(socket.recv(&mut buffer).unwrap(), 6);
        }
        for socket in [&stranger, &wrong_shard] {
            assert_eq!(socket.recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}
