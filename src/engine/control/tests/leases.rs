//! Leases in unlucky moments: promises of too few, a voter that stands still.

use super::super::Turn;
use super::{AGREED, Control, Rig, Written, config};
use crate::proto::map::{MapNode, MapShape};
use crate::proto::voter::VoterError;
use crate::types::{Boot, HostId, Nanos, NodeId, NodeSet, Now};

fn formed() -> Rig {
    let mut rig = Rig::new([1, 2, 3].map(|node| config(node, 10, AGREED)));
    rig.run(300_000);
    assert!((1..=3).all(|node| rig.control(node).map().version == 1));
    rig
}

/// The nodes with a lease; at no time two of them.
fn watch(rig: &mut Rig, millis: u64) -> Vec<usize> {
    let mut holders = Vec::new();
    for _ in 0..millis * 2 {
        rig.run(500);
        let now = rig.now().mono;
        let holds = |n: &usize| rig.controls[n - 1].as_ref().is_some_and(|c| c.lease_until() > now);
        holders = (1..=3).filter(holds).collect();
        assert!(holders.len() <= 1, "two leases at {} us: {holders:?}", rig.micros);
    }
    holders
}

#[test]
fn a_map_saved_under_other_settings_is_refused() {
    let mut rig = formed();
    let mut again = config(2, 20, AGREED);
    again.council.stored = rig.votes[1].clone();
    assert!(Control::new(again.clone()).is_ok());
    again.council.shape.slots *= 2;
    let error = Control::new(again).map(|_| ()).expect_err("twice the slots");
    assert_eq!(error, VoterError::OtherSettings);
    assert!(error.to_string().contains("TANDEM_SLOTS"), "{error}");
    assert_eq!(watch(&mut rig, 20), [1]);
}

#[test]
fn a_voter_that_promised_in_vain_is_freed_so_that_another_may_fail() {
    let mut rig = formed();
    rig.cut = Some((1, NodeId(2)));
    assert_eq!(watch(&mut rig, 30), [1], "node 3 goes on renewing its lease");
    rig.cut = None;
    watch(&mut rig, 150);
    let map = rig.control(1).map().clone();
    assert!(map.version > 1 && map.addresses[0].term.0 == 1, "the owner stays: {map:?}");
    let version = map.version;
    watch(&mut rig, 500);
    assert_eq!(rig.control(3).map().version, version, "once is enough");
    // Without node 3 the lease needs the voter that had promised.
    rig.controls[2] = None;
    assert_eq!(watch(&mut rig, 14), [1]);
    assert_eq!(watch(&mut rig, 100), [1]);
    assert_eq!(rig.control(1).map().addresses[0].term.0, 1);
}

#[test]
fn a_lease_granted_by_a_voter_that_was_stopped_is_over_before_its_promise_counts() {
    let mut rig = formed();
    // Voter 2 reads its clock, stands still for 40 ms, and only then hears and answers the owner's newest beat.
    let before = rig.now();
    let mut stopped = rig.controls[1].take();
    rig.run(40_000);
    let mut beat = Written::default();
    let now = rig.now();
    rig.control(1).on_timeout(Now { mono: now.mono + Nanos::from_millis(1), ..now });
    rig.control(1).flush(now, &mut beat);
    let (_, bytes) = beat.0.into_iter().find(|(to, _)| *to == NodeId(2)).expect("a beat");
    let voter = stopped.as_mut().expect("node 2");
    voter.on_peer(before, NodeId(1), Boot(10), &bytes);
    voter.on_timeout(Now { mono: before.mono + Nanos::from_millis(1), ..before });
    voter.on_turn(before);
    if voter.take_votes().is_some() {
        voter.on_votes_saved();
    }
    let mut answer = Written::default();
    voter.flush(before, &mut answer);
    assert!(answer.0.iter().any(|(to, _)| *to == NodeId(1)), "it answers");
    // Its next turn: the grant is as old as can be, and counts as new.
    voter.on_timeout(now);
    voter.on_turn(now);
    voter.on_exit_notice(now, NodeId(1), Boot(9));
    let peer = voter.peers.iter().find(|peer| peer.node == NodeId(1)).expect("node 1");
    assert!(!voter.council.grant_is_over(now.mono, peer));
    let sent = now.mono;
    let ten = Nanos::from_millis(10);
    assert!(!voter.council.grant_is_over(sent + ten, peer), "the owner may release until then");
    assert!(voter.council.grant_is_over(sent + ten + Nanos::from_millis(1), peer));
}

#[test]
fn an_owner_without_a_lease_still_knows_until_when_it_held_its_address() {
    let mut rig = formed();
    assert_eq!(watch(&mut rig, 20), [1]);
    rig.alone = Some((1, true));
    rig.run(12_000);
    let (now, owner) = (rig.now().mono, rig.control(1));
    assert!(owner.lease_until() <= now && owner.lease_left() == Nanos::ZERO);
    let late = now.since(owner.held_until());
    assert!(late < Nanos::from_millis(12), "it is told how late the lease is: {late:?}");
    rig.alone = None;
    rig.run(3_000);
    let now = rig.now().mono;
    assert!(rig.control(1).lease_until() > now, "and it was only late");
}

#[test]
fn a_node_that_drains_holds_its_address_until_it_moves_and_while_it_could_have_a_lease() {
    for cut_off in [false, true] {
        let mut rig = formed();
        watch(&mut rig, 20);
        rig.settled_reports = true;
        rig.control(1).drain().unwrap();
        while rig.control(1).lease_until() > rig.now().mono {
            rig.run(100);
        }
        assert_eq!(
            rig.control(1).map().addresses[0].owner,
            NodeId(1),
            "it releases nothing, and nobody has it"
        );
        let until = rig.control(1).held_until();
        assert!(until > rig.now().mono);
        rig.alone = cut_off.then_some((1, true));
        while rig.control(2).map().addresses[0].owner == NodeId(1) {
            let now = rig.now().mono;
            assert!(cut_off || rig.control(1).held_until() > now, "others still send to it");
            rig.run(100);
        }
        rig.run(11_000);
        let now = rig.now().mono;
        assert!(rig.control(1).held_until() <= now, "another holds it: {cut_off}");
    }
}

#[test]
fn an_owner_whose_control_stands_still_while_its_shards_talk_is_replaced() {
    let mut rig = formed();
    assert_eq!(watch(&mut rig, 20), [1]);
    let stopped = rig.controls[0].take();
    for _ in 0..200 {
        let now = rig.now();
        [2, 3].into_iter().for_each(|node| rig.control(node).on_life(now, NodeId(1), Boot(10)));
        watch(&mut rig, 1);
    }
    assert_eq!(watch(&mut rig, 1), [2], "its shards ack, and release nothing");
    rig.controls[0] = stopped;
    assert_eq!(watch(&mut rig, 100), [2]);
    assert_eq!(rig.control(1).map().addresses[0].owner, NodeId(2));
}

#[test]
fn a_drain_is_done_only_when_the_lease_it_gave_up_is_over() {
    let mut rig = formed();
    watch(&mut rig, 20);
    rig.settled_reports = true;
    rig.control(1).drain().unwrap();
    let mut lease = Nanos::ZERO;
    while rig.control(2).map().addresses[0].owner == NodeId(1) {
        // A worker of node 1 may not have looked since then.
        lease = lease.max(rig.control(1).lease_until());
        rig.run(100);
    }
    assert!(rig.now().mono >= lease);
}

#[test]
fn a_leader_that_has_just_begun_takes_nobody_for_silent_since_ever() {
    let rig = formed();
    let mut again = config(1, 20, AGREED);
    again.council.stored = rig.votes[0].clone();
    let mut control = Control::new(again).expect("its own votes");
    let now = rig.now();
    control.on_turn(now);
    let later = now.mono + Nanos::from_millis(5);
    let Control { council, peers, .. } = &mut control;
    let turn = Turn { now: later, wall: now.wall, peers, silence: &[None, None], suspects: NodeSet::EMPTY };
    let silent: Vec<(u16, Nanos)> =
        council.views(&turn).iter().map(|view| (view.node.0, view.silent_for)).collect();
    let five = Nanos::from_millis(5);
    assert_eq!(silent, [(1, Nanos::ZERO), (2, five), (3, five)], "EVICT_AFTER has to pass first");
}

#[test]
fn a_node_that_drains_goes_on_when_nobody_is_left_to_go_on_for_it() {
    let mut rig = Rig::new([1, 2, 3].map(|node| {
        let mut config = config(node, 10, AGREED);
        let node = |n| MapNode { witness: n == 3, ..MapNode::new(NodeId(n), HostId(n)) };
        let nodes = (1..=3).map(node).collect();
        config.council.shape = MapShape::new((64, 1), nodes, NodeId(1), vec![0], 2, 0).unwrap();
        config
    }));
    rig.run(300_000);
    assert_eq!(watch(&mut rig, 20), [1]);
    rig.control(1).drain().unwrap();
    while rig.control(1).lease_until() > rig.now().mono {
        rig.run(100);
    }
    rig.controls[1] = None;
    let now = rig.now();
    [1, 3].into_iter().for_each(|node| rig.control(node).on_exit_notice(now, NodeId(2), Boot(10)));
    assert_eq!(watch(&mut rig, 30), [1]);
    assert_eq!(watch(&mut rig, 300), [1]);
    assert!(!rig.control(1).has_left());
}

#[test]
fn an_owner_that_is_cut_off_from_members_who_could_commit_gives_way() {
    for (unreached, gives_way) in [(0b1100_u64, true), (0b100, false)] {
        let mut rig = formed();
        let mut voter = rig.controls[1].take().expect("node 2");
        let (mut now, mut after) = (rig.now(), None);
        for ms in 0..700 {
            now.mono = now.mono + Nanos::from_millis(1);
            for (node, blocked, unreachable) in [(1, 1_u64, unreached), (3, 0, 0)] {
                voter.on_life(now, NodeId(node), Boot(10));
                let peer = voter.peers.iter_mut().find(|peer| peer.node == NodeId(node)).expect("a peer");
                let (report, _, at) = peer.delegate.report.as_mut().expect("its report");
                (report.blocked, report.unreachable) = (blocked.into(), unreachable.into());
                *at = now.mono;
            }
            voter.on_turn(now);
            let promises = voter.council.promises(now.mono, &voter.peers);
            after = after.or(promises.contains(NodeId(1)).then_some(ms));
        }
        assert_eq!(after.is_some(), gives_way, "node 1 does not reach {unreached:b}");
        assert!(after.is_none_or(|ms| (500..520).contains(&ms)), "EVICT_AFTER: {after:?} ms");
    }
}

#[test]
fn the_end_of_an_earlier_life_is_not_the_end_of_a_grant_to_a_later_one() {
    let mut rig = Rig::new([1, 2, 3].map(|node| {
        let mut config = config(node, 10, AGREED);
        let nodes = (1..=3).map(|n| MapNode::new(NodeId(n), HostId(n))).collect();
        config.council.shape = MapShape::new((64, 1), nodes, NodeId(1), vec![0, 1], 3, 0).unwrap();
        config
    }));
    rig.run(300_000);
    let now = rig.now();
    let mut map = (**rig.control(2).map()).clone();
    map.version += 1;
    map.addresses.iter_mut().zip([10, 20]).for_each(|(a, boot)| (a.owner, a.boot) = (NodeId(1), Boot(boot)));
    let voter = rig.control(2);
    let bytes = postcard::to_stdvec(&map).expect("a map");
    assert!(voter.council.on_map(now.mono, now.wall, &voter.peers, &bytes));
    voter.on_exit_notice(now, NodeId(1), Boot(10));
    let peer = voter.peers.iter_mut().find(|peer| peer.node == NodeId(1)).expect("node 1");
    peer.delegate.grant(1_000_000);
    peer.delegate.stamp(now.mono);
    assert!(!voter.council.grant_is_over(now.mono, peer));
}

#[test]
fn a_disk_that_does_not_answer_holds_up_votes_and_no_leases() {
    let mut rig = formed();
    rig.stuck_disks = true;
    let before = rig.votes.clone();
    // There is something to agree on: it is told of a life of node 3 that has ended.
    let now = rig.now();
    (1..=2).for_each(|node| rig.control(node).on_exit_notice(now, NodeId(3), Boot(10)));
    rig.controls[2] = None;
    assert_eq!(watch(&mut rig, 300), [1], "the lease is renewed all the time");
    assert_ne!(rig.votes, before, "somebody has votes to save");
    assert!((1..=2).all(|node| rig.control(node).map().version == 1), "and nobody hears of them");
    rig.stuck_disks = false;
    (1..=2).for_each(|node| rig.control(node).on_votes_saved());
    assert_eq!(watch(&mut rig, 100), [1]);
    assert!((1..=2).all(|node| rig.control(node).map().version > 1));
}
