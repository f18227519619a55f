//! How far this node's workers are: told to the peers in beats, so that a stuck worker is noticed while its
//! process still beats.

use super::awake::AwakeClock;
use crate::types::Nanos;

/// How long each worker of this node has been busy with one turn, for its own beats. A worker publishes a counter that
/// grows with each turn, and whether it is parked (asleep until something arrives).
#[derive(Clone, Debug)]
pub struct Workers {
    pause: Nanos,
    clock: AwakeClock,
    /// For each worker the turn last seen, and since when on the awake clock; None while parked.
    busy: Vec<Option<(u64, Nanos)>>,
}

impl Workers {
    /// `count` workers, watched by a loop that turns at least every `pause`.
    pub fn new(count: u16, pause: Nanos) -> Workers {
        Workers { pause, clock: AwakeClock::default(), busy: vec![None; count.into()] }
    }

    /// What the worker of `shard` has published.
    pub fn on_progress(&mut self, now: Nanos, shard: u16, turn: u64, parked: bool) {
        let awake = self.clock.read(now, self.pause);
        let Some(busy) = self.busy.get_mut(usize::from(shard)) else { return };
        match busy {
            Some((seen, _)) if *seen == turn && !parked => {}
            _ => *busy = (!parked).then_some((turn, awake)),
        }
    }

    /// For each worker, in ms, how long its current turn has been seen to take; 0 when parked.
    pub fn stalls(&mut self, now: Nanos) -> impl Iterator<Item = u16> {
        let awake = self.clock.read(now, self.pause);
        let stall = move |since: Nanos| awake.since(since).0 / 1_000_000;
        self.busy
            .iter()
            .map(move |busy| busy.map_or(0, |(_, since)| u16::try_from(stall(since)).unwrap_or(u16::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::Workers;
    use crate::types::Nanos;

    fn us(micros: u64) -> Nanos {
        Nanos::from_micros(1_000_000 + micros)
    }

    #[test]
    fn a_worker_stalls_while_it_is_busy_with_one_turn() {
        let mut workers = Workers::new(3, Nanos::from_millis(1));
        for ms in 0..=10 {
            let now = us(ms * 1_000);
            workers.on_progress(now, 0, ms, false);
            workers.on_progress(now, 1, 5, ms == 2);
            workers.on_progress(now, 2, 9, true);
        }
        assert_eq!(workers.stalls(us(10_000)).collect::<Vec<_>>(), [0, 7, 0]);
        // The watcher itself was stopped: at most its own pause counts.
        assert_eq!(workers.stalls(us(900_000)).collect::<Vec<_>>(), [1, 8, 0]);
    }
}
