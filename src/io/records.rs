//! The file of call records: one line of JSON for each call that is over, written before it counts as sent.
//!
//! All that one turn of a shard's loop releases goes in one write to a file opened for appending, so that lines of
//! several shards, and of several nodes, do not mix. When the file cannot be written, calls must go on: the lines count
//! as sent, are kept in memory and tried again, and what exceeds that, or is left when the node ends, goes to the log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::tally::Tally;
use crate::types::{Nanos, Slot};

/// The most bytes of lines that are kept while the file cannot be written.
const KEPT_BYTES: usize = 4 << 20;
/// How soon the file is tried again.
const AGAIN_AFTER: Nanos = Nanos::from_secs(1);

/// A line that has not been released yet.
#[derive(Debug)]
struct Line {
    tag: u64,
    slot: Slot,
    text: Vec<u8>,
}

/// One shard's way to the file.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    file: Option<File>,
    /// Handed over, not released.
    waiting: Vec<Line>,
    /// Released, not written: nothing, unless the file has failed.
    kept: Vec<u8>,
    /// A write has ended within a line.
    torn: bool,
    again_at: Nanos,
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

impl Records {
    /// Opens the file, creating it if it is not there.
    ///
    /// # Errors
    /// From `open(2)`.
    pub fn open(path: &Path) -> io::Result<Records> {
        let file = Some(append_to(path)?);
        let (waiting, kept) = (Vec::new(), Vec::new());
        Ok(Records { path: path.into(), file, waiting, kept, torn: false, again_at: Nanos::ZERO })
    }

    /// Opens the file anew: it may have been moved away.
    pub fn reopen(&mut self) {
        self.file = None;
        self.again_at = Nanos::ZERO;
    }

    /// Takes a line of a slot, without its end. `tag` as everywhere.
    pub fn push(&mut self, tag: u64, slot: Slot, line: &[u8]) {
        self.waiting.push(Line { tag, slot, text: line.to_vec() });
    }

    /// Drops what was not released of slots that are not owned here any more: their new owner writes it.
    pub fn forget(&mut self, is_owned: impl Fn(Slot) -> bool) {
        self.waiting.retain(|line| is_owned(line.slot));
    }

    /// The tag of the oldest line that was not released.
    pub fn first_unsent(&self) -> Option<u64> {
        self.waiting.first().map(|line| line.tag)
    }

    /// When something that could not be written is to be tried again.
    pub fn due(&self) -> Nanos {
        if self.kept.is_empty() { Nanos::MAX } else { self.again_at }
    }

    /// Writes all that was handed over.
    pub fn flush(&mut self, now: Nanos, tally: &mut Tally) {
        if self.waiting.is_empty() && self.due() > now {
            return;
        }
        for line in self.waiting.drain(..) {
            tally.records += 1;
            if self.kept.len() + line.text.len() > KEPT_BYTES {
                tally.dropped.records_logged += 1;
                log_line(&line.text);
            } else {
                self.kept.extend_from_slice(&line.text);
                self.kept.push(b'\n');
            }
        }
        if self.again_at > now || self.kept.is_empty() {
            return;
        }
        if let Err(error) = self.write() {
            self.file = None;
            self.again_at = now + AGAIN_AFTER;
            tally.record_errors += 1;
            let (file, bytes) = (self.path.display(), self.kept.len());
            tracing::error!(%file, %error, bytes, "call records cannot be written (TANDEM_CDR): they are kept and tried again every second");
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(append_to(&self.path)?),
        };
        if std::mem::take(&mut self.torn) {
            self.kept.insert(0, b'\n');
        }
        let written = file.write(&self.kept)?;
        // What is left of a line is repeated whole, after a line end of its own: others may write in between.
        let whole = self.kept[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.torn = whole < written;
        self.kept.drain(..whole);
        if self.kept.is_empty() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

fn log_line(line: &[u8]) {
    tracing::error!(record = %String::from_utf8_lossy(line), "this call record is in no file");
}

impl Drop for Records {
    fn drop(&mut self) {
        self.kept.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).for_each(log_line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let path = std::env::temp_dir().join(format!("tandem-records-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Place(path)
        }

        fn text(&self, name: &str) -> String {
            std::fs::read_to_string(self.0.join(name)).unwrap_or_default()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn lines_are_appended_and_the_file_can_be_moved_away() {
        let place = Place::new("moved");
        let file = place.0.join("cdr");
        std::fs::write(&file, "0\n").unwrap();
        let (mut one, mut other) = (Records::open(&file).unwrap(), Records::open(&file).unwrap());
        let mut tally = Tally::default();
        one.push(4, Slot(1), b"1");
        one.push(7, Slot(2), b"2");
        assert_eq!(one.first_unsent(), Some(4));
        one.forget(|slot| slot == Slot(2));
        assert_eq!((one.first_unsent(), place.text("cdr")), (Some(7), "0\n".into()));
        one.flush(Nanos(1), &mut tally);
        other.push(1, Slot(3), b"3");
        other.flush(Nanos(1), &mut tally);
        assert_eq!((one.first_unsent(), one.due()), (None, Nanos::MAX));
        assert_eq!((place.text("cdr"), tally.records, tally.record_errors), ("0\n2\n3\n".into(), 2, 0));
        std::fs::rename(&file, place.0.join("old")).unwrap();
        other.reopen();
        other.push(2, Slot(3), b"4");
        other.flush(Nanos(2), &mut tally);
        assert_eq!((place.text("cdr"), place.text("old")), ("4\n".into(), "0\n2\n3\n".into()));
    }

    #[test]
    fn a_file_that_cannot_be_written_delays_nothing_and_loses_nothing() {
        let place = Place::new("full");
        let (file, mut tally) = (place.0.join("cdr"), Tally::default());
        let mut records = Records::open(&file).unwrap();
        std::fs::remove_dir_all(&place.0).unwrap();
        records.reopen();
        records.push(1, Slot(1), b"one");
        records.flush(Nanos(5), &mut tally);
        assert_eq!((records.first_unsent(), records.due()), (None, Nanos(5) + AGAIN_AFTER));
        records.push(2, Slot(1), &vec![b'x'; KEPT_BYTES]);
        records.flush(Nanos(6), &mut tally);
        assert_eq!((tally.records, tally.record_errors, tally.dropped.records_logged), (2, 1, 1));
        std::fs::create_dir_all(&place.0).unwrap();
        records.push(3, Slot(1), b"three");
        records.flush(Nanos(7), &mut tally);
        assert_eq!(place.text("cdr"), "", "not before its time");
        records.flush(records.due(), &mut tally);
        assert_eq!((place.text("cdr"), records.due()), ("one\nthree\n".into(), Nanos::MAX));
        assert!(Records::open(Path::new("/no/such/folder/cdr")).is_err());
    }
}
