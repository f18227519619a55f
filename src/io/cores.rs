//! The engine behind the two loops: `engine::Shard` and `engine::control::Control` as the loops drive them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::cells::{Notice, Progress};
use super::control_loop::ControlCore;
use super::shard_loop::ShardCore;
use crate::app::{CallApp, Inbound, Unclassified};
use crate::engine::control::{Control, Weight};
use crate::engine::{Outbox, Shard, ShardReport};
use crate::proto::map::ClusterMap;
use crate::types::{Boot, CallKey, LocalId, Nanos, NodeId, NodeSet, Now};

impl<A: CallApp> ShardCore for Shard<A> {
    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified> {
        self.app().classify(packet)
    }

    fn on_client(&mut self, now: Now, key: CallKey, packet: &Inbound<'_>) -> bool {
        self.on_client(now, key, packet).is_ok()
    }

    fn admit(
        &mut self,
        now: Now,
        key: CallKey,
        packet: &Inbound<'_>,
        late: Nanos,
        answer: &mut Vec<u8>,
    ) -> bool {
        self.admit(now, key, packet, late, answer).is_ok()
    }

    fn on_notice(&mut self, now: Now, notice: &Notice) -> usize {
        self.on_notice(now, &notice.bytes, notice.founding)
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

    fn figures(&self, now: Now) -> Value {
        json!(self.figures(now))
    }

    fn has_call(&self, local: LocalId) -> bool {
        self.has_call(local)
    }

    fn digests(&self) -> Value {
        self.digests()
            .iter()
            .map(|place| json!([place.slot.0, place.executed.0, format!("{:016x}", place.digest)]))
            .collect()
    }
}

impl ControlCore for Control {
    fn map(&self) -> &Arc<ClusterMap> {
        self.map()
    }

    fn lease_until(&self) -> Nanos {
        self.lease_until()
    }

    fn held_until(&self) -> Nanos {
        self.held_until()
    }

    fn on_report(&mut self, shard: u16, report: ShardReport) {
        self.on_report(shard, report);
    }

    fn on_exit_notice(&mut self, now: Now, node: NodeId, boot: Boot) {
        self.on_exit_notice(now, node, boot);
    }

    fn on_turn(&mut self, now: Now) {
        self.on_turn(now);
    }

    fn take_votes(&mut self) -> Option<Vec<u8>> {
        self.take_votes()
    }

    fn on_votes_saved(&mut self) {
        self.on_votes_saved();
    }

    fn is_busy(&self) -> bool {
        self.is_busy()
    }

    fn drain(&mut self, _now: Now) -> Result<(), String> {
        self.drain()
    }

    fn is_fenced(&self) -> bool {
        self.is_fenced()
    }

    fn has_left(&self) -> bool {
        self.has_left()
    }

    fn on_peer(&mut self, now: Now, from: NodeId, boot: Boot, plaintext: &[u8]) {
        self.on_peer(now, from, boot, plaintext);
    }

    fn on_refused(&mut self, now: Now, node: NodeId) {
        self.on_refused(now, node);
    }

    fn on_life(&mut self, now: Now, node: NodeId, boot: Boot) {
        self.on_life(now, node, boot);
    }

    fn on_progress(&mut self, now: Now, shard: u16, progress: Progress) {
        self.on_progress(now, shard, progress.turns, progress.parked);
    }

    fn on_timeout(&mut self, now: Now) {
        self.on_timeout(now);
    }

    fn flush(&mut self, now: Now, outbox: &mut impl Outbox) {
        self.flush(now, outbox);
        for event in self.take_events() {
            match event.weight() {
                Weight::Info => tracing::info!("{event}"),
                Weight::Warning => tracing::warn!("{event}"),
                Weight::Error => tracing::error!("{event}"),
            }
        }
    }

    fn next_timeout(&self) -> Nanos {
        self.next_timeout()
    }

    fn suspects(&self, shard: u16) -> NodeSet {
        self.suspects(shard)
    }

    fn joined(&self, node: NodeId) -> Option<Boot> {
        let joined = self.joined().contains(node);
        self.peers().find(|peer| joined && peer.node == node).and_then(|peer| peer.boot)
    }

    fn stats(&self) -> Value {
        let peers: Vec<Value> = self
            .peers()
            .map(|peer| {
                json!({
                    "node": peer.node.0,
                    "boot": peer.boot.map(|boot| boot.0),
                    "joined": self.joined().contains(peer.node),
                    "up": peer.up,
                    "suspected": peer.suspected,
                    "rtt_us": peer.rtt.map(Nanos::as_micros),
                    "suspect_after_us": peer.limit.as_micros(),
                    "refused": peer.refused.map(|differs| differs.to_string()),
                })
            })
            .collect();
        let (dropped, detector) = (self.counters(), self.detector_counters());
        json!({
            "all_joined": self.all_joined(),
            "peers": peers,
            "map": **self.map(),
            "lease_left_us": self.lease_left().as_micros(),
            "voters": self.voters().iter().map(|v| v.0).collect::<Vec<_>>(),
            "leader": self.leader().map(|leader| leader.0),
            "leads": self.leads(),
            "quorum": self.has_quorum(),
            "quorum_losses": self.quorum_losses(),
            "silent": self.silent().iter().map(|n| n.0).collect::<Vec<_>>(),
            "failovers": self.failovers(),
            "bad_maps": dropped.bad_maps,
            "voter": self.voter_counters().map(|c| json!({
                "malformed": c.malformed, "strangers": c.strangers, "late": c.late, "oversize": c.oversize,
                "asked_again": c.asked_again, "brought_back": c.brought_back, "stood": c.stood,
            })),
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
