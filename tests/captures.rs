//! Every development capture is read with the figures that tshark gives (data/pcap/INDEX.tsv).

#![cfg(feature = "tools")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use tandem::cli::capture::survey::{Survey, survey};
use tandem::cli::capture::{Capture, read};

/// Where our figure differs from tshark's, as (file, column, ours, why). An entry that no longer
/// differs fails the test too.
const EXCEPTIONS: &[(&str, &str, &str, &str)] = &[
    ("ws-testing.ext.pcap", "duration_s", "18446744073.709553", TIMES),
    ("ws-Mobile-Originating-Call_AMR.pcap", "rtp_streams_sdp", "0", RANAP),
    ("ws-Mobile-Originating-Call_AMR.pcap", "rtp_packets_sdp", "0", RANAP),
    ("ndpi-FAX-Call-t38.pcap", "rtp_packets_sdp", "1330", FAX),
    ("ndpi-FAX-Call-t38.pcap", "rtp_packets_heur", "1330", FAX),
    (
        "ndpi-FAX-Call-t38.pcap",
        "streams",
        "+10.35.60.100:15580>10.23.1.52:16756/0x0eaf0eaf:159 -10.35.60.100:15580>10.23.1.52:16756/0x0eaf0eaf:132",
        FAX,
    ),
    ("ndpi-rtp_vlan.pcapng", "rtcp_frames", "3", FEEDBACK),
    ("ndpi-http_on_sip_port.pcap", "sip_frames", "0", HTTP),
    ("ndpi-http_on_sip_port.pcap", "sip_over_tcp_frames", "0", HTTP),
    ("isa-linphone_asterisk.pcap", "rtp_streams_sdp", "2", STUN),
    ("isa-linphone_asterisk.pcap", "rtp_packets_sdp", "154", STUN),
    ("rec-flood_3000_over_calls.pcap", "sip_frames", "3060", GTP),
    ("rec-flood_3000_over_calls.pcap", "call_ids", "3010", GTP),
    ("rec-flood_3000_over_calls.pcap", "calls", "+6e2e2fd52bc227f0", GTP),
    (
        "rec-flood_3000_over_calls.pcap",
        "sip_requests",
        "ACK:10,BYE:10,INVITE:2389,OPTIONS:315,REGISTER:306",
        GTP,
    ),
];

const TIMES: &str =
    "its stamps jump by years in both directions: tshark takes the extremes, we add up the steps forward";
const RANAP: &str = "RANAP over SCTP announced the streams, SIP did not; both are found by their looks";
const FAX: &str = "from frame 1412 on SDP says audio again on the fax's port, and it comes; tshark leaves 27 of these packets to T.38";
const FEEDBACK: &str = "feedback packets that stand alone (RFC 5506) about a stream of the file; tshark's guess wants reports first";
const HTTP: &str = "HTTP on port 5060: tshark counts whatever comes on that port, we count SIP messages";
const STUN: &str = "SDP named both ends; tshark gives one direction to STUN, which came first on these ports";
const GTP: &str = "one spoofed INVITE comes from port 2123, which tshark takes for GTP-C";

/// `INVITE:2,ACK:1`, or `-` for none.
fn counts(text: &str) -> BTreeMap<String, u32> {
    let pair = |pair: &str| {
        let (name, count) = pair.rsplit_once(':').expect("NAME:COUNT");
        (name.to_owned(), count.parse().expect("a count"))
    };
    text.split(',').filter(|part| *part != "-" && !part.is_empty()).map(pair).collect()
}

fn written(counts: &BTreeMap<String, u32>) -> String {
    counts.iter().map(|(name, count)| format!("{name}:{count}")).collect::<Vec<_>>().join(",")
}

/// Our figure for each column of the index that is compared.
fn figures(capture: &Capture, survey: &Survey) -> Vec<(&'static str, String)> {
    let announced = || survey.rtp_streams.iter().filter(|s| s.announced);
    vec![
        ("format", capture.format.to_owned()),
        ("link_type", capture.link_type.clone()),
        ("packets", capture.packets.to_string()),
        ("duration_s", format!("{:.6}", capture.duration.0 as f64 / 1e9)),
        ("fragment_frames", capture.fragments.to_string()),
        ("sip_frames", survey.sip.frames.to_string()),
        ("sip_over_tcp_frames", survey.sip_over_tcp.frames.to_string()),
        ("call_ids", survey.call_ids.len().to_string()),
        ("sip_requests", written(&survey.sip.requests)),
        ("sip_responses", written(&survey.sip.responses)),
        ("rtp_streams_sdp", announced().count().to_string()),
        ("rtp_packets_sdp", announced().map(|s| s.packets).sum::<u32>().to_string()),
        ("rtp_streams_heur", survey.rtp_streams.len().to_string()),
        ("rtp_packets_heur", survey.rtp_streams.iter().map(|s| s.packets).sum::<u32>().to_string()),
        ("rtcp_frames", survey.rtcp_frames.to_string()),
    ]
}

/// What is in one set only: ours with a plus, theirs with a minus.
fn difference(ours: BTreeSet<String>, theirs: BTreeSet<String>) -> String {
    let more = ours.difference(&theirs).map(|item| format!("+{item}"));
    let less = theirs.difference(&ours).map(|item| format!("-{item}"));
    more.chain(less).collect::<Vec<_>>().join(" ")
}

/// How our streams differ from those of STREAMS.tsv, and our calls from those of CALLS.tsv.
fn differences(
    survey: &Survey,
    streams: &[HashMap<String, String>],
    calls: &[HashMap<String, String>],
) -> [(&'static str, String); 2] {
    let address = |row: &HashMap<String, String>, ip: &str, port: &str| {
        SocketAddr::new(row[ip].parse().expect("an address"), row[port].parse().expect("a port"))
    };
    let ours = survey.rtp_streams.iter();
    let ours =
        ours.map(|s| format!("{}>{}/{:#010x}:{}", s.source, s.destination, s.ssrc, s.packets)).collect();
    let theirs = streams.iter().filter(|row| row["mode"] == "heur").map(|row| {
        let (from, to) = (address(row, "src", "sport"), address(row, "dst", "dport"));
        format!("{from}>{to}/{}:{}", row["ssrc"].to_lowercase(), row["packets"])
    });
    let ids = calls.iter().map(|row| row["call_id"].clone()).collect();
    [
        ("streams", difference(ours, theirs.collect())),
        ("calls", difference(survey.call_ids.iter().cloned().collect(), ids)),
    ]
}

fn by_file(rows: Vec<HashMap<String, String>>) -> HashMap<String, Vec<HashMap<String, String>>> {
    let mut files: HashMap<String, Vec<HashMap<String, String>>> = HashMap::new();
    rows.into_iter().for_each(|row| files.entry(row["file"].clone()).or_default().push(row));
    files
}

#[test]
fn every_capture_is_read_with_the_figures_of_tshark() {
    let Some(data) = common::shared_data() else { return };
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    let index = common::rows(&data.join("pcap/INDEX.tsv"));
    assert!(index.len() >= 84, "only {} captures in the index", index.len());
    let streams = by_file(common::rows(&data.join("pcap/STREAMS.tsv")));
    let calls = by_file(common::rows(&data.join("pcap/CALLS.tsv")));
    let none = Vec::new();
    for row in &index {
        let file = &row["file"];
        let capture = read(&data.join("pcap").join(file)).unwrap_or_else(|error| panic!("{error}"));
        let survey = survey(&capture);
        let (streams, calls) = (streams.get(file).unwrap_or(&none), calls.get(file).unwrap_or(&none));
        let differences = differences(&survey, streams, calls);
        for (column, ours) in figures(&capture, &survey).into_iter().chain(differences) {
            let theirs = match column {
                "streams" | "calls" => String::new(),
                "sip_requests" | "sip_responses" => written(&counts(&row[column])),
                "duration_s" => format!("{:.6}", row[column].parse::<f64>().expect("seconds")),
                "format" => row[column].trim_end_matches(" (gzip compressed)").to_owned(),
                _ => row[column].clone(),
            };
            let exception = EXCEPTIONS.iter().position(|e| e.0 == file && e.1 == column);
            used.extend(exception);
            match exception.map(|e| EXCEPTIONS[e].2) {
                None if ours != theirs => {
                    wrong.push(format!("{file} {column}: ours {ours}, tshark {theirs}"))
                }
                Some(_) if ours == theirs => {
                    wrong.push(format!("{file} {column}: {ours} is no exception any more"))
                }
                Some(listed) if ours != listed => {
                    wrong.push(format!("{file} {column}: ours {ours}, exception {listed}, tshark {theirs}"));
                }
                _ => {}
            }
        }
    }
    let unused = EXCEPTIONS.iter().enumerate().filter(|(n, _)| !used.contains(n));
    wrong.extend(unused.map(|(_, e)| format!("exception for {} {} matches nothing", e.0, e.1)));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
