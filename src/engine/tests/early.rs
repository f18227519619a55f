//! Packets that reach a node before it can take them: before the map by which it owns their slot, after that one is out
//! of date, or while the slot's log is being recovered.

use super::takeover::{counts, map_of, moved, packet};
use super::{Cluster, DropReason};
use crate::types::{Nanos, NodeId};
use std::sync::Arc;

#[test]
fn a_packet_passed_on_by_another_map_finds_the_owner_of_the_newer_one() {
    // Whoever is named here has heard of the newer map; the packet comes to node 2.
    for knows in [&[2_u16][..], &[1, 3], &[1, 2]] {
        let mut cluster = Cluster::new(3, |_| {});
        (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
        // Long enough that all hear what has left.
        cluster.pass(Nanos::from_millis(3));
        let map = moved(&map_of(&cluster, 2), 3);
        for node in knows {
            cluster.shards[usize::from(*node) - 1].on_map(cluster.now, Arc::new(map.clone()));
        }
        (0..16u8).for_each(|call| cluster.send_to(2, &packet(0, &[call])).unwrap());
        cluster.pass(Nanos::from_millis(20));
        cluster.agree(&map);
        cluster.pass(Nanos::from_millis(20));
        assert_eq!(counts(&cluster, 16), (0..16).map(|call| (call, 2)).collect::<Vec<_>>(), "{knows:?}");
        let dropped: u64 = cluster.shards.iter().map(|shard| shard.stats().drop_not_owner).sum();
        assert_eq!(dropped, 0, "{knows:?}");
    }
}

#[test]
fn a_packet_does_not_wait_for_a_map_for_long_nor_among_too_many() {
    let mut cluster = Cluster::new(3, |_| {});
    let map = moved(&map_of(&cluster, 2), 3);
    cluster.shards[1].on_map(cluster.now, Arc::new(map.clone()));
    (0..1_100_u32).for_each(|n| cluster.send_to(2, &packet(0, &[n as u8 % 16])).unwrap());
    cluster.settle();
    assert_eq!(cluster.shards[2].stats().drop_not_owner, 1_100 - 1_024);
    cluster.pass(Nanos::from_millis(60));
    cluster.send_to(2, &packet(0, &[7])).unwrap();
    cluster.agree(&map);
    assert_eq!(cluster.shards[2].stats().drop_not_owner, 1_100, "those that are too old");
    cluster.pass(Nanos::from_millis(20));
    assert_eq!(cluster.replies.len(), 1);
}

#[test]
fn packets_that_were_let_wait_for_a_recovery_have_their_room() {
    let mut cluster = Cluster::new(3, |config| config.retain_bytes = 5_000);
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.pass(Nanos::from_millis(3));
    let map = moved(&map_of(&cluster, 2), 2);
    cluster.cut.insert(NodeId(1));
    cluster.cut.insert(NodeId(3));
    cluster.shards[1].on_map(cluster.now, Arc::new(map.clone()));
    let wait = |n: u8| cluster.send_to(2, &packet(0, &[&[n % 16][..], &[7; 100]].concat()));
    let answers: Vec<_> = (0..100).map(wait).collect();
    let waiting = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((16..100).contains(&waiting) && answers.contains(&Err(DropReason::RetainFull)), "{waiting}");
    // What comes back needs memory, too, slot after slot.
    cluster.cut = Default::default();
    cluster.agree(&map);
    cluster.pass(Nanos::from_millis(20));
    assert_eq!(cluster.replies.len(), 16 + waiting);
}
