//! IP reassembly (RFC 791 section 3.2, RFC 8200 section 4.5), bounded in memory and time.

use std::collections::HashMap;
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};

use crate::types::Nanos;

/// Half-finished packets kept at once; the oldest goes first.
const MAX_PACKETS: usize = 1_024;
/// Fragments of one packet; a packet of 64 KiB over the smallest IPv4 MTU (68, so 48 bytes each) has 1,366.
const MAX_FRAGMENTS: usize = 1_400;
/// RFC 8200 section 4.5: give up 60 seconds after the first fragment came.
const TIMEOUT: Nanos = Nanos::from_secs(60);
/// The longest payload an IP packet can have.
const MAX_LENGTH: usize = 65_535;

/// Which packet a fragment belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) identification: u32,
}

/// One fragment's place in its packet.
pub(super) struct Fragment {
    /// In bytes.
    pub(super) offset: usize,
    /// Whether more follow.
    pub(super) more: bool,
    pub(super) payload: Bytes,
}

/// Packets of which some fragments have come.
#[derive(Default)]
pub(super) struct Pool {
    packets: HashMap<Key, Partial>,
    arrivals: u64,
    given_up: u32,
}

struct Partial {
    pieces: Vec<(usize, Bytes)>,
    length: Option<usize>,
    since: Nanos,
    arrival: u64,
}

impl Pool {
    /// Adds a fragment; returns the packet's payload once it is whole.
    pub(super) fn add(&mut self, now: Nanos, key: Key, fragment: Fragment) -> Option<Bytes> {
        let end = fragment.offset + fragment.payload.len();
        // A hostile fragment past the end, or one that is no multiple of 8 but has followers, is dropped.
        if end > MAX_LENGTH || (fragment.more && !fragment.payload.len().is_multiple_of(8)) {
            self.given_up += 1;
            return None;
        }
        if self
            .packets
            .get(&key)
            .is_some_and(|p| now.since(p.since) > TIMEOUT || p.pieces.len() >= MAX_FRAGMENTS)
        {
            self.give_up(key);
        }
        if self.packets.len() >= MAX_PACKETS && !self.packets.contains_key(&key) {
            let oldest = self.packets.iter().min_by_key(|(_, p)| p.arrival).map(|(key, _)| *key);
            oldest.into_iter().for_each(|key| self.give_up(key));
        }
        self.arrivals += 1;
        let partial = self.packets.entry(key).or_insert(Partial {
            pieces: Vec::new(),
            length: None,
            since: now,
            arrival: self.arrivals,
        });
        if !fragment.more {
            partial.length = Some(end);
        }
        partial.pieces.push((fragment.offset, fragment.payload));
        let whole = partial.assemble()?;
        self.packets.remove(&key);
        Some(whole)
    }

    /// Fragments that were dropped or still wait for the others.
    pub(super) fn incomplete(&self) -> u32 {
        self.given_up + self.packets.values().map(|p| p.pieces.len() as u32).sum::<u32>()
    }

    fn give_up(&mut self, key: Key) {
        self.given_up += self.packets.remove(&key).map_or(0, |p| p.pieces.len() as u32);
    }
}

impl Partial {
    /// The whole payload, if no byte is missing; of bytes that came twice the first copy counts.
    fn assemble(&mut self) -> Option<Bytes> {
        let length = self.length?;
        if self.pieces.iter().map(|(_, piece)| piece.len()).sum::<usize>() < length {
            return None;
        }
        self.pieces.sort_by_key(|(offset, _)| *offset);
        let mut whole = BytesMut::with_capacity(length);
        for (offset, piece) in &self.pieces {
            let known = whole.len().checked_sub(*offset)?;
            whole.extend_from_slice(piece.get(known..).unwrap_or_default());
        }
        whole.truncate(length);
        (whole.len() == length).then(|| whole.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn key(identification: u32) -> Key {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Key { source: ip, destination: ip, protocol: 17, identification }
    }

    fn pieces(whole: &Bytes, size: usize) -> Vec<Fragment> {
        let size = size * 8;
        (0..whole.len().div_ceil(size))
            .map(|n| Fragment {
                offset: n * size,
                more: (n + 1) * size < whole.len(),
                payload: whole.slice(n * size..whole.len().min((n + 1) * size)),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_order_gives_the_packet_back(length in 1usize..3_000, size in 1usize..100, seed in any::<u64>()) {
            let whole = Bytes::from((0..length).map(|n| n as u8).collect::<Vec<_>>());
            let mut fragments = pieces(&whole, size);
            let count = fragments.len();
            fragments.sort_by_key(|f| (f.offset as u64 + 1).wrapping_mul(seed | 1));
            let mut pool = Pool::default();
            let mut done: Vec<Option<Bytes>> =
                fragments.into_iter().map(|f| pool.add(Nanos::ZERO, key(1), f)).collect();
            prop_assert_eq!(done.pop().flatten(), Some(whole));
            prop_assert!(done.iter().all(Option::is_none), "{} fragments", count);
            prop_assert_eq!(pool.incomplete(), 0);
        }
    }

    #[test]
    fn doubles_do_not_complete_and_memory_is_bounded() {
        let whole = Bytes::from_static(&[7; 24]);
        let mut pool = Pool::default();
        for n in 0..3_000 {
            for fragment in pieces(&whole, 1).into_iter().take(1).chain(pieces(&whole, 1).into_iter().take(1))
            {
                assert_eq!(pool.add(Nanos::ZERO, key(n), fragment), None);
            }
        }
        assert_eq!(pool.packets.len(), MAX_PACKETS);
        assert_eq!(pool.incomplete(), 6_000);
        for _ in 0..5_000 {
            pool.add(Nanos::ZERO, key(2_999), Fragment { offset: 0, more: true, payload: Bytes::new() });
        }
        assert!(pool.packets[&key(2_999)].pieces.len() <= MAX_FRAGMENTS);
    }

    #[test]
    fn a_reused_identification_does_not_mix_with_an_old_packet() {
        let mut pool = Pool::default();
        let mut old = pieces(&Bytes::from_static(&[1; 24]), 1).into_iter();
        assert_eq!(pool.add(Nanos::ZERO, key(1), old.next().expect("first")), None);
        let later = Nanos::from_secs(61);
        let new: Vec<_> = pieces(&Bytes::from_static(&[2; 16]), 1)
            .into_iter()
            .map(|f| pool.add(later, key(1), f))
            .collect();
        assert_eq!(new, [None, Some(Bytes::from_static(&[2; 16]))]);
        assert_eq!(pool.incomplete(), 1);
    }
}
