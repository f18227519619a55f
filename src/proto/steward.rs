//! The steward: what the next cluster map should be, as a function of the present one and of what the leader of the
//! voters knows. Only the leader's is asked; whatever it says is conditional on the map's version, so that of two
//! answers the first one agreed on wins.
//!
//! - this file: lives, addresses, and the order of the steps;
//! - `groups`: who is a member of what.
//!
//! A node is lost in two ways. Its **address** moves as soon as a majority of the voters has promised not to grant it
//! a lease any more (or its process has certainly ended): it stays a member, because what it holds is still good. Its
//! **memberships** end when its process has ended, when nobody can commit without it, or after EVICT_AFTER.

mod groups;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::proto::map::{ClusterMap, Group, GroupSet, MapAddress, MapMember, MapNode, MapShape, NodeState};
use crate::types::{Boot, Nanos, NodeId, NodeSet, Term};

/// How long the first map waits for nodes that are not there yet, once all voters are.
const GRACE: Nanos = Nanos::from_millis(1_500);
/// How long it waits for voters that are not there, once a majority is: they take part when they come, but a voter
/// that loses its vote file before it was ever in a map cannot be told from one that is new.
const LONG_GRACE: Nanos = Nanos::from_secs(3);

/// What the leader knows of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// The node.
    pub node: NodeId,
    /// Its newest life that has greeted with settings that agree.
    pub heard_boot: Option<Boot>,
    /// It was heard just now.
    pub present: bool,
    /// How many voters have heard nothing of it for DEAD_AFTER.
    pub silent_votes: usize,
    /// How many voters grant it no lease any more under the present map.
    pub promises: usize,
    /// For how long the leader has heard nothing of it.
    pub silent_for: Nanos,
    /// The life that its supervisor says has ended.
    pub exited: Option<Boot>,
    /// It wants to leave.
    pub draining: bool,
    /// What its vote file was born with; 0: it is no voter.
    pub birth: u64,
    /// What it says about the present map's groups.
    pub report: Option<NodeReport>,
}

impl NodeView {
    /// Whether both say the same of every node, but for how long it has been silent.
    pub fn alike(these: &[NodeView], those: &[NodeView]) -> bool {
        let same = |(a, b): (&NodeView, &NodeView)| NodeView { silent_for: b.silent_for, ..a.clone() } == *b;
        these.len() == those.len() && these.iter().zip(those).all(same)
    }
}

/// What a node says about its slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// The map version it is about.
    pub map: u32,
    /// See [`crate::proto::map::Group::learners`]: it holds these as a member would.
    pub synced: GroupSet,
    /// Of the addresses it owns: nothing depends on past members of these any more.
    pub confirmed: GroupSet,
    /// Of the addresses it owns: these wait for commits.
    pub blocked: GroupSet,
    /// Members it has given up.
    pub lost: Vec<(NodeId, GroupSet)>,
    /// Groups in which a slot has no member left that counts.
    pub orphaned: GroupSet,
    /// Whom it suspects.
    pub unreachable: NodeSet,
    /// It wants to leave and has stopped releasing.
    pub drain_done: bool,
    /// The highest level of the applications it supports.
    pub app_level: u16,
}

/// What the steward is told once.
#[derive(Clone, Debug)]
pub struct StewardConfig {
    /// What all maps have in common.
    pub shape: MapShape,
    /// The voters.
    pub voters: Vec<NodeId>,
    /// After how much silence a node's slots get another member.
    pub evict_after: Nanos,
    /// Whether slots whose members have all died begin anew.
    pub lossy_go: bool,
}

/// One thing that a new map changes, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The first map.
    Formed(usize),
    /// A node counts in this life from now on.
    Joined(NodeId, Boot),
    /// A node's life has ended, and why.
    Ended(NodeId, &'static str),
    /// A node hands over what it has.
    Drains(NodeId),
    /// A service address has another owner: address, from, to, term, why.
    Moved(usize, NodeId, NodeId, Term, &'static str),
    /// A node is no member of so many groups any more, and why.
    Dropped(NodeId, usize, &'static str),
    /// A node learns so many groups.
    Learns(NodeId, usize),
    /// A node has become a member of so many groups.
    Promoted(NodeId, usize),
    /// So many groups need their past members no more.
    Confirmed(usize),
    /// So many groups go on with what earlier members have left, or begin anew: all who held them have died.
    Lossy(usize),
    /// So many groups are recovered anew, with earlier members that are there: a slot of each has no member left that
    /// holds enough.
    Recalled(usize),
    /// Nothing but the version: voters that had promised to renew the lease of this node no more may do so again.
    Freed(NodeId),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Formed(nodes) => write!(f, "the cluster forms with {nodes} nodes"),
            Change::Joined(node, boot) => write!(f, "{node} counts (boot {})", boot.0),
            Change::Ended(node, why) => write!(f, "{node} counts no more: {why}"),
            Change::Drains(node) => write!(f, "{node} drains"),
            Change::Moved(address, from, to, term, why) => {
                write!(f, "service address {address} moves from {from} to {to}, term {}: {why}", term.0)
            }
            Change::Dropped(node, groups, why) => write!(f, "{node} is no member of {groups} groups: {why}"),
            Change::Learns(node, groups) => write!(f, "{node} learns {groups} groups"),
            Change::Promoted(node, groups) => write!(f, "{node} is a member of {groups} more groups"),
            Change::Freed(node) => write!(f, "{node} is heard again, and may have its lease from all voters"),
            Change::Recalled(groups) => {
                write!(f, "{groups} groups are recovered anew: of some slot no member holds enough")
            }
            Change::Confirmed(groups) => write!(f, "{groups} groups have settled"),
            Change::Lossy(groups) => {
                write!(f, "LOSSY: all members of {groups} groups have died, they go on with what is left")
            }
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Steward {
    config: StewardConfig,
    /// Since when all voters, and since when a majority of them, have been there, before the first map.
    complete_since: [Option<Nanos>; 2],
    /// Since when some groups have settled and others have not.
    settled_since: Option<Nanos>,
    /// Since when each group has had fewer members than it should.
    short_since: Vec<Option<Nanos>>,
    /// Since when each group has been blocked.
    blocked_since: Vec<Option<Nanos>>,
}

/// What one answer is made of.
struct Draft<'a> {
    now: Nanos,
    /// The map it began with, and the one it becomes.
    map: &'a ClusterMap,
    next: ClusterMap,
    views: &'a [NodeView],
    changes: Vec<Change>,
    majority: usize,
}

impl Draft<'_> {
    fn view(&self, node: NodeId) -> Option<&NodeView> {
        self.views.iter().find(|v| v.node == node)
    }

    fn is_present(&self, node: NodeId) -> bool {
        self.view(node).is_some_and(|v| v.present)
    }

    /// Whether a member's life counts and does not hand over what it has.
    fn stays(&self, member: &MapMember) -> bool {
        self.next.node(member.node).is_some_and(|n| n.boot == member.boot && n.state == NodeState::Live)
    }

    /// Whether a node may be given something to hold.
    fn is_usable(&self, node: NodeId) -> bool {
        let known = self.next.node(node);
        known.is_some_and(|n| n.state == NodeState::Live && !n.witness) && self.is_present(node)
    }

    /// A node's report about the map that is being replaced.
    fn report(&self, node: NodeId) -> Option<&NodeReport> {
        let boot = self.map.node(node)?.boot;
        let view = self.view(node).filter(|v| v.heard_boot == Some(boot))?;
        view.report.as_ref().filter(|report| report.map == self.map.version)
    }
}

impl Steward {
    /// A steward that has seen nothing yet.
    pub fn new(config: StewardConfig) -> Steward {
        let groups = config.shape.groups();
        Steward {
            config,
            complete_since: [None; 2],
            settled_since: None,
            short_since: vec![None; groups],
            blocked_since: vec![None; groups],
        }
    }

    /// The map that should follow `map`, and in what it differs; `None` if nothing is due.
    pub fn next(
        &mut self,
        now: Nanos,
        map: &ClusterMap,
        views: &[NodeView],
    ) -> Option<(ClusterMap, Vec<Change>)> {
        if map.version == 0 {
            return self.first(now, views);
        }
        let majority = self.config.voters.len() / 2 + 1;
        let mut next = map.clone();
        next.version += 1;
        let mut draft = Draft { now, map, next, views, changes: Vec::new(), majority };
        self.lives(&mut draft);
        self.addresses(&mut draft);
        self.groups(&mut draft);
        self.leave(&mut draft);
        let Draft { next, changes, .. } = draft;
        (!changes.is_empty()).then_some((next, changes))
    }

    /// The first map: at once when every node is there; without some nodes after a while, and without some voters
    /// after a long while, if those who are there can keep what they commit: two nodes, and two hosts.
    fn first(&mut self, now: Nanos, views: &[NodeView]) -> Option<(ClusterMap, Vec<Change>)> {
        let boot = |node: NodeId| {
            let view = views.iter().find(|v| v.node == node && v.present && !v.draining);
            view.and_then(|v| v.heard_boot)
        };
        let voters = self.config.voters.len();
        let here = self.config.voters.iter().filter(|voter| boot(**voter).is_some()).count();
        let [all_voters, most_voters] = &mut self.complete_since;
        let waited = |since: &mut Option<Nanos>, complete: bool, grace: Nanos| {
            *since = complete.then(|| since.unwrap_or(now));
            since.is_some_and(|since| now.since(since) >= grace)
        };
        let patient = waited(all_voters, here == voters, GRACE);
        let patient = waited(most_voters, here > voters / 2, LONG_GRACE) || patient;

        let shape = &self.config.shape;
        let mut here = shape.clone();
        here.nodes.retain(|n| boot(n.id).is_some());
        let all = here.nodes.len() == shape.nodes.len();
        let holders = here.nodes.iter().filter(|n| !n.witness).count();
        let hosts = |nodes: &[MapNode]| {
            let hosts: std::collections::BTreeSet<_> =
                nodes.iter().filter(|n| !n.witness).map(|n| n.host).collect();
            hosts.len()
        };
        let enough =
            holders >= usize::from(shape.replicas).min(2) && hosts(&here.nodes) >= hosts(&shape.nodes).min(2);
        if !(all || enough && patient) {
            return None;
        }
        let mut map = here.first_map(|node| boot(node).unwrap_or_default());
        let holders: Vec<&MapNode> = here.nodes.iter().filter(|n| !n.witness).collect();
        // Where there are more nodes than members, groups begin where they would move to.
        if holders.len() > usize::from(shape.replicas) {
            for (at, group) in map.groups.iter_mut().enumerate() {
                let home = groups::home(&holders, at, shape.replicas.into());
                let member = |n: &&MapNode| MapMember {
                    node: n.id,
                    host: n.host,
                    boot: boot(n.id).unwrap_or_default(),
                    join: map.version,
                };
                let at_home = |id: &NodeId| holders.iter().find(|n| n.id == *id).map(member);
                group.members = home.iter().filter_map(at_home).collect();
            }
        }
        map.nodes = shape.nodes.clone();
        for node in &mut map.nodes {
            if let Some(boot) = boot(node.id) {
                (node.boot, node.state) = (boot, NodeState::Live);
            }
            node.birth = views.iter().find(|v| v.node == node.id).map_or(0, |v| v.birth);
        }
        Some((map, vec![Change::Formed(here.nodes.len())]))
    }

    /// Whose life has ended, and who is new.
    fn lives(&self, draft: &mut Draft<'_>) {
        for view in draft.views {
            let Some(at) = self.place(&mut draft.next, view.node) else { continue };
            let node = &mut draft.next.nodes[at];
            let newer = view.heard_boot.filter(|boot| *boot > node.boot);
            let exited = view.exited.is_some_and(|boot| boot >= node.boot);
            let evicted = view.silent_votes >= draft.majority && view.silent_for >= self.config.evict_after;
            let why = match node.state {
                NodeState::Gone => None,
                _ if newer.is_some() => Some("it lives anew"),
                _ if exited => Some("its process has ended"),
                _ if evicted => Some("it has been silent for TANDEM_EVICT_AFTER"),
                _ => None,
            };
            if let Some(why) = why {
                node.state = NodeState::Gone;
                draft.changes.push(Change::Ended(view.node, why));
            }
            let over = |boot: Boot| view.exited.is_some_and(|exited| exited >= boot);
            if let Some(boot) = newer.filter(|boot| view.present && !view.draining && !over(*boot)) {
                (node.boot, node.state) = (boot, NodeState::Live);
                if node.birth == 0 {
                    node.birth = view.birth;
                }
                draft.changes.push(Change::Joined(view.node, boot));
            } else if view.draining && node.state == NodeState::Live && view.heard_boot == Some(node.boot) {
                node.state = NodeState::Draining;
                draft.changes.push(Change::Drains(view.node));
            }
        }
        let levels = draft.next.nodes.iter().filter(|n| n.state != NodeState::Gone);
        let level = levels.map(|n| draft.report(n.id).map_or(0, |r| r.app_level)).min().unwrap_or(0);
        draft.next.app_level = draft.next.app_level.max(level);
    }

    /// Where a node is in the map: one that the cluster has grown by is taken in.
    fn place(&self, map: &mut ClusterMap, node: NodeId) -> Option<usize> {
        let at = map.nodes.partition_point(|n| n.id < node);
        if map.nodes.get(at).is_none_or(|n| n.id != node) {
            let known = self.config.shape.nodes.iter().find(|n| n.id == node)?;
            map.nodes.insert(at, known.clone());
        }
        Some(at)
    }

    /// Which service addresses move.
    fn addresses(&self, draft: &mut Draft<'_>) {
        for number in 0..draft.next.addresses.len() {
            let address = draft.next.addresses[number];
            let view = draft.view(address.owner);
            let over = !draft.next.is_live(address.owner, address.boot);
            let ended = view.is_some_and(|v| {
                v.exited.is_some_and(|b| b >= address.boot) || v.heard_boot.is_some_and(|b| b > address.boot)
            });
            let promised = view.is_some_and(|v| v.promises >= draft.majority);
            let draining = draft.next.node(address.owner).is_some_and(|n| n.state == NodeState::Draining)
                && draft.report(address.owner).is_some_and(|r| r.drain_done);
            let why = match () {
                () if ended => "its owner's process has ended",
                () if promised && over => "its owner is gone",
                () if promised => "its owner is silent",
                () if draining => "its owner drains",
                () => continue,
            };
            let Some(owner) = self.heir(draft, number) else { continue };
            let Some(boot) = draft.next.node(owner).map(|n| n.boot) else { continue };
            let term = Term(address.term.0 + 1);
            draft.next.addresses[number] = MapAddress { owner, boot, term };
            draft.changes.push(Change::Moved(number, address.owner, owner, term, why));
        }
    }

    /// Who should hold an address instead of the life that owns it: on another host, because that may have died.
    fn heir(&self, draft: &Draft<'_>, number: usize) -> Option<NodeId> {
        let MapAddress { owner, boot, .. } = draft.next.addresses[number];
        let host = |node: NodeId| draft.next.node(node).map(|n| n.host);
        let suited = |node: NodeId| {
            // A later life holds nothing of what the groups name it for.
            let boot = draft.next.node(node).map(|n| n.boot);
            let is_member = |g: &&Group| g.member(node).is_some_and(|m| Some(m.boot) == boot);
            let member_of = draft.next.groups.iter().filter(is_member).count();
            let owns = draft.next.addresses.iter().filter(|a| a.owner == node).count();
            let silent = draft.view(node).map_or(0, |v| v.silent_votes);
            let elsewhere = host(node) != host(owner);
            (
                std::cmp::Reverse(silent),
                elsewhere,
                member_of,
                std::cmp::Reverse(owns),
                std::cmp::Reverse(node),
            )
        };
        let others = draft.next.nodes.iter().filter(|n| (n.id, n.boot) != (owner, boot));
        others.map(|n| n.id).filter(|n| draft.is_usable(*n)).max_by_key(|n| suited(*n))
    }

    /// A node that drains and holds nothing any more is gone.
    fn leave(&self, draft: &mut Draft<'_>) {
        for at in 0..draft.next.nodes.len() {
            let (id, state) = (draft.next.nodes[at].id, draft.next.nodes[at].state);
            let owns = draft.next.addresses.iter().any(|a| a.owner == id);
            let holds = draft.next.groups.iter().any(|g| {
                let past = g.past.iter().flatten().any(|m| m.node == id);
                past || g.member(id).is_some() || g.learner(id).is_some()
            });
            if state == NodeState::Draining && !owns && !holds {
                draft.next.nodes[at].state = NodeState::Gone;
                draft.changes.push(Change::Ended(id, "it has drained"));
            }
        }
    }
}

/// Why a node cannot be drained, if it cannot.
pub fn drain_refused(map: &ClusterMap, node: NodeId) -> Option<String> {
    let Some(known) = map.node(node).filter(|n| n.state != NodeState::Gone) else {
        return Some(format!("{node} is not a live node of the cluster"));
    };
    if known.witness {
        return None;
    }
    let others =
        map.nodes.iter().filter(|n| n.id != node && !n.witness && n.state == NodeState::Live).count();
    let alone = map.groups.iter().filter(|g| g.members.iter().all(|m| m.node == node)).count();
    if others == 0 {
        return Some(format!("{node} is the last node that can hold the service addresses"));
    }
    if alone > 0 {
        return Some(format!(
            "{node} is the only member of {alone} groups: wait until others have caught up"
        ));
    }
    None
}
