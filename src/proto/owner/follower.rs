//! What a slot's owner knows of one member, and the frames it writes for it.

use super::Owner;
use crate::proto::map::MapMember;
use crate::types::{Boot, HostId, Nanos, NodeId, NodeSet, Position};
use crate::wire::frame::{self, FRAME_HEADER_LEN, Frame};

/// How many bytes of entries one slot may add to a bundle.
const BACKLOG_BYTES: usize = 64 * 1024;

/// How many digest checkpoints of a member are remembered for comparison with slower members.
pub(super) const CHECKPOINTS: usize = 4;

/// Whether, and how, a member waits to be written for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Queued {
    /// It does not wait.
    Not,
    /// Behind those that clients wait for.
    Behind,
    /// Among those that clients wait for.
    First,
}

/// One member of the slot, seen from its owner.
#[derive(Debug)]
pub struct Follower {
    /// The member's node.
    pub node: NodeId,
    /// Its host.
    pub host: HostId,
    /// The number of the link it is reached by.
    pub lane: usize,
    /// Its join version.
    pub join: u32,
    /// Its life.
    pub boot: Boot,
    /// It catches up and counts for nothing.
    pub learner: bool,
    /// A member that fell out of the window, diverged, or went on without the others: it counts for nothing until the
    /// map has dropped it and brought it back in, or it has learned the slot anew where it is.
    pub lost: bool,
    /// Since when, as far as that was looked at.
    pub(super) lost_since: Option<Nanos>,
    /// It was lost and learns the slot where it is, or has; so many outputs it could not send again, because it has never
    /// produced them.
    pub(super) relearns: Option<u64>,
    /// It learns, and is too far behind to be waited for: it begins anew.
    pub(super) outpaced: bool,
    /// Where it stands in this term's log, once it has answered the seal: the tail of its Start.
    pub(super) place: Option<Position>,
    /// Its Start tells it to begin with the first entry, whatever it was before.
    pub(super) anew: bool,
    /// Not suspected. Only trusted members become master, and only they are sent anything.
    pub trusted: bool,
    /// It has installed the term.
    pub started: bool,
    /// Entries up to here have been sent to it.
    pub sent: Position,
    /// Entries up to here are held by it.
    pub held: Position,
    /// Entries up to here are executed by it.
    pub executed: Position,
    /// How many outputs it had produced by then.
    pub outputs: u64,
    /// When the oldest entry that it has not acked was sent, or re-sent.
    pub(super) sent_at: Nanos,
    /// How many times in a row its acks have been missed.
    pub(super) retries: u8,
    /// Its last entry is to be sent again.
    pub(super) probe: bool,
    /// It is to get a header (which asks for an ack) even if there is no entry for it.
    pub(super) tell: bool,
    /// The same, but not at once: with what else goes to its node, or a little later.
    pub(super) tell_in_passing: bool,
    /// It is to be asked for outputs.
    pub(super) emit: bool,
    pub(super) asked_at: Nanos,
    /// The last Nak that was answered, and when.
    pub(super) last_nak: (Position, Nanos),
    /// Its digest differed from the others' and nothing could replace it: never master.
    pub(super) diverged: bool,
    /// `released` and `stable` as last told.
    pub(super) told: (u64, Position),
    /// The same as last written; told once an ack came after it.
    pub(super) telling: (u64, Position),
    /// The newest digest checkpoints, by position modulo their number.
    pub(super) checkpoints: [(Position, u64); CHECKPOINTS],
    pub(super) next_checkpoint: usize,
    /// Whether it waits in one of its link's queues.
    pub queued: Queued,
}

impl Follower {
    pub(super) fn new(member: &MapMember, learner: bool, lane: usize) -> Follower {
        Follower {
            node: member.node,
            host: member.host,
            lane,
            join: member.join,
            boot: member.boot,
            learner,
            lost: false,
            lost_since: None,
            relearns: None,
            outpaced: false,
            place: None,
            anew: false,
            trusted: false,
            started: false,
            sent: Position(0),
            held: Position(0),
            executed: Position(0),
            outputs: 0,
            sent_at: Nanos::ZERO,
            retries: 0,
            probe: false,
            tell: false,
            tell_in_passing: false,
            emit: false,
            asked_at: Nanos::ZERO,
            last_nak: (Position(0), Nanos::ZERO),
            diverged: false,
            told: (0, Position(0)),
            telling: (0, Position(0)),
            checkpoints: [(Position(0), 0); CHECKPOINTS],
            next_checkpoint: 0,
            queued: Queued::Not,
        }
    }

    /// Counts for commit and stable.
    pub fn counted(&self) -> bool {
        !self.learner && !self.lost
    }

    /// Whether it keeps entries until it has a snapshot to put under them: a learner, or a member that is lost and learns
    /// the slot where it is.
    pub fn learns(&self) -> bool {
        self.learner || self.lost && self.relearns.is_some()
    }

    /// Whether entries are kept until it holds them.
    pub(super) fn waited_for(&self) -> bool {
        self.counted() || self.learns() && !self.outpaced && !self.given_up()
    }

    pub(super) fn given_up(&self) -> bool {
        self.lost && self.relearns.is_none()
    }

    /// Whether it may be master.
    pub fn may_lead(&self) -> bool {
        self.eligible() && !self.diverged && !self.learner && self.relearns.is_none()
    }

    /// Whether it is worth sending to: its state is whole, or becoming so, and it is not suspected.
    pub fn eligible(&self) -> bool {
        self.trusted && !self.given_up()
    }

    /// Whether there is anything to write for it, given the log's tail. One that has not answered the seal is asked
    /// again when that is late, not for each entry.
    pub fn wants(&self, tail: Position) -> bool {
        let told = self.tell || self.tell_in_passing;
        let owed = self.wants_entries(tail) || self.probe || told || self.emit;
        self.eligible() && owed
    }

    /// Whether there are entries for it.
    pub fn wants_entries(&self, tail: Position) -> bool {
        self.sent < tail && self.place.is_some()
    }

    /// Whether a client may be waiting for what it is to get: entries, or what is asked of it for the sake of some.
    pub fn comes_first(&self, tail: Position) -> bool {
        self.wants_entries(tail) || self.probe || self.emit
    }

    /// Whether it is to get something at once, whatever the others do.
    pub fn presses(&self) -> bool {
        self.probe || self.tell || self.emit || !self.started
    }

    pub(super) fn remember(&mut self, checkpoint: (Position, u64)) {
        self.checkpoints[self.next_checkpoint] = checkpoint;
        self.next_checkpoint = (self.next_checkpoint + 1) % CHECKPOINTS;
    }

    pub(super) fn digest_at(&self, position: Position) -> Option<u64> {
        self.checkpoints.iter().find(|(p, _)| *p == position).map(|(_, digest)| *digest)
    }
}

/// Where frames are written: datagrams of bounded length.
pub trait FrameSink {
    /// Bytes left in the datagram being filled.
    fn room(&self) -> usize;
    /// Begins a new datagram.
    fn next_datagram(&mut self);
    /// Appends a frame; begins a new datagram first if it does not fit. A frame longer than a whole
    /// datagram gets one of its own.
    fn frame(&mut self, frame: &Frame<'_>);
}

impl Owner {
    /// Writes what the member reached by `lane` is to get: Start until it has installed the term, a request
    /// for outputs, and the entries it has not been sent (or at least a header). Returns whether there was
    /// anything to write.
    pub fn write_for(&mut self, lane: usize, now: Nanos, sink: &mut impl FrameSink) -> bool {
        let tail = self.tail();
        let Some(index) = self.followers.iter().position(|f| f.lane == lane) else { return false };
        self.followers[index].queued = Queued::Not;
        if !self.followers[index].wants(tail) {
            return false;
        }
        let follower = &mut self.followers[index];
        if std::mem::take(&mut follower.probe) && follower.sent == tail && follower.held < tail {
            follower.sent = tail.prev().max(follower.held);
        }
        if follower.learns() && follower.sent.next().0 < self.log.first() {
            self.teach(index);
        }
        if !self.followers[index].started && !self.write_start(index, now, sink) {
            return true;
        }
        let follower = &mut self.followers[index];
        if std::mem::take(&mut follower.emit) {
            let first = self.outputs.next().into();
            let emit = frame::Emit { slot: self.slot.0.into(), term: self.term.0.into(), first };
            sink.frame(&Frame::Emit(&emit));
        }
        if follower.held >= follower.sent {
            follower.sent_at = now;
        }
        let header_wanted =
            std::mem::take(&mut follower.tell) | std::mem::take(&mut follower.tell_in_passing);
        if follower.sent < tail {
            self.followers[index].sent = self.write_entries(index, sink);
        } else if header_wanted {
            sink.frame(&Frame::Segment(&self.header(tail.next(), 0), &[]));
        } else {
            // A request for outputs alone carries no header: nothing has been told.
            return true;
        }
        self.followers[index].telling = (self.released, self.stable);
        true
    }

    /// The members that can be sent the very same entries in one datagram: those on other nodes that are
    /// trusted, if there are several and none needs anything of its own.
    pub fn in_step(&self, local: usize) -> Option<NodeSet> {
        let remote = || self.followers.iter().filter(|f| f.lane != local && f.eligible());
        let sent = remote().next()?.sent;
        // What a learner was outpaced by is not kept: it begins anew.
        let kept = sent.next().0 >= self.log.first();
        let alike = |f: &Follower| kept && f.sent == sent && f.started && !f.probe && !f.emit;
        let mut set = NodeSet::EMPTY;
        remote().for_each(|f| set.insert(f.node));
        (sent < self.tail() && remote().count() > 1 && remote().all(alike)).then_some(set)
    }

    /// Writes the entries that the members of `set` have not been sent; see [`Owner::in_step`].
    pub fn write_for_all(&mut self, set: NodeSet, now: Nanos, sink: &mut impl FrameSink) {
        let Some(first) = self.followers.iter().position(|f| set.contains(f.node)) else { return };
        let sent = self.write_entries(first, sink);
        let told = (self.released, self.stable);
        for follower in self.followers.iter_mut().filter(|f| set.contains(f.node)) {
            if follower.held >= follower.sent {
                follower.sent_at = now;
            }
            (follower.sent, follower.telling) = (sent, told);
            (follower.tell, follower.tell_in_passing) = (false, false);
        }
    }

    /// Writes the entries a member has not been sent, up to a bound that keeps a backlog from becoming one burst;
    /// returns the last position written.
    fn write_entries(&self, index: usize, sink: &mut impl FrameSink) -> Position {
        let mut left = BACKLOG_BYTES;
        const OVERHEAD: usize = FRAME_HEADER_LEN + size_of::<frame::Segment>();
        let mut from = self.followers[index].sent.next().0;
        let to = self.log.next();
        while from < to && left > 0 {
            let mut end = self.log.fit(from, sink.room().saturating_sub(OVERHEAD));
            if end == from {
                sink.next_datagram();
                end = self.log.fit(from, sink.room().saturating_sub(OVERHEAD)).max(from + 1);
            }
            let end = end.min(from + u64::from(u16::MAX));
            let header = self.header(Position(from), (end - from) as u16);
            let entries = self.log.range(from, end);
            sink.frame(&Frame::Segment(&header, entries));
            left = left.saturating_sub(entries.len());
            from = end;
        }
        Position(from - 1)
    }

    fn header(&self, first: Position, count: u16) -> frame::Segment {
        frame::Segment {
            slot: self.slot.0.into(),
            master: self.master().0.into(),
            count: count.into(),
            term: self.term.0.into(),
            master_seq: self.master_seq.into(),
            first: first.0.into(),
            committed: self.committed.0.into(),
            released: self.released.into(),
            stable: self.stable.0.into(),
        }
    }

    /// Writes what comes before entries: the seal, until it is known where the member stands, then `Start`. Returns
    /// whether entries may follow.
    fn write_start(&mut self, index: usize, now: Nanos, sink: &mut impl FrameSink) -> bool {
        let (slot, term) = (self.slot.0.into(), self.term.0.into());
        let follower = &mut self.followers[index];
        let Some(tail) = follower.place else {
            (follower.probe, follower.tell, follower.emit) = (false, false, false);
            follower.tell_in_passing = false;
            follower.sent_at = now;
            let address = self.config.address.into();
            sink.frame(&Frame::Seal(&frame::Seal { address, slot, term }));
            return false;
        };
        let learn = if follower.learns() { frame::START_LEARN } else { 0 };
        let anew = if follower.anew { frame::START_ANEW } else { 0 };
        let (join, flags) = (follower.join.into(), (learn | anew).into());
        sink.frame(&Frame::Start(&frame::Start { slot, flags, term, join, tail: tail.0.into() }));
        true
    }
}
