//! SIPp as caller and callee, and what it says of the calls.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tandem::cli::local::Folder;

use crate::kept::Kept;

/// How long a caller may take until it says how it does.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who answers: 180, 200 to the INVITE, 200 to the BYE.
const CALLEE: &str = r#"<?xml version="1.0"?>
<scenario name="callee">
<recv request="INVITE" rrs="true"/>
<send><![CDATA[
SIP/2.0 180 Ringing
[last_Via:]
[last_From:]
[last_To:];tag=[pid]callee[call_number]
[last_Call-ID:]
[last_CSeq:]
[last_Record-Route:]
Contact: <sip:[local_ip]:[local_port];transport=[transport]>
Content-Length: 0

]]></send>
<send retrans="500"><![CDATA[
SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:];tag=[pid]callee[call_number]
[last_Call-ID:]
[last_CSeq:]
[last_Record-Route:]
Contact: <sip:[local_ip]:[local_port];transport=[transport]>
Content-Type: application/sdp
Content-Length: [len]

v=0
o=user1 53655765 2353687637 IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio [media_port] RTP/AVP 0
a=rtpmap:0 PCMU/8000

]]></send>
<recv request="ACK"/>
<recv request="BYE"/>
<send><![CDATA[
SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:]
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:[local_ip]:[local_port];transport=[transport]>
Content-Length: 0

]]></send>
</scenario>
"#;

/// Who calls: the INVITE, and the ACK along the routes.
const CALLER: &str = r#"<?xml version="1.0"?>
<scenario name="caller">
<send retrans="500"><![CDATA[
INVITE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
From: sipp <sip:sipp@[local_ip]:[local_port]>;tag=[pid]caller[call_number]
To: [service] <sip:[service]@[remote_ip]:[remote_port]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: sip:sipp@[local_ip]:[local_port]
Max-Forwards: 70
Subject: Performance Test
Content-Type: application/sdp
Content-Length: [len]

v=0
o=user1 53655765 2353687637 IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio [media_port] RTP/AVP 0
a=rtpmap:0 PCMU/8000

]]></send>
<recv response="100" optional="true"/>
<recv response="180" optional="true"/>
<recv response="200" rrs="true"/>
<send><![CDATA[
ACK [next_url] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
[routes]
From: sipp <sip:sipp@[local_ip]:[local_port]>;tag=[pid]caller[call_number]
To: [service] <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 1 ACK
Contact: sip:sipp@[local_ip]:[local_port]
Max-Forwards: 70
Content-Length: 0

]]></send>
<pause milliseconds="HOLD"/>
<send retrans="500"><![CDATA[
BYE [next_url] SIP/2.0
Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]
[routes]
From: sipp <sip:sipp@[local_ip]:[local_port]>;tag=[pid]caller[call_number]
To: [service] <sip:[service]@[remote_ip]:[remote_port]>[peer_tag_param]
Call-ID: [call_id]
CSeq: 2 BYE
Contact: sip:sipp@[local_ip]:[local_port]
Max-Forwards: 70
Content-Length: 0

]]></send>
<recv response="200"/>
</scenario>
"#;

fn start(program: &str, folder: &Path, side: &str, scenario: &str, args: &str) -> anyhow::Result<Kept> {
    let (file, errors) = (folder.join(format!("{side}.xml")), folder.join(format!("{side}.errors")));
    std::fs::write(&file, scenario)?;
    let common = format!("-sf {} -i 127.0.0.1 -nostdin -buff_size 4194304 -l 1000000 {args}", file.display());
    let args: Vec<String> = common.split(' ').map(String::from).collect();
    Kept::start(program, &args, Some(&errors))
}

/// A callee that answers everybody at once.
pub(crate) struct Callee {
    pub(crate) at: SocketAddr,
    kept: Kept,
    _folder: Folder,
}

impl Callee {
    pub(crate) fn start(program: &str) -> anyhow::Result<Callee> {
        let folder = Folder::new()?;
        let at = SocketAddr::from(([127, 0, 0, 1], crate::rivals::free_port()?));
        let files = folder.folder("sipp", "callee")?;
        let kept = start(program, &files, "callee", CALLEE, &format!("-p {}", at.port()))?;
        Ok(Callee { at, kept, _folder: folder })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.kept.pid
    }
}

/// Calls at a fixed rate, however the proxy does.
pub(crate) struct Caller {
    kept: Kept,
    statistics: PathBuf,
    _folder: Folder,
}

/// What a caller has done so far.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) begun: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) again: u64,
}

impl Caller {
    /// `hold`: how long an answered call lasts, in ms.
    pub(crate) fn start(program: &str, proxy: SocketAddr, rate: f64, hold: u64) -> anyhow::Result<Caller> {
        let folder = Folder::new()?;
        let files = folder.folder("sipp", "caller")?;
        let statistics = files.join("statistics");
        let port = crate::rivals::free_port()?;
        let args = format!("-p {port} -r {rate:.0} -trace_stat -fd 1 -stf {} {proxy}", statistics.display());
        let kept = start(program, &files, "caller", &CALLER.replace("HOLD", &hold.to_string()), &args)?;
        Ok(Caller { kept, statistics, _folder: folder })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.kept.pid
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.statistics).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(String::from).collect()
    }

    /// What it counts just now: it tells once a second, and this waits for that.
    pub(crate) fn counts(&self) -> anyhow::Result<Counts> {
        let (start, known) = (Instant::now(), self.lines().len());
        loop {
            let lines = self.lines();
            if lines.len() > known.max(1) {
                let (names, values) = (lines[0].split(';'), lines[lines.len() - 1].split(';'));
                let row: Vec<(&str, &str)> = names.zip(values).collect();
                let of = |name: &str| -> anyhow::Result<u64> {
                    let value = row.iter().find(|(n, _)| *n == name).map(|(_, value)| value.parse());
                    value.with_context(|| format!("SIPp says nothing of {name}"))?.context("a count")
                };
                return Ok(Counts {
                    begun: of("TotalCallCreated")?,
                    completed: of("SuccessfulCall(C)")?,
                    failed: of("FailedCall(C)")?,
                    again: of("Retransmissions(C)")?,
                });
            }
            ensure!(start.elapsed() < PATIENCE, "SIPp says nothing: {lines:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
