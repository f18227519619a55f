//! Routes, loops, several endpoints, and messages that belong to nothing.

use super::harness::{
    ALICE, BOB, CAROL, Dialog, PROXY, PROXY6, World, ack_refusal, cancel, carried, config, crlf, establish,
    header, invite, reply, request, run, sdp, usual, values,
};
use crate::app::sip::shared::Lost;
use crate::app::{CallApp, Inbound};
use crate::types::{Endpoint, LocalId};
use crate::wire::sip::Reason;

const BOB6: &str = "[2001:db8::2]:5060";

fn lost(world: &World, kind: Lost) -> u32 {
    world.table.shared().lost[kind.index()]
}

#[test]
fn what_has_been_here_before() {
    usual(|world| {
        let asked = invite("l", 1, "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        // Bob sends it back as it is, below a Via of his own.
        let via = format!("Via: SIP/2.0/UDP {BOB};branch=z9hG4bKbob\r\nVia:");
        let looped = got.replacen("Via:", &via, 1);
        world.send(BOB, &looped);
        world.one(BOB, "SIP/2.0 482 ");
        // With another Request-URI it is a spiral: it goes on, and its media is anchored once.
        let spiral = looped
            .replace("z9hG4bKbob", "z9hG4bKspiral")
            .replace("sip:bob@example.com SIP", "sip:carol@x.org SIP");
        world.send(BOB, &spiral);
        let both = world.all(BOB);
        assert!(
            both.len() == 2
                && both[0].starts_with("SIP/2.0 100 ")
                && both[1].starts_with("INVITE sip:carol@x.org ")
        );
        assert_eq!(super::harness::body(&both[1]), super::harness::body(&got));
        world.send(BOB, &reply(&both[1], 486, "c1", "", "", ""));
        let all = world.all(BOB);
        assert!(
            all.len() == 2 && all[0].starts_with("ACK ") && all[1].starts_with("SIP/2.0 486 "),
            "{all:?}"
        );
        assert!(world.records.is_empty());
        world.send(BOB, &ack_refusal(&spiral, &all[1]));
        world.send(BOB, &reply(&got, 486, "b1", "", "", ""));
        world.one(BOB, "ACK ");
        let over = world.one(ALICE, "SIP/2.0 486 ");
        world.send(ALICE, &ack_refusal(&asked, &over));
        assert_eq!(world.records.len(), 1);
    });
}

/// By way of a proxy between, which asks for another Request-URI: what follows comes through here twice as well.
#[test]
fn a_spiral_that_is_answered() {
    run(&config(), "domain example.com 10.0.0.3:5060\ndefault 10.0.0.2:5060", |world| {
        let onward = |message: &str, name: &str| {
            let via = format!("Via: SIP/2.0/UDP {CAROL};branch=z9hG4bK{name}\r\nVia:");
            message.replacen("Via:", &via, 1)
        };
        let back = |message: &str| {
            let via = values(message, "Via").remove(0);
            message.replacen(&format!("Via: {via}\r\n"), "", 1)
        };
        world.send(ALICE, &invite("l", 1, "", ""));
        world.one(ALICE, "SIP/2.0 100 ");
        let between = onward(&world.one(CAROL, "INVITE "), "invite")
            .replace("sip:bob@example.com SIP", "sip:bob@x.org SIP")
            .replacen("Record-Route:", &format!("Record-Route: <sip:{CAROL};lr>\r\nRecord-Route:"), 1);
        world.send(CAROL, &between);
        world.one(CAROL, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE sip:bob@x.org ");
        world.send(BOB, &reply(&got, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000)));
        let answer = back(&world.one(CAROL, "SIP/2.0 200 "));
        world.send(CAROL, &answer);
        let mut alice = Dialog::caller(&world.one(ALICE, "SIP/2.0 200 "), 1);
        assert_eq!(
            alice.routes,
            [format!("<sip:{PROXY};lr>"), format!("<sip:{CAROL};lr>"), format!("<sip:{PROXY};lr>")]
        );
        for (method, described) in [("ACK", sdp("10.0.0.1", 4000)), ("BYE", String::new())] {
            world.send(ALICE, &alice.request(method, "", &described));
            let there = world.one(CAROL, &format!("{method} sip:agent@{BOB} "));
            let next = there.replacen(&format!("Route: <sip:{CAROL};lr>\r\n"), "", 1);
            assert_eq!(values(&next, "Route"), [format!("<sip:{PROXY};lr>")]);
            world.send(CAROL, &onward(&next, method));
            let arrived = world.one(BOB, &format!("{method} sip:agent@{BOB} "));
            assert_eq!(values(&arrived, "Via").len(), 4);
            assert_eq!(super::harness::body(&arrived), super::harness::body(&there));
            if method == "ACK" {
                // With the route that it came with it would go round for ever.
                let again = format!("Route: <sip:{PROXY};lr>\r\nRoute:");
                world.send(CAROL, &onward(&there.replacen("Route:", &again, 1), "again"));
                world.none();
                assert_eq!(lost(world, Lost::StrayAck), 1);
            }
        }
    });
}

#[test]
fn hops_run_out() {
    usual(|world| {
        let none = |text: String| text.replace("Max-Forwards: 70", "Max-Forwards: 0");
        world.send(ALICE, &none(invite("z", 1, "", "")));
        world.one(ALICE, "SIP/2.0 483 ");
        world.send(ALICE, &none(request("OPTIONS", "sip:bob@example.com", "z", 2, "", "")));
        world.one(ALICE, "SIP/2.0 483 ");
        for uri in [format!("sip:{PROXY}"), String::from("sip:10.0.0.9")] {
            world.send(ALICE, &none(request("OPTIONS", &uri, "z", 3, "", "")));
            world.one(ALICE, "SIP/2.0 200 ");
            world.send(ALICE, &request("OPTIONS", &uri, "z", 4, "", ""));
            world.one(ALICE, "SIP/2.0 200 ");
        }
        world.send(ALICE, &request("OPTIONS", &format!("sip:bob@{PROXY}"), "z", 5, "", ""));
        let got = world.one(BOB, "OPTIONS ");
        world.send(BOB, &reply(&got, 200, "b", "", "", ""));
        world.one(ALICE, "SIP/2.0 200 ");
        let hopless =
            request("MESSAGE", "sip:bob@example.com", "z", 6, "", "").replace("Max-Forwards: 70\r\n", "");
        world.send(ALICE, &hopless);
        assert_eq!(header(&world.one(BOB, "MESSAGE "), "Max-Forwards").as_deref(), Some("70"));
        assert_eq!(lost(world, Lost::Malformed(Reason::TooManyHops)), 2);
        world.wait(40_000);
        world.all(BOB);
    });
}

#[test]
fn sides_that_speak_different_protocols() {
    run(&config(), &format!("default {BOB6}"), |world| {
        world.send(ALICE, &invite("6", 1, "", ""));
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB6, "INVITE ");
        assert_eq!(values(&got, "Record-Route"), [format!("<sip:{PROXY6};lr>"), format!("<sip:{PROXY};lr>")]);
        assert!(values(&got, "Via")[0].starts_with(&format!("SIP/2.0/UDP {PROXY6};")));
        assert_eq!(world.log.last().expect("sent").local, LocalId::endpoint(1));
        let ok = reply(&got, 200, "b1", BOB6, "", "");
        world.send_to(1, BOB6, &ok);
        let passed = world.one(ALICE, "SIP/2.0 200 ");
        assert_eq!(world.log.last().expect("sent").local, LocalId::endpoint(0));
        let (mut alice, mut bob) = (Dialog::caller(&passed, 1), Dialog::callee(&got, &ok, BOB6));
        world.send(ALICE, &alice.request("ACK", "", ""));
        let ack = world.one(BOB6, &format!("ACK sip:agent@{BOB6} "));
        assert!(values(&ack, "Route").is_empty());
        assert_eq!(world.log.last().expect("sent").local, LocalId::endpoint(1));
        world.send_to(1, BOB6, &bob.request("BYE", "", ""));
        let bye = world.one(ALICE, "BYE ");
        assert_eq!(world.log.last().expect("sent").local, LocalId::endpoint(0));
        world.send(ALICE, &reply(&bye, 200, "", "", "", ""));
        world.one(BOB6, "SIP/2.0 200 ");
    });
}

#[test]
fn proxies_on_both_sides() {
    let (left, right) = ("10.0.1.1:5060", "10.0.1.2:5060");
    run(&config(), &format!("default {right}"), |world| {
        let through = format!("Record-Route: <sip:{left};lr>\n");
        world.send(
            left,
            &invite("r", 1, &through, "").replacen(
                "Via: ",
                &format!("Via: SIP/2.0/UDP {left};branch=z9hG4bKl\r\nVia: "),
                1,
            ),
        );
        world.one(left, "SIP/2.0 100 ");
        let got = world.one(right, "INVITE ");
        let at_bob =
            got.replacen("Record-Route: ", &format!("Record-Route: <sip:{right};lr>\r\nRecord-Route: "), 1);
        let ok = reply(&at_bob, 200, "b1", BOB, "", "");
        world.send(right, &ok);
        let passed = world.one(left, "SIP/2.0 200 ");
        let mut alice = Dialog::caller(&passed, 1);
        assert_eq!(
            alice.routes,
            [format!("<sip:{left};lr>"), format!("<sip:{PROXY};lr>"), format!("<sip:{right};lr>")]
        );
        alice.routes.remove(0);
        world.send(left, &alice.request("ACK", "", ""));
        let ack = world.one(right, &format!("ACK sip:agent@{BOB} "));
        assert_eq!(values(&ack, "Route"), [format!("<sip:{right};lr>")]);
        carried(world, left, &alice.request("BYE", "", ""), right);
    });
}

#[test]
fn strict_routers_before_and_behind() {
    usual(|world| {
        let (mut alice, _) = establish(world, "s", "", "");
        // One before us has put our URI where the Request-URI was (RFC 3261 section 16.4).
        let target = std::mem::replace(&mut alice.target, format!("sip:{PROXY};lr"));
        alice.routes = vec![format!("<{target}>")];
        world.send(ALICE, &alice.request("INFO", "", ""));
        let got = world.one(BOB, &format!("INFO {target} "));
        assert!(values(&got, "Route").is_empty());
        world.send(BOB, &reply(&got, 200, "", "", "", ""));
        world.one(ALICE, "SIP/2.0 200 ");
        // One behind us wants its URI there (section 16.6, item 6).
        alice.routes =
            vec![format!("<sip:{PROXY};lr>"), format!("<sip:{CAROL}>"), String::from("<sip:10.0.0.4;lr>")];
        alice.target = target;
        world.send(ALICE, &alice.request("INFO", "", ""));
        let got = world.one(CAROL, &format!("INFO sip:{CAROL} "));
        assert_eq!(values(&got, "Route"), [String::from("<sip:10.0.0.4;lr>"), format!("<sip:agent@{BOB}>")]);
        world.send(CAROL, &reply(&got, 200, "", "", "", ""));
        world.one(ALICE, "SIP/2.0 200 ");
        alice.routes = vec![format!("<sip:{PROXY};lr>")];
        super::harness::hang_up(world, &mut alice);
    });
}

#[test]
fn messages_that_belong_to_nothing() {
    usual(|world| {
        let mut ghost = Dialog {
            own: String::from("<sip:a@x>;tag=1"),
            other: String::from("<sip:b@x>;tag=2"),
            call_id: String::from("ghost"),
            target: format!("sip:bob@{BOB}"),
            routes: Vec::new(),
            cseq: 1,
            at: ALICE,
        };
        world.send(ALICE, &ghost.request("ACK", "", ""));
        world.none();
        assert_eq!(lost(world, Lost::StrayAck), 1);
        let bye = ghost.request("BYE", "", "");
        world.send(ALICE, &bye);
        let over = world.one(ALICE, "SIP/2.0 481 ");
        world.send(ALICE, &bye);
        assert_eq!(world.one(ALICE, "SIP/2.0 481 "), over);
        assert_eq!(lost(world, Lost::StrayRequest), 2);
        // After the loss of all state a Route is enough.
        ghost.routes = vec![format!("<sip:{PROXY};lr>")];
        world.send(ALICE, &ghost.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        carried(world, ALICE, &ghost.request("BYE", "", ""), BOB);
        let stranger = crlf(&format!(
            "SIP/2.0 200 OK\nVia: SIP/2.0/UDP {PROXY};branch=z9hG4bK00000000000000010000000000000002\nVia: SIP/2.0/UDP {ALICE}\n\
             From: <sip:a@x>;tag=1\nTo: <sip:b@x>;tag=2\nCall-ID: ghost2\nCSeq: 1 INVITE\nContent-Length: 0\n\n"
        ));
        world.send(BOB, &stranger);
        world.send(BOB, &stranger.replace(PROXY, "10.0.0.77:5060"));
        world.none();
        assert_eq!((lost(world, Lost::StrayResponse), lost(world, Lost::Misdirected)), (1, 1));
        assert!(world.records.is_empty());
    });
}

/// Nobody has anything sent to anybody by what only he says of the way.
#[test]
fn what_belongs_to_no_call_leads_to_targets_only() {
    usual(|world| {
        let there = "10.6.6.6:5060";
        let by = |to: &str| format!("Contact: <sip:alice@{ALICE}>\nRoute: <sip:{PROXY};lr>, <sip:{to};lr>\n");
        for method in ["OPTIONS", "MESSAGE", "INVITE"] {
            let asked = request(method, "sip:bob@example.com", method, 1, &by(there), "");
            world.send(ALICE, &asked);
            let over = world.one(ALICE, "SIP/2.0 403 ");
            if method == "INVITE" {
                world.send(ALICE, &ack_refusal(&asked, &over));
            }
            // Not even if a target seems to ask.
            world.send(BOB, &request(method, "sip:bob@example.com", "b", 1, &by(there), ""));
            world.one(BOB, "SIP/2.0 403 ");
        }
        assert_eq!(world.records.len(), 2);
        carried(world, ALICE, &request("MESSAGE", "sip:x@x", "m", 1, &by(BOB), ""), BOB);
        let end = |at, target: &str| Dialog {
            own: String::from("<sip:a@x>;tag=1"),
            other: String::from("<sip:b@x>;tag=2"),
            call_id: format!("ghost of {at}"),
            target: format!("sip:x@{target}"),
            routes: vec![format!("<sip:{PROXY};lr>")],
            cseq: 1,
            at,
        };
        let mut ghost = end(ALICE, there);
        world.send(ALICE, &ghost.request("INFO", "", ""));
        world.one(ALICE, "SIP/2.0 403 ");
        world.send(ALICE, &ghost.request("ACK", "", ""));
        ghost.routes.push(format!("<sip:{there};lr>"));
        world.send(ALICE, &ghost.request("INFO", "", ""));
        world.one(ALICE, "SIP/2.0 403 ");
        assert_eq!((lost(world, Lost::StrayRequest), lost(world, Lost::StrayAck)), (8, 1));
        // As the notifier of a subscription does, whose dialog nobody keeps.
        carried(world, BOB, &end(BOB, CAROL).request("NOTIFY", "", ""), CAROL);
    });
}

/// The parties of a call reach each other, targets or not, as long as anything is left of it.
#[test]
fn what_comes_after_the_bye_reaches_the_parties() {
    usual(|world| {
        world.send(ALICE, &invite("t", 1, "", ""));
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        let ok = reply(&got, 200, "c1", CAROL, "", "");
        world.send(BOB, &ok);
        let mut alice = Dialog::caller(&world.one(ALICE, "SIP/2.0 200 "), 1);
        let mut carol = Dialog::callee(&got, &ok, CAROL);
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(CAROL, "ACK ");
        carried(world, ALICE, &alice.request("BYE", "", ""), CAROL);
        carried(world, CAROL, &carol.request("NOTIFY", "Event: refer\n", ""), ALICE);
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(CAROL, "ACK ");
        world.wait(70_000);
        world.send(CAROL, &carol.request("NOTIFY", "Event: refer\n", ""));
        world.one(CAROL, "SIP/2.0 403 ");
    });
}

#[test]
fn an_answer_goes_where_its_request_came_from() {
    usual(|world| {
        // Without rport to the port that the Via names, but never to another address.
        let asked = request("OPTIONS", &format!("sip:{PROXY}"), "v", 1, "", "")
            .replace(&format!("UDP {ALICE}"), "UDP 10.9.9.9:7000;maddr=10.8.8.8")
            .replace(";rport", "");
        world.send("10.0.0.1:1234", &asked);
        let done = world.one("10.0.0.1:7000", "SIP/2.0 200 ");
        assert!(values(&done, "Via")[0].ends_with(";received=10.0.0.1"), "{done}");
    });
}

#[test]
fn malformed_and_oversized_messages() {
    usual(|world| {
        world.send(ALICE, &invite("m", 1, "", "").replace("CSeq: 1 INVITE", "CSeq: x INVITE"));
        world.one(ALICE, "SIP/2.0 400 ");
        world.send(ALICE, &invite("m", 1, "Proxy-Require: foo\n", ""));
        assert_eq!(header(&world.one(ALICE, "SIP/2.0 420 "), "Unsupported").as_deref(), Some("foo"));
        world.send(ALICE, &invite("m", 1, &"X: y\n".repeat(200), ""));
        world.one(ALICE, "SIP/2.0 400 ");
        world.send(ALICE, &invite("m", 1, "", &"x".repeat(20_000)));
        world.send(ALICE, "\n\n");
        world.none();
        assert_eq!(lost(world, Lost::Malformed(Reason::TooLong)), 1);
        assert_eq!(world.table.len(), 1);
    });
}

#[test]
fn too_many_transactions_of_one_call() {
    usual(|world| {
        for n in 0..16 {
            world.send(ALICE, &request("MESSAGE", "sip:bob@example.com", "n", n, "", ""));
        }
        assert_eq!(world.all(BOB).len(), 16);
        world.send(ALICE, &request("MESSAGE", "sip:bob@example.com", "n", 16, "", ""));
        world.one(ALICE, "SIP/2.0 500 ");
        assert_eq!(lost(world, Lost::TooMany), 1);
        world.wait(40_000);
        world.all(BOB);
        // Finished ones make room.
        for n in 100..300 {
            world.send(ALICE, &request("MESSAGE", "sip:bob@example.com", "n", n, "", ""));
            let got = world.one(BOB, "MESSAGE ");
            world.send(BOB, &reply(&got, 200, "b", "", "", ""));
            world.one(ALICE, "SIP/2.0 200 ");
        }
    });
}

#[test]
fn calls_that_cannot_be_had_now() {
    let world = World::new(config(), "", false);
    let from = |text: &str, local| {
        let source = Endpoint::from(ALICE.parse::<std::net::SocketAddr>().expect("address"));
        let packet = Inbound { source, local, payload: text.as_bytes() };
        let mut out = Vec::new();
        let opens = world.sip.opens(&packet);
        let refused = world.sip.refuse(&packet, 7, &mut out);
        (opens, refused, String::from_utf8(out).expect("text"))
    };
    let here = LocalId::endpoint(0);
    let asked = invite("o", 1, "", "");
    let (opens, refused, text) = from(&asked, here);
    assert!(opens && refused && text.starts_with("SIP/2.0 503 Service Unavailable\r\n"), "{text}");
    assert_eq!(header(&text, "Retry-After").as_deref(), Some("7"));
    assert_eq!(from(&asked, here), (true, true, text));
    assert!(!from(&asked, LocalId::media(0, 30_000)).0);
    for other in [cancel(&asked), ack_refusal(&asked, &asked), request("MESSAGE", "sip:b@x", "m", 1, "", "")]
    {
        assert_eq!(from(&other, here), (false, false, String::new()));
    }
    let within = asked.replace("To: <sip:bob@example.com>", "To: <sip:bob@example.com>;tag=1");
    assert!(!from(&within, here).0);
}
