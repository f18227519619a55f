//! Who leads the voters. Left alone, they elect another leader after about three rounds of silence; an address could not
//! move in that time. So a voter that hears a majority stands for leader at once
//!
//! - when it is certain that the leader is lost: its supervisor says so, or a majority has not heard it for DEAD_AFTER;
//! - to relieve a leader that is about to leave, or that has owned an address for a while when this voter owns none: so
//!   that an owner's death leaves a leader. Only a voter that stays relieves another.
//!
//! Of several the last one by id stands that stays and owns nothing: addresses go to the first ones. Two that stand at a
//! time, because they know different things, cost rounds and decide nothing twice: that is the consensus' business.

use super::{Council, Turn};
use crate::proto::map::NodeState;
use crate::types::{Nanos, NodeId};

/// After how many times DEAD_AFTER without a change a leader that owns an address is relieved.
const QUIET: u64 = 10;

impl Council {
    pub(super) fn stand(&mut self, turn: &Turn<'_>) {
        let leader = self.leader().filter(|leader| *leader != self.me && !self.disowned);
        let due = leader.is_some_and(|leader| self.stands_instead_of(turn, leader));
        if due || leader.is_none() {
            self.apart_since = None;
        }
        if let Some(voter) = self.voter.as_mut().filter(|_| due) {
            voter.stand();
            self.stir(turn.now);
        }
    }

    #[cfg(test)]
    pub(in crate::engine::control) fn seize_the_lead(&mut self) {
        self.voter.as_mut().expect("a voter").stand();
    }

    fn stands_instead_of(&mut self, turn: &Turn<'_>, leader: NodeId) -> bool {
        let silent = self.silent(turn);
        let Some(peer) = turn.peers.iter().find(|p| p.node == leader) else { return false };
        let heard: Vec<NodeId> =
            self.config.voters.iter().copied().filter(|v| *v == self.me || !silent.contains(*v)).collect();
        let majority = self.config.voters.len() / 2 + 1;
        if heard.len() < majority || self.first_without(leader, &heard) != Some(self.me) {
            self.apart_since = None;
            return false;
        }
        // Whoever has ended is among the silent, too.
        if silent.contains(leader) {
            let votes = || self.votes(turn, leader, |report| report.silent.get(), silent);
            return self.is_over(peer) || votes() >= majority;
        }
        let relieves = self.is_current() && self.state(self.me) == NodeState::Live;
        if relieves && self.state(leader) == NodeState::Draining {
            return true;
        }
        let apart = relieves && self.has_address(leader) && !self.has_address(self.me);
        let known = (self.map.version, leader);
        let before = self.apart_since.filter(|(of, _)| *of == known);
        self.apart_since = apart.then(|| before.unwrap_or((known, turn.now)));
        let pause = Nanos(self.config.dead_after.0 * QUIET);
        self.apart_since.is_some_and(|(_, since)| turn.now.since(since) >= pause)
    }

    /// The voter of those that should lead if `leader` does not.
    fn first_without(&self, leader: NodeId, voters: &[NodeId]) -> Option<NodeId> {
        let counts = voters.iter().copied().filter(|v| *v != leader && self.state(*v) != NodeState::Gone);
        counts.max_by_key(|v| (self.state(*v) == NodeState::Live, !self.has_address(*v), *v))
    }

    fn state(&self, node: NodeId) -> NodeState {
        self.map.node(node).map_or(NodeState::Gone, |n| n.state)
    }
}
