//! Members that an entry does not need get it later, with more; nobody waits for them, and nothing is lost on them.

use super::Cluster;
use super::takeover::{map_of, moved};
use crate::types::{Nanos, NodeId, NodeSet, Position};

const LAZY: Nanos = Nanos::from_millis(2);

fn cluster(masters_own: bool) -> Cluster {
    let mut cluster = Cluster::new(3, |config| {
        (config.lazy_after, config.masters_own) = (LAZY, masters_own);
    });
    // The first entries of a term go to everybody at once.
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.pass(Nanos::from_millis(20));
    cluster
}

/// How many entries a node's members have executed.
fn executed(cluster: &Cluster, node: u16) -> u64 {
    let digests = cluster.shards[usize::from(node) - 1].digests();
    digests.iter().map(|digest| digest.executed.0).sum()
}

#[test]
fn an_owner_that_is_master_waits_for_one_member_and_the_other_follows() {
    let mut cluster = cluster(true);
    let masters = cluster.shards[0].stats().masters;
    assert!(masters.iter().all(|(node, _)| *node == 1), "{masters:?}");
    let before = executed(&cluster, 3);
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    assert_eq!(cluster.replies.len(), 32);
    assert_eq!((executed(&cluster, 2), executed(&cluster, 3)), (before + 16, before));
    cluster.pass(LAZY);
    assert_eq!(executed(&cluster, 3), before + 16);
    assert!(cluster.digests().iter().all(|d| *d == cluster.digests()[0]));
}

#[test]
fn a_master_elsewhere_gets_its_entries_at_once_and_nobody_else_does() {
    let mut cluster = cluster(false);
    let masters = cluster.shards[0].stats().masters;
    assert!(masters.len() == 3, "{masters:?}");
    let before = executed(&cluster, 3);
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    assert_eq!(cluster.replies.len(), 32);
    let of_third = masters.iter().find(|(node, _)| *node == 3).unwrap().1;
    // What a lane carries at once, it carries with all that waited for it.
    assert!(executed(&cluster, 3) >= before + of_third, "{masters:?}");
    cluster.pass(LAZY);
    assert_eq!(executed(&cluster, 3), before + 16);
}

#[test]
fn when_the_member_that_commits_falls_silent_the_other_takes_its_place() {
    let mut cluster = cluster(true);
    cluster.cut.insert(NodeId(2));
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    assert_eq!(cluster.replies.len(), 16, "one of two has to hold them");
    cluster.pass(LAZY);
    assert_eq!(cluster.replies.len(), 32, "before anybody is suspected");
    cluster.suspect(2);
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    assert_eq!(cluster.replies.len(), 48, "at once, now that it is known");
    cluster.cut = NodeSet::EMPTY;
    cluster.shards[0].on_suspects(cluster.now, NodeSet::EMPTY);
    cluster.pass(Nanos::from_millis(20));
    assert!(cluster.digests().iter().all(|d| *d == cluster.digests()[0]));
}

#[test]
fn what_gathers_is_bounded_by_bytes() {
    let mut cluster = cluster(true);
    let before = executed(&cluster, 3);
    (0..40u8).for_each(|n| cluster.send(&[&[n % 16][..], &[0; 1_000]].concat()).unwrap());
    cluster.settle();
    assert_eq!(executed(&cluster, 3), before + 40, "40 KB do not wait");
}

#[test]
fn the_last_of_a_slot_reaches_everybody_and_is_forgotten() {
    let mut cluster = cluster(true);
    cluster.send(&[3]).unwrap();
    cluster.pass(Nanos::from_millis(600));
    for shard in &cluster.shards {
        let stats = shard.stats();
        assert_eq!((stats.retained_records, stats.hedges, stats.naks), (0, 0, 0), "{stats:?}");
    }
    let last = |node: usize| cluster.shards[node].digests().iter().map(|d| d.executed).max();
    assert!(last(0) > Some(Position(1)) && last(0) == last(2));
}

#[test]
fn a_full_window_waits_for_nobody_who_was_only_sent_late() {
    let mut cluster = Cluster::new(3, |config| {
        (config.lazy_after, config.masters_own, config.window) = (LAZY, true, 64);
    });
    for n in 0..200u8 {
        cluster.send(&[3, n]).unwrap();
        cluster.settle();
    }
    cluster.pass(LAZY);
    let stats = cluster.shards[0].stats();
    assert_eq!((cluster.replies.len(), stats.demotions), (200, 0), "{stats:?}");
    assert!(cluster.digests().iter().all(|d| *d == cluster.digests()[0]));
}

#[test]
fn who_takes_over_is_master_at_once_of_what_it_owns() {
    let mut cluster = cluster(true);
    let map = moved(&map_of(&cluster, 3), 3);
    cluster.cut.insert(NodeId(1));
    let suspects = cluster.cut;
    cluster.shards.iter_mut().for_each(|shard| shard.on_suspects(cluster.now, suspects));
    cluster.agree(&map);
    cluster.pass(Nanos::from_millis(5));
    let stats = cluster.shards[2].stats();
    assert_eq!(stats.masters, [(3, 16)], "{stats:?}");
}
