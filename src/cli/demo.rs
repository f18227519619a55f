//! `tandem demo`: a cluster of separate processes, a bundled SIP and RTP capture replayed against it, a node
//! killed on the way, and every answer checked.

use super::local::{ClusterArgs, LocalCluster};
use super::replay::{Control, Expect, Live, Options, Outcome, Pace, Plan, Runner, Schedule, fresh_seed};
use super::report::Report;
use super::{BadUsage, capture, json};
use crate::io::sys_process::Signal;
use crate::io::sys_time;
use crate::types::{Nanos, NodeId};
use clap::{Args, ValueEnum};
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// A complete call: SIP signalling and RTP both ways (samples/README.md tells where it comes from).
const CAPTURE: &[u8] = include_bytes!("../../samples/call-g711a.pcap");
/// What happens this long after a kill is put down to it.
const AFTER_KILL: Nanos = Nanos::from_secs(2);
/// How often the live line is drawn: for eyes, and for a log.
const LINE_EVERY: Nanos = Nanos::from_millis(100);
const LINE_EVERY_IN_A_LOG: Nanos = Nanos::from_secs(1);
/// How long the members may take to catch up with one another at the end.
const CATCH_UP: Duration = Duration::from_secs(3);

/// What is killed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub enum Victim {
    /// The node, other than the owner, that is master of most calls
    Master,
    /// The node, other than the owner, that is master of fewest calls
    Member,
    /// Nothing
    None,
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
    #[arg(long, default_value_t = 15, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// Which node to kill (SIGKILL)
    #[arg(long, default_value = "master", value_name = "WHAT")]
    kill: Victim,
    /// Second at which to kill
    #[arg(long, default_value_t = 5, value_name = "S")]
    kill_at: u64,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the demo. Exit status 1: something was lost, duplicated, reordered or corrupted, or members differ.
///
/// # Errors
/// The cluster or the load cannot be started; the report cannot be written.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    if args.kill != Victim::None && args.kill_at >= args.duration {
        let (at, end) = (args.kill_at, args.duration);
        return Err(BadUsage(format!(
            "--kill-at {at} is not before the end: give less than --duration {end}"
        ))
        .into());
    }
    if args.kill != Victim::None && args.cluster.nodes < 2 {
        return Err(
            BadUsage("--nodes 1 leaves nobody to take over: give --nodes 3, or --kill none".into()).into()
        );
    }
    if let Some(path) = &args.json {
        json::check(path)?;
    }
    let capture = capture::decode(Path::new("the bundled capture"), CAPTURE.to_vec())?;
    let plan = Plan::new(&[capture.datagrams], fresh_seed())?;
    let mut cluster = LocalCluster::start(&args.cluster)?;
    introduce(&cluster, args);
    let duration = Nanos::from_secs(args.duration);
    let pace = Pace { calls: Some(args.calls), speed: 1.0, duration: Some(duration), rate: None };
    let targets = cluster.service().to_vec();
    let options = Options {
        targets,
        expect: Expect::Trailer,
        drain: Nanos::from_secs(2),
        sockets: None,
        expect_failovers: 0,
    };
    let mut runner = Runner::new(Schedule::new(plan, pace), options)?;
    let mut watch = Watch::new(&cluster, args);
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
    let (report, good) = conclude(&cluster, &watch, &outcome);
    tell(&report, &outcome, &watch, good);
    if let Some(path) = &args.json {
        json::write(path, &report)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn introduce(cluster: &LocalCluster, args: &DemoArgs) {
    let nodes: Vec<String> =
        cluster.nodes.iter().map(|n| format!("{} on {} (process {})", n.id, n.host, n.pid)).collect();
    println!("nodes    {}", nodes.join(", "));
    println!("service  {}, held by its owner {}", cluster.service()[0], cluster.settings.owner);
    println!(
        "load     {} calls for {} s, each with three call ids: its SIP Call-ID and the SSRCs of two RTP streams",
        args.calls, args.duration
    );
    match args.kill {
        Victim::None => println!("kill     nothing"),
        Victim::Master => println!(
            "kill     at {} s the node, other than the owner, that is master of most calls",
            args.kill_at
        ),
        Victim::Member => println!(
            "kill     at {} s the node, other than the owner, that is master of fewest calls",
            args.kill_at
        ),
    }
}

/// Draws the live line and kills at the right moment.
struct Watch {
    kill: Victim,
    kill_at: Nanos,
    owner: NodeId,
    nodes: Vec<NodeId>,
    killed: Vec<NodeId>,
    /// CPU time of each process before the load, and of the killed ones at their end.
    cpu: Vec<(u32, Nanos)>,
    cpu_of_the_dead: Nanos,
    terminal: bool,
    next_line: Nanos,
}

impl Watch {
    fn new(cluster: &LocalCluster, args: &DemoArgs) -> Watch {
        let cpu = |pid| (pid, sys_time::process_cpu(pid).unwrap_or_default());
        Watch {
            kill: args.kill,
            kill_at: Nanos::from_secs(args.kill_at),
            owner: cluster.settings.owner,
            nodes: cluster.nodes.iter().map(|n| n.id).collect(),
            killed: Vec::new(),
            cpu: cluster.nodes.iter().map(|n| cpu(n.pid)).collect(),
            cpu_of_the_dead: Nanos::ZERO,
            terminal: std::io::stdout().is_terminal(),
            next_line: Nanos::ZERO,
        }
    }

    fn tick(&mut self, cluster: &mut LocalCluster, live: &mut Live<'_>) -> anyhow::Result<()> {
        if self.kill != Victim::None && self.killed.is_empty() && live.now >= self.kill_at {
            self.kill_one(cluster, live)?;
        }
        if live.now >= self.next_line {
            self.next_line = live.now + if self.terminal { LINE_EVERY } else { LINE_EVERY_IN_A_LOG };
            self.line(live);
        }
        Ok(())
    }

    fn kill_one(&mut self, cluster: &LocalCluster, live: &mut Live<'_>) -> anyhow::Result<()> {
        let calls = live.calls_by_node();
        let of = |node: &NodeId| calls.get(usize::from(node.0)).copied().unwrap_or(0);
        let others = self.nodes.iter().filter(|n| **n != self.owner);
        let (what, victim) = match self.kill {
            Victim::Member => ("member", others.min_by_key(|n| of(n))),
            _ => ("master", others.max_by_key(|n| of(n))),
        };
        let Some(victim) = victim.copied() else { return Ok(()) };
        if let Some(node) = cluster.nodes.iter().find(|n| n.id == victim) {
            let before =
                self.cpu.iter().find(|(pid, _)| *pid == node.pid).map_or(Nanos::ZERO, |(_, cpu)| *cpu);
            self.cpu_of_the_dead = sys_time::process_cpu(node.pid).unwrap_or_default().since(before);
        }
        live.mark(what, Some(victim), AFTER_KILL);
        cluster.signal(victim, Signal::Kill)?;
        self.killed.push(victim);
        self.end_line();
        println!(
            "{:>6.2} s  SIGKILL to {victim}, which was master of {} call ids",
            live.now.as_millis_f64() / 1000.0,
            of(&victim)
        );
        Ok(())
    }

    fn line(&self, live: &Live<'_>) {
        let counts = live.counts();
        let calls = live.calls_by_node();
        let nodes = self.nodes.iter().map(|node| {
            let state = if self.killed.contains(node) {
                "dead".into()
            } else {
                calls.get(usize::from(node.0)).copied().unwrap_or(0).to_string()
            };
            format!("{node} {state:>5}")
        });
        let text = format!(
            "{:>6.2} s  sent {:>7}  replied {:>7}  wrong {}  call ids answered by {}",
            live.now.as_millis_f64() / 1000.0,
            counts.sent,
            counts.replied,
            counts.lost + counts.duplicated + counts.reordered + counts.corrupted,
            nodes.collect::<Vec<_>>().join("  "),
        );
        if self.terminal {
            // No wrapping meanwhile: a narrow terminal shows the beginning of the line instead of many lines.
            print!("\r\x1b[?7l{text}\x1b[K\x1b[?7h");
            // Drawing is for eyes; a closed terminal is noticed elsewhere.
            let _ = std::io::stdout().flush();
        } else {
            println!("{text}");
        }
    }

    fn end_line(&self) {
        if self.terminal {
            println!();
        }
    }

    fn alive(&self) -> Vec<NodeId> {
        self.nodes.iter().copied().filter(|n| !self.killed.contains(n)).collect()
    }

    fn cpu_spent(&self) -> Nanos {
        let spent = |(pid, before): &(u32, Nanos)| sys_time::process_cpu(*pid).map(|cpu| cpu.since(*before));
        self.cpu.iter().filter_map(|node| spent(node).ok()).fold(self.cpu_of_the_dead, |a, b| a + b)
    }
}

/// Completes the client's report with what the nodes say. Good: nothing wrong, and the members agree.
fn conclude(cluster: &LocalCluster, watch: &Watch, outcome: &Outcome) -> (Report, bool) {
    let alive = watch.alive();
    let mut report = outcome.report();
    let spent = watch.cpu_spent().0 as f64 / 1000.0;
    report.cpu_us_per_packet = (report.sent > 0).then(|| round(spent / report.sent as f64));
    let statuses: Vec<Value> = alive.iter().filter_map(|n| cluster.status(*n).ok()).collect();
    let diverged = sum(&statuses, "divergences");
    let agree = cluster.digests_agree(&alive, CATCH_UP).unwrap_or(false) && diverged == 0;
    report.digests_agree = Some(agree && statuses.len() == alive.len());
    report.released = Some(sum(&statuses, "released"));
    // One owner for the cluster's whole life: no log is ever recovered, so none can be recovered with a loss.
    report.lossy_failovers = Some(0);
    let good = outcome.is_clean() && report.digests_agree == Some(true);
    (report, good)
}

/// The sum of one engine counter over all shards of all nodes.
fn sum(statuses: &[Value], name: &str) -> u64 {
    let shards = statuses.iter().filter_map(|s| s["shards"].as_array()).flatten();
    shards.filter_map(|shard| shard["engine"][name].as_u64()).sum()
}

fn round(us: f64) -> f64 {
    (us * 10.0).round() / 10.0
}

fn tell(report: &Report, outcome: &Outcome, watch: &Watch, good: bool) {
    println!("\n{outcome}");
    let agree = if report.digests_agree == Some(true) { "agree" } else { "DIFFER" };
    let alive: Vec<String> = watch.alive().iter().map(ToString::to_string).collect();
    println!("members     {agree:>12}  in every slot's log and outputs: {}", alive.join(", "));
    println!("released    {:>12}  replies sent by the owner", report.released.unwrap_or(0));
    println!(
        "CPU         {:>12.1}  us a packet, all nodes together",
        report.cpu_us_per_packet.unwrap_or(0.0)
    );
    let verdict =
        if good { "every packet was answered exactly once, in order" } else { "SOMETHING WAS LOST OR WRONG" };
    println!("\nresult: {verdict}");
}
