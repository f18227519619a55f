//! Which counters of a sender have been seen: a sliding bitmap that is moved by words, never shifted by bits
//! (RFC 6479). Late and reordered datagrams within the window are taken once; anything older is refused.

/// Words of the ring; a power of two, so that a counter's word is a mask away.
const WORDS: usize = 128;
/// How far behind the highest counter a datagram may arrive. One word is always being cleared (RFC 6479).
pub const WINDOW: u64 = (WORDS as u64 - 1) * 64;

/// The window of one sender.
pub struct ReplayWindow {
    highest: u64,
    seen: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> ReplayWindow {
        ReplayWindow { highest: 0, seen: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// Whether `counter` has not been seen and is not too old to tell. Counters start at 1; 0 is never fresh.
    pub fn is_fresh(&self, counter: u64) -> bool {
        if counter > self.highest {
            return true;
        }
        counter != 0 && self.highest - counter < WINDOW && self.seen[word(counter)] & bit(counter) == 0
    }

    /// Marks a counter as seen. Only call it for an authenticated datagram with a fresh counter.
    pub fn accept(&mut self, counter: u64) {
        if counter > self.highest {
            let words_ahead = (counter / 64 - self.highest / 64).min(WORDS as u64);
            for ahead in 1..=words_ahead {
                self.seen[word(self.highest.wrapping_add(ahead * 64))] = 0;
            }
            self.highest = counter;
        }
        self.seen[word(counter)] |= bit(counter);
    }
}

fn word(counter: u64) -> usize {
    (counter / 64) as usize & (WORDS - 1)
}

fn bit(counter: u64) -> u64 {
    1 << (counter & 63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn edges() {
        const { assert!(WINDOW >= 4096) };
        let mut window = ReplayWindow::default();
        assert!(!window.is_fresh(0));
        window.accept(1);
        assert!(!window.is_fresh(1));
        window.accept(WINDOW + 1);
        assert!(window.is_fresh(2) && !window.is_fresh(1), "one behind the window is too old");
        window.accept(u64::MAX);
        assert!(!window.is_fresh(u64::MAX) && window.is_fresh(u64::MAX - WINDOW + 1));
        assert!(!window.is_fresh(u64::MAX - WINDOW));
    }

    #[test]
    fn a_jump_that_laps_the_ring_leaves_nothing_behind() {
        for jump in [64, 4096, WINDOW, WORDS as u64 * 64, WORDS as u64 * 64 + 1, 1 << 40] {
            let mut window = ReplayWindow::default();
            (1..=300).for_each(|c| window.accept(c));
            window.accept(300 + jump);
            for counter in 301..300 + jump.min(20_000) {
                let expected = 300 + jump - counter < WINDOW;
                assert_eq!(window.is_fresh(counter), expected, "counter {counter} after a jump of {jump}");
            }
        }
    }

    proptest! {
        #[test]
        fn same_as_a_set(steps in proptest::collection::vec((0u64..20_000, 0u64..3), 1..300)) {
            let mut window = ReplayWindow::default();
            let mut seen = BTreeSet::new();
            let mut base = 0;
            for (offset, advance) in steps {
                base += advance * 5_000;
                let counter = base + offset;
                let highest = seen.last().copied().unwrap_or(0);
                let fresh = counter != 0 && !seen.contains(&counter) && counter + WINDOW > highest;
                prop_assert_eq!(window.is_fresh(counter), fresh);
                if fresh {
                    window.accept(counter);
                    seen.insert(counter);
                }
            }
        }
    }
}
