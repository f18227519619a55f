//! JSON for other programs, in one form: indented, with a final line end; a file is whole or untouched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

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
pub fn check(path: &Path) -> Result<(), JsonError> {
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
pub fn write(path: &Path, value: &impl Serialize) -> Result<(), JsonError> {
    let fail = |doing| move |e| JsonError::new(path, doing, e);
    let mut bytes = Vec::new();
    print(&mut bytes, value).map_err(fail("encoding it"))?;
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

/// Writes `value` to a stream, as [`write`](fn@write) writes it to a file.
///
/// # Errors
/// The stream's own.
pub fn print(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::{check, write};

    #[test]
    fn a_file_is_read_back_as_written_and_leaves_no_temporary_one() {
        let folder = std::env::temp_dir().join(format!("tandem-json-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("out.json");
        let report = json!({ "sent": 3, "kills": [{ "what": "master" }] });
        check(&path).unwrap();
        write(&path, &report).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), report);
        assert!(text.starts_with("{\n  ") && text.ends_with("}\n"), "{text}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_full_disk_is_named() {
        let error = write(Path::new("/dev/full"), &json!({})).unwrap_err().to_string();
        assert!(error.contains("/dev/full") && error.contains("No space left"), "{error}");
        assert!(Path::new("/dev/full").exists());
    }

    #[test]
    fn a_missing_folder_and_a_folder_are_named_before_the_run() {
        let error = check(Path::new("/no/such/folder/out.json")).unwrap_err().to_string();
        assert!(error.contains("/no/such/folder/out.json") && error.contains("create its folder"), "{error}");
        let error = check(&std::env::temp_dir()).unwrap_err().to_string();
        assert!(error.contains("folder"), "{error}");
    }
}
