//! The media of one end: sends numbered packets, and judges what comes from the other.

use std::net::SocketAddr;

use super::agent::MS;

/// From one packet to the next.
const SPACING: u64 = 20 * MS;
const NEVER: u64 = u64::MAX;

/// One end's media.
pub(super) struct MediaEnd {
    /// Where it sends from and listens.
    pub at: SocketAddr,
    ssrc: u32,
    /// Where it was told to send to.
    pub peer: Option<SocketAddr>,
    pub due: u64,
    /// The other end has it on hold.
    held: bool,
    /// When each packet was sent, by its number.
    pub sent: Vec<u64>,
    /// Numbers that came, in order, and when.
    pub got: Vec<(u64, u64)>,
    pub faults: Vec<String>,
}

impl MediaEnd {
    pub(super) fn new(at: SocketAddr, ssrc: u32) -> MediaEnd {
        let (sent, got, faults) = (Vec::new(), Vec::new(), Vec::new());
        MediaEnd { at, ssrc, peer: None, due: NEVER, held: false, sent, got, faults }
    }

    /// The other end said where it listens. Its place must stay the same.
    pub(super) fn told(&mut self, peer: SocketAddr) {
        if self.peer.is_some_and(|before| before != peer) {
            self.faults.push(format!("media moved from {:?} to {peer}", self.peer));
        }
        self.peer = Some(peer);
    }

    pub(super) fn begin(&mut self, now: u64) {
        if self.due == NEVER && !self.held {
            self.due = now;
        }
    }

    /// The other end wants nothing until it resumes, even if the call's first ACK comes only then.
    pub(super) fn hold(&mut self) {
        self.held = true;
        self.stop();
    }

    pub(super) fn resume(&mut self, now: u64) {
        self.held = false;
        self.begin(now);
    }

    pub(super) fn stop(&mut self) {
        self.due = NEVER;
    }

    /// The packet that is due.
    pub(super) fn tick(&mut self, now: u64) -> Option<(SocketAddr, Vec<u8>)> {
        if now < self.due {
            return None;
        }
        self.due = now + SPACING;
        let number = self.sent.len() as u64;
        self.sent.push(now);
        Some((self.peer?, packet(self.ssrc, number)))
    }

    /// Takes a packet of `other`, which came from `source`.
    pub(super) fn receive(&mut self, now: u64, source: SocketAddr, bytes: &[u8], other: &MediaEnd) {
        let number = bytes.get(12..20).and_then(|number| number.try_into().ok()).map(u64::from_be_bytes);
        let Some(number) = number.filter(|number| bytes == packet(other.ssrc, *number)) else {
            self.faults.push(format!("altered media: {bytes:?}"));
            return;
        };
        // It may overtake the ACK that says where it comes from.
        if self.peer.is_some_and(|peer| peer != source) {
            self.faults.push(format!("media from {source}, not from {:?}", self.peer));
        }
        self.got.push((number, now));
    }
}

/// RTP (RFC 3550 section 5.1) whose payload says its number, then bytes that follow from it.
fn packet(ssrc: u32, number: u64) -> Vec<u8> {
    let mut bytes = vec![0x80, 0];
    bytes.extend_from_slice(&(number as u16).to_be_bytes());
    bytes.extend_from_slice(&(number as u32).wrapping_mul(160).to_be_bytes());
    bytes.extend_from_slice(&ssrc.to_be_bytes());
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend((0..152).map(|n| (number as u8).wrapping_mul(31).wrapping_add(n)));
    bytes
}
