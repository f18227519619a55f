//! How a new owner finds the log that survives: it seals the members of every map version that is not confirmed out of
//! use, takes the log with the highest (last term, tail), and fetches what that member still keeps.
//!
//! The rules are Raft's (Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm", 2014, section
//! 5.4): every entry carries its term, whoever acked an entry that was released is among those that answered, and
//! nobody with a lower (last term, tail) can hold it if the winner does not.

use super::Survived;
use crate::proto::Safeguards;
use crate::proto::map::{Group, MapMember, is_commit_set};
use crate::proto::record_log::RecordLog;
use crate::types::{Boot, Nanos, NodeId, Ordinal, Position, Slot, Term};
use crate::wire::frame::{self, LOST};
use crate::wire::record::Entry;

/// Terms of last entries that answers are told apart by: more than there are nodes that share a slot.
const MOST_TERMS: usize = 64;

/// A member's answer to the seal.
#[derive(Copy, Clone, Debug)]
struct Answer {
    node: NodeId,
    boot: Boot,
    sealed: frame::Sealed,
}

impl Answer {
    fn is(&self, member: &MapMember) -> bool {
        (self.node, self.boot, self.sealed.join.get()) == (member.node, member.boot, member.join)
    }
}

/// How far the answers go.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Members that might hold what nobody else does have not answered.
    Wait,
    /// Everything released is among the answers.
    Complete,
    /// Everyone who has not answered is dead, and together they may have held what nobody else does.
    Lossy,
}

/// A slot whose new owner does not know its log yet.
#[derive(Debug)]
pub struct Recovery {
    slot: Slot,
    term: Term,
    began: Nanos,
    answers: Vec<Answer>,
    /// Members that have dropped what they held.
    lost: Vec<Answer>,
    /// How many outputs are on the wire, as far as anybody who answered knew, those included who have ended since: of each
    /// term of the last entry that they held.
    released: Vec<(u32, u64)>,
    /// The member whose log survives, once that is known, and what has come of it.
    winner: Option<(Answer, RecordLog)>,
    settled: bool,
    /// As settled: what members held that have died may be lost.
    lossy: bool,
    safeguards: Safeguards,
}

impl Recovery {
    /// The recovery of `slot` for the owner of `term`, which begins now.
    pub fn new(now: Nanos, slot: Slot, term: Term, safeguards: Safeguards) -> Recovery {
        Recovery {
            slot,
            term,
            began: now,
            answers: Vec::new(),
            lost: Vec::new(),
            released: Vec::new(),
            winner: None,
            settled: false,
            lossy: false,
            safeguards,
        }
    }

    /// The slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// When it began.
    pub fn began(&self) -> Nanos {
        self.began
    }

    /// Takes an answer; whether it is of this term. Of one that comes when it is settled, see
    /// [`Recovery::reconsider`]; and it tells the owner where that member stands.
    pub fn on_sealed(&mut self, node: NodeId, boot: Boot, sealed: &frame::Sealed) -> bool {
        if Term(sealed.term.get()) != self.term {
            return false;
        }
        let answer = Answer { node, boot, sealed: *sealed };
        let lost = sealed.last_term.get() == LOST;
        if !lost {
            self.note_released(sealed.last_term.get(), sealed.released.get());
        }
        let list = if lost { &mut self.lost } else { &mut self.answers };
        // As the later member it was, it has lost what it held as the earlier ones, too.
        let later = |a: &Answer| (a.node, a.boot) == (node, boot) && a.sealed.join.get() > sealed.join.get();
        if lost && list.iter().any(later) {
            return true;
        }
        list.retain(|answer| answer.node != node);
        list.push(answer);
        true
    }

    /// The answers, to be given to the [`super::Owner`] that comes of this.
    pub fn answers(&self) -> impl Iterator<Item = (NodeId, Boot, &frame::Sealed)> {
        self.answers.iter().map(|answer| (answer.node, answer.boot, &answer.sealed))
    }

    /// Whether `node` is to be asked: a member of some version that has not answered.
    pub fn lacks(&self, group: &Group, node: NodeId) -> bool {
        let mut sets = self.sets(group);
        sets.any(|set| set.iter().any(|m| m.node == node && !self.answered(m)))
    }

    fn sets<'g>(&self, group: &'g Group) -> impl Iterator<Item = &'g [MapMember]> {
        let most = if self.safeguards.seal_past { usize::MAX } else { 1 };
        group.configurations().take(most).filter(|set| !set.is_empty())
    }

    fn answered(&self, member: &MapMember) -> bool {
        self.answers.iter().any(|answer| answer.is(member))
    }

    /// Whether there is nothing more to hear of the member: it has dropped what it held, or its node has answered as
    /// the member that it became later in the same life.
    fn has_lost(&self, member: &MapMember) -> bool {
        let later =
            |a: &Answer| (a.node, a.boot) == (member.node, member.boot) && a.sealed.join.get() > member.join;
        self.lost.iter().any(|answer| answer.is(member)) || self.answers.iter().chain(&self.lost).any(later)
    }

    /// Whether a member that is `expected` to answer has not. One that holds more than those who have would be given up.
    pub fn awaits(&self, group: &Group, expected: impl Fn(&MapMember) -> bool) -> bool {
        let said = |m: &MapMember| self.answered(m) || self.has_lost(m);
        self.sets(group).flatten().any(|m| expected(m) && !said(m))
    }

    /// Whether the present members that have answered could commit, or those who keep them from it hold nothing. An
    /// owner that begins without them gains nothing, and what it appends turns those it does not reach into strangers.
    pub fn could_commit(&self, group: &Group, commit: usize) -> bool {
        let said = |m: &MapMember| self.answered(m) || self.has_lost(m);
        is_commit_set(&group.members, commit, self.safeguards.span_hosts, said)
    }

    /// Whether the answers are enough: in each version of the member set somebody has answered, and those who have not
    /// are no commit set.
    pub fn verdict(&self, group: &Group, commit: usize, is_live: impl Fn(&MapMember) -> bool) -> Verdict {
        let spanning = self.safeguards.span_hosts;
        let mut verdict = Verdict::Complete;
        for set in self.sets(group) {
            let silent = |m: &MapMember| !self.answered(m);
            if set.iter().any(|m| self.answered(m)) && !is_commit_set(set, commit, spanning, silent) {
                continue;
            }
            let mut missing = set.iter().filter(|m| silent(m));
            if missing.any(|m| is_live(m) && !self.has_lost(m)) {
                return Verdict::Wait;
            }
            verdict = Verdict::Lossy;
        }
        verdict
    }

    /// Whether it is known whose log survives.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// The answer of the member whose log survives, of those that have come.
    fn best(&self, group: &Group) -> Option<&Answer> {
        let counts = |answer: &&Answer| {
            !self.safeguards.incarnations || self.sets(group).any(|set| set.iter().any(|m| answer.is(m)))
        };
        self.answers.iter().filter(counts).max_by_key(|answer| self.rank(answer))
    }

    fn rank(&self, answer: &Answer) -> (u32, u64, u64) {
        let last_term = if self.safeguards.log_order { answer.sealed.last_term.get() } else { 0 };
        (last_term, answer.sealed.held.get(), answer.sealed.released.get())
    }

    /// An answer has come after it was settled: if that member holds more, what survives is settled anew. True then.
    pub fn reconsider(&mut self, group: &Group) -> bool {
        let held = |answer: &Answer| (self.rank(answer).0, self.rank(answer).1);
        let winner = self.winner.as_ref().map(|(answer, _)| held(answer));
        let better = self.settled && self.best(group).map(held) > winner;
        if better {
            (self.winner, self.settled) = (None, false);
        }
        better
    }

    /// Settles whose log survives, out of the answers of members of any version; none if nobody has anything. `lossy`:
    /// though others may have held what these do not.
    pub fn settle(&mut self, group: &Group, lossy: bool) {
        let best = self.best(group).copied();
        (self.settled, self.lossy) = (true, lossy);
        self.winner = best.map(|best| (best, RecordLog::new(best.sealed.first.get().max(1))));
    }

    /// Whether the log that survives has outputs of which nobody knows that they are on the wire.
    pub fn owes(&self) -> bool {
        self.winner.as_ref().is_some_and(|(answer, _)| answer.sealed.outputs.get() > self.released_of(answer))
    }

    fn note_released(&mut self, last_term: u32, released: u64) {
        if let Some((_, known)) = self.released.iter_mut().find(|(of, _)| *of == last_term) {
            *known = released.max(*known);
        } else if self.released.len() < MOST_TERMS {
            self.released.push((last_term, released));
        }
    }

    /// How many outputs of the log that survives are on the wire. Where others were lost, who held entries of a later term
    /// may count some that this log has not.
    fn released_of(&self, winner: &Answer) -> u64 {
        let last_term = winner.sealed.last_term.get();
        let known = self.released.iter().filter(|(of, _)| !self.lossy || *of <= last_term);
        known.map(|(_, released)| *released).max().unwrap_or(0)
    }

    /// From whom entries are to be fetched, and from which position on; `None`: there is nothing more to fetch.
    pub fn fetch(&self) -> Option<(NodeId, Position)> {
        let (answer, log) = self.winner.as_ref()?;
        (log.next() <= answer.sealed.held.get()).then_some((answer.node, Position(log.next())))
    }

    /// The life of the member from which entries are being fetched.
    pub fn source(&self) -> Option<(NodeId, Boot)> {
        self.fetch()?;
        self.winner.as_ref().map(|(answer, _)| (answer.node, answer.boot))
    }

    /// The member whose log was to be fetched is not heard any more: the others' answers decide anew.
    pub fn give_up_on(&mut self, node: NodeId) {
        self.answers.retain(|answer| answer.node != node);
        (self.winner, self.settled) = (None, false);
    }

    /// Takes a run of entries; whether they were wanted.
    pub fn on_fetched(&mut self, node: NodeId, fetched: &frame::Fetched, mut rest: &[u8]) -> bool {
        let Some((answer, log)) = &mut self.winner else { return false };
        let wanted = answer.node == node && Term(fetched.term.get()) == self.term;
        if !wanted || fetched.first.get() != log.next() {
            return false;
        }
        for _ in 0..fetched.count.get() {
            let Some((_, own, after)) = Entry::read(rest) else { return false };
            if log.next() > answer.sealed.held.get() {
                return false;
            }
            log.push(own);
            rest = after;
        }
        true
    }

    /// The log that survived. Call it once there is nothing to fetch.
    pub fn survived(&mut self) -> Survived {
        let Some((answer, mut log)) = self.winner.take() else { return Survived::default() };
        let (sealed, released) = (&answer.sealed, self.released_of(&answer));
        if log.is_empty() {
            log = RecordLog::new(sealed.held.get() + 1);
        }
        Survived {
            before: Term(if log.is_empty() { sealed.last_term.get() } else { sealed.before.get() }),
            log,
            last_time: Nanos(sealed.last_time.get()),
            deadline: Nanos(sealed.deadline.get()),
            released: Ordinal(released.min(sealed.outputs.get())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::HostId;
    use zerocopy::FromZeros;

    fn member(node: u16, join: u32) -> MapMember {
        MapMember { node: NodeId(node), host: HostId(node), boot: Boot(1), join }
    }

    #[test]
    fn a_late_answer_of_a_member_that_holds_more_decides_anew_and_others_do_not() {
        let group = Group { members: vec![member(1, 1), member(2, 1), member(3, 1)], ..Group::default() };
        let mut recovery = Recovery::new(Nanos::ZERO, Slot(0), Term(5), Safeguards::default());
        let mut sealed = frame::Sealed::new_zeroed();
        (sealed.term, sealed.join, sealed.last_term, sealed.held) = (5.into(), 1.into(), 4.into(), 7.into());
        recovery.on_sealed(NodeId(1), Boot(1), &sealed);
        recovery.on_sealed(NodeId(2), Boot(1), &sealed);
        assert!(!recovery.reconsider(&group), "not settled yet");
        recovery.settle(&group, false);
        recovery.on_sealed(NodeId(3), Boot(2), &frame::Sealed { held: 9.into(), ..sealed });
        assert!(!recovery.reconsider(&group), "a life that is no member");
        recovery.on_sealed(
            NodeId(3),
            Boot(1),
            &frame::Sealed { outputs: 9.into(), released: 8.into(), ..sealed },
        );
        assert!(!recovery.reconsider(&group) && recovery.is_settled(), "the same log");
        recovery.on_sealed(NodeId(3), Boot(1), &frame::Sealed { held: 8.into(), ..sealed });
        assert!(recovery.reconsider(&group) && !recovery.is_settled());
        recovery.settle(&group, false);
        assert_eq!(recovery.fetch().map(|(node, _)| node), Some(NodeId(3)));
    }

    #[test]
    fn what_a_learner_knows_of_a_branch_that_has_died_is_not_believed_of_the_one_that_is_left() {
        let group = Group { members: vec![member(1, 1)], learners: vec![member(2, 3)], ..Group::default() };
        let mut recovery = Recovery::new(Nanos::ZERO, Slot(0), Term(3), Safeguards::default());
        let mut sealed = frame::Sealed::new_zeroed();
        (sealed.term, sealed.join, sealed.last_term) = (3.into(), 1.into(), 1.into());
        (sealed.first, sealed.held, sealed.outputs, sealed.released) =
            (6.into(), 5.into(), 9.into(), 4.into());
        recovery.on_sealed(NodeId(1), Boot(1), &sealed);
        (sealed.join, sealed.last_term, sealed.released) = (3.into(), 2.into(), 7.into());
        recovery.on_sealed(NodeId(2), Boot(1), &sealed);
        recovery.settle(&group, true);
        assert!(recovery.owes());
        assert_eq!(recovery.survived().released, Ordinal(4));
    }

    #[test]
    fn who_has_become_another_member_says_nothing_more_as_the_earlier_one() {
        let present = vec![member(1, 6), member(2, 6)];
        let group =
            Group { members: present, past: vec![vec![member(1, 3), member(2, 3)]], ..Group::default() };
        let mut recovery = Recovery::new(Nanos::ZERO, Slot(0), Term(5), Safeguards::default());
        let mut sealed = frame::Sealed::new_zeroed();
        (sealed.term, sealed.join) = (5.into(), 6.into());
        let all_live = |_: &MapMember| true;
        recovery.on_sealed(NodeId(1), Boot(1), &sealed);
        assert_eq!(recovery.verdict(&group, 2, all_live), Verdict::Wait, "node 2 may hold what it did");
        recovery.on_sealed(NodeId(2), Boot(1), &sealed);
        assert_eq!(recovery.verdict(&group, 2, all_live), Verdict::Lossy);
        // The earlier member's own answer is worth more.
        sealed.join = 3.into();
        recovery.on_sealed(NodeId(2), Boot(1), &sealed);
        assert_eq!(recovery.verdict(&group, 2, all_live), Verdict::Complete, "one of each set");
    }
}
