//! Reading captures: pcap and pcapng files become UDP datagrams (and TCP segments) with times.
//!
//! One file each: `container` (file formats to packets), `link` (packets to IP), `net` (IP to
//! datagrams, tunnels unpacked), `fragments` (IP reassembly); `messages` (SIP over TCP) and `survey` (what
//! the file holds in calls and streams) read what those give. A file cut short or holding nonsense
//! gives what can be read and says what could not; nothing here panics on any bytes.

mod container;
mod fragments;
mod link;
mod messages;
mod net;
pub mod survey;

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::types::Nanos;

/// The largest capture that is read, in bytes, both as stored and after gunzip: it is held in memory.
pub const MAX_BYTES: u64 = 1 << 30;

/// How far a packet may be stamped before the newest one and still count as merely late; further back,
/// the capturing clock was set back.
const LATE: i128 = 1_000_000_000;

/// One UDP datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Since the first packet of the file; never goes back, whatever the stamps in the file do.
    pub time: Nanos,
    /// The frame that completed it, counted from 1 as tshark does.
    pub frame: u32,
    /// Where it came from.
    pub source: SocketAddr,
    /// Where it went.
    pub destination: SocketAddr,
    /// What was captured of its bytes.
    pub payload: Bytes,
    /// Whether bytes at its end are missing from the capture (snap length).
    pub cut: bool,
}

/// One TCP segment that carries data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// As [`Datagram::time`].
    pub time: Nanos,
    /// As [`Datagram::frame`].
    pub frame: u32,
    /// Where it came from.
    pub source: SocketAddr,
    /// Where it went.
    pub destination: SocketAddr,
    /// The sequence number of its first byte.
    pub sequence: u32,
    /// What was captured of its bytes; never empty.
    pub payload: Bytes,
}

/// What one file holds.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    /// `pcap`, `nsecpcap` or `pcapng`.
    pub format: &'static str,
    /// Packets of any kind.
    pub packets: u32,
    /// The link type by its capinfos name (`ether`, `linux-sll`, ...); `per-packet` if there are several.
    pub link_type: String,
    /// From the first to the last packet.
    pub duration: Nanos,
    /// All UDP datagrams, in file order.
    pub datagrams: Vec<Datagram>,
    /// All TCP segments with data, in file order.
    pub segments: Vec<Segment>,
    /// Packets that were a fragment of an IP packet.
    pub fragments: u32,
    /// Fragments that never became a whole packet.
    pub incomplete_fragments: u32,
    /// Packets that are neither UDP nor TCP nor a fragment (ARP, ICMP, unknown link types, damage).
    pub other_packets: u32,
    /// Packets cut by the snap length.
    pub cut_packets: u32,
    /// What could not be read of the file, in words; `None` if it is whole.
    pub damage: Option<String>,
}

/// Why a capture cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than [`MAX_BYTES`].
    #[error("{}: more than {MAX_BYTES} bytes{}; split it first, e.g. with `editcap -c 1000000`", path.display(), if *inflated { " after gunzip" } else { "" })]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Whether the limit was passed while inflating.
        inflated: bool,
    },
    /// The file is no capture.
    #[error("{}: not a capture: it starts with {found}; pcap, pcapng, or either gzipped, is accepted", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its first bytes in hexadecimal, or `nothing`.
        found: String,
    },
    /// The file is a capture in a gzip wrapper that is damaged from its first byte.
    #[error("{}: damaged gzip data: {source}", path.display())]
    Gzip {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: io::Error,
    },
}

/// Reads the capture at `path`.
///
/// # Errors
/// Only when nothing can be read: see [`CaptureError`]. A file that breaks off in the middle is read up
/// to there, and [`Capture::damage`] says so.
pub fn read(path: &Path) -> Result<Capture, CaptureError> {
    let mut stored = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut stored))
        .map_err(|source| CaptureError::Io { path: path.to_owned(), source })?;
    decode(path, stored)
}

/// Reads a capture whose file, gzipped or not, is in memory already; `path` names it in errors.
///
/// # Errors
/// As for [`read`].
pub fn decode(path: &Path, stored: Vec<u8>) -> Result<Capture, CaptureError> {
    let path = || path.to_owned();
    let (mut file, mut damage) = (stored, None);
    if file.len() as u64 > MAX_BYTES {
        return Err(CaptureError::TooLarge { path: path(), inflated: false });
    }
    if file.starts_with(&[0x1f, 0x8b]) {
        let mut inflated = Vec::new();
        let done =
            flate2::read::MultiGzDecoder::new(&file[..]).take(MAX_BYTES + 1).read_to_end(&mut inflated);
        match done {
            Ok(_) if inflated.len() as u64 > MAX_BYTES => {
                return Err(CaptureError::TooLarge { path: path(), inflated: true });
            }
            Ok(_) => {}
            Err(source) if inflated.is_empty() => return Err(CaptureError::Gzip { path: path(), source }),
            Err(error) => {
                damage = Some(format!("gzip data breaks off after {} bytes: {error}", inflated.len()))
            }
        }
        file = inflated;
    }
    let mut capture = parse(Bytes::from(file))
        .map_err(|container::NotACapture(found)| CaptureError::Format { path: path(), found })?;
    capture.damage = damage.or(capture.damage);
    Ok(capture)
}

/// Reads a capture that is neither compressed nor too large.
fn parse(file: Bytes) -> Result<Capture, container::NotACapture> {
    let mut packets = container::Packets::open(file)?;
    let mut capture = Capture { format: packets.format(), ..Capture::default() };
    let mut clock = Clock::default();
    let mut stack = net::Stack::default();
    let mut first_link = None;
    while let Some(packet) = packets.next_packet() {
        capture.packets += 1;
        capture.cut_packets += u32::from(packet.cut);
        if *first_link.get_or_insert(packet.link) != packet.link {
            capture.link_type = "per-packet".to_owned();
        }
        let at = net::Place { time: clock.advance(packet.stamp), frame: capture.packets };
        let seen = match link::to_ip(packet.link, packet.data) {
            Some(ip) => stack.packet(at, ip, packet.cut, &mut capture.datagrams, &mut capture.segments),
            None => net::Seen::Other,
        };
        capture.fragments += u32::from(seen == net::Seen::Fragment);
        capture.other_packets += u32::from(seen == net::Seen::Other);
    }
    if capture.link_type.is_empty() {
        capture.link_type =
            first_link.or(packets.declared_link()).map_or_else(|| "none".to_owned(), link::name);
    }
    capture.duration = clock.time;
    capture.incomplete_fragments = stack.incomplete_fragments();
    capture.damage = packets.damage();
    Ok(capture)
}

/// Turns the stamps of a file, which may jump, into times that never go back.
#[derive(Default)]
struct Clock {
    newest: Option<i128>,
    time: Nanos,
}

impl Clock {
    fn advance(&mut self, stamp: i128) -> Nanos {
        let newest = *self.newest.get_or_insert(stamp);
        let delta = stamp.saturating_sub(newest);
        if delta > 0 {
            self.time = self.time + Nanos(u64::try_from(delta).unwrap_or(u64::MAX));
        }
        // A packet that is merely late leaves the newest stamp alone, so that the others keep their
        // distances; a clock set back starts again from where it was set to.
        if !(-LATE..=0).contains(&delta) {
            self.newest = Some(stamp);
        }
        self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_packets_and_clocks_set_back_never_turn_time_back() {
        let mut clock = Clock::default();
        let second = 1_000_000_000;
        let times: Vec<u64> = [5 * second, 6 * second, 6 * second - 10, 6 * second + 7, second, second + 3]
            .map(|stamp| clock.advance(stamp).0)
            .to_vec();
        assert_eq!(times, [0, 1_000_000_000, 1_000_000_000, 1_000_000_007, 1_000_000_007, 1_000_000_010]);
    }

    #[test]
    fn what_is_no_capture_is_named() {
        let path = std::env::temp_dir().join(format!("tandem-no-capture-{}", std::process::id()));
        std::fs::write(&path, b"hello").expect("temporary file");
        let error = read(&path).expect_err("not a capture").to_string();
        assert!(error.contains("68 65 6c 6c 6f") && error.contains("pcapng"), "{error}");
        std::fs::write(&path, b"").expect("temporary file");
        let error = read(&path).expect_err("empty").to_string();
        assert!(error.contains("starts with nothing"), "{error}");
        std::fs::remove_file(&path).expect("temporary file");
        let error = read(&path).expect_err("missing").to_string();
        assert!(error.contains("No such file"), "{error}");
    }
}
