//! The account of a run: every datagram sent, every answer, and what is wrong with them. Pure: it is told the
//! time.

use hdrhistogram::Histogram;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::flows::{Flows, Stamp};
use super::lanes::{Continuity, Lanes};
use super::ledger::{Found, Ledger, Sent};
use super::traffic::Shape;
use super::window::Window;
use crate::cli::report::Latency;
use crate::types::{Nanos, NodeId};
use crate::wire::echo::{self, ECHO_TRAILER_LEN};

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
    /// Datagrams given up on (unanswered for [`REMEMBER`], or at the end).
    pub lost: u64,
    /// Answers beyond the first.
    pub duplicated: u64,
    /// Answers that another of the same flow and call overtook, or whose datagram was executed before one of its
    /// flow and call that was sent earlier, or before one of its call that had been answered when it was sent.
    pub reordered: u64,
    /// `unknown + bad_trailer + broken`.
    pub corrupted: u64,
    /// Answers whose bytes are those of no datagram sent; the datagram they belong to counts as lost too.
    pub unknown: u64,
    /// Answers with the right bytes and a missing or unreadable trailer.
    pub bad_trailer: u64,
    /// Answers whose per-call count went back or was used before: state was lost.
    pub broken: u64,
}

impl Counts {
    /// Nothing lost, duplicated, reordered or corrupted.
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
    /// Answers of each node, and when the last came; the last place is for ids no node can have.
    nodes: Vec<(u64, Nanos)>,
}

/// The key under which a datagram's answer is found: its bytes and the socket it comes back to.
pub fn key(bytes: &[u8], socket: u32) -> u64 {
    xxh3_64_with_seed(bytes, u64::from(socket))
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
            nodes: vec![(0, Nanos::ZERO); usize::from(NodeId::MAX) + 2],
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
            Expect::Plain => (self.ledger.answer(key(reply, socket), 0), None),
            Expect::Trailer => match echo::split(reply) {
                Some((request, trailer)) => {
                    (self.ledger.answer(key(request, socket), trailer.count), Some(trailer))
                }
                None => (self.find_without_trailer(socket, reply), None),
            },
        };
        let sent = match found {
            Found::First(sent) => sent,
            Found::Again => return self.on_duplicate(now),
            Found::Never => {
                self.counts.unknown += 1;
                self.counts.corrupted += 1;
                return;
            }
        };
        self.counts.replied += 1;
        // 10 minutes is the histogram's end; what takes longer is recorded as that.
        self.latency.saturating_record(now.since(sent.intended).0.max(1));
        let stamp = trailer.map(|trailer| Stamp { call: trailer.call, count: trailer.count });
        let (silence, mut in_order) =
            self.flows.on_reply(sent.flow, sent.kind, sent.order, stamp.unwrap_or_default(), now);
        self.note_in_window(&sent, silence, now);
        if let Some(trailer) = trailer {
            let (count, last) = &mut self.nodes[usize::from(trailer.node.0.min(NodeId::MAX + 1))];
            (*count, *last) = (*count + 1, now);
            match self.lanes.on_reply(&sent, &trailer, now) {
                Continuity::Fits => {}
                Continuity::Reordered => in_order = false,
                Continuity::Broken => {
                    // A count that starts again says nothing about order.
                    in_order = true;
                    self.counts.broken += 1;
                    self.counts.corrupted += 1;
                }
            }
        } else if self.expect == Expect::Trailer {
            self.counts.bad_trailer += 1;
            self.counts.corrupted += 1;
        }
        self.counts.reordered += u64::from(!in_order);
    }

    /// Whose answer is it whose trailer cannot be read? Perhaps only the trailer is bad, or missing.
    fn find_without_trailer(&mut self, socket: u32, reply: &[u8]) -> Found {
        let request = reply.len().checked_sub(ECHO_TRAILER_LEN).and_then(|len| reply.get(..len));
        match request.map(|request| self.ledger.answer(key(request, socket), 0)) {
            Some(Found::First(sent)) => Found::First(sent),
            _ => match self.ledger.answer(key(reply, socket), 0) {
                Found::First(sent) => Found::First(sent),
                Found::Again | Found::Never => Found::Never,
            },
        }
    }

    fn on_duplicate(&mut self, now: Nanos) {
        self.counts.duplicated += 1;
        if let Some(window) = self.windows.last_mut() {
            window.on_duplicate(now);
        }
    }

    fn note_in_window(&mut self, sent: &Sent, silence: Option<super::flows::Silence>, now: Nanos) {
        let number = self.windows.len() as u16;
        let Some(window) = self.windows.last_mut() else { return };
        if window.node.is_none_or(|node| self.lanes.is_victim(sent.lane, number, node)) {
            window.on_answer(silence, now);
        }
    }

    /// Begins a window at the moment `at` (say, just before a kill); it ends with the next one. `node`: only
    /// calls that this node was answering count for its silences.
    pub fn mark(&mut self, label: &str, node: Option<NodeId>, at: Nanos, length: Nanos) {
        let last = match node {
            Some(node) => self.nodes.get(usize::from(node.0)).map(|(_, last)| *last),
            None => self.nodes.iter().map(|(_, last)| *last).max(),
        };
        self.windows.push(Window::new(label, node, at, length, last.unwrap_or(at)));
    }

    /// Gives up on what has been unanswered for [`REMEMBER`]; to be called now and then.
    pub fn on_tick(&mut self, now: Nanos) {
        self.give_up(now.since(REMEMBER));
    }

    /// Gives up on everything that is unanswered: the run is over.
    pub fn finish(&mut self) {
        self.give_up(Nanos::MAX);
    }

    fn give_up(&mut self, before: Nanos) {
        let Tally { ledger, flows, lanes, windows, counts, .. } = self;
        ledger.forget(before, |sent| {
            counts.lost += 1;
            let silence = flows.on_lost(sent.flow, sent.kind, sent.at);
            for window in windows.iter_mut() {
                window.on_lost(sent.at);
            }
            // Only for the newest window is it still known which calls its node was answering.
            let number = windows.len() as u16;
            if let (Some(window), Some(silence)) = (windows.last_mut(), silence)
                && window.node.is_none_or(|node| lanes.is_victim(sent.lane, number, node))
            {
                window.on_silence(silence);
            }
        });
        lanes.forget(before);
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
