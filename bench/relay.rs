//! `sip --mode relay`: what relaying an RTP packet costs, beside rtpengine.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use tandem::cli::local::LocalCluster;
use tandem::types::Nanos;

use crate::common::{Args, table};
use crate::kept::{installed, miss};
use crate::machine::{self, median};
use crate::parties::{Parties, Relayed};
use crate::plan::Plan;
use crate::rivals::Rtpengine;
use crate::talk::{Heard, Talk};
use crate::world;

const RATES: [f64; 2] = [20_000.0, 50_000.0];
/// Packets of both sides of a call a second: one each 20 ms.
const PER_CALL: f64 = 100.0;
/// Calls set up a second.
const SET_UP_RATE: f64 = 1_000.0;
const WARM_UP: Nanos = Nanos::from_secs(1);
const MEDIA_PORTS: &str = "20000-29999";
const NAMES: [&str; 3] = ["rtpengine", "tandem-r1", "tandem-r3"];

/// A cluster that relays media, once all its ports are open.
pub(crate) fn cluster(nodes: u16, parties: &Parties, more: &[(&str, &str)]) -> anyhow::Result<LocalCluster> {
    let route = format!("default={}", parties.callee()?);
    let cluster = world::cluster(nodes, &[&[("APP", "sip"), ("ROUTE", &route)], more].concat())?;
    let start = Instant::now();
    let open = |node: &tandem::cli::local::LocalNode| {
        let status = cluster.status(node.id).ok()?;
        let counts = &status["shards"][0]["media_ports"];
        Some(counts[0] == counts[1] && counts[1].as_u64()? > 0)
    };
    while !cluster.nodes.iter().any(|node| open(node) == Some(true)) {
        ensure!(start.elapsed() < Duration::from_secs(20), "the media ports are not open");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(cluster)
}

/// One cell: the system started afresh, its calls set up, warmed up, measured.
fn cell(system: usize, rtpengine: &str, rate: f64, duration: Nanos) -> anyhow::Result<Heard> {
    let (mut talk, parties) = (Talk::new()?, Parties::new()?);
    let (calls, place) = ((rate / PER_CALL) as u32, talk.places());
    let mut run = |relayed: &[Relayed], pids: &[u32]| {
        talk.run(relayed, rate, WARM_UP, pids)?;
        talk.run(relayed, rate, duration, pids)
    };
    if system == 0 {
        let mut engine = Rtpengine::start(rtpengine)?;
        let relayed = engine.set_up(calls, place)?;
        return run(&relayed, &engine.pids());
    }
    let cluster = cluster(if system == 1 { 1 } else { 3 }, &parties, &[("MEDIA_PORTS", MEDIA_PORTS)])?;
    let nodes = machine::system(&cluster);
    let relayed = parties.set_up(nodes.target, (0..calls, SET_UP_RATE), place)?;
    run(&relayed, &nodes.pids)
}

pub(crate) fn measure(args: &Args) -> anyhow::Result<Vec<Value>> {
    let rtpengine = installed("rtpengine");
    if rtpengine.is_none() {
        miss("rtpengine", "the relay is measured without anything beside it");
    }
    let plan = Plan::read(args, &RATES, (1, 2), (4, 4))?;
    let systems = plan.systems(&NAMES, rtpengine.is_some());
    let headings = [
        "system",
        "rate",
        "cpu_us",
        "to_rtpengine",
        "lost",
        "wrong",
        "p50_us",
        "p99_us",
        "late_p99_us",
        "strangers",
        "rcvbuf_errors",
    ];
    let mut shown = vec![headings.map(String::from).to_vec()];
    let mut rows = Vec::new();
    for rate in &plan.rates {
        let mut cells: Vec<Vec<Heard>> = NAMES.iter().map(|_| Vec::new()).collect();
        for round in 0..plan.rounds {
            for system in &systems {
                let heard = cell(*system, rtpengine.as_deref().unwrap_or_default(), *rate, plan.duration)?;
                eprintln!("relay: round {round}: {} at {rate}: {:.2} us", NAMES[*system], heard.cpu_us);
                cells[*system].push(heard);
            }
        }
        for system in &systems {
            let own = &cells[*system];
            let of = |value: fn(&Heard) -> f64| median(own.iter().map(value).collect());
            let ratio =
                median(own.iter().zip(&cells[0]).map(|(own, beside)| own.cpu_us / beside.cpu_us).collect());
            let sum = |value: fn(&Heard) -> u64| own.iter().map(value).sum::<u64>();
            let (lost, wrong, errors) =
                (sum(|h| h.sent.saturating_sub(h.received)), sum(|h| h.wrong), sum(|h| h.receive_errors));
            let (cpu_us, p50, p99) = (of(|h| h.cpu_us), of(|h| h.p50), of(|h| h.p99));
            let (late, strangers) = (of(|h| h.late_p99), of(|h| h.strangers));
            shown.push(vec![
                NAMES[*system].to_owned(),
                format!("{rate:.0}"),
                format!("{cpu_us:.2}"),
                format!("{ratio:.2}"),
                lost.to_string(),
                wrong.to_string(),
                format!("{p50:.0}"),
                format!("{p99:.0}"),
                format!("{late:.0}"),
                format!("{strangers:.2}"),
                errors.to_string(),
            ]);
            let rounds: Vec<f64> = own.iter().map(|h| h.cpu_us).collect();
            rows.push(json!({
                "mode": "relay", "system": NAMES[*system], "rate": rate, "calls": (rate / PER_CALL) as u32,
                "cpu_us_per_packet": cpu_us, "ratio_to_rtpengine": ratio, "lost": lost, "wrong": wrong,
                "latency_us": { "p50": p50, "p99": p99 }, "generator_late_us": { "p99": late },
                "strangers_cores": strangers, "rcvbuf_errors": errors, "rounds_cpu_us": rounds,
            }));
        }
    }
    table(&shown);
    Ok(rows)
}
