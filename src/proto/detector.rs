//! The failure detector: which nodes are silent, told fast and taken back as easily.
//!
//! # Intuition
//!
//! A suspicion only moves masterships, so being wrong now and then is cheap and being late is not. A peer
//! beats every millisecond or so; whoever has not been heard for `suspect_after` is suspected, and trusted
//! again with the next datagram. Nobody is ever declared dead here. Four things keep it honest:
//!
//! - **Every datagram is a sign of life**, not only beats: a busy link does not need them.
//! - **The limit follows the jitter.** How late each beat came (its gap to the one before, less the beat
//!   interval) is smoothed with a gain of 1/4 upwards and 1/256 downwards, and the limit is the beat interval
//!   plus four times that, but never under `suspect_after` and never over `ceiling`. This is Jacobson's
//!   retransmission timer (RFC 6298, section 2) put to heartbeats, as Bertier, Marin and Sens did
//!   ("Implementation and performance evaluation of an adaptable failure detector", DSN 2002). The slow fall is
//!   ours: on a loaded machine beats are late in bursts tens of milliseconds apart, which a gain of 1/4 forgets.
//! - **Silence counts only while this loop kept its own appointments.** It turns at least once a beat interval;
//!   the time by which a turn came late says nothing about the others and is left out of everybody's silence.
//! - **A stuck worker is not a dead node.** Beats carry how long each worker has been busy with one turn; a worker
//!   over the limit makes its node a suspect for its shard alone.
//!
//! An ICMP refusal makes a suspect at once, and is a reason to probe, but can be forged or come from a firewall: any
//! datagram of a later turn clears it. (Not of the same turn: what a dead process had sent is read after its refusal.)

use crate::types::{Boot, Nanos, NodeId, NodeSet};

/// The detector's settings.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct DetectorConfig {
    /// How often every node beats, and how often at least this node's control loop turns.
    pub beat: Nanos,
    /// The floor of the limit: less silence than this never makes a suspect.
    pub suspect_after: Nanos,
    /// The bound of the limit, however large the jitter.
    pub ceiling: Nanos,
}

/// What a peer says about itself in a beat.
#[derive(Copy, Clone, Debug)]
pub struct BeatHeard<'a> {
    /// Grows by one with each beat of a boot.
    pub sequence: u64,
    /// When it was sent, on the sender's monotonic clock.
    pub sent: Nanos,
    /// For each of the sender's workers, in ms, how long its current turn has taken; 0 when parked.
    pub stalls: &'a [u16],
}

/// How often what happened.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct DetectorCounters {
    /// Nodes suspected, for whatever reason.
    pub suspicions: u64,
    /// Of those, by an ICMP refusal.
    pub refusals: u64,
    /// Suspects heard again in the same life.
    pub recovered: u64,
    /// Of those, the ones whose beat counter shows that they had never stopped: the suspicion was wrong.
    pub wrong: u64,
    /// Workers suspected while their node was not.
    pub stalled_workers: u64,
}

/// A beat that was heard.
#[derive(Copy, Clone, Debug)]
struct LastBeat {
    sequence: u64,
    sent: Nanos,
    /// On the awake clock.
    heard: Nanos,
}

#[derive(Clone, Debug)]
struct Peer {
    node: NodeId,
    /// None until it was heard.
    boot: Option<Boot>,
    /// The last sign of life, on the awake clock.
    heard: Nanos,
    beat: Option<LastBeat>,
    /// By how much beats are late, smoothed.
    jitter: Nanos,
    suspected: bool,
    /// The turn in which it refused a datagram, if that is why it is suspected.
    refused: Option<Nanos>,
    /// The last beat before a suspicion whose rightness is not known yet.
    unjudged: Option<LastBeat>,
    /// The shards whose workers are stuck, by its last beat.
    stuck: Vec<u16>,
}

impl Peer {
    fn new(node: NodeId) -> Peer {
        Peer {
            node,
            boot: None,
            heard: Nanos::ZERO,
            beat: None,
            jitter: Nanos::ZERO,
            suspected: true,
            refused: None,
            unjudged: None,
            stuck: Vec::new(),
        }
    }

    /// How much silence makes this peer a suspect.
    fn limit(&self, config: &DetectorConfig) -> Nanos {
        let adaptive = config.beat + Nanos(self.jitter.0.saturating_mul(4));
        adaptive.max(config.suspect_after).min(config.ceiling.max(config.suspect_after))
    }
}

/// A clock that leaves out the time by which this loop came late: see the module's third rule.
#[derive(Copy, Clone, Debug, Default)]
struct AwakeClock {
    turn: Option<Nanos>,
    awake: Nanos,
}

impl AwakeClock {
    /// Reads it in the turn of time `now`; a turn is late when it comes more than `pause` after the last.
    fn read(&mut self, now: Nanos, pause: Nanos) -> Nanos {
        let elapsed = now.since(self.turn.unwrap_or(now));
        self.awake = self.awake + elapsed.min(pause);
        self.turn = Some(self.turn.unwrap_or(now).max(now));
        self.awake
    }
}

/// Watches the peers of one node. All times are monotonic; all calls of one turn of the loop pass the same `now`.
#[derive(Clone, Debug)]
pub struct Detector {
    config: DetectorConfig,
    clock: AwakeClock,
    peers: Vec<Peer>,
    counters: DetectorCounters,
    version: u64,
}

impl Detector {
    /// A detector for `peers`. None of them has been heard, so all are suspects (which counts as no suspicion).
    pub fn new(config: DetectorConfig, peers: impl IntoIterator<Item = NodeId>) -> Detector {
        let peers = peers.into_iter().map(Peer::new).collect();
        Detector {
            config,
            clock: AwakeClock::default(),
            peers,
            counters: DetectorCounters::default(),
            version: 0,
        }
    }

    /// A beat came in. One that is no newer than the last says nothing: it is late, not alive.
    pub fn on_beat(&mut self, now: Nanos, node: NodeId, boot: Boot, beat: BeatHeard<'_>) {
        let awake = self.clock.read(now, self.config.beat);
        let Some(at) = self.position(node) else { return };
        let last = self.peers[at].beat.filter(|_| self.peers[at].boot == Some(boot));
        if last.is_some_and(|last| last.sequence >= beat.sequence) {
            return;
        }
        self.on_life(now, node, boot);
        let peer = &mut self.peers[at];
        if peer.boot != Some(boot) {
            return;
        }
        if let Some(last) = last {
            let late = awake.since(last.heard).since(self.config.beat);
            peer.jitter = smoothed(peer.jitter, late);
        }
        peer.beat = Some(LastBeat { sequence: beat.sequence, sent: beat.sent, heard: awake });
        if let Some(before) = peer.unjudged.take_if(|_| !peer.suspected) {
            let beats = beat.sequence.saturating_sub(before.sequence);
            let at_most = Nanos(self.config.beat.0.saturating_mul(2).saturating_mul(beats));
            self.counters.wrong += u64::from(beat.sent.since(before.sent) <= at_most);
        }
        self.note_stalls(at, beat.stalls);
    }

    fn note_stalls(&mut self, at: usize, stalls: &[u16]) {
        let limit = self.peers[at].limit(&self.config);
        let shards = (0..).zip(stalls);
        let stuck = shards.filter(|(_, ms)| **ms > 0 && Nanos::from_millis((**ms).into()) >= limit);
        let stuck: Vec<u16> = stuck.map(|(shard, _)| shard).collect();
        let before = std::mem::replace(&mut self.peers[at].stuck, stuck);
        let stuck = &self.peers[at].stuck;
        self.version += u64::from(before != *stuck);
        self.counters.stalled_workers += stuck.iter().filter(|shard| !before.contains(shard)).count() as u64;
    }

    /// Any other datagram of this life of the node came in.
    pub fn on_life(&mut self, now: Nanos, node: NodeId, boot: Boot) {
        let awake = self.clock.read(now, self.config.beat);
        let Some(at) = self.position(node) else { return };
        match self.peers[at].boot {
            Some(known) if known > boot => return,
            Some(known) if known == boot => {}
            _ => {
                // A new life: nothing that was known of the last one holds.
                self.peers[at] = Peer { boot: Some(boot), suspected: false, ..Peer::new(node) };
                self.version += 1;
            }
        }
        let peer = &mut self.peers[at];
        if peer.refused.is_some_and(|turn| turn >= now) {
            return;
        }
        peer.heard = awake;
        peer.refused = None;
        if peer.suspected {
            peer.suspected = false;
            self.counters.recovered += 1;
            self.version += 1;
        }
    }

    /// The kernel reported that the node's port is unreachable. True: probe it, the suspicion is new.
    pub fn on_refused(&mut self, now: Nanos, node: NodeId) -> bool {
        self.clock.read(now, self.config.beat);
        let Some(at) = self.position(node) else { return false };
        if self.peers[at].suspected {
            return false;
        }
        self.counters.refusals += 1;
        self.suspect(at);
        self.peers[at].refused = Some(now);
        true
    }

    /// Suspects whoever has been silent for too long. Call it once a turn, after all that arrived was handed over.
    pub fn on_turn(&mut self, now: Nanos) {
        let awake = self.clock.read(now, self.config.beat);
        for at in 0..self.peers.len() {
            let peer = &self.peers[at];
            if !peer.suspected && awake.since(peer.heard) >= peer.limit(&self.config) {
                self.suspect(at);
            }
        }
    }

    /// The node counts for nothing from now on, until it is heard again: as if it had never been.
    pub fn forget(&mut self, node: NodeId) {
        if let Some(at) = self.position(node) {
            self.version += u64::from(!self.peers[at].suspected);
            self.peers[at] = Peer::new(node);
        }
    }

    /// When [`on_turn`](Detector::on_turn) could find a new suspect, if nobody is heard until then.
    pub fn next_timeout(&self) -> Option<Nanos> {
        let trusted = self.peers.iter().filter(|peer| !peer.suspected);
        let silent = trusted.map(|peer| peer.heard + peer.limit(&self.config)).min()?;
        Some(self.clock.turn? + silent.since(self.clock.awake))
    }

    /// The peers that should be master of no slot of `shard`: silent, refusing or never heard nodes, and those whose
    /// worker for this shard is stuck.
    pub fn suspects(&self, shard: u16) -> NodeSet {
        let mut suspects = NodeSet::EMPTY;
        let suspected = self.peers.iter().filter(|peer| peer.suspected || peer.stuck.contains(&shard));
        suspected.for_each(|peer| suspects.insert(peer.node));
        suspects
    }

    /// Whether the node as a whole is suspected; true for strangers.
    pub fn suspected(&self, node: NodeId) -> bool {
        self.position(node).is_none_or(|at| self.peers[at].suspected)
    }

    /// How much silence makes `node` a suspect now.
    pub fn limit(&self, node: NodeId) -> Option<Nanos> {
        self.position(node).map(|at| self.peers[at].limit(&self.config))
    }

    /// Grows whenever the answer of [`suspects`](Detector::suspects) may have changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What happened so far.
    pub fn counters(&self) -> DetectorCounters {
        self.counters
    }

    fn suspect(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        peer.suspected = true;
        peer.unjudged = peer.unjudged.or(peer.beat);
        self.counters.suspicions += 1;
        self.version += 1;
    }

    fn position(&self, node: NodeId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.node == node)
    }
}

/// `jitter` after a beat that was `late`: a quarter of the way up, or a 256th of the way down.
fn smoothed(jitter: Nanos, late: Nanos) -> Nanos {
    if late > jitter {
        jitter + Nanos(late.since(jitter).0 / 4)
    } else {
        jitter - Nanos(jitter.since(late).0.div_ceil(256))
    }
}

/// How long each worker of this node has been busy with one turn, for its own beats. A worker publishes a counter that
/// grows with each turn, and whether it is parked (asleep until something arrives).
#[derive(Clone, Debug)]
pub struct Workers {
    pause: Nanos,
    clock: AwakeClock,
    /// For each worker the turn last seen, and since when on the awake clock; None while parked.
    busy: Vec<Option<(u64, Nanos)>>,
}

impl Workers {
    /// `count` workers, watched by a loop that turns at least every `pause`.
    pub fn new(count: u16, pause: Nanos) -> Workers {
        Workers { pause, clock: AwakeClock::default(), busy: vec![None; count.into()] }
    }

    /// What the worker of `shard` has published.
    pub fn on_progress(&mut self, now: Nanos, shard: u16, turn: u64, parked: bool) {
        let awake = self.clock.read(now, self.pause);
        let Some(busy) = self.busy.get_mut(usize::from(shard)) else { return };
        match busy {
            Some((seen, _)) if *seen == turn && !parked => {}
            _ => *busy = (!parked).then_some((turn, awake)),
        }
    }

    /// For each worker, in ms, how long its current turn has been seen to take; 0 when parked.
    pub fn stalls(&mut self, now: Nanos) -> impl Iterator<Item = u16> {
        let awake = self.clock.read(now, self.pause);
        let stall = move |since: Nanos| awake.since(since).0 / 1_000_000;
        self.busy
            .iter()
            .map(move |busy| busy.map_or(0, |(_, since)| u16::try_from(stall(since)).unwrap_or(u16::MAX)))
    }
}

#[cfg(test)]
mod tests;
