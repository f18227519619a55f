//! Entries and outputs as they stand in logs and segments: a fixed header, then the payload.
//!
//! The form in a log and on the wire is the same, so filling a bundle is one copy. Little endian.

use crate::types::{CallKey, Cursor, Endpoint, LocalId, Nanos, Position, Term};
use zerocopy::byteorder::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The longest payload an entry or output can have: what fits one UDP datagram between nodes.
pub const MAX_PAYLOAD: usize = 65_000;

/// The longest output in bytes: an application may add a little to what it was sent. Longer ones are dropped
/// and counted.
pub const MAX_OUTPUT: usize = 65_300;

/// Length of an entry without its payload.
pub const ENTRY_HEADER_LEN: usize = size_of::<EntryHeader>();

/// Length of an output without its payload.
pub const OUTPUT_HEADER_LEN: usize = size_of::<OutputHeader>();

const PACKET: u8 = 1;
const TICK: u8 = 2;
const STAMPED: u8 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EntryHeader {
    kind: u8,
    reserved: u8,
    local: U16,
    local_port: U16,
    port: U16,
    len: U16,
    term: U32,
    time: U64,
    call: U128,
    ip: [u8; 16],
}

/// What an entry tells its members to execute.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A client's datagram.
    Packet {
        /// The call it belongs to.
        call: CallKey,
        /// Where it came from.
        source: Endpoint,
        /// The service endpoint it came to.
        local: LocalId,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// Time has passed: fire the timers that are due.
    Tick,
}

/// One entry of a slot's log.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Logical time, ns since 1970; never less than the entry before it.
    pub time: Nanos,
    /// The term in which an owner gave it its position. Two logs in which some position has the same term are the
    /// same up to there.
    pub term: Term,
    /// What to execute.
    pub kind: EntryKind<'a>,
}

impl<'a> Entry<'a> {
    /// Appends the entry to `out`. The payload must not be longer than [`MAX_PAYLOAD`].
    pub fn write(&self, out: &mut Vec<u8>) {
        let (kind, call, source, local, payload): (_, _, _, _, &[u8]) = match self.kind {
            EntryKind::Packet { call, source, local, payload } => (PACKET, call.0, source, local, payload),
            EntryKind::Tick => (TICK, 0, Endpoint { ip: [0; 16], port: 0 }, LocalId::endpoint(0), &[]),
        };
        assert!(payload.len() <= MAX_PAYLOAD, "entry payload of {} bytes", payload.len());
        let header = EntryHeader {
            kind,
            reserved: 0,
            local: U16::new(local.endpoint),
            local_port: U16::new(local.port),
            port: U16::new(source.port),
            len: U16::new(payload.len() as u16),
            term: U32::new(self.term.0),
            time: U64::new(self.time.0),
            call: U128::new(call),
            ip: source.ip,
        };
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(payload);
    }

    /// Reads the entry at the start of `bytes`: the entry, its own bytes, and the rest. `None` if there is
    /// no whole, valid entry.
    pub fn read(bytes: &'a [u8]) -> Option<(Entry<'a>, &'a [u8], &'a [u8])> {
        let (header, rest) = EntryHeader::ref_from_prefix(bytes).ok()?;
        let len = usize::from(header.len.get());
        let payload = rest.get(..len)?;
        let kind = match header.kind {
            PACKET => EntryKind::Packet {
                call: CallKey(header.call.get()),
                source: Endpoint { ip: header.ip, port: header.port.get() },
                local: LocalId { endpoint: header.local.get(), port: header.local_port.get() },
                payload,
            },
            TICK if len == 0 => EntryKind::Tick,
            _ => return None,
        };
        let (own, rest) = bytes.split_at(ENTRY_HEADER_LEN + len);
        let (time, term) = (Nanos(header.time.get()), Term(header.term.get()));
        Some((Entry { time, term, kind }, own, rest))
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct OutputHeader {
    position: U64,
    index: U16,
    flags: u8,
    reserved: u8,
    local: U16,
    local_port: U16,
    port: U16,
    len: U16,
    ip: [u8; 16],
}

/// One datagram an application wants sent, named by its cursor.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Output<'a> {
    /// The entry that caused it and its place among that entry's outputs.
    pub cursor: Cursor,
    /// The last two bytes are replaced on release by the id of the node whose output was taken.
    pub stamped: bool,
    /// The service endpoint it leaves from.
    pub local: LocalId,
    /// Where it goes.
    pub to: Endpoint,
    /// Its bytes.
    pub payload: &'a [u8],
}

impl<'a> Output<'a> {
    /// Appends the output to `out`. The payload must not be longer than [`MAX_PAYLOAD`].
    pub fn write(&self, out: &mut Vec<u8>) {
        assert!(self.payload.len() <= MAX_OUTPUT, "output payload of {} bytes", self.payload.len());
        let header = OutputHeader {
            position: U64::new(self.cursor.position.0),
            index: U16::new(self.cursor.index),
            flags: if self.stamped { STAMPED } else { 0 },
            reserved: 0,
            local: U16::new(self.local.endpoint),
            local_port: U16::new(self.local.port),
            port: U16::new(self.to.port),
            len: U16::new(self.payload.len() as u16),
            ip: self.to.ip,
        };
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(self.payload);
    }

    /// Reads the output at the start of `bytes`: the output, its own bytes, and the rest. `None` if there
    /// is no whole output.
    pub fn read(bytes: &'a [u8]) -> Option<(Output<'a>, &'a [u8], &'a [u8])> {
        let (header, rest) = OutputHeader::ref_from_prefix(bytes).ok()?;
        let len = usize::from(header.len.get());
        let payload = rest.get(..len)?;
        let (own, rest) = bytes.split_at(OUTPUT_HEADER_LEN + len);
        let output = Output {
            cursor: Cursor { position: Position(header.position.get()), index: header.index.get() },
            stamped: header.flags & STAMPED != 0,
            local: LocalId { endpoint: header.local.get(), port: header.local_port.get() },
            to: Endpoint { ip: header.ip, port: header.port.get() },
            payload,
        };
        Some((output, own, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| Endpoint { ip, port })
    }

    proptest! {
        #[test]
        fn an_entry_reads_back_as_written(
            time: u64, term: u32, call: u128, source in endpoint(), local: u16, local_port: u16,
            payload in proptest::collection::vec(any::<u8>(), 0..300), after in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let kind = EntryKind::Packet { call: CallKey(call), source, local: LocalId { endpoint: local, port: local_port }, payload: &payload };
            for kind in [kind, EntryKind::Tick] {
                let entry = Entry { time: Nanos(time), term: Term(term), kind };
                let mut bytes = Vec::new();
                entry.write(&mut bytes);
                let whole = bytes.len();
                bytes.extend_from_slice(&after);
                let (read, own, rest) = Entry::read(&bytes).unwrap();
                prop_assert_eq!(read, entry);
                prop_assert_eq!(own.len(), whole);
                prop_assert_eq!(rest, &after[..]);
                prop_assert!(Entry::read(&bytes[..whole - 1]).is_none());
            }
        }

        #[test]
        fn an_output_reads_back_as_written(
            position: u64, index: u16, stamped: bool, local: u16, local_port: u16, to in endpoint(),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let cursor = Cursor { position: Position(position), index };
            let output = Output { cursor, stamped, local: LocalId { endpoint: local, port: local_port }, to, payload: &payload };
            let mut bytes = Vec::new();
            output.write(&mut bytes);
            let (read, own, rest) = Output::read(&bytes).unwrap();
            prop_assert_eq!(read, output);
            prop_assert_eq!(own.len(), bytes.len());
            prop_assert!(rest.is_empty());
            prop_assert!(Output::read(&bytes[..bytes.len() - 1]).is_none());
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Entry::read(&bytes);
            let _ = Output::read(&bytes);
        }
    }
}
