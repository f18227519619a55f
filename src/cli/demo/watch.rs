//! What happens to the cluster while the load runs: who is killed when, who is started again, when all is whole
//! again; and the live line.

use super::Victim;
use super::scout::{Scout, Seen};
use crate::cli::local::LocalCluster;
use crate::cli::replay::Live;
use crate::types::{Nanos, NodeId};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// What happens this long after a kill is put down to it.
const AFTER_KILL: Nanos = Nanos::from_secs(2);
/// A dead host is started again after this.
const HOST_AWAY: Nanos = Nanos::from_secs(1);
/// How often the live line is drawn: for eyes, and for a log.
const LINE_EVERY: Nanos = Nanos::from_millis(100);
const LINE_EVERY_IN_A_LOG: Nanos = Nanos::from_secs(1);
/// A kill is not followed by the next, nor by "whole again", before the nodes have been looked at so often.
const LOOKS: u64 = 2;
/// How long the nodes may take after the load until every slot has its members again.
const WHOLE_WITHIN: Duration = Duration::from_secs(15);

/// A kill to come.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) what: Victim,
    pub(super) at: Nanos,
}

/// The kills of a demo. Those of `all` are a third of the rest of the load apart.
pub(super) fn plan(kill: Victim, at: Nanos, duration: Nanos) -> Vec<Plan> {
    match kill {
        Victim::None => Vec::new(),
        Victim::All => {
            let later = at + Nanos(duration.since(at).0 / 3);
            vec![Plan { what: Victim::Master, at }, Plan { what: Victim::Owner, at: later }]
        }
        what => vec![Plan { what, at }],
    }
}

/// See the module's page.
pub(super) struct Watch {
    plan: Vec<Plan>,
    nodes: Vec<NodeId>,
    /// Who was killed, when, and at which look.
    struck: Option<(NodeId, Nanos, u64)>,
    /// Killed with their hosts, and when to start them again.
    away: Vec<(NodeId, Nanos)>,
    /// The longest time from a kill until all was whole.
    pub(super) restored: Option<Nanos>,
    pub(super) scout: Scout,
    terminal: bool,
    next_line: Nanos,
}

impl Watch {
    pub(super) fn new(cluster: &LocalCluster, plan: Vec<Plan>) -> anyhow::Result<Watch> {
        Ok(Watch {
            plan,
            nodes: cluster.nodes.iter().map(|n| n.id).collect(),
            struck: None,
            away: Vec::new(),
            restored: None,
            scout: Scout::start(cluster)?,
            terminal: std::io::stdout().is_terminal(),
            next_line: Nanos::ZERO,
        })
    }

    pub(super) fn tick(&mut self, cluster: &mut LocalCluster, live: &mut Live<'_>) -> anyhow::Result<()> {
        self.bring_back(cluster, live.now)?;
        self.look(live.now);
        let due = self.plan.first().is_some_and(|next| live.now >= next.at) && !live.draining;
        // The next one dies once the last one is back: two at once are more than three nodes promise.
        if due && self.struck.is_none() {
            let next = self.plan.remove(0);
            self.kill(next.what, cluster, live)?;
        }
        if live.now >= self.next_line {
            self.next_line = live.now + if self.terminal { LINE_EVERY } else { LINE_EVERY_IN_A_LOG };
            self.line(live);
        }
        Ok(())
    }

    fn kill(&mut self, what: Victim, cluster: &mut LocalCluster, live: &mut Live<'_>) -> anyhow::Result<()> {
        let calls = live.calls_by_node();
        let of = |node: &NodeId| calls.get(usize::from(node.0)).copied().unwrap_or(0);
        let (owner, looks) = {
            let seen = self.scout.seen();
            seen.answers.iter().for_each(|(node, status)| cluster.know_engine(*node, status));
            let owner = seen.picture.as_ref().and_then(|picture| picture.owner());
            (owner.unwrap_or(cluster.settings.owner), seen.looks)
        };
        let others = self.nodes.iter().filter(|n| **n != owner);
        let victim = match what {
            Victim::Owner | Victim::Host => Some(&owner),
            Victim::Member => others.min_by_key(|n| of(n)),
            _ => others.max_by_key(|n| of(n)),
        };
        let Some(victim) = victim.copied() else { return Ok(()) };
        match what {
            Victim::Owner => {
                live.mark_outage(what.name(), victim, AFTER_KILL);
                cluster.kill_engine(victim)?;
            }
            Victim::Host => {
                live.mark_outage(what.name(), victim, AFTER_KILL);
                cluster.kill_node(victim)?;
                self.away.push((victim, live.now + HOST_AWAY));
            }
            _ => {
                live.mark(what.name(), Some(victim), AFTER_KILL);
                cluster.kill_engine(victim)?;
            }
        }
        self.struck = Some((victim, live.now, looks));
        let which = match what {
            Victim::Owner => format!("{victim}, the owner"),
            Victim::Host => format!("both processes of {victim}, the owner"),
            _ => format!("{victim}, which was master of {} call ids", of(&victim)),
        };
        self.say(live.now, &format!("SIGKILL to {which}"));
        Ok(())
    }

    fn bring_back(&mut self, cluster: &mut LocalCluster, now: Nanos) -> anyhow::Result<()> {
        while let Some(at) = self.away.iter().position(|(_, due)| now >= *due) {
            let (node, _) = self.away.swap_remove(at);
            cluster.start_again(node)?;
            self.say(now, &format!("{node} is started again"));
        }
        Ok(())
    }

    /// Is all whole again after the last kill?
    fn look(&mut self, now: Nanos) {
        let Some((victim, at, looks)) = self.struck else { return };
        if !is_back(&self.scout.seen(), victim, looks, self.nodes.len()) || !self.away.is_empty() {
            return;
        }
        let took = now.since(at);
        self.struck = None;
        if self.scout.seen().picture.as_ref().is_none_or(|picture| picture.map_version.is_none()) {
            return;
        }
        self.restored = self.restored.max(Some(took));
        let seconds = took.as_millis_f64() / 1000.0;
        self.say(
            now,
            &format!("{victim} is back: every slot has all its members, {seconds:.2} s after the kill"),
        );
    }

    /// After the load: waits until all is whole. Whether it is, and nothing was left undone.
    pub(super) fn settle(&mut self, cluster: &mut LocalCluster, ended: Nanos) -> anyhow::Result<bool> {
        let start = Instant::now();
        loop {
            let now = ended + Nanos(start.elapsed().as_nanos() as u64);
            self.bring_back(cluster, now)?;
            self.look(now);
            if self.struck.is_none() {
                return Ok(self.plan.is_empty());
            }
            if start.elapsed() > WHOLE_WITHIN {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn say(&self, now: Nanos, what: &str) {
        self.end_line();
        println!("{:>6.2} s  {what}", now.as_millis_f64() / 1000.0);
    }

    fn line(&self, live: &Live<'_>) {
        let counts = live.counts();
        let calls = live.calls_by_node();
        let answering: Vec<NodeId> = self.scout.seen().answers.iter().map(|(node, _)| *node).collect();
        let nodes = self.nodes.iter().map(|node| {
            let calls = calls.get(usize::from(node.0)).copied().unwrap_or(0).to_string();
            let state = if answering.contains(node) { calls } else { "dead".into() };
            format!("{node} {state:>5}")
        });
        let text = format!(
            "{:>6.2} s  sent {:>7}  replied {:>7}  wrong {}  call ids answered by {}",
            live.now.as_millis_f64() / 1000.0,
            counts.sent,
            counts.replied,
            counts.lost + counts.duplicated + counts.reordered + counts.corrupted,
            nodes.collect::<Vec<_>>().join("  "),
        );
        if self.terminal {
            // No wrapping meanwhile: a narrow terminal shows the beginning of the line instead of many lines.
            print!("\r\x1b[?7l{text}\x1b[K\x1b[?7h");
            // Drawing is for eyes; a closed terminal is noticed elsewhere.
            let _ = std::io::stdout().flush();
        } else {
            println!("{text}");
        }
    }

    pub(super) fn end_line(&self) {
        if self.terminal {
            println!();
        }
    }

    /// The nodes that answer.
    pub(super) fn alive(&self) -> Vec<NodeId> {
        self.scout.seen().answers.iter().map(|(node, _)| *node).collect()
    }
}

/// Whether all nodes answer and every slot has its members, some looks after `victim` was killed at look `looks`.
/// Nodes without an agreed map do not come back: that they are one fewer is all there is to see.
fn is_back(seen: &Seen, victim: NodeId, looks: u64, nodes: usize) -> bool {
    let Some(picture) = seen.picture.as_ref().filter(|_| seen.looks >= looks + LOOKS) else { return false };
    if picture.map_version.is_none() {
        return seen.answers.iter().all(|(node, _)| *node != victim);
    }
    seen.answers.len() == nodes && picture.is_whole() && picture.slots.served > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kills_of_all_leave_time_for_a_return() {
        let s = Nanos::from_secs;
        let all = plan(Victim::All, s(5), s(20));
        assert_eq!(all, [Plan { what: Victim::Master, at: s(5) }, Plan { what: Victim::Owner, at: s(10) }]);
        assert_eq!(plan(Victim::Host, s(5), s(20)), [Plan { what: Victim::Host, at: s(5) }]);
        assert_eq!(plan(Victim::None, s(5), s(20)), []);
    }
}
