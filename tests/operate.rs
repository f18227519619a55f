//! What operators do and see, with real processes on loopback: the demo, a drain by command, and what is told when more
//! has died than a cluster can do without.

mod harness;

use harness::cluster::Local;
use harness::load::Replay;
use harness::{Folder, Otherwise, assert_no_panic, run, sandboxed, tandem, until};
use serde_json::Value;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// Timings for debug builds on machines that do other things, too.
const PATIENT: [&str; 6] = ["--suspect-after", "8ms", "--lease", "40ms", "--dead-after", "60ms"];

/// What `tandem status` prints, asked of one node.
fn status(at: SocketAddr) -> String {
    let ended = run(tandem().args(["status", "--at", &at.to_string()]), PATIENCE);
    assert!(ended.status.success(), "{ended:?}");
    ended.out
}

fn demo(args: &[&str]) -> Value {
    let folder = Folder::new();
    let file = folder.join("report.json");
    let mut command = tandem();
    command.args(["demo", "--calls", "50", "--slots", "256", "--json"]).arg(&file).args(PATIENT).args(args);
    let ended = run(&mut command, PATIENCE);
    assert_no_panic(&ended.err);
    let text = std::fs::read(&file).unwrap_or_else(|error| panic!("no report: {error}; {ended:?}"));
    let report: Value = serde_json::from_slice(&text).unwrap();
    for key in ["lost", "duplicated", "corrupted", "lossy_failovers"] {
        assert_eq!(report[key], 0, "{key}: {report}\n{}", ended.out);
    }
    assert_eq!(report["digests_agree"], true, "{report}");
    assert!(report["redundancy_restored_s"].as_f64().is_some(), "{report}\n{}", ended.out);
    assert!(report["sent"].as_u64().unwrap() > 500 && ended.status.success(), "{report}\n{}", ended.out);
    report
}

#[test]
fn the_demo_kills_the_master_and_later_the_owner() {
    sandboxed("the_demo_kills_the_master_and_later_the_owner", &[], Otherwise::RunHere, || {
        let report = demo(&["--duration", "9", "--kill-at", "2"]);
        let kills = report["kills"].as_array().unwrap();
        let nodes: Vec<_> = kills.iter().map(|kill| kill["node"].as_str().unwrap()).collect();
        assert!(nodes.len() == 2 && nodes[0] != nodes[1] && nodes[1] == "n1", "{report}");
    });
}

#[test]
fn the_demo_kills_a_host() {
    sandboxed("the_demo_kills_a_host", &[], Otherwise::RunHere, || {
        let report = demo(&["--duration", "6", "--kill-at", "2", "--kill", "host"]);
        assert_eq!(report["kills"].as_array().unwrap().len(), 1, "{report}");
    });
}

#[test]
fn a_node_leaves_when_it_is_told_to() {
    sandboxed("a_node_leaves_when_it_is_told_to", &[], Otherwise::RunHere, || {
        let cluster = Local::start(&PATIENT);
        cluster.nodes.wait_until_served();
        let replay = Replay::expecting(1, cluster.service, 50, 4.0);
        sleep(Duration::from_millis(1_000));
        let at = |id: u16| cluster.nodes.node(id).control;
        let drained = run(tandem().args(["drain", "--at", &at(1).to_string()]), PATIENCE);
        assert!(drained.status.success(), "{drained:?}");
        replay.finish().assert_survived("drained by command", false);
        let said = status(at(2));
        assert!(said.contains("from n1 to n"), "its address has moved: {said}");
        let first = cluster.nodes.node(1).pid;
        assert!(until(PATIENCE, || !harness::lives(first)), "{said}");
    });
}

/// Two engines of three end at once, the owner's among them: no majority, then slots of which one member is left.
#[test]
fn what_was_too_much_is_told_loudly() {
    sandboxed("what_was_too_much_is_told_loudly", &[], Otherwise::RunHere, || {
        let cluster = Local::start(&PATIENT);
        cluster.nodes.wait_until_served();
        Replay::start(cluster.service, 100, 1.5).finish().assert_clean("before");
        cluster.nodes.kill_engine(1);
        cluster.nodes.kill_engine(2);
        let third = cluster.nodes.node(3).control;
        let mut said = String::new();
        let lossy = until(PATIENCE, || {
            said = status(third);
            said.contains("LOSSY       ")
        });
        assert!(lossy, "{said}");
        assert!(until(PATIENCE, || status(third).contains("every slot has 3 members")), "{}", status(third));
        Replay::start(cluster.service, 100, 1.5).finish().assert_clean("afterwards");
        assert!(cluster.nodes.status(3)["control"]["quorum_losses"].as_u64() >= Some(1));
        let ended = cluster.interrupt();
        for told in ["QUORUM LOST: no majority", "a majority of the voters is heard again", "LOSSY: "] {
            assert!(ended.err.contains(told), "{told}: {}", ended.err);
        }
    });
}
