//! One thread's socket to one other node (or multicast group): sealed datagrams, several to a system call.
//!
//! The sockets of a node's links to all its peers are bound to one address and connected to one peer each, so
//! that the kernel sorts what arrives, and an ICMP port-unreachable names the peer it came from.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use super::sys_recv::RecvBatch;
use super::sys_send::{SendBatch, Sent};
use super::sys_socket::{self, Buffers};
use super::tally::Tally;
use crate::wire::datagram::{HEADER_LEN, Kind, OVERHEAD, TAG_LEN};
use crate::wire::seal::{Opened, Opener, Sealer};

/// Messages in one system call; each may be up to 64 datagrams.
const WIDTH: usize = 16;
/// The most bytes that wait for one peer; what is over is dropped, counted, and repaired by the protocol.
const QUEUE_BYTES: usize = 4 << 20;

/// See the module's page.
#[derive(Debug)]
pub struct Link {
    socket: UdpSocket,
    out: SendBatch,
    blocked: bool,
}

impl Link {
    /// Binds `own` (shared with the links to other peers), connects to `theirs`, and asks for `buffers`; returns
    /// what was granted too.
    ///
    /// # Errors
    /// From `bind(2)`, `connect(2)` and `setsockopt(2)`. Whether somebody else has `own` must be asked before
    /// the first link binds it: [`sys_socket::probe_free`].
    pub fn connect(own: SocketAddr, theirs: SocketAddr, buffers: Buffers) -> io::Result<(Link, Buffers)> {
        let socket = sys_socket::bind(own, true)?;
        socket.connect(theirs)?;
        let buffers = sys_socket::set_buffers(socket.as_fd(), buffers)?;
        sys_socket::ignore_path_mtu(socket.as_fd(), own.is_ipv6())?;
        // Without it (before Linux 5.0) every datagram arrives by itself, which costs time and nothing else.
        let _ = sys_socket::enable_gro(socket.as_fd());
        Ok((Link::over(socket), buffers))
    }

    /// A link over a socket that is connected already, or only listened on.
    pub fn over(socket: UdpSocket) -> Link {
        Link { socket, out: SendBatch::new(WIDTH, QUEUE_BYTES, true), blocked: false }
    }

    /// The descriptor, to be watched.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether nothing is queued.
    pub fn is_idle(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether datagrams wait for the socket to become writable.
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// Seals `plaintext` and queues it. `dst_boot` as in [`Sealer::seal`].
    pub fn push(
        &mut self,
        sealer: &mut Sealer,
        kind: Kind,
        dst_boot: u32,
        plaintext: &[u8],
        tally: &mut Tally,
    ) {
        let queued = self.out.push_with(None, 0, plaintext.len() + OVERHEAD, |arena| {
            seal_into(arena, sealer, kind, dst_boot, plaintext);
        });
        if queued {
            tally.peer_sent += 1;
            tally.peer_sent_bytes += (plaintext.len() + OVERHEAD) as u64;
        } else {
            tally.dropped.peer_queue_full += 1;
        }
    }

    /// Sends what is queued, as far as the kernel takes it. True if the peer's port is closed.
    pub fn flush(&mut self, tally: &mut Tally) -> bool {
        let had_gso = self.out.gso();
        let mut refusals = 0;
        self.blocked = loop {
            match self.out.send(self.socket.as_fd()) {
                Sent::All | Sent::Held => break false,
                Sent::Blocked => {
                    tally.peer_blocked += 1;
                    break true;
                }
                // The report may be about an earlier datagram, and this one was not tried: try it once.
                Sent::Refused(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    tally.refused += 1;
                    refusals += 1;
                    if refusals > 1 {
                        tally.dropped.peer_send_failed += self.out.clear() as u64;
                        break false;
                    }
                }
                Sent::Refused(_) => {
                    tally.dropped.peer_send_failed += self.out.skip() as u64;
                }
            }
        };
        tally.gso_off += u64::from(had_gso && !self.out.gso());
        refusals > 0
    }

    /// Receives one batch. `WouldBlock` when nothing is there, `ConnectionRefused` when the peer's port is closed.
    ///
    /// # Errors
    /// As [`RecvBatch::recv`].
    pub fn recv(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.recv(self.socket.as_fd())
    }

    /// Datagrams the kernel dropped because this socket was read too slowly.
    pub fn kernel_drops(&self) -> u64 {
        sys_socket::kernel_drops(self.socket.as_fd()).map_or(0, u64::from)
    }
}

/// Appends `plaintext`, sealed, to `arena`.
pub fn seal_into(arena: &mut Vec<u8>, sealer: &mut Sealer, kind: Kind, dst_boot: u32, plaintext: &[u8]) {
    let start = arena.len();
    arena.resize(start + HEADER_LEN, 0);
    arena.extend_from_slice(plaintext);
    arena.resize(arena.len() + TAG_LEN, 0);
    sealer.seal(kind, dst_boot, &mut arena[start..]);
}

/// Opens every datagram of a batch of `count` that holds sealed ones, cut apart where the kernel joined them.
pub fn open_each(
    batch: &mut RecvBatch,
    count: usize,
    opener: &mut Opener,
    tally: &mut Tally,
    mut take: impl FnMut(Option<SocketAddr>, Opened<'_>, &mut Tally),
) {
    for index in 0..count {
        let Some(received) = batch.get(index) else { break };
        if received.truncated {
            tally.peer_received += 1;
            tally.dropped.peer_too_long += 1;
            continue;
        }
        let source = received.source;
        for datagram in received.bytes.chunks_mut(received.segment.max(1)) {
            tally.peer_received += 1;
            match opener.open(datagram) {
                Ok(opened) => take(source, opened, tally),
                Err(reason) => tally.dropped.not_opened.count(reason),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Boot, NodeId, NodeSet};
    use crate::wire::datagram::destination;
    use crate::wire::seal::ClusterKey;

    const BOOT: Boot = Boot(0x1234_5678_9abc);

    /// Two free addresses that stay free long enough for a test.
    fn addresses() -> (SocketAddr, SocketAddr) {
        let free = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (a, b) = (free(), free());
        (a.local_addr().unwrap(), b.local_addr().unwrap())
    }

    fn link(own: SocketAddr, theirs: SocketAddr) -> Link {
        Link::connect(own, theirs, Buffers { recv: 1 << 20, send: 1 << 20 }).unwrap().0
    }

    fn seals() -> (Sealer, Opener) {
        let key = ClusterKey::loopback();
        let mut peers = NodeSet::EMPTY;
        peers.insert(NodeId(1));
        (Sealer::new(&key, NodeId(1), BOOT, 1), Opener::new(&key, NodeId(2), BOOT, peers))
    }

    /// Every plaintext that arrives within half a second of silence.
    fn receive(link: &Link, opener: &mut Opener, tally: &mut Tally) -> Vec<Vec<u8>> {
        let mut batch = RecvBatch::new(8, 1 << 16);
        let mut plaintexts = Vec::new();
        while super::super::sys_time::wait_readable(link.socket.as_fd(), 500).unwrap() {
            if let Ok(count) = link.recv(&mut batch) {
                open_each(&mut batch, count, opener, tally, |_, opened, _| {
                    plaintexts.push(opened.plaintext.to_vec());
                });
            }
            if plaintexts.len() >= 101 {
                break;
            }
        }
        plaintexts
    }

    #[test]
    fn sealed_datagrams_arrive_in_order_and_are_cut_apart() {
        let (here, there) = addresses();
        let (mut a, b) = (link(here, there), link(there, here));
        let (mut sealer, mut opener) = seals();
        let mut tally = Tally::default();
        let expected: Vec<Vec<u8>> = (0..101_u8).map(|n| vec![n; if n == 100 { 5 } else { 1_200 }]).collect();
        for plaintext in &expected {
            a.push(&mut sealer, Kind::Shard, destination(BOOT), plaintext, &mut tally);
        }
        assert!(!a.flush(&mut tally));
        assert_eq!(receive(&b, &mut opener, &mut tally), expected);
        assert_eq!((tally.peer_sent, tally.peer_received, tally.gso_off), (101, 101, 0));
    }

    #[test]
    fn links_on_one_address_hear_their_own_peer_only() {
        let (shared, first) = addresses();
        let (_, second) = addresses();
        let (to_first, to_second) = (link(shared, first), link(shared, second));
        let mut from_first = link(first, shared);
        let (mut sealer, mut opener) = seals();
        let mut tally = Tally::default();
        from_first.push(&mut sealer, Kind::Shard, 0, b"hello", &mut tally);
        from_first.flush(&mut tally);
        let mut batch = RecvBatch::new(1, 100);
        assert_eq!(to_second.recv(&mut batch).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(receive(&to_first, &mut opener, &mut tally), [b"hello"]);
    }

    #[test]
    fn garbage_is_counted_and_a_closed_port_is_noticed() {
        let (here, there) = addresses();
        let (mut a, b) = (link(here, there), link(there, here));
        let (mut sealer, mut opener) = seals();
        let mut tally = Tally::default();
        a.socket.send(b"not sealed").unwrap();
        a.push(&mut sealer, Kind::Shard, 0, b"sealed", &mut tally);
        a.flush(&mut tally);
        assert_eq!(receive(&b, &mut opener, &mut tally), [b"sealed"]);
        assert_eq!(tally.dropped.not_opened.total(), 1);
        drop(b);
        let mut refused = false;
        for _ in 0..100 {
            a.push(&mut sealer, Kind::Shard, 0, b"anybody?", &mut tally);
            refused = a.flush(&mut tally);
            if refused {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(refused);
        assert!(tally.refused > 0);
    }
}
