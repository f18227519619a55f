//! In which order a new owner opens its slots.

use super::rules::announce;
use super::takeover::{cut, map_of, moved, packet};
use super::{Cluster, OPENS_A_TURN};
use crate::proto::map::{MapNode, MapShape};
use crate::types::{HostId, Nanos, NodeId};

const SLOTS: u16 = 512;

/// Three nodes with more slots than are opened in a turn.
fn many_slots() -> Cluster {
    let nodes = (1..=3).map(|n| MapNode::new(NodeId(n), HostId(n))).collect();
    let shape = MapShape::new((SLOTS, 1), nodes, NodeId(1), vec![0], 3, 0).unwrap();
    Cluster::of(&shape, |_| {})
}

fn recovering(cluster: &Cluster) -> u64 {
    cluster.shards[1].stats().slots_recovering
}

#[test]
fn slots_that_clients_wait_for_are_opened_before_the_others_and_these_a_few_a_turn() {
    let mut cluster = many_slots();
    (0..200u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    assert_eq!((cluster.replies.len(), recovering(&cluster)), (200, 0));
    cut(&mut cluster, 1);
    let map = moved(&map_of(&cluster, 2), 2);
    announce(&mut cluster, &map);
    assert_eq!(recovering(&cluster), u64::from(SLOTS));
    // The seals and the answers to them.
    while recovering(&cluster) == u64::from(SLOTS) {
        assert!(cluster.turn(), "no slot is opened");
    }
    let before = recovering(&cluster);
    assert!(before > 400, "{before}");
    for call in 0..200u8 {
        cluster.send_to(2, &packet(0, &[call])).unwrap();
    }
    let (asked, pace) = (recovering(&cluster), OPENS_A_TURN as u64);
    assert!(before - asked > 100, "all that packets came for are open: {before} {asked}");
    for _ in 0..3 {
        cluster.turn();
    }
    assert_eq!(cluster.replies.len(), 400, "and have answered");
    let left = recovering(&cluster);
    assert!(left > 0 && asked - left <= 3 * pace, "{asked} {left}");
    while recovering(&cluster) > 0 {
        let before = recovering(&cluster);
        cluster.turn();
        assert!((1..=pace).contains(&(before - recovering(&cluster))));
    }
}

#[test]
fn slots_whose_last_replies_nobody_has_seen_leave_are_opened_at_once() {
    let mut cluster = many_slots();
    (0..100u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    cluster.pass(Nanos::from_millis(3));
    // Committed and executed, but the owner does not live to say that the replies have left.
    (100..140u8).for_each(|call| cluster.send(&[call]).unwrap());
    for _ in 0..2 {
        cluster.turn();
    }
    let seen = cluster.replies.len();
    cluster.cut.insert(NodeId(1));
    let suspects = cluster.cut;
    let map = moved(&map_of(&cluster, 2), 2);
    for shard in &mut cluster.shards[1..] {
        shard.on_suspects(cluster.now, suspects);
    }
    announce(&mut cluster, &map);
    for _ in 0..6 {
        cluster.turn();
    }
    assert!(recovering(&cluster) > 200, "{}", recovering(&cluster));
    let mut again: Vec<u8> = cluster.replies[seen..].iter().map(|reply| reply[1]).collect();
    again.sort_unstable();
    assert_eq!(again, (100..140u8).collect::<Vec<_>>());
    cluster.settle();
}
