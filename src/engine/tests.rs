//! Shards of several nodes joined by hand, without faults of their own: what each rule does when it is needed.

use super::{DropReason, OPENS_A_TURN, Outbox, Shard, ShardConfig};
use crate::app::table::TableLimits;
use crate::app::{BadSnapshot, CallApp, Context, Inbound, TimerId, Unclassified};
use crate::proto::Safeguards;
use crate::proto::map::{ClusterMap, MapNode, MapShape};
use crate::types::{Boot, CallKey, Endpoint, HostId, LocalId, Nanos, NodeId, NodeSet, Now, Slot};
use std::sync::Arc;

mod admission;
mod early;
mod faults;
mod lazy;
mod opening;
mod rules;
mod takeover;

const CLIENT: Endpoint = Endpoint { ip: [9; 16], port: 5060 };
/// A first byte that asks [`Counting`] for a timer.
const TIMER: u8 = b'T';
/// How packets begin that begin a call.
const CALL: &[u8] = b"C";

/// Answers with its count and the packet; sets a timer for packets that ask for one.
pub(super) struct Counting;

impl CallApp for Counting {
    type Call = u8;
    type Shared = ();
    type Change = ();

    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified> {
        let named = packet.payload.first().copied().or((packet.local.port > 0).then_some(0));
        named.map(|b| CallKey(u128::from(b))).ok_or(Unclassified::NoKey)
    }

    fn opens(&self, packet: &Inbound<'_>) -> bool {
        packet.payload.starts_with(CALL)
    }

    fn refuse(&self, packet: &Inbound<'_>, retry_after_secs: u32, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(packet.payload);
        out.push(retry_after_secs as u8);
        true
    }

    /// Port n is call n's.
    fn resolve(&self, (): &(), key: CallKey, packet: &Inbound<'_>) -> Option<CallKey> {
        (packet.local.port != 9).then_some(key)
    }

    fn open(&self, _: CallKey, _: Nanos) -> u8 {
        0
    }

    fn on_packet(
        &self,
        count: &mut u8,
        ctx: &mut impl Context<Shared = (), Change = ()>,
        packet: &Inbound<'_>,
    ) {
        *count = count.wrapping_add(1);
        ctx.send(packet.local, packet.source, &[&[*count], packet.payload]);
        if packet.payload[0] == TIMER {
            ctx.set_timer(TimerId(1), ctx.now() + Nanos::from_millis(500));
        }
    }

    fn on_timer(&self, _: &mut u8, ctx: &mut impl Context<Shared = (), Change = ()>, _: TimerId) {
        ctx.send(LocalId::endpoint(0), CLIENT, &[b"fired"]);
    }

    fn apply(&self, (): &mut (), (): ()) {}

    fn snapshot(&self, count: &u8, out: &mut Vec<u8>) -> u16 {
        out.push(*count);
        1
    }

    fn restore(&self, _: u16, bytes: &[u8]) -> Result<u8, BadSnapshot> {
        Ok(bytes[0])
    }

    fn snapshot_shared(&self, (): &(), _: &mut Vec<u8>) -> u16 {
        1
    }

    fn restore_shared(&self, _: u16, _: &[u8]) -> Result<(), BadSnapshot> {
        Ok(())
    }
}

#[derive(Default)]
pub(super) struct Sent {
    pub(super) peer: Vec<(NodeId, Vec<u8>)>,
    pub(super) client: Vec<Vec<u8>>,
    multicast: usize,
}

impl Outbox for Sent {
    fn peer(&mut self, to: NodeId, plaintext: &[u8]) {
        self.peer.push((to, plaintext.to_vec()));
    }
    fn multicast(&mut self, to: NodeSet, plaintext: &[u8]) {
        self.multicast += 1;
        to.iter().for_each(|node| self.peer.push((node, plaintext.to_vec())));
    }
    fn client(&mut self, _: Slot, _: LocalId, _: Endpoint, bytes: &[u8]) {
        self.client.push(bytes.to_vec());
    }
}

/// Three nodes, time that moves when told to, and a choice of which nodes are cut off.
pub(super) struct Cluster {
    pub(super) shards: Vec<Shard<Counting>>,
    pub(super) now: Now,
    pub(super) cut: NodeSet,
    pub(super) replies: Vec<Vec<u8>>,
    pub(super) multicasts: usize,
    /// The life of each node.
    pub(super) boots: Vec<Boot>,
}

/// What all maps of a cluster of `nodes` nodes, each a host, have in common.
pub(super) fn shape(nodes: u16, replicas: usize, addresses: u16) -> MapShape {
    let node = |n| MapNode::new(NodeId(n), HostId(n));
    let nodes = (1..=nodes).map(node).collect();
    MapShape::new((16, 1), nodes, NodeId(1), (0..addresses).collect(), replicas, 0).unwrap()
}

impl Cluster {
    pub(super) fn new(nodes: u16, change: impl Fn(&mut ShardConfig)) -> Cluster {
        Cluster::of(&shape(nodes, usize::from(nodes), 1), change)
    }

    pub(super) fn of(shape: &MapShape, change: impl Fn(&mut ShardConfig)) -> Cluster {
        let now = Now { mono: Nanos::from_secs(1), wall: Nanos::from_secs(1_000_000) };
        let nodes: Vec<NodeId> = shape.nodes.iter().map(|n| n.id).collect();
        let mut boots = Vec::new();
        let mut shards = Vec::new();
        for me in &nodes {
            let mut config = ShardConfig {
                me: *me,
                boot: Boot(u64::from(me.0)),
                shard: 0,
                shards: 1,
                nodes: nodes.clone(),
                map: Arc::new(shape.empty_map()),
                datagram_room: 1400,
                window: 100,
                retain_bytes: 1 << 20,
                limits: TableLimits { max_calls: 100, idle: Nanos::MAX },
                digest_every: 4,
                hedge_after: Nanos::from_millis(1),
                multicast: false,
                lazy_after: Nanos::ZERO,
                masters_own: false,
                opens_a_turn: OPENS_A_TURN,
                blocked_after: Nanos::from_millis(15),
                lossy_go: true,
                resync_rate: 0,
                admission: Default::default(),
                founding: None,
                takeover: None,
                safeguards: Safeguards::default(),
            };
            change(&mut config);
            boots.push(config.boot);
            shards.push(Shard::new(config, Counting));
        }
        let mut cluster =
            Cluster { shards, now, cut: NodeSet::EMPTY, replies: Vec::new(), multicasts: 0, boots };
        for at in 0..cluster.shards.len() {
            for (node, boot) in nodes.iter().zip(cluster.boots.clone()) {
                cluster.shards[at].on_join(now, *node, boot);
            }
            cluster.shards[at].on_lease(now, Nanos::MAX);
        }
        let map = shape.first_map(|node| cluster.boots[usize::from(node.0) - 1]);
        cluster.agree(&map);
        cluster
    }

    /// Every node that is not cut off hears of a new map.
    pub(super) fn agree(&mut self, map: &ClusterMap) {
        for (at, shard) in self.shards.iter_mut().enumerate() {
            if !self.cut.contains(NodeId(at as u16 + 1)) {
                shard.on_map(self.now, Arc::new(map.clone()));
            }
        }
        self.settle();
    }

    pub(super) fn send(&mut self, payload: &[u8]) -> Result<(), DropReason> {
        let packet = Inbound { source: CLIENT, local: LocalId::endpoint(0), payload };
        self.send_to(1, &packet)
    }

    pub(super) fn send_to(&mut self, node: u16, packet: &Inbound<'_>) -> Result<(), DropReason> {
        let key = Counting.classify(packet).unwrap();
        self.shards[usize::from(node) - 1].on_client(self.now, key, packet)
    }

    /// Flushes and delivers until nothing moves.
    pub(super) fn settle(&mut self) {
        for _ in 0..100 {
            if !self.turn() {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// One turn of every shard; whether anything moved.
    pub(super) fn turn(&mut self) -> bool {
        self.turn_without(|_, _, _| false)
    }

    /// The same, but datagrams that are `lost`, by sender, receiver and content, do not arrive.
    pub(super) fn turn_without(&mut self, mut lost: impl FnMut(u16, u16, &[u8]) -> bool) -> bool {
        let mut moved = false;
        for at in 0..self.shards.len() {
            let mut sent = Sent::default();
            self.shards[at].on_timeout(self.now);
            self.shards[at].flush(self.now, &mut sent);
            self.shards[at].on_sent(self.now, sent.client.len());
            self.replies.append(&mut sent.client);
            self.multicasts += sent.multicast;
            let from = NodeId(at as u16 + 1);
            for (to, bytes) in sent.peer {
                moved = true;
                if !self.cut.contains(to) && !self.cut.contains(from) && !lost(from.0, to.0, &bytes) {
                    self.shards[usize::from(to.0) - 1].on_peer(self.now, from, self.boots[at], &bytes);
                }
            }
        }
        moved
    }

    pub(super) fn pass(&mut self, time: Nanos) {
        let step = Nanos::from_micros(500);
        let end = self.now.mono + time;
        while self.now.mono < end {
            self.now.mono = self.now.mono + step;
            self.now.wall = self.now.wall + step;
            self.settle();
        }
    }

    pub(super) fn suspect(&mut self, node: u16) {
        let mut suspects = NodeSet::EMPTY;
        suspects.insert(NodeId(node));
        self.shards[0].on_suspects(self.now, suspects);
    }

    pub(super) fn digests(&self) -> Vec<Vec<super::SlotDigest>> {
        self.shards.iter().map(Shard::digests).collect()
    }
}

#[test]
fn every_packet_is_answered_once_and_in_order_by_mirrors_that_agree() {
    for nodes in [1, 2, 3, 5] {
        let mut cluster = Cluster::new(nodes, |_| {});
        for n in 0..40u8 {
            cluster.send(&[n % 5, n]).unwrap();
            cluster.settle();
        }
        let expected: Vec<_> = (0..40u8).map(|n| vec![n / 5 + 1, n % 5, n]).collect();
        assert_eq!(cluster.replies, expected, "{nodes} nodes");
        let digests = cluster.digests();
        assert!(!digests[0].is_empty() && digests.iter().all(|d| *d == digests[0]));
        cluster.pass(Nanos::from_millis(600));
        for shard in &cluster.shards {
            let stats = shard.stats();
            assert_eq!((stats.retained_records, stats.hedges, stats.divergences), (0, 0, 0), "{stats:?}");
        }
    }
}

#[test]
fn multicast_serves_all_members_with_one_datagram() {
    for multicast in [false, true] {
        let mut cluster = Cluster::new(3, |config| config.multicast = multicast);
        cluster.send(&[1, 0]).unwrap();
        cluster.settle();
        assert_eq!(cluster.multicasts, 0, "members that have not begun get their own datagrams");
        (1..20u8).for_each(|n| cluster.send(&[1, n]).unwrap());
        cluster.settle();
        assert_eq!(cluster.replies.len(), 20);
        assert!(cluster.digests().iter().all(|d| *d == cluster.digests()[0]));
        assert_eq!(cluster.multicasts, usize::from(multicast), "19 entries, one datagram");
    }
}

#[test]
fn a_dead_master_is_replaced_by_one_header_and_its_replies_come_from_the_next_member() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    assert_eq!(cluster.replies.len(), 16);
    cluster.cut.insert(NodeId(2));
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    let answered = cluster.replies.len();
    assert!((16 + 8..16 + 16).contains(&answered), "{answered}: only the slots of node 2 wait");
    cluster.suspect(2);
    cluster.settle();
    assert_eq!(cluster.replies.len(), 32);
    assert!(cluster.shards[0].stats().master_changes > 0);
}

#[test]
fn late_outputs_are_asked_of_the_next_member_before_anybody_is_suspected() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    cluster.cut.insert(NodeId(3));
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    assert!(cluster.replies.len() < 32);
    let masters = cluster.shards[0].stats().masters;
    cluster.pass(Nanos::from_millis(6));
    assert_eq!(cluster.replies.len(), 32);
    let stats = cluster.shards[0].stats();
    assert!(stats.hedges > 0 && stats.rescued_outputs > 0 && stats.masters == masters, "{stats:?}");
}

#[test]
fn nothing_is_released_without_a_commit_set() {
    let mut cluster = Cluster::new(3, |_| {});
    cluster.cut.insert(NodeId(2));
    cluster.cut.insert(NodeId(3));
    cluster.send(&[0]).unwrap();
    cluster.pass(Nanos::from_millis(100));
    assert!(cluster.replies.is_empty());
    cluster.cut.remove(NodeId(3));
    cluster.pass(Nanos::from_millis(100));
    assert_eq!(cluster.replies, [[1, 0]]);
}

#[test]
fn a_member_that_was_cut_off_catches_up_and_its_masterships_come_back() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    let before = cluster.shards[0].stats().masters;
    cluster.cut.insert(NodeId(2));
    cluster.suspect(2);
    for _ in 0..3 {
        (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
        cluster.pass(Nanos::from_millis(5));
    }
    assert_eq!(cluster.replies.len(), 64);
    cluster.cut = NodeSet::EMPTY;
    cluster.shards[0].on_suspects(cluster.now, NodeSet::EMPTY);
    cluster.pass(Nanos::from_millis(20));
    assert!(cluster.digests().iter().all(|d| *d == cluster.digests()[0]));
    assert_ne!(cluster.shards[0].stats().masters, before, "masterships come back later");
    cluster.pass(Nanos::from_secs(2));
    assert_eq!(cluster.shards[0].stats().masters, before);
    assert_eq!(cluster.replies.len(), 64);
}

#[test]
fn a_new_life_of_a_node_counts_for_nothing() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    cluster.shards[0].on_join(cluster.now, NodeId(3), Boot(99));
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.pass(Nanos::from_millis(5));
    let stats = cluster.shards[0].stats();
    assert_eq!(cluster.replies.len(), 32);
    assert!(stats.masters.iter().all(|(node, _)| *node != 3), "{:?}", stats.masters);
}

#[test]
fn timers_fire_by_ticks_and_their_outputs_are_released_like_any_other() {
    let mut cluster = Cluster::new(3, |_| {});
    cluster.send(&[TIMER]).unwrap();
    cluster.settle();
    assert_eq!(cluster.replies.len(), 1);
    cluster.pass(Nanos::from_millis(490));
    assert_eq!(cluster.replies.len(), 1);
    cluster.pass(Nanos::from_millis(20));
    assert_eq!(cluster.replies[1..], [b"fired"]);
    assert_eq!(cluster.shards[0].stats().ticks, 1);
}

#[test]
fn a_full_window_pushes_back_and_every_drop_is_counted() {
    let mut cluster = Cluster::new(3, |config| config.window = 10);
    cluster.cut.insert(NodeId(2));
    cluster.cut.insert(NodeId(3));
    let refused = (0..50).filter(|_| cluster.send(&[1]) == Err(DropReason::WindowFull)).count();
    assert_eq!(refused, 40);
    let long = vec![1; 65_001];
    assert_eq!(cluster.send(&long), Err(DropReason::TooLong));
    let stats = cluster.shards[0].stats();
    assert_eq!((stats.entries, stats.drop_window_full, stats.drop_too_long), (10, 40, 1));
    cluster.cut = NodeSet::EMPTY;
    cluster.pass(Nanos::from_millis(500));
    assert_eq!(cluster.replies.len(), 10);
}

#[test]
fn a_member_that_stays_away_is_given_up_when_its_entries_fill_the_memory() {
    let mut cluster = Cluster::new(3, |config| config.retain_bytes = 10_000);
    cluster.send(&[1; 200]).unwrap();
    cluster.settle();
    cluster.cut.insert(NodeId(3));
    cluster.suspect(3);
    for _ in 0..200 {
        cluster.send(&[1; 200]).unwrap();
        cluster.settle();
    }
    let stats = cluster.shards[0].stats();
    assert_eq!((cluster.replies.len(), stats.demotions), (201, 1));
    assert!(stats.retained_bytes < 30_000, "{}", stats.retained_bytes);
}

#[test]
fn hostile_frames_from_a_peer_are_counted_and_change_nothing() {
    let mut cluster = Cluster::new(3, |_| {});
    cluster.send(&[1, 1]).unwrap();
    cluster.settle();
    let now = cluster.now;
    let mut junk = vec![1u8, 200, 0];
    junk.extend([0xff; 200]);
    for kind in 0..24u8 {
        junk[0] = kind;
        for len in 0..junk.len() {
            junk[1] = len.saturating_sub(3) as u8;
            cluster.shards[0].on_peer(now, NodeId(2), Boot(2), &junk[..len]);
            cluster.shards[1].on_peer(now, NodeId(1), Boot(1), &junk[..len]);
        }
    }
    cluster.settle();
    cluster.send(&[1, 2]).unwrap();
    cluster.pass(Nanos::from_millis(10));
    assert_eq!(cluster.replies, [[1, 1, 1], [2, 1, 2]]);
    assert!(cluster.shards[0].stats().drop_malformed > 0);
}
