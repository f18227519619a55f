//! Nodes that run the SIP application: real shards, joined by a network of the world's, under maps made here.

use std::net::SocketAddr;
use std::sync::Arc;

use super::agent::MS;
use crate::app::media::{Ice, MediaPorts};
use crate::app::sip::Sip;
use crate::app::sip::config::{MediaConfig, ServiceEndpoint, SipConfig};
use crate::app::table::TableLimits;
use crate::app::{CallApp, Inbound};
use crate::engine::{OPENS_A_TURN, Outbox, Shard, ShardConfig};
use crate::proto::Safeguards;
use crate::proto::map::{ClusterMap, Group, MapMember, MapNode, MapShape, NodeState};
use crate::types::{Boot, Endpoint, HostId, LocalId, Nanos, NodeId, NodeSet, Now, Slot, Term};

pub(super) const NODES: usize = 3;
pub(super) const SLOTS: u16 = 4;
pub(super) const ADDRESSES: u16 = 2;
/// Virtual time begins here.
const EPOCH: u64 = 1_700_000_000_000_000_000;

/// What a node has sent in one turn.
#[derive(Default)]
pub(super) struct Sent {
    pub peer: Vec<(NodeId, Vec<u8>)>,
    /// Of a slot, from a local place, to a client.
    pub client: Vec<(LocalId, SocketAddr, Vec<u8>)>,
    pub records: Vec<Vec<u8>>,
    notices: Vec<Vec<u8>>,
    taken: usize,
}

impl Outbox for Sent {
    fn peer(&mut self, to: NodeId, plaintext: &[u8]) {
        self.peer.push((to, plaintext.to_vec()));
    }

    fn multicast(&mut self, to: NodeSet, plaintext: &[u8]) {
        to.iter().for_each(|node| self.peer.push((node, plaintext.to_vec())));
    }

    fn client(&mut self, _: Slot, local: LocalId, to: Endpoint, bytes: &[u8]) {
        self.taken += 1;
        match local {
            LocalId::NOTICE => self.notices.push(bytes.to_vec()),
            LocalId::RECORD => self.records.push(bytes.to_vec()),
            _ => self.client.push((local, to.into(), bytes.to_vec())),
        }
    }
}

/// One node: dead if it has no shard.
struct Seat {
    shard: Option<Shard<Sip>>,
    boot: Boot,
}

/// What a dead node's return still needs.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Health {
    /// Nothing: all nodes are members.
    Whole,
    /// A node is dead.
    Short(usize),
    /// Somebody learns.
    Learning,
    /// All are members; the past ones are still needed.
    Confirming,
}

/// The nodes.
pub(super) struct Cluster {
    seats: Vec<Seat>,
    config: SipConfig,
    founding: Arc<[u8]>,
    map: ClusterMap,
    empty: Arc<ClusterMap>,
    suspects: NodeSet,
    pub health: Health,
}

fn now(at: u64) -> Now {
    Now { mono: Nanos(1_000 * MS + at), wall: Nanos(EPOCH + at) }
}

/// The service address of that number, at its SIP port.
pub(super) fn service(address: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, address as u8 + 1], 5060))
}

fn sip_config() -> SipConfig {
    let endpoints = (0..ADDRESSES).map(|n| ServiceEndpoint::new(service(n), n)).collect();
    let ports = MediaPorts { first: 30_000, last: 30_399, slots: SLOTS, addresses: ADDRESSES };
    let mut config = SipConfig::new(42, SLOTS, endpoints);
    config.media = Some(MediaConfig {
        ports,
        ice: Ice::Remove,
        latch: Nanos::from_secs(10),
        timeout: Some(Nanos::from_secs(60)),
    });
    config.ring_timeout = Nanos::from_secs(12);
    config.next_after = Nanos::from_secs(3);
    config
}

impl Cluster {
    pub(super) fn new(routes: &str) -> Cluster {
        let node = |n: usize| MapNode::new(NodeId(n as u16 + 1), HostId(n as u16 + 1));
        let nodes = (0..NODES).map(node).collect();
        let shape = MapShape::new((SLOTS, 1), nodes, NodeId(1), (0..ADDRESSES).collect(), NODES, 0)
            .expect("a shape like any other");
        let empty = Arc::new(shape.empty_map());
        let map = shape.first_map(|node| Boot(node.0.into()));
        let founding = [b"R", routes.as_bytes()].concat().into();
        let (config, suspects, health) = (sip_config(), NodeSet::EMPTY, Health::Whole);
        let mut cluster = Cluster { seats: Vec::new(), config, founding, map, empty, suspects, health };
        for n in 0..NODES {
            let boot = Boot(n as u64 + 1);
            let shard = cluster.shard(n, boot);
            cluster.seats.push(Seat { shard: Some(shard), boot });
        }
        for n in 0..NODES {
            cluster.introduce(0, n);
        }
        cluster.agree(0);
        cluster
    }

    fn shard(&self, node: usize, boot: Boot) -> Shard<Sip> {
        let config = ShardConfig {
            me: NodeId(node as u16 + 1),
            boot,
            shard: 0,
            shards: 1,
            nodes: (0..NODES).map(|n| NodeId(n as u16 + 1)).collect(),
            map: self.empty.clone(),
            datagram_room: 1_400,
            window: 1_000,
            retain_bytes: 16 << 20,
            limits: TableLimits { max_calls: 1_000, idle: Nanos::from_secs(3_600) },
            digest_every: 16,
            hedge_after: Nanos::from_millis(2),
            multicast: false,
            lazy_after: Nanos::from_millis(2),
            masters_own: false,
            opens_a_turn: OPENS_A_TURN,
            blocked_after: Nanos::from_millis(50),
            lossy_go: false,
            resync_rate: 0,
            admission: Default::default(),
            founding: Some(self.founding.clone()),
            takeover: Some(Arc::from(*b"T")),
            safeguards: Safeguards::default(),
        };
        Shard::new(config, Sip::new(self.config.clone()))
    }

    /// A node and all others hear of one another's lives.
    fn introduce(&mut self, at: u64, node: usize) {
        let boots: Vec<Option<Boot>> =
            self.seats.iter().map(|seat| seat.shard.is_some().then_some(seat.boot)).collect();
        for (n, seat) in self.seats.iter_mut().enumerate() {
            let Some(shard) = &mut seat.shard else { continue };
            for (other, boot) in boots.iter().enumerate().filter(|(other, _)| n == node || *other == node) {
                boot.iter().for_each(|boot| shard.on_join(now(at), NodeId(other as u16 + 1), *boot));
            }
            shard.on_lease(now(at), Nanos::MAX);
        }
    }

    /// Every live node hears of the newest map.
    fn agree(&mut self, at: u64) {
        let map = Arc::new(self.map.clone());
        self.live().for_each(|shard| shard.on_map(now(at), map.clone()));
    }

    fn live(&mut self) -> impl Iterator<Item = &mut Shard<Sip>> {
        self.seats.iter_mut().filter_map(|seat| seat.shard.as_mut())
    }

    /// The node that holds a service address, if it lives.
    pub(super) fn owner(&self, address: u16) -> Option<usize> {
        let owner = usize::from(self.map.addresses[usize::from(address)].owner.0) - 1;
        self.seats[owner].shard.is_some().then_some(owner)
    }

    /// The node that should be master of a slot.
    pub(super) fn master(&self, slot: u16) -> usize {
        usize::from(self.map.group(Slot(slot)).members[0].node.0) - 1
    }

    /// The boot of a node that lives.
    pub(super) fn boot(&self, node: usize) -> Option<Boot> {
        self.seats[node].shard.as_ref().map(|_| self.seats[node].boot)
    }

    /// The slot of a SIP datagram.
    pub(super) fn slot_of(&self, call_id: &str) -> u16 {
        let text = format!("OPTIONS sip:p SIP/2.0\r\nCall-ID: {call_id}\r\n\r\n");
        let source = Endpoint { ip: [0; 16], port: 0 };
        let packet = Inbound { source, local: LocalId::endpoint(0), payload: text.as_bytes() };
        Sip::new(self.config.clone()).classify(&packet).map_or(0, |key| key.slot(SLOTS).0)
    }

    /// A client's datagram came to a service address; false if nobody took it.
    pub(super) fn ingress(&mut self, at: u64, local: LocalId, source: SocketAddr, payload: &[u8]) -> bool {
        let Some(owner) = self.owner(local.endpoint) else { return false };
        let Some(shard) = &mut self.seats[owner].shard else { return false };
        let packet = Inbound { source: source.into(), local, payload };
        shard.app().classify(&packet).is_ok_and(|key| shard.on_client(now(at), key, &packet).is_ok())
    }

    /// A datagram between nodes came.
    pub(super) fn peer(&mut self, at: u64, to: usize, from: usize, boot: Boot, bytes: &[u8]) {
        let shard = self.seats[to].shard.as_mut();
        shard.into_iter().for_each(|shard| shard.on_peer(now(at), NodeId(from as u16 + 1), boot, bytes));
    }

    /// A turn of a node's loop: what it sends, and when it wants the next.
    pub(super) fn turn(&mut self, at: u64, node: usize) -> (Sent, u64) {
        let mut sent = Sent::default();
        let Some(shard) = &mut self.seats[node].shard else { return (sent, u64::MAX) };
        loop {
            shard.on_timeout(now(at));
            shard.flush(now(at), &mut sent);
            shard.on_sent(now(at), std::mem::take(&mut sent.taken));
            if sent.notices.is_empty() {
                break;
            }
            for notice in std::mem::take(&mut sent.notices) {
                shard.on_notice(now(at), &notice, false);
            }
        }
        let next = shard.next_timeout();
        let next = if next == Nanos::MAX { u64::MAX } else { next.since(now(0).mono).0.max(at + MS / 100) };
        (sent, next)
    }

    /// The process of a node ends.
    pub(super) fn kill(&mut self, node: usize) {
        self.seats[node].shard = None;
        self.health = Health::Short(node);
    }

    /// The others notice.
    pub(super) fn suspect(&mut self, at: u64, node: usize) {
        self.suspects.insert(NodeId(node as u16 + 1));
        let suspects = self.suspects;
        self.live().for_each(|shard| shard.on_suspects(now(at), suspects));
    }

    /// The dead node's life has ended by agreement; whether an address moved.
    pub(super) fn declare_dead(&mut self, at: u64, node: usize) -> bool {
        let dead = NodeId(node as u16 + 1);
        let heir = (node + 1) % NODES;
        self.map.version += 1;
        let mut moved = false;
        for address in self.map.addresses.iter_mut().filter(|address| address.owner == dead) {
            (address.owner, address.boot) = (NodeId(heir as u16 + 1), self.seats[heir].boot);
            address.term = Term(address.term.0 + 1);
            moved = true;
        }
        self.map.nodes[node].state = NodeState::Gone;
        self.agree(at);
        moved
    }

    /// It begins another life and learns what the others hold.
    pub(super) fn restart(&mut self, at: u64, node: usize) {
        let id = NodeId(node as u16 + 1);
        let boot = Boot(self.seats[node].boot.0 + NODES as u64);
        let shard = self.shard(node, boot);
        self.seats[node] = Seat { shard: Some(shard), boot };
        self.suspects.remove(id);
        let suspects = self.suspects;
        self.introduce(at, node);
        self.live().for_each(|shard| shard.on_suspects(now(at), suspects));
        self.map.version += 1;
        (self.map.nodes[node].boot, self.map.nodes[node].state) = (boot, NodeState::Live);
        let learner = MapMember { node: id, host: HostId(id.0), boot, join: self.map.version };
        for group in &mut self.map.groups {
            group.past.push(group.members.clone());
            group.members.retain(|member| member.node != id);
            group.learners.push(learner);
        }
        self.agree(at);
        self.health = Health::Learning;
    }

    /// Members that an owner has given up learn anew what the others hold; whether there are any.
    fn teach_the_lost(&mut self, at: u64) -> bool {
        let version = self.map.version;
        let owners = (0..ADDRESSES).filter_map(|address| self.owner(address));
        let reports = owners.filter_map(|owner| self.seats[owner].shard.as_ref()).map(Shard::report);
        let lost: Vec<_> = reports.filter(|r| r.map == version).flat_map(|r| r.lost.clone()).collect();
        let mut taught = false;
        for (node, groups) in lost {
            let given_up = |(at, _): &(usize, &mut Group)| groups.contains(*at);
            for (_, group) in self.map.groups.iter_mut().enumerate().filter(given_up) {
                let Some(member) = group.member(node).copied().filter(|_| group.members.len() > 1) else {
                    continue;
                };
                group.past.push(group.members.clone());
                group.members.retain(|member| member.node != node);
                group.learners.push(MapMember { join: version + 1, ..member });
                taught = true;
            }
        }
        if !taught {
            return false;
        }
        if !matches!(self.health, Health::Short(_)) {
            self.health = Health::Learning;
        }
        self.map.version += 1;
        self.agree(at);
        true
    }

    /// Makes learners members once all of them hold what they have to; whether it did.
    fn promote(&mut self) -> bool {
        let version = self.map.version;
        let holds = |group: usize, learner: &MapMember| {
            let shard = self.seats[usize::from(learner.node.0) - 1].shard.as_ref();
            shard
                .map(Shard::report)
                .is_some_and(|report| report.map == version && report.synced.contains(group))
        };
        let groups = || self.map.groups.iter().enumerate();
        let some = groups().any(|(_, group)| !group.learners.is_empty());
        if !some || !groups().all(|(at, group)| group.learners.iter().all(|learner| holds(at, learner))) {
            return false;
        }
        for group in self.map.groups.iter_mut().filter(|group| !group.learners.is_empty()) {
            group.past.push(group.members.clone());
            group.members.append(&mut group.learners);
        }
        true
    }

    /// Looks whether the next map is due.
    pub(super) fn look(&mut self, at: u64) {
        let (version, groups) = (self.map.version, self.map.groups.len());
        if self.teach_the_lost(at) {
            return;
        }
        match self.health {
            Health::Learning => {
                if !self.promote() {
                    return;
                }
                self.health = Health::Confirming;
            }
            Health::Short(_) => {
                if !self.promote() {
                    return;
                }
            }
            Health::Confirming => {
                let confirms = |address: u16| {
                    let shard = self.owner(address).and_then(|owner| self.seats[owner].shard.as_ref());
                    let report = shard.map(Shard::report);
                    let all = |report: &crate::engine::ShardReport| {
                        report.map == version && (0..groups).all(|group| report.confirmed.contains(group))
                    };
                    report.is_some_and(all)
                };
                if !(0..ADDRESSES).all(confirms) {
                    return;
                }
                self.map.groups.iter_mut().for_each(|group| group.past.clear());
                self.health = Health::Whole;
            }
            Health::Whole => return,
        }
        self.map.version += 1;
        self.agree(at);
    }

    /// Whether all live nodes have executed the same.
    pub(super) fn is_level(&self) -> bool {
        let mut live = self.seats.iter().filter_map(|seat| seat.shard.as_ref()).map(|shard| {
            shard.digests().into_iter().map(|digest| (digest.slot, digest.executed)).collect::<Vec<_>>()
        });
        let first = live.next();
        live.all(|places| Some(&places) == first.as_ref())
    }

    /// What must hold once everything is over.
    pub(super) fn judge(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let live: Vec<&Shard<Sip>> = self.seats.iter().filter_map(|seat| seat.shard.as_ref()).collect();
        for (n, shard) in live.iter().enumerate() {
            if shard.digests() != live[0].digests() {
                faults.push(format!("digests differ: {:?} {:?}", live[0].digests(), shard.digests()));
            }
            let stats = shard.stats();
            if stats.calls != 0 {
                faults.push(format!("live node {n} still holds {} calls", stats.calls));
            }
            let bad =
                (stats.divergences, stats.calls_panicked, stats.outputs_dropped, stats.lossy_recoveries);
            if bad != (0, 0, 0, 0) {
                faults.push(format!("live node {n}: diverged, panicked, dropped, lossy: {bad:?}"));
            }
            for slot in 0..SLOTS {
                let held = shard.shared(Slot(slot)).map(|shared| shared.ports.held());
                if held != Some(0) {
                    faults.push(format!("live node {n}, slot {slot}: {held:?} media ports held"));
                }
            }
        }
        faults
    }
}
