//! Floor 2: bytes on the wire. Checked views only: hostile bytes never panic, allocate or loop without bound.

pub mod datagram;
pub mod replay_window;
pub mod seal;
