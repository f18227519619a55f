//! How settings are written: numbers, times, sizes, nodes, key rules. Each type is read by one function and
//! shown in one canonical form, so that two nodes that mean the same also say the same.

use crate::types::{HostId, Nanos, NodeId, NodeSet};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{SocketAddr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

/// Why a value was refused, in a few words; the setting's `accepts` follows it in the message.
pub(super) type Why = String;

/// A value's canonical form.
pub trait Show {
    /// As it would be written in an environment variable.
    fn show(&self) -> String;
}

macro_rules! show_by_display {
    ($($type:ty),*) => { $(impl Show for $type { fn show(&self) -> String { self.to_string() } })* };
}
show_by_display!(u16, u32, u64, usize, String, SocketAddrV4);

/// Reads a whole number within `range`.
pub(super) fn number<T>(text: &str, range: RangeInclusive<u64>) -> Result<T, Why>
where
    T: TryFrom<u64>,
{
    let number: u64 = text.parse().map_err(|_| Why::from("not a whole number"))?;
    if !range.contains(&number) {
        return Err(format!("not from {} to {}", range.start(), range.end()));
    }
    T::try_from(number).map_err(|_| Why::from("too large"))
}

impl Show for NodeId {
    fn show(&self) -> String {
        self.0.to_string()
    }
}

/// Units of time, largest first.
const TIME_UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads a time such as `250us`, `1ms` or `3s` within `range`.
pub(super) fn time(text: &str, range: RangeInclusive<Nanos>) -> Result<Nanos, Why> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (count, unit) = text.split_at(digits);
    let count: u64 = count.parse().map_err(|_| Why::from("not a whole number and a unit"))?;
    let (_, scale) =
        TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or("its unit is none of ns, us, ms, s, m, h")?;
    let time = Nanos(count.checked_mul(*scale).ok_or("too long")?);
    if !range.contains(&time) {
        return Err(format!("not from {} to {}", range.start().show(), range.end().show()));
    }
    Ok(time)
}

impl Show for Nanos {
    fn show(&self) -> String {
        match TIME_UNITS.iter().find(|(_, scale)| self.0 != 0 && self.0.is_multiple_of(*scale)) {
            Some((unit, scale)) => format!("{}{unit}", self.0 / scale),
            None => format!("{}ns", self.0),
        }
    }
}

/// A number of bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct ByteSize(pub usize);

const SIZE_UNITS: [(&str, usize); 4] = [("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10), ("", 1)];

/// Reads a size such as `8M`, `64K` or `1400` within `range`.
pub(super) fn size(text: &str, range: RangeInclusive<usize>) -> Result<ByteSize, Why> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (count, unit) = text.split_at(digits);
    let count: usize = count.parse().map_err(|_| Why::from("not a whole number of bytes, K, M or G"))?;
    let (_, scale) =
        SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or("its unit is none of K, M, G")?;
    let size = count.checked_mul(*scale).ok_or("too large")?;
    if !range.contains(&size) {
        let (low, high) = (ByteSize(*range.start()).show(), ByteSize(*range.end()).show());
        return Err(format!("not from {low} to {high}"));
    }
    Ok(ByteSize(size))
}

impl Show for ByteSize {
    fn show(&self) -> String {
        let whole = |scale: usize| self.0 != 0 && self.0.is_multiple_of(scale);
        let (unit, scale) = SIZE_UNITS.iter().find(|(_, scale)| whole(*scale)).unwrap_or(&("", 1));
        format!("{}{unit}", self.0 / scale)
    }
}

/// One node as the settings name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its host's name: nodes with the same name die together.
    pub host: String,
    /// Where its control socket listens. Shard n listens at this port + 1 + n.
    pub address: SocketAddr,
}

/// The nodes of the cluster, ordered by id, at least one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nodes(Vec<Node>);

impl Nodes {
    /// Every node, lowest id first.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.0.iter()
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The node with this id.
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.0.iter().find(|node| node.id == id)
    }

    /// Their ids.
    pub fn ids(&self) -> NodeSet {
        let mut ids = NodeSet::EMPTY;
        self.0.iter().for_each(|node| ids.insert(node.id));
        ids
    }

    /// The names of their hosts, each once, in order of the lowest node there; a [`HostId`] is an index here.
    pub fn hosts(&self) -> Vec<&str> {
        let mut hosts: Vec<&str> = Vec::new();
        for node in &self.0 {
            if !hosts.contains(&node.host.as_str()) {
                hosts.push(&node.host);
            }
        }
        hosts
    }

    /// The host a node runs on.
    pub fn host_of(&self, id: NodeId) -> Option<HostId> {
        let name = &self.get(id)?.host;
        self.hosts().iter().position(|host| host == name).map(|index| HostId(index as u16))
    }
}

impl FromStr for Nodes {
    type Err = Why;

    fn from_str(text: &str) -> Result<Nodes, Why> {
        let mut nodes: Vec<Node> = Vec::new();
        for item in text.split(',').map(str::trim) {
            let node = node(item).map_err(|why| format!("\"{item}\" {why}"))?;
            if nodes.iter().any(|other| other.id == node.id) {
                return Err(format!("node {} is there twice", node.id.0));
            }
            nodes.push(node);
        }
        nodes.sort_by_key(|node| node.id);
        Ok(Nodes(nodes))
    }
}

fn node(item: &str) -> Result<Node, Why> {
    let (id, rest) = item.split_once('@').ok_or("has no @ after its id")?;
    let (host, address) = rest.split_once('=').ok_or("has no = after its host")?;
    let id = number(id, 1..=62).map_err(|why| format!("has an id that is {why}"))?;
    if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        return Err("has a host name with other characters than letters, digits, - . _".into());
    }
    let address: SocketAddr = address.parse().map_err(|_| "does not end in IP:PORT")?;
    if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
        return Err("has an address that nobody can send to".into());
    }
    Ok(Node { id: NodeId(id), host: host.into(), address })
}

impl Show for Nodes {
    fn show(&self) -> String {
        let mut text = String::new();
        for Node { id, host, address } in &self.0 {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{}@{host}={address}", id.0);
        }
        text
    }
}

/// Reads the service endpoints: IP:PORT, comma between them, at least one, each once.
pub(super) fn endpoints(text: &str) -> Result<Vec<SocketAddr>, Why> {
    let mut seen = BTreeSet::new();
    let mut endpoints = Vec::new();
    for item in text.split(',').map(str::trim) {
        let address: SocketAddr = item.parse().map_err(|_| format!("\"{item}\" is not IP:PORT"))?;
        if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
            return Err(format!("\"{item}\" is not an address that clients can send to"));
        }
        if !seen.insert(address) {
            return Err(format!("\"{item}\" is there twice"));
        }
        endpoints.push(address);
    }
    Ok(endpoints)
}

/// Reads node ids: comma between them, each once; nothing is none.
pub(super) fn ids(text: &str) -> Result<Vec<NodeId>, Why> {
    let mut ids = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let id = NodeId(number(item, 1..=62).map_err(|why| format!("\"{item}\" is {why}"))?);
        if ids.contains(&id) {
            return Err(format!("node {} is there twice", id.0));
        }
        ids.push(id);
    }
    ids.sort_unstable();
    Ok(ids)
}

impl Show for Vec<NodeId> {
    fn show(&self) -> String {
        self.iter().map(|id| id.0.to_string()).collect::<Vec<_>>().join(",")
    }
}

impl Show for Vec<SocketAddr> {
    fn show(&self) -> String {
        self.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
    }
}

/// The largest UDP payload over IPv4, in bytes.
const MAX_PAYLOAD: u64 = 65_507;

/// What names the call of a datagram where the application does not say.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum KeyRule {
    /// `auto`: SIP by Call-ID, RTP by SSRC, RTCP with the RTP stream it is about, all else (and SIP
    /// without a Call-ID) by source address and port.
    Auto,
    /// `sip`: the Call-ID; other datagrams have no call.
    Sip,
    /// `rtp`: the SSRC, of RTCP the SSRC of the stream it is about; other datagrams have no call.
    Rtp,
    /// `source`: the source address and port.
    Source,
    /// `bytes:OFF:LEN`: LEN bytes of the payload from OFF; a shorter datagram has no call.
    Bytes {
        /// Bytes before the key.
        offset: u16,
        /// Length of the key in bytes, at least 1.
        len: u16,
    },
}

impl FromStr for KeyRule {
    type Err = Why;

    fn from_str(text: &str) -> Result<KeyRule, Why> {
        match text {
            "auto" => return Ok(KeyRule::Auto),
            "sip" => return Ok(KeyRule::Sip),
            "rtp" => return Ok(KeyRule::Rtp),
            "source" => return Ok(KeyRule::Source),
            _ => {}
        }
        let place = text.strip_prefix("bytes:").ok_or("not a rule")?;
        let (offset, len) = place.split_once(':').ok_or("no :LEN after bytes:OFF")?;
        let offset: u16 = number(offset, 0..=MAX_PAYLOAD - 1).map_err(|why| format!("OFF is {why}"))?;
        let room = MAX_PAYLOAD - u64::from(offset);
        let len = number(len, 1..=room).map_err(|why| format!("LEN is {why}"))?;
        Ok(KeyRule::Bytes { offset, len })
    }
}

impl Show for KeyRule {
    fn show(&self) -> String {
        match self {
            KeyRule::Auto => "auto".into(),
            KeyRule::Sip => "sip".into(),
            KeyRule::Rtp => "rtp".into(),
            KeyRule::Source => "source".into(),
            KeyRule::Bytes { offset, len } => format!("bytes:{offset}:{len}"),
        }
    }
}

/// Makes a plain enum whose values are written as words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Copy, Clone, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$word_doc])* $variant,)* }

        impl FromStr for $name {
            type Err = Why;
            fn from_str(text: &str) -> Result<$name, Why> {
                match text { $($word => Ok($name::$variant),)* _ => Err("not one of the words".into()) }
            }
        }

        impl Show for $name {
            fn show(&self) -> String {
                match self { $($name::$variant => $word.into(),)* }
            }
        }
    };
}

pub(super) use words;

words! {
    /// Which call application the cluster runs.
    App {
        /// Answers each datagram with its bytes and what is needed to check continuity.
        Echo = "echo",
        /// Proxies SIP calls and relays their media.
        Sip = "sip",
    }
}

words! {
    /// How entries go from the owner to the members.
    Fanout {
        /// One datagram a member.
        Unicast = "unicast",
        /// One IP multicast datagram a member set.
        Multicast = "multicast",
    }
}

words! {
    /// Who puts the service addresses on this machine.
    Vip {
        /// This node: on its interface, with an announcement.
        Auto = "auto",
        /// Somebody else: they are routed here.
        Manual = "manual",
    }
}

words! {
    /// What follows when a node's engine has ended unasked.
    Restart {
        /// The supervisor starts it again.
        Auto = "auto",
        /// The node ends.
        Never = "never",
    }
}

words! {
    /// Whose outputs go out.
    Masters {
        /// Each member's, of an equal share of the slots.
        Spread = "spread",
        /// Those of the owner's own member.
        Owner = "owner",
    }
}

words! {
    /// What happens to slots of which every holder of a commit set has died.
    Lossy {
        /// They go on with the best log left.
        Go = "go",
        /// They stand still until one of the holders is back.
        Stop = "stop",
    }
}

words! {
    /// Whether something that needs a privilege is used.
    Auto {
        /// Where the kernel allows it.
        Auto = "auto",
        /// Never.
        Off = "off",
    }
}

/// Which cores the shards are pinned to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pin {
    /// Shard n to the n-th core the process may use, if it may use at least as many as there are shards.
    Auto,
    /// To none.
    Off,
    /// Shard n to the n-th of these, and round again.
    Cores(Vec<usize>),
}

impl FromStr for Pin {
    type Err = Why;

    fn from_str(text: &str) -> Result<Pin, Why> {
        match text {
            "auto" => Ok(Pin::Auto),
            "off" => Ok(Pin::Off),
            _ => text
                .split(',')
                .map(|core| number(core.trim(), 0..=1023))
                .collect::<Result<_, _>>()
                .map(Pin::Cores),
        }
    }
}

impl Show for Pin {
    fn show(&self) -> String {
        match self {
            Pin::Auto => "auto".into(),
            Pin::Off => "off".into(),
            Pin::Cores(cores) => cores.iter().map(usize::to_string).collect::<Vec<_>>().join(","),
        }
    }
}

/// Reads a folder's or file's name; an absolute one, as a service has no home to start from.
pub(super) fn path(text: &str) -> Result<PathBuf, Why> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("not an absolute path".into()) }
}

/// As [`path`]; nothing is none.
pub(super) fn optional_path(text: &str) -> Result<Option<PathBuf>, Why> {
    if text.is_empty() { Ok(None) } else { path(text).map(Some) }
}

impl Show for PathBuf {
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Show for Option<PathBuf> {
    fn show(&self) -> String {
        self.as_ref().map(PathBuf::show).unwrap_or_default()
    }
}

/// Neighbouring UDP ports, or none.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last, included; not before the first.
    pub last: u16,
}

impl PortRange {
    /// No ports.
    const OFF: PortRange = PortRange { first: 0, last: 0 };

    /// Whether there are none.
    pub fn is_off(&self) -> bool {
        *self == PortRange::OFF
    }
}

impl FromStr for PortRange {
    type Err = Why;

    fn from_str(text: &str) -> Result<PortRange, Why> {
        if text == "off" {
            return Ok(PortRange::OFF);
        }
        let (first, last) = text.split_once('-').ok_or("no - between the first port and the last")?;
        let port = |text: &str| number(text, 1024..=65_535).map_err(|why| format!("\"{text}\" is {why}"));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            Err("the last port comes before the first".into())
        } else {
            Ok(PortRange { first, last })
        }
    }
}

impl Show for PortRange {
    fn show(&self) -> String {
        if self.is_off() { "off".into() } else { format!("{}-{}", self.first, self.last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_and_sizes() {
        let any = Nanos::ZERO..=Nanos::MAX;
        for (text, nanos) in [("250us", 250_000), ("1ms", 1_000_000), ("3s", 3_000_000_000), ("0ms", 0)] {
            assert_eq!(time(text, any.clone()), Ok(Nanos(nanos)));
        }
        assert_eq!(Nanos(1_500_000).show(), "1500us");
        assert_eq!(Nanos::from_secs(300).show(), "5m");
        for bad in
            ["", "5", "ms", "1.5ms", "-1ms", "1 ms", "1MS", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(time(bad, any.clone()).is_err(), "{bad}");
        }
        assert!(time("2s", Nanos::ZERO..=Nanos::from_secs(1)).unwrap_err().contains("1s"));
        assert_eq!(size("8M", 0..=usize::MAX), Ok(ByteSize(8 << 20)));
        assert_eq!(ByteSize(1400).show(), "1400");
        for bad in ["", "M", "8MB", "8m", "-1", "99999999999999999999", "18446744073709551615G"] {
            assert!(size(bad, 0..=usize::MAX).is_err(), "{bad}");
        }
        assert!(size("1", 2..=4096).unwrap_err().contains("2 to 4K"));
    }

    #[test]
    fn nodes() {
        let nodes: Nodes = "3@b=10.0.0.3:7100, 1@a=10.0.0.1:7100,2@b=[fd00::2]:7200".parse().unwrap();
        assert_eq!(nodes.show(), "1@a=10.0.0.1:7100,2@b=[fd00::2]:7200,3@b=10.0.0.3:7100");
        assert_eq!(nodes.hosts(), ["a", "b"]);
        assert_eq!(nodes.host_of(NodeId(3)), Some(HostId(1)));
        assert_eq!(nodes.ids(), NodeSet(0b1110));
        for (bad, part) in [
            ("", "no @"),
            ("1", "no @"),
            ("1@a", "no ="),
            ("1@a=10.0.0.1", "IP:PORT"),
            ("1@a=hosta:7100", "IP:PORT"),
            ("0@a=10.0.0.1:1", "id"),
            ("63@a=10.0.0.1:1", "id"),
            ("1@=10.0.0.1:1", "host name"),
            ("1@a b=10.0.0.1:1", "host name"),
            ("1@a=0.0.0.0:1", "nobody can send to"),
            ("1@a=10.0.0.1:0", "nobody can send to"),
            ("1@a=10.0.0.1:1,1@b=10.0.0.2:1", "twice"),
        ] {
            let why = bad.parse::<Nodes>().unwrap_err();
            assert!(why.contains(part), "{bad}: {why}");
        }
    }

    #[test]
    fn rules_and_words() {
        for text in ["auto", "sip", "rtp", "source", "bytes:12:4", "bytes:0:65507", "bytes:65506:1"] {
            assert_eq!(text.parse::<KeyRule>().unwrap().show(), text);
        }
        for bad in [
            "",
            "bytes",
            "bytes:",
            "bytes:1",
            "bytes:1:0",
            "bytes:1:65507",
            "bytes:65507:1",
            "bytes:-1:2",
            "bytes:x:1",
            "bytes:1:2:3",
            "Auto",
            "AUTO",
        ] {
            assert!(bad.parse::<KeyRule>().is_err(), "{bad}");
        }
        for text in ["auto", "off", "0,2,4"] {
            assert_eq!(text.parse::<Pin>().unwrap().show(), text);
        }
        assert!("".parse::<Pin>().is_err() && "1,x".parse::<Pin>().is_err());
        assert!("broadcast".parse::<Fanout>().is_err());
        assert!(endpoints("127.0.0.1:5060,127.0.0.1:5060").unwrap_err().contains("twice"));
        assert!(path("relative/path").is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(nanos: u64, bytes: usize) {
            prop_assert_eq!(time(&Nanos(nanos).show(), Nanos::ZERO..=Nanos::MAX), Ok(Nanos(nanos)));
            prop_assert_eq!(size(&ByteSize(bytes).show(), 0..=usize::MAX), Ok(ByteSize(bytes)));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-z:,@=.\\[\\] \u{e9}]{0,40}") {
            let _ = (time(&text, Nanos::ZERO..=Nanos::MAX), size(&text, 0..=9), endpoints(&text));
            let _ = (text.parse::<Nodes>(), text.parse::<KeyRule>(), text.parse::<Pin>());
        }
    }
}
