//! One end of a call: a user agent with the transactions of RFC 3261 section 17, written for this test alone.
//!
//! It sends requests and replies again as the RFC says, answers what comes again with what it said before, and keeps a
//! copy of everything it ever received: what comes again must be the same bytes. What is new goes to the script.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::message::Message;

/// Milliseconds in ns.
pub(super) const MS: u64 = 1_000_000;
/// RFC 3261 section 17.1.1.1.
const T1: u64 = 500 * MS;
const T2: u64 = 4_000 * MS;
/// When a transaction is given up.
const GIVE_UP: u64 = 64 * T1;
const NEVER: u64 = u64::MAX;

/// A request of ours.
struct Client {
    branch: String,
    method: String,
    cseq: u32,
    bytes: Vec<u8>,
    to: SocketAddr,
    again: u64,
    interval: u64,
    until: u64,
    provisional: bool,
    answered: bool,
    /// What acknowledges its final response.
    ack: Option<(SocketAddr, Vec<u8>)>,
}

/// A request of the other side.
struct Server {
    /// Branch and method.
    id: (String, String),
    cseq: u32,
    to: SocketAddr,
    reply: Vec<u8>,
    code: u16,
    /// When an INVITE's final response, or a reliable provisional one, is sent again.
    again: u64,
    interval: u64,
    until: u64,
}

/// The first copy of a message and when the last came.
struct Seen {
    bytes: Vec<u8>,
    last: u64,
}

/// What is new to the script.
#[derive(Debug)]
pub(super) enum News {
    /// A request, ACK and CANCEL included.
    Request(Message),
    /// A response to a request of ours of that CSeq.
    Response(Message),
    /// A request of that method and CSeq was never answered.
    Silence(String, u32),
}

/// The other end, as this one knows it (RFC 3261 section 12).
#[derive(Default)]
pub(super) struct Remote {
    pub tag: String,
    pub target: String,
    pub routes: Vec<String>,
}

/// A user agent in one call.
pub(super) struct Agent {
    pub at: SocketAddr,
    pub tag: String,
    pub remote: Remote,
    /// Where requests outside a dialog go.
    pub proxy: SocketAddr,
    pub request_uri: String,
    call_id: String,
    /// From as this end writes it, and To, without tags.
    names: [String; 2],
    cseq: u32,
    branches: u32,
    clients: Vec<Client>,
    servers: Vec<Server>,
    seen: BTreeMap<(String, String, u16), Seen>,
    /// Datagrams to be sent.
    pub out: Vec<(SocketAddr, Vec<u8>)>,
    /// When something was sent again by a timer.
    pub resent: Vec<u64>,
    /// When something came again sooner than anybody should have sent it, and what.
    pub doubles: Vec<(u64, String)>,
    /// What broke a rule.
    pub faults: Vec<String>,
}

impl Agent {
    pub(super) fn new(
        at: SocketAddr,
        proxy: SocketAddr,
        call_id: &str,
        tag: String,
        names: [String; 2],
    ) -> Agent {
        Agent {
            at,
            tag,
            remote: Remote::default(),
            proxy,
            request_uri: String::new(),
            call_id: String::from(call_id),
            names,
            cseq: 0,
            branches: 0,
            clients: Vec::new(),
            servers: Vec::new(),
            seen: BTreeMap::new(),
            out: Vec::new(),
            resent: Vec::new(),
            doubles: Vec::new(),
            faults: Vec::new(),
        }
    }

    pub(super) fn contact(&self) -> String {
        format!("sip:{}@{}", self.tag, self.at)
    }

    /// When [`Agent::tick`] has something to do.
    pub(super) fn due(&self) -> u64 {
        let clients = self.clients.iter().map(|client| client.again.min(client.until));
        let servers = self.servers.iter().map(|server| server.again.min(server.until));
        clients.chain(servers).min().unwrap_or(NEVER)
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.clients.iter().all(|client| client.answered)
            && self.servers.iter().all(|server| server.again == NEVER)
    }

    fn head(&mut self, method: &str, cseq: u32, branch: &str) -> String {
        let (uri, routes) = if self.remote.target.is_empty() {
            (self.request_uri.clone(), String::new())
        } else {
            let routes: String =
                self.remote.routes.iter().map(|route| format!("Route: {route}\r\n")).collect();
            (self.remote.target.clone(), routes)
        };
        let to_tag =
            if self.remote.tag.is_empty() { String::new() } else { format!(";tag={}", self.remote.tag) };
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {};branch={branch};rport\r\nMax-Forwards: 70\r\n{routes}From: \
             <{}>;tag={}\r\nTo: <{}>{to_tag}\r\nCall-ID: {}\r\nCSeq: {cseq} {method}\r\n",
            self.at, self.names[0], self.tag, self.names[1], self.call_id
        )
    }

    /// Where a request within the dialog goes.
    fn next_hop(&self) -> SocketAddr {
        let uri = self.remote.routes.first().unwrap_or(&self.remote.target);
        super::message::host_port(uri).unwrap_or(self.proxy)
    }

    /// Sends a request, outside a dialog if there is none yet.
    pub(super) fn request(
        &mut self,
        now: u64,
        method: &str,
        headers: &[(&str, String)],
        sdp: Option<String>,
    ) -> u32 {
        self.cseq += 1;
        self.branches += 1;
        let branch = format!("z9hG4bK-{}-{}", self.tag, self.branches);
        let mut text = self.head(method, self.cseq, &branch);
        text += &format!("Contact: <{}>\r\n", self.contact());
        finish(&mut text, headers, sdp);
        let to = self.next_hop();
        self.start(now, method, branch, to, text.into_bytes());
        self.cseq
    }

    fn start(&mut self, now: u64, method: &str, branch: String, to: SocketAddr, bytes: Vec<u8>) {
        self.out.push((to, bytes.clone()));
        let (again, until) = (now + T1, now + GIVE_UP);
        let (method, cseq) = (String::from(method), self.cseq);
        let (provisional, answered, ack) = (false, false, None);
        let client = Client {
            branch,
            method,
            cseq,
            bytes,
            to,
            again,
            interval: T1,
            until,
            provisional,
            answered,
            ack,
        };
        self.clients.push(client);
    }

    /// Whether the INVITE that is under way has had a provisional response: it may be cancelled.
    pub(super) fn may_cancel(&self) -> bool {
        self.clients.iter().any(|client| client.method == "INVITE" && !client.answered && client.provisional)
    }

    /// Cancels it.
    pub(super) fn cancel(&mut self, now: u64) {
        let open = self.clients.iter().find(|client| client.method == "INVITE" && !client.answered);
        let Some(invite) = open.and_then(|client| Message::parse(&client.bytes)) else { return };
        let (branch, to) = (invite.branch(), self.proxy);
        let mut text = format!("CANCEL {} SIP/2.0\r\n", invite.uri());
        for name in ["Via", "Max-Forwards", "From", "To", "Call-ID"] {
            text += &format!("{name}: {}\r\n", invite.get(name));
        }
        text += &format!("CSeq: {} CANCEL\r\n", invite.cseq());
        finish(&mut text, &[], None);
        self.start(now, "CANCEL", branch, to, text.into_bytes());
    }

    /// Acknowledges a 2xx; the same bytes whenever it comes again.
    pub(super) fn ack(&mut self, cseq: u32, sdp: Option<String>) {
        self.branches += 1;
        let branch = format!("z9hG4bK-{}-{}", self.tag, self.branches);
        let mut text = self.head("ACK", cseq, &branch);
        finish(&mut text, &[], sdp);
        let ack = (self.next_hop(), text.into_bytes());
        self.out.push(ack.clone());
        let invite = self.clients.iter_mut().find(|client| client.method == "INVITE" && client.cseq == cseq);
        invite.into_iter().for_each(|client| client.ack = Some(ack.clone()));
    }

    /// Learns the other end from its message.
    pub(super) fn learn(&mut self, message: &Message) {
        let (tag, routes) = if message.code() == 0 {
            (message.tag("From"), message.all("Record-Route"))
        } else {
            (message.tag("To"), message.all("Record-Route").into_iter().rev().collect())
        };
        let target = super::message::uri_of(message.get("Contact"));
        if !target.is_empty() {
            self.remote.target = String::from(target);
        }
        self.remote.tag = tag;
        // The route set of a dialog never changes (RFC 3261 section 12.2).
        if self.remote.routes.is_empty() {
            self.remote.routes = routes;
        }
    }

    /// Answers a request.
    pub(super) fn reply(
        &mut self,
        now: u64,
        request: &Message,
        code: u16,
        headers: &[(&str, String)],
        sdp: Option<String>,
    ) {
        let mut text = format!("SIP/2.0 {code} Said\r\n");
        for name in ["Via", "Record-Route"] {
            request.all(name).iter().for_each(|value| text += &format!("{name}: {value}\r\n"));
        }
        let tagged = request.tag("To").is_empty() && code > 100;
        let to_tag = if tagged { format!(";tag={}", self.tag) } else { String::new() };
        text += &format!(
            "From: {}\r\nTo: {}{to_tag}\r\nCall-ID: {}\r\nCSeq: {}\r\nContact: <{}>\r\n",
            request.get("From"),
            request.get("To"),
            request.get("Call-ID"),
            request.get("CSeq"),
            self.contact()
        );
        finish(&mut text, headers, sdp);
        let reliable = headers.iter().any(|(name, _)| *name == "RSeq");
        let repeats = request.method() == "INVITE" && (code >= 200 || reliable);
        let id = (request.branch(), request.method());
        let Some(server) = self.servers.iter_mut().find(|server| server.id == id) else { return };
        server.reply = text.into_bytes();
        server.code = code;
        server.again = if repeats { now + T1 } else { NEVER };
        (server.interval, server.until) = (T1, if repeats { now + GIVE_UP } else { NEVER });
        self.out.push((server.to, server.reply.clone()));
    }

    /// The reliable provisional response was acknowledged.
    pub(super) fn is_pracked(&mut self) {
        for server in self.servers.iter_mut().filter(|server| server.code < 200) {
            (server.again, server.until) = (NEVER, NEVER);
        }
    }

    /// Sends again what is due.
    pub(super) fn tick(&mut self, now: u64) -> Vec<News> {
        let mut news = Vec::new();
        for client in &mut self.clients {
            if client.until <= now {
                news.push(News::Silence(client.method.clone(), client.cseq));
                (client.until, client.again, client.answered) = (NEVER, NEVER, true);
            } else if client.again <= now {
                self.out.push((client.to, client.bytes.clone()));
                self.resent.push(now);
                client.interval = if client.method == "INVITE" {
                    client.interval * 2
                } else {
                    (client.interval * 2).min(T2)
                };
                client.again = now + client.interval;
            }
        }
        for server in &mut self.servers {
            if server.until <= now {
                self.faults.push(format!("no ACK for its {} to {}", server.code, server.id.1));
                (server.until, server.again) = (NEVER, NEVER);
            } else if server.again <= now {
                self.out.push((server.to, server.reply.clone()));
                self.resent.push(now);
                server.interval = (server.interval * 2).min(T2);
                server.again = now + server.interval;
            }
        }
        news
    }

    /// Takes a datagram; what is new in it.
    pub(super) fn receive(&mut self, now: u64, bytes: &[u8]) -> Option<News> {
        let Some(message) = Message::parse(bytes) else {
            self.faults.push(format!("not SIP: {:?}", String::from_utf8_lossy(bytes)));
            return None;
        };
        let key = (message.branch(), message.method(), message.code());
        if let Some(seen) = self.seen.get_mut(&key) {
            if seen.bytes != bytes {
                let (first, now) = (String::from_utf8_lossy(&seen.bytes), String::from_utf8_lossy(bytes));
                self.faults.push(format!("came again with other bytes:\n{first}\n---\n{now}"));
            }
            if now - seen.last < T1 * 4 / 5 {
                self.doubles.push((now, format!("{} {} {}", key.1, key.2, key.0)));
            }
            seen.last = now;
        } else {
            self.seen.insert(key, Seen { bytes: bytes.to_vec(), last: now });
        }
        self.check_dialog(&message);
        if message.code() == 0 { self.on_request(now, message) } else { self.on_response(message) }
    }

    fn check_dialog(&mut self, message: &Message) {
        let (ours, theirs) = if message.code() == 0 { ("To", "From") } else { ("From", "To") };
        let (our_tag, their_tag) = (message.tag(ours), message.tag(theirs));
        let first = message.code() == 0 && our_tag.is_empty();
        let other = !self.remote.tag.is_empty() && !their_tag.is_empty() && their_tag != self.remote.tag;
        if message.get("Call-ID") != self.call_id || !first && our_tag != self.tag || other {
            self.faults.push(format!("not of this dialog ({} {}):\n{message}", self.tag, self.remote.tag));
        }
    }

    fn on_request(&mut self, now: u64, message: Message) -> Option<News> {
        let method = message.method();
        if method == "ACK" {
            let cseq = message.cseq();
            let invite =
                self.servers.iter_mut().find(|server| server.id.1 == "INVITE" && server.cseq == cseq)?;
            let first = invite.again != NEVER;
            (invite.again, invite.until) = (NEVER, NEVER);
            return first.then_some(News::Request(message));
        }
        let id = (message.branch(), method);
        if let Some(server) = self.servers.iter().find(|server| server.id == id) {
            if !server.reply.is_empty() {
                self.out.push((server.to, server.reply.clone()));
            }
            return None;
        }
        let Some(to) = message.reply_to() else {
            self.faults.push(format!("no way back:\n{message}"));
            return None;
        };
        let cseq = message.cseq();
        let server =
            Server { id, cseq, to, reply: Vec::new(), code: 0, again: NEVER, interval: T1, until: NEVER };
        self.servers.push(server);
        if message.method() == "CANCEL" {
            self.reply(now, &message, 200, &[], None);
        }
        Some(News::Request(message))
    }

    fn on_response(&mut self, message: Message) -> Option<News> {
        let (branch, method, code) = (message.branch(), message.method(), message.code());
        let found = self.clients.iter_mut().find(|client| client.branch == branch && client.method == method);
        let Some(client) = found else {
            self.faults.push(format!("a response to nothing:\n{message}"));
            return None;
        };
        if code < 200 {
            let first = !client.answered;
            client.provisional = true;
            if client.method == "INVITE" {
                (client.again, client.until) = (NEVER, NEVER);
            }
            return first.then_some(News::Response(message));
        }
        (client.again, client.until) = (NEVER, NEVER);
        if std::mem::replace(&mut client.answered, true) {
            self.out.extend(client.ack.clone());
            return None;
        }
        if method == "INVITE" && code >= 300 {
            let request = Message::parse(&client.bytes)?;
            let mut text = format!("ACK {} SIP/2.0\r\n", request.uri());
            for name in ["Via", "Max-Forwards", "Route", "From"] {
                request.all(name).iter().for_each(|value| text += &format!("{name}: {value}\r\n"));
            }
            let (to, call_id, cseq) = (message.get("To"), message.get("Call-ID"), message.cseq());
            text += &format!("To: {to}\r\nCall-ID: {call_id}\r\nCSeq: {cseq} ACK\r\n");
            finish(&mut text, &[], None);
            client.ack = Some((client.to, text.into_bytes()));
            self.out.extend(client.ack.clone());
        }
        Some(News::Response(message))
    }
}

/// Further headers, the body and its length.
fn finish(text: &mut String, headers: &[(&str, String)], sdp: Option<String>) {
    headers.iter().for_each(|(name, value)| *text += &format!("{name}: {value}\r\n"));
    let body = sdp.unwrap_or_default();
    if !body.is_empty() {
        *text += "Content-Type: application/sdp\r\n";
    }
    *text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
}
