//! Phones that do ICE, with the agent of str0m (`is`): full, controlling, and written by nobody who has written ours.

use crate::harness::parties::{self, Message, Party, SOON, bound_at};
use crate::harness::until;
use is::stun::{StunMessage, StunPacket, TransId};
use is::{Candidate, DefaultSha1HmacProvider, IceAgent, IceAgentEvent, IceConnectionState, IceCreds};
use is::{Protocol, Sha1HmacProvider};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

pub(crate) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What most wait for, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// How long to listen for what must not come.
pub(crate) const SILENCE: Duration = Duration::from_millis(300);

/// A component of a phone's media: an agent, which does no I/O of its own, and the sockets that are its candidates.
pub(crate) struct Way {
    pub(crate) agent: IceAgent,
    sockets: Vec<UdpSocket>,
    /// What the agent's clock is ahead of ours: it leaps over times in which no check is under way.
    ahead: Duration,
    /// Of each socket the newest check, until it is answered.
    open: BTreeMap<SocketAddr, TransId>,
    /// Checks sent, and their answers that were taken.
    pub(crate) checks: [usize; 2],
    states: Vec<IceConnectionState>,
    /// Whether it has told, in a check, which pair it has chosen since it last had to choose.
    told: bool,
    /// From where the agent wants media to be sent, and where to.
    pub(crate) selected: Option<(SocketAddr, SocketAddr)>,
    /// What is no STUN: to which socket it came, where from, and its bytes.
    heard: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
}

impl Way {
    pub(crate) fn new(ip: IpAddr, names: IceCreds) -> Way {
        let mut agent = IceAgent::new(names);
        agent.set_controlling(true);
        let (open, heard) = (BTreeMap::new(), VecDeque::new());
        let (ahead, checks, selected) = (Duration::ZERO, [0; 2], None);
        let (sockets, states) = (Vec::new(), Vec::new());
        let mut way = Way { told: false, agent, sockets, ahead, open, checks, states, selected, heard };
        way.gather(ip);
        way
    }

    /// Adds a socket.
    pub(crate) fn gather(&mut self, ip: IpAddr) -> SocketAddr {
        let socket = bound_at(ip);
        socket.set_nonblocking(true).unwrap();
        let at = socket.local_addr().unwrap();
        self.agent.add_local_candidate(Candidate::host(at, "udp").unwrap()).unwrap();
        self.sockets.push(socket);
        at
    }

    /// Its first socket is no more, as when a network goes away.
    pub(crate) fn lose(&mut self) {
        self.told = false;
        let at = self.sockets.remove(0).local_addr().unwrap();
        assert!(self.agent.invalidate_candidate(&Candidate::host(at, "udp").unwrap()));
        self.open.remove(&at);
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::now() + self.ahead
    }

    pub(crate) fn send(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        // What an agent still wants to say from a socket that is gone is lost.
        if let Some(socket) = self.sockets.iter().find(|socket| socket.local_addr().unwrap() == from) {
            socket.send_to(bytes, to).unwrap();
        }
    }

    /// Lets the agent do what is due, and hands it what has come.
    pub(crate) fn turn(&mut self) {
        let now = self.now();
        if self.agent.poll_timeout().is_none_or(|at| at <= now) {
            self.agent.handle_timeout(now);
        }
        let mut buffer = [0; 2_048];
        for socket in &self.sockets {
            let at = socket.local_addr().unwrap();
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                if buffer[0] > 3 {
                    self.heard.push_back((at, from, buffer[..len].to_vec()));
                    continue;
                }
                let message = StunMessage::parse(&buffer[..len]).unwrap();
                let transaction = message.trans_id();
                let packet = StunPacket { proto: Protocol::Udp, source: from, destination: at, message };
                if self.agent.handle_packet(now, packet) {
                    self.checks[1] += 1;
                    self.open.retain(|_, open| *open != transaction);
                }
            }
        }
        while let Some(datagram) = self.agent.poll_transmit() {
            let message = StunMessage::parse(&datagram.contents).unwrap();
            assert!(message.is_binding_request(), "a lite agent asks nothing, so nothing is answered");
            self.open.insert(datagram.source, message.trans_id());
            self.told |= message.use_candidate();
            self.checks[0] += 1;
            self.send(datagram.source, datagram.destination, &datagram.contents);
        }
        while let Some(event) = self.agent.poll_event() {
            match event {
                IceAgentEvent::IceConnectionStateChange(state) => self.states.push(state),
                IceAgentEvent::NominatedSend { source, destination, .. } => {
                    self.selected = Some((source, destination));
                }
                IceAgentEvent::IceRestart(_) | IceAgentEvent::DiscoveredRecv { .. } => {}
            }
        }
    }

    /// Takes turns until `done`, at most `patience`; whether it came true.
    pub(crate) fn run(&mut self, patience: Duration, mut done: impl FnMut(&mut Way) -> bool) -> bool {
        until(patience, || {
            self.turn();
            done(self)
        })
    }

    /// Connects; returns from where.
    pub(crate) fn connect(&mut self) -> SocketAddr {
        let connected = self.run(PATIENCE, |way| {
            let completed = way.agent.state() == IceConnectionState::Completed;
            completed && way.open.is_empty() && way.told
        });
        assert!(connected, "{:?} {:?}", self.agent, self.states);
        self.selected.unwrap().0
    }

    /// Leaps to the agent's next deed, if nothing is under way.
    pub(crate) fn leap(&mut self) {
        if let Some(at) = self.agent.poll_timeout().filter(|_| self.open.is_empty()) {
            self.ahead += at.saturating_duration_since(self.now());
        }
    }

    /// Lets time of the agent's clock go by, in which its party's consent to media is asked for again and again.
    pub(crate) fn consent(&mut self, span: Duration) {
        let (end, before) = (self.now() + span, self.checks[1]);
        let over = self.run(PATIENCE, |way| {
            way.leap();
            way.now() >= end && way.open.is_empty()
        });
        let answered = self.checks[1] - before;
        assert!(over, "{answered} answers in {span:?}: {:?}", self.agent);
        // It asks every 3 s.
        assert!(answered as u64 >= span.as_secs() / 3, "{answered} answers in {span:?}");
        assert!(
            self.agent.state().is_connected() && !self.states.iter().any(|state| state.is_disconnected())
        );
    }

    pub(crate) fn hears(&mut self, packet: &[u8], patience: Duration) -> bool {
        let (at, from) = self.selected.unwrap();
        self.run(patience, |way| {
            std::iter::from_fn(|| way.heard.pop_front()).any(|heard| heard == (at, from, packet.to_vec()))
        })
    }
}

/// What a description says of who does ICE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) creds: IceCreds,
    pub(crate) candidates: Vec<Candidate>,
}

impl Names {
    /// `None` if it says nothing.
    pub(crate) fn of(message: &Message) -> Option<Names> {
        let all = |start: &str| -> Vec<&str> {
            message.0.lines().filter_map(|line| line.strip_prefix(start)).collect()
        };
        let candidates = all("a=candidate:");
        let [ufrag, pass] = ["a=ice-ufrag:", "a=ice-pwd:"].map(|start| all(start).first().copied());
        let Some((ufrag, pass)) = ufrag.zip(pass) else {
            assert!(candidates.is_empty() && !message.0.contains("a=ice-"), "{}", message.0);
            return None;
        };
        let creds = IceCreds { ufrag: ufrag.to_owned(), pass: pass.to_owned() };
        // For an agent of str0m each component is the first.
        let read = |text: &str| {
            let text = text.replacen(" 2 ", " 1 ", 1);
            Candidate::from_sdp_string(&format!("candidate:{text}")).unwrap()
        };
        assert!(message.0.contains("\r\na=ice-lite\r\n"), "{}", message.0);
        Some(Names { creds, candidates: candidates.into_iter().map(read).collect() })
    }
}

/// A phone that does ICE, by one component, or by two: without rtcp-mux.
pub(crate) struct Phone {
    pub(crate) party: Party,
    pub(crate) ways: Vec<Way>,
    pub(crate) profile: &'static str,
    /// Of its descriptions.
    pub(crate) version: u32,
    /// Whom it checks.
    pub(crate) met: Option<Names>,
}

impl Phone {
    pub(crate) fn new(ip: IpAddr, components: usize, profile: &'static str) -> Phone {
        let names = IceCreds::new();
        let ways = (0..components).map(|_| Way::new(ip, names.clone())).collect();
        Phone { party: Party::on(ip), ways, profile, version: 0, met: None }
    }

    /// As a browser describes itself that has only begun to look for addresses, but with those it has.
    pub(crate) fn description(&mut self) -> String {
        self.version += 1;
        let (family, nowhere) = if self.party.at().is_ipv6() { ("IP6", "::") } else { ("IP4", "0.0.0.0") };
        let IceCreds { ufrag, pass } = self.ways[0].agent.local_credentials();
        let mut text = format!(
            "v=0\r\no=- 7 {} IN {family} {nowhere}\r\ns=-\r\nc=IN {family} {nowhere}\r\nt=0 0\r\n\
             m=audio 9 {} 0\r\na=ice-ufrag:{ufrag}\r\na=ice-pwd:{pass}\r\n",
            self.version, self.profile
        );
        if self.ways.len() == 1 {
            text += "a=rtcp-mux\r\n";
        }
        for (component, way) in self.ways.iter().enumerate() {
            for candidate in way.agent.local_candidates() {
                // An agent of str0m knows but one component.
                let line = candidate.to_sdp_string().replacen(" 1 ", &format!(" {} ", component + 1), 1);
                text += &format!("a={line}\r\n");
            }
        }
        text
    }

    /// Learns whom it is to check. Who is met under new names has begun anew, and so does it.
    pub(crate) fn meets(&mut self, names: &Names) {
        // An offer has one for RTCP too, in case it is not muxed.
        assert!(names.candidates.len() >= self.ways.len(), "{names:?}");
        match &self.met {
            Some(met) if met.creds == names.creds => return,
            Some(_) => self.restart(),
            None => {}
        }
        for (way, candidate) in self.ways.iter_mut().zip(&names.candidates) {
            way.agent.set_remote_credentials(names.creds.clone());
            way.agent.add_remote_candidate(candidate.clone());
        }
        self.met = Some(names.clone());
    }

    /// Begins anew; the next description tells of it.
    pub(crate) fn restart(&mut self) {
        let names = IceCreds::new();
        for way in &mut self.ways {
            way.told = false;
            way.agent.ice_restart(names.clone(), true);
            way.open.clear();
        }
        self.met = None;
    }

    pub(crate) fn connect(&mut self) -> SocketAddr {
        let found: Vec<_> = self.ways.iter_mut().map(Way::connect).collect();
        found[0]
    }
}

/// Who does no ICE: its sockets for RTP and RTCP, one or two, and where it was told to send.
pub(crate) struct Plain {
    pub(crate) party: Party,
    pub(crate) rtcp: Option<UdpSocket>,
    pub(crate) to: Option<SocketAddr>,
}

impl Plain {
    pub(crate) fn new(mux: bool) -> Plain {
        Plain { party: Party::new(), rtcp: (!mux).then(|| bound_at(LOCALHOST)), to: None }
    }

    pub(crate) fn description(&self) -> String {
        let line = self.rtcp.as_ref().map_or_else(
            || "rtcp-mux".to_owned(),
            |rtcp| format!("rtcp:{} IN IP4 127.0.0.1", rtcp.local_addr().unwrap().port()),
        );
        format!("{}a={line}\r\n", self.party.description())
    }

    pub(crate) fn socket(&self, component: usize) -> &UdpSocket {
        self.rtcp.as_ref().filter(|_| component == 1).unwrap_or(&self.party.rtp)
    }
}

/// Who speaks SIP and media; RTCP is `component` 1.
pub(crate) trait Speaks {
    fn party(&self) -> &Party;

    /// Answers an offer.
    fn agrees(&mut self, offer: &Message) -> String;

    fn says(&mut self, component: usize, packet: &[u8]);

    fn hears(&mut self, component: usize, packet: &[u8], patience: Duration) -> bool;
}

impl Speaks for Phone {
    fn party(&self) -> &Party {
        &self.party
    }

    fn agrees(&mut self, offer: &Message) -> String {
        self.meets(&Names::of(offer).unwrap());
        self.description()
    }

    fn says(&mut self, component: usize, packet: &[u8]) {
        let way = &self.ways[component.min(self.ways.len() - 1)];
        let (from, to) = way.selected.unwrap();
        way.send(from, to, packet);
    }

    fn hears(&mut self, component: usize, packet: &[u8], patience: Duration) -> bool {
        let last = self.ways.len() - 1;
        self.ways[component.min(last)].hears(packet, patience)
    }
}

impl Speaks for Plain {
    fn party(&self) -> &Party {
        &self.party
    }

    fn agrees(&mut self, offer: &Message) -> String {
        // It is asked once whether it does ICE.
        assert_eq!(Names::of(offer).is_some(), self.to.is_none(), "{}", offer.0);
        self.to = Some(offer.media());
        self.description()
    }

    fn says(&mut self, component: usize, packet: &[u8]) {
        let to = self.to.unwrap();
        let beside = if self.rtcp.is_some() { component as u16 } else { 0 };
        self.socket(component).send_to(packet, SocketAddr::new(to.ip(), to.port() + beside)).unwrap();
    }

    fn hears(&mut self, component: usize, packet: &[u8], patience: Duration) -> bool {
        let (socket, mut buffer) = (self.socket(component), [0; 2_048]);
        socket.set_read_timeout(Some(patience)).unwrap();
        while let Ok((len, _)) = socket.recv_from(&mut buffer) {
            if buffer[..len] == *packet {
                return true;
            }
        }
        false
    }
}

/// The callee answers an INVITE, and the caller learns what, and says ACK; the 200.
fn answered(
    service: SocketAddr,
    alice: &mut Phone,
    bob: &mut impl Speaks,
    invited: &(Message, SocketAddr),
    number: u32,
) -> Message {
    let answer = bob.agrees(&invited.0);
    bob.party().answer(invited, "200 OK", &answer);
    let (accepted, _) = alice.party.hear("SIP/2.0 200");
    alice.party.request(service, &accepted, "ACK", number);
    bob.party().hear("ACK ");
    alice.meets(&Names::of(&accepted).unwrap());
    accepted
}

/// A call of one who does ICE.
pub(crate) struct Call<B> {
    pub(crate) service: SocketAddr,
    pub(crate) alice: Phone,
    pub(crate) bob: B,
    /// The 200 to the INVITE, as it came to the caller.
    pub(crate) accepted: Message,
    /// INVITEs so far.
    pub(crate) invites: u32,
    /// Packets of each so far.
    pub(crate) sent: u16,
}

impl<B: Speaks> Call<B> {
    pub(crate) fn set_up(service: SocketAddr, mut alice: Phone, mut bob: B) -> Call<B> {
        let offer = alice.description();
        alice.party.invite_with(service, "with-ice", &offer);
        let invited = bob.party().hear("INVITE ");
        let accepted = answered(service, &mut alice, &mut bob, &invited, 1);
        Call { service, alice, bob, accepted, invites: 1, sent: 0 }
    }

    /// The caller describes itself again. `meanwhile`: before the answer.
    pub(crate) fn reinvite(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        self.invites += 1;
        let (number, offer) = (self.invites, self.alice.description());
        self.alice.party.request_with(self.service, &self.accepted, ("INVITE", number), &offer);
        let invited = self.bob.party().hear("INVITE ");
        meanwhile(self);
        answered(self.service, &mut self.alice, &mut self.bob, &invited, number);
    }

    pub(crate) fn hang_up(&self) {
        let parties = [&self.alice.party, self.bob.party()];
        parties::hang_up(parties, self.service, &self.accepted, self.invites + 1);
    }

    /// RTP and RTCP each way; how many packets came through as they were.
    pub(crate) fn talk(&mut self, patience: Duration) -> usize {
        self.sent += 1;
        let [s0, s1] = self.sent.to_be_bytes();
        let mut through = 0;
        for (hers, ssrc) in [(true, 0xa1), (false, 0xb0)] {
            let mut ends: [&mut dyn Speaks; 2] = [&mut self.alice, &mut self.bob];
            if !hers {
                ends.reverse();
            }
            let [mouth, ear] = ends;
            let rtp = [&[0x80, 0, s0, s1, 0, 0, s0, s1, 0, 0, 0, ssrc][..], &[s1; 160]].concat();
            let rtcp = [&[0x80, 200, 0, 6, 0, 0, 0, ssrc][..], &[s1; 20]].concat();
            for (component, packet) in [rtp, rtcp].iter().enumerate() {
                mouth.says(component, packet);
                let heard = ear.hears(component, packet, patience);
                if !heard {
                    println!("not heard: packet {} of {ssrc:x}, component {component}", self.sent);
                }
                through += usize::from(heard);
            }
        }
        through
    }

    pub(crate) fn talk_on(&mut self) {
        let through: Vec<usize> = (0..10).map(|_| self.talk(SOON)).collect();
        assert_eq!(through, [4; 10]);
    }
}

/// Whoever knows some of a call's names, and sends checks under them as str0m writes them.
pub(crate) struct Stranger {
    pub(crate) socket: UdpSocket,
    pub(crate) sent: u64,
}

impl Stranger {
    /// Sends a check; returns what is answered within `patience`.
    pub(crate) fn checks(
        &mut self,
        to: SocketAddr,
        username: &str,
        password: &str,
        nominates: bool,
        patience: Duration,
    ) -> Option<Vec<u8>> {
        let mut buffer = [0; 2_048];
        let check = StunMessage::binding_request(username, TransId::new(), true, 1, 1_845_501_695, nominates);
        let hmac = |key: &[u8], text: &[&[u8]]| DefaultSha1HmacProvider.sha1_hmac(key, text);
        let len = check.to_bytes(Some(password.as_bytes()), &mut buffer, hmac).unwrap();
        self.socket.send_to(&buffer[..len], to).unwrap();
        self.sent += 1;
        self.hears(patience)
    }

    pub(crate) fn hears(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let mut buffer = [0; 2_048];
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let (len, _) = self.socket.recv_from(&mut buffer).ok()?;
        Some(buffer[..len].to_vec())
    }
}
