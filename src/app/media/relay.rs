//! Datagrams on media ports: from one side to the other, bytes unchanged, or dropped with a reason; checks are answered.
//!
//! Sources: RFC 7983 (what shares a port), RFC 5761 (RTCP on the media port), RFC 3264 section 8.4 (hold).

use super::latch::Arrival;
use super::line::{End, Leg, Line, Place, Terms};
use super::stream::Stream;
use super::{MAX_STREAMS, Media, MediaSetup, Side};
use crate::types::{Endpoint, Nanos};
use crate::wire::dtmf::TelephoneEvent;
use crate::wire::rtp::{Kind, Rtcp, Rtp, kind};
use crate::wire::sdp::describe::Transport;
use crate::wire::sdp::rewrite::Ice;

/// What becomes of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relay {
    /// It goes on, unchanged.
    Forward {
        /// Who sent it.
        from: Side,
        /// The local media port it leaves from.
        port: u16,
        /// Where it goes.
        to: Endpoint,
    },
    /// It was a check of ICE, and is answered.
    Answer {
        /// The local port that it came to, which the answer leaves from.
        port: u16,
        /// Where it came from, and the answer goes.
        to: Endpoint,
        /// The answer.
        bytes: Vec<u8>,
    },
    /// It does not.
    Drop(Dropped),
}

/// Why a datagram on a media port is dropped.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// No m-line of the call has this port.
    UnknownPort,
    /// It comes from an address that neither a description named nor the side was found at.
    UnknownSource,
    /// It is not what the m-line carries.
    NotMedia,
    /// STUN where ICE was removed, or that proves nothing where it was not.
    Stun,
    /// The other side is not known yet, or refused the media.
    NoDestination,
    /// The other side does not want to receive now.
    Held,
}

impl Dropped {
    /// All of them, in the order they are counted in.
    pub const ALL: [Dropped; 6] = [
        Dropped::UnknownPort,
        Dropped::UnknownSource,
        Dropped::NotMedia,
        Dropped::Stun,
        Dropped::NoDestination,
        Dropped::Held,
    ];

    /// Its name in records and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Dropped::UnknownPort => "unknown_port",
            Dropped::UnknownSource => "unknown_source",
            Dropped::NotMedia => "not_media",
            Dropped::Stun => "stun",
            Dropped::NoDestination => "no_destination",
            Dropped::Held => "held",
        }
    }
}

impl Dropped {
    /// Its name among the figures of a node, where it is not said what is dropped.
    pub fn figure(self) -> &'static str {
        match self {
            Dropped::UnknownPort => "media_unknown_port",
            Dropped::UnknownSource => "media_unknown_source",
            Dropped::NotMedia => "media_not_media",
            Dropped::Stun => "media_stun",
            Dropped::NoDestination => "media_no_destination",
            Dropped::Held => "media_held",
        }
    }
}

impl Media {
    /// Handles a datagram that came at logical time `now` from `source` to local media port `port`.
    pub fn on_packet(
        &mut self,
        now: Nanos,
        port: u16,
        source: Endpoint,
        payload: &[u8],
        setup: &MediaSetup,
    ) -> Relay {
        let result = self.relay(now, port, source, payload, setup);
        if let Relay::Drop(reason) = &result {
            let count = &mut self.dropped[*reason as usize];
            *count = count.saturating_add(1);
        }
        result
    }

    fn relay(
        &mut self,
        now: Nanos,
        port: u16,
        source: Endpoint,
        payload: &[u8],
        setup: &MediaSetup,
    ) -> Relay {
        let even = port & !1;
        let here = |line: &Line| line.legs.iter().position(|leg| leg.local == even && even != 0);
        let found = self.lines.iter().enumerate().find_map(|(n, line)| Some((n, here(line)?)));
        let Some((n, from)) = found else { return Relay::Drop(Dropped::UnknownPort) };
        let kind = kind(payload);
        if kind == Kind::Stun && setup.ice == Ice::Lite {
            return self.check((n, from), port, source, now, payload);
        }
        let line = &mut self.lines[n];
        let media = match Payload::read((kind, payload), line.terms.transport, setup.ice, port != even) {
            Ok(media) => media,
            Err(reason) => return Relay::Drop(reason),
        };
        let Line { terms, legs } = line;
        let offered = |side: usize| Some(&self.offers[side].as_ref()?.lines.get(n)?.2);
        let believed = if port == even {
            let rtp = if let Payload::Rtp(rtp) = media { Some(rtp) } else { None };
            legs[from].believes(&terms.ends[from], offered(from), &Arrival { source, now, rtp })
        } else {
            legs[from].believes_control(&terms.ends[from], source)
        };
        if !believed {
            return Relay::Drop(Dropped::UnknownSource);
        }
        line.count(from, &media, payload.len(), now);
        let (port, to) = match line.destination(1 - from, offered(1 - from), &media, port != even) {
            Ok(found) => found,
            Err(reason) => return Relay::Drop(reason),
        };
        if self.is_own(to, setup) {
            return Relay::Drop(Dropped::NoDestination);
        }
        let from = if from == 0 { Side::Caller } else { Side::Callee };
        Relay::Forward { from, port, to: to.into() }
    }

    /// Whether a place is a port of this very call, which would send its packets in circles.
    fn is_own(&self, place: Place, setup: &MediaSetup) -> bool {
        let here = Endpoint::from(std::net::SocketAddr::new(setup.address, place.port));
        let legs = || self.lines.iter().flat_map(|line| &line.legs);
        here.ip == place.ip && legs().any(|leg| leg.local == place.port & !1)
    }
}

/// A datagram by what is to be done with it.
enum Payload<'a> {
    Rtp(Rtp<'a>),
    Rtcp(Rtcp<'a>),
    /// Passed on unread.
    Other,
}

impl<'a> Payload<'a> {
    fn read(
        (kind, bytes): (Kind, &'a [u8]),
        transport: Transport,
        ice: Ice,
        control: bool,
    ) -> Result<Payload<'a>, Dropped> {
        if kind == Kind::Stun && ice != Ice::Pass {
            return Err(Dropped::Stun);
        }
        if !transport.is_rtp() {
            // UDPTL starts with a sequence number, so its first bytes say nothing.
            return if control { Err(Dropped::NotMedia) } else { Ok(Payload::Other) };
        }
        match kind {
            Kind::Rtp if !control => Rtp::new(bytes).map(Payload::Rtp).ok_or(Dropped::NotMedia),
            Kind::Rtcp => Rtcp::new(bytes).map(Payload::Rtcp).ok_or(Dropped::NotMedia),
            Kind::Stun | Kind::Dtls => Ok(Payload::Other),
            Kind::Zrtp if !control => Ok(Payload::Other),
            Kind::Rtp | Kind::Zrtp | Kind::TurnChannel | Kind::Other => Err(Dropped::NotMedia),
        }
    }
}

impl Line {
    /// Counts a datagram of side number `from`.
    fn count(&mut self, from: usize, media: &Payload<'_>, bytes: usize, now: Nanos) {
        let leg = &mut self.legs[from];
        leg.last = leg.last.max(now.0);
        match media {
            Payload::Rtp(rtp) => leg.stream(&self.terms, from, rtp, bytes, now),
            Payload::Rtcp(rtcp) => self.control(from, rtcp, now),
            Payload::Other => leg.others = leg.others.saturating_add(1),
        }
    }

    /// The local port and the place that a datagram leaves from and for, to side number `to`, which offers to be at
    /// `offered`.
    fn destination(
        &self,
        to: usize,
        offered: Option<&End>,
        media: &Payload<'_>,
        control: bool,
    ) -> Result<(u16, Place), Dropped> {
        let (agreed, leg) = (&self.terms.ends[to], &self.legs[to]);
        // Who offers to take media takes it from then on (RFC 3264 section 5.1): the first words of who answers come
        // before the answer.
        let resumed = offered.filter(|end| !agreed.takes_media() && end.takes_media());
        let end = resumed.unwrap_or(agreed);
        // What ICE has found holds whatever address is described, until checks of other names find another.
        let found = leg.ice.as_ref().is_some_and(|agent| agent.nominated(0).is_some())
            && end.ice().zip(agreed.ice()).is_some_and(|(new, old)| new == old);
        let learnt = (found || end.media == agreed.media) && leg.latch.media.port != 0;
        let held = end.media.port != 0 && end.media.ip_is_zero() && end.ice().is_none();
        let place = match media {
            Payload::Rtp(_) if held || !end.direction.receives() => return Err(Dropped::Held),
            Payload::Rtcp(_) if !self.terms.muxes() => leg.control_place(end.rtcp_place(), learnt),
            Payload::Other if control => leg.control_place(end.rtcp_place(), learnt),
            Payload::Rtp(_) | Payload::Rtcp(_) | Payload::Other if learnt => leg.latch.media,
            Payload::Rtp(_) | Payload::Rtcp(_) | Payload::Other => end.media,
        };
        if !place.is_somewhere() {
            return Err(if held { Dropped::Held } else { Dropped::NoDestination });
        }
        let beside = match media {
            Payload::Rtp(_) => false,
            Payload::Rtcp(_) => !self.terms.muxes(),
            Payload::Other => control,
        };
        Ok((leg.local | u16::from(beside), place))
    }
}

impl Place {
    fn ip_is_zero(&self) -> bool {
        // An IPv4 address of zeros is mapped.
        let ip = std::net::Ipv6Addr::from(self.ip);
        ip.is_unspecified() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_unspecified())
    }
}

impl End {
    /// Whether it wants media now.
    fn takes_media(&self) -> bool {
        self.is_reachable() && self.direction.receives()
    }
}

impl Leg {
    /// Where its RTCP is, as learnt if that holds, or else as described.
    fn control_place(&self, described: Place, learnt: bool) -> Place {
        if let Some(nominated) = self.ice.as_ref().filter(|_| learnt).and_then(|agent| agent.nominated(1)) {
            return nominated;
        }
        match self.latch.rtcp {
            port if learnt && port != 0 => Place { ip: self.latch.media.ip, port },
            _ => described,
        }
    }

    fn stream(&mut self, terms: &Terms, from: usize, rtp: &Rtp<'_>, bytes: usize, now: Nanos) {
        let coding = terms.coding(from, rtp.payload_type());
        let at = match self.streams.iter().position(|stream| stream.ssrc == rtp.ssrc()) {
            Some(at) => at,
            None => {
                self.make_room();
                self.streams.push(Stream::new(rtp, coding, now));
                self.streams.len() - 1
            }
        };
        self.streams[at].take(rtp, bytes, coding, now);
        if coding.codec.is_event()
            && terms.transport == Transport::Rtp
            && let Some(event) = rtp.payload().and_then(TelephoneEvent::read)
        {
            self.keys.get_or_insert_default().take(rtp.ssrc(), rtp.timestamp(), &event, coding.clock);
        }
    }

    /// Folds the stream that is silent longest, the first of equals, if there are too many.
    fn make_room(&mut self) {
        if self.streams.is_empty() {
            // Most sides send one.
            self.streams.reserve_exact(1);
        }
        if self.streams.len() >= MAX_STREAMS
            && let Some(oldest) = (0..self.streams.len()).min_by_key(|n| self.streams[*n].last)
        {
            let stream = self.streams.remove(oldest);
            self.folded.get_or_insert_default().add(&stream);
        }
    }
}
