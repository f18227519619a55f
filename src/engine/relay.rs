//! What crosses nodes on its way between clients and owners: a packet that arrived where its slot is not owned
//! (Forward), and a reply that has to leave from an address another node holds (Deliver, answered by DeliverAck once
//! the kernel there took it). Also what waits at an owner: packets for a recovery, replies for a lease.

use super::Outbox;
use super::shard::Shard;
use super::stats::DropReason;
use crate::app::{CallApp, Inbound};
use crate::proto::owner::follower::FrameSink;
use crate::types::{Boot, CallKey, Endpoint, LocalId, Nanos, NodeId, Now, Ordinal, Slot, Term};
use crate::wire::frame::{self, Frame};
use crate::wire::record::{ENTRY_HEADER_LEN, EntryKind};
use std::collections::{BTreeMap, VecDeque};

/// Packets that may wait for recoveries, over all slots of a shard.
const MOST_WAITING: usize = 8_192;
/// Packets that may wait for the map by which their slot is owned here, and for how long: another node knew it first.
const MOST_EARLY: usize = 1_024;
const EARLY_FOR: Nanos = Nanos::from_millis(50);
/// How soon a reply that another node has not confirmed is passed to it again.
const DELIVER_AGAIN_AFTER: Nanos = Nanos::from_millis(5);
/// A chain begins: no reply of this slot and term for this service address was passed to its holder before.
const NONE: u64 = u64::MAX;

/// A node that holds a service address, in which life.
type Holder = (NodeId, Boot);

/// A client's packet that waits for its slot's recovery.
#[derive(Debug)]
pub(super) struct Waiting {
    key: CallKey,
    source: Endpoint,
    local: LocalId,
    payload: Vec<u8>,
}

/// A client's packet that another node passed on by a newer map than the one known here.
#[derive(Debug)]
pub(super) struct Early {
    at: Nanos,
    forward: frame::Forward,
    payload: Vec<u8>,
}

/// A datagram for a client that the driver has.
#[derive(Copy, Clone, Debug)]
pub(super) enum Sent {
    /// An output of a slot owned here (by local index), which leaves by a service address or by none.
    Output { index: u16, term: Term, ordinal: Ordinal, address: Option<u16> },
    /// An output of the owner on `lane`, which waits to hear that it left.
    Delivery { lane: usize, ack: frame::DeliverAck, address: u16 },
    /// Its address was lost before it left: the driver drops it.
    Lost,
}

/// A reply that leaves by another address than its slot's, from the node that holds that one: so it may have to go
/// again, from another node.
#[derive(Debug)]
struct Passed {
    term: Term,
    previous: u64,
    address: u16,
    holder: Holder,
    local: LocalId,
    to: Endpoint,
    bytes: Vec<u8>,
    at: Nanos,
    /// The holder is this node, and its driver has it.
    handed: bool,
}

/// A reply of another owner that is to leave from here.
#[derive(Debug)]
struct Taken {
    lane: usize,
    slot: Slot,
    ack: frame::DeliverAck,
    local: LocalId,
    to: Endpoint,
    bytes: Vec<u8>,
}

/// Replies on their way between nodes.
#[derive(Debug, Default)]
pub(super) struct Delivering {
    /// By local slot index and ordinal: not confirmed yet.
    passed: BTreeMap<(usize, u64), Passed>,
    /// By slot and service address: the term, the holder and the ordinal of the last one passed on.
    last: BTreeMap<(usize, u16), (Term, Holder, u64)>,
    again_at: Option<Nanos>,
    /// Some of those passed are to leave from here.
    home: bool,
    /// From other owners, for the next flush.
    taken: Vec<Taken>,
    /// By slot and service address: term and ordinal of the last reply taken.
    seen: BTreeMap<(u16, u16), (Term, u64)>,
    /// The same of the last one that has left.
    left: BTreeMap<(u16, u16), (Term, u64)>,
    /// Packets from other nodes that wait for a newer map, in order.
    early: VecDeque<Early>,
}

impl Delivering {
    /// The slot is not owned here any more.
    pub(super) fn forget(&mut self, index: usize) {
        self.last.retain(|(slot, _), _| *slot != index);
        self.passed.retain(|(slot, _), _| *slot != index);
    }

    /// When replies are to be passed on again.
    pub(super) fn due(&self) -> Nanos {
        self.again_at.unwrap_or(Nanos::MAX)
    }

    /// Whether a reply comes next in its chain: `None` if so, else whether it was taken before.
    fn repeated(&self, address: u16, deliver: &frame::Deliver) -> Option<bool> {
        let (term, ordinal) = (Term(deliver.term.get()), deliver.ordinal.get());
        let previous = deliver.previous.get();
        match self.seen.get(&(deliver.slot.get(), address)) {
            Some((known, _)) if term < *known => Some(false),
            Some((known, last)) if term == *known && ordinal <= *last => Some(true),
            Some((known, last)) if term == *known && previous == *last => None,
            _ if previous == NONE => None,
            _ => Some(false),
        }
    }

    /// Gives a reply its place behind the last one for its address that was passed to the same holder.
    fn chain(&mut self, index: usize, ordinal: u64, passed: &mut Passed) {
        let (term, holder) = (passed.term, passed.holder);
        let before = self.last.insert((index, passed.address), (term, holder, ordinal));
        let same = before.filter(|(t, h, _)| (*t, *h) == (term, holder));
        passed.previous = same.map_or(NONE, |(_, _, last)| last);
    }
}

impl<A: CallApp> Shard<A> {
    /// Until when this node may release what its slots' members answered; monotonic, [`Nanos::ZERO`]: not at all.
    pub fn on_lease(&mut self, now: Now, until: Nanos) {
        let had = self.may_release(now.mono);
        self.lease = until;
        if !had && self.may_release(now.mono) && !self.releasing.is_empty() {
            self.next = now.mono;
        }
    }

    /// Whether datagrams may be handed to the kernel for clients at `now`, read just before.
    pub fn may_release(&self, now: Nanos) -> bool {
        now < self.lease || !self.config.safeguards.lease
    }

    /// A packet waits until its slot's log is known.
    pub(super) fn wait_for_recovery(
        &mut self,
        index: usize,
        key: CallKey,
        packet: &Inbound<'_>,
    ) -> Result<(), DropReason> {
        // No more than can become entries at once.
        if self.slots[index].waiting.len() as u64 >= self.config.window {
            return Err(DropReason::WindowFull);
        }
        if self.waiting >= MOST_WAITING {
            return Err(DropReason::Recovering);
        }
        let bytes = packet.payload.len() + ENTRY_HEADER_LEN;
        if self.retained + self.waiting_bytes + bytes > self.config.retain_bytes {
            return Err(DropReason::RetainFull);
        }
        self.waiting_bytes += bytes;
        self.waiting += 1;
        let Inbound { source, local, payload } = *packet;
        self.slots[index].waiting.push_back(Waiting { key, source, local, payload: payload.to_vec() });
        Ok(())
    }

    /// What waited for the recovery becomes entries: it had its room when it was let wait.
    pub(super) fn take_waiting(&mut self, now: Now, index: usize) {
        let waiting = std::mem::take(&mut self.slots[index].waiting);
        self.waiting -= waiting.len();
        self.waiting_bytes -= waiting.iter().map(|w| w.payload.len() + ENTRY_HEADER_LEN).sum::<usize>();
        for Waiting { key, source, local, payload } in waiting {
            let packet = Inbound { source, local, payload: &payload };
            if let Err(reason) = self.append_entry(now, index, key, &packet) {
                self.counts.drop(reason);
            }
        }
    }

    /// Appends a packet that there is room for.
    pub(super) fn append_entry(
        &mut self,
        now: Now,
        index: usize,
        key: CallKey,
        packet: &Inbound<'_>,
    ) -> Result<(), DropReason> {
        if let Some(seat) = &self.slots[index].seat {
            seat.table.warm(key);
        }
        let kind = EntryKind::Packet {
            call: key,
            source: packet.source,
            local: packet.local,
            payload: packet.payload,
        };
        self.append(now, index, kind).map_err(|()| DropReason::WindowFull)?;
        self.counts.entries += 1;
        Ok(())
    }

    /// What waited for a recovery that others go on with is passed to them.
    pub(super) fn pass_on(&mut self, index: usize) {
        let waiting = std::mem::take(&mut self.slots[index].waiting);
        self.waiting -= waiting.len();
        self.waiting_bytes -= waiting.iter().map(|w| w.payload.len() + ENTRY_HEADER_LEN).sum::<usize>();
        for Waiting { key, source, local, payload } in waiting {
            if let Err(reason) = self.forward(index, key, &Inbound { source, local, payload: &payload }) {
                self.counts.drop(reason);
            }
        }
    }

    /// A packet of a slot that another node owns goes there.
    pub(super) fn forward(
        &mut self,
        index: usize,
        key: CallKey,
        packet: &Inbound<'_>,
    ) -> Result<(), DropReason> {
        let owner = self.map.owner(self.slot_at(index));
        let lane =
            self.lane(owner.owner).filter(|lane| *lane != self.local && self.lanes[*lane].boot.is_some());
        let lane = lane.ok_or(DropReason::NotOwner)?;
        let forward = frame::Forward {
            local: packet.local.endpoint.into(),
            local_port: packet.local.port.into(),
            port: packet.source.port.into(),
            term: owner.term.0.into(),
            ip: packet.source.ip,
            call: key.0.into(),
        };
        self.lanes[lane].packer.frame(&Frame::Forward(&forward, packet.payload));
        self.counts.forwarded += 1;
        Ok(())
    }

    /// Another node has received a packet of a slot that is owned here, by its map. Of two maps the newer one is right: by
    /// a newer one here the packet goes on to the next owner; by a newer one there it waits for that map to come. So a
    /// packet only moves to higher terms, and comes to rest.
    pub(super) fn on_forward(&mut self, now: Now, forward: &frame::Forward, payload: &[u8]) {
        let key = CallKey(forward.call.get());
        let source = Endpoint { ip: forward.ip, port: forward.port.get() };
        let packet = Inbound {
            source,
            local: LocalId { endpoint: forward.local.get(), port: forward.local_port.get() },
            payload,
        };
        let slot = key.slot(self.map.slots);
        let Some(index) = self.index(slot.0).filter(|_| self.map.has_endpoint(packet.local)) else {
            self.counts.drop(DropReason::NotOwner);
            return;
        };
        let (here, there) = (self.map.owner(slot).term, Term(forward.term.get()));
        let mine = self.slots[index].owner.is_some() || self.slots[index].recovery.is_some();
        if here < there {
            self.wait_for_map(now, forward, payload);
        } else if mine {
            self.counts.forwards_taken += 1;
            // Its drop, if it is dropped, is counted there.
            let _ = self.on_client(now, key, &packet);
        } else {
            let passed =
                if here > there { self.forward(index, key, &packet) } else { Err(DropReason::NotOwner) };
            if let Err(reason) = passed {
                self.counts.drop(reason);
            }
        }
    }

    fn wait_for_map(&mut self, now: Now, forward: &frame::Forward, payload: &[u8]) {
        let old = |early: &Early| now.mono.since(early.at) >= EARLY_FOR;
        while self.delivering.early.front().is_some_and(old) {
            self.delivering.early.pop_front();
            self.counts.drop(DropReason::NotOwner);
        }
        if self.delivering.early.len() < MOST_EARLY {
            self.delivering.early.push_back(Early {
                at: now.mono,
                forward: *forward,
                payload: payload.to_vec(),
            });
        } else {
            self.counts.drop(DropReason::NotOwner);
        }
    }

    /// There is a newer map: packets may have waited for it.
    pub(super) fn take_early(&mut self, now: Now) {
        for early in std::mem::take(&mut self.delivering.early) {
            let slot = CallKey(early.forward.call.get()).slot(self.map.slots);
            if now.mono.since(early.at) >= EARLY_FOR {
                self.counts.drop(DropReason::NotOwner);
            } else if self.map.owner(slot).term < Term(early.forward.term.get()) {
                self.delivering.early.push_back(early);
            } else {
                self.on_forward(now, &early.forward, &early.payload);
            }
        }
    }

    /// Who holds the service address of this endpoint, if it is not this node.
    fn holder(&self, local: LocalId) -> Option<Holder> {
        let address = *self.map.endpoints.get(usize::from(local.endpoint))?;
        let holder = self.map.addresses.get(usize::from(address))?;
        let holder = (holder.owner, holder.boot);
        (holder != (self.config.me, self.config.boot)).then_some(holder)
    }

    /// The service address of an endpoint that exists.
    fn address_of(&self, local: LocalId) -> u16 {
        self.map.endpoints.get(usize::from(local.endpoint)).copied().unwrap_or_default()
    }

    fn holder_or_me(&self, local: LocalId) -> Holder {
        self.holder(local).unwrap_or((self.config.me, self.config.boot))
    }

    /// Hands over what may leave, and passes on what leaves elsewhere.
    pub(super) fn release(&mut self, now: Now, out: &mut impl Outbox) {
        if self.releasing.is_empty() && self.delivering.taken.is_empty() && !self.delivering.home {
            return;
        }
        if !self.may_release(now.mono) {
            self.counts.lease_waits += 1;
            return;
        }
        // Those first: some may be older outputs of slots here, whose address has come back.
        for taken in std::mem::take(&mut self.delivering.taken) {
            out.client(taken.slot, taken.local, taken.to, &taken.bytes);
            let (ack, address) = (taken.ack, self.address_of(taken.local));
            self.sends.push_back(Sent::Delivery { lane: taken.lane, ack, address });
        }
        self.release_home(out);
        let map = std::sync::Arc::clone(&self.map);
        while let Some(index) = self.releasing.pop_front() {
            let slot = usize::from(index);
            self.slots[slot].releasing = false;
            let number = self.slot_at(slot);
            let (me, boot) = (self.config.me, self.config.boot);
            let own = map.address_of(number) as u16;
            let address_of = |local: LocalId| map.endpoints.get(usize::from(local.endpoint)).copied();
            let Some(term) = self.slots[slot].owner.as_ref().map(|owner| owner.term()) else { continue };
            let (mut sends, mut foreign) = (std::mem::take(&mut self.sends), Vec::new());
            self.changing(slot, |owner, _, _| {
                owner.release(|ordinal, local, to, bytes| {
                    let address = address_of(local);
                    let here = address.is_none_or(|address| map.owns(usize::from(address), me, boot));
                    if here {
                        out.client(number, local, to, bytes);
                        sends.push_back(Sent::Output { index, term, ordinal, address });
                    }
                    if !here || address.is_some_and(|address| address != own) {
                        foreign.push((ordinal, local, to, bytes.to_vec()));
                    }
                })
            });
            self.sends = sends;
            for (ordinal, local, to, bytes) in foreign {
                self.deliver(now, slot, term, (ordinal, local, to, bytes));
            }
        }
    }

    /// Hands over what another node was to send, or the driver dropped, and now leaves from here: before anything newer.
    fn release_home(&mut self, out: &mut impl Outbox) {
        if !std::mem::take(&mut self.delivering.home) {
            return;
        }
        let mut passed = std::mem::take(&mut self.delivering.passed);
        let me = (self.config.me, self.config.boot);
        for ((index, ordinal), reply) in passed.iter_mut().filter(|(_, p)| p.holder == me && !p.handed) {
            out.client(self.slot_at(*index), reply.local, reply.to, &reply.bytes);
            reply.handed = true;
            let address = Some(self.address_of(reply.local));
            let (index, ordinal, term) = (*index as u16, Ordinal(*ordinal), reply.term);
            self.sends.push_back(Sent::Output { index, term, ordinal, address });
        }
        self.delivering.passed = passed;
    }

    /// Keeps a reply that leaves by another address than its slot's until it has left, and passes it to the node that
    /// holds the address, unless that is this one.
    fn deliver(
        &mut self,
        now: Now,
        index: usize,
        term: Term,
        (ordinal, local, to, bytes): (Ordinal, LocalId, Endpoint, Vec<u8>),
    ) {
        let (address, holder) = (self.address_of(local), self.holder_or_me(local));
        let handed = holder == (self.config.me, self.config.boot);
        let mut passed =
            Passed { term, previous: NONE, address, holder, local, to, bytes, at: now.mono, handed };
        if !handed {
            self.delivering.chain(index, ordinal.0, &mut passed);
            self.write_delivery(index, ordinal.0, &passed);
            self.counts.delivered += 1;
        }
        self.delivering.passed.insert((index, ordinal.0), passed);
        self.delivering.again_at.get_or_insert(now.mono + DELIVER_AGAIN_AFTER);
    }

    fn write_delivery(&mut self, index: usize, ordinal: u64, passed: &Passed) {
        let Some(lane) = self.lane(passed.holder.0) else { return };
        let deliver = frame::Deliver {
            slot: self.slot_at(index).0.into(),
            local: passed.local.endpoint.into(),
            local_port: passed.local.port.into(),
            port: passed.to.port.into(),
            term: passed.term.0.into(),
            ordinal: ordinal.into(),
            previous: passed.previous.into(),
            ip: passed.to.ip,
        };
        self.lanes[lane].packer.frame(&Frame::Deliver(&deliver, &passed.bytes));
    }

    /// Passes on again what has not been confirmed; where an address has moved, to its new holder, as a new chain. That
    /// must be before anything newer is passed to that one.
    pub(super) fn deliver_again(&mut self, now: Now) {
        self.delivering.again_at = None;
        let mut passed = std::mem::take(&mut self.delivering.passed);
        let me = (self.config.me, self.config.boot);
        for ((index, ordinal), reply) in &mut passed {
            let holder = self.holder_or_me(reply.local);
            if holder != reply.holder {
                (reply.holder, reply.handed, reply.at) = (holder, false, Nanos::ZERO);
                self.delivering.chain(*index, *ordinal, reply);
            }
            if holder == me {
                self.delivering.home |= !reply.handed;
            } else if self.may_release(now.mono) && now.mono.since(reply.at) >= DELIVER_AGAIN_AFTER {
                reply.at = now.mono;
                self.counts.delivered_again += 1;
                self.write_delivery(*index, *ordinal, reply);
            }
        }
        self.delivering.passed = passed;
        if !self.delivering.passed.is_empty() {
            self.delivering.again_at = Some(now.mono + DELIVER_AGAIN_AFTER);
        }
    }

    /// A service address has got another term: what the driver had for it and has not sent it drops; whoever passed it
    /// here has to pass it on again, and what is of slots here goes again.
    pub(super) fn lose_address(&mut self, address: u16) {
        let Delivering { passed, taken, seen, left, .. } = &mut self.delivering;
        for sent in &mut self.sends {
            match sent {
                Sent::Delivery { address: of, .. } if *of == address => *sent = Sent::Lost,
                Sent::Output { address: Some(of), index, term, ordinal } if *of == address => {
                    let reply = passed.get_mut(&(usize::from(*index), ordinal.0));
                    if let Some(reply) = reply.filter(|reply| reply.term == *term) {
                        reply.handed = false;
                    }
                    *sent = Sent::Lost;
                }
                _ => {}
            }
        }
        let map = std::sync::Arc::clone(&self.map);
        let of = |local: LocalId| map.endpoints.get(usize::from(local.endpoint)).copied();
        taken.retain(|taken| of(taken.local) != Some(address));
        // Nor does what is of an owner that another one has followed leave any more: that one says it.
        taken.retain(|taken| Term(taken.ack.term.get()) >= map.owner(taken.slot).term);
        seen.retain(|(_, of), _| *of != address);
        seen.extend(left.iter().filter(|((_, of), _)| *of == address).map(|(key, place)| (*key, *place)));
    }

    /// Another owner's reply is to leave from here: once, in its order, and only from an address held here.
    pub(super) fn on_deliver(&mut self, lane: usize, deliver: &frame::Deliver, payload: &[u8]) {
        let local = LocalId { endpoint: deliver.local.get(), port: deliver.local_port.get() };
        let ack = frame::DeliverAck { slot: deliver.slot, term: deliver.term, ordinal: deliver.ordinal };
        let held = self.map.has_endpoint(local) && self.holder(local).is_none();
        // Of an owner that another one has followed: that one says it, if it is still to be said.
        let old = || Term(deliver.term.get()) < self.map.owner(Slot(deliver.slot.get())).term;
        if !held || self.index(deliver.slot.get()).is_none() || old() {
            self.counts.deliveries_refused += 1;
            return;
        }
        let address = self.address_of(local);
        match self.delivering.repeated(address, deliver) {
            Some(true) => {
                // It waits here, or has left.
                let waits = self.delivering.taken.iter().any(|t| t.ack == ack)
                    || self.sends.iter().any(|s| matches!(s, Sent::Delivery { ack: a, .. } if *a == ack));
                if !waits {
                    self.lanes[lane].packer.frame(&Frame::DeliverAck(&ack));
                }
            }
            Some(false) => self.counts.deliveries_refused += 1,
            None => {
                let (term, ordinal) = (Term(deliver.term.get()), deliver.ordinal.get());
                self.delivering.seen.insert((deliver.slot.get(), address), (term, ordinal));
                self.counts.deliveries_taken += 1;
                let to = Endpoint { ip: deliver.ip, port: deliver.port.get() };
                let (slot, bytes) = (Slot(deliver.slot.get()), payload.to_vec());
                self.delivering.taken.push(Taken { lane, slot, ack, local, to, bytes });
            }
        }
    }

    /// A reply has left from the node that holds its address.
    pub(super) fn on_deliver_ack(&mut self, now: Now, lane: usize, ack: &frame::DeliverAck) {
        let Some(index) = self.index(ack.slot.get()) else {
            self.counts.drop_no_slot += 1;
            return;
        };
        let holder = (self.lanes[lane].node, self.lanes[lane].boot.unwrap_or_default());
        let (term, key) = (Term(ack.term.get()), (index, ack.ordinal.get()));
        let known = self.delivering.passed.get(&key).is_some_and(|p| p.holder == holder && p.term == term);
        if !known {
            self.counts.drop_ahead += 1;
            return;
        }
        self.delivering.passed.remove(&key);
        self.on_output_sent(now, index, term, Ordinal(key.1));
    }

    /// The driver is done with `count` more of the datagrams for clients, oldest first.
    pub fn on_sent(&mut self, now: Now, count: usize) {
        assert!(count <= self.sends.len(), "{count} datagrams sent, {} handed over", self.sends.len());
        for _ in 0..count {
            match self.sends.pop_front() {
                Some(Sent::Output { index, term, ordinal, .. }) => {
                    let key = (usize::from(index), ordinal.0);
                    if self
                        .delivering
                        .passed
                        .get(&key)
                        .is_some_and(|reply| reply.handed && reply.term == term)
                    {
                        self.delivering.passed.remove(&key);
                    }
                    self.on_output_sent(now, key.0, term, ordinal);
                }
                Some(Sent::Delivery { lane, ack, address }) => {
                    let place = (Term(ack.term.get()), ack.ordinal.get());
                    self.delivering.left.insert((ack.slot.get(), address), place);
                    self.lanes[lane].packer.frame(&Frame::DeliverAck(&ack));
                    self.next = now.mono;
                }
                Some(Sent::Lost) => {}
                None => break,
            }
        }
        self.next = self.next.min(self.next_timer());
    }

    fn on_output_sent(&mut self, now: Now, index: usize, term: Term, ordinal: Ordinal) {
        let current = self.slots[index].owner.as_ref().is_some_and(|owner| owner.term() == term);
        if !current {
            return;
        }
        self.counts.released += 1;
        let grew = self.changing(index, |owner, _, _| owner.on_sent(now.mono, ordinal));
        if grew == Some(true) {
            self.tell_released(now, index);
        }
        self.arm(index);
    }
}
