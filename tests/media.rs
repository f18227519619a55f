//! The media side of calls against captures: descriptions rewritten, streams relayed and counted as tshark counts them.

#![cfg(feature = "tools")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::Path;

use tandem::app::media::summary::{SideSummary, StreamSummary};
use tandem::app::media::{Dropped, Ice, Media, MediaPorts, MediaSetup, PortShare, Relay, Reservation, Side};
use tandem::cli::capture::{Capture, Datagram, decode, read};
use tandem::types::{CallKey, Nanos, Slot};
use tandem::wire::rtp::Rtp;
use tandem::wire::sdp::describe::Description;
use tandem::wire::sdp::part;
use tandem::wire::sdp::rewrite::Placement;
use tandem::wire::sip::HeaderName;
use tandem::wire::sip::scan::{Message, StartLine};

const PORTS: MediaPorts = MediaPorts { first: 20_000, last: 65_000, slots: 1, addresses: 1 };
/// Logical time of the first packet of a capture.
const START: Nanos = Nanos(1_700_000_000_000_000_000);

fn setup() -> MediaSetup {
    MediaSetup { address: [192, 0, 2, 1].into(), ice: Ice::Remove, latch: Nanos::from_secs(10) }
}

/// One call of a capture.
struct Call {
    media: Media,
    key: CallKey,
    /// Who sent its first INVITE.
    caller: SocketAddr,
    /// Whether the newest INVITE or UPDATE brought an offer.
    offered: bool,
}

/// All calls of a capture, as a proxy between the parties would have them.
#[derive(Default)]
struct Calls {
    by_id: HashMap<Vec<u8>, Call>,
    share: PortShare,
    /// Call and local port of what is sent to an address that was described.
    places: HashMap<SocketAddr, (Vec<u8>, u16)>,
    forwarded: u32,
    dropped: BTreeMap<&'static str, u32>,
    /// What was forwarded to another place than it had in the capture.
    astray: u32,
}

impl Calls {
    fn replay(capture: &Capture) -> Calls {
        let mut calls = Calls::default();
        for datagram in &capture.datagrams {
            match Message::parse(&datagram.payload) {
                Some(message) => calls.signal(datagram, &message),
                None => calls.packet(datagram),
            }
        }
        calls
    }

    fn signal(&mut self, datagram: &Datagram, message: &Message<'_>) {
        let (Some(id), Some(method)) = (message.call_id(), message.cseq_method()) else { return };
        let key = CallKey(self.by_id.len() as u128);
        let (body, kind) = (message.body(), message.header(HeaderName::ContentType).unwrap_or_default());
        let carries = part::description(kind, body).is_some() && !body.is_empty();
        let status = match message.start() {
            StartLine::Request { .. } => 0,
            StartLine::Response { status } => status,
        };
        if !self.by_id.contains_key(id) && (method, status) == (b"INVITE", 0) {
            let call = Call { media: Media::new(), key, caller: datagram.source, offered: false };
            self.by_id.insert(id.to_vec(), call);
        }
        let Some(call) = self.by_id.get_mut(id) else { return };
        let side = if datagram.source == call.caller { Side::Caller } else { Side::Callee };
        let opens = matches!(method, b"INVITE" | b"UPDATE");
        let now = START + datagram.time;
        let mut ports = Reservation::new(&PORTS, &self.share, (Slot(0), call.key), now, now.0);
        if opens && status == 0 {
            call.offered = carries;
        }
        if carries {
            let answers = if status == 0 { !opens } else { call.offered };
            let done = if answers {
                call.media.answer(side, kind, body, &setup(), &mut ports)
            } else {
                call.media.offer(side, kind, body, &setup(), &mut ports)
            };
            done.unwrap_or_else(|error| panic!("frame {}: {error}", datagram.frame));
        }
        if opens && (200..300).contains(&status) {
            call.media.confirm(&mut ports);
        } else if opens && status >= 300 {
            call.media.rollback(side.other(), &setup(), &mut ports);
        }
        ports.into_changes().into_iter().for_each(|change| self.share.apply(change));
        self.learn_places(id);
    }

    fn learn_places(&mut self, id: &[u8]) {
        for line in self.by_id[id].media.summary().lines {
            for (end, sender) in [(&line.caller, &line.callee), (&line.callee, &line.caller)] {
                let Some(described) = &end.described else { continue };
                let described: SocketAddr = described.parse().expect("IP:PORT");
                self.places.insert(described, (id.to_vec(), sender.local_port));
                let next = SocketAddr::new(described.ip(), described.port().saturating_add(1));
                self.places.entry(next).or_insert((id.to_vec(), sender.local_port + 1));
            }
        }
    }

    fn packet(&mut self, datagram: &Datagram) {
        let Some((id, port)) = self.places.get(&datagram.destination) else { return };
        let media = &mut self.by_id.get_mut(id).expect("a call").media;
        let now = START + datagram.time;
        match media.on_packet(now, *port, datagram.source.into(), &datagram.payload, &setup()) {
            Relay::Forward { to, .. } => {
                self.forwarded += 1;
                self.astray += u32::from(SocketAddr::from(to) != datagram.destination);
            }
            Relay::Answer { .. } => panic!("nobody was shown an agent of ours"),
            Relay::Drop(reason) => *self.dropped.entry(Dropped::name(reason)).or_default() += 1,
        }
    }

    fn sides(&self) -> Vec<SideSummary> {
        let lines = self.by_id.values().flat_map(|call| call.media.summary().lines);
        lines.flat_map(|line| [line.caller, line.callee]).collect()
    }

    fn streams(&self) -> Vec<StreamSummary> {
        self.sides().into_iter().flat_map(|side| side.streams).collect()
    }
}

fn capture(data: &Path, file: &str) -> Capture {
    read(&data.join("pcap").join(file)).unwrap_or_else(|error| panic!("{error}"))
}

/// Jitter as RFC 3550 section 6.4.1 defines it, in the clock's units, at the end of a stream.
fn jitter(capture: &Capture, ssrc: u32, clock: f64) -> f64 {
    let (mut jitter, mut last): (f64, Option<f64>) = (0.0, None);
    for datagram in &capture.datagrams {
        let Some(rtp) = Rtp::new(&datagram.payload).filter(|rtp| rtp.ssrc() == ssrc) else { continue };
        let transit = datagram.time.0 as f64 * clock / 1e9 - f64::from(rtp.timestamp());
        if let Some(last) = last {
            let mut step = (transit - last).abs();
            if step > f64::from(u32::MAX / 2) {
                // The timestamp wrapped.
                step = (step - 4_294_967_296.0).abs();
            }
            jitter += (step - jitter) / 16.0;
        }
        last = Some(transit);
    }
    jitter
}

#[test]
fn impaired_streams_are_counted_as_they_were_impaired() {
    let Some(data) = common::shared_data() else { return };
    let rows = common::rows(&data.join("pcap/STREAMS.tsv"));
    let mut done: BTreeMap<(String, String), u32> = BTreeMap::new();
    for row in common::rows(&data.join("pcap/IMPAIRMENTS.tsv")) {
        *done.entry((row["file"].clone(), row["what_was_done"].clone())).or_default() += 1;
    }
    let files: BTreeSet<&String> = rows
        .iter()
        .map(|row| &row["file"])
        .filter(|f| f.starts_with("rtp_") || f.starts_with("ws-sip-rtp-"))
        .collect();
    assert!(files.len() >= 12, "only {files:?}");
    for file in files {
        let capture = capture(&data, file);
        let calls = Calls::replay(&capture);
        let streams = calls.streams();
        let theirs: Vec<_> = rows.iter().filter(|row| &row["file"] == file && row["mode"] == "sdp").collect();
        assert_eq!(streams.len(), theirs.len(), "{file}");
        let mut packets = 0;
        for row in &theirs {
            let ssrc = u32::from_str_radix(row["ssrc"].trim_start_matches("0x"), 16).expect("a SSRC");
            let ours = streams.iter().find(|s| s.ssrc == ssrc).unwrap_or_else(|| panic!("{file}: {ssrc:#x}"));
            assert_eq!(ours.packets.to_string(), row["packets"], "{file}");
            assert_eq!(ours.lost_net.to_string(), row["lost"], "{file}");
            packets += ours.packets;
            let clock = if ours.codec == "opus" { 48_000.0 } else { 8_000.0 };
            let wanted = jitter(&capture, ssrc, clock) * 1_000.0 / clock;
            // Whole units of the clock, and integer steps of 1/16.
            assert!((ours.jitter_ms - wanted).abs() < 0.3, "{file}: {} ms, not {wanted}", ours.jitter_ms);
            assert!(ours.mos.is_some_and(|mos| (1.0..4.5).contains(&mos)), "{file}: {ours:?}");
        }
        assert_eq!((calls.forwarded, calls.astray), (packets, 0), "{file}: {:?}", calls.dropped);
        if file.starts_with("rtp_") {
            let was = |what: &str| done.get(&(file.clone(), what.to_owned())).copied().unwrap_or(0);
            let sum = |figure: fn(&StreamSummary) -> u32| streams.iter().map(figure).sum::<u32>();
            assert_eq!(sum(|s| s.lost), was("drop"), "{file}");
            assert_eq!(sum(|s| s.duplicates), was("dup"), "{file}");
            assert_eq!(sum(|s| s.late), was("delayed_45ms"), "{file}");
        }
    }
}

/// Loss costs, and in bursts it costs more.
#[test]
fn quality_falls_as_it_should() {
    let Some(data) = common::shared_data() else { return };
    let mos = |file: &str| {
        let streams = Calls::replay(&capture(&data, file)).streams();
        streams[0].mos.expect("a voice codec")
    };
    let (clean, dup, loss) =
        (mos("ws-sip-rtp-g722.pcap"), mos("rtp_g722_dup3.pcap"), mos("rtp_g722_loss5.pcap"));
    let burst = mos("rtp_g722_burst_loss25.pcap");
    assert!((clean - 4.33).abs() < 0.02 && (dup - clean).abs() < 0.01, "{clean} {dup}");
    assert!(loss < clean - 0.3 && burst < clean - 0.3, "{loss} {burst}");
    assert!((mos("ws-sip-rtp-g729a.pcap") - 4.14).abs() < 0.03);
}

/// Keys in captures, as tshark names each event.
#[test]
fn keys_are_those_pressed() {
    let Some(data) = common::shared_data() else { return };
    let keys = |side: &SideSummary| side.dtmf.iter().map(|press| press.key.as_str()).collect::<String>();
    let sides = Calls::replay(&capture(&data, "rec-dtmf.pcap")).sides();
    let found: Vec<String> = sides.iter().map(keys).filter(|keys| !keys.is_empty()).collect();
    assert_eq!(found, ["15#"]);
    // These hold no signalling, or another relay's addresses: the test describes the streams.
    let streams = [
        ("ws-SIP_DTMF2.pcap", 0x5711_bf84, 96, "6789123"),
        ("ast-ulaw_dtmf_sll.pcap", 0x34d0_1d16, 101, "2013785496"),
        ("rtpproxy-dtmf.pcapng", 0x37ed_87f3, 101, "123456789*0#5"),
        ("rtpproxy-dtmf.pcapng", 0xee69_3e61, 101, "54321#"),
    ];
    for (file, ssrc, payload_type, wanted) in streams {
        let capture = capture(&data, file);
        let ours = |d: &&Datagram| Rtp::new(&d.payload).is_some_and(|rtp| rtp.ssrc() == ssrc);
        let packets: Vec<&Datagram> = capture.datagrams.iter().filter(ours).collect();
        let (mut media, share) = (Media::new(), PortShare::default());
        let mut ports = Reservation::new(&PORTS, &share, (Slot(0), CallKey(1)), START, 1);
        let body = |at: SocketAddr| {
            let (ip, port) = (at.ip(), at.port());
            let map = format!("a=rtpmap:{payload_type} telephone-event/8000\r\n");
            format!("v=0\r\nc=IN IP4 {ip}\r\nm=audio {port} RTP/AVP 0 8 {payload_type}\r\n{map}")
        };
        let (source, destination) = (body(packets[0].source), body(packets[0].destination));
        let kind = b"application/sdp";
        media.offer(Side::Caller, kind, source.as_bytes(), &setup(), &mut ports).expect("offered");
        media.answer(Side::Callee, kind, destination.as_bytes(), &setup(), &mut ports).expect("answered");
        let local = media.summary().lines[0].caller.local_port;
        for packet in &packets {
            let now = START + packet.time;
            media.on_packet(now, local, packet.source.into(), &packet.payload, &setup());
        }
        let side = media.summary().lines.remove(0).caller;
        assert_eq!(keys(&side), wanted, "{file}");
        assert_eq!(side.dtmf_events as usize, wanted.len(), "{file}");
        assert!(side.dtmf.iter().all(|press| (20..2_000).contains(&press.duration_ms)), "{file}: {side:?}");
        let counted: u32 = side.streams.iter().map(|s| s.packets).sum();
        assert_eq!(counted as usize, packets.len(), "{file}");
    }
}

/// Whether a rewritten description differs from `before` in the lines it may differ in; what is wrong with it otherwise.
fn judge(before: &[u8], after: &[u8], placed: &[bool]) -> Result<(), String> {
    let lines = |bytes: &[u8]| bytes.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let ice = ["a=candidate:", "a=ice-", "a=remote-candidates:", "a=end-of-candidates"];
    let begins = |line: &[u8], starts: &[&str]| starts.iter().any(|start| line.starts_with(start.as_bytes()));
    let mut after = lines(after).into_iter().peekable();
    let mut media = 0;
    for line in lines(before) {
        let shown = String::from_utf8_lossy(&line).into_owned();
        media += usize::from(line.starts_with(b"m="));
        let in_placed =
            if media == 0 { placed.contains(&true) } else { placed.get(media - 1) == Some(&true) };
        if after.peek() == Some(&line) {
            after.next();
            continue;
        }
        if in_placed && begins(&line, &ice) {
            continue;
        }
        // An address of its own, for media that shared one.
        if after
            .peek()
            .is_some_and(|line| *line == b"c=IN IP4 192.0.2.1\r\n" || *line == b"c=IN IP4 192.0.2.1\n")
            && !line.starts_with(b"c=")
        {
            after.next();
            if after.peek() == Some(&line) {
                after.next();
                continue;
            }
        }
        let new = after.next().ok_or_else(|| format!("{shown:?} is missing"))?;
        let may = ["c=", "m=", "a=rtcp:"].into_iter().find(|start| line.starts_with(start.as_bytes()));
        let right = in_placed && may.is_some_and(|start| new.starts_with(start.as_bytes()));
        if !right {
            return Err(format!("{shown:?} became {:?}", String::from_utf8_lossy(&new)));
        }
        if may == Some("m=") {
            // Only the port.
            let words = |line: &[u8]| line.split(|b| *b == b' ').map(<[u8]>::to_vec).collect::<Vec<_>>();
            let (mut old, mut new) = (words(&line), words(&new));
            (old[1], new[1]) = (Vec::new(), Vec::new());
            if old != new {
                return Err(format!("{shown:?} changed in more than its port"));
            }
        }
    }
    match after.next() {
        None => Ok(()),
        Some(line) if line.starts_with(b"c=IN IP4 192.0.2.1") => Ok(()),
        Some(line) => Err(format!("{:?} was added", String::from_utf8_lossy(&line))),
    }
}

/// Rewrites the description in a message's body, if there is one; counts it, and whether it could be read.
fn rewrite(bytes: &[u8], name: &str, counts: &mut (u32, u32), wrong: &mut Vec<String>) {
    let Some(message) = Message::parse(bytes) else { return };
    let kind = message.header(HeaderName::ContentType).unwrap_or_default();
    let Some(range) = part::description(kind, message.body()).filter(|range| !range.is_empty()) else {
        return;
    };
    let body = &message.body()[range];
    counts.0 += 1;
    let Ok(read) = Description::read(body) else { return };
    counts.1 += 1;
    let placed: Vec<bool> = read.media.iter().map(|m| m.port != 0 && m.transport.is_udp()).collect();
    let place = Placement { port: 30_000, rtcp: 30_001, agent: None };
    let places: Vec<Option<Placement>> = placed.iter().map(|placed| placed.then_some(place)).collect();
    let out = read.rewrite([192, 0, 2, 1].into(), Ice::Remove, &places);
    if let Err(what) = judge(body, &out, &placed) {
        wrong.push(format!("{name}: {what}"));
    }
    // As a call would take it, twice.
    let (mut media, share) = (Media::new(), PortShare::default());
    let mut ports = Reservation::new(&PORTS, &share, (Slot(0), CallKey(1)), START, 1);
    for side in [Side::Caller, Side::Callee] {
        let offered = media.offer(side, kind, message.body(), &setup(), &mut ports);
        let answered = media.answer(side.other(), kind, message.body(), &setup(), &mut ports);
        if offered.is_err() || answered.is_err() {
            wrong.push(format!("{name}: {offered:?} {answered:?}"));
        }
    }
}

#[test]
fn every_description_changes_in_the_lines_it_should() {
    let Some(data) = common::shared_data() else { return };
    let (mut counts, mut wrong) = ((0, 0), Vec::new());
    for row in common::rows(&data.join("pcap/INDEX.tsv")) {
        let capture = capture(&data, &row["file"]);
        for datagram in &capture.datagrams {
            let name = format!("{} frame {}", row["file"], datagram.frame);
            rewrite(&datagram.payload, &name, &mut counts, &mut wrong);
        }
    }
    let captured = counts;
    for row in common::rows(&data.join("torture/INDEX.tsv")) {
        let path = data.join("torture").join(&row["file"]);
        let Ok(bytes) = std::fs::read(&path) else { continue };
        rewrite(&bytes, &row["file"], &mut counts, &mut wrong);
        // Some files are captures.
        for datagram in decode(&path, bytes).into_iter().flat_map(|capture| capture.datagrams) {
            rewrite(&datagram.payload, &row["file"], &mut counts, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
    assert!(captured.0 >= 2_000 && captured.1 == captured.0, "{captured:?}");
    assert!(counts.0 >= captured.0 + 100 && counts.1 >= captured.1 + 90, "{counts:?}");
}

/// Every capture's calls, as a proxy would see them: nothing panics, nothing is sent to a place nobody named.
#[test]
fn every_capture_is_relayed() {
    let Some(data) = common::shared_data() else { return };
    let mut forwarded = 0;
    for row in common::rows(&data.join("pcap/INDEX.tsv")) {
        let calls = Calls::replay(&capture(&data, &row["file"]));
        forwarded += calls.forwarded;
        for side in calls.sides() {
            assert!(side.streams.len() <= 4, "{}", row["file"]);
            let packets: u32 = side.streams.iter().map(|s| s.packets).sum();
            assert!(packets == 0 || side.source.is_some(), "{}: {side:?}", row["file"]);
        }
    }
    assert!(forwarded > 10_000, "{forwarded}");
}
