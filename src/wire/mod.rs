//! Floor 2: views of bytes from the network. Nothing here allocates, panics or loops without bound.

pub mod rtp;
pub mod sdp;
pub mod sip;
