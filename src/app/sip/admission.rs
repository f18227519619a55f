//! What an ingress asks before there is a call: whose packet it is, whether it begins a call, and how that is refused.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::config::SipConfig;
use crate::app::Inbound;
use crate::types::{CallKey, LocalId};
use crate::wire::sip::check::{Verdict, judge};
use crate::wire::sip::scan::{Message as Scan, StartLine};
use crate::wire::sip::{Address, HeaderName, Message, Method, Reply};

/// What tells the keys of media ports from those of Call-IDs.
const MEDIA: u128 = 1 << 100;

/// A key that names the slot of a media port; the slot's state knows the call.
pub(super) fn media_key(config: &SipConfig, local: LocalId) -> Option<CallKey> {
    let endpoint = config.endpoint(local.endpoint)?;
    let slot = config.media.as_ref()?.ports.slot_of(endpoint.address, local.port)?;
    let (slots, slot) = (u128::from(config.slots.max(1)), u128::from(slot.0));
    let named = MEDIA | u128::from(local.endpoint) << 32 | u128::from(local.port) << 16;
    Some(CallKey(named - named % slots + slot))
}

/// Whether a packet begins a call: an INVITE outside of any dialog.
pub(super) fn opens(packet: &Inbound<'_>) -> bool {
    if packet.local.port != 0 {
        return false;
    }
    let Some(message) = Scan::parse(packet.payload) else { return false };
    let StartLine::Request { method, .. } = message.start() else { return false };
    let tagged =
        || message.header(HeaderName::To).and_then(Address::parse).is_some_and(|to| to.tag().is_some());
    Method::of(method) == Method::Invite && !tagged()
}

/// Writes a 503 to an INVITE; nothing to anything else, nor to what is malformed.
pub(super) fn refuse(
    config: &SipConfig,
    packet: &Inbound<'_>,
    retry_after_secs: u32,
    out: &mut Vec<u8>,
) -> bool {
    let Verdict::Pass(message) = judge(packet.payload) else { return false };
    if packet.local.port != 0 || message.method() != Some(Method::Invite) {
        return false;
    }
    out.extend_from_slice(&unavailable(config, packet, &message, retry_after_secs));
    true
}

fn unavailable(
    config: &SipConfig,
    packet: &Inbound<'_>,
    message: &Message<'_>,
    retry_after_secs: u32,
) -> Vec<u8> {
    let tag = format!("{:016x}", xxh3_64_with_seed(message.call_id().unwrap_or_default(), config.seed));
    Reply::new(message, 503, b"Service Unavailable")
        .seen_from(packet.source.into())
        .to_tag(tag.as_bytes())
        .header(HeaderName::RetryAfter, retry_after_secs.to_string().as_bytes())
        .build()
}
