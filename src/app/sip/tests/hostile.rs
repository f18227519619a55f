//! Anything in any order: nothing panics, nothing grows without bound, nothing stays behind.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::harness::{
    ALICE, BOB, CAROL, Dialog, Sent, World, ack_refusal, cancel, config, crlf, establish, hang_up, invite,
    reply, request, run, sdp, usual,
};
use crate::app::sip::config::{SessionTimer, SipConfig};
use crate::app::{CallApp, Inbound};
use crate::types::{CallKey, Endpoint, LocalId, Nanos};
use crate::wire::sip::check::{Verdict, judge, routable};
use crate::wire::sip::{HeaderName, Message, Uri};

/// Outputs that one entry may cause here.
const MOST_OUTPUTS: usize = 64;

fn everything_on() -> SipConfig {
    let mut config = config();
    config.max_call = Some(Nanos::from_secs(300));
    config.session = Some(SessionTimer { interval: 200, min_se: 90 });
    config.next_after = Nanos::from_secs(4);
    if let Some(media) = &mut config.media {
        media.timeout = Some(Nanos::from_secs(100));
    }
    config
}

#[derive(Clone, Debug)]
enum Step {
    /// Alice begins something: which, and with which CSeq.
    Begin(u8, u8),
    /// Somebody answers one of the requests that were sent: which, code, tag, with a description.
    Answer(u8, u8, u8, bool),
    /// Alice goes on after one of the responses that she got: which, and how.
    Follow(u8, u8),
    /// The callee asks within one of its dialogs.
    Ask(u8, u8),
    /// Milliseconds pass.
    Wait(u32),
    /// A message comes again, perhaps damaged, from anybody: which, who, where, what.
    Again(u8, u8, u16, Option<u8>),
    /// Media.
    Media(u8, u8),
    /// A takeover, or other routes.
    Notice(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let byte = any::<u8>;
    prop_oneof![
        3 => (byte(), 0u8..4).prop_map(|(a, b)| Step::Begin(a, b)),
        6 => (byte(), byte(), 0u8..3, any::<bool>()).prop_map(|(a, b, c, d)| Step::Answer(a, b, c, d)),
        3 => (byte(), byte()).prop_map(|(a, b)| Step::Follow(a, b)),
        2 => (byte(), byte()).prop_map(|(a, b)| Step::Ask(a, b)),
        2 => prop_oneof![0u32..1000, 0u32..40_000, 0u32..200_000].prop_map(Step::Wait),
        3 => (byte(), byte(), any::<u16>(), any::<Option<u8>>()).prop_map(|(a, b, c, d)| Step::Again(a, b, c, d)),
        1 => (byte(), byte()).prop_map(|(a, b)| Step::Media(a, b)),
        1 => any::<bool>().prop_map(Step::Notice),
    ]
}

fn pick<T>(list: &[T], which: u8) -> Option<&T> {
    list.get(usize::from(which) % list.len().max(1))
}

/// One of the last few, most of the time.
fn pick_late<T>(list: &[T], which: u8) -> Option<&T> {
    let from = if which < 200 { list.len().saturating_sub(4) } else { 0 };
    pick(&list[from..], which)
}

/// What is answered: success more often than anything else.
const CODES: [u16; 20] =
    [200, 180, 183, 200, 199, 200, 202, 302, 200, 401, 407, 408, 422, 200, 481, 486, 487, 503, 603, 100];

struct Chaos {
    world: World,
    /// What Alice sent.
    begun: Vec<String>,
}

impl Chaos {
    fn send(&mut self, from: &str, text: &str) {
        let before = self.world.log.len();
        self.world.send(from, text);
        assert!(self.world.log.len() - before <= MOST_OUTPUTS);
    }

    fn sent(&self, start: impl Fn(&str) -> bool, to: &[&str]) -> Vec<(String, String)> {
        let text = |sent: &Sent| {
            let text = String::from_utf8(sent.bytes.clone()).ok()?;
            (start(&text) && to.contains(&sent.to.to_string().as_str())).then(|| (sent.to.to_string(), text))
        };
        self.world.log.iter().filter_map(text).collect()
    }

    fn requests(&self) -> Vec<(String, String)> {
        self.sent(|text| !text.starts_with("SIP/2.0"), &[ALICE, BOB, CAROL])
    }

    fn take(&mut self, step: &Step) {
        let body = |some: bool| if some { sdp("10.0.0.2", 6000) } else { String::new() };
        match step {
            Step::Begin(what, cseq) => {
                let id = ["x", "y"][usize::from(*what >> 7)];
                let cseq = u32::from(*cseq) + 1;
                let text = match what % 8 {
                    0..4 => invite(id, cseq, "Supported: timer\n", &body(what & 8 > 0)),
                    4 => request("MESSAGE", "sip:bob@example.com", id, cseq, "", ""),
                    5 => request("SUBSCRIBE", "sip:bob@example.com", id, cseq, "", ""),
                    6 => pick(&self.begun, *what).map_or_else(String::new, |begun| cancel(begun)),
                    _ => pick(&self.begun, *what).map_or_else(String::new, |begun| ack_refusal(begun, begun)),
                };
                self.begun.push(invite(id, cseq, "", ""));
                self.send(ALICE, &text);
            }
            Step::Answer(which, code, tag, described) => {
                let requests = self.requests();
                let Some((at, text)) = pick_late(&requests, *which) else { return };
                let code = *pick(&CODES, *code).expect("codes");
                let tag = ["", "b1", "b2"][usize::from(*tag)];
                let answer = reply(text, code, tag, at, "RSeq: 1\nMin-SE: 90\n", &body(*described));
                self.send(at, &answer);
            }
            Step::Follow(which, how) => {
                let responses =
                    self.sent(|text| text.starts_with("SIP/2.0") && text.contains("Contact: "), &[ALICE]);
                let Some((_, text)) = pick_late(&responses, *which) else { return };
                let mut alice = Dialog::caller(text, 1 + u32::from(*how >> 4));
                let method =
                    ["ACK", "ACK", "BYE", "INVITE", "UPDATE", "PRACK", "INFO", "REFER"][usize::from(how % 8)];
                let asked = alice.request(method, "Contact: <sip:alice@10.0.0.1>\n", &body(how & 8 > 0));
                self.send(ALICE, &asked);
            }
            Step::Ask(which, how) => {
                let invites = self
                    .sent(|text| text.starts_with("INVITE ") && text.contains("Contact: "), &[BOB, CAROL]);
                let Some((at, text)) = pick_late(&invites, *which) else { return };
                let at = if at == BOB { BOB } else { CAROL };
                let mut bob = Dialog::callee(text, &reply(text, 200, "b1", at, "", ""), at);
                bob.cseq = u32::from(*how >> 4);
                let method = ["BYE", "INVITE", "UPDATE", "NOTIFY"][usize::from(how % 4)];
                let asked = bob.request(method, "", &body(how & 4 > 0));
                self.send(at, &asked);
            }
            Step::Wait(ms) => self.world.wait(u64::from(*ms)),
            Step::Again(which, who, place, damage) => {
                let log = &self.world.log;
                let Some(mut bytes) = pick_late(log, *which).map(|sent| sent.bytes.clone()) else { return };
                let place = usize::from(*place) % bytes.len().max(1);
                match damage {
                    Some(0) => bytes.truncate(place),
                    Some(byte) => bytes[place] = *byte,
                    None => {}
                }
                let from = *pick(&[ALICE, BOB, CAROL, "10.6.6.6:666"], *who).expect("someone");
                self.world.bytes_to(LocalId::endpoint(0), from, &bytes);
            }
            Step::Media(port, who) => {
                let from = *pick(&["10.0.0.1:4000", "10.0.0.2:6000", "10.6.6.6:666"], *who).expect("someone");
                let packet = [&[0x80, 0, 0, *port, 0, 0, 0, 1, 0, 0, 0, 1][..], &[0; 20]].concat();
                self.world.bytes_to(LocalId::media(0, 30_000 + u16::from(*port) % 100), from, &packet);
            }
            Step::Notice(routes) => {
                let notice: &[u8] = if *routes { b"Rdefault 10.0.0.3:5060, 10.0.0.2:5060" } else { b"T" };
                self.world.notice(notice);
            }
        }
    }
}

fn chaos(steps: &[Step], restores: bool) -> Vec<Sent> {
    let world = World::new(everything_on(), "default 10.0.0.2:5060, 10.0.0.3:5060;priority=1", restores);
    let mut chaos = Chaos { world, begun: Vec::new() };
    steps.iter().for_each(|step| chaos.take(step));
    // All that can still happen happens within the longest call and the longest timeouts.
    chaos.world.wait(1_000_000);
    assert_eq!(chaos.world.table.len(), 1, "nothing but the keeper stays");
    assert_eq!(chaos.world.table.shared().ports.held(), 0);
    let ids: std::collections::BTreeSet<String> =
        chaos.world.records.iter().map(|record| record["id"].to_string()).collect();
    assert_eq!(ids.len(), chaos.world.records.len(), "a call has one record");
    chaos.world.log
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_order_of_messages_comes_to_an_end(steps in proptest::collection::vec(step(), 1..40)) {
        prop_assert_eq!(chaos(&steps, false), chaos(&steps, true));
    }

    #[test]
    fn any_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..400, id: u128) {
        let mut world = World::new(config(), "default 10.0.0.2:5060", false);
        let source = Endpoint { ip: [7; 16], port: 1 };
        let asked = invite("x", 1, "", &sdp("10.0.0.1", 4000));
        let cut = at.min(asked.len());
        let mixed = [&asked.as_bytes()[..cut], &bytes, &asked.as_bytes()[cut..]].concat();
        for payload in [&bytes, &mixed] {
            for local in [LocalId::endpoint(0), LocalId::endpoint(9), LocalId::media(0, 30_001), LocalId::NOTICE] {
                let packet = Inbound { source, local, payload };
                let key = world.sip.classify(&packet).unwrap_or(CallKey(id));
                world.sip.opens(&packet);
                world.sip.refuse(&packet, 1, &mut Vec::new());
                world.entry(key, &packet);
            }
        }
        world.wait(300_000);
        prop_assert!(world.table.len() <= 1 + 1);
    }

    #[test]
    fn damaged_snapshots_are_refused_or_read(at: usize, byte: u8, cut: usize) {
        let mut world = World::new(config(), "default 10.0.0.2:5060", false);
        world.send(ALICE, &invite("x", 1, "", &sdp("10.0.0.1", 4000)));
        let key = world.sip.classify(&Inbound {
            source: Endpoint { ip: [7; 16], port: 1 },
            local: LocalId::endpoint(0),
            payload: invite("x", 1, "", "").as_bytes(),
        }).expect("a call");
        let mut bytes = Vec::new();
        let version = world.sip.snapshot(world.table.call(key).expect("a call"), &mut bytes);
        prop_assert!(world.sip.restore(version + 1, &bytes).is_err());
        prop_assert!(world.sip.restore(version, &bytes[..cut % bytes.len()]).is_err());
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = world.sip.restore(version, &bytes);
    }
}

fn shared_data() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found =
        ["../shared/data", "../../shared/data"].into_iter().map(|p| root.join(p)).find(|p| p.is_dir());
    if found.is_none() {
        eprintln!("\n*** SKIPPED: ../shared/data is not there, so nothing was checked against it ***\n");
    }
    found
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        match path.extension().and_then(|e| e.to_str()) {
            _ if path.is_dir() => files(&path, found),
            Some("sip" | "dat") => found.push(path),
            _ => {}
        }
    }
}

#[test]
fn every_torture_message_is_survived_and_leaves_nothing() {
    let Some(data) = shared_data() else { return };
    let mut found = Vec::new();
    files(&data.join("torture"), &mut found);
    assert!(found.len() > 200, "{}", found.len());
    run(&everything_on(), "default 10.0.0.2:5060", |world| {
        let mut unroutables = 0;
        for path in &found {
            let bytes = std::fs::read(path).expect("a file");
            let before = world.log.len();
            world.bytes_to(LocalId::endpoint(0), ALICE, &bytes);
            let sent = &world.log[before..];
            assert!(sent.len() <= 3, "{}", path.display());
            let code = |sent: &Sent| Message::parse(&sent.bytes).ok()?.code();
            let codes: Vec<u16> = sent.iter().filter_map(code).collect();
            let expected: Option<&[u16]> = match judge(&bytes) {
                _ if bytes.len() > world.sip.config().max_bytes => Some(&[]),
                Verdict::Drop(_) => Some(&[]),
                Verdict::Refuse(_, refusal) => Some(&[refusal.code]),
                Verdict::Pass(message) => unroutable(&message).then_some(&[416]),
            };
            assert!(expected.is_none_or(|expected| codes == expected), "{}: {codes:?}", path.display());
            unroutables += usize::from(codes == [416]);
        }
        assert!(unroutables >= 2, "{unroutables}");
        world.wait(1_000_000);
        assert_eq!(world.table.len(), 1);
        assert_eq!(world.table.shared().ports.held(), 0);
    });
}

/// Whether a request has nothing but a Request-URI that says not where it leads.
fn unroutable(message: &Message<'_>) -> bool {
    let unknown = |uri| Uri::parse(uri).is_some_and(|uri| routable(&uri).is_err());
    message.first(HeaderName::Route).is_none() && message.uri().is_some_and(unknown)
}

/// The messages of a flow as its agents and proxies sent them, replayed with our Vias where they belong.
#[test]
fn the_flows_of_rfc_3665() {
    let Some(data) = shared_data() else { return };
    let flows = data.join("torture/flows");
    let text = |flow: &str, n: u32| {
        let path = flows.join(flow).join(format!("{n:02}.sip"));
        crlf(&std::fs::read_to_string(path).expect("a message"))
    };
    // (flow, INVITE or REGISTER, its final response)
    for (flow, asked, answered) in [
        ("rfc3665-2.01_sip-client-new-registration", 1, 2),
        ("rfc3665-2.01_sip-client-new-registration", 3, 4),
        ("rfc3665-2.02_update-of-contact-list", 1, 2),
        ("rfc3665-2.03_request-for-current-contact-list", 1, 2),
        ("rfc3665-2.04_cancellation-of-registration", 1, 2),
        ("rfc3665-3.01_successful-session-establishment", 1, 3),
    ] {
        usual(|world| {
            let (request, response) = (text(flow, asked), text(flow, answered));
            let method = request.split(' ').next().expect("a method");
            let udp = request.replace("SIP/2.0/TCP", "SIP/2.0/UDP").replace("SIP/2.0/TLS", "SIP/2.0/UDP");
            let udp = udp.replace(":5061;", ":5060;");
            world.send(ALICE, &udp);
            let got = world.one(BOB, &format!("{method} "));
            let head = response.split("\r\n").next().expect("a line");
            let code: u16 = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
            let answer = reply(&got, code, "tag1", BOB, "", "");
            world.send(BOB, &answer);
            let passed = world.all(ALICE).pop().expect("a response");
            assert!(passed.starts_with(&format!("SIP/2.0 {code} ")), "{flow}: {passed}");
            if method == "INVITE" {
                let mut alice = Dialog::caller(&passed, 2);
                world.send(ALICE, &alice.request("ACK", "", ""));
                world.one(BOB, "ACK ");
                hang_up(world, &mut alice);
            }
        });
    }
}

/// What an established call with audio takes in memory, once its transactions are over.
#[test]
fn a_call_is_small() {
    let mut world = World::new(config(), "default 10.0.0.2:5060", false);
    establish(
        &mut world,
        "an-ordinary-call-id-of-40-bytes@10.0.0.1",
        &sdp("10.0.0.1", 4000),
        &sdp("10.0.0.2", 6000),
    );
    world.wait(60_000);
    let asked = invite("an-ordinary-call-id-of-40-bytes@10.0.0.1", 1, "", "");
    let source = Endpoint { ip: [7; 16], port: 1 };
    let packet = Inbound { source, local: LocalId::endpoint(0), payload: asked.as_bytes() };
    let key = world.sip.classify(&packet).expect("a call");
    let call = world.table.call(key).expect("the call");
    let bytes = call.heap_bytes();
    assert!(bytes <= 800, "{bytes} bytes without those of its media");
}
