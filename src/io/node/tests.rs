//! Whole nodes in one process, on loopback addresses of this test's own.

use super::*;
use crate::io::operator::{DIGESTS, STATUS, ask};
use crate::wire::echo;
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

/// A cluster of three nodes on two hosts, on addresses that no other test or process has.
struct Cluster {
    net: String,
    pairs: Vec<(&'static str, String)>,
}

impl Cluster {
    fn new(test: u8, more: &[(&'static str, &str)]) -> Cluster {
        let pid = std::process::id();
        let net = format!("127.{}.{}", 64 + pid % 128, (pid / 128 + u32::from(test) * 37) % 256);
        let nodes: Vec<String> =
            (1..=3).map(|id| format!("{id}@host{}={net}.{id}:7100", id.min(2))).collect();
        let folder = std::env::temp_dir().join(format!("tandem-node-test-{pid}-{test}"));
        // What an earlier test of the same name has left.
        let _ = std::fs::remove_dir_all(&folder);
        let fixed = [
            ("NODES", nodes.join(",")),
            ("SERVICE", format!("{net}.100:5060,{net}.100:5061")),
            ("SLOTS", "32".to_owned()),
            ("SHARDS", "2".to_owned()),
            ("PIN", "off".to_owned()),
            ("DIGEST_EVERY", "8".to_owned()),
            ("RCVBUF", "256K".to_owned()),
            ("SNDBUF", "256K".to_owned()),
            ("DATA_DIR", folder.join("data").to_string_lossy().into_owned()),
            ("RUN_DIR", folder.join("run").to_string_lossy().into_owned()),
        ];
        let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
        Cluster { net, pairs: fixed.into_iter().chain(more).collect() }
    }

    fn settings(&self, node: u16) -> Settings {
        let id = node.to_string();
        let mut pairs: Vec<(&str, &str)> = self.pairs.iter().map(|(n, v)| (*n, v.as_str())).collect();
        pairs.push(("NODE", &id));
        Settings::from_pairs(&pairs).unwrap()
    }

    fn start(&self, node: u16) -> RunningNode {
        RunningNode::start(&self.settings(node), Life::now()).unwrap()
    }

    fn ask(&self, node: u16, question: &str) -> Value {
        let address = self.settings(node).control_address(NodeId(node)).unwrap();
        ask(address, &self.settings(node).sealing_key(), question, Nanos::from_secs(5)).unwrap()
    }

    fn wait_joined(&self, nodes: &[u16]) {
        wait_until("all nodes have joined", || {
            nodes.iter().all(|node| self.ask(*node, STATUS)["control"]["all_joined"] == true)
        });
    }

    /// Every slot's place in the log at one node.
    fn places(&self, node: u16) -> BTreeMap<u64, String> {
        let answer = self.ask(node, DIGESTS);
        let shards = answer["shards"].as_array().unwrap().iter();
        let slots = shards.flat_map(|shard| shard["digests"].as_array().unwrap());
        slots.map(|slot| (slot[0].as_u64().unwrap(), slot.to_string())).collect()
    }

    fn wait_served(&self) {
        let endpoints = self.settings(1).service;
        let bound = |endpoint: &SocketAddr| sys_socket::probe_free(*endpoint).is_err();
        wait_until("the service endpoints are bound", || endpoints.iter().all(bound));
    }

    fn client(&self, port: u16) -> UdpSocket {
        let client = UdpSocket::bind(format!("{}.200:0", self.net)).unwrap();
        client.connect(format!("{}.100:{port}", self.net)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("not within five seconds: {what}");
}

/// Sends `rounds` datagrams from each client and checks that every reply is the next of its call.
fn talk(clients: &[UdpSocket], rounds: std::ops::Range<u64>) {
    let mut buffer = [0; 2_048];
    for round in rounds {
        for client in clients {
            client.send(format!("round {round}").as_bytes()).unwrap();
        }
        for client in clients {
            let len = client.recv(&mut buffer).expect("a reply within five seconds");
            let (payload, trailer) = echo::split(&buffer[..len]).expect("a reply of echo");
            assert_eq!(payload, format!("round {round}").as_bytes());
            assert_eq!(trailer.count, round + 1);
        }
    }
}

fn echo_through_the_death_of_a_member(test: u8, more: &[(&'static str, &str)]) {
    let cluster = Cluster::new(test, more);
    let [one, two, three] = [1, 2, 3].map(|id| cluster.start(id));
    cluster.wait_joined(&[1, 2, 3]);
    cluster.wait_served();
    let clients: Vec<UdpSocket> = (0..20).map(|n| cluster.client(5_060 + n % 2)).collect();
    talk(&clients, 0..50);
    wait_until("the digests agree", || {
        let first = cluster.places(1);
        first.len() > 8 && first == cluster.places(2) && first == cluster.places(3)
    });
    drop(two.stop());
    talk(&clients, 50..100);
    wait_until("the digests agree", || cluster.places(1) == cluster.places(3));

    let status = cluster.ask(1, STATUS);
    let sum = |pointer: &str| -> u64 {
        status["shards"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s.pointer(pointer).unwrap().as_u64().unwrap())
            .sum()
    };
    assert_eq!(sum("/engine/entries"), 2_000);
    assert_eq!(sum("/engine/released"), 2_000);
    assert_eq!(sum("/io/client_received"), 2_000);
    assert_eq!(sum("/io/client_sent"), 2_000);
    assert_eq!(sum("/io/dropped/not_opened/forged"), 0);
    assert_eq!(sum("/engine/divergences"), 0);
    assert_eq!(sum("/io/multicast_sent") > 0, more.contains(&("FANOUT", "multicast")));
    drop((one.stop(), three.stop()));
}

#[test]
fn three_nodes_answer_through_the_death_of_one() {
    echo_through_the_death_of_a_member(1, &[]);
}

#[test]
fn three_nodes_answer_through_the_death_of_one_by_multicast() {
    echo_through_the_death_of_a_member(2, &[("FANOUT", "multicast")]);
}

#[test]
fn nodes_with_another_key_or_other_settings_do_not_join() {
    let cluster = Cluster::new(3, &[]);
    let one = cluster.start(1);
    let mut other = Cluster::new(3, &[("CALL_IDLE", "7m")]);
    let two = other.start(2);
    other.pairs.push(("CLUSTER_KEY", "ab".repeat(32)));
    let mut stranger = cluster.settings(3);
    stranger.cluster_key = Some(crate::wire::seal::ClusterKey::from_bytes(&[9; 32]).unwrap());
    let three = RunningNode::start(&stranger, Life::now()).unwrap();
    wait_until("the first names the setting", || {
        let status = cluster.ask(1, STATUS);
        let refused = status["control"]["peers"][0]["refused"].to_string();
        let forged = status["io"]["dropped"]["not_opened"]["forged"].as_u64().unwrap();
        refused.contains("CALL_IDLE is 7m there and 5m here") && forged > 0
    });
    assert_eq!(cluster.ask(1, STATUS)["control"]["peers"][1]["joined"], false);
    drop((one.stop(), two.stop(), three.stop()));
}

#[test]
fn what_keeps_a_node_from_starting_is_said_with_the_setting() {
    let cluster = Cluster::new(4, &[]);
    let taken = |address: &str, setting: &str| {
        let socket = UdpSocket::bind(format!("{}.{address}", cluster.net)).unwrap();
        let error = RunningNode::start(&cluster.settings(1), Life::now()).err().unwrap().to_string();
        drop(socket);
        assert!(error.contains(&format!("{}.{address}", cluster.net)), "{error}");
        assert!(error.contains("is in use") && error.contains(setting), "{error}");
    };
    taken("1:7100", "TANDEM_NODES");
    taken("1:7102", "TANDEM_NODES");

    let node = cluster.start(1);
    let error = RunningNode::start(&cluster.settings(1), Life::now()).err().unwrap().to_string();
    assert!(error.contains("is in use"), "{error}");
    drop(node.stop());

    // Alone on its machine, nobody else of its cluster can have it.
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let service = taken.local_addr().unwrap().to_string();
    let nodes = format!("1@a={}.1:7100", cluster.net);
    let pairs = [("NODES", nodes.as_str()), ("SERVICE", &service), ("SHARDS", "1")];
    let error = RunningNode::start(&Settings::from_pairs(&pairs).unwrap(), Life::now()).err().unwrap();
    let error = error.to_string();
    assert!(error.contains(&service) && error.contains("TANDEM_SERVICE"), "{error}");
}

#[test]
fn a_thread_that_ends_by_itself_ends_the_node_and_is_named() {
    let poll = Poll::new().unwrap();
    let control = Waker::new(poll.registry(), WAKE).unwrap();
    let cells = Arc::new(NodeCells::new(Vec::new(), control));
    let (ends, reload) = (channel::unbounded(), channel::bounded(1).0);
    let mut node = RunningNode { cells, threads: Vec::new(), ends, addresses: None, reload };
    type Work = fn() -> io::Result<Value>;
    let works: [(&str, Work, &str); 2] = [
        ("shard-0", || panic!("on purpose"), "a panic"),
        ("control", || Err(io::Error::from_raw_os_error(libc::EMFILE)), "Too many open files"),
    ];
    for (name, work, expected) in works {
        node.add(name.to_owned(), work).unwrap();
        match node.ends.1.recv_timeout(Duration::from_secs(5)).unwrap() {
            End::Thread(who, reason) => assert!(who == name && reason.contains(expected), "{who}: {reason}"),
            _ => panic!("nobody asked it to end"),
        }
    }
    assert_eq!(node.stop(), Vec::<Value>::new());
}

#[test]
fn member_sets_are_all_but_the_owner() {
    let settings = Cluster::new(5, &[]).settings(1);
    let sets = member_sets(&settings);
    assert_eq!(sets, [0b0110, 0b1010, 0b1100, 0b1110].map(NodeSet));
}
