//! Frames in which nodes report to the voters, voters talk to one another, and the agreed map spreads.
//!
//! Framed as all others ([`super::frame`], [`super::beat`]); they travel in control datagrams.
//!
//! | kind | frame | body |
//! |---|---|---|
//! | 35 | report | [`Report`], then `lost` pairs of node (u16) and groups (u64) |
//! | 36 | consensus | a message of the consensus library, opaque here |
//! | 37 | map | a cluster map in the library's form (postcard), opaque here |

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::frame::Malformed;

pub(super) const REPORT: u8 = 35;
pub(super) const CONSENSUS: u8 = 36;
pub(super) const MAP: u8 = 37;

/// [`Report::flags`]: the beat in this datagram renews the receiver's lease.
pub const GRANTS: u16 = 1;
/// [`Report::flags`]: the sender wants to leave.
pub const DRAINING: u16 = 2;
/// [`Report::flags`]: it has stopped releasing for that.
pub const DRAIN_DONE: u16 = 4;
/// [`Report::flags`]: it owns something and has a lease.
pub const LEASE_OK: u16 = 8;

/// The most members that one report can give up.
pub const MAX_LOST: usize = 63;

/// [`LostMember::node`]: every member.
pub const ALL_MEMBERS: u16 = 0;

/// What a node says about itself and others, in every control datagram.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq, Default,
)]
#[repr(C)]
pub struct Report {
    /// The newest map it knows.
    pub map: U32,
    /// See [`GRANTS`] and the others; unknown bits are ignored.
    pub flags: U16,
    /// The highest level of the applications that it supports.
    pub app_level: U16,
    /// What its vote file was born with; 0: it is no voter.
    pub birth: U64,
    /// Groups (one bit each) that it has learned, under this map.
    pub synced: U64,
    /// Groups that need their past members no more.
    pub confirmed: U64,
    /// Groups that wait for commits.
    pub blocked: U64,
    /// Nodes (one bit each) that it suspects.
    pub unreachable: U64,
    /// Nodes it has not heard for TANDEM_DEAD_AFTER.
    pub silent: U64,
    /// Nodes to which it grants no lease any more under this map, and whose last one has run out.
    pub promised: U64,
    /// How many members it has given up.
    pub lost: U16,
}

/// One pair of a report.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Copy, Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LostMember {
    /// The member's node, or [`ALL_MEMBERS`].
    pub node: U16,
    /// The groups (one bit each) in which it was given up; of all members: in which a slot has none left that counts.
    pub groups: U64,
}

/// Reads a report and the members it gives up.
pub(super) fn report(body: &[u8]) -> Result<(&Report, &[LostMember]), Malformed> {
    let (report, rest) = Report::ref_from_prefix(body).map_err(|_| Malformed)?;
    let count = usize::from(report.lost.get());
    if count > MAX_LOST {
        return Err(Malformed);
    }
    let (lost, _) = <[LostMember]>::ref_from_prefix_with_elems(rest, count).map_err(|_| Malformed)?;
    Ok((report, lost))
}

fn frame(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    assert!(length <= super::frame::MAX_BODY, "frame of {length} bytes");
    out.push(kind);
    out.extend_from_slice(&(length as u16).to_le_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// Appends a report; at most [`MAX_LOST`] of `lost` are said.
pub fn write_report(out: &mut Vec<u8>, report: &Report, lost: &[LostMember]) {
    let lost = &lost[..lost.len().min(MAX_LOST)];
    let report = Report { lost: (lost.len() as u16).into(), ..*report };
    frame(out, REPORT, &[report.as_bytes(), lost.as_bytes()]);
}

/// Appends a message between voters.
pub fn write_consensus(out: &mut Vec<u8>, message: &[u8]) {
    frame(out, CONSENSUS, &[message]);
}

/// Appends a map.
pub fn write_map(out: &mut Vec<u8>, map: &[u8]) {
    frame(out, MAP, &[map]);
}
