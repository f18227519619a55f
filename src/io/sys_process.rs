//! Signals to other processes, for the commands that start nodes and for tests that kill them.
#![allow(unsafe_code)]

use std::io;

/// What a process can be sent.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Ends it at once (SIGKILL).
    Kill,
    /// Freezes it (SIGSTOP).
    Stop,
    /// Lets it go on (SIGCONT).
    Continue,
    /// Asks it to end (SIGTERM).
    Terminate,
}

/// Sends `signal` to the process `pid`.
///
/// # Errors
/// There is no such process, or it is not ours.
pub fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let number = match signal {
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
        Signal::Terminate => libc::SIGTERM,
    };
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not the id of one process"))?;
    // SAFETY: kill(2) takes two integers and touches no memory of this process; pid > 1 names one process,
    // never a group (0, negative) and never init.
    let result = unsafe { libc::kill(pid, number) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_is_ended_and_groups_are_refused() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        signal(child.id(), Signal::Stop).unwrap();
        signal(child.id(), Signal::Continue).unwrap();
        signal(child.id(), Signal::Kill).unwrap();
        assert!(!child.wait().unwrap().success());
        for pid in [0, 1, u32::MAX] {
            assert_eq!(signal(pid, Signal::Kill).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
