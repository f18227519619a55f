//! What each of four rules is for: each is switched off in the one sequence of events that needs it. General worlds do not
//! come upon these within any number of seeds worth waiting for, because other rules help most of the time; the simulator
//! has families of worlds in which they are likely (`sim/scenario/staged.rs`).

use super::takeover::{dropped, map_of, moved, only, packet};
use super::{Cluster, shape};
use crate::proto::map::{ClusterMap, MapMember};
use crate::types::{Boot, HostId, Nanos, NodeId};
use crate::wire::frame::{Frame, Frames};
use std::sync::Arc;

/// A call of its own slot.
const CALL: u8 = 7;

/// Nodes talk for a while; datagrams that are `lost`, by sender, receiver and content, do not arrive.
fn talk(cluster: &mut Cluster, turns: usize, mut lost: impl FnMut(u16, u16, &[u8]) -> bool) {
    for _ in 0..turns {
        cluster.now.mono = cluster.now.mono + Nanos::from_micros(300);
        cluster.turn_without(&mut lost);
    }
}

fn has_start(datagram: &[u8]) -> bool {
    Frames::new(datagram).any(|frame| matches!(frame, Ok(Frame::Start(_))))
}

/// Lets every node that is not cut off have a map before any of them says a word.
pub(super) fn announce(cluster: &mut Cluster, map: &ClusterMap) {
    for (at, shard) in cluster.shards.iter_mut().enumerate() {
        if !cluster.cut.contains(NodeId(at as u16 + 1)) {
            shard.on_map(cluster.now, Arc::new(map.clone()));
        }
    }
}

/// An owner begins another term, its Start is lost on the other member, and an ack of the term before comes late. What
/// clients got in the end.
fn an_ack_of_an_earlier_term_comes_late(frame_term: bool) -> Vec<Vec<u8>> {
    let mut cluster = Cluster::new(2, |config| config.safeguards.frame_term = frame_term);
    cluster.send(&[CALL]).unwrap();
    let mut late = Vec::new();
    talk(&mut cluster, 3, |from, _, datagram| {
        late.extend((from == 2).then(|| datagram.to_vec()));
        from == 2
    });
    let again = moved(&map_of(&cluster, 1), 1);
    announce(&mut cluster, &again);
    talk(&mut cluster, 4, |from, _, datagram| from == 1 && has_start(datagram));
    for datagram in late {
        cluster.shards[0].on_peer(cluster.now, NodeId(2), Boot(2), &datagram);
    }
    cluster.pass(Nanos::from_millis(500));
    cluster.replies
}

#[test]
fn acks_of_an_earlier_term_would_pass_for_the_answer_to_a_start() {
    assert_eq!(an_ack_of_an_earlier_term_comes_late(true), [[1, CALL]]);
    let without = an_ack_of_an_earlier_term_comes_late(false);
    assert!(
        without.is_empty(),
        "the member never hears of the term: nothing is committed any more, {without:?}"
    );
}

/// A member is dropped and learns anew, its Start is lost, and an ack that it sent as a member comes late. How many slots
/// it learns, and how many of them it has learned in the end.
fn an_ack_of_an_earlier_incarnation_comes_late(incarnations: bool) -> (u32, u32) {
    let mut cluster = Cluster::new(3, |config| config.safeguards.incarnations = incarnations);
    cluster.send(&[CALL]).unwrap();
    let mut late = Vec::new();
    talk(&mut cluster, 3, |from, _, datagram| {
        late.extend((from == 3).then(|| datagram.to_vec()));
        from == 3
    });
    let without = dropped(&map_of(&cluster, 1), 3);
    announce(&mut cluster, &without);
    let mut back = without.clone();
    back.version += 1;
    let learner = MapMember { node: NodeId(3), host: HostId(3), boot: Boot(3), join: back.version };
    back.groups.iter_mut().for_each(|group| group.learners.push(learner));
    announce(&mut cluster, &back);
    talk(&mut cluster, 4, |from, to, datagram| (from, to) == (1, 3) && has_start(datagram));
    for datagram in late {
        cluster.shards[0].on_peer(cluster.now, NodeId(3), Boot(3), &datagram);
    }
    cluster.pass(Nanos::from_millis(500));
    cluster.shards[2].report().learning
}

#[test]
fn acks_of_an_earlier_incarnation_would_pass_for_the_answer_to_a_start() {
    assert_eq!(an_ack_of_an_earlier_incarnation_comes_late(true), (16, 16));
    assert_eq!(
        an_ack_of_an_earlier_incarnation_comes_late(false),
        (16, 15),
        "the slot of the call is never learned"
    );
}

/// The first owner goes on alone and gets no answers; the second answers a client; then the first one's log, which is
/// longer and older, is there when the third term begins. What clients got in the end.
fn a_longer_log_of_an_earlier_term_is_there(log_order: bool) -> Vec<Vec<u8>> {
    let mut cluster = Cluster::new(3, |config| config.safeguards.log_order = log_order);
    cluster.send(&[CALL]).unwrap();
    cluster.pass(Nanos::from_millis(3));
    only(&[1], &mut cluster);
    (0..4).for_each(|_| cluster.send(&[CALL, b'x']).unwrap());
    cluster.settle();
    only(&[2, 3], &mut cluster);
    let second = moved(&map_of(&cluster, 2), 2);
    cluster.agree(&second);
    cluster.send_to(2, &packet(0, &[CALL, b'y'])).unwrap();
    cluster.pass(Nanos::from_millis(300));
    only(&[1, 2], &mut cluster);
    let third = moved(&second, 2);
    cluster.agree(&third);
    cluster.pass(Nanos::from_millis(30));
    only(&[1, 2, 3], &mut cluster);
    cluster.agree(&third);
    cluster.pass(Nanos::from_millis(30));
    // Who went on with what did not survive is dropped.
    let lost = cluster.shards[1].report().lost.clone();
    let map = lost.iter().fold(third, |map, (node, _)| dropped(&map, node.0));
    cluster.agree(&map);
    cluster.pass(Nanos::from_millis(30));
    cluster.send_to(2, &packet(0, &[CALL, b'z'])).unwrap();
    cluster.pass(Nanos::from_millis(100));
    cluster.replies
}

#[test]
fn the_longest_log_may_lack_what_a_client_was_told() {
    let told = vec![vec![1, CALL], vec![2, CALL, b'y']];
    let with = a_longer_log_of_an_earlier_term_is_there(true);
    assert_eq!(with, [&told[..], &[vec![3, CALL, b'z']]].concat());
    let without = a_longer_log_of_an_earlier_term_is_there(false);
    assert_eq!(without[..2], told, "the client was answered");
    assert_eq!(without.last(), Some(&vec![6, CALL, b'z']), "and its packet is not among the six");
}

/// A learner holds an entry that nobody else does when the owner changes, and of what the new owner sends the datagram with
/// the Start is lost. Whether the learner says that it holds all there is, and whether it holds the same as the members.
fn a_learner_hears_entries_before_their_start(start_first: bool) -> (bool, bool) {
    let mut cluster = Cluster::of(&shape(4, 3, 1), |config| config.safeguards.start_first = start_first);
    let mut map = map_of(&cluster, 1);
    map.version += 1;
    let named = |n: u16, join| MapMember { node: NodeId(n), host: HostId(n), boot: Boot(n.into()), join };
    for group in &mut map.groups {
        group.members = (1..=3).map(|n| named(n, 1)).collect();
        group.learners = vec![named(4, map.version)];
    }
    cluster.agree(&map);
    cluster.send(&[CALL]).unwrap();
    cluster.pass(Nanos::from_millis(20));
    cluster.send(&[CALL, b'x']).unwrap();
    talk(&mut cluster, 1, |from, to, _| from == 1 && to != 4);
    only(&[2, 3, 4], &mut cluster);
    announce(&mut cluster, &moved(&map, 2));
    // So long that it takes a datagram of its own.
    let long = [&[CALL][..], &[b'y'; 1_250]].concat();
    cluster.send_to(2, &packet(0, &long)).unwrap();
    talk(&mut cluster, 4, |from, to, datagram| (from, to) == (2, 4) && has_start(datagram));
    cluster.pass(Nanos::from_millis(200));
    let (learning, learned) = cluster.shards[3].report().learning;
    let digests = cluster.digests();
    (learning == learned, digests[3] == digests[1])
}

#[test]
fn entries_without_their_start_would_follow_what_did_not_survive() {
    assert_eq!(a_learner_hears_entries_before_their_start(true), (true, true));
    assert_eq!(
        a_learner_hears_entries_before_their_start(false),
        (true, false),
        "it would be made a member with a log of its own"
    );
}
