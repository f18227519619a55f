//! Floor 3: the slot log. What an owner, a member and a failure detector do, as state machines without I/O.
//!
//! Nothing here knows a socket, a clock, a thread or an application: time comes in as an argument, bytes
//! come in as views and go out into buffers, and the application is behind [`member::Machine`].

mod awake;
pub mod clock;
pub mod detector;
pub mod map;
pub mod member;
pub mod owner;
pub mod record_log;
pub mod rtt;
pub mod steward;
pub mod voter;
pub mod workers;

/// The rules that make the slot log safe, each of which a test can switch off to prove that the
/// simulator's checker notices. The product runs with all of them on.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Safeguards {
    /// The owner takes each output cursor once, a member executes each position once.
    pub dedupe: bool,
    /// Outputs are released only when their entry is acked by a commit set.
    pub commit_wait: bool,
    /// A member takes entries in position order only.
    pub in_order: bool,
    /// A member that is not master keeps its outputs until they are released.
    pub keep_outputs: bool,
    /// A member asks for entries it sees missing.
    pub nak: bool,
    /// A member that has answered a new owner's seal follows no older one.
    pub seal_promise: bool,
    /// A member takes entries of a term only after its Start.
    pub start_first: bool,
    /// Of the answers to a seal the one with the highest (last term, tail) wins; without it, the longest.
    pub log_order: bool,
    /// A new owner asks the members of every map version that is not confirmed out of use.
    pub seal_past: bool,
    /// The owner takes acks of its own term only.
    pub frame_term: bool,
    /// The owner takes frames of the members' agreed incarnations only.
    pub incarnations: bool,
    /// A commit set stands on two hosts whenever the members do.
    pub span_hosts: bool,
    /// What a new owner recovered counts as committed only together with an entry of its own term.
    pub own_term: bool,
    /// `released` is advertised only after the kernel took the output.
    pub after_send: bool,
    /// An owner releases only under a lease.
    pub lease: bool,
    /// Voters keep their promises, and renew leases under the newest map only.
    pub promises: bool,
}

impl Default for Safeguards {
    fn default() -> Safeguards {
        Safeguards {
            dedupe: true,
            commit_wait: true,
            in_order: true,
            keep_outputs: true,
            nak: true,
            seal_promise: true,
            start_first: true,
            log_order: true,
            seal_past: true,
            frame_term: true,
            incarnations: true,
            span_hosts: true,
            own_term: true,
            after_send: true,
            lease: true,
            promises: true,
        }
    }
}
