//! The rules of joining, by controls that talk to each other over a link with a delay.

mod alarms;
mod council;
mod lead;
mod leases;

use std::collections::VecDeque;

use super::{Control, ControlConfig, ControlEvent, Disagreement};
use crate::engine::{Outbox, ShardReport};
use crate::types::{Boot, Endpoint, LocalId, Nanos, NodeId, NodeSet, Now, Slot};

/// Datagrams one control has written.
#[derive(Default)]
struct Written(Vec<(NodeId, Vec<u8>)>);

impl Outbox for Written {
    fn peer(&mut self, to: NodeId, plaintext: &[u8]) {
        self.0.push((to, plaintext.to_vec()));
    }
    fn multicast(&mut self, _: NodeSet, _: &[u8]) {
        panic!("a control does not multicast");
    }
    fn client(&mut self, _: Slot, _: LocalId, _: Endpoint, _: &[u8]) {
        panic!("a control has no clients");
    }
}

fn config(node: u16, boot: u64, settings: &[(&str, &str)]) -> ControlConfig {
    ControlConfig {
        node: NodeId(node),
        boot: Boot(boot),
        peers: (1..=3).filter(|peer| *peer != node).map(NodeId).collect(),
        shards: 2,
        beat: Nanos::from_millis(1),
        suspect_after: Nanos::from_millis(3),
        suspect_ceiling: Nanos::from_millis(12),
        settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        settings_hash: settings.iter().flat_map(|(n, v)| n.bytes().chain(v.bytes())).map(u64::from).sum(),
        council: council::config(3, None),
    }
}

fn start(config: ControlConfig) -> Control {
    Control::new(config).expect("nothing saved")
}

const AGREED: &[(&str, &str)] = &[("SLOTS", "4096"), ("R", "3")];

/// A datagram on its way.
struct Flight {
    due: u64,
    from: usize,
    to: NodeId,
    boot: Boot,
    bytes: Vec<u8>,
}

/// Nodes 1 to 3 on links of 100 us, turning every 100 us.
struct Rig {
    controls: Vec<Option<Control>>,
    flights: VecDeque<Flight>,
    /// Nothing from one to the other arrives.
    cut: Option<(usize, NodeId)>,
    micros: u64,
    /// What each voter has saved.
    votes: Vec<Option<Vec<u8>>>,
    /// A node of which nothing arrives, or at which nothing does.
    alone: Option<(u16, bool)>,
    /// Shards report that everything is as it should be.
    settled_reports: bool,
    /// What disks are given does not become durable.
    stuck_disks: bool,
}

impl Rig {
    fn new(configs: [ControlConfig; 3]) -> Rig {
        let controls = configs.map(|config| Some(start(config))).into();
        Rig {
            controls,
            flights: VecDeque::new(),
            cut: None,
            micros: 1_000_000,
            votes: vec![None; 3],
            alone: None,
            settled_reports: false,
            stuck_disks: false,
        }
    }

    fn now(&self) -> Now {
        Now { mono: Nanos::from_micros(self.micros), wall: Nanos::ZERO }
    }

    fn run(&mut self, micros: u64) {
        for _ in 0..micros / 100 {
            self.micros += 100;
            let now = self.now();
            while self.flights.front().is_some_and(|flight| flight.due <= self.micros) {
                let flight = self.flights.pop_front().expect("a flight");
                let alone =
                    |(node, deaf)| if deaf { flight.to.0 == node } else { flight.from as u16 + 1 == node };
                if self.cut == Some((flight.from + 1, flight.to)) || self.alone.is_some_and(alone) {
                    continue;
                }
                if let Some(control) = &mut self.controls[usize::from(flight.to.0) - 1] {
                    control.on_peer(now, NodeId(flight.from as u16 + 1), flight.boot, &flight.bytes);
                }
            }
            for (from, control) in self.controls.iter_mut().enumerate() {
                let Some(control) = control else { continue };
                if control.next_timeout() <= now.mono {
                    control.on_timeout(now);
                }
                if self.settled_reports {
                    let map = control.map().version;
                    let all = crate::proto::map::GroupSet::ALL;
                    for shard in 0..2 {
                        let report =
                            ShardReport { map, synced: all, confirmed: all, ..ShardReport::default() };
                        control.on_report(shard, report);
                    }
                }
                control.on_turn(now);
                if let Some(votes) = control.take_votes() {
                    self.votes[from] = Some(votes);
                    if !self.stuck_disks {
                        control.on_votes_saved();
                    }
                }
                let mut written = Written::default();
                control.flush(now, &mut written);
                let (due, boot) = (self.micros + 100, control.config.boot);
                let flights = written.0.into_iter().map(|(to, bytes)| Flight { due, from, to, boot, bytes });
                self.flights.extend(flights);
            }
        }
    }

    fn control(&mut self, node: usize) -> &mut Control {
        self.controls[node - 1].as_mut().expect("a running node")
    }

    fn suspects(&mut self, node: usize) -> Vec<u16> {
        self.control(node).suspects(0).iter().map(|node| node.0).collect()
    }
}

#[test]
fn a_peer_that_speaks_but_does_not_hear_is_suspected_until_it_hears_again() {
    let mut rig = agreeing();
    rig.run(20_000);
    rig.cut = Some((1, NodeId(3)));
    rig.run(6_000);
    assert_eq!(rig.suspects(1), [3], "its beats say that it hears nothing of node 1");
    assert_eq!(rig.suspects(3), [1], "it hears nothing of node 1");
    assert_eq!(rig.suspects(2), Vec::<u16>::new());
    assert_eq!(rig.control(1).counters().deaf, 1);
    rig.cut = None;
    rig.run(3_000);
    assert_eq!(rig.suspects(1), Vec::<u16>::new());
}

fn agreeing() -> Rig {
    Rig::new([1, 2, 3].map(|node| config(node, 10, AGREED)))
}

#[test]
fn nodes_that_agree_join_in_a_few_turns_and_know_their_round_trip() {
    let mut rig = agreeing();
    rig.run(600);
    for node in 1..=3 {
        assert!(rig.control(node).all_joined(), "node {node}");
        let joined: Vec<_> = rig.control(node).take_events().collect();
        assert!(matches!(joined[..], [ControlEvent::Joined(..), ControlEvent::Joined(..)]), "{joined:?}");
    }
    rig.run(20_000);
    assert_eq!(rig.suspects(1), Vec::<u16>::new());
    let status: Vec<_> = rig.control(1).peers().collect();
    let rtt = status[0].rtt.map_or(0, Nanos::as_micros);
    assert!((190..=210).contains(&rtt), "{rtt} us");
    assert!(status.iter().all(|peer| peer.up && peer.boot == Some(Boot(10)) && peer.refused.is_none()));
    assert_eq!(rig.control(1).detector_counters().suspicions, 0);
}

#[test]
fn other_settings_do_not_join_and_both_sides_say_which_once() {
    let others = &[("SLOTS", "4096"), ("R", "2")];
    let mut rig = Rig::new([config(1, 10, AGREED), config(2, 10, AGREED), config(3, 10, others)]);
    rig.run(500_000);
    assert!(!rig.control(1).all_joined());
    assert!(rig.control(1).joined().contains(NodeId(2)) && !rig.control(1).joined().contains(NodeId(3)));
    let now = rig.now();
    rig.control(1).on_life(now, NodeId(3), Boot(10));
    assert_eq!(rig.suspects(1), [3], "its data count for nothing either");
    assert_eq!(rig.suspects(3), [1, 2]);
    let told = |rig: &mut Rig, node: usize, peer: u16| -> Vec<String> {
        let of_peer = |event: &ControlEvent| matches!(event, ControlEvent::Refused(n, _) if n.0 == peer);
        rig.control(node).take_events().filter(of_peer).map(|event| event.to_string()).collect()
    };
    let here = "node 3 and this node do not join: TANDEM_R is 2 there and 3 here; \
                set the same value on all nodes and restart";
    assert_eq!(told(&mut rig, 1, 3), [here]);
    let there = "node 1 and this node do not join: TANDEM_R is 3 there and 2 here; \
                 set the same value on all nodes and restart";
    assert_eq!(told(&mut rig, 3, 1), [there]);
    let status = rig.control(1).peers().nth(1).expect("node 3");
    assert!(!status.up && status.refused.is_some());
}

#[test]
fn a_refusal_that_arrives_alone_is_enough() {
    let mut rig = agreeing();
    rig.run(1_000);
    let mut bytes = Vec::new();
    let refused = crate::wire::beat::HelloRefused { name: "NEW", ours: Some("on"), theirs: None };
    crate::wire::beat::write_hello_refused(&mut bytes, &refused);
    let now = rig.now();
    rig.control(1).take_events().for_each(drop);
    rig.control(1).on_peer(now, NodeId(2), Boot(10), &bytes);
    let differs = Disagreement { name: "NEW".to_owned(), ours: None, theirs: Some("on".to_owned()) };
    assert_eq!(rig.control(1).take_events().collect::<Vec<_>>(), [ControlEvent::Refused(NodeId(2), differs)]);
    rig.run(10_000);
    assert_eq!(rig.suspects(1), [2], "its beats do not bring it back");
}

#[test]
fn a_setting_only_one_side_knows_is_a_disagreement() {
    let more = &[("SLOTS", "4096"), ("R", "3"), ("NEW", "on")];
    let mut rig = Rig::new([config(1, 10, AGREED), config(2, 10, AGREED), config(3, 10, more)]);
    rig.run(5_000);
    let texts: Vec<_> = rig.control(1).take_events().map(|event| event.to_string()).collect();
    assert!(texts.iter().any(|text| text.contains("NEW is on there and unknown here")), "{texts:?}");
    let texts: Vec<_> = rig.control(3).take_events().map(|event| event.to_string()).collect();
    assert!(texts.iter().any(|text| text.contains("NEW is unknown there and on here")), "{texts:?}");
}

#[test]
fn a_peer_restarted_with_other_settings_is_noticed_and_with_the_right_ones_joins_again() {
    let mut rig = agreeing();
    rig.run(10_000);
    rig.controls[2] = Some(start(config(3, 11, &[("SLOTS", "128"), ("R", "3")])));
    rig.run(10_000);
    assert_eq!(rig.suspects(1), [3]);
    assert!(!rig.control(1).joined().contains(NodeId(3)));
    rig.controls[2] = Some(start(config(3, 12, AGREED)));
    rig.run(10_000);
    assert_eq!((rig.suspects(1), rig.suspects(3)), (vec![], vec![]));
    assert!(rig.control(1).all_joined() && rig.control(3).all_joined());
    assert_eq!(rig.control(1).detector_counters().wrong, 0);
}

#[test]
fn a_node_that_starts_late_joins_and_one_that_dies_is_suspected_within_its_limit() {
    let mut rig = agreeing();
    let late = rig.controls[2].take();
    rig.run(50_000);
    assert_eq!(rig.suspects(1), [3]);
    assert_eq!(rig.control(1).detector_counters().suspicions, 0, "never heard is no suspicion");
    rig.controls[2] = late;
    rig.run(1_000);
    assert!((1..=3).all(|node| rig.control(node).all_joined()));
    rig.run(50_000);
    let version = rig.control(1).suspects_version();
    rig.controls[2] = None;
    rig.run(1_900);
    assert_eq!(rig.suspects(1), Vec::<u16>::new(), "its last beat is at most 1 ms older than its death");
    rig.run(1_200);
    assert_eq!(rig.suspects(1), [3]);
    assert!(rig.control(1).suspects_version() > version);
}

#[test]
fn a_refused_datagram_suspects_at_once_and_the_probe_clears_it() {
    let mut rig = agreeing();
    rig.run(10_000);
    let now = rig.now();
    rig.control(1).on_refused(now, NodeId(2));
    assert_eq!(rig.suspects(1), [2]);
    let mut written = Written::default();
    rig.control(1).flush(now, &mut written);
    assert!(written.0.iter().any(|(to, _)| *to == NodeId(2)), "a probe goes out with this very flush");
    rig.run(2_000);
    assert_eq!(rig.suspects(1), Vec::<u16>::new());
}

#[test]
fn a_stuck_worker_is_told_and_suspected_for_its_shard_alone() {
    let mut rig = agreeing();
    rig.run(10_000);
    for turn in 0..8 {
        let now = rig.now();
        rig.control(2).on_progress(now, 0, 77, false);
        rig.control(2).on_progress(now, 1, turn, false);
        rig.run(1_000);
    }
    assert_eq!(rig.suspects(1), [2]);
    assert_eq!(rig.control(1).suspects(1), NodeSet::EMPTY);
    assert!(rig.control(1).peers().all(|peer| peer.up));
}

#[test]
fn strangers_old_lives_and_malformed_datagrams_are_counted_and_do_nothing() {
    let mut rig = agreeing();
    rig.run(10_000);
    let now = rig.now();
    let control = rig.control(1);
    control.on_peer(now, NodeId(9), Boot(1), b"");
    control.on_peer(now, NodeId(2), Boot(9), b"");
    control.on_peer(now, NodeId(2), Boot(10), &[32, 255, 255, 0]);
    control.on_refused(now, NodeId(9));
    assert_eq!((control.counters().stale, control.counters().malformed), (2, 1));
    assert!(control.all_joined());
}

#[test]
fn beats_keep_their_interval_when_a_turn_is_late() {
    let mut control = start(config(1, 10, AGREED));
    let at = |micros| Now { mono: Nanos::from_micros(micros), wall: Nanos::ZERO };
    let mut beats = 0;
    for micros in [5_000, 5_300, 6_050, 7_040, 30_000, 30_500, 31_000] {
        control.on_timeout(at(micros));
        let mut written = Written::default();
        control.flush(at(micros), &mut written);
        beats += written.0.len() / 2;
    }
    assert_eq!(beats, 5, "at 5, 6.05, 7.04, 30 and 31 ms: none are made up for");
    assert_eq!(control.next_timeout(), Nanos::from_millis(32));
}
