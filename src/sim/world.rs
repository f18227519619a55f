//! A world: machines, links, clients and what goes wrong, run from a scenario until all is quiet, with the
//! checker looking on.

mod detect;
pub(crate) mod heart;
mod trouble;
mod verdict;

use std::rc::Rc;
use std::sync::Arc;

use self::heart::CONTROL;
use crate::app::CallApp;
use crate::app::table::TableLimits;
use crate::engine::{Shard, ShardConfig};
use crate::proto::Safeguards;
use crate::proto::map::ClusterMap;
use crate::sim::checker::{Checker, Release};
use crate::sim::coverage::Coverage;
use crate::sim::fault::{HEALED, Load, OWNER, Scenario};
use crate::sim::net::{Links, Queue};
use crate::sim::node::{Input, Loop, News, Node, Reply, Sends, inbound};
use crate::sim::rng::Rng;
use crate::sim::spy::{self, Spy};
use crate::sim::test_app::{HEADER, TestApp, Trace, key_of, op, payload};
use crate::types::{Boot, CallKey, Endpoint, LocalId, Nanos, NodeId, NodeSet, Slot};

/// Once faults are over everything must be done within this time (invariant 6).
const DONE_WITHIN: Nanos = Nanos::from_millis(600);

/// How long a finished world runs on: late duplicates must do no harm, and what is kept must shrink.
const QUIET: Nanos = Nanos::from_millis(400);

/// How many packets they then send, and how far apart.
const ENCORE: u64 = 30;
const ENCORE_PAUSE: Nanos = Nanos::from_millis(3);

/// When the clients speak up again, in worlds in which they do: masterships have gone home by then.
const ENCORE_AFTER: Nanos = Nanos::from_millis(1_400);

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
    /// A control's loop turns.
    Beat {
        node: usize,
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
    /// Until when packets of clients come in.
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
        let map = Arc::new(scenario.layout.first_map(&boots));
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
            // What they sent until then may still wait in the owner's socket.
            clients_until: HEALED + Nanos::from_millis(20),
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
                votes: None,
                heart: None,
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
        if self.scenario.settings.beats {
            self.nodes[index].heart = Some(self.new_heart(index));
            self.wake_heart(index, self.now);
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
            nodes: self.scenario.layout.ids().collect(),
            map: Arc::new(self.scenario.layout.shape.empty_map()),
            datagram_room: settings.datagram_room,
            window: settings.window,
            retain_bytes: settings.retain_bytes,
            limits: TableLimits { max_calls: 1_000, idle: Nanos::MAX },
            digest_every: 16,
            hedge_after: settings.hedge_after,
            multicast: settings.multicast,
            blocked_after: Nanos::from_millis(15),
            lossy_go: true,
            resync_rate: 0,
            admission: Default::default(),
            founding: None,
            takeover: None,
            safeguards: self.safeguards,
        };
        let mut shard = Shard::new(config, TestApp::new(Rc::clone(&self.trace)));
        let now = node.clock.read(self.now);
        shard.on_map(now, Arc::clone(&self.map));
        shard.on_lease(now, Nanos::MAX);
        shard
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
            Event::Beat { node } => self.beat(node),
            Event::Arrive { to, lane: CONTROL, from, boot, bytes } => self.heart_hears(to, from, boot, bytes),
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
        if node.loops[lane].inbox.len() >= self.scenario.settings.inbox {
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
        shell.turns += 1;
        let batch = self.rng.range(1, 64) as usize;
        for input in shell.inbox.drain(..batch.min(shell.inbox.len())) {
            match input {
                Input::Peer { from, boot, bytes } => {
                    shell.shard.on_peer(now, from, boot, &bytes);
                    if node.heart.is_some() {
                        shell.heard.push((from, boot));
                    }
                }
                Input::Client { key, source, local, payload } => {
                    let packet = inbound(source, local, &payload);
                    let slot = key.slot(self.scenario.layout.slots());
                    match shell.shard.on_client(now, key, &packet) {
                        Ok(()) => self.checker.accepted(slot.0, key, &packet),
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
            if lane != CONTROL {
                self.spy.look(&mut self.coverage, bytes);
            }
            for to in to.iter() {
                let known = to != from && usize::from(to.0) <= self.nodes.len() && to.0 > 0;
                if !known {
                    self.checker.fail(self.now, format!("outbox contract: {from} sent to {to}"));
                    continue;
                }
                let arrivals = self.links.send(&mut self.rng, self.now, from, to, bytes.len());
                self.say(|_| match lane {
                    CONTROL => format!("{from} -> {to} beats{}", spy::fate(arrivals)),
                    _ => format!("{from} -> {to} {}{}", spy::describe(bytes), spy::fate(arrivals)),
                });
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
        let mut control = (self.rng.draw() & 0xff) as u8 & !op::PANIC & !op::END;
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
        let timer = (self.rng.draw() & 0xff) as u8;
        let payload = payload(call, self.next_seq, control, timer, filler as usize);
        let mut ip = [0; 16];
        ip[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, call as u8]);
        let (source, local) =
            (Endpoint { ip, port: 5_000 + call as u16 }, LocalId::endpoint((call % 2) as u16));
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
