//! One shard's media ports: a socket each, on the service addresses that this node holds.
//!
//! A port names its slot and a slot its shard, so only that shard opens it, and what arrives needs no ring. There are
//! thousands: they are opened and closed a few at a time, so that the loop is not late, and nothing here is ever looked
//! at socket by socket. Media that cannot leave at once is dropped: late media is worth nothing.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::sys_recv::RecvBatch;
use super::sys_send::{SendBatch, Sent};
use super::sys_socket;
use super::tally::Tally;
use crate::app::media::MediaPorts;
use crate::types::{LocalId, Nanos};

/// The token of the first socket; beyond those of all others.
pub const FIRST_MEDIA: usize = 1 << 24;
/// Datagrams one system call takes from a port: a stream sends one every few milliseconds.
pub const MEDIA_BATCH: usize = 8;
/// How soon a port that somebody has is tried again.
const BIND_AGAIN: Nanos = Nanos::from_millis(500);
/// How often the log is told of it.
const COMPLAIN_EVERY: Nanos = Nanos::from_secs(10);
/// The most bytes that wait to be sent; what is over is dropped.
const QUEUE_BYTES: usize = 4 << 20;
/// Datagrams from one port in one system call.
const RUN: usize = 32;
/// Bytes in one system call.
const RUN_BYTES: usize = RUN << 16;

/// The media ports of one shard: which, and where.
#[derive(Clone, Debug)]
pub struct MediaPlan {
    /// How ports are dealt to slots.
    pub ports: MediaPorts,
    /// By number of service address: its IP, and the first endpoint on it.
    pub addresses: Vec<(IpAddr, u16)>,
    /// How many shards a node has, and which one this is.
    pub shards: u16,
    /// See `shards`.
    pub shard: u16,
}

impl MediaPlan {
    /// The ports of service address number `address` that belong to this shard.
    fn ports_of(&self, address: u16) -> impl Iterator<Item = u16> {
        let mine = move |port: &u16| {
            let slot = self.ports.slot_of(address, *port);
            slot.is_some_and(|slot| slot.0 % self.shards == self.shard)
        };
        (self.ports.first..=self.ports.last).filter(mine)
    }
}

/// One port: where it is, and its socket while it is open.
#[derive(Debug)]
struct Port {
    local: LocalId,
    address: u16,
    socket: Option<UdpSocket>,
    /// It waits in the list of those to be read.
    ready: bool,
}

/// What is to become of a service address's ports.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Wish {
    #[default]
    Closed,
    Open,
}

/// One service address: its ports are `first..end` of all.
#[derive(Debug)]
struct Address {
    ip: IpAddr,
    first: usize,
    end: usize,
    wish: Wish,
    /// Up to here its ports are as wished.
    done: usize,
    /// When it may go on.
    not_before: Nanos,
}

/// A datagram that waits to leave.
#[derive(Copy, Clone, Debug)]
struct Waiting {
    tag: u64,
    port: u32,
    to: SocketAddr,
    start: usize,
    len: usize,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct MediaSockets {
    ports: Vec<Port>,
    addresses: Vec<Address>,
    /// By endpoint: its service address, if media leaves from it.
    by_endpoint: Vec<Option<u16>>,
    first_port: u16,
    /// By service address and port less the first: where it is in `ports`.
    places: Vec<Vec<u32>>,
    ready: VecDeque<u32>,
    /// Ports to be opened before all others.
    urgent: VecDeque<u32>,
    /// Ports that could not be bound, to be tried again.
    failed: Vec<u32>,
    retry_at: Nanos,
    quiet_until: Nanos,
    open: usize,
    queue: VecDeque<Waiting>,
    bytes: Vec<u8>,
    run: Option<SendBatch>,
}

/// No such port.
const NONE: u32 = u32::MAX;

impl MediaSockets {
    /// Ports as planned, none of them open; without a plan there are none.
    pub fn new(plan: Option<&MediaPlan>) -> MediaSockets {
        let Some(plan) = plan else { return MediaSockets::default() };
        let mut all = MediaSockets {
            first_port: plan.ports.first,
            run: Some(SendBatch::new(RUN, RUN_BYTES, false)),
            retry_at: Nanos::MAX,
            ..MediaSockets::default()
        };
        let width = usize::from(plan.ports.last - plan.ports.first) + 1;
        for ((ip, endpoint), number) in plan.addresses.iter().zip(0_u16..) {
            let (first, mut places) = (all.ports.len(), vec![NONE; width]);
            for port in plan.ports_of(number) {
                places[usize::from(port - plan.ports.first)] = all.ports.len() as u32;
                let local = LocalId::media(*endpoint, port);
                all.ports.push(Port { local, address: number, socket: None, ready: false });
            }
            let end = all.ports.len();
            let (wish, not_before) = (Wish::Closed, Nanos::ZERO);
            all.addresses.push(Address { ip: *ip, first, end, wish, done: end, not_before });
            all.places.push(places);
            let endpoints = usize::from(*endpoint) + 1;
            all.by_endpoint.resize(all.by_endpoint.len().max(endpoints), None);
            all.by_endpoint[usize::from(*endpoint)] = Some(number);
        }
        all
    }

    /// How many ports are open, of how many that this shard has on the addresses that are held.
    pub fn opened(&self) -> (usize, usize) {
        let wanted = self.addresses.iter().filter(|a| a.wish == Wish::Open).map(|a| a.end - a.first).sum();
        (self.open, wanted)
    }

    /// Wants the ports of service address number `number` open from `at` on, those first that are in use: calls wait for
    /// them.
    pub fn open_all(&mut self, number: u16, at: Nanos, in_use: impl Fn(LocalId) -> bool) {
        if let Some(places) = self.wish(number, Wish::Open, at) {
            self.urgent
                .extend(places.filter(|place| in_use(self.ports[*place].local)).map(|place| place as u32));
        }
    }

    /// Wants the ports of service address number `number` closed from `at` on.
    pub fn close_all(&mut self, number: u16, at: Nanos) {
        self.wish(number, Wish::Closed, at);
    }

    /// Notes what is to become of the ports of an address; which they are, if that is news.
    fn wish(&mut self, number: u16, wish: Wish, at: Nanos) -> Option<Range<usize>> {
        let address = self.addresses.get_mut(usize::from(number)).filter(|address| address.wish != wish)?;
        (address.wish, address.done, address.not_before) = (wish, address.first, at);
        Some(address.first..address.end)
    }

    /// When there is something to open or close; [`Nanos::MAX`]: nothing.
    pub fn due(&self) -> Nanos {
        let waiting = self.addresses.iter().filter(|a| a.done < a.end).map(|a| a.not_before);
        let again = if self.failed.is_empty() { Nanos::MAX } else { self.retry_at };
        waiting.min().unwrap_or(Nanos::MAX).min(again)
    }

    /// Opens and closes what is due while `go_on`. What a socket still holds that is to be closed is given up: who sends
    /// media goes on sending it.
    ///
    /// # Errors
    /// From `epoll_ctl(2)`.
    pub fn settle(
        &mut self,
        now: Nanos,
        registry: &Registry,
        mut go_on: impl FnMut() -> bool,
    ) -> io::Result<()> {
        if !self.failed.is_empty() && self.retry_at <= now {
            self.retry_at = Nanos::MAX;
            for place in std::mem::take(&mut self.failed) {
                let address = self.ports[place as usize].address;
                if self.addresses[usize::from(address)].wish == Wish::Open {
                    self.open(now, place as usize, registry)?;
                }
            }
        }
        while let Some(place) = self.urgent.front().map(|place| *place as usize) {
            let Address { wish, not_before, .. } = self.addresses[usize::from(self.ports[place].address)];
            if not_before > now {
                break;
            }
            if !go_on() {
                return Ok(());
            }
            self.urgent.pop_front();
            if wish == Wish::Open {
                self.open(now, place, registry)?;
            }
        }
        for number in 0..self.addresses.len() {
            let Address { end, wish, not_before, .. } = self.addresses[number];
            while self.addresses[number].done < end && not_before <= now {
                if !go_on() {
                    return Ok(());
                }
                let place = self.addresses[number].done;
                self.addresses[number].done += 1;
                match wish {
                    Wish::Open => self.open(now, place, registry)?,
                    // Closing takes it out of the epoll instance too.
                    Wish::Closed => self.open -= usize::from(self.ports[place].socket.take().is_some()),
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, now: Nanos, place: usize, registry: &Registry) -> io::Result<()> {
        let port = &mut self.ports[place];
        if port.socket.is_some() {
            return Ok(());
        }
        let at = SocketAddr::new(self.addresses[usize::from(port.address)].ip, port.local.port);
        match sys_socket::bind_early(at, true) {
            Ok(socket) => {
                let token = Token(FIRST_MEDIA + place);
                registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)?;
                port.socket = Some(socket);
                self.open += 1;
            }
            Err(error) => {
                if now >= self.quiet_until {
                    self.quiet_until = now + COMPLAIN_EVERY;
                    tracing::error!(%at, %error, "this media port cannot be opened, and calls that get it will have no media: stop the process that has it, or change TANDEM_MEDIA_PORTS; tried again");
                }
                self.failed.push(place as u32);
                self.retry_at = self.retry_at.min(now + BIND_AGAIN);
            }
        }
        Ok(())
    }

    /// The socket with this number is to be read.
    pub fn mark(&mut self, number: usize) {
        if let Some(port) = self.ports.get_mut(number)
            && !std::mem::replace(&mut port.ready, true)
        {
            self.ready.push_back(number as u32);
        }
    }

    /// How many sockets are to be read.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Reads the socket that has waited longest; where what came arrived, and how many datagrams that were.
    pub fn recv(&mut self, batch: &mut RecvBatch) -> Option<(LocalId, usize)> {
        let place = self.ready.pop_front()?;
        let port = &mut self.ports[place as usize];
        port.ready = false;
        let Some(socket) = &port.socket else { return Some((port.local, 0)) };
        let (local, received) = (port.local, batch.recv(socket.as_fd()));
        let more = match &received {
            // A short batch means that it is dry: what comes later makes a new event.
            Ok(count) => *count == batch.capacity(),
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        if more {
            self.mark(place as usize);
        }
        Some((local, received.unwrap_or(0)))
    }

    fn place(&self, local: LocalId) -> Option<u32> {
        let address = (*self.by_endpoint.get(usize::from(local.endpoint))?)?;
        let offset = local.port.checked_sub(self.first_port)?;
        let place = *self.places[usize::from(address)].get(usize::from(offset))?;
        (place != NONE).then_some(place)
    }

    /// Queues a datagram. `tag` must not be lower than the one before; see [`MediaSockets::first_unsent`].
    pub fn push(&mut self, tag: u64, local: LocalId, to: SocketAddr, bytes: &[u8], tally: &mut Tally) {
        let Some(port) = self.place(local) else {
            tally.dropped.client_no_endpoint += 1;
            return;
        };
        if self.bytes.len() + bytes.len() > QUEUE_BYTES {
            tally.dropped.client_queue_full += 1;
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.queue.push_back(Waiting { tag, port, to, start, len: bytes.len() });
    }

    /// Drops what waits to leave from the service address whose first endpoint is `endpoint`; how many datagrams that
    /// were.
    pub fn drop_waiting(&mut self, endpoint: u16) -> usize {
        let Some(address) = self.by_endpoint.get(usize::from(endpoint)).copied().flatten() else { return 0 };
        let before = self.queue.len();
        let ports = &self.ports;
        self.queue.retain(|waiting| ports[waiting.port as usize].address != address);
        before - self.queue.len()
    }

    /// The tag of the oldest datagram that still waits.
    pub fn first_unsent(&self) -> Option<u64> {
        self.queue.front().map(|waiting| waiting.tag)
    }

    /// Sends what is queued, while `may_release`, which is asked before each system call. Neighbours from one port share
    /// one.
    pub fn flush(&mut self, tally: &mut Tally, may_release: impl Fn() -> bool) {
        let Some(run) = &mut self.run else { return };
        while let Some(Waiting { port, .. }) = self.queue.front().copied() {
            if !may_release() {
                tally.client_held += 1;
                return;
            }
            let same = self.queue.iter().take(RUN).take_while(|waiting| waiting.port == port).count();
            let Some(socket) = &self.ports[port as usize].socket else {
                self.queue.drain(..same);
                tally.dropped.client_address_lost += same as u64;
                continue;
            };
            for waiting in self.queue.drain(..same) {
                run.push(Some(waiting.to), 0, &self.bytes[waiting.start..waiting.start + waiting.len]);
            }
            tally.media_sent += same as u64;
            loop {
                match run.send(socket.as_fd()) {
                    Sent::All | Sent::Held => break,
                    Sent::Blocked => {
                        let dropped = run.clear() as u64;
                        tally.media_sent -= dropped;
                        tally.dropped.media_send_full += dropped;
                        break;
                    }
                    Sent::Refused(_) => {
                        tally.dropped.client_send_failed += 1;
                        tally.media_sent -= 1;
                        run.skip();
                    }
                }
            }
        }
        self.bytes.clear();
    }

    /// Whether nothing is queued.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// The descriptor of an open port.
    pub fn fd(&self, local: LocalId) -> Option<RawFd> {
        let place = self.place(local)?;
        self.ports[place as usize].socket.as_ref().map(AsRawFd::as_raw_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};
    use std::cell::Cell;
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    const FIRST: u16 = 41_000;

    fn plan(shards: u16, shard: u16, last: u16) -> MediaPlan {
        let addresses: Vec<(IpAddr, u16)> =
            vec![(Ipv4Addr::new(127, 77, 1, 1).into(), 0), (Ipv4Addr::new(127, 77, 1, 2).into(), 2)];
        let ports = MediaPorts { first: FIRST, last, slots: 8, addresses: 2 };
        MediaPlan { ports, addresses, shards, shard }
    }

    fn read(poll: &mut Poll, media: &mut MediaSockets) -> Vec<(LocalId, Vec<u8>, SocketAddr)> {
        let (mut events, mut batch) = (Events::with_capacity(64), RecvBatch::new(2, 2_000));
        let mut received = Vec::new();
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            events.iter().for_each(|event| media.mark(event.token().0 - FIRST_MEDIA));
            while let Some((local, count)) = media.recv(&mut batch) {
                for index in 0..count {
                    let one = batch.get(index).unwrap();
                    received.push((local, one.bytes.to_vec(), one.source.unwrap()));
                }
            }
        }
        received
    }

    #[test]
    fn each_port_is_one_shards_and_all_are_somebodys() {
        let mut seen = Vec::new();
        for shard in 0..3 {
            let media = MediaSockets::new(Some(&plan(3, shard, FIRST + 99)));
            seen.extend(media.ports.iter().map(|port| (port.local.endpoint, port.local.port)));
        }
        seen.sort_unstable();
        let share = plan(3, 0, FIRST + 99).ports.share_per_slot() * 2 * 4;
        let expected: Vec<_> =
            [0, 2].into_iter().flat_map(|e| (FIRST..FIRST + share).map(move |p| (e, p))).collect();
        assert_eq!(seen, expected);
        assert!(MediaSockets::new(None).place(LocalId::media(0, FIRST)).is_none());
    }

    #[test]
    fn ports_open_a_few_at_a_time_carry_media_and_close() {
        let mut poll = Poll::new().unwrap();
        let mut media = MediaSockets::new(Some(&plan(1, 0, FIRST + 79)));
        assert_eq!((media.due(), media.opened()), (Nanos::MAX, (0, 0)));
        media.open_all(1, Nanos(5), |local| local.port == FIRST + 70);
        assert_eq!(media.due(), Nanos(5));
        let left = Cell::new(30);
        let few = || left.replace(left.get() - 1) > 0;
        media.settle(Nanos(4), poll.registry(), few).unwrap();
        assert_eq!(media.opened(), (0, 80));
        media.settle(Nanos(5), poll.registry(), few).unwrap();
        assert_eq!((media.opened(), media.due()), ((30, 80), Nanos(5)));
        assert!(media.fd(LocalId::media(2, FIRST + 70)).is_some(), "a call waits for it");
        assert!(media.fd(LocalId::media(2, FIRST + 71)).is_none());
        media.settle(Nanos(5), poll.registry(), || true).unwrap();
        assert_eq!((media.opened(), media.due()), ((80, 80), Nanos::MAX));
        assert!(media.fd(LocalId::media(0, FIRST)).is_none(), "an address that is not held");

        let client = UdpSocket::bind("127.77.1.9:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let at = |port| SocketAddr::from((Ipv4Addr::new(127, 77, 1, 2), port));
        for n in 0..5 {
            client.send_to(&[n], at(FIRST + 7)).unwrap();
        }
        client.send_to(b"x", at(FIRST + 8)).unwrap();
        let received = read(&mut poll, &mut media);
        let me = client.local_addr().unwrap();
        let of = |port| received.iter().filter(move |r| r.0 == LocalId::media(2, port)).collect::<Vec<_>>();
        assert_eq!(of(FIRST + 7).len(), 5, "more than a batch: {received:?}");
        assert!(received.iter().all(|(_, _, source)| *source == me) && of(FIRST + 8).len() == 1);

        let mut tally = Tally::default();
        for (tag, port) in [(1, 7), (2, 7), (3, 8)] {
            media.push(tag, LocalId::media(2, FIRST + port), me, &[tag as u8], &mut tally);
        }
        media.push(4, LocalId::media(0, FIRST), me, b"lost", &mut tally);
        media.push(5, LocalId::media(2, 1), me, b"nowhere", &mut tally);
        media.flush(&mut tally, || false);
        assert_eq!((media.first_unsent(), tally.client_held), (Some(1), 1));
        media.flush(&mut tally, || true);
        assert_eq!((media.first_unsent(), media.is_idle(), tally.media_sent), (None, true, 3));
        assert_eq!((tally.dropped.client_address_lost, tally.dropped.client_no_endpoint), (1, 1));
        for (byte, port) in [(1, 7), (2, 7), (3, 8)] {
            let mut buffer = [0; 9];
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (1, at(FIRST + port)));
            assert_eq!(buffer[0], byte);
        }

        media.close_all(1, Nanos(50));
        assert_eq!(media.due(), Nanos(50));
        media.settle(Nanos(50), poll.registry(), || true).unwrap();
        assert_eq!((media.opened(), media.due()), ((0, 0), Nanos::MAX));
    }

    #[test]
    fn a_port_that_somebody_has_is_tried_again() {
        let poll = Poll::new().unwrap();
        let stranger = UdpSocket::bind((Ipv4Addr::new(127, 77, 1, 1), FIRST + 201)).unwrap();
        let mut plan = plan(1, 0, FIRST + 279);
        plan.ports.first = FIRST + 200;
        let mut media = MediaSockets::new(Some(&plan));
        media.open_all(0, Nanos::ZERO, |_| false);
        media.settle(Nanos::ZERO, poll.registry(), || true).unwrap();
        assert_eq!((media.opened(), media.due()), ((79, 80), BIND_AGAIN));
        drop(stranger);
        media.settle(BIND_AGAIN, poll.registry(), || true).unwrap();
        assert_eq!((media.opened(), media.due()), ((80, 80), Nanos::MAX));
    }
}
