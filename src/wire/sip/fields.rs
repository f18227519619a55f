//! Values of single headers, taken apart.

use super::cursor::{cut, decimal, is_token, seconds, words};
use super::list::{Params, Values};
use super::method::Method;

/// A request's number within its dialog and its method (RFC 3261 section 20.16).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CSeq<'a> {
    /// Any 32-bit number.
    pub number: u32,
    /// The request's method, in responses too.
    pub method: Method<'a>,
}

impl<'a> CSeq<'a> {
    /// `4711 INVITE`.
    pub fn parse(value: &'a [u8]) -> Option<CSeq<'a>> {
        let mut words = words(value);
        let (number, method) = (decimal(words.next()?)?, words.next()?);
        (is_token(method) && words.next().is_none()).then(|| CSeq { number, method: Method::of(method) })
    }
}

/// Which provisional response a PRACK acknowledges (RFC 3262 section 7.2).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RAck<'a> {
    /// The response's RSeq.
    pub response: u32,
    /// The response's CSeq.
    pub cseq: CSeq<'a>,
}

impl<'a> RAck<'a> {
    /// `776656 1 INVITE`.
    pub fn parse(value: &'a [u8]) -> Option<RAck<'a>> {
        let value = value.trim_ascii();
        let end = value.iter().position(u8::is_ascii_whitespace)?;
        Some(RAck { response: decimal(&value[..end])?, cseq: CSeq::parse(&value[end..])? })
    }
}

/// A number alone: Max-Forwards, RSeq, Content-Length. `None` if it is none or over 32 bits.
pub fn number(value: &[u8]) -> Option<u32> {
    decimal(value.trim_ascii())
}

/// Seconds, then perhaps parameters or a comment: Expires, Min-Expires, Min-SE, Session-Expires,
/// Retry-After. More than 32 bits hold is 2^32 - 1 (RFC 3261 section 20.19 leaves it open, RFC 4475
/// section 3.1.2.4 wants no failure).
#[derive(Copy, Clone, Debug)]
pub struct Delay<'a> {
    /// How long.
    pub seconds: u32,
    /// `refresher`, `duration` and others.
    pub params: Params<'a>,
}

impl<'a> Delay<'a> {
    /// `1800;refresher=uac`, `18000 (in a meeting);duration=3600`, `60`.
    pub fn parse(value: &'a [u8]) -> Option<Delay<'a>> {
        let end = memchr::memchr(b';', value).unwrap_or(value.len());
        let (number, _comment) = cut(&value[..end], b'(');
        Some(Delay { seconds: seconds(number.trim_ascii())?, params: Params::of(&value[end..]) })
    }

    /// Who refreshes the session (RFC 4028 section 4), if it says so rightly.
    pub fn refresher(&self) -> Option<Refresher> {
        match self.params.value(b"refresher")? {
            who if who.eq_ignore_ascii_case(b"uac") => Some(Refresher::Uac),
            who if who.eq_ignore_ascii_case(b"uas") => Some(Refresher::Uas),
            _ => None,
        }
    }
}

/// Who refreshes a session.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Refresher {
    /// Who sent the request.
    Uac,
    /// Who answered it.
    Uas,
}

/// What a body is (RFC 3261 section 20.15).
#[derive(Copy, Clone, Debug)]
pub struct ContentType<'a> {
    /// `application`, in any case.
    pub kind: &'a [u8],
    /// `sdp`, in any case.
    pub subtype: &'a [u8],
    /// `boundary` and others.
    pub params: Params<'a>,
}

impl<'a> ContentType<'a> {
    /// `multipart/mixed;boundary=7a9`.
    pub fn parse(value: &'a [u8]) -> Option<ContentType<'a>> {
        let end = memchr::memchr(b';', value).unwrap_or(value.len());
        let (kind, Some(subtype)) = cut(&value[..end], b'/') else { return None };
        let (kind, subtype) = (kind.trim_ascii(), subtype.trim_ascii());
        let right = is_token(kind) && is_token(subtype);
        right.then(|| ContentType { kind, subtype, params: Params::of(&value[end..]) })
    }

    /// Whether it is that type, `b"application"` and `b"sdp"` say.
    pub fn is(&self, kind: &[u8], subtype: &[u8]) -> bool {
        self.kind.eq_ignore_ascii_case(kind) && self.subtype.eq_ignore_ascii_case(subtype)
    }
}

/// Which dialog a call replaces (RFC 3891 section 6.1).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Replaces<'a> {
    /// The dialog's Call-ID.
    pub call_id: &'a [u8],
    /// Its tag at whom this is sent to.
    pub to_tag: &'a [u8],
    /// Its tag at the other one.
    pub from_tag: &'a [u8],
    /// Only if it is not answered yet.
    pub early_only: bool,
}

impl<'a> Replaces<'a> {
    /// `425928@bobster.example.org;to-tag=7743;from-tag=6472`.
    pub fn parse(value: &'a [u8]) -> Option<Replaces<'a>> {
        let end = memchr::memchr(b';', value)?;
        let params = Params::of(&value[end..]);
        let call_id = value[..end].trim_ascii();
        let (to_tag, from_tag) = (params.value(b"to-tag")?, params.value(b"from-tag")?);
        let early_only = params.has(b"early-only");
        (!call_id.is_empty()).then_some(Replaces { call_id, to_tag, from_tag, early_only })
    }
}

/// Whether one of the option tags in a value (Require, Supported, ...) is this one.
pub fn has_option(value: &[u8], tag: &[u8]) -> bool {
    Values::of(value).any(|option| option.eq_ignore_ascii_case(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cseq_and_rack() {
        let invite = CSeq { number: 9, method: Method::Invite };
        assert_eq!(CSeq::parse(b"0009\r\n  INVITE"), Some(invite));
        assert_eq!(CSeq::parse(b"4294967295 x").map(|cseq| cseq.number), Some(u32::MAX));
        for wrong in
            ["", "1", "INVITE", "INVITE 1", "-1 INVITE", "4294967296 INVITE", "1 INVITE x", "1 IN@VITE"]
        {
            assert_eq!(CSeq::parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(RAck::parse(b" 776656\t9 INVITE "), Some(RAck { response: 776_656, cseq: invite }));
        for wrong in ["", "1", "1 2", "1 INVITE", "x 1 INVITE"] {
            assert_eq!(RAck::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn delays() {
        let delay = |text: &'static str| Delay::parse(text.as_bytes()).map(|d| (d.seconds, d.refresher()));
        assert_eq!(delay("1800;refresher=UAC"), Some((1800, Some(Refresher::Uac))));
        assert_eq!(delay("90 ; refresher = uas"), Some((90, Some(Refresher::Uas))));
        assert_eq!(delay("18000 (in a meeting);duration=3600"), Some((18_000, None)));
        assert_eq!(delay("1;refresher=me"), Some((1, None)));
        assert_eq!(delay("949302838503028349304023988"), Some((u32::MAX, None)));
        assert_eq!(delay("-1"), None);
        assert_eq!(delay(""), None);
        assert_eq!((number(b" 70 "), number(b"4294967296"), number(b"x")), (Some(70), None, None));
    }

    #[test]
    fn content_type_replaces_and_options() {
        let body = ContentType::parse(b"Multipart / Mixed;boundary=\"a;b\"").expect("a type");
        assert!(body.is(b"multipart", b"mixed") && !body.is(b"application", b"sdp"));
        assert_eq!(body.params.get(b"boundary").and_then(|p| p.unquoted()), Some(&b"a;b"[..]));
        assert!(ContentType::parse(b"sdp").is_none() && ContentType::parse(b"a/").is_none());
        let replaces =
            Replaces::parse(b"425928@b.example;to-tag=7743;from-tag=6472;early-only").expect("all of it");
        assert_eq!((replaces.call_id, replaces.to_tag), (&b"425928@b.example"[..], &b"7743"[..]));
        assert!(replaces.from_tag == b"6472" && replaces.early_only);
        assert_eq!(Replaces::parse(b"x;to-tag=1"), None);
        assert!(has_option(b"timer, 100rel", b"100REL") && !has_option(b"timer", b"time"));
    }
}
