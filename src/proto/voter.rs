//! A voter: its seat in the consensus that decides the sequence of cluster maps.
//!
//! The agreement itself is the `omnipaxos` library's; this is the seam around it. It has no clock, socket or file:
//! [`Voter::tick`] at a steady pace, [`Voter::on_message`] for what another voter sent, [`Voter::propose`] where it
//! leads, and then, once a turn, **first** [`Voter::save`] if it [is dirty](Voter::is_dirty), durable, and only then
//! [`Voter::take_messages`]: a vote that was sent but is forgotten can make two maps out of one.
//!
//! What the library leaves to its user, and this adds:
//!
//! - **Order.** It takes links for connections that may break, never for datagrams: an old copy of a log that arrives
//!   late would undo newer votes. So letters are numbered, and one that was overtaken is dropped like a lost one.
//! - **Loss.** It repeats what opens a round, but neither a proposal nor its acceptance. So a leader's letters say how
//!   far its log has got, and a follower that sees it stand still asks for the log again.
//! - **Astray.** A voter that promised a round whose leader died in it follows nobody else, and while the others have a
//!   leader it waits for good. So a leader that sees one for a while opens a round above that promise.
//! - **Snapshots.** It can put a snapshot together from entries that were never decided (when it brings a follower up
//!   to date by a difference). So only whole snapshots travel, and everything decided becomes one at once: letters
//!   carry a map or two, however long a voter was away.
//! - **Trust.** It believes indexes and senders as they come, and panics where they make no sense. So
//!   letters are checked against this voter's log before it sees them.
//! - **A single voter.** It wants two; one alone decides at once.
//!
//! The log holds whole maps. One counts if its version follows that of the map in force; of two that were made from the
//! same map the first wins.

mod letter;
mod shelf;
#[cfg(test)]
mod tests;

use std::fmt;

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::{ClusterConfig, OmniPaxos, ServerConfig};

use self::letter::{CONFIGURATION, Judgement, Letter, Standing, make_whole};
use self::shelf::{Held, Shelf};
use super::map::ClusterMap;
use crate::types::{Boot, NodeId};

/// The longest letter; longer ones are dropped and counted.
pub const MAX_LETTER: usize = 60_000;

/// The most ballots a leader goes up at once; the rest when it finds that it was not enough.
const MAX_RAISE: u32 = 16;

/// What was dropped, by reason.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct VoterCounters {
    /// Letters that no voter writes: unreadable, or with senders, ballots or indexes that make no sense.
    pub malformed: u64,
    /// Letters of nodes that are no voters, or of voters that have lost their vote file.
    pub strangers: u64,
    /// Letters that were overtaken by a later one, repeated, or no longer fit this voter's log.
    pub late: u64,
    /// Letters of this voter that were longer than [`MAX_LETTER`].
    pub oversize: u64,
    /// How often it asked the leader for the log again, because something was lost.
    pub asked_again: u64,
    /// How often it, as the leader, opened a round for a voter that followed nobody.
    pub brought_back: u64,
    /// How often it stood for leader without waiting for an election.
    pub stood: u64,
}

/// What was saved cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VoterError {
    /// The bytes are not what a voter of this version saves.
    #[error("what the voter saved cannot be read (format {0}, this version writes format 1)")]
    Unreadable(u8),
    /// They are another node's.
    #[error("what the voter saved is of node {0}, not of this one")]
    OtherNode(u16),
    /// The map in it is no map of this cluster.
    #[error(
        "the cluster map that the voter saved was made with other settings: TANDEM_SLOTS, TANDEM_SHARDS, TANDEM_COMMIT and the number of service endpoints and addresses in TANDEM_SERVICE do not change while a cluster lives; set them as they were, or stop all nodes and begin anew: another TANDEM_CLUSTER, or another TANDEM_DATA_DIR on every voter"
    )]
    OtherSettings,
    /// The voters were others then.
    #[error("TANDEM_VOTERS was {stored} when the voters first met, and is {given} now: they never change")]
    OtherVoters {
        /// Comma between them.
        stored: String,
        /// Comma between them.
        given: String,
    },
}

/// The link from one other voter.
#[derive(Debug)]
struct Link {
    node: NodeId,
    /// Its life, as its letters say.
    life: u64,
    /// The number of the newest letter in that life.
    heard: u64,
    /// The number of the last letter to it.
    sent: u64,
    /// The birth of its vote file by the newest agreed map; 0 if not agreed yet.
    birth: u64,
    /// The tick since which it follows a higher ballot than this leader's, and nobody leads with that.
    astray: Option<u64>,
}

/// How far the leader's log and its own are apart, since when.
type Behind = (Standing, u64);

enum Seat {
    Alone,
    Among(Box<OmniPaxos<ClusterMap, Shelf>>),
}

/// One voter.
pub struct Voter {
    me: NodeId,
    birth: u64,
    life: Boot,
    seat: Seat,
    shelf: Shelf,
    links: Vec<Link>,
    /// The agreed map says that the vote file was another one.
    disowned: bool,
    ticks: u64,
    patience: u64,
    behind: Option<Behind>,
    /// The version last taken.
    taken: u32,
    /// Written, and not taken yet.
    outgoing: Vec<Message<ClusterMap>>,
    counters: VoterCounters,
}

impl fmt::Debug for Voter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (links, counters) = (&self.links, &self.counters);
        f.debug_struct("Voter")
            .field("me", &self.me)
            .field("links", links)
            .field("counters", counters)
            .finish()
    }
}

impl Voter {
    /// Node `me` among `voters`, which it is one of, with what it last saved, if it ever did. `birth` is its vote
    /// file's, `life` its own: a later one is higher. A leader that says nothing for about three times `election` ticks
    /// is replaced.
    ///
    /// # Errors
    /// See [`VoterError`].
    pub fn new(
        me: NodeId,
        voters: &[NodeId],
        stored: Option<&[u8]>,
        birth: u64,
        life: Boot,
        election: u64,
    ) -> Result<Voter, VoterError> {
        let mut voters: Vec<NodeId> = voters.iter().copied().chain([me]).collect();
        voters.sort_unstable();
        voters.dedup();
        let held = match stored {
            Some(bytes) => Held::load(bytes, me, &voters)?,
            None => Held::new(me, &voters),
        };
        let shelf = Shelf::new(held);
        let election = election.max(1);
        let others = voters.iter().filter(|voter| **voter != me);
        let links = others
            .map(|node| Link { node: *node, life: 0, heard: 0, sent: 0, birth: 0, astray: None })
            .collect();
        let nodes: Vec<u64> = voters.iter().map(|voter| u64::from(voter.0)).collect();
        let seat = if nodes.len() == 1 {
            Seat::Alone
        } else {
            let cluster = ClusterConfig { configuration_id: CONFIGURATION, nodes, flexible_quorum: None };
            let server = ServerConfig {
                pid: me.0.into(),
                election_tick_timeout: election,
                resend_message_tick_timeout: election,
                buffer_size: 64,
                ..ServerConfig::default()
            };
            let built = cluster.build_for_server(server, shelf.clone());
            Seat::Among(Box::new(built.expect("at least two nodes, ids and ticks above zero")))
        };
        let mut voter = Voter {
            me,
            birth,
            life,
            seat,
            shelf,
            links,
            disowned: false,
            ticks: 0,
            patience: election,
            behind: None,
            taken: 0,
            outgoing: Vec::new(),
            counters: VoterCounters::default(),
        };
        voter.settle();
        Ok(voter)
    }

    /// A tick has passed.
    pub fn tick(&mut self) {
        self.ticks += 1;
        if let (false, Seat::Among(paxos)) = (self.disowned, &mut self.seat) {
            paxos.tick();
            self.settle();
        }
    }

    /// Another voter's letter, from its authenticated node.
    pub fn on_message(&mut self, from: NodeId, bytes: &[u8]) {
        let Seat::Among(paxos) = &mut self.seat else {
            self.counters.strangers += 1;
            return;
        };
        let Some(link) = self.links.iter_mut().find(|link| link.node == from && !self.disowned) else {
            self.counters.strangers += 1;
            return;
        };
        let Some(letter) = Letter::read(bytes) else {
            self.counters.malformed += 1;
            return;
        };
        if link.birth != 0 && letter.birth != link.birth {
            self.counters.strangers += 1;
            return;
        }
        if (letter.life, letter.number) <= (link.life, link.heard) {
            self.counters.late += 1;
            return;
        }
        (link.life, link.heard) = (letter.life, letter.number);
        let log = (paxos.get_decided_idx(), paxos.get_accepted_idx());
        let agreed = paxos.get_current_leader().is_some_and(|(_, accepts)| accepts);
        let follows = letter::follows(&letter.message);
        match letter::judge(&letter.message, from, self.me, log, agreed) {
            Judgement::Sound => paxos.handle_incoming(letter.message),
            Judgement::Late => self.counters.late += 1,
            Judgement::Malformed => {
                self.counters.malformed += 1;
                return;
            }
        }
        self.settle();
        if let Some(standing) = letter.leads {
            self.compare(from, standing);
        }
        if let Some((ballot, content)) = follows {
            self.bring_back(from, ballot, content);
        }
    }

    /// A voter says which ballot it follows, and whether it is content with that.
    fn bring_back(&mut self, from: NodeId, ballot: Ballot, content: bool) {
        let leads = self.is_leader();
        let Seat::Among(paxos) = &mut self.seat else { return };
        let Some(link) = self.links.iter_mut().find(|link| link.node == from) else { return };
        if content || !leads || ballot <= paxos.get_promise() {
            link.astray = None;
        } else if self.ticks - *link.astray.get_or_insert(self.ticks) >= 3 * self.patience {
            link.astray = None;
            self.counters.brought_back += 1;
            for _ in 0..MAX_RAISE {
                paxos.try_become_leader();
                if paxos.get_promise() > ballot {
                    break;
                }
            }
            self.settle();
        }
    }

    /// Opens a round of its own without waiting for an election: for when the leader is lost or should be relieved.
    /// Standing in vain, or against another voter that stands, decides nothing twice, but a leader that was well is
    /// deposed for a while.
    pub fn stand(&mut self) {
        if let (false, Seat::Among(paxos)) = (self.disowned, &mut self.seat) {
            self.counters.stood += 1;
            paxos.try_become_leader();
            self.settle();
        }
    }

    /// Asks the leader for its log again if it and this voter's stand apart and have not moved for a while.
    fn compare(&mut self, from: NodeId, leader: Standing) {
        let Seat::Among(paxos) = &mut self.seat else { return };
        let leads = paxos.get_current_leader().is_some_and(|(pid, _)| pid == u64::from(from.0));
        let even = leader.decided == leader.accepted && paxos.get_decided_idx() >= leader.decided;
        if !leads || even {
            self.behind = None;
            return;
        }
        match self.behind {
            Some((before, since)) if before == leader => {
                if self.ticks - since >= self.patience {
                    self.counters.asked_again += 1;
                    self.behind = Some((leader, self.ticks));
                    paxos.reconnected(from.0.into());
                    self.settle();
                }
            }
            _ => self.behind = Some((leader, self.ticks)),
        }
    }

    /// After each step: what was decided becomes the snapshot, and what is to be sent is collected while a snapshot in
    /// it is the same as this voter's.
    fn settle(&mut self) {
        let Seat::Among(paxos) = &mut self.seat else { return };
        if paxos.get_decided_idx() > paxos.get_compacted_idx() {
            // Says nothing that the saved log and a leader could not say again.
            let dirty = self.shelf.held().dirty;
            let compacted = paxos.snapshot(None, true);
            debug_assert!(compacted.is_ok(), "{compacted:?}");
            self.shelf.held().dirty = dirty;
        }
        let collected = self.outgoing.len();
        paxos.take_outgoing_messages(&mut self.outgoing);
        let held = self.shelf.held();
        self.outgoing[collected..].iter_mut().for_each(|message| make_whole(message, &held));
    }

    /// Whether this voter leads: its proposals are decided, unless it is replaced first.
    pub fn is_leader(&self) -> bool {
        match &self.seat {
            Seat::Alone => !self.disowned,
            Seat::Among(paxos) => !self.disowned && leads(paxos, self.me),
        }
    }

    /// Whether it leads and everything proposed so far is decided.
    pub fn can_propose(&self) -> bool {
        let idle = match &self.seat {
            Seat::Alone => true,
            Seat::Among(paxos) => paxos.get_accepted_idx() == paxos.get_decided_idx(),
        };
        idle && self.is_leader()
    }

    /// Proposes the map that is to follow the newest one; false if it [cannot](Voter::can_propose) now.
    pub fn propose(&mut self, map: ClusterMap) -> bool {
        if !self.can_propose() {
            return false;
        }
        match &mut self.seat {
            Seat::Alone => self.shelf.held().decide(map),
            Seat::Among(paxos) => {
                let proposed = paxos.append(map);
                debug_assert!(proposed.is_ok(), "{proposed:?}");
                self.settle();
            }
        }
        true
    }

    /// The newest map decided, if it is newer than at the last call.
    pub fn take_decided(&mut self) -> Option<ClusterMap> {
        let held = self.shelf.held();
        if held.newest_version() <= self.taken {
            return None;
        }
        self.taken = held.newest_version();
        held.newest()
    }

    /// Whether all maps that it has accepted, decided or not, are as they should be.
    pub fn holds_only(&self, good: impl Fn(&ClusterMap) -> bool) -> bool {
        self.shelf.held().maps().all(good)
    }

    /// The version of the newest map decided, taken or not.
    pub fn newest_version(&self) -> u32 {
        self.shelf.held().newest_version()
    }

    /// The voter that leads, as far as this one knows.
    pub fn leader(&self) -> Option<NodeId> {
        match &self.seat {
            Seat::Alone => Some(self.me),
            Seat::Among(paxos) => paxos.get_current_leader().map(|(pid, _)| NodeId(pid as u16)),
        }
    }

    /// Takes note of the births in an agreed map: a voter that had another vote file then has forgotten its votes. True
    /// if this one has: it votes no more.
    pub fn on_agreed(&mut self, map: &ClusterMap) -> bool {
        for node in &map.nodes {
            if node.id == self.me {
                self.disowned |= node.birth != 0 && node.birth != self.birth;
            } else if let Some(link) = self.links.iter_mut().find(|link| link.node == node.id) {
                link.birth = node.birth;
            }
        }
        self.disowned
    }

    /// Whether it is the only voter: what it decides is agreed once it is durable.
    pub fn is_alone(&self) -> bool {
        matches!(self.seat, Seat::Alone)
    }

    /// Whether something has to be saved before anything of this turn is sent or acted upon.
    pub fn is_dirty(&self) -> bool {
        self.shelf.held().dirty
    }

    /// Appends what has to be durable; the voter is not dirty any more.
    pub fn save(&mut self, out: &mut Vec<u8>) {
        let mut held = self.shelf.held();
        held.save(out);
        held.dirty = false;
    }

    /// Hands over the letters that are to be sent; see [`Voter`] for what comes before.
    pub fn take_messages(&mut self, mut send: impl FnMut(NodeId, &[u8])) {
        debug_assert!(!self.is_dirty(), "what a letter says is durable before it leaves");
        let leads = match &self.seat {
            Seat::Among(paxos) if leads(paxos, self.me) => {
                Some(Standing { decided: paxos.get_decided_idx(), accepted: paxos.get_accepted_idx() })
            }
            _ => None,
        };
        for message in self.outgoing.drain(..) {
            let to = message.get_receiver();
            let Some(link) = self.links.iter_mut().find(|link| u64::from(link.node.0) == to) else {
                continue;
            };
            if self.disowned {
                continue;
            }
            link.sent += 1;
            let letter = Letter { birth: self.birth, life: self.life.0, number: link.sent, leads, message };
            match letter.write() {
                Some(bytes) if bytes.len() <= MAX_LETTER => send(link.node, &bytes),
                _ => self.counters.oversize += 1,
            }
        }
    }

    /// What was dropped so far.
    pub fn counters(&self) -> VoterCounters {
        self.counters
    }
}

fn leads(paxos: &OmniPaxos<ClusterMap, Shelf>, me: NodeId) -> bool {
    paxos.get_current_leader() == Some((me.0.into(), true))
}
