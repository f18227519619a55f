//! The packet path's questions to a message, without an allocation.
//!
//! The scanner serves whoever must find a message's call before anything has judged the message, so it
//! is lenient where that costs nothing: it takes any version, a URI with blanks, line ends of LF alone,
//! empty lines before the start line, names in any case and in compact form, folded values, and bytes
//! that are no UTF-8. What it returns are slices of the input; each
//! question reads the message at most once, so all of it is linear in the datagram's length.
//!
//! Source: RFC 3261 (sections 7 and 25), RFC 4475 for what must be survived.

use memchr::memchr;

use super::cursor::{is_token, is_token_byte, is_version, split_line};
use super::fields::CSeq;
use super::list::Values;
use super::name::HeaderName;
use super::via::Via;

/// The first line of a message.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum StartLine<'a> {
    /// A request.
    Request {
        /// `INVITE`, or any other token.
        method: &'a [u8],
        /// The Request-URI as written, blanks inside it included.
        uri: &'a [u8],
    },
    /// A response.
    Response {
        /// Three digits, 100 to 999.
        status: u16,
    },
}

/// A SIP message. Only its start line is known to be right.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    start: StartLine<'a>,
    /// Everything behind the start line.
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    /// Recognises a message by its start line; `None` if the bytes are something else.
    pub fn parse(bytes: &'a [u8]) -> Option<Message<'a>> {
        let blank = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let bytes = &bytes[blank..];
        // Everything that is not text (RTP, STUN, most of DTLS) ends here.
        if !is_token_byte(*bytes.first()?) {
            return None;
        }
        let (line, rest) = split_line(bytes)?;
        Some(Message { start: start_line(line)?, rest })
    }

    /// The first line.
    pub fn start(&self) -> StartLine<'a> {
        self.start
    }

    /// The headers, in order; lines without a colon are passed over.
    pub fn headers(&self) -> Headers<'a> {
        Headers { rest: self.rest }
    }

    /// The value of the first header called `name`, without the blanks around it. A folded value is
    /// returned as it stands, line breaks inside it included. An empty value counts as absent.
    pub fn header(&self, name: HeaderName<'_>) -> Option<&'a [u8]> {
        self.headers().find(|(found, _)| name.is(found)).map(|(_, value)| value).filter(|v| !v.is_empty())
    }

    /// The Call-ID.
    pub fn call_id(&self) -> Option<&'a [u8]> {
        self.header(HeaderName::CallId)
    }

    /// The method that the CSeq header names: in a response, the method of its request.
    pub fn cseq_method(&self) -> Option<&'a [u8]> {
        self.header(HeaderName::CSeq)?
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
            .nth(1)
            .filter(|word| is_token(word))
    }

    /// The Content-Length header, if it is a number that fits.
    pub fn content_length(&self) -> Option<usize> {
        let value = self.header(HeaderName::ContentLength)?;
        let digits = value.iter().all(u8::is_ascii_digit);
        if digits { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
    }

    /// What follows the empty line, to the end of the bytes: over UDP the datagram's end counts
    /// (RFC 3261 section 18.3). Empty if there is no empty line.
    pub fn body(&self) -> &'a [u8] {
        let mut rest = self.rest;
        while let Some((line, after)) = split_line(rest) {
            if line.is_empty() {
                return after;
            }
            rest = after;
        }
        &[]
    }
}

/// The headers of a message as (name, value), until the empty line or the last whole line.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        loop {
            let from = self.rest;
            let (line, mut rest) = split_line(from)?;
            if line.is_empty() {
                self.rest = &[];
                return None;
            }
            let mut end = line.len();
            // A line that starts with a blank belongs to the header before it (RFC 3261 section 7.3.1).
            while let Some(b' ' | b'\t') = rest.first() {
                let Some((more, after)) = split_line(rest) else { break };
                end = from.len() - rest.len() + more.len();
                rest = after;
            }
            self.rest = rest;
            if let Some(colon) = memchr(b':', line) {
                let (name, value) = (&from[..colon], &from[colon + 1..end]);
                return Some((name.trim_ascii(), value.trim_ascii()));
            }
        }
    }
}

fn start_line(line: &[u8]) -> Option<StartLine<'_>> {
    let (first, after) = line.split_at(memchr(b' ', line)?);
    let after = after.trim_ascii();
    if is_version(first) {
        let (digits, reason) = after.split_at_checked(3)?;
        if !digits.iter().all(u8::is_ascii_digit) || !matches!(reason.first(), None | Some(b' ')) {
            return None;
        }
        let status = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
        return (status >= 100).then_some(StartLine::Response { status });
    }
    let (uri, version) = after.split_at(after.iter().rposition(|b| *b == b' ')?);
    let right = is_token(first) && is_version(version.trim_ascii());
    right.then(|| StartLine::Request { method: first, uri: uri.trim_ascii() })
}

/// What tells a message's transaction.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Summary<'a> {
    /// The first line.
    pub start: StartLine<'a>,
    /// The first Call-ID.
    pub call_id: Option<&'a [u8]>,
    /// The first CSeq, if it is right.
    pub cseq: Option<CSeq<'a>>,
    /// The branch of the topmost Via, if it is right.
    pub branch: Option<&'a [u8]>,
}

/// Finds them in one pass without an allocation. `None` if the bytes are no message.
pub fn summary(bytes: &[u8]) -> Option<Summary<'_>> {
    let message = Message::parse(bytes)?;
    let (mut call_id, mut cseq, mut via) = (None, None, None);
    for (name, value) in message.headers() {
        for (wanted, found) in
            [(HeaderName::CallId, &mut call_id), (HeaderName::CSeq, &mut cseq), (HeaderName::Via, &mut via)]
        {
            if found.is_none() && wanted.is(name) {
                *found = Some(value);
            }
        }
        if call_id.is_some() && cseq.is_some() && via.is_some() {
            break;
        }
    }
    let via = via.and_then(|value| Via::parse(Values::of(value).next()?));
    Some(Summary {
        start: message.start(),
        call_id: call_id.filter(|id| !id.is_empty()),
        cseq: cseq.and_then(CSeq::parse),
        branch: via.and_then(|via| via.branch()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INVITE: &[u8] = b"INVITE sip:b@x SIP/2.0\r\nVia: SIP/2.0/UDP h\r\ni: a84b@pc\r\nCSeq: 7 INVITE\r\n\
        Content-Length: 4\r\n\r\nv=0\n";

    #[test]
    fn a_request_is_taken_apart() {
        let message = Message::parse(INVITE).expect("a message");
        assert_eq!(message.start(), StartLine::Request { method: b"INVITE", uri: b"sip:b@x" });
        assert_eq!(message.call_id(), Some(&b"a84b@pc"[..]));
        assert_eq!(message.cseq_method(), Some(&b"INVITE"[..]));
        assert_eq!(message.content_length(), Some(4));
        assert_eq!(message.body(), b"v=0\n");
        assert_eq!(message.headers().count(), 4);
    }

    #[test]
    fn start_lines_that_count_and_that_do_not() {
        let status =
            |line: &str| match Message::parse(format!("{line}\r\n\r\n").as_bytes()).map(|m| m.start()) {
                Some(StartLine::Response { status }) => status,
                Some(StartLine::Request { .. }) => 1,
                None => 0,
            };
        assert_eq!(status("SIP/2.0 200 OK"), 200);
        assert_eq!(status("SIP/2.0 100 "), 100);
        assert_eq!(status("SIP/2.0 100"), 100);
        assert_eq!(status("sip/2.0 486 Busy"), 486);
        assert_eq!(status("SIP/2.0 4294967301 too much"), 0);
        assert_eq!(status("SIP/2.0 099 too little"), 0);
        assert_eq!(status("SIP/2.0 20"), 0);
        assert_eq!(status("OPTIONS sip:a@b SIP/7.0"), 1);
        assert_eq!(status("OPTIONS  sip:a@b; lr  SIP/2.0  "), 1);
        assert_eq!(status("\r\n\r\nOPTIONS sip:a@b SIP/2.0"), 1);
        assert_eq!(status("GET / HTTP/1.1"), 0);
        assert_eq!(status("HTTP/1.1 200 OK"), 0);
        assert_eq!(status("OPTIONS SIP/2.0"), 0);
        assert_eq!(status("OPTI\u{e9}NS sip:a@b SIP/2.0"), 0);
        assert_eq!(status("jaK"), 0);
        assert_eq!(status(""), 0);
    }

    #[test]
    fn folding_case_blanks_and_lone_line_feeds() {
        let message = Message::parse(
            b"ACK sip:b SIP/2.0\nno colon here\nCALL-id \t:\n  x@y\n\t\nCSeq: 0009\r\n  ACK\r\nl:\r\n\r\nCall-ID: body",
        )
        .expect("a message");
        assert_eq!(message.call_id(), Some(&b"x@y"[..]));
        assert_eq!(message.cseq_method(), Some(&b"ACK"[..]));
        assert_eq!(message.content_length(), None);
        assert_eq!(message.body(), b"Call-ID: body");
    }

    #[test]
    fn a_call_id_in_the_body_or_cut_off_is_none() {
        let body = Message::parse(b"ACK sip:b SIP/2.0\r\n\r\nCall-ID: body\r\n").expect("a message");
        assert_eq!(body.call_id(), None);
        let cut = Message::parse(b"ACK sip:b SIP/2.0\r\nCall-ID: half").expect("a message");
        assert_eq!((cut.call_id(), cut.body()), (None, &b""[..]));
        let negative = Message::parse(b"ACK sip:b SIP/2.0\r\nContent-Length: -9\r\n\r\n").expect("a message");
        assert_eq!(negative.content_length(), None);
    }

    fn all(bytes: &[u8]) {
        if let Some(message) = Message::parse(bytes) {
            let headers: usize = message.headers().map(|(name, value)| name.len() + value.len() + 1).sum();
            assert!(headers + message.body().len() <= bytes.len(), "more out than in");
            message.call_id();
            message.cseq_method();
            message.content_length();
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            all(&bytes);
        }

        #[test]
        fn a_broken_message_is_harmless(at in 0..INVITE.len(), byte: u8, cut in 0..=INVITE.len()) {
            let mut bytes = INVITE.to_vec();
            bytes[at] = byte;
            all(&bytes);
            all(&bytes[..cut]);
        }

        #[test]
        fn a_call_id_comes_back(id in "[!-9;-~][ -~]{0,60}[!-~]", folded: bool, upper: bool) {
            let name = if upper { "CALL-ID" } else { "i" };
            let fold = if folded { "\r\n\t " } else { "" };
            let text = format!("BYE sip:a SIP/2.0\r\nX: {fold}i: no\r\n{name} :{fold} {id} \r\ni: second\r\n\r\n");
            let message = Message::parse(text.as_bytes()).expect("a message");
            prop_assert_eq!(message.call_id(), Some(id.as_bytes()));
        }
    }
}
