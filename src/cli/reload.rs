//! `tandem reload`: every node of a cluster reads its routes again.

use super::config::SettingArgs;
use super::{one_line, status};
use crate::io::operator::{self, RELOAD};
use crate::types::Nanos;
use clap::Args;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;

/// How long a node may take: it reads a file and tells its slots.
const PATIENCE: Nanos = Nanos::from_secs(3);

/// The arguments of `tandem reload`.
#[derive(Args, Debug)]
pub struct ReloadArgs {
    /// Ask the nodes with these control addresses instead of those of TANDEM_NODES
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',')]
    at: Vec<SocketAddr>,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Asks every node to read its routes again and prints what each has made of it. Exit status 1: one refused or did not
/// answer, or they have different routes now.
///
/// # Errors
/// Bad settings.
pub fn run(args: &ReloadArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings.resolve().settings?;
    let at = if args.at.is_empty() { status::addresses(&settings) } else { args.at.clone() };
    let (mut versions, mut refused) = (BTreeSet::new(), false);
    for address in at {
        let answer = operator::ask(address, &settings.sealing_key(), RELOAD, PATIENCE);
        match answer.map_err(|error| error.to_string()).and_then(|answer| accepted(&answer)) {
            Ok(Reloaded { node, version, slots, targets }) => {
                println!("{node} at {address}: routes {version}, {targets} targets, {slots} slots told");
                versions.insert(version);
            }
            Err(why) => {
                println!("{address}: REFUSED: {}", one_line(&why));
                refused = true;
            }
        }
    }
    if versions.len() > 1 {
        println!("THE NODES HAVE DIFFERENT ROUTES: give all of them the same file, and reload again");
    }
    Ok(ExitCode::from(u8::from(refused || versions.len() > 1)))
}

/// What a node has made of it.
#[derive(Debug, PartialEq, Eq)]
struct Reloaded {
    node: String,
    version: String,
    slots: u64,
    targets: u64,
}

fn accepted(answer: &Value) -> Result<Reloaded, String> {
    match answer["accepted"].as_bool() {
        Some(true) => Ok(Reloaded {
            node: answer["node"].as_u64().map_or_else(|| "a node".into(), |id| format!("n{id}")),
            version: answer["routes"].as_str().unwrap_or_default().to_owned(),
            slots: answer["slots"].as_u64().unwrap_or_default(),
            targets: answer["targets"].as_u64().unwrap_or_default(),
        }),
        Some(false) => Err(answer["why"].as_str().unwrap_or("it gives no reason").to_owned()),
        None => Err("it does not know how to read routes again: it runs another version".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_understood() {
        let good = json!({ "accepted": true, "node": 2, "routes": "ab", "slots": 7, "targets": 1 });
        let reloaded = Reloaded { node: "n2".into(), version: "ab".into(), slots: 7, targets: 1 };
        assert_eq!(accepted(&good), Ok(reloaded));
        let bad = json!({ "accepted": false, "why": "line 3: no" });
        assert_eq!(accepted(&bad), Err("line 3: no".into()));
        assert!(accepted(&json!({})).is_err_and(|why| why.contains("another version")));
    }
}
