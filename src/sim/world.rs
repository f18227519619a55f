//! A world: machines, links, clients and what goes wrong, run from a scenario until all is quiet, with the
//! checker looking on.
//!
//! - this file: the world and its events;
//! - `turn`: one turn of a shard's loop; `heart`: one of a control's; `doors`: service endpoints and who hears them;
//! - `life`: processes begin and end; `trouble`: faults do;
//! - `clients`: what is sent; `detect`: modelled detectors; `verdict`, `settled`: when a world is done, and whether it may be.

mod clients;
mod detect;
mod doors;
pub(crate) mod heart;
mod life;
mod settled;
mod trouble;
mod turn;
mod verdict;

use std::rc::Rc;
use std::sync::Arc;

use self::heart::CONTROL;
use crate::proto::Safeguards;
use crate::proto::map::ClusterMap;
use crate::sim::checker::Checker;
use crate::sim::coverage::Coverage;
use crate::sim::net::{Links, Queue};
use crate::sim::node::{Cells, Input, Node};
use crate::sim::rng::Rng;
use crate::sim::scenario::Scenario;
use crate::sim::spy::Spy;
use crate::sim::test_app::Trace;
use crate::types::{Boot, Nanos, NodeId, NodeSet, Term};

/// What came of a world.
#[derive(Debug)]
pub struct Outcome {
    /// The first invariant that did not hold, and when.
    pub failure: Option<String>,
    /// What happened in it.
    pub coverage: Coverage,
}

/// A datagram between nodes on its way.
struct Datagram {
    to: usize,
    /// The loop it is for.
    lane: usize,
    /// The life of the receiver it is for; zero: any.
    life: Boot,
    from: NodeId,
    boot: Boot,
    bytes: Rc<[u8]>,
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
    Arrive(Datagram),
    /// One of a client does.
    Hear {
        node: usize,
        lane: usize,
        input: Input,
    },
    /// A disk has kept the votes of a life of a node.
    Saved {
        node: usize,
        boot: Boot,
    },
    /// A supervisor says that a life of a node has ended.
    Notice {
        to: usize,
        of: NodeId,
        boot: Boot,
    },
    /// It is known that a node has a service address now.
    Route {
        address: usize,
        node: usize,
        term: Term,
    },
    /// A process is started, unless it runs.
    Start {
        node: usize,
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
    /// How many faults keep kernels from taking client datagrams.
    stalled: u32,
    /// The number of the next packet of any client.
    next_seq: u32,
    /// Where clients' packets for each service address go, and in which term it went there.
    routes: Vec<Option<(usize, Term)>>,
    /// When the first clients send; the times of faults count from here. None: the cluster has still to form.
    origin: Option<Nanos>,
    /// Whether the clients are still to speak up again.
    encore: bool,
    /// Whether what clients send now must be answered.
    strict: bool,
    /// Until when packets of clients come in.
    clients_until: Nanos,
    /// Since when everything has been done.
    done: Option<Nanos>,
    /// By when it must be.
    due: Nanos,
    /// The map that is given, in worlds whose owner never dies.
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
        let live = scenario.settings.live;
        let mut world = World {
            now: Nanos::ZERO,
            queue: Queue::default(),
            links: Links::new(scenario.base),
            nodes: Vec::new(),
            checker: Checker::new(scenario.layout.slots(), live),
            coverage: Coverage { live_worlds: u64::from(live), ..Coverage::default() },
            spy: Spy::default(),
            trace: Trace::default(),
            stalled: 0,
            next_seq: 0,
            routes: vec![(!live).then_some((0, Term(1))); map.addresses.len()],
            origin: None,
            encore: scenario.encore,
            strict: !live,
            clients_until: Nanos::MAX,
            done: None,
            due: Nanos::MAX,
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
                alive: false,
                frozen: 0,
                ambushes: Vec::new(),
                turn: None,
                silent: NodeSet::EMPTY,
                known: vec![None; boots.len()],
                votes: (None, 1_000 + u64::from(id.0)),
                heart: None,
                cells: Cells::default(),
                wrong: Vec::new(),
                loops: Vec::new(),
            };
            world.nodes.push(node);
            if world.scenario.layout.late != Some(id) {
                world.start(index);
            }
        }
        world.say(|w| {
            format!(
                "{:?}\n{:?}\n{:?}\n{:?}",
                w.scenario.layout, w.scenario.base, w.scenario.load, w.scenario.settings
            )
        });
        if live {
            world.due = Nanos::from_secs(6);
        } else {
            world.checker.agreed(Nanos::ZERO, &Arc::clone(&world.map));
            world.begin_all();
        }
        world.queue.push(Nanos::from_millis(5), Event::Look);
        world
    }

    /// The clients begin, and what goes wrong is counted from now on.
    fn begin_all(&mut self) {
        let origin = self.now;
        self.origin = Some(origin);
        for (index, planned) in self.scenario.faults.iter().enumerate() {
            self.queue.push(origin + planned.from, Event::Begin(index));
            self.queue.push(origin + planned.until, Event::End(index));
        }
        self.queue.push(origin + Nanos::from_micros(300), Event::Client);
        if let Some(late) = self.scenario.layout.late {
            let at = origin + Nanos(self.rng.range(0, self.scenario.healed.0));
            self.coverage.grown += 1;
            self.queue.push(at, Event::Start { node: usize::from(late.0) - 1 });
        }
        self.clients_until = origin + self.scenario.healed;
        self.due = self.clients_until + self.done_within();
    }

    /// When every fault is over; never, if they have not begun.
    fn healed(&self) -> Nanos {
        self.origin.map_or(Nanos::MAX, |origin| origin + self.scenario.healed)
    }

    fn say(&self, what: impl FnOnce(&World) -> String) {
        if self.tell {
            println!("{:>14} {}", format!("{:?}", self.now), what(self));
        }
    }

    /// Lets a loop turn at `at`, unless it turns before.
    fn wake(&mut self, index: usize, lane: usize, at: Nanos) {
        let Some(shell) = self.nodes[index].loops.get_mut(lane) else { return };
        let at = at.max(shell.busy).max(self.now);
        if at < shell.wake {
            shell.wake = at;
            self.queue.push(at, Event::Wake { node: index, lane });
        }
    }

    fn wake_all(&mut self, index: usize, at: Nanos) {
        (0..self.nodes[index].loops.len()).for_each(|lane| self.wake(index, lane, at));
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
            Event::Arrive(datagram) => self.arrive(datagram),
            Event::Hear { node, lane, input } => self.hear(node, lane, input),
            Event::Saved { node, boot } => self.saved(node, boot),
            Event::Notice { to, of, boot } => self.notice(to, of, boot),
            Event::Route { address, node, term } => self.route(address, node, term),
            Event::Start { node } => self.start(node),
            Event::Client => {
                if self.now < self.healed() {
                    self.client_sends(None);
                    let pause = self.scenario.load.pause.0;
                    let pause = Nanos(self.rng.range(pause / 10, pause * 19 / 10));
                    self.queue.push(self.now + pause, Event::Client);
                }
            }
            Event::Encore => self.client_sends(None),
            Event::Begin(index) => self.begin(index),
            Event::End(index) => self.end(index),
            Event::Detect { at, of } => self.detect(at, of),
            Event::Look => {}
        }
    }

    fn arrive(&mut self, datagram: Datagram) {
        let Datagram { to, lane, life, from, boot, bytes } = datagram;
        if life != Boot(0) && life != self.nodes[to].boot {
            return;
        }
        match lane {
            CONTROL => self.heart_hears(to, from, boot, bytes),
            _ => self.take_in(to, lane, Input::Peer { from, boot, bytes }),
        }
    }

    fn finish(mut self) -> Outcome {
        for index in 0..self.nodes.len() {
            self.take_counts(index);
        }
        (self.coverage.duplicates, self.coverage.losses) = self.checker.counts();
        self.coverage.virtual_ms = self.now.0 / 1_000_000;
        if let Some(map) = self.checker.newest() {
            self.coverage.maps = u64::from(map.version - 1);
            self.coverage.lossy += u64::from(map.lossy);
            self.coverage.owner_changes =
                map.addresses.iter().map(|a| u64::from(a.term.0.saturating_sub(1))).sum();
        }
        Outcome { failure: self.checker.failure().map(str::to_string), coverage: self.coverage }
    }
}
