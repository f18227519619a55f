//! The nodes of a world, where they stand, who votes, and who holds what at first.

use crate::proto::map::{ClusterMap, MapNode, MapShape};
use crate::sim::rng::Rng;
use crate::types::{Boot, HostId, LocalId, NodeId, NodeSet, Slot};

/// The node that holds the service addresses at first.
pub const OWNER: NodeId = NodeId(1);

/// The service endpoint with this number.
pub fn local(number: u16) -> LocalId {
    LocalId::endpoint(number)
}

/// The number of a service endpoint.
pub fn number(local: LocalId) -> u16 {
    local.endpoint
}

/// The nodes, where they stand, and who holds what.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Host of each node; node ids count from 1.
    pub hosts: Vec<u16>,
    /// Shards of each node.
    pub shards: u16,
    /// Members of each slot in the first map, the first in line for mastership first.
    pub members: Vec<Vec<NodeId>>,
    /// What all maps of the core have in common.
    pub shape: MapShape,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Only appears once the cluster has formed: it grows.
    pub late: Option<NodeId>,
}

impl Layout {
    /// A layout whose owner never dies.
    pub fn draw(rng: &mut Rng) -> Layout {
        let nodes = rng.range(3, 5);
        let hosts: Vec<u16> = match rng.range(0, 2) {
            0 => (0..nodes).map(|n| n as u16).collect(),
            // Several nodes a host, on two hosts; both are used.
            1 => (0..nodes).map(|n| if n < 2 { n as u16 } else { rng.range(0, 1) as u16 }).collect(),
            _ => (0..nodes).map(|n| if n < 2 { n as u16 } else { rng.range(0, nodes - 1) as u16 }).collect(),
        };
        let copies = rng.pick(&[1, 2, 2, 3, 3, 3, 3, 3, 5]);
        let (slots, shards) = (rng.range(1, 8) as u16, rng.range(1, 2) as u16);
        Layout::new(&hosts, (slots, shards), copies, vec![0, 0], false)
    }

    /// A layout in which anybody may die: three to five hosts, or two with one or two nodes each and a witness.
    pub fn draw_live(rng: &mut Rng) -> Layout {
        let (slots, shards) = (rng.range(1, 6) as u16, rng.pick(&[1, 1, 2]));
        let endpoints = rng.pick(&[&[0, 0][..], &[0, 1], &[0, 1], &[0, 0, 1], &[0, 1, 2]]).to_vec();
        let copies = rng.pick(&[2, 3, 3, 3, 3]);
        let two = |rng: &mut Rng| rng.pick(&[&[0, 1][..], &[0, 1, 0], &[0, 1, 0, 1]]).to_vec();
        let (hosts, witness) = match rng.range(0, 9) {
            0..=2 => ([two(rng), vec![2]].concat(), true),
            3..=6 => (vec![0, 1, 2], false),
            7 => (vec![0, 1, 2, 0], false),
            8 => (vec![0, 1, 2, 3], false),
            _ => (vec![0, 1, 2, 3, 4], false),
        };
        let mut layout = Layout::new(&hosts, (slots, shards), copies, endpoints, witness);
        if hosts.len() > 3 && !witness && rng.chance(120) {
            layout.late = Some(NodeId(hosts.len() as u16));
            layout.voters.truncate(3);
        }
        layout
    }

    /// The layout in which the core's map puts `copies` members of each slot on nodes that stand on `hosts`.
    /// `witness`: the last node only votes.
    pub fn new(
        hosts: &[u16],
        (slots, shards): (u16, u16),
        copies: usize,
        endpoints: Vec<u16>,
        witness: bool,
    ) -> Layout {
        let last = hosts.len();
        let node = |(at, host): (usize, &u16)| MapNode {
            witness: witness && at + 1 == last,
            ..MapNode::new(NodeId(at as u16 + 1), HostId(*host))
        };
        let nodes = hosts.iter().enumerate().map(node).collect();
        let shape = match MapShape::new((slots, shards), nodes, OWNER, endpoints, copies, 0) {
            Ok(shape) => shape,
            Err(error) => unreachable!("a layout the map refuses: {error}"),
        };
        let map = shape.first_map(|_| Boot(0));
        let members =
            (0..slots).map(|slot| map.group(Slot(slot)).members.iter().map(|m| m.node).collect()).collect();
        let all = || (1..=last as u16).map(NodeId);
        let voters = match last {
            _ if witness => all().filter(|n| n.0 <= 2 || usize::from(n.0) == last).collect(),
            5 => all().collect(),
            3.. => all().take(3).collect(),
            _ => all().take(1).collect(),
        };
        Layout { hosts: hosts.to_vec(), shards, members, shape, voters, late: None }
    }

    /// The map that is agreed on first, if every node lives in the life that `boots` says.
    pub fn first_map(&self, boots: &[Boot]) -> ClusterMap {
        self.shape.first_map(|node| boots[usize::from(node.0) - 1])
    }

    /// The number of nodes.
    pub fn nodes(&self) -> usize {
        self.hosts.len()
    }

    /// All node ids.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.hosts.len() as u16).map(NodeId)
    }

    /// The number of slots.
    pub fn slots(&self) -> u16 {
        self.members.len() as u16
    }

    /// The host a node stands on.
    pub fn host(&self, node: NodeId) -> u16 {
        self.hosts[usize::from(node.0) - 1]
    }

    /// The nodes on a host.
    pub fn on_host(&self, host: u16) -> NodeSet {
        let mut set = NodeSet::EMPTY;
        self.ids().filter(|n| self.host(*n) == host).for_each(|n| set.insert(n));
        set
    }

    /// Whether a node only votes.
    pub fn is_witness(&self, node: NodeId) -> bool {
        self.shape.nodes.iter().any(|n| n.id == node && n.witness)
    }

    /// How many hosts `nodes` stand on.
    pub fn spans(&self, nodes: &[NodeId]) -> usize {
        let mut hosts: Vec<u16> = nodes.iter().map(|n| self.host(*n)).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts.len()
    }

    /// Whether `nodes`, of `members`, are a commit set: enough, and on two hosts if the members are.
    pub fn commits(&self, members: &[NodeId], nodes: &[NodeId]) -> bool {
        let enough = usize::from(self.shape.commit).min(members.len());
        nodes.len() >= enough.max(1) && self.spans(nodes) >= self.spans(members).min(2)
    }
}
