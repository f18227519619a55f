//! The control of one node: beats to all peers, the greeting that decides who joins, and the failure detector.
//!
//! One a node, in its own loop, under the run-loop contract of [`super`]: [`Control::on_peer`] and its like for
//! what arrived, [`Control::on_timeout`] when [`Control::next_timeout`] has passed, then [`Control::flush`].
//!
//! **Joining.** A node counts for something only once both sides know that their cluster-wide settings are the same.
//! Beats carry a hash of them: equal hashes join. A hello carries names and values, is repeated until the other
//! side's beats say that it accepts, and is what names the setting when the hashes differ. All of this is per life
//! (boot): a peer that restarts, with whatever settings, starts at the beginning. Nodes may list different nodes as long
//! as those that both list are the same: so a cluster can grow.
//!
//! **What is agreed** (the cluster map, leases, promises) is `council`'s. What its voter has to remember comes from
//! [`Control::take_votes`]; the letters that follow from it leave once it is durable ([`Control::on_votes_saved`]).

mod council;
mod delegate;
mod event;
mod peer;

#[cfg(test)]
mod tests;

pub use council::{CouncilConfig, Failover};
pub use event::{ControlEvent, Weight};

use std::fmt;
use std::sync::Arc;

use self::council::{Council, Turn};
use self::event::Alarms;
use self::peer::{Peer, disagreement};
use crate::engine::{Outbox, ShardReport};
use crate::proto::detector::{BeatHeard, Detector, DetectorConfig, DetectorCounters};
use crate::proto::map::ClusterMap;
use crate::proto::voter::{VoterCounters, VoterError};
use crate::proto::workers::Workers;
use crate::types::{Boot, Nanos, NodeId, NodeSet, Now};
use crate::wire::beat::{ControlFrame, ControlFrames, Hello, HelloRefused};
use crate::wire::council::write_consensus;

/// How often a hello is repeated to a peer that has not accepted it.
pub const HELLO_EVERY: Nanos = Nanos::from_millis(100);

/// What a control needs to know.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// This node.
    pub node: NodeId,
    /// Its life.
    pub boot: Boot,
    /// The other nodes of the cluster.
    pub peers: Vec<NodeId>,
    /// How many workers (shards) this node has.
    pub shards: u16,
    /// How often to beat.
    pub beat: Nanos,
    /// How much silence makes a suspect: the floor of an adaptive limit.
    pub suspect_after: Nanos,
    /// The bound of that limit.
    pub suspect_ceiling: Nanos,
    /// Name and value of each cluster-wide setting: at most [`MAX_PAIRS`](crate::wire::beat::MAX_PAIRS) of at most
    /// [`MAX_TEXT`](crate::wire::beat::MAX_TEXT) bytes each.
    pub settings: Vec<(String, String)>,
    /// A hash of them.
    pub settings_hash: u64,
    /// What the agreed part is told.
    pub council: CouncilConfig,
}

/// A cluster-wide setting in which a peer differs from this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// The setting.
    pub name: String,
    /// This node's value; none if it does not know the setting.
    pub ours: Option<String>,
    /// The peer's value; none if it does not know the setting.
    pub theirs: Option<String>,
}

impl fmt::Display for Disagreement {
    /// Reads as in "`TANDEM_R is 2 there and 3 here`".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: &Option<String>| value.clone().unwrap_or("unknown".to_owned());
        write!(f, "TANDEM_{} is {} there and {} here", self.name, value(&self.theirs), value(&self.ours))
    }
}

/// What a control knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeId,
    /// Its life, once heard.
    pub boot: Option<Boot>,
    /// Its settings agree and it is not suspected.
    pub up: bool,
    /// It has been silent, or refused a datagram.
    pub suspected: bool,
    /// The smoothed round-trip time between the control loops.
    pub rtt: Option<Nanos>,
    /// How much silence makes it a suspect now.
    pub limit: Nanos,
    /// Why it does not join.
    pub refused: Option<Disagreement>,
}

/// What was dropped, by reason.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlCounters {
    /// Datagrams with a malformed frame; the frames before it counted.
    pub malformed: u64,
    /// Datagrams of strangers, or of an earlier life of a peer.
    pub stale: u64,
    /// How often a peer said that it no longer hears this node.
    pub deaf: u64,
    /// Maps of peers that are none, or not of this cluster.
    pub bad_maps: u64,
}

/// The control of one node.
#[derive(Debug)]
pub struct Control {
    config: ControlConfig,
    peers: Vec<Peer>,
    detector: Detector,
    workers: Workers,
    council: Council,
    alarms: Alarms,
    /// The version of the map that all peers were last told of without waiting for a beat.
    told_map: u32,
    /// When the last turn was.
    turned: Nanos,
    /// A beat was due in this turn.
    ticked: bool,
    silence: Vec<Option<Nanos>>,
    next_beat: Nanos,
    events: Vec<ControlEvent>,
    counters: ControlCounters,
    /// How often the set of deaf peers changed.
    deaf_changes: u64,
    /// Reused for each datagram and each beat's stalls.
    datagram: Vec<u8>,
    stalls: Vec<u16>,
}

impl Control {
    /// A control whose first timeout is due at once, and greets all peers.
    ///
    /// # Errors
    /// [`VoterError`]: what its voter had saved cannot be used.
    pub fn new(config: ControlConfig) -> Result<Control, VoterError> {
        let detector = DetectorConfig {
            beat: config.beat,
            suspect_after: config.suspect_after,
            ceiling: config.suspect_ceiling,
        };
        let council = Council::new(config.node, config.boot, config.shards, config.council.clone())?;
        Ok(Control {
            council,
            alarms: Alarms::default(),
            told_map: 0,
            turned: Nanos::ZERO,
            ticked: false,
            silence: Vec::new(),
            peers: config.peers.iter().map(|node| Peer::new(*node)).collect(),
            detector: Detector::new(detector, config.peers.iter().copied()),
            workers: Workers::new(config.shards, config.beat),
            next_beat: Nanos::ZERO,
            events: Vec::new(),
            counters: ControlCounters::default(),
            deaf_changes: 0,
            datagram: Vec::new(),
            stalls: Vec::new(),
            config,
        })
    }

    /// The opened plaintext of a control datagram. Its beat is the sign of life: a later one may have overtaken it.
    pub fn on_peer(&mut self, now: Now, from: NodeId, boot: Boot, plaintext: &[u8]) {
        let at = self.peers.iter().position(|peer| peer.node == from);
        let Some(at) = at.filter(|at| self.meet(*at, boot)) else {
            self.counters.stale += 1;
            return;
        };
        // When this node sent the beat that is echoed here; and whether the peer's is new, and so its report.
        let (mut echoed, mut newest) = (None, false);
        for frame in ControlFrames::new(plaintext) {
            match frame {
                Ok(ControlFrame::Beat(beat, stalls)) => {
                    let limit = self.detector.limit(from).unwrap_or(Nanos::MAX);
                    let peer = &mut self.peers[at];
                    let was_deaf = peer.deaf;
                    let to_us = beat.echo_boot.get() == self.config.boot.0;
                    echoed = to_us.then(|| Nanos(beat.echo_sent.get()));
                    newest = peer.on_beat(now.mono, self.config.boot, limit, beat);
                    self.counters.deaf += u64::from(peer.deaf && !was_deaf);
                    self.deaf_changes += u64::from(peer.deaf != was_deaf);
                    let joins = peer.judged_as(beat.settings.get(), self.config.settings_hash);
                    if joins && !peer.joined {
                        self.join(at, boot);
                    }
                    if self.peers[at].joined {
                        self.stalls.clear();
                        self.stalls.extend(stalls.iter().map(|stall| stall.get()));
                        let (sequence, sent) = (beat.sequence.get(), Nanos(beat.sent.get()));
                        let heard = BeatHeard { sequence, sent, stalls: &self.stalls };
                        self.detector.on_beat(now.mono, from, boot, heard);
                    }
                }
                Ok(ControlFrame::Hello(hello)) => self.on_hello(at, boot, hello),
                Ok(ControlFrame::HelloRefused(refused)) => self.on_hello_refused(at, refused),
                Ok(ControlFrame::Report(..)) if !newest => self.counters.stale += 1,
                Ok(frame) if self.peers[at].joined => self.on_council(now, at, echoed, frame),
                Ok(_) => self.counters.stale += 1,
                Err(_) => self.counters.malformed += 1,
            }
        }
    }

    fn on_council(&mut self, now: Now, at: usize, echoed: Option<Nanos>, frame: ControlFrame<'_>) {
        match frame {
            ControlFrame::Report(report, lost) => {
                let peer = &mut self.peers[at];
                let news = peer.delegate.on_report(now.mono, echoed, report, lost);
                // Whoever has an older map gets the newer one, and an owner its lease, without waiting for a beat.
                peer.beat_due |= news;
            }
            ControlFrame::Consensus(letter) => self.council.on_consensus(self.peers[at].node, letter),
            ControlFrame::Map(bytes) => {
                let good = self.council.on_map(now.mono, now.wall, &self.peers, bytes);
                self.counters.bad_maps += u64::from(!good);
            }
            ControlFrame::Beat(..) | ControlFrame::Hello(_) | ControlFrame::HelloRefused(_) => {}
        }
    }

    /// The supervisor of `node` says that its life `boot` has ended: that is certain, and it is suspected at once.
    pub fn on_exit_notice(&mut self, now: Now, node: NodeId, boot: Boot) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.node == node) else {
            self.counters.stale += 1;
            return;
        };
        if self.council.exited.iter().any(|(n, b)| *n == node && *b >= boot) {
            return;
        }
        self.council.exited.retain(|(n, _)| *n != node);
        self.council.exited.push((node, boot));
        if peer.boot.is_none_or(|known| known <= boot) {
            self.detector.on_refused(now.mono, node);
        }
        // The voters have to hear what follows from it now.
        self.council.stir(now.mono);
        self.peers.iter_mut().for_each(|peer| peer.beat_due |= peer.joined);
    }

    /// How things stand at a shard.
    pub fn on_report(&mut self, shard: u16, report: ShardReport) {
        self.council.on_shard(shard, report);
    }

    /// The newest agreed map; of version 0 before the first.
    pub fn map(&self) -> &Arc<ClusterMap> {
        self.council.map()
    }

    /// Until when this node may release replies, on the monotonic clock; zero: not at all.
    pub fn lease_until(&self) -> Nanos {
        self.council.lease_until()
    }

    /// Until when nobody else can hold what this node owns, even if it releases no more because it leaves; a time that
    /// has passed: it is late with its lease.
    pub fn held_until(&self) -> Nanos {
        self.council.held_until()
    }

    /// Wants to leave: hands over what this node holds.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn drain(&mut self) -> Result<(), String> {
        self.council.drain()
    }

    /// By the map this life is over: the process has to end, and may begin anew.
    pub fn is_fenced(&self) -> bool {
        self.council.is_fenced() && !self.council.draining
    }

    /// It wanted to leave and holds nothing any more.
    pub fn has_left(&self) -> bool {
        self.council.has_left()
    }

    /// What must become durable; `None` if nothing has changed, or while what was last taken is not durable.
    pub fn take_votes(&mut self) -> Option<Vec<u8>> {
        self.council.take_votes()
    }

    /// What [`Control::take_votes`] last gave is durable: the letters that follow from it may leave.
    pub fn on_votes_saved(&mut self) {
        self.council.on_votes_saved();
    }

    /// Whether an address may have to move: answers of peers are worth a turn between beats.
    pub fn is_busy(&self) -> bool {
        self.council.is_astir(self.turned)
    }

    /// Whether this node leads the voters, and how addresses have moved as far as it knows.
    pub fn leads(&self) -> bool {
        self.council.leads()
    }

    /// The voters.
    pub fn voters(&self) -> &[NodeId] {
        &self.council.config.voters
    }

    /// The voter that leads, as far as this node knows; voters only.
    pub fn leader(&self) -> Option<NodeId> {
        self.council.leader()
    }

    /// What this node's voter has dropped; none: it is no voter.
    pub fn voter_counters(&self) -> Option<VoterCounters> {
        self.council.voter_counters()
    }

    /// Whether a majority of the voters is heard.
    pub fn has_quorum(&self) -> bool {
        let heard = |v: &&NodeId| {
            **v == self.config.node
                || self.peers.iter().any(|p| p.node == **v && p.joined && !self.is_silent(**v))
        };
        self.voters().iter().filter(heard).count() * 2 > self.voters().len()
    }

    fn is_silent(&self, node: NodeId) -> bool {
        self.detector.silence(node).is_none_or(|silence| silence >= self.council.config.dead_after)
    }

    /// The peers that have been silent for DEAD_AFTER, or were never heard.
    pub fn silent(&self) -> NodeSet {
        let mut silent = NodeSet::EMPTY;
        self.peers.iter().filter(|p| self.is_silent(p.node)).for_each(|p| silent.insert(p.node));
        silent
    }

    /// How much of its lease was left in the last turn.
    pub fn lease_left(&self) -> Nanos {
        self.council.lease_until().since(self.turned)
    }

    /// See [`Failover`].
    pub fn failovers(&self) -> &[Failover] {
        &self.council.failovers
    }

    /// Takes note of a life of a peer; false if it is one that a later life has followed.
    fn meet(&mut self, at: usize, boot: Boot) -> bool {
        let peer = &mut self.peers[at];
        match peer.boot {
            Some(known) if known > boot => return false,
            Some(known) if known == boot => {}
            _ => {
                peer.begin(boot);
                self.detector.forget(peer.node);
            }
        }
        true
    }

    fn join(&mut self, at: usize, boot: Boot) {
        let peer = &mut self.peers[at];
        peer.joined = true;
        // At once, so that the peer learns that it was accepted.
        peer.beat_due = true;
        self.events.push(ControlEvent::Joined(peer.node, boot));
    }

    fn on_hello(&mut self, at: usize, boot: Boot, hello: Hello<'_>) {
        let differs = disagreement(&self.config.settings, hello);
        let peer = &mut self.peers[at];
        peer.judged = Some((hello.settings, differs.is_none()));
        match differs {
            None if !peer.joined && peer.refused.is_none() => self.join(at, boot),
            None => {}
            Some(differs) => {
                peer.refusal_due = true;
                self.refuse(at, differs);
            }
        }
    }

    fn on_hello_refused(&mut self, at: usize, refused: HelloRefused<'_>) {
        let owned = |value: Option<&str>| value.map(str::to_owned);
        // The sender's "ours" is its own value.
        let (ours, theirs) = (owned(refused.theirs), owned(refused.ours));
        self.refuse(at, Disagreement { name: refused.name.to_owned(), ours, theirs });
    }

    /// The peer counts for nothing, in this life of it.
    fn refuse(&mut self, at: usize, differs: Disagreement) {
        let peer = &mut self.peers[at];
        peer.joined = false;
        self.detector.forget(peer.node);
        if peer.refused.is_none() {
            peer.refused = Some(differs.clone());
            self.events.push(ControlEvent::Refused(peer.node, differs));
        }
    }

    /// A shard received something else of this life of `node`, in its turn of time `now`: which may be earlier than
    /// the control's, and then clears no refusal that came later. Counts only once the node has joined.
    pub fn on_life(&mut self, now: Now, node: NodeId, boot: Boot) {
        if self.peers.iter().any(|peer| peer.node == node && peer.boot == Some(boot) && peer.joined) {
            self.detector.on_life(now.mono, node, boot);
        }
    }

    /// The kernel reported that a port of `node` is unreachable: suspects it, and probes it with the next flush.
    pub fn on_refused(&mut self, now: Now, node: NodeId) {
        if self.detector.on_refused(now.mono, node)
            && let Some(peer) = self.peers.iter_mut().find(|peer| peer.node == node)
        {
            peer.beat_due = true;
        }
    }

    /// What the worker of `shard` has published: a counter that grows with each turn, and whether it is parked.
    pub fn on_progress(&mut self, now: Now, shard: u16, turn: u64, parked: bool) {
        self.workers.on_progress(now.mono, shard, turn, parked);
    }

    /// Time has passed. Call it after all that arrived in this turn was handed over.
    pub fn on_timeout(&mut self, now: Now) {
        if now.mono >= self.next_beat {
            self.ticked = true;
            self.peers.iter_mut().for_each(|peer| peer.beat_due = true);
            // In step with the beats before, unless this one came so late that the next would follow at once.
            let next = self.next_beat + self.config.beat;
            self.next_beat = if next > now.mono { next } else { now.mono + self.config.beat };
        }
        self.detector.on_turn(now.mono);
    }

    /// What is agreed follows what was heard: call it each turn after [`Control::on_timeout`], whether that was due or
    /// not, and before [`Control::take_votes`].
    pub fn on_turn(&mut self, now: Now) {
        self.turned = now.mono;
        let tick = std::mem::take(&mut self.ticked);
        let suspects = self.all_suspects();
        let Control { council, peers, detector, silence, .. } = self;
        silence.clear();
        silence.extend(peers.iter().map(|peer| detector.silence(peer.node)));
        let (mono, wall) = (now.mono, now.wall);
        council.turn(Turn { now: mono, wall, peers, silence, suspects }, tick);
        if council.map().version != std::mem::replace(&mut self.told_map, council.map().version) {
            // Leases follow from the new map, and those who do not have it need it.
            peers.iter_mut().for_each(|peer| peer.beat_due |= peer.joined);
        }
        self.events.extend(council.changes.drain(..).map(|c| ControlEvent::Proposed(c.to_string())));
        self.raise_alarms(mono);
    }

    fn all_suspects(&self) -> NodeSet {
        (0..self.config.shards).fold(NodeSet::EMPTY, |all, shard| NodeSet(all.0 | self.suspects(shard).0))
    }

    /// When [`on_timeout`](Control::on_timeout) has something to do. A node without peers beats too: what it agrees on
    /// with itself takes more than one turn.
    pub fn next_timeout(&self) -> Nanos {
        self.detector.next_timeout().map_or(self.next_beat, |suspicion| suspicion.min(self.next_beat))
    }

    /// Writes what is to be sent: one datagram at most for each peer, and the letters between voters.
    pub fn flush(&mut self, now: Now, out: &mut impl Outbox) {
        let suspects = self.all_suspects();
        let Control { council, peers, workers, datagram, silence, config, .. } = self;
        for at in 0..peers.len() {
            if !(peers[at].beat_due || peers[at].refusal_due) {
                continue;
            }
            datagram.clear();
            peers[at].write(now.mono, config, workers.stalls(now.mono), datagram);
            if silence.len() == peers.len() {
                let mut turn = Turn { now: now.mono, wall: now.wall, peers, silence, suspects };
                council.write(&mut turn, at, datagram);
            }
            out.peer(peers[at].node, datagram);
        }
        for (to, letter) in council.take_letters() {
            if !peers.iter().any(|peer| peer.node == to && peer.joined) {
                continue;
            }
            datagram.clear();
            write_consensus(datagram, &letter);
            out.peer(to, datagram);
        }
    }

    /// The nodes that should be master of no slot of `shard`: not joined, silent, refusing, with a stuck worker, or
    /// speaking but not hearing this node (a link that is cut one way): they would never learn of an entry.
    pub fn suspects(&self, shard: u16) -> NodeSet {
        let mut suspects = self.detector.suspects(shard);
        self.peers.iter().filter(|peer| peer.deaf).for_each(|peer| suspects.insert(peer.node));
        suspects
    }

    /// Grows whenever the answer of [`suspects`](Control::suspects) may have changed, for any shard.
    pub fn suspects_version(&self) -> u64 {
        self.detector.version() + self.deaf_changes
    }

    /// The peers whose settings agree with this node's, in their present life. Frames of others count for nothing.
    pub fn joined(&self) -> NodeSet {
        let mut joined = NodeSet::EMPTY;
        self.peers.iter().filter(|peer| peer.joined).for_each(|peer| joined.insert(peer.node));
        joined
    }

    /// Whether every peer has joined and has accepted this node.
    pub fn all_joined(&self) -> bool {
        self.peers.iter().all(|peer| peer.joined && peer.accepts_us)
    }

    /// What is known of each peer, in the order of the configuration.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> + '_ {
        self.peers.iter().map(|peer| {
            let suspected = self.detector.suspected(peer.node);
            PeerStatus {
                node: peer.node,
                boot: peer.boot,
                up: peer.joined && !suspected,
                suspected,
                rtt: peer.rtt,
                limit: self.detector.limit(peer.node).unwrap_or(self.config.suspect_after),
                refused: peer.refused.clone(),
            }
        })
    }

    /// What happened since the last call, for the log.
    pub fn take_events(&mut self) -> impl Iterator<Item = ControlEvent> + '_ {
        self.events.drain(..)
    }

    /// What was dropped so far.
    pub fn counters(&self) -> ControlCounters {
        self.counters
    }

    /// The detector's figures.
    pub fn detector_counters(&self) -> DetectorCounters {
        self.detector.counters()
    }
}
