//! Both ends of one call, played by its script.

use std::net::SocketAddr;

use super::agent::{Agent, MS, News};
use super::media::MediaEnd;
use super::message::Message;
use super::script::{Act, Answer, First, Script};

const NEVER: u64 = u64::MAX;

/// Where a call stands between its INVITE and its end.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The INVITE is on its way, or the callee is asked for credentials.
    Invited,
    /// It rings.
    Ringing,
    /// The caller has cancelled.
    Cancelled,
    /// The callee has refused, and the caller does not know yet.
    Refused,
    /// The callee has answered, and does not know yet that the caller has heard it.
    Answered,
    /// They talk.
    Talking,
    /// Within the dialog something was asked that is not answered yet.
    Asking,
    /// One has hung up.
    Leaving,
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Phase; 8] = [
        Phase::Invited,
        Phase::Ringing,
        Phase::Cancelled,
        Phase::Refused,
        Phase::Answered,
        Phase::Talking,
        Phase::Asking,
        Phase::Leaving,
    ];
}

/// Something an end will do.
#[derive(Clone, Debug)]
enum Task {
    Invite,
    Ring(Message),
    Answer(Message),
    Cancel,
    Reply(usize, Message),
    Act(usize),
}

/// A datagram from one of the ends.
pub(super) struct Outgoing {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

/// One call.
pub(super) struct Conversation {
    pub script: Script,
    pub call_id: String,
    /// Caller and callee.
    pub ends: [Agent; 2],
    /// The target that refuses or is silent.
    pub first: Option<Agent>,
    pub media: [MediaEnd; 2],
    tasks: Vec<(u64, Task)>,
    /// The final response to the INVITE that the caller got.
    pub code: u16,
    /// Which end knows that the call is over.
    over: [bool; 2],
    challenged: bool,
    pracked: bool,
    acked: bool,
    /// The end that was on hold and has answered to go on.
    resuming: Option<usize>,
    invite: Option<Message>,
    version: u32,
    /// When the call was answered, and when its end began.
    pub talk: (u64, u64),
    pub log: Vec<(u64, String)>,
    pub faults: Vec<String>,
}

impl Conversation {
    pub(super) fn new(number: usize, script: Script, proxy: SocketAddr) -> Conversation {
        let call_id = format!("call-{number}@sim");
        let place = |net: u8, port: u16| SocketAddr::from(([10, net, 0, number as u8 + 1], port));
        let names = [format!("sip:caller{number}@a.sim"), format!("sip:u{number}@b.sim")];
        let agent = |at, tag: String, names: [String; 2]| Agent::new(at, proxy, &call_id, tag, names);
        let turned = [names[1].clone(), names[0].clone()];
        let mut caller = agent(place(1, 5060), format!("a{number}"), names);
        caller.request_uri = format!("sip:u{number}@b.sim");
        let callee = agent(place(2, 5060), format!("b{number}"), turned.clone());
        let first =
            (script.first != First::None).then(|| agent(place(3, 5060), format!("f{number}"), turned));
        let media = [1, 2].map(|net| MediaEnd::new(place(net, 40_000), u32::from(net) << 16 | number as u32));
        Conversation {
            tasks: vec![(script.start, Task::Invite)],
            script,
            call_id,
            ends: [caller, callee],
            first,
            media,
            code: 0,
            over: [false; 2],
            challenged: false,
            pracked: false,
            acked: false,
            resuming: None,
            invite: None,
            version: 0,
            talk: (NEVER, NEVER),
            log: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// The rule of the route file for this call.
    pub(super) fn rule(&self, number: usize) -> String {
        let first = self.first.as_ref().map_or(String::new(), |first| format!("{}, ", first.at));
        format!("user u{number} {first}{};priority=1\n", self.ends[1].at)
    }

    /// The end at this address: 0 or 1, 2 for the first target.
    pub(super) fn end_at(&self, at: SocketAddr) -> Option<usize> {
        let first = self.first.as_ref().is_some_and(|first| first.at == at).then_some(2);
        self.ends.iter().position(|end| end.at == at).or(first)
    }

    pub(super) fn due(&self) -> u64 {
        let tasks = self.tasks.iter().map(|(at, _)| *at);
        let first = self.first.as_ref().map_or(NEVER, Agent::due);
        let ends = self.ends.iter().map(Agent::due).chain(self.media.iter().map(|media| media.due));
        tasks.chain(ends).min().unwrap_or(NEVER).min(first)
    }

    /// Whether everything has been said.
    pub(super) fn is_over(&self) -> bool {
        let idle = self.ends.iter().all(Agent::is_idle) && self.first.as_ref().is_none_or(Agent::is_idle);
        self.tasks.is_empty() && idle && self.over == [true; 2]
    }

    /// Where it stands; `None`: it has not begun, or it is over.
    pub(super) fn phase(&self) -> Option<Phase> {
        let has = |what: &str| self.log.iter().any(|(_, said)| said == what);
        let acting = |(_, task): &(u64, Task)| matches!(task, Task::Act(_));
        let phase = match self.code {
            _ if !has("caller INVITE") || self.is_over() => return None,
            _ if self.talk.1 != NEVER => Phase::Leaving,
            0 if has("callee refuses") => Phase::Refused,
            0 if has("caller CANCEL") => Phase::Cancelled,
            0 | 200 if has("callee answers") && !self.acked => Phase::Answered,
            0 if has("callee rings") => Phase::Ringing,
            0 => Phase::Invited,
            200 if self.tasks.iter().any(acting) => Phase::Talking,
            200 => Phase::Asking,
            _ => return None,
        };
        Some(phase)
    }

    /// The code that the caller should get.
    pub(super) fn expects(&self) -> &'static [u16] {
        match self.script.answer {
            Answer::Accept => &[200],
            Answer::Refuse(486) => &[486],
            Answer::Refuse(603) => &[603],
            Answer::Refuse(404) => &[404],
            Answer::Refuse(480) => &[480],
            // A proxy may pass a 500 on as it is.
            Answer::Refuse(_) => &[500],
            // The first target may have said 503 before, which goes back as 500.
            Answer::Cancel if self.script.first == First::Busy => &[487, 500],
            Answer::Cancel => &[487],
            Answer::Never => &[408, 487],
        }
    }

    /// What it wants to send now.
    pub(super) fn take_out(&mut self) -> Vec<Outgoing> {
        let agents = self.ends.iter_mut().chain(self.first.as_mut());
        let mut out = Vec::new();
        for agent in agents {
            let from = agent.at;
            out.extend(agent.out.drain(..).map(|(to, bytes)| Outgoing { from, to, bytes }));
        }
        out
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: u64) -> Vec<Outgoing> {
        for end in 0..2 {
            for news in self.ends[end].tick(now) {
                self.hear(now, end, news);
            }
        }
        self.first.iter_mut().for_each(|first| drop(first.tick(now)));
        while let Some(at) = self.tasks.iter().position(|(at, _)| *at <= now) {
            let (_, task) = self.tasks.remove(at);
            self.perform(now, task);
        }
        let mut out = self.take_out();
        for media in &mut self.media {
            let from = media.at;
            out.extend(media.tick(now).map(|(to, bytes)| Outgoing { from, to, bytes }));
        }
        out
    }

    /// Takes a datagram at one of its addresses.
    pub(super) fn receive(
        &mut self,
        now: u64,
        at: SocketAddr,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Vec<Outgoing> {
        if let Some(side) = self.media.iter().position(|media| media.at == at) {
            let [caller, callee] = &mut self.media;
            let (own, other) = if side == 0 { (caller, callee) } else { (callee, caller) };
            own.receive(now, from, bytes, other);
            return Vec::new();
        }
        match self.end_at(at) {
            Some(2) => self.refuse(now, bytes),
            Some(end) if bytes.starts_with(b"OPTIONS") => pinged(&mut self.ends[end], bytes),
            Some(end) => {
                if let Some(news) = self.ends[end].receive(now, bytes) {
                    self.hear(now, end, news);
                }
            }
            None => self.faults.push(format!("a datagram to nobody, {at}")),
        }
        self.take_out()
    }

    /// The target that is tried first.
    fn refuse(&mut self, now: u64, bytes: &[u8]) {
        let Some(first) = self.first.as_mut().filter(|_| self.script.first == First::Busy) else { return };
        if bytes.starts_with(b"OPTIONS") {
            return pinged(first, bytes);
        }
        if let Some(News::Request(message)) = first.receive(now, bytes)
            && message.method() == "INVITE"
        {
            first.reply(now, &message, 503, &[], None);
        }
    }

    fn later(&mut self, at: u64, task: Task) {
        self.tasks.push((at, task));
    }

    fn note(&mut self, now: u64, end: usize, what: &str) {
        self.log.push((now, format!("{} {what}", ["caller", "callee"][end])));
    }

    fn sdp(&mut self, end: usize, way: &str) -> String {
        self.version += 1;
        let at = self.media[end].at;
        let (ip, version) = (at.ip(), self.version);
        format!(
            "v=0\r\no=- 7 {version} IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\nm=audio {} RTP/AVP \
             0\r\na=rtpmap:0 PCMU/8000\r\na={way}\r\n",
            at.port()
        )
    }

    fn perform(&mut self, now: u64, task: Task) {
        match task {
            Task::Invite => {
                let offer = (!self.script.late_offer).then(|| self.sdp(0, "sendrecv"));
                let mut headers = vec![("Supported", String::from("100rel"))];
                if self.challenged {
                    headers.push(("Authorization", String::from("Digest username=\"u\"")));
                }
                self.ends[0].request(now, "INVITE", &headers, offer);
                self.note(now, 0, "INVITE");
                let patience = self.script.ring + self.script.answer_after;
                if self.script.answer == Answer::Cancel
                    && (self.challenged || self.script.challenge.is_none())
                {
                    self.later(now + patience, Task::Cancel);
                }
            }
            // A CANCEL waits for a provisional response (RFC 3261 section 9.1).
            Task::Cancel if self.code > 0 => {}
            Task::Cancel if !self.ends[0].may_cancel() => self.later(now + 10 * MS, Task::Cancel),
            Task::Cancel => {
                self.ends[0].cancel(now);
                self.note(now, 0, "CANCEL");
            }
            Task::Ring(invite) => self.ring(now, &invite),
            Task::Answer(invite) => self.answer(now, &invite),
            Task::Reply(end, request) => self.reply_within(now, end, &request),
            // The callee says nothing within the dialog before the ACK.
            Task::Act(index) if self.script.acts[index].0 == 1 && !self.acked => {
                self.later(now + 20 * MS, Task::Act(index));
            }
            Task::Act(index) => self.act(now, index),
        }
    }

    fn ring(&mut self, now: u64, invite: &Message) {
        if self.over[1] {
            return;
        }
        let accepts = self.script.answer == Answer::Accept;
        let after = now + self.script.answer_after;
        if self.script.reliable && accepts {
            let answer = self.sdp(1, "sendrecv");
            let headers = [("Require", String::from("100rel")), ("RSeq", String::from("17"))];
            self.ends[1].reply(now, invite, 183, &headers, Some(answer));
        } else {
            self.ends[1].reply(now, invite, 180, &[], None);
        }
        match self.script.answer {
            Answer::Accept if self.script.reliable => {}
            Answer::Accept | Answer::Refuse(_) => self.later(after, Task::Answer(invite.clone())),
            Answer::Cancel | Answer::Never => {}
        }
        self.note(now, 1, "rings");
    }

    fn answer(&mut self, now: u64, invite: &Message) {
        let sdp = match self.script.answer {
            Answer::Refuse(code) => {
                self.ends[1].reply(now, invite, code, &[], None);
                self.over[1] = true;
                return self.note(now, 1, "refuses");
            }
            _ if self.script.reliable => None,
            _ => Some(self.sdp(1, "sendrecv")),
        };
        self.ends[1].reply(now, invite, 200, &[], sdp);
        self.note(now, 1, "answers");
    }

    fn act(&mut self, now: u64, index: usize) {
        let (end, act, _) = self.script.acts[index];
        let (method, sdp) = match act {
            Act::Hold => ("INVITE", Some("sendonly")),
            Act::Resume => ("INVITE", Some("sendrecv")),
            Act::Update => ("UPDATE", Some("sendrecv")),
            Act::Info => ("INFO", None),
            Act::Refer => ("REFER", None),
            Act::Notify => ("NOTIFY", None),
            Act::Message => ("MESSAGE", None),
            Act::Bye => ("BYE", None),
        };
        let headers = match act {
            Act::Refer => vec![("Refer-To", String::from("<sip:other@c.sim>"))],
            Act::Notify => vec![("Event", String::from("refer"))],
            _ => Vec::new(),
        };
        if act == Act::Bye {
            self.talk.1 = now;
            self.media[end].stop();
        }
        let sdp = sdp.map(|way| self.sdp(end, way));
        self.ends[end].request(now, method, &headers, sdp);
        self.note(now, end, method);
    }

    /// The next act begins.
    fn go_on(&mut self, now: u64, done: usize) {
        if let Some((_, _, pause)) = self.script.acts.get(done) {
            self.later(now + pause, Task::Act(done));
        }
    }

    /// How many acts were begun.
    fn begun(&self) -> usize {
        let methods = ["INVITE", "UPDATE", "INFO", "REFER", "NOTIFY", "MESSAGE", "BYE"];
        let acts = self.log.iter().filter(|(at, what)| {
            *at >= self.talk.0 && methods.iter().any(|method| what.ends_with(&format!(" {method}")))
        });
        acts.count()
    }

    /// The media's place in a message.
    fn hear_media(&mut self, end: usize, message: &Message) {
        match message.sdp() {
            // An ACK that comes after the BYE describes nothing any more.
            Some(_) if self.over[end] => {}
            Some((peer, _)) if peer.port() > 0 => self.media[end].told(peer),
            Some(_) => self.faults.push(format!("refused media:\n{message}")),
            None => {}
        }
    }

    fn hear(&mut self, now: u64, end: usize, news: News) {
        match news {
            News::Request(request) => self.on_request(now, end, request),
            News::Response(response) => self.on_response(now, end, &response),
            News::Silence(method, cseq) => {
                self.faults.push(format!("no answer to {method} {cseq} of end {end}"))
            }
        }
    }

    fn on_request(&mut self, now: u64, end: usize, request: Message) {
        self.hear_media(end, &request);
        match request.method().as_str() {
            "INVITE" if request.tag("To").is_empty() && end == 1 => self.on_invite(now, request),
            "CANCEL" => {
                if let Some(invite) = self.invite.clone().filter(|_| !self.over[1]) {
                    self.ends[1].reply(now, &invite, 487, &[], None);
                    self.over[1] = true;
                }
            }
            "ACK" if end == 1 && !self.acked && self.script.answer == Answer::Accept && !self.over[1] => {
                // That of a challenge means nothing.
                if self.log.iter().any(|(_, what)| what == "callee answers") {
                    self.acked = true;
                    self.media[1].begin(now);
                }
            }
            // By then the answer has come to the node that relays the media.
            "ACK" if self.resuming == Some(end) => {
                self.resuming = None;
                self.media[end].resume(now);
            }
            "ACK" => {}
            _ => self.later(now + self.script.thinking, Task::Reply(end, request)),
        }
    }

    fn on_invite(&mut self, now: u64, invite: Message) {
        if invite.sdp().is_some() == self.script.late_offer {
            self.faults.push(format!("an offer was lost or made up:\n{invite}"));
        }
        if let Some(code) = self.script.challenge.filter(|_| !self.challenged) {
            // The next attempt is another call to the media.
            self.media[1].peer = None;
            let headers = [("WWW-Authenticate", String::from("Digest realm=\"s\""))];
            return self.ends[1].reply(now, &invite, code, &headers, None);
        }
        if self.script.challenge.is_some() && invite.get("Authorization").is_empty() {
            self.faults.push(String::from("the credentials are lost"));
        }
        self.ends[1].learn(&invite);
        self.invite = Some(invite.clone());
        self.later(now + self.script.ring, Task::Ring(invite));
    }

    fn reply_within(&mut self, now: u64, end: usize, request: &Message) {
        let offered = request.sdp().map(|(_, way)| way);
        let (code, sdp) = match (request.method().as_str(), offered.as_deref()) {
            ("REFER", _) => (202, None),
            ("INVITE" | "UPDATE", Some("sendonly")) => {
                self.media[end].hold();
                self.resuming = None;
                (200, Some(self.sdp(end, "recvonly")))
            }
            ("INVITE" | "UPDATE", Some(_)) => (200, Some(self.sdp(end, "sendrecv"))),
            ("INVITE" | "UPDATE", None) => {
                self.faults.push(format!("an offer was lost:\n{request}"));
                (488, None)
            }
            _ => (200, None),
        };
        if request.uri() != self.ends[end].contact() {
            self.faults.push(format!("not to {}:\n{request}", self.ends[end].contact()));
        }
        self.ends[end].reply(now, request, code, &[], sdp);
        match request.method().as_str() {
            "BYE" => {
                self.over[end] = true;
                self.media[end].stop();
            }
            "PRACK" => {
                self.ends[end].is_pracked();
                if let Some(invite) = self.invite.clone().filter(|_| !self.pracked) {
                    self.later(now + self.script.answer_after, Task::Answer(invite));
                }
                self.pracked = true;
            }
            "INVITE" if offered.as_deref() == Some("sendrecv") => self.resuming = Some(end),
            _ => {}
        }
    }

    fn on_response(&mut self, now: u64, end: usize, response: &Message) {
        let (method, code) = (response.method(), response.code());
        match (method.as_str(), code) {
            ("INVITE", 100) => {}
            ("INVITE", 101..=199) => {
                self.hear_media(end, response);
                if !response.get("RSeq").is_empty() {
                    self.ends[end].learn(response);
                    let rack = format!("{} {}", response.get("RSeq"), response.get("CSeq"));
                    self.ends[end].request(now, "PRACK", &[("RAck", rack)], None);
                    self.note(now, end, "acknowledges the ringing");
                }
            }
            ("INVITE", _) if end == 0 && self.talk.0 == NEVER => self.on_final(now, response),
            ("INVITE", 200) => {
                self.hear_media(end, response);
                self.ends[end].ack(response.cseq(), None);
                self.go_on(now, self.begun());
            }
            ("PRACK" | "CANCEL", 200) => {}
            ("BYE", 200) => self.over[end] = true,
            ("REFER", 202) | ("UPDATE" | "INFO" | "NOTIFY" | "MESSAGE", 200) => {
                self.hear_media(end, response);
                self.go_on(now, self.begun());
            }
            _ => self.faults.push(format!("end {end} did not expect\n{response}")),
        }
    }

    fn on_final(&mut self, now: u64, response: &Message) {
        let code = response.code();
        if Some(code) == self.script.challenge && !self.challenged {
            self.challenged = true;
            return self.later(now + 5 * MS, Task::Invite);
        }
        self.code = code;
        self.note(now, 0, &format!("hears {code}"));
        if code != 200 {
            // The callee knows of nothing if it was never asked.
            self.over = [true, self.over[1] || self.invite.is_none()];
            return;
        }
        self.ends[0].learn(response);
        self.hear_media(0, response);
        let answer = self.script.late_offer.then(|| self.sdp(0, "sendrecv"));
        self.ends[0].ack(response.cseq(), answer);
        self.media[0].begin(now);
        self.talk.0 = now + 1;
        self.go_on(now + 1, 0);
    }
}

/// Answers a ping outside of any call.
fn pinged(agent: &mut Agent, bytes: &[u8]) {
    let Some(ping) = Message::parse(bytes) else { return };
    let Some(to) = ping.reply_to() else { return };
    let mut text = String::from("SIP/2.0 200 OK\r\n");
    for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
        text += &format!("{name}: {}\r\n", ping.get(name));
    }
    text += "Content-Length: 0\r\n\r\n";
    agent.out.push((to, text.into_bytes()));
}
