//! The only source of chance in a simulated world: SplitMix64 (Steele, Lea, Flood: "Fast splittable
//! pseudorandom number generators", 2014), seeded by the world's seed.

/// A seeded generator; the same seed gives the same sequence everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator for `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(mix(seed ^ 0x7461_6e64_656d_5f73))
    }

    /// An independent generator, so that drawing more here does not shift what is drawn there.
    pub fn split(&mut self) -> Rng {
        Rng(self.draw())
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `low..=high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        debug_assert!(low <= high);
        let span = (high - low).wrapping_add(1);
        if span == 0 { self.draw() } else { low + self.draw() % span }
    }

    /// True `permille` times in 1,000.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.draw() % 1000 < permille
    }

    /// One of `items`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[(self.draw() % items.len() as u64) as usize]
    }

    /// Puts `items` in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.draw() % (i as u64 + 1)) as usize);
        }
    }
}

/// SplitMix64's finaliser: every input bit reaches every output bit.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn same_seed_same_sequence_and_ranges_hold() {
        let (mut a, mut b, mut c) = (Rng::new(7), Rng::new(7), Rng::new(8));
        let drawn: Vec<u64> = (0..100).map(|_| a.draw()).collect();
        assert!(drawn.iter().all(|d| *d == b.draw()));
        assert!(drawn.iter().any(|d| *d != c.draw()));
        assert!((0..1000).map(|_| a.range(3, 9)).all(|n| (3..=9).contains(&n)));
        let hits = (0..10_000).filter(|_| a.chance(250)).count();
        assert!((2_200..2_800).contains(&hits), "{hits}");
    }
}
