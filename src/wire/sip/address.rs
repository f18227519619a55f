//! The values of From, To, Contact, Route, Record-Route, Refer-To: a URI, perhaps a name, parameters.

use super::cursor::{after_quoted, offset};
use super::list::Params;
use super::uri::Uri;

/// `"Name" <uri>;params`, `Name <uri>;params` or `uri;params` (RFC 3261 section 20.10).
#[derive(Copy, Clone, Debug)]
pub struct Address<'a> {
    /// The name before the `<`, quotes included; empty without one.
    pub display: &'a [u8],
    /// The URI without its brackets and the blanks inside them; `*` is possible in a Contact.
    pub uri: &'a [u8],
    /// What follows the URI.
    pub params: Params<'a>,
}

impl<'a> Address<'a> {
    /// One address. `None` without a URI, with a quote or a bracket that never closes, and with
    /// anything but parameters behind the bracket. The URI itself is not looked into.
    pub fn parse(value: &'a [u8]) -> Option<Address<'a>> {
        let value = value.trim_ascii();
        let mut rest = value;
        if rest.first() == Some(&b'"') {
            rest = after_quoted(rest)?;
        }
        // A bracket behind a `;` is a parameter's.
        let open = memchr::memchr2(b'<', b';', rest).filter(|at| rest[*at] == b'<');
        let Some(open) = open else {
            // A quote starts a name, and a name wants brackets.
            let end = memchr::memchr(b';', value).unwrap_or(value.len());
            let uri = value[..end].trim_ascii();
            let one = !uri.is_empty() && !uri.iter().any(|b| b.is_ascii_whitespace() || b"\">".contains(b));
            return one.then(|| Address { display: &[], uri, params: Params::of(&value[end..]) });
        };
        let open = offset(value, rest) + open;
        let close = open + memchr::memchr(b'>', &value[open..])?;
        let uri = value[open + 1..close].trim_ascii();
        let params = value[close + 1..].trim_ascii_start();
        let right = !uri.is_empty() && matches!(params.first(), None | Some(b';'));
        let display = value[..open].trim_ascii();
        right.then(|| Address { display, uri, params: Params::of(params) })
    }

    /// The URI taken apart, if it is one.
    pub fn uri(&self) -> Option<Uri<'a>> {
        Uri::parse(self.uri)
    }

    /// The tag of a From or To; empty tags are none.
    pub fn tag(&self) -> Option<&'a [u8]> {
        self.params.value(b"tag").filter(|tag| !tag.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(value: &str) -> Option<[String; 3]> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let address = Address::parse(value.as_bytes())?;
        Some([text(address.display), text(address.uri), text(address.tag().unwrap_or_default())])
    }

    #[test]
    fn names_uris_and_tags() {
        for (value, expected) in [
            ("sip:a@b;tag=1", ["", "sip:a@b", "1"]),
            (" sip:a@b ;   tag    = 1", ["", "sip:a@b", "1"]),
            ("<sip:a@b;tag=no>;x;tag=1;tag=2", ["", "sip:a@b;tag=no", "1"]),
            ("caller<sip:c@d>;TAG=323", ["caller", "sip:c@d", "323"]),
            (r#""A \" <x> , B" < sip:a@b >;tag=x"#, [r#""A \" <x> , B""#, "sip:a@b", "x"]),
            ("Bell, Alexander <sip:a@b>", ["Bell, Alexander", "sip:a@b", ""]),
            ("\"J\\\\\"\r\n  <sip:a>\r\n ;\r\n tag = 9", ["\"J\\\\\"", "sip:a", "9"]),
            ("<http://x>;tag=", ["", "http://x", ""]),
            ("sip:a@b;x=\"<y>\";tag=1", ["", "sip:a@b", "1"]),
            ("*", ["", "*", ""]),
        ] {
            assert_eq!(parts(value), Some(expected.map(str::to_owned)), "{value}");
        }
        let wrong = [
            "",
            "<>",
            "\"a <sip:b>",
            "<sip:a",
            "\"a\" sip:b",
            "<sip:a> x",
            "sip:a b",
            ";tag=1",
            "\"a\"",
            "sip:a>",
        ];
        for value in wrong {
            assert_eq!(parts(value), None, "{value}");
        }
        let address = Address::parse(b"\xe9 <sip:\xff@h>").expect("an address");
        assert_eq!(
            (address.display, address.uri().and_then(|uri| uri.user())),
            (&b"\xe9"[..], Some(&b"\xff"[..]))
        );
    }
}
