//! Load on a cluster: `tandem replay` of the tree's captures, and what its report must say.

use super::{Ended, Folder, Process, samples, tandem};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

/// The report's keys, which are stable.
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
const PERCENTILES: [&str; 5] = ["p50", "p90", "p99", "p999", "max"];

/// A `tandem replay` that runs.
pub(crate) struct Replay {
    process: Process,
    folder: Folder,
    seconds: f64,
}

/// What it found.
#[derive(Debug)]
pub(crate) struct Report {
    seconds: f64,
    pub(crate) ended: Ended,
    pub(crate) json: Value,
}

impl Replay {
    /// Starts to replay `calls` calls at a time for `seconds`.
    pub(crate) fn start(target: SocketAddr, calls: u32, seconds: f64) -> Replay {
        Replay::expecting(0, target, calls, seconds)
    }

    /// The same, with so many failovers of the service address.
    pub(crate) fn expecting(failovers: u32, target: SocketAddr, calls: u32, seconds: f64) -> Replay {
        let folder = Folder::new();
        let mut command = tandem();
        command.arg("replay").args(samples()).args(["--target", &target.to_string()]);
        command.args(["--calls", &calls.to_string(), "--duration", &seconds.to_string(), "--drain", "5"]);
        command.args(["--expect-failovers", &failovers.to_string()]);
        command.arg("--json").arg(folder.join("report.json"));
        Replay { process: Process::start(&mut command), folder, seconds }
    }

    /// Waits for the end and reads the report, whose keys must all be there.
    pub(crate) fn finish(self) -> Report {
        let ended = self.process.finish(Duration::from_secs_f64(self.seconds + 20.0));
        let text = std::fs::read(self.folder.join("report.json"));
        let text = text.unwrap_or_else(|error| panic!("no report: {error}; {ended:?}"));
        let json: Value = serde_json::from_slice(&text).unwrap();
        assert!(KEYS.iter().all(|key| json.get(key).is_some()), "a key is missing: {json}");
        assert_eq!(json.as_object().unwrap().len(), KEYS.len(), "{json}");
        assert!(PERCENTILES.iter().all(|key| json["latency_us"].get(key).is_some()), "{json}");
        Report { seconds: self.seconds, ended, json }
    }
}

impl Report {
    pub(crate) fn count(&self, key: &str) -> u64 {
        self.json[key].as_u64().unwrap_or_else(|| panic!("{key} in {}", self.json))
    }

    /// Every datagram answered exactly once, in order, with the right bytes, and the exit status says so.
    pub(crate) fn assert_clean(&self, what: &str) {
        let wrong = ["lost", "duplicated", "reordered", "corrupted"].map(|key| self.count(key));
        let said = format!("{what}: {}\n{}{}", self.json, self.ended.out, self.ended.err);
        assert_eq!(wrong, [0; 4], "{said}");
        assert!(self.count("sent") > 500 && self.count("replied") == self.count("sent"), "{said}");
        assert!(self.ended.status.success(), "{said}");
        assert!(self.json["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{said}");
    }

    /// Every accepted datagram answered exactly once with the right bytes: what is missing was lost on the wire while
    /// nobody held the service address, and what came twice was an owner's last word. In order, too, unless some may
    /// have waited at a node that was away and then passed them on (`overtaken`).
    pub(crate) fn assert_survived(&self, what: &str, overtaken: bool) {
        let wrong = ["lost", "duplicated", "corrupted"].map(|key| self.count(key));
        let said = format!("{what}: {}\n{}{}", self.json, self.ended.out, self.ended.err);
        assert_eq!(wrong, [0; 3], "{said}");
        assert!(overtaken || self.count("reordered") == 0 && self.ended.status.success(), "{said}");
        let (sent, unaccepted) = (self.count("sent"), self.count("unaccepted"));
        assert!(sent > 500 && self.count("replied") + unaccepted == sent, "{said}");
        // A second's worth at most: an address that is away for longer is nothing that was promised.
        let a_second = (sent as f64 / self.seconds) as u64;
        assert!(unaccepted <= a_second && self.count("doubled_allowed") <= a_second / 10, "{said}");
    }

    /// One line to compare runs by.
    pub(crate) fn line(&self) -> String {
        let latency = &self.json["latency_us"];
        format!(
            "sent {} unaccepted {} doubled {} gap {} ms, latency p50 {} p99 {} max {} us",
            self.json["sent"],
            self.json["unaccepted"],
            self.json["doubled_allowed"],
            self.json["longest_gap_ms"],
            latency["p50"],
            latency["p99"],
            latency["max"]
        )
    }
}
