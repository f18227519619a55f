//! The seam between the slot log and the application: a slot's call table as the log's machine.

use crate::app::table::{CallTable, OutputSink, Place, TableLimits};
use crate::app::{CallApp, Inbound};
use crate::proto::member::{Kept, Machine};
use crate::types::{Endpoint, LocalId, Position};
use crate::wire::record::{Entry, EntryKind};

/// A slot's calls and the application that runs them.
pub(super) struct SlotMachine<'a, A: CallApp> {
    pub(super) app: &'a A,
    pub(super) table: &'a mut CallTable<A>,
    pub(super) limits: TableLimits,
}

struct Sink<'a, 'k>(&'a mut Kept<'k>);

impl OutputSink for Sink<'_, '_> {
    fn output(&mut self, stamped: bool, local: LocalId, to: Endpoint, bytes: &[u8]) {
        self.0.push(stamped, local, to, bytes);
    }
}

impl<A: CallApp> Machine for SlotMachine<'_, A> {
    fn execute(&mut self, position: Position, entry: &Entry<'_>, outputs: &mut Kept<'_>) {
        let place = Place { position, time: entry.time };
        let mut sink = Sink(outputs);
        match entry.kind {
            EntryKind::Packet { call, source, local, payload } => {
                let packet = Inbound { source, local, payload };
                self.table.on_packet(self.app, place, call, &packet, &mut sink);
            }
            EntryKind::Tick => self.table.on_tick(self.app, place, &mut sink),
        }
    }

    fn reset(&mut self) {
        *self.table = CallTable::new(self.table.slot(), self.limits);
    }
}
