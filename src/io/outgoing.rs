//! Everything one shard sends: the outbox that the engine fills, and the sockets that empty it.

use std::sync::Arc;

use super::cells::NodeCells;
use super::client::ClientSocket;
use super::peer::Link;
use super::tally::Tally;
use crate::engine::Outbox;
use crate::types::{Endpoint, LocalId, NodeId, NodeSet, Slot};
use crate::wire::datagram::{Kind, destination};
use crate::wire::seal::Sealer;

/// See the module's page.
pub struct Outgoing {
    /// One for each service endpoint that this node holds.
    pub clients: Vec<ClientSocket>,
    /// One for each peer.
    pub links: Vec<(NodeId, Link)>,
    /// One for each set of nodes that multicast reaches; empty: multicast goes out as unicast.
    pub fanouts: Vec<(NodeSet, Link)>,
    /// What was sent and dropped; the loop counts what it receives here too.
    pub tally: Tally,
    /// Peers whose port was reported closed since [`Outgoing::take_refused`].
    refused: NodeSet,
    sealer: Sealer,
    cells: Arc<NodeCells>,
    /// Replies handed over so far: the next one's tag.
    handed: u64,
    /// How many of them [`Outgoing::send`] has reported as gone.
    gone: u64,
}

impl Outgoing {
    /// Sends over these sockets. `sealer` is the thread's own.
    pub fn new(
        clients: Vec<ClientSocket>,
        links: Vec<(NodeId, Link)>,
        fanouts: Vec<(NodeSet, Link)>,
        sealer: Sealer,
        cells: Arc<NodeCells>,
    ) -> Outgoing {
        Outgoing {
            clients,
            links,
            fanouts,
            tally: Tally::default(),
            refused: NodeSet::EMPTY,
            sealer,
            cells,
            handed: 0,
            gone: 0,
        }
    }

    /// Hands everything queued to the kernel, as far as it takes it. Returns how many more replies, in the order
    /// the engine wrote them, have left this node or were dropped for good.
    pub fn send(&mut self) -> usize {
        for (peer, link) in &mut self.links {
            if !link.is_idle() && link.flush(&mut self.tally) {
                self.refused.insert(*peer);
            }
        }
        for (_, link) in self.fanouts.iter_mut().filter(|(_, link)| !link.is_idle()) {
            link.flush(&mut self.tally);
        }
        for client in self.clients.iter_mut().filter(|client| !client.is_idle()) {
            client.flush(&mut self.tally);
        }
        let waiting = self.clients.iter().filter_map(ClientSocket::first_unsent).min();
        let gone = waiting.unwrap_or(self.handed);
        let more = gone - self.gone;
        self.gone = gone;
        more as usize
    }

    /// Notes that the port of `peer` was reported closed.
    pub fn add_refused(&mut self, peer: NodeId) {
        self.tally.refused += 1;
        self.refused.insert(peer);
    }

    /// Takes the peers whose port was reported closed.
    pub fn take_refused(&mut self) -> NodeSet {
        std::mem::take(&mut self.refused)
    }

    /// The counters, with what only the kernel knows.
    pub fn read_tally(&mut self) -> Tally {
        let links = self.links.iter().map(|(_, link)| link.kernel_drops());
        let clients = self.clients.iter().map(ClientSocket::kernel_drops);
        self.tally.dropped.kernel_receive_full = links.chain(clients).sum();
        self.tally.clone()
    }
}

impl Outbox for Outgoing {
    fn peer(&mut self, to: NodeId, plaintext: &[u8]) {
        let Outgoing { links, sealer, tally, cells, .. } = self;
        let Some((_, link)) = links.iter_mut().find(|(peer, _)| *peer == to) else {
            tally.dropped.peer_not_met += 1;
            return;
        };
        match cells.boot(to) {
            Some(boot) => link.push(sealer, Kind::Shard, destination(boot), plaintext, tally),
            None => tally.dropped.peer_not_met += 1,
        }
    }

    fn multicast(&mut self, to: NodeSet, plaintext: &[u8]) {
        let Outgoing { fanouts, sealer, tally, .. } = self;
        match fanouts.iter_mut().find(|(set, _)| *set == to) {
            Some((_, link)) => {
                tally.multicast_sent += 1;
                link.push(sealer, Kind::Multicast, 0, plaintext, tally);
            }
            None => to.iter().for_each(|node| self.peer(node, plaintext)),
        }
    }

    fn client(&mut self, _slot: Slot, local: LocalId, to: Endpoint, bytes: &[u8]) {
        let tag = self.handed;
        self.handed += 1;
        match self.clients.iter_mut().find(|client| client.local() == local) {
            Some(client) => client.push(tag, to.into(), bytes, &mut self.tally),
            None => self.tally.dropped.client_no_endpoint += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sys_socket::Buffers;
    use crate::types::Boot;
    use crate::wire::seal::ClusterKey;
    use mio::{Poll, Token, Waker};
    use std::net::UdpSocket;

    const BUFFERS: Buffers = Buffers { recv: 1 << 20, send: 1 << 20 };

    fn outgoing(clients: Vec<ClientSocket>, links: Vec<(NodeId, Link)>) -> Outgoing {
        let waker = Waker::new(Poll::new().unwrap().registry(), Token(0)).unwrap();
        let cells = Arc::new(NodeCells::new(Vec::new(), waker));
        let sealer = Sealer::new(&ClusterKey::loopback(), NodeId(1), Boot(1), 1);
        Outgoing::new(clients, links, Vec::new(), sealer, cells)
    }

    #[test]
    fn replies_are_reported_gone_in_order_whichever_socket_they_leave_by() {
        let bind =
            |local| ClientSocket::bind(LocalId(local), "127.0.0.1:0".parse().unwrap(), BUFFERS).unwrap().0;
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Endpoint::from(client.local_addr().unwrap());
        let mut outgoing = outgoing(vec![bind(0), bind(1)], Vec::new());
        assert_eq!(outgoing.send(), 0);
        for local in [0, 1, 7, 1, 0] {
            outgoing.client(Slot(0), LocalId(local), to, b"reply");
        }
        assert_eq!(outgoing.send(), 5, "the one for an endpoint not held here counts as gone");
        assert_eq!(outgoing.tally.dropped.client_no_endpoint, 1);
        assert_eq!(outgoing.tally.client_sent, 4);
        assert_eq!(outgoing.send(), 0);
    }

    #[test]
    fn nothing_goes_to_a_node_whose_life_is_not_known() {
        let address = || UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let link = Link::connect(address(), address(), BUFFERS).unwrap().0;
        let mut outgoing = outgoing(Vec::new(), vec![(NodeId(2), link)]);
        outgoing.peer(NodeId(2), b"frames");
        outgoing.multicast(NodeSet(0b1100), b"frames");
        assert_eq!(outgoing.tally.dropped.peer_not_met, 3);
        outgoing.cells.set_boot(NodeId(2), Boot(5));
        outgoing.multicast(NodeSet(0b1100), b"frames");
        assert_eq!((outgoing.tally.dropped.peer_not_met, outgoing.tally.peer_sent), (4, 1));
    }
}
