//! The keys that one side presses, each once however many packets speak of it.
//!
//! Source: RFC 4733 (section 2.5: an event's packets carry its start as their timestamp; one that is longer than
//! the duration field is continued by a segment with a new timestamp).

use serde::{Deserialize, Serialize};

use crate::wire::dtmf::TelephoneEvent;

/// The keys kept; those after are counted only.
const MAX_KEYS: usize = 32;

/// One key.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Press {
    pub event: u8,
    /// How long it was pressed, in ms.
    pub duration: u32,
}

/// The keys of one side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keys {
    /// Events of any kind.
    pub count: u32,
    /// The first ones.
    pub presses: Vec<Press>,
    /// SSRC and timestamp of the newest event.
    newest: Option<(u32, u32)>,
    /// The duration of its segments that are complete, in ms, and the newest report of the one that goes on.
    before: u32,
    report: Option<TelephoneEventReport>,
}

/// The newest report of an event.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TelephoneEventReport {
    event: u8,
    end: bool,
    duration: u16,
}

impl Keys {
    /// Takes in a packet's report of an event; `clock` in Hz. Returns whether it is a new one.
    pub(super) fn take(&mut self, ssrc: u32, timestamp: u32, event: &TelephoneEvent, clock: u32) -> bool {
        let ms = |units: u16| u32::from(units) * 1_000 / clock.max(1_000);
        let report = TelephoneEventReport { event: event.event, end: event.end, duration: event.duration };
        let (age, last) = match (self.newest, self.report) {
            (Some((of, at)), Some(last)) if of == ssrc => (timestamp.wrapping_sub(at), last),
            _ => (1, TelephoneEventReport { end: true, ..report }),
        };
        if age > u32::MAX / 2 {
            // A late packet of an event before.
            return false;
        }
        let continues = age == u32::from(u16::MAX) && last.event == event.event && !last.end;
        let fresh = age != 0 && !continues;
        if fresh {
            self.count = self.count.saturating_add(1);
            self.before = 0;
            if self.presses.len() < MAX_KEYS {
                self.presses.push(Press { event: event.event, duration: 0 });
            }
        } else if continues {
            self.before = self.before.saturating_add(ms(u16::MAX));
        } else if last.end && !event.end || event.duration < last.duration || event.event != last.event {
            // Out of order, or a copy.
            return false;
        }
        self.newest = Some((ssrc, timestamp));
        self.report = Some(report);
        if self.count as usize <= MAX_KEYS
            && let Some(press) = self.presses.last_mut()
        {
            press.duration = self.before.saturating_add(ms(event.duration));
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pressed(packets: &[(u32, u8, bool, u16)]) -> (u32, Vec<(u8, u32)>) {
        let mut keys = Keys::default();
        for (timestamp, event, end, duration) in packets.iter().copied() {
            keys.take(7, timestamp, &TelephoneEvent { event, end, duration }, 8_000);
        }
        (keys.count, keys.presses.iter().map(|p| (p.event, p.duration)).collect())
    }

    #[test]
    fn each_event_counts_once() {
        let twice = [
            (100, 5, false, 160),
            (100, 5, false, 320),
            (100, 5, true, 480),
            (100, 5, true, 480),
            (100, 5, true, 480),
            (900, 5, false, 160),
            (100, 5, true, 480),
            (900, 5, true, 800),
        ];
        assert_eq!(pressed(&twice), (2, vec![(5, 60), (5, 100)]));
        // Only the end came of one, only the begin of another.
        assert_eq!(pressed(&[(0, 1, true, 800), (5_000, 11, false, 80)]), (2, vec![(1, 100), (11, 10)]));
    }

    #[test]
    fn a_long_event_is_one() {
        let long = [
            (10, 3, false, u16::MAX),
            (10 + 65_535, 3, false, 800),
            (10 + 65_535, 3, true, 1_600),
            (10 + 2 * 65_535, 3, true, 80),
        ];
        assert_eq!(pressed(&long), (2, vec![(3, 8_191 + 200), (3, 10)]));
    }

    #[test]
    fn memory_is_bounded() {
        let many: Vec<_> = (0..100).map(|n| (n * 1_000, 1, true, 800)).collect();
        let (count, presses) = pressed(&many);
        assert_eq!((count, presses.len()), (100, MAX_KEYS));
        assert!(presses.iter().all(|press| *press == (1, 100)));
    }
}
