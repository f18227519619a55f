//! SIP calls with media of a client nobody here wrote: SIPp on both sides of a cluster whose nodes die, and a capture
//! of the wire between them as the referee.

mod harness;

use harness::hosts::{Bridge, Cluster, Family};
use harness::{Ended, Folder, Otherwise, Process, loud, sandboxed, sh, until};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tandem::cli::capture;

const CALLER: &str = "10.77.0.254";
const CALLEE: &str = "10.77.0.253";
/// The first ports of the callees' SIP and of everybody's media; each scenario has its own.
const CALLEE_PORT: u16 = 7_300;
const CALLER_PORT: u16 = 7_400;
const MEDIA_PORT: u16 = 20_000;

fn scenarios() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/sipp");
    folder.join("INDEX.tsv").exists().then_some(folder)
}

/// One pair of scenarios of the shared set, each with ports of its own.
struct Pair {
    name: String,
    number: u16,
}

impl Pair {
    fn sipp(&self, folder: &Path, side: &str, address: &str, port: u16, media: u16) -> Command {
        let mut sipp = Command::new("sipp");
        sipp.current_dir(folder).env("TERM", "dumb");
        sipp.args(["-sf", &format!("own-{}_{side}.xml", self.name), "-i", address, "-p", &port.to_string()]);
        sipp.args(["-mi", address, "-mp", &media.to_string(), "-nostdin", "-timeout_error"]);
        sipp.args(["-trace_err", "-error_file", &format!("{}_{side}.err", self.name)]);
        sipp
    }

    fn callee(&self, folder: &Path, calls: usize, within: u32) -> Process {
        let (port, media) = (CALLEE_PORT + self.number, MEDIA_PORT + 40 * self.number);
        let mut sipp = self.sipp(folder, "uas", CALLEE, port, media);
        sipp.args(["-m", &calls.to_string(), "-timeout", &format!("{within}s")]);
        Process::start(&mut sipp)
    }

    /// `hold`: how long a call lasts, in ms.
    fn caller(&self, folder: &Path, service: SocketAddr, calls: usize, rate: u32, hold: u32) -> Process {
        let (port, media) = (CALLER_PORT + self.number, MEDIA_PORT + 40 * self.number + 20);
        let mut sipp = self.sipp(folder, "uac", CALLER, port, media);
        sipp.arg(service.to_string()).args(["-s", &self.name, "-d", &hold.to_string()]);
        sipp.args(["-m", &calls.to_string(), "-r", &rate.to_string(), "-timeout", "100s"]);
        Process::start(&mut sipp)
    }
}

/// The scenarios and what they read, where SIPp may write beside them.
fn copied(from: &Path, to: &Folder) {
    sh(&format!("cp -r {}/. {}; chmod -R u+w {}", from.display(), to.0.display(), to.0.display()));
}

fn routes(pairs: &[Pair]) -> String {
    let mut text = String::new();
    for Pair { name, number } in pairs {
        let target = format!("{CALLEE}:{}", CALLEE_PORT + number);
        text += &format!("user {name} {target}\n");
        match name.as_str() {
            // The new INVITE goes to the user that the redirect named, a REGISTER to no user at all.
            "redirect302" => text += &format!("user moved {target}\n"),
            "register_auth401" => text += &format!("default {target}\n"),
            _ => {}
        }
    }
    text
}

/// A cluster on three hosts that carries calls by these routes; `steer`: TANDEM_MEDIA_STEER.
fn cluster(folder: &Folder, pairs: &[Pair], steer: &str) -> Cluster {
    sh(&format!("ip addr add {CALLEE}/24 dev br0"));
    let file = folder.join("routes");
    std::fs::write(&file, routes(pairs)).unwrap();
    let file = file.display().to_string();
    Cluster::start(
        Family::V4,
        &[
            ("APP", "sip"),
            ("SLOTS", "128"),
            ("ROUTES", &file),
            ("MEDIA_PORTS", "30000-33999"),
            ("MEDIA_STEER", steer),
            ("CDR", "/run/cdr.jsonl"),
        ],
    )
}

/// What went wrong on one side of a pair, if anything did.
fn failure(pair: &Pair, side: &str, folder: &Folder, ended: &Ended) -> Option<String> {
    let errors = folder.join(&format!("{}_{side}.err", pair.name));
    let errors = std::fs::read_to_string(errors).unwrap_or_default();
    let said = || format!("{} {side}: {}\n{}\n{errors}", pair.name, ended.status, ended.out);
    (!ended.status.success()).then(said)
}

#[test]
fn every_scenario_ends_as_it_does_without_a_proxy() {
    let name = "every_scenario_ends_as_it_does_without_a_proxy";
    if scenarios().is_none() {
        return loud(&format!("{name}: no shared scenarios"));
    }
    sandboxed(name, &["ip", "nft", "sipp"], Otherwise::Skip, || {
        let (_bridge, folder) = (Bridge::new(3), Folder::new());
        let shared = scenarios().unwrap();
        copied(&shared, &folder);
        let index = std::fs::read_to_string(shared.join("INDEX.tsv")).unwrap();
        let names =
            index.lines().skip(1).filter_map(|line| line.strip_prefix("own-")?.split_once("_uac.xml"));
        let names = names.map(|(name, _)| name.to_owned());
        let pairs: Vec<Pair> = (0..).zip(names).map(|(number, name)| Pair { name, number }).collect();
        assert!(pairs.len() >= 14, "{}", pairs.len());
        let cluster = cluster(&folder, &pairs, "off");
        let callees: Vec<Process> = pairs.iter().map(|pair| pair.callee(&folder.0, 3, 100)).collect();
        sleep(Duration::from_millis(300));
        let callers: Vec<Process> =
            pairs.iter().map(|pair| pair.caller(&folder.0, cluster.service, 3, 10, 2_000)).collect();
        let mut failures = Vec::new();
        for (side, processes) in [("uac", callers), ("uas", callees)] {
            for (pair, process) in pairs.iter().zip(processes) {
                let ended = process.finish(Duration::from_secs(110));
                failures.extend(failure(pair, side, &folder, &ended));
            }
        }
        let names: Vec<&str> = pairs.iter().map(|pair| &*pair.name).collect();
        println!("{} pairs, {} failures: {}", pairs.len(), failures.len(), names.join(", "));
        assert!(failures.is_empty(), "{}", failures.join("\n\n"));
        cluster.nodes.assert_agree(&[1, 2, 3]);
        cluster.end();
    });
}

/// The node other than the owner that is master of most slots, and of how many. On a busy machine it may be none.
fn master(cluster: &Cluster) -> (u16, u64) {
    let owner = cluster.owner();
    let others = cluster.nodes.masterships(owner).into_iter().filter(|(id, _)| *id != owner);
    others.max_by_key(|(_, slots)| *slots).unwrap()
}

/// One RTP stream on one side of the cluster: time and payload by sequence number.
type Stream = BTreeMap<u16, (u64, Vec<u8>)>;

/// What names a stream: whether the caller sends it, and its SSRC. Both SIPp number their streams alike.
type Name = (bool, u32);

/// The streams that went in and those that came out.
fn streams(file: &Path, service: SocketAddr) -> (BTreeMap<Name, Stream>, BTreeMap<Name, Stream>) {
    let (mut inward, mut outward) = (BTreeMap::<Name, Stream>::new(), BTreeMap::<Name, Stream>::new());
    let caller: std::net::IpAddr = CALLER.parse().unwrap();
    for datagram in capture::read(file).unwrap().datagrams {
        let bytes = &datagram.payload;
        let media = |at: SocketAddr| at.ip() == service.ip() && (30_000..34_000).contains(&at.port());
        let (into, by_caller) = match (media(datagram.destination), media(datagram.source)) {
            (true, false) => (&mut inward, datagram.source.ip() == caller),
            (false, true) => (&mut outward, datagram.destination.ip() != caller),
            _ => continue,
        };
        if bytes.len() < 12 || bytes[0] >> 6 != 2 || (192..224).contains(&bytes[1]) {
            continue;
        }
        let (sequence, ssrc) = (u16::from_be_bytes([bytes[2], bytes[3]]), &bytes[8..12]);
        let stream = into.entry((by_caller, u32::from_be_bytes(ssrc.try_into().unwrap()))).or_default();
        // An owner that dies may have said what the next one says again, with the same bytes.
        let (_, first) = stream.entry(sequence).or_insert_with(|| (datagram.time.0, bytes.to_vec()));
        assert!(*first == **bytes, "{ssrc:?} {sequence} came twice, and not alike: {datagram:?}");
    }
    (inward, outward)
}

/// When the first packet of a capture came, in ns since 1970: what is read of it is told from there.
fn begun(file: &Path) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    let word = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
    let unit = if word(0) == 0xa1b2_3c4d { 1 } else { 1_000 };
    word(24) * 1_000_000_000 + word(28) * unit
}

/// How many packets of a stream were not passed on: before the first one that was, between those that were, and after
/// the last one.
fn missing(sent: &Stream, received: &Stream) -> [usize; 3] {
    let (first, last) = (received.keys().next(), received.keys().next_back());
    let mut missing = [0; 3];
    for sequence in sent.keys().filter(|sequence| !received.contains_key(sequence)) {
        let place = usize::from(first < Some(sequence)) + usize::from(last < Some(sequence));
        missing[place] += 1;
    }
    missing
}

/// The longest silence of a stream, in ms, of those that `time` falls into or that begin within a second of it, in ns
/// since the first packet; `None` if it was not flowing then.
fn gap(stream: &Stream, time: u64) -> Option<f64> {
    let times: Vec<u64> = stream.values().map(|(time, _)| *time).collect();
    let there = |pair: &&[u64]| pair[1] >= time && pair[0] <= time + 1_000_000_000;
    let silences = times.windows(2).filter(there).map(|pair| pair[1].saturating_sub(pair[0]) as f64 / 1e6);
    silences.max_by(f64::total_cmp)
}

fn nanos_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// The longest silences of streams around a death, in ms, on a machine that has more to do: on a quiet one they are a
/// third of that (bench/README.md). The first one is also that of a time at which nobody dies.
const LONGEST: [f64; 2] = [250.0, 400.0];

/// The distribution of the streams' longest silences around `time`, and the longest.
fn gaps(streams: &BTreeMap<Name, Stream>, time: u64) -> (String, f64) {
    let mut gaps: Vec<f64> = streams.values().filter_map(|stream| gap(stream, time)).collect();
    gaps.sort_by(f64::total_cmp);
    let at = |share: f64| gaps.get((gaps.len().saturating_sub(1) as f64 * share) as usize).copied();
    assert!(!gaps.is_empty(), "no stream was flowing");
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| at(share).unwrap_or(f64::NAN));
    (format!("p50 {p50:.1}, p99 {p99:.1}, max {max:.1} ms of {} streams", gaps.len()), max)
}

#[test]
fn calls_outlive_their_master_and_their_owner() {
    calls_outlive("calls_outlive_their_master_and_their_owner", || master_and_owner_die("off"));
}

#[test]
fn calls_whose_media_is_steered_outlive_their_master_and_their_owner() {
    let name = "calls_whose_media_is_steered_outlive_their_master_and_their_owner";
    calls_outlive(name, || master_and_owner_die("on"));
}

fn calls_outlive(name: &str, scenario: fn()) {
    match scenarios() {
        Some(_) => sandboxed(name, &["ip", "nft", "sipp", "dumpcap"], Otherwise::Skip, scenario),
        None => loud(&format!("{name}: no shared scenarios")),
    }
}

/// Calls with media both ways, `CALLS` of them; the master of most dies, later the owner.
fn master_and_owner_die(steer: &str) {
    let calls: usize = std::env::var("CALLS").map_or(60, |calls| calls.parse().unwrap());
    let (_bridge, folder) = (Bridge::new(3), Folder::new());
    copied(&scenarios().unwrap(), &folder);
    let pairs = [Pair { name: "rtpstream_own_ports".into(), number: 0 }];
    let cluster = cluster(&folder, &pairs, steer);
    let file = folder.join("wire.pcap");
    let mut dumpcap = Command::new("dumpcap");
    dumpcap.args(["-i", "br0", "-q", "-P", "-B", "64", "-f", "udp portrange 30000-33999", "-w"]).arg(&file);
    let dumpcap = Process::start(&mut dumpcap);
    let ready = || std::fs::metadata(&file).is_ok_and(|meta| meta.len() > 0);
    assert!(until(Duration::from_secs(20), ready), "no capture");
    // Masterships go home some time after the start.
    let home = until(Duration::from_secs(15), || master(&cluster).1 > 0);
    assert!(home, "the owner is master of everything");
    let callee = pairs[0].callee(&folder.0, calls, 120);
    sleep(Duration::from_millis(500));
    let caller = pairs[0].caller(&folder.0, cluster.service, calls, 20, 6_000);
    let third = Duration::from_millis(calls as u64 * 50 / 3);
    sleep(third + Duration::from_millis(500));
    let calm = nanos_since_1970();
    sleep(Duration::from_secs(1));
    let (victim, slots) = master(&cluster);
    let master_died = nanos_since_1970();
    cluster.nodes.kill_engine(victim);
    sleep(Duration::from_secs(1));
    // Two of three at once would be too many.
    let whole = cluster.wait_until_whole();
    let (owner, owner_died) = (cluster.owner(), nanos_since_1970());
    cluster.nodes.kill_engine(owner);
    println!("the master of {slots} slots was killed; whole {whole:?} after a second, the owner was killed");
    for (side, process) in [("uac", caller), ("uas", callee)] {
        let ended = process.finish(Duration::from_secs(110));
        assert_eq!(failure(&pairs[0], side, &folder, &ended), None);
    }
    sh(&format!("kill -INT {}", dumpcap.pid()));
    dumpcap.finish(Duration::from_secs(20));

    let (inward, outward) = streams(&file, cluster.service);
    assert_eq!(inward.len(), 2 * calls, "streams");
    let mut lost = [0; 3];
    for (name, sent) in &inward {
        let received = outward.get(name).unwrap_or_else(|| panic!("nothing came out of {name:08x?}"));
        for (sequence, (_, bytes)) in received {
            let (_, original) = sent.get(sequence).expect("a packet that was sent");
            assert_eq!(bytes, original, "{name:08x?} {sequence} was altered");
        }
        missing(sent, received).iter().zip(&mut lost).for_each(|(more, all)| *all += more);
    }
    let packets: usize = inward.values().map(BTreeMap::len).sum();
    println!(
        "TANDEM_MEDIA_STEER={steer}: {calls} calls, {packets} RTP packets; not passed on before, in and after the \
         streams that came out: {lost:?}; longest silences:"
    );
    let begun = begun(&file);
    let [master, owner] = LONGEST;
    let moments = [
        ("no fault", calm, master),
        ("the master died", master_died, master),
        ("the owner died", owner_died, owner),
    ];
    let mut too_long = Vec::new();
    for (what, time, longest) in moments {
        let (said, max) = gaps(&outward, time - begun);
        println!("{what}: {said}");
        if max > longest {
            too_long.push(format!("{what}: {said}, more than {longest} ms"));
        }
    }
    assert!(too_long.is_empty(), "{too_long:?}");
    cluster.wait_until_whole();
    cluster.nodes.assert_agree(&[1, 2, 3]);
    cluster.end();
}
