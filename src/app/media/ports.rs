//! The media ports of one slot: dealt so that a port alone names its slot, lent to calls in pairs.
//!
//! A service address carries the slots s with s mod addresses = its number. The media range on it is cut into equal
//! shares, one a slot, in order; a share is made of pairs: an even port for media, the next for RTCP.
//! Who holds which pair is the slot's shared state, so a handler can only read it: a [`Reservation`] chooses pairs and
//! collects the [`PortChange`]s that make the choice true once the handler has returned.

use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::app::BadSnapshot;
use crate::types::{CallKey, Nanos, Slot};

/// How long a pair that was given back rests: what is still under way to it must not reach another call.
pub const REST: Nanos = Nanos::from_secs(5);

/// The fewest pairs a slot can work with: two for a call, and two resting.
const FEWEST_PAIRS: u16 = 4;

/// The form of [`PortShare`]'s snapshot.
const FORM: u16 = 1;

/// How media ports are dealt; the same on every node.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MediaPorts {
    /// The first port of the range on each service address.
    pub first: u16,
    /// The last, included.
    pub last: u16,
    /// How many slots there are.
    pub slots: u16,
    /// How many service addresses there are.
    pub addresses: u16,
}

impl MediaPorts {
    /// The pairs of the range on one address.
    pub fn pairs(&self) -> u16 {
        let first = u32::from(self.first).next_multiple_of(2);
        ((u32::from(self.last) + 1).saturating_sub(first) / 2) as u16
    }

    /// The slots that share an address's range, at most.
    fn slots_per_address(&self) -> u16 {
        self.slots.div_ceil(self.addresses.max(1)).max(1)
    }

    /// The pairs of each slot.
    pub fn share_per_slot(&self) -> u16 {
        self.pairs() / self.slots_per_address()
    }

    /// Whether the range is large enough.
    ///
    /// # Errors
    /// A text for the operator if a slot gets fewer than 4 pairs.
    pub fn check(&self) -> Result<(), String> {
        let (share, slots) = (self.share_per_slot(), self.slots_per_address());
        if share >= FEWEST_PAIRS {
            return Ok(());
        }
        Err(format!(
            "the media ports {}-{} give each of the {slots} slots on an address {share} pairs of ports: a slot needs at \
             least {FEWEST_PAIRS}, so the range needs {} ports (a call with audio takes 2 pairs)",
            self.first,
            self.last,
            u32::from(slots) * u32::from(FEWEST_PAIRS) * 2,
        ))
    }

    /// The slot that `port` on service address number `address` belongs to; `None` outside the shares.
    pub fn slot_of(&self, address: u16, port: u16) -> Option<Slot> {
        let pair = port.checked_sub(self.first.checked_next_multiple_of(2)?)? / 2;
        let index = pair.checked_div(self.share_per_slot())?;
        let slot = u32::from(index) * u32::from(self.addresses) + u32::from(address);
        let known = address < self.addresses && slot < u32::from(self.slots);
        (known && pair < self.pairs()).then_some(Slot(slot as u16))
    }

    /// The number of the service address that carries `slot`.
    pub fn address_of(&self, slot: Slot) -> u16 {
        slot.0 % self.addresses.max(1)
    }

    /// The first port of the slot's share; wide, so that no slot number can make it wrap.
    fn base(&self, slot: Slot) -> u32 {
        let index = u32::from(slot.0 / self.addresses.max(1));
        u32::from(self.first).next_multiple_of(2) + index * u32::from(self.share_per_slot()) * 2
    }

    /// The even port of a pair of the slot's share.
    fn port(&self, slot: Slot, pair: u16) -> Option<u16> {
        u16::try_from(self.base(slot) + u32::from(pair) * 2).ok().filter(|_| pair < self.share_per_slot())
    }

    /// The pair of the slot's share that `port` is in.
    fn pair(&self, slot: Slot, port: u16) -> Option<u16> {
        let pair = u32::from(port).checked_sub(self.base(slot))? / 2;
        u16::try_from(pair).ok().filter(|pair| *pair < self.share_per_slot())
    }
}

/// What a pair is doing.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Pair {
    Free,
    /// Lent to the call with this key, big endian.
    Held([u8; 16]),
    /// Rests until this logical time, in ns.
    Resting(u64),
    /// Its call is gone and nobody said when: rests from the next change on.
    Ended,
}

/// A change of a slot's ports, made by [`Reservation`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum PortChange {
    /// A call takes a pair.
    Take {
        /// Its number in the share.
        pair: u16,
        /// The call.
        key: CallKey,
        /// Now.
        at: Nanos,
    },
    /// A call gives a pair back.
    Free {
        /// Its number in the share.
        pair: u16,
        /// The call.
        key: CallKey,
        /// Now.
        at: Nanos,
    },
    /// Only time has passed.
    Clock {
        /// Now.
        at: Nanos,
    },
}

/// Who holds which ports of one slot's share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortShare {
    /// By number; those past the end are free. No longer than the share.
    pairs: Vec<Pair>,
    /// How many have ended and wait for a time to rest from.
    ended: u16,
}

impl PortShare {
    /// The call that holds `port` of `slot`.
    pub fn owner(&self, config: &MediaPorts, slot: Slot, port: u16) -> Option<CallKey> {
        match self.pairs.get(usize::from(config.pair(slot, port)?))? {
            Pair::Held(key) => Some(CallKey(u128::from_be_bytes(*key))),
            _ => None,
        }
    }

    /// How many pairs are lent.
    pub fn held(&self) -> usize {
        self.pairs.iter().filter(|pair| matches!(pair, Pair::Held(_))).count()
    }

    fn is_free(&self, pair: u16, now: Nanos) -> bool {
        match self.pairs.get(usize::from(pair)) {
            None | Some(Pair::Free) => true,
            Some(Pair::Resting(until)) => *until <= now.0,
            Some(Pair::Held(_) | Pair::Ended) => false,
        }
    }

    /// Applies a change.
    pub fn apply(&mut self, change: PortChange) {
        let at = match change {
            PortChange::Take { at, .. } | PortChange::Free { at, .. } | PortChange::Clock { at } => at,
        };
        let rested = Pair::Resting((at + REST).0);
        if self.ended > 0 {
            self.ended = 0;
            self.pairs.iter_mut().filter(|pair| **pair == Pair::Ended).for_each(|pair| *pair = rested);
        }
        match change {
            PortChange::Take { pair, key, at } if self.is_free(pair, at) => {
                let index = usize::from(pair);
                if self.pairs.len() <= index {
                    self.pairs.resize(index + 1, Pair::Free);
                }
                self.pairs[index] = Pair::Held(key.0.to_be_bytes());
            }
            PortChange::Free { pair, key, .. } => {
                if let Some(held) = self.pairs.get_mut(usize::from(pair))
                    && *held == Pair::Held(key.0.to_be_bytes())
                {
                    *held = rested;
                }
            }
            PortChange::Take { .. } | PortChange::Clock { .. } => {}
        }
    }

    /// The call is gone, however it went: gives back what it still holds.
    pub fn end(&mut self, key: CallKey) {
        let key = Pair::Held(key.0.to_be_bytes());
        for pair in self.pairs.iter_mut().filter(|pair| **pair == key) {
            *pair = Pair::Ended;
            self.ended = self.ended.saturating_add(1);
        }
    }

    /// Appends its state to `out`; returns the version of the form.
    pub fn snapshot(&self, out: &mut Vec<u8>) -> u16 {
        super::append(self, out);
        FORM
    }

    /// Reads back what `snapshot` wrote.
    ///
    /// # Errors
    /// [`BadSnapshot`] for another version or damaged bytes.
    pub fn restore(version: u16, bytes: &[u8]) -> Result<PortShare, BadSnapshot> {
        super::read_back(version, FORM, bytes)
    }
}

/// No pair of the slot's share is free.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no media ports are free")]
pub struct NoPorts;

/// The pairs that one handler takes and gives back.
#[derive(Debug)]
pub struct Reservation<'a> {
    config: &'a MediaPorts,
    share: &'a PortShare,
    slot: Slot,
    key: CallKey,
    now: Nanos,
    draw: u64,
    changes: Vec<PortChange>,
}

impl<'a> Reservation<'a> {
    /// For the call `key` at logical time `now`; `draw` is the call's own random number and decides which pairs.
    pub fn new(
        config: &'a MediaPorts,
        share: &'a PortShare,
        (slot, key): (Slot, CallKey),
        now: Nanos,
        draw: u64,
    ) -> Reservation<'a> {
        Reservation { config, share, slot, key, now, draw, changes: Vec::new() }
    }

    /// Goes on from the changes that the same handler has collected before, which are not in the share yet.
    pub fn after(mut self, changes: Vec<PortChange>) -> Reservation<'a> {
        self.changes = changes;
        self
    }

    /// Logical time.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Takes a pair; returns its even port.
    ///
    /// # Errors
    /// [`NoPorts`] if all are held or rest.
    pub fn take(&mut self) -> Result<u16, NoPorts> {
        let share = self.config.share_per_slot();
        // An odd multiplier walks through all 64-bit numbers (Knuth's MMIX generator).
        self.draw = self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let start = ((self.draw >> 32) % u64::from(share.max(1))) as u16;
        let free = (start..share).chain(0..start).find(|pair| self.is_free(*pair));
        let taken = free.and_then(|pair| Some((pair, self.config.port(self.slot, pair)?)));
        let (key, at) = (self.key, self.now);
        match taken {
            Some((pair, port)) => {
                self.changes.push(PortChange::Take { pair, key, at });
                Ok(port)
            }
            None => {
                // Lets pairs of calls that are gone begin to rest.
                self.changes.push(PortChange::Clock { at });
                Err(NoPorts)
            }
        }
    }

    /// Random bytes that only who knows the call's key can work out. The key is a hash under the cluster's secret seed;
    /// the draw alone would not do, since others of its entry are seen in branches and ports.
    pub fn secret(&mut self) -> [u8; 16] {
        self.draw = self.draw.wrapping_add(1);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.key.0.to_be_bytes());
        let tag = hmac::sign(&key, &self.draw.to_be_bytes());
        let mut secret = [0; 16];
        secret.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        secret
    }

    fn is_free(&self, pair: u16) -> bool {
        let touched = |change: &PortChange| match change {
            PortChange::Take { pair, .. } | PortChange::Free { pair, .. } => Some(*pair),
            PortChange::Clock { .. } => None,
        };
        self.share.is_free(pair, self.now) && !self.changes.iter().any(|c| touched(c) == Some(pair))
    }

    /// Gives back the pair of `port`.
    pub fn free(&mut self, port: u16) {
        if let Some(pair) = self.config.pair(self.slot, port) {
            self.changes.push(PortChange::Free { pair, key: self.key, at: self.now });
        }
    }

    /// What is to be handed to [`crate::app::Context::change`], in this order.
    pub fn into_changes(self) -> Vec<PortChange> {
        self.changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: MediaPorts = MediaPorts { first: 30001, last: 30100, slots: 8, addresses: 3 };
    const NOW: Nanos = Nanos(1_000_000_000_000);

    fn reserve<'a>(share: &'a PortShare, key: u128, now: Nanos, draw: u64) -> Reservation<'a> {
        Reservation::new(&CONFIG, share, (Slot(4), CallKey(key)), now, draw)
    }

    fn apply(share: &mut PortShare, changes: Vec<PortChange>) {
        changes.into_iter().for_each(|change| share.apply(change));
    }

    #[test]
    fn a_port_names_its_slot() {
        // 49 pairs from 30002 on, for at most 3 slots an address: 16 each.
        assert_eq!(CONFIG.share_per_slot(), 16);
        assert_eq!(CONFIG.slot_of(1, 30001), None);
        assert_eq!(CONFIG.slot_of(1, 30002), Some(Slot(1)));
        assert_eq!(CONFIG.slot_of(1, 30033), Some(Slot(1)));
        assert_eq!(CONFIG.slot_of(1, 30034), Some(Slot(4)));
        assert_eq!(CONFIG.slot_of(1, 30066), Some(Slot(7)));
        assert_eq!(CONFIG.slot_of(2, 30066), None, "slot 8 does not exist");
        assert_eq!(CONFIG.slot_of(0, 30098), None, "the rest of the range is nobody's");
        assert_eq!(CONFIG.slot_of(3, 30002), None);
    }

    #[test]
    fn a_range_that_is_too_small_is_named() {
        assert_eq!(CONFIG.check(), Ok(()));
        let small = MediaPorts { last: 30020, ..CONFIG };
        let text = small.check().expect_err("too small");
        assert!(
            text.contains("30001-30020") && text.contains("3 pairs") && text.contains("24 ports"),
            "{text}"
        );
        assert!(MediaPorts { first: 65535, last: 65535, slots: 1, addresses: 1 }.check().is_err());
        assert_eq!(MediaPorts { first: 0, last: 65535, slots: 1, addresses: 1 }.share_per_slot(), 32768);
    }

    #[test]
    fn a_pair_rests_before_it_is_lent_again() {
        let mut share = PortShare::default();
        let mut first = reserve(&share, 1, NOW, 7);
        let ports: Vec<u16> = (0..16).map(|_| first.take().expect("a pair")).collect();
        assert_eq!(first.take(), Err(NoPorts));
        let mut sorted = ports.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..16).map(|n| 30034 + 2 * n).collect::<Vec<u16>>());
        let changes = first.into_changes();
        apply(&mut share, changes);
        assert_eq!(share.owner(&CONFIG, Slot(4), ports[3] + 1), Some(CallKey(1)));
        assert_eq!(share.owner(&CONFIG, Slot(1), ports[3] + 1), None);

        let mut second = reserve(&share, 1, NOW, 9);
        second.free(ports[3]);
        assert_eq!(second.take(), Err(NoPorts), "given back in this handler");
        let changes = second.into_changes();
        apply(&mut share, changes);
        assert_eq!(share.owner(&CONFIG, Slot(4), ports[3]), None);
        assert_eq!(reserve(&share, 2, NOW + REST - Nanos(1), 0).take(), Err(NoPorts));
        assert_eq!(reserve(&share, 2, NOW + REST, 0).take(), Ok(ports[3]));
    }

    #[test]
    fn the_ports_of_a_call_that_is_gone_rest_from_the_next_change_on() {
        let mut share = PortShare::default();
        let mut all = reserve(&share, 1, NOW, 7);
        assert!((0..16).all(|_| all.take().is_ok()));
        let changes = all.into_changes();
        apply(&mut share, changes);
        share.end(CallKey(2));
        assert_eq!(share.held(), 16);
        share.end(CallKey(1));
        assert_eq!(share.held(), 0);
        let later = NOW + Nanos::from_secs(3600);
        let mut refused = reserve(&share, 2, later, 0);
        assert_eq!(refused.take(), Err(NoPorts));
        let changes = refused.into_changes();
        apply(&mut share, changes);
        assert!(reserve(&share, 2, later + REST, 0).take().is_ok());
    }

    proptest! {
        #[test]
        fn no_pair_is_lent_twice(steps in proptest::collection::vec((0u8..4, 0u128..4, any::<u64>(), 0u64..4), 0..80)) {
            let mut share = PortShare::default();
            let mut now = NOW;
            let mut held: Vec<(u128, u16)> = Vec::new();
            for (what, key, draw, seconds) in steps {
                now = now + Nanos::from_secs(seconds);
                let mut reservation = reserve(&share, key, now, draw);
                match what {
                    0 | 1 => if let Ok(port) = reservation.take() {
                        prop_assert!(held.iter().all(|(_, taken)| *taken != port));
                        prop_assert_eq!(CONFIG.slot_of(1, port), Some(Slot(4)));
                        held.push((key, port));
                    },
                    2 => if let Some(at) = held.iter().position(|(k, _)| *k == key) {
                        reservation.free(held.swap_remove(at).1);
                    },
                    _ => {}
                }
                let changes = reservation.into_changes();
                apply(&mut share, changes);
                if what == 3 {
                    share.end(CallKey(key));
                    held.retain(|(k, _)| *k != key);
                }
                prop_assert_eq!(share.held(), held.len());
                for (key, port) in &held {
                    prop_assert_eq!(share.owner(&CONFIG, Slot(4), *port), Some(CallKey(*key)));
                }
                let mut bytes = Vec::new();
                let form = share.snapshot(&mut bytes);
                prop_assert_eq!(&PortShare::restore(form, &bytes).expect("readable"), &share);
            }
        }
    }
}
