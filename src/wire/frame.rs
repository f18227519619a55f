//! Frames between shards: what a datagram holds once it has been opened.
//!
//! Every frame is a kind (u8), a length (u16) and that many bytes, so that a node one wire version older
//! can step over what it does not know. Little endian. ARCHITECTURE.md has the message table.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a frame's kind and length fields.
pub const FRAME_HEADER_LEN: usize = 3;

/// The longest body a frame can have.
pub const MAX_BODY: usize = u16::MAX as usize;

const PAD: u8 = 0;
const SEGMENT: u8 = 1;
const ACK: u8 = 2;
const NAK: u8 = 3;
const OUTPUTS: u8 = 4;
const EMIT: u8 = 5;
const START: u8 = 6;
const BUNDLE: u8 = 7;
const ECHO: u8 = 8;

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
    /// The owner's term.
    pub term: U32,
    /// The join version that the receiver is expected to have or to take.
    pub join: U32,
    /// The last position that survived into the term.
    pub tail: U64,
}

/// One frame of a datagram.
#[derive(Copy, Clone, Debug)]
pub enum Frame<'a> {
    /// A header and its entries (see [`super::record::Entry`]).
    Segment(&'a Segment, &'a [u8]),
    /// See [`Ack`].
    Ack(&'a Ack),
    /// See [`Nak`].
    Nak(&'a Nak),
    /// A header and its outputs (see [`super::record::Output`]).
    Outputs(&'a Outputs, &'a [u8]),
    /// See [`Emit`].
    Emit(&'a Emit),
    /// See [`Start`].
    Start(&'a Start),
    /// The number of the bundle this datagram ends, to be echoed.
    Bundle(u32),
    /// The newest bundle number received: the clock of the receiver's next bundle, and its RTT sample.
    Echo(u32),
}

/// A datagram whose frames do not fit its length, or whose known frame has the wrong size.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Iterates over the frames of a datagram; ends after the first malformed one.
#[derive(Copy, Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// The frames of `plaintext`.
    pub fn new(plaintext: &'a [u8]) -> Frames<'a> {
        Frames { rest: plaintext }
    }

    fn step(&mut self) -> Option<Result<Frame<'a>, Malformed>> {
        loop {
            let rest = std::mem::take(&mut self.rest);
            let kind = *rest.first()?;
            if kind == PAD {
                return None;
            }
            let Some(body) = rest.get(1..3).map(|l| usize::from(u16::from_le_bytes([l[0], l[1]]))) else {
                return Some(Err(Malformed));
            };
            let Some(frame) = rest.get(FRAME_HEADER_LEN..FRAME_HEADER_LEN + body) else {
                return Some(Err(Malformed));
            };
            let parsed = parse(kind, frame);
            if parsed != Some(Err(Malformed)) {
                self.rest = &rest[FRAME_HEADER_LEN + body..];
            }
            if let Some(result) = parsed {
                return Some(result);
            }
        }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Malformed>;
    fn next(&mut self) -> Option<Self::Item> {
        self.step()
    }
}

impl PartialEq for Frame<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Frame::Segment(a, x), Frame::Segment(b, y)) => a == b && x == y,
            (Frame::Outputs(a, x), Frame::Outputs(b, y)) => a == b && x == y,
            (Frame::Ack(a), Frame::Ack(b)) => a == b,
            (Frame::Nak(a), Frame::Nak(b)) => a == b,
            (Frame::Emit(a), Frame::Emit(b)) => a == b,
            (Frame::Start(a), Frame::Start(b)) => a == b,
            (Frame::Bundle(a), Frame::Bundle(b)) | (Frame::Echo(a), Frame::Echo(b)) => a == b,
            _ => false,
        }
    }
}

/// `None`: a kind this version does not know, to be stepped over.
fn parse(kind: u8, body: &[u8]) -> Option<Result<Frame<'_>, Malformed>> {
    fn whole<T: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8]) -> Result<&T, Malformed> {
        T::ref_from_bytes(body).map_err(|_| Malformed)
    }
    fn prefix<T: FromBytes + KnownLayout + Immutable + Unaligned>(
        body: &[u8],
    ) -> Result<(&T, &[u8]), Malformed> {
        T::ref_from_prefix(body).map_err(|_| Malformed)
    }
    Some(match kind {
        SEGMENT => prefix(body).map(|(h, rest)| Frame::Segment(h, rest)),
        ACK => whole(body).map(Frame::Ack),
        NAK => whole(body).map(Frame::Nak),
        OUTPUTS => prefix(body).map(|(h, rest)| Frame::Outputs(h, rest)),
        EMIT => whole(body).map(Frame::Emit),
        START => whole(body).map(Frame::Start),
        BUNDLE => whole::<U32>(body).map(|n| Frame::Bundle(n.get())),
        ECHO => whole::<U32>(body).map(|n| Frame::Echo(n.get())),
        _ => return None,
    })
}

/// Appends one frame: the fixed part `header`, then `tail`. Together they must fit [`MAX_BODY`].
fn put(out: &mut Vec<u8>, kind: u8, header: &[u8], tail: &[u8]) {
    let body = header.len() + tail.len();
    assert!(body <= MAX_BODY, "frame of {body} bytes");
    out.push(kind);
    out.extend_from_slice(&(body as u16).to_le_bytes());
    out.extend_from_slice(header);
    out.extend_from_slice(tail);
}

impl Frame<'_> {
    /// Appends the frame to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Frame::Segment(h, entries) => put(out, SEGMENT, h.as_bytes(), entries),
            Frame::Ack(h) => put(out, ACK, h.as_bytes(), &[]),
            Frame::Nak(h) => put(out, NAK, h.as_bytes(), &[]),
            Frame::Outputs(h, outputs) => put(out, OUTPUTS, h.as_bytes(), outputs),
            Frame::Emit(h) => put(out, EMIT, h.as_bytes(), &[]),
            Frame::Start(h) => put(out, START, h.as_bytes(), &[]),
            Frame::Bundle(n) => put(out, BUNDLE, &n.to_le_bytes(), &[]),
            Frame::Echo(n) => put(out, ECHO, &n.to_le_bytes(), &[]),
        }
    }

    /// How many bytes [`write`](Frame::write) appends.
    pub fn len(&self) -> usize {
        FRAME_HEADER_LEN
            + match self {
                Frame::Segment(_, entries) => size_of::<Segment>() + entries.len(),
                Frame::Ack(_) => size_of::<Ack>(),
                Frame::Nak(_) => size_of::<Nak>(),
                Frame::Outputs(_, outputs) => size_of::<Outputs>() + outputs.len(),
                Frame::Emit(_) => size_of::<Emit>(),
                Frame::Start(_) => size_of::<Start>(),
                Frame::Bundle(_) | Frame::Echo(_) => 4,
            }
    }

    /// Never: even an empty frame has a kind and a length.
    pub fn is_empty(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample<T: FromBytes>(fill: u8) -> T {
        T::read_from_bytes(&vec![fill; size_of::<T>()]).unwrap()
    }

    #[test]
    fn frames_read_back_as_written_and_padding_ends_them() {
        let (segment, ack, nak): (Segment, Ack, Nak) = (sample(1), sample(2), sample(3));
        let (outputs, emit, start): (Outputs, Emit, Start) = (sample(4), sample(5), sample(6));
        let frames = [
            Frame::Segment(&segment, b"entries"),
            Frame::Ack(&ack),
            Frame::Nak(&nak),
            Frame::Outputs(&outputs, b"outputs"),
            Frame::Emit(&emit),
            Frame::Start(&start),
            Frame::Bundle(7),
            Frame::Echo(8),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            let before = bytes.len();
            frame.write(&mut bytes);
            assert_eq!(bytes.len() - before, frame.len());
        }
        bytes.extend_from_slice(&[PAD; 10]);
        let read: Vec<_> = Frames::new(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(read, frames);
    }

    #[test]
    fn an_unknown_kind_is_stepped_over() {
        let mut bytes = vec![200, 2, 0, 9, 9];
        Frame::Bundle(5).write(&mut bytes);
        assert_eq!(Frames::new(&bytes).collect::<Vec<_>>(), [Ok(Frame::Bundle(5))]);
    }

    #[test]
    fn a_frame_that_runs_past_the_end_is_malformed_and_ends_the_datagram() {
        let mut bytes = Vec::new();
        Frame::Bundle(5).write(&mut bytes);
        bytes.extend_from_slice(&[ACK, 255, 0, 1]);
        assert_eq!(Frames::new(&bytes).collect::<Vec<_>>(), [Ok(Frame::Bundle(5)), Err(Malformed)]);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_end(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Frames::new(&bytes).count() <= bytes.len());
        }
    }
}
