//! The reply of the `echo` application: the request's bytes, then a trailer of 36 bytes that lets a
//! client prove order, loss, duplication and continuity.
//!
//! All fields are big endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `TECH` |
//! | 4 | 4 | slot |
//! | 8 | 8 | call id hash: the low 64 bits of the call's key |
//! | 16 | 8 | per-call count, 1 for the call's first packet |
//! | 24 | 8 | position of the packet in its slot's log |
//! | 32 | 2 | version, 1 |
//! | 34 | 2 | answering node |

use crate::types::{NodeId, Position};

/// Bytes of the trailer.
pub const ECHO_TRAILER_LEN: usize = 36;

/// The trailer's version, the only one there is.
pub const ECHO_VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"TECH";

/// What `echo` says about a packet it answered.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct EchoTrailer {
    /// The call's slot.
    pub slot: u32,
    /// Low 64 bits of the call's key.
    pub call: u64,
    /// How many packets of this call have been executed, this one included.
    pub count: u64,
    /// The packet's place in the slot's log.
    pub position: Position,
    /// The node whose outputs were released: the last two bytes, stamped on release.
    pub node: NodeId,
}

impl EchoTrailer {
    /// The trailer's bytes.
    pub fn encode(&self) -> [u8; ECHO_TRAILER_LEN] {
        let mut bytes = [0; ECHO_TRAILER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.slot.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.call.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.count.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.position.0.to_be_bytes());
        bytes[32..34].copy_from_slice(&ECHO_VERSION.to_be_bytes());
        bytes[34..36].copy_from_slice(&self.node.0.to_be_bytes());
        bytes
    }

    /// Reads a trailer; `None` if the magic or the version is another, or the count is 0.
    pub fn decode(bytes: &[u8; ECHO_TRAILER_LEN]) -> Option<EchoTrailer> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (slot, rest) = rest.split_first_chunk::<4>()?;
        let (call, rest) = rest.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk::<8>()?;
        let (position, rest) = rest.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<2>()?;
        let (node, _) = rest.split_first_chunk::<2>()?;
        let count = u64::from_be_bytes(*count);
        if *magic != MAGIC || u16::from_be_bytes(*version) != ECHO_VERSION || count == 0 {
            return None;
        }
        Some(EchoTrailer {
            slot: u32::from_be_bytes(*slot),
            call: u64::from_be_bytes(*call),
            count,
            position: Position(u64::from_be_bytes(*position)),
            node: NodeId(u16::from_be_bytes(*node)),
        })
    }
}

/// Splits a reply into the request's bytes and the trailer; `None` if it is too short or its trailer is
/// not one.
pub fn split(reply: &[u8]) -> Option<(&[u8], EchoTrailer)> {
    let (request, trailer) = reply.split_last_chunk::<ECHO_TRAILER_LEN>()?;
    Some((request, EchoTrailer::decode(trailer)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{ECHO_TRAILER_LEN, EchoTrailer, split};
    use crate::types::{NodeId, Position};

    fn sample() -> EchoTrailer {
        EchoTrailer {
            slot: 7,
            call: 0x0102_0304_0506_0708,
            count: 9,
            position: Position(11),
            node: NodeId(3),
        }
    }

    #[test]
    fn the_layout_is_fixed() {
        let bytes = sample().encode();
        assert_eq!(&bytes[..16], b"TECH\0\0\0\x07\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(&bytes[16..], b"\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x0b\0\x01\0\x03");
    }

    #[test]
    fn a_bad_magic_version_or_count_is_no_trailer() {
        for (offset, value) in [(0, b'X'), (33, 2), (23, 0)] {
            let mut bytes = sample().encode();
            bytes[offset] = value;
            assert_eq!(EchoTrailer::decode(&bytes), None, "byte {offset} set to {value}");
        }
    }

    proptest! {
        #[test]
        fn what_is_appended_is_split_off(
            request: Vec<u8>, slot: u32, call: u64, count in 1..=u64::MAX, position: u64, node: u16,
        ) {
            let trailer =
                EchoTrailer { slot, call, count, position: Position(position), node: NodeId(node) };
            let mut reply = request.clone();
            reply.extend_from_slice(&trailer.encode());
            assert_eq!(split(&reply), Some((&request[..], trailer)));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let found = split(&bytes);
            assert!(found.is_none() || bytes.len() >= ECHO_TRAILER_LEN);
        }
    }
}
