//! The picture and its text from crafted answers.

use super::{Picture, State, no_answer, text};
use crate::config::Settings;
use crate::io::operator::AskError;
use crate::types::Nanos;
use serde_json::{Value, json};

fn settings() -> Settings {
    let nodes = "1@a=127.0.0.1:7100,2@b=127.0.0.1:7200,3@c=127.0.0.1:7300";
    Settings::from_pairs(&[("NODES", nodes), ("SLOTS", "128"), ("SHARDS", "1")]).unwrap()
}

fn member(node: u16) -> Value {
    json!({ "node": node, "host": node, "boot": 0x10 + node, "join": 1 })
}

/// Node 1 was killed and is back as a learner; node 2 took its address.
fn map(version: u32) -> Value {
    let node = |id: u16, state: &str| json!({ "id": id, "host": id, "boot": 0x10 + id, "state": state, "witness": false, "birth": 5 });
    let short = json!({ "members": [member(2), member(3)], "learners": [member(1)], "past": [] });
    let whole = json!({ "members": [member(1), member(2), member(3)], "learners": [], "past": [] });
    json!({
        "version": version, "slots": 128, "shards": 1, "replicas": 3, "commit": 2, "app_level": 1, "lossy": 1,
        "nodes": [node(1, "Live"), node(2, "Live"), node(3, "Draining")],
        "addresses": [{ "owner": 2, "boot": 0x12, "term": 4 }], "endpoints": [0],
        "groups": [short, whole],
    })
}

fn answers(done: u64) -> Vec<Value> {
    let failover = |took: Option<u64>| json!({ "address": 0, "from": 1, "to": 2, "term": 4, "agreed_us": 9_000, "took_us": took, "wall_ms": 60_000 });
    let control = |version: u32, took: Option<u64>| {
        json!({
            "map": map(version), "lease_left_us": 7_400, "leader": 2, "quorum": true, "voters": [1, 2, 3],
            "failovers": [failover(took)], "peers": [{ "node": 1, "suspected": true, "up": true }],
        })
    };
    let engine = json!({
        "calls": 90, "slots_owned": 128, "slots_recovering": 8, "masters": [[2, 60], [3, 68]],
    });
    let learner = json!({ "calls": 30, "learning": [64, done], "resync_bytes": 2_500_000 });
    let shards = |engine: Value| json!([{ "shard": 0, "engine": engine }]);
    vec![
        json!({ "node": 1, "boot": 0x11, "control": control(8, None), "shards": shards(learner) }),
        json!({ "node": 2, "boot": 0x12, "control": control(9, Some(12_345)), "shards": shards(engine) }),
    ]
}

fn said(picture: &Picture) -> String {
    let (lease, evict_after) = (Nanos::from_millis(10), Nanos::from_secs(10));
    text::Text { picture, lease, evict_after, wall_ms: 61_500 }.to_string()
}

#[test]
fn the_picture_is_put_together_from_what_each_node_knows() {
    let earlier = answers(20);
    let picture = Picture::new(&settings(), &answers(30), Some((&earlier, 2.0)));
    let wanted = "\
cluster     tandem: map version 9, leader n2, quorum yes
LOSSY       1 failovers without a complete commit set: updates of calls may have been lost
node  host  state     boot  calls  master of  control address  roles
n1    a     suspect   11    30     0 slots    127.0.0.1:7100   voter
n2    b     live      12    90     60 slots   127.0.0.1:7200   voter leader owner
n3    c     draining  13    -      68 slots   127.0.0.1:7300   voter
service     127.0.0.1:5060 held by n2, term 4, lease 2.6 ms old, 7.4 ms left
slots       128: 120 served, 8 recovering
redundancy  64 slots (about 20 calls) have fewer than 3 members
resync      30 of 64 done, 2.5 MB taken in, ends in about 7 s
failovers   2 s ago: address 0 from n1 to n2, term 4, took 12.3 ms
";
    assert_eq!(said(&picture), wanted);
    assert!(!picture.is_whole());
    let json = json!(picture);
    assert_eq!(json["nodes"][2]["state"], "draining");
    assert_eq!(json["slots"]["short"], 64);
    assert_eq!(json["addresses"][0]["owner"], 2);
}

#[test]
fn nodes_without_a_map_and_nodes_that_say_almost_nothing_are_no_trouble() {
    let peers =
        json!([{ "node": 2, "suspected": false, "up": true }, { "node": 3, "suspected": true, "up": false }]);
    let engine = json!({ "slots_owned": 128, "slots_short": 0 });
    let answer = json!({ "node": 1, "control": { "peers": peers }, "shards": [{ "engine": engine }] });
    let picture = Picture::new(&settings(), &[answer], None);
    let wanted = "\
cluster     tandem: no agreed map, no leader, quorum unknown
node  host  state    boot  calls  master of  control address  roles
n1    a     live     -     -      0 slots    127.0.0.1:7100   voter
n2    b     unknown  -     -      0 slots    127.0.0.1:7200   voter
n3    c     suspect  -     -      0 slots    127.0.0.1:7300   voter
service     127.0.0.1:5060 held by n1, term 0
slots       128: 128 served, 0 recovering
redundancy  every slot has 3 members
";
    assert_eq!(said(&picture), wanted);
    let rubbish =
        [json!(null), json!({ "node": "x", "control": 7, "shards": { "engine": [] } }), json!([[]])];
    let picture = Picture::new(&settings(), &rubbish, Some((&rubbish, 0.0)));
    assert!(picture.nodes.iter().all(|node| node.state == State::Unknown), "{picture:?}");
}

/// The map may name a member for TANDEM_EVICT_AFTER that nobody hears any more.
#[test]
fn a_member_that_is_silent_is_none_and_what_stops_is_told() {
    let whole = |version: u32| {
        let mut map = map(version);
        map["groups"] = json!([{ "members": [member(1), member(2), member(3)], "learners": [], "past": [] }]);
        map["nodes"][2]["state"] = json!("Live");
        map
    };
    let picture = |short: u64, stopped: u64, suspected: bool, live: u16| {
        let engine = json!({
            "calls": 64, "slots_owned": 128, "slots_short": short, "slots_stopped": stopped, "slots_recovering": stopped,
        });
        let peers: Vec<Value> =
            (1..=live).map(|n| json!({ "node": n, "suspected": n == 3 && suspected, "up": true })).collect();
        let failovers =
            json!([{ "address": 0, "from": 1, "to": 2, "term": 4, "agreed_us": 9_000, "took_us": null }]);
        let control = json!({ "map": whole(9), "peers": peers, "failovers": failovers });
        let answer = json!({ "node": 2, "boot": 0x12, "control": control, "shards": [{ "engine": engine }] });
        Picture::new(&settings(), &[answer], None)
    };
    assert!(picture(0, 0, false, 3).is_whole());
    let silent = picture(128, 0, true, 3);
    assert!(!silent.is_whole());
    let text = said(&silent);
    let wanted = "redundancy  128 slots (about 21 calls) have fewer than 3 members: 2 live nodes can hold them, until another \
                  is back\n";
    assert!(text.contains(wanted), "{text}");
    assert!(text.contains("term 4, agreed after 9.0 ms\n"), "{text}");
    let given_up = said(&picture(5, 0, false, 3));
    assert!(given_up.contains("than 3 members: a silent member is replaced after 10 s\n"), "{given_up}");
    let stopped = said(&picture(0, 7, false, 3));
    assert!(
        stopped.contains("STOPPED     7 slots: no complete commit set is left (TANDEM_LOSSY=stop)"),
        "{stopped}"
    );
}

#[test]
fn a_failover_is_told_by_who_saw_it() {
    let seen = |node: u16, agreed_us: u64| {
        let failover =
            json!({ "address": 0, "from": 1, "to": 2, "term": 4, "agreed_us": agreed_us, "wall_ms": 60_000 });
        json!({ "node": node, "control": { "map": map(9), "failovers": [failover] } })
    };
    let picture = Picture::new(&settings(), &[seen(1, 0), seen(3, 9_000)], None);
    assert_eq!(picture.failovers.iter().map(|f| f.agreed_us).collect::<Vec<_>>(), [Some(9_000)]);
}

#[test]
fn calls_of_sip_are_told_once_for_all_nodes() {
    let mut answers = answers(64);
    let io = json!({ "records": 7, "client_turned_away": 3 });
    for (answer, open) in answers.iter_mut().zip([0, 3_000]) {
        let shard = &mut answer["shards"][0];
        shard["app"] = json!({ "calls": 5, "media_ports": 20, "targets": 3, "targets_down": 1 });
        shard["media_ports"] = json!([open, open * 4 / 3]);
        shard["io"] = io.clone();
    }
    let text = said(&Picture::new(&settings(), &answers, None));
    let wanted = "\
calls       10 in progress, 40 of 4000 media ports in use (1000 NOT OPEN), 14 records written, 6 calls turned away
targets     2 up, 1 DOWN
";
    assert!(text.contains(wanted), "{text}");
}

#[test]
fn nodes_that_are_none_of_the_settings_are_told_by_what_they_say() {
    let mut answers = answers(64);
    answers[1]["asked_at"] = json!("10.0.0.2:7100");
    let picture = Picture::new(&settings(), &answers, None);
    let said: Vec<_> = picture.nodes.iter().map(|n| (n.id, n.host.as_str(), n.address.as_str())).collect();
    assert_eq!(said, [(1, "#1", "-"), (2, "#2", "10.0.0.2:7100"), (3, "#3", "-")]);
    assert_eq!(picture.addresses[0].endpoints, ["address 0"]);
}

#[test]
fn a_map_that_does_not_hold_together_is_no_map() {
    for (part, value) in
        [("addresses", json!([])), ("groups", json!([])), ("shards", json!(0)), ("slots", json!("x"))]
    {
        let mut map = map(9);
        map[part] = value;
        let answer = json!({ "node": 1, "control": { "map": map } });
        assert_eq!(Picture::new(&settings(), &[answer], None).map_version, None, "{part}");
    }
}

#[test]
fn quorum_loss_and_an_address_nobody_holds_are_loud() {
    let mut map = map(9);
    map["addresses"] = json!([{ "owner": 0, "boot": 0, "term": 0 }]);
    let answer = json!({ "node": 3, "control": { "map": map, "quorum": false } });
    let picture = Picture::new(&settings(), &[answer], None);
    let said = said(&picture);
    assert!(said.contains("QUORUM NO") && said.contains("held by NOBODY"), "{said}");
    assert!(said.contains("128 by nobody that answered"), "{said}");
    assert!(!picture.is_whole() && picture.owner().is_none());
}

#[test]
fn silence_names_every_address_that_was_tried() {
    let silent = [
        AskError::Refused("127.0.0.1:7100".parse().unwrap()),
        AskError::Silent("127.0.0.1:7200".parse().unwrap(), 500),
    ];
    let said = no_answer(&silent);
    assert!(
        said.contains("127.0.0.1:7100") && said.contains("127.0.0.1:7200") && said.contains("--at"),
        "{said}"
    );
}
