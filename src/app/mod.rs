//! Floor 3: call applications, deterministic state machines that know no clock, socket or thread.
//!
//! Every member of a slot runs the same application over the same entries and must produce the same
//! bytes. What an application may use is in its arguments and nowhere else: logical time, a random
//! source seeded per call, the slot's shared state, and the output buffer.

pub mod classify;
pub mod echo;
pub mod media;
pub mod sip;
pub mod table;

use crate::types::{CallKey, Endpoint, LocalId, Nanos};

/// A datagram from a client as an ingress sees it, before it has a place in a log.
#[derive(Copy, Clone, Debug)]
pub struct Inbound<'a> {
    /// Where it came from.
    pub source: Endpoint,
    /// The service endpoint it was sent to.
    pub local: LocalId,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// Names a timer within its call; setting a timer again under the same id moves it.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TimerId(pub u8);

/// What a call may see and do while it handles one packet or timer. Implemented by the call table.
pub trait Context {
    /// The slot's shared state.
    type Shared;
    /// A change to the slot's shared state.
    type Change;

    /// Logical time of the entry being executed, in ns since 1970. The only clock there is.
    fn now(&self) -> Nanos;
    /// The call's identity.
    fn key(&self) -> CallKey;
    /// Position of the entry being executed, and the slot's number.
    fn place(&self) -> (u64, u16);
    /// The next value of this call's own random sequence; the same on every member. Seeded by the call's key and
    /// the entry's position, so that it needs no state; not for secrets.
    fn random(&mut self) -> u64;
    /// The slot's shared state as it was before this entry.
    fn shared(&self) -> &Self::Shared;
    /// Asks for a change of the shared state; applied only after the handler has returned.
    fn change(&mut self, change: Self::Change);
    /// Queues a datagram from the service endpoint `local` to `to`; its bytes are those of `parts`, joined.
    fn send(&mut self, local: LocalId, to: Endpoint, parts: &[&[u8]]);
    /// As `send`, but the last two bytes are replaced on release by the id (u16, big endian) of the node
    /// whose outputs were taken. They count for no digest: the one thing in which members may differ.
    fn send_stamped(&mut self, local: LocalId, to: Endpoint, parts: &[&[u8]]);
    /// Sets (or moves) a timer of this call to fire at logical time `at`, in a later entry even if that has passed;
    /// [`Nanos::MAX`] clears it.
    fn set_timer(&mut self, id: TimerId, at: Nanos);
    /// Clears a timer of this call.
    fn clear_timer(&mut self, id: TimerId);
    /// Ends the call once the handler has returned: its state and timers go.
    fn end(&mut self);
}

/// Why a datagram belongs to no call.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Unclassified {
    /// Too short or not of the protocol the key extractor was told to expect.
    NoKey,
}

/// A snapshot that this version of the application cannot read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "call snapshot version {version} ({bytes} bytes) is not readable by this application: upgrade this node"
)]
pub struct BadSnapshot {
    /// The version found.
    pub version: u16,
    /// How many bytes it had.
    pub bytes: usize,
}

/// What an application has to tell of a slot.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Figure {
    /// The figures of several slots are added.
    Sum(u64),
    /// All slots should say the same: the most of them counts.
    Most(u64),
}

/// A call application. `Self` holds only configuration that is the same on every node.
pub trait CallApp {
    /// The state of one call.
    type Call;
    /// State shared by the calls of one slot (e.g. media ports).
    type Shared: Default;
    /// A change to the shared state.
    type Change;

    /// Finds the call of a datagram. Stateless: runs at any ingress.
    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified>;

    /// Whether the packet, if its call is unknown, begins one: what an ingress may refuse when it has too many already.
    /// Stateless, as `classify`.
    fn opens(&self, packet: &Inbound<'_>) -> bool {
        let _ = packet;
        false
    }

    /// Writes what a client is answered at the ingress, outside of any log, whose packet [`CallApp::opens`] a call that
    /// cannot be had now; never longer than the packet by more than a few headers. False: nothing, it is dropped.
    fn refuse(&self, packet: &Inbound<'_>, retry_after_secs: u32, out: &mut Vec<u8>) -> bool {
        let _ = (packet, retry_after_secs, out);
        false
    }

    /// The call that a packet belongs to, which `classify` may have named only by its slot (media: the port names the
    /// slot, the slot's shared state the call). `None`: no call, the packet is dropped and counted.
    fn resolve(&self, shared: &Self::Shared, key: CallKey, packet: &Inbound<'_>) -> Option<CallKey> {
        let _ = (shared, packet);
        Some(key)
    }

    /// The state of a call nobody has heard of; called with its first packet, before `on_packet`.
    fn open(&self, key: CallKey, now: Nanos) -> Self::Call;

    /// Handles one packet.
    fn on_packet(
        &self,
        call: &mut Self::Call,
        ctx: &mut impl Context<Shared = Self::Shared, Change = Self::Change>,
        packet: &Inbound<'_>,
    );

    /// Handles a timer that is due.
    fn on_timer(
        &self,
        call: &mut Self::Call,
        ctx: &mut impl Context<Shared = Self::Shared, Change = Self::Change>,
        id: TimerId,
    );

    /// Applies a change asked for through [`Context::change`]. Must not panic: nothing would undo half a change.
    fn apply(&self, shared: &mut Self::Shared, change: Self::Change);

    /// Tells what there is to know of a slot at wall time `now`, by name: for operators, outside of any log.
    fn figures(&self, shared: &Self::Shared, now: Nanos, tell: &mut dyn FnMut(&'static str, Figure)) {
        let _ = (shared, now, tell);
    }

    /// The call is gone, whether it ended itself, was silent too long, or a handler of it panicked: gives back what it
    /// held of the shared state. Must not panic.
    fn on_end(&self, shared: &mut Self::Shared, key: CallKey) {
        let _ = (shared, key);
    }

    /// Appends the shared state to `out`; returns the version of the form.
    fn snapshot_shared(&self, shared: &Self::Shared, out: &mut Vec<u8>) -> u16;

    /// Reads back what `snapshot_shared` wrote, in this or an earlier version.
    fn restore_shared(&self, version: u16, bytes: &[u8]) -> Result<Self::Shared, BadSnapshot>;

    /// Appends the call's state to `out`; returns the version of the form.
    fn snapshot(&self, call: &Self::Call, out: &mut Vec<u8>) -> u16;

    /// Reads back what `snapshot` wrote, in this or an earlier version.
    fn restore(&self, version: u16, bytes: &[u8]) -> Result<Self::Call, BadSnapshot>;
}
