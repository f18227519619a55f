//! What happened in worlds: a simulation in which nothing goes wrong proves nothing.

use crate::sim::net::Arrivals;
use crate::sim::test_app::{Execution, What};

macro_rules! coverage {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts of what happened, added up over worlds.
        #[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
        pub struct Coverage {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Coverage {
            /// Adds what happened in another world.
            pub fn add(&mut self, other: &Coverage) {
                $(self.$name += other.$name;)*
            }

            /// Names and counts.
            pub fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

coverage! {
    /// Packets clients sent.
    sent,
    /// Packets the owner refused.
    refused,
    /// Datagrams lost because a receive buffer was full.
    overflows,
    /// Packets executed, by every member.
    packets,
    /// Timers fired, on every member.
    timers,
    /// Handlers that panicked, on every member.
    panics,
    /// Replies clients received.
    released,
    /// Datagrams sent between nodes.
    datagrams,
    /// Those lost.
    lost,
    /// Those that arrived twice.
    duplicated,
    /// Frames that could not be read.
    malformed,
    /// Acks sent.
    acks,
    /// Runs of outputs sent.
    outputs,
    /// Requests for missing entries.
    naks,
    /// Requests for kept outputs.
    emits,
    /// Times the master of a slot changed.
    master_changes,
    /// Nodes that crashed.
    crashes,
    /// Those that were master of a slot.
    master_kills,
    /// Nodes that came back with empty memory.
    restarts,
    /// Processes that stood still.
    freezes,
    /// Those that were master of a slot.
    master_freezes,
    /// Turns of real detectors.
    beats,
    /// Times a real detector changed its mind.
    minds_changed,
    /// Times a modelled detector rightly began to suspect a node.
    suspicions,
    /// Times a detector was made to suspect nodes wrongly.
    wrong_suspicions,
    /// Hedges, as the owners count them.
    hedges,
    /// Probes after a missing ack, as the owners count them.
    probes,
    /// Ticks appended.
    ticks,
    /// Outputs that came to an owner again.
    repeated,
    /// Outputs taken from a member that was not master.
    rescued,
    /// Members an owner gave up waiting for.
    demoted,
    /// Worlds in which anybody may die.
    live_worlds,
    /// Virtual time, in ms.
    virtual_ms,
    /// Faults begun.
    faults,
    /// Nodes of crashes that took several at once.
    joint_deaths,
    /// Whole hosts that died.
    host_deaths,
    /// Processes with service addresses that died.
    owner_crashes,
    /// Saves of votes that took time.
    slow_saves,
    /// Disks lost.
    disks_lost,
    /// Owners that stood still for longer than their lease.
    owner_freezes,
    /// Maps agreed on after the first.
    maps,
    /// Service addresses that moved.
    owner_changes,
    /// Members asked to follow a new owner, as datagrams.
    seals,
    /// Slots recovered.
    recoveries,
    /// Turns in which replies waited for a lease.
    lease_waits,
    /// Leases that ran out while their owner lived.
    leases_expired,
    /// Snapshots taken.
    snapshots,
    /// Learners that became members.
    promoted,
    /// Members taken out of groups.
    dropped,
    /// Drains asked for.
    drains,
    /// Drains that were refused.
    drains_refused,
    /// Nodes that left after a drain.
    left,
    /// Nodes that ended because the map said so.
    fenced,
    /// Nodes that were there for the first time after the cluster had formed.
    grown,
    /// Exit notices heard.
    notices,
    /// Packets passed on to the owner of their slot.
    forwarded,
    /// Replies passed on to the holder of their address.
    delivered,
    /// Replies dropped because their endpoint is another node's now.
    replies_dropped,
    /// Packets sent where nobody listened.
    unheard,
    /// Duplicates that a change of owner allows.
    duplicates,
    /// Replies lost as they may be, by slots.
    losses,
    /// Slots recovered without a complete commit set, or begun anew, as the core counts them.
    lossy,
}

impl Coverage {
    /// Counts an execution.
    pub fn executed(&mut self, execution: &Execution) {
        match execution.what {
            What::Packet { .. } => self.packets += 1,
            What::Timer(_) => self.timers += 1,
        }
        self.panics += u64::from(execution.panicked);
    }

    /// Counts a datagram.
    pub fn datagram(&mut self, arrivals: Arrivals) {
        self.datagrams += 1;
        self.lost += u64::from(arrivals.first.is_none());
        self.duplicated += u64::from(arrivals.second.is_some());
    }
}
