//! Owners that cannot go on although others could: one that is cut off from its slots' members, but not from the voters,
//! keeps its lease and commits nothing. Each voter judges by the reports; after EVICT_AFTER it promises against such an
//! owner as against a silent one, and the address moves.

use super::{Council, Turn};
use crate::proto::map::{GroupSet, MapMember, is_commit_set};
use crate::types::{NodeId, NodeSet};

/// A node that is heard here, and the nodes that it does not reach.
type Reach = (NodeId, NodeSet);

impl Council {
    /// The owners that have had slots without a commit for EVICT_AFTER, which another member could commit.
    pub(super) fn stuck(&self, turn: &mut Turn<'_>) -> NodeSet {
        let current = |of: u32| of == self.map.version;
        let mut reaches: Vec<Reach> = vec![(self.me, turn.suspects)];
        for (peer, silence) in turn.peers.iter().zip(turn.silence) {
            let report = peer.delegate.report.as_ref().map(|(report, _, _)| report);
            let report = report.filter(|r| current(r.map.get()) && peer.joined);
            let report = report.filter(|_| !self.is_silent(turn.now, peer, *silence));
            reaches.extend(report.map(|r| (peer.node, NodeSet(r.unreachable.get()))));
        }
        let mut stuck = NodeSet::EMPTY;
        for peer in turn.peers.iter_mut() {
            let node = peer.node;
            // What it says of an older map neither proves nor disproves anything.
            let report = peer.delegate.report.as_ref().map(|(report, _, _)| report);
            let Some(blocked) = report.filter(|r| current(r.map.get())).map(|r| GroupSet(r.blocked.get()))
            else {
                continue;
            };
            let waits = blocked.iter().any(|group| self.others_could(group, node, &reaches));
            let since = &mut peer.delegate.stuck_since;
            *since = waits.then(|| since.unwrap_or(turn.now));
            if since.is_some_and(|since| turn.now.since(since) >= self.config.evict_after) {
                stuck.insert(node);
            }
        }
        stuck
    }

    /// Whether `owner` reaches no commit set of a group and another member does, of those that are heard here.
    fn others_could(&self, group: usize, owner: NodeId, reaches: &[Reach]) -> bool {
        let Some(group) = self.map.groups.get(group) else { return false };
        let heard = |node: NodeId| reaches.iter().any(|(n, _)| *n == node);
        let could = |(from, not): &Reach| {
            let with = |m: &MapMember| m.node == *from || heard(m.node) && !not.contains(m.node);
            is_commit_set(&group.members, self.map.commit.into(), true, with)
        };
        let of = |node: NodeId| reaches.iter().find(|(n, _)| *n == node);
        of(owner).is_some_and(|own| !could(own))
            && group.members.iter().filter(|m| m.node != owner).filter_map(|m| of(m.node)).any(could)
    }
}
