//! The state of one m-line: what was agreed on, and for each side where its packets come from and how many came.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::agent::{Agent, Met, Theirs};
use super::codec::Codec;
use super::keys::Keys;
use super::stream::{Coding, Folded, Stream};
use crate::types::{Endpoint, Nanos};
use crate::wire::sdp::describe::{Direction, MediaKind, MediaLine, Transport};
use crate::wire::sdp::rewrite::Ice;

/// The payload types kept of one description of an m-line.
const MAX_FORMATS: usize = 24;

/// An address and port; port 0 means nowhere.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Place {
    pub ip: [u8; 16],
    pub port: u16,
}

impl Place {
    /// Whether datagrams may be sent there.
    pub(super) fn is_somewhere(&self) -> bool {
        let ip = std::net::Ipv6Addr::from(self.ip);
        let bad_v4 = ip
            .to_ipv4_mapped()
            .is_some_and(|ip| ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast());
        self.port != 0 && !bad_v4 && !ip.is_unspecified() && !ip.is_multicast()
    }
}

impl From<Endpoint> for Place {
    fn from(endpoint: Endpoint) -> Place {
        Place { ip: endpoint.ip, port: endpoint.port }
    }
}

impl From<Place> for Endpoint {
    fn from(place: Place) -> Endpoint {
        Endpoint { ip: place.ip, port: place.port }
    }
}

fn place(ip: Option<IpAddr>, port: u16) -> Place {
    ip.map_or(Place::default(), |ip| Endpoint::from(std::net::SocketAddr::new(ip, port)).into())
}

/// A payload type as one side described it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Format {
    pub payload_type: u8,
    pub codec: Codec,
    /// In Hz.
    pub clock: u32,
}

/// What one side's description says of an m-line.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct End {
    /// Where it wants media.
    pub media: Place,
    /// What few say.
    pub rare: Option<Box<Rare>>,
    /// Which way media flows, as it says.
    pub direction: Direction,
    /// Whether it wants RTCP on the media port.
    pub mux: bool,
    /// Its payload types.
    pub formats: Vec<Format>,
}

/// What few descriptions say of an m-line.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rare {
    /// Where it wants RTCP, if not at the next port.
    pub rtcp: Option<Place>,
    /// That it can do ICE, if it is given an agent to do it with.
    pub ice: Option<Theirs>,
}

impl End {
    pub(super) fn new(line: &MediaLine<'_>, ice: Ice) -> End {
        let rtcp = line.rtcp.map(|at| place(at.ip.or(line.address), at.port));
        let ice = line.ice().filter(|_| ice == Ice::Lite).map(|names| Theirs::new(&names));
        let rare = (rtcp.is_some() || ice.is_some()).then(|| Box::new(Rare { rtcp, ice }));
        let formats = line.formats().take(MAX_FORMATS).map(|format| {
            let codec = format.name.map_or(Codec::fixed(format.payload_type), Codec::named);
            let clock = if format.clock == 0 { codec.clock() } else { format.clock };
            Format { payload_type: format.payload_type, codec, clock }
        });
        let formats = if line.transport.is_rtp() { formats.collect() } else { Vec::new() };
        End { media: place(line.address, line.port), rare, direction: line.direction, mux: line.mux, formats }
    }

    /// Where it wants RTCP that is not muxed.
    pub(super) fn rtcp_place(&self) -> Place {
        let next = || Place { ip: self.media.ip, port: self.media.port.checked_add(1).unwrap_or(0) };
        self.rare.as_ref().and_then(|rare| rare.rtcp).unwrap_or_else(next)
    }

    /// What it needs to do ICE.
    pub(super) fn ice(&self) -> Option<&Theirs> {
        self.rare.as_ref()?.ice.as_ref()
    }

    pub(super) fn ice_mut(&mut self) -> Option<&mut Theirs> {
        self.rare.as_mut()?.ice.as_mut()
    }

    /// Whether media can be sent to it: to who does ICE, checks find a way where its description names none.
    pub(super) fn is_reachable(&self) -> bool {
        self.media.is_somewhere() || self.media.port != 0 && self.ice().is_some()
    }

    fn coding(&self, payload_type: u8) -> Option<Coding> {
        let format = self.formats.iter().find(|format| format.payload_type == payload_type)?;
        Some(Coding { codec: format.codec, clock: format.clock })
    }
}

/// What holds for an m-line: what the sides agreed on, or what one side offers as long as nothing was agreed on before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Terms {
    pub kind: MediaKind,
    pub transport: Transport,
    /// Whether it was agreed on, and is not refused.
    pub live: bool,
    /// What each side described, by [`super::Side`].
    pub ends: [End; 2],
}

impl Terms {
    /// Codec and clock rate of a packet that side number `from` sends: it should use the numbers of the other's
    /// description (RFC 3264 section 5.1), but its own are what many use.
    pub(super) fn coding(&self, from: usize, payload_type: u8) -> Coding {
        let described =
            || self.ends[1 - from].coding(payload_type).or_else(|| self.ends[from].coding(payload_type));
        described().unwrap_or_else(|| {
            let codec = Codec::fixed(payload_type);
            Coding { codec, clock: codec.clock() }
        })
    }

    /// Whether both sides agreed on RTCP on the media port.
    pub(super) fn muxes(&self) -> bool {
        self.ends[0].mux && self.ends[1].mux
    }
}

/// Where one side's packets come from, as learnt.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Latch {
    /// The source of its media; nowhere until the first packet.
    pub media: Place,
    /// The source port of its RTCP, at the same address; 0 until the first.
    pub rtcp: u16,
    /// Until when another source may be believed, as logical time in ns.
    pub until: u64,
    /// Whether a packet was believed since the last description.
    pub settled: bool,
    /// Whether the source is the one described: nothing changes that but a new description.
    pub pinned: bool,
}

/// What RTCP of one side told.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Control {
    /// RTCP datagrams that came from it.
    pub datagrams: u32,
    /// The middle NTP bits of its newest sender report, and when that came, in ns.
    pub report: (u32, u64),
    /// The newest round trip between the relay and it, in us; 0 if unknown.
    pub round_trip: u32,
    /// R factor and ten times the MOS it says it has (RFC 3611), and its own delay in ms.
    pub voice: Option<(Option<u8>, Option<u8>, u16)>,
}

/// One side of an m-line.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Leg {
    /// The even local port that this side sends to, and that the other's packets reach it from; 0 for none.
    pub local: u16,
    pub latch: Latch,
    /// When the last datagram came from it, in ns.
    pub last: u64,
    /// The streams it sends; at most [`super::MAX_STREAMS`].
    pub streams: Vec<Stream>,
    /// Those that had to make room.
    pub folded: Option<Box<Folded>>,
    /// Datagrams that are neither RTP nor RTCP.
    pub others: u32,
    pub keys: Option<Box<Keys>>,
    pub control: Option<Box<Control>>,
    /// Our side of ICE with it, once it was shown one.
    pub ice: Option<Box<Agent>>,
}

impl Leg {
    /// The description `end` holds from now on: if it names a place it did not name before (`changed`), everything learnt
    /// is void, but not the way that ICE has found.
    pub(super) fn described(&mut self, end: &End, changed: bool, now: Nanos, window: Nanos) {
        let met = match (end.ice(), &mut self.ice) {
            (Some(theirs), ice) => {
                ice.get_or_insert_with(|| Box::new(Agent::new(theirs.generation))).meets(theirs)
            }
            (None, Some(agent)) => {
                agent.forget();
                Met::Unknown
            }
            (None, None) => Met::Unknown,
        };
        if met == Met::Another || changed && met == Met::Unknown {
            self.latch = Latch::default();
        }
        self.latch.until = (now + window).0;
        self.latch.settled = false;
        self.latch.pinned &= met != Met::Again;
    }
}

/// An m-line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    pub terms: Terms,
    /// By [`super::Side`].
    pub legs: [Leg; 2],
}
