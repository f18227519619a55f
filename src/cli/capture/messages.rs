//! SIP messages in TCP streams (RFC 3261 section 18.3): segments in order, cut into messages by Content-Length.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::Segment;
use crate::wire::sip::scan::Message;

/// Streams followed at once; the one longest silent goes first.
const MAX_STREAMS: usize = 4_096;
/// Bytes kept of a message that is not complete; a longer one is passed over.
const MAX_BUFFER: usize = 64 * 1024;

/// The directions of TCP connections that carry SIP, and what each has sent of an unfinished message.
#[derive(Default)]
pub(super) struct Messages {
    streams: HashMap<(SocketAddr, SocketAddr), Stream>,
    turn: u64,
}

struct Stream {
    /// The sequence number expected next.
    next: u32,
    buffer: Vec<u8>,
    turn: u64,
}

impl Messages {
    /// Takes the next segment of the file and shows every message that is complete now.
    pub(super) fn segment(&mut self, segment: &Segment, mut each: impl FnMut(&Message<'_>)) {
        self.turn += 1;
        let key = (segment.source, segment.destination);
        let follows = match self.streams.get_mut(&key) {
            Some(stream) => stream.take(segment),
            None => false,
        };
        if !follows {
            // A new stream, or a hole in an old one: start over where a message starts.
            self.streams.remove(&key);
            if Message::parse(&segment.payload).is_none() {
                return;
            }
            self.make_room();
            let next = segment.sequence.wrapping_add(segment.payload.len() as u32);
            self.streams.insert(key, Stream { next, buffer: segment.payload.to_vec(), turn: self.turn });
        }
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.turn = self.turn;
            stream.show(&mut each);
        }
    }

    fn make_room(&mut self) {
        if self.streams.len() >= MAX_STREAMS {
            let oldest = self.streams.iter().min_by_key(|(_, stream)| stream.turn).map(|(key, _)| *key);
            oldest.map(|key| self.streams.remove(&key));
        }
    }
}

impl Stream {
    /// Appends what is new in a segment; `false` if bytes before it are missing.
    fn take(&mut self, segment: &Segment) -> bool {
        // How much of it is known already: sequence numbers wrap, so half the space is the past.
        let known = self.next.wrapping_sub(segment.sequence);
        if known > u32::MAX / 2 {
            return false;
        }
        let new = segment.payload.get(known as usize..).unwrap_or_default();
        self.next = self.next.wrapping_add(new.len() as u32);
        self.buffer.extend_from_slice(new);
        true
    }

    /// Shows the complete messages and keeps the rest.
    fn show(&mut self, each: &mut impl FnMut(&Message<'_>)) {
        let mut done = 0;
        loop {
            // Keep-alives and line ends between messages (RFC 5626 section 4.4.1).
            done += self.buffer[done..].iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            let rest = &self.buffer[done..];
            let Some(length) = message_length(rest) else { break };
            let Some(bytes) = rest.get(..length) else { break };
            match Message::parse(bytes) {
                Some(message) => each(&message),
                // No SIP: pass over it, and wait for a segment that starts with a message.
                None => {
                    self.buffer.clear();
                    return;
                }
            }
            done += length;
        }
        self.buffer.drain(..done);
        if self.buffer.len() > MAX_BUFFER {
            self.buffer.clear();
        }
    }
}

/// How long the message at the start of `bytes` is; `None` while its headers are incomplete.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let end = memchr::memchr(b'\n', &bytes[from..])?;
        let line = &bytes[from..from + end];
        from += end + 1;
        if line.is_empty() || line == b"\r" {
            let body = Message::parse(&bytes[..from]).and_then(|m| m.content_length()).unwrap_or(0);
            return Some(from.saturating_add(body));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Nanos;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn segment(sequence: u32, payload: &[u8]) -> Segment {
        let any = SocketAddr::from(([127, 0, 0, 1], 5060));
        let payload = Bytes::copy_from_slice(payload);
        Segment { time: Nanos::ZERO, frame: 1, source: any, destination: any, sequence, payload }
    }

    fn ids(segments: &[Segment]) -> Vec<String> {
        let (mut messages, mut ids) = (Messages::default(), Vec::new());
        for segment in segments {
            messages.segment(segment, |m| {
                ids.push(String::from_utf8_lossy(m.call_id().unwrap_or_default()).into_owned());
            });
        }
        ids
    }

    const TWO: &[u8] =
        b"INVITE sip:a SIP/2.0\r\ni: 1\r\nl: 3\r\n\r\nabc\r\n\r\nSIP/2.0 200 OK\r\ni: 2\r\nl: 0\r\n\r\n";

    proptest! {
        #[test]
        fn cuts_and_doubles_change_nothing(a in 1..TWO.len() - 1, b in 1..TWO.len() - 1, start: u32) {
            let (a, b) = (a.min(b), a.max(b));
            let at = |from: usize, to: usize| segment(start.wrapping_add(from as u32), &TWO[from..to]);
            let mut parts = vec![at(0, a)];
            if a < b {
                parts.extend([at(a, b), at(a, b)]);
            }
            parts.extend([at(a, TWO.len()), at(b, TWO.len())]);
            // An empty first segment could not be told from a hole; a start line cut in two neither.
            prop_assume!(Message::parse(&TWO[..a]).is_some());
            prop_assert_eq!(ids(&parts), ["1", "2"]);
        }
    }

    #[test]
    fn after_a_hole_the_next_start_line_counts() {
        let hole = [segment(0, &TWO[..30]), segment(40, &TWO[40..45]), segment(50, TWO)];
        assert_eq!(ids(&hole), ["1", "2"]);
    }

    #[test]
    fn what_is_not_sip_is_let_go() {
        assert_eq!(ids(&[segment(0, b"GET / HTTP/1.1\r\n\r\n"), segment(18, TWO)]), ["1", "2"]);
        let endless: Vec<Segment> =
            std::iter::once(segment(0, b"INVITE sip:a SIP/2.0\r\nl: 99999999\r\n\r\n"))
                .chain((0..100).map(|n| segment(38 + n * 1_000, &[7; 1_000])))
                .collect();
        let mut messages = Messages::default();
        for segment in &endless {
            messages.segment(segment, |_| panic!("no message is complete"));
            assert!(messages.streams.values().all(|s| s.buffer.len() <= MAX_BUFFER));
        }
    }
}
