//! `tandem replay`: sends the calls of captures, cloned, to a target and checks every answer.
//!
//! The library form: [`Plan`] (pure: templates and clones), [`Schedule`] (pure: when what is due), [`Tally`]
//! (pure: sent, answered, and what is wrong), [`Runner`] (sockets and time). `tandem demo` and the benches
//! drive the same parts.
//!
//! All datagrams of a capture, those of both directions, are sent to the target: it finds calls by call id,
//! not by address. Each clone has a Call-ID and SSRCs of its own, and each of its flows a source port of its
//! own; a seat that takes its next call keeps its ports. Tags and branches stay as captured.

use std::io::IsTerminal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::{BadUsage, capture, complain, json};
use crate::io::sys_time;
use crate::types::Nanos;

mod faults;
mod flows;
mod holes;
mod lanes;
mod ledger;
mod outcome;
mod patch;
mod plan;
mod runner;
mod schedule;
mod sockets;
mod split;
mod tally;
mod traffic;
mod window;

pub use ledger::Sent;
pub use outcome::Outcome;
pub(crate) use plan::mix32;
pub use plan::{MAX_PAYLOAD, NothingToReplay, Plan, Template};
pub use runner::{Control, Live, Options, RunError, Runner, TICK};
pub use schedule::{Pace, SHORTEST_CYCLE, Schedule};
pub use tally::{Counts, Expect, REMEMBER, Repeat, Tally, key};
pub use traffic::{Packet, Shape, Traffic};
pub use window::Window;

/// Replays captured calls against a target and checks every answer for loss, duplication, order and content
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Captures (pcap or pcapng, also gzipped)
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Where to send, as ADDRESS:PORT; with several, calls are dealt out in turn
    #[arg(long, required = true, value_delimiter = ',', value_name = "ADDR")]
    pub target: Vec<String>,
    /// Calls at a time [default: as many as the captures hold]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub calls: Option<u32>,
    /// How many times faster than captured
    #[arg(long, default_value_t = 1.0, value_name = "X", value_parser = positive)]
    pub speed: f64,
    /// Seconds to send; calls that end start again as new ones [default: once through]
    #[arg(long, value_name = "S", value_parser = positive)]
    pub duration: Option<f64>,
    /// Datagrams a second, the calls in turn, instead of the capture's times
    #[arg(long, value_name = "PPS", value_parser = positive, conflicts_with = "speed")]
    pub rate: Option<f64>,
    /// Seconds to wait for answers after the last datagram; ends early when all are in
    #[arg(long, default_value_t = 2.0, value_name = "S", value_parser = not_negative)]
    pub drain: f64,
    /// The target answers with the bytes alone, without the echo application's trailer
    #[arg(long)]
    pub plain: bool,
    /// How many failovers of the service address to expect: so many silences, the worst ones, excuse datagrams that
    /// were lost on the wire then (not accepted ones), and answers of the last moment before that come again
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub expect_failovers: usize,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// No progress bar, and no text if nothing is wrong
    #[arg(long)]
    pub quiet: bool,
}

/// Runs the command. Exit status 1: something was lost, duplicated, reordered, corrupted or not sent.
///
/// # Errors
/// When a capture, the target or the report's file cannot be used.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.json {
        json::check(path)?;
    }
    let targets = resolve(&args.target)?;
    let plan = read_plan(args)?;
    let pace =
        Pace { calls: args.calls, speed: args.speed, duration: args.duration.map(seconds), rate: args.rate };
    let expect = if args.plain { Expect::Plain } else { Expect::Trailer };
    let expect_failovers = args.expect_failovers;
    if expect_failovers > 0 && targets.len() > 1 {
        return Err(
            BadUsage("--expect-failovers sees a silence only with one --target: give one".into()).into()
        );
    }
    let options = Options { targets, expect, drain: seconds(args.drain), sockets: None, expect_failovers };
    let found = plan.templates().len();
    let mut runner = Runner::new(Schedule::new(plan, pace), options)?;
    if !args.quiet {
        let (sockets, shared) = runner.sockets();
        let note =
            if shared { ", shared between the calls (the limit of open files allows no more)" } else { "" };
        println!("calls in the captures {found}, sockets {sockets}{note}");
    }
    let outcome = run_with_progress(&mut runner, args.duration.map(seconds), args.quiet)?;
    if !args.quiet || !outcome.is_clean() {
        print!("{outcome}");
    }
    if let Some(path) = &args.json {
        json::write(path, &outcome.report())?;
    }
    Ok(if outcome.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs to the end, showing a progress bar if standard error is a terminal and `quiet` is not set.
///
/// # Errors
/// Those of [`Runner::run`].
pub fn run_with_progress<T: Traffic>(
    runner: &mut Runner<T>,
    duration: Option<Nanos>,
    quiet: bool,
) -> Result<Outcome, RunError> {
    let shown = !quiet && std::io::stderr().is_terminal();
    let length = duration.map_or_else(|| runner.total(), |duration| Some(duration.as_micros() / 1000));
    let target = if shown { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(length, target);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}") {
        bar.set_style(style);
    }
    let mut ticks = 0_u32;
    let outcome = runner.run(&mut |live| {
        // A tenth of a second apart is often enough for eyes.
        if shown && ticks.is_multiple_of(20) {
            let counts = live.counts();
            bar.set_position(duration.map_or(counts.sent, |_| live.now.as_micros() / 1000));
            let wrong = counts.lost + counts.duplicated + counts.reordered + counts.corrupted;
            bar.set_message(format!(
                "sent {}  replied {}  open {}  wrong {wrong}",
                counts.sent,
                counts.replied,
                live.outstanding()
            ));
        }
        ticks = ticks.wrapping_add(1);
        Control::Continue
    });
    bar.finish_and_clear();
    outcome
}

/// Addresses of the form ADDRESS:PORT or NAME:PORT.
///
/// # Errors
/// When one cannot be resolved; the message names it.
pub fn resolve(targets: &[String]) -> anyhow::Result<Vec<SocketAddr>> {
    let one = |text: &String| {
        let found = text.to_socket_addrs().ok().and_then(|mut all| all.next());
        found.with_context(|| {
            format!("--target {text}: not an address; write it as ADDRESS:PORT, e.g. 127.0.0.1:5060")
        })
    };
    targets.iter().map(one).collect()
}

fn read_plan(args: &Args) -> anyhow::Result<Plan> {
    let mut captures = Vec::new();
    for path in &args.files {
        let capture = capture::read(path)?;
        if let Some(damage) = &capture.damage {
            complain(&format!("{}: {damage}; replaying what could be read", path.display()));
        }
        if capture.datagrams.is_empty() {
            bail!("{}: no UDP datagrams in this capture", path.display());
        }
        captures.push(capture.datagrams);
    }
    let plan = Plan::new(&captures, fresh_seed())?;
    if plan.skipped() > 0 {
        complain(&format!("{} datagrams of more than {MAX_PAYLOAD} bytes are left out", plan.skipped()));
    }
    Ok(plan)
}

/// Different in every run, so that no run meets the calls of an earlier one.
pub fn fresh_seed() -> u64 {
    let now = sys_time::now();
    xxhash_rust::xxh3::xxh3_64_with_seed(
        &now.wall.0.to_le_bytes(),
        now.mono.0 ^ u64::from(std::process::id()),
    )
}

fn seconds(s: f64) -> Nanos {
    Nanos((s * 1e9) as u64)
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err("must be above 0".to_owned()) }
}

fn not_negative(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("must not be below 0".to_owned()) }
}
