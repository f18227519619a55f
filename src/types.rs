//! Floor 1: the words every other floor uses, as types.
//!
//! Nothing here reads a clock or does I/O. Units are in the names: [`Nanos`] counts nanoseconds, a
//! [`Position`] counts entries of one slot's log, an [`Ordinal`] counts outputs of one slot.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Add, Sub};

/// Nanoseconds, either since an arbitrary start (monotonic) or since 1970 (wall and logical time).
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Zero nanoseconds.
    pub const ZERO: Nanos = Nanos(0);
    /// Later than every other time; used for "never".
    pub const MAX: Nanos = Nanos(u64::MAX);

    /// `n` microseconds.
    pub const fn from_micros(n: u64) -> Nanos {
        Nanos(n.saturating_mul(1_000))
    }

    /// `n` milliseconds.
    pub const fn from_millis(n: u64) -> Nanos {
        Nanos(n.saturating_mul(1_000_000))
    }

    /// `n` seconds.
    pub const fn from_secs(n: u64) -> Nanos {
        Nanos(n.saturating_mul(1_000_000_000))
    }

    /// Whole microseconds, rounded down.
    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }

    /// Milliseconds with their fraction.
    pub fn as_millis_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// The time from `earlier` to `self`, zero if `earlier` is later.
    pub const fn since(self, earlier: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Nanos {
    type Output = Nanos;
    fn add(self, other: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(other.0))
    }
}

impl Sub for Nanos {
    type Output = Nanos;
    fn sub(self, other: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(other.0))
    }
}

impl fmt::Debug for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}ms", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// One reading of the clocks, taken once per loop turn by the driver and handed to the core.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, counting suspended time too (CLOCK_BOOTTIME): for every delay and timeout.
    pub mono: Nanos,
    /// Wall time since 1970: only ever the hint that an owner slews its logical time towards.
    pub wall: Nanos,
}

/// A node of the cluster, 1 to [`NodeId::MAX`].
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct NodeId(pub u16);

impl NodeId {
    /// The highest id a node can have; a [`NodeSet`] holds one bit for each.
    pub const MAX: u16 = 63;
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A set of nodes.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default, Hash, Serialize, Deserialize)]
pub struct NodeSet(pub u64);

impl NodeSet {
    /// The empty set.
    pub const EMPTY: NodeSet = NodeSet(0);

    /// Whether `node` is in the set.
    pub fn contains(self, node: NodeId) -> bool {
        node.0 <= NodeId::MAX && self.0 >> node.0 & 1 == 1
    }

    /// Adds `node`; ids past [`NodeId::MAX`] are ignored.
    pub fn insert(&mut self, node: NodeId) {
        if node.0 <= NodeId::MAX {
            self.0 |= 1 << node.0;
        }
    }

    /// Takes `node` out.
    pub fn remove(&mut self, node: NodeId) {
        if node.0 <= NodeId::MAX {
            self.0 &= !(1 << node.0);
        }
    }

    /// The nodes in the set, lowest id first.
    pub fn iter(self) -> impl Iterator<Item = NodeId> {
        (0..=NodeId::MAX).map(NodeId).filter(move |n| self.contains(*n))
    }
}

/// A physical machine, as an index into the cluster map's host names.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct HostId(pub u16);

/// One replicated log: hash(call id) mod SLOTS.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u16);

/// Grows by one each time a service address changes owner. 0: none yet.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Term(pub u32);

/// The place of an entry in its slot's log; the first is 1, 0 means "none yet".
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position(pub u64);

impl Position {
    /// The next position.
    pub const fn next(self) -> Position {
        Position(self.0 + 1)
    }

    /// The position before this one, 0 stays 0.
    pub const fn prev(self) -> Position {
        Position(self.0.saturating_sub(1))
    }
}

/// How many outputs a slot has produced before this one since its first entry. A cursor
/// (position, index) names one output; its ordinal is the same name as one growing number.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ordinal(pub u64);

/// The name of one output: the entry that caused it and its place among that entry's outputs.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Cursor {
    /// The entry's position.
    pub position: Position,
    /// 0 for the entry's first output.
    pub index: u16,
}

/// One life of a node's engine; never used twice by a node, and a later life has a higher one.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Boot(pub u64);

/// A member's identity: state is only ever trusted from the same incarnation that acked it.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub struct Incarnation {
    /// The node.
    pub node: NodeId,
    /// Its life.
    pub boot: Boot,
    /// Which time it joined the slot in that life (the map version that made it a member).
    pub join: u32,
}

/// The identity of a call: a 128-bit hash of its call id under the cluster's hash seed.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CallKey(pub u128);

impl CallKey {
    /// The slot this call belongs to.
    pub fn slot(self, slots: u16) -> Slot {
        debug_assert!(slots > 0);
        Slot((self.0 % u128::from(slots)) as u16)
    }

    /// The call that stands for a slot itself: it takes the notices of the cluster ([`LocalId::NOTICE`]). No call id
    /// hashes to it but by a chance of 2^-112.
    pub const fn keeper(slot: Slot) -> CallKey {
        CallKey(slot.0 as u128)
    }
}

/// Where a client's datagram came to, or an output leaves from, on this side.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LocalId {
    /// An index into the cluster's list of service endpoints (IP:PORT that clients talk to).
    pub endpoint: u16,
    /// A media port on that endpoint's address; 0: the endpoint's own port.
    pub port: u16,
}

impl LocalId {
    /// Of an entry: no client sent it but the cluster itself, to the keeper of its slot ([`CallKey::keeper`]). Of an
    /// output: it is for the keepers of all slots that the releasing node owns.
    pub const NOTICE: LocalId = LocalId { endpoint: u16::MAX, port: 0 };
    /// Of an output: it is no datagram but a line for the file of call records, written where it is released.
    pub const RECORD: LocalId = LocalId { endpoint: u16::MAX - 1, port: 0 };

    /// Service endpoint `endpoint` itself.
    pub const fn endpoint(endpoint: u16) -> LocalId {
        LocalId { endpoint, port: 0 }
    }

    /// Media port `port` on the address of service endpoint `endpoint`.
    pub const fn media(endpoint: u16, port: u16) -> LocalId {
        LocalId { endpoint, port }
    }
}

/// A client's address in the fixed form the log carries: an IPv4 address is kept as IPv4-mapped IPv6.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Endpoint {
    /// The 16 address bytes in network order.
    pub ip: [u8; 16],
    /// The UDP port.
    pub port: u16,
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Endpoint {
        let ip = match addr.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        Endpoint { ip, port: addr.port() }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> SocketAddr {
        let v6 = Ipv6Addr::from(endpoint.ip);
        let ip = v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), |v4: Ipv4Addr| IpAddr::V4(v4));
        SocketAddr::new(ip, endpoint.port)
    }
}
