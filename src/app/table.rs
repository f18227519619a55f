//! The calls of one slot: their state, timers and shared state, driven by the entries of the slot's log.
//!
//! Every member feeds the same entries to its own table and gets the same outputs, in the same order, and
//! the same snapshot bytes. So nothing here depends on the order in which a hash table happens to hold its
//! calls, and every limit (calls, outputs of an entry) refuses the same thing on every member.
//!
//! Two rules make a handler's failure harmless. What a handler asks for (outputs, timers, changes of the
//! shared state, the end of its call) is only staged while it runs and takes effect when it has returned;
//! and a handler that panics has its stage thrown away and its call ended, and nothing else happens. The
//! process's panic hook still runs for such a panic: whoever installs it keeps it from flooding the log.
//!
//! A silent call costs nothing until it is swept: one deadline a slot, not one timer a call.

mod context;
mod snapshot;
mod timers;

#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};

use hashbrown::HashTable;

use self::context::{Handling, Stage};
pub use self::snapshot::RestoreError;
use self::timers::Timers;
use crate::app::{CallApp, Inbound, TimerId};
use crate::types::{CallKey, Endpoint, LocalId, Nanos, Position, Slot};

/// The most outputs one entry may cause; a cursor's index counts them in 16 bits. Further ones are dropped
/// and counted.
pub const MAX_OUTPUTS_PER_ENTRY: u32 = u16::MAX as u32;

pub use crate::wire::record::MAX_OUTPUT;

/// A call's last activity is remembered in units of 2^30 ns (1.07 s) since 1970: 32 bits last until 2116.
const ACTIVE_UNIT: u32 = 30;

/// What a slot may hold. The same on every node of a cluster.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct TableLimits {
    /// The most calls at a time; the first packet of a further call is refused and counted.
    pub max_calls: u32,
    /// A call for which neither a packet came nor a timer fired for this long is ended, at the latest an
    /// eighth and two seconds later. [`Nanos::MAX`]: never.
    pub idle: Nanos,
}

/// Where in the log the table is: the entry being executed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The entry's position.
    pub position: Position,
    /// The entry's logical time.
    pub time: Nanos,
}

/// Takes the outputs of a handler that has returned, in the order of their cursors.
pub trait OutputSink {
    /// One datagram from the service endpoint `local` to `to`. `stamped`: on release its last two bytes become
    /// the id of the node whose outputs were taken ([`Context::send_stamped`](crate::app::Context::send_stamped)).
    fn output(&mut self, stamped: bool, local: LocalId, to: Endpoint, bytes: &[u8]);
}

/// What a table has done since it was made. A member's own figures: not part of a snapshot.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct TableCounters {
    /// Packets handed to a call.
    pub packets: u64,
    /// Packets of no call, by the slot's shared state.
    pub unresolved: u64,
    /// Timers fired.
    pub timers: u64,
    /// Outputs handed to the sink.
    pub outputs: u64,
    /// Outputs dropped: too long, or too many for one entry.
    pub outputs_dropped: u64,
    /// Calls opened.
    pub opened: u64,
    /// First packets refused because the slot held [`TableLimits::max_calls`] calls.
    pub refused: u64,
    /// Calls that ended themselves.
    pub ended: u64,
    /// Calls ended because they were silent.
    pub idled: u64,
    /// Calls ended because a handler panicked.
    pub panicked: u64,
}

/// One call. 32 bytes for an application state of 8 bytes, plus one byte of the hash table.
struct Record<C> {
    key: CallKey,
    call: C,
    /// In units of 2^[`ACTIVE_UNIT`] ns.
    active: u32,
}

/// The calls, timers and shared state of one slot.
pub struct CallTable<A: CallApp> {
    slot: Slot,
    limits: TableLimits,
    calls: HashTable<Record<A::Call>>,
    timers: Timers,
    /// When silent calls are looked for next; means nothing while there is no call.
    next_sweep: Nanos,
    shared: A::Shared,
    stage: Stage<A::Change>,
    counters: TableCounters,
}

impl<A: CallApp> CallTable<A> {
    /// An empty table. Allocates nothing until its first call.
    pub fn new(slot: Slot, limits: TableLimits) -> CallTable<A> {
        CallTable {
            slot,
            limits,
            calls: HashTable::new(),
            timers: Timers::default(),
            next_sweep: Nanos::MAX,
            shared: A::Shared::default(),
            stage: Stage::default(),
            counters: TableCounters::default(),
        }
    }

    /// The slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// How many calls there are.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// How many there are besides the slot's keeper.
    pub fn clients_calls(&self) -> usize {
        self.calls.len() - usize::from(self.warm(CallKey::keeper(self.slot)))
    }

    /// Whether there is no call.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether there is such a call. Fetches its record into the cache: asked for every entry of a batch before the
    /// first is executed, the waits for memory overlap (among millions of calls, half the time of an entry is one).
    pub fn warm(&self, key: CallKey) -> bool {
        self.calls.find(hash(key), |record| record.key == key).is_some()
    }

    /// The state of a call.
    pub fn call(&self, key: CallKey) -> Option<&A::Call> {
        self.calls.find(hash(key), |record| record.key == key).map(|record| &record.call)
    }

    /// The slot's shared state.
    pub fn shared(&self) -> &A::Shared {
        &self.shared
    }

    /// What happened so far.
    pub fn counters(&self) -> TableCounters {
        self.counters
    }

    /// Bytes reserved for the calls, growth slack included; what a call's state itself points to is not.
    pub fn reserved(&self) -> usize {
        self.calls.allocation_size()
    }

    /// When the table wants its next tick: the earliest timer, or the next look for silent calls. After an
    /// entry of time T it is later than T.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let sweep = (!self.calls.is_empty() && self.next_sweep < Nanos::MAX).then_some(self.next_sweep);
        match (self.timers.first(), sweep) {
            (Some(timer), Some(sweep)) => Some(timer.min(sweep)),
            (timer, sweep) => timer.or(sweep),
        }
    }

    /// Executes a tick: fires the timers due by `place.time` in the order (deadline, call, id), then ends the
    /// calls that have been silent too long.
    pub fn on_tick(&mut self, app: &A, place: Place, out: &mut impl OutputSink) {
        self.stage.begin_entry();
        while let Some((key, id)) = self.timers.pop_due(place.time) {
            self.fire(app, place, key, id, out);
        }
        if self.next_sweep <= place.time {
            self.sweep(app, place.time);
        }
    }

    /// Executes a packet entry: all that a tick at this place would do, then the packet, which opens its call
    /// if there is none.
    pub fn on_packet(
        &mut self,
        app: &A,
        place: Place,
        key: CallKey,
        packet: &Inbound<'_>,
        out: &mut impl OutputSink,
    ) {
        self.on_tick(app, place, out);
        let Some(key) = app.resolve(&self.shared, key, packet) else {
            self.counters.unresolved += 1;
            return;
        };
        let hashed = hash(key);
        let active = active(place.time);
        let record = match self.calls.find_entry(hashed, |record| record.key == key) {
            Ok(found) => found.into_mut(),
            Err(absent) => {
                let calls = absent.into_table();
                if calls.len() >= self.limits.max_calls as usize {
                    self.counters.refused += 1;
                    return;
                }
                let Ok(call) = catch_unwind(AssertUnwindSafe(|| app.open(key, place.time))) else {
                    self.counters.panicked += 1;
                    return;
                };
                if calls.is_empty() {
                    self.next_sweep = silent_at(active, self.limits.idle);
                }
                self.counters.opened += 1;
                calls
                    .insert_unique(hashed, Record { key, call, active }, |record| hash(record.key))
                    .into_mut()
            }
        };
        record.active = active;
        self.counters.packets += 1;
        let mut ctx = Handling { stage: &mut self.stage, shared: &self.shared, key, place, slot: self.slot };
        let ran = catch_unwind(AssertUnwindSafe(|| app.on_packet(&mut record.call, &mut ctx, packet)));
        self.settle(app, place, key, ran.is_ok(), out);
    }

    fn fire(&mut self, app: &A, place: Place, key: CallKey, id: TimerId, out: &mut impl OutputSink) {
        let Some(record) = self.calls.find_mut(hash(key), |record| record.key == key) else { return };
        record.active = active(place.time);
        self.counters.timers += 1;
        let mut ctx = Handling { stage: &mut self.stage, shared: &self.shared, key, place, slot: self.slot };
        let ran = catch_unwind(AssertUnwindSafe(|| app.on_timer(&mut record.call, &mut ctx, id)));
        self.settle(app, place, key, ran.is_ok(), out);
    }

    /// Lets what a handler staged take effect, or throws it away with the call if the handler panicked.
    fn settle(&mut self, app: &A, place: Place, key: CallKey, ran: bool, out: &mut impl OutputSink) {
        if !ran {
            self.stage.clear();
            self.counters.panicked += 1;
            self.close(app, key);
            return;
        }
        for (id, at) in self.stage.timers.drain(..) {
            // A timer set for the past fires with the next tick, never again in this entry: an entry ends.
            self.timers.set(key, id, at.map(|at| at.max(place.time + Nanos(1))));
        }
        for change in self.stage.changes.drain(..) {
            app.apply(&mut self.shared, change);
        }
        self.counters.outputs += self.stage.deliver(out);
        self.counters.outputs_dropped += self.stage.take_dropped();
        if self.stage.ended {
            self.counters.ended += 1;
            self.close(app, key);
        }
        self.stage.clear();
    }

    /// Takes a call and its timers out.
    fn close(&mut self, app: &A, key: CallKey) {
        if let Ok(found) = self.calls.find_entry(hash(key), |record| record.key == key) {
            found.remove();
        }
        self.timers.clear_call(key);
        app.on_end(&mut self.shared, key);
    }

    /// Ends the calls that have been silent for `idle`, lowest key first, and decides when to look again: when
    /// the longest silent of the others would be due, but not before an eighth of `idle` has passed.
    fn sweep(&mut self, app: &A, time: Nanos) {
        let mut silent: Vec<CallKey> = Vec::new();
        let mut oldest = u32::MAX;
        let unsorted = self.calls.iter(); // unordered: sorted below
        for record in unsorted {
            if silent_at(record.active, self.limits.idle) <= time {
                silent.push(record.key);
            } else {
                oldest = oldest.min(record.active);
            }
        }
        silent.sort_unstable();
        for key in &silent {
            self.close(app, *key);
        }
        self.counters.idled += silent.len() as u64;
        let pause = Nanos((self.limits.idle.0 / 8).max(1 << ACTIVE_UNIT));
        self.next_sweep = silent_at(oldest, self.limits.idle).max(time + pause);
        if self.calls.len() < self.calls.capacity() / 8 {
            self.calls.shrink_to(self.calls.len() * 2, |record| hash(record.key));
        }
    }
}

/// When a call last active in unit `active` has been silent for `idle`, whenever in that unit it was.
fn silent_at(active: u32, idle: Nanos) -> Nanos {
    Nanos((u64::from(active) + 1) << ACTIVE_UNIT) + idle
}

/// `time` in units of activity.
fn active(time: Nanos) -> u32 {
    u32::try_from(time.0 >> ACTIVE_UNIT).unwrap_or(u32::MAX)
}

/// A key is a hash already, but its low bits chose the slot, so all keys of a table share them: fold both
/// halves by one multiplication (as wyhash and foldhash do).
fn hash(key: CallKey) -> u64 {
    let low = key.0 as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let high = (key.0 >> 64) as u64 ^ 0xd1b5_4a32_d192_ed03;
    let product = u128::from(low) * u128::from(high);
    product as u64 ^ (product >> 64) as u64
}
