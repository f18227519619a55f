//! When a control looks at its links between beats. Their datagrams wake nobody, so each step of a decision would wait
//! for half a beat; while an address moves, clients wait with it.

use super::{Council, Turn};
use crate::types::Nanos;

/// How long all is done without waiting for beats, after an event that an address may move for.
const ASTIR_FOR: Nanos = Nanos::from_millis(20);
/// How long before the end of DEAD_AFTER.
const LOOK_OUT: Nanos = Nanos::from_millis(2);

impl Council {
    /// Something has happened that voters and owners will have to act on.
    pub(in crate::engine::control) fn stir(&mut self, now: Nanos) {
        self.astir_until = now + ASTIR_FOR;
    }

    /// Looks out for the end of DEAD_AFTER of an owner or of the leader, and goes on for a while then; not for ever: without
    /// a majority nothing follows from it.
    pub(super) fn watch(&mut self, turn: &Turn<'_>) {
        let dead_after = self.config.dead_after;
        let begin = Nanos(dead_after.0.saturating_sub(LOOK_OUT.0).max(dead_after.0 / 2));
        let near = begin..dead_after + ASTIR_FOR;
        let silent = turn.peers.iter().zip(turn.silence);
        let mut silent = silent.filter(|(_, silence)| silence.is_some_and(|s| near.contains(&s)));
        if silent.any(|(p, _)| self.has_address(p.node) || self.leader() == Some(p.node)) {
            self.astir_until = self.astir_until.max(turn.now + Nanos(1));
        }
    }

    /// Whether answers are awaited that decide something.
    pub(in crate::engine::control) fn is_astir(&self, now: Nanos) -> bool {
        now < self.astir_until
    }
}
