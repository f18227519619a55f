//! Splits a capture into calls.
//!
//! 1. SIP messages with the same Call-ID are one call.
//! 2. A datagram that is not SIP belongs to the call whose SDP announced its destination, or else its source
//!    (the port itself or, for RTCP, the one above). If several calls announced the same address (a sender
//!    that uses one port for all), the stream goes to the call that announced it last before the stream's
//!    first packet and to which no other stream between the same addresses went, and stays there.
//! 3. What is left is split by its two addresses, both directions together, an odd port together with the
//!    even one below it (RTP with its RTCP).
//!
//! Times within a call count from its first datagram.

use std::net::SocketAddr;

use hashbrown::{HashMap, HashSet};

use crate::cli::capture::Datagram;
use crate::types::Nanos;
use crate::wire::rtp::{self, Kind, Rtcp, Rtp};
use crate::wire::sdp;
use crate::wire::sip::scan::Message;

/// The datagrams of one call, in the order of the capture.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Its Call-ID, or its two addresses.
    pub(crate) name: String,
    /// The Call-ID.
    pub(crate) id: Option<Vec<u8>>,
    pub(crate) datagrams: Vec<Datagram>,
}

/// Two addresses, the lower one first, with even ports.
type Pair = (SocketAddr, SocketAddr);
/// Source, destination, SSRC.
type Stream = (SocketAddr, SocketAddr, Option<u32>);

#[derive(Default)]
struct Splitter {
    calls: Vec<Call>,
    by_id: HashMap<Vec<u8>, usize>,
    by_pair: HashMap<Pair, usize>,
    by_stream: HashMap<Stream, usize>,
    /// Who announced an address, and when; in order of time.
    announced: HashMap<SocketAddr, Vec<(Nanos, usize)>>,
    /// Which calls have a stream between two addresses.
    taken: HashSet<(usize, SocketAddr, SocketAddr)>,
}

/// Splits the datagrams of one capture.
pub(crate) fn split(datagrams: &[Datagram]) -> Vec<Call> {
    let mut splitter = Splitter::default();
    // Media may start before its announcement is seen, so all announcements come first.
    let homes: Vec<Option<usize>> = datagrams.iter().map(|datagram| splitter.signalling(datagram)).collect();
    for (datagram, home) in datagrams.iter().zip(homes) {
        let call = home.unwrap_or_else(|| splitter.media(datagram));
        splitter.calls[call].datagrams.push(datagram.clone());
    }
    splitter.calls.retain(|call| !call.datagrams.is_empty());
    splitter.calls
}

impl Splitter {
    fn new_call(&mut self, name: String, id: Option<Vec<u8>>) -> usize {
        self.calls.push(Call { name, id, datagrams: Vec::new() });
        self.calls.len() - 1
    }

    fn signalling(&mut self, datagram: &Datagram) -> Option<usize> {
        let message = Message::parse(&datagram.payload)?;
        let id = message.call_id()?;
        let call = match self.by_id.get(id) {
            Some(call) => *call,
            None => {
                let call = self.new_call(String::from_utf8_lossy(id).into_owned(), Some(id.to_vec()));
                self.by_id.insert(id.to_vec(), call);
                call
            }
        };
        for address in sdp::announced(message.body()).map(|announced| announced.address) {
            let entry = self.announced.entry(address).or_default();
            if entry.last().is_none_or(|(_, last)| *last != call) {
                entry.push((datagram.time, call));
            }
        }
        Some(call)
    }

    fn media(&mut self, datagram: &Datagram) -> usize {
        let stream = (datagram.source, datagram.destination, ssrc(&datagram.payload));
        if let Some(call) = self.by_stream.get(&stream) {
            return *call;
        }
        let call = self.announcer(datagram).unwrap_or_else(|| self.pair(datagram));
        self.by_stream.insert(stream, call);
        self.taken.insert((call, datagram.source, datagram.destination));
        call
    }

    fn announcer(&self, datagram: &Datagram) -> Option<usize> {
        let (source, destination) = (datagram.source, datagram.destination);
        let below = |a: SocketAddr| SocketAddr::new(a.ip(), a.port().saturating_sub(1));
        let addresses = [destination, source, below(destination), below(source)];
        let calls = addresses.iter().find_map(|address| self.announced.get(address))?;
        let before = calls.iter().rev().filter(|(time, _)| *time <= datagram.time);
        let free = before.clone().find(|(_, call)| !self.taken.contains(&(*call, source, destination)));
        free.or_else(|| before.clone().next()).or_else(|| calls.first()).map(|(_, call)| *call)
    }

    fn pair(&mut self, datagram: &Datagram) -> usize {
        let even = |a: SocketAddr| SocketAddr::new(a.ip(), a.port() & !1);
        let (one, other) = (even(datagram.source), even(datagram.destination));
        let pair = (one.min(other), one.max(other));
        match self.by_pair.get(&pair) {
            Some(call) => *call,
            None => {
                let call = self.new_call(format!("{} - {}", datagram.source, datagram.destination), None);
                self.by_pair.insert(pair, call);
                call
            }
        }
    }
}

/// The SSRC of the stream that a datagram belongs to.
pub(crate) fn ssrc(bytes: &[u8]) -> Option<u32> {
    match rtp::kind(bytes) {
        Kind::Rtp => Rtp::new(bytes).map(|rtp| rtp.ssrc()),
        Kind::Rtcp => Rtcp::new(bytes).map(|rtcp| rtcp.stream()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::split;
    use crate::cli::capture::Datagram;
    use crate::types::Nanos;

    fn datagram(ms: u64, source: &str, destination: &str, payload: Vec<u8>) -> Datagram {
        Datagram {
            time: Nanos::from_millis(ms),
            frame: 1,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            payload: Bytes::from(payload),
            cut: false,
        }
    }

    fn invite(id: &str, port: u16) -> Vec<u8> {
        format!("INVITE sip:b SIP/2.0\r\nCall-ID: {id}\r\n\r\nv=0\r\nc=IN IP4 10.0.0.1\r\nm=audio {port} RTP/AVP 0\r\n")
            .into_bytes()
    }

    fn rtp(ssrc: u32) -> Vec<u8> {
        [0x8000_0001_u32, 1, ssrc, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn announced_streams_join_their_call_and_others_stand_alone() {
        let rtcp = [0x80c9_0001_u32, 7].iter().flat_map(|word| word.to_be_bytes()).collect();
        let calls = split(&[
            datagram(0, "10.0.0.1:5060", "10.0.0.2:5060", invite("one", 4000)),
            datagram(0, "10.0.0.1:5060", "10.0.0.2:5060", invite("two", 4002)),
            datagram(5, "10.0.0.2:7000", "10.0.0.1:4000", rtp(1)),
            datagram(5, "10.0.0.1:4002", "10.0.0.2:7002", rtp(2)),
            datagram(6, "10.0.0.2:7001", "10.0.0.1:4001", rtcp),
            datagram(6, "10.0.0.9:9000", "10.0.0.8:9000", rtp(3)),
            datagram(7, "10.0.0.8:9001", "10.0.0.9:9001", b"x".to_vec()),
        ]);
        let found: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.datagrams.len())).collect();
        assert_eq!(found, [("one", 3), ("two", 2), ("10.0.0.9:9000 - 10.0.0.8:9000", 2)]);
    }

    #[test]
    fn calls_that_announce_the_same_address_get_one_stream_each() {
        let calls = split(&[
            datagram(0, "10.0.0.1:5060", "10.0.0.2:5060", invite("one", 4000)),
            datagram(1, "10.0.0.2:7000", "10.0.0.1:4000", rtp(1)),
            datagram(2, "10.0.0.1:5060", "10.0.0.2:5060", invite("two", 4000)),
            datagram(3, "10.0.0.2:7000", "10.0.0.1:4000", rtp(1)),
            datagram(4, "10.0.0.2:7000", "10.0.0.1:4000", rtp(2)),
            datagram(5, "10.0.0.2:7000", "10.0.0.1:4000", rtp(2)),
        ]);
        let found: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.datagrams.len())).collect();
        assert_eq!(found, [("one", 3), ("two", 3)]);
    }
}
