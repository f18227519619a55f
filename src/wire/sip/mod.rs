//! SIP messages as views over the bytes they came in: found, judged, amended and made.
//!
//! Values are bytes, never text: whatever a header holds (Latin-1, UTF-8, zeros) is kept and passes
//! through as it came. [`scan`] answers the packet path's few questions without an allocation;
//! [`Message`] knows every header; [`check`] judges what a proxy must judge; [`Rewrite`] amends a
//! message and leaves every other byte alone; [`Reply`] and [`Request`] make new ones.
//!
//! Bounds: [`MAX_MESSAGE`] bytes, [`MAX_HEADERS`] headers, [`MAX_VIAS`] Via values, [`MAX_PARAMS`] parameters
//! where two lists of them are compared. Everything is linear in the message's length.
//!
//! Source: RFC 3261, RFC 3581 (rport), RFC 3262 (PRACK), RFC 3515 (REFER), RFC 3891 (Replaces), RFC 4028
//! (session timers), RFC 4475 and RFC 5118 (what must be survived).

pub mod check;
pub mod fields;
pub mod scan;

mod address;
mod build;
mod cursor;
mod list;
mod message;
mod method;
mod name;
mod reason;
mod rewrite;
mod uri;
mod via;

pub use address::Address;
pub use build::{Reply, Request, ack, cancel};
pub use fields::CSeq;
pub use list::{Param, Params, Values};
pub use message::{Header, MAX_HEADERS, MAX_MESSAGE, Message, Start};
pub use method::Method;
pub use name::HeaderName;
pub use reason::{BadMessage, Reason, Refusal};
pub use rewrite::Rewrite;
pub use scan::{Summary, summary};
pub use uri::{Host, MAX_PARAMS, Scheme, Uri};
pub use via::{MAX_VIAS, Via};

#[cfg(test)]
mod tests;
