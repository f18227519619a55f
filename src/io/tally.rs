//! What one thread received, sent and dropped, by reason: plain counters, written by that thread alone and
//! merged when somebody asks.

use serde::Serialize;

use crate::wire::datagram::OpenError;

/// Counters of one thread since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Datagrams received from clients.
    pub client_received: u64,
    /// Datagrams queued for clients, less those the kernel refused.
    pub client_sent: u64,
    /// Of those received, the ones at media ports.
    pub media_received: u64,
    /// Datagrams sent from media ports.
    pub media_sent: u64,
    /// Call records released.
    pub records: u64,
    /// Times the file of call records could not be written.
    pub record_errors: u64,
    /// New calls answered here, outside the log, because there are too many.
    pub client_turned_away: u64,
    /// Notices of the application handed to the shards of this node.
    pub notices: u64,
    /// Client datagrams handed to another shard, because the kernel gave them to this one.
    pub handed_over: u64,
    /// Times a client socket's send buffer was full.
    pub client_blocked: u64,
    /// Times replies were held back because the lease was over.
    pub client_held: u64,
    /// Sealed datagrams received from nodes and tools, good or bad.
    pub peer_received: u64,
    /// Sealed datagrams queued for other nodes.
    pub peer_sent: u64,
    /// Of them, those to several nodes at once.
    pub multicast_sent: u64,
    /// Bytes of them.
    pub peer_sent_bytes: u64,
    /// Times a peer socket's send buffer was full.
    pub peer_blocked: u64,
    /// ICMP port-unreachable reports.
    pub refused: u64,
    /// Peer sockets for which the kernel would not cut datagrams (no UDP_SEGMENT).
    pub gso_off: u64,
    /// Turns of the loop.
    pub turns: u64,
    /// Turns that began more than a millisecond after the deadline they slept for.
    pub late_turns: u64,
    /// What was dropped.
    pub dropped: Dropped,
}

/// Datagrams that went no further, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// From a client: longer than can be logged, cut off on receipt.
    pub client_too_long: u64,
    /// From a client: belonging to no call.
    pub client_no_call: u64,
    /// From a client: steered to a media port that this shard does not have, or has lost with its service address.
    pub media_not_held: u64,
    /// From a client: refused by the slot's owner side (not the owner, window full, no commit set).
    pub client_refused: u64,
    /// From a client: the ring to the shard that has its slot was full.
    pub ring_full: u64,
    /// To a client: this node holds no such service endpoint.
    pub client_no_endpoint: u64,
    /// To a client: over the bound of the send queue.
    pub client_queue_full: u64,
    /// To a client: its service address was lost before the reply could leave.
    pub client_address_lost: u64,
    /// To a client: refused by the kernel (no route, firewall, too long).
    pub client_send_failed: u64,
    /// To a client: the send buffer of its media port was full.
    pub media_send_full: u64,
    /// Call records that went to the log, because the file could not be written for too long.
    pub records_logged: u64,
    /// Call records of a node that has no TANDEM_CDR.
    pub records_unwanted: u64,
    /// Notices of the application: a shard that has too many to hear.
    pub notices_full: u64,
    /// To a node: over the bound of the send queue.
    pub peer_queue_full: u64,
    /// To a node: refused by the kernel (nobody listens, no route, firewall).
    pub peer_send_failed: u64,
    /// To a node: its life is not known yet, nobody has greeted.
    pub peer_not_met: u64,
    /// Between nodes: opened, but by a thread it is not for, or naming no life where it must.
    pub peer_misdirected: u64,
    /// Between nodes: cut off on receipt.
    pub peer_too_long: u64,
    /// Between nodes: not opened.
    pub not_opened: NotOpened,
    /// From an operator's tool: not understood, or too many at once.
    pub questions: u64,
    /// Dropped by the kernel, because this thread read too slowly.
    pub kernel_receive_full: u64,
}

/// Datagrams that could not be opened, by reason: see [`OpenError`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct NotOpened([u64; OpenError::ALL.len()]);

impl NotOpened {
    /// Counts one.
    pub fn count(&mut self, reason: OpenError) {
        self.0[reason as usize] += 1;
    }

    /// How many for this reason.
    pub fn of(&self, reason: OpenError) -> u64 {
        self.0[reason as usize]
    }

    /// How many for all reasons.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Serialize for NotOpened {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(OpenError::ALL.iter().map(|reason| (reason.name(), self.of(*reason))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_written_by_name() {
        let mut dropped = Dropped::default();
        dropped.not_opened.count(OpenError::Forged);
        dropped.not_opened.count(OpenError::Forged);
        dropped.not_opened.count(OpenError::Short);
        assert_eq!((dropped.not_opened.of(OpenError::Forged), dropped.not_opened.total()), (2, 3));
        let json = serde_json::to_value(&dropped).unwrap();
        assert_eq!(json["not_opened"]["forged"], 2);
        assert_eq!(json["not_opened"]["short"], 1);
        assert_eq!(json["not_opened"]["replayed"], 0);
    }
}
