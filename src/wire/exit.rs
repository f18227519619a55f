//! The exit notice: a node's supervisor says that its engine has ended.
//!
//! One control frame (see [`super::beat`]) of kind 38: the node (u16), then the boot (u64) of the life that is over.
//! It is sealed for the channel [`SUPERVISOR`](super::datagram::SUPERVISOR) of that very life, and true for ever, so it
//! bears being repeated.

use super::frame::FRAME_HEADER_LEN;
use crate::types::{Boot, NodeId};

const EXITED: u8 = 38;
const BODY_LEN: usize = 10;

/// A life that is over.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Exited {
    /// Whose.
    pub node: NodeId,
    /// Which.
    pub boot: Boot,
}

/// The plaintext of a notice.
pub fn write_exited(exited: Exited) -> Vec<u8> {
    let mut frame = vec![EXITED, BODY_LEN as u8, 0];
    frame.extend_from_slice(&exited.node.0.to_le_bytes());
    frame.extend_from_slice(&exited.boot.0.to_le_bytes());
    frame
}

/// Reads the plaintext of a notice; bytes behind what this version knows are ignored.
pub fn read_exited(plaintext: &[u8]) -> Option<Exited> {
    let (head, rest) = plaintext.split_first_chunk::<FRAME_HEADER_LEN>()?;
    let length = usize::from(u16::from_le_bytes([head[1], head[2]]));
    let body = rest.get(..length).filter(|_| head[0] == EXITED)?;
    let (node, body) = body.split_first_chunk::<2>()?;
    let (boot, _) = body.split_first_chunk::<8>()?;
    Some(Exited { node: NodeId(u16::from_le_bytes(*node)), boot: Boot(u64::from_le_bytes(*boot)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    proptest! {
        #[test]
        fn a_notice_reads_back_and_half_a_one_does_not(node: u16, boot: u64, more in proptest::collection::vec(any::<u8>(), 0..9)) {
            let exited = Exited { node: NodeId(node), boot: Boot(boot) };
            let mut bytes = write_exited(exited);
            prop_assert_eq!(bytes.len(), 13);
            for cut in 0..bytes.len() {
                prop_assert_eq!(read_exited(&bytes[..cut]), None);
            }
            bytes[1] += more.len() as u8;
            bytes.extend_from_slice(&more);
            prop_assert_eq!(read_exited(&bytes), Some(exited));
            bytes[0] = 32;
            prop_assert_eq!(read_exited(&bytes), None);
        }
    }
}
