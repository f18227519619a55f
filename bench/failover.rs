//! What clients notice when a master dies, freezes, or loses its link (modes sigkill, sigstop, cut: the owner lives
//! on), and when the owner dies, by itself or with its host (modes owner, host): the gap in the replies, and whether
//! anything was lost or answered twice.

mod bridge;
mod common;
mod world;

use anyhow::{Context, bail};
use bridge::Bridged;
use common::{Args, table};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tandem::cli::load::Load;
use tandem::cli::local::LocalCluster;
use tandem::cli::replay::{Control, Expect, Options, Runner};
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
/// How long a dead owner may take to be a full member again: its supervisor waits longer after each death.
const WHOLE_WITHIN: Duration = Duration::from_secs(40);
/// How long a node that was away may take until it is master again.
const BACK_WITHIN: Duration = Duration::from_secs(5);

#[derive(Copy, Clone, PartialEq, Eq)]
enum Fault {
    SigKill,
    SigStop,
    Cut,
    Owner,
    Host,
}

impl Fault {
    const ALL: [Fault; 5] = [Fault::SigKill, Fault::SigStop, Fault::Cut, Fault::Owner, Fault::Host];

    fn name(self) -> &'static str {
        match self {
            Fault::SigKill => "sigkill",
            Fault::SigStop => "sigstop",
            Fault::Cut => "cut",
            Fault::Owner => "owner",
            Fault::Host => "host",
        }
    }

    /// Whether the node that holds the service address dies.
    fn of_owner(self) -> bool {
        matches!(self, Fault::Owner | Fault::Host)
    }

    /// Whether the same process goes on when the fault is over.
    fn returns(self) -> bool {
        matches!(self, Fault::SigStop | Fault::Cut)
    }

    /// Silences that begin this long after a mark belong to it. A signal works at once; what `nft` is told works
    /// some time later. The calls of one master are a third of all, so that among many intervals between their
    /// packets there is always a long one: the shorter, the better.
    fn window(self) -> Nanos {
        Nanos::from_millis(match self {
            Fault::Cut => 30,
            Fault::SigKill | Fault::SigStop => 2,
            Fault::Owner | Fault::Host => 10,
        })
    }

    /// Suspicions that a fault causes although the victim's beats never stop: a cut link silences it for two
    /// others, and them for it.
    fn rightful(self) -> u64 {
        if self == Fault::Cut { 4 } else { 0 }
    }
}

/// A cluster of either kind.
enum Cluster {
    Local(LocalCluster),
    Bridged(Bridged),
}

impl Cluster {
    fn start(fault: Fault) -> anyhow::Result<Cluster> {
        Ok(match fault {
            Fault::Cut => Cluster::Bridged(Bridged::start(&std::env::var(world::PROGRAM)?)?),
            _ => Cluster::Local(world::cluster(3)?),
        })
    }

    fn settings(&self) -> &tandem::config::Settings {
        match self {
            Cluster::Local(local) => &local.settings,
            Cluster::Bridged(bridged) => &bridged.settings,
        }
    }

    fn service(&self) -> SocketAddr {
        self.settings().service[0]
    }

    fn pids(&self) -> Vec<(NodeId, u32)> {
        match self {
            Cluster::Local(local) => local.nodes.iter().map(|node| (node.id, node.engine_pid)).collect(),
            Cluster::Bridged(bridged) => bridged.nodes.iter().map(|(id, child)| (*id, child.id())).collect(),
        }
    }

    fn status(&self, node: NodeId) -> anyhow::Result<Value> {
        match self {
            Cluster::Local(local) => Ok(local.status(node)?),
            Cluster::Bridged(bridged) => bridged.status(node),
        }
    }

    fn local(&mut self) -> anyhow::Result<&mut LocalCluster> {
        match self {
            Cluster::Local(local) => Ok(local),
            Cluster::Bridged(_) => bail!("the nodes on the bridge are not killed"),
        }
    }

    /// Who holds the service address now.
    fn owner(&self) -> NodeId {
        match self {
            Cluster::Local(local) => local.picture().owner().unwrap_or(local.settings.owner),
            Cluster::Bridged(bridged) => bridged.settings.owner,
        }
    }

    fn strike(&self, fault: Fault, node: NodeId, pid: u32) -> anyhow::Result<()> {
        match (fault, self) {
            (Fault::Owner, Cluster::Local(local)) => local.kill_engine(node),
            (Fault::Host, Cluster::Local(local)) => local.kill_node(node),
            (Fault::SigKill, _) => Ok(signal(pid, Signal::Kill)?),
            (Fault::SigStop, _) => Ok(signal(pid, Signal::Stop)?),
            _ => Ok(()),
        }
    }

    /// Brings a dead owner back; returns how long it took until every slot had all its members again.
    fn restore(&mut self, fault: Fault, victim: NodeId) -> anyhow::Result<f64> {
        let start = Instant::now();
        let local = self.local()?;
        if fault == Fault::Host {
            local.start_again(victim)?;
        }
        let all = local.nodes.len();
        while local.picture().nodes.iter().filter(|node| node.answered).count() < all {
            if start.elapsed() > WHOLE_WITHIN {
                bail!("{victim} is not back after {WHOLE_WITHIN:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        local.wait_until_whole(WHOLE_WITHIN.saturating_sub(start.elapsed()))?;
        local.find_engines();
        Ok(start.elapsed().as_secs_f64())
    }

    /// The sum over `nodes` of suspicions that turned out wrong.
    fn wrong_suspicions(&self, nodes: &[NodeId]) -> u64 {
        let one = |node: &NodeId| self.status(*node).ok()?["control"]["wrong_suspicions"].as_u64();
        nodes.iter().filter_map(one).sum()
    }

    /// The slots of which each node is master.
    fn masters(&self) -> anyhow::Result<Vec<(u64, u64)>> {
        let status = self.status(self.owner())?;
        let masters =
            serde_json::from_value::<Vec<(u64, u64)>>(status["shards"][0]["engine"]["masters"].clone());
        masters.context("the owner's status names no masters")
    }

    /// Waits until masterships lie as they did.
    fn settle(&self, as_before: &[(u64, u64)]) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.masters().map_or(true, |masters| masters != as_before) {
            if start.elapsed() > BACK_WITHIN {
                bail!("masterships are not back {BACK_WITHIN:?} after the fault: {:?}", self.masters());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

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
    let away = if returns { AWAY } else { Nanos::ZERO };
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
    let (mut struck, mut back) = (false, false);
    let mut failed = None;
    let mut helpers = Vec::new();
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
            if fault.of_owner() {
                live.mark_outage(fault.name(), node, fault.window());
            } else {
                live.mark(fault.name(), Some(node), fault.window());
            }
            match fault {
                // `nft` takes a while, and the load must not wait for it.
                Fault::Cut => helpers.push(std::thread::spawn(move || bridge::cut(node))),
                _ => failed = cluster.strike(fault, node, pid).err(),
            }
        }
        if returns && !back && live.now >= LEAD + CALM + AWAY {
            back = true;
            live.mark("back", None, RETURN_WINDOW);
            match fault {
                Fault::Cut => helpers.push(std::thread::spawn(bridge::mend)),
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
        restored_s: None,
        wrong_suspicions: (cluster.wrong_suspicions(&alive))
            .saturating_sub(wrong_before)
            .saturating_sub(fault.rightful()),
    })
}

/// Rounds with a dead owner, all on one cluster, which is whole again before each.
fn of_owner(fault: Fault, kills: usize, rate: f64) -> anyhow::Result<Vec<Seen>> {
    let mut cluster = Cluster::start(fault)?;
    if cluster.local()?.picture().map_version.is_none() {
        eprintln!(
            "SKIPPED: mode {}: these nodes agree on no map, so that nobody replaces an owner",
            fault.name()
        );
        return Ok(Vec::new());
    }
    let mut seen = Vec::new();
    for number in 0..kills {
        let victim = cluster.owner();
        let mut found = one(&cluster, fault, rate, number as u32 + 1)?;
        let restored = cluster.restore(fault, victim)?;
        found.restored_s = Some(restored);
        eprintln!(
            "{} {}: {victim}, gap {:.2} ms (calm {:.2}), lost {}, unaccepted {}, duplicated {}, doubled {}, \
             whole after {restored:.2} s",
            fault.name(),
            number + 1,
            found.gap_ms,
            found.calm_gap_ms,
            found.lost,
            found.unaccepted,
            found.duplicated,
            found.doubled_allowed,
        );
        seen.push(found);
    }
    Ok(seen)
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
        histogram.saturating_record((value * 1000.0) as u64);
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
    let faults: Vec<Fault> = Fault::ALL.into_iter().filter(|f| mode == "all" || mode == f.name()).collect();
    if faults.is_empty() {
        bail!("--mode {mode}: give sigkill, sigstop, cut, owner, host or all");
    }
    if faults.contains(&Fault::Cut) && !bridge::is_inside() {
        eprintln!("SKIPPED: mode cut, which needs root and network namespaces: {:#}", bridge::enter());
    }
    let mut rows = Vec::new();
    for fault in faults.into_iter().filter(|f| *f != Fault::Cut || bridge::is_inside()) {
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
    let args = Args::read("failover", &["--kills", "--rate", "--mode"]);
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
