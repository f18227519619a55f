//! What once went wrong: each test is a sequence of events that stopped a slot, wasted work or did harm.

use super::*;
use crate::engine::*;
use crate::types::*;

fn suspects(cluster: &mut Cluster, nodes: &[u16]) {
    let mut set = NodeSet::EMPTY;
    nodes.iter().for_each(|n| set.insert(NodeId(*n)));
    cluster.shards[0].on_suspects(cluster.now, set);
}

/// 1: window demotion inside Owner::append frees bytes that Shard::append never takes off `retained`.
#[test]
fn f1_retained_drifts() {
    let mut cluster = Cluster::new(3, |c| {
        c.window = 20;
        c.retain_bytes = 20_000;
    });
    for round in 0..1 {
        let _ = round;
        cluster.send(&[0; 200]).unwrap();
        cluster.settle();
    }
    cluster.cut.insert(NodeId(3));
    suspects(&mut cluster, &[3]);
    let mut refused = 0;
    for call in 0..16u8 {
        for _ in 0..40 {
            let r = cluster.send(&[call; 200]);
            refused += u32::from(r.is_err());
            cluster.settle();
        }
    }
    cluster.pass(Nanos::from_secs(2));
    let stats = cluster.shards[0].stats();
    let real: usize =
        cluster.shards[0].slots.iter().filter_map(|s| s.owner.as_ref()).map(|o| o.retained().0).sum();
    eprintln!(
        "refused {refused} demotions {} real {real} gauge {}",
        stats.demotions, cluster.shards[0].retained
    );
    assert_eq!(real, cluster.shards[0].retained);
}

/// 2a: both others away for a moment: one is given up although that frees nothing.
#[test]
fn f2a_demotion_frees_nothing() {
    let mut cluster = Cluster::new(3, |c| c.window = 20);
    cluster.cut.insert(NodeId(2));
    cluster.cut.insert(NodeId(3));
    let mut ok = 0;
    for _ in 0..60 {
        ok += u32::from(cluster.send(&[0]).is_ok());
        cluster.settle();
    }
    cluster.cut = NodeSet::EMPTY;
    cluster.pass(Nanos::from_secs(2));
    let stats = cluster.shards[0].stats();
    eprintln!("accepted {ok} replies {} short {}", cluster.replies.len(), stats.slots_short);
    assert_eq!(stats.slots_short, 0);
}

/// 2b: the survivor is given up, the dead one is kept: stuck for ever.
#[test]
fn f2b_demotes_the_living() {
    let mut cluster = Cluster::new(3, |c| {
        c.window = 20;
    });
    cluster.send(&[0]).unwrap();
    cluster.settle();
    // 2 is cut off for a moment, 3 holds one more and then dies.
    cluster.cut.insert(NodeId(2));
    cluster.send(&[0]).unwrap();
    cluster.settle();
    cluster.cut.insert(NodeId(3));
    suspects(&mut cluster, &[3]);
    for _ in 0..60 {
        let _ = cluster.send(&[0]);
        cluster.settle();
    }
    cluster.cut.remove(NodeId(2)); // 2 is back, 3 stays dead
    let before = cluster.replies.len();
    cluster.pass(Nanos::from_secs(3));
    eprintln!("before {before} after {} waiting", cluster.replies.len());
    assert!(cluster.replies.len() > before, "slot stuck: living member was given up");
}

/// 2c: no fault at all: a burst over RETAIN gives up a healthy member of every slot.
#[test]
fn f2c_burst_demotes_healthy() {
    let mut cluster = Cluster::new(3, |c| {
        c.retain_bytes = 10_000;
    });
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    for n in 0..100u8 {
        let _ = cluster.send(&[n % 16; 200]);
    }
    cluster.settle();
    let stats = cluster.shards[0].stats();
    eprintln!("demotions {} short {}", stats.demotions, stats.slots_short);
    assert_eq!(stats.slots_short, 0);
}

/// 3: hedges back off from waiting_since, not from the last hedge: one every ms after 64 ms.
#[test]
fn f3_hedge_storm() {
    let map_nodes = (1..=3).map(|n| MapNode { id: NodeId(n), host: HostId(n) }).collect();
    let map = Arc::new(ClusterMap::fixed(16, map_nodes, NodeId(1), 1, 2, 0).unwrap());
    let mut cluster = Cluster::new(3, |c| c.map = map.clone());
    cluster.send(&[1]).unwrap();
    cluster.settle();
    cluster.cut.insert(NodeId(2));
    cluster.cut.insert(NodeId(3));
    suspects(&mut cluster, &[2, 3]);
    cluster.send(&[1]).unwrap();
    cluster.pass(Nanos::from_secs(2));
    let stats = cluster.shards[0].stats();
    eprintln!("hedges {} probes {}", stats.hedges, stats.probes);
    assert!(stats.hedges < 60);
}

/// 3b the same, not suspected: does the loop ask to be woken at once for ever?
#[test]
fn f3b_next_timeout_in_the_past() {
    let map_nodes = (1..=3).map(|n| MapNode { id: NodeId(n), host: HostId(n) }).collect();
    let map = Arc::new(ClusterMap::fixed(16, map_nodes, NodeId(1), 1, 2, 0).unwrap());
    let mut cluster = Cluster::new(3, |c| c.map = map.clone());
    cluster.send(&[1]).unwrap();
    cluster.settle();
    cluster.cut.insert(NodeId(2));
    cluster.cut.insert(NodeId(3));
    cluster.send(&[1]).unwrap();
    let (mut turns, end) = (0, cluster.now.mono + Nanos::from_secs(1));
    let mut sent_n = 0;
    let mut same = 0;
    let mut worst = 0;
    while cluster.now.mono < end && turns < 200_000 {
        turns += 1;
        let mut sent = Sent::default();
        if cluster.shards[0].next_timeout() <= cluster.now.mono {
            cluster.shards[0].on_timeout(cluster.now);
        }
        cluster.shards[0].flush(cluster.now, &mut sent);
        sent_n += sent.peer.len();
        let at = cluster.shards[0].next_timeout();
        let step = if at > cluster.now.mono {
            same = 0;
            at - cluster.now.mono
        } else {
            same += 1;
            worst = worst.max(same);
            Nanos(3_000)
        };
        cluster.now.mono = cluster.now.mono + step;
        cluster.now.wall = cluster.now.wall + step;
    }
    eprintln!(
        "turns {turns} in 1 s, datagrams {sent_n}, hedges {}, worst run without sleep {worst}",
        cluster.shards[0].stats().hedges
    );
    assert!(turns < 500);
}

/// 4: multicast: groups close every lane before the lanes' own frames get their turn.
#[test]
fn f4_multicast_starves_repair() {
    let mut cluster = Cluster::new(3, |c| c.multicast = true);
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    // slot 2: master is node 3; lose the datagrams to node 3 and 2 of one entry of slot 2
    cluster.cut.insert(NodeId(3));
    cluster.cut.insert(NodeId(2));
    cluster.send(&[2]).unwrap();
    cluster.settle();
    cluster.cut = NodeSet::EMPTY;
    let before = cluster.replies.len();
    let step = Nanos::from_micros(200);
    let mut answered_at = None;
    let start = cluster.now.mono;
    for turn in 0..20_000u32 {
        cluster.now.mono = cluster.now.mono + step;
        cluster.now.wall = cluster.now.wall + step;
        cluster.send(&[0, turn as u8]).unwrap();
        for at in 0..3 {
            let mut sent = Sent::default();
            cluster.shards[at].on_timeout(cluster.now);
            cluster.shards[at].flush(cluster.now, &mut sent);
            cluster.shards[at].on_sent(cluster.now, sent.client.len());
            for r in sent.client {
                if r[1] == 2 {
                    answered_at.get_or_insert(cluster.now.mono - start);
                }
                cluster.replies.push(r);
            }
            for (to, bytes) in sent.peer {
                cluster.shards[usize::from(to.0) - 1].on_peer(
                    cluster.now,
                    NodeId(at as u16 + 1),
                    Boot(at as u64 + 1),
                    &bytes,
                );
            }
        }
        if answered_at.is_some() {
            break;
        }
    }
    eprintln!("replies {} slot 2 answered after {answered_at:?}, groups", cluster.replies.len() - before);
    assert!(answered_at.is_some_and(|t| t < Nanos::from_millis(100)));
}

/// 5: a valid HEDGE_AFTER over 50 ms panics.
#[test]
fn f5_hedge_after_100ms() {
    let mut cluster = Cluster::new(3, |c| c.hedge_after = Nanos::from_millis(100));
    cluster.send(&[1]).unwrap();
    cluster.settle();
}

/// 6: the timer heap keeps one more entry for a far deadline each time the slot falls quiet.
#[test]
fn f6_heap_growth() {
    let mut cluster = Cluster::new(3, |c| c.limits.idle = Nanos::from_secs(3600));
    for _ in 0..200 {
        cluster.send(&[1]).unwrap();
        cluster.settle();
        cluster.pass(Nanos::from_millis(300));
    }
    eprintln!("heap {} for one used slot", cluster.shards[0].timers.len());
    assert!(cluster.shards[0].timers.len() <= 4 * 16 + 64);
}

/// 7: masterships come back only if the home member holds all that is committed at that very moment.
#[test]
fn f7_restore_master_once() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    let home = cluster.shards[0].stats().masters;
    cluster.cut.insert(NodeId(2));
    suspects(&mut cluster, &[2]);
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    cluster.cut = NodeSet::EMPTY;
    suspects(&mut cluster, &[]);
    cluster.pass(Nanos::from_millis(900));
    // at the very moment the masterships are to come back, acks of node 2 are a little late
    cluster.cut.insert(NodeId(2));
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.pass(Nanos::from_millis(110));
    cluster.cut = NodeSet::EMPTY;
    cluster.pass(Nanos::from_secs(10));
    eprintln!("home {home:?} now {:?}", cluster.shards[0].stats().masters);
    assert_eq!(cluster.shards[0].stats().masters, home);
}

/// 8: an RTT over the timeout is never learned while traffic goes on.
#[test]
fn f8_rtt_never_learned() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    let step = Nanos::from_micros(250);
    let delay = 20usize; // steps one way: 5 ms, 10 ms there and back
    let mut pipe: std::collections::VecDeque<Vec<(usize, usize, Vec<u8>)>> =
        (0..delay).map(|_| Vec::new()).collect();
    for turn in 0..8_000u32 {
        cluster.now.mono = cluster.now.mono + step;
        cluster.now.wall = cluster.now.wall + step;
        {
            let _ = cluster.send(&[(turn % 16) as u8]);
        }
        for (from, to, bytes) in pipe.pop_front().unwrap() {
            cluster.shards[to].on_peer(cluster.now, NodeId(from as u16 + 1), Boot(from as u64 + 1), &bytes);
        }
        let mut out = Vec::new();
        for at in 0..3 {
            let mut sent = Sent::default();
            cluster.shards[at].on_timeout(cluster.now);
            cluster.shards[at].flush(cluster.now, &mut sent);
            cluster.shards[at].on_sent(cluster.now, sent.client.len());
            for (to, bytes) in sent.peer {
                out.push((at, usize::from(to.0) - 1, bytes));
            }
        }
        pipe.push_back(out);
    }
    let s = cluster.shards[0].stats();
    eprintln!(
        "rtt timeout {:?} smoothed {:?} probes {} hedges {} entries {} repeated {} hedge_after {}",
        cluster.shards[0].rtts[1].timeout(),
        cluster.shards[0].rtts[1].smoothed(),
        s.probes,
        s.hedges,
        s.entries,
        s.repeated_outputs,
        s.hedge_after_ns
    );
    assert!(s.probes < 100);
}

/// 9: naks of one gap: each makes the whole rest go again.
#[test]
fn f9_nak_amplification() {
    let mut cluster = Cluster::new(3, |_| {});
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    // RTT 2 ms; one datagram to node 2 lost; entries every 100 us of 500 bytes
    let step = Nanos::from_micros(100);
    let delay = 10usize;
    let mut pipe: std::collections::VecDeque<Vec<(usize, usize, Vec<u8>)>> =
        (0..delay).map(|_| Vec::new()).collect();
    let mut bytes_to_2 = 0;
    let mut bytes_to_3 = 0;
    let mut lost = false;
    for turn in 0..1_000u32 {
        cluster.now.mono = cluster.now.mono + step;
        cluster.now.wall = cluster.now.wall + step;
        let mut p = [1u8; 500];
        p[1] = turn as u8;
        let _ = cluster.send(&p);
        for (from, to, bytes) in pipe.pop_front().unwrap() {
            cluster.shards[to].on_peer(cluster.now, NodeId(from as u16 + 1), Boot(from as u64 + 1), &bytes);
        }
        let mut out = Vec::new();
        for at in 0..3 {
            let mut sent = Sent::default();
            cluster.shards[at].on_timeout(cluster.now);
            cluster.shards[at].flush(cluster.now, &mut sent);
            cluster.shards[at].on_sent(cluster.now, sent.client.len());
            for (to, bytes) in sent.peer {
                if at == 0 && to == NodeId(2) {
                    bytes_to_2 += bytes.len();
                    if !lost && turn >= 300 {
                        lost = true;
                        continue;
                    }
                }
                if at == 0 && to == NodeId(3) {
                    bytes_to_3 += bytes.len();
                }
                out.push((at, usize::from(to.0) - 1, bytes));
            }
        }
        pipe.push_back(out);
    }
    let s = cluster.shards[0].stats();
    eprintln!(
        "to 2: {bytes_to_2} to 3: {bytes_to_3}, naks {} probes {} refused {}",
        s.naks, s.probes, s.drop_window_full
    );
    assert!(bytes_to_2 < bytes_to_3 * 12 / 10);
}

/// 10: told is not confirmed: one lost header leaves an idle member with what nobody needs.
#[test]
fn f10_lost_tell() {
    let mut cluster = Cluster::new(3, |_| {});
    cluster.send(&[1]).unwrap();
    cluster.settle();
    cluster.cut.insert(NodeId(2));
    cluster.pass(Nanos::from_millis(260));
    cluster.cut = NodeSet::EMPTY;
    cluster.pass(Nanos::from_secs(5));
    let kept: Vec<u64> = cluster.shards.iter().map(|s| s.stats().retained_records).collect();
    eprintln!("kept {kept:?}");
    assert_eq!(kept, [0, 0, 0]);
}

/// 11: the owner's process starts again with empty memory in the same term; members keep what they had.
#[test]
fn f11_owner_restarts_empty() {
    let mut cluster = Cluster::new(3, |_| {});
    for n in 0..10u8 {
        cluster.send(&[1, n]).unwrap();
        cluster.settle();
    }
    let fresh = Cluster::new(3, |c| {
        if c.me == NodeId(1) {
            c.boot = Boot(1)
        }
    });
    let mut new_owner = fresh.shards.into_iter().next().unwrap();
    // the harness uses boot = node id for on_peer; members keep their lanes' boot 1 (as if on_join came with a later boot: it changes nothing member-side)
    for s in 1..3 {
        cluster.shards[s].on_join(cluster.now, NodeId(1), Boot(1));
    }
    std::mem::swap(&mut cluster.shards[0], &mut new_owner);
    cluster.replies.clear();
    for n in 100..120u8 {
        let r = cluster.send(&[1, n]);
        cluster.settle();
        cluster.pass(Nanos::from_millis(5));
        if n < 103 || n > 116 {
            eprintln!("{n} {r:?} -> {:?}", cluster.replies.last());
        }
    }
    eprintln!(
        "replies {:?}\n digests {:?} div {}",
        cluster.replies.len(),
        cluster.digests(),
        cluster.shards[0].stats().divergences
    );
}

/// 12: memory runs full for a moment while 3 (dead) holds all of slot 0 and 2 (alive) has one entry under way.
#[test]
fn f12_give_up_keeps_the_dead() {
    let mut cluster = Cluster::new(3, |c| c.retain_bytes = 10_000);
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    cluster.cut.insert(NodeId(2));
    cluster.send(&[0]).unwrap(); // 1 and 3 hold it; the datagram to 2 is late
    cluster.settle();
    cluster.cut.insert(NodeId(3)); // 3 dies
    cluster.cut.remove(NodeId(2)); // and 2 is well
    for _ in 0..100 {
        let _ = cluster.send(&[5; 200]);
    } // a burst in another slot, in one turn
    suspects(&mut cluster, &[3]);
    cluster.pass(Nanos::from_secs(1));
    let before = cluster.replies.len();
    for call in 0..16u8 {
        let _ = cluster.send(&[call]);
    }
    cluster.pass(Nanos::from_secs(3));
    let stats = cluster.shards[0].stats();
    eprintln!(
        "{} of 16 answered; demotions {}, waiting {}, retained {}",
        cluster.replies.len() - before,
        stats.demotions,
        stats.waiting,
        cluster.shards[0].retained
    );
    assert_eq!(cluster.replies.len() - before, 16);
}

/// 13: what one flush sends to a member that comes back.
#[test]
fn f13_catch_up_in_one_burst() {
    let mut cluster = Cluster::new(3, |c| {
        c.retain_bytes = 64 << 20;
        c.window = 16384;
    });
    (0..16u8).for_each(|call| cluster.send(&[call]).unwrap());
    cluster.settle();
    cluster.cut.insert(NodeId(3));
    suspects(&mut cluster, &[3]);
    for n in 0..25_000u32 {
        cluster.send(&[[(n % 16) as u8; 1].as_slice(), &[0; 200]].concat()).unwrap();
        if n % 50 == 0 {
            cluster.settle();
        }
    }
    cluster.settle();
    cluster.cut = NodeSet::EMPTY;
    suspects(&mut cluster, &[]);
    let mut sent = Sent::default();
    cluster.shards[0].flush(cluster.now, &mut sent);
    let to3: Vec<_> = sent.peer.iter().filter(|(to, _)| *to == NodeId(3)).map(|(_, b)| b.len()).collect();
    eprintln!("one flush: {} datagrams, {} bytes", to3.len(), to3.iter().sum::<usize>());
    assert!(to3.iter().sum::<usize>() < 1 << 20);
}

/// 14: a duplicate of an old segment in the same turn swallows the nak.
#[test]
fn f14_nak_swallowed() {
    let mut cluster = Cluster::new(3, |_| {});
    cluster.send(&[1]).unwrap();
    cluster.settle();
    let now = cluster.now;
    let take = |c: &mut Cluster| {
        let mut s = Sent::default();
        c.shards[0].flush(now, &mut s);
        s.peer.into_iter().filter(|(to, _)| *to == NodeId(2)).map(|(_, b)| b).collect::<Vec<_>>()
    };
    let mut flights = Vec::new();
    for _ in 0..3 {
        cluster.send(&[1; 300]).unwrap();
        cluster.shards[0].lanes[1].forget();
        flights.push(take(&mut cluster));
    }
    for b in &flights[0] {
        cluster.shards[1].on_peer(now, NodeId(1), Boot(1), b);
    }
    let mut s = Sent::default();
    cluster.shards[1].flush(now, &mut s);
    let before = cluster.shards[1].stats().naks_sent;
    for b in &flights[2] {
        cluster.shards[1].on_peer(now, NodeId(1), Boot(1), b);
    } // gap
    for b in &flights[0] {
        cluster.shards[1].on_peer(now, NodeId(1), Boot(1), b);
    } // duplicate
    let mut s = Sent::default();
    cluster.shards[1].flush(now, &mut s);
    eprintln!("naks {}", cluster.shards[1].stats().naks_sent - before);
    assert!(cluster.shards[1].stats().naks_sent > before);
}

/// 15: cost of a packet that is dropped because memory is full.
#[test]
fn f15_retain_full_cost() {
    let map_nodes = (1..=3).map(|n| MapNode { id: NodeId(n), host: HostId(n) }).collect();
    let map = Arc::new(ClusterMap::fixed(4096, map_nodes, NodeId(1), 1, 3, 0).unwrap());
    let mut cluster = Cluster::new(3, |c| {
        c.map = map.clone();
        c.retain_bytes = 10_000;
    });
    cluster.cut.insert(NodeId(2));
    cluster.cut.insert(NodeId(3));
    for _ in 0..60 {
        let _ = cluster.send(&[1; 200]);
    }
    let start = std::time::Instant::now();
    let n = (0..1000).filter(|_| cluster.send(&[1; 200]) == Err(DropReason::RetainFull)).count();
    eprintln!("{n} drops, {:?} each", start.elapsed() / 1000);
}
