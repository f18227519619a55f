//! Properties of all views: harmless on any bytes, pieces of their input, and true to it.

use proptest::collection::vec;
use proptest::prelude::*;

use super::check::{Verdict, judge};
use super::fields::{ContentType, Delay, RAck, Replaces, has_option};
use super::*;

const INVITE: &[u8] = b"INVITE sip:b@x.example;transport=udp SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:5062;rport;branch=z9hG4bK7 , SIP/2.0/TCP far\r\n\
    Via: SIP/2.0/UDP [2001:db8::1];received=192.0.2.2\r\nMax-Forwards: 70\r\nRoute: <sip:p1;lr>,<sip:p2;lr>\r\n\
    From: \"\xe9, <\\\"\" <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\nCall-ID: 7@x\r\nCSeq: 4 INVITE\r\nX-Other: ;;,,;\r\n\
    Contact: \"A\" <sip:a@192.0.2.1>;q=0.5\r\nSupported: timer, 100rel\r\nSession-Expires: 1800;refresher=uac\r\n\
    Subject: one\r\n two\r\nContent-Type: application/sdp\r\nContent-Length: 5\r\n\r\nv=0\r\n";
const RESPONSE: &[u8] = b"SIP/2.0 200 OK\r\nv: SIP/2.0/UDP 192.0.2.1:5062;rport=5;received=192.0.2.9\r\nRecord-Route: <sip:p1;lr>\r\n\
    f: sip:a@x;tag=1\r\nt: sip:b@x;tag=2\r\ni: 7@x\r\nCSeq: 4 PRACK\r\nRAck: 1 3 INVITE\r\nRetry-After: 5 (busy);duration=1\r\n\
    Replaces: a;to-tag=1;from-tag=2\r\nm: sip:c@d\r\nl: 0\r\n\r\n";
const ODD: &[u8] = b"\r\n!x sip:a;b?c@d:99;lr SIP/2.0\nTO :\n sip:v@c ;   tag    = 19n\nfrom   : \"J \\\\\\\"\"       <sip:j@e>\n  ;\n  tag = 98\n\
    Via  : SIP  /   2.0\n /UDP\n    192.0.2.2;branch=390\ns :\nv:  SIP  / 2.0  / TCP     s.example.com   ;\n  branch  =   z9hG4bK9ik  ,\n\
    \x20SIP/2.0/UDP  192.168.255.111   ; branch=\n z9\ni: \x00\xff\ncseq: 0009\n  !x\n\nbody";

/// A piece lies in the whole.
fn within(whole: &[u8], piece: &[u8]) {
    let (whole, piece) = (whole.as_ptr_range(), piece.as_ptr_range());
    assert!(
        piece.start == piece.end || (whole.start <= piece.start && piece.end <= whole.end),
        "out of the input"
    );
}

/// Looks at everything that a message shows.
fn look(bytes: &[u8]) {
    if let Some(summary) = summary(bytes) {
        [summary.call_id, summary.branch].into_iter().flatten().for_each(|piece| within(bytes, piece));
    }
    match judge(bytes) {
        Verdict::Pass(message) => look_into(bytes, &message),
        Verdict::Refuse(message, refusal) => {
            look_into(bytes, &message);
            let reply = Reply::refuse(&message, refusal).to_tag(b"9").build();
            let reply = Message::parse(&reply).expect("the answer is a message");
            assert_eq!(reply.code(), Some(refusal.code));
        }
        Verdict::Drop(reason) => assert!(!reason.name().is_empty()),
    }
    if let Ok(message) = Message::parse(bytes) {
        look_into(bytes, &message);
        // All of it is start line, headers, empty line and body, and it is the same when it is read again.
        let again = Message::parse(message.bytes()).expect("what was a message is one");
        assert_eq!(again.bytes(), message.bytes());
        let headers: usize = message.headers().map(|header| header.raw.len()).sum();
        let [first, empty, body] = message.parts();
        assert_eq!((first + headers, message.bytes().len() - body), (empty, message.body().len()));
    }
}

fn look_into(bytes: &[u8], message: &Message<'_>) {
    within(bytes, message.bytes());
    within(message.bytes(), message.body());
    assert_eq!(Rewrite::new(message).finish(), message.bytes());
    if let Start::Request { uri, .. } = message.start() {
        within(bytes, uri);
        look_into_uri(uri);
    }
    assert!(message.headers().count() <= MAX_HEADERS);
    for header in message.headers() {
        within(bytes, header.raw);
        within(header.raw, header.value);
        look_into_value(header.value);
        for value in Values::of(header.value) {
            within(header.value, value);
            look_into_value(value);
        }
    }
    ack(message, message);
    cancel(message, b"SIP;cause=200");
}

fn look_into_value(value: &[u8]) {
    if let Some(via) = Via::parse(value) {
        [via.version, via.transport, via.host.bytes()].into_iter().for_each(|piece| within(value, piece));
        via.params.for_each(|param| within(value, param.name));
        via.response_address();
        via.ttl();
        via.transaction();
    }
    if let Some(address) = Address::parse(value) {
        [address.display, address.uri, address.tag().unwrap_or_default()]
            .into_iter()
            .for_each(|p| within(value, p));
        look_into_uri(address.uri);
    }
    CSeq::parse(value);
    RAck::parse(value);
    Delay::parse(value).map(|delay| delay.refresher());
    ContentType::parse(value);
    Replaces::parse(value);
    has_option(value, b"timer");
}

fn look_into_uri(bytes: &[u8]) {
    if let Some(uri) = Uri::parse(bytes) {
        uri.headers().for_each(|header| within(bytes, header.name));
        [uri.user(), uri.password(), uri.transport()]
            .into_iter()
            .flatten()
            .for_each(|piece| within(bytes, piece));
        assert!(uri.params().count() > MAX_PARAMS || uri.headers().count() > MAX_PARAMS || uri.same(&uri));
    }
}

/// Some bytes changed, doubled, left out or put in.
fn spoilt() -> impl Strategy<Value = Vec<u8>> {
    let seeds = prop_oneof![Just(INVITE), Just(RESPONSE), Just(ODD)];
    let bytes = prop_oneof![any::<u8>(), proptest::sample::select(&b"\r\n \t:;,<>\"\\@?=/[]0"[..])];
    let change = (any::<u16>(), 0..4_u8, bytes, 0..40_usize);
    (seeds, vec(change, 0..6)).prop_map(|(seed, changes)| {
        let mut message = seed.to_vec();
        for (at, what, byte, length) in changes {
            let at = usize::from(at) % message.len().max(1);
            let end = message.len().min(at + length);
            match what {
                0 => message.insert(at, byte),
                1 => drop(message.drain(at..end)),
                2 => message.extend_from_within(at..end),
                _ => message[at..end].iter_mut().take(1).for_each(|b| *b = byte),
            }
        }
        message
    })
}

#[test]
fn the_seeds_are_messages() {
    for seed in [INVITE, RESPONSE, ODD] {
        assert!(matches!(judge(seed), Verdict::Pass(_)), "{:?}", judge(seed));
        look(seed);
        (0..seed.len()).for_each(|end| look(&seed[..end]));
    }
}

#[test]
fn the_summary_is_what_the_message_says() {
    for seed in [INVITE, RESPONSE, ODD] {
        let (summary, message) =
            (summary(seed).expect("a summary"), Message::parse(seed).expect("a message"));
        assert_eq!((summary.call_id, summary.cseq), (message.call_id(), message.cseq()));
        assert_eq!(summary.branch, message.via().and_then(|via| via.branch()));
    }
    assert_eq!(summary(b"GET / HTTP/1.1\r\n\r\n"), None);
}

/// The values of a list header, and the raw text of everything else.
fn split(bytes: &[u8], name: HeaderName<'_>) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let message = Message::parse(bytes).expect("a message");
    let others = message.headers().filter(|header| header.name != name).map(|header| header.raw.to_vec());
    (message.values(name).map(<[u8]>::to_vec).collect(), others.collect())
}

proptest! {
    #[test]
    fn any_bytes_are_harmless(bytes in vec(any::<u8>(), 0..400)) {
        look(&bytes);
    }

    #[test]
    fn a_spoilt_message_is_harmless(message in spoilt()) {
        look(&message);
    }

    #[test]
    fn any_value_is_harmless(value in vec(proptest::sample::select(&b"a1 \t\r\n:;,<>\"\\@?=/[]%&\xff"[..]), 0..60)) {
        look_into_value(&value);
        look_into_uri(&value);
        let items: usize = Values::of(&value).map(<[u8]>::len).sum();
        prop_assert!(items <= value.len());
    }

    /// Pushes and pops make the list they say, and touch nothing else.
    #[test]
    fn lists_are_pushed_and_popped(which in 0..3_usize, pops in 0..5_usize, pushes in vec("[a-z]{1,9}", 0..4)) {
        let name = [HeaderName::Via, HeaderName::Route, HeaderName::RecordRoute][which];
        let message = Message::parse(INVITE).expect("a message");
        let mut rewrite = Rewrite::new(&message);
        for _ in 0..pops {
            match which { 0 => rewrite.pop_via(), 1 => rewrite.pop_route(), _ => rewrite.pop_record_route() };
        }
        for value in &pushes {
            let value = value.as_bytes();
            match which {
                0 => rewrite.push_via(value),
                1 => rewrite.push_route(value),
                _ => rewrite.push_record_route(value),
            };
        }
        let (mut expected, others) = split(INVITE, name);
        expected.drain(..pops.min(expected.len()));
        pushes.iter().for_each(|value| expected.insert(0, value.as_bytes().to_vec()));
        let (found, others_left) = split(&rewrite.finish(), name);
        prop_assert_eq!(found, expected);
        prop_assert_eq!(others_left, others);
    }

    /// Whatever a message is like, its amended form is a message again, and says what it was told.
    #[test]
    fn amended_messages_are_messages(message in spoilt(), value in "[a-z]{1,9}", body in vec(any::<u8>(), 0..30)) {
        if let Ok(message) = Message::parse(&message) {
            let mut rewrite = Rewrite::new(&message);
            rewrite.seen_from("192.0.2.77:7".parse().expect("an address")).push_via(b"SIP/2.0/UDP me");
            rewrite.set(HeaderName::Subject, value.as_bytes()).pop_route().push_record_route(b"<sip:me;lr>");
            rewrite.remove(HeaderName::Contact).set_body(&body);
            let amended = rewrite.finish();
            let amended = match Message::parse(&amended) {
                Ok(amended) => amended,
                // One more than may be.
                Err(bad) => panic!("{}", bad.reason.text()),
            };
            prop_assert_eq!(amended.body(), &body[..]);
            prop_assert_eq!(amended.first(HeaderName::Subject), Some(value.as_bytes()));
            prop_assert!(amended.first(HeaderName::Contact).is_none());
            prop_assert_eq!(amended.via().map(|via| via.host.bytes()), Some(&b"me"[..]));
            prop_assert_eq!(amended.first(HeaderName::RecordRoute), Some(&b"<sip:me;lr>"[..]));
            let routes = message.values(HeaderName::Route).count();
            prop_assert_eq!(amended.values(HeaderName::Route).count(), routes.saturating_sub(1));
            let unknown = |m: &Message<'_>| -> Vec<Vec<u8>> {
                m.headers().filter(|h| matches!(h.name, HeaderName::Other(_))).map(|h| h.raw.to_vec()).collect()
            };
            prop_assert_eq!(unknown(&amended), unknown(&message));
        }
    }
}
