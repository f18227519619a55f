//! Silences: how long each flow was owed an answer and got none.
//!
//! A flow is owed an answer from the moment one of its datagrams is sent while nothing is owed. An answer to
//! its newest datagram settles the debt; an answer to an older one ends this silence and begins the next. A
//! *gap* is the time from the beginning of such a silence to the answer that ends it. So the pauses of the
//! flow's own schedule never count, the usual answer's latency does, and a lost datagram counts only if
//! nothing after it was answered. A silence that never ends is counted up to the flow's last datagram.

use crate::types::Nanos;

/// A time during which a flow was owed an answer.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Silence {
    pub(crate) from: Nanos,
    pub(crate) to: Nanos,
}

impl Silence {
    pub(crate) fn length(self) -> Nanos {
        self.to.since(self.from)
    }
}

/// One flow: 24 bytes.
#[derive(Copy, Clone)]
struct Flow {
    /// `Nanos::MAX`: nothing is owed.
    owed_since: Nanos,
    newest_sent: u32,
    newest_answered: u32,
    /// Half of the engine's hash of the call to which the newest answered datagram belongs.
    call: u32,
    /// The count which that call had there, its lower half.
    count: u32,
}

/// What an answer says of the call it belongs to; zeros where nothing is said.
#[derive(Copy, Clone, Default)]
pub(crate) struct Stamp {
    /// The engine's hash of the call.
    pub(crate) call: u64,
    /// How many datagrams of the call have been executed.
    pub(crate) count: u64,
}

/// All flows of all clones.
pub(crate) struct Flows {
    flows: Vec<Flow>,
    /// The longest gap of each kind of flow.
    longest: Vec<Nanos>,
}

impl Flows {
    pub(crate) fn new(flows: usize, kinds: usize) -> Flows {
        let idle = Flow { owed_since: Nanos::MAX, newest_sent: 0, newest_answered: 0, call: 0, count: 0 };
        Flows { flows: vec![idle; flows], longest: vec![Nanos::ZERO; kinds] }
    }

    /// The longest gap of each kind of flow.
    pub(crate) fn longest(&self) -> &[Nanos] {
        &self.longest
    }

    pub(crate) fn on_sent(&mut self, flow: u32, order: u32, now: Nanos) {
        let Some(flow) = self.flows.get_mut(flow as usize) else { return };
        flow.newest_sent = order;
        flow.owed_since = flow.owed_since.min(now);
    }

    /// Takes an answer; returns the silence it ended, and whether within this flow and its call it came in
    /// order and was executed in order. A flow may carry one call after the other, and calls of different slots
    /// run side by side.
    pub(crate) fn on_reply(
        &mut self,
        flow: u32,
        kind: u32,
        order: u32,
        stamp: Stamp,
        now: Nanos,
    ) -> (Option<Silence>, bool) {
        let Some(flow) = self.flows.get_mut(flow as usize) else { return (None, true) };
        let (call, count) = (stamp.call as u32, stamp.count as u32);
        let newest = order >= flow.newest_answered;
        let executed_later = count.wrapping_sub(flow.count) as i32 > 0 || count == 0;
        let in_order = newest && executed_later || call != flow.call;
        if newest {
            (flow.newest_answered, flow.call, flow.count) = (order, call, count);
        }
        if flow.owed_since == Nanos::MAX {
            return (None, in_order);
        }
        let silence = Silence { from: flow.owed_since, to: now };
        flow.owed_since = if order == flow.newest_sent { Nanos::MAX } else { now.max(flow.owed_since) };
        self.note(kind, silence);
        (Some(silence), in_order)
    }

    /// Takes a datagram, sent at `at`, that was never answered; returns the silence it belongs to if that
    /// still lasts.
    pub(crate) fn on_lost(&mut self, flow: u32, kind: u32, at: Nanos) -> Option<Silence> {
        let flow = self.flows.get(flow as usize)?;
        let silence = Silence { from: flow.owed_since, to: at };
        (silence.from < silence.to).then(|| self.note(kind, silence))
    }

    fn note(&mut self, kind: u32, silence: Silence) -> Silence {
        if let Some(longest) = self.longest.get_mut(kind as usize) {
            *longest = silence.length().max(*longest);
        }
        silence
    }
}

#[cfg(test)]
mod tests {
    use super::{Flows, Silence, Stamp};
    use crate::types::Nanos;

    /// The datagrams of a call are executed in their order.
    fn of_call(call: u64, order: u32) -> Stamp {
        Stamp { call, count: order.into() }
    }

    fn ms(n: u64) -> Nanos {
        Nanos::from_millis(n)
    }

    #[test]
    fn pauses_of_the_schedule_are_no_gaps() {
        let mut flows = Flows::new(1, 1);
        for (order, at) in [(1, 0), (2, 20), (3, 500)] {
            flows.on_sent(0, order, ms(at));
            flows.on_reply(0, 0, order, of_call(7, order), ms(at + 1));
        }
        assert_eq!(flows.longest(), [ms(1)]);
    }

    #[test]
    fn a_gap_runs_from_the_first_unanswered_datagram_to_the_next_answer() {
        let mut flows = Flows::new(1, 1);
        for (order, at) in [(1, 0), (2, 20), (3, 40), (4, 60)] {
            flows.on_sent(0, order, ms(at));
            if order == 1 {
                flows.on_reply(0, 0, order, of_call(7, order), ms(1));
            }
        }
        let (silence, in_order) = flows.on_reply(0, 0, 4, of_call(7, 4), ms(62));
        assert_eq!((silence, in_order), (Some(Silence { from: ms(20), to: ms(62) }), true));
        let (silence, in_order) = flows.on_reply(0, 0, 3, of_call(7, 3), ms(63));
        assert_eq!((silence, in_order), (None, false), "nothing was owed, and it was overtaken");
        assert!(
            flows.on_reply(0, 0, 2, of_call(8, 2), ms(64)).1,
            "the last answer of the call before may come late"
        );
    }

    #[test]
    fn execution_out_of_order_within_a_flow_is_seen() {
        let mut flows = Flows::new(1, 1);
        let counts = [(1, 1, true), (2, 3, true), (3, 2, false), (4, 4, true)];
        for (order, count, fits) in counts {
            let (_, in_order) = flows.on_reply(0, 0, order, Stamp { call: 7, count }, ms(1));
            assert_eq!(in_order, fits, "{order}");
        }
    }

    #[test]
    fn a_lost_datagram_is_no_silence_once_a_later_one_is_answered() {
        let mut flows = Flows::new(1, 1);
        flows.on_sent(0, 1, ms(0));
        flows.on_sent(0, 2, ms(20));
        flows.on_reply(0, 0, 2, of_call(7, 2), ms(21));
        flows.on_sent(0, 3, ms(400));
        flows.on_reply(0, 0, 3, of_call(7, 3), ms(401));
        assert_eq!(flows.on_lost(0, 0, ms(0)), None);
        assert_eq!(flows.longest(), [ms(21)]);
    }

    #[test]
    fn a_silence_that_never_ends_is_counted_to_the_last_datagram() {
        let mut flows = Flows::new(1, 2);
        for (order, at) in [(1, 100), (2, 120), (3, 140)] {
            flows.on_sent(0, order, ms(at));
        }
        for at in [100, 120, 140] {
            flows.on_lost(0, 1, ms(at));
        }
        assert_eq!(flows.longest(), [ms(0), ms(40)]);
    }
}
