//! How long a target may say nothing, and what counts as having said something.

use super::harness::{ALICE, BOB, CAROL, ack_refusal, config, invite, reply, request, run, sdp};

const TWO: &str = "default 10.0.0.2:5060, 10.0.0.3:5060;priority=1";

#[test]
fn an_invite_that_got_100_stays_with_its_target() {
    run(&config(), TWO, |world| {
        let asked = invite("f", 1, "", &sdp("10.0.0.1", 4000));
        world.send(ALICE, &asked);
        world.one(ALICE, "SIP/2.0 100 ");
        let got = world.one(BOB, "INVITE ");
        world.send(BOB, &reply(&got, 100, "", "", "", ""));
        world.wait(60_000);
        world.none();
        world.send(BOB, &reply(&got, 486, "b1", "", "", ""));
        world.one(BOB, "ACK ");
        let over = world.one(ALICE, "SIP/2.0 486 ");
        world.send(ALICE, &ack_refusal(&asked, &over));
        assert_eq!(world.record()["tried"], serde_json::json!([BOB]));
    });
}

#[test]
fn another_request_goes_to_the_next_target_too() {
    run(&config(), TWO, |world| {
        world.send(ALICE, &request("MESSAGE", "sip:bob@example.com", "m", 1, "", ""));
        world.wait(4_000);
        world.each(BOB, &["MESSAGE "; 4]);
        let second = world.one(CAROL, "MESSAGE ");
        world.send(CAROL, &reply(&second, 200, "c1", "", "", ""));
        world.one(ALICE, "SIP/2.0 200 ");
    });
}

#[test]
fn another_request_that_got_100_has_the_rest_of_timer_f() {
    for answered in [true, false] {
        run(&config(), TWO, |world| {
            world.send(ALICE, &request("MESSAGE", "sip:bob@example.com", "m", 1, "", ""));
            let got = world.one(BOB, "MESSAGE ");
            world.wait(3_000);
            world.send(BOB, &reply(&got, 100, "", "", "", ""));
            world.wait(28_000);
            assert!(world.all(BOB).len() > 5);
            world.none();
            if answered {
                world.send(BOB, &reply(&got, 200, "b1", "", "", ""));
                world.one(ALICE, "SIP/2.0 200 ");
            } else {
                world.wait(2_000);
                world.all(BOB);
                world.send(BOB, &reply(&got, 200, "b1", "", "", ""));
                world.none();
            }
        });
    }
}
