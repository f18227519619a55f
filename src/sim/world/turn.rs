//! One turn of a shard's loop, as the run-loop contract of the engine says. Between working out what is to be sent and
//! sending it a process may stand still.

use std::rc::Rc;

use super::heart::CONTROL;
use super::{Datagram, Event, World};
use crate::proto::map::MapMember;
use crate::sim::checker::{Checker, Life, Release};
use crate::sim::node::{Input, Loop, News, Reply, Sends, inbound};
use crate::sim::spy;
use crate::sim::test_app::Deed;
use crate::types::{Boot, Nanos, NodeSet, Slot, Term};
use crate::wire::frame::{Frame, Frames};

/// How long after the last fault what piled up in it may still fill a window.
const AT_REST: Nanos = Nanos::from_millis(50);

impl World {
    /// Something arrives at a loop's sockets.
    pub(super) fn take_in(&mut self, index: usize, lane: usize, input: Input) {
        let limit = self.scenario.settings.inbox;
        let node = &mut self.nodes[index];
        let Some(shell) = node.loops.get_mut(lane).filter(|_| node.alive) else { return };
        if shell.inbox.len() >= limit {
            self.coverage.overflows += 1;
            return;
        }
        shell.inbox.push_back(input);
        let latency = Nanos(self.rng.range(0, 20_000));
        self.wake(index, lane, self.now + latency);
    }

    pub(super) fn turn(&mut self, index: usize, lane: usize) {
        if !self.nodes[index].alive || self.nodes[index].frozen > 0 {
            return;
        }
        let now = self.nodes[index].clock.read(self.now);
        self.hear_joined(index, lane);
        self.follow_cells(index, lane);
        self.receive(index, lane);
        let shell = &mut self.nodes[index].loops[lane];
        shell.turns += 1;
        for news in std::mem::take(&mut shell.news) {
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
        let mut replies = std::mem::take(&mut sends.clients);
        replies.iter_mut().for_each(|reply| self.name_reply(index, lane, reply));
        let (id, boot) = (self.nodes[index].id, self.nodes[index].boot);
        for deed in self.trace.take() {
            self.say(|_| deed.to_words(id));
            match deed {
                Deed::Executed(execution) => {
                    self.coverage.executed(&execution);
                    self.checker.executed(self.now, (id, boot), execution);
                }
                Deed::Restored(trail) => self.checker.restored((id, boot), trail),
            }
        }
        let shell = &mut self.nodes[index].loops[lane];
        shell.backlog.extend(replies);
        let caught = !shell.backlog.is_empty();
        shell.pending = Some(sends);
        if caught && self.stand_still(index) {
            return;
        }
        self.finish_turn(index, lane);
    }

    /// Hears first whom its node's control has met.
    fn hear_joined(&mut self, index: usize, lane: usize) {
        let now = self.nodes[index].clock.read(self.now);
        let shell = &mut self.nodes[index].loops[lane];
        while let Some(News::Joined(node, boot)) = shell.news.front().copied() {
            shell.shard.on_join(now, node, boot);
            shell.news.pop_front();
        }
    }

    fn receive(&mut self, index: usize, lane: usize) {
        let batch = self.rng.range(1, 64) as usize;
        let now = self.nodes[index].clock.read(self.now);
        let live = self.scenario.settings.live;
        let node = &mut self.nodes[index];
        let shell = &mut node.loops[lane];
        let inputs: Vec<Input> = shell.inbox.drain(..batch.min(shell.inbox.len())).collect();
        for input in inputs {
            let shell = &mut self.nodes[index].loops[lane];
            match input {
                Input::Peer { from, boot, bytes } => {
                    if live {
                        note_frames(shell, &mut self.checker, (from, boot), &bytes);
                    }
                    shell.shard.on_peer(now, from, boot, &bytes);
                    if self.nodes[index].heart.is_some() {
                        self.nodes[index].loops[lane].heard.push((from, boot));
                    }
                }
                Input::Client { key, source, local, payload } => {
                    let packet = inbound(source, local, &payload);
                    let slot = key.slot(self.scenario.layout.slots());
                    match shell.shard.on_client(now, key, &packet) {
                        Ok(()) if self.strict => self.checker.accepted(slot.0, &packet),
                        Ok(()) => {}
                        Err(reason) => {
                            self.coverage.refused += 1;
                            if self.strict && self.done.is_none() && self.now > self.healed() + AT_REST {
                                self.checker.stuck(self.now, &format!("refused at rest: {reason:?}"));
                            }
                        }
                    }
                }
            }
        }
    }

    /// Writes down under which terms a reply leaves.
    fn name_reply(&mut self, index: usize, lane: usize, reply: &mut Reply) {
        let me = (self.nodes[index].id, self.nodes[index].boot);
        let shell = &mut self.nodes[index].loops[lane];
        let map = shell.shard.map();
        let address = usize::from(map.endpoints[usize::from(crate::sim::layout::number(reply.local))]);
        reply.address = (address, map.addresses[address].term);
        reply.handed = self.now;
        let owner = map.owner(reply.slot);
        reply.term = owner.term;
        if (owner.owner, owner.boot) == me {
            return;
        }
        if let Some((terms, left)) = shell.delivering.get_mut(&(reply.slot, reply.bytes.clone())) {
            // Each owner's once, in their order; never that of one which another has followed.
            let next = |term: &&Term| **term >= owner.term && left.is_none_or(|last| **term > last);
            reply.term = terms.iter().find(next).or(terms.last()).copied().unwrap_or(reply.term);
            *left = Some(reply.term);
        }
    }

    /// What comes after the work of a turn: sending.
    pub(super) fn finish_turn(&mut self, index: usize, lane: usize) {
        let Some(sends) = self.nodes[index].loops[lane].pending.take() else { return };
        self.send(index, lane, &sends);
        self.release(index, lane);
        self.publish(index, lane);
        let busy = self.nodes[index].turn.unwrap_or(Nanos::from_micros(self.rng.range(1, 20)));
        self.nodes[index].loops[lane].busy = self.now + busy;
        self.sleep(index, lane);
    }

    /// Decides when a loop turns again.
    fn sleep(&mut self, index: usize, lane: usize) {
        let node = &self.nodes[index];
        let shell = &node.loops[lane];
        let timeout = shell
            .shard
            .next_timeout()
            .min(shell.doors.iter().filter_map(|d| d.closes).min().unwrap_or(Nanos::MAX));
        let at = if !shell.inbox.is_empty() || !shell.news.is_empty() {
            self.now
        } else if !shell.backlog.is_empty() && node.clock.read(self.now).mono < shell.lease {
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
    pub(super) fn send(&mut self, index: usize, lane: usize, sends: &Sends) {
        let from = self.nodes[index].id;
        let broken = sends.broken_run(self.scenario.settings.datagram_room);
        if let Some((to, a, b)) = broken.filter(|_| lane != CONTROL) {
            self.checker.fail(self.now, format!("outbox contract: {from} sent {to:?} {a}, then {b} bytes"));
        }
        let live = self.scenario.settings.live;
        for (to, bytes) in &sends.multicasts {
            to.iter().for_each(|to| self.send_one(index, lane, to, Boot(0), bytes));
        }
        for (to, bytes) in &sends.peers {
            for to in to.iter() {
                let at = usize::from(to.0).wrapping_sub(1);
                let life = match self.nodes[index].known.get(at) {
                    _ if !live => Boot(0),
                    Some(None) if lane == CONTROL => Boot(0),
                    // The shell does not know for whom it is.
                    Some(None) => continue,
                    Some(Some(boot)) => *boot,
                    None => Boot(0),
                };
                self.send_one(index, lane, to, life, bytes);
            }
        }
    }

    fn send_one(
        &mut self,
        index: usize,
        lane: usize,
        to: crate::types::NodeId,
        life: Boot,
        bytes: &Rc<[u8]>,
    ) {
        let (from, boot) = (self.nodes[index].id, self.nodes[index].boot);
        let known = to != from && usize::from(to.0) <= self.nodes.len() && to.0 > 0;
        if !known {
            return self.checker.fail(self.now, format!("outbox contract: {from} sent to {to}"));
        }
        let once = if lane == CONTROL { true } else { self.spy.look(&mut self.coverage, bytes) };
        let mut arrivals = self.links.send(&mut self.rng, self.now, from, to, bytes);
        if once {
            // A seal is opened once: what must not happen twice is not asked of the core.
            arrivals.second = None;
        }
        self.say(|_| match lane {
            CONTROL => format!("{from} -> {to} beats{}", spy::fate(arrivals)),
            _ => format!("{from} -> {to} {}{}", spy::describe(bytes), spy::fate(arrivals)),
        });
        for at in [arrivals.first, arrivals.second].into_iter().flatten() {
            let (to, bytes) = (usize::from(to.0) - 1, Rc::clone(bytes));
            self.queue.push(at, Event::Arrive(Datagram { to, lane, life, from, boot, bytes }));
        }
        self.coverage.datagram(arrivals);
    }

    /// Lets the kernel take client datagrams from the backlog while there is a lease, by a clock read just before:
    /// mostly all, at times some, none in a stall.
    fn release(&mut self, index: usize, lane: usize) {
        let now = self.nodes[index].clock.read(self.now);
        let by = (self.nodes[index].id, self.nodes[index].boot);
        let shell = &mut self.nodes[index].loops[lane];
        let mut room = match shell.backlog.iter().filter(|reply| !reply.gone).count() {
            _ if self.stalled > 0 || !shell.shard.may_release(now.mono) => 0,
            waiting if self.rng.chance(30) => self.rng.range(0, waiting as u64) as usize,
            waiting => waiting,
        };
        let live = self.scenario.settings.live;
        let mut replies = std::mem::take(&mut shell.backlog);
        for reply in replies.iter_mut().filter(|reply| !reply.gone) {
            let open = !live || self.nodes[index].loops[lane].is_open(reply.local);
            if open && room == 0 {
                continue;
            }
            reply.gone = true;
            if !open {
                self.say(|_| format!("{} drops {}", by.0, spy::describe_reply(&reply.bytes)));
                self.coverage.replies_dropped += 1;
                continue;
            }
            room -= 1;
            self.say(|_| {
                format!(
                    "client {:?} gets {} from {} (term {:?}, address {:?})",
                    reply.to,
                    spy::describe_reply(&reply.bytes),
                    by.0,
                    reply.term,
                    reply.address
                )
            });
            self.coverage.released += 1;
            let Reply { slot: Slot(slot), term, address, local, to, ref bytes, handed, .. } = *reply;
            self.checker.released(self.now, Release { slot, term, by, address, local, to, bytes, handed });
        }
        let gone = replies.iter().take_while(|reply| reply.gone).count();
        replies.drain(..gone);
        let shell = &mut self.nodes[index].loops[lane];
        shell.backlog = replies;
        if gone > 0 {
            shell.shard.on_sent(now, gone);
        }
    }

    /// The detectors' suspects of a node, for one of its loops.
    pub(super) fn suspects_of(&self, at: usize, lane: usize) -> NodeSet {
        NodeSet(self.nodes[at].suspects().0 | self.heart_suspects(at, lane).0)
    }
}

/// Remembers the terms of replies that other owners pass on, and what members answered to seals.
fn note_frames(shell: &mut Loop, checker: &mut Checker, life: Life, bytes: &[u8]) {
    for frame in Frames::new(bytes) {
        match frame {
            Ok(Frame::Deliver(deliver, reply)) => {
                let name = (Slot(deliver.slot.get()), reply.to_vec());
                shell.delivering.entry(name).or_default().0.insert(Term(deliver.term.get()));
            }
            Ok(Frame::Sealed(sealed)) if shell.shard.awaits_answers(Slot(sealed.slot.get())) => {
                let group = shell.shard.map().group(Slot(sealed.slot.get()));
                let is_it = |m: &MapMember| (m.node, m.boot, m.join) == (life.0, life.1, sealed.join.get());
                let counts = group.configurations().flatten().any(is_it);
                checker.knew(sealed.slot.get(), Term(sealed.term.get()), sealed.released.get(), counts);
            }
            _ => {}
        }
    }
}
