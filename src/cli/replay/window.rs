//! What clients saw around a moment, for example a kill.

use super::faults::Fault;
use super::flows::Silence;
use crate::types::{Nanos, NodeId};

/// Losses up to this long before the moment belong to it: they may have been on their way when it came.
const LEAD: Nanos = Nanos::from_millis(100);

/// A marked moment and what followed. Times are those of the runner (ns since the first datagram).
#[derive(Clone, Debug)]
pub struct Window {
    /// What happened.
    pub label: String,
    /// The node it happened to. Only calls that it was answering count for the silences; all calls if `None`, or if
    /// the service itself was away.
    pub node: Option<NodeId>,
    /// Whether the node that holds the service address was killed: until another has it, datagrams are lost on
    /// their way.
    pub outage: bool,
    /// When it happened.
    pub at: Nanos,
    /// What begins later than this after `at` does not count.
    pub length: Nanos,
    /// The longest gap of a single flow that lasted at `at` or began within `length` of it. `None`: no answer
    /// to these calls ended one.
    pub gap: Option<Nanos>,
    /// The longest time without any answer to any of these calls, begun before the end of the window.
    pub silence: Nanos,
    /// The latest answer to what these calls sent within `length` of `at`, from the time it was due.
    pub latest: Nanos,
    /// Datagrams sent from 100 ms before `at` to the end of the window and never answered, of all calls, but for...
    pub lost: u64,
    /// ...those that were lost on the wire while the service was away.
    pub unaccepted: u64,
    /// Answers that came a second time within the window, of all calls, but for...
    pub duplicated: u64,
    /// ...copies of what the dying node sent in its last moment.
    pub doubled_allowed: u64,
    last_answer: Nanos,
}

impl Window {
    /// `last_answer`: when the node (or any node) answered last.
    pub(crate) fn new(
        label: &str,
        (node, outage): (Option<NodeId>, bool),
        at: Nanos,
        length: Nanos,
        last_answer: Nanos,
    ) -> Window {
        Window {
            label: label.to_owned(),
            node,
            outage,
            at,
            length,
            gap: None,
            silence: Nanos::ZERO,
            latest: Nanos::ZERO,
            lost: 0,
            unaccepted: 0,
            duplicated: 0,
            doubled_allowed: 0,
            last_answer,
        }
    }

    /// A silence that was found, not marked.
    pub(crate) fn found(fault: &Fault) -> Window {
        let length = fault.until.since(fault.from);
        let mut window = Window::new("silence", (None, true), fault.from, length, fault.until);
        (window.gap, window.silence) = (Some(length), length);
        (window.unaccepted, window.doubled_allowed) = (fault.unaccepted, fault.doubled);
        window
    }

    /// The node whose calls alone count for the silences.
    pub(crate) fn of_calls(&self) -> Option<NodeId> {
        self.node.filter(|_| !self.outage)
    }

    /// Whether anything may still be added at `now`.
    fn end(&self) -> Nanos {
        self.at + self.length
    }

    /// An answer to a call that counts came at `now`, to what was due at `intended`, ending `silence` of its flow.
    pub(crate) fn on_answer(&mut self, intended: Nanos, silence: Option<Silence>, now: Nanos) {
        if (self.at..=self.end()).contains(&intended) {
            self.latest = self.latest.max(now.since(intended));
        }
        if self.last_answer <= self.end() {
            self.silence = self.silence.max(now.since(self.last_answer));
            self.last_answer = now;
        }
        if let Some(silence) = silence {
            self.on_silence(silence);
        }
    }

    pub(crate) fn on_silence(&mut self, silence: Silence) {
        if silence.from <= self.end() && silence.to >= self.at {
            self.gap = self.gap.max(Some(silence.length()));
        }
    }

    pub(crate) fn on_duplicate(&mut self, now: Nanos) {
        self.duplicated += u64::from(now >= self.at && now <= self.end());
    }

    pub(crate) fn on_lost(&mut self, sent: Nanos) {
        self.lost += u64::from(sent + LEAD >= self.at && sent <= self.end());
    }
}
