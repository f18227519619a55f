//! Where a session description says that media flows: addresses and ports, nothing else of SDP.
//!
//! `describe` reads a description as the media relay needs it, `rewrite` writes it anew with other addresses and
//! ports, `part` finds it inside a multipart body.
//!
//! Source: RFC 8866 (sections 5.7 and 5.14).

pub mod describe;
pub mod part;
pub mod rewrite;

use std::net::{IpAddr, SocketAddr};

use memchr::memchr;

/// One port that a description announces.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Where the media is to be sent. RTCP goes to the next port unless the description says otherwise.
    pub address: SocketAddr,
    /// Whether it is RTP; otherwise the port is taken for something else (fax over UDPTL, text over TCP).
    pub rtp: bool,
}

/// The media ports announced in `body`, which may hold other parts around the description. Media that is
/// refused (port 0) or addressed by a host name is left out.
pub fn announced(body: &[u8]) -> impl Iterator<Item = Announced> {
    Lines { rest: body, session: None, media: None, done: false }
}

/// Walks the lines; a media description is complete when the next one, or the end, is reached.
struct Lines<'a> {
    rest: &'a [u8],
    /// The address that holds for media without its own.
    session: Option<IpAddr>,
    /// The media description being read.
    media: Option<Media>,
    done: bool,
}

/// A media description; `port` is `None` if it is refused.
struct Media {
    port: Option<u16>,
    rtp: bool,
    address: Option<IpAddr>,
}

impl Iterator for Lines<'_> {
    type Item = Announced;

    fn next(&mut self) -> Option<Announced> {
        while !self.done {
            let line = self.line();
            match line {
                Some([b'v', b'=', ..]) => {
                    let finished = self.finish();
                    self.session = None;
                    if finished.is_some() {
                        return finished;
                    }
                }
                Some([b'c', b'=', value @ ..]) => match &mut self.media {
                    Some(media) => media.address = connection(value),
                    None => self.session = connection(value),
                },
                Some([b'm', b'=', value @ ..]) => {
                    let finished = self.finish();
                    self.media = Some(media(value));
                    if finished.is_some() {
                        return finished;
                    }
                }
                Some(_) => {}
                None => {
                    self.done = true;
                    return self.finish();
                }
            }
        }
        None
    }
}

impl<'a> Lines<'a> {
    fn line(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let end = memchr(b'\n', self.rest).unwrap_or(self.rest.len());
        let line = &self.rest[..end];
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        Some(line.trim_ascii_end())
    }

    fn finish(&mut self) -> Option<Announced> {
        let media = self.media.take()?;
        let address = SocketAddr::new(media.address.or(self.session)?, media.port?);
        Some(Announced { address, rtp: media.rtp })
    }
}

/// `IN IP4 192.0.2.1/127`: the address; `None` for a host name.
fn connection(value: &[u8]) -> Option<IpAddr> {
    let mut words = words(value);
    if words.next()? != "IN" || !matches!(words.next()?, "IP4" | "IP6") {
        return None;
    }
    words.next()?.split('/').next()?.parse().ok()
}

/// `audio 49170/2 RTP/AVP 0`.
fn media(value: &[u8]) -> Media {
    let mut words = words(value).skip(1);
    let port = words.next().and_then(|port| port.split('/').next()?.parse().ok()).filter(|port| *port != 0);
    // RTP/AVP, RTP/SAVPF, UDP/TLS/RTP/SAVPF, ...
    let rtp = words.next().is_some_and(|t| t.split('/').any(|part| part.eq_ignore_ascii_case("RTP")));
    Media { port, rtp, address: None }
}

fn words(value: &[u8]) -> impl Iterator<Item = &str> {
    // Only the words asked for need to be text.
    value
        .split(|b| *b == b' ')
        .map(|word| std::str::from_utf8(word).unwrap_or(""))
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ports(text: &str) -> Vec<String> {
        announced(text.as_bytes())
            .map(|a| format!("{}{}", a.address, if a.rtp { "" } else { " other" }))
            .collect()
    }

    #[test]
    fn addresses_come_from_the_media_or_else_the_session() {
        let text = "v=0\r\nc=IN IP4 10.0.0.1\r\nm=audio 4000 RTP/AVP 0\r\nm=video 5000/2 UDP/TLS/RTP/SAVPF 96\r\n\
            c=IN IP6 2001:db8::1\r\na=x\r\nm=image 6000 udptl t38\r\nm=audio 0 RTP/AVP 0\r\nm=audio 7000 RTP/AVP 8";
        assert_eq!(
            ports(text),
            ["10.0.0.1:4000", "[2001:db8::1]:5000", "10.0.0.1:6000 other", "10.0.0.1:7000"]
        );
        assert_eq!(ports("v=0\nm=audio 1 RTP/AVP 0\nc=IN IP4 224.2.1.1/127/3\n"), ["224.2.1.1:1"]);
        assert_eq!(ports("v=0\nc=IN IP4 host.example\nm=audio 4000 RTP/AVP 0\n"), [""; 0]);
        assert_eq!(ports("--part\nv=0\nc=IN IP4 1.1.1.1\nv=0\nm=audio 4000 RTP/AVP 0\n--part--"), [""; 0]);
        assert_eq!(ports("m=\nc=\nm=audio 99999 RTP/AVP\nm= RTP/AVP\n"), [""; 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'm'), Just(b'='), Just(b' ')], 0..300)
        ) {
            prop_assert!(announced(&bytes).count() <= bytes.len());
        }
    }
}
