//! The member side of one slot's log: holds entries in order, executes them on arrival, keeps the outputs.
//!
//! Executing before commit (speculation) is what makes failover free of replay: whichever member the newest
//! header names as master already has every output that is not yet released, and sends it.
//!
//! - this file: holding, executing, and what is told to the owner;
//! - `seal`: how a member changes owners: promise, answer, Start;
//! - `learn`: how a learner becomes whole: entries are kept unexecuted until a snapshot has come.

mod learn;
mod seal;
#[cfg(test)]
mod tests;

pub use learn::SnapshotHead;

use super::Safeguards;
use super::record_log::RecordLog;
use crate::types::{Boot, Cursor, Endpoint, LocalId, Nanos, NodeId, Ordinal, Position, Slot, Term};
use crate::wire::frame;
use crate::wire::record::{Entry, Output};
use xxhash_rust::xxh3::xxh3_64;

/// What a member runs its entries through: the application with the slot's calls.
pub trait Machine {
    /// Executes the entry at `position`, handing its outputs to `outputs` in order.
    fn execute(&mut self, position: Position, entry: &Entry<'_>, outputs: &mut Kept<'_>);

    /// Forgets everything: the slot starts from its first entry again.
    fn reset(&mut self);
}

/// Takes the outputs of one entry and gives each its cursor.
pub struct Kept<'a> {
    log: &'a mut RecordLog,
    cursor: Cursor,
    digest: &'a mut u64,
}

impl Kept<'_> {
    /// Keeps one output. `stamped`: see [`Output::stamped`].
    pub fn push(&mut self, stamped: bool, local: LocalId, to: Endpoint, payload: &[u8]) {
        let output = Output { cursor: self.cursor, stamped, local, to, payload };
        let ordinal = self.log.push_with(|bytes| output.write(bytes));
        if let Some(record) = self.log.get(ordinal) {
            *self.digest = roll(*self.digest, record);
        }
        self.cursor.index += 1;
    }
}

/// The rolling digest after one more entry or output. The hash takes no seed: deriving a secret from one costs
/// more than hashing a packet.
fn roll(digest: u64, record: &[u8]) -> u64 {
    (digest.rotate_left(23) ^ xxh3_64(record)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Why a member did not take a frame.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Its term is not the installed one (lower: an old owner; higher: its Start has not come yet), or its owner
    /// lives another life than the one that began the term.
    Term,
    /// A Start for another incarnation of this member.
    Join,
    /// A Start whose tail is not where this member stands, or a snapshot that does not fit.
    Behind,
    /// Its snapshot did not fit what it had kept: it has dropped both, and counts for nothing until it begins anew.
    Lost,
    /// Entries that do not parse, or whose time goes back.
    Malformed,
}

/// The member side of one slot.
#[derive(Debug)]
pub struct Member {
    slot: Slot,
    me: NodeId,
    join: u32,
    /// Nothing of a lower term is followed any more.
    promised: Term,
    /// The term installed: its entries are taken.
    term: Term,
    /// The owner that began it, in which life: a later life has forgotten what it sequenced.
    owner: (NodeId, Boot),
    /// See [`Refused::Lost`].
    lost: bool,
    /// It has entries but not the state before them: see `learn`.
    learning: bool,
    /// It had lost what it held, began with the first entry again, and does not hold yet what is committed.
    anew: bool,
    /// Held entries; `entries.next()` is the first position not held.
    entries: RecordLog,
    /// The term of the last entry held, and of the one before the first kept.
    last_term: Term,
    before: Term,
    executed: Position,
    last_time: Nanos,
    /// Kept outputs by ordinal.
    outputs: RecordLog,
    /// The highest `committed` and `released` a header of this term said.
    told: (Position, Ordinal),
    /// How many outputs there were at the snapshot this member began with.
    began_with: Ordinal,
    master: NodeId,
    master_seq: u32,
    /// As master: the first output not yet sent to the owner.
    send_from: u64,
    /// The owner asked for the outputs from this ordinal on, master or not.
    asked_from: Option<u64>,
    digest: u64,
    digest_every: u64,
    checkpoint: (Position, u64),
    safeguards: Safeguards,
}

impl Member {
    /// A member that holds nothing yet. `digest_every`: positions between two digest checkpoints.
    pub fn new(slot: Slot, me: NodeId, join: u32, digest_every: u64, safeguards: Safeguards) -> Member {
        Member {
            slot,
            me,
            join,
            promised: Term(0),
            term: Term(0),
            owner: (NodeId(0), Boot(0)),
            lost: false,
            learning: false,
            anew: false,
            entries: RecordLog::new(1),
            last_term: Term(0),
            before: Term(0),
            executed: Position(0),
            last_time: Nanos::ZERO,
            outputs: RecordLog::new(0),
            told: (Position(0), Ordinal(0)),
            began_with: Ordinal(0),
            master: NodeId(0),
            master_seq: 0,
            send_from: 0,
            asked_from: None,
            digest: 0,
            digest_every: digest_every.max(1),
            checkpoint: (Position(0), 0),
            safeguards,
        }
    }

    /// The slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The last position held.
    pub fn held(&self) -> Position {
        Position(self.entries.next() - 1)
    }

    /// The join version of its incarnation.
    pub fn join(&self) -> u32 {
        self.join
    }

    /// Logical time of the last entry executed.
    pub fn last_time(&self) -> Nanos {
        self.last_time
    }

    /// The member whose outputs go out, as far as it knows.
    pub fn master(&self) -> NodeId {
        self.master
    }

    /// The last position executed.
    pub fn executed(&self) -> Position {
        self.executed
    }

    /// The term installed.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The newest digest checkpoint: position and rolling digest.
    pub fn checkpoint(&self) -> (Position, u64) {
        self.checkpoint
    }

    /// The rolling digest up to the last executed position.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Bytes and records retained: entries and kept outputs.
    pub fn retained(&self) -> (usize, usize) {
        (self.entries.size() + self.outputs.size(), self.entries.len() + self.outputs.len())
    }

    /// Whether this member is the slot's master, as far as it knows.
    pub fn is_master(&self) -> bool {
        self.master == self.me
    }

    /// Takes a segment: the header first (the newest one says who is master, and what nobody needs any
    /// more), then the entries that continue the log. Returns the first missing position, if there is one to
    /// be asked for.
    pub fn on_segment(
        &mut self,
        header: &frame::Segment,
        entries: &[u8],
        owner: (NodeId, Boot),
        machine: &mut impl Machine,
    ) -> Result<Option<Position>, Refused> {
        self.follow(header.term.get(), owner)?;
        self.on_header(header);
        let first = header.first.get();
        if self.safeguards.in_order && first > self.entries.next() {
            return Ok(self.safeguards.nak.then(|| self.held().next()));
        }
        if self.safeguards.in_order {
            // Before the new ones: a log that is empty now and then stays at the start of its buffer, in the cache.
            self.forget(header.stable.get().min(self.executed.0) + 1);
        }
        self.on_entries(first, usize::from(header.count.get()), entries, machine)?;
        Ok(None)
    }

    /// Drops the entries before `position`.
    fn forget(&mut self, position: u64) {
        let last = self.entries.get(position.min(self.entries.next()).saturating_sub(1));
        if let Some((entry, _, _)) = last.and_then(Entry::read) {
            self.before = entry.term;
        }
        self.entries.release_to(position);
    }

    fn on_header(&mut self, header: &frame::Segment) {
        self.told.0 = self.told.0.max(Position(header.committed.get()));
        self.anew &= self.told.0 == Position(0) || self.held() < self.told.0;
        self.on_released(header.released.get());
        if header.master_seq.get() > self.master_seq || self.master == NodeId(0) {
            let was_master = self.is_master();
            self.master_seq = header.master_seq.get();
            self.master = NodeId(header.master.get());
            if self.is_master() && !was_master {
                self.send_from = self.outputs.first();
            }
        }
    }

    /// So many outputs of the slot are on the wire.
    fn on_released(&mut self, released: u64) {
        self.told.1 = self.told.1.max(Ordinal(released));
        if !self.learning {
            self.outputs.release_to(released.min(self.outputs.next()));
        }
    }

    /// As the header of a segment, for what is told in passing.
    pub fn on_told(&mut self, told: &frame::Told, owner: (NodeId, Boot)) -> Result<(), Refused> {
        self.follow(told.term.get(), owner)?;
        self.on_released(told.released.get());
        Ok(())
    }

    fn on_entries(
        &mut self,
        first: u64,
        count: usize,
        mut rest: &[u8],
        machine: &mut impl Machine,
    ) -> Result<(), Refused> {
        for n in 0..count as u64 {
            let (entry, own, after) = Entry::read(rest).ok_or(Refused::Malformed)?;
            rest = after;
            if self.safeguards.dedupe && first + n < self.entries.next() {
                continue;
            }
            self.hold(&entry, own, machine)?;
        }
        Ok(())
    }

    /// Takes the entry that comes next.
    fn hold(&mut self, entry: &Entry<'_>, own: &[u8], machine: &mut impl Machine) -> Result<(), Refused> {
        if self.learning {
            if self.entries.len() >= learn::MOST_BUFFERED {
                return Err(Refused::Behind);
            }
        } else if entry.time < self.last_time {
            return Err(Refused::Malformed);
        }
        let position = Position(self.entries.push(own));
        self.last_term = entry.term;
        if !self.learning {
            self.execute(position, entry, own, machine);
        }
        Ok(())
    }

    fn execute(&mut self, position: Position, entry: &Entry<'_>, own: &[u8], machine: &mut impl Machine) {
        self.last_time = entry.time;
        self.digest = roll(self.digest, own);
        let cursor = Cursor { position, index: 0 };
        let mut kept = Kept { log: &mut self.outputs, cursor, digest: &mut self.digest };
        machine.execute(position, entry, &mut kept);
        self.executed = position;
        if position.0.is_multiple_of(self.digest_every) {
            self.checkpoint = (position, self.digest);
        }
        if !self.safeguards.keep_outputs && !self.is_master() {
            self.outputs.release_to(self.outputs.next());
        }
    }

    /// The owner wants the outputs from `first` on, whoever is master.
    pub fn on_emit(&mut self, emit: &frame::Emit, owner: (NodeId, Boot)) -> Result<(), Refused> {
        self.follow(emit.term.get(), owner)?;
        let first = emit.first.get();
        self.asked_from = Some(self.asked_from.map_or(first, |asked| asked.min(first)));
        Ok(())
    }

    /// The kept outputs to be sent now: as master those not sent yet, and those the owner asked for.
    /// Taking them marks them as sent.
    pub fn take_outputs(&mut self) -> Option<(Ordinal, Ordinal)> {
        let asked = self.asked_from.take();
        let mine = self.is_master().then_some(self.send_from);
        let from = match (asked, mine) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        let (from, to) = (from.max(self.outputs.first()), self.outputs.next());
        if self.is_master() {
            self.send_from = to;
        }
        (from < to).then_some((Ordinal(from), Ordinal(to)))
    }

    /// The bytes of outputs from `from` on, at most `room` (but always at least one), up to `to`; and the
    /// ordinal behind the last of them.
    pub fn output_run(&self, from: Ordinal, to: Ordinal, room: usize) -> (&[u8], Ordinal) {
        let end = self.outputs.fit(from.0, room).clamp(from.0 + 1, to.0);
        (self.outputs.range(from.0, end), Ordinal(end))
    }

    /// The header for a run of outputs that starts at `first`.
    pub fn outputs_header(&self, first: Ordinal) -> frame::Outputs {
        frame::Outputs {
            slot: self.slot.0.into(),
            term: self.term.0.into(),
            join: self.join.into(),
            first: first.0.into(),
        }
    }

    /// The ack for everything held and executed; `deadline` is the slot's next timer as of now.
    pub fn ack(&self, deadline: Nanos) -> frame::Ack {
        frame::Ack {
            slot: self.slot.0.into(),
            term: self.term.0.into(),
            join: self.join.into(),
            held: self.held().0.into(),
            executed: self.executed.0.into(),
            outputs: self.outputs.next().into(),
            deadline: deadline.0.into(),
            digest_at: self.checkpoint.0.0.into(),
            digest: self.checkpoint.1.into(),
        }
    }

    /// The request for what is missing from `from` on.
    pub fn nak(&self, from: Position) -> frame::Nak {
        frame::Nak {
            slot: self.slot.0.into(),
            term: self.term.0.into(),
            join: self.join.into(),
            from: from.0.into(),
        }
    }
}
