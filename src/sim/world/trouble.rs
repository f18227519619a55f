//! What goes wrong: faults begin and end.

use super::{Event, World};
use crate::sim::fault::{Fault, Planned};
use crate::sim::net::{LinkEffect, LinkFault};
use crate::types::{Nanos, NodeId, NodeSet};

fn index(node: NodeId) -> usize {
    usize::from(node.0) - 1
}

impl World {
    pub(super) fn begin(&mut self, number: usize) {
        let Planned { fault, from, until } = self.scenario.faults[number].clone();
        self.say(|w| format!("FAULT {number} until {:?}: {fault:?}", w.now + until - from));
        self.coverage.faults += 1;
        let name = number as u32;
        match fault {
            Fault::Link(fault) => self.links.add(name, fault),
            Fault::Split { one, other } => {
                for (from, to) in [(one, other), (other, one)] {
                    self.links.add(name, LinkFault { from, to, effect: LinkEffect::Cut });
                }
            }
            Fault::Crash { nodes, notice, disk, .. } => self.crash(nodes, notice, disk),
            Fault::Freeze { nodes, mid } => nodes.iter().for_each(|node| {
                self.coverage.freezes += 1;
                self.coverage.master_freezes += u64::from(self.spy.is_master(node));
                let long = until.since(from) > self.scenario.settings.timing.lease;
                self.coverage.owner_freezes += u64::from(long && self.is_owner(index(node)));
                let node = &mut self.nodes[index(node)];
                match mid {
                    true => node.ambushes.push(name),
                    false => node.frozen += 1,
                }
            }),
            Fault::Slow { node, turn } => self.nodes[index(node)].turn = Some(turn),
            Fault::Suspect { at, suspects } => {
                self.coverage.wrong_suspicions += 1;
                self.nodes[index(at)].wrong.push((name, suspects));
                self.tell_suspects(index(at));
            }
            Fault::WallStep { node, by } => self.nodes[index(node)].clock.wall += by,
            Fault::Burst { packets } => (0..packets).for_each(|_| self.client_sends(None)),
            Fault::Stall => self.stalled += 1,
            Fault::Drain { node } => {
                if let Some(heart) = &mut self.nodes[index(node)].heart {
                    (heart.asked, heart.drains) = (true, true);
                    self.coverage.drains += 1;
                }
            }
        }
        self.let_detect(Nanos::from_millis(1), Nanos::from_millis(7));
    }

    fn crash(&mut self, nodes: NodeSet, notice: bool, disk: bool) {
        let alive: Vec<usize> = nodes.iter().map(index).filter(|at| self.nodes[*at].alive).collect();
        let host = |at: usize| self.scenario.layout.hosts[at];
        if alive.len() > 1 {
            self.coverage.joint_deaths += alive.len() as u64;
        }
        let whole = alive.first().is_some_and(|at| self.scenario.layout.on_host(host(*at)) == nodes);
        self.coverage.host_deaths += u64::from(whole && !notice);
        for at in alive {
            self.coverage.crashes += 1;
            self.coverage.master_kills += u64::from(self.spy.is_master(self.nodes[at].id));
            self.coverage.owner_crashes += u64::from(self.is_owner(at));
            self.end_process(at, notice);
            if disk {
                self.coverage.disks_lost += 1;
                let votes = &mut self.nodes[at].votes;
                *votes = (None, votes.1 + 1_000);
            }
        }
    }

    /// Whether a node holds a service address, as far as the newest map goes.
    fn is_owner(&self, at: usize) -> bool {
        let me = (self.nodes[at].id, self.nodes[at].boot);
        let map = self.checker.newest();
        map.is_some_and(|map| map.addresses.iter().any(|a| (a.owner, a.boot) == me))
    }

    pub(super) fn end(&mut self, number: usize) {
        let fault = self.scenario.faults[number].fault.clone();
        self.say(|_| format!("fault {number} is over"));
        let name = number as u32;
        match fault {
            Fault::Link(_) | Fault::Split { .. } => self.links.remove(name),
            Fault::Crash { nodes, restarts, .. } => {
                for at in nodes.iter().map(index).filter(|_| restarts) {
                    self.coverage.restarts += u64::from(!self.nodes[at].alive);
                    let soon = if self.scenario.settings.live { self.rng.range(0, 3_000_000) } else { 0 };
                    self.queue.push(self.now + Nanos(soon), Event::Start { node: at });
                }
            }
            Fault::Freeze { nodes, .. } => nodes.iter().map(index).for_each(|at| {
                let node = &mut self.nodes[at];
                if node.ambushes.contains(&name) {
                    node.ambushes.retain(|fault| *fault != name);
                    return;
                }
                node.frozen -= 1;
                if node.frozen == 0 {
                    self.go_on(at);
                }
            }),
            Fault::Slow { node, .. } => self.nodes[index(node)].turn = None,
            Fault::Suspect { at, .. } => {
                self.nodes[index(at)].wrong.retain(|(fault, _)| *fault != name);
                self.tell_suspects(index(at));
            }
            Fault::Stall => self.stalled -= 1,
            // It has left, or is ended: what it does not hand over is not waited for any longer.
            Fault::Drain { node } => {
                let draining = self.nodes[index(node)].heart.as_ref().is_some_and(|heart| heart.drains);
                if draining {
                    self.end_process(index(node), true);
                }
                self.queue.push(self.now + Nanos::from_millis(1), Event::Start { node: index(node) });
            }
            Fault::WallStep { .. } | Fault::Burst { .. } => {}
        }
        self.let_detect(Nanos::from_millis(1), Nanos::from_millis(7));
    }
}
