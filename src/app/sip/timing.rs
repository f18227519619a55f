//! The times of RFC 3261, table 4, for UDP, in ns.

use super::state::{NEVER, Repeat};

/// The estimated round trip.
pub(super) const T1: u64 = 500_000_000;
/// The longest time between two copies of a request that is no INVITE, and of a response to one.
pub(super) const T2: u64 = 4_000_000_000;
/// How long a message may stay in the network.
pub(super) const T4: u64 = 5_000_000_000;
/// Timers B, D, F, H, J, L, M: when a transaction is given up.
pub(super) const GIVE_UP: u64 = 64 * T1;

impl Repeat {
    /// The first copy was just sent.
    pub(super) fn start(now: u64) -> Repeat {
        Repeat { at: now.saturating_add(T1), interval: T1 }
    }

    /// Whether a copy is due; if so the next one is set. `most` is the longest time between two: timer A has none.
    pub(super) fn is_due(&mut self, now: u64, most: u64) -> bool {
        if self.at == NEVER || self.at > now {
            return false;
        }
        self.interval = self.interval.saturating_mul(2).min(most);
        self.at = now.saturating_add(self.interval);
        true
    }

    /// A provisional response has come to a request that is no INVITE: it is repeated every T2 (RFC 3261 section
    /// 17.1.2.2).
    pub(super) fn slow_down(&mut self) {
        self.interval = T2;
    }

    pub(super) fn stop(&mut self) {
        *self = Repeat::OFF;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_double_up_to_their_most() {
        let times = |most: u64| {
            let mut repeat = Repeat::start(0);
            let mut times = Vec::new();
            while repeat.at < GIVE_UP {
                let now = repeat.at;
                assert!(!repeat.is_due(now - 1, most));
                assert!(repeat.is_due(now, most));
                times.push(now / 1_000_000);
            }
            times
        };
        assert_eq!(times(NEVER), [500, 1500, 3500, 7500, 15500, 31500]);
        assert_eq!(times(T2), [500, 1500, 3500, 7500, 11500, 15500, 19500, 23500, 27500, 31500]);
        let mut off = Repeat::OFF;
        assert!(!off.is_due(NEVER, T2));
    }
}
