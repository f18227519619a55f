//! What a machine does while a bench runs: CPU time per process, strangers, receive errors, memory.

use std::fs;
use std::net::SocketAddr;

use serde_json::Value;
use tandem::cli::local::LocalCluster;
use tandem::io::sys_time;
use tandem::types::Nanos;

/// CPU time of these processes so far: user, system, and what the kernel's network code does in their context.
pub(crate) fn cpu(pids: &[u32]) -> Nanos {
    let each = pids.iter().map(|pid| sys_time::process_cpu(*pid).unwrap_or_default());
    each.fold(Nanos::ZERO, |sum, cpu| sum + cpu)
}

/// What the whole machine has done so far.
#[derive(Copy, Clone, Default)]
pub(crate) struct Machine {
    busy: Nanos,
    at: Nanos,
    pub(crate) receive_errors: u64,
}

impl Machine {
    pub(crate) fn read() -> Machine {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        // proc_stat(5): user nice system idle iowait irq softirq steal, in ticks of 10 ms.
        let ticks: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .take(8)
            .map(|n| n.parse().unwrap_or(0))
            .collect();
        let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum();
        Machine {
            busy: Nanos::from_millis(busy * 10),
            at: sys_time::mono(),
            receive_errors: receive_errors(),
        }
    }

    /// Cores that everybody but `ours` (their CPU time) kept busy since `before`.
    pub(crate) fn strangers(self, before: Machine, ours: Nanos) -> f64 {
        let elapsed = self.at.since(before.at).0.max(1) as f64;
        self.busy.since(before.busy + ours).0 as f64 / elapsed
    }
}

/// `RcvbufErrors` of /proc/net/snmp: datagrams dropped by full receive buffers, machine-wide.
fn receive_errors() -> u64 {
    let text = fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(name, _)| *name == "RcvbufErrors").and_then(|(_, n)| n.parse().ok()).unwrap_or(0)
}

/// Memory in use by a process, in bytes (`VmRSS`).
pub(crate) fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The sum of a counter of the engine over all shards of a node's status.
pub(crate) fn engine(status: &Value, name: &str) -> u64 {
    let shards = status["shards"].as_array().map_or(&[][..], Vec::as_slice);
    shards.iter().filter_map(|shard| shard["engine"][name].as_u64()).sum()
}

/// Something that answers: where, and the processes that do it.
pub(crate) struct System {
    pub(crate) target: SocketAddr,
    pub(crate) pids: Vec<u32>,
}

/// A cluster as something that answers.
pub(crate) fn system(cluster: &LocalCluster) -> System {
    System { target: cluster.service()[0], pids: cluster.nodes.iter().map(|node| node.engine_pid).collect() }
}

/// The middle of some figures.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
