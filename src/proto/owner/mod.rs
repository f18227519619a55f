//! The owner side of one slot's log: gives entries their positions, fans them out, counts acks, and
//! releases each output once, in order, when its entry is committed.
//!
//! - this file: the log itself, appending, taking outputs and releasing them;
//! - [`follower`]: what the owner knows of one member, and what it writes for it;
//! - [`commit`]: acks, the commit rule, and the comparison of digests;
//! - [`repair`]: everything driven by time or suspicion: probes, hedges, the choice of the master;
//! - [`members`]: a newer map names other members;
//! - [`recovery`]: how a new owner finds the log that survives, before there is an [`Owner`].

pub mod commit;
pub mod follower;
pub mod members;
pub mod recovery;
pub mod repair;
#[cfg(test)]
mod tests;

use super::Safeguards;
use super::map::Group;
use super::record_log::RecordLog;
use crate::types::{Boot, Cursor, Endpoint, LocalId, Nanos, NodeId, Ordinal, Position, Slot, Term};
use crate::wire::frame;
use crate::wire::record::{Entry, EntryKind, Output};
use follower::Follower;

/// Outputs that wait for the kernel may be this many times as many as the entries of a window.
const UNSENT_PER_ENTRY: u64 = 4;

/// What a slot's owner does the same for every slot.
#[derive(Copy, Clone, Debug)]
pub struct OwnerConfig {
    /// How many members must ack an entry.
    pub commit: usize,
    /// Most entries that may wait for their outputs, and most that are kept for a slow member.
    pub window: u64,
    /// After how much quiet the members are told what has been released and is stable.
    pub tell_after: Nanos,
    /// The number of the service address the slots belong to.
    pub address: u16,
    /// Whose member is master, if it can be; `None`: the one that the map names first.
    pub home: Option<NodeId>,
    /// The rules that make the log safe.
    pub safeguards: Safeguards,
}

/// What a new owner begins with: the log that survived.
#[derive(Debug)]
pub struct Survived {
    /// The entries that some member may still lack.
    pub log: RecordLog,
    /// The term of the entry before the first of them.
    pub before: Term,
    /// Logical time of the last one.
    pub last_time: Nanos,
    /// The slot's next timer as of the last one.
    pub deadline: Nanos,
    /// How many outputs are known to be on the wire.
    pub released: Ordinal,
}

impl Default for Survived {
    fn default() -> Survived {
        Survived {
            log: RecordLog::new(1),
            before: Term(0),
            last_time: Nanos::ZERO,
            deadline: Nanos::MAX,
            released: Ordinal(0),
        }
    }
}

/// Why an entry was not appended.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// As many entries wait for their outputs as the window allows.
    WindowFull,
}

/// Why a member's frame was not taken.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Stale {
    /// Of another term.
    Term,
    /// Of another incarnation, or of a node that is no member.
    Incarnation,
    /// It claims what the owner never sent.
    Ahead,
    /// It does not parse.
    Malformed,
}

/// What taking a run of outputs came to.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// Outputs taken for the first time.
    pub new: u32,
    /// Outputs that had been taken before.
    pub repeated: u32,
}

/// The owner side of one slot.
#[derive(Debug)]
pub struct Owner {
    slot: Slot,
    term: Term,
    config: OwnerConfig,
    /// Entries kept until every member holds them; `log.next()` is the position the next one gets.
    log: RecordLog,
    /// The term of the entry before the first of them.
    before: Term,
    /// Nothing is committed before this entry is: the first of this term, if there were any before it.
    floor: Position,
    /// The last position when the newest map came: see [`Owner::is_confirmed`].
    map_tail: Position,
    last_time: Nanos,
    followers: Vec<Follower>,
    /// Index into `followers`.
    master: usize,
    master_seq: u32,
    committed: Position,
    stable: Position,
    /// Outputs taken from members and not yet handed to the outbox.
    outputs: RecordLog,
    last_cursor: Option<Cursor>,
    /// Outputs on the wire, counted from the first to the one before the first that is not.
    released: u64,
    /// For each output handed over from `released` on, whether the kernel has taken it.
    handed: std::collections::VecDeque<bool>,
    /// Every output up to here has been taken.
    answered: Position,
    /// When the oldest entry that waits for its outputs began to wait, or progress was last seen.
    waiting_since: Nanos,
    /// How often the owner has asked for late outputs since.
    hedges: u8,
    /// When it last did.
    hedged_at: Nanos,
    /// Since when entries have waited for a commit without any progress.
    uncommitted_since: Nanos,
    /// The next timer deadline (logical time) and the position that reported it.
    timer: (Position, Nanos),
    /// The position of a tick that has not been executed yet.
    tick: Option<Position>,
    /// When the members are to be told of progress, if no entry does so first.
    tell_at: Nanos,
    divergences: u64,
    demotions: u64,
    /// Outputs up to this ordinal were taken from others while the master's were late; since when they were waited for.
    rescued: Option<(u64, Nanos)>,
    /// How long the last answer took, until it is asked for.
    delay: Option<Nanos>,
}

impl Owner {
    /// The owner of a slot whose log is `survived`. `lane` gives each member's node the number of the link it is
    /// reached by.
    pub fn new(
        slot: Slot,
        term: Term,
        config: OwnerConfig,
        survived: Survived,
        group: &Group,
        lane: impl Fn(NodeId) -> usize,
    ) -> Owner {
        let Survived { log, before, last_time, deadline, released } = survived;
        let tail = Position(log.next() - 1);
        let first = Position(log.first() - 1);
        let mut owner = Owner {
            slot,
            term,
            config,
            log,
            before,
            floor: if config.safeguards.own_term && tail > Position(0) { tail.next() } else { Position(0) },
            map_tail: tail,
            last_time,
            followers: Vec::new(),
            master: 0,
            master_seq: 1,
            committed: first,
            stable: first,
            outputs: RecordLog::new(released.0),
            last_cursor: None,
            released: released.0,
            handed: std::collections::VecDeque::new(),
            answered: first,
            waiting_since: Nanos::ZERO,
            hedges: 0,
            hedged_at: Nanos::ZERO,
            uncommitted_since: Nanos::ZERO,
            timer: (tail, deadline),
            tick: None,
            tell_at: Nanos::MAX,
            divergences: 0,
            demotions: 0,
            rescued: None,
            delay: None,
        };
        owner.on_group(group, lane);
        owner
    }

    /// The slot.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The last position given out.
    pub fn tail(&self) -> Position {
        Position(self.log.next() - 1)
    }

    /// Entries up to here are acked by a commit set.
    pub fn committed(&self) -> Position {
        self.committed
    }

    /// Every output of the entries up to here has been taken.
    pub fn answered(&self) -> Position {
        self.answered
    }

    /// How many outputs are on the wire.
    pub fn released(&self) -> Ordinal {
        Ordinal(self.released)
    }

    /// Entries up to here are held by every member, and every learner that is waited for.
    pub fn stable(&self) -> Position {
        self.stable
    }

    /// The member whose outputs go out.
    pub fn master(&self) -> NodeId {
        self.followers[self.master].node
    }

    /// The members.
    pub fn followers(&self) -> &[Follower] {
        &self.followers
    }

    /// Whether half of what may be kept is: nobody is to be kept waiting for entries then.
    pub fn is_filling(&self) -> bool {
        self.log.len() as u64 * 2 >= self.config.window
    }

    /// The members, for marking them as queued.
    pub fn followers_mut(&mut self) -> &mut [Follower] {
        &mut self.followers
    }

    /// How long it took until everything was answered, once each time that it was.
    pub fn take_delay(&mut self) -> Option<Nanos> {
        self.delay.take()
    }

    /// Whether entries have waited for a commit for as long as `limit`.
    pub fn is_blocked(&self, now: Nanos, limit: Nanos) -> bool {
        self.committed < self.tail() && now.since(self.uncommitted_since) >= limit
    }

    /// How many outputs wait for a commit or the kernel, and entries for a commit.
    pub fn waiting(&self) -> u64 {
        (self.outputs.next() - self.released).max(self.tail().0 - self.committed.0)
    }

    /// How often two members' digests differed.
    pub fn divergences(&self) -> u64 {
        self.divergences
    }

    /// How often a member was given up because it held too little.
    pub fn demotions(&self) -> u64 {
        self.demotions
    }

    /// Bytes and records retained: entries and outputs not yet handed over.
    pub fn retained(&self) -> (usize, usize) {
        (self.log.size() + self.outputs.size(), self.log.len() + self.outputs.len())
    }

    /// Appends a packet stamped `time` (or the last entry's time, if that is later).
    pub fn append(&mut self, now: Nanos, entry: Entry<'_>) -> Result<Position, Refusal> {
        // Without the first entry of this term nothing that fills the window is ever committed.
        let opens = entry.kind == EntryKind::Tick && self.tail() < self.floor;
        if !opens {
            self.make_room()?;
        }
        if self.answered == self.tail() {
            self.waiting_since = now;
            self.hedges = 0;
        }
        if self.committed == self.tail() {
            self.uncommitted_since = now;
        }
        let time = entry.time.max(self.last_time);
        self.last_time = time;
        let position =
            Position(self.log.push_with(|bytes| Entry { time, term: self.term, ..entry }.write(bytes)));
        if entry.kind == EntryKind::Tick {
            self.tick = Some(position);
        }
        Ok(position)
    }

    /// Whether the window has room for an entry, if need be without those who hold least.
    fn make_room(&mut self) -> Result<(), Refusal> {
        if self.tail().0 - self.answered.0 >= self.config.window {
            return Err(Refusal::WindowFull);
        }
        // While the kernel takes nothing, members keep every output and the driver's queue grows.
        if self.outputs.next() - self.released >= self.config.window.saturating_mul(UNSENT_PER_ENTRY) {
            return Err(Refusal::WindowFull);
        }
        while self.log.len() as u64 >= self.config.window {
            if !self.outpace_learner(|_| true) && !self.demote_slowest() {
                return Err(Refusal::WindowFull);
            }
        }
        Ok(())
    }

    /// When the slot's next tick is due, in logical time; `Nanos::MAX`: no timer, or one is in flight. At once, as long as
    /// nothing can be committed for want of an entry of this term.
    pub fn tick_due(&self) -> Nanos {
        match self.tick {
            None if self.tail() < self.floor => Nanos::ZERO,
            None => self.timer.1,
            Some(_) => Nanos::MAX,
        }
    }

    /// Takes a run of outputs from the member of `node`: those that come next, each once.
    pub fn on_outputs(
        &mut self,
        now: Nanos,
        node: NodeId,
        boot: Boot,
        header: &frame::Outputs,
        mut rest: &[u8],
    ) -> Result<Taken, Stale> {
        let from = self.current(node, boot, header.term.get(), header.join.get())?;
        let mut taken = Taken::default();
        let mut ordinal = header.first.get();
        if ordinal > self.outputs.next() {
            self.ask_for_outputs(from, now);
            return Ok(taken);
        }
        while !rest.is_empty() {
            let (output, record, after) = Output::read(rest).ok_or(Stale::Malformed)?;
            rest = after;
            if ordinal < self.outputs.next() && self.config.safeguards.dedupe {
                taken.repeated += 1;
            } else {
                self.take(output, record, node)?;
                taken.new += 1;
            }
            ordinal += 1;
        }
        self.update_answered(now, from == self.master);
        if let Some((_, since)) = self.rescued.filter(|(to, _)| from == self.master && ordinal >= *to) {
            self.delay = Some(now.since(since));
            self.rescued = None;
        }
        Ok(taken)
    }

    fn take(&mut self, output: Output<'_>, record: &[u8], from: NodeId) -> Result<(), Stale> {
        if output.cursor.position > self.tail() {
            return Err(Stale::Ahead);
        }
        if self.config.safeguards.dedupe && self.last_cursor.is_some_and(|last| output.cursor <= last) {
            return Err(Stale::Malformed);
        }
        self.last_cursor = Some(output.cursor);
        self.outputs.push_with(|bytes| {
            bytes.extend_from_slice(record);
            if output.stamped && output.payload.len() >= 2 {
                let end = bytes.len();
                bytes[end - 2..].copy_from_slice(&from.0.to_be_bytes());
            }
        });
        Ok(())
    }

    /// Hands every output that may leave to `send`, in order, each once, with its ordinal; returns how many. Each
    /// counts as released when [`Owner::on_sent`] says that the kernel took it.
    pub fn release(&mut self, mut send: impl FnMut(Ordinal, LocalId, Endpoint, &[u8])) -> usize {
        let mut count = 0;
        while let Some(record) = self.outputs.get(self.outputs.first()) {
            let Some((output, _, _)) = Output::read(record) else {
                unreachable!("slot {}: an output that was taken parses", self.slot.0)
            };
            if self.config.safeguards.commit_wait && output.cursor.position > self.committed {
                break;
            }
            let ordinal = self.outputs.first();
            send(Ordinal(ordinal), output.local, output.to, output.payload);
            count += 1;
            self.handed.push_back(false);
            self.outputs.release_to(ordinal + 1);
        }
        if !self.config.safeguards.after_send {
            self.released = self.outputs.first();
            self.handed.clear();
        }
        count
    }

    /// The kernel took an output that was handed over. Returns whether `released` grew.
    pub fn on_sent(&mut self, now: Nanos, ordinal: Ordinal) -> bool {
        let Some(taken) =
            ordinal.0.checked_sub(self.released).and_then(|at| self.handed.get_mut(at as usize))
        else {
            return false;
        };
        *taken = true;
        let before = self.released;
        while self.handed.front() == Some(&true) {
            self.handed.pop_front();
            self.released += 1;
        }
        assert!(
            self.released <= self.outputs.first(),
            "slot {}: {} outputs on the wire, {} handed over",
            self.slot.0,
            self.released,
            self.outputs.first()
        );
        self.schedule_tell(now);
        self.released > before
    }

    fn schedule_tell(&mut self, now: Nanos) {
        if self.tell_at == Nanos::MAX {
            self.tell_at = now + self.config.tell_after;
        }
    }

    /// The follower that is `node` in exactly this life and join; `Stale` if there is none.
    fn current(&self, node: NodeId, boot: Boot, term: u32, join: u32) -> Result<usize, Stale> {
        let index = self.followers.iter().position(|f| f.node == node).ok_or(Stale::Incarnation)?;
        let follower = &self.followers[index];
        let same = follower.join == join && follower.boot == boot;
        if self.config.safeguards.incarnations && !same || follower.given_up() {
            return Err(Stale::Incarnation);
        }
        if self.config.safeguards.frame_term && Term(term) != self.term {
            return Err(Stale::Term);
        }
        Ok(index)
    }

    /// The term of the entry at `position`, if it is known; 0 before the first.
    fn term_at(&self, position: Position) -> Option<Term> {
        if position.next().0 == self.log.first() {
            return Some(self.before);
        }
        self.log.get(position.0).and_then(Entry::read).map(|(entry, _, _)| entry.term)
    }
}
