//! Which service addresses this node holds, by the map and its lease, as the keeper of the addresses is told.

use std::net::IpAddr;

use crossbeam::channel::Sender;

use crate::io::addresses::{Change, News};
use crate::proto::map::ClusterMap;
use crate::types::{Boot, Nanos, NodeId, Term};

/// A loop that slept through the end of its lease first hears what has come meanwhile: a lease, or that the address has
/// moved.
const HEAR_FIRST: Nanos = Nanos::from_millis(10);

/// See the module's page.
#[derive(Debug)]
pub struct Holding {
    node: NodeId,
    boot: Boot,
    /// How long after the end of the lease nobody else can hold an address of this node.
    grace: Nanos,
    /// Each service address, and the term in which this node holds it.
    held: Vec<(IpAddr, Option<Term>)>,
    changes: Sender<Change>,
    /// When an address is given up for want of a lease.
    give_up_at: Nanos,
    /// None is, before then.
    not_before: Nanos,
}

impl Holding {
    /// Of the life `boot` of `node`, which holds none of the `addresses` yet.
    pub fn new(
        (node, boot): (NodeId, Boot),
        grace: Nanos,
        addresses: &[IpAddr],
        changes: Sender<Change>,
    ) -> Holding {
        let held = addresses.iter().map(|address| (*address, None)).collect();
        Holding { node, boot, grace, held, changes, give_up_at: Nanos::MAX, not_before: Nanos::ZERO }
    }

    /// The loop's turn at `now` comes late: this node, or all of its machine, has stood still.
    pub fn was_asleep(&mut self, now: Nanos) {
        self.not_before = now + HEAR_FIRST;
    }

    /// Compares what is held with the map and the lease, and tells what has changed. An address is gained once there is
    /// a lease. It is given up when the map says so, or when the lease is out for so long that others may hold it: a
    /// lease that is late now and then must not make the address come and go.
    pub fn follow(&mut self, now: Nanos, map: &ClusterMap, lease_until: Nanos) {
        let (has_lease, last) = (lease_until > now, (lease_until + self.grace).max(self.not_before));
        self.give_up_at = Nanos::MAX;
        for (index, (address, held)) in self.held.iter_mut().enumerate() {
            let owned = map.owns(index, self.node, self.boot).then(|| map.addresses[index].term);
            let tell = |term, news| {
                // The keeper ends only when the node does.
                let _ = self.changes.send(Change { address: *address, term, news });
            };
            match *held {
                Some(term) if owned != Some(term) => {
                    tell(term, News::Moved);
                    *held = None;
                }
                Some(term) if now >= last => {
                    tell(term, News::Expired);
                    *held = None;
                }
                _ => {}
            }
            if let (None, Some(term), true) = (*held, owned, has_lease) {
                tell(term, News::Gained(map.version));
                *held = Some(term);
            }
            if held.is_some() {
                self.give_up_at = last;
            }
        }
    }

    /// When [`Holding::follow`] has something to do if nothing else happens.
    pub fn next_timeout(&self) -> Nanos {
        self.give_up_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::map::{MapAddress, MapNode, MapShape, NodeState};
    use crate::types::HostId;
    use crossbeam::channel;

    const ME: (NodeId, Boot) = (NodeId(1), Boot(5));

    fn map(version: u32, owners: &[(u16, u64, u32)]) -> ClusterMap {
        let node =
            |id| MapNode { boot: Boot(5), state: NodeState::Live, ..MapNode::new(NodeId(id), HostId(id)) };
        let shape = MapShape::new((8, 1), vec![node(1), node(2)], NodeId(1), vec![0, 1], 2, 0).unwrap();
        let address = |(id, boot, term): &(u16, u64, u32)| MapAddress {
            owner: NodeId(*id),
            boot: Boot(*boot),
            term: Term(*term),
        };
        ClusterMap { version, addresses: owners.iter().map(address).collect(), ..shape.empty_map() }
    }

    #[test]
    fn addresses_come_with_the_lease_and_go_with_the_map_or_without_a_lease() {
        let addresses: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let (changes, told) = channel::unbounded();
        let mut holding = Holding::new(ME, Nanos(50), &addresses, changes);
        let mut follow = |now, map: &ClusterMap, lease| {
            holding.follow(Nanos(now), map, Nanos(lease));
            let news: Vec<_> = told.try_iter().map(|c| (c.address, c.term.0, c.news)).collect();
            (news, holding.next_timeout().0)
        };
        let [first, second] = addresses;
        let mine = map(1, &[(1, 5, 1), (1, 4, 9)]);
        assert_eq!(follow(0, &mine, 0), (vec![], u64::MAX), "no lease");
        assert_eq!(follow(10, &mine, 100), (vec![(first, 1, News::Gained(1))], 150), "one is another life's");
        assert_eq!(follow(120, &mine, 100), (vec![], 150), "the lease is only late");
        assert_eq!(follow(130, &mine, 200), (vec![], 250));
        assert_eq!(follow(250, &mine, 200), (vec![(first, 1, News::Expired)], u64::MAX));
        assert_eq!(follow(260, &mine, 200).0, []);
        assert_eq!(follow(300, &mine, 400).0, [(first, 1, News::Gained(1))]);
        let more = map(2, &[(2, 5, 2), (1, 5, 10)]);
        let moved = vec![(first, 1, News::Moved), (second, 10, News::Gained(2))];
        assert_eq!(follow(310, &more, 400), (moved, 450));
        let back = map(4, &[(1, 5, 3), (1, 5, 12)]);
        let again =
            vec![(first, 3, News::Gained(4)), (second, 10, News::Moved), (second, 12, News::Gained(4))];
        assert_eq!(follow(320, &back, 400).0, again, "it was another's in between");
    }
    #[test]
    fn a_loop_that_has_slept_through_its_lease_hears_first_what_has_come() {
        let (changes, told) = channel::unbounded();
        let mut holding = Holding::new(ME, Nanos(50), &[[10, 0, 0, 1].into()], changes);
        let (mine, lease) = (map(1, &[(1, 5, 1), (2, 5, 1)]), Nanos(100));
        holding.follow(Nanos(10), &mine, lease);
        assert_eq!(told.try_recv().unwrap().news, News::Gained(1));
        let woke = Nanos(1_000);
        holding.was_asleep(woke);
        holding.follow(woke, &mine, lease);
        assert!(told.try_recv().is_err());
        assert_eq!(holding.next_timeout(), woke + HEAR_FIRST);
        holding.follow(woke + HEAR_FIRST, &mine, lease);
        assert_eq!(told.try_recv().unwrap().news, News::Expired);
    }
}
