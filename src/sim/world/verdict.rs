//! When a world is done, and whether it may be.

use std::collections::BTreeMap;

use super::{DONE_WITHIN, ENCORE, ENCORE_AFTER, ENCORE_PAUSE, Event, QUIET, World};
use crate::engine::{ShardStats, SlotDigest};
use crate::types::{Nanos, NodeId, Slot};

impl World {
    /// Looks whether everything is done; true when the world may end.
    pub(super) fn look(&mut self) -> bool {
        self.queue.push(self.now + Nanos::from_millis(5), Event::Look);
        self.check_limits();
        if self.now < self.clients_until {
            return false;
        }
        match (self.checker.unfinished(&self.connected(), self.given_up()), self.done) {
            (None, None) => self.done = Some(self.now),
            (None, Some(since)) if self.encore => {
                if self.now.since(since) >= ENCORE_AFTER {
                    (1..=ENCORE)
                        .for_each(|n| self.queue.push(self.now + Nanos(ENCORE_PAUSE.0 * n), Event::Encore));
                    self.clients_until = self.now + Nanos(ENCORE_PAUSE.0 * (ENCORE + 1));
                    (self.encore, self.done, self.due) = (false, None, self.clients_until + DONE_WITHIN);
                }
            }
            (None, Some(since)) if self.now.since(since) >= QUIET => {
                self.check_rest();
                return true;
            }
            (None, Some(_)) => {}
            (Some(what), since) => {
                // Nothing may come undone, but for what clients send.
                if since.is_some() || self.now > self.due {
                    self.checker.stuck(self.now, &what);
                }
            }
        }
        false
    }

    /// Whether an owner has given up members: they fell out of a window that is small on purpose.
    fn given_up(&self) -> bool {
        self.scenario.settings.tight() && self.stats().any(|(_, stats)| stats.slots_short > 0)
    }

    /// The nodes that must have everything in the end: those that never crashed.
    fn connected(&self) -> Vec<NodeId> {
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
    fn check_rest(&mut self) {
        let (connected, given_up) = (self.connected(), self.given_up());
        let mut digests: BTreeMap<Slot, (NodeId, SlotDigest)> = BTreeMap::new();
        let mut broken = None;
        for node in self.nodes.iter().filter(|node| connected.contains(&node.id)) {
            for digest in node.loops.iter().flat_map(|l| l.shard.digests()) {
                let (other, first) = *digests.entry(digest.slot).or_insert((node.id, digest));
                if first != digest && !(given_up && first.executed != digest.executed) {
                    broken = Some(format!("{other} has {first:?}, {} has {digest:?}", node.id));
                }
            }
        }
        if let Some(what) = broken {
            self.checker.stuck(self.now, &what);
        }
        let whole = connected.len() == self.nodes.len() && !given_up;
        let kept = self.stats().find(|(_, stats)| whole && stats.retained_records > 0);
        if let Some((id, stats)) = kept {
            let what = format!("{id} still keeps {} records at rest", stats.retained_records);
            self.checker.unbounded(self.now, &what);
        }
    }
}
