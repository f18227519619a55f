//! What a capture holds in calls and streams: the figures of `tandem inspect`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use serde::Serialize;

use super::messages::Messages;
use super::{Capture, Datagram};
use crate::wire::rtp::{Rtcp, Rtp};
use crate::wire::sdp;
use crate::wire::sip::scan::{Message, StartLine};

/// Ports below this belong to other services, and their datagrams are not guessed to be RTP.
const FIRST_MEDIA_PORT: u16 = 1_024;

/// SIP messages, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SipCounts {
    /// Frames that hold, or complete, at least one message.
    pub frames: u32,
    /// Requests by method.
    pub requests: BTreeMap<String, u32>,
    /// Responses by status code.
    pub responses: BTreeMap<String, u32>,
}

/// One RTP stream: packets of one SSRC from one address to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RtpStream {
    /// IP:PORT it comes from.
    pub source: SocketAddr,
    /// IP:PORT it goes to.
    pub destination: SocketAddr,
    /// As eight hexadecimal digits behind 0x.
    #[serde(serialize_with = "as_hex")]
    pub ssrc: u32,
    /// In ascending order.
    pub payload_types: BTreeSet<u8>,
    /// How many, doubles included.
    pub packets: u32,
    /// Whether SDP earlier in the file named its source or its destination; otherwise it was recognised
    /// by its looks alone.
    pub announced: bool,
}

/// What a capture holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// All SIP messages, over UDP and TCP.
    pub sip: SipCounts,
    /// Those over TCP alone.
    pub sip_over_tcp: SipCounts,
    /// Every Call-ID, in order of first appearance.
    pub call_ids: Vec<String>,
    /// How many of them came over TCP.
    pub call_ids_over_tcp: usize,
    /// In order of first appearance.
    pub rtp_streams: Vec<RtpStream>,
    /// RTCP datagrams.
    pub rtcp_frames: u32,
}

fn as_hex<S: serde::Serializer>(ssrc: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("0x{ssrc:08x}"))
}

/// Counts what `capture` holds, frame by frame as they stand in the file.
pub fn survey(capture: &Capture) -> Survey {
    let mut counter = Counter::default();
    let (mut datagrams, mut segments) =
        (capture.datagrams.iter().peekable(), capture.segments.iter().peekable());
    loop {
        // Announcements count from where they stand in the file, so both kinds are taken in file order.
        let datagram_first = match (datagrams.peek(), segments.peek()) {
            (Some(datagram), Some(segment)) => datagram.frame <= segment.frame,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => break,
        };
        if datagram_first {
            datagrams.next().into_iter().for_each(|datagram| counter.datagram(datagram));
        } else if let Some(segment) = segments.next() {
            let (found, mut messages) = (&mut counter.found, std::mem::take(&mut counter.messages));
            let mut any = false;
            messages.segment(segment, |message| {
                any = true;
                found.message(message, true);
            });
            counter.messages = messages;
            found.survey.sip.frames += u32::from(any);
            found.survey.sip_over_tcp.frames += u32::from(any);
        }
    }
    counter.found.survey.call_ids_over_tcp = counter.found.ids_over_tcp.len();
    counter.found.survey
}

#[derive(Default)]
struct Counter {
    found: Found,
    messages: Messages,
    /// Where in `rtp_streams` a stream stands.
    streams: HashMap<(SocketAddr, SocketAddr, u32), usize>,
}

#[derive(Default)]
struct Found {
    survey: Survey,
    ids: HashSet<Vec<u8>>,
    ids_over_tcp: HashSet<Vec<u8>>,
    /// Media ports of SDP so far, and whether they carry RTP.
    announced: HashMap<SocketAddr, bool>,
}

impl Counter {
    fn datagram(&mut self, datagram: &Datagram) {
        let payload = &datagram.payload[..];
        if let Some(message) = Message::parse(payload) {
            self.found.survey.sip.frames += 1;
            self.found.message(&message, false);
        } else if Rtcp::new(payload).is_some() {
            let low = datagram.source.port().min(datagram.destination.port()) < FIRST_MEDIA_PORT;
            self.found.survey.rtcp_frames += u32::from(!low);
        } else if let Some(rtp) = Rtp::new(payload) {
            self.rtp(datagram, rtp);
        }
    }

    fn rtp(&mut self, datagram: &Datagram, rtp: Rtp<'_>) {
        let (source, destination) = (datagram.source, datagram.destination);
        // SDP names where media goes to; only if it said nothing of that, where it comes from counts.
        let said = [destination, source].iter().find_map(|end| self.found.announced.get(end).copied());
        let guessed = said.is_none() && source.port().min(destination.port()) >= FIRST_MEDIA_PORT;
        let announced = said == Some(true);
        if !announced && !guessed {
            return;
        }
        let streams = &mut self.found.survey.rtp_streams;
        let at = *self.streams.entry((source, destination, rtp.ssrc())).or_insert_with(|| {
            let (ssrc, payload_types) = (rtp.ssrc(), BTreeSet::new());
            streams.push(RtpStream { source, destination, ssrc, payload_types, packets: 0, announced });
            streams.len() - 1
        });
        let stream = &mut streams[at];
        stream.packets += 1;
        stream.announced |= announced;
        stream.payload_types.insert(rtp.payload_type());
    }
}

impl Found {
    fn message(&mut self, message: &Message<'_>, over_tcp: bool) {
        self.survey.sip.count(message);
        if over_tcp {
            self.survey.sip_over_tcp.count(message);
        }
        if let Some(id) = message.call_id() {
            if self.ids.insert(id.to_vec()) {
                self.survey.call_ids.push(String::from_utf8_lossy(id).into_owned());
            }
            if over_tcp {
                self.ids_over_tcp.insert(id.to_vec());
            }
        }
        self.announced.extend(sdp::announced(message.body()).map(|a| (a.address, a.rtp)));
    }
}

impl SipCounts {
    fn count(&mut self, message: &Message<'_>) {
        match message.start() {
            StartLine::Request { method, .. } => {
                *self.requests.entry(String::from_utf8_lossy(method).into_owned()).or_default() += 1;
            }
            StartLine::Response { status } => *self.responses.entry(status.to_string()).or_default() += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::capture::Segment;
    use crate::types::Nanos;
    use bytes::Bytes;

    const RTP: &[u8] = &[0x80, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 1, 2];

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn datagram(frame: u32, source: &str, destination: &str, payload: &[u8]) -> Datagram {
        let (source, destination) = (address(source), address(destination));
        let payload = Bytes::copy_from_slice(payload);
        Datagram { time: Nanos::ZERO, frame, source, destination, payload, cut: false }
    }

    fn media(frame: u32, line: &str) -> Datagram {
        let sip = format!("ACK sip:b SIP/2.0\r\ni: x\r\n\r\nv=0\r\nc=IN IP4 10.0.0.1\r\nm={line}\r\n");
        datagram(frame, "10.0.0.2:5060", "10.0.0.1:5060", sip.as_bytes())
    }

    fn streams(datagrams: Vec<Datagram>) -> Vec<(u32, bool)> {
        let found = survey(&Capture { datagrams, ..Capture::default() });
        found.rtp_streams.iter().map(|s| (s.packets, s.announced)).collect()
    }

    #[test]
    fn sdp_says_what_is_rtp_from_where_it_stands() {
        let rtp = |frame, port: u16| datagram(frame, "10.0.0.2:4000", &format!("10.0.0.1:{port}"), RTP);
        assert_eq!(streams(vec![rtp(1, 5000)]), [(1, false)]);
        assert_eq!(streams(vec![rtp(1, 443)]), []);
        assert_eq!(streams(vec![media(1, "audio 443 RTP/AVP 0"), rtp(2, 443)]), [(1, true)]);
        let before_and_after = vec![rtp(1, 5000), media(2, "audio 5000 RTP/AVP 0"), rtp(3, 5000)];
        assert_eq!(streams(before_and_after), [(2, true)]);
        let fax = vec![
            media(1, "audio 5000 RTP/AVP 0"),
            rtp(2, 5000),
            media(3, "image 5000 udptl t38"),
            rtp(4, 5000),
            media(5, "audio 5000 RTP/AVP 0"),
            rtp(6, 5000),
        ];
        assert_eq!(streams(fax), [(2, true)]);
    }

    #[test]
    fn messages_over_tcp_count_in_both_and_in_file_order() {
        let sip =
            b"INVITE sip:b SIP/2.0\r\ni: t\r\nl: 45\r\n\r\nv=0\r\nc=IN IP4 10.0.0.1\r\nm=audio 443 RTP/AVP 0";
        let segment = Segment {
            time: Nanos::ZERO,
            frame: 2,
            source: address("10.0.0.2:5060"),
            destination: address("10.0.0.1:5060"),
            sequence: 0,
            payload: Bytes::from_static(sip),
        };
        let rtp = |frame| datagram(frame, "10.0.0.2:4000", "10.0.0.1:443", RTP);
        let datagrams = vec![rtp(1), media(1, "text 1 TCP/T140"), rtp(3)];
        let found = survey(&Capture { datagrams, segments: vec![segment], ..Capture::default() });
        assert_eq!((found.sip.frames, found.sip_over_tcp.frames), (2, 1));
        assert_eq!(found.call_ids, ["x", "t"]);
        assert_eq!(found.call_ids_over_tcp, 1);
        assert_eq!(found.sip_over_tcp.requests, [("INVITE".to_owned(), 1)].into());
        // The first packet to port 443 came before anybody had announced it.
        assert_eq!(found.rtp_streams.iter().map(|s| s.packets).collect::<Vec<_>>(), [1]);
    }
}
