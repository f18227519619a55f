//! The route file: where calls go.
//!
//! ```text
//! user 0049      10.0.0.1:5060;weight=3, 10.0.0.2:5060, 10.0.0.9:5060;priority=1
//! domain x.org   10.0.0.3:5060
//! default        [2001:db8::1]:5060
//! ping 5s        # absent: targets are not pinged
//! ping-timeout 2s
//! down-after 2
//! up-after 1
//! ```
//!
//! The longest user prefix that the Request-URI begins with wins, then its domain, then the default. Of a rule's
//! targets those of the lowest priority number are tried first, drawn by weight among equals; those that are down come
//! last, but they come. `#` at the start of a word begins a comment. A prefix is written as in a URI (RFC 3261 section
//! 25.1): `%23` is `#`.
//!
//! Two texts that mean the same have the same [`Routes::text`] and [`Routes::hash`].

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};

use xxhash_rust::xxh3::xxh3_64;

use crate::types::{Endpoint, Nanos};
use crate::wire::sip::{Host, Scheme, Uri};

/// The longest text in bytes, as written and in canonical form: it travels as one entry.
pub const MAX_TEXT: usize = 64_000;
/// The most rules.
pub const MAX_RULES: usize = 4_096;
/// The most targets of a rule.
pub const MAX_CHOICES: usize = 64;
/// The most different targets of all rules.
pub const MAX_TARGETS: usize = 1_024;
/// The longest user prefix or domain in bytes.
const MAX_MATCH: usize = 255;
/// What a target listens on that is written without a port (RFC 3261 section 19.1.2).
const SIP_PORT: u16 = 5060;

/// One place that a rule sends calls to.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Target {
    /// Lower ones are tried first.
    pub priority: u16,
    /// Where it listens.
    pub to: Endpoint,
    /// Its share among targets of its priority, at least 1.
    pub weight: u16,
}

/// How targets are asked whether they live.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Pings {
    /// From one ping of a target to the next.
    pub interval: Nanos,
    /// A ping not answered for this long has failed; at most the interval.
    pub timeout: Nanos,
    /// So many pings in a row that failed make a target down.
    pub down_after: u8,
    /// So many in a row that were answered make it up.
    pub up_after: u8,
}

/// What is wrong with a route file, for its writer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("routes, line {line}: '{token}': {accepted}")]
pub struct RouteError {
    /// Counted from 1.
    pub line: usize,
    /// The word that is wrong, cut at 64 characters.
    pub token: String,
    /// Why, and what is accepted.
    pub accepted: String,
}

/// A parsed route file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Routes {
    /// By prefix, unescaped.
    users: BTreeMap<Vec<u8>, Vec<Target>>,
    /// By name in lower case.
    domains: BTreeMap<String, Vec<Target>>,
    default: Vec<Target>,
    pings: Option<Pings>,
    /// Every target once, in order.
    targets: Vec<Endpoint>,
    /// The longest prefix in bytes.
    longest: usize,
    text: String,
    hash: u64,
}

impl Routes {
    /// Reads a route file; an empty one has no routes.
    ///
    /// # Errors
    /// [`RouteError`] for the first line that is wrong, and for what is too large.
    pub fn parse(text: &str) -> Result<Routes, RouteError> {
        if text.len() > MAX_TEXT {
            return Err(wrong(1, "", format!("{} bytes: at most {MAX_TEXT} are accepted", text.len())));
        }
        let mut reader = Reader::default();
        for (index, line) in text.lines().enumerate() {
            reader.line(index + 1, without_comment(line))?;
        }
        reader.finish()
    }

    /// The line of a route file that a command line's `--route` means: `default=TARGETS`, `user:PREFIX=TARGETS` or
    /// `domain:NAME=TARGETS`.
    ///
    /// # Errors
    /// [`RouteError`] if it means none; targets are judged by [`Routes::parse`].
    pub fn line_of(option: &str) -> Result<String, RouteError> {
        let accepted = "--route accepts default=IP:PORT, user:PREFIX=IP:PORT and domain:NAME=IP:PORT";
        let refused = || wrong(1, option, String::from(accepted));
        let (matched, targets) = option.split_once('=').ok_or_else(refused)?;
        match matched.split_once(':') {
            None if matched == "default" => Ok(format!("default {targets}")),
            Some((kind @ ("user" | "domain"), what)) => Ok(format!("{kind} {what} {targets}")),
            _ => Err(refused()),
        }
    }

    /// The canonical text: [`Routes::parse`] makes the same routes of it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Names the content (XXH3 of the canonical text).
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How targets are pinged, if they are.
    pub fn pings(&self) -> Option<Pings> {
        self.pings
    }

    /// Every target once, in order.
    pub fn targets(&self) -> &[Endpoint] {
        &self.targets
    }

    /// Whether any rule names this target.
    pub fn has_target(&self, target: Endpoint) -> bool {
        self.targets.binary_search(&target).is_ok()
    }

    /// Whether a target is on this host.
    pub fn has_host(&self, ip: [u8; 16]) -> bool {
        self.targets.binary_search_by(|target| target.ip.cmp(&ip)).is_ok()
    }

    /// The targets for a Request-URI, lowest priority number first; none if no rule fits.
    pub fn find(&self, uri: &Uri<'_>) -> Option<&[Target]> {
        let by_user = || user_of(uri).and_then(|user| self.by_prefix(&user));
        let by_domain = || {
            let host = std::str::from_utf8(uri.host()?.bytes()).ok()?;
            self.domains.get(&domain_form(host))
        };
        let default = || (!self.default.is_empty()).then_some(&self.default);
        by_user().or_else(by_domain).or_else(default).map(Vec::as_slice)
    }

    fn by_prefix(&self, user: &[u8]) -> Option<&Vec<Target>> {
        let longest = self.longest.min(user.len());
        (1..=longest).rev().find_map(|len| self.users.get(&user[..len]))
    }
}

/// The order in which targets are tried: by priority, drawn by weight among equals, those that are down last. `draw` is
/// a random number of the caller's.
pub fn order(targets: &[Target], draw: u64, is_down: impl Fn(Endpoint) -> bool) -> Vec<Endpoint> {
    let (down, up): (Vec<Target>, Vec<Target>) = targets.iter().partition(|target| is_down(target.to));
    let mut draws = draw;
    let mut order = Vec::with_capacity(targets.len());
    for choices in [up, down] {
        for equals in choices.chunk_by(|a, b| a.priority == b.priority) {
            draw_all(equals.to_vec(), &mut draws, &mut order);
        }
    }
    order
}

/// Draws one after the other, each by its share of the weight that is left.
fn draw_all(mut left: Vec<Target>, draws: &mut u64, order: &mut Vec<Endpoint>) {
    while !left.is_empty() {
        let total: u64 = left.iter().map(|target| u64::from(target.weight)).sum();
        let mut mark = next_draw(draws) % total.max(1);
        let drawn = left.iter().position(|target| {
            let weight = u64::from(target.weight);
            let hit = mark < weight;
            mark = mark.saturating_sub(weight);
            hit
        });
        order.push(left.remove(drawn.unwrap_or(0)).to);
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn next_draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// The part of a URI that a user prefix is compared with: of a telephone number without visual separators (RFC 3966
/// section 5.1.1), unescaped.
fn user_of<'a>(uri: &Uri<'a>) -> Option<Cow<'a, [u8]>> {
    match uri.scheme() {
        Scheme::Tel => {
            let number = uri.opaque().split(|b| *b == b';').next()?;
            Some(number.iter().copied().filter(|b| !b"-.()".contains(b)).collect())
        }
        _ => uri.user().map(unescaped),
    }
}

fn unescaped(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return Cow::Borrowed(text);
    }
    let digit = |at: usize| text.get(at).and_then(|b| char::from(*b).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}

/// Escapes what would not survive as part of a word of the file.
fn escaped(prefix: &[u8]) -> String {
    let mut out = String::with_capacity(prefix.len());
    for byte in prefix {
        if byte.is_ascii_alphanumeric() || b"-_.!~*'()&=+$,;?/".contains(byte) {
            out.push(char::from(*byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Domains are the same in any case and with or without the root's dot.
fn domain_form(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn without_comment(line: &str) -> &str {
    let starts = |(at, _): &(usize, &str)| *at == 0 || line[..*at].ends_with([' ', '\t']);
    line.match_indices('#').find(starts).map_or(line, |(at, _)| &line[..at]).trim()
}

fn wrong(line: usize, token: &str, accepted: String) -> RouteError {
    RouteError { line, token: token.chars().take(64).collect(), accepted }
}

/// The first word of a line and the rest.
fn first_word(line: &str) -> (&str, &str) {
    line.split_once([' ', '\t']).map_or((line, ""), |(word, rest)| (word, rest.trim()))
}

/// A route file being read.
#[derive(Default)]
struct Reader {
    routes: Routes,
    rules: usize,
    /// The line of each word that may be said once, and of each rule.
    said: BTreeMap<String, usize>,
    interval: Option<Nanos>,
    timeout: Option<(usize, Nanos)>,
    down_after: Option<u8>,
    up_after: Option<u8>,
}

impl Reader {
    fn line(&mut self, line: usize, text: &str) -> Result<(), RouteError> {
        let (word, rest) = first_word(text);
        match word {
            "" => return Ok(()),
            "user" | "domain" => {
                let (what, targets) = first_word(rest);
                self.once(line, &format!("{word} {what}"))?;
                self.rule(line, word, what, targets)?;
            }
            "default" => {
                self.once(line, word)?;
                self.routes.default = self.targets(line, rest)?;
            }
            _ => {
                self.once(line, word)?;
                self.setting(line, word, rest)?;
            }
        }
        Ok(())
    }

    /// Refuses what was said before.
    fn once(&mut self, line: usize, what: &str) -> Result<(), RouteError> {
        match self.said.insert(String::from(what), line) {
            Some(before) => {
                Err(wrong(line, what, format!("line {before} says so already: once is accepted")))
            }
            None => Ok(()),
        }
    }

    fn rule(&mut self, line: usize, kind: &str, what: &str, targets: &str) -> Result<(), RouteError> {
        if what.is_empty() || what.len() > MAX_MATCH {
            return Err(wrong(
                line,
                kind,
                format!("accepted is: {kind} NAME TARGETS, NAME of 1 to {MAX_MATCH} bytes"),
            ));
        }
        // One dot at the end means the root; more, or nothing before it, is no name.
        let rootless = |what: &str| matches!(domain_form(what).bytes().last(), None | Some(b'.'));
        if kind == "domain" && (Host::parse(what.as_bytes()).is_none() || rootless(what)) {
            return Err(wrong(
                line,
                what,
                String::from("a domain is a name or an IP address, without a port"),
            ));
        }
        let targets = self.targets(line, targets)?;
        let twice = |_| wrong(line, what, format!("another line means the same {kind}: one is accepted"));
        let before = if kind == "user" {
            let prefix = unescaped(what.as_bytes()).into_owned();
            self.routes.longest = self.routes.longest.max(prefix.len());
            self.routes.users.insert(prefix, targets)
        } else {
            self.routes.domains.insert(domain_form(what), targets)
        };
        before.map_or(Ok(()), |before| Err(twice(before)))
    }

    fn targets(&mut self, line: usize, text: &str) -> Result<Vec<Target>, RouteError> {
        self.rules += 1;
        if self.rules > MAX_RULES {
            return Err(wrong(line, text, format!("at most {MAX_RULES} rules are accepted")));
        }
        let mut targets: Vec<Target> = Vec::new();
        for written in text.split(',') {
            let target = target(line, written.trim())?;
            if targets.iter().any(|other| other.to == target.to) {
                return Err(wrong(line, written.trim(), String::from("a rule names a target once")));
            }
            targets.push(target);
        }
        if targets.len() > MAX_CHOICES {
            return Err(wrong(line, text, format!("at most {MAX_CHOICES} targets of a rule are accepted")));
        }
        targets.sort_unstable();
        Ok(targets)
    }

    fn setting(&mut self, line: usize, word: &str, value: &str) -> Result<(), RouteError> {
        match word {
            "ping" => self.interval = Some(time(line, value, 1_000..=3_600_000)?),
            "ping-timeout" => self.timeout = Some((line, time(line, value, 100..=60_000)?)),
            "down-after" => self.down_after = Some(number(line, value, 1..=100)? as u8),
            "up-after" => self.up_after = Some(number(line, value, 1..=100)? as u8),
            _ => {
                let known = "user, domain, default, ping, ping-timeout, down-after, up-after";
                return Err(wrong(line, word, format!("accepted at the start of a line: {known}")));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Routes, RouteError> {
        match (self.interval, self.timeout) {
            (None, _) => {
                for word in ["ping-timeout", "down-after", "up-after"] {
                    if let Some(line) = self.said.get(word) {
                        return Err(wrong(*line, word, String::from("accepted only with a line: ping TIME")));
                    }
                }
            }
            (Some(interval), Some((line, timeout))) if timeout > interval => {
                return Err(wrong(
                    line,
                    "ping-timeout",
                    String::from("at most the ping's interval is accepted"),
                ));
            }
            (Some(interval), timeout) => {
                let timeout = timeout.map_or(interval.min(Nanos::from_secs(2)), |(_, timeout)| timeout);
                let (down_after, up_after) = (self.down_after.unwrap_or(2), self.up_after.unwrap_or(1));
                self.routes.pings = Some(Pings { interval, timeout, down_after, up_after });
            }
        }
        let mut routes = self.routes;
        let named = routes.users.values().chain(routes.domains.values()).flatten().chain(&routes.default);
        routes.targets = named.map(|target| target.to).collect();
        routes.targets.sort_unstable();
        routes.targets.dedup();
        routes.text = canonical(&routes);
        routes.hash = xxh3_64(routes.text.as_bytes());
        let too_much = |what: String| Err(wrong(1, "", what));
        match (routes.targets.len(), routes.text.len()) {
            (targets, _) if targets > MAX_TARGETS => {
                too_much(format!("{targets} different targets: at most {MAX_TARGETS} are accepted"))
            }
            (_, bytes) if bytes > MAX_TEXT => {
                too_much(format!("{bytes} bytes in canonical form: at most {MAX_TEXT} are accepted"))
            }
            _ => Ok(routes),
        }
    }
}

fn target(line: usize, text: &str) -> Result<Target, RouteError> {
    let mut parts = text.split(';').map(str::trim);
    let to = address(line, parts.next().unwrap_or_default())?;
    let mut target = Target { priority: 0, to, weight: 1 };
    for part in parts {
        match part.split_once('=') {
            Some(("weight", value)) => target.weight = number(line, value, 1..=65_535)? as u16,
            Some(("priority", value)) => target.priority = number(line, value, 0..=65_535)? as u16,
            _ => return Err(wrong(line, part, String::from("accepted are ;weight=N and ;priority=N"))),
        }
    }
    Ok(target)
}

fn address(line: usize, text: &str) -> Result<Endpoint, RouteError> {
    let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    let read = text
        .parse::<SocketAddr>()
        .or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, SIP_PORT)));
    let accepted = "a target is IP:PORT or [IPV6]:PORT";
    let Ok(addr) = read else {
        let is_name = text.contains(|c: char| c.is_ascii_alphabetic()) && !text.starts_with('[');
        let why = if is_name { "no names, as none is looked up while packets wait: " } else { "" };
        return Err(wrong(line, text, format!("{why}{accepted}")));
    };
    let scoped = matches!(addr, SocketAddr::V6(v6) if v6.scope_id() != 0);
    let ip = addr.ip().to_canonical();
    let nobody =
        ip.is_unspecified() || ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if scoped || nobody || addr.port() == 0 {
        return Err(wrong(
            line,
            text,
            format!("{accepted} of one host, without a zone, PORT from 1 to 65535"),
        ));
    }
    Ok(Endpoint::from(addr))
}

fn number(line: usize, text: &str, range: RangeInclusive<u32>) -> Result<u32, RouteError> {
    let number = text.parse::<u32>().ok().filter(|number| range.contains(number));
    let accepted = || format!("a whole number from {} to {} is accepted", range.start(), range.end());
    number.ok_or_else(|| wrong(line, text, accepted()))
}

/// Units of time in ms, largest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a time; `range` is in ms.
fn time(line: usize, text: &str, range: RangeInclusive<u64>) -> Result<Nanos, RouteError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
    let read = count.parse::<u64>().ok().zip(scale).and_then(|(count, scale)| count.checked_mul(scale));
    let accepted = || {
        let (from, to) = (time_text(*range.start()), time_text(*range.end()));
        format!("a time from {from} to {to} is accepted, in h, m, s or ms")
    };
    read.filter(|ms| range.contains(ms)).map(Nanos::from_millis).ok_or_else(|| wrong(line, text, accepted()))
}

fn time_text(ms: u64) -> String {
    let (unit, scale) = UNITS.iter().find(|(_, scale)| ms.is_multiple_of(*scale)).unwrap_or(&("ms", 1));
    format!("{}{unit}", ms / scale)
}

/// The text that all files of this meaning have.
fn canonical(routes: &Routes) -> String {
    let mut text = String::new();
    for (prefix, targets) in &routes.users {
        let _ = writeln!(text, "user {} {}", escaped(prefix), choices(targets));
    }
    for (name, targets) in &routes.domains {
        let _ = writeln!(text, "domain {name} {}", choices(targets));
    }
    if !routes.default.is_empty() {
        let _ = writeln!(text, "default {}", choices(&routes.default));
    }
    if let Some(Pings { interval, timeout, down_after, up_after }) = routes.pings {
        let ms = |time: Nanos| time_text(time.0 / 1_000_000);
        let _ = writeln!(text, "ping {}\nping-timeout {}", ms(interval), ms(timeout));
        let _ = writeln!(text, "down-after {down_after}\nup-after {up_after}");
    }
    text
}

fn choices(targets: &[Target]) -> String {
    let mut text = String::new();
    for (index, target) in targets.iter().enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        let _ = write!(text, "{comma}{}", SocketAddr::from(target.to));
        if target.weight != 1 {
            let _ = write!(text, ";weight={}", target.weight);
        }
        if target.priority != 0 {
            let _ = write!(text, ";priority={}", target.priority);
        }
    }
    text
}

/// Parsed route files that are in use: the slots of a shard share one copy of each.
#[derive(Debug, Default)]
pub struct RouteCache {
    known: RefCell<Vec<Weak<Routes>>>,
}

impl Clone for RouteCache {
    /// A cache of its own: caches are not shared between threads.
    fn clone(&self) -> RouteCache {
        RouteCache::default()
    }
}

impl RouteCache {
    /// The routes that `text` means.
    ///
    /// # Errors
    /// As [`Routes::parse`].
    pub fn get(&self, text: &str) -> Result<Arc<Routes>, RouteError> {
        let same = |text: &str| {
            let known = self.known.borrow();
            known.iter().filter_map(Weak::upgrade).find(|routes| routes.text == text)
        };
        if let Some(routes) = same(text) {
            return Ok(routes);
        }
        let parsed = Routes::parse(text)?;
        if let Some(routes) = same(&parsed.text) {
            return Ok(routes);
        }
        let routes = Arc::new(parsed);
        let mut known = self.known.borrow_mut();
        known.retain(|routes| routes.strong_count() > 0);
        known.push(Arc::downgrade(&routes));
        Ok(routes)
    }
}

#[cfg(test)]
mod tests;
