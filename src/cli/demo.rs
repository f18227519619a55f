//! `tandem demo`: a cluster of separate processes, a bundled SIP and RTP capture replayed against it, nodes
//! killed on the way, and every answer checked.

mod scout;
mod watch;

use super::local::{ClusterArgs, LocalCluster};
use super::replay::{Control, Expect, Options, Outcome, Pace, Plan, Runner, Schedule, fresh_seed};
use super::report::Report;
use super::{BadUsage, capture, json};
use crate::types::Nanos;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use watch::Watch;

/// A complete call: SIP signalling and RTP both ways (samples/README.md tells where it comes from).
const CAPTURE: &[u8] = include_bytes!("../../samples/call-g711a.pcap");
/// How long the members may take to catch up with one another at the end.
const CATCH_UP: Duration = Duration::from_secs(3);

/// What is killed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub enum Victim {
    /// First the master of most calls, later the owner
    All,
    /// The engine of the node that holds the service address
    Owner,
    /// The same node as its host dies: supervisor and engine at once; it is started again a second later
    Host,
    /// The engine of the node, other than the owner, that is master of most calls
    Master,
    /// The engine of the node, other than the owner, that is master of fewest calls
    Member,
    /// Nothing
    None,
}

impl Victim {
    fn name(self) -> &'static str {
        match self {
            Victim::All => "all",
            Victim::Owner => "owner",
            Victim::Host => "host",
            Victim::Master => "master",
            Victim::Member => "member",
            Victim::None => "none",
        }
    }

    fn described(self) -> &'static str {
        match self {
            Victim::All | Victim::None => "nothing",
            Victim::Owner => "the engine of the node that holds the service address",
            Victim::Host => {
                "both processes of the node that holds the service address, as its host's death does"
            }
            Victim::Master => "the engine of the node, other than the owner, that is master of most calls",
            Victim::Member => "the engine of the node, other than the owner, that is master of fewest calls",
        }
    }
}

/// The arguments of `tandem demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Calls at a time
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    calls: u32,
    /// Seconds of load
    #[arg(long, default_value_t = 20, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// What to kill (SIGKILL)
    #[arg(long, default_value = "all", value_name = "WHAT")]
    kill: Victim,
    /// Second at which to kill; of several the first
    #[arg(long, default_value_t = 5, value_name = "S")]
    kill_at: u64,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the demo. Exit status 1: something was lost, duplicated, reordered or corrupted, members differ, or slots
/// are short of members in the end.
///
/// # Errors
/// The cluster or the load cannot be started; the report cannot be written.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    check(args)?;
    let capture = capture::decode(Path::new("the bundled capture"), CAPTURE.to_vec())?;
    let calls = Plan::new(&[capture.datagrams], fresh_seed())?;
    let mut cluster = LocalCluster::start(&args.cluster)?;
    let duration = Nanos::from_secs(args.duration);
    let plan = possible(args, &cluster, watch::plan(args.kill, Nanos::from_secs(args.kill_at), duration))?;
    introduce(&cluster, args, &plan);
    let pace = Pace { calls: Some(args.calls), speed: 1.0, duration: Some(duration), rate: None };
    let options = Options {
        targets: cluster.service().to_vec(),
        expect: Expect::Trailer,
        drain: Nanos::from_secs(2),
        sockets: None,
        expect_failovers: 0,
    };
    let mut runner = Runner::new(Schedule::new(calls, pace), options)?;
    let mut watch = Watch::new(&cluster, plan)?;
    let mut failed = None;
    let outcome = runner.run(&mut |live| match watch.tick(&mut cluster, live) {
        Ok(()) => Control::Continue,
        Err(error) => {
            failed = Some(error);
            Control::Stop
        }
    })?;
    watch.end_line();
    if let Some(error) = failed {
        return Err(error);
    }
    let (report, good) = conclude(&mut cluster, &mut watch, &outcome)?;
    tell(&report, &outcome, &watch, good);
    if let Some(path) = &args.json {
        json::write(path, &report)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(args: &DemoArgs) -> anyhow::Result<()> {
    if args.kill != Victim::None && args.kill_at >= args.duration {
        let (at, end) = (args.kill_at, args.duration);
        let said = format!("--kill-at {at} is not before the end: give less than --duration {end}");
        return Err(BadUsage(said).into());
    }
    if args.kill != Victim::None && args.cluster.nodes < 2 {
        let said = "--nodes 1 leaves nobody to take over: give --nodes 3, or --kill none";
        return Err(BadUsage(said.into()).into());
    }
    if let Some(path) = &args.json {
        json::check(path)?;
    }
    Ok(())
}

/// The kills that these nodes can bear: without an agreed map no owner is replaced.
fn possible(
    args: &DemoArgs,
    cluster: &LocalCluster,
    mut plan: Vec<watch::Plan>,
) -> Result<Vec<watch::Plan>, BadUsage> {
    if cluster.picture().map_version.is_none() {
        plan.retain(|kill| !matches!(kill.what, Victim::Owner | Victim::Host));
        if plan.is_empty() && args.kill != Victim::None {
            let said =
                "these nodes agree on no cluster map, so that nobody replaces an owner: give --kill master";
            return Err(BadUsage(said.into()));
        }
    }
    Ok(plan)
}

fn introduce(cluster: &LocalCluster, args: &DemoArgs, plan: &[watch::Plan]) {
    let node = |n: &super::local::LocalNode| match n.pid == n.engine_pid {
        true => format!("{} on {} (process {})", n.id, n.host, n.pid),
        false => format!("{} on {} (supervisor {}, engine {})", n.id, n.host, n.pid, n.engine_pid),
    };
    let nodes: Vec<String> = cluster.nodes.iter().map(node).collect();
    println!("nodes    {}", nodes.join(", "));
    println!("service  {}", cluster.service()[0]);
    println!(
        "load     {} calls for {} s, each with three call ids: its SIP Call-ID and the SSRCs of two RTP streams",
        args.calls, args.duration
    );
    for kill in plan {
        println!("kill     at {:.0} s {}", kill.at.as_millis_f64() / 1000.0, kill.what.described());
    }
    if plan.is_empty() {
        println!("kill     {}", Victim::None.described());
    }
}

/// Completes the client's report with what the nodes say. Good: nothing wrong, the members agree, and every slot
/// has all of them again.
fn conclude(
    cluster: &mut LocalCluster,
    watch: &mut Watch,
    outcome: &Outcome,
) -> anyhow::Result<(Report, bool)> {
    let whole = watch.settle(cluster, outcome.elapsed)?;
    let alive = watch.alive();
    let mut report = outcome.report();
    let agree = cluster.digests_agree(&alive, CATCH_UP).unwrap_or(false);
    let seen = watch.scout.seen();
    let spent = seen.cpu_us() as f64;
    report.cpu_us_per_packet = (report.sent > 0).then(|| round(spent / report.sent as f64));
    report.digests_agree = Some(agree && seen.sum("divergences") == 0 && !alive.is_empty());
    report.released = Some(seen.sum("released"));
    report.lossy_failovers = seen.picture.as_ref().map(|picture| picture.lossy_failovers);
    report.redundancy_restored_s =
        watch.restored.filter(|_| whole).map(|took| (took.as_millis_f64()).round() / 1000.0);
    let good = outcome.is_clean()
        && report.digests_agree == Some(true)
        && report.lossy_failovers == Some(0)
        && whole;
    Ok((report, good))
}

fn round(us: f64) -> f64 {
    (us * 10.0).round() / 10.0
}

fn tell(report: &Report, outcome: &Outcome, watch: &Watch, good: bool) {
    println!("\n{outcome}");
    let agree = if report.digests_agree == Some(true) { "agree" } else { "DIFFER" };
    let alive: Vec<String> = watch.alive().iter().map(ToString::to_string).collect();
    println!("members     {agree:>12}  in every slot's log and outputs: {}", alive.join(", "));
    println!("released    {:>12}  replies sent by the owners", report.released.unwrap_or(0));
    match report.redundancy_restored_s {
        Some(s) => println!("redundancy  {s:>12.2}  s from a kill until every slot had all its members"),
        None if good => {}
        None => println!("redundancy  {:>12}  in the end", "NOT WHOLE"),
    }
    if report.lossy_failovers != Some(0) {
        let lossy = report.lossy_failovers.map_or_else(|| "?".into(), |n| n.to_string());
        println!("LOSSY       {lossy:>12}  failovers without a complete commit set");
    }
    println!(
        "CPU         {:>12.1}  us a packet, all nodes together",
        report.cpu_us_per_packet.unwrap_or(0.0)
    );
    let verdict = if good {
        "every packet the cluster accepted was answered exactly once, in order"
    } else {
        "SOMETHING WAS LOST OR WRONG"
    };
    println!("\nresult: {verdict}");
}
