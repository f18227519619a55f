//! Sending datagrams in batches: `sendmmsg(2)`, with `UDP_SEGMENT` of `udp(7)`.
//!
//! Nothing here allocates once a batch has reached its working size. A `sendmmsg` that stops half-way names no
//! error, so the rest is sent again to learn it.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::raw::{Control, RawAddress};
use super::sys_recv::{blank_header, blank_vector};

/// The kernel refuses to split one send into more segments (`UDP_MAX_SEGMENTS`, 64 before Linux 6.9).
pub const MAX_SEGMENTS: usize = 64;
/// The longest payload of one UDP send: 65,535 less the IPv4 and UDP headers.
pub const MAX_DATAGRAM: usize = 65_507;

/// How a [`SendBatch::send`] ended.
#[derive(Debug)]
pub enum Sent {
    /// The kernel took everything.
    All,
    /// The socket's send buffer is full; the rest stays queued.
    Blocked,
    /// The caller wanted no more to be sent; the rest stays queued.
    Held,
    /// The message at the front was refused. It stays queued: send again to try it once more, or [`SendBatch::skip`] it.
    Refused(io::Error),
}

/// One queued message: a range of the arena, its destination, and how to cut it.
#[derive(Copy, Clone, Debug)]
struct Message {
    to: Option<RawAddress>,
    start: usize,
    len: usize,
    /// 0: one datagram. Else the length of every datagram in it but the last.
    segment: usize,
    /// Whether its datagrams go one by one, because the kernel will not cut datagrams this long.
    singly: bool,
    tag: u64,
}

impl Message {
    /// Whether what is left of it goes in one send.
    fn whole(&self, gso: bool) -> bool {
        self.segment == 0 || (gso && !self.singly)
    }

    /// How many datagrams are left of it once `within` bytes have gone.
    fn datagrams(&self, within: usize) -> usize {
        if self.segment == 0 { 1 } else { (self.len - within).div_ceil(self.segment) }
    }
}

/// A queue of datagrams for one socket, first in first out, in one arena with a bound.
#[derive(Debug)]
pub struct SendBatch {
    limit: usize,
    bytes: Vec<u8>,
    messages: Vec<Message>,
    /// The first message not yet wholly taken by the kernel.
    next: usize,
    /// How many bytes of that message the kernel has taken (only when its segments go singly).
    within: usize,
    gso: bool,
    names: Vec<RawAddress>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the pointers in `headers` and `vectors` are written anew by every call and never read outside of it.
unsafe impl Send for SendBatch {}
// SAFETY: as for Send; no shared method reads the pointers.
unsafe impl Sync for SendBatch {}

impl SendBatch {
    /// A queue that sends up to `width` messages a call and holds up to `limit` bytes. `gso` says whether
    /// datagrams of equal length may share one send (on a connected socket).
    pub fn new(width: usize, limit: usize, gso: bool) -> SendBatch {
        let width = width.max(1);
        SendBatch {
            limit,
            bytes: Vec::with_capacity(limit.min(1 << 18)),
            messages: Vec::with_capacity(width),
            next: 0,
            within: 0,
            gso,
            names: vec![RawAddress::default(); width],
            controls: vec![Control::BLANK; width],
            vectors: vec![blank_vector(); width],
            headers: vec![blank_header(); width],
        }
    }

    /// Queues one datagram for `to` (`None` on a connected socket). False, and nothing queued, if `limit`
    /// would be passed. `tag` is the caller's own, see [`SendBatch::front_tag`].
    pub fn push(&mut self, to: Option<SocketAddr>, tag: u64, bytes: &[u8]) -> bool {
        self.push_with(to, tag, bytes.len(), |out| out.extend_from_slice(bytes))
    }

    /// As [`SendBatch::push`] for a datagram of about `len` bytes that `write` appends to the arena.
    pub fn push_with(
        &mut self,
        to: Option<SocketAddr>,
        tag: u64,
        len: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        if !self.has_room(len) {
            return false;
        }
        let start = self.bytes.len();
        write(&mut self.bytes);
        let len = self.bytes.len().saturating_sub(start);
        if !self.join(to.is_none(), len) {
            self.messages.push(Message {
                to: to.map(RawAddress::new),
                start,
                len,
                segment: 0,
                singly: false,
                tag,
            });
        }
        true
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.next == self.messages.len()
    }

    /// The tag of the oldest message that the kernel has not taken.
    pub fn front_tag(&self) -> Option<u64> {
        self.messages.get(self.next).map(|message| message.tag)
    }

    /// Whether the kernel still cuts datagrams for us; false after it refused once.
    pub fn gso(&self) -> bool {
        self.gso
    }

    /// Hands queued messages to the kernel until it has taken all, or takes no more.
    pub fn send(&mut self, socket: BorrowedFd<'_>) -> Sent {
        self.send_while(socket, || true)
    }

    /// As [`SendBatch::send`], asking `go_on` before each system call.
    pub fn send_while(&mut self, socket: BorrowedFd<'_>, go_on: impl Fn() -> bool) -> Sent {
        while !self.is_empty() {
            if !go_on() {
                return Sent::Held;
            }
            let width = self.point();
            // SAFETY: sendmmsg(2): `headers` is an array of at least `width` headers, each pointing to one iovec
            // inside `bytes` and, where set, to a name and a control of the stated lengths, all owned by `self`
            // and unchanged during the call. The kernel writes only `msg_len`.
            let taken = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    width as libc::c_uint,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            if let Ok(taken) = usize::try_from(taken) {
                self.advance(taken);
                continue;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Sent::Blocked,
                Some(libc::EIO | libc::EINVAL) if self.joined(self.next) => {
                    self.gso = false;
                }
                // Datagrams that go in fragments cannot be cut by the kernel (udp(7): a segment must fit the MTU).
                Some(libc::EMSGSIZE) if self.joined(self.next) => self.messages[self.next].singly = true,
                _ => return Sent::Refused(error),
            }
        }
        self.clear();
        Sent::All
    }

    /// Drops the datagram at the front, or all that would have shared one send with it; returns how many.
    pub fn skip(&mut self) -> usize {
        let Some(message) = self.messages.get(self.next) else { return 0 };
        let whole = message.whole(self.gso);
        let dropped = if whole { message.datagrams(self.within) } else { 1 };
        self.within += if whole { message.len } else { message.segment };
        if self.within >= message.len {
            (self.next, self.within) = (self.next + 1, 0);
        }
        dropped
    }

    /// Drops everything; returns how many datagrams that were.
    pub fn clear(&mut self) -> usize {
        let waiting = self.messages.get(self.next..).unwrap_or_default();
        let partly = waiting.first().map_or(0, |front| front.datagrams(0) - front.datagrams(self.within));
        let dropped = waiting.iter().map(|message| message.datagrams(0)).sum::<usize>() - partly;
        self.bytes.clear();
        self.messages.clear();
        self.next = 0;
        self.within = 0;
        dropped
    }

    /// Whether the message at `index` asks the kernel to cut it.
    fn joined(&self, index: usize) -> bool {
        let message = &self.messages[index];
        message.segment > 0 && message.whole(self.gso)
    }

    fn has_room(&mut self, len: usize) -> bool {
        let start = self.messages.get(self.next).map_or(self.bytes.len(), |message| message.start);
        if self.bytes.len() - start + len > self.limit {
            return false;
        }
        if start > 0 && self.bytes.len() + len > self.bytes.capacity() {
            self.compact(start);
        }
        true
    }

    /// Moves what waits to the start of the arena.
    fn compact(&mut self, start: usize) {
        self.bytes.copy_within(start.., 0);
        self.bytes.truncate(self.bytes.len() - start);
        self.messages.drain(..self.next);
        self.next = 0;
        for message in &mut self.messages {
            message.start -= start;
        }
    }

    /// Makes the `len` bytes just written part of the last message, if the kernel can cut them apart again:
    /// all datagrams of one send but the last have the same length.
    fn join(&mut self, connected: bool, len: usize) -> bool {
        if !self.gso || !connected || self.is_empty() {
            return false;
        }
        let Some(last) = self.messages.last_mut() else { return false };
        let segment = if last.segment == 0 { last.len } else { last.segment };
        let fits = last.to.is_none()
            && !last.singly
            && len > 0
            && len <= segment
            && last.len.is_multiple_of(segment)
            && last.len + len <= MAX_DATAGRAM
            && last.len / segment < MAX_SEGMENTS;
        if fits {
            last.segment = segment;
            last.len += len;
        }
        fits
    }

    /// Writes headers for the next messages; returns how many.
    fn point(&mut self) -> usize {
        let (mut used, mut index, mut within) = (0, self.next, self.within);
        while let Some(message) = self.messages.get(index).filter(|_| used < self.headers.len()) {
            let whole = message.whole(self.gso);
            let left = message.len - within;
            let take = if whole { left } else { left.min(message.segment) };
            let start = message.start + within;
            let vector = &mut self.vectors[used];
            // The kernel only reads through iov_base in a send; it is `*mut` because recvmsg shares the type.
            vector.iov_base = self.bytes[start..start + take].as_ptr().cast_mut().cast();
            vector.iov_len = take;
            let header = &mut self.headers[used].msg_hdr;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            (header.msg_name, header.msg_namelen) = (ptr::null_mut(), 0);
            if let Some(to) = message.to {
                self.names[used] = to;
                header.msg_name = ptr::from_mut(&mut self.names[used]).cast();
                header.msg_namelen = to.len() as libc::socklen_t;
            }
            (header.msg_control, header.msg_controllen) = (ptr::null_mut(), 0);
            if whole && message.segment > 0 && left > message.segment {
                let (control, len) = Control::segment(message.segment as u16);
                self.controls[used] = control;
                header.msg_control = ptr::from_mut(&mut self.controls[used]).cast();
                header.msg_controllen = len as _;
            }
            used += 1;
            within += take;
            if within == message.len {
                (index, within) = (index + 1, 0);
            }
        }
        used
    }

    /// Marks the first `taken` of the headers last written as gone.
    fn advance(&mut self, taken: usize) {
        for vector in &self.vectors[..taken] {
            self.within += vector.iov_len;
            if self.within == self.messages[self.next].len {
                (self.next, self.within) = (self.next + 1, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sys_recv::RecvBatch;
    use crate::io::sys_socket;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use std::thread::sleep;
    use std::time::Duration;

    fn bound() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn connected_pair() -> (UdpSocket, UdpSocket) {
        let ((a, a_address), (b, b_address)) = (bound(), bound());
        a.connect(b_address).unwrap();
        b.connect(a_address).unwrap();
        (a, b)
    }

    /// Every datagram that arrives, cut at the segment size.
    fn receive_all(socket: &UdpSocket, batch: &mut RecvBatch) -> (Vec<Vec<u8>>, usize) {
        let (mut datagrams, mut joined) = (Vec::new(), 0);
        for _ in 0..200 {
            match batch.recv(socket.as_fd()) {
                Ok(count) => {
                    for index in 0..count {
                        let received = batch.get(index).unwrap();
                        joined += usize::from(received.bytes.len() > received.segment);
                        assert!(!received.truncated);
                        datagrams.extend(received.bytes.chunks(received.segment).map(<[u8]>::to_vec));
                    }
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    if !datagrams.is_empty() {
                        break;
                    }
                    sleep(Duration::from_millis(1));
                }
            }
        }
        (datagrams, joined)
    }

    #[test]
    fn a_batch_reaches_different_destinations_and_names_its_source() {
        let (from, from_address) = bound();
        let receivers: Vec<_> = (0..5).map(|_| bound()).collect();
        let mut out = SendBatch::new(3, 1 << 16, false);
        for round in 0..4_u8 {
            for (index, (_, to)) in receivers.iter().enumerate() {
                assert!(out.push(Some(*to), 0, &[round, index as u8]));
            }
        }
        assert!(matches!(out.send(from.as_fd()), Sent::All));
        let mut batch = RecvBatch::new(8, 64);
        for (index, (socket, _)) in receivers.iter().enumerate() {
            assert_eq!(batch.recv(socket.as_fd()).unwrap(), 4);
            for round in 0..4 {
                let received = batch.get(round).unwrap();
                assert_eq!(received.source, Some(from_address));
                assert_eq!(received.bytes, [round as u8, index as u8]);
            }
            assert!(batch.get(4).is_none());
        }
    }

    #[test]
    fn equal_datagrams_share_a_send_and_arrive_joined() {
        let (a, b) = connected_pair();
        sys_socket::enable_gro(b.as_fd()).unwrap();
        let mut out = SendBatch::new(8, 1 << 20, true);
        let expected: Vec<Vec<u8>> =
            (0..100_u8).map(|n| vec![n; if n % 10 == 9 { 300 } else { 1_200 }]).collect();
        for bytes in &expected {
            assert!(out.push(None, 0, bytes));
        }
        assert!(matches!(out.send(a.as_fd()), Sent::All));
        let (datagrams, joined) = receive_all(&b, &mut RecvBatch::new(4, 1 << 16));
        assert_eq!(datagrams, expected);
        assert!(joined >= 10, "only {joined} joined receives");
    }

    #[test]
    fn more_segments_than_one_send_may_have_go_in_several() {
        let (a, b) = connected_pair();
        let mut out = SendBatch::new(8, 1 << 20, true);
        let expected: Vec<Vec<u8>> = (0..200_u8).map(|n| vec![n; 40]).collect();
        for bytes in &expected {
            assert!(out.push(None, 0, bytes));
        }
        assert!(matches!(out.send(a.as_fd()), Sent::All));
        assert!(out.gso());
        assert_eq!(receive_all(&b, &mut RecvBatch::new(64, 2_048)).0, expected);
    }

    #[test]
    fn a_kernel_that_will_not_cut_gets_single_datagrams() {
        let (a, b) = connected_pair();
        // udp(7): with SO_NO_CHECK the kernel refuses UDP_SEGMENT with EINVAL.
        sys_socket::set_int(a.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        let mut out = SendBatch::new(2, 1 << 20, true);
        let expected: Vec<Vec<u8>> = (0..20_u8).map(|n| vec![n; 500]).collect();
        for bytes in &expected {
            assert!(out.push(None, 0, bytes));
        }
        assert!(matches!(out.send(a.as_fd()), Sent::All));
        assert!(!out.gso());
        assert_eq!(receive_all(&b, &mut RecvBatch::new(64, 2_048)).0, expected);
    }

    #[test]
    fn datagrams_longer_than_the_mtu_go_singly_and_the_others_still_together() {
        let (a, b) = connected_pair();
        sys_socket::ignore_path_mtu(a.as_fd(), false).unwrap();
        let mut out = SendBatch::new(8, 1 << 20, true);
        // Loopback's MTU lets these through, so the mark that EMSGSIZE leaves is set by hand.
        let long: Vec<Vec<u8>> = (0..3_u8).map(|n| vec![n; 4_000]).collect();
        let short: Vec<Vec<u8>> = (0..10_u8).map(|n| vec![n; 100]).collect();
        for bytes in &long {
            assert!(out.push(None, 0, bytes));
        }
        out.messages[0].singly = true;
        for bytes in &short {
            assert!(out.push(None, 0, bytes));
        }
        assert!(matches!(out.send(a.as_fd()), Sent::All));
        assert!(out.gso());
        let expected: Vec<_> = long.into_iter().chain(short).collect();
        assert_eq!(receive_all(&b, &mut RecvBatch::new(64, 8_192)).0, expected);
    }

    #[test]
    fn too_long_a_datagram_is_marked() {
        let (a, b) = connected_pair();
        a.send(&[7; 100]).unwrap();
        let mut batch = RecvBatch::new(1, 10);
        assert_eq!(batch.recv(b.as_fd()).unwrap(), 1);
        let received = batch.get(0).unwrap();
        assert!(received.truncated);
        assert_eq!(received.bytes, [7; 10]);
    }

    #[test]
    fn a_full_socket_blocks_and_later_goes_on_in_order() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let mut out = SendBatch::new(64, 10_000, false);
        let accepted = (0..3_000_u64).take_while(|n| out.push(None, *n, &(*n as u32).to_be_bytes())).count();
        assert_eq!(accepted, 2_500, "the bound is in bytes");
        let mut seen = Vec::new();
        let mut blocked = 0;
        let mut buffer = [0; 8];
        b.set_nonblocking(true).unwrap();
        while let Sent::Blocked = out.send(a.as_fd()) {
            blocked += 1;
            while let Ok(len) = b.recv(&mut buffer) {
                seen.push(u32::from_be_bytes(buffer[..len].try_into().unwrap()));
            }
            assert_eq!(out.front_tag(), Some(seen.len() as u64));
            // Room is made as the queue drains: the arena is compacted, not grown.
            let tag = (accepted + blocked - 1) as u64;
            assert!(out.push(None, tag, &(tag as u32).to_be_bytes()));
        }
        while let Ok(len) = b.recv(&mut buffer) {
            seen.push(u32::from_be_bytes(buffer[..len].try_into().unwrap()));
        }
        assert!(blocked > 0);
        assert!(out.is_empty());
        assert_eq!(seen.len(), accepted + blocked);
        assert!(seen.iter().enumerate().all(|(n, value)| n as u32 == *value));
    }

    #[test]
    fn nothing_to_receive_would_block() {
        let (socket, _) = bound();
        let error = RecvBatch::new(4, 100).recv(socket.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_closed_port_refuses_and_the_message_stays_at_the_front() {
        let (a, b) = connected_pair();
        drop(b);
        let mut out = SendBatch::new(4, 1_000, true);
        assert!(out.push(None, 1, b"first"));
        assert!(matches!(out.send(a.as_fd()), Sent::All));
        sleep(Duration::from_millis(5));
        assert!(out.push(None, 2, b"second"));
        match out.send(a.as_fd()) {
            Sent::Refused(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
            other => panic!("{other:?}"),
        }
        assert_eq!(out.front_tag(), Some(2));
        assert_eq!(out.skip(), 1);
        assert!(out.is_empty());
    }

    #[test]
    fn dropping_counts_datagrams_however_they_are_sent() {
        for gso in [true, false] {
            let mut out = SendBatch::new(4, 1_000, gso);
            for _ in 0..5 {
                assert!(out.push(None, 0, &[0; 10]));
            }
            assert!(out.push(None, 0, &[0; 4]));
            assert!(out.push(None, 0, &[0; 4]));
            let first = out.skip();
            assert_eq!(first, if gso { 6 } else { 1 });
            assert_eq!(out.clear(), 7 - first);
            assert_eq!(out.clear(), 0);
        }
    }

    #[test]
    fn a_bad_destination_stops_at_its_message_only() {
        let (from, _) = bound();
        let (good, good_address) = bound();
        let mut out = SendBatch::new(8, 1_000, false);
        let broadcast = "255.255.255.255:9".parse().unwrap();
        for to in [good_address, broadcast, good_address] {
            assert!(out.push(Some(to), 0, b"x"));
        }
        assert!(matches!(out.send(from.as_fd()), Sent::Refused(_)));
        out.skip();
        assert!(matches!(out.send(from.as_fd()), Sent::All));
        assert_eq!(RecvBatch::new(8, 10).recv(good.as_fd()).unwrap(), 2);
    }
}
