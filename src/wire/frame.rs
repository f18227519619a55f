//! Frames between shards: what a datagram holds once it has been opened.
//!
//! Every frame is a kind (u8), a length (u16) and that many bytes, so that a node one wire version older
//! can step over what it does not know. Little endian. ARCHITECTURE.md has the message table; the bodies are in
//! `bodies`.

mod bodies;

pub use bodies::*;

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a frame's kind and length fields.
pub const FRAME_HEADER_LEN: usize = 3;

/// The longest body a frame can have.
pub const MAX_BODY: usize = u16::MAX as usize;

const PAD: u8 = 0;

/// The enum of frames, and how each is told apart, read and written: `fixed` frames are one body, `tailed` ones a body
/// and the bytes behind it, `number` ones a u32.
macro_rules! frames {
    (fixed { $($(#[$f_doc:meta])* $f_kind:literal $fixed:ident,)* }
     tailed { $($(#[$t_doc:meta])* $t_kind:literal $tailed:ident,)* }
     number { $($(#[$n_doc:meta])* $n_kind:literal $number:ident,)* }) => {
        /// One frame of a datagram.
        #[derive(Copy, Clone, Debug, PartialEq, Eq)]
        pub enum Frame<'a> {
            $($(#[$f_doc])* $fixed(&'a $fixed),)*
            $($(#[$t_doc])* $tailed(&'a $tailed, &'a [u8]),)*
            $($(#[$n_doc])* $number(u32),)*
        }

        /// `None`: a kind this version does not know, to be stepped over.
        fn parse(kind: u8, body: &[u8]) -> Option<Result<Frame<'_>, Malformed>> {
            Some(match kind {
                $($f_kind => whole(body).map(Frame::$fixed),)*
                $($t_kind => prefix(body).map(|(head, tail)| Frame::$tailed(head, tail)),)*
                $($n_kind => whole::<U32>(body).map(|n| Frame::$number(n.get())),)*
                _ => return None,
            })
        }

        impl Frame<'_> {
            /// Appends the frame to `out`.
            pub fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Frame::$fixed(body) => put(out, $f_kind, body.as_bytes(), &[]),)*
                    $(Frame::$tailed(head, tail) => put(out, $t_kind, head.as_bytes(), tail),)*
                    $(Frame::$number(n) => put(out, $n_kind, &n.to_le_bytes(), &[]),)*
                }
            }

            /// How many bytes [`write`](Frame::write) appends.
            pub fn len(&self) -> usize {
                FRAME_HEADER_LEN + match self {
                    $(Frame::$fixed(_) => size_of::<$fixed>(),)*
                    $(Frame::$tailed(_, tail) => size_of::<$tailed>() + tail.len(),)*
                    $(Frame::$number(_) => 4,)*
                }
            }
        }
    };
}

frames! {
    fixed {
        /// See [`Ack`].
        2 Ack,
        /// See [`Nak`].
        3 Nak,
        /// See [`Emit`].
        5 Emit,
        /// See [`Start`].
        6 Start,
        /// See [`Seal`].
        9 Seal,
        /// See [`Sealed`].
        10 Sealed,
        /// See [`Fetch`].
        11 Fetch,
        /// See [`DeliverAck`].
        15 DeliverAck,
        /// See [`Pull`].
        16 Pull,
        /// See [`Told`].
        18 Told,
    }
    tailed {
        /// A header and its entries (see [`super::record::Entry`]).
        1 Segment,
        /// A header and its outputs (see [`super::record::Output`]).
        4 Outputs,
        /// A header and its entries.
        12 Fetched,
        /// A header and the client's bytes.
        13 Forward,
        /// A header and the bytes for the client.
        14 Deliver,
        /// A header and a piece of a snapshot.
        17 Chunk,
    }
    number {
        /// The number of the bundle this datagram ends, to be echoed.
        7 Bundle,
        /// The newest bundle number received: the clock of the receiver's next bundle, and its RTT sample.
        8 Echo,
    }
}

impl Frame<'_> {
    /// Never: even an empty frame has a kind and a length.
    pub fn is_empty(&self) -> bool {
        false
    }
}

fn whole<T: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8]) -> Result<&T, Malformed> {
    T::ref_from_bytes(body).map_err(|_| Malformed)
}

fn prefix<T: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8]) -> Result<(&T, &[u8]), Malformed> {
    T::ref_from_prefix(body).map_err(|_| Malformed)
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
        bytes.extend_from_slice(&[2, 255, 0, 1]);
        assert_eq!(Frames::new(&bytes).collect::<Vec<_>>(), [Ok(Frame::Bundle(5)), Err(Malformed)]);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_and_end(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Frames::new(&bytes).count() <= bytes.len());
        }
    }
}
