//! One shard's thread: an epoll loop (mio) that carries out the run-loop contract of [`crate::engine`].
//!
//! Events are edge-triggered, so a socket stays marked readable until it was read dry; each turn reads a bounded
//! number of batches from each, so that no socket starves another and what was received is flushed soon.

mod held;
mod media;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use crossbeam::channel::{Receiver, Sender};
use crossbeam::queue::ArrayQueue;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use self::held::Held;
pub(super) use self::held::LINGER;
use super::cells::{NodeCells, Notice};
use super::client::ClientSocket;
use super::media::FIRST_MEDIA;
use super::outgoing::Outgoing;
use super::peer::{Link, open_each};
use super::sys_recv::RecvBatch;
use super::sys_socket::Buffers;
use super::sys_time::{self, TimerFd};
use crate::app::{Inbound, Unclassified};
use crate::engine::{Outbox, ShardReport};
use crate::proto::map::ClusterMap;
use crate::types::{Boot, CallKey, Endpoint, LocalId, Nanos, NodeId, NodeSet, Now};
use crate::wire::datagram::Kind;
use crate::wire::record::MAX_PAYLOAD;
use crate::wire::seal::Opener;

/// Wakes the loop for the ring, the suspects, a question, or the end.
pub const WAKE: Token = Token(0);
const TIMER: Token = Token(1);
const FIRST_SOCKET: usize = 2;

/// Batches a turn takes from one client socket.
const CLIENT_BATCHES: usize = 2;
/// Sends (of up to 64 datagrams) in one system call.
const PEER_BATCH: usize = 8;
/// Batches a turn takes from one link.
const PEER_BATCHES: usize = 4;
/// Client datagrams a turn takes from the ring.
const RING_BUDGET: usize = 256;
/// The longest thing the kernel joins.
const JOINED_LEN: usize = 1 << 16;
/// Bytes taken at once for datagrams that go to another shard; given back when all of them were handled.
const POOL_BYTES: usize = 1 << 18;
/// A turn that begins this much after its deadline is late.
const LATE: Nanos = Nanos::from_millis(1);

/// What the loop drives: `engine::Shard`, or a stand-in in tests.
pub trait ShardCore {
    /// As `CallApp::classify`.
    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified>;
    /// A client's datagram of a slot of this shard. False if it was dropped.
    fn on_client(&mut self, now: Now, key: CallKey, packet: &Inbound<'_>) -> bool;
    /// Whether the packet may go on to [`ShardCore::on_client`]. If not, `answer` holds what its sender is told: nothing,
    /// or a datagram for it. `behind`: for how long the loop has had more to do than it got done.
    fn admit(
        &mut self,
        now: Now,
        key: CallKey,
        packet: &Inbound<'_>,
        behind: Nanos,
        answer: &mut Vec<u8>,
    ) -> bool;
    /// For the keepers of the slots owned here; see [`Notice`]. How many were told.
    fn on_notice(&mut self, now: Now, notice: &Notice) -> usize;
    /// The opened plaintext of a datagram from the same shard of another node.
    fn on_peer(&mut self, now: Now, from: NodeId, boot: Boot, plaintext: &[u8]);
    /// The life in which a peer has joined is another now.
    fn on_join(&mut self, now: Now, node: NodeId, boot: Boot);
    /// The nodes the control suspects have changed.
    fn on_suspects(&mut self, now: Now, suspects: NodeSet);
    /// The agreed cluster map is another now.
    fn on_map(&mut self, now: Now, map: Arc<ClusterMap>);
    /// Replies may be released until then (monotonic); zero: not at all.
    fn on_lease(&mut self, now: Now, until: Nanos);
    /// Whether replies that were handed over may leave at `now`, which was read just before.
    fn may_release(&self, now: Nanos) -> bool;
    /// How things stand, for the control.
    fn report(&self) -> &ShardReport;
    /// [`ShardCore::next_timeout`] has passed.
    fn on_timeout(&mut self, now: Now);
    /// Writes everything to be sent.
    fn flush(&mut self, now: Now, outbox: &mut impl Outbox);
    /// So many more replies have left this node.
    fn on_sent(&mut self, now: Now, count: usize);
    /// When to call [`ShardCore::on_timeout`], monotonic; [`Nanos::MAX`]: never.
    fn next_timeout(&self) -> Nanos;
    /// Its counters, for status.
    fn stats(&self) -> serde_json::Value;
    /// What the application has to tell of the slots owned here, for status.
    fn figures(&self, now: Now) -> serde_json::Value;
    /// Whether some call has this media port, as far as is known here.
    fn has_call(&self, local: LocalId) -> bool;
    /// The place in the log of every slot it is a member of: slot, last executed position, digest.
    fn digests(&self) -> serde_json::Value;
}

/// A client's datagram on its way to the shard that has its slot.
#[derive(Debug)]
pub struct Handed {
    key: CallKey,
    source: Endpoint,
    local: LocalId,
    payload: Bytes,
}

/// What a shard is asked.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Its counters.
    Status,
    /// How far each slot has got, and its digest.
    Digests,
}

/// A question to a shard.
#[derive(Clone, Debug)]
pub struct Question {
    /// What about.
    pub subject: Subject,
    /// Where the answer goes: an object with the shard's number in `shard`.
    pub reply: Sender<serde_json::Value>,
}

/// What a shard's loop is made of.
pub struct ShardParts {
    /// This node.
    pub node: NodeId,
    /// Its life.
    pub boot: Boot,
    /// This shard's number.
    pub shard: u16,
    /// Every service endpoint of the cluster, by [`LocalId`].
    pub endpoints: Vec<SocketAddr>,
    /// What their sockets ask for.
    pub buffers: Buffers,
    /// How many slots the cluster has.
    pub slots: u16,
    /// How many client datagrams one system call may bring.
    pub batch: usize,
    /// The least time from one turn to the next.
    pub gather: Nanos,
    /// Its epoll instance; the waker with token [`WAKE`] is in `cells`.
    pub poll: Poll,
    /// Its sockets.
    pub outgoing: Outgoing,
    /// Sockets that only listen: multicast.
    pub listening: Vec<Link>,
    /// Opens what arrives.
    pub opener: Opener,
    /// The cells of the node.
    pub cells: Arc<NodeCells>,
    /// The ring of every shard, by number.
    pub rings: Vec<Arc<ArrayQueue<Handed>>>,
    /// Questions from the control.
    pub questions: Receiver<Question>,
}

/// A socket that can be readable.
#[derive(Copy, Clone)]
enum Socket {
    Client(usize),
    Link(usize),
    Fanout(usize),
    Listening(usize),
}

/// Where a client's datagram is.
#[derive(Copy, Clone)]
enum Batch {
    Clients,
    Media,
}

/// One watched socket, or the place of one that is not open.
struct Watched {
    socket: Socket,
    /// Negative: not open.
    fd: RawFd,
    readable: bool,
    /// Whether epoll was asked to say when it is writable again.
    wants_write: bool,
}

/// See the module's page.
pub struct ShardLoop<C> {
    core: C,
    parts: ShardParts,
    sockets: Vec<Watched>,
    timer: TimerFd,
    armed: Nanos,
    suspects: NodeSet,
    held: Held,
    /// The life of each peer that the core was told of, in the order of the links.
    joined: Vec<Option<Boot>>,
    heard: NodeSet,
    /// Shards whose ring got something this turn.
    to_wake: Vec<bool>,
    pool: BytesMut,
    client_batch: RecvBatch,
    media_batch: RecvBatch,
    peer_batch: RecvBatch,
    /// What a client is told that is not admitted.
    answer: Vec<u8>,
    /// Since when media ports have been opened or closed.
    settling_since: Option<Nanos>,
    /// Since when some service endpoint has never been read dry.
    behind_since: Nanos,
    /// How often files have been opened anew.
    reopened: u32,
}

impl<C: ShardCore> ShardLoop<C> {
    /// A loop around `core`, ready to run.
    ///
    /// # Errors
    /// From `epoll_ctl(2)` and `timerfd_create(2)`.
    pub fn new(core: C, parts: ShardParts) -> io::Result<ShardLoop<C>> {
        let timer = TimerFd::new()?;
        let registry = parts.poll.registry();
        registry.register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        let sockets = watched(&parts);
        for (index, watched) in sockets.iter().enumerate().filter(|(_, watched)| watched.fd >= 0) {
            registry.register(&mut SourceFd(&watched.fd), Token(FIRST_SOCKET + index), Interest::READABLE)?;
        }
        Ok(ShardLoop {
            core,
            sockets,
            timer,
            armed: Nanos::MAX,
            suspects: NodeSet::EMPTY,
            held: Held::default(),
            joined: vec![None; parts.outgoing.links.len()],
            heard: NodeSet::EMPTY,
            to_wake: vec![false; parts.rings.len()],
            pool: BytesMut::new(),
            client_batch: RecvBatch::new(parts.batch, MAX_PAYLOAD),
            media_batch: RecvBatch::new(parts.outgoing.media.batch(), MAX_PAYLOAD),
            peer_batch: RecvBatch::new(PEER_BATCH, JOINED_LEN),
            answer: Vec::new(),
            settling_since: None,
            behind_since: Nanos::MAX,
            reopened: 0,
            parts,
        })
    }

    /// Runs until the cells say stop; returns the shard's last counters.
    ///
    /// # Errors
    /// From `epoll_wait(2)` and `timerfd_settime(2)`: the loop cannot go on.
    pub fn run(mut self) -> io::Result<serde_json::Value> {
        let mut events = Events::with_capacity(256);
        self.arm(sys_time::now())?;
        let mut turned = Nanos::ZERO;
        while !self.parts.cells.stopping() {
            self.gather(turned);
            self.sleep(&mut events)?;
            let now = sys_time::now();
            turned = now.mono;
            let tally = &mut self.parts.outgoing.tally;
            tally.turns += 1;
            tally.late_turns += u64::from(now.mono.since(self.armed) > LATE);
            self.parts.cells.shards[usize::from(self.parts.shard)].begin_turn(tally.turns, now.mono);
            for event in &events {
                self.mark(event.token());
            }
            self.turn(now)?;
        }
        Ok(self.report())
    }

    /// Lets more arrive before the turn after that of `turned`: what a turn costs is shared by all it finds.
    fn gather(&self, turned: Nanos) {
        let gather = self.parts.gather;
        if gather > Nanos::ZERO {
            std::thread::sleep(Duration::from_nanos(gather.since(sys_time::mono().since(turned)).0));
        }
    }

    /// Sleeps until something is to be done; not at all while something is known to be.
    fn sleep(&mut self, events: &mut Events) -> io::Result<()> {
        let ring = &self.parts.rings[usize::from(self.parts.shard)];
        let media = &self.parts.outgoing.media;
        let more = media.is_ready() || media.due() <= sys_time::mono();
        let busy = more || self.sockets.iter().any(|watched| watched.readable) || !ring.is_empty();
        if !busy {
            self.parts.cells.shards[usize::from(self.parts.shard)].park();
        }
        match self.parts.poll.poll(events, busy.then_some(Duration::ZERO)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Marks the socket an event is about; readable or not, reading it tells. A wake-up has no mark: what it is
    /// about is looked at every turn.
    fn mark(&mut self, token: Token) {
        if let Some(port) = token.0.checked_sub(FIRST_MEDIA) {
            return self.parts.outgoing.media.mark(port);
        }
        if let Some(watched) = token.0.checked_sub(FIRST_SOCKET).and_then(|index| self.sockets.get_mut(index))
        {
            watched.readable = true;
        }
    }

    /// One turn of the contract.
    fn turn(&mut self, now: Now) -> io::Result<()> {
        self.join(now);
        self.follow_map(now)?;
        self.settle_media(now)?;
        self.receive(now);
        self.receive_media(now);
        self.take_handed(now);
        self.take_notices(now);
        self.wake_others();
        let shard = usize::from(self.parts.shard);
        let suspects = self.parts.cells.shards[shard].suspects();
        if suspects != self.suspects {
            self.suspects = suspects;
            self.core.on_suspects(now, suspects);
        }
        if self.core.next_timeout() <= now.mono {
            self.core.on_timeout(now);
        }
        self.core.flush(now, &mut self.parts.outgoing);
        let (core, cells) = (&self.core, &self.parts.cells);
        // Between the beginning of the turn and now a lease may have run out, or have been given up.
        let gone = self.parts.outgoing.send(now.mono, || {
            let now = sys_time::mono();
            core.may_release(now) && cells.lease_until() > now
        });
        if gone > 0 {
            self.core.on_sent(now, gone);
        }
        let cell = &self.parts.cells.shards[shard];
        cell.set_heard(std::mem::take(&mut self.heard), now.mono);
        let refused = self.parts.outgoing.take_refused();
        cell.add_refused(refused);
        if refused.0 & !suspects.0 != 0 {
            self.parts.cells.wake_control();
        }
        self.watch_blocked()?;
        self.note_lease();
        self.publish(now);
        while let Ok(question) = self.parts.questions.try_recv() {
            let answer = match question.subject {
                Subject::Status => self.report(),
                Subject::Digests => {
                    serde_json::json!({ "shard": self.parts.shard, "digests": self.core.digests() })
                }
            };
            // Whoever asked may have stopped waiting.
            let _ = question.reply.send(answer);
        }
        self.arm(now)
    }

    /// Tells the core whom the control has met since the last turn.
    fn join(&mut self, now: Now) {
        for ((node, _), joined) in self.parts.outgoing.links.iter().zip(&mut self.joined) {
            let boot = self.parts.cells.boot(*node);
            if *joined != boot {
                *joined = boot;
                boot.into_iter().for_each(|boot| self.core.on_join(now, *node, boot));
            }
        }
    }

    /// Reads every readable socket: links first, because what they bring makes room for clients.
    fn receive(&mut self, now: Now) {
        let mut behind = false;
        for index in 0..self.sockets.len() {
            if self.sockets[index].readable {
                self.sockets[index].readable = match self.sockets[index].socket {
                    Socket::Client(client) => {
                        let more = self.receive_client(now, client);
                        behind |= more;
                        more
                    }
                    link => self.receive_link(now, link),
                };
            }
        }
        self.behind_since = if behind { self.behind_since.min(now.mono) } else { Nanos::MAX };
    }

    /// True if there may be more to read. A short batch means that the socket is dry: what comes later makes a
    /// new event, so there is no need for one more system call to be told so.
    fn receive_link(&mut self, now: Now, socket: Socket) -> bool {
        let ShardParts { outgoing, listening, opener, shard, cells, .. } = &mut self.parts;
        let channel = *shard + 1;
        let mut more = false;
        for _ in 0..PEER_BATCHES {
            let (peer, link) = match socket {
                Socket::Link(index) => (Some(outgoing.links[index].0), &outgoing.links[index].1),
                Socket::Fanout(index) => (None, &outgoing.fanouts[index].1),
                Socket::Listening(index) => (None, &listening[index]),
                Socket::Client(_) => return false,
            };
            let count = match link.recv(&mut self.peer_batch) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // What ICMP had to say; there may be datagrams behind it.
                Err(error) => {
                    let refused = error.kind() == io::ErrorKind::ConnectionRefused;
                    peer.filter(|_| refused).into_iter().for_each(|peer| outgoing.add_refused(peer));
                    continue;
                }
            };
            let (core, heard, cells) = (&mut self.core, &mut self.heard, &*cells);
            open_each(&mut self.peer_batch, count, opener, &mut outgoing.tally, |_, opened, tally| {
                let for_us = match opened.kind {
                    Kind::Shard => opened.dst_boot != 0,
                    Kind::Multicast => true,
                    Kind::Control => false,
                };
                if for_us && opened.channel == channel {
                    if cells.boot(opened.from) == Some(opened.boot) {
                        heard.insert(opened.from);
                    }
                    core.on_peer(now, opened.from, opened.boot, opened.plaintext);
                } else {
                    tally.dropped.peer_misdirected += 1;
                }
            });
            more = count == self.peer_batch.capacity();
            if !more {
                break;
            }
        }
        more
    }

    /// True if there may be more to read.
    fn receive_client(&mut self, now: Now, index: usize) -> bool {
        for _ in 0..CLIENT_BATCHES {
            let Some(client) = &self.parts.outgoing.clients[index] else { return false };
            let local = client.local();
            let count = match client.recv(&mut self.client_batch) {
                Ok(count) => count,
                Err(_) => return false,
            };
            for datagram in 0..count {
                self.take_client(now, local, datagram, Batch::Clients);
            }
            if count < self.client_batch.capacity() {
                return false;
            }
        }
        true
    }

    /// Gives one client datagram of the batch to the shard that has its slot.
    fn take_client(&mut self, now: Now, local: LocalId, index: usize, batch: Batch) {
        let batch = match batch {
            Batch::Clients => &mut self.client_batch,
            Batch::Media => &mut self.media_batch,
        };
        let Some(received) = batch.get(index) else { return };
        let tally = &mut self.parts.outgoing.tally;
        tally.client_received += 1;
        if received.truncated {
            tally.dropped.client_too_long += 1;
            return;
        }
        let Some(source) = received.source else { return };
        let packet = Inbound { source: source.into(), local, payload: received.bytes };
        let Ok(key) = self.core.classify(&packet) else {
            tally.dropped.client_no_call += 1;
            return;
        };
        let shard = usize::from(key.slot(self.parts.slots).0) % self.parts.rings.len();
        if shard == usize::from(self.parts.shard) {
            return self.parts.outgoing.take(
                now,
                &mut self.core,
                key,
                &packet,
                (now.mono.since(self.behind_since), &mut self.answer),
            );
        }
        let payload = copy_into(&mut self.pool, packet.payload);
        match self.parts.rings[shard].push(Handed { key, source: packet.source, local, payload }) {
            Ok(()) => {
                tally.handed_over += 1;
                self.to_wake[shard] = true;
            }
            Err(_) => tally.dropped.ring_full += 1,
        }
    }

    /// Takes what other shards received for this one.
    fn take_handed(&mut self, now: Now) {
        let ring = &self.parts.rings[usize::from(self.parts.shard)];
        for _ in 0..RING_BUDGET {
            let Some(handed) = ring.pop() else { break };
            let packet = Inbound { source: handed.source, local: handed.local, payload: &handed.payload };
            let behind = (now.mono.since(self.behind_since), &mut self.answer);
            self.parts.outgoing.take(now, &mut self.core, handed.key, &packet, behind);
        }
    }

    /// One wake-up for each shard that was handed something, however much.
    fn wake_others(&mut self) {
        for (shard, wake) in self.to_wake.iter_mut().enumerate() {
            if std::mem::take(wake) {
                self.parts.cells.shards[shard].wake();
            }
        }
    }

    /// Asks epoll about writability for exactly the sockets that are blocked: asking always would wake the loop
    /// for every datagram a network card has sent.
    fn watch_blocked(&mut self) -> io::Result<()> {
        for (index, watched) in self.sockets.iter_mut().enumerate() {
            let outgoing = &self.parts.outgoing;
            let blocked = match watched.socket {
                Socket::Client(client) => {
                    outgoing.clients[client].as_ref().is_some_and(ClientSocket::blocked)
                }
                Socket::Link(link) => outgoing.links[link].1.blocked(),
                Socket::Fanout(fanout) => outgoing.fanouts[fanout].1.blocked(),
                Socket::Listening(_) => false,
            };
            if blocked != watched.wants_write {
                let read = Interest::READABLE;
                let interest = if blocked { read | Interest::WRITABLE } else { read };
                let registry = self.parts.poll.registry();
                registry.reregister(&mut SourceFd(&watched.fd), Token(FIRST_SOCKET + index), interest)?;
                watched.wants_write = blocked;
            }
        }
        Ok(())
    }

    /// Sets the timer for the next deadline. One that is set for earlier is left to fire: a turn with nothing to
    /// do is cheaper than a system call in each turn that moves the deadline.
    fn arm(&mut self, now: Now) -> io::Result<()> {
        let outgoing = &self.parts.outgoing;
        // What is due already is no reason to wake: the loop does not sleep then.
        let media = Some(outgoing.media.due()).filter(|due| *due > now.mono).unwrap_or(Nanos::MAX);
        let own = media.min(outgoing.due());
        let deadline = self.core.next_timeout().min(self.held.next_timeout()).min(own);
        if deadline < self.armed || self.armed <= now.mono {
            self.timer.arm(deadline)?;
            self.armed = deadline;
        }
        Ok(())
    }

    fn report(&mut self) -> serde_json::Value {
        serde_json::json!({
            "shard": self.parts.shard,
            "engine": self.core.stats(),
            "app": self.core.figures(sys_time::now()),
            "io": self.parts.outgoing.read_tally(),
            "media_ports": self.parts.outgoing.media.opened(),
        })
    }
}

/// The sockets of a shard in the order they are read.
fn watched(parts: &ShardParts) -> Vec<Watched> {
    let outgoing = &parts.outgoing;
    let links = outgoing.links.iter().enumerate().map(|(i, (_, link))| (Socket::Link(i), link.fd()));
    let fanouts = outgoing.fanouts.iter().enumerate().map(|(i, (_, link))| (Socket::Fanout(i), link.fd()));
    let listening = parts.listening.iter().enumerate().map(|(i, link)| (Socket::Listening(i), link.fd()));
    let clients = (0..outgoing.clients.len()).map(|i| (Socket::Client(i), -1));
    links
        .chain(fanouts)
        .chain(listening)
        .chain(clients)
        .map(|(socket, fd)| Watched { socket, fd, readable: fd >= 0, wants_write: false })
        .collect()
}

/// A copy of `payload` in the pool: one allocation for many datagrams, and none while the pool comes back.
fn copy_into(pool: &mut BytesMut, payload: &[u8]) -> Bytes {
    if pool.capacity() < payload.len() {
        pool.reserve(POOL_BYTES.max(payload.len()));
    }
    pool.extend_from_slice(payload);
    pool.split().freeze()
}

#[cfg(test)]
mod tests;
