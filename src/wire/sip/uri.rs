//! URIs: the parts of sip, sips and tel ones, all others opaque.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cursor::{cut, decimal};
use super::list::{Param, Params};

/// Parameters of one URI that are compared with another's; URIs with more equal none.
pub const MAX_PARAMS: usize = 64;

/// An IPv6 address with an IPv4 address in it, written out.
const LONGEST_ADDRESS: usize = 45;

/// What a URI starts with.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Scheme<'a> {
    /// `sip:`
    Sip,
    /// `sips:`
    Sips,
    /// `tel:` (RFC 3966)
    Tel,
    /// Any other, as written.
    Other(&'a [u8]),
}

/// A host name or address as written, an IPv6 address with its brackets.
#[derive(Copy, Clone, Debug)]
pub struct Host<'a>(&'a [u8]);

impl<'a> Host<'a> {
    /// A name (letters, digits, `-`, `.`, and `_`, which is seen), an IPv4 address, or an IPv6 address
    /// in brackets. `None` for everything else.
    pub fn parse(bytes: &'a [u8]) -> Option<Host<'a>> {
        let name = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
        let right = match bytes.strip_prefix(b"[").and_then(|b| b.strip_suffix(b"]")) {
            Some(inside) => address6(inside).is_some(),
            None => !bytes.is_empty() && bytes.iter().all(name),
        };
        right.then_some(Host(bytes))
    }

    /// As written.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The address, if the host is no name. An IPv4-mapped IPv6 address stays one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.0.strip_prefix(b"[").and_then(|b| b.strip_suffix(b"]")) {
            Some(inside) => address6(inside).map(IpAddr::V6),
            None => std::str::from_utf8(self.0).ok()?.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        }
    }

    /// Splits `host:port` or `host`, blanks allowed around the colon. `None` if either is malformed.
    pub(super) fn with_port(bytes: &'a [u8]) -> Option<(Host<'a>, Option<u16>)> {
        let bytes = bytes.trim_ascii();
        let end = if bytes.first() == Some(&b'[') { memchr::memchr(b']', bytes)? + 1 } else { 0 };
        let (host, port) = match memchr::memchr(b':', &bytes[end..]) {
            Some(colon) => (&bytes[..end + colon], Some(&bytes[end + colon + 1..])),
            None => (bytes, None),
        };
        let port = match port {
            Some(port) => Some(u16::try_from(decimal(port.trim_ascii())?).ok()?),
            None => None,
        };
        Some((Host::parse(host.trim_ascii())?, port))
    }
}

/// Three colons in a row, which the RFC's first grammar made, are read as two (RFC 5118 section 4.10).
fn address6(bytes: &[u8]) -> Option<Ipv6Addr> {
    let text = std::str::from_utf8(bytes).ok()?;
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (head, tail) = bytes.split_at(text.find(":::")? + 2);
    let mut two = [0; LONGEST_ADDRESS];
    let two = two.get_mut(..bytes.len() - 1)?;
    two[..head.len()].copy_from_slice(head);
    two[head.len()..].copy_from_slice(&tail[1..]);
    std::str::from_utf8(two).ok()?.parse().ok()
}

impl PartialEq for Host<'_> {
    /// Names in any case, addresses by value.
    fn eq(&self, other: &Host<'_>) -> bool {
        match (self.ip(), other.ip()) {
            (None, None) => self.0.eq_ignore_ascii_case(other.0),
            (ours, theirs) => ours == theirs,
        }
    }
}

impl Eq for Host<'_> {}

/// The parts of a sip or sips URI; of a tel one the number and the parameters, of others only the scheme.
#[derive(Copy, Clone, Debug)]
pub struct Uri<'a> {
    whole: &'a [u8],
    scheme: Scheme<'a>,
    user: Option<&'a [u8]>,
    password: Option<&'a [u8]>,
    host: Option<Host<'a>>,
    port: Option<u16>,
    params: Params<'a>,
    headers: &'a [u8],
}

impl<'a> Uri<'a> {
    /// `None` if there is no scheme, if there are blanks in it, or if it is a sip or sips URI without a
    /// right host or port.
    pub fn parse(bytes: &'a [u8]) -> Option<Uri<'a>> {
        let (scheme, Some(rest)) = cut(bytes, b':') else { return None };
        let first = scheme.first()?.is_ascii_alphabetic();
        let right = scheme.iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b));
        let blank = |b: &u8| *b <= b' ' || b"<>\"\x7f".contains(b);
        if !first || !right || rest.is_empty() || rest.iter().any(blank) {
            return None;
        }
        let scheme = match scheme {
            _ if scheme.eq_ignore_ascii_case(b"sip") => Scheme::Sip,
            _ if scheme.eq_ignore_ascii_case(b"sips") => Scheme::Sips,
            _ if scheme.eq_ignore_ascii_case(b"tel") => Scheme::Tel,
            _ => Scheme::Other(scheme),
        };
        let mut uri = Uri {
            whole: bytes,
            scheme,
            user: None,
            password: None,
            host: None,
            port: None,
            params: Params::default(),
            headers: &[],
        };
        match scheme {
            Scheme::Sip | Scheme::Sips => uri.with_parts(rest),
            Scheme::Tel => {
                let end = memchr::memchr(b';', rest).unwrap_or(rest.len());
                (uri.user, uri.params) = (Some(&rest[..end]), Params::of(&rest[end..]));
                Some(uri)
            }
            Scheme::Other(_) => Some(uri),
        }
    }

    fn with_parts(mut self, rest: &'a [u8]) -> Option<Uri<'a>> {
        // A user may hold `;`, `?` and `/`, but nothing behind it may hold an `@`.
        let place = match cut(rest, b'@') {
            (userinfo, Some(place)) => {
                let (user, password) = cut(userinfo, b':');
                (self.user, self.password) = (Some(user).filter(|user| !user.is_empty()), password);
                self.user?;
                place
            }
            (place, None) => place,
        };
        let (place, headers) = cut(place, b'?');
        let end = memchr::memchr(b';', place).unwrap_or(place.len());
        let (host, port) = Host::with_port(&place[..end])?;
        (self.host, self.port) = (Some(host), port);
        (self.params, self.headers) = (Params::of(&place[end..]), headers.unwrap_or_default());
        Some(self)
    }

    /// As written.
    pub fn bytes(&self) -> &'a [u8] {
        self.whole
    }

    /// What it starts with.
    pub fn scheme(&self) -> Scheme<'a> {
        self.scheme
    }

    /// Whether it is a sip or sips URI, which has a host.
    pub fn is_sip(&self) -> bool {
        matches!(self.scheme, Scheme::Sip | Scheme::Sips)
    }

    /// What follows the scheme and its colon.
    pub fn opaque(&self) -> &'a [u8] {
        cut(self.whole, b':').1.unwrap_or_default()
    }

    /// The user, escapes as they stand; of a tel URI the number as written.
    pub fn user(&self) -> Option<&'a [u8]> {
        self.user
    }

    /// What follows the colon behind the user.
    pub fn password(&self) -> Option<&'a [u8]> {
        self.password
    }

    /// The host; of a sip or sips URI always there.
    pub fn host(&self) -> Option<Host<'a>> {
        self.host
    }

    /// The port, if it is written.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The URI's own parameters.
    pub fn params(&self) -> Params<'a> {
        self.params
    }

    /// The header components behind the `?`, as (name, value) with escapes as they stand.
    pub fn headers(&self) -> impl Iterator<Item = Param<'a>> + use<'a> {
        self.headers.split(|b| *b == b'&').filter(|text| !text.is_empty()).map(|text| {
            let (name, value) = cut(text, b'=');
            Param { name, value }
        })
    }

    /// Whether it names a loose router (RFC 3261 section 19.1.1).
    pub fn lr(&self) -> bool {
        self.params.has(b"lr")
    }

    /// The transport parameter.
    pub fn transport(&self) -> Option<&'a [u8]> {
        self.params.value(b"transport")
    }

    /// Whether both name the same resource (RFC 3261 section 19.1.4); URIs of other schemes only if they
    /// are written the same.
    pub fn same(&self, other: &Uri<'_>) -> bool {
        if !self.is_sip() || !other.is_sip() {
            return self.whole == other.whole;
        }
        self.scheme == other.scheme
            && same_escaped(self.user, other.user, false)
            && same_escaped(self.password, other.password, false)
            && self.host == other.host
            && self.port == other.port
            && params_agree(self.params, other.params)
            && params_agree(other.params, self.params)
            && headers_agree(self, other)
            && headers_agree(other, self)
    }
}

/// Whether each of `ours` that must be in `theirs` is there, and all that are in both are equal.
fn params_agree(ours: Params<'_>, theirs: Params<'_>) -> bool {
    let must = |name: &[u8]| {
        [&b"user"[..], b"ttl", b"method", b"maddr", b"transport"].iter().any(|m| name.eq_ignore_ascii_case(m))
    };
    if ours.count() > MAX_PARAMS || theirs.count() > MAX_PARAMS {
        return false;
    }
    ours.into_iter().all(|param| match { theirs }.find(|other| same_name(param.name, other.name)) {
        Some(other) => same_escaped(param.value, other.value, true),
        None => !must(param.name),
    })
}

/// Whether each of `ours` is in `theirs`.
fn headers_agree(ours: &Uri<'_>, theirs: &Uri<'_>) -> bool {
    let (count, other) = (ours.headers().count(), theirs.headers().count());
    let found = |header: Param<'_>| {
        theirs.headers().any(|h| same_name(h.name, header.name) && same_escaped(h.value, header.value, false))
    };
    count == other && count <= MAX_PARAMS && ours.headers().all(found)
}

fn same_name(a: &[u8], b: &[u8]) -> bool {
    same_escaped(Some(a), Some(b), true)
}

fn same_escaped(a: Option<&[u8]>, b: Option<&[u8]>, any_case: bool) -> bool {
    let unit =
        move |(byte, kept): (u8, bool)| (if any_case { byte.to_ascii_lowercase() } else { byte }, kept);
    match (a, b) {
        (Some(a), Some(b)) => unescaped(a).map(unit).eq(unescaped(b).map(unit)),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// The bytes that are meant, and whether one stands for itself only because it is escaped: an escaped
/// reserved character is not the character.
fn unescaped(bytes: &[u8]) -> impl Iterator<Item = (u8, bool)> {
    let hex = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    let mut at = 0;
    std::iter::from_fn(move || {
        let byte = *bytes.get(at)?;
        let escape = match (byte, bytes.get(at + 1), bytes.get(at + 2)) {
            (b'%', Some(high), Some(low)) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        let Some((high, low)) = escape else {
            at += 1;
            return Some((byte, false));
        };
        at += 3;
        let meant = high << 4 | low;
        Some((meant, b";/?:@&=+$,%".contains(&meant)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri<'_> {
        Uri::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn parts() {
        let all = uri("sip:al;x=1:pw@[2001:db8::1]:5070;transport=TCP;lr?Subject=a%20b&X=");
        assert_eq!(
            (all.scheme(), all.user(), all.password()),
            (Scheme::Sip, Some(&b"al;x=1"[..]), Some(&b"pw"[..]))
        );
        assert_eq!(all.host().and_then(|host| host.ip()), Some("2001:db8::1".parse().expect("an address")));
        assert_eq!((all.port(), all.transport(), all.lr()), (Some(5070), Some(&b"TCP"[..]), true));
        let headers: Vec<_> = all.headers().map(|h| (h.name, h.value)).collect();
        assert_eq!(headers, [(&b"Subject"[..], Some(&b"a%20b"[..])), (b"X", Some(b""))]);
        let bare = uri("SIPS:example.com");
        assert_eq!((bare.scheme(), bare.user(), bare.port(), bare.lr()), (Scheme::Sips, None, None, false));
        assert_eq!(bare.host().map(|host| (host.bytes(), host.ip())), Some((&b"example.com"[..], None)));
        let odd = "sip:1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*:&it+has=1,weird!*pas$wo~d_too.(doesn't-it)@example.com";
        assert_eq!(uri(odd).user(), Some(&b"1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*"[..]));
        let tel = uri("tel:+1-201-555-0123;phone-context=x");
        assert_eq!((tel.scheme(), tel.user()), (Scheme::Tel, Some(&b"+1-201-555-0123"[..])));
        assert!(tel.params().has(b"phone-context") && !tel.is_sip() && tel.host().is_none());
        let other = uri("soap.beep://192.0.2.103:3002");
        assert_eq!(
            (other.scheme(), other.opaque()),
            (Scheme::Other(b"soap.beep"), &b"//192.0.2.103:3002"[..])
        );
    }

    #[test]
    fn what_is_no_uri() {
        for text in [
            "",
            "sip",
            "sip:",
            ":a",
            "1sip:a",
            "sip:a b",
            "<sip:a@b>",
            "sip:@b",
            "sip:a@",
            "sip:a@b@c",
            "sip:b:",
            "sip:b:65536",
            "sip:b:x",
            "sip:2001:db8::10",
            "sip:[2001:db8::10",
            "sip:[x]",
            "sip:[::1]x",
            "sip:a@b\r\n",
            "sip:;lr",
            "sip:a@b:-1",
            "sip:\u{e9}",
            "si p:a",
            "tel:",
        ] {
            assert!(Uri::parse(text.as_bytes()).is_none(), "{text}");
        }
        assert_eq!(uri("sip:\u{e9}@b").user(), Some("\u{e9}".as_bytes()));
    }

    /// RFC 3261 section 19.1.4 and RFC 5118 section 4.10.
    #[test]
    fn equal_and_different() {
        let equal = [
            ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
            ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;newparam=5"),
            (
                "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
                "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
            ),
            (
                "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
                "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
            ),
            ("sip:[2001:DB8::1]", "sip:[2001:db8:0::1]"),
            ("sip:u@[2001:db8:::192.0.2.1]", "sip:u@[2001:db8::c000:201]"),
            ("isbn:2983792873", "isbn:2983792873"),
        ];
        let different = [
            ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
            ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
            ("sip:carol@chicago.com;newparam=5", "sip:carol@chicago.com;newparam=6"),
            ("sip:a@b?x=1&x=1", "sip:a@b?x=1&y=2"),
            ("sip:a%40c@b", "sip:a@b"),
            ("sip:a%3Bb@c", "sip:a;b@c"),
            ("sip:a@b", "sips:a@b"),
            ("sip:a:p@b", "sip:a@b"),
            ("sip:a@b", "tel:a@b"),
        ];
        for (a, b) in equal {
            assert!(uri(a).same(&uri(b)) && uri(b).same(&uri(a)), "{a} {b}");
        }
        for (a, b) in different {
            assert!(!uri(a).same(&uri(b)) && !uri(b).same(&uri(a)), "{a} {b}");
        }
        let many = format!("sip:a{}", ";x".repeat(MAX_PARAMS + 1));
        assert!(!uri(&many).same(&uri(&many)));
    }
}
