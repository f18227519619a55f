//! Three hosts in network namespaces, under a cluster key and with links that fail for real.

mod harness;

use harness::cluster::sum;
use harness::hosts::{Bridge, Cluster, Family};
use harness::load::{Replay, Report};
use harness::{Otherwise, sandboxed};
use std::thread::sleep;
use std::time::Duration;
use tandem::io::sys_process::Signal;

const TOOLS: [&str; 2] = ["ip", "nft"];
const ALL: [u16; 3] = [1, 2, 3];

/// Replays for three seconds, `fault` one second after the beginning; all must be answered, and all members agree.
fn must_be_clean(name: &str, cluster: &Cluster, fault: impl FnOnce()) -> Report {
    let replay = Replay::start(cluster.service, 100, 3.0);
    sleep(Duration::from_millis(1_000));
    fault();
    let report = replay.finish();
    println!("{name}: {}", report.line());
    report.assert_clean(name);
    cluster.nodes.assert_agree(&ALL);
    let owner = cluster.nodes.status(1);
    assert!(sum(&owner, "engine", "released") >= report.count("sent"), "{owner}");
    report
}

/// A node other than the owner that is master of a share of the slots.
fn a_master(cluster: &Cluster) -> u16 {
    cluster.nodes.masters(1).0
}

/// A fault that lasts half a second and must have been noticed.
fn for_half_a_second(cluster: &Cluster, begin: impl FnOnce(), end: impl FnOnce()) {
    let moved = || cluster.nodes.engine(1, "master_changes");
    let before = moved();
    begin();
    sleep(Duration::from_millis(500));
    end();
    let after = moved();
    println!("masterships moved: {}", after - before);
    assert!(after > before, "nobody noticed");
}

#[test]
fn three_hosts_over_ipv4_and_ipv6_and_with_two_shards() {
    sandboxed("three_hosts_over_ipv4_and_ipv6_and_with_two_shards", &TOOLS, Otherwise::Skip, || {
        let _bridge = Bridge::new(3);
        for (name, family, settings) in [
            ("IPv4", Family::V4, &[][..]),
            ("IPv6", Family::V6, &[]),
            ("two shards", Family::V4, &[("SHARDS", "2")]),
        ] {
            let cluster = Cluster::start(family, settings);
            must_be_clean(name, &cluster, || {});
            cluster.end();
        }
    });
}

#[test]
fn loss_on_every_link_between_nodes_loses_nothing() {
    sandboxed("loss_on_every_link_between_nodes_loses_nothing", &TOOLS, Otherwise::Skip, || {
        let bridge = Bridge::new(3);
        for (name, percent, family, settings) in [
            ("1 % loss", 1, Family::V4, &[][..]),
            ("5 % loss", 5, Family::V4, &[]),
            ("1 % loss, two shards, multicast", 1, Family::V4, &[("SHARDS", "2"), ("FANOUT", "multicast")]),
            ("5 % loss, IPv6", 5, Family::V6, &[]),
        ] {
            let cluster = Cluster::start(family, settings);
            bridge.lose(family, percent);
            must_be_clean(name, &cluster, || {});
            let hits = bridge.hits();
            println!("{name}: {hits} packets dropped");
            assert!(hits > 50, "{hits} packets dropped");
            bridge.heal();
            cluster.end();
        }
    });
}

#[test]
fn a_cut_or_frozen_master_is_replaced_and_comes_back() {
    sandboxed("a_cut_or_frozen_master_is_replaced_and_comes_back", &TOOLS, Otherwise::Skip, || {
        let bridge = Bridge::new(3);
        // One cluster for all: what a fault leaves behind must not harm the next one's outcome.
        let cluster = Cluster::start(Family::V4, &[]);
        for (name, says, hears) in [
            ("cut both ways", true, true),
            ("it hears nobody", false, true),
            ("nobody hears it", true, false),
        ] {
            must_be_clean(name, &cluster, || {
                let master = a_master(&cluster);
                for_half_a_second(&cluster, || bridge.cut(master, says, hears), || bridge.heal());
            });
        }
        must_be_clean("frozen", &cluster, || {
            let master = a_master(&cluster);
            for_half_a_second(
                &cluster,
                || cluster.nodes.signal(master, Signal::Stop),
                || cluster.nodes.signal(master, Signal::Continue),
            );
        });
        cluster.end();
    });
}

#[test]
fn a_killed_master_on_a_host_of_its_own_is_replaced() {
    sandboxed("a_killed_master_on_a_host_of_its_own_is_replaced", &TOOLS, Otherwise::Skip, || {
        let _bridge = Bridge::new(3);
        for (name, settings) in
            [("unicast", &[][..]), ("multicast", &[("FANOUT", "multicast"), ("SHARDS", "2")])]
        {
            let cluster = Cluster::start(Family::V4, settings);
            let replay = Replay::start(cluster.service, 100, 3.0);
            sleep(Duration::from_millis(1_000));
            let (master, other) = cluster.nodes.masters(1);
            cluster.nodes.kill(master);
            let report = replay.finish();
            println!("killed, {name}: {}", report.line());
            report.assert_clean(name);
            cluster.nodes.assert_agree(&[1, other]);
            cluster.end();
        }
    });
}

#[test]
fn duplicated_and_reordered_datagrams_between_nodes_do_no_harm() {
    sandboxed("duplicated_and_reordered_datagrams_between_nodes_do_no_harm", &TOOLS, Otherwise::Skip, || {
        let bridge = Bridge::new(3);
        let cluster = Cluster::start(Family::V4, &[]);
        bridge.duplicate();
        must_be_clean("duplicated", &cluster, || {});
        let hits = bridge.hits();
        assert!(hits > 100, "{hits} packets duplicated");
        let owner = cluster.nodes.status(1);
        assert!(sum(&owner, "io", "dropped.not_opened.replayed") > 20, "no duplicate arrived: {owner}");
        bridge.heal();
        bridge.reorder();
        must_be_clean("reordered", &cluster, || {});
        let hits = bridge.hits();
        println!("{hits} packets went the long way");
        assert!(hits > 100, "{hits} packets went the long way");
        bridge.heal();
        cluster.end();
    });
}

#[test]
fn multicast_fan_out_answers_everything() {
    sandboxed("multicast_fan_out_answers_everything", &TOOLS, Otherwise::Skip, || {
        let bridge = Bridge::new(3);
        let cluster = Cluster::start(Family::V4, &[("FANOUT", "multicast")]);
        bridge.rules(
            "table netdev faults {\nchain seen { type filter hook ingress device v1 priority 0; ip daddr 239.77.0.0/16 counter; }\n}",
        );
        must_be_clean("multicast", &cluster, || {});
        let hits = bridge.hits();
        assert!(hits > 1_000, "{hits} multicast datagrams");
        bridge.heal();
        cluster.end();
    });
}
