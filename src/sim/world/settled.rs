//! When a cluster has formed, and when it is whole again.

use super::World;
use crate::proto::map::{ClusterMap, NodeState};
use crate::types::{NodeId, Slot};

impl World {
    /// Why the cluster has not formed yet.
    pub(super) fn unformed(&self) -> Option<String> {
        if !self.scenario.settings.live {
            return None;
        }
        let Some(map) = self.checker.newest() else { return Some("no map was agreed on".into()) };
        self.unled(map)
    }

    /// Which service address nobody answers from.
    fn unled(&self, map: &ClusterMap) -> Option<String> {
        map.addresses.iter().enumerate().find_map(|(number, address)| {
            let at = usize::from(address.owner.0).wrapping_sub(1);
            let leads = self.nodes.get(at).is_some_and(|node| {
                let follows = |l: &crate::sim::node::Loop| l.shard.map().version == map.version;
                node.alive && node.boot == address.boot && node.loops.iter().all(follows)
            });
            let heard = self.routes[number] == Some((at, address.term));
            (!leads || !heard)
                .then(|| format!("address {number} is {}'s, which does not answer from it", address.owner))
        })
    }

    /// What is still to be done until every slot has all the members it can have, and every address an owner.
    pub(super) fn unsettled(&self) -> Option<String> {
        if !self.scenario.settings.live {
            return None;
        }
        let map = self.checker.newest()?;
        if let Some(node) = self.nodes.iter().find(|node| node.alive && !self.is_current(map, node.id)) {
            return Some(format!(
                "{} does not count in its life {} with map {}",
                node.id, node.boot.0, map.version
            ));
        }
        let live = map.nodes.iter().filter(|n| n.state != NodeState::Gone);
        let dead = live.clone().find(|n| !self.nodes[usize::from(n.id.0) - 1].alive);
        if let Some(dead) = dead {
            return Some(format!("{} counts and is dead", dead.id));
        }
        let wanted = live.filter(|n| !n.witness).count().min(map.replicas.into());
        let groups = map.groups.iter().enumerate();
        let short = groups.filter(|(_, g)| {
            let lives = g.members.iter().all(|m| map.is_live(m.node, m.boot));
            g.members.len() != wanted || !g.learners.is_empty() || !g.past.is_empty() || !lives
        });
        if let Some((at, group)) = short.into_iter().next() {
            return Some(format!("group {at} should have {wanted} members and nothing else: {group:?}"));
        }
        self.unled(map)
    }

    /// Whether a node knows the newest map, and lives in it.
    fn is_current(&self, map: &ClusterMap, id: NodeId) -> bool {
        let node = &self.nodes[usize::from(id.0) - 1];
        let known = node.cells.map.as_ref().is_some_and(|known| known.version == map.version);
        let follow = node.loops.iter().all(|l| l.shard.map().version == map.version);
        let live = map.node(id).is_some_and(|n| n.boot == node.boot && n.state == NodeState::Live);
        known && follow && live
    }

    /// Whether a node is a member of a slot by the newest map.
    pub(super) fn is_member(&self, node: NodeId, slot: Slot) -> bool {
        self.checker.newest().is_some_and(|map| map.group(slot).member(node).is_some())
    }
}
