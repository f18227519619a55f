//! A cluster of real processes on loopback under real load, with processes that are killed and frozen for real.

mod harness;

use harness::cluster::Local;
use harness::load::Replay;
use harness::{Otherwise, assert_no_panic, lives, sandboxed, sh};
use std::thread::sleep;
use std::time::Duration;
use tandem::io::sys_process::Signal;

/// What happens to a cluster under load, and whom to ask about the outcome afterwards.
fn under_load(name: &str, args: &[&str], fault: impl FnOnce(&Local) -> Vec<u16>) {
    let cluster = Local::start(args);
    let replay = Replay::start(cluster.service, 100, 3.0);
    sleep(Duration::from_millis(1_000));
    let asked = fault(&cluster);
    let report = replay.finish();
    report.assert_clean(name);
    println!("{name}: {}", report.line());
    cluster.nodes.assert_agree(&asked);
    let owner = cluster.nodes.status(1);
    assert!(harness::cluster::sum(&owner, "engine", "released") >= report.count("sent"), "{owner}");
    cluster.interrupt();
}

fn kill_the_busiest_master(cluster: &Local) -> Vec<u16> {
    let (most, other) = cluster.nodes.masters(1);
    let before = cluster.nodes.engine(1, "master_changes");
    cluster.nodes.kill(most);
    sleep(Duration::from_millis(300));
    assert!(cluster.nodes.engine(1, "master_changes") > before, "nothing was taken from node {most}");
    vec![1, other]
}

fn freeze(cluster: &Local, id: u16) -> Vec<u16> {
    cluster.nodes.signal(id, Signal::Stop);
    sleep(Duration::from_millis(500));
    cluster.nodes.signal(id, Signal::Continue);
    vec![1, 2, 3]
}

#[test]
fn undisturbed_clusters_answer_everything() {
    sandboxed("undisturbed_clusters_answer_everything", &[], Otherwise::RunHere, || {
        for shards in ["1", "2"] {
            under_load(&format!("{shards} shards"), &["--shards", shards], |_| vec![1, 2, 3]);
        }
    });
}

#[test]
fn a_killed_master_takes_nothing_with_it() {
    sandboxed("a_killed_master_takes_nothing_with_it", &[], Otherwise::RunHere, || {
        for shards in ["1", "2"] {
            under_load(
                &format!("master killed, {shards} shards"),
                &["--shards", shards],
                kill_the_busiest_master,
            );
        }
    });
}

#[test]
fn a_killed_slave_is_not_missed() {
    sandboxed("a_killed_slave_is_not_missed", &[], Otherwise::RunHere, || {
        // Five nodes, three members a slot: of some slots the victim is a slave, of others it is nothing.
        under_load("slave killed, R=3 of 5", &["--nodes", "5"], |cluster| {
            let (_, fewest) = cluster.nodes.masters(1);
            cluster.nodes.kill(fewest);
            vec![1]
        });
    });
}

#[test]
fn frozen_nodes_wake_up_and_do_no_harm() {
    sandboxed("frozen_nodes_wake_up_and_do_no_harm", &[], Otherwise::RunHere, || {
        under_load("master frozen", &[], |cluster| {
            let (most, _) = cluster.nodes.masters(1);
            freeze(cluster, most)
        });
    });
}

/// On loopback all nodes share the service address, and a frozen owner keeps its share of what clients send: that
/// waits for it, and clients give it up. What matters is that an owner who wakes up deposed contradicts nothing.
#[test]
fn a_frozen_owner_wakes_up_and_does_no_harm() {
    sandboxed("a_frozen_owner_wakes_up_and_does_no_harm", &[], Otherwise::RunHere, || {
        let cluster = Local::start(&["--shards", "2"]);
        let replay = Replay::start(cluster.service, 100, 3.0);
        sleep(Duration::from_millis(1_000));
        let asked = freeze(&cluster, 1);
        let report = replay.finish();
        println!("owner frozen: {}", report.line());
        let (sent, lost) = (report.count("sent"), report.count("lost"));
        assert_eq!(report.count("corrupted"), 0, "{}", report.line());
        assert!(lost * 5 < sent, "at most its share of half a second: {}", report.line());
        let moved: u64 = cluster.nodes.status(2)["control"]["map"]["addresses"][0]["term"].as_u64().unwrap();
        assert!(moved > 1, "its address has moved");
        cluster.nodes.wait_until_met();
        let report = Replay::start(cluster.service, 100, 1.5).finish();
        report.assert_clean("after the owner was frozen");
        cluster.nodes.assert_agree(&asked);
        cluster.interrupt();
    });
}

#[test]
fn the_state_of_a_cluster_is_told_by_any_node() {
    sandboxed("the_state_of_a_cluster_is_told_by_any_node", &[], Otherwise::RunHere, || {
        let cluster = Local::start(&["--nodes", "3", "--hosts", "2"]);
        for node in &cluster.nodes.nodes {
            let mut status = harness::tandem();
            status.args(["status", "--json", "--at", &node.control.to_string()]);
            let ended = harness::run(&mut status, Duration::from_secs(10));
            assert!(ended.status.success(), "{ended:?}");
            let told: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
            assert_eq!(told["answers"].as_array().unwrap().len(), 1, "{told}");
            let me = told["nodes"].as_array().unwrap().iter().find(|n| n["id"] == node.id).unwrap();
            assert_eq!((&me["state"], &me["answered"]), (&"live".into(), &true.into()), "{told}");
        }
        let all: Vec<String> = cluster.nodes.nodes.iter().map(|node| node.control.to_string()).collect();
        let mut status = harness::tandem();
        status.args(["status", "--at", &all.join(",")]);
        let ended = harness::run(&mut status, Duration::from_secs(10));
        assert!(ended.status.success(), "{ended:?}");
        for line in
            ["n1 ", "n2 ", "n3 ", "slots       1024: 1024 served, 0 recovering", "redundancy  every slot"]
        {
            assert!(ended.out.lines().any(|said| said.starts_with(line)), "{line} in {}", ended.out);
        }
        cluster.interrupt();
    });
}

#[test]
fn nothing_outlives_a_cluster() {
    sandboxed("nothing_outlives_a_cluster", &[], Otherwise::RunHere, || {
        let cluster = Local::start(&[]);
        // Frozen and killed nodes do not keep it from ending.
        cluster.nodes.signal(2, Signal::Stop);
        cluster.nodes.kill(3);
        cluster.interrupt();

        // Only the parent is told.
        let mut cluster = Local::start(&["--nodes", "2"]);
        let process = cluster.process.take().unwrap();
        sh(&format!("kill -TERM {}", process.pid()));
        let ended = process.finish(Duration::from_secs(10));
        assert!(ended.status.success(), "{ended:?}");
        cluster.assert_all_gone();

        let mut cluster = Local::start(&["--shards", "2"]);
        assert!(cluster.nodes.nodes.iter().all(|node| lives(node.pid)));
        let mut process = cluster.process.take().unwrap();
        process.child.kill().unwrap();
        cluster.assert_all_gone();
        let ended = process.finish(Duration::from_secs(5));
        assert_no_panic(&ended.err);

        // A cluster that has lost all its nodes says so.
        let mut cluster = Local::start(&["--nodes", "2"]);
        for id in [1, 2] {
            cluster.nodes.kill(id);
        }
        let ended = cluster.process.take().unwrap().finish(Duration::from_secs(5));
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.err.contains("every node has ended"), "{ended:?}");
    });
}

/// The node that has taken over dies while the one it took over from comes back: the third has everything.
#[test]
fn an_heir_dies_while_the_frozen_owner_comes_back() {
    sandboxed("an_heir_dies_while_the_frozen_owner_comes_back", &[], Otherwise::RunHere, || {
        for after in [5, 60] {
            let cluster = Local::start(&[]);
            let replay = Replay::start(cluster.service, 50, 2.0);
            sleep(Duration::from_millis(700));
            cluster.nodes.signal(1, Signal::Stop);
            sleep(Duration::from_millis(500));
            let map = cluster.nodes.status(2)["control"]["map"].clone();
            let heir = map["addresses"][0]["owner"].as_u64().unwrap() as u16;
            assert_ne!(heir, 1, "its address has moved");
            cluster.nodes.signal(1, Signal::Continue);
            sleep(Duration::from_millis(after));
            cluster.nodes.kill_engine(heir);
            let report = replay.finish();
            println!("heir killed after {after} ms: {}", report.line());
            assert_eq!(report.count("corrupted"), 0, "{}", report.line());
            cluster.nodes.wait_until_served();
            let report = Replay::start(cluster.service, 50, 1.5).finish();
            report.assert_clean(&format!("after the heir was killed, {after} ms"));
            cluster.nodes.wait_until_met();
            cluster.nodes.assert_agree(&[1, 2, 3]);
            cluster.interrupt();
        }
    });
}
