//! Header names: long, compact, in any case.

/// Longer names are unknown ones.
const LONGEST: usize = 20;

macro_rules! names {
    ($($variant:ident $long:literal $lower:literal $($compact:literal)?,)*) => {
        /// A header's name. Two names are equal if they mean the same header.
        #[derive(Copy, Clone, Debug)]
        pub enum HeaderName<'a> {
            $(#[doc = concat!("`", $long, "`" $(, ", compact `", $compact, "`")?)] $variant,)*
            /// Any other, as written.
            Other(&'a [u8]),
        }

        impl HeaderName<'static> {
            /// The names that are known here.
            pub const KNOWN: &'static [HeaderName<'static>] = &[$(HeaderName::$variant),*];
        }

        impl<'a> HeaderName<'a> {
            /// The name that these bytes are; blanks around them are the caller's to cut.
            pub fn of(written: &'a [u8]) -> HeaderName<'a> {
                let mut lower = [0; LONGEST];
                let Some(lower) = lower.get_mut(..written.len()) else { return HeaderName::Other(written) };
                lower.copy_from_slice(written);
                lower.make_ascii_lowercase();
                match std::str::from_utf8(lower) {
                    $(Ok($lower $(| $compact)?) => HeaderName::$variant,)*
                    _ => HeaderName::Other(written),
                }
            }

            /// Whether these bytes are this name: quicker than [`HeaderName::of`] for one name.
            pub fn is(&self, written: &[u8]) -> bool {
                match (written, self) {
                    $($(([letter], HeaderName::$variant) => letter.eq_ignore_ascii_case(&$compact.as_bytes()[0]),)?)*
                    _ => written.eq_ignore_ascii_case(self.text()),
                }
            }

            /// A known name's place in the list of them; one number for all others.
            pub(super) fn code(&self) -> u8 {
                /// The same names without the bytes of the other ones.
                #[repr(u8)]
                enum Code { $($variant,)* Other }
                (match self {
                    $(HeaderName::$variant => Code::$variant,)*
                    HeaderName::Other(_) => Code::Other,
                }) as u8
            }

            /// The long form, as the RFCs write it; another name as it was written.
            pub fn text(&self) -> &'a [u8] {
                match *self {
                    $(HeaderName::$variant => $long.as_bytes(),)*
                    HeaderName::Other(written) => written,
                }
            }
        }
    };
}

names! {
    Accept "Accept" "accept",
    AcceptContact "Accept-Contact" "accept-contact" "a",
    AcceptEncoding "Accept-Encoding" "accept-encoding",
    AcceptLanguage "Accept-Language" "accept-language",
    AlertInfo "Alert-Info" "alert-info",
    Allow "Allow" "allow",
    AllowEvents "Allow-Events" "allow-events" "u",
    AuthenticationInfo "Authentication-Info" "authentication-info",
    Authorization "Authorization" "authorization",
    CallId "Call-ID" "call-id" "i",
    CallInfo "Call-Info" "call-info",
    Contact "Contact" "contact" "m",
    ContentDisposition "Content-Disposition" "content-disposition",
    ContentEncoding "Content-Encoding" "content-encoding" "e",
    ContentLanguage "Content-Language" "content-language",
    ContentLength "Content-Length" "content-length" "l",
    ContentType "Content-Type" "content-type" "c",
    CSeq "CSeq" "cseq",
    Date "Date" "date",
    Event "Event" "event" "o",
    Expires "Expires" "expires",
    From "From" "from" "f",
    Identity "Identity" "identity" "y",
    InReplyTo "In-Reply-To" "in-reply-to",
    MaxForwards "Max-Forwards" "max-forwards",
    MimeVersion "MIME-Version" "mime-version",
    MinExpires "Min-Expires" "min-expires",
    MinSe "Min-SE" "min-se",
    Organization "Organization" "organization",
    PAssertedIdentity "P-Asserted-Identity" "p-asserted-identity",
    PPreferredIdentity "P-Preferred-Identity" "p-preferred-identity",
    Path "Path" "path",
    Priority "Priority" "priority",
    Privacy "Privacy" "privacy",
    ProxyAuthenticate "Proxy-Authenticate" "proxy-authenticate",
    ProxyAuthorization "Proxy-Authorization" "proxy-authorization",
    ProxyRequire "Proxy-Require" "proxy-require",
    RAck "RAck" "rack",
    Reason "Reason" "reason",
    RecordRoute "Record-Route" "record-route",
    ReferTo "Refer-To" "refer-to" "r",
    ReferredBy "Referred-By" "referred-by" "b",
    RejectContact "Reject-Contact" "reject-contact" "j",
    Replaces "Replaces" "replaces",
    ReplyTo "Reply-To" "reply-to",
    RequestDisposition "Request-Disposition" "request-disposition" "d",
    Require "Require" "require",
    RetryAfter "Retry-After" "retry-after",
    Route "Route" "route",
    RSeq "RSeq" "rseq",
    Server "Server" "server",
    ServiceRoute "Service-Route" "service-route",
    SessionExpires "Session-Expires" "session-expires" "x",
    Subject "Subject" "subject" "s",
    SubscriptionState "Subscription-State" "subscription-state",
    Supported "Supported" "supported" "k",
    Timestamp "Timestamp" "timestamp",
    To "To" "to" "t",
    Unsupported "Unsupported" "unsupported",
    UserAgent "User-Agent" "user-agent",
    Via "Via" "via" "v",
    Warning "Warning" "warning",
    WwwAuthenticate "WWW-Authenticate" "www-authenticate",
}

impl PartialEq for HeaderName<'_> {
    fn eq(&self, other: &HeaderName<'_>) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && self.text().eq_ignore_ascii_case(other.text())
    }
}

impl Eq for HeaderName<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_any_case_and_compact() {
        for (written, name) in [
            (&b"VIA"[..], HeaderName::Via),
            (b"v", HeaderName::Via),
            (b"I", HeaderName::CallId),
            (b"call-id", HeaderName::CallId),
            (b"X", HeaderName::SessionExpires),
            (b"cSEQ", HeaderName::CSeq),
            (b"X-Thing", HeaderName::Other(b"x-thing")),
            (b"q", HeaderName::Other(b"Q")),
            (b"", HeaderName::Other(b"")),
            (&[b'v'; 99], HeaderName::Other(&[b'V'; 99])),
            (b"V\xefa", HeaderName::Other(b"v\xefa")),
        ] {
            assert_eq!(HeaderName::of(written), name);
        }
        assert_ne!(HeaderName::Via, HeaderName::Other(b"Via"));
        assert!(HeaderName::Via.is(b"V") && HeaderName::Via.is(b"vIa") && !HeaderName::Via.is(b"i"));
        assert!(HeaderName::Other(b"X-a").is(b"x-A"));
        assert_eq!(usize::from(HeaderName::Other(b"").code()), HeaderName::KNOWN.len());
    }

    #[test]
    fn every_name_is_known_by_its_own_text() {
        assert!(HeaderName::KNOWN.len() > 60);
        for name in HeaderName::KNOWN {
            assert!(name.text().len() <= LONGEST);
            assert_eq!(HeaderName::of(name.text()), *name);
            assert_eq!(HeaderName::of(&name.text().to_ascii_uppercase()), *name);
            assert_eq!(HeaderName::KNOWN[usize::from(name.code())], *name);
            assert!(name.is(&name.text().to_ascii_lowercase()) && !name.is(b"q"));
        }
    }
}
