//! Time in a shard: when each slot wants to be looked at, and what is done when it is.
//!
//! What may be late soon (probes, hedges, ticks) waits in a heap, one live item a slot; what is to be told after quiet
//! waits in a queue: almost all of it waits equally long, and so belongs at its end.

use super::shard::Shard;
use crate::app::CallApp;
use crate::proto::clock::LogicalClock;
use crate::proto::owner::Owner;
use crate::types::{Nanos, Now};
use crate::wire::record::EntryKind;
use std::cmp::Reverse;

impl<A: CallApp> Shard<A> {
    /// The slot's logical time.
    pub(super) fn time_of(&mut self, now: Now, index: usize) -> Nanos {
        self.clock.get_or_insert_with(|| LogicalClock::new(now)).read(now) + self.slots[index].ahead
    }

    /// When the slot wants [`Shard::on_timeout`].
    fn due(&self, index: usize) -> Nanos {
        let Some(owner) = &self.slots[index].owner else { return Nanos::MAX };
        let tick = owner.tick_due();
        let tick = match &self.clock {
            Some(clock) if tick < Nanos::MAX => clock.when(tick.since(self.slots[index].ahead)),
            _ => Nanos::MAX,
        };
        owner.next_timeout(&self.rtts, self.answers.timeout()).min(tick)
    }

    pub(super) fn arm(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let tell_at = slot.owner.as_ref().map_or(Nanos::MAX, Owner::tell_at);
        if tell_at < Nanos::MAX && !slot.telling {
            slot.telling = true;
            let at = self.tells.partition_point(|(at, _)| *at <= tell_at);
            self.tells.insert(at, (tell_at, index as u16));
        }
        let due = self.due(index);
        if due < self.slots[index].scheduled {
            self.slots[index].scheduled = due;
            self.timers.push(Reverse((due, index as u16)));
            if self.timers.len() > 4 * self.slots.len() + 64 {
                let live = self.slots.iter().enumerate().filter(|(_, s)| s.scheduled < Nanos::MAX);
                self.timers = live.map(|(i, s)| Reverse((s.scheduled, i as u16))).collect();
            }
        }
    }

    /// When the next slot wants [`Shard::on_timeout`].
    pub(super) fn next_timer(&mut self) -> Nanos {
        let tell = self.tells.front().map_or(Nanos::MAX, |(at, _)| *at);
        self.next_in_heap().min(tell)
    }

    /// The earliest time in the heap that still means something.
    fn next_in_heap(&mut self) -> Nanos {
        while let Some(Reverse((at, index))) = self.timers.peek().copied() {
            let index = usize::from(index);
            if self.slots[index].scheduled == at {
                let due = self.due(index);
                if due <= at {
                    return at;
                }
                self.slots[index].scheduled = Nanos::MAX;
                self.timers.pop();
                self.arm(index);
            } else {
                self.timers.pop();
            }
        }
        Nanos::MAX
    }

    /// Does what is due.
    pub fn on_timeout(&mut self, now: Now) {
        if self.restore_at <= now.mono {
            self.restore_masters(now);
        }
        self.open_some(now);
        if self.seal_at <= now.mono {
            self.seal(now);
        }
        if self.resync.due() <= now.mono {
            self.resync(now);
        }
        if self.delivering.due() <= now.mono {
            self.deliver_again(now);
        }
        while let Some(Reverse((at, index))) = self.timers.peek().copied() {
            if at > now.mono {
                break;
            }
            self.timers.pop();
            let index = usize::from(index);
            if self.slots[index].scheduled == at {
                self.slots[index].scheduled = Nanos::MAX;
                self.slot_timeout(now, index);
            }
        }
        while let Some((at, index)) = self.tells.front().copied() {
            if at > now.mono {
                break;
            }
            self.tells.pop_front();
            self.slots[usize::from(index)].telling = false;
            self.slot_timeout(now, usize::from(index));
        }
    }

    fn slot_timeout(&mut self, now: Now, index: usize) {
        let logical = self.time_of(now, index);
        let hedge_after = self.answers.timeout();
        self.changing(index, |owner, rtts, counts| {
            let (hedges, probes) = owner.on_timeout(now.mono, rtts, hedge_after);
            counts.hedges += u64::from(hedges);
            counts.probes += u64::from(probes);
        });
        let ticks = self.slots[index].owner.as_ref().is_some_and(|o| o.tick_due() <= logical);
        if ticks && self.append(now, index, EntryKind::Tick).is_ok() {
            self.counts.ticks += 1;
        }
        self.enqueue(index);
        self.arm(index);
        if self.slots[index].scheduled <= now.mono {
            // A tick that the window refused stays due: look again soon instead of at once.
            let later = now.mono + Nanos::from_millis(1);
            self.slots[index].scheduled = later;
            self.timers.push(Reverse((later, index as u16)));
        }
    }
}
