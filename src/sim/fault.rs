//! What may go wrong in a world, and when.

use crate::sim::net::LinkFault;
use crate::types::{Nanos, NodeId, NodeSet};

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A link misbehaves.
    Link(LinkFault),
    /// Nothing passes between two sets of nodes, either way.
    Split {
        /// The ones.
        one: NodeSet,
        /// The others.
        other: NodeSet,
    },
    /// Processes are gone, all at once. They are started again, with empty memory, when the fault ends, if `restarts`.
    Crash {
        /// Which.
        nodes: NodeSet,
        /// Whether they come back.
        restarts: bool,
        /// Whether their supervisors live on and say that they have ended.
        notice: bool,
        /// Whether what they had saved is gone too.
        disk: bool,
    },
    /// Processes stand still and then find everything that arrived.
    Freeze {
        /// Which.
        nodes: NodeSet,
        /// Between having read the clock and sending what came of it.
        mid: bool,
    },
    /// Each turn of a node's loops takes this long.
    Slow {
        /// Which.
        node: NodeId,
        /// How long.
        turn: Nanos,
    },
    /// A node's detector says that these are silent, wrongly.
    Suspect {
        /// Whose detector.
        at: NodeId,
        /// Whom.
        suspects: NodeSet,
    },
    /// A node's wall clock jumps by this many ns.
    WallStep {
        /// Which.
        node: NodeId,
        /// By how much.
        by: i64,
    },
    /// Many packets of clients at once.
    Burst {
        /// How many.
        packets: u32,
    },
    /// No kernel takes client datagrams: send buffers are full.
    Stall,
    /// A node is asked to hand over what it holds and to end; it is started again when the fault ends.
    Drain {
        /// Which.
        node: NodeId,
    },
}

/// A fault and when, counted from the world's beginning (where that is agreed on: from the first map on).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When it begins.
    pub from: Nanos,
    /// When it is over (without meaning for steps and bursts).
    pub until: Nanos,
    /// What.
    pub fault: Fault,
}

/// The set of one node.
pub fn one(node: NodeId) -> NodeSet {
    let mut set = NodeSet::EMPTY;
    set.insert(node);
    set
}

/// How a node's clocks run against true time.
#[derive(Copy, Clone, Debug, Default)]
pub struct ClockSkew {
    /// Monotonic time at the start of the world.
    pub mono: Nanos,
    /// Wall time's lead over true time in ns.
    pub wall: i64,
    /// How much faster it runs, in parts per million.
    pub drift_ppm: i64,
}
