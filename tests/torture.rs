//! Hostile and odd messages: what they are taken for, and that nothing panics or takes long on them.

#![cfg(feature = "tools")]

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tandem::app::Inbound;
use tandem::app::classify::{KeyExtractor, KeyRule};
use tandem::cli::capture::survey::survey;
use tandem::cli::capture::{decode, read};
use tandem::types::{Endpoint, LocalId};
use tandem::wire::rtp::{Kind, Rtcp, Rtp, kind};
use tandem::wire::sip::check::{Verdict, judge};
use tandem::wire::sip::scan::{Message, StartLine};
use tandem::wire::sip::{self, Reply};

/// The index cuts its columns after this many characters.
const COLUMN: usize = 60;

/// Method or status, and Call-ID, as tshark's columns in the index give them; `-` for none.
fn taken_for(bytes: &[u8]) -> [String; 2] {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(COLUMN).collect::<String>();
    let Some(message) = Message::parse(bytes) else { return ["-".to_owned(), "-".to_owned()] };
    let what = match message.start() {
        StartLine::Request { method, .. } => text(method),
        StartLine::Response { status } => status.to_string(),
    };
    [what, message.call_id().map_or_else(|| "-".to_owned(), text)]
}

const VERSION: &str = "another version is SIP too: it must be answered (RFC 4475 section 3.1.2.16)";
const BLANKS: &str =
    "blanks too many in the start line: it must be answered (RFC 4475 sections 3.1.2.10 to 3.1.2.12)";
const URI: &str = "tshark judges the URI, which the scanner leaves to the application";
const TOKEN: &str = "the method is no token (RFC 3261 section 25.1)";
const CONTROL: &str = "a Call-ID with control bytes still names the call; tshark's column ends at them";

/// Where we differ from tshark, and why. An entry that no longer differs fails the test too.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("rfc4475/badvers.dat", VERSION),
    ("rfc4475/lwsruri.dat", BLANKS),
    ("rfc4475/lwsstart.dat", BLANKS),
    ("rfc4475/trws.dat", BLANKS),
    ("mutants/m003.sip", BLANKS),
    ("mutants/m019.sip", VERSION),
    ("mutants/m021.sip", URI),
    ("mutants/m023.sip", VERSION),
    ("mutants/m042.sip", CONTROL),
    ("mutants/m045.sip", VERSION),
    ("mutants/m048.sip", BLANKS),
    ("mutants/m060.sip", URI),
    ("mutants/m062.sip", VERSION),
    ("mutants/m076.sip", BLANKS),
    ("mutants/m088.sip", BLANKS),
    ("mutants/m094.sip", CONTROL),
    ("mutants/m098.sip", BLANKS),
    ("mutants/m111.sip", BLANKS),
    ("mutants/m116.sip", TOKEN),
];

#[test]
fn sip_messages_are_taken_for_what_tshark_takes_them() {
    let Some(data) = common::shared_data() else { return };
    let folder = data.join("torture");
    let (mut wrong, mut differ, mut compared) = (Vec::new(), BTreeSet::new(), 0);
    for row in common::rows(&folder.join("INDEX.tsv")) {
        // Only what was sent to tshark as a datagram has a protocol.
        if row["tshark_protocol"] == "-" {
            continue;
        }
        compared += 1;
        let file = &row["file"];
        let bytes = std::fs::read(folder.join(file)).expect("a file of the index");
        let ours = taken_for(&bytes);
        let theirs = [&row["tshark_method_or_status"], &row["tshark_call_id"]];
        if theirs != [&ours[0], &ours[1]] {
            differ.insert(file.clone());
            if !EXCEPTIONS.iter().any(|e| e.0 == file) {
                wrong.push(format!("{file}: ours {ours:?}, tshark {theirs:?}"));
            }
        }
    }
    let stale = EXCEPTIONS.iter().filter(|e| !differ.contains(e.0));
    wrong.extend(stale.map(|e| format!("{} is no exception any more ({})", e.0, e.1)));
    assert!(compared > 250, "only {compared} messages in the index");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn all_torture_messages_in_one_capture() {
    let Some(data) = common::shared_data() else { return };
    let capture = read(&data.join("torture/all_sip_messages_udp.pcap")).expect("a capture");
    let sent =
        common::rows(&data.join("torture/INDEX.tsv")).iter().filter(|r| r["tshark_protocol"] != "-").count();
    assert_eq!((capture.packets as usize, capture.datagrams.len(), capture.damage), (sent, sent, None));
}

/// Which of the hand-made RTP and RTCP files are what they say; the others are refused.
#[test]
fn malformed_media_is_refused_and_valid_is_not() {
    let Some(data) = common::shared_data() else { return };
    let mut seen = 0;
    for row in common::rows(&data.join("torture/INDEX.tsv")) {
        let file = &row["file"];
        let Some((folder, name)) = file.split_once('/') else { continue };
        let bytes = std::fs::read(data.join("torture").join(file)).expect("a file of the index");
        let valid = row["expected"].starts_with("valid");
        match folder {
            "rtp-malformed" => {
                let payload = Rtp::new(&bytes).and_then(|rtp| rtp.payload());
                assert_eq!(payload.is_some(), valid, "{file}");
                let known = [
                    ("stun_like.bin", Kind::Stun),
                    ("dtls_like.bin", Kind::Dtls),
                    ("ok_pcmu.bin", Kind::Rtp),
                ];
                if let Some((_, expected)) = known.iter().find(|(known, _)| *known == name) {
                    assert_eq!(kind(&bytes), *expected, "{file}");
                }
                seen += 1;
            }
            "rtcp-malformed"
                if valid || matches!(name, "len_beyond_end.bin" | "version1.bin" | "len3.bin") =>
            {
                assert_eq!(Rtcp::new(&bytes).is_some(), valid, "{file}");
                seen += 1;
            }
            _ => {}
        }
    }
    assert!(seen >= 29, "only {seen} media files in the index");
}

/// A small generator with a fixed seed: a failure comes back on every run (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }

    /// Changes, cuts, doubles and drops some bytes.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => {
                    let piece = bytes[at..bytes.len().min(at + 200)].to_vec();
                    bytes.splice(at..at, piece);
                }
                2 => drop(bytes.drain(at..bytes.len().min(at + 20))),
                3 => bytes[at..].iter_mut().take(4).for_each(|b| *b = 0xff),
                _ => bytes[at..].iter_mut().take(1).for_each(|b| *b ^= 1 << (at % 8)),
            }
        }
    }
}

/// Everything that looks into a datagram.
fn look_into(payload: &[u8]) {
    let source = Endpoint::from(SocketAddr::from(([127, 0, 0, 1], 5060)));
    for rule in [KeyRule::Auto, KeyRule::Sip, KeyRule::Rtp] {
        let key =
            KeyExtractor { rule, seed: 1 }.key(&Inbound { source, local: LocalId::endpoint(0), payload });
        assert!(key.is_ok() || rule != KeyRule::Auto);
    }
    if let Some(message) = Message::parse(payload) {
        assert!(message.headers().count() <= payload.len());
        assert!(message.body().len() < payload.len());
        tandem::wire::sdp::announced(message.body()).count();
    }
    if let Verdict::Refuse(request, refusal) = judge(payload) {
        let reply = Reply::refuse(&request, refusal).to_tag(b"1").seen_from(source.into()).build();
        assert!(sip::Message::parse(&reply).is_ok_and(|reply| reply.code() == Some(refusal.code)));
    }
    kind(payload);
}

/// No single input of a megabyte may take this long, even in a debug build on a busy machine.
const TOO_LONG: Duration = Duration::from_secs(10);

#[test]
fn spoilt_captures_are_read_without_panic_in_bounded_time() {
    let Some(data) = common::shared_data() else { return };
    let mut dice = Dice(0x7a6e_de30);
    let mut spoilt = 0;
    for row in common::rows(&data.join("pcap/INDEX.tsv")) {
        let whole = std::fs::read(data.join("pcap").join(&row["file"])).expect("a file of the index");
        let rounds = 2 + 400_000 / whole.len().max(1_000);
        for _ in 0..rounds.min(40) {
            let mut bytes = whole.clone();
            dice.spoil(&mut bytes);
            let start = Instant::now();
            if let Ok(capture) = decode(Path::new(&row["file"]), bytes) {
                survey(&capture);
                let times = capture.datagrams.windows(2).all(|pair| pair[0].time <= pair[1].time);
                assert!(times, "{}: time goes back", row["file"]);
            }
            assert!(start.elapsed() < TOO_LONG, "{} took {:?}", row["file"], start.elapsed());
            spoilt += 1;
        }
    }
    assert!(spoilt > 500, "only {spoilt} captures");
}

#[test]
fn spoilt_messages_are_looked_into_without_panic() {
    let Some(data) = common::shared_data() else { return };
    let mut dice = Dice(0x5eed);
    for row in common::rows(&data.join("torture/INDEX.tsv")) {
        let whole = std::fs::read(data.join("torture").join(&row["file"])).expect("a file of the index");
        look_into(&whole);
        for _ in 0..100 {
            let mut bytes = whole.clone();
            dice.spoil(&mut bytes);
            look_into(&bytes);
        }
    }
}
