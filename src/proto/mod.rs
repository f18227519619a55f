//! Floor 3: the protocol between nodes as state machines without I/O: time and bytes in, decisions out.

mod awake;
pub mod detector;
pub mod workers;
