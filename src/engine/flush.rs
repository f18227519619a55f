//! The end of a turn: members reply, owners fan out, committed outputs leave.

use super::Outbox;
use super::lane::{Lane, Packer};
use super::shard::Shard;
use super::stats::ShardStats;
use crate::app::CallApp;
use crate::proto::owner::follower::{FrameSink, Queued};
use crate::types::{Nanos, NodeId, NodeSet, Now, Ordinal, Position, Slot};
use crate::wire::frame::{FRAME_HEADER_LEN, Frame, Outputs, Told};

/// A bundle is not begun anew for further slots once it has grown past this.
const MOST_BUNDLE_BYTES: usize = 256 * 1024;

/// In one bundle no more slots are written of that nobody waits for: after a change of the map there are a thousand, and
/// clients' packets would wait for all of them.
const MOST_BEHIND: usize = 64;

/// What is delivered within the node takes at most this many passes of owner and member a turn; what is left
/// after them waits for the next one.
const LOCAL_PASSES: usize = 4;

/// How long what is on the wire may wait for a bundle to be told with.
const TOLD_AFTER: Nanos = Nanos::from_millis(2);
/// Slots that may wait to be told of; of further ones the next header tells.
const MOST_TOLD: usize = 1_024;

/// A slot's place in the log at one member, for comparing members that are at rest.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SlotDigest {
    /// The slot.
    pub slot: Slot,
    /// The last position executed.
    pub executed: Position,
    /// The rolling digest over entries and outputs up to it.
    pub digest: u64,
}

impl<A: CallApp> Shard<A> {
    /// Writes everything that is to be sent into `out`, then tells when it wants to be woken.
    pub fn flush(&mut self, now: Now, out: &mut impl Outbox) {
        self.look(now);
        self.tell_of_takeovers(now);
        for _ in 0..LOCAL_PASSES {
            if !self.flush_local(now) {
                break;
            }
        }
        for lane in self.remote_lanes() {
            self.write_replies(lane);
        }
        let mut open = NodeSet::EMPTY;
        for lane in self.remote_lanes() {
            if self.lanes[lane].open(now.mono, &self.rtts[lane]) {
                open.insert(self.lanes[lane].node);
            }
        }
        if self.config.multicast {
            self.write_groups(now);
            self.groups.iter_mut().for_each(|(set, packer)| packer.drain(|d| out.multicast(*set, d)));
        }
        self.release(now, out);
        for lane in self.remote_lanes() {
            let lane_is_open = open.contains(self.lanes[lane].node);
            if self.lanes[lane].is_dirty() && lane_is_open && self.write_bundle(now, lane) {
                self.write_told(lane);
                self.bundle = self.bundle.wrapping_add(1);
                self.lanes[lane].packer.frame(&Frame::Bundle(self.bundle));
                self.lanes[lane].end_bundle(now.mono, self.bundle);
            } else if self.lanes[lane].told_at <= now.mono {
                self.write_told(lane);
            }
            self.lanes[lane].send(out);
        }
        self.next = self.wake_at(now);
    }

    /// The lanes to other nodes.
    fn remote_lanes(&self) -> impl Iterator<Item = usize> + use<A> {
        let local = self.local;
        (0..self.lanes.len()).filter(move |lane| *lane != local)
    }

    fn wake_at(&mut self, now: Now) -> Nanos {
        let patience = self.config.lazy_after;
        self.lanes.iter_mut().for_each(|lane| lane.be_patient(now.mono, patience));
        let held_back = |lane: usize| self.lanes[lane].is_dirty() && self.lanes[lane].trusted();
        let lanes = (0..self.lanes.len()).filter(|l| held_back(*l));
        let lanes = lanes.map(|l| self.lanes[l].opens_at(&self.rtts[l]).max(now.mono)).min();
        let told = self.lanes.iter().map(|l| l.told_at).min().unwrap_or(Nanos::MAX);
        let soon = self.next_timer().min(lanes.unwrap_or(Nanos::MAX)).min(self.restore_due()).min(told);
        let local = &self.lanes[self.local];
        let rest = local.is_dirty() || !local.replies.is_empty() || !local.packer.is_empty();
        if rest || !self.ready.is_empty() { now.mono } else { soon.min(self.chores_due()) }
    }

    /// When slots are to be looked at, sealed, pulled or delivered again.
    pub(super) fn chores_due(&self) -> Nanos {
        self.standing.due().min(self.seal_at).min(self.resync.due()).min(self.delivering.due())
    }

    /// So many outputs of the slot are on the wire now: its other members hear it in passing, so that whoever takes
    /// over repeats as little as can be.
    pub(super) fn tell_released(&mut self, now: Now, index: usize) {
        let Some(owner) = &self.slots[index].owner else { return };
        for follower in owner.followers().iter().filter(|f| f.lane != self.local && f.eligible()) {
            let lane = &mut self.lanes[follower.lane];
            if lane.told.len() < MOST_TOLD && lane.told.back() != Some(&(index as u16)) {
                lane.told.push_back(index as u16);
                lane.told_at = lane.told_at.min(now.mono + TOLD_AFTER);
            }
        }
        self.next = self.next.min(now.mono + TOLD_AFTER);
    }

    fn write_told(&mut self, lane: usize) {
        let Shard { lanes, slots, .. } = self;
        let lane = &mut lanes[lane];
        lane.told_at = Nanos::MAX;
        for index in lane.told.drain(..) {
            let Some(owner) = &slots[usize::from(index)].owner else { continue };
            let told = Told {
                slot: owner.slot().0.into(),
                term: owner.term().0.into(),
                released: owner.released().0.into(),
            };
            lane.packer.frame(&Frame::Told(&told));
        }
    }

    /// Owner to member and back within this node, by the same frames as over the wire.
    fn flush_local(&mut self, now: Now) -> bool {
        let lane = self.local;
        let Lane { replies, packer, .. } = &self.lanes[lane];
        if !self.lanes[lane].is_dirty() && replies.is_empty() && packer.is_empty() {
            return false;
        }
        for pass in 0..2 {
            if pass == 0 {
                self.write_fan_out(now, lane);
            } else {
                self.write_replies(lane);
            }
            // What the frames give rise to is written into the other one.
            let spare = std::mem::replace(&mut self.spare, Packer::new(0));
            let mut packer = std::mem::replace(&mut self.lanes[lane].packer, spare);
            packer.drain(|frames| self.on_frames(now, lane, frames));
            self.spare = packer;
        }
        true
    }

    /// Puts the slot into the queue of every lane whose member is to get something. Entries press only where they
    /// cannot commit or be answered without that member: the others are sent them with more.
    pub(super) fn enqueue(&mut self, index: usize) {
        let Some(owner) = &mut self.slots[index].owner else { return };
        let tail = owner.tail();
        let all_press = self.config.multicast || self.config.lazy_after == Nanos::ZERO || owner.is_filling();
        let mut needed = None;
        for n in 0..owner.followers().len() {
            let follower = &owner.followers()[n];
            if !follower.wants(tail) {
                continue;
            }
            let lane = &mut self.lanes[follower.lane];
            lane.pressing = lane.pressing
                || all_press
                || follower.presses()
                || follower.wants_entries(tail)
                    && needed.get_or_insert_with(|| owner.needed(self.local)).contains(follower.node);
            let queued = if follower.comes_first(tail) { Queued::First } else { Queued::Behind };
            match (follower.queued, queued) {
                (Queued::Not, Queued::Behind) => lane.behind.push_back(index as u16),
                (Queued::Not | Queued::Behind, Queued::First) => lane.first.push_back(index as u16),
                _ => continue,
            }
            owner.followers_mut()[n].queued = queued;
        }
    }

    /// As [`Shard::write_fan_out`]; what is left over waits for the echo, and no longer.
    fn write_bundle(&mut self, now: Now, lane: usize) -> bool {
        self.lanes[lane].pressing = false;
        self.lanes[lane].lazy_at = Nanos::MAX;
        let wrote = self.write_fan_out(now, lane);
        self.lanes[lane].pressing |= self.lanes[lane].is_dirty();
        wrote
    }

    /// Writes what the members on `lane` are to get; whether that was anything.
    fn write_fan_out(&mut self, now: Now, lane: usize) -> bool {
        let mut packer = std::mem::replace(&mut self.lanes[lane].packer, Packer::new(0));
        let mut wrote = false;
        // What a backlog leaves over waits for the echo of this bundle. Pieces of snapshots do not count.
        let most = packer.len() + MOST_BUNDLE_BYTES;
        let mut behind = 0..MOST_BEHIND;
        while packer.len() < most
            && let Some(index) = self.lanes[lane].next_slot(&mut behind)
        {
            let slot = usize::from(index);
            let said = self.changing(slot, |owner, _, _| owner.write_for(lane, now.mono, &mut packer));
            wrote |= said == Some(true);
            self.enqueue(slot);
            self.arm(slot);
        }
        self.lanes[lane].packer = packer;
        wrote
    }

    /// Writes entries that several members are to get alike once for all of them, where every one of their
    /// lanes is open. Whatever differs between members goes by their own lanes.
    fn write_groups(&mut self, now: Now) {
        let open = |lane: &usize| self.lanes[*lane].open(now.mono, &self.rtts[*lane]);
        let closed = (0..self.lanes.len()).filter(|l| !open(l)).map(|l| self.lanes[l].node);
        let mut shut = NodeSet::EMPTY;
        closed.for_each(|node| shut.insert(node));
        let mut written = NodeSet::EMPTY;
        for lane in self.remote_lanes() {
            for n in 0..self.lanes[lane].first.len() {
                let slot = usize::from(self.lanes[lane].first[n]);
                let Some(owner) = &mut self.slots[slot].owner else { continue };
                let Some(set) = owner.in_step(self.local).filter(|set| set.0 & shut.0 == 0) else { continue };
                let known = self.groups.iter().position(|(group, _)| *group == set);
                let group = known.unwrap_or_else(|| {
                    self.groups.push((set, Packer::new(self.config.datagram_room)));
                    self.groups.len() - 1
                });
                owner.write_for_all(set, now.mono, &mut self.groups[group].1);
                written.0 |= set.0;
                self.arm(slot);
            }
        }
        if written != NodeSet::EMPTY {
            self.bundle = self.bundle.wrapping_add(1);
            let number = self.bundle;
            let used = self.groups.iter_mut().filter(|(_, packer)| !packer.is_empty());
            used.for_each(|(_, packer)| packer.frame(&Frame::Bundle(number)));
            for lane in self.lanes.iter_mut().filter(|l| written.contains(l.node)) {
                lane.end_bundle(now.mono, number);
            }
        }
    }

    /// Writes the outputs, acks and naks that members here owe the owner on `lane`, and the echo.
    fn write_replies(&mut self, lane: usize) {
        let mut packer = std::mem::replace(&mut self.lanes[lane].packer, Packer::new(0));
        while let Some(index) = self.lanes[lane].replies.pop_front() {
            let Some(seat) = &mut self.slots[usize::from(index)].seat else { continue };
            if seat.queued == Some(lane) {
                seat.queued = None;
            }
            // The owner may have changed since.
            if seat.log.owner().0 != self.lanes[lane].node {
                continue;
            }
            if let Some((from, to)) = seat.log.take_outputs() {
                write_outputs(&seat.log, from, to, &mut packer);
            }
            if let Some(from) = seat.nak_due.take() {
                self.counts.naks_sent += 1;
                packer.frame(&Frame::Nak(&seat.log.nak(from)));
            }
            if std::mem::take(&mut seat.ack_due) {
                let deadline = seat.table.next_deadline().unwrap_or(Nanos::MAX);
                packer.frame(&Frame::Ack(&seat.log.ack(deadline)));
            }
        }
        if let Some(number) = self.lanes[lane].echo.take() {
            packer.frame(&Frame::Echo(number));
        }
        self.lanes[lane].packer = packer;
    }

    /// What happened so far, and how things stand.
    pub fn stats(&self) -> ShardStats {
        let mut stats = self.counts.clone();
        stats.hedge_after_ns = self.answer_timeout().0;
        stats.slots_recovering = self.recovering.into();
        stats.slots_stopped = self.standing.report().stopped.into();
        let (learning, synced) = self.report().learning;
        stats.learning = (learning.into(), synced.into());
        let mut masters = vec![0u64; usize::from(NodeId::MAX) + 1];
        for slot in &self.slots {
            if let Some(owner) = &slot.owner {
                stats.slots_owned += 1;
                masters[usize::from(owner.master().0)] += 1;
                stats.slots_short += u64::from(owner.whole().0 < usize::from(self.map.replicas));
                stats.waiting += owner.tail().0 - owner.answered().0;
                add_retained(&mut stats, owner.retained(), true);
            }
            if let Some(seat) = &slot.seat {
                stats.slots_member += 1;
                stats.calls += seat.table.clients_calls() as u64;
                stats.calls_bytes += seat.table.reserved() as u64;
                let counters = seat.table.counters();
                stats.calls_refused += counters.refused;
                stats.calls_unresolved += counters.unresolved;
                stats.calls_panicked += counters.panicked;
                stats.outputs_dropped += counters.outputs_dropped;
                add_retained(&mut stats, seat.log.retained(), !seat.log.is_learning());
            }
        }
        let by_node = masters.iter().enumerate().filter(|(_, n)| **n > 0);
        stats.masters = by_node.map(|(node, n)| (node as u16, *n)).collect();
        stats
    }

    /// What the calls of a slot share, if this shard is a member of it.
    pub fn shared(&self, slot: Slot) -> Option<&A::Shared> {
        let seat = self.slots[self.index(slot.0)?].seat.as_ref()?;
        Some(seat.table.shared())
    }

    /// The place in the log of every slot this shard is a member of and that has entries.
    pub fn digests(&self) -> Vec<SlotDigest> {
        let seats = self.slots.iter().filter_map(|s| s.seat.as_ref()).map(|s| &s.log);
        let used = seats.filter(|log| log.executed() > Position(0));
        used.map(|log| SlotDigest { slot: log.slot(), executed: log.executed(), digest: log.digest() })
            .collect()
    }
}

fn add_retained(stats: &mut ShardStats, (bytes, records): (usize, usize), whole: bool) {
    stats.retained_bytes += bytes as u64;
    stats.retained_records += records as u64;
    stats.longest_log = stats.longest_log.max(if whole { records as u64 } else { 0 });
}

fn write_outputs(log: &crate::proto::member::Member, mut from: Ordinal, to: Ordinal, packer: &mut Packer) {
    const OVERHEAD: usize = FRAME_HEADER_LEN + size_of::<Outputs>();
    while from < to {
        let mut room = packer.room().saturating_sub(OVERHEAD);
        if log.output_run(from, to, room).0.len() > room {
            packer.next_datagram();
            room = packer.room().saturating_sub(OVERHEAD);
        }
        let (bytes, end) = log.output_run(from, to, room);
        packer.frame(&Frame::Outputs(&log.outputs_header(from), bytes));
        from = end;
    }
}
