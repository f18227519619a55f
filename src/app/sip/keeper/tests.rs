//! Keepers in a call table of their own.

use super::*;
use crate::app::CallApp;
use crate::app::Unclassified;
use crate::app::table::{CallTable, OutputSink, Place, TableLimits};
use crate::config::KeyRule;
use crate::types::Position;
use crate::wire::sip::Message;

/// An application of keepers alone.
struct Keepers(KeeperSetup);

/// What the proxy's shared state looks like to a keeper.
#[derive(Default)]
struct Shared(SlotState);

impl AsRef<SlotState> for Shared {
    fn as_ref(&self) -> &SlotState {
        &self.0
    }
}

impl CallApp for Keepers {
    type Call = Keeper;
    type Shared = Shared;
    type Change = SlotChange;

    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified> {
        self.0.keys.key(packet)
    }

    fn resolve(&self, shared: &Shared, key: CallKey, packet: &Inbound<'_>) -> Option<CallKey> {
        let is_notice = packet.local == LocalId::NOTICE;
        (is_notice || shared.0.is_ping(key)).then_some(CallKey::keeper(key.slot(self.0.slots)))
    }

    fn open(&self, _: CallKey, _: Nanos) -> Keeper {
        Keeper::default()
    }

    fn on_packet(
        &self,
        call: &mut Keeper,
        ctx: &mut impl Context<Shared = Shared, Change = SlotChange>,
        packet: &Inbound<'_>,
    ) {
        call.on_packet(&self.0, ctx, packet);
    }

    fn on_timer(
        &self,
        call: &mut Keeper,
        ctx: &mut impl Context<Shared = Shared, Change = SlotChange>,
        _: TimerId,
    ) {
        call.on_timer(&self.0, ctx);
    }

    fn apply(&self, shared: &mut Shared, change: SlotChange) {
        shared.0.apply(change);
    }

    fn snapshot_shared(&self, shared: &Shared, out: &mut Vec<u8>) -> u16 {
        shared.0.snapshot(out)
    }

    fn restore_shared(&self, version: u16, bytes: &[u8]) -> Result<Shared, BadSnapshot> {
        SlotState::restore(&self.0.routes, version, bytes).map(Shared)
    }

    fn snapshot(&self, call: &Keeper, out: &mut Vec<u8>) -> u16 {
        call.snapshot(out)
    }

    fn restore(&self, version: u16, bytes: &[u8]) -> Result<Keeper, BadSnapshot> {
        Keeper::restore(version, bytes)
    }
}

const SLOTS: u16 = 64;
const NOBODY: Endpoint = Endpoint { ip: [0; 16], port: 0 };

#[derive(Default)]
struct Sent(Vec<(LocalId, Endpoint, Vec<u8>)>);

impl OutputSink for Sent {
    fn output(&mut self, _: bool, local: LocalId, to: Endpoint, bytes: &[u8]) {
        self.0.push((local, to, bytes.to_vec()));
    }
}

/// One slot and the time.
struct Seat {
    app: Keepers,
    table: CallTable<Keepers>,
    slot: Slot,
    position: u64,
    time: Nanos,
    sent: Sent,
}

fn at(text: &str) -> Endpoint {
    Endpoint::from(text.parse::<SocketAddr>().expect("an address"))
}

impl Seat {
    fn new(slot: u16) -> Seat {
        let address =
            |n: u16| PingFrom { local: LocalId::endpoint(n), host: format!("192.0.2.{}:5060", n + 1) };
        let app = Keepers(KeeperSetup {
            keys: KeyExtractor { rule: KeyRule::Sip, seed: 9 },
            slots: SLOTS,
            addresses: vec![address(0), address(1)],
            routes: RouteCache::default(),
        });
        let (slot, time) = (Slot(slot), Nanos::from_secs(1_000));
        let limits = TableLimits { max_calls: 10, idle: Nanos::MAX };
        Seat { app, table: CallTable::new(slot, limits), slot, position: 0, time, sent: Sent::default() }
    }

    fn place(&mut self) -> Place {
        self.position += 1;
        Place { position: Position(self.position), time: self.time }
    }

    fn packet(&mut self, source: Endpoint, local: LocalId, key: CallKey, payload: &[u8]) {
        let place = self.place();
        self.table.on_packet(&self.app, place, key, &Inbound { source, local, payload }, &mut self.sent);
    }

    fn notice(&mut self, text: &str) {
        self.packet(NOBODY, LocalId::NOTICE, CallKey::keeper(self.slot), text.as_bytes());
    }

    /// Answers a ping; false if the answer is nobody's.
    fn answer(&mut self, status: u16, (_, to, ping): &(LocalId, Endpoint, Vec<u8>)) -> bool {
        let text = String::from_utf8(ping.clone()).expect("text");
        let (_, headers) = text.split_once("\r\n").expect("a request");
        let payload = format!("SIP/2.0 {status} X\r\n{headers}");
        let inbound = Inbound { source: *to, local: LocalId::endpoint(0), payload: payload.as_bytes() };
        let key = self.app.classify(&inbound).expect("a key");
        assert_eq!(key.slot(SLOTS), self.slot, "answers come to the slot that asked");
        let before = self.table.counters().unresolved;
        self.packet(*to, LocalId::endpoint(0), key, payload.as_bytes());
        self.table.counters().unresolved == before
    }

    /// Lets time pass until the next deadline, at most until `end`; what was sent then.
    fn next(&mut self, end: Nanos) -> Vec<(LocalId, Endpoint, Vec<u8>)> {
        match self.table.next_deadline().filter(|due| *due <= end) {
            Some(due) => {
                self.time = self.time.max(due);
                let place = self.place();
                self.table.on_tick(&self.app, place, &mut self.sent);
            }
            None => self.time = end,
        }
        std::mem::take(&mut self.sent.0)
    }

    /// For so many seconds answers the pings of targets for which `answers` has a status; the notices said.
    fn run(&mut self, seconds: u64, answers: impl Fn(Endpoint) -> Option<u16>) -> Vec<String> {
        let end = self.time + Nanos::from_secs(seconds);
        let mut notices = Vec::new();
        while self.time < end {
            for sent in self.next(end) {
                if sent.0 == LocalId::NOTICE {
                    notices.push(String::from_utf8(sent.2).expect("text"));
                } else if let Some(status) = answers(sent.1) {
                    assert!(self.answer(status, &sent));
                }
            }
            let mut said = std::mem::take(&mut self.sent.0);
            notices.extend(said.drain(..).map(|sent| String::from_utf8(sent.2).expect("text")));
        }
        notices
    }

    fn down(&self) -> Vec<Endpoint> {
        self.table.shared().0.down(self.time).collect()
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.table.snapshot(&self.app, &mut bytes);
        bytes
    }

    /// The seat of a member that got a snapshot.
    fn restored(&self) -> Seat {
        let mut seat = Seat::new(self.slot.0);
        let bytes = self.snapshot();
        let limits = TableLimits { max_calls: 10, idle: Nanos::MAX };
        seat.table = CallTable::restore(&seat.app, limits, &bytes).expect("a snapshot");
        (seat.position, seat.time) = (self.position, self.time);
        seat
    }
}

const ROUTES_TEXT: &str = "Rdefault 10.0.0.1, 10.0.0.2\nping 5s\nping-timeout 2s\ndown-after 2\nup-after 2\n";

#[test]
fn a_ping_is_a_right_request_sent_again_until_it_is_answered() {
    let mut seat = Seat::new(1);
    let told = seat.time;
    seat.notice(ROUTES_TEXT);
    let first = seat.next(Nanos::MAX).remove(0);
    let message = Message::parse(&first.2).expect("a message");
    crate::wire::sip::check::check(&message).expect("a right request");
    assert_eq!(message.method(), Some(Method::Options));
    assert_eq!((first.0, first.1), (LocalId::endpoint(1), at("10.0.0.1:5060")));
    assert_eq!(message.uri(), Some(&b"sip:10.0.0.1:5060"[..]));
    assert_eq!(message.via().expect("a Via").port, Some(5060));
    let start = seat.time;
    assert_eq!(seat.next(Nanos::MAX), std::slice::from_ref(&first));
    assert_eq!(seat.time.since(start), T1);
    assert!(seat.answer(200, &first));
    assert!(seat.answer(200, &first), "a second answer comes to the keeper and means nothing");
    let second = seat.next(Nanos::MAX).remove(0);
    assert_eq!((second.1, seat.time.since(told)), (at("10.0.0.2:5060"), Nanos::from_millis(2_500)));
    assert!(seat.sent.0.is_empty() && seat.down().is_empty());
}

#[test]
fn targets_go_down_and_up_after_as_many_pings_as_the_file_says() {
    let mut seat = Seat::new(0);
    seat.notice(ROUTES_TEXT);
    assert!(seat.run(20, |_| Some(404)).is_empty(), "every answer but 408 and 503 is a sign of life");
    let two = at("10.0.0.2:5060");
    let said = seat.run(20, |to| (to != two).then_some(200));
    assert_eq!(said, ["H0 down 10.0.0.2:5060"], "said once");
    seat.notice(&said[0]);
    assert_eq!(seat.down(), [two]);
    let said = seat.run(20, |_| Some(200));
    assert_eq!(said, ["H0 up 10.0.0.2:5060"]);
    seat.notice(&said[0]);
    assert!(seat.down().is_empty());
    assert_eq!(seat.run(20, |to| Some(if to == two { 503 } else { 200 })), ["H0 down 10.0.0.2:5060"]);
}

#[test]
fn answers_of_others_and_to_other_pings_do_not_count() {
    let mut seat = Seat::new(0);
    seat.notice("Rdefault 10.0.0.1\nping 5s\ndown-after 1\n");
    let (local, _, ping) = seat.next(Nanos::MAX).remove(0);
    seat.answer(200, &(local, at("10.0.0.7:5060"), ping.clone()));
    let text = String::from_utf8(ping).expect("text").replace("z9hG4bK", "z9hG4bK1");
    seat.answer(200, &(local, at("10.0.0.1:5060"), text.into_bytes()));
    assert_eq!(seat.run(3, |_| None), ["H0 down 10.0.0.1:5060"]);
}

#[test]
fn a_slot_that_does_not_ping_hears_the_keeper_of_its_address_only() {
    let mut seat = Seat::new(5);
    seat.notice(ROUTES_TEXT);
    assert_eq!(seat.table.next_deadline(), None, "no pings");
    seat.notice("H0 down 10.0.0.1:5060");
    assert!(seat.down().is_empty(), "5 is carried by address 1");
    seat.notice("H1 down 10.0.0.1:5060");
    assert_eq!(seat.down(), [at("10.0.0.1:5060")]);
    for nonsense in ["H", "H1 sideways", "Hx up 10.0.0.1:5060", "X", "", "Rnonsense", "R\u{fffd}"] {
        seat.notice(nonsense);
    }
    assert_eq!(seat.down(), [at("10.0.0.1:5060")]);
    seat.notice("T");
    seat.notice("T");
    assert_eq!(seat.table.shared().0.takeovers(), 2);
}

#[test]
fn after_a_takeover_the_whole_truth_is_said_again() {
    let mut seat = Seat::new(0);
    seat.notice(ROUTES_TEXT);
    assert!(seat.run(20, |_| Some(200)).is_empty());
    seat.notice("T");
    seat.notice("T");
    assert_eq!(seat.run(5, |_| Some(200)), ["H0 reset"]);
    assert_eq!(seat.run(20, |_| None).len(), 2);
    seat.notice("T");
    assert_eq!(seat.run(2, |_| None), ["H0 reset down 10.0.0.1:5060 down 10.0.0.2:5060"]);
    seat.notice("Rdefault 10.0.0.2, 10.0.0.3\nping 5s\n");
    assert_eq!(
        seat.run(2, |_| None),
        ["H0 reset down 10.0.0.2:5060"],
        "what is known of those that stay is kept"
    );
    seat.notice("Rdefault 10.0.0.2\n");
    assert_eq!(seat.table.next_deadline(), None, "these routes want no pings");
}

#[test]
fn a_member_that_got_a_snapshot_pings_alike() {
    let mut seat = Seat::new(1);
    seat.notice(ROUTES_TEXT);
    seat.run(12, |to| (to == at("10.0.0.1:5060")).then_some(200));
    let mut other = seat.restored();
    for _ in 0..20 {
        assert_eq!(seat.next(Nanos::MAX), other.next(Nanos::MAX));
    }
    assert_eq!(seat.snapshot(), other.snapshot());
    assert!(Keeper::restore(FORM + 1, &[]).is_err() && Keeper::restore(FORM, &[1]).is_err());
}

#[test]
fn a_thousand_targets_are_spread_over_the_interval() {
    let mut seat = Seat::new(0);
    let rules: String = (0..1_000).map(|n| format!("user {n} 10.0.{}.{}\n", n / 200, n % 200 + 1)).collect();
    seat.notice(&format!("R{rules}ping 10s\n"));
    let mut most = 0;
    for _ in 0..2_000 {
        let sent = seat.next(Nanos::MAX);
        most = most.max(sent.len());
        sent.iter().for_each(|sent| assert!(seat.answer(200, sent)));
    }
    assert!(most <= 2, "{most} at once");
}
