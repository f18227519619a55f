//! The media side of a call: its descriptions rewritten so that media comes here, its datagrams relayed and counted.
//!
//! Nothing here knows SIP. Whoever proxies the signalling holds a [`Media`] per call and a [`PortShare`] per slot, and
//! calls:
//!
//! | when | call |
//! |---|---|
//! | a body with an offer is relayed, from `side` to the other (INVITE, UPDATE, re-INVITE; 200 or reliable 18x of an INVITE without one) | [`Media::offer`] |
//! | a body with an answer is relayed (18x, 200, PRACK, ACK); each answer of a fork, repeated ones too: the last one holds | [`Media::answer`] |
//! | the exchange is final: 2xx of INVITE, of UPDATE outside an INVITE, ACK with an answer | [`Media::confirm`] |
//! | the offerer's request failed (491, 488, timeout, CANCEL...) | [`Media::rollback`] |
//! | the call ends | [`Media::end`], and [`PortShare::end`] in `on_end` |
//! | a datagram comes to a media port | [`Media::on_packet`] |
//! | the record is written | [`Media::summary`] |
//!
//! A handler reads the slot's ports through a [`Reservation`] and hands its changes to `Context::change`:
//!
//! ```ignore
//! let (slot, draw) = (Slot(ctx.place().1), ctx.random());
//! let mut ports = Reservation::new(&self.ports, ctx.shared(), (slot, ctx.key()), ctx.now(), draw);
//! let body = call.media.offer(Side::Caller, &content_type, body, &self.setup, &mut ports);
//! for change in ports.into_changes() {
//!     ctx.change(change); // `apply` is PortShare::apply
//! }
//! ```
//!
//! The changes are to be made even if the result is an error. A handler with two bodies passes the changes of the first
//! on by [`Reservation::after`].
//!
//! Files: `ports` deals ports; `negotiate` takes offers and answers; `agent` is our side of ICE; `relay` moves datagrams,
//! after `latch` has judged their source; `stream`, `keys` and `control` count; `codec`, `mos` and `summary` make figures of the counts.
//!
//! All state is integers; floats exist only in a summary.

mod agent;
pub mod codec;
mod control;
mod keys;
mod latch;
mod line;
mod mos;
mod negotiate;
mod nomination;
mod ports;
mod relay;
mod stream;
pub mod summary;

use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::negotiate::MediaError;
pub use self::ports::{MediaPorts, NoPorts, PortChange, PortShare, REST, Reservation};
pub use self::relay::{Dropped, Relay};
pub use crate::wire::sdp::rewrite::Ice;

use self::agent::Ours;
use self::line::{End, Line, Terms};
use crate::app::BadSnapshot;
use crate::types::Nanos;
use crate::wire::sdp::describe::{Direction, MediaKind, Transport};

/// The streams of a side of an m-line that are kept one by one; when another comes, the one longest silent is folded.
pub const MAX_STREAMS: usize = 4;

/// The form of [`Media`]'s snapshot.
const FORM: u16 = 2;

/// How media is anchored; the same on every node.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MediaSetup {
    /// The service address that carries the call's slot: what rewritten descriptions name.
    pub address: IpAddr,
    /// What happens to ICE.
    pub ice: Ice,
    /// How long after a description a source is believed that it did not name (NAT); 10 s is usual.
    pub latch: Nanos,
}

/// One of the two parties of a call.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// Who sent the INVITE that began the call.
    Caller,
    /// Whom it went to.
    Callee,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::Caller => Side::Callee,
            Side::Callee => Side::Caller,
        }
    }

    fn index(self) -> usize {
        match self {
            Side::Caller => 0,
            Side::Callee => 1,
        }
    }
}

/// The m-lines of an offer that waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Offer {
    lines: Vec<(MediaKind, Transport, End)>,
}

/// What held before an exchange that is not final.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    offerer: Side,
    terms: Vec<Terms>,
}

/// The media of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Media {
    lines: Vec<Line>,
    /// By the side that offers.
    offers: [Option<Box<Offer>>; 2],
    before: Option<Box<Before>>,
    /// Once a party was shown our side of ICE.
    ice: Option<Box<Ours>>,
    /// By [`Dropped`].
    dropped: [u32; Dropped::ALL.len()],
}

impl Media {
    /// A call without media yet.
    pub fn new() -> Media {
        Media::default()
    }

    /// Whether any m-line is anchored.
    pub fn is_anchored(&self) -> bool {
        self.lines.iter().any(|line| line.legs[0].local != 0)
    }

    /// When the last datagram came from `side`; `None` if none ever did.
    pub fn last_packet(&self, side: Side) -> Option<Nanos> {
        let last = self.lines.iter().map(|line| line.legs[side.index()].last).max()?;
        (last > 0).then_some(Nanos(last))
    }

    /// Whether no m-line lets media flow both ways: silence is no sign of death then.
    pub fn is_held(&self) -> bool {
        let flows = |line: &Line| {
            line.terms.live
                && line
                    .terms
                    .ends
                    .iter()
                    .all(|end| end.direction == Direction::SendRecv && end.is_reachable())
        };
        !self.lines.iter().any(flows)
    }

    /// Appends its state to `out`; returns the version of the form.
    pub fn snapshot(&self, out: &mut Vec<u8>) -> u16 {
        append(self, out);
        FORM
    }

    /// Reads back what `snapshot` wrote.
    ///
    /// # Errors
    /// [`BadSnapshot`] for another version or damaged bytes.
    pub fn restore(version: u16, bytes: &[u8]) -> Result<Media, BadSnapshot> {
        read_back(version, FORM, bytes)
    }
}

/// Writes state in postcard's form.
fn append(state: &impl Serialize, out: &mut Vec<u8>) {
    // Writing to memory cannot fail; a state of no bytes would be refused on the other side.
    out.extend_from_slice(&postcard::to_stdvec(state).unwrap_or_default());
}

/// Reads state back that is wholly in `bytes`.
fn read_back<T: DeserializeOwned>(version: u16, known: u16, bytes: &[u8]) -> Result<T, BadSnapshot> {
    let bad = BadSnapshot { version, bytes: bytes.len() };
    if version != known {
        return Err(bad);
    }
    match postcard::take_from_bytes(bytes) {
        Ok((state, [])) => Ok(state),
        _ => Err(bad),
    }
}

#[cfg(test)]
mod tests;
