//! What the calls of a slot share: media ports, routes, and counts of what came to nothing.

use super::health::{SlotChange, SlotState};
use super::routes::order;
use crate::app::media::{Dropped, PortChange, PortShare};
use crate::types::{Endpoint, Nanos};
use crate::wire::sip::{Reason, Uri};

/// Why a message came to nothing.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Lost {
    /// It is malformed; answered where that is possible.
    Malformed(Reason),
    /// A response whose topmost Via is not ours.
    Misdirected,
    /// A response to no request that is known here.
    StrayResponse,
    /// An ACK that acknowledges nothing known, and says not where to go, or where it may not.
    StrayAck,
    /// Another request of a dialog that is not known, that says not where to go, or one that says where it may not;
    /// answered.
    StrayRequest,
    /// A call has more transactions than it may have; answered.
    TooMany,
    /// No route; answered.
    NoRoute,
    /// A datagram on a call's media port.
    Media(Dropped),
}

/// The kinds besides [`Lost::Malformed`] and [`Lost::Media`].
const OTHERS: [Lost; 6] = [
    Lost::Misdirected,
    Lost::StrayResponse,
    Lost::StrayAck,
    Lost::StrayRequest,
    Lost::TooMany,
    Lost::NoRoute,
];

impl Lost {
    /// How many kinds there are.
    pub const COUNT: usize = Reason::ALL.len() + OTHERS.len() + Dropped::ALL.len();

    /// All kinds, in the order of [`Lost::index`].
    pub fn all() -> impl Iterator<Item = Lost> {
        let malformed = Reason::ALL.iter().copied().map(Lost::Malformed);
        malformed.chain(OTHERS).chain(Dropped::ALL.map(Lost::Media))
    }

    /// Its place among them.
    pub fn index(self) -> usize {
        match self {
            Lost::Malformed(reason) => reason as usize,
            Lost::Misdirected => Reason::ALL.len(),
            Lost::StrayResponse => Reason::ALL.len() + 1,
            Lost::StrayAck => Reason::ALL.len() + 2,
            Lost::StrayRequest => Reason::ALL.len() + 3,
            Lost::TooMany => Reason::ALL.len() + 4,
            Lost::NoRoute => Reason::ALL.len() + 5,
            Lost::Media(reason) => Reason::ALL.len() + OTHERS.len() + reason as usize,
        }
    }

    /// A label for counters.
    pub fn name(self) -> &'static str {
        match self {
            Lost::Malformed(reason) => reason.name(),
            Lost::Misdirected => "misdirected",
            Lost::StrayResponse => "stray_response",
            Lost::StrayAck => "stray_ack",
            Lost::StrayRequest => "stray_request",
            Lost::TooMany => "too_many_transactions",
            Lost::NoRoute => "no_route",
            Lost::Media(reason) => reason.figure(),
        }
    }
}

/// The shared state of a slot.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Who holds which media ports.
    pub ports: PortShare,
    /// Where calls go, and what else the slot knows.
    pub slot: SlotState,
    /// Messages that came to nothing, by [`Lost::index`].
    pub lost: [u32; Lost::COUNT],
}

impl Default for Shared {
    fn default() -> Shared {
        Shared { ports: PortShare::default(), slot: SlotState::default(), lost: [0; Lost::COUNT] }
    }
}

/// A change of the shared state.
#[derive(Clone, Debug)]
pub enum Change {
    /// Of the media ports.
    Ports(PortChange),
    /// Of what the slot knows.
    Slot(SlotChange),
    /// A message came to nothing.
    Lost(Lost),
}

impl AsRef<SlotState> for Shared {
    fn as_ref(&self) -> &SlotState {
        &self.slot
    }
}

impl From<SlotChange> for Change {
    fn from(change: SlotChange) -> Change {
        Change::Slot(change)
    }
}

impl Shared {
    /// The targets for a Request-URI, in the order to try them. `draw` is a random number of the call's.
    pub(super) fn targets(&self, uri: &Uri<'_>, draw: u64, now: Nanos) -> Vec<Endpoint> {
        let is_down = |target| self.slot.is_down(target, now);
        order(self.slot.routes().find(uri).unwrap_or_default(), draw, is_down)
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Ports(change) => self.ports.apply(change),
            Change::Slot(change) => self.slot.apply(change),
            Change::Lost(lost) => {
                if let Some(count) = self.lost.get_mut(lost.index()) {
                    *count = count.saturating_add(1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_place_and_a_name_of_its_own() {
        for (at, lost) in Lost::all().enumerate() {
            assert_eq!(lost.index(), at);
        }
        let names: std::collections::BTreeSet<_> = Lost::all().map(Lost::name).collect();
        assert_eq!(names.len(), Lost::COUNT);
    }
}
