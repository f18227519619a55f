//! What the members of one slot executed, as a tree. Without changes of owner it is a line; an owner that dies may leave
//! behind a branch that some members executed and nobody answered from. Every execution names what was executed before
//! it (its trail), so it is known where each member stands, whatever snapshot it began with.

use std::collections::BTreeMap;

use super::{Life, packet_number};
use crate::sim::model::Model;
use crate::sim::test_app::{Execution, Sent, What};
use crate::types::{CallKey, Endpoint, LocalId, Nanos, Term};

/// The moment before anything was executed.
const GENESIS: usize = 0;

/// One output, and who released it in which terms.
struct Output {
    sent: Sent,
    releases: Vec<(Term, Life)>,
}

/// How an output leaves: of which owner's term, from which node, since when that one's driver has had it, and now.
pub(super) struct Leaving {
    pub(super) term: Term,
    pub(super) by: Life,
    pub(super) handed: Nanos,
    pub(super) now: Nanos,
}

/// One execution, in the tree.
struct Moment {
    parent: usize,
    depth: usize,
    /// None: genesis.
    execution: Option<Execution>,
    /// The trail that whoever executes next from here names.
    trail: u64,
    children: Vec<usize>,
    /// How many outputs there were before its own.
    ordinal: u64,
    outputs: Vec<Output>,
}

/// See the module's page.
pub(super) struct History {
    live: bool,
    moments: Vec<Moment>,
    by_trail: BTreeMap<u64, usize>,
    by_position: BTreeMap<u64, Vec<usize>>,
    /// The reference, at the moments where the tree may go on; others are worked out again.
    models: BTreeMap<usize, Model>,
    members: BTreeMap<Life, usize>,
    /// Where lives stood that have forgotten it since, and the join by which each is a member.
    former: Vec<(Life, usize)>,
    joins: BTreeMap<Life, u32>,
    /// How often the tree has parted.
    forks: usize,
    /// The last moment of which something was released: what is released later comes after it, and before it lies what
    /// must never be lost.
    frontier: usize,
    /// A commit set has died: what it held may be lost; since the frontier was there.
    broken: bool,
    may_be_lost: bool,
    /// The highest term of an owner that something was released of, and since when.
    newest: (Term, Nanos),
    /// Something was lost, or may be.
    had_losses: bool,
    /// Where each packet was executed.
    packets: BTreeMap<u32, Vec<usize>>,
    /// Packets that must be executed; in a world whose owner never dies, in this order.
    accepted: Vec<u32>,
    executed: usize,
    /// The last release of each call, as term and ordinal; and the highest ordinal ever.
    last: BTreeMap<CallKey, (Term, u64, u64)>,
    /// How many replies somebody who answered the owner of a term knew to be on the wire: members, and others.
    knew: BTreeMap<Term, (u64, u64)>,
}

/// Whether this is the execution of this packet.
pub(super) fn is_packet(seen: &Execution, source: Endpoint, local: LocalId, payload: &[u8]) -> bool {
    match &seen.what {
        What::Packet { source: s, local: l, payload: p } => {
            (*s, *l, p.as_slice()) == (source, local, payload)
        }
        What::Timer(_) => false,
    }
}

impl History {
    pub(super) fn new(live: bool) -> History {
        let genesis = Moment {
            parent: GENESIS,
            depth: 0,
            execution: None,
            trail: Model::default().trail(),
            children: Vec::new(),
            ordinal: 0,
            outputs: Vec::new(),
        };
        History {
            live,
            by_trail: BTreeMap::from([(genesis.trail, GENESIS)]),
            moments: vec![genesis],
            by_position: BTreeMap::new(),
            models: BTreeMap::from([(GENESIS, Model::default())]),
            members: BTreeMap::new(),
            former: Vec::new(),
            joins: BTreeMap::new(),
            forks: 0,
            frontier: GENESIS,
            broken: false,
            may_be_lost: false,
            newest: (Term::default(), Nanos::ZERO),
            had_losses: false,
            packets: BTreeMap::new(),
            accepted: Vec::new(),
            executed: 0,
            last: BTreeMap::new(),
            knew: BTreeMap::new(),
        }
    }

    pub(super) fn accepted(&mut self, number: u32) {
        self.accepted.push(number);
    }

    pub(super) fn knew(&mut self, term: Term, released: u64, counts: bool) {
        let knew = self.knew.entry(term).or_default();
        let knew = if counts { &mut knew.0 } else { &mut knew.1 };
        *knew = released.max(*knew);
    }

    /// A life of a member joins; if it had before, it begins with nothing, and what it had it has no more.
    pub(super) fn joins(&mut self, life: Life, join: u32) {
        let before = self.joins.insert(life, join);
        if before.is_some_and(|before| before != join) {
            self.forgets(life);
        }
    }

    /// What a life had it has no more.
    pub(super) fn forgets(&mut self, life: Life) {
        if let Some(at) = self.members.remove(&life) {
            self.former.push((life, at));
        }
    }

    /// Where a life of a member stands.
    pub(super) fn at(&self, life: Life) -> usize {
        self.members.get(&life).copied().unwrap_or(GENESIS)
    }

    /// Where the furthest of these lives stands.
    pub(super) fn end(&self, lives: &[Life]) -> usize {
        let places = lives.iter().map(|life| self.at(*life));
        places.max_by_key(|at| self.moments[*at].depth).unwrap_or(GENESIS)
    }

    /// Whether `moment` is `at` or comes before it.
    fn holds(&self, mut at: usize, moment: usize) -> bool {
        while self.moments[at].depth > self.moments[moment].depth {
            at = self.moments[at].parent;
        }
        at == moment
    }

    /// For each moment whether it is `at` or comes before it.
    fn path_to(&self, mut at: usize) -> Vec<bool> {
        let mut path = vec![false; self.moments.len()];
        path[GENESIS] = true;
        while at != GENESIS {
            path[at] = true;
            at = self.moments[at].parent;
        }
        path
    }

    /// The lives that have executed `moment`, dead ones included: they had it when they died.
    pub(super) fn holders(&self, moment: usize) -> Vec<Life> {
        let lives = self.members.iter().map(|(life, at)| (*life, *at)).chain(self.former.iter().copied());
        lives.filter(|(_, at)| self.holds(*at, moment)).map(|(life, _)| life).collect()
    }

    /// `life` executes. `terms`: how many logs there may have been that went different ways.
    pub(super) fn executed(
        &mut self,
        life: Life,
        seen: Execution,
        terms: usize,
        honest: impl Fn(u32, &Execution) -> bool,
    ) -> Result<(), String> {
        let mut parent = self.at(life);
        if self.moments[parent].trail != seen.trail {
            if !self.live {
                return Err("did not go on where it stood".into());
            }
            parent = *self.by_trail.get(&seen.trail).ok_or("went on from where nobody has been")?;
        }
        let children = &self.moments[parent].children;
        let same = children.iter().find(|c| self.moments[**c].execution.as_ref() == Some(&seen));
        if let Some(child) = same {
            self.members.insert(life, *child);
            return Ok(());
        }
        if let Some(other) = children.first() {
            let other = self.moments[*other].execution.as_ref();
            let entry = |e: &Execution| (e.position, e.time, e.key, e.what.clone());
            let diverged = other.is_some_and(|other| entry(other) == entry(&seen));
            if diverged || !self.live || self.forks + 1 >= terms {
                return Err(format!("executed {seen:?}, another member {other:?}, in {terms} terms"));
            }
            self.forks += 1;
        }
        self.extend(life, parent, seen, honest)
    }

    /// `life` stands where this trail leads to, if that is in this slot.
    pub(super) fn restored(&mut self, life: Life, trail: u64) {
        let known = self.by_trail.get(&trail).filter(|at| **at != GENESIS);
        if let Some(at) = known.copied() {
            self.members.insert(life, at);
        }
    }

    /// The first execution of its kind: the reference must agree, and a packet must be a client's, for the first time.
    fn extend(
        &mut self,
        life: Life,
        parent: usize,
        seen: Execution,
        honest: impl Fn(u32, &Execution) -> bool,
    ) -> Result<(), String> {
        let at = self.moments.len();
        if let What::Packet { payload, .. } = &seen.what {
            let number = packet_number(payload);
            if !honest(number, &seen) {
                return Err("executed a packet nobody sent".into());
            }
            let before = self.packets.get(&number).into_iter().flatten();
            if before.clone().any(|moment| self.holds(parent, *moment)) {
                return Err(format!("executed packet {number} again"));
            }
            if !self.live {
                if self.accepted.get(self.executed) != Some(&number) {
                    return Err("executed another packet than the one accepted next".into());
                }
                self.executed += 1;
            }
            self.packets.entry(number).or_default().push(at);
        }
        let mut model = self.take_model(parent)?;
        model.step(&seen)?;
        let sent = if seen.panicked { &[][..] } else { &seen.outputs };
        let outputs = sent.iter().map(|s| Output { sent: s.clone(), releases: Vec::new() }).collect();
        let before = &self.moments[parent];
        let (depth, ordinal) = (before.depth + 1, before.ordinal + before.outputs.len() as u64);
        let trail = model.trail();
        self.models.insert(at, model);
        self.by_trail.insert(trail, at);
        self.by_position.entry(seen.position).or_default().push(at);
        let (execution, children) = (Some(seen), Vec::new());
        self.moments.push(Moment { parent, depth, execution, trail, children, ordinal, outputs });
        self.moments[parent].children.push(at);
        self.members.insert(life, at);
        Ok(())
    }

    /// The reference as of a moment.
    fn take_model(&mut self, moment: usize) -> Result<Model, String> {
        if let Some(model) = self.models.remove(&moment) {
            return Ok(model);
        }
        let mut path = Vec::new();
        let mut at = moment;
        while at != GENESIS {
            path.push(at);
            at = self.moments[at].parent;
        }
        let mut model = Model::default();
        for at in path.into_iter().rev() {
            self.moments[at].execution.iter().try_for_each(|seen| model.step(seen))?;
        }
        Ok(model)
    }

    /// The output at `position` that `same` recognises: where the tree has several, on the path if it can be.
    pub(super) fn find(
        &self,
        position: u64,
        same: impl Fn(&Sent) -> bool,
    ) -> Result<Option<(usize, usize)>, String> {
        let Some(moments) = self.by_position.get(&position) else {
            return Err(format!(
                "invariant 2 (durable): position {position} released, nobody has executed it"
            ));
        };
        let found = moments.iter().filter_map(|at| {
            let index = self.moments[*at].outputs.iter().position(|output| same(&output.sent))?;
            Some((*at, index))
        });
        Ok(found.max_by_key(|(at, _)| self.is_on_path(*at)))
    }

    /// Whether a moment lies before or behind everything that was released.
    pub(super) fn is_on_path(&self, moment: usize) -> bool {
        self.holds(self.frontier, moment) || self.holds(moment, self.frontier)
    }

    pub(super) fn output(&self, moment: usize, index: usize) -> &Sent {
        &self.moments[moment].outputs[index].sent
    }

    /// A commit set of a member set that is needed is dead now, or none is.
    pub(super) fn set_broken(&mut self, broken: bool) {
        self.broken = broken;
        self.may_be_lost |= broken;
        self.had_losses |= broken;
    }

    pub(super) fn may_be_lost(&self) -> bool {
        self.may_be_lost
    }

    /// Whether it is a word of an owner, from before something was lost, that replies of a later owner have overtaken while
    /// a node's kernel held it.
    pub(super) fn is_late(&self, leaving: &Leaving) -> bool {
        let (newest, since) = self.newest;
        self.had_losses && leaving.term < newest && leaving.handed < since
    }

    /// The cluster goes on without what was released so far, from `moment`.
    pub(super) fn lose(&mut self, moment: usize) {
        (self.frontier, self.may_be_lost) = (moment, self.broken);
        self.last.clear();
        self.knew.clear();
    }

    /// An output leaves. Whether that is a duplicate, of those that are allowed.
    pub(super) fn release(&mut self, moment: usize, index: usize, leaving: &Leaving) -> Result<bool, String> {
        let Leaving { term, by, now, .. } = *leaving;
        let (members, others) = self.knew.get(&term).copied().unwrap_or_default();
        // Where something may be lost, others may count replies that are not of the log that is left.
        let knew = if self.may_be_lost { members } else { members.max(others) };
        let late = self.is_late(leaving) && !self.is_on_path(moment);
        if term > self.newest.0 {
            self.newest = (term, now);
        }
        if self.holds(moment, self.frontier) {
            self.frontier = moment;
        }
        let Moment { execution, ordinal, outputs, .. } = &mut self.moments[moment];
        let position = execution.as_ref().map_or(0, |seen| seen.position);
        let at = format!("position {position} output {index} in term {}", term.0);
        let ordinal = *ordinal + index as u64;
        let output = &mut outputs[index];
        if output.releases.contains(&(term, by)) {
            return Err(format!("invariant 3 (exactly once): {at} released twice by {}", by.0));
        }
        let again = !output.releases.is_empty();
        let other_term = output.releases.iter().all(|(t, _)| *t != term);
        if again && other_term && ordinal < knew {
            return Err(format!("invariant 3 (exactly once): {at} released again, which a survivor knew"));
        }
        output.releases.push((term, by));
        let key = output.sent.key;
        if late {
            return Ok(again);
        }
        let last = self.last.get(&key).copied();
        let back = |(t, before, most): (Term, u64, u64)| {
            !again && (ordinal < most || t == term && ordinal <= before)
        };
        if last.is_some_and(back) {
            return Err(format!("invariant 5 (in order): {at}, ordinal {ordinal}, released after {last:?}"));
        }
        let most = last.map_or(ordinal, |(_, _, most)| most.max(ordinal));
        self.last.insert(key, (term, ordinal, most));
        Ok(again)
    }

    /// What is left to do where all members stand at `end`.
    pub(super) fn unfinished(&self, end: usize) -> Option<String> {
        let path = self.path_to(end);
        if !path[self.frontier] && !self.may_be_lost {
            let lost = self.moments[self.frontier].execution.as_ref().map_or(0, |seen| seen.position);
            return Some(format!("position {lost} was answered, and no member holds it"));
        }
        if !self.live && self.executed < self.accepted.len() {
            return Some(format!("{} of {} accepted packets executed", self.executed, self.accepted.len()));
        }
        let done = |number: &&u32| {
            self.packets.get(number).is_some_and(|moments| moments.iter().any(|moment| path[*moment]))
        };
        if let Some(number) = self.accepted.iter().find(|number| !done(number)) {
            return Some(format!("accepted packet {number} was not executed"));
        }
        if let Some(at) = self.models.get(&end).and_then(Model::next_deadline) {
            return Some(format!("a timer due at {at:?} has not fired"));
        }
        let mut held = self.moments.iter().enumerate().filter(|(at, _)| path[*at]).map(|(_, moment)| moment);
        let (position, index) = held.find_map(|moment| {
            let index = moment.outputs.iter().position(|output| output.releases.is_empty())?;
            Some((moment.execution.as_ref().map_or(0, |seen| seen.position), index))
        })?;
        Some(format!("position {position} output {index} is not released"))
    }
}
