//! Floor 2: checked views of bytes that came from a network.

pub mod echo;
