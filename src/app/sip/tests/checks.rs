//! Connectivity checks of parties that do ICE with the lite agents here.

use super::harness::{
    ALICE, BOB, Dialog, World, audio_port, body, config, hang_up, header, invite, reply, run, sdp,
};
use crate::app::media::Ice;
use crate::app::sip::config::SipConfig;
use crate::types::{LocalId, Nanos};
use crate::wire::sdp::describe::Description;
use crate::wire::stun::{self, Message, Writer, attribute};

const NAMES: &str = "a=ice-ufrag:them\r\na=ice-pwd:0123456789abcdefABCD+/\r\n";
/// Where Alice's browser is seen.
const SEEN: &str = "203.0.113.5:61000";

fn lite(timeout: Option<Nanos>) -> SipConfig {
    let mut config = config();
    let media = config.media.as_mut().expect("anchored");
    (media.ice, media.timeout) = (Ice::Lite, timeout);
    config
}

/// Alice's browser calls Bob's phone: her dialog, the port she sends to, her check, and who signs its answer.
fn established(world: &mut World) -> (Dialog, LocalId, Vec<u8>, Vec<u8>) {
    let offer = sdp("10.0.0.1", 4000) + NAMES;
    world.send(ALICE, &invite("a", 1, "", &offer));
    world.one(ALICE, "SIP/2.0 100 ");
    let got = world.one(BOB, "INVITE ");
    assert!(body(&got).contains("a=ice-lite\r\n") && !got.contains("ufrag:them"), "{got}");
    world.send(BOB, &reply(&got, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000)));
    let passed = world.one(ALICE, "SIP/2.0 200 ");
    let described = body(&passed);
    let read = Description::read(described.as_bytes()).expect("SDP");
    let ice = read.media[0].ice().expect("ICE");
    let mut alice = Dialog::caller(&passed, 1);
    world.send(ALICE, &alice.request("ACK", "", ""));
    assert!(header(&world.one(BOB, "ACK "), "Via").is_some());
    let check = Writer::new(stun::REQUEST, b"transaction.")
        .attribute(attribute::USERNAME, &[ice.ufrag, b":them"].concat())
        .attribute(attribute::PRIORITY, &[0x6e, 0, 1, 0xff])
        .attribute(attribute::ICE_CONTROLLING, &[7; 8])
        .attribute(attribute::USE_CANDIDATE, b"")
        .sign(ice.pwd)
        .finish();
    (alice, LocalId::media(0, audio_port(&passed)), check, ice.pwd.to_vec())
}

#[test]
fn a_check_is_answered_and_media_follows_it() {
    run(&lite(None), "default 10.0.0.2:5060", |world| {
        let (mut alice, port, check, pwd) = established(world);
        // A stranger, then the browser, whose check is repeated.
        let mut forged = check.clone();
        forged[9] ^= 1;
        world.bytes_to(port, "198.51.100.1:9", &forged);
        assert_eq!(world.take_media(), None);
        for _ in 0..2 {
            world.bytes_to(port, SEEN, &check);
            let sent = world.take_media().expect("an answer");
            assert_eq!((sent.local, sent.to), (port, SEEN.parse().expect("an address")));
            let answer = Message::new(&sent.bytes).expect("STUN");
            assert_eq!((answer.kind(), answer.mapped()), (stun::SUCCESS, SEEN.parse().ok()));
            assert!(answer.is_whole() && answer.is_signed_with(&pwd));
            assert_eq!(world.take_media(), None);
        }
        let rtp = [&[0x80, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 7][..], &[0x55; 160]].concat();
        world.bytes_to(port, SEEN, &rtp);
        let sent = world.take_media().expect("relayed");
        assert_eq!((sent.to, &sent.bytes), ("10.0.0.2:6000".parse().expect("an address"), &rtp));
        world.bytes_to(sent.local, "10.0.0.2:6000", &rtp);
        let sent = world.take_media().expect("relayed");
        assert_eq!((sent.local, sent.to), (port, SEEN.parse().expect("an address")));
        world.bytes_to(port, "10.0.0.1:4000", &rtp);
        assert_eq!(world.take_media(), None);
        hang_up(world, &mut alice);
        let media = &world.record()["media"];
        assert_eq!(media["dropped"]["stun"], 1);
        assert_eq!(media["lines"][0]["caller"]["source"], SEEN);
    });
}

#[test]
fn who_checks_is_not_silent() {
    run(&lite(Some(Nanos::from_secs(20))), "default 10.0.0.2:5060", |world| {
        let (_, port, check, _) = established(world);
        for _ in 0..8 {
            world.wait(5_000);
            world.bytes_to(port, SEEN, &check);
            assert!(world.take_media().is_some());
        }
        world.none();
        world.wait(20_200);
        world.one(ALICE, "BYE ");
        world.one(BOB, "BYE ");
    });
}
