//! Logical time: what an owner stamps entries with.
//!
//! It advances with elapsed monotonic time and is slewed toward wall time, so it neither jumps with a
//! stepped wall clock nor goes back. Wall time further away than MAX_SKEW is not believed at all.

use crate::types::{Nanos, Now};

/// Slewing changes the speed of logical time by at most this part (500 ppm, as adjtime(3) does).
const SLEW_PER_MILLION: u64 = 500;

/// Wall time further away than this is taken for a mistake (of an operator, or of a time server).
pub const MAX_SKEW: Nanos = Nanos::from_secs(10);

/// One shard's logical clock.
#[derive(Copy, Clone, Debug)]
pub struct LogicalClock {
    logical: Nanos,
    mono: Nanos,
}

impl LogicalClock {
    /// A clock that starts at the wall time of `now`.
    pub fn new(now: Now) -> LogicalClock {
        LogicalClock { logical: now.wall, mono: now.mono }
    }

    /// A clock that goes on from `last`, the logical time recovered from another owner's entries.
    pub fn resume(last: Nanos, now: Now) -> LogicalClock {
        LogicalClock { logical: last, mono: now.mono }
    }

    /// An entry of a slot says that it is `time` already: so it is, unless that is further away than MAX_SKEW. Returns by
    /// how much only that slot is ahead: its last owner's mistake must not become that of all others.
    pub fn advance(&mut self, time: Nanos, now: Now) -> Nanos {
        let ahead = time.since(self.read(now));
        if ahead > MAX_SKEW {
            return ahead;
        }
        if ahead > Nanos::ZERO {
            *self = LogicalClock::resume(time, now);
        }
        Nanos::ZERO
    }

    /// Logical time, in ns since 1970; never less than it said before.
    pub fn read(&mut self, now: Now) -> Nanos {
        let elapsed = now.mono.since(self.mono);
        let steady = self.logical + elapsed;
        let most = Nanos(elapsed.0.saturating_mul(SLEW_PER_MILLION) / 1_000_000);
        self.logical = if now.wall >= steady {
            let ahead = now.wall - steady;
            if ahead > MAX_SKEW { steady } else { steady + ahead.min(most) }
        } else {
            let behind = steady - now.wall;
            if behind > MAX_SKEW { steady } else { steady - behind.min(most) }
        };
        self.mono = self.mono.max(now.mono);
        self.logical
    }

    /// Monotonic time at which logical time will have reached `deadline`, if nothing is slewed.
    pub fn when(&self, deadline: Nanos) -> Nanos {
        self.mono + deadline.since(self.logical)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(mono_ms: u64, wall_ms: u64) -> Now {
        Now { mono: Nanos::from_millis(mono_ms), wall: Nanos::from_millis(wall_ms) }
    }

    #[test]
    fn it_follows_monotonic_time_and_never_goes_back() {
        let mut clock = LogicalClock::new(now(0, 1_000_000));
        let mut last = Nanos::ZERO;
        for (mono, wall) in [(10, 1_000_010), (20, 999_000), (30, 5), (25, 1_000_030), (3_000, 1_900_000)] {
            let read = clock.read(now(mono, wall));
            assert!(read >= last);
            last = read;
        }
        assert!(last < Nanos::from_millis(1_003_100), "a wall clock far ahead is not believed: {last:?}");
    }

    #[test]
    fn a_small_error_is_slewed_away_slowly() {
        let mut clock = LogicalClock::new(now(0, 1_000_000));
        let read = clock.read(now(1_000, 1_001_100));
        assert_eq!(read, Nanos::from_millis(1_001_000) + Nanos::from_micros(500));
        let mut at = 1_000;
        while at < 400_000 {
            at += 1_000;
            clock.read(now(at, 1_000_100 + at));
        }
        assert_eq!(clock.read(now(at, 1_000_100 + at)), Nanos::from_millis(1_000_100 + at));
    }

    #[test]
    fn it_follows_an_entry_that_is_a_little_ahead_and_none_that_is_far_ahead() {
        let mut clock = LogicalClock::new(now(0, 1_000));
        assert_eq!(clock.advance(Nanos::from_millis(900), now(0, 1_000)), Nanos::ZERO);
        assert_eq!(clock.advance(Nanos::from_millis(3_000), now(0, 1_000)), Nanos::ZERO);
        assert_eq!(clock.read(now(0, 1_000)), Nanos::from_millis(3_000));
        let hour = Nanos::from_secs(3_600);
        assert_eq!(clock.advance(Nanos::from_millis(3_000) + hour, now(0, 1_000)), hour);
        assert_eq!(clock.read(now(0, 1_000)), Nanos::from_millis(3_000));
    }

    #[test]
    fn when_tells_the_moment_a_deadline_is_reached() {
        let mut clock = LogicalClock::new(now(5, 1_000));
        clock.read(now(10, 1_005));
        assert_eq!(clock.when(Nanos::from_millis(1_105)), Nanos::from_millis(110));
        assert_eq!(clock.when(Nanos::from_millis(3)), Nanos::from_millis(10));
    }
}
