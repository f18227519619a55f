//! The report of a run, with its stable JSON keys, and how JSON files are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a run found. These keys are stable: none is renamed or removed. A figure that the command cannot
/// know is `null` (or an empty list): `tandem replay` sees only the client's side, `tandem demo` knows all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Datagrams sent to the target.
    pub sent: u64,
    /// Datagrams that were answered; `sent - replied` is `lost`.
    pub replied: u64,
    /// Datagrams without an answer when the run ended.
    pub lost: u64,
    /// Answers beyond the first one to a datagram.
    pub duplicated: u64,
    /// Answers out of order, or executed out of order, within their call.
    pub reordered: u64,
    /// Answers with wrong bytes, a bad trailer, or a per-call count that went back.
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
    /// Longest silence of a flow of a call which that node was answering; `null` if it answered none.
    pub gap_ms: Option<f64>,
    /// Datagrams lost around it.
    pub lost: u64,
    /// Answers duplicated around it.
    pub duplicated: u64,
}

impl Report {
    /// Whether every datagram was answered exactly once, in order, with the right bytes.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.reordered == 0 && self.corrupted == 0
    }

    /// Writes the report as JSON; see [`write_json`].
    pub fn write_json(&self, path: &Path) -> Result<(), JsonError> {
        write_json(path, self)
    }
}

/// A JSON file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write --json {path}: {doing}: {source}; {advice}")]
pub struct JsonError {
    path: String,
    doing: &'static str,
    advice: &'static str,
    source: io::Error,
}

impl JsonError {
    fn new(path: &Path, doing: &'static str, source: io::Error) -> JsonError {
        let advice = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free some space or name a file on another disk"
            }
            io::ErrorKind::NotFound => "create its folder first",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "name a file in a folder you may write to"
            }
            _ => "name another file",
        };
        JsonError { path: path.display().to_string(), doing, advice, source }
    }
}

/// Finds out before a long run whether `path` can be written at its end.
pub fn check_json(path: &Path) -> Result<(), JsonError> {
    if is_special(path) {
        OpenOptions::new().write(true).open(path).map_err(|e| JsonError::new(path, "opening it", e))?;
        return Ok(());
    }
    let temporary = temporary(path)?;
    File::create(&temporary).map_err(|e| JsonError::new(path, "creating it", e))?;
    fs::remove_file(&temporary).map_err(|e| JsonError::new(path, "removing its trial file", e))
}

/// Writes `value` as indented JSON with a final newline: to a temporary file beside `path`, forced to disk
/// and renamed, so that `path` is either whole or untouched. A device or pipe is written in place.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), JsonError> {
    let fail = |doing| move |e| JsonError::new(path, doing, e);
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| fail("encoding it")(e.into()))?;
    bytes.push(b'\n');
    if is_special(path) {
        let mut file = OpenOptions::new().write(true).open(path).map_err(fail("opening it"))?;
        return file.write_all(&bytes).and_then(|()| file.flush()).map_err(fail("writing it"));
    }
    let temporary = temporary(path)?;
    let written = write_whole(&temporary, &bytes).map_err(fail("writing it")).and_then(|()| {
        fs::rename(&temporary, path).map_err(fail("renaming the finished file into its place"))
    });
    if written.is_err() {
        // The first error is the one to report; a leftover that cannot be removed changes nothing.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// `close` reports nothing through std, so `sync_all` brings write-back errors (full disk, NFS) to light.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

fn temporary(path: &Path) -> Result<PathBuf, JsonError> {
    let invalid = |text| JsonError::new(path, "its name", io::Error::new(io::ErrorKind::InvalidInput, text));
    if path.is_dir() {
        return Err(invalid("it is a folder"));
    }
    let name = path.file_name().ok_or_else(|| invalid("it names no file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Report, check_json};

    const KEYS: [&str; 13] = [
        "sent",
        "replied",
        "lost",
        "duplicated",
        "reordered",
        "corrupted",
        "latency_us",
        "longest_gap_ms",
        "kills",
        "digests_agree",
        "released",
        "lossy_failovers",
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

    #[test]
    fn a_report_is_read_back_as_written_and_leaves_no_temporary_file() {
        let folder = std::env::temp_dir().join(format!("tandem-report-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("out.json");
        let report = Report { sent: 3, replied: 2, lost: 1, ..Report::default() };
        check_json(&path).unwrap();
        report.write_json(&path).unwrap();
        let back: Report = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(back, report);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_full_disk_is_named() {
        let error = Report::default().write_json(Path::new("/dev/full")).unwrap_err().to_string();
        assert!(error.contains("/dev/full") && error.contains("No space left"), "{error}");
        assert!(Path::new("/dev/full").exists());
    }

    #[test]
    fn a_missing_folder_and_a_folder_are_named_before_the_run() {
        let error = check_json(Path::new("/no/such/folder/out.json")).unwrap_err().to_string();
        assert!(error.contains("/no/such/folder/out.json") && error.contains("create its folder"), "{error}");
        let error = check_json(&std::env::temp_dir()).unwrap_err().to_string();
        assert!(error.contains("folder"), "{error}");
    }
}
