//! Who leads the voters. Left alone, they elect another leader after about three rounds of silence; an address could not
//! move in that time. So a voter stands for leader at once
//!
//! - when it is certain that the leader is lost: its supervisor says so, or a majority has not heard it for DEAD_AFTER;
//! - when all is quiet and the leader is about to leave, or owns an address while this voter owns none: so that an owner's
//!   death leaves a leader.
//!
//! Of several that could, the last one by id stands: addresses go to the first ones. Two that stand at a time, because
//! they know different things, cost a round, and decide nothing twice: that is the consensus' business.

use super::{Council, Turn};
use crate::proto::map::NodeState;
use crate::types::{Nanos, NodeId, NodeSet};

/// After how many times DEAD_AFTER without a change a leader that owns an address is relieved.
const QUIET: u64 = 10;

impl Council {
    pub(super) fn stand(&mut self, turn: &Turn<'_>) {
        let leader = self.leader().filter(|leader| *leader != self.me && !self.disowned);
        let due = leader.is_some_and(|leader| self.stands_instead_of(turn, leader));
        if let Some(voter) = self.voter.as_mut().filter(|_| due) {
            voter.stand();
            self.apart_since = None;
        }
    }

    #[cfg(test)]
    pub(in crate::engine::control) fn seize_the_lead(&mut self) {
        self.voter.as_mut().expect("a voter").stand();
    }

    fn stands_instead_of(&mut self, turn: &Turn<'_>, leader: NodeId) -> bool {
        let silent = self.silent(turn);
        let Some(peer) = turn.peers.iter().find(|p| p.node == leader) else { return false };
        let ended = self.has_ended(leader, peer.boot.unwrap_or(self.agreed_boot(leader)));
        let majority = self.config.voters.len() / 2 + 1;
        let votes = || self.votes(turn, leader, |report| report.silent.get(), silent);
        let lost = ended || silent.contains(leader) && votes() >= majority;
        let first = self.first_without(leader, silent) == Some(self.me);
        let quiet = !lost && self.is_current();
        let leaves = self.state(leader) == NodeState::Draining;
        if first && (lost || quiet && leaves) {
            return true;
        }
        let version = self.map.version;
        let apart = first && quiet && self.has_address(leader) && !self.has_address(self.me);
        let before = self.apart_since.filter(|(of, _)| *of == version);
        self.apart_since = apart.then(|| before.unwrap_or((version, turn.now)));
        let pause = Nanos(self.config.dead_after.0 * QUIET);
        self.apart_since.is_some_and(|(_, since)| turn.now.since(since) >= pause)
    }

    /// The voter that should lead if `leader` does not.
    fn first_without(&self, leader: NodeId, silent: NodeSet) -> Option<NodeId> {
        let heard = |node: NodeId| node == self.me || !silent.contains(node);
        let others = self.config.voters.iter().copied().filter(|v| *v != leader && heard(*v));
        let counts = others.filter(|v| self.state(*v) != NodeState::Gone);
        counts.max_by_key(|v| (self.state(*v) == NodeState::Live, !self.has_address(*v), *v))
    }

    fn state(&self, node: NodeId) -> NodeState {
        self.map.node(node).map_or(NodeState::Gone, |n| n.state)
    }
}
