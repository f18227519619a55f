//! The clear header in front of every datagram between nodes, and the reasons to refuse one.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0 | version | [`VERSION`] of the sender; versions one apart interoperate |
//! | 1 | kind | [`Kind`]: who the plaintext is for |
//! | 2..4 | from | the sending node, or [`OPERATOR_TOOL`] |
//! | 4..6 | channel | the sending thread: 0 is control, 1 + n is shard n, [`SUPERVISOR`] is the node's supervisor |
//! | 6..10 | dst_boot | [`destination`] of the receiver's boot as the sender knows it, 0: any |
//! | 10..18 | boot | the sender's boot |
//! | 18..26 | counter | 1, 2, 3... within (node, boot, channel) |
//! | 26.. | frames | AES-128-GCM ciphertext, then its 16-byte tag; the header is the associated data |
//!
//! Integers are little endian.
//!
//! A supervisor speaks only for a life that is over, and bears that life's boot: its datagrams are a channel of that
//! life like those of its threads, with counters and a replay window of their own. So they share no nonce with an
//! engine. They open only where that life was heard: an engine that could not start must not make anybody deaf to the
//! one that runs.

use crate::types::{Boot, NodeId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The wire version this build speaks.
pub const VERSION: u8 = 1;
/// The lowest version this build understands (0 was never used).
pub const OLDEST_VERSION: u8 = if VERSION > 1 { VERSION - 1 } else { 1 };
/// The highest version this build understands: a newer node speaks so that one version below can follow.
pub const NEWEST_VERSION: u8 = VERSION + 1;

/// Bytes of the clear header.
pub const HEADER_LEN: usize = size_of::<Header>();
/// Bytes of the authentication tag at the end.
pub const TAG_LEN: usize = 16;
/// What sealing adds to a plaintext.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

/// The id under which the operator's tools (`tandem status`) speak: no node of the cluster has it.
pub const OPERATOR_TOOL: NodeId = NodeId(NodeId::MAX);

/// The channel of a node's supervisor; shards are numbered far below it.
pub const SUPERVISOR: u16 = u16::MAX;

/// Who a datagram's plaintext is for.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Frames of the sending shard for the same shard of the receiver.
    Shard = 1,
    /// Frames between the control threads.
    Control = 2,
    /// Frames of a shard for the same shard of several receivers, by IP multicast.
    Multicast = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::Shard),
            2 => Some(Kind::Control),
            3 => Some(Kind::Multicast),
            _ => None,
        }
    }
}

/// Why a datagram was refused. Each reason is counted on its own.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Hash, thiserror::Error)]
#[repr(u8)]
pub enum OpenError {
    /// Shorter than a header and a tag.
    #[error("too short for a header and a tag")]
    Short,
    /// A wire version more than one away from ours.
    #[error("of a wire version this node does not speak")]
    Version,
    /// A kind this version does not know, or one its sender may not use.
    #[error("of an unknown kind")]
    Kind,
    /// From a node that is not in the cluster's settings, or from this very node.
    #[error("from a node that is not a peer")]
    UnknownNode,
    /// Meant for another life of this node, or for another node.
    #[error("meant for another node or an earlier life of this one")]
    WrongDestination,
    /// From a life of the sender that a later one has followed.
    #[error("from an earlier life of its sender")]
    OldBoot,
    /// From a supervisor, about a life that was never heard.
    #[error("about a life of its sender that was never heard")]
    UnknownLife,
    /// Seen before, or so late that it cannot be told.
    #[error("seen before, or too late to tell")]
    Replayed,
    /// The tag does not fit: forged, damaged, or sealed with another cluster key.
    #[error("not sealed with this cluster's key")]
    Forged,
}

impl OpenError {
    /// Every reason, in the order of their numbers: `ALL[e as usize] == e`, so counters can be an array.
    pub const ALL: [OpenError; 9] = [
        OpenError::Short,
        OpenError::Version,
        OpenError::Kind,
        OpenError::UnknownNode,
        OpenError::WrongDestination,
        OpenError::OldBoot,
        OpenError::UnknownLife,
        OpenError::Replayed,
        OpenError::Forged,
    ];

    /// The reason's name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            OpenError::Short => "short",
            OpenError::Version => "version",
            OpenError::Kind => "kind",
            OpenError::UnknownNode => "unknown_node",
            OpenError::WrongDestination => "wrong_destination",
            OpenError::OldBoot => "old_boot",
            OpenError::UnknownLife => "unknown_life",
            OpenError::Replayed => "replayed",
            OpenError::Forged => "forged",
        }
    }
}

/// What `dst_boot` says for a receiver with this boot: its low 32 bits, never 0 (which means "any").
///
/// It names the receiver's life, so a datagram recorded before a restart, or sent to another node, is
/// refused. It relies on boots of different nodes differing in their low half (they are start times in ns).
pub const fn destination(boot: Boot) -> u32 {
    let low = boot.0 as u32;
    if low == 0 { 1 } else { low }
}

/// The header as it lies in the datagram.
#[derive(Copy, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    version: u8,
    kind: u8,
    from: U16,
    channel: U16,
    dst_boot: U32,
    boot: U64,
    counter: U64,
}

/// The header's fields, checked.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Fields {
    pub(super) version: u8,
    pub(super) kind: Kind,
    pub(super) from: NodeId,
    pub(super) channel: u16,
    pub(super) dst_boot: u32,
    pub(super) boot: Boot,
    pub(super) counter: u64,
}

impl Fields {
    /// Reads the header of a datagram that claims to be one of ours.
    pub(super) fn read(datagram: &[u8]) -> Result<Fields, OpenError> {
        if datagram.len() < OVERHEAD {
            return Err(OpenError::Short);
        }
        let (header, _) = Header::ref_from_prefix(datagram).map_err(|_| OpenError::Short)?;
        if !(OLDEST_VERSION..=NEWEST_VERSION).contains(&header.version) {
            return Err(OpenError::Version);
        }
        Ok(Fields {
            version: header.version,
            kind: Kind::from_byte(header.kind).ok_or(OpenError::Kind)?,
            from: NodeId(header.from.get()),
            channel: header.channel.get(),
            dst_boot: header.dst_boot.get(),
            boot: Boot(header.boot.get()),
            counter: header.counter.get(),
        })
    }

    /// The header's bytes.
    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        zerocopy::transmute!(Header {
            version: self.version,
            kind: self.kind as u8,
            from: self.from.0.into(),
            channel: self.channel.into(),
            dst_boot: self.dst_boot.into(),
            boot: self.boot.0.into(),
            counter: self.counter.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_documented_layout_is_the_real_one() {
        let bytes = Fields {
            version: 1,
            kind: Kind::Control,
            from: NodeId(0x0302),
            channel: 0x0504,
            dst_boot: 0x0908_0706,
            boot: Boot(0x1110_0f0e_0d0c_0b0a),
            counter: 0x1918_1716_1514_1312,
        }
        .to_bytes();
        let mut expected = [0u8; HEADER_LEN];
        expected[..2].copy_from_slice(&[1, 2]);
        for (i, byte) in expected.iter_mut().enumerate().skip(2) {
            *byte = i as u8;
        }
        assert_eq!(bytes, expected);
    }

    #[test]
    fn versions_one_apart_are_understood() {
        let mut datagram = [0u8; OVERHEAD];
        datagram[1] = Kind::Shard as u8;
        let understood = |version: u8| {
            let mut datagram = datagram;
            datagram[0] = version;
            Fields::read(&datagram).is_ok()
        };
        let all: Vec<u8> = (0..=255).filter(|v| understood(*v)).collect();
        assert_eq!(all, [1, 2]);
    }

    #[test]
    fn reasons_index_their_counters() {
        for (i, reason) in OpenError::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
    }

    #[test]
    fn no_boot_means_any() {
        assert_eq!(destination(Boot(7 << 32)), 1);
        assert_eq!(destination(Boot(0x1_0000_0005)), 5);
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_lies_there(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(fields) = Fields::read(&bytes) {
                prop_assert_eq!(&fields.to_bytes()[..], &bytes[..HEADER_LEN]);
            }
        }
    }
}
