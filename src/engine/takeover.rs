//! Following the cluster map: who is a member of what, and taking over the slots of a service address.
//!
//! A new owner seals the members of every version of a slot's member set that is not confirmed out of use, goes on
//! with the log that survives ([`Recovery`]), and may open each slot (`super::opening`) as soon as its own seal is complete.
//! Packets that arrive meanwhile wait, up to a bound.

use super::machine::SlotMachine;
use super::shard::{MASTER_BACK_AFTER, Seat, Shard};
use crate::app::CallApp;
use crate::app::table::CallTable;
use crate::proto::map::{ClusterMap, MapMember, NodeState};
use crate::proto::member::Member;
use crate::proto::owner::follower::FrameSink;
use crate::proto::owner::recovery::{Recovery, Verdict};
use crate::types::{Nanos, NodeId, Now, Position, Slot, Term};
use crate::wire::frame::{self, ALL_SLOTS, Frame};
use std::sync::Arc;
use zerocopy::FromZeros;

/// After how much quiet members are told what has been released and is stable.
pub(super) const TELL_AFTER: Nanos = Nanos::from_millis(250);
/// How soon members that have not answered a seal are asked again: doubled each time, up to...
const SEAL_AGAIN_AFTER: Nanos = Nanos::from_millis(3);
/// ...so many times.
const MOST_DOUBLINGS: u32 = 5;
/// A node that has not answered for more slots than this is asked for all of an address.
const ONE_BY_ONE: usize = 64;
/// Bytes of entries in one answer to a fetch.
const FETCH_ROOM: usize = 32 * 1024;

/// The lane of a node that this one does not know yet: never trusted, so that nothing is ever written to it.
pub(super) const NO_LANE: usize = usize::MAX;

impl<A: CallApp> Shard<A> {
    /// A newer map has been agreed on.
    pub fn on_map(&mut self, now: Now, map: Arc<ClusterMap>) {
        if map.version <= self.map.version || map.slots != self.map.slots {
            return;
        }
        let old = std::mem::replace(&mut self.map, map);
        for address in 0..old.addresses.len().min(self.map.addresses.len()) {
            if old.addresses[address].term != self.map.addresses[address].term {
                self.lose_address(address as u16);
            }
        }
        // A map differs from the one before in a few groups; only lives and addresses concern them all.
        let all = old.nodes != self.map.nodes || old.addresses != self.map.addresses || old.version == 0;
        let pairs = old.groups.iter().zip(&self.map.groups);
        let same: Vec<bool> = pairs.map(|(before, now)| before == now && !all).collect();
        let is_same = |index: usize| same[self.map.group_of(self.slot_at(index))];
        let changed: Vec<usize> = (0..self.slots.len()).filter(|index| !is_same(*index)).collect();
        for index in &changed {
            self.take_seat(*index);
            self.take_over(now, *index);
        }
        self.deliver_again(now);
        self.resync.on_map();
        self.standing.look_again();
        self.seal_round = 0;
        self.seal(now);
        for index in changed {
            self.progress(now, index);
        }
        self.take_early(now);
        self.next = now.mono;
    }

    /// Makes this node the member or learner that the map says it is.
    fn take_seat(&mut self, index: usize) {
        let slot = self.slot_at(index);
        let group = self.map.group(slot);
        let (me, boot) = (self.config.me, self.config.boot);
        let mine = group.member(me).or(group.learner(me)).filter(|m| m.boot == boot);
        let state = &mut self.slots[index];
        match (&state.seat, mine) {
            (Some(seat), Some(mine)) if seat.log.join() == mine.join => {}
            (_, Some(mine)) => {
                let config = &self.config;
                state.seat = Some(Seat {
                    log: Member::new(slot, me, mine.join, config.digest_every, config.safeguards),
                    table: CallTable::new(slot, config.limits),
                    ack_due: false,
                    nak_due: None,
                    queued: None,
                });
            }
            // What a removed member holds may be needed until the slot has all its members again.
            (Some(_), None) => {
                let live = |n: &&crate::proto::map::MapNode| n.state == NodeState::Live && !n.witness;
                let wanted = usize::from(self.map.replicas).min(self.map.nodes.iter().filter(live).count());
                if group.past.is_empty() && group.members.len() >= wanted {
                    state.seat = None;
                }
            }
            (None, None) => {}
        }
    }

    /// Takes the slot over, follows its new members, or lets it go.
    fn take_over(&mut self, now: Now, index: usize) {
        let map = Arc::clone(&self.map);
        let slot = self.slot_at(index);
        let address = map.owner(slot);
        if (address.owner, address.boot) != (self.config.me, self.config.boot) {
            self.let_go(index);
            return;
        }
        let state = &self.slots[index];
        if state.owner.as_ref().is_some_and(|owner| owner.term() == address.term) {
            if map.group(slot).members.is_empty() {
                return;
            }
            let nodes: Vec<NodeId> = self.lanes.iter().map(|l| l.node).collect();
            let lane = |node| nodes.iter().position(|n| *n == node).unwrap_or(NO_LANE);
            self.changing(index, |owner, _, _| owner.on_group(map.group(slot), lane));
            self.restore_at = self.restore_at.min(now.mono + MASTER_BACK_AFTER);
            self.trust_all(index);
            self.enqueue(index);
            self.arm(index);
            return;
        }
        if state.recovery.as_ref().is_some_and(|recovery| recovery.term() == address.term) {
            return;
        }
        let waiting = std::mem::take(&mut self.slots[index].waiting);
        self.let_go(index);
        self.slots[index].waiting = waiting;
        let recovery = Recovery::new(now.mono, slot, address.term, self.config.safeguards);
        self.slots[index].recovery = Some(Box::new(recovery));
        self.recovering += 1;
    }

    /// This node does not own the slot any more: others go on from what members hold.
    fn let_go(&mut self, index: usize) {
        if let Some(owner) = self.slots[index].owner.take() {
            self.retained = self.retained.saturating_sub(owner.retained().0);
        }
        self.slots[index].ready = false;
        if self.slots[index].recovery.take().is_some() {
            self.recovering -= 1;
        }
        self.delivering.forget(index);
        self.pass_on(index);
    }

    /// Tells the slot's owner whom this node trusts.
    pub(super) fn trust_all(&mut self, index: usize) {
        for lane in 0..self.lanes.len() {
            let (node, trusted) = (self.lanes[lane].node, self.lanes[lane].trusted());
            let boot = self.lanes[lane].boot.filter(|_| trusted);
            self.changing(index, |owner, _, _| owner.on_trust(node, boot));
        }
    }

    /// Whether a slot is owned here and members' answers to its seal still decide what its log is.
    pub fn awaits_answers(&self, slot: Slot) -> bool {
        let recovery = self.index(slot.0).and_then(|index| self.slots[index].recovery.as_ref());
        recovery.is_some_and(|recovery| !recovery.is_settled())
    }

    /// Asks for what is missing to recover the slots that are owned here and not yet open, and goes on without those who
    /// need not be waited for any longer.
    pub(super) fn seal(&mut self, now: Now) {
        self.seal_at = Nanos::MAX;
        if self.recovering == 0 {
            return;
        }
        self.seal_at = now.mono + Nanos(SEAL_AGAIN_AFTER.0 << self.seal_round.min(MOST_DOUBLINGS));
        self.seal_round += 1;
        let map = Arc::clone(&self.map);
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].boot.is_none() {
                continue;
            }
            let node = self.lanes[lane].node;
            for (number, address) in (0_u16..).zip(&map.addresses) {
                let lacks = |slot: Slot, recovery: &Recovery| {
                    map.address_of(slot) == usize::from(number)
                        && recovery.fetch().is_none()
                        && recovery.lacks(map.group(slot), node)
                };
                let recoveries = self.slots.iter().filter_map(|s| s.recovery.as_deref());
                let slots: Vec<Slot> = recoveries.filter(|r| lacks(r.slot(), r)).map(|r| r.slot()).collect();
                let (address, term) = (number.into(), address.term.0.into());
                let packer = &mut self.lanes[lane].packer;
                if slots.len() > ONE_BY_ONE {
                    packer.frame(&Frame::Seal(&frame::Seal { address, slot: ALL_SLOTS.into(), term }));
                } else {
                    for slot in slots {
                        packer.frame(&Frame::Seal(&frame::Seal { address, slot: slot.0.into(), term }));
                    }
                }
            }
        }
        for index in 0..self.slots.len() {
            let from = self.slots[index].recovery.as_ref().and_then(|r| r.source());
            let Some((node, boot)) = from else {
                self.progress(now, index);
                continue;
            };
            let lane = self.lane(node).unwrap_or(self.local);
            // A later life of it holds nothing.
            let other = self.lanes[lane].boot != Some(boot);
            let gone = lane != self.local && (other || !self.lanes[lane].trusted());
            if let Some(recovery) = self.slots[index].recovery.as_mut().filter(|_| gone) {
                recovery.give_up_on(node);
                self.progress(now, index);
            } else {
                self.fetch(index);
            }
        }
    }

    /// A new owner asks this node's members to follow it.
    pub(super) fn on_seal(&mut self, lane: usize, seal: &frame::Seal) {
        let all = seal.slot.get() == ALL_SLOTS;
        let addresses = self.map.addresses.len();
        let range = match self.index(seal.slot.get()) {
            _ if all => 0..self.slots.len(),
            Some(index) => index..index + 1,
            None => 0..0,
        };
        for index in range {
            let slot = self.slot_at(index);
            if usize::from(slot.0) % addresses != usize::from(seal.address.get()) {
                continue;
            }
            if let Some(seat) = &mut self.slots[index].seat {
                let deadline = seat.table.next_deadline().unwrap_or(Nanos::MAX);
                let Ok(sealed) = seat.log.on_seal(Term(seal.term.get()), deadline) else {
                    self.counts.drop_term += 1;
                    continue;
                };
                self.lanes[lane].packer.frame(&Frame::Sealed(&sealed));
            }
            self.tell_of_missed_seats(lane, index, seal.term.get());
        }
    }

    /// What this node was by maps that it never saw it never will be, and what it has left it is no more: nobody must wait
    /// for what it has to tell as that member.
    fn tell_of_missed_seats(&mut self, lane: usize, index: usize, term: u32) {
        let (me, boot, slot) = (self.config.me, self.config.boot, self.slot_at(index));
        let seat = self.slots[index].seat.as_ref().map(|seat| seat.log.join());
        let mut past = self.map.group(slot).past.iter().flatten();
        if past.any(|m| (m.node, m.boot) == (me, boot) && seat.is_none_or(|seat| m.join > seat)) {
            // Later than as any of those.
            let join = self.map.version.into();
            let (slot, term, last_term) = (slot.0.into(), term.into(), frame::LOST.into());
            let sealed = frame::Sealed { slot, term, join, last_term, ..frame::Sealed::new_zeroed() };
            self.lanes[lane].packer.frame(&Frame::Sealed(&sealed));
        }
    }

    /// A member has answered.
    pub(super) fn on_sealed(&mut self, now: Now, lane: usize, sealed: &frame::Sealed) {
        let Some(index) = self.index(sealed.slot.get()) else {
            self.counts.drop_no_slot += 1;
            return;
        };
        let (node, boot) = (self.lanes[lane].node, self.lanes[lane].boot.unwrap_or_default());
        if let Some(recovery) = &mut self.slots[index].recovery {
            let group = self.map.group(Slot(sealed.slot.get()));
            if recovery.on_sealed(node, boot, sealed) {
                if recovery.reconsider(group) {
                    self.slots[index].ready = false;
                }
                self.progress(now, index);
            } else {
                self.counts.drop_term += 1;
            }
        } else {
            self.tell_owner(lane, sealed.slot.get(), |owner, node, boot| owner.on_sealed(node, boot, sealed));
        }
    }

    /// Goes on with a recovery as far as the answers allow.
    fn progress(&mut self, now: Now, index: usize) {
        let map = Arc::clone(&self.map);
        let state = &mut self.slots[index];
        let Some(recovery) = state.recovery.as_mut().filter(|_| !state.ready) else { return };
        let group = map.group(recovery.slot());
        if group.members.is_empty() {
            return;
        }
        let mut lossy = false;
        if !recovery.is_settled() {
            let live = |m: &MapMember| map.is_live(m.node, m.boot);
            let commit = map.commit.into();
            match recovery.verdict(group, commit, live) {
                Verdict::Wait => return,
                Verdict::Lossy if !self.config.lossy_go => return,
                Verdict::Lossy => lossy = true,
                Verdict::Complete => {
                    let lanes = &self.lanes;
                    let there = |m: &MapMember| {
                        lanes.iter().any(|l| l.node == m.node && l.boot == Some(m.boot) && l.trusted())
                    };
                    let young = now.mono < recovery.began() + SEAL_AGAIN_AFTER;
                    if young && recovery.awaits(group, there) || !recovery.could_commit(group, commit) {
                        return;
                    }
                }
            }
            recovery.settle(group, lossy);
        }
        if lossy {
            self.counts.lossy_recoveries += 1;
        }
        if !self.fetch(index) {
            self.make_ready(now, index);
        }
    }

    /// Asks for entries of the log that survives; false if there are none to ask for.
    fn fetch(&mut self, index: usize) -> bool {
        let Some(recovery) = &self.slots[index].recovery else { return false };
        let Some((node, from)) = recovery.fetch() else { return false };
        let (slot, term) = (recovery.slot().0.into(), recovery.term().0.into());
        if let Some(lane) = self.lane(node) {
            self.lanes[lane].packer.frame(&Frame::Fetch(&frame::Fetch { slot, term, from: from.0.into() }));
        }
        true
    }

    /// A new owner wants entries.
    pub(super) fn on_fetch(&mut self, lane: usize, fetch: &frame::Fetch) {
        let seat = self.index(fetch.slot.get()).and_then(|i| self.slots[i].seat.as_ref());
        let from = Position(fetch.from.get());
        let run = seat.and_then(|seat| seat.log.fetched(Term(fetch.term.get()), from, FETCH_ROOM));
        let Some((first, count, entries)) = run else {
            self.counts.drop_ahead += 1;
            return;
        };
        let (slot, term) = (fetch.slot, fetch.term);
        let head = frame::Fetched { slot, count: count.into(), term, first: first.0.into() };
        self.lanes[lane].packer.frame(&Frame::Fetched(&head, entries));
    }

    /// Entries have come.
    pub(super) fn on_fetched(&mut self, now: Now, lane: usize, fetched: &frame::Fetched, entries: &[u8]) {
        let node = self.lanes[lane].node;
        let index = self.index(fetched.slot.get());
        let recovery = index.and_then(|i| self.slots[i].recovery.as_mut());
        let taken = recovery.is_some_and(|recovery| recovery.on_fetched(node, fetched, entries));
        match index.filter(|_| taken) {
            Some(index) => self.progress(now, index),
            None => self.counts.drop_ahead += 1,
        }
    }

    /// The machine of a seat.
    pub(super) fn machine<'a>(
        app: &'a A,
        table: &'a mut CallTable<A>,
        limits: crate::app::table::TableLimits,
    ) -> SlotMachine<'a, A> {
        SlotMachine { app, table, limits }
    }
}
