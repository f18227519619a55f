//! What a world is and what goes wrong in it, all drawn from its seed before it starts.

use crate::sim::fault::{ClockSkew, Fault, Planned, one};
use crate::sim::layout::{Layout, OWNER};
use crate::sim::net::{LinkBase, LinkEffect, LinkFault};
use crate::sim::rng::Rng;
use crate::types::{Nanos, NodeId, NodeSet};

mod live;
mod staged;

pub use staged::Worlds;

/// Every fault is over by then at the latest in a world whose owner never dies, and no client sends afterwards.
pub const HEALED: Nanos = Nanos::from_millis(120);

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

/// How fast the control of a node is.
#[derive(Copy, Clone, Debug)]
pub struct Timing {
    /// See `ControlConfig::beat`.
    pub beat: Nanos,
    /// See `ControlConfig::suspect_after`.
    pub suspect_after: Nanos,
    /// See `CouncilConfig::lease`.
    pub lease: Nanos,
    /// See `CouncilConfig::dead_after`.
    pub dead_after: Nanos,
    /// See `CouncilConfig::evict_after`.
    pub evict_after: Nanos,
}

impl Timing {
    /// `scale` ms a beat.
    pub fn of(scale: u64) -> Timing {
        Timing {
            beat: Nanos::from_millis(scale),
            suspect_after: Nanos::from_millis(3 * scale),
            lease: Nanos::from_millis(10 * scale),
            dead_after: Nanos::from_millis(15 * scale),
            evict_after: Nanos::from_millis(70 * scale),
        }
    }
}

/// Settings of the core that worlds differ in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether everything is agreed on as in a real cluster, and anybody may die; otherwise the first map is given and
    /// its owner never dies, which is faster.
    pub live: bool,
    /// See `ShardConfig::window`.
    pub window: u64,
    /// See `ShardConfig::retain_bytes`.
    pub retain_bytes: usize,
    /// Whether nodes run their real detectors, which beat; otherwise detection is modelled, which is faster.
    pub beats: bool,
    /// How fast their controls are.
    pub timing: Timing,
    /// A socket's receive buffer, in datagrams.
    pub inbox: usize,
    /// See `ShardConfig::datagram_room`.
    pub datagram_room: usize,
    /// See `ShardConfig::hedge_after`.
    pub hedge_after: Nanos,
    /// See `ShardConfig::multicast`.
    pub multicast: bool,
    /// See `ShardConfig::lazy_after`.
    pub lazy_after: Nanos,
    /// See `ShardConfig::masters_own`.
    pub masters_own: bool,
    /// See `ShardConfig::opens_a_turn`.
    pub opens_a_turn: usize,
    /// See `ShardConfig::resync_rate`.
    pub resync_rate: u64,
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
    /// By when every fault is over. No client sends afterwards, until all has healed.
    pub healed: Nanos,
    /// Whether the clients speak up again long after all has healed.
    pub encore: bool,
    /// What goes wrong, in order of time.
    pub faults: Vec<Planned>,
    /// How long disks take to keep votes; none: no time.
    pub disks: Option<Rng>,
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
        if !rng.chance(500) {
            return Scenario::draw_fixed(&mut rng);
        }
        let mut disks = Rng::new(!seed);
        let slow = disks.chance(250);
        Scenario { disks: slow.then_some(disks), ..Scenario::draw_live(&mut rng) }
    }

    /// A scenario in which the owner never dies.
    pub fn draw_fixed(rng: &mut Rng) -> Scenario {
        let mut scenario = Scenario::calm(rng, false);
        let faults = rng.range(0, 7);
        for _ in 0..faults {
            let planned = scenario.draw_fault(rng);
            scenario.faults.push(planned);
        }
        scenario.keep_a_commit_set();
        // A member that falls out of a small window does not come back here, so it must not be missed later.
        if scenario.crashed().next().is_none() && rng.chance(250) {
            scenario.settings.window = rng.pick(&[4, 16, 64, WIDE]);
            scenario.settings.retain_bytes = rng.pick(&[10_000, PLENTY, PLENTY]);
        }
        scenario.faults.sort_by_key(|planned| planned.from);
        scenario.rng = rng.split();
        scenario
    }

    /// The scenario of `seed` with exactly these faults; `live` as in [`Settings`].
    pub fn with_faults(seed: u64, live: bool, faults: Vec<Planned>) -> Scenario {
        let mut rng = Rng::new(seed);
        let mut scenario = Scenario::calm(&mut rng, live);
        scenario.faults = faults;
        scenario.rng = rng.split();
        scenario
    }

    fn calm(rng: &mut Rng, live: bool) -> Scenario {
        let layout = if live { Layout::draw_live(rng) } else { Layout::draw(rng) };
        Scenario::calm_on(rng, live, layout)
    }

    fn calm_on(rng: &mut Rng, live: bool, layout: Layout) -> Scenario {
        // Two clocks differ by less than the margin that promises leave.
        let drift = if live && rng.chance(300) { 9_500 } else { 500 };
        let clocks = layout
            .ids()
            .map(|_| ClockSkew {
                mono: Nanos(rng.range(1, Nanos::from_secs(1_000_000).0)),
                wall: rng.range(0, 20_000_000) as i64 - 10_000_000,
                drift_ppm: rng.range(0, 2 * drift) as i64 - drift as i64,
            })
            .collect();
        let base = LinkBase {
            delay: Nanos::from_micros(rng.range(5, 200)),
            jitter: Nanos::from_micros(rng.range(0, 100)),
        };
        let pause = if live { rng.range(400, 3_000) } else { rng.range(150, 900) };
        let load = Load {
            calls: rng.range(1, 12) as u32,
            pause: Nanos::from_micros(pause),
            panics: rng.chance(300),
        };
        let settings = Settings {
            live,
            window: WIDE,
            retain_bytes: PLENTY,
            beats: live || rng.chance(150),
            timing: Timing::of(if live { rng.range(1, 2) } else { 1 }),
            inbox: if live { rng.pick(&[64, 256, 2_048]) } else { rng.pick(&[16, 64, 256, 2_048]) },
            datagram_room: rng.pick(&[600, 1_372, 1_372, 8_900]),
            hedge_after: Nanos::from_micros(rng.pick(&[300, 1_000, 3_000])),
            multicast: rng.chance(250),
            lazy_after: Nanos::from_micros(rng.pick(&[0, 300, 2_000, 2_000])),
            masters_own: rng.chance(300),
            opens_a_turn: rng.pick(&[1, 1, 2, 16]),
            resync_rate: if live { rng.pick(&[0, 0, 2_000_000]) } else { 0 },
        };
        let encore = live || rng.chance(200);
        let (faults, rng) = (Vec::new(), rng.split());
        Scenario { layout, clocks, base, load, settings, healed: HEALED, encore, faults, disks: None, rng }
    }

    fn draw_fault(&self, rng: &mut Rng) -> Planned {
        let from = Nanos(rng.range(Nanos::from_millis(2).0, Nanos::from_millis(100).0));
        let long = Nanos::from_micros(rng.pick(&[200, 1_000, 4_000, 15_000, 60_000]));
        let until = (from + Nanos(rng.range(long.0 / 2, long.0))).min(HEALED);
        let nodes = self.layout.nodes() as u64;
        let any = NodeId(rng.range(1, nodes) as u16);
        let other = NodeId(rng.range(2, nodes) as u16);
        let (everyone, only) = (NodeSet(u64::MAX), one(any));
        let some = NodeSet(rng.draw() & ((1 << (nodes + 1)) - 2));
        let link = |from, to, effect| Fault::Link(LinkFault { from, to, effect });
        let (from_set, to_set) = match rng.range(0, 4) {
            0 => (only, everyone),
            1 => (everyone, only),
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
            9 => link(only, everyone, LinkEffect::Cut),
            10 => link(everyone, only, LinkEffect::Cut),
            11 => link(some, NodeSet(!some.0), LinkEffect::Cut),
            12 | 13 => {
                let restarts = rng.chance(500);
                Fault::Crash { nodes: one(other), restarts, notice: false, disk: false }
            }
            14 => Fault::Freeze { nodes: only, mid: false },
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
                !self.layout.commits(members, &left)
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
        self.faults
            .iter()
            .filter_map(|planned| match planned.fault {
                Fault::Crash { nodes, .. } => Some(nodes),
                _ => None,
            })
            .flat_map(NodeSet::iter)
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, HEALED, OWNER, Scenario};
    use crate::sim::rng::Rng;

    #[test]
    fn scenarios_hold_what_they_promise() {
        let (mut crashes, mut two_hosts, mut restarts) = (0, 0, 0);
        for seed in 0..2_000 {
            let scenario = Scenario::draw_fixed(&mut Rng::new(seed));
            let layout = &scenario.layout;
            for slot in 0..layout.slots() {
                let members = &layout.members[usize::from(slot)];
                assert!(layout.commits(members, members), "seed {seed} slot {slot}: {layout:?}");
                assert!(members.len() == 1 || layout.spans(members) > 1, "seed {seed}: {layout:?}");
                let left: Vec<_> =
                    members.iter().copied().filter(|n| !scenario.crashed().any(|c| c == *n)).collect();
                assert!(layout.commits(members, &left), "seed {seed} slot {slot} is stuck");
            }
            two_hosts += u32::from(layout.hosts.iter().max() == Some(&1));
            for planned in &scenario.faults {
                assert!(planned.from <= planned.until && planned.until <= HEALED);
                if let Fault::Crash { nodes, restarts: again, .. } = planned.fault {
                    assert!(!nodes.contains(OWNER));
                    crashes += 1;
                    restarts += u32::from(again);
                }
            }
            let again = Scenario::draw_fixed(&mut Rng::new(seed));
            assert_eq!(format!("{again:?}"), format!("{scenario:?}"));
        }
        assert!(crashes > 200 && restarts > 50 && two_hosts > 300, "{crashes} {restarts} {two_hosts}");
    }
}
