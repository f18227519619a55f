//! The picture of a cluster as lines for eyes.

use super::picture::{FailoverView, NodeView, Picture, SipView, SlotsView, State};
use crate::types::Nanos;
use std::fmt;

/// The picture, told at a certain time.
pub(super) struct Text<'a> {
    /// What to tell.
    pub(super) picture: &'a Picture,
    /// How long a whole lease is.
    pub(super) lease: Nanos,
    /// TANDEM_EVICT_AFTER.
    pub(super) evict_after: Nanos,
    /// Now, wall time in ms.
    pub(super) wall_ms: u64,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let picture = self.picture;
        let map = picture.map_version.map_or_else(|| "no agreed map".into(), |v| format!("map version {v}"));
        let leader = picture.leader.map_or_else(|| "no leader".into(), |id| format!("leader n{id}"));
        let quorum = match picture.quorum {
            Some(true) => "quorum yes",
            Some(false) => "QUORUM NO: nothing can change until a majority of the voters hear each other",
            None => "quorum unknown",
        };
        writeln!(f, "cluster     {}: {map}, {leader}, {quorum}", picture.cluster)?;
        if picture.lossy_failovers > 0 {
            writeln!(
                f,
                "LOSSY       {} failovers without a complete commit set: updates of calls may have been lost",
                picture.lossy_failovers
            )?;
        }
        self.nodes(f)?;
        self.addresses(f)?;
        self.slots(f)?;
        picture.sip.as_ref().map_or(Ok(()), |view| sip(f, view))?;
        for (number, failover) in picture.failovers.iter().enumerate() {
            let title = if number == 0 { "failovers" } else { "" };
            writeln!(f, "{title:<11} {}", self.failover(failover))?;
        }
        Ok(())
    }
}

impl Text<'_> {
    fn nodes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headings = ["node", "host", "state", "boot", "calls", "master of", "control address", "roles"];
        let mut rows = vec![headings.map(String::from)];
        rows.extend(self.picture.nodes.iter().map(row));
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                line += &format!("{cell:<w$}  ", w = width(column));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn addresses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for address in &self.picture.addresses {
            let owner = address.owner.map_or_else(|| "NOBODY".into(), |id| format!("n{id}"));
            let lease = match address.lease_left_us {
                Some(0) => ", LEASE RUN OUT".into(),
                Some(left) => {
                    let (left, whole) = (left as f64 / 1_000.0, self.lease.as_millis_f64());
                    format!(", lease {:.1} ms old, {left:.1} ms left", (whole - left).max(0.0))
                }
                None => String::new(),
            };
            let endpoints = address.endpoints.join(", ");
            writeln!(f, "service     {endpoints} held by {owner}, term {}{lease}", address.term)?;
        }
        Ok(())
    }

    fn slots(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots = &self.picture.slots;
        let SlotsView { all, served, recovering, replicas, short, calls_short, learning, .. } = *slots;
        let idle = all.saturating_sub(served + recovering);
        let unserved = if idle > 0 { format!(", {idle} by nobody that answered") } else { String::new() };
        writeln!(f, "slots       {all}: {served} served, {recovering} recovering{unserved}")?;
        if slots.stopped > 0 {
            let stopped = slots.stopped;
            writeln!(
                f,
                "STOPPED     {stopped} slots: no complete commit set is left (TANDEM_LOSSY=stop); they wait for a node \
                 that still holds them"
            )?;
        }
        if short == 0 {
            writeln!(f, "redundancy  every slot has {replicas} members")?;
        } else {
            let until = self.short_until();
            writeln!(
                f,
                "redundancy  {short} slots (about {calls_short} calls) have fewer than {replicas} members{until}"
            )?;
        }
        if learning.0 > learning.1 {
            let ends = slots
                .ends_in_s
                .map_or_else(|| "not moving now".into(), |s| format!("ends in about {}", span(s)));
            let megabytes = slots.resync_bytes as f64 / 1e6;
            let (all, done) = learning;
            writeln!(f, "resync      {done} of {all} done, {megabytes:.1} MB taken in, {ends}")?;
        }
        Ok(())
    }

    /// What must happen for the slots to have all their members again, where nobody is catching up yet.
    fn short_until(&self) -> String {
        let slots = &self.picture.slots;
        let holders =
            |n: &&NodeView| matches!(n.state, State::Live | State::Draining) && !n.roles.contains(&"witness");
        match self.picture.nodes.iter().filter(holders).count() as u64 {
            _ if slots.learning.0 > slots.learning.1 => String::new(),
            live if live < slots.replicas => {
                format!(": {live} live nodes can hold them, until another is back")
            }
            _ if slots.short_by_map < slots.short => {
                format!(
                    ": a silent member is replaced after {}",
                    span(self.evict_after.as_millis_f64() / 1_000.0)
                )
            }
            _ => ": others are about to take their place".into(),
        }
    }

    fn failover(&self, failover: &FailoverView) -> String {
        let node = |id: Option<u64>| id.map_or_else(|| "nobody".into(), |id| format!("n{id}"));
        let when = failover.wall_ms.map_or_else(String::new, |then| {
            format!("{} ago: ", span(self.wall_ms.saturating_sub(then) as f64 / 1_000.0))
        });
        let ms = |us: u64| us as f64 / 1_000.0;
        let took = match (failover.took_us, failover.agreed_us) {
            (Some(us), _) => format!(", took {:.1} ms", ms(us)),
            (None, Some(us)) => format!(", agreed after {:.1} ms", ms(us)),
            (None, None) => String::new(),
        };
        let (from, to) = (node(failover.from), node(failover.to));
        format!("{when}address {} from {from} to {to}, term {}{took}", failover.address, failover.term)
    }
}

fn row(node: &NodeView) -> [String; 8] {
    let state = match node.state {
        // One whose address nobody has named was not asked.
        State::Live if !node.answered && node.address != "-" => "live, silent",
        State::Live => "live",
        State::Suspect => "suspect",
        State::Draining => "draining",
        State::Dead => "dead",
        State::Unknown => "unknown",
    };
    let calls = node.calls.map_or_else(|| "-".into(), |calls| calls.to_string());
    let boot = node.boot.map_or_else(|| "-".into(), |boot| format!("{boot:x}"));
    let (id, roles) = (format!("n{}", node.id), node.roles.join(" "));
    let (host, address) = (node.host.clone(), node.address.clone());
    [id, host, state.into(), boot, calls, format!("{} slots", node.masters), address, roles]
}

fn sip(f: &mut fmt::Formatter<'_>, sip: &SipView) -> fmt::Result {
    let SipView { calls, ports_used, ports_open: (open, wanted), targets, targets_down, .. } = *sip;
    let missing = if open < wanted { format!(" ({} NOT OPEN)", wanted - open) } else { String::new() };
    let down = if targets_down > 0 { format!(", {targets_down} DOWN") } else { String::new() };
    writeln!(
        f,
        "calls       {calls} in progress, {ports_used} of {wanted} media ports in use{missing}, {} records written, {} \
         calls turned away",
        sip.records, sip.turned_away
    )?;
    writeln!(f, "targets     {} up{down}", targets.saturating_sub(targets_down))
}

/// A time in its largest unit.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}
