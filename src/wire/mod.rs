//! Floor 2: what travels between nodes and what clients send, as checked views over bytes.
//!
//! A view is built once, after its length was checked; reading a field of a view cannot fail.

pub mod echo;
pub mod frame;
pub mod record;
