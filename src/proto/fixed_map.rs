//! The cluster map: nodes and their hosts, the owner and term of each service address, the members of each
//! slot. Versioned, so that a newer one can replace it; this version is made once from the settings.

use crate::types::{HostId, LocalId, NodeId, Slot, Term};

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapNode {
    /// Its id.
    pub id: NodeId,
    /// The physical machine it runs on.
    pub host: HostId,
}

/// A member of a slot, with the join version that is part of its incarnation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MapMember {
    /// The node.
    pub node: NodeId,
    /// Its host.
    pub host: HostId,
    /// The map version that made it a member.
    pub join: u32,
}

/// A versioned cluster map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterMap {
    /// Grows with every change.
    pub version: u32,
    /// How many slots there are.
    pub slots: u16,
    /// The nodes, by ascending id.
    pub nodes: Vec<MapNode>,
    /// Owner and term of each service address; slot mod number of addresses picks the address.
    pub addresses: Vec<(NodeId, Term)>,
    /// Which service address each service endpoint belongs to.
    pub endpoints: Vec<u16>,
    /// Members a slot has.
    pub replicas: usize,
    /// Members that must ack an entry before its replies are released.
    pub commit: usize,
}

/// A cluster map that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// No nodes, or none that could own the address.
    #[error("node {0} is to own a service address but is not one of TANDEM_NODES")]
    UnknownOwner(u16),
    /// COMMIT is more than the members a slot has.
    #[error("TANDEM_COMMIT={commit}: a slot has {replicas} members; give 0 (a majority) to {replicas}")]
    CommitTooHigh {
        /// What was asked for.
        commit: usize,
        /// Members a slot has.
        replicas: usize,
    },
}

impl ClusterMap {
    /// A map that never changes: one service address held by `owner`, every slot on the first
    /// `replicas` nodes counted from a place that depends on the slot. `commit` 0 means a majority.
    pub fn fixed(
        slots: u16,
        mut nodes: Vec<MapNode>,
        owner: NodeId,
        endpoints: usize,
        replicas: usize,
        commit: usize,
    ) -> Result<ClusterMap, MapError> {
        nodes.sort_by_key(|n| n.id);
        if !nodes.iter().any(|n| n.id == owner) {
            return Err(MapError::UnknownOwner(owner.0));
        }
        let replicas = replicas.clamp(1, nodes.len());
        let commit = if commit == 0 { replicas / 2 + 1 } else { commit };
        if commit > replicas {
            return Err(MapError::CommitTooHigh { commit, replicas });
        }
        let endpoints = vec![0; endpoints];
        let addresses = vec![(owner, Term(1))];
        Ok(ClusterMap { version: 1, slots, nodes, addresses, endpoints, replicas, commit })
    }

    /// The owner and term of the service address that carries `slot`.
    pub fn owner(&self, slot: Slot) -> (NodeId, Term) {
        self.addresses[usize::from(slot.0) % self.addresses.len()]
    }

    /// The members of `slot`, the one that should be master first. They stand on at least two hosts
    /// whenever the nodes do.
    pub fn members(&self, slot: Slot, shards: u16) -> Vec<MapMember> {
        let count = self.nodes.len();
        let turn = usize::from(slot.0 / shards.max(1));
        // Every other round of the ring runs backwards, so that a node's masterships fall to both neighbours.
        let step = if (turn / count).is_multiple_of(2) { 1 } else { count - 1 };
        let ring = (0..count).map(|n| &self.nodes[(turn + n * step) % count]);
        let mut picked: Vec<&MapNode> = ring.clone().take(self.replicas).collect();
        let other = ring.clone().find(|n| n.host != picked[0].host);
        if let Some(other) =
            other.filter(|_| self.replicas > 1 && picked.iter().all(|n| n.host == picked[0].host))
        {
            picked.pop();
            picked.push(other);
        }
        picked.iter().map(|n| MapMember { node: n.id, host: n.host, join: 1 }).collect()
    }

    /// The host of `node`.
    pub fn host(&self, node: NodeId) -> Option<HostId> {
        self.nodes.iter().find(|n| n.id == node).map(|n| n.host)
    }

    /// The service endpoint `local` exists.
    pub fn has_endpoint(&self, local: LocalId) -> bool {
        usize::from(local.0) < self.endpoints.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(hosts: &[u16]) -> Vec<MapNode> {
        let node = |(n, host): (usize, &u16)| MapNode { id: NodeId(n as u16 + 1), host: HostId(*host) };
        hosts.iter().enumerate().map(node).collect()
    }

    #[test]
    fn masterships_are_spread_over_all_nodes_on_every_shard() {
        let map = ClusterMap::fixed(4096, nodes(&[1, 2, 3]), NodeId(1), 1, 3, 0).unwrap();
        for shards in [1, 2, 3, 8] {
            for shard in 0..shards {
                let mut of = [0; 4];
                for slot in (shard..4096).step_by(usize::from(shards)) {
                    of[usize::from(map.members(Slot(slot), shards)[0].node.0)] += 1;
                }
                assert!(of[1..].iter().all(|n| *n > 4096 / i32::from(shards) / 3 - 2), "{of:?}");
            }
        }
        assert_eq!((map.replicas, map.commit), (3, 2));
    }

    #[test]
    fn the_masterships_of_a_dead_node_fall_to_all_the_others() {
        let map = ClusterMap::fixed(4096, nodes(&[1, 2, 3]), NodeId(1), 1, 3, 0).unwrap();
        let mut heirs = [0; 4];
        for members in (0..4096).map(|slot| map.members(Slot(slot), 1)).filter(|m| m[0].node == NodeId(3)) {
            heirs[usize::from(members[1].node.0)] += 1;
        }
        assert!(heirs[1] > 600 && heirs[2] > 600, "{heirs:?}");
    }

    #[test]
    fn members_span_two_hosts_whenever_the_nodes_do() {
        for hosts in [&[1, 1, 2][..], &[1, 1, 1, 2], &[1, 2, 2, 2, 2], &[3, 3, 3, 3, 1, 1]] {
            for replicas in 2..=hosts.len().min(4) {
                let map = ClusterMap::fixed(64, nodes(hosts), NodeId(1), 1, replicas, 0).unwrap();
                for slot in 0..64 {
                    let members = map.members(Slot(slot), 1);
                    assert_eq!(members.len(), replicas);
                    assert!(members.iter().any(|m| m.host != members[0].host));
                    let ids: std::collections::BTreeSet<_> = members.iter().map(|m| m.node).collect();
                    assert_eq!(ids.len(), replicas);
                }
            }
        }
    }

    #[test]
    fn impossible_maps_are_refused() {
        let fixed = |owner, commit| ClusterMap::fixed(8, nodes(&[1, 2]), NodeId(owner), 1, 3, commit);
        assert_eq!(fixed(9, 0), Err(MapError::UnknownOwner(9)));
        assert_eq!(fixed(1, 3), Err(MapError::CommitTooHigh { commit: 3, replicas: 2 }));
        assert_eq!(fixed(1, 0).map(|m| (m.replicas, m.commit)), Ok((2, 2)));
    }
}
