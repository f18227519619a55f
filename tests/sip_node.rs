//! Calls through a cluster of real processes on loopback: scripted parties on sockets, their media through the cluster's
//! ports, one record for each call, whoever dies in between.

mod harness;

use harness::cluster::{Local, sum};
use harness::parties::{Call, Party, SOON, has_ipv6, owner, records, start, talk_again};
use harness::{Folder, Otherwise, run, sandboxed, tandem, until};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

#[test]
fn a_call_with_media_through_three_nodes_is_recorded_once() {
    sandboxed("a_call_with_media_through_three_nodes_is_recorded_once", &[], Otherwise::RunHere, || {
        let (folder, bob) = (Folder::new(), Party::new());
        let cdr = folder.join("cdr");
        let cluster = start(&bob, &cdr, &["--shards", "2", "--media-ports", "21000-22999"]);
        let mut call = Call::set_up(cluster.service, Party::new(), bob, "once");
        let through: usize = (0..50).map(|_| call.talk(SOON)).sum();
        assert_eq!(through, 100);

        // Nobody has these ports: what comes there is not even logged.
        let used = [call.for_alice.port() / 2, call.for_bob.port() / 2];
        let unused = (22_000..22_900).filter(|port| !used.contains(&(port / 2)));
        for port in unused.take(8) {
            call.alice.rtp.send_to(&[0x80; 40], SocketAddr::new(cluster.service.ip(), port)).unwrap();
        }
        let strays = || sum(&cluster.nodes.status(owner(&cluster)), "engine", "turned_away_no_call");
        assert!(until(SOON, || strays() == 8), "{}", strays());

        let mut status = tandem();
        status.args(["status", "--at", &cluster.nodes.node(1).control.to_string()]);
        let said = run(&mut status, Duration::from_secs(5)).out;
        for part in ["calls       1 in progress, ", "targets     1 up"] {
            assert!(said.contains(part), "{part:?} in {said}");
        }
        call.hang_up(cluster.service);
        let record = &records(&cdr, 1)[0];
        println!("{record:#}");
        assert_eq!(record["call_id"], "once");
        cluster.interrupt();
    });
}

#[test]
fn a_call_goes_on_when_its_owner_is_killed() {
    sandboxed("a_call_goes_on_when_its_owner_is_killed", &[], Otherwise::RunHere, || {
        goes_on(Ipv4Addr::LOCALHOST.into());
    });
}

#[test]
fn a_call_of_ipv6_goes_on_when_its_owner_is_killed() {
    sandboxed("a_call_of_ipv6_goes_on_when_its_owner_is_killed", &[], Otherwise::RunHere, || {
        if has_ipv6("a call of IPv6") {
            goes_on(Ipv6Addr::LOCALHOST.into());
        }
    });
}

/// A call of parties and a service address at this address, whose owner dies.
fn goes_on(ip: IpAddr) {
    let (folder, bob) = (Folder::new(), Party::on(ip));
    let cdr = folder.join("cdr");
    let service = Party::on(ip).at().to_string();
    let cluster = start(&bob, &cdr, &["--shards", "1", "--service", &service]);
    let mut call = Call::set_up(cluster.service, Party::on(ip), bob, "survivor");
    assert_eq!((0..10).map(|_| call.talk(SOON)).sum::<usize>(), 20);
    cluster.nodes.kill_engine(owner(&cluster));
    talk_again(2, Duration::from_secs(5), |patience| call.talk(patience));
    let through: Vec<usize> = (0..10).map(|_| call.talk(SOON)).collect();
    assert_eq!(
        through,
        [2; 10],
        "{:?}",
        cluster
            .nodes
            .nodes
            .iter()
            .map(|n| cluster.nodes.status(n.id))
            .map(|s| s["shards"][0]["io"]["dropped"].clone())
            .collect::<Vec<_>>()
    );
    call.hang_up(cluster.service);
    let record = &records(&cdr, 1)[0];
    let caller = &record["media"]["lines"][0]["caller"];
    assert_eq!(caller["source"], call.alice.rtp.local_addr().unwrap().to_string(), "{record:#}");
    assert!(record["takeovers"].as_u64().unwrap() >= 1, "{record:#}");
    cluster.interrupt();
}

#[test]
fn a_silent_target_is_passed_over_after_the_time_that_is_set() {
    let name = "a_silent_target_is_passed_over_after_the_time_that_is_set";
    sandboxed(name, &[], Otherwise::RunHere, || {
        let (folder, silent, bob) = (Folder::new(), Party::new(), Party::new());
        let routes = folder.join("routes");
        std::fs::write(&routes, format!("default {}, {};priority=1\n", silent.at(), bob.at())).unwrap();
        let file = routes.display().to_string();
        let args = ["--app", "sip", "--routes", &file, "--shards", "1", "--sip-next-after", "700ms"];
        let cluster = Local::start(&args);
        Party::new().invite(cluster.service, "passed-over");
        silent.hear("INVITE ");
        let asked = Instant::now();
        bob.hear("INVITE ");
        // What the first was sent lay in its socket for a moment at most.
        assert!(asked.elapsed() > Duration::from_millis(400), "{:?}", asked.elapsed());
        cluster.interrupt();
    });
}

#[test]
fn routes_are_read_again_and_bad_ones_change_nothing() {
    sandboxed("routes_are_read_again_and_bad_ones_change_nothing", &[], Otherwise::RunHere, || {
        let (folder, bob, carol) = (Folder::new(), Party::new(), Party::new());
        let routes = folder.join("routes");
        std::fs::write(&routes, format!("default {}\n", bob.at())).unwrap();
        let file = routes.display().to_string();
        let cluster = Local::start(&["--app", "sip", "--routes", &file, "--shards", "2"]);
        let all: Vec<String> = cluster.nodes.nodes.iter().map(|node| node.control.to_string()).collect();
        let reload = || run(tandem().args(["reload", "--at", &all.join(",")]), Duration::from_secs(10));
        Party::new().invite(cluster.service, "first");
        bob.hear("INVITE ");

        std::fs::write(&routes, "default nowhere.example\n").unwrap();
        let refused = reload();
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        for part in ["REFUSED", "line 1", "nowhere.example"] {
            assert!(refused.out.contains(part), "{part} in {refused:?}");
        }
        Party::new().invite(cluster.service, "second");
        bob.hear("INVITE ");

        std::fs::write(&routes, format!("default {}\n", carol.at())).unwrap();
        let reloaded = reload();
        assert!(reloaded.status.success(), "{reloaded:?}");
        assert!(reloaded.out.contains(" 1 targets, 32 slots told"), "{reloaded:?}");
        Party::new().invite(cluster.service, "third");
        carol.hear("INVITE ");

        // As an operator's script does it. Pings are not answered: every slot hears of it, whichever one pings.
        let pings = "ping 1s\nping-timeout 100ms\ndown-after 1\n";
        std::fs::write(&routes, format!("default {}\n{pings}", bob.at())).unwrap();
        for node in &cluster.nodes.nodes {
            harness::sh(&format!("kill -HUP {}", node.pid));
        }
        let back = until(SOON, || {
            Party::new()
                .invite(cluster.service, &format!("fourth{:?}", Instant::now()).replace([' ', ':'], ""));
            bob.listen("INVITE ", Duration::from_millis(200)).is_ok()
        });
        assert!(back, "routes are not read on SIGHUP");
        let down = || {
            let statuses = cluster.nodes.nodes.iter().map(|node| cluster.nodes.status(node.id));
            let shards: Vec<Value> = statuses.flat_map(|s| s["shards"].as_array().unwrap().clone()).collect();
            let owning: Vec<_> = shards.iter().filter(|s| s["engine"]["slots_owned"] != 0).collect();
            owning.len() == 2 && owning.iter().all(|shard| shard["app"]["targets_down"] == 1)
        };
        assert!(until(SOON, down), "a silent target is not down");
        cluster.interrupt();
    });
}

#[test]
fn calls_over_the_limit_are_turned_away_and_the_others_go_on() {
    sandboxed("calls_over_the_limit_are_turned_away_and_the_others_go_on", &[], Otherwise::RunHere, || {
        let (folder, bob) = (Folder::new(), Party::new());
        let cluster = start(&bob, &folder.join("cdr"), &["--shards", "1", "--source-cps", "2"]);
        let alice = Party::new();
        for call in 0..8 {
            alice.invite(cluster.service, &format!("flood{call}"));
        }
        let mut refused = Vec::new();
        while let Ok((answer, _)) = alice.listen("SIP/2.0 503", Duration::from_millis(300)) {
            assert!(answer.one("Retry-After").parse::<u32>().unwrap() > 0);
            refused.push(answer.one("Call-ID").to_owned());
        }
        refused.sort_unstable();
        refused.dedup();
        assert_eq!(refused.len(), 6, "{refused:?}");
        let owner = cluster.nodes.nodes.iter().map(|node| cluster.nodes.status(node.id));
        let counted: u64 = owner.map(|status| sum(&status, "engine", "turned_away_source_rate")).sum();
        assert!(counted >= 6, "{counted}");
        std::thread::sleep(Duration::from_millis(1_500));
        while bob.sip.recv(&mut [0; 4_096]).is_ok() {}
        Call::set_up(cluster.service, Party::new(), bob, "later").hang_up(cluster.service);
        cluster.interrupt();
    });
}
