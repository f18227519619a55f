//! What is counted of one RTP stream: one SSRC that one side of a call sends.
//!
//! Sources: RFC 3550 appendix A.1 (extended sequence numbers), A.3 (loss), A.8 (jitter). Integers only: all members
//! must count the same.

use serde::{Deserialize, Serialize};

use super::codec::Codec;
use crate::types::Nanos;
use crate::wire::rtcp::ReportBlock;
use crate::wire::rtp::Rtp;

/// A jump ahead of up to this many sequence numbers is loss (A.1: MAX_DROPOUT).
const MAX_DROPOUT: u16 = 3_000;
/// A step back of up to this many is a late packet (A.1: MAX_MISORDER).
const MAX_MISORDER: u16 = 100;
/// How far back it is remembered which packets came.
const REMEMBERED: u16 = 64;

/// Figures of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stream {
    /// Who sends it.
    pub ssrc: u32,
    /// The payload type of its newest packet that is no telephone event.
    pub payload_type: u8,
    /// What that stands for.
    pub codec: Codec,
    /// In Hz.
    pub clock: u32,
    /// Packets that came, each copy counted.
    pub packets: u32,
    /// Their bytes, with RTP's header.
    pub bytes: u64,
    /// Packets that came again.
    pub duplicates: u32,
    /// Packets that came after one that was sent later.
    pub late: u32,
    /// Runs of lost packets.
    pub runs: u32,
    /// In 1/16 of the clock's units (A.8).
    pub jitter: u32,
    /// The highest it was.
    pub jitter_max: u32,
    /// When the first packet came, in ns.
    pub first: u64,
    /// When the last one came, in ns.
    pub last: u64,
    /// The longest time between two packets, in us.
    pub gap: u32,
    /// What the other side last said about it; fraction lost, packets lost, jitter.
    pub reported: Option<(u8, i32, u32)>,
    /// Lowest and highest sequence number of the run that goes on, extended by wraps; they start at 65536, so
    /// that there is room below.
    base: u32,
    highest: u32,
    /// Packets expected in runs before the sender started anew.
    expected_before: u32,
    /// Packets far outside the sequence, in no run.
    outside: u32,
    /// The sequence number behind such a packet: if it comes next, the sender has started anew.
    probe: Option<u16>,
    /// Which of the last 64 sequence numbers came; bit 0 is the highest.
    came: u64,
    /// Arrival minus timestamp of the last packet, in clock units; none where comparing makes no sense.
    transit: Option<u32>,
}

/// What streams add up to that are not kept one by one.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Folded {
    /// How many streams.
    pub streams: u32,
    /// Their packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets lost.
    pub lost: u64,
}

impl Folded {
    pub(super) fn add(&mut self, stream: &Stream) {
        self.streams = self.streams.saturating_add(1);
        self.packets = self.packets.saturating_add(stream.packets.into());
        self.bytes = self.bytes.saturating_add(stream.bytes);
        self.lost = self.lost.saturating_add(stream.lost().into());
    }
}

/// What a payload type stands for: codec and clock rate.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Coding {
    pub codec: Codec,
    pub clock: u32,
}

impl Stream {
    /// A stream that begins with `rtp`, which is counted by `take` as all others.
    pub(super) fn new(rtp: &Rtp<'_>, coding: Coding, now: Nanos) -> Stream {
        let start = 0x1_0000 | u32::from(rtp.sequence());
        Stream {
            ssrc: rtp.ssrc(),
            payload_type: rtp.payload_type(),
            codec: coding.codec,
            clock: coding.clock,
            packets: 0,
            bytes: 0,
            duplicates: 0,
            late: 0,
            runs: 0,
            jitter: 0,
            jitter_max: 0,
            first: now.0,
            last: now.0,
            gap: 0,
            reported: None,
            base: start,
            highest: start.wrapping_sub(1),
            expected_before: 0,
            outside: 0,
            probe: None,
            came: 0,
            transit: None,
        }
    }

    /// Counts a packet.
    pub(super) fn take(&mut self, rtp: &Rtp<'_>, bytes: usize, coding: Coding, now: Nanos) {
        self.packets = self.packets.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes as u64);
        let gap = now.since(Nanos(self.last)).as_micros();
        self.gap = self.gap.max(u32::try_from(gap).unwrap_or(u32::MAX));
        self.last = self.last.max(now.0);
        self.sequence(rtp.sequence());
        if coding.codec.is_event() {
            // All packets of an event carry its start as their timestamp.
            self.transit = None;
            return;
        }
        if self.clock != coding.clock {
            (self.transit, self.jitter) = (None, 0);
        }
        (self.payload_type, self.codec, self.clock) = (rtp.payload_type(), coding.codec, coding.clock);
        self.arrival(rtp.timestamp(), now);
    }

    fn sequence(&mut self, number: u16) {
        let ahead = number.wrapping_sub(self.highest as u16);
        let back = ahead.wrapping_neg();
        if (1..MAX_DROPOUT).contains(&ahead) {
            self.runs = self.runs.saturating_add((ahead > 1).into());
            self.highest = self.highest.wrapping_add(ahead.into());
            self.came = if ahead < REMEMBERED { self.came << ahead | 1 } else { 1 };
            self.probe = None;
        } else if ahead == 0 {
            self.duplicates = self.duplicates.saturating_add(1);
        } else if back <= MAX_MISORDER {
            self.behind(back);
        } else if self.probe == Some(number) {
            // Two in a row: the sender has started anew (A.1), with the packet before this one.
            self.expected_before = self.expected_before.saturating_add(self.run_length());
            self.outside = self.outside.saturating_sub(1);
            self.highest = 0x1_0000 | u32::from(number);
            self.base = self.highest.wrapping_sub(1);
            (self.came, self.probe, self.transit) = (3, None, None);
        } else {
            self.outside = self.outside.saturating_add(1);
            self.probe = Some(number.wrapping_add(1));
        }
    }

    /// A packet `back` behind the highest: late, or there already.
    fn behind(&mut self, back: u16) {
        let bit = |back: u16| if back < REMEMBERED { 1_u64 << back } else { 0 };
        if self.came & bit(back) != 0 {
            self.duplicates = self.duplicates.saturating_add(1);
            return;
        }
        self.late = self.late.saturating_add(1);
        let number = self.highest.wrapping_sub(back.into());
        if (number.wrapping_sub(self.base) as i32) < 0 {
            // It was sent before the first that came; what lies between is a run of losses.
            self.runs = self.runs.saturating_add((self.base.wrapping_sub(number) > 1).into());
            self.base = number;
        } else if back < REMEMBERED - 1 {
            // It fills a run of losses, cuts it in two, or shortens it.
            let (before, after) = (self.came & bit(back + 1) != 0, self.came & bit(back - 1) != 0);
            match (before || number == self.base, after) {
                (true, true) => self.runs = self.runs.saturating_sub(1),
                (false, false) => self.runs = self.runs.saturating_add(1),
                _ => {}
            }
        }
        self.came |= bit(back);
    }

    /// Interarrival jitter (A.8).
    fn arrival(&mut self, timestamp: u32, now: Nanos) {
        let (seconds, rest) = (now.0 / 1_000_000_000, now.0 % 1_000_000_000);
        let clock = u64::from(self.clock);
        // Only differences count, so it may wrap as timestamps do.
        let arrival = seconds.wrapping_mul(clock).wrapping_add(rest * clock / 1_000_000_000) as u32;
        let transit = arrival.wrapping_sub(timestamp);
        if let Some(before) = self.transit {
            let difference = (transit.wrapping_sub(before) as i32).unsigned_abs();
            // A jump of a minute and more is a new timestamp base.
            if u64::from(difference) < clock.saturating_mul(60) {
                let fade = self.jitter.saturating_add(8) >> 4;
                self.jitter = self.jitter.saturating_add(difference).saturating_sub(fade);
                self.jitter_max = self.jitter_max.max(self.jitter);
            }
        }
        self.transit = Some(transit);
    }

    fn run_length(&self) -> u32 {
        self.highest.wrapping_sub(self.base).wrapping_add(1)
    }

    /// Packets that were sent, as far as sequence numbers tell.
    pub(super) fn expected(&self) -> u32 {
        self.expected_before.saturating_add(self.run_length())
    }

    /// Packets that never came.
    pub(super) fn lost(&self) -> u32 {
        let distinct = self.packets.saturating_sub(self.duplicates).saturating_sub(self.outside);
        self.expected().saturating_sub(distinct)
    }

    /// The cumulative number of packets lost of A.3, where copies make up for losses.
    pub(super) fn lost_net(&self) -> i64 {
        i64::from(self.expected()) - i64::from(self.packets.saturating_sub(self.outside))
    }

    /// Whether a packet with this number goes on where the stream is.
    pub(super) fn continues_with(&self, number: u16) -> bool {
        (1..=MAX_MISORDER).contains(&number.wrapping_sub(self.highest as u16))
    }

    /// Takes in what the other side says about it.
    pub(super) fn report(&mut self, block: &ReportBlock) {
        self.reported = Some((block.fraction_lost, block.lost, block.jitter));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PCMU: Coding = Coding { codec: Codec::UNKNOWN, clock: 8_000 };

    fn packet(sequence: u16, timestamp: u32) -> Vec<u8> {
        let mut bytes = vec![0x80, 0];
        bytes.extend_from_slice(&sequence.to_be_bytes());
        bytes.extend_from_slice(&timestamp.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 1, 9, 9]);
        bytes
    }

    /// The stream of packets with these numbers, each 20 ms after the one before.
    fn stream(numbers: &[u16]) -> Stream {
        let mut stream = None;
        for (n, number) in (0_u64..).zip(numbers) {
            let bytes = packet(*number, u32::from(*number).wrapping_mul(160));
            let (rtp, now) = (Rtp::new(&bytes).expect("RTP"), Nanos::from_millis(1_000_000 + 20 * n));
            stream.get_or_insert_with(|| Stream::new(&rtp, PCMU, now)).take(&rtp, bytes.len(), PCMU, now);
        }
        stream.expect("a packet")
    }

    /// Expected, lost, runs of losses, duplicates, late.
    fn counts(numbers: &[u16]) -> (u32, u32, u32, u32, u32) {
        let s = stream(numbers);
        (s.expected(), s.lost(), s.runs, s.duplicates, s.late)
    }

    #[test]
    fn loss_is_told_from_reordering_and_copies() {
        assert_eq!(counts(&[5, 6, 7]), (3, 0, 0, 0, 0));
        assert_eq!(counts(&[5, 8, 9, 12]), (8, 4, 2, 0, 0));
        assert_eq!(counts(&[5, 7, 6, 8]), (4, 0, 0, 0, 1));
        assert_eq!(counts(&[5, 9, 7, 10]), (6, 2, 2, 0, 1));
        assert_eq!(counts(&[5, 9, 8, 6]), (5, 1, 1, 0, 2));
        assert_eq!(counts(&[5, 5, 6, 5]), (2, 0, 0, 2, 0));
        assert_eq!(counts(&[6, 5, 7]), (3, 0, 0, 0, 1));
        assert_eq!(counts(&[9, 6, 10]), (5, 2, 1, 0, 1));
        assert_eq!(counts(&[65534, 65535, 1]), (4, 1, 1, 0, 0));
        assert_eq!(counts(&[0, 65535, 1]), (3, 0, 0, 0, 1));
        assert_eq!(stream(&[5, 5, 5]).lost_net(), -2);
    }

    #[test]
    fn a_sender_that_starts_anew_loses_nothing() {
        assert_eq!(counts(&[5, 6, 40_000, 40_001, 40_003]), (6, 1, 1, 0, 0));
        // One stray packet is in no run.
        let stray = stream(&[5, 6, 40_000, 7]);
        assert_eq!((stray.expected(), stray.lost(), stray.packets), (3, 0, 4));
    }

    #[test]
    fn gaps_and_jitter_are_those_of_arrival() {
        let smooth = stream(&[1, 2, 3, 4]);
        assert_eq!((smooth.jitter, smooth.gap), (0, 20_000));
        // One packet of 20 ms missing: the next comes 20 ms early by its timestamp, 160 units.
        assert_eq!(stream(&[1, 3]).jitter, 160);
        assert_eq!(stream(&[1, 3, 4]).jitter, 150);
    }

    proptest! {
        /// Against a plain model: a set of what came.
        #[test]
        fn counting_agrees_with_a_set(start: u16, steps in proptest::collection::vec((0u16..4, 0u16..40), 1..200)) {
            let (mut next, mut numbers) = (start, Vec::new());
            for (skip, back) in steps {
                next = next.wrapping_add(skip);
                // Mostly forward, now and then a step back.
                numbers.push(if back < 8 && numbers.len() > 2 { next.wrapping_sub(back) } else { next });
            }
            let at = |n: u16| i32::from(n.wrapping_sub(numbers[0]) as i16);
            let came: std::collections::BTreeSet<i32> = numbers.iter().map(|n| at(*n)).collect();
            let span = came.last().unwrap() - came.first().unwrap() + 1;
            let runs = came.iter().zip(came.iter().skip(1)).filter(|(a, b)| **b - **a > 1).count();
            let s = stream(&numbers);
            prop_assert_eq!(s.expected() as i32, span);
            prop_assert_eq!(s.lost() as i32, span - came.len() as i32);
            prop_assert_eq!(s.duplicates as usize, numbers.len() - came.len());
            prop_assert_eq!(s.runs as usize, runs);
        }

        #[test]
        fn any_sequence_is_harmless(numbers in proptest::collection::vec(any::<u16>(), 1..100)) {
            let s = stream(&numbers);
            prop_assert_eq!(s.packets as usize, numbers.len());
            prop_assert!(s.duplicates + s.late + s.outside <= s.packets);
        }
    }
}
