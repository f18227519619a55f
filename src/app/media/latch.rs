//! Whose packets are believed: the address described, or behind a NAT the one that speaks first.
//!
//! Anybody can send to an open port, so what a description did not name is believed only shortly after a description,
//! once, or where it goes on with SSRC and sequence number of the stream that was believed before. The address described
//! is always believed, and once it has spoken nothing else is. (The weakness is known as RTP bleed: a relay that follows
//! whoever speaks gives the call to strangers.) A party that does ICE proves where it is: a source that has checked is
//! believed, and once a pair is nominated nothing else is.

use super::line::{End, Leg};
use crate::types::{Endpoint, Nanos};
use crate::wire::rtp::Rtp;

/// What is asked about a datagram.
#[derive(Copy, Clone, Debug)]
pub(super) struct Arrival<'a> {
    /// Where it came from.
    pub source: Endpoint,
    /// When.
    pub now: Nanos,
    /// The datagram, if it is RTP.
    pub rtp: Option<Rtp<'a>>,
}

impl Leg {
    /// Whether to believe a datagram on the media port, of a side that described itself as `end` and offers to move to
    /// `offered`. Learns where the side is.
    pub(super) fn believes(&mut self, end: &End, offered: Option<&End>, arrival: &Arrival<'_>) -> bool {
        let source = arrival.source.into();
        let offers = offered.is_some_and(|end| end.media == source);
        if let Some(agent) = self.ice.as_mut().filter(|agent| agent.nominated(0).is_some()) {
            // All that it checked is its own (RFC 8445 section 12.1).
            let known = agent.knows(0, source);
            if known && agent.hear(source) {
                self.follow_nomination();
            }
            known || offers
        } else if source == end.media {
            (self.latch.media, self.latch.settled, self.latch.pinned) = (source, true, true);
            true
        } else if offers || self.ice.as_ref().is_some_and(|agent| agent.knows(0, source)) {
            // It may send from what it offers before the answer comes, but nothing is sent there; and from what it has
            // checked before it has nominated anything.
            true
        } else if source == self.latch.media {
            self.latch.settled = true;
            true
        } else if self.latch.pinned {
            false
        } else if !self.latch.settled && arrival.now.0 <= self.latch.until || self.continues(arrival) {
            (self.latch.media, self.latch.settled) = (source, true);
            true
        } else {
            false
        }
    }

    /// Whether the packet goes on where a stream of this side is.
    fn continues(&self, arrival: &Arrival<'_>) -> bool {
        let Some(rtp) = arrival.rtp else { return false };
        let goes_on = |s: &super::stream::Stream| s.ssrc == rtp.ssrc() && s.continues_with(rtp.sequence());
        self.streams.iter().any(goes_on)
    }

    /// Whether to believe a datagram on the RTCP port: it must come from the address of the side's media, or have proven
    /// to be the side's.
    pub(super) fn believes_control(&mut self, end: &End, source: Endpoint) -> bool {
        let agent = self.ice.as_ref();
        let nominated = |component| agent.is_some_and(|agent| agent.nominated(component).is_some());
        if agent.is_some_and(|agent| agent.knows(1, source.into())) {
            return true;
        } else if nominated(1) {
            return false;
        }
        let described = end.rtcp_place();
        let known = !nominated(0) && (source == described.into() || source.ip == end.media.ip);
        let learnt = source.ip == self.latch.media.ip && self.latch.media.port != 0;
        if learnt {
            self.latch.rtcp = source.port;
        }
        known || learnt
    }
}
