//! Notices: what the cluster itself tells the application, through the log, so that every member hears it at the same
//! entry. A notice is an entry for the keeper of a slot ([`CallKey::keeper`]) that no client has sent.

use super::shard::Shard;
use crate::app::{CallApp, Inbound};
use crate::types::{CallKey, Endpoint, LocalId, Now};
use std::sync::Arc;

/// Whom a notice comes from.
const NOBODY: Endpoint = Endpoint { ip: [0; 16], port: 0 };

impl<A: CallApp> Shard<A> {
    /// Tells the keepers of all slots that are owned here. `founding`: and, before anything else, those of slots whose
    /// log begins here from now on. Returns how many were told.
    pub fn on_notice(&mut self, now: Now, notice: &[u8], founding: bool) -> usize {
        if founding {
            self.config.founding = Some(Arc::from(notice));
        }
        let mut count = 0;
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let here = slot.owner.is_some() || slot.recovery.is_some();
            count += usize::from(here && self.tell_keeper(now, index, notice));
        }
        count
    }

    /// The log of a slot begins here: its keeper learns what those of the others know.
    pub(super) fn found(&mut self, now: Now, index: usize) {
        let Some(notice) = self.config.founding.clone() else { return };
        self.tell_keeper(now, index, &notice);
    }

    /// Tells the keepers of slots whose master or owner has become another since the last turn, once each.
    pub(super) fn tell_of_takeovers(&mut self, now: Now) {
        let Some(notice) = self.config.takeover.clone() else { return };
        let mut moved = std::mem::take(&mut self.moved);
        moved.sort_unstable();
        moved.dedup();
        for index in moved {
            self.tell_keeper(now, usize::from(index), &notice);
        }
    }

    /// Whether it became an entry, or will; a notice that is dropped is counted as a client's packet is.
    fn tell_keeper(&mut self, now: Now, index: usize, notice: &[u8]) -> bool {
        let key = CallKey::keeper(self.slot_at(index));
        self.on_client(now, key, &Inbound { source: NOBODY, local: LocalId::NOTICE, payload: notice }).is_ok()
    }
}
