//! `sip --mode invite`: what signalling costs, beside Kamailio; SIPp on both sides.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Value, json};
use tandem::types::Nanos;

use crate::common::{Args, table};
use crate::kept::{installed, miss};
use crate::machine::{self, Machine, cpu, median};
use crate::plan::Plan;
use crate::rivals::Kamailio;
use crate::sipp::{Callee, Caller};
use crate::world;

const RATES: [f64; 2] = [400.0, 800.0];
const NAMES: [&str; 3] = ["kamailio", "tandem-r1", "tandem-r3"];
/// How long a system is watched that does nothing.
const REST: Duration = Duration::from_secs(2);
/// A call that outlives its measurement.
const FOREVER_MS: u64 = 600_000;

/// What is counted.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Unit {
    /// INVITE, 100, 180, 200, ACK; nobody hangs up.
    Transaction,
    /// The same and BYE, 200, at once.
    Call,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Transaction => "invite",
            Unit::Call => "call",
        }
    }

    /// How long it is done before it is measured: the state of a call is kept for 32 s after its end, and what its end
    /// costs belongs to it.
    fn warm_up(self, quick: bool) -> Duration {
        match self {
            Unit::Call if !quick => Duration::from_secs(36),
            Unit::Call | Unit::Transaction => Duration::from_secs(2),
        }
    }
}

/// What one cell of one round showed.
struct Cell {
    cpu_us: f64,
    /// CPU at rest, in ms a second.
    rest: f64,
    /// Calls begun a second.
    begun: f64,
    failed: u64,
    /// What the caller said again.
    again: u64,
    strangers: f64,
}

fn watch(
    proxy: SocketAddr,
    pids: &[u32],
    callee: &Callee,
    sipp: &str,
    (unit, rate, quick): (Unit, f64, bool),
    duration: Nanos,
) -> anyhow::Result<Cell> {
    let before = cpu(pids);
    std::thread::sleep(REST);
    let rest = cpu(pids).since(before).as_millis_f64() / REST.as_secs_f64();
    let hold = if unit == Unit::Call { 0 } else { FOREVER_MS };
    let caller = Caller::start(sipp, proxy, rate, hold)?;
    std::thread::sleep(unit.warm_up(quick));
    let agents = [caller.pid(), callee.pid(), std::process::id()];
    let first = caller.counts()?;
    let (start, machine, before, theirs) = (Instant::now(), Machine::read(), cpu(pids), cpu(&agents));
    std::thread::sleep(Duration::from_nanos(duration.0));
    let last = caller.counts()?;
    let (now, after, theirs_after) = (Machine::read(), cpu(pids), cpu(&agents));
    let used = after.since(before);
    let begun = last.begun - first.begun;
    if begun == 0 {
        bail!("SIPp makes no calls: {last:?}");
    }
    Ok(Cell {
        cpu_us: used.0 as f64 / 1e3 / begun as f64,
        rest,
        begun: begun as f64 / start.elapsed().as_secs_f64(),
        failed: last.failed,
        again: last.again,
        strangers: now.strangers(machine, used + theirs_after.since(theirs)).max(0.0),
    })
}

/// One cell: the system started afresh, measured at rest, warmed up, measured.
fn cell(
    system: usize,
    (sipp, kamailio): (&str, &str),
    what: (Unit, f64, bool),
    duration: Nanos,
) -> anyhow::Result<Cell> {
    let callee = Callee::start(sipp)?;
    if system == 0 {
        let kamailio = Kamailio::start(kamailio, callee.at)?;
        return watch(kamailio.at, &kamailio.pids(), &callee, sipp, what, duration);
    }
    let route = format!("default={}", callee.at);
    let settings = [("APP", "sip"), ("ROUTE", &*route), ("MEDIA_PORTS", "off")];
    let cluster = world::cluster(if system == 1 { 1 } else { 3 }, &settings)?;
    let nodes = machine::system(&cluster);
    watch(nodes.target, &nodes.pids, &callee, sipp, what, duration)
}

pub(crate) fn measure(args: &Args) -> anyhow::Result<Vec<Value>> {
    let Some(sipp) = installed("sipp") else {
        miss("sipp", "signalling is not measured");
        return Ok(Vec::new());
    };
    let kamailio = installed("kamailio");
    if kamailio.is_none() {
        miss("kamailio", "signalling is measured without anything beside it");
    }
    let programs = (sipp.as_str(), kamailio.as_deref().unwrap_or_default());
    let plan = Plan::read(args, &RATES, (1, 1), (4, 8))?;
    let systems = plan.systems(&NAMES, kamailio.is_some());
    let headings = [
        "system",
        "unit",
        "rate",
        "cpu_us",
        "to_kamailio",
        "rest_ms_s",
        "begun_s",
        "failed",
        "again",
        "strangers",
    ];
    let mut shown = vec![headings.map(String::from).to_vec()];
    let mut rows = Vec::new();
    for unit in [Unit::Transaction, Unit::Call] {
        for rate in &plan.rates {
            let mut cells: Vec<Vec<Cell>> = NAMES.iter().map(|_| Vec::new()).collect();
            for round in 0..plan.rounds {
                for system in &systems {
                    let cell = cell(*system, programs, (unit, *rate, args.quick), plan.duration)?;
                    let (name, unit) = (NAMES[*system], unit.name());
                    eprintln!("invite: round {round}: {name}, {unit} at {rate}: {:.1} us", cell.cpu_us);
                    cells[*system].push(cell);
                }
            }
            for system in &systems {
                let own = &cells[*system];
                let of = |value: fn(&Cell) -> f64| median(own.iter().map(value).collect());
                let beside = own.iter().zip(&cells[0]).map(|(own, beside)| own.cpu_us / beside.cpu_us);
                let (ratio, cpu_us) = (median(beside.collect()), of(|c| c.cpu_us));
                let (rest, begun, strangers) = (of(|c| c.rest), of(|c| c.begun), of(|c| c.strangers));
                let (failed, again) =
                    (own.iter().map(|c| c.failed).sum::<u64>(), own.iter().map(|c| c.again).sum::<u64>());
                shown.push(vec![
                    NAMES[*system].to_owned(),
                    unit.name().to_owned(),
                    format!("{rate:.0}"),
                    format!("{cpu_us:.1}"),
                    format!("{ratio:.2}"),
                    format!("{rest:.1}"),
                    format!("{begun:.0}"),
                    failed.to_string(),
                    again.to_string(),
                    format!("{strangers:.2}"),
                ]);
                let rounds: Vec<f64> = own.iter().map(|c| c.cpu_us).collect();
                rows.push(json!({
                    "mode": "invite", "system": NAMES[*system], "unit": unit.name(), "rate": rate, "cpu_us": cpu_us,
                    "ratio_to_kamailio": ratio, "rest_ms_per_second": rest, "begun_per_second": begun,
                    "failed": failed, "said_again": again, "strangers_cores": strangers, "rounds_cpu_us": rounds,
                }));
            }
        }
    }
    table(&shown);
    Ok(rows)
}
