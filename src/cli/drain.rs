//! `tandem drain`: a node hands over what it holds and leaves.

use super::config::SettingArgs;
use super::status::{self, Picture, State};
use super::{BadUsage, one_line};
use crate::config::Settings;
use crate::io::operator::{self, AskError, DRAIN};
use crate::types::{Nanos, NodeId};
use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a node may take to answer.
const PATIENCE: Nanos = Nanos::from_secs(1);
/// How often it is looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A node that says nothing so many times in a row is gone.
const SILENCES: u32 = 2;

/// The arguments of `tandem drain`.
#[derive(Args, Debug)]
pub struct DrainArgs {
    /// The id of the node [default: TANDEM_NODE]
    #[arg(value_name = "NODE")]
    which: Option<u16>,
    /// The node with this control address instead
    #[arg(long, value_name = "IP:PORT", conflicts_with = "which")]
    at: Option<SocketAddr>,
    /// Seconds to wait until it has left
    #[arg(long, default_value_t = 60, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    within: u64,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Asks the node to leave and waits until it has. Exit status 1: it refused, or has not left in time.
///
/// # Errors
/// Bad settings; the node does not answer or refuses, with its reason; it takes too long.
pub fn run(args: &DrainArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings.resolve().settings?;
    let address = address(args, &settings)?;
    let answer =
        operator::ask(address, &settings.sealing_key(), DRAIN, PATIENCE).context("cannot ask it to leave")?;
    accepted(&answer, address)?;
    println!("the node at {address} hands over what it holds");
    wait(&settings, address, Duration::from_secs(args.within))?;
    Ok(ExitCode::SUCCESS)
}

fn address(args: &DrainArgs, settings: &Settings) -> Result<SocketAddr, BadUsage> {
    if let Some(address) = args.at {
        return Ok(address);
    }
    let id = args.which.map_or(settings.node, NodeId);
    settings.control_address(id).ok_or_else(|| {
        let all: Vec<String> = settings.nodes.iter().map(|node| node.id.0.to_string()).collect();
        BadUsage(format!("there is no node {} in TANDEM_NODES: give one of {}", id.0, all.join(", ")))
    })
}

/// What the node makes of it.
fn accepted(answer: &Value, address: SocketAddr) -> anyhow::Result<()> {
    match answer["accepted"].as_bool() {
        Some(true) => Ok(()),
        Some(false) => {
            let why = answer["why"].as_str().unwrap_or("it gives no reason");
            bail!("the node at {address} does not leave: {}", one_line(why))
        }
        None => bail!("the node at {address} does not know how to leave: it runs another version"),
    }
}

fn wait(settings: &Settings, address: SocketAddr, within: Duration) -> anyhow::Result<()> {
    let (start, mut silences, mut said) = (Instant::now(), 0, String::new());
    loop {
        let answer = status::ask_all(settings, &[address], PATIENCE);
        match answer.answers.first() {
            Some(answer) => {
                silences = 0;
                let now = Progress::of(settings, answer);
                if now.gone {
                    break;
                }
                let line = now.to_string();
                if line != said {
                    println!("{:>6.1} s  {line}", start.elapsed().as_secs_f64());
                    said = line;
                }
            }
            // Nobody listens there any more; or, at an address that is gone with its host, nothing comes back.
            None if matches!(answer.silent.first(), Some(AskError::Refused(_))) => break,
            None => silences += 1,
        }
        if silences >= SILENCES {
            break;
        }
        if start.elapsed() >= within {
            bail!(
                "the node at {address} has not left within {within:?}: `tandem status` shows what it still holds"
            );
        }
        std::thread::sleep(LOOK_EVERY);
    }
    println!("{:>6.1} s  it has left", start.elapsed().as_secs_f64());
    Ok(())
}

/// What a node still holds, as it says itself.
#[derive(Debug, PartialEq, Eq)]
struct Progress {
    gone: bool,
    addresses: usize,
    masters: u64,
    member: u64,
}

impl Progress {
    fn of(settings: &Settings, answer: &Value) -> Progress {
        let picture = Picture::new(settings, std::slice::from_ref(answer), None);
        let me = answer["node"].as_u64();
        let view = picture.nodes.iter().find(|node| Some(node.id.into()) == me);
        let held = picture.addresses.iter().filter(|a| a.owner.map(u64::from) == me).count();
        Progress {
            gone: view.is_some_and(|node| node.state == State::Dead),
            addresses: if picture.map_version.is_some() { held } else { 0 },
            masters: view.map_or(0, |node| node.masters),
            member: status::figure(answer, "slots_member"),
        }
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Progress { addresses, masters, member, .. } = self;
        write!(
            f,
            "it holds {addresses} service addresses, is master of {masters} slots and member of {member}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at() -> SocketAddr {
        "127.0.0.1:7100".parse().unwrap()
    }

    #[test]
    fn a_refusal_is_told_with_its_reason() {
        assert!(accepted(&json!({ "accepted": true }), at()).is_ok());
        let why = |answer: Value| accepted(&answer, at()).unwrap_err().to_string();
        let said = why(json!({ "accepted": false, "why": "only two\n nodes are left" }));
        assert_eq!(said, "the node at 127.0.0.1:7100 does not leave: only two nodes are left");
        assert!(why(json!({ "node": 1 })).contains("another version"));
    }

    #[test]
    fn progress_is_what_the_node_still_holds() {
        let settings = Settings::from_pairs(&[]).unwrap();
        let engine = json!({ "slots_member": 7, "masters": [[1, 3]] });
        let answer = json!({ "node": 1, "control": {}, "shards": [{ "engine": engine }] });
        let progress = Progress::of(&settings, &answer);
        assert_eq!(progress, Progress { gone: false, addresses: 0, masters: 3, member: 7 });
        assert!(progress.to_string().contains("member of 7"), "{progress}");
    }

    #[test]
    fn a_node_that_is_not_there_is_bad_usage() {
        let settings = Settings::from_pairs(&[]).unwrap();
        let mut args =
            DrainArgs { which: Some(9), at: None, within: 1, settings: SettingArgs { flags: Vec::new() } };
        let said = address(&args, &settings).unwrap_err().to_string();
        assert_eq!(said, "there is no node 9 in TANDEM_NODES: give one of 1");
        args.which = None;
        assert_eq!(address(&args, &settings).unwrap(), at());
    }
}
