//! What a slot's owner does when something is late, missing or suspected.
//!
//! Three things can be late. An ack: the last entry is sent again, and a member that lacks more says so
//! (Nak). An output: the next trusted member is asked for its kept ones (hedge), long before anybody is
//! declared dead. A node: the next header names another master, which is all a change of master takes.

use super::follower::Follower;
use super::{Owner, Stale};
use crate::proto::rtt::Rtt;
use crate::types::{Boot, Nanos, NodeId, Position};
use crate::wire::frame;

/// Hedges and probes back off by doubling up to this many times...
const MOST_DOUBLINGS: u8 = 6;
/// ...but hedges not beyond this: an output may wait for nothing but the next one.
const HEDGE_CAP: Nanos = Nanos::from_millis(100);

impl Owner {
    /// A member misses entries from `nak.from` on: they are sent again. Whether they are: not if they just were.
    pub fn on_nak(
        &mut self,
        now: Nanos,
        node: NodeId,
        boot: Boot,
        nak: &frame::Nak,
        rtt: &Rtt,
    ) -> Result<bool, Stale> {
        let index = self.current(node, boot, nak.term.get(), nak.join.get())?;
        let from = Position(nak.from.get());
        let kept = self.log.first();
        if from.0 < kept && self.followers[index].learns() {
            self.teach(index);
            return Ok(false);
        }
        if from > self.tail().next() || from.0 < kept {
            return Err(Stale::Ahead);
        }
        let follower = &mut self.followers[index];
        let (last, at) = follower.last_nak;
        let just_done = last == from && at + Nanos(rtt.smoothed().0 / 2) > now;
        let missed = from > follower.held && from <= follower.sent && !just_done;
        if missed {
            follower.sent = from.prev();
            follower.last_nak = (from, now);
        }
        Ok(missed)
    }

    /// When [`Owner::on_timeout`] wants to be called, in monotonic time, because something is late; besides at
    /// [`Owner::tell_at`].
    pub fn next_timeout(&self, rtts: &[Rtt], hedge_after: Nanos) -> Nanos {
        let tail = self.tail();
        let probes = self.followers.iter().filter(|f| f.eligible() && f.is_pending(tail));
        let probe = probes.map(|f| f.sent_at + rtts[f.lane].backed_off(f.retries)).min();
        // A single member is the owner's own node: whatever it is late with, nobody else has it.
        let waits = self.answered < self.tail() && self.followers.len() > 1;
        let hedge = if waits { self.hedge_at(hedge_after) } else { Nanos::MAX };
        probe.unwrap_or(Nanos::MAX).min(hedge)
    }

    /// When the members are to be told of progress, if no entry does so first: always as much after the progress.
    pub fn tell_at(&self) -> Nanos {
        self.tell_at
    }

    fn hedge_at(&self, hedge_after: Nanos) -> Nanos {
        if self.hedges == 0 {
            return self.waiting_since + hedge_after;
        }
        let backed_off = Nanos(hedge_after.0 << (self.hedges - 1).min(MOST_DOUBLINGS));
        self.hedged_at + backed_off.min(HEDGE_CAP.max(hedge_after))
    }

    /// Does what is due; returns how many hedges and probes that was.
    pub fn on_timeout(&mut self, now: Nanos, rtts: &[Rtt], hedge_after: Nanos) -> (u32, u32) {
        let tail = self.tail();
        let mut probes = 0;
        for follower in self.followers.iter_mut().filter(|f| f.eligible() && f.is_pending(tail)) {
            if follower.sent_at + rtts[follower.lane].backed_off(follower.retries) <= now {
                follower.probe = true;
                follower.sent_at = now;
                follower.retries = (follower.retries + 1).min(MOST_DOUBLINGS);
                probes += 1;
            }
        }
        let mut hedges = 0;
        if self.answered < tail && self.hedge_at(hedge_after) <= now {
            self.hedge(now);
            hedges += 1;
        }
        if self.tell_at <= now {
            self.tell_at = Nanos::MAX;
            let state = (self.released, self.stable);
            // Who learns is told again: an ack says that something came, and not what.
            for follower in &mut self.followers {
                follower.tell |= follower.learns();
                follower.tell_in_passing |= follower.told != state;
            }
            if self.followers.iter().any(|f| f.eligible() && (f.told != state || f.learns())) {
                self.tell_at = now + self.config.tell_after;
            }
        }
        (hedges, probes)
    }

    /// The outputs of an entry are late: whoever has not acked is asked to, and the next member after the
    /// master (then the one after it, and so on) is asked for its kept outputs.
    fn hedge(&mut self, now: Nanos) {
        let tail = self.tail();
        if self.committed < tail {
            self.followers.iter_mut().filter(|f| f.held < tail).for_each(|f| f.tell = true);
        }
        let count = self.followers.len();
        let turn = self.master + 1 + usize::from(self.hedges);
        let next = (0..count).map(|n| (turn + n) % count).find(|i| self.followers[*i].may_lead());
        if let Some(index) = next {
            self.followers[index].emit = true;
            self.followers[index].asked_at = now;
        }
        self.hedges = if self.hedges == u8::MAX { MOST_DOUBLINGS } else { self.hedges + 1 };
        self.hedged_at = now;
    }

    /// A member has outputs that did not come: it is asked for them again.
    pub(super) fn ask_for_outputs(&mut self, index: usize, now: Nanos) {
        let follower = &mut self.followers[index];
        if follower.asked_at + Nanos::from_micros(100) <= now {
            follower.emit = true;
            follower.asked_at = now;
        }
    }

    /// The node lives in `boot` and is trusted, or nothing of it is (`None`). A suspected master is replaced at once; a
    /// member that is trusted again gets what it has not acked.
    pub fn on_trust(&mut self, node: NodeId, boot: Option<Boot>) {
        let Some(index) = self.followers.iter().position(|f| f.node == node) else { return };
        let tail = self.tail();
        let follower = &mut self.followers[index];
        let trusted = boot == Some(follower.boot);
        if follower.trusted == trusted {
            return;
        }
        follower.trusted = trusted;
        follower.retries = 0;
        if trusted {
            self.hedges = 0;
            follower.sent = follower.held;
            let news = follower.told != (self.released, self.stable);
            follower.tell |= news || follower.is_behind(tail) || follower.learns();
        }
        if !self.followers[self.master].may_lead() {
            self.choose_master();
        } else if trusted && self.log.next() == 1 {
            self.restore_master();
        } else if !trusted && self.committed < self.tail() {
            self.followers.iter_mut().for_each(|f| f.tell = true);
        }
    }

    /// The member no longer counts.
    pub(super) fn discount(&mut self, index: usize) {
        self.followers[index].lost = true;
        self.update_stable();
    }

    /// Stops keeping entries for a learner that lags behind everybody, of those that may be. Returns whether there was one.
    pub(super) fn outpace_learner(&mut self, may_be: impl Fn(&Follower) -> bool) -> bool {
        let members = self.followers.iter().filter(|f| f.counted()).map(|f| f.held).min();
        let behind = |f: &&mut Follower| f.learns() && f.waited_for() && may_be(f);
        let Some(learner) = self.followers.iter_mut().filter(behind).min_by_key(|f| f.held) else {
            return false;
        };
        // Nothing would be gained.
        if members.is_none_or(|members| learner.held >= members) || learner.held >= self.committed {
            return false;
        }
        learner.outpaced = true;
        self.update_stable();
        true
    }

    /// As [`Owner::demote_slowest`], if that one is suspected or has missed several acks in a row; or stops keeping entries
    /// for a learner of which that is true.
    pub fn demote_lost(&mut self) -> bool {
        let gone = |f: &Follower| !f.trusted || f.retries >= 3;
        if self.outpace_learner(gone) {
            return true;
        }
        let tail = self.tail();
        let behind = self.followers.iter().filter(|f| f.counted() && f.held < tail);
        let slowest = behind.min_by_key(|f| (f.trusted, f.held));
        slowest.is_some_and(gone) && self.demote_slowest()
    }

    /// Gives up waiting for the member that holds least, so that its entries need not be kept; not if
    /// the others could not commit without it. Returns whether anybody was given up.
    pub fn demote_slowest(&mut self) -> bool {
        let counted = || self.followers.iter().enumerate().filter(|(_, f)| f.counted());
        let behind = counted().filter(|(_, f)| f.held < self.tail());
        // One that is suspected first: it may never come back, and the others would wait for it.
        let Some((index, slowest)) = behind.min_by_key(|(_, f)| (f.trusted, f.held)) else { return false };
        // Only for those who live and hold more, and only if more is committed: otherwise nothing would be gained.
        let ahead = counted().filter(|(_, f)| f.trusted && f.held > slowest.held);
        if slowest.held >= self.committed || !self.is_commit_set(ahead.map(|(_, f)| f.node)) {
            return false;
        }
        self.discount(index);
        self.demotions += 1;
        if self.master == index {
            self.choose_master();
        }
        true
    }

    /// Names the next eligible member after the current master, preferring those that hold most, and asks
    /// everybody to listen. Without an eligible member the master stays.
    pub(super) fn choose_master(&mut self) {
        let count = self.followers.len();
        let ring = (1..=count).map(|n| (self.master + n) % count);
        let eligible = ring.filter(|i| self.followers[*i].may_lead());
        let best = eligible.map(|i| (self.followers[i].held, i)).reduce(|a, b| if b.0 > a.0 { b } else { a });
        if let Some((_, index)) = best {
            self.name_master(index);
        }
    }

    /// Gives the mastership back to the member that should have it, once that one has caught up.
    /// Returns whether the master changed.
    pub fn restore_master(&mut self) -> bool {
        let index = self.home();
        let home = &self.followers[index];
        // It can be sent entries only once it has answered the seal; where there are none yet it soon will have.
        let ready = home.place.is_some() || self.log.next() == 1;
        if self.master == index || !home.may_lead() || !ready || home.held < self.committed {
            return false;
        }
        self.name_master(index);
        true
    }

    /// Whether the member that should be master could be, and is not.
    pub fn master_is_away(&self) -> bool {
        self.master != self.home() && self.followers[self.home()].may_lead()
    }

    /// Who should be master.
    pub(super) fn home(&self) -> usize {
        let wanted = self.config.home;
        self.followers.iter().position(|f| Some(f.node) == wanted).unwrap_or(0)
    }

    fn name_master(&mut self, index: usize) {
        if self.master == index {
            return;
        }
        self.master = index;
        self.master_seq += 1;
        self.rescued = None;
        if self.answered < self.tail() {
            self.followers.iter_mut().for_each(|f| f.tell = true);
        }
    }
}
