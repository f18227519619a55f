//! `tandem node`: one node of a cluster, until it is told to end.

use super::config::SettingArgs;
use super::{complain, start_log};
use crate::io::node::{Life, NodeEnd, NodeError, run_node};
use crate::io::supervisor::{ASKED, FAILED, FENCED, Requests, Supervisor, engine_command};
use crate::io::sys_process;
use crate::types::Boot;
use anyhow::Context as _;
use clap::Args;
use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The arguments of `tandem node`.
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// End when standard input is closed: a node that outlives whoever started it is of no use to them
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
    /// Be the engine of a node in this life of it
    #[arg(long, hide = true, value_name = "BOOT", requires = "supervisor")]
    engine: Option<u64>,
    /// The process that has started this engine: it does not outlive it
    #[arg(long, hide = true, value_name = "PID", requires = "engine")]
    supervisor: Option<u32>,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Runs the node, as its supervisor or as its engine, until it is asked to end.
pub fn run(args: &NodeArgs) -> anyhow::Result<ExitCode> {
    match (args.engine, args.supervisor) {
        (Some(boot), Some(supervisor)) => run_engine(args, Boot(boot), supervisor),
        _ => run_supervisor(args),
    }
}

fn run_supervisor(args: &NodeArgs) -> anyhow::Result<ExitCode> {
    let resolved = args.settings.resolve();
    let environment = resolved.environment();
    let settings = resolved.settings?;
    start_log(&settings.log)?;
    let supervisor = Supervisor::new(&settings, engine_command(environment))?;
    watch_signals(supervisor.requests())?;
    if args.until_stdin_closes {
        let requests = supervisor.requests();
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut byte = [0];
            while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
            requests.end_now();
        })?;
    }
    Ok(ExitCode::from(supervisor.run()?))
}

/// SIGTERM and SIGINT ask the node to end; another one ends it at once. SIGHUP asks it to read its routes again.
fn watch_signals(requests: Arc<Requests>) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let numbers = [SIGTERM, SIGINT, SIGHUP];
    let mut signals = signal_hook::iterator::Signals::new(numbers)?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if signal == SIGHUP { requests.reload() } else { requests.end() }
        }
    })?;
    Ok(())
}

fn run_engine(args: &NodeArgs, boot: Boot, supervisor: u32) -> anyhow::Result<ExitCode> {
    sys_process::end_with_parent(supervisor).context("the supervisor is not there")?;
    sys_process::set_name(c"tandem-engine");
    let settings = args.settings.resolve().settings?;
    start_log(&settings.log)?;
    bound_panic_messages();
    match run_node(&settings, Life { boot, supervisor: Some(supervisor) }) {
        Ok(NodeEnd::Asked) => Ok(ExitCode::from(ASKED)),
        Ok(NodeEnd::Fenced) => Ok(ExitCode::from(FENCED)),
        // It has worked: unlike one that could not start, it is to be started again.
        Err(error @ NodeError::Thread { .. }) => {
            complain(&error.to_string());
            Ok(ExitCode::from(FAILED))
        }
        Err(error) => Err(error.into()),
    }
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
