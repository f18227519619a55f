//! What a run found, as figures, as a report and as text.

use std::fmt::{self, Write as _};

use hdrhistogram::Histogram;

use super::tally::{Counts, Repeat, Tally, percentiles};
use super::traffic::Traffic;
use super::window::Window;
use crate::cli::report::{Kill, Latency, Report};
use crate::types::{Nanos, NodeId};

/// Duplicates whose delay is printed.
const NAMED_REPEATS: usize = 4;
/// How many flows the summary names.
const NAMED_FLOWS: usize = 5;

/// What a run found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The figures.
    pub counts: Counts,
    /// From the intended send time to the answer.
    pub latency: Latency,
    /// From the intended to the real send time: the generator's own part in the latency.
    pub lateness: Latency,
    /// The longest gap of each kind of flow that had one, longest first, with the flow's name.
    pub gaps: Vec<(String, Nanos)>,
    /// Answers of each node.
    pub replies_by_node: Vec<(NodeId, u64)>,
    /// What was marked.
    pub windows: Vec<Window>,
    /// The first answers that came again without an excuse.
    pub repeats: Vec<Repeat>,
    /// Datagrams the system did not take (not in `counts.sent`).
    pub unsent: u64,
    /// Port-unreachable and other errors that the sockets reported.
    pub refused: u64,
    /// From the start to the last answer waited for.
    pub elapsed: Nanos,
}

impl Outcome {
    pub(crate) fn new(
        tally: &Tally,
        traffic: &impl Traffic,
        lateness: &Histogram<u64>,
        unsent: u64,
        refused: u64,
        elapsed: Nanos,
    ) -> Outcome {
        let mut gaps: Vec<_> = (0_u32..).zip(tally.longest_gaps()).filter(|(_, gap)| gap.0 > 0).collect();
        gaps.sort_by_key(|(_, gap)| std::cmp::Reverse(**gap));
        Outcome {
            counts: tally.counts(),
            latency: percentiles(tally.latency()),
            lateness: percentiles(lateness),
            gaps: gaps.into_iter().map(|(kind, gap)| (traffic.kind_name(kind), *gap)).collect(),
            replies_by_node: tally.replies_by_node(),
            windows: tally.windows().to_vec(),
            repeats: tally.repeats().to_vec(),
            unsent,
            refused,
            elapsed,
        }
    }

    /// The longest gap of any flow; `None` if nothing was answered.
    pub fn longest_gap(&self) -> Option<Nanos> {
        self.gaps.first().map(|(_, gap)| *gap)
    }

    /// Everything was sent, and answered exactly once, in order, with the right bytes.
    pub fn is_clean(&self) -> bool {
        self.counts.is_clean() && self.unsent == 0
    }

    /// The report, without what only the cluster knows. Each window becomes a kill: its label is `what`.
    pub fn report(&self) -> Report {
        let ms = |nanos: Nanos| (nanos.as_millis_f64() * 1000.0).round() / 1000.0;
        let kill = |window: &Window| Kill {
            what: window.label.clone(),
            node: window.node.map_or_else(String::new, |node| node.to_string()),
            at_ms: ms(window.at),
            gap_ms: window.gap.map(ms),
            outage_ms: window.outage.then(|| ms(window.silence)),
            lost: window.lost,
            unaccepted: window.unaccepted,
            duplicated: window.duplicated,
            doubled_allowed: window.doubled_allowed,
        };
        let Counts { sent, replied, lost, unaccepted, .. } = self.counts;
        let Counts { duplicated, doubled_allowed, reordered, corrupted, .. } = self.counts;
        Report {
            sent,
            replied,
            lost,
            unaccepted,
            duplicated,
            doubled_allowed,
            reordered,
            corrupted,
            latency_us: self.latency,
            longest_gap_ms: self.longest_gap().map(ms),
            kills: self.windows.iter().map(kill).collect(),
            ..Report::default()
        }
    }

    fn details(&self) -> String {
        let counts = &self.counts;
        let parts = [
            (counts.unknown, "with unknown bytes"),
            (counts.bad_trailer, "with a bad trailer"),
            (counts.broken, "with a per-call count that went back or jumped: state was lost"),
        ];
        let parts: Vec<_> =
            parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        if parts.is_empty() { String::new() } else { format!("  ({})", parts.join(", ")) }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        let seconds = (self.elapsed.as_millis_f64() / 1000.0).max(1e-9);
        writeln!(
            f,
            "sent        {:>12}  in {seconds:.1} s, {:.0} a second",
            counts.sent,
            counts.sent as f64 / seconds
        )?;
        writeln!(f, "replied     {:>12}{}", counts.replied, nodes(&self.replies_by_node))?;
        writeln!(f, "lost        {:>12}", counts.lost)?;
        if counts.unaccepted > 0 {
            writeln!(f, "unaccepted  {:>12}  lost on the wire while no owner was there", counts.unaccepted)?;
        }
        writeln!(f, "duplicated  {:>12}", counts.duplicated)?;
        for repeat in self.repeats.iter().take(NAMED_REPEATS) {
            let [first, sent] = [repeat.first, repeat.sent].map(|at| repeat.again.since(at).as_millis_f64());
            let at = repeat.again.as_millis_f64();
            let what = if repeat.differs { ", and says something else: it was executed twice" } else { "" };
            writeln!(
                f,
                "{:<11} {first:>12.3}  ms after its first, {sent:.3} ms after it was sent, at {at:.3} ms{what}",
                ""
            )?;
        }
        if counts.doubled_allowed > 0 {
            writeln!(f, "doubled     {:>12}  answers of an owner's last moment", counts.doubled_allowed)?;
        }
        writeln!(f, "reordered   {:>12}", counts.reordered)?;
        writeln!(f, "corrupted   {:>12}{}", counts.corrupted, self.details())?;
        if self.unsent > 0 {
            writeln!(f, "not sent    {:>12}  the system took no more", self.unsent)?;
        }
        if self.refused > 0 {
            writeln!(f, "refused     {:>12}  port unreachable: is the target running?", self.refused)?;
        }
        writeln!(f, "{:<11} {:>12} {:>9} {:>9} {:>9} {:>9}  us", "", "p50", "p90", "p99", "p99.9", "max")?;
        writeln!(f, "{:<11} {}  from the time it was due to the answer", "latency", line(&self.latency))?;
        writeln!(f, "{:<11} {}  of which the sender was late itself", "sent late", line(&self.lateness))?;
        for (title, (name, gap)) in
            std::iter::once("longest gap").chain(std::iter::repeat("")).zip(&self.gaps).take(NAMED_FLOWS)
        {
            writeln!(f, "{title:<11} {:>12.3}  ms, {name}", gap.as_millis_f64())?;
        }
        self.windows.iter().try_for_each(|window| window_line(f, window))
    }
}

fn window_line(f: &mut fmt::Formatter<'_>, window: &Window) -> fmt::Result {
    let ms = |time: Nanos| format!("{:.3}", time.as_millis_f64());
    let gap = window.gap.map_or_else(|| "-".to_owned(), ms);
    let node = window.node.map_or_else(String::new, |node| format!(" {node}"));
    let at = window.at.as_millis_f64() / 1000.0;
    write!(f, "{:<11} {gap:>12}  ms, the longest gap of ", window.label)?;
    if window.outage {
        write!(f, "all calls from {at:.1} s on{}", node.replace(' ', ", when it took "))?;
        write!(f, "; no answer at all for {} ms; ", ms(window.silence))?;
        writeln!(
            f,
            "unaccepted {}, doubled {}, lost {}",
            window.unaccepted, window.doubled_allowed, window.lost
        )
    } else {
        writeln!(
            f,
            "calls of{node} from {at:.1} s on; lost {}, duplicated {}",
            window.lost, window.duplicated
        )
    }
}

fn nodes(replies: &[(NodeId, u64)]) -> String {
    let mut text = String::new();
    for (node, count) in replies {
        let name = if node.0 > NodeId::MAX { "others".to_owned() } else { node.to_string() };
        // Writing to a string cannot fail.
        let _ = write!(text, "  {name} {count}");
    }
    text
}

fn line(latency: &Latency) -> String {
    let value = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.0}"));
    let Latency { p50, p90, p99, p999, max } = *latency;
    let [p50, p90, p99, p999, max] = [p50, p90, p99, p999, max].map(value);
    format!("{p50:>12} {p90:>9} {p99:>9} {p999:>9} {max:>9}")
}
