//! The vote file's own thread. A disk that others keep busy takes a second to make a vote durable now and then; the
//! control's beats, and with them the leases, do not wait for it: only the votes do.

use std::io;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{self, Receiver, Sender};

use super::sys_thread;
use super::sys_time;
use crate::types::Nanos;

/// A disk that takes longer is complained about: no service address moves meanwhile.
const SLOW: Nanos = Nanos::from_millis(50);
/// How often.
const COMPLAIN_EVERY: Nanos = Nanos::from_secs(30);

/// Makes a state durable.
pub type Save = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

/// How saves went.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DiskFigures {
    /// States that are durable.
    pub saved: u64,
    /// The longest that one took.
    pub slowest_us: u64,
}

/// A state that is saved, and how long that took; or why it is not.
type Outcome = io::Result<Nanos>;

/// See the module's page.
pub struct VoteDisk {
    /// `None` once it ends.
    states: Option<Sender<Vec<u8>>>,
    outcomes: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
    figures: DiskFigures,
    quiet_until: Nanos,
}

impl VoteDisk {
    /// Starts the thread; `wake` is called after each save. `urgent`: as urgent as is allowed, as who waits for it is.
    ///
    /// # Errors
    /// From `pthread_create(3)`.
    pub fn start(mut save: Save, wake: impl Fn() + Send + 'static, urgent: bool) -> io::Result<VoteDisk> {
        let (states, to_save) = channel::bounded::<Vec<u8>>(1);
        let (said, outcomes) = channel::bounded(1);
        let work = move || {
            if urgent {
                sys_thread::make_urgent();
            }
            for state in to_save {
                let began = sys_time::mono();
                let outcome = save(&state).map(|()| sys_time::mono().since(began));
                if said.send(outcome).is_err() {
                    return;
                }
                wake();
            }
        };
        let thread = thread::Builder::new().name("tandem-votes".to_owned()).spawn(work)?;
        let figures = DiskFigures::default();
        Ok(VoteDisk {
            states: Some(states),
            outcomes,
            thread: Some(thread),
            figures,
            quiet_until: Nanos::ZERO,
        })
    }

    /// Begins to save a state: one at a time, the next after [`VoteDisk::take_saved`] has said so.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn save(&mut self, state: Vec<u8>) -> io::Result<()> {
        let sent = self.states.as_ref().is_some_and(|states| states.try_send(state).is_ok());
        if sent { Ok(()) } else { Err(io::Error::other("the thread that writes the vote file has ended")) }
    }

    /// Whether the state given last is durable now; true once for each.
    ///
    /// # Errors
    /// It is not, and will not be.
    pub fn take_saved(&mut self, now: Nanos) -> io::Result<bool> {
        let Ok(outcome) = self.outcomes.try_recv() else { return Ok(false) };
        let took = outcome?;
        self.figures.saved += 1;
        self.figures.slowest_us = self.figures.slowest_us.max(took.as_micros());
        if took >= SLOW && now >= self.quiet_until {
            self.quiet_until = now + COMPLAIN_EVERY;
            tracing::warn!(
                ms = took.as_millis_f64(),
                "the disk under TANDEM_DATA_DIR was slow to keep a vote: a service address moves only as fast as that; \
                 give the vote file a disk that nobody else keeps busy"
            );
        }
        Ok(true)
    }

    /// How saves went so far.
    pub fn figures(&self) -> DiskFigures {
        self.figures
    }
}

impl Drop for VoteDisk {
    /// Waits for what is being written: whoever opens the file next finds it whole, and not in use.
    fn drop(&mut self) {
        self.states = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    type Outcomes = Sender<io::Result<()>>;

    /// A disk whose outcomes the test decides, what it was given, and when it woke somebody.
    fn disk() -> (VoteDisk, Outcomes, Receiver<Vec<u8>>, Receiver<()>) {
        let (decide, decided) = channel::unbounded();
        let (given, gives) = channel::unbounded();
        let (wakes, woken) = channel::unbounded();
        let save: Save = Box::new(move |state| {
            given.send(state.to_vec()).unwrap();
            decided.recv().unwrap()
        });
        let wake = move || wakes.send(()).unwrap();
        (VoteDisk::start(save, wake, false).unwrap(), decide, gives, woken)
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn nobody_waits_for_a_slow_disk() {
        let (mut disk, decide, given, woken) = disk();
        let began = Instant::now();
        disk.save(b"one".to_vec()).unwrap();
        assert_eq!(given.recv_timeout(PATIENCE).unwrap(), b"one");
        assert!(!disk.take_saved(Nanos::ZERO).unwrap(), "it is not durable yet");
        thread::sleep(Duration::from_millis(60));
        decide.send(Ok(())).unwrap();
        woken.recv_timeout(PATIENCE).unwrap();
        assert!(disk.take_saved(Nanos::ZERO).unwrap());
        assert!(!disk.take_saved(Nanos::ZERO).unwrap(), "that is said once");
        let figures = disk.figures();
        assert_eq!(figures.saved, 1);
        assert!(
            figures.slowest_us >= 60_000 && u128::from(figures.slowest_us) <= began.elapsed().as_micros()
        );
        disk.save(b"two".to_vec()).unwrap();
        decide.send(Err(io::Error::other("full"))).unwrap();
        woken.recv_timeout(PATIENCE).unwrap();
        assert_eq!(disk.take_saved(Nanos::ZERO).unwrap_err().to_string(), "full");
    }

    #[test]
    fn the_end_waits_for_what_is_being_written() {
        let (mut disk, decide, given, _woken) = disk();
        disk.save(b"last".to_vec()).unwrap();
        given.recv_timeout(PATIENCE).unwrap();
        let later = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            decide.send(Ok(())).unwrap();
        });
        let began = Instant::now();
        drop(disk);
        assert!(began.elapsed() >= Duration::from_millis(20));
        later.join().unwrap();
    }
}
