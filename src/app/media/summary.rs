//! What the call detail record says about media: the counts as figures.

use serde::Serialize;

use super::line::{Leg, Line, Place, Terms};
use super::mos::{self, Conditions};
use super::stream::{Folded, Stream};
use super::{Dropped, Media};
use crate::types::Endpoint;
use crate::wire::dtmf;
use crate::wire::sdp::describe::{Direction, MediaKind, Transport};

/// The media of a call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MediaSummary {
    /// One per m-line.
    pub lines: Vec<LineSummary>,
    /// Datagrams dropped, by reason; only reasons that occurred.
    pub dropped: std::collections::BTreeMap<&'static str, u32>,
}

/// An m-line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LineSummary {
    /// What it was for.
    pub kind: MediaKind,
    /// What carried it.
    pub transport: Transport,
    /// Whether it was agreed on at the end.
    pub live: bool,
    /// The side that sent the INVITE.
    pub caller: SideSummary,
    /// The other.
    pub callee: SideSummary,
}

/// What came from one side of an m-line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SideSummary {
    /// The local port it sent to; 0 once given back.
    pub local_port: u16,
    /// IP:PORT its description named.
    pub described: Option<String>,
    /// IP:PORT its media came from.
    pub source: Option<String>,
    /// Which way media flowed, as it said last.
    pub direction: Direction,
    /// The codecs it agreed to, by preference.
    pub codecs: Vec<&'static str>,
    /// Each SSRC it sent.
    pub streams: Vec<StreamSummary>,
    /// The sum of streams past the four that are told apart.
    pub folded: Option<FoldedSummary>,
    /// Datagrams that were neither RTP nor RTCP (fax, DTLS).
    pub other_datagrams: u32,
    /// RTCP datagrams.
    pub rtcp_datagrams: u32,
    /// Round trip between Tandem and it, in ms.
    pub round_trip_ms: Option<f64>,
    /// R factor it reported itself (RFC 3611).
    pub reported_r_factor: Option<u8>,
    /// MOS it reported itself (RFC 3611).
    pub reported_mos: Option<f64>,
    /// Telephone events.
    pub dtmf_events: u32,
    /// The first 32 of them: keys as 0-9 * # A-D, other events as their number.
    pub dtmf: Vec<KeySummary>,
}

/// A key pressed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeySummary {
    /// The key, or the event's number.
    pub key: String,
    /// How long, in ms.
    pub duration_ms: u32,
}

/// Streams that were not kept one by one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FoldedSummary {
    /// How many.
    pub streams: u32,
    /// Packets.
    pub packets: u64,
    /// Bytes of RTP.
    pub bytes: u64,
    /// Packets lost.
    pub lost: u64,
}

impl From<Folded> for FoldedSummary {
    fn from(folded: Folded) -> FoldedSummary {
        let Folded { streams, packets, bytes, lost } = folded;
        FoldedSummary { streams, packets, bytes, lost }
    }
}

/// One SSRC.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamSummary {
    /// It.
    pub ssrc: u32,
    /// Codec of its last packet that was no telephone event.
    pub codec: &'static str,
    /// The payload type of that packet.
    pub payload_type: u8,
    /// Packets, copies included.
    pub packets: u32,
    /// Bytes of RTP.
    pub bytes: u64,
    /// Packets that its sequence numbers promise.
    pub expected: u32,
    /// Packets that never came.
    pub lost: u32,
    /// The same as RFC 3550 counts: expected less all that came, copies too.
    pub lost_net: i64,
    /// Packets that never came, in percent of those expected.
    pub loss_percent: f64,
    /// Mean number of packets lost in a row.
    pub loss_run: f64,
    /// Packets that came again.
    pub duplicates: u32,
    /// Packets that came after one sent later.
    pub late: u32,
    /// Interarrival jitter at the end (RFC 3550), in ms.
    pub jitter_ms: f64,
    /// The highest it was, in ms.
    pub jitter_max_ms: f64,
    /// Logical time of its first packet, in ns since 1970.
    pub first_ns: u64,
    /// Logical time of its last.
    pub last_ns: u64,
    /// The longest time between two packets, in ms.
    pub longest_gap_ms: f64,
    /// What its receiver last reported.
    pub reported: Option<ReportSummary>,
    /// R factor estimated from loss, its runs, and delay (ITU-T G.107); none for codecs without figures.
    pub r_factor: Option<f64>,
    /// Mean opinion score of that.
    pub mos: Option<f64>,
}

/// What a receiver reported of a stream (RFC 3550).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportSummary {
    /// Packets lost since the report before, in percent.
    pub loss_percent: f64,
    /// Packets lost in all.
    pub lost: i32,
    /// Jitter in ms.
    pub jitter_ms: f64,
}

impl Media {
    /// The figures as they are now.
    pub fn summary(&self) -> MediaSummary {
        let counted = Dropped::ALL.into_iter().map(|reason| (reason.name(), self.dropped[reason as usize]));
        MediaSummary {
            lines: self.lines.iter().map(Line::summary).collect(),
            dropped: counted.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

fn text(place: Place) -> Option<String> {
    (place.port != 0).then(|| std::net::SocketAddr::from(Endpoint::from(place)).to_string())
}

/// To the thousandth, which is more than any of them means.
fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

impl Line {
    fn summary(&self) -> LineSummary {
        // Round trips to both sides add up; half of that is the way from mouth to ear.
        let trips = self.legs.iter().map(|leg| leg.control.as_ref().map_or(0, |control| control.round_trip));
        let delay = trips.map(f64::from).sum::<f64>() / 2_000.0;
        let side = |n: usize| self.legs[n].summary(&self.terms, n, delay);
        let Terms { kind, transport, live, .. } = self.terms;
        LineSummary { kind, transport, live, caller: side(0), callee: side(1) }
    }
}

impl Leg {
    fn summary(&self, terms: &Terms, n: usize, delay: f64) -> SideSummary {
        let end = &terms.ends[n];
        let control = self.control.as_deref().copied().unwrap_or_default();
        let (r_factor, mos, _) = control.voice.unwrap_or_default();
        let keys = self.keys.as_deref();
        let press = |press: &super::keys::Press| KeySummary {
            key: dtmf::key(press.event).map_or_else(|| press.event.to_string(), String::from),
            duration_ms: press.duration,
        };
        SideSummary {
            local_port: self.local,
            described: text(end.media),
            source: text(self.latch.media),
            direction: end.direction,
            codecs: end.formats.iter().map(|format| format.codec.name()).collect(),
            streams: self.streams.iter().map(|stream| stream.summary(delay)).collect(),
            folded: self.folded.as_deref().copied().map(FoldedSummary::from),
            other_datagrams: self.others,
            rtcp_datagrams: control.datagrams,
            round_trip_ms: (control.round_trip > 0).then(|| f64::from(control.round_trip) / 1_000.0),
            reported_r_factor: r_factor,
            reported_mos: mos.map(|mos| f64::from(mos) / 10.0),
            dtmf_events: keys.map_or(0, |keys| keys.count),
            dtmf: keys.map_or_else(Vec::new, |keys| keys.presses.iter().map(press).collect()),
        }
    }
}

impl Stream {
    fn summary(&self, delay: f64) -> StreamSummary {
        let ms = |units: u32| rounded(f64::from(units) * 1_000.0 / f64::from(self.clock.max(1)));
        let (lost, expected) = (f64::from(self.lost()), f64::from(self.expected().max(1)));
        let burst = if self.runs > 0 { (lost / f64::from(self.runs)).max(1.0) } else { 1.0 };
        // A receiver's buffer adds about twice the jitter.
        let jitter = ms(self.jitter >> 4);
        let conditions =
            Conditions { codec: self.codec, loss: lost / expected, burst, delay: delay + 2.0 * jitter };
        let r_factor = mos::r_factor(&conditions);
        StreamSummary {
            ssrc: self.ssrc,
            codec: self.codec.name(),
            payload_type: self.payload_type,
            packets: self.packets,
            bytes: self.bytes,
            expected: self.expected(),
            lost: self.lost(),
            lost_net: self.lost_net(),
            loss_percent: rounded(lost / expected * 100.0),
            loss_run: if self.lost() > 0 { rounded(burst) } else { 0.0 },
            duplicates: self.duplicates,
            late: self.late,
            jitter_ms: jitter,
            jitter_max_ms: ms(self.jitter_max >> 4),
            first_ns: self.first,
            last_ns: self.last,
            longest_gap_ms: f64::from(self.gap) / 1_000.0,
            reported: self.reported.map(|(fraction, lost, jitter)| ReportSummary {
                loss_percent: rounded(f64::from(fraction) / 2.56),
                lost,
                jitter_ms: ms(jitter),
            }),
            r_factor: r_factor.map(rounded),
            mos: r_factor.map(|r| rounded(mos::score(r))),
        }
    }
}
