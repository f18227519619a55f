//! A real SIP client against a cluster whose master is killed, with tshark as the referee of what was on the wire.

mod harness;

use harness::cluster::sum;
use harness::hosts::{Bridge, Cluster, Family};
use harness::{Folder, Otherwise, Process, run, sandboxed, sh, until};
use std::collections::HashMap;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;
use tandem::io::sys_process::Signal;
use tandem::wire::echo::{ECHO_TRAILER_LEN, split};

const CALLS: usize = 300;
/// What a call sends; the echo of each is awaited, by SIPp as a request of the same call.
const REQUESTS: [&str; 4] = ["OPTIONS", "INFO", "MESSAGE", "OPTIONS"];

fn scenario() -> String {
    let mut text = String::from("<?xml version=\"1.0\"?>\n<scenario name=\"echo\">\n");
    for (sequence, method) in (1..).zip(REQUESTS) {
        text += &format!(
            "<send><![CDATA[
{method} sip:service@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]
From: <sip:client@[local_ip]:[local_port]>;tag=[call_number]
To: <sip:service@[remote_ip]>
Call-ID: [call_id]
CSeq: {sequence} {method}
Max-Forwards: 70
Content-Length: 0

]]></send>
<recv request=\"{method}\" timeout=\"5000\"/>
<pause milliseconds=\"100\"/>
"
        );
    }
    text + "</scenario>\n"
}

/// One datagram as tshark saw it.
struct Seen {
    source: String,
    destination: String,
    payload: Vec<u8>,
}

fn read_capture(file: &str) -> Vec<Seen> {
    let fields = ["ip.src", "udp.srcport", "ip.dst", "udp.dstport", "udp.payload"];
    let mut command = Command::new("tshark");
    command.args(["-r", file, "-n", "-T", "fields"]);
    fields.iter().for_each(|field| {
        command.args(["-e", field]);
    });
    let ended = run(&mut command, Duration::from_secs(60));
    assert!(ended.status.success(), "{}", ended.err);
    let seen = |line: &str| {
        let columns: Vec<_> = line.split('\t').collect();
        let [source, source_port, destination, destination_port, payload] = columns[..] else {
            panic!("not {fields:?}: {line}");
        };
        let byte = |at: usize| u8::from_str_radix(&payload[at..at + 2], 16).unwrap();
        Seen {
            source: format!("{source}:{source_port}"),
            destination: format!("{destination}:{destination_port}"),
            payload: (0..payload.len()).step_by(2).map(byte).collect(),
        }
    };
    ended.out.lines().map(seen).collect()
}

#[test]
fn sipp_gets_every_answer_once_from_the_service_address() {
    let name = "sipp_gets_every_answer_once_from_the_service_address";
    sandboxed(name, &["ip", "nft", "sipp", "tshark"], Otherwise::Skip, || {
        let (_bridge, folder) = (Bridge::new(3), Folder::new());
        let cluster = Cluster::start(Family::V4, &[]);
        let capture = folder.join("client.pcapng").display().to_string();
        let mut tshark = Command::new("tshark");
        tshark.args(["-i", "br0", "-n", "-q", "-f", "udp port 5060", "-w", &capture]);
        let tshark = Process::start(&mut tshark);
        // It has opened the interface when its file has its header.
        let ready = || std::fs::metadata(&capture).is_ok_and(|meta| meta.len() > 0);
        assert!(until(Duration::from_secs(20), ready), "tshark does not capture");
        sleep(Duration::from_millis(300));

        std::fs::write(folder.join("echo.xml"), scenario()).unwrap();
        let mut sipp = Command::new("sipp");
        sipp.current_dir(&folder.0).env("TERM", "dumb").arg(cluster.service.to_string());
        sipp.args(["-sf", "echo.xml", "-i", "10.77.0.254", "-p", "6060", "-nr", "-nostdin", "-trace_err"]);
        sipp.args(["-m", &CALLS.to_string(), "-r", "150", "-timeout", "30s"]);
        let sipp = Process::start(&mut sipp);
        sleep(Duration::from_millis(1_200));
        let (master, other) = cluster.nodes.masters(1);
        cluster.nodes.signal(master, Signal::Kill);
        let sipp = sipp.finish(Duration::from_secs(40));
        assert!(sipp.status.success(), "SIPp misses something: {sipp:?}");
        sleep(Duration::from_millis(500));
        sh(&format!("kill -INT {}", tshark.pid()));
        tshark.finish(Duration::from_secs(20));

        let seen = read_capture(&capture);
        let (service, client) = (cluster.service.to_string(), "10.77.0.254:6060");
        let mut replies: HashMap<&[u8], u32> = HashMap::new();
        let (mut sent, mut received) = (0, 0);
        for datagram in &seen {
            if datagram.source == client {
                assert_eq!(datagram.destination, service);
                assert!(replies.insert(&datagram.payload, 0).is_none(), "SIPp sent the same bytes twice");
                sent += 1;
            } else {
                assert_eq!(
                    (&datagram.source, datagram.destination.as_str()),
                    (&service, client),
                    "from where?"
                );
                let (request, trailer) = split(&datagram.payload).expect("an echo with its trailer");
                assert_eq!(request.len() + ECHO_TRAILER_LEN, datagram.payload.len());
                assert!(trailer.count <= REQUESTS.len() as u64);
                *replies.get_mut(request).expect("the reply to a request that was sent") += 1;
                received += 1;
            }
        }
        assert_eq!((sent, received), (CALLS * REQUESTS.len(), CALLS * REQUESTS.len()));
        assert!(replies.values().all(|count| *count == 1), "a request was answered twice, or never");
        assert_eq!(sum(&cluster.nodes.status(1), "engine", "released"), sent as u64);
        assert!(cluster.nodes.engine(1, "master_changes") > 0);
        cluster.nodes.assert_agree(&[1, other]);
        cluster.end();
    });
}
