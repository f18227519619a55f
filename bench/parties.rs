//! Callers and callees as text: they set calls up through a proxy and keep them, as many as asked for.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tandem::io::{sys_socket, sys_time};

/// Calls that are being set up at a time.
const AT_ONCE: usize = 64;
/// How long a party waits before it says a thing again.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long one call may take.
const GIVE_UP: Duration = Duration::from_secs(20);

/// A session description of one audio stream.
pub(crate) struct Description {
    pub(crate) text: String,
}

impl Description {
    /// The one of a party that takes media at `place`.
    pub(crate) fn at(place: SocketAddr) -> Description {
        let (ip, port) = (place.ip(), place.port());
        Description {
            text: format!(
                "v=0\r\no=bench 53655765 2353687637 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\n\
                 m=audio {port} RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n\
                 a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=ptime:20\r\na=sendrecv\r\n"
            ),
        }
    }

    /// Where the description within a text says that media is taken.
    pub(crate) fn place(text: &str) -> Option<SocketAddr> {
        let after = |mark: &str| text.split_once(mark)?.1.split([' ', '\r', '\n']).next();
        Some(SocketAddr::new(after("c=IN IP4 ")?.parse().ok()?, after("m=audio ")?.parse().ok()?))
    }
}

/// A call that is relayed: where its caller and where its callee send their media.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Relayed {
    pub(crate) ports: [SocketAddr; 2],
}

/// The values of a header, line by line.
fn values<'t>(text: &'t str, name: &str) -> impl Iterator<Item = &'t str> {
    let head = text.split("\r\n\r\n").next().unwrap_or_default();
    let name = name.to_owned();
    head.split("\r\n").filter_map(move |line| line.strip_prefix(&*name)?.strip_prefix(": "))
}

fn value<'t>(text: &'t str, name: &str) -> &'t str {
    values(text, name).next().unwrap_or_default()
}

/// The number of the call that a message belongs to.
pub(crate) fn number(text: &str) -> Option<u32> {
    value(text, "Call-ID").split('@').next()?.parse().ok()
}

/// The INVITE that begins call `number`.
pub(crate) fn invite(number: u32, caller: SocketAddr, proxy: SocketAddr, body: &Description) -> String {
    let body = &body.text;
    format!(
        "INVITE sip:service@{proxy} SIP/2.0\r\nVia: SIP/2.0/UDP {caller};branch=z9hG4bK-bench-{number}-1\r\n\
         From: \"bench\" <sip:bench@{caller}>;tag=caller{number}\r\nTo: <sip:service@{proxy}>\r\nCall-ID: {number}@bench\r\n\
         CSeq: 1 INVITE\r\nContact: <sip:bench@{caller}>\r\nMax-Forwards: 70\r\nSubject: Performance Test\r\n\
         Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The 200 to a request, from the callee.
pub(crate) fn accept(request: &str, callee: SocketAddr, body: Option<&Description>) -> String {
    let body = body.map_or("", |body| &body.text);
    let lines =
        |name: &str| -> String { values(request, name).map(|v| format!("{name}: {v}\r\n")).collect() };
    let to = value(request, "To");
    let tag = if to.contains(";tag=") {
        String::new()
    } else {
        format!(";tag=callee{}", number(request).unwrap_or(0))
    };
    let kind = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
    format!(
        "SIP/2.0 200 OK\r\n{}{}{}To: {to}{tag}\r\n{}{}Contact: <sip:{callee};transport=UDP>\r\n{kind}Content-Length: {}\r\n\r\n{body}",
        lines("Via"),
        lines("Record-Route"),
        lines("From"),
        lines("Call-ID"),
        lines("CSeq"),
        body.len()
    )
}

/// The ACK to a 200, from the caller.
pub(crate) fn acknowledge(accepted: &str, caller: SocketAddr) -> String {
    let routes: Vec<&str> = values(accepted, "Record-Route").collect();
    let routes: String = routes.iter().rev().map(|route| format!("Route: {route}\r\n")).collect();
    let uri = value(accepted, "Contact").trim_matches(['<', '>']);
    let (from, to, id) = (value(accepted, "From"), value(accepted, "To"), value(accepted, "Call-ID"));
    format!(
        "ACK {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {caller};branch=z9hG4bK-bench-{id}-ack\r\nMax-Forwards: 70\r\n{routes}\
         From: {from}\r\nTo: {to}\r\nCall-ID: {id}\r\nCSeq: 1 ACK\r\nContact: <sip:bench@{caller}>\r\nContent-Length: 0\r\n\r\n"
    )
}

/// One call that is being set up.
struct Waiting {
    number: u32,
    began: Instant,
    said: Instant,
    /// What its caller says again if nothing comes.
    text: String,
    ports: [Option<SocketAddr>; 2],
}

/// Two agents, for all callers and all callees.
pub(crate) struct Parties {
    caller: UdpSocket,
    callee: UdpSocket,
}

fn bound() -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_nonblocking(true)?;
    sys_socket::set_buffers(socket.as_fd(), sys_socket::Buffers { recv: 4 << 20, send: 4 << 20 })?;
    Ok(socket)
}

impl Parties {
    pub(crate) fn new() -> anyhow::Result<Parties> {
        Ok(Parties { caller: bound()?, callee: bound()? })
    }

    /// Where the proxy is to send calls.
    pub(crate) fn callee(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.callee.local_addr()?)
    }

    /// Sets calls up through `proxy`, at most `rate` a second; `media` says where each side of each call takes media. In the order of their numbers.
    pub(crate) fn set_up(
        &self,
        proxy: SocketAddr,
        (calls, rate): (std::ops::Range<u32>, f64),
        media: impl Fn(u32, usize) -> SocketAddr,
    ) -> anyhow::Result<Vec<Relayed>> {
        let (caller, callee) = (self.caller.local_addr()?, self.callee.local_addr()?);
        let mut next = calls.clone();
        let mut waiting: VecDeque<Waiting> = VecDeque::new();
        let mut done = vec![None; calls.len()];
        let mut buffer = vec![0; 1 << 16];
        let start = Instant::now();
        loop {
            let due = |next: &std::ops::Range<u32>| {
                f64::from(next.start - calls.start) < start.elapsed().as_secs_f64() * rate
            };
            while waiting.len() < AT_ONCE
                && due(&next)
                && let Some(number) = next.next()
            {
                let text = invite(number, caller, proxy, &Description::at(media(number, 0)));
                self.caller.send_to(text.as_bytes(), proxy)?;
                let now = Instant::now();
                waiting.push_back(Waiting { number, began: now, said: now, text, ports: [None; 2] });
            }
            if waiting.is_empty() && next.is_empty() {
                return done.into_iter().collect::<Option<Vec<_>>>().context("a call was never set up");
            }
            let mut heard = 0;
            while let Ok((len, from)) = self.callee.recv_from(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..len]);
                let call = number(&text);
                let Some(at) = waiting.iter().position(|w| Some(w.number) == call) else { continue };
                heard += 1;
                if text.starts_with("INVITE ") {
                    waiting[at].ports[1] = Description::place(&text);
                    let body = Description::at(media(waiting[at].number, 1));
                    self.callee.send_to(accept(&text, callee, Some(&body)).as_bytes(), from)?;
                } else if text.starts_with("ACK ")
                    && let Some(Waiting { number, ports: [Some(caller), Some(callee)], .. }) =
                        waiting.remove(at)
                {
                    done[(number - calls.start) as usize] = Some(Relayed { ports: [caller, callee] });
                }
            }
            while let Ok((len, _)) = self.caller.recv_from(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..len]);
                heard += 1;
                ensure!(text.starts_with("SIP/2.0 1") || text.starts_with("SIP/2.0 200"), "refused: {text}");
                let call = number(&text);
                if let Some(one) =
                    waiting.iter_mut().find(|w| Some(w.number) == call && text.contains(" 200 OK"))
                {
                    one.ports[0] = Description::place(&text);
                    one.text = acknowledge(&text, caller);
                    one.said = Instant::now();
                    self.caller.send_to(one.text.as_bytes(), proxy)?;
                }
            }
            if heard > 0 {
                continue;
            }
            sys_time::wait_readable(self.caller.as_fd(), 1)?;
            for one in waiting.iter_mut().filter(|one| one.said.elapsed() > PATIENCE) {
                ensure!(one.began.elapsed() < GIVE_UP, "call {} is not set up after {GIVE_UP:?}", one.number);
                one.said = Instant::now();
                self.caller.send_to(one.text.as_bytes(), proxy)?;
            }
        }
    }
}
