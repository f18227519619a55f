//! A table as bytes: what a learner gets instead of the log that led here. Equal tables give equal bytes.
//!
//! All numbers are big endian.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | magic `TCT` and the form's version, 1 |
//! | 2, 8, 4, 4 | slot, next sweep, number of calls, number of timers |
//! | 2, 4, n | shared state: version, length, bytes |
//! | 16, 4, 2, 4, n | each call by rising key: key, last activity, version, length, bytes |
//! | 8, 16, 1 | each timer in firing order: deadline, key, id |
//! | 8 | xxh3-64 of everything before |

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use super::{CallTable, Record, TableLimits, Timers, hash};
use crate::app::{BadSnapshot, CallApp, TimerId};
use crate::types::{CallKey, Nanos, Slot};

const MAGIC: [u8; 4] = *b"TCT\x01";

/// The fewest bytes a call takes.
const CALL_BYTES: usize = 16 + 4 + 2 + 4;
/// The bytes of a timer.
const TIMER_BYTES: usize = 8 + 16 + 1;

/// Why bytes are no snapshot of a table. Nothing was changed; ask another member, or again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Not a snapshot, or one of a later version.
    #[error(
        "slot snapshot starts with {0:02x?}, expected 54 43 54 01 (form 1): is the sender a newer version?"
    )]
    Form([u8; 4]),
    /// Cut short, too long, or damaged.
    #[error("slot snapshot of {bytes} bytes is damaged: {what}")]
    Damaged {
        /// How long it is.
        bytes: usize,
        /// What does not fit.
        what: &'static str,
    },
    /// More calls than this node allows in a slot.
    #[error(
        "slot snapshot has {calls} calls, this node allows {max}: the limit must be the same on all nodes"
    )]
    TooMany {
        /// The calls in the snapshot.
        calls: u32,
        /// The limit here.
        max: u32,
    },
    /// The application does not understand its part.
    #[error(transparent)]
    App(#[from] BadSnapshot),
}

impl<A: CallApp> CallTable<A> {
    /// Appends the table's state to `out`.
    pub fn snapshot(&self, app: &A, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.slot.0.to_be_bytes());
        out.extend_from_slice(&self.next_sweep.0.to_be_bytes());
        out.extend_from_slice(&(self.calls.len() as u32).to_be_bytes());
        out.extend_from_slice(&(self.timers.len() as u32).to_be_bytes());
        put_state(out, |out| app.snapshot_shared(&self.shared, out));
        let mut sorted: Vec<&Record<A::Call>> = self.calls.iter().collect(); // unordered: sorted next
        sorted.sort_unstable_by_key(|record| record.key);
        for record in sorted {
            put_call(app, record, out);
        }
        for (deadline, key, id) in self.timers.iter() {
            out.extend_from_slice(&deadline.0.to_be_bytes());
            out.extend_from_slice(&key.0.to_be_bytes());
            out.push(id.0);
        }
        let sum = xxh3_64(&out[start..]);
        out.extend_from_slice(&sum.to_be_bytes());
    }

    /// The table that `bytes` describe, under this node's limits.
    pub fn restore(app: &A, limits: TableLimits, bytes: &[u8]) -> Result<CallTable<A>, RestoreError> {
        let damaged = |what| RestoreError::Damaged { bytes: bytes.len(), what };
        let magic = *bytes.first_chunk::<4>().ok_or(damaged("no header"))?;
        if magic != MAGIC {
            return Err(RestoreError::Form(magic));
        }
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or(damaged("no checksum"))?;
        if xxh3_64(body) != u64::from_be_bytes(*sum) {
            return Err(damaged("its checksum is wrong"));
        }
        let mut rest = Reader(&body[4..]);
        let cut = damaged("it is cut short");
        let slot = Slot(u16::from_be_bytes(rest.array().ok_or(cut.clone())?));
        let mut table = CallTable::new(slot, limits);
        table.next_sweep = Nanos(u64::from_be_bytes(rest.array().ok_or(cut.clone())?));
        let calls = u32::from_be_bytes(rest.array().ok_or(cut.clone())?);
        let timers = u32::from_be_bytes(rest.array().ok_or(cut.clone())?) as usize;
        if calls > limits.max_calls {
            return Err(RestoreError::TooMany { calls, max: limits.max_calls });
        }
        let (version, state) = rest.state().ok_or(cut.clone())?;
        table.shared = app.restore_shared(version, state)?;
        // Checked before memory is reserved: the counts cannot be larger than the bytes allow.
        if (calls as usize).saturating_mul(CALL_BYTES) > rest.0.len() || timers > rest.0.len() / TIMER_BYTES {
            return Err(cut);
        }
        table.calls = HashTable::with_capacity(calls as usize);
        let mut last: Option<CallKey> = None;
        for _ in 0..calls {
            let record = take_call(app, &mut rest)?.ok_or(cut.clone())?;
            if last.is_some_and(|last| last >= record.key) {
                return Err(damaged("its calls are not in order"));
            }
            last = Some(record.key);
            table.calls.insert_unique(hash(record.key), record, |record| hash(record.key));
        }
        table.timers =
            take_timers(&mut rest, timers).ok_or(damaged("its timers are cut short or not in order"))?;
        if table.timers.iter().any(|timer| table.call(timer.1).is_none()) {
            return Err(damaged("a timer belongs to no call"));
        }
        if !rest.0.is_empty() {
            return Err(damaged("it is too long"));
        }
        Ok(table)
    }

    /// A digest of the whole state: equal on two members that executed the same entries. Costs a pass over all
    /// calls, so it is for snapshots and checks; what members compare all the time is the log's rolling digest.
    pub fn digest(&self, app: &A) -> u64 {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.slot.0.to_be_bytes());
        bytes.extend_from_slice(&self.next_sweep.0.to_be_bytes());
        put_state(&mut bytes, |out| app.snapshot_shared(&self.shared, out));
        for (deadline, key, id) in self.timers.iter() {
            bytes.extend_from_slice(&deadline.0.to_be_bytes());
            bytes.extend_from_slice(&key.0.to_be_bytes());
            bytes.push(id.0);
        }
        let mut digest = xxh3_64(&bytes);
        let unsorted = self.calls.iter(); // unordered: summed
        for record in unsorted {
            bytes.clear();
            put_call(app, record, &mut bytes);
            digest = digest.wrapping_add(xxh3_64(&bytes));
        }
        digest
    }
}

fn put_call<A: CallApp>(app: &A, record: &Record<A::Call>, out: &mut Vec<u8>) {
    out.extend_from_slice(&record.key.0.to_be_bytes());
    out.extend_from_slice(&record.active.to_be_bytes());
    put_state(out, |out| app.snapshot(&record.call, out));
}

/// Writes version, length and bytes of a piece of application state.
fn put_state(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> u16) {
    let head = out.len();
    out.extend_from_slice(&[0; 6]);
    let version = write(out);
    let length = (out.len() - head - 6) as u32;
    out[head..head + 2].copy_from_slice(&version.to_be_bytes());
    out[head + 2..head + 6].copy_from_slice(&length.to_be_bytes());
}

/// Reads one call; `None` if the bytes end before it does.
fn take_call<A: CallApp>(app: &A, rest: &mut Reader<'_>) -> Result<Option<Record<A::Call>>, BadSnapshot> {
    let (Some(key), Some(active)) = (rest.array(), rest.array()) else { return Ok(None) };
    let Some((version, state)) = rest.state() else { return Ok(None) };
    let call = app.restore(version, state)?;
    Ok(Some(Record { key: CallKey(u128::from_be_bytes(key)), call, active: u32::from_be_bytes(active) }))
}

/// Reads `count` timers; `None` if they end early, do not rise, or one is there twice.
fn take_timers(rest: &mut Reader<'_>, count: usize) -> Option<Timers> {
    let mut timers = Timers::default();
    let mut last = None;
    for read in 1..=count {
        let deadline = Nanos(u64::from_be_bytes(rest.array()?));
        let key = CallKey(u128::from_be_bytes(rest.array()?));
        let [id] = rest.array()?;
        let timer = (deadline, key, TimerId(id));
        if last.is_some_and(|last| last >= timer) {
            return None;
        }
        last = Some(timer);
        timers.set(key, TimerId(id), Some(deadline));
        if timers.len() != read {
            return None;
        }
    }
    Some(timers)
}

/// Takes bytes off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn state(&mut self) -> Option<(u16, &'a [u8])> {
        let version = u16::from_be_bytes(self.array()?);
        let length = u32::from_be_bytes(self.array()?) as usize;
        let (state, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some((version, state))
    }
}
