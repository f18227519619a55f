//! The runner against an echo server in this process, honest and otherwise: every fault must be found, and
//! counted exactly.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tandem::app::Inbound;
use tandem::app::classify::{KeyExtractor, KeyRule};
use tandem::cli::capture::{self, Datagram};
use tandem::cli::load::Load;
use tandem::cli::replay::{Control, Expect, Options, Outcome, Pace, Plan, Runner, Schedule, Traffic};
use tandem::io::sys_socket;
use tandem::types::{CallKey, LocalId, Nanos, NodeId, Position};
use tandem::wire::echo::EchoTrailer;

/// One packet at the server.
struct Arrival {
    /// Counted from 1 over all calls.
    number: u64,
    call: CallKey,
    from: SocketAddr,
}

/// What a server does to the replies. The default methods are honest.
trait Faults: Send + 'static {
    /// May change the count of the call before the packet is executed.
    fn before(&mut self, _arrival: &Arrival, _count: &mut u64) {}
    /// May change, drop, keep back or multiply the reply.
    fn after(&mut self, arrival: &Arrival, reply: Vec<u8>) -> Vec<(SocketAddr, Vec<u8>)> {
        vec![(arrival.from, reply)]
    }
    /// The node that answers.
    fn node(&mut self, _arrival: &Arrival) -> NodeId {
        NodeId(1)
    }
}

struct Server {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(mut faults: impl Faults, trailer: bool) -> Server {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        sys_socket::set_buffers(socket.as_fd(), sys_socket::Buffers { recv: 16 << 20, send: 16 << 20 })
            .unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (address, over) = (socket.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let keys = KeyExtractor { rule: KeyRule::Auto, seed: 1 };
            let (mut counts, mut number, mut bytes) = (HashMap::new(), 0, vec![0; 65_536]);
            while !seen.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut bytes) else { continue };
                number += 1;
                let inbound =
                    Inbound { source: from.into(), local: LocalId::endpoint(0), payload: &bytes[..len] };
                let arrival = Arrival { number, call: keys.key(&inbound).unwrap(), from };
                let count = counts.entry(arrival.call).or_insert(0);
                faults.before(&arrival, count);
                *count += 1;
                let (call, node) = (arrival.call.0 as u64, faults.node(&arrival));
                let stamp = EchoTrailer { slot: 1, call, count: *count, position: Position(number), node };
                let mut reply = bytes[..len].to_vec();
                reply.extend(trailer.then(|| stamp.encode()).into_iter().flatten());
                for (to, reply) in faults.after(&arrival, reply) {
                    socket.send_to(&reply, to).unwrap();
                }
            }
        });
        Server { address, over, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Honest;
impl Faults for Honest {}

fn sample(name: &str) -> Plan {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(name);
    Plan::new(&[capture::read(&path).unwrap().datagrams], 99).unwrap()
}

/// 10 calls of 242 datagrams, ten times as fast as captured.
fn calls() -> Schedule {
    Schedule::new(
        sample("call-g711a.pcap"),
        Pace { calls: Some(10), speed: 10.0, duration: None, rate: None },
    )
}

fn options(server: &Server) -> Options {
    let targets = vec![server.address];
    Options {
        targets,
        expect: Expect::Trailer,
        drain: Nanos::from_millis(700),
        sockets: None,
        expect_failovers: 0,
    }
}

fn run(traffic: impl Traffic, options: Options) -> Outcome {
    let outcome = Runner::new(traffic, options).unwrap().run(&mut |_| Control::Continue).unwrap();
    assert_eq!(outcome.unsent, 0);
    assert_eq!(outcome.counts.sent, outcome.counts.replied + outcome.counts.lost + outcome.counts.unaccepted);
    outcome
}

/// Lost, duplicated, reordered, corrupted.
fn wrong(outcome: &Outcome) -> [u64; 4] {
    let counts = outcome.counts;
    [counts.lost, counts.duplicated, counts.reordered, counts.corrupted]
}

#[test]
fn an_honest_server_gives_a_clean_report() {
    let server = Server::start(Honest, true);
    let outcome = run(calls(), options(&server));
    assert_eq!((outcome.counts.sent, wrong(&outcome)), (2420, [0; 4]), "{outcome}");
    assert!(outcome.is_clean());
    assert_eq!(outcome.replies_by_node, [(NodeId(1), 2420)]);
    let report = outcome.report();
    assert!(report.latency_us.p50.unwrap() > 0.0 && report.latency_us.max >= report.latency_us.p999);
    assert!(report.longest_gap_ms.unwrap() > 0.0 && report.kills.is_empty());
}

#[test]
fn calls_repeat_under_new_names_for_the_duration_also_over_shared_sockets() {
    let server = Server::start(Honest, true);
    for sockets in [None, Some(3)] {
        let pace = Pace { calls: Some(20), speed: 10.0, duration: Some(Nanos::from_millis(500)), rate: None };
        let schedule = Schedule::new(sample("register.pcap"), pace);
        let outcome = run(schedule, Options { sockets, ..options(&server) });
        // 20 seats, a cycle of 0.1 s, 6 datagrams: about 5 calls a seat.
        assert!((500..=620).contains(&outcome.counts.sent), "{outcome}");
        assert_eq!(wrong(&outcome), [0; 4], "{outcome}");
    }
}

#[test]
fn a_rate_paces_by_packets() {
    let server = Server::start(Honest, true);
    let pace = Pace { calls: Some(500), speed: 1.0, duration: None, rate: Some(5000.0) };
    let outcome = run(Schedule::new(sample("register.pcap"), pace), options(&server));
    assert_eq!((outcome.counts.sent, wrong(&outcome)), (3000, [0; 4]), "{outcome}");
}

#[test]
fn a_server_without_trailers_is_corrupt_unless_it_is_expected() {
    let server = Server::start(Honest, false);
    let pace = Pace { calls: Some(10), speed: 10.0, duration: None, rate: None };
    let schedule = || Schedule::new(sample("register.pcap"), pace);
    let outcome = run(schedule(), options(&server));
    assert_eq!((wrong(&outcome), outcome.counts.bad_trailer), ([0, 0, 0, 60], 60), "{outcome}");
    let outcome = run(schedule(), Options { expect: Expect::Plain, ..options(&server) });
    assert_eq!((outcome.counts.replied, wrong(&outcome)), (60, [0; 4]), "{outcome}");
}

/// What becomes of a reply.
type Change = fn(&Arrival, Vec<u8>) -> Vec<(SocketAddr, Vec<u8>)>;

/// Changes every 100th reply.
struct Every100th(Change);

impl Faults for Every100th {
    fn after(&mut self, arrival: &Arrival, reply: Vec<u8>) -> Vec<(SocketAddr, Vec<u8>)> {
        if arrival.number.is_multiple_of(100) { self.0(arrival, reply) } else { vec![(arrival.from, reply)] }
    }
}

const DOUBLE: Change = |arrival, reply| vec![(arrival.from, reply.clone()), (arrival.from, reply)];

#[test]
fn retransmissions_of_the_same_bytes_are_told_from_duplicated_replies() {
    let message = "OPTIONS sip:b SIP/2.0\r\nCall-ID: retransmitted@example\r\nContent-Length: 0\r\n\r\n";
    let datagram = |ms| Datagram {
        time: Nanos::from_millis(ms),
        frame: 1,
        source: "10.0.0.1:5060".parse().unwrap(),
        destination: "10.0.0.2:5060".parse().unwrap(),
        payload: message.into(),
        cut: false,
    };
    // RFC 3261 timer E: the same bytes after 0.5, 1 and 2 s; here in a 20th of the time.
    let plan = Plan::new(&[[0, 500, 1500, 3500].map(datagram).to_vec()], 3).unwrap();
    let pace = Pace { calls: Some(100), speed: 20.0, duration: None, rate: None };
    for (change, wanted) in [(None, [0; 4]), (Some(DOUBLE), [0, 4, 0, 0])] {
        let same: Change = |arrival, reply| vec![(arrival.from, reply)];
        let server = Server::start(Every100th(change.unwrap_or(same)), true);
        let outcome = run(Schedule::new(plan.clone(), pace), options(&server));
        assert_eq!((outcome.counts.sent, wrong(&outcome)), (400, wanted), "{outcome}");
    }
}

#[test]
fn dropped_duplicated_and_corrupted_replies_are_counted_exactly() {
    let drop: Change = |_, _| Vec::new();
    let bad_payload: Change = |arrival, mut reply| {
        reply[5] ^= 0x40;
        vec![(arrival.from, reply)]
    };
    let bad_magic: Change = |arrival, mut reply| {
        let at = reply.len() - 36;
        reply[at] ^= 1;
        vec![(arrival.from, reply)]
    };
    let cut: Change = |arrival, mut reply| {
        reply.truncate(30);
        vec![(arrival.from, reply)]
    };
    // A reply whose request cannot be told leaves its request unanswered: that is lost as well.
    let cases = [
        ("drop", drop, [24, 0, 0, 0]),
        ("double", DOUBLE, [0, 24, 0, 0]),
        ("bad payload", bad_payload, [24, 0, 0, 24]),
        ("bad magic", bad_magic, [0, 0, 0, 24]),
        ("cut", cut, [24, 0, 0, 24]),
    ];
    for (name, change, wanted) in cases {
        let server = Server::start(Every100th(change), true);
        let outcome = run(calls(), options(&server));
        assert_eq!(wrong(&outcome), wanted, "{name}: {outcome}");
        assert!(!outcome.is_clean());
    }
}

/// Keeps every 50th reply back until after the next one to the same socket.
struct Swap {
    kept: Option<(SocketAddr, Vec<u8>)>,
    swapped: Arc<AtomicU64>,
}

impl Faults for Swap {
    fn after(&mut self, arrival: &Arrival, reply: Vec<u8>) -> Vec<(SocketAddr, Vec<u8>)> {
        if self.kept.is_none() && arrival.number.is_multiple_of(50) {
            self.kept = Some((arrival.from, reply));
            return Vec::new();
        }
        let mut out = vec![(arrival.from, reply)];
        if let Some(kept) = self.kept.take_if(|(from, _)| *from == arrival.from) {
            self.swapped.fetch_add(1, Ordering::Relaxed);
            out.push(kept);
        }
        out
    }
}

#[test]
fn replies_that_overtake_each_other_are_counted_exactly() {
    let swapped = Arc::new(AtomicU64::new(0));
    let server = Server::start(Swap { kept: None, swapped: Arc::clone(&swapped) }, true);
    let load = Load::new(10, 4000.0, Nanos::from_millis(500), 5);
    let outcome = run(load.traffic(), options(&server));
    let swapped = swapped.load(Ordering::Relaxed);
    assert!(swapped > 10, "{swapped}");
    // What is kept when the load ends is never sent.
    assert!(outcome.counts.lost <= 1, "{outcome}");
    assert_eq!(wrong(&outcome)[1..], [0, swapped, 0], "{outcome}");
}

/// Forgets a call's count at some packets: its count starts again at 1.
struct Amnesia {
    restarts: Arc<AtomicU64>,
}

impl Faults for Amnesia {
    fn before(&mut self, arrival: &Arrival, count: &mut u64) {
        if arrival.number.is_multiple_of(30) && *count > 3 {
            *count = 0;
            self.restarts.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn restarted_counts_are_corruption_and_counted_exactly() {
    let restarts = Arc::new(AtomicU64::new(0));
    let server = Server::start(Amnesia { restarts: Arc::clone(&restarts) }, true);
    // One flow a call: its answers are read in the order in which they came, however late.
    let load = Load::new(7, 3000.0, Nanos::from_millis(500), 5);
    let outcome = run(load.traffic(), options(&server));
    let restarts = restarts.load(Ordering::Relaxed);
    assert!(restarts > 20, "{restarts}");
    assert_eq!((wrong(&outcome), outcome.counts.broken), ([0, 0, 0, restarts], restarts), "{outcome}");
}

/// Node 1 answers the calls with odd keys until packet 500; then nothing of them is answered until packet
/// 700, and node 2 answers from there, the late ones included.
#[derive(Default)]
struct Failover {
    late: Vec<(SocketAddr, Vec<u8>)>,
}

impl Faults for Failover {
    fn node(&mut self, arrival: &Arrival) -> NodeId {
        NodeId(if arrival.call.0 & 1 == 1 && arrival.number < 500 { 1 } else { 2 })
    }

    fn after(&mut self, arrival: &Arrival, reply: Vec<u8>) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut out = Vec::new();
        if arrival.number == 700 {
            out.append(&mut self.late);
        }
        if arrival.call.0 & 1 == 1 && (500..700).contains(&arrival.number) {
            self.late.push((arrival.from, reply));
        } else {
            out.push((arrival.from, reply));
        }
        out
    }
}

#[test]
fn a_window_measures_the_gap_of_the_calls_a_node_was_answering() {
    let server = Server::start(Failover::default(), true);
    // 2,000/s: the calls of node 1 are silent for 100 ms from 250 ms on.
    let load = Load::new(50, 2000.0, Nanos::from_millis(800), 5);
    let mut runner = Runner::new(load.traffic(), options(&server)).unwrap();
    let mut marked = false;
    let outcome = runner
        .run(&mut |live| {
            if !marked && live.counts().sent >= 450 {
                assert!(live.calls_by_node()[1] > 10 && live.calls_by_node()[2] > 10);
                live.mark("master", Some(NodeId(1)), Nanos::from_millis(500));
                marked = true;
            }
            Control::Continue
        })
        .unwrap();
    assert_eq!(wrong(&outcome), [0; 4], "{outcome}");
    let [window] = &outcome.windows[..] else { panic!("one window: {outcome}") };
    let (gap, silence) = (window.gap.unwrap(), window.silence);
    assert!(gap > Nanos::from_millis(80) && gap < Nanos::from_millis(400), "{gap:?}");
    assert!(silence > Nanos::from_millis(80) && silence < Nanos::from_millis(400), "{silence:?}");
    assert_eq!((window.lost, window.duplicated), (0, 0));
    let kill = &outcome.report().kills[0];
    assert_eq!((kill.what.as_str(), kill.node.as_str()), ("master", "n1"));
    assert!(kill.at_ms > 200.0 && outcome.longest_gap() >= window.gap);
}

#[test]
fn a_target_that_is_not_there_loses_everything_and_says_so() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    drop(socket);
    let load = Load::new(5, 1000.0, Nanos::from_millis(100), 5);
    let options = Options {
        targets: vec![address],
        expect: Expect::Trailer,
        drain: Nanos::from_millis(50),
        sockets: None,
        expect_failovers: 0,
    };
    let outcome = run(load.traffic(), options);
    assert_eq!((outcome.counts.lost, outcome.counts.replied), (100, 0), "{outcome}");
    assert!(outcome.refused > 0 && outcome.to_string().contains("is the target running?"), "{outcome}");
}
