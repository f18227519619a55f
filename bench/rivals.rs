//! What others have built for the same: Kamailio as a proxy, rtpengine as a relay.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tandem::cli::local::Folder;

use crate::kept::Kept;
use crate::parties::{Description, Relayed};

/// As many as rtpengine takes by itself on two cores.
const THREADS: u32 = 2;
const READY_WITHIN: Duration = Duration::from_secs(5);

/// A UDP port of loopback that is free now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A stateful, record-routing proxy (tm, rr, dispatcher), one receiving process, the fastest of its allocators.
pub(crate) struct Kamailio {
    pub(crate) at: SocketAddr,
    kept: Kept,
    _folder: Folder,
}

const KAMAILIO: &str = r#"
debug=0
log_stderror=yes
fork=yes
children=1
disable_tcp=yes
dns=no
rev_dns=no
auto_aliases=no
listen=udp:@AT@
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "dispatcher.so"
modparam("dispatcher", "list_file", "@LIST@")
modparam("rr", "enable_full_lr", 0)
request_route {
    if (!mf_process_maxfwd_header("10")) {
        sl_send_reply("483", "Too Many Hops");
        exit;
    }
    if (has_totag()) {
        if (loose_route() || is_method("ACK") && t_check_trans()) t_relay();
        exit;
    }
    t_check_trans();
    record_route();
    if (!ds_select_dst("1", "0")) {
        sl_send_reply("500", "No Destination");
        exit;
    }
    t_relay();
}
"#;

impl Kamailio {
    pub(crate) fn start(program: &str, callee: SocketAddr) -> anyhow::Result<Kamailio> {
        let folder = Folder::new()?;
        let files = folder.folder("kamailio", "run")?;
        let (list, config, errors) = (files.join("list"), files.join("config"), files.join("errors"));
        let at = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        std::fs::write(&list, format!("1 sip:{callee}\n"))?;
        let text = KAMAILIO.replace("@AT@", &at.to_string()).replace("@LIST@", &list.display().to_string());
        std::fs::write(&config, text)?;
        let files = files.display();
        let args = format!("-f {} -x fm -m 1024 -M 16 -DD -E -Y {files}", config.display());
        let args: Vec<String> = args.split(' ').map(String::from).collect();
        let kept = Kept::start(program, &args, Some(&errors))?;
        let probe = UdpSocket::bind("127.0.0.1:0")?;
        probe.set_read_timeout(Some(Duration::from_millis(100)))?;
        // Hops are out: it answers by itself.
        let me = probe.local_addr()?;
        let options = format!(
            "OPTIONS sip:{at} SIP/2.0\r\nVia: SIP/2.0/UDP {me};branch=z9hG4bKready\r\nMax-Forwards: 0\r\n\
             From: <sip:bench@{me}>;tag=1\r\nTo: <sip:{at}>\r\nCall-ID: ready\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
        );
        let start = Instant::now();
        while probe.send_to(options.as_bytes(), at).and_then(|_| probe.recv(&mut [0; 2_048])).is_err() {
            let said = || std::fs::read_to_string(&errors).unwrap_or_default();
            ensure!(start.elapsed() < READY_WITHIN, "{program} does not answer: {}", said());
        }
        Ok(Kamailio { at, kept, _folder: folder })
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.kept.family()
    }
}

/// A relay in user space, controlled by its `ng` protocol.
pub(crate) struct Rtpengine {
    kept: Kept,
    control: UdpSocket,
    asked: u32,
}

impl Rtpengine {
    pub(crate) fn start(program: &str) -> anyhow::Result<Rtpengine> {
        let at = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let args = format!(
            "--config-file=none --interface=127.0.0.1 --listen-ng={at} --table=-1 --foreground --log-stderr --log-level=3 \
             --port-min=40000 --port-max=49999 --num-threads={THREADS}"
        );
        let args: Vec<String> = args.split(' ').map(String::from).collect();
        let kept = Kept::start(program, &args, None)?;
        let control = UdpSocket::bind("127.0.0.1:0")?;
        control.connect(at)?;
        control.set_read_timeout(Some(Duration::from_millis(500)))?;
        let mut engine = Rtpengine { kept, control, asked: 0 };
        let start = Instant::now();
        while engine.ask("d7:command4:pinge").is_err() {
            ensure!(start.elapsed() < READY_WITHIN, "{program} does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(engine)
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        vec![self.kept.pid]
    }

    /// A request, and the answer to it without its cookie.
    fn ask(&mut self, dictionary: &str) -> anyhow::Result<String> {
        self.asked += 1;
        let cookie = format!("c{} ", self.asked);
        let mut buffer = [0; 8_192];
        for _ in 0..5 {
            self.control.send(format!("{cookie}{dictionary}").as_bytes())?;
            while let Ok(len) = self.control.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..len]);
                if let Some(answer) = text.strip_prefix(&cookie) {
                    return Ok(answer.to_owned());
                }
            }
        }
        bail!("rtpengine is silent")
    }

    /// Makes it a relay between the two parties of each call.
    pub(crate) fn set_up(
        &mut self,
        calls: u32,
        party: impl Fn(u32, usize) -> SocketAddr,
    ) -> anyhow::Result<Vec<Relayed>> {
        let one = |call: u32| {
            let id = format!("{call}@bench");
            let mut place =
                |command: &str, side: usize, tags: &[(&str, &str)]| -> anyhow::Result<SocketAddr> {
                    let sdp = Description::at(party(call, side));
                    let mut words =
                        vec![("command", command), ("call-id", id.as_str()), ("sdp", sdp.text.as_str())];
                    words.extend_from_slice(tags);
                    words.push(("ICE", "remove"));
                    let dictionary: String =
                        words.iter().map(|(key, value)| string(key) + &string(value)).collect();
                    let answer = self.ask(&format!("d{dictionary}e"))?;
                    Description::place(&answer).with_context(|| format!("no description in {answer}"))
                };
            // The offer goes to the callee, which learns from it where it sends to.
            let callee = place("offer", 0, &[("from-tag", "a")])?;
            let caller = place("answer", 1, &[("from-tag", "a"), ("to-tag", "b")])?;
            Ok(Relayed { ports: [caller, callee] })
        };
        (0..calls).map(one).collect()
    }
}

/// A string of bencode.
fn string(text: &str) -> String {
    format!("{}:{text}", text.len())
}
