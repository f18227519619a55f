//! One node's engine: its sockets, its threads, and how it begins and ends.
//!
//! It runs under a supervisor ([`super::supervisor`]), which reads its exit status. SIGTERM and SIGINT ask it to hand
//! over what it holds and then to end, however often they come; SIGUSR2 ends it at once.

mod checks;
mod error;
mod shape;
mod sip;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use crossbeam::queue::ArrayQueue;
use mio::{Poll, Waker};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;

pub use self::error::NodeError;
pub(in crate::io) use self::error::system;
use self::error::{CONTROL, GROUP, Purpose, SHARD};
pub use self::shape::map_shape;
use self::shape::service_ips;
use super::addresses::{Addresses, Change};
use super::cells::{NodeCells, ShardCell};
use super::control_loop::{ControlEnd, ControlLoop, ControlParts, Holding};
use super::multicast::Groups;
use super::outgoing::Outgoing;
use super::peer::Link;
use super::records::Records;
use super::reload::{self, Ask, Reloader, RouteSource};
use super::shard_loop::{Handed, LINGER, Question, ShardLoop, ShardParts, WAKE};
use super::steer::Steering;
use super::sys_socket::{self, Buffers};
use super::vote_file::VoteFile;
use super::{sys_thread, sys_time};
use crate::app::CallApp;
use crate::app::classify::KeyExtractor;
use crate::app::echo::Echo;
use crate::config::{App, Auto, Fanout, Lossy, Masters, Pin, Settings, Show};
use crate::engine::control::{Control, ControlConfig, CouncilConfig};
use crate::engine::{OPENS_A_TURN, Shard, ShardConfig};
use crate::proto::Safeguards;
use crate::proto::map::MapShape;
use crate::types::{Boot, Nanos, NodeId, NodeSet};
use crate::wire::datagram::OVERHEAD;
use crate::wire::seal::{Opener, Sealer};

/// How long an address that may be another's by now stays on the interface: replies end with the lease, and an address
/// that went with every short silence of the voters would cost clients more.
const KEEP_ADDRESS: Nanos = Nanos::from_millis(30);

/// Client datagrams that may wait for another shard.
const RING: usize = 4_096;
/// Questions that may wait for a shard.
const QUESTIONS: usize = 8;
/// Requests to read the routes that may wait.
const RELOADS: usize = 4;
/// What the keeper of a slot is told when its master or owner is another.
const TAKEOVER: &[u8] = b"T";
/// By multicast at most this many sets of members are reached; others get unicast.
const MOST_MEMBER_SETS: usize = 128;
/// Voters look for another leader after at least so many beats.
const LEAST_ELECTION_TICKS: u64 = 5;
/// However large the jitter, this many times TANDEM_SUSPECT_AFTER of silence make a suspect, and at least...
const SUSPECT_CEILING: u64 = 8;
/// ...this much.
const LEAST_SUSPECT_CEILING: Nanos = Nanos::from_millis(50);

/// How an engine that worked has ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum NodeEnd {
    /// As it was asked to.
    Asked,
    /// By the cluster map its life is over; the next one may join.
    Fenced,
}

/// What can end a node.
enum End {
    /// Hand over what it holds, then end.
    Drain,
    /// End at once.
    Now,
    Control(ControlEnd),
    Thread(String, String),
}

/// A life of a node.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Its boot: later than that of every earlier life of the node.
    pub boot: Boot,
    /// The process that started it, if that is a supervisor.
    pub supervisor: Option<u32>,
}

impl Life {
    /// A life that begins now, under no supervisor.
    pub fn now() -> Life {
        Life { boot: Boot(sys_time::now().wall.0), supervisor: None }
    }
}

/// A node whose threads run.
pub struct RunningNode {
    cells: Arc<NodeCells>,
    threads: Vec<(String, JoinHandle<Option<Value>>)>,
    ends: (Sender<End>, Receiver<End>),
    addresses: Option<Addresses>,
    reload: Sender<Ask>,
}

/// Starts a node's engine and runs it until it is asked to end, or its life is over.
///
/// # Errors
/// See [`NodeError`]: each says what to change.
pub fn run_node(settings: &Settings, life: Life) -> Result<NodeEnd, NodeError> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGUSR2, SIGHUP]).map_err(system("watch for signals"))?;
    quiet_panics();
    let node = RunningNode::start(settings, life)?;
    let (ends, reload) = (node.ends.0.clone(), node.reload.clone());
    let watch = move || {
        for signal in signals.forever() {
            let _ = match signal {
                // One that waits already does for both.
                SIGHUP => reload.try_send(None).is_ok(),
                SIGUSR2 => ends.send(End::Now).is_ok(),
                _ => ends.send(End::Drain).is_ok(),
            };
        }
    };
    spawn("tandem-signals", watch)?;
    // Whoever started the node may not care to read it.
    let (id, shards, service) = (settings.node.0, settings.shards, settings.service.show());
    let media = match settings.app {
        App::Echo => String::new(),
        App::Sip => format!(", media ports {}", settings.media_ports.show()),
    };
    let _ = writeln!(io::stdout(), "node {id} is up: {shards} shards, service addresses {service}{media}");
    let end = node.wait(settings.drain_within);
    let reports = node.stop();
    tracing::info!(counters = %serde_json::json!(reports), "node ends");
    end
}

impl RunningNode {
    /// Starts a node.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub fn start(settings: &Settings, life: Life) -> Result<RunningNode, NodeError> {
        let mut plan = Plan::new(settings, life, map_shape(settings)?);
        plan.check_files()?;
        plan.check_addresses()?;
        plan.steering = sip::steering(settings)?;
        match settings.app {
            App::Echo => {
                plan.start(&Echo { keys: KeyExtractor { rule: settings.key, seed: settings.hash_seed() } })
            }
            App::Sip => {
                let routes = RouteSource::new(settings).read()?;
                let (version, targets) = (format!("{:016x}", routes.hash()), routes.targets().len());
                let (ports, slots) = (settings.media_ports.show(), settings.slots);
                tracing::info!(version, targets, ports, slots, "SIP: routes read");
                plan.founding = Some(reload::notice(&routes));
                plan.start(&sip::app(settings))
            }
        }
    }

    /// Waits until the node is to end. A drain may take `drain_within`.
    fn wait(&self, drain_within: Nanos) -> Result<NodeEnd, NodeError> {
        let mut give_up_at = None;
        loop {
            let end = match give_up_at {
                Some(at) => self.ends.1.recv_deadline(at),
                None => self.ends.1.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match end {
                Ok(End::Drain) if give_up_at.is_none() => {
                    tracing::info!("asked to end: handing over");
                    give_up_at = Some(Instant::now() + Duration::from_nanos(drain_within.0));
                    self.cells.ask_drain();
                }
                Ok(End::Drain) => {}
                Ok(End::Control(ControlEnd::Fenced)) => {
                    tracing::warn!("by the cluster map this life of the node is over");
                    return Ok(NodeEnd::Fenced);
                }
                Ok(End::Control(ControlEnd::CannotLeave(why))) => {
                    tracing::warn!("the node ends without handing over: {why}");
                    return Ok(NodeEnd::Asked);
                }
                Ok(End::Control(ControlEnd::Left)) => {
                    // What was sent here by those who have not heard of the next owner is passed on to it.
                    thread::sleep(Duration::from_nanos(LINGER.0));
                    return Ok(NodeEnd::Asked);
                }
                Ok(End::Now) => return Ok(NodeEnd::Asked),
                Ok(End::Thread(name, reason)) => return Err(NodeError::Thread { name, reason }),
                Err(_) => {
                    tracing::warn!("not all was handed over within TANDEM_DRAIN_WITHIN: the node ends");
                    return Ok(NodeEnd::Asked);
                }
            }
        }
    }

    /// Ends all threads and waits for them; returns their counters.
    pub fn stop(self) -> Vec<Value> {
        self.cells.stop();
        let reports =
            self.threads.into_iter().filter_map(|(_, thread)| thread.join().ok().flatten()).collect();
        self.addresses.into_iter().for_each(Addresses::stop);
        reports
    }
}

/// What is worked out before anything starts.
struct Plan<'a> {
    settings: &'a Settings,
    shape: MapShape,
    life: Life,
    buffers: Buffers,
    groups: Option<Groups>,
    /// The sets this node sends to, and those it hears, by multicast.
    fanouts: Vec<NodeSet>,
    listening: Vec<NodeSet>,
    /// What the keepers of slots are told first, if the application has any.
    founding: Option<Arc<[u8]>>,
    steering: Option<Arc<Steering>>,
}

impl Plan<'_> {
    fn new(settings: &Settings, life: Life, shape: MapShape) -> Plan<'_> {
        let groups = groups(settings);
        let (mut fanouts, mut listening) = (Vec::new(), Vec::new());
        for set in groups.map(|_| member_sets(settings)).unwrap_or_default() {
            let list = if set.contains(settings.node) { &mut listening } else { &mut fanouts };
            list.push(set);
        }
        Plan {
            settings,
            life,
            buffers: Buffers { recv: settings.rcvbuf.0, send: settings.sndbuf.0 },
            groups,
            fanouts,
            listening,
            founding: None,
            steering: None,
            shape,
        }
    }

    fn control_address(&self, node: NodeId) -> SocketAddr {
        self.settings.control_address(node).expect("nodes of the settings have addresses")
    }

    fn shard_address(&self, node: NodeId, shard: u16) -> SocketAddr {
        self.settings.shard_address(node, shard).expect("checked: every shard has a port")
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
        let addresses = Addresses::start(self.settings, cells.clone()).map_err(system("start a thread"))?;
        let (ends, (reload, asked)) = (channel::unbounded(), channel::bounded(RELOADS));
        let reloader = Reloader::new(self.settings, cells.clone());
        spawn("tandem-reload", move || reloader.run(&asked))?;
        let news = (addresses.changes(), ends.0.clone());
        let control = self.control(control_poll, cells.clone(), (questions, reload.clone()), news)?;

        let addresses = Some(addresses);
        let mut node = RunningNode { cells, threads: Vec::new(), ends, addresses, reload };
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
        let sealer = Sealer::new(&settings.sealing_key(), settings.node, self.life.boot, 1 + shard);
        let mut outgoing = Outgoing::new(settings.service.len(), links, fanouts, sealer, cells.clone());
        outgoing.media = sip::media(settings, shard, self.steering.as_ref(), self.buffers)?;
        outgoing.records = self.records()?;
        Ok(ShardParts {
            node: settings.node,
            boot: self.life.boot,
            shard,
            endpoints: settings.service.clone(),
            buffers: self.buffers,
            gather: settings.gather,
            slots: settings.slots,
            batch: settings.batch,
            poll,
            outgoing,
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
            boot: self.life.boot,
            shard,
            shards: settings.shards,
            nodes: settings.nodes.iter().map(|node| node.id).collect(),
            map: Arc::new(self.shape.empty_map()),
            blocked_after: settings.dead_after,
            lossy_go: settings.lossy == Lossy::Go,
            resync_rate: u64::from(settings.resync_mbps) * 1_000_000 / u64::from(settings.shards),
            datagram_room: settings.max_datagram() - OVERHEAD,
            window: settings.window.into(),
            retain_bytes: settings.retain_mb as usize * (1 << 20),
            limits: sip::limits(settings),
            digest_every: settings.digest_every,
            hedge_after: settings.hedge_after,
            multicast: self.groups.is_some(),
            lazy_after: settings.lazy_after,
            masters_own: settings.masters == Masters::Owner,
            opens_a_turn: OPENS_A_TURN,
            admission: sip::admission(settings),
            founding: self.founding.clone(),
            takeover: self.founding.as_ref().map(|_| Arc::from(TAKEOVER)),
            safeguards: Safeguards::default(),
        }
    }

    fn control(
        &self,
        poll: Poll,
        cells: Arc<NodeCells>,
        (shards, reload): (Vec<Sender<Question>>, Sender<Ask>),
        (changes, ends): (Sender<Change>, Sender<End>),
    ) -> Result<ControlLoop<Control>, NodeError> {
        let settings = self.settings;
        let own = self.control_address(settings.node);
        let cluster_wide = settings.cluster_wide();
        let ceiling = Nanos(settings.suspect_after.0.saturating_mul(SUSPECT_CEILING));
        let mut vote_file = self.vote_file()?;
        let core = Control::new(ControlConfig {
            node: settings.node,
            boot: self.life.boot,
            peers: settings.peers().map(|node| node.id).collect(),
            shards: settings.shards,
            beat: settings.beat,
            suspect_after: settings.suspect_after,
            suspect_ceiling: ceiling.max(LEAST_SUSPECT_CEILING),
            settings: cluster_wide.pairs,
            settings_hash: cluster_wide.hash,
            council: CouncilConfig {
                shape: self.shape.clone(),
                voters: settings.voters.clone(),
                lease: settings.lease,
                dead_after: settings.dead_after,
                evict_after: settings.evict_after,
                lossy_go: settings.lossy == Lossy::Go,
                stored: vote_file.as_ref().and_then(|file| file.stored().map(<[u8]>::to_vec)),
                birth: vote_file.as_ref().map_or(0, VoteFile::birth),
                election_ticks: (settings.dead_after.0 / settings.beat.0 / 3).max(LEAST_ELECTION_TICKS),
                promises: true,
            },
        })?;
        // Nobody can have become the owner earlier than so long after the lease was over.
        let grace = settings.dead_after - settings.lease + KEEP_ADDRESS;
        let addresses = service_ips(settings);
        let parts = ControlParts {
            node: settings.node,
            boot: self.life.boot,
            poll,
            links: self.links(CONTROL, own, |node| self.control_address(node))?,
            door: sys_socket::bind(own, true).map_err(CONTROL.failed(own))?,
            sealer: Sealer::new(&settings.sealing_key(), settings.node, self.life.boot, 0),
            opener: self.opener(),
            cells,
            shards,
            reload,
            urgent: settings.rt == Auto::Auto,
            supervisor: self.life.supervisor,
            holding: Holding::new((settings.node, self.life.boot), grace, &addresses, changes),
            save: Box::new(move |state| match &mut vote_file {
                Some(file) => file.save(state).map_err(io::Error::other),
                None => Ok(()),
            }),
            ends: Box::new(move |end| {
                // Nobody listens any more when the node ends already.
                let _ = ends.send(End::Control(end));
            }),
        };
        ControlLoop::new(core, parts).map_err(system("set up the control loop"))
    }

    /// A shard's way to the file of call records, if there is one.
    fn records(&self) -> Result<Option<Records>, NodeError> {
        let Some(file) = &self.settings.cdr else { return Ok(None) };
        Records::open(file).map(Some).map_err(|error| NodeError::Records { file: file.clone(), error })
    }

    /// The file in which this node's votes survive, if it is a voter.
    fn vote_file(&self) -> Result<Option<VoteFile>, NodeError> {
        let settings = self.settings;
        if !settings.voters.contains(&settings.node) {
            return Ok(None);
        }
        let birth = self.life.boot.0 ^ u64::from(std::process::id()).rotate_right(16);
        Ok(Some(VoteFile::open(&settings.data_dir, &settings.cluster, settings.node, birth)?))
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
        Opener::new(&self.settings.sealing_key(), node, self.life.boot, peers)
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
