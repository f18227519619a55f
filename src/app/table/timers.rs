//! The timers of one slot: ordered by (deadline, call, id), found again by (call, id). A call without timers
//! is in neither tree and costs nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::app::TimerId;
use crate::types::{CallKey, Nanos};

/// The timers of one slot.
#[derive(Default)]
pub(super) struct Timers {
    due: BTreeSet<(Nanos, CallKey, TimerId)>,
    deadlines: BTreeMap<(CallKey, TimerId), Nanos>,
}

impl Timers {
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    /// The earliest deadline.
    pub(super) fn first(&self) -> Option<Nanos> {
        self.due.first().map(|timer| timer.0)
    }

    /// All timers in the order in which they fire.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(Nanos, CallKey, TimerId)> {
        self.due.iter()
    }

    /// Sets or moves a timer; clears it if there is no `at`, or if that is never ([`Nanos::MAX`]).
    pub(super) fn set(&mut self, key: CallKey, id: TimerId, at: Option<Nanos>) {
        let at = at.filter(|at| *at < Nanos::MAX);
        let before = match at {
            Some(at) => self.deadlines.insert((key, id), at),
            None => self.deadlines.remove(&(key, id)),
        };
        if let Some(before) = before {
            self.due.remove(&(before, key, id));
        }
        if let Some(at) = at {
            self.due.insert((at, key, id));
        }
    }

    /// Takes the first timer due by `time` out.
    pub(super) fn pop_due(&mut self, time: Nanos) -> Option<(CallKey, TimerId)> {
        let (deadline, key, id) = *self.due.first()?;
        if deadline > time {
            return None;
        }
        self.due.pop_first();
        self.deadlines.remove(&(key, id));
        Some((key, id))
    }

    /// Clears all timers of a call.
    pub(super) fn clear_call(&mut self, key: CallKey) {
        if self.deadlines.is_empty() {
            return;
        }
        let all = (key, TimerId(0))..=(key, TimerId(u8::MAX));
        while let Some((&(_, id), _)) = self.deadlines.range(all.clone()).next() {
            self.set(key, id, None);
        }
    }
}
