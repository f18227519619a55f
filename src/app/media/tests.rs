//! A call's media as a whole: offers, answers, datagrams.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::types::{CallKey, Endpoint, Slot};

mod ice;

const PORTS: MediaPorts = MediaPorts { first: 30000, last: 30049, slots: 1, addresses: 1 };
const SDP: &[u8] = b"application/sdp";
const CALLER: &str = "10.0.0.1:4000";
const CALLEE: &str = "10.0.0.2:5000";
const START: Nanos = Nanos(1_700_000_000_000_000_000);

/// A call and the slot's ports around it.
struct Stand {
    media: Media,
    share: PortShare,
    setup: MediaSetup,
    now: Nanos,
}

impl Stand {
    fn new() -> Stand {
        let setup =
            MediaSetup { address: [192, 0, 2, 1].into(), ice: Ice::Remove, latch: Nanos::from_secs(10) };
        Stand { media: Media::new(), share: PortShare::default(), setup, now: START }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Media, &MediaSetup, &mut Reservation<'_>) -> T) -> T {
        let mut ports = Reservation::new(&PORTS, &self.share, (Slot(0), CallKey(7)), self.now, 42);
        let result = act(&mut self.media, &self.setup, &mut ports);
        for change in ports.into_changes() {
            self.share.apply(change);
        }
        result
    }

    fn offer(&mut self, side: Side, body: &str) -> Result<String, MediaError> {
        let out = self.with(|media, setup, ports| media.offer(side, SDP, body.as_bytes(), setup, ports));
        out.map(|body| String::from_utf8(body).expect("text"))
    }

    fn answer(&mut self, side: Side, body: &str) -> Result<String, MediaError> {
        let out = self.with(|media, setup, ports| media.answer(side, SDP, body.as_bytes(), setup, ports));
        out.map(|body| String::from_utf8(body).expect("text"))
    }

    /// An answered call; the ports that caller and callee send to.
    fn answered(offer: &str, answer: &str) -> (Stand, u16, u16) {
        let mut stand = Stand::new();
        let to_callee = stand.offer(Side::Caller, offer).expect("offered");
        let to_caller = stand.answer(Side::Callee, answer).expect("answered");
        stand.with(|media, _, ports| media.confirm(ports));
        (stand, port(&to_caller, 0), port(&to_callee, 0))
    }

    fn packet(&mut self, port: u16, source: &str, payload: &[u8]) -> Result<(u16, String), Dropped> {
        match self.media.on_packet(self.now, port, endpoint(source), payload, &self.setup) {
            Relay::Forward { port, to, .. } => Ok((port, SocketAddr::from(to).to_string())),
            Relay::Answer { .. } => panic!("an answer to what is no check"),
            Relay::Drop(reason) => Err(reason),
        }
    }
}

fn endpoint(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().expect("IP:PORT").into()
}

/// A description of one audio line at `address`.
fn audio(address: &str, more: &str) -> String {
    let (ip, port) = address.split_once(':').expect("IP:PORT");
    format!(
        "v=0\r\no=- 1 1 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\nm=audio {port} RTP/AVP 8 101\r\n\
         a=rtpmap:101 telephone-event/8000\r\n{more}"
    )
}

/// The port of m-line `n`.
fn port(body: &str, n: usize) -> u16 {
    let line = body.lines().filter(|line| line.starts_with("m=")).nth(n).expect("an m-line");
    line.split(' ').nth(1).and_then(|port| port.parse().ok()).expect("a port")
}

fn rtp(payload_type: u8, sequence: u16, ssrc: u32) -> Vec<u8> {
    let mut bytes = vec![0x80, payload_type];
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&(u32::from(sequence) * 160).to_be_bytes());
    bytes.extend_from_slice(&ssrc.to_be_bytes());
    bytes.extend_from_slice(&[0x55; 160]);
    bytes
}

/// A sender report of `ssrc` with NTP middle `time`, and a block about `about`.
fn report(ssrc: u32, time: u32, about: u32, last: u32, delay: u32) -> Vec<u8> {
    let words = [0x81c8_000c, ssrc, time >> 16, time << 16, 0, 9, 9, about, 0x1000_0002, 5, 40, last, delay];
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

const STUN: &[u8] = &[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
const DTLS: &[u8] = &[22, 254, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9];

#[test]
fn a_call_is_anchored_and_relayed_both_ways() {
    let (mut stand, caller, callee) = Stand::answered(&audio(CALLER, ""), &audio(CALLEE, ""));
    assert_eq!((caller % 2, callee % 2), (0, 0));
    assert_ne!(caller, callee);
    assert_eq!(stand.share.owner(&PORTS, Slot(0), caller + 1), Some(CallKey(7)));
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 1, 1)), Ok((callee, CALLEE.into())));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 1, 2)), Ok((caller, CALLER.into())));
    let control = report(1, 7, 2, 0, 0);
    assert_eq!(stand.packet(caller + 1, "10.0.0.1:4001", &control), Ok((callee + 1, "10.0.0.2:5001".into())));
    // RTCP on the media port though that was not agreed on.
    assert_eq!(stand.packet(caller, CALLER, &control), Ok((callee + 1, "10.0.0.2:5001".into())));
    assert_eq!(stand.packet(caller, CALLER, STUN), Err(Dropped::Stun));
    assert_eq!(stand.packet(caller, CALLER, DTLS), Ok((callee, CALLEE.into())));
    assert_eq!(stand.packet(caller, CALLER, b"\r\n"), Err(Dropped::NotMedia));
    assert_eq!(stand.packet(caller + 1, "10.0.0.1:4001", &rtp(8, 2, 1)), Err(Dropped::NotMedia));
    assert_eq!(stand.packet(40000, CALLER, &rtp(8, 2, 1)), Err(Dropped::UnknownPort));
    assert_eq!(stand.packet(0, CALLER, &rtp(8, 2, 1)), Err(Dropped::UnknownPort));

    let summary = stand.media.summary();
    let side = &summary.lines[0].caller;
    assert_eq!((&side.codecs[..], side.rtcp_datagrams), (&["PCMA", "telephone-event"][..], 2));
    assert_eq!((side.streams[0].codec, side.streams[0].packets), ("PCMA", 1));
    assert_eq!(side.streams[0].mos, Some(4.409));
    assert_eq!(summary.dropped["stun"], 1);

    stand.with(|media, _, ports| media.end(ports));
    assert_eq!((stand.share.held(), stand.media.is_anchored()), (0, false));
}

#[test]
fn muxed_rtcp_stays_on_the_media_port() {
    let mux = "a=rtcp-mux\r\na=rtcp:4000 IN IP4 10.0.0.1\r\n";
    let mut stand = Stand::new();
    let offer = stand.offer(Side::Caller, &audio(CALLER, mux)).expect("offered");
    let callee = port(&offer, 0);
    assert!(offer.contains(&format!("a=rtcp:{callee} IN IP4 192.0.2.1\r\n")), "{offer}");
    let answer = stand.answer(Side::Callee, &audio(CALLEE, "a=rtcp-mux\r\n")).expect("answered");
    let caller = port(&answer, 0);
    let control = report(1, 7, 2, 0, 0);
    assert_eq!(stand.packet(caller, CALLER, &control), Ok((callee, CALLEE.into())));
    // One side uses the next port all the same.
    assert_eq!(stand.packet(callee + 1, "10.0.0.2:5001", &control), Ok((caller, CALLER.into())));
}

#[test]
fn media_flows_before_the_answer() {
    let mut stand = Stand::new();
    let callee = port(&stand.offer(Side::Caller, &audio(CALLER, "")).expect("offered"), 0);
    let early = stand.packet(callee, CALLEE, &rtp(8, 1, 2)).expect("early media");
    assert_eq!(early.1, CALLER);
    assert_eq!(stand.packet(early.0, CALLER, &rtp(8, 1, 1)), Ok((callee, CALLEE.into())));
}

#[test]
fn a_late_offer_is_answered_in_the_ack() {
    let mut stand = Stand::new();
    let caller = port(&stand.offer(Side::Callee, &audio(CALLEE, "")).expect("offered in the 200"), 0);
    stand.with(|media, _, ports| media.confirm(ports));
    assert_eq!(stand.share.held(), 2, "an open offer keeps its ports");
    let callee = port(&stand.answer(Side::Caller, &audio(CALLER, "")).expect("answered in the ACK"), 0);
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 1, 1)), Ok((callee, CALLEE.into())));
}

#[test]
fn the_last_answer_of_a_fork_holds() {
    let (mut stand, caller, callee) = Stand::answered(&audio(CALLER, ""), &audio("10.0.0.3:6000", ""));
    assert_eq!(stand.packet(callee, "10.0.0.3:6000", &rtp(8, 1, 3)), Ok((caller, CALLER.into())));
    let again = stand.answer(Side::Callee, &audio(CALLEE, "")).expect("another branch");
    assert_eq!(port(&again, 0), caller);
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 1, 1)), Ok((callee, CALLEE.into())));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 1, 2)), Ok((caller, CALLER.into())));
    assert_eq!(stand.packet(callee, "10.0.0.3:6000", &rtp(8, 2, 3)), Err(Dropped::UnknownSource));
    // The same answer again changes nothing.
    let before = stand.media.clone();
    assert_eq!(stand.answer(Side::Callee, &audio(CALLEE, "")), Ok(again));
    assert_eq!(stand.media, before);
}

#[test]
fn hold_keeps_its_meaning_and_its_ports() {
    let (mut stand, caller, callee) = Stand::answered(&audio(CALLER, ""), &audio(CALLEE, ""));
    let hold = stand.offer(Side::Caller, &audio(CALLER, "a=sendonly\r\n")).expect("offered");
    assert_eq!((port(&hold, 0), hold.contains("a=sendonly")), (callee, true));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 1, 2)), Ok((caller, CALLER.into())), "until the answer");
    stand.answer(Side::Callee, &audio(CALLEE, "a=recvonly\r\n")).expect("answered");
    assert!(stand.media.is_held());
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 2, 2)), Err(Dropped::Held));
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 1, 1)), Ok((callee, CALLEE.into())), "music on hold");
    assert!(stand.packet(callee + 1, "10.0.0.2:5001", &report(2, 1, 1, 0, 0)).is_ok(), "RTCP goes on");
    // In the style of RFC 2543.
    let zeros = stand.offer(Side::Callee, &audio("0.0.0.0:5000", "")).expect("offered");
    assert!(zeros.contains("c=IN IP4 0.0.0.0\r\n") && port(&zeros, 0) == caller, "{zeros}");
    stand.answer(Side::Caller, &audio(CALLER, "")).expect("answered");
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 2, 1)), Err(Dropped::Held));
    assert_eq!(stand.share.held(), 2);
}

#[test]
fn who_offers_to_go_on_hears_before_the_answer() {
    let (mut stand, caller, callee) = Stand::answered(&audio(CALLER, ""), &audio(CALLEE, ""));
    assert!(stand.packet(caller, CALLER, &rtp(8, 1, 1)).is_ok());
    for (hold, resumes_at) in [("a=inactive\r\n", CALLER), ("a=sendonly\r\n", "10.0.0.1:4100")] {
        stand.offer(Side::Caller, &audio(CALLER, hold)).expect("offered");
        stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered");
        assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 1, 2)), Err(Dropped::Held));
        stand.offer(Side::Caller, &audio(resumes_at, "")).expect("offered");
        assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 2, 2)), Ok((caller, resumes_at.into())));
        stand.with(|media, setup, ports| media.rollback(Side::Caller, setup, ports));
        assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 3, 2)), Err(Dropped::Held), "refused");
        stand.offer(Side::Caller, &audio(CALLER, "")).expect("offered");
        stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered");
        stand.with(|media, _, ports| media.confirm(ports));
    }
    // On hold in the style of RFC 2543 it comes back from nowhere.
    stand.offer(Side::Callee, &audio("0.0.0.0:5000", "")).expect("offered");
    stand.answer(Side::Caller, &audio(CALLER, "")).expect("answered");
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 2, 1)), Err(Dropped::Held));
    stand.offer(Side::Callee, &audio(CALLEE, "")).expect("offered");
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 3, 1)), Ok((callee, CALLEE.into())));
}

#[test]
fn a_refused_line_gives_its_ports_back_when_that_is_final() {
    let video = "m=video 4002 RTP/AVP 96\r\na=rtpmap:96 VP8/90000\r\n";
    let mut stand = Stand::new();
    let offer = stand.offer(Side::Caller, &audio(CALLER, video)).expect("offered");
    assert_eq!(stand.share.held(), 4);
    assert_ne!(port(&offer, 0), port(&offer, 1));
    let refusal = audio(CALLEE, "m=video 0 RTP/AVP 96\r\n");
    let answer = stand.answer(Side::Callee, &refusal).expect("answered");
    assert_eq!((port(&answer, 1), stand.share.held()), (0, 4));
    assert_eq!(stand.packet(port(&offer, 1), CALLEE, &rtp(96, 1, 5)), Err(Dropped::NoDestination));
    stand.with(|media, _, ports| media.confirm(ports));
    assert_eq!(stand.share.held(), 2);
    // Video after all, then no more.
    stand.offer(Side::Callee, &audio(CALLEE, "m=video 5002 RTP/AVP 96\r\n")).expect("offered");
    let answer = stand.answer(Side::Caller, &audio(CALLER, video)).expect("answered");
    stand.with(|media, _, ports| media.confirm(ports));
    assert_eq!(stand.share.held(), 4);
    assert_eq!(
        stand.packet(port(&answer, 1), "10.0.0.2:5002", &rtp(96, 1, 5)).expect("video").1,
        "10.0.0.1:4002"
    );
    stand.offer(Side::Caller, &audio(CALLER, "m=video 0 RTP/AVP 96\r\n")).expect("offered");
    stand.answer(Side::Callee, &refusal).expect("answered");
    stand.with(|media, _, ports| media.confirm(ports));
    assert_eq!(stand.share.held(), 2);
}

#[test]
fn what_fails_is_undone() {
    let (mut stand, caller, callee) = Stand::answered(&audio(CALLER, ""), &audio(CALLEE, ""));
    let moved = audio("10.0.0.9:4444", "m=video 4002 RTP/AVP 96\r\n");
    let before = stand.media.clone();
    // Refused without an answer.
    stand.offer(Side::Caller, &moved).expect("offered");
    assert_eq!(stand.share.held(), 4);
    assert_eq!(stand.packet(caller, "10.0.0.9:4444", &rtp(8, 1, 1)), Ok((callee, CALLEE.into())));
    stand.with(|media, setup, ports| media.rollback(Side::Caller, setup, ports));
    assert_eq!(stand.share.held(), 2);
    assert_eq!(stand.media.lines[0].terms, before.lines[0].terms);
    // Refused after a provisional answer.
    stand.offer(Side::Caller, &moved).expect("offered");
    let other = audio("10.0.0.8:5555", "m=video 5002 RTP/AVP 96\r\n");
    stand.answer(Side::Callee, &other).expect("answered in a 183");
    assert_eq!(stand.packet(callee, "10.0.0.8:5555", &rtp(8, 1, 2)), Ok((caller, "10.0.0.9:4444".into())));
    stand.with(|media, setup, ports| media.rollback(Side::Caller, setup, ports));
    assert_eq!(stand.media.lines[0].terms, before.lines[0].terms);
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 1, 1)), Ok((callee, CALLEE.into())));
    assert_eq!(
        stand.packet(callee, "10.0.0.8:5555", &rtp(8, 9, 7)),
        Ok((caller, CALLER.into())),
        "a NAT's window"
    );
    assert_eq!(stand.share.held(), 2);
    // Both offer at once, one is refused with 491.
    stand.offer(Side::Caller, &moved).expect("offered");
    stand.offer(Side::Callee, &audio(CALLEE, "a=sendonly\r\n")).expect("offered");
    stand.with(|media, setup, ports| media.rollback(Side::Caller, setup, ports));
    stand.answer(Side::Caller, &audio(CALLER, "")).expect("answered");
    assert_eq!(stand.media.lines[0].terms.ends[1].direction, Direction::SendOnly);
    assert_eq!(stand.share.held(), 2);
}

#[test]
fn nothing_is_kept_of_a_call_that_was_refused() {
    let mut stand = Stand::new();
    stand.offer(Side::Caller, &audio(CALLER, "")).expect("offered");
    stand.with(|media, setup, ports| media.rollback(Side::Caller, setup, ports));
    assert_eq!((stand.share.held(), stand.media.is_anchored()), (0, false));
    assert_eq!(stand.answer(Side::Caller, "v=0\r\n"), Ok("v=0\r\n".into()));
    let mut fresh = Stand::new();
    assert_eq!(fresh.answer(Side::Callee, &audio(CALLEE, "")), Err(MediaError::NoOffer));
}

#[test]
fn fax_takes_over_the_ports_of_audio() {
    let (mut stand, caller, callee) = Stand::answered(&audio(CALLER, ""), &audio(CALLEE, ""));
    let fax = |ip: &str, port: u16| {
        format!("v=0\r\nc=IN IP4 {ip}\r\nm=image {port} udptl t38\r\na=T38FaxVersion:0\r\n")
    };
    let offer = stand.offer(Side::Callee, &fax("10.0.0.2", 5010)).expect("offered");
    assert_eq!(port(&offer, 0), caller);
    stand.answer(Side::Caller, &fax("10.0.0.1", 4010)).expect("answered");
    let udptl = [0x80, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    assert_eq!(stand.packet(callee, "10.0.0.2:5010", &udptl), Ok((caller, "10.0.0.1:4010".into())));
    let summary = stand.media.summary();
    assert_eq!((summary.lines[0].callee.other_datagrams, summary.lines[0].callee.streams.len()), (1, 0));
}

#[test]
fn a_nat_is_learnt_once_and_strangers_are_not() {
    let (mut stand, caller, callee) = Stand::answered(&audio(CALLER, ""), &audio(CALLEE, ""));
    let nat = "203.0.113.5:61000";
    assert_eq!(stand.packet(caller, nat, &rtp(8, 10, 1)), Ok((callee, CALLEE.into())));
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 1, 2)), Ok((caller, nat.into())));
    assert_eq!(stand.packet(caller, "198.51.100.1:9", &rtp(8, 11, 99)), Err(Dropped::UnknownSource));
    assert_eq!(
        stand.packet(caller + 1, "198.51.100.1:9", &report(1, 1, 2, 0, 0)),
        Err(Dropped::UnknownSource)
    );
    // RTCP through the same NAT.
    assert!(stand.packet(caller + 1, "203.0.113.5:61007", &report(1, 1, 2, 0, 0)).is_ok());
    assert_eq!(
        stand.packet(callee + 1, "10.0.0.2:5001", &report(2, 1, 1, 0, 0)),
        Ok((caller + 1, "203.0.113.5:61007".into()))
    );
    // The NAT is given another port: stream and sequence go on.
    let rebound = "203.0.113.5:61999";
    assert!(stand.packet(caller, rebound, &rtp(8, 11, 1)).is_ok());
    assert_eq!(stand.packet(callee, CALLEE, &rtp(8, 2, 2)), Ok((caller, rebound.into())));
    // The address described speaks: nothing else is believed any more.
    assert!(stand.packet(caller, CALLER, &rtp(8, 12, 1)).is_ok());
    assert_eq!(stand.packet(caller, rebound, &rtp(8, 13, 1)), Err(Dropped::UnknownSource));
    // Until the next description with another address.
    stand.offer(Side::Caller, &audio("10.0.0.1:4100", "")).expect("offered");
    stand.answer(Side::Callee, &audio(CALLEE, "")).expect("answered");
    assert!(stand.packet(caller, nat, &rtp(8, 14, 4)).is_ok());
}

#[test]
fn nobody_is_believed_long_after_a_description() {
    let (mut stand, caller, _) = Stand::answered(&audio(CALLER, ""), &audio(CALLEE, ""));
    stand.now = stand.now + Nanos::from_secs(11);
    assert_eq!(stand.packet(caller, "203.0.113.5:61000", &rtp(8, 10, 1)), Err(Dropped::UnknownSource));
    assert!(stand.packet(caller, CALLER, &rtp(8, 10, 1)).is_ok());
}

#[test]
fn media_never_goes_in_circles_or_nowhere() {
    let mut stand = Stand::new();
    let callee = port(&stand.offer(Side::Caller, &audio(CALLER, "")).expect("offered"), 0);
    let caller =
        port(&stand.answer(Side::Callee, &audio(&format!("192.0.2.1:{callee}"), "")).expect("answered"), 0);
    assert_eq!(stand.packet(caller, CALLER, &rtp(8, 1, 1)), Err(Dropped::NoDestination));
    for nowhere in ["224.0.0.5:4000", "255.255.255.255:4000"] {
        let (mut stand, caller, _) = Stand::answered(&audio(CALLER, ""), &audio(nowhere, ""));
        assert_eq!(stand.packet(caller, CALLER, &rtp(8, 1, 1)), Err(Dropped::NoDestination));
    }
}

#[test]
fn bundled_lines_share_a_port() {
    let bundle = |ip: &str, audio: u16, video: u16| {
        format!(
            "v=0\r\nc=IN IP4 {ip}\r\na=group:BUNDLE 0 1\r\nm=audio {audio} RTP/SAVPF 111\r\na=rtcp-mux\r\n\
             m=video {video} RTP/SAVPF 96\r\na=rtcp-mux\r\n"
        )
    };
    let mut stand = Stand::new();
    let offer = stand.offer(Side::Caller, &bundle("10.0.0.1", 4000, 4002)).expect("offered");
    assert_ne!(port(&offer, 0), port(&offer, 1));
    let answer = stand.answer(Side::Callee, &bundle("10.0.0.2", 5000, 5000)).expect("answered");
    assert_eq!(port(&answer, 0), port(&answer, 1));
}

#[test]
fn media_not_over_udp_is_left_alone() {
    let body = "v=0\r\nc=IN IP4 10.0.0.1\r\nm=message 7654 TCP/MSRP *\r\n";
    let mut stand = Stand::new();
    assert_eq!(stand.offer(Side::Caller, body), Ok(body.into()));
    assert_eq!((stand.share.held(), stand.media.is_anchored()), (0, false));
}

#[test]
fn errors_leave_everything_as_it_was() {
    let mut stand = Stand::new();
    let all = |stand: &Stand| (stand.share.held(), stand.media.is_anchored());
    for (body, status) in [("hello", None), ("v=0\r\nm=audio x RTP/AVP 0\r\n", Some(400))] {
        assert_eq!(stand.offer(Side::Caller, body).expect_err("refused").status(), status);
    }
    let text =
        stand.with(|media, setup, ports| media.offer(Side::Caller, b"text/plain", b"v=0", setup, ports));
    assert_eq!(text, Err(MediaError::NoDescription));
    // 25 pairs; this call wants 28.
    let many = audio(CALLER, &"m=audio 4002 RTP/AVP 0\r\n".repeat(13));
    let refused = stand.offer(Side::Caller, &many).expect_err("no ports");
    assert_eq!((refused, refused.status()), (MediaError::NoPorts(NoPorts), Some(503)));
    assert_eq!(all(&stand), (0, false));
}

#[test]
fn a_description_inside_a_multipart_body_is_rewritten() {
    let body = format!(
        "--b\r\nContent-Type: application/sdp\r\n\r\n{}\r\n--b\r\nContent-Type: text/plain\r\n\r\nc=IN IP4 10.0.0.1\r\n--b--\r\n",
        audio(CALLER, "")
    );
    let mut stand = Stand::new();
    let out = stand.with(|media, setup, ports| {
        media.offer(Side::Caller, b"multipart/mixed; boundary=b", body.as_bytes(), setup, ports)
    });
    let out = String::from_utf8(out.expect("offered")).expect("text");
    let local = port(&out, 0).to_string();
    let wanted = body.replacen("\nc=IN IP4 10.0.0.1", "\nc=IN IP4 192.0.2.1", 1).replacen("4000", &local, 1);
    assert_eq!(out, wanted);
}

#[test]
fn rtcp_gives_round_trips_and_what_receivers_report() {
    let (mut stand, caller, callee) = Stand::answered(&audio(CALLER, ""), &audio(CALLEE, ""));
    stand.packet(callee, CALLEE, &rtp(8, 1, 2)).expect("media");
    stand.packet(callee + 1, "10.0.0.2:5001", &report(2, 0x1234_5678, 1, 0, 0)).expect("a report");
    stand.now = stand.now + Nanos::from_millis(540);
    // The caller held it for half a second.
    let answer = report(1, 5, 2, 0x1234_5678, 0x8000);
    stand.packet(caller + 1, "10.0.0.1:4001", &answer).expect("a report");
    let summary = stand.media.summary();
    assert_eq!(summary.lines[0].caller.round_trip_ms, Some(40.0));
    let reported = summary.lines[0].callee.streams[0].reported.clone().expect("a report");
    assert_eq!((reported.lost, reported.jitter_ms, reported.loss_percent), (2, 5.0, 6.25));
}

#[test]
fn streams_past_four_are_folded() {
    let (mut stand, caller, _) = Stand::answered(&audio(CALLER, ""), &audio(CALLEE, ""));
    for ssrc in 0..10 {
        stand.now = stand.now + Nanos::from_millis(20);
        stand.packet(caller, CALLER, &rtp(8, 7, ssrc)).expect("media");
    }
    let side = stand.media.summary().lines.remove(0).caller;
    assert_eq!(side.streams.iter().map(|s| s.ssrc).collect::<Vec<_>>(), [6, 7, 8, 9]);
    let folded = side.folded.expect("six");
    assert_eq!((folded.streams, folded.packets, folded.lost), (6, 6, 0));
}

/// What the state of one audio call takes in memory.
#[test]
fn a_call_is_small() {
    let (mut stand, caller, callee) = Stand::answered(&audio(CALLER, ""), &audio(CALLEE, ""));
    stand.packet(caller, CALLER, &rtp(8, 1, 1)).expect("media");
    stand.packet(callee, CALLEE, &rtp(8, 1, 2)).expect("media");
    let media = &stand.media;
    let line = &media.lines[0];
    let streams = line.legs.iter().map(|leg| leg.streams.capacity() * size_of::<stream::Stream>());
    let formats = line.terms.ends.iter().map(|end| end.formats.capacity() * size_of::<line::Format>());
    let bytes = size_of::<Media>()
        + media.lines.capacity() * size_of::<Line>()
        + streams.sum::<usize>()
        + formats.sum::<usize>();
    let parts = [
        ("stream", size_of::<stream::Stream>()),
        ("leg", size_of::<line::Leg>()),
        ("terms", size_of::<Terms>()),
        ("latch", size_of::<line::Latch>()),
        ("media", size_of::<Media>()),
    ];
    assert!(bytes <= 700, "{bytes} bytes: {parts:?}");
}

fn body() -> impl Strategy<Value = String> {
    let port = prop_oneof![Just(0_u16), Just(9), 4000_u16..4010, any::<u16>()];
    let line = (
        prop_oneof![Just("audio"), Just("video"), Just("image"), Just("application")],
        port,
        prop_oneof![
            Just("RTP/AVP 0 8 101"),
            Just("udptl t38"),
            Just("TCP/MSRP *"),
            Just("UDP/TLS/RTP/SAVPF 111")
        ],
        prop_oneof![
            Just(""),
            Just("a=sendonly\r\n"),
            Just("a=inactive\r\n"),
            Just("a=rtcp-mux\r\n"),
            Just("c=IN IP4 0.0.0.0\r\n"),
            Just("c=IN IP6 2001:db8::7\r\n"),
            Just("a=rtpmap:101 telephone-event/8000\r\n"),
            Just("a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n"),
            Just("a=ice-ufrag:efgh\r\na=ice-pwd:0123456789012345678901\r\n"),
        ],
    );
    proptest::collection::vec(line, 0..4).prop_map(|lines| {
        let mut body = "v=0\r\nc=IN IP4 10.0.0.1\r\n".to_owned();
        for (kind, port, rest, more) in lines {
            body += &format!("m={kind} {port} {rest}\r\n{more}");
        }
        body
    })
}

proptest! {
    /// Whatever happens in whatever order: no panic, ports are held by m-lines and nobody else, a copy made from a snapshot
    /// goes on alike.
    #[test]
    fn any_order_of_events_keeps_ports_and_members_together(
        steps in proptest::collection::vec((0u8..7, any::<bool>(), body(), any::<u8>()), 1..30), lite: bool,
    ) {
        let mut stand = Stand::new();
        stand.setup.ice = if lite { Ice::Lite } else { Ice::Remove };
        for (what, caller, body, more) in steps {
            stand.now = stand.now + Nanos::from_millis(20 * u64::from(more));
            let side = if caller { Side::Caller } else { Side::Callee };
            let mut bytes = Vec::new();
            let form = stand.media.snapshot(&mut bytes);
            let copy = Media::restore(form, &bytes).expect("readable");
            prop_assert_eq!(&copy, &stand.media);
            let mut other = Stand { media: copy, share: stand.share.clone(), ..stand };
            for stand in [&mut stand, &mut other] {
                match what {
                    0 | 1 => drop(stand.offer(side, &body)),
                    2 => drop(stand.answer(side, &body)),
                    3 => stand.with(|media, _, ports| media.confirm(ports)),
                    4 => stand.with(|media, setup, ports| media.rollback(side, setup, ports)),
                    _ => {
                        let port = 30000 + u16::from(more % 52);
                        let source = format!("10.0.0.{}:{}", more % 3, 4000 + u16::from(more % 4));
                        let payload = match more % 5 {
                            0 => report(more.into(), 1, 2, 1, 1),
                            1 => ice::signed(stand, port, &source, more % 2 == 0),
                            2 => DTLS.to_vec(),
                            _ => rtp(101 - more % 2, more.into(), u32::from(more % 7)),
                        };
                        let source = endpoint(&source);
                        let _outcome = stand.media.on_packet(stand.now, port, source, &payload, &stand.setup);
                    }
                }
            }
            prop_assert_eq!(&stand.media, &other.media);
            prop_assert_eq!(&stand.share, &other.share);
            let held = stand.media.lines.iter().flat_map(|line| &line.legs).filter(|leg| leg.local != 0);
            prop_assert_eq!(held.count(), stand.share.held());
            stand.media.summary();
        }
        stand.with(|media, _, ports| media.end(ports));
        prop_assert_eq!(stand.share.held(), 0);
    }

    /// Hostile state must not break a member either.
    #[test]
    fn any_bytes_restore_or_do_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(mut media) = Media::restore(FORM, &bytes) {
            let mut stand = Stand::new();
            let _outcome = media.on_packet(stand.now, 30000, endpoint(CALLER), &rtp(0, 1, 1), &stand.setup);
            media.summary();
            stand.media = media;
            drop(stand.offer(Side::Caller, &audio(CALLER, "")));
        }
    }
}
