//! One simulated machine: its clocks, its process with one loop per shard, and what a loop turn does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use crate::app::Inbound;
use crate::engine::{Outbox, Shard, ShardReport};
use crate::proto::map::ClusterMap;
use crate::sim::fault::ClockSkew;
use crate::sim::test_app::TestApp;
use crate::sim::world::heart::Heart;
use crate::types::{Boot, CallKey, Endpoint, LocalId, Nanos, NodeId, NodeSet, Now, Slot, Term};

/// True time at the start of every world, as wall time: some day in 2026.
const EPOCH: Nanos = Nanos(1_790_000_000_000_000_000);

const MILLION: i128 = 1_000_000;

impl ClockSkew {
    /// What this machine's clocks say at true time `at`.
    pub fn read(&self, at: Nanos) -> Now {
        let run = i128::from(at.0) + i128::from(at.0) * i128::from(self.drift_ppm) / MILLION;
        let wall = i128::from(EPOCH.0) + run + i128::from(self.wall);
        Now { mono: self.mono + Nanos(run as u64), wall: Nanos(wall as u64) }
    }

    /// The first microsecond of true time at which the monotonic clock says at least `mono`.
    pub fn when(&self, mono: Nanos) -> Nanos {
        let run = i128::from(mono.since(self.mono).0);
        let mut at = Nanos((run * MILLION / (MILLION + i128::from(self.drift_ppm))) as u64);
        while self.read(at).mono < mono {
            at = at + Nanos(1_000);
        }
        at
    }
}

/// What waits in a loop's sockets.
pub enum Input {
    /// A datagram of another node.
    Peer {
        /// Whose.
        from: NodeId,
        /// Of which of its lives.
        boot: Boot,
        /// Its plaintext.
        bytes: Rc<[u8]>,
    },
    /// A datagram of a client.
    Client {
        /// The call it belongs to.
        key: CallKey,
        /// The client.
        source: Endpoint,
        /// The service endpoint.
        local: LocalId,
        /// Its bytes.
        payload: Vec<u8>,
    },
}

/// What a detector tells the loops of its node.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A node has been heard of in a life that is new.
    Joined(NodeId, Boot),
    /// Whom it suspects now.
    Suspects(NodeSet),
}

/// A reply in a node's send queue.
pub struct Reply {
    /// The slot it belongs to.
    pub slot: Slot,
    /// The term of the owner that ordered it.
    pub term: Term,
    /// The service address it leaves from, and the term in which this node holds it.
    pub address: (usize, Term),
    /// The service endpoint it leaves from.
    pub local: LocalId,
    /// The client.
    pub to: Endpoint,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Since when the driver has it.
    pub handed: Nanos,
    /// It has left, or was dropped for good.
    pub gone: bool,
}

/// What one flush wrote.
#[derive(Default)]
pub struct Sends {
    /// Datagrams for other nodes.
    pub peers: Vec<(NodeSet, Rc<[u8]>)>,
    /// Those that name no life of the receiver.
    pub multicasts: Vec<(NodeSet, Rc<[u8]>)>,
    /// Datagrams for clients.
    pub clients: Vec<Reply>,
}

impl Outbox for Sends {
    fn peer(&mut self, to: NodeId, plaintext: &[u8]) {
        let mut one = NodeSet::EMPTY;
        one.insert(to);
        self.peers.push((one, plaintext.into()));
    }

    fn multicast(&mut self, to: NodeSet, plaintext: &[u8]) {
        self.multicasts.push((to, plaintext.into()));
    }

    fn client(&mut self, slot: Slot, local: LocalId, to: Endpoint, bytes: &[u8]) {
        let (term, address) = (Term(0), (0, Term(0)));
        let (bytes, handed) = (bytes.to_vec(), Nanos::ZERO);
        self.clients.push(Reply { slot, term, address, local, to, bytes, handed, gone: false });
    }
}

impl Sends {
    /// Two datagrams of a run that one GSO send could not carry, if any: the contract says that all but the
    /// last of a run are equally long. One longer than `room` (a single frame does not fit) is a run of its own.
    pub fn broken_run(&self, room: usize) -> Option<(NodeSet, usize, usize)> {
        self.peers.windows(2).enumerate().find_map(|(at, pair)| {
            let ((to, a), (next, b)) = (&pair[0], &pair[1]);
            let joined = |to, len| to == *next && len <= room;
            let goes_on = self.peers.get(at + 2).is_some_and(|(after, c)| joined(*after, c.len()));
            let broken = b.len() > a.len() || (goes_on && b.len() != a.len());
            (joined(*to, a.len().max(b.len())) && broken).then_some((*to, a.len(), b.len()))
        })
    }
}

/// The socket of a service endpoint, in one loop.
#[derive(Copy, Clone, Debug, Default)]
pub struct Door {
    /// It exists.
    pub open: bool,
    /// It is closed then, because the address is another node's now.
    pub closes: Option<Nanos>,
}

/// Terms of owners that have passed something on, and the last of them.
pub type Terms = (BTreeSet<Term>, Option<Term>);

/// One loop of a process.
pub struct Loop {
    /// The core.
    pub shard: Shard<TestApp>,
    /// What has arrived.
    pub inbox: VecDeque<Input>,
    /// Replies the kernel has not taken yet.
    pub backlog: VecDeque<Reply>,
    /// What a turn wrote that stood still before it could send.
    pub pending: Option<Sends>,
    /// What the detector has to say, until the loop has heard it.
    pub news: VecDeque<News>,
    /// Whom it has heard of since its node's control was told.
    pub heard: Vec<(NodeId, Boot)>,
    /// The sockets of the service endpoints.
    pub doors: Vec<Door>,
    /// The lease it was told of.
    pub lease: Nanos,
    /// Replies that other owners want to leave from here: in which terms, and in which one they have left last.
    pub delivering: BTreeMap<(Slot, Vec<u8>), Terms>,
    /// What it last told its control.
    pub report: ShardReport,
    /// How often it has turned.
    pub turns: u64,
    /// When the loop turns next.
    pub wake: Nanos,
    /// Until when its last turn keeps it busy.
    pub busy: Nanos,
}

impl Loop {
    /// A loop that has not turned yet.
    pub fn new(shard: Shard<TestApp>, endpoints: usize) -> Loop {
        Loop {
            shard,
            inbox: VecDeque::new(),
            backlog: VecDeque::new(),
            pending: None,
            news: VecDeque::new(),
            heard: Vec::new(),
            doors: vec![Door::default(); endpoints],
            lease: Nanos::ZERO,
            delivering: BTreeMap::new(),
            report: ShardReport::default(),
            turns: 0,
            wake: Nanos::MAX,
            busy: Nanos::ZERO,
        }
    }
}

/// What the control of a node has for its loops.
#[derive(Default)]
pub struct Cells {
    /// The newest agreed map.
    pub map: Option<Arc<ClusterMap>>,
    /// Until when the node may release.
    pub lease: Nanos,
}

/// One machine.
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// The life of its process.
    pub boot: Boot,
    /// Its clocks.
    pub clock: ClockSkew,
    /// Whether its process runs.
    pub alive: bool,
    /// How many faults hold its process still.
    pub frozen: u32,
    /// Faults that will, when it is about to send.
    pub ambushes: Vec<u32>,
    /// How long each turn takes, if that is unusual.
    pub turn: Option<Nanos>,
    /// Whom it rightly holds to be silent.
    pub silent: NodeSet,
    /// The life of each node it has heard of, by index.
    pub known: Vec<Option<Boot>>,
    /// Whom it wrongly holds to be silent, by fault.
    pub wrong: Vec<(u32, NodeSet)>,
    /// Its disk: what its voter has saved, and what that was born with.
    pub votes: (Option<Vec<u8>>, u64),
    /// Its control, in worlds in which nodes beat.
    pub heart: Option<Heart>,
    /// What it has told its loops.
    pub cells: Cells,
    /// Its loops.
    pub loops: Vec<Loop>,
}

impl Node {
    /// Whom its detector suspects.
    pub fn suspects(&self) -> NodeSet {
        self.wrong.iter().fold(self.silent, |all, (_, some)| NodeSet(all.0 | some.0))
    }
}

/// The packet of a client, as the core takes it.
pub fn inbound(source: Endpoint, local: LocalId, payload: &[u8]) -> Inbound<'_> {
    Inbound { source, local, payload }
}

#[cfg(test)]
mod tests {
    use super::{ClockSkew, Sends};
    use crate::engine::Outbox;
    use crate::types::{Nanos, NodeId};

    #[test]
    fn skewed_clocks_read_and_invert() {
        for drift_ppm in [-9_500, -500, 0, 500, 20_000] {
            let clock = ClockSkew { mono: Nanos::from_secs(77), wall: -5, drift_ppm };
            for at in [0, 1, 999, 1_000_000, 123_456_789_123] {
                let now = clock.read(Nanos(at));
                let when = clock.when(now.mono);
                assert!(clock.read(when).mono >= now.mono);
                assert!(
                    when.since(Nanos(at)).0 <= 2_000 && Nanos(at).since(when).0 <= 2_000,
                    "{at} {when:?}"
                );
            }
            assert_eq!(clock.when(Nanos::ZERO), Nanos::ZERO);
        }
    }

    #[test]
    fn a_run_one_gso_send_cannot_carry_is_noticed() {
        let run = |lens: &[(u16, usize)]| {
            let mut sends = Sends::default();
            lens.iter().for_each(|(to, len)| sends.peer(NodeId(*to), &vec![0; *len]));
            sends.broken_run(100).is_some()
        };
        assert!(!run(&[(2, 90), (2, 90), (2, 20), (3, 90), (2, 50)]));
        assert!(!run(&[(2, 90), (2, 101), (2, 90), (2, 90), (2, 3)]));
        assert!(run(&[(2, 90), (2, 91)]));
        assert!(run(&[(2, 90), (2, 80), (2, 80)]));
    }
}
