//! The shard loop around a stand-in for the engine: sockets, ring, timers, cells.

use super::*;
use crate::app::media::MediaPorts;
use crate::io::cells::ShardCell;
use crate::io::media::{MediaPlan, MediaSockets};
use crate::io::sys_socket::Buffers;
use crate::proto::map::{MapAddress, MapNode, MapShape, NodeState};
use crate::types::{HostId, Slot, Term};
use crate::wire::seal::{ClusterKey, Sealer};
use crossbeam::channel;
use mio::Waker;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};

const SLOTS: u16 = 4;
const BUFFERS: Buffers = Buffers { recv: 1 << 20, send: 1 << 20 };
const BOOT: Boot = Boot(77);

/// Answers each datagram with its bytes and the shard's number, a datagram's first byte being its call; sends
/// what it was asked to send to its peer, and counts.
struct Fake {
    shard: u16,
    replies: Vec<(Endpoint, LocalId, Vec<u8>)>,
    for_peer: Option<NodeId>,
    deadline: Nanos,
    sent: usize,
    heard: Vec<String>,
    timeouts: u32,
    suspects: NodeSet,
    report: ShardReport,
    lease: Nanos,
    /// Once set, its lease is given up by the time it has written its next replies.
    gives_up: Arc<OnceLock<Arc<NodeCells>>>,
}

impl ShardCore for Fake {
    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified> {
        packet.payload.first().map(|byte| CallKey(u128::from(*byte))).ok_or(Unclassified::NoKey)
    }
    fn on_client(&mut self, _now: Now, key: CallKey, packet: &Inbound<'_>) -> bool {
        assert_eq!(key.slot(SLOTS).0 % 2, self.shard % 2);
        let mut bytes = packet.payload.to_vec();
        bytes.push(self.shard as u8);
        self.replies.push((packet.source, packet.local, bytes));
        packet.payload[0] != b'x'
    }
    fn admit(
        &mut self,
        _now: Now,
        _key: CallKey,
        packet: &Inbound<'_>,
        _behind: Nanos,
        answer: &mut Vec<u8>,
    ) -> bool {
        if packet.payload.ends_with(b"?") {
            answer.extend_from_slice(b"no");
        }
        answer.is_empty()
    }
    fn on_notice(&mut self, _now: Now, notice: &Notice) -> usize {
        self.heard.push(format!("notice {}", String::from_utf8_lossy(&notice.bytes)));
        3
    }
    fn on_peer(&mut self, _now: Now, from: NodeId, boot: Boot, plaintext: &[u8]) {
        self.heard.push(format!("{from} {} {}", boot.0, String::from_utf8_lossy(plaintext)));
    }
    fn on_join(&mut self, _now: Now, node: NodeId, boot: Boot) {
        self.heard.push(format!("{node} {} joined", boot.0));
    }
    fn on_suspects(&mut self, _now: Now, suspects: NodeSet) {
        self.suspects = suspects;
    }
    fn on_map(&mut self, _now: Now, map: Arc<ClusterMap>) {
        self.report.map = map.version;
    }
    fn on_lease(&mut self, _now: Now, until: Nanos) {
        self.lease = until;
    }
    fn may_release(&self, now: Nanos) -> bool {
        now < self.lease
    }
    fn report(&self) -> &ShardReport {
        &self.report
    }
    fn on_timeout(&mut self, now: Now) {
        self.timeouts += 1;
        self.deadline = now.mono + Nanos::from_millis(2);
    }
    fn flush(&mut self, now: Now, outbox: &mut impl Outbox) {
        if let Some(cells) = self.gives_up.get().filter(|_| !self.replies.is_empty()) {
            cells.set_lease(now.mono, Nanos::ZERO);
        }
        for (to, local, bytes) in self.replies.drain(..) {
            outbox.client(Slot(0), local, to, &bytes);
        }
        if let Some(peer) = self.for_peer {
            outbox.peer(peer, b"frames");
        }
    }
    fn on_sent(&mut self, _now: Now, count: usize) {
        self.sent += count;
    }
    fn next_timeout(&self) -> Nanos {
        self.deadline
    }
    fn figures(&self, _now: Now) -> serde_json::Value {
        serde_json::Value::Null
    }
    fn has_call(&self, _local: LocalId) -> bool {
        false
    }
    fn digests(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
    fn stats(&self) -> serde_json::Value {
        serde_json::json!({
            "sent": self.sent,
            "heard": self.heard,
            "timeouts": self.timeouts,
            "suspects": self.suspects.0,
            "map": self.report.map,
        })
    }
}

fn fake(shard: u16) -> Fake {
    Fake {
        shard,
        replies: Vec::new(),
        for_peer: None,
        deadline: Nanos::MAX,
        sent: 0,
        heard: Vec::new(),
        timeouts: 0,
        suspects: NodeSet::EMPTY,
        report: ShardReport::default(),
        lease: Nanos::ZERO,
        gives_up: Arc::default(),
    }
}

/// The address that has media ports, 16 for each slot.
const MEDIA_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 3, 1));
const FIRST_PORT: u16 = 42_000;

fn media_plan(ip: IpAddr, shard: u16) -> Option<MediaPlan> {
    let ports = MediaPorts { first: FIRST_PORT, last: FIRST_PORT + 63, slots: SLOTS, addresses: 1 };
    (ip == MEDIA_IP).then(|| MediaPlan { ports, addresses: vec![(ip, 0)], shards: 2, shard })
}

type Running = JoinHandle<io::Result<serde_json::Value>>;

/// A node of as many shards as there are cores given, on one service endpoint, with a link to one peer.
struct Node {
    cells: Arc<NodeCells>,
    asks: Vec<Sender<Question>>,
    threads: Vec<Running>,
}

impl Node {
    fn start(
        id: u16,
        endpoint: SocketAddr,
        link: Option<(NodeId, SocketAddr, SocketAddr)>,
        cores: Vec<Fake>,
    ) -> Node {
        Node::start_gathering(id, endpoint, link, cores, Nanos::ZERO)
    }

    fn start_gathering(
        id: u16,
        endpoint: SocketAddr,
        link: Option<(NodeId, SocketAddr, SocketAddr)>,
        cores: Vec<Fake>,
        gather: Nanos,
    ) -> Node {
        let polls: Vec<Poll> = cores.iter().map(|_| Poll::new().unwrap()).collect();
        let shard_cells =
            polls.iter().map(|poll| ShardCell::new(Waker::new(poll.registry(), WAKE).unwrap())).collect();
        let control = Waker::new(Poll::new().unwrap().registry(), WAKE).unwrap();
        let cells = Arc::new(NodeCells::new(shard_cells, control));
        let rings: Vec<_> = cores.iter().map(|_| Arc::new(ArrayQueue::new(64))).collect();
        let key = ClusterKey::loopback();
        let (mut asks, mut threads) = (Vec::new(), Vec::new());
        for (shard, (core, poll)) in cores.into_iter().zip(polls).enumerate() {
            let links: Vec<_> = link
                .iter()
                .map(|(peer, own, theirs)| (*peer, Link::connect(*own, *theirs, BUFFERS).unwrap().0))
                .collect();
            let peers = NodeSet(0b110);
            let sealer = Sealer::new(&key, NodeId(id), BOOT, shard as u16 + 1);
            let (ask, questions) = channel::bounded(4);
            asks.push(ask);
            let mut outgoing = Outgoing::new(1, links, Vec::new(), sealer, cells.clone());
            outgoing.media = MediaSockets::new(media_plan(endpoint.ip(), shard as u16).as_ref());
            let parts = ShardParts {
                node: NodeId(id),
                boot: BOOT,
                endpoints: vec![endpoint],
                buffers: BUFFERS,
                shard: shard as u16,
                slots: SLOTS,
                batch: 4,
                gather,
                poll,
                outgoing,
                listening: Vec::new(),
                opener: Opener::new(&key, NodeId(id), BOOT, peers),
                cells: cells.clone(),
                rings: rings.clone(),
                questions,
            };
            let shard_loop = ShardLoop::new(core, parts).unwrap();
            threads.push(thread::spawn(move || shard_loop.run()));
        }
        Node { cells, asks, threads }
    }

    /// Gives the service address to a node by the map of this version, and this one a lease; waits until every shard
    /// knows.
    fn hold(&self, version: u32, owner: u16, lease: Nanos) {
        self.cells.set_map(&map(version, owner));
        self.cells.set_lease(sys_time::mono(), lease);
        self.wait_until(|shard| shard.followed() == version);
    }

    fn wait_until(&self, done: impl Fn(&ShardCell) -> bool) {
        let began = sys_time::mono();
        while !self.cells.shards.iter().all(&done) {
            assert!(sys_time::mono().since(began) < Nanos::from_secs(5), "not within five seconds");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn ask(&self, shard: usize) -> serde_json::Value {
        let (reply, answer) = channel::bounded(1);
        self.asks[shard].send(Question { subject: Subject::Status, reply }).unwrap();
        self.cells.shards[shard].wake();
        answer.recv_timeout(Duration::from_secs(5)).unwrap()
    }

    fn stop(self) -> Vec<serde_json::Value> {
        self.cells.stop();
        self.threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    }
}

fn map(version: u32, owner: u16) -> Arc<ClusterMap> {
    let node = |id| MapNode { boot: BOOT, state: NodeState::Live, ..MapNode::new(NodeId(id), HostId(id)) };
    let shape = MapShape::new((SLOTS, 1), vec![node(1), node(2)], NodeId(1), vec![0], 2, 0).unwrap();
    let address = MapAddress { owner: NodeId(owner), boot: BOOT, term: Term(version) };
    Arc::new(ClusterMap { version, addresses: vec![address], ..shape.empty_map() })
}

fn free() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn datagrams_reach_the_shard_of_their_slot_and_replies_come_back() {
    let endpoint = free();
    let node = Node::start(1, endpoint, None, vec![fake(0), fake(1)]);
    node.hold(1, 1, Nanos::MAX);
    let clients: Vec<UdpSocket> = (0..8).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for call in [b'a', b'b'] {
            client.send_to(&[call, b'!'], endpoint).unwrap();
            let mut buffer = [0; 8];
            let (len, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(from, endpoint);
            assert_eq!(buffer[..len], [call, b'!', call % 2]);
        }
    }
    clients[0].send_to(&[], endpoint).unwrap();
    clients[0].send_to(b"x", endpoint).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(clients[0].recv(&mut buffer).unwrap(), 2);
    let reports = node.stop();
    let sum =
        |pointer: &str| reports.iter().map(|r| r.pointer(pointer).unwrap().as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("/engine/sent"), 17);
    assert_eq!(sum("/io/client_received"), 18);
    assert_eq!(sum("/io/client_sent"), 17);
    assert_eq!(sum("/io/dropped/client_no_call"), 1);
    assert_eq!(sum("/io/dropped/client_refused"), 1);
}

#[test]
fn packets_gather_between_turns_where_that_is_asked_for() {
    let (endpoint, gather) = (free(), Nanos::from_millis(1));
    let node = Node::start_gathering(1, endpoint, None, vec![fake(0)], gather);
    node.hold(1, 1, Nanos::MAX);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let began = sys_time::mono();
    let turns = |node: &Node| node.ask(0)["io"]["turns"].as_u64().unwrap();
    let before = turns(&node);
    for _ in 0..200 {
        client.send_to(b"b!", endpoint).unwrap();
        thread::sleep(Duration::from_micros(50));
    }
    let mut buffer = [0; 8];
    (0..200).for_each(|_| assert_eq!(client.recv(&mut buffer).unwrap(), 3));
    let most = sys_time::mono().since(began).0 / gather.0 + 3;
    let turned = turns(&node) - before;
    assert!(turned <= most, "{turned} turns, at most {most}");
    assert_eq!(node.stop()[0]["engine"]["sent"], 200);
}

#[test]
fn media_comes_to_the_shard_of_its_port_and_leaves_from_it() {
    let node = Node::start(1, SocketAddr::new(MEDIA_IP, 5_060), None, vec![fake(0), fake(1)]);
    node.hold(1, 1, Nanos::MAX);
    let open = |shard| node.ask(shard)["media_ports"] == serde_json::json!([32, 32]);
    while !(open(0) && open(1)) {
        thread::sleep(Duration::from_millis(1));
    }
    let client = UdpSocket::bind("127.77.3.9:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for (port, call) in [(0, b'd'), (17, b'a'), (35, b'b'), (63, b'c')] {
        let port = SocketAddr::new(MEDIA_IP, FIRST_PORT + port);
        client.send_to(&[call, b'!'], port).unwrap();
        let mut buffer = [0; 8];
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((from, &buffer[..len]), (port, &[call, b'!', call % 2][..]));
    }
    node.hold(2, 2, Nanos::MAX);
    while node.ask(0)["media_ports"] != serde_json::json!([0, 0]) {
        thread::sleep(Duration::from_millis(1));
    }
    let reports = node.stop();
    let sum = |name: &str| reports.iter().map(|r| r["io"][name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("media_received"), sum("media_sent"), sum("handed_over")), (4, 4, 0));
}

#[test]
fn new_calls_are_answered_without_the_core_and_notices_reach_every_shard() {
    let endpoint = free();
    let node = Node::start(1, endpoint, None, vec![fake(0), fake(1)]);
    node.hold(1, 1, Nanos::MAX);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 8];
    for call in [b'a', b'b'] {
        client.send_to(&[call, b'?'], endpoint).unwrap();
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((from, &buffer[..len]), (endpoint, &b"no"[..]));
    }
    let (told, counts) = channel::bounded(2);
    let notice = Notice { bytes: Arc::from(&b"R"[..]), founding: true, told: Some(told) };
    assert_eq!(node.cells.notify(&notice), 0);
    drop(notice);
    assert_eq!(counts.iter().sum::<usize>(), 6);
    let reports = node.stop();
    assert!(reports.iter().all(|report| report["engine"]["heard"][0] == "notice R"));
    let sum = |name: &str| reports.iter().map(|r| r["io"][name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("client_turned_away"), sum("client_sent")), (2, 2));
}

#[test]
fn timers_suspects_and_questions_reach_an_idle_shard() {
    let mut core = fake(0);
    core.deadline = sys_time::mono();
    let node = Node::start(1, free(), None, vec![core]);
    thread::sleep(Duration::from_millis(60));
    node.cells.shards[0].set_suspects(NodeSet(0b100));
    thread::sleep(Duration::from_millis(20));
    assert!(node.cells.shards[0].progress().turns > 10);
    let report = node.ask(0);
    assert_eq!(report["engine"]["suspects"], 0b100);
    assert!(report["engine"]["timeouts"].as_u64().unwrap() >= 10, "{report}");
    node.stop();
}

#[test]
fn shards_of_two_nodes_hear_each_other_and_notice_a_closed_port() {
    let (a, b) = (free(), free());
    let mut speaking = fake(0);
    speaking.for_peer = Some(NodeId(2));
    speaking.deadline = sys_time::mono();
    let first = Node::start(1, free(), Some((NodeId(2), a, b)), vec![speaking]);
    let second = Node::start(2, free(), Some((NodeId(1), b, a)), vec![fake(0)]);
    thread::sleep(Duration::from_millis(30));
    assert_eq!(second.ask(0)["engine"]["heard"], serde_json::json!([]), "nobody greeted yet");
    first.cells.set_boot(NodeId(2), BOOT);
    thread::sleep(Duration::from_millis(60));
    let report = second.ask(0);
    assert_eq!(report["engine"]["heard"][0], "n1 77 frames");
    assert_eq!(second.cells.shards[0].heard(NodeId(1)), Nanos::ZERO, "heard, but not met");
    second.cells.set_boot(NodeId(1), BOOT);
    thread::sleep(Duration::from_millis(30));
    assert!(second.cells.shards[0].heard(NodeId(1)) > Nanos::ZERO);
    first.cells.shards[0].take_refused();
    second.stop();
    thread::sleep(Duration::from_millis(60));
    assert_eq!(first.cells.shards[0].take_refused(), NodeSet(0b100));
    let report = &first.stop()[0];
    assert_eq!(report["engine"]["heard"], serde_json::json!(["n2 77 joined"]));
    assert!(report["io"]["dropped"]["peer_not_met"].as_u64().unwrap() > 0);
}

#[test]
fn the_pool_is_used_again_once_its_datagrams_are_gone() {
    let mut pool = BytesMut::new();
    let first = copy_into(&mut pool, &[1; 1_000]).as_ptr();
    let again = (0..10_000).filter(|_| copy_into(&mut pool, &[2; 1_000]).as_ptr() == first).count();
    assert!(again > 10, "{again} times at the place of the first");
    let kept: Vec<Bytes> = (0..1_000).map(|n| copy_into(&mut pool, &[n as u8; 999])).collect();
    assert!(kept.iter().enumerate().all(|(n, bytes)| bytes[..] == [n as u8; 999]));
}

#[test]
fn endpoints_are_bound_and_closed_as_the_map_and_the_lease_have_it() {
    let endpoint = free();
    let node = Node::start(1, endpoint, None, vec![fake(0), fake(1)]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let ask = || {
        client.send_to(b"a!", endpoint).unwrap();
        client.recv(&mut [0; 8]).is_ok()
    };
    assert!(!ask(), "nobody holds it");
    node.cells.set_map(&map(1, 1));
    assert!(!ask(), "no lease");
    let stranger = UdpSocket::bind(endpoint).unwrap();
    node.cells.set_lease(sys_time::mono(), Nanos::MAX);
    thread::sleep(Duration::from_millis(20));
    assert!(node.cells.shards.iter().all(|shard| shard.followed() == 0), "somebody has it");
    drop(stranger);
    node.hold(1, 1, Nanos::MAX);
    assert!(ask());
    // The lease ends: what came in waits, and leaves when there is one again.
    node.cells.set_lease(sys_time::mono(), Nanos(1));
    assert!(!ask());
    node.cells.set_lease(sys_time::mono(), Nanos::MAX);
    assert_eq!(client.recv(&mut [0; 8]).unwrap(), 3);
    node.hold(2, 2, Nanos::MAX);
    thread::sleep(Duration::from_nanos(LINGER.0) + Duration::from_millis(30));
    assert!(!ask(), "another node holds it");
    node.hold(3, 1, Nanos::MAX);
    assert!(ask(), "it is back");
    let mut seen = 0;
    node.wait_until(|shard| shard.take_report(&mut 0).is_some_and(|report| report.map == 3));
    assert!(node.cells.shards[0].take_report(&mut seen).is_some());
    for report in node.stop() {
        assert_eq!(report["engine"]["map"], 3);
    }
}

#[test]
fn a_lease_that_is_given_up_within_a_turn_holds_back_what_that_turn_has_written() {
    let endpoint = free();
    let core = fake(0);
    let gives_up = core.gives_up.clone();
    let node = Node::start(1, endpoint, None, vec![core]);
    node.hold(1, 1, Nanos::MAX);
    gives_up.set(node.cells.clone()).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    client.send_to(b"b!", endpoint).unwrap();
    assert!(client.recv(&mut [0; 8]).is_err());
    assert_eq!(node.cells.lease_until(), Nanos::ZERO, "it was heard");
    node.cells.set_lease(sys_time::mono(), Nanos::MAX);
    assert_eq!(client.recv(&mut [0; 8]).unwrap(), 3);
    node.stop();
}

#[test]
fn replies_that_waited_while_the_address_was_elsewhere_do_not_leave_when_it_is_back() {
    let endpoint = free();
    let node = Node::start(1, endpoint, None, vec![fake(0)]);
    node.hold(1, 1, Nanos::MAX);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    node.cells.set_lease(sys_time::mono(), Nanos(1));
    client.send_to(b"b!", endpoint).unwrap();
    assert!(client.recv(&mut [0; 8]).is_err());
    // Another's, and back, sooner than the socket is closed.
    node.hold(2, 2, Nanos(1));
    node.hold(3, 1, Nanos::MAX);
    assert!(client.recv(&mut [0; 8]).is_err(), "the other has answered that");
    client.send_to(b"b?!", endpoint).unwrap();
    assert_eq!(client.recv(&mut [0; 8]).unwrap(), 4);
    assert_eq!(node.stop()[0]["io"]["dropped"]["client_address_lost"], 1);
}
