//! One shard: the owner and member sides of its slots, the application, and the ways to the other nodes.
//!
//! Everything here is driven by the contract in [`crate::engine`]. This file takes input; `flush` writes; `takeover`
//! follows the cluster map, `relay` is for packets and replies that cross nodes, `resync` for learners.

use super::admission::{Admission, AdmissionLimits};
use super::lane::{Lane, Packer};
use super::machine::SlotMachine;
use super::relay::{Delivering, Sent, Waiting};
use super::report::{ShardReport, Standing};
use super::resync::Resync;
use super::stats::{DropReason, ShardStats};
use crate::app::table::{CallTable, TableLimits};
use crate::app::{CallApp, Inbound};
use crate::proto::Safeguards;
use crate::proto::clock::LogicalClock;
use crate::proto::map::ClusterMap;
use crate::proto::member::{Member, Refused};
use crate::proto::owner::recovery::Recovery;
use crate::proto::owner::{Owner, Stale};
use crate::proto::rtt::Rtt;
use crate::types::{Boot, CallKey, Nanos, NodeId, NodeSet, Now, Position, Slot, Term};
use crate::wire::frame::{self, Frame, Frames};
use crate::wire::record::{Entry, EntryKind, MAX_PAYLOAD};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

/// How long a node must have been trusted before it gets its masterships back.
pub(super) const MASTER_BACK_AFTER: Nanos = Nanos::from_secs(1);
/// How soon that is tried again for those that had not caught up.
const MASTER_AGAIN_AFTER: Nanos = Nanos::from_millis(50);
/// How often a shard that keeps too much looks for members to give up.
const GIVE_UP_EVERY: Nanos = Nanos::from_millis(1);
/// Late outputs are asked of another member after at most this, however slow answers have become.
const HEDGE_CAP: Nanos = Nanos::from_millis(50);

/// What a shard is told once.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// This node.
    pub me: NodeId,
    /// This life of it.
    pub boot: Boot,
    /// This shard's number.
    pub shard: u16,
    /// How many shards every node has.
    pub shards: u16,
    /// Every node there may ever be, this one included.
    pub nodes: Vec<NodeId>,
    /// The map to begin with: of version 0, as a rule.
    pub map: Arc<ClusterMap>,
    /// Most plaintext bytes in a datagram to another node.
    pub datagram_room: usize,
    /// Most entries of a slot that may wait, or be kept for a slow member.
    pub window: u64,
    /// Most bytes of entries and outputs that the owner side may keep.
    pub retain_bytes: usize,
    /// Limits of each slot's call table; the same on every node.
    pub limits: TableLimits,
    /// Positions between two digest checkpoints; the same on every node.
    pub digest_every: u64,
    /// The least delay after which late outputs are asked of another member.
    pub hedge_after: Nanos,
    /// One multicast datagram for all members instead of one bundle for each.
    pub multicast: bool,
    /// How long entries may gather for a member without which they commit; 0: not at all.
    pub lazy_after: Nanos,
    /// An owner's own members are the masters, not those that the map puts first.
    pub masters_own: bool,
    /// Slots for which nobody waits that a new owner opens in one turn.
    pub opens_a_turn: usize,
    /// After how much waiting for a commit a slot is reported as blocked.
    pub blocked_after: Nanos,
    /// Whether a slot goes on with the best log left when every holder of a commit set has died at once.
    pub lossy_go: bool,
    /// Snapshot bytes a second that this shard takes in while it catches up; 0: no limit.
    pub resync_rate: u64,
    /// Which new calls this shard takes as an ingress: its share of the node's limits.
    pub admission: AdmissionLimits,
    /// What the keeper of a slot is told first when its log begins here.
    pub founding: Option<Arc<[u8]>>,
    /// What the keeper of a slot is told when the slot's master or owner is another; `None`: nothing.
    pub takeover: Option<Arc<[u8]>>,
    /// The rules that make the slot log safe.
    pub safeguards: Safeguards,
}

/// The member side of a slot with its calls.
pub(super) struct Seat<A: CallApp> {
    pub(super) log: Member,
    pub(super) table: CallTable<A>,
    pub(super) ack_due: bool,
    pub(super) nak_due: Option<Position>,
    /// The lane in whose queue of replies it waits.
    pub(super) queued: Option<usize>,
}

/// What this shard has of one slot.
pub(super) struct SlotState<A: CallApp> {
    pub(super) owner: Option<Owner>,
    /// It is owned here, but what its log is has still to be found.
    pub(super) recovery: Option<Box<Recovery>>,
    /// It is found, and the slot may be opened.
    pub(super) ready: bool,
    /// Clients' packets that wait for that.
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) seat: Option<Seat<A>>,
    /// How far its logical time is ahead of this shard's clock, because an owner's before was.
    pub(super) ahead: Nanos,
    /// When its entry in the timer heap fires; others of this slot are stale.
    pub(super) scheduled: Nanos,
    /// It waits in the queue of slots whose members are to be told.
    pub(super) telling: bool,
    pub(super) releasing: bool,
}

impl<A: CallApp> SlotState<A> {
    fn new() -> SlotState<A> {
        SlotState {
            owner: None,
            recovery: None,
            ready: false,
            waiting: VecDeque::new(),
            seat: None,
            ahead: Nanos::ZERO,
            scheduled: Nanos::MAX,
            telling: false,
            releasing: false,
        }
    }
}

/// One shard of a node.
pub struct Shard<A: CallApp> {
    pub(super) config: ShardConfig,
    pub(super) app: A,
    pub(super) clock: Option<LogicalClock>,
    pub(super) lanes: Vec<Lane>,
    /// Round-trip times, by lane.
    pub(super) rtts: Vec<Rtt>,
    /// The lane to this node itself.
    pub(super) local: usize,
    pub(super) slots: Vec<SlotState<A>>,
    pub(super) timers: BinaryHeap<Reverse<(Nanos, u16)>>,
    /// Slots whose members are to be told of progress, and when. All wait equally long, so this needs no heap, and
    /// the heap holds only what may be late soon.
    pub(super) tells: VecDeque<(Nanos, u16)>,
    /// How long answers take, from append to the last output.
    pub(super) answers: Rtt,
    /// What was handed to the driver for clients and whose fate is not known, in order.
    pub(super) sends: VecDeque<Sent>,
    /// Slots that may have outputs to release.
    pub(super) releasing: VecDeque<u16>,
    pub(super) restore_at: Nanos,
    give_up_at: Nanos,
    pub(super) retained: usize,
    pub(super) next: Nanos,
    pub(super) counts: ShardStats,
    /// The number of the newest bundle, counted over all lanes.
    pub(super) bundle: u32,
    /// Datagrams being filled for several members at once.
    pub(super) groups: Vec<(NodeSet, Packer)>,
    /// Filled while what the local lane holds is taken.
    pub(super) spare: Packer,
    /// The newest map.
    pub(super) map: Arc<ClusterMap>,
    /// Until when this node may release.
    pub(super) lease: Nanos,
    /// Slots that are being recovered, when they are asked for again, and how often they have been.
    pub(super) recovering: u32,
    /// Those that may be opened.
    pub(super) ready: VecDeque<u16>,
    pub(super) seal_at: Nanos,
    pub(super) seal_round: u32,
    /// Packets that wait for a recovery, over all slots.
    pub(super) waiting: usize,
    /// What they will take as entries, in bytes.
    pub(super) waiting_bytes: usize,
    /// The newest logical time an owner said, and when that was here.
    pub(super) heard_time: Option<Now>,
    pub(super) delivering: Delivering,
    pub(super) resync: Resync,
    pub(super) standing: Standing,
    /// Slots whose keepers are to be told that the master is another.
    pub(super) moved: Vec<u16>,
    pub(super) admission: Admission,
}

impl<A: CallApp> Shard<A> {
    /// A shard without calls.
    pub fn new(config: ShardConfig, app: A) -> Shard<A> {
        let rtt = Rtt::new(Nanos::from_millis(2), Nanos::from_micros(500), Nanos::from_millis(100));
        let lanes: Vec<Lane> = config.nodes.iter().map(|n| Lane::new(*n, config.datagram_room)).collect();
        let me = config.me;
        let Some(local) = lanes.iter().position(|l| l.node == me) else {
            panic!("node {me} is not one of the cluster's nodes")
        };
        let mut shard = Shard {
            rtts: vec![rtt; lanes.len()],
            local,
            lanes,
            clock: None,
            slots: Vec::new(),
            timers: BinaryHeap::new(),
            tells: VecDeque::new(),
            answers: Rtt::new(config.hedge_after, config.hedge_after, HEDGE_CAP.max(config.hedge_after)),
            sends: VecDeque::new(),
            releasing: VecDeque::new(),
            restore_at: Nanos::MAX,
            give_up_at: Nanos::ZERO,
            retained: 0,
            next: Nanos::MAX,
            counts: ShardStats::default(),
            bundle: 0,
            groups: Vec::new(),
            spare: Packer::new(config.datagram_room),
            map: Arc::clone(&config.map),
            lease: Nanos::ZERO,
            recovering: 0,
            ready: VecDeque::new(),
            seal_at: Nanos::MAX,
            seal_round: 0,
            waiting: 0,
            waiting_bytes: 0,
            heard_time: None,
            delivering: Delivering::default(),
            resync: Resync::default(),
            standing: Standing::default(),
            moved: Vec::new(),
            admission: Admission::new(config.admission),
            config,
            app,
        };
        shard.lanes[local].boot = Some(shard.config.boot);
        let own = shard.config.map.slots.saturating_sub(shard.config.shard).div_ceil(shard.config.shards);
        shard.slots = (0..own).map(|_| SlotState::new()).collect();
        shard
    }

    /// The slot with this local index.
    pub(super) fn slot_at(&self, index: usize) -> Slot {
        Slot(index as u16 * self.config.shards + self.config.shard)
    }

    /// When [`Shard::on_timeout`] wants to be called; `Nanos::MAX`: not before something arrives.
    pub fn next_timeout(&self) -> Nanos {
        self.next
    }

    pub(super) fn lane(&self, node: NodeId) -> Option<usize> {
        self.lanes.iter().position(|l| l.node == node)
    }

    /// The local index of `slot`, if it is this shard's.
    pub(super) fn index(&self, slot: u16) -> Option<usize> {
        let here = slot < self.map.slots && slot % self.config.shards == self.config.shard;
        here.then(|| usize::from(slot / self.config.shards))
    }

    /// Takes a client's datagram that the application classified as `key`: it becomes an entry of its slot.
    pub fn on_client(&mut self, now: Now, key: CallKey, packet: &Inbound<'_>) -> Result<(), DropReason> {
        let result = self.append_packet(now, key, packet);
        if let Err(reason) = result {
            self.counts.drop(reason);
        }
        result
    }

    pub(super) fn append_packet(
        &mut self,
        now: Now,
        key: CallKey,
        packet: &Inbound<'_>,
    ) -> Result<(), DropReason> {
        let index = self.index(key.slot(self.map.slots).0).ok_or(DropReason::WrongShard)?;
        if packet.payload.len() > MAX_PAYLOAD {
            return Err(DropReason::TooLong);
        }
        if self.slots[index].recovery.is_some() && !self.open_if_ready(now, index) {
            return self.wait_for_recovery(index, key, packet);
        }
        if self.slots[index].owner.is_none() {
            return self.forward(index, key, packet);
        }
        if self.retained > self.config.retain_bytes && !self.give_up_lost_members(now) {
            return Err(DropReason::RetainFull);
        }
        self.append_entry(now, index, key, packet)
    }

    pub(super) fn append(&mut self, now: Now, index: usize, kind: EntryKind<'_>) -> Result<(), ()> {
        let time = self.time_of(now, index);
        let before = self.retained;
        let appended = self.changing(index, |owner, _, _| {
            owner.append(now.mono, Entry { time, term: Term(0), kind }).is_ok()
        });
        if appended != Some(true) {
            return Err(());
        }
        let grown = self.retained.saturating_sub(before);
        for lane in &mut self.lanes {
            lane.gathered += grown;
        }
        self.enqueue(index);
        self.arm(index);
        Ok(())
    }

    /// The shard keeps too much: in every slot the member that holds least is given up if it is suspected or has
    /// missed ack after ack, as far as the others can commit without it. Returns whether that freed anything.
    fn give_up_lost_members(&mut self, now: Now) -> bool {
        if now.mono < self.give_up_at {
            return false;
        }
        self.give_up_at = now.mono + GIVE_UP_EVERY;
        let before = self.retained;
        for index in 0..self.slots.len() {
            self.changing(index, |owner, _, _| owner.retained().1 > 0 && owner.demote_lost());
        }
        self.retained < before
    }

    /// Runs `change` on the owner of a slot and accounts for what it kept or let go, and for what it decided.
    pub(super) fn changing<T>(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut Owner, &[Rtt], &mut ShardStats) -> T,
    ) -> Option<T> {
        let owner = self.slots[index].owner.as_mut()?;
        let (before, master) = (owner.retained().0, owner.master());
        let (diverged, demoted) = (owner.divergences(), owner.demotions());
        let result = change(owner, &self.rtts, &mut self.counts);
        self.retained = (self.retained + owner.retained().0).saturating_sub(before);
        if owner.master() != master {
            self.counts.master_changes += 1;
            let tell = self.config.takeover.is_some() && owner.tail() > Position(0);
            self.moved.extend(tell.then_some(index as u16));
        }
        self.counts.divergences += owner.divergences() - diverged;
        self.counts.demotions += owner.demotions() - demoted;
        Some(result)
    }

    /// The life in which `node` has joined the cluster. A new life of it holds nothing of what the old one did.
    pub fn on_join(&mut self, now: Now, node: NodeId, boot: Boot) {
        let Some(lane) = self.lane(node).filter(|l| *l != self.local) else { return };
        if self.lanes[lane].boot.is_some_and(|known| known >= boot) {
            return;
        }
        self.lanes[lane].boot = Some(boot);
        self.lanes[lane].forget();
        self.trust(now, lane);
    }

    /// The nodes suspected now.
    pub fn on_suspects(&mut self, now: Now, suspects: NodeSet) {
        for lane in 0..self.lanes.len() {
            let suspect = lane != self.local && suspects.contains(self.lanes[lane].node);
            if self.lanes[lane].suspect != suspect {
                self.lanes[lane].suspect = suspect;
                self.lanes[lane].forget();
                self.trust(now, lane);
            }
        }
    }

    fn trust(&mut self, now: Now, lane: usize) {
        let node = self.lanes[lane].node;
        let trusted = self.lanes[lane].trusted();
        let boot = self.lanes[lane].boot.filter(|_| trusted);
        for index in 0..self.slots.len() {
            self.changing(index, |owner, _, _| owner.on_trust(node, boot));
            self.enqueue(index);
            self.arm(index);
        }
        if trusted {
            self.restore_at = now.mono + MASTER_BACK_AFTER;
        }
        self.seal_at = self.seal_at.min(now.mono);
    }

    pub(super) fn restore_masters(&mut self, now: Now) {
        self.restore_at = Nanos::MAX;
        for index in 0..self.slots.len() {
            let away = self.changing(index, |owner, _, _| {
                owner.restore_master();
                owner.master_is_away()
            });
            if away == Some(true) {
                self.restore_at = now.mono + MASTER_AGAIN_AFTER;
            }
            self.enqueue(index);
        }
    }

    pub(super) fn restore_due(&self) -> Nanos {
        self.restore_at
    }

    /// Takes the opened plaintext of a datagram from the same shard of `from`.
    pub fn on_peer(&mut self, now: Now, from: NodeId, boot: Boot, plaintext: &[u8]) {
        let Some(lane) = self.lane(from).filter(|l| self.lanes[*l].boot == Some(boot)) else {
            self.counts.drop_incarnation += 1;
            return;
        };
        self.warm(plaintext);
        self.on_frames(now, lane, plaintext);
    }

    /// Fetches the calls of a bundle's entries into the cache before the first of them is executed, so that the
    /// waits for memory overlap.
    fn warm(&self, plaintext: &[u8]) {
        for frame in Frames::new(plaintext) {
            let Ok(Frame::Segment(header, entries)) = frame else { continue };
            let seat = self.index(header.slot.get()).and_then(|i| self.slots[i].seat.as_ref());
            if let (Some(seat), Some((entry, _, _))) = (seat, Entry::read(entries))
                && let EntryKind::Packet { call, .. } = entry.kind
            {
                seat.table.warm(call);
            }
        }
    }

    pub(super) fn on_frames(&mut self, now: Now, lane: usize, plaintext: &[u8]) {
        for frame in Frames::new(plaintext) {
            let Ok(frame) = frame else {
                self.counts.drop_malformed += 1;
                return;
            };
            self.on_frame(now, lane, frame);
        }
    }

    fn on_frame(&mut self, now: Now, lane: usize, frame: Frame<'_>) {
        match frame {
            Frame::Bundle(number) => self.lanes[lane].on_bundle(number),
            Frame::Echo(number) => {
                if let Some(sample) = self.lanes[lane].on_echo(now.mono, number) {
                    self.rtts[lane].sample(sample);
                }
            }
            Frame::Start(start) => self.tell_member(now, lane, start.slot.get(), |member, machine, owner| {
                member.on_start(start, owner, machine).map(|()| None)
            }),
            Frame::Segment(header, entries) => {
                self.tell_member(now, lane, header.slot.get(), |member, machine, owner| {
                    member.on_segment(header, entries, owner, machine)
                })
            }
            Frame::Emit(emit) => {
                self.tell_member(now, lane, emit.slot.get(), |member, _, owner| {
                    member.on_emit(emit, owner).map(|()| None)
                });
            }
            Frame::Told(told) => self.on_told(lane, told),
            Frame::Ack(ack) => self.on_ack(now, lane, ack),
            Frame::Nak(nak) => {
                self.counts.naks += 1;
                let rtt = self.rtts[lane];
                let missed = self.tell_owner(lane, nak.slot.get(), |owner, node, boot| {
                    owner.on_nak(now.mono, node, boot, nak, &rtt)
                });
                if missed == Some(true) {
                    self.lanes[lane].on_missed();
                }
            }
            Frame::Outputs(header, outputs) => {
                let taken = self.tell_owner(lane, header.slot.get(), |owner, node, boot| {
                    let taken = owner.on_outputs(now.mono, node, boot, header, outputs)?;
                    Ok((taken, owner.master() != node))
                });
                let Some((taken, rescued)) = taken else { return };
                self.counts.repeated_outputs += u64::from(taken.repeated);
                self.counts.rescued_outputs += if rescued { u64::from(taken.new) } else { 0 };
            }
            Frame::Seal(seal) => self.on_seal(lane, seal),
            Frame::Sealed(sealed) => self.on_sealed(now, lane, sealed),
            Frame::Fetch(fetch) => self.on_fetch(lane, fetch),
            Frame::Fetched(fetched, entries) => self.on_fetched(now, lane, fetched, entries),
            Frame::Forward(forward, payload) => self.on_forward(now, forward, payload),
            Frame::Deliver(deliver, payload) => self.on_deliver(lane, deliver, payload),
            Frame::DeliverAck(ack) => self.on_deliver_ack(now, lane, ack),
            Frame::Pull(pull) => self.on_pull(now, lane, pull),
            Frame::Chunk(chunk, bytes) => self.on_chunk(now, lane, chunk, bytes),
        }
    }

    fn on_ack(&mut self, now: Now, lane: usize, ack: &frame::Ack) {
        self.tell_owner(lane, ack.slot.get(), |owner, node, boot| owner.on_ack(now.mono, node, boot, ack));
    }

    /// Hands a frame of the owner on `lane` to the member here, which then owes it a reply.
    fn tell_member(
        &mut self,
        now: Now,
        lane: usize,
        slot: u16,
        take: impl FnOnce(
            &mut Member,
            &mut SlotMachine<'_, A>,
            (NodeId, Boot),
        ) -> Result<Option<Position>, Refused>,
    ) {
        let index = self.index(slot);
        let seat = index.and_then(|i| self.slots[i].seat.as_mut());
        let (Some(index), Some(seat)) = (index, seat) else {
            self.counts.drop_no_slot += 1;
            return;
        };
        let limits = self.config.limits;
        let mut machine = SlotMachine { app: &self.app, table: &mut seat.table, limits };
        let owner = (self.lanes[lane].node, self.lanes[lane].boot.unwrap_or_default());
        match take(&mut seat.log, &mut machine, owner) {
            Ok(missing) => {
                seat.ack_due = true;
                let gap = seat.log.held().next();
                seat.nak_due = missing.or(seat.nak_due.filter(|from| *from == gap));
                if seat.log.wants_snapshot().is_some() {
                    self.resync.wake(now.mono);
                }
                let time = seat.log.last_time();
                if self.heard_time.is_none_or(|heard| heard.wall < time) {
                    self.heard_time = Some(Now { mono: now.mono, wall: time });
                }
                if seat.queued != Some(lane) {
                    seat.queued = Some(lane);
                    self.lanes[lane].replies.push_back(index as u16);
                }
            }
            Err(Refused::Malformed) => self.counts.drop_malformed += 1,
            Err(Refused::Term | Refused::Behind | Refused::Lost) => self.counts.refused_segments += 1,
            Err(Refused::Join) => self.counts.drop_incarnation += 1,
        }
    }

    /// What an owner says in passing, and expects no answer to.
    fn on_told(&mut self, lane: usize, told: &frame::Told) {
        let owner = (self.lanes[lane].node, self.lanes[lane].boot.unwrap_or_default());
        let seat = self.index(told.slot.get()).and_then(|i| self.slots[i].seat.as_mut());
        if seat.is_none_or(|seat| seat.log.on_told(told, owner).is_err()) {
            self.counts.drop_no_slot += 1;
        }
    }

    /// Hands a frame of the member on `lane` to the owner here, then sees what that allows.
    pub(super) fn tell_owner<T>(
        &mut self,
        lane: usize,
        slot: u16,
        take: impl FnOnce(&mut Owner, NodeId, Boot) -> Result<T, Stale>,
    ) -> Option<T> {
        let (node, boot, me) = (self.lanes[lane].node, self.lanes[lane].boot?, self.config.me);
        let Some(index) = self.index(slot).filter(|i| self.slots[*i].owner.is_some()) else {
            self.counts.drop_no_slot += 1;
            return None;
        };
        let (result, delay) = self.changing(index, |owner, _, _| {
            let result = take(owner, node, boot);
            (result, owner.take_delay().filter(|_| owner.master() != me))
        })?;
        // A master in this very node answers within the turn: that says nothing of how long others take.
        if let Some(delay) = delay {
            self.answers.sample(delay);
        }
        match &result {
            Ok(_) => {}
            Err(Stale::Term) => self.counts.drop_term += 1,
            Err(Stale::Incarnation) => self.counts.drop_incarnation += 1,
            Err(Stale::Ahead) => self.counts.drop_ahead += 1,
            Err(Stale::Malformed) => self.counts.drop_malformed += 1,
        }
        if !self.slots[index].releasing {
            self.slots[index].releasing = true;
            self.releasing.push_back(index as u16);
        }
        self.enqueue(index);
        self.arm(index);
        result.ok()
    }

    /// How things stand, for the control: as of the last turn in which that was looked at.
    pub fn report(&self) -> &ShardReport {
        self.standing.report()
    }

    /// The newest map it was given.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    pub(super) fn answer_timeout(&self) -> Nanos {
        self.answers.timeout()
    }
}
