//! Targets that fail, and what a caller is told in the end.

use super::harness::{
    ALICE, BOB, CAROL, Dialog, World, ack_refusal, audio_port, cancel, carried, config, hang_up, header,
    invite, reply, request, run, sdp, usual, values,
};
use crate::app::sip::config::SipConfig;
use crate::app::sip::shared::Lost;
use crate::types::Nanos;
use crate::wire::sip::Reason;

const DAVE: &str = "10.0.0.4:5060";
const TWO: &str = "default 10.0.0.2:5060, 10.0.0.3:5060;priority=1";

#[test]
fn a_silent_target_and_the_next() {
    let mut config = config();
    config.next_after = Nanos::from_secs(4);
    run(&config, TWO, |world| {
        let asked = invite("f", 1, "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        world.one(ALICE, "SIP/2.0 100 ");
        world.wait(4_000);
        let first = world.each(BOB, &["INVITE "; 4]).remove(0);
        let second = world.one(CAROL, "INVITE sip:bob@example.com SIP/2.0\r\n");
        assert_ne!(values(&first, "Via")[0], values(&second, "Via")[0]);
        assert_eq!(audio_port(&first), audio_port(&second));
        // He is known to be down for a while.
        world.send(ALICE, &invite("g", 1, "", ""));
        world.one(ALICE, "SIP/2.0 100 ");
        world.one(CAROL, "INVITE ");
        // He wakes up.
        world.send(BOB, &reply(&first, 180, "b1", BOB, "", ""));
        let cancelled = world.one(BOB, "CANCEL ");
        world.send(BOB, &reply(&cancelled, 200, "b1", "", "", ""));
        world.send(BOB, &reply(&first, 487, "b1", "", "", ""));
        world.one(BOB, "ACK ");
        world.none();
        let ok = reply(&second, 200, "c1", CAROL, "", &sdp("10.0.0.3", 6000));
        world.send(CAROL, &ok);
        let passed = world.one(ALICE, "SIP/2.0 200 ");
        let mut alice = Dialog::caller(&passed, 1);
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(CAROL, "ACK ");
        carried(world, ALICE, &alice.request("BYE", "", ""), CAROL);
        let record = world.record();
        assert_eq!(record["target"], CAROL);
        assert_eq!(record["tried"], serde_json::json!([BOB, CAROL]));
        world.send(ALICE, &invite("h", 1, "", ""));
        world.one(ALICE, "SIP/2.0 100 ");
        world.one(BOB, "INVITE ");
        world.wait(200_000);
        world.all(ALICE);
        world.all(BOB);
        world.all(CAROL);
    });
}

/// An INVITE that Bob is silent to for too long, so that Carol gets it; as both got it. There is one more behind them.
fn second_try(world: &mut World) -> (String, String) {
    world.send(ALICE, &invite("f", 1, "", &sdp("10.0.0.1", 4000)));
    world.one(ALICE, "SIP/2.0 100 ");
    world.wait(4_000);
    (world.each(BOB, &["INVITE "; 4]).remove(0), world.one(CAROL, "INVITE "))
}

fn three(flow: impl Fn(&mut World)) {
    let config = SipConfig { next_after: Nanos::from_secs(4), ..config() };
    run(&config, &format!("{TWO}, {DAVE};priority=2"), |world| {
        flow(world);
        world.wait(200_000);
        world.none();
        assert_eq!((world.table.len(), world.records.len()), (1, 1));
    });
}

#[test]
fn a_late_answer_stops_the_next_from_ringing() {
    three(|world| {
        let (first, second) = second_try(world);
        world.send(CAROL, &reply(&second, 180, "c1", CAROL, "", ""));
        world.one(ALICE, "SIP/2.0 180 ");
        world.send(BOB, &reply(&first, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000)));
        let mut alice = Dialog::caller(&world.one(ALICE, "SIP/2.0 200 "), 1);
        let cancelled = world.one(CAROL, "CANCEL ");
        assert_eq!(values(&cancelled, "Via"), values(&second, "Via")[..1]);
        assert!(header(&cancelled, "Reason").expect("why").starts_with("SIP;cause=200;"));
        world.send(CAROL, &reply(&cancelled, 200, "c1", "", "", ""));
        world.send(CAROL, &reply(&second, 487, "c1", "", "", ""));
        world.one(CAROL, "ACK ");
        world.none();
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        hang_up(world, &mut alice);
    });
}

#[test]
fn each_of_two_answers_comes_again_as_it_was() {
    three(|world| {
        let (first, second) = second_try(world);
        let answers = [
            (CAROL, reply(&second, 200, "c1", CAROL, "", &sdp("10.0.0.3", 6000))),
            (BOB, reply(&first, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000))),
        ];
        let passed = answers.each_ref().map(|(from, answer)| {
            world.send(from, answer);
            world.one(ALICE, "SIP/2.0 200 ")
        });
        for (at, (from, answer)) in answers.iter().enumerate() {
            world.send(from, answer);
            assert_eq!(world.one(ALICE, "SIP/2.0 200 "), passed[at]);
        }
        for (at, end) in [(1, BOB), (0, CAROL)] {
            let mut alice = Dialog::caller(&passed[at], 1);
            world.send(ALICE, &alice.request("ACK", "", ""));
            world.one(end, "ACK ");
            carried(world, ALICE, &alice.request("BYE", "", ""), end);
            // Once more, as its ACK was late: it begins no dialog.
            world.send(answers[at].0, &answers[at].1);
            assert_eq!(world.one(ALICE, "SIP/2.0 200 "), passed[at]);
        }
        assert_eq!(world.record()["duration_ms"], 0);
    });
}

#[test]
fn after_a_late_answer_nobody_else_is_called() {
    three(|world| {
        let (first, second) = second_try(world);
        world.send(BOB, &reply(&first, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000)));
        let mut alice = Dialog::caller(&world.one(ALICE, "SIP/2.0 200 "), 1);
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        world.wait(20_000);
        world.none();
        // The next has not answered yet, but got it.
        world.send(CAROL, &reply(&second, 180, "c1", CAROL, "", ""));
        let cancelled = world.one(CAROL, "CANCEL ");
        world.send(CAROL, &reply(&cancelled, 200, "c1", "", "", ""));
        world.send(CAROL, &reply(&second, 487, "c1", "", "", ""));
        world.one(CAROL, "ACK ");
        hang_up(world, &mut alice);
    });
}

#[test]
fn a_target_that_cannot_and_the_next() {
    run(&config(), TWO, |world| {
        let asked = invite("f", 1, "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        world.one(ALICE, "SIP/2.0 100 ");
        let first = world.one(BOB, "INVITE ");
        let full = reply(&first, 503, "b1", "", "Retry-After: 10\n", "");
        world.send(BOB, &full);
        world.one(BOB, "ACK ");
        let second = world.one(CAROL, "INVITE ");
        world.send(BOB, &full);
        world.one(BOB, "ACK ");
        world.send(CAROL, &reply(&second, 503, "c1", "", "Retry-After: 10\n", ""));
        world.one(CAROL, "ACK ");
        let over = world.one(ALICE, "SIP/2.0 500 ");
        assert_eq!(header(&over, "Retry-After"), None);
        world.send(ALICE, &ack_refusal(&asked, &over));
        world.none();
        assert_eq!(world.record()["outcome"], "failed");
    });
}

#[test]
fn nobody_is_there() {
    usual(|world| {
        let asked = invite("f", 1, "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        world.one(ALICE, "SIP/2.0 100 ");
        world.wait(32_000);
        assert_eq!(world.all(BOB).len(), 7);
        let over = world.one(ALICE, "SIP/2.0 408 ");
        world.send(ALICE, &ack_refusal(&asked, &over));
        assert_eq!(world.record()["cause"], "target_timeout");
    });
}

#[test]
fn no_rule_fits() {
    run(&config(), "domain other.org 10.0.0.2:5060", |world| {
        let asked = invite("f", 1, "", "");
        world.send(ALICE, &asked);
        let over = world.one(ALICE, "SIP/2.0 404 ");
        world.send(ALICE, &asked);
        assert_eq!(world.one(ALICE, "SIP/2.0 404 "), over);
        // Unasked it is not repeated to who may be anybody, and its ACK ends here.
        world.wait(20_000);
        world.none();
        world.send(ALICE, &ack_refusal(&asked, &over));
        world.none();
        assert_eq!(world.record()["outcome"], "no_route");
        world.send(ALICE, &request("MESSAGE", "sip:bob@example.com", "m", 1, "", ""));
        world.one(ALICE, "SIP/2.0 404 ");
    });
}

/// Whatever the default is.
#[test]
fn a_scheme_that_nobody_can_route() {
    usual(|world| {
        let asked = request("INVITE", "nobodyknows:this", "s", 1, "", "");
        world.send(ALICE, &asked);
        let over = world.one(ALICE, "SIP/2.0 416 ");
        world.send(ALICE, &ack_refusal(&asked, &over));
        assert_eq!((&world.record()["code"], &world.record()["outcome"]), (&416.into(), &"refused".into()));
        world.send(ALICE, &request("MESSAGE", "mailto:bob@example.com", "m", 1, "", ""));
        world.one(ALICE, "SIP/2.0 416 ");
        assert_eq!(world.table.shared().lost[Lost::Malformed(Reason::Scheme).index()], 2);
        carried(world, ALICE, &request("MESSAGE", "urn:service:sos", "m", 3, "", ""), BOB);
        // A Route tells the way whatever the Request-URI is.
        let by = format!("Route: <sip:{BOB};lr>\n");
        carried(world, ALICE, &request("MESSAGE", "mailto:bob@example.com", "m", 2, &by, ""), BOB);
    });
}

#[test]
fn a_redirection_goes_back() {
    usual(|world| {
        let asked = invite("f", 1, "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        world.send(BOB, &reply(&got, 302, "b1", CAROL, "", ""));
        world.one(BOB, "ACK ");
        let over = world.one(ALICE, "SIP/2.0 302 ");
        assert_eq!(header(&over, "Contact").expect("Contact"), format!("<sip:agent@{CAROL}>"));
        world.send(ALICE, &ack_refusal(&asked, &over));
        assert_eq!(world.record()["outcome"], "redirected");
    });
}

#[test]
fn credentials_are_asked_for() {
    usual(|world| {
        for (cseq, code) in [(1, 407), (2, 401)] {
            let asked = invite("f", cseq, "", &sdp("10.0.0.1", 4000));
            world.send(ALICE, &asked);
            world.one(ALICE, "SIP/2.0 100 ");
            let got = world.one(BOB, "INVITE ");
            world.send(BOB, &reply(&got, code, "b1", "", "Proxy-Authenticate: Digest realm=x\n", ""));
            world.one(BOB, "ACK ");
            let over = world.one(ALICE, &format!("SIP/2.0 {code} "));
            assert!(header(&over, "Proxy-Authenticate").is_some());
            world.send(ALICE, &ack_refusal(&asked, &over));
            assert_eq!(world.table.shared().ports.held(), 0);
        }
        assert!(world.records.is_empty());
        let asked = invite("f", 3, "Proxy-Authorization: Digest x\n", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        world.send(BOB, &reply(&got, 200, "b2", BOB, "", &sdp("10.0.0.2", 6000)));
        let mut alice = Dialog::caller(&world.one(ALICE, "SIP/2.0 200 "), 3);
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        hang_up(world, &mut alice);
        assert_eq!(world.record()["outcome"], "answered");
    });
}

#[test]
fn credentials_that_never_come() {
    usual(|world| {
        let asked = invite("f", 1, "", "");
        world.send(ALICE, &asked);
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        world.send(BOB, &reply(&got, 401, "b1", "", "", ""));
        world.one(BOB, "ACK ");
        let over = world.one(ALICE, "SIP/2.0 401 ");
        world.send(ALICE, &ack_refusal(&asked, &over));
        world.wait(64_000);
        assert_eq!((&world.record()["code"], &world.record()["outcome"]), (&401.into(), &"refused".into()));
    });
}

#[test]
fn requests_outside_of_dialogs() {
    usual(|world| {
        for method in ["REGISTER", "MESSAGE", "SUBSCRIBE", "PUBLISH", "OPTIONS", "NEWMETHOD"] {
            let asked = request(method, "sip:bob@example.com", method, 1, "Event: x\n", "");
            world.send(ALICE, &asked);
            let got = world.one(BOB, &format!("{method} sip:bob@example.com SIP/2.0\r\n"));
            let recorded = method == "SUBSCRIBE";
            assert_eq!(header(&got, "Record-Route").is_some(), recorded, "{got}");
            world.send(ALICE, &asked);
            world.none();
            world.send(BOB, &reply(&got, 200, "b1", BOB, "X: 1\n", ""));
            let done = world.one(ALICE, "SIP/2.0 200 ");
            assert!(done.contains("X: 1\r\n"));
            world.send(ALICE, &asked);
            assert_eq!(world.one(ALICE, "SIP/2.0 200 "), done);
            world.send(ALICE, &cancel(&asked));
            world.one(ALICE, "SIP/2.0 200 ");
            world.none();
        }
        // Nobody answers: neither does the proxy (RFC 4320).
        world.send(ALICE, &request("MESSAGE", "sip:bob@example.com", "silent", 1, "", ""));
        world.wait(40_000);
        assert_eq!(world.all(BOB).len(), 11);
        assert!(world.records.is_empty());
    });
}
