//! Callers and callees that talk: RTP of 20 ms in an open loop, from few sockets for many calls, each packet checked where it arrives.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use tandem::io::sys_recv::RecvBatch;
use tandem::io::sys_send::SendBatch;
use tandem::io::sys_socket::{self, Buffers};
use tandem::io::sys_time::{self, TimerFd};
use tandem::types::Nanos;

use crate::machine::{Machine, cpu};
use crate::parties::Relayed;

/// Sockets on each side.
const SOCKETS: usize = 16;
const BATCH: usize = 64;
/// A G.711 packet: RTP's header and 20 ms of sound.
const PACKET: usize = 12 + 160;
/// How long packets may be under way after the last was sent.
const DRAIN: Nanos = Nanos::from_millis(500);
const TIMER: Token = Token(2 * SOCKETS);

/// What a relay was asked to do, what it did, and what that cost.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// From another port than it should have come from, or not as it was sent.
    pub(crate) wrong: u64,
    pub(crate) cpu_us: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) late_p99: f64,
    pub(crate) strangers: f64,
    pub(crate) receive_errors: u64,
}

/// The sockets of all parties.
pub(crate) struct Talk {
    sockets: Vec<UdpSocket>,
    places: Vec<SocketAddr>,
    out: Vec<SendBatch>,
    batch: RecvBatch,
    poll: Poll,
    timer: TimerFd,
    /// Packets that each side of each call has sent so far.
    said: u32,
}

/// The number of the socket of one side of a call.
fn socket(call: u32, side: usize) -> usize {
    side * SOCKETS + call as usize % SOCKETS
}

impl Talk {
    pub(crate) fn new() -> anyhow::Result<Talk> {
        let (poll, timer) = (Poll::new()?, TimerFd::new()?);
        poll.registry().register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        let mut sockets = Vec::new();
        for number in 0..2 * SOCKETS {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.set_nonblocking(true)?;
            sys_socket::set_buffers(socket.as_fd(), Buffers { recv: 4 << 20, send: 4 << 20 })?;
            poll.registry().register(
                &mut SourceFd(&socket.as_raw_fd()),
                Token(number),
                Interest::READABLE,
            )?;
            sockets.push(socket);
        }
        let places = sockets.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>()?;
        let out = sockets.iter().map(|_| SendBatch::new(BATCH, 1 << 20, false)).collect();
        Ok(Talk { sockets, places, out, batch: RecvBatch::new(BATCH, 2_048), poll, timer, said: 0 })
    }

    /// Where a side of a call takes media.
    pub(crate) fn places(&self) -> impl Fn(u32, usize) -> SocketAddr + use<> {
        let places = self.places.clone();
        move |call, side| places[socket(call, side)]
    }

    /// Lets both sides of all calls talk, `rate` packets a second in all, evenly; `pids` are those that relay them.
    pub(crate) fn run(
        &mut self,
        calls: &[Relayed],
        rate: f64,
        duration: Nanos,
        pids: &[u32],
    ) -> anyhow::Result<Heard> {
        let (mut events, mut packet) = (Events::with_capacity(64), BLANK);
        let mut latency = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
        let mut late = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
        let (me, streams) = ([std::process::id()], 2 * calls.len() as u64);
        let total = (rate * duration.0 as f64 / 1e9) as u64;
        let mut heard = Heard {
            sent: 0,
            received: 0,
            wrong: 0,
            cpu_us: 0.0,
            p50: 0.0,
            p99: 0.0,
            late_p99: 0.0,
            strangers: 0.0,
            receive_errors: 0,
        };
        let (machine, before, mine) = (Machine::read(), cpu(pids), cpu(&me));
        let start = sys_time::mono();
        let due = |n: u64| Nanos((n as f64 * 1e9 / rate) as u64);
        let mut end = None;
        loop {
            let now = sys_time::mono().since(start);
            let (first, mut touched) = (heard.sent, 0_u64);
            while heard.sent < total && due(heard.sent) <= now && heard.sent - first < BATCH as u64 {
                let n = heard.sent;
                let (stream, round) = (n % streams, self.said + (n / streams) as u32);
                let (call, side) = ((stream / 2) as u32, (stream % 2) as usize);
                write(&mut packet, call, side, round, due(n));
                let number = socket(call, side);
                self.out[number].push(Some(calls[call as usize].ports[side]), 0, &packet);
                touched |= 1 << number;
                late.saturating_record(now.since(due(n)).0.max(1));
                heard.sent += 1;
            }
            for number in (0..2 * SOCKETS).filter(|number| touched & (1 << number) != 0) {
                self.out[number].send(self.sockets[number].as_fd());
            }
            if heard.sent == total && end.is_none() {
                end = Some((now, cpu(pids), heard.received, Machine::read(), cpu(&me)));
            }
            let (next, over) = match &end {
                Some((at, ..)) => (*at + DRAIN, now >= *at + DRAIN || heard.received == total),
                None => (due(heard.sent), false),
            };
            if over {
                break;
            }
            let at_once = next <= now;
            if !at_once {
                self.timer.arm(start + next)?;
            }
            match self.poll.poll(&mut events, at_once.then_some(Duration::ZERO)) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            for event in events.iter().filter(|event| event.token() != TIMER) {
                self.receive(event.token().0, calls, start, &mut heard, &mut latency);
            }
        }
        let (_, after, received, now, mine_after) = end.context("a run without an end")?;
        let used = after.since(before);
        self.said += total.div_ceil(streams) as u32;
        heard.cpu_us = used.0 as f64 / 1e3 / received.max(1) as f64;
        let us = |histogram: &Histogram<u64>, q| histogram.value_at_quantile(q) as f64 / 1e3;
        (heard.p50, heard.p99, heard.late_p99) = (us(&latency, 0.5), us(&latency, 0.99), us(&late, 0.99));
        heard.strangers = now.strangers(machine, used + mine_after.since(mine)).max(0.0);
        heard.receive_errors = now.receive_errors - machine.receive_errors;
        Ok(heard)
    }

    /// Reads a socket dry.
    fn receive(
        &mut self,
        number: usize,
        calls: &[Relayed],
        start: Nanos,
        heard: &mut Heard,
        latency: &mut Histogram<u64>,
    ) {
        loop {
            let Ok(count) = self.batch.recv(self.sockets[number].as_fd()) else { return };
            let now = sys_time::mono().since(start);
            for index in 0..count {
                let Some(received) = self.batch.get(index) else { continue };
                match read(received.bytes) {
                    Some((call, side, due))
                        if socket(call, 1 - side) == number
                            && calls.get(call as usize).map(|call| call.ports[1 - side])
                                == received.source =>
                    {
                        heard.received += 1;
                        latency.saturating_record(now.since(due).0.max(1));
                    }
                    _ => heard.wrong += 1,
                }
            }
            if count < self.batch.capacity() {
                return;
            }
        }
    }
}

/// A packet of one side of a call: RTP, and in the sound whose it is and when it was due.
pub(crate) fn write(packet: &mut [u8; PACKET], call: u32, side: usize, round: u32, due: Nanos) {
    packet[..2].copy_from_slice(&[0x80, 0]);
    packet[2..4].copy_from_slice(&(round as u16).to_be_bytes());
    packet[4..8].copy_from_slice(&round.wrapping_mul(160).to_be_bytes());
    packet[8..12].copy_from_slice(&(0x5000_0000 | (call * 2) | side as u32).to_be_bytes());
    packet[12..16].copy_from_slice(&call.to_be_bytes());
    packet[16..20].copy_from_slice(&(side as u32).to_be_bytes());
    packet[20..28].copy_from_slice(&due.0.to_be_bytes());
}

/// A silent packet, for [`write`].
pub(crate) const BLANK: [u8; PACKET] = [0x55; PACKET];

fn read(bytes: &[u8]) -> Option<(u32, usize, Nanos)> {
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let due = u64::from_be_bytes(bytes.get(20..28)?.try_into().ok()?);
    let side = word(16)? as usize;
    (bytes.len() == PACKET && side < 2).then_some((word(12)?, side, Nanos(due)))
}
