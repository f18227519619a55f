//! What the council keeps of others: a peer's newest report and the lease it granted; addresses that have moved.

use crate::types::Nanos;
use crate::wire::council::{GRANTS, LostMember, Report};

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
    /// From the last sign of the old owner to the new map here, in us; for the new owner itself to its lease.
    pub took_us: u64,
}

/// What the council keeps for one peer, in its present life.
#[derive(Clone, Debug, Default)]
pub(super) struct Delegate {
    /// What it said last, and when.
    pub(super) report: Option<(Report, Vec<LostMember>, Nanos)>,
    /// Our own clock's time in the newest beat of ours that it granted a lease on.
    pub(super) granted_us: Nanos,
    /// When this node last granted it a lease.
    pub(super) granted_at: Nanos,
    /// Since when it has owned something and said that it has no lease.
    pub(super) lapsed_since: Option<Nanos>,
    /// When it was last sent a map.
    pub(super) map_sent: Nanos,
}

impl Delegate {
    /// The peer's report came with a beat that echoes ours of `echo_sent`, if it has heard one in this life of ours.
    pub(super) fn on_report(
        &mut self,
        now: Nanos,
        echo_sent: Option<Nanos>,
        report: &Report,
        lost: &[LostMember],
    ) -> bool {
        let news = self.report.as_ref().is_none_or(|(known, _, _)| known.map != report.map);
        if let Some(sent) = echo_sent.filter(|_| report.flags.get() & GRANTS != 0) {
            self.granted_us = self.granted_us.max(sent);
        }
        self.report = Some((*report, lost.to_vec(), now));
        news
    }

    /// The map the peer knows.
    pub(super) fn map(&self) -> u32 {
        self.report.as_ref().map_or(0, |(report, _, _)| report.map.get())
    }
}
