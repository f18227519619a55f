//! One node's engine: its sockets, its threads, and how it begins and ends.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use crossbeam::channel::{self, Receiver, Sender};
use crossbeam::queue::ArrayQueue;
use mio::{Poll, Waker};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::cells::{NodeCells, ShardCell};
use super::client::ClientSocket;
use super::control_loop::{ControlLoop, ControlParts};
use super::multicast::Groups;
use super::outgoing::Outgoing;
use super::peer::Link;
use super::shard_loop::{Handed, Question, ShardLoop, ShardParts, WAKE};
use super::sys_socket::{self, Buffers};
use super::{sys_thread, sys_time};
use crate::app::CallApp;
use crate::app::classify::KeyExtractor;
use crate::app::echo::Echo;
use crate::app::table::TableLimits;
use crate::config::{App, Auto, Fanout, Lossy, Pin, Settings, Show};
use crate::engine::control::{Control, ControlConfig};
use crate::engine::{Shard, ShardConfig};
use crate::proto::Safeguards;
use crate::proto::map::{ClusterMap, MapError, MapNode, MapShape, NodeState};
use crate::types::{Boot, HostId, LocalId, Nanos, NodeId, NodeSet};
use crate::wire::datagram::OVERHEAD;
use crate::wire::seal::{Opener, Sealer};

/// Client datagrams that may wait for another shard.
const RING: usize = 4_096;
/// Questions that may wait for a shard.
const QUESTIONS: usize = 8;
/// Files that a node holds besides its sockets: standard ones, the log, signals, and some air.
const OTHER_FILES: u64 = 24;
/// Epoll instance, waker and timer of a thread.
const FILES_A_THREAD: u64 = 3;
/// By multicast at most this many sets of members are reached; others get unicast.
const MOST_MEMBER_SETS: usize = 128;
/// However large the jitter, this many times TANDEM_SUSPECT_AFTER of silence make a suspect, and at least...
const SUSPECT_CEILING: u64 = 8;
/// ...this much.
const LEAST_SUSPECT_CEILING: Nanos = Nanos::from_millis(50);

/// Why a node cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Somebody has the address.
    #[error("{address} ({what}) is in use: stop the process that has it, or change {setting}")]
    InUse {
        /// What it was to be bound for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The setting it comes from.
        setting: &'static str,
    },
    /// No interface has the address.
    #[error(
        "{address} ({what}) is not an address of this machine: add it to an interface, or change {setting}"
    )]
    NotHere {
        /// What it was to be bound for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The setting it comes from.
        setting: &'static str,
    },
    /// Another error of a socket.
    #[error("{address} ({what}, from {setting}): {error}")]
    Socket {
        /// What it was to be bound for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The setting it comes from.
        setting: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// Fewer open files allowed than needed.
    #[error(
        "this node needs {needed} open files and may have {limit}: raise the limit (ulimit -n, LimitNOFILE=)"
    )]
    OpenFiles {
        /// What it needs.
        needed: u64,
        /// The hard limit.
        limit: u64,
    },
    /// The settings make no cluster map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Something else the system refused.
    #[error("cannot {what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A thread ended that should not have.
    #[error("the thread {name} ended: {reason}")]
    Thread {
        /// Its name.
        name: String,
        /// What it said.
        reason: String,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> NodeError {
    move |error| NodeError::System { what, error }
}

/// What an address is for, for error messages.
#[derive(Copy, Clone)]
struct Purpose {
    what: &'static str,
    setting: &'static str,
}

const CONTROL: Purpose = Purpose { what: "control", setting: "TANDEM_NODES" };
const SHARD: Purpose = Purpose { what: "shards", setting: "TANDEM_NODES" };
const SERVICE: Purpose = Purpose { what: "service endpoint", setting: "TANDEM_SERVICE" };
const GROUP: Purpose = Purpose { what: "multicast", setting: "TANDEM_MULTICAST_GROUP" };

impl Purpose {
    fn failed(self, address: SocketAddr) -> impl FnOnce(io::Error) -> NodeError {
        let Purpose { what, setting } = self;
        move |error| match error.kind() {
            io::ErrorKind::AddrInUse => NodeError::InUse { what, address, setting },
            io::ErrorKind::AddrNotAvailable => NodeError::NotHere { what, address, setting },
            _ => NodeError::Socket { what, address, setting, error },
        }
    }
}

/// What can end a node.
enum End {
    Signal,
    Thread(String, String),
}

/// A node whose threads run.
pub struct RunningNode {
    cells: Arc<NodeCells>,
    threads: Vec<(String, JoinHandle<Option<Value>>)>,
    ends: (Sender<End>, Receiver<End>),
}

/// Starts a node and runs it until SIGTERM or SIGINT.
///
/// # Errors
/// See [`NodeError`]: each says what to change.
pub fn run_node(settings: &Settings) -> Result<(), NodeError> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(system("watch for signals"))?;
    quiet_panics();
    let node = RunningNode::start(settings)?;
    let ends = node.ends.0.clone();
    let watch = move || {
        if signals.forever().next().is_some() {
            let _ = ends.send(End::Signal);
        }
    };
    spawn("tandem-signals", watch)?;
    let service = settings.service.show();
    let serves = if settings.owner == settings.node { "serves" } else { "stands behind" };
    // Whoever started the node may not care to read it.
    let (id, shards) = (settings.node.0, settings.shards);
    let _ = writeln!(io::stdout(), "node {id} is up: {shards} shards, {serves} {service}");
    let end = node.ends.1.recv().unwrap_or(End::Signal);
    let reports = node.stop();
    tracing::info!(counters = %serde_json::json!(reports), "node ends");
    match end {
        End::Signal => Ok(()),
        End::Thread(name, reason) => Err(NodeError::Thread { name, reason }),
    }
}

impl RunningNode {
    /// Starts a node.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub fn start(settings: &Settings) -> Result<RunningNode, NodeError> {
        let map = Arc::new(cluster_map(settings)?);
        let plan = Plan::new(settings, map);
        plan.check_files()?;
        plan.check_addresses()?;
        match settings.app {
            App::Echo => {
                plan.start(&Echo { keys: KeyExtractor { rule: settings.key, seed: settings.hash_seed() } })
            }
        }
    }

    /// Ends all threads and waits for them; returns their counters.
    pub fn stop(self) -> Vec<Value> {
        self.cells.stop();
        self.threads.into_iter().filter_map(|(_, thread)| thread.join().ok().flatten()).collect()
    }
}

/// What is worked out before anything starts.
struct Plan<'a> {
    settings: &'a Settings,
    map: Arc<ClusterMap>,
    boot: Boot,
    buffers: Buffers,
    /// The service endpoints that this node holds.
    endpoints: Vec<(LocalId, SocketAddr)>,
    groups: Option<Groups>,
    /// The sets this node sends to, and those it hears, by multicast.
    fanouts: Vec<NodeSet>,
    listening: Vec<NodeSet>,
}

impl Plan<'_> {
    fn new(settings: &Settings, map: Arc<ClusterMap>) -> Plan<'_> {
        let held = |index: &usize| map.addresses[usize::from(map.endpoints[*index])].owner == settings.node;
        let local = |index: usize| (LocalId(index as u16), settings.service[index]);
        let endpoints = (0..settings.service.len()).filter(held).map(local).collect();
        let groups = groups(settings);
        let (mut fanouts, mut listening) = (Vec::new(), Vec::new());
        for set in groups.map(|_| member_sets(settings)).unwrap_or_default() {
            let list = if set.contains(settings.node) { &mut listening } else { &mut fanouts };
            list.push(set);
        }
        Plan {
            settings,
            boot: Boot(sys_time::now().wall.0),
            buffers: Buffers { recv: settings.rcvbuf.0, send: settings.sndbuf.0 },
            endpoints,
            groups,
            fanouts,
            listening,
            map,
        }
    }

    fn control_address(&self, node: NodeId) -> SocketAddr {
        self.settings.control_address(node).expect("nodes of the settings have addresses")
    }

    fn shard_address(&self, node: NodeId, shard: u16) -> SocketAddr {
        self.settings.shard_address(node, shard).expect("checked: every shard has a port")
    }

    fn check_files(&self) -> Result<(), NodeError> {
        let limit = sys_thread::raise_open_files().map_err(system("read the limit of open files"))?;
        let links = self.settings.peers().count() as u64;
        let multicast = (self.fanouts.len() + self.listening.len()) as u64;
        let shard = FILES_A_THREAD + links + multicast + self.endpoints.len() as u64;
        let control = FILES_A_THREAD + links + 1;
        let needed = OTHER_FILES + control + shard * u64::from(self.settings.shards);
        if limit < needed { Err(NodeError::OpenFiles { needed, limit }) } else { Ok(()) }
    }

    /// The node's sockets share their addresses among themselves, so the kernel would not mind a stranger.
    fn check_addresses(&self) -> Result<(), NodeError> {
        let me = self.settings.node;
        let shards = (0..self.settings.shards).map(|shard| (SHARD, self.shard_address(me, shard)));
        let service = self.endpoints.iter().map(|(_, endpoint)| (SERVICE, *endpoint));
        for (purpose, address) in
            [(CONTROL, self.control_address(me))].into_iter().chain(shards).chain(service)
        {
            sys_socket::probe_free(address).map_err(purpose.failed(address))?;
        }
        Ok(())
    }

    fn start<A: CallApp + Clone + Send + 'static>(&self, app: &A) -> Result<RunningNode, NodeError> {
        let epoll = || Poll::new().map_err(system("make an epoll instance"));
        let waker = |poll: &Poll| Waker::new(poll.registry(), WAKE).map_err(system("make an eventfd"));
        let polls = (0..self.settings.shards).map(|_| epoll()).collect::<Result<Vec<_>, _>>()?;
        let shards = polls.iter().map(|poll| waker(poll).map(ShardCell::new)).collect::<Result<_, _>>()?;
        let control_poll = epoll()?;
        let cells = Arc::new(NodeCells::new(shards, waker(&control_poll)?));
        let rings: Vec<_> = polls.iter().map(|_| Arc::new(ArrayQueue::<Handed>::new(RING))).collect();
        let (questions, asked): (Vec<_>, Vec<_>) = polls.iter().map(|_| channel::bounded(QUESTIONS)).unzip();
        let mut parts = Vec::new();
        for (shard, (poll, asked)) in (0..self.settings.shards).zip(polls.into_iter().zip(asked)) {
            parts.push(self.shard_parts(shard, poll, cells.clone(), rings.clone(), asked)?);
        }
        let control = self.control(control_poll, cells.clone(), questions)?;

        let mut node = RunningNode { cells, threads: Vec::new(), ends: channel::unbounded() };
        for parts in parts {
            let name = format!("shard-{}", parts.shard);
            let (config, app, core) =
                (self.shard_config(parts.shard), app.clone(), self.core_for(parts.shard));
            node.add(name, move || {
                pin(core);
                sys_thread::make_patient();
                ShardLoop::new(Shard::new(config, app), parts)?.run()
            })?;
        }
        node.add("control".into(), move || control.run())?;
        Ok(node)
    }

    fn shard_parts(
        &self,
        shard: u16,
        poll: Poll,
        cells: Arc<NodeCells>,
        rings: Vec<Arc<ArrayQueue<Handed>>>,
        questions: Receiver<Question>,
    ) -> Result<ShardParts, NodeError> {
        let settings = self.settings;
        let mut clients = Vec::new();
        for (local, endpoint) in &self.endpoints {
            let bound = ClientSocket::bind(*local, *endpoint, self.buffers);
            let (client, granted) = bound.map_err(SERVICE.failed(*endpoint))?;
            self.warn_if_small(granted, *endpoint);
            clients.push(client);
        }
        let own = self.shard_address(settings.node, shard);
        let links = self.links(SHARD, own, |node| self.shard_address(node, shard))?;
        let (mut fanouts, mut listening) = (Vec::new(), Vec::new());
        if let Some(groups) = &self.groups {
            for set in &self.fanouts {
                let failed = GROUP.failed(groups.address(*set, shard));
                fanouts.push((*set, Link::over(groups.sender(*set, shard).map_err(failed)?)));
            }
            for set in &self.listening {
                let failed = GROUP.failed(groups.address(*set, shard));
                listening.push(Link::over(groups.listen(*set, shard, self.buffers).map_err(failed)?));
            }
        }
        let sealer = Sealer::new(&settings.sealing_key(), settings.node, self.boot, 1 + shard);
        Ok(ShardParts {
            shard,
            slots: settings.slots,
            batch: settings.batch,
            poll,
            outgoing: Outgoing::new(clients, links, fanouts, sealer, cells.clone()),
            listening,
            opener: self.opener(),
            cells,
            rings,
            questions,
        })
    }

    fn shard_config(&self, shard: u16) -> ShardConfig {
        let settings = self.settings;
        ShardConfig {
            me: settings.node,
            boot: self.boot,
            shard,
            shards: settings.shards,
            nodes: settings.nodes.iter().map(|node| node.id).collect(),
            map: self.map.clone(),
            blocked_after: settings.dead_after,
            lossy_go: settings.lossy == Lossy::Go,
            resync_rate: u64::from(settings.resync_mbps) * 1_000_000 / u64::from(settings.shards),
            datagram_room: settings.max_datagram() - OVERHEAD,
            window: settings.window.into(),
            retain_bytes: settings.retain_mb as usize * (1 << 20),
            limits: TableLimits { max_calls: settings.max_calls_per_slot, idle: settings.call_idle },
            digest_every: settings.digest_every,
            hedge_after: settings.hedge_after,
            multicast: self.groups.is_some(),
            safeguards: Safeguards::default(),
        }
    }

    fn control(
        &self,
        poll: Poll,
        cells: Arc<NodeCells>,
        shards: Vec<Sender<Question>>,
    ) -> Result<ControlLoop<Control>, NodeError> {
        let settings = self.settings;
        let own = self.control_address(settings.node);
        let cluster_wide = settings.cluster_wide();
        let ceiling = Nanos(settings.suspect_after.0.saturating_mul(SUSPECT_CEILING));
        let core = Control::new(ControlConfig {
            node: settings.node,
            boot: self.boot,
            peers: settings.peers().map(|node| node.id).collect(),
            shards: settings.shards,
            beat: settings.beat,
            suspect_after: settings.suspect_after,
            suspect_ceiling: ceiling.max(LEAST_SUSPECT_CEILING),
            settings: cluster_wide.pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            settings_hash: cluster_wide.hash,
        });
        let parts = ControlParts {
            node: settings.node,
            boot: self.boot,
            poll,
            links: self.links(CONTROL, own, |node| self.control_address(node))?,
            door: sys_socket::bind(own, true).map_err(CONTROL.failed(own))?,
            sealer: Sealer::new(&settings.sealing_key(), settings.node, self.boot, 0),
            opener: self.opener(),
            cells,
            shards,
            urgent: settings.rt == Auto::Auto,
        };
        ControlLoop::new(core, parts).map_err(system("set up the control loop"))
    }

    /// Links from `own` to every peer.
    fn links(
        &self,
        purpose: Purpose,
        own: SocketAddr,
        theirs: impl Fn(NodeId) -> SocketAddr,
    ) -> Result<Vec<(NodeId, Link)>, NodeError> {
        let mut links = Vec::new();
        for peer in self.settings.peers() {
            let connected = Link::connect(own, theirs(peer.id), self.buffers);
            let (link, granted) = connected.map_err(purpose.failed(own))?;
            self.warn_if_small(granted, own);
            links.push((peer.id, link));
        }
        Ok(links)
    }

    fn opener(&self) -> Opener {
        let (node, peers) = (self.settings.node, self.settings.nodes.ids());
        Opener::new(&self.settings.sealing_key(), node, self.boot, peers)
    }

    fn warn_if_small(&self, granted: Buffers, address: SocketAddr) {
        if granted.recv < self.buffers.recv || granted.send < self.buffers.send {
            let (recv, send) = (granted.recv, granted.send);
            tracing::warn!(%address, recv, send, "the kernel grants smaller buffers than TANDEM_RCVBUF and _SNDBUF: raise net.core.rmem_max and wmem_max");
        }
    }

    /// The core to pin a shard to.
    fn core_for(&self, shard: u16) -> Option<usize> {
        let shard = usize::from(shard);
        match &self.settings.pin {
            Pin::Off => None,
            Pin::Cores(cores) => cores.get(shard % cores.len().max(1)).copied(),
            Pin::Auto => {
                let cores = sys_thread::allowed_cores().unwrap_or_default();
                let shards = usize::from(self.settings.shards);
                // A single shard is left to the scheduler: it may be one of several nodes on this machine.
                (shards > 1 && cores.len() >= shards).then(|| cores[shard])
            }
        }
    }
}

impl RunningNode {
    /// Runs `work` in a thread of its own, whose end without having been asked ends the node.
    fn add(
        &mut self,
        name: String,
        work: impl FnOnce() -> io::Result<Value> + Send + 'static,
    ) -> Result<(), NodeError> {
        let (ends, label, cells) = (self.ends.0.clone(), name.clone(), self.cells.clone());
        let guarded = move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let (report, reason) = match result {
                Ok(Ok(report)) => (Some(report), "its loop was left".to_owned()),
                Ok(Err(error)) => (None, error.to_string()),
                Err(_) => (None, "a panic, see the log".to_owned()),
            };
            if !cells.stopping() {
                let _ = ends.send(End::Thread(label, reason));
            }
            report
        };
        match spawn(&format!("tandem-{name}"), guarded) {
            Ok(thread) => {
                self.threads.push((name, thread));
                Ok(())
            }
            Err(error) => {
                self.cells.stop();
                Err(error)
            }
        }
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, NodeError> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map_err(system("start a thread"))
}

fn pin(core: Option<usize>) {
    if let Some(core) = core
        && let Err(error) = sys_thread::pin_to(core)
    {
        tracing::warn!(core, %error, "cannot pin this packet loop (TANDEM_PIN)");
    }
}

/// What all maps of the cluster have in common. Endpoints with one IP belong to one service address.
pub fn map_shape(settings: &Settings) -> Result<MapShape, MapError> {
    let nodes = settings.nodes.iter().map(|node| MapNode {
        id: node.id,
        host: settings.nodes.host_of(node.id).unwrap_or(HostId(0)),
        boot: Boot(0),
        state: NodeState::Gone,
        witness: settings.witness.contains(&node.id),
        birth: 0,
    });
    let mut addresses = Vec::new();
    let mut number = |endpoint: &SocketAddr| match addresses.iter().position(|ip| *ip == endpoint.ip()) {
        Some(known) => known as u16,
        None => {
            addresses.push(endpoint.ip());
            addresses.len() as u16 - 1
        }
    };
    let endpoints = settings.service.iter().map(&mut number).collect();
    let Settings { slots, shards, owner, r, commit, .. } = *settings;
    MapShape::new((slots, shards), nodes.collect(), owner, endpoints, r, commit)
}

fn cluster_map(settings: &Settings) -> Result<ClusterMap, MapError> {
    Ok(map_shape(settings)?.first_map(|_| Boot(1)))
}

/// Where this cluster multicasts, if it is to. Nodes with IPv6 addresses get unicast.
fn groups(settings: &Settings) -> Option<Groups> {
    match (settings.fanout, settings.me().address) {
        (Fanout::Multicast, SocketAddr::V4(own)) => {
            let group = settings.multicast_group;
            Some(Groups { first: *group.ip(), port: group.port(), interface: *own.ip() })
        }
        _ => None,
    }
}

/// Every set of nodes that some owner may have to send the same entries to: two to R nodes.
fn member_sets(settings: &Settings) -> Vec<NodeSet> {
    let nodes: Vec<NodeId> =
        settings.nodes.iter().map(|n| n.id).filter(|id| !settings.witness.contains(id)).collect();
    let mut sets = vec![NodeSet::EMPTY];
    for node in nodes {
        for at in 0..sets.len() {
            let mut larger = sets[at];
            larger.insert(node);
            if larger.0.count_ones() as usize <= settings.r && sets.len() <= MOST_MEMBER_SETS {
                sets.push(larger);
            }
        }
    }
    sets.retain(|set| set.0.count_ones() >= 2);
    sets
}

/// A panic of an application is caught and ends one call: it must not fill the log.
fn quiet_panics() {
    /// Told in full; after that one in a thousand.
    const TOLD: u64 = 10;
    static PANICS: AtomicU64 = AtomicU64::new(0);
    std::panic::set_hook(Box::new(|panic| {
        let count = PANICS.fetch_add(1, Relaxed) + 1;
        if count <= TOLD || count.is_multiple_of(1_000) {
            let thread = thread::current();
            tracing::error!(count, thread = thread.name().unwrap_or_default(), "{panic}");
        }
    }));
}

#[cfg(test)]
mod tests;
