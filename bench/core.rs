//! The slot log without sockets: nanoseconds and bytes per entry through owner and members.
//!
//! Three shards stand side by side and hand each other their datagrams as plain bytes. Each is timed apart:
//! the owner's node (append, fan-out, its own member, acks, release), one other member (check order, execute,
//! keep, ack). The question: does the cost of an entry stay flat from a thousand calls to ten million?

mod calls;
mod common;

use common::{Args, table};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;
use tandem::app::classify::{KeyExtractor, KeyRule};
use tandem::app::echo::Echo;
use tandem::app::table::TableLimits;
use tandem::app::{CallApp, Inbound};
use tandem::engine::{OPENS_A_TURN, Outbox, Shard, ShardConfig};
use tandem::proto::Safeguards;
use tandem::proto::map::{MapNode, MapShape};
use tandem::types::{Boot, Endpoint, HostId, LocalId, Nanos, NodeId, NodeSet, Now, Slot};

const SLOTS: u16 = 4096;
const PAYLOAD: usize = 200;
const BATCH: usize = 32;

#[derive(Default)]
struct Wire {
    /// The node that is flushing.
    from: u16,
    /// (from, to, plaintext)
    under_way: Vec<(u16, u16, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
    replies: usize,
}

impl Outbox for Wire {
    fn peer(&mut self, to: NodeId, plaintext: &[u8]) {
        let mut datagram = self.spare.pop().unwrap_or_default();
        datagram.clear();
        datagram.extend_from_slice(plaintext);
        self.under_way.push((self.from, to.0, datagram));
    }

    fn multicast(&mut self, _: NodeSet, _: &[u8]) {}

    fn client(&mut self, _: Slot, _: LocalId, _: Endpoint, _: &[u8]) {
        self.replies += 1;
    }
}

struct Bench {
    shards: Vec<Shard<Echo>>,
    wire: Wire,
    now: Now,
    /// Nanoseconds spent in each node.
    spent: [u64; 4],
}

impl Bench {
    fn new(nodes: u16, calls: u64) -> Bench {
        let node = |n| MapNode::new(NodeId(n), HostId(n));
        let ids: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
        let nodes_of_map = (1..=nodes).map(node).collect();
        let shape = MapShape::new((SLOTS, 1), nodes_of_map, NodeId(1), vec![0], usize::from(nodes), 0);
        let shape = shape.expect("a valid map");
        let now = Now { mono: Nanos::from_secs(9), wall: Nanos::from_secs(1_700_000_000) };
        let shard = |n: u16| {
            let config = ShardConfig {
                me: NodeId(n),
                boot: Boot(1),
                shard: 0,
                shards: 1,
                nodes: ids.clone(),
                map: Arc::new(shape.empty_map()),
                blocked_after: Nanos::from_millis(15),
                lossy_go: true,
                resync_rate: 0,
                datagram_room: 1430,
                window: 16_384,
                retain_bytes: 64 << 20,
                limits: TableLimits { max_calls: (calls / 1000 + 4096) as u32, idle: Nanos::MAX },
                digest_every: 64,
                hedge_after: Nanos::from_millis(1),
                multicast: false,
                lazy_after: Nanos::from_millis(2),
                masters_own: false,
                opens_a_turn: OPENS_A_TURN,
                admission: Default::default(),
                founding: None,
                takeover: None,
                safeguards: Safeguards::default(),
            };
            Shard::new(config, Echo { keys: KeyExtractor { rule: KeyRule::Rtp, seed: 7 } })
        };
        let mut shards: Vec<_> = (1..=nodes).map(shard).collect();
        for shard in &mut shards {
            (1..=nodes).for_each(|peer| shard.on_join(now, NodeId(peer), Boot(1)));
            shard.on_map(now, Arc::new(shape.first_map(|_| Boot(1))));
            shard.on_lease(now, Nanos::MAX);
        }
        let mut bench = Bench { shards, wire: Wire::default(), now, spent: [0; 4] };
        // The owner asks the members what they hold: nothing.
        bench.flush(1);
        for _ in 0..3 {
            for node in (2..=nodes).chain([1]) {
                bench.deliver(node);
            }
        }
        bench.spent = [0; 4];
        bench
    }

    /// Runs one batch of packets, one for each call from `first` on, through every node.
    fn batch(&mut self, first: u64, calls: u64, packet: &mut [u8]) {
        self.now.mono = self.now.mono + Nanos::from_micros(300);
        self.now.wall = self.now.wall + Nanos::from_micros(300);
        let now = self.now;
        let start = Instant::now();
        for n in 0..BATCH as u64 {
            let call = (first + n) % calls;
            packet[8..12].copy_from_slice(&(call as u32).to_be_bytes());
            let source = Endpoint { ip: [3; 16], port: (call % 50_000) as u16 };
            let inbound = Inbound { source, local: LocalId::endpoint(0), payload: packet };
            let shard = &mut self.shards[0];
            let key = shard.app().classify(&inbound).expect("an RTP packet");
            shard.on_client(now, key, &inbound).expect("a place in the log");
        }
        self.flush(1);
        self.spent[1] += start.elapsed().as_nanos() as u64;
        for _ in 0..2 {
            for node in (2..=self.shards.len() as u16).chain([1]) {
                self.deliver(node);
            }
        }
    }

    fn flush(&mut self, node: u16) {
        let shard = &mut self.shards[usize::from(node) - 1];
        self.wire.from = node;
        let before = self.wire.replies;
        shard.on_timeout(self.now);
        shard.flush(self.now, &mut self.wire);
        shard.on_sent(self.now, self.wire.replies - before);
    }

    fn deliver(&mut self, node: u16) {
        let (mine, others) =
            std::mem::take(&mut self.wire.under_way).into_iter().partition(|(_, to, _)| *to == node);
        self.wire.under_way = others;
        let mine: Vec<(u16, u16, Vec<u8>)> = mine;
        let start = Instant::now();
        for (from, _, datagram) in &mine {
            self.shards[usize::from(node) - 1].on_peer(self.now, NodeId(*from), Boot(1), datagram);
        }
        self.flush(node);
        self.spent[usize::from(node)] += start.elapsed().as_nanos() as u64;
        self.wire.spare.extend(mine.into_iter().map(|(_, _, d)| d));
    }
}

/// One row: `calls` live calls at R = `nodes`, `entries` packets after every call has been opened.
fn measure(nodes: u16, calls: u64, entries: u64) -> Row {
    let mut bench = Bench::new(nodes, calls);
    let mut packet = vec![0u8; PAYLOAD];
    packet[0] = 0x80;
    let mut first = 0;
    while first < calls {
        bench.batch(first, calls, &mut packet);
        first += BATCH as u64;
    }
    // A stride without a common factor visits the calls out of the order in which they were opened.
    let stride = 7919 * BATCH as u64;
    let warm = entries / 10;
    let (mut done, mut best) = (0, [u64::MAX; 4]);
    while done < entries {
        let before = bench.spent;
        let round = entries / 5;
        let mut n = 0;
        while n < round {
            first = (first + stride) % calls;
            bench.batch(first, calls, &mut packet);
            n += BATCH as u64;
        }
        done += n;
        if done > warm {
            for (node, best) in best.iter_mut().enumerate() {
                *best = (*best).min((bench.spent[node] - before[node]) / n);
            }
        }
    }
    let stats = bench.shards[0].stats();
    assert_eq!(stats.calls, calls, "every call is live");
    assert_eq!(stats.entries, stats.released, "every entry was answered");
    Row {
        nodes,
        calls,
        owner_ns: best[1],
        member_ns: if nodes > 1 { best[2] } else { 0 },
        bytes_per_call: stats.calls_bytes as f64 / calls as f64,
    }
}

struct Row {
    nodes: u16,
    calls: u64,
    owner_ns: u64,
    member_ns: u64,
    bytes_per_call: f64,
}

fn main() {
    let args = Args::read("core", &["--calls"]);
    let sizes = match (args.get("--calls").map(str::parse), args.quick) {
        (Some(Ok(calls)), _) => vec![10_000, calls],
        (Some(Err(error)), _) => {
            eprintln!("core: --calls: {error}");
            std::process::exit(2);
        }
        (None, true) => vec![1_000, 10_000, 100_000],
        (None, false) => vec![1_000, 10_000, 100_000, 1_000_000, 5_000_000, 10_000_000],
    };
    let entries = if args.quick { 100_000 } else { 1_000_000 };
    let headings =
        ["replicas", "calls", "owner_ns", "member_ns", "cluster_ns", "bytes_per_call", "vs_10k_calls"];
    let mut rows = vec![headings.map(String::from).to_vec()];
    let mut out = Vec::new();
    for nodes in [1, 3] {
        let mut base = None;
        let measured: Vec<Row> = sizes.iter().map(|calls| measure(nodes, *calls, entries)).collect();
        for row in &measured {
            let cluster = row.owner_ns + row.member_ns * u64::from(row.nodes - 1);
            if row.calls == 10_000 {
                base = Some(cluster);
            }
        }
        for row in measured {
            let cluster = row.owner_ns + row.member_ns * u64::from(row.nodes - 1);
            let ratio = cluster as f64 / base.unwrap_or(cluster) as f64;
            rows.push(vec![
                row.nodes.to_string(),
                row.calls.to_string(),
                row.owner_ns.to_string(),
                row.member_ns.to_string(),
                cluster.to_string(),
                format!("{:.1}", row.bytes_per_call),
                format!("{ratio:.2}"),
            ]);
            out.push(json!({
                "system": format!("tandem-r{}", row.nodes), "calls": row.calls, "owner_ns": row.owner_ns,
                "member_ns": row.member_ns, "cluster_ns": cluster, "bytes_per_call": row.bytes_per_call,
                "ratio_to_10k_calls": ratio,
            }));
        }
    }
    table(&rows);
    println!();
    for row in calls::measure(args.quick) {
        out.push(json!(row));
    }
    args.write("core", &out);
}
