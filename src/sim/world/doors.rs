//! Service endpoints in worlds in which addresses move: which sockets a loop has, what it makes of a newer map and of
//! its lease, and where clients' packets go. As the shell does it.

use super::{Event, World};
use crate::sim::layout::{local, number};
use crate::sim::node::{Door, Input, Loop};
use crate::types::{LocalId, Nanos, Term};

/// How long the socket of a lost endpoint is still read.
const LINGER: Nanos = Nanos::from_millis(50);

impl Loop {
    /// Whether it has a socket on a service endpoint.
    pub fn is_open(&self, local: LocalId) -> bool {
        self.doors.get(usize::from(number(local))).is_some_and(|door| door.open)
    }
}

impl World {
    /// A loop takes news of the map and the lease.
    pub(super) fn follow_cells(&mut self, index: usize, lane: usize) {
        if !self.scenario.settings.live {
            return;
        }
        let now = self.nodes[index].clock.read(self.now);
        let node = &mut self.nodes[index];
        let (me, lease) = ((node.id, node.boot), node.cells.lease);
        let map = node.cells.map.clone();
        let shell = &mut node.loops[lane];
        let mut plan = false;
        if lease != shell.lease {
            plan |= shell.lease <= now.mono && lease > now.mono;
            shell.lease = lease;
            shell.shard.on_lease(now, lease);
        }
        let Some(map) = map else { return };
        if shell.shard.map().version < map.version {
            shell.shard.on_map(now, map.clone());
            self.checker.follows(me, &map, lane);
            plan = true;
            for reply in shell.backlog.iter_mut().filter(|reply| !reply.gone) {
                let (address, term) = reply.address;
                reply.gone = map.addresses[address].term != term;
                self.coverage.replies_dropped += u64::from(reply.gone);
            }
        }
        for (at, door) in shell.doors.iter_mut().enumerate() {
            let held = map.owns(usize::from(map.endpoints[at]), me.0, me.1);
            if plan {
                door.closes = None;
                match (held, door.open) {
                    (true, false) if lease > now.mono => door.open = true,
                    (false, true) => door.closes = Some(now.mono + LINGER),
                    _ => {}
                }
            }
            if door.closes.is_some_and(|at| at <= now.mono) {
                *door = Door::default();
            }
        }
    }

    /// A loop tells its control how things stand, if that has changed.
    pub(super) fn publish(&mut self, index: usize, lane: usize) {
        let node = &mut self.nodes[index];
        let shell = &mut node.loops[lane];
        if *shell.shard.report() != shell.report {
            shell.report = shell.shard.report().clone();
            if let Some(heart) = &mut node.heart {
                heart.reports.push((lane as u16, shell.report.clone()));
            }
        }
    }

    /// The node has an address and says so; it takes a while until everybody knows.
    pub(super) fn announce(&mut self, index: usize, address: usize, term: Term) {
        let at = self.now + Nanos(self.rng.range(50_000, 1_000_000));
        self.queue.push(at, Event::Route { address, node: index, term });
    }

    pub(super) fn route(&mut self, address: usize, node: usize, term: Term) {
        self.say(|w| format!("address {address} is heard at {} in term {}", w.nodes[node].id, term.0));
        let known = &mut self.routes[address];
        if known.is_none_or(|(_, before)| before <= term) {
            *known = Some((node, term));
        }
    }

    /// A client's packet arrives at a node: it is heard if there is a socket for it.
    pub(super) fn hear(&mut self, index: usize, lane: usize, input: Input) {
        let Input::Client { local, .. } = &input else { return };
        let node = &self.nodes[index];
        let heard = node.alive && node.loops.get(lane).is_some_and(|shell| shell.is_open(*local));
        if heard || !self.scenario.settings.live {
            self.take_in(index, lane, input);
        } else {
            self.coverage.unheard += 1;
        }
    }

    /// The endpoint a call uses.
    pub(super) fn endpoint_of(&self, call: u32) -> LocalId {
        local((call as usize % self.map.endpoints.len()) as u16)
    }
}
