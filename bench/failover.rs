//! What clients notice when a master dies, freezes, or loses its link (modes sigkill, sigstop, cut: the owner lives
//! on), and when the owner does (modes owner, host: its engine alone, or its host; owner-stop, owner-cut): the gap in
//! the replies, and whether anything was lost or answered twice. Modes restart and rolling are `operate`'s.

mod bridge;
mod common;
mod operate;
mod subject;
mod world;

use anyhow::{Context, bail};
use common::{Args, table};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;
use subject::{Cluster, Fault};
use tandem::cli::load::Load;
use tandem::cli::replay::{Control, Expect, Options, Outcome, Runner};
use tandem::io::sys_process::{Signal, signal};
use tandem::types::{Nanos, NodeId};

const CALLS: u32 = 300;
/// Load before the first mark.
const LEAD: Nanos = Nanos::from_millis(300);
/// Silences that begin this long after the victim's return belong to it.
const RETURN_WINDOW: Nanos = Nanos::from_millis(50);
/// From the mark at which nothing happens to the fault.
const CALM: Nanos = Nanos::from_millis(100);
/// How long a frozen process stays frozen and a cut link cut.
const AWAY: Nanos = Nanos::from_millis(500);
/// Load after the last mark.
const TAIL: Nanos = Nanos::from_millis(250);
/// The same after the death of an owner.
const OWNER_TAIL: Nanos = Nanos::from_secs(1);
/// How long an owner is away: longer than its lease, and until another has its addresses.
const OWNER_AWAY: Nanos = Nanos::from_secs(1);

/// What one fault did.
#[derive(Default)]
struct Seen {
    gap_ms: f64,
    /// The same figure for a moment at which nothing happened: the machine's own noise.
    calm_gap_ms: f64,
    /// The same figure, of all calls, for the moment at which the victim came back.
    return_gap_ms: Option<f64>,
    longest_latency_ms: f64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    corrupted: u64,
    unaccepted: u64,
    doubled_allowed: u64,
    /// Answers that came again without an excuse: when first, and when again, in ms since the strike.
    copies: Vec<[f64; 2]>,
    restored_s: Option<f64>,
    wrong_suspicions: u64,
}

/// One run: load, a calm mark, the fault, what came of it.
fn one(cluster: &Cluster, fault: Fault, rate: f64, seed: u32) -> anyhow::Result<Seen> {
    let owner = cluster.owner();
    let pids = cluster.pids();
    let nodes: Vec<NodeId> = pids.iter().map(|(id, _)| *id).collect();
    let wrong_before = cluster.wrong_suspicions(&nodes);
    let returns = fault.returns();
    let away = match (returns, fault.of_owner()) {
        (false, _) => Nanos::ZERO,
        (true, false) => AWAY,
        (true, true) => OWNER_AWAY,
    };
    let tail = if fault.of_owner() { OWNER_TAIL } else { TAIL };
    let load = Load::new(CALLS, rate, LEAD + CALM + away + tail, seed);
    let options = Options {
        targets: vec![cluster.service()],
        expect: Expect::Trailer,
        drain: Nanos::from_secs(2),
        sockets: None,
        expect_failovers: 0,
    };
    let mut runner = Runner::new(load.traffic(), options)?;
    let mut victim = None;
    let (mut struck, mut cut, mut back) = (false, false, false);
    let mut failed = None;
    let mut helpers: Vec<JoinHandle<anyhow::Result<()>>> = Vec::new();
    let outcome = runner.run(&mut |live| {
        if victim.is_none() && live.now >= LEAD {
            let calls = live.calls_by_node();
            let victims = pids.iter().filter(|(id, _)| (*id == owner) == fault.of_owner());
            victim = victims.max_by_key(|(id, _)| calls[usize::from(id.0)]);
            // The silence of an owner is that of all calls.
            live.mark("calm", victim.map(|(id, _)| *id).filter(|_| !fault.of_owner()), fault.window());
        }
        let Some((node, pid)) = victim.copied() else { return Control::Continue };
        if !struck && live.now >= LEAD + CALM {
            struck = true;
            match fault {
                // It is away once its link is cut.
                Fault::OwnerCut => {}
                _ if fault.of_owner() => live.mark_outage(fault.name(), node, fault.window()),
                _ => live.mark(fault.name(), Some(node), fault.window()),
            }
            match fault {
                // `nft` takes a while, and the load must not wait for it.
                Fault::Cut | Fault::OwnerCut => {
                    helpers.push(std::thread::spawn(move || bridge::cut(node)));
                }
                _ => failed = cluster.strike(fault, node, pid).err(),
            }
        }
        if fault == Fault::OwnerCut && !cut && helpers.first().is_some_and(JoinHandle::is_finished) {
            cut = true;
            live.mark_outage(fault.name(), node, fault.window());
        }
        if returns && !back && live.now >= LEAD + CALM + away {
            back = true;
            live.mark("back", None, RETURN_WINDOW);
            match fault {
                Fault::Cut | Fault::OwnerCut => helpers.push(std::thread::spawn(bridge::mend)),
                _ => failed = signal(pid, Signal::Continue).err().map(Into::into),
            }
        }
        Control::Continue
    });
    for helper in helpers {
        helper.join().map_err(|_| anyhow::anyhow!("the thread that cuts links panicked"))??;
    }
    let outcome = outcome?;
    if let Some(error) = failed {
        return Err(error.context("cannot strike the victim"));
    }
    let alive: Vec<NodeId> =
        nodes.into_iter().filter(|id| returns || victim.is_some_and(|(dead, _)| dead != id)).collect();
    let silence = |label: &str| {
        let window = outcome.windows.iter().find(|window| window.label == label);
        window.map(|window| window.silence.as_millis_f64())
    };
    Ok(Seen {
        gap_ms: silence(fault.name()).context("the load ended before the fault")?,
        calm_gap_ms: silence("calm").context("the load ended before the fault")?,
        return_gap_ms: silence("back"),
        longest_latency_ms: outcome.latency.max.unwrap_or(f64::NAN) / 1e3,
        lost: outcome.counts.lost,
        duplicated: outcome.counts.duplicated,
        reordered: outcome.counts.reordered,
        corrupted: outcome.counts.corrupted,
        unaccepted: outcome.counts.unaccepted,
        doubled_allowed: outcome.counts.doubled_allowed,
        copies: (outcome.repeats.iter())
            .map(|r| [r.first, r.again].map(|time| since_strike(&outcome, fault, time)))
            .collect(),
        restored_s: None,
        wrong_suspicions: (cluster.wrong_suspicions(&alive))
            .saturating_sub(wrong_before)
            .saturating_sub(fault.rightful()),
    })
}

/// A supervisor waits twice as long after each death: a fresh cluster after so many saves time.
const KILLS_OF_A_CLUSTER: usize = 10;

/// Rounds with a dead owner, on a cluster that is whole again before each.
fn of_owner(fault: Fault, kills: usize, rate: f64) -> anyhow::Result<Vec<Seen>> {
    let mut cluster = Cluster::start(fault)?;
    let mut seen = Vec::new();
    for number in 0..kills {
        if number > 0 && number.is_multiple_of(KILLS_OF_A_CLUSTER) {
            drop(cluster);
            // The kernel forgets namespaces and their links in its own time.
            std::thread::sleep(Duration::from_secs(2));
            cluster = Cluster::start(fault)?;
        }
        let victim = cluster.owner();
        let mut found = one(&cluster, fault, rate, number as u32 + 1)?;
        if cluster.owner() == victim {
            bail!("{victim} is the owner still: the fault has moved nothing");
        }
        let restored = cluster.restore(fault, victim)?;
        found.restored_s = Some(restored);
        eprintln!(
            "{} {} ({}): {victim}, gap {:.2} ms (calm {:.2}), return {:.2}, latency {:.2}, lost {}, unaccepted {}, \
             duplicated {} {:?}, doubled {}, whole after {restored:.2} s",
            fault.name(),
            number + 1,
            cluster.kind(),
            found.gap_ms,
            found.calm_gap_ms,
            found.return_gap_ms.unwrap_or(0.0),
            found.longest_latency_ms,
            found.lost,
            found.unaccepted,
            found.duplicated,
            found.copies,
            found.doubled_allowed,
        );
        seen.push(found);
    }
    Ok(seen)
}

/// In ms.
fn since_strike(outcome: &Outcome, fault: Fault, time: Nanos) -> f64 {
    let strike = outcome.windows.iter().find(|w| w.label == fault.name()).map_or(Nanos::ZERO, |w| w.at);
    (time.0 as f64 - strike.0 as f64) / 1e6
}

/// All faults of one kind. A killed node ends its cluster, the others come back to theirs.
fn all(fault: Fault, kills: usize, rate: f64) -> anyhow::Result<Vec<Seen>> {
    if fault.of_owner() {
        return of_owner(fault, kills, rate);
    }
    let mut seen = Vec::new();
    let mut standing: Option<(Cluster, Vec<(u64, u64)>)> = None;
    for number in 0..kills {
        let (cluster, masters) = match standing.take() {
            Some(standing) => standing,
            None => {
                let cluster = Cluster::start(fault)?;
                let masters = cluster.masters()?;
                (cluster, masters)
            }
        };
        let found = one(&cluster, fault, rate, number as u32 + 1)?;
        eprintln!(
            "{} {}: gap {:.2} ms (calm {:.2}), longest latency {:.2} ms, lost {}, duplicated {}",
            fault.name(),
            number + 1,
            found.gap_ms,
            found.calm_gap_ms,
            found.longest_latency_ms,
            found.lost,
            found.duplicated
        );
        seen.push(found);
        if fault != Fault::SigKill {
            cluster.settle(&masters)?;
            standing = Some((cluster, masters));
        }
    }
    Ok(seen)
}

/// Percentiles of some figures, to three digits.
fn percentiles(values: Vec<f64>) -> Value {
    let mut histogram = Histogram::<u64>::new(3).unwrap_or_else(|e| unreachable!("3 digits are valid: {e}"));
    for value in values.iter().filter(|value| value.is_finite()) {
        histogram.record((value * 1000.0) as u64).unwrap_or_else(|e| unreachable!("it grows: {e}"));
    }
    let at = |q| (!histogram.is_empty()).then(|| histogram.value_at_quantile(q) as f64 / 1000.0);
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0) })
}

fn row(fault: Fault, rate: f64, seen: &[Seen]) -> Value {
    let of = |value: fn(&Seen) -> f64| percentiles(seen.iter().map(value).collect());
    let sum = |value: fn(&Seen) -> u64| seen.iter().map(value).sum::<u64>();
    json!({
        "mode": fault.name(), "kills": seen.len(), "rate": rate, "gap_ms": of(|s| s.gap_ms),
        "calm_gap_ms": of(|s| s.calm_gap_ms), "longest_latency_ms": of(|s| s.longest_latency_ms),
        "return_gap_ms": percentiles(seen.iter().filter_map(|s| s.return_gap_ms).collect()),
        "lost": sum(|s| s.lost), "duplicated": sum(|s| s.duplicated), "reordered": sum(|s| s.reordered),
        "corrupted": sum(|s| s.corrupted), "unaccepted": sum(|s| s.unaccepted),
        "doubled_allowed": sum(|s| s.doubled_allowed),
        "restored_s": percentiles(seen.iter().filter_map(|s| s.restored_s).collect()), "wrong_suspicions": sum(|s| s.wrong_suspicions),
    })
}

fn measure(args: &Args) -> anyhow::Result<Vec<Value>> {
    let kills =
        args.get("--kills").map_or(Ok(if args.quick { 10 } else { 100 }), str::parse).context("--kills")?;
    let rate = args.get("--rate").map_or(Ok(5_000.0), str::parse).context("--rate")?;
    let mode = args.get("--mode").unwrap_or("all");
    let calls = args.get("--calls").map_or(Ok(100_000), str::parse).context("--calls")?;
    if mode == "restart" {
        return operate::restart(calls, rate, kills);
    }
    let faults: Vec<Fault> = Fault::ALL.into_iter().filter(|f| mode == "all" || mode == f.name()).collect();
    if faults.is_empty() && mode != "rolling" {
        bail!(
            "--mode {mode}: give sigkill, sigstop, cut, owner, host, owner-stop, owner-cut, restart, rolling or all"
        );
    }
    let between_hosts = faults.iter().any(|fault| fault.needs_bridge() || fault.of_owner());
    if (mode == "rolling" || between_hosts) && !bridge::is_inside() {
        let why = bridge::enter();
        eprintln!(
            "SKIPPED: modes cut, owner-stop, owner-cut; owner, host and rolling on loopback only: {why:#}"
        );
    }
    if mode == "rolling" {
        return operate::rolling(rate, kills);
    }
    let mut rows = Vec::new();
    for fault in faults.into_iter().filter(|f| !f.needs_bridge() || bridge::is_inside()) {
        let seen = all(fault, kills, rate)?;
        if !seen.is_empty() {
            rows.push(row(fault, rate, &seen));
        }
    }
    let headings = [
        "mode",
        "kills",
        "gap_p50",
        "gap_p90",
        "gap_p99",
        "gap_max",
        "calm_p50",
        "calm_p99",
        "return_p50",
        "return_p99",
        "latency_p50",
        "latency_p99",
        "lost",
        "unaccepted",
        "duplicated",
        "doubled",
        "restored_p50",
        "wrong_suspicions",
    ];
    let mut shown = vec![headings.map(String::from).to_vec()];
    for row in &rows {
        let text = |path: &str| match row.pointer(path) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Null) | None => "-".to_owned(),
            Some(number) => number.to_string(),
        };
        let paths = [
            "/mode",
            "/kills",
            "/gap_ms/p50",
            "/gap_ms/p90",
            "/gap_ms/p99",
            "/gap_ms/max",
            "/calm_gap_ms/p50",
            "/calm_gap_ms/p99",
            "/return_gap_ms/p50",
            "/return_gap_ms/p99",
            "/longest_latency_ms/p50",
            "/longest_latency_ms/p99",
            "/lost",
            "/unaccepted",
            "/duplicated",
            "/doubled_allowed",
            "/restored_s/p50",
            "/wrong_suspicions",
        ];
        shown.push(paths.map(text).to_vec());
    }
    table(&shown);
    Ok(rows)
}

fn main() -> ExitCode {
    world::name_program();
    let args = Args::read("failover", &["--kills", "--rate", "--mode", "--calls"]);
    match measure(&args) {
        Ok(rows) => {
            args.write("failover", &rows);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("failover: {error:#}");
            ExitCode::FAILURE
        }
    }
}
