//! What a proxy does with each torture message: forward it, answer it, or drop it (RFC 4475 section 3, RFC 5118
//! section 4; RFC 3261 section 16.3 says what a proxy must not mind).

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tandem::wire::sip::check::{Verdict, judge, routable};
use tandem::wire::sip::{HeaderName, MAX_VIAS, Message, Reason, Reply, Rewrite, Uri};

/// What becomes of a message.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Fate {
    Forwarded,
    Answered(Reason),
    Dropped(Reason),
    /// Forwarded if a Route leads on, else answered 416.
    Unroutable,
}

use Fate::{Answered, Dropped, Forwarded, Unroutable};

/// File, fate, and why.
const RFC4475: &[(&str, Fate, &str)] = &[
    // 3.1.1: valid
    ("wsinv", Forwarded, "blanks, folds and cases are all right"),
    ("intmeth", Forwarded, "all characters that a method, a user, a Call-ID may have"),
    ("esc01", Forwarded, "escapes are left as they stand"),
    ("escnull", Forwarded, "escaped zeros are left as they stand"),
    ("esc02", Forwarded, "a percent sign is part of a method and of a header name"),
    ("lwsdisp", Forwarded, "no blank is needed before the bracket"),
    ("longreq", Forwarded, "34 Vias and long values"),
    ("dblreq", Forwarded, "bytes behind the body are not forwarded"),
    ("semiuri", Forwarded, "a semicolon in the user"),
    ("transports", Forwarded, "any transport below the topmost Via"),
    ("mpart01", Forwarded, "zeros in the body"),
    ("unreason", Forwarded, "UTF-8 in the reason phrase"),
    ("noreason", Forwarded, "an empty reason phrase"),
    // 3.1.2: invalid
    ("badinv01", Answered(Reason::Via), "empty Vias are skipped, a `;` alone is none"),
    ("clerr", Answered(Reason::ContentLength), "the body is shorter than it says"),
    ("ncl", Answered(Reason::ContentLength), "a negative length"),
    ("scalar02", Answered(Reason::CSeq), "more than 32 bits"),
    ("scalarlg", Dropped(Reason::CSeq), "the same in a response"),
    ("quotbal", Answered(Reason::To), "a quote that never closes"),
    ("ltgtruri", Answered(Reason::Uri), "brackets around the Request-URI"),
    ("lwsruri", Answered(Reason::Uri), "blanks in the Request-URI"),
    ("lwsstart", Answered(Reason::StartLine), "two blanks between its elements"),
    ("trws", Answered(Reason::StartLine), "blanks at its end"),
    ("escruri", Answered(Reason::Uri), "headers in the Request-URI"),
    ("baddate", Forwarded, "a proxy does not look at Date"),
    ("regbadct", Forwarded, "a proxy does not look at Contact: the registrar answers"),
    ("badaspec", Forwarded, "blanks inside of the brackets are passed over"),
    (
        "baddn",
        Answered(Reason::NoEmptyLine),
        "the archive's file lacks the empty line; see below for the rest",
    ),
    ("badvers", Answered(Reason::Version), "505"),
    ("mismatch01", Answered(Reason::CSeqMethod), "CSeq says INVITE, the start line OPTIONS"),
    ("mismatch02", Answered(Reason::CSeqMethod), "the same with an unknown method"),
    ("bigcode", Dropped(Reason::Status), "no status code"),
    // 3.2: transaction layer
    ("badbranch", Forwarded, "a branch without id is RFC 2543's: matched by the rest"),
    // 3.3: application layer
    ("insuf", Dropped(Reason::MissingFrom), "no From, To and Call-ID: no response can be made of it"),
    ("unkscm", Unroutable, "an unknown scheme"),
    ("novelsc", Unroutable, "a known scheme that is not SIP's"),
    ("unksm2", Forwarded, "any scheme in From, To, Contact"),
    ("bext01", Answered(Reason::Extension), "420: Proxy-Require; Require is not for proxies"),
    ("invut", Forwarded, "a proxy does not look at Content-Type"),
    ("regaut01", Forwarded, "a proxy does not look at Authorization"),
    ("multi01", Answered(Reason::Repeated), "two of From, To, Call-ID, CSeq, Max-Forwards"),
    ("mcl01", Answered(Reason::ContentLength), "two lengths"),
    ("bcast", Dropped(Reason::Broadcast), "a response that would go to everybody"),
    ("zeromf", Answered(Reason::TooManyHops), "483; whoever is asked by OPTIONS itself may answer"),
    ("cparam01", Forwarded, "a parameter of Contact"),
    ("cparam02", Forwarded, "a parameter of the URI in Contact"),
    ("regescrt", Forwarded, "headers in the URI in Contact"),
    ("sdp01", Forwarded, "a proxy does not look at Accept"),
    // 3.4: older clients
    ("inv2543", Forwarded, "no tag, no branch, no Max-Forwards, no Content-Length"),
    // Not in the text
    ("test", Dropped(Reason::NotSip), "the start line has no version"),
];

const RFC5118: &[(&str, Fate, &str)] = &[
    ("ipv6-good", Forwarded, "4.1"),
    ("ipv6-bad", Answered(Reason::Uri), "4.2: no brackets in the Request-URI"),
    ("port-ambiguous", Forwarded, "4.3: the port is part of the address"),
    ("port-unambiguous", Forwarded, "4.4"),
    ("via-received-param-with-delim", Forwarded, "4.5"),
    ("via-received-param-no-delim", Forwarded, "4.5"),
    ("ipv6-in-sdp", Forwarded, "4.6"),
    ("mult-ip-in-header", Forwarded, "4.7"),
    ("mult-ip-in-sdp", Forwarded, "4.8"),
    ("ipv4-mapped-ipv6", Forwarded, "4.9"),
    ("ipv6-bug-abnf-3-colons", Forwarded, "4.10: read as two colons"),
    ("ipv6-correct-abnf-2-colons", Forwarded, "4.10"),
];

/// What the archive's copies with LF alone lost with their CRs.
const LF_ALONE: &[(&str, Fate, &str)] = &[
    ("ipv6-bug-abnf-3-colons", Answered(Reason::NoEmptyLine), "the empty line is missing"),
    ("ipv6-correct-abnf-2-colons", Answered(Reason::NoEmptyLine), "the empty line is missing"),
    ("ipv6-in-sdp", Answered(Reason::ContentLength), "the length still counts the CRs"),
    ("mult-ip-in-sdp", Answered(Reason::ContentLength), "the length still counts the CRs"),
];

fn expected(file: &str) -> Option<Fate> {
    let (folder, name) = file.split_once('/')?;
    let (name, end) = name.rsplit_once('.')?;
    let lost: &[_] = if end == "lf" { LF_ALONE } else { &[] };
    let table = if folder == "rfc4475" { RFC4475 } else { RFC5118 };
    lost.iter().chain(table).find(|row| row.0 == name).map(|row| row.1)
}

/// What becomes of a datagram, after what is said of it was tried: an answer is a message that belongs to
/// its request, a message that is forwarded is the same but for what a proxy changes.
fn fate(bytes: &[u8]) -> Fate {
    match judge(bytes) {
        Verdict::Drop(reason) => Dropped(reason),
        Verdict::Refuse(request, refusal) => {
            let source = "192.0.2.66:6666".parse().expect("an address");
            let reply = Reply::refuse(&request, refusal).to_tag(b"tandem").seen_from(source).build();
            let reply = Message::parse(&reply).expect("a response");
            assert_eq!((reply.code(), refusal.code), (Some(refusal.reason.code()), refusal.reason.code()));
            for name in [HeaderName::From, HeaderName::CallId, HeaderName::CSeq] {
                assert!(reply.first(name).is_some() && same_words(reply.first(name), request.first(name)));
            }
            assert_eq!(reply.values(HeaderName::Via).count(), request.values(HeaderName::Via).count());
            Answered(refusal.reason)
        }
        Verdict::Pass(message) => {
            assert!(message.values(HeaderName::Via).count() <= MAX_VIAS);
            forward(&message);
            let uri = message.uri().map(|uri| Uri::parse(uri).expect("was judged"));
            if uri.is_some_and(|uri| routable(&uri).is_err()) { Unroutable } else { Forwarded }
        }
    }
}

/// The same but for line ends, which become blanks where a value is written anew.
fn same_words(a: Option<&[u8]>, b: Option<&[u8]>) -> bool {
    let words = |value: &[u8]| -> Vec<Vec<u8>> {
        value.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).map(<[u8]>::to_vec).collect()
    };
    a.map(words) == b.map(words)
}

fn forward(message: &Message<'_>) {
    let mut rewrite = Rewrite::new(message);
    assert_eq!(rewrite.finish(), message.bytes());
    if message.code().is_some() {
        rewrite.pop_via();
    } else {
        rewrite.push_via(b"SIP/2.0/UDP 192.0.2.99;branch=z9hG4bKtandem").set(HeaderName::MaxForwards, b"69");
    }
    let sent = rewrite.finish();
    let sent = Message::parse(&sent).expect("what is forwarded is a message");
    let vias = |m: &Message<'_>| m.values(HeaderName::Via).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (before, after) = (vias(message), vias(&sent));
    if message.code().is_some() {
        assert_eq!(before[1..], after)
    } else {
        assert_eq!(before, after[1..])
    }
    let others = |m: &Message<'_>| {
        let changed = [HeaderName::Via, HeaderName::MaxForwards];
        m.headers().filter(|h| !changed.contains(&h.name)).map(|h| h.raw.to_vec()).collect::<Vec<_>>()
    };
    assert_eq!((others(message), message.body()), (others(&sent), sent.body()));
}

fn torture_files(data: &Path, folder: &str) -> Vec<(String, PathBuf)> {
    let rows = common::rows(&data.join("torture/INDEX.tsv"));
    let inside = rows.iter().filter(|row| row["file"].split('/').next() == Some(folder));
    inside.map(|row| (row["file"].clone(), data.join("torture").join(&row["file"]))).collect()
}

#[test]
fn each_torture_message_meets_its_fate() {
    let Some(data) = common::shared_data() else { return };
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (file, path) in ["rfc4475", "rfc5118"].iter().flat_map(|folder| torture_files(&data, folder)) {
        let bytes = std::fs::read(&path).expect("a file of the index");
        let (ours, theirs) = (fate(&bytes), expected(&file));
        if Some(ours) != theirs {
            wrong.push(format!("{file}: {ours:?}, not {theirs:?}"));
        }
        let (name, _) = file.rsplit_once('.').expect("a file name");
        *seen.entry(name.to_owned()).or_default() += 1;
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(seen.len(), RFC4475.len() + RFC5118.len(), "each row of the tables is for a file");
}

/// What the archive's file lacks: with its empty line, the name without quotes is read as one.
#[test]
fn a_name_that_wants_quotes_is_forwarded() {
    let Some(data) = common::shared_data() else { return };
    let mut bytes = std::fs::read(data.join("torture/rfc4475/baddn.dat")).expect("a file");
    bytes.extend_from_slice(b"\r\n");
    assert_eq!(fate(&bytes), Forwarded);
    let message = Message::parse(&bytes).expect("a message");
    assert_eq!(message.from().map(|from| from.uri), Some(&b"sip:a.g.bell@example.com"[..]));
}

/// The call flows of RFC 3665 and others: nothing in them is refused or dropped.
#[test]
fn all_messages_of_the_call_flows_are_forwarded() {
    let Some(data) = common::shared_data() else { return };
    let files = torture_files(&data, "flows");
    let mut wrong = Vec::new();
    for (file, path) in &files {
        let bytes = std::fs::read(path).expect("a file of the index");
        let fate = fate(&bytes);
        if fate != Forwarded {
            wrong.push(format!("{file}: {fate:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(files.len() > 100, "only {} messages of flows", files.len());
}

/// Mutants, fuzzers' seeds and the like: whatever is thought of them, nothing panics.
#[test]
fn every_other_file_meets_some_fate() {
    let Some(data) = common::shared_data() else { return };
    let mut fates: BTreeMap<String, usize> = BTreeMap::new();
    for folder in
        ["mutants", "pjsip-seed", "protos-c07-sip-r2", "webrtc-corpus", "rtp-malformed", "rtcp-malformed"]
    {
        for (_, path) in torture_files(&data, folder) {
            let fate = fate(&std::fs::read(path).expect("a file of the index"));
            *fates.entry(format!("{fate:?}")).or_default() += 1;
        }
    }
    assert!(fates.values().sum::<usize>() > 200, "{fates:?}");
}
