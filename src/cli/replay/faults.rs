//! Times in which the service itself was away, and what they excuse.
//!
//! When the node that holds a service address dies, datagrams sent to it are lost on the wire until another takes
//! the address; and an answer that it sent in its last moment, without telling anybody, may be sent once more by its
//! successor. Nothing else is excused. Such a time is marked by whoever kills, or else found: a silence of all
//! answers.

use crate::types::Nanos;

/// What happened this long before a death may be part of it: it was on its way, or nobody had been told.
const BEFORE: Nanos = Nanos::from_millis(30);
/// How long a dying process may still answer: a thread that runs dies when its core next looks at signals, and 3.1 ms
/// after the kill answers have been seen.
const DYING: Nanos = Nanos::from_millis(5);
/// The service is not back at one moment: each shard has a socket of its own.
const SETTLE: Nanos = Nanos::from_millis(20);
/// How long a kernel may hold back what it has taken: a datagram to a neighbour that does not answer waits while that is
/// asked for, three times, a second each (`arp(7)`). With the owner's cable out for 0.7 s such answers came 1.0 s after
/// the cut, and 1.5 s after it with `retrans_time_ms` at 1,500.
const HELD_BACK: Nanos = Nanos::from_secs(4);
/// No time away excuses more than this.
const LONGEST: Nanos = Nanos::from_secs(1);
/// Shorter silences are not taken for one.
const SHORTEST: Nanos = Nanos::from_millis(5);

/// A time in which the service was away.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The death, or the last answer before the silence.
    pub(crate) from: Nanos,
    /// The first answer after it; `Nanos::MAX` while there is none.
    pub(crate) until: Nanos,
    /// The number of the marked moment; found ones have none.
    pub(crate) window: Option<usize>,
    /// Datagrams that were lost on the wire.
    pub(crate) unaccepted: u64,
    /// Answers that came a second time.
    pub(crate) doubled: u64,
}

impl Fault {
    fn new(from: Nanos, until: Nanos, window: Option<usize>) -> Fault {
        Fault { from, until, window, unaccepted: 0, doubled: 0 }
    }

    fn length(&self) -> Nanos {
        self.until.since(self.from)
    }

    fn is_idle(&self) -> bool {
        self.unaccepted + self.doubled == 0
    }

    /// Whether a datagram sent at `at` could not arrive.
    fn swallows(&self, at: Nanos) -> bool {
        at + BEFORE >= self.from && at <= (self.until + SETTLE).min(self.from + LONGEST)
    }

    /// Whether the answer to a datagram sent at `sent`, which first came at `first`, may come again at `now`: from the
    /// successor, or, if that was first, from an owner whose link came back.
    fn doubles(&self, sent: Nanos, first: Nanos, now: Nanos) -> bool {
        let last_moment = |at: Nanos| at + BEFORE >= self.from && at <= self.from + DYING;
        let again = last_moment(first) && now >= self.from && now <= self.from + LONGEST;
        again || last_moment(sent) && first >= self.until && now <= self.from + HELD_BACK
    }
}

/// Every such time of a run.
#[derive(Default)]
pub(crate) struct Faults {
    /// How many silences are taken for one; 0: only what is marked.
    expected: usize,
    list: Vec<Fault>,
    last_arrival: Option<Nanos>,
}

impl Faults {
    /// From now on up to `expected` silences of all answers are taken for times in which the service was away.
    pub(crate) fn expect(&mut self, expected: usize) {
        self.expected = expected;
    }

    /// The node that answers is killed at this moment.
    pub(crate) fn mark(&mut self, at: Nanos, window: usize) {
        self.list.push(Fault::new(at, Nanos::MAX, Some(window)));
    }

    /// Any answer came.
    pub(crate) fn on_arrival(&mut self, now: Nanos) {
        if let Some(last) = self.last_arrival.replace(now)
            && self.expected > 0
            && now.since(last) >= SHORTEST
        {
            self.list.push(Fault::new(last, now, None));
        }
    }

    /// The first answer to a datagram sent at `sent` came.
    pub(crate) fn on_answer(&mut self, sent: Nanos, now: Nanos) {
        // What was sent right after the death may have been answered by the dying.
        for fault in self.list.iter_mut().rev().take_while(|fault| fault.from + LONGEST >= now) {
            if fault.until == Nanos::MAX && sent >= fault.from + DYING {
                fault.until = now;
            }
        }
    }

    /// Puts a datagram without answer, sent at `at`, down to the time away it falls into, if there is one.
    pub(crate) fn excuse_unanswered(&mut self, at: Nanos) -> Option<Option<usize>> {
        let within = |fault: &Fault| fault.from <= at && at <= fault.until && fault.swallows(at);
        let newest = |of: &dyn Fn(&Fault) -> bool| self.list.iter().rposition(of);
        let number = newest(&within).or_else(|| newest(&|fault: &Fault| fault.swallows(at)))?;
        let fault = &mut self.list[number];
        fault.unaccepted += 1;
        Some(fault.window)
    }

    /// The same for a copy of an answer.
    pub(crate) fn excuse_copy(&mut self, sent: Nanos, first: Nanos, now: Nanos) -> Option<Option<usize>> {
        let fault = self.list.iter_mut().rev().find(|fault| fault.doubles(sent, first, now))?;
        fault.doubled += 1;
        Some(fault.window)
    }

    /// Forgets the silences before `time` that excuse nothing, but for the longest.
    pub(crate) fn forget(&mut self, time: Nanos) {
        let idle = |fault: &Fault| fault.window.is_none() && fault.is_idle() && fault.from + LONGEST < time;
        let mut lengths: Vec<Nanos> = self.list.iter().filter(|f| idle(f)).map(Fault::length).collect();
        if lengths.len() > self.expected {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            let longest = lengths.get(self.expected.wrapping_sub(1)).copied().unwrap_or(Nanos::MAX);
            self.list.retain(|fault| !idle(fault) || fault.length() >= longest);
        }
    }

    /// The run is over: returns the silences that stand, as many as were expected, and those that were one too many.
    pub(crate) fn conclude(&mut self) -> (Vec<Fault>, Vec<Fault>) {
        let mut found = std::mem::take(&mut self.list);
        found.retain(|fault| fault.window.is_none());
        found.sort_by_key(|fault| std::cmp::Reverse((fault.unaccepted + fault.doubled, fault.length())));
        let surplus = found.split_off(self.expected.min(found.len()));
        found.sort_by_key(|fault| fault.from);
        (found, surplus)
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Faults};
    use crate::types::Nanos;

    fn ms(n: u64) -> Nanos {
        Nanos::from_millis(n)
    }

    #[test]
    fn a_marked_death_excuses_what_was_sent_until_the_service_is_back() {
        let mut faults = Faults::default();
        faults.mark(ms(1_000), 4);
        faults.on_answer(ms(1_000), ms(1_001));
        assert_eq!(faults.excuse_unanswered(ms(1_500)), Some(Some(4)), "the dying answered, nobody else has");
        faults.on_answer(ms(1_010), ms(1_014));
        faults.on_answer(ms(1_013), ms(1_050));
        assert_eq!(faults.excuse_unanswered(ms(999)), Some(Some(4)), "on its way");
        assert_eq!(faults.excuse_unanswered(ms(1_034)), Some(Some(4)));
        assert_eq!(faults.excuse_unanswered(ms(1_035)), None, "the service was back");
        assert_eq!(faults.excuse_unanswered(ms(969)), None, "before");
        assert_eq!(faults.list[0].unaccepted, 3);
    }

    #[test]
    fn a_service_that_does_not_come_back_is_not_excused_for_long() {
        let mut faults = Faults::default();
        faults.mark(ms(1_000), 0);
        assert_eq!(faults.excuse_unanswered(ms(2_000)), Some(Some(0)));
        assert_eq!(faults.excuse_unanswered(ms(2_001)), None);
    }

    #[test]
    fn only_answers_of_the_last_moment_may_come_twice_and_only_soon() {
        let mut faults = Faults::default();
        faults.mark(ms(1_000), 0);
        assert_eq!(faults.excuse_copy(ms(995), ms(995), ms(1_020)), Some(Some(0)));
        assert_eq!(faults.excuse_copy(ms(960), ms(960), ms(1_020)), None, "everybody had been told");
        assert_eq!(faults.excuse_copy(ms(1_006), ms(1_006), ms(1_020)), None, "an answer of the successor");
        assert_eq!(faults.excuse_copy(ms(995), ms(995), ms(999)), None, "before the death");
        assert_eq!(faults.excuse_copy(ms(995), ms(995), ms(2_001)), None);
    }

    #[test]
    fn what_an_owner_could_not_deliver_may_come_when_its_link_is_back() {
        let mut faults = Faults::default();
        faults.mark(ms(1_000), 0);
        faults.on_answer(ms(1_010), ms(1_060));
        assert_eq!(faults.excuse_copy(ms(999), ms(1_061), ms(2_700)), Some(Some(0)));
        assert_eq!(faults.excuse_copy(ms(999), ms(1_061), ms(5_001)), None, "no kernel holds it that long");
        assert_eq!(faults.excuse_copy(ms(1_006), ms(1_061), ms(2_700)), None, "sent when the owner was gone");
        assert_eq!(faults.excuse_copy(ms(960), ms(1_061), ms(2_700)), None, "sent before");
    }

    #[test]
    fn as_many_silences_as_expected_are_found() {
        let mut faults = Faults::default();
        faults.expect(1);
        for at in [0, 4, 20, 21, 50, 51, 70] {
            faults.on_arrival(ms(at));
        }
        assert_eq!(faults.list.len(), 3, "4 ms is no silence");
        assert_eq!(faults.excuse_unanswered(ms(30)), Some(None));
        assert_eq!(faults.excuse_unanswered(ms(35)), Some(None));
        assert_eq!(faults.excuse_copy(ms(21), ms(21), ms(50)), Some(None));
        faults.forget(Nanos::from_secs(10));
        assert_eq!(faults.list.len(), 2, "one excuses something, and the longest of the others stays");
        let (found, surplus) = faults.conclude();
        let excused = |of: &[Fault]| of.iter().map(|f| (f.from, f.unaccepted, f.doubled)).collect::<Vec<_>>();
        assert_eq!(excused(&found), [(ms(21), 2, 1)]);
        assert_eq!(excused(&surplus), [(ms(51), 0, 0)]);
    }

    #[test]
    fn nothing_is_found_unless_it_is_expected() {
        let mut faults = Faults::default();
        faults.on_arrival(ms(0));
        faults.on_arrival(ms(500));
        assert_eq!(faults.excuse_unanswered(ms(30)), None);
    }
}
