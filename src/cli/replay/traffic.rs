//! What a runner sends and when: the seam between the plans (a capture's clones, synthetic load) and the
//! sockets.

use crate::types::Nanos;

/// How much there is to keep account of. A *seat* is a place for one call at a time; its lanes and flows are
/// numbered in one go with those of all seats.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Calls at a time.
    pub seats: usize,
    /// What the engine takes for one call each (see `lanes`), of all seats.
    pub lanes: usize,
    /// Directed flows (source to destination), of all seats; a divisor of it is the flows of one seat.
    pub flows: usize,
    /// Flows that are the same but for the clone are of one kind.
    pub kinds: usize,
}

/// One datagram to send.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// When, since the start.
    pub intended: Nanos,
    /// The call's place.
    pub seat: u32,
    /// Below [`Shape::lanes`].
    pub lane: u32,
    /// Below [`Shape::flows`].
    pub flow: u32,
    /// Below [`Shape::kinds`].
    pub kind: u32,
    /// Grows within a lane and a flow.
    pub order: u32,
}

/// A schedule that waits for nobody.
pub trait Traffic {
    /// How much there is to keep account of.
    fn shape(&self) -> Shape;

    /// When the next datagram is due, since the start; never before one given out already. `None`: the end.
    fn due(&self) -> Option<Nanos>;

    /// Writes the next datagram's bytes into `bytes` (replacing what is there) and goes on to the one after.
    fn next(&mut self, bytes: &mut Vec<u8>) -> Option<Packet>;

    /// The number of datagrams to be sent in all, where that is known.
    fn total(&self) -> Option<u64>;

    /// A name for a kind of flow.
    fn kind_name(&self, kind: u32) -> String;
}
