//! A smoothed delay and its variation, after RFC 6298 (Jacobson's estimator).

use crate::types::Nanos;

/// Estimates how long something usually takes and when its absence means that it was lost.
#[derive(Copy, Clone, Debug)]
pub struct Rtt {
    smoothed: Nanos,
    variation: Nanos,
    floor: Nanos,
    cap: Nanos,
}

impl Rtt {
    /// An estimator without samples; its timeout is within `floor..=cap`, and `initial` before the first
    /// sample.
    pub fn new(initial: Nanos, floor: Nanos, cap: Nanos) -> Rtt {
        Rtt { smoothed: initial, variation: Nanos::ZERO, floor, cap }
    }

    /// Takes one measured delay (RFC 6298 section 2: alpha 1/8, beta 1/4).
    pub fn sample(&mut self, delay: Nanos) {
        let delay = delay.0.min(self.cap.0);
        let deviation = delay.abs_diff(self.smoothed.0);
        self.variation = Nanos((self.variation.0 * 3 + deviation) / 4);
        self.smoothed = Nanos((self.smoothed.0 * 7 + delay) / 8);
    }

    /// The smoothed delay.
    pub fn smoothed(&self) -> Nanos {
        self.smoothed
    }

    /// The delay after which something sent counts as lost: smoothed + 4 variations, within the bounds.
    pub fn timeout(&self) -> Nanos {
        Nanos((self.smoothed.0 + 4 * self.variation.0).clamp(self.floor.0, self.cap.0))
    }

    /// The timeout after `retries` fruitless ones: doubled each time (RFC 6298 section 5.5), up to the cap.
    pub fn backed_off(&self, retries: u8) -> Nanos {
        Nanos((self.timeout().0 << retries.min(16)).min(self.cap.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_settles_on_a_steady_delay_and_grows_with_jitter() {
        let mut rtt = Rtt::new(Nanos::from_millis(5), Nanos::from_micros(100), Nanos::from_millis(200));
        (0..100).for_each(|_| rtt.sample(Nanos::from_micros(300)));
        let steady = rtt.timeout();
        assert!(steady < Nanos::from_micros(330), "{steady:?}");
        (0..100).for_each(|n| rtt.sample(Nanos::from_micros(if n % 2 == 0 { 100 } else { 900 })));
        assert!(rtt.timeout() > Nanos::from_millis(1), "{:?}", rtt.timeout());
    }

    #[test]
    fn timeouts_stay_within_their_bounds() {
        let mut rtt = Rtt::new(Nanos::from_millis(1), Nanos::from_millis(1), Nanos::from_millis(50));
        rtt.sample(Nanos::from_secs(100));
        assert!(rtt.timeout() <= Nanos::from_millis(50));
        (0..200).for_each(|_| rtt.sample(Nanos(1)));
        assert_eq!(rtt.timeout(), Nanos::from_millis(1));
        assert_eq!(rtt.backed_off(3), Nanos::from_millis(8));
        assert_eq!(rtt.backed_off(255), Nanos::from_millis(50));
    }
}
