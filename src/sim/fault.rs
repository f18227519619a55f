//! What a world is and what goes wrong in it, all drawn from its seed before it starts.

use crate::proto::map::{ClusterMap, MapNode, MapShape};
use crate::sim::net::{LinkBase, LinkEffect, LinkFault};
use crate::sim::rng::Rng;
use crate::types::{Boot, HostId, Nanos, NodeId, NodeSet, Slot};

/// The node that holds the service address. It never crashes here: owners die in a later chapter.
pub const OWNER: NodeId = NodeId(1);

/// Every fault is over by then at the latest, and no client sends afterwards.
pub const HEALED: Nanos = Nanos::from_millis(120);

/// The nodes, where they stand, and who holds what.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Host of each node; node ids count from 1.
    pub hosts: Vec<u16>,
    /// Shards of each node.
    pub shards: u16,
    /// Members of each slot, the first in line for mastership first.
    pub members: Vec<Vec<NodeId>>,
    /// What all maps of the core have in common.
    pub shape: MapShape,
}

impl Layout {
    fn draw(rng: &mut Rng) -> Layout {
        let nodes = rng.range(3, 5);
        let hosts: Vec<u16> = match rng.range(0, 2) {
            0 => (0..nodes).map(|n| n as u16).collect(),
            // Several nodes a host, on two hosts; both are used.
            1 => (0..nodes).map(|n| if n < 2 { n as u16 } else { rng.range(0, 1) as u16 }).collect(),
            _ => (0..nodes).map(|n| if n < 2 { n as u16 } else { rng.range(0, nodes - 1) as u16 }).collect(),
        };
        let copies = rng.pick(&[1, 2, 2, 3, 3, 3, 3, 3, 5]);
        let (slots, shards) = (rng.range(1, 8) as u16, rng.range(1, 2) as u16);
        Layout::new(hosts, slots, shards, copies)
    }

    /// The layout in which the core's map puts `copies` members of each slot on nodes that stand on `hosts`.
    pub fn new(hosts: Vec<u16>, slots: u16, shards: u16, copies: usize) -> Layout {
        let node = |(at, host): (usize, &u16)| MapNode::new(NodeId(at as u16 + 1), HostId(*host));
        let nodes = hosts.iter().enumerate().map(node).collect();
        let shape = match MapShape::new((slots, shards), nodes, OWNER, vec![0, 0], copies, 0) {
            Ok(shape) => shape,
            Err(error) => unreachable!("a layout the map refuses: {error}"),
        };
        let map = shape.first_map(|_| Boot(0));
        let members =
            (0..slots).map(|slot| map.group(Slot(slot)).members.iter().map(|m| m.node).collect()).collect();
        Layout { hosts, shards, members, shape }
    }

    /// The map that is agreed on first, if every node lives in the life that `boots` says.
    pub fn first_map(&self, boots: &[Boot]) -> ClusterMap {
        self.shape.first_map(|node| boots[usize::from(node.0) - 1])
    }

    /// The lowest three nodes vote, or the lowest one of two.
    pub fn voters(&self) -> Vec<NodeId> {
        let most = if self.nodes() < 3 { 1 } else { 3 };
        self.ids().take(most).collect()
    }

    /// The number of nodes.
    pub fn nodes(&self) -> usize {
        self.hosts.len()
    }

    /// All node ids.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.hosts.len() as u16).map(NodeId)
    }

    /// The number of slots.
    pub fn slots(&self) -> u16 {
        self.members.len() as u16
    }

    /// The host a node stands on.
    pub fn host(&self, node: NodeId) -> u16 {
        self.hosts[usize::from(node.0) - 1]
    }

    /// How many hosts `nodes` stand on.
    pub fn spans(&self, nodes: &[NodeId]) -> usize {
        let mut hosts: Vec<u16> = nodes.iter().map(|n| self.host(*n)).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts.len()
    }

    /// Whether `nodes`, members of `slot`, are a commit set: enough, and on two hosts if the members are.
    pub fn commits(&self, slot: u16, nodes: &[NodeId]) -> bool {
        let members = &self.members[usize::from(slot)];
        nodes.len() >= usize::from(self.shape.commit) && self.spans(nodes) >= self.spans(members).min(2)
    }
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A link misbehaves.
    Link(LinkFault),
    /// A node's process is gone. It is started again, with empty memory, when the fault ends, if `restarts`.
    Crash {
        /// Which.
        node: NodeId,
        /// Whether it comes back.
        restarts: bool,
    },
    /// A node's process stands still and then finds everything that arrived.
    Freeze {
        /// Which.
        node: NodeId,
    },
    /// Each turn of a node's loops takes this long.
    Slow {
        /// Which.
        node: NodeId,
        /// How long.
        turn: Nanos,
    },
    /// A node's detector says that these are silent, wrongly.
    Suspect {
        /// Whose detector.
        at: NodeId,
        /// Whom.
        suspects: NodeSet,
    },
    /// A node's wall clock jumps by this many ns.
    WallStep {
        /// Which.
        node: NodeId,
        /// By how much.
        by: i64,
    },
    /// Many packets of clients at once.
    Burst {
        /// How many.
        packets: u32,
    },
    /// The owner's kernel takes no client datagrams: its send buffer is full.
    Stall,
}

/// A fault and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When it begins.
    pub from: Nanos,
    /// When it is over (without meaning for steps and bursts).
    pub until: Nanos,
    /// What.
    pub fault: Fault,
}

/// How a node's clocks run against true time.
#[derive(Copy, Clone, Debug, Default)]
pub struct ClockSkew {
    /// Monotonic time at the start of the world.
    pub mono: Nanos,
    /// Wall time's lead over true time in ns.
    pub wall: i64,
    /// How much faster it runs, in parts per million.
    pub drift_ppm: i64,
}

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Load {
    /// How many calls.
    pub calls: u32,
    /// The mean pause between two packets.
    pub pause: Nanos,
    /// Whether some packets make the application panic.
    pub panics: bool,
}

/// Settings of the core that worlds differ in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// See `ShardConfig::window`.
    pub window: u64,
    /// See `ShardConfig::retain_bytes`.
    pub retain_bytes: usize,
    /// Whether nodes run their real detectors, which beat; otherwise detection is modelled, which is faster.
    pub beats: bool,
    /// A socket's receive buffer, in datagrams.
    pub inbox: usize,
    /// See `ShardConfig::datagram_room`.
    pub datagram_room: usize,
    /// See `ShardConfig::hedge_after`.
    pub hedge_after: Nanos,
    /// See `ShardConfig::multicast`.
    pub multicast: bool,
}

/// A window no world of this length fills: nobody falls out of it.
pub const WIDE: u64 = 4_096;

/// What an owner may keep in a world in which it is never short of memory.
pub const PLENTY: usize = 1 << 20;

/// Everything that is drawn before a world starts.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The nodes.
    pub layout: Layout,
    /// Clocks of each node.
    pub clocks: Vec<ClockSkew>,
    /// The links without faults.
    pub base: LinkBase,
    /// The clients.
    pub load: Load,
    /// The core's settings.
    pub settings: Settings,
    /// Whether the clients speak up again long after all has healed.
    pub encore: bool,
    /// What goes wrong, in order of time.
    pub faults: Vec<Planned>,
    /// Drives everything else.
    pub rng: Rng,
}

impl Settings {
    /// Whether an owner may give up a member that lags behind.
    pub fn tight(&self) -> bool {
        self.window < WIDE || self.retain_bytes < PLENTY
    }
}

impl Scenario {
    /// The scenario of `seed`.
    pub fn draw(seed: u64) -> Scenario {
        let mut rng = Rng::new(seed);
        let mut scenario = Scenario::calm(&mut rng);
        let faults = rng.range(0, 7);
        for _ in 0..faults {
            let planned = scenario.draw_fault(&mut rng);
            scenario.faults.push(planned);
        }
        scenario.keep_a_commit_set();
        // A member that falls out of a small window does not come back yet, so it must not be missed later.
        if scenario.crashed().next().is_none() && rng.chance(250) {
            scenario.settings.window = rng.pick(&[4, 16, 64, WIDE]);
            scenario.settings.retain_bytes = rng.pick(&[10_000, PLENTY, PLENTY]);
        }
        scenario.faults.sort_by_key(|planned| planned.from);
        scenario.rng = rng.split();
        scenario
    }

    /// The scenario of `seed` with exactly these faults.
    pub fn with_faults(seed: u64, faults: Vec<Planned>) -> Scenario {
        let mut rng = Rng::new(seed);
        let mut scenario = Scenario::calm(&mut rng);
        scenario.faults = faults;
        scenario.rng = rng.split();
        scenario
    }

    fn calm(rng: &mut Rng) -> Scenario {
        let layout = Layout::draw(rng);
        let clocks = layout
            .ids()
            .map(|_| ClockSkew {
                mono: Nanos(rng.range(1, Nanos::from_secs(1_000_000).0)),
                wall: rng.range(0, 20_000_000) as i64 - 10_000_000,
                drift_ppm: rng.range(0, 1_000) as i64 - 500,
            })
            .collect();
        let base = LinkBase {
            delay: Nanos::from_micros(rng.range(5, 200)),
            jitter: Nanos::from_micros(rng.range(0, 100)),
        };
        let load = Load {
            calls: rng.range(1, 12) as u32,
            pause: Nanos::from_micros(rng.range(150, 900)),
            panics: rng.chance(300),
        };
        let settings = Settings {
            window: WIDE,
            retain_bytes: PLENTY,
            beats: rng.chance(150),
            inbox: rng.pick(&[16, 64, 256, 2_048]),
            datagram_room: rng.pick(&[600, 1_372, 1_372, 8_900]),
            hedge_after: Nanos::from_micros(rng.pick(&[300, 1_000, 3_000])),
            multicast: rng.chance(250),
        };
        let encore = rng.chance(200);
        Scenario { layout, clocks, base, load, settings, encore, faults: Vec::new(), rng: rng.split() }
    }

    fn draw_fault(&self, rng: &mut Rng) -> Planned {
        let from = Nanos(rng.range(Nanos::from_millis(2).0, Nanos::from_millis(100).0));
        let long = Nanos::from_micros(rng.pick(&[200, 1_000, 4_000, 15_000, 60_000]));
        let until = (from + Nanos(rng.range(long.0 / 2, long.0))).min(HEALED);
        let nodes = self.layout.nodes() as u64;
        let any = NodeId(rng.range(1, nodes) as u16);
        let other = NodeId(rng.range(2, nodes) as u16);
        let (everyone, one) = (NodeSet(u64::MAX), NodeSet(1 << any.0));
        let some = NodeSet(rng.draw() & ((1 << (nodes + 1)) - 2));
        let link = |from, to, effect| Fault::Link(LinkFault { from, to, effect });
        let (from_set, to_set) = match rng.range(0, 4) {
            0 => (one, everyone),
            1 => (everyone, one),
            2 => (some, NodeSet(!some.0)),
            _ => (everyone, everyone),
        };
        let fault = match rng.range(0, 19) {
            0..=2 => link(from_set, to_set, LinkEffect::Loss(rng.pick(&[5, 20, 100, 300, 700]))),
            3 | 4 => link(from_set, to_set, LinkEffect::Duplicate(rng.pick(&[10, 100, 500]))),
            5 | 6 => {
                let by = Nanos::from_micros(rng.pick(&[100, 500, 3_000]));
                link(from_set, to_set, LinkEffect::Reorder { permille: rng.pick(&[20, 200, 600]), by })
            }
            7 => {
                link(from_set, to_set, LinkEffect::Delay(Nanos::from_micros(rng.pick(&[100, 1_000, 8_000]))))
            }
            8 => link(from_set, to_set, LinkEffect::Narrow(rng.pick(&[10, 80, 800]))),
            9 => link(one, everyone, LinkEffect::Cut),
            10 => link(everyone, one, LinkEffect::Cut),
            11 => link(some, NodeSet(!some.0), LinkEffect::Cut),
            12 | 13 => Fault::Crash { node: other, restarts: rng.chance(500) },
            14 => Fault::Freeze { node: any },
            15 => Fault::Slow { node: any, turn: Nanos::from_micros(rng.pick(&[100, 500, 2_000])) },
            16 | 17 => {
                let at = if rng.chance(700) { OWNER } else { any };
                let mut suspects = some;
                suspects.remove(at);
                Fault::Suspect { at, suspects }
            }
            18 => match rng.range(0, 1) {
                0 => Fault::WallStep { node: any, by: rng.range(0, 200_000_000) as i64 - 100_000_000 },
                _ => Fault::Stall,
            },
            _ => Fault::Burst { packets: rng.range(5, 120) as u32 },
        };
        Planned { from, until, fault }
    }

    /// Takes crashes out until every slot keeps a commit set: a member that has died never comes back here.
    fn keep_a_commit_set(&mut self) {
        loop {
            let dead: Vec<NodeId> = self.crashed().collect();
            let stuck = (0..self.layout.slots()).any(|slot| {
                let members = &self.layout.members[usize::from(slot)];
                let left: Vec<NodeId> = members.iter().copied().filter(|n| !dead.contains(n)).collect();
                !self.layout.commits(slot, &left)
            });
            let crash = self.faults.iter().rposition(|p| matches!(p.fault, Fault::Crash { .. }));
            match crash {
                Some(at) if stuck => drop(self.faults.remove(at)),
                _ => return,
            }
        }
    }

    /// The nodes that crash.
    pub fn crashed(&self) -> impl Iterator<Item = NodeId> {
        self.faults.iter().filter_map(|planned| match planned.fault {
            Fault::Crash { node, .. } => Some(node),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, HEALED, OWNER, Scenario};

    #[test]
    fn scenarios_hold_what_they_promise() {
        let (mut crashes, mut two_hosts, mut restarts) = (0, 0, 0);
        for seed in 0..2_000 {
            let scenario = Scenario::draw(seed);
            let layout = &scenario.layout;
            for slot in 0..layout.slots() {
                let members = &layout.members[usize::from(slot)];
                assert!(layout.commits(slot, members), "seed {seed} slot {slot}: {layout:?}");
                assert!(members.len() == 1 || layout.spans(members) > 1, "seed {seed}: {layout:?}");
                let left: Vec<_> =
                    members.iter().copied().filter(|n| !scenario.crashed().any(|c| c == *n)).collect();
                assert!(layout.commits(slot, &left), "seed {seed} slot {slot} is stuck");
            }
            two_hosts += u32::from(layout.hosts.iter().max() == Some(&1));
            for planned in &scenario.faults {
                assert!(planned.from <= planned.until && planned.until <= HEALED);
                if let Fault::Crash { node, restarts: again } = planned.fault {
                    assert_ne!(node, OWNER);
                    crashes += 1;
                    restarts += u32::from(again);
                }
            }
            assert_eq!(format!("{:?}", Scenario::draw(seed)), format!("{scenario:?}"));
        }
        assert!(crashes > 200 && restarts > 50 && two_hosts > 300, "{crashes} {restarts} {two_hosts}");
    }
}
