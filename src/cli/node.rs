//! `tandem node`: one node of a cluster, until it is told to end.

use super::config::SettingArgs;
use super::start_log;
use crate::io::node::run_node;
use clap::Args;
use std::io::Read;
use std::process::ExitCode;

/// The arguments of `tandem node`.
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// End when standard input is closed: a node that outlives whoever started it is of no use to them
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Runs the node until SIGTERM or SIGINT.
pub fn run(args: &NodeArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings.resolve().settings?;
    start_log(&settings.log)?;
    if args.until_stdin_closes {
        std::thread::Builder::new().name("stdin".into()).spawn(|| {
            let mut byte = [0];
            while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
            let _ = signal_hook::low_level::raise(signal_hook::consts::SIGTERM);
        })?;
    }
    run_node(&settings)?;
    Ok(ExitCode::SUCCESS)
}
