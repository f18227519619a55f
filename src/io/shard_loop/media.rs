//! What the loop does with media ports, notices and files that others may have moved.

use std::io;

use super::{Batch, ShardCore, ShardLoop};
use crate::app::Inbound;
use crate::io::outgoing::Outgoing;
use crate::io::sys_time;
use crate::types::{CallKey, Nanos, Now};

/// How long a turn opens or closes ports.
const SETTLE_FOR: Nanos = Nanos::from_micros(500);

impl<C: ShardCore> ShardLoop<C> {
    /// Opens and closes some of the media ports that are to be, after all service endpoints: signalling comes first.
    pub(super) fn settle_media(&mut self, now: Now) -> io::Result<()> {
        let media = &mut self.parts.outgoing.media;
        if media.due() > now.mono {
            return Ok(());
        }
        let (began, (before, _)) = (sys_time::mono(), media.opened());
        let since = *self.settling_since.get_or_insert(began);
        media.settle(now.mono, self.parts.poll.registry(), || sys_time::mono().since(began) < SETTLE_FOR)?;
        if media.due() == Nanos::MAX {
            let (open, wanted) = media.opened();
            let ms = sys_time::mono().since(since).as_millis_f64();
            if open >= before {
                tracing::info!(shard = self.parts.shard, open, wanted, ms, "media ports open");
            }
            self.settling_since = None;
        }
        Ok(())
    }

    /// Reads media ports that have something.
    pub(super) fn receive_media(&mut self, now: Now) {
        for _ in 0..self.parts.outgoing.media.reads() {
            let Some((inlet, count)) = self.parts.outgoing.media.recv(&mut self.media_batch) else { return };
            self.parts.outgoing.tally.media_received += count as u64;
            for datagram in 0..count {
                let Some(received) = self.media_batch.get(datagram) else { return };
                match self.parts.outgoing.media.arrived(inlet, received.destination) {
                    Some(local) => self.take_client(now, local, datagram, Batch::Media),
                    None => {
                        self.parts.outgoing.tally.client_received += 1;
                        self.parts.outgoing.tally.dropped.media_not_held += 1;
                    }
                }
            }
        }
    }

    /// Takes what the keepers of the slots owned here are to hear, and opens files anew that were asked to be.
    pub(super) fn take_notices(&mut self, now: Now) {
        let cell = &self.parts.cells.shards[usize::from(self.parts.shard)];
        while let Some(notice) = cell.take_notice() {
            let count = self.core.on_notice(now, &notice);
            if let Some(told) = notice.told {
                // Whoever asked may have stopped waiting.
                let _ = told.send(count);
            }
        }
        let asked = self.parts.cells.reopened();
        if self.reopened != asked {
            self.reopened = asked;
            self.parts.outgoing.records.iter_mut().for_each(|records| records.reopen());
        }
    }
}

impl Outgoing {
    /// Gives a client's datagram to the core that has its slot, or answers it if it begins a call too many.
    pub(super) fn take(
        &mut self,
        now: Now,
        core: &mut impl ShardCore,
        key: CallKey,
        packet: &Inbound<'_>,
        (behind, answer): (Nanos, &mut Vec<u8>),
    ) {
        answer.clear();
        if !core.admit(now, key, packet, behind, answer) {
            if !answer.is_empty() {
                self.answer(packet.local, packet.source, answer);
            }
        } else if !core.on_client(now, key, packet) {
            self.tally.dropped.client_refused += 1;
        }
    }
}
