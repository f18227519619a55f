//! What the detector must and must not suspect, turn by turn.

use proptest::prelude::{any, proptest};

use super::{BeatHeard, Detector, DetectorConfig, Workers};
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
    assert!(rig.suspects().is_empty(), "not a moment before");
    assert_eq!(rig.detector.next_timeout(), Some(us(3_000)));
    rig.detector.on_life(us(rig.now), B, BOOT);
    rig.turn_until(3_000);
    assert_eq!(rig.suspects(), [2], "data and acks kept the other trusted");
    let version = rig.detector.version();
    rig.detector.on_life(us(3_100), A, BOOT);
    assert!(rig.suspects().is_empty());
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
    assert!(rig.suspects().is_empty(), "it slept for half a second, it does not know what it missed");
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
    assert!(rig.suspects().is_empty(), "a forged refusal holds until the next datagram");
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
    assert!(rig.suspects().is_empty());
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
    assert!(rig.suspects().is_empty());
}

#[test]
fn a_worker_stalls_while_it_is_busy_with_one_turn() {
    let mut workers = Workers::new(3, Nanos::from_millis(1));
    for ms in 0..=10 {
        let now = us(ms * 1_000);
        workers.on_progress(now, 0, ms, false);
        workers.on_progress(now, 1, 5, ms == 2);
        workers.on_progress(now, 2, 9, true);
    }
    assert_eq!(workers.stalls(us(10_000)).collect::<Vec<_>>(), [0, 7, 0]);
    // The watcher itself was stopped: at most its own pause counts.
    assert_eq!(workers.stalls(us(900_000)).collect::<Vec<_>>(), [1, 8, 0]);
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
