//! What a proxy must judge before it forwards a message (RFC 3261 section 16.3), and nothing else: what
//! forwarding does not look at passes, right or not.

use std::net::{IpAddr, Ipv4Addr};

use super::address::Address;
use super::cursor::decimal;
use super::fields::CSeq;
use super::message::{Message, Start};
use super::method::Method;
use super::name::HeaderName;
use super::reason::{Reason, Refusal};
use super::uri::{Scheme, Uri};
use super::via::{MAX_VIAS, Via};

/// What becomes of a datagram.
#[derive(Clone, Debug)]
pub enum Verdict<'a> {
    /// To be handled.
    Pass(Message<'a>),
    /// To be answered with the refusal.
    Refuse(Message<'a>, Refusal),
    /// To be dropped and counted.
    Drop(Reason),
}

/// Takes a datagram apart and judges it.
pub fn judge(datagram: &[u8]) -> Verdict<'_> {
    match Message::parse(datagram) {
        Ok(message) => match check(&message) {
            Ok(()) => Verdict::Pass(message),
            Err(refusal) if message.is_answerable() => Verdict::Refuse(message, refusal),
            Err(refusal) => Verdict::Drop(refusal.reason),
        },
        Err(bad) => match bad.request {
            Some(request) => Verdict::Refuse(request, bad.reason.into()),
            None => Verdict::Drop(bad.reason),
        },
    }
}

/// Judges a message.
///
/// # Errors
/// The first thing that is wrong. A request is then answered with it, if [`Message::is_answerable`]; a
/// response is dropped. Max-Forwards and Proxy-Require come last: whoever answers a request itself
/// (OPTIONS to the proxy) may look past them.
pub fn check(message: &Message<'_>) -> Result<(), Refusal> {
    once(message)?;
    vias(message)?;
    let cseq = message.first(HeaderName::CSeq).and_then(CSeq::parse).ok_or(Reason::CSeq)?;
    match message.start() {
        Start::Response { .. } => response(message),
        Start::Request { method, uri } => {
            if cseq.method != method {
                return Err(Reason::CSeqMethod.into());
            }
            message.from().ok_or(Reason::From)?;
            message.to().ok_or(Reason::To)?;
            request_uri(uri)?;
            routes(message)?;
            hops(message)?;
            extensions(message, method)
        }
    }
}

/// Whether a request can be routed by its Request-URI: sip, sips and tel can (RFC 3261 section 16.3, 2), and urn, as of
/// emergency services (RFC 5031), which go by the default.
///
/// # Errors
/// 416.
pub fn routable(uri: &Uri<'_>) -> Result<(), Refusal> {
    match uri.scheme() {
        Scheme::Sip | Scheme::Sips | Scheme::Tel => Ok(()),
        Scheme::Other(scheme) if scheme.eq_ignore_ascii_case(b"urn") => Ok(()),
        Scheme::Other(_) => Err(Reason::Scheme.into()),
    }
}

/// What must be there is there once (RFC 3261 section 8.1.1); what may be there is not there twice.
fn once(message: &Message<'_>) -> Result<(), Refusal> {
    let needed = [
        (HeaderName::Via, Reason::MissingVia),
        (HeaderName::From, Reason::MissingFrom),
        (HeaderName::To, Reason::MissingTo),
        (HeaderName::CallId, Reason::MissingCallId),
        (HeaderName::CSeq, Reason::MissingCSeq),
    ];
    for (name, missing) in needed {
        message.first(name).filter(|value| !value.is_empty()).ok_or(missing)?;
        if name != HeaderName::Via && message.all(name).nth(1).is_some() {
            return Err(Reason::Repeated.into());
        }
    }
    match message.all(HeaderName::MaxForwards).nth(1) {
        Some(_) => Err(Reason::Repeated.into()),
        None => Ok(()),
    }
}

fn vias(message: &Message<'_>) -> Result<(), Refusal> {
    for (i, value) in message.values(HeaderName::Via).enumerate() {
        if i == MAX_VIAS {
            return Err(Reason::TooManyVias.into());
        }
        Via::parse(value).ok_or(Reason::Via)?;
    }
    message.via().map(|_| ()).ok_or(Reason::Via.into())
}

/// A response is not sent on to everybody (RFC 4475 section 3.3.10).
fn response(message: &Message<'_>) -> Result<(), Refusal> {
    let next = message.values(HeaderName::Via).nth(1).and_then(Via::parse);
    let broadcast = IpAddr::V4(Ipv4Addr::BROADCAST);
    match next.and_then(|via| via.response_address()) {
        Some(address) if address.ip() == broadcast => Err(Reason::Broadcast.into()),
        _ => Ok(()),
    }
}

/// Header components are not for a Request-URI (RFC 3261 section 19.1.1, RFC 4475 section 3.1.2.11).
fn request_uri(uri: &[u8]) -> Result<(), Refusal> {
    let uri = Uri::parse(uri).ok_or(Reason::Uri)?;
    if uri.is_sip() && uri.bytes().contains(&b'?') && uri.headers().next().is_some() {
        return Err(Reason::Uri.into());
    }
    Ok(())
}

fn routes(message: &Message<'_>) -> Result<(), Refusal> {
    let right = |value| Address::parse(value).and_then(|address| address.uri()).is_some();
    if message.values(HeaderName::Route).all(right) { Ok(()) } else { Err(Reason::Route.into()) }
}

/// A missing Max-Forwards is no fault (RFC 3261 section 16.3, 3).
fn hops(message: &Message<'_>) -> Result<(), Refusal> {
    match message.first(HeaderName::MaxForwards).map(decimal) {
        None | Some(Some(1..=255)) => Ok(()),
        Some(Some(0)) => Err(Reason::TooManyHops.into()),
        Some(_) => Err(Reason::MaxForwards.into()),
    }
}

/// No extension that a proxy must understand is understood (RFC 3261 section 16.3, 5). ACK and CANCEL
/// cannot be refused for that.
fn extensions(message: &Message<'_>, method: Method<'_>) -> Result<(), Refusal> {
    let asked = message.values(HeaderName::ProxyRequire).next().is_some();
    if asked && !matches!(method, Method::Ack | Method::Cancel) {
        Err(Reason::Extension.into())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYE: &str = "BYE sip:b@x SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:a@x>;tag=1\r\n\
        To: <sip:b@x>;tag=2\r\nCall-ID: 7@x\r\nCSeq: 4 BYE\r\nMax-Forwards: 70\r\n\r\n";

    /// What `BYE` is judged with `from` replaced, and whether it is answered.
    fn with(from: &str, to: &str) -> Result<(), (Reason, bool)> {
        assert!(BYE.contains(from), "{from}");
        match judge(BYE.replacen(from, to, 1).as_bytes()) {
            Verdict::Pass(_) => Ok(()),
            Verdict::Refuse(_, refusal) => Err((refusal.reason, true)),
            Verdict::Drop(reason) => Err((reason, false)),
        }
    }

    #[test]
    fn each_rule_bites() {
        for (from, to, reason, answered) in [
            ("Via:", "X:", Reason::MissingVia, false),
            ("From:", "X:", Reason::MissingFrom, false),
            ("To:", "X:", Reason::MissingTo, false),
            ("Call-ID:", "X:", Reason::MissingCallId, false),
            ("CSeq:", "X:", Reason::MissingCSeq, false),
            ("Max-", "i: 8\r\nMax-", Reason::Repeated, true),
            ("Max-", "f: <sip:b>\r\nMax-", Reason::Repeated, true),
            ("Max-", "max-forwards: 70\r\nMax-", Reason::Repeated, true),
            ("z9hG4bK1", "z9hG4bK1,;", Reason::Via, true),
            ("UDP h", "UDP", Reason::Via, false),
            ("<sip:a@x>", "\"<sip:a@x>", Reason::From, true),
            ("<sip:b@x>", "\"<sip:b@x>", Reason::To, true),
            ("4 BYE", "4294967296 BYE", Reason::CSeq, true),
            ("4 BYE", "4 INVITE", Reason::CSeqMethod, true),
            ("4 BYE", "4 bye", Reason::CSeqMethod, true),
            ("sip:b@x", "<sip:b@x>", Reason::Uri, true),
            ("sip:b@x", "sip:b@x?Route=y", Reason::Uri, true),
            ("Max-", "Route: <sip:a>, sip\r\nMax-", Reason::Route, true),
            (": 70", ": 256", Reason::MaxForwards, true),
            (": 70", ": -1", Reason::MaxForwards, true),
            (": 70", ":", Reason::MaxForwards, true),
            (": 70", ": 0", Reason::TooManyHops, true),
            ("Max-", "Proxy-Require: x\r\nMax-", Reason::Extension, true),
        ] {
            assert_eq!(with(from, to), Err((reason, answered)), "{from} -> {to}");
        }
        for (from, to) in [
            ("Max-Forwards: 70", "X: y"),
            ("Max-", "Proxy-Require:\r\nMax-"),
            ("Max-", "Date: never\r\nContact: ???\r\nExpires: -7\r\nMax-"),
            (": 70", ": 0255"),
            ("sip:b@x", "tel:1"),
            (";tag=1", ""),
        ] {
            assert_eq!(with(from, to), Ok(()), "{from} -> {to}");
        }
        let vias = |n: usize| format!("{}Via:", "Via: SIP/2.0/UDP g\r\n".repeat(n - 1));
        assert_eq!(with("Via:", &vias(MAX_VIAS)), Ok(()));
        assert_eq!(with("Via:", &vias(MAX_VIAS + 1)), Err((Reason::TooManyVias, true)));
    }

    #[test]
    fn ack_and_cancel_are_not_refused_for_extensions() {
        for method in ["ACK", "CANCEL"] {
            let text = BYE.replace("BYE", method).replace("Max-", "Proxy-Require: x\r\nMax-");
            assert!(matches!(judge(text.as_bytes()), Verdict::Pass(_)), "{method}");
        }
    }

    #[test]
    fn responses_are_dropped_or_pass() {
        let response =
            |vias: &str| BYE.replace("BYE sip:b@x SIP/2.0", "SIP/2.0 200 OK").replace("UDP h", vias);
        let drop = |text: &str| match judge(text.as_bytes()) {
            Verdict::Drop(reason) => Some(reason),
            Verdict::Pass(_) => None,
            Verdict::Refuse(..) => panic!("responses are not answered"),
        };
        assert_eq!(drop(&response("UDP h")), None);
        assert_eq!(drop(&response("UDP h, SIP/2.0/UDP 255.255.255.255")), Some(Reason::Broadcast));
        assert_eq!(drop(&response("UDP h, SIP/2.0/UDP g;received=255.255.255.255")), Some(Reason::Broadcast));
        assert_eq!(drop(&response("UDP h, SIP/2.0/UDP 255.255.255.255;received=192.0.2.1")), None);
        assert_eq!(drop(&response("UDP h:x")), Some(Reason::Via));
        assert_eq!(drop(&response("UDP h").replace("4 BYE", "x BYE")), Some(Reason::CSeq));
    }

    #[test]
    fn schemes_that_can_be_routed() {
        let code =
            |text: &'static str| routable(&Uri::parse(text.as_bytes()).expect("a URI")).map_err(|r| r.code);
        assert_eq!((code("sip:a"), code("SIPS:a"), code("tel:1")), (Ok(()), Ok(()), Ok(())));
        assert_eq!(code("nobodyKnowsThisScheme:totallyopaquecontent"), Err(416));
    }
}
