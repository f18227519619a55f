//! Scripted parties on sockets: they speak SIP and RTP as far as the tests need it, and say again what is not answered.

use super::cluster::Local;
use super::{loud, until};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const SOON: Duration = Duration::from_secs(3);

/// A SIP message as text.
#[derive(Clone, Debug)]
pub(crate) struct Message(pub(crate) String);

impl Message {
    pub(crate) fn is(&self, start: &str) -> bool {
        self.0.starts_with(start)
    }

    /// The lines of a header, in their order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let head = self.0.split("\r\n\r\n").next().unwrap();
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    pub(crate) fn one(&self, name: &str) -> &str {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name} in {}", self.0);
        all[0]
    }

    /// Where the description says that media is taken.
    pub(crate) fn media(&self) -> SocketAddr {
        let (_, body) = self.0.split_once("\r\n\r\n").unwrap();
        let of = |start: &str| body.lines().find_map(|line| line.strip_prefix(start)).unwrap();
        let port = of("m=audio ").split(' ').next().unwrap().parse().unwrap();
        let (family, ip) = of("c=IN ").split_once(' ').unwrap();
        let ip: IpAddr = ip.parse().unwrap();
        assert_eq!(family == "IP6", ip.is_ipv6(), "{body}");
        SocketAddr::new(ip, port)
    }
}

/// Someone who speaks SIP and RTP.
pub(crate) struct Party {
    pub(crate) sip: UdpSocket,
    pub(crate) rtp: UdpSocket,
    sent: u16,
}

pub(crate) fn bound() -> UdpSocket {
    bound_at(Ipv4Addr::LOCALHOST.into())
}

pub(crate) fn bound_at(ip: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket
}

impl Party {
    pub(crate) fn new() -> Party {
        Party::on(Ipv4Addr::LOCALHOST.into())
    }

    pub(crate) fn on(ip: IpAddr) -> Party {
        Party { sip: bound_at(ip), rtp: bound_at(ip), sent: 0 }
    }

    pub(crate) fn at(&self) -> SocketAddr {
        self.sip.local_addr().unwrap()
    }

    pub(crate) fn description(&self) -> String {
        let at = self.rtp.local_addr().unwrap();
        let (ip, port, family) = (at.ip(), at.port(), if at.is_ipv6() { "IP6" } else { "IP4" });
        format!(
            "v=0\r\no=- 1 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n\
             a=rtpmap:0 PCMU/8000\r\n"
        )
    }

    /// The first message that begins so; others (repetitions, 100) are passed over.
    pub(crate) fn hear(&self, start: &str) -> (Message, SocketAddr) {
        self.listen(start, SOON).unwrap_or_else(|heard| panic!("no {start:?}, but {heard:#?}"))
    }

    pub(crate) fn listen(
        &self,
        start: &str,
        patience: Duration,
    ) -> Result<(Message, SocketAddr), Vec<String>> {
        self.listen_for(start, "", patience)
    }

    /// The first message that begins so and holds `part`; without one, what was heard instead.
    pub(crate) fn listen_for(
        &self,
        start: &str,
        part: &str,
        patience: Duration,
    ) -> Result<(Message, SocketAddr), Vec<String>> {
        let (deadline, mut heard, mut buffer) = (Instant::now() + patience, Vec::new(), [0; 4_096]);
        while Instant::now() < deadline {
            let Ok((len, from)) = self.sip.recv_from(&mut buffer) else { continue };
            let message = Message(String::from_utf8(buffer[..len].to_vec()).unwrap());
            if message.is(start) && message.0.contains(part) {
                return Ok((message, from));
            }
            heard.push(message.0);
        }
        Err(heard)
    }

    pub(crate) fn say(&self, to: SocketAddr, text: &str) {
        self.sip.send_to(text.as_bytes(), to).unwrap();
    }

    pub(crate) fn invite(&self, to: SocketAddr, call: &str) {
        self.invite_with(to, call, &self.description());
    }

    /// The same with another description.
    pub(crate) fn invite_with(&self, to: SocketAddr, call: &str, body: &str) {
        let (me, len) = (self.at(), body.len());
        self.say(
            to,
            &format!(
                "INVITE sip:{call}@{to} SIP/2.0\r\nVia: SIP/2.0/UDP {me};branch=z9hG4bK{call}1;rport\r\n\
                 Max-Forwards: 70\r\nFrom: <sip:alice@{me}>;tag=a{call}\r\nTo: <sip:{call}@{to}>\r\nCall-ID: {call}\r\n\
                 CSeq: 1 INVITE\r\nContact: <sip:alice@{me}>\r\nContent-Type: application/sdp\r\n\
                 Content-Length: {len}\r\n\r\n{body}"
            ),
        );
    }

    /// Answers a request as the callee.
    pub(crate) fn answer(&self, (request, from): &(Message, SocketAddr), status: &str, body: &str) {
        let copied = |name: &str| -> String {
            request.all(name).iter().map(|value| format!("{name}: {value}\r\n")).collect()
        };
        let to = request.one("To");
        let tag = if to.contains("tag=") { "" } else { ";tag=b1" };
        let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        let (via, record, me) = (copied("Via"), copied("Record-Route"), self.at());
        self.say(
            *from,
            &format!(
                "SIP/2.0 {status}\r\n{via}{record}From: {}\r\nTo: {to}{tag}\r\nCall-ID: {}\r\nCSeq: {}\r\n\
                 Contact: <sip:bob@{me}>\r\n{kind}Content-Length: {}\r\n\r\n{body}",
                request.one("From"),
                request.one("Call-ID"),
                request.one("CSeq"),
                body.len()
            ),
        );
    }

    /// A request within the dialog that `accepted` (a 200) has made, as the caller.
    pub(crate) fn request(&self, service: SocketAddr, accepted: &Message, method: &str, number: u32) {
        self.request_with(service, accepted, (method, number), "");
    }

    /// The same with a description, unless `body` is empty.
    pub(crate) fn request_with(
        &self,
        service: SocketAddr,
        accepted: &Message,
        (method, number): (&str, u32),
        body: &str,
    ) {
        let contact = accepted.one("Contact").trim_matches(['<', '>']);
        let routes: String =
            accepted.all("Record-Route").iter().rev().map(|r| format!("Route: {r}\r\n")).collect();
        let (me, call) = (self.at(), accepted.one("Call-ID"));
        let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        self.say(
            service,
            &format!(
                "{method} {contact} SIP/2.0\r\nVia: SIP/2.0/UDP {me};branch=z9hG4bK{call}{method}{number};rport\r\n\
                 Max-Forwards: 70\r\n{routes}From: {}\r\nTo: {}\r\nCall-ID: {call}\r\nCSeq: {number} {method}\r\n\
                 Contact: <sip:alice@{me}>\r\n{kind}Content-Length: {}\r\n\r\n{body}",
                accepted.one("From"),
                accepted.one("To"),
                body.len()
            ),
        );
    }

    /// CANCEL, or the ACK of a refusal whose To is `to`, of the INVITE of `call`.
    pub(crate) fn follow(&self, service: SocketAddr, call: &str, method: &str, to: &str) {
        let me = self.at();
        self.say(
            service,
            &format!(
                "{method} sip:{call}@{service} SIP/2.0\r\nVia: SIP/2.0/UDP {me};branch=z9hG4bK{call}1;rport\r\n\
                 Max-Forwards: 70\r\nFrom: <sip:alice@{me}>;tag=a{call}\r\nTo: {to}\r\nCall-ID: {call}\r\n\
                 CSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
            ),
        );
    }

    /// Sends one RTP packet that nobody else sends.
    pub(crate) fn talk(&mut self, to: SocketAddr) -> Vec<u8> {
        self.sent += 1;
        let mut packet = vec![0x80, 0];
        packet.extend_from_slice(&self.sent.to_be_bytes());
        packet.extend_from_slice(&(u32::from(self.sent) * 160).to_be_bytes());
        packet.extend_from_slice(&u32::from(self.at().port()).to_be_bytes());
        packet.extend_from_slice(&[self.sent as u8; 160]);
        self.rtp.send_to(&packet, to).unwrap();
        packet
    }

    /// Whether this packet comes from there; what was late before it is passed over.
    pub(crate) fn hears(&self, packet: &[u8], from: SocketAddr, patience: Duration) -> bool {
        let mut buffer = [0; 2_048];
        self.rtp.set_read_timeout(Some(patience)).unwrap();
        while let Ok((len, source)) = self.rtp.recv_from(&mut buffer) {
            assert_eq!(source, from);
            if buffer[..len] == *packet {
                return true;
            }
        }
        false
    }
}

/// A call in progress.
pub(crate) struct Call {
    pub(crate) alice: Party,
    pub(crate) bob: Party,
    pub(crate) accepted: Message,
    /// The media ports that each was told.
    pub(crate) for_alice: SocketAddr,
    pub(crate) for_bob: SocketAddr,
}

impl Call {
    pub(crate) fn set_up(service: SocketAddr, alice: Party, bob: Party, id: &str) -> Call {
        alice.invite(service, id);
        let invited = bob.hear("INVITE ");
        bob.answer(&invited, "180 Ringing", "");
        let (ringing, from) = alice.hear("SIP/2.0 180");
        assert_eq!(from, service);
        assert_eq!(ringing.all("Via").len(), 1, "{}", ringing.0);
        bob.answer(&invited, "200 OK", &bob.description());
        let (accepted, _) = alice.hear("SIP/2.0 200");
        alice.request(service, &accepted, "ACK", 1);
        bob.hear("ACK ");
        let (for_alice, for_bob) = (accepted.media(), invited.0.media());
        assert!(for_alice.ip() == service.ip() && for_bob.ip() == service.ip() && for_alice != for_bob);
        Call { alice, bob, accepted, for_alice, for_bob }
    }

    /// One packet each way; how many came through as they were, from where they should.
    pub(crate) fn talk(&mut self, patience: Duration) -> usize {
        let (to_bob, to_alice) = (self.alice.talk(self.for_alice), self.bob.talk(self.for_bob));
        let at_bob = self.bob.hears(&to_bob, self.for_bob, patience);
        let at_alice = self.alice.hears(&to_alice, self.for_alice, patience);
        usize::from(at_bob) + usize::from(at_alice)
    }

    pub(crate) fn hang_up(&self, service: SocketAddr) {
        hang_up([&self.alice, &self.bob], service, &self.accepted, 2);
    }
}

/// The first says BYE until it is answered, as who was just taken over may have missed one.
pub(crate) fn hang_up([alice, bob]: [&Party; 2], service: SocketAddr, accepted: &Message, number: u32) {
    let said_by = |said: usize| if said == 0 { "a call that was over" } else { "BYE" };
    for said in 0..4 {
        alice.request(service, accepted, "BYE", number);
        if let Ok(bye) = bob.listen("BYE ", Duration::from_millis(500)) {
            bob.answer(&bye, "200 OK", "");
            alice.listen_for("SIP/2.0 200", " BYE", SOON).unwrap();
            return;
        }
        println!("{} {said} was lost", said_by(said));
    }
    panic!("no BYE comes through");
}

/// Talks until `all` packets of a round come through, after an owner's death.
pub(crate) fn talk_again(all: usize, within: Duration, mut talk: impl FnMut(Duration) -> usize) {
    let (began, mut silent) = (Instant::now(), 0);
    while talk(Duration::from_millis(20)) < all {
        silent += 1;
        assert!(began.elapsed() < within, "no media after the owner's death");
    }
    println!("owner killed: {silent} rounds without all media, {:?}", began.elapsed());
}

/// Whether there is IPv6 on loopback; if not, the test that is named says so.
pub(crate) fn has_ipv6(test: &str) -> bool {
    let bound = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0));
    bound.inspect_err(|error| loud(&format!("{test}: there is none on loopback: {error}"))).is_ok()
}

/// The records of a file, once there are `count`; and no more come.
pub(crate) fn records(file: &Path, count: usize) -> Vec<Value> {
    let read = || std::fs::read_to_string(file).unwrap_or_default();
    until(SOON, || read().lines().count() >= count);
    std::thread::sleep(Duration::from_millis(500));
    let records: Vec<Value> = read().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), count, "{records:#?}");
    records
}

/// Whether all media ports are open somewhere.
pub(crate) fn wait_until_open(cluster: &Local) {
    let all = |id: u16| {
        let status = cluster.nodes.status(id);
        let counts: Vec<u64> = status["shards"][0]["media_ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|count| count.as_u64().unwrap())
            .collect();
        counts[1] > 0 && counts[0] == counts[1]
    };
    let began = Instant::now();
    let open = until(Duration::from_secs(10), || cluster.nodes.nodes.iter().any(|node| all(node.id)));
    assert!(open, "{:?}", cluster.nodes.nodes.iter().map(|n| cluster.nodes.status(n.id)).collect::<Vec<_>>());
    println!("media ports open after {:?}", began.elapsed());
}

/// The node that holds the service address.
pub(crate) fn owner(cluster: &Local) -> u16 {
    cluster.nodes.status(1)["control"]["map"]["addresses"][0]["owner"].as_u64().unwrap() as u16
}

pub(crate) fn start(bob: &Party, cdr: &Path, more: &[&str]) -> Local {
    let (route, cdr) = (format!("default={}", bob.at()), cdr.display().to_string());
    let mut args = vec!["--app", "sip", "--route", &route, "--cdr", &cdr];
    args.extend_from_slice(more);
    let cluster = Local::start(&args);
    wait_until_open(&cluster);
    cluster
}
