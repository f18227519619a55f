//! The control loop around a stand-in for the control: meeting, life signs, answers for tools.

use super::*;
use crate::io::addresses::{Change, News};
use crate::io::cells::ShardCell;
use crate::io::operator::{DRAIN, STATUS, ask};
use crate::io::peer::seal_into;
use crate::io::shard_loop::WAKE;
use crate::io::sys_socket::{self, Buffers};
use crate::proto::map::{MapAddress, MapNode, MapShape, NodeState};
use crate::types::{HostId, Term};
use crate::wire::exit::write_exited;
use crate::wire::seal::ClusterKey;
use crossbeam::channel::{self, Receiver};
use mio::Waker;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

const BUFFERS: Buffers = Buffers { recv: 1 << 20, send: 1 << 20 };

/// Beats every millisecond, joins whom it hears, suspects whom a shard hears or whose port is closed.
struct Fake {
    peers: Vec<NodeId>,
    next: Nanos,
    due: bool,
    joined: [Option<Boot>; 64],
    suspects: NodeSet,
    refused: u32,
    lives: u32,
    turns: u64,
    beats: u64,
    map: Arc<ClusterMap>,
    lease: Nanos,
    exits: Vec<(u16, u64)>,
    reported: u32,
    unsaved: Option<Vec<u8>>,
    durable: u32,
    may_leave: bool,
    left: bool,
}

impl ControlCore for Fake {
    fn on_peer(&mut self, _now: Now, from: NodeId, boot: Boot, plaintext: &[u8]) {
        assert_eq!(plaintext, b"beat");
        self.beats += 1;
        self.joined[usize::from(from.0)] = Some(boot);
    }
    fn on_refused(&mut self, _now: Now, node: NodeId) {
        self.refused += 1;
        self.suspects.insert(node);
    }
    fn on_exit_notice(&mut self, _now: Now, node: NodeId, boot: Boot) {
        self.exits.push((node.0, boot.0));
    }
    fn on_report(&mut self, _shard: u16, report: ShardReport) {
        self.reported = report.map;
    }
    fn drain(&mut self, _now: Now) -> Result<(), String> {
        self.left = self.may_leave;
        if self.may_leave { Ok(()) } else { Err("the last one".to_owned()) }
    }
    fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }
    fn lease_until(&self) -> Nanos {
        self.lease
    }
    fn held_until(&self) -> Nanos {
        self.lease
    }
    fn on_turn(&mut self, _now: Now) {}

    fn take_votes(&mut self) -> Option<Vec<u8>> {
        self.unsaved.take()
    }
    fn on_votes_saved(&mut self) {
        self.durable += 1;
    }
    fn is_busy(&self) -> bool {
        false
    }
    fn is_fenced(&self) -> bool {
        false
    }
    fn has_left(&self) -> bool {
        self.left
    }
    fn on_life(&mut self, _now: Now, node: NodeId, boot: Boot) {
        assert_eq!(boot, Boot(1_001));
        self.lives += 1;
        self.suspects.insert(node);
    }
    fn on_progress(&mut self, _now: Now, shard: u16, progress: Progress) {
        assert_eq!(shard, 0);
        self.turns = progress.turns;
    }
    fn on_timeout(&mut self, now: Now) {
        self.due = true;
        self.next = now.mono + Nanos::from_millis(1);
    }
    fn flush(&mut self, _now: Now, outbox: &mut impl Outbox) {
        if std::mem::take(&mut self.due) {
            self.peers.iter().for_each(|peer| outbox.peer(*peer, b"beat"));
        }
    }
    fn next_timeout(&self) -> Nanos {
        self.next
    }
    fn suspects(&self, _shard: u16) -> NodeSet {
        self.suspects
    }
    fn joined(&self, node: NodeId) -> Option<Boot> {
        self.joined[usize::from(node.0)]
    }
    fn stats(&self) -> serde_json::Value {
        serde_json::json!({
            "refused": self.refused, "lives": self.lives, "turns": self.turns, "beats": self.beats,
            "exits": self.exits, "reported": self.reported, "durable": self.durable,
            "padding": "x".repeat(5_000),
        })
    }
}

struct Running {
    cells: Arc<NodeCells>,
    changes: Receiver<Change>,
    ends: Receiver<ControlEnd>,
    saved: Receiver<Vec<u8>>,
    questions: Receiver<Question>,
    thread: JoinHandle<io::Result<serde_json::Value>>,
}

impl Running {
    fn stop(self) -> serde_json::Value {
        self.cells.stop();
        self.thread.join().unwrap().unwrap()
    }
}

fn start(node: u16, boot: u64, own: SocketAddr, peer: u16, theirs: SocketAddr) -> Running {
    start_with(node, boot, own, peer, theirs, false)
}

fn start_with(
    node: u16,
    boot: u64,
    own: SocketAddr,
    peer: u16,
    theirs: SocketAddr,
    may_leave: bool,
) -> Running {
    let poll = Poll::new().unwrap();
    let waker = Waker::new(poll.registry(), WAKE).unwrap();
    let shard = ShardCell::new(Waker::new(Poll::new().unwrap().registry(), WAKE).unwrap());
    let cells = Arc::new(NodeCells::new(vec![shard], waker));
    let key = ClusterKey::loopback();
    let (ask, questions) = channel::bounded(4);
    let (said, ends) = channel::unbounded();
    let (save, saved) = channel::unbounded();
    let (change, changes) = channel::unbounded();
    let addresses = [[192, 0, 2, 1].into()];
    let parts = ControlParts {
        node: NodeId(node),
        boot: Boot(boot),
        poll,
        links: vec![(NodeId(peer), Link::connect(own, theirs, BUFFERS).unwrap().0)],
        door: sys_socket::bind(own, true).unwrap(),
        sealer: Sealer::new(&key, NodeId(node), Boot(boot), 0),
        opener: Opener::new(&key, NodeId(node), Boot(boot), NodeSet(0b110)),
        cells: cells.clone(),
        shards: vec![ask],
        reload: channel::bounded(1).0,
        urgent: true,
        supervisor: Some(4),
        holding: Holding::new((NodeId(node), Boot(boot)), Nanos(0), &addresses, change),
        save: Box::new(move |state| {
            save.send(state.to_vec()).unwrap();
            Ok(())
        }),
        ends: Box::new(move |end| said.send(end).unwrap()),
    };
    let core = Fake {
        peers: vec![NodeId(peer)],
        next: sys_time::mono(),
        due: false,
        joined: [None; 64],
        suspects: NodeSet::EMPTY,
        refused: 0,
        lives: 0,
        turns: 0,
        beats: 0,
        map: Arc::new(map(node, boot)),
        lease: Nanos::MAX,
        exits: Vec::new(),
        reported: 0,
        unsaved: Some(b"state".to_vec()),
        durable: 0,
        may_leave,
        left: false,
    };
    let control = ControlLoop::new(core, parts).unwrap();
    Running { cells, changes, ends, saved, questions, thread: thread::spawn(move || control.run()) }
}

/// A map by which `node` in its life `boot` holds the one service address.
fn map(node: u16, boot: u64) -> ClusterMap {
    let own = MapNode { boot: Boot(boot), state: NodeState::Live, ..MapNode::new(NodeId(node), HostId(1)) };
    let shape = MapShape::new((8, 1), vec![own], NodeId(node), vec![0], 1, 0).unwrap();
    let address = MapAddress { owner: NodeId(node), boot: Boot(boot), term: Term(3) };
    ClusterMap { version: 9, addresses: vec![address], ..shape.empty_map() }
}

fn two_free() -> (SocketAddr, SocketAddr) {
    let free = || UdpSocket::bind("127.0.0.1:0").unwrap();
    let (a, b) = (free(), free());
    (a.local_addr().unwrap(), b.local_addr().unwrap())
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("not within two seconds: {what}");
}

#[test]
fn two_controls_meet_and_the_shards_are_told() {
    let (a, b) = two_free();
    let (first, second) = (start(1, 1_001, a, 2, b), start(2, 1_002, b, 1, a));
    wait_until("first meets second", || first.cells.boot(NodeId(2)) == Some(Boot(1_002)));
    wait_until("second meets first", || second.cells.boot(NodeId(1)) == Some(Boot(1_001)));

    first.cells.shards[0].begin_turn(9, Nanos(1));
    second.cells.shards[0].set_heard(NodeSet(0b10), Nanos(5));
    wait_until("a shard's life sign", || second.cells.shards[0].suspects() == NodeSet(0b10));
    thread::sleep(Duration::from_millis(30));
    let report = second.stop();
    assert_eq!(report["control"]["lives"], 1);
    assert!(report["control"]["beats"].as_u64().unwrap() > 2);

    wait_until("a closed port", || first.cells.shards[0].suspects().contains(NodeId(2)));
    // A new life of the second node, which knows nobody, is met like the first was.
    let second = start(2, 1_003, b, 1, a);
    wait_until("the next life", || first.cells.boot(NodeId(2)) == Some(Boot(1_003)));
    second.stop();
    let report = first.stop();
    assert_eq!(report["control"]["turns"], 9);
    assert!(report["control"]["refused"].as_u64().unwrap() > 0);
}

#[test]
fn a_tool_is_answered_with_what_the_shards_say_and_without_a_stuck_one() {
    let (a, b) = two_free();
    let running = start(1, 1_001, a, 2, b);
    let questions = running.questions.clone();
    let shard = thread::spawn(move || {
        let question = questions.recv_timeout(Duration::from_secs(5)).unwrap();
        question.reply.send(serde_json::json!({"shard": 0, "fine": true})).unwrap();
    });
    let key = ClusterKey::loopback();
    let report = ask(a, &key, STATUS, Nanos::from_secs(5)).unwrap();
    shard.join().unwrap();
    assert_eq!((&report["node"], &report["supervisor_pid"]), (&1.into(), &4.into()));
    assert_eq!(report["pid"], std::process::id());
    assert_eq!(report["shards"][0]["fine"], true);
    assert_eq!(report["control"]["padding"].as_str().unwrap().len(), 5_000);

    let report = ask(a, &key, STATUS, Nanos::from_secs(5)).unwrap();
    assert_eq!(report["shards"], serde_json::json!([]), "nobody answers for the shard");

    assert!(ask(a, &key, "what?", Nanos::from_millis(50)).is_err());
    let other = ClusterKey::from_bytes(&[7; 32]).unwrap();
    assert!(ask(a, &other, STATUS, Nanos::from_millis(50)).is_err());
    let report = running.stop();
    assert_eq!(report["io"]["dropped"]["questions"], 1);
    assert_eq!(report["io"]["dropped"]["not_opened"]["forged"], 1);
}

#[test]
fn an_exit_notice_is_taken_from_the_supervisor_of_that_life_alone() {
    let (a, b) = two_free();
    let running = start(1, 1_001, a, 2, b);
    let key = ClusterKey::loopback();
    let from = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tell = |channel, sealed_for: u64, told: u64| {
        let mut datagram = Vec::new();
        let plaintext = write_exited(Exited { node: NodeId(2), boot: Boot(told) });
        let mut sealer = Sealer::new(&key, NodeId(2), Boot(sealed_for), channel);
        seal_into(&mut datagram, &mut sealer, Kind::Control, 0, &plaintext);
        from.send_to(&datagram, a).unwrap();
    };
    // A life is heard before it ends.
    let live = |boot| {
        let mut datagram = Vec::new();
        let mut sealer = Sealer::new(&key, NodeId(2), Boot(boot), 0);
        seal_into(&mut datagram, &mut sealer, Kind::Control, 0, b"beat");
        from.send_to(&datagram, a).unwrap();
    };
    tell(SUPERVISOR, 5, 5);
    live(6);
    tell(SUPERVISOR, 6, 8);
    live(7);
    tell(SUPERVISOR, 7, 7);
    tell(3, 7, 7);
    live(9);
    tell(SUPERVISOR, 9, 9);
    thread::sleep(Duration::from_millis(50));
    let report = running.stop();
    assert_eq!(report["control"]["exits"], serde_json::json!([[2, 7], [2, 9]]));
    assert_eq!(report["io"]["dropped"]["peer_misdirected"], 2);
    assert_eq!(report["io"]["dropped"]["not_opened"]["unknown_life"], 1);
}

#[test]
fn what_is_held_saved_and_reported_goes_its_way() {
    let (a, b) = two_free();
    let running = start(1, 1_001, a, 2, b);
    let gained = Change { address: [192, 0, 2, 1].into(), term: Term(3), news: News::Gained(9) };
    assert_eq!(running.changes.recv_timeout(Duration::from_secs(5)).unwrap(), gained);
    assert_eq!(running.saved.recv_timeout(Duration::from_secs(5)).unwrap(), b"state");
    assert_eq!(running.cells.take_map(&mut 0).unwrap().version, 9);
    assert_eq!(running.cells.lease_until(), Nanos::MAX);
    running.cells.shards[0].set_report(ShardReport { map: 6, ..ShardReport::default() });
    thread::sleep(Duration::from_millis(30));
    let report = running.stop();
    assert_eq!((&report["control"]["reported"], &report["control"]["durable"]), (&6.into(), &1.into()));
    assert_eq!(report["votes"]["saved"], 1);
}

#[test]
fn a_node_is_asked_to_leave_by_a_tool_or_by_itself() {
    let (a, b) = two_free();
    let key = ClusterKey::loopback();
    let (stays, leaves) = (start(1, 1_001, a, 2, b), start_with(2, 1_002, b, 1, a, true));
    let refused = ask(a, &key, DRAIN, Nanos::from_secs(5)).unwrap();
    assert_eq!(refused, serde_json::json!({ "accepted": false, "why": "the last one" }));
    assert!(stays.ends.try_recv().is_err(), "and nothing else happens");
    stays.cells.ask_drain();
    let end = stays.ends.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(end, ControlEnd::CannotLeave("the last one".to_owned()));
    assert_eq!(ask(b, &key, DRAIN, Nanos::from_secs(5)).unwrap()["accepted"], true);
    assert_eq!(leaves.ends.recv_timeout(Duration::from_secs(5)).unwrap(), ControlEnd::Left);
    thread::sleep(Duration::from_millis(5));
    assert!(leaves.ends.try_recv().is_err(), "it is said once");
    drop((stays.stop(), leaves.stop()));
}
