//! Which new calls an ingress takes. What begins no call ([`CallApp::opens`]), or is about one that is known here, always
//! goes on: under overload calls in progress keep their packets, and only new ones are turned away, outside any log.
//!
//! Media for a port that no call has goes no further either: it would be logged on every member only to be dropped.
//!
//! What is counted:
//!
//! - Calls a second, in all and of each source IP address: packets that begin a call this shard does not know. A request
//!   that is repeated before its first one was executed, or whose slot has no member here, counts again.
//! - Calls at a time, in all: those in the tables of the slots owned here that this node is a member of.
//! - Calls at a time of a source: those this shard has admitted and still finds in its tables.
//!
//! Calls are spread over shards by their hash, so each shard takes its share of every limit, rounded up.

use super::shard::Shard;
use crate::app::{CallApp, Inbound};
use crate::proto::owner::Owner;
use crate::types::{CallKey, Endpoint, LocalId, Nanos, Now};

/// Sources that are remembered: sets of so many...
const WAYS: usize = 8;
/// ...and so many sets. In a full set the source that was admitted longest ago is forgotten.
const SETS: usize = 512;
/// Calls turned away that are remembered, so that their repetitions are turned away too.
const MEMORY: usize = 4_096;
/// How often the calls are counted again.
const COUNT_EVERY: Nanos = Nanos::from_millis(10);
/// For how long a call that was admitted need not be in a table yet.
const OPENING: Nanos = Nanos::from_secs(2);
/// How often the calls of a source at its limit are looked through.
const LOOK_EVERY: Nanos = Nanos::from_millis(100);
/// A loop that has been behind for this long takes no new calls.
const BEHIND: Nanos = Nanos::from_millis(100);
/// Rates are kept over one second.
const SECOND: u64 = 1_000_000_000;

/// The limits of one node; 0: none.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// New calls a second.
    pub cps: u32,
    /// Calls at a time.
    pub calls: u32,
    /// New calls a second from one IP address.
    pub source_cps: u32,
    /// Calls at a time from one IP address.
    pub source_calls: u32,
}

impl AdmissionLimits {
    /// One shard's share of them.
    #[must_use]
    pub fn share(self, shards: u16) -> AdmissionLimits {
        let share = |limit: u32| limit.div_ceil(u32::from(shards.max(1)));
        AdmissionLimits {
            cps: share(self.cps),
            calls: share(self.calls),
            source_cps: share(self.source_cps),
            source_calls: share(self.source_calls),
        }
    }
}

/// Why a new call was turned away.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum TurnedAway {
    /// More new calls a second than the node takes.
    Rate,
    /// As many calls as the node takes.
    Calls,
    /// More new calls a second than a source may have.
    SourceRate,
    /// As many calls as a source may have.
    SourceCalls,
    /// The loop is behind, or the log has no room for more.
    Overload,
    /// Media for a port that no call has.
    NoCall,
}

impl TurnedAway {
    /// When its sender may try again, in seconds.
    fn retry_after(self) -> u32 {
        match self {
            TurnedAway::Rate | TurnedAway::SourceRate => 2,
            TurnedAway::Overload | TurnedAway::NoCall => 5,
            TurnedAway::Calls | TurnedAway::SourceCalls => 10,
        }
    }
}

/// A token bucket that holds what comes in one second (GCRA): when it will be full again.
#[derive(Copy, Clone, Debug, Default)]
struct Bucket(Nanos);

impl Bucket {
    fn has_room(self, now: Nanos, rate: u32) -> bool {
        let step = SECOND / u64::from(rate.max(1));
        rate == 0 || self.0.since(now).0 + step <= SECOND
    }

    fn take(&mut self, now: Nanos, rate: u32) {
        self.0 = self.0.max(now) + Nanos(SECOND / u64::from(rate.max(1)));
    }
}

/// What is known of one source.
#[derive(Clone, Debug, Default)]
struct Source {
    ip: [u8; 16],
    bucket: Bucket,
    /// When a call of it was admitted last; zero: nobody is here.
    seen: Nanos,
    /// Its calls, and when they were admitted.
    calls: Vec<(CallKey, Nanos)>,
    /// How many are looked through again.
    look_at: usize,
    looked: Nanos,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Admission {
    limits: AdmissionLimits,
    bucket: Bucket,
    sources: Vec<Source>,
    calls: u64,
    counted: Nanos,
    /// By hash: until when a call is turned away, and why.
    refused: Vec<Option<(CallKey, Nanos, TurnedAway)>>,
}

impl Admission {
    pub(super) fn new(limits: AdmissionLimits) -> Admission {
        let tracked = if limits.source_cps + limits.source_calls > 0 { WAYS * SETS } else { 0 };
        Admission {
            limits,
            bucket: Bucket::default(),
            sources: vec![Source::default(); tracked],
            calls: 0,
            counted: Nanos::ZERO,
            refused: vec![None; MEMORY],
        }
    }

    fn is_idle(&self) -> bool {
        self.limits == AdmissionLimits::default()
    }

    /// Why this call was turned away, if that is not long ago.
    fn remembered(&self, now: Nanos, key: CallKey) -> Option<TurnedAway> {
        let known = self.refused[key.0 as usize % MEMORY].filter(|(of, until, _)| *of == key && now < *until);
        known.map(|(_, _, why)| why)
    }

    fn remember(&mut self, now: Nanos, key: CallKey, why: TurnedAway) {
        // A sender that waits as long as it was asked to is not turned away for having come too early.
        let until = now + Nanos::from_millis(u64::from(why.retry_after()) * 900);
        self.refused[key.0 as usize % MEMORY] = Some((key, until, why));
    }

    /// The place of a source: its own, or that of the one in its set which was seen longest ago.
    fn place(&mut self, ip: [u8; 16]) -> &mut Source {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in ip {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let first = (hash >> 32) as usize % SETS * WAYS;
        let set = &mut self.sources[first..first + WAYS];
        let known = set.iter().position(|source| source.ip == ip && source.seen > Nanos::ZERO);
        let oldest = || (0..WAYS).min_by_key(|way| set[*way].seen).unwrap_or(0);
        let way = known.unwrap_or_else(oldest);
        if known.is_none() {
            set[way] = Source { ip, ..Source::default() };
        }
        &mut set[way]
    }

    /// Whether a new call may come; `calls`: those of the shard, `is_live`: whether a call is in a table here.
    fn decide(
        &mut self,
        now: Nanos,
        key: CallKey,
        from: Endpoint,
        is_live: impl Fn(CallKey) -> bool,
    ) -> Result<(), TurnedAway> {
        let limits = self.limits;
        if limits.calls > 0 && self.calls >= u64::from(limits.calls) {
            return Err(TurnedAway::Calls);
        }
        if !self.bucket.has_room(now, limits.cps) {
            return Err(TurnedAway::Rate);
        }
        if !self.sources.is_empty() {
            let source = self.place(from.ip);
            if !source.bucket.has_room(now, limits.source_cps) {
                return Err(TurnedAway::SourceRate);
            }
            if limits.source_calls > 0 {
                let most = limits.source_calls as usize;
                let full = source.calls.len() >= most && now.since(source.looked) >= LOOK_EVERY;
                if full || source.calls.len() > source.look_at.max(16) {
                    source.looked = now;
                    source.calls.retain(|(call, at)| now.since(*at) < OPENING || is_live(*call));
                    source.look_at = source.calls.len() * 2;
                }
                if source.calls.len() >= most {
                    return Err(TurnedAway::SourceCalls);
                }
                source.calls.push((key, now));
            }
            source.seen = now.max(Nanos(1));
            source.bucket.take(now, limits.source_cps);
        }
        self.bucket.take(now, limits.cps);
        self.calls += 1;
        Ok(())
    }
}

impl<A: CallApp> Shard<A> {
    /// Whether a client's packet may go on to [`Shard::on_client`]. `behind`: for how long the loop has had more to do
    /// than it got done. If not, `answer` gets what its sender is told at once, if that is not much longer than what came.
    ///
    /// # Errors
    /// Why the call was turned away; it is counted.
    pub fn admit(
        &mut self,
        now: Now,
        key: CallKey,
        packet: &Inbound<'_>,
        behind: Nanos,
        answer: &mut Vec<u8>,
    ) -> Result<(), TurnedAway> {
        if packet.local.port != 0 {
            return self.admit_media(key, packet.local);
        }
        let overload = behind >= BEHIND || self.has_no_room(key);
        if !overload && self.admission.is_idle() || self.knows(key) || !self.app.opens(packet) {
            return Ok(());
        }
        let known = self.admission.remembered(now.mono, key);
        let decided = match known {
            Some(why) => Err(why),
            None if overload => Err(TurnedAway::Overload),
            None => self.decide(now.mono, key, packet.source),
        };
        let Err(why) = decided else { return Ok(()) };
        self.counts.turn_away(why);
        if known.is_none() {
            self.admission.remember(now.mono, key, why);
        }
        let answered = self.app.refuse(packet, why.retry_after(), answer);
        if !answered || answer.len() > packet.payload.len() * 2 {
            answer.clear();
        }
        Err(why)
    }

    fn decide(&mut self, now: Nanos, key: CallKey, from: Endpoint) -> Result<(), TurnedAway> {
        if self.admission.limits.calls > 0 && now.since(self.admission.counted) >= COUNT_EVERY {
            self.admission.counted = now;
            let owned = self.slots.iter().filter(|slot| slot.owner.is_some());
            let tables = owned.filter_map(|slot| slot.seat.as_ref()).map(|seat| &seat.table);
            self.admission.calls = tables.map(|table| table.clients_calls() as u64).sum();
        }
        let Shard { admission, slots, map, config, .. } = self;
        let is_live = |key: CallKey| {
            let index = usize::from(key.slot(map.slots).0 / config.shards);
            slots.get(index).and_then(|slot| slot.seat.as_ref()).is_some_and(|seat| seat.table.warm(key))
        };
        admission.decide(now, key, from, is_live)
    }

    /// Ports are lent by entries that were executed here before anybody heard of them, unless this node has just become the
    /// owner and does not know the whole log yet, or is no member.
    fn admit_media(&mut self, key: CallKey, local: LocalId) -> Result<(), TurnedAway> {
        let slot = key.slot(self.map.slots);
        let known = self.index(slot.0).is_some_and(|at| self.slots[at].owner.is_some());
        let stray = known && self.map.group(slot).member(self.config.me).is_some() && !self.has_call(local);
        if stray {
            self.counts.turn_away(TurnedAway::NoCall);
            return Err(TurnedAway::NoCall);
        }
        Ok(())
    }

    fn knows(&self, key: CallKey) -> bool {
        let seat = self.index(key.slot(self.map.slots).0).and_then(|index| self.slots[index].seat.as_ref());
        seat.is_some_and(|seat| seat.table.warm(key))
    }

    /// What is kept, or waits in the call's slot, comes close to its bound.
    fn has_no_room(&self, key: CallKey) -> bool {
        let owner = self.index(key.slot(self.map.slots).0).and_then(|index| self.slots[index].owner.as_ref());
        let waiting = owner.map_or(0, Owner::waiting);
        waiting > self.config.window / 4 * 3 || self.retained > self.config.retain_bytes / 8 * 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8) -> Endpoint {
        let mut ip = [0; 16];
        ip[15] = last;
        Endpoint { ip, port: 5060 }
    }

    fn second(n: u64) -> Nanos {
        Nanos::from_secs(1_000 + n)
    }

    #[test]
    fn rates_hold_in_all_and_for_each_source() {
        let mut admission = Admission::new(AdmissionLimits { cps: 10, source_cps: 4, ..Default::default() });
        let mut ask = |at: Nanos, source: u8| admission.decide(at, CallKey(9), from(source), |_| true);
        let counts = [0, 1, 2, 3].map(|source| (0..5).filter(|_| ask(second(0), source).is_ok()).count());
        assert_eq!(counts, [4, 4, 2, 0], "a second's worth at once");
        assert_eq!(ask(second(0), 0), Err(TurnedAway::Rate));
        assert_eq!(ask(second(0) + Nanos::from_millis(100), 0), Err(TurnedAway::SourceRate));
        assert_eq!(ask(second(0) + Nanos::from_millis(100), 3), Ok(()));
        assert_eq!((0..20).filter(|_| ask(second(5), 1).is_ok()).count(), 4, "no more after a pause");
    }

    #[test]
    fn calls_are_counted_in_all_and_for_each_source() {
        let mut admission =
            Admission::new(AdmissionLimits { calls: 5, source_calls: 3, ..Default::default() });
        let live = |key: CallKey| key.0 != 1;
        let mut ask = |at, key, source| admission.decide(at, CallKey(key), from(source), live);
        for key in 0..3 {
            assert_eq!(ask(second(0), key, 1), Ok(()));
        }
        assert_eq!(ask(second(1), 3, 1), Err(TurnedAway::SourceCalls));
        assert_eq!(ask(second(1), 3, 2), Ok(()));
        assert_eq!(ask(second(4), 4, 1), Ok(()), "one of them is over");
        assert_eq!(ask(second(5), 5, 1), Err(TurnedAway::Calls));
        admission.calls = 0;
        assert_eq!(admission.decide(second(5), CallKey(5), from(1), live), Err(TurnedAway::SourceCalls));
    }

    #[test]
    fn many_sources_take_bounded_room() {
        let mut admission = Admission::new(AdmissionLimits { source_cps: 1, ..Default::default() });
        for n in 0..100_000_u32 {
            let mut source = from(0);
            source.ip[..4].copy_from_slice(&n.to_be_bytes());
            assert_eq!(admission.decide(second(0) + Nanos(n.into()), CallKey(0), source, |_| true), Ok(()));
        }
        assert_eq!(admission.sources.len(), WAYS * SETS);
        assert_eq!(admission.decide(second(0), CallKey(0), from(1), |_| true), Ok(()));
        assert_eq!(admission.decide(second(0), CallKey(0), from(1), |_| true), Err(TurnedAway::SourceRate));
    }

    #[test]
    fn repetitions_are_turned_away_until_they_may_come_again() {
        let mut admission = Admission::new(AdmissionLimits::default());
        assert!(admission.is_idle());
        admission.remember(second(0), CallKey(7), TurnedAway::Rate);
        assert_eq!(admission.remembered(second(1), CallKey(7)), Some(TurnedAway::Rate));
        assert_eq!(admission.remembered(second(1), CallKey(7 + MEMORY as u128)), None);
        assert_eq!(admission.remembered(second(2), CallKey(7)), None);
        assert_eq!(AdmissionLimits { cps: 5, ..Default::default() }.share(2).cps, 3);
    }
}
