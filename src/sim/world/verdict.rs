//! When a world is done, and whether it may be.

use std::collections::BTreeMap;

use super::{Event, World};
use crate::engine::{ShardStats, SlotDigest};
use crate::types::{Nanos, NodeId, Position, Slot};

/// Once faults are over everything must be done within this time (invariant 6), in worlds whose owner never dies...
const DONE_WITHIN: Nanos = Nanos::from_millis(600);
/// ...and in the others, where nodes come back, learn and move.
const SETTLED_WITHIN: Nanos = Nanos::from_millis(4_000);

/// What clients sent last has arrived by then.
const IN_FLIGHT: Nanos = Nanos::from_millis(5);

/// How long a finished world runs on: late duplicates must do no harm, and what is kept must shrink.
const QUIET: Nanos = Nanos::from_millis(400);
/// How long others do.
const SHORT_QUIET: Nanos = Nanos::from_millis(10);

/// How many packets the clients then send, and how far apart.
const ENCORE: u64 = 30;
const ENCORE_PAUSE: Nanos = Nanos::from_millis(3);

/// When the clients speak up again, in worlds in which they do: masterships have gone home by then.
const ENCORE_AFTER: Nanos = Nanos::from_millis(1_400);

impl World {
    pub(super) fn done_within(&self) -> Nanos {
        if self.scenario.settings.live { SETTLED_WITHIN } else { DONE_WITHIN }
    }

    /// Looks whether everything is done; true when the world may end.
    pub(super) fn look(&mut self) -> bool {
        self.queue.push(self.now + Nanos::from_millis(5), Event::Look);
        let live = self.scenario.settings.live;
        if self.origin.is_none() {
            match self.unformed() {
                None => self.begin_all(),
                Some(what) if self.now > self.due => self.checker.stuck(self.now, &what),
                Some(_) => {}
            }
            return false;
        }
        self.check_limits();
        if self.now < self.clients_until + IN_FLIGHT {
            return false;
        }
        self.note_blank();
        let left = self.unsettled().or_else(|| self.checker.unfinished(&self.connected(), self.given_up()));
        let long = !live || self.rng_is_patient();
        let quiet = if long { QUIET } else { SHORT_QUIET };
        match (left, self.done) {
            (None, None) => self.done = Some(self.now),
            (None, Some(since)) if self.encore => {
                if self.now.since(since) >= if live { SHORT_QUIET } else { ENCORE_AFTER } {
                    let (count, pause) =
                        if live { (6, Nanos::from_millis(2)) } else { (ENCORE, ENCORE_PAUSE) };
                    (1..=count).for_each(|n| self.queue.push(self.now + Nanos(pause.0 * n), Event::Encore));
                    self.clients_until = self.now + Nanos(pause.0 * (count + 1));
                    (self.encore, self.done, self.due) =
                        (false, None, self.clients_until + self.done_within());
                    self.strict = true;
                }
            }
            // A member whom nobody waits for may be behind for as long as probes back off.
            (None, Some(since))
                if self.now.since(since) >= quiet && !long && self.now <= self.due && self.lags() =>
            {
                self.done = None;
            }
            (None, Some(since)) if self.now.since(since) >= quiet => {
                self.check_rest(long);
                return true;
            }
            (None, Some(_)) => {}
            (Some(what), since) => {
                // Nothing may come undone, but for what clients send.
                if since.is_some() && !live || self.now > self.due {
                    self.checker.stuck(self.now, &what);
                }
                self.done = None;
            }
        }
        false
    }

    /// Tells the checker who has executed nothing of a slot in its present life as a member.
    fn note_blank(&mut self) {
        for node in self.nodes.iter().filter(|node| node.alive) {
            for shard in node.loops.iter().map(|l| &l.shard) {
                let used: Vec<Slot> = shard.digests().iter().map(|d| d.slot).collect();
                let held =
                    (0..self.scenario.layout.slots()).map(Slot).filter(|slot| shard.shared(*slot).is_some());
                for slot in held.filter(|slot| !used.contains(slot)) {
                    self.checker.is_blank((node.id, node.boot), slot.0);
                }
            }
        }
    }

    /// Whether a world in which anybody may die is watched until nothing is kept any more: that takes long.
    fn rng_is_patient(&self) -> bool {
        self.scenario.load.calls.is_multiple_of(6)
    }

    /// Whether an owner has given up members: they fell out of a window that is small on purpose.
    fn given_up(&self) -> bool {
        self.scenario.settings.tight() && self.stats().any(|(_, stats)| stats.slots_short > 0)
    }

    /// The nodes that must have everything in the end: those that live; where nobody comes back, those that never crashed.
    fn connected(&self) -> Vec<NodeId> {
        if self.scenario.settings.live {
            return self.nodes.iter().filter(|node| node.alive).map(|node| node.id).collect();
        }
        let crashed: Vec<NodeId> = self.scenario.crashed().collect();
        self.scenario.layout.ids().filter(|id| !crashed.contains(id)).collect()
    }

    pub(super) fn stats(&self) -> impl Iterator<Item = (NodeId, ShardStats)> + '_ {
        self.nodes.iter().flat_map(|node| node.loops.iter().map(|l| (node.id, l.shard.stats())))
    }

    /// Invariant 7 while things go wrong: nothing grows past its limit.
    fn check_limits(&mut self) {
        let settings = self.scenario.settings.clone();
        let mut broken = None;
        for (id, stats) in self.stats() {
            // An entry has at most 3 outputs of its packet, and those of timers, of which some calls have a few.
            let log = 64 + settings.window * 16;
            let bytes = 2 * settings.retain_bytes as u64 + log * 1_500 * u64::from(self.map.slots);
            if stats.longest_log > log || stats.retained_bytes > bytes {
                broken = Some(format!(
                    "{id} keeps {} records of a slot, {} bytes",
                    stats.longest_log, stats.retained_bytes
                ));
            }
            if stats.divergences > 0 {
                broken = Some(format!("{id} says that members diverged"));
            }
        }
        if let Some(what) = broken {
            self.checker.unbounded(self.now, &what);
        }
    }

    /// Invariants 6 and 7 at rest: digests agree, and nothing is kept unless a member is missing.
    fn check_rest(&mut self, long: bool) {
        let (connected, given_up) = (self.connected(), self.given_up());
        let mut digests: BTreeMap<Slot, (NodeId, SlotDigest)> = BTreeMap::new();
        let mut broken = None;
        for (id, digest) in self.members_digests() {
            let (other, first) = *digests.entry(digest.slot).or_insert((id, digest));
            if first != digest && !(given_up && first.executed != digest.executed) {
                broken = Some(format!("{other} has {first:?}, {id} has {digest:?}"));
            }
        }
        if let Some(what) = broken {
            self.checker.stuck(self.now, &what);
        }
        let whole = long && connected.len() == self.nodes.len() && !given_up;
        let kept = self.stats().find(|(_, stats)| whole && stats.retained_records > 0);
        if let Some((id, stats)) = kept {
            let what = format!("{id} still keeps {} records at rest", stats.retained_records);
            self.checker.unbounded(self.now, &what);
        }
    }

    /// Whether two members of a slot that reach each other have not executed the same number of entries, and none was
    /// given up.
    fn lags(&self) -> bool {
        let mut executed: BTreeMap<Slot, Position> = BTreeMap::new();
        let mut differs = |of: &SlotDigest| *executed.entry(of.slot).or_insert(of.executed) != of.executed;
        !self.given_up() && self.members_digests().iter().any(|(_, digest)| differs(digest))
    }

    /// What the members that reach each other have executed of each slot.
    fn members_digests(&self) -> Vec<(NodeId, SlotDigest)> {
        let connected = self.connected();
        let nodes = self.nodes.iter().filter(|node| connected.contains(&node.id));
        let all = nodes.flat_map(|node| {
            node.loops.iter().flat_map(|l| l.shard.digests()).map(|digest| (node.id, digest))
        });
        all.filter(|(id, digest)| self.is_member(*id, digest.slot)).collect()
    }
}
