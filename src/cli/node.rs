//! `tandem node`: one node of a cluster, until it is told to end.

use super::config::SettingArgs;
use super::start_log;
use crate::io::node::run_node;
use clap::Args;
use std::io::Read;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

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
    bound_panic_messages();
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

/// How many panics are told in full. An application's panic ends one call and is counted; a flood of calls that
/// all panic must not become a flood of messages.
const TOLD_PANICS: u32 = 10;

fn bound_panic_messages() {
    static PANICS: AtomicU32 = AtomicU32::new(0);
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| match PANICS.fetch_add(1, Ordering::Relaxed) {
        0..TOLD_PANICS => tell(info),
        TOLD_PANICS => {
            tracing::error!("further panics are only counted (calls_panicked in the node's status)")
        }
        _ => {}
    }));
}
