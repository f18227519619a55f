//! Who leads the voters: somebody else at once when the leader is lost, and no owner for long.

use super::Rig;
use super::council::{formed, holders};
use crate::types::{Boot, NodeId};

/// The node that says of itself that it leads.
fn leader(rig: &mut Rig) -> Option<u16> {
    let controls = rig.controls.iter().zip(1..);
    controls.filter(|(c, _)| c.as_ref().is_some_and(super::Control::leads)).map(|(_, n)| n).next()
}

/// For how many microseconds nobody leads from now on.
fn leaderless(rig: &mut Rig) -> u64 {
    let begun = rig.micros;
    while leader(rig).is_none() {
        rig.run(100);
        assert!(rig.micros < begun + 100_000, "nobody leads");
    }
    rig.micros - begun
}

#[test]
fn a_leader_whose_process_has_ended_is_replaced_at_once() {
    let mut rig = formed();
    let led = leader(&mut rig).expect("a leader");
    rig.controls[usize::from(led) - 1] = None;
    let now = rig.now();
    for node in (1..=3).filter(|n| *n != usize::from(led)) {
        rig.control(node).on_exit_notice(now, NodeId(led), Boot(10));
    }
    let took = leaderless(&mut rig);
    assert!(took < 1_500, "{took} us");
}

#[test]
fn a_leader_that_is_silent_is_replaced_when_a_majority_says_so() {
    let mut rig = formed();
    let led = leader(&mut rig).expect("a leader");
    rig.controls[usize::from(led) - 1] = None;
    let took = leaderless(&mut rig);
    // DEAD_AFTER is 15 ms; an election would take three times five beats more.
    assert!((14_000..20_000).contains(&took), "{took} us");
}

#[test]
fn an_owner_does_not_lead_for_long_and_its_lease_does_not_suffer() {
    let mut rig = formed();
    rig.control(1).council.seize_the_lead();
    rig.run(5_000);
    assert_eq!(leader(&mut rig), Some(1));
    for _ in 0..400 {
        rig.run(500);
        assert_eq!(holders(&mut rig), [1]);
    }
    assert_eq!(leader(&mut rig), Some(3), "the first addresses go to the first nodes, so the last one leads");
    let stood = |node: usize, rig: &mut Rig| rig.control(node).voter_counters().map(|c| c.stood);
    rig.run(500_000);
    assert_eq!((stood(2, &mut rig), stood(3, &mut rig)), (Some(0), Some(1)), "once is enough");
}

/// How often voters stood for leader without waiting for an election.
fn stood(rig: &mut Rig) -> u64 {
    let controls = rig.controls.iter().flatten();
    controls.filter_map(super::Control::voter_counters).map(|counters| counters.stood).sum()
}

#[test]
fn a_leader_that_leaves_is_relieved_and_voters_that_all_leave_do_not_relieve_each_other() {
    let mut rig = formed();
    let led = leader(&mut rig).expect("a leader");
    rig.control(led.into()).drain().unwrap();
    rig.run(10_000);
    assert!(leader(&mut rig).is_some_and(|leader| leader != led) && stood(&mut rig) == 1);
    (1..=3).for_each(|node| drop(rig.control(node).drain()));
    rig.run(100_000);
    assert!(stood(&mut rig) <= 2, "{}", stood(&mut rig));
}

#[test]
fn a_voter_that_is_left_alone_neither_stands_nor_looks_out_for_long() {
    let mut rig = formed();
    let led = leader(&mut rig).expect("a leader");
    let left = (1..=3).find(|n| *n != led).expect("another");
    for gone in (1..=3).filter(|n| *n != left) {
        rig.controls[usize::from(gone) - 1] = None;
    }
    rig.run(100_000);
    assert_eq!(stood(&mut rig), 0, "it hears no majority");
    assert!(!rig.control(left.into()).is_busy());
}

#[test]
fn a_voter_that_hears_nobody_relieves_nobody() {
    let mut rig = formed();
    rig.control(1).council.seize_the_lead();
    rig.run(5_000);
    rig.alone = Some((3, true));
    rig.run(400_000);
    assert_eq!(rig.control(3).voter_counters().map(|c| c.stood), Some(0));
    assert_eq!(leader(&mut rig), Some(1));
}
