//! The reference: what one slot must do with a sequence of entries, in the plainest way there is
//! (sorted maps, no wheel, no slab). It shares the test application's handlers with the core and
//! nothing else, so a wrong timer, state, order or panic in the call table shows.

use std::collections::{BTreeMap, BTreeSet};

use crate::app::{CallApp, Context, Inbound, TimerId};
use crate::sim::test_app::{Change, Execution, Panicked, Sent, TestApp, TestCall, TestShared, What};
use crate::types::{CallKey, Endpoint, LocalId, Nanos};

/// The reference state of one slot.
#[derive(Clone, Default)]
pub struct Model {
    app: TestApp,
    calls: BTreeMap<CallKey, TestCall>,
    due: BTreeSet<(Nanos, CallKey, TimerId)>,
    deadlines: BTreeMap<(CallKey, TimerId), Nanos>,
    shared: TestShared,
    position: u64,
    time: Nanos,
}

impl Model {
    /// Executes what a member says it executed next; an error says how it differs from the reference.
    pub fn step(&mut self, seen: &Execution) -> Result<(), String> {
        if seen.time < self.time {
            return Err(format!("logical time went back from {:?} to {:?}", self.time, seen.time));
        }
        if seen.position == self.position && seen.time != self.time {
            return Err(format!("entry {} has two times", seen.position));
        }
        if seen.position < self.position {
            return Err(format!("entry {} was executed after entry {}", seen.position, self.position));
        }
        if seen.position > self.position {
            self.nothing_due_by(self.time, self.position)?;
        }
        (self.position, self.time) = (seen.position, seen.time);
        let mut ctx = ModelContext::new(seen, self.shared.clone());
        let result = match &seen.what {
            What::Timer(id) => {
                match self.due.first() {
                    Some(&(at, key, first)) if (key, first) == (seen.key, *id) => {
                        if at > seen.time {
                            return Err(format!("timer {id:?} fired at {:?}, due only at {at:?}", seen.time));
                        }
                    }
                    other => return Err(format!("timer {id:?} fired, the first one due is {other:?}")),
                }
                self.clear(seen.key, *id);
                let Some(call) = self.calls.get_mut(&seen.key) else {
                    return Err("a timer of no call".into());
                };
                self.app.timer(call, &mut ctx, *id)
            }
            What::Packet { source, local, payload } => {
                self.nothing_due_by(seen.time, seen.position)?;
                let app = &self.app;
                let call = self.calls.entry(seen.key).or_insert_with(|| app.open(seen.key, seen.time));
                let packet = Inbound { source: *source, local: *local, payload };
                self.app.packet(call, &mut ctx, &packet)
            }
        };
        let ModelContext { outputs, timers, changes, ended, missing, drawn, .. } = ctx;
        if missing || drawn != seen.drawn.len() {
            return Err(format!("drew {} random values, the reference {drawn}", seen.drawn.len()));
        }
        if outputs != seen.outputs {
            return Err(format!("sent {:?}, the reference {:?}", seen.outputs, outputs));
        }
        if result.is_err() != seen.panicked {
            return Err(format!("panicked: {}, the reference {}", seen.panicked, result.is_err()));
        }
        self.settle(seen.key, result, timers, changes, ended);
        Ok(())
    }

    /// The trail of what was executed, as the next execution has to name it.
    pub fn trail(&self) -> u64 {
        self.shared.trail()
    }

    /// The next timer's deadline.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.due.first().map(|(at, ..)| *at)
    }

    fn nothing_due_by(&self, time: Nanos, position: u64) -> Result<(), String> {
        match self.due.first() {
            Some(&(at, _, id)) if at <= time => {
                Err(format!("entry {position} at {time:?} left timer {id:?} due at {at:?} unfired"))
            }
            _ => Ok(()),
        }
    }

    fn settle(
        &mut self,
        key: CallKey,
        result: Result<(), Panicked>,
        timers: Vec<(TimerId, Option<Nanos>)>,
        changes: Vec<Change>,
        ended: bool,
    ) {
        if result.is_ok() {
            for (id, at) in timers {
                self.clear(key, id);
                if let Some(at) = at {
                    // A timer set for the past fires with the next entry, never again in this one.
                    let at = at.max(self.time + Nanos(1));
                    self.deadlines.insert((key, id), at);
                    self.due.insert((at, key, id));
                }
            }
            for change in changes {
                self.app.apply(&mut self.shared, change);
            }
        }
        if ended || result.is_err() {
            self.calls.remove(&key);
            self.app.on_end(&mut self.shared, key);
            for id in 0..=u8::MAX {
                self.clear(key, TimerId(id));
            }
        }
    }

    fn clear(&mut self, key: CallKey, id: TimerId) {
        if let Some(at) = self.deadlines.remove(&(key, id)) {
            self.due.remove(&(at, key, id));
        }
    }
}

/// The reference's context: random values are those the member says it drew.
struct ModelContext<'a> {
    seen: &'a Execution,
    shared: TestShared,
    drawn: usize,
    missing: bool,
    outputs: Vec<Sent>,
    timers: Vec<(TimerId, Option<Nanos>)>,
    changes: Vec<Change>,
    ended: bool,
}

impl<'a> ModelContext<'a> {
    fn new(seen: &'a Execution, shared: TestShared) -> Self {
        ModelContext {
            seen,
            shared,
            drawn: 0,
            missing: false,
            outputs: Vec::new(),
            timers: Vec::new(),
            changes: Vec::new(),
            ended: false,
        }
    }

    fn sent(&mut self, local: LocalId, to: Endpoint, parts: &[&[u8]], stamped: bool) {
        self.outputs.push(Sent { key: self.seen.key, local, to, bytes: parts.concat(), stamped });
    }
}

impl Context for ModelContext<'_> {
    type Shared = TestShared;
    type Change = Change;

    fn now(&self) -> Nanos {
        self.seen.time
    }

    fn key(&self) -> CallKey {
        self.seen.key
    }

    fn place(&self) -> (u64, u16) {
        (self.seen.position, self.seen.slot)
    }

    fn random(&mut self) -> u64 {
        let value = self.seen.drawn.get(self.drawn).copied();
        self.missing |= value.is_none();
        self.drawn += 1;
        value.unwrap_or(0)
    }

    fn shared(&self) -> &TestShared {
        &self.shared
    }

    fn change(&mut self, change: Change) {
        self.changes.push(change);
    }

    fn send(&mut self, local: LocalId, to: Endpoint, parts: &[&[u8]]) {
        self.sent(local, to, parts, false);
    }

    fn send_stamped(&mut self, local: LocalId, to: Endpoint, parts: &[&[u8]]) {
        self.sent(local, to, parts, true);
    }

    fn set_timer(&mut self, id: TimerId, at: Nanos) {
        self.timers.push((id, Some(at)));
    }

    fn clear_timer(&mut self, id: TimerId) {
        self.timers.push((id, None));
    }

    fn end(&mut self) {
        self.ended = true;
    }
}

#[cfg(test)]
mod tests {
    use super::Model;
    use crate::app::{CallApp, Inbound, TimerId};
    use crate::sim::layout::local;
    use crate::sim::test_app::{Execution, TestApp, What, key_of, payload};
    use crate::types::{Endpoint, Nanos};

    /// Sets timer 1, 150,001 ns ahead of the packet; sends nothing.
    const SET: (u8, u8) = (0b0100, 0b0101);

    fn packet(position: u64, time: u64, control: (u8, u8)) -> Execution {
        let source = Endpoint { ip: [1; 16], port: 9 };
        let payload = payload(1, position as u32, control.0, control.1, 0);
        let key =
            TestApp::default().classify(&Inbound { source, local: local(0), payload: &payload }).unwrap();
        let what = What::Packet { source, local: local(0), payload };
        let time = Nanos(time);
        let (drawn, outputs) = (vec![], vec![]);
        Execution { slot: 0, position, trail: 0, time, key, what, drawn, outputs, panicked: false }
    }

    fn timer(position: u64, time: u64) -> Execution {
        Execution { what: What::Timer(TimerId(1)), key: key_of(1), ..packet(position, time, (0, 0)) }
    }

    #[test]
    fn a_timer_must_fire_and_never_early() {
        let mut early = Model::default();
        early.step(&packet(1, 1_000, SET)).unwrap();
        assert!(early.step(&timer(2, 100_000)).unwrap_err().contains("due only at"));
        let mut late = Model::default();
        late.step(&packet(1, 1_000, SET)).unwrap();
        assert!(late.step(&packet(2, 200_000, (0, 0))).unwrap_err().contains("unfired"));
    }

    #[test]
    fn order_and_content_are_checked() {
        let mut model = Model::default();
        model.step(&packet(2, 1_000, (0, 0))).unwrap();
        assert!(model.step(&packet(1, 1_000, (0, 0))).unwrap_err().contains("after entry"));
        assert!(model.step(&packet(3, 999, (0, 0))).unwrap_err().contains("went back"));
        assert!(model.step(&packet(3, 2_000, (1, 0))).unwrap_err().contains("sent []"));
        assert!(Model::default().step(&packet(1, 1, (0b0100_0000, 0))).unwrap_err().contains("panicked"));
    }
}
