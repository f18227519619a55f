//! Worlds in which anybody may die: what goes wrong in them.

use super::{Scenario, WIDE};
use crate::sim::fault::{Fault, Planned, one};
use crate::sim::layout::OWNER;
use crate::sim::net::{LinkEffect, LinkFault};
use crate::sim::rng::Rng;
use crate::types::{Nanos, NodeId, NodeSet};

impl Scenario {
    /// A scenario in which anybody may die.
    pub fn draw_live(rng: &mut Rng) -> Scenario {
        let mut scenario = Scenario::calm(rng, true);
        scenario.healed = Nanos::from_millis(rng.range(60, 240));
        for _ in 0..rng.range(1, 6) {
            let planned = scenario.draw_live_fault(rng);
            scenario.faults.push(planned);
        }
        scenario.keep_a_majority();
        if rng.chance(100) {
            scenario.settings.window = rng.pick(&[16, 64, WIDE]);
        }
        scenario.faults.sort_by_key(|planned| planned.from);
        scenario.rng = rng.split();
        scenario
    }

    fn draw_live_fault(&self, rng: &mut Rng) -> Planned {
        let from = Nanos(rng.range(Nanos::from_millis(1).0, self.healed.0 * 3 / 4));
        let long = Nanos::from_micros(rng.pick(&[300, 2_000, 15_000, 40_000, 80_000, 160_000]));
        let until = (from + Nanos(rng.range(long.0 / 2, long.0))).min(self.healed);
        let nodes = self.layout.nodes() as u64;
        // The first owner is the most interesting one.
        let any = if rng.chance(350) { OWNER } else { NodeId(rng.range(1, nodes) as u16) };
        let all = NodeSet((1 << (nodes + 1)) - 2);
        let some = NodeSet(rng.draw() & all.0);
        let without = |set: NodeSet| NodeSet(all.0 & !set.0);
        let only = one(any);
        let link = |from, to, effect| Fault::Link(LinkFault { from, to, effect });
        let (from_set, to_set) = match rng.range(0, 4) {
            0 => (only, all),
            1 => (all, only),
            2 => (some, without(some)),
            _ => (all, all),
        };
        let crash = |nodes, rng: &mut Rng| {
            let (notice, disk) = (rng.chance(500), rng.chance(60));
            Fault::Crash { nodes, restarts: rng.chance(900), notice, disk }
        };
        let fault = match rng.range(0, 33) {
            0..=5 => crash(only, rng),
            6 => crash(NodeSet(only.0 | one(NodeId(rng.range(1, nodes) as u16)).0), rng),
            7 => crash(some, rng),
            8..=10 => {
                let nodes = self.layout.on_host(self.layout.host(any));
                Fault::Crash { nodes, restarts: true, notice: false, disk: false }
            }
            11..=13 => Fault::Freeze { nodes: only, mid: rng.chance(700) },
            14 => Fault::Freeze { nodes: some, mid: rng.chance(500) },
            15 => Fault::Split { one: only, other: without(only) },
            16 => Fault::Split { one: some, other: without(some) },
            17 => {
                let voters = self.layout.voters.iter().filter(|n| **n != any);
                let voters = voters.fold(0, |set, n| set | one(*n).0);
                Fault::Split { one: only, other: NodeSet(voters) }
            }
            18 => {
                let others = self.layout.ids().filter(|n| *n != any && !self.layout.is_witness(*n));
                Fault::Split { one: only, other: NodeSet(others.fold(0, |set, n| set | one(n).0)) }
            }
            19 | 20 => {
                let host = |host| self.layout.on_host(host);
                Fault::Split { one: host(0), other: host(1) }
            }
            21 => link(only, all, LinkEffect::Cut),
            22 => link(all, only, LinkEffect::Cut),
            23 => link(some, without(some), LinkEffect::Cut),
            24 => link(from_set, to_set, LinkEffect::Loss(rng.pick(&[5, 20, 100, 300, 700]))),
            25 => link(from_set, to_set, LinkEffect::Duplicate(rng.pick(&[10, 100, 500]))),
            26 => {
                let by = Nanos::from_micros(rng.pick(&[500, 3_000, 30_000]));
                link(from_set, to_set, LinkEffect::Reorder { permille: rng.pick(&[20, 200, 600]), by })
            }
            27 => {
                let by = Nanos::from_micros(rng.pick(&[1_000, 8_000, 25_000]));
                link(from_set, to_set, LinkEffect::Delay(by))
            }
            28 | 29 => Fault::Drain { node: any },
            30 => Fault::Slow { node: any, turn: Nanos::from_micros(rng.pick(&[100, 500, 2_000])) },
            31 => Fault::Suspect { at: any, suspects: NodeSet(some.0 & !only.0) },
            32 => match rng.range(0, 1) {
                0 => Fault::WallStep { node: any, by: rng.range(0, 200_000_000) as i64 - 100_000_000 },
                _ => Fault::Stall,
            },
            _ => Fault::Burst { packets: rng.range(5, 60) as u32 },
        };
        Planned { from, until, fault }
    }

    /// Lets all come back but for what a cluster can do without: a minority of the voters, and a node of three.
    fn keep_a_majority(&mut self) {
        let holders = self.layout.ids().filter(|n| !self.layout.is_witness(*n)).count();
        let mut votes = (self.layout.voters.len() - 1) / 2;
        let mut spare = usize::from(holders > 2);
        for planned in &mut self.faults {
            let Fault::Crash { nodes, restarts, disk, .. } = &mut planned.fault else { continue };
            let voters = self.layout.voters.iter().filter(|v| nodes.contains(**v)).count();
            let gone = nodes.iter().filter(|n| !self.layout.is_witness(*n)).count();
            *restarts |= voters > votes || gone > spare;
            if !*restarts {
                (votes, spare) = (votes - voters, spare - gone);
            }
            *disk &= voters <= votes && *restarts;
            if *disk {
                votes -= voters;
            }
        }
    }
}
