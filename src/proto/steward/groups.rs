//! Who is a member of what. A group's home are the nodes that should hold it: drawn by rendezvous hashing (Thaler and
//! Ravishankar, 1998), so that a node's arrival or death moves only what it must, and spread over hosts.

use super::{Change, Draft, NodeReport, Steward};
use crate::proto::map::{Group, MAX_MEMBERS, MAX_PAST, MapAddress, MapMember, MapNode, NodeState};
use crate::types::{Nanos, NodeId, NodeSet};
use xxhash_rust::xxh3::xxh3_64;

/// Groups that a node which has plenty to learn begins with, where nothing is short.
const MOVES_AT_A_TIME: usize = 8;

/// How long groups that have settled wait for others that have not: every map costs every node some work.
const SETTLE_WITHIN: Nanos = Nanos::from_millis(10);

fn score(group: usize, node: NodeId) -> u64 {
    xxh3_64(&[group.to_le_bytes(), (usize::from(node.0)).to_le_bytes()].concat())
}

/// The nodes that should hold `group`, the one that should be master first. Where every node holds everything, the
/// masterships go around exactly.
pub(super) fn home(nodes: &[&MapNode], group: usize, replicas: usize) -> Vec<NodeId> {
    let count = nodes.len();
    if count <= replicas {
        let step = if count > 0 && !(group / count).is_multiple_of(2) { count - 1 } else { 1 };
        return (0..count).map(|n| nodes[(group + n * step) % count].id).collect();
    }
    let mut ranked: Vec<&MapNode> = nodes.to_vec();
    ranked.sort_by_key(|n| std::cmp::Reverse((score(group, n.id), n.id)));
    let mut picked: Vec<&MapNode> = Vec::new();
    for new_hosts in [true, false] {
        for node in &ranked {
            let new = picked.iter().all(|p| p.host != node.host);
            if picked.len() < replicas && picked.iter().all(|p| p.id != node.id) && new == new_hosts {
                picked.push(node);
            }
        }
    }
    picked.iter().map(|n| n.id).collect()
}

impl Steward {
    /// Brings every group nearer to what it should be.
    pub(super) fn groups(&mut self, draft: &mut Draft<'_>) {
        self.confirm(draft);
        self.drop_the_lost(draft);
        self.promote(draft);
        self.bring_in(draft);
    }

    /// Past member sets that every owner has done with are forgotten: all at once, if they follow each other soon.
    fn confirm(&mut self, draft: &mut Draft<'_>) {
        let (done, open): (Vec<usize>, Vec<usize>) = (0..draft.next.groups.len())
            .filter(|group| !draft.next.groups[*group].past.is_empty())
            .partition(|group| {
                draft.map.addresses.iter().all(|address| {
                    draft.map.is_live(address.owner, address.boot)
                        && draft.report(address.owner).is_some_and(|r| r.confirmed.contains(*group))
                })
            });
        let since = (!done.is_empty()).then(|| self.settled_since.unwrap_or(draft.now));
        self.settled_since = since;
        let waited = since.is_some_and(|since| draft.now.since(since) >= SETTLE_WITHIN);
        if done.is_empty() || !open.is_empty() && !waited {
            return;
        }
        self.settled_since = None;
        done.iter().for_each(|group| draft.next.groups[*group].past.clear());
        draft.changes.push(Change::Confirmed(done.len()));
    }

    /// Takes members out that hold nothing any more, or that the others cannot wait for.
    fn drop_the_lost(&mut self, draft: &mut Draft<'_>) {
        let mut dropped: Vec<(NodeId, usize, &'static str)> = Vec::new();
        let (mut anew, mut recalled) = (0, 0);
        for at in 0..draft.next.groups.len() {
            let blocked = owners(draft).any(|r| r.blocked.contains(at));
            let since = &mut self.blocked_since[at];
            *since = blocked.then(|| since.unwrap_or(draft.now));
            let long = since.is_some_and(|since| draft.now.since(since) >= self.config.evict_after);
            let group = &draft.next.groups[at];
            let learners: Vec<MapMember> =
                group.learners.iter().copied().filter(|m| draft.next.is_live(m.node, m.boot)).collect();
            let mut members = group.members.clone();
            // The one the others need least first: what is left must never be nothing, nor, unless its life is over, only
            // members that have lost some slot themselves, because that may be one of which it holds everything.
            for member in group.members.iter().rev() {
                let Some(why) = why_dropped(draft, at, member, blocked, long) else { continue };
                let dead = !draft.next.is_live(member.node, member.boot);
                let there = |m: &MapMember| draft.next.is_live(m.node, m.boot) && draft.is_present(m.node);
                let useful = |m: &MapMember| there(m) && (dead || !is_given_up(draft, at, m.node));
                let left = members.iter().any(|m| m.node != member.node && useful(m));
                if left && group.past.len() < MAX_PAST {
                    members.retain(|m| m.node != member.node);
                    match dropped.iter_mut().find(|(node, _, _)| *node == member.node) {
                        Some((_, count, _)) => *count += 1,
                        None => dropped.push((member.node, 1, why)),
                    }
                }
            }
            let all_dead = members.iter().all(|m| !draft.next.is_live(m.node, m.boot));
            let orphaned = owners(draft).any(|r| r.orphaned.contains(at));
            if all_dead || orphaned {
                let room = group.past.len() < MAX_PAST;
                let earlier = left_members(draft, at);
                if !earlier.is_empty() && room {
                    // Logs survive by slot: whoever lives stays for the sake of those that it holds.
                    members.retain(|m| {
                        draft.next.is_live(m.node, m.boot) && earlier.iter().all(|e| e.node != m.node)
                    });
                    members.splice(0..0, earlier);
                    members.truncate(MAX_MEMBERS);
                    if all_dead { anew += 1 } else { recalled += 1 }
                } else if may_come_back(draft, at, self.config.evict_after) {
                    // Better late than from too little.
                } else if all_dead && room && self.config.lossy_go {
                    let fresh = self.fresh_members(draft, at);
                    anew += usize::from(!fresh.is_empty());
                    members = if fresh.is_empty() { members } else { fresh };
                } else if !all_dead {
                    // Under the next term the best that is left wins, and who has nothing to tell begins with the first
                    // entry.
                    recalled += 1;
                }
            }
            let group = &mut draft.next.groups[at];
            if members != group.members {
                succeed(group, members);
            }
            group.learners = learners;
            let Group { members, learners, .. } = group;
            learners.retain(|l| members.iter().all(|m| m.node != l.node));
        }
        draft.changes.extend(dropped.into_iter().map(|(node, count, why)| Change::Dropped(node, count, why)));
        if anew + recalled > 0 {
            // Owners that live know logs that nobody holds: all of them look again.
            draft.next.addresses.iter_mut().for_each(|address| address.term.0 += 1);
        }
        if recalled > 0 {
            draft.changes.push(Change::Recalled(recalled));
        }
        if anew > 0 {
            draft.next.lossy += 1;
            draft.changes.push(Change::Lossy(anew));
        }
    }

    /// Members for a group that nobody holds any more.
    fn fresh_members(&self, draft: &Draft<'_>, at: usize) -> Vec<MapMember> {
        let nodes: Vec<&MapNode> = draft.next.nodes.iter().filter(|n| draft.is_usable(n.id)).collect();
        let home = home(&nodes, at, draft.next.replicas.into());
        home.iter().filter_map(|id| member(draft, *id)).collect()
    }

    /// Learners that hold everything become members; who is one too many by then goes.
    fn promote(&self, draft: &mut Draft<'_>) {
        let mut promoted: Vec<(NodeId, usize)> = Vec::new();
        for at in 0..draft.next.groups.len() {
            let group = &draft.next.groups[at];
            let ready = |m: &&MapMember| {
                draft.map.groups[at].learners.contains(m)
                    && draft.is_present(m.node)
                    && draft.report(m.node).is_some_and(|r| r.synced.contains(at))
            };
            let ready: Vec<MapMember> = group.learners.iter().filter(ready).copied().collect();
            if ready.is_empty() || group.past.len() >= MAX_PAST {
                continue;
            }
            let mut members = group.members.clone();
            members.extend(&ready);
            let home = self.home_of(draft, at);
            let replicas = usize::from(draft.next.replicas);
            while members.len() > replicas {
                // A life that is over, or leaves, goes before one that is there, wherever the group belongs.
                let at = members.iter().position(|m| !draft.stays(m));
                let Some(at) = at.or(members.iter().position(|m| !home.contains(&m.node))) else { break };
                members.remove(at);
            }
            members.sort_by_key(|m| home.iter().position(|n| *n == m.node).unwrap_or(usize::MAX));
            members.truncate(MAX_MEMBERS);
            let group = &mut draft.next.groups[at];
            group.learners.retain(|l| ready.iter().all(|r| r.node != l.node));
            succeed(group, members);
            ready.iter().for_each(|m| note(&mut promoted, m.node));
        }
        draft.changes.extend(promoted.into_iter().map(|(node, count)| Change::Promoted(node, count)));
    }

    /// The nodes that should hold a group, of those that live.
    fn home_of(&self, draft: &Draft<'_>, at: usize) -> Vec<NodeId> {
        let live = |n: &&MapNode| n.state == NodeState::Live && !n.witness;
        let nodes: Vec<&MapNode> = draft.next.nodes.iter().filter(live).collect();
        home(&nodes, at, draft.next.replicas.into())
    }

    /// Groups that are short get learners: at once the nodes that belong there, others after EVICT_AFTER. Where nothing
    /// is short, nodes that belong to a group and are not in it begin to learn a few.
    fn bring_in(&mut self, draft: &mut Draft<'_>) {
        let mut learns: Vec<(NodeId, usize)> = Vec::new();
        let replicas = usize::from(draft.next.replicas);
        let mut quiet = true;
        let mut drained: Vec<(NodeId, usize)> = Vec::new();
        let mut surplus: Vec<(NodeId, usize)> = Vec::new();
        for at in 0..draft.next.groups.len() {
            let group = &draft.next.groups[at];
            let staying = group.members.iter().filter(|m| draft.stays(m)).count();
            let have = staying + group.learners.len();
            quiet &= group.learners.is_empty() && group.past.is_empty();
            let since = &mut self.short_since[at];
            if have >= replicas {
                *since = None;
                self.let_go_of_draining(draft, at, &mut drained);
                quiet &= !self.let_go_of_surplus(draft, at, &mut surplus);
                continue;
            }
            quiet = false;
            let long = draft.now.since(*since.get_or_insert(draft.now)) >= self.config.evict_after;
            let leaving = staying < group.members.len();
            let known: Vec<&MapNode> =
                draft.next.nodes.iter().filter(|n| n.boot.0 > 0 && !n.witness).collect();
            let belongs = home(&known, at, replicas);
            let usable: Vec<&MapNode> = draft.next.nodes.iter().filter(|n| draft.is_usable(n.id)).collect();
            let candidates = home(&usable, at, usable.len());
            // One that was a member must not forget what may still be needed.
            let needed = |n: NodeId| {
                let same = |m: &MapMember| m.node == n && draft.next.is_live(n, m.boot);
                group.past.iter().flatten().any(same)
            };
            let candidate = |n: &NodeId| {
                group.member(*n).is_none()
                    && group.learner(*n).is_none()
                    && !needed(*n)
                    && (long || leaving || belongs.contains(n))
            };
            // Homes first, and a new host before one that is there already.
            let host = |n: NodeId| draft.next.node(n).map(|node| node.host);
            let new_host = |n: &NodeId| group.members.iter().all(|m| Some(m.host) != host(*n));
            let mut fit: Vec<NodeId> = candidates.into_iter().filter(candidate).collect();
            fit.sort_by_key(|n| (!new_host(n), !belongs.contains(n)));
            let picked: Vec<MapMember> =
                fit.iter().take(replicas - have).filter_map(|n| member(draft, *n)).collect();
            if picked.is_empty() {
                self.let_go_of_draining(draft, at, &mut drained);
                continue;
            }
            for learner in picked {
                draft.next.groups[at].learners.push(learner);
                note(&mut learns, learner.node);
            }
        }
        if quiet {
            self.grow(draft, &mut learns);
        }
        draft.changes.extend(learns.into_iter().map(|(node, count)| Change::Learns(node, count)));
        for (gone, why) in [(drained, "it drains"), (surplus, "there are enough others")] {
            draft.changes.extend(gone.into_iter().map(|(node, count)| Change::Dropped(node, count, why)));
        }
    }

    /// A group that has settled with more members than it should have, because it was recovered with earlier ones, keeps
    /// those that belong there. Whether it had.
    fn let_go_of_surplus(
        &self,
        draft: &mut Draft<'_>,
        at: usize,
        dropped: &mut Vec<(NodeId, usize)>,
    ) -> bool {
        let group = &draft.next.groups[at];
        let settled = group.past.is_empty() && group.learners.is_empty();
        let whole = |m: &MapMember| draft.stays(m) && !is_given_up(draft, at, m.node);
        let replicas = usize::from(draft.next.replicas);
        if !settled || group.members.len() <= replicas || !group.members.iter().all(whole) {
            return false;
        }
        let home = self.home_of(draft, at);
        let mut members = group.members.clone();
        while members.len() > replicas
            && let Some(surplus) = members.iter().rposition(|m| !home.contains(&m.node))
        {
            note(dropped, members.remove(surplus).node);
        }
        members.sort_by_key(|m| home.iter().position(|n| *n == m.node).unwrap_or(usize::MAX));
        succeed(&mut draft.next.groups[at], members);
        true
    }

    /// Members that drain leave a group once it has what it can have without them.
    fn let_go_of_draining(&self, draft: &mut Draft<'_>, at: usize, drained: &mut Vec<(NodeId, usize)>) {
        let draining = |m: &MapMember| {
            draft.next.node(m.node).is_some_and(|n| n.boot == m.boot && n.state == NodeState::Draining)
        };
        let group = &draft.next.groups[at];
        let (leave, stay): (Vec<MapMember>, Vec<MapMember>) =
            group.members.iter().copied().partition(draining);
        let owner = |m: &MapMember| draft.next.addresses.iter().any(|a| a.owner == m.node);
        let whole = |m: &MapMember| draft.is_present(m.node) && !is_given_up(draft, at, m.node);
        let held = stay.iter().any(whole) && group.learners.is_empty();
        if leave.is_empty() || !held || group.past.len() >= MAX_PAST || leave.iter().any(owner) {
            return;
        }
        leave.iter().for_each(|m| note(drained, m.node));
        succeed(&mut draft.next.groups[at], stay);
    }

    /// Everything is complete: a few groups move toward their homes.
    fn grow(&self, draft: &mut Draft<'_>, learns: &mut Vec<(NodeId, usize)>) {
        let mut left = MOVES_AT_A_TIME;
        for at in 0..draft.next.groups.len() {
            let home = self.home_of(draft, at);
            let group = &draft.next.groups[at];
            let missing = home.into_iter().find(|n| group.member(*n).is_none() && draft.is_usable(*n));
            let Some(learner) = missing.and_then(|n| member(draft, n)).filter(|_| left > 0) else { continue };
            draft.next.groups[at].learners.push(learner);
            note(learns, learner.node);
            left -= 1;
        }
    }
}

/// Members of earlier sets that live and are there, each as it was when it was one: they still hold what they had then.
fn left_members(draft: &Draft<'_>, at: usize) -> Vec<MapMember> {
    let mut left: Vec<MapMember> = Vec::new();
    for member in draft.next.groups[at].past.iter().rev().flatten() {
        let whole = draft.next.is_live(member.node, member.boot) && draft.is_present(member.node);
        if whole && !is_given_up(draft, at, member.node) && left.iter().all(|m| m.node != member.node) {
            left.push(*member);
        }
    }
    left
}

/// Whether a member of this set or an earlier one lives, though it has not been heard for a while: what it holds would
/// outlive what others began without it, in some slots and not in others. That must not take longer than `patience`.
fn may_come_back(draft: &Draft<'_>, at: usize, patience: Nanos) -> bool {
    let group = &draft.next.groups[at];
    let quiet = |m: &MapMember| {
        let view = draft.view(m.node).filter(|view| !view.present && view.silent_for < patience);
        view.is_some() && draft.next.is_live(m.node, m.boot)
    };
    group.members.iter().chain(group.past.iter().flatten()).any(quiet)
}

/// The group has these members from now on; those before them are sealed too until they are confirmed out of use.
fn succeed(group: &mut Group, members: Vec<MapMember>) {
    group.past.push(std::mem::replace(&mut group.members, members));
}

fn note(counts: &mut Vec<(NodeId, usize)>, node: NodeId) {
    match counts.iter_mut().find(|(known, _)| *known == node) {
        Some((_, count)) => *count += 1,
        None => counts.push((node, 1)),
    }
}

/// `id` as a member that joins with the map being drafted.
fn member(draft: &Draft<'_>, id: NodeId) -> Option<MapMember> {
    let node = draft.next.node(id)?;
    Some(MapMember { node: id, host: node.host, boot: node.boot, join: draft.next.version })
}

/// What owners say of the present map; not those that it is taken from now: their heirs will see for themselves.
fn owners<'a>(draft: &'a Draft<'_>) -> impl Iterator<Item = &'a NodeReport> {
    let stay = |a: &&MapAddress| draft.next.addresses.iter().any(|n| (n.owner, n.boot) == (a.owner, a.boot));
    draft.map.addresses.iter().filter(stay).filter_map(|a| draft.report(a.owner))
}

/// Whether an owner says that a member of a group does not hold what it should.
fn is_given_up(draft: &Draft<'_>, at: usize, node: NodeId) -> bool {
    owners(draft).any(|r| r.lost.iter().any(|(n, groups)| *n == node && groups.contains(at)))
}

/// Why a member has to go, if it has.
fn why_dropped(
    draft: &Draft<'_>,
    at: usize,
    member: &MapMember,
    blocked: bool,
    long: bool,
) -> Option<&'static str> {
    if !draft.next.is_live(member.node, member.boot) {
        return Some("its life has ended");
    }
    if is_given_up(draft, at, member.node) {
        return Some("its owner has given it up");
    }
    let view = draft.view(member.node)?;
    let silent = view.silent_votes >= draft.majority;
    if blocked && silent {
        return Some("nobody can commit without it, and it is silent");
    }
    // Only if it is the only one: else the owner is the one that is cut off, and its address moves.
    let unreached = |r: &NodeReport| {
        let members = draft.next.groups[at].members.iter();
        members.filter(|m| NodeSet::contains(r.unreachable, m.node)).count()
    };
    let cut = |r: &NodeReport| NodeSet::contains(r.unreachable, member.node) && unreached(r) == 1;
    if blocked && long && owners(draft).any(cut) {
        return Some("its owner has not reached it for TANDEM_EVICT_AFTER");
    }
    None
}
