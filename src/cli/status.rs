//! `tandem status`: the state of a cluster, from any of its nodes.

mod picture;
mod text;

pub use picture::{AddressView, FailoverView, NodeView, Picture, SipView, SlotsView, State};

use super::config::SettingArgs;
use super::json;
use crate::config::Settings;
use crate::io::operator::{self, AskError, STATUS};
use crate::io::sys_time;
use crate::types::Nanos;
use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a node may take to answer: a few ms is usual.
const PATIENCE: Nanos = Nanos::from_millis(500);
/// Where in an answer its node's control address is noted.
const ASKED_AT: &str = "asked_at";
/// How long to look at what is under way to tell its rate.
const LOOK_FOR: Duration = Duration::from_millis(500);

/// The arguments of `tandem status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print JSON: {"cluster", "map_version", "quorum", "leader", "nodes", "addresses", "slots", "sip", "failovers",
    /// "lossy_failovers", "silent", "answers"}
    #[arg(long)]
    json: bool,
    /// Ask the nodes with these control addresses instead of those of TANDEM_NODES
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',')]
    at: Vec<SocketAddr>,
    #[command(flatten)]
    settings: SettingArgs,
}

/// What came of asking some nodes.
pub struct Asked {
    /// The answers.
    pub answers: Vec<Value>,
    /// The nodes that gave none, and why.
    pub silent: Vec<AskError>,
}

/// Asks every node of `addresses` for its status, one after the other.
pub fn ask_all(settings: &Settings, addresses: &[SocketAddr], patience: Nanos) -> Asked {
    let mut asked = Asked { answers: Vec::new(), silent: Vec::new() };
    for address in addresses {
        match operator::ask(*address, &settings.sealing_key(), STATUS, patience) {
            Ok(mut answer) => {
                if let Some(parts) = answer.as_object_mut() {
                    parts.insert(ASKED_AT.into(), address.to_string().into());
                }
                asked.answers.push(answer);
            }
            Err(error) => asked.silent.push(error),
        }
    }
    asked
}

/// One figure of a node's engine, summed over its shards; 0 if it does not tell.
pub(super) fn figure(answer: &Value, name: &str) -> u64 {
    picture::sum([answer], name).unwrap_or(0)
}

/// The control addresses of all nodes.
pub fn addresses(settings: &Settings) -> Vec<SocketAddr> {
    settings.nodes.iter().map(|node| node.address).collect()
}

/// Prints the state of the cluster. Exit status 1: no node answers.
///
/// # Errors
/// Bad settings; no node answers.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings.resolve().settings?;
    let at = if args.at.is_empty() { addresses(&settings) } else { args.at.clone() };
    let start = Instant::now();
    let mut asked = ask_all(&settings, &at, PATIENCE);
    if asked.answers.is_empty() {
        bail!(no_answer(&asked.silent));
    }
    let first = Picture::new(&settings, &asked.answers, None);
    let picture = if first.slots.learning.0 > first.slots.learning.1 {
        std::thread::sleep(LOOK_FOR);
        let earlier = std::mem::replace(&mut asked, ask_all(&settings, &at, PATIENCE));
        let apart = start.elapsed().as_secs_f64();
        Picture::new(&settings, &asked.answers, Some((&earlier.answers, apart)))
    } else {
        first
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut all = json!(picture);
        all["silent"] = asked.silent.iter().map(ToString::to_string).collect();
        all["answers"] = Value::Array(asked.answers);
        json::print(&mut out, &all)?;
    } else {
        let wall_ms = sys_time::now().wall.0 / 1_000_000;
        let (lease, evict_after) = (settings.lease, settings.evict_after);
        write!(out, "{}", text::Text { picture: &picture, lease, evict_after, wall_ms })?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Why nobody answers, in one line.
fn no_answer(silent: &[AskError]) -> String {
    let each: Vec<String> = silent.iter().map(ToString::to_string).collect();
    format!(
        "no node answers; name one that runs with --at IP:PORT, or all with TANDEM_NODES; tried: {}",
        each.join("; ")
    )
}

#[cfg(test)]
mod tests;
