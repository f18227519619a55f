//! What operators are told when something is worse than it should be, and how long failovers took.

use super::Rig;
use super::council::{formed, holders};
use crate::engine::ShardReport;
use crate::engine::control::{ControlEvent, Failover, Weight};
use crate::types::Nanos;

fn told(rig: &mut Rig, node: usize) -> Vec<ControlEvent> {
    let quiet = |event: &ControlEvent| matches!(event, ControlEvent::Joined(..) | ControlEvent::Proposed(_));
    rig.control(node).take_events().filter(|event| !quiet(event)).collect()
}

#[test]
fn a_lost_majority_is_told_once_and_so_is_its_return() {
    let mut rig = formed();
    assert_eq!(told(&mut rig, 1), []);
    let others = [rig.controls[1].take(), rig.controls[2].take()];
    rig.run(200_000);
    assert_eq!(told(&mut rig, 1), [ControlEvent::QuorumLost]);
    assert_eq!((rig.control(1).has_quorum(), rig.control(1).quorum_losses()), (false, 1));
    assert_eq!((ControlEvent::QuorumLost.weight(), holders(&mut rig)), (Weight::Error, vec![]));
    for (at, other) in others.into_iter().enumerate() {
        rig.controls[at + 1] = other;
    }
    rig.run(200_000);
    let back = told(&mut rig, 1);
    let [ControlEvent::QuorumBack(after)] = back[..] else { panic!("{back:?}") };
    assert!(after > Nanos::from_millis(150) && after < Nanos::from_millis(300), "{after:?}");
}

#[test]
fn losses_that_the_shards_report_are_told() {
    let mut rig = formed();
    told(&mut rig, 1);
    let report = |lossy, stopped| ShardReport { map: 1, lossy, stopped, ..ShardReport::default() };
    let mut then = |report| {
        rig.control(1).on_report(0, report);
        rig.run(5_000);
        told(&mut rig, 1)
    };
    assert_eq!(then(report(0, 3)), [ControlEvent::Stopped(3)]);
    assert_eq!(then(report(0, 3)), []);
    assert_eq!(then(report(2, 0)), [ControlEvent::LossySlots(2), ControlEvent::Stopped(0)]);
    assert_eq!(then(report(2, 0)), []);
    assert_eq!(ControlEvent::LossySlots(2).weight(), Weight::Error);
    let text = ControlEvent::Stopped(3).to_string();
    assert!(text.contains("3 slots are STOPPED") && text.contains("TANDEM_LOSSY=stop"), "{text}");
}

#[test]
fn a_failover_is_over_when_the_new_owner_serves_all_of_it() {
    let mut rig = formed();
    rig.run(20_000);
    rig.controls[0] = None;
    while rig.control(2).map().addresses[0].term.0 == 1 {
        rig.run(500);
    }
    let report = |rig: &mut Rig, recovering| {
        let map = rig.control(2).map().version;
        for shard in 0..2 {
            rig.control(2).on_report(shard, ShardReport { map, recovering, ..ShardReport::default() });
        }
    };
    report(&mut rig, 7);
    rig.run(10_000);
    let failovers = rig.control(2).failovers().to_vec();
    let [known] = &failovers[..] else { panic!("{failovers:?}") };
    assert_eq!(known.took_us, None, "7 slots are still being recovered");
    assert!(known.agreed_us >= 15_000 && known.agreed_us < 60_000, "{known:?}");
    // Another address has gone to another node since.
    let elsewhere = Failover { address: 1, to: 3, ..known.clone() };
    rig.control(2).council.failovers.push(elsewhere);
    report(&mut rig, 0);
    rig.run(1_000);
    let took = rig.control(2).failovers()[0].took_us;
    assert!(took.is_some_and(|took| took >= known.agreed_us + 10_000 && took < 100_000), "{took:?}");
    assert_eq!(rig.control(3).failovers()[0].took_us, None, "it is not the new owner");
}
