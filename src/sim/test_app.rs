//! The application the simulator runs: small, and nasty on purpose. Its behaviour hangs on everything
//! an application may see (payload, logical time, the call's random source, shared state), so that a
//! member that saw anything else says other bytes.

use std::cell::RefCell;
use std::rc::Rc;

use crate::app::{BadSnapshot, CallApp, Context, Inbound, TimerId, Unclassified};
use crate::sim::layout::{local, number};
use crate::sim::rng::mix;
use crate::types::{CallKey, Endpoint, LocalId, Nanos, NodeId};

/// One output as the application asked for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sent {
    /// The call that sent it.
    pub key: CallKey,
    /// The service endpoint it leaves from.
    pub local: LocalId,
    /// Where it goes.
    pub to: Endpoint,
    /// Its bytes; the last two stand for the releasing node if `stamped`.
    pub bytes: Vec<u8>,
    /// Whether the last two bytes are replaced on release.
    pub stamped: bool,
}

/// What was executed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// A packet.
    Packet {
        /// Its sender.
        source: Endpoint,
        /// The endpoint it was sent to.
        local: LocalId,
        /// Its bytes.
        payload: Vec<u8>,
    },
    /// A timer.
    Timer(TimerId),
}

/// One handler call, as written down from inside the application.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Execution {
    /// The slot's number.
    pub slot: u16,
    /// The entry's position.
    pub position: u64,
    /// Names all that this member's slot had executed before: see [`TestShared::trail`].
    pub trail: u64,
    /// The entry's logical time.
    pub time: Nanos,
    /// The call.
    pub key: CallKey,
    /// What it handled.
    pub what: What,
    /// Random values it drew.
    pub drawn: Vec<u64>,
    /// What it sent.
    pub outputs: Vec<Sent>,
    /// Whether it panicked (then nothing it sent counts).
    pub panicked: bool,
}

/// What an application has done, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Deed {
    /// It handled something.
    Executed(Execution),
    /// A slot goes on from a snapshot that was taken at this trail.
    Restored(u64),
}

impl Deed {
    /// For the trace of a replayed seed.
    pub fn to_words(&self, node: NodeId) -> String {
        match self {
            Deed::Executed(Execution { slot, position, panicked, what, .. }) => {
                let what = match what {
                    What::Packet { .. } => "a packet",
                    What::Timer(_) => "a timer",
                };
                let how = if *panicked { ", and panics" } else { "" };
                format!("{node} executes {what} of slot {slot} at position {position}{how}")
            }
            Deed::Restored(trail) => format!("{node} restores a snapshot of {trail:016x}"),
        }
    }
}

/// Where deeds are written down, shared by the application and the world.
pub type Trace = Rc<RefCell<Vec<Deed>>>;

/// The state of one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestCall {
    opened: Nanos,
    packets: u32,
    fired: u32,
    /// How many more times timers may set timers, so that every call falls silent in the end.
    budget: u32,
    state: u64,
    peer: Option<(LocalId, Endpoint)>,
}

/// The state the calls of a slot share.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TestShared {
    changes: u64,
    state: u64,
    trail: u64,
}

impl TestShared {
    /// Names everything that was executed in the slot before, in a word: where snapshots go, it goes too.
    pub fn trail(&self) -> u64 {
        self.trail
    }
}

/// A change of the shared state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Of what calls can see.
    State(u64),
    /// Something more was executed.
    Trail(u64),
}

/// A handler that "panicked": what the model sees in the place of an unwinding stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Panicked;

/// The application.
#[derive(Clone, Default)]
pub struct TestApp {
    trace: Trace,
}

/// Bits of a payload's control byte.
pub mod op {
    /// Outputs: 0 to 2; 3 means "as many as the random source says".
    pub const OUTPUTS: u8 = 0b0000_0011;
    /// Timers: 0 none, 1 set one, 2 clear one, 3 set one and move another.
    pub const TIMERS: u8 = 0b0000_1100;
    /// Changes the shared state.
    pub const CHANGE: u8 = 0b0001_0000;
    /// Ends the call.
    pub const END: u8 = 0b0010_0000;
    /// Panics after having sent and changed what it would.
    pub const PANIC: u8 = 0b0100_0000;
    /// Long outputs.
    pub const LONG: u8 = 0b1000_0000;
}

/// Bytes before the filler of a client's payload: call, sequence number, control byte, timer byte.
pub const HEADER: usize = 10;

/// A client's payload: `call` and `seq` make it unique, `control` is made of [`op`] bits.
pub fn payload(call: u32, seq: u32, control: u8, timer: u8, filler: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + filler);
    bytes.extend(call.to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    bytes.extend([control, timer]);
    bytes.resize(HEADER + filler, (mix(u64::from(seq)) & 0xff) as u8);
    bytes
}

/// The key of the call with number `call`.
pub fn key_of(call: u32) -> CallKey {
    CallKey(u128::from(mix(u64::from(call))) << 64 | u128::from(mix(!u64::from(call))))
}

/// Slot and position an output names, or `None` if this is not an output of the test application.
pub fn output_place(bytes: &[u8]) -> Option<(u16, u64)> {
    let slot = u16::from_be_bytes(bytes.get(16..18)?.try_into().ok()?);
    let position = u64::from_be_bytes(bytes.get(18..26)?.try_into().ok()?);
    Some((slot, position))
}

fn fold(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |s, b| (s ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl TestApp {
    /// An application that writes its executions into `trace`.
    pub fn new(trace: Trace) -> TestApp {
        TestApp { trace }
    }

    /// What `on_packet` does, with a panic as a value.
    pub fn packet(
        &self,
        call: &mut TestCall,
        ctx: &mut impl Context<Shared = TestShared, Change = Change>,
        packet: &Inbound<'_>,
    ) -> Result<(), Panicked> {
        let control = packet.payload.get(8).copied().unwrap_or(0);
        let timer = packet.payload.get(9).copied().unwrap_or(0);
        let (position, slot) = ctx.place();
        ctx.change(Change::Trail(fold(position << 16 | u64::from(slot), packet.payload) ^ ctx.now().0));
        call.packets += 1;
        call.peer = Some((packet.local, packet.source));
        call.state = fold(call.state, packet.payload) ^ ctx.shared().state ^ ctx.now().0;
        let outputs = match control & op::OUTPUTS {
            3 => ctx.random() % 4,
            n => u64::from(n),
        };
        self.say(call, ctx, 0xff, outputs, control & op::LONG != 0);
        let delay = Nanos(1 + u64::from(timer >> 2) * 150_000);
        let id = TimerId(timer & 3);
        match (control & op::TIMERS) >> 2 {
            // At times the past: it must then fire with the next entry.
            1 if timer >> 2 == 63 => ctx.set_timer(id, ctx.now() - delay),
            1 => ctx.set_timer(id, ctx.now() + delay),
            2 => ctx.clear_timer(id),
            3 => {
                ctx.set_timer(id, ctx.now() + delay + delay);
                ctx.set_timer(TimerId(timer.wrapping_add(1) & 3), ctx.now() + delay);
                ctx.set_timer(id, ctx.now() + delay);
            }
            _ => {}
        }
        if control & op::CHANGE != 0 {
            ctx.change(Change::State(call.state));
        }
        if control & op::PANIC != 0 {
            return Err(Panicked);
        }
        if control & op::END != 0 {
            ctx.end();
        }
        Ok(())
    }

    /// What `on_timer` does, with a panic as a value.
    pub fn timer(
        &self,
        call: &mut TestCall,
        ctx: &mut impl Context<Shared = TestShared, Change = Change>,
        id: TimerId,
    ) -> Result<(), Panicked> {
        ctx.change(Change::Trail(
            mix(ctx.place().0 << 8 | u64::from(id.0)) ^ ctx.now().0 ^ ctx.key().0 as u64,
        ));
        call.fired += 1;
        call.state = mix(call.state ^ ctx.now().0 ^ u64::from(id.0) ^ ctx.shared().state);
        let random = ctx.random();
        self.say(call, ctx, id.0, random % 3, random & 0x70 == 0);
        if call.budget > 0 && random & 0x300 != 0 {
            call.budget -= 1;
            ctx.set_timer(
                TimerId((random >> 12 & 3) as u8),
                ctx.now() + Nanos(1 + (random >> 20) % 3_000_000),
            );
        }
        if random & 0xc00 == 0 {
            ctx.change(Change::State(random));
        }
        if random >> 32 & 0x3f == 0 {
            ctx.end();
        }
        Ok(())
    }

    fn say(
        &self,
        call: &TestCall,
        ctx: &mut impl Context<Shared = TestShared, Change = Change>,
        cause: u8,
        outputs: u64,
        long: bool,
    ) {
        let Some((local, to)) = call.peer else { return };
        for index in 0..outputs {
            let mut bytes = Vec::with_capacity(96);
            let (position, slot) = ctx.place();
            bytes.extend(ctx.key().0.to_be_bytes());
            bytes.extend(slot.to_be_bytes());
            bytes.extend(position.to_be_bytes());
            bytes.extend([cause, index as u8]);
            bytes.extend(call.packets.to_be_bytes());
            bytes.extend(call.fired.to_be_bytes());
            bytes.extend(call.state.to_be_bytes());
            bytes.extend(ctx.shared().changes.to_be_bytes());
            bytes.extend(ctx.now().0.to_be_bytes());
            let filler = if long { 300 + call.state % 700 } else { call.state % 40 };
            let filler = vec![cause ^ index as u8; filler as usize];
            if call.state >> 7 & 3 == 0 {
                ctx.send(local, to, &[&bytes, &filler]);
            } else {
                ctx.send_stamped(local, to, &[&bytes, &filler, &[0, 0]]);
            }
        }
    }

    fn record<C: Context<Shared = TestShared, Change = Change>>(
        &self,
        ctx: &mut C,
        what: What,
        run: impl FnOnce(&mut Tap<'_, C>) -> Result<(), Panicked>,
    ) {
        let ((position, slot), trail) = (ctx.place(), ctx.shared().trail);
        let mut tap = Tap { inner: ctx, drawn: Vec::new(), outputs: Vec::new() };
        let result = run(&mut tap);
        let (drawn, outputs) = (tap.drawn, tap.outputs);
        let (time, key) = (ctx.now(), ctx.key());
        let panicked = result.is_err();
        let seen = Execution { slot, position, trail, time, key, what, drawn, outputs, panicked };
        self.trace.borrow_mut().push(Deed::Executed(seen));
        if panicked {
            // Unwinds as a panic does, but without the process-wide hook that would print each one.
            std::panic::resume_unwind(Box::new("the test application panics on purpose"));
        }
    }
}

impl CallApp for TestApp {
    type Call = TestCall;
    type Shared = TestShared;
    type Change = Change;

    fn classify(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified> {
        let bytes = packet.payload.get(..4).ok_or(Unclassified::NoKey)?;
        let call = bytes.try_into().map_err(|_| Unclassified::NoKey)?;
        Ok(key_of(u32::from_be_bytes(call)))
    }

    fn open(&self, key: CallKey, now: Nanos) -> TestCall {
        TestCall {
            opened: now,
            packets: 0,
            fired: 0,
            budget: 6,
            state: mix(key.0 as u64 ^ now.0),
            peer: None,
        }
    }

    fn on_packet(
        &self,
        call: &mut TestCall,
        ctx: &mut impl Context<Shared = TestShared, Change = Change>,
        packet: &Inbound<'_>,
    ) {
        let what =
            What::Packet { source: packet.source, local: packet.local, payload: packet.payload.to_vec() };
        self.record(ctx, what, |tap| self.packet(call, tap, packet));
    }

    fn on_timer(
        &self,
        call: &mut TestCall,
        ctx: &mut impl Context<Shared = TestShared, Change = Change>,
        id: TimerId,
    ) {
        self.record(ctx, What::Timer(id), |tap| self.timer(call, tap, id));
    }

    fn apply(&self, shared: &mut TestShared, change: Change) {
        match change {
            Change::State(change) => {
                shared.changes += 1;
                shared.state = mix(shared.state ^ change);
            }
            Change::Trail(step) => shared.trail = mix(shared.trail ^ step),
        }
    }

    fn on_end(&self, shared: &mut TestShared, key: CallKey) {
        shared.state = mix(shared.state ^ key.0 as u64);
        shared.trail = mix(shared.trail ^ (key.0 >> 64) as u64);
    }

    fn snapshot_shared(&self, shared: &TestShared, out: &mut Vec<u8>) -> u16 {
        out.extend(shared.changes.to_be_bytes());
        out.extend(shared.state.to_be_bytes());
        out.extend(shared.trail.to_be_bytes());
        1
    }

    fn restore_shared(&self, version: u16, bytes: &[u8]) -> Result<TestShared, BadSnapshot> {
        let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        match (version, bytes.len(), word(0), word(8), word(16)) {
            (1, 24, Some(changes), Some(state), Some(trail)) => {
                self.trace.borrow_mut().push(Deed::Restored(trail));
                Ok(TestShared { changes, state, trail })
            }
            _ => Err(BadSnapshot { version, bytes: bytes.len() }),
        }
    }

    fn snapshot(&self, call: &TestCall, out: &mut Vec<u8>) -> u16 {
        out.extend(call.opened.0.to_be_bytes());
        out.extend(call.packets.to_be_bytes());
        out.extend(call.fired.to_be_bytes());
        out.extend(call.budget.to_be_bytes());
        out.extend(call.state.to_be_bytes());
        if let Some((local, to)) = call.peer {
            out.extend(number(local).to_be_bytes());
            out.extend(to.ip);
            out.extend(to.port.to_be_bytes());
        }
        1
    }

    fn restore(&self, version: u16, bytes: &[u8]) -> Result<TestCall, BadSnapshot> {
        let bad = BadSnapshot { version, bytes: bytes.len() };
        if version != 1 || !matches!(bytes.len(), 28 | 48) {
            return Err(bad);
        }
        let word = |at: usize| bytes[at..at + 4].iter().fold(0u32, |n, b| n << 8 | u32::from(*b));
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        let peer = bytes.get(28..48).map(|p| {
            let mut ip = [0; 16];
            ip.copy_from_slice(&p[2..18]);
            let half = |at: usize| u16::from_be_bytes([p[at], p[at + 1]]);
            (local(half(0)), Endpoint { ip, port: half(18) })
        });
        Ok(TestCall {
            opened: Nanos(long(0)),
            packets: word(8),
            fired: word(12),
            budget: word(16),
            state: long(20),
            peer,
        })
    }
}

/// Passes everything on to the real context and writes down what was drawn and sent.
struct Tap<'a, C> {
    inner: &'a mut C,
    drawn: Vec<u64>,
    outputs: Vec<Sent>,
}

impl<C: Context> Context for Tap<'_, C> {
    type Shared = C::Shared;
    type Change = C::Change;

    fn now(&self) -> Nanos {
        self.inner.now()
    }

    fn key(&self) -> CallKey {
        self.inner.key()
    }

    fn place(&self) -> (u64, u16) {
        self.inner.place()
    }

    fn random(&mut self) -> u64 {
        let value = self.inner.random();
        self.drawn.push(value);
        value
    }

    fn shared(&self) -> &C::Shared {
        self.inner.shared()
    }

    fn change(&mut self, change: C::Change) {
        self.inner.change(change);
    }

    fn send(&mut self, local: LocalId, to: Endpoint, parts: &[&[u8]]) {
        let key = self.key();
        self.outputs.push(Sent { key, local, to, bytes: parts.concat(), stamped: false });
        self.inner.send(local, to, parts);
    }

    fn send_stamped(&mut self, local: LocalId, to: Endpoint, parts: &[&[u8]]) {
        let key = self.key();
        self.outputs.push(Sent { key, local, to, bytes: parts.concat(), stamped: true });
        self.inner.send_stamped(local, to, parts);
    }

    fn set_timer(&mut self, id: TimerId, at: Nanos) {
        self.inner.set_timer(id, at);
    }

    fn clear_timer(&mut self, id: TimerId) {
        self.inner.clear_timer(id);
    }

    fn end(&mut self) {
        self.inner.end();
    }
}

#[cfg(test)]
mod tests {
    use super::{TestApp, TestCall};
    use crate::app::CallApp;
    use crate::sim::layout::local;
    use crate::types::{Endpoint, Nanos};

    #[test]
    fn snapshots_read_back_what_was_written_and_refuse_the_rest() {
        let app = TestApp::default();
        let to = Endpoint { ip: [7; 16], port: 5060 };
        for peer in [None, Some((local(3), to))] {
            let call =
                TestCall { opened: Nanos(1), packets: 2, fired: 3, budget: 4, state: u64::MAX - 5, peer };
            let mut bytes = Vec::new();
            let version = app.snapshot(&call, &mut bytes);
            assert_eq!(app.restore(version, &bytes), Ok(call));
            assert!(app.restore(version + 1, &bytes).is_err());
            assert!(app.restore(version, &bytes[1..]).is_err());
        }
    }
}
