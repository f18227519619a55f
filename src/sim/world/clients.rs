//! What clients send, and where it goes.

use super::{Event, World};
use crate::app::CallApp;
use crate::sim::layout::number;
use crate::sim::node::{Input, inbound};
use crate::sim::scenario::Load;
use crate::sim::test_app::{HEADER, TestApp, key_of, op, payload};
use crate::types::{CallKey, Endpoint, Nanos, Slot};

impl World {
    /// A client sends the next packet of some call; or of this one.
    pub(super) fn client_sends(&mut self, call: Option<u32>) {
        let Load { calls, panics, .. } = self.scenario.load;
        let call = call.unwrap_or(self.rng.range(0, u64::from(calls) - 1) as u32);
        let mut control = (self.rng.draw() & 0xff) as u8 & !op::PANIC & !op::END;
        if self.rng.chance(700) {
            control &= !op::LONG;
        }
        if self.rng.chance(60) {
            control |= op::END;
        }
        if panics && self.rng.chance(20) {
            control |= op::PANIC;
        }
        let filler = if self.rng.chance(100) { self.rng.range(0, 1_300 - HEADER as u64) } else { 20 };
        self.next_seq += 1;
        let timer = (self.rng.draw() & 0xff) as u8;
        let payload = payload(call, self.next_seq, control, timer, filler as usize);
        let mut ip = [0; 16];
        ip[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, call as u8]);
        let (source, local) = (Endpoint { ip, port: 5_000 + call as u16 }, self.endpoint_of(call));
        let packet = inbound(source, local, &payload);
        let key: CallKey = match TestApp::default().classify(&packet) {
            Ok(key) => key,
            Err(_) => key_of(call),
        };
        let Slot(slot) = key.slot(self.scenario.layout.slots());
        let lane = usize::from(slot % self.scenario.layout.shards);
        self.say(|w| format!("client {call} sends {} (slot {slot}, control {control:#010b})", w.next_seq));
        self.coverage.sent += 1;
        self.checker.sent(self.next_seq, key, &packet);
        let address = usize::from(self.map.endpoints[usize::from(number(local))]);
        let input = Input::Client { key, source, local, payload };
        let Some((mut node, _)) = self.routes[address] else {
            self.coverage.unheard += 1;
            return;
        };
        if !self.scenario.settings.live {
            return self.take_in(node, lane, input);
        }
        if !self.strict && self.rng.chance(30) {
            // Its neighbour's table is old, or wrong.
            node = self.rng.range(0, self.nodes.len() as u64 - 1) as usize;
        }
        let at = self.now + self.scenario.base.delay + Nanos(self.rng.range(0, self.scenario.base.jitter.0));
        self.queue.push(at, Event::Hear { node, lane, input });
    }
}
