//! Which of the pairs that a party has nominated is used.
//!
//! An agent nominates one pair (RFC 8445 section 8.1.1), or, as RFC 5245 allowed and many still do, each that works, over
//! and over: then the one of the highest priority is meant (RFC 5245 section 8.1.1.2). So a nomination of lower priority
//! waits while the higher one is repeated. It counts once that has stopped, or as soon as the party's media comes from
//! there: a telephone that has left its Wi-Fi goes on from what it has left.

use serde::{Deserialize, Serialize};

use super::line::Place;
use crate::types::Nanos;

/// An agent that goes on nominating a pair does so with each check of it, and checks at least every 6 s (RFC 7675 section
/// 5.1: every 5 s, give or take a fifth).
const REPEATED_WITHIN: Nanos = Nanos::from_secs(7);

/// One nomination: of the pair with this source, of this priority, when it was last said.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Nomination {
    source: Place,
    priority: u32,
    at: u64,
}

/// The nominations of one component.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Nominations {
    used: Option<Nomination>,
    /// The newest of another pair that is not used.
    waiting: Option<Nomination>,
}

impl Nominations {
    /// Where the party is.
    pub(super) fn used(&self) -> Option<Place> {
        self.used.map(|used| used.source)
    }

    /// A valid check came, which nominates the pair it came from, of this priority, or none.
    pub(super) fn check(&mut self, now: Nanos, nominated: Option<(Place, u32)>) {
        if let Some((source, priority)) = nominated {
            let new = Nomination { source, priority, at: now.0 };
            match self.used {
                Some(used) if used.source != source && used.priority > priority => self.waiting = Some(new),
                _ => {
                    self.used = Some(new);
                    self.waiting = self.waiting.filter(|waiting| waiting.source != source);
                }
            }
        }
        let over = |used: Nomination| now.since(Nanos(used.at)) >= REPEATED_WITHIN;
        if let (Some(used), Some(waiting)) = (self.used, self.waiting)
            && over(used)
            && waiting.at > used.at
        {
            (self.used, self.waiting) = (self.waiting, None);
        }
    }

    /// Media came from a source that is the party's. Whether another pair is used from now on.
    pub(super) fn hear(&mut self, source: Place) -> bool {
        let moved = self.waiting.is_some_and(|waiting| waiting.source == source);
        if moved {
            // Should this have been a late one, the next comes from the other pair again.
            std::mem::swap(&mut self.used, &mut self.waiting);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Place {
        Place { ip: [1; 16], port }
    }

    #[test]
    fn of_two_pairs_that_are_nominated_over_and_over_the_higher_is_used() {
        let mut nominations = Nominations::default();
        for round in 0..20 {
            let now = Nanos::from_secs(5 * round);
            nominations.check(now, Some((at(1), 50)));
            nominations.check(now, Some((at(2), 90)));
            assert_eq!(nominations.used(), Some(at(2)));
            nominations.check(now + Nanos::from_secs(2), None);
            (0..20).for_each(|_| assert!(!nominations.hear(at(2))));
        }
        nominations.check(Nanos::from_secs(100), Some((at(3), 90)));
        assert_eq!(nominations.used(), Some(at(3)), "of equals the newest");
    }

    #[test]
    fn a_lower_one_counts_when_the_higher_stops_or_media_comes_from_there() {
        let used = |second: u64| {
            let mut nominations = Nominations::default();
            nominations.check(Nanos::from_secs(0), Some((at(2), 90)));
            nominations.check(Nanos::from_secs(1), Some((at(1), 50)));
            nominations.check(Nanos::from_secs(second), None);
            nominations
        };
        assert_eq!(used(6).used(), Some(at(2)));
        assert_eq!(used(7).used(), Some(at(1)), "said once each, and nothing since");
        let mut moves = used(2);
        assert!(!moves.hear(at(2)) && moves.hear(at(1)) && !moves.hear(at(1)));
        assert_eq!(moves.used(), Some(at(1)));
        assert!(moves.hear(at(2)), "that one was late");
        assert_eq!(moves.used(), Some(at(2)));
    }
}
