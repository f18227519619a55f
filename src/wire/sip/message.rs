//! A whole message taken apart: start line, headers, body, each a piece of the datagram.

use memchr::memchr;

use super::address::Address;
use super::cursor::{decimal, is_token, is_token_byte, is_version, offset, split_line};
use super::fields::{CSeq, number};
use super::list::Values;
use super::method::Method;
use super::name::HeaderName;
use super::reason::{BadMessage, Reason};
use super::via::Via;

/// Bytes a message may have.
pub const MAX_MESSAGE: usize = 65_535;
/// Headers a message may have.
pub const MAX_HEADERS: usize = 256;

/// Most messages have fewer headers than this.
const USUAL_HEADERS: usize = 24;

/// The first line.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Start<'a> {
    /// A request.
    Request {
        /// What it asks for.
        method: Method<'a>,
        /// The Request-URI as written.
        uri: &'a [u8],
    },
    /// A response.
    Response {
        /// 100 to 699.
        code: u16,
        /// As written; may be empty.
        reason: &'a [u8],
    },
}

/// Where a header is in the message. All offsets are from its first byte.
#[derive(Copy, Clone, Debug)]
struct Span {
    /// Known names are told apart by their place in the list of them.
    name: u8,
    start: u16,
    name_end: u16,
    value: u16,
    value_end: u16,
    /// Behind the line end.
    end: u16,
}

/// One header.
#[derive(Copy, Clone, Debug)]
pub struct Header<'a> {
    /// Which it is.
    pub name: HeaderName<'a>,
    /// Its whole line or lines, line end included.
    pub raw: &'a [u8],
    /// The value without the blanks around it. A folded one holds its line breaks: blanks for all who
    /// take values apart.
    pub value: &'a [u8],
}

/// A SIP/2.0 message.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    /// From the start line to the end of the body.
    bytes: &'a [u8],
    start: Start<'a>,
    headers: Vec<Span>,
    /// Where the first header starts.
    first_header: usize,
    /// Where the empty line starts.
    empty_line: usize,
    /// Where the body starts.
    body: usize,
}

impl<'a> Message<'a> {
    /// Takes a datagram apart. Line ends before the start line and bytes behind the body are not part of
    /// the message (RFC 3261 sections 7.5 and 18.3); lines may end in LF alone. What the headers say is
    /// not judged here but by [`check`](super::check), save for Content-Length, which makes the body.
    ///
    /// # Errors
    /// [`BadMessage`] if it is none, is too large, or if start line, headers and body cannot be told.
    pub fn parse(datagram: &'a [u8]) -> Result<Message<'a>, BadMessage<'a>> {
        let blank = datagram.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let bytes = &datagram[blank..];
        match bytes.first() {
            None => return Err(BadMessage::dropped(Reason::KeepAlive)),
            Some(first) if !is_token_byte(*first) => return Err(BadMessage::dropped(Reason::NotSip)),
            Some(_) if bytes.len() > MAX_MESSAGE => return Err(BadMessage::dropped(Reason::TooLong)),
            Some(_) => {}
        }
        let (line, rest) = split_line(bytes).ok_or(BadMessage::dropped(Reason::NotSip))?;
        let (start, wrong_start) = start_line(line).map_err(BadMessage::dropped)?;
        let first_header = bytes.len() - rest.len();
        let mut message =
            Message { bytes, start, headers: Vec::new(), first_header, empty_line: 0, body: bytes.len() };
        let wrong_headers = message.read_headers().map_err(BadMessage::dropped)?;
        match wrong_start.or(wrong_headers).or_else(|| message.read_length()) {
            None => Ok(message),
            Some(reason) => {
                message.bytes = &message.bytes[..message.body];
                Err(BadMessage { reason, request: message.is_answerable().then_some(message) })
            }
        }
    }

    /// Finds the headers and where the body starts. `Ok` with the first thing that is wrong; an error if
    /// there is no going on.
    fn read_headers(&mut self) -> Result<Option<Reason>, Reason> {
        self.headers.reserve(USUAL_HEADERS);
        let mut wrong = None;
        let mut rest = &self.bytes[self.first_header..];
        loop {
            let start = self.bytes.len() - rest.len();
            self.empty_line = start;
            let Some((line, after)) = split_line(rest) else {
                self.body = start;
                return Ok(wrong.or(Some(Reason::NoEmptyLine)));
            };
            if line.is_empty() {
                self.body = self.bytes.len() - after.len();
                return Ok(wrong);
            }
            let mut end = start + line.len();
            rest = after;
            // A line that starts with a blank belongs to the header before it (RFC 3261 section 7.3.1).
            while let Some(b' ' | b'\t') = rest.first() {
                let Some((more, after)) = split_line(rest) else { break };
                end = self.bytes.len() - rest.len() + more.len();
                rest = after;
            }
            if self.headers.len() == MAX_HEADERS {
                return Err(Reason::TooManyHeaders);
            }
            match self.span(start, line, end, self.bytes.len() - rest.len()) {
                Some(span) => self.headers.push(span),
                None => wrong = wrong.or(Some(Reason::HeaderLine)),
            }
        }
    }

    /// A header from `start` to its line end at `end`; its first line is `line`. `None` without a name, and
    /// with a CR that ends no line, which others might take for a line end.
    fn span(&self, start: usize, line: &[u8], end: usize, after: usize) -> Option<Span> {
        let colon = memchr(b':', line)?;
        let name = line[..colon].trim_ascii_end();
        let all = &self.bytes[start..after];
        let lone = memchr::memchr_iter(b'\r', all).any(|at| all.get(at + 1) != Some(&b'\n'));
        if lone || name.is_empty() || name[0].is_ascii_whitespace() {
            return None;
        }
        let value = self.bytes[start + colon + 1..end].trim_ascii();
        let value_at = offset(self.bytes, value);
        let short = |at: usize| u16::try_from(at).ok();
        Some(Span {
            name: HeaderName::of(name).code(),
            start: short(start)?,
            name_end: short(start + name.len())?,
            value: short(value_at)?,
            value_end: short(value_at + value.len())?,
            end: short(after)?,
        })
    }

    /// Ends the body where Content-Length says; what is wrong with that.
    fn read_length(&mut self) -> Option<Reason> {
        let mut lengths = self.all(HeaderName::ContentLength);
        let length = lengths.next().map(|header| decimal(header.value));
        if lengths.next().is_some() {
            return Some(Reason::ContentLength);
        }
        drop(lengths);
        match length {
            None => None,
            Some(length) => {
                let end = length.and_then(|length| self.body.checked_add(usize::try_from(length).ok()?));
                match end.and_then(|end| self.bytes.get(..end)) {
                    Some(bytes) => self.bytes = bytes,
                    None => return Some(Reason::ContentLength),
                }
                None
            }
        }
    }

    /// Whether a response can be made for it that finds its way and its transaction: it is a request but
    /// not an ACK, has a right Via on top, and From, To, Call-ID and CSeq, right or not.
    pub fn is_answerable(&self) -> bool {
        let asks = matches!(self.start, Start::Request { method, .. } if method != Method::Ack);
        let needed = [HeaderName::From, HeaderName::To, HeaderName::CallId, HeaderName::CSeq];
        asks && self.via().is_some()
            && needed.iter().all(|name| self.first(*name).is_some_and(|v| !v.is_empty()))
    }

    /// The message as it came, from its start line to the end of its body.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The first line.
    pub fn start(&self) -> Start<'a> {
        self.start
    }

    /// The method of a request.
    pub fn method(&self) -> Option<Method<'a>> {
        match self.start {
            Start::Request { method, .. } => Some(method),
            Start::Response { .. } => None,
        }
    }

    /// The code of a response.
    pub fn code(&self) -> Option<u16> {
        match self.start {
            Start::Request { .. } => None,
            Start::Response { code, .. } => Some(code),
        }
    }

    /// The Request-URI of a request.
    pub fn uri(&self) -> Option<&'a [u8]> {
        match self.start {
            Start::Request { uri, .. } => Some(uri),
            Start::Response { .. } => None,
        }
    }

    fn header(&self, span: &Span) -> Header<'a> {
        let piece = |from: u16, to: u16| &self.bytes[usize::from(from)..usize::from(to)];
        let name = HeaderName::KNOWN.get(usize::from(span.name)).copied();
        Header {
            name: name.unwrap_or_else(|| HeaderName::Other(piece(span.start, span.name_end))),
            raw: piece(span.start, span.end),
            value: piece(span.value, span.value_end),
        }
    }

    /// All headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = Header<'a>> + Clone {
        self.headers.iter().map(|span| self.header(span))
    }

    /// The headers of that name, in order.
    pub fn all<'n>(
        &self,
        name: HeaderName<'n>,
    ) -> impl Iterator<Item = Header<'a>> + Clone + use<'_, 'a, 'n> {
        let name = if let HeaderName::Other(written) = name { HeaderName::of(written) } else { name };
        let code = name.code();
        let same = self.headers.iter().filter(move |span| span.name == code);
        same.map(|span| self.header(span)).filter(move |header| header.name == name)
    }

    /// The value of the first header of that name, perhaps empty.
    pub fn first(&self, name: HeaderName<'_>) -> Option<&'a [u8]> {
        self.all(name).next().map(|header| header.value)
    }

    /// The items of all headers of that name, which are comma-separated lists, in order.
    pub fn values<'n>(
        &self,
        name: HeaderName<'n>,
    ) -> impl Iterator<Item = &'a [u8]> + Clone + use<'_, 'a, 'n> {
        self.all(name).flat_map(|header| Values::of(header.value))
    }

    /// The body; empty without one.
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[self.body..]
    }

    /// Where the first header starts in [`Message::bytes`], where the empty line, and where the body.
    pub(super) fn parts(&self) -> [usize; 3] {
        [self.first_header, self.empty_line, self.body]
    }

    /// The Call-ID; an empty one is none.
    pub fn call_id(&self) -> Option<&'a [u8]> {
        self.first(HeaderName::CallId).filter(|id| !id.is_empty())
    }

    /// The topmost Via value, if it is right.
    pub fn via(&self) -> Option<Via<'a>> {
        Via::parse(self.values(HeaderName::Via).next()?)
    }

    /// The CSeq, if it is right.
    pub fn cseq(&self) -> Option<CSeq<'a>> {
        CSeq::parse(self.first(HeaderName::CSeq)?)
    }

    /// From, if it is right.
    pub fn from(&self) -> Option<Address<'a>> {
        Address::parse(self.first(HeaderName::From)?)
    }

    /// To, if it is right.
    pub fn to(&self) -> Option<Address<'a>> {
        Address::parse(self.first(HeaderName::To)?)
    }

    /// The first Contact, if it is right.
    pub fn contact(&self) -> Option<Address<'a>> {
        Address::parse(self.values(HeaderName::Contact).next()?)
    }

    /// A header that is a number alone, if it is one: Max-Forwards, RSeq.
    pub fn number(&self, name: HeaderName<'_>) -> Option<u32> {
        number(self.first(name)?)
    }
}

/// The start line, and what is wrong with it if it is a request's. An error if it is no start line.
fn start_line(line: &[u8]) -> Result<(Start<'_>, Option<Reason>), Reason> {
    let space = memchr(b' ', line).ok_or(Reason::NotSip)?;
    let (first, after) = (&line[..space], &line[space + 1..]);
    if is_version(first) {
        let (digits, reason) = after.trim_ascii_start().split_at_checked(3).ok_or(Reason::Status)?;
        let code = decimal(digits).and_then(|code| u16::try_from(code).ok()).ok_or(Reason::Status)?;
        if !(100..700).contains(&code) || !matches!(reason.first(), None | Some(b' ')) {
            return Err(Reason::Status);
        }
        if !is_version_2(first) {
            return Err(Reason::Version);
        }
        if reason.contains(&b'\r') {
            return Err(Reason::StartLine);
        }
        return Ok((Start::Response { code, reason: reason.get(1..).unwrap_or_default() }, None));
    }
    let words = after.trim_ascii();
    let space = memchr::memrchr(b' ', words).ok_or(Reason::NotSip)?;
    let (uri, version) = (&words[..space], &words[space + 1..]);
    if !is_token(first) || !is_version(version) {
        return Err(Reason::NotSip);
    }
    let wrong = if !is_version_2(version) {
        Some(Reason::Version)
    } else if words.len() != after.len() || uri.trim_ascii().len() != uri.len() {
        Some(Reason::StartLine)
    } else if uri.iter().any(|b| b.is_ascii_whitespace()) {
        Some(Reason::Uri)
    } else {
        None
    };
    Ok((Start::Request { method: Method::of(first), uri: uri.trim_ascii() }, wrong))
}

/// Without regard to case (RFC 3261 section 7.1).
fn is_version_2(version: &[u8]) -> bool {
    version.eq_ignore_ascii_case(b"SIP/2.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: &str = "Via: SIP/2.0/UDP h;branch=z9hG4bK1\r\nf: <sip:a@x>;tag=1\r\nt: <sip:b@x>\r\ni: 7@x\r\nCSeq: 4 INVITE\r\n";

    fn reason(text: &str) -> Option<(Reason, bool)> {
        Message::parse(text.as_bytes()).err().map(|bad| (bad.reason, bad.request.is_some()))
    }

    #[test]
    fn a_request_is_taken_apart() {
        let text = format!(
            "\r\n\nINVITE sip:b@x SIP/2.0\r\n{HEADS}X-a:\r\n  one ,\r\n\ttwo \r\nx-A : three\nv:,SIP/2.0/TCP g\r\nl: 3\r\n\r\nabcdef"
        );
        let message = Message::parse(text.as_bytes()).expect("a message");
        assert_eq!(message.start(), Start::Request { method: Method::Invite, uri: b"sip:b@x" });
        assert!(message.bytes().starts_with(b"INVITE") && message.bytes().ends_with(b"\r\n\r\nabc"));
        assert_eq!((message.body(), message.call_id()), (&b"abc"[..], Some(&b"7@x"[..])));
        let other = HeaderName::Other(b"X-A");
        assert!(message.values(other).eq([&b"one"[..], b"two", b"three"]));
        let raw: Vec<_> = message.all(other).map(|header| header.raw).collect();
        assert_eq!(raw, [&b"X-a:\r\n  one ,\r\n\ttwo \r\n"[..], b"x-A : three\n"]);
        assert_eq!(message.first(other), Some(&b"one ,\r\n\ttwo"[..]));
        assert_eq!(message.values(HeaderName::Via).count(), 2);
        assert_eq!(message.via().and_then(|via| via.branch()), Some(&b"z9hG4bK1"[..]));
        assert_eq!((message.cseq().map(|cseq| cseq.number), message.headers().count()), (Some(4), 9));
        assert_eq!(
            (message.from().and_then(|a| a.tag()), message.to().and_then(|a| a.tag())),
            (Some(&b"1"[..]), None)
        );
        assert!(message.contact().is_none() && message.code().is_none() && message.is_answerable());
        assert_eq!((message.method(), message.uri()), (Some(Method::Invite), Some(&b"sip:b@x"[..])));
    }

    #[test]
    fn a_response_and_its_reason() {
        for (line, code, reason) in [
            ("SIP/2.0 100 ", 100, ""),
            ("SIP/2.0 100", 100, ""),
            ("sip/2.0 200 = 2**3 \u{43d}\u{43e} ", 200, "= 2**3 \u{43d}\u{43e} "),
            ("SIP/2.0 699  x", 699, " x"),
        ] {
            let text = format!("{line}\r\n\r\n");
            let message = Message::parse(text.as_bytes()).expect("a response");
            assert_eq!(message.start(), Start::Response { code, reason: reason.as_bytes() });
            assert!(!message.is_answerable() && message.code() == Some(code) && message.uri().is_none());
        }
        for line in [
            "SIP/2.0 099 x",
            "SIP/2.0 700 x",
            "SIP/2.0 4294967301 x",
            "SIP/2.0 2000",
            "SIP/2.0 -20 x",
            "SIP/2.0 ",
        ] {
            assert_eq!(reason(&format!("{line}\r\n\r\n")), Some((Reason::Status, false)), "{line}");
        }
        assert_eq!(reason("SIP/3.0 200 OK\r\n\r\n"), Some((Reason::Version, false)));
        assert_eq!(reason("SIP/2.0 200 a\rb\r\n\r\n"), Some((Reason::StartLine, false)));
    }

    #[test]
    fn what_is_no_message() {
        for (text, expected) in [
            ("", Reason::KeepAlive),
            ("\r\n\r\n", Reason::KeepAlive),
            ("\0\0\0\0", Reason::NotSip),
            ("jaK", Reason::NotSip),
            ("GET / HTTP/1.1\r\n\r\n", Reason::NotSip),
            ("INVITE sip:a\r\n\r\n", Reason::NotSip),
            ("OPTIONS SIP/2.0\r\n\r\n", Reason::NotSip),
            ("INV@TE sip:a SIP/2.0\r\n\r\n", Reason::NotSip),
        ] {
            assert_eq!(reason(text), Some((expected, false)), "{text}");
        }
        let long = format!("OPTIONS sip:a SIP/2.0\r\n{HEADS}\r\n{}", "x".repeat(MAX_MESSAGE));
        assert_eq!(reason(&long), Some((Reason::TooLong, false)));
        let many = format!("OPTIONS sip:a SIP/2.0\r\n{HEADS}{}\r\n", "a: b\r\n".repeat(MAX_HEADERS));
        assert_eq!(reason(&many), Some((Reason::TooManyHeaders, false)));
        let most = format!("OPTIONS sip:a SIP/2.0\r\n{HEADS}{}\r\n", "a: b\r\n".repeat(MAX_HEADERS - 5));
        assert_eq!(reason(&most), None);
    }

    #[test]
    fn what_is_wrong_with_a_request() {
        for (line, headers, expected) in [
            ("INVITE  sip:a SIP/2.0", "\r\n", Reason::StartLine),
            ("INVITE sip:a  SIP/2.0", "\r\n", Reason::StartLine),
            ("INVITE sip:a SIP/2.0 ", "\r\n", Reason::StartLine),
            ("INVITE sip:a; lr SIP/2.0", "\r\n", Reason::Uri),
            ("INVITE sip:a SIP/7.0", "\r\n", Reason::Version),
            ("INVITE sip:a SIP/2.0", "", Reason::NoEmptyLine),
            ("INVITE sip:a SIP/2.0", "X: half", Reason::NoEmptyLine),
            ("INVITE sip:a SIP/2.0", "no colon\r\n\r\n", Reason::HeaderLine),
            ("INVITE sip:a SIP/2.0", ": no name\r\n\r\n", Reason::HeaderLine),
            ("INVITE sip:a SIP/2.0", "X: a\rRoute: b\r\n\r\n", Reason::HeaderLine),
            ("INVITE sip:a SIP/2.0", "l: 4\r\n\r\nabc", Reason::ContentLength),
            ("INVITE sip:a SIP/2.0", "l: -1\r\n\r\nabc", Reason::ContentLength),
            ("INVITE sip:a SIP/2.0", "l: 99999999999999999999\r\n\r\nabc", Reason::ContentLength),
            ("INVITE sip:a SIP/2.0", "l:\r\n\r\nabc", Reason::ContentLength),
            ("INVITE sip:a SIP/2.0", "l: 1\r\nl: 1\r\n\r\nabc", Reason::ContentLength),
        ] {
            let text = format!("{line}\r\n{HEADS}{headers}");
            assert_eq!(reason(&text), Some((expected, true)), "{text}");
            let bad = Message::parse(text.as_bytes()).expect_err("wrong");
            let request = bad.request.as_ref().expect("can be answered");
            assert!(request.body().is_empty() && bad.refusal().is_some_and(|r| r.code == expected.code()));
            // Not without a way back, and never an ACK.
            assert_eq!(reason(&text.replacen("h;branch", "h:h;branch", 1)), Some((expected, false)));
            assert_eq!(reason(&text.replacen("i: 7@x", "i:", 1)), Some((expected, false)));
            assert_eq!(reason(&text.replacen("INVITE", "ACK", 1)), Some((expected, false)));
        }
        let folded_start = format!("INVITE sip:a SIP/2.0\r\n : x\r\n{HEADS}\r\n");
        assert_eq!(reason(&folded_start), Some((Reason::HeaderLine, true)));
    }
}
