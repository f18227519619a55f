//! The SIP of every development capture, as the message layer reads it: against tshark's figures in data/pcap, and
//! message by message against tshark itself where it is installed.

#![cfg(feature = "tools")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;

use tandem::cli::capture::{Datagram, read};
use tandem::wire::sip::check::check;
use tandem::wire::sip::{HeaderName, Message, Rewrite, Start, Via, scan, summary};

/// Datagrams that the scanner takes for SIP and a proxy does not forward, as (file, how many are wrong by what, why).
const REFUSED: &[(&str, &str, &str)] = &[
    ("ws-MSCML.pcap", "content_length:2", "557 and 588 bytes are said, 145 of the 557 are there"),
    ("ws-metasploit-sip-invite-spoof.pcap", "request_uri:1", "sip:@127.0.0.1 has an empty user"),
    ("suricata-sip-header-multi-value.pcap", "repeated:1", "it has two To"),
    ("zeek-invalid-content-length.pcap", "content_length:2", "Content-Length: bad"),
    ("pcpp-sip_reqs.pcap", "no_empty_line:2", "two messages were cut before they were captured"),
];

/// Datagrams that the scanner takes for SIP.
fn sip(datagrams: &[Datagram]) -> impl Iterator<Item = &Datagram> {
    datagrams.iter().filter(|datagram| !datagram.cut && scan::Message::parse(&datagram.payload).is_some())
}

/// What is wrong with a datagram; nothing, if it is read as the scanner reads it and comes out as it went in.
fn wrong(bytes: &[u8]) -> Option<String> {
    let message = match Message::parse(bytes) {
        Ok(message) => message,
        Err(bad) => return Some(bad.reason.name().to_owned()),
    };
    let (seen, summary) = (scan::Message::parse(bytes)?, summary(bytes)?);
    assert_eq!(message.call_id(), seen.call_id());
    assert_eq!(message.cseq().map(|cseq| cseq.method.text()), seen.cseq_method());
    assert_eq!((message.call_id(), message.cseq()), (summary.call_id, summary.cseq));
    assert_eq!(message.via().and_then(|via| via.branch()), summary.branch);
    assert_eq!(message.headers().count(), seen.headers().count());
    assert!(seen.body().starts_with(message.body()));
    assert_eq!(Rewrite::new(&message).finish(), message.bytes());
    check(&message).err().map(|refusal| refusal.reason.name().to_owned())
}

#[test]
fn every_message_of_every_capture_is_read() {
    let Some(data) = common::shared_data() else { return };
    let (mut unexpected, mut messages) = (Vec::new(), 0);
    let mut used = BTreeSet::new();
    for row in common::rows(&data.join("pcap/INDEX.tsv")) {
        let file = &row["file"];
        let capture = read(&data.join("pcap").join(file)).unwrap_or_else(|error| panic!("{error}"));
        let mut found: BTreeMap<String, u32> = BTreeMap::new();
        for datagram in sip(&capture.datagrams) {
            messages += 1;
            if let Some(wrong) = wrong(&datagram.payload) {
                *found.entry(wrong).or_default() += 1;
            }
        }
        let found: Vec<String> = found.iter().map(|(reason, count)| format!("{reason}:{count}")).collect();
        let found = found.join(",");
        let expected = REFUSED.iter().find(|row| row.0 == file).map_or("", |row| row.1);
        used.insert(file.clone());
        if found != expected {
            unexpected.push(format!("{file}: {found}, not {expected}"));
        }
    }
    assert!(unexpected.is_empty(), "\n{}", unexpected.join("\n"));
    assert!(REFUSED.iter().all(|row| used.contains(row.0)), "an exception for a file that is not there");
    assert!(messages > 10_000, "only {messages} messages");
}

/// Method or code, and CSeq method, of each message of each call (data/pcap/CALLS.tsv).
#[test]
fn calls_hold_the_messages_that_tshark_counts() {
    let Some(data) = common::shared_data() else { return };
    let rows = common::rows(&data.join("pcap/CALLS.tsv"));
    let (mut wrong, mut calls) = (Vec::new(), 0);
    for index in common::rows(&data.join("pcap/INDEX.tsv")) {
        let file = &index["file"];
        // Messages in TCP streams are counted in the same rows, and so are those that are none to us.
        if index["sip_over_tcp_frames"] != "0" || REFUSED.iter().any(|row| row.0 == file) {
            continue;
        }
        let capture = read(&data.join("pcap").join(file)).unwrap_or_else(|error| panic!("{error}"));
        let mut ours: HashMap<String, [BTreeMap<String, u32>; 2]> = HashMap::new();
        for datagram in sip(&capture.datagrams) {
            let Ok(message) = Message::parse(&datagram.payload) else { continue };
            let (Some(id), Some(cseq)) = (message.call_id(), message.cseq()) else { continue };
            let call = ours.entry(text(id)).or_default();
            let (which, what) = match message.start() {
                Start::Request { method, .. } => (0, text(method.text())),
                Start::Response { code, .. } => (1, format!("{code}/{}", text(cseq.method.text()))),
            };
            *call[which].entry(what).or_default() += 1;
        }
        for row in rows.iter().filter(|row| row["file"] == *file) {
            calls += 1;
            let call = ours.remove(&row["call_id"]).unwrap_or_default();
            let theirs = [&row["requests"], &row["responses(code/cseq_method)"]].map(|text| counts(text));
            if theirs != call {
                wrong.push(format!("{file} {}: {call:?}, tshark {theirs:?}", row["call_id"]));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(calls > 4_000, "only {calls} calls");
}

/// `INVITE:2,ACK:1`, or `-` for none.
fn counts(text: &str) -> BTreeMap<String, u32> {
    let pair = |pair: &str| {
        let (name, count) = pair.rsplit_once(':').expect("NAME:COUNT");
        (name.to_owned(), count.parse().expect("a count"))
    };
    text.split(',').filter(|part| *part != "-" && !part.is_empty()).map(pair).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// tshark's fields that are compared, the frame first.
const FIELDS: [&str; 13] = [
    "frame.number",
    "sip.Method",
    "sip.Status-Code",
    "sip.r-uri",
    "sip.from.addr",
    "sip.from.tag",
    "sip.to.addr",
    "sip.to.tag",
    "sip.Call-ID",
    "sip.CSeq.seq",
    "sip.CSeq.method",
    "sip.Via.sent-by.address",
    "sip.Via.branch",
];

/// The same of a message, as tshark writes it: several values with commas between them, IPv6 without brackets.
fn fields(message: &Message<'_>) -> [String; 12] {
    let or_empty = |bytes: Option<&[u8]>| bytes.map(text).unwrap_or_default();
    let (from, to, cseq) = (message.from(), message.to(), message.cseq());
    let vias: Vec<Via<'_>> = message.values(HeaderName::Via).filter_map(Via::parse).collect();
    let joined = |values: Vec<String>| values.join(",");
    [
        or_empty(message.method().map(|method| method.text())),
        message.code().map(|code| code.to_string()).unwrap_or_default(),
        or_empty(message.uri()),
        or_empty(from.map(|from| from.uri)),
        or_empty(from.and_then(|from| from.tag())),
        or_empty(to.map(|to| to.uri)),
        or_empty(to.and_then(|to| to.tag())),
        or_empty(message.call_id()),
        cseq.map(|cseq| cseq.number.to_string()).unwrap_or_default(),
        or_empty(cseq.map(|cseq| cseq.method.text())),
        joined(vias.iter().map(|via| text(via.host.bytes()).replace(['[', ']'], "")).collect()),
        joined(vias.iter().filter_map(|via| via.branch()).map(text).collect()),
    ]
}

/// Where tshark's field is another, as (file, field, count, why). A row that no longer differs fails too.
const DIFFERENT: &[(&str, &str, u32, &str)] = &[
    ("suricata-sip-header-multi-value.pcap", "sip.to.addr", 1, "it has two To, the first one counts"),
    ("rec-flood_3000_over_calls.pcap", "frame.number", 1, "from port 2123, which tshark takes for GTP-C"),
];

/// tshark's fields of the datagrams that hold SIP, by frame. `None` if there is no tshark.
fn tshark(file: &Path) -> Option<HashMap<u32, Vec<String>>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(["-n", "-Y", "sip && udp", "-T", "fields"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = command.output().ok()?;
    let rows = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = |line: &str| {
        let mut columns = line.split('\t').map(str::to_owned);
        let frame = columns.next().and_then(|frame| frame.parse().ok()).expect("a frame number");
        (frame, columns.collect())
    };
    Some(rows.lines().map(row).collect())
}

#[test]
fn every_message_has_the_fields_that_tshark_gives() {
    let Some(data) = common::shared_data() else { return };
    let (mut compared, mut different) = (0, BTreeMap::new());
    let mut examples = Vec::new();
    for row in common::rows(&data.join("pcap/INDEX.tsv")).iter().filter(|row| row["sip_frames"] != "0") {
        let file = &row["file"];
        let path = data.join("pcap").join(file);
        let Some(theirs) = tshark(&path) else {
            eprintln!("\n*** SKIPPED: tshark is not installed, so no message was compared with it ***\n");
            return;
        };
        let capture = read(&path).unwrap_or_else(|error| panic!("{error}"));
        for datagram in sip(&capture.datagrams) {
            let Ok(message) = Message::parse(&datagram.payload) else { continue };
            let Some(theirs) = theirs.get(&datagram.frame) else {
                *different.entry((file.clone(), "frame.number")).or_default() += 1;
                continue;
            };
            compared += 1;
            for ((name, ours), theirs) in FIELDS[1..].iter().zip(fields(&message)).zip(theirs) {
                if ours != *theirs {
                    *different.entry((file.clone(), *name)).or_default() += 1;
                    examples
                        .push(format!("{file} frame {} {name}: {ours:?}, tshark {theirs:?}", datagram.frame));
                }
            }
        }
    }
    let expected = DIFFERENT.iter().map(|row| ((row.0.to_owned(), row.1), row.2)).collect();
    assert_eq!(different, expected, "\n{}", examples.join("\n"));
    assert!(compared > 10_000, "only {compared} messages were compared");
}
