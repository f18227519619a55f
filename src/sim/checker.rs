//! The checker: looks at a world from outside and says which invariant of the design does not hold.
//!
//! It knows what clients sent and received, which packets the owner accepted, what each member executed
//! (written down by the application itself) and who is alive; nothing of the core's own bookkeeping. The
//! numbers are those of the list of invariants in ARCHITECTURE.md. Invariant 4 (one releaser) needs
//! address moves and will find its place in [`Checker::released`], which is told who released.

use std::collections::BTreeMap;

use crate::app::Inbound;
use crate::sim::fault::Layout;
use crate::sim::model::Model;
use crate::sim::test_app::{Execution, Sent, What, output_place};
use crate::types::{Boot, CallKey, Endpoint, LocalId, Nanos, NodeId};

/// A packet the owner took responsibility for.
struct Accepted {
    key: CallKey,
    source: Endpoint,
    local: LocalId,
    payload: Vec<u8>,
}

/// One output, and who released it.
struct Output {
    sent: Sent,
    released: bool,
}

/// What is known of one position of a slot's log, from the member that got there first.
#[derive(Default)]
struct Entry {
    executions: Vec<Execution>,
    outputs: Vec<Output>,
}

/// How far one member got: the position it is at and how many executions it has done there.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
struct Progress {
    position: u64,
    done: usize,
}

/// One slot as seen from outside.
#[derive(Default)]
struct SlotView {
    accepted: Vec<Accepted>,
    /// How many accepted packets have been executed by the member that is furthest.
    executed: usize,
    entries: BTreeMap<u64, Entry>,
    /// How far each life of each member got.
    members: BTreeMap<(NodeId, Boot), Progress>,
    model: Model,
    /// The cursor of each call's last released output.
    last_released: BTreeMap<CallKey, (u64, usize)>,
    unreleased: usize,
}

/// A datagram to a client, as it left the owner's machine.
#[derive(Copy, Clone, Debug)]
pub struct Release<'a> {
    /// The slot the core named.
    pub slot: u16,
    /// The service endpoint it left from.
    pub local: LocalId,
    /// The client.
    pub to: Endpoint,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// The checker of one world.
pub struct Checker {
    layout: Layout,
    boots: Vec<Boot>,
    slots: Vec<SlotView>,
    failure: Option<String>,
}

impl Checker {
    /// A checker for a world whose nodes start with these boots.
    pub fn new(layout: &Layout, boots: Vec<Boot>) -> Checker {
        let slots = (0..layout.slots()).map(|_| SlotView::default()).collect();
        Checker { layout: layout.clone(), boots, slots, failure: None }
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

    /// The owner accepted a client's packet.
    pub fn accepted(&mut self, slot: u16, key: CallKey, packet: &Inbound<'_>) {
        let payload = packet.payload.to_vec();
        let accepted = Accepted { key, source: packet.source, local: packet.local, payload };
        self.slots[usize::from(slot)].accepted.push(accepted);
    }

    /// A member executed something. Invariant 1: agreement, of every member with the first and of the
    /// first with the reference.
    pub fn executed(&mut self, now: Nanos, node: NodeId, boot: Boot, seen: Execution) {
        let slot = seen.slot;
        let said = format!("{node} slot {slot} position {}", seen.position);
        if let Err(what) = self.try_executed(node, boot, seen) {
            self.fail(now, format!("invariant 1 (agreement): {said}: {what}"));
        }
    }

    fn try_executed(&mut self, node: NodeId, boot: Boot, seen: Execution) -> Result<(), String> {
        let members = self.layout.members.get(usize::from(seen.slot)).ok_or("no such slot")?;
        if !members.contains(&node) {
            return Err("not a member of the slot".into());
        }
        let view = &mut self.slots[usize::from(seen.slot)];
        let life = (node, boot);
        view.arrive(life, seen.position)?;
        let progress = view.members.entry(life).or_default();
        let done = progress.done;
        progress.done += 1;
        let known = view.entries.get(&seen.position).and_then(|entry| entry.executions.get(done));
        match known {
            Some(first) if *first == seen => Ok(()),
            Some(first) => Err(format!("executed {seen:?}, another member {first:?}")),
            None => view.extend(life, seen),
        }
    }

    /// A reply left for a client. Invariants 2 (durable), 3 (exactly once) and 5 (in order).
    pub fn released(&mut self, now: Nanos, release: Release<'_>) {
        if let Err(what) = self.try_released(release) {
            self.fail(now, what);
        }
    }

    fn try_released(&mut self, release: Release<'_>) -> Result<(), String> {
        let Some((slot, position)) = output_place(release.bytes) else {
            return Err(format!("invariant 3 (exactly once): {} bytes nobody sent", release.bytes.len()));
        };
        let at = format!("slot {slot} position {position}");
        let Some(view) = self.slots.get_mut(usize::from(slot)).filter(|_| slot == release.slot) else {
            return Err(format!("invariant 3 (exactly once): {at} released for slot {}", release.slot));
        };
        let Some(entry) = view.entries.get_mut(&position) else {
            return Err(format!("invariant 2 (durable): {at} released, which nobody has executed"));
        };
        let found = entry.outputs.iter().position(|output| same(&output.sent, &release));
        let Some(index) = found else {
            return Err(format!("invariant 3 (exactly once): {at} released with other bytes than sent"));
        };
        let output = &mut entry.outputs[index];
        if output.released {
            return Err(format!("invariant 3 (exactly once): {at} output {index} released twice"));
        }
        output.released = true;
        let (key, stamped) = (output.sent.key, output.sent.stamped);
        let view = &mut self.slots[usize::from(slot)];
        view.unreleased -= 1;
        let last = view.last_released.insert(key, (position, index));
        if last.is_some_and(|last| last >= (position, index)) {
            return Err(format!("invariant 5 (in order): {at} output {index} released after {last:?}"));
        }
        let holders: Vec<NodeId> = view.holders(position);
        if !self.layout.commits(slot, &holders) {
            return Err(format!("invariant 2 (durable): {at} released, executed by {holders:?} only"));
        }
        let stamp = release.bytes.last_chunk().map_or(NodeId(0), |tail| NodeId(u16::from_be_bytes(*tail)));
        if stamped && !holders.contains(&stamp) {
            return Err(format!(
                "invariant 2 (durable): {at} released from {stamp}, which has not executed it"
            ));
        }
        Ok(())
    }

    /// What is left to do: every accepted packet is to be executed, every output released, every timer of
    /// the past fired, and every node of `connected` as far as the furthest (if owners have given up
    /// members, only a commit set of each slot). Invariant 6 (liveness) wants this to become nothing.
    pub fn unfinished(&self, connected: &[NodeId], given_up: bool) -> Option<String> {
        let mut slots = self.slots.iter().enumerate();
        let work = slots.find_map(|(slot, view)| Some(format!("slot {slot}: {}", view.unfinished()?)));
        work.or_else(|| self.behind(connected, given_up))
    }

    /// Which slot has members that are not as far as the furthest.
    fn behind(&self, connected: &[NodeId], given_up: bool) -> Option<String> {
        self.slots.iter().enumerate().find_map(|(slot, view)| {
            let end = view.end();
            let at = |m: NodeId| {
                let life = (m, self.boots[usize::from(m.0) - 1]);
                view.members.get(&life).copied().unwrap_or_default()
            };
            let members = self.layout.members[slot].iter().copied().filter(|m| connected.contains(m));
            let (there, late): (Vec<NodeId>, Vec<NodeId>) = members.partition(|m| at(*m) == end);
            if given_up && self.layout.commits(slot as u16, &there) {
                return None;
            }
            let first = late.first()?;
            Some(format!("slot {slot}: {first} is at {:?}, others at {end:?}", at(*first)))
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

    /// How many packets were accepted and how many outputs released.
    pub fn totals(&self) -> (u64, u64) {
        self.slots.iter().fold((0, 0), |(accepted, released), view| {
            let outputs: usize = view.entries.values().map(|entry| entry.outputs.len()).sum();
            (accepted + view.accepted.len() as u64, released + (outputs - view.unreleased) as u64)
        })
    }
}

/// Whether a released datagram is this output: all but the releasing node's stamp.
fn same(sent: &Sent, release: &Release<'_>) -> bool {
    let len = sent.bytes.len();
    let compared = if sent.stamped { len.saturating_sub(2) } else { len };
    (sent.local, sent.to, len) == (release.local, release.to, release.bytes.len())
        && sent.bytes[..compared] == release.bytes[..compared]
}

impl SlotView {
    /// `life` executes at `position`: it must have done everything known before it, from the first entry
    /// on. So a node that was restarted with empty memory cannot go on where its last life stood.
    fn arrive(&mut self, life: (NodeId, Boot), position: u64) -> Result<(), String> {
        let progress = self.members.entry(life).or_default();
        if position < progress.position {
            return Err(format!("executed after position {}", progress.position));
        }
        if position > progress.position {
            let left = self.entries.get(&progress.position).map_or(0, |entry| entry.executions.len());
            if left > progress.done {
                return Err(format!("left position {} after {} of {left}", progress.position, progress.done));
            }
            let mut between = self.entries.range(progress.position + 1..position);
            if let Some((skipped, _)) = between.next() {
                return Err(format!("skipped position {skipped}"));
            }
            *progress = Progress { position, done: 0 };
        }
        Ok(())
    }

    /// The first execution of its kind: nobody may have gone past it, and the reference must agree.
    fn extend(&mut self, life: (NodeId, Boot), seen: Execution) -> Result<(), String> {
        let position = seen.position;
        let past = self.members.iter().find(|(other, p)| **other != life && p.position > position);
        if let Some(((other, _), progress)) = past {
            return Err(format!("executed {seen:?}, which {other}, now at {}, did not", progress.position));
        }
        if let What::Packet { source, local, payload } = &seen.what {
            let next = self.accepted.get(self.executed).ok_or("executed a packet nobody accepted")?;
            if (next.key, next.source, next.local, &next.payload) != (seen.key, *source, *local, payload) {
                return Err("executed another packet than the one accepted next".into());
            }
            self.executed += 1;
        }
        self.model.step(&seen)?;
        let entry = self.entries.entry(position).or_default();
        if !seen.panicked {
            self.unreleased += seen.outputs.len();
            entry.outputs.extend(seen.outputs.iter().map(|s| Output { sent: s.clone(), released: false }));
        }
        entry.executions.push(seen);
        Ok(())
    }

    /// The members that have executed all that is known of `position`, dead ones included: they had it
    /// when they died, and the plan of faults never takes a whole commit set.
    fn holders(&self, position: u64) -> Vec<NodeId> {
        let whole = self.entries.get(&position).map_or(0, |entry| entry.executions.len());
        let has = |p: &Progress| p.position > position || (p.position == position && p.done >= whole);
        let mut nodes: Vec<NodeId> =
            self.members.iter().filter(|(_, p)| has(p)).map(|((node, _), _)| *node).collect();
        nodes.dedup();
        nodes
    }

    fn end(&self) -> Progress {
        let last = self.entries.last_key_value();
        last.map_or(Progress::default(), |(p, e)| Progress { position: *p, done: e.executions.len() })
    }

    fn unfinished(&self) -> Option<String> {
        if self.executed < self.accepted.len() {
            return Some(format!("{} of {} accepted packets executed", self.executed, self.accepted.len()));
        }
        if let Some(at) = self.model.next_deadline() {
            return Some(format!("a timer due at {at:?} has not fired"));
        }
        if self.unreleased == 0 {
            return None;
        }
        let missing = self.entries.iter().find_map(|(position, entry)| {
            let index = entry.outputs.iter().position(|output| !output.released)?;
            Some(format!("position {position} output {index}"))
        });
        Some(format!("{} outputs not released, first {}", self.unreleased, missing.unwrap_or_default()))
    }
}
