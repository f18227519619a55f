//! Why a message is not taken: counted by name, answered by code where it can be.

use super::message::Message;

macro_rules! reasons {
    ($($variant:ident $name:literal $code:literal $text:literal,)*) => {
        /// What is wrong with a message.
        #[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = concat!($text, ".")] $variant,)*
        }

        impl Reason {
            /// All of them, for counters.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant),*];

            /// A label for counters.
            pub fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }

            /// The status code that a request is answered with.
            pub fn code(self) -> u16 {
                match self { $(Reason::$variant => $code,)* }
            }

            /// The reason phrase that it is answered with.
            pub fn text(self) -> &'static str {
                match self { $(Reason::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    KeepAlive "keep_alive" 400 "Nothing But Line Ends",
    NotSip "not_sip" 400 "Not SIP",
    TooLong "too_long" 513 "Message Too Large",
    TooManyHeaders "too_many_headers" 400 "Too Many Header Fields",
    Status "status" 400 "Bad Status Code",
    StartLine "start_line" 400 "Malformed Request-Line",
    Uri "request_uri" 400 "Malformed Request-URI",
    HeaderLine "header_line" 400 "Malformed Header Field",
    NoEmptyLine "no_empty_line" 400 "No Empty Line",
    ContentLength "content_length" 400 "Bad Content-Length",
    Version "version" 505 "Version Not Supported",
    MissingVia "missing_via" 400 "Missing Via",
    MissingFrom "missing_from" 400 "Missing From",
    MissingTo "missing_to" 400 "Missing To",
    MissingCallId "missing_call_id" 400 "Missing Call-ID",
    MissingCSeq "missing_cseq" 400 "Missing CSeq",
    Repeated "repeated" 400 "Repeated Header Field",
    Via "via" 400 "Malformed Via",
    TooManyVias "too_many_vias" 400 "Too Many Vias",
    From "from" 400 "Malformed From",
    To "to" 400 "Malformed To",
    CSeq "cseq" 400 "Malformed CSeq",
    CSeqMethod "cseq_method" 400 "CSeq Names Another Method",
    Route "route" 400 "Malformed Route",
    MaxForwards "max_forwards" 400 "Bad Max-Forwards",
    Scheme "scheme" 416 "Unsupported URI Scheme",
    TooManyHops "too_many_hops" 483 "Too Many Hops",
    Extension "extension" 420 "Bad Extension",
    Broadcast "broadcast" 400 "Via Names a Broadcast Address",
}

/// Why a request is refused, or a response dropped.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What to answer a request with: 4xx or 5xx.
    pub code: u16,
    /// What is wrong; its text is the reason phrase.
    pub reason: Reason,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Refusal {
        Refusal { code: reason.code(), reason }
    }
}

/// Bytes that are no message, or one whose end or headers cannot be told.
#[derive(Clone, Debug)]
pub struct BadMessage<'a> {
    /// What is wrong.
    pub reason: Reason,
    /// The request, as far as it was understood, if enough of it was to answer it: a Via that says where
    /// to, From, To, Call-ID and CSeq. `None`: drop it. Its body is empty.
    pub request: Option<Message<'a>>,
}

impl BadMessage<'_> {
    /// Dropped without an answer.
    pub(super) fn dropped(reason: Reason) -> BadMessage<'static> {
        BadMessage { reason, request: None }
    }

    /// What to answer with, if it can be answered.
    pub fn refusal(&self) -> Option<Refusal> {
        self.request.as_ref().map(|_| self.reason.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert!((400..600).contains(&reason.code()) && !reason.text().is_empty(), "{reason:?}");
        }
    }
}
