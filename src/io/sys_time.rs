//! The real clocks: `clock_gettime(2)`, timers that keep nanoseconds (`timerfd_create(2)`; epoll would round to
//! whole milliseconds), and the CPU time of a process.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::types::{Nanos, Now};

fn read_clock(clock: libc::clockid_t) -> io::Result<Nanos> {
    let mut value = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes one timespec at the pointer, which is live and of that type.
    let status = unsafe { libc::clock_gettime(clock, &raw mut value) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    let (seconds, nanos) = (value.tv_sec.max(0) as u64, value.tv_nsec.max(0) as u64);
    Ok(Nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos)))
}

/// Reads both clocks. Neither can fail on Linux (`CLOCK_BOOTTIME` since 2.6.39): a clock that cannot be read is 0.
pub fn now() -> Now {
    let clock = |id| read_clock(id).unwrap_or(Nanos::ZERO);
    Now { mono: clock(libc::CLOCK_BOOTTIME), wall: clock(libc::CLOCK_REALTIME) }
}

/// Monotonic time alone ([`Now::mono`]).
pub fn mono() -> Nanos {
    read_clock(libc::CLOCK_BOOTTIME).unwrap_or(Nanos::ZERO)
}

/// CPU time, user and system, of all threads of the process `pid` so far (`clock_getcpuclockid(3)`), in ns.
///
/// # Errors
/// `NotFound`-like (`ESRCH`) when there is no such process.
pub fn process_cpu(pid: u32) -> io::Result<Nanos> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: clock_getcpuclockid(3) writes one clockid_t at the pointer, which is live and of that type.
    let status = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if status != 0 {
        return Err(io::Error::from_raw_os_error(status));
    }
    read_clock(clock)
}

/// A timer that makes a file descriptor readable. One deadline at a time.
#[derive(Debug)]
pub struct TimerFd {
    fd: OwnedFd,
}

impl TimerFd {
    /// A timer on the clock of [`Now::mono`], not armed.
    ///
    /// # Errors
    /// From `timerfd_create(2)`: the limit of open files.
    pub fn new() -> io::Result<TimerFd> {
        // SAFETY: timerfd_create(2) takes no pointers.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned this descriptor, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(TimerFd { fd })
    }

    /// Fires once at the monotonic time `deadline`, at once if that has passed; [`Nanos::MAX`]: never. Takes back
    /// a firing that was not asked about, so an edge-triggered watcher need not read the timer at all.
    ///
    /// # Errors
    /// From `timerfd_settime(2)`.
    pub fn arm(&self, deadline: Nanos) -> io::Result<()> {
        // An all-zero value would disarm, so the earliest deadline is 1 ns.
        let at = if deadline == Nanos::MAX { 0 } else { deadline.0.max(1) };
        self.set(libc::TFD_TIMER_ABSTIME, at, 0)
    }

    /// Fires every `period` from now on, until armed otherwise.
    ///
    /// # Errors
    /// From `timerfd_settime(2)`.
    pub fn every(&self, period: Nanos) -> io::Result<()> {
        self.set(0, period.0.max(1), period.0.max(1))
    }

    /// Takes note that it fired; returns how often since it was last asked (0: not yet).
    pub fn take(&self) -> u64 {
        let mut count = [0_u8; 8];
        // SAFETY: read(2) on a timerfd writes 8 bytes at the pointer, which is live for 8.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        if got == count.len() as isize { u64::from_ne_bytes(count) } else { 0 }
    }

    fn set(&self, flags: libc::c_int, first: u64, period: u64) -> io::Result<()> {
        let spec = |ns: u64| libc::timespec {
            tv_sec: (ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (ns % 1_000_000_000) as libc::c_long,
        };
        let value = libc::itimerspec { it_value: spec(first), it_interval: spec(period) };
        // SAFETY: timerfd_settime(2) reads one itimerspec, live and of that type; a null old value is allowed.
        let status =
            unsafe { libc::timerfd_settime(self.fd.as_raw_fd(), flags, &raw const value, ptr::null_mut()) };
        if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for TimerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until the descriptor is readable or `timeout` ms have passed (`poll(2)`; -1: for ever). For tools that
/// have one socket; the shards use epoll.
///
/// # Errors
/// From `poll(2)`; an interrupted wait counts as not readable.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: i32) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: poll(2) reads and writes one pollfd at the pointer, which is live and of that type.
    let ready = unsafe { libc::poll(&raw mut entry, 1, timeout) };
    if ready >= 0 {
        return Ok(ready > 0);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn the_clocks_go_forward_and_the_wall_is_the_systems() {
        let first = now();
        std::thread::sleep(Duration::from_millis(2));
        let second = now();
        assert!(second.mono.since(first.mono) >= Nanos::from_millis(2));
        let system = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        assert!(Nanos(system).since(second.wall) < Nanos::from_secs(1));
        assert!(mono() >= second.mono);
    }

    #[test]
    fn a_timer_fires_once_at_its_deadline() {
        let timer = TimerFd::new().unwrap();
        assert!(!wait_readable(timer.as_fd(), 0).unwrap());
        let deadline = mono() + Nanos::from_micros(1_500);
        timer.arm(deadline).unwrap();
        assert_eq!(timer.take(), 0);
        assert!(wait_readable(timer.as_fd(), 1_000).unwrap());
        assert!(mono() >= deadline);
        assert_eq!(timer.take(), 1);
        assert_eq!(timer.take(), 0);
        // It has passed, so it fires at once.
        timer.arm(deadline).unwrap();
        assert!(wait_readable(timer.as_fd(), 1_000).unwrap());
    }

    #[test]
    fn a_disarmed_timer_is_silent_and_a_past_deadline_fires_at_once() {
        let timer = TimerFd::new().unwrap();
        timer.arm(Nanos::ZERO).unwrap();
        assert!(wait_readable(timer.as_fd(), 1_000).unwrap());
        timer.arm(Nanos::MAX).unwrap();
        assert!(!wait_readable(timer.as_fd(), 5).unwrap());
    }

    #[test]
    fn a_periodic_timer_counts_its_firings() {
        let timer = TimerFd::new().unwrap();
        timer.every(Nanos::from_millis(1)).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(timer.take() >= 10);
        assert!(wait_readable(timer.as_fd(), 1_000).unwrap());
    }

    #[test]
    fn cpu_time_grows_with_work_and_a_missing_process_is_an_error() {
        let pid = std::process::id();
        let before = process_cpu(pid).unwrap();
        let start = mono();
        while mono().since(start) < Nanos::from_millis(20) {}
        assert!(process_cpu(pid).unwrap().since(before) >= Nanos::from_millis(2));
        assert!(process_cpu(u32::MAX).is_err());
    }
}
