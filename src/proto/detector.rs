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

use super::awake::AwakeClock;
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

    /// Any other datagram of this life of the node came in: now, or in an earlier turn of another loop, whose time
    /// is then passed.
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
        let ago = self.clock.turn().unwrap_or(now).since(now);
        peer.heard = peer.heard.max(awake.since(ago));
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
        Some(self.clock.turn()? + silent.since(self.clock.awake()))
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

    /// For how long nothing of `node` was heard, as far as this loop kept its own appointments; `None`: it never was, in
    /// a life that counts.
    pub fn silence(&self, node: NodeId) -> Option<Nanos> {
        let peer = &self.peers[self.position(node)?];
        peer.boot.map(|_| self.clock.awake().since(peer.heard))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{BeatHeard, Detector, DetectorConfig};
    use crate::types::{Boot, Nanos, NodeId, NodeSet};

    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);
    const BOOT: Boot = Boot(7);

    fn us(micros: u64) -> Nanos {
        Nanos::from_micros(1_000_000 + micros)
    }

    /// A detector at 1 ms beats, 3 ms floor, 12 ms ceiling, its loop turning every 250 us.
    struct Rig {
        detector: Detector,
        now: u64,
        sequence: u64,
    }

    impl Rig {
        /// Both peers were heard at time 0.
        fn new() -> Rig {
            let config = DetectorConfig {
                beat: Nanos::from_millis(1),
                suspect_after: Nanos::from_millis(3),
                ceiling: Nanos::from_millis(12),
            };
            let mut rig = Rig { detector: Detector::new(config, [A, B]), now: 0, sequence: 0 };
            rig.beat(A);
            rig.beat(B);
            rig
        }

        /// A beat of `node`, sent a moment ago.
        fn beat(&mut self, node: NodeId) {
            self.sequence += 1;
            self.beat_as(node, self.sequence, self.now, &[]);
        }

        fn beat_as(&mut self, node: NodeId, sequence: u64, sent: u64, stalls: &[u16]) {
            self.detector.on_beat(us(self.now), node, BOOT, BeatHeard { sequence, sent: us(sent), stalls });
        }

        /// Turns punctually until `micros`.
        fn turn_until(&mut self, micros: u64) {
            while self.now < micros {
                self.now = (self.now + 250).min(micros);
                self.detector.on_turn(us(self.now));
            }
        }

        fn suspects(&self) -> Vec<u16> {
            self.detector.suspects(0).iter().map(|node| node.0).collect()
        }
    }

    #[test]
    fn three_ms_of_silence_make_a_suspect_and_a_datagram_clears_it() {
        let mut rig = Rig::new();
        rig.turn_until(2_999);
        assert_eq!(rig.suspects(), Vec::<u16>::new(), "not a moment before");
        assert_eq!(rig.detector.next_timeout(), Some(us(3_000)));
        rig.detector.on_life(us(rig.now), B, BOOT);
        rig.turn_until(3_000);
        assert_eq!(rig.suspects(), [2], "data and acks kept the other trusted");
        let version = rig.detector.version();
        rig.detector.on_life(us(3_100), A, BOOT);
        assert_eq!(rig.suspects(), Vec::<u16>::new());
        assert!(rig.detector.version() > version);
        let counters = rig.detector.counters();
        assert_eq!((counters.suspicions, counters.recovered), (1, 1));
    }

    #[test]
    fn nobody_heard_is_trusted_and_that_counts_as_no_suspicion() {
        let config = Rig::new().detector.config;
        let mut detector = Detector::new(config, [A]);
        detector.on_turn(us(50_000));
        assert!(detector.suspected(A) && detector.suspects(0).contains(A));
        assert_eq!(detector.counters().suspicions, 0);
        assert_eq!(detector.next_timeout(), None);
        assert!(!detector.on_refused(us(50_001), A));
        detector.on_life(us(50_002), A, BOOT);
        assert!(!detector.suspected(A));
        detector.on_life(us(50_003), B, BOOT);
        assert!(detector.suspected(B), "a stranger stays one");
    }

    #[test]
    fn the_limit_follows_jitter_between_floor_and_ceiling() {
        let mut rig = Rig::new();
        let limit = |rig: &Rig| rig.detector.limit(A).map_or(0, Nanos::as_micros);
        for ms in 1..200 {
            rig.turn_until(ms * 1_000);
            rig.beat(A);
        }
        assert_eq!(limit(&rig), 3_000, "punctual beats leave it at the setting");
        for _ in 0..10 {
            rig.turn_until(rig.now + 2_900);
            rig.beat(A);
        }
        assert!((5_000..10_000).contains(&limit(&rig)), "late beats raise it: {}", limit(&rig));
        assert_eq!(rig.detector.counters().suspicions, 1, "only node B, which is silent");
        for _ in 0..20 {
            rig.turn_until(rig.now + 40_000);
            rig.beat(A);
        }
        assert_eq!(limit(&rig), 12_000, "but not past the ceiling");
        for _ in 0..2_000 {
            rig.turn_until(rig.now + 1_000);
            rig.beat(A);
        }
        assert_eq!(limit(&rig), 3_000, "and calm brings it back");
    }

    #[test]
    fn beats_that_arrive_in_a_bunch_do_not_look_like_jitter() {
        let mut rig = Rig::new();
        for ms in 1..100 {
            rig.turn_until(ms * 1_000);
            if ms % 2 == 0 {
                rig.beat(A);
                rig.beat(A);
            }
        }
        let limit = rig.detector.limit(A).map_or(0, Nanos::as_micros);
        assert!(limit <= 5_000, "gaps are 0 or 2 ms, so 1 ms late: {limit}");
    }

    #[test]
    fn a_loop_that_was_late_suspects_nobody_for_it() {
        let mut rig = Rig::new();
        rig.turn_until(1_000);
        rig.now = 500_000;
        rig.detector.on_turn(us(rig.now));
        assert_eq!(
            rig.suspects(),
            Vec::<u16>::new(),
            "it slept for half a second, it does not know what it missed"
        );
        assert_eq!(rig.detector.next_timeout(), Some(us(501_000)), "1 ms before, 1 of the pause, 1 more");
        rig.turn_until(501_000);
        assert_eq!(rig.suspects(), [2, 3]);
    }

    #[test]
    fn a_refusal_suspects_at_once_and_asks_for_one_probe() {
        let mut rig = Rig::new();
        rig.turn_until(500);
        assert!(rig.detector.on_refused(us(500), A));
        assert_eq!(rig.suspects(), [2]);
        assert!(!rig.detector.on_refused(us(510), A), "the probe's own refusal asks for no other");
        rig.detector.on_life(us(500), A, BOOT);
        assert_eq!(rig.suspects(), [2], "what is read in the same turn was sent before");
        rig.detector.on_life(us(600), A, BOOT);
        assert_eq!(rig.suspects(), Vec::<u16>::new(), "a forged refusal holds until the next datagram");
        let counters = rig.detector.counters();
        assert_eq!((counters.suspicions, counters.refusals, counters.recovered), (1, 1, 1));
    }

    #[test]
    fn a_suspicion_was_wrong_when_the_beat_counter_never_stopped() {
        let mut rig = Rig::new();
        rig.turn_until(5_000);
        assert_eq!(rig.suspects(), [2, 3]);
        // A's beats were sent every ms and lost on the way; B had been frozen for 5 ms.
        rig.beat_as(A, 1 + 5, 5_000, &[]);
        rig.beat_as(B, 2 + 1, 5_000, &[]);
        assert_eq!(rig.suspects(), Vec::<u16>::new());
        let counters = rig.detector.counters();
        assert_eq!((counters.suspicions, counters.recovered, counters.wrong), (2, 2, 1));
    }

    #[test]
    fn the_beat_after_other_data_still_tells_whether_it_was_wrong() {
        let mut rig = Rig::new();
        rig.turn_until(4_000);
        rig.detector.on_life(us(4_100), A, BOOT);
        assert_eq!((rig.detector.counters().recovered, rig.detector.counters().wrong), (1, 0));
        rig.now = 4_200;
        rig.beat_as(A, 5, 4_200, &[]);
        assert_eq!(rig.detector.counters().wrong, 1);
    }

    #[test]
    fn a_new_life_starts_afresh_and_an_old_one_is_ignored() {
        let mut rig = Rig::new();
        rig.turn_until(5_000);
        rig.detector.on_life(us(5_100), A, Boot(BOOT.0 - 1));
        assert!(rig.detector.suspected(A), "a straggler of an earlier life");
        let beat = BeatHeard { sequence: 1, sent: us(0), stalls: &[] };
        rig.detector.on_beat(us(5_200), A, Boot(BOOT.0 + 1), beat);
        assert!(!rig.detector.suspected(A), "its counter starts again at 1");
        assert_eq!((rig.detector.counters().recovered, rig.detector.counters().wrong), (0, 0));
        rig.detector.on_life(us(5_300), A, BOOT);
        rig.turn_until(8_250);
        assert!(rig.detector.suspected(A), "the old life keeps nobody alive");
    }

    #[test]
    fn a_beat_overtaken_by_a_later_one_is_no_sign_of_life() {
        let mut rig = Rig::new();
        rig.turn_until(2_000);
        rig.beat_as(A, 1, 0, &[]);
        rig.turn_until(3_000);
        assert!(rig.detector.suspected(A));
    }

    #[test]
    fn a_stuck_worker_is_suspected_for_its_shard_alone() {
        let mut rig = Rig::new();
        rig.turn_until(1_000);
        rig.beat_as(A, 10, 1_000, &[2, 0]);
        assert_eq!(rig.detector.suspects(0), NodeSet::EMPTY, "2 ms are no stall yet");
        rig.beat_as(A, 11, 2_000, &[3, 0]);
        assert!(rig.detector.suspects(0).contains(A));
        assert_eq!(rig.detector.suspects(1), NodeSet::EMPTY);
        assert!(!rig.detector.suspected(A));
        rig.beat_as(A, 12, 3_000, &[0, 0]);
        assert_eq!(rig.detector.suspects(0), NodeSet::EMPTY);
        assert_eq!(rig.detector.counters().stalled_workers, 1);
    }

    #[test]
    fn a_forgotten_node_is_a_suspect_until_heard() {
        let mut rig = Rig::new();
        rig.detector.forget(A);
        assert_eq!((rig.suspects(), rig.detector.counters().suspicions), (vec![2], 0));
        rig.detector.on_life(us(10), A, BOOT);
        assert_eq!(rig.suspects(), Vec::<u16>::new());
    }

    proptest! {
        #[test]
        fn nobody_is_suspected_before_the_floor_nor_trusted_past_the_ceiling(
            steps in proptest::collection::vec((0u64..3_000, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let mut rig = Rig::new();
            let mut last = 0;
            for (pause, beat, data) in steps {
                rig.turn_until(rig.now + pause);
                let silence = rig.now - last;
                assert!(silence >= 3_000 || !rig.detector.suspected(A));
                assert!(silence < 12_000 || rig.detector.suspected(A));
                if beat {
                    rig.beat(A);
                    last = rig.now;
                } else if data {
                    rig.detector.on_life(us(rig.now), A, BOOT);
                    last = rig.now;
                }
            }
        }
    }
}
