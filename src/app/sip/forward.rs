//! What a request and a response look like when they go on (RFC 3261 sections 16.6 and 16.7).

use super::config::SipConfig;
use super::routing::{Way, branch};
use super::session::Amended;
use super::state::Hop;
use crate::types::Endpoint;
use crate::wire::sip::{HeaderName, Message, Method, Rewrite};

/// Hops a request may take that does not say (RFC 3261 section 16.6, item 3).
const MAX_FORWARDS: u32 = 70;

/// All that a request's new form depends on, but the request.
pub(super) struct Onward<'a> {
    pub way: &'a Way,
    /// Where it came from.
    pub source: Endpoint,
    /// The service endpoint that it came to.
    pub came: u16,
    pub to: Hop,
    /// The two numbers of its branch.
    pub branch: (u64, u64),
    /// Another body.
    pub body: Option<&'a [u8]>,
    pub session: &'a Amended,
}

/// The request as it goes on.
pub(super) fn request(config: &SipConfig, message: &Message<'_>, onward: &Onward<'_>) -> Vec<u8> {
    let mut rewrite = Rewrite::new(message);
    let way = onward.way;
    if way.changed {
        rewrite.set_uri(&way.uri);
        rewrite.remove(HeaderName::Route);
        for route in way.routes.iter().rev() {
            rewrite.push_route(route);
        }
    }
    rewrite.seen_from(onward.source.into());
    rewrite.push_via(&via(config, onward.to.endpoint, onward.branch));
    if makes_dialogs(message.method()) {
        for endpoint in record(onward.came, onward.to.endpoint) {
            rewrite.push_record_route(&record_route(config, endpoint));
        }
    }
    let hops = message.number(HeaderName::MaxForwards).map_or(MAX_FORWARDS, |hops| hops.saturating_sub(1));
    rewrite.set(HeaderName::MaxForwards, hops.to_string().as_bytes());
    onward.session.write(&mut rewrite);
    if let Some(body) = onward.body {
        rewrite.set_body(body);
        if body.is_empty() {
            rewrite.remove(HeaderName::ContentType);
        }
    }
    rewrite.finish()
}

/// Our Via.
pub(super) fn via(config: &SipConfig, endpoint: u16, (transaction, hash): (u64, u64)) -> Vec<u8> {
    let sent_by = config.endpoint(endpoint).map(super::config::ServiceEndpoint::sent_by).unwrap_or_default();
    [b"SIP/2.0/UDP ", sent_by.as_bytes(), b";branch=", &branch(transaction, hash), b";rport"].concat()
}

/// The endpoints to be written as Record-Route, in this order, the last one on top: one if both sides speak to the same.
fn record(came: u16, leaves: u16) -> impl Iterator<Item = u16> {
    [Some(came), (came != leaves).then_some(leaves)].into_iter().flatten()
}

fn record_route(config: &SipConfig, endpoint: u16) -> Vec<u8> {
    let sent_by = config.endpoint(endpoint).map(super::config::ServiceEndpoint::sent_by).unwrap_or_default();
    [b"<sip:", sent_by.as_bytes(), b";lr>"].concat()
}

/// Whether a request may begin a dialog, or change the route set of one.
fn makes_dialogs(method: Option<Method<'_>>) -> bool {
    matches!(method, Some(Method::Invite | Method::Subscribe | Method::Refer | Method::Notify))
}

/// A response as it goes back.
pub(super) fn response(message: &Message<'_>, body: Option<&[u8]>, session: &Amended) -> Vec<u8> {
    let mut rewrite = Rewrite::new(message);
    rewrite.pop_via();
    session.write(&mut rewrite);
    if let Some(body) = body {
        rewrite.set_body(body);
    }
    let bytes = rewrite.finish();
    // What one target cannot do now says nothing of other calls (RFC 3261 section 16.7, item 6).
    match (message.code(), bytes.iter().position(|b| *b == b' ')) {
        (Some(503), Some(space)) => unavailable(&bytes, space),
        _ => bytes,
    }
}

/// A 503 as a 500 without its Retry-After.
fn unavailable(bytes: &[u8], space: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if let Some(code) = out.get_mut(space + 1..space + 4) {
        code.copy_from_slice(b"500");
    }
    match Message::parse(&out) {
        Ok(message) => Rewrite::new(&message).remove(HeaderName::RetryAfter).finish(),
        Err(_) => out.clone(),
    }
}
