//! A node's supervisor and its engine, as real processes; this test is the node's peer.

mod harness;

use harness::{Ended, Folder, Process, assert_no_panic, children, lives, run, tandem, until};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tandem::io::operator::{STATUS, ask};
use tandem::io::sys_process::{Signal, signal};
use tandem::io::sys_socket::{Buffers, set_buffers};
use tandem::types::{Boot, Nanos, NodeId, NodeSet};
use tandem::wire::datagram::SUPERVISOR;
use tandem::wire::exit::read_exited;
use tandem::wire::seal::{ClusterKey, Opener};

const PATIENCE: Duration = Duration::from_secs(10);

/// Node 1 of two; node 2 is a socket of this test.
struct Pair {
    process: Process,
    control: SocketAddr,
    peer: UdpSocket,
    opener: Opener,
    /// The life that spoke last.
    boot: Option<Boot>,
    environment: Vec<(String, String)>,
    _folder: Folder,
}

/// A socket on a port that stays free while its engine is away: below those that the kernel gives to whoever asks for
/// any (`ip_local_port_range`), and with room for the node's others behind it.
fn free() -> UdpSocket {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() % 500) as u16 * 16;
    let ports = (0..1_000).map(|_| 20_000 + first + NEXT.fetch_add(8, Ordering::Relaxed) % 4_000);
    let socket = ports.into_iter().find_map(|port| UdpSocket::bind(("127.0.0.1", port)).ok());
    socket.expect("a free UDP port of 127.0.0.1 from 20000 to 32000")
}

impl Pair {
    fn start(settings: &[(&str, &str)]) -> Pair {
        let folder = Folder::new();
        let (own, peer, service) = (free(), free(), free());
        let at = |socket: &UdpSocket| socket.local_addr().unwrap();
        let (control, nodes) = (at(&own), format!("1@a={},2@b={}", at(&own), at(&peer)));
        let text = |name: &str| folder.join(name).display().to_string();
        let fixed = [
            ("NODES", nodes),
            ("SERVICE", at(&service).to_string()),
            ("SHARDS", "1".to_owned()),
            ("PIN", "off".to_owned()),
            ("DATA_DIR", text("data")),
            ("RUN_DIR", text("run")),
        ];
        let more = settings.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let variable = |(name, value)| (format!("TANDEM_{name}"), value);
        let environment: Vec<_> = fixed.into_iter().chain(more).map(variable).collect();
        drop((own, service));
        let process = Process::start(tandem().arg("node").envs(environment.iter().cloned()));
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // What the engine beats must not keep its exit notice out.
        set_buffers(peer.as_fd(), Buffers { recv: 16 << 20, send: 1 << 20 }).unwrap();
        let opener = Opener::new(&ClusterKey::loopback(), NodeId(2), Boot(1), NodeSet(0b10));
        Pair { process, control, peer, opener, boot: None, environment, _folder: folder }
    }

    /// The engine that answers, which is another than `but`.
    fn engine(&self, but: u32) -> u32 {
        let mut found = 0;
        let up = until(PATIENCE, || {
            let Ok(status) = ask(self.control, &ClusterKey::loopback(), STATUS, Nanos::from_millis(200))
            else {
                return false;
            };
            found = status["pid"].as_u64().unwrap() as u32;
            assert_eq!(status["supervisor_pid"], self.process.pid());
            assert_eq!(children(self.process.pid()), [found]);
            found != but
        });
        assert!(up, "no engine answers");
        found
    }

    /// Waits for an exit notice; which life it is of, and how long it took.
    fn notice(&mut self, since: Instant) -> (Boot, Duration) {
        let mut buffer = [0; 2_000];
        loop {
            let len = self.peer.recv(&mut buffer).expect("an exit notice within five seconds");
            let after = since.elapsed();
            let Ok(opened) = self.opener.open(&mut buffer[..len]) else { continue };
            if opened.channel != SUPERVISOR {
                self.boot = Some(opened.boot);
            } else {
                let exited = read_exited(opened.plaintext).unwrap();
                assert_eq!((exited.node, exited.boot), (NodeId(1), opened.boot));
                return (exited.boot, after);
            }
        }
    }

    fn end(self, status: i32) -> Ended {
        let ended = self.process.finish(PATIENCE);
        assert_eq!(ended.status.code(), Some(status), "{ended:?}");
        assert_no_panic(&ended.err);
        ended
    }
}

#[test]
fn a_killed_engine_is_told_of_at_once_and_started_again() {
    let mut pair = Pair::start(&[]);
    let (mut engine, mut newest, mut waits) = (pair.engine(0), Boot(0), Vec::new());
    for _ in 0..4 {
        let killed = Instant::now();
        signal(engine, Signal::Kill).unwrap();
        let (boot, after) = loop {
            // Notices of the life before may still be on their way.
            let told = pair.notice(killed);
            if told.0 > newest {
                break told;
            }
        };
        newest = boot;
        waits.push(after);
        engine = pair.engine(engine);
    }
    println!("exit notices arrive after {waits:?}");
    waits.sort_unstable();
    assert!(waits[0] < Duration::from_millis(20), "{waits:?}");
    let asked = Instant::now();
    signal(pair.process.pid(), Signal::Terminate).unwrap();
    assert!(pair.notice(asked).0 >= newest);
    let ended = pair.end(0);
    assert_eq!(ended.err.matches("it is started again").count(), 4, "{ended:?}");
    assert!(!lives(engine));
}

#[test]
fn a_second_start_of_a_node_does_the_first_no_harm() {
    let mut pair = Pair::start(&[]);
    let engine = pair.engine(0);
    let mut second = tandem();
    second.arg("node").envs(pair.environment.iter().cloned());
    let ended = run(&mut second, PATIENCE);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.err.contains("is in use"), "{ended:?}");
    assert_eq!(pair.engine(0), engine);
    // Whoever hears the node still does: its end is told, the other's was not.
    let killed = Instant::now();
    signal(engine, Signal::Kill).unwrap();
    let (boot, _) = pair.notice(killed);
    assert_eq!(Some(boot), pair.boot);
}

#[test]
fn an_engine_does_not_outlive_its_supervisor() {
    let pair = Pair::start(&[]);
    let engine = pair.engine(0);
    signal(pair.process.pid(), Signal::Kill).unwrap();
    assert!(until(PATIENCE, || !lives(engine)));
}

#[test]
fn a_node_that_is_not_to_be_started_again_ends_with_its_engine() {
    let pair = Pair::start(&[("RESTART", "never")]);
    signal(pair.engine(0), Signal::Kill).unwrap();
    let ended = pair.end(128 + 9);
    assert!(ended.err.contains("the engine has ended, and so does the node"), "{ended:?}");
}

#[test]
fn a_frozen_engine_is_ended_with_its_node() {
    let pair = Pair::start(&[("DRAIN_WITHIN", "10ms")]);
    let engine = pair.engine(0);
    signal(engine, Signal::Stop).unwrap();
    for _ in 0..2 {
        signal(pair.process.pid(), Signal::Terminate).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    pair.end(0);
    assert!(!lives(engine));
}
