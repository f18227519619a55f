//! A slot with the SIP application, logical time, and agents that are text. Every flow runs twice: straight, and with
//! the table written down and read back after each entry; both must say the same bytes.

use std::net::SocketAddr;

use crate::app::media::{Ice, MediaPorts};
use crate::app::sip::Sip;
use crate::app::sip::config::{MediaConfig, ServiceEndpoint, SipConfig};
use crate::app::table::{CallTable, OutputSink, Place, TableLimits};
use crate::app::{CallApp, Inbound};
use crate::types::{CallKey, Endpoint, LocalId, Nanos, Position, Slot};
use crate::wire::sip::{Address, HeaderName, Message};

pub(super) const ALICE: &str = "10.0.0.1:5060";
pub(super) const BOB: &str = "10.0.0.2:5060";
pub(super) const CAROL: &str = "10.0.0.3:5060";
pub(super) const PROXY: &str = "10.0.0.9:5060";
pub(super) const PROXY6: &str = "[2001:db8::9]:5060";
/// A Tuesday in 2023.
const START: Nanos = Nanos::from_secs(1_700_000_000);

const LIMITS: TableLimits = TableLimits { max_calls: 100, idle: Nanos::MAX };

/// One output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub at: u64,
    pub local: LocalId,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

struct Outputs<'a>(u64, &'a mut Vec<Sent>);

impl OutputSink for Outputs<'_> {
    fn output(&mut self, stamped: bool, local: LocalId, to: Endpoint, bytes: &[u8]) {
        assert!(!stamped);
        self.1.push(Sent { at: self.0, local, to: to.into(), bytes: bytes.to_vec() });
    }
}

pub(super) struct World {
    pub sip: Sip,
    pub table: CallTable<Sip>,
    pub now: Nanos,
    position: u64,
    /// Everything ever sent.
    pub log: Vec<Sent>,
    /// What nobody has taken yet.
    waiting: Vec<Sent>,
    pub records: Vec<serde_json::Value>,
    restores: bool,
}

/// One endpoint for IPv4 and one for IPv6, media anchored, no other timers.
pub(super) fn config() -> SipConfig {
    let endpoint = |text: &str| ServiceEndpoint::new(text.parse().expect("address"), 0);
    let mut config = SipConfig::new(42, 1, vec![endpoint(PROXY), endpoint(PROXY6)]);
    config.media = Some(MediaConfig {
        ports: MediaPorts { first: 30_000, last: 30_099, slots: 1, addresses: 1 },
        ice: Ice::Remove,
        latch: Nanos::from_secs(10),
        timeout: None,
    });
    config
}

/// Runs a flow both ways; a call must leave nothing behind once everything has timed out.
pub(super) fn run(config: &SipConfig, routes: &str, flow: impl Fn(&mut World)) {
    let logs = [false, true].map(|restores| {
        let mut world = World::new(config.clone(), routes, restores);
        flow(&mut world);
        world.wait(200_000);
        world.log
    });
    assert_eq!(logs[0], logs[1], "a restored table goes on as the one it was taken from");
}

/// Runs a flow with the usual configuration and all calls to Bob.
pub(super) fn usual(flow: impl Fn(&mut World)) {
    run(&config(), "default 10.0.0.2:5060", |world| {
        flow(world);
        world.wait(200_000);
        world.none();
        assert_eq!(world.table.len(), 1, "only the keeper is left");
        assert_eq!(world.table.shared().ports.held(), 0);
    });
}

impl World {
    pub(super) fn new(config: SipConfig, routes: &str, restores: bool) -> World {
        let table = CallTable::new(Slot(0), LIMITS);
        let (log, waiting, records) = (Vec::new(), Vec::new(), Vec::new());
        let mut world =
            World { sip: Sip::new(config), table, now: START, position: 0, log, waiting, records, restores };
        let notice = [b"R", routes.as_bytes()].concat();
        world.notice(&notice);
        world
    }

    pub(super) fn notice(&mut self, payload: &[u8]) {
        let source = Endpoint { ip: [0; 16], port: 0 };
        self.entry(CallKey::keeper(Slot(0)), &Inbound { source, local: LocalId::NOTICE, payload });
    }

    pub(super) fn entry(&mut self, key: CallKey, packet: &Inbound<'_>) {
        self.position += 1;
        let place = Place { position: Position(self.position), time: self.now };
        let mut outputs = Vec::new();
        let sink = &mut Outputs(self.now.0 - START.0, &mut outputs);
        self.table.on_packet(&self.sip, place, key, packet, sink);
        self.after(outputs);
    }

    fn after(&mut self, outputs: Vec<Sent>) {
        assert_eq!(self.table.counters().panicked, 0);
        self.log.extend(outputs.iter().cloned());
        for sent in outputs {
            if sent.local == LocalId::RECORD {
                self.records.push(serde_json::from_slice(&sent.bytes).expect("a record is JSON"));
            } else {
                self.waiting.push(sent);
            }
        }
        if self.restores {
            let mut bytes = Vec::new();
            self.table.snapshot(&self.sip, &mut bytes);
            let restored = CallTable::restore(&self.sip, LIMITS, &bytes).expect("its own snapshot");
            let mut again = Vec::new();
            restored.snapshot(&self.sip, &mut again);
            assert_eq!(bytes, again);
            self.table = restored;
        }
    }

    /// How many entries the slot's log has.
    pub(super) fn entries(&self) -> u64 {
        self.position
    }

    /// Lets time pass, timer by timer.
    pub(super) fn wait(&mut self, ms: u64) {
        let end = self.now + Nanos::from_millis(ms);
        for ticks in 0.. {
            assert!(ticks < 100_000, "a timer that is always due");
            let Some(due) = self.table.next_deadline().filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            self.position += 1;
            let place = Place { position: Position(self.position), time: self.now };
            let mut outputs = Vec::new();
            self.table.on_tick(&self.sip, place, &mut Outputs(self.now.0 - START.0, &mut outputs));
            self.after(outputs);
        }
        self.now = end;
    }

    /// A datagram to a service endpoint; line ends become those of SIP.
    pub(super) fn send_to(&mut self, endpoint: u16, from: &str, text: &str) {
        self.bytes_to(LocalId::endpoint(endpoint), from, crlf(text).as_bytes());
    }

    pub(super) fn bytes_to(&mut self, local: LocalId, from: &str, payload: &[u8]) {
        let source = Endpoint::from(from.parse::<SocketAddr>().expect("address"));
        let packet = Inbound { source, local, payload };
        if let Ok(key) = self.sip.classify(&packet) {
            self.entry(key, &packet);
        }
    }

    pub(super) fn send(&mut self, from: &str, text: &str) {
        self.send_to(0, from, text);
    }

    /// Takes all that was sent to somebody.
    pub(super) fn all(&mut self, to: &str) -> Vec<String> {
        let to: SocketAddr = to.parse().expect("address");
        let (taken, left) = std::mem::take(&mut self.waiting).into_iter().partition(|sent| sent.to == to);
        self.waiting = left;
        let taken: Vec<Sent> = taken;
        taken.into_iter().map(|sent| String::from_utf8(sent.bytes).expect("text")).collect()
    }

    /// Takes what was sent to somebody: one message that begins so.
    pub(super) fn one(&mut self, to: &str, start: &str) -> String {
        let all = self.all(to);
        assert!(all.len() == 1 && all[0].starts_with(start), "{start} to {to}, not {all:#?}");
        all.into_iter().next().expect("one")
    }

    /// Takes what was sent to somebody: messages that begin so, in this order.
    pub(super) fn each(&mut self, to: &str, starts: &[&str]) -> Vec<String> {
        let all = self.all(to);
        let fits = all.len() == starts.len() && all.iter().zip(starts).all(|(m, s)| m.starts_with(s));
        assert!(fits, "{starts:?} to {to}, not {all:#?}");
        all
    }

    /// Takes what was sent from a media port.
    pub(super) fn take_media(&mut self) -> Option<Sent> {
        let at = self.waiting.iter().position(|sent| sent.local.port != 0)?;
        Some(self.waiting.remove(at))
    }

    /// Nothing is waiting.
    pub(super) fn none(&mut self) {
        let texts: Vec<_> = self.waiting.iter().map(|s| (s.to, String::from_utf8_lossy(&s.bytes))).collect();
        assert!(texts.is_empty(), "{texts:#?}");
    }

    /// The record of the only call there was.
    pub(super) fn record(&self) -> &serde_json::Value {
        assert_eq!(self.records.len(), 1, "{:?}", self.records);
        &self.records[0]
    }
}

pub(super) fn crlf(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\n', "\r\n")
}

/// A header's first value.
pub(super) fn header(message: &str, name: &str) -> Option<String> {
    let message = Message::parse(message.as_bytes()).expect("a message");
    let value = message.first(HeaderName::of(name.as_bytes()))?;
    Some(String::from_utf8(value.to_vec()).expect("text"))
}

/// All values of a list.
pub(super) fn values(message: &str, name: &str) -> Vec<String> {
    let parsed = Message::parse(message.as_bytes()).expect("a message");
    let values = parsed.values(HeaderName::of(name.as_bytes()));
    values.map(|value| String::from_utf8(value.to_vec()).expect("text")).collect()
}

pub(super) fn body(message: &str) -> String {
    let parsed = Message::parse(message.as_bytes()).expect("a message");
    String::from_utf8(parsed.body().to_vec()).expect("text")
}

/// An audio description at this address and port.
pub(super) fn sdp(ip: &str, port: u16) -> String {
    crlf(&format!(
        "v=0\no=- 1 1 IN IP4 {ip}\ns=-\nc=IN IP4 {ip}\nt=0 0\nm=audio {port} RTP/AVP 0 101\na=rtpmap:101 telephone-event/8000\n"
    ))
}

/// The m=audio port of a message.
pub(super) fn audio_port(message: &str) -> u16 {
    let body = body(message);
    let port = body.split("m=audio ").nth(1).and_then(|rest| rest.split(' ').next());
    port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no m=audio in {message}"))
}

/// Headers, the empty line and the body; `extra` holds whole lines.
pub(super) fn with_body(head: &str, extra: &str, body: &str) -> String {
    let kind = if body.is_empty() || extra.contains("Content-Type") {
        ""
    } else {
        "Content-Type: application/sdp\n"
    };
    crlf(&format!("{head}{extra}{kind}Content-Length: {}\n\n", body.len())) + body
}

/// An INVITE of Alice's for Bob.
pub(super) fn invite(call_id: &str, cseq: u32, extra: &str, body: &str) -> String {
    request(
        "INVITE",
        "sip:bob@example.com",
        call_id,
        cseq,
        &format!("Contact: <sip:alice@{ALICE}>\n{extra}"),
        body,
    )
}

/// A request of Alice's outside of a dialog.
pub(super) fn request(method: &str, uri: &str, call_id: &str, cseq: u32, extra: &str, body: &str) -> String {
    let head = format!(
        "{method} {uri} SIP/2.0\nVia: SIP/2.0/UDP {ALICE};branch=z9hG4bK-{method}-{cseq};rport\nMax-Forwards: 70\n\
         From: Alice <sip:alice@example.com>;tag=a1\nTo: <sip:bob@example.com>\nCall-ID: {call_id}\n\
         CSeq: {cseq} {method}\n"
    );
    with_body(&head, extra, body)
}

/// The CANCEL of a request of Alice's.
pub(super) fn cancel(invite: &str) -> String {
    follow(invite, "CANCEL", &header(invite, "To").expect("To"))
}

/// The ACK of a refusal.
pub(super) fn ack_refusal(invite: &str, refusal: &str) -> String {
    follow(invite, "ACK", &header(refusal, "To").expect("To"))
}

fn follow(invite: &str, method: &str, to: &str) -> String {
    let value = |name| header(invite, name).expect("a header");
    let uri = invite.split(' ').nth(1).expect("a URI");
    let cseq = format!("{} {method}", value("CSeq").split(' ').next().expect("a number"));
    crlf(&format!(
        "{method} {uri} SIP/2.0\nVia: {}\nMax-Forwards: 70\nFrom: {}\nTo: {to}\nCall-ID: {}\nCSeq: {cseq}\nContent-Length: 0\n\n",
        value("Via"),
        value("From"),
        value("Call-ID"),
    ))
}

/// A response as an agent at `contact` makes it.
pub(super) fn reply(request: &str, code: u16, tag: &str, contact: &str, extra: &str, body: &str) -> String {
    let mut head = format!("SIP/2.0 {code} Whatever\n");
    for via in values(request, "Via") {
        head += &format!("Via: {via}\n");
    }
    let value = |name| header(request, name).expect("a header");
    let to = value("To");
    let to = if tag.is_empty() || to.contains(";tag=") { to } else { format!("{to};tag={tag}") };
    head += &format!(
        "From: {}\nTo: {to}\nCall-ID: {}\nCSeq: {}\n",
        value("From"),
        value("Call-ID"),
        value("CSeq")
    );
    for route in values(request, "Record-Route") {
        head += &format!("Record-Route: {route}\n");
    }
    if !contact.is_empty() {
        head += &format!("Contact: <sip:agent@{contact}>\n");
    }
    with_body(&head, extra, body)
}

/// One end of a dialog.
#[derive(Clone, Debug)]
pub(super) struct Dialog {
    pub own: String,
    pub other: String,
    pub call_id: String,
    pub target: String,
    pub routes: Vec<String>,
    pub cseq: u32,
    pub at: &'static str,
}

impl Dialog {
    /// Alice's end, by the response she got.
    pub(super) fn caller(response: &str, cseq: u32) -> Dialog {
        let mut routes = values(response, "Record-Route");
        routes.reverse();
        let value = |name| header(response, name).expect("a header");
        Dialog {
            own: value("From"),
            other: value("To"),
            call_id: value("Call-ID"),
            target: uri(&value("Contact")),
            routes,
            cseq,
            at: ALICE,
        }
    }

    /// The other end, by the INVITE it got and its response.
    pub(super) fn callee(invite: &str, response: &str, at: &'static str) -> Dialog {
        let value = |name| header(response, name).expect("a header");
        Dialog {
            own: value("To"),
            other: value("From"),
            call_id: value("Call-ID"),
            target: uri(&header(invite, "Contact").expect("Contact")),
            routes: values(invite, "Record-Route"),
            cseq: 0,
            at,
        }
    }

    /// A request within it.
    pub(super) fn request(&mut self, method: &str, extra: &str, body: &str) -> String {
        if method != "ACK" {
            self.cseq += 1;
        }
        let (at, cseq) = (self.at, self.cseq);
        let peer = self.other.split("tag=").nth(1).unwrap_or_default();
        let mut head = format!(
            "{method} {} SIP/2.0\nVia: SIP/2.0/UDP {at};branch=z9hG4bK-{at}-{peer}-{cseq}-{method};rport\nMax-Forwards: 70\n",
            self.target
        );
        for route in &self.routes {
            head += &format!("Route: {route}\n");
        }
        head += &format!(
            "From: {}\nTo: {}\nCall-ID: {}\nCSeq: {cseq} {method}\n",
            self.own, self.other, self.call_id
        );
        with_body(&head, extra, body)
    }
}

fn uri(contact: &str) -> String {
    let address = Address::parse(contact.as_bytes()).expect("an address");
    String::from_utf8(address.uri.to_vec()).expect("text")
}

/// A call that Bob answers; both ends of its dialog.
pub(super) fn establish(world: &mut World, call_id: &str, offer: &str, answer: &str) -> (Dialog, Dialog) {
    establish_with(world, call_id, "", offer, "", answer)
}

pub(super) fn establish_with(
    world: &mut World,
    call_id: &str,
    asked: &str,
    offer: &str,
    answered: &str,
    answer: &str,
) -> (Dialog, Dialog) {
    world.send(ALICE, &invite(call_id, 1, asked, offer));
    world.one(ALICE, "SIP/2.0 100 ");
    let got = world.one(BOB, "INVITE ");
    let ok = reply(&got, 200, "b1", BOB, answered, answer);
    world.send(BOB, &ok);
    let passed = world.one(ALICE, "SIP/2.0 200 ");
    let (mut alice, bob) = (Dialog::caller(&passed, 1), Dialog::callee(&got, &ok, BOB));
    world.send(ALICE, &alice.request("ACK", "", ""));
    world.one(BOB, "ACK ");
    (alice, bob)
}

/// Alice hangs up.
pub(super) fn hang_up(world: &mut World, alice: &mut Dialog) {
    passed(world, ALICE, &alice.request("BYE", "", ""), BOB, "BYE ");
}

/// A request, other than an INVITE, arrives at `to` with its Request-URI, and its answer where it came from.
pub(super) fn carried(world: &mut World, from: &str, asked: &str, to: &str) {
    let (line, _) = asked.split_once("\r\n").expect("a request");
    passed(world, from, asked, to, line);
}

fn passed(world: &mut World, from: &str, asked: &str, to: &str, start: &str) {
    world.send(from, asked);
    let got = world.one(to, start);
    world.send(to, &reply(&got, 200, "b1", "", "", ""));
    world.one(from, "SIP/2.0 200 ");
}
