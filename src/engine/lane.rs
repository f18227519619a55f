//! The way to one node: what waits to be sent to it, packed into datagrams, and the clock of its bundles.
//!
//! A bundle is all that one flush sends to a node as an owner. Its number comes back as an echo with the
//! member's acks. With no bundle under way a flush goes at once; while one is, entries gather for its echo, so
//! the busier a node is, the more entries share a datagram. A lane that has gathered [`GATHER_BYTES`], or whose echo is
//! overdue, or of which something was lost (Nak), does not wait. Where nothing presses, because other members commit and
//! answer what waits, it gathers for TANDEM_LAZY_AFTER: only there does anything wait for a timer.

use crate::engine::Outbox;
use crate::proto::owner::follower::FrameSink;
use crate::proto::rtt::Rtt;
use crate::types::{Boot, Nanos, NodeId};
use crate::wire::frame::Frame;
use std::collections::VecDeque;
use std::ops::Range;

/// Gathering stops when this many bytes of entries wait.
const GATHER_BYTES: usize = 32 * 1024;

/// The way to one node of the cluster, this node included.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) node: NodeId,
    /// Its life, once it has joined.
    pub(super) boot: Option<Boot>,
    pub(super) suspect: bool,
    /// Slots (by local index) with something for the member on this node that clients may wait for.
    pub(super) first: VecDeque<u16>,
    /// The same for what nobody waits for: a map may concern every slot at once.
    pub(super) behind: VecDeque<u16>,
    /// Slots whose member here has something for the owner on that node.
    pub(super) replies: VecDeque<u16>,
    /// Slots (by local index) of which the member on this node is to be told what is on the wire, and by when.
    pub(super) told: VecDeque<u16>,
    pub(super) told_at: Nanos,
    /// Something that waits is needed now.
    pub(super) pressing: bool,
    /// When what waits without being needed goes all the same.
    pub(super) lazy_at: Nanos,
    /// Bytes of entries that have gathered since the last bundle.
    pub(super) gathered: usize,
    /// The newest bundle number received from it, to be echoed.
    pub(super) echo: Option<u32>,
    under_way: Option<(u32, Nanos)>,
    /// The oldest bundle that no echo has come for: what is timed.
    timed: Option<(u32, Nanos)>,
    pub(super) packer: Packer,
}

impl Lane {
    pub(super) fn new(node: NodeId, room: usize) -> Lane {
        Lane {
            node,
            boot: None,
            suspect: false,
            first: VecDeque::new(),
            behind: VecDeque::new(),
            replies: VecDeque::new(),
            told: VecDeque::new(),
            told_at: Nanos::MAX,
            pressing: false,
            lazy_at: Nanos::MAX,
            gathered: 0,
            echo: None,
            under_way: None,
            timed: None,
            packer: Packer::new(room),
        }
    }

    pub(super) fn trusted(&self) -> bool {
        self.boot.is_some() && !self.suspect
    }

    /// Whether any slot has something for the member on this node.
    pub(super) fn is_dirty(&self) -> bool {
        !self.first.is_empty() || !self.behind.is_empty()
    }

    /// The slot to be written of next; of those that nobody waits for one for each of `behind`.
    pub(super) fn next_slot(&mut self, behind: &mut Range<usize>) -> Option<u16> {
        self.first.pop_front().or_else(|| {
            let slot = self.behind.front().copied().filter(|_| behind.next().is_some())?;
            self.behind.pop_front();
            Some(slot)
        })
    }

    /// Whether a bundle may go now.
    pub(super) fn open(&self, now: Nanos, rtt: &Rtt) -> bool {
        self.gathered >= GATHER_BYTES || self.opens_at(rtt) <= now
    }

    /// When a bundle may go even if no echo comes.
    pub(super) fn opens_at(&self, rtt: &Rtt) -> Nanos {
        let wanted = if self.pressing { Nanos::ZERO } else { self.lazy_at.min(self.told_at) };
        self.under_way.map_or(wanted, |(_, sent)| wanted.max(sent + rtt.timeout()))
    }

    /// What waits, and is not needed, goes `patience` after it was first seen here.
    pub(super) fn be_patient(&mut self, now: Nanos, patience: Nanos) {
        if self.is_dirty() && !self.pressing {
            self.lazy_at = self.lazy_at.min(now + patience);
        }
    }

    /// Bundle `number` has been written for this node.
    pub(super) fn end_bundle(&mut self, now: Nanos, number: u32) {
        self.under_way = Some((number, now));
        self.timed = self.timed.or(self.under_way);
        self.gathered = 0;
    }

    /// An echo came; returns the round-trip time if it is that of the newest bundle.
    pub(super) fn on_echo(&mut self, now: Nanos, number: u32) -> Option<Nanos> {
        let newer = |than: u32| number.wrapping_sub(than) < u32::MAX / 2;
        let known = self.under_way.is_some_and(|(newest, _)| newest.wrapping_sub(number) < u32::MAX / 2);
        let (_, sent) = self.timed.filter(|(bundle, _)| known && newer(*bundle))?;
        self.timed = self.under_way.filter(|(bundle, _)| *bundle != number);
        self.under_way = self.timed;
        Some(now.since(sent))
    }

    /// Entries were lost on the way, perhaps with the number that was to be echoed: what is sent again waits for no echo.
    pub(super) fn on_missed(&mut self) {
        (self.under_way, self.timed) = (None, None);
    }

    /// A bundle number came; the newest one is echoed.
    pub(super) fn on_bundle(&mut self, number: u32) {
        let newer = |old: u32| number.wrapping_sub(old) < u32::MAX / 2;
        if self.echo.is_none_or(newer) {
            self.echo = Some(number);
        }
    }

    /// Forgets what was under way: the node lives a new life, or is suspected.
    pub(super) fn forget(&mut self) {
        self.under_way = None;
        self.timed = None;
        self.gathered = 0;
        self.echo = None;
    }

    pub(super) fn send(&mut self, out: &mut impl Outbox) {
        self.packer.drain(|datagram| out.peer(self.node, datagram));
    }
}

/// Packs frames into datagrams of at most `room` bytes. All but the last are padded to the same length, which
/// is what lets a driver hand them to the kernel in one GSO send.
#[derive(Debug)]
pub(super) struct Packer {
    room: usize,
    bytes: Vec<u8>,
    /// Where each finished datagram ends.
    ends: Vec<usize>,
}

impl Packer {
    pub(super) fn new(room: usize) -> Packer {
        Packer { room, bytes: Vec::new(), ends: Vec::new() }
    }

    /// Bytes written so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn start(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Hands over every datagram and starts afresh.
    pub(super) fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        if self.bytes.len() > self.start() {
            self.ends.push(self.bytes.len());
        }
        let mut start = 0;
        for end in self.ends.drain(..) {
            take(&self.bytes[start..end]);
            start = end;
        }
        self.bytes.clear();
    }
}

impl FrameSink for Packer {
    fn room(&self) -> usize {
        self.room.saturating_sub(self.bytes.len() - self.start())
    }

    fn next_datagram(&mut self) {
        let start = self.start();
        if self.bytes.len() > start {
            self.bytes.resize(self.bytes.len().max(start + self.room), 0);
            self.ends.push(self.bytes.len());
        }
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        if frame.len() > self.room() {
            self.next_datagram();
        }
        frame.write(&mut self.bytes);
        if frame.len() > self.room {
            self.ends.push(self.bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Frames, Outputs};
    use zerocopy::FromZeros;

    #[test]
    fn datagrams_are_full_but_the_last_and_hold_every_frame() {
        let mut packer = Packer::new(100);
        for n in 0..50 {
            packer.frame(&Frame::Bundle(n));
        }
        let mut lengths = Vec::new();
        let mut read = Vec::new();
        packer.drain(|datagram| {
            lengths.push(datagram.len());
            for frame in Frames::new(datagram) {
                let Ok(Frame::Bundle(n)) = frame else { panic!("{frame:?}") };
                read.push(n);
            }
        });
        assert_eq!(read, (0..50).collect::<Vec<_>>());
        let (last, full) = lengths.split_last().unwrap();
        assert!(full.iter().all(|n| *n == 100) && *last <= 100, "{lengths:?}");
        assert!(packer.is_empty());
    }

    #[test]
    fn a_frame_longer_than_a_datagram_travels_alone() {
        let mut packer = Packer::new(100);
        let header = Outputs::new_zeroed();
        packer.frame(&Frame::Bundle(1));
        packer.frame(&Frame::Outputs(&header, &[1; 300]));
        packer.frame(&Frame::Bundle(2));
        let mut lengths = Vec::new();
        packer.drain(|datagram| lengths.push(datagram.len()));
        assert_eq!(lengths, [100, 3 + size_of::<Outputs>() + 300, 7]);
    }

    #[test]
    fn a_bundle_waits_for_the_echo_of_the_one_under_way() {
        let rtt = Rtt::new(Nanos::from_millis(2), Nanos::from_millis(1), Nanos::from_millis(10));
        let mut lane = Lane::new(NodeId(2), 1000);
        lane.pressing = true;
        let at = Nanos::from_millis;
        assert!(lane.open(at(1), &rtt));
        lane.end_bundle(at(1), 1);
        assert!(!lane.open(at(2), &rtt));
        assert_eq!(lane.on_echo(at(2), 9), None);
        assert_eq!(lane.on_echo(at(2), 1), Some(at(1)));
        assert!(lane.open(at(2), &rtt));
        lane.end_bundle(at(2), 2);
        assert!(!lane.open(at(3), &rtt) && lane.open(at(4), &rtt), "an echo that is overdue opens the lane");
        lane.on_missed();
        assert!(lane.open(at(3), &rtt), "and so does the word that one was lost");
        lane.end_bundle(at(3), 3);
        lane.gathered = GATHER_BYTES;
        assert!(lane.open(at(3), &rtt));
    }

    #[test]
    fn what_clients_wait_for_is_written_of_first_and_all_of_it() {
        let mut lane = Lane::new(NodeId(2), 1000);
        lane.behind.extend(0..5);
        lane.first.extend(7..9);
        let mut behind = 0..2;
        let bundle: Vec<u16> = std::iter::from_fn(|| lane.next_slot(&mut behind)).collect();
        assert_eq!(bundle, [7, 8, 0, 1]);
        assert!(lane.is_dirty(), "the others go with the next one");
        assert_eq!(lane.next_slot(&mut (0..9)), Some(2));
    }

    #[test]
    fn what_nothing_needs_gathers_until_it_is_late_or_something_presses() {
        let rtt = Rtt::new(Nanos::from_millis(2), Nanos::from_millis(1), Nanos::from_millis(10));
        let mut lane = Lane::new(NodeId(2), 1000);
        let at = Nanos::from_millis;
        lane.first.push_back(7);
        lane.be_patient(at(1), at(2));
        lane.be_patient(at(2), at(2));
        assert!(!lane.open(at(2), &rtt) && lane.open(at(3), &rtt), "counted from the first");
        lane.told_at = at(2);
        assert!(lane.open(at(2), &rtt), "what is to be told then takes it along");
        lane.told_at = Nanos::MAX;
        lane.pressing = true;
        assert!(lane.open(at(2), &rtt));
    }
}
