//! Datagrams that no honest sender sends, on every port of a cluster under load; and nodes that do not belong to it.

mod harness;

use harness::cluster::{Local, Node, Nodes, sum};
use harness::load::Replay;
use harness::{Otherwise, Process, assert_no_panic, loud, sandboxed, sh, tandem, until};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;
use tandem::types::{Boot, NodeId};
use tandem::wire::datagram::{HEADER_LEN, Kind, TAG_LEN};
use tandem::wire::seal::{ClusterKey, Sealer};

const KEY: &str = "00112233445566778899aabbccddeeff";
const OTHER_KEY: &str = "ffeeddccbbaa99887766554433221100";

/// Sends UDP datagrams under any source address (raw(7): root only).
struct Forger(Socket);

impl Forger {
    fn new() -> Option<Forger> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).ok()?;
        socket.set_header_included_v4(true).ok()?;
        Some(Forger(socket))
    }

    fn send(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
        let length = 8 + payload.len() as u16;
        // The kernel fills in the total length, the identification and the checksum.
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend_from_slice(&from.ip().octets());
        packet.extend_from_slice(&to.ip().octets());
        packet.extend_from_slice(&from.port().to_be_bytes());
        packet.extend_from_slice(&to.port().to_be_bytes());
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(payload);
        self.0.send_to(&packet, &SockAddr::from(SocketAddr::from(to))).unwrap();
    }
}

/// Steele, Lea, Flood: SplitMix64; the same numbers in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

/// A datagram as node `from` would seal it, in a life that is newer than its real one.
fn sealed(key: &str, from: u16, kind: Kind, channel: u16, plaintext: &[u8]) -> Vec<u8> {
    let key = ClusterKey::from_hex(key).unwrap();
    let mut sealer = Sealer::new(&key, NodeId(from), Boot(u64::MAX >> 1), channel);
    let mut datagram = vec![0; HEADER_LEN];
    datagram.extend_from_slice(plaintext);
    datagram.resize(datagram.len() + TAG_LEN, 0);
    sealer.seal(kind, 0, &mut datagram);
    datagram
}

/// One hostile datagram from `from` for the port of `channel`: none of them is valid.
fn hostile(numbers: &mut Numbers, from: u16, channel: u16) -> Vec<u8> {
    let kind = if channel == 0 { Kind::Control } else { Kind::Shard };
    let length = numbers.below(1_300);
    let plaintext = numbers.bytes(length);
    let genuine = sealed(KEY, from, kind, channel, &plaintext);
    match numbers.below(6) {
        0 => {
            let length = numbers.below(1_472);
            numbers.bytes(length)
        }
        1 => sealed(OTHER_KEY, from, kind, channel, &plaintext),
        2 => genuine[..numbers.below(genuine.len())].to_vec(),
        3 => {
            let mut damaged = genuine;
            let at = numbers.below(damaged.len());
            damaged[at] ^= 1 << numbers.below(8);
            damaged
        }
        4 => sealed(KEY, 50, kind, channel, &plaintext),
        _ => {
            let mut other = genuine;
            other[numbers.below(2)] = 200;
            other
        }
    }
}

/// What a client might send that no client should.
fn nonsense(numbers: &mut Numbers) -> Vec<u8> {
    let message = b"INVITE sip:b@example SIP/2.0\r\nCall-ID: hostile@example\r\nCSeq: 1 INVITE\r\nContent-Length: 900000\r\n\r\n";
    match numbers.below(5) {
        0 => Vec::new(),
        1 => {
            let length = numbers.below(1_400);
            numbers.bytes(length)
        }
        2 => message[..numbers.below(message.len())].to_vec(),
        3 => numbers.bytes(65_507),
        _ => {
            let mut rtp = numbers.bytes(13);
            rtp[0] = 0xbf;
            rtp
        }
    }
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { panic!("{address}") };
    address
}

fn port_of(node: &Node, channel: u16) -> SocketAddrV4 {
    let control = v4(node.control);
    SocketAddrV4::new(*control.ip(), control.port() + channel)
}

/// Floods every port of every node until told to end; returns how many datagrams that were.
fn flood(nodes: Vec<Node>, service: SocketAddr, channels: u16, over: &AtomicBool) -> u64 {
    let (forger, mut numbers, mut sent) = (Forger::new(), Numbers(7), 0);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    while !over.load(Ordering::Relaxed) {
        for to in &nodes {
            for channel in 0..channels {
                let from = &nodes[numbers.below(nodes.len())];
                let datagram = hostile(&mut numbers, from.id, channel);
                // Reports of earlier datagrams to closed ports come back here.
                let _ = stranger.send_to(&datagram, SocketAddr::from(port_of(to, channel)));
                if let Some(forger) = forger.as_ref().filter(|_| from.id != to.id) {
                    forger.send(port_of(from, channel), port_of(to, channel), &datagram);
                }
                sent += 1;
            }
        }
        let _ = stranger.send_to(&nonsense(&mut numbers), service);
        sleep(Duration::from_micros(500));
    }
    sent
}

#[test]
fn hostile_datagrams_on_every_port_harm_nobody() {
    sandboxed("hostile_datagrams_on_every_port_harm_nobody", &[], Otherwise::RunHere, || {
        let cluster = Local::start(&["--shards", "2", "--cluster-key", KEY]);
        let over = Arc::new(AtomicBool::new(false));
        let (nodes, service, told) = (cluster.nodes.nodes.clone(), cluster.service, over.clone());
        let flooder = std::thread::spawn(move || flood(nodes, service, 3, &told));
        let report = Replay::start(cluster.service, 50, 3.0).finish();
        over.store(true, Ordering::Relaxed);
        let sent = flooder.join().unwrap();
        println!("{sent} hostile datagrams; {}", report.line());
        assert!(sent > 1_000, "{sent}");
        report.assert_clean("under hostile datagrams");
        cluster.nodes.assert_agree(&[1, 2, 3]);
        let spoofed = Forger::new().is_some();
        if !spoofed {
            loud("datagrams under a peer's address (raw sockets need root)");
        }
        for id in [1, 2, 3] {
            let status = cluster.nodes.status(id);
            let control = &status["io"]["dropped"]["not_opened"];
            for reason in ["short", "version", "kind", "unknown_node", "forged"] {
                assert!(control[reason].as_u64().unwrap() > 0, "node {id}, {reason}: {control}");
                let shards = sum(&status, "io", &format!("dropped.not_opened.{reason}"));
                assert!(!spoofed || shards > 0, "node {id}, shards, {reason}: {status}");
            }
            let joined = status["control"]["peers"].as_array().unwrap().iter().all(|p| p["joined"] == true);
            assert!(joined, "a forged life put out a real one: {status}");
        }
        let owner = cluster.nodes.status(1);
        let too_long = sum(&owner, "engine", "drop_too_long") + sum(&owner, "io", "dropped.client_too_long");
        assert!(too_long > 0, "datagrams that no entry can hold are counted: {owner}");
        cluster.interrupt();
    });
}

/// Three nodes by hand, of which the third has other settings; two of them make the cluster.
struct Odd {
    processes: Vec<Process>,
    nodes: Nodes,
}

impl Odd {
    fn start(third: (&str, &str)) -> Odd {
        let at = |id: u16| -> SocketAddr { format!("127.0.0.1:{}", 7_000 + 100 * id).parse().unwrap() };
        let list: Vec<_> = (1..=3).map(|id| format!("{id}@host{id}={}", at(id))).collect();
        let (mut processes, mut nodes) = (Vec::new(), Vec::new());
        for id in 1..=3 {
            let mut command = tandem();
            command.args(["node", "--node", &id.to_string(), "--nodes", &list.join(","), "--shards", "1"]);
            command.args(["--service", "127.0.0.1:5060", "--pin", "off"]).env("TANDEM_CLUSTER_KEY", KEY);
            if id == 3 {
                command.env(third.0, third.1);
            }
            let process = Process::start(&mut command);
            nodes.push(Node { id, pid: process.pid(), control: at(id) });
            processes.push(process);
        }
        let nodes = Nodes { nodes, key: ClusterKey::from_hex(KEY).unwrap() };
        let met = until(Duration::from_secs(10), || nodes.met(1, 1) && nodes.met(2, 1));
        assert!(met, "{}", nodes.status(1));
        nodes.wait_until_served();
        Odd { processes, nodes }
    }

    /// What a node has said on standard error until its end.
    fn end(self) -> Vec<String> {
        let mut said = Vec::new();
        for process in self.processes {
            sh(&format!("kill -TERM {}", process.pid()));
            let ended = process.finish(Duration::from_secs(10));
            assert!(ended.status.success(), "{ended:?}");
            assert_no_panic(&ended.err);
            said.push(ended.err);
        }
        said
    }
}

/// Two nodes serve without the third.
fn serves_without_the_third(name: &str, odd: &Odd) {
    let report = Replay::start("127.0.0.1:5060".parse().unwrap(), 50, 1.5).finish();
    report.assert_clean(name);
    odd.nodes.assert_agree(&[1, 2]);
    assert!(odd.nodes.met(1, 1) && odd.nodes.met(2, 1), "the third has not joined");
}

#[test]
fn a_node_with_another_key_never_joins() {
    sandboxed("a_node_with_another_key_never_joins", &[], Otherwise::RunHere, || {
        let odd = Odd::start(("TANDEM_CLUSTER_KEY", OTHER_KEY));
        serves_without_the_third("another key", &odd);
        let status = odd.nodes.status(1);
        let forged = &status["io"]["dropped"]["not_opened"]["forged"];
        assert!(forged.as_u64().unwrap() > 100, "each of its beats is counted: {status}");
        for (id, said) in (1..).zip(odd.end()) {
            let told =
                said.lines().filter(|line| line.contains("WARN") && line.contains("TANDEM_CLUSTER_KEY"));
            assert_eq!(told.count(), 1, "node {id} says once what is wrong: {said}");
        }
    });
}

#[test]
fn a_node_with_another_cluster_wide_setting_never_joins() {
    sandboxed("a_node_with_another_cluster_wide_setting_never_joins", &[], Otherwise::RunHere, || {
        for (name, ours, theirs) in [("R", "3", "2"), ("SLOTS", "1024", "64")] {
            let odd = Odd::start((&format!("TANDEM_{name}"), theirs));
            serves_without_the_third(name, &odd);
            let status = odd.nodes.status(1);
            let refused = &status["control"]["peers"][1]["refused"];
            let wanted = format!("{name} is {theirs} there and {ours} here");
            assert!(refused.as_str().is_some_and(|why| why.contains(&wanted)), "{status}");
            let said = odd.end();
            let mirrored = format!("{name} is {ours} there and {theirs} here");
            for (id, wanted) in [(1, &wanted), (2, &wanted), (3, &mirrored)] {
                let said = &said[id - 1];
                let told = said.lines().any(|line| line.contains("WARN") && line.contains(wanted.as_str()));
                assert!(told, "node {id} names the setting and both values, {wanted}: {said}");
            }
        }
    });
}
