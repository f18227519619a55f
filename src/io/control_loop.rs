//! The control's thread: beats and suspicion at real-time priority where allowed, apart from the packet path, so
//! that a busy shard does not look like a dead node.
//!
//! A turn comes with each own beat, and earlier when a peer's silence becomes too long; it first reads every link.
//! The peers' beats do not wake it: that would be a thread switch for each, at real-time priority, a third of
//! what a busy cluster on few cores costs. What that adds to a suspicion is less than a beat. (Links are not even
//! watched for errors: the kernel's wake-up for plain data also names EPOLLPRI.) A shard whose send was refused
//! wakes it.
//!
//! It reads the shards' cells once a turn, and tells them through theirs whom to suspect and whom it has met. It
//! also answers the operator's tools, by asking the shards.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use crossbeam::channel::{self, Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::cells::{NodeCells, Progress};
use super::operator::{self, Asked, DIGESTS, STATUS};
use super::peer::{Link, open_each, seal_into};
use super::shard_loop::{Question, Subject};
use super::sys_recv::RecvBatch;
use super::sys_send::{SendBatch, Sent};
use super::sys_thread::{self, Priority};
use super::sys_time::{self, TimerFd};
use super::tally::Tally;
use crate::engine::Outbox;
use crate::types::{Boot, Endpoint, LocalId, Nanos, NodeId, NodeSet, Now, Slot};
use crate::wire::datagram::{Kind, OPERATOR_TOOL, OpenError, destination};
use crate::wire::seal::{Opener, Sealer};

const TIMER: Token = Token(1);
const DOOR: Token = Token(2);
/// Datagrams, or joined ones, in one system call.
const BATCH: usize = 8;
/// The longest thing the kernel joins.
const JOINED_LEN: usize = 1 << 16;
/// Batches a turn takes from one socket: all that can be there in one turn of a quiet control plane, and a bound.
const BATCHES: usize = 32;
/// Questions answered at once; further ones are dropped, and asked again by the tool.
const MAX_QUESTIONS: usize = 8;
/// How long a shard may take to answer a question.
const ANSWER_WITHIN: Nanos = Nanos::from_millis(80);
/// The most bytes of answers that wait for the socket.
const ANSWER_BYTES: usize = 1 << 20;
/// How often the log is told of datagrams under another key.
const COMPLAIN_EVERY: Nanos = Nanos::from_secs(30);
/// A turn that begins this much after its deadline is late.
const LATE: Nanos = Nanos::from_millis(1);

/// What the loop drives: `engine::Control`, or a stand-in in tests.
pub trait ControlCore {
    /// The opened plaintext of a datagram from another node's control.
    fn on_peer(&mut self, now: Now, from: NodeId, boot: Boot, plaintext: &[u8]);
    /// The port of `node` was reported closed.
    fn on_refused(&mut self, now: Now, node: NodeId);
    /// A shard has heard `node` in this life of it since the last turn.
    fn on_life(&mut self, now: Now, node: NodeId, boot: Boot);
    /// How far a worker of this node has got.
    fn on_progress(&mut self, now: Now, shard: u16, progress: Progress);
    /// [`ControlCore::next_timeout`] has passed; everything that arrived before was handed over.
    fn on_timeout(&mut self, now: Now);
    /// Writes everything to be sent.
    fn flush(&mut self, now: Now, outbox: &mut impl Outbox);
    /// When to call [`ControlCore::on_timeout`], monotonic; [`Nanos::MAX`]: never.
    fn next_timeout(&self) -> Nanos;
    /// The nodes that shard `shard` has to suspect.
    fn suspects(&self, shard: u16) -> NodeSet;
    /// The life in which `node` has joined; `None` before it has.
    fn joined(&self, node: NodeId) -> Option<Boot>;
    /// Its counters, for status.
    fn stats(&self) -> serde_json::Value;
}

/// The links of the control thread, as the outbox of the core.
struct Beats {
    links: Vec<(NodeId, Link)>,
    /// The newest life heard of each, in the order of the links: who the next beat is for.
    lives: Vec<Option<Boot>>,
    sealer: Sealer,
    tally: Tally,
}

impl Beats {
    fn note_life(&mut self, node: NodeId, boot: Boot) {
        for ((peer, _), life) in self.links.iter().zip(&mut self.lives) {
            if *peer == node {
                *life = Some(boot);
            }
        }
    }
}

impl Outbox for Beats {
    fn peer(&mut self, to: NodeId, plaintext: &[u8]) {
        let Beats { links, lives, sealer, tally } = self;
        match links.iter_mut().zip(lives).find(|((peer, _), _)| *peer == to) {
            Some(((_, link), life)) => {
                link.push(sealer, Kind::Control, life.map_or(0, destination), plaintext, tally);
            }
            None => tally.dropped.peer_not_met += 1,
        }
    }

    fn multicast(&mut self, to: NodeSet, plaintext: &[u8]) {
        to.iter().for_each(|node| self.peer(node, plaintext));
    }

    fn client(&mut self, _slot: Slot, _local: LocalId, _to: Endpoint, _bytes: &[u8]) {
        self.tally.dropped.client_no_endpoint += 1;
    }
}

/// A tool's question that shards are working on.
struct Pending {
    asker: SocketAddr,
    boot: Boot,
    number: u64,
    until: Nanos,
    answers: Vec<serde_json::Value>,
    reports: Receiver<serde_json::Value>,
}

/// What the control's loop is made of.
pub struct ControlParts {
    /// This node.
    pub node: NodeId,
    /// Its life.
    pub boot: Boot,
    /// Its epoll instance; the waker with token [`super::shard_loop::WAKE`] is in `cells`.
    pub poll: Poll,
    /// One link for each peer.
    pub links: Vec<(NodeId, Link)>,
    /// The unconnected socket on the same address, for the operator's tools.
    pub door: UdpSocket,
    /// Seals what leaves.
    pub sealer: Sealer,
    /// Opens what arrives.
    pub opener: Opener,
    /// The cells of the node.
    pub cells: Arc<NodeCells>,
    /// Where to ask each shard for its counters.
    pub shards: Vec<Sender<Question>>,
    /// Whether to ask for real-time priority.
    pub urgent: bool,
}

/// See the module's page.
pub struct ControlLoop<C> {
    core: C,
    node: NodeId,
    boot: Boot,
    started: Nanos,
    poll: Poll,
    beats: Beats,
    door: UdpSocket,
    answers: SendBatch,
    opener: Opener,
    cells: Arc<NodeCells>,
    shards: Vec<Sender<Question>>,
    pending: Vec<Pending>,
    timer: TimerFd,
    armed: Nanos,
    urgent: bool,
    priority: Priority,
    batch: RecvBatch,
    /// When a shard last heard each peer, in the order of the links.
    heard: Vec<Nanos>,
    /// No complaint about keys before then.
    quiet_until: Nanos,
}

impl<C: ControlCore> ControlLoop<C> {
    /// A loop around `core`, ready to run.
    ///
    /// # Errors
    /// From `epoll_ctl(2)` and `timerfd_create(2)`.
    pub fn new(core: C, parts: ControlParts) -> io::Result<ControlLoop<C>> {
        let timer = TimerFd::new()?;
        let registry = parts.poll.registry();
        registry.register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        registry.register(&mut SourceFd(&parts.door.as_raw_fd()), DOOR, Interest::READABLE)?;
        let count = parts.links.len();
        Ok(ControlLoop {
            core,
            node: parts.node,
            boot: parts.boot,
            started: sys_time::mono(),
            poll: parts.poll,
            beats: Beats {
                links: parts.links,
                lives: vec![None; count],
                sealer: parts.sealer,
                tally: Tally::default(),
            },
            door: parts.door,
            answers: SendBatch::new(BATCH, ANSWER_BYTES, false),
            opener: parts.opener,
            cells: parts.cells,
            shards: parts.shards,
            pending: Vec::new(),
            timer,
            armed: Nanos::MAX,
            urgent: parts.urgent,
            priority: Priority::Usual,
            batch: RecvBatch::new(BATCH, JOINED_LEN),
            heard: vec![Nanos::ZERO; count],
            quiet_until: Nanos::ZERO,
        })
    }

    /// Runs until the cells say stop; returns the control's last counters.
    ///
    /// # Errors
    /// From `epoll_wait(2)` and `timerfd_settime(2)`: the loop cannot go on.
    pub fn run(mut self) -> io::Result<serde_json::Value> {
        if self.urgent {
            self.priority = sys_thread::make_urgent();
            tracing::info!(priority = %self.priority, "control loop");
        }
        let mut events = Events::with_capacity(64);
        self.arm(sys_time::now())?;
        while !self.cells.stopping() {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = sys_time::now();
            self.beats.tally.turns += 1;
            let late = self.armed != Nanos::MAX && now.mono.since(self.armed) > LATE;
            self.beats.tally.late_turns += u64::from(late);
            (0..self.beats.links.len()).for_each(|link| self.receive(now, Some(link)));
            if events.iter().any(|event| event.token() == DOOR) {
                self.receive(now, None);
            }
            self.turn(now)?;
        }
        Ok(self.report())
    }

    fn turn(&mut self, now: Now) -> io::Result<()> {
        self.read_cells(now);
        if self.core.next_timeout() <= now.mono {
            self.core.on_timeout(now);
        }
        self.core.flush(now, &mut self.beats);
        for index in 0..self.beats.links.len() {
            let (peer, link) = &mut self.beats.links[index];
            if !link.is_idle() && link.flush(&mut self.beats.tally) {
                self.core.on_refused(now, *peer);
            }
        }
        self.write_cells();
        self.answer(now);
        self.arm(now)
    }

    /// Reads a link, or the door, dry: up to a bound, what is over it waits for the next turn or event. A short
    /// batch means that it is dry.
    fn receive(&mut self, now: Now, link: Option<usize>) {
        for _ in 0..BATCHES {
            let link = link.map(|index| &self.beats.links[index]);
            let received = match link {
                Some((_, link)) => link.recv(&mut self.batch),
                None => self.batch.recv(self.door.as_fd()),
            };
            let count = match received {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    if let Some((peer, _)) = link.filter(|_| error.kind() == io::ErrorKind::ConnectionRefused)
                    {
                        self.beats.tally.refused += 1;
                        self.core.on_refused(now, *peer);
                    }
                    continue;
                }
            };
            let (peer, forged) =
                (link.map(|(peer, _)| *peer), self.beats.tally.dropped.not_opened.of(OpenError::Forged));
            self.take_batch(now, count);
            if self.beats.tally.dropped.not_opened.of(OpenError::Forged) > forged {
                self.complain(now, peer);
            }
            if count < BATCH {
                return;
            }
        }
    }

    /// Says that somebody at a peer's address has another key, now and then.
    fn complain(&mut self, now: Now, peer: Option<NodeId>) {
        let Some(peer) = peer.filter(|_| now.mono >= self.quiet_until) else { return };
        self.quiet_until = now.mono + COMPLAIN_EVERY;
        tracing::warn!(
            "datagrams from node {}'s address are not sealed with this node's cluster key and are dropped: give all \
             nodes the same TANDEM_CLUSTER_KEY (or _FILE)",
            peer.0
        );
    }

    fn take_batch(&mut self, now: Now, count: usize) {
        let ControlLoop { core, beats, opener, batch, pending, shards, cells, .. } = self;
        let mut tally = std::mem::take(&mut beats.tally);
        open_each(batch, count, opener, &mut tally, |source, opened, tally| {
            if opened.kind != Kind::Control || opened.channel != 0 {
                tally.dropped.peer_misdirected += 1;
            } else if opened.from == OPERATOR_TOOL {
                let question = operator::read_question(opened.plaintext);
                match (question.and_then(|asked| Some((asked, subject(asked)?))), source) {
                    (Some((asked, subject)), Some(asker)) if pending.len() < MAX_QUESTIONS => {
                        let (reports, until) = (ask_shards(shards, cells, subject), now.mono + ANSWER_WITHIN);
                        let (boot, number) = (opened.boot, asked.number);
                        pending.push(Pending { asker, boot, number, until, answers: Vec::new(), reports });
                    }
                    _ => tally.dropped.questions += 1,
                }
            } else {
                beats.note_life(opened.from, opened.boot);
                core.on_peer(now, opened.from, opened.boot, opened.plaintext);
            }
        });
        beats.tally = tally;
    }

    /// What the shards have to say.
    fn read_cells(&mut self, now: Now) {
        for (shard, cell) in (0_u16..).zip(&self.cells.shards) {
            self.core.on_progress(now, shard, cell.progress());
            for peer in cell.take_refused().iter() {
                self.core.on_refused(now, peer);
            }
        }
        for ((peer, _), known) in self.beats.links.iter().zip(&mut self.heard) {
            let at = self.cells.shards.iter().map(|cell| cell.heard(*peer)).max().unwrap_or_default();
            if at > *known {
                *known = at;
                if let Some(boot) = self.cells.boot(*peer) {
                    // As of when it was heard: what came before a refusal must not clear it.
                    self.core.on_life(Now { mono: at, ..now }, *peer, boot);
                }
            }
        }
    }

    /// What the shards have to know.
    fn write_cells(&mut self) {
        for (peer, _) in &self.beats.links {
            if let Some(boot) = self.core.joined(*peer).filter(|boot| self.cells.boot(*peer) != Some(*boot)) {
                self.cells.set_boot(*peer, boot);
                self.cells.shards.iter().for_each(|shard| shard.wake());
            }
        }
        for (shard, cell) in (0_u16..).zip(&self.cells.shards) {
            cell.set_suspects(self.core.suspects(shard));
        }
    }

    /// Answers the questions for which every shard has reported, or that have waited long enough.
    fn answer(&mut self, now: Now) {
        let mut index = 0;
        while index < self.pending.len() {
            let pending = &mut self.pending[index];
            pending.answers.extend(pending.reports.try_iter());
            if pending.answers.len() < self.shards.len() && now.mono < pending.until {
                index += 1;
                continue;
            }
            let pending = self.pending.swap_remove(index);
            self.write_answer(pending);
        }
    }

    fn write_answer(&mut self, mut pending: Pending) {
        pending.answers.sort_by_key(|report| report["shard"].as_u64());
        let mut report = self.report();
        report["shards_silent"] = self.shards.len().saturating_sub(pending.answers.len()).into();
        report["shards"] = serde_json::Value::Array(pending.answers);
        let json = report.to_string();
        for part in operator::write_answer(pending.number, json.as_bytes()) {
            let sealer = &mut self.beats.sealer;
            let to = destination(pending.boot);
            self.answers.push_with(Some(pending.asker), 0, part.len() + 64, |arena| {
                seal_into(arena, sealer, Kind::Control, to, &part);
            });
        }
        // A part the kernel does not take is lost, and the tool asks again.
        while let Sent::Refused(_) = self.answers.send(self.door.as_fd()) {
            self.answers.skip();
        }
        self.answers.clear();
    }

    /// While a question waits for shards, the loop looks again at every beat.
    fn arm(&mut self, now: Now) -> io::Result<()> {
        let asked = self.pending.iter().map(|pending| pending.until).min().unwrap_or(Nanos::MAX);
        let soon = if self.pending.is_empty() { asked } else { asked.min(now.mono + Nanos::from_millis(1)) };
        let deadline = self.core.next_timeout().min(soon);
        if deadline < self.armed || self.armed <= now.mono {
            self.timer.arm(deadline)?;
            self.armed = deadline;
        }
        Ok(())
    }

    fn report(&mut self) -> serde_json::Value {
        let links = self.beats.links.iter().map(|(_, link)| link.kernel_drops());
        self.beats.tally.dropped.kernel_receive_full = links.sum();
        serde_json::json!({
            "node": self.node.0,
            "boot": self.boot.0,
            "uptime_ms": sys_time::mono().since(self.started).as_millis_f64(),
            "cpu_us": sys_time::process_cpu(std::process::id()).unwrap_or_default().as_micros(),
            "priority": self.priority.to_string(),
            "control": self.core.stats(),
            "io": self.beats.tally,
        })
    }
}

/// What shards are asked on behalf of a tool.
fn subject(asked: Asked<'_>) -> Option<Subject> {
    match asked.name {
        STATUS => Some(Subject::Status),
        DIGESTS => Some(Subject::Digests),
        _ => None,
    }
}

/// Asks every shard; returns where the answers come.
fn ask_shards(
    shards: &[Sender<Question>],
    cells: &NodeCells,
    subject: Subject,
) -> Receiver<serde_json::Value> {
    let (reply, reports) = channel::bounded(shards.len());
    for (shard, cell) in shards.iter().zip(&cells.shards) {
        // A shard whose questions pile up is stuck: its report will be missing.
        let _ = shard.try_send(Question { subject, reply: reply.clone() });
        cell.wake();
    }
    reports
}

#[cfg(test)]
mod tests;
