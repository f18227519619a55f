//! The `tandem` command.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tandem::cli::{self, BadUsage, conclude, one_line};

/// Keeps stateful UDP calls alive when machines die.
#[derive(Parser)]
#[command(name = "tandem", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do, one variant a command.
#[derive(Subcommand)]
enum Command {
    /// Run one node of a cluster until it is told to end
    Node(cli::node::NodeArgs),
    /// Run a cluster of separate processes on loopback until Ctrl-C
    Local(cli::local::LocalArgs),
    /// Show failovers: three nodes, a bundled capture at 200 calls, master and owner killed, every answer checked
    #[cfg(feature = "tools")]
    Demo(cli::demo::DemoArgs),
    /// Send the calls of captures to a cluster many times over and check every answer
    #[cfg(feature = "tools")]
    Replay(cli::replay::Args),
    /// Print the state of a cluster: nodes, service addresses, slots, redundancy, the last failovers
    Status(cli::status::StatusArgs),
    /// Make a node hand over what it holds and leave
    Drain(cli::drain::DrainArgs),
    /// Make every node of a cluster read its routes again
    Reload(cli::reload::ReloadArgs),
    /// Print the effective settings, where they come from and what they mean
    Config(cli::config::ConfigArgs),
    /// Print what captures hold: packets, SIP calls, RTP streams
    #[cfg(feature = "tools")]
    Inspect(cli::inspect::InspectArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return conclude(Err(usage(&error).into())),
    };
    conclude(match cli.command {
        Command::Node(args) => cli::node::run(&args),
        Command::Local(args) => cli::local::run(&args),
        #[cfg(feature = "tools")]
        Command::Demo(args) => cli::demo::run(&args),
        #[cfg(feature = "tools")]
        Command::Replay(args) => cli::replay::run(&args),
        Command::Status(args) => cli::status::run(&args),
        Command::Drain(args) => cli::drain::run(&args),
        Command::Reload(args) => cli::reload::run(&args),
        Command::Config(args) => cli::config::run(&args),
        #[cfg(feature = "tools")]
        Command::Inspect(args) => cli::inspect::run(&args),
    })
}

/// What clap found wrong, in one line.
fn usage(error: &clap::Error) -> BadUsage {
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return BadUsage("no command given (`tandem --help` lists them)".into());
    }
    let text = error.to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or_default();
    let said = said.split("\n\nFor more information").next().unwrap_or_default();
    BadUsage(format!("{} (`tandem --help` tells more)", one_line(said.trim_start_matches("error:"))))
}
