//! Calls that the proxy ends itself: silence, length, sessions that nobody refreshes (RFC 4028).

use super::harness::{
    ALICE, BOB, CAROL, Dialog, World, ack_refusal, audio_port, config, establish, establish_with, header,
    invite, reply, run, sdp, values,
};
use crate::app::sip::config::{SessionTimer, SipConfig};
use crate::types::{LocalId, Nanos};

const ROUTES: &str = "default 10.0.0.2:5060";

fn with_session() -> SipConfig {
    SipConfig { session: Some(SessionTimer { interval: 1800, min_se: 120 }), ..config() }
}

/// Both sides get a BYE, and answer it.
fn both_are_told(world: &mut World, alice: &Dialog, bob: &Dialog, cause: &str) {
    let to_alice = world.one(ALICE, &format!("BYE {} SIP/2.0\r\n", bob.target));
    let to_bob = world.one(BOB, &format!("BYE {} SIP/2.0\r\n", alice.target));
    for (bye, end, peer) in [(&to_alice, alice, bob), (&to_bob, bob, alice)] {
        assert_eq!(header(bye, "From").as_ref(), Some(&peer.own));
        assert_eq!(header(bye, "To").as_ref(), Some(&end.own));
        assert_eq!(header(bye, "Call-ID").as_ref(), Some(&end.call_id));
        assert_eq!(header(bye, "CSeq"), Some(format!("{} BYE", peer.cseq + 1)));
        assert!(header(bye, "Reason").is_some());
        assert!(values(bye, "Route").is_empty());
    }
    world.wait(600);
    assert_eq!(world.one(ALICE, "BYE "), to_alice);
    world.all(BOB);
    world.send(ALICE, &reply(&to_alice, 200, "", "", "", ""));
    world.send(BOB, &reply(&to_bob, 481, "", "", "", ""));
    world.none();
    assert_eq!(world.record()["cause"], cause);
    assert_eq!(world.record()["ended_by"], "tandem");
    world.wait(40_000);
    world.none();
    assert_eq!(world.table.len(), 1);
    assert_eq!(world.table.shared().ports.held(), 0);
}

#[test]
fn a_call_that_lasts_too_long() {
    let config = SipConfig { max_call: Some(Nanos::from_secs(3600)), ..config() };
    run(&config, ROUTES, |world| {
        let (alice, bob) = establish(world, "x", &sdp("10.0.0.1", 4000), &sdp("10.0.0.2", 6000));
        world.wait(3_599_000);
        world.none();
        world.wait(1_000);
        both_are_told(world, &alice, &bob, "max_duration");
        assert_eq!(world.record()["duration_ms"], 3_600_000);
    });
}

#[test]
fn media_that_falls_silent() {
    let mut config = config();
    if let Some(media) = &mut config.media {
        media.timeout = Some(Nanos::from_secs(60));
    }
    run(&config, ROUTES, |world| {
        world.send(ALICE, &invite("x", 1, "", &sdp("10.0.0.1", 4000)));
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        let ok = reply(&got, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000));
        world.send(BOB, &ok);
        let passed = world.one(ALICE, "SIP/2.0 200 ");
        let (mut alice, bob) = (Dialog::caller(&passed, 1), Dialog::callee(&got, &ok, BOB));
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        let packet = [&[0x80, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1][..], &[0; 160]].concat();
        for _ in 0..3 {
            world.wait(50_000);
            world.bytes_to(LocalId::media(0, audio_port(&passed)), "10.0.0.1:4000", &packet);
            assert!(world.take_media().is_some());
        }
        // On hold silence means nothing.
        let held = format!("{}a=inactive\r\n", sdp("10.0.0.1", 4000));
        world.send(ALICE, &alice.request("INVITE", "", &held));
        world.one(ALICE, "SIP/2.0 100 ");
        let again = world.one(BOB, "INVITE ");
        world
            .send(BOB, &reply(&again, 200, "", BOB, "", &format!("{}a=inactive\r\n", sdp("10.0.0.2", 6000))));
        world.one(ALICE, "SIP/2.0 200 ");
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        world.wait(600_000);
        world.none();
        world.send(ALICE, &alice.request("INVITE", "", &sdp("10.0.0.1", 4000)));
        world.one(ALICE, "SIP/2.0 100 ");
        let again = world.one(BOB, "INVITE ");
        world.send(BOB, &reply(&again, 200, "", BOB, "", &sdp("10.0.0.2", 6000)));
        world.one(ALICE, "SIP/2.0 200 ");
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        let mut waited = 0;
        while world.records.is_empty() {
            world.wait(1_000);
            waited += 1;
        }
        assert!((1..=60).contains(&waited), "{waited} s");
        alice.target = format!("sip:agent@{BOB}");
        both_are_told(world, &alice, &bob, "media_timeout");
    });
}

#[test]
fn a_session_that_nobody_refreshes() {
    run(&with_session(), ROUTES, |world| {
        let asked = "Supported: timer\nSession-Expires: 600\n";
        let answered = "Require: timer\nSession-Expires: 600;refresher=uac\n";
        let (mut alice, bob) =
            establish_with(world, "x", asked, &sdp("10.0.0.1", 4000), answered, &sdp("10.0.0.2", 6000));
        world.wait(590_000);
        world.send(ALICE, &alice.request("UPDATE", asked, ""));
        let got = world.one(BOB, "UPDATE ");
        world.send(BOB, &reply(&got, 200, "", BOB, answered, ""));
        world.one(ALICE, "SIP/2.0 200 ");
        world.wait(599_000);
        world.none();
        world.wait(1_000);
        both_are_told(world, &alice, &bob, "session_timer");
    });
}

#[test]
fn a_session_that_an_update_makes_endless() {
    run(&with_session(), ROUTES, |world| {
        let asked = "Supported: timer\nSession-Expires: 600\n";
        let answered = "Require: timer\nSession-Expires: 600;refresher=uac\n";
        let (mut alice, _) = establish_with(world, "x", asked, "", answered, "");
        world.send(ALICE, &alice.request("UPDATE", "", ""));
        let got = world.one(BOB, "UPDATE ");
        world.send(BOB, &reply(&got, 200, "", BOB, "", ""));
        assert_eq!(header(&world.one(ALICE, "SIP/2.0 200 "), "Session-Expires"), None);
        world.wait(10_000_000);
        world.none();
        super::harness::hang_up(world, &mut alice);
        assert_eq!(world.record()["cause"], "bye");
    });
}

#[test]
fn sessions_of_agents_that_ask_for_none() {
    run(&with_session(), ROUTES, |world| {
        for (supported, answered, expected) in [
            ("Supported: timer, 100rel\n", "", Some("1800;refresher=uac")),
            ("Supported: 100rel\n", "", None),
            ("", "Session-Expires: 900;refresher=uas\n", Some("900;refresher=uas")),
        ] {
            world.send(ALICE, &invite("x", 1, supported, ""));
            world.one(ALICE, "SIP/2.0 100 ");
            let got = world.one(BOB, "INVITE ");
            assert_eq!(header(&got, "Session-Expires").as_deref(), Some("1800"));
            assert_eq!(header(&got, "Min-SE").as_deref(), Some("120"));
            world.send(BOB, &reply(&got, 200, "b1", BOB, answered, ""));
            let passed = world.one(ALICE, "SIP/2.0 200 ");
            assert_eq!(header(&passed, "Session-Expires").as_deref(), expected);
            assert_eq!(
                header(&passed, "Require").as_deref() == Some("timer"),
                expected == Some("1800;refresher=uac")
            );
            let mut alice = Dialog::caller(&passed, 1);
            world.send(ALICE, &alice.request("ACK", "", ""));
            world.one(BOB, "ACK ");
            super::harness::hang_up(world, &mut alice);
            world.wait(64_000);
        }
    });
}

#[test]
fn sessions_that_are_too_short() {
    run(&with_session(), ROUTES, |world| {
        let asked = invite("x", 1, "Supported: timer\nSession-Expires: 91\n", "");
        world.send(ALICE, &asked);
        let over = world.one(ALICE, "SIP/2.0 422 ");
        assert_eq!(header(&over, "Min-SE").as_deref(), Some("120"));
        world.send(ALICE, &ack_refusal(&asked, &over));
        world.send(ALICE, &invite("x", 2, "Session-Expires: 91\n", ""));
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        assert_eq!(header(&got, "Session-Expires").as_deref(), Some("120"));
        assert_eq!(header(&got, "Min-SE").as_deref(), Some("120"));
        world.send(BOB, &reply(&got, 302, "b1", CAROL, "", ""));
        world.one(BOB, "ACK ");
        world.one(ALICE, "SIP/2.0 302 ");
        world.send(
            ALICE,
            &invite("y", 1, "Supported: timer\nSession-Expires: 7200;refresher=uas\nMin-SE: 3600\n", ""),
        );
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        assert_eq!(header(&got, "Session-Expires").as_deref(), Some("3600;refresher=uas"));
        world.wait(64_000);
        world.all(ALICE);
        world.all(BOB);
        assert_eq!(world.records.len(), 2);
    });
}

#[test]
fn what_is_over_is_forgotten_in_one_entry() {
    super::harness::usual(|world| {
        let (mut alice, _) = establish(world, "over", "", "");
        world.wait(10);
        super::harness::hang_up(world, &mut alice);
        let before = world.entries();
        world.wait(31_900);
        assert_eq!(world.entries(), before, "copies that come now are known");
        world.wait(300);
        assert_eq!((world.entries() - before, world.table.len()), (1, 1));
    });
}
