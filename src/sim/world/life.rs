//! Processes begin, stand still and end.

use std::rc::Rc;
use std::sync::Arc;

use super::{Event, World};
use crate::app::table::TableLimits;
use crate::engine::{Shard, ShardConfig};
use crate::sim::node::{Cells, Loop};
use crate::sim::test_app::TestApp;
use crate::types::{Boot, Nanos, NodeId};

impl World {
    /// Starts the process of a node, with empty memory, unless it runs.
    pub(super) fn start(&mut self, index: usize) {
        if self.nodes[index].alive {
            return;
        }
        let more = self.rng.range(1, 1_000);
        let shards = self.scenario.layout.shards;
        let node = &mut self.nodes[index];
        if self.now > Nanos::ZERO {
            node.boot = Boot(node.boot.0 + more);
        }
        (node.alive, node.cells) = (true, Cells::default());
        let endpoints = self.map.endpoints.len();
        self.nodes[index].loops =
            (0..shards).map(|shard| Loop::new(self.shard(index, shard), endpoints)).collect();
        self.nodes[index].known.fill(None);
        self.say(|w| format!("{} begins life {}", w.nodes[index].id, w.nodes[index].boot.0));
        for lane in 0..usize::from(shards) {
            let at = self.now + Nanos(self.rng.range(0, 50_000));
            self.wake(index, lane, at);
        }
        if self.scenario.settings.beats {
            self.nodes[index].heart = Some(self.new_heart(index));
            let at =
                self.now + Nanos(if self.scenario.settings.live { self.rng.range(0, 1_000_000) } else { 0 });
            self.wake_heart(index, at);
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
            lazy_after: settings.lazy_after,
            masters_own: settings.masters_own,
            opens_a_turn: settings.opens_a_turn,
            blocked_after: settings.timing.dead_after,
            lossy_go: true,
            resync_rate: settings.resync_rate,
            admission: Default::default(),
            founding: None,
            takeover: None,
            safeguards: self.safeguards,
        };
        let mut shard = Shard::new(config, TestApp::new(Rc::clone(&self.trace)));
        if !settings.live {
            let now = node.clock.read(self.now);
            shard.on_map(now, Arc::clone(&self.map));
            shard.on_lease(now, Nanos::MAX);
        }
        shard
    }

    /// The process of a node is gone, with all it held. `notice`: its supervisor lives on and tells everybody.
    pub(super) fn end_process(&mut self, index: usize, notice: bool) {
        if !self.nodes[index].alive {
            return;
        }
        self.take_counts(index);
        let node = &mut self.nodes[index];
        let (id, boot) = (node.id, node.boot);
        node.alive = false;
        node.loops.clear();
        if let (Some(heart), Some(disks)) = (node.heart.take(), &mut self.scenario.disks)
            && heart.unsaved.is_some()
            && disks.chance(500)
        {
            node.votes.0 = heart.unsaved;
        }
        self.checker.died((id, boot));
        self.say(|_| format!("{id} ends its life {}", boot.0));
        if notice && self.scenario.settings.live {
            for to in (0..self.nodes.len()).filter(|to| *to != index) {
                let other = self.nodes[to].id;
                let arrivals = self.links.send(&mut self.rng, self.now, id, other, &[0; 80]);
                if let Some(at) = arrivals.first {
                    self.queue.push(at + Nanos::from_micros(300), Event::Notice { to, of: id, boot });
                }
            }
        }
    }

    /// A supervisor's word comes by a door of its own, which wakes the control.
    pub(super) fn notice(&mut self, to: usize, of: NodeId, boot: Boot) {
        if let Some(heart) = &mut self.nodes[to].heart {
            heart.notices.push((of, boot));
            self.wake_heart(to, self.now);
        }
    }

    /// A process that is about to send may have to stand still: true if it does.
    pub(super) fn stand_still(&mut self, index: usize) -> bool {
        let node = &mut self.nodes[index];
        if node.ambushes.is_empty() {
            return false;
        }
        node.frozen += node.ambushes.len() as u32;
        node.ambushes.clear();
        self.say(|w| format!("{} stands still before it sends", w.nodes[index].id));
        true
    }

    /// Goes on where it stood still.
    pub(super) fn go_on(&mut self, index: usize) {
        self.finish_beat(index);
        self.wake_heart(index, self.now);
        for lane in 0..self.nodes[index].loops.len() {
            self.finish_turn(index, lane);
        }
        self.wake_all(index, self.now);
    }

    /// Adds up what the shards of a process have counted, before it ends.
    pub(super) fn take_counts(&mut self, index: usize) {
        for shell in &self.nodes[index].loops {
            let stats = shell.shard.stats();
            self.coverage.hedges += stats.hedges;
            self.coverage.probes += stats.probes;
            self.coverage.demoted += stats.demotions;
            self.coverage.ticks += stats.ticks;
            self.coverage.repeated += stats.repeated_outputs;
            self.coverage.rescued += stats.rescued_outputs;
            self.coverage.recoveries += stats.recoveries;
            self.coverage.lossy += stats.lossy_recoveries;
            self.coverage.lease_waits += stats.lease_waits;
            self.coverage.snapshots += stats.snapshots_given;
            self.coverage.forwarded += stats.forwards_taken;
            self.coverage.delivered += stats.deliveries_taken;
        }
    }
}
