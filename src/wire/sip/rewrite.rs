//! A message amended: some pieces replaced, inserted or left out, every other byte as it came.

use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Range;

use super::cursor::offset;
use super::list::Values;
use super::message::{Message, Start};
use super::name::HeaderName;
use super::via::Via;

/// One change: what is at `from..to` of the message becomes `text` of the new text.
#[derive(Clone, Debug)]
struct Edit {
    from: usize,
    to: usize,
    /// Insertions at one place go by this.
    rank: isize,
    text: Range<usize>,
}

/// Changes to a message. They are gathered and take effect together: each speaks of the message as it came,
/// but a pop takes what the pops before it left.
#[derive(Clone, Debug)]
pub struct Rewrite<'m> {
    message: &'m Message<'m>,
    edits: Vec<Edit>,
    text: Vec<u8>,
    popped: [usize; 3],
}

impl<'m> Rewrite<'m> {
    /// No changes yet.
    pub fn new(message: &'m Message<'m>) -> Rewrite<'m> {
        Rewrite { message, edits: Vec::new(), text: Vec::new(), popped: [0; 3] }
    }

    /// A request's new Request-URI.
    pub fn set_uri(&mut self, uri: &[u8]) -> &mut Self {
        if let Start::Request { uri: old, .. } = self.message.start() {
            self.replace(old, uri);
        }
        self
    }

    /// One more Via, above all others.
    pub fn push_via(&mut self, value: &[u8]) -> &mut Self {
        self.push(HeaderName::Via, value)
    }

    /// Takes the topmost Via value away.
    pub fn pop_via(&mut self) -> &mut Self {
        self.pop(HeaderName::Via, 0)
    }

    /// Notes in the topmost Via value that came where the request came from: `rport` if it asks for it, and
    /// `received` then or if it names another host (RFC 3261 section 18.2.1, RFC 3581 section 4).
    pub fn seen_from(&mut self, source: SocketAddr) -> &mut Self {
        if let Some(value) = self.message.values(HeaderName::Via).next() {
            let start = offset(self.message.bytes(), value);
            for (range, text) in seen_from(value, source).into_iter().flatten() {
                self.edit(start + range.start, start + range.end, 0, &[&text]);
            }
        }
        self
    }

    /// One more Route, above all others, below the Vias if there is none.
    pub fn push_route(&mut self, value: &[u8]) -> &mut Self {
        self.push(HeaderName::Route, value)
    }

    /// Takes the topmost Route value away.
    pub fn pop_route(&mut self) -> &mut Self {
        self.pop(HeaderName::Route, 1)
    }

    /// One more Record-Route, above all others, below the Vias if there is none.
    pub fn push_record_route(&mut self, value: &[u8]) -> &mut Self {
        self.push(HeaderName::RecordRoute, value)
    }

    /// Takes the topmost Record-Route value away.
    pub fn pop_record_route(&mut self) -> &mut Self {
        self.pop(HeaderName::RecordRoute, 2)
    }

    /// Gives the first header of that name this value, takes its others away, and appends it if there is
    /// none.
    pub fn set(&mut self, name: HeaderName<'_>, value: &[u8]) -> &mut Self {
        let message = self.message;
        let mut headers = message.all(name);
        match headers.next() {
            None => self.append(name, value),
            Some(first) => {
                // What was removed is set again.
                let start = offset(message.bytes(), first.raw);
                self.edits.retain(|edit| (edit.from, edit.to) != (start, start + first.raw.len()));
                self.replace(first.value, value);
                headers.for_each(|header| self.replace(header.raw, b""));
                self
            }
        }
    }

    /// One more header, below all others.
    pub fn append(&mut self, name: HeaderName<'_>, value: &[u8]) -> &mut Self {
        let [_, end, _] = self.message.parts();
        let rank = self.edits.len() as isize;
        self.edit(end, end, rank, &[name.text(), b": ", value, b"\r\n"])
    }

    /// Takes all headers of that name away.
    pub fn remove(&mut self, name: HeaderName<'_>) -> &mut Self {
        let message = self.message;
        message.all(name).for_each(|header| self.replace(header.raw, b""));
        self
    }

    /// Replaces this piece of the message: a value, or part of one, that a view of it showed.
    pub fn replace(&mut self, piece: &[u8], text: &[u8]) {
        let from = offset(self.message.bytes(), piece);
        self.edit(from, from + piece.len(), 0, &[text]);
    }

    /// A new body; Content-Length is made right, Content-Type stays.
    pub fn set_body(&mut self, body: &[u8]) -> &mut Self {
        let [_, _, start] = self.message.parts();
        let from = self.text.len();
        self.text.extend_from_slice(body);
        let text = from..self.text.len();
        // Behind everything that is appended to the headers.
        self.put(Edit { from: start, to: self.message.bytes().len(), rank: isize::MAX, text });
        self.set(HeaderName::ContentLength, body.len().to_string().as_bytes())
    }

    fn push(&mut self, name: HeaderName<'_>, value: &[u8]) -> &mut Self {
        let message = self.message;
        let place = match (message.all(name).next(), message.all(HeaderName::Via).last()) {
            (Some(first), _) => offset(message.bytes(), first.raw),
            (None, Some(via)) => offset(message.bytes(), via.raw) + via.raw.len(),
            (None, None) => message.parts()[0],
        };
        let rank = -1 - self.edits.len() as isize;
        self.edit(place, place, rank, &[name.text(), b": ", value, b"\r\n"])
    }

    /// Takes away the first value that is left of those in headers of that name.
    fn pop(&mut self, name: HeaderName<'_>, list: usize) -> &mut Self {
        let message = self.message;
        let mut left = self.popped[list];
        for header in message.all(name) {
            let mut values = Values::of(header.value);
            while let Some(value) = values.next() {
                if left > 0 {
                    left -= 1;
                    continue;
                }
                self.popped[list] += 1;
                // Those before it in its header are gone, so the last one takes the header with it.
                match values.next() {
                    None => self.replace(header.raw, b""),
                    Some(next) => {
                        let (from, to) = (offset(message.bytes(), value), offset(message.bytes(), next));
                        self.edit(from, to, 0, &[]);
                    }
                }
                return self;
            }
        }
        self
    }

    /// Line ends inside a text would make headers of their own: they become blanks.
    fn edit(&mut self, from: usize, to: usize, rank: isize, parts: &[&[u8]]) -> &mut Self {
        let start = self.text.len();
        write_parts(&mut self.text, parts);
        let text = start..self.text.len();
        self.put(Edit { from, to, rank, text });
        self
    }

    /// The last change of a piece counts.
    fn put(&mut self, edit: Edit) {
        match self.edits.iter_mut().find(|e| e.from < e.to && e.from == edit.from && e.to == edit.to) {
            Some(old) => *old = edit,
            None => self.edits.push(edit),
        }
    }

    /// The changed message.
    pub fn finish(&mut self) -> Vec<u8> {
        // Insertions come before what starts at their place, and of two changes that start together the
        // longer one counts. A change inside of what another one replaced is lost with it.
        self.edits.sort_by_key(|edit| (edit.from, edit.from != edit.to, edit.rank, usize::MAX - edit.to));
        let bytes = self.message.bytes();
        let mut out = Vec::with_capacity(bytes.len() + self.text.len());
        let mut at = 0;
        for edit in self.edits.iter().filter(|edit| edit.from <= edit.to) {
            if edit.from >= at {
                out.extend_from_slice(&bytes[at..edit.from]);
                out.extend_from_slice(&self.text[edit.text.clone()]);
                at = edit.to;
            }
        }
        out.extend_from_slice(&bytes[at..]);
        out
    }
}

/// Copies header text, its last line end as it is, any other as a blank.
pub(super) fn write_parts(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        if *part == b"\r\n" {
            out.extend_from_slice(part);
        } else {
            out.extend(part.iter().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { *b }));
        }
    }
}

/// What a Via value must be amended by, as (place in the value, text).
pub(super) fn seen_from(value: &[u8], source: SocketAddr) -> [Option<(Range<usize>, Vec<u8>)>; 2] {
    let Some(via) = Via::parse(value) else { return [None, None] };
    let note = |name: &str, text: &dyn std::fmt::Display| {
        let old = via.params.get(name.as_bytes());
        let place = old.map_or(value.len()..value.len(), |param| whole(value, param.name, param.value));
        let mut new = Vec::new();
        let semicolon = if old.is_some() { "" } else { ";" };
        // Writing to a Vec cannot fail.
        let _ = write!(new, "{semicolon}{name}={text}");
        Some((place, new))
    };
    let rport = via.wants_rport();
    let elsewhere = via.host.ip() != Some(source.ip()) || via.received().is_some();
    [
        if rport { note("rport", &source.port()) } else { None },
        if rport || elsewhere { note("received", &source.ip()) } else { None },
    ]
}

fn whole(value: &[u8], name: &[u8], text: Option<&[u8]>) -> Range<usize> {
    let start = offset(value, name);
    let end = text.map_or(start + name.len(), |text| offset(value, text) + text.len());
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    const INVITE: &str = "INVITE sip:b@x SIP/2.0\r\nv : SIP/2.0/UDP ua:9;rport;branch=1 , SIP/2.0/TCP far\r\nX-1:\t a \r\n\
        Via: SIP/2.0/UDP old\r\nRoute: <sip:p1;lr>,\r\n <sip:p2>\r\nMax-Forwards: 9\r\nm: <sip:a>\r\nContact:<sip:c>\r\nl: 3\r\n\r\nabc";

    /// The message after some changes.
    fn after(changes: impl for<'r, 'm> FnOnce(&'r mut Rewrite<'m>) -> &'r mut Rewrite<'m>) -> String {
        let message = Message::parse(INVITE.as_bytes()).expect("a message");
        let mut rewrite = Rewrite::new(&message);
        String::from_utf8(changes(&mut rewrite).finish()).expect("text")
    }

    /// The message with some pieces replaced.
    fn with(pieces: &[(&str, &str)]) -> String {
        pieces.iter().fold(INVITE.to_owned(), |text, (old, new)| {
            assert_eq!(text.matches(old).count(), 1, "{old}");
            text.replace(old, new)
        })
    }

    #[test]
    fn nothing_changed_is_nothing_changed() {
        assert_eq!(after(|r| r), INVITE);
    }

    #[test]
    fn what_a_proxy_does_to_a_request() {
        let forwarded = after(|r| {
            r.seen_from("192.0.2.4:7777".parse().expect("an address"));
            r.set_uri(b"sip:next")
                .push_via(b"SIP/2.0/UDP me;branch=z9hG4bK2")
                .push_record_route(b"<sip:me;lr>");
            r.set(HeaderName::MaxForwards, b"8").pop_route().append(HeaderName::Other(b"X-2"), b"z");
            r.set_body(b"longer body")
        });
        let expected = with(&[
            ("INVITE sip:b@x", "INVITE sip:next"),
            ("v : SIP", "Via: SIP/2.0/UDP me;branch=z9hG4bK2\r\nv : SIP"),
            ("rport;branch=1 ", "rport=7777;branch=1;received=192.0.2.4 "),
            ("old\r\n", "old\r\nRecord-Route: <sip:me;lr>\r\n"),
            ("<sip:p1;lr>,\r\n <sip:p2>", "<sip:p2>"),
            ("Max-Forwards: 9", "Max-Forwards: 8"),
            ("l: 3\r\n\r\nabc", "l: 11\r\nX-2: z\r\n\r\nlonger body"),
        ]);
        assert_eq!(forwarded, expected);
    }

    #[test]
    fn what_a_proxy_does_to_a_response() {
        assert_eq!(after(|r| r.pop_via()), with(&[("SIP/2.0/UDP ua:9;rport;branch=1 , ", "")]));
        let two = with(&[("v : SIP/2.0/UDP ua:9;rport;branch=1 , SIP/2.0/TCP far\r\n", "")]);
        assert_eq!(after(|r| r.pop_via().pop_via()), two);
        let three = two.replace("Via: SIP/2.0/UDP old\r\n", "");
        assert_eq!(after(|r| r.pop_via().pop_via().pop_via()), three);
        assert_eq!(after(|r| r.pop_via().pop_via().pop_via().pop_via()), three);
        let swapped = with(&[("v : SIP/2.0/UDP ua:9;rport;branch=1 , SIP/2.0/TCP far", "Via: c\r\nVia: b")]);
        assert_eq!(after(|r| r.pop_via().push_via(b"b").pop_via().push_via(b"c")), swapped);
    }

    #[test]
    fn routes_are_pushed_and_popped() {
        assert_eq!(
            after(|r| r.push_route(b"<b>").push_route(b"<a>")),
            with(&[("Route:", "Route: <a>\r\nRoute: <b>\r\nRoute:")])
        );
        assert_eq!(
            after(|r| r.pop_route().pop_route()),
            with(&[("Route: <sip:p1;lr>,\r\n <sip:p2>\r\n", "")])
        );
        assert_eq!(after(|r| r.pop_record_route()), INVITE);
        let message = Message::parse(b"BYE sip:a SIP/2.0\r\nX: y\r\n\r\n").expect("a message");
        let bare = Rewrite::new(&message).push_via(b"v").push_route(b"r").push_record_route(b"w").finish();
        assert_eq!(bare, b"BYE sip:a SIP/2.0\r\nRecord-Route: w\r\nRoute: r\r\nVia: v\r\nX: y\r\n\r\n");
    }

    #[test]
    fn headers_are_set_and_removed() {
        fn set<'r, 'm>(r: &'r mut Rewrite<'m>) -> &'r mut Rewrite<'m> {
            r.set(HeaderName::Contact, b"<sip:z>")
        }
        let one = with(&[("m: <sip:a>", "m: <sip:z>"), ("Contact:<sip:c>\r\n", "")]);
        assert_eq!(after(set), one);
        assert_eq!(after(|r| set(r.set(HeaderName::Contact, b"first"))), one);
        assert_eq!(after(|r| set(r.remove(HeaderName::Contact))), one);
        let none = with(&[("m: <sip:a>\r\n", ""), ("Contact:<sip:c>\r\n", "")]);
        assert_eq!(after(|r| r.remove(HeaderName::Contact)), none);
        assert_eq!(after(|r| r.set(HeaderName::Contact, b"x").remove(HeaderName::Contact)), none);
        assert_eq!(after(|r| r.set(HeaderName::Event, b"e")), with(&[("l: 3\r\n", "l: 3\r\nEvent: e\r\n")]));
        assert_eq!(after(|r| r.set(HeaderName::Other(b"x-1"), b"b")), with(&[("\t a ", "\t b ")]));
        let two = after(|r| r.append(HeaderName::Event, b"1").append(HeaderName::Event, b"2"));
        assert_eq!(two, with(&[("l: 3\r\n", "l: 3\r\nEvent: 1\r\nEvent: 2\r\n")]));
    }

    #[test]
    fn texts_make_no_headers_of_their_own() {
        let text = after(|r| r.append(HeaderName::Subject, b"a\r\nRoute: b\nc").set_uri(b"sip:a\r\nb"));
        assert!(
            text.starts_with("INVITE sip:a  b SIP/2.0\r\n")
                && text.contains("\r\nSubject: a  Route: b c\r\n")
        );
        assert!(after(|r| r.set_body(b"v=0\r\n")).ends_with("\r\n\r\nv=0\r\n"));
    }

    #[test]
    fn a_body_without_a_length_gets_one() {
        let message = Message::parse(b"BYE sip:a SIP/2.0\r\nX: y\r\n\r\nabc").expect("a message");
        assert_eq!(
            Rewrite::new(&message).set_body(b"").finish(),
            b"BYE sip:a SIP/2.0\r\nX: y\r\nContent-Length: 0\r\n\r\n"
        );
        let message = Message::parse(b"BYE sip:a SIP/2.0\r\n\r\n").expect("a message");
        let longer = Rewrite::new(&message).set_body(b"ab").append(HeaderName::Event, b"e").finish();
        assert_eq!(longer, b"BYE sip:a SIP/2.0\r\nContent-Length: 2\r\nEvent: e\r\n\r\nab");
    }

    #[test]
    fn where_a_request_came_from() {
        let seen = |via: &str, source: &str| {
            let text = format!("BYE sip:a SIP/2.0\r\nVia: {via}\r\n\r\n");
            let message = Message::parse(text.as_bytes()).expect("a message");
            let out = Rewrite::new(&message).seen_from(source.parse().expect("an address")).finish();
            let value = Message::parse(&out).expect("a message").first(HeaderName::Via).map(<[u8]>::to_vec);
            String::from_utf8(value.expect("a Via")).expect("text")
        };
        for (via, source, expected) in [
            ("SIP/2.0/UDP 192.0.2.1", "192.0.2.1:9", "SIP/2.0/UDP 192.0.2.1"),
            ("SIP/2.0/UDP 192.0.2.1;x", "192.0.2.2:9", "SIP/2.0/UDP 192.0.2.1;x;received=192.0.2.2"),
            (
                "SIP/2.0/UDP 192.0.2.1;rport",
                "192.0.2.1:9",
                "SIP/2.0/UDP 192.0.2.1;rport=9;received=192.0.2.1",
            ),
            ("SIP/2.0/UDP h;RPort = 5;x", "192.0.2.1:9", "SIP/2.0/UDP h;rport=9;x;received=192.0.2.1"),
            ("SIP/2.0/UDP h;received=1.1.1.1;x", "192.0.2.1:9", "SIP/2.0/UDP h;received=192.0.2.1;x"),
            (
                "SIP/2.0/UDP 192.0.2.1;received=;rport=",
                "192.0.2.1:9",
                "SIP/2.0/UDP 192.0.2.1;received=192.0.2.1;rport=9",
            ),
            ("SIP/2.0/UDP [2001:db8::1]", "[2001:db8::1]:5", "SIP/2.0/UDP [2001:db8::1]"),
            (
                "SIP/2.0/UDP [2001:db8::1]",
                "[2001:db8::2]:5",
                "SIP/2.0/UDP [2001:db8::1];received=2001:db8::2",
            ),
            ("nonsense", "192.0.2.1:9", "nonsense"),
        ] {
            assert_eq!(seen(via, source), expected, "{via}");
        }
    }
}
