//! Floor 2: the settings of a node, from the environment (`TANDEM_*`) and from flags of the same names.
//!
//! [`TABLE`] is the one list. [`resolve`] reads flags and variables into [`Settings`], checked one by one and
//! against each other; [`ClusterWide`] is what nodes compare before they work together.

mod cluster_wide;
mod media;
mod resolve;
mod routes;
mod table;
mod values;

pub use cluster_wide::ClusterWide;
pub use media::{Ice, MediaSteer};
pub use resolve::{BadSettings, Resolved, SettingError, Source, Value, resolve, resolve_from_environment};
pub use routes::Route;
pub use table::{Scope, Setting, Settings, TABLE};
pub use values::{
    App, Auto, ByteSize, Fanout, KeyRule, Lossy, Masters, Node, Nodes, Pin, PortRange, Restart, Show, Vip,
};

use crate::types::NodeId;
use crate::wire::seal::ClusterKey;
use std::net::SocketAddr;

impl Settings {
    /// Settings from (name without `TANDEM_`, value) pairs and defaults, looking at no environment.
    pub fn from_pairs(pairs: &[(&str, &str)]) -> Result<Settings, BadSettings> {
        let flags: Vec<(String, String)> =
            pairs.iter().map(|(name, value)| (String::from(*name), String::from(*value))).collect();
        resolve(&flags, []).settings
    }

    /// This node as the cluster knows it.
    pub fn me(&self) -> &Node {
        self.nodes.get(self.node).expect("checked: NODE is one of NODES")
    }

    /// Every node but this one.
    pub fn peers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.id != self.node)
    }

    /// Where a node's control socket listens.
    pub fn control_address(&self, node: NodeId) -> Option<SocketAddr> {
        self.nodes.get(node).map(|node| node.address)
    }

    /// Where shard `shard` of a node listens.
    pub fn shard_address(&self, node: NodeId, shard: u16) -> Option<SocketAddr> {
        let mut address = self.nodes.get(node)?.address;
        address.set_port(address.port().checked_add(1)?.checked_add(shard)?);
        Some(address)
    }

    /// The key that datagrams between nodes are sealed with: the cluster key, or the well-known one of
    /// clusters that run on loopback only.
    pub fn sealing_key(&self) -> ClusterKey {
        self.cluster_key.clone().unwrap_or_else(ClusterKey::loopback)
    }

    /// The seed of the hash that names calls; the same on all nodes that agree.
    pub fn hash_seed(&self) -> u64 {
        self.sealing_key()
            .hash_seed(format!("{} {} {}", self.cluster, self.slots, self.key.show()).as_bytes())
    }

    /// The most bytes a UDP payload between these nodes may have: the MTU less IP and UDP headers.
    pub fn max_datagram(&self) -> usize {
        let ip_header = if self.nodes.iter().any(|node| node.address.is_ipv6()) { 40 } else { 20 };
        usize::from(self.mtu) - ip_header - 8
    }

    /// What all nodes must agree on.
    pub fn cluster_wide(&self) -> ClusterWide {
        ClusterWide::of(self)
    }
}
