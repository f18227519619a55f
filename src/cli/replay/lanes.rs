//! Order and continuity of each call, from the counts that its answers carry.
//!
//! A *lane* is what the engine takes for one call: the datagrams of a clone that share a Call-ID, or an
//! SSRC, or a source address. Its count must have grown for a datagram that was sent when an answer had come.
//! Datagrams that are under way at the same time in different flows have no order among themselves: they may
//! come through different queues of the network and of the node. Those of one flow have: see `flows`.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::holes::Holes;
use super::ledger::Sent;
use crate::types::{Nanos, NodeId};
use crate::wire::echo::EchoTrailer;

/// What the count of an answer says.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Continuity {
    /// It fits.
    Fits,
    /// The datagram was executed out of its order.
    Reordered,
    /// The count was used before or restarted: the engine lost state of this call.
    Broken,
}

/// One lane: 48 bytes, so that millions fit.
#[derive(Copy, Clone, Default)]
struct Lane {
    /// The engine's hash of the call.
    call: u64,
    /// The highest count seen; 0 before the first answer.
    count: u64,
    /// Bit i: count - i was seen.
    seen: u64,
    /// When the answer with `count` came.
    answered: Nanos,
    /// The order of the datagram at which state was lost: answers to those before it say nothing any more.
    broken_at: u32,
    /// The highest order of an answered datagram.
    newest: u32,
    node: u16,
    /// Twice the number of the window in which it was noted whether this is a victim, plus 1 if it is.
    window: u16,
}

/// All lanes.
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    /// Calls that a lane had before its present one: their last answers may still come.
    elder: HashMap<(u32, u64), Lane>,
    ages: VecDeque<(Nanos, u32, u64)>,
    holes: Holes,
}

impl Lanes {
    pub(crate) fn new(count: usize) -> Lanes {
        Lanes {
            lanes: vec![Lane::default(); count],
            elder: HashMap::new(),
            ages: VecDeque::new(),
            holes: Holes::default(),
        }
    }

    /// Takes the answer to a datagram.
    pub(crate) fn on_reply(&mut self, sent: &Sent, trailer: &EchoTrailer, now: Nanos) -> Continuity {
        let lane = sent.lane;
        let Some(present) = self.lanes.get_mut(lane as usize) else { return Continuity::Broken };
        if present.count != 0 && present.call != trailer.call {
            if let Some(elder) = self.elder.get_mut(&(lane, trailer.call)) {
                return elder.step(sent, trailer, now, &mut self.holes);
            }
            // The lane's next call: keep the old one for the answers that are still on their way.
            self.elder.insert((lane, present.call), *present);
            self.ages.push_back((now, lane, present.call));
            (present.count, present.broken_at) = (0, 0);
        }
        present.node = trailer.node.0;
        present.step(sent, trailer, now, &mut self.holes)
    }

    /// Whether the service executed a datagram without a readable answer: a count of its call that no answer has
    /// shown is put down to it.
    pub(crate) fn explain(&mut self, sent: &Sent) -> bool {
        self.holes.explain(sent)
    }

    /// Forgets former calls that were replaced before `time`, and missing counts from before then, when all
    /// datagrams sent by that time have been explained or answered. Returns how often a call's count jumped: it
    /// left out more than there are datagrams.
    pub(crate) fn forget(&mut self, time: Nanos) -> u64 {
        while let Some((_, lane, call)) = self.ages.front().copied().filter(|(age, ..)| *age < time) {
            self.ages.pop_front();
            self.elder.remove(&(lane, call));
        }
        self.holes.forget(time)
    }

    /// The node that answered `lane` last, if any did.
    pub(crate) fn node(&self, lane: u32) -> Option<NodeId> {
        self.lanes.get(lane as usize).filter(|lane| lane.count != 0).map(|lane| NodeId(lane.node))
    }

    /// Whether `victim` was answering `lane` when window number `window` began: to be asked before the
    /// answer at hand is given to `on_reply`.
    pub(crate) fn is_victim(&mut self, lane: u32, window: u16, victim: NodeId) -> bool {
        let answering = self.node(lane) == Some(victim);
        let Some(lane) = self.lanes.get_mut(lane as usize) else { return false };
        if lane.window >> 1 != window & 0x7fff {
            lane.window = window << 1 | u16::from(answering);
        }
        lane.window & 1 == 1
    }

    /// How many lanes each node answered last, by node id.
    pub(crate) fn by_node(&self) -> Vec<u64> {
        let mut counts = vec![0; usize::from(NodeId::MAX) + 1];
        for lane in self.lanes.iter().filter(|lane| lane.count != 0) {
            if let Some(count) = counts.get_mut(usize::from(lane.node)) {
                *count += 1;
            }
        }
        counts
    }
}

impl Lane {
    fn step(&mut self, sent: &Sent, trailer: &EchoTrailer, now: Nanos, holes: &mut Holes) -> Continuity {
        let (count, order) = (trailer.count, sent.order);
        if self.count == 0 {
            // A call that counts more than was sent since the one before it was there before this run.
            if count <= order.saturating_sub(self.newest).into() {
                holes.note(sent.lane, trailer.call, 0, count, Nanos::ZERO, now);
            }
            self.newest = order;
            (self.call, self.count, self.seen, self.answered) = (trailer.call, count, 1, now);
            return Continuity::Fits;
        }
        self.newest = self.newest.max(order);
        if order < self.broken_at {
            return Continuity::Fits;
        }
        if count > self.count {
            holes.note(sent.lane, self.call, self.count, count, self.answered, now);
            let ahead = count - self.count;
            self.seen = if ahead < 64 { self.seen << ahead | 1 } else { 1 };
            (self.count, self.answered) = (count, now);
            return Continuity::Fits;
        }
        let behind = self.count - count;
        if behind >= 64 || self.seen >> behind & 1 == 1 {
            // A count is given once. From here on the new counting is taken as the right one, so that one
            // loss of state is reported once.
            holes.clear(sent.lane, self.call);
            (self.count, self.seen, self.answered, self.broken_at) = (count, 1, now, order);
            return Continuity::Broken;
        }
        self.seen |= 1 << behind;
        holes.fill(sent.lane, self.call, count);
        if sent.at <= self.answered { Continuity::Fits } else { Continuity::Reordered }
    }
}

#[cfg(test)]
mod tests {
    use super::{Continuity, Lanes, Sent};
    use crate::types::{Nanos, NodeId, Position};
    use crate::wire::echo::EchoTrailer;

    /// Answers as (order, call, count): datagram `order` is sent at `order` ms, and all are under way at once.
    fn run(replies: &[(u32, u64, u64)]) -> Vec<Continuity> {
        let replies: Vec<_> =
            replies.iter().map(|&(order, call, count)| (order, call, count, 1_000)).collect();
        run_at(&replies)
    }

    /// The same with the time of each answer, in ms.
    fn run_at(replies: &[(u32, u64, u64, u64)]) -> Vec<Continuity> {
        let mut lanes = Lanes::new(1);
        let reply = |&(order, call, count, ms): &(u32, u64, u64, u64)| {
            let trailer = EchoTrailer { slot: 0, call, count, position: Position(1), node: NodeId(1) };
            let at = Nanos::from_millis(u64::from(order));
            let sent = Sent { hash: 0, intended: at, at, lane: 0, flow: 0, order, kind: 0 };
            lanes.on_reply(&sent, &trailer, Nanos::from_millis(ms))
        };
        replies.iter().map(reply).collect()
    }

    use Continuity::{Broken, Fits, Reordered};

    #[test]
    fn counts_that_grow_with_the_order_fit_whatever_order_they_are_read_in() {
        assert_eq!(run(&[(1, 5, 1), (2, 5, 2), (4, 5, 4), (3, 5, 3), (6, 5, 5)]), [Fits; 5]);
    }

    #[test]
    fn a_datagram_sent_after_an_answer_was_executed_after_what_was_answered() {
        assert_eq!(run_at(&[(1, 5, 2, 3), (4, 5, 1, 6)]), [Fits, Reordered]);
        assert_eq!(run_at(&[(1, 5, 2, 6), (4, 5, 1, 7)]), [Fits, Fits], "both were under way");
        assert_eq!(run_at(&[(1, 5, 1, 2), (3, 5, 3, 4), (5, 5, 2, 6)]), [Fits, Fits, Reordered]);
    }

    #[test]
    fn a_restarted_or_repeated_count_is_reported_once() {
        assert_eq!(run(&[(1, 5, 1), (2, 5, 2), (3, 5, 1), (4, 5, 2), (5, 5, 3)])[2..], [Broken, Fits, Fits]);
        assert_eq!(run(&[(1, 5, 1), (2, 5, 2), (3, 5, 2), (4, 5, 3)])[2..], [Broken, Fits]);
        assert_eq!(run(&[(1, 5, 1), (2, 5, 200), (3, 5, 3), (4, 5, 4)])[2..], [Broken, Fits]);
    }

    #[test]
    fn a_count_that_jumps_is_told_from_one_that_unanswered_datagrams_have() {
        let mut lanes = Lanes::new(1);
        let at = |order: u32| Nanos::from_millis(u64::from(order));
        let sent =
            |order| Sent { hash: 0, intended: at(order), at: at(order), lane: 0, flow: 0, order, kind: 0 };
        for (order, count) in [(1, 1), (2, 2), (4, 4), (6, 9)] {
            let trailer = EchoTrailer { slot: 0, call: 5, count, position: Position(1), node: NodeId(1) };
            assert_eq!(lanes.on_reply(&sent(order), &trailer, at(order + 1)), Fits);
        }
        assert!(lanes.explain(&sent(3)) && lanes.explain(&sent(5)));
        assert_eq!(lanes.forget(at(7)), 0, "what came at 7 ms is still open");
        assert_eq!(lanes.forget(at(8)), 1, "6 to 8");
    }

    #[test]
    fn an_answer_from_before_the_loss_that_is_read_after_it_is_no_further_fault() {
        assert_eq!(run(&[(1, 5, 1), (2, 5, 2), (4, 5, 1), (3, 5, 3), (5, 5, 2)])[2..], [Broken, Fits, Fits]);
    }

    #[test]
    fn the_next_call_of_a_lane_counts_afresh_while_the_former_one_ends() {
        assert_eq!(run(&[(1, 5, 1), (2, 5, 2), (4, 6, 1), (3, 5, 3), (5, 6, 2)]), [Fits; 5]);
        assert_eq!(run(&[(1, 5, 1), (2, 5, 2), (4, 6, 1), (3, 5, 2)])[3], Broken);
    }
}
