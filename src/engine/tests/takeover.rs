//! Owners change, members are brought in, packets and replies cross nodes: shards joined by hand, maps made by hand.

use super::{CLIENT, Cluster, Sent, shape};
use crate::app::Inbound;
use crate::proto::map::{ClusterMap, MapMember};
use crate::types::{Boot, HostId, LocalId, Nanos, NodeId, NodeSet, Term};
use crate::wire::frame::{Frame, Frames};
use std::sync::Arc;

pub(super) fn packet(local: u16, payload: &[u8]) -> Inbound<'_> {
    Inbound { source: CLIENT, local: LocalId::endpoint(local), payload }
}

/// A map in which `owner` holds address 0 in the next term.
pub(super) fn moved(map: &ClusterMap, owner: u16) -> ClusterMap {
    let mut map = map.clone();
    map.version += 1;
    let Term(term) = map.addresses[0].term;
    (map.addresses[0].owner, map.addresses[0].boot) = (NodeId(owner), Boot(owner.into()));
    map.addresses[0].term = Term(term + 1);
    map
}

/// A map from which `node` is dropped as a member.
pub(super) fn dropped(map: &ClusterMap, node: u16) -> ClusterMap {
    let mut map = map.clone();
    map.version += 1;
    for group in &mut map.groups {
        let before = group.members.clone();
        group.members.retain(|m| m.node != NodeId(node));
        if group.members != before {
            group.past.push(before);
        }
    }
    map
}

/// Cuts a node off, after the others were told in passing what is on the wire.
pub(super) fn cut(cluster: &mut Cluster, node: u16) {
    cluster.pass(Nanos::from_millis(3));
    cluster.cut.insert(NodeId(node));
    let suspects = cluster.cut;
    for shard in &mut cluster.shards {
        shard.on_suspects(cluster.now, suspects);
    }
}

pub(super) fn map_of(cluster: &Cluster, node: u16) -> ClusterMap {
    cluster.shards[usize::from(node) - 1].map().clone()
}

pub(super) fn counts(cluster: &Cluster, from: usize) -> Vec<(u8, u8)> {
    let mut counts: Vec<(u8, u8)> = cluster.replies[from..].iter().map(|r| (r[1], r[0])).collect();
    counts.sort_unstable();
    counts
}

#[test]
fn another_node_takes_over_and_every_call_counts_on() {
    let mut cluster = Cluster::new(3, |_| {});
    for _ in 0..5 {
        (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
        cluster.settle();
    }
    cut(&mut cluster, 1);
    let map = moved(&map_of(&cluster, 2), 2);
    cluster.agree(&map);
    (0..16u8).for_each(|call| cluster.send_to(2, &packet(0, &[call])).unwrap());
    cluster.settle();
    assert_eq!(counts(&cluster, 80), (0..16).map(|call| (call, 6)).collect::<Vec<_>>());
    let stats = cluster.shards[1].stats();
    assert_eq!((stats.recoveries, stats.lossy_recoveries, stats.slots_recovering), (16, 0, 0));
}

#[test]
fn what_was_accepted_and_not_yet_answered_is_answered_by_the_next_owner() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    // The members hear of the entries, the owner does not live to hear of their answers.
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    let mut sent = Sent::default();
    cluster.shards[0].flush(cluster.now, &mut sent);
    assert!(sent.client.is_empty());
    for (to, bytes) in sent.peer {
        cluster.shards[usize::from(to.0) - 1].on_peer(cluster.now, NodeId(1), Boot(1), &bytes);
    }
    cut(&mut cluster, 1);
    let map = moved(&map_of(&cluster, 2), 3);
    cluster.agree(&map);
    cluster.pass(Nanos::from_millis(20));
    assert_eq!(counts(&cluster, 16), (0..16).map(|call| (call, 2)).collect::<Vec<_>>());
}

#[test]
fn packets_wait_while_the_seal_is_not_complete() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    cut(&mut cluster, 1);
    cut(&mut cluster, 3);
    let map = moved(&map_of(&cluster, 2), 2);
    cluster.agree(&map);
    (0..16u8).for_each(|call| cluster.send_to(2, &packet(0, &[call])).unwrap());
    cluster.pass(Nanos::from_millis(50));
    assert_eq!((cluster.replies.len(), cluster.shards[1].stats().slots_recovering), (16, 16));
    assert_eq!(cluster.shards[1].report().blocked.0, 0, "it may only be slow");
    cluster.pass(Nanos::from_millis(300));
    assert_eq!(cluster.shards[1].report().blocked.0, 0xffff, "others might know more");
    cluster.cut.remove(NodeId(3));
    cluster.shards[2].on_map(cluster.now, Arc::new(map));
    for shard in &mut cluster.shards {
        shard.on_suspects(cluster.now, cluster.cut);
    }
    cluster.pass(Nanos::from_millis(200));
    assert_eq!(counts(&cluster, 16), (0..16).map(|call| (call, 2)).collect::<Vec<_>>());
}

#[test]
fn a_new_owner_begins_once_it_could_commit() {
    for heals in [true, false] {
        let mut cluster = Cluster::new(2, |_| {});
        (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
        cluster.pass(Nanos::from_millis(3));
        cluster.cut.insert(NodeId(1));
        // One entry more, which the other node has not heard of when it becomes the owner.
        (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
        cluster.settle();
        cut(&mut cluster, 1);
        let map = moved(&map_of(&cluster, 2), 2);
        cluster.agree(&map);
        cluster.pass(Nanos::from_millis(10));
        let report = cluster.shards[1].report();
        assert_eq!((report.recovering, report.blocked.0), (16, 0));
        cluster.pass(Nanos::from_millis(10));
        assert_eq!(cluster.shards[1].report().blocked.0, 0xffff, "it needs the other member");
        if heals {
            cluster.cut = NodeSet::EMPTY;
            cluster.shards.iter_mut().for_each(|shard| shard.on_suspects(cluster.now, NodeSet::EMPTY));
            cluster.agree(&map);
        } else {
            cluster.agree(&dropped(&map, 1));
            (0..16u8).for_each(|call| cluster.send_to(2, &packet(0, &[call])).unwrap());
        }
        cluster.pass(Nanos::from_millis(50));
        assert_eq!(counts(&cluster, 16), (0..16).map(|call| (call, 2)).collect::<Vec<_>>());
        let stats = cluster.shards[1].stats();
        assert_eq!((stats.recoveries, stats.lossy_recoveries, stats.demotions), (16, 0, 0));
    }
}

#[test]
fn the_dead_may_have_held_what_nobody_else_does() {
    for go in [true, false] {
        let mut cluster = Cluster::new(3, |config| config.lossy_go = go);
        (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
        cluster.settle();
        cut(&mut cluster, 1);
        cut(&mut cluster, 3);
        let mut map = dropped(&dropped(&moved(&map_of(&cluster, 2), 2), 1), 3);
        for node in &mut map.nodes {
            if node.id != NodeId(2) {
                node.state = crate::proto::map::NodeState::Gone;
            }
        }
        cluster.agree(&map);
        cluster.pass(Nanos::from_millis(50));
        let stats = cluster.shards[1].stats();
        let lossy = if go { 16 } else { 0 };
        assert_eq!((stats.lossy_recoveries, stats.slots_recovering), (lossy, 16 - lossy));
    }
}

#[test]
fn an_old_owner_is_followed_by_nobody_and_a_log_that_went_on_alone_is_dropped() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    cut(&mut cluster, 1);
    // It goes on alone: nothing of this is released.
    (0..16u8).for_each(|call| cluster.send(&[call, b'x']).unwrap());
    cluster.pass(Nanos::from_millis(20));
    assert_eq!(cluster.replies.len(), 16);
    let map = moved(&map_of(&cluster, 2), 2);
    cluster.agree(&map);
    (0..16u8).for_each(|call| cluster.send_to(2, &packet(0, &[call])).unwrap());
    cluster.settle();
    cluster.cut = NodeSet::EMPTY;
    cluster.agree(&map);
    for shard in &mut cluster.shards {
        shard.on_suspects(cluster.now, NodeSet::EMPTY);
    }
    cluster.pass(Nanos::from_millis(30));
    assert_eq!(counts(&cluster, 16), (0..16).map(|call| (call, 2)).collect::<Vec<_>>());
    let lost = &cluster.shards[1].report().lost;
    assert_eq!((lost.len(), lost[0].0, lost[0].1.0), (1, NodeId(1), 0xffff), "it must be brought in again");
    assert_eq!(cluster.digests()[1], cluster.digests()[2]);
    cluster.pass(Nanos::from_millis(1_000));
    assert_eq!(cluster.shards[1].report().lost, [], "the map did not drop it: it has learned all slots anew");
    (0..16u8).for_each(|call| cluster.send_to(2, &packet(0, &[call])).unwrap());
    cluster.settle();
    assert_eq!(cluster.digests()[0], cluster.digests()[2]);
}

#[test]
fn a_learner_becomes_whole_under_load_and_the_owner_confirms_the_new_members() {
    let mut cluster = Cluster::of(&shape(4, 3, 1), |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    let mut map = map_of(&cluster, 1);
    map.version += 1;
    let short: Vec<usize> = (0..16).filter(|g| map.groups[*g].member(NodeId(4)).is_none()).collect();
    assert!(!short.is_empty());
    let joined = MapMember { node: NodeId(4), host: HostId(4), boot: Boot(4), join: map.version };
    for group in &short {
        map.groups[*group].learners.push(joined);
    }
    cluster.agree(&map);
    for _ in 0..5 {
        (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
        cluster.pass(Nanos::from_millis(10));
    }
    cluster.pass(Nanos::from_millis(300));
    let report = cluster.shards[3].report();
    assert!(short.iter().all(|group| report.synced.contains(*group)), "{report:?}");
    map.version += 1;
    for group in &short {
        let group = &mut map.groups[*group];
        group.past.push(group.members.clone());
        group.members[0] = group.learners.remove(0);
    }
    cluster.agree(&map);
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.pass(Nanos::from_millis(50));
    assert_eq!(counts(&cluster, 96), (0..16).map(|call| (call, 7)).collect::<Vec<_>>());
    let report = cluster.shards[0].report();
    assert!(short.iter().all(|group| report.confirmed.contains(*group)), "{report:?}");
}

#[test]
fn packets_and_replies_cross_nodes_when_addresses_have_different_owners() {
    let mut cluster = Cluster::of(&shape(3, 3, 2), |_| {});
    let owners: Vec<u16> = map_of(&cluster, 1).addresses.iter().map(|a| a.owner.0).collect();
    assert_eq!(owners, [1, 2]);
    for n in 1..=4 {
        for call in 0..16u8 {
            // Endpoint 1 belongs to the second address, whatever the slot.
            cluster.send_to(2, &packet(1, &[call])).unwrap();
            cluster.settle();
            assert_eq!(cluster.replies.last().map(|r| (r[0], r[1])), Some((n, call)));
        }
    }
    let (one, two) = (cluster.shards[0].stats(), cluster.shards[1].stats());
    assert_eq!((two.forwarded, one.forwards_taken), (32, 32));
    assert_eq!((one.delivered, two.deliveries_taken, one.released, two.released), (32, 32, 32, 32));
    cluster.pass(Nanos::from_millis(50));
    assert_eq!(cluster.shards[0].stats().delivered_again, 0);
}

#[test]
fn without_a_lease_replies_wait() {
    let mut cluster = Cluster::new(3, |_| {});
    cluster.shards[0].on_lease(cluster.now, cluster.now.mono);
    cluster.send(&[1]).unwrap();
    cluster.settle();
    assert!(cluster.replies.is_empty() && cluster.shards[0].stats().lease_waits > 0);
    let until = cluster.now.mono + Nanos::from_millis(5);
    cluster.shards[0].on_lease(cluster.now, until);
    cluster.settle();
    assert_eq!(cluster.replies.len(), 1);
    assert!(cluster.shards[0].may_release(until - Nanos(1)) && !cluster.shards[0].may_release(until));
}

#[test]
fn keepers_hear_notices_through_the_log_and_the_founding_one_first() {
    let mut cluster = Cluster::of(&shape(3, 3, 2), |config| config.founding = Some(Arc::from(*b"founding")));
    cluster.settle();
    let heard = |cluster: &mut Cluster| {
        let mut replies = std::mem::take(&mut cluster.replies);
        replies.sort_unstable();
        replies
    };
    let first: Vec<Vec<u8>> = (0..16).map(|_| [&[1], &b"founding"[..]].concat()).collect();
    assert_eq!(heard(&mut cluster), first, "the first entry of every slot");
    let now = cluster.now;
    for shard in &mut cluster.shards {
        shard.on_notice(now, b"news", false);
    }
    cluster.settle();
    let second: Vec<Vec<u8>> = (0..16).map(|_| [&[2], &b"news"[..]].concat()).collect();
    assert_eq!(heard(&mut cluster), second, "each owner tells the slots it owns");
    let digests = cluster.digests();
    assert!(digests[0].len() == 16 && digests.iter().all(|d| *d == digests[0]));
}

#[test]
fn keepers_hear_once_that_their_master_or_owner_is_another() {
    let mut cluster = Cluster::of(&shape(3, 3, 1), |config| config.takeover = Some(Arc::from(*b"moved")));
    cluster.settle();
    assert!(cluster.replies.is_empty(), "nothing has moved yet: {:?}", cluster.replies);
    (0..16).for_each(|call| cluster.send(&[call, 0]).unwrap());
    cluster.settle();
    cluster.replies.clear();
    let mastered_by_2 = cluster.shards[0].stats().masters.iter().find(|(node, _)| *node == 2).map(|m| m.1);
    cut(&mut cluster, 2);
    cluster.settle();
    assert!(mastered_by_2 > Some(0));
    assert_eq!(Some(cluster.replies.len() as u64), mastered_by_2, "{:?}", cluster.replies);
    assert!(cluster.replies.iter().all(|reply| reply == b"\x02moved"), "a keeper is a call like any other");
}

#[test]
fn replies_taken_for_an_address_that_was_elsewhere_in_between_are_passed_on_again() {
    let mut cluster = Cluster::of(&shape(3, 3, 2), |_| {});
    let without = cluster.now;
    cluster.shards[1].on_lease(without, without.mono);
    // Of slots of the first address, which have to leave by the second.
    for call in [0, 2, 2, 4] {
        cluster.send_to(1, &packet(1, &[call])).unwrap();
    }
    cluster.settle();
    assert_eq!((cluster.replies.len(), cluster.shards[1].stats().deliveries_taken), (0, 4));
    let mut map = map_of(&cluster, 2);
    for owner in [3, 2] {
        map.version += 1;
        let term = Term(map.addresses[1].term.0 + 1);
        map.addresses[1] =
            crate::proto::map::MapAddress { owner: NodeId(owner), boot: Boot(owner.into()), term };
        cluster.shards[1].on_map(without, Arc::new(map.clone()));
    }
    cluster.shards[1].on_lease(without, Nanos::MAX);
    let mut sent = Sent::default();
    cluster.shards[1].flush(without, &mut sent);
    assert!(sent.client.is_empty(), "node 3 may have sent these, and newer ones");
    cluster.agree(&map);
    cluster.pass(Nanos::from_millis(20));
    assert_eq!(counts(&cluster, 0), [(0, 1), (2, 1), (2, 2), (4, 1)], "their owner heard of no other holder");
}

/// Nodes turn until nothing moves, and the first node's driver sends nothing; what it was handed.
fn settle_unsent(cluster: &mut Cluster) -> Vec<Vec<u8>> {
    let mut handed = Vec::new();
    for _ in 0..20 {
        for at in 0..cluster.shards.len() {
            let mut sent = Sent::default();
            cluster.shards[at].on_timeout(cluster.now);
            cluster.shards[at].flush(cluster.now, &mut sent);
            match at {
                0 => handed.append(&mut sent.client),
                _ => cluster.shards[at].on_sent(cluster.now, sent.client.len()),
            }
            let (from, boot) = (NodeId(at as u16 + 1), cluster.boots[at]);
            for (to, bytes) in sent.peer {
                cluster.shards[usize::from(to.0) - 1].on_peer(cluster.now, from, boot, &bytes);
            }
        }
    }
    handed
}

/// The map after `map`, in which the second address is `owner`'s, in a new term.
fn second_address(map: &ClusterMap, owner: u16) -> ClusterMap {
    let mut next = map.clone();
    next.version += 1;
    let term = Term(map.addresses[1].term.0 + 1);
    next.addresses[1] =
        crate::proto::map::MapAddress { owner: NodeId(owner), boot: Boot(owner.into()), term };
    next
}

#[test]
fn replies_that_waited_at_an_address_that_is_lost_leave_from_its_next_holder() {
    for next in [3, 1] {
        let mut cluster = Cluster::of(&shape(3, 3, 2), |_| {});
        let both = second_address(&map_of(&cluster, 2), 1);
        cluster.agree(&both);
        // Of slots of the first address, which leave by the second.
        [0, 2, 2].iter().for_each(|call| cluster.send_to(1, &packet(1, &[*call])).unwrap());
        let handed = settle_unsent(&mut cluster);
        assert_eq!(handed.len(), 3);
        let moved = second_address(&both, next);
        let now = cluster.now;
        cluster.shards[0].on_map(now, Arc::new(moved.clone()));
        cluster.shards[0].on_sent(now, handed.len());
        cluster.agree(&moved);
        cluster.pass(Nanos::from_millis(20));
        assert_eq!(counts(&cluster, 0), [(0, 1), (2, 1), (2, 2)], "they were dropped, and go again");
        cluster.pass(Nanos::from_millis(20));
        assert_eq!(cluster.replies.len(), 3);
    }
}

#[test]
fn replies_that_were_passed_on_come_home_before_newer_ones() {
    let mut cluster = Cluster::of(&shape(3, 3, 2), |_| {});
    let now = cluster.now;
    cluster.shards[1].on_lease(now, Nanos::ZERO);
    (0..3).for_each(|_| cluster.send_to(1, &packet(1, &[2])).unwrap());
    cluster.settle();
    assert!(cluster.replies.is_empty(), "their holder has no lease");
    cluster.shards[0].on_lease(now, Nanos::ZERO);
    let home = second_address(&map_of(&cluster, 2), 1);
    cluster.agree(&home);
    cluster.send_to(1, &packet(1, &[2])).unwrap();
    cluster.settle();
    cluster.shards[0].on_lease(now, Nanos::MAX);
    cluster.settle();
    assert_eq!(cluster.replies, [[1, 2], [2, 2], [3, 2], [4, 2]]);
}

#[test]
fn an_owner_with_a_bad_clock_moves_the_time_of_its_own_slots_alone() {
    let mut cluster = Cluster::of(&shape(3, 3, 2), |_| {});
    let hour = Nanos::from_secs(3_600);
    let bad = crate::types::Now { wall: cluster.now.wall + hour, ..cluster.now };
    cluster.shards[0].clock = Some(crate::proto::clock::LogicalClock::new(bad));
    // Slots 0 and 4 are the first node's, slot 1 is the second's.
    cluster.send_to(1, &packet(0, &[0])).unwrap();
    cluster.send_to(1, &packet(0, &[super::TIMER])).unwrap();
    cluster.send_to(2, &packet(1, &[1])).unwrap();
    cluster.settle();
    cut(&mut cluster, 1);
    let map = moved(&map_of(&cluster, 2), 2);
    cluster.agree(&map);
    cluster.send_to(2, &packet(0, &[0])).unwrap();
    cluster.send_to(2, &packet(1, &[1])).unwrap();
    cluster.settle();
    let time = |slot: usize| {
        cluster.shards[1].slots[slot].seat.as_ref().map_or(Nanos::ZERO, |seat| seat.log.last_time())
    };
    assert!(time(0) >= bad.wall, "its time never goes back");
    assert!(time(1) <= cluster.now.wall + Nanos::from_secs(1), "{:?}", time(1));
    assert!(!cluster.replies.contains(&b"fired".to_vec()));
    cluster.pass(Nanos::from_millis(520));
    assert!(cluster.replies.contains(&b"fired".to_vec()), "and goes on at the same pace");
}

#[test]
fn an_owner_without_a_lease_passes_no_reply_on_again() {
    let mut cluster = Cluster::of(&shape(3, 3, 2), |_| {});
    cluster.shards[1].on_lease(cluster.now, Nanos::ZERO);
    cluster.send_to(1, &packet(1, &[0])).unwrap();
    cluster.settle();
    assert_eq!(cluster.shards[0].stats().delivered, 1);
    cluster.pass(Nanos::from_millis(12));
    let again = cluster.shards[0].stats().delivered_again;
    assert!(again > 0);
    cluster.shards[0].on_lease(cluster.now, Nanos::ZERO);
    cluster.pass(Nanos::from_millis(30));
    assert_eq!(cluster.shards[0].stats().delivered_again, again);
    cluster.shards.iter_mut().for_each(|shard| shard.on_lease(cluster.now, Nanos::MAX));
    cluster.pass(Nanos::from_millis(12));
    assert_eq!(counts(&cluster, 0), [(0, 1)]);
}

#[test]
fn a_member_that_the_owner_does_not_know_yet_takes_nothing_from_its_own() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    let mut map = map_of(&cluster, 1);
    map.version += 1;
    let stranger = MapMember { node: NodeId(9), host: HostId(9), boot: Boot(9), join: map.version };
    map.groups.iter_mut().for_each(|group| group.members.insert(0, stranger));
    cluster.agree(&map);
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    assert_eq!(cluster.replies.len(), 32);
    let digests = cluster.digests();
    assert!(digests[0] == digests[1] && digests[1] == digests[2], "all members have all of it");
    // The same for an owner that begins with such a map.
    cluster.pass(Nanos::from_millis(3));
    map = moved(&map, 2);
    cluster.agree(&map);
    (0..16u8).for_each(|call| cluster.send_to(2, &packet(0, &[call])).unwrap());
    cluster.pass(Nanos::from_millis(20));
    assert_eq!(counts(&cluster, 32), (0..16).map(|call| (call, 3)).collect::<Vec<_>>());
}

/// A datagram without the entries in it.
fn without_entries(datagram: &[u8]) -> Vec<u8> {
    let (mut rest, mut kept) = (datagram, Vec::new());
    while rest.len() >= 3 && rest[0] != 0 {
        let (frame, after) = rest.split_at(3 + usize::from(u16::from_le_bytes([rest[1], rest[2]])));
        if !matches!(Frames::new(frame).next(), Some(Ok(Frame::Segment(..)))) {
            kept.extend_from_slice(frame);
        }
        rest = after;
    }
    kept
}

/// Lets nodes 1 and 3 talk for a while; entries from 3 to 1 are lost.
fn talk_without_entries(cluster: &mut Cluster) {
    for _ in 0..20 {
        cluster.now.mono = cluster.now.mono + Nanos::from_micros(300);
        for at in [0, 2] {
            let mut sent = Sent::default();
            cluster.shards[at].on_timeout(cluster.now);
            cluster.shards[at].flush(cluster.now, &mut sent);
            cluster.shards[at].on_sent(cluster.now, sent.client.len());
            cluster.replies.append(&mut sent.client);
            for (to, bytes) in sent.peer.into_iter().filter(|(to, _)| *to != NodeId(2)) {
                let bytes = if at == 2 { without_entries(&bytes) } else { bytes };
                let (from, boot) = (NodeId(at as u16 + 1), cluster.boots[at]);
                cluster.shards[usize::from(to.0) - 1].on_peer(cluster.now, from, boot, &bytes);
            }
        }
    }
}

pub(super) fn only(nodes: &[u16], cluster: &mut Cluster) {
    cluster.cut = NodeSet((1..=3).filter(|n| !nodes.contains(n)).fold(0, |set, n| set | 1 << n));
    for at in 0..3 {
        let me = NodeSet(cluster.cut.0 & !(2 << at));
        cluster.shards[at].on_suspects(cluster.now, me);
    }
}

/// What happens to an entry of term 1 that only its first owner held: the third owner finds it and sends it around, and
/// the fourth does not, because an entry of term 2 that only the second owner held ranks higher. (Figure 8 of the Raft
/// paper.) The replies that clients got by then, and how the call counts afterwards.
fn an_old_entry_comes_back_and_is_lost_again(own_term: bool) -> (Vec<Vec<u8>>, u8) {
    let mut cluster = Cluster::new(3, |config| config.safeguards.own_term = own_term);
    cluster.settle();
    only(&[1], &mut cluster);
    cluster.send_to(1, &packet(0, &[7])).unwrap();
    cluster.settle();
    only(&[2, 3], &mut cluster);
    let second = moved(&map_of(&cluster, 2), 2);
    cluster.agree(&second);
    only(&[2], &mut cluster);
    cluster.send_to(2, &packet(0, &[23])).unwrap();
    cluster.settle();
    only(&[1, 3], &mut cluster);
    let third = moved(&second, 3);
    for at in [0, 2] {
        cluster.shards[at].on_map(cluster.now, Arc::new(third.clone()));
    }
    talk_without_entries(&mut cluster);
    let before = cluster.replies.clone();
    only(&[1, 2], &mut cluster);
    let fourth = moved(&third, 2);
    cluster.agree(&fourth);
    cluster.pass(Nanos::from_millis(30));
    cluster.send_to(2, &packet(0, &[7])).unwrap();
    only(&[2, 3], &mut cluster);
    cluster.agree(&fourth);
    cluster.settle();
    // Both others went on with what did not survive: the map drops them.
    let mut alone = fourth.clone();
    alone.version += 1;
    alone.groups.iter_mut().for_each(|group| group.members.retain(|member| member.node == NodeId(2)));
    cluster.agree(&alone);
    cluster.pass(Nanos::from_millis(100));
    let after = cluster.replies.split_off(before.len());
    let count = after.iter().rev().find(|reply| reply[1] == 7).map_or(0, |reply| reply[0]);
    (before, count)
}

/// Calls 7 and 23 share a slot of 16. The simulator comes upon this in worlds that are staged for it: `Worlds::Outranked`.
#[test]
fn what_was_recovered_is_released_only_with_an_entry_of_the_new_owners_term() {
    let (released, count) = an_old_entry_comes_back_and_is_lost_again(true);
    assert_eq!((released.len(), count), (0, 1), "nobody was answered");
    let (released, count) = an_old_entry_comes_back_and_is_lost_again(false);
    assert_eq!(
        (released, count),
        (vec![vec![1, 7]], 1),
        "without the rule a client is answered, and then forgotten"
    );
}

#[test]
fn nobody_waits_for_what_a_node_was_by_maps_it_never_saw() {
    for has_seat in [true, false] {
        let mut cluster = Cluster::new(3, |_| {});
        (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
        cluster.settle();
        cut(&mut cluster, 1);
        let mut map = moved(&map_of(&cluster, 2), 2);
        map.version += 4;
        for group in &mut map.groups {
            let third = *group.member(NodeId(3)).unwrap();
            group.members.retain(|m| m.node != NodeId(3));
            group.past = vec![vec![MapMember { join: map.version - 2, ..third }]];
        }
        if !has_seat {
            cluster.shards[2].slots.iter_mut().for_each(|slot| slot.seat = None);
        }
        cluster.agree(&map);
        cluster.pass(Nanos::from_millis(20));
        let stats = cluster.shards[1].stats();
        assert_eq!((stats.slots_recovering, stats.lossy_recoveries), (0, 16), "has a seat: {has_seat}");
    }
}
