//! The checker: looks at a world from outside and says which invariant of the design does not hold.
//!
//! It knows what clients sent and received, and when; what each life of each member executed (written down by the
//! application itself); who is alive; and the agreed maps, which every node shows. It knows nothing of the core's own
//! bookkeeping. The numbers are those of the list of invariants in ARCHITECTURE.md.
//!
//! - this file: who released what, and when;
//! - `history`: what the members of one slot executed, as a tree: owners that die leave branches behind.

mod history;
mod loss;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::history::{History, Leaving};
use crate::app::Inbound;
use crate::proto::map::{ClusterMap, MapMember};
use crate::sim::test_app::{Execution, Sent, output_place};
use crate::types::{Boot, CallKey, Endpoint, LocalId, Nanos, NodeId, Slot, Term};

/// One life of a node.
pub type Life = (NodeId, Boot);

/// A packet of a client.
struct Packet {
    key: CallKey,
    source: Endpoint,
    local: LocalId,
    payload: Vec<u8>,
}

/// A datagram to a client, as it left a machine.
#[derive(Copy, Clone, Debug)]
pub struct Release<'a> {
    /// The slot the core named.
    pub slot: u16,
    /// The term of the owner that ordered it.
    pub term: Term,
    /// The node that sent it.
    pub by: Life,
    /// The service address it left from, and the term in which the sender believes to hold it.
    pub address: (usize, Term),
    /// The service endpoint it left from.
    pub local: LocalId,
    /// The client.
    pub to: Endpoint,
    /// The bytes.
    pub bytes: &'a [u8],
    /// Since when the sender's driver had it.
    pub handed: Nanos,
}

/// The checker of one world.
pub struct Checker {
    slots: Vec<History>,
    /// Every packet that clients sent, by number.
    sent: Vec<Packet>,
    /// The agreed maps, oldest first.
    agreed: Vec<Arc<ClusterMap>>,
    dead: BTreeSet<Life>,
    /// The highest term in which each service address was released from.
    terms: BTreeMap<usize, Term>,
    /// Duplicates that invariant 3 allows.
    duplicates: u64,
    /// Slots that lost released replies, as they may when a commit set has died.
    losses: u64,
    failure: Option<String>,
}

impl Checker {
    /// A checker of `slots` slots; `live`: owners change.
    pub fn new(slots: u16, live: bool) -> Checker {
        Checker {
            slots: (0..slots).map(|_| History::new(live)).collect(),
            sent: Vec::new(),
            agreed: Vec::new(),
            dead: BTreeSet::new(),
            terms: BTreeMap::new(),
            duplicates: 0,
            losses: 0,
            failure: None,
        }
    }

    /// The first thing that was wrong.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Writes down something that is wrong, unless something was before.
    pub fn fail(&mut self, now: Nanos, what: String) {
        if self.failure.is_none() {
            self.failure = Some(format!("at {now:?}: {what}"));
        }
    }

    /// A map that a node knows to be agreed on. There must be one of each version.
    pub fn agreed(&mut self, now: Nanos, map: &Arc<ClusterMap>) {
        match self.agreed.iter().find(|known| known.version == map.version) {
            Some(known) if **known != **map => {
                let what = format!("invariant 4 (one releaser): two maps of version {}", map.version);
                self.fail(now, what);
            }
            Some(_) => {}
            None => {
                let at = self.agreed.partition_point(|known| known.version < map.version);
                self.agreed.insert(at, Arc::clone(map));
                self.look_for_losses();
            }
        }
    }

    /// The newest agreed map.
    pub fn newest(&self) -> Option<&Arc<ClusterMap>> {
        self.agreed.last()
    }

    /// A process has ended, with all it held.
    pub fn died(&mut self, life: Life) {
        self.dead.insert(life);
        self.look_for_losses();
    }

    /// A client has sent its packet of this number (they count from 1).
    pub fn sent(&mut self, number: u32, key: CallKey, packet: &Inbound<'_>) {
        debug_assert_eq!(number as usize, self.sent.len() + 1);
        let payload = packet.payload.to_vec();
        self.sent.push(Packet { key, source: packet.source, local: packet.local, payload });
    }

    /// The owner accepted a client's packet, and lives to see it answered.
    pub fn accepted(&mut self, slot: u16, packet: &Inbound<'_>) {
        let number = packet_number(packet.payload);
        self.slots[usize::from(slot)].accepted(number);
    }

    /// The owner of a term, which still asks, is told that so many replies of a slot are on the wire, by a member of some
    /// version of the group (`counts`) or by somebody else.
    pub fn knew(&mut self, slot: u16, term: Term, released: u64, counts: bool) {
        if let Some(history) = self.slots.get_mut(usize::from(slot)) {
            history.knew(term, released, counts);
        }
    }

    /// A loop of a node follows a map: where it joins anew it forgets.
    pub fn follows(&mut self, life: Life, map: &ClusterMap, lane: usize) {
        let shards = usize::from(map.shards);
        for (slot, history) in self.slots.iter_mut().enumerate().filter(|(slot, _)| slot % shards == lane) {
            let group = map.group(Slot(slot as u16));
            let me = group.member(life.0).or(group.learner(life.0)).filter(|m| m.boot == life.1);
            me.into_iter().for_each(|me| history.joins(life, me.join));
        }
    }

    /// A member executed something. Invariant 1: agreement, of every member with the first and of the
    /// first with the reference.
    pub fn executed(&mut self, now: Nanos, life: Life, seen: Execution) {
        let (slot, position, time) = (seen.slot, seen.position, seen.time);
        let said = format!("{} slot {slot} position {position} time {time:?}", life.0);
        let terms = self.terms_of(slot);
        let sent = &self.sent;
        let honest = |number: u32, seen: &Execution| {
            let packet = (number as usize).checked_sub(1).and_then(|at| sent.get(at));
            packet
                .is_some_and(|p| p.key == seen.key && history::is_packet(seen, p.source, p.local, &p.payload))
        };
        let Some(history) = self.slots.get_mut(usize::from(slot)) else {
            return self.fail(now, format!("invariant 1 (agreement): {said}: no such slot"));
        };
        if let Err(what) = history.executed(life, seen, terms, honest) {
            self.fail(now, format!("invariant 1 (agreement): {said}: {what}"));
        }
    }

    /// A member goes on from a snapshot of what is named by this trail.
    pub fn restored(&mut self, life: Life, trail: u64) {
        self.slots.iter_mut().for_each(|history| history.restored(life, trail));
    }

    /// In the end a member of a slot has executed nothing: what it may have executed before, it has dropped.
    pub fn is_blank(&mut self, life: Life, slot: u16) {
        self.slots[usize::from(slot)].forgets(life);
    }

    /// How many logs a slot may have had that went different ways: one for each owner, and for each new beginning.
    fn terms_of(&self, slot: u16) -> usize {
        self.newest().map_or(1, |map| (map.owner(Slot(slot)).term.0.max(1) + map.lossy) as usize)
    }

    /// A reply left for a client. Invariants 2 (durable), 3 (exactly once), 4 (one releaser) and 5 (in order).
    pub fn released(&mut self, now: Nanos, release: Release<'_>) {
        if let Err(what) = self.try_released(now, release) {
            self.fail(now, what);
        }
    }

    fn try_released(&mut self, now: Nanos, release: Release<'_>) -> Result<(), String> {
        let Some((slot, position)) = output_place(release.bytes) else {
            return Err(format!("invariant 3 (exactly once): {} bytes nobody sent", release.bytes.len()));
        };
        let at = format!("slot {slot} position {position} by {} in term {}", release.by.0, release.term.0);
        let (address, term) = release.address;
        let newest = self.terms.entry(address).or_insert(term);
        if term < *newest {
            return Err(format!(
                "invariant 4 (one releaser): {at} from address {address}, held in term {}; term {} has released",
                term.0, newest.0
            ));
        }
        *newest = term;
        let Some(history) = self.slots.get_mut(usize::from(slot)).filter(|_| slot == release.slot) else {
            return Err(format!("invariant 3 (exactly once): {at} released for slot {}", release.slot));
        };
        let Some((moment, index)) = history.find(position, |sent| same(sent, &release))? else {
            return Err(format!("invariant 2 (durable): {at}: no member has sent these bytes"));
        };
        let leaving = Leaving { term: release.term, by: release.by, handed: release.handed, now };
        // What went on is not lost by a late word.
        if !history.is_on_path(moment) && !history.is_late(&leaving) {
            if !history.may_be_lost() {
                return Err(format!("invariant 2 (durable): {at}: a reply before it was lost"));
            }
            history.lose(moment);
            self.losses += 1;
        }
        let stamped = history.output(moment, index).stamped;
        self.duplicates += u64::from(history.release(moment, index, &leaving)?);
        let holders = history.holders(moment);
        let in_term = |map: &&Arc<ClusterMap>| map.owner(Slot(slot)).term == release.term;
        let mut maps = self.agreed.iter().filter(in_term);
        let durable = maps.any(|map| is_durable(map, slot, &holders)) || history.may_be_lost();
        if !durable {
            return Err(format!("invariant 2 (durable): {at} released, executed by {holders:?} only"));
        }
        let stamp = release.bytes.last_chunk().map_or(NodeId(0), |tail| NodeId(u16::from_be_bytes(*tail)));
        if stamped && !holders.iter().any(|(node, _)| *node == stamp) {
            return Err(format!(
                "invariant 2 (durable): {at} released from {stamp}, which has not executed it"
            ));
        }
        Ok(())
    }

    /// What is left to do: every accepted packet is to be executed, every output released, every timer of
    /// the past fired, and every member of `connected` as far as the furthest (if owners have given up
    /// members, only a commit set of each slot). Invariant 6 (liveness) wants this to become nothing.
    pub fn unfinished(&self, connected: &[NodeId], given_up: bool) -> Option<String> {
        let map = self.newest()?;
        self.slots.iter().enumerate().find_map(|(slot, history)| {
            let members = &map.group(Slot(slot as u16)).members;
            let lives = members.iter().filter(|m| connected.contains(&m.node)).map(|m| (m.node, m.boot));
            let lives: Vec<Life> = lives.collect();
            let end = history.end(&lives);
            let (there, late): (Vec<Life>, Vec<Life>) = lives.iter().partition(|l| history.at(**l) == end);
            let enough = given_up && commits(map, slot as u16, &there);
            if let Some((node, boot)) = late.first().filter(|_| !enough) {
                return Some(format!("slot {slot}: {node} ({}) is not as far as {there:?}", boot.0));
            }
            Some(format!("slot {slot}: {}", history.unfinished(end)?))
        })
    }

    /// Liveness did not hold.
    pub fn stuck(&mut self, now: Nanos, what: &str) {
        self.fail(now, format!("invariant 6 (liveness): {what}"));
    }

    /// Something the core keeps is larger than its limit.
    pub fn unbounded(&mut self, now: Nanos, what: &str) {
        self.fail(now, format!("invariant 7 (bounded): {what}"));
    }

    /// Duplicates that were allowed, and slots that lost something as they may.
    pub fn counts(&self) -> (u64, u64) {
        (self.duplicates, self.losses)
    }
}

/// The number in a client's packet.
fn packet_number(payload: &[u8]) -> u32 {
    payload.get(4..8).map_or(0, |number| number.iter().fold(0, |n, b| n << 8 | u32::from(*b)))
}

/// Whether a released datagram is this output: all but the releasing node's stamp.
fn same(sent: &Sent, release: &Release<'_>) -> bool {
    let len = sent.bytes.len();
    let compared = if sent.stamped { len.saturating_sub(2) } else { len };
    (sent.local, sent.to, len) == (release.local, release.to, release.bytes.len())
        && sent.bytes[..compared] == release.bytes[..compared]
}

/// Whether those who hold something are a commit set of the slot's members in `map`.
fn commits(map: &ClusterMap, slot: u16, holders: &[Life]) -> bool {
    let members = &map.group(Slot(slot)).members;
    is_commit_set(members, map.commit.into(), |m: &&MapMember| holders.contains(&(m.node, m.boot)))
}

/// The same, of any member set that a new owner would ask.
fn is_durable(map: &ClusterMap, slot: u16, holders: &[Life]) -> bool {
    let holds = |m: &&MapMember| holders.contains(&(m.node, m.boot));
    map.group(Slot(slot)).configurations().any(|set| is_commit_set(set, map.commit.into(), holds))
}

/// Whether `some` of `all` are enough, on enough hosts.
fn is_commit_set(all: &[MapMember], commit: usize, some: impl Fn(&&MapMember) -> bool) -> bool {
    let hosts = |members: &mut dyn Iterator<Item = &MapMember>| {
        members.map(|m| m.host).collect::<BTreeSet<_>>().len()
    };
    let count = all.iter().filter(&some).count();
    let spread = hosts(&mut all.iter().filter(&some)) >= hosts(&mut all.iter()).min(2);
    count >= commit.min(all.len()).max(1) && spread
}
