//! `cargo bench --bench core [-- --quick] [--json FILE]`: the core without sockets.

mod calls;

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let mut quick = false;
    let mut json: Option<PathBuf> = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => quick = true,
            "--json" => {
                json = Some(args.next().ok_or_else(|| anyhow::anyhow!("--json needs a file name"))?.into())
            }
            "--bench" => {} // what cargo adds
            other => anyhow::bail!("unknown argument {other}: accepted are --quick and --json FILE"),
        }
    }
    let rows = calls::measure(quick);
    if let Some(file) = json {
        std::fs::write(&file, serde_json::to_vec_pretty(&rows)?)
            .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", file.display()))?;
    }
    Ok(())
}
