//! Calls as they should go, and messages that are lost on the way.

use super::harness::{
    ALICE, BOB, Dialog, PROXY, ack_refusal, audio_port, establish, hang_up, header, invite, reply, sdp,
    usual, values,
};

#[test]
fn a_call_from_invite_to_bye() {
    usual(|world| {
        let asked = invite("a", 1, "X-Thing: \u{1F600}\nSupported: 100rel\n", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        let trying = world.one(ALICE, "SIP/2.0 100 Trying\r\n");
        assert_eq!(
            header(&trying, "Via").expect("Via"),
            format!("SIP/2.0/UDP {ALICE};branch=z9hG4bK-INVITE-1;rport=5060;received=10.0.0.1")
        );
        let got = world.one(BOB, "INVITE sip:bob@example.com SIP/2.0\r\n");
        assert_eq!(header(&got, "X-Thing").as_deref(), Some("\u{1F600}"));
        assert_eq!(header(&got, "Max-Forwards").as_deref(), Some("69"));
        assert_eq!(values(&got, "Record-Route"), [format!("<sip:{PROXY};lr>")]);
        let vias = values(&got, "Via");
        assert!(
            vias.len() == 2 && vias[0].starts_with(&format!("SIP/2.0/UDP {PROXY};branch=z9hG4bK")),
            "{vias:?}"
        );
        assert!(
            got.contains("c=IN IP4 10.0.0.9\r\n") && (30_000..30_100).contains(&audio_port(&got)),
            "{got}"
        );

        world.send(BOB, &reply(&got, 100, "", "", "", ""));
        world.none();
        world.send(BOB, &reply(&got, 180, "b1", BOB, "", ""));
        let ringing = world.one(ALICE, "SIP/2.0 180 ");
        assert_eq!(values(&ringing, "Via").len(), 1);
        world.wait(3_000);
        let ok = reply(&got, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000));
        world.send(BOB, &ok);
        let passed = world.one(ALICE, "SIP/2.0 200 ");
        assert!(passed.contains("c=IN IP4 10.0.0.9\r\n") && audio_port(&passed) != audio_port(&got));
        let (mut alice, mut bob) = (Dialog::caller(&passed, 1), Dialog::callee(&got, &ok, BOB));
        world.send(ALICE, &alice.request("ACK", "", ""));
        let ack = world.one(BOB, &format!("ACK sip:agent@{BOB} SIP/2.0\r\n"));
        assert_eq!(header(&ack, "Route"), None);
        world.wait(30_000);
        world.notice(b"T");
        world.wait(30_000);
        world.none();
        assert!(world.records.is_empty());

        world.send(BOB, &bob.request("BYE", "", ""));
        let bye = world.one(ALICE, &format!("BYE sip:alice@{ALICE} SIP/2.0\r\n"));
        assert!(world.records.is_empty());
        world.send(ALICE, &reply(&bye, 200, "", "", "", ""));
        world.one(BOB, "SIP/2.0 200 ");
        let record = world.record();
        assert_eq!(
            (&record["outcome"], &record["ended_by"], &record["cause"]),
            (&"answered".into(), &"callee".into(), &"bye".into())
        );
        assert_eq!(record["duration_ms"], 60_000);
        assert_eq!((&record["target"], &record["takeovers"]), (&BOB.into(), &1.into()));
        assert!(record["media"]["lines"][0]["live"].as_bool().expect("a flag"));
    });
}

#[test]
fn a_busy_callee() {
    usual(|world| {
        let asked = invite("a", 1, "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        let busy = reply(&got, 486, "b1", "", "", "");
        world.send(BOB, &busy);
        let ack = world.one(BOB, "ACK sip:bob@example.com SIP/2.0\r\n");
        assert_eq!(values(&ack, "Via"), values(&got, "Via")[..1]);
        assert_eq!(header(&ack, "To"), header(&busy, "To"));
        let passed = world.one(ALICE, "SIP/2.0 486 ");
        // The ACK to Bob was lost, then Alice's.
        world.send(BOB, &busy);
        assert_eq!(world.one(BOB, "ACK "), ack);
        world.wait(1_600);
        assert_eq!(world.all(ALICE), [passed.clone(), passed.clone()]);
        world.send(ALICE, &asked);
        assert_eq!(world.one(ALICE, "SIP/2.0 486 "), passed);
        world.send(ALICE, &ack_refusal(&asked, &passed));
        world.wait(4_000);
        world.send(ALICE, &ack_refusal(&asked, &passed));
        world.none();
        assert_eq!(world.record()["outcome"], "busy");
    });
}

#[test]
fn messages_come_twice() {
    usual(|world| {
        let asked = invite("a", 1, "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        let trying = world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        world.send(ALICE, &asked);
        assert_eq!(world.one(ALICE, "SIP/2.0 100 "), trying);
        // Timer A.
        world.wait(3_600);
        assert_eq!(world.all(BOB), [got.clone(), got.clone(), got.clone()]);
        let ringing = reply(&got, 180, "b1", BOB, "", "");
        world.send(BOB, &ringing);
        let rings = world.one(ALICE, "SIP/2.0 180 ");
        world.send(BOB, &ringing);
        assert_eq!(world.one(ALICE, "SIP/2.0 180 "), rings);
        world.send(ALICE, &asked);
        assert_eq!(world.one(ALICE, "SIP/2.0 180 "), rings);
        world.wait(20_000);
        world.none();
        let ok = reply(&got, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000));
        world.send(BOB, &ok);
        let passed = world.one(ALICE, "SIP/2.0 200 ");
        // Lost on the way to Alice, who calls again meanwhile; Bob says it again.
        world.send(ALICE, &asked);
        world.none();
        world.send(BOB, &ok);
        assert_eq!(world.one(ALICE, "SIP/2.0 200 "), passed);
        // The ACK is lost.
        let mut alice = Dialog::caller(&passed, 1);
        let ack = alice.request("ACK", "", "");
        world.send(ALICE, &ack);
        let acked = world.one(BOB, "ACK ");
        world.send(BOB, &ok);
        world.one(ALICE, "SIP/2.0 200 ");
        world.send(ALICE, &ack);
        assert_eq!(world.one(BOB, "ACK "), acked);
        let bye = alice.request("BYE", "", "");
        world.send(ALICE, &bye);
        let hung = world.one(BOB, "BYE ");
        world.send(ALICE, &bye);
        world.none();
        world.wait(600);
        assert_eq!(world.one(BOB, "BYE "), hung);
        let done = reply(&hung, 200, "", "", "", "");
        world.send(BOB, &done);
        let done_too = world.one(ALICE, "SIP/2.0 200 ");
        world.send(BOB, &done);
        world.none();
        world.send(ALICE, &bye);
        assert_eq!(world.one(ALICE, "SIP/2.0 200 "), done_too);
        assert_eq!(world.records.len(), 1);
    });
}

#[test]
fn two_calls_at_a_time() {
    usual(|world| {
        let (mut one, _) = establish(world, "one", &sdp("10.0.0.1", 4000), &sdp("10.0.0.2", 6000));
        let (mut two, _) = establish(world, "two", &sdp("10.0.0.1", 4002), &sdp("10.0.0.2", 6002));
        assert_eq!(world.table.shared().ports.held(), 4);
        hang_up(world, &mut one);
        assert_eq!(world.table.shared().ports.held(), 2);
        hang_up(world, &mut two);
        assert_eq!(world.records.len(), 2);
    });
}
