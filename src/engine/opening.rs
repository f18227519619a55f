//! Opening the slots whose log a new owner has found. Each costs an entry, which all its members have to take; a thousand
//! at once would hold up those that clients wait for. So these are opened at once, and the others a few a turn.

use super::shard::{MASTER_BACK_AFTER, Shard};
use super::takeover::{NO_LANE, TELL_AFTER};
use crate::app::CallApp;
use crate::proto::clock::LogicalClock;
use crate::proto::owner::{Owner, OwnerConfig};
use crate::types::{Now, Position};
use crate::wire::record::EntryKind;
use std::sync::Arc;

/// Slots for which nobody waits that are opened in one turn, if nobody says otherwise.
pub const OPENS_A_TURN: usize = 16;

impl<A: CallApp> Shard<A> {
    /// The slot's log is known. It is opened now if packets wait for it, or replies may.
    pub(super) fn make_ready(&mut self, now: Now, index: usize) {
        let state = &mut self.slots[index];
        state.ready = true;
        let pressing = state.recovery.as_ref().is_some_and(|r| r.owes());
        if pressing || !state.waiting.is_empty() {
            self.open(now, index);
        } else {
            self.ready.push_back(index as u16);
        }
    }

    /// Opens the slot if its log is known, because something has come for it.
    pub(super) fn open_if_ready(&mut self, now: Now, index: usize) -> bool {
        let members = &self.map.group(self.slot_at(index)).members;
        let opens = self.slots[index].ready && !members.is_empty();
        if opens {
            self.open(now, index);
        }
        opens
    }

    /// Opens some of the slots that wait for nothing else.
    pub(super) fn open_some(&mut self, now: Now) {
        let mut opened = 0;
        while opened < self.config.opens_a_turn
            && let Some(index) = self.ready.pop_front().map(usize::from)
        {
            // One that was opened meanwhile; or whose members are all gone: it is looked at again with the next map.
            if self.open_if_ready(now, index) {
                opened += 1;
            } else {
                self.slots[index].ready = false;
            }
        }
    }

    /// The slot's log is known: it has an owner now.
    fn open(&mut self, now: Now, index: usize) {
        let Some(mut recovery) = self.slots[index].recovery.take() else { return };
        self.slots[index].ready = false;
        self.recovering -= 1;
        self.counts.recoveries += 1;
        let (slot, term) = (recovery.slot(), recovery.term());
        let survived = recovery.survived();
        let heard = self.heard_time;
        let clock = self.clock.get_or_insert_with(|| match heard {
            Some(heard) => LogicalClock::resume(heard.wall, heard),
            None => LogicalClock::new(now),
        });
        self.slots[index].ahead = clock.advance(survived.last_time, now);
        let rules = OwnerConfig {
            commit: self.map.commit.into(),
            window: self.config.window,
            tell_after: TELL_AFTER,
            address: self.map.address_of(slot) as u16,
            home: self.config.masters_own.then_some(self.config.me),
            safeguards: self.config.safeguards,
        };
        let map = Arc::clone(&self.map);
        let owner = {
            let lane = |node| self.lane(node).unwrap_or(NO_LANE);
            Owner::new(slot, term, rules, survived, map.group(slot), lane)
        };
        let (tail, kept) = (owner.tail(), owner.retained().0);
        self.retained += kept;
        self.slots[index].owner = Some(owner);
        self.trust_all(index);
        self.changing(index, |owner, _, counts| {
            for (node, boot, sealed) in recovery.answers() {
                counts.drop_incarnation += u64::from(owner.on_sealed(node, boot, sealed).is_err());
            }
            owner.restore_master();
        });
        self.restore_at = self.restore_at.min(now.mono + MASTER_BACK_AFTER);
        // An entry of its own term: what was recovered is committed with it (Raft, section 5.4.2).
        if tail == Position(0) {
            self.found(now, index);
        } else if self.append(now, index, EntryKind::Tick).is_ok() {
            self.counts.ticks += 1;
            self.moved.extend(self.config.takeover.as_ref().map(|_| index as u16));
        }
        self.enqueue(index);
        self.arm(index);
        self.take_waiting(now, index);
        self.standing.look_again();
    }
}
