//! The call table alone: what a live echo call costs in memory, and a packet for it in time, from 1,000 calls
//! to 10 million in 4,096 slots. Flat is what it should be.

use std::time::Instant;

use serde::Serialize;
use tandem::app::Inbound;
use tandem::app::classify::{KeyExtractor, KeyRule};
use tandem::app::echo::Echo;
use tandem::app::table::{CallTable, OutputSink, Place, TableLimits};
use tandem::types::{CallKey, Endpoint, LocalId, Nanos, Position, Slot};

const SLOTS: u16 = 4096;
const BATCH: u64 = 32;
const PAYLOAD: [u8; 200] = [7; 200];

/// One row of the table and of the JSON.
#[derive(Serialize)]
pub(crate) struct Row {
    /// Always `calls`.
    system: &'static str,
    calls: u64,
    /// Opening a call with its first packet, mean and worst, in ns.
    open_ns: f64,
    worst_open_us: f64,
    /// A packet for a random call, in ns.
    packet_ns: f64,
    /// The same in batches of [`BATCH`] whose calls are warmed first, the warming included.
    warmed_ns: f64,
    /// Bytes a call: reserved by the tables, and by the growth of the process.
    reserved_bytes: f64,
    resident_bytes: f64,
}

struct Count(u64);

impl OutputSink for Count {
    fn output(&mut self, _: bool, _: LocalId, _: Endpoint, bytes: &[u8]) {
        self.0 += bytes.len() as u64;
    }
}

/// Measures and prints every size.
pub(crate) fn measure(quick: bool) -> Vec<Row> {
    let sizes: &[u64] = if quick {
        &[1_000, 10_000, 100_000, 1_000_000]
    } else {
        &[1_000, 10_000, 100_000, 1_000_000, 5_000_000, 10_000_000]
    };
    println!(
        "{:>10} {:>9} {:>13} {:>10} {:>10} {:>14} {:>14}",
        "calls", "open ns", "worst open us", "packet ns", "warmed ns", "reserved B", "resident B"
    );
    let packets = if quick { 6_000 * BATCH } else { 60_000 * BATCH };
    sizes.iter().map(|calls| row(*calls, packets)).collect()
}

fn row(calls: u64, packets: u64) -> Row {
    let app = Echo { keys: KeyExtractor { rule: KeyRule::Source, seed: 1 } };
    let limits = TableLimits { max_calls: u32::MAX, idle: Nanos::from_secs(3600) };
    let before = resident();
    let mut tables: Vec<CallTable<Echo>> =
        (0..SLOTS).map(|slot| CallTable::new(Slot(slot), limits)).collect();
    let mut out = Count(0);
    let mut run = |tables: &mut [CallTable<Echo>], n: u64, position: u64| {
        let (packet, key) = packet(n);
        let place = Place { position: Position(position), time: Nanos::from_secs(1_700_000_000) };
        tables[usize::from(key.slot(SLOTS).0)].on_packet(&app, place, key, &packet, &mut out);
    };
    let start = Instant::now();
    let mut worst = 0;
    let mut last = 0;
    for n in 0..calls {
        run(&mut tables, n, n);
        let elapsed = start.elapsed().as_nanos();
        worst = worst.max(elapsed - last);
        last = elapsed;
    }
    let open_ns = last as f64 / calls as f64;
    let mut random = 1;
    let mut batch = || -> [u64; BATCH as usize] {
        std::array::from_fn(|_| {
            random = mix(random);
            random % calls
        })
    };
    let start = Instant::now();
    for round in 0..packets / BATCH {
        batch().into_iter().for_each(|n| run(&mut tables, n, calls + round));
    }
    let packet_ns = start.elapsed().as_nanos() as f64 / packets as f64;
    let start = Instant::now();
    for round in 0..packets / BATCH {
        let batch = batch();
        for n in batch {
            let key = packet(n).1;
            assert!(tables[usize::from(key.slot(SLOTS).0)].warm(key), "call {n} is live");
        }
        batch.into_iter().for_each(|n| run(&mut tables, n, calls + packets + round));
    }
    let warmed_ns = start.elapsed().as_nanos() as f64 / packets as f64;
    assert_eq!(out.0, (calls + 2 * packets) * 236, "every packet was answered");
    let live: usize = tables.iter().map(CallTable::len).sum();
    assert_eq!(live as u64, calls);
    let reserved: usize = tables.iter().map(CallTable::reserved).sum();
    let row = Row {
        system: "calls",
        calls,
        open_ns,
        worst_open_us: worst as f64 / 1e3,
        packet_ns,
        warmed_ns,
        reserved_bytes: reserved as f64 / calls as f64,
        resident_bytes: (resident() - before) as f64 / calls as f64,
    };
    println!(
        "{:>10} {:>9.0} {:>13.0} {:>10.0} {:>10.0} {:>14.1} {:>14.1}",
        row.calls,
        row.open_ns,
        row.worst_open_us,
        row.packet_ns,
        row.warmed_ns,
        row.reserved_bytes,
        row.resident_bytes
    );
    row
}

/// The packet and key of the `n`th call.
fn packet(n: u64) -> (Inbound<'static>, CallKey) {
    let source = Endpoint { ip: [1; 16], port: n as u16 };
    let key = u128::from(mix(n)) << 64 | u128::from(mix(!n));
    (Inbound { source, local: LocalId::endpoint(0), payload: &PAYLOAD }, CallKey(key))
}

/// SplitMix64's output function.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Bytes of memory this process has now (proc_pid_statm(5), second field, in pages of 4 KiB).
fn resident() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok());
    pages.unwrap_or(0) * 4096
}
