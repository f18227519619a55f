//! What operators do to a cluster under load: a node is started again that holds many calls (mode restart), and all nodes
//! are, one after the other (mode rolling).

use crate::subject::{Cluster, Fault};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tandem::cli::load::Load;
use tandem::cli::replay::{Control, Expect, Options, Outcome, Runner};
use tandem::cli::status::{self, Picture};
use tandem::config::Settings;
use tandem::io::operator::{self, STATUS};
use tandem::types::{Nanos, NodeId};

/// Calls of the load whose replies are looked at.
const CALLS: u32 = 300;
/// How fast the many calls are begun.
const BEGIN_RATE: f64 = 10_000.0;
/// Load before the first restart, and after the last.
const LEAD: Duration = Duration::from_secs(1);
/// No load goes on for longer.
const LONGEST: Nanos = Nanos::from_secs(120);
/// What is late for so long after a death is so because of it; later, because of the node that comes back.
const DYING: Duration = Duration::from_millis(100);
/// A restarted node must be back within this.
const WITHIN: Duration = Duration::from_secs(30);

fn options(cluster: &Cluster) -> Options {
    Options {
        targets: vec![cluster.service()],
        expect: Expect::Trailer,
        drain: Nanos::from_secs(2),
        sockets: None,
        expect_failovers: 0,
    }
}

/// Runs `work` on a thread of its own under load, which ends a second after it. What it calls by name begins a window.
fn under_load<T: Send>(
    rate: f64,
    seed: u32,
    options: Options,
    work: impl FnOnce(&dyn Fn(&'static str)) -> anyhow::Result<T> + Send,
) -> anyhow::Result<(Outcome, T)> {
    let mut runner = Runner::new(Load::new(CALLS, rate, LONGEST, seed).traffic(), options)?;
    let over = AtomicBool::new(false);
    let (named, names) = std::sync::mpsc::channel();
    let (outcome, done) = std::thread::scope(|scope| {
        let over = &over;
        let worker = scope.spawn(move || {
            let name = |label| named.send(label).unwrap_or_default();
            name("before");
            std::thread::sleep(LEAD);
            let done = work(&name);
            std::thread::sleep(LEAD);
            over.store(true, Ordering::Relaxed);
            done
        });
        let outcome = runner.run(&mut |live| {
            names.try_iter().for_each(|label| live.mark(label, None, LONGEST));
            if over.load(Ordering::Relaxed) { Control::Stop } else { Control::Continue }
        });
        (outcome, worker.join())
    });
    let done = done.map_err(|_| anyhow::anyhow!("the thread beside the load panicked"))??;
    Ok((outcome?, done))
}

/// What a node took in until it was a full member again, and for how long it was at it, by its own figures.
struct Back {
    whole_s: f64,
    bytes: u64,
    taking_s: f64,
}

/// Watches until the node answers in another life than `before` and every slot has all its members.
fn watch(settings: &Settings, node: NodeId, before: u64, killed: Instant) -> anyhow::Result<Back> {
    let patience = Nanos::from_millis(200);
    let address = settings.control_address(node).context("no such node")?;
    loop {
        if killed.elapsed() > WITHIN {
            bail!("{node} is not back after {WITHIN:?}");
        }
        // Each question costs all nodes some of the CPU time that the cores have for what is measured.
        std::thread::sleep(Duration::from_millis(20));
        let Ok(answer) = operator::ask(address, &settings.sealing_key(), STATUS, patience) else { continue };
        if answer["boot"].as_u64() == Some(before) {
            continue;
        }
        let asked = status::ask_all(settings, &status::addresses(settings), patience);
        let picture = Picture::new(settings, &asked.answers, None);
        if asked.silent.is_empty() && picture.is_whole() && picture.slots.served == picture.slots.all {
            let whole_s = killed.elapsed().as_secs_f64();
            let answer = operator::ask(address, &settings.sealing_key(), STATUS, patience)?;
            let shards = answer["shards"].as_array().cloned().unwrap_or_default();
            let figure = |name: &'static str| shards.iter().filter_map(move |s| s["engine"][name].as_u64());
            let (bytes, took) = (figure("resync_bytes").sum(), figure("resync_ns").max().unwrap_or(0));
            return Ok(Back { whole_s, bytes, taking_s: took as f64 / 1e9 });
        }
    }
}

/// A node that holds `calls` calls is killed and comes back, `times` times: its snapshots are taken in as fast as it goes.
pub(crate) fn restart(calls: u32, rate: f64, times: usize) -> anyhow::Result<Vec<Value>> {
    let cluster = Cluster::start_with(Fault::SigKill, &[("RESYNC_MBPS", "0")])?;
    let begin = Load::new(calls, BEGIN_RATE, Nanos((f64::from(calls) / BEGIN_RATE * 1e9) as u64), u32::MAX);
    let begun = Runner::new(begin.traffic(), options(&cluster))?.run(&mut |_| Control::Continue)?;
    eprintln!("{calls} calls begun, lost {}", begun.counts.lost);
    let mut rows = Vec::new();
    for number in 0..times {
        let owner = cluster.owner();
        let victim =
            cluster.pids().into_iter().map(|(id, _)| id).find(|id| *id != owner).context("no member")?;
        let (settings, status) = (cluster.settings().clone(), cluster.status(victim)?);
        let before = status["boot"].as_u64().context("a boot")?;
        let pid = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("a pid")?;
        let (outcome, back) = under_load(rate, number as u32 + 1, options(&cluster), |name| {
            name("death");
            tandem::io::sys_process::signal(pid, tandem::io::sys_process::Signal::Kill)?;
            let killed = Instant::now();
            std::thread::sleep(DYING);
            name("back");
            watch(&settings, victim, before, killed)
        })?;
        let counts = outcome.counts;
        let latest =
            |label| outcome.windows.iter().find(|w| w.label == label).map(|w| w.latest.as_millis_f64());
        let row = json!({
            "mode": "restart", "calls": calls, "rate": rate, "whole_s": back.whole_s, "snapshot_bytes": back.bytes,
            "taking_s": back.taking_s, "mb_per_s": back.bytes as f64 / 1e6 / back.taking_s.max(1e-3),
            "latest_ms": { "before": latest("before"), "death": latest("death"), "back": latest("back") },
            "latency_p99_us": outcome.latency.p99,
            "sent": counts.sent, "lost": counts.lost, "duplicated": counts.duplicated, "corrupted": counts.corrupted,
        });
        eprintln!("{row}");
        rows.push(row);
    }
    Ok(rows)
}

/// Every node is drained, ends and comes back, one after the other, `times` times.
pub(crate) fn rolling(rate: f64, times: usize) -> anyhow::Result<Vec<Value>> {
    let mut cluster = Cluster::start(Fault::Host)?;
    let mut rows = Vec::new();
    for number in 0..times {
        let options = options(&cluster);
        let (outcome, took) = under_load(rate, number as u32 + 1, options, |_| {
            let start = Instant::now();
            for (node, _) in cluster.pids() {
                cluster.restart(node)?;
            }
            Ok(start.elapsed())
        })?;
        let counts = outcome.counts;
        let row = json!({
            "mode": "rolling", "kind": cluster.kind(), "rate": rate, "took_s": took.as_secs_f64(), "sent": counts.sent,
            "lost": counts.lost, "unaccepted": counts.unaccepted, "duplicated": counts.duplicated,
            "reordered": counts.reordered, "corrupted": counts.corrupted,
            "longest_gap_ms": outcome.longest_gap().map(Nanos::as_millis_f64),
            "latency_max_ms": outcome.latency.max.unwrap_or(f64::NAN) / 1e3,
        });
        eprintln!("{row}");
        rows.push(row);
    }
    Ok(rows)
}
