//! A session description read as a media relay needs it: per m-line the kind of media, where it is to be sent,
//! what it is coded in. Nothing is judged that the relay does not use.
//!
//! Sources: RFC 8866 (SDP), RFC 3264 (offer and answer), RFC 3605 (`a=rtcp`), RFC 5761 (`a=rtcp-mux`), RFC 8839 (ICE),
//! RFC 7345 (UDPTL over DTLS).

use std::net::IpAddr;

use memchr::memchr;

use super::connection;

/// The longest description that is read, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;
/// The most m-lines that are read.
pub const MAX_MEDIA: usize = 16;

/// Why a description cannot be read.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It does not start with a `v=` line.
    #[error("no session description: it does not start with v=")]
    NotSdp,
    /// It is longer than [`MAX_BYTES`].
    #[error("a session description of more than {MAX_BYTES} bytes")]
    TooLong,
    /// It has more than [`MAX_MEDIA`] m-lines.
    #[error("a session description of more than {MAX_MEDIA} m-lines")]
    TooManyMedia,
    /// An m-line has no port or transport.
    #[error("an m-line without a port or a transport")]
    BadMedia,
}

/// What an m-line is for.
#[derive(Copy, Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MediaKind {
    /// `audio`
    Audio,
    /// `video`
    Video,
    /// `image`: fax.
    Image,
    /// `application`
    Application,
    /// `text`
    Text,
    /// Anything else.
    Other,
}

/// What carries the media, as far as a relay of datagrams must know.
#[derive(Copy, Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// RTP in the clear (`RTP/AVP`, `RTP/AVPF`).
    Rtp,
    /// RTP whose payload and RTCP are encrypted (`RTP/SAVP`, `UDP/TLS/RTP/SAVPF`).
    SecureRtp,
    /// Fax (`udptl`, `UDP/TLS/UDPTL`).
    Udptl,
    /// Other datagrams (`UDP/DTLS/SCTP`, `UDP/BFCP`, `udp`).
    Datagrams,
    /// Not over UDP, or unknown: none of a relay's business.
    Foreign,
}

impl Transport {
    /// Whether a relay of datagrams can carry it.
    pub fn is_udp(self) -> bool {
        self != Transport::Foreign
    }

    /// Whether it is RTP, encrypted or not.
    pub fn is_rtp(self) -> bool {
        matches!(self, Transport::Rtp | Transport::SecureRtp)
    }

    fn read(word: &[u8]) -> Transport {
        let has = |name: &[u8]| word.split(|b| *b == b'/').any(|part| part.eq_ignore_ascii_case(name));
        if has(b"TCP") || has(b"TLS") && !has(b"UDP") {
            Transport::Foreign
        } else if has(b"RTP") {
            let secure = has(b"SAVP") || has(b"SAVPF");
            if secure { Transport::SecureRtp } else { Transport::Rtp }
        } else if has(b"UDPTL") {
            Transport::Udptl
        } else if has(b"UDP") || word.eq_ignore_ascii_case(b"DTLS/SCTP") {
            Transport::Datagrams
        } else {
            Transport::Foreign
        }
    }
}

/// Which way media flows, seen from who wrote the description.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Both ways; what holds when nothing is said.
    #[default]
    SendRecv,
    /// It sends only: it holds the other.
    SendOnly,
    /// It receives only.
    RecvOnly,
    /// Neither.
    Inactive,
}

impl Direction {
    fn read(attribute: &[u8]) -> Option<Direction> {
        match attribute {
            b"sendrecv" => Some(Direction::SendRecv),
            b"sendonly" => Some(Direction::SendOnly),
            b"recvonly" => Some(Direction::RecvOnly),
            b"inactive" => Some(Direction::Inactive),
            _ => None,
        }
    }

    /// Whether who wrote it wants to receive.
    pub fn receives(self) -> bool {
        matches!(self, Direction::SendRecv | Direction::RecvOnly)
    }
}

/// Where RTCP is to be sent (`a=rtcp`).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RtcpAt {
    /// The port.
    pub port: u16,
    /// The address, if it is not that of the media.
    pub ip: Option<IpAddr>,
}

/// One payload type and what it stands for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Format<'a> {
    /// 0 to 127.
    pub payload_type: u8,
    /// The name of its `a=rtpmap` line; `None` if it has none, as static payload types may.
    pub name: Option<&'a [u8]>,
    /// The clock rate of that line in Hz; 0 without one.
    pub clock: u32,
}

/// The names by which one side of ICE is asked, and signs.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct IceNames<'a> {
    /// `a=ice-ufrag`
    pub ufrag: &'a [u8],
    /// `a=ice-pwd`
    pub pwd: &'a [u8],
}

/// One m-line and the lines that belong to it.
#[derive(Clone, Debug)]
pub struct MediaLine<'a> {
    /// What it is for.
    pub kind: MediaKind,
    /// What carries it.
    pub transport: Transport,
    /// The port; 0 if the media is refused or ended.
    pub port: u16,
    /// The address, its own or else the session's; `None` if there is none, or a host name.
    pub address: Option<IpAddr>,
    /// Whether it has a `c=` line of its own.
    pub own_address: bool,
    /// Where it wants RTCP, if not at the next port.
    pub rtcp: Option<RtcpAt>,
    /// Whether it has `a=rtcp-mux`.
    pub mux: bool,
    /// Whether it takes RTCP nowhere but on the media port (`a=rtcp-mux-only`, RFC 8858).
    pub mux_only: bool,
    /// Which way media flows.
    pub direction: Direction,
    /// `a=ice-ufrag` and `a=ice-pwd`, its own or else the session's.
    ice: (Option<&'a [u8]>, Option<&'a [u8]>),
    /// Whether it has found that it cannot do ICE with the other (`a=ice-mismatch`).
    mismatch: bool,
    /// The last words of the m-line.
    formats: &'a [u8],
    /// The lines after the m-line.
    section: &'a [u8],
}

/// A description that was read.
#[derive(Clone, Debug)]
pub struct Description<'a> {
    /// All of it.
    pub(super) bytes: &'a [u8],
    /// Whether there is a `c=` line before the first m-line.
    pub(super) session_address: bool,
    /// Whether m-lines are grouped to share one port (`a=group:BUNDLE`, RFC 9143).
    pub bundle: bool,
    /// Its m-lines in order.
    pub media: Vec<MediaLine<'a>>,
}

impl<'a> Description<'a> {
    /// Reads a description.
    ///
    /// # Errors
    /// [`Unreadable`] says what keeps the media from being relayed.
    pub fn read(bytes: &'a [u8]) -> Result<Description<'a>, Unreadable> {
        if bytes.len() > MAX_BYTES {
            return Err(Unreadable::TooLong);
        }
        if !bytes.starts_with(b"v=") {
            return Err(Unreadable::NotSdp);
        }
        let mut media: Vec<MediaLine<'a>> = Vec::new();
        let mut session = Session::default();
        let mut at = 0;
        let mut section_from = 0;
        for line in Lines(bytes) {
            at += line.len();
            let text = line.trim_ascii_end();
            if let Some(value) = text.strip_prefix(b"m=") {
                if media.len() == MAX_MEDIA {
                    return Err(Unreadable::TooManyMedia);
                }
                if let Some(last) = media.last_mut() {
                    last.section = &bytes[section_from..at - line.len()];
                }
                section_from = at;
                media.push(session.media_line(value).ok_or(Unreadable::BadMedia)?);
            } else {
                match media.last_mut() {
                    Some(last) => last.take(text),
                    None => session.take(text),
                }
            }
        }
        if let Some(last) = media.last_mut() {
            last.section = &bytes[section_from..];
        }
        Ok(Description { bytes, session_address: session.has_address, bundle: session.bundle, media })
    }
}

/// What the lines before the first m-line say for all of them.
#[derive(Default)]
struct Session<'a> {
    has_address: bool,
    bundle: bool,
    address: Option<IpAddr>,
    direction: Direction,
    ice: (Option<&'a [u8]>, Option<&'a [u8]>),
}

impl<'a> Session<'a> {
    fn take(&mut self, line: &'a [u8]) {
        if let Some(value) = line.strip_prefix(b"c=") {
            self.address = connection(value);
            self.has_address = true;
        } else if let Some(attribute) = line.strip_prefix(b"a=") {
            self.direction = Direction::read(attribute).unwrap_or(self.direction);
            take_ice(&mut self.ice, attribute);
            self.bundle |= attribute.starts_with(b"group:BUNDLE");
        }
    }

    /// `audio 49170/2 RTP/AVP 0 8`, without `m=`.
    fn media_line(&self, value: &'a [u8]) -> Option<MediaLine<'a>> {
        let (kind, rest) = word(value);
        let (port, rest) = word(rest);
        let (transport, formats) = word(rest);
        if transport.is_empty() {
            return None;
        }
        let port = port.split(|b| *b == b'/').next().and_then(number)?;
        let kind = match kind {
            b"audio" => MediaKind::Audio,
            b"video" => MediaKind::Video,
            b"image" => MediaKind::Image,
            b"application" => MediaKind::Application,
            b"text" => MediaKind::Text,
            _ => MediaKind::Other,
        };
        Some(MediaLine {
            kind,
            transport: Transport::read(transport),
            port,
            address: self.address,
            own_address: false,
            rtcp: None,
            mux: false,
            mux_only: false,
            direction: self.direction,
            ice: self.ice,
            mismatch: false,
            formats,
            section: &[],
        })
    }
}

impl<'a> MediaLine<'a> {
    /// Takes in one of its lines.
    fn take(&mut self, line: &'a [u8]) {
        if let Some(value) = line.strip_prefix(b"c=") {
            self.address = connection(value);
            self.own_address = true;
        } else if let Some(attribute) = line.strip_prefix(b"a=") {
            self.direction = Direction::read(attribute).unwrap_or(self.direction);
            self.mux |= attribute == b"rtcp-mux";
            self.mux_only |= attribute == b"rtcp-mux-only";
            self.mismatch |= attribute == b"ice-mismatch";
            take_ice(&mut self.ice, attribute);
            if let Some(value) = attribute.strip_prefix(b"rtcp:") {
                self.rtcp = rtcp(value);
            }
        }
    }

    /// Whether it puts the other on hold in the style of RFC 2543, by an address of zeros.
    pub fn is_held_by_address(&self) -> bool {
        self.address.is_some_and(|ip| ip.is_unspecified())
    }

    /// What it needs to do ICE, if it can (RFC 8839 section 5.4).
    pub fn ice(&self) -> Option<IceNames<'a>> {
        let fits = |text: &[u8], least: usize| {
            let is_ice = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
            (least..=256).contains(&text.len()) && text.iter().all(is_ice)
        };
        let (ufrag, pwd) = (self.ice.0?, self.ice.1?);
        (fits(ufrag, 4) && fits(pwd, 22) && !self.mismatch).then_some(IceNames { ufrag, pwd })
    }

    /// Its payload types in order of preference, as far as they are RTP's.
    pub fn formats(&self) -> impl Iterator<Item = Format<'a>> + '_ {
        let words = self.formats.split(|b| *b == b' ').filter(|word| !word.is_empty());
        words.filter_map(number::<u8>).filter(|pt| *pt < 128).map(|payload_type| {
            let (name, clock) = self.rtpmap(payload_type).map_or((None, 0), |(n, c)| (Some(n), c));
            Format { payload_type, name, clock }
        })
    }

    /// `a=rtpmap:97 opus/48000/2`: name and clock rate.
    fn rtpmap(&self, payload_type: u8) -> Option<(&'a [u8], u32)> {
        Lines(self.section).find_map(|line| {
            let value = line.trim_ascii_end().strip_prefix(b"a=rtpmap:")?;
            let (number_word, coding) = word(value);
            if number::<u8>(number_word)? != payload_type {
                return None;
            }
            let mut parts = word(coding).0.split(|b| *b == b'/');
            Some((parts.next()?, parts.next().and_then(number).unwrap_or(0)))
        })
    }
}

fn take_ice<'a>(ice: &mut (Option<&'a [u8]>, Option<&'a [u8]>), attribute: &'a [u8]) {
    if let Some(ufrag) = attribute.strip_prefix(b"ice-ufrag:") {
        ice.0 = Some(ufrag);
    } else if let Some(pwd) = attribute.strip_prefix(b"ice-pwd:") {
        ice.1 = Some(pwd);
    }
}

/// `53020 IN IP4 126.16.64.4`, without `a=rtcp:`.
fn rtcp(value: &[u8]) -> Option<RtcpAt> {
    let (port, rest) = word(value);
    Some(RtcpAt { port: number(port)?, ip: connection(rest) })
}

/// The first word and what follows it; words are parted by blanks.
pub(super) fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_start();
    text.split_at(memchr(b' ', text).unwrap_or(text.len()))
}

fn number<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    let digits = word.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(word).ok().filter(|_| digits)?.parse().ok()
}

/// The lines of a text, each with its line end.
pub(super) struct Lines<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = memchr(b'\n', self.0).map_or(self.0.len(), |end| end + 1);
        let (line, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: &[u8] = b"v=0\r\no=- 1 1 IN IP4 10.0.0.1\r\ns=-\r\nc=IN IP4 10.0.0.1\r\nt=0 0\r\na=sendonly\r\n\
        m=audio 4000/2 RTP/AVP 0 97 101\r\na=rtpmap:97 opus/48000/2\r\na=rtpmap:101 telephone-event/8000\r\n\
        a=rtcp:4011 IN IP6 2001:db8::9\r\na=rtcp-mux\r\na=sendrecv\r\n\
        m=image 5000 udptl t38\r\nc=IN IP6 2001:db8::1\r\nm=message 7 TCP/MSRP *\r\nm=video 0 UDP/TLS/RTP/SAVPF 99\r\n";

    #[test]
    fn a_description_is_read() {
        let read = Description::read(OFFER).expect("SDP");
        let [audio, image, message, video] = &read.media[..] else { panic!("four m-lines") };
        assert_eq!((audio.kind, audio.transport, audio.port), (MediaKind::Audio, Transport::Rtp, 4000));
        assert_eq!(audio.address, Some([10, 0, 0, 1].into()));
        assert!(audio.mux && !audio.own_address && !audio.mux_only && audio.ice().is_none());
        let at = RtcpAt { port: 4011, ip: "2001:db8::9".parse().ok() };
        assert_eq!((audio.rtcp, audio.direction), (Some(at), Direction::SendRecv));
        let formats: Vec<_> = audio.formats().map(|f| (f.payload_type, f.name, f.clock)).collect();
        let named = |name: &'static [u8]| Some(name);
        assert_eq!(
            formats,
            [(0, None, 0), (97, named(b"opus"), 48000), (101, named(b"telephone-event"), 8000)]
        );
        assert_eq!((image.transport, image.direction), (Transport::Udptl, Direction::SendOnly));
        assert_eq!(image.address, "2001:db8::1".parse().ok());
        assert_eq!((message.transport, message.kind), (Transport::Foreign, MediaKind::Other));
        assert_eq!((video.transport, video.port), (Transport::SecureRtp, 0));
    }

    #[test]
    fn ice_is_told_by_both_names_of_the_line_or_the_session() {
        let pwd = "0123456789abcdefABCD+/";
        let ice = |session: &str, line: &str| {
            let text = format!("v=0\r\n{session}m=audio 4000 RTP/AVP 0\r\n{line}");
            let read = Description::read(text.as_bytes()).expect("SDP");
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
            read.media[0].ice().map(|ice| (text(ice.ufrag), text(ice.pwd)))
        };
        let names = |ufrag: &str| Some((ufrag.to_owned(), pwd.to_owned()));
        let (ufrag_line, pwd_line) = ("a=ice-ufrag:8hhY\r\n", format!("a=ice-pwd:{pwd}\r\n"));
        assert_eq!(ice(&format!("{ufrag_line}{pwd_line}"), ""), names("8hhY"));
        assert_eq!(ice("", &format!("{pwd_line}{ufrag_line}")), names("8hhY"));
        assert_eq!(ice(&format!("a=ice-ufrag:other\r\n{pwd_line}"), ufrag_line), names("8hhY"));
        assert_eq!(ice("", ufrag_line), None);
        assert_eq!(ice(ufrag_line, "a=ice-pwd:short\r\n"), None);
        assert_eq!(ice(ufrag_line, &format!("a=ice-pwd:{pwd}\"\r\n")), None);
        assert_eq!(ice(ufrag_line, &format!("{pwd_line}a=ice-mismatch\r\n")), None);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let read = |text: &[u8]| Description::read(text).map(|d| d.media.len());
        assert_eq!(read(b"hello"), Err(Unreadable::NotSdp));
        assert_eq!(read(b"v=0\nm=audio 70000 RTP/AVP 0\n"), Err(Unreadable::BadMedia));
        assert_eq!(read(b"v=0\nm=audio 4000\n"), Err(Unreadable::BadMedia));
        assert_eq!(read(&[&b"v=0\n"[..], &b"m=audio 1 RTP/AVP 0\n".repeat(16)].concat()), Ok(16));
        let many = [&b"v=0\n"[..], &b"m=audio 1 RTP/AVP 0\n".repeat(17)].concat();
        assert_eq!(read(&many), Err(Unreadable::TooManyMedia));
        assert_eq!(read(&[b'v', b'='].repeat(40_000)), Err(Unreadable::TooLong));
    }

    #[test]
    fn transports_are_told_apart() {
        let of = |text: &str| Transport::read(text.as_bytes());
        assert_eq!(of("RTP/AVPF"), Transport::Rtp);
        assert_eq!(of("RTP/SAVP"), Transport::SecureRtp);
        assert_eq!(of("TCP/RTP/AVP"), Transport::Foreign);
        assert_eq!(of("UDP/TLS/UDPTL"), Transport::Udptl);
        assert_eq!(of("UDP/DTLS/SCTP"), Transport::Datagrams);
        assert_eq!(of("DTLS/SCTP"), Transport::Datagrams);
        assert_eq!(of("TCP/TLS/BFCP"), Transport::Foreign);
    }
}
