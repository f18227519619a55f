//! Families of worlds in which a rule that is switched off must be missed. Most rules are missed in general worlds sooner
//! or later; the others only in a sequence of events so long that faults are placed here where it becomes likely.

use super::{Scenario, Timing};
use crate::sim::fault::{Fault, Planned, one};
use crate::sim::layout::{Layout, OWNER};
use crate::sim::net::{Kind, LinkEffect, LinkFault};
use crate::sim::rng::Rng;
use crate::types::{Nanos, NodeId, NodeSet};

/// A family of worlds.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Worlds {
    /// In which the owner never dies.
    Fixed,
    /// In which anybody may.
    Live,
    /// In which the first owner stands still for about as long as voters take to promise that it gets no lease any more,
    /// and hears nothing from soon after that on; and votes take their time.
    Promised,
    /// In which an owner goes on alone with a long tail, another answers clients, and then the first one is there again
    /// when a third term begins, and the second is not.
    Alone,
    /// In which a third term gives the address back to its first owner, whose Start is lost on a member, and what that
    /// member said in the first term comes late.
    Again,
    /// In which a member is dropped because it is not heard, learns anew in the same life, the Start is lost on it, and
    /// what it said before comes late.
    Rejoined,
    /// In which an owner is heard by nobody but a node that learns when it loses its address, and the next one's Start is
    /// lost on that node.
    Learning,
    /// In which the first owner's tail comes back in a third term, whose own entries are lost, and is outranked in a fourth
    /// by what only the second owner holds. (Figure 8 of the Raft paper.)
    Outranked,
}

impl Worlds {
    /// All of them, with their names.
    pub const ALL: [(&str, Worlds); 8] = [
        ("fixed", Worlds::Fixed),
        ("live", Worlds::Live),
        ("promised", Worlds::Promised),
        ("alone", Worlds::Alone),
        ("again", Worlds::Again),
        ("rejoined", Worlds::Rejoined),
        ("learning", Worlds::Learning),
        ("outranked", Worlds::Outranked),
    ];

    /// The world of `seed`.
    pub fn draw(self, seed: u64) -> Scenario {
        match self {
            Worlds::Fixed => Scenario::draw_fixed(&mut Rng::new(seed)),
            Worlds::Live => Scenario::draw_live(&mut Rng::new(seed)),
            Worlds::Promised => promised(seed),
            Worlds::Alone => Stage::new(seed, &[0, 1, 2], 3).alone(),
            Worlds::Again => Stage::new(seed, &[0, 1, 2], 3).again(),
            Worlds::Rejoined => Stage::new(seed, &[0, 1, 2], 2).rejoined(),
            Worlds::Learning => Stage::new(seed, &[0, 1, 2, 3], 3).learning(),
            // With a group for each slot: those of one group may not be outranked by the same node.
            Worlds::Outranked => Stage::with_shards(seed, &[0, 1, 2], 3, &[1]).outranked(),
        }
    }
}

fn promised(seed: u64) -> Scenario {
    let mut scenario = Scenario::with_faults(seed, true, Vec::new());
    let beat = scenario.settings.timing.beat.0;
    let beats = |parts: u64| Nanos(beat * parts / 32);
    let (owner, others) = (one(OWNER), NodeSet(!one(OWNER).0));
    let cut = LinkFault { from: others, to: owner, effect: LinkEffect::Cut };
    let from = Nanos::from_millis(20);
    let wakes = from + beats(31 * 16 + seed % 80);
    let deaf = wakes + beats(seed / 80 % 16 * 4);
    scenario.faults = vec![
        Planned { from, until: wakes, fault: Fault::Freeze { nodes: owner, mid: false } },
        Planned { from: deaf, until: deaf + beats(1_280), fault: Fault::Link(cut) },
    ];
    scenario.load.pause = Nanos::from_micros(150);
    scenario.disks = Some(Rng::new(!seed));
    scenario
}

/// The second owner: of nodes that are there alike the one with the lowest number follows.
const SECOND: NodeId = NodeId(2);

/// The member that is there in all terms.
const THIRD: NodeId = NodeId(3);

/// When the first fault begins: something has been logged by then.
const BEGIN: Nanos = Nanos::from_millis(20);

/// A world being staged. An owner that a majority of the voters does not hear loses its address after 16 beats or a few more.
struct Stage {
    rng: Rng,
    scenario: Scenario,
}

impl Stage {
    /// One node on each of `hosts`.
    fn new(seed: u64, hosts: &[u16], copies: usize) -> Stage {
        Stage::with_shards(seed, hosts, copies, &[1, 1, 2])
    }

    fn with_shards(seed: u64, hosts: &[u16], copies: usize, shards: &[u16]) -> Stage {
        let mut rng = Rng::new(seed);
        let (slots, shards) = (rng.range(1, 6) as u16, rng.pick(shards));
        let layout = Layout::new(hosts, (slots, shards), copies, vec![0, 0], false);
        let mut scenario = Scenario::calm_on(&mut rng, true, layout);
        scenario.rng = rng.split();
        Stage { rng, scenario }
    }

    /// Between so many beats and so many.
    fn beats(&mut self, low: u64, high: u64) -> Nanos {
        let beat = self.scenario.settings.timing.beat.0;
        Nanos(self.rng.range(beat * low, beat * high))
    }

    fn plan(&mut self, from: Nanos, until: Nanos, fault: Fault) {
        self.scenario.healed = self.scenario.healed.max(until);
        self.scenario.faults.push(Planned { from, until, fault });
    }

    fn link(&mut self, from: Nanos, until: Nanos, (one_end, other): (NodeSet, NodeSet), effect: LinkEffect) {
        self.plan(from, until, Fault::Link(LinkFault { from: one_end, to: other, effect }));
    }

    /// Nothing passes between a node and the others.
    fn isolate(&mut self, from: Nanos, until: Nanos, node: NodeId) {
        self.plan(from, until, Fault::Split { one: one(node), other: NodeSet(!one(node).0) });
    }

    fn finish(mut self) -> Scenario {
        self.scenario.faults.sort_by_key(|planned| planned.from);
        self.scenario
    }

    fn alone(mut self) -> Scenario {
        let third = BEGIN + self.beats(18, 26);
        let over = third + self.beats(25, 60);
        self.isolate(BEGIN, third, OWNER);
        self.isolate(third, over, SECOND);
        self.finish()
    }

    /// The first owner loses its address to the second, and the second to the first. What the first holds stays as it is:
    /// nothing of the second reaches it, and the second hears it in the end, so that it may follow. What the third says to
    /// it is left to the caller. When the second is cut off, for `over`, and when the first was there again.
    fn rotate(&mut self, over: Nanos) -> (Nanos, Nanos) {
        let back = BEGIN + self.beats(18, 24);
        let third = back + self.beats(2, 6);
        self.link(BEGIN, third, (one(SECOND), one(OWNER)), LinkEffect::Cut);
        let others = NodeSet(one(SECOND).0 | one(THIRD).0);
        self.link(BEGIN, back, (one(OWNER), others), LinkEffect::Cut);
        self.isolate(third, third + over, SECOND);
        (third, back)
    }

    fn again(mut self) -> Scenario {
        let long = self.beats(20, 45);
        let (third, back) = self.rotate(long);
        let (before, by) = (self.beats(1, 3), self.beats(40, 70));
        let over = BEGIN + by + self.beats(5, 30);
        let late = LinkEffect::Late { permille: 1_000, by };
        let starts = LinkEffect::Without(Kind::Start);
        self.link(BEGIN - before, back, (one(THIRD), one(OWNER)), late);
        self.link(BEGIN, third, (one(SECOND), one(THIRD)), starts);
        self.link(third, over, (one(OWNER), one(THIRD)), starts);
        self.finish()
    }

    fn rejoined(mut self) -> Scenario {
        let (member, all) = (self.rng.pick(&[SECOND, THIRD]), NodeSet(u64::MAX));
        // So slow that it is not dead yet when its owner, who looks every 100 ms, has said that it waits for it.
        self.scenario.settings.timing = Timing::of(2);
        let heard = BEGIN + self.beats(52, 64);
        let comes = heard + self.beats(3, 15);
        let over = comes + self.beats(5, 20);
        let by = comes.since(BEGIN);
        self.link(BEGIN, heard, (one(member), all), LinkEffect::Late { permille: 1_000, by });
        self.link(heard, over, (one(OWNER), one(member)), LinkEffect::Without(Kind::Start));
        // Logs stand still while the member comes back.
        for _ in 0..self.rng.range(1, 4) {
            let (at, packets) = (BEGIN + self.beats(0, 2), self.rng.range(1, 4) as u32);
            self.plan(at, at, Fault::Burst { packets });
        }
        self.scenario.load.pause = Nanos::from_millis(self.rng.range(40, 150));
        self.finish()
    }

    fn learning(mut self) -> Scenario {
        let learner = NodeId(4);
        let back = BEGIN + self.beats(1, 4);
        let alone = back + self.beats(4, 16);
        let over = alone + self.beats(25, 80);
        let voters = NodeSet(one(SECOND).0 | one(THIRD).0);
        self.plan(
            BEGIN,
            back,
            Fault::Crash { nodes: one(learner), restarts: true, notice: false, disk: false },
        );
        // It stays a learner as long as its snapshot's replies are not on the wire.
        self.plan(Nanos::from_millis(10), over, Fault::Stall);
        self.plan(alone, over, Fault::Split { one: one(OWNER), other: voters });
        self.link(alone, over, (voters, one(learner)), LinkEffect::Without(Kind::Start));
        self.finish()
    }

    fn outranked(mut self) -> Scenario {
        // No longer than it takes to answer from what came back: soon the second owner is none that is asked any more.
        let long = self.beats(16, 20);
        let (third, back) = self.rotate(long);
        let fourth = third + long;
        let over = fourth + self.beats(25, 60);
        self.link(BEGIN, back, (one(THIRD), one(OWNER)), LinkEffect::Cut);
        self.link(BEGIN, third, (one(SECOND), one(THIRD)), LinkEffect::Without(Kind::Start));
        self.link(third, fourth, (one(OWNER), one(THIRD)), LinkEffect::Without(Kind::OwnEntry));
        self.isolate(fourth, over, OWNER);
        // So that what was recovered is more than fits a datagram with the new owner's first entry.
        self.scenario.settings.datagram_room = 600;
        self.scenario.load.pause = Nanos::from_micros(self.rng.range(150, 800));
        self.finish()
    }
}
