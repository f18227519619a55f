//! Floor 2: what travels between nodes and what clients send, as checked views over bytes: hostile bytes never
//! panic, allocate or loop without bound.
//!
//! A view is built once, after its length was checked; reading a field of a view cannot fail.

pub mod beat;
pub mod council;
pub mod datagram;
pub mod dtmf;
pub mod echo;
pub mod exit;
pub mod frame;
pub mod record;
pub mod replay_window;
pub mod rtcp;
pub mod rtp;
pub mod sdp;
pub mod seal;
pub mod sip;
pub mod stun;
