//! The bodies of frames between shards. Sizes are fixed; what some carry behind them is said at each.

use zerocopy::byteorder::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// [`Start::flags`]: the receiver is a learner. It keeps entries behind `tail` until it has a snapshot.
pub const START_LEARN: u16 = 2;
/// [`Start::flags`]: the member has dropped what it held before, and nothing before its first entry survives elsewhere: it
/// begins with the first one.
pub const START_ANEW: u16 = 4;
/// [`Sealed::last_term`]: the member has dropped what it held.
pub const LOST: u32 = u32::MAX;
/// [`Seal::slot`]: every slot of the address.
pub const ALL_SLOTS: u16 = u16::MAX;

/// Owner to member: a run of entries of one slot, and how far the slot has got. With no entries it only
/// says the latter, and asks for an ack.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// The slot.
    pub slot: U16,
    /// The member whose outputs go out.
    pub master: U16,
    /// How many entries follow.
    pub count: U16,
    /// The owner's term.
    pub term: U32,
    /// Grows each time the owner names another master within the term; the highest wins.
    pub master_seq: U32,
    /// Position of the first entry (of the next one, if none follow).
    pub first: U64,
    /// Entries up to here are acked by a commit set.
    pub committed: U64,
    /// How many outputs of the slot are on the wire (an ordinal).
    pub released: U64,
    /// Entries up to here are held by every member.
    pub stable: U64,
}

/// Member to owner: what it holds, what it has executed, and what it would do next.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Ack {
    /// The slot.
    pub slot: U16,
    /// The term the member has installed.
    pub term: U32,
    /// The join version of the member's incarnation (its boot is the datagram's).
    pub join: U32,
    /// Entries up to here are held in order.
    pub held: U64,
    /// Entries up to here have run through the application.
    pub executed: U64,
    /// How many outputs the slot has produced up to `executed` (an ordinal).
    pub outputs: U64,
    /// The slot's next timer deadline in logical time as of `executed`; `u64::MAX`: none.
    pub deadline: U64,
    /// Position of the newest digest checkpoint; 0: none yet.
    pub digest_at: U64,
    /// The rolling digest over entries and outputs up to `digest_at`.
    pub digest: U64,
}

/// Member to owner: entries from here on are missing.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Nak {
    /// The slot.
    pub slot: U16,
    /// The term the member has installed.
    pub term: U32,
    /// The join version of the member's incarnation.
    pub join: U32,
    /// The first position that is missing.
    pub from: U64,
}

/// Member to owner: a run of outputs of one slot.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Outputs {
    /// The slot.
    pub slot: U16,
    /// The term the member has installed.
    pub term: U32,
    /// The join version of the member's incarnation.
    pub join: U32,
    /// Ordinal of the first output.
    pub first: U64,
}

/// Owner to member: send your kept outputs of this slot from this ordinal on.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Emit {
    /// The slot.
    pub slot: U16,
    /// The owner's term.
    pub term: U32,
    /// The first ordinal wanted.
    pub first: U64,
}

/// Owner to member: install this term; the log goes on behind `tail`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Start {
    /// The slot.
    pub slot: U16,
    /// See [`START_LEARN`] and [`START_ANEW`].
    pub flags: U16,
    /// The owner's term.
    pub term: U32,
    /// The join version that the receiver is expected to have.
    pub join: U32,
    /// The last position that the receiver holds and that is part of the term's log.
    pub tail: U64,
}

/// New owner to a node: promise to follow no lower term in this address's slots, and say what you hold.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Seal {
    /// The service address.
    pub address: U16,
    /// One slot of it, or [`ALL_SLOTS`].
    pub slot: U16,
    /// The owner's term.
    pub term: U32,
}

/// Member to new owner: what it holds of one slot, frozen until the owner's `Start`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sealed {
    /// The slot.
    pub slot: U16,
    /// The term that was promised.
    pub term: U32,
    /// The join version of the member's incarnation (its boot is the datagram's).
    pub join: U32,
    /// The term of the last entry held; 0: none.
    pub last_term: U32,
    /// The term of the entry before `first`; 0: none.
    pub before: U32,
    /// The first entry that is still kept.
    pub first: U64,
    /// The last entry held; kept is what lies between.
    pub held: U64,
    /// How many outputs the slot has produced up to `held`.
    pub outputs: U64,
    /// How many of them are on the wire, as far as the member was told.
    pub released: U64,
    /// Logical time of the last entry.
    pub last_time: U64,
    /// The next timer deadline; `u64::MAX`: none.
    pub deadline: U64,
}

/// New owner to the member whose log survives: send the entries from here on.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Fetch {
    /// The slot.
    pub slot: U16,
    /// The owner's term, which the member has promised.
    pub term: U32,
    /// The first position wanted.
    pub from: U64,
}

/// Answer to [`Fetch`]: a run of entries.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Fetched {
    /// The slot.
    pub slot: U16,
    /// How many entries follow.
    pub count: U16,
    /// The owner's term.
    pub term: U32,
    /// Position of the first of them.
    pub first: U64,
}

/// Ingress to owner: a client's datagram of a slot that the receiver owns, as far as the sender knows.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Forward {
    /// The service endpoint it came to.
    pub local: U16,
    /// The media port of its address, or 0.
    pub local_port: U16,
    /// The client's port.
    pub port: U16,
    /// The owner's term.
    pub term: U32,
    /// The client's address.
    pub ip: [u8; 16],
    /// The call it belongs to.
    pub call: U128,
}

/// Owner to the node that holds the address an output leaves from. Per slot and term they form a chain.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Deliver {
    /// The slot.
    pub slot: U16,
    /// The service endpoint it leaves from.
    pub local: U16,
    /// The media port of its address, or 0.
    pub local_port: U16,
    /// The client's port.
    pub port: U16,
    /// The owner's term.
    pub term: U32,
    /// The output's ordinal.
    pub ordinal: U64,
    /// The ordinal of the output before it that this node was given in this term; `u64::MAX`: none.
    pub previous: U64,
    /// The client's address.
    pub ip: [u8; 16],
}

/// Answer to [`Deliver`]: the kernel took it.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DeliverAck {
    /// The slot.
    pub slot: U16,
    /// The owner's term.
    pub term: U32,
    /// The output's ordinal.
    pub ordinal: U64,
}

/// Learner to member: send a part of your snapshot of this slot.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Pull {
    /// The slot.
    pub slot: U16,
    /// The term the learner has installed.
    pub term: U32,
    /// The least position the snapshot must be of.
    pub least: U64,
    /// The position of the snapshot begun; 0: make one.
    pub position: U64,
    /// The first byte wanted.
    pub offset: U32,
    /// How many bytes may come.
    pub room: U32,
}

/// Member to learner: a piece of a snapshot.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Chunk {
    /// The slot.
    pub slot: U16,
    /// The term of both.
    pub term: U32,
    /// The position the snapshot is of.
    pub position: U64,
    /// Where the piece belongs.
    pub offset: U32,
    /// How long the snapshot is.
    pub total: U32,
}

/// Owner to member, in passing: how many outputs of a slot are on the wire. Needs no answer.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Told {
    /// The slot.
    pub slot: U16,
    /// The owner's term.
    pub term: U32,
    /// How many outputs of the slot are on the wire (an ordinal).
    pub released: U64,
}
