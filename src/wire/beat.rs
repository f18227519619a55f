//! Frames between the control threads: beats, and the greeting in which nodes compare their settings.
//!
//! Framed as those between shards ([`super::frame`]): a kind (u8), a length (u16) and that many bytes, little
//! endian; kinds share one number space. A frame of an unknown kind is stepped over, and bytes behind what this
//! version knows of a frame are ignored, so a later version can add to either.
//!
//! | kind | frame | body |
//! |---|---|---|
//! | 32 | beat | [`Beat`], then a u16 for each worker: how long its turn has taken, in ms, 0 when parked |
//! | 33 | hello | settings hash (u64), number of pairs (u16), then name and value of each |
//! | 34 | hello refused | flags (u8: 1, 2 if the first, second value is there), name, the refuser's value, the other's |
//!
//! A text is its length (u8) and that many bytes of UTF-8 without control characters: it ends up in logs.

use zerocopy::byteorder::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::council::{self, LostMember, Report};
use super::frame::{FRAME_HEADER_LEN, Malformed};

const PAD: u8 = 0;
const BEAT: u8 = 32;
const HELLO: u8 = 33;
const HELLO_REFUSED: u8 = 34;

/// The most name and value pairs a hello may have.
pub const MAX_PAIRS: usize = 128;

/// The longest text of a frame, in bytes.
pub const MAX_TEXT: usize = u8::MAX as usize;

/// [`Beat::flags`]: the sender has accepted the receiver's settings.
pub const ACCEPTED: u16 = 1;

/// The fixed part of a beat.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Beat {
    /// Grows by one with each beat to this receiver.
    pub sequence: U64,
    /// When it was sent, in ns on the sender's monotonic clock.
    pub sent: U64,
    /// A hash of the sender's cluster-wide settings.
    pub settings: U64,
    /// The receiver's boot as the sender knows it; 0 if it has heard no beat from it, and then `echo_*` mean nothing.
    pub echo_boot: U64,
    /// [`sequence`](Beat::sequence) of the newest beat heard from the receiver.
    pub echo_sequence: U64,
    /// [`sent`](Beat::sent) of that beat.
    pub echo_sent: U64,
    /// How many ns lay between hearing that beat and sending this one.
    pub echo_delay: U64,
    /// See [`ACCEPTED`]; unknown bits are ignored.
    pub flags: U16,
    /// How many workers the sender has.
    pub workers: U16,
}

/// A node's cluster-wide settings.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// A hash of all of them.
    pub settings: u64,
    count: u16,
    pairs: &'a [u8],
}

impl<'a> Hello<'a> {
    /// Name and value of each setting.
    pub fn pairs(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let mut texts = Texts(self.pairs);
        (0..self.count).map_while(move |_| Some((texts.next().ok()?, texts.next().ok()?)))
    }
}

/// Says that the receiver may not join, and why.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct HelloRefused<'a> {
    /// The setting in which the two differ.
    pub name: &'a str,
    /// The sender's value; none if it does not know the setting.
    pub ours: Option<&'a str>,
    /// The receiver's value; none if it does not know the setting.
    pub theirs: Option<&'a str>,
}

/// One frame between control threads.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ControlFrame<'a> {
    /// A beat and its workers' stalls in ms.
    Beat(&'a Beat, &'a [U16]),
    /// See [`Hello`].
    Hello(Hello<'a>),
    /// See [`HelloRefused`].
    HelloRefused(HelloRefused<'a>),
    /// What the sender reports, and the members it has given up.
    Report(&'a Report, &'a [LostMember]),
    /// A message between voters.
    Consensus(&'a [u8]),
    /// An agreed map.
    Map(&'a [u8]),
}

/// Iterates over the frames of a control datagram; ends after the first malformed one.
#[derive(Copy, Clone, Debug)]
pub struct ControlFrames<'a>(&'a [u8]);

impl<'a> ControlFrames<'a> {
    /// The frames of `plaintext`.
    pub fn new(plaintext: &'a [u8]) -> ControlFrames<'a> {
        ControlFrames(plaintext)
    }
}

impl<'a> Iterator for ControlFrames<'a> {
    type Item = Result<ControlFrame<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = std::mem::take(&mut self.0);
            let kind = *rest.first().filter(|kind| **kind != PAD)?;
            let Some((head, rest)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() else {
                return Some(Err(Malformed));
            };
            let length = usize::from(u16::from_le_bytes([head[1], head[2]]));
            let Some((body, rest)) = rest.split_at_checked(length) else { return Some(Err(Malformed)) };
            let frame = match kind {
                BEAT => beat(body),
                HELLO => hello(body),
                HELLO_REFUSED => hello_refused(body),
                council::REPORT => {
                    council::report(body).map(|(report, lost)| ControlFrame::Report(report, lost))
                }
                council::CONSENSUS => Ok(ControlFrame::Consensus(body)),
                council::MAP => Ok(ControlFrame::Map(body)),
                _ => {
                    self.0 = rest;
                    continue;
                }
            };
            if frame.is_ok() {
                self.0 = rest;
            }
            return Some(frame);
        }
    }
}

fn beat(body: &[u8]) -> Result<ControlFrame<'_>, Malformed> {
    let (beat, rest) = Beat::ref_from_prefix(body).map_err(|_| Malformed)?;
    let (stalls, _) =
        <[U16]>::ref_from_prefix_with_elems(rest, beat.workers.get().into()).map_err(|_| Malformed)?;
    Ok(ControlFrame::Beat(beat, stalls))
}

fn hello(body: &[u8]) -> Result<ControlFrame<'_>, Malformed> {
    let (settings, rest) = body.split_first_chunk::<8>().ok_or(Malformed)?;
    let (count, pairs) = rest.split_first_chunk::<2>().ok_or(Malformed)?;
    let count = u16::from_le_bytes(*count);
    if usize::from(count) > MAX_PAIRS {
        return Err(Malformed);
    }
    let mut texts = Texts(pairs);
    for _ in 0..2 * count {
        texts.next()?;
    }
    Ok(ControlFrame::Hello(Hello { settings: u64::from_le_bytes(*settings), count, pairs }))
}

fn hello_refused(body: &[u8]) -> Result<ControlFrame<'_>, Malformed> {
    let (flags, rest) = body.split_first().ok_or(Malformed)?;
    let mut texts = Texts(rest);
    let (name, ours, theirs) = (texts.next()?, texts.next()?, texts.next()?);
    let given = |bit: u8, text| (flags & bit != 0).then_some(text);
    Ok(ControlFrame::HelloRefused(HelloRefused { name, ours: given(1, ours), theirs: given(2, theirs) }))
}

/// Takes texts off the front.
struct Texts<'a>(&'a [u8]);

impl<'a> Texts<'a> {
    fn next(&mut self) -> Result<&'a str, Malformed> {
        let (length, rest) = self.0.split_first().ok_or(Malformed)?;
        let (text, rest) = rest.split_at_checked((*length).into()).ok_or(Malformed)?;
        self.0 = rest;
        let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
        if text.chars().any(char::is_control) { Err(Malformed) } else { Ok(text) }
    }
}

/// Appends a beat whose `workers` is set to the number of `stalls`.
pub fn write_beat(out: &mut Vec<u8>, beat: Beat, stalls: impl IntoIterator<Item = u16>) {
    frame(out, BEAT, |out| {
        let start = out.len();
        out.extend_from_slice(beat.as_bytes());
        let tail = out.len();
        stalls.into_iter().for_each(|stall| out.extend_from_slice(&stall.to_le_bytes()));
        let workers = ((out.len() - tail) / 2) as u16;
        let fixed = Beat { workers: workers.into(), ..beat };
        out[start..tail].copy_from_slice(fixed.as_bytes());
    });
}

/// Appends a hello. At most [`MAX_PAIRS`] pairs of at most [`MAX_TEXT`] bytes each: a node's own settings.
pub fn write_hello(out: &mut Vec<u8>, settings: u64, pairs: &[(String, String)]) {
    assert!(pairs.len() <= MAX_PAIRS, "{} cluster-wide settings, at most {MAX_PAIRS}", pairs.len());
    frame(out, HELLO, |out| {
        out.extend_from_slice(&settings.to_le_bytes());
        out.extend_from_slice(&(pairs.len() as u16).to_le_bytes());
        for (name, value) in pairs {
            text(out, name);
            text(out, value);
        }
    });
}

/// Appends a refusal.
pub fn write_hello_refused(out: &mut Vec<u8>, refused: &HelloRefused<'_>) {
    frame(out, HELLO_REFUSED, |out| {
        out.push(u8::from(refused.ours.is_some()) | u8::from(refused.theirs.is_some()) << 1);
        text(out, refused.name);
        text(out, refused.ours.unwrap_or_default());
        text(out, refused.theirs.unwrap_or_default());
    });
}

fn frame(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[kind, 0, 0]);
    body(out);
    let length = out.len() - start - FRAME_HEADER_LEN;
    assert!(length <= super::frame::MAX_BODY, "frame of {length} bytes");
    out[start + 1..start + 3].copy_from_slice(&(length as u16).to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() <= MAX_TEXT, "text of {} bytes, at most {MAX_TEXT}: {text}", text.len());
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use zerocopy::FromBytes;

    use super::{
        BEAT, Beat, ControlFrame, ControlFrames, HELLO, HelloRefused, MAX_PAIRS, write_beat, write_hello,
        write_hello_refused,
    };
    use crate::wire::frame::Malformed;

    fn one(bytes: &[u8]) -> Result<ControlFrame<'_>, Malformed> {
        ControlFrames::new(bytes).next().expect("a frame")
    }

    #[test]
    fn unknown_kinds_and_later_additions_are_stepped_over() {
        let mut bytes = vec![99, 2, 0, 1, 2];
        write_hello(&mut bytes, 5, &[("R".into(), "3".into())]);
        let hello = bytes.len();
        bytes.extend_from_slice(b"new");
        bytes[6] += 3;
        let frames: Vec<_> = ControlFrames::new(&bytes).collect();
        let [Ok(ControlFrame::Hello(read))] = frames[..] else { panic!("{frames:?} at {hello}") };
        assert_eq!(read.pairs().collect::<Vec<_>>(), [("R", "3")]);
    }

    #[test]
    fn a_text_with_control_characters_or_too_many_pairs_is_malformed() {
        let mut bytes = Vec::new();
        write_hello(&mut bytes, 5, &[("R".into(), "3\n2026 forged log line".into())]);
        assert_eq!(one(&bytes), Err(Malformed));
        let many = vec![(String::new(), String::new()); MAX_PAIRS];
        bytes.clear();
        write_hello(&mut bytes, 5, &many);
        assert!(one(&bytes).is_ok());
        bytes[11] += 1;
        bytes[1] += 2;
        bytes.extend_from_slice(&[0, 0]);
        assert_eq!(one(&bytes), Err(Malformed));
    }

    proptest! {
        #[test]
        fn beats_read_back_as_written(fill: [u8; size_of::<Beat>()], stalls in proptest::collection::vec(any::<u16>(), 0..70)) {
            let beat = Beat::read_from_bytes(&fill).expect("its own size");
            let mut bytes = Vec::new();
            write_beat(&mut bytes, beat, stalls.iter().copied());
            let Ok(ControlFrame::Beat(read, tail)) = one(&bytes) else { panic!("no beat") };
            prop_assert_eq!(read, &Beat { workers: (stalls.len() as u16).into(), ..beat });
            prop_assert_eq!(tail.iter().map(|stall| stall.get()).collect::<Vec<_>>(), stalls);
            for cut in 1..bytes.len() {
                prop_assert_eq!(one(&bytes[..cut]), Err(Malformed));
            }
        }

        #[test]
        fn greetings_read_back_as_written(
            settings: u64,
            pairs in proptest::collection::vec(("[A-Z_]{0,20}", "[ -~]{0,120}"), 0..20),
            name in "[A-Z]{1,9}", ours in proptest::option::of("[ -~]{0,120}"), theirs in proptest::option::of("[ -~]{0,120}"),
        ) {
            let mut bytes = Vec::new();
            write_hello(&mut bytes, settings, &pairs);
            let refused = HelloRefused { name: &name, ours: ours.as_deref(), theirs: theirs.as_deref() };
            write_hello_refused(&mut bytes, &refused);
            let frames: Vec<_> = ControlFrames::new(&bytes).collect::<Result<_, _>>().expect("well formed");
            let ControlFrame::Hello(hello) = frames[0] else { panic!("no hello") };
            prop_assert_eq!(hello.settings, settings);
            let read: Vec<_> = hello.pairs().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(read, pairs);
            prop_assert_eq!(frames[1], ControlFrame::HelloRefused(refused));
        }

        #[test]
        fn hostile_bytes_never_panic_and_end(
            kind in BEAT..=HELLO + 2, body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut bytes = vec![kind, body.len() as u8, (body.len() >> 8) as u8];
            bytes.extend_from_slice(&body);
            for frame in ControlFrames::new(&bytes) {
                if let Ok(ControlFrame::Hello(hello)) = frame {
                    prop_assert!(hello.pairs().count() <= MAX_PAIRS);
                }
            }
            prop_assert!(ControlFrames::new(&body).count() <= body.len());
        }
    }
}
