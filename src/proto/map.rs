//! The cluster map: nodes and their lives, owner and term of each service address, members of each slot.
//!
//! The voters agree on a sequence of maps, each made from the one before; every node applies them in order. Slots are
//! placed by **group** (a group is a member set that many slots share, as in copysets), so that a map is a few
//! kilobytes however many slots and calls there are.
//!
//! A group remembers its **past** member sets until every owner has confirmed that all it recovered or released is
//! held by a commit set of the present one: a new owner has to seal all of them.

use crate::types::{Boot, HostId, LocalId, NodeId, Slot, Term};
use serde::{Deserialize, Serialize};

/// The most groups a map has: one bit each in a [`GroupSet`].
pub const MAX_GROUPS: usize = 64;
/// The most past member sets a group may have; until some are confirmed it is not changed again.
pub const MAX_PAST: usize = 6;
/// The most members and learners a group may have.
pub const MAX_MEMBERS: usize = 8;

/// A set of groups, one bit each.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Hash, Serialize, Deserialize)]
pub struct GroupSet(pub u64);

impl GroupSet {
    /// Every group there can be.
    pub const ALL: GroupSet = GroupSet(u64::MAX);

    /// Whether group `index` is in the set.
    pub fn contains(self, index: usize) -> bool {
        index < MAX_GROUPS && self.0 >> index & 1 == 1
    }

    /// Adds group `index`.
    pub fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    /// Takes group `index` out.
    pub fn remove(&mut self, index: usize) {
        self.0 &= !(1 << index);
    }

    /// The groups in the set, lowest first.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_GROUPS).filter(move |group| self.contains(*group))
    }
}

/// What a node is to the cluster.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NodeState {
    /// It has never joined, or the life in the map has ended.
    Gone,
    /// Its life in the map counts.
    Live,
    /// It hands over what it has and then leaves.
    Draining,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapNode {
    /// Its id.
    pub id: NodeId,
    /// The physical machine it runs on.
    pub host: HostId,
    /// Its newest life that the cluster has agreed on; zero before the first.
    pub boot: Boot,
    /// What it is in that life.
    pub state: NodeState,
    /// Voter only: it holds no slots and no service address.
    pub witness: bool,
    /// For a voter, what its vote file was born with; a voter that says otherwise has lost its disk. Zero: no voter.
    pub birth: u64,
}

impl MapNode {
    /// A node of which the cluster has agreed on no life yet.
    pub fn new(id: NodeId, host: HostId) -> MapNode {
        MapNode { id, host, boot: Boot(0), state: NodeState::Gone, witness: false, birth: 0 }
    }
}

/// A member of a group: the identity that acks are counted for.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapMember {
    /// The node.
    pub node: NodeId,
    /// Its host.
    pub host: HostId,
    /// Its life.
    pub boot: Boot,
    /// The map version that made it a learner of the group, or a member at once.
    pub join: u32,
}

/// Slots that share their members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The members, the one that should be master first.
    pub members: Vec<MapMember>,
    /// Nodes that catch up on the group's slots and count for nothing yet.
    pub learners: Vec<MapMember>,
    /// Earlier member sets that have not been confirmed out of use, oldest first.
    pub past: Vec<Vec<MapMember>>,
}

/// A service address: who holds it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapAddress {
    /// The node that sequences its slots.
    pub owner: NodeId,
    /// Its life.
    pub boot: Boot,
    /// Grows by one with each change of owner.
    pub term: Term,
}

/// A versioned cluster map. Version 0 is no map: nobody owns anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Grows by one with every change.
    pub version: u32,
    /// How many slots there are.
    pub slots: u16,
    /// How many shards every node has.
    pub shards: u16,
    /// Members a slot should have.
    pub replicas: u8,
    /// Members that must ack an entry before its replies are released; never more than a group's members.
    pub commit: u8,
    /// The level of the applications that every node supports; raised only when all do.
    pub app_level: u16,
    /// Failovers in which no complete commit set was left, so far.
    pub lossy: u32,
    /// The nodes, by ascending id.
    pub nodes: Vec<MapNode>,
    /// The service addresses; slot mod their number picks a slot's.
    pub addresses: Vec<MapAddress>,
    /// Which service address each service endpoint belongs to.
    pub endpoints: Vec<u16>,
    /// The groups; see [`ClusterMap::group_of`].
    pub groups: Vec<Group>,
}

/// A cluster map that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The owner is not a node.
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

/// What all maps of a cluster have in common: its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// How many slots there are.
    pub slots: u16,
    /// How many shards every node has.
    pub shards: u16,
    /// Members a slot should have.
    pub replicas: u8,
    /// Members that must ack an entry.
    pub commit: u8,
    /// Which service address each service endpoint belongs to: addresses are numbered without gaps.
    pub endpoints: Vec<u16>,
    /// The node that should hold the service addresses at first.
    pub owner: NodeId,
    /// Every node that may ever join, by ascending id; lives and births are filled in by the agreed maps.
    pub nodes: Vec<MapNode>,
}

impl MapShape {
    /// Checks what the settings say. `commit` 0 means a majority of the members a slot can have.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn new(
        (slots, shards): (u16, u16),
        mut nodes: Vec<MapNode>,
        owner: NodeId,
        endpoints: Vec<u16>,
        replicas: usize,
        commit: usize,
    ) -> Result<MapShape, MapError> {
        nodes.sort_by_key(|n| n.id);
        let hosts_slots = || nodes.iter().filter(|n| !n.witness);
        if !hosts_slots().any(|n| n.id == owner) {
            return Err(MapError::UnknownOwner(owner.0));
        }
        let commit_most = replicas.clamp(1, MAX_MEMBERS);
        let replicas = replicas.clamp(1, hosts_slots().count());
        let majority = replicas / 2 + 1;
        let commit = if commit == 0 { majority } else { commit };
        if commit > commit_most {
            return Err(MapError::CommitTooHigh { commit, replicas: commit_most });
        }
        let (replicas, commit) = (replicas as u8, commit.min(replicas) as u8);
        Ok(MapShape { slots, shards: shards.max(1), replicas, commit, endpoints, owner, nodes })
    }

    /// How many service addresses there are.
    pub fn addresses(&self) -> usize {
        self.endpoints.iter().map(|a| usize::from(*a) + 1).max().unwrap_or(1)
    }

    /// How many groups the slots are placed by.
    pub fn groups(&self) -> usize {
        usize::from(self.slots / self.shards).clamp(1, MAX_GROUPS)
    }

    /// Version 1 of a cluster in which every node lives, in the life that `boot` says: what the voters would agree on
    /// first. Each group's members follow one another around the ring of nodes, every other round backwards, so that
    /// a node's masterships fall to both its neighbours; on two hosts whenever there are two.
    pub fn first_map(&self, boot: impl Fn(NodeId) -> Boot) -> ClusterMap {
        let mut map = self.empty_map();
        map.version = 1;
        for node in &mut map.nodes {
            (node.boot, node.state) = (boot(node.id), NodeState::Live);
        }
        let holders: Vec<&MapNode> = self.nodes.iter().filter(|n| !n.witness).collect();
        let count = holders.len();
        for (turn, group) in map.groups.iter_mut().enumerate() {
            let step = if (turn / count).is_multiple_of(2) { 1 } else { count - 1 };
            let ring = (0..count).map(|n| holders[(turn + n * step) % count]);
            let mut picked: Vec<&MapNode> = ring.clone().take(self.replicas.into()).collect();
            let other = ring.clone().find(|n| n.host != picked[0].host);
            if let Some(other) =
                other.filter(|_| picked.len() > 1 && picked.iter().all(|n| n.host == picked[0].host))
            {
                picked.pop();
                picked.push(other);
            }
            let member = |n: &&MapNode| MapMember { node: n.id, host: n.host, boot: boot(n.id), join: 1 };
            group.members = picked.iter().map(member).collect();
        }
        let first = holders.iter().position(|n| n.id == self.owner).unwrap_or(0);
        for (turn, address) in map.addresses.iter_mut().enumerate() {
            let owner = holders[(first + turn) % count].id;
            *address = MapAddress { owner, boot: boot(owner), term: Term(1) };
        }
        map
    }

    /// Version 0: nobody has joined.
    pub fn empty_map(&self) -> ClusterMap {
        let nobody = MapAddress { owner: NodeId(0), boot: Boot(0), term: Term(0) };
        ClusterMap {
            version: 0,
            slots: self.slots,
            shards: self.shards,
            replicas: self.replicas,
            commit: self.commit,
            app_level: 1,
            lossy: 0,
            nodes: self.nodes.clone(),
            addresses: vec![nobody; self.addresses()],
            endpoints: self.endpoints.clone(),
            groups: vec![Group::default(); self.groups()],
        }
    }
}

impl Group {
    /// Every member set a new owner has to seal: the present one, then the past ones.
    pub fn configurations(&self) -> impl Iterator<Item = &[MapMember]> {
        std::iter::once(self.members.as_slice()).chain(self.past.iter().map(Vec::as_slice))
    }

    /// The member that is `node`.
    pub fn member(&self, node: NodeId) -> Option<&MapMember> {
        self.members.iter().find(|m| m.node == node)
    }

    /// The learner that is `node`.
    pub fn learner(&self, node: NodeId) -> Option<&MapMember> {
        self.learners.iter().find(|m| m.node == node)
    }
}

/// Whether `some`, out of the member set `all`, are enough on enough hosts: `commit` of them (all, if there are not so
/// many), on two hosts whenever `all` are. `spanning`: whether hosts count.
pub fn is_commit_set(
    all: &[MapMember],
    commit: usize,
    spanning: bool,
    some: impl Fn(&MapMember) -> bool,
) -> bool {
    let mut picked = all.iter().filter(|m| some(m));
    let Some(first) = picked.clone().next() else { return false };
    let spans = all.iter().all(|m| m.host == all[0].host) || picked.any(|m| m.host != first.host);
    (spans || !spanning) && all.iter().filter(|m| some(m)).count() >= commit.min(all.len())
}

impl ClusterMap {
    /// The number of the service address that carries `slot`.
    pub fn address_of(&self, slot: Slot) -> usize {
        usize::from(slot.0) % self.addresses.len()
    }

    /// The service address that carries `slot`.
    pub fn owner(&self, slot: Slot) -> &MapAddress {
        &self.addresses[self.address_of(slot)]
    }

    /// The group of `slot`: every shard has slots of every group.
    pub fn group_of(&self, slot: Slot) -> usize {
        usize::from(slot.0 / self.shards) % self.groups.len()
    }

    /// The group of `slot`.
    pub fn group(&self, slot: Slot) -> &Group {
        &self.groups[self.group_of(slot)]
    }

    /// The node, if the map has it.
    pub fn node(&self, id: NodeId) -> Option<&MapNode> {
        self.nodes.iter().find(|n| n.id == id)
    }

    /// Whether `node` counts in this life of it.
    pub fn is_live(&self, node: NodeId, boot: Boot) -> bool {
        self.node(node).is_some_and(|n| n.boot == boot && n.state != NodeState::Gone)
    }

    /// Whether `node`, in this life, holds service address `address`.
    pub fn owns(&self, address: usize, node: NodeId, boot: Boot) -> bool {
        self.addresses.get(address).is_some_and(|a| a.owner == node && a.boot == boot)
    }

    /// The service endpoint `local` exists.
    pub fn has_endpoint(&self, local: LocalId) -> bool {
        usize::from(local.endpoint) < self.endpoints.len()
    }

    /// Whether the map can be used with this shape without an index out of range: checked for maps of other nodes.
    pub fn fits(&self, shape: &MapShape) -> bool {
        // Not the shape's nodes: a cluster grows by some that this node has not been told of.
        let known = |m: &MapMember| self.node(m.node).is_some();
        let ascending = self.nodes.windows(2).all(|pair| pair[0].id < pair[1].id);
        let valid = |n: &MapNode| (1..=NodeId::MAX).contains(&n.id.0);
        let group = |g: &Group| {
            g.past.len() <= MAX_PAST
                && g.configurations().chain([g.learners.as_slice()]).all(|set| {
                    set.len() <= MAX_MEMBERS
                        && set.iter().all(known)
                        && (1..set.len()).all(|i| set[..i].iter().all(|m| m.node != set[i].node))
                })
        };
        (self.slots, self.shards, self.commit) == (shape.slots, shape.shards, shape.commit)
            && self.endpoints == shape.endpoints
            && self.addresses.len() == shape.addresses()
            && self.groups.len() == shape.groups()
            && ascending
            && self.nodes.iter().all(valid)
            && self.groups.iter().all(group)
    }
}
