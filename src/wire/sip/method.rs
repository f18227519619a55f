//! Methods, which unlike header names are told apart by case (RFC 3261 section 7.1).

macro_rules! methods {
    ($($variant:ident $text:literal $rfc:literal,)*) => {
        /// What a request asks for.
        #[derive(Copy, Clone, Debug, PartialEq, Eq)]
        pub enum Method<'a> {
            $(#[doc = concat!("`", $text, "` (RFC ", $rfc, ").")] $variant,)*
            /// Any other, as written.
            Other(&'a [u8]),
        }

        impl<'a> Method<'a> {
            /// The method that these bytes are.
            pub fn of(written: &'a [u8]) -> Method<'a> {
                match std::str::from_utf8(written) {
                    $(Ok($text) => Method::$variant,)*
                    _ => Method::Other(written),
                }
            }

            /// As it stands in a message.
            pub fn text(&self) -> &'a [u8] {
                match *self {
                    $(Method::$variant => $text.as_bytes(),)*
                    Method::Other(written) => written,
                }
            }
        }
    };
}

methods! {
    Invite "INVITE" "3261",
    Ack "ACK" "3261",
    Bye "BYE" "3261",
    Cancel "CANCEL" "3261",
    Options "OPTIONS" "3261",
    Register "REGISTER" "3261",
    Prack "PRACK" "3262",
    Update "UPDATE" "3311",
    Info "INFO" "6086",
    Refer "REFER" "3515",
    Message "MESSAGE" "3428",
    Subscribe "SUBSCRIBE" "6665",
    Notify "NOTIFY" "6665",
    Publish "PUBLISH" "3903",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_told_apart_by_case() {
        assert_eq!(Method::of(b"INVITE"), Method::Invite);
        assert_eq!(Method::of(b"invite"), Method::Other(b"invite"));
        assert_eq!(Method::of(b"RE%47IST%45R").text(), b"RE%47IST%45R");
        assert_eq!(Method::Notify.text(), b"NOTIFY");
    }
}
