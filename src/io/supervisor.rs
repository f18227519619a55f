//! The supervisor: the small process that starts a node's engine, tells the peers at once when it has ended, and starts
//! it again.
//!
//! An engine that has crashed can say nothing, and its peers would have to wait until its leases have run out. The
//! kernel tells its parent within microseconds, and only once none of its threads can send any more: so a sealed notice
//! ([`crate::wire::exit`]) makes the end certain at once. It goes to the peers' control addresses from a port of the
//! supervisor's own, and there wakes the control loop. When supervisor and engine die together, nobody tells; and where
//! the system writes core dumps, it does so before it tells anybody of an end.
//!
//! An engine gets its boot from here: wall time, and later than the one before, which is kept in TANDEM_DATA_DIR: peers
//! hear no life that is older than one they know, and a machine may come up with a clock that has gone back. It ends with
//! the supervisor.

mod boots;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::node::{NodeError, system};
use super::peer::seal_into;
use super::sys_process::{PidFd, Signal, signal};
use super::{addresses, sys_thread, sys_time};
use crate::config::{Auto, Restart, Settings};
use crate::types::{Boot, Nanos, NodeId};
use crate::wire::datagram::{Kind, SUPERVISOR};
use crate::wire::exit::{Exited, write_exited};
use crate::wire::seal::{ClusterKey, Sealer};

/// Exit status of an engine that was asked to end.
pub const ASKED: u8 = 0;
/// Exit status of an engine that could not start.
pub const NOT_STARTED: u8 = 1;
/// Exit status for settings that cannot be.
pub const BAD_SETTINGS: u8 = 2;
/// Exit status of an engine one of whose threads has ended unasked.
pub const FAILED: u8 = 70;
/// Exit status of an engine whose life is over by the cluster map.
pub const FENCED: u8 = 75;

/// When the peers are told, counted from the end of an engine.
const TELL_AT: [Nanos; 5] = [
    Nanos::ZERO,
    Nanos::from_millis(1),
    Nanos::from_millis(4),
    Nanos::from_millis(10),
    Nanos::from_millis(20),
];
/// An engine that ended unasked is started again after this...
const FIRST_DELAY: Nanos = Nanos::from_millis(100);
/// ...twice as late each time, up to this...
const LAST_DELAY: Nanos = Nanos::from_secs(10);
/// ...and after this again, once one has lived so long.
const LONG_LIFE: Nanos = Nanos::from_secs(30);
/// A fenced engine is started again at once, unless it lived less than this.
const SHORT_LIFE: Nanos = Nanos::from_secs(1);
/// An engine younger than this may not listen for SIGHUP yet, and would die of it.
const HEARS_AFTER: Nanos = Nanos::from_millis(500);
/// How long an engine may take beyond its own time limit for a drain...
const DRAIN_GRACE: Nanos = Nanos::from_secs(3);
/// ...and when it is to end without one.
const END_GRACE: Nanos = Nanos::from_secs(2);

const WAKE: Token = Token(0);
const ENGINE: Token = Token(1);

/// What was asked of the supervisor so far, and how it is told.
#[derive(Debug)]
pub struct Requests {
    count: AtomicU32,
    reloads: AtomicU32,
    waker: Waker,
}

impl Requests {
    /// Asks the node to end: the first time it hands over what it holds, the second time it ends at once.
    pub fn end(&self) {
        self.count.fetch_add(1, Relaxed);
        // A failed wake-up means that one is under way.
        let _ = self.waker.wake();
    }

    /// Asks the engine to read its routes again.
    pub fn reload(&self) {
        self.reloads.fetch_add(1, Relaxed);
        // As above.
        let _ = self.waker.wake();
    }

    /// Asks the node to end at once.
    pub fn end_now(&self) {
        self.count.fetch_add(1, Relaxed);
        self.end();
    }
}

/// How an engine has ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum End {
    Status(u8),
    Killed(i32),
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> End {
        match status.code() {
            Some(code) => End::Status(code as u8),
            None => End::Killed(status.signal().unwrap_or_default()),
        }
    }
}

impl End {
    /// As [`End::from`], for an engine that was asked to end: it may not have been ready to hear of it.
    fn asked(self) -> u8 {
        match self {
            End::Killed(libc::SIGTERM | libc::SIGUSR2) => ASKED,
            end => end.status(),
        }
    }

    /// The status with which a shell would report it.
    fn status(self) -> u8 {
        match self {
            End::Status(status) => status,
            End::Killed(signal) => 128_u8.saturating_add(signal as u8),
        }
    }
}

/// What follows the end of an engine.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Next {
    /// The node ends with this status.
    End(u8),
    /// Another engine starts after this time.
    Start(Nanos),
}

/// How often engines have ended unasked, one after the other.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
struct History {
    /// Whether an engine has ever worked.
    worked: bool,
    /// Unasked ends without a long life between them.
    failures: u32,
}

impl History {
    /// What follows when an engine has ended after `life` without having been asked by this supervisor.
    fn after(&mut self, end: End, life: Nanos, restart: Restart) -> Next {
        let worked = std::mem::replace(&mut self.worked, true);
        if life >= LONG_LIFE {
            self.failures = 0;
        }
        match end {
            End::Status(ASKED | BAD_SETTINGS) => return Next::End(end.status()),
            End::Status(NOT_STARTED) if !worked => return Next::End(NOT_STARTED),
            _ if restart == Restart::Never => return Next::End(end.status()),
            End::Status(FENCED) if life >= SHORT_LIFE => return Next::Start(Nanos::ZERO),
            _ => {}
        }
        let delay = FIRST_DELAY.0.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        Next::Start(Nanos(delay).min(LAST_DELAY))
    }
}

/// Tells the peers that a life is over, several times, because datagrams get lost. Sealed before it is needed.
struct Notices {
    socket: UdpSocket,
    peers: Vec<SocketAddr>,
    node: NodeId,
    key: ClusterKey,
    ready: Vec<Vec<u8>>,
    telling: Vec<Vec<u8>>,
    told: usize,
    began: Nanos,
}

impl Notices {
    /// From the address of this node, and a port of the supervisor's own, to its peers' control sockets.
    fn new(settings: &Settings) -> io::Result<Notices> {
        let socket = UdpSocket::bind(SocketAddr::new(settings.me().address.ip(), 0))?;
        socket.set_nonblocking(true)?;
        Ok(Notices {
            socket,
            peers: settings.peers().map(|peer| peer.address).collect(),
            node: settings.node,
            key: settings.sealing_key(),
            ready: Vec::new(),
            telling: Vec::new(),
            told: 0,
            began: Nanos::ZERO,
        })
    }

    /// Makes ready for the end of the life `boot`.
    fn prepare(&mut self, boot: Boot) {
        let mut sealer = Sealer::new(&self.key, self.node, boot, SUPERVISOR);
        let plaintext = write_exited(Exited { node: self.node, boot });
        let seal = |_| {
            let mut datagram = Vec::new();
            // A supervisor hears nobody, so it knows no peer's life.
            seal_into(&mut datagram, &mut sealer, Kind::Control, 0, &plaintext);
            datagram
        };
        self.ready = TELL_AT.iter().map(seal).collect();
    }

    /// The life that was prepared for is over: tells it now.
    fn begin(&mut self, now: Nanos) {
        self.telling = std::mem::take(&mut self.ready);
        (self.told, self.began) = (0, now);
        self.tell(now);
    }

    /// Tells what is due.
    fn tell(&mut self, now: Nanos) {
        while self.due() <= now {
            for peer in &self.peers {
                // A peer that cannot be told is silent itself.
                let _ = self.socket.send_to(&self.telling[self.told], peer);
            }
            self.told += 1;
        }
    }

    /// When to tell it again; [`Nanos::MAX`]: it has been told often enough.
    fn due(&self) -> Nanos {
        if self.told < self.telling.len() { self.began + TELL_AT[self.told] } else { Nanos::MAX }
    }
}

/// A running engine.
struct Engine {
    child: Child,
    pidfd: PidFd,
    started: Nanos,
}

/// See the module's page.
pub struct Supervisor<'a> {
    settings: &'a Settings,
    command: Box<dyn Fn(Boot) -> Command>,
    poll: Poll,
    events: Events,
    requests: Arc<Requests>,
    notices: Option<Notices>,
    newest: Boot,
    history: History,
}

/// The command that starts this very program as the engine of a node in the life it is given. Its settings are in its
/// environment, because flags can be seen by every user of the machine.
pub fn engine_command(environment: Vec<(String, String)>) -> impl Fn(Boot) -> Command {
    move |boot| {
        let mut command = Command::new("/proc/self/exe");
        let (boot, supervisor) = (boot.0.to_string(), std::process::id().to_string());
        command.arg0("tandem").args(["node", "--engine", &boot, "--supervisor", &supervisor]);
        command.envs(environment.iter().cloned()).stdin(Stdio::null());
        command
    }
}

impl<'a> Supervisor<'a> {
    /// A supervisor of engines that `command` starts.
    ///
    /// # Errors
    /// From `epoll_create(2)` and `eventfd(2)`.
    pub fn new(
        settings: &'a Settings,
        command: impl Fn(Boot) -> Command + 'static,
    ) -> Result<Supervisor<'a>, NodeError> {
        let poll = Poll::new().map_err(system("make an epoll instance"))?;
        let waker = Waker::new(poll.registry(), WAKE).map_err(system("make an eventfd"))?;
        Ok(Supervisor {
            settings,
            command: Box::new(command),
            poll,
            events: Events::with_capacity(4),
            requests: Arc::new(Requests { count: AtomicU32::new(0), reloads: AtomicU32::new(0), waker }),
            notices: None,
            newest: boots::read(settings),
            history: History::default(),
        })
    }

    /// Where the node is asked to end.
    pub fn requests(&self) -> Arc<Requests> {
        self.requests.clone()
    }

    /// Runs engines until the node is asked to end, or one ends that is not to be started again; returns the status to
    /// end with. An engine ends with the thread that calls this.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub fn run(mut self) -> Result<u8, NodeError> {
        if self.settings.rt == Auto::Auto {
            sys_thread::make_urgent();
        }
        addresses::remove_leftovers(self.settings);
        loop {
            let engine = self.start()?;
            let started = engine.started;
            let end = self.watch(engine)?;
            addresses::remove_leftovers(self.settings);
            let life = sys_time::mono().since(started);
            let next = if self.asked() > 0 { Next::End(end.asked()) } else { self.next(end, life) };
            let delay = match next {
                Next::End(_) => Nanos::ZERO,
                Next::Start(delay) => delay,
            };
            self.pause(sys_time::mono() + delay)?;
            match next {
                Next::End(status) => return Ok(status),
                Next::Start(_) if self.asked() > 0 => return Ok(ASKED),
                Next::Start(_) => {}
            }
        }
    }

    fn asked(&self) -> u32 {
        self.requests.count.load(Relaxed)
    }

    fn next(&mut self, end: End, life: Nanos) -> Next {
        let next = self.history.after(end, life, self.settings.restart);
        match next {
            Next::End(ASKED | BAD_SETTINGS | NOT_STARTED) => {}
            Next::End(_) => tracing::error!(?end, "the engine has ended, and so does the node"),
            Next::Start(delay) => {
                let (life_ms, again_in_ms) = (life.0 / 1_000_000, delay.0 / 1_000_000);
                tracing::error!(?end, life_ms, again_in_ms, "the engine has ended: it is started again");
            }
        }
        next
    }

    fn start(&mut self) -> Result<Engine, NodeError> {
        let now = sys_time::now();
        self.newest = boots::next(self.newest, now.wall);
        if let Err(error) = boots::write(self.settings, self.newest) {
            let path = boots::path(self.settings);
            tracing::warn!(path = %path.display(), %error, "cannot keep this node's boot: should the clock go back before its next start, it would not be heard");
        }
        if self.notices.is_none() {
            let made = Notices::new(self.settings);
            let missing = |error: &io::Error| tracing::warn!(%error, "there will be no exit notices");
            self.notices = made.inspect_err(missing).ok();
        }
        if let Some(notices) = &mut self.notices {
            notices.prepare(self.newest);
        }
        let child = (self.command)(self.newest).spawn().map_err(system("start the engine"))?;
        tracing::info!(boot = self.newest.0, "engine pid {}", child.id());
        let pidfd = PidFd::open(child.id()).map_err(system("watch the engine"))?;
        let (fd, interest) = (pidfd.as_raw_fd(), Interest::READABLE);
        let registered = self.poll.registry().register(&mut SourceFd(&fd), ENGINE, interest);
        registered.map_err(system("watch the engine"))?;
        Ok(Engine { child, pidfd, started: now.mono })
    }

    /// Passes requests on to the engine until it has ended, which the peers then have been told.
    fn watch(&mut self, mut engine: Engine) -> Result<End, NodeError> {
        let (mut passed_on, mut kill_at) = (0, Nanos::MAX);
        let (mut reloads, mut reload_at) = (self.requests.reloads.load(Relaxed), Nanos::MAX);
        while !self.wait(kill_at.min(reload_at))? {
            let (asked, now) = (self.asked().min(2), sys_time::mono());
            let reload = self.requests.reloads.load(Relaxed);
            if std::mem::replace(&mut reloads, reload) != reload {
                reload_at = now.max(engine.started + HEARS_AFTER);
            }
            if now >= reload_at {
                // As below.
                let _ = signal(engine.child.id(), Signal::Reload);
                reload_at = Nanos::MAX;
            }
            if asked > passed_on {
                passed_on = asked;
                let (what, grace) = match asked {
                    1 => (Signal::Terminate, self.settings.drain_within + DRAIN_GRACE),
                    _ => (Signal::EndNow, END_GRACE),
                };
                kill_at = kill_at.min(now + grace);
                // It may have ended just now. A frozen one would not hear that it is to end at once.
                let _ = signal(engine.child.id(), what);
                if what == Signal::EndNow {
                    let _ = signal(engine.child.id(), Signal::Continue);
                }
            }
            if now >= kill_at {
                tracing::warn!("the engine does not end: it is killed");
                let _ = engine.child.kill();
                kill_at = Nanos::MAX;
            }
        }
        let _ = self.poll.registry().deregister(&mut SourceFd(&engine.pidfd.as_raw_fd()));
        engine.child.wait().map(End::from).map_err(system("wait for the engine"))
    }

    /// Waits until `until`, or until the node is asked to end; in any case until the peers have been told.
    fn pause(&mut self, until: Nanos) -> Result<(), NodeError> {
        loop {
            let telling = self.notices.as_ref().is_some_and(|notices| notices.due() != Nanos::MAX);
            let over = self.asked() > 0 || sys_time::mono() >= until;
            match (telling, over) {
                (false, true) => return Ok(()),
                (true, true) => self.wait(Nanos::MAX)?,
                (_, false) => self.wait(until)?,
            };
        }
    }

    /// Sleeps until `until`, and wakes earlier when something happens; true if the engine has ended. Whatever it does
    /// next, the peers are told first.
    fn wait(&mut self, until: Nanos) -> Result<bool, NodeError> {
        let due = self.notices.as_ref().map_or(Nanos::MAX, Notices::due);
        let deadline = until.min(due);
        let timeout = Duration::from_nanos(deadline.since(sys_time::mono()).0);
        match self.poll.poll(&mut self.events, (deadline != Nanos::MAX).then_some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(system("wait for the engine")(error));
            }
            _ => {}
        }
        let ended = self.events.iter().any(|event| event.token() == ENGINE);
        let now = sys_time::mono();
        if let Some(notices) = &mut self.notices {
            if ended {
                notices.begin(now);
            }
            notices.tell(now);
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests;
