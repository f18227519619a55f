//! One shard's media ports on the service addresses that this node holds.
//!
//! A port names its slot and a slot its shard, so only that shard has it, and what arrives needs no ring. Either each port
//! is a socket (`bound`), or the kernel steers all of them to one (`steered`, `TANDEM_MEDIA_STEER`); the loop need not
//! know. Ports are opened and closed in steps, a few at a time, so that the loop is not late. Media that cannot leave at
//! once is dropped: late media is worth nothing.

mod bound;
mod steered;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use self::bound::Bound;
use self::steered::Steered;
use super::steer::{SteerError, Steering};
use super::sys_recv::RecvBatch;
use super::sys_send::{SendBatch, Sent};
use super::sys_socket::Buffers;
use super::tally::Tally;
use crate::app::media::MediaPorts;
use crate::types::{LocalId, Nanos};

/// The token of the first socket; beyond those of all others.
pub const FIRST_MEDIA: usize = 1 << 24;
/// How soon a step that failed is tried again.
const OPEN_AGAIN: Nanos = Nanos::from_millis(500);
/// How often the log is told of it.
const COMPLAIN_EVERY: Nanos = Nanos::from_secs(10);
/// The most bytes that wait to be sent; what is over is dropped.
const QUEUE_BYTES: usize = 4 << 20;
/// Datagrams from one source in one system call.
const RUN: usize = 32;
/// Bytes in one system call.
const RUN_BYTES: usize = RUN << 16;

/// The media ports of one shard: which, and where.
#[derive(Clone, Debug)]
pub struct MediaPlan {
    /// How ports are dealt to slots.
    pub ports: MediaPorts,
    /// By number of service address: its IP, and the first endpoint on it.
    pub addresses: Vec<(IpAddr, u16)>,
    /// How many shards a node has, and which one this is.
    pub shards: u16,
    /// See `shards`.
    pub shard: u16,
}

impl MediaPlan {
    /// The ports of service address number `address` that belong to this shard.
    fn ports_of(&self, address: u16) -> impl Iterator<Item = u16> {
        (self.ports.first..=self.ports.last).filter(move |port| self.is_mine(address, *port))
    }

    fn is_mine(&self, address: u16, port: u16) -> bool {
        self.ports.slot_of(address, port).is_some_and(|slot| slot.0 % self.shards == self.shard)
    }
}

/// How datagrams reach this shard and leave it. A *step* is what is opened and closed at once, an *inlet* a socket that is
/// read, a *source* whatever neighbours in the queue must have in common to leave by one system call.
#[derive(Debug)]
enum Carrier {
    Bound(Bound),
    Steered(Steered),
}

impl Default for Carrier {
    fn default() -> Carrier {
        Carrier::Bound(Bound::default())
    }
}

impl Carrier {
    /// The steps of a service address.
    fn steps(&self, address: u16) -> Range<usize> {
        match self {
            Carrier::Bound(bound) => bound.steps(address),
            Carrier::Steered(_) => usize::from(address)..usize::from(address) + 1,
        }
    }

    /// The service address of a step or a source: both are numbered alike.
    fn address_of(&self, step: usize) -> u16 {
        match self {
            Carrier::Bound(bound) => bound.address_of(step),
            Carrier::Steered(_) => step as u16,
        }
    }

    /// How many ports a step opens.
    fn weight(&self, step: usize) -> usize {
        match self {
            Carrier::Bound(_) => 1,
            Carrier::Steered(steered) => steered.ports(step),
        }
    }

    /// The port that a step opens, if it is but one.
    fn port_of(&self, step: usize) -> Option<LocalId> {
        match self {
            Carrier::Bound(bound) => Some(bound.local(step)),
            Carrier::Steered(_) => None,
        }
    }

    /// True if the step was not open. With a number, that inlet is new.
    fn open(&mut self, step: usize) -> io::Result<(bool, Option<usize>)> {
        match self {
            Carrier::Bound(bound) => bound.open(step).map(|new| (new, new.then_some(step))),
            Carrier::Steered(steered) => steered.open(step),
        }
    }

    /// True if the step was open.
    fn close(&mut self, step: usize) -> bool {
        match self {
            Carrier::Bound(bound) => bound.close(step),
            Carrier::Steered(steered) => steered.close(step),
        }
    }

    fn inlet(&self, number: usize) -> Option<BorrowedFd<'_>> {
        match self {
            Carrier::Bound(bound) => bound.socket(number),
            Carrier::Steered(steered) => steered.inlet(number),
        }
    }

    /// Where a datagram arrived that came in by an inlet; none: at no port that this shard has open.
    fn arrived(&self, inlet: usize, destination: Option<SocketAddr>) -> Option<LocalId> {
        match self {
            Carrier::Bound(bound) => Some(bound.local(inlet)),
            Carrier::Steered(steered) => steered.arrived(destination?),
        }
    }

    fn source(&self, local: LocalId) -> Option<u32> {
        match self {
            Carrier::Bound(bound) => bound.place(local),
            Carrier::Steered(steered) => steered.source(local),
        }
    }

    /// What sends for a source; none: it is not open.
    fn outlet(&self, source: u32) -> Option<BorrowedFd<'_>> {
        match self {
            Carrier::Bound(bound) => bound.socket(source as usize),
            Carrier::Steered(steered) => steered.outlet(source),
        }
    }

    /// Whether a datagram may share a system call with others.
    fn may_share(&self, waiting: &Waiting) -> bool {
        match self {
            Carrier::Bound(_) => true,
            Carrier::Steered(steered) => steered.may_share(waiting),
        }
    }

    /// Gives a datagram to a run for its outlet; false if it cannot be sent.
    fn push(&self, run: &mut SendBatch, tag: u64, waiting: &Waiting, bytes: &[u8]) -> bool {
        match self {
            Carrier::Bound(_) => run.push(Some(waiting.to), tag, bytes),
            Carrier::Steered(steered) => steered.push(run, tag, waiting, bytes),
        }
    }

    /// Sends a datagram that its outlet does not take because of its length; false if that fails.
    fn send_alone(&self, waiting: &Waiting, bytes: &[u8]) -> bool {
        match self {
            Carrier::Bound(_) => false,
            Carrier::Steered(steered) => steered.send_alone(waiting, bytes).is_ok(),
        }
    }
}

/// One service address.
#[derive(Debug)]
struct Address {
    ip: IpAddr,
    /// The first endpoint on it.
    endpoint: u16,
    /// What is to become of its steps: open, or closed.
    wish: bool,
    steps: Range<usize>,
    /// Up to here its steps are as wished.
    done: usize,
    /// When it may go on.
    not_before: Nanos,
}

/// A datagram that waits to leave.
#[derive(Copy, Clone, Debug)]
struct Waiting {
    tag: u64,
    source: u32,
    port: u16,
    to: SocketAddr,
    start: usize,
    len: usize,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct MediaSockets {
    carrier: Carrier,
    addresses: Vec<Address>,
    /// Inlets to be read, each once: `marked` says which are in the list.
    ready: VecDeque<u32>,
    marked: Vec<bool>,
    /// Steps to be done before all others.
    urgent: VecDeque<u32>,
    /// Steps that failed, to be tried again.
    failed: Vec<u32>,
    retry_at: Nanos,
    quiet_until: Nanos,
    /// How many ports are open.
    open: usize,
    queue: VecDeque<Waiting>,
    bytes: Vec<u8>,
    run: Option<SendBatch>,
}

impl MediaSockets {
    /// Ports as planned, a socket each, none of them open; without a plan there are none.
    pub fn new(plan: Option<&MediaPlan>) -> MediaSockets {
        let Some(plan) = plan else { return MediaSockets::default() };
        MediaSockets::over(Carrier::Bound(Bound::new(plan)), plan)
    }

    /// Ports as planned, reached by steering, on no address yet. The sockets ask for `buffers`.
    ///
    /// # Errors
    /// See [`SteerError`].
    pub fn steered(
        plan: &MediaPlan,
        steering: Arc<Steering>,
        buffers: Buffers,
    ) -> Result<MediaSockets, SteerError> {
        let steered = Steered::new(plan, steering, buffers)?;
        Ok(MediaSockets::over(Carrier::Steered(steered), plan))
    }

    fn over(carrier: Carrier, plan: &MediaPlan) -> MediaSockets {
        let address = |((ip, endpoint), number): (&(IpAddr, u16), u16)| {
            let steps = carrier.steps(number);
            let (ip, endpoint) = (*ip, *endpoint);
            Address { ip, endpoint, wish: false, done: steps.end, steps, not_before: Nanos::ZERO }
        };
        let addresses = plan.addresses.iter().zip(0..).map(address).collect();
        MediaSockets {
            addresses,
            carrier,
            run: Some(SendBatch::new(RUN, RUN_BYTES, false)),
            retry_at: Nanos::MAX,
            ..MediaSockets::default()
        }
    }

    /// How many ports are open, of how many that this shard has on the addresses that are held.
    pub fn opened(&self) -> (usize, usize) {
        let held = self.addresses.iter().filter(|address| address.wish);
        let wanted =
            held.flat_map(|address| address.steps.clone()).map(|step| self.carrier.weight(step)).sum();
        (self.open, wanted)
    }

    /// Wants the ports of service address number `number` open from `at` on, those first that are in use: calls wait for
    /// them.
    pub fn open_all(&mut self, number: u16, at: Nanos, in_use: impl Fn(LocalId) -> bool) {
        let Some(steps) = self.wish(number, true, at) else { return };
        let first = steps.filter(|step| self.carrier.port_of(*step).is_some_and(&in_use));
        self.urgent.extend(first.map(|step| step as u32));
    }

    /// Wants the ports of service address number `number` closed from `at` on.
    pub fn close_all(&mut self, number: u16, at: Nanos) {
        self.wish(number, false, at);
    }

    /// Notes what is to become of the ports of an address; its steps, if that is news.
    fn wish(&mut self, number: u16, wish: bool, at: Nanos) -> Option<Range<usize>> {
        let address = self.addresses.get_mut(usize::from(number)).filter(|address| address.wish != wish)?;
        (address.wish, address.done, address.not_before) = (wish, address.steps.start, at);
        Some(address.steps.clone())
    }

    /// When there is something to open or close; [`Nanos::MAX`]: nothing.
    pub fn due(&self) -> Nanos {
        let waiting = self.addresses.iter().filter(|a| a.done < a.steps.end).map(|a| a.not_before);
        let again = if self.failed.is_empty() { Nanos::MAX } else { self.retry_at };
        waiting.min().unwrap_or(Nanos::MAX).min(again)
    }

    /// Opens and closes what is due while `go_on`. What a socket still holds that is to be closed is given up: who sends
    /// media goes on sending it.
    ///
    /// # Errors
    /// From `epoll_ctl(2)`.
    pub fn settle(
        &mut self,
        now: Nanos,
        registry: &Registry,
        mut go_on: impl FnMut() -> bool,
    ) -> io::Result<()> {
        if !self.failed.is_empty() && self.retry_at <= now {
            self.retry_at = Nanos::MAX;
            for step in std::mem::take(&mut self.failed) {
                if self.address(step as usize).wish {
                    self.open(now, step as usize, registry)?;
                }
            }
        }
        while let Some(step) = self.urgent.front().map(|step| *step as usize) {
            let Address { wish, not_before, .. } = *self.address(step);
            if not_before > now {
                break;
            }
            if !go_on() {
                return Ok(());
            }
            self.urgent.pop_front();
            if wish {
                self.open(now, step, registry)?;
            }
        }
        for number in 0..self.addresses.len() {
            let Address { wish, not_before, ref steps, .. } = self.addresses[number];
            let end = steps.end;
            while self.addresses[number].done < end && not_before <= now {
                if !go_on() {
                    return Ok(());
                }
                let step = self.addresses[number].done;
                self.addresses[number].done += 1;
                if wish {
                    self.open(now, step, registry)?;
                } else if self.carrier.close(step) {
                    self.open -= self.carrier.weight(step);
                }
            }
        }
        Ok(())
    }

    fn address(&self, step: usize) -> &Address {
        &self.addresses[usize::from(self.carrier.address_of(step))]
    }

    fn open(&mut self, now: Nanos, step: usize, registry: &Registry) -> io::Result<()> {
        match self.carrier.open(step) {
            Ok((new, inlet)) => {
                self.open += if new { self.carrier.weight(step) } else { 0 };
                let Some((number, fd)) = inlet.and_then(|number| Some((number, self.carrier.inlet(number)?)))
                else {
                    return Ok(());
                };
                let token = Token(FIRST_MEDIA + number);
                registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
                self.marked.resize(self.marked.len().max(number + 1), false);
            }
            Err(error) => {
                if now >= self.quiet_until {
                    self.quiet_until = now + COMPLAIN_EVERY;
                    let ip = self.address(step).ip;
                    let port = self.carrier.port_of(step).map(|local| local.port);
                    tracing::error!(%ip, port, %error, "no media can be received there, and calls that get it will have none: stop the process that has the port, or change TANDEM_MEDIA_PORTS; tried again");
                }
                self.failed.push(step as u32);
                self.retry_at = self.retry_at.min(now + OPEN_AGAIN);
            }
        }
        Ok(())
    }

    /// The inlet with this number is to be read.
    pub fn mark(&mut self, number: usize) {
        if let Some(marked) = self.marked.get_mut(number)
            && !std::mem::replace(marked, true)
        {
            self.ready.push_back(number as u32);
        }
    }

    /// Whether something is to be read.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// How many datagrams are to be taken by one system call.
    pub fn batch(&self) -> usize {
        match self.carrier {
            Carrier::Bound(_) => bound::BATCH,
            Carrier::Steered(_) => steered::BATCH,
        }
    }

    /// How often [`MediaSockets::recv`] is to be called in a turn.
    pub fn reads(&self) -> usize {
        match self.carrier {
            Carrier::Bound(_) => bound::READS.min(self.ready.len()),
            Carrier::Steered(_) => steered::READS * self.ready.len(),
        }
    }

    /// Reads the inlet that has waited longest; which that was, and how many datagrams came.
    pub fn recv(&mut self, batch: &mut RecvBatch) -> Option<(usize, usize)> {
        let number = self.ready.pop_front()? as usize;
        self.marked[number] = false;
        let Some(inlet) = self.carrier.inlet(number) else { return Some((number, 0)) };
        let received = batch.recv(inlet);
        let more = match &received {
            // A short batch means that it is dry: what comes later makes a new event.
            Ok(count) => *count == batch.capacity(),
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        if more {
            self.mark(number);
        }
        Some((number, received.unwrap_or(0)))
    }

    /// Where a datagram arrived that came in by an inlet; none: at a port that this shard does not have open (any more).
    pub fn arrived(&self, inlet: usize, destination: Option<SocketAddr>) -> Option<LocalId> {
        self.carrier.arrived(inlet, destination)
    }

    /// How many datagrams the kernel dropped because too many waited. Sockets of single ports are not asked: there are
    /// thousands, and each has room for seconds of a stream.
    pub fn kernel_drops(&self) -> u64 {
        match &self.carrier {
            Carrier::Bound(_) => 0,
            Carrier::Steered(steered) => steered.kernel_drops(),
        }
    }

    /// Queues a datagram. `tag` must not be lower than the one before; see [`MediaSockets::first_unsent`].
    pub fn push(&mut self, tag: u64, local: LocalId, to: SocketAddr, bytes: &[u8], tally: &mut Tally) {
        let Some(source) = self.carrier.source(local) else {
            tally.dropped.client_no_endpoint += 1;
            return;
        };
        if self.bytes.len() + bytes.len() > QUEUE_BYTES {
            tally.dropped.client_queue_full += 1;
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.queue.push_back(Waiting { tag, source, port: local.port, to, start, len: bytes.len() });
    }

    /// Drops what waits to leave from the service address whose first endpoint is `endpoint`; how many datagrams that
    /// were.
    pub fn drop_waiting(&mut self, endpoint: u16) -> usize {
        let address = self.addresses.iter().position(|address| address.endpoint == endpoint);
        let Some(address) = address else { return 0 };
        let (before, carrier) = (self.queue.len(), &self.carrier);
        self.queue.retain(|waiting| usize::from(carrier.address_of(waiting.source as usize)) != address);
        before - self.queue.len()
    }

    /// The tag of the oldest datagram that still waits.
    pub fn first_unsent(&self) -> Option<u64> {
        self.queue.front().map(|waiting| waiting.tag)
    }

    /// Sends what is queued, while `may_release`, which is asked before each system call. Neighbours from one source share
    /// one.
    pub fn flush(&mut self, tally: &mut Tally, may_release: impl Fn() -> bool) {
        let Some(run) = &mut self.run else { return };
        let bytes = |waiting: &Waiting| &self.bytes[waiting.start..waiting.start + waiting.len];
        while let Some(front) = self.queue.front() {
            if !may_release() {
                tally.client_held += 1;
                return;
            }
            let carrier = &self.carrier;
            let share = |waiting: &&Waiting| waiting.source == front.source && carrier.may_share(waiting);
            // None, if the front goes alone.
            let same = self.queue.iter().take(RUN).take_while(share).count();
            let Some(outlet) = carrier.outlet(front.source) else {
                tally.dropped.client_address_lost += same.max(1) as u64;
                self.queue.drain(..same.max(1));
                continue;
            };
            let mut count = |sent: bool| match sent {
                true => tally.media_sent += 1,
                false => tally.dropped.client_send_failed += 1,
            };
            if same == 0 {
                count(carrier.send_alone(front, bytes(front)));
            }
            for (waiting, index) in self.queue.range(..same).zip(0..) {
                count(carrier.push(run, index, waiting, bytes(waiting)));
            }
            loop {
                match run.send(outlet) {
                    Sent::All | Sent::Held => break,
                    Sent::Blocked => {
                        let dropped = run.clear() as u64;
                        tally.media_sent -= dropped;
                        tally.dropped.media_send_full += dropped;
                        break;
                    }
                    Sent::Refused(error) => {
                        let refused = run.front_tag().and_then(|index| self.queue.get(index as usize));
                        let too_long = error.raw_os_error() == Some(libc::EMSGSIZE);
                        let sent = refused.filter(|_| too_long);
                        if !sent.is_some_and(|waiting| carrier.send_alone(waiting, bytes(waiting))) {
                            tally.dropped.client_send_failed += 1;
                            tally.media_sent -= 1;
                        }
                        run.skip();
                    }
                }
            }
            self.queue.drain(..same.max(1));
        }
        self.bytes.clear();
    }

    /// Whether nothing is queued.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests;
