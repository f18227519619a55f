//! How a member changes owners. It promises the new term, which freezes its log, says what it holds, and goes on
//! when the owner's `Start` has confirmed the place. A log that went on without the cluster is not mended, because what was
//! executed cannot be taken back: it gets no `Start`, is kept as it is, and is dropped when its holder learns anew.

use super::{Machine, Member, Refused};
use crate::types::{Boot, Nanos, NodeId, Ordinal, Position, Term};
use crate::wire::frame::{self, LOST, START_ANEW, START_LEARN};

impl Member {
    /// Promises to follow nothing below `term` and tells what is held; `deadline` is the slot's next timer.
    ///
    /// # Errors
    /// A higher term was promised.
    pub fn on_seal(&mut self, term: Term, deadline: Nanos) -> Result<frame::Sealed, Refused> {
        if term < self.promised {
            return Err(Refused::Term);
        }
        self.promised = term;
        Ok(frame::Sealed {
            slot: self.slot.0.into(),
            term: term.0.into(),
            join: self.join.into(),
            // One that still learns has nothing to tell either, nor has one that learns by executing from the first entry on.
            last_term: if self.lost || self.learning || self.anew { LOST } else { self.last_term.0 }.into(),
            before: self.before.0.into(),
            first: self.entries.first().into(),
            held: self.held().0.into(),
            outputs: self.outputs.next().into(),
            released: self.told.1.0.min(self.outputs.next()).into(),
            last_time: self.last_time.0.into(),
            deadline: deadline.0.into(),
        })
    }

    /// The entries kept from `from` on, at most `room` bytes of them (but always one), for an owner that this member
    /// has promised to follow; their first position and their number. Nothing if there is none.
    pub fn fetched(&self, term: Term, from: Position, room: usize) -> Option<(Position, u16, &[u8])> {
        let from = from.0.max(self.entries.first());
        if self.promised != term || from >= self.entries.next() {
            return None;
        }
        let end = self.entries.fit(from, room).clamp(from + 1, self.entries.next());
        let end = end.min(from + u64::from(u16::MAX));
        Some((Position(from), (end - from) as u16, self.entries.range(from, end)))
    }

    /// Installs a term: entries behind `start.tail` are taken from this owner from now on.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn on_start(
        &mut self,
        start: &frame::Start,
        owner: (NodeId, Boot),
        machine: &mut impl Machine,
    ) -> Result<(), Refused> {
        let term = Term(start.term.get());
        let flags = start.flags.get();
        if term < self.promised || term < self.term {
            return Err(Refused::Term);
        }
        if start.join.get() != self.join {
            return Err(Refused::Join);
        }
        if flags & START_ANEW != 0 && (self.lost || self.learning || self.anew) && term > self.term {
            machine.reset();
            *self = Member { anew: true, ..self.fresh() };
            self.install(term, owner);
            return Ok(());
        }
        if flags & START_LEARN != 0 {
            return self.start_learning(term, start.tail.get(), owner, machine);
        }
        if self.lost {
            return Err(Refused::Lost);
        }
        if term == self.term {
            return self.follow(term.0, owner);
        }
        if self.learning || start.tail.get() != self.held().0 {
            return Err(Refused::Behind);
        }
        self.install(term, owner);
        // What others had produced beyond its own outputs was perhaps of another log.
        self.told.1 = self.told.1.min(Ordinal(self.outputs.next()));
        Ok(())
    }

    /// A member of the same name that holds nothing.
    pub(super) fn fresh(&self) -> Member {
        Member::new(self.slot, self.me, self.join, self.digest_every, self.safeguards)
    }

    pub(super) fn install(&mut self, term: Term, owner: (NodeId, Boot)) {
        (self.term, self.promised, self.owner) = (term, term, owner);
        self.master = NodeId(0);
        self.master_seq = 0;
        self.told.0 = Position(0);
    }

    /// Whether what comes from `owner` in `term` is to be followed.
    pub(super) fn follow(&mut self, term: u32, owner: (NodeId, Boot)) -> Result<(), Refused> {
        if !self.safeguards.start_first && Term(term) > self.term && Term(term) >= self.promised {
            self.install(Term(term), owner);
        }
        let promised = self.promised > self.term && self.safeguards.seal_promise;
        let installed = self.term != Term(0) && Term(term) == self.term && !promised;
        match installed && owner == self.owner {
            true if self.lost => Err(Refused::Lost),
            true => Ok(()),
            false => Err(Refused::Term),
        }
    }

    /// The owner whose entries are taken.
    pub fn owner(&self) -> (NodeId, Boot) {
        self.owner
    }

    /// How many outputs are on the wire, as far as it was told.
    pub fn released(&self) -> Ordinal {
        self.told.1
    }
}
