//! How a learner becomes whole. It is part of the fan-out from its `Start` on and keeps what comes, unexecuted; a
//! snapshot of the slot, taken by another member at a position no earlier, is put under it; then it executes what it
//! kept. It is in sync when it has executed all that it knows to be committed and every output before its snapshot is
//! on the wire, so that it could be asked for any that is not.

use super::{Machine, Member, Refused};
use crate::proto::record_log::RecordLog;
use crate::types::{Boot, Nanos, NodeId, Ordinal, Position, Term};
use crate::wire::record::Entry;

/// Entries a learner keeps while its snapshot is under way; more are refused, and it begins anew.
pub(super) const MOST_BUFFERED: usize = 65_536;

/// Where a slot's log stood when a snapshot of its calls was taken.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The term that both members have installed.
    pub term: Term,
    /// The last entry executed, and the term it was appended in.
    pub position: Position,
    /// See `position`.
    pub last_term: Term,
    /// Its logical time.
    pub last_time: Nanos,
    /// How many outputs the slot had produced.
    pub outputs: Ordinal,
    /// The rolling digest.
    pub digest: u64,
    /// The newest digest checkpoint.
    pub checkpoint: (Position, u64),
}

impl SnapshotHead {
    const LEN: usize = 4 + 8 + 4 + 8 + 8 + 8 + 8 + 8;

    /// Appends the head to `out`, little endian.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.term.0.to_le_bytes());
        out.extend_from_slice(&self.last_term.0.to_le_bytes());
        let numbers = [self.position.0, self.last_time.0, self.outputs.0, self.digest];
        for number in numbers.into_iter().chain([self.checkpoint.0.0, self.checkpoint.1]) {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Reads a head and what follows it.
    pub fn read(bytes: &[u8]) -> Option<(SnapshotHead, &[u8])> {
        let (head, rest) = bytes.split_at_checked(SnapshotHead::LEN)?;
        let short = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let long = |n: usize| Some(u64::from_le_bytes(head.get(8 + 8 * n..16 + 8 * n)?.try_into().ok()?));
        let head = SnapshotHead {
            term: Term(short(0)?),
            last_term: Term(short(4)?),
            position: Position(long(0)?),
            last_time: Nanos(long(1)?),
            outputs: Ordinal(long(2)?),
            digest: long(3)?,
            checkpoint: (Position(long(4)?), long(5)?),
        };
        Some((head, rest))
    }
}

impl Member {
    /// Begins to learn behind `tail`, or goes on if it does already.
    pub(super) fn start_learning(
        &mut self,
        term: Term,
        tail: u64,
        owner: (NodeId, Boot),
        machine: &mut impl Machine,
    ) -> Result<(), Refused> {
        if term == self.term && owner != self.owner {
            return Err(Refused::Term);
        }
        // Repeated, or of an earlier beginning.
        if term == self.term && tail <= self.held().0 && !self.lost {
            return Ok(());
        }
        machine.reset();
        *self = self.fresh();
        self.install(term, owner);
        self.learning = tail > 0;
        self.entries = RecordLog::new(tail + 1);
        Ok(())
    }

    /// Whether a snapshot is wanted, and of which position at least.
    pub fn wants_snapshot(&self) -> Option<Position> {
        let follows = self.promised == self.term;
        (self.learning && !self.lost && follows).then(|| Position(self.entries.first() - 1))
    }

    /// Where its own snapshot stands; none while it is none to copy from.
    pub fn snapshot_head(&self) -> Option<SnapshotHead> {
        let whole =
            !self.learning && !self.lost && self.executed == self.held() && self.promised == self.term;
        whole.then_some(SnapshotHead {
            term: self.term,
            position: self.executed,
            last_term: self.last_term,
            last_time: self.last_time,
            outputs: Ordinal(self.outputs.next()),
            digest: self.digest,
            checkpoint: self.checkpoint,
        })
    }

    /// Goes on from a snapshot that `machine` has been restored from already: executes what was kept behind it.
    ///
    /// # Errors
    /// [`Refused::Behind`]: it does not fit what was kept (another term, too early); `machine` must be reset.
    pub fn restore(&mut self, head: &SnapshotHead, machine: &mut impl Machine) -> Result<(), Refused> {
        let early = head.position.next().0 < self.entries.first();
        // It has said that it holds nothing: a new owner goes by that.
        let promised = self.promised != self.term;
        if !self.learning || self.lost || promised || head.term != self.term || early {
            return Err(Refused::Behind);
        }
        if head.position.next().0 >= self.entries.next() {
            self.entries.reset(head.position.next().0);
            self.last_term = head.last_term;
        } else {
            self.entries.release_to(head.position.next().0);
        }
        self.before = head.last_term;
        self.executed = head.position;
        self.last_time = head.last_time;
        self.outputs = RecordLog::new(head.outputs.0);
        self.began_with = head.outputs;
        (self.digest, self.checkpoint) = (head.digest, head.checkpoint);
        self.learning = false;
        let kept = std::mem::replace(&mut self.entries, RecordLog::new(1));
        let mut result = Ok(());
        for position in kept.first()..kept.next() {
            let Some((entry, own, _)) = kept.get(position).and_then(Entry::read) else {
                unreachable!("slot {}: an entry that was kept parses", self.slot.0)
            };
            if entry.time < self.last_time {
                self.lost = true;
                result = Err(Refused::Malformed);
                break;
            }
            self.execute(Position(position), &entry, own, machine);
        }
        self.entries = kept;
        self.outputs.release_to(self.told.1.0.min(self.outputs.next()));
        result
    }

    /// Whether it keeps what comes for a snapshot that has not.
    pub fn is_learning(&self) -> bool {
        self.learning
    }

    /// Whether it holds the slot as a member would.
    pub fn in_sync(&self) -> bool {
        let whole = self.term != Term(0) && !self.learning && !self.lost && self.promised == self.term;
        whole && self.executed >= self.told.0 && self.told.1 >= self.began_with
    }
}
