//! Call records: what is kept of a call that is over, as one line of JSON.
//!
//! | key | what it is |
//! |---|---|
//! | `id` | unique in the cluster: the call's key and the position at which it began, in hex |
//! | `call_id` | the Call-ID |
//! | `slot` | the slot's number |
//! | `caller`, `callee` | the URIs of From and To |
//! | `request_uri` | where the INVITE asked to go |
//! | `source` | IP:PORT the INVITE came from |
//! | `target` | IP:PORT of the target that answered, or of the last one tried; null if there was none |
//! | `tried` | every target tried, in order, at most 16 |
//! | `start`, `ring`, `answer`, `end` | INVITE, first 18x, 200, end: RFC 3339 in UTC to the ms; null for what did not happen |
//! | `duration_ms` | from answer to end; 0 if it was not answered |
//! | `outcome` | [`Outcome`]: answered, busy, cancelled, no_answer, refused, redirected, failed, timeout, no_route |
//! | `code` | the final response to the INVITE that the caller got; 0 if there was none |
//! | `ended_by` | caller, callee or tandem |
//! | `cause` | [`Cause`]: bye, cancel, response, no_route, target_timeout, ring_timeout, media_timeout, max_duration, session_timer |
//! | `takeovers` | how often the slot's master or owner became another while the call lasted |
//! | `media` | per m-line and side: see [`crate::app::media::summary`]; null if no media was anchored |
//! | `media_cut` | true if `media` is shorter than it should be, so that the line stays under [`MAX_LINE`] bytes |
//!
//! Times are logical, so all members write the same bytes. Text is cut at [`MAX_TEXT`] characters; bytes that are no
//! UTF-8 are read as Latin-1.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde::{Serialize, Serializer};

use crate::app::media::summary::MediaSummary;
use crate::types::{CallKey, Endpoint, Nanos};

/// The longest text of a record in characters.
pub const MAX_TEXT: usize = 256;
/// The longest line in bytes.
pub const MAX_LINE: usize = 32_000;
/// The most targets that a record names.
pub const MAX_TRIED: usize = 16;
/// The m-lines that are kept when a record is too long with all.
const KEPT_LINES: usize = 2;

/// How the INVITE went.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// 2xx.
    Answered,
    /// 486 or 600.
    Busy,
    /// The caller gave up.
    Cancelled,
    /// It rang until the ring timeout, or a target said 480 or 408 after it had rung.
    NoAnswer,
    /// Any other 4xx or 6xx.
    Refused,
    /// 3xx.
    Redirected,
    /// 5xx.
    Failed,
    /// No target answered.
    Timeout,
    /// No rule fits.
    NoRoute,
}

impl Outcome {
    /// What a final response means; `rang`: a 18x came before it. [`Outcome::NoRoute`] is not told by its code.
    pub fn of(code: u16, rang: bool) -> Outcome {
        match code {
            200..=299 => Outcome::Answered,
            300..=399 => Outcome::Redirected,
            486 | 600 => Outcome::Busy,
            487 => Outcome::Cancelled,
            408 | 480 if rang => Outcome::NoAnswer,
            408 | 0 => Outcome::Timeout,
            500..=599 => Outcome::Failed,
            _ => Outcome::Refused,
        }
    }
}

/// Who ended the call.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// Who sent the INVITE.
    Caller,
    /// Whom it went to.
    Callee,
    /// The proxy.
    Tandem,
}

/// Why it ended.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A BYE.
    Bye,
    /// A CANCEL.
    Cancel,
    /// A final response of the callee that is no 2xx.
    Response,
    /// No rule fits.
    NoRoute,
    /// No target answered.
    TargetTimeout,
    /// It rang for too long.
    RingTimeout,
    /// No media came for too long.
    MediaTimeout,
    /// It lasted too long.
    MaxDuration,
    /// The session was not refreshed (RFC 4028).
    SessionTimer,
}

/// A call record.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Cdr {
    /// Unique in the cluster.
    #[serde(serialize_with = "id")]
    pub id: (CallKey, u64),
    /// The Call-ID.
    pub call_id: String,
    /// The slot's number.
    pub slot: u16,
    /// The URI of From.
    pub caller: String,
    /// The URI of To.
    pub callee: String,
    /// Where the INVITE asked to go.
    pub request_uri: String,
    /// Where the INVITE came from.
    #[serde(serialize_with = "place")]
    pub source: Endpoint,
    /// The target that answered, or the last one tried.
    #[serde(serialize_with = "maybe_place")]
    pub target: Option<Endpoint>,
    /// Every target tried.
    #[serde(serialize_with = "places")]
    pub tried: Vec<Endpoint>,
    /// When the INVITE came.
    #[serde(serialize_with = "time")]
    pub start: Nanos,
    /// When it rang first.
    #[serde(serialize_with = "maybe_time")]
    pub ring: Option<Nanos>,
    /// When it was answered.
    #[serde(serialize_with = "maybe_time")]
    pub answer: Option<Nanos>,
    /// When it was over.
    #[serde(serialize_with = "time")]
    pub end: Nanos,
    /// How the INVITE went.
    pub outcome: Outcome,
    /// The final response that the caller got; 0: none.
    pub code: u16,
    /// Who ended it.
    pub ended_by: EndedBy,
    /// Why.
    pub cause: Cause,
    /// Takeovers survived.
    pub takeovers: u32,
    /// The media's figures.
    pub media: Option<MediaSummary>,
}

impl Cdr {
    /// The record as one line of at most [`MAX_LINE`] bytes, without a line end.
    pub fn line(mut self) -> String {
        let whole = self.json(false);
        if whole.len() <= MAX_LINE {
            return whole;
        }
        if let Some(media) = &mut self.media {
            media.lines.truncate(KEPT_LINES);
            let sides = media.lines.iter_mut().flat_map(|line| [&mut line.caller, &mut line.callee]);
            sides.for_each(|side| side.dtmf.clear());
        }
        let shorter = self.json(true);
        if shorter.len() <= MAX_LINE {
            return shorter;
        }
        self.media = None;
        self.json(true)
    }

    fn json(&self, media_cut: bool) -> String {
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            record: &'a Cdr,
            duration_ms: u64,
            media_cut: bool,
        }
        let duration_ms = self.answer.map_or(0, |answer| self.end.since(answer).0 / 1_000_000);
        // Strings and numbers alone: this cannot fail.
        serde_json::to_string(&Whole { record: self, duration_ms, media_cut }).unwrap_or_default()
    }
}

/// A message's bytes as text: what is no UTF-8 is read as Latin-1; cut at [`MAX_TEXT`] characters.
pub fn text(bytes: &[u8]) -> String {
    let mut out = String::new();
    // No character is longer than 4 bytes.
    for chunk in bytes[..bytes.len().min(MAX_TEXT * 4)].utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|byte| char::from(*byte)));
    }
    match out.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => String::from(&out[..end]),
        None => out,
    }
}

/// A time since 1970 as RFC 3339 says it, in UTC, cut to the ms.
pub fn rfc3339(time: Nanos) -> String {
    let ms = time.0 / 1_000_000;
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1_000 % 60);
    let mut out = String::with_capacity(24);
    let _ =
        write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", in_day % 1_000);
    out
}

/// Year, month and day of a day since 1970 (Howard Hinnant, chrono-compatible low-level date algorithms).
fn date(days: u64) -> (u64, u64, u64) {
    // Years begin in March, so that the leap day is the last; eras are 400 years long.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn id<S: Serializer>((key, position): &(CallKey, u64), to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{:032x}-{position:x}", key.0))
}

fn time<S: Serializer>(time: &Nanos, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&rfc3339(*time))
}

fn maybe_time<S: Serializer>(time: &Option<Nanos>, to: S) -> Result<S::Ok, S::Error> {
    time.map(rfc3339).serialize(to)
}

fn place<S: Serializer>(place: &Endpoint, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&SocketAddr::from(*place))
}

fn maybe_place<S: Serializer>(place: &Option<Endpoint>, to: S) -> Result<S::Ok, S::Error> {
    place.map(|place| SocketAddr::from(place).to_string()).serialize(to)
}

fn places<S: Serializer>(places: &[Endpoint], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(places.iter().take(MAX_TRIED).map(|place| SocketAddr::from(*place).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::media::Media;
    use crate::app::media::summary::{KeySummary, LineSummary, SideSummary};
    use crate::wire::sdp::describe::{Direction, MediaKind, Transport};
    use serde_json::{Value, json};

    fn at(text: &str) -> Endpoint {
        Endpoint::from(text.parse::<SocketAddr>().expect("an address"))
    }

    fn record() -> Cdr {
        let start = Nanos(1_000_000_000_123_999_999);
        Cdr {
            id: (CallKey(0xab), 255),
            call_id: text(b"a\"b\\c\r\n\x00@x"),
            slot: 7,
            caller: text(b"sip:J\xf6rg@x"),
            callee: text("sip:Jörg@y".as_bytes()),
            request_uri: String::from("sip:y"),
            source: at("192.0.2.1:5060"),
            target: Some(at("[2001:db8::1]:5060")),
            tried: vec![at("10.0.0.1:5060"); MAX_TRIED + 1],
            start,
            ring: None,
            answer: Some(start + Nanos::from_millis(1_500)),
            end: start + Nanos::from_millis(61_500),
            outcome: Outcome::Answered,
            code: 200,
            ended_by: EndedBy::Callee,
            cause: Cause::MediaTimeout,
            takeovers: 2,
            media: None,
        }
    }

    #[test]
    fn a_record_is_one_line_with_stable_keys() {
        let line = record().line();
        assert!(!line.contains('\n') && !line.contains('\r') && !line.contains('\0'), "{line}");
        let mut value: Value = serde_json::from_str(&line).expect("JSON");
        let tried = value["tried"].take();
        assert_eq!(tried, json!(vec!["10.0.0.1:5060"; MAX_TRIED]));
        let expected = json!({
            "id": "000000000000000000000000000000ab-ff",
            "call_id": "a\"b\\c\r\n\u{0}@x",
            "slot": 7,
            "caller": "sip:J\u{f6}rg@x",
            "callee": "sip:J\u{f6}rg@y",
            "request_uri": "sip:y",
            "source": "192.0.2.1:5060",
            "target": "[2001:db8::1]:5060",
            "tried": null,
            "start": "2001-09-09T01:46:40.123Z",
            "ring": null,
            "answer": "2001-09-09T01:46:41.623Z",
            "end": "2001-09-09T01:47:41.623Z",
            "outcome": "answered",
            "code": 200,
            "ended_by": "callee",
            "cause": "media_timeout",
            "takeovers": 2,
            "media": null,
            "duration_ms": 60_000,
            "media_cut": false,
        });
        assert_eq!(value, expected);
        let media = Cdr { media: Some(Media::new().summary()), answer: None, ..record() }.line();
        let value: Value = serde_json::from_str(&media).expect("JSON");
        assert_eq!((&value["media"]["lines"], &value["duration_ms"]), (&json!([]), &json!(0)));
    }

    fn side(keys: usize) -> SideSummary {
        SideSummary {
            local_port: 0,
            described: None,
            source: None,
            direction: Direction::SendRecv,
            codecs: Vec::new(),
            streams: Vec::new(),
            folded: None,
            other_datagrams: 0,
            rtcp_datagrams: 0,
            round_trip_ms: None,
            reported_r_factor: None,
            reported_mos: None,
            dtmf_events: keys as u32,
            dtmf: vec![KeySummary { key: String::from("1"), duration_ms: 100 }; keys],
        }
    }

    #[test]
    fn a_record_that_is_too_long_loses_media_first() {
        let line = |keys| LineSummary {
            kind: MediaKind::Audio,
            transport: Transport::Rtp,
            live: true,
            caller: side(keys),
            callee: side(keys),
        };
        let mut media = Media::new().summary();
        media.lines = vec![line(32); 20];
        let cut = Cdr { media: Some(media.clone()), ..record() }.line();
        let value: Value = serde_json::from_str(&cut).expect("JSON");
        assert!(cut.len() <= MAX_LINE && value["media_cut"] == json!(true));
        assert_eq!(value["media"]["lines"].as_array().map(Vec::len), Some(KEPT_LINES));
        assert_eq!(value["media"]["lines"][0]["caller"]["dtmf_events"], json!(32));
        media.lines[0].caller.codecs = vec!["PCMA"; 10_000];
        let bare = Cdr { media: Some(media), ..record() }.line();
        assert!(bare.len() <= MAX_LINE && bare.contains("\"media\":null"), "{} bytes", bare.len());
        // Six bytes for each character at worst.
        let worst = text(&[0; 10_000]);
        let texts = Cdr {
            call_id: worst.clone(),
            caller: worst.clone(),
            callee: worst.clone(),
            request_uri: worst,
            ..record()
        };
        assert!(texts.line().len() < MAX_LINE / 2);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(text("ö".repeat(300).as_bytes()), "ö".repeat(MAX_TEXT));
        assert_eq!(text(&[0xff; 2_000]), "ÿ".repeat(MAX_TEXT));
        assert_eq!(text("😀".repeat(300).as_bytes()), "😀".repeat(MAX_TEXT));
        assert_eq!(text(b"a\xe4\xc3\xa4"), "aää");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (secs, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_704_067_199, "2023-12-31T23:59:59.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(Nanos::from_secs(secs)), expected);
        }
        assert_eq!(rfc3339(Nanos::MAX), "2554-07-21T23:34:33.709Z");
    }

    #[test]
    fn outcomes_follow_from_codes() {
        for (code, rang, outcome) in [
            (200, true, Outcome::Answered),
            (302, false, Outcome::Redirected),
            (486, true, Outcome::Busy),
            (600, false, Outcome::Busy),
            (487, true, Outcome::Cancelled),
            (408, true, Outcome::NoAnswer),
            (408, false, Outcome::Timeout),
            (480, false, Outcome::Refused),
            (480, true, Outcome::NoAnswer),
            (401, false, Outcome::Refused),
            (603, true, Outcome::Refused),
            (503, false, Outcome::Failed),
        ] {
            assert_eq!(Outcome::of(code, rang), outcome, "{code}");
        }
    }
}
