//! One shard's socket on one service endpoint: where clients' datagrams arrive and replies leave.
//!
//! All shards bind the same endpoint (`SO_REUSEPORT`); the kernel gives each client's datagrams to one of them. They may
//! bind it before this machine has its address (`IP_FREEBIND`).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use super::sys_recv::RecvBatch;
use super::sys_send::{SendBatch, Sent};
use super::sys_socket::{self, Buffers};
use super::tally::Tally;
use crate::types::{LocalId, Nanos};

/// Messages in one system call.
const WIDTH: usize = 64;
/// How long replies wait for an address that this machine does not have yet: the shard may hear of it before the
/// interface does.
const ABSENT_FOR: Nanos = Nanos::from_millis(250);
/// How soon it is looked for again.
const LOOK_AGAIN: Nanos = Nanos::from_micros(500);
/// The most bytes of replies that wait for one socket; what is over is dropped and counted.
const QUEUE_BYTES: usize = 4 << 20;

/// See the module's page.
#[derive(Debug)]
pub struct ClientSocket {
    local: LocalId,
    socket: UdpSocket,
    out: SendBatch,
    blocked: bool,
    /// The machine does not have the address, and since when that is known.
    absent: Option<Nanos>,
    /// Nothing is sent before then.
    look_at: Nanos,
}

impl ClientSocket {
    /// Binds `endpoint`, sharing it with the other shards' sockets, and asks for `buffers`; returns what was
    /// granted too.
    ///
    /// # Errors
    /// From `bind(2)`: `AddrInUse` if somebody has it who does not share.
    pub fn bind(
        local: LocalId,
        endpoint: SocketAddr,
        buffers: Buffers,
    ) -> io::Result<(ClientSocket, Buffers)> {
        let socket = sys_socket::bind_early(endpoint, true)?;
        let buffers = sys_socket::set_buffers(socket.as_fd(), buffers)?;
        let out = SendBatch::new(WIDTH, QUEUE_BYTES, false);
        let (absent, look_at) = (None, Nanos::ZERO);
        Ok((ClientSocket { local, socket, out, blocked: false, absent, look_at }, buffers))
    }

    /// Which of the cluster's service endpoints this is.
    pub fn local(&self) -> LocalId {
        self.local
    }

    /// The descriptor, to be watched.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether nothing is queued.
    pub fn is_idle(&self) -> bool {
        self.out.is_empty()
    }

    /// Whether replies wait for the socket to become writable.
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// Receives one batch. `WouldBlock` when nothing is there.
    ///
    /// # Errors
    /// As [`RecvBatch::recv`].
    pub fn recv(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.recv(self.socket.as_fd())
    }

    /// Queues a reply. `tag` must grow with every call; see [`ClientSocket::first_unsent`].
    pub fn push(&mut self, tag: u64, to: SocketAddr, bytes: &[u8], tally: &mut Tally) {
        if self.out.push(Some(to), tag, bytes) {
            tally.client_sent += 1;
        } else {
            tally.dropped.client_queue_full += 1;
        }
    }

    /// Sends what is queued, as far as the kernel takes it and while `may_release`, which is asked before each batch.
    pub fn flush(&mut self, now: Nanos, tally: &mut Tally, may_release: impl Fn() -> bool) {
        if now < self.look_at {
            return;
        }
        self.look_at = Nanos::ZERO;
        self.blocked = loop {
            match self.out.send_while(self.socket.as_fd(), &may_release) {
                Sent::All => {
                    self.absent = None;
                    break false;
                }
                Sent::Held => {
                    tally.client_held += 1;
                    break false;
                }
                Sent::Blocked => {
                    tally.client_blocked += 1;
                    break true;
                }
                Sent::Refused(error) if self.waits_for_address(now, &error) => break false,
                Sent::Refused(_) => {
                    tally.dropped.client_send_failed += 1;
                    tally.client_sent -= 1;
                    self.out.skip();
                }
            }
        };
    }

    /// Whether a refusal only means that the address has still to come.
    fn waits_for_address(&mut self, now: Nanos, error: &io::Error) -> bool {
        let may_be =
            matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable);
        if !may_be || self.socket.local_addr().map_or(true, |at| sys_socket::is_here(at.ip())) {
            return false;
        }
        let waits = now.since(*self.absent.get_or_insert(now)) < ABSENT_FOR;
        if waits {
            self.look_at = now + LOOK_AGAIN;
        }
        waits
    }

    /// When to [flush](ClientSocket::flush) again because the address may have come; [`Nanos::MAX`]: it is there.
    pub fn due(&self) -> Nanos {
        if self.look_at > Nanos::ZERO { self.look_at } else { Nanos::MAX }
    }

    /// The tag of the oldest reply that still waits: all before it were sent, or dropped and counted.
    pub fn first_unsent(&self) -> Option<u64> {
        self.out.front_tag()
    }

    /// Drops what is queued; returns how many replies that were.
    pub fn clear(&mut self) -> usize {
        (self.blocked, self.absent, self.look_at) = (false, None, Nanos::ZERO);
        self.out.clear()
    }

    /// Datagrams the kernel dropped because this socket was read too slowly.
    pub fn kernel_drops(&self) -> u64 {
        sys_socket::kernel_drops(self.socket.as_fd()).map_or(0, u64::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUFFERS: Buffers = Buffers { recv: 1 << 20, send: 1 << 20 };

    fn pair() -> (ClientSocket, UdpSocket) {
        let (socket, _) =
            ClientSocket::bind(LocalId::endpoint(0), "127.0.0.1:0".parse().unwrap(), BUFFERS).unwrap();
        (socket, UdpSocket::bind("127.0.0.1:0").unwrap())
    }

    #[test]
    fn replies_leave_from_the_endpoint_the_client_asked() {
        let (mut server, client) = pair();
        let endpoint = server.socket.local_addr().unwrap();
        client.connect(endpoint).unwrap();
        client.send(b"ask").unwrap();
        let mut batch = RecvBatch::new(4, 100);
        assert_eq!(server.recv(&mut batch).unwrap(), 1);
        let source = batch.get(0).unwrap().source.unwrap();
        let mut tally = Tally::default();
        server.push(1, source, b"answer", &mut tally);
        assert_eq!(server.first_unsent(), Some(1));
        server.flush(Nanos(1), &mut tally, || true);
        assert_eq!(server.first_unsent(), None);
        let mut buffer = [0; 10];
        assert_eq!(client.recv(&mut buffer).unwrap(), 6);
        assert_eq!(tally.client_sent, 1);
    }

    #[test]
    fn replies_wait_while_they_may_not_be_released() {
        let (mut server, client) = pair();
        let mut tally = Tally::default();
        for tag in 1..=3 {
            server.push(tag, client.local_addr().unwrap(), b"reply", &mut tally);
        }
        server.flush(Nanos(1), &mut tally, || false);
        assert_eq!((server.first_unsent(), server.blocked(), tally.client_held), (Some(1), false, 1));
        client.set_nonblocking(true).unwrap();
        assert!(client.recv(&mut [0; 9]).is_err());
        server.flush(Nanos(1), &mut tally, || true);
        assert_eq!((server.first_unsent(), client.recv(&mut [0; 9]).unwrap()), (None, 5));
        server.push(4, client.local_addr().unwrap(), b"reply", &mut tally);
        assert_eq!((server.clear(), server.first_unsent()), (1, None));
    }

    #[test]
    fn replies_wait_for_an_address_that_this_machine_has_still_to_get() {
        let endpoint = "192.0.2.77:0".parse().unwrap();
        let (mut server, _) = ClientSocket::bind(LocalId::endpoint(0), endpoint, BUFFERS).unwrap();
        let (client, mut tally) = (UdpSocket::bind("127.0.0.1:0").unwrap(), Tally::default());
        server.push(1, client.local_addr().unwrap(), b"reply", &mut tally);
        let began = Nanos::from_secs(9);
        server.flush(began, &mut tally, || true);
        assert_eq!((server.first_unsent(), server.blocked()), (Some(1), false));
        assert_eq!(server.due(), began + LOOK_AGAIN);
        let later = began + ABSENT_FOR - Nanos(1);
        server.flush(later, &mut tally, || true);
        assert_eq!((server.due(), tally.dropped.client_send_failed), (later + LOOK_AGAIN, 0));
        let last = server.due();
        server.push(2, client.local_addr().unwrap(), b"reply", &mut tally);
        // The lease is out after one of them.
        let asked = std::cell::Cell::new(0);
        server.flush(last, &mut tally, || asked.replace(asked.get() + 1) == 0);
        assert_eq!((server.first_unsent(), server.due()), (Some(2), Nanos::MAX), "it did not come");
        server.flush(last, &mut tally, || true);
        assert_eq!((server.first_unsent(), tally.dropped.client_send_failed), (None, 2));
    }

    #[test]
    fn what_is_over_the_bound_or_refused_is_counted_and_the_rest_goes() {
        let (mut server, client) = pair();
        let to = client.local_addr().unwrap();
        let mut tally = Tally::default();
        server.push(1, "255.255.255.255:9".parse().unwrap(), b"no", &mut tally);
        server.push(2, to, b"yes", &mut tally);
        server.flush(Nanos(1), &mut tally, || true);
        assert_eq!((tally.client_sent, tally.dropped.client_send_failed), (1, 1));
        let whole = vec![0; QUEUE_BYTES / 64];
        for tag in 3..68 {
            server.push(tag, to, &whole, &mut tally);
        }
        assert_eq!((tally.client_sent, tally.dropped.client_queue_full), (65, 1));
        assert_eq!(server.first_unsent(), Some(3));
    }
}
