//! Reports as JSON files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// Writes `report` to `path`, replacing what was there, with a line end behind it.
///
/// # Errors
/// Names the file and what the system said, a full disk included.
pub(crate) fn write(path: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let attempt = || -> anyhow::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        serde_json::to_writer_pretty(&mut out, report)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    };
    attempt().with_context(|| format!("cannot write the JSON report to {}", path.display()))
}
