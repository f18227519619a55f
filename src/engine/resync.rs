//! Learners: slots that this node catches up on. A snapshot of each is pulled from a member, a few slots at a time and
//! no faster than TANDEM_RESYNC_MBPS, and put under the entries that have been kept since the learner's Start.

use super::shard::Shard;
use crate::app::CallApp;
use crate::app::table::CallTable;
use crate::proto::member::SnapshotHead;
use crate::proto::owner::follower::FrameSink;
use crate::types::{Nanos, NodeId, Now, Position, Term};
use crate::wire::frame::{self, Frame};
use std::collections::VecDeque;

/// Slots pulled at a time: small ones are paid for by the round trip, not by the byte.
const AT_A_TIME: usize = 128;
/// No further slot is begun with while so many bytes are asked for, or so many are to be held at once: large slots
/// neither fill the receive buffer nor the memory. At a limited rate no more is held than comes in a second, so that
/// each is asked for often enough for its donor to keep it.
const MOST_FLYING: usize = 512 * 1024;
const MOST_HELD: usize = 64 * 1024 * 1024;
/// Snapshots kept for learners that pull them, their bytes (one is kept whatever its size), and for how long after the
/// last pull.
const MOST_GIVEN: usize = 256;
const MOST_GIVEN_BYTES: usize = 128 * 1024 * 1024;
const GIVEN_FOR: Nanos = Nanos::from_secs(5);
/// Bytes asked for at once.
const PULL_ROOM: u32 = 48 * 1024;
/// How long a piece may take before it is asked for again.
const PULL_AGAIN_AFTER: Nanos = Nanos::from_millis(10);
/// After so many times another member is asked.
const PATIENCE: u8 = 5;
/// How often slots to pull are looked for.
const LOOK_EVERY: Nanos = Nanos::from_millis(2);
/// The longest snapshot of a slot that is taken in.
const MOST_BYTES: u32 = 1 << 30;

/// A snapshot on its way in.
#[derive(Debug)]
struct Pulling {
    index: usize,
    donor: usize,
    position: u64,
    total: u32,
    bytes: Vec<u8>,
    /// Up to where bytes have been asked for.
    asked: u32,
    at: Nanos,
    tries: u8,
}

/// A snapshot on its way out.
#[derive(Debug)]
struct Given {
    index: usize,
    lane: usize,
    term: Term,
    position: u64,
    bytes: Vec<u8>,
    /// When it was last asked for.
    at: Nanos,
}

/// What is being caught up on, here and elsewhere.
#[derive(Debug, Default)]
pub(super) struct Resync {
    pulling: Vec<Pulling>,
    /// The one that was asked for last is last.
    given: VecDeque<Given>,
    /// Where the search for slots to pull goes on, and when.
    next: usize,
    look_at: Option<Nanos>,
    /// Bytes that may still be asked for, as of when.
    credit: u64,
    credit_at: Nanos,
    /// Counts attempts, so that they begin with different donors.
    attempts: usize,
    /// The length of the last snapshot that came: what is to be expected of the next.
    expected: u32,
    /// Since when something is being pulled, as far as it has not been counted.
    busy_since: Option<Nanos>,
}

impl Resync {
    /// The map has changed: there may be slots to pull.
    pub(super) fn on_map(&mut self) {
        self.look_at = Some(Nanos::ZERO);
    }

    /// There is something to pull, or will be when the owners' Starts have come.
    pub(super) fn wake(&mut self, now: Nanos) {
        self.look_at.get_or_insert(now);
    }

    /// When [`Shard::resync`] has something to do.
    pub(super) fn due(&self) -> Nanos {
        let over = self.given.front().map_or(Nanos::MAX, |g| g.at + GIVEN_FOR);
        self.look_at.unwrap_or(Nanos::MAX).min(over)
    }

    /// Keeps a snapshot for the learner that pulls it, and as many others as there is room for.
    fn keep(&mut self, given: Given) {
        let kept: usize = self.given.iter().map(|g| g.bytes.len()).sum();
        let mut over = (kept + given.bytes.len()).saturating_sub(MOST_GIVEN_BYTES);
        while self.given.len() >= MOST_GIVEN || over > 0 {
            let Some(oldest) = self.given.pop_front() else { break };
            over = over.saturating_sub(oldest.bytes.len());
        }
        self.given.push_back(given);
    }

    /// Whether another slot may be begun with at `rate` bytes a second (0: no limit).
    fn has_room(&self, rate: u64) -> bool {
        let most = if rate > 0 { MOST_HELD.min(rate as usize) } else { MOST_HELD };
        let flying: usize =
            self.pulling.iter().map(|p| (p.asked as usize).saturating_sub(p.bytes.len())).sum();
        let expected = |p: &Pulling| if p.total > 0 { p.total } else { self.expected } as usize;
        let held: usize = self.pulling.iter().map(expected).sum();
        self.pulling.len() < AT_A_TIME && flying < MOST_FLYING && held < most
    }
}

impl<A: CallApp> Shard<A> {
    /// Goes on with what is being caught up on.
    pub(super) fn resync(&mut self, now: Now) {
        self.resync.given.retain(|g| now.mono.since(g.at) < GIVEN_FOR);
        if let Some(since) = self.resync.busy_since {
            self.counts.resync_ns += now.mono.since(since).0;
        }
        let rate = self.config.resync_rate;
        let elapsed = now.mono.since(self.resync.credit_at).min(Nanos::from_millis(50));
        self.resync.credit_at = now.mono;
        let most = (rate / 20).max(u64::from(PULL_ROOM));
        self.resync.credit = (self.resync.credit + rate.saturating_mul(elapsed.0) / 1_000_000_000).min(most);
        for n in (0..self.resync.pulling.len()).rev() {
            let pulling = &self.resync.pulling[n];
            let wanted = self.slots[pulling.index].seat.as_ref().and_then(|s| s.log.wants_snapshot());
            // Where members learn a slot anew, one that has given nothing yet may be another of them.
            let learner = self.map.group(self.slot_at(pulling.index)).learner(self.config.me).is_some();
            let patience = if pulling.total == 0 && !learner { 1 } else { PATIENCE };
            if wanted.is_none() || pulling.tries > patience {
                self.resync.pulling.remove(n);
            }
        }
        // The oldest first: its donor keeps it only for so long.
        for n in 0..self.resync.pulling.len() {
            let pulling = &mut self.resync.pulling[n];
            if now.mono.since(pulling.at) >= PULL_AGAIN_AFTER {
                pulling.asked = pulling.bytes.len() as u32;
                pulling.tries += 1;
                self.pull(now, n);
            }
        }
        let found = self.begin_pulls(now);
        let busy = found || !self.resync.pulling.is_empty();
        self.resync.busy_since = busy.then_some(now.mono);
        let learning = busy || self.standing.is_learning();
        self.resync.look_at = learning.then_some(now.mono + LOOK_EVERY);
    }

    /// Begins with further slots; whether there are any left to pull.
    fn begin_pulls(&mut self, now: Now) -> bool {
        let mut waits = false;
        for _ in 0..self.slots.len() {
            let index = self.resync.next % self.slots.len();
            let busy = self.resync.pulling.iter().any(|p| p.index == index);
            let wants = self.slots[index].seat.as_ref().is_some_and(|s| s.log.wants_snapshot().is_some());
            if wants && !busy {
                if !self.resync.has_room(self.config.resync_rate) {
                    return true;
                }
                if let Some(donor) = self.donor(index) {
                    let pulling = Pulling {
                        index,
                        donor,
                        position: 0,
                        total: 0,
                        bytes: Vec::new(),
                        asked: 0,
                        at: now.mono,
                        tries: 0,
                    };
                    self.resync.pulling.push(pulling);
                    self.pull(now, self.resync.pulling.len() - 1);
                } else {
                    waits = true;
                }
            }
            self.resync.next = index + 1;
        }
        waits
    }

    /// The lane of a member to copy the slot from: one that is trusted, and not master if there is another.
    fn donor(&mut self, index: usize) -> Option<usize> {
        let group = self.map.group(self.slot_at(index));
        let (me, master) = (self.config.me, self.slots[index].seat.as_ref().map(|s| s.log.master()));
        let usable = |node: NodeId| {
            self.lane(node).filter(|lane| node != me && self.lanes[*lane].trusted() && *lane != self.local)
        };
        let donors: Vec<usize> = group.members.iter().filter_map(|m| usable(m.node)).collect();
        let others: Vec<usize> =
            donors.iter().copied().filter(|l| Some(self.lanes[*l].node) != master).collect();
        self.resync.attempts += 1;
        let (from, turn) = match self.resync.attempts {
            attempts if others.is_empty() || attempts.is_multiple_of(4) => (donors, attempts / 4),
            attempts => (others, attempts),
        };
        from.get(turn % from.len().max(1)).copied()
    }

    /// Asks for the next bytes of a snapshot, if the rate allows.
    fn pull(&mut self, now: Now, n: usize) {
        let slot = self.slot_at(self.resync.pulling[n].index);
        let Resync { pulling, credit, expected, .. } = &mut self.resync;
        let pulling = &mut pulling[n];
        let left = match pulling.total {
            0 if *expected > 0 => *expected + *expected / 8,
            0 => PULL_ROOM,
            total => total - pulling.asked.min(total),
        };
        let mut room = left.min(PULL_ROOM);
        if self.config.resync_rate > 0 {
            room = room.min(u32::try_from(*credit).unwrap_or(u32::MAX));
            if room < left.min(1_024) {
                // Too little to be worth a datagram: it is tried again when there is more.
                pulling.at = now.mono.since(PULL_AGAIN_AFTER).max(Nanos(1));
                pulling.tries = pulling.tries.saturating_sub(1);
                return;
            }
            *credit -= u64::from(room);
        }
        let index = pulling.index;
        let Some(seat) = &self.slots[index].seat else { return };
        let Some(least) = seat.log.wants_snapshot() else { return };
        let pull = frame::Pull {
            slot: slot.0.into(),
            term: seat.log.term().0.into(),
            least: least.0.into(),
            position: pulling.position.into(),
            offset: pulling.asked.into(),
            room: room.into(),
        };
        let pulling = &mut self.resync.pulling[n];
        pulling.asked += room;
        pulling.at = now.mono;
        self.lanes[pulling.donor].packer.frame(&Frame::Pull(&pull));
    }

    /// A learner asks for a part of a snapshot of a slot held here.
    pub(super) fn on_pull(&mut self, now: Now, lane: usize, pull: &frame::Pull) {
        let seat = self.index(pull.slot.get()).and_then(|i| Some((i, self.slots[i].seat.as_ref()?)));
        let head = seat.and_then(|(i, seat)| Some((i, seat, seat.log.snapshot_head()?)));
        let fits = |head: &SnapshotHead| {
            head.term == Term(pull.term.get()) && head.position >= Position(pull.least.get())
        };
        let Some((index, seat, head)) = head.filter(|(_, _, head)| fits(head)) else {
            self.counts.drop_ahead += 1;
            return;
        };
        let same = |g: &Given| (g.index, g.lane) == (index, lane);
        let wanted = (Term(pull.term.get()), pull.position.get());
        let mut offset = pull.offset.get() as usize;
        // Who asks without a position has heard nothing of one that was made, and may have it.
        let fits = |g: &Given| g.term == wanted.0 && (wanted.1 == 0 || g.position == wanted.1);
        let recent = |g: &Given| g.position >= pull.least.get();
        let known = self.resync.given.iter().position(|g| same(g) && fits(g) && recent(g));
        let mut given = match known.and_then(|at| self.resync.given.remove(at)) {
            Some(given) => given,
            None => {
                let mut bytes = Vec::new();
                head.write(&mut bytes);
                seat.table.snapshot(&self.app, &mut bytes);
                self.resync.given.retain(|g| !same(g));
                self.counts.snapshots_given += 1;
                offset = 0;
                Given { index, lane, term: head.term, position: head.position.0, bytes, at: now.mono }
            }
        };
        given.at = now.mono;
        self.resync.keep(given);
        let Some(given) = self.resync.given.back() else { return };
        let end = given.bytes.len().min(offset.saturating_add(pull.room.get().min(PULL_ROOM) as usize));
        let piece = self.config.datagram_room.saturating_sub(64).max(256);
        while offset < end {
            let to = end.min(offset + piece);
            let chunk = frame::Chunk {
                slot: pull.slot,
                term: pull.term,
                position: given.position.into(),
                offset: (offset as u32).into(),
                total: (given.bytes.len() as u32).into(),
            };
            self.lanes[lane].packer.frame(&Frame::Chunk(&chunk, &given.bytes[offset..to]));
            offset = to;
        }
    }

    /// A piece of a snapshot has come.
    pub(super) fn on_chunk(&mut self, now: Now, lane: usize, chunk: &frame::Chunk, piece: &[u8]) {
        let index = self.index(chunk.slot.get());
        let same = |p: &Pulling| Some(p.index) == index && p.donor == lane;
        let Some(n) = self.resync.pulling.iter().position(same) else { return };
        let pulling = &mut self.resync.pulling[n];
        if pulling.position != chunk.position.get() {
            // The member had to make another one.
            if chunk.offset.get() != 0 || chunk.total.get() > MOST_BYTES {
                return;
            }
            (pulling.position, pulling.total) = (chunk.position.get(), chunk.total.get());
            pulling.bytes.clear();
            self.resync.expected = pulling.total;
        }
        if chunk.offset.get() as usize != pulling.bytes.len() {
            return;
        }
        pulling.bytes.extend_from_slice(piece);
        (pulling.at, pulling.tries) = (now.mono, 0);
        self.counts.resync_bytes += piece.len() as u64;
        let have = pulling.bytes.len() as u32;
        if have >= pulling.total {
            let done = self.resync.pulling.remove(n);
            self.restore(done.index, &done.bytes);
            self.resync.look_at = Some(now.mono);
        } else if have >= pulling.asked {
            pulling.asked = have;
            self.pull(now, n);
        }
    }

    /// Puts a whole snapshot under what the learner has kept.
    fn restore(&mut self, index: usize, bytes: &[u8]) {
        let limits = self.config.limits;
        // It may have begun anew meanwhile.
        let Some(seat) = self.slots[index].seat.as_mut().filter(|s| s.log.wants_snapshot().is_some()) else {
            return;
        };
        let restored = SnapshotHead::read(bytes).and_then(|(head, table)| {
            let table = CallTable::restore(&self.app, limits, table).ok()?;
            (table.slot() == seat.log.slot()).then_some((head, table))
        });
        let Some((head, table)) = restored else {
            self.counts.snapshots_refused += 1;
            return;
        };
        seat.table = table;
        let mut machine = Self::machine(&self.app, &mut seat.table, limits);
        if seat.log.restore(&head, &mut machine).is_err() {
            seat.table = CallTable::new(seat.log.slot(), limits);
            self.counts.snapshots_refused += 1;
            return;
        }
        seat.ack_due = true;
        let owner = seat.log.owner().0;
        if let Some(lane) = self.lane(owner)
            && let Some(seat) = &mut self.slots[index].seat
            && seat.queued != Some(lane)
        {
            seat.queued = Some(lane);
            self.lanes[lane].replies.push_back(index as u16);
        }
        self.standing.look_again();
    }
}
