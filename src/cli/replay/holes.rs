//! Counts of a call that no answer has shown: packets that the service executed and whose answers are missing.
//!
//! The service gives every packet of a call that it executes the next count. So a count that is never seen belongs
//! to a packet that was accepted; an unanswered packet for which no count is missing was never accepted; and a
//! missing count without an unanswered packet means that the counting jumped: the call's state is not what it was.

use hashbrown::HashMap;

use super::ledger::Sent;
use crate::types::Nanos;

/// Packets of a call may be under way for this long beside one another.
const BESIDE: Nanos = Nanos::from_secs(1);

/// Counts `from..=to` of one call.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Hole {
    call: u64,
    from: u64,
    to: u64,
    /// When the answer with the count before it came.
    since: Nanos,
    /// When an answer with a higher count showed it.
    noted: Nanos,
}

/// The missing counts of all lanes.
#[derive(Default)]
pub(crate) struct Holes {
    lanes: HashMap<u32, Vec<Hole>>,
}

impl Holes {
    /// Counts `after + 1..before` of a call were passed over, between an answer at `since` and one at `now`.
    pub(crate) fn note(&mut self, lane: u32, call: u64, after: u64, before: u64, since: Nanos, now: Nanos) {
        if before > after.saturating_add(1) {
            let hole = Hole { call, from: after + 1, to: before - 1, since, noted: now };
            self.lanes.entry(lane).or_default().push(hole);
        }
    }

    /// An answer with one of the missing counts came after all.
    pub(crate) fn fill(&mut self, lane: u32, call: u64, count: u64) {
        let Some(holes) = self.lanes.get_mut(&lane) else { return };
        let within = |hole: &Hole| hole.call == call && (hole.from..=hole.to).contains(&count);
        if let Some(at) = holes.iter().position(within) {
            let hole = holes.swap_remove(at);
            holes.extend((hole.from < count).then(|| Hole { to: count - 1, ..hole }));
            holes.extend((hole.to > count).then(|| Hole { from: count + 1, ..hole }));
        }
        self.drop_if_empty(lane);
    }

    /// The call counts anew.
    pub(crate) fn clear(&mut self, lane: u32, call: u64) {
        if let Some(holes) = self.lanes.get_mut(&lane) {
            holes.retain(|hole| hole.call != call);
            self.drop_if_empty(lane);
        }
    }

    /// Takes a missing count that a packet without a readable answer may have got; whether there was one.
    pub(crate) fn explain(&mut self, sent: &Sent) -> bool {
        let Some(holes) = self.lanes.get_mut(&sent.lane) else { return false };
        let fits = |hole: &Hole| sent.at <= hole.noted && sent.at + BESIDE >= hole.since;
        let candidates = (0..holes.len()).filter(|at| fits(&holes[*at]));
        let Some(at) = candidates.min_by_key(|at| holes[*at].noted) else { return false };
        if holes[at].from == holes[at].to {
            holes.swap_remove(at);
            self.drop_if_empty(sent.lane);
        } else {
            holes[at].from += 1;
        }
        true
    }

    /// Forgets what was noted before `time`, when every packet sent until then has been explained or answered;
    /// returns how many jumps nothing explains.
    pub(crate) fn forget(&mut self, time: Nanos) -> u64 {
        let mut jumps = 0;
        self.lanes.retain(|_, holes| {
            let before = holes.len();
            holes.retain(|hole| hole.noted >= time);
            jumps += (before - holes.len()) as u64;
            !holes.is_empty()
        });
        jumps
    }

    fn drop_if_empty(&mut self, lane: u32) {
        if self.lanes.get(&lane).is_some_and(Vec::is_empty) {
            self.lanes.remove(&lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BESIDE, Holes, Sent};
    use crate::types::Nanos;

    fn sent(lane: u32, at: Nanos) -> Sent {
        Sent { hash: 0, intended: at, at, lane, flow: 0, order: 1, kind: 0 }
    }

    const EARLY: Nanos = Nanos::from_secs(5);
    const LATE: Nanos = Nanos::from_secs(6);

    #[test]
    fn each_missing_count_explains_one_packet() {
        let mut holes = Holes::default();
        holes.note(3, 77, 4, 7, EARLY, LATE);
        assert!(!holes.explain(&sent(2, EARLY)), "another lane");
        assert!(!holes.explain(&sent(3, LATE + Nanos(1))), "sent when the hole was there already");
        assert!(
            !holes.explain(&sent(3, EARLY.since(BESIDE).since(Nanos(1)))),
            "long before the count before it"
        );
        assert!(holes.explain(&sent(3, EARLY)) && holes.explain(&sent(3, EARLY)));
        assert!(!holes.explain(&sent(3, EARLY)));
        assert_eq!(holes.forget(Nanos::MAX), 0);
    }

    #[test]
    fn an_answer_that_comes_late_fills_its_hole_wherever_it_lies_in_it() {
        let mut holes = Holes::default();
        holes.note(3, 77, 1, 6, EARLY, LATE);
        for count in [3, 2, 5] {
            holes.fill(3, 78, count);
            holes.fill(3, 77, count);
        }
        assert!(holes.explain(&sent(3, EARLY)) && !holes.explain(&sent(3, EARLY)), "count 4 was left");
        holes.note(3, 77, 6, 7, EARLY, LATE);
        assert!(holes.lanes.is_empty(), "neighbours");
    }

    #[test]
    fn what_nothing_explains_is_a_jump_whatever_its_size() {
        let mut holes = Holes::default();
        holes.note(3, 77, 4, u64::MAX, EARLY, EARLY);
        holes.note(3, 77, 4, 9, LATE, LATE);
        holes.note(4, 77, 4, 9, EARLY, EARLY);
        holes.clear(4, 77);
        assert_eq!(holes.forget(LATE), 1);
        assert_eq!(holes.forget(Nanos::MAX), 1);
        assert!(holes.lanes.is_empty());
    }
}
