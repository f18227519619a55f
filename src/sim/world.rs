//! A world: machines, links, clients and what goes wrong, run from a scenario until all is quiet, with the
//! checker looking on.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::app::CallApp;
use crate::app::table::TableLimits;
use crate::engine::{Shard, ShardConfig, ShardStats, SlotDigest};
use crate::proto::Safeguards;
use crate::proto::map::ClusterMap;
use crate::sim::checker::{Checker, Release};
use crate::sim::coverage::Coverage;
use crate::sim::fault::{Fault, HEALED, Load, OWNER, Planned, Scenario};
use crate::sim::net::{Links, Queue};
use crate::sim::node::{Input, Loop, News, Node, Reply, Sends, inbound};
use crate::sim::rng::Rng;
use crate::sim::spy::{self, Spy};
use crate::sim::test_app::{HEADER, TestApp, Trace, key_of, op, payload};
use crate::types::{Boot, CallKey, Endpoint, LocalId, Nanos, NodeId, NodeSet, Slot};

/// Once faults are over everything must be done within this time (invariant 6).
const DONE_WITHIN: Nanos = Nanos::from_secs(3);

/// How long a finished world runs on: late duplicates must do no harm, and what is kept must shrink.
const QUIET: Nanos = Nanos::from_millis(400);

/// How many packets they then send, and how far apart.
const ENCORE: u64 = 30;
const ENCORE_PAUSE: Nanos = Nanos::from_millis(3);

/// When the clients speak up again, in worlds in which they do: masterships have gone home by then.
const ENCORE_AFTER: Nanos = Nanos::from_millis(1_400);

/// A socket's receive buffer, in datagrams.
const INBOX: usize = 2_048;

/// What came of a world.
#[derive(Debug)]
pub struct Outcome {
    /// The first invariant that did not hold, and when.
    pub failure: Option<String>,
    /// What happened in it.
    pub coverage: Coverage,
}

enum Event {
    /// A loop turns.
    Wake {
        node: usize,
        lane: usize,
    },
    /// A datagram arrives.
    Arrive {
        to: usize,
        lane: usize,
        from: NodeId,
        boot: Boot,
        bytes: Rc<[u8]>,
    },
    /// A client sends, and goes on.
    Client,
    /// A client sends once more, and must be heard: nothing has been going on for long.
    Encore,
    /// A fault begins, or is over.
    Begin(usize),
    End(usize),
    /// A node's detector notices how another one is.
    Detect {
        at: usize,
        of: usize,
    },
    /// The world is looked at.
    Look,
}

/// A world in motion.
pub struct World {
    now: Nanos,
    rng: Rng,
    queue: Queue<Event>,
    links: Links,
    nodes: Vec<Node>,
    scenario: Scenario,
    safeguards: Safeguards,
    trace: Trace,
    checker: Checker,
    coverage: Coverage,
    spy: Spy,
    /// How many faults keep the owner's kernel from taking client datagrams.
    stalled: u32,
    /// The number of the next packet of any client.
    next_seq: u32,
    /// Whether the clients are still to speak up again.
    encore: bool,
    /// Until when clients send.
    clients_until: Nanos,
    /// Since when everything has been done.
    done: Option<Nanos>,
    /// By when it must be.
    due: Nanos,
    map: Arc<ClusterMap>,
    tell: bool,
}

/// Runs a scenario to its end. `tell`: prints every event.
pub fn run(scenario: Scenario, safeguards: Safeguards, tell: bool) -> Outcome {
    let mut world = World::new(scenario, safeguards, tell);
    while world.checker.failure().is_none() {
        let Some((now, event)) = world.queue.pop(Nanos::MAX) else { break };
        world.now = now;
        if matches!(event, Event::Look) && world.look() {
            break;
        }
        world.on_event(event);
    }
    world.finish()
}

impl World {
    fn new(mut scenario: Scenario, safeguards: Safeguards, tell: bool) -> World {
        let mut rng = scenario.rng.split();
        let boots: Vec<Boot> = scenario.layout.ids().map(|_| Boot(rng.range(1, 1_000))).collect();
        let map = Arc::new(scenario.layout.map.clone());
        let mut world = World {
            now: Nanos::ZERO,
            queue: Queue::default(),
            links: Links::new(scenario.base),
            nodes: Vec::new(),
            checker: Checker::new(&scenario.layout, boots.clone()),
            coverage: Coverage::default(),
            spy: Spy::default(),
            trace: Trace::default(),
            stalled: 0,
            next_seq: 0,
            encore: scenario.encore,
            clients_until: HEALED,
            done: None,
            due: HEALED + DONE_WITHIN,
            rng,
            scenario,
            safeguards,
            map,
            tell,
        };
        for (index, id) in world.scenario.layout.ids().enumerate() {
            let node = Node {
                id,
                boot: boots[index],
                clock: world.scenario.clocks[index],
                alive: true,
                frozen: 0,
                turn: None,
                silent: NodeSet::EMPTY,
                known: vec![None; boots.len()],
                wrong: Vec::new(),
                loops: Vec::new(),
            };
            world.nodes.push(node);
            world.start(index);
        }
        for (index, planned) in world.scenario.faults.iter().enumerate() {
            world.queue.push(planned.from, Event::Begin(index));
            world.queue.push(planned.until, Event::End(index));
        }
        world.queue.push(Nanos::from_micros(300), Event::Client);
        world.queue.push(Nanos::from_millis(5), Event::Look);
        world.say(|w| format!("{:?}\n{:?}\n{:?}", w.scenario.layout, w.scenario.base, w.scenario.load));
        world
    }

    /// Starts the process of a node, with empty memory.
    fn start(&mut self, index: usize) {
        let shards = self.scenario.layout.shards;
        self.nodes[index].loops = (0..shards).map(|shard| Loop::new(self.shard(index, shard))).collect();
        self.nodes[index].known.fill(None);
        for lane in 0..usize::from(shards) {
            let at = self.now + Nanos(self.rng.range(0, 50_000));
            self.wake(index, lane, at);
        }
        self.let_detect(Nanos::from_micros(10), Nanos::from_millis(2));
    }

    fn shard(&self, index: usize, shard: u16) -> Shard<TestApp> {
        let (node, settings) = (&self.nodes[index], &self.scenario.settings);
        let config = ShardConfig {
            me: node.id,
            boot: node.boot,
            shard,
            shards: self.scenario.layout.shards,
            map: Arc::clone(&self.map),
            datagram_room: settings.datagram_room,
            window: settings.window,
            retain_bytes: settings.retain_bytes,
            limits: TableLimits { max_calls: 1_000, idle: Nanos::MAX },
            digest_every: 16,
            hedge_after: settings.hedge_after,
            multicast: settings.multicast,
            safeguards: self.safeguards,
        };
        Shard::new(config, TestApp::new(Rc::clone(&self.trace)))
    }

    fn say(&self, what: impl FnOnce(&World) -> String) {
        if self.tell {
            println!("{:>14} {}", format!("{:?}", self.now), what(self));
        }
    }

    /// Lets a loop turn at `at`, unless it turns before.
    fn wake(&mut self, index: usize, lane: usize, at: Nanos) {
        let shell = &mut self.nodes[index].loops[lane];
        let at = at.max(shell.busy).max(self.now);
        if at < shell.wake {
            shell.wake = at;
            self.queue.push(at, Event::Wake { node: index, lane });
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Wake { node, lane } => {
                // Others are of a process that has died, or were overtaken by an earlier one.
                let shell = self.nodes[node].loops.get_mut(lane);
                if let Some(shell) = shell.filter(|shell| shell.wake == self.now) {
                    shell.wake = Nanos::MAX;
                    self.turn(node, lane);
                }
            }
            Event::Arrive { to, lane, from, boot, bytes } => {
                self.arrive(to, lane, Input::Peer { from, boot, bytes });
            }
            Event::Client => {
                if self.now < HEALED {
                    self.client_sends();
                    let pause = self.scenario.load.pause.0;
                    let pause = Nanos(self.rng.range(pause / 10, pause * 19 / 10));
                    self.queue.push(self.now + pause, Event::Client);
                }
            }
            Event::Encore => self.client_sends(),
            Event::Begin(index) => self.begin(index),
            Event::End(index) => self.end(index),
            Event::Detect { at, of } => self.detect(at, of),
            Event::Look => {}
        }
    }

    fn arrive(&mut self, index: usize, lane: usize, input: Input) {
        let node = &mut self.nodes[index];
        if !node.alive {
            return;
        }
        if node.loops[lane].inbox.len() >= INBOX {
            self.coverage.overflows += 1;
            return;
        }
        node.loops[lane].inbox.push_back(input);
        let latency = Nanos(self.rng.range(0, 20_000));
        self.wake(index, lane, self.now + latency);
    }

    /// One turn of a loop, as the run-loop contract says.
    fn turn(&mut self, index: usize, lane: usize) {
        if !self.nodes[index].alive || self.nodes[index].frozen > 0 {
            return;
        }
        let now = self.nodes[index].clock.read(self.now);
        let node = &mut self.nodes[index];
        let shell = &mut node.loops[lane];
        let batch = self.rng.range(1, 64) as usize;
        for input in shell.inbox.drain(..batch.min(shell.inbox.len())) {
            match input {
                Input::Peer { from, boot, bytes } => shell.shard.on_peer(now, from, boot, &bytes),
                Input::Client { key, source, local, payload } => {
                    let packet = inbound(source, local, &payload);
                    match shell.shard.on_client(now, key, &packet) {
                        Ok(()) => {
                            let slot = key.slot(self.scenario.layout.slots());
                            self.checker.accepted(slot.0, key, &packet);
                        }
                        Err(reason) => {
                            self.coverage.refused += 1;
                            if self.now > HEALED + ENCORE_AFTER {
                                self.checker.stuck(self.now, &format!("refused at rest: {reason:?}"));
                            }
                        }
                    }
                }
            }
        }
        for news in shell.news.drain(..) {
            match news {
                News::Joined(node, boot) => shell.shard.on_join(now, node, boot),
                News::Suspects(suspects) => shell.shard.on_suspects(now, suspects),
            }
        }
        if shell.shard.next_timeout() <= now.mono {
            shell.shard.on_timeout(now);
        }
        let mut sends = Sends::default();
        shell.shard.flush(now, &mut sends);
        shell.backlog.extend(sends.clients.drain(..));
        let (id, boot) = (node.id, node.boot);
        for execution in self.trace.take() {
            self.coverage.executed(&execution);
            self.checker.executed(self.now, id, boot, execution);
        }
        self.send(index, lane, &sends);
        self.release(index, lane);
        let busy = self.nodes[index].turn.unwrap_or(Nanos::from_micros(self.rng.range(1, 20)));
        self.nodes[index].loops[lane].busy = self.now + busy;
        self.sleep(index, lane);
    }

    /// Decides when a loop turns again.
    fn sleep(&mut self, index: usize, lane: usize) {
        let node = &self.nodes[index];
        let shell = &node.loops[lane];
        let timeout = shell.shard.next_timeout();
        let at = if !shell.inbox.is_empty() || !shell.news.is_empty() {
            self.now
        } else if !shell.backlog.is_empty() {
            self.now + Nanos::from_micros(50)
        } else if timeout == Nanos::MAX {
            return;
        } else {
            let late = if self.rng.chance(50) { self.rng.range(0, 1_500_000) } else { 1_000 };
            node.clock.when(timeout) + Nanos(late)
        };
        self.wake(index, lane, at);
    }

    /// Sends what a flush wrote to other nodes.
    fn send(&mut self, index: usize, lane: usize, sends: &Sends) {
        let (from, boot) = (self.nodes[index].id, self.nodes[index].boot);
        if let Some((to, a, b)) = sends.broken_run(self.scenario.settings.datagram_room) {
            self.checker.fail(self.now, format!("outbox contract: {from} sent {to:?} {a}, then {b} bytes"));
        }
        for (to, bytes) in &sends.peers {
            self.spy.look(&mut self.coverage, bytes);
            for to in to.iter() {
                let known = to != from && usize::from(to.0) <= self.nodes.len() && to.0 > 0;
                if !known {
                    self.checker.fail(self.now, format!("outbox contract: {from} sent to {to}"));
                    continue;
                }
                let arrivals = self.links.send(&mut self.rng, self.now, from, to, bytes.len());
                self.say(|_| format!("{from} -> {to} {}{}", spy::describe(bytes), spy::fate(arrivals)));
                for at in [arrivals.first, arrivals.second].into_iter().flatten() {
                    let (to, bytes) = (usize::from(to.0) - 1, Rc::clone(bytes));
                    self.queue.push(at, Event::Arrive { to, lane, from, boot, bytes });
                }
                self.coverage.datagram(arrivals);
            }
        }
    }

    /// Lets the kernel take client datagrams from the backlog: mostly all, at times some, none in a stall.
    fn release(&mut self, index: usize, lane: usize) {
        let waiting = self.nodes[index].loops[lane].backlog.len();
        let taken = match waiting {
            0 => 0,
            _ if self.stalled > 0 => 0,
            _ if self.rng.chance(30) => self.rng.range(0, waiting as u64) as usize,
            _ => waiting,
        };
        if taken == 0 {
            return;
        }
        let shell = &mut self.nodes[index].loops[lane];
        let replies: Vec<Reply> = shell.backlog.drain(..taken).collect();
        let now = self.nodes[index].clock.read(self.now);
        self.nodes[index].loops[lane].shard.on_sent(now, taken);
        for Reply { slot, local, to, bytes } in &replies {
            self.say(|_| format!("client {to:?} gets {}", spy::describe_reply(bytes)));
            self.coverage.released += 1;
            let release = Release { slot: slot.0, local: *local, to: *to, bytes };
            self.checker.released(self.now, release);
        }
    }

    /// A client sends the next packet of some call.
    fn client_sends(&mut self) {
        let Load { calls, panics, .. } = self.scenario.load;
        let call = self.rng.range(0, u64::from(calls) - 1) as u32;
        let mut control = (self.rng.next() & 0xff) as u8 & !op::PANIC & !op::END;
        if self.rng.chance(700) {
            control &= !op::LONG;
        }
        if self.rng.chance(60) {
            control |= op::END;
        }
        if panics && self.rng.chance(20) {
            control |= op::PANIC;
        }
        let filler = if self.rng.chance(100) { self.rng.range(0, 1_300 - HEADER as u64) } else { 20 };
        self.next_seq += 1;
        let timer = (self.rng.next() & 0xff) as u8;
        let payload = payload(call, self.next_seq, control, timer, filler as usize);
        let mut ip = [0; 16];
        ip[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, call as u8]);
        let (source, local) = (Endpoint { ip, port: 5_000 + call as u16 }, LocalId((call % 2) as u16));
        let key: CallKey = match TestApp::default().classify(&inbound(source, local, &payload)) {
            Ok(key) => key,
            Err(_) => key_of(call),
        };
        let Slot(slot) = key.slot(self.scenario.layout.slots());
        let lane = usize::from(slot % self.scenario.layout.shards);
        self.say(|w| format!("client {call} sends {} (slot {slot}, control {control:#010b})", w.next_seq));
        self.coverage.sent += 1;
        self.arrive(usize::from(OWNER.0) - 1, lane, Input::Client { key, source, local, payload });
    }

    fn begin(&mut self, index: usize) {
        let Planned { fault, until, .. } = self.scenario.faults[index].clone();
        self.say(|_| format!("FAULT {index} until {until:?}: {fault:?}"));
        let name = index as u32;
        match fault {
            Fault::Link(fault) => self.links.add(name, fault),
            Fault::Crash { node, .. } => {
                let node = &mut self.nodes[usize::from(node.0) - 1];
                self.coverage.crashes += u64::from(node.alive);
                self.coverage.master_kills += u64::from(node.alive && self.spy.is_master(node.id));
                node.alive = false;
                node.loops.clear();
            }
            Fault::Freeze { node } => {
                self.coverage.freezes += 1;
                self.coverage.master_freezes += u64::from(self.spy.is_master(node));
                self.nodes[usize::from(node.0) - 1].frozen += 1;
            }
            Fault::Slow { node, turn } => self.nodes[usize::from(node.0) - 1].turn = Some(turn),
            Fault::Suspect { at, suspects } => {
                self.coverage.wrong_suspicions += 1;
                let at = usize::from(at.0) - 1;
                self.nodes[at].wrong.push((name, suspects));
                self.tell_suspects(at);
            }
            Fault::WallStep { node, by } => self.nodes[usize::from(node.0) - 1].clock.wall += by,
            Fault::Burst { packets } => (0..packets).for_each(|_| self.client_sends()),
            Fault::Stall => self.stalled += 1,
        }
        self.let_detect(Nanos::from_millis(1), Nanos::from_millis(7));
    }

    fn end(&mut self, index: usize) {
        let fault = self.scenario.faults[index].fault.clone();
        self.say(|_| format!("fault {index} is over"));
        let name = index as u32;
        match fault {
            Fault::Link(_) => self.links.remove(name),
            Fault::Crash { node, restarts } => {
                let index = usize::from(node.0) - 1;
                if restarts && !self.nodes[index].alive {
                    self.coverage.restarts += 1;
                    let more = self.rng.range(1, 1_000);
                    let node = &mut self.nodes[index];
                    node.boot = Boot(node.boot.0 + more);
                    node.alive = true;
                    self.start(index);
                }
            }
            Fault::Freeze { node } => {
                let index = usize::from(node.0) - 1;
                self.nodes[index].frozen -= 1;
                for lane in 0..self.nodes[index].loops.len() {
                    self.wake(index, lane, self.now);
                }
            }
            Fault::Slow { node, .. } => self.nodes[usize::from(node.0) - 1].turn = None,
            Fault::Suspect { at, .. } => {
                let at = usize::from(at.0) - 1;
                self.nodes[at].wrong.retain(|(fault, _)| *fault != name);
                self.tell_suspects(at);
            }
            Fault::Stall => self.stalled -= 1,
            Fault::WallStep { .. } | Fault::Burst { .. } => {}
        }
        self.let_detect(Nanos::from_millis(1), Nanos::from_millis(7));
    }

    /// Something changed: every detector will notice, each in its own time.
    fn let_detect(&mut self, soonest: Nanos, latest: Nanos) {
        for at in 0..self.nodes.len() {
            for of in (0..self.nodes.len()).filter(|of| *of != at) {
                let delay = Nanos(self.rng.range(soonest.0, latest.0));
                self.queue.push(self.now + delay, Event::Detect { at, of });
            }
        }
    }

    fn detect(&mut self, at: usize, of: usize) {
        let other = &self.nodes[of];
        let (id, boot, me) = (other.id, other.boot, &self.nodes[at]);
        let silent = !other.alive || other.frozen > 0 || self.links.is_cut(id, me.id);
        if !me.alive {
            return;
        }
        if !silent && me.known[of] != Some(boot) {
            self.nodes[at].known[of] = Some(boot);
            self.tell_news(at, News::Joined(id, boot));
        }
        if self.nodes[at].silent.contains(id) == silent {
            return;
        }
        match silent {
            true => self.nodes[at].silent.insert(id),
            false => self.nodes[at].silent.remove(id),
        }
        self.coverage.suspicions += u64::from(silent);
        self.tell_suspects(at);
    }

    fn tell_suspects(&mut self, at: usize) {
        self.tell_news(at, News::Suspects(self.nodes[at].suspects()));
    }

    fn tell_news(&mut self, at: usize, news: News) {
        self.say(|w| format!("{} hears {news:?}", w.nodes[at].id));
        for lane in 0..self.nodes[at].loops.len() {
            self.nodes[at].loops[lane].news.push_back(news);
            let soon = self.now + Nanos(self.rng.range(0, 100_000));
            self.wake(at, lane, soon);
        }
    }

    /// Looks whether everything is done; true when the world may end.
    fn look(&mut self) -> bool {
        self.queue.push(self.now + Nanos::from_millis(5), Event::Look);
        self.check_limits();
        if self.now < self.clients_until {
            return false;
        }
        match (self.checker.unfinished(&self.connected(), self.given_up()), self.done) {
            (None, None) => self.done = Some(self.now),
            (None, Some(since)) if self.encore => {
                if self.now.since(since) >= ENCORE_AFTER {
                    (1..=ENCORE)
                        .for_each(|n| self.queue.push(self.now + Nanos(ENCORE_PAUSE.0 * n), Event::Encore));
                    self.clients_until = self.now + Nanos(ENCORE_PAUSE.0 * (ENCORE + 1));
                    (self.encore, self.done, self.due) = (false, None, self.clients_until + DONE_WITHIN);
                }
            }
            (None, Some(since)) if self.now.since(since) >= QUIET => {
                self.check_rest();
                return true;
            }
            (None, Some(_)) => {}
            (Some(what), since) => {
                // Nothing may come undone, but for what clients send.
                if since.is_some() || self.now > self.due {
                    self.checker.stuck(self.now, &what);
                }
            }
        }
        false
    }

    /// Whether an owner has given up members: they fell out of a window that is small on purpose.
    fn given_up(&self) -> bool {
        self.scenario.settings.tight() && self.stats().any(|(_, stats)| stats.slots_short > 0)
    }

    /// The nodes that must have everything in the end: those that never crashed.
    fn connected(&self) -> Vec<NodeId> {
        let crashed: Vec<NodeId> = self.scenario.crashed().collect();
        self.scenario.layout.ids().filter(|id| !crashed.contains(id)).collect()
    }

    fn stats(&self) -> impl Iterator<Item = (NodeId, ShardStats)> + '_ {
        self.nodes.iter().flat_map(|node| node.loops.iter().map(|l| (node.id, l.shard.stats())))
    }

    /// Invariant 7 while things go wrong: nothing grows past its limit.
    fn check_limits(&mut self) {
        let settings = self.scenario.settings.clone();
        let mut broken = None;
        for (id, stats) in self.stats() {
            // An entry has at most 3 outputs of its packet, and those of timers, of which some calls have a few.
            let log = 64 + settings.window * 16;
            let bytes = 2 * settings.retain_bytes as u64 + log * 1_500 * u64::from(self.map.slots);
            if stats.longest_log > log || stats.retained_bytes > bytes {
                broken = Some(format!(
                    "{id} keeps {} records of a slot, {} bytes",
                    stats.longest_log, stats.retained_bytes
                ));
            }
            if stats.divergences > 0 {
                broken = Some(format!("{id} says that members diverged"));
            }
        }
        if let Some(what) = broken {
            self.checker.unbounded(self.now, &what);
        }
    }

    /// Invariants 6 and 7 at rest: digests agree, and nothing is kept unless a member is missing.
    fn check_rest(&mut self) {
        let (connected, given_up) = (self.connected(), self.given_up());
        let mut digests: BTreeMap<Slot, (NodeId, SlotDigest)> = BTreeMap::new();
        let mut broken = None;
        for node in self.nodes.iter().filter(|node| connected.contains(&node.id)) {
            for digest in node.loops.iter().flat_map(|l| l.shard.digests()) {
                let (other, first) = *digests.entry(digest.slot).or_insert((node.id, digest));
                if first != digest && !(given_up && first.executed != digest.executed) {
                    broken = Some(format!("{other} has {first:?}, {} has {digest:?}", node.id));
                }
            }
        }
        if let Some(what) = broken {
            self.checker.stuck(self.now, &what);
        }
        let whole = connected.len() == self.nodes.len() && !given_up;
        let kept = self.stats().find(|(_, stats)| whole && stats.retained_records > 0);
        if let Some((id, stats)) = kept {
            let what = format!("{id} still keeps {} records at rest", stats.retained_records);
            self.checker.unbounded(self.now, &what);
        }
    }

    fn finish(mut self) -> Outcome {
        let mut sums = Coverage::default();
        for (_, stats) in self.stats() {
            sums.hedges += stats.hedges;
            sums.probes += stats.probes;
            sums.demoted += stats.demotions;
            sums.ticks += stats.ticks;
            sums.repeated += stats.repeated_outputs;
            sums.rescued += stats.rescued_outputs;
        }
        self.coverage.add(&sums);
        Outcome { failure: self.checker.failure().map(str::to_string), coverage: self.coverage }
    }
}
