//! What several tests share.

use std::path::{Path, PathBuf};

/// The folder of captures and hostile messages beside the repository, or `None` with a loud notice: the
/// tests that need it cannot say anything without it.
pub(crate) fn shared_data() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found =
        ["../shared/data", "../../shared/data"].into_iter().map(|p| root.join(p)).find(|p| p.is_dir());
    if found.is_none() {
        eprintln!("\n*** SKIPPED: ../shared/data is not there, so nothing was checked against it ***\n");
    }
    found
}

/// The rows of a tab-separated file with a header line, as maps from column name to value.
pub(crate) fn rows(path: &Path) -> Vec<std::collections::HashMap<String, String>> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().expect("a header line").split('\t').collect();
    let row = |line: &str| {
        names.iter().zip(line.split('\t')).map(|(n, v)| ((*n).to_owned(), v.to_owned())).collect()
    };
    lines.map(row).collect()
}
