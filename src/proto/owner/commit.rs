//! Acks: what is committed, what is stable, what has been answered, and whether the members agree.

use super::follower::Follower;
use super::{Owner, Stale};
use crate::types::{Boot, Nanos, NodeId, NodeSet, Position};
use crate::wire::frame;

impl Owner {
    /// Takes the ack of the member of `node`. `boot` is the life that sent it.
    pub fn on_ack(&mut self, now: Nanos, node: NodeId, boot: Boot, ack: &frame::Ack) -> Result<(), Stale> {
        let index = self.current(node, boot, ack.term.get(), ack.join.get())?;
        let (held, executed) = (Position(ack.held.get()), Position(ack.executed.get()));
        if held > self.tail() || executed > held {
            return Err(Stale::Ahead);
        }
        let follower = &mut self.followers[index];
        // Of a learner that began anew, what it says of its earlier beginning is no answer to the Start.
        if follower.place.is_none_or(|place| held < place) {
            return Err(Stale::Term);
        }
        // What it was told before it began may have been lost on it.
        match std::mem::replace(&mut follower.started, true) {
            true => follower.told = follower.telling,
            false => follower.tell = true,
        }
        if held > follower.held {
            follower.held = held;
            follower.sent = follower.sent.max(held);
            follower.retries = 0;
            follower.sent_at = now;
        }
        if executed >= follower.executed {
            follower.executed = executed;
            follower.outputs = ack.outputs.get();
        }
        self.go_on(index);
        // A member's outputs travel in front of its ack: what the ack counts and did not come was lost.
        if index == self.master && self.followers[index].outputs > self.outputs.next() {
            self.ask_for_outputs(index, now);
        }
        self.on_deadline(executed, Nanos(ack.deadline.get()));
        self.update_committed(now);
        self.update_answered(now, index == self.master);
        let checkpoint = (Position(ack.digest_at.get()), ack.digest.get());
        if checkpoint.0 > Position(0) && self.followers[index].digest_at(checkpoint.0).is_none() {
            self.followers[index].remember(checkpoint);
            self.compare_digests(checkpoint.0);
        }
        Ok(())
    }

    /// The deadline reported at the highest position is the slot's.
    fn on_deadline(&mut self, executed: Position, deadline: Nanos) {
        if executed < self.timer.0 {
            return;
        }
        self.timer = (executed, deadline);
        if self.tick.is_some_and(|tick| tick <= executed) {
            self.tick = None;
        }
    }

    pub(super) fn update_committed(&mut self, now: Nanos) {
        let committed = self.acked_by_commit_set();
        if committed > self.committed {
            self.committed = committed;
            self.uncommitted_since = now;
            self.schedule_tell(now);
        }
        if self.update_stable() {
            self.schedule_tell(now);
        }
    }

    /// Drops the entries that are committed and that every member holds, and every learner that is being waited for: who
    /// is promoted lacks nothing that others have dropped, and what a member has dropped a later owner takes for
    /// committed. Returns whether `stable` grew.
    pub(super) fn update_stable(&mut self) -> bool {
        let before = self.stable;
        let held = self.followers.iter().filter(|f| f.waited_for()).map(|f| f.held).min();
        if let Some(stable) = held.filter(|_| self.followers.iter().any(Follower::counted)) {
            self.stable = self.stable.max(stable.min(self.committed));
        }
        if let Some(term) = self.term_at(self.stable.min(self.tail())) {
            self.before = term;
        }
        self.log.release_to(self.stable.next().0);
        self.stable > before
    }

    /// The highest position that a commit set of the present members holds in this term.
    fn acked_by_commit_set(&self) -> Position {
        let held = |from: Position| self.followers.iter().filter(move |f| f.acked(from));
        self.followers
            .iter()
            .filter(|f| f.acked(Position(0)))
            .map(|f| f.held)
            .filter(|p| *p >= self.floor && self.is_commit_set(held(*p).map(|f| f.node)))
            .max()
            .unwrap_or(Position(0))
    }

    /// Whether `nodes` are enough members on enough hosts.
    pub(super) fn is_commit_set(&self, nodes: impl Iterator<Item = NodeId> + Clone) -> bool {
        let members = || self.followers.iter().filter(|f| !f.learner);
        let host = |node: NodeId| self.followers.iter().find(|f| f.node == node).map(|f| f.host);
        let Some(first) = members().next().map(|f| f.host) else { return false };
        let members_span = self.config.safeguards.span_hosts && members().any(|f| f.host != first);
        let mut hosts = nodes.clone().map(host);
        let one = hosts.next();
        let span = !members_span || hosts.any(|h| Some(h) != one);
        span && nodes.count() >= self.config.commit.min(members().count())
    }

    /// The members without which an entry is not committed and answered: the master, the owner's own (reached by
    /// `local`), and as many more, in the order of their lanes, as make a commit set; those on other hosts first, and
    /// those last whose acks are late. Also who should be master and is not yet: it has to hold what is committed first.
    pub fn needed(&self, local: usize) -> NodeSet {
        let mut set = NodeSet::EMPTY;
        set.insert(self.master());
        if self.master_is_away() {
            set.insert(self.followers[self.home()].node);
        }
        let own = self.followers.iter().find(|f| f.lane == local && f.counted());
        own.into_iter().for_each(|f| set.insert(f.node));
        let among = |set: NodeSet| {
            let able = move |f: &&Follower| f.counted() && f.place.is_some() && set.contains(f.node);
            self.followers.iter().filter(able).map(|f| f.node)
        };
        let here = own.map(|f| f.host);
        while !self.is_commit_set(among(set)) {
            let able = |f: &&Follower| f.counted() && f.trusted && f.place.is_some() && !set.contains(f.node);
            let more = self.followers.iter().filter(able);
            let Some(next) = more.min_by_key(|f| (f.retries > 0, Some(f.host) == here, f.lane)) else {
                break;
            };
            set.insert(next.node);
        }
        set
    }

    /// Whether no member set before the present one is needed any more: all there was when the newest map came is held
    /// by a commit set of the present members.
    pub fn is_confirmed(&self) -> bool {
        let needed = self.map_tail.max(self.floor);
        needed == Position(0) || self.acked_by_commit_set() >= needed
    }

    /// A member that executed up to p with n outputs proves everything up to p answered once n were taken.
    /// Karn's rule (RFC 6298 section 3): how long an answer took that another member had to be asked for says how
    /// long the asking took, so it is no sample; when the master's own comes after all, that is one.
    pub(super) fn update_answered(&mut self, now: Nanos, by_master: bool) {
        let taken = self.outputs.next();
        let answered =
            self.followers.iter().filter(|f| f.acked(Position(0)) && f.outputs <= taken).map(|f| f.executed);
        if let Some(answered) = answered.max().filter(|a| *a > self.answered) {
            self.answered = answered;
            if self.hedges == 0 || by_master {
                self.delay = Some(now.since(self.waiting_since));
            } else if self.rescued.is_none() {
                self.rescued = Some((taken, self.waiting_since));
            }
            self.waiting_since = now;
            self.hedges = 0;
        }
    }

    /// Compares what the members say of one checkpoint. The majority is right; with none, once all have
    /// spoken, the master is.
    fn compare_digests(&mut self, position: Position) {
        let said = |owner: &Owner| -> Vec<(usize, u64)> {
            let counted = owner.followers.iter().enumerate().filter(|(_, f)| f.counted());
            counted.filter_map(|(i, f)| f.digest_at(position).map(|d| (i, d))).collect()
        };
        let reports = said(self);
        if reports.iter().all(|(_, d)| *d == reports[0].1) {
            return;
        }
        self.divergences += 1;
        let members = self.followers.iter().filter(|f| f.counted()).count();
        let votes = |digest: u64| reports.iter().filter(|(_, d)| *d == digest).count();
        let majority = reports.iter().map(|(_, d)| *d).find(|d| votes(*d) * 2 > members);
        let masters = self.followers[self.master].digest_at(position).filter(|_| reports.len() == members);
        let Some(right) = majority.or(masters) else { return };
        for (index, digest) in reports {
            if digest != right {
                self.followers[index].diverged = true;
                let others = self.followers.iter().filter(|f| f.counted() && !f.diverged).map(|f| f.node);
                // Without a commit set among the others it must go on holding entries, but never leads.
                if self.is_commit_set(others) {
                    self.discount(index);
                }
            }
        }
        if !self.followers[self.master].may_lead() {
            self.choose_master();
        }
    }

    /// How many members count, and hold everything there is.
    pub fn whole(&self) -> (usize, usize) {
        let tail = self.tail();
        let counted = self.followers.iter().filter(|f| f.counted());
        (counted.clone().count(), counted.filter(|f| f.held == tail).count())
    }
}
