//! What SIP and its media cost: CPU time of signalling and of relayed RTP beside what others have built for it, and the
//! memory of calls in progress.

mod anchored;
mod common;
mod invite;
mod kept;
mod machine;
mod parties;
mod plan;
mod relay;
mod rivals;
mod sipp;
mod talk;
mod world;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::bail;
use common::Args;
use serde_json::Value;

fn measure(args: &Args) -> anyhow::Result<Vec<Value>> {
    let mode = args.get("--mode").unwrap_or("all");
    let modes = [
        ("invite", invite::measure as fn(&Args) -> anyhow::Result<Vec<Value>>),
        ("relay", relay::measure),
        ("memory", anchored::measure),
    ];
    let mut rows = Vec::new();
    for (name, measure) in modes {
        if mode == name || mode == "all" {
            println!("{name}:");
            rows.extend(measure(args)?);
        }
    }
    if rows.is_empty() {
        bail!("--mode {mode}: nothing was measured; known: invite, relay, memory, all");
    }
    Ok(rows)
}

/// Set in the process that has a network namespace of its own.
const INSIDE: &str = "TANDEM_TEST_APART";

/// Starts this program over in a network namespace of its own, where nobody else has ports, if that is allowed.
fn stand_apart() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    // What the kernel chooses is apart from what rtpengine and Tandem are told to use.
    let inside = "ip link set lo up && echo 50000 65000 > /proc/sys/net/ipv4/ip_local_port_range";
    let tried = Command::new("unshare").args(["-n", "sh", "-c", inside]).output();
    if tried.is_ok_and(|tried| tried.status.success()) {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", &format!("{inside} && exec \"$0\" \"$@\"")]);
        command.arg(std::env::current_exe().unwrap_or_default()).args(std::env::args().skip(1));
        let error = command.env(INSIDE, "1").exec();
        eprintln!("cannot start over: {error}");
    }
    eprintln!("no network namespace (root, unshare, ip): others may have the ports that are needed");
}

fn main() -> ExitCode {
    stand_apart();
    world::name_program();
    let args = Args::read("sip", &["--mode", "--rate", "--rounds", "--seconds", "--calls", "--system"]);
    match measure(&args) {
        Ok(rows) => {
            args.write("sip", &rows);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("sip: {error:#}");
            ExitCode::FAILURE
        }
    }
}
