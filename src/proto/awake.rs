//! Time as a loop may hold it against others: a loop that promises to turn every so often, and then sleeps
//! through its own appointment, has learnt nothing about anybody in the time by which it came late.

use crate::types::Nanos;

/// A clock that leaves out the time by which its loop came late.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct AwakeClock {
    turn: Option<Nanos>,
    awake: Nanos,
}

impl AwakeClock {
    /// Reads it in the turn of time `now`; a turn is late when it comes more than `pause` after the last.
    pub(super) fn read(&mut self, now: Nanos, pause: Nanos) -> Nanos {
        let elapsed = now.since(self.turn.unwrap_or(now));
        self.awake = self.awake + elapsed.min(pause);
        self.turn = Some(self.turn.unwrap_or(now).max(now));
        self.awake
    }

    /// The last turn's time.
    pub(super) fn turn(&self) -> Option<Nanos> {
        self.turn
    }

    /// What the last reading said.
    pub(super) fn awake(&self) -> Nanos {
        self.awake
    }
}
