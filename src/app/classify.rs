//! From a datagram to its call, without a table: any ingress comes to the same answer.

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::app::{Inbound, Unclassified};
pub use crate::config::KeyRule;
use crate::types::CallKey;
use crate::wire::rtp::{Rtcp, Rtp};
use crate::wire::sip::scan::Message;

/// Finds the call of datagrams; the same rule and seed find the same call on every node.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct KeyExtractor {
    /// What names the call.
    pub rule: KeyRule,
    /// The cluster's hash seed.
    pub seed: u64,
}

/// What kind of name a key was made of: each hashes under its own seed, so that a SSRC and a Call-ID of
/// the same bytes are two calls.
#[derive(Copy, Clone)]
enum Kind {
    CallId = 1,
    Ssrc = 2,
    Source = 3,
    Bytes = 4,
}

impl KeyExtractor {
    /// The call of a datagram.
    ///
    /// # Errors
    /// [`Unclassified`] if the rule finds nothing in it; never under `auto` and `source`.
    pub fn key(&self, packet: &Inbound<'_>) -> Result<CallKey, Unclassified> {
        let payload = packet.payload;
        let found = match self.rule {
            KeyRule::Auto => {
                self.call_id(payload).or_else(|| self.ssrc(payload)).or_else(|| Some(self.source(packet)))
            }
            KeyRule::Sip => self.call_id(payload),
            KeyRule::Rtp => self.ssrc(payload),
            KeyRule::Source => Some(self.source(packet)),
            KeyRule::Bytes { offset, len } => {
                let from = usize::from(offset);
                payload.get(from..from + usize::from(len)).map(|bytes| self.hash(Kind::Bytes, bytes))
            }
        };
        found.ok_or(Unclassified::NoKey)
    }

    fn call_id(&self, payload: &[u8]) -> Option<CallKey> {
        let id = Message::parse(payload)?.call_id()?;
        Some(self.hash(Kind::CallId, id))
    }

    fn ssrc(&self, payload: &[u8]) -> Option<CallKey> {
        let rtcp = Rtcp::new(payload).map(|rtcp| rtcp.stream());
        let ssrc = rtcp.or_else(|| Rtp::new(payload).map(|rtp| rtp.ssrc()))?;
        Some(self.hash(Kind::Ssrc, &ssrc.to_be_bytes()))
    }

    fn source(&self, packet: &Inbound<'_>) -> CallKey {
        let mut bytes = [0; 18];
        bytes[..16].copy_from_slice(&packet.source.ip);
        bytes[16..].copy_from_slice(&packet.source.port.to_be_bytes());
        self.hash(Kind::Source, &bytes)
    }

    fn hash(&self, kind: Kind, id: &[u8]) -> CallKey {
        // An odd constant (2^64 / golden ratio) keeps the four seeds of any two clusters apart.
        let seed = self.seed.wrapping_add((kind as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        CallKey(xxh3_128_with_seed(id, seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Endpoint, LocalId};
    use proptest::prelude::*;
    use std::net::SocketAddr;

    fn key(rule: KeyRule, source: &str, payload: &[u8]) -> Result<CallKey, Unclassified> {
        let source = Endpoint::from(source.parse::<SocketAddr>().expect("address"));
        KeyExtractor { rule, seed: 42 }.key(&Inbound { source, local: LocalId::endpoint(0), payload })
    }

    const A: &str = "10.0.0.1:5060";
    const B: &str = "[2001:db8::1]:4000";
    const RTP: &[u8] = &[0x80, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 1, 2];
    const OTHER_RTP: &[u8] = &[0x80, 8, 0, 9, 0, 0, 0, 9, 0, 0, 0, 7];
    const SENDER_REPORT: &[u8] = &[0x80, 200, 0, 3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    const PICTURE_LOSS: &[u8] = &[0x81, 206, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7];

    #[test]
    fn auto_finds_the_call_of_each_protocol() {
        let auto = |source, payload: &[u8]| key(KeyRule::Auto, source, payload).expect("a key");
        let invite = auto(A, b"INVITE sip:a SIP/2.0\r\nCall-ID: x@y\r\n\r\n");
        assert_eq!(auto(B, b"SIP/2.0 200 OK\r\nVia: z\r\ni:x@y\n\n"), invite);
        assert_ne!(auto(A, b"INVITE sip:a SIP/2.0\r\nCall-ID: X@y\r\n\r\n"), invite);
        let stream = auto(A, RTP);
        for payload in [OTHER_RTP, SENDER_REPORT, PICTURE_LOSS] {
            assert_eq!(auto(B, payload), stream);
        }
        let source = auto(A, b"anything");
        assert_eq!(auto(A, b""), source);
        assert_eq!(auto(A, b"INVITE sip:a SIP/2.0\r\n\r\n"), source);
        assert_eq!(key(KeyRule::Source, A, RTP), Ok(source));
        assert_ne!(auto("10.0.0.1:5061", b"anything"), source);
        assert_ne!(auto("10.0.0.2:5060", b"anything"), source);
    }

    #[test]
    fn strict_rules_refuse_what_they_do_not_know() {
        assert_eq!(key(KeyRule::Sip, A, RTP), Err(Unclassified::NoKey));
        assert_eq!(key(KeyRule::Sip, A, b"INVITE sip:a SIP/2.0\r\n\r\n"), Err(Unclassified::NoKey));
        assert_eq!(key(KeyRule::Rtp, A, b"hello, this is no RTP"), Err(Unclassified::NoKey));
        let bytes = KeyRule::Bytes { offset: 2, len: 3 };
        assert_eq!(key(bytes, A, b"12345"), key(bytes, B, b"ab345xyz"));
        assert_ne!(key(bytes, A, b"12345"), key(bytes, A, b"12346"));
        assert_eq!(key(bytes, A, b"1234"), Err(Unclassified::NoKey));
    }

    #[test]
    fn kinds_and_seeds_keep_equal_bytes_apart() {
        let ssrc = key(KeyRule::Rtp, A, RTP);
        let same_bytes = key(KeyRule::Bytes { offset: 8, len: 4 }, A, RTP);
        assert!(ssrc.is_ok() && same_bytes.is_ok() && ssrc != same_bytes);
        let source = Endpoint::from(A.parse::<SocketAddr>().expect("address"));
        let inbound = Inbound { source, local: LocalId::endpoint(0), payload: RTP };
        assert_ne!(KeyExtractor { rule: KeyRule::Rtp, seed: 43 }.key(&inbound), ssrc);
    }

    #[test]
    fn the_hash_never_changes() {
        // Nodes of different versions must find the same call.
        let key =
            key(KeyRule::Sip, A, b"BYE sip:a SIP/2.0\r\nCall-ID: a84b4c76e66710\r\n\r\n").expect("a key");
        assert_eq!(format!("{:032x}", key.0), "28d4b0b33db85637d78bb40552db2b99");
    }

    proptest! {
        #[test]
        fn every_datagram_has_a_call_under_auto(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(key(KeyRule::Auto, B, &payload).is_ok());
        }
    }
}
