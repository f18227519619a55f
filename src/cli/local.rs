//! `tandem local`: a cluster of separate processes on loopback, kept until Ctrl-C. Also what `tandem demo`, the
//! benches and the tests run their load against.

use super::config::SettingArgs;
use super::{BadUsage, json};
use crate::config::{Settings, resolve_from_environment};
use crate::io::operator::{self, AskError, DIGESTS, STATUS};
use crate::io::sys_process::{Signal, signal};
use crate::types::{Nanos, NodeId};
use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where the search for free ports begins.
const FIRST_CLUSTER_PORT: u16 = 17_100;
const FIRST_SERVICE_PORT: u16 = 15_060;
/// How long the nodes may take until all of them have met.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// How long the shards of a node may take to find the time for an answer.
const WHOLE_WITHIN: Duration = Duration::from_secs(2);
/// How long they may take to end.
const END_WITHIN: Duration = Duration::from_secs(3);

/// The arguments of `tandem local`.
#[derive(Args, Debug)]
pub struct LocalArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Also write {"nodes": [{name, host, pid, engine_pid}], "service_addresses": ["IP:PORT"]} to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a cluster on loopback is made of.
#[derive(Args, Clone, Debug)]
pub struct ClusterArgs {
    /// How many nodes, each a process of its own that stands for a host of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
    /// The nodes' settings, as far as a cluster on loopback leaves them open
    #[command(flatten)]
    pub settings: SettingArgs<true>,
}

/// One node's process.
#[derive(Debug)]
pub struct LocalNode {
    /// Its id.
    pub id: NodeId,
    /// The host it stands for.
    pub host: String,
    /// Its process.
    pub pid: u32,
    child: Child,
}

/// A running cluster; its processes end with it.
#[derive(Debug)]
pub struct LocalCluster {
    /// The nodes by id.
    pub nodes: Vec<LocalNode>,
    /// The settings they share, as node 1 sees them.
    pub settings: Settings,
}

impl LocalCluster {
    /// Starts the nodes and waits until all have met.
    ///
    /// # Errors
    /// Bad settings; a node that ended at once (it has said why on standard error); nodes that do not meet.
    pub fn start(args: &ClusterArgs) -> anyhow::Result<LocalCluster> {
        let mut flags = args.settings.flags.clone();
        let said = |name: &str| {
            args.settings.flags.iter().any(|(n, _)| n == name)
                || std::env::var_os(format!("TANDEM_{name}")).is_some_and(|value| !value.is_empty())
        };
        for (name, value) in [("SHARDS", "1"), ("LOG", "warn"), ("PIN", "off")] {
            if !said(name) {
                flags.push((name.into(), value.into()));
            }
        }
        let shards = shards(&flags)?;
        let service = SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(FIRST_SERVICE_PORT, 1)?));
        flags.push(("SERVICE".into(), service.to_string()));
        flags.push(("NODES".into(), nodes_on_free_ports(args.nodes, shards + 1)?));
        flags.push(("NODE".into(), "1".into()));
        let resolved = resolve_from_environment(&flags);
        let environment = resolved.environment();
        let settings = resolved.settings?;
        let mut cluster = LocalCluster { nodes: Vec::new(), settings };
        for node in cluster.settings.nodes.iter() {
            let mut command = Command::new(program()?);
            command.args(["node", "--until-stdin-closes"]).envs(environment.iter().cloned());
            command.env("TANDEM_NODE", node.id.0.to_string());
            // A group of its own: Ctrl-C is for this process, which ends the nodes by closing their input.
            command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
            let child =
                command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
            let (id, host) = (node.id, node.host.clone());
            cluster.nodes.push(LocalNode { id, host, pid: child.id(), child });
        }
        cluster.wait_until_met()?;
        Ok(cluster)
    }

    fn wait_until_met(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        let others = self.nodes.len() - 1;
        for at in 0..self.nodes.len() {
            loop {
                let node = &mut self.nodes[at];
                if let Some(status) = node.child.try_wait()? {
                    bail!("node {} ended at once ({status}); its reason stands above", node.id.0);
                }
                let joined = self.status(self.nodes[at].id).ok().map(|s| joined_peers(&s));
                if joined.is_some_and(|n| n >= others) {
                    break;
                }
                if start.elapsed() > READY_WITHIN {
                    bail!("node {} has not met the others within {READY_WITHIN:?}", self.nodes[at].id.0);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// Everything a node counts.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn status(&self, node: NodeId) -> Result<Value, AskError> {
        self.ask(node, STATUS)
    }

    /// Whether every node of `nodes` has executed the same entries with the same outputs in every slot. They are
    /// given `patience` to catch up with one another.
    ///
    /// # Errors
    /// A node does not answer.
    pub fn digests_agree(&self, nodes: &[NodeId], patience: Duration) -> Result<bool, AskError> {
        let start = Instant::now();
        loop {
            let all = nodes.iter().map(|n| self.digests(*n)).collect::<Result<Vec<_>, _>>()?;
            let agree = all.windows(2).all(|pair| pair[0] == pair[1]);
            if agree || start.elapsed() > patience {
                return Ok(agree);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// (slot, executed, digest) of every slot in use, whatever the shard.
    fn digests(&self, node: NodeId) -> Result<BTreeSet<String>, AskError> {
        let answer = self.ask(node, DIGESTS)?;
        let shards = answer["shards"].as_array().into_iter().flatten();
        let slots = shards.flat_map(|shard| shard["digests"].as_array().into_iter().flatten());
        Ok(slots.map(Value::to_string).collect())
    }

    /// Asks until every shard of the node has found the time to answer: half an answer compares with nothing.
    fn ask(&self, node: NodeId, question: &str) -> Result<Value, AskError> {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let address = self.settings.control_address(node).unwrap_or(at);
        let start = Instant::now();
        loop {
            let key = self.settings.sealing_key();
            let answer = operator::ask(address, &key, question, Nanos::from_millis(1_000))?;
            match answer["shards_silent"].as_u64() {
                Some(0) => return Ok(answer),
                _ if start.elapsed() > WHOLE_WITHIN => {
                    return Err(AskError::Silent(address, WHOLE_WITHIN.as_millis() as u64));
                }
                _ => {}
            }
        }
    }

    /// Sends a signal to a node's process.
    ///
    /// # Errors
    /// There is no such node, or its process has ended.
    pub fn signal(&self, node: NodeId, what: Signal) -> anyhow::Result<()> {
        let Some(node) = self.nodes.iter().find(|n| n.id == node) else {
            bail!("there is no node {}", node.0)
        };
        signal(node.pid, what)
            .with_context(|| format!("cannot signal node {} (process {})", node.id.0, node.pid))
    }

    /// The service endpoints.
    pub fn service(&self) -> &[SocketAddr] {
        &self.settings.service
    }

    /// Nodes and service addresses as `--json` has them.
    pub fn describe(&self) -> Value {
        let node = |n: &LocalNode| json!({ "name": n.id.to_string(), "host": n.host, "pid": n.pid, "engine_pid": n.pid });
        let nodes: Vec<Value> = self.nodes.iter().map(node).collect();
        json!({ "nodes": nodes, "service_addresses": self.service().iter().map(ToString::to_string).collect::<Vec<_>>() })
    }

    /// The nodes that have ended.
    pub fn ended(&mut self) -> Vec<NodeId> {
        let ended = |n: &mut LocalNode| matches!(n.child.try_wait(), Ok(Some(_))).then_some(n.id);
        self.nodes.iter_mut().filter_map(ended).collect()
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            drop(node.child.stdin.take());
            // A frozen node cannot hear that its input was closed.
            let _ = signal(node.pid, Signal::Continue);
        }
        let deadline = Instant::now() + END_WITHIN;
        for node in &mut self.nodes {
            while matches!(node.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

/// The program to start nodes with: this one, unless a bench or a test says which.
fn program() -> anyhow::Result<PathBuf> {
    match std::env::var_os("TANDEM_TEST_PROGRAM") {
        Some(path) => Ok(path.into()),
        None => std::env::current_exe().context("cannot find this program's own file"),
    }
}

fn joined_peers(status: &Value) -> usize {
    let peers = status["control"]["peers"].as_array();
    peers.map_or(0, |peers| peers.iter().filter(|p| p["joined"] == true).count())
}

/// How many shards a node will have, from flags or environment.
fn shards(flags: &[(String, String)]) -> anyhow::Result<u16> {
    let flag = flags.iter().find(|(name, _)| name == "SHARDS").map(|(_, value)| value.clone());
    let given = flag.or_else(|| std::env::var("TANDEM_SHARDS").ok()).unwrap_or_default();
    match given.as_str() {
        "auto" => Ok(std::thread::available_parallelism()?.get() as u16),
        number => Ok(number
            .parse()
            .map_err(|_| BadUsage(format!("TANDEM_SHARDS={number}: give 1 to 256, or auto")))?),
    }
}

fn nodes_on_free_ports(nodes: u16, ports: u16) -> anyhow::Result<String> {
    let mut first = FIRST_CLUSTER_PORT;
    let mut said = Vec::new();
    for id in 1..=nodes {
        let port = free_ports(first, ports)?;
        said.push(format!("{id}@host{id}=127.0.0.1:{port}"));
        first = port + ports;
    }
    Ok(said.join(","))
}

/// The first of `count` neighbouring UDP ports on loopback, from `first` on, that nobody has.
fn free_ports(first: u16, count: u16) -> anyhow::Result<u16> {
    let free = |port: u16| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let found = (first..u16::MAX - count).step_by(usize::from(count)).find(|p| (*p..p + count).all(free));
    found.with_context(|| format!("no {count} free UDP ports on 127.0.0.1 above {first}"))
}

/// Starts the cluster, prints it, and keeps it until Ctrl-C.
pub fn run(args: &LocalArgs) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.json {
        json::check(path)?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    for number in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(number, stop.clone())?;
    }
    let mut cluster = LocalCluster::start(&args.cluster)?;
    println!("{:<6} {:<8} {:>8}  cluster address", "node", "host", "process");
    for node in &cluster.nodes {
        let address = cluster.settings.control_address(node.id).map(|a| a.to_string()).unwrap_or_default();
        println!("{:<6} {:<8} {:>8}  {address}", node.id.to_string(), node.host, node.pid);
    }
    let service: Vec<String> = cluster.service().iter().map(ToString::to_string).collect();
    println!("service addresses: {}", service.join(", "));
    println!("try: tandem replay FILE --target {}   (Ctrl-C ends the cluster)", service[0]);
    if let Some(path) = &args.json {
        json::write(path, &cluster.describe())?;
    }
    let mut gone = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        let ended = cluster.ended();
        ended.iter().filter(|n| !gone.contains(*n)).for_each(|node| println!("{node} has ended"));
        gone = ended;
        if gone.len() == cluster.nodes.len() && !stop.load(Ordering::Relaxed) {
            bail!("every node has ended");
        }
    }
    println!("ending the cluster");
    Ok(ExitCode::SUCCESS)
}
