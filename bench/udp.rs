//! What a client packet costs in CPU time, all node processes together, and what latency they add, against the
//! bare forwarder of `floor.rs` in the same run. With `--calls N`: what N live calls cost.

mod common;
mod floor;
mod machine;
mod many;
mod world;

use anyhow::Context;
use common::{Args, table};
use floor::Floor;
use machine::{Machine, System, cpu, median};
use serde_json::{Value, json};
use std::process::ExitCode;
use tandem::cli::load::Load;
use tandem::cli::replay::{Control, Expect, Options, Outcome, Runner};
use tandem::types::Nanos;

const RATES: [f64; 3] = [20_000.0, 50_000.0, 80_000.0];
const CALLS: u32 = 1_000;
/// Client sockets: enough for variety, few enough that the generator's own cost leaves room for what is measured.
const SOCKETS: usize = 64;
const WARM_UP: Nanos = Nanos::from_millis(500);
const NAMES: [&str; 4] = ["floor", "tandem-r1", "tandem-r2", "tandem-r3"];

/// What one cell of one round showed.
struct Cell {
    cpu_us: f64,
    lost: u64,
    p50: f64,
    p99: f64,
    lateness_p99: f64,
    /// Packets answered a second, of those offered.
    delivered: f64,
    strangers: f64,
    receive_errors: u64,
}

/// Runs a load against a system; what it cost per packet answered counts from the first packet to the last.
fn run(system: &System, load: Load, expect: Expect) -> anyhow::Result<(Outcome, Cell)> {
    let drain = Nanos::from_secs(2);
    let options =
        Options { targets: vec![system.target], expect, drain, sockets: Some(SOCKETS), expect_failovers: 0 };
    let mut runner = Runner::new(load.traffic(), options)?;
    let me = std::process::id();
    let machine = Machine::read();
    let (before, mine) = (cpu(&system.pids), cpu(&[me]));
    let mut end = None;
    let outcome = runner.run(&mut |live| {
        if live.draining && end.is_none() {
            end = Some((cpu(&system.pids), live.counts().replied, Machine::read(), cpu(&[me])));
        }
        Control::Continue
    })?;
    let (after, replied, now, mine_after) = end.context("a run without an end")?;
    let used = after.since(before);
    let cell = Cell {
        cpu_us: used.0 as f64 / 1e3 / replied.max(1) as f64,
        lost: outcome.counts.lost,
        p50: outcome.latency.p50.unwrap_or(f64::NAN),
        p99: outcome.latency.p99.unwrap_or(f64::NAN),
        lateness_p99: outcome.lateness.p99.unwrap_or(f64::NAN),
        delivered: replied as f64 * 1e9 / load.duration.0 as f64,
        strangers: now.strangers(machine, used + mine_after.since(mine)).max(0.0),
        receive_errors: now.receive_errors - machine.receive_errors,
    };
    Ok((outcome, cell))
}

/// One cell: the system started afresh, warmed up, measured.
fn cell(system: usize, rate: f64, duration: Nanos) -> anyhow::Result<Cell> {
    let measure = |system: &System, expect| {
        let load = Load::new(CALLS, rate, duration, 1);
        run(system, Load { duration: WARM_UP, ..load }, expect)?;
        Ok(run(system, load, expect)?.1)
    };
    if system == 0 {
        let floor = Floor::start()?;
        measure(&System { target: floor.address, pids: vec![floor.pid()] }, Expect::Plain)
    } else {
        let cluster = world::cluster(system as u16, &[])?;
        measure(&machine::system(&cluster), Expect::Trailer)
    }
}

fn compare(args: &Args) -> anyhow::Result<Vec<Value>> {
    let number = |name, default: u64| args.get(name).map_or(Ok(default), str::parse);
    let rounds = number("--rounds", if args.quick { 1 } else { 6 }).context("--rounds")?;
    let seconds = number("--seconds", if args.quick { 2 } else { 4 }).context("--seconds")?;
    let rates: Vec<f64> = match args.get("--rate") {
        Some(rate) => vec![rate.parse().context("--rate")?],
        None => RATES.to_vec(),
    };
    let mut cells: Vec<Vec<Vec<Cell>>> =
        rates.iter().map(|_| NAMES.iter().map(|_| Vec::new()).collect()).collect();
    for round in 0..=rounds {
        for (rate, cells) in rates.iter().zip(&mut cells) {
            for (system, cells) in cells.iter_mut().enumerate() {
                let cell = cell(system, *rate, Nanos::from_secs(seconds))?;
                // The first round finds cold caches and clocks; a quick run has no other.
                if round > 0 || rounds == 1 {
                    cells.push(cell);
                }
            }
        }
        if rounds == 1 {
            break;
        }
    }
    let headings = [
        "system",
        "rate",
        "cpu_us",
        "to_floor",
        "lost",
        "p50_us",
        "p99_us",
        "added_p50",
        "added_p99",
        "answered",
        "late_p99_us",
        "strangers",
        "rcvbuf_errors",
    ];
    let mut shown = vec![headings.map(String::from).to_vec()];
    let mut rows = Vec::new();
    for (rate, cells) in rates.iter().zip(&cells) {
        for (name, own) in NAMES.iter().zip(cells) {
            let of = |value: fn(&Cell) -> f64| median(own.iter().map(value).collect());
            // Of each round's own pair: what the machine did meanwhile is then the same for both.
            let beside = |value: fn(&Cell, &Cell) -> f64| {
                median(own.iter().zip(&cells[0]).map(|(own, floor)| value(own, floor)).collect())
            };
            let ratio = beside(|own, floor| own.cpu_us / floor.cpu_us);
            let added = [beside(|own, floor| own.p50 - floor.p50), beside(|own, floor| own.p99 - floor.p99)];
            let lost: u64 = own.iter().map(|c| c.lost).sum();
            let errors: u64 = own.iter().map(|c| c.receive_errors).sum();
            let (cpu_us, answered) = (of(|c| c.cpu_us), of(|c| c.delivered));
            let (p50, p99, late) = (of(|c| c.p50), of(|c| c.p99), of(|c| c.lateness_p99));
            let strangers = of(|c| c.strangers);
            let spread: Vec<f64> = own.iter().map(|c| c.cpu_us).collect();
            shown.push(vec![
                (*name).to_owned(),
                format!("{rate:.0}"),
                format!("{cpu_us:.2}"),
                format!("{ratio:.2}"),
                lost.to_string(),
                format!("{p50:.0}"),
                format!("{p99:.0}"),
                format!("{:.0}", added[0]),
                format!("{:.0}", added[1]),
                format!("{answered:.0}"),
                format!("{late:.0}"),
                format!("{strangers:.2}"),
                errors.to_string(),
            ]);
            rows.push(json!({
                "system": name, "rate": rate, "cpu_us_per_packet": cpu_us, "ratio_to_floor": ratio, "lost": lost,
                "latency_us": { "p50": p50, "p99": p99 },
                "added_latency_us": { "p50": added[0], "p99": added[1] },
                "answered_per_second": answered, "generator_late_us": { "p99": late },
                "strangers_cores": strangers, "rcvbuf_errors": errors, "rounds_cpu_us": spread,
            }));
        }
    }
    table(&shown);
    Ok(rows)
}

fn main() -> ExitCode {
    floor::serve_if_asked();
    world::name_program();
    let args = Args::read("udp", &["--rounds", "--seconds", "--rate", "--calls"]);
    let result = match args.get("--calls") {
        Some(calls) => many::measure(calls, &args),
        None => compare(&args),
    };
    match result {
        Ok(rows) => {
            args.write("udp", &rows);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("udp: {error:#}");
            ExitCode::FAILURE
        }
    }
}
