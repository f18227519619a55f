//! Floor 4: one shard (owner side, member side and application) and one control (detector and map).
//!
//! # The run-loop contract
//!
//! A driver (the epoll shell or the simulator) owns the sockets and clocks. Each turn of its loop it
//!
//! 1. reads the clocks once ([`Now`](crate::types::Now));
//! 2. hands over everything that arrived: [`Shard::on_peer`] for the opened plaintext of datagrams of
//!    other nodes, [`Shard::on_client`] for client datagrams, [`Shard::on_map`], [`Shard::on_lease`], [`Shard::on_notice`],
//!    [`Shard::on_join`] and [`Shard::on_suspects`] when the control's view changed, and [`Shard::on_timeout`] when
//!    [`Shard::next_timeout`] has passed;
//! 3. calls [`Shard::flush`] once, which writes everything to be sent into the [`Outbox`];
//! 4. sends: datagrams for clients only while [`Shard::may_release`] says yes to a clock read just before; then calls
//!    [`Shard::on_sent`] with the number of client datagrams the kernel took, or that were dropped for good
//!    (`released` is advertised only after that). Datagrams that wait for a service address are dropped for good when the
//!    map gives it another term: somebody else may have said the same by then;
//! 5. sleeps until something arrives or `next_timeout`.
//!
//! No method blocks, reads a clock, or calls back into the driver other than through the outbox.

pub mod admission;
pub mod control;
mod figures;
mod flush;
mod lane;
mod machine;
mod notice;
mod opening;
mod relay;
pub mod report;
mod resync;
pub mod shard;
pub mod stats;
mod takeover;
#[cfg(test)]
mod tests;
mod timers;

pub use admission::AdmissionLimits;
pub use flush::SlotDigest;
pub use opening::OPENS_A_TURN;
pub use report::ShardReport;
pub use shard::{Shard, ShardConfig};
pub use stats::{DropReason, ShardStats};

use crate::types::{Endpoint, LocalId, NodeId, NodeSet, Slot};

/// Where a shard puts what is to be sent. Implemented by the drivers.
pub trait Outbox {
    /// One datagram (plaintext frames, unsealed) for shard `n` of node `to`, `n` being this shard's number.
    /// Consecutive datagrams for one node come one after the other, so that a driver can send them in one
    /// GSO call; all but the last of such a run have the same length, except for frames longer than a datagram, which
    /// have one of their own.
    fn peer(&mut self, to: NodeId, plaintext: &[u8]);

    /// One datagram (plaintext frames) for every node of `to`, for drivers that multicast.
    fn multicast(&mut self, to: NodeSet, plaintext: &[u8]);

    /// One reply for a client, to leave from `local`; or, by what `local` is, a line for the file of call records
    /// ([`LocalId::RECORD`]) or a notice for every shard of this node ([`LocalId::NOTICE`]). It counts as sent alike.
    fn client(&mut self, slot: Slot, local: LocalId, to: Endpoint, bytes: &[u8]);
}
