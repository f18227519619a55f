//! What a handler sees of its slot, and the stage on which its wishes wait until it has returned.

use std::ops::Range;

use super::{MAX_OUTPUT, MAX_OUTPUTS_PER_ENTRY, OutputSink, Place};
use crate::app::{Context, TimerId};
use crate::types::{CallKey, Endpoint, LocalId, Nanos, Slot};

/// A stage that grew past this for one entry gives its memory back.
const KEEP_BYTES: usize = 16 * 1024;

/// An output that waits for its handler to return; its bytes lie in [`Stage::bytes`].
struct Staged {
    stamped: bool,
    local: LocalId,
    to: Endpoint,
    range: Range<usize>,
}

/// What the running handler has asked for. One a table, used again and again: no allocation per packet.
pub(super) struct Stage<C> {
    bytes: Vec<u8>,
    outputs: Vec<Staged>,
    /// Timers to set, or to clear where there is no time.
    pub(super) timers: Vec<(TimerId, Option<Nanos>)>,
    pub(super) changes: Vec<C>,
    pub(super) ended: bool,
    dropped: u64,
    /// Outputs of the handlers of this entry that have returned.
    delivered: u32,
    /// Random numbers drawn in this entry.
    draws: u64,
}

impl<C> Default for Stage<C> {
    fn default() -> Stage<C> {
        Stage {
            bytes: Vec::new(),
            outputs: Vec::new(),
            timers: Vec::new(),
            changes: Vec::new(),
            ended: false,
            dropped: 0,
            delivered: 0,
            draws: 0,
        }
    }
}

impl<C> Stage<C> {
    /// Before the first handler of an entry.
    pub(super) fn begin_entry(&mut self) {
        self.delivered = 0;
        self.draws = 0;
    }

    /// Hands the outputs over; returns how many.
    pub(super) fn deliver(&mut self, out: &mut impl OutputSink) -> u64 {
        let count = self.outputs.len();
        for staged in self.outputs.drain(..) {
            out.output(staged.stamped, staged.local, staged.to, &self.bytes[staged.range]);
        }
        self.delivered += count as u32;
        count as u64
    }

    /// The outputs that were dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Forgets everything staged.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_BYTES {
            self.bytes.shrink_to(KEEP_BYTES);
        }
        self.outputs.clear();
        self.timers.clear();
        self.changes.clear();
        self.ended = false;
        self.dropped = 0;
    }

    fn push(&mut self, stamped: bool, local: LocalId, to: Endpoint, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let full = self.delivered as usize + self.outputs.len() >= MAX_OUTPUTS_PER_ENTRY as usize;
        if full || length > MAX_OUTPUT {
            self.dropped += 1;
            return;
        }
        let start = self.bytes.len();
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        // Nothing to stamp in fewer than two bytes.
        let stamped = stamped && length >= 2;
        self.outputs.push(Staged { stamped, local, to, range: start..self.bytes.len() });
    }
}

/// The [`Context`] of one run of a handler.
pub(super) struct Handling<'a, S, C> {
    pub(super) stage: &'a mut Stage<C>,
    pub(super) shared: &'a S,
    pub(super) key: CallKey,
    pub(super) place: Place,
    pub(super) slot: Slot,
}

impl<S, C> Context for Handling<'_, S, C> {
    type Shared = S;
    type Change = C;

    fn now(&self) -> Nanos {
        self.place.time
    }

    fn key(&self) -> CallKey {
        self.key
    }

    fn place(&self) -> (u64, u16) {
        (self.place.position.0, self.slot.0)
    }

    fn random(&mut self) -> u64 {
        let draw = self.stage.draws;
        self.stage.draws += 1;
        random(self.key, self.place.position.0, draw)
    }

    fn shared(&self) -> &S {
        self.shared
    }

    fn change(&mut self, change: C) {
        self.stage.changes.push(change);
    }

    fn send(&mut self, local: LocalId, to: Endpoint, parts: &[&[u8]]) {
        self.stage.push(false, local, to, parts);
    }

    fn send_stamped(&mut self, local: LocalId, to: Endpoint, parts: &[&[u8]]) {
        self.stage.push(true, local, to, parts);
    }

    fn set_timer(&mut self, id: TimerId, at: Nanos) {
        self.stage.timers.push((id, (at < Nanos::MAX).then_some(at)));
    }

    fn clear_timer(&mut self, id: TimerId) {
        self.stage.timers.push((id, None));
    }

    fn end(&mut self) {
        self.stage.ended = true;
    }
}

/// The `draw`-th number of the call `key` in the entry at `position`. A position is never used twice in a slot,
/// so a call needs no counter of its own, and a call id that comes back later does not repeat its numbers.
fn random(key: CallKey, position: u64, draw: u64) -> u64 {
    let mut mixed = splitmix(key.0 as u64);
    mixed = splitmix(mixed ^ (key.0 >> 64) as u64);
    mixed = splitmix(mixed ^ position);
    splitmix(mixed ^ draw)
}

/// One step of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
