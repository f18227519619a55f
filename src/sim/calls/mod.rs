//! The SIP application under faults: real shards of three nodes carry scripted calls while nodes die and come back.
//!
//! One seed decides everything: what each call is to be (`script`), which node is killed at which datagram, how long
//! it stays away, what the clients' network loses. Both ends of a call are user agents of this test's own (`agent`),
//! and everything is judged from there: that each call ends as its script says; that nobody had to send again what was
//! not lost on the wire; that what comes again is the same bytes; that dialogs and media ports stay; that media comes
//! unaltered, in order, and without a gap but for what was sent while nobody held the address; that there is one record
//! of each call; and that the nodes agree in the end and hold nothing.

mod agent;
mod cluster;
mod conversation;
mod judge;
mod media;
mod message;
mod script;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

use self::agent::MS;
use self::cluster::{ADDRESSES, Cluster, Health, NODES, service};
pub use self::conversation::Phase;
use self::conversation::{Conversation, Outgoing};
use self::script::Script;
use super::rng::Rng;
use crate::types::{Boot, LocalId};

/// A run that lasts this long has failed.
const CAP: u64 = 200_000 * MS;
/// After the last call has ended: every transaction is over.
const LINGER: u64 = 70_000 * MS;

/// From a node's socket to the members' logs, at most.
const UNDER_WAY: u64 = 2 * MS;

/// What has happened in runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls, and how many of them were answered.
    pub calls: u64,
    /// Answered ones.
    pub answered: u64,
    /// Nodes killed, and how many of them held an address.
    pub kills: u64,
    /// Owners among them.
    pub owners: u64,
    /// Calls that stood in each of [`Phase::ALL`] when a node was killed.
    pub phases: [u64; Phase::ALL.len()],
    /// Nodes that came back and were members again.
    pub returns: u64,
    /// Media packets that arrived.
    pub media: u64,
    /// Media packets sent while nobody held the address.
    pub media_lost: u64,
    /// SIP datagrams lost on the wire.
    pub sip_lost: u64,
    /// Messages that agents sent again.
    pub resent: u64,
    /// Records written twice.
    pub records_again: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Counts) {
        self.calls += other.calls;
        self.answered += other.answered;
        self.kills += other.kills;
        self.owners += other.owners;
        self.phases.iter_mut().zip(other.phases).for_each(|(all, more)| *all += more);
        self.returns += other.returns;
        self.media += other.media;
        self.media_lost += other.media_lost;
        self.sip_lost += other.sip_lost;
        self.resent += other.resent;
        self.records_again += other.records_again;
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What broke a rule.
    pub faults: Vec<String>,
    /// What happened.
    pub counts: Counts,
}

enum Event {
    Peer { to: usize, from: usize, boot: Boot, bytes: Vec<u8> },
    Ingress { call: usize, local: LocalId, from: SocketAddr, bytes: Vec<u8> },
    Agent { call: usize, to: SocketAddr, from: SocketAddr, bytes: Vec<u8> },
    Node(usize),
    Call(usize),
    Kill(usize),
    Suspect(usize),
    Dead(usize),
    Restart(usize),
    Look,
}

/// An event in its place: by time, then in the order in which they were made.
struct Due {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Time in which a service address was nobody's.
#[derive(Copy, Clone, Debug)]
struct Outage {
    address: u16,
    from: u64,
    to: u64,
}

struct World {
    now: u64,
    rng: Rng,
    queue: BinaryHeap<Reverse<Due>>,
    made: u64,
    cluster: Cluster,
    calls: Vec<Conversation>,
    /// The next wake-up that is in the queue, of nodes and calls.
    node_wakes: Vec<u64>,
    call_wakes: Vec<u64>,
    /// In thousandths, of SIP between agents and service.
    loss: u64,
    /// The same between nodes: what one forwards to another may then be lost.
    peer_loss: u64,
    /// Lost SIP: when, and of which call.
    lost: Vec<(u64, usize)>,
    /// When a call's last SIP came to a node.
    latest: Vec<u64>,
    /// After how many datagrams of clients nodes are killed, the last first.
    kills: Vec<u64>,
    ingresses: u64,
    outages: Vec<Outage>,
    /// When nodes died.
    deaths: Vec<u64>,
    records: Vec<Vec<u8>>,
    counts: Counts,
    faults: Vec<String>,
    tell: bool,
}

/// Runs the world of a seed; `tell` prints what happens.
pub fn run(seed: u64, tell: bool) -> Outcome {
    let mut world = World::new(seed, tell);
    world.run();
    world.judge();
    Outcome { faults: world.faults, counts: world.counts }
}

impl World {
    fn new(seed: u64, tell: bool) -> World {
        let mut rng = Rng::new(seed);
        let mut scripts = rng.split();
        let mut calls = Vec::new();
        for number in 0..scripts.range(1, 6) as usize {
            let proxy = service(scripts.range(0, u64::from(ADDRESSES) - 1) as u16);
            calls.push(Conversation::new(number, Script::draw(&mut scripts), proxy));
        }
        let mut routes: String = calls.iter().enumerate().map(|(n, call)| call.rule(n)).collect();
        if rng.chance(300) {
            routes += "ping 2s\nping-timeout 1s\n";
        }
        let mut kills: Vec<u64> =
            (0..rng.range(0, 3)).map(|_| rng.range(1, 60 * calls.len() as u64)).collect();
        if rng.chance(500) {
            // While the calls are being set up.
            kills.iter_mut().for_each(|kill| *kill = *kill % (8 * calls.len() as u64) + 1);
        }
        kills.sort_unstable_by_key(|kill| Reverse(*kill));
        let loss = if rng.chance(700) { 0 } else { rng.range(5, 50) };
        World {
            now: 0,
            queue: BinaryHeap::new(),
            made: 0,
            cluster: Cluster::new(&routes),
            node_wakes: vec![u64::MAX; NODES],
            call_wakes: vec![u64::MAX; calls.len()],
            latest: vec![0; calls.len()],
            calls,
            loss,
            peer_loss: if rng.chance(300) { 2 } else { 0 },
            lost: Vec::new(),
            kills,
            ingresses: 0,
            outages: Vec::new(),
            deaths: Vec::new(),
            records: Vec::new(),
            counts: Counts::default(),
            faults: Vec::new(),
            rng,
            tell,
        }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.tell {
            println!("{:>11.3} ms  {}", self.now as f64 / MS as f64, what());
        }
    }

    fn post(&mut self, at: u64, event: Event) {
        self.made += 1;
        self.queue.push(Reverse(Due { at, number: self.made, event }));
    }

    fn run(&mut self) {
        (0..NODES).for_each(|node| self.turn(node));
        (0..self.calls.len()).for_each(|call| self.wake_call(call));
        self.post(20 * MS, Event::Look);
        let mut quiet_since = None;
        while let Some(Reverse(due)) = self.queue.pop() {
            self.now = due.at;
            self.handle(due.event);
            let over = self.cluster.health == Health::Whole && self.calls.iter().all(Conversation::is_over);
            quiet_since = if over { quiet_since.or(Some(self.now)) } else { None };
            let rested = |since: u64| self.now > since + LINGER;
            // Pings go on for ever: the end is where nothing of them is under way.
            if self.now > CAP || quiet_since.is_some_and(rested) && self.cluster.is_level() {
                break;
            }
        }
        if quiet_since.is_none() {
            self.faults.push(format!("not over after {} s: {:?}", CAP / MS / 1_000, self.cluster.health));
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Peer { to, from, boot, bytes } => {
                self.cluster.peer(self.now, to, from, boot, &bytes);
                self.turn(to);
            }
            Event::Ingress { call, local, from, bytes } => self.ingress(call, local, from, &bytes),
            Event::Agent { call, to, from, bytes } => {
                let out = self.calls[call].receive(self.now, to, from, &bytes);
                self.send(call, out);
            }
            Event::Node(node) if self.node_wakes[node] <= self.now => {
                self.node_wakes[node] = u64::MAX;
                self.turn(node);
            }
            Event::Call(call) if self.call_wakes[call] <= self.now => {
                self.call_wakes[call] = u64::MAX;
                let out = self.calls[call].tick(self.now);
                self.send(call, out);
            }
            Event::Node(_) | Event::Call(_) => {}
            Event::Kill(node) => self.kill(node),
            Event::Suspect(node) => {
                self.cluster.suspect(self.now, node);
                self.turn_all();
            }
            Event::Dead(node) => {
                if self.cluster.declare_dead(self.now, node) {
                    self.counts.owners += 1;
                    self.outages.iter_mut().filter(|o| o.to == u64::MAX).for_each(|o| o.to = self.now);
                }
                self.say(|| format!("node {node} is declared dead"));
                self.turn_all();
            }
            Event::Restart(node) => {
                self.say(|| format!("node {node} is back"));
                self.cluster.restart(self.now, node);
                self.turn_all();
            }
            Event::Look => {
                let before = self.cluster.health;
                self.cluster.look(self.now);
                if before != self.cluster.health {
                    self.counts.returns += u64::from(self.cluster.health == Health::Confirming);
                    self.say(|| format!("now {:?}", self.cluster.health));
                    self.turn_all();
                }
                self.post(self.now + 20 * MS, Event::Look);
            }
        }
    }

    fn turn_all(&mut self) {
        (0..NODES).for_each(|node| self.turn(node));
    }

    /// A turn of a node's loop.
    fn turn(&mut self, node: usize) {
        let Some(boot) = self.cluster.boot(node) else { return };
        let (sent, next) = self.cluster.turn(self.now, node);
        for (to, bytes) in sent.peer {
            let delay = self.rng.range(50_000, 250_000);
            if !self.rng.chance(self.peer_loss) {
                let to = usize::from(to.0) - 1;
                self.post(self.now + delay, Event::Peer { to, from: node, boot, bytes });
            }
        }
        self.records.extend(sent.records);
        for (local, to, bytes) in sent.client {
            self.deliver(local, to, bytes);
        }
        if next < self.node_wakes[node] {
            self.node_wakes[node] = next;
            self.post(next, Event::Node(node));
        }
    }

    /// The service sends to an agent.
    fn deliver(&mut self, local: LocalId, to: SocketAddr, bytes: Vec<u8>) {
        let found = self
            .calls
            .iter()
            .position(|call| call.end_at(to).is_some() || call.media.iter().any(|media| media.at == to));
        let Some(call) = found else {
            self.faults.push(format!("sent to nobody: {to}"));
            return;
        };
        let mut from = service(local.endpoint);
        if local.port != 0 {
            from.set_port(local.port);
        }
        if local.port == 0 {
            self.say(|| format!("{from} > {to} {}", first_line(&bytes)));
            if self.rng.chance(self.loss) {
                self.lost.push((self.now, call));
                return;
            }
        }
        let at = self.now + self.calls[call].script.distance;
        self.post(at, Event::Agent { call, to, from, bytes });
    }

    /// Agents send to the service.
    fn send(&mut self, call: usize, out: Vec<Outgoing>) {
        for Outgoing { from, to, bytes } in out {
            let Some(address) = (0..ADDRESSES).find(|address| service(*address).ip() == to.ip()) else {
                self.faults.push(format!("{from} sends to {to}: {}", first_line(&bytes)));
                continue;
            };
            let is_sip = to == service(address);
            let port = if is_sip { 0 } else { to.port() };
            if is_sip {
                self.say(|| format!("{from} > {to} {}", first_line(&bytes)));
                if self.rng.chance(self.loss) {
                    self.lost.push((self.now, call));
                    continue;
                }
            }
            let at = self.now + self.calls[call].script.distance;
            self.post(at, Event::Ingress { call, local: LocalId { endpoint: address, port }, from, bytes });
        }
        self.wake_call(call);
    }

    fn wake_call(&mut self, call: usize) {
        let due = self.calls[call].due().max(self.now);
        if due < self.call_wakes[call] {
            self.call_wakes[call] = due;
            self.post(due, Event::Call(call));
        }
    }

    fn ingress(&mut self, call: usize, local: LocalId, from: SocketAddr, bytes: &[u8]) {
        self.ingresses += 1;
        if self.kills.last().is_some_and(|kill| *kill <= self.ingresses)
            && self.cluster.health == Health::Whole
        {
            self.kills.pop();
            let slot = self.cluster.slot_of(&self.calls[call].call_id);
            let owner = self.cluster.owner(slot % ADDRESSES).unwrap_or(0);
            let node = if self.rng.chance(600) { owner } else { self.cluster.master(slot) };
            // Before it is taken, or at any time while it is worked on.
            let delay = if self.rng.chance(200) { 0 } else { self.rng.range(1, 2_000_000) };
            self.post(self.now + delay, Event::Kill(node));
        }
        let carrier = self.cluster.slot_of(&self.calls[call].call_id) % ADDRESSES;
        let taken = self.cluster.ingress(self.now, local, from, bytes);
        // Forwarded to a dead node, it is lost too.
        if local.port == 0 && (!taken || self.cluster.owner(carrier).is_none()) {
            self.say(|| format!("nobody takes {}", first_line(bytes)));
            self.lost.push((self.now, call));
        } else if local.port == 0 {
            self.latest[call] = self.now;
        }
        if let Some(owner) = self.cluster.owner(local.endpoint) {
            self.turn(owner);
        }
    }

    fn kill(&mut self, node: usize) {
        if self.cluster.health != Health::Whole {
            return;
        }
        self.say(|| format!("node {node} dies"));
        self.counts.kills += 1;
        self.deaths.push(self.now);
        for phase in self.calls.iter().filter_map(Conversation::phase) {
            self.counts.phases[phase as usize] += 1;
        }
        for address in (0..ADDRESSES).filter(|address| self.cluster.owner(*address) == Some(node)) {
            self.outages.push(Outage { address, from: self.now, to: u64::MAX });
        }
        // What has just come to it has perhaps gone no further.
        for call in 0..self.calls.len() {
            if self.now - self.latest[call] < UNDER_WAY {
                self.lost.push((self.now, call));
            }
        }
        self.cluster.kill(node);
        let (dead, back) = (self.rng.range(20, 150) * MS, self.rng.range(300, 3_000) * MS);
        self.post(self.now + 3 * MS, Event::Suspect(node));
        self.post(self.now + dead, Event::Dead(node));
        self.post(self.now + back, Event::Restart(node));
    }
}

fn first_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let cseq = text.lines().find(|line| line.starts_with("CSeq")).unwrap_or_default();
    format!("{} ({cseq})", text.lines().next().unwrap_or_default())
}
