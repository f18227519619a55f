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
        let Some(open) = memchr::memchr(b'<', rest) else {
            // A quote starts a name, and a name wants brackets.
            if rest.len() != value.len() {
                return None;
            }
            let end = memchr::memchr(b';', value).unwrap_or(value.len());
            let uri = value[..end].trim_ascii();
            let one = !uri.is_empty() && !uri.iter().any(|b| b.is_ascii_whitespace() || *b == b'>');
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
