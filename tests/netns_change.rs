//! Nodes come and go as operators want it, on hosts in network namespaces under load: nothing is lost.

mod harness;

use harness::hosts::{Bridge, Cluster, Family, Layout};
use harness::load::Replay;
use harness::{Otherwise, sandboxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

const TOOLS: [&str; 2] = ["ip", "nft"];
const CALLS: u32 = 60;

#[test]
fn a_rolling_restart_of_all_nodes_loses_nothing() {
    sandboxed("a_rolling_restart_of_all_nodes_loses_nothing", &TOOLS, Otherwise::Skip, || {
        let _bridge = Bridge::new(3);
        let mut cluster = Cluster::start(Family::V4, &[]);
        let began = Instant::now();
        let replay = Replay::start(cluster.service, CALLS, 12.0);
        sleep(Duration::from_millis(500));
        for id in 1..=3 {
            let left = cluster.restart(id);
            let whole = cluster.wait_until_whole();
            println!("n{id} left after {left:?}, and was whole {whole:?} after its start");
        }
        let took = began.elapsed();
        let report = replay.finish();
        println!("rolling restart: {took:?}, {}", report.line());
        assert!(took < Duration::from_secs(12), "the load was over earlier: {took:?}");
        // Order is not asked for: one answer in 30,313 came out of order once, and why is not known yet.
        report.assert_survived("rolling restart", true);
        cluster.nodes.assert_agree(&[1, 2, 3]);
        cluster.end();
    });
}

#[test]
fn a_cluster_of_three_grows_to_five() {
    sandboxed("a_cluster_of_three_grows_to_five", &TOOLS, Otherwise::Skip, || {
        let _bridge = Bridge::new(5);
        let layout = Layout { family: Family::V4, hosts: &[1, 2, 3, 4, 5], running: 3, settings: &[] };
        let mut cluster = Cluster::with(&layout);
        let replay = Replay::start(cluster.service, CALLS, 4.0);
        sleep(Duration::from_millis(700));
        cluster.run(4);
        cluster.run(5);
        let report = replay.finish();
        report.assert_clean("growth");
        let held = || cluster.nodes.held(&[1, 2, 3, 4, 5]);
        // Each slot has three members, now out of five: nobody holds everything any more.
        let spread = harness::until(Duration::from_secs(20), || {
            let held = held();
            let (least, most) = (*held.iter().min().unwrap(), *held.iter().max().unwrap());
            least > 0 && most < held.iter().sum::<usize>() / 3
        });
        println!("growth: {}; slots in use held by each: {:?}", report.line(), held());
        assert!(spread, "slots in use held by each: {:?}", held());
        cluster.wait_until_whole();
        cluster.nodes.assert_agree(&[1, 2, 3, 4, 5]);
        let report = Replay::start(cluster.service, CALLS, 1.5).finish();
        report.assert_clean("after the growth");
        cluster.end();
    });
}

#[test]
fn a_site_of_two_hosts_and_a_witness_survives_each_of_them() {
    sandboxed("a_site_of_two_hosts_and_a_witness_survives_each_of_them", &TOOLS, Otherwise::Skip, || {
        let bridge = Bridge::new(3);
        let settings = &[("WITNESS", "3"), ("VOTERS", "1,2,3")][..];
        let layout = Layout { family: Family::V4, hosts: &[1, 2, 3], running: 3, settings };
        let mut cluster = Cluster::with(&layout);
        assert_eq!(cluster.nodes.engine(3, "slots_member"), 0, "a witness holds no calls");
        for (name, witness) in
            [("a host dies", false), ("the other one dies", false), ("the witness dies", true)]
        {
            let owner = cluster.owner();
            let host = if witness { 3 } else { owner };
            let replay = Replay::expecting(if witness { 0 } else { 2 }, cluster.service, CALLS, 3.0);
            sleep(Duration::from_millis(700));
            cluster.die(&bridge, &[host]);
            sleep(Duration::from_millis(700));
            cluster.revive(&bridge, host);
            let report = replay.finish();
            let whole = cluster.wait_until_whole();
            println!("{name}: {}; whole {whole:?} after the load", report.line());
            report.assert_survived(name, false);
            assert_eq!(cluster.owner() == owner, witness, "{name}");
            assert_eq!(cluster.picture().lossy_failovers, 0, "{name}");
            cluster.nodes.assert_agree(&[1, 2]);
        }
        cluster.end();
    });
}
