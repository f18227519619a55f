//! What goes wrong: faults begin and end.

use super::World;
use crate::sim::fault::{Fault, Planned};
use crate::types::{Boot, Nanos};

impl World {
    pub(super) fn begin(&mut self, index: usize) {
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

    pub(super) fn end(&mut self, index: usize) {
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
                self.wake_heart(index, self.now);
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
}
