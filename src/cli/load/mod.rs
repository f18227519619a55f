//! A synthetic open-loop load for the benches: RTP packets of many calls at a steady rate, checked like a
//! replay.
//!
//! Every call is one RTP stream with an SSRC of its own, so the engine sees `calls` calls, all of them alive
//! for the whole run. Packet k is due at k / rate; the calls take turns.

use crate::cli::replay::{Packet, Shape, Traffic, mix32};
use crate::types::Nanos;

/// The smallest packet: an RTP header and the packet's number.
pub const MIN_SIZE: usize = 20;

/// What to send.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Load {
    /// Calls, each with its own SSRC.
    pub calls: u32,
    /// Packets a second, all calls together.
    pub rate: f64,
    /// Bytes of each packet, at least [`MIN_SIZE`].
    pub size: usize,
    /// How long.
    pub duration: Nanos,
    /// Runs with different seeds have different SSRCs.
    pub seed: u32,
}

impl Load {
    /// 200-byte packets.
    pub fn new(calls: u32, rate: f64, duration: Nanos, seed: u32) -> Load {
        Load { calls, rate, size: 200, duration, seed }
    }

    /// The load as traffic for a [`Runner`](crate::cli::replay::Runner).
    pub fn traffic(self) -> LoadTraffic {
        LoadTraffic { load: self, sent: 0 }
    }
}

/// The packets of a [`Load`].
#[derive(Clone, Debug)]
pub struct LoadTraffic {
    load: Load,
    sent: u64,
}

impl Traffic for LoadTraffic {
    fn shape(&self) -> Shape {
        let calls = self.load.calls.max(1) as usize;
        Shape { seats: calls, lanes: calls, flows: calls, kinds: 1 }
    }

    fn due(&self) -> Option<Nanos> {
        let due = Nanos((self.sent as f64 * 1e9 / self.load.rate) as u64);
        (due < self.load.duration).then_some(due)
    }

    fn next(&mut self, bytes: &mut Vec<u8>) -> Option<Packet> {
        let intended = self.due()?;
        let calls = u64::from(self.load.calls.max(1));
        let (call, turn) = ((self.sent % calls) as u32, self.sent / calls);
        bytes.clear();
        bytes.extend_from_slice(&[0x80, 0]);
        bytes.extend_from_slice(&(turn as u16).to_be_bytes());
        bytes.extend_from_slice(&(turn as u32).wrapping_mul(160).to_be_bytes());
        bytes.extend_from_slice(&mix32(call ^ self.load.seed).to_be_bytes());
        // The RTP sequence number wraps; this makes every packet unlike every other.
        bytes.extend_from_slice(&self.sent.to_be_bytes());
        bytes.resize(self.load.size.max(MIN_SIZE), 0xd5);
        self.sent += 1;
        Some(Packet { intended, seat: call, lane: call, flow: call, kind: 0, order: turn as u32 + 1 })
    }

    fn total(&self) -> Option<u64> {
        Some((self.load.duration.0 as f64 * self.load.rate / 1e9).ceil() as u64)
    }

    fn kind_name(&self, _kind: u32) -> String {
        "calls".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::Load;
    use crate::cli::replay::Traffic;
    use crate::types::Nanos;
    use crate::wire::rtp::Rtp;

    #[test]
    fn calls_take_turns_at_the_rate_with_ssrcs_of_their_own() {
        let mut traffic = Load::new(3, 1000.0, Nanos::from_millis(7), 9).traffic();
        assert_eq!(traffic.total(), Some(7));
        let (mut bytes, mut found, mut packets) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(packet) = traffic.next(&mut bytes) {
            let rtp = Rtp::new(&bytes).unwrap();
            assert_eq!(bytes.len(), 200);
            packets.push((packet.intended.as_micros() / 1000, packet.lane, packet.order));
            found.push((rtp.ssrc(), rtp.sequence()));
        }
        assert_eq!(packets, [(0, 0, 1), (1, 1, 1), (2, 2, 1), (3, 0, 2), (4, 1, 2), (5, 2, 2), (6, 0, 3)]);
        assert_eq!(found[0].0, found[3].0);
        assert_eq!((found[0].1, found[3].1), (0, 1));
        assert!(found[0].0 != found[1].0 && found[1].0 != found[2].0);
    }
}
