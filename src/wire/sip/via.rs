//! One Via value: the way a request came, and how its response finds back.

use std::net::{IpAddr, SocketAddr};

use super::cursor::{cut, decimal, is_token};
use super::list::Params;
use super::uri::Host;

/// Via values a message may have.
pub const MAX_VIAS: usize = 64;

/// The port of a host that names none, over UDP and TCP (RFC 3261 section 19.1.2).
const DEFAULT_PORT: u16 = 5060;

/// What every branch starts with that names a transaction (RFC 3261 section 8.1.1.7).
const COOKIE: &[u8] = b"z9hG4bK";

/// `SIP/2.0/UDP host:port;params` (RFC 3261 section 20.42).
#[derive(Copy, Clone, Debug)]
pub struct Via<'a> {
    /// `2.0`.
    pub version: &'a [u8],
    /// `UDP`, in any case, or any other token.
    pub transport: &'a [u8],
    /// Where the sender says it is.
    pub host: Host<'a>,
    /// The port it names.
    pub port: Option<u16>,
    /// The parameters.
    pub params: Params<'a>,
}

impl<'a> Via<'a> {
    /// One value. `None` if protocol, transport, host or port are malformed or missing; parameters are
    /// taken as they are.
    pub fn parse(value: &'a [u8]) -> Option<Via<'a>> {
        let (protocol, Some(rest)) = cut(value, b'/') else { return None };
        let (version, Some(rest)) = cut(rest, b'/') else { return None };
        let rest = rest.trim_ascii_start();
        let end = rest.iter().position(u8::is_ascii_whitespace)?;
        let (transport, rest) = rest.split_at(end);
        let version = version.trim_ascii();
        let right = is_token(protocol.trim_ascii()) && is_token(version) && is_token(transport);
        let end = memchr::memchr(b';', rest).unwrap_or(rest.len());
        let (host, port) = Host::with_port(&rest[..end])?;
        right.then(|| Via { version, transport, host, port, params: Params::of(&rest[end..]) })
    }

    /// The branch as written; empty ones are none.
    pub fn branch(&self) -> Option<&'a [u8]> {
        self.params.value(b"branch").filter(|branch| !branch.is_empty())
    }

    /// The branch if it names a transaction: it starts with `z9hG4bK` in any case, and goes on.
    pub fn transaction(&self) -> Option<&'a [u8]> {
        let (cookie, id) = self.branch()?.split_at_checked(COOKIE.len())?;
        (cookie.eq_ignore_ascii_case(COOKIE) && !id.is_empty()).then_some(self.branch()?)
    }

    /// Whether the sender wants the response at the port that the request came from (RFC 3581).
    pub fn wants_rport(&self) -> bool {
        self.params.has(b"rport")
    }

    /// The port that the request came from, once the receiver has written it down.
    pub fn rport(&self) -> Option<u16> {
        u16::try_from(decimal(self.params.value(b"rport")?)?).ok()
    }

    /// The address that the request came from, as written.
    pub fn received(&self) -> Option<&'a [u8]> {
        self.params.value(b"received")
    }

    /// The address in `received`, with or without the brackets of IPv6 (RFC 5118 section 4.5).
    pub fn received_ip(&self) -> Option<IpAddr> {
        let written = self.received()?;
        let inside = written.strip_prefix(b"[").and_then(|w| w.strip_suffix(b"]")).unwrap_or(written);
        std::str::from_utf8(inside).ok()?.parse().ok()
    }

    /// The address that responses go to by multicast, as written.
    pub fn maddr(&self) -> Option<&'a [u8]> {
        self.params.value(b"maddr")
    }

    /// How far a multicast response goes.
    pub fn ttl(&self) -> Option<u8> {
        u8::try_from(decimal(self.params.value(b"ttl")?)?).ok()
    }

    /// The port it names, or the default one.
    pub fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(DEFAULT_PORT)
    }

    /// Where a response over UDP goes (RFC 3261 section 18.2.2, RFC 3581 section 4), for as long as that is
    /// an address: to `maddr`, else to `received` at `rport`, else to the host. `None`: a name, to be
    /// looked up.
    pub fn response_address(&self) -> Option<SocketAddr> {
        if let Some(maddr) = self.maddr() {
            return Some(SocketAddr::new(Host::parse(maddr)?.ip()?, self.port_or_default()));
        }
        let port = self.rport().unwrap_or(self.port_or_default());
        Some(SocketAddr::new(self.received_ip().or_else(|| self.host.ip())?, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(value: &str) -> Via<'_> {
        Via::parse(value.as_bytes()).unwrap_or_else(|| panic!("{value}"))
    }

    #[test]
    fn parts() {
        let one =
            via("SIP/2.0/UDP h.example:5061;branch=z9hG4bKx;rport;received=192.0.2.1;maddr=224.2.0.1;ttl=16");
        assert_eq!(
            (one.version, one.transport, one.host.bytes()),
            (&b"2.0"[..], &b"UDP"[..], &b"h.example"[..])
        );
        assert_eq!((one.port, one.branch(), one.ttl()), (Some(5061), Some(&b"z9hG4bKx"[..]), Some(16)));
        assert_eq!((one.wants_rport(), one.rport(), one.maddr()), (true, None, Some(&b"224.2.0.1"[..])));
        let blanks = via("SIP  /   2.0\r\n /UDP\r\n    192.0.2.2 : 5 ; branch = 390skdjuw");
        assert_eq!((blanks.host.bytes(), blanks.port), (&b"192.0.2.2"[..], Some(5)));
        assert_eq!((blanks.branch(), blanks.transaction()), (Some(&b"390skdjuw"[..]), None));
        assert_eq!(via("SIP/2.0/UDP a;branch=z9hG4bK").transaction(), None);
        assert_eq!(via("SIP/2.0/UDP a;branch=Z9HG4BK1").transaction(), Some(&b"Z9HG4BK1"[..]));
        assert_eq!(via("SIP/7.0/X [2001:db8::9:1]").version, b"7.0");
        for wrong in [
            "",
            ";",
            "SIP/2.0/UDP",
            "SIP/2.0/UDP ",
            "SIP/2.0 UDP a",
            "SIP/2.0/UDP a:x",
            "SIP/2.0/UDP a b",
            "SIP/2.0/UDP ;branch=x",
            "/2.0/UDP a",
            "SIP/2.0/ a",
            "SIP/2.0/UDP [::1",
            "SIP/2.0/UDP a:70000",
        ] {
            assert!(Via::parse(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    #[test]
    fn where_responses_go() {
        let goes = |value: &str| via(value).response_address().map(|address| address.to_string());
        let address = |text: &str| Some(text.to_owned());
        assert_eq!(goes("SIP/2.0/UDP 192.0.2.1"), address("192.0.2.1:5060"));
        assert_eq!(goes("SIP/2.0/UDP 192.0.2.1:9;rport"), address("192.0.2.1:9"));
        assert_eq!(goes("SIP/2.0/UDP a:9;received=192.0.2.7"), address("192.0.2.7:9"));
        assert_eq!(goes("SIP/2.0/UDP a:9;received=192.0.2.7;rport=77"), address("192.0.2.7:77"));
        assert_eq!(
            goes("SIP/2.0/UDP a:9;received=192.0.2.7;rport=77;maddr=224.0.0.9"),
            address("224.0.0.9:9")
        );
        assert_eq!(goes("SIP/2.0/UDP [::1];received=[2001:db8::9]"), address("[2001:db8::9]:5060"));
        assert_eq!(goes("SIP/2.0/UDP [::1];received=2001:db8::9"), address("[2001:db8::9]:5060"));
        assert_eq!(goes("SIP/2.0/UDP a.example;rport=5"), None);
    }
}
