//! The account of runs in which the service itself dies, against a made-up service whose faults are known.

use super::{Counts, Expect, Sent, Shape, Tally, key};
use crate::types::{Nanos, NodeId, Position};
use crate::wire::echo::EchoTrailer;
use proptest::prelude::*;
use std::collections::BTreeSet;

const CALLS: u32 = 3;
const DEATH: Nanos = Nanos::from_millis(1_000);
const BACK: Nanos = Nanos::from_millis(1_020);
/// From one datagram to the next, and how long an answer takes.
const STEP: Nanos = Nanos::from_millis(1);
const TAKES: Nanos = Nanos::from_micros(300);

/// A client and a service with one count a call.
struct Run {
    tally: Tally,
    counts: [u64; CALLS as usize],
    sent: u32,
}

impl Run {
    fn new() -> Run {
        let calls = CALLS as usize;
        let shape = Shape { seats: calls, lanes: calls, flows: calls, kinds: 1 };
        Run { tally: Tally::new(shape, Expect::Trailer), counts: [0; CALLS as usize], sent: 0 }
    }

    /// The next datagram of the next call; returns its call, its bytes and when it was sent.
    fn send(&mut self) -> (u32, Vec<u8>, Nanos) {
        let (call, order) = (self.sent % CALLS, self.sent / CALLS + 1);
        let at = Nanos(STEP.0 * u64::from(self.sent));
        let bytes = self.sent.to_le_bytes().to_vec();
        self.sent += 1;
        let hash = key(&bytes, call);
        self.tally.on_sent(Sent { hash, intended: at, at, lane: call, flow: call, order, kind: 0 });
        (call, bytes, at)
    }

    /// Executes a datagram; returns its answer, stamped by `node`.
    fn execute(&mut self, call: u32, bytes: &[u8], node: u16) -> Vec<u8> {
        let count = &mut self.counts[call as usize];
        *count += 1;
        stamped(bytes, call, *count, node)
    }

    fn answer(&mut self, call: u32, bytes: &[u8], at: Nanos) {
        self.tally.on_reply(call, bytes, at + TAKES);
    }

    /// Sends and answers until `time`.
    fn serve_until(&mut self, time: Nanos) {
        while STEP.0 * u64::from(self.sent) < time.0 {
            let (call, bytes, at) = self.send();
            let reply = self.execute(call, &bytes, 1);
            self.answer(call, &reply, at);
        }
    }

    fn finish(mut self) -> Counts {
        self.tally.finish();
        let counts = self.tally.counts();
        assert_eq!(counts.sent, counts.replied + counts.lost + counts.unaccepted);
        counts
    }
}

fn stamped(bytes: &[u8], call: u32, count: u64, node: u16) -> Vec<u8> {
    let (call, position) = (u64::from(call) + 70, Position(count + 100));
    let trailer = EchoTrailer { slot: 5, call, count, position, node: NodeId(node) };
    [bytes, &trailer.encode()].concat()
}

/// Unaccepted, lost, broken.
fn fates(counts: &Counts) -> (u64, u64, u64) {
    (counts.unaccepted, counts.lost, counts.broken)
}

#[test]
fn what_the_service_counted_is_lost_and_what_it_never_saw_is_not() {
    for (counted, wanted) in [(0, (20, 0, 0)), (3, (17, 3, 0))] {
        let mut run = Run::new();
        run.serve_until(DEATH);
        run.tally.mark_outage("owner", NodeId(1), DEATH, BACK);
        for number in 0..20 {
            let (call, bytes, _) = run.send();
            if number < counted {
                run.execute(call, &bytes, 1);
            }
        }
        run.serve_until(Nanos::from_millis(1_500));
        let window = &run.tally.windows()[0];
        // 20 datagrams got none, and the one that ended the silence took its time.
        assert_eq!(window.silence, Nanos(21 * STEP.0), "{window:?}");
        assert_eq!(window.latest, TAKES, "of what was answered: {window:?}");
        assert_eq!(fates(&run.finish()), wanted);
    }
}

#[test]
fn nothing_is_excused_that_was_not_sent_while_the_service_was_away() {
    for (at, wanted) in [(400, (0, 1, 0)), (1_005, (1, 0, 0)), (1_300, (0, 1, 0))] {
        let mut run = Run::new();
        run.serve_until(DEATH.min(Nanos::from_millis(at)));
        if at < 1_000 {
            run.send();
            run.serve_until(DEATH);
        }
        run.tally.mark_outage("owner", NodeId(1), DEATH, BACK);
        run.serve_until(Nanos::from_millis(at));
        if at > 1_000 {
            run.send();
        }
        run.serve_until(Nanos::from_millis(2_000));
        assert_eq!(fates(&run.finish()), wanted, "sent at {at} ms");
    }
}

#[test]
fn a_count_that_jumps_or_restarts_is_broken_also_in_a_failover() {
    // Of the 20 that are lost on the wire call 0 has six, which may have got six of the counts it left out.
    for (jump, wanted) in [(2, (20, 0, 0)), (20, (14, 6, 1)), (u64::MAX, (20, 0, 1))] {
        let mut run = Run::new();
        run.serve_until(DEATH);
        run.tally.mark_outage("owner", NodeId(1), DEATH, BACK);
        (0..20).for_each(|_| drop(run.send()));
        run.counts[0] = match jump {
            2 => run.counts[0],
            u64::MAX => 0,
            jump => run.counts[0] + jump,
        };
        run.serve_until(Nanos::from_millis(1_500));
        assert_eq!(fates(&run.finish()), wanted, "{jump}");
    }
}

#[test]
fn only_copies_of_a_last_moment_with_equal_bytes_are_allowed() {
    // (sent at, other bytes, comes again after the failover) to (allowed, not allowed).
    let cases = [(998, false, true, (1, 0)), (998, true, true, (0, 1)), (500, false, true, (0, 1))];
    for (at, other, after, wanted) in cases.into_iter().chain([(1_500, false, false, (0, 1))]) {
        let mut run = Run::new();
        let mut kept = (0, Vec::new());
        let mut marked = false;
        while run.sent < 2_000 {
            let (call, bytes, sent) = run.send();
            let dead = (DEATH..BACK).contains(&sent);
            if dead && !marked {
                marked = true;
                run.tally.mark_outage("owner", NodeId(1), DEATH, BACK);
            }
            if sent == BACK && after || sent == Nanos::from_millis(1_600) && !after {
                run.answer(kept.0, &kept.1.clone(), sent);
            }
            if !dead {
                let reply = run.execute(call, &bytes, 1);
                run.answer(call, &reply, sent);
            }
            if sent == Nanos::from_millis(at) {
                // Of another node; and perhaps of another place in the log.
                let count = run.counts[call as usize];
                let mut copy = stamped(&bytes, call, count, 2);
                let place = copy.len() - 5;
                copy[place] ^= u8::from(other);
                kept = (call, copy);
            }
        }
        let counts = run.finish();
        assert_eq!((counts.doubled_allowed, counts.duplicated), wanted, "{at} {other}");
        assert_eq!(counts.corrupted, u64::from(other), "{at} {other}");
    }
}

#[test]
fn without_marks_the_worst_silences_are_taken_for_failovers() {
    for (expected, wanted) in [(0, (0, 40, 0)), (1, (30, 10, 0)), (2, (40, 0, 0))] {
        let mut run = Run::new();
        run.tally.expect_failovers(expected);
        for (until, silent) in [(1_000, 10), (2_000, 30), (3_000, 0)] {
            run.serve_until(Nanos::from_millis(until));
            (0..silent).for_each(|_| drop(run.send()));
            run.tally.on_tick(Nanos::from_millis(until));
        }
        run.tally.finish();
        assert_eq!(run.tally.windows().len(), expected);
        assert_eq!(fates(&run.finish()), wanted, "{expected} expected");
    }
}

proptest! {
    /// Whatever the service does to each datagram around its death, the account is exact.
    #[test]
    fn the_account_is_exact(
        fate in proptest::collection::vec(0..3_u8, 20),
        copies in proptest::collection::btree_set(980..1_000_u64, 0..5),
        late in 0..10_u64,
    ) {
        let mut run = Run::new();
        let (mut again, mut lost, mut unaccepted) = (Vec::new(), 0, 0);
        let copies: BTreeSet<u64> = copies;
        while run.sent < 1_000 {
            let (call, bytes, at) = run.send();
            let reply = run.execute(call, &bytes, 1);
            run.answer(call, &reply, at);
            if copies.contains(&(at.0 / STEP.0)) {
                again.push((call, reply));
            }
        }
        run.tally.mark_outage("owner", NodeId(1), DEATH, BACK);
        // 0: never arrived; 1: executed, and its answer comes when the service is back; 2: executed and not answered.
        let mut held = Vec::new();
        for fate in fate {
            let (call, bytes, _) = run.send();
            match fate {
                0 => unaccepted += 1,
                1 => held.push((call, run.execute(call, &bytes, 2))),
                _ => {
                    run.execute(call, &bytes, 2);
                    lost += 1;
                }
            }
        }
        let back = BACK + Nanos::from_millis(late);
        for (call, reply) in again.iter().chain(&held) {
            run.tally.on_reply(*call, reply, back);
        }
        run.serve_until(Nanos::from_millis(1_400));
        let answers = u64::from(run.sent) - lost - unaccepted;
        let counts = run.finish();
        prop_assert_eq!(fates(&counts), (unaccepted, lost, 0));
        prop_assert_eq!((counts.replied, counts.doubled_allowed), (answers, copies.len() as u64));
        prop_assert_eq!((counts.duplicated, counts.reordered, counts.corrupted), (0, 0, 0));
    }
}
