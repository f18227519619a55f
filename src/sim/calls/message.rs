//! SIP messages as the agents read them: a reader of its own, so that no mistake of the product's is shared.

use std::fmt;
use std::net::SocketAddr;

/// A message taken apart.
#[derive(Clone, Debug)]
pub(super) struct Message {
    start: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Message {
    /// Reads a message whose lines end in CRLF and whose header names are written out.
    pub(super) fn parse(bytes: &[u8]) -> Option<Message> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let start = String::from(lines.next()?);
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_ascii_lowercase(), String::from(value.trim())))
        };
        let headers = lines.map(header).collect::<Option<Vec<_>>>()?;
        let message = Message { start, headers, body: String::from(body) };
        let whole = message.get("Content-Length").parse() == Ok(body.len());
        (whole && (message.code() > 0 || message.start.ends_with(" SIP/2.0"))).then_some(message)
    }

    /// A header's first value as it stands; empty if there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    /// A header's values, of one line or several.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        let lines = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let values = lines.flat_map(|(_, line)| line.split(','));
        values.map(|value| String::from(value.trim())).filter(|value| !value.is_empty()).collect()
    }

    /// The status code; 0 for a request.
    pub(super) fn code(&self) -> u16 {
        let status = self.start.strip_prefix("SIP/2.0 ").and_then(|rest| rest.get(..3));
        status.and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    /// The method of a request or of what a response answers.
    pub(super) fn method(&self) -> String {
        let words = if self.code() == 0 { &self.start } else { self.get("CSeq") };
        let word = if self.code() == 0 { words.split(' ').next() } else { words.split(' ').nth(1) };
        String::from(word.unwrap_or_default())
    }

    /// The Request-URI.
    pub(super) fn uri(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// The CSeq's number.
    pub(super) fn cseq(&self) -> u32 {
        self.get("CSeq").split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// The branch of the topmost Via.
    pub(super) fn branch(&self) -> String {
        let via = self.all("Via").into_iter().next().unwrap_or_default();
        param(&via, "branch")
    }

    /// The tag of From or To.
    pub(super) fn tag(&self, name: &str) -> String {
        let value = self.get(name);
        param(value.split_once('>').map_or(value, |(_, params)| params), "tag")
    }

    /// Where responses go: the host of the topmost Via.
    pub(super) fn reply_to(&self) -> Option<SocketAddr> {
        let via = self.all("Via").into_iter().next()?;
        via.split(' ').nth(1)?.split(';').next()?.parse().ok()
    }

    /// IP:PORT of the audio line, and the direction, of a session description. Port 0: none.
    pub(super) fn sdp(&self) -> Option<(SocketAddr, String)> {
        let line = |prefix: &str| self.body.lines().find_map(|line| line.strip_prefix(prefix));
        let ip = line("c=IN IP4 ")?.trim();
        let port = line("m=audio ")?.split(' ').next()?;
        let way = ["sendrecv", "sendonly", "recvonly", "inactive"];
        let way = way.into_iter().find(|way| self.body.contains(&format!("a={way}"))).unwrap_or("sendrecv");
        Some((format!("{ip}:{port}").parse().ok()?, String::from(way)))
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.start)?;
        self.headers.iter().try_for_each(|(name, value)| writeln!(f, "{name}: {value}"))?;
        write!(f, "{}", self.body)
    }
}

fn param(text: &str, name: &str) -> String {
    let found = text.split(';').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
    String::from(found.unwrap_or_default())
}

/// What stands between `<` and `>`.
pub(super) fn uri_of(value: &str) -> &str {
    value.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or(value, |(uri, _)| uri)
}

/// IP:PORT of a URI.
pub(super) fn host_port(value: &str) -> Option<SocketAddr> {
    let uri = uri_of(value).strip_prefix("sip:")?;
    let place = uri.split_once('@').map_or(uri, |(_, place)| place);
    place.split(';').next()?.parse().ok()
}
