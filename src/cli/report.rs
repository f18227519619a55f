//! The report of a run, with its stable JSON keys.

use serde::{Deserialize, Serialize};

/// What a run found. These keys are stable: none is renamed or removed. A figure that the command cannot
/// know is `null` (or an empty list): `tandem replay` sees only the client's side, `tandem demo` knows all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Datagrams sent to the target.
    pub sent: u64,
    /// Datagrams that were answered; `sent - replied` is `lost + unaccepted`.
    pub replied: u64,
    /// Datagrams without an answer when the run ended, but for the unaccepted.
    pub lost: u64,
    /// Datagrams lost on the wire while no owner was there; the counts of their calls show that none was executed.
    pub unaccepted: u64,
    /// Answers beyond the first one to a datagram, but for those allowed.
    pub duplicated: u64,
    /// Answers of an owner's last moment that came again from its successor, with the same bytes.
    pub doubled_allowed: u64,
    /// Answers out of order, or executed out of order, within their call.
    pub reordered: u64,
    /// Answers with wrong bytes, a bad trailer, or a per-call count that went back or jumped.
    pub corrupted: u64,
    /// Time from the intended send time to the answer.
    pub latency_us: Latency,
    /// Longest silence of any flow that was owed an answer.
    pub longest_gap_ms: Option<f64>,
    /// What was killed, and what a client saw of it.
    pub kills: Vec<Kill>,
    /// Whether all members of all slots ended with the same state.
    pub digests_agree: Option<bool>,
    /// Outputs that the cluster released.
    pub released: Option<u64>,
    /// Failovers that had to go on without a complete commit set.
    pub lossy_failovers: Option<u64>,
    /// The longest time from a kill until every slot had all its members again, in seconds; `null` if one is still
    /// short.
    pub redundancy_restored_s: Option<f64>,
    /// CPU time of all node processes, for one datagram sent.
    pub cpu_us_per_packet: Option<f64>,
}

/// Percentiles in microseconds; `null` when nothing was answered.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the answers were not later.
    pub p50: Option<f64>,
    /// 90 % of the answers were not later.
    pub p90: Option<f64>,
    /// 99 % of the answers were not later.
    pub p99: Option<f64>,
    /// 99.9 % of the answers were not later.
    pub p999: Option<f64>,
    /// The latest answer.
    pub max: Option<f64>,
}

/// One process that was killed on purpose.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kill {
    /// Its role: `master`, `member`, `owner` or `host`.
    pub what: String,
    /// The node's name or number.
    pub node: String,
    /// When, in ms since the first datagram.
    pub at_ms: f64,
    /// Longest silence of a flow of a call which that node was answering (of any, if it held the service address);
    /// `null` if there was none.
    pub gap_ms: Option<f64>,
    /// How long nothing at all was answered; `null` if it did not hold the service address.
    pub outage_ms: Option<f64>,
    /// Datagrams lost around it, but for the unaccepted.
    pub lost: u64,
    /// Datagrams lost on the wire while no owner was there.
    pub unaccepted: u64,
    /// Answers duplicated around it, but for those allowed.
    pub duplicated: u64,
    /// Answers of its last moment that came again.
    pub doubled_allowed: u64,
}

impl Report {
    /// Whether every accepted datagram was answered exactly once, in order, with the right bytes.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.reordered == 0 && self.corrupted == 0
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    const KEYS: [&str; 16] = [
        "sent",
        "replied",
        "lost",
        "unaccepted",
        "duplicated",
        "doubled_allowed",
        "reordered",
        "corrupted",
        "latency_us",
        "longest_gap_ms",
        "kills",
        "digests_agree",
        "released",
        "lossy_failovers",
        "redundancy_restored_s",
        "cpu_us_per_packet",
    ];

    #[test]
    fn the_json_keys_are_stable() {
        let json = serde_json::to_value(Report::default()).unwrap();
        let mut found: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut wanted = KEYS.to_vec();
        found.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
    }
}
