//! What a shard tells its node's control about the slots it has a part in, for the cluster map.

use super::shard::{Seat, Shard};
use crate::app::CallApp;
use crate::proto::map::{GroupSet, MapMember};
use crate::proto::owner::recovery::{Recovery, Verdict};
use crate::types::{Nanos, NodeId, Now};

/// How often the slots are looked at while something is going on, and otherwise.
const LOOK_EVERY: Nanos = Nanos::from_millis(5);
const LOOK_AT_REST: Nanos = Nanos::from_millis(100);

/// A member that is still one this many times as long as a commit may take after it was given up learns the slot where it is.
const TAUGHT_AFTER: u64 = 30;

/// A recovery that takes this many times as long as a commit may take will not end without others.
const SLOW_RECOVERY: u64 = 20;

/// How things stand at one shard, under one map version. Reports of all shards of a node are put together: a group is
/// in sync, or confirmed, if it is on every shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardReport {
    /// The map version it is about.
    pub map: u32,
    /// Groups of which this node is a learner and holds every slot of this shard as a member would.
    pub synced: GroupSet,
    /// Groups whose past member sets are needed no more for this shard's slots of the addresses this node owns:
    /// everything recovered or released is held by a commit set of the present members.
    pub confirmed: GroupSet,
    /// Groups in which a slot owned here has waited for a commit for TANDEM_DEAD_AFTER, or much longer for its recovery.
    pub blocked: GroupSet,
    /// Members that the owner here has given up, by group: they must be dropped and brought in again.
    pub lost: Vec<(NodeId, GroupSet)>,
    /// Groups in which a slot owned here has no member left that counts.
    pub orphaned: GroupSet,
    /// Slots owned here that are still being recovered.
    pub recovering: u32,
    /// Slots recovered here although no complete commit set was left.
    pub lossy: u32,
    /// Slots owned here that stop because no complete commit set is left.
    pub stopped: u32,
    /// Slots of this shard that this node is a learner of, and how many of them are in sync.
    pub learning: (u32, u32),
    /// Replies owned here that wait for a commit or the kernel.
    pub waiting: u64,
}

/// The newest report, and when the slots are looked at again.
#[derive(Debug, Default)]
pub(super) struct Standing {
    report: ShardReport,
    look_at: Nanos,
    /// Since when the past members of a group have been needed although the map knows better ones.
    unconfirmed_since: Option<(u32, Nanos)>,
    /// Since when slots here have been recovered.
    recovering_since: Option<Nanos>,
}

impl Standing {
    pub(super) fn report(&self) -> &ShardReport {
        &self.report
    }

    /// Something has changed that the report is about.
    pub(super) fn look_again(&mut self) {
        self.look_at = Nanos::ZERO;
    }

    /// When the slots are to be looked at.
    pub(super) fn due(&self) -> Nanos {
        self.look_at
    }

    pub(super) fn is_learning(&self) -> bool {
        self.report.learning.1 < self.report.learning.0
    }
}

impl<A: CallApp> Shard<A> {
    /// Looks at all slots, if it is time.
    pub(super) fn look(&mut self, now: Now) {
        if self.standing.look_at > now.mono {
            return;
        }
        let mut report = self.make_report(now);
        self.note_unconfirmed(now, &mut report);
        self.note_recovering(now, &mut report);
        let groups = &self.map.groups;
        let unsettled = groups.iter().any(|g| !g.past.is_empty() || !g.learners.is_empty());
        let trouble =
            report.recovering > 0 || report.blocked != GroupSet::default() || !report.lost.is_empty();
        let alone = self.lanes.iter().enumerate().any(|(l, lane)| l != self.local && !lane.trusted());
        let busy = self.map.version > 0 && (unsettled || trouble || alone && report.waiting > 0);
        self.standing.look_at = match () {
            () if busy => now.mono + LOOK_EVERY,
            // Nothing owned and nothing learned: the next map says when that changes.
            () if self.map.version == 0 => Nanos::MAX,
            () => now.mono + LOOK_AT_REST,
        };
        if !report.lost.is_empty() {
            self.teach_lost(now);
        }
        self.standing.report = report;
        if self.standing.is_learning() {
            self.resync.wake(now.mono);
        }
    }

    /// Groups whose present members do not take over from the past ones wait for a member, as those do that cannot
    /// commit.
    fn note_unconfirmed(&mut self, now: Now, report: &mut ShardReport) {
        let groups = self.map.groups.iter().enumerate();
        let stuck = groups.filter(|(at, g)| !g.past.is_empty() && !report.confirmed.contains(*at));
        let stuck = stuck.fold(GroupSet::default(), |mut set, (at, _)| {
            set.insert(at);
            set
        });
        let owns = self.slots.iter().any(|slot| slot.owner.is_some());
        if stuck == GroupSet::default() || !owns {
            self.standing.unconfirmed_since = None;
            return;
        }
        let same = self.standing.unconfirmed_since.filter(|(map, _)| *map == report.map);
        let (_, since) = *self.standing.unconfirmed_since.insert(same.unwrap_or((report.map, now.mono)));
        if now.mono.since(since) >= self.config.blocked_after {
            report.blocked.0 |= stuck.0;
        }
    }

    /// Slots whose log is not found wait as those do that cannot commit.
    fn note_recovering(&mut self, now: Now, report: &mut ShardReport) {
        let since = &mut self.standing.recovering_since;
        *since = (report.recovering > 0).then(|| since.unwrap_or(now.mono));
        let limit = Nanos(self.config.blocked_after.0.saturating_mul(SLOW_RECOVERY));
        if since.is_none_or(|since| now.mono.since(since) < limit) {
            return;
        }
        let recovering = self.slots.iter().enumerate().filter(|(_, slot)| slot.recovery.is_some());
        recovering.for_each(|(at, _)| report.blocked.insert(self.map.group_of(self.slot_at(at))));
    }

    /// The map has dropped members that were given up long since, if it could.
    fn teach_lost(&mut self, now: Now) {
        if !self.may_release(now.mono) {
            return;
        }
        let patience = Nanos(self.config.blocked_after.0.saturating_mul(TAUGHT_AFTER));
        for index in 0..self.slots.len() {
            let owner = self.slots[index].owner.as_ref();
            if owner.is_some_and(|owner| owner.lost().next().is_some())
                && self.changing(index, |owner, _, _| owner.teach_lost(now.mono, patience)) == Some(true)
            {
                self.enqueue(index);
                self.arm(index);
            }
        }
    }

    fn verdict(&self, recovery: &Recovery) -> Verdict {
        let live = |m: &MapMember| self.map.is_live(m.node, m.boot);
        let group = self.map.group(recovery.slot());
        recovery.verdict(group, self.map.commit.into(), live)
    }

    fn make_report(&self, now: Now) -> ShardReport {
        let mut report = ShardReport {
            map: self.map.version,
            synced: GroupSet::ALL,
            confirmed: GroupSet::ALL,
            recovering: self.recovering,
            lossy: self.counts.lossy_recoveries as u32,
            ..ShardReport::default()
        };
        for (index, state) in self.slots.iter().enumerate() {
            let group = self.map.group_of(self.slot_at(index));
            if let Some(recovery) = &state.recovery {
                report.confirmed.remove(group);
                // It waits for nothing but members to commit with.
                let late = now.mono.since(recovery.began()) >= self.config.blocked_after;
                // Asked only where it matters: a thousand slots may be recovering at a time.
                let asks = !recovery.is_settled() && (late || !self.config.lossy_go);
                match asks.then(|| self.verdict(recovery)) {
                    Some(Verdict::Complete) if late => report.blocked.insert(group),
                    Some(Verdict::Lossy) if !self.config.lossy_go => report.stopped += 1,
                    _ => {}
                }
            }
            if let Some(owner) = &state.owner {
                // Where there are no past members nobody asks.
                if !self.map.groups[group].past.is_empty() && !owner.is_confirmed() {
                    report.confirmed.remove(group);
                }
                if owner.is_blocked(now.mono, self.config.blocked_after) {
                    report.blocked.insert(group);
                }
                if owner.is_orphaned() {
                    report.orphaned.insert(group);
                }
                for node in owner.lost() {
                    match report.lost.iter_mut().find(|(lost, _)| *lost == node) {
                        Some((_, groups)) => groups.insert(group),
                        None => report.lost.push((node, GroupSet(1 << group))),
                    }
                }
                report.waiting += owner.waiting();
            }
            if self.map.groups[group].learner(self.config.me).is_some() {
                // With an earlier owner's log it may have to begin anew.
                let term = self.map.owner(self.slot_at(index)).term;
                let whole = |seat: &Seat<A>| seat.log.in_sync() && seat.log.term() == term;
                let synced = state.seat.as_ref().is_some_and(whole);
                report.learning.0 += 1;
                report.learning.1 += u32::from(synced);
                if !synced {
                    report.synced.remove(group);
                }
            }
        }
        report
    }
}
