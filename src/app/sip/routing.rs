//! Where a request goes, as far as it says so itself (RFC 3261 sections 16.4 and 16.6, items 2, 4, 6 and 7), and
//! whether it has been here before (sections 16.3, item 4, and RFC 5393).

use std::net::SocketAddr;

use xxhash_rust::xxh3::Xxh3;

use super::config::SipConfig;
use crate::wire::sip::{Address, HeaderName, Host, Message, Uri, Values, Via};

/// The port of a URI that names none (RFC 3261 section 19.1.2).
const DEFAULT_PORT: u16 = 5060;

/// What stands before the two numbers of a branch of ours.
const COOKIE: &[u8] = b"z9hG4bK";

/// A request's way on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// The Request-URI that it goes on with.
    pub uri: Vec<u8>,
    /// The Route values that it goes on with.
    pub routes: Vec<Vec<u8>>,
    /// Whether one of its routes led here.
    pub through: bool,
    /// The service endpoint that the last of those named.
    pub endpoint: Option<u16>,
    /// Whether Request-URI or Route are not as they came.
    pub changed: bool,
    /// Whether its Request-URI names a service endpoint.
    pub ours: bool,
    /// Where Route, or else the Request-URI, leads; `None` if that is a name, or no address at all.
    pub next: Option<SocketAddr>,
}

/// Finds the way. `None` if a route leads nowhere that can be told.
pub(super) fn way(config: &SipConfig, message: &Message<'_>) -> Option<Way> {
    let mut uri = message.uri()?;
    let mut routes: Vec<&[u8]> = message.values(HeaderName::Route).collect();
    let mut changed = false;
    // A strict router has put our own URI where the Request-URI belongs, and that one last (section 16.4).
    let is_ours = |uri: &Uri<'_>| ours(config, uri);
    if Uri::parse(uri).is_some_and(|uri| uri.lr() && uri.user().is_none() && is_ours(&uri).is_some())
        && let Some(last) = routes.pop()
    {
        uri = Address::parse(last)?.uri;
        changed = true;
    }
    let (mut through, mut endpoint, mut popped) = (false, None, 0);
    for route in &routes {
        let Some(found) = Address::parse(route)?.uri().as_ref().and_then(is_ours) else { break };
        (through, endpoint, popped) = (true, Some(found), popped + 1);
    }
    changed |= popped > 0;
    let ours = is_ours(&Uri::parse(uri)?).is_some();
    let routes = routes[popped..].iter().map(|route| route.to_vec()).collect();
    let mut way = Way { uri: uri.to_vec(), routes, through, endpoint, changed, ours, next: None };
    way.find_next()?;
    Some(way)
}

impl Way {
    /// Finds where Route, or else the Request-URI, leads. A next hop that knows no loose routing gets its own URI as
    /// Request-URI, and that one as last route (section 16.6, 6). `None` if neither is a URI.
    fn find_next(&mut self) -> Option<()> {
        let Some(first) = self.routes.first() else {
            self.next = address(&Uri::parse(&self.uri)?);
            return Some(());
        };
        let first = Address::parse(first)?.uri()?;
        self.next = address(&first);
        if !first.lr() {
            let last = [b"<", &self.uri[..], b">"].concat();
            self.uri = first.bytes().to_vec();
            self.routes.remove(0);
            self.routes.push(last);
            self.changed = true;
        }
        Some(())
    }

    /// Takes another way: to `uri` by way of `routes`, a list of Route values.
    pub(super) fn redirect(&mut self, uri: &[u8], routes: &[u8]) -> Option<()> {
        self.uri = uri.to_vec();
        self.routes = Values::of(routes).map(<[u8]>::to_vec).collect();
        self.changed = true;
        self.ours = false;
        self.find_next()
    }
}

/// The number of the service endpoint that a URI names.
pub(super) fn ours(config: &SipConfig, uri: &Uri<'_>) -> Option<u16> {
    let host = uri.host()?;
    config.endpoint_named(&host, uri.port().unwrap_or(DEFAULT_PORT))
}

/// The address that a URI leads to over UDP; `None` if it names a host that is to be looked up.
pub(super) fn address(uri: &Uri<'_>) -> Option<SocketAddr> {
    let maddr = uri.params().value(b"maddr").and_then(Host::parse);
    let ip = maddr.or(uri.host())?.ip()?.to_canonical();
    let nobody = ip.is_unspecified() || ip.is_multicast();
    let port = uri.port().unwrap_or(DEFAULT_PORT);
    (!nobody && port != 0).then(|| SocketAddr::new(ip, port))
}

/// A hash of all that decides where a request goes: if it comes back with the same, it would go round for ever.
pub(super) fn loop_hash(config: &SipConfig, message: &Message<'_>) -> u64 {
    let mut hash = Xxh3::with_seed(config.seed);
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u32).to_be_bytes());
        hash.update(bytes);
    };
    part(message.uri().unwrap_or_default());
    part(message.call_id().unwrap_or_default());
    for address in [message.from(), message.to()] {
        part(address.and_then(|address| address.tag()).unwrap_or_default());
    }
    part(&message.cseq().map_or(0, |cseq| cseq.number).to_be_bytes());
    for name in [HeaderName::Route, HeaderName::ProxyRequire, HeaderName::ProxyAuthorization] {
        message.all(name).for_each(|header| part(header.value));
    }
    hash.digest()
}

/// What a request's Vias say of the times it was here.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Visits {
    First,
    /// It was, but is to go elsewhere now.
    Spiral,
    /// It was, and would go the same way again.
    Loop,
}

/// Looks for Vias of ours.
pub(super) fn visits(config: &SipConfig, message: &Message<'_>, loop_hash: u64) -> Visits {
    let mut visits = Visits::First;
    for via in message.values(HeaderName::Via).filter_map(Via::parse) {
        if let Some((_, hash)) = own_branch(config, &via) {
            if hash == loop_hash {
                return Visits::Loop;
            }
            visits = Visits::Spiral;
        }
    }
    visits
}

/// A branch: the transaction's number, and the request's loop hash.
pub(super) fn branch(transaction: u64, loop_hash: u64) -> Vec<u8> {
    let text = format!("{transaction:016x}{loop_hash:016x}");
    [COOKIE, text.as_bytes()].concat()
}

/// The two numbers of a Via that one of the service endpoints wrote.
pub(super) fn own_branch(config: &SipConfig, via: &Via<'_>) -> Option<(u64, u64)> {
    config.endpoint_named(&via.host, via.port_or_default())?;
    let digits = via.branch()?.strip_prefix(COOKIE)?;
    let (first, second) = digits.split_at_checked(16)?;
    let number = |digits: &[u8]| {
        let hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        let text =
            std::str::from_utf8(digits).ok().filter(|_| digits.len() == 16 && digits.iter().all(hex))?;
        u64::from_str_radix(text, 16).ok()
    };
    Some((number(first)?, number(second)?))
}
