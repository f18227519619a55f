//! The rules of the call table, each by a small application whose packets say what its handler shall do.

use std::collections::BTreeMap;

use proptest::prelude::{any, proptest};

use super::{CallTable, MAX_OUTPUT, MAX_OUTPUTS_PER_ENTRY, OutputSink, Place, RestoreError, TableLimits};
use crate::app::{BadSnapshot, CallApp, Context, Inbound, TimerId, Unclassified};
use crate::types::{CallKey, Endpoint, LocalId, Nanos, Position, Slot};

/// Obeys the bytes of a packet, one command after the other. Panics the way that does not print.
struct Obey;

const ECHO: u8 = b'e';
const TIMER: u8 = b't'; // id, milliseconds from now
const CLEAR: u8 = b'c'; // id
const CHANGE: u8 = b's'; // amount
const RANDOM: u8 = b'r';
const END: u8 = b'x';
const PANIC: u8 = b'p';
const FLOOD: u8 = b'f';
const HUGE: u8 = b'h';

impl Obey {
    fn obey(
        call: &mut u64,
        ctx: &mut impl Context<Shared = BTreeMap<CallKey, u64>, Change = (CallKey, u64)>,
        orders: &[u8],
    ) {
        *call += 1;
        let to = Endpoint { ip: [1; 16], port: 9 };
        let mut orders = orders.iter().copied();
        while let Some(order) = orders.next() {
            let mut arg = || orders.next().unwrap_or(0);
            match order {
                ECHO => ctx.send(LocalId::endpoint(0), to, &[&call.to_be_bytes()]),
                TIMER => {
                    let id = TimerId(arg());
                    let at = ctx.now() + Nanos::from_millis(arg().into());
                    ctx.set_timer(id, at);
                }
                CLEAR => ctx.clear_timer(TimerId(arg())),
                CHANGE => {
                    let seen = ctx.shared().values().sum::<u64>();
                    ctx.send(LocalId::endpoint(1), to, &[&seen.to_be_bytes()]);
                    ctx.change((ctx.key(), arg().into()));
                }
                RANDOM => {
                    let drawn = ctx.random();
                    ctx.send(LocalId::endpoint(2), to, &[&drawn.to_be_bytes()]);
                }
                END => ctx.end(),
                PANIC => std::panic::resume_unwind(Box::new("told to")),
                FLOOD => (0..=MAX_OUTPUTS_PER_ENTRY).for_each(|_| ctx.send(LocalId::endpoint(0), to, &[])),
                HUGE => ctx.send(LocalId::endpoint(0), to, &[&[0; MAX_OUTPUT], &[0]]),
                _ => {}
            }
        }
    }
}

impl CallApp for Obey {
    type Call = u64;
    type Shared = BTreeMap<CallKey, u64>;
    type Change = (CallKey, u64);

    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified> {
        Ok(CallKey(u128::from(packet.source.port)))
    }

    fn open(&self, _: CallKey, _: Nanos) -> u64 {
        0
    }

    fn on_packet(
        &self,
        call: &mut u64,
        ctx: &mut impl Context<Shared = Self::Shared, Change = Self::Change>,
        packet: &Inbound<'_>,
    ) {
        Obey::obey(call, ctx, packet.payload);
    }

    fn on_timer(
        &self,
        call: &mut u64,
        ctx: &mut impl Context<Shared = Self::Shared, Change = Self::Change>,
        id: TimerId,
    ) {
        let key = ctx.key().0 as u8;
        ctx.send(LocalId::endpoint(3), Endpoint { ip: [0; 16], port: 0 }, &[&[key, id.0]]);
        match id {
            TimerId(200) => std::panic::resume_unwind(Box::new("timer told to")),
            TimerId(201) => ctx.set_timer(id, Nanos::ZERO),
            _ => *call += 100,
        }
    }

    fn apply(&self, shared: &mut Self::Shared, (key, amount): (CallKey, u64)) {
        *shared.entry(key).or_default() += amount;
    }

    fn on_end(&self, shared: &mut Self::Shared, key: CallKey) {
        shared.remove(&key);
    }

    fn snapshot_shared(&self, shared: &Self::Shared, out: &mut Vec<u8>) -> u16 {
        for (key, amount) in shared {
            out.extend_from_slice(&key.0.to_be_bytes());
            out.extend_from_slice(&amount.to_be_bytes());
        }
        3
    }

    fn restore_shared(&self, version: u16, bytes: &[u8]) -> Result<Self::Shared, BadSnapshot> {
        let bad = BadSnapshot { version, bytes: bytes.len() };
        if version != 3 || !bytes.len().is_multiple_of(24) {
            return Err(bad);
        }
        let entry = |b: &[u8]| {
            let (key, amount) = b.split_first_chunk::<16>()?;
            Some((CallKey(u128::from_be_bytes(*key)), u64::from_be_bytes(amount.try_into().ok()?)))
        };
        bytes.chunks(24).map(entry).collect::<Option<_>>().ok_or(bad)
    }

    fn snapshot(&self, call: &u64, out: &mut Vec<u8>) -> u16 {
        out.extend_from_slice(&call.to_be_bytes());
        2
    }

    fn restore(&self, version: u16, bytes: &[u8]) -> Result<u64, BadSnapshot> {
        let state = bytes.try_into().map_err(|_| BadSnapshot { version, bytes: bytes.len() })?;
        Ok(u64::from_be_bytes(state))
    }
}

/// Keeps what came out.
#[derive(Default, Clone, Debug, PartialEq)]
struct Kept(Vec<(u16, Vec<u8>)>);

impl OutputSink for Kept {
    fn output(&mut self, _: bool, local: LocalId, _: Endpoint, bytes: &[u8]) {
        self.0.push((local.endpoint, bytes.to_vec()));
    }
}

/// A table and the place it has reached.
struct Rig {
    table: CallTable<Obey>,
    position: u64,
}

const IDLE: Nanos = Nanos::from_secs(64);

impl Rig {
    fn new(max_calls: u32) -> Rig {
        Rig { table: CallTable::new(Slot(5), TableLimits { max_calls, idle: IDLE }), position: 0 }
    }

    fn at(&mut self, ms: u64) -> Place {
        self.position += 1;
        Place { position: Position(self.position), time: Nanos::from_millis(ms) }
    }

    fn packet(&mut self, ms: u64, key: u128, orders: &[u8]) -> Kept {
        let mut out = Kept::default();
        let packet = Inbound {
            source: Endpoint { ip: [1; 16], port: 9 },
            local: LocalId::endpoint(0),
            payload: orders,
        };
        let place = self.at(ms);
        self.table.on_packet(&Obey, place, CallKey(key), &packet, &mut out);
        out
    }

    fn tick(&mut self, ms: u64) -> Kept {
        let mut out = Kept::default();
        let place = self.at(ms);
        self.table.on_tick(&Obey, place, &mut out);
        out
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.table.snapshot(&Obey, &mut bytes);
        bytes
    }
}

fn fired(kept: &Kept) -> Vec<(u8, u8)> {
    kept.0.iter().filter(|output| output.0 == 3).map(|output| (output.1[0], output.1[1])).collect()
}

#[test]
fn a_call_counts_for_itself() {
    let mut rig = Rig::new(10);
    rig.packet(1, 1, &[ECHO]);
    rig.packet(1, 2, &[ECHO]);
    assert_eq!(rig.packet(1, 1, &[ECHO]).0, [(0, 2u64.to_be_bytes().to_vec())]);
    assert_eq!(rig.table.len(), 2);
    assert_eq!(rig.table.call(CallKey(2)), Some(&1));
    assert!(rig.table.warm(CallKey(2)) && !rig.table.warm(CallKey(3)));
}

#[test]
fn timers_fire_by_deadline_call_and_id_and_before_the_packet() {
    let mut rig = Rig::new(10);
    rig.packet(0, 9, &[TIMER, 1, 30, TIMER, 0, 20]);
    rig.packet(0, 2, &[TIMER, 4, 20, TIMER, 3, 20, TIMER, 7, 99]);
    rig.packet(0, 4, &[TIMER, 0, 10]);
    assert_eq!(rig.table.next_deadline(), Some(Nanos::from_millis(10)));
    let out = rig.packet(30, 9, &[ECHO]);
    assert_eq!(fired(&out), [(4, 0), (2, 3), (2, 4), (9, 0), (9, 1)]);
    assert_eq!(out.0.last(), Some(&(0, 202u64.to_be_bytes().to_vec())), "two timers, then the packet");
    assert_eq!(rig.table.next_deadline(), Some(Nanos::from_millis(99)));
}

#[test]
fn timers_move_clear_and_go_with_their_call() {
    let mut rig = Rig::new(10);
    rig.packet(0, 1, &[TIMER, 1, 10, TIMER, 1, 20, TIMER, 2, 5, CLEAR, 2]);
    rig.packet(0, 2, &[TIMER, 1, 10, TIMER, 250, 10]);
    rig.packet(0, 2, &[END]);
    assert_eq!(fired(&rig.tick(15)), []);
    assert_eq!(fired(&rig.tick(20)), [(1, 1)]);
}

#[test]
fn a_timer_set_for_the_past_fires_in_a_later_entry() {
    let mut rig = Rig::new(10);
    rig.packet(0, 1, &[TIMER, 201, 10]);
    assert_eq!(fired(&rig.tick(10)), [(1, 201)]);
    assert_eq!(rig.table.next_deadline(), Some(Nanos::from_millis(10) + Nanos(1)));
    assert_eq!(fired(&rig.tick(11)), [(1, 201)]);
}

#[test]
fn a_panic_ends_its_call_and_leaves_no_trace() {
    let mut rig = Rig::new(10);
    rig.packet(0, 1, &[CHANGE, 5, TIMER, 1, 10]);
    rig.packet(0, 2, &[CHANGE, 3]);
    assert_eq!(rig.packet(1, 1, &[ECHO, CHANGE, 7, TIMER, 2, 10, PANIC]), Kept::default());
    assert_eq!(rig.table.call(CallKey(1)), None);
    assert_eq!(rig.table.shared(), &BTreeMap::from([(CallKey(2), 3)]), "what the call held is given back");
    assert_eq!(rig.tick(10), Kept::default(), "its timers are gone");
    assert_eq!(rig.table.counters().panicked, 1);
    assert_eq!(rig.packet(11, 2, &[ECHO]).0, [(0, 2u64.to_be_bytes().to_vec())]);
}

#[test]
fn a_panicking_timer_does_not_stop_the_others() {
    let mut rig = Rig::new(10);
    rig.packet(0, 1, &[TIMER, 200, 10]);
    rig.packet(0, 2, &[TIMER, 1, 10]);
    assert_eq!(fired(&rig.tick(10)), [(2, 1)]);
    assert_eq!((rig.table.len(), rig.table.counters().panicked), (1, 1));
}

#[test]
fn changes_are_seen_by_the_next_handler_only() {
    let mut rig = Rig::new(10);
    let out = rig.packet(0, 1, &[CHANGE, 5, CHANGE, 5]);
    assert_eq!(out.0, [(1, vec![0; 8]), (1, vec![0; 8])]);
    let out = rig.packet(0, 2, &[CHANGE, 1]);
    assert_eq!(out.0, [(1, 10u64.to_be_bytes().to_vec())]);
}

#[test]
fn further_calls_are_refused_and_known_ones_go_on() {
    let mut rig = Rig::new(2);
    for key in 1..=3 {
        rig.packet(0, key, &[ECHO]);
    }
    assert_eq!((rig.table.len(), rig.table.counters().refused), (2, 1));
    assert_eq!(rig.packet(0, 2, &[ECHO]).0.len(), 1);
    rig.packet(0, 2, &[END]);
    assert_eq!(rig.packet(0, 3, &[ECHO]).0.len(), 1);
}

#[test]
fn outputs_of_an_entry_are_bounded() {
    let mut rig = Rig::new(2);
    let out = rig.packet(0, 1, &[HUGE, FLOOD, ECHO]);
    assert_eq!(out.0.len(), MAX_OUTPUTS_PER_ENTRY as usize);
    assert_eq!(rig.table.counters().outputs_dropped, 3);
    assert_eq!(rig.packet(1, 1, &[ECHO]).0.len(), 1, "the next entry starts anew");
}

#[test]
fn random_numbers_differ_by_draw_call_and_entry() {
    let mut rig = Rig::new(5);
    let mut seen: Vec<_> = rig.packet(0, 1, &[RANDOM, RANDOM]).0;
    seen.extend(rig.packet(0, 2, &[RANDOM]).0);
    seen.extend(rig.packet(0, 1, &[RANDOM, END]).0);
    seen.extend(rig.packet(0, 1, &[RANDOM]).0);
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((count, seen.len()), (5, 5));
}

#[test]
fn silent_calls_end_within_an_eighth_and_two_seconds() {
    let mut rig = Rig::new(100);
    rig.packet(0, 1, &[CHANGE, 9]);
    rig.packet(0, 2, &[TIMER, 0, 250]);
    rig.packet(40_000, 3, &[]);
    let mut ended = BTreeMap::new();
    let mut now = 40_000;
    while let Some(due) = rig.table.next_deadline() {
        assert!(due.as_millis_f64() > now as f64);
        now = due.0.div_ceil(1_000_000);
        rig.tick(now);
        for key in 1..=3 {
            if rig.table.call(CallKey(key)).is_none() {
                ended.entry(key).or_insert(now);
            }
        }
    }
    for (key, silent_since) in [(1, 0), (2, 40_000), (3, 40_000)] {
        let silent = ended[&key] - silent_since;
        assert!((64_000..=74_000).contains(&silent), "call {key} ended after {silent} ms of silence");
    }
    assert_eq!(rig.table.counters().idled, 3);
    assert!(rig.table.shared().is_empty());
    assert_eq!(rig.tick(now + 1), Kept::default());
}

#[test]
fn damaged_snapshots_are_refused_with_a_reason() {
    let mut rig = Rig::new(10);
    for key in 1..=4 {
        rig.packet(0, key, &[CHANGE, 1, TIMER, 1, 10]);
    }
    let good = rig.snapshot();
    let limits = TableLimits { max_calls: 10, idle: IDLE };
    for cut in 0..good.len() {
        assert!(CallTable::restore(&Obey, limits, &good[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(CallTable::restore(&Obey, limits, &bad).is_err(), "bit flipped in byte {at}");
    }
    let few = TableLimits { max_calls: 3, idle: IDLE };
    let refused = CallTable::restore(&Obey, few, &good).err();
    assert_eq!(refused, Some(RestoreError::TooMany { calls: 4, max: 3 }));
}

/// Appends the checksum, so that what is tested is the check behind it.
fn summed(mut body: Vec<u8>) -> Vec<u8> {
    let sum = xxhash_rust::xxh3::xxh3_64(&body);
    body.extend_from_slice(&sum.to_be_bytes());
    body
}

proptest! {
    #[test]
    fn members_agree_and_a_restored_one_goes_on_alike(
        entries in proptest::collection::vec(
            (0u128..6, 0u64..40_000, proptest::collection::vec(
                proptest::sample::select(vec![ECHO, TIMER, CLEAR, CHANGE, RANDOM, END, PANIC, 1, 2, 200, 201]), 0..6)),
            1..60),
        cut: proptest::sample::Index,
    ) {
        let cut = cut.index(entries.len());
        let (mut first, mut other) = (Rig::new(4), Rig::new(4));
        let mut now = 0;
        for (at, (key, pause, orders)) in entries.iter().enumerate() {
            if at == cut {
                let bytes = first.snapshot();
                let limits = TableLimits { max_calls: 4, idle: IDLE };
                other.table = CallTable::restore(&Obey, limits, &bytes).expect("own snapshot");
                assert_eq!(other.snapshot(), bytes);
            }
            now += pause;
            let outs = [first.packet(now, *key, orders), other.packet(now, *key, orders)];
            assert_eq!(outs[0], outs[1]);
            assert!(first.table.next_deadline() > Some(Nanos::from_millis(now)) || first.table.next_deadline().is_none());
        }
        assert_eq!(first.snapshot(), other.snapshot());
        assert_eq!(first.table.digest(&Obey), other.table.digest(&Obey));
        let before = first.table.digest(&Obey);
        if first.packet(now, 1, &[ECHO]).0.len() == 1 {
            assert_ne!(first.table.digest(&Obey), before, "one more packet shows in the digest");
        }
    }

    #[test]
    fn hostile_snapshots_never_panic(
        keep in 0usize..40, tail in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut rig = Rig::new(10);
        rig.packet(0, 1, &[TIMER, 1, 10]);
        let mut bytes = rig.snapshot();
        bytes.truncate(keep.min(bytes.len()));
        bytes.extend_from_slice(&tail);
        let limits = TableLimits { max_calls: 10, idle: IDLE };
        if let Ok(table) = CallTable::restore(&Obey, limits, &summed(bytes)) {
            assert!(table.len() <= 10);
        }
    }
}
