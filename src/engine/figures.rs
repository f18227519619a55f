//! The application, and what it has to tell of the slots owned here: for status, never for the log.

use super::shard::Shard;
use crate::app::{CallApp, Figure, Inbound};
use crate::types::{Endpoint, LocalId, Now};
use std::collections::BTreeMap;

impl<A: CallApp> Shard<A> {
    /// The application.
    pub fn app(&self) -> &A {
        &self.app
    }

    /// Whether a call of a slot that this node is a member of has this media port, as far as is known here.
    pub fn has_call(&self, local: LocalId) -> bool {
        let nobody = Endpoint { ip: [0; 16], port: 0 };
        let packet = Inbound { source: nobody, local, payload: &[] };
        let Ok(key) = self.app.classify(&packet) else { return false };
        let seat = self.index(key.slot(self.map.slots).0).and_then(|index| self.slots[index].seat.as_ref());
        seat.is_some_and(|seat| self.app.resolve(seat.table.shared(), key, &packet).is_some())
    }

    /// The application's figures over the slots that are owned here and that this node is a member of, and how many calls
    /// they have (`calls`, without keepers).
    pub fn figures(&self, now: Now) -> BTreeMap<&'static str, u64> {
        let mut figures = BTreeMap::from([("calls", 0)]);
        let owned = self.slots.iter().filter(|slot| slot.owner.is_some());
        for table in owned.filter_map(|slot| slot.seat.as_ref()).map(|seat| &seat.table) {
            *figures.entry("calls").or_default() += table.clients_calls() as u64;
            self.app.figures(table.shared(), now.wall, &mut |name, figure| {
                let known = figures.entry(name).or_default();
                *known = match figure {
                    Figure::Sum(value) => *known + value,
                    Figure::Most(value) => value.max(*known),
                };
            });
        }
        figures
    }
}
