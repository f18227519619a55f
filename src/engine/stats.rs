//! What a shard counts: every packet it drops by reason, and what the slot log did.

use super::admission::TurnedAway;
use serde::{Deserialize, Serialize};

/// Why a client's datagram got no place in a log.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum DropReason {
    /// This node is not the owner of the call's slot.
    NotOwner,
    /// The call's slot belongs to another shard.
    WrongShard,
    /// The payload is longer than an entry can carry.
    TooLong,
    /// As many entries of the slot wait for their outputs as the window allows.
    WindowFull,
    /// As many bytes are retained as the shard may, and no member could be given up.
    RetainFull,
    /// As many packets wait for their slot's recovery as may.
    Recovering,
}

/// What one shard has done since it started. Grows only, but for the gauges at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShardStats {
    /// Client datagrams that became entries.
    pub entries: u64,
    /// Ticks appended.
    pub ticks: u64,
    /// Outputs handed to the kernel.
    pub released: u64,
    /// Outputs that came again after they had been taken.
    pub repeated_outputs: u64,
    /// Outputs taken from a member that was not master.
    pub rescued_outputs: u64,
    /// Late outputs asked of another member.
    pub hedges: u64,
    /// Entries sent again because an ack was late.
    pub probes: u64,
    /// Naks sent by this shard's members.
    pub naks_sent: u64,
    /// Naks received from members.
    pub naks: u64,
    /// Slots whose master changed.
    pub master_changes: u64,
    /// Members given up because they fell out of the window.
    pub demotions: u64,
    /// Digest checkpoints at which members differed.
    pub divergences: u64,
    /// Segments executed by this shard's members that were not first of their kind, or out of term.
    pub refused_segments: u64,
    /// Client datagrams dropped: not the owner.
    pub drop_not_owner: u64,
    /// Client datagrams dropped: wrong shard.
    pub drop_wrong_shard: u64,
    /// Client datagrams dropped: too long.
    pub drop_too_long: u64,
    /// Client datagrams dropped: window full.
    pub drop_window_full: u64,
    /// Client datagrams dropped: retained bytes at their limit.
    pub drop_retain_full: u64,
    /// Client datagrams dropped: too many wait for a recovery.
    pub drop_recovering: u64,
    /// Client datagrams passed on to the node that owns their slot, and taken from others.
    pub forwarded: u64,
    /// See `forwarded`.
    pub forwards_taken: u64,
    /// Outputs passed on to the node that holds the address they leave from, and how often again.
    pub delivered: u64,
    /// See `delivered`.
    pub delivered_again: u64,
    /// Outputs of other owners given to clients here, and dropped: out of turn, or for an address not held.
    pub deliveries_taken: u64,
    /// See `deliveries_taken`.
    pub deliveries_refused: u64,
    /// Slots recovered after their owner changed.
    pub recoveries: u64,
    /// Of those, the ones for which no complete commit set was left.
    pub lossy_recoveries: u64,
    /// Turns in which replies had to wait for a lease.
    pub lease_waits: u64,
    /// Snapshot bytes taken in, and snapshots given out.
    pub resync_bytes: u64,
    /// Time in which snapshots were being pulled, ns: what the bytes took.
    pub resync_ns: u64,
    /// See `resync_bytes`.
    pub snapshots_given: u64,
    /// Snapshots that could not be used.
    pub snapshots_refused: u64,
    /// Frames dropped: of another term, or of an old owner.
    pub drop_term: u64,
    /// Frames dropped: of another incarnation, or of a node that has not joined.
    pub drop_incarnation: u64,
    /// Frames dropped: they claim what was never sent, or lie outside what is kept.
    pub drop_ahead: u64,
    /// Frames dropped: malformed.
    pub drop_malformed: u64,
    /// Frames dropped: for a slot this node has no part in.
    pub drop_no_slot: u64,
    /// Packets refused by the application because a slot was full of calls.
    pub calls_refused: u64,
    /// Packets that the slot's shared state knows no call of: media for a port nobody has.
    pub calls_unresolved: u64,
    /// Calls ended by a panic of the application.
    pub calls_panicked: u64,
    /// New calls turned away: more a second than this node takes.
    pub turned_away_rate: u64,
    /// New calls turned away: as many at a time as this node takes.
    pub turned_away_calls: u64,
    /// New calls turned away: more a second than a source may have.
    pub turned_away_source_rate: u64,
    /// New calls turned away: as many at a time as a source may have.
    pub turned_away_source_calls: u64,
    /// New calls turned away: the loop was behind, or the log nearly full.
    pub turned_away_overload: u64,
    /// Media dropped: for a port that no call has.
    pub turned_away_no_call: u64,
    /// Outputs dropped by the application's call table: too long, or too many for one entry.
    pub outputs_dropped: u64,
    /// Gauge: live calls.
    pub calls: u64,
    /// Gauge: bytes reserved for the calls.
    pub calls_bytes: u64,
    /// Gauge: slots this shard owns.
    pub slots_owned: u64,
    /// Gauge: slots this shard owns and is still recovering.
    pub slots_recovering: u64,
    /// Gauge: of those, the ones that stop because no complete commit set is left (TANDEM_LOSSY=stop).
    pub slots_stopped: u64,
    /// Gauge: slots this shard is a learner of, and how many of them are in sync.
    pub learning: (u64, u64),
    /// Gauge: slots this shard is a member of.
    pub slots_member: u64,
    /// Gauge: owned slots by master, as (node, slots).
    pub masters: Vec<(u16, u64)>,
    /// Gauge: owned slots in which some member does not count.
    pub slots_short: u64,
    /// Gauge: entries that wait for their outputs, over all owned slots.
    pub waiting: u64,
    /// Gauge: bytes of entries and outputs kept, owner and member side.
    pub retained_bytes: u64,
    /// Gauge: entries and outputs kept, owner and member side.
    pub retained_records: u64,
    /// Gauge: the delay after which late outputs are asked of another member, in ns.
    pub hedge_after_ns: u64,
    /// Gauge: the longest log retained by one slot, in records, without those that wait for their snapshot.
    pub longest_log: u64,
}

impl ShardStats {
    /// Counts a new call that was turned away.
    pub fn turn_away(&mut self, why: TurnedAway) {
        match why {
            TurnedAway::Rate => self.turned_away_rate += 1,
            TurnedAway::Calls => self.turned_away_calls += 1,
            TurnedAway::SourceRate => self.turned_away_source_rate += 1,
            TurnedAway::SourceCalls => self.turned_away_source_calls += 1,
            TurnedAway::Overload => self.turned_away_overload += 1,
            TurnedAway::NoCall => self.turned_away_no_call += 1,
        }
    }

    /// Counts a dropped client datagram.
    pub fn drop(&mut self, reason: DropReason) {
        match reason {
            DropReason::NotOwner => self.drop_not_owner += 1,
            DropReason::WrongShard => self.drop_wrong_shard += 1,
            DropReason::TooLong => self.drop_too_long += 1,
            DropReason::WindowFull => self.drop_window_full += 1,
            DropReason::RetainFull => self.drop_retain_full += 1,
            DropReason::Recovering => self.drop_recovering += 1,
        }
    }
}
