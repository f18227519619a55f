//! Service addresses that have moved, and how long it took.

use super::{Council, Peer};
use crate::proto::map::ClusterMap;
use crate::types::Nanos;

/// Failovers remembered for status.
const MOST_FAILOVERS: usize = 16;

/// A service address that has moved.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Failover {
    /// Its number.
    pub address: usize,
    /// From which node.
    pub from: u16,
    /// To which.
    pub to: u16,
    /// The new owner's term.
    pub term: u32,
    /// When this node heard of it, wall time in ms since 1970.
    pub wall_ms: u64,
    /// From the last sign of the old owner here to the new map here, in us.
    pub agreed_us: u64,
    /// The same until all slots of the address were open again, in us: known to the new owner alone, once they are.
    pub took_us: Option<u64>,
    /// When the old owner was last heard here.
    #[serde(skip)]
    pub heard: Nanos,
}

impl Council {
    /// Notes which addresses move with a newer map.
    pub(super) fn note_failovers(&mut self, now: Nanos, wall: Nanos, peers: &[Peer], map: &ClusterMap) {
        for (number, (old, new)) in self.map.addresses.iter().zip(&map.addresses).enumerate() {
            if old.term != new.term && old.term.0 > 0 {
                let heard = peers.iter().find(|p| p.node == old.owner).map_or(now, |p| p.heard_at());
                self.failovers.push(Failover {
                    address: number,
                    from: old.owner.0,
                    to: new.owner.0,
                    term: new.term.0,
                    wall_ms: wall.0 / 1_000_000,
                    agreed_us: now.since(heard).as_micros(),
                    took_us: None,
                    heard,
                });
            }
        }
        let excess = self.failovers.len().saturating_sub(MOST_FAILOVERS);
        self.failovers.drain(..excess);
    }

    /// Notes how long it took until this node served what it has got, by the reports of its shards.
    pub(super) fn time_failovers(&mut self, now: Nanos) {
        let (me, addresses) = (self.me.0, &self.map.addresses);
        let waits = |f: &Failover| {
            let still = addresses.get(f.address).is_some_and(|a| a.owner.0 == f.to && a.term.0 == f.term);
            still && f.to == me && f.took_us.is_none()
        };
        let served = || self.reports.iter().all(|r| r.map == self.map.version && r.recovering == 0);
        if !self.failovers.iter().any(waits) || now >= self.lease_until || !served() {
            return;
        }
        for failover in self.failovers.iter_mut().filter(|f| waits(f)) {
            failover.took_us = Some(now.since(failover.heard).as_micros());
        }
    }
}
