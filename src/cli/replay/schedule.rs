//! When each datagram of each clone is due: open loop, decided before anything is sent. Pure.
//!
//! There are as many seats as calls at a time. Seat s begins with call number s, the starts staggered evenly
//! over one mean cycle; when its call is through, it takes the next number, one cycle after the start of the
//! last. A cycle is a template's length, but at least one second, divided by the speed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::plan::Plan;
use super::traffic::{Packet, Shape, Traffic};
use crate::types::Nanos;

/// The shortest time, before the speed, from a call's start to that of the next on the same seat: a capture
/// of a few milliseconds would otherwise become a flood.
pub const SHORTEST_CYCLE: Nanos = Nanos::from_secs(1);

/// How a plan is paced.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Pace {
    /// Calls at a time; `None`: as many as the captures hold.
    pub calls: Option<u32>,
    /// Capture time runs this many times faster.
    pub speed: f64,
    /// Nothing is sent from this time on. `None`: every seat once, and every call of the captures once.
    pub duration: Option<Nanos>,
    /// Instead of capture time: this many datagrams a second, the seats in turn.
    pub rate: Option<f64>,
}

/// One call in progress: 24 bytes.
#[derive(Copy, Clone)]
struct Seat {
    start: Nanos,
    number: u32,
    step: u32,
    sent: u32,
}

/// The traffic of a plan.
pub struct Schedule {
    plan: Plan,
    pace: Pace,
    seats: Vec<Seat>,
    /// By capture time: when each seat is due. Empty with a rate.
    queue: BinaryHeap<Reverse<(Nanos, u32)>>,
    /// With a rate: the seats that are not through, whose turn it is, and the datagrams sent.
    turns: Vec<u32>,
    turn: usize,
    sent: u64,
    next_number: u64,
    lanes: usize,
    flows: usize,
    kinds: Vec<usize>,
}

impl Schedule {
    /// Paces `plan`.
    pub fn new(plan: Plan, pace: Pace) -> Schedule {
        let templates = plan.templates();
        let calls = pace.calls.unwrap_or(templates.len() as u32).max(1);
        let lanes = templates.iter().map(|template| template.lanes()).max().unwrap_or(1);
        let flows = templates.iter().map(|template| template.flows().len()).max().unwrap_or(1);
        let kinds = templates.iter().scan(0, |sum, template| {
            let first = *sum;
            *sum += template.flows().len();
            Some(first)
        });
        let kinds = kinds.collect();
        let cycles: f64 =
            templates.iter().map(|template| cycle(template.length(), pace.speed).0 as f64).sum();
        let mean = cycles / templates.len().max(1) as f64;
        let start = |seat: u32| Nanos((mean * f64::from(seat) / f64::from(calls)) as u64);
        let seats: Vec<_> =
            (0..calls).map(|seat| Seat { start: start(seat), number: seat, step: 0, sent: 0 }).collect();
        let by_time = pace.rate.is_none();
        Schedule {
            queue: seats.iter().zip(0..).filter(|_| by_time).map(|(s, i)| Reverse((s.start, i))).collect(),
            turns: (0..calls).filter(|_| !by_time).collect(),
            turn: 0,
            sent: 0,
            next_number: u64::from(calls),
            seats,
            lanes,
            flows,
            kinds,
            plan,
            pace,
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    fn seat_in_turn(&self) -> Option<(Nanos, u32)> {
        match self.pace.rate {
            None => self.queue.peek().map(|Reverse(due)| *due),
            Some(rate) => {
                let due = Nanos((self.sent as f64 * 1e9 / rate) as u64);
                self.turns.get(self.turn).map(|seat| (due, *seat))
            }
        }
    }

    /// Moves a seat on; returns when it is due next, in capture time.
    fn advance(&mut self, index: u32) -> Option<Nanos> {
        let once = (self.seats.len() as u64).max(self.plan.templates().len() as u64);
        let seat = &mut self.seats[index as usize];
        seat.step += 1;
        seat.sent += 1;
        let (_, template) = self.plan.template(u64::from(seat.number));
        if seat.step as usize >= template.datagrams() {
            if self.pace.duration.is_none() && self.next_number >= once {
                return None;
            }
            seat.start = seat.start + cycle(template.length(), self.pace.speed);
            seat.number = self.next_number as u32;
            seat.step = 0;
            self.next_number += 1;
        }
        let seat = self.seats[index as usize];
        let (_, template) = self.plan.template(u64::from(seat.number));
        let at = template.steps.get(seat.step as usize)?.at;
        Some(seat.start + Nanos((at.0 as f64 / self.pace.speed) as u64))
    }
}

fn cycle(length: Nanos, speed: f64) -> Nanos {
    Nanos((length.max(SHORTEST_CYCLE).0 as f64 / speed) as u64)
}

impl Traffic for Schedule {
    fn shape(&self) -> Shape {
        let seats = self.seats.len();
        let kinds = self.plan.templates().iter().map(|template| template.flows().len()).sum();
        Shape { seats, lanes: seats * self.lanes, flows: seats * self.flows, kinds }
    }

    fn due(&self) -> Option<Nanos> {
        let (due, _) = self.seat_in_turn()?;
        self.pace.duration.is_none_or(|end| due < end).then_some(due)
    }

    fn next(&mut self, bytes: &mut Vec<u8>) -> Option<Packet> {
        self.due()?;
        let (intended, index) = self.seat_in_turn()?;
        let seat = self.seats[index as usize];
        let number = u64::from(seat.number);
        let (which, template) = self.plan.template(number);
        let step = template.steps.get(seat.step as usize)?;
        let packet = Packet {
            intended,
            seat: index,
            lane: index * self.lanes as u32 + u32::from(step.lane),
            flow: index * self.flows as u32 + u32::from(step.flow),
            kind: (self.kinds[which] + usize::from(step.flow)) as u32,
            order: seat.sent + 1,
        };
        self.plan.write(number, seat.step as usize, bytes);
        let due = self.advance(index);
        self.sent += 1;
        if self.pace.rate.is_none() {
            self.queue.pop();
            self.queue.extend(due.map(|due| Reverse((due, index))));
        } else {
            if due.is_some() {
                self.turn += 1;
            } else {
                self.turns.swap_remove(self.turn);
            }
            self.turn = if self.turn < self.turns.len() { self.turn } else { 0 };
        }
        Some(packet)
    }

    fn total(&self) -> Option<u64> {
        match (self.pace.duration, self.pace.rate) {
            (None, _) => {
                let once = self.seats.len().max(self.plan.templates().len()) as u64;
                Some((0..once).map(|number| self.plan.template(number).1.datagrams() as u64).sum())
            }
            (Some(duration), Some(rate)) => Some((duration.0 as f64 * rate / 1e9).ceil() as u64),
            (Some(_), None) => None,
        }
    }

    fn kind_name(&self, kind: u32) -> String {
        let which = self.kinds.partition_point(|first| *first <= kind as usize).saturating_sub(1);
        let template = &self.plan.templates()[which];
        let flow = template.flows().get(kind as usize - self.kinds[which]);
        flow.map_or_else(String::new, |(source, destination)| {
            format!("{source} -> {destination} ({})", template.name())
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Pace, Schedule};
    use crate::cli::capture::Datagram;
    use crate::cli::replay::plan::Plan;
    use crate::cli::replay::traffic::{Packet, Shape, Traffic};
    use crate::types::Nanos;

    fn ms(n: u64) -> Nanos {
        Nanos::from_millis(n)
    }

    /// Two calls: one with datagrams at 0 and 2,000 ms, one with a single datagram.
    fn schedule(pace: Pace) -> Schedule {
        let datagram = |time, destination: &str, payload: &'static [u8]| Datagram {
            time,
            frame: 1,
            source: "10.0.0.1:1000".parse().unwrap(),
            destination: destination.parse().unwrap(),
            payload: Bytes::from_static(payload),
            cut: false,
        };
        let capture = vec![
            datagram(ms(0), "10.0.0.2:2000", b"a1"),
            datagram(ms(10), "10.0.0.3:3000", b"b1"),
            datagram(ms(2000), "10.0.0.2:2000", b"a2"),
        ];
        Schedule::new(Plan::new(&[capture], 7).unwrap(), pace)
    }

    const ONCE: Pace = Pace { calls: None, speed: 1.0, duration: None, rate: None };

    fn all(mut schedule: Schedule) -> Vec<(u64, u32, String)> {
        let mut bytes = Vec::new();
        let entry = |packet: Packet, bytes: &[u8]| {
            (packet.intended.0 / 1_000_000, packet.seat, String::from_utf8(bytes.to_vec()).unwrap())
        };
        std::iter::from_fn(|| schedule.next(&mut bytes).map(|packet| entry(packet, &bytes)))
            .take(50)
            .collect()
    }

    fn plain(list: &[(u64, u32, &str)]) -> Vec<(u64, u32, String)> {
        list.iter().map(|(at, seat, bytes)| (*at, *seat, (*bytes).to_owned())).collect()
    }

    #[test]
    fn once_through_staggers_the_starts_and_plays_every_call_of_the_captures() {
        let wanted = [(0, 0, "a1"), (750, 1, "b1"), (2000, 0, "a2")];
        assert_eq!(all(schedule(ONCE)), plain(&wanted));
        let one = Pace { calls: Some(1), ..ONCE };
        assert_eq!(all(schedule(one)), plain(&[(0, 0, "a1"), (2000, 0, "a2"), (2000, 0, "b1")]));
        assert_eq!((schedule(ONCE).total(), schedule(one).total()), (Some(3), Some(3)));
    }

    #[test]
    fn speed_scales_time_and_a_duration_repeats_and_cuts() {
        let pace = Pace { speed: 2.0, duration: Some(ms(1600)), calls: Some(1), ..ONCE };
        assert_eq!(
            all(schedule(pace)),
            plain(&[(0, 0, "a1"), (1000, 0, "a2"), (1000, 0, "b1"), (1500, 0, "a1")])
        );
    }

    #[test]
    fn a_rate_takes_the_seats_in_turn() {
        let pace = Pace { rate: Some(100.0), calls: Some(3), ..ONCE };
        let wanted = [(0, 0, "a1"), (10, 1, "b1"), (20, 2, "a1"), (30, 0, "a2"), (40, 2, "a2")];
        let mut found = all(schedule(pace));
        found.sort();
        assert_eq!(found, plain(&wanted));
        let forever = Pace { duration: Some(ms(100)), ..pace };
        assert_eq!((all(schedule(forever)).len(), schedule(forever).total()), (10, Some(10)));
    }

    #[test]
    fn shape_and_names() {
        let mut schedule = schedule(Pace { calls: Some(5), ..ONCE });
        assert_eq!(schedule.shape(), Shape { seats: 5, lanes: 5, flows: 5, kinds: 2 });
        assert!(schedule.kind_name(1).starts_with("10.0.0.1:1000 -> 10.0.0.3:3000"));
        let orders: Vec<_> = std::iter::from_fn(|| schedule.next(&mut Vec::new())).map(|p| p.order).collect();
        assert_eq!(orders, [1, 1, 1, 1, 1, 2, 2, 2], "seats 0, 2 and 4 have the call of two datagrams");
    }
}
