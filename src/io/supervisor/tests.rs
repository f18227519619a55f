//! The supervisor over engines that are shell commands, and what follows the end of an engine.

use super::*;
use crate::types::NodeSet;
use crate::wire::exit::read_exited;
use crate::wire::seal::Opener;
use std::path::PathBuf;
use std::thread;

const SECOND: Nanos = Nanos::from_secs(1);

#[test]
fn engines_that_fail_are_started_later_each_time_until_one_lives_long() {
    let mut history = History::default();
    let mut delay = |life| match history.after(End::Killed(9), life, Restart::Auto) {
        Next::Start(delay) => delay.0 / 1_000_000,
        Next::End(status) => panic!("ended with {status}"),
    };
    let delays: Vec<u64> = (0..9).map(|_| delay(SECOND)).collect();
    assert_eq!(delays, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
    assert_eq!(delay(LONG_LIFE), 100);
    assert_eq!(delay(SECOND), 200);
    assert_eq!((0..100).map(|_| delay(SECOND)).max(), Some(10_000), "and no overflow");
}

#[test]
fn what_an_engine_ends_with_tells_what_follows() {
    let after = |end, life, restart| History { worked: true, failures: 0 }.after(end, life, restart);
    let status = |status| after(End::Status(status), SECOND, Restart::Auto);
    assert_eq!(status(ASKED), Next::End(ASKED));
    assert_eq!(status(BAD_SETTINGS), Next::End(BAD_SETTINGS));
    assert_eq!(status(FENCED), Next::Start(Nanos::ZERO));
    assert_eq!(status(FAILED), Next::Start(FIRST_DELAY));
    assert_eq!(status(NOT_STARTED), Next::Start(FIRST_DELAY), "it has worked before");
    let first = History::default().after(End::Status(NOT_STARTED), SECOND, Restart::Auto);
    assert_eq!(first, Next::End(NOT_STARTED), "it never worked, and has said why");
    let quickly = after(End::Status(FENCED), Nanos::ZERO, Restart::Auto);
    assert_eq!(quickly, Next::Start(FIRST_DELAY), "no busy loop");
    assert_eq!(after(End::Killed(9), LONG_LIFE, Restart::Never), Next::End(137));
    assert_eq!(End::Killed(libc::SIGUSR2).asked(), ASKED);
    assert_eq!(End::Killed(libc::SIGKILL).asked(), 137);
}

/// Settings of node 1 of two, and the socket of node 2.
fn two_nodes() -> (Settings, UdpSocket) {
    let free = || UdpSocket::bind("127.0.0.1:0").unwrap();
    let (own, peer) = (free(), free());
    let at = |socket: &UdpSocket| socket.local_addr().unwrap();
    let nodes = format!("1@a={},2@b={}", at(&own), at(&peer));
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Nothing can be kept there: a node lives all the same.
    let pairs = [("NODES", nodes.as_str()), ("SHARDS", "1"), ("DATA_DIR", "/proc/none")];
    (Settings::from_pairs(&pairs).unwrap(), peer)
}

fn sleep(boot: Boot) -> Command {
    let _ = boot;
    let mut command = Command::new("sleep");
    command.arg("60");
    command
}

/// The ids of this thread's children named `sleep`.
fn sleepers(thread: &str) -> Vec<u32> {
    let children = std::fs::read_to_string(PathBuf::from(thread).join("children")).unwrap_or_default();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn the_peers_are_told_at_once_and_another_engine_starts() {
    let (settings, peer) = two_nodes();
    let key = settings.sealing_key();
    let mut opener = Opener::new(&key, NodeId(2), Boot(9), NodeSet(0b10));
    let (sender, receiver) = std::sync::mpsc::channel();
    let supervisor = thread::spawn(move || {
        let supervisor = Supervisor::new(&settings, sleep).unwrap();
        let own = std::fs::read_link("/proc/thread-self").unwrap();
        sender.send((supervisor.requests(), format!("/proc/{}", own.display()))).unwrap();
        supervisor.run().unwrap()
    });
    let (requests, thread) = receiver.recv().unwrap();
    let wait_for_engine = |but: u32| loop {
        match sleepers(&thread)[..] {
            [pid] if pid != but => break pid,
            _ => thread::sleep(Duration::from_millis(1)),
        }
    };
    let (mut pid, mut newest, mut buffer) = (0, Boot(0), [0; 100]);
    let mut open = |peer: &UdpSocket| {
        let len = peer.recv(&mut buffer).unwrap();
        // The peer has heard that life: its boot stands in the header.
        let boot = Boot(u64::from_le_bytes(buffer[10..18].try_into().unwrap()));
        let mut heard = Vec::new();
        seal_into(&mut heard, &mut Sealer::new(&key, NodeId(1), boot, 0), Kind::Control, 0, b"beat");
        let _ = opener.open(&mut heard);
        let opened = opener.open(&mut buffer[..len]).unwrap();
        (opened.boot, opened.channel, read_exited(opened.plaintext).unwrap())
    };
    for _ in 0..2 {
        pid = wait_for_engine(pid);
        // Its descriptor is watched from a moment after its birth on.
        thread::sleep(Duration::from_millis(5));
        let killed = sys_time::mono();
        signal(pid, Signal::Kill).unwrap();
        let (boot, channel, exited) = open(&peer);
        println!("exit notice after {:.3} ms", sys_time::mono().since(killed).as_millis_f64());
        assert_eq!((channel, exited), (SUPERVISOR, Exited { node: NodeId(1), boot }));
        assert!(boot > newest, "each life is later than the one before");
        newest = boot;
        for _ in 1..TELL_AT.len() {
            assert_eq!(open(&peer).2, exited, "told again");
        }
    }
    wait_for_engine(pid);
    requests.end();
    assert_eq!(supervisor.join().unwrap(), ASKED);
    assert!(open(&peer).2.boot > newest, "an end that was asked for is told too");
}

#[test]
fn an_engine_that_will_not_end_is_ended() {
    let (settings, _peer) = two_nodes();
    let stubborn = |_| {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM USR2; exec sleep 60"]);
        command
    };
    let supervisor = Supervisor::new(&settings, stubborn).unwrap();
    let (requests, began) = (supervisor.requests(), sys_time::mono());
    let later = thread::spawn(move || {
        // Only now does the engine take no notice.
        thread::sleep(Duration::from_millis(500));
        requests.end_now();
    });
    assert_eq!(supervisor.run().unwrap(), 128 + 9);
    later.join().unwrap();
    let took = sys_time::mono().since(began);
    assert!(took >= END_GRACE && took < END_GRACE + Nanos::from_secs(3), "{took:?}");
}

#[test]
fn an_engine_that_cannot_start_ends_the_node_with_its_status() {
    let (settings, _peer) = two_nodes();
    let failing = |_| {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 1"]);
        command
    };
    assert_eq!(Supervisor::new(&settings, failing).unwrap().run().unwrap(), NOT_STARTED);
}
