//! CANCEL in every interleaving (RFC 3261 section 9).

use super::harness::{
    ALICE, BOB, CAROL, World, ack_refusal, cancel, config, header, invite, reply, run, sdp, usual, values,
};

/// An INVITE at Bob, and the answer to its CANCEL at Alice.
fn call(world: &mut World) -> (String, String) {
    let asked = invite("c", 1, "", &sdp("10.0.0.1", 4000));
    world.send(ALICE, &asked);
    world.one(ALICE, "SIP/2.0 100 ");
    let got = world.one(BOB, "INVITE ");
    (asked, got)
}

fn give_up(world: &mut World, asked: &str) {
    world.send(ALICE, &cancel(asked));
    let done = world.one(ALICE, "SIP/2.0 200 OK\r\n");
    assert!(header(&done, "CSeq").expect("CSeq").ends_with("CANCEL"));
}

/// Bob answers the CANCEL and the INVITE.
fn terminate(world: &mut World, asked: &str, got: &str) {
    let cancelled = world.one(BOB, "CANCEL sip:bob@example.com SIP/2.0\r\n");
    assert_eq!(values(&cancelled, "Via"), values(got, "Via")[..1]);
    assert_eq!(header(&cancelled, "CSeq").as_deref(), Some("1 CANCEL"));
    world.send(BOB, &reply(&cancelled, 200, "b1", "", "", ""));
    world.send(BOB, &reply(got, 487, "b1", "", "", ""));
    world.one(BOB, "ACK ");
    let over = world.one(ALICE, "SIP/2.0 487 ");
    world.send(ALICE, &ack_refusal(asked, &over));
    world.none();
    assert_eq!(world.record()["cause"], "cancel");
    assert_eq!(world.record()["outcome"], "cancelled");
}

#[test]
fn while_it_rings() {
    usual(|world| {
        let (asked, got) = call(world);
        world.send(BOB, &reply(&got, 180, "b1", BOB, "", ""));
        world.one(ALICE, "SIP/2.0 180 ");
        give_up(world, &asked);
        terminate(world, &asked, &got);
    });
}

/// SIPp's scenarios make branches of CANCEL and ACK themselves, and others than the INVITE's.
#[test]
fn by_an_agent_that_makes_other_branches() {
    usual(|world| {
        let other = |message: String, name: &str| message.replace("branch=z9hG4bK-INVITE-1", name);
        let (asked, got) = call(world);
        world.send(BOB, &reply(&got, 180, "b1", BOB, "", ""));
        world.one(ALICE, "SIP/2.0 180 ");
        let quits = other(cancel(&asked), "branch=z9hG4bK-other");
        // From elsewhere, under another number or by another party it is nothing.
        world.send(CAROL, &quits);
        world.one(CAROL, "SIP/2.0 481 ");
        for (part, wrong) in [("CSeq: 1", "CSeq: 2"), ("tag=a1", "tag=a2")] {
            world.send(ALICE, &quits.replace(part, wrong));
            world.one(ALICE, "SIP/2.0 481 ");
        }
        world.none();
        world.send(ALICE, &quits);
        world.one(ALICE, "SIP/2.0 200 OK\r\n");
        let cancelled = world.one(BOB, "CANCEL ");
        world.send(BOB, &reply(&cancelled, 200, "b1", "", "", ""));
        world.send(BOB, &reply(&got, 487, "b1", "", "", ""));
        world.one(BOB, "ACK ");
        let over = world.one(ALICE, "SIP/2.0 487 ");
        world.send(ALICE, &quits);
        world.one(ALICE, "SIP/2.0 200 OK\r\n");
        let ack = other(ack_refusal(&asked, &over), "branch=z9hG4bK-third");
        world.send(ALICE, &ack.replace("tag=b1", "tag=b2"));
        world.wait(600);
        assert_eq!(world.one(ALICE, "SIP/2.0 487 "), over);
        world.send(ALICE, &ack);
        world.wait(5_000);
        world.none();
        assert_eq!(world.record()["cause"], "cancel");
    });
}

#[test]
fn its_reason_goes_on_with_it() {
    usual(|world| {
        let (asked, got) = call(world);
        let why = "Reason: SIP;cause=200;text=\"Call completed elsewhere\"\r\nReason: Q.850;cause=26\r\n";
        world.send(ALICE, &cancel(&asked).replace("Content-Length", &format!("{why}Content-Length")));
        world.one(ALICE, "SIP/2.0 200 OK\r\n");
        world.send(BOB, &reply(&got, 180, "b1", BOB, "", ""));
        world.one(ALICE, "SIP/2.0 180 ");
        world.wait(600);
        let cancels = world.each(BOB, &["CANCEL ", "CANCEL "]);
        for cancelled in &cancels {
            let reasons = values(cancelled, "Reason");
            assert_eq!(reasons, ["SIP;cause=200;text=\"Call completed elsewhere\"", "Q.850;cause=26"]);
        }
        world.send(BOB, &reply(&cancels[0], 200, "b1", "", "", ""));
        world.send(BOB, &reply(&got, 487, "b1", "", "", ""));
        world.one(BOB, "ACK ");
        let over = world.one(ALICE, "SIP/2.0 487 ");
        world.send(ALICE, &ack_refusal(&asked, &over));
    });
}

#[test]
fn before_anything_came_back() {
    usual(|world| {
        let (asked, got) = call(world);
        give_up(world, &asked);
        world.none();
        world.wait(600);
        assert_eq!(world.one(BOB, "INVITE "), got);
        world.send(BOB, &reply(&got, 100, "", "", "", ""));
        terminate(world, &asked, &got);
    });
}

#[test]
fn with_nobody_there_at_all() {
    usual(|world| {
        let (asked, _) = call(world);
        give_up(world, &asked);
        world.wait(32_000);
        assert_eq!(world.all(BOB).len(), 6);
        let over = world.one(ALICE, "SIP/2.0 487 ");
        world.send(ALICE, &ack_refusal(&asked, &over));
        assert_eq!(world.record()["cause"], "cancel");
    });
}

#[test]
fn the_callee_answers_at_the_same_time() {
    usual(|world| {
        let (asked, got) = call(world);
        world.send(BOB, &reply(&got, 180, "b1", BOB, "", ""));
        world.one(ALICE, "SIP/2.0 180 ");
        give_up(world, &asked);
        let cancelled = world.one(BOB, "CANCEL ");
        let ok = reply(&got, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000));
        world.send(BOB, &ok);
        let passed = world.one(ALICE, "SIP/2.0 200 ");
        world.send(BOB, &reply(&cancelled, 481, "b1", "", "", ""));
        world.none();
        let mut alice = super::harness::Dialog::caller(&passed, 1);
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        super::harness::hang_up(world, &mut alice);
        assert_eq!(world.record()["outcome"], "answered");
    });
}

#[test]
fn after_the_answer_or_the_refusal_it_changes_nothing() {
    usual(|world| {
        let (asked, got) = call(world);
        world.send(BOB, &reply(&got, 200, "b1", BOB, "", &sdp("10.0.0.2", 6000)));
        let passed = world.one(ALICE, "SIP/2.0 200 ");
        give_up(world, &asked);
        world.none();
        let mut alice = super::harness::Dialog::caller(&passed, 1);
        world.send(ALICE, &alice.request("ACK", "", ""));
        world.one(BOB, "ACK ");
        super::harness::hang_up(world, &mut alice);
        let again = invite("d", 1, "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &again);
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        world.send(BOB, &reply(&got, 603, "b1", "", "", ""));
        world.one(BOB, "ACK ");
        let over = world.one(ALICE, "SIP/2.0 603 ");
        give_up(world, &again);
        world.send(ALICE, &ack_refusal(&again, &over));
        world.none();
    });
}

#[test]
fn twice_and_without_answers() {
    usual(|world| {
        let (asked, got) = call(world);
        world.send(BOB, &reply(&got, 183, "b1", BOB, "", ""));
        world.one(ALICE, "SIP/2.0 183 ");
        give_up(world, &asked);
        give_up(world, &asked);
        world.wait(1_600);
        let cancels = world.each(BOB, &["CANCEL "; 3]);
        assert!(cancels.iter().all(|c| *c == cancels[0]));
        // Nor does Bob answer the INVITE (RFC 3261 section 9.1: it is over after 32 s).
        world.wait(30_500);
        world.all(BOB);
        let over = world.one(ALICE, "SIP/2.0 487 ");
        world.send(ALICE, &ack_refusal(&asked, &over));
    });
}

#[test]
fn of_nothing() {
    usual(|world| {
        let asked = invite("nothing", 1, "", "");
        world.send(ALICE, &cancel(&asked));
        world.one(ALICE, "SIP/2.0 481 ");
    });
}

#[test]
fn no_further_target_is_tried() {
    run(&config(), "default 10.0.0.2:5060, 10.0.0.3:5060;priority=1", |world| {
        let (asked, got) = call(world);
        world.send(BOB, &reply(&got, 100, "", "", "", ""));
        give_up(world, &asked);
        world.one(BOB, "CANCEL ");
        world.send(BOB, &reply(&got, 503, "b1", "", "", ""));
        world.one(BOB, "ACK ");
        world.one(ALICE, "SIP/2.0 500 ");
        assert!(world.all(CAROL).is_empty());
        world.wait(64_000);
        world.all(ALICE);
    });
}

#[test]
fn nobody_answers_for_too_long() {
    usual(|world| {
        let (asked, got) = call(world);
        world.send(BOB, &reply(&got, 180, "b1", BOB, "", ""));
        world.one(ALICE, "SIP/2.0 180 ");
        world.wait(184_000);
        world.none();
        world.wait(1_000);
        let cancelled = world.one(BOB, "CANCEL ");
        world.send(BOB, &reply(&cancelled, 200, "b1", "", "", ""));
        world.send(BOB, &reply(&got, 487, "b1", "", "", ""));
        world.one(BOB, "ACK ");
        let over = world.one(ALICE, "SIP/2.0 408 ");
        world.send(ALICE, &ack_refusal(&asked, &over));
        assert_eq!(world.record()["cause"], "ring_timeout");
        assert_eq!(world.record()["outcome"], "no_answer");
    });
}
