//! Questions of the operator's tools to a running node: one sealed datagram asks, a few answer with JSON.
//!
//! A question is `?`, its number (u64) and its name. Each part of the answer is `!`, that number, the part's
//! index (u16), how many parts there are (u16), and a piece of JSON. Little endian.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use super::peer::{open_each, seal_into};
use super::sys_recv::RecvBatch;
use super::sys_time::{self, wait_readable};
use super::tally::Tally;
use crate::types::{Boot, Nanos, NodeSet};
use crate::wire::datagram::{Kind, OPERATOR_TOOL};
use crate::wire::seal::{ClusterKey, Opener, Sealer};

/// The question for everything a node counts.
pub const STATUS: &str = "status";
/// The question for the place in the log and the digest of every slot a node is a member of: per shard, `digests`
/// is a list of [slot, last executed position, digest].
pub const DIGESTS: &str = "digests";
/// Asks a node to hand over what it holds and to end: `accepted`, and `why` not.
pub const DRAIN: &str = "drain";
/// Asks a node to read its routes again: `accepted`, and which `routes` it has now and how many `slots` it told, or `why`
/// not.
pub const RELOAD: &str = "reload";

const ASK: u8 = b'?';
const ANSWER: u8 = b'!';
/// Bytes before the JSON in a part of an answer.
const PART_HEADER: usize = 13;
/// JSON bytes in one part: fits every link without fragments.
const PART_LEN: usize = 1_100;
/// The longest answer taken, in parts.
const MAX_PARTS: usize = 4_096;
/// How often a question is asked again while no answer comes.
const ASK_AGAIN: Nanos = Nanos::from_millis(100);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nothing came back.
    #[error(
        "no answer from {0} within {1} ms: is the node running there, and is TANDEM_CLUSTER_KEY the cluster's?"
    )]
    Silent(SocketAddr, u64),
    /// Nobody listens there.
    #[error("nobody listens on {0}: is the node running there?")]
    Refused(SocketAddr),
    /// Something came back that is not JSON.
    #[error("the node at {0} answered with something else than JSON")]
    NotJson(SocketAddr),
    /// The socket failed.
    #[error("asking {0}: {1}")]
    Io(SocketAddr, io::Error),
}

/// A question as the node reads it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// Its number, to be repeated in the answer.
    pub number: u64,
    /// Its name.
    pub name: &'a str,
}

/// Reads the plaintext of a question.
pub fn read_question(plaintext: &[u8]) -> Option<Asked<'_>> {
    let (number, name) = plaintext.strip_prefix(&[ASK])?.split_first_chunk::<8>()?;
    Some(Asked { number: u64::from_le_bytes(*number), name: std::str::from_utf8(name).ok()? })
}

/// The plaintexts of an answer.
pub fn write_answer(number: u64, json: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let count = json.len().div_ceil(PART_LEN).clamp(1, MAX_PARTS) as u16;
    json.chunks(PART_LEN).take(MAX_PARTS).zip(0_u16..).map(move |(piece, index)| {
        let mut part = Vec::with_capacity(PART_HEADER + piece.len());
        part.push(ANSWER);
        part.extend_from_slice(&number.to_le_bytes());
        part.extend_from_slice(&index.to_le_bytes());
        part.extend_from_slice(&count.to_le_bytes());
        part.extend_from_slice(piece);
        part
    })
}

/// An answer as it comes together.
#[derive(Debug, Default)]
struct Answer {
    parts: Vec<Option<Vec<u8>>>,
}

impl Answer {
    /// Takes one plaintext; the whole JSON when it was the last that was missing.
    fn take(&mut self, number: u64, plaintext: &[u8]) -> Option<Vec<u8>> {
        let (header, piece) = plaintext.split_first_chunk::<PART_HEADER>()?;
        let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (index, count) = (field(9), field(11));
        if header[0] != ANSWER || header[1..9] != number.to_le_bytes() || index >= count || count > MAX_PARTS
        {
            return None;
        }
        if self.parts.len() != count {
            self.parts = vec![None; count];
        }
        self.parts[index] = Some(piece.to_vec());
        self.parts.iter().cloned().collect::<Option<Vec<_>>>().map(|parts| parts.concat())
    }
}

/// Asks the node whose control socket is at `address`, and waits up to `patience` for the answer.
///
/// # Errors
/// See [`AskError`]; every one names the address.
pub fn ask(
    address: SocketAddr,
    key: &ClusterKey,
    question: &str,
    patience: Nanos,
) -> Result<serde_json::Value, AskError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused => AskError::Refused(address),
        _ => AskError::Io(address, error),
    };
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = std::net::UdpSocket::bind(any).map_err(failed)?;
    socket.connect(address).map_err(failed)?;
    // The boot makes this tool's nonces unlike those of any other: wall time in ns and the process.
    let wall = sys_time::now().wall.0;
    let boot = Boot(wall ^ u64::from(std::process::id()).rotate_right(20));
    let mut sealer = Sealer::new(key, OPERATOR_TOOL, boot, 0);
    let mut opener = Opener::new(key, OPERATOR_TOOL, boot, NodeSet(u64::MAX));
    let mut plaintext = vec![ASK];
    plaintext.extend_from_slice(&wall.to_le_bytes());
    plaintext.extend_from_slice(question.as_bytes());

    let (mut batch, mut tally, mut answer) = (RecvBatch::new(16, 2_048), Tally::default(), Answer::default());
    let (start, mut asked) = (sys_time::mono(), Nanos::ZERO);
    loop {
        let now = sys_time::mono();
        if now.since(start) >= patience {
            return Err(AskError::Silent(address, patience.0 / 1_000_000));
        }
        if now.since(asked) >= ASK_AGAIN {
            asked = now;
            let mut datagram = Vec::new();
            seal_into(&mut datagram, &mut sealer, Kind::Control, 0, &plaintext);
            socket.send(&datagram).map_err(failed)?;
        }
        if !wait_readable(socket.as_fd(), 10).map_err(failed)? {
            continue;
        }
        let count = batch.recv(socket.as_fd()).map_err(failed)?;
        let mut whole = None;
        open_each(&mut batch, count, &mut opener, &mut tally, |_, opened, _| {
            whole = whole.take().or_else(|| answer.take(wall, opened.plaintext));
        });
        if let Some(json) = whole {
            return serde_json::from_slice(&json).map_err(|_| AskError::NotJson(address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_question_is_read_back_and_rubbish_is_not() {
        let mut plaintext = vec![ASK];
        plaintext.extend_from_slice(&7_u64.to_le_bytes());
        assert_eq!(read_question(&plaintext), Some(Asked { number: 7, name: "" }));
        plaintext.extend_from_slice(b"status");
        assert_eq!(read_question(&plaintext), Some(Asked { number: 7, name: STATUS }));
        assert_eq!(read_question(&plaintext[..8]), None);
        assert_eq!(read_question(&[]), None);
        plaintext.push(0xff);
        assert_eq!(read_question(&plaintext), None);
    }

    proptest! {
        #[test]
        fn an_answer_comes_together_in_any_order(json in proptest::collection::vec(any::<u8>(), 1..6_000), twice: bool) {
            let mut parts: Vec<_> = write_answer(9, &json).collect();
            parts.reverse();
            let last = parts.pop().unwrap();
            let mut answer = Answer::default();
            for part in &parts {
                prop_assert_eq!(answer.take(9, part), None);
                if twice {
                    prop_assert_eq!(answer.take(9, part), None);
                }
            }
            prop_assert_eq!(answer.take(8, &last), None);
            prop_assert_eq!(answer.take(9, &last), Some(json));
        }

        #[test]
        fn hostile_parts_never_panic(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut answer = Answer::default();
            for mut part in parts {
                if part.len() > 9 {
                    part[..9].copy_from_slice(&[ANSWER, 1, 0, 0, 0, 0, 0, 0, 0]);
                }
                answer.take(1, &part);
            }
        }
    }

    #[test]
    fn nobody_there_is_said_clearly() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = ask(closed, &ClusterKey::loopback(), STATUS, Nanos::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains(&format!("nobody listens on {closed}")), "{error}");
        let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = mute.local_addr().unwrap();
        let error = ask(address, &ClusterKey::loopback(), STATUS, Nanos::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("no answer from"), "{error}");
    }
}
