//! What a council tells the others behind each beat: how things stand here, what this voter grants and promises, and the
//! map where theirs is older.

use super::{APP_LEVEL, Council, MAP_AGAIN_AFTER, Peer, Turn};
use crate::engine::ShardReport;
use crate::proto::map::GroupSet;
use crate::proto::steward::NodeReport;
use crate::types::{Nanos, NodeId, NodeSet};
use crate::wire::council::{self, ALL_MEMBERS, DRAIN_DONE, DRAINING, GRANTS, LEASE_OK, LostMember, Report};

/// How old a report may be.
const REPORT_AGE: Nanos = Nanos::from_millis(200);

/// Pairs of a report.
fn said(lost: &[LostMember]) -> impl Iterator<Item = (NodeId, GroupSet)> {
    lost.iter().map(|l| (NodeId(l.node.get()), GroupSet(l.groups.get())))
}

impl Council {
    /// How many voters say so of a node in their reports about the present map, this one included.
    pub(super) fn votes(&self, turn: &Turn<'_>, node: NodeId, of: fn(&Report) -> u64, own: NodeSet) -> usize {
        let heard = turn.peers.iter().filter(|p| self.config.voters.contains(&p.node) && p.joined);
        let counts = |p: &&Peer| {
            p.delegate.report.as_ref().is_some_and(|(report, _, at)| {
                report.map.get() == self.map.version
                    && turn.now.since(*at) < REPORT_AGE
                    && p.boot.is_some_and(|boot| self.map.is_live(p.node, boot))
                    && NodeSet(of(report)).contains(node)
            })
        };
        heard.filter(counts).count() + usize::from(own.contains(node) && self.voter.is_some())
    }

    /// A node's report, as the steward takes it.
    pub(super) fn node_report(&self, report: &Report, lost: &[LostMember]) -> NodeReport {
        NodeReport {
            map: report.map.get(),
            synced: GroupSet(report.synced.get()),
            confirmed: GroupSet(report.confirmed.get()),
            blocked: GroupSet(report.blocked.get()),
            lost: said(lost).filter(|(node, _)| node.0 != ALL_MEMBERS).collect(),
            orphaned: said(lost)
                .find(|(node, _)| node.0 == ALL_MEMBERS)
                .map_or(GroupSet(0), |(_, groups)| groups),
            unreachable: NodeSet(report.unreachable.get()),
            drain_done: report.flags.get() & DRAIN_DONE != 0,
            app_level: report.app_level.get(),
        }
    }

    /// What this node reports; `to`: the peer the datagram is for.
    pub(super) fn report(
        &self,
        now: Nanos,
        suspects: NodeSet,
        silent: NodeSet,
        promised: NodeSet,
        to: Option<&Peer>,
    ) -> Report {
        let current = self.reports.iter().all(|r| r.map == self.map.version) && self.map.version > 0;
        let all = |of: fn(&ShardReport) -> GroupSet| {
            let both = |a: u64, r: &ShardReport| a & of(r).0;
            if current { self.reports.iter().fold(u64::MAX, both) } else { 0 }
        };
        let stopped = self.stopped_at.is_some_and(|at| now >= at);
        let mut flags = 0;
        flags |= if to.is_some_and(|peer| self.grants(peer)) { GRANTS } else { 0 };
        flags |= if self.draining { DRAINING } else { 0 };
        flags |= if stopped { DRAIN_DONE } else { 0 };
        flags |= if self.held_until > now { LEASE_OK } else { 0 };
        Report {
            map: self.map.version.into(),
            flags: flags.into(),
            app_level: APP_LEVEL.into(),
            birth: self.config.birth.into(),
            synced: all(|r| r.synced).into(),
            confirmed: all(|r| r.confirmed).into(),
            blocked: self.newest().fold(0, |any, r| any | r.blocked.0).into(),
            unreachable: suspects.0.into(),
            silent: silent.0.into(),
            promised: promised.0.into(),
            lost: 0.into(),
        }
    }

    /// The reports of shards that know the newest map.
    fn newest(&self) -> impl Iterator<Item = &ShardReport> {
        self.reports.iter().filter(|r| r.map == self.map.version)
    }

    /// What the shards have given up under the newest map, put together.
    pub(super) fn lost(&self) -> Vec<LostMember> {
        let orphaned = |r: &ShardReport| (NodeId(ALL_MEMBERS), r.orphaned);
        let given_up = self.newest().flat_map(|r| r.lost.iter().copied().chain([orphaned(r)]));
        let mut lost: Vec<LostMember> = Vec::new();
        for (node, groups) in given_up.filter(|(_, groups)| *groups != GroupSet::default()) {
            match lost.iter_mut().find(|l| l.node.get() == node.0) {
                Some(known) => known.groups = (known.groups.get() | groups.0).into(),
                None => lost.push(LostMember { node: node.0.into(), groups: groups.0.into() }),
            }
        }
        lost
    }

    /// Writes this node's report for a peer behind its beat, and the map if the peer's is older.
    pub(in crate::engine::control) fn write(&mut self, turn: &mut Turn<'_>, at: usize, out: &mut Vec<u8>) {
        let (silent, promised) = (self.silent(turn), self.promises(turn.now, turn.peers));
        let report = self.report(turn.now, turn.suspects, silent, promised, Some(&turn.peers[at]));
        council::write_report(out, &report, &self.lost());
        let peer = &mut turn.peers[at];
        if report.flags.get() & GRANTS != 0 {
            peer.delegate.grant(peer.heard_sequence());
        }
        let known = peer.delegate.report.as_ref().map(|(report, _, _)| report.map.get());
        let older = peer.joined && known.is_some_and(|known| known < self.map.version);
        if older && turn.now.since(peer.delegate.map_sent) >= MAP_AGAIN_AFTER {
            peer.delegate.map_sent = turn.now;
            council::write_map(out, &self.map_bytes);
        }
    }
}
