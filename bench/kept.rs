//! Programs of others that a bench runs: they end with it, however it ends.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;

/// Starts the program, says its id, and ends it when the input closes; ends with its status.
const KEEPER: &str = "exec 3<&0; \"$0\" \"$@\" </dev/null >/dev/null & child=$!; echo $child; \
    { read -r line <&3; kill $child; } 2>/dev/null >/dev/null & waiting=$!; wait $child; status=$?; \
    kill $waiting 2>/dev/null; exit $status";

/// A running program; it ends with this.
pub(crate) struct Kept {
    keeper: Child,
    pub(crate) pid: u32,
}

impl Kept {
    /// Starts it; what it says is lost, except where `errors` is a file.
    pub(crate) fn start(program: &str, args: &[String], errors: Option<&Path>) -> anyhow::Result<Kept> {
        let errors = match errors {
            Some(path) => Stdio::from(std::fs::File::create(path)?),
            None => Stdio::null(),
        };
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, program]).args(args).env("TERM", "dumb");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut keeper = command.spawn().with_context(|| format!("cannot start {program}"))?;
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().context("no output")?).read_line(&mut line)?;
        let pid = line.trim().parse().with_context(|| format!("no process of {program}"))?;
        Ok(Kept { keeper, pid })
    }

    /// It and the processes that it has started.
    pub(crate) fn family(&self) -> Vec<u32> {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid));
        let children = children.unwrap_or_default();
        std::iter::once(self.pid)
            .chain(children.split_whitespace().filter_map(|pid| pid.parse().ok()))
            .collect()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // Nothing is left to do for one that has ended by itself.
        let _ = self.keeper.wait();
    }
}

/// Where a program is, if it is installed.
pub(crate) fn installed(program: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    let found = path.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file());
    found.map(|path| path.display().to_string())
}

/// Says that a program is missing, where nobody overlooks it.
pub(crate) fn miss(program: &str, without: &str) {
    eprintln!("\nMISSING: {program} is not installed: {without}\n");
}
