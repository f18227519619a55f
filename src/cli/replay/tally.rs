//! The account of a run: every datagram sent, every answer, and what is wrong with them. Pure: it is told the
//! time.

use hdrhistogram::Histogram;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::faults::{Faults, Wanting};
use super::flows::{Flows, Silence, Stamp};
use super::lanes::{Continuity, Lanes};
use super::ledger::{Fate, Found, Ledger, Sent};
use super::traffic::Shape;
use super::window::Window;
use crate::cli::report::Latency;
use crate::types::{Nanos, NodeId};
use crate::wire::echo::{self, ECHO_TRAILER_LEN, EchoTrailer};

/// How long a datagram is remembered. One unanswered for longer is lost; a second answer that comes later than
/// this counts as corrupted.
pub const REMEMBER: Nanos = Nanos::from_secs(10);

/// What an answer must look like.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Expect {
    /// The datagram's bytes and the trailer of the `echo` application.
    Trailer,
    /// The datagram's bytes alone, as a bare forwarder returns them: no continuity can be checked.
    Plain,
}

/// The figures so far.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams answered.
    pub replied: u64,
    /// Datagrams given up on (unanswered for [`REMEMBER`], or at the end), but for...
    pub lost: u64,
    /// ...those that were lost on the wire while the service was away: the counts of their calls show that they were
    /// never executed.
    pub unaccepted: u64,
    /// Answers beyond the first, but for...
    pub duplicated: u64,
    /// ...copies of what a dying owner sent in its last moment.
    pub doubled_allowed: u64,
    /// Answers that another of the same flow and call overtook, or whose datagram was executed before one of its
    /// flow and call that was sent earlier, or before one of its call that had been answered when it was sent.
    pub reordered: u64,
    /// `unknown + bad_trailer + broken`.
    pub corrupted: u64,
    /// Answers whose bytes are those of no datagram sent; the datagram they belong to counts as lost too.
    pub unknown: u64,
    /// Answers with the right bytes and a missing or unreadable trailer.
    pub bad_trailer: u64,
    /// Answers whose per-call count went back, was used before, or left out more than the datagrams that have no
    /// answer: state was lost.
    pub broken: u64,
}

impl Counts {
    /// Nothing lost, duplicated, reordered or corrupted; what a failover excuses may have happened.
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.corrupted == 0
    }
}

/// See the module's description.
pub struct Tally {
    expect: Expect,
    counts: Counts,
    ledger: Ledger,
    lanes: Lanes,
    flows: Flows,
    latency: Histogram<u64>,
    windows: Vec<Window>,
    faults: Faults,
    /// Answers of each node, and when the last came; the last place is for ids no node can have.
    nodes: Vec<(u64, Nanos)>,
    /// See [`Tally::repeats`].
    repeats: Vec<Repeat>,
}

/// So many of the answers that came again are remembered one by one.
const MOST_REPEATS: usize = 16;

/// An answer to a datagram that had one.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// When the datagram was sent, answered, and answered again.
    pub sent: Nanos,
    /// See `sent`.
    pub first: Nanos,
    /// See `sent`.
    pub again: Nanos,
    /// It says something else: the datagram was executed twice.
    pub differs: bool,
}

/// The key under which a datagram's answer is found: its bytes and the socket it comes back to.
pub fn key(bytes: &[u8], socket: u32) -> u64 {
    xxh3_64_with_seed(bytes, u64::from(socket))
}

/// Everything a trailer says but for who answered; never 0.
fn told(trailer: &EchoTrailer) -> u64 {
    let EchoTrailer { slot, call, count, position, .. } = *trailer;
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&slot.to_le_bytes());
    bytes[4..12].copy_from_slice(&call.to_le_bytes());
    bytes[12..20].copy_from_slice(&count.to_le_bytes());
    bytes[20..].copy_from_slice(&position.0.to_le_bytes());
    xxh3_64_with_seed(&bytes, 0).max(1)
}

/// A histogram of nanoseconds up to 10 minutes, within 0.1 %.
pub(crate) fn nanos_histogram() -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 600_000_000_000, 3)
        .unwrap_or_else(|e| unreachable!("constant bounds are valid: {e}"));
    histogram.auto(true);
    histogram
}

/// Percentiles in microseconds.
pub(crate) fn percentiles(histogram: &Histogram<u64>) -> Latency {
    let at = |q| (!histogram.is_empty()).then(|| micros(histogram.value_at_quantile(q)));
    let max = (!histogram.is_empty()).then(|| micros(histogram.max()));
    Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max }
}

fn micros(nanos: u64) -> f64 {
    (nanos as f64 / 100.0).round() / 10.0
}

impl Tally {
    /// An account of traffic of this shape.
    pub fn new(shape: Shape, expect: Expect) -> Tally {
        Tally {
            expect,
            counts: Counts::default(),
            ledger: Ledger::default(),
            lanes: Lanes::new(shape.lanes),
            flows: Flows::new(shape.flows, shape.kinds),
            latency: nanos_histogram(),
            windows: Vec::new(),
            faults: Faults::default(),
            nodes: vec![(0, Nanos::ZERO); usize::from(NodeId::MAX) + 2],
            repeats: Vec::new(),
        }
    }

    /// Notes a datagram that the kernel took.
    pub fn on_sent(&mut self, sent: Sent) {
        self.counts.sent += 1;
        self.flows.on_sent(sent.flow, sent.order, sent.at);
        self.ledger.add(sent);
    }

    /// Takes an answer that came to `socket`.
    pub fn on_reply(&mut self, socket: u32, reply: &[u8], now: Nanos) {
        let (found, trailer) = match self.expect {
            Expect::Plain => (self.ledger.answer(key(reply, socket), 0, now), None),
            Expect::Trailer => match echo::split(reply) {
                Some((request, trailer)) => {
                    (self.ledger.answer(key(request, socket), told(&trailer), now), Some(trailer))
                }
                None => (self.find_without_trailer(socket, reply, now), None),
            },
        };
        match found {
            Found::Never => {
                self.counts.unknown += 1;
                self.counts.corrupted += 1;
                return;
            }
            Found::First(_) | Found::Copy(..) | Found::Again(..) => self.faults.on_arrival(now),
        }
        match found {
            Found::First(sent) => self.on_first(&sent, trailer, now),
            Found::Copy(sent, first) => self.on_copy(sent.at, first, now),
            Found::Again(sent, first) => {
                self.note_repeat(Repeat { sent: sent.at, first, again: now, differs: true });
                self.on_duplicate(now);
                // Executed once more than it was sent: that is no jump of the count.
                if let Some(trailer) = trailer {
                    self.on_count(&sent, &trailer, now);
                }
            }
            Found::Never => {}
        }
    }

    fn on_first(&mut self, sent: &Sent, trailer: Option<EchoTrailer>, now: Nanos) {
        self.counts.replied += 1;
        self.faults.on_answer(sent.at, now);
        // 10 minutes is the histogram's end; what takes longer is recorded as that.
        self.latency.saturating_record(now.since(sent.intended).0.max(1));
        let stamp = trailer.map(|trailer| Stamp { call: trailer.call, count: trailer.count });
        let (silence, mut in_order) =
            self.flows.on_reply(sent.flow, sent.kind, sent.order, stamp.unwrap_or_default(), now);
        self.note_in_window(sent, silence, now);
        if let Some(trailer) = trailer {
            let (count, last) = &mut self.nodes[usize::from(trailer.node.0.min(NodeId::MAX + 1))];
            (*count, *last) = (*count + 1, now);
            match self.on_count(sent, &trailer, now) {
                Continuity::Fits => {}
                Continuity::Reordered => in_order = false,
                // A count that starts again says nothing about order.
                Continuity::Broken => in_order = true,
            }
        } else if self.expect == Expect::Trailer {
            self.counts.bad_trailer += 1;
            self.counts.corrupted += 1;
        }
        self.counts.reordered += u64::from(!in_order);
    }

    fn on_count(&mut self, sent: &Sent, trailer: &EchoTrailer, now: Nanos) -> Continuity {
        let continuity = self.lanes.on_reply(sent, trailer, now);
        if continuity == Continuity::Broken {
            self.counts.broken += 1;
            self.counts.corrupted += 1;
        }
        continuity
    }

    /// Whose answer is it whose trailer cannot be read? Perhaps only the trailer is bad, or missing.
    fn find_without_trailer(&mut self, socket: u32, reply: &[u8], now: Nanos) -> Found {
        let request = reply.len().checked_sub(ECHO_TRAILER_LEN).and_then(|len| reply.get(..len));
        match request.map(|request| self.ledger.answer(key(request, socket), 0, now)) {
            Some(Found::First(sent)) => Found::First(sent),
            _ => match self.ledger.answer(key(reply, socket), 0, now) {
                Found::First(sent) => Found::First(sent),
                Found::Copy(..) | Found::Again(..) | Found::Never => Found::Never,
            },
        }
    }

    /// The very answer that came at `first`, to a datagram sent at `sent`, came again.
    fn on_copy(&mut self, sent: Nanos, first: Nanos, now: Nanos) {
        let repeat = Repeat { sent, first, again: now, differs: false };
        let Some(window) = self.faults.excuse_copy(repeat) else {
            self.note_repeat(repeat);
            return self.on_duplicate(now);
        };
        self.counts.doubled_allowed += 1;
        if let Some(window) = window.and_then(|number| self.windows.get_mut(number)) {
            window.doubled_allowed += 1;
        }
    }

    fn note_repeat(&mut self, repeat: Repeat) {
        if self.repeats.len() < MOST_REPEATS {
            self.repeats.push(repeat);
        }
    }

    fn on_duplicate(&mut self, now: Nanos) {
        self.counts.duplicated += 1;
        if let Some(window) = self.windows.last_mut() {
            window.on_duplicate(now);
        }
    }

    fn note_in_window(&mut self, sent: &Sent, silence: Option<Silence>, now: Nanos) {
        let number = self.windows.len() as u16;
        let Some(window) = self.windows.last_mut() else { return };
        if window.of_calls().is_none_or(|node| self.lanes.is_victim(sent.lane, number, node)) {
            window.on_answer(sent.intended, silence, now);
        }
    }

    /// Begins a window at the moment `at` (say, just before a kill); it ends with the next one. `node`: only
    /// calls that this node was answering count for its silences.
    pub fn mark(&mut self, label: &str, node: Option<NodeId>, at: Nanos, length: Nanos) {
        let last = match node {
            Some(node) => self.nodes.get(usize::from(node.0)).map(|(_, last)| *last),
            None => self.last_answer(),
        };
        self.windows.push(Window::new(label, (node, false), at, length, last.unwrap_or(at)));
    }

    /// The same for the death of the node that holds the service address: what is lost on the wire until another
    /// has it, and answers of the last moment that come again, are excused. All calls count for the silences.
    pub fn mark_outage(&mut self, label: &str, node: NodeId, at: Nanos, length: Nanos) {
        let last = self.last_answer().unwrap_or(at);
        self.faults.mark(at, self.windows.len());
        self.windows.push(Window::new(label, (Some(node), true), at, length, last));
    }

    fn last_answer(&self) -> Option<Nanos> {
        self.nodes.iter().map(|(_, last)| *last).max()
    }

    /// The first answers that came again without an excuse.
    pub fn repeats(&self) -> &[Repeat] {
        &self.repeats
    }

    /// Nobody marks anything: `expected` silences of all answers are taken for deaths of an owner.
    pub fn expect_failovers(&mut self, expected: usize) {
        self.faults.expect(expected);
    }

    /// Gives up on what has been unanswered for [`REMEMBER`]; to be called now and then.
    pub fn on_tick(&mut self, now: Nanos) {
        self.give_up(now.since(REMEMBER));
        self.faults.forget(now.since(REMEMBER));
    }

    /// Gives up on everything that is unanswered: the run is over.
    pub fn finish(&mut self) {
        self.give_up(Nanos::MAX);
        let (found, surplus) = self.faults.conclude();
        for wanting in surplus {
            match wanting {
                Wanting::Unanswered(_) => {
                    self.counts.unaccepted -= 1;
                    self.counts.lost += 1;
                }
                Wanting::Doubled(repeat) => {
                    self.note_repeat(repeat);
                    self.counts.doubled_allowed -= 1;
                    self.counts.duplicated += 1;
                }
            }
        }
        self.windows.extend(found.iter().map(Window::found));
    }

    fn give_up(&mut self, before: Nanos) {
        let Tally { ledger, flows, lanes, windows, faults, counts, expect, .. } = self;
        ledger.forget(before, |sent, fate| {
            if *expect == Expect::Plain && fate == Fate::Unstamped {
                return;
            }
            let executed = lanes.explain(sent);
            if fate == Fate::Unstamped {
                return;
            }
            let excuse = if executed { None } else { faults.excuse_unanswered(sent.at) };
            match excuse {
                Some(window) => {
                    counts.unaccepted += 1;
                    if let Some(window) = window.and_then(|number| windows.get_mut(number)) {
                        window.unaccepted += 1;
                    }
                }
                None => {
                    counts.lost += 1;
                    windows.iter_mut().for_each(|window| window.on_lost(sent.at));
                }
            }
            // Only for the newest window is it still known which calls its node was answering.
            let silence = flows.on_lost(sent.flow, sent.kind, sent.at);
            let number = windows.len() as u16;
            if let (Some(window), Some(silence)) = (windows.last_mut(), silence)
                && window.of_calls().is_none_or(|node| lanes.is_victim(sent.lane, number, node))
            {
                window.on_silence(silence);
            }
        });
        let jumps = lanes.forget(before);
        counts.broken += jumps;
        counts.corrupted += jumps;
    }

    /// The figures so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Datagrams that are neither answered nor given up on.
    pub fn outstanding(&self) -> u64 {
        self.ledger.open()
    }

    /// Answers of each node that answered at all; ids no node can have come as `NodeId::MAX + 1`.
    pub fn replies_by_node(&self) -> Vec<(NodeId, u64)> {
        let nodes = (0_u16..).zip(&self.nodes).filter(|(_, (count, _))| *count > 0);
        nodes.map(|(id, (count, _))| (NodeId(id), *count)).collect()
    }

    /// How many calls each node answered last, by node id (index). Looks at all calls: not for every tick.
    pub fn calls_by_node(&self) -> Vec<u64> {
        self.lanes.by_node()
    }

    /// The longest gap of each kind of flow.
    pub fn longest_gaps(&self) -> &[Nanos] {
        self.flows.longest()
    }

    /// The marked moments.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Time from intended sending to answer, in ns.
    pub fn latency(&self) -> &Histogram<u64> {
        &self.latency
    }
}

#[cfg(test)]
mod tests;
