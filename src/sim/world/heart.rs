//! The failure detectors, real: each node's control beats over the virtual network, in its own loop, and what
//! it concludes is what the node's shards are told.

use std::collections::VecDeque;
use std::rc::Rc;

use super::{Event, World};
use crate::engine::control::{Control, ControlConfig, ControlEvent, CouncilConfig};
use crate::sim::node::{News, Sends};
use crate::types::{Boot, Nanos, NodeId, NodeSet};

/// Stands for the control's loop where a datagram names the loop it is for.
pub(super) const CONTROL: usize = usize::MAX;

/// The control's loop of one node.
pub struct Heart {
    control: Control,
    inbox: VecDeque<(NodeId, Boot, Rc<[u8]>)>,
    wake: Nanos,
    /// Version of the suspicions the shards have been told.
    told: Option<u64>,
}

impl World {
    /// The heart of a node's new life.
    pub(super) fn new_heart(&self, index: usize) -> Heart {
        let node = &self.nodes[index];
        let config = ControlConfig {
            node: node.id,
            boot: node.boot,
            peers: self.scenario.layout.ids().filter(|id| *id != node.id).collect(),
            shards: self.scenario.layout.shards,
            beat: Nanos::from_millis(1),
            suspect_after: Nanos::from_millis(3),
            suspect_ceiling: Nanos::from_millis(50),
            settings: vec![("R".to_owned(), self.map.replicas.to_string())],
            settings_hash: u64::from(self.map.replicas),
            council: CouncilConfig {
                shape: self.scenario.layout.shape.clone(),
                voters: self.scenario.layout.voters(),
                lease: Nanos::from_millis(10),
                dead_after: Nanos::from_millis(15),
                evict_after: Nanos::from_millis(120),
                lossy_go: true,
                stored: node.votes.clone(),
                birth: u64::from(node.id.0),
                election_ticks: 5,
                promises: self.safeguards.promises,
            },
        };
        let control = match Control::new(config) {
            Ok(control) => control,
            Err(error) => unreachable!("{} cannot read what it saved: {error}", node.id),
        };
        Heart { control, inbox: VecDeque::new(), wake: Nanos::MAX, told: None }
    }

    /// Lets the control's loop turn at `at`, unless it turns before.
    pub(super) fn wake_heart(&mut self, index: usize, at: Nanos) {
        let at = at.max(self.now);
        if let Some(heart) = &mut self.nodes[index].heart
            && at < heart.wake
        {
            heart.wake = at;
            self.queue.push(at, Event::Beat { node: index });
        }
    }

    /// A datagram for the control arrives.
    pub(super) fn heart_hears(&mut self, index: usize, from: NodeId, boot: Boot, bytes: Rc<[u8]>) {
        let limit = self.scenario.settings.inbox;
        let node = &mut self.nodes[index];
        if let Some(heart) = node.heart.as_mut().filter(|heart| node.alive && heart.inbox.len() < limit) {
            heart.inbox.push_back((from, boot, bytes));
            let latency = Nanos(self.rng.range(0, 50_000));
            self.wake_heart(index, self.now + latency);
        }
    }

    /// One turn of the control's loop.
    pub(super) fn beat(&mut self, index: usize) {
        let now = self.nodes[index].clock.read(self.now);
        let node = &mut self.nodes[index];
        let Some(heart) = node.heart.as_mut().filter(|heart| heart.wake == self.now) else { return };
        heart.wake = Nanos::MAX;
        if !node.alive || node.frozen > 0 {
            return;
        }
        for (from, boot, bytes) in heart.inbox.drain(..) {
            heart.control.on_peer(now, from, boot, &bytes);
        }
        for (shard, shell) in node.loops.iter_mut().enumerate() {
            shell.heard.drain(..).for_each(|(from, boot)| heart.control.on_life(now, from, boot));
            heart.control.on_progress(now, shard as u16, shell.turns, shell.inbox.is_empty());
        }
        if heart.control.next_timeout() <= now.mono {
            heart.control.on_timeout(now);
        }
        self.coverage.beats += 1;
        let mut sends = Sends::default();
        heart.control.flush(now, &mut sends);
        let joined: Vec<News> = heart
            .control
            .take_events()
            .filter_map(|event| match event {
                ControlEvent::Joined(node, boot) => Some(News::Joined(node, boot)),
                ControlEvent::Refused(..) | ControlEvent::Proposed(_) | ControlEvent::Disowned => None,
            })
            .collect();
        let version = Some(heart.control.suspects_version());
        let news = heart.told != version;
        heart.told = version;
        let late =
            if self.rng.chance(50) { self.rng.range(0, 3_000_000) } else { self.rng.range(0, 100_000) };
        let next = node.clock.when(heart.control.next_timeout()) + Nanos(late);
        self.wake_heart(index, next);
        joined.into_iter().for_each(|joined| self.tell_news(index, joined));
        if news {
            self.coverage.minds_changed += 1;
            self.tell_suspects(index);
        }
        self.send(index, CONTROL, &sends);
    }

    /// Whom the control of a node suspects, as far as one of its shards goes.
    pub(super) fn heart_suspects(&self, index: usize, shard: usize) -> NodeSet {
        let heart = self.nodes[index].heart.as_ref();
        heart.map_or(NodeSet::EMPTY, |heart| heart.control.suspects(shard as u16))
    }
}
