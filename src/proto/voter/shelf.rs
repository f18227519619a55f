//! What a voter must not forget: its promise, and what it has accepted. Kept in memory, and saved as a whole.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::storage::{Entry, Snapshot, StopSign, Storage, StorageOp, StorageResult};
use serde::{Deserialize, Serialize};

use super::super::map::ClusterMap;
use super::VoterError;
use crate::types::NodeId;

/// The first byte of what is saved.
const FORMAT: u8 = 1;

impl Entry for ClusterMap {
    type Snapshot = Newest;
}

/// The map in force after some entries of the log, or those entries as long as it is not known what was before them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Newest {
    /// In force before `rest`; none: no map yet.
    map: Option<ClusterMap>,
    rest: Vec<ClusterMap>,
}

impl Newest {
    fn apply(&mut self, next: ClusterMap) {
        let version = self.map.as_ref().map_or(0, |map| map.version);
        if version.checked_add(1) == Some(next.version) {
            self.map = Some(next);
        }
    }

    /// The version of the map in force, of entries from the first one on.
    fn version(&self) -> u32 {
        let before = self.map.as_ref().map_or(0, |map| map.version);
        self.rest.iter().fold(before, |now, next| now + u32::from(now.checked_add(1) == Some(next.version)))
    }

    /// Of entries from the first one on.
    fn folded(mut self) -> Newest {
        std::mem::take(&mut self.rest).into_iter().for_each(|next| self.apply(next));
        self
    }
}

impl Snapshot<ClusterMap> for Newest {
    fn create(entries: &[ClusterMap]) -> Newest {
        Newest { map: None, rest: entries.to_vec() }
    }

    fn merge(&mut self, delta: Newest) {
        *self = std::mem::take(self).folded();
        delta.rest.into_iter().for_each(|next| self.apply(next));
    }

    fn use_snapshots() -> bool {
        true
    }
}

/// Everything one voter holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Held {
    me: NodeId,
    voters: Vec<NodeId>,
    promise: Option<Ballot>,
    accepted_round: Option<Ballot>,
    decided: usize,
    /// How many entries the snapshot stands for.
    pub(super) compacted: usize,
    pub(super) snapshot: Option<Newest>,
    /// The entries after those.
    log: Vec<ClusterMap>,
    /// Not saved since it last changed.
    #[serde(skip)]
    pub(super) dirty: bool,
}

impl Held {
    pub(super) fn new(me: NodeId, voters: &[NodeId]) -> Held {
        Held {
            me,
            voters: voters.to_vec(),
            promise: None,
            accepted_round: None,
            decided: 0,
            compacted: 0,
            snapshot: None,
            log: Vec::new(),
            dirty: false,
        }
    }

    pub(super) fn load(bytes: &[u8], me: NodeId, voters: &[NodeId]) -> Result<Held, VoterError> {
        let (format, bytes) = bytes.split_first().unwrap_or((&0, &[]));
        let read = postcard::take_from_bytes::<Held>(bytes).ok().map(|(held, _)| held);
        let sound = |held: &Held| {
            let end = held.compacted.checked_add(held.log.len());
            held.compacted <= held.decided && end.is_some_and(|end| held.decided <= end)
        };
        let held =
            read.filter(|held| *format == FORMAT && sound(held)).ok_or(VoterError::Unreadable(*format))?;
        if held.me != me {
            return Err(VoterError::OtherNode(held.me.0));
        }
        if held.voters != voters {
            let list = |voters: &[NodeId]| {
                voters.iter().map(|voter| voter.0.to_string()).collect::<Vec<_>>().join(",")
            };
            return Err(VoterError::OtherVoters { stored: list(&held.voters), given: list(voters) });
        }
        Ok(held)
    }

    pub(super) fn save(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        let bytes = postcard::to_stdvec(self).expect("writing to memory");
        out.extend_from_slice(&bytes);
    }

    /// The newest map decided.
    pub(super) fn newest(&self) -> Option<ClusterMap> {
        self.snapshot.clone()?.folded().map
    }

    /// Every map there is in it.
    pub(super) fn maps(&self) -> impl Iterator<Item = &ClusterMap> {
        self.snapshot.iter().flat_map(|s| s.map.iter().chain(&s.rest)).chain(&self.log)
    }

    /// Its version.
    pub(super) fn newest_version(&self) -> u32 {
        self.snapshot.as_ref().map_or(0, Newest::version)
    }

    /// A voter alone decides.
    pub(super) fn decide(&mut self, map: ClusterMap) {
        self.snapshot.get_or_insert_default().merge(Newest::create(&[map]));
        self.decided += 1;
        self.compacted += 1;
        self.dirty = true;
    }

    fn range(&self, from: usize, to: usize) -> Vec<ClusterMap> {
        let within = from.checked_sub(self.compacted).zip(to.checked_sub(self.compacted));
        within.and_then(|(from, to)| self.log.get(from..to)).unwrap_or_default().to_vec()
    }
}

/// The library's handle to what is held; the voter has another.
#[derive(Clone, Debug)]
pub(super) struct Shelf(Arc<Mutex<Held>>);

impl Shelf {
    pub(super) fn new(held: Held) -> Shelf {
        Shelf(Arc::new(Mutex::new(held)))
    }

    /// Never contended: both handles are of one voter.
    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage<ClusterMap> for Shelf {
    fn write_atomically(&mut self, ops: Vec<StorageOp<ClusterMap>>) -> StorageResult<()> {
        for op in ops {
            match op {
                StorageOp::AppendEntry(entry) => self.append_entry(entry)?,
                StorageOp::AppendEntries(entries) => self.append_entries(entries)?,
                StorageOp::AppendOnPrefix(from, entries) => self.append_on_prefix(from, entries)?,
                StorageOp::SetPromise(promise) => self.set_promise(promise)?,
                StorageOp::SetDecidedIndex(index) => self.set_decided_idx(index)?,
                StorageOp::SetAcceptedRound(round) => self.set_accepted_round(round)?,
                StorageOp::SetCompactedIdx(index) => self.set_compacted_idx(index)?,
                StorageOp::Trim(index) => self.trim(index)?,
                StorageOp::SetStopsign(sign) => self.set_stopsign(sign)?,
                StorageOp::SetSnapshot(snapshot) => self.set_snapshot(snapshot)?,
            }
        }
        Ok(())
    }

    fn append_entry(&mut self, entry: ClusterMap) -> StorageResult<()> {
        self.append_entries(vec![entry])
    }

    fn append_entries(&mut self, entries: Vec<ClusterMap>) -> StorageResult<()> {
        let mut held = self.held();
        held.dirty |= !entries.is_empty();
        held.log.extend(entries);
        Ok(())
    }

    fn append_on_prefix(&mut self, from: usize, entries: Vec<ClusterMap>) -> StorageResult<()> {
        let mut held = self.held();
        let keep = from.saturating_sub(held.compacted);
        held.dirty = true;
        held.log.truncate(keep);
        held.log.extend(entries);
        Ok(())
    }

    fn set_promise(&mut self, promise: Ballot) -> StorageResult<()> {
        let mut held = self.held();
        // The library's "none" is the lowest ballot there can be.
        let promise = Some(promise).filter(|promise| *promise != Ballot::default());
        held.dirty |= held.promise != promise;
        held.promise = promise;
        Ok(())
    }

    /// What was decided is learnt again from any leader: no reason to save.
    fn set_decided_idx(&mut self, index: usize) -> StorageResult<()> {
        self.held().decided = index;
        Ok(())
    }

    fn get_decided_idx(&self) -> StorageResult<usize> {
        Ok(self.held().decided)
    }

    fn set_accepted_round(&mut self, round: Ballot) -> StorageResult<()> {
        let mut held = self.held();
        held.dirty |= held.accepted_round != Some(round);
        held.accepted_round = Some(round);
        Ok(())
    }

    fn get_accepted_round(&self) -> StorageResult<Option<Ballot>> {
        Ok(self.held().accepted_round)
    }

    fn get_entries(&self, from: usize, to: usize) -> StorageResult<Vec<ClusterMap>> {
        Ok(self.held().range(from, to))
    }

    fn get_log_len(&self) -> StorageResult<usize> {
        Ok(self.held().log.len())
    }

    fn get_suffix(&self, from: usize) -> StorageResult<Vec<ClusterMap>> {
        let held = self.held();
        Ok(held.range(from, held.compacted + held.log.len()))
    }

    fn get_promise(&self) -> StorageResult<Option<Ballot>> {
        Ok(self.held().promise)
    }

    fn set_stopsign(&mut self, sign: Option<StopSign>) -> StorageResult<()> {
        debug_assert!(sign.is_none(), "the voters never change");
        Ok(())
    }

    fn get_stopsign(&self) -> StorageResult<Option<StopSign>> {
        Ok(None)
    }

    fn trim(&mut self, index: usize) -> StorageResult<()> {
        let mut held = self.held();
        let gone = index.saturating_sub(held.compacted).min(held.log.len());
        held.log.drain(..gone);
        held.dirty = true;
        Ok(())
    }

    fn set_compacted_idx(&mut self, index: usize) -> StorageResult<()> {
        let mut held = self.held();
        held.dirty |= held.compacted != index;
        held.compacted = index;
        Ok(())
    }

    fn get_compacted_idx(&self) -> StorageResult<usize> {
        Ok(self.held().compacted)
    }

    fn set_snapshot(&mut self, snapshot: Option<Newest>) -> StorageResult<()> {
        let mut held = self.held();
        held.dirty = true;
        held.snapshot = snapshot;
        Ok(())
    }

    fn get_snapshot(&self) -> StorageResult<Option<Newest>> {
        Ok(self.held().snapshot.clone())
    }
}
