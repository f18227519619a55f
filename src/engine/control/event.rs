//! What an operator should read of a control: who joins, what changes, and the alarms: quorum lost, slots that lost their
//! commit sets.

use super::{Control, Disagreement};
use crate::types::{Boot, Nanos, NodeId};
use std::fmt;

/// Something an operator should read. The driver logs its text, as loudly as [`ControlEvent::weight`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// A peer's settings agree: it counts from now on.
    Joined(NodeId, Boot),
    /// A peer's settings differ: it counts for nothing. Told once for each life of the peer.
    Refused(NodeId, Disagreement),
    /// This node leads the voters, and proposed this.
    Proposed(String),
    /// The voters know another vote file of this node: it votes no more.
    Disowned,
    /// No majority of the voters is heard any more.
    QuorumLost,
    /// A majority is heard again, after so long.
    QuorumBack(Nanos),
    /// Slots that this node recovered although no complete commit set was left.
    LossySlots(u32),
    /// Groups, in all, that had lost all their members, and began anew or went on with what earlier members had left.
    LossyGroups(u32),
    /// Slots that stop here because no complete commit set is left, by TANDEM_LOSSY; zero: not any more.
    Stopped(u32),
}

impl fmt::Display for ControlEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlEvent::Joined(node, boot) => write!(f, "node {} joined (boot {})", node.0, boot.0),
            ControlEvent::Refused(node, differs) => write!(
                f,
                "node {} and this node do not join: {differs}; set the same value on all nodes and restart",
                node.0
            ),
            ControlEvent::Proposed(change) => write!(f, "{change}"),
            ControlEvent::Disowned => write!(
                f,
                "this voter has lost what it voted for (its file in TANDEM_DATA_DIR is another one): it votes no more; \
                 restore the file; or start all nodes anew with other TANDEM_VOTERS, and with another TANDEM_CLUSTER or an \
                 empty TANDEM_DATA_DIR each"
            ),
            ControlEvent::QuorumLost => write!(
                f,
                "QUORUM LOST: no majority of the voters is heard; leases run out, nothing is answered and nothing can \
                 change until enough of TANDEM_VOTERS are back"
            ),
            ControlEvent::QuorumBack(after) => {
                write!(f, "a majority of the voters is heard again, after {:.1} ms", after.as_millis_f64())
            }
            ControlEvent::LossySlots(slots) => write!(
                f,
                "LOSSY: {slots} slots go on here with the best log left: every complete commit set of them had died, \
                 updates of their calls may have been lost (TANDEM_LOSSY=go)"
            ),
            ControlEvent::LossyGroups(times) => write!(
                f,
                "LOSSY: groups had lost all their members, {times} so far: calls may have been lost (TANDEM_LOSSY=go)"
            ),
            ControlEvent::Stopped(0) => write!(f, "no slot is stopped any more"),
            ControlEvent::Stopped(slots) => write!(
                f,
                "{slots} slots are STOPPED: no complete commit set of them is left (TANDEM_LOSSY=stop); they go on when \
                 a node comes back that still holds them"
            ),
        }
    }
}

/// How much an event matters.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Weight {
    /// The course of things.
    Info,
    /// Somebody has to set something right, or something is right again.
    Warning,
    /// Calls are or may be harmed.
    Error,
}

impl ControlEvent {
    /// See [`Weight`].
    pub fn weight(&self) -> Weight {
        match self {
            ControlEvent::Joined(..) | ControlEvent::Proposed(_) => Weight::Info,
            // An end is told to all who were told of the beginning.
            ControlEvent::Refused(..) | ControlEvent::QuorumBack(_) | ControlEvent::Stopped(0) => {
                Weight::Warning
            }
            ControlEvent::Disowned
            | ControlEvent::QuorumLost
            | ControlEvent::LossySlots(_)
            | ControlEvent::LossyGroups(_)
            | ControlEvent::Stopped(_) => Weight::Error,
        }
    }
}

/// What has been told, so that it is told once.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    disowned: bool,
    /// A majority has been heard in this life.
    had_quorum: bool,
    lost_at: Option<Nanos>,
    losses: u64,
    lossy_slots: u32,
    /// None before the first map: what it counts is history.
    lossy_groups: Option<u32>,
    stopped: u32,
}

impl Control {
    /// How often a majority of the voters was not heard any more.
    pub fn quorum_losses(&self) -> u64 {
        self.alarms.losses
    }

    /// Tells what has become different since it was last told.
    pub(super) fn raise_alarms(&mut self, now: Nanos) {
        let (quorum, disowned) = (self.has_quorum(), self.council.is_disowned());
        let (slots, stopped, groups) = self.council.losses();
        let (alarms, events) = (&mut self.alarms, &mut self.events);
        if disowned && !std::mem::replace(&mut alarms.disowned, true) {
            events.push(ControlEvent::Disowned);
        }
        match (quorum, alarms.lost_at) {
            (true, Some(since)) => {
                alarms.lost_at = None;
                events.push(ControlEvent::QuorumBack(now.since(since)));
            }
            // Those who leave one after the other leave no majority behind.
            (false, None) if alarms.had_quorum && !self.council.draining => {
                alarms.lost_at = Some(now);
                alarms.losses += 1;
                events.push(ControlEvent::QuorumLost);
            }
            _ => {}
        }
        alarms.had_quorum |= quorum;
        if slots > std::mem::replace(&mut alarms.lossy_slots, slots) {
            events.push(ControlEvent::LossySlots(slots));
        }
        if self.told_map > 0 && alarms.lossy_groups.replace(groups).is_some_and(|before| groups > before) {
            events.push(ControlEvent::LossyGroups(groups));
        }
        if stopped != std::mem::replace(&mut alarms.stopped, stopped) {
            events.push(ControlEvent::Stopped(stopped));
        }
    }
}
