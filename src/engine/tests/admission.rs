//! New calls under limits and overload, while those in progress go on.

use super::*;
use crate::engine::AdmissionLimits;
use crate::engine::admission::TurnedAway;

const IDLE: Nanos = Nanos::ZERO;

fn ask(cluster: &mut Cluster, behind: Nanos, packet: &[u8]) -> (Result<(), TurnedAway>, Vec<u8>) {
    let inbound = Inbound { source: CLIENT, local: LocalId::endpoint(0), payload: packet };
    let (now, mut answer) = (cluster.now, Vec::new());
    let key = CallKey(packet.get(1).copied().unwrap_or_default().into());
    (cluster.shards[0].admit(now, key, &inbound, behind, &mut answer), answer)
}

#[test]
fn limits_are_for_calls_that_are_not_known_and_refusals_are_short() {
    let limits = AdmissionLimits { cps: 1, ..Default::default() };
    let mut cluster = Cluster::new(3, |config| config.admission = limits);
    cluster.settle();
    assert_eq!(ask(&mut cluster, IDLE, b"Ca").0, Ok(()));
    cluster.send(b"a").unwrap();
    cluster.settle();
    assert_eq!(ask(&mut cluster, IDLE, b"Ca").0, Ok(()), "it is known now");
    assert_eq!(ask(&mut cluster, IDLE, b"xb").0, Ok(()), "begins no call");
    let refused = (Err(TurnedAway::Rate), b"Cb\x02".to_vec());
    assert_eq!(ask(&mut cluster, IDLE, b"Cb"), refused);
    cluster.now.mono = cluster.now.mono + Nanos::from_millis(1_500);
    assert_eq!(ask(&mut cluster, IDLE, b"Cb"), refused, "not before the time it was told");
    assert_eq!(ask(&mut cluster, IDLE, b"Cc").0, Ok(()));
    assert_eq!(cluster.shards[0].stats().turned_away_rate, 2);
}

#[test]
fn a_loop_that_is_behind_takes_no_new_calls() {
    let mut cluster = Cluster::new(3, |_| {});
    cluster.settle();
    cluster.send(b"a").unwrap();
    cluster.settle();
    let behind = Nanos::from_secs(1);
    assert_eq!(ask(&mut cluster, behind, b"Ca").0, Ok(()));
    assert_eq!(ask(&mut cluster, behind, b"Cb").0, Err(TurnedAway::Overload));
    assert_eq!(ask(&mut cluster, IDLE, b"Cd").0, Ok(()));
    assert_eq!(cluster.shards[0].stats().turned_away_overload, 1);
}

#[test]
fn a_log_that_is_nearly_full_takes_no_new_calls() {
    let mut cluster = Cluster::new(3, |_| {});
    cluster.settle();
    cluster.send(b"a").unwrap();
    cluster.settle();
    cluster.cut = NodeSet(0b1100);
    (0..80).for_each(|_| cluster.send(b"a").unwrap());
    assert_eq!(ask(&mut cluster, IDLE, b"Ca").0, Ok(()));
    assert_eq!(ask(&mut cluster, IDLE, b"Cq").0, Err(TurnedAway::Overload), "a slot of call a: 16 apart");
    assert_eq!(ask(&mut cluster, IDLE, b"Cr").0, Ok(()), "another slot");
}

#[test]
fn media_of_no_call_is_dropped_before_the_log() {
    let mut cluster = Cluster::new(3, |_| {});
    cluster.settle();
    let (now, mut answer) = (cluster.now, Vec::new());
    let mut media = |port| {
        let inbound = Inbound { source: CLIENT, local: LocalId::media(0, port), payload: b"" };
        cluster.shards[0].admit(now, CallKey(0), &inbound, IDLE, &mut answer)
    };
    assert_eq!((media(8), media(9)), (Ok(()), Err(TurnedAway::NoCall)));
    assert_eq!(cluster.shards[0].stats().turned_away_no_call, 1);
}
