//! What the benches share: their two arguments, a table, and rows of JSON.

use serde_json::Value;
use std::path::PathBuf;
use std::process::exit;

/// `cargo bench --bench NAME -- [--quick] [--json FILE]`, and what else a bench names.
pub(crate) struct Args {
    pub(crate) quick: bool,
    pub(crate) json: Option<PathBuf>,
    options: Vec<(String, String)>,
}

impl Args {
    /// Reads the command line; `known` are the bench's own options, each with a value.
    pub(crate) fn read(bench: &str, known: &[&str]) -> Args {
        let mut args = Args { quick: false, json: None, options: Vec::new() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--bench" | "--test" => {}
                "--quick" => args.quick = true,
                "--json" => args.json = Some(value(bench, &word, words.next()).into()),
                name if known.contains(&name) => {
                    let value = value(bench, &word, words.next());
                    args.options.push((word, value));
                }
                _ => {
                    let own: String = known.iter().map(|k| format!(" [{k} VALUE]")).collect();
                    eprintln!("{bench}: unknown argument {word}; known: [--quick] [--json FILE]{own}");
                    exit(2);
                }
            }
        }
        args
    }

    /// The value of one of the bench's own options.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Writes the rows where `--json` says.
    pub(crate) fn write(&self, bench: &str, rows: &[Value]) {
        let Some(path) = &self.json else { return };
        let document = serde_json::json!({ "bench": bench, "quick": self.quick, "rows": rows });
        if let Err(error) = std::fs::write(path, format!("{document:#}\n")) {
            eprintln!("{bench}: cannot write {}: {error}", path.display());
            exit(1);
        }
    }
}

fn value(bench: &str, name: &str, value: Option<String>) -> String {
    value.unwrap_or_else(|| {
        eprintln!("{bench}: {name} needs a value");
        exit(2)
    })
}

/// Prints a table: the first row are the headings; numbers stand right.
pub(crate) fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, w)| {
            match cell.starts_with(|c: char| c.is_ascii_alphabetic()) {
                true => format!("{cell:<w$}"),
                false => format!("{cell:>w$}"),
            }
        });
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
