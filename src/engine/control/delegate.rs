//! What the council keeps of others: a peer's newest report and the lease it granted.

use crate::types::Nanos;
use crate::wire::council::{GRANTS, LostMember, Report};

/// What the council keeps for one peer, in its present life.
#[derive(Clone, Debug, Default)]
pub(super) struct Delegate {
    /// What it said last, and when.
    pub(super) report: Option<(Report, Vec<LostMember>, Nanos)>,
    /// Our own clock's time in the newest beat of ours that it granted a lease on.
    pub(super) granted_us: Nanos,
    /// The newest of its beats on which this node granted it a lease.
    granted: u64,
    /// When that beat had certainly been heard; see [`Delegate::stamp`].
    granted_at: Option<Nanos>,
    /// Since when it has owned something under which map and said that it has no lease.
    pub(super) lapsed_since: Option<(u32, Nanos)>,
    /// Since when it has owned slots that it cannot commit and others could.
    pub(super) stuck_since: Option<Nanos>,
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

    /// This node grants it a lease, on its beat of this number.
    pub(super) fn grant(&mut self, beat: u64) {
        if beat > self.granted {
            (self.granted, self.granted_at) = (beat, None);
        }
    }

    /// Dates the grant of the turn before. A lease that was granted on a beat is over LEASE after that beat was sent, so
    /// by LEASE after it was heard; and it was heard after the time of its turn was read, maybe long after, if this
    /// process was stopped in between, but before the time of the next.
    pub(super) fn stamp(&mut self, now: Nanos) {
        if self.granted > 0 {
            self.granted_at.get_or_insert(now);
        }
    }

    /// From when the last lease granted to it counts, at the latest; zero: none was.
    pub(super) fn last_grant(&self, now: Nanos) -> Nanos {
        if self.granted == 0 { Nanos::ZERO } else { self.granted_at.unwrap_or(now) }
    }
}
