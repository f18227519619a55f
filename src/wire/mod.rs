//! Floor 2: what travels between nodes and what clients send, as checked views over bytes.
//!
//! A view is built once, after its length was checked; reading a field of a view cannot fail.
//! Nothing here allocates without bound, panics or loops without bound.

pub mod beat;
pub mod echo;
pub mod frame;
pub mod record;
pub mod rtp;
pub mod sip;
