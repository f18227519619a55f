//! Sends traffic at its times and takes the answers: the only part of replay with sockets and a clock.
//!
//! One thread, one epoll. Sending never waits for answers; when the thread comes late, it sends what is due
//! and the lateness is part of every figure (and reported by itself).

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use hdrhistogram::Histogram;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::ledger::Sent;
use super::outcome::Outcome;
use super::sockets::Sockets;
use super::tally::{self, Counts, Expect, Tally};
use super::traffic::Traffic;
use crate::io::sys_recv::RecvBatch;
use crate::io::sys_send::MAX_DATAGRAM;
use crate::io::sys_time::{TimerFd, mono};
use crate::types::{Nanos, NodeId};

/// How often the caller is asked.
pub const TICK: Nanos = Nanos::from_millis(5);
/// How long to listen on when all answers are in: a second answer to the last datagrams may follow.
const LINGER: Nanos = Nanos::from_millis(50);
/// Datagrams sent before answers are looked at again.
const BURST: usize = 32;
/// Datagrams received from one socket before it is another's turn.
const RECV_BATCH: usize = 32;

const TIMER: Token = Token(usize::MAX - 1);

/// Where and how a runner sends.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seat s talks to target s modulo their number. At least one.
    pub targets: Vec<SocketAddr>,
    /// What answers look like.
    pub expect: Expect,
    /// How long to wait for answers after the last datagram; at most 50 ms longer than until all are in.
    pub drain: Nanos,
    /// At most this many sockets; `None`: one for each flow of each call, or 1,024 shared ones if those are
    /// more than the limit of open files allows.
    pub sockets: Option<usize>,
    /// How many deaths of an owner that nobody marks may be found from silences of all answers. With several
    /// targets a silence of one is not seen.
    pub expect_failovers: usize,
}

/// A run that could not be set up or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No target was named.
    #[error("no target: name at least one as ADDRESS:PORT")]
    NoTarget,
    /// The sockets could not be opened.
    #[error("cannot open UDP sockets to {target}: {source}")]
    Open {
        /// The first target.
        target: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Waiting for answers failed.
    #[error("cannot wait for answers: {0}")]
    Wait(#[from] io::Error),
}

/// What the caller wants after a tick.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Control {
    /// Go on.
    Continue,
    /// Send nothing more; wait for the answers that are due and end.
    Stop,
}

/// The run as it is now, for the caller's tick.
pub struct Live<'a> {
    /// Since the start of the schedule.
    pub now: Nanos,
    /// Everything has been sent; only answers are waited for.
    pub draining: bool,
    start: Nanos,
    tally: &'a mut Tally,
}

impl Live<'_> {
    /// The figures so far; `lost` grows only when a datagram is given up on.
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Datagrams still without an answer.
    pub fn outstanding(&self) -> u64 {
        self.tally.outstanding()
    }

    /// Answers of each node that answered at all.
    pub fn replies_by_node(&self) -> Vec<(NodeId, u64)> {
        self.tally.replies_by_node()
    }

    /// How many calls (as the engine sees them) each node answered last, by node id. Looks at all calls.
    pub fn calls_by_node(&self) -> Vec<u64> {
        self.tally.calls_by_node()
    }

    /// Begins a window at this very moment: call it just before killing something. `node`: only the calls that
    /// this node is answering count for the window's gap. Silences that begin later than `length` from now do
    /// not count; the next mark ends the window.
    pub fn mark(&mut self, label: &str, node: Option<NodeId>, length: Nanos) {
        self.tally.mark(label, node, mono().since(self.start), length);
    }

    /// The same for the node that holds the service address, which is about to be killed, alone or with its host:
    /// what is lost on the wire until another has the address is counted apart, and so are answers of the node's
    /// last moment that come again. All calls count for the window's gap.
    pub fn mark_outage(&mut self, label: &str, node: NodeId, length: Nanos) {
        self.tally.mark_outage(label, node, mono().since(self.start), length);
    }
}

/// See the module's description.
pub struct Runner<T> {
    traffic: T,
    options: Options,
    tally: Tally,
    sockets: Sockets,
    poll: Poll,
    timer: TimerFd,
    batch: RecvBatch,
    bytes: Vec<u8>,
    /// Sockets that may hold more answers although epoll will not say so again.
    unread: VecDeque<u32>,
    lateness: Histogram<u64>,
    unsent: u64,
    refused: u64,
    start: Nanos,
}

impl<T: Traffic> Runner<T> {
    /// Opens the sockets.
    ///
    /// # Errors
    /// When there is no target or a socket cannot be opened.
    pub fn new(traffic: T, options: Options) -> Result<Runner<T>, RunError> {
        let target = *options.targets.first().ok_or(RunError::NoTarget)?;
        let (poll, timer) = (Poll::new()?, TimerFd::new()?);
        poll.registry().register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        let sockets = Sockets::open(traffic.shape(), &options.targets, options.sockets, poll.registry())
            .map_err(|source| RunError::Open { target, source })?;
        let mut tally = Tally::new(traffic.shape(), options.expect);
        tally.expect_failovers(options.expect_failovers);
        Ok(Runner {
            tally,
            batch: RecvBatch::new(RECV_BATCH, MAX_DATAGRAM),
            bytes: Vec::with_capacity(2048),
            unread: VecDeque::new(),
            lateness: tally::nanos_histogram(),
            unsent: 0,
            refused: 0,
            start: Nanos::ZERO,
            traffic,
            options,
            sockets,
            poll,
            timer,
        })
    }

    /// How many sockets there are, and whether flows share them.
    pub fn sockets(&self) -> (usize, bool) {
        (self.sockets.count(), self.sockets.are_shared())
    }

    /// The number of datagrams to be sent in all, where that is known.
    pub fn total(&self) -> Option<u64> {
        self.traffic.total()
    }

    /// Sends everything, asking `on_tick` about every [`TICK`], and returns what was found.
    ///
    /// # Errors
    /// Only when waiting fails; what sockets report is counted.
    pub fn run(&mut self, on_tick: &mut dyn FnMut(&mut Live<'_>) -> Control) -> Result<Outcome, RunError> {
        let mut events = Events::with_capacity(1024);
        self.start = mono();
        let (mut next_tick, mut drain_until, mut stopped) = (Nanos::ZERO, None::<Nanos>, false);
        loop {
            let now = self.now();
            if !stopped {
                self.send_due(now);
            }
            let due = if stopped { None } else { self.traffic.due() };
            if due.is_none() {
                let until = drain_until.get_or_insert(now + self.options.drain);
                if self.tally.outstanding() == 0 {
                    *until = (now + LINGER).min(*until);
                }
                if now >= *until {
                    break;
                }
            }
            if now >= next_tick {
                self.tally.on_tick(now);
                let (start, draining) = (self.start, due.is_none());
                let mut live = Live { now, draining, start, tally: &mut self.tally };
                stopped |= on_tick(&mut live) == Control::Stop;
                next_tick = now + TICK;
            }
            self.wait(due.unwrap_or(Nanos::MAX).min(next_tick), &mut events)?;
            self.receive(&events);
        }
        let elapsed = self.now();
        self.tally.finish();
        Ok(Outcome::new(&self.tally, &self.traffic, &self.lateness, self.unsent, self.refused, elapsed))
    }

    /// Since the start.
    fn now(&self) -> Nanos {
        mono().since(self.start)
    }

    fn send_due(&mut self, mut now: Nanos) {
        for _ in 0..BURST {
            if self.traffic.due().is_none_or(|due| due > now) {
                return;
            }
            let Some(packet) = self.traffic.next(&mut self.bytes) else { return };
            let number = self.sockets.of(&packet);
            let Some(socket) = self.sockets.get(number) else { return };
            let (taken, refused) = send(socket, &self.bytes);
            self.refused += refused;
            if !taken {
                self.unsent += 1;
                continue;
            }
            self.lateness.saturating_record(now.since(packet.intended).0.max(1));
            self.tally.on_sent(Sent {
                hash: tally::key(&self.bytes, number),
                intended: packet.intended,
                at: now,
                lane: packet.lane,
                flow: packet.flow,
                order: packet.order,
                kind: packet.kind,
            });
            now = self.now();
        }
    }

    fn wait(&mut self, until: Nanos, events: &mut Events) -> io::Result<()> {
        let at_once = until <= self.now() || !self.unread.is_empty();
        let timeout = if at_once {
            Some(Duration::ZERO)
        } else {
            self.timer.arm(self.start + until)?;
            None
        };
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }

    fn receive(&mut self, events: &Events) {
        for _ in 0..self.unread.len() {
            if let Some(number) = self.unread.pop_front() {
                self.receive_from(number);
            }
        }
        for event in events {
            if event.token() == TIMER {
                self.timer.take();
            } else {
                self.receive_from(event.token().0 as u32);
            }
        }
    }

    fn receive_from(&mut self, number: u32) {
        let Some(socket) = self.sockets.get(number) else { return };
        let count = match self.batch.recv(socket.as_fd()) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {
                // An ICMP error was waiting in front of the answers, if there are any.
                self.refused += 1;
                self.unread.push_back(number);
                return;
            }
        };
        if count == self.batch.capacity() {
            self.unread.push_back(number);
        }
        let now = mono().since(self.start);
        for index in 0..count {
            if let Some(received) = self.batch.get(index) {
                self.tally.on_reply(number, received.bytes, now);
            }
        }
    }
}

/// Whether the kernel took it, and how many ICMP errors were in its way: a pending error of an earlier
/// datagram is reported instead of sending, once (`udp(7)`).
fn send(socket: &UdpSocket, bytes: &[u8]) -> (bool, u64) {
    let mut refused = 0;
    for _ in 0..3 {
        match socket.send(bytes) {
            Ok(_) => return (true, refused),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => refused += 1,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    (false, refused)
}
