//! Media ports that the kernel steers (`TANDEM_MEDIA_STEER=on`), with the kernel that does it.

mod harness;

use harness::{Folder, Otherwise, Process, free_of_settings, sandboxed, sh, tandem};
use mio::{Events, Poll};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tandem::app::media::MediaPorts;
use tandem::io::media::{FIRST_MEDIA, MediaPlan, MediaSockets};
use tandem::io::steer::Steering;
use tandem::io::sys_recv::RecvBatch;
use tandem::io::sys_socket::{self, Buffers};
use tandem::io::sys_time;
use tandem::io::tally::Tally;
use tandem::types::{LocalId, Nanos};

const SHARDS: u16 = 3;
const FIRST: u16 = 20_001;
const LAST: u16 = 22_100;
const BUFFERS: Buffers = Buffers { recv: 8 << 20, send: 8 << 20 };
/// What arrived: where from and where at, and the bytes.
type Arrived = (SocketAddr, LocalId, Vec<u8>);

fn plan(shard: u16) -> MediaPlan {
    let addresses = [("10.99.0.1", 0), ("fd99::1", 2)].map(|(ip, endpoint)| (ip.parse().unwrap(), endpoint));
    let ports = MediaPorts { first: FIRST, last: LAST, slots: 20, addresses: 2 };
    MediaPlan { ports, addresses: addresses.into(), shards: SHARDS, shard }
}

/// One shard's media ports and what a loop does with them.
struct Shard {
    poll: Poll,
    media: MediaSockets,
    batch: RecvBatch,
    tally: Tally,
}

impl Shard {
    fn new(shard: u16, steering: &Arc<Steering>) -> Shard {
        let media = MediaSockets::steered(&plan(shard), steering.clone(), BUFFERS).unwrap();
        let batch = RecvBatch::new(media.batch(), 10_000);
        Shard { poll: Poll::new().unwrap(), media, batch, tally: Tally::default() }
    }

    fn settle(&mut self) {
        self.media.settle(Nanos(1), self.poll.registry(), || true).unwrap();
    }

    /// What has arrived; `None` for what was for no port of this shard.
    fn read(&mut self) -> Vec<Option<Arrived>> {
        let mut events = Events::with_capacity(16);
        self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        events.iter().for_each(|event| self.media.mark(event.token().0 - FIRST_MEDIA));
        let mut all = Vec::new();
        while let Some((inlet, count)) = self.media.recv(&mut self.batch) {
            for index in 0..count {
                let one = self.batch.get(index).unwrap();
                let local = self.media.arrived(inlet, one.destination);
                all.push(local.map(|local| (one.source.unwrap(), local, one.bytes.to_vec())));
            }
        }
        all
    }
}

fn client(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    sys_socket::set_buffers(socket.as_fd(), BUFFERS).unwrap();
    socket
}

#[test]
fn every_port_leads_to_its_shard_and_answers_leave_from_it() {
    let name = "every_port_leads_to_its_shard_and_answers_leave_from_it";
    sandboxed(name, &["ip"], Otherwise::Skip, || {
        sh("ip link set lo mtu 1500");
        // Another node on this machine that holds nothing, and was here first.
        let _other = Steering::start(&plan(0)).unwrap();
        let steering = Arc::new(Steering::start(&plan(0)).unwrap());
        let mut shards: Vec<Shard> = (0..SHARDS).map(|shard| Shard::new(shard, &steering)).collect();
        for shard in &mut shards {
            (0..2).for_each(|address| shard.media.open_all(address, Nanos::ZERO, |_| true));
            shard.settle();
            assert_eq!((shard.media.opened().0, shard.media.due()), (shard.media.opened().1, Nanos::MAX));
        }
        // The addresses come after the sockets.
        sh("ip addr add 10.99.0.1/32 dev lo; ip addr add fd99::1/128 dev lo nodad");
        let whole = plan(0);
        for ((ip, endpoint), client) in whole.addresses.iter().zip([client("127.0.0.1"), client("::1")]) {
            let (me, address) = (client.local_addr().unwrap(), endpoint / 2);
            let (mut sent, mut beside) = (BTreeMap::new(), 0);
            for port in FIRST - 20..=LAST + 20 {
                let _ = client.send_to(&port.to_be_bytes(), (*ip, port));
                match whole.ports.slot_of(address, port) {
                    Some(slot) => drop(sent.insert(port, slot.0 % SHARDS)),
                    None => beside += 1,
                }
            }
            assert!(sent.len() > 2_000 && beside >= 40, "{} {beside}", sent.len());
            for (shard, number) in shards.iter_mut().zip(0_u16..) {
                let arrived = shard.read();
                for (tag, (source, local, bytes)) in (0..).zip(arrived.into_iter().flatten()) {
                    assert_eq!((source, local.endpoint), (me, *endpoint));
                    assert_eq!(bytes, local.port.to_be_bytes(), "its original port");
                    assert_eq!(sent.remove(&local.port), Some(number), "{}", local.port);
                    shard.media.push(tag, local, source, &bytes, &mut shard.tally);
                }
                shard.media.flush(&mut shard.tally, || true);
                assert!(shard.media.is_idle());
                for _ in 0..std::mem::take(&mut shard.tally).media_sent {
                    let mut buffer = [0; 9];
                    let (len, from) = client.recv_from(&mut buffer).unwrap();
                    let port = u16::from_be_bytes(buffer[..len].try_into().unwrap());
                    assert_eq!(from, SocketAddr::new(*ip, port));
                }
            }
            assert!(sent.is_empty(), "{sent:?}");
        }
        lengths(&mut shards[0]);
        leave(&mut shards);
    });
}

/// Datagrams of every length arrive whole, also those that go in pieces.
fn lengths(shard: &mut Shard) {
    let whole = plan(0);
    for ((ip, endpoint), client) in whole.addresses.iter().zip([client("127.0.0.1"), client("::1")]) {
        let mine = |port: &u16| whole.ports.slot_of(endpoint / 2, *port).is_some_and(|s| s.0 % SHARDS == 0);
        let port = (FIRST..).find(mine).unwrap();
        let me = client.local_addr().unwrap();
        let lengths = [0, 1, 172, 1_232, 1_233, 1_472, 1_473, 4_001, 200];
        for (len, tag) in lengths.into_iter().zip(0..) {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            shard.media.push(tag, LocalId::media(*endpoint, port), me, &bytes, &mut shard.tally);
        }
        shard.media.flush(&mut shard.tally, || true);
        for len in lengths {
            let mut buffer = [7; 5_000];
            let (received, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((received, from), (len, SocketAddr::new(*ip, port)), "in order");
            assert!(buffer[..len].iter().enumerate().all(|(n, byte)| *byte == n as u8), "{len}");
        }
        assert_eq!(shard.tally.media_sent, lengths.len() as u64);
        shard.tally = Tally::default();
    }
    // No datagram leads from one family into the other.
    let port = LocalId::media(2, FIRST + 1);
    let source = plan(0).ports.slot_of(1, port.port).filter(|slot| slot.0 % SHARDS == 0).is_some();
    shard.media.push(0, port, "127.0.0.1:9".parse().unwrap(), b"x", &mut shard.tally);
    shard.media.flush(&mut shard.tally, || true);
    let dropped = &shard.tally.dropped;
    assert_eq!(dropped.client_send_failed + dropped.client_no_endpoint, 1);
    assert_eq!(dropped.client_send_failed == 1, source);
}

/// The IPv4 address is given up: what waits is nobody's, and what comes finds no socket. The other one stays.
fn leave(shards: &mut [Shard]) {
    let (client, port) = (client("127.0.0.1"), FIRST + 1);
    client.connect(("10.99.0.1", port)).unwrap();
    client.send(b"just before").unwrap();
    for shard in shards.iter_mut() {
        shard.media.close_all(0, Nanos::ZERO);
        shard.settle();
    }
    let read: Vec<_> = shards.iter_mut().flat_map(Shard::read).collect();
    assert_eq!(read, [None], "it came in time, and nobody has the port any more");
    client.send(b"after").unwrap();
    let refused = client.recv(&mut [0; 9]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let begun = Instant::now();
    for shard in shards.iter_mut() {
        shard.media.open_all(0, Nanos::ZERO, |_| false);
        shard.settle();
    }
    println!("{} shards have the ports of an address again after {:?}", shards.len(), begun.elapsed());
    client.send(b"again").unwrap();
    let read: Vec<_> = shards.iter_mut().flat_map(Shard::read).flatten().collect();
    let expected = (client.local_addr().unwrap(), LocalId::media(0, port), b"again".to_vec());
    assert_eq!(read, [expected]);
}

#[test]
fn a_node_that_may_not_steer_says_what_it_lacks() {
    let name = "a_node_that_may_not_steer_says_what_it_lacks";
    sandboxed(name, &["ip", "setpriv"], Otherwise::Skip, || {
        let folder = Folder::new();
        let mut command = Command::new("setpriv");
        free_of_settings(&mut command);
        let lost = "-net_admin,-net_raw,-sys_admin";
        command.args(["--bounding-set", lost, "--inh-caps", lost]).arg(tandem().get_program()).arg("node");
        command.args(["--app", "sip", "--route", "default=127.0.0.1:5999", "--media-steer", "on"]);
        command.args(["--shards", "1", "--data-dir"]).arg(folder.join("data"));
        let ended = Process::start(&mut command).finish(Duration::from_secs(10));
        assert!(!ended.status.success(), "{ended:?}");
        for part in ["TANDEM_MEDIA_STEER=on: cannot", "CAP_BPF, CAP_NET_ADMIN and CAP_NET_RAW", "=off"] {
            assert!(ended.err.contains(part), "{part} in {ended:?}");
        }
        harness::assert_no_panic(&ended.err.replace("RUST_BACKTRACE", ""));
    });
}

/// Datagrams of 172 bytes (20 ms of G.711) on a hundred ports; also says what each costs.
#[test]
fn ports_relay_alike_bound_and_steered() {
    sandboxed("ports_relay_alike_bound_and_steered", &["ip"], Otherwise::Skip, || {
        sh("ip addr add 10.99.0.1/32 dev lo");
        let plan = MediaPlan { shards: 1, ..plan(0) };
        let steered = || {
            let steering = Arc::new(Steering::start(&plan).unwrap());
            MediaSockets::steered(&plan, steering, BUFFERS).unwrap()
        };
        let ways: [(&str, MediaSockets); 2] =
            [("bound", MediaSockets::new(Some(&plan))), ("steered", steered())];
        for (name, media) in ways {
            let batch = RecvBatch::new(media.batch(), 10_000);
            let mut shard = Shard { poll: Poll::new().unwrap(), media, batch, tally: Tally::default() };
            shard.media.open_all(0, Nanos::ZERO, |_| false);
            let begun = sys_time::mono();
            shard.settle();
            println!(
                "{name}: {:?} ports open after {} us",
                shard.media.opened(),
                sys_time::mono().since(begun).0 / 1_000
            );
            let (client, mut received, mut cpu, mut sending) = (client("127.0.0.1"), 0, 0, 0);
            client.set_nonblocking(true).unwrap();
            let now = || sys_time::process_cpu(std::process::id()).unwrap().0;
            for round in 0..200_u64 {
                let begun = now();
                for n in 0..100 {
                    client.send_to(&[0; 172], ("10.99.0.1", FIRST + 1 + 2 * n)).unwrap();
                }
                let sent = now();
                for (source, local, bytes) in shard.read().into_iter().flatten() {
                    shard.media.push(round, local, source, &bytes, &mut shard.tally);
                    received += 1;
                }
                shard.media.flush(&mut shard.tally, || true);
                (cpu, sending) = (cpu + now() - sent, sending + sent - begun);
                while client.recv(&mut [0; 200]).is_ok() {}
            }
            let per = |sum: u64| sum / received / 10;
            assert!(received >= 19_000, "{received}");
            println!(
                "{name}: {} / 100 us to relay one, {} / 100 us to send one to it",
                per(cpu),
                per(sending)
            );
        }
    });
}
