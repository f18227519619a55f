//! What happens within a call: more offers, transfers, events, and its end from either side.

use super::harness::{
    ALICE, BOB, Dialog, PROXY, World, ack_refusal, audio_port, body, establish, hang_up, header, invite,
    reply, sdp, usual, values, with_body,
};
use crate::app::media::Dropped;
use crate::app::sip::shared::Lost;
use crate::types::LocalId;

fn rtp(ssrc: u8, sequence: u8) -> Vec<u8> {
    let mut packet = vec![0x80, 0, 0, sequence, 0, 0, 0, sequence, 0, 0, 0, ssrc];
    packet.extend([7; 160]);
    packet
}

/// A packet to a media port of the proxy; to whom it went.
fn media(world: &mut World, from: &str, port: u16) -> Option<(String, u16)> {
    let before = world.log.len();
    let packet = rtp(port as u8, before as u8);
    world.bytes_to(LocalId::media(0, port), from, &packet);
    let sent = world.take_media()?;
    assert_eq!(sent.bytes, packet);
    Some((sent.to.to_string(), sent.local.port))
}

#[test]
fn media_goes_both_ways_and_nowhere_else() {
    usual(|world| {
        world.send(ALICE, &invite("m", 1, "", &sdp("10.0.0.1", 4000)));
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        let to_alice = audio_port(&got);
        let ok = reply(&got, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000));
        world.send(BOB, &ok);
        let passed = world.one(ALICE, "SIP/2.0 200 ");
        let to_bob = audio_port(&passed);
        let mut alice = Dialog::caller(&passed, 1);
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        assert_eq!(media(world, "10.0.0.1:4000", to_bob), Some(("10.0.0.2:6000".into(), to_alice)));
        assert_eq!(media(world, "10.0.0.2:6000", to_alice), Some(("10.0.0.1:4000".into(), to_bob)));
        assert_eq!(media(world, "10.6.6.6:6666", to_alice), None);
        let free =
            (30_000..30_100).step_by(2).find(|port| *port != to_alice && *port != to_bob).expect("a port");
        assert_eq!(media(world, "10.0.0.1:4000", free), None);
        hang_up(world, &mut alice);
        assert_eq!(media(world, "10.0.0.1:4000", to_bob), None);
        let record = world.record();
        assert_eq!(record["media"]["lines"][0]["caller"]["streams"][0]["packets"], 1);
        assert_eq!(record["media"]["dropped"]["unknown_source"], 1);
        let strangers = Lost::Media(Dropped::UnknownSource);
        assert_eq!(world.table.shared().lost[strangers.index()], 1);
    });
}

/// A re-INVITE that the other side answers; the body that each got.
fn again(
    world: &mut World,
    asker: &mut Dialog,
    (answerer, name): (&'static str, &str),
    offer: &str,
    answer: &str,
) -> (String, String) {
    let asked = asker.request("INVITE", &format!("Contact: <sip:x@{}>\n", asker.at), offer);
    world.send(asker.at, &asked);
    world.one(asker.at, "SIP/2.0 100 ");
    let got = world.one(answerer, "INVITE ");
    world.send(answerer, &reply(&got, 200, name, answerer, "", answer));
    let passed = world.one(asker.at, "SIP/2.0 200 ");
    world.send(asker.at, &asker.request("ACK", "", ""));
    world.one(answerer, "ACK ");
    (body(&got), body(&passed))
}

#[test]
fn hold_and_resume_from_both_sides() {
    usual(|world| {
        let (mut alice, mut bob) = establish(world, "h", &sdp("10.0.0.1", 4000), &sdp("10.0.0.2", 6000));
        let held = |sdp: String, how: &str| format!("{sdp}a={how}\r\n");
        let first = again(
            world,
            &mut alice,
            (BOB, ""),
            &held(sdp("10.0.0.1", 4000), "sendonly"),
            &held(sdp("10.0.0.2", 6000), "recvonly"),
        );
        assert!(first.0.contains("a=sendonly\r\n") && first.1.contains("a=recvonly\r\n"));
        let second = again(world, &mut bob, (ALICE, ""), &sdp("10.0.0.2", 6100), &sdp("10.0.0.1", 4000));
        assert!(second.0.contains("c=IN IP4 10.0.0.9\r\n") && second.1.contains("c=IN IP4 10.0.0.9\r\n"));
        let port =
            |body: &str| body.split("m=audio ").nth(1).and_then(|r| r.split(' ').next()).map(String::from);
        assert_eq!((port(&first.0), port(&first.1)), (port(&second.1), port(&second.0)));
        assert_eq!(world.table.shared().ports.held(), 2);
        // One that fails leaves everything as it was.
        let refused = bob.request("INVITE", "", &sdp("10.0.0.2", 7000));
        world.send(BOB, &refused);
        world.one(BOB, "SIP/2.0 100 ");
        let got = world.one(ALICE, "INVITE ");
        world.send(ALICE, &reply(&got, 491, "", "", "", ""));
        world.one(ALICE, "ACK ");
        let over = world.one(BOB, "SIP/2.0 491 ");
        world.send(BOB, &ack_refusal(&refused, &over));
        assert_eq!(world.table.shared().ports.held(), 2);
        hang_up(world, &mut alice);
        assert_eq!(world.record()["outcome"], "answered");
    });
}

#[test]
fn an_offer_that_comes_late() {
    usual(|world| {
        world.send(ALICE, &invite("l", 1, "", ""));
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        assert_eq!(body(&got), "");
        let ok = reply(&got, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000));
        world.send(BOB, &ok);
        let passed = world.one(ALICE, "SIP/2.0 200 ");
        let to_bob = audio_port(&passed);
        world.send(BOB, &ok);
        assert_eq!(world.one(ALICE, "SIP/2.0 200 "), passed);
        let mut alice = Dialog::caller(&passed, 1);
        let ack = alice.request("ACK", "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &ack);
        let acked = world.one(BOB, "ACK ");
        let to_alice = audio_port(&acked);
        world.send(ALICE, &ack);
        assert_eq!(world.one(BOB, "ACK "), acked);
        assert_eq!(media(world, "10.0.0.1:4000", to_bob), Some(("10.0.0.2:6000".into(), to_alice)));
        hang_up(world, &mut alice);
    });
}

/// Between its BYE and the end of all repetitions an ACK may still come, and what it describes leads nowhere any more.
#[test]
fn an_ack_after_the_bye_describes_nothing() {
    usual(|world| {
        let (mut alice, _) = establish(world, "c", &sdp("10.0.0.1", 4000), &sdp("10.0.0.2", 6000));
        let late = alice.request("ACK", "", &sdp("10.0.0.1", 4000));
        hang_up(world, &mut alice);
        world.send(ALICE, &late);
        let passed = world.one(BOB, "ACK ");
        assert_eq!((body(&passed).as_str(), header(&passed, "Content-Length").as_deref()), ("", Some("0")));
        assert_eq!(header(&passed, "Content-Type"), None);
    });
}

#[test]
fn provisional_responses_are_acknowledged_and_an_update_follows() {
    usual(|world| {
        world.send(ALICE, &invite("p", 1, "Supported: 100rel\n", &sdp("10.0.0.1", 4000)));
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        let progress = reply(&got, 183, "b1", BOB, "Require: 100rel\nRSeq: 1\n", &sdp("10.0.0.2", 6000));
        world.send(BOB, &progress);
        let passed = world.one(ALICE, "SIP/2.0 183 ");
        assert_eq!(header(&passed, "RSeq").as_deref(), Some("1"));
        world.send(BOB, &progress);
        assert_eq!(world.one(ALICE, "SIP/2.0 183 "), passed);
        let mut alice = Dialog::caller(&passed, 1);
        world.send(ALICE, &alice.request("PRACK", "RAck: 1 1 INVITE\n", ""));
        let prack = world.one(BOB, "PRACK ");
        world.send(BOB, &reply(&prack, 200, "", "", "", ""));
        world.one(ALICE, "SIP/2.0 200 ");
        let mut bob = Dialog::callee(&got, &progress, BOB);
        world.send(
            BOB,
            &bob.request("UPDATE", &format!("Contact: <sip:bob@{BOB}>\n"), &sdp("10.0.0.2", 6002)),
        );
        let update = world.one(ALICE, &format!("UPDATE sip:alice@{ALICE} "));
        assert_eq!(audio_port(&update), audio_port(&passed));
        world.send(ALICE, &reply(&update, 200, "", ALICE, "", &sdp("10.0.0.1", 4002)));
        let updated = world.one(BOB, "SIP/2.0 200 ");
        assert_eq!(audio_port(&updated), audio_port(&got));
        let ok = reply(&got, 200, "b1", BOB, "", "");
        world.send(BOB, &ok);
        world.one(ALICE, "SIP/2.0 200 ");
        world.send(ALICE, &with_cseq(&alice.request("ACK", "", ""), 1));
        world.one(BOB, "ACK ");
        assert_eq!(media(world, "10.0.0.1:4002", audio_port(&passed)).expect("media").0, "10.0.0.2:6002");
        hang_up(world, &mut alice);
    });
}

/// The ACK of an INVITE that other requests followed.
/// As a SIPp scenario does it that puts a 200 together from pieces of the INVITE.
#[test]
fn an_answer_that_forgets_the_tag_belongs_to_who_rang() {
    usual(|world| {
        world.send(ALICE, &invite("t", 1, "", &sdp("10.0.0.1", 4000)));
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        world.send(BOB, &reply(&got, 183, "b1", BOB, "", &sdp("10.0.0.2", 6000)));
        let mut alice = Dialog::caller(&world.one(ALICE, "SIP/2.0 183 "), 1);
        // Nor does its Contact say where he is.
        world.send(BOB, &reply(&got, 200, "", ALICE, "", &sdp("10.0.0.2", 6000)));
        world.one(ALICE, "SIP/2.0 200 ");
        (alice.target, alice.routes) = (format!("sip:bob@{PROXY}"), Vec::new());
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        hang_up(world, &mut alice);
        assert_eq!(world.record()["outcome"], "answered");
    });
}

fn with_cseq(ack: &str, cseq: u32) -> String {
    let old = header(ack, "CSeq").expect("CSeq");
    ack.replace(&format!("CSeq: {old}"), &format!("CSeq: {cseq} ACK"))
}

#[test]
fn a_late_offer_is_answered_by_prack() {
    usual(|world| {
        world.send(ALICE, &invite("p", 1, "Supported: 100rel\n", ""));
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        world.send(BOB, &reply(&got, 183, "b1", BOB, "Require: 100rel\nRSeq: 1\n", &sdp("10.0.0.2", 6000)));
        let passed = world.one(ALICE, "SIP/2.0 183 ");
        let mut alice = Dialog::caller(&passed, 1);
        world.send(ALICE, &alice.request("PRACK", "RAck: 1 1 INVITE\n", &sdp("10.0.0.1", 4000)));
        let prack = world.one(BOB, "PRACK ");
        world.send(BOB, &reply(&prack, 200, "", "", "", ""));
        world.one(ALICE, "SIP/2.0 200 ");
        let to_bob = audio_port(&passed);
        assert_eq!(media(world, "10.0.0.1:4000", to_bob), Some(("10.0.0.2:6000".into(), audio_port(&prack))));
        world.send(BOB, &reply(&got, 200, "b1", BOB, "", ""));
        world.one(ALICE, "SIP/2.0 200 ");
        world.send(ALICE, &with_cseq(&alice.request("ACK", "", ""), 1));
        world.one(BOB, "ACK ");
        hang_up(world, &mut alice);
    });
}

#[test]
fn transfers_events_keys_and_unknown_methods() {
    usual(|world| {
        let (mut alice, mut bob) = establish(world, "t", &sdp("10.0.0.1", 4000), &sdp("10.0.0.2", 6000));
        for method in ["REFER", "INFO", "MESSAGE", "SUBSCRIBE", "OPTIONS", "NOTHINGKNOWN"] {
            let extra = "Refer-To: <sip:carol@example.com>\nContent-Type: application/dtmf-relay\n";
            let asked = alice.request(method, extra, "Signal=5\r\n");
            world.send(ALICE, &asked);
            let got = world.one(BOB, &format!("{method} sip:agent@{BOB} "));
            assert_eq!(body(&got), "Signal=5\r\n");
            world.send(BOB, &reply(&got, 202, "", "", "", ""));
            world.one(ALICE, "SIP/2.0 202 ");
        }
        for _ in 0..2 {
            world.send(BOB, &bob.request("NOTIFY", "Event: refer\n", ""));
            let got = world.one(ALICE, "NOTIFY ");
            world.send(ALICE, &reply(&got, 200, "", "", "", ""));
            world.one(BOB, "SIP/2.0 200 ");
        }
        hang_up(world, &mut alice);
        // What is still said of the transfer finds its way by its Route alone.
        world.send(BOB, &bob.request("NOTIFY", "Event: refer\n", ""));
        let got = world.one(ALICE, "NOTIFY ");
        world.send(ALICE, &reply(&got, 200, "", "", "", ""));
        world.one(BOB, "SIP/2.0 200 ");
        assert_eq!(world.records.len(), 1);
    });
}

#[test]
fn both_hang_up_at_once() {
    usual(|world| {
        let (mut alice, mut bob) = establish(world, "g", &sdp("10.0.0.1", 4000), &sdp("10.0.0.2", 6000));
        world.send(ALICE, &alice.request("BYE", "", ""));
        world.send(BOB, &bob.request("BYE", "", ""));
        let (at_bob, at_alice) = (world.one(BOB, "BYE "), world.one(ALICE, "BYE "));
        world.send(ALICE, &reply(&at_alice, 481, "", "", "", ""));
        world.one(BOB, "SIP/2.0 481 ");
        world.send(BOB, &reply(&at_bob, 200, "", "", "", ""));
        world.one(ALICE, "SIP/2.0 200 ");
        assert_eq!(world.record()["cause"], "bye");
    });
}

#[test]
fn a_bye_that_nobody_answers_or_that_lacks_credentials() {
    usual(|world| {
        let (mut alice, _) = establish(world, "b", &sdp("10.0.0.1", 4000), &sdp("10.0.0.2", 6000));
        world.send(ALICE, &alice.request("BYE", "", ""));
        let bye = world.one(BOB, "BYE ");
        world.send(BOB, &reply(&bye, 407, "", "", "", ""));
        world.one(ALICE, "SIP/2.0 407 ");
        assert!(world.records.is_empty());
        world.send(ALICE, &alice.request("BYE", "", ""));
        world.wait(32_000);
        assert_eq!(world.all(BOB).len(), 11);
        assert_eq!(world.record()["ended_by"], "caller");
    });
}

#[test]
fn an_agent_that_knows_no_routes() {
    usual(|world| {
        let (mut alice, mut bob) = establish(world, "n", &sdp("10.0.0.1", 4000), &sdp("10.0.0.2", 6000));
        (alice.routes, bob.routes) = (Vec::new(), Vec::new());
        (alice.target, bob.target) = (format!("sip:service@{PROXY}"), format!("sip:service@{PROXY}"));
        world.send(BOB, &bob.request("INFO", "", ""));
        let got = world.one(ALICE, &format!("INFO sip:alice@{ALICE} "));
        assert!(values(&got, "Route").is_empty());
        world.send(ALICE, &reply(&got, 200, "", "", "", ""));
        world.one(BOB, "SIP/2.0 200 ");
        world.send(ALICE, &alice.request("BYE", "", ""));
        let bye = world.one(BOB, &format!("BYE sip:agent@{BOB} "));
        world.send(BOB, &reply(&bye, 200, "", "", "", ""));
        world.one(ALICE, "SIP/2.0 200 ");
    });
}

#[test]
fn forks_that_both_answer() {
    usual(|world| {
        world.send(ALICE, &invite("k", 1, "", &sdp("10.0.0.1", 4000)));
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        for tag in ["b1", "b2", "b3"] {
            world.send(BOB, &reply(&got, 180, tag, BOB, "", &sdp("10.0.0.2", 6000)));
            world.one(ALICE, "SIP/2.0 180 ");
        }
        let mut ends = Vec::new();
        for tag in ["b2", "b1"] {
            world.send(BOB, &reply(&got, 200, tag, BOB, "", &sdp("10.0.0.2", 6002)));
            let mut alice = Dialog::caller(&world.one(ALICE, "SIP/2.0 200 "), 1);
            world.send(ALICE, &alice.request("ACK", "", ""));
            world.one(BOB, "ACK ");
            ends.push(alice);
        }
        hang_up(world, &mut ends[1]);
        assert!(world.records.is_empty());
        hang_up(world, &mut ends[0]);
        assert_eq!(world.records.len(), 1);
    });
}

#[test]
fn descriptions_that_cannot_be_anchored() {
    usual(|world| {
        let lines = "m=audio 4000 RTP/AVP 0\r\n".repeat(200);
        let asked = invite("d", 1, "", &format!("{}{lines}", sdp("10.0.0.1", 4000)));
        world.send(ALICE, &asked);
        let over = world.one(ALICE, "SIP/2.0 488 ");
        world.send(ALICE, &ack_refusal(&asked, &over));
        assert_eq!(world.record()["code"], 488);
        // All ports are taken after 25 calls of two pairs.
        let mut calls = Vec::new();
        for n in 0..25 {
            calls.push(establish(world, &format!("c{n}"), &sdp("10.0.0.1", 4000), &sdp("10.0.0.2", 6000)).0);
        }
        let asked = invite("e", 1, "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        let over = world.one(ALICE, "SIP/2.0 503 ");
        assert_eq!(header(&over, "Retry-After").as_deref(), Some("10"));
        world.send(ALICE, &ack_refusal(&asked, &over));
        for mut alice in calls {
            hang_up(world, &mut alice);
        }
        assert_eq!(world.records.len(), 27);
    });
}

#[test]
fn a_body_that_is_no_description_passes() {
    usual(|world| {
        let strange = "hello \u{7f} world";
        let head = invite("s", 1, "Content-Type: text/plain\n", strange);
        world.send(ALICE, &head);
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        assert_eq!(body(&got), strange);
        world.send(
            BOB,
            &with_body(reply(&got, 486, "b1", "", "", "").split("Content").next().expect("head"), "", ""),
        );
        world.one(BOB, "ACK ");
        world.one(ALICE, "SIP/2.0 486 ");
        world.wait(40_000);
        world.all(ALICE);
    });
}

#[test]
fn an_agent_behind_a_nat() {
    usual(|world| {
        let outside = "198.51.100.7:33333";
        world.send(
            outside,
            &invite("w", 1, "", "")
                .replace("Contact: <sip:alice@10.0.0.1:5060>", "Contact: <sip:alice@192.168.1.2>"),
        );
        world.one(outside, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        let ok = reply(&got, 200, "b1", BOB, "", "");
        world.send(BOB, &ok);
        let mut alice = Dialog::caller(&world.one(outside, "SIP/2.0 200 "), 1);
        world.send(outside, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        world.send(BOB, &Dialog::callee(&got, &ok, BOB).request("BYE", "", ""));
        let bye = world.one(outside, "BYE sip:alice@192.168.1.2 ");
        world.send(outside, &reply(&bye, 200, "", "", "", ""));
        world.one(BOB, "SIP/2.0 200 ");
    });
}
