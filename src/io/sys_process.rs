//! Processes that start, watch and end others: signals, the end of a child as a file descriptor, a child that does
//! not outlive its parent.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// What a process can be sent.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Ends it at once (SIGKILL).
    Kill,
    /// Freezes it (SIGSTOP).
    Stop,
    /// Lets it go on (SIGCONT).
    Continue,
    /// Asks it to end (SIGTERM); a node hands over what it holds first.
    Terminate,
    /// Asks a node to read its routes again, and to open anew what may have been moved (SIGHUP).
    Reload,
    /// Asks a node's engine to end without handing anything over (SIGUSR2).
    EndNow,
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
        Signal::Reload => libc::SIGHUP,
        Signal::EndNow => libc::SIGUSR2,
    };
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not the id of one process"))?;
    // SAFETY: kill(2) takes two integers and touches no memory of this process; pid > 1 names one process,
    // never a group (0, negative) and never init.
    let result = unsafe { libc::kill(pid, number) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A process as a file descriptor, readable once all its threads have ended: from then on it sends nothing.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// For a child of this process that was not waited for: its id cannot be another's yet.
    ///
    /// # Errors
    /// From `pidfd_open(2)`: `ENOSYS` before Linux 5.3, or the limit of open files.
    pub fn open(pid: u32) -> io::Result<PidFd> {
        // SAFETY: pidfd_open(2) takes two integers and touches no memory of this process.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the call above returned this descriptor (close-on-exec by itself), and nobody else has it.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Makes the kernel kill this process when the thread that started it ends (`PR_SET_PDEATHSIG`, `prctl(2)`).
///
/// # Errors
/// `NotFound` if `parent` has ended already.
pub fn end_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: prctl(2): PR_SET_PDEATHSIG takes a signal number and touches no memory of this process.
    let status = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // If it ended before the call, this process has another parent by now.
    if std::os::unix::process::parent_id() == parent { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Names the calling thread, and with it the process if it is the first one, for `ps` and `top`: 15 bytes count.
pub fn set_name(name: &CStr) {
    // SAFETY: prctl(2): PR_SET_NAME reads up to 16 bytes at the pointer, ending at the zero byte that a CStr has.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sys_time::wait_readable;
    use std::process::Command;

    #[test]
    fn the_end_of_a_child_makes_its_descriptor_readable() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = PidFd::open(child.id()).unwrap();
        assert!(!wait_readable(pidfd.as_fd(), 5).unwrap());
        signal(child.id(), Signal::Kill).unwrap();
        assert!(wait_readable(pidfd.as_fd(), 2_000).unwrap());
        assert!(wait_readable(pidfd.as_fd(), 0).unwrap(), "and stays so");
        child.wait().unwrap();
        assert!(PidFd::open(u32::MAX >> 1).is_err());
    }

    #[test]
    fn a_parent_that_is_not_there_is_noticed() {
        std::thread::spawn(|| {
            assert_eq!(end_with_parent(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
            // SAFETY: prctl(2): PR_SET_PDEATHSIG takes a signal number; 0 takes it back.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
        })
        .join()
        .unwrap();
    }

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
