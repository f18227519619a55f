//! A description with other addresses and ports: only the lines that say where media goes are written anew, every
//! other byte stays as it is.

use std::net::IpAddr;

use super::connection;
use super::describe::{Description, Lines, MediaLine, word};

/// Where one m-line is to lead.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The port of the media.
    pub port: u16,
    /// The port of RTCP, for `a=rtcp` lines.
    pub rtcp: u16,
    /// The lines of ICE that it is given, if any.
    pub agent: Option<LiteAgent>,
}

/// An m-line's side of ICE as a lite agent has it (RFC 8445 section 2.5): all of it is one host candidate, or two.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct LiteAgent {
    /// Its names.
    pub credentials: Credentials,
    /// Whether RTCP has a candidate of its own, at [`Placement::rtcp`].
    pub rtcp: bool,
}

/// `a=ice-ufrag` and `a=ice-pwd`, in characters of ICE.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Names the agent.
    pub ufrag: [u8; 8],
    /// Signs its answers, and the checks it gets.
    pub pwd: [u8; 24],
}

/// What happens to the lines of ICE in m-lines that are placed.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
pub enum Ice {
    /// They are left out: the other side finds a peer that cannot do ICE (RFC 8445 section 2.5).
    #[default]
    Remove,
    /// They stay, and with them addresses that may lead media past the relay.
    Pass,
    /// They are left out, and what [`Placement::agent`] says comes in their place.
    Lite,
}

/// Priorities of the only candidate of each component (RFC 8445 section 5.1.2.1: a host, of the highest preference).
const PRIORITY: [u32; 2] = [2_130_706_431, 2_130_706_430];

const ICE_LINES: [&[u8]; 9] = [
    b"candidate:",
    b"remote-candidates:",
    b"ice-ufrag:",
    b"ice-pwd:",
    b"ice-options:",
    b"ice-lite",
    b"ice-pacing:",
    b"ice-mismatch",
    b"end-of-candidates",
];

impl Description<'_> {
    /// The description with each m-line that `places` (by its number) names led to `ip` and the ports named.
    ///
    /// Rewritten are `c=` lines (but not those that put the other on hold by an address of zeros), the port of `m=`
    /// (a count of ports behind it goes: one is relayed), `a=rtcp`, and ICE's lines as `ice` says. An m-line that is
    /// refused (port 0) stays as it is. To who does ICE zeros are no hold, but an address to be found by checks
    /// (RFC 8839 section 4.4.1.1.1), so [`Ice::Lite`] rewrites them too. If some m-lines that share the session's `c=` are placed and others are not,
    /// it stays and the placed ones get their own.
    pub fn rewrite(&self, ip: IpAddr, ice: Ice, places: &[Option<Placement>]) -> Vec<u8> {
        let place = |n: usize| {
            let live = self.media.get(n).is_some_and(|media| media.port != 0);
            places.get(n).copied().flatten().filter(|_| live)
        };
        let numbered = || self.media.iter().enumerate();
        let inherits = |placed: bool| {
            numbered().any(|(n, m)| m.port != 0 && !m.own_address && place(n).is_some() == placed)
        };
        let agent = |n: usize| place(n).and_then(|place| place.agent);
        let finds = |m: &MediaLine<'_>| ice == Ice::Lite && m.ice().is_some();
        let mut writer = Writer {
            ip,
            ice,
            out: Vec::with_capacity(self.bytes.len() + 64),
            current: None,
            session_moves: inherits(true) && !inherits(false),
            any: numbered().any(|(n, _)| place(n).is_some()),
            insert: false,
            zeros_hold: !numbered().any(|(n, m)| place(n).is_some() && !m.own_address && finds(m)),
        };
        let mut next = 0;
        for line in Lines(self.bytes) {
            if line.starts_with(b"m=") {
                writer.end_section();
                if next == 0 && numbered().any(|(n, _)| agent(n).is_some()) {
                    writer.own_line(format_args!("a=ice-lite"));
                    writer.own_line(format_args!("a=ice-options:ice2"));
                }
                let placed = place(next);
                let covered = self.session_address && writer.session_moves;
                let holds = |m: &MediaLine<'_>| m.is_held_by_address() && !finds(m);
                let needs = |m: &MediaLine<'_>| !m.own_address && !covered && !holds(m);
                writer.insert = placed.is_some() && self.media.get(next).is_some_and(needs);
                writer.zeros_hold = !self.media.get(next).is_some_and(finds);
                writer.current = Some(placed);
                next += 1;
            }
            writer.line(line);
        }
        writer.end_section();
        writer.out
    }
}

struct Writer {
    ip: IpAddr,
    ice: Ice,
    out: Vec<u8>,
    /// The place of the m-line being written; `None` before the first.
    current: Option<Option<Placement>>,
    /// Whether the session's `c=` is rewritten.
    session_moves: bool,
    /// Whether any m-line is placed.
    any: bool,
    /// Whether the m-line just written needs a `c=` of its own.
    insert: bool,
    /// Whether an address of zeros is hold in the style of RFC 2543.
    zeros_hold: bool,
}

impl Writer {
    fn line(&mut self, line: &[u8]) {
        let text = line.trim_ascii_end();
        let end = &line[text.len()..];
        if self.insert && !text.starts_with(b"m=") && !text.starts_with(b"i=") {
            self.insert_address();
        }
        let (moves, placed) = match self.current {
            None => (self.session_moves, None),
            Some(place) => (place.is_some(), place),
        };
        if let Some(value) = text.strip_prefix(b"c=") {
            let held = self.zeros_hold && connection(value).is_some_and(|ip| ip.is_unspecified());
            if moves && !held { self.address(end) } else { self.out.extend_from_slice(line) }
        } else if let (Some(value), Some(place)) = (text.strip_prefix(b"m="), placed) {
            self.media(value, place);
            self.out.extend_from_slice(end);
        } else if let (Some(value), Some(place)) = (text.strip_prefix(b"a=rtcp:"), placed) {
            self.rtcp(value, place);
            self.out.extend_from_slice(end);
        } else if !self.is_dropped(text, placed.is_some()) {
            self.out.extend_from_slice(line);
        }
    }

    fn is_dropped(&self, text: &[u8], placed: bool) -> bool {
        let concerned = if self.current.is_none() { self.any } else { placed };
        let ice =
            || text.strip_prefix(b"a=").is_some_and(|a| ICE_LINES.iter().any(|name| a.starts_with(name)));
        self.ice != Ice::Pass && concerned && ice()
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        self.out.extend_from_slice(text.to_string().as_bytes());
    }

    fn put_address(&mut self) {
        let (family, ip) = (if self.ip.is_ipv4() { "IP4" } else { "IP6" }, self.ip);
        self.put(format_args!("IN {family} {ip}"));
    }

    fn address(&mut self, end: &[u8]) {
        self.out.extend_from_slice(b"c=");
        self.put_address();
        self.out.extend_from_slice(end);
    }

    /// Ends the line just written, if that has no end; returns the end it has, for those that follow.
    fn line_end(&mut self) -> &'static [u8] {
        match &self.out[..] {
            [.., b'\r', b'\n'] => b"\r\n",
            [.., b'\n'] => b"\n",
            _ => {
                self.out.extend_from_slice(b"\r\n");
                b"\r\n"
            }
        }
    }

    /// Gives the m-line just written a `c=` line.
    fn insert_address(&mut self) {
        if std::mem::take(&mut self.insert) {
            let end = self.line_end();
            self.address(end);
        }
    }

    /// Adds a line.
    fn own_line(&mut self, text: std::fmt::Arguments<'_>) {
        let end = self.line_end();
        self.put(text);
        self.out.extend_from_slice(end);
    }

    /// The last line of an m-line, or of what is before the first, was written.
    fn end_section(&mut self) {
        self.insert_address();
        if let Some(Some(place)) = self.current
            && let Some(LiteAgent { credentials, rtcp }) = place.agent
        {
            self.own_line(format_args!("a=ice-ufrag:{}", credentials.ufrag.escape_ascii()));
            self.own_line(format_args!("a=ice-pwd:{}", credentials.pwd.escape_ascii()));
            let (ip, ports) = (self.ip, [place.port, place.rtcp]);
            for (at, port) in ports.iter().enumerate().take(1 + usize::from(rtcp)) {
                let (component, priority) = (at + 1, PRIORITY[at]);
                self.own_line(format_args!("a=candidate:1 {component} UDP {priority} {ip} {port} typ host"));
            }
        }
    }

    /// All of an m-line but its port stays as it is.
    fn media(&mut self, value: &[u8], place: Placement) {
        let (_, behind_kind) = word(value);
        let (_, behind_port) = word(behind_kind);
        let kind = &value[..value.len() - behind_kind.len()];
        self.out.extend_from_slice(b"m=");
        self.out.extend_from_slice(kind);
        self.put(format_args!(" {}", place.port));
        self.out.extend_from_slice(behind_port);
    }

    fn rtcp(&mut self, value: &[u8], place: Placement) {
        let (_, address) = word(value);
        self.put(format_args!("a=rtcp:{}", place.rtcp));
        if !address.trim_ascii().is_empty() {
            self.out.push(b' ');
            self.put_address();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    fn at(port: u16) -> Option<Placement> {
        Some(Placement { port, rtcp: port + 1, agent: None })
    }

    fn rewritten(text: &str, ice: Ice, places: &[Option<Placement>]) -> String {
        let out = Description::read(text.as_bytes()).expect("SDP").rewrite(V4, ice, places);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn only_addresses_and_ports_change() {
        let text = "v=0\r\no=- 1 1 IN IP4 10.0.0.1\r\nc=IN IP6 2001:db8::1\r\na=ice-lite\r\n\
            m=audio 4000/2  RTP/AVP 0 8\r\nb=AS:64\r\na=rtcp:4001 IN IP6 2001:db8::1\r\na=candidate:1 x\r\n\
            m=video 5000 RTP/AVP 96\nc=IN IP4 10.0.0.2/127\na=rtcp:5001\na=ice-ufrag:x\nm=audio 0 RTP/AVP 0\r\na=ice-pwd:y\r\n";
        let wanted = "v=0\r\no=- 1 1 IN IP4 10.0.0.1\r\nc=IN IP4 192.0.2.7\r\n\
            m=audio 30000  RTP/AVP 0 8\r\nb=AS:64\r\na=rtcp:30001 IN IP4 192.0.2.7\r\n\
            m=video 30002 RTP/AVP 96\nc=IN IP4 192.0.2.7\na=rtcp:30003\nm=audio 0 RTP/AVP 0\r\na=ice-pwd:y\r\n";
        assert_eq!(rewritten(text, Ice::Remove, &[at(30000), at(30002), at(30004)]), wanted);
        assert_eq!(rewritten(text, Ice::Remove, &[]), text);
        let kept = rewritten(text, Ice::Pass, &[at(30000), at(30002), None]);
        assert!(kept.contains("a=candidate:1 x\r\n") && kept.contains("a=ice-lite\r\n"));
    }

    #[test]
    fn a_shared_address_stays_for_media_that_is_left_alone() {
        let text =
            "v=0\r\nc=IN IP4 10.0.0.1\r\nm=audio 4000 RTP/AVP 0\r\ni=title\r\na=x\r\nm=message 7 TCP/MSRP *";
        let wanted = "v=0\r\nc=IN IP4 10.0.0.1\r\nm=audio 30000 RTP/AVP 0\r\ni=title\r\nc=IN IP4 192.0.2.7\r\na=x\r\nm=message 7 TCP/MSRP *";
        assert_eq!(rewritten(text, Ice::Remove, &[at(30000), None]), wanted);
        // No address at all, and no line end.
        let bare = rewritten("v=0\nm=audio 4000 RTP/AVP 0", Ice::Remove, &[at(30000)]);
        assert_eq!(bare, "v=0\nm=audio 30000 RTP/AVP 0\r\nc=IN IP4 192.0.2.7\r\n");
    }

    #[test]
    fn hold_by_address_stays_hold() {
        let text = "v=0\r\nc=IN IP4 0.0.0.0\r\nm=audio 4000 RTP/AVP 0\r\n";
        assert_eq!(rewritten(text, Ice::Remove, &[at(30000)]), text.replace("4000", "30000"));
        let mixed = format!("{text}m=message 7 TCP/MSRP *\r\n");
        assert_eq!(rewritten(&mixed, Ice::Remove, &[at(30000), None]), mixed.replace("4000", "30000"));
    }

    fn with_agent(port: u16, rtcp: bool) -> Option<Placement> {
        let credentials = Credentials { ufrag: *b"ourUfrag", pwd: *b"our+password/0123456789a" };
        at(port).map(|place| Placement { agent: Some(LiteAgent { credentials, rtcp }), ..place })
    }

    #[test]
    fn a_lite_agent_takes_the_place_of_the_one_described() {
        let text = "v=0\r\nc=IN IP4 10.0.0.1\r\nt=0 0\r\na=ice-options:trickle\r\na=group:BUNDLE 0 1\r\n\
            m=audio 4000 RTP/AVP 0\r\na=ice-ufrag:8hhY\r\na=ice-pwd:0123456789abcdefABCD+/\r\na=candidate:1 x\r\na=sendrecv\r\n\
            m=video 5000 RTP/AVP 96\r\na=ice-ufrag:8hhY\r\na=mid:1\r\nm=audio 0 RTP/AVP 0\r\na=ice-ufrag:8hhY";
        let lines = "a=ice-ufrag:ourUfrag\r\na=ice-pwd:our+password/0123456789a\r\n";
        let wanted = format!(
            "v=0\r\nc=IN IP4 192.0.2.7\r\nt=0 0\r\na=group:BUNDLE 0 1\r\na=ice-lite\r\na=ice-options:ice2\r\n\
             m=audio 30000 RTP/AVP 0\r\na=sendrecv\r\n{lines}\
             a=candidate:1 1 UDP 2130706431 192.0.2.7 30000 typ host\r\n\
             a=candidate:1 2 UDP 2130706430 192.0.2.7 30001 typ host\r\n\
             m=video 30002 RTP/AVP 96\r\na=mid:1\r\n{lines}\
             a=candidate:1 1 UDP 2130706431 192.0.2.7 30002 typ host\r\n\
             m=audio 0 RTP/AVP 0\r\na=ice-ufrag:8hhY"
        );
        let places = [with_agent(30000, true), with_agent(30002, false), with_agent(30004, true)];
        assert_eq!(rewritten(text, Ice::Lite, &places), wanted);
        // Who cannot do ICE gets none of it.
        let plain = rewritten(text, Ice::Lite, &[at(30000), at(30002), None]);
        assert_eq!(plain, rewritten(text, Ice::Remove, &[at(30000), at(30002), None]));
        // An address that is to be found is not hold, and the last line may have no end.
        let zeros =
            "v=0\nc=IN IP4 0.0.0.0\nm=audio 9 RTP/AVP 0\na=ice-ufrag:8hhY\na=ice-pwd:0123456789abcdefABCD+/";
        let out = rewritten(zeros, Ice::Lite, &[with_agent(30000, false)]);
        assert!(out.contains("c=IN IP4 192.0.2.7\n") && out.ends_with(" 30000 typ host\n"), "{out}");
        let own = zeros.replace("c=IN IP4 0.0.0.0\n", "") + "\nc=IN IP6 ::";
        let out = rewritten(&own, Ice::Lite, &[with_agent(30000, false)]);
        assert!(out.contains("c=IN IP4 192.0.2.7\r\na=ice-ufrag:ourUfrag\r\n"), "{out}");
        assert!(rewritten(zeros, Ice::Remove, &[at(30000)]).contains("c=IN IP4 0.0.0.0\n"));
    }

    #[test]
    fn bytes_that_are_no_text_stay() {
        let text = b"v=0\r\ns=\xe9\xff\r\nc=IN IP4 10.0.0.1\r\nm=audio 4000 RTP/AVP 0\r\na=\xfc\0\r\n";
        let out = Description::read(text).expect("SDP").rewrite(V4, Ice::Remove, &[at(30000)]);
        assert_eq!(
            out,
            b"v=0\r\ns=\xe9\xff\r\nc=IN IP4 192.0.2.7\r\nm=audio 30000 RTP/AVP 0\r\na=\xfc\0\r\n"
        );
    }

    proptest! {
        #[test]
        fn any_description_is_given_a_lite_agent(lines in proptest::collection::vec(prop_oneof![
            Just("c=IN IP4 10.0.0.1"), Just("c=IN IP4 0.0.0.0"), Just("a=ice-ufrag:8hhY"), Just("a=ice-lite"),
            Just("a=ice-pwd:0123456789abcdefABCD+/"), Just("a=candidate:1 1 UDP 1 1.2.3.4 5 typ host"), Just("a=mid:1"),
            Just("m=audio 4000 RTP/AVP 0"), Just("m=audio 0 RTP/AVP 0"), Just("m=x 7 TCP/MSRP *")], 0..30), rtcp: bool) {
            let text = format!("v=0\n{}", lines.join("\n"));
            if let Ok(read) = Description::read(text.as_bytes()) {
                let places: Vec<_> =
                    read.media.iter().map(|m| with_agent(30000, rtcp).filter(|_| m.transport.is_udp())).collect();
                let out = read.rewrite(V4, Ice::Lite, &places);
                let again = Description::read(&out).expect("still SDP");
                let placed = |m: &MediaLine<'_>| m.port != 0 && m.transport.is_udp();
                for (before, after) in read.media.iter().zip(&again.media) {
                    prop_assert_eq!(placed(before), placed(after));
                    if placed(after) {
                        prop_assert_eq!(after.ice().map(|ice| ice.ufrag), Some(&b"ourUfrag"[..]));
                    }
                }
                let count = out.split(|b| *b == b'\n').filter(|line| line.trim_ascii() == b"a=ice-lite").count();
                let kept = text.lines().filter(|line| *line == "a=ice-lite").count();
                if read.media.iter().any(placed) {
                    prop_assert!((1..=1 + kept).contains(&count));
                }
                // Zeros beside a new agent are an address to be found when they are read again.
                if !text.contains("0.0.0.0") {
                    prop_assert_eq!(&again.rewrite(V4, Ice::Lite, &places), &out);
                }
            }
        }

        #[test]
        fn any_description_is_rewritten_to_one_that_leads_here(lines in proptest::collection::vec(prop_oneof![
            Just("c=IN IP4 10.0.0.1".to_owned()), Just("c=IN IP6 2001:db8::1".to_owned()), Just("c=IN IP4 0.0.0.0".to_owned()),
            Just("a=rtcp:9 IN IP4 1.2.3.4".to_owned()), Just("a=rtcp:".to_owned()), Just("a=ice-ufrag:x".to_owned()),
            Just("m=audio 4000 RTP/AVP 0".to_owned()), Just("m=audio 0 RTP/AVP 0".to_owned()), Just("m=image 7/3 udptl t38".to_owned()),
            Just("m=x 7 TCP/MSRP *".to_owned()), "[ -~]{0,12}"], 0..30), crlf: bool) {
            let text = format!("v=0\n{}\n", lines.join("\n"));
            let text = if crlf { text.replace('\n', "\r\n") } else { text };
            if let Ok(read) = Description::read(text.as_bytes()) {
                let places: Vec<_> = read.media.iter().map(|m| at(30000).filter(|_| m.transport.is_udp())).collect();
                let out = read.rewrite(V4, Ice::Remove, &places);
                let again = Description::read(&out).expect("still SDP");
                prop_assert_eq!(again.media.len(), read.media.len());
                for (before, after) in read.media.iter().zip(&again.media) {
                    if before.port == 0 || !before.transport.is_udp() {
                        prop_assert_eq!(before.port, after.port);
                    } else {
                        prop_assert_eq!(after.port, 30000);
                        prop_assert!(after.is_held_by_address() || after.address == Some(V4));
                        prop_assert_eq!(before.is_held_by_address(), after.is_held_by_address());
                    }
                    if before.port != 0 && !before.transport.is_udp() {
                        prop_assert_eq!(before.address, after.address);
                    }
                }
                prop_assert_eq!(&again.rewrite(V4, Ice::Remove, &places), &out);
            }
        }
    }
}
