//! New messages: responses to a request, and requests.

use std::net::SocketAddr;

use super::message::{Message, Start};
use super::method::Method;
use super::name::HeaderName;
use super::reason::{Reason, Refusal};
use super::rewrite::{seen_from, write_parts};

/// Hops a new request may take (RFC 3261 section 8.1.1.6).
const MAX_FORWARDS: &[u8] = b"70";

fn line(out: &mut Vec<u8>, name: HeaderName<'_>, value: &[u8]) {
    write_parts(out, &[name.text(), b": ", value, b"\r\n"]);
}

/// Content-Length, the empty line and the body.
fn end(out: &mut Vec<u8>, body: &[u8]) {
    line(out, HeaderName::ContentLength, body.len().to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

/// A response in the making (RFC 3261 section 8.2.6).
#[derive(Clone, Debug)]
pub struct Reply<'m> {
    request: &'m Message<'m>,
    code: u16,
    reason: &'m [u8],
    to_tag: &'m [u8],
    source: Option<SocketAddr>,
    extra: Vec<u8>,
    body: &'m [u8],
}

impl<'m> Reply<'m> {
    /// A response of that code, 100 to 699.
    pub fn new(request: &'m Message<'m>, code: u16, reason: &'m [u8]) -> Reply<'m> {
        Reply { request, code, reason, to_tag: &[], source: None, extra: Vec::new(), body: &[] }
    }

    /// The answer to a request that is refused, with the Unsupported header of a 420.
    pub fn refuse(request: &'m Message<'m>, refusal: Refusal) -> Reply<'m> {
        let mut reply = Reply::new(request, refusal.code, refusal.reason.text().as_bytes());
        if refusal.reason == Reason::Extension {
            for tag in request.values(HeaderName::ProxyRequire) {
                reply = reply.header(HeaderName::Unsupported, tag);
            }
        }
        reply
    }

    /// The tag for a To that has none; a 100 gets none.
    pub fn to_tag(mut self, tag: &'m [u8]) -> Reply<'m> {
        self.to_tag = tag;
        self
    }

    /// Where the request came from, for the topmost Via, unless it is noted in it.
    pub fn seen_from(mut self, source: SocketAddr) -> Reply<'m> {
        self.source = Some(source);
        self
    }

    /// One more header.
    pub fn header(mut self, name: HeaderName<'_>, value: &[u8]) -> Reply<'m> {
        line(&mut self.extra, name, value);
        self
    }

    /// A body; its Content-Type is one of the headers.
    pub fn body(mut self, body: &'m [u8]) -> Reply<'m> {
        self.body = body;
        self
    }

    /// The response's bytes.
    pub fn build(&self) -> Vec<u8> {
        let request = self.request;
        let mut out = Vec::with_capacity(request.bytes().len() + self.extra.len() + self.body.len() + 64);
        let code = self.code.to_string();
        write_parts(&mut out, &[b"SIP/2.0 ", code.as_bytes(), b" ", self.reason, b"\r\n"]);
        for (i, via) in request.values(HeaderName::Via).enumerate() {
            match self.source {
                Some(source) if i == 0 => line(&mut out, HeaderName::Via, &amended(via, source)),
                _ => line(&mut out, HeaderName::Via, via),
            }
        }
        line(&mut out, HeaderName::From, request.first(HeaderName::From).unwrap_or_default());
        self.write_to(&mut out);
        for name in [HeaderName::CallId, HeaderName::CSeq] {
            line(&mut out, name, request.first(name).unwrap_or_default());
        }
        if let (100, Some(stamp)) = (self.code, request.first(HeaderName::Timestamp)) {
            line(&mut out, HeaderName::Timestamp, stamp);
        }
        out.extend_from_slice(&self.extra);
        end(&mut out, self.body);
        out
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        let to = self.request.first(HeaderName::To).unwrap_or_default();
        let untagged = self.request.to().is_some_and(|to| to.tag().is_none());
        if untagged && self.code > 100 && !self.to_tag.is_empty() {
            write_parts(out, &[b"To: ", to, b";tag=", self.to_tag, b"\r\n"]);
        } else {
            line(out, HeaderName::To, to);
        }
    }
}

fn amended(via: &[u8], source: SocketAddr) -> Vec<u8> {
    let mut edits = seen_from(via, source);
    edits.sort_by_key(|edit| edit.as_ref().map(|(place, _)| place.start));
    let (mut out, mut at) = (Vec::with_capacity(via.len() + 64), 0);
    for (place, text) in edits.into_iter().flatten() {
        out.extend_from_slice(&via[at..place.start]);
        out.extend_from_slice(&text);
        at = place.end;
    }
    out.extend_from_slice(&via[at..]);
    out
}

/// A request in the making, with what every request has (RFC 3261 section 8.1.1) in this order. Values are
/// written as they are given.
#[derive(Clone, Debug)]
pub struct Request<'p> {
    /// What it asks for, in the CSeq too.
    pub method: Method<'p>,
    /// The Request-URI.
    pub uri: &'p [u8],
    /// The only Via value.
    pub via: &'p [u8],
    /// From, with its tag.
    pub from: &'p [u8],
    /// To, with its tag within a dialog.
    pub to: &'p [u8],
    /// The Call-ID.
    pub call_id: &'p [u8],
    /// The CSeq's number.
    pub cseq: u32,
}

impl Request<'_> {
    /// The request's bytes, with more headers (routes come first by custom) and a body.
    pub fn build(&self, headers: &[(HeaderName<'_>, &[u8])], body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(512 + body.len());
        write_parts(&mut out, &[self.method.text(), b" ", self.uri, b" SIP/2.0", b"\r\n"]);
        line(&mut out, HeaderName::Via, self.via);
        line(&mut out, HeaderName::MaxForwards, MAX_FORWARDS);
        line(&mut out, HeaderName::From, self.from);
        line(&mut out, HeaderName::To, self.to);
        line(&mut out, HeaderName::CallId, self.call_id);
        let number = self.cseq.to_string();
        write_parts(&mut out, &[b"CSeq: ", number.as_bytes(), b" ", self.method.text(), b"\r\n"]);
        headers.iter().for_each(|(name, value)| line(&mut out, *name, value));
        end(&mut out, body);
        out
    }
}

/// The ACK for a response above 299 to an INVITE as it was sent (RFC 3261 section 17.1.1.3). `None` if
/// one of them lacks what the ACK is made of.
pub fn ack(invite: &Message<'_>, response: &Message<'_>) -> Option<Vec<u8>> {
    follow(invite, Method::Ack, response.first(HeaderName::To)?)
}

/// The CANCEL of a request as it was sent (RFC 3261 section 9.1). `None` if it lacks what the CANCEL is
/// made of.
pub fn cancel(request: &Message<'_>) -> Option<Vec<u8>> {
    follow(request, Method::Cancel, request.first(HeaderName::To)?)
}

/// A request on the way and in the transaction of another one.
fn follow(request: &Message<'_>, method: Method<'_>, to: &[u8]) -> Option<Vec<u8>> {
    let Start::Request { uri, .. } = request.start() else { return None };
    let next = Request {
        method,
        uri,
        via: request.values(HeaderName::Via).next()?,
        from: request.first(HeaderName::From)?,
        to,
        call_id: request.call_id()?,
        cseq: request.cseq()?.number,
    };
    let routes: Vec<_> = request.values(HeaderName::Route).map(|route| (HeaderName::Route, route)).collect();
    Some(next.build(&routes, b""))
}
