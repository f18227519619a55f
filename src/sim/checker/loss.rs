//! When a reply that a client has may be lost: only if those who held it died at once.

use super::{Checker, Life, is_commit_set};
use crate::proto::map::{ClusterMap, MapMember, NodeState};
use crate::types::Slot;

impl Checker {
    /// Somebody has died, or is agreed to be gone: wherever that leaves no commit set of some member set that is still
    /// needed, what it held may be lost.
    pub(super) fn look_for_losses(&mut self) {
        let Some(map) = self.agreed.last().cloned() else { return };
        for slot in 0..self.slots.len() {
            let group = map.group(Slot(slot as u16));
            let dead = |m: &&MapMember| self.is_gone(&map, (m.node, m.boot));
            let broken = group.configurations().any(|set| is_commit_set(set, map.commit.into(), dead));
            self.slots[slot].set_broken(broken);
        }
    }

    fn is_gone(&self, map: &ClusterMap, (node, boot): Life) -> bool {
        let over = map.node(node).is_none_or(|n| n.boot != boot || n.state == NodeState::Gone);
        over || self.dead.contains(&(node, boot))
    }
}
