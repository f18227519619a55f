//! What was sent and has not been answered yet, found by the bytes of the answer.
//!
//! Datagrams are known by a 64-bit hash of their bytes and socket. Byte-identical ones (retransmissions)
//! form a chain and are answered first in, first out. Answered ones are kept for a while too, so that a
//! second answer is told from one that nobody asked for, and a copy of the first from one with other bytes.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::types::Nanos;

/// A datagram that was sent.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Hash of its bytes and its socket.
    pub hash: u64,
    /// When it should have been sent.
    pub intended: Nanos,
    /// When it was.
    pub at: Nanos,
    /// Which lane it belongs to.
    pub lane: u32,
    /// Which flow it belongs to.
    pub flow: u32,
    /// Grows within its lane and its flow.
    pub order: u32,
    /// Which flow of the plan it is, the same for all clones.
    pub kind: u32,
}

/// What an answer turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The first answer to this datagram.
    First(Sent),
    /// The very answer that came to this datagram before, and when that was.
    Copy(Sent, Nanos),
    /// Another answer although all datagrams with these bytes have one; the newest of them, and when that was answered.
    Again(Sent, Nanos),
    /// No datagram with these bytes was sent, at least not lately.
    Never,
}

/// What became of a datagram that is forgotten without a readable answer.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing came.
    Unanswered,
    /// Its answer says nothing of the call.
    Unstamped,
}

/// How many answers to the same bytes a new one is compared with.
const COMPARED: usize = 64;

struct Item {
    sent: Sent,
    /// How many items later the next one with the same hash is; 0 if there is none.
    next: u32,
    /// How many items earlier the one before with the same hash is; 0 if there is none.
    previous: u32,
    /// What its answer was stamped with; 0 if it has none, or an unreadable one.
    stamp: u64,
    /// When the answer came; `Nanos::MAX`: not yet.
    answered: Nanos,
}

struct Chain {
    /// Number of the first unanswered item; `None` if all are answered.
    open: Option<u64>,
    /// Number of the newest item.
    last: u64,
}

/// The datagrams of the last seconds, in the order of sending.
#[derive(Default)]
pub(crate) struct Ledger {
    items: VecDeque<Item>,
    /// Number of the item at the front.
    first: u64,
    chains: HashMap<u64, Chain>,
    open: u64,
}

impl Ledger {
    /// How many are unanswered.
    pub(crate) fn open(&self) -> u64 {
        self.open
    }

    /// Notes a datagram.
    pub(crate) fn add(&mut self, sent: Sent) {
        let number = self.first + self.items.len() as u64;
        let mut previous = 0;
        match self.chains.get_mut(&sent.hash) {
            None => {
                self.chains.insert(sent.hash, Chain { open: Some(number), last: number });
            }
            Some(chain) => {
                // 2^32 datagrams do not fit between two that are both kept.
                previous = (number - chain.last) as u32;
                if let Some(item) = self.items.get_mut((chain.last - self.first) as usize) {
                    item.next = previous;
                }
                chain.last = number;
                chain.open.get_or_insert(number);
            }
        }
        self.items.push_back(Item { sent, next: 0, previous, stamp: 0, answered: Nanos::MAX });
        self.open += 1;
    }

    /// Takes an answer whose bytes, but for who answered, are told by `stamp` (0 if they tell nothing). One with
    /// the stamp of an earlier answer to the same bytes is a copy of that, not the answer to the next datagram.
    pub(crate) fn answer(&mut self, hash: u64, stamp: u64, now: Nanos) -> Found {
        let Some(chain) = self.chains.get_mut(&hash) else { return Found::Never };
        let newest = chain.open.unwrap_or(chain.last);
        let Some(at) = newest.checked_sub(self.first).map(|at| at as usize) else { return Found::Never };
        if stamp != 0
            && let Some(item) = answered_before(&self.items, at).find(|item| item.stamp == stamp)
        {
            return Found::Copy(item.sent, item.answered);
        }
        let Some(item) = self.items.get_mut(at) else { return Found::Never };
        let Some(number) = chain.open else { return Found::Again(item.sent, item.answered) };
        (item.answered, item.stamp) = (now, stamp);
        chain.open = next_of(number, item);
        self.open -= 1;
        Found::First(item.sent)
    }

    /// Drops what was sent before `time`; calls `gone` for each that no answer, or none that could be read, came to.
    pub(crate) fn forget(&mut self, time: Nanos, mut gone: impl FnMut(&Sent, Fate)) {
        while self.items.front().is_some_and(|item| item.sent.at < time) {
            let Some(item) = self.items.pop_front() else { return };
            let number = self.first;
            self.first += 1;
            let hash = item.sent.hash;
            if let Some(chain) = self.chains.get_mut(&hash) {
                if chain.last == number {
                    self.chains.remove(&hash);
                } else if chain.open == Some(number) {
                    chain.open = next_of(number, &item);
                }
            }
            if item.answered == Nanos::MAX {
                self.open -= 1;
                gone(&item.sent, Fate::Unanswered);
            } else if item.stamp == 0 {
                gone(&item.sent, Fate::Unstamped);
            }
        }
    }
}

fn next_of(number: u64, item: &Item) -> Option<u64> {
    (item.next != 0).then(|| number + u64::from(item.next))
}

/// The newest answered items of the chain that `items[at]` belongs to, from there back.
fn answered_before(items: &VecDeque<Item>, at: usize) -> impl Iterator<Item = &Item> {
    let back = |at: &usize| {
        let previous = items.get(*at)?.previous as usize;
        if previous == 0 { None } else { at.checked_sub(previous) }
    };
    let chain = std::iter::successors(Some(at), back).take(COMPARED);
    chain.filter_map(|at| items.get(at)).filter(|item| item.answered != Nanos::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Fate, Found, Ledger, Sent};
    use crate::types::Nanos;

    fn sent(hash: u64, order: u32) -> Sent {
        let at = Nanos(u64::from(order));
        Sent { hash, intended: at, at, lane: 0, flow: 0, order, kind: 0 }
    }

    const NOW: Nanos = Nanos(50);

    #[test]
    fn identical_datagrams_are_answered_first_in_first_out() {
        let mut ledger = Ledger::default();
        for (hash, order) in [(7, 1), (8, 2), (7, 3), (7, 4)] {
            ledger.add(sent(hash, order));
        }
        assert_eq!(ledger.answer(7, 1, NOW), Found::First(sent(7, 1)));
        assert_eq!(ledger.answer(7, 1, Nanos(60)), Found::Copy(sent(7, 1), NOW), "the same answer twice");
        assert_eq!(ledger.answer(7, 3, NOW), Found::First(sent(7, 3)));
        assert_eq!(ledger.answer(7, 1, NOW), Found::Copy(sent(7, 1), NOW), "and once more, later");
        assert_eq!(ledger.answer(7, 4, NOW), Found::First(sent(7, 4)));
        assert_eq!(ledger.answer(7, 5, NOW), Found::Again(sent(7, 4), NOW));
        assert_eq!(ledger.answer(7, 3, NOW), Found::Copy(sent(7, 3), NOW));
        assert_eq!(ledger.answer(9, 1, NOW), Found::Never);
        assert_eq!(ledger.open(), 1);
    }

    #[test]
    fn answers_without_a_stamp_are_not_compared() {
        let mut ledger = Ledger::default();
        ledger.add(sent(7, 1));
        ledger.add(sent(7, 2));
        assert_eq!(ledger.answer(7, 0, NOW), Found::First(sent(7, 1)));
        assert_eq!(ledger.answer(7, 0, NOW), Found::First(sent(7, 2)));
        assert_eq!(ledger.answer(7, 0, NOW), Found::Again(sent(7, 2), NOW));
        let mut gone = Vec::new();
        ledger.forget(Nanos::MAX, |item, fate| gone.push((item.order, fate)));
        assert_eq!(gone, [(1, Fate::Unstamped), (2, Fate::Unstamped)]);
    }

    #[test]
    fn forgetting_reports_the_unanswered_and_keeps_chains_whole() {
        let mut ledger = Ledger::default();
        for (hash, order) in [(7, 1), (7, 2), (8, 3), (7, 4)] {
            ledger.add(sent(hash, order));
        }
        assert_eq!(ledger.answer(7, 1, NOW), Found::First(sent(7, 1)));
        let mut lost = Vec::new();
        ledger.forget(Nanos(3), |item, _| lost.push(item.order));
        assert_eq!(lost, [2]);
        assert_eq!(ledger.answer(7, 4, NOW), Found::First(sent(7, 4)));
        ledger.add(sent(7, 5));
        assert_eq!(ledger.answer(7, 5, NOW), Found::First(sent(7, 5)));
        assert_eq!(ledger.answer(7, 4, NOW), Found::Copy(sent(7, 4), NOW));
        ledger.forget(Nanos::MAX, |item, _| lost.push(item.order));
        assert_eq!(lost, [2, 3]);
        assert_eq!((ledger.open(), ledger.chains.len()), (0, 0));
    }
}
