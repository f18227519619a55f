//! The engine behind the two loops: `engine::Shard` and `engine::control::Control` as the loops drive them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::cells::Progress;
use super::control_loop::ControlCore;
use super::shard_loop::ShardCore;
use crate::app::{CallApp, Inbound, Unclassified};
use crate::engine::control::{Control, ControlEvent};
use crate::engine::{Outbox, Shard, ShardReport};
use crate::proto::map::{ClusterMap, MapShape};
use crate::types::{Boot, CallKey, Nanos, NodeId, NodeSet, Now};

impl<A: CallApp> ShardCore for Shard<A> {
    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified> {
        self.app().classify(packet)
    }

    fn on_client(&mut self, now: Now, key: CallKey, packet: &Inbound<'_>) -> bool {
        self.on_client(now, key, packet).is_ok()
    }

    fn on_peer(&mut self, now: Now, from: NodeId, boot: Boot, plaintext: &[u8]) {
        self.on_peer(now, from, boot, plaintext);
    }

    fn on_join(&mut self, now: Now, node: NodeId, boot: Boot) {
        self.on_join(now, node, boot);
    }

    fn on_suspects(&mut self, now: Now, suspects: NodeSet) {
        self.on_suspects(now, suspects);
    }

    fn on_map(&mut self, now: Now, map: Arc<ClusterMap>) {
        self.on_map(now, map);
    }

    fn on_lease(&mut self, now: Now, until: Nanos) {
        self.on_lease(now, until);
    }

    fn may_release(&self, now: Nanos) -> bool {
        self.may_release(now)
    }

    fn report(&self) -> &ShardReport {
        self.report()
    }

    fn on_timeout(&mut self, now: Now) {
        self.on_timeout(now);
    }

    fn flush(&mut self, now: Now, outbox: &mut impl Outbox) {
        self.flush(now, outbox);
    }

    fn on_sent(&mut self, now: Now, count: usize) {
        self.on_sent(now, count);
    }

    fn next_timeout(&self) -> Nanos {
        self.next_timeout()
    }

    fn stats(&self) -> Value {
        json!(self.stats())
    }

    fn digests(&self) -> Value {
        self.digests()
            .iter()
            .map(|place| json!([place.slot.0, place.executed.0, format!("{:016x}", place.digest)]))
            .collect()
    }
}

/// A control under a map that is made when all nodes have joined and never changes, and a lease that never ends.
pub struct Settled {
    control: Control,
    me: (NodeId, Boot),
    shape: MapShape,
    map: Arc<ClusterMap>,
}

impl Settled {
    /// For this life of this node, which has met nobody yet.
    pub fn new(control: Control, me: (NodeId, Boot), shape: MapShape) -> Settled {
        Settled { control, me, map: Arc::new(shape.empty_map()), shape }
    }

    /// Makes the map once every node is known.
    fn settle(&mut self) {
        let boot = |node| if node == self.me.0 { Some(self.me.1) } else { self.joined(node) };
        if self.map.version == 0 && self.shape.nodes.iter().all(|node| boot(node.id).is_some()) {
            self.map = Arc::new(self.shape.first_map(|node| boot(node).unwrap_or_default()));
        }
    }
}

impl ControlCore for Settled {
    fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    fn lease_until(&self) -> Nanos {
        Nanos::MAX
    }

    fn on_report(&mut self, _shard: u16, _report: ShardReport) {}

    fn on_exit_notice(&mut self, now: Now, node: NodeId, _boot: Boot) {
        self.control.on_refused(now, node);
    }

    fn to_save(&mut self) -> Option<Vec<u8>> {
        None
    }

    fn is_busy(&self) -> bool {
        false
    }

    fn drain(&mut self, _now: Now) -> Result<(), String> {
        Err("the map of this cluster never changes".to_owned())
    }

    fn is_fenced(&self) -> bool {
        false
    }

    fn has_left(&self) -> bool {
        false
    }

    fn on_peer(&mut self, now: Now, from: NodeId, boot: Boot, plaintext: &[u8]) {
        self.control.on_peer(now, from, boot, plaintext);
    }

    fn on_refused(&mut self, now: Now, node: NodeId) {
        self.control.on_refused(now, node);
    }

    fn on_life(&mut self, now: Now, node: NodeId, boot: Boot) {
        self.control.on_life(now, node, boot);
    }

    fn on_progress(&mut self, now: Now, shard: u16, progress: Progress) {
        self.control.on_progress(now, shard, progress.turns, progress.parked);
    }

    fn on_timeout(&mut self, now: Now) {
        self.control.on_timeout(now);
    }

    fn flush(&mut self, now: Now, outbox: &mut impl Outbox) {
        self.settle();
        self.control.flush(now, outbox);
        for event in self.control.take_events() {
            match event {
                ControlEvent::Joined(..) => tracing::info!("{event}"),
                ControlEvent::Refused(..) => tracing::warn!("{event}"),
            }
        }
    }

    fn next_timeout(&self) -> Nanos {
        self.control.next_timeout()
    }

    fn suspects(&self, shard: u16) -> NodeSet {
        self.control.suspects(shard)
    }

    fn joined(&self, node: NodeId) -> Option<Boot> {
        let joined = self.control.joined().contains(node);
        self.control.peers().find(|peer| joined && peer.node == node).and_then(|peer| peer.boot)
    }

    fn stats(&self) -> Value {
        let peers: Vec<Value> = self
            .control
            .peers()
            .map(|peer| {
                json!({
                    "node": peer.node.0,
                    "boot": peer.boot.map(|boot| boot.0),
                    "joined": self.control.joined().contains(peer.node),
                    "up": peer.up,
                    "suspected": peer.suspected,
                    "rtt_us": peer.rtt.map(Nanos::as_micros),
                    "suspect_after_us": peer.limit.as_micros(),
                    "refused": peer.refused.map(|differs| differs.to_string()),
                })
            })
            .collect();
        let (dropped, detector) = (self.control.counters(), self.control.detector_counters());
        json!({
            "all_joined": self.control.all_joined(),
            "peers": peers,
            "deaf": dropped.deaf,
            "dropped": { "malformed": dropped.malformed, "stale": dropped.stale },
            "suspicions": detector.suspicions,
            "suspicions_by_refusal": detector.refusals,
            "recovered": detector.recovered,
            "wrong_suspicions": detector.wrong,
            "stalled_workers": detector.stalled_workers,
        })
    }
}
