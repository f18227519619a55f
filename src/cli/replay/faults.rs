//! Times in which the service itself was away, and what they excuse.
//!
//! When the node that holds a service address dies, datagrams sent to it are lost on the wire until another takes
//! the address; and an answer that it sent in its last moment, without telling anybody, may be sent once more by its
//! successor. Nothing else is excused. Such a time is marked by whoever kills, or else found: a silence of all
//! answers.

use super::tally::Repeat;
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
/// Shorter silences are not taken for one: on hosts that do nothing else an owner's engine was replaced in 2 ms.
const SHORTEST: Nanos = Nanos::from_millis(1);
/// So much that wants an excuse is looked at; what is beyond has none.
const MOST_WANTING: usize = 65_536;

/// A time in which the service was away.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The death, or the last answer before the silence.
    pub(crate) from: Nanos,
    /// The first answer after it; `Nanos::MAX` while there is none.
    pub(crate) until: Nanos,
    /// The number of the marked moment; found ones have none.
    pub(crate) window: Option<usize>,
    /// Of a silence that stands: datagrams that were lost on the wire.
    pub(crate) unaccepted: u64,
    /// The same: answers that came a second time.
    pub(crate) doubled: u64,
    /// A silence that excuses something, if it stands.
    wanted: bool,
}

impl Fault {
    fn new(from: Nanos, until: Nanos, window: Option<usize>) -> Fault {
        Fault { from, until, window, unaccepted: 0, doubled: 0, wanted: false }
    }

    fn length(&self) -> Nanos {
        self.until.since(self.from)
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

/// What a silence may excuse.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanting {
    /// A datagram, sent then, that has no answer.
    Unanswered(Nanos),
    /// An answer that came again.
    Doubled(Repeat),
}

impl Wanting {
    fn fits(&self, fault: &Fault) -> bool {
        match *self {
            Wanting::Unanswered(sent) => fault.swallows(sent),
            Wanting::Doubled(Repeat { sent, first, again, .. }) => fault.doubles(sent, first, again),
        }
    }
}

/// Every such time of a run.
#[derive(Default)]
pub(crate) struct Faults {
    /// How many silences are taken for one; 0: only what is marked.
    expected: usize,
    /// What was marked.
    marked: Vec<Fault>,
    /// Silences; which of them were deaths is decided at the end.
    silences: Vec<Fault>,
    /// What only a silence can excuse.
    wanting: Vec<Wanting>,
    last_arrival: Option<Nanos>,
}

impl Faults {
    /// From now on up to `expected` silences of all answers are taken for times in which the service was away.
    pub(crate) fn expect(&mut self, expected: usize) {
        self.expected = expected;
    }

    /// The node that answers is killed at this moment.
    pub(crate) fn mark(&mut self, at: Nanos, window: usize) {
        self.marked.push(Fault::new(at, Nanos::MAX, Some(window)));
    }

    /// Any answer came.
    pub(crate) fn on_arrival(&mut self, now: Nanos) {
        if let Some(last) = self.last_arrival.replace(now)
            && self.expected > 0
            && now.since(last) >= SHORTEST
        {
            self.silences.push(Fault::new(last, now, None));
        }
    }

    /// The first answer to a datagram sent at `sent` came.
    pub(crate) fn on_answer(&mut self, sent: Nanos, now: Nanos) {
        // What was sent right after the death may have been answered by the dying.
        for fault in self.marked.iter_mut().rev().take_while(|fault| fault.from + LONGEST >= now) {
            if fault.until == Nanos::MAX && sent >= fault.from + DYING {
                fault.until = now;
            }
        }
    }

    /// Puts a datagram without answer, sent at `at`, down to the time away it falls into, if there is one.
    pub(crate) fn excuse_unanswered(&mut self, at: Nanos) -> Option<Option<usize>> {
        let within = |fault: &Fault| fault.from <= at && at <= fault.until && fault.swallows(at);
        let newest = |of: &dyn Fn(&Fault) -> bool| self.marked.iter().rev().find(|fault| of(fault));
        match newest(&within).or_else(|| newest(&|fault: &Fault| fault.swallows(at))) {
            Some(fault) => Some(fault.window),
            None => self.excuse_later(Wanting::Unanswered(at)).then_some(None),
        }
    }

    /// The same for a copy of an answer.
    pub(crate) fn excuse_copy(&mut self, copy: Repeat) -> Option<Option<usize>> {
        let Repeat { sent, first, again, .. } = copy;
        match self.marked.iter().rev().find(|fault| fault.doubles(sent, first, again)) {
            Some(fault) => Some(fault.window),
            None => self.excuse_later(Wanting::Doubled(copy)).then_some(None),
        }
    }

    /// Whether some silence excuses this, if it is one of those that stand in the end.
    fn excuse_later(&mut self, wanting: Wanting) -> bool {
        let mut fits = false;
        for fault in self.silences.iter_mut().filter(|fault| wanting.fits(fault)) {
            (fault.wanted, fits) = (true, true);
        }
        let excused = fits && self.wanting.len() < MOST_WANTING;
        if excused {
            self.wanting.push(wanting);
        }
        excused
    }

    /// Forgets the silences before `time` that excuse nothing, but for the longest.
    pub(crate) fn forget(&mut self, time: Nanos) {
        let idle = |fault: &Fault| !fault.wanted && fault.from + LONGEST < time;
        let mut lengths: Vec<Nanos> = self.silences.iter().filter(|f| idle(f)).map(Fault::length).collect();
        if lengths.len() > self.expected {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            let longest = lengths.get(self.expected.wrapping_sub(1)).copied().unwrap_or(Nanos::MAX);
            self.silences.retain(|fault| !idle(fault) || fault.length() >= longest);
        }
    }

    /// The run is over: returns the silences that stand, as many as were expected, and what none of them excuses. Each
    /// is the one that excuses most of what those before have left, or the longest.
    pub(crate) fn conclude(&mut self) -> (Vec<Fault>, Vec<Wanting>) {
        let (mut silences, mut wanting) =
            (std::mem::take(&mut self.silences), std::mem::take(&mut self.wanting));
        let mut found = Vec::new();
        while found.len() < self.expected {
            let weight = |fault: &Fault| (wanting.iter().filter(|w| w.fits(fault)).count(), fault.length());
            let Some(best) = (0..silences.len()).max_by_key(|at| weight(&silences[*at])) else { break };
            let mut fault = silences.swap_remove(best);
            let (its, left): (Vec<_>, Vec<_>) = wanting.into_iter().partition(|wanting| wanting.fits(&fault));
            fault.unaccepted = its.iter().filter(|of| matches!(of, Wanting::Unanswered(_))).count() as u64;
            fault.doubled = its.len() as u64 - fault.unaccepted;
            wanting = left;
            found.push(fault);
        }
        found.sort_by_key(|fault| fault.from);
        (found, wanting)
    }
}

#[cfg(test)]
mod tests {
    use super::{Faults, Repeat, Wanting};
    use crate::types::Nanos;

    fn ms(n: u64) -> Nanos {
        Nanos::from_millis(n)
    }

    fn copy(sent: u64, first: u64, again: u64) -> Repeat {
        Repeat { sent: ms(sent), first: ms(first), again: ms(again), differs: false }
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
        assert_eq!(faults.excuse_copy(copy(995, 995, 1_020)), Some(Some(0)));
        assert_eq!(faults.excuse_copy(copy(960, 960, 1_020)), None, "everybody had been told");
        assert_eq!(faults.excuse_copy(copy(1_006, 1_006, 1_020)), None, "an answer of the successor");
        assert_eq!(faults.excuse_copy(copy(995, 995, 999)), None, "before the death");
        assert_eq!(faults.excuse_copy(copy(995, 995, 2_001)), None);
    }

    #[test]
    fn what_an_owner_could_not_deliver_may_come_when_its_link_is_back() {
        let mut faults = Faults::default();
        faults.mark(ms(1_000), 0);
        faults.on_answer(ms(1_010), ms(1_060));
        assert_eq!(faults.excuse_copy(copy(999, 1_061, 2_700)), Some(Some(0)));
        assert_eq!(faults.excuse_copy(copy(999, 1_061, 5_001)), None, "no kernel holds it that long");
        assert_eq!(faults.excuse_copy(copy(1_006, 1_061, 2_700)), None, "sent when the owner was gone");
        assert_eq!(faults.excuse_copy(copy(960, 1_061, 2_700)), None, "sent before");
    }

    #[test]
    fn as_many_silences_as_expected_are_found() {
        let mut faults = Faults::default();
        faults.expect(1);
        for micros in [0, 900, 20_000, 20_900, 50_000, 50_900, 71_000] {
            faults.on_arrival(Nanos::from_micros(micros));
        }
        assert_eq!(faults.silences.len(), 3, "0.9 ms is no silence");
        assert_eq!(faults.excuse_unanswered(ms(30)), Some(None));
        assert_eq!(faults.excuse_unanswered(ms(66)), Some(None));
        assert_eq!(faults.excuse_copy(copy(20, 20, 50)), Some(None));
        faults.forget(Nanos::from_secs(10));
        assert_eq!(faults.silences.len(), 3, "each excuses something");
        let (found, surplus) = faults.conclude();
        let of: Vec<_> = found.iter().map(|f| (f.from, f.unaccepted, f.doubled)).collect();
        assert_eq!(of, [(Nanos::from_micros(20_900), 2, 1)], "all of it was due to one");
        assert_eq!(surplus, []);
    }

    #[test]
    fn a_short_silence_with_all_that_is_missing_outweighs_a_long_one() {
        let mut faults = Faults::default();
        faults.expect(2);
        // At first nobody sends anything; later an owner is replaced so fast that it is hardly seen, and another slowly.
        let holes = [(0, 36), (700, 702), (800, 806)];
        let silent = |at: u64| holes.iter().any(|(from, until)| (from * 2 + 1..until * 2).contains(&at));
        for at in (0..2_000).filter(|at| !silent(*at)) {
            faults.on_arrival(Nanos::from_micros(at * 500));
        }
        assert_eq!(faults.excuse_copy(copy(700, 700, 702)), Some(None));
        assert_eq!(faults.excuse_unanswered(ms(701)), Some(None));
        assert_eq!(faults.excuse_unanswered(ms(800)), Some(None));
        assert_eq!(faults.excuse_unanswered(ms(801)), Some(None));
        assert_eq!(faults.excuse_unanswered(ms(2)), Some(None));
        let (found, surplus) = faults.conclude();
        let of: Vec<_> = found.iter().map(|f| (f.from, f.unaccepted, f.doubled)).collect();
        assert_eq!(of, [(ms(700), 1, 1), (ms(800), 2, 0)]);
        assert_eq!(surplus, [Wanting::Unanswered(ms(2))], "one more than was expected");
    }

    #[test]
    fn of_silences_that_excuse_nothing_the_longest_are_kept() {
        let mut faults = Faults::default();
        faults.expect(1);
        for at in [0, 2, 9, 12] {
            faults.on_arrival(ms(at));
        }
        faults.forget(Nanos::from_secs(10));
        let of: Vec<_> = faults.silences.iter().map(|f| (f.from, f.until)).collect();
        assert_eq!(of, [(ms(2), ms(9))]);
    }

    #[test]
    fn nothing_is_found_unless_it_is_expected() {
        let mut faults = Faults::default();
        faults.on_arrival(ms(0));
        faults.on_arrival(ms(500));
        assert_eq!(faults.excuse_unanswered(ms(30)), None);
    }
}
