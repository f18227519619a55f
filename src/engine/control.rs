//! The control of one node: beats to all peers, the greeting that decides who joins, and the failure detector.
//!
//! One a node, in its own loop, under the run-loop contract of [`super`]: [`Control::on_peer`] and its like for
//! what arrived, [`Control::on_timeout`] when [`Control::next_timeout`] has passed, then [`Control::flush`].
//!
//! **Joining.** A node counts for something only once both sides know that their cluster-wide settings are the same.
//! Beats carry a hash of them: equal hashes join. A hello carries names and values, is repeated until the other
//! side's beats say that it accepts, and is what names the setting when the hashes differ. All of this is per life
//! (boot): a peer that restarts, with whatever settings, starts at the beginning.

mod peer;

#[cfg(test)]
mod tests;

use std::fmt;

use self::peer::Peer;
use crate::engine::Outbox;
use crate::proto::detector::{BeatHeard, Detector, DetectorConfig, DetectorCounters};
use crate::proto::workers::Workers;
use crate::types::{Boot, Nanos, NodeId, NodeSet, Now};
use crate::wire::beat::{ControlFrame, ControlFrames, Hello, HelloRefused};

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

/// Something an operator should read. The driver logs its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// A peer's settings agree: it counts from now on.
    Joined(NodeId, Boot),
    /// A peer's settings differ: it counts for nothing. Told once for each life of the peer.
    Refused(NodeId, Disagreement),
}

impl fmt::Display for ControlEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlEvent::Joined(node, boot) => write!(f, "node {} joined (boot {})", node.0, boot.0),
            ControlEvent::Refused(node, differs) => write!(
                f,
                "node {} and this node do not join: {differs}; set the same value on all nodes and restart",
                node.0
            ),
        }
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
}

/// The control of one node.
#[derive(Debug)]
pub struct Control {
    config: ControlConfig,
    peers: Vec<Peer>,
    detector: Detector,
    workers: Workers,
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
    pub fn new(config: ControlConfig) -> Control {
        let detector = DetectorConfig {
            beat: config.beat,
            suspect_after: config.suspect_after,
            ceiling: config.suspect_ceiling,
        };
        Control {
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
        }
    }

    /// The opened plaintext of a control datagram. Its beat is the sign of life: a later one may have overtaken it.
    pub fn on_peer(&mut self, now: Now, from: NodeId, boot: Boot, plaintext: &[u8]) {
        let Some(at) = self.peers.iter().position(|peer| peer.node == from) else {
            self.counters.stale += 1;
            return;
        };
        if !self.meet(at, boot) {
            self.counters.stale += 1;
            return;
        }
        for frame in ControlFrames::new(plaintext) {
            match frame {
                Ok(ControlFrame::Beat(beat, stalls)) => {
                    let limit = self.detector.limit(from).unwrap_or(Nanos::MAX);
                    let peer = &mut self.peers[at];
                    let was_deaf = peer.deaf;
                    peer.on_beat(now.mono, self.config.boot, limit, beat);
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
                Err(_) => self.counters.malformed += 1,
            }
        }
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
            self.peers.iter_mut().for_each(|peer| peer.beat_due = true);
            // In step with the beats before, unless this one came so late that the next would follow at once.
            let next = self.next_beat + self.config.beat;
            self.next_beat = if next > now.mono { next } else { now.mono + self.config.beat };
        }
        self.detector.on_turn(now.mono);
    }

    /// When [`on_timeout`](Control::on_timeout) has something to do: never, for a node without peers.
    pub fn next_timeout(&self) -> Nanos {
        if self.peers.is_empty() {
            return Nanos::MAX;
        }
        self.detector.next_timeout().map_or(self.next_beat, |suspicion| suspicion.min(self.next_beat))
    }

    /// Writes what is to be sent: one datagram at most for each peer.
    pub fn flush(&mut self, now: Now, out: &mut impl Outbox) {
        for peer in self.peers.iter_mut().filter(|peer| peer.beat_due || peer.refusal_due) {
            self.datagram.clear();
            let stalls = self.workers.stalls(now.mono);
            peer.write(now.mono, &self.config, stalls, &mut self.datagram);
            out.peer(peer.node, &self.datagram);
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

/// What is told to a peer that does not join.
fn disagreement_frame(differs: &Disagreement) -> HelloRefused<'_> {
    HelloRefused { name: &differs.name, ours: differs.ours.as_deref(), theirs: differs.theirs.as_deref() }
}

/// The first setting, in this node's order, in which a greeting differs from `ours`.
fn disagreement(ours: &[(String, String)], hello: Hello<'_>) -> Option<Disagreement> {
    for (name, value) in ours {
        let theirs = hello.pairs().find(|pair| pair.0 == name).map(|pair| pair.1);
        if theirs != Some(value) {
            let theirs = theirs.map(str::to_owned);
            return Some(Disagreement { name: name.clone(), ours: Some(value.clone()), theirs });
        }
    }
    let (name, value) = hello.pairs().find(|pair| ours.iter().all(|own| own.0 != pair.0))?;
    Some(Disagreement { name: name.to_owned(), ours: None, theirs: Some(value.to_owned()) })
}
