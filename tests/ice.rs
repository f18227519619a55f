//! ICE with an implementation that is not ours: agents of str0m do it with the lite agents of a cluster of real processes,
//! whoever dies in between.

mod harness;
mod phones;

use harness::cluster::Local;
use harness::parties::{SOON, bound_at, has_ipv6, owner, records, start, talk_again};
use harness::{Folder, Otherwise, sandboxed};
use is::IceConnectionState;
use phones::{Call, LOCALHOST, PATIENCE, Phone, Plain, SILENCE, Speaks, Stranger};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

#[test]
fn an_agent_of_others_connects_moves_and_begins_anew() {
    sandboxed("an_agent_of_others_connects_moves_and_begins_anew", &[], Otherwise::RunHere, || {
        let (folder, bob) = (Folder::new(), Plain::new(true));
        let cdr = folder.join("cdr");
        let cluster = start(&bob.party, &cdr, &["--shards", "2", "--ice", "lite"]);
        let mut call = Call::set_up(cluster.service, Phone::new(LOCALHOST, 1, "RTP/AVP"), bob);
        let (for_alice, for_bob) = (call.accepted.media(), call.bob.to.unwrap());

        // Nobody has checked yet, and Alice named no address: whoever were believed now would get all of Bob's words.
        let mut stranger = Stranger { socket: bound_at(LOCALHOST), sent: 0 };
        let (ours, hers) =
            (call.alice.met.clone().unwrap().creds, call.alice.ways[0].agent.local_credentials().clone());
        let username = format!("{}:{}", ours.ufrag, hers.ufrag);
        let (swapped, wrong) =
            (format!("{}:{}", hers.ufrag, ours.ufrag), ours.pass.replace(&ours.pass[..1], "-"));
        for (to, username, password) in [
            (for_alice, &username, &wrong),
            (for_alice, &username, &hers.pass),
            (for_alice, &swapped, &ours.pass),
            (for_bob, &username, &ours.pass),
        ] {
            let answer = stranger.checks(to, username, password, true, SILENCE);
            assert_eq!(answer, None, "to a check of {username} with {password}");
        }
        call.bob.says(0, &[0x80; 172]);
        assert_eq!(stranger.hears(SILENCE), None, "it is where media goes");

        let first = call.alice.connect();
        call.talk_on();
        call.alice.ways[0].consent(Duration::from_secs(60));
        let answer = stranger.checks(for_alice, &username, &wrong, true, SILENCE);
        assert_eq!(answer, None, "to a wrong password");
        call.talk_on();
        // It was the password: with the right one it is answered.
        assert!(stranger.checks(for_alice, &username, &ours.pass, false, SOON).is_some());
        call.talk_on();

        // Her network changes: no word of SIP, and no restart.
        let second = call.alice.ways[0].gather(LOCALHOST);
        call.alice.ways[0].consent(Duration::from_secs(9));
        assert_eq!(call.alice.ways[0].selected.unwrap().0, first);
        call.talk_on();
        call.alice.ways[0].lose();
        assert_eq!(call.alice.connect(), second);
        call.talk_on();

        // She begins anew, and can be heard all the while.
        call.alice.restart();
        call.reinvite(|call| {
            call.talk_on();
            call.alice.ways[0].checks = [0; 2];
        });
        let again = call.alice.met.clone().unwrap();
        assert!(again.creds.ufrag != ours.ufrag && again.creds.pass != ours.pass);
        assert_eq!(again.candidates[0].addr(), for_alice);
        call.talk_on();
        assert_eq!(call.alice.connect(), second);
        call.talk_on();
        let answer = stranger.checks(for_alice, &username, &ours.pass, true, SILENCE);
        assert_eq!(answer, None, "to names of before");
        call.alice.ways[0].consent(Duration::from_secs(60));
        call.talk_on();

        call.hang_up();
        let record = &records(&cdr, 1)[0];
        assert_eq!(record["media"]["dropped"]["stun"], stranger.sent - 1, "{record:#}");
        let caller = &record["media"]["lines"][0]["caller"];
        assert_eq!(caller["source"], second.to_string(), "{record:#}");
        cluster.interrupt();
    });
}

/// Kills the owner with all its processes while a check is on its way to it, and waits until media goes on.
fn outlive<B: Speaks>(call: &mut Call<B>, cluster: &Local) {
    let way = &mut call.alice.ways[0];
    way.leap();
    cluster.nodes.kill(owner(cluster));
    let checks = way.checks[0];
    way.run(SOON, |way| way.checks[0] > checks);
    talk_again(4, PATIENCE, |patience| call.talk(patience));
    call.talk_on();
}

#[test]
fn consent_and_media_go_on_when_the_owner_is_killed() {
    sandboxed("consent_and_media_go_on_when_the_owner_is_killed", &[], Otherwise::RunHere, || {
        let (folder, bob) = (Folder::new(), Plain::new(false));
        let cdr = folder.join("cdr");
        let cluster = start(&bob.party, &cdr, &["--shards", "1", "--ice", "lite"]);
        // She wants RTCP apart, and checks that way too.
        let mut call = Call::set_up(cluster.service, Phone::new(LOCALHOST, 2, "RTP/AVP"), bob);
        let at = call.alice.connect();
        call.talk_on();
        outlive(&mut call, &cluster);
        for way in &mut call.alice.ways {
            way.consent(Duration::from_secs(60));
        }
        call.talk_on();
        call.alice.restart();
        call.reinvite(|call| call.talk_on());
        assert_eq!(call.alice.connect(), at);
        call.talk_on();
        call.hang_up();
        let record = &records(&cdr, 1)[0];
        assert!(record["takeovers"].as_u64().unwrap() >= 1, "{record:#}");
        let caller = &record["media"]["lines"][0]["caller"];
        assert_eq!(caller["source"], at.to_string(), "{record:#}");
        assert!(record["media"]["dropped"]["stun"].is_null(), "{record:#}");
        cluster.interrupt();
    });
}

#[test]
fn both_parties_do_ice_and_the_callee_begins_in_the_wrong_role() {
    let name = "both_parties_do_ice_and_the_callee_begins_in_the_wrong_role";
    sandboxed(name, &[], Otherwise::RunHere, || both_do_ice(LOCALHOST));
}

#[test]
fn both_parties_do_ice_by_ipv6() {
    sandboxed("both_parties_do_ice_by_ipv6", &[], Otherwise::RunHere, || {
        if has_ipv6("ICE by IPv6") {
            both_do_ice(Ipv6Addr::LOCALHOST.into());
        }
    });
}

fn both_do_ice(ip: IpAddr) {
    const BROWSER: &str = "UDP/TLS/RTP/SAVPF";
    let (folder, mut bob) = (Folder::new(), Phone::new(ip, 1, BROWSER));
    // It does not look whether who asks is a lite agent; only in its checks it is told that it is to control.
    bob.ways[0].agent.set_controlling(false);
    let cdr = folder.join("cdr");
    let service = bound_at(ip).local_addr().unwrap().to_string();
    let cluster = start(&bob.party, &cdr, &["--shards", "1", "--service", &service, "--ice", "lite"]);
    let mut call = Call::set_up(cluster.service, Phone::new(ip, 1, BROWSER), bob);
    let ends = [call.alice.connect(), call.bob.connect()];
    assert!(call.bob.ways[0].agent.controlling());
    call.talk_on();
    outlive(&mut call, &cluster);
    for phone in [&mut call.alice, &mut call.bob] {
        phone.ways[0].consent(Duration::from_secs(60));
    }
    call.talk_on();

    // One of them begins anew: the other is asked again by the names it knows.
    let met = call.bob.met.clone();
    call.alice.restart();
    call.reinvite(|call| call.talk_on());
    assert_eq!(call.bob.met, met);
    assert_eq!(call.alice.connect(), ends[0]);
    call.talk_on();
    assert_eq!(call.bob.ways[0].agent.state(), IceConnectionState::Completed);
    call.hang_up();
    let record = &records(&cdr, 1)[0];
    let line = &record["media"]["lines"][0];
    for (side, end) in ["caller", "callee"].iter().zip(ends) {
        assert_eq!(line[side]["source"], end.to_string(), "{record:#}");
    }
    cluster.interrupt();
}
