//! ICE with a lite agent of ours for each party that does ICE.

use super::*;
use crate::wire::sdp::describe::Description;
use crate::wire::stun::{self, Message, Writer, attribute};

const PWD: &str = "0123456789abcdefABCD+/";
/// Where the caller's browser is seen.
const SEEN: &str = "203.0.113.5:61000";
const STRANGER: &str = "198.51.100.1:9";

fn lite() -> Stand {
    let mut stand = Stand::new();
    stand.setup.ice = Ice::Lite;
    stand
}

/// The lines of one who does ICE under this name.
fn names(ufrag: &str) -> String {
    format!(
        "a=ice-ufrag:{ufrag}\r\na=ice-pwd:{PWD}\r\na=candidate:1 1 UDP 2130706431 10.0.0.1 4000 typ host\r\n"
    )
}

/// What a description says of our side of ICE for m-line `n`: name and password.
fn ours(body: &str, n: usize) -> Option<(String, String)> {
    let read = Description::read(body.as_bytes()).expect("SDP");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    read.media[n].ice().map(|ice| (text(ice.ufrag), text(ice.pwd)))
}

fn candidates(body: &str) -> Vec<&str> {
    body.lines().filter(|line| line.starts_with("a=candidate:")).collect()
}

/// A check under the names that the agent of `port` has now, if there is one.
pub(super) fn signed(stand: &Stand, port: u16, source: &str, nominates: bool) -> Vec<u8> {
    let at = |line: &Line| line.legs.iter().position(|leg| leg.local == port & !1);
    let found = stand.media.lines.iter().enumerate().find_map(|(n, line)| Some((n, at(line)?)));
    let mut copy = stand.media.clone();
    let names = found.map(|(n, side)| {
        let side = if side == 0 { Side::Caller } else { Side::Callee };
        let generation = copy.answered_generation(side, n);
        let mut ports = Reservation::new(&PORTS, &stand.share, (Slot(0), CallKey(7)), stand.now, 42);
        copy.credentials(side, generation, &mut ports)
    });
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let names = names.map_or_else(Default::default, |names| (text(&names.ufrag), text(&names.pwd)));
    let theirs = if source.ends_with('0') { "abcd" } else { "efgh" };
    check(&names, theirs, if nominates { &[(attribute::USE_CANDIDATE, b"")] } else { &[] })
}

/// A check of `theirs`.
fn check((ufrag, pwd): &(String, String), theirs: &str, more: &[(u16, &[u8])]) -> Vec<u8> {
    let writer = Writer::new(stun::REQUEST, b"transaction.")
        .attribute(attribute::USERNAME, format!("{ufrag}:{theirs}").as_bytes())
        .attribute(attribute::PRIORITY, &[0x6e, 0, 1, 0xff]);
    let all = more.iter().fold(writer, |writer, (kind, value)| writer.attribute(*kind, value));
    all.sign(pwd.as_bytes()).finish()
}

const NOMINATE: &[(u16, &[u8])] = &[(attribute::USE_CANDIDATE, b""), (attribute::ICE_CONTROLLING, &[1; 8])];

impl Stand {
    /// Sends a check; the type of the answer, which is signed, goes back to its source, and names that if it succeeds.
    fn check(&mut self, port: u16, source: &str, pwd: &str, payload: &[u8]) -> Result<u16, Dropped> {
        match self.media.on_packet(self.now, port, endpoint(source), payload, &self.setup) {
            Relay::Answer { port: from, to, bytes } => {
                assert_eq!((from, to), (port, endpoint(source)));
                assert!(bytes.len() <= 3 * payload.len());
                let answer = Message::new(&bytes).expect("STUN");
                assert!(answer.is_whole() && answer.is_signed_with(pwd.as_bytes()));
                assert_eq!(&answer.transaction(), b"transaction.");
                let mapped = (answer.kind() == stun::SUCCESS).then(|| SocketAddr::from(endpoint(source)));
                assert_eq!(answer.mapped(), mapped);
                Ok(answer.kind())
            }
            Relay::Forward { .. } => panic!("a check is not relayed"),
            Relay::Drop(reason) => Err(reason),
        }
    }

    /// Goes on from a snapshot.
    fn restored(self) -> Stand {
        let mut bytes = Vec::new();
        let form = self.media.snapshot(&mut bytes);
        let media = Media::restore(form, &bytes).expect("its own snapshot");
        assert_eq!(media, self.media);
        Stand { media, ..self }
    }
}

/// A call of a browser with a phone: both ports, and what the browser is told of ICE.
fn browser_calls_phone() -> (Stand, u16, u16, (String, String)) {
    let mut stand = lite();
    let callee = port(&stand.offer(Side::Caller, &audio(CALLER, &names("them"))).expect("offered"), 0);
    let answer = stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered");
    stand.with(|media, _, ports| media.confirm(ports));
    let told = ours(&answer, 0).expect("ICE");
    (stand, port(&answer, 0), callee, told)
}

#[test]
fn who_does_ice_is_given_a_lite_agent_and_who_does_not_is_not() {
    let mut stand = lite();
    let offer = stand.offer(Side::Caller, &audio(CALLER, &names("them"))).expect("offered");
    let callee = port(&offer, 0);
    assert_eq!(offer.matches("a=ice-lite\r\n").count(), 1);
    assert!(offer.find("a=ice-lite") < offer.find("m=audio"), "{offer}");
    assert_eq!(
        candidates(&offer),
        [
            format!("a=candidate:1 1 UDP 2130706431 192.0.2.1 {callee} typ host"),
            format!("a=candidate:1 2 UDP 2130706430 192.0.2.1 {} typ host", callee + 1)
        ]
    );
    let to_callee = ours(&offer, 0).expect("ICE");
    assert!(!offer.contains("them") && !offer.contains("10.0.0.1 4000") && to_callee.1.len() == 24);
    // The callee does no ICE: the caller has offered it and is answered all the same, by names of its own.
    let answer = stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered");
    let to_caller = ours(&answer, 0).expect("ICE");
    assert!(to_caller != to_callee && answer.contains("a=ice-lite\r\n"), "{answer}");
    assert!(
        candidates(&answer)[0].ends_with(&format!(" 192.0.2.1 {} typ host", port(&answer, 0))),
        "{answer}"
    );
    stand.with(|media, _, ports| media.confirm(ports));
    // From now on the callee is known for it, and the caller gets the same names in every description.
    let again = stand.offer(Side::Caller, &audio(CALLER, &names("them"))).expect("offered");
    assert!(ours(&again, 0).is_none() && !again.contains("a=ice"), "{again}");
    stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered");
    let back = stand.offer(Side::Callee, &audio(CALLEE, "a=sendonly\r\n")).expect("offered");
    assert_eq!(ours(&back, 0), Some(to_caller));
    let answer = stand.answer(Side::Caller, &audio(CALLER, &names("them"))).expect("answered");
    assert!(!answer.contains("a=ice") && candidates(&answer).is_empty(), "{answer}");
}

#[test]
fn nothing_is_said_of_ice_to_those_who_do_not_speak_of_it() {
    let mut stand = lite();
    let offer = stand.offer(Side::Caller, &audio(CALLER, "")).expect("offered");
    let answer = stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered");
    assert!(!offer.contains("ice") && !answer.contains("ice"));
    assert!(stand.media.ice.is_none() && stand.media.lines[0].legs.iter().all(|leg| leg.ice.is_none()));
    assert_eq!(stand.packet(port(&answer, 0), CALLER, STUN), Err(Dropped::Stun));
    // A callee that answers with ICE unasked is asked from then on.
    let answer = stand.answer(Side::Callee, &audio(CALLEE, &names("call"))).expect("answered again");
    assert!(!answer.contains("ice"), "{answer}");
    let again = stand.offer(Side::Caller, &audio(CALLER, "")).expect("offered");
    assert!(ours(&again, 0).is_some(), "{again}");
    // In the other modes all is as it was.
    for (mode, stays) in [(Ice::Remove, false), (Ice::Pass, true)] {
        let mut stand = Stand::new();
        stand.setup.ice = mode;
        let offer = stand.offer(Side::Caller, &audio(CALLER, &names("them"))).expect("offered");
        let answer = stand.answer(Side::Callee, &audio(CALLEE, &names("call"))).expect("answered");
        assert_eq!((offer.contains("a=ice-ufrag:them"), answer.contains("a=ice-ufrag:call")), (stays, stays));
        assert!(!offer.contains("ice-lite") && stand.media.ice.is_none());
        let stun = stand.packet(port(&answer, 0), CALLER, STUN);
        assert_eq!(stun.map(|(_, to)| to), if stays { Ok(CALLEE.into()) } else { Err(Dropped::Stun) });
    }
}

#[test]
fn an_offer_in_the_response_is_answered_alike() {
    let mut stand = lite();
    let offer = stand.offer(Side::Callee, &audio(CALLEE, &names("call"))).expect("offered in the 200");
    let to_caller = ours(&offer, 0).expect("ICE");
    let answer = stand.answer(Side::Caller, &audio(CALLER, &names("them"))).expect("answered in the ACK");
    let to_callee = ours(&answer, 0).expect("ICE");
    for (at, from, names, theirs) in
        [(port(&offer, 0), SEEN, &to_caller, "them"), (port(&answer, 0), CALLEE, &to_callee, "call")]
    {
        assert_eq!(stand.check(at, from, &names.1, &check(names, theirs, NOMINATE)), Ok(stun::SUCCESS));
    }
    assert_eq!(stand.packet(port(&answer, 0), CALLEE, &rtp(8, 1, 2)), Ok((port(&offer, 0), SEEN.into())));
}

#[test]
fn a_nominated_source_is_where_media_goes_and_comes_from() {
    let (mut stand, caller, callee, told) = browser_calls_phone();
    // Nothing is known yet: as without ICE.
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 1, 2)), Ok((caller, CALLER.into())));
    assert_eq!(stand.check(caller, SEEN, &told.1, &check(&told, "them", &[])), Ok(stun::SUCCESS));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 2, 2)), Ok((caller, SEEN.into())), "checked");
    assert_eq!(stand.packet(caller, SEEN, &rtp(8, 1, 1)), Ok((callee, CALLEE.into())));
    let other = "203.0.113.5:62000";
    assert_eq!(stand.check(caller, other, &told.1, &check(&told, "them", NOMINATE)), Ok(stun::SUCCESS));
    let mut stand = stand.restored();
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 3, 2)), Ok((caller, other.into())));
    for known in [other, SEEN] {
        assert_eq!(stand.packet(caller, known, &rtp(8, 2, 1)), Ok((callee, CALLEE.into())));
    }
    // Not even the address described is believed now, nor one that goes on with the stream.
    for stranger in [STRANGER, CALLER] {
        assert_eq!(stand.packet(caller, stranger, &rtp(8, 3, 1)), Err(Dropped::UnknownSource));
    }
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 4, 2)), Ok((caller, other.into())));
    // The NAT gives it another port: the next nomination says so. An hour later too.
    stand.now = stand.now + Nanos::from_secs(3600);
    let rebound = "203.0.113.9:63000";
    assert_eq!(stand.check(caller, rebound, &told.1, &check(&told, "them", NOMINATE)), Ok(stun::SUCCESS));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 5, 2)), Ok((caller, rebound.into())));
    assert_eq!(stand.packet(caller, rebound, &rtp(8, 3, 1)), Ok((callee, CALLEE.into())));
    assert_eq!(stand.media.summary().lines[0].caller.source.as_deref(), Some(rebound));
    assert_eq!(stand.packet(caller, rebound, DTLS), Ok((callee, CALLEE.into())));
}

#[test]
fn of_two_sources_nominated_in_turn_media_keeps_to_the_higher_until_it_comes_from_the_lower() {
    let (mut stand, caller, callee, told) = browser_calls_phone();
    let nominates = |priority: u32| {
        check(
            &told,
            "them",
            &[(attribute::USE_CANDIDATE, b""), (attribute::PRIORITY, &priority.to_be_bytes())],
        )
    };
    let lower = "203.0.113.5:62000";
    for round in 0..3_u16 {
        stand.now = stand.now + Nanos::from_secs(5);
        assert_eq!(stand.check(caller, SEEN, &told.1, &nominates(90)), Ok(stun::SUCCESS));
        assert_eq!(stand.check(caller, lower, &told.1, &nominates(50)), Ok(stun::SUCCESS));
        assert_eq!(stand.packet(callee, CALLEE, &rtp(8, round, 2)), Ok((caller, SEEN.into())));
        assert_eq!(stand.packet(caller, SEEN, &rtp(8, round, 1)), Ok((callee, CALLEE.into())));
    }
    let mut stand = stand.restored();
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 3, 2)), Ok((caller, SEEN.into())));
    assert_eq!(stand.packet(caller, lower, &rtp(8, 3, 1)), Ok((callee, CALLEE.into())));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 4, 2)), Ok((caller, lower.into())));
}

#[test]
fn rtcp_has_checks_of_its_own() {
    let (mut stand, caller, callee, told) = browser_calls_phone();
    let control = report(2, 1, 1, 0, 0);
    assert!(stand.check(caller, SEEN, &told.1, &check(&told, "them", NOMINATE)).is_ok());
    // Media is nominated, RTCP not yet: from the same address it is believed, from the one described it is not.
    assert!(stand.packet(caller + 1, "203.0.113.5:61007", &control).is_ok());
    assert_eq!(stand.packet(caller + 1, "10.0.0.1:4001", &control), Err(Dropped::UnknownSource));
    let seen = "203.0.113.6:61001";
    assert_eq!(stand.check(caller + 1, seen, &told.1, &check(&told, "them", NOMINATE)), Ok(stun::SUCCESS));
    assert!(stand.packet(caller + 1, seen, &control).is_ok());
    assert_eq!(stand.packet(caller + 1, "203.0.113.5:61007", &control), Err(Dropped::UnknownSource));
    let sent = stand.packet(callee + 1, "10.0.0.2:5001", &control);
    assert_eq!(sent, Ok((caller + 1, seen.into())));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 1, 2)), Ok((caller, SEEN.into())));
}

#[test]
fn what_proves_nothing_is_dropped_and_counted() {
    let (mut stand, caller, callee, told) = browser_calls_phone();
    let wrong = (told.0.clone(), "A".repeat(24));
    let stranger = ("stranger".to_owned(), told.1.clone());
    let unsigned = Writer::new(stun::REQUEST, &[1; 12]).attribute(attribute::USERNAME, b"x:them").finish();
    let mut damaged = check(&told, "them", NOMINATE);
    *damaged.last_mut().expect("bytes") ^= 1;
    let response = Writer::new(stun::SUCCESS, &[1; 12]).sign(told.1.as_bytes()).finish();
    let all =
        [check(&wrong, "them", NOMINATE), check(&stranger, "them", NOMINATE), unsigned, damaged, response];
    let before = stand.media.clone();
    for payload in &all {
        assert_eq!(stand.check(caller, STRANGER, &told.1, payload), Err(Dropped::Stun));
    }
    // The names of one side open no port of the other's.
    assert_eq!(stand.check(callee, STRANGER, &told.1, &check(&told, "them", NOMINATE)), Err(Dropped::Stun));
    assert_eq!(stand.media.summary().dropped["stun"], 6);
    assert_eq!(stand.media.lines, before.lines);
}

#[test]
fn errors_are_told_to_those_who_prove_who_they_are() {
    let (mut stand, caller, callee, told) = browser_calls_phone();
    let unknown = check(&told, "them", &[(0x7777, b"what"), (attribute::USE_CANDIDATE, b"")]);
    assert_eq!(stand.check(caller, SEEN, &told.1, &unknown), Ok(stun::ERROR));
    let controlled =
        check(&told, "them", &[(attribute::ICE_CONTROLLED, &[1; 8]), (attribute::USE_CANDIDATE, b"")]);
    assert_eq!(stand.check(caller, SEEN, &told.1, &controlled), Ok(stun::ERROR));
    assert_eq!(
        stand.packet(callee, CALLEE, &rtp(8, 1, 2)),
        Ok((caller, CALLER.into())),
        "nothing is nominated"
    );
    let wrong = (told.0, "A".repeat(24));
    for more in [&[(0x7777, &b"what"[..])], &[(attribute::ICE_CONTROLLED, &[1; 8][..])]] {
        assert_eq!(stand.check(caller, SEEN, &told.1, &check(&wrong, "them", more)), Err(Dropped::Stun));
    }
}

#[test]
fn checks_come_before_the_answer() {
    let mut stand = lite();
    let offer = stand.offer(Side::Caller, &audio(CALLER, &names("them"))).expect("offered");
    let (callee, told) = (port(&offer, 0), ours(&offer, 0).expect("ICE"));
    assert_eq!(stand.check(callee, SEEN, &told.1, &check(&told, "call", NOMINATE)), Ok(stun::SUCCESS));
    let mut stand = stand.restored();
    assert!(stand.packet(callee, SEEN, &rtp(8, 1, 2)).is_ok(), "early media");
    let caller = port(&stand.answer(Side::Callee, &audio(CALLEE, &names("call"))).expect("answered"), 0);
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 1, 1)), Ok((callee, SEEN.into())));
    assert_eq!(stand.packet(callee, STRANGER, &rtp(8, 2, 2)), Err(Dropped::UnknownSource));
    // Another branch of the fork is answered, but is not where the call is before its answer comes.
    let fork = "203.0.113.77:7000";
    assert_eq!(stand.check(callee, fork, &told.1, &check(&told, "fork", NOMINATE)), Ok(stun::SUCCESS));
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 2, 1)), Ok((callee, SEEN.into())));
    let again = stand.answer(Side::Callee, &audio(CALLEE, &names("fork"))).expect("answered again");
    assert_eq!(port(&again, 0), caller);
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 3, 1)), Ok((callee, CALLEE.into())));
    assert_eq!(stand.check(callee, fork, &told.1, &check(&told, "fork", NOMINATE)), Ok(stun::SUCCESS));
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 4, 1)), Ok((callee, fork.into())));
    assert_eq!(stand.packet(callee, SEEN, &rtp(8, 9, 2)), Err(Dropped::UnknownSource));
}

#[test]
fn who_begins_anew_is_answered_with_new_names() {
    let (mut stand, caller, callee, told) = browser_calls_phone();
    assert!(stand.check(caller, SEEN, &told.1, &check(&told, "them", NOMINATE)).is_ok());
    // A new address for the same names, as RFC 8839 has it once a pair is nominated, changes nothing.
    stand.offer(Side::Caller, &audio("10.9.9.9:4000", &names("them"))).expect("offered");
    let same = stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered");
    assert_eq!(ours(&same, 0), Some(told.clone()));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 1, 2)), Ok((caller, SEEN.into())));
    assert_eq!(stand.packet(caller, STRANGER, &rtp(8, 1, 9)), Err(Dropped::UnknownSource));
    stand.with(|media, _, ports| media.confirm(ports));
    // New names.
    stand.offer(Side::Caller, &audio(CALLER, &names("anew"))).expect("offered");
    let answer = stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered");
    let new = ours(&answer, 0).expect("ICE");
    assert!(new.0 != told.0 && new.1 != told.1 && port(&answer, 0) == caller);
    let again = stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered again");
    assert_eq!(ours(&again, 0), Some(new.clone()));
    let mut stand = stand.restored();
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 2, 2)), Ok((caller, SEEN.into())), "until it nominates");
    assert!(stand.packet(caller, SEEN, &rtp(8, 1, 1)).is_ok());
    assert_eq!(stand.check(caller, SEEN, &told.1, &check(&told, "them", NOMINATE)), Err(Dropped::Stun));
    let moved = "203.0.113.99:9000";
    assert_eq!(stand.check(caller, moved, &new.1, &check(&new, "anew", NOMINATE)), Ok(stun::SUCCESS));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 3, 2)), Ok((caller, moved.into())));
    assert_eq!(stand.packet(caller, SEEN, &rtp(8, 2, 1)), Err(Dropped::UnknownSource));
    // That offer fails after all: the names before are good again.
    stand.with(|media, setup, ports| media.rollback(Side::Caller, setup, ports));
    assert_eq!(stand.check(caller, SEEN, &told.1, &check(&told, "them", NOMINATE)), Ok(stun::SUCCESS));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 4, 2)), Ok((caller, SEEN.into())));
    // The next beginning does not use the names of the failed one.
    stand.offer(Side::Caller, &audio(CALLER, &names("more"))).expect("offered");
    let third = ours(&stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered"), 0).expect("ICE");
    assert!(third != new && third != told);
}

#[test]
fn a_party_without_an_address_is_found_and_not_held() {
    let mut stand = lite();
    let nowhere = audio("0.0.0.0:9", &names("them"));
    let offer = stand.offer(Side::Caller, &nowhere).expect("offered");
    assert!(offer.contains("c=IN IP4 192.0.2.1\r\n") && !offer.contains("c=IN IP4 0"), "{offer}");
    let answer = stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered");
    let (caller, callee, told) = (port(&answer, 0), port(&offer, 0), ours(&answer, 0).expect("ICE"));
    assert!(!stand.media.is_held());
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 1, 2)), Err(Dropped::NoDestination));
    assert!(stand.check(caller, SEEN, &told.1, &check(&told, "them", NOMINATE)).is_ok());
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 2, 2)), Ok((caller, SEEN.into())));
    // Hold is told by direction, and taken back before the answer.
    stand.offer(Side::Caller, &format!("{nowhere}a=inactive\r\n")).expect("offered");
    stand.answer(Side::Callee, &audio(CALLEE, "a=inactive\r\n")).expect("answered");
    assert!(stand.media.is_held());
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 3, 2)), Err(Dropped::Held));
    stand.offer(Side::Caller, &nowhere).expect("offered");
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 4, 2)), Ok((caller, SEEN.into())));
}

#[test]
fn two_lite_agents_find_each_other_by_their_descriptions() {
    let with = |ufrag: &str| format!("a=ice-lite\r\n{}", names(ufrag));
    let (mut stand, caller, callee) = {
        let mut stand = lite();
        let offer = audio(CALLER, &with("them")).replace("t=0 0\r\n", "t=0 0\r\na=ice-lite\r\n");
        let to_callee = stand.offer(Side::Caller, &offer).expect("offered");
        assert_eq!(to_callee.matches("a=ice-lite").count(), 1);
        let to_caller = stand.answer(Side::Callee, &audio(CALLEE, &with("call"))).expect("answered");
        assert!(ours(&to_caller, 0).is_some());
        (stand, port(&to_caller, 0), port(&to_callee, 0))
    };
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 1, 1)), Ok((callee, CALLEE.into())));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 1, 2)), Ok((caller, CALLER.into())));
    assert_eq!(stand.packet(callee, STRANGER, &rtp(8, 1, 2)), Err(Dropped::UnknownSource));
}

#[test]
fn a_refused_line_gets_no_agent() {
    let video = format!("m=video 4002 RTP/AVP 96\r\n{}", names("them"));
    let offer = audio(CALLER, &format!("{}{video}", names("them")));
    let mut stand = lite();
    let to_callee = stand.offer(Side::Caller, &offer).expect("offered");
    assert_eq!(ours(&to_callee, 0), ours(&to_callee, 1), "one name a party");
    let refusal = audio(CALLEE, "m=video 0 RTP/AVP 96\r\n");
    let answer = stand.answer(Side::Callee, &refusal).expect("answered");
    assert!(ours(&answer, 0).is_some() && ours(&answer, 1).is_none() && port(&answer, 1) == 0, "{answer}");
    assert!(answer.trim_end().ends_with("m=video 0 RTP/AVP 96"), "{answer}");
    stand.with(|media, _, ports| media.confirm(ports));
    assert_eq!(stand.share.held(), 2);
    assert!(stand.media.lines[1].legs.iter().all(|leg| leg.ice.is_none()));
    // What was refused is offered by the other side, which does no ICE, and taken by the one that does.
    let back = stand.offer(Side::Callee, &audio(CALLEE, "m=video 5002 RTP/AVP 96\r\n")).expect("offered");
    assert_eq!(ours(&back, 1), ours(&answer, 0));
    let told = ours(&back, 1).expect("ICE");
    let answer = stand.answer(Side::Caller, &offer).expect("answered");
    assert!(!answer.contains("a=ice"), "{answer}");
    assert!(stand.check(port(&back, 1), SEEN, &told.1, &check(&told, "them", NOMINATE)).is_ok());
    assert_eq!(
        stand.packet(port(&answer, 1), "10.0.0.2:5002", &rtp(96, 1, 5)),
        Ok((port(&back, 1), SEEN.into()))
    );
}

#[test]
fn bundled_lines_with_muxed_rtcp_need_one_candidate() {
    let bundle = |ip: &str, ports: [u16; 2], more: &str, ice: &str| {
        let lines = format!("a=rtcp-mux\r\n{more}{ice}");
        format!(
            "v=0\r\nc=IN IP4 {ip}\r\na=group:BUNDLE 0 1\r\nm=audio {} UDP/TLS/RTP/SAVPF 111\r\n{lines}\
             m=video {} UDP/TLS/RTP/SAVPF 96\r\n{lines}",
            ports[0], ports[1]
        )
    };
    // Before the answer RTCP may come beside media, unless that is ruled out.
    for (more, components) in [("", 2), ("a=rtcp-mux-only\r\n", 1), ("a=rtcp:9 IN IP4 0.0.0.0\r\n", 1)] {
        let mut stand = lite();
        let offered = bundle("0.0.0.0", [9, 9], more, &names("them"));
        let offer = stand.offer(Side::Caller, &offered).expect("offered");
        assert_ne!(port(&offer, 0), port(&offer, 1), "two lines without an address share none");
        assert_eq!(candidates(&offer).len(), 2 * components);
        assert_eq!(ours(&offer, 0), ours(&offer, 1));
        let answered = bundle("10.0.0.2", [5000, 5000], "", &names("call"));
        let answer = stand.answer(Side::Callee, &answered).expect("answered");
        let (caller, callee) = (port(&answer, 0), port(&offer, 0));
        assert_eq!(port(&answer, 1), caller);
        let wanted = format!("a=candidate:1 1 UDP 2130706431 192.0.2.1 {caller} typ host");
        assert_eq!(candidates(&answer), [wanted.as_str(), wanted.as_str()]);
        let (to_caller, to_callee) = (ours(&answer, 1).expect("ICE"), ours(&offer, 0).expect("ICE"));
        assert_eq!(Some(to_caller.clone()), ours(&answer, 0));
        assert!(stand.check(caller, SEEN, &to_caller.1, &check(&to_caller, "them", NOMINATE)).is_ok());
        assert!(stand.check(callee, CALLEE, &to_callee.1, &check(&to_callee, "call", NOMINATE)).is_ok());
        for payload in [rtp(111, 1, 1), rtp(96, 1, 2), report(1, 7, 2, 0, 0), DTLS.to_vec()] {
            assert_eq!(stand.packet(caller, SEEN, &payload), Ok((callee, CALLEE.into())));
            assert_eq!(stand.packet(callee, CALLEE, &payload), Ok((caller, SEEN.into())));
        }
    }
}

#[test]
fn who_checks_is_alive() {
    let (mut stand, caller, _, told) = browser_calls_phone();
    assert_eq!(stand.media.last_packet(Side::Caller), None);
    let wrong = (told.0.clone(), "A".repeat(24));
    assert!(stand.check(caller, SEEN, &told.1, &check(&wrong, "them", &[])).is_err());
    assert_eq!(stand.media.last_packet(Side::Caller), None);
    stand.now = stand.now + Nanos::from_secs(5);
    assert!(stand.check(caller, SEEN, &told.1, &check(&told, "them", &[])).is_ok());
    assert_eq!(stand.media.last_packet(Side::Caller), Some(stand.now));
}
