//! Virtual time and the virtual network: one queue of events, and links whose faults are middleware
//! that each datagram passes in turn.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::sim::rng::Rng;
use crate::types::{Nanos, NodeId, NodeSet, Term};
use crate::wire::frame::{Frame, Frames};
use crate::wire::record::Entry;

/// What is to happen, in order of time; events of one instant keep the order in which they were added.
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Item<E>>>,
    added: u64,
}

struct Item<E> {
    at: Nanos,
    seq: u64,
    event: E,
}

impl<E> PartialEq for Item<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}

impl<E> Eq for Item<E> {}

impl<E> PartialOrd for Item<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Item<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Queue { heap: BinaryHeap::new(), added: 0 }
    }
}

impl<E> Queue<E> {
    /// Adds an event.
    pub fn push(&mut self, at: Nanos, event: E) {
        self.added += 1;
        self.heap.push(Reverse(Item { at, seq: self.added, event }));
    }

    /// Takes the earliest event, if it is due by `until`.
    pub fn pop(&mut self, until: Nanos) -> Option<(Nanos, E)> {
        if self.heap.peek()?.0.at > until {
            return None;
        }
        self.heap.pop().map(|Reverse(item)| (item.at, item.event))
    }
}

/// What a fault does to the datagrams that pass it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LinkEffect {
    /// Nothing passes.
    Cut,
    /// This many in 1,000 are lost.
    Loss(u64),
    /// This many in 1,000 arrive twice, the second up to 2 ms later.
    Duplicate(u64),
    /// This many in 1,000 are overtaken by what is sent up to `by` later.
    Reorder {
        /// How many in 1,000.
        permille: u64,
        /// By how much at most.
        by: Nanos,
    },
    /// Everything takes this much longer.
    Delay(Nanos),
    /// A narrow link: each byte takes this many ns, one after the other.
    Narrow(u64),
    /// This many in 1,000 take this much longer, and what is sent meanwhile overtakes them.
    Late {
        /// How many in 1,000.
        permille: u64,
        /// By how much.
        by: Nanos,
    },
    /// Datagrams that hold this are lost.
    Without(Kind),
}

/// What a fault looks for in a datagram.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Start.
    Start,
    /// An entry that was appended in the term it is sent in.
    OwnEntry,
}

impl Kind {
    fn is_in(self, bytes: &[u8]) -> bool {
        let own = |term: u32, mut entries: &[u8]| loop {
            match Entry::read(entries) {
                Some((entry, _, _)) if entry.term == Term(term) => return true,
                Some((_, _, rest)) => entries = rest,
                None => return false,
            }
        };
        Frames::new(bytes).any(|frame| match (self, frame) {
            (Kind::Start, Ok(Frame::Start(_))) => true,
            (Kind::OwnEntry, Ok(Frame::Segment(header, entries))) => own(header.term.get(), entries),
            _ => false,
        })
    }
}

/// A fault on the directed links from any node of `from` to any node of `to`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct LinkFault {
    /// Senders.
    pub from: NodeSet,
    /// Receivers.
    pub to: NodeSet,
    /// What happens to what passes.
    pub effect: LinkEffect,
}

impl LinkFault {
    fn hits(&self, from: NodeId, to: NodeId) -> bool {
        self.from.contains(from) && self.to.contains(to)
    }
}

/// What the links are like without any fault.
#[derive(Copy, Clone, Debug)]
pub struct LinkBase {
    /// The shortest time a datagram takes.
    pub delay: Nanos,
    /// Up to this much more.
    pub jitter: Nanos,
}

/// All directed links of a world.
pub struct Links {
    base: LinkBase,
    faults: Vec<(u32, LinkFault)>,
    /// When the last datagram of each directed link arrives: a link keeps order unless a fault breaks it.
    last: Vec<Nanos>,
    /// When each directed link is free again, for narrow links.
    free: Vec<Nanos>,
}

/// When the copies of one datagram arrive.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// The first copy, unless it was lost.
    pub first: Option<Nanos>,
    /// A second copy.
    pub second: Option<Nanos>,
}

/// More than this much waiting for a narrow link is lost: a switch's buffer is finite too.
const NARROW_BACKLOG: Nanos = Nanos::from_millis(20);

impl Links {
    /// Links without faults.
    pub fn new(base: LinkBase) -> Links {
        let pairs = (usize::from(NodeId::MAX) + 1).pow(2);
        Links { base, faults: Vec::new(), last: vec![Nanos::ZERO; pairs], free: vec![Nanos::ZERO; pairs] }
    }

    /// Adds a fault under a name to remove it by.
    pub fn add(&mut self, name: u32, fault: LinkFault) {
        self.faults.push((name, fault));
    }

    /// Ends a fault.
    pub fn remove(&mut self, name: u32) {
        self.faults.retain(|(n, _)| *n != name);
    }

    /// Whether nothing at all gets from `from` to `to` now: what a detector would notice.
    pub fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.faults.iter().any(|(_, f)| f.hits(from, to) && f.effect == LinkEffect::Cut)
    }

    /// Sends `bytes` at `now`.
    pub fn send(&mut self, rng: &mut Rng, now: Nanos, from: NodeId, to: NodeId, bytes: &[u8]) -> Arrivals {
        let link = usize::from(from.0) * (usize::from(NodeId::MAX) + 1) + usize::from(to.0);
        let mut at = now + self.base.delay + Nanos(rng.range(0, self.base.jitter.0));
        let (mut overtaken, mut second) = (false, None);
        for (_, fault) in self.faults.iter().filter(|(_, f)| f.hits(from, to)) {
            match fault.effect {
                LinkEffect::Cut => return Arrivals::default(),
                LinkEffect::Loss(permille) if rng.chance(permille) => return Arrivals::default(),
                LinkEffect::Duplicate(permille) if rng.chance(permille) => {
                    second = Some(Nanos(rng.range(0, Nanos::from_millis(2).0)));
                }
                LinkEffect::Reorder { permille, by } if rng.chance(permille) => {
                    overtaken = true;
                    at = at + Nanos(rng.range(0, by.0));
                }
                LinkEffect::Delay(more) => at = at + more,
                LinkEffect::Narrow(ns_per_byte) => {
                    let start = self.free[link].max(now);
                    if start.since(now) > NARROW_BACKLOG {
                        return Arrivals::default();
                    }
                    self.free[link] = start + Nanos(bytes.len() as u64 * ns_per_byte);
                    at = at + self.free[link].since(now);
                }
                LinkEffect::Late { permille, by } if rng.chance(permille) => {
                    overtaken = true;
                    at = at + by;
                }
                LinkEffect::Without(kind) if kind.is_in(bytes) => return Arrivals::default(),
                LinkEffect::Loss(_)
                | LinkEffect::Duplicate(_)
                | LinkEffect::Reorder { .. }
                | LinkEffect::Late { .. }
                | LinkEffect::Without(_) => {}
            }
        }
        if !overtaken {
            at = at.max(self.last[link]);
            self.last[link] = at;
        }
        Arrivals { first: Some(at), second: second.map(|later| at + later) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, LinkBase, LinkEffect, LinkFault, Links, Queue};
    use crate::sim::rng::Rng;
    use crate::types::{Nanos, NodeId, NodeSet};
    use crate::wire::frame::{Frame, Start};
    use zerocopy::FromZeros;

    #[test]
    fn queue_is_ordered_by_time_then_by_age() {
        let mut queue = Queue::default();
        for (at, what) in [(5, 'c'), (1, 'a'), (5, 'd'), (1, 'b'), (9, 'e')] {
            queue.push(Nanos(at), what);
        }
        let order: String = std::iter::from_fn(|| queue.pop(Nanos(5)).map(|(_, e)| e)).collect();
        assert_eq!(order, "abcd");
        assert!(queue.pop(Nanos(8)).is_none());
    }

    #[test]
    fn faults_hit_their_direction_only_and_end() {
        let (a, b) = (NodeId(1), NodeId(2));
        let mut rng = Rng::new(1);
        let mut links = Links::new(LinkBase { delay: Nanos(50), jitter: Nanos(20) });
        links.add(1, LinkFault { from: NodeSet(1 << 1), to: NodeSet(1 << 2), effect: LinkEffect::Cut });
        assert!(links.is_cut(a, b) && !links.is_cut(b, a));
        assert_eq!(links.send(&mut rng, Nanos(0), a, b, &[0; 100]).first, None);
        assert!(links.send(&mut rng, Nanos(0), b, a, &[0; 100]).first.is_some());
        links.remove(1);
        let mut last = Nanos::ZERO;
        for t in 0..200 {
            let at = links.send(&mut rng, Nanos(t), a, b, &[0; 100]).first.expect("no fault");
            assert!(at >= last && at >= Nanos(t + 50), "a link without faults keeps order");
            last = at;
        }
    }

    #[test]
    fn what_is_late_is_overtaken_and_what_is_looked_for_is_lost() {
        let (a, b, mut rng) = (NodeId(1), NodeId(2), Rng::new(1));
        let mut links = Links::new(LinkBase { delay: Nanos(50), jitter: Nanos(0) });
        let on_all = |effect| LinkFault { from: NodeSet(u64::MAX), to: NodeSet(u64::MAX), effect };
        links.add(1, on_all(LinkEffect::Late { permille: 1_000, by: Nanos(900) }));
        assert_eq!(links.send(&mut rng, Nanos(0), a, b, &[0; 100]).first, Some(Nanos(950)));
        links.remove(1);
        assert_eq!(links.send(&mut rng, Nanos(1), a, b, &[0; 100]).first, Some(Nanos(51)));
        links.add(2, on_all(LinkEffect::Without(Kind::Start)));
        let (mut bytes, start) = (Vec::new(), Start::new_zeroed());
        Frame::Bundle(7).write(&mut bytes);
        assert!(links.send(&mut rng, Nanos(2), a, b, &bytes).first.is_some());
        Frame::Start(&start).write(&mut bytes);
        assert_eq!(links.send(&mut rng, Nanos(3), a, b, &bytes).first, None);
    }
}
