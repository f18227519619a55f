//! The control's thread: beats and suspicion at real-time priority where allowed, apart from the packet path, so
//! that a busy shard does not look like a dead node.
//!
//! A turn comes with each own beat, and earlier when a peer's silence becomes too long; it first reads every link.
//! The peers' beats do not wake it: that would be a thread switch for each, at real-time priority, a third of
//! what a busy cluster on few cores costs. What that adds to a suspicion is less than a beat. (Links are not even
//! watched for errors: the kernel's wake-up for plain data also names EPOLLPRI.) A shard whose send was refused
//! wakes it.
//!
//! It reads the shards' cells once a turn, and tells them through theirs whom to suspect, whom it has met, the newest
//! agreed map and this node's lease. It also answers the operator's tools, by asking the shards; takes the exit notices
//! of the peers' supervisors, which come by the same door and wake it; and says when the node is to end.

mod holding;
mod questions;

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use crossbeam::channel::Sender;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

pub use self::holding::Holding;
use self::questions::{Asker, MAX_QUESTIONS, Pending, take_question};
use super::cells::{NodeCells, Progress};
use super::operator;
use super::peer::{Link, open_each};
use super::reload::Ask;
use super::shard_loop::Question;
use super::sys_recv::RecvBatch;
use super::sys_send::SendBatch;
use super::sys_thread::{self, Priority};
use super::sys_time::{self, TimerFd};
use super::tally::Tally;
use super::vote_disk::{DiskFigures, Save, VoteDisk};
use crate::engine::{Outbox, ShardReport};
use crate::proto::map::ClusterMap;
use crate::types::{Boot, Endpoint, LocalId, Nanos, NodeId, NodeSet, Now, Slot};
use crate::wire::datagram::{Kind, OPERATOR_TOOL, OpenError, SUPERVISOR, destination};
use crate::wire::exit::{Exited, read_exited};
use crate::wire::seal::{Opener, Sealer};

const TIMER: Token = Token(1);
const DOOR: Token = Token(2);
/// Datagrams, or joined ones, in one system call.
const BATCH: usize = 8;
/// The longest thing the kernel joins.
const JOINED_LEN: usize = 1 << 16;
/// Batches a turn takes from one socket: all that can be there in one turn of a quiet control plane, and a bound.
const BATCHES: usize = 32;
/// The most bytes of answers that wait for the socket.
const ANSWER_BYTES: usize = 1 << 20;
/// How often the log is told of datagrams under another key.
const COMPLAIN_EVERY: Nanos = Nanos::from_secs(30);
/// A turn that begins this much after its deadline is late.
const LATE: Nanos = Nanos::from_millis(1);
/// How often the links are looked at while an address may have to move: their datagrams wake nobody.
const BUSY_TURN: Nanos = Nanos::from_micros(250);

/// What the loop drives: `engine::Control`, or a stand-in in tests.
pub trait ControlCore {
    /// The opened plaintext of a datagram from another node's control.
    fn on_peer(&mut self, now: Now, from: NodeId, boot: Boot, plaintext: &[u8]);
    /// The port of `node` was reported closed.
    fn on_refused(&mut self, now: Now, node: NodeId);
    /// The supervisor of `node` says that this life of it is over.
    fn on_exit_notice(&mut self, now: Now, node: NodeId, boot: Boot);
    /// How things stand at a shard.
    fn on_report(&mut self, shard: u16, report: ShardReport);
    /// Hands over what this node holds, so that it can leave; or why it cannot.
    fn drain(&mut self, now: Now) -> Result<(), String>;
    /// The newest agreed map.
    fn map(&self) -> &Arc<ClusterMap>;
    /// Until when this node may release replies (monotonic); zero: no lease.
    fn lease_until(&self) -> Nanos;
    /// Until when nobody else can hold what it owns, whether it may release or not (monotonic); a time that has passed:
    /// its lease is late.
    fn held_until(&self) -> Nanos;
    /// What is agreed follows what was heard: once a turn, before [`ControlCore::take_votes`].
    fn on_turn(&mut self, now: Now);
    /// What must become durable, if it has changed: once, until [`ControlCore::on_votes_saved`].
    fn take_votes(&mut self) -> Option<Vec<u8>>;
    /// What was last taken is durable.
    fn on_votes_saved(&mut self);
    /// An address may have to move: answers of peers are worth a turn between beats.
    fn is_busy(&self) -> bool;
    /// By the map this life of the node is over.
    fn is_fenced(&self) -> bool;
    /// It has handed over everything.
    fn has_left(&self) -> bool;
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

/// Why a control wants its node to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEnd {
    /// By the map this life is over.
    Fenced,
    /// Everything was handed over, as it was asked to.
    Left,
    /// It was asked to hand over what it holds, and cannot.
    CannotLeave(String),
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
    /// Where to ask for the routes to be read again.
    pub reload: Sender<Ask>,
    /// Whether to ask for real-time priority.
    pub urgent: bool,
    /// The process that started this one to be the node's engine.
    pub supervisor: Option<u32>,
    /// Follows which service addresses this node holds.
    pub holding: Holding,
    /// Makes durable what [`ControlCore::take_votes`] gives.
    pub save: Save,
    /// Where it is said, once, that the node is to end.
    pub ends: Box<dyn Fn(ControlEnd) + Send>,
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
    reload: Sender<Ask>,
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
    supervisor: Option<u32>,
    holding: Holding,
    /// What saves, until the first vote starts its thread.
    save: Option<Save>,
    disk: Option<VoteDisk>,
    ends: Box<dyn Fn(ControlEnd) + Send>,
    /// The end was said.
    ended: bool,
    /// Which report of each shard was read last.
    reports: Vec<u32>,
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
        let (count, shards) = (parts.links.len(), parts.shards.len());
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
            reload: parts.reload,
            pending: Vec::new(),
            timer,
            armed: Nanos::MAX,
            urgent: parts.urgent,
            priority: Priority::Usual,
            batch: RecvBatch::new(BATCH, JOINED_LEN),
            heard: vec![Nanos::ZERO; count],
            quiet_until: Nanos::ZERO,
            supervisor: parts.supervisor,
            holding: parts.holding,
            save: Some(parts.save),
            disk: None,
            ends: parts.ends,
            ended: false,
            reports: vec![0; shards],
        })
    }

    /// Runs until the cells say stop; returns the control's last counters.
    ///
    /// # Errors
    /// From `epoll_wait(2)` and `timerfd_settime(2)`, and from saving votes: the loop cannot go on.
    pub fn run(mut self) -> io::Result<serde_json::Value> {
        if self.urgent {
            self.priority = sys_thread::make_urgent();
            tracing::info!(priority = %self.priority, "control loop");
        }
        let mut events = Events::with_capacity(64);
        self.turn(sys_time::now())?;
        while !self.cells.stopping() {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = sys_time::now();
            self.beats.tally.turns += 1;
            let late = self.armed != Nanos::MAX && now.mono.since(self.armed) > LATE;
            if late {
                self.beats.tally.late_turns += 1;
                self.holding.was_asleep(now.mono);
            }
            (0..self.beats.links.len()).for_each(|link| self.receive(now, Some(link)));
            if events.iter().any(|event| event.token() == DOOR) {
                self.receive(now, None);
            }
            self.turn(now)?;
        }
        Ok(self.report())
    }

    fn turn(&mut self, now: Now) -> io::Result<()> {
        if let Some(disk) = &mut self.disk
            && disk.take_saved(now.mono)?
        {
            self.core.on_votes_saved();
        }
        self.read_cells(now);
        if self.core.next_timeout() <= now.mono {
            self.core.on_timeout(now);
        }
        if self.cells.take_drain()
            && let Err(why) = self.core.drain(now)
        {
            self.end(ControlEnd::CannotLeave(why));
        }
        self.core.on_turn(now);
        if let Some(state) = self.core.take_votes() {
            self.save(state)?;
        }
        self.core.flush(now, &mut self.beats);
        for index in 0..self.beats.links.len() {
            let (peer, link) = &mut self.beats.links[index];
            if !link.is_idle() && link.flush(&mut self.beats.tally) {
                self.core.on_refused(now, *peer);
            }
        }
        self.write_cells(now);
        if self.core.is_fenced() {
            self.end(ControlEnd::Fenced);
        } else if self.core.has_left() {
            self.end(ControlEnd::Left);
        }
        self.answer(now);
        self.arm(now)
    }

    fn save(&mut self, state: Vec<u8>) -> io::Result<()> {
        if let Some(save) = self.save.take() {
            let cells = self.cells.clone();
            self.disk = Some(VoteDisk::start(save, move || cells.wake_control(), self.urgent)?);
        }
        self.disk.as_mut().map_or(Ok(()), |disk| disk.save(state))
    }

    fn end(&mut self, why: ControlEnd) {
        if !std::mem::replace(&mut self.ended, true) {
            (self.ends)(why);
        }
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
        let ControlLoop { core, beats, opener, batch, pending, shards, reload, cells, .. } = self;
        let mut tally = std::mem::take(&mut beats.tally);
        open_each(batch, count, opener, &mut tally, |source, opened, tally| {
            if opened.kind == Kind::Control && opened.channel == SUPERVISOR {
                // Only a life's own supervisor has the key that says so, but a tool has the cluster's key too.
                let (node, boot) = (opened.from, opened.boot);
                let told = read_exited(opened.plaintext).filter(|exited| *exited == Exited { node, boot });
                match told.filter(|_| node != OPERATOR_TOOL) {
                    Some(_) => core.on_exit_notice(now, node, boot),
                    None => tally.dropped.peer_misdirected += 1,
                }
            } else if opened.kind != Kind::Control || opened.channel != 0 {
                tally.dropped.peer_misdirected += 1;
            } else if opened.from == OPERATOR_TOOL {
                let question = operator::read_question(opened.plaintext);
                let taken = match (question, source) {
                    (Some(asked), Some(asker)) if pending.len() < MAX_QUESTIONS => {
                        let asker = Asker { address: asker, boot: opened.boot, number: asked.number };
                        // A tool asks again until it is answered.
                        let known = pending.iter().any(|pending| pending.asker == asker);
                        let ways = (&shards[..], &*reload);
                        if known { None } else { take_question(asked.name, asker, now, core, ways, cells) }
                    }
                    _ => None,
                };
                tally.dropped.questions += u64::from(taken.is_none());
                pending.extend(taken);
            } else {
                beats.note_life(opened.from, opened.boot);
                core.on_peer(now, opened.from, opened.boot, opened.plaintext);
            }
        });
        beats.tally = tally;
    }

    /// What the shards have to say.
    fn read_cells(&mut self, now: Now) {
        for ((shard, cell), seen) in (0_u16..).zip(&self.cells.shards).zip(&mut self.reports) {
            self.core.on_progress(now, shard, cell.progress());
            if let Some(report) = cell.take_report(seen) {
                self.core.on_report(shard, report);
            }
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

    /// What the shards and the keeper of the addresses have to know.
    fn write_cells(&mut self, now: Now) {
        for (peer, _) in &self.beats.links {
            if let Some(boot) = self.core.joined(*peer).filter(|boot| self.cells.boot(*peer) != Some(*boot)) {
                self.cells.set_boot(*peer, boot);
                self.cells.shards.iter().for_each(|shard| shard.wake());
            }
        }
        for (shard, cell) in (0_u16..).zip(&self.cells.shards) {
            cell.set_suspects(self.core.suspects(shard));
        }
        let (map, lease_until) = (self.core.map(), self.core.lease_until());
        self.cells.set_map(map);
        self.cells.set_lease(now.mono, lease_until);
        self.holding.follow(now.mono, map, self.core.held_until());
    }

    /// While a question waits for shards, the loop looks again at every beat.
    fn arm(&mut self, now: Now) -> io::Result<()> {
        let asked = self.pending.iter().map(|pending| pending.until).min().unwrap_or(Nanos::MAX);
        let soon = if self.pending.is_empty() { asked } else { asked.min(now.mono + Nanos::from_millis(1)) };
        let decided = if self.core.is_busy() { now.mono + BUSY_TURN } else { Nanos::MAX };
        let deadline = self.core.next_timeout().min(soon).min(decided).min(self.holding.next_timeout());
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
            "pid": std::process::id(),
            "supervisor_pid": self.supervisor,
            "uptime_ms": sys_time::mono().since(self.started).as_millis_f64(),
            "cpu_us": sys_time::process_cpu(std::process::id()).unwrap_or_default().as_micros(),
            "priority": self.priority.to_string(),
            "votes": self.disk.as_ref().map_or(DiskFigures::default(), VoteDisk::figures),
            "control": self.core.stats(),
            "io": self.beats.tally,
        })
    }
}

#[cfg(test)]
mod tests;
