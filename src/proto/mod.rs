//! Floor 3: the slot log. What an owner, a member and a failure detector do, as state machines without I/O.
//!
//! Nothing here knows a socket, a clock, a thread or an application: time comes in as an argument, bytes
//! come in as views and go out into buffers, and the application is behind [`member::Machine`].

mod awake;
pub mod clock;
pub mod detector;
pub mod fixed_map;
pub mod map;
pub mod member;
pub mod owner;
pub mod record_log;
pub mod rtt;
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
}

impl Default for Safeguards {
    fn default() -> Safeguards {
        Safeguards { dedupe: true, commit_wait: true, in_order: true, keep_outputs: true, nak: true }
    }
}
