//! A cluster as its leader sees it: what the steward makes of deaths, returns, drains and growth.

use super::{Change, NodeReport, NodeView, Steward, StewardConfig};
use crate::proto::map::{
    ClusterMap, GroupSet, MAX_MEMBERS, MAX_PAST, MapMember, MapNode, MapShape, NodeState,
};
use crate::types::{Boot, HostId, Nanos, NodeId, NodeSet};
use proptest::prelude::*;

fn shape(hosts: &[u16], replicas: usize) -> MapShape {
    let node = |(n, host): (usize, &u16)| MapNode::new(NodeId(n as u16 + 1), HostId(*host));
    let nodes = hosts.iter().enumerate().map(node).collect();
    MapShape::new((4096, 1), nodes, NodeId(1), vec![0], replicas, 0).unwrap()
}

/// A cluster as its leader sees it: nodes do at once what the map asks of them.
struct Site {
    steward: Steward,
    now: Nanos,
    map: ClusterMap,
    views: Vec<NodeView>,
}

impl Site {
    fn new(hosts: &[u16], replicas: usize) -> Site {
        let shape = shape(hosts, replicas);
        let view = |n: &MapNode| NodeView {
            node: n.id,
            heard_boot: Some(Boot(1)),
            present: true,
            silent_votes: 0,
            promises: 0,
            silent_for: Nanos::ZERO,
            exited: None,
            draining: false,
            birth: 7,
            report: None,
        };
        let views = shape.nodes.iter().map(view).collect();
        let voters = shape.nodes.iter().map(|n| n.id).take(3).collect();
        let map = shape.empty_map();
        let config = StewardConfig { shape, voters, evict_after: Nanos::from_secs(10), lossy_go: true };
        Site { steward: Steward::new(config), now: Nanos::from_secs(1), map, views }
    }

    fn view(&mut self, node: u16) -> &mut NodeView {
        &mut self.views[usize::from(node) - 1]
    }

    /// One map; what it changed.
    fn step(&mut self) -> Option<Vec<Change>> {
        let owner = self.map.addresses[0].owner;
        for view in &mut self.views {
            let drain_done = view.draining;
            let confirmed = if view.node == owner { GroupSet::ALL } else { GroupSet::default() };
            let report = NodeReport {
                map: self.map.version,
                synced: GroupSet::ALL,
                confirmed,
                drain_done,
                ..Default::default()
            };
            view.report = view.present.then_some(report);
        }
        self.now = self.now + Nanos::from_millis(10);
        let (next, changes) = self.steward.next(self.now, &self.map, &self.views)?;
        assert_eq!(next.version, self.map.version + 1);
        for group in &next.groups {
            assert!(!group.members.is_empty() && group.members.len() <= MAX_MEMBERS);
            assert!(group.past.len() <= MAX_PAST && group.learners.len() <= MAX_MEMBERS);
        }
        self.map = next;
        Some(changes)
    }

    fn settle(&mut self) -> Vec<Change> {
        let mut all = Vec::new();
        for _ in 0..200 {
            match self.step() {
                Some(changes) => all.extend(changes),
                None => return all,
            }
        }
        panic!("no end of maps: {:?}", &all[all.len() - 10..]);
    }

    fn die(&mut self, node: u16) {
        let view = self.view(node);
        (view.present, view.silent_votes, view.promises) = (false, 2, 2);
    }

    fn assert_whole(&self, members: usize) {
        for (at, group) in self.map.groups.iter().enumerate() {
            assert_eq!(group.members.len(), members, "group {at}: {group:?}");
            assert!(group.past.is_empty() && group.learners.is_empty(), "group {at}: {group:?}");
            let hosts: std::collections::BTreeSet<_> = group.members.iter().map(|m| m.host).collect();
            let live: std::collections::BTreeSet<_> =
                self.map.nodes.iter().filter(|n| n.state == NodeState::Live).map(|n| n.host).collect();
            assert!(hosts.len() >= live.len().min(members).min(2), "group {at}: {group:?}");
        }
    }
}

#[test]
fn a_cluster_forms_when_all_are_there_or_enough_have_waited() {
    let mut site = Site::new(&[1, 2, 3, 4], 3);
    site.view(2).present = false;
    assert_eq!(site.step(), None, "a voter is missing");
    site.view(2).present = true;
    site.view(4).present = false;
    assert_eq!(site.step(), None, "node 4 may yet come");
    site.now = site.now + Nanos::from_secs(2);
    assert_eq!(site.step(), Some(vec![Change::Formed(3)]));
    site.assert_whole(3);
    assert_eq!((site.map.addresses[0].owner, site.map.addresses[0].term.0), (NodeId(1), 1));
    assert_eq!(site.map.node(NodeId(4)).unwrap().state, NodeState::Gone);
}

#[test]
fn a_cluster_forms_without_a_voter_when_two_nodes_on_two_hosts_have_waited_long() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.view(3).present = false;
    assert_eq!(site.step(), None);
    site.now = site.now + Nanos::from_secs(2);
    assert_eq!(site.step(), None, "voter 3 may yet come");
    site.view(2).present = false;
    assert_eq!(site.step(), None, "no majority");
    site.view(2).present = true;
    site.now = site.now + Nanos::from_secs(2);
    assert_eq!(site.step(), None, "the wait begins anew");
    site.now = site.now + Nanos::from_secs(3);
    assert_eq!(site.step(), Some(vec![Change::Formed(2)]));
    site.assert_whole(2);
    site.view(3).present = true;
    site.settle();
    site.assert_whole(3);
    assert_eq!(site.map.node(NodeId(3)).unwrap().birth, 7);

    let mut site = Site::new(&[1, 1, 2], 3);
    site.view(3).present = false;
    assert_eq!(site.step(), None);
    site.now = site.now + Nanos::from_secs(60);
    assert_eq!(site.step(), None, "both are on one host");
}

#[test]
fn a_node_on_its_own_gets_its_address_back_in_its_next_life() {
    let mut site = Site::new(&[1], 1);
    site.settle();
    site.view(1).heard_boot = Some(Boot(2));
    site.settle();
    site.assert_whole(1);
    let address = site.map.addresses[0];
    assert_eq!((address.owner, address.boot), (NodeId(1), Boot(2)));
    assert!(address.term > crate::types::Term(1), "{address:?}");
}

#[test]
fn an_address_goes_to_a_node_that_holds_slots_and_not_to_one_that_has_just_come_back() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.settle();
    (1..=2).for_each(|node| site.view(node).heard_boot = Some(Boot(2)));
    site.step();
    assert_eq!(site.map.addresses[0].owner, NodeId(3));
}

#[test]
fn masterships_are_even_and_a_dead_nodes_fall_to_all_the_others() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.settle();
    let masters = |map: &ClusterMap, n| map.groups.iter().filter(|g| g.members[0].node == NodeId(n)).count();
    assert!((1..=3).all(|n| masters(&site.map, n) >= 20));
    let heirs = |n| {
        let of_3 = site.map.groups.iter().filter(|g| g.members[0].node == NodeId(3));
        of_3.filter(|g| g.members[1].node == NodeId(n)).count()
    };
    assert!(heirs(1) >= 8 && heirs(2) >= 8);
}

/// Two of three die, and one of them lives anew: the other is not known to be dead before EVICT_AFTER is over. Where the
/// two were all members, the third takes the place of the life that has ended, not of itself, for ever.
#[test]
fn who_has_learned_takes_the_place_of_a_life_that_is_over() {
    let mut site = Site::new(&[1, 2, 3], 2);
    site.settle();
    let without_2 = |g: &crate::proto::map::Group| g.member(NodeId(2)).is_none();
    let groups: Vec<usize> =
        (0..site.map.groups.len()).filter(|at| without_2(&site.map.groups[*at])).collect();
    assert!(groups.len() >= 10, "{}", groups.len());
    site.die(3);
    site.view(1).heard_boot = Some(Boot(2));
    site.settle();
    for at in groups {
        let group = &site.map.groups[at];
        assert_eq!(group.members.len(), 2, "group {at}: {group:?}");
        assert!(group.members.iter().all(|m| site.map.is_live(m.node, m.boot)), "group {at}: {group:?}");
    }
}

#[test]
fn a_silent_owner_loses_its_address_by_promises_and_stays_a_member() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.settle();
    site.view(1).silent_votes = 2;
    site.view(1).present = false;
    assert_eq!(site.step(), None, "silence alone moves nothing");
    site.view(1).promises = 1;
    assert_eq!(site.step(), None, "one of three voters");
    site.view(1).promises = 2;
    let changes = site.step().unwrap();
    assert!(
        matches!(changes[..], [Change::Moved(0, NodeId(1), NodeId(2), crate::types::Term(2), _)]),
        "{changes:?}"
    );
    site.view(1).promises = 0;
    assert_eq!(site.step(), None);
    assert!(site.map.groups.iter().all(|g| g.members.len() == 3));
}

#[test]
fn an_exit_notice_ends_a_life_at_once_and_its_return_is_learned() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.settle();
    site.view(1).exited = Some(Boot(1));
    let changes = site.settle();
    assert!(changes.iter().any(|c| matches!(c, Change::Moved(0, NodeId(1), ..))), "{changes:?}");
    site.assert_whole(2);
    site.view(1).heard_boot = Some(Boot(5));
    let changes = site.settle();
    assert!(changes.contains(&Change::Joined(NodeId(1), Boot(5))), "{changes:?}");
    assert!(changes.contains(&Change::Promoted(NodeId(1), 64)), "{changes:?}");
    site.assert_whole(3);
    let joined = site.map.groups[0].member(NodeId(1)).unwrap();
    assert!(joined.join > 1 && joined.boot == Boot(5));
}

#[test]
fn of_five_only_what_must_moves_when_one_dies_and_after_a_while() {
    let mut site = Site::new(&[1, 2, 3, 4, 5], 3);
    site.settle();
    site.assert_whole(3);
    let before = site.map.clone();
    site.die(4);
    site.settle();
    assert!(before.groups == site.map.groups, "it may come back");
    site.view(4).silent_for = Nanos::from_secs(11);
    site.settle();
    site.now = site.now + Nanos::from_secs(11);
    site.settle();
    site.assert_whole(3);
    for (old, new) in before.groups.iter().zip(&site.map.groups) {
        if old.member(NodeId(4)).is_none() {
            assert_eq!(old.members, new.members);
        } else {
            assert!(old.members.iter().all(|m| m.node == NodeId(4) || new.members.contains(m)));
        }
    }
}

#[test]
fn growth_moves_a_share_to_the_newcomers() {
    let mut site = Site::new(&[1, 2, 3, 4, 5], 3);
    (site.view(4).present, site.view(5).present) = (false, false);
    (site.view(4).heard_boot, site.view(5).heard_boot) = (None, None);
    site.step();
    site.now = site.now + Nanos::from_secs(2);
    site.settle();
    site.assert_whole(3);
    for node in [4, 5] {
        site.view(node).present = true;
        site.view(node).heard_boot = Some(Boot(9));
    }
    site.settle();
    site.assert_whole(3);
    for node in 1..=5 {
        let held = site.map.groups.iter().filter(|g| g.member(NodeId(node)).is_some()).count();
        assert!((20..60).contains(&held), "node {node} holds {held} of 64 groups");
    }
}

#[test]
fn a_drain_hands_over_address_and_memberships_and_then_leaves() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.settle();
    assert_eq!(super::drain_refused(&site.map, NodeId(1)), None);
    site.view(1).draining = true;
    let changes = site.settle();
    assert_eq!(site.map.node(NodeId(1)).unwrap().state, NodeState::Gone, "{changes:?}");
    site.assert_whole(2);
    assert_eq!(site.map.addresses[0].owner, NodeId(2));
    for node in [2, 3] {
        site.view(node).draining = false;
    }
    site.die(3);
    site.view(3).exited = Some(Boot(1));
    site.settle();
    assert!(super::drain_refused(&site.map, NodeId(2)).is_some());
}

#[test]
fn groups_whose_members_have_all_died_begin_anew() {
    let mut site = Site::new(&[1, 2, 3, 4, 5], 3);
    site.settle();
    for node in [1, 2, 3] {
        site.die(node);
        site.view(node).exited = Some(Boot(1));
    }
    let changes = site.settle();
    assert!(changes.iter().any(|c| matches!(c, Change::Lossy(_))), "{changes:?}");
    assert!(site.map.lossy > 0);
    assert!(site.map.groups.iter().all(|g| g.members.iter().any(|m| m.node.0 > 3)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happens_it_comes_to_rest_whole(
        hosts in proptest::collection::vec(1u16..4, 3..6),
        steps in proptest::collection::vec((1u16..6, 0u8..5), 0..25),
    ) {
        let mut site = Site::new(&hosts, 3);
        let nodes = hosts.len() as u16;
        site.step();
        for (node, what) in steps {
            let node = (node - 1) % nodes + 1;
            let boot = site.views[usize::from(node) - 1].heard_boot.unwrap_or_default();
            match what {
                0 => site.die(node),
                1 => site.view(node).exited = Some(boot),
                2 => {
                    let view = site.view(node);
                    (view.present, view.silent_votes, view.promises) = (true, 0, 0);
                    view.heard_boot = Some(Boot(boot.0 + 1));
                }
                3 => site.view(node).silent_for = Nanos::from_secs(20),
                _ => {}
            }
            site.step();
        }
        for node in 1..=nodes {
            let view = site.view(node);
            (view.present, view.silent_votes, view.promises) = (true, 0, 0);
            view.silent_for = Nanos::ZERO;
            view.heard_boot = view.heard_boot.map(|b| Boot(b.0 + 1));
        }
        site.settle();
        site.now = site.now + Nanos::from_secs(11);
        site.settle();
        site.assert_whole(3);
        let bytes = postcard::to_stdvec(&site.map).unwrap().len();
        prop_assert!(bytes < 8_000, "{bytes} bytes");
    }
}

#[test]
fn a_node_that_the_cluster_has_grown_by_is_taken_in() {
    let mut site = Site::new(&[1, 2, 3, 4], 3);
    let newcomer = site.steward.config.shape.nodes.remove(3);
    let gone = site.views.remove(3);
    site.settle();
    assert!(site.map.version > 0 && site.map.nodes.iter().all(|n| n.id != newcomer.id));
    // The leader has started again with the longer list.
    let lists_three = site.steward.config.shape.clone();
    site.steward.config.shape.nodes.insert(3, newcomer);
    site.views.insert(3, gone);
    let changes = site.settle();
    assert!(changes.contains(&Change::Joined(NodeId(4), Boot(1))), "{changes:?}");
    assert_eq!(site.map.nodes.iter().map(|n| n.id.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(site.map.groups.iter().any(|g| g.member(NodeId(4)).is_some()));
    assert!(site.map.fits(&lists_three), "nodes that do not list it yet follow the map all the same");
    site.map.nodes.swap(0, 1);
    assert!(!site.map.fits(&lists_three));
}

#[test]
fn an_owner_that_reaches_nobody_drops_nobody_and_one_that_misses_one_member_does() {
    for (unreachable, dropped) in [(0b1100, 0), (0b1000, 64)] {
        let mut site = Site::new(&[1, 2, 3], 3);
        site.settle();
        let mut changes = Vec::new();
        for _ in 0..3 {
            site.now = site.now + Nanos::from_secs(6);
            for view in &mut site.views {
                let (map, owns) = (site.map.version, view.node == site.map.addresses[0].owner);
                let all = GroupSet::ALL;
                let report = match owns {
                    true => NodeReport {
                        map,
                        blocked: all,
                        unreachable: NodeSet(unreachable),
                        ..Default::default()
                    },
                    false => NodeReport { map, ..Default::default() },
                };
                view.report = Some(report);
            }
            if let Some((next, news)) = site.steward.next(site.now, &site.map, &site.views) {
                site.map = next;
                changes.extend(news);
            }
        }
        let count =
            changes.iter().map(|c| if let Change::Dropped(_, n, _) = c { *n } else { 0 }).sum::<usize>();
        assert_eq!(count, dropped, "{unreachable:b}: {changes:?}");
    }
}

#[test]
fn a_group_goes_back_to_earlier_members_that_still_hold_something() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.settle();
    let all = site.map.groups[0].members.clone();
    let (last, others): (Vec<_>, Vec<_>) = all.iter().copied().partition(|m| m.node == NodeId(2));
    (site.map.groups[0].members, site.map.groups[0].past) = (last, vec![all]);
    let term = site.map.addresses[0].term;
    site.die(2);
    site.view(2).exited = Some(Boot(1));
    site.views.iter_mut().for_each(|view| view.report = None);
    let (next, changes) = site.steward.next(site.now, &site.map, &site.views).unwrap();
    assert!(changes.contains(&Change::Lossy(1)), "{changes:?}");
    assert_eq!(next.groups[0].members.len(), 2, "{:?}", next.groups[0]);
    assert!(next.groups[0].members.iter().all(|m| others.contains(m)), "as they were, with what they hold");
    assert!(next.addresses[0].term > term, "its owner looks again");
}

#[test]
fn a_node_that_was_a_member_learns_nothing_while_what_it_holds_may_be_needed() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.settle();
    let all = site.map.groups[0].members.clone();
    site.map.groups[0].members.retain(|m| m.node != NodeId(3));
    site.map.groups[0].past = vec![all];
    site.views.iter_mut().for_each(|view| view.report = None);
    assert_eq!(site.steward.next(site.now, &site.map, &site.views), None, "not yet");
    let changes = site.step().unwrap();
    assert_eq!(changes, [Change::Confirmed(1), Change::Learns(NodeId(3), 1)], "but then");
}

#[test]
fn a_group_with_a_slot_that_nobody_holds_is_recovered_anew_with_whoever_is_left() {
    for (earlier, expected) in [(false, vec![2]), (true, vec![3, 2])] {
        let mut site = Site::new(&[1, 2, 3], 3);
        site.settle();
        let owner = site.map.addresses[0].owner;
        let third = *site.map.groups[0].member(NodeId(3)).unwrap();
        let second = *site.map.groups[0].member(NodeId(2)).unwrap();
        site.map.groups[0].members = vec![second];
        site.map.groups[0].past = if earlier { vec![vec![third]] } else { Vec::new() };
        let lost = vec![(NodeId(2), GroupSet(1))];
        let report =
            NodeReport { map: site.map.version, lost, orphaned: GroupSet(1), ..NodeReport::default() };
        site.views.iter_mut().for_each(|view| view.report = None);
        site.view(owner.0).report = Some(report);
        let (next, changes) = site.steward.next(site.now, &site.map, &site.views).unwrap();
        assert!(changes.contains(&Change::Recalled(1)) && next.lossy == 0, "{changes:?}");
        let members: Vec<u16> = next.groups[0].members.iter().map(|m| m.node.0).collect();
        assert_eq!(members, expected, "the second may hold other slots");
        assert_eq!(next.addresses[0].term.0, site.map.addresses[0].term.0 + 1);
    }
}

#[test]
fn members_that_have_all_lost_some_slot_are_all_kept() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.settle();
    let owner = site.map.addresses[0].owner;
    let mut lost: Vec<_> = (1..=3).map(|n| (NodeId(n), GroupSet(1))).collect();
    let report = |lost, map| Some(NodeReport { map, lost, ..NodeReport::default() });
    site.view(owner.0).report = report(lost.clone(), site.map.version);
    assert_eq!(site.steward.next(site.now, &site.map, &site.views), None);
    lost.pop();
    site.view(owner.0).report = report(lost, site.map.version);
    let (next, _) = site.steward.next(site.now, &site.map, &site.views).unwrap();
    assert_eq!(next.groups[0].members.iter().map(|m| m.node.0).collect::<Vec<_>>(), [3]);
}

#[test]
fn a_group_that_was_recovered_with_more_members_than_it_should_have_lets_the_surplus_go() {
    let mut site = Site::new(&[1, 2, 3, 4, 5], 2);
    site.settle();
    let group = &mut site.map.groups[0];
    let home: Vec<u16> = group.members.iter().map(|m| m.node.0).collect();
    let away = (1..=5).find(|n| !home.contains(n)).unwrap();
    group.members.insert(0, MapMember { node: NodeId(away), host: HostId(away), boot: Boot(1), join: 1 });
    let changes = site.settle();
    assert!(changes.contains(&Change::Dropped(NodeId(away), 1, "there are enough others")), "{changes:?}");
    site.assert_whole(2);
}

#[test]
fn what_an_owner_says_is_not_believed_of_slots_that_are_taken_from_it() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.settle();
    let owner = site.map.addresses[0].owner;
    let other = if owner == NodeId(2) { NodeId(3) } else { NodeId(2) };
    let lost = vec![(other, GroupSet::ALL)];
    let report = NodeReport { map: site.map.version, lost, ..NodeReport::default() };
    site.view(owner.0).report = Some(report);
    site.view(owner.0).promises = 2;
    let (next, changes) = site.steward.next(site.now, &site.map, &site.views).unwrap();
    assert!(matches!(changes[..], [Change::Moved(..)]), "{changes:?}");
    assert!(next.groups.iter().all(|g| g.member(other).is_some()), "its heir asks {other} anew");
}

#[test]
fn a_group_does_not_begin_anew_while_an_earlier_member_may_come_back() {
    let mut site = Site::new(&[1, 2, 3], 3);
    site.settle();
    let all = site.map.groups[0].members.clone();
    site.map.groups[0].members.retain(|m| m.node == NodeId(2));
    site.map.groups[0].past = vec![all.into_iter().filter(|m| m.node == NodeId(3)).collect()];
    site.view(3).present = false;
    let begins = |site: &mut Site| {
        site.views.iter_mut().for_each(|view| view.report = None);
        site.view(2).heard_boot = Some(Boot(2));
        let next = site.steward.next(site.now, &site.map, &site.views);
        next.is_some_and(|(_, changes)| changes.contains(&Change::Lossy(1)))
    };
    assert!(!begins(&mut site), "the third holds what the second may have lacked");
    site.view(3).exited = Some(Boot(1));
    assert!(begins(&mut site));
}
