//! Floor 6: the commands of `tandem`, one file each, and what they share.

#[cfg(feature = "tools")]
pub mod capture;
pub mod config;
#[cfg(feature = "tools")]
pub mod demo;
pub mod drain;
#[cfg(feature = "tools")]
pub mod inspect;
pub mod json;
#[cfg(feature = "tools")]
pub mod load;
pub mod local;
pub mod node;
pub mod reload;
#[cfg(feature = "tools")]
pub mod replay;
#[cfg(feature = "tools")]
pub mod report;
pub mod status;

use crate::config::BadSettings;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

/// A command was asked for something it cannot mean: exit status 2, as for bad settings.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadUsage(pub String);

/// Ends a command with the status it returned. An error is said in one line and its status is 2 for bad usage or
/// settings, 1 for anything else. A reader that closed our output early (`tandem config | head`) is no error.
pub fn conclude(result: anyhow::Result<ExitCode>) -> ExitCode {
    let error = match result {
        Ok(status) => return status,
        Err(error) => error,
    };
    if error.chain().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    complain(&with_causes(&error));
    let usage = error.is::<BadSettings>() || error.is::<BadUsage>();
    ExitCode::from(if usage { 2 } else { 1 })
}

/// Says on standard error, in one line, what went wrong.
pub fn complain(text: &str) {
    eprintln!("tandem: {}", one_line(text));
}

/// The error and its causes, but for those that it names itself.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match () {
        () if said.is_empty() => cause,
        () if said.contains(&cause) => said,
        () => format!("{said}: {cause}"),
    })
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The text with its line ends and indents turned into single spaces.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Starts the log on standard error, with a filter that the settings have checked.
pub fn start_log(filter: &str) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    log.with_ansi(io::stderr().is_terminal())
        .try_init()
        .map_err(|e| anyhow::anyhow!("cannot start the log: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn exit_statuses() {
        let status = |result| format!("{:?}", conclude(result));
        let expected = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(status(Ok(ExitCode::from(3))), expected(3));
        assert_eq!(status(Err(anyhow::anyhow!("a\n  b"))), expected(1));
        assert_eq!(status(Err(BadUsage("x".into()).into())), expected(2));
        assert_eq!(status(Err(BadSettings(Vec::new()).into())), expected(2));
        let pipe = Err(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert_eq!(status(pipe), expected(0));
        let full = io::Error::from_raw_os_error(28);
        let named = anyhow::Error::new(full).context("cannot write x");
        assert_eq!(with_causes(&named), "cannot write x: No space left on device (os error 28)");
        assert_eq!(
            with_causes(&anyhow::anyhow!("disk full").context("x: disk full; free it")),
            "x: disk full; free it"
        );
        assert_eq!(one_line("a\n  b c"), "a b c");
    }
}
