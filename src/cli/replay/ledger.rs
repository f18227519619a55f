//! What was sent and has not been answered yet, found by the bytes of the answer.
//!
//! Datagrams are known by a 64-bit hash of their bytes and socket. Byte-identical ones (retransmissions)
//! form a chain and are answered first in, first out. Answered ones are kept for a while too, so that a
//! second answer is told from one that nobody asked for.

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
    /// All datagrams with these bytes have been answered.
    Again,
    /// No datagram with these bytes was sent, at least not lately.
    Never,
}

struct Item {
    sent: Sent,
    /// How many items later the next one with the same hash is; 0 if there is none.
    next: u32,
    answered: bool,
}

struct Chain {
    /// Number of the first unanswered item; `None` if all are answered.
    open: Option<u64>,
    /// Number of the newest item.
    last: u64,
    /// What the newest answer was stamped with (its per-call count); 0 if there was none.
    stamp: u64,
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
        match self.chains.get_mut(&sent.hash) {
            None => {
                self.chains.insert(sent.hash, Chain { open: Some(number), last: number, stamp: 0 });
            }
            Some(chain) => {
                // 2^32 datagrams do not fit between two that are both kept.
                let before = (chain.last - self.first) as usize;
                if let Some(item) = self.items.get_mut(before) {
                    item.next = (number - chain.last) as u32;
                }
                chain.last = number;
                chain.open.get_or_insert(number);
            }
        }
        self.items.push_back(Item { sent, next: 0, answered: false });
        self.open += 1;
    }

    /// Takes an answer stamped with `stamp` (its per-call count, 0 if it has none). A stamp equal to that of
    /// the answer before it to the same bytes is a second copy of that answer, not the answer to the next.
    pub(crate) fn answer(&mut self, hash: u64, stamp: u64) -> Found {
        let Some(chain) = self.chains.get_mut(&hash) else { return Found::Never };
        let Some(number) = chain.open.filter(|_| stamp == 0 || stamp != chain.stamp) else {
            return Found::Again;
        };
        let Some(item) = self.items.get_mut((number - self.first) as usize) else { return Found::Never };
        item.answered = true;
        chain.stamp = stamp;
        chain.open = next_of(number, item);
        self.open -= 1;
        Found::First(item.sent)
    }

    /// Drops what was sent before `time`; calls `lost` for each that was never answered.
    pub(crate) fn forget(&mut self, time: Nanos, mut lost: impl FnMut(&Sent)) {
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
            if !item.answered {
                self.open -= 1;
                lost(&item.sent);
            }
        }
    }
}

fn next_of(number: u64, item: &Item) -> Option<u64> {
    (item.next != 0).then(|| number + u64::from(item.next))
}

#[cfg(test)]
mod tests {
    use super::{Found, Ledger, Sent};
    use crate::types::Nanos;

    fn sent(hash: u64, order: u32) -> Sent {
        let at = Nanos(u64::from(order));
        Sent { hash, intended: at, at, lane: 0, flow: 0, order, kind: 0 }
    }

    #[test]
    fn identical_datagrams_are_answered_first_in_first_out() {
        let mut ledger = Ledger::default();
        for (hash, order) in [(7, 1), (8, 2), (7, 3), (7, 4)] {
            ledger.add(sent(hash, order));
        }
        assert_eq!(ledger.answer(7, 1), Found::First(sent(7, 1)));
        assert_eq!(ledger.answer(7, 1), Found::Again, "the same answer twice");
        assert_eq!(ledger.answer(7, 3), Found::First(sent(7, 3)));
        assert_eq!(ledger.answer(7, 4), Found::First(sent(7, 4)));
        assert_eq!(ledger.answer(7, 5), Found::Again);
        assert_eq!(ledger.answer(9, 1), Found::Never);
        assert_eq!(ledger.open(), 1);
    }

    #[test]
    fn forgetting_reports_the_unanswered_and_keeps_chains_whole() {
        let mut ledger = Ledger::default();
        for (hash, order) in [(7, 1), (7, 2), (8, 3), (7, 4)] {
            ledger.add(sent(hash, order));
        }
        assert_eq!(ledger.answer(7, 1), Found::First(sent(7, 1)));
        let mut lost = Vec::new();
        ledger.forget(Nanos(3), |item| lost.push(item.order));
        assert_eq!(lost, [2]);
        assert_eq!(ledger.answer(7, 4), Found::First(sent(7, 4)));
        ledger.add(sent(7, 5));
        assert_eq!(ledger.answer(7, 5), Found::First(sent(7, 5)));
        ledger.forget(Nanos::MAX, |item| lost.push(item.order));
        assert_eq!(lost, [2, 3]);
        assert_eq!((ledger.open(), ledger.chains.len()), (0, 0));
    }
}
