//! Everything one shard sends: the outbox that the engine fills, and the sockets that empty it.

use std::sync::Arc;

use super::cells::{NodeCells, Notice};
use super::client::ClientSocket;
use super::media::MediaSockets;
use super::peer::Link;
use super::records::Records;
use super::tally::Tally;
use crate::engine::Outbox;
use crate::types::{Endpoint, LocalId, Nanos, NodeId, NodeSet, Slot};
use crate::wire::datagram::{Kind, destination};
use crate::wire::seal::Sealer;

/// See the module's page.
pub struct Outgoing {
    /// One for each service endpoint, by [`LocalId`]; `None` while this node does not hold it.
    pub clients: Vec<Option<ClientSocket>>,
    /// The media ports.
    pub media: MediaSockets,
    /// The file of call records, if there is one.
    pub records: Option<Records>,
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
    /// What the kernel had dropped at sockets that are closed.
    closed_drops: u64,
}

impl Outgoing {
    /// Sends over these sockets, and holds none of the `endpoints` yet. `sealer` is the thread's own.
    pub fn new(
        endpoints: usize,
        links: Vec<(NodeId, Link)>,
        fanouts: Vec<(NodeSet, Link)>,
        sealer: Sealer,
        cells: Arc<NodeCells>,
    ) -> Outgoing {
        Outgoing {
            clients: (0..endpoints).map(|_| None).collect(),
            media: MediaSockets::default(),
            records: None,
            links,
            fanouts,
            tally: Tally::default(),
            refused: NodeSet::EMPTY,
            sealer,
            cells,
            handed: 0,
            gone: 0,
            closed_drops: 0,
        }
    }

    /// Hands everything queued to the kernel, as far as it takes it; replies only while `may_release`, which is asked
    /// before each batch. Returns how many more replies, in the order the engine wrote them, have left this node or were
    /// dropped for good.
    pub fn send(&mut self, now: Nanos, may_release: impl Fn() -> bool) -> usize {
        for (peer, link) in &mut self.links {
            if !link.is_idle() && link.flush(&mut self.tally) {
                self.refused.insert(*peer);
            }
        }
        for (_, link) in self.fanouts.iter_mut().filter(|(_, link)| !link.is_idle()) {
            link.flush(&mut self.tally);
        }
        for client in self.clients.iter_mut().flatten().filter(|client| !client.is_idle()) {
            client.flush(now, &mut self.tally, &may_release);
        }
        if !self.media.is_idle() {
            self.media.flush(&mut self.tally, &may_release);
        }
        if let Some(records) = &mut self.records
            && may_release()
        {
            records.flush(now, &mut self.tally);
        }
        let waiting = self.clients.iter().flatten().filter_map(ClientSocket::first_unsent);
        let waiting = waiting.chain(self.media.first_unsent());
        let waiting = waiting.chain(self.records.as_ref().and_then(Records::first_unsent)).min();
        let gone = waiting.unwrap_or(self.handed);
        let more = gone - self.gone;
        self.gone = gone;
        more as usize
    }

    /// When to [send](Outgoing::send) even if nothing is new; [`Nanos::MAX`]: never.
    pub fn due(&self) -> Nanos {
        let clients = self.clients.iter().flatten().map(ClientSocket::due);
        clients.chain(self.records.as_ref().map(Records::due)).min().unwrap_or(Nanos::MAX)
    }

    /// Gives up a service endpoint that this node holds no more; replies that wait for it are dropped.
    pub fn close(&mut self, local: LocalId) {
        self.drop_waiting(local);
        let socket = self.clients.get_mut(usize::from(local.endpoint)).and_then(Option::take);
        self.closed_drops += socket.map_or(0, |socket| socket.kernel_drops());
    }

    /// Drops the replies that wait for a service endpoint, and the media of its address if that is the address's first
    /// endpoint: somebody else may have said the same by now.
    pub fn drop_waiting(&mut self, local: LocalId) {
        self.tally.dropped.client_address_lost += self.media.drop_waiting(local.endpoint) as u64;
        if let Some(socket) = self.clients.get_mut(usize::from(local.endpoint)).and_then(Option::as_mut) {
            let dropped = socket.clear() as u64;
            self.tally.client_sent -= dropped;
            self.tally.dropped.client_address_lost += dropped;
        }
    }

    /// Queues what a client is answered outside of any log.
    pub fn answer(&mut self, local: LocalId, to: Endpoint, bytes: &[u8]) {
        if let Some(Some(client)) = self.clients.get_mut(usize::from(local.endpoint)) {
            // All replies before the next one have gone when this one is the first that waits.
            client.push(self.handed, to.into(), bytes, &mut self.tally);
            self.tally.client_turned_away += 1;
        }
    }

    fn notify(&mut self, bytes: &[u8]) {
        let notice = Notice { bytes: Arc::from(bytes), founding: false, told: None };
        self.tally.notices += 1;
        self.tally.dropped.notices_full += self.cells.notify(&notice) as u64;
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
        let clients = self.clients.iter().flatten().map(ClientSocket::kernel_drops);
        self.tally.dropped.kernel_receive_full =
            self.closed_drops + self.media.kernel_drops() + links.chain(clients).sum::<u64>();
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

    fn client(&mut self, slot: Slot, local: LocalId, to: Endpoint, bytes: &[u8]) {
        let tag = self.handed;
        self.handed += 1;
        match local {
            LocalId::NOTICE => return self.notify(bytes),
            LocalId::RECORD => {
                return match &mut self.records {
                    Some(records) => records.push(tag, slot, bytes),
                    None => self.tally.dropped.records_unwanted += 1,
                };
            }
            LocalId { port: 1.., .. } => {
                return self.media.push(tag, local, to.into(), bytes, &mut self.tally);
            }
            _ => {}
        }
        match self.clients.get_mut(usize::from(local.endpoint)).and_then(Option::as_mut) {
            Some(client) => client.push(tag, to.into(), bytes, &mut self.tally),
            None => self.tally.dropped.client_no_endpoint += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::media::MediaPorts;
    use crate::io::media::MediaPlan;
    use crate::io::sys_socket::Buffers;
    use crate::types::Boot;
    use crate::wire::seal::ClusterKey;
    use mio::{Poll, Token, Waker};
    use std::net::UdpSocket;

    const BUFFERS: Buffers = Buffers { recv: 1 << 20, send: 1 << 20 };

    fn outgoing(clients: Vec<Option<ClientSocket>>, links: Vec<(NodeId, Link)>) -> Outgoing {
        let waker = Waker::new(Poll::new().unwrap().registry(), Token(0)).unwrap();
        let cells = Arc::new(NodeCells::new(Vec::new(), waker));
        let sealer = Sealer::new(&ClusterKey::loopback(), NodeId(1), Boot(1), 1);
        Outgoing { clients, ..Outgoing::new(0, links, Vec::new(), sealer, cells) }
    }

    fn bind(local: u16) -> Option<ClientSocket> {
        Some(ClientSocket::bind(LocalId::endpoint(local), "127.0.0.1:0".parse().unwrap(), BUFFERS).unwrap().0)
    }

    #[test]
    fn replies_are_reported_gone_in_order_whichever_socket_they_leave_by() {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Endpoint::from(client.local_addr().unwrap());
        let mut outgoing = outgoing(vec![bind(0), bind(1), None], Vec::new());
        assert_eq!(outgoing.send(Nanos(1), || true), 0);
        for local in [0, 1, 2, 7, 1, 0] {
            outgoing.client(Slot(0), LocalId::endpoint(local), to, b"reply");
        }
        assert_eq!(outgoing.send(Nanos(1), || true), 6, "those for endpoints not held here count as gone");
        assert_eq!(outgoing.tally.dropped.client_no_endpoint, 2);
        assert_eq!(outgoing.tally.client_sent, 4);
        assert_eq!(outgoing.send(Nanos(1), || true), 0);
    }

    #[test]
    fn replies_without_a_lease_wait_and_go_with_the_address_if_it_is_lost() {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Endpoint::from(client.local_addr().unwrap());
        let mut outgoing = outgoing(vec![bind(0), bind(1)], Vec::new());
        for local in [1, 0, 1] {
            outgoing.client(Slot(0), LocalId::endpoint(local), to, b"reply");
        }
        assert_eq!(outgoing.send(Nanos(1), || false), 0);
        outgoing.close(LocalId::endpoint(1));
        outgoing.close(LocalId::endpoint(1));
        assert_eq!(outgoing.send(Nanos(1), || false), 1, "the first was for the address that is lost");
        assert_eq!(outgoing.send(Nanos(1), || true), 2);
        let dropped = &outgoing.tally.dropped;
        assert_eq!((outgoing.tally.client_sent, dropped.client_address_lost), (1, 2));
    }

    #[test]
    fn replies_of_an_earlier_term_are_dropped_and_newer_ones_go() {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Endpoint::from(client.local_addr().unwrap());
        let mut outgoing = outgoing(vec![bind(0)], Vec::new());
        outgoing.client(Slot(0), LocalId::endpoint(0), to, b"old");
        assert_eq!(outgoing.send(Nanos::ZERO, || false), 0);
        outgoing.drop_waiting(LocalId::endpoint(0));
        outgoing.drop_waiting(LocalId::endpoint(9));
        outgoing.client(Slot(0), LocalId::endpoint(0), to, b"newer");
        assert_eq!(outgoing.send(Nanos::ZERO, || true), 2);
        assert_eq!(client.recv(&mut [0; 9]).unwrap(), 5);
        let dropped = &outgoing.tally.dropped;
        assert_eq!((outgoing.tally.client_sent, dropped.client_address_lost), (1, 1));
    }

    #[test]
    fn media_of_an_earlier_term_is_dropped_and_that_of_other_addresses_goes() {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = Endpoint::from(client.local_addr().unwrap());
        let ports = MediaPorts { first: 41_300, last: 41_307, slots: 2, addresses: 2 };
        let addresses = [1, 2].map(|last| ([127, 77, 2, last].into(), u16::from(last) * 2)).into();
        let plan = MediaPlan { ports, addresses, shards: 1, shard: 0 };
        let mut outgoing =
            Outgoing { media: MediaSockets::new(Some(&plan)), ..outgoing(Vec::new(), Vec::new()) };
        (0..2).for_each(|address| outgoing.media.open_all(address, Nanos::ZERO, |_| false));
        let poll = Poll::new().unwrap();
        outgoing.media.settle(Nanos::ZERO, poll.registry(), || true).unwrap();
        for (endpoint, bytes) in [(2, b"old"), (4, b"its"), (2, b"old")] {
            outgoing.client(Slot(0), LocalId::media(endpoint, 41_302), to, bytes);
        }
        assert_eq!(outgoing.send(Nanos::ZERO, || false), 0);
        for endpoint in [0, 2, 3, 9] {
            outgoing.drop_waiting(LocalId::endpoint(endpoint));
        }
        assert_eq!(outgoing.send(Nanos::ZERO, || false), 1, "the one before what still waits");
        outgoing.client(Slot(0), LocalId::media(2, 41_302), to, b"newer");
        assert_eq!(outgoing.send(Nanos::ZERO, || true), 3);
        assert_eq!((client.recv(&mut [0; 9]).unwrap(), client.recv(&mut [0; 9]).unwrap()), (3, 5));
        assert_eq!((outgoing.tally.media_sent, outgoing.tally.dropped.client_address_lost), (2, 2));
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
