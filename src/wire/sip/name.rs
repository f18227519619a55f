//! Header names: long, compact, in any case.

/// Longer names are unknown ones.
const LONGEST: usize = 20;

macro_rules! names {
    ($($variant:ident $long:literal $lower:literal $($compact:literal)?,)*) => {
        /// A header's name. Two names are equal if they mean the same header.
        #[derive(Copy, Clone, Debug)]
        pub enum HeaderName<'a> {
            $(#[doc = concat!("`", $long, "`" $(, ", compact ", stringify!($compact))?)] $variant,)*
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
                match &*lower {
                    $($lower $(| $compact)? => HeaderName::$variant,)*
                    _ => HeaderName::Other(written),
                }
            }

            /// Whether these bytes are this name: quicker than [`HeaderName::of`] for one name.
            pub fn is(&self, written: &[u8]) -> bool {
                match (written, self) {
                    $($(([letter], HeaderName::$variant) => letter.eq_ignore_ascii_case(&$compact[0]),)?)*
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
    Accept "Accept" b"accept",
    AcceptContact "Accept-Contact" b"accept-contact" b"a",
    AcceptEncoding "Accept-Encoding" b"accept-encoding",
    AcceptLanguage "Accept-Language" b"accept-language",
    AlertInfo "Alert-Info" b"alert-info",
    Allow "Allow" b"allow",
    AllowEvents "Allow-Events" b"allow-events" b"u",
    AuthenticationInfo "Authentication-Info" b"authentication-info",
    Authorization "Authorization" b"authorization",
    CallId "Call-ID" b"call-id" b"i",
    CallInfo "Call-Info" b"call-info",
    Contact "Contact" b"contact" b"m",
    ContentDisposition "Content-Disposition" b"content-disposition",
    ContentEncoding "Content-Encoding" b"content-encoding" b"e",
    ContentLanguage "Content-Language" b"content-language",
    ContentLength "Content-Length" b"content-length" b"l",
    ContentType "Content-Type" b"content-type" b"c",
    CSeq "CSeq" b"cseq",
    Date "Date" b"date",
    Event "Event" b"event" b"o",
    Expires "Expires" b"expires",
    From "From" b"from" b"f",
    Identity "Identity" b"identity" b"y",
    InReplyTo "In-Reply-To" b"in-reply-to",
    MaxForwards "Max-Forwards" b"max-forwards",
    MimeVersion "MIME-Version" b"mime-version",
    MinExpires "Min-Expires" b"min-expires",
    MinSe "Min-SE" b"min-se",
    Organization "Organization" b"organization",
    PAssertedIdentity "P-Asserted-Identity" b"p-asserted-identity",
    PPreferredIdentity "P-Preferred-Identity" b"p-preferred-identity",
    Path "Path" b"path",
    Priority "Priority" b"priority",
    Privacy "Privacy" b"privacy",
    ProxyAuthenticate "Proxy-Authenticate" b"proxy-authenticate",
    ProxyAuthorization "Proxy-Authorization" b"proxy-authorization",
    ProxyRequire "Proxy-Require" b"proxy-require",
    RAck "RAck" b"rack",
    Reason "Reason" b"reason",
    RecordRoute "Record-Route" b"record-route",
    ReferTo "Refer-To" b"refer-to" b"r",
    ReferredBy "Referred-By" b"referred-by" b"b",
    RejectContact "Reject-Contact" b"reject-contact" b"j",
    Replaces "Replaces" b"replaces",
    ReplyTo "Reply-To" b"reply-to",
    RequestDisposition "Request-Disposition" b"request-disposition" b"d",
    Require "Require" b"require",
    RetryAfter "Retry-After" b"retry-after",
    Route "Route" b"route",
    RSeq "RSeq" b"rseq",
    Server "Server" b"server",
    ServiceRoute "Service-Route" b"service-route",
    SessionExpires "Session-Expires" b"session-expires" b"x",
    Subject "Subject" b"subject" b"s",
    SubscriptionState "Subscription-State" b"subscription-state",
    Supported "Supported" b"supported" b"k",
    Timestamp "Timestamp" b"timestamp",
    To "To" b"to" b"t",
    Unsupported "Unsupported" b"unsupported",
    UserAgent "User-Agent" b"user-agent",
    Via "Via" b"via" b"v",
    Warning "Warning" b"warning",
    WwwAuthenticate "WWW-Authenticate" b"www-authenticate",
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
