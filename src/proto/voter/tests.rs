//! Voters over a network that loses, repeats, overtakes and delays letters, with cuts (one way too), frozen and
//! crashed voters: what is decided is decided once, survives, and once all is well again proposals are decided.

use std::collections::BTreeMap;

use proptest::prelude::{any, prop_assert, proptest};

use super::letter::Letter;
use super::{Voter, VoterCounters, VoterError};
use crate::proto::map::{ClusterMap, MapNode, MapShape};
use crate::types::{Boot, HostId, NodeId};

const ELECTION: u64 = 10;
/// How soon voters that hear each other decide: about three elections, each of which may collide with another.
const DECIDES_WITHIN: u64 = 20 * ELECTION;

fn empty_map() -> ClusterMap {
    let nodes = [1, 2, 3].map(|id| MapNode::new(NodeId(id), HostId(id)));
    let shape = MapShape::new((64, 1), nodes.into(), NodeId(1), vec![0], 3, 0);
    shape.expect("a shape").empty_map()
}

/// The map after `before`, told apart from others of that version by its `mark`.
fn after(before: Option<&ClusterMap>, mark: u32) -> ClusterMap {
    let before = before.cloned().unwrap_or_else(empty_map);
    ClusterMap { version: before.version + 1, lossy: mark, ..before }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Default)]
struct Site {
    voter: Option<Voter>,
    /// What is on its disk.
    disk: Option<Vec<u8>>,
    life: u64,
    /// It does not turn before.
    asleep_until: u64,
    newest: Option<ClusterMap>,
}

struct Rig {
    sites: Vec<Site>,
    dice: Dice,
    tick: u64,
    flights: BTreeMap<(u64, u64), (usize, usize, Vec<u8>)>,
    sent: u64,
    cuts: Vec<(usize, usize)>,
    rough: bool,
    /// What each version was the first time anybody saw it decided.
    decided: BTreeMap<u32, u32>,
    marks: u32,
    /// To show that the checks bite: crashes forget what was saved since the start.
    amnesia: bool,
}

impl Rig {
    fn new(seed: u64, voters: usize) -> Rig {
        let mut rig = Rig {
            sites: (0..voters).map(|_| Site::default()).collect(),
            dice: Dice(seed),
            tick: 0,
            flights: BTreeMap::new(),
            sent: 0,
            cuts: Vec::new(),
            rough: false,
            decided: BTreeMap::new(),
            marks: 0,
            amnesia: false,
        };
        (0..voters).for_each(|at| rig.start(at));
        rig
    }

    fn start(&mut self, at: usize) {
        let voters: Vec<NodeId> = (1..=self.sites.len() as u16).map(NodeId).collect();
        let site = &mut self.sites[at];
        site.life += 1;
        let disk = site.disk.as_deref().filter(|_| !self.amnesia);
        let voter = Voter::new(voters[at], &voters, disk, 7, Boot(site.life), ELECTION);
        site.voter = Some(voter.expect("what was saved can be read"));
        site.newest = None;
    }

    /// One tick of everybody; the checks of what was decided are in here.
    fn turn(&mut self) {
        self.tick += 1;
        let mut arrived: Vec<Vec<(usize, Vec<u8>)>> = vec![Vec::new(); self.sites.len()];
        while self.flights.first_key_value().is_some_and(|((due, _), _)| *due <= self.tick) {
            let (_, (from, to, bytes)) = self.flights.pop_first().expect("a flight");
            if !self.cuts.contains(&(from, to)) {
                arrived[to].push((from, bytes));
            }
        }
        for (at, letters) in arrived.into_iter().enumerate() {
            self.turn_of(at, letters);
        }
    }

    fn turn_of(&mut self, at: usize, letters: Vec<(usize, Vec<u8>)>) {
        let (tick, rough) = (self.tick, self.rough);
        let site = &mut self.sites[at];
        let Some(voter) = site.voter.as_mut().filter(|_| site.asleep_until <= tick) else { return };
        letters.iter().for_each(|(from, bytes)| voter.on_message(NodeId(*from as u16 + 1), bytes));
        voter.tick();
        if rough && self.dice.once_in(200) {
            voter.stand();
        }
        if voter.can_propose() && self.dice.once_in(8) {
            self.marks += 1;
            assert!(voter.propose(after(site.newest.as_ref(), self.marks)));
        }
        if rough && self.dice.once_in(300) {
            // Crashes with what it has not saved.
            site.voter = None;
            return;
        }
        if voter.is_dirty() {
            let mut bytes = Vec::new();
            voter.save(&mut bytes);
            site.disk = Some(bytes);
        }
        if rough && self.dice.once_in(300) {
            // Crashes between saving and sending.
            site.voter = None;
            return;
        }
        if let Some(map) = voter.take_decided() {
            let mark = *self.decided.entry(map.version).or_insert(map.lossy);
            assert_eq!(mark, map.lossy, "voter {} has another map {}", at + 1, map.version);
            assert!(site.newest.as_ref().is_none_or(|before| before.version < map.version));
            site.newest = Some(map);
        }
        let mut written = Vec::new();
        voter.take_messages(|to, bytes| written.push((usize::from(to.0) - 1, bytes.to_vec())));
        for (to, bytes) in written {
            let copies =
                if !rough { 1 } else { [1, 1, 1, 1, 1, 1, 1, 0, 0, 2][self.dice.below(10) as usize] };
            for _ in 0..copies {
                let late = if rough && self.dice.once_in(20) { 60 } else { 4 };
                self.sent += 1;
                let due = tick + 1 + if rough { self.dice.below(late) } else { 0 };
                self.flights.insert((due, self.sent), (at, to, bytes.clone()));
            }
        }
    }

    fn disturb(&mut self) {
        let count = self.sites.len() as u64;
        for at in 0..self.sites.len() {
            if self.sites[at].voter.is_none() && self.dice.once_in(40) {
                self.start(at);
            }
        }
        if self.dice.once_in(60) {
            self.cuts.clear();
            for _ in 0..self.dice.below(count * 2) {
                let pair = (self.dice.below(count) as usize, self.dice.below(count) as usize);
                self.cuts.push(pair);
                if self.dice.once_in(2) {
                    self.cuts.push((pair.1, pair.0));
                }
            }
        }
        if self.dice.once_in(100) {
            let at = self.dice.below(count) as usize;
            self.sites[at].asleep_until = self.tick + self.dice.below(100);
        }
    }

    fn heal(&mut self) {
        self.rough = false;
        self.cuts.clear();
        for at in 0..self.sites.len() {
            self.sites[at].asleep_until = 0;
            if self.sites[at].voter.is_none() {
                self.start(at);
            }
        }
    }

    fn highest(&self) -> u32 {
        self.decided.last_key_value().map_or(0, |(version, _)| *version)
    }

    fn counters(&self) -> Vec<VoterCounters> {
        self.sites.iter().filter_map(|site| site.voter.as_ref()).map(Voter::counters).collect()
    }

    /// Rough times, then quiet ones.
    fn live(&mut self) {
        self.rough = true;
        for _ in 0..500 {
            self.disturb();
            self.turn();
        }
        self.heal();
        let before = self.highest();
        for _ in 0..DECIDES_WITHIN {
            self.turn();
        }
        let newest = |site: &Site| site.newest.as_ref().map_or(0, |map| map.version);
        let least = self.sites.iter().map(newest).min().expect("a voter");
        assert!(least > before, "{before} were decided, and {least} are known to all in the end");
        for counters in self.counters() {
            assert_eq!((counters.malformed, counters.strangers, counters.oversize), (0, 0, 0));
        }
    }
}

fn live_through(seeds: std::ops::Range<u64>, voters: usize) {
    for seed in seeds {
        let run = std::panic::catch_unwind(|| Rig::new(seed, voters).live());
        assert!(run.is_ok(), "seed {seed} with {voters} voters");
    }
}

#[test]
fn three_voters_agree_through_rough_times() {
    live_through(0..1_500, 3);
}

#[test]
fn five_voters_agree_through_rough_times() {
    live_through(0..500, 5);
}

#[test]
fn voters_that_forget_decide_twice_and_the_check_sees_it() {
    let caught = (0..300).any(|seed| {
        let run = || {
            let mut rig = Rig::new(seed, 3);
            rig.amnesia = true;
            rig.live();
        };
        std::panic::catch_unwind(run).is_err()
    });
    assert!(caught);
}

#[test]
fn a_voter_alone_decides_at_once_and_remembers() {
    let mut voter = Voter::new(NodeId(1), &[NodeId(1)], None, 7, Boot(1), ELECTION).expect("new");
    assert!(voter.can_propose() && voter.take_decided().is_none() && !voter.is_dirty());
    let first = after(None, 1);
    assert!(voter.propose(first.clone()));
    assert!(voter.is_dirty());
    let mut disk = Vec::new();
    voter.save(&mut disk);
    assert_eq!(voter.take_decided(), Some(first.clone()));
    // Not made from the map in force: it does not count.
    assert!(voter.propose(after(None, 2)));
    assert_eq!(voter.take_decided(), None);
    let mut again = Voter::new(NodeId(1), &[NodeId(1)], Some(&disk), 7, Boot(2), ELECTION).expect("read");
    assert_eq!(again.take_decided(), Some(first));
}

#[test]
fn what_another_voter_saved_or_other_voters_or_rubbish_is_refused() {
    let three = [1, 2, 3].map(NodeId);
    let open = |me: u16, voters: &[NodeId], disk: &[u8]| {
        Voter::new(NodeId(me), voters, Some(disk), 7, Boot(2), ELECTION).err()
    };
    let mut disk = Vec::new();
    Voter::new(NodeId(1), &three, None, 7, Boot(1), ELECTION).expect("new").save(&mut disk);
    assert_eq!(open(1, &three, &disk), None);
    assert_eq!(open(2, &three, &disk), Some(VoterError::OtherNode(1)));
    let other = open(1, &[NodeId(1), NodeId(2), NodeId(4)], &disk).expect("refused").to_string();
    assert!(other.starts_with("TANDEM_VOTERS was 1,2,3") && other.contains("is 1,2,4 now"), "{other}");
    assert_eq!(open(1, &three, &disk[..disk.len() - 1]), Some(VoterError::Unreadable(1)));
    assert_eq!(open(1, &three, &[]), Some(VoterError::Unreadable(0)));
}

#[test]
fn a_voter_with_another_vote_file_than_agreed_neither_votes_nor_is_heard() {
    let mut rig = Rig::new(1, 3);
    for _ in 0..50 {
        rig.turn();
    }
    let mut map = after(rig.sites[0].newest.as_ref(), 0);
    map.nodes[1].birth = 8;
    assert!(!rig.sites[0].voter.as_mut().expect("running").on_agreed(&map));
    let lost = rig.sites[1].voter.as_mut().expect("running");
    assert!(lost.on_agreed(&map) && !lost.is_leader());
    for _ in 0..50 {
        rig.turn();
    }
    let counters = rig.counters();
    let before = counters[0].strangers;
    assert!(before <= 4, "it sends nothing more, and what was under way does not count");
    assert!(counters[1].strangers > 5, "and takes nothing");
    let letter = Letter { birth: 7, life: 9, number: 1, leads: None, message: request(2, 1) };
    let voter = rig.sites[0].voter.as_mut().expect("running");
    voter.on_message(NodeId(2), &letter.write().expect("bytes"));
    assert_eq!(voter.counters().strangers, before + 1);
}

fn request(from: u64, to: u64) -> omnipaxos::messages::Message<ClusterMap> {
    use omnipaxos::messages::ballot_leader_election::{BLEMessage, HeartbeatMsg, HeartbeatRequest};
    let msg = HeartbeatMsg::Request(HeartbeatRequest { round: 1 });
    omnipaxos::messages::Message::BLE(BLEMessage { from, to, msg })
}

proptest! {
    #[test]
    fn hostile_letters_never_panic(
        seed in 0..1_000_u64,
        rubbish in proptest::collection::vec(any::<u8>(), 0..80),
        flips in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..4),
    ) {
        // Letters of real voters, changed on the way.
        let mut rig = Rig::new(seed, 3);
        let mut changed = 0;
        for tick in 0..150 {
            let mut flights = std::mem::take(&mut rig.flights);
            for (key, (_, _, bytes)) in &mut flights {
                if key.1 % 3 == 0 {
                    for (at, mask) in &flips {
                        let at = usize::from(*at) % bytes.len();
                        bytes[at] ^= mask.rotate_left(key.1 as u32 + tick);
                    }
                    changed += 1;
                }
            }
            rig.flights = flights;
            for site in &mut rig.sites {
                let voter = site.voter.as_mut().expect("running");
                voter.on_message(NodeId(2), &rubbish);
                voter.tick();
                if voter.can_propose() {
                    let map = after(site.newest.as_ref(), tick);
                    voter.propose(map);
                }
                site.newest = voter.take_decided().or(site.newest.take());
            }
            // Whatever the voters conclude from such letters, they go on.
            let letters: Vec<_> = std::mem::take(&mut rig.flights).into_values().collect();
            for (from, to, bytes) in letters {
                rig.sites[to].voter.as_mut().expect("running").on_message(NodeId(from as u16 + 1), &bytes);
            }
            for at in 0..3 {
                let mut written = Vec::new();
                let voter = rig.sites[at].voter.as_mut().expect("running");
                voter.save(&mut Vec::new());
                voter.take_messages(|to, bytes| written.push((at, usize::from(to.0) - 1, bytes.to_vec())));
                for flight in written {
                    rig.sent += 1;
                    rig.flights.insert((0, rig.sent), flight);
                }
            }
        }
        prop_assert!(changed > 20);
    }
}
