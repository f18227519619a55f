//! A newer map names other members of a slot, or a member says where it stands.

use super::follower::{CHECKPOINTS, Follower};
use super::{Owner, Stale};
use crate::proto::map::Group;
use crate::types::{Boot, Nanos, NodeId, Position, Term};
use crate::wire::frame::{self, LOST};

impl Owner {
    /// The slot's members are those of `group` from now on. Who stays is told apart by incarnation.
    pub fn on_group(&mut self, group: &Group, lane: impl Fn(NodeId) -> usize) {
        let master = self.followers.get(self.master).map(|f| f.node);
        let mut before = std::mem::take(&mut self.followers);
        let members = group.members.iter().map(|m| (m, false));
        for (member, learner) in members.chain(group.learners.iter().map(|m| (m, true))) {
            let same = |f: &Follower| (f.node, f.boot, f.join) == (member.node, member.boot, member.join);
            let follower = match before.iter().position(same) {
                // One that was promoted is a member like any other, unless it was too far behind by then, or had to begin
                // anew; nobody turns back into a learner.
                Some(known) => {
                    let known = before.swap_remove(known);
                    let blank = known.executed == Position(0) && known.held > Position(0);
                    let lost = known.lost || known.learner && !learner && (known.outpaced || blank);
                    let outpaced = known.outpaced && (learner || known.relearns.is_some());
                    Follower { learner, lost, outpaced, ..known }
                }
                None => Follower::new(member, learner, lane(member.node)),
            };
            self.followers.push(follower);
        }
        assert!(!group.members.is_empty(), "slot {} has no members", self.slot.0);
        for index in 0..self.followers.len() {
            if self.followers[index].learner && self.followers[index].place.is_none() {
                self.teach(index);
            }
        }
        self.map_tail = self.tail();
        let known = master.and_then(|node| self.followers.iter().position(|f| f.node == node));
        self.master = known.unwrap_or_else(|| self.home());
        let renamed = master.is_some() && master != Some(self.master());
        self.master_seq += u32::from(renamed);
        if !self.followers[self.master].may_lead() {
            self.choose_master();
        }
        let tail = self.tail();
        // Who must be heard anew before anything goes on is told at once, the others in passing: a map concerns a thousand
        // slots, and clients wait for few of them.
        let waits = tail > Position(0) && (renamed || self.committed < tail || self.answered < tail);
        for follower in &mut self.followers {
            follower.tell |= waits || follower.is_behind(tail);
            follower.tell_in_passing |= tail > Position(0);
        }
        self.update_stable();
        if self.tell_at == Nanos::MAX && self.followers.iter().any(Follower::learns) {
            self.tell_at = Nanos::ZERO;
        }
    }

    /// The learner begins, or begins anew, behind the last entry there is; where nobody could give it what was before
    /// that, with the first one.
    pub(super) fn teach(&mut self, index: usize) {
        let alone = self.log.first() == 1 && self.followers.iter().all(|f| !f.counted());
        let tail = if alone { Position(0) } else { self.tail() };
        let follower = &mut self.followers[index];
        (follower.place, follower.started, follower.outpaced) = (Some(tail), false, false);
        (follower.anew, follower.retries, follower.outputs) = (false, 0, 0);
        follower.relearns = follower.relearns.map(|_| u64::MAX);
        (follower.sent, follower.held, follower.executed) = (tail, tail, Position(0));
        follower.checkpoints = [(Position(0), 0); CHECKPOINTS];
        follower.tell = true;
    }

    /// A member that has been lost for as long as `patience`, and is a member all the same, learns the slot where it is:
    /// the map drops nobody while all members of a group have lost some slot, each perhaps another one. Until it is whole
    /// it counts for nothing, and tells other owners that it holds nothing; so it is one at a time, and none while what it
    /// holds may be needed and the others can see to it that it is not. Returns whether one begins.
    pub fn teach_lost(&mut self, now: Nanos, patience: Nanos) -> bool {
        let whole = self.followers.iter().filter(|f| f.counted() && f.started);
        let enough = self.is_commit_set(whole.clone().map(|f| f.node));
        // Without a commit set nothing is released, and a learner of the map waits for that for ever.
        let busy = self.followers.iter().any(|f| f.trusted && f.learns() && (enough || f.relearns.is_some()));
        let unsettled = enough && !self.is_confirmed();
        let may = whole.clone().any(|f| f.trusted) && !busy && !unsettled;
        let mut found = None;
        for (index, follower) in self.followers.iter_mut().enumerate() {
            if !follower.lost || follower.learns() || follower.diverged {
                continue;
            }
            let since = *follower.lost_since.get_or_insert(now);
            if follower.trusted && now.since(since) >= patience {
                found = found.or(Some(index));
            }
        }
        let Some(index) = found.filter(|_| may) else { return false };
        self.followers[index].relearns = Some(u64::MAX);
        self.teach(index);
        self.tell_at = now;
        true
    }

    /// A member has acked. One that learns where it is counts again once it holds the slot as a member would, and every
    /// output of which it was only told is here; and may be master once they are on the wire.
    pub(super) fn go_on(&mut self, index: usize) {
        let (taken, released, stable) = (self.outputs.next(), self.released, self.stable);
        let follower = &mut self.followers[index];
        let Some(needed) = follower.relearns else { return };
        if follower.lost && follower.started && follower.executed == follower.held {
            let unsaid = needed.min(follower.outputs);
            follower.relearns = Some(unsaid);
            if follower.held >= stable && taken >= unsaid {
                (follower.lost, follower.lost_since, follower.outpaced) = (false, None, false);
            }
        }
        if !follower.lost && released >= needed {
            follower.relearns = None;
        }
    }

    /// Whether no member counts any more: only another term can go on from what some of them hold.
    pub fn is_orphaned(&self) -> bool {
        !self.followers.iter().any(Follower::counted)
    }

    /// A member has answered this term's seal. One that stands within the log goes on from there, and one that has
    /// dropped what it held with the first entry, if that is still kept; one that went on without the others, or lacks what
    /// is not kept any more, has to be brought in again. Until then it keeps what it has: should all others die, that is the
    /// best that is left.
    pub fn on_sealed(&mut self, node: NodeId, boot: Boot, sealed: &frame::Sealed) -> Result<(), Stale> {
        let index = self.current(node, boot, sealed.term.get(), sealed.join.get())?;
        if self.followers[index].place.is_some() || self.followers[index].learner {
            return Ok(());
        }
        let (held, last_term) = (Position(sealed.held.get()), Term(sealed.last_term.get()));
        let lost = last_term == Term(LOST);
        let anew = lost && self.log.first() == 1;
        let held = if anew { Position(0) } else { held };
        let empty = held == Position(0) && self.log.first() == 1;
        let within = empty || !lost && self.term_at(held) == Some(last_term);
        let tail = self.tail();
        let follower = &mut self.followers[index];
        follower.place = Some(held);
        follower.retries = 0;
        follower.anew = anew;
        if within {
            (follower.sent, follower.held) = (held, held);
            follower.tell = follower.is_behind(tail);
        } else {
            self.demotions += 1;
            self.discount(index);
            if self.master == index {
                self.choose_master();
            }
        }
        Ok(())
    }

    /// The members that were given up and have to be dropped and brought in again.
    pub fn lost(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.followers.iter().filter(|f| f.lost && !f.learner).map(|f| f.node)
    }
}

impl Follower {
    /// Whether an answer of it is due: to the seal (it may hold what did not survive), or as [`Follower::is_behind`].
    pub(super) fn is_pending(&self, tail: Position) -> bool {
        self.place.is_none() || self.is_behind(tail)
    }

    /// Whether an answer of it is due to entries, or to what comes before them. Where nothing has been logged yet, only
    /// learners are told to begin.
    pub(super) fn is_behind(&self, tail: Position) -> bool {
        self.held < self.sent || !self.started && (tail > Position(0) || self.learns() || self.anew)
    }

    /// It counts, has installed the term, and holds everything up to `position`.
    pub(super) fn acked(&self, position: Position) -> bool {
        self.counted() && self.started && self.held >= position
    }
}
