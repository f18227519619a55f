//! `udp --calls N`: N live echo calls on a cluster of three, what each costs a member in memory, and what an entry
//! costs with so many beside it, against a cluster with 10,000.

use crate::common::{Args, table};
use crate::machine::{self, median};
use crate::world;
use anyhow::Context;
use serde_json::{Value, json};
use tandem::cli::load::Load;
use tandem::cli::local::LocalCluster;
use tandem::cli::replay::Expect;
use tandem::types::Nanos;

const MEMBERS: u16 = 3;
const FEW: u32 = 10_000;
const OPEN_RATE: f64 = 40_000.0;
const RATE: f64 = 30_000.0;

/// What one node holds.
#[derive(Copy, Clone)]
struct Held {
    resident: u64,
    calls: u64,
    calls_bytes: u64,
}

fn held(cluster: &LocalCluster) -> anyhow::Result<Vec<Held>> {
    let one = |node: &tandem::cli::local::LocalNode| {
        let status = cluster.status(node.id)?;
        let (calls, calls_bytes) =
            (machine::engine(&status, "calls"), machine::engine(&status, "calls_bytes"));
        Ok(Held { resident: machine::resident(node.engine_pid), calls, calls_bytes })
    };
    cluster.nodes.iter().map(one).collect()
}

/// A cluster with `calls` open calls, what its nodes held before and hold now.
fn open(calls: u32) -> anyhow::Result<(LocalCluster, Vec<Held>, Vec<Held>, u64)> {
    let cluster = world::cluster(MEMBERS, &[])?;
    let system = machine::system(&cluster);
    // Buffers and logs reach their working size before the calls are counted.
    crate::run(&system, Load::new(FEW, OPEN_RATE, Nanos::from_secs(2), 1), Expect::Trailer)?;
    let before = held(&cluster)?;
    let duration = Nanos((f64::from(calls) / OPEN_RATE * 1e9) as u64);
    let (outcome, _) = crate::run(&system, Load::new(calls, OPEN_RATE, duration, 2), Expect::Trailer)?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let after = held(&cluster)?;
    Ok((cluster, before, after, outcome.counts.lost))
}

/// CPU microseconds per packet. A run reaches as many calls as it has packets; where they lie is random.
fn entry_cost(cluster: &LocalCluster, calls: u32, rounds: usize) -> anyhow::Result<(f64, u64)> {
    let system = machine::system(cluster);
    let (mut costs, mut lost) = (Vec::new(), 0);
    for _ in 0..rounds {
        let load = Load::new(calls, RATE, Nanos::from_secs(4), 2);
        let (outcome, cell) = crate::run(&system, load, Expect::Trailer)?;
        costs.push(cell.cpu_us);
        lost += outcome.counts.lost;
    }
    Ok((median(costs), lost))
}

pub(crate) fn measure(calls: &str, args: &Args) -> anyhow::Result<Vec<Value>> {
    let calls: u32 = calls.replace('_', "").parse().context("--calls")?;
    let rounds = if args.quick { 1 } else { 5 };
    let (few, ..) = open(FEW)?;
    let (few_before, _) = entry_cost(&few, FEW, rounds)?;
    drop(few);
    let (cluster, before, after, opening_lost) = open(calls)?;
    let (many_us, lost) = entry_cost(&cluster, calls, rounds)?;
    drop(cluster);
    let (few, ..) = open(FEW)?;
    let (few_after, _) = entry_cost(&few, FEW, rounds)?;
    drop(few);
    let few_us = (few_before + few_after) / 2.0;
    let mut shown = vec![["member", "calls", "resident_b", "tables_b"].map(String::from).to_vec()];
    let mut members = Vec::new();
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        let more = (after.calls - before.calls).max(1) as f64;
        let resident = after.resident.saturating_sub(before.resident) as f64 / more;
        let tables = (after.calls_bytes - before.calls_bytes) as f64 / more;
        shown.push(vec![
            format!("n{}", index + 1),
            after.calls.to_string(),
            format!("{resident:.1}"),
            format!("{tables:.1}"),
        ]);
        members.push(json!({ "calls": after.calls, "resident_bytes_per_call": resident,
            "table_bytes_per_call": tables, "resident_bytes": after.resident }));
    }
    table(&shown);
    println!(
        "entry: {many_us:.2} us with {calls} calls, {few_us:.2} us with {FEW} ({few_before:.2} before, {few_after:.2} after): {:.2} times; lost {} opening, {lost} after",
        many_us / few_us,
        opening_lost
    );
    Ok(vec![json!({
        "system": "tandem-r3", "calls": calls, "rate": RATE, "members": members, "cpu_us_per_packet": many_us,
        "cpu_us_per_packet_10k_calls": few_us, "ratio_to_10k_calls": many_us / few_us, "lost": lost + opening_lost,
    })])
}
