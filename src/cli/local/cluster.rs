//! A cluster of separate processes on loopback: how it starts, what can be done to its nodes, how it ends.
//!
//! A node is its supervisor, which this process has started, and the engine, which that has started. A node that is
//! one process is both.

use super::places::{Folder, free_ports};
use crate::cli::BadUsage;
use crate::cli::config::SettingArgs;
use crate::cli::status::Picture;
use crate::config::{Settings, resolve_from_environment};
use crate::io::operator::{self, AskError, DIGESTS, STATUS};
use crate::io::sys_process::{Signal, signal};
use crate::types::{Nanos, NodeId};
use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the search for free ports begins.
const FIRST_CLUSTER_PORT: u16 = 17_100;
const FIRST_SERVICE_PORT: u16 = 15_060;
const FIRST_MEDIA_PORT: u16 = 20_000;
/// How many media ports the cluster has, if nobody says.
const MEDIA_PORTS: u16 = 4_000;
/// How long the nodes may take until all of them have met and serve.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// How long a node's shards may take to find the time for an answer.
const WHOLE_WITHIN: Duration = Duration::from_secs(2);
/// How long the nodes may take to end when their input is closed, before they are told again...
const END_SOON: Duration = Duration::from_millis(500);
/// ...and before they are killed.
const END_WITHIN: Duration = Duration::from_secs(3);

/// What a cluster on loopback is made of.
#[derive(Args, Clone, Debug)]
pub struct ClusterArgs {
    /// How many nodes, each a process of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
    /// How many hosts they stand for, in turn [default: one each]
    #[arg(long, value_name = "H", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub hosts: Option<u16>,
    /// The nodes' settings, as far as a cluster on loopback leaves them open
    #[command(flatten)]
    pub settings: SettingArgs<true>,
}

/// One node's processes.
#[derive(Debug)]
pub struct LocalNode {
    /// Its id.
    pub id: NodeId,
    /// The host it stands for.
    pub host: String,
    /// Its process: the supervisor.
    pub pid: u32,
    /// The process that holds its state, as it was when last asked: the supervisor starts a new one when it ends.
    pub engine_pid: u32,
    child: Child,
}

impl LocalNode {
    /// The engine's process, if what was last said of it still holds: its id may be another's by now.
    fn engine(&self) -> Option<u32> {
        (self.engine_pid == self.pid || parent(self.engine_pid) == Some(self.pid)).then_some(self.engine_pid)
    }
}

/// The parent of a process (proc_pid_stat(5)).
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

/// A running cluster; its processes and files end with it.
#[derive(Debug)]
pub struct LocalCluster {
    /// The nodes by id.
    pub nodes: Vec<LocalNode>,
    /// The settings they share, as node 1 sees them.
    pub settings: Settings,
    environment: Vec<(String, String)>,
    folder: Folder,
}

impl LocalCluster {
    /// Starts the nodes and waits until all have met, an owner serves and every slot has its members.
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
        // Not by variable: the addresses of a site are not for a cluster of one machine.
        if !flags.iter().any(|(name, _)| name == "SERVICE") {
            let service = SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(FIRST_SERVICE_PORT, 1)?));
            flags.push(("SERVICE".into(), service.to_string()));
        }
        if !said("MEDIA_PORTS") && value_of(&flags, "APP") == "sip" {
            let first = free_ports(FIRST_MEDIA_PORT, MEDIA_PORTS)?;
            flags.push(("MEDIA_PORTS".into(), format!("{first}-{}", first + MEDIA_PORTS - 1)));
        }
        flags.push(("NODES".into(), nodes_on_free_ports(args.nodes, args.hosts, shards + 1)?));
        flags.push(("NODE".into(), "1".into()));
        let resolved = resolve_from_environment(&flags);
        let environment = resolved.environment();
        let settings = resolved.settings?;
        let mut cluster = LocalCluster { nodes: Vec::new(), settings, environment, folder: Folder::new()? };
        let nodes: Vec<_> = cluster.settings.nodes.iter().map(|n| (n.id, n.host.clone())).collect();
        for (id, host) in nodes {
            let child = cluster.spawn(id)?;
            let pid = child.id();
            cluster.nodes.push(LocalNode { id, host, pid, engine_pid: pid, child });
        }
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    fn spawn(&self, id: NodeId) -> anyhow::Result<Child> {
        let mut command = Command::new(program()?);
        command.args(["node", "--until-stdin-closes"]).envs(self.environment.iter().cloned());
        command.env("TANDEM_NODE", id.0.to_string());
        command.env("TANDEM_DATA_DIR", self.folder.folder(&id.to_string(), "data")?);
        command.env("TANDEM_RUN_DIR", self.folder.folder(&id.to_string(), "run")?);
        // A group of its own: Ctrl-C is for this process, which ends the nodes by closing their input.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let (start, others) = (Instant::now(), self.nodes.len() - 1);
        for at in 0..self.nodes.len() {
            loop {
                let node = &mut self.nodes[at];
                if let Some(status) = node.child.try_wait()? {
                    bail!("node {} ended at once ({status}); its reason stands above", node.id.0);
                }
                let id = node.id;
                if let Ok(status) = self.status(id)
                    && joined_peers(&status) >= others
                {
                    self.nodes[at].engine_pid = engine_pid(&status, self.nodes[at].pid);
                    break;
                }
                if start.elapsed() > READY_WITHIN {
                    bail!("node {} has not met the others within {READY_WITHIN:?}", id.0);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.wait_until_whole(READY_WITHIN.saturating_sub(start.elapsed()))
            .with_context(|| format!("the cluster is not ready after {READY_WITHIN:?}"))
    }

    /// Waits until an owner serves every slot and each has all its members.
    ///
    /// # Errors
    /// That takes longer than `patience`; the message says what is missing.
    pub fn wait_until_whole(&self, patience: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let picture = self.picture();
            if picture.is_whole() && picture.slots.served > 0 {
                return Ok(());
            }
            if start.elapsed() > patience {
                let slots = &picture.slots;
                bail!(
                    "{} slots are served, {} are recovering, {} have fewer than {} members",
                    slots.served,
                    slots.recovering,
                    slots.short,
                    slots.replicas
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The state of the cluster as the nodes that answer tell it.
    pub fn picture(&self) -> Picture {
        let answers: Vec<Value> = self.nodes.iter().filter_map(|node| self.status(node.id).ok()).collect();
        Picture::new(&self.settings, &answers, None)
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
            let agree = agree(&all, self.settings.r >= self.nodes.len());
            if agree || start.elapsed() > patience {
                return Ok(agree);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// (executed, digest) of every slot in use, whatever the shard.
    fn digests(&self, node: NodeId) -> Result<Digests, AskError> {
        let answer = self.ask(node, DIGESTS)?;
        let shards = answer["shards"].as_array().into_iter().flatten();
        let slots = shards.flat_map(|shard| shard["digests"].as_array().into_iter().flatten());
        Ok(slots.filter_map(|row| Some((row[0].as_u64()?, row.to_string()))).collect())
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

    fn node(&self, id: NodeId) -> anyhow::Result<&LocalNode> {
        self.nodes.iter().find(|n| n.id == id).with_context(|| format!("there is no node {}", id.0))
    }

    /// Asks every node which process its engine is now; those that do not answer keep what was known.
    pub fn find_engines(&mut self) {
        for at in 0..self.nodes.len() {
            if let Ok(status) = self.status(self.nodes[at].id) {
                self.know_engine(self.nodes[at].id, &status);
            }
        }
    }

    /// Takes from a node's status which process its engine is.
    pub fn know_engine(&mut self, node: NodeId, status: &Value) {
        if let Some(node) = self.nodes.iter_mut().find(|n| n.id == node) {
            node.engine_pid = engine_pid(status, node.pid);
        }
    }

    /// Sends a signal to a node's engine, as it was when last asked ([`find_engines`](LocalCluster::find_engines)).
    ///
    /// # Errors
    /// There is no such node, or its engine has ended.
    pub fn signal(&self, node: NodeId, what: Signal) -> anyhow::Result<()> {
        let node = self.node(node)?;
        let engine = node.engine().with_context(|| format!("the engine of node {} has ended", node.id.0))?;
        signal(engine, what).with_context(|| format!("cannot signal node {} (process {engine})", node.id.0))
    }

    /// Kills a node's engine (SIGKILL). Its supervisor, if it has one, tells the others and starts another.
    ///
    /// # Errors
    /// There is no such node, or its engine has ended.
    pub fn kill_engine(&self, node: NodeId) -> anyhow::Result<()> {
        self.signal(node, Signal::Kill)
    }

    /// Kills a node as the death of its host does: supervisor and engine at once, so that nobody is told.
    ///
    /// # Errors
    /// There is no such node, or it has ended.
    pub fn kill_node(&self, node: NodeId) -> anyhow::Result<()> {
        let (id, pid, engine) = self.node(node).map(|n| (n.id.0, n.pid, n.engine()))?;
        // The supervisor first: it must not see its engine end.
        signal(pid, Signal::Kill).with_context(|| format!("cannot kill node {id} (process {pid})"))?;
        if let Some(engine) = engine.filter(|engine| *engine != pid) {
            // It may have ended with its supervisor.
            let _ = signal(engine, Signal::Kill);
        }
        Ok(())
    }

    /// Starts a node again that has ended.
    ///
    /// # Errors
    /// There is no such node, it runs, or it cannot be started.
    pub fn start_again(&mut self, node: NodeId) -> anyhow::Result<()> {
        let at =
            self.nodes.iter().position(|n| n.id == node).with_context(|| format!("there is no {node}"))?;
        let deadline = Instant::now() + END_WITHIN;
        while self.nodes[at].child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("node {} cannot be started again: it runs", node.0);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let child = self.spawn(node)?;
        let node = &mut self.nodes[at];
        (node.pid, node.engine_pid, node.child) = (child.id(), child.id(), child);
        Ok(())
    }

    /// The service endpoints.
    pub fn service(&self) -> &[SocketAddr] {
        &self.settings.service
    }

    /// Nodes and service addresses as `--json` has them.
    pub fn describe(&self) -> Value {
        let node = |n: &LocalNode| json!({ "name": n.id.to_string(), "host": n.host, "pid": n.pid, "engine_pid": n.engine_pid });
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
            for pid in [Some(node.pid), node.engine()].into_iter().flatten() {
                let _ = signal(pid, Signal::Continue);
            }
        }
        let start = Instant::now();
        let (mut told, mut left) = (false, self.nodes.len());
        while left > 0 && start.elapsed() < END_WITHIN {
            left = 0;
            for node in &mut self.nodes {
                if matches!(node.child.try_wait(), Ok(None)) {
                    left += 1;
                    if !told && start.elapsed() > END_SOON {
                        // What it still wants to hand over nobody is going to take.
                        let _ = signal(node.pid, Signal::Terminate);
                    }
                }
            }
            told = start.elapsed() > END_SOON;
            std::thread::sleep(Duration::from_millis(5));
        }
        for node in &mut self.nodes {
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

/// What a node says of each slot it is a member of.
type Digests = BTreeMap<u64, String>;

/// Whether all say the same of every slot that several speak of, and, if all are members of all slots, of every slot.
fn agree(all: &[Digests], of_all_slots: bool) -> bool {
    let mut known = Digests::new();
    let same = |(slot, said): (&u64, &String)| known.entry(*slot).or_insert_with(|| said.clone()) == said;
    all.iter().flatten().all(same)
        && (!of_all_slots || all.iter().all(|digests| digests.len() == known.len()))
}

fn joined_peers(status: &Value) -> usize {
    let peers = status["control"]["peers"].as_array();
    peers.map_or(0, |peers| peers.iter().filter(|p| p["joined"] == true).count())
}

/// The process that answered; a node that does not say is one process.
fn engine_pid(status: &Value, pid: u32) -> u32 {
    status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(pid)
}

/// What flags or environment say.
fn value_of(flags: &[(String, String)], name: &str) -> String {
    let flag = flags.iter().find(|(flag, _)| flag == name).map(|(_, value)| value.clone());
    flag.or_else(|| std::env::var(format!("TANDEM_{name}")).ok()).unwrap_or_default()
}

/// How many shards a node will have, from flags or environment.
fn shards(flags: &[(String, String)]) -> anyhow::Result<u16> {
    let given = value_of(flags, "SHARDS");
    match given.as_str() {
        "auto" => Ok(std::thread::available_parallelism()?.get() as u16),
        number => Ok(number
            .parse()
            .map_err(|_| BadUsage(format!("TANDEM_SHARDS={number}: give 1 to 256, or auto")))?),
    }
}

fn nodes_on_free_ports(nodes: u16, hosts: Option<u16>, ports: u16) -> anyhow::Result<String> {
    let hosts = hosts.unwrap_or(nodes).min(nodes);
    let mut first = FIRST_CLUSTER_PORT;
    let mut said = Vec::new();
    for id in 1..=nodes {
        let port = free_ports(first, ports)?;
        said.push(format!("{id}@host{}=127.0.0.1:{port}", (id - 1) % hosts + 1));
        first = port + ports;
    }
    Ok(said.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_take_their_hosts_in_turn() {
        let hosts = |nodes, hosts| {
            let said = nodes_on_free_ports(nodes, hosts, 2).unwrap();
            let host = |node: &str| node.split(['@', '=']).nth(1).map(str::to_owned);
            said.split(',').filter_map(host).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(hosts(3, None), "host1 host2 host3");
        assert_eq!(hosts(5, Some(2)), "host1 host2 host1 host2 host1");
        assert_eq!(hosts(2, Some(9)), "host1 host2");
    }

    #[test]
    fn members_agree_slot_by_slot() {
        let digests =
            |rows: &[(u64, &str)]| -> Digests { rows.iter().map(|(s, d)| (*s, (*d).into())).collect() };
        let (one, other) = (digests(&[(1, "a"), (2, "b")]), digests(&[(2, "b"), (3, "c")]));
        assert!(agree(&[one.clone(), other.clone()], false));
        assert!(!agree(&[one.clone(), other], true), "a slot is missing");
        assert!(!agree(&[one.clone(), digests(&[(2, "x")])], false));
        assert!(agree(&[one.clone(), one], true));
    }

    #[test]
    fn an_engine_that_is_not_its_supervisors_child_any_more_is_not_touched() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(parent(child.id()), Some(std::process::id()));
        let me = std::process::id();
        let node =
            |pid, engine_pid, child| LocalNode { id: NodeId(1), host: String::new(), pid, engine_pid, child };
        let pid = child.id();
        let mut stranger = node(me, 1, Command::new("true").spawn().unwrap());
        assert_eq!(stranger.engine(), None);
        stranger.engine_pid = pid;
        assert_eq!(stranger.engine(), Some(pid));
        stranger.child.wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
