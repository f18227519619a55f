//! What the threads of one node tell each other without messages: cells with one writer each, written once per
//! loop turn (never per packet) and read relaxed, because every value stands alone and a late one does no harm. But
//! whoever sees a lease sees the map it was granted under too, and a shard that waits for a lease is woken by it.
//!
//! Two are too large for that and stand behind a lock: the cluster map, which is read only when its version has changed,
//! and a shard's report, which is written at most once a millisecond.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::Sender;
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use mio::Waker;

use crate::engine::ShardReport;
use crate::proto::map::ClusterMap;
use crate::types::{Boot, Nanos, NodeId, NodeSet};

/// A thread that panicked while it held a lock has ended the node; what it left is whole or as it was.
fn lock<T>(cell: &Mutex<T>) -> MutexGuard<'_, T> {
    cell.lock().unwrap_or_else(PoisonError::into_inner)
}

const NODES: usize = NodeId::MAX as usize + 1;

/// How far a shard's loop has got: what the control's beats carry, so that a stuck worker is noticed while its
/// process still beats.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Turns of the loop so far.
    pub turns: u64,
    /// It sleeps until something arrives: it is not stuck, however long ago the last turn was.
    pub parked: bool,
    /// When the present turn began (monotonic).
    pub busy_since: Nanos,
}

/// Something for the keepers of all slots that a shard owns.
#[derive(Clone, Debug)]
pub struct Notice {
    /// What they are told.
    pub bytes: Arc<[u8]>,
    /// Whether the keepers of slots whose log begins later are told it first.
    pub founding: bool,
    /// Where each shard says how many it has told.
    pub told: Option<Sender<usize>>,
}

/// Notices that may wait for a shard.
const NOTICES: usize = 256;

/// One shard's cell.
#[derive(Debug)]
pub struct ShardCell {
    written: CachePadded<WrittenByShard>,
    suspects: CachePadded<AtomicU64>,
    report: Mutex<ShardReport>,
    notices: ArrayQueue<Notice>,
    waker: Waker,
}

#[derive(Debug)]
struct WrittenByShard {
    turns: AtomicU64,
    parked: AtomicBool,
    busy_since: AtomicU64,
    /// Peers whose port was reported closed, as a [`NodeSet`]; taken by the control.
    refused: AtomicU64,
    heard: [AtomicU64; NODES],
    /// How many reports the shard has written.
    reports: AtomicU32,
    /// The map version by which the shard's sockets have been bound and closed.
    followed: AtomicU32,
    /// In its last turn it may have held something back for want of a lease.
    leaseless: AtomicBool,
}

impl ShardCell {
    /// The cell of the shard that `waker` wakes.
    pub fn new(waker: Waker) -> ShardCell {
        let written = WrittenByShard {
            turns: AtomicU64::new(0),
            parked: AtomicBool::new(true),
            busy_since: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            heard: std::array::from_fn(|_| AtomicU64::new(0)),
            reports: AtomicU32::new(0),
            followed: AtomicU32::new(0),
            leaseless: AtomicBool::new(false),
        };
        ShardCell {
            written: CachePadded::new(written),
            suspects: CachePadded::new(AtomicU64::new(0)),
            report: Mutex::default(),
            notices: ArrayQueue::new(NOTICES),
            waker,
        }
    }

    /// The shard: a turn begins.
    pub fn begin_turn(&self, turns: u64, at: Nanos) {
        self.written.turns.store(turns, Relaxed);
        self.written.busy_since.store(at.0, Relaxed);
        self.written.parked.store(false, Relaxed);
    }

    /// The shard: it is about to sleep.
    pub fn park(&self) {
        self.written.parked.store(true, Relaxed);
    }

    /// The shard: `peers` were heard in the turn that began `at`.
    pub fn set_heard(&self, peers: NodeSet, at: Nanos) {
        for peer in peers.iter() {
            self.written.heard[usize::from(peer.0)].store(at.0, Relaxed);
        }
    }

    /// The shard: the ports of `peers` were reported closed.
    pub fn add_refused(&self, peers: NodeSet) {
        if peers != NodeSet::EMPTY {
            self.written.refused.fetch_or(peers.0, Relaxed);
        }
    }

    /// The shard: how things stand.
    pub fn set_report(&self, report: ShardReport) {
        *lock(&self.report) = report;
        self.written.reports.fetch_add(1, Relaxed);
    }

    /// The control: the newest report, if it is not the one numbered `seen`; keeps `seen` up to date.
    pub fn take_report(&self, seen: &mut u32) -> Option<ShardReport> {
        let newest = self.written.reports.load(Relaxed);
        if *seen == newest {
            return None;
        }
        *seen = newest;
        Some(lock(&self.report).clone())
    }

    /// The shard: the next notice for its keepers.
    pub fn take_notice(&self) -> Option<Notice> {
        self.notices.pop()
    }

    /// The shard: its sockets are as the map of this version has them.
    pub fn set_followed(&self, version: u32) {
        self.written.followed.store(version, Relaxed);
    }

    /// The map version by which the shard's sockets have been bound and closed.
    pub fn followed(&self) -> u32 {
        self.written.followed.load(Relaxed)
    }

    /// The shard, at the end of a turn: whether it may have held something back for want of a lease. It has to look at the
    /// lease again after this.
    pub fn set_leaseless(&self, leaseless: bool) {
        if self.written.leaseless.load(Relaxed) != leaseless {
            self.written.leaseless.store(leaseless, SeqCst);
        }
    }

    /// How far the shard has got.
    pub fn progress(&self) -> Progress {
        Progress {
            turns: self.written.turns.load(Relaxed),
            parked: self.written.parked.load(Relaxed),
            busy_since: Nanos(self.written.busy_since.load(Relaxed)),
        }
    }

    /// When the shard last heard `peer` (monotonic); zero: never.
    pub fn heard(&self, peer: NodeId) -> Nanos {
        Nanos(self.written.heard.get(usize::from(peer.0)).map_or(0, |at| at.load(Relaxed)))
    }

    /// The control: takes the peers reported closed since it last asked.
    pub fn take_refused(&self) -> NodeSet {
        // Nearly always empty, and a swap would take the cache line from the shard.
        if self.written.refused.load(Relaxed) == 0 {
            return NodeSet::EMPTY;
        }
        NodeSet(self.written.refused.swap(0, Relaxed))
    }

    /// The control: from now on `suspects`; wakes the shard if that is news.
    pub fn set_suspects(&self, suspects: NodeSet) {
        if self.suspects.load(Relaxed) != suspects.0 {
            self.suspects.store(suspects.0, Relaxed);
            self.wake();
        }
    }

    /// The nodes the control suspects on behalf of this shard.
    pub fn suspects(&self) -> NodeSet {
        NodeSet(self.suspects.load(Relaxed))
    }

    /// Wakes the shard, or makes its next sleep end at once.
    pub fn wake(&self) {
        // An eventfd write fails only when the counter is full, and then the shard is being woken already.
        let _ = self.waker.wake();
    }
}

/// The cells of all threads of one node.
#[derive(Debug)]
pub struct NodeCells {
    /// One for each shard, by number.
    pub shards: Vec<ShardCell>,
    boots: CachePadded<[AtomicU64; NODES]>,
    lease_until: CachePadded<AtomicU64>,
    map_version: CachePadded<AtomicU32>,
    map: Mutex<Option<Arc<ClusterMap>>>,
    stop: CachePadded<AtomicBool>,
    drain: AtomicBool,
    /// How often files are to have been opened anew.
    reopened: AtomicU32,
    control: Waker,
}

impl NodeCells {
    /// Cells for these shards and the control thread that `control` wakes.
    pub fn new(shards: Vec<ShardCell>, control: Waker) -> NodeCells {
        NodeCells {
            shards,
            boots: CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0))),
            lease_until: CachePadded::new(AtomicU64::new(0)),
            map_version: CachePadded::new(AtomicU32::new(0)),
            map: Mutex::new(None),
            stop: CachePadded::new(AtomicBool::new(false)),
            drain: AtomicBool::new(false),
            reopened: AtomicU32::new(0),
            control,
        }
    }

    /// The control: `node` lives in `boot`.
    pub fn set_boot(&self, node: NodeId, boot: Boot) {
        if let Some(cell) = self.boots.get(usize::from(node.0)) {
            cell.store(boot.0, Relaxed);
        }
    }

    /// The life of `node` that was greeted last; `None` before the first greeting.
    pub fn boot(&self, node: NodeId) -> Option<Boot> {
        let boot = self.boots.get(usize::from(node.0))?.load(Relaxed);
        (boot != 0).then_some(Boot(boot))
    }

    /// The control: the newest agreed map; wakes the shards if that is news.
    pub fn set_map(&self, map: &Arc<ClusterMap>) {
        if self.map_version.load(Relaxed) != map.version {
            *lock(&self.map) = Some(map.clone());
            self.map_version.store(map.version, Release);
            self.wake_shards();
        }
    }

    /// The newest map, if it is not of version `seen`; keeps `seen` up to date.
    pub fn take_map(&self, seen: &mut u32) -> Option<Arc<ClusterMap>> {
        if self.map_version.load(Acquire) == *seen {
            return None;
        }
        let map = lock(&self.map).clone()?;
        *seen = map.version;
        Some(map)
    }

    /// The control: replies may be released until then. Wakes the shards only if that was over, for the control or for
    /// them: they look at it before they release anything.
    pub fn set_lease(&self, now: Nanos, until: Nanos) {
        let before = self.lease_until.swap(until.0, SeqCst);
        if until <= now {
            return;
        }
        let over = |shard: &&ShardCell| before <= now.0 || shard.written.leaseless.load(SeqCst);
        self.shards.iter().filter(over).for_each(ShardCell::wake);
    }

    /// Until when replies may be released (monotonic); zero: no lease.
    pub fn lease_until(&self) -> Nanos {
        Nanos(self.lease_until.load(SeqCst))
    }

    /// Asks the control to hand over what this node holds.
    pub fn ask_drain(&self) {
        self.drain.store(true, Relaxed);
        self.wake_control();
    }

    /// The control: whether a drain has been asked for since it last looked.
    pub fn take_drain(&self) -> bool {
        self.drain.swap(false, Relaxed)
    }

    /// Tells the keepers of all slots owned on this node; returns how many shards have too much to hear already.
    pub fn notify(&self, notice: &Notice) -> usize {
        let full = |shard: &&ShardCell| shard.notices.push(notice.clone()).is_err();
        let count = self.shards.iter().filter(full).count();
        self.wake_shards();
        count
    }

    /// Files that others may have moved away are to be opened anew.
    pub fn reopen(&self) {
        self.reopened.fetch_add(1, Relaxed);
        self.wake_shards();
    }

    /// How often that was asked for.
    pub fn reopened(&self) -> u32 {
        self.reopened.load(Relaxed)
    }

    fn wake_shards(&self) {
        self.shards.iter().for_each(ShardCell::wake);
    }

    /// Makes the control take a turn now.
    pub fn wake_control(&self) {
        // As for a shard.
        let _ = self.control.wake();
    }

    /// Asks every thread to end.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
        self.wake_shards();
        self.wake_control();
    }

    /// Whether the threads are to end.
    pub fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::map::{MapNode, MapShape, NodeState};
    use crate::types::HostId;
    use mio::{Events, Poll, Token};
    use std::time::Duration;

    fn cells() -> (NodeCells, Poll) {
        let poll = Poll::new().unwrap();
        let waker = |token| Waker::new(poll.registry(), Token(token));
        let shard = ShardCell::new(waker(1).unwrap());
        (NodeCells::new(vec![shard], Waker::new(Poll::new().unwrap().registry(), Token(0)).unwrap()), poll)
    }

    fn woken(poll: &mut Poll) -> bool {
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        !events.is_empty()
    }

    #[test]
    fn only_news_wakes_a_shard() {
        let (cells, mut poll) = cells();
        let shard = &cells.shards[0];
        shard.set_suspects(NodeSet(0b100));
        assert!(woken(&mut poll));
        assert_eq!(shard.suspects(), NodeSet(0b100));
        shard.set_suspects(NodeSet(0b100));
        assert!(!woken(&mut poll));
        cells.stop();
        assert!(cells.stopping());
        assert!(woken(&mut poll));
    }

    #[test]
    fn maps_and_leases_are_taken_once_and_wake_the_shards_when_they_are_news() {
        let (cells, mut poll) = cells();
        let node = MapNode { boot: Boot(1), state: NodeState::Live, ..MapNode::new(NodeId(1), HostId(1)) };
        let shape = MapShape::new((4, 1), vec![node], NodeId(1), vec![0], 1, 0).unwrap();
        let map = Arc::new(ClusterMap { version: 7, ..shape.empty_map() });
        let mut seen = 0;
        assert_eq!(cells.take_map(&mut seen), None);
        cells.set_map(&map);
        assert!(woken(&mut poll));
        assert_eq!(cells.take_map(&mut seen), Some(map.clone()));
        cells.set_map(&map);
        assert_eq!((cells.take_map(&mut seen), seen, woken(&mut poll)), (None, 7, false));

        cells.set_lease(Nanos(10), Nanos(20));
        assert!(woken(&mut poll));
        cells.set_lease(Nanos(15), Nanos(25));
        assert!(!woken(&mut poll), "it goes on");
        cells.set_lease(Nanos(25), Nanos(35));
        assert!(woken(&mut poll), "it was over");
        assert_eq!(cells.lease_until(), Nanos(35));

        // For the control the lease goes on; for a shard that looked later it was over in between.
        cells.shards[0].set_leaseless(true);
        cells.set_lease(Nanos(34), Nanos(45));
        assert!(woken(&mut poll));
        cells.shards[0].set_leaseless(false);
        cells.set_lease(Nanos(35), Nanos(45));
        assert!(!woken(&mut poll));

        let (shard, mut seen) = (&cells.shards[0], 0);
        assert_eq!(shard.take_report(&mut seen), None);
        let report = ShardReport { map: 7, ..ShardReport::default() };
        shard.set_report(report.clone());
        assert_eq!(shard.take_report(&mut seen), Some(report));
        assert_eq!(shard.take_report(&mut seen), None);
        shard.set_followed(7);
        assert_eq!(shard.followed(), 7);
        cells.ask_drain();
        assert!(cells.take_drain() && !cells.take_drain());
        let notice = Notice { bytes: Arc::from(&b"R"[..]), founding: true, told: None };
        assert_eq!((0..NOTICES + 2).map(|_| cells.notify(&notice)).sum::<usize>(), 2);
        assert_eq!(std::iter::from_fn(|| shard.take_notice()).count(), NOTICES);
        cells.reopen();
        assert_eq!(cells.reopened(), 1);
    }

    #[test]
    fn what_a_shard_writes_the_control_reads() {
        let (cells, _poll) = cells();
        let shard = &cells.shards[0];
        shard.begin_turn(7, Nanos(99));
        assert_eq!(shard.progress(), Progress { turns: 7, parked: false, busy_since: Nanos(99) });
        shard.park();
        assert!(shard.progress().parked);
        shard.set_heard(NodeSet(0b110), Nanos(5));
        let heard = [1, 2, 3, 999].map(|node| shard.heard(NodeId(node)).0);
        assert_eq!(heard, [5, 5, 0, 0]);
        shard.add_refused(NodeSet(0b10));
        shard.add_refused(NodeSet(0b100));
        assert_eq!(shard.take_refused(), NodeSet(0b110));
        assert_eq!(shard.take_refused(), NodeSet::EMPTY);
        assert_eq!(cells.boot(NodeId(1)), None);
        cells.set_boot(NodeId(1), Boot(3));
        assert_eq!(cells.boot(NodeId(1)), Some(Boot(3)));
    }
}
