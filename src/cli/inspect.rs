//! `tandem inspect`: what a capture holds, as a table and as JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::capture::survey::{RtpStream, Survey, survey};
use crate::cli::capture::{Capture, read};
use crate::cli::{complain, json};

/// RTP streams shown per capture; the JSON report has all.
const SHOWN_STREAMS: usize = 20;

/// Arguments of `tandem inspect`.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// Captures: pcap or pcapng, also gzipped
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Also write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The JSON report. Keys are stable.
#[derive(Debug, Default, Serialize)]
struct Report {
    captures: Vec<FileReport>,
    /// Files that could not be read at all.
    errors: Vec<FileError>,
}

#[derive(Debug, Serialize)]
struct FileError {
    file: String,
    error: String,
}

/// The figures of one capture. `sip_*` counts UDP and TCP together, `sip_over_tcp_*` the TCP part.
#[derive(Debug, Serialize)]
struct FileReport {
    file: String,
    format: &'static str,
    link_type: String,
    packets: u32,
    duration_s: f64,
    udp_datagrams: usize,
    fragments: u32,
    incomplete_fragments: u32,
    cut_packets: u32,
    other_packets: u32,
    sip_frames: u32,
    sip_requests: BTreeMap<String, u32>,
    sip_responses: BTreeMap<String, u32>,
    call_ids: usize,
    call_id_list: Vec<String>,
    sip_over_tcp_frames: u32,
    sip_over_tcp_requests: BTreeMap<String, u32>,
    sip_over_tcp_responses: BTreeMap<String, u32>,
    sip_over_tcp_call_ids: usize,
    rtp_streams: Vec<RtpStream>,
    rtcp_frames: u32,
    /// What could not be read of the file.
    damage: Option<String>,
}

impl FileReport {
    fn new(path: &Path, capture: Capture, survey: Survey) -> FileReport {
        let Survey { sip, sip_over_tcp, call_ids, call_ids_over_tcp, rtp_streams, rtcp_frames } = survey;
        FileReport {
            file: path.display().to_string(),
            format: capture.format,
            link_type: capture.link_type,
            packets: capture.packets,
            duration_s: capture.duration.0 as f64 / 1e9,
            udp_datagrams: capture.datagrams.len(),
            fragments: capture.fragments,
            incomplete_fragments: capture.incomplete_fragments,
            cut_packets: capture.cut_packets,
            other_packets: capture.other_packets,
            sip_frames: sip.frames,
            sip_requests: sip.requests,
            sip_responses: sip.responses,
            call_ids: call_ids.len(),
            call_id_list: call_ids,
            sip_over_tcp_frames: sip_over_tcp.frames,
            sip_over_tcp_requests: sip_over_tcp.requests,
            sip_over_tcp_responses: sip_over_tcp.responses,
            sip_over_tcp_call_ids: call_ids_over_tcp,
            rtp_streams,
            rtcp_frames,
            damage: capture.damage,
        }
    }
}

/// Runs the command: a table on standard output, errors on standard error. The exit status is 1 if a
/// file could not be read at all; the others are reported all the same.
///
/// # Errors
/// The report cannot be written: a full disk, a file that cannot be created.
pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    for path in &args.files {
        match read(path) {
            Ok(capture) => {
                let survey = survey(&capture);
                report.captures.push(FileReport::new(path, capture, survey));
            }
            Err(error) => {
                report.errors.push(FileError { file: path.display().to_string(), error: error.to_string() });
            }
        }
    }
    // The file first, since whoever reads the table through a pager may close it early; but the table
    // is shown even if the file cannot be written.
    let written = args.json.as_deref().map_or(Ok(()), |path| json::write(path, &report));
    for error in &report.errors {
        complain(&error.error);
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let shown =
        report.captures.iter().try_for_each(|capture| show(&mut out, capture)).and_then(|()| out.flush());
    match shown {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    written?;
    Ok(if report.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The table of one capture.
fn show(out: &mut impl Write, report: &FileReport) -> io::Result<()> {
    writeln!(out, "{}", report.file)?;
    let (packets, seconds) = (report.packets, report.duration_s);
    writeln!(
        out,
        "  packets   {packets} in {seconds:.3} s ({}, link type {})",
        report.format, report.link_type
    )?;
    writeln!(
        out,
        "            UDP datagrams {}, IP fragments {} (without the rest {}), cut short {}, other {}",
        report.udp_datagrams,
        report.fragments,
        report.incomplete_fragments,
        report.cut_packets,
        report.other_packets,
    )?;
    if let Some(damage) = &report.damage {
        writeln!(out, "  damaged   {damage}")?;
    }
    let all = (report.sip_frames, &report.sip_requests, &report.sip_responses, report.call_ids);
    show_sip(out, "SIP", all)?;
    if report.sip_over_tcp_frames > 0 {
        let tcp = (
            report.sip_over_tcp_frames,
            &report.sip_over_tcp_requests,
            &report.sip_over_tcp_responses,
            report.sip_over_tcp_call_ids,
        );
        show_sip(out, "  by TCP", tcp)?;
    }
    let packets: u64 = report.rtp_streams.iter().map(|s| u64::from(s.packets)).sum();
    let announced = report.rtp_streams.iter().filter(|s| s.announced).count();
    writeln!(
        out,
        "  RTP       packets {packets}, streams {} (announced by SDP {announced}); RTCP {}",
        report.rtp_streams.len(),
        report.rtcp_frames
    )?;
    for stream in report.rtp_streams.iter().take(SHOWN_STREAMS) {
        let types: Vec<String> = stream.payload_types.iter().map(u8::to_string).collect();
        writeln!(
            out,
            "            {:>21} -> {:<21} SSRC {:#010x}  payload type {:<5}  packets {}{}",
            stream.source.to_string(),
            stream.destination.to_string(),
            stream.ssrc,
            types.join(" "),
            stream.packets,
            if stream.announced { "" } else { " (not announced, told by its looks)" },
        )?;
    }
    if let Some(more) = report.rtp_streams.len().checked_sub(SHOWN_STREAMS).filter(|more| *more > 0) {
        writeln!(out, "            and {more} more: --json FILE lists them")?;
    }
    Ok(())
}

type SipFigures<'a> = (u32, &'a BTreeMap<String, u32>, &'a BTreeMap<String, u32>, usize);

fn show_sip(out: &mut impl Write, label: &str, figures: SipFigures<'_>) -> io::Result<()> {
    let (frames, requests, responses, calls) = figures;
    let list = |counts: &BTreeMap<String, u32>| {
        counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    writeln!(out, "  {label:<9} messages {frames}, call ids {calls}")?;
    for (what, counts) in [("requests", requests), ("responses", responses)] {
        if !counts.is_empty() {
            writeln!(out, "            {what}: {}", list(counts))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::capture::survey::SipCounts;

    /// A pcap (raw IP) with an INVITE that announces 10.0.0.1:4000, and one RTP packet to there.
    fn capture() -> Vec<u8> {
        let mut file = [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 101].map(u32::to_le_bytes).concat();
        let sip: &[u8] = b"INVITE sip:b@x SIP/2.0\r\nCall-ID: a@b\r\n\r\nv=0\r\nc=IN IP4 10.0.0.1\r\nm=audio 4000 RTP/AVP 0\r\n";
        let rtp: &[u8] = &[0x80, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 1, 2];
        for (second, ports, payload) in [(10u32, (5060, 5060), sip), (12, (6000, 4000), rtp)] {
            let mut packet = Vec::new();
            let builder =
                etherparse::PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64).udp(ports.0, ports.1);
            builder.write(&mut packet, payload).expect("a Vec takes all");
            let length = packet.len() as u32;
            file.extend([second, 0, length, length].map(u32::to_le_bytes).concat());
            file.extend(packet);
        }
        file
    }

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tandem-inspect-{}-{name}", std::process::id()))
    }

    #[test]
    fn good_files_are_reported_beside_bad_ones() {
        let (good, missing, json) = (scratch("good.pcap"), scratch("missing.pcap"), scratch("report.json"));
        std::fs::write(&good, capture()).expect("temporary file");
        let args = InspectArgs { files: vec![missing, good.clone()], json: Some(json.clone()) };
        assert_eq!(run(&args).expect("a report"), ExitCode::FAILURE);
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&json).expect("report")).expect("JSON");
        let capture = &report["captures"][0];
        assert_eq!(report["errors"].as_array().map(Vec::len), Some(1));
        assert_eq!(capture["packets"], 2);
        assert_eq!(capture["link_type"], "rawip");
        assert_eq!(capture["duration_s"], 2.0);
        assert_eq!(capture["sip_requests"], serde_json::json!({"INVITE": 1}));
        assert_eq!(capture["call_ids"], 1);
        assert_eq!(capture["call_id_list"], serde_json::json!(["a@b"]));
        let stream = serde_json::json!({"source": "10.0.0.2:6000", "destination": "10.0.0.1:4000",
            "ssrc": "0x00000007", "payload_types": [0], "packets": 1, "announced": true});
        assert_eq!(capture["rtp_streams"], serde_json::json!([stream]));
        assert_eq!(capture["damage"], serde_json::Value::Null);
        let args = InspectArgs { files: vec![good.clone()], json: None };
        assert_eq!(run(&args).expect("a report"), ExitCode::SUCCESS);
        for path in [good, json] {
            std::fs::remove_file(path).expect("temporary file");
        }
    }

    #[test]
    fn a_report_that_cannot_be_written_is_an_error() {
        let good = scratch("disk.pcap");
        std::fs::write(&good, capture()).expect("temporary file");
        for (path, reason) in [("/dev/full", "No space left"), ("/nowhere/report.json", "No such file")] {
            let args = InspectArgs { files: vec![good.clone()], json: Some(PathBuf::from(path)) };
            let error = format!("{:#}", run(&args).expect_err("cannot be written"));
            assert!(error.contains(path) && error.contains(reason), "{error}");
        }
        std::fs::remove_file(good).expect("temporary file");
    }

    #[test]
    fn the_table_says_what_matters() {
        let sip =
            SipCounts { frames: 1, requests: [("INVITE".to_owned(), 1)].into(), ..SipCounts::default() };
        let survey = Survey { sip: sip.clone(), sip_over_tcp: sip, ..Survey::default() };
        let damage = Some("the file breaks off".to_owned());
        let report = FileReport::new(Path::new("x.pcap"), Capture { damage, ..Capture::default() }, survey);
        let mut out = Vec::new();
        show(&mut out, &report).expect("a Vec takes all");
        let text = String::from_utf8(out).expect("text");
        for part in [
            "x.pcap\n",
            "damaged   the file breaks off",
            "by TCP  messages 1",
            "requests: INVITE 1",
            "streams 0 ",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
