//! Calls through a cluster of real processes on loopback: scripted parties on sockets, their media through the cluster's
//! ports, one record for each call, whoever dies in between.

mod harness;

use harness::cluster::{Local, sum};
use harness::{Folder, Otherwise, run, sandboxed, tandem, until};
use serde_json::Value;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(3);

/// A SIP message as text.
#[derive(Clone, Debug)]
struct Message(String);

impl Message {
    fn is(&self, start: &str) -> bool {
        self.0.starts_with(start)
    }

    /// The lines of a header, in their order.
    fn all(&self, name: &str) -> Vec<&str> {
        let head = self.0.split("\r\n\r\n").next().unwrap();
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    fn one(&self, name: &str) -> &str {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name} in {}", self.0);
        all[0]
    }

    /// Where the description says that media is taken.
    fn media(&self) -> SocketAddr {
        let (_, body) = self.0.split_once("\r\n\r\n").unwrap();
        let of = |start: &str| body.lines().find_map(|line| line.strip_prefix(start)).unwrap();
        let port = of("m=audio ").split(' ').next().unwrap();
        format!("{}:{port}", of("c=IN IP4 ")).parse().unwrap()
    }
}

/// Someone who speaks SIP and RTP.
struct Party {
    sip: UdpSocket,
    rtp: UdpSocket,
    sent: u16,
}

fn bound() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket
}

impl Party {
    fn new() -> Party {
        Party { sip: bound(), rtp: bound(), sent: 0 }
    }

    fn at(&self) -> SocketAddr {
        self.sip.local_addr().unwrap()
    }

    fn description(&self) -> String {
        let port = self.rtp.local_addr().unwrap().port();
        format!(
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP 0\r\n\
             a=rtpmap:0 PCMU/8000\r\n"
        )
    }

    /// The first message that begins so; others (repetitions, 100) are passed over.
    fn hear(&self, start: &str) -> (Message, SocketAddr) {
        self.listen(start, SOON).unwrap_or_else(|heard| panic!("no {start:?}, but {heard:#?}"))
    }

    fn listen(&self, start: &str, patience: Duration) -> Result<(Message, SocketAddr), Vec<String>> {
        let (deadline, mut heard, mut buffer) = (Instant::now() + patience, Vec::new(), [0; 4_096]);
        while Instant::now() < deadline {
            let Ok((len, from)) = self.sip.recv_from(&mut buffer) else { continue };
            let message = Message(String::from_utf8(buffer[..len].to_vec()).unwrap());
            if message.is(start) {
                return Ok((message, from));
            }
            heard.push(message.0);
        }
        Err(heard)
    }

    fn say(&self, to: SocketAddr, text: &str) {
        self.sip.send_to(text.as_bytes(), to).unwrap();
    }

    fn invite(&self, to: SocketAddr, call: &str) {
        let (me, body) = (self.at(), self.description());
        let len = body.len();
        self.say(
            to,
            &format!(
                "INVITE sip:bob@{to} SIP/2.0\r\nVia: SIP/2.0/UDP {me};branch=z9hG4bK{call}1;rport\r\n\
                 Max-Forwards: 70\r\nFrom: <sip:alice@{me}>;tag=a{call}\r\nTo: <sip:bob@{to}>\r\nCall-ID: {call}\r\n\
                 CSeq: 1 INVITE\r\nContact: <sip:alice@{me}>\r\nContent-Type: application/sdp\r\n\
                 Content-Length: {len}\r\n\r\n{body}"
            ),
        );
    }

    /// Answers a request as the callee.
    fn answer(&self, (request, from): &(Message, SocketAddr), status: &str, body: &str) {
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
    fn request(&self, service: SocketAddr, accepted: &Message, method: &str, number: u32) {
        let contact = accepted.one("Contact").trim_matches(['<', '>']);
        let routes: String =
            accepted.all("Record-Route").iter().rev().map(|r| format!("Route: {r}\r\n")).collect();
        let (me, call) = (self.at(), accepted.one("Call-ID"));
        self.say(
            service,
            &format!(
                "{method} {contact} SIP/2.0\r\nVia: SIP/2.0/UDP {me};branch=z9hG4bK{call}{method}{number};rport\r\n\
                 Max-Forwards: 70\r\n{routes}From: {}\r\nTo: {}\r\nCall-ID: {call}\r\nCSeq: {number} {method}\r\n\
                 Content-Length: 0\r\n\r\n",
                accepted.one("From"),
                accepted.one("To")
            ),
        );
    }

    /// Sends one RTP packet that nobody else sends.
    fn talk(&mut self, to: SocketAddr) -> Vec<u8> {
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
    fn hears(&self, packet: &[u8], from: SocketAddr, patience: Duration) -> bool {
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
struct Call {
    alice: Party,
    bob: Party,
    accepted: Message,
    /// The media ports that each was told.
    for_alice: SocketAddr,
    for_bob: SocketAddr,
}

impl Call {
    fn set_up(service: SocketAddr, alice: Party, bob: Party, id: &str) -> Call {
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
    fn talk(&mut self, patience: Duration) -> usize {
        let (to_bob, to_alice) = (self.alice.talk(self.for_alice), self.bob.talk(self.for_bob));
        let at_bob = self.bob.hears(&to_bob, self.for_bob, patience);
        let at_alice = self.alice.hears(&to_alice, self.for_alice, patience);
        usize::from(at_bob) + usize::from(at_alice)
    }

    fn hang_up(&self, service: SocketAddr) {
        let said_by = |said: usize| if said == 0 { "a call that was over" } else { "BYE" };
        for said in 0..4 {
            self.alice.request(service, &self.accepted, "BYE", 2);
            if let Ok(bye) = self.bob.listen("BYE ", Duration::from_millis(500)) {
                self.bob.answer(&bye, "200 OK", "");
                self.alice.hear("SIP/2.0 200");
                return;
            }
            println!("{} {said} was lost", said_by(said));
        }
        panic!("no BYE comes through");
    }
}

/// The records of a file, once there are `count`; and no more come.
fn records(file: &Path, count: usize) -> Vec<Value> {
    let read = || std::fs::read_to_string(file).unwrap_or_default();
    until(SOON, || read().lines().count() >= count);
    std::thread::sleep(Duration::from_millis(500));
    let records: Vec<Value> = read().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), count, "{records:#?}");
    records
}

/// Whether all media ports are open somewhere.
fn wait_until_open(cluster: &Local) {
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
fn owner(cluster: &Local) -> u16 {
    cluster.nodes.status(1)["control"]["map"]["addresses"][0]["owner"].as_u64().unwrap() as u16
}

fn start(bob: &Party, cdr: &Path, more: &[&str]) -> Local {
    let (route, cdr) = (format!("default={}", bob.at()), cdr.display().to_string());
    let mut args = vec!["--app", "sip", "--route", &route, "--cdr", &cdr];
    args.extend_from_slice(more);
    let cluster = Local::start(&args);
    wait_until_open(&cluster);
    cluster
}

#[test]
fn a_call_with_media_through_three_nodes_is_recorded_once() {
    sandboxed("a_call_with_media_through_three_nodes_is_recorded_once", &[], Otherwise::RunHere, || {
        let (folder, bob) = (Folder::new(), Party::new());
        let cdr = folder.join("cdr");
        let cluster = start(&bob, &cdr, &["--shards", "2", "--media-ports", "21000-22999"]);
        let mut call = Call::set_up(cluster.service, Party::new(), bob, "once");
        let through: usize = (0..50).map(|_| call.talk(SOON)).sum();
        assert_eq!(through, 100);

        // Nobody has these ports: what comes there is not even logged.
        let used = [call.for_alice.port() / 2, call.for_bob.port() / 2];
        let unused = (22_000..22_900).filter(|port| !used.contains(&(port / 2)));
        for port in unused.take(8) {
            call.alice.rtp.send_to(&[0x80; 40], SocketAddr::new(cluster.service.ip(), port)).unwrap();
        }
        let strays = || sum(&cluster.nodes.status(owner(&cluster)), "engine", "turned_away_no_call");
        assert!(until(SOON, || strays() == 8), "{}", strays());

        let mut status = tandem();
        status.args(["status", "--at", &cluster.nodes.node(1).control.to_string()]);
        let said = run(&mut status, Duration::from_secs(5)).out;
        for part in ["calls       1 in progress, ", "targets     1 up"] {
            assert!(said.contains(part), "{part:?} in {said}");
        }
        call.hang_up(cluster.service);
        let record = &records(&cdr, 1)[0];
        println!("{record:#}");
        assert_eq!(record["call_id"], "once");
        cluster.interrupt();
    });
}

#[test]
fn a_call_goes_on_when_its_owner_is_killed() {
    sandboxed("a_call_goes_on_when_its_owner_is_killed", &[], Otherwise::RunHere, || {
        let (folder, bob) = (Folder::new(), Party::new());
        let cdr = folder.join("cdr");
        let cluster = start(&bob, &cdr, &["--shards", "1"]);
        let mut call = Call::set_up(cluster.service, Party::new(), bob, "survivor");
        assert_eq!((0..10).map(|_| call.talk(SOON)).sum::<usize>(), 20);
        cluster.nodes.kill_engine(owner(&cluster));
        let (began, mut silent) = (Instant::now(), 0);
        while call.talk(Duration::from_millis(20)) < 2 {
            silent += 1;
            assert!(began.elapsed() < Duration::from_secs(5), "no media after the owner's death");
        }
        println!("owner killed: {silent} rounds without media, {:?}", began.elapsed());
        let through: Vec<usize> = (0..10).map(|_| call.talk(SOON)).collect();
        assert_eq!(
            through,
            [2; 10],
            "{:?}",
            cluster
                .nodes
                .nodes
                .iter()
                .map(|n| cluster.nodes.status(n.id))
                .map(|s| s["shards"][0]["io"]["dropped"].clone())
                .collect::<Vec<_>>()
        );
        call.hang_up(cluster.service);
        let record = &records(&cdr, 1)[0];
        assert!(record["takeovers"].as_u64().unwrap() >= 1, "{record:#}");
        cluster.interrupt();
    });
}

#[test]
fn routes_are_read_again_and_bad_ones_change_nothing() {
    sandboxed("routes_are_read_again_and_bad_ones_change_nothing", &[], Otherwise::RunHere, || {
        let (folder, bob, carol) = (Folder::new(), Party::new(), Party::new());
        let routes = folder.join("routes");
        std::fs::write(&routes, format!("default {}\n", bob.at())).unwrap();
        let file = routes.display().to_string();
        let cluster = Local::start(&["--app", "sip", "--routes", &file, "--shards", "2"]);
        let all: Vec<String> = cluster.nodes.nodes.iter().map(|node| node.control.to_string()).collect();
        let reload = || run(tandem().args(["reload", "--at", &all.join(",")]), Duration::from_secs(10));
        Party::new().invite(cluster.service, "first");
        bob.hear("INVITE ");

        std::fs::write(&routes, "default nowhere.example\n").unwrap();
        let refused = reload();
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        for part in ["REFUSED", "line 1", "nowhere.example"] {
            assert!(refused.out.contains(part), "{part} in {refused:?}");
        }
        Party::new().invite(cluster.service, "second");
        bob.hear("INVITE ");

        std::fs::write(&routes, format!("default {}\n", carol.at())).unwrap();
        let reloaded = reload();
        assert!(reloaded.status.success(), "{reloaded:?}");
        assert!(reloaded.out.contains(" 1 targets, 32 slots told"), "{reloaded:?}");
        Party::new().invite(cluster.service, "third");
        carol.hear("INVITE ");

        // As an operator's script does it. Pings are not answered: every slot hears of it, whichever one pings.
        let pings = "ping 1s\nping-timeout 100ms\ndown-after 1\n";
        std::fs::write(&routes, format!("default {}\n{pings}", bob.at())).unwrap();
        for node in &cluster.nodes.nodes {
            harness::sh(&format!("kill -HUP {}", node.pid));
        }
        let back = until(SOON, || {
            Party::new()
                .invite(cluster.service, &format!("fourth{:?}", Instant::now()).replace([' ', ':'], ""));
            bob.listen("INVITE ", Duration::from_millis(200)).is_ok()
        });
        assert!(back, "routes are not read on SIGHUP");
        let down = || {
            let statuses = cluster.nodes.nodes.iter().map(|node| cluster.nodes.status(node.id));
            let shards: Vec<Value> = statuses.flat_map(|s| s["shards"].as_array().unwrap().clone()).collect();
            let owning: Vec<_> = shards.iter().filter(|s| s["engine"]["slots_owned"] != 0).collect();
            owning.len() == 2 && owning.iter().all(|shard| shard["app"]["targets_down"] == 1)
        };
        assert!(until(SOON, down), "a silent target is not down");
        cluster.interrupt();
    });
}

#[test]
fn calls_over_the_limit_are_turned_away_and_the_others_go_on() {
    sandboxed("calls_over_the_limit_are_turned_away_and_the_others_go_on", &[], Otherwise::RunHere, || {
        let (folder, bob) = (Folder::new(), Party::new());
        let cluster = start(&bob, &folder.join("cdr"), &["--shards", "1", "--source-cps", "2"]);
        let alice = Party::new();
        for call in 0..8 {
            alice.invite(cluster.service, &format!("flood{call}"));
        }
        let mut refused = Vec::new();
        while let Ok((answer, _)) = alice.listen("SIP/2.0 503", Duration::from_millis(300)) {
            assert!(answer.one("Retry-After").parse::<u32>().unwrap() > 0);
            refused.push(answer.one("Call-ID").to_owned());
        }
        refused.sort_unstable();
        refused.dedup();
        assert_eq!(refused.len(), 6, "{refused:?}");
        let owner = cluster.nodes.nodes.iter().map(|node| cluster.nodes.status(node.id));
        let counted: u64 = owner.map(|status| sum(&status, "engine", "turned_away_source_rate")).sum();
        assert!(counted >= 6, "{counted}");
        std::thread::sleep(Duration::from_millis(1_500));
        while bob.sip.recv(&mut [0; 4_096]).is_ok() {}
        Call::set_up(cluster.service, Party::new(), bob, "later").hang_up(cluster.service);
        cluster.interrupt();
    });
}
