//! What a thread and a process may ask of the scheduler and of the system's limits.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::mem;

/// How urgently the calling thread is scheduled.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Priority {
    /// `SCHED_FIFO` at this real-time priority (`sched(7)`).
    Realtime(i32),
    /// The usual scheduler at this nice value.
    Nice(i32),
    /// Nothing was allowed: as every other thread.
    Usual,
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Priority::Realtime(level) => write!(f, "SCHED_FIFO {level}"),
            Priority::Nice(nice) => write!(f, "nice {nice}"),
            Priority::Usual => f.write_str("usual"),
        }
    }
}

/// Makes the calling thread as urgent as is allowed: real time, else nice -20, else as it was. Returns which. What it
/// starts is as usual again (`SCHED_RESET_ON_FORK`, `sched(7)`).
pub fn make_urgent() -> Priority {
    /// The lowest real-time priority: above every ordinary thread, below whatever the operator made more urgent.
    const LEVEL: libc::c_int = 1;
    let parameter = libc::sched_param { sched_priority: LEVEL };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: sched_setscheduler(2) reads one sched_param, live and of that type; pid 0 is the calling thread.
    let status = unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
    if status == 0 {
        return Priority::Realtime(LEVEL);
    }
    let usual = libc::sched_param { sched_priority: 0 };
    let policy = libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK;
    // SAFETY: as above. Refusal only means that what this thread starts is as nice as it is.
    unsafe { libc::sched_setscheduler(0, policy, &raw const usual) };
    match set_nice(-20) {
        Ok(()) => Priority::Nice(-20),
        Err(_) => Priority::Usual,
    }
}

/// Sets the nice value of the calling thread (Linux keeps it per thread, `setpriority(2)`).
///
/// # Errors
/// `PermissionDenied` for a lower value than allowed by `RLIMIT_NICE`.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: setpriority(2) takes no pointers; `who` 0 is the calling thread.
    let status = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the calling thread one that does not preempt others when it wakes (SCHED_BATCH, `sched(7)`): packet loops
/// that share cores then find more to do in a turn, and switch less. Refusal changes nothing but speed.
pub fn make_patient() {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: sched_setscheduler(2) reads one sched_param at the pointer, which is live; pid 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const none) };
}

/// The cores this thread may run on, in order (`sched_getaffinity(2)`).
///
/// # Errors
/// From the system call.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: cpu_set_t is an array of integers, for which all-zero bytes are a valid (empty) value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most the stated size at the pointer, which is live and of that size.
    let status = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: CPU_ISSET(3) reads one bit of `set`; the index is below CPU_SETSIZE.
    let allowed = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    Ok((0..libc::CPU_SETSIZE as usize).filter(allowed).collect())
}

/// Keeps the calling thread on one core.
///
/// # Errors
/// `InvalidInput` when this process may not use that core.
pub fn pin_to(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: as in `allowed_cores`.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: CPU_SET(3) sets one bit of `set`; the index is below CPU_SETSIZE, checked above.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: sched_setaffinity(2) reads the stated size at the pointer; pid 0 is the calling thread.
    let status = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the soft limit of open files to the hard one; returns the limit that holds now.
///
/// # Errors
/// From `getrlimit(2)`; a limit that cannot be raised is no error, it is what is returned.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one rlimit at the pointer, which is live and of that type.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: setrlimit(2) reads one rlimit at the pointer, which is live and of that type.
    let status = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
    Ok(if status == 0 { raised.rlim_cur } else { limit.rlim_cur })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_to_the_core_it_asks_for() {
        std::thread::spawn(|| {
            let last = *allowed_cores().unwrap().last().unwrap();
            pin_to(last).unwrap();
            assert_eq!(allowed_cores().unwrap(), [last]);
            assert!(pin_to(usize::MAX).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn urgency_is_reported_as_granted() {
        std::thread::spawn(|| {
            let priority = make_urgent();
            // SAFETY: sched_getscheduler(2) takes no pointers; pid 0 is the calling thread.
            let policy = unsafe { libc::sched_getscheduler(0) };
            let realtime = policy & !libc::SCHED_RESET_ON_FORK == libc::SCHED_FIFO;
            assert_eq!(realtime, matches!(priority, Priority::Realtime(_)));
            // SAFETY: as above.
            let inherited = std::thread::spawn(|| unsafe { libc::sched_getscheduler(0) }).join().unwrap();
            assert_eq!(inherited, libc::SCHED_OTHER);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn open_files_go_up_to_the_hard_limit() {
        let raised = raise_open_files().unwrap();
        assert!(raised > 0);
        assert_eq!(raise_open_files().unwrap(), raised);
    }
}
