//! The control of each node, real: it beats over the virtual network in its own loop, and what it concludes is what the
//! node's shards are told. In worlds in which anybody may die it also votes, agrees on maps and grants leases.

use std::collections::VecDeque;
use std::rc::Rc;

use super::{Event, World};
use crate::engine::ShardReport;
use crate::engine::control::{Control, ControlConfig, ControlEvent, CouncilConfig};
use crate::sim::node::{News, Node, Sends};
use crate::sim::rng::Rng;
use crate::types::{Boot, Nanos, NodeId, NodeSet, Term};

/// Stands for the control's loop where a datagram names the loop it is for.
pub(super) const CONTROL: usize = usize::MAX;

/// How often the loop turns while the voters decide something.
const BUSY_TURN: Nanos = Nanos::from_micros(250);

/// The control's loop of one node.
pub struct Heart {
    pub(super) control: Control,
    inbox: VecDeque<(NodeId, Boot, Rc<[u8]>)>,
    /// Exit notices that came.
    pub(super) notices: Vec<(NodeId, Boot)>,
    /// What the shards have said since the last turn.
    pub(super) reports: Vec<(u16, ShardReport)>,
    /// It was asked to hand over what it holds.
    pub(super) asked: bool,
    /// It was, in this life.
    pub(super) drains: bool,
    /// The addresses it holds, and in which terms.
    held: Vec<Option<Term>>,
    /// Votes that its disk has not kept yet.
    pub(super) unsaved: Option<Vec<u8>>,
    /// What a turn wrote that stood still before it could send.
    pending: Option<Sends>,
    wake: Nanos,
    /// Version of the suspicions the shards have been told.
    told: Option<u64>,
}

/// How a turn of a control ends its process, if it does.
enum End {
    /// By the map.
    Fenced,
    /// It has handed over everything.
    Left,
    /// It cannot.
    Refused,
}

impl World {
    /// The heart of a node's new life.
    pub(super) fn new_heart(&self, index: usize) -> Heart {
        let (node, timing) = (&self.nodes[index], self.scenario.settings.timing);
        let election = (timing.dead_after.0 / timing.beat.0 / 3).max(5);
        let config = ControlConfig {
            node: node.id,
            boot: node.boot,
            peers: self.scenario.layout.ids().filter(|id| *id != node.id).collect(),
            shards: self.scenario.layout.shards,
            beat: timing.beat,
            suspect_after: timing.suspect_after,
            suspect_ceiling: Nanos::from_millis(50),
            settings: vec![("R".to_owned(), self.map.replicas.to_string())],
            settings_hash: u64::from(self.map.replicas),
            council: CouncilConfig {
                shape: self.scenario.layout.shape.clone(),
                voters: self.scenario.layout.voters.clone(),
                lease: timing.lease,
                dead_after: timing.dead_after,
                evict_after: timing.evict_after,
                lossy_go: true,
                stored: node.votes.0.clone(),
                birth: node.votes.1,
                election_ticks: election,
                promises: self.safeguards.promises,
            },
        };
        let control = match Control::new(config) {
            Ok(control) => control,
            Err(error) => unreachable!("{} cannot read what it saved: {error}", node.id),
        };
        Heart {
            control,
            inbox: VecDeque::new(),
            notices: Vec::new(),
            reports: Vec::new(),
            asked: false,
            drains: false,
            held: vec![None; self.map.addresses.len()],
            unsaved: None,
            pending: None,
            wake: Nanos::MAX,
            told: None,
        }
    }

    /// Lets the control's loop turn at `at`, unless it turns before.
    pub(super) fn wake_heart(&mut self, index: usize, at: Nanos) {
        let at = at.max(self.now);
        if let Some(heart) = &mut self.nodes[index].heart
            && at < heart.wake
        {
            heart.wake = at;
            self.queue.push(at, Event::Beat { node: index });
        }
    }

    /// A datagram for the control arrives. Where everything is as in a real cluster it waits for the next turn: only the
    /// loop's own appointments wake it.
    pub(super) fn heart_hears(&mut self, index: usize, from: NodeId, boot: Boot, bytes: Rc<[u8]>) {
        let limit = self.scenario.settings.inbox;
        let node = &mut self.nodes[index];
        if let Some(heart) = node.heart.as_mut().filter(|heart| node.alive && heart.inbox.len() < limit) {
            heart.inbox.push_back((from, boot, bytes));
            if !self.scenario.settings.live {
                let latency = Nanos(self.rng.range(0, 50_000));
                self.wake_heart(index, self.now + latency);
            }
        }
    }

    /// One turn of the control's loop.
    pub(super) fn beat(&mut self, index: usize) {
        let now = self.nodes[index].clock.read(self.now);
        let live = self.scenario.settings.live;
        let node = &mut self.nodes[index];
        let Some(heart) = node.heart.as_mut().filter(|heart| heart.wake == self.now) else { return };
        heart.wake = Nanos::MAX;
        if !node.alive || node.frozen > 0 {
            return;
        }
        for (from, boot, bytes) in heart.inbox.drain(..) {
            heart.control.on_peer(now, from, boot, &bytes);
        }
        for (of, boot) in heart.notices.drain(..) {
            heart.control.on_exit_notice(now, of, boot);
            self.coverage.notices += 1;
        }
        for (shard, shell) in node.loops.iter_mut().enumerate() {
            shell.heard.drain(..).for_each(|(from, boot)| heart.control.on_life(now, from, boot));
            heart.control.on_progress(now, shard as u16, shell.turns, shell.inbox.is_empty());
        }
        for (shard, report) in heart.reports.drain(..) {
            heart.control.on_report(shard, report);
        }
        if heart.control.next_timeout() <= now.mono {
            heart.control.on_timeout(now);
        }
        let mut end = None;
        if live {
            if std::mem::take(&mut heart.asked) && heart.control.drain().is_err() {
                end = Some(End::Refused);
            }
            heart.control.on_turn(now);
            if let Some(votes) = heart.control.take_votes() {
                heart.unsaved = Some(votes);
                let takes = self.scenario.disks.as_mut().map_or(Nanos::ZERO, disk_takes);
                if takes == Nanos::ZERO {
                    keep_votes(node);
                } else {
                    self.queue.push(self.now + takes, Event::Saved { node: index, boot: node.boot });
                }
            }
        }
        self.coverage.beats += 1;
        let mut sends = Sends::default();
        let Some(heart) = node.heart.as_mut() else { return };
        heart.control.flush(now, &mut sends);
        heart.pending = Some(sends);
        if live {
            end = match () {
                () if heart.control.is_fenced() => Some(End::Fenced),
                () if heart.control.has_left() => Some(End::Left),
                () => end,
            };
        }
        let (events, busy): (Vec<ControlEvent>, bool) =
            (heart.control.take_events().collect(), live && heart.control.is_busy());
        let mut next = node.clock.when(heart.control.next_timeout());
        let version = Some(heart.control.suspects_version());
        let news = std::mem::replace(&mut heart.told, version) != version;
        let late =
            if self.rng.chance(50) { self.rng.range(0, 3_000_000) } else { self.rng.range(0, 100_000) };
        next = next + Nanos(late);
        if busy {
            next = next.min(self.now + BUSY_TURN);
        }
        self.wake_heart(index, next);
        for event in events {
            match event {
                ControlEvent::Joined(node, boot) => {
                    self.nodes[index].known[usize::from(node.0) - 1] = Some(boot);
                    self.tell_news(index, News::Joined(node, boot));
                }
                ControlEvent::Proposed(change) => {
                    self.coverage.promoted += u64::from(change.contains("is a member of"));
                    self.coverage.dropped += u64::from(change.contains("is no member of"));
                    self.say(|w| format!("{} proposes: {change}", w.nodes[index].id));
                }
                event => self.say(|w| format!("{} tells: {event}", w.nodes[index].id)),
            }
        }
        if news {
            self.coverage.minds_changed += 1;
            self.tell_suspects(index);
        }
        if live {
            self.write_cells(index);
        }
        let strikes = live && self.rng.chance(100);
        if !(strikes && self.stand_still(index)) {
            self.finish_beat(index);
        }
        match end {
            None => {}
            Some(End::Fenced) => {
                self.coverage.fenced += 1;
                self.end_process(index, true);
                let at = self.now + Nanos(self.rng.range(300_000, 9_000_000));
                self.queue.push(at, Event::Start { node: index });
            }
            Some(End::Left) => {
                self.coverage.left += 1;
                self.end_process(index, true);
            }
            Some(End::Refused) => {
                self.coverage.drains_refused += 1;
                self.end_process(index, true);
            }
        }
    }

    /// A disk has kept what it was given.
    pub(super) fn saved(&mut self, index: usize, boot: Boot) {
        let node = &mut self.nodes[index];
        if node.boot == boot && keep_votes(node) {
            self.coverage.slow_saves += 1;
            self.wake_heart(index, self.now);
        }
    }

    /// What comes after the work of a turn: sending.
    pub(super) fn finish_beat(&mut self, index: usize) {
        let sends = self.nodes[index].heart.as_mut().and_then(|heart| heart.pending.take());
        sends.iter().for_each(|sends| self.send(index, CONTROL, sends));
    }

    /// Tells the node's loops of the newest map and the lease, and everybody of addresses that it has gained.
    fn write_cells(&mut self, index: usize) {
        let now = self.nodes[index].clock.read(self.now).mono;
        let timing = self.scenario.settings.timing;
        let node = &mut self.nodes[index];
        let (me, cells) = ((node.id, node.boot), &mut node.cells);
        let Some(heart) = &mut node.heart else { return };
        let (map, lease) = (heart.control.map().clone(), heart.control.lease_until());
        let newer = map.version > cells.map.as_ref().map_or(0, |known| known.version);
        let begins = cells.lease <= now && lease > now;
        let owner = map.addresses.iter().any(|a| (a.owner, a.boot) == me);
        let expires = owner && lease == Nanos::ZERO && cells.lease > Nanos::ZERO;
        cells.lease = lease;
        let grace = timing.dead_after - timing.lease;
        let mut gained = Vec::new();
        for (address, held) in heart.held.iter_mut().enumerate() {
            let owned = map.owns(address, me.0, me.1).then(|| map.addresses[address].term);
            if held.is_some() && (*held != owned || now >= lease + grace) {
                *held = None;
            }
            if let (None, Some(term), true) = (*held, owned, lease > now) {
                *held = Some(term);
                gained.push((address, term));
            }
        }
        if newer {
            cells.map = Some(map.clone());
        }
        self.coverage.leases_expired += u64::from(expires);
        if newer {
            self.say(|_| format!("{} knows map {}: {:?} {:?}", me.0, map.version, map.addresses, map.groups));
            self.checker.agreed(self.now, &map);
        }
        if newer || begins {
            let soon = self.now + Nanos(self.rng.range(0, 100_000));
            self.wake_all(index, soon);
        }
        for (address, term) in gained {
            self.announce(index, address, term);
        }
    }

    /// Whom the control of a node suspects, as far as one of its shards goes.
    pub(super) fn heart_suspects(&self, index: usize, shard: usize) -> NodeSet {
        let heart = self.nodes[index].heart.as_ref();
        heart.map_or(NodeSet::EMPTY, |heart| heart.control.suspects(shard as u16))
    }
}

/// What the node's control has given its disk is there; false if the life that gave it has ended.
fn keep_votes(node: &mut Node) -> bool {
    let Some(heart) = &mut node.heart else { return false };
    node.votes.0 = heart.unsaved.take();
    heart.control.on_votes_saved();
    true
}

/// How long a disk that others use, too, takes for a save.
fn disk_takes(rng: &mut Rng) -> Nanos {
    Nanos(match rng.range(0, 99) {
        0..70 => rng.range(50_000, 500_000),
        70..95 => rng.range(500_000, 20_000_000),
        _ => rng.range(20_000_000, 400_000_000),
    })
}
