//! The agreed part of a control: the cluster map, the voter if this node is one, leases and promises.
//!
//! **Leases.** A voter's beat that echoes an owner's newest one, with the flag that grants, renews that owner's lease
//! from the time at which it had sent the beat that is echoed. An owner may release while a majority of the voters has
//! done so within LEASE.
//!
//! **Promises.** A voter that has not heard an owner for DEAD_AFTER, or for long no report of it that says it has a lease,
//! grants it nothing any more under the present map. It says so once its last grant has run out; a majority of such promises lets
//! the leader move the owner's addresses. A promise lives in memory: a voter that has restarted grants nothing until the
//! map has its new life, and that is another map.

mod failover;
mod lead;
mod pace;
mod report;
mod stuck;

use std::sync::Arc;

pub use failover::Failover;

use super::Peer;
use crate::engine::ShardReport;
use crate::proto::map::{ClusterMap, MapNode, MapShape, NodeState};
use crate::proto::steward::{Change, NodeView, Steward, StewardConfig, drain_refused};
use crate::proto::voter::{Voter, VoterCounters, VoterError};
use crate::types::{Boot, Nanos, NodeId, NodeSet};
use crate::wire::council::{DRAINING, LEASE_OK};

/// Clocks of two machines run at rates that differ by less than this part.
const DRIFT_PER_CENT: u64 = 2;
/// The steward, which goes through the whole map, is asked the same again after this long.
const ASK_AGAIN: Nanos = Nanos::from_millis(10);
/// How often a peer with an older map is sent the newest one.
const MAP_AGAIN_AFTER: Nanos = Nanos::from_millis(3);
/// How long nodes may take to meet.
const MEET_WITHIN: Nanos = Nanos::from_secs(1);
/// How long an owner that drains waits at least, after it has stopped releasing, for the members to hear what is on the
/// wire.
const DRAIN_PAUSE: Nanos = Nanos::from_millis(5);
/// The level of the applications that this version supports.
const APP_LEVEL: u16 = 1;

/// What a council needs to know.
#[derive(Clone, Debug)]
pub struct CouncilConfig {
    /// What all maps have in common.
    pub shape: MapShape,
    /// The voters.
    pub voters: Vec<NodeId>,
    /// How long a lease holds.
    pub lease: Nanos,
    /// After how much silence an owner loses it for good.
    pub dead_after: Nanos,
    /// After how much silence a node's slots get another member.
    pub evict_after: Nanos,
    /// Whether slots whose holders have all died go on.
    pub lossy_go: bool,
    /// What this voter saved when it last lived.
    pub stored: Option<Vec<u8>>,
    /// What its vote file was born with.
    pub birth: u64,
    /// Ticks (beats) of silence after which voters look for another leader.
    pub election_ticks: u64,
    /// Whether addresses move by promises only, and leases are granted under the present map only: what a test switches
    /// off to see the checker notice.
    pub promises: bool,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Council {
    pub(super) config: CouncilConfig,
    me: NodeId,
    boot: Boot,
    started: Nanos,
    map: Arc<ClusterMap>,
    /// The map in the form in which it travels.
    map_bytes: Vec<u8>,
    voter: Option<Voter>,
    /// The vote file is not the one the voters know.
    disowned: bool,
    steward: Steward,
    /// Promises by node: no lease under maps up to this version.
    promised: Vec<(NodeId, u32)>,
    /// Lives that have ended, by their supervisors.
    pub(super) exited: Vec<(NodeId, Boot)>,
    reports: Vec<ShardReport>,
    lease_until: Nanos,
    held_until: Nanos,
    pub(super) draining: bool,
    /// From when on nothing leaves here any more, for an owner that drains.
    stopped_at: Option<Nanos>,
    /// Since when a promise holds back an owner that is there, and how often that was mended.
    held_back: (Option<Nanos>, u32),
    /// Until when links are looked at between beats.
    astir_until: Nanos,
    /// Since when which leader could be relieved, and under which map.
    apart_since: Option<((u32, NodeId), Nanos)>,
    /// What the steward was last asked without finding anything to change: map, time, views.
    unchanged: Option<(u32, Nanos, Vec<NodeView>)>,
    pub(super) changes: Vec<Change>,
    pub(super) failovers: Vec<Failover>,
    letters: Vec<(NodeId, Vec<u8>)>,
    /// While votes are being saved: the letters that follow from them.
    unsaved: Option<Vec<(NodeId, Vec<u8>)>>,
}

/// What one turn of the council looks at.
pub(super) struct Turn<'a> {
    pub(super) now: Nanos,
    pub(super) wall: Nanos,
    pub(super) peers: &'a mut [Peer],
    /// For how long each peer was silent, in their order; `None`: never heard.
    pub(super) silence: &'a [Option<Nanos>],
    pub(super) suspects: NodeSet,
}

impl Council {
    pub(super) fn new(
        me: NodeId,
        boot: Boot,
        shards: u16,
        config: CouncilConfig,
    ) -> Result<Council, VoterError> {
        let votes = config.voters.contains(&me);
        let voter = match votes {
            true => Some(Voter::new(
                me,
                &config.voters,
                config.stored.as_deref(),
                config.birth,
                boot,
                config.election_ticks,
            )?),
            false => None,
        };
        let steward = Steward::new(StewardConfig {
            shape: config.shape.clone(),
            voters: config.voters.clone(),
            evict_after: config.evict_after,
            lossy_go: config.lossy_go,
        });
        let mut council = Council {
            me,
            boot,
            started: Nanos::MAX,
            map: Arc::new(config.shape.empty_map()),
            map_bytes: Vec::new(),
            voter,
            disowned: false,
            steward,
            promised: Vec::new(),
            exited: Vec::new(),
            reports: vec![ShardReport::default(); usize::from(shards)],
            lease_until: Nanos::ZERO,
            held_until: Nanos::ZERO,
            draining: false,
            stopped_at: None,
            held_back: (None, 0),
            astir_until: Nanos::ZERO,
            apart_since: None,
            unchanged: None,
            changes: Vec::new(),
            failovers: Vec::new(),
            letters: Vec::new(),
            unsaved: None,
            config,
        };
        council.take_decided(Nanos::ZERO, Nanos::ZERO, &[]);
        let fits = |map: &ClusterMap| map.fits(&council.config.shape);
        match &council.voter {
            Some(voter) if !voter.holds_only(fits) => Err(VoterError::OtherSettings),
            _ => Ok(council),
        }
    }

    pub(super) fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    pub(super) fn lease_until(&self) -> Nanos {
        self.lease_until
    }

    pub(super) fn held_until(&self) -> Nanos {
        self.held_until
    }

    pub(super) fn leads(&self) -> bool {
        self.voter.as_ref().is_some_and(Voter::is_leader)
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        self.voter.as_ref().and_then(Voter::leader)
    }

    pub(super) fn voter_counters(&self) -> Option<VoterCounters> {
        self.voter.as_ref().map(Voter::counters)
    }

    pub(super) fn is_disowned(&self) -> bool {
        self.disowned
    }

    pub(super) fn on_shard(&mut self, shard: u16, report: ShardReport) {
        if let Some(known) = self.reports.get_mut(usize::from(shard)) {
            *known = report;
        }
    }

    /// Slots of this node that were recovered from too few, slots that stop for it, and groups that had lost all members.
    pub(super) fn losses(&self) -> (u32, u32, u32) {
        let sum = |of: fn(&ShardReport) -> u32| self.reports.iter().map(of).sum();
        (sum(|r| r.lossy), sum(|r| r.stopped), self.map.lossy)
    }

    /// Whether the map says that this life is over.
    pub(super) fn is_fenced(&self) -> bool {
        let node = self.map.node(self.me);
        node.is_some_and(|n| n.boot > self.boot || n.boot == self.boot && n.state == NodeState::Gone)
    }

    /// Whether it has handed over everything, or never had anything.
    pub(super) fn has_left(&self) -> bool {
        self.draining && !self.map.is_live(self.me, self.boot)
    }

    pub(super) fn drain(&mut self) -> Result<(), String> {
        if let Some(why) = drain_refused(&self.map, self.me).filter(|_| self.map.is_live(self.me, self.boot))
        {
            return Err(why);
        }
        self.draining = true;
        Ok(())
    }

    fn has_address(&self, node: NodeId) -> bool {
        self.map.addresses.iter().any(|a| a.owner == node)
    }

    fn owns(&self, node: NodeId, boot: Boot) -> bool {
        self.map.addresses.iter().any(|a| (a.owner, a.boot) == (node, boot))
    }

    /// Another voter's letter.
    pub(super) fn on_consensus(&mut self, from: NodeId, letter: &[u8]) {
        if let Some(voter) = &mut self.voter {
            voter.on_message(from, letter);
        }
    }

    /// A map that a peer knows to be agreed on.
    pub(super) fn on_map(&mut self, now: Nanos, wall: Nanos, peers: &[Peer], bytes: &[u8]) -> bool {
        let Ok(map) = postcard::from_bytes::<ClusterMap>(bytes) else { return false };
        if !map.fits(&self.config.shape) {
            return false;
        }
        self.install(now, wall, peers, map);
        true
    }

    fn take_decided(&mut self, now: Nanos, wall: Nanos, peers: &[Peer]) {
        // A majority has what several have decided; what one alone decides counts once that is durable.
        if self.voter.as_ref().is_some_and(Voter::is_alone) && !self.is_saved() {
            return;
        }
        while let Some(map) = self.voter.as_mut().and_then(Voter::take_decided) {
            self.install(now, wall, peers, map);
        }
    }

    fn install(&mut self, now: Nanos, wall: Nanos, peers: &[Peer], map: ClusterMap) {
        if map.version <= self.map.version || !map.fits(&self.config.shape) {
            return;
        }
        self.note_failovers(now, wall, peers, &map);
        self.stir(now);
        self.map = Arc::new(map);
        self.map_bytes = postcard::to_stdvec(&*self.map).unwrap_or_default();
        if let Some(voter) = &mut self.voter {
            self.disowned = voter.on_agreed(&self.map);
        }
    }

    /// Everything that follows from time and from what was heard.
    pub(super) fn turn(&mut self, mut turn: Turn<'_>, tick: bool) {
        if self.started == Nanos::MAX {
            self.started = turn.now;
        }
        if tick && let Some(voter) = &mut self.voter {
            voter.tick();
        }
        self.take_decided(turn.now, turn.wall, turn.peers);
        turn.peers.iter_mut().for_each(|peer| peer.delegate.stamp(turn.now));
        self.watch(&turn);
        self.promise(&mut turn);
        self.renew(&turn);
        self.time_failovers(turn.now);
        self.stand(&turn);
        self.propose(&turn);
        self.take_decided(turn.now, turn.wall, turn.peers);
    }

    /// Whether its supervisor says that this life of a node, or a later one, has ended.
    fn has_ended(&self, node: NodeId, boot: Boot) -> bool {
        self.exited.iter().any(|(n, b)| *n == node && *b >= boot)
    }

    /// The same of the life of a peer that was last heard, or, before any was, of the one agreed on.
    fn is_over(&self, peer: &Peer) -> bool {
        let agreed = || self.map.node(peer.node).map_or(Boot(0), |n| n.boot);
        self.has_ended(peer.node, peer.boot.unwrap_or_else(agreed))
    }

    /// Whether a peer is silent: for this long, or ever since this node has lived, or by its supervisor's word.
    fn is_silent(&self, now: Nanos, peer: &Peer, silence: Option<Nanos>) -> bool {
        self.is_over(peer)
            || !peer.joined && now.since(self.started) >= MEET_WITHIN.max(self.config.dead_after)
            || peer.joined && silence.is_some_and(|silence| silence >= self.config.dead_after)
    }

    /// Owners that are silent, or stuck, get no lease any more under this map.
    fn promise(&mut self, turn: &mut Turn<'_>) {
        if self.voter.is_none() {
            return;
        }
        let stuck = self.stuck(turn);
        for (at, peer) in turn.peers.iter_mut().enumerate() {
            let owner = self.map.addresses.iter().filter(|a| a.owner == peer.node).map(|a| a.boot).max();
            let Some(boot) = owner else { continue };
            // A life that was never heard here has been silent for as long as this node has lived.
            let other = peer.boot.is_none_or(|b| b != boot);
            let unheard = other && turn.now.since(self.started) >= MEET_WITHIN.max(self.config.dead_after);
            let without = match &peer.delegate.report {
                Some((report, _, at)) => {
                    let says_so = report.map.get() == self.map.version && report.flags.get() & LEASE_OK == 0;
                    // Its shards may be heard while its control, which alone renews the lease, stands still.
                    says_so || turn.now.since(*at) >= self.config.dead_after
                }
                None => peer.joined,
            };
            // Under a new map it may have its lease, whatever it has said before.
            let before = peer.delegate.lapsed_since.filter(|(version, _)| *version == self.map.version);
            let since = without.then(|| before.unwrap_or((self.map.version, turn.now)));
            peer.delegate.lapsed_since = since;
            let pause = self.config.dead_after.0 * 4;
            let lapsed = since.is_some_and(|(_, since)| turn.now.since(since).0 >= pause);
            let is_stuck = stuck.contains(peer.node);
            if unheard || self.is_silent(turn.now, peer, turn.silence[at]) || lapsed || is_stuck {
                let node = peer.node;
                self.promised.retain(|(n, _)| *n != node);
                self.promised.push((node, self.map.version));
            }
        }
    }

    /// Whether a promise against the peer's node holds for maps of `version`.
    fn has_promised(&self, node: NodeId, version: u32) -> bool {
        self.promised.iter().any(|(n, promised)| *n == node && *promised >= version)
    }

    /// Whether this voter's last grant to the peer has run out. Grants of its own last life are over LEASE after that.
    pub(super) fn grant_is_over(&self, now: Nanos, peer: &Peer) -> bool {
        // Of several addresses some may be a later life's.
        let boots = self.map.addresses.iter().filter(|a| a.owner == peer.node).map(|a| a.boot);
        let ended = boots.max().is_some_and(|boot| self.has_ended(peer.node, boot));
        let lease = Nanos(self.config.lease.0 / 100 * (100 + DRIFT_PER_CENT));
        ended || peer.delegate.last_grant(now).max(self.started) + lease < now
    }

    /// Nodes against which a valid promise can be told.
    pub(super) fn promises(&self, now: Nanos, peers: &[Peer]) -> NodeSet {
        let mut set = NodeSet::EMPTY;
        let valid = |p: &&Peer| self.has_promised(p.node, self.map.version) && self.grant_is_over(now, p);
        peers.iter().filter(valid).for_each(|p| set.insert(p.node));
        set
    }

    /// Whether this voter renews the peer's lease with the beat that is being written.
    fn grants(&self, peer: &Peer) -> bool {
        let Some(boot) = peer.boot.filter(|_| peer.joined && self.voter.is_some() && !self.disowned) else {
            return false;
        };
        let Some((report, _, _)) = &peer.delegate.report else { return false };
        let current = report.map.get() >= self.map.version || !self.config.promises;
        let promised = self.has_promised(peer.node, report.map.get()) && self.config.promises;
        self.map.is_live(self.me, self.boot) && self.owns(peer.node, boot) && current && !promised
    }

    /// Until when this node may release, and until when nobody else can hold its addresses: that is the same, but while
    /// it waits for others to go on. A time that has passed stays: by it those are told apart whose lease is late.
    fn renew(&mut self, turn: &Turn<'_>) {
        let before = std::mem::take(&mut self.lease_until);
        self.held_until = Nanos::ZERO;
        if !self.owns(self.me, self.boot) {
            self.stopped_at = None;
            return;
        }
        self.held_until = self.proven_until(turn);
        // An owner that leaves releases nothing more once the cluster knows: others go on with it.
        let draining = self.map.node(self.me).is_some_and(|n| n.state == NodeState::Draining);
        if draining && self.draining && self.has_heir(turn) {
            // A worker that stands still may yet go by the lease it was last told of.
            self.stopped_at.get_or_insert((turn.now + DRAIN_PAUSE).max(before));
        } else {
            self.stopped_at = None;
            self.lease_until = self.held_until;
        }
    }

    /// Whether somebody can go on with what this node owns. Once this node may have said that it has stopped, only the map
    /// can take that back: a map in which nobody else lives follows from none that has moved the address.
    fn has_heir(&self, turn: &Turn<'_>) -> bool {
        let told = self.stopped_at.is_some_and(|at| turn.now >= at);
        let heard = |node: NodeId| {
            let mut peers = turn.peers.iter().zip(turn.silence);
            peers.any(|(p, silence)| p.node == node && p.joined && !self.is_silent(turn.now, p, *silence))
        };
        let heir = |n: &MapNode| n.id != self.me && !n.witness && n.state == NodeState::Live;
        self.map.nodes.iter().any(|n| heir(n) && (told || heard(n.id)))
    }

    /// Until when a majority of the voters has renewed the lease.
    fn proven_until(&self, turn: &Turn<'_>) -> Nanos {
        if turn.peers.is_empty() {
            return Nanos::MAX;
        }
        let mut times: Vec<Nanos> = Vec::new();
        for voter in &self.config.voters {
            if *voter == self.me {
                let votes = self.map.is_live(self.me, self.boot) && !self.disowned;
                times.extend(votes.then_some(turn.now));
            } else if let Some(peer) = turn.peers.iter().find(|p| p.node == *voter && p.joined) {
                times.push(peer.delegate.granted_us);
            }
        }
        times.sort_unstable_by(|a, b| b.cmp(a));
        let majority = self.config.voters.len() / 2;
        let proof = times.get(majority).copied().filter(|proof| *proof > Nanos::ZERO);
        proof.map_or(Nanos::ZERO, |proof| proof + self.config.lease)
    }

    /// As the leader: the next map.
    fn propose(&mut self, turn: &Turn<'_>) {
        let can = self.voter.as_ref().is_some_and(Voter::can_propose) && !self.disowned;
        if !can || self.map.version > 0 && !self.is_current() {
            return;
        }
        let views = self.views(turn);
        let old = self.unchanged.as_ref().filter(|(of, ..)| *of == self.map.version);
        if old.is_some_and(|(_, at, known)| turn.now.since(*at) < ASK_AGAIN && NodeView::alike(known, &views))
        {
            return;
        }
        let next = match self.steward.next(turn.now, &self.map, &views) {
            Some(next) => {
                self.held_back = (None, 0);
                next
            }
            None => match self.free_the_held_back(turn.now, &views) {
                Some(next) => next,
                None => {
                    self.unchanged = Some((self.map.version, turn.now, views));
                    return;
                }
            },
        };
        self.unchanged = None;
        let (map, changes) = next;
        if self.voter.as_mut().is_some_and(|voter| voter.propose(map)) {
            self.changes.extend(changes);
            self.stir(turn.now);
        }
    }

    /// A promise binds its voter as long as the map stays. When too few have promised to move the address, and the owner
    /// is heard by all again, that voter would be missing for good: the same map with another version frees it.
    fn free_the_held_back(&mut self, now: Nanos, views: &[NodeView]) -> Option<(ClusterMap, Vec<Change>)> {
        let held_back = |v: &&NodeView| {
            let owns = v.heard_boot.is_some_and(|boot| self.owns(v.node, boot));
            owns && v.present && v.promises > 0 && v.silent_votes == 0
        };
        let node = views.iter().find(held_back).map(|v| v.node);
        let (since, times) = &mut self.held_back;
        *since = node.and(since.or(Some(now)));
        // Should it not help, it is not done all the time.
        let pause = Nanos((self.config.dead_after.0 * 4) << (*times).min(16)).min(self.config.evict_after);
        let node = node.filter(|_| since.is_some_and(|since| now.since(since) >= pause))?;
        self.held_back = (None, *times + 1);
        let mut map = ClusterMap::clone(&self.map);
        map.version += 1;
        Some((map, vec![Change::Freed(node)]))
    }

    /// Whether the newest map known is the newest one this voter has seen decided: proposals are made from that.
    fn is_current(&self) -> bool {
        self.voter.as_ref().is_some_and(|voter| voter.newest_version() == self.map.version)
    }

    /// What the leader knows of every node.
    pub(super) fn views(&self, turn: &Turn<'_>) -> Vec<NodeView> {
        let mine = self.report(turn.now, turn.suspects, self.silent(turn), NodeSet::EMPTY, None);
        let promised = self.promises(turn.now, turn.peers);
        let silent = self.silent(turn);
        let nodes = self.config.shape.nodes.iter().map(|n| n.id);
        nodes
            .map(|node| {
                let silent_votes = self.votes(turn, node, |r| r.silent.get(), silent);
                let promises = self.votes(turn, node, |r| r.promised.get(), promised);
                let exited = self.exited.iter().filter(|(n, _)| *n == node).map(|(_, b)| *b).max();
                if node == self.me {
                    return NodeView {
                        node,
                        heard_boot: Some(self.boot),
                        present: true,
                        silent_votes,
                        promises,
                        silent_for: Nanos::ZERO,
                        exited: None,
                        draining: self.draining,
                        birth: self.config.birth,
                        report: Some(self.node_report(&mine, &self.lost())),
                    };
                }
                let at = turn.peers.iter().position(|p| p.node == node);
                let peer = at.map(|at| &turn.peers[at]).filter(|p| p.joined);
                // Whom this life of it has never heard was silent in this life only, as far as it can tell.
                let silence = at.and_then(|at| turn.silence[at]);
                let silence = silence.unwrap_or(turn.now.since(self.started));
                let report = peer.and_then(|p| p.delegate.report.as_ref());
                NodeView {
                    node,
                    heard_boot: peer.and_then(|p| p.boot),
                    present: peer.is_some_and(|p| !self.is_silent(turn.now, p, Some(silence))),
                    silent_votes,
                    promises,
                    silent_for: silence,
                    exited,
                    draining: report.is_some_and(|(r, _, _)| r.flags.get() & DRAINING != 0),
                    birth: report.map_or(0, |(r, _, _)| r.birth.get()),
                    report: report.map(|(r, lost, _)| self.node_report(r, lost)),
                }
            })
            .collect()
    }

    fn silent(&self, turn: &Turn<'_>) -> NodeSet {
        let mut silent = NodeSet::EMPTY;
        for (peer, silence) in turn.peers.iter().zip(turn.silence) {
            if self.is_silent(turn.now, peer, *silence) {
                silent.insert(peer.node);
            }
        }
        silent
    }

    /// Letters for other voters. What they say is durable.
    pub(super) fn take_letters(&mut self) -> Vec<(NodeId, Vec<u8>)> {
        let saved = self.is_saved();
        if let Some(voter) = self.voter.as_mut().filter(|_| saved) {
            voter.take_messages(|to, letter| self.letters.push((to, letter.to_vec())));
        }
        std::mem::take(&mut self.letters)
    }

    /// Whether everything this voter has promised and accepted is durable.
    fn is_saved(&self) -> bool {
        self.unsaved.is_none() && !self.voter.as_ref().is_some_and(Voter::is_dirty)
    }

    pub(super) fn take_votes(&mut self) -> Option<Vec<u8>> {
        let idle = self.unsaved.is_none();
        let voter = self.voter.as_mut().filter(|voter| idle && voter.is_dirty())?;
        let (mut bytes, mut letters) = (Vec::new(), Vec::new());
        voter.save(&mut bytes);
        // What it writes from now on may follow from more than this.
        voter.take_messages(|to, letter| letters.push((to, letter.to_vec())));
        self.unsaved = Some(letters);
        Some(bytes)
    }

    pub(super) fn on_votes_saved(&mut self) {
        self.letters.extend(self.unsaved.take().unwrap_or_default());
    }
}
