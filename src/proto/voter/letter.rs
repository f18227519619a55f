//! What one voter sends to another, and what of it may reach the consensus library: it takes every index, ballot and
//! sender for true, so whatever could break it is turned away here.

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::ballot_leader_election::HeartbeatMsg;
use omnipaxos::messages::sequence_paxos::PaxosMsg;
use omnipaxos::storage::SnapshotType;
use omnipaxos::util::{LogSync, SequenceNumber};
use serde::{Deserialize, Serialize};

use super::super::map::ClusterMap;
use super::shelf::Held;
use crate::types::NodeId;

/// The voters never change: this is their first and only configuration.
pub(super) const CONFIGURATION: u32 = 1;
/// Indexes, ballots and counters past these are no voter's: sums of a few of them cannot overflow.
const MAX_INDEX: usize = 1 << 40;
const MAX_BALLOT: u32 = 1 << 30;
const MAX_COUNT: u64 = 1 << 60;

/// How far a leader's log has got.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    pub(super) decided: usize,
    pub(super) accepted: usize,
}

/// One message and what this seam adds to it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Letter {
    /// The sender's vote file's.
    pub(super) birth: u64,
    /// The sender's.
    pub(super) life: u64,
    /// Grows with each letter from this life of the sender to the receiver.
    pub(super) number: u64,
    /// Only if the sender leads.
    pub(super) leads: Option<Standing>,
    pub(super) message: Message<ClusterMap>,
}

impl Letter {
    pub(super) fn read(bytes: &[u8]) -> Option<Letter> {
        postcard::take_from_bytes(bytes).ok().map(|(letter, _)| letter)
    }

    pub(super) fn write(&self) -> Option<Vec<u8>> {
        postcard::to_stdvec(self).ok()
    }
}

/// The ballot that the sender follows, and whether it is content with that; only some messages say so.
pub(super) fn follows(message: &Message<ClusterMap>) -> Option<(Ballot, bool)> {
    match message {
        Message::BLE(ble) => match &ble.msg {
            HeartbeatMsg::Reply(reply) => Some((reply.leader, reply.happy)),
            HeartbeatMsg::Request(_) => None,
        },
        Message::SequencePaxos(_) => None,
    }
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    Sound,
    /// Made sense once, but does not fit this voter's log (any more). What is dropped so is asked for again.
    Late,
    Malformed,
}

/// Whether a message from the authenticated node `from` may be handled by voter `me`, whose log is decided and accepted
/// as `log` says. `agreed`: no round is being opened.
pub(super) fn judge(
    message: &Message<ClusterMap>,
    from: NodeId,
    me: NodeId,
    log: (usize, usize),
    agreed: bool,
) -> Judgement {
    let pid = u64::from(from.0);
    if message.get_sender() != pid || message.get_receiver() != u64::from(me.0) {
        return Judgement::Malformed;
    }
    if !well_formed(message, pid) {
        return Judgement::Malformed;
    }
    if fits(message, log, agreed) { Judgement::Sound } else { Judgement::Late }
}

fn well_formed(message: &Message<ClusterMap>, from: u64) -> bool {
    let paxos = match message {
        Message::BLE(ble) => {
            return match &ble.msg {
                HeartbeatMsg::Request(_) => true,
                HeartbeatMsg::Reply(reply) => own(reply.ballot, from) && ballot(reply.leader),
            };
        }
        Message::SequencePaxos(paxos) => &paxos.msg,
    };
    match paxos {
        PaxosMsg::PrepareReq(request) => ballot(request.n),
        PaxosMsg::Prepare(prepare) => {
            own(prepare.n, from)
                && ballot(prepare.n_accepted)
                && prepare.decided_idx <= prepare.accepted_idx
                && prepare.accepted_idx <= MAX_INDEX
        }
        PaxosMsg::Promise(promise) => {
            ballot(promise.n)
                && ballot(promise.n_accepted)
                && promise.decided_idx <= promise.accepted_idx
                && promise.accepted_idx <= MAX_INDEX
                && promise
                    .log_sync
                    .as_ref()
                    .is_none_or(|sync| whole(sync) && end(sync) == promise.accepted_idx)
        }
        PaxosMsg::AcceptSync(sync) => {
            own(sync.n, from)
                && counts(sync.seq_num)
                && whole(&sync.log_sync)
                && sync.decided_idx <= end(&sync.log_sync)
        }
        PaxosMsg::AcceptDecide(accept) => {
            own(accept.n, from) && counts(accept.seq_num) && accept.decided_idx <= MAX_INDEX
        }
        PaxosMsg::Decide(decide) => {
            own(decide.n, from) && counts(decide.seq_num) && decide.decided_idx <= MAX_INDEX
        }
        PaxosMsg::Accepted(accepted) => ballot(accepted.n) && accepted.accepted_idx <= MAX_INDEX,
        PaxosMsg::NotAccepted(refused) => ballot(refused.n),
        // Only leaders propose, every voter makes its own snapshots, and the voters never change.
        PaxosMsg::ProposalForward(_)
        | PaxosMsg::Compaction(_)
        | PaxosMsg::AcceptStopSign(_)
        | PaxosMsg::ForwardStopSign(_) => false,
    }
}

fn fits(message: &Message<ClusterMap>, (decided, accepted): (usize, usize), agreed: bool) -> bool {
    let Message::SequencePaxos(paxos) = message else { return true };
    let sync_fits = |sync: &LogSync<ClusterMap>| {
        sync.sync_idx >= decided && (sync.decided_snapshot.is_some() || sync.sync_idx <= accepted)
    };
    match &paxos.msg {
        PaxosMsg::AcceptSync(sync) => sync_fits(&sync.log_sync),
        // Once a majority has promised, a late promise's log is not looked at.
        PaxosMsg::Promise(promise) if !agreed => match &promise.log_sync {
            Some(sync) => sync_fits(sync),
            None => promise.decided_idx <= accepted,
        },
        PaxosMsg::Accepted(by) => by.accepted_idx <= accepted,
        _ => true,
    }
}

fn ballot(ballot: Ballot) -> bool {
    ballot.n <= MAX_BALLOT
}

/// A ballot of the sender itself.
fn own(mine: Ballot, from: u64) -> bool {
    ballot(mine) && mine.pid == from && mine.config_id == CONFIGURATION
}

fn counts(number: SequenceNumber) -> bool {
    number.session <= MAX_COUNT && number.counter <= MAX_COUNT
}

fn whole(sync: &LogSync<ClusterMap>) -> bool {
    sync.sync_idx <= MAX_INDEX
        && sync.stopsign.is_none()
        && !matches!(sync.decided_snapshot, Some(SnapshotType::Delta(_)))
}

/// The length of the log that is brought up to date so.
fn end(sync: &LogSync<ClusterMap>) -> usize {
    sync.sync_idx + sync.suffix.len()
}

/// Makes the difference in a message that was just written the whole snapshot: the writer's own, up to the same index.
pub(super) fn make_whole(message: &mut Message<ClusterMap>, held: &Held) {
    let Message::SequencePaxos(paxos) = message else { return };
    let sync = match &mut paxos.msg {
        PaxosMsg::AcceptSync(accept) => &mut accept.log_sync,
        PaxosMsg::Promise(promise) => match &mut promise.log_sync {
            Some(sync) => sync,
            None => return,
        },
        _ => return,
    };
    if let Some(SnapshotType::Delta(_)) = sync.decided_snapshot {
        debug_assert_eq!(sync.sync_idx, held.compacted, "made whole before anything else was decided");
        sync.decided_snapshot = held.snapshot.clone().map(SnapshotType::Complete);
    }
}
