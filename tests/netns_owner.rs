//! The holder of the service address dies, freezes or loses its links, on hosts in network namespaces: another takes the
//! address over, nothing that was accepted is lost, and all is whole again in the end.

mod harness;

use harness::hosts::{Bridge, Cluster, Family, Layout};
use harness::load::Replay;
use harness::{Otherwise, sandboxed};
use std::thread::sleep;
use std::time::Duration;
use tandem::io::sys_process::Signal;

const TOOLS: [&str; 2] = ["ip", "nft"];
const CALLS: u32 = 60;

/// What a fault means for the service address.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Address {
    /// It moves to another node.
    Moves,
    /// It moves, and what its old owner was sent meanwhile reaches the new one late.
    MovesAndWaits,
    /// Its owner has nothing to do with it.
    Stays,
}

/// Load; a fault after some of it, and its end; nothing accepted may be lost, and in the end all nodes that run hold the
/// same and every slot has its members.
fn survives(name: &str, cluster: &mut Cluster, address: Address, fault: impl FnOnce(&mut Cluster)) {
    let (owner, lossy) = (cluster.owner(), cluster.picture().lossy_failovers);
    let term = |cluster: &Cluster| cluster.picture().addresses[0].term;
    let before = term(cluster);
    // One more than is made: a busy machine makes one of its own.
    let moves = if address == Address::Stays { 0 } else { 2 };
    let replay = Replay::expecting(moves, cluster.service, CALLS, 3.0);
    sleep(Duration::from_millis(700));
    fault(cluster);
    let report = replay.finish();
    let restored = cluster.wait_until_whole();
    println!("{name} (owner was n{owner}): {}; whole {restored:?} after the load", report.line());
    report.assert_survived(name, address == Address::MovesAndWaits);
    match address {
        Address::Moves | Address::MovesAndWaits => {
            assert!(term(cluster) > before, "{name}: the address has not moved")
        }
        Address::Stays => {
            assert_eq!((term(cluster), cluster.owner()), (before, owner), "{name}: it has moved")
        }
    }
    assert_eq!(cluster.picture().lossy_failovers, lossy, "{name}");
    let ids: Vec<u16> = cluster.nodes.nodes.iter().map(|node| node.id).collect();
    cluster.nodes.assert_agree(&ids);
}

fn later(millis: u64) {
    sleep(Duration::from_millis(millis));
}

#[test]
fn a_killed_owner_engine_is_replaced_and_comes_back() {
    sandboxed("a_killed_owner_engine_is_replaced_and_comes_back", &TOOLS, Otherwise::Skip, || {
        let _bridge = Bridge::new(3);
        for (name, family, settings) in [
            ("engine killed", Family::V4, &[][..]),
            ("engine killed, IPv6, two shards", Family::V6, &[("SHARDS", "2")]),
            ("engine killed, multicast", Family::V4, &[("FANOUT", "multicast")]),
        ] {
            let mut cluster = Cluster::start(family, settings);
            survives(name, &mut cluster, Address::Moves, |cluster| {
                cluster.nodes.kill_engine(cluster.owner());
            });
            cluster.end();
        }
    });
}

#[test]
fn a_host_that_dies_is_replaced_and_comes_back_empty() {
    sandboxed("a_host_that_dies_is_replaced_and_comes_back_empty", &TOOLS, Otherwise::Skip, || {
        let bridge = Bridge::new(3);
        let mut cluster = Cluster::start(Family::V4, &[]);
        survives("the owner's host dies", &mut cluster, Address::Moves, |cluster| {
            let host = cluster.owner();
            cluster.die(&bridge, &[host]);
            later(700);
            cluster.revive(&bridge, host);
        });
        survives("a member's host dies", &mut cluster, Address::Stays, |cluster| {
            let host = cluster.nodes.masters(cluster.owner()).0;
            cluster.die(&bridge, &[host]);
            later(700);
            cluster.revive(&bridge, host);
        });
        // Whoever came back holds everything: it can take the address over.
        survives("the heir's host dies", &mut cluster, Address::Moves, |cluster| {
            let host = cluster.owner();
            cluster.die(&bridge, &[host]);
            later(700);
            cluster.revive(&bridge, host);
        });
        cluster.end();
    });
}

#[test]
fn a_host_with_two_nodes_dies_and_every_slot_is_held_elsewhere() {
    sandboxed("a_host_with_two_nodes_dies_and_every_slot_is_held_elsewhere", &TOOLS, Otherwise::Skip, || {
        let bridge = Bridge::new(3);
        let settings = &[("VOTERS", "1,3,5"), ("R", "3")][..];
        let layout = Layout { family: Family::V4, hosts: &[1, 1, 2, 2, 3], running: 5, settings };
        let mut cluster = Cluster::with(&layout);
        survives("the host of the owner and another node dies", &mut cluster, Address::Moves, |cluster| {
            assert_eq!(cluster.owner(), 1);
            cluster.die(&bridge, &[1]);
            later(700);
            cluster.revive(&bridge, 1);
        });
        survives("a host of two members dies", &mut cluster, Address::Stays, |cluster| {
            let host = if [1, 2].contains(&cluster.owner()) { 2 } else { 1 };
            cluster.die(&bridge, &[host]);
            later(700);
            cluster.revive(&bridge, host);
        });
        cluster.end();
    });
}

#[test]
fn two_of_five_hosts_die_at_once() {
    sandboxed("two_of_five_hosts_die_at_once", &TOOLS, Otherwise::Skip, || {
        let bridge = Bridge::new(5);
        // Three of five hold what is answered, so that two may die.
        let settings = &[("R", "5"), ("COMMIT", "3"), ("VOTERS", "1,2,3,4,5")][..];
        let layout = Layout { family: Family::V4, hosts: &[1, 2, 3, 4, 5], running: 5, settings };
        let mut cluster = Cluster::with(&layout);
        survives("the owner's host and another one die", &mut cluster, Address::Moves, |cluster| {
            let owner = cluster.owner();
            let hosts = [owner, cluster.nodes.masters(owner).0];
            cluster.die(&bridge, &hosts);
            later(700);
            hosts.iter().for_each(|host| cluster.revive(&bridge, *host));
        });
        cluster.end();
    });
}

#[test]
fn a_frozen_owner_is_replaced_and_wakes_up_harmless() {
    sandboxed("a_frozen_owner_is_replaced_and_wakes_up_harmless", &TOOLS, Otherwise::Skip, || {
        let _bridge = Bridge::new(3);
        let mut cluster = Cluster::start(Family::V4, &[]);
        for away in [200, 700] {
            survives(&format!("frozen for {away} ms"), &mut cluster, Address::MovesAndWaits, |cluster| {
                let owner = cluster.owner();
                cluster.nodes.signal(owner, Signal::Stop);
                later(away);
                cluster.nodes.signal(owner, Signal::Continue);
            });
        }
        cluster.end();
    });
}

#[test]
fn an_owner_without_its_links_is_replaced() {
    sandboxed("an_owner_without_its_links_is_replaced", &TOOLS, Otherwise::Skip, || {
        let bridge = Bridge::new(3);
        let mut cluster = Cluster::start(Family::V4, &[]);
        survives("cable out", &mut cluster, Address::Moves, |cluster| {
            let owner = cluster.owner();
            bridge.link(owner, false);
            later(700);
            bridge.link(owner, true);
        });
        for (name, says, hears) in [
            ("cut both ways", true, true),
            ("it hears nobody", false, true),
            ("nobody hears it", true, false),
        ] {
            survives(name, &mut cluster, Address::MovesAndWaits, |cluster| {
                bridge.cut(cluster.owner(), says, hears);
                later(700);
                bridge.heal();
            });
        }
        cluster.end();
    });
}

#[test]
fn partitions_between_hosts_that_clients_still_reach() {
    sandboxed("partitions_between_hosts_that_clients_still_reach", &TOOLS, Otherwise::Skip, || {
        let bridge = Bridge::new(3);
        let mut cluster = Cluster::start(Family::V4, &[]);
        survives("the owner is alone", &mut cluster, Address::MovesAndWaits, |cluster| {
            let owner = cluster.owner();
            let others = (1..=3).filter(|id| *id != owner);
            let ways: Vec<_> = others.flat_map(|id| [(owner, id), (id, owner)]).collect();
            bridge.part(&ways);
            later(700);
            bridge.heal();
        });
        survives("a member is alone", &mut cluster, Address::Stays, |cluster| {
            let (owner, member) = (cluster.owner(), cluster.nodes.masters(cluster.owner()).0);
            let third = 6 - owner - member;
            bridge.part(&[(member, owner), (owner, member), (member, third), (third, member)]);
            later(700);
            bridge.heal();
        });
        survives("a member does not reach the owner", &mut cluster, Address::Stays, |cluster| {
            let (owner, member) = (cluster.owner(), cluster.nodes.masters(cluster.owner()).0);
            bridge.part(&[(member, owner)]);
            later(700);
            bridge.heal();
        });
        survives("the owner does not reach a member", &mut cluster, Address::Stays, |cluster| {
            let (owner, member) = (cluster.owner(), cluster.nodes.masters(cluster.owner()).0);
            bridge.part(&[(owner, member)]);
            later(700);
            bridge.heal();
        });
        cluster.end();
    });
}
