//! Sequences of events that could stop a slot, waste work or do harm, and what is right in each of them.

use super::{Cluster, Sent};
use crate::engine::DropReason;
use crate::types::{Boot, Nanos, NodeId, NodeSet};
use std::collections::VecDeque;

/// A call whose slot node 1, the owner, is master of; then those of nodes 2 and 3.
const OF_1: u8 = 0;
const OF_2: u8 = 1;
const OF_3: u8 = 2;

fn set(nodes: &[u16]) -> NodeSet {
    nodes.iter().fold(NodeSet::EMPTY, |mut set, node| {
        set.insert(NodeId(*node));
        set
    })
}

/// One packet for each of the 16 slots.
fn one_each(cluster: &mut Cluster) {
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
}

/// The members of the call's slot that do not count any more.
fn given_up(cluster: &Cluster, call: u8) -> Vec<u16> {
    let owner = cluster.shards[0].slots[usize::from(call)].owner.as_ref().unwrap();
    owner.followers().iter().filter(|f| !f.counted()).map(|f| f.node.0).collect()
}

/// Packets of one slot until the memory is full.
fn fill(cluster: &mut Cluster) {
    let full = (0..100).any(|_| {
        cluster.settle();
        cluster.send(&[OF_1; 200]) == Err(DropReason::RetainFull)
    });
    assert!(full, "given up: {:?}", given_up(cluster, OF_1));
}

/// What node 1 has for node 2 now.
fn flush_for_2(cluster: &mut Cluster) -> Vec<Vec<u8>> {
    let mut sent = Sent::default();
    cluster.shards[0].flush(cluster.now, &mut sent);
    sent.peer.into_iter().filter(|(to, _)| *to == NodeId(2)).map(|(_, bytes)| bytes).collect()
}

fn deliver(cluster: &mut Cluster, from: u16, to: u16, datagrams: &[Vec<u8>]) {
    let (now, boot) = (cluster.now, Boot(u64::from(from)));
    let shard = &mut cluster.shards[usize::from(to) - 1];
    datagrams.iter().for_each(|bytes| shard.on_peer(now, NodeId(from), boot, bytes));
}

fn advance(cluster: &mut Cluster, step: Nanos) {
    cluster.now.mono = cluster.now.mono + step;
    cluster.now.wall = cluster.now.wall + step;
}

/// Datagrams on their way between the nodes: each turn of all loops delivers those sent a delay of turns ago.
struct Wire {
    turns: VecDeque<Vec<(u16, NodeId, Vec<u8>)>>,
}

impl Wire {
    fn new(delay: usize) -> Wire {
        Wire { turns: (0..delay).map(|_| Vec::new()).collect() }
    }

    fn turn(&mut self, cluster: &mut Cluster) {
        for (from, to, bytes) in self.turns.pop_front().unwrap() {
            deliver(cluster, from, to.0, &[bytes]);
        }
        let mut under_way = Vec::new();
        for (from, shard) in (1..).zip(&mut cluster.shards) {
            let mut sent = Sent::default();
            shard.on_timeout(cluster.now);
            shard.flush(cluster.now, &mut sent);
            shard.on_sent(cluster.now, sent.client.len());
            cluster.replies.append(&mut sent.client);
            under_way.extend(sent.peer.into_iter().map(|(to, bytes)| (from, to, bytes)));
        }
        self.turns.push_back(under_way);
    }
}

#[test]
fn the_retained_gauge_stays_the_sum_over_the_slots_when_full_windows_give_a_member_up() {
    let mut cluster = Cluster::new(3, |config| config.window = 20);
    cluster.cut.insert(NodeId(3));
    cluster.suspect(3);
    for n in 0..16 * 30u16 {
        cluster.send(&[(n / 30) as u8; 200]).unwrap();
        let owners = cluster.shards[0].slots.iter().filter_map(|slot| slot.owner.as_ref());
        assert_eq!(cluster.shards[0].retained, owners.map(|owner| owner.retained().0).sum::<usize>());
        cluster.settle();
    }
    assert_eq!(cluster.shards[0].stats().demotions, 16);
}

#[test]
fn nobody_is_given_up_where_that_would_free_nothing() {
    let mut cluster = Cluster::new(3, |config| config.window = 20);
    cluster.cut.insert(NodeId(2));
    cluster.cut.insert(NodeId(3));
    for n in 0..60 {
        assert_eq!(cluster.send(&[OF_1]).is_ok(), n < 20);
        cluster.settle();
    }
    cluster.cut = NodeSet::EMPTY;
    cluster.pass(Nanos::from_secs(1));
    assert_eq!((given_up(&cluster, OF_1), cluster.replies.len()), (vec![], 20));
}

#[test]
fn a_suspected_member_is_given_up_before_a_living_one_that_holds_less() {
    let mut cluster = Cluster::new(5, |config| config.retain_bytes = 10_000);
    cluster.send(&[OF_1; 200]).unwrap();
    cluster.settle();
    cluster.cut.insert(NodeId(2));
    cluster.send(&[OF_1; 200]).unwrap();
    cluster.settle();
    cluster.cut.insert(NodeId(5));
    cluster.suspect(5);
    fill(&mut cluster);
    assert_eq!(given_up(&cluster, OF_1), [5]);
    cluster.cut.remove(NodeId(2));
    cluster.pass(Nanos::from_millis(200));
    let stats = cluster.shards[0].stats();
    assert_eq!((stats.demotions, stats.waiting), (1, 0));
    assert!(cluster.shards[0].retained < 1_000, "node 2 has caught up: {}", cluster.shards[0].retained);
}

#[test]
fn a_burst_that_fills_the_memory_gives_up_nobody_whose_acks_are_merely_under_way() {
    let mut cluster = Cluster::new(3, |config| config.retain_bytes = 10_000);
    one_each(&mut cluster);
    cluster.settle();
    cluster.cut.insert(NodeId(3));
    one_each(&mut cluster);
    cluster.settle();
    cluster.cut = NodeSet::EMPTY;
    let refused = (0..100u8).filter(|n| cluster.send(&[n % 16; 200]) == Err(DropReason::RetainFull)).count();
    assert!((40..80).contains(&refused), "{refused}");
    cluster.pass(Nanos::from_millis(100));
    let stats = cluster.shards[0].stats();
    assert_eq!((stats.demotions, stats.slots_short, cluster.replies.len()), (0, 0, 132 - refused));
}

#[test]
fn a_living_member_that_lags_is_not_given_up_for_a_dead_one_that_holds_everything() {
    let mut cluster = Cluster::new(3, |config| config.retain_bytes = 10_000);
    one_each(&mut cluster);
    cluster.settle();
    cluster.cut.insert(NodeId(2));
    cluster.send(&[OF_1]).unwrap();
    cluster.pass(Nanos::from_millis(50));
    cluster.cut.insert(NodeId(3));
    cluster.suspect(3);
    assert!((0..100).any(|_| cluster.send(&[5; 200]) == Err(DropReason::RetainFull)));
    assert!(given_up(&cluster, OF_1).is_empty());
    cluster.cut.remove(NodeId(2));
    cluster.pass(Nanos::from_millis(500));
    let before = cluster.replies.len();
    one_each(&mut cluster);
    cluster.pass(Nanos::from_millis(500));
    assert_eq!(cluster.replies.len() - before, 16);
}

#[test]
fn a_full_memory_is_searched_for_members_to_give_up_once_a_millisecond() {
    let mut cluster = Cluster::new(3, |config| config.retain_bytes = 10_000);
    cluster.cut.insert(NodeId(3));
    fill(&mut cluster);
    cluster.suspect(3);
    advance(&mut cluster, Nanos::from_micros(999));
    assert_eq!(cluster.send(&[OF_1; 200]), Err(DropReason::RetainFull), "looked too soon");
    advance(&mut cluster, Nanos::from_micros(1));
    assert_eq!(cluster.send(&[OF_1; 200]), Ok(()));
}

#[test]
fn hedges_back_off_and_the_shard_sleeps_between_them_while_nobody_answers() {
    for suspected in [false, true] {
        let mut cluster = Cluster::of(&super::shape(3, 2, 1), |_| {});
        if suspected {
            cluster.shards[0].on_suspects(cluster.now, set(&[2, 3]));
        }
        cluster.send(&[OF_2]).unwrap();
        let (mut wakes, end) = (0, cluster.now.mono + Nanos::from_secs(2));
        while cluster.now.mono < end {
            cluster.shards[0].on_timeout(cluster.now);
            cluster.shards[0].flush(cluster.now, &mut Sent::default());
            let next = cluster.shards[0].next_timeout();
            assert!(next > cluster.now.mono, "woken at once, for ever");
            wakes += 1;
            let sleep = next.since(cluster.now.mono);
            advance(&mut cluster, sleep);
        }
        let hedges = cluster.shards[0].stats().hedges;
        // After 1, 1, 2, 4, ... 32 ms, and then each 64 ms.
        assert!((10..=7 + 31).contains(&hedges), "{hedges} hedges, suspected: {suspected}");
        assert!(wakes <= 100 + 2_000 / 5, "{wakes} wakes, suspected: {suspected}");
    }
}

#[test]
fn a_slot_is_repaired_while_multicast_to_all_members_goes_on_without_pause() {
    let mut cluster = Cluster::new(3, |config| config.multicast = true);
    one_each(&mut cluster);
    cluster.settle();
    cluster.cut = set(&[2, 3]);
    cluster.send(&[OF_3, b'!']).unwrap();
    cluster.settle();
    cluster.cut = NodeSet::EMPTY;
    let mut wire = Wire::new(1);
    for n in 0..500u16 {
        advance(&mut cluster, Nanos::from_micros(200));
        cluster.send(&[OF_1, n as u8]).unwrap();
        wire.turn(&mut cluster);
    }
    let repaired = cluster.replies.iter().filter(|reply| reply[1..] == [OF_3, b'!']).count();
    assert_eq!(repaired, 1, "within 100 ms");
}

#[test]
fn late_outputs_wait_as_long_as_configured_before_others_are_asked() {
    let mut cluster = Cluster::new(3, |config| config.hedge_after = Nanos::from_millis(100));
    cluster.cut.insert(NodeId(3));
    cluster.send(&[OF_3]).unwrap();
    cluster.pass(Nanos::from_millis(99));
    assert_eq!((cluster.shards[0].stats().hedges, cluster.replies.len()), (0, 0));
    cluster.pass(Nanos::from_millis(2));
    assert_eq!((cluster.shards[0].stats().hedges, cluster.replies.len()), (1, 1));
}

#[test]
fn the_timer_heap_stays_small_however_often_a_slot_falls_quiet() {
    let mut cluster = Cluster::new(3, |config| config.limits.idle = Nanos::from_secs(3600));
    one_each(&mut cluster);
    cluster.settle();
    for _ in 0..500 {
        cluster.send(&[OF_1]).unwrap();
        for pause in [0, 260, 260, 260] {
            advance(&mut cluster, Nanos::from_millis(pause));
            cluster.settle();
        }
        let heap = cluster.shards[0].timers.len();
        assert!(heap <= 4 * 16 + 64, "{heap} timers for 16 slots");
    }
}

#[test]
fn a_member_that_lags_just_when_masterships_come_back_gets_its_own_a_little_later() {
    let mut cluster = Cluster::new(3, |_| {});
    one_each(&mut cluster);
    cluster.settle();
    let home = cluster.shards[0].stats().masters;
    cluster.cut.insert(NodeId(2));
    cluster.suspect(2);
    one_each(&mut cluster);
    cluster.settle();
    cluster.cut = NodeSet::EMPTY;
    cluster.shards[0].on_suspects(cluster.now, NodeSet::EMPTY);
    cluster.pass(Nanos::from_millis(900));
    cluster.cut.insert(NodeId(2));
    one_each(&mut cluster);
    cluster.pass(Nanos::from_millis(110));
    assert_ne!(cluster.shards[0].stats().masters, home, "node 2 holds too little");
    cluster.cut = NodeSet::EMPTY;
    cluster.pass(Nanos::from_millis(500));
    assert_eq!(cluster.shards[0].stats().masters, home);
}

#[test]
fn a_round_trip_longer_than_the_timeouts_is_learned_from_traffic_without_pause() {
    for calls in [16, 1] {
        let mut cluster = Cluster::new(3, |_| {});
        one_each(&mut cluster);
        cluster.settle();
        let mut wire = Wire::new(20);
        for n in 0..4000u16 {
            advance(&mut cluster, Nanos::from_micros(250));
            cluster.send(&[OF_2 + (n % calls) as u8]).unwrap();
            wire.turn(&mut cluster);
        }
        let learned = cluster.shards[0].rtts[1].smoothed();
        assert!((Nanos::from_millis(9)..Nanos::from_millis(12)).contains(&learned), "{learned:?}");
        let stats = cluster.shards[0].stats();
        assert!(stats.hedge_after_ns > 5_000_000, "{stats:?}");
        assert!(stats.probes < 100 && stats.hedges < 50 && stats.repeated_outputs < 200, "{stats:?}");
    }
}

#[test]
fn a_lost_header_is_repeated_until_every_idle_member_has_let_go_of_what_nobody_needs() {
    let mut cluster = Cluster::new(3, |_| {});
    cluster.send(&[OF_2]).unwrap();
    cluster.settle();
    cluster.cut.insert(NodeId(2));
    cluster.pass(Nanos::from_millis(260));
    cluster.cut = NodeSet::EMPTY;
    cluster.pass(Nanos::from_secs(1));
    let kept: Vec<u64> = cluster.shards.iter().map(|shard| shard.stats().retained_records).collect();
    assert_eq!(kept, [0, 0, 0]);
}

#[test]
fn members_refuse_a_new_life_of_their_owner_in_the_term_of_the_old_one() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..10u8).for_each(|n| cluster.send(&[OF_2, n]).unwrap());
    cluster.settle();
    let (digests, replies) = (cluster.digests(), cluster.replies.len());
    let life = Boot(101);
    let mut anew = Cluster::new(3, |config| {
        if config.me == NodeId(1) {
            config.boot = life;
        }
    });
    cluster.shards[0] = anew.shards.remove(0);
    cluster.boots[0] = life;
    cluster.shards[1..].iter_mut().for_each(|shard| shard.on_join(cluster.now, NodeId(1), life));
    for n in 10..30u8 {
        cluster.send(&[OF_2, n]).unwrap();
        cluster.pass(Nanos::from_millis(5));
    }
    assert_eq!(cluster.replies.len(), replies, "released, though no other member holds it");
    assert_eq!(cluster.digests()[1..], digests[1..]);
    assert!(cluster.shards[1..].iter().all(|shard| shard.stats().refused_segments > 0));
}

#[test]
fn a_member_that_comes_back_is_sent_what_it_lacks_in_bundles_of_bounded_size() {
    let mut cluster = Cluster::new(3, |config| {
        config.retain_bytes = 64 << 20;
        config.window = 16384;
    });
    cluster.cut.insert(NodeId(3));
    cluster.suspect(3);
    for n in 0..25_000u32 {
        cluster.send(&[(n % 16) as u8; 200]).unwrap();
        if n % 50 == 0 {
            cluster.settle();
        }
    }
    cluster.settle();
    cluster.cut = NodeSet::EMPTY;
    cluster.shards[0].on_suspects(cluster.now, NodeSet::EMPTY);
    let mut wire = Wire::new(1);
    for _ in 0..200 {
        advance(&mut cluster, Nanos::from_micros(100));
        wire.turn(&mut cluster);
        let sent = wire.turns.back().unwrap().iter();
        let bytes: usize =
            sent.filter(|(from, to, _)| (*from, to.0) == (1, 3)).map(|(_, _, b)| b.len()).sum();
        assert!(bytes <= (256 + 64 + 8) << 10, "{bytes} bytes in one flush");
    }
    assert!(cluster.digests().iter().all(|d| *d == cluster.digests()[0]), "node 3 has caught up");
}

/// Node 2 lacks the second of three entries; the datagrams of each.
fn gap_at_2(cluster: &mut Cluster) -> [Vec<Vec<u8>>; 3] {
    cluster.send(&[OF_2]).unwrap();
    cluster.settle();
    let flights = [0, 1, 2].map(|n| {
        cluster.send(&[OF_2, n]).unwrap();
        cluster.shards[0].lanes[1].forget();
        flush_for_2(cluster)
    });
    deliver(cluster, 1, 2, &flights[0]);
    cluster.shards[1].flush(cluster.now, &mut Sent::default());
    deliver(cluster, 1, 2, &flights[2]);
    flights
}

#[test]
fn a_gap_is_asked_for_although_an_old_segment_comes_again_in_the_same_turn() {
    let mut cluster = Cluster::new(3, |_| {});
    let flights = gap_at_2(&mut cluster);
    deliver(&mut cluster, 1, 2, &flights[0]);
    cluster.shards[1].flush(cluster.now, &mut Sent::default());
    assert_eq!(cluster.shards[1].stats().naks_sent, 1);
}

#[test]
fn a_nak_that_comes_twice_is_answered_once() {
    let mut cluster = Cluster::new(3, |_| {});
    gap_at_2(&mut cluster);
    let mut sent = Sent::default();
    cluster.shards[1].flush(cluster.now, &mut sent);
    let nak: Vec<_> = sent.peer.into_iter().map(|(_, bytes)| bytes).collect();
    let answered = [0, 1].map(|_| {
        deliver(&mut cluster, 2, 1, &nak);
        cluster.shards[0].lanes[1].forget();
        !flush_for_2(&mut cluster).is_empty()
    });
    assert_eq!(answered, [true, false]);
}
