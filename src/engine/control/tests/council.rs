//! The agreed part: the first map, leases that never overlap, addresses that move.

use super::{AGREED, Rig, config as settings, start};
use crate::engine::control::CouncilConfig;
use crate::proto::map::{MapNode, MapShape};
use crate::types::{Boot, HostId, Nanos, NodeId};

pub(super) fn config(nodes: u16, stored: Option<Vec<u8>>) -> CouncilConfig {
    let node = |n| MapNode::new(NodeId(n), HostId(n));
    let nodes: Vec<MapNode> = (1..=nodes).map(node).collect();
    CouncilConfig {
        voters: nodes.iter().map(|n| n.id).collect(),
        shape: MapShape::new((64, 1), nodes, NodeId(1), vec![0], 3, 0).unwrap(),
        lease: Nanos::from_millis(10),
        dead_after: Nanos::from_millis(15),
        evict_after: Nanos::from_millis(500),
        lossy_go: true,
        stored,
        birth: 77,
        election_ticks: 5,
        promises: true,
    }
}

pub(super) fn formed() -> Rig {
    let mut rig = Rig::new([settings(1, 10, AGREED), settings(2, 10, AGREED), settings(3, 10, AGREED)]);
    rig.run(300_000);
    for node in 1..=3 {
        assert_eq!(rig.control(node).map().version, 1, "node {node}");
    }
    rig
}

/// Nodes that have a lease now.
pub(super) fn holders(rig: &mut Rig) -> Vec<usize> {
    let now = rig.now().mono;
    (1..=3).filter(|n| rig.controls[n - 1].as_ref().is_some_and(|c| c.lease_until() > now)).collect()
}

/// Lets time pass in small steps; at no time may two nodes have a lease. Returns who had one in the end.
fn watch(rig: &mut Rig, millis: u64) -> Vec<usize> {
    for _ in 0..millis * 2 {
        rig.run(500);
        let holders = holders(rig);
        assert!(holders.len() <= 1, "two leases at {} us: {holders:?}", rig.micros);
    }
    holders(rig)
}

#[test]
fn the_first_map_forms_and_its_owner_has_a_lease() {
    let mut rig = formed();
    assert_eq!(watch(&mut rig, 100), [1]);
    assert_eq!((1..=3).filter(|n| rig.control(*n).leads()).count(), 1);
    assert!(rig.control(1).has_quorum() && rig.control(1).lease_left() > Nanos::from_millis(5));
}

#[test]
fn a_dead_owner_loses_its_address_when_its_lease_is_over() {
    let mut rig = formed();
    watch(&mut rig, 20);
    let lease_until = rig.control(1).lease_until();
    let died = rig.micros;
    rig.controls[0] = None;
    while holders(&mut rig).is_empty() {
        rig.run(100);
        assert!(rig.micros < died + 200_000, "nobody takes over");
    }
    let gap = rig.micros - died;
    println!("from death to the next lease: {gap} us");
    assert!(rig.now().mono > lease_until && gap < 60_000, "{gap} us");
    assert_eq!((holders(&mut rig), rig.control(2).map().addresses[0].term.0), (vec![2], 2));
    assert!(rig.control(2).map().groups.iter().all(|g| g.members.len() == 3), "it is still a member");
    assert_eq!(rig.control(3).failovers().len(), 1);
}

#[test]
fn an_exit_notice_moves_the_address_at_once() {
    let mut rig = formed();
    watch(&mut rig, 20);
    let died = rig.micros;
    rig.controls[0] = None;
    let now = rig.now();
    for node in [2, 3] {
        rig.control(node).on_exit_notice(now, NodeId(1), Boot(10));
    }
    while holders(&mut rig).is_empty() {
        rig.run(100);
        assert!(rig.micros < died + 100_000, "nobody takes over");
    }
    let gap = rig.micros - died;
    println!("from the notice to the next lease: {gap} us");
    assert!(gap < 10_000, "{gap} us");
    watch(&mut rig, 20);
    assert!(rig.control(2).map().groups.iter().all(|g| g.members.len() == 2), "its life is over");
}

#[test]
fn an_owner_that_is_cut_off_has_no_lease_before_another_has_one() {
    for deaf in [false, true] {
        let mut rig = formed();
        watch(&mut rig, 20);
        // Nothing that it says arrives, or nothing that is said to it.
        rig.alone = Some((1, deaf));
        assert_eq!(watch(&mut rig, 200), [2], "deaf: {deaf}");
        rig.alone = None;
        assert_eq!(watch(&mut rig, 200), [2]);
        assert_eq!(rig.control(1).map().addresses[0].owner, NodeId(2));
        assert!(!rig.control(1).is_fenced(), "it lost its address, not its place");
    }
}

#[test]
fn a_voter_that_restarts_grants_nothing_before_the_cluster_knows_it() {
    let mut rig = formed();
    watch(&mut rig, 20);
    for at in [1, 2] {
        let mut again = settings(at as u16 + 1, 20, AGREED);
        again.council = config(3, rig.votes[at].clone());
        rig.controls[at] = Some(start(again));
    }
    // Without a majority of known lives the lease runs out; then they are known, and it is back.
    let mut lapsed = false;
    for _ in 0..400 {
        rig.run(500);
        assert!(holders(&mut rig).len() <= 1);
        lapsed |= holders(&mut rig).is_empty();
    }
    assert!(lapsed);
    assert_eq!(watch(&mut rig, 100).len(), 1);
    let map = rig.control(1).map().clone();
    assert!([2, 3].iter().all(|n| map.is_live(NodeId(*n), Boot(20))), "{map:?}");
}

#[test]
fn a_node_whose_life_the_map_has_ended_is_fenced() {
    let mut rig = formed();
    rig.alone = Some((3, false));
    rig.run(900_000);
    rig.alone = None;
    rig.run(100_000);
    assert!(rig.control(3).is_fenced(), "silent for EVICT_AFTER");
    assert!(!rig.control(1).is_fenced() && !rig.control(2).is_fenced());
}

#[test]
fn a_drained_owner_hands_over_soon_and_leaves() {
    let mut rig = formed();
    watch(&mut rig, 20);
    rig.settled_reports = true;
    rig.control(1).drain().unwrap();
    let began = rig.micros;
    while holders(&mut rig) != [2] {
        rig.run(100);
        assert!(rig.micros < began + 100_000, "{:?}", rig.control(1).map());
    }
    let gap = rig.micros - began;
    println!("handed over in {gap} us");
    assert!(gap < 30_000, "{gap} us");
    rig.run(300_000);
    assert!(rig.control(1).has_left() && !rig.control(1).is_fenced());
    for control in rig.controls.iter_mut().flatten().skip(1) {
        assert!(control.map().groups.iter().all(|g| g.members.len() == 2));
    }
    rig.controls[0] = None;
    rig.controls[2] = None;
    rig.run(50_000);
    assert!(!rig.control(2).has_quorum());
}
