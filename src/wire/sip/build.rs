//! New messages: responses to a request, and requests.

use std::net::SocketAddr;

use super::cursor::offset;
use super::list::Values;
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
            // Nothing of what is asked for is supported. Whole headers, so that an answer is not much longer
            // than what it answers.
            for asked in request.all(HeaderName::ProxyRequire) {
                reply = reply.header(HeaderName::Unsupported, asked.value);
            }
        }
        reply
    }

    /// The tag for a To that has none; a 100 gets none.
    #[expect(clippy::wrong_self_convention, reason = "the tag of the header To, no conversion")]
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
        let mut source = self.source;
        for via in request.all(HeaderName::Via).map(|header| header.value) {
            match (source, Values::of(via).next()) {
                (Some(from), Some(top)) => {
                    line(&mut out, HeaderName::Via, &amended(via, top, from));
                    source = None;
                }
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

/// A Via header's value with its topmost value, `top`, amended.
fn amended(via: &[u8], top: &[u8], source: SocketAddr) -> Vec<u8> {
    let mut edits = seen_from(top, source);
    edits.sort_by_key(|edit| edit.as_ref().map(|(place, _)| place.start));
    let start = offset(via, top);
    let (mut out, mut at) = (Vec::with_capacity(via.len() + 64), 0);
    for (place, text) in edits.into_iter().flatten() {
        out.extend_from_slice(&via[at..start + place.start]);
        out.extend_from_slice(&text);
        at = start + place.end;
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
    follow(invite, Method::Ack, response.first(HeaderName::To)?, b"")
}

/// The CANCEL of a request as it was sent (RFC 3261 section 9.1), with this Reason (RFC 3326) unless that is empty.
/// `None` if it lacks what the CANCEL is made of.
pub fn cancel(request: &Message<'_>, reason: &[u8]) -> Option<Vec<u8>> {
    follow(request, Method::Cancel, request.first(HeaderName::To)?, reason)
}

/// A request on the way and in the transaction of another one.
fn follow(request: &Message<'_>, method: Method<'_>, to: &[u8], reason: &[u8]) -> Option<Vec<u8>> {
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
    let routes = request.values(HeaderName::Route).map(|route| (HeaderName::Route, route));
    let why = (!reason.is_empty()).then_some((HeaderName::Reason, reason));
    Some(next.build(&routes.chain(why).collect::<Vec<_>>(), b""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sip::check::check;

    const INVITE: &[u8] =
        b"INVITE sip:b@x;lr SIP/2.0\r\nv: SIP/2.0/UDP ua;rport;branch=z9hG4bK1 , SIP/2.0/TCP far\r\n\
        Max-Forwards: 9\r\nRoute: <sip:p1;lr>, <sip:p2;lr>\r\nf: \"\xe9\" <sip:a@x>;tag=1\r\nt: <sip:b@x>\r\n\
        i: 7@x\r\nCSeq: 4 INVITE\r\nTimestamp: 5\r\nProxy-Require: x, y\r\nContent-Length: 3\r\n\r\nabc";

    fn text(bytes: &[u8]) -> String {
        bytes.iter().map(|b| char::from(*b)).collect()
    }

    #[test]
    fn a_reply_holds_what_it_must() {
        let invite = Message::parse(INVITE).expect("a request");
        let source = "192.0.2.9:99".parse().expect("an address");
        let ringing = Reply::new(&invite, 180, b"Ringing").to_tag(b"77").seen_from(source);
        let ringing = ringing.header(HeaderName::Other(b"X-Y"), b"a\r\nb").build();
        assert_eq!(
            text(&ringing),
            "SIP/2.0 180 Ringing\r\nVia: SIP/2.0/UDP ua;rport=99;branch=z9hG4bK1;received=192.0.2.9 , SIP/2.0/TCP far\r\n\
             From: \"\u{e9}\" <sip:a@x>;tag=1\r\nTo: <sip:b@x>;tag=77\r\nCall-ID: 7@x\r\n\
             CSeq: 4 INVITE\r\nX-Y: a  b\r\nContent-Length: 0\r\n\r\n"
        );
        let trying = Reply::new(&invite, 100, b"Trying").to_tag(b"77").build();
        assert!(
            text(&trying).contains("\r\nTo: <sip:b@x>\r\n") && text(&trying).contains("\r\nTimestamp: 5\r\n")
        );
        let ok = Reply::new(&invite, 200, b"OK").to_tag(b"2").body(b"v=0\r\n").build();
        let ok = Message::parse(&ok).expect("a response");
        assert_eq!((ok.body(), check(&ok)), (&b"v=0\r\n"[..], Ok(())));
        let refused = Reply::refuse(&invite, Reason::Extension.into()).build();
        assert!(text(&refused).starts_with("SIP/2.0 420 Bad Extension\r\n"));
        let refused = Message::parse(&refused).expect("a response");
        assert!(refused.values(HeaderName::Unsupported).eq([b"x", b"y"]));
    }

    #[test]
    fn an_answer_is_not_much_longer_than_its_request() {
        for (name, value, count) in [("v", "SIP/2.0/UDP a,", 4_000), ("Proxy-Require", "a,", 20_000)] {
            let long = text(INVITE).replace("Timestamp: 5", &format!("{name}: {}", value.repeat(count)));
            let request = Message::parse(long.as_bytes()).expect("a request");
            let refusal = check(&request).expect_err("too many, or not supported");
            let reply = Reply::refuse(&request, refusal).to_tag(b"1").build();
            assert!(Message::parse(&reply).is_ok() && reply.len() < long.len() + 200);
        }
    }

    #[test]
    fn a_tag_that_is_there_stays() {
        let bye = text(INVITE).replace("t: <sip:b@x>", "t: <sip:b@x>;tag=old");
        let bye = Message::parse(bye.as_bytes()).expect("a request");
        let reply = Reply::new(&bye, 481, b"No").to_tag(b"new").build();
        assert!(text(&reply).contains("\r\nTo: <sip:b@x>;tag=old\r\n"));
    }

    #[test]
    fn ack_and_cancel_follow_their_invite() {
        let invite = Message::parse(INVITE).expect("a request");
        let busy = Reply::new(&invite, 486, b"Busy Here").to_tag(b"2").build();
        let busy = Message::parse(&busy).expect("a response");
        let expected = |method: &str, to: &str| {
            format!(
                "{method} sip:b@x;lr SIP/2.0\r\nVia: SIP/2.0/UDP ua;rport;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n\
                 From: \"\u{e9}\" <sip:a@x>;tag=1\r\nTo: {to}\r\nCall-ID: 7@x\r\nCSeq: 4 {method}\r\n\
                 Route: <sip:p1;lr>\r\nRoute: <sip:p2;lr>\r\nContent-Length: 0\r\n\r\n"
            )
        };
        assert_eq!(text(&ack(&invite, &busy).expect("an ACK")), expected("ACK", "<sip:b@x>;tag=2"));
        assert_eq!(text(&cancel(&invite, b"").expect("a CANCEL")), expected("CANCEL", "<sip:b@x>"));
        let why = text(&cancel(&invite, b"SIP;cause=200").expect("a CANCEL"));
        assert!(why.contains("\r\nReason: SIP;cause=200\r\n"), "{why}");
        assert!(cancel(&busy, b"").is_none());
    }

    #[test]
    fn a_request_from_its_parts() {
        let parts = Request {
            method: Method::Notify,
            uri: b"sip:b@x",
            via: b"SIP/2.0/UDP h;branch=z9hG4bK9",
            from: b"<sip:a@x>;tag=1",
            to: b"<sip:b@x>;tag=2",
            call_id: b"7@x",
            cseq: 12,
        };
        let event: &[u8] = b"dialog";
        let notify = parts.build(&[(HeaderName::Event, event)], b"<x/>");
        let notify = Message::parse(&notify).expect("a request");
        assert_eq!(check(&notify), Ok(()));
        assert_eq!((notify.body(), notify.first(HeaderName::Event)), (&b"<x/>"[..], Some(event)));
        assert_eq!(notify.number(HeaderName::MaxForwards), Some(70));
    }
}
