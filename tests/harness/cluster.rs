//! Clusters under test, seen as an operator sees them: processes, addresses, and what the nodes answer.

use super::{Ended, Folder, Process, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;
use tandem::io::operator::{AskError, DIGESTS, STATUS, ask};
use tandem::io::sys_process::{Signal, signal};
use tandem::types::Nanos;
use tandem::wire::seal::ClusterKey;

/// A node: who it is and where it answers.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) id: u16,
    /// Its supervisor.
    pub(crate) pid: u32,
    pub(crate) control: SocketAddr,
}

impl Node {
    /// Its engine's process.
    pub(crate) fn engine(&self) -> u32 {
        super::children(self.pid).first().copied().unwrap_or_else(|| panic!("node {} has no engine", self.id))
    }
}

/// Nodes that answer questions under one key.
pub(crate) struct Nodes {
    pub(crate) nodes: Vec<Node>,
    pub(crate) key: ClusterKey,
}

/// Slot, then how far it is executed and its digest.
type Places = BTreeMap<u64, (u64, String)>;

impl Nodes {
    pub(crate) fn node(&self, id: u16) -> &Node {
        self.nodes.iter().find(|node| node.id == id).unwrap()
    }

    /// Sends a signal to a node's engine; SIGTERM goes to its supervisor, as an operator sends it.
    pub(crate) fn signal(&self, id: u16, what: Signal) {
        let node = self.node(id);
        signal(if what == Signal::Terminate { node.pid } else { node.engine() }, what).unwrap();
    }

    /// Kills a node as the death of its host does: supervisor and engine at once.
    pub(crate) fn kill(&self, id: u16) {
        let node = self.node(id);
        let engine = node.engine();
        signal(node.pid, Signal::Kill).unwrap();
        // It ends with its supervisor, and may have done so.
        let _ = signal(engine, Signal::Kill);
    }

    /// Kills only the engine of a node: its supervisor tells of it, and starts another.
    pub(crate) fn kill_engine(&self, id: u16) {
        signal(self.node(id).engine(), Signal::Kill).unwrap();
    }

    /// Asks until every shard has found the time to answer: on a busy machine it may have none for a while.
    fn ask(&self, node: &Node, question: &str) -> Result<Value, AskError> {
        let mut answer = ask(node.control, &self.key, question, Nanos::from_secs(2));
        until(Duration::from_secs(3), || {
            let whole = |answer: &Value| answer["shards_silent"].as_u64().expect("shards_silent") == 0;
            let done = answer.as_ref().is_ok_and(whole);
            if !done {
                answer = ask(node.control, &self.key, question, Nanos::from_secs(2));
            }
            done
        });
        answer
    }

    /// Everything a node counts.
    pub(crate) fn status(&self, id: u16) -> Value {
        self.ask(self.node(id), STATUS).unwrap_or_else(|error| panic!("node {id}: {error}"))
    }

    /// Whether node `id` has met `others` nodes.
    pub(crate) fn met(&self, id: u16, others: usize) -> bool {
        let Ok(status) = self.ask(self.node(id), STATUS) else { return false };
        let peers = status["control"]["peers"].as_array().cloned().unwrap_or_default();
        peers.iter().filter(|peer| peer["joined"] == true).count() == others
    }

    /// Waits until all nodes have met.
    pub(crate) fn wait_until_met(&self) {
        let others = self.nodes.len() - 1;
        for node in &self.nodes {
            let met = until(Duration::from_secs(10), || self.met(node.id, others));
            assert!(met, "node {} has not met the others: {:?}", node.id, self.ask(node, STATUS));
        }
        self.wait_until_served();
    }

    /// Waits until an owner has its lease and all its slots.
    pub(crate) fn wait_until_served(&self) {
        let serves = |node: &Node| {
            let status = self.ask(node, STATUS).unwrap_or_default();
            let lease = status["control"]["lease_left_us"].as_u64().unwrap_or(0);
            lease > 0
                && sum(&status, "engine", "slots_owned") > 0
                && sum(&status, "engine", "slots_recovering") == 0
        };
        let served = until(Duration::from_secs(10), || self.nodes.iter().any(serves));
        let all: Vec<_> = self.nodes.iter().map(|node| self.ask(node, STATUS)).collect();
        assert!(served, "nobody serves: {all:?}");
    }

    /// A figure of the shards' engines of a node, summed.
    pub(crate) fn engine(&self, id: u16, figure: &str) -> u64 {
        sum(&self.status(id), "engine", figure)
    }

    /// How many slots each node is master of.
    pub(crate) fn masterships(&self, owner: u16) -> BTreeMap<u16, u64> {
        let mut slots: BTreeMap<u16, u64> = self.nodes.iter().map(|node| (node.id, 0)).collect();
        for shard in self.status(owner)["shards"].as_array().unwrap() {
            for row in shard["engine"]["masters"].as_array().unwrap() {
                let id = row[0].as_u64().unwrap() as u16;
                slots.entry(id).and_modify(|n| *n += row[1].as_u64().unwrap());
            }
        }
        slots
    }

    /// The node other than `owner` that is master of most slots, and the one of fewest.
    pub(crate) fn masters(&self, owner: u16) -> (u16, u16) {
        let mut slots = BTreeMap::new();
        // On a busy machine all may be suspected for a moment: masterships go home later.
        until(Duration::from_secs(5), || {
            slots = self.masterships(owner);
            slots.remove(&owner);
            slots.values().any(|n| *n > 0)
        });
        let most = *slots.iter().max_by_key(|(_, n)| **n).unwrap().0;
        let fewest = *slots.iter().filter(|(id, _)| **id != most).min_by_key(|(_, n)| **n).unwrap().0;
        assert!(slots[&most] > 0, "no other node is master of anything: {slots:?}");
        (most, fewest)
    }

    fn places(&self, id: u16) -> Places {
        let answer = self.ask(self.node(id), DIGESTS);
        let answer = answer.unwrap_or_else(|error| panic!("digests of node {id}: {error}"));
        let mut places = Places::new();
        for shard in answer["shards"].as_array().unwrap() {
            for row in shard["digests"].as_array().unwrap() {
                let place = (row[1].as_u64().unwrap(), row[2].as_str().unwrap().to_owned());
                places.insert(row[0].as_u64().unwrap(), place);
            }
        }
        places
    }

    /// Waits until these nodes have executed the same of every slot that two of them hold, with the same digests.
    pub(crate) fn assert_agree(&self, ids: &[u16]) {
        let mut found = String::new();
        let agreed = until(Duration::from_secs(10), || {
            let all: Vec<(u16, Places)> = ids.iter().map(|id| (*id, self.places(*id))).collect();
            let mut slots: BTreeMap<u64, (u16, &(u64, String))> = BTreeMap::new();
            found.clear();
            for (id, places) in &all {
                for (slot, place) in places {
                    let (first, known) = *slots.entry(*slot).or_insert((*id, place));
                    if known != place {
                        found += &format!("slot {slot}: node {first} {known:?}, node {id} {place:?}; ");
                    }
                }
            }
            let entries: u64 = slots.values().map(|(_, (executed, _))| executed).sum();
            assert!(entries > 500, "nothing to compare: {entries} entries");
            found.is_empty()
        });
        found.truncate(2_000);
        assert!(agreed, "{found}");
        for id in ids {
            assert_eq!(self.engine(*id, "divergences"), 0, "node {id}");
        }
    }

    /// How many slots each of these nodes holds of those that have entries: where all are members, all of them.
    pub(crate) fn held(&self, ids: &[u16]) -> Vec<usize> {
        ids.iter().map(|id| self.places(*id).len()).collect()
    }
}

/// A figure of a status answer, summed over its shards.
pub(crate) fn sum(status: &Value, part: &str, figure: &str) -> u64 {
    let shards = status["shards"].as_array().expect("shards");
    shards.iter().map(|shard| figure.split('.').fold(&shard[part], |at, name| &at[name])).map(count).sum()
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("not a count: {value}"))
}

/// A `tandem local` that runs.
pub(crate) struct Local {
    pub(crate) process: Option<Process>,
    pub(crate) nodes: Nodes,
    pub(crate) service: SocketAddr,
    /// The processes at the beginning, supervisors and engines.
    processes: Vec<u32>,
    folder: Folder,
}

impl Local {
    /// Starts a cluster in a process group of its own and waits until its nodes have met.
    pub(crate) fn start(args: &[&str]) -> Local {
        use std::os::unix::process::CommandExt as _;
        let folder = Folder::new();
        let mut command = super::tandem();
        let (json, said) = (folder.join("cluster.json"), folder.join("said"));
        // The table of addresses is read while the cluster runs, so it goes through a file.
        let line = format!("exec \"$0\" \"$@\" > {}", said.display());
        let mut shell = Command::new("sh");
        super::free_of_settings(&mut shell);
        shell.args(["-c", &line]).arg(command.get_program()).args(["local", "--json"]).arg(&json).args(args);
        command = shell;
        command.process_group(0);
        let mut process = Process::start(&mut command);
        let mut described = None;
        let started = until(Duration::from_secs(20), || {
            described = std::fs::read(&json).ok().and_then(|t| serde_json::from_slice::<Value>(&t).ok());
            described.is_some() || process.child.try_wait().unwrap().is_some()
        });
        let Some(described) = described.filter(|_| started) else {
            panic!("no cluster: {:?}", process.finish(Duration::ZERO));
        };
        let said = std::fs::read_to_string(&said).unwrap();
        let row = |node: &Value| {
            let name = node["name"].as_str().unwrap();
            assert!(node["host"].is_string() && node["engine_pid"].is_u64(), "{described}");
            let line = said.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            let control = line.split_whitespace().last().unwrap().parse().unwrap();
            Node { id: name[1..].parse().unwrap(), pid: node["pid"].as_u64().unwrap() as u32, control }
        };
        let nodes: Vec<Node> = described["nodes"].as_array().unwrap().iter().map(row).collect();
        let processes = nodes.iter().flat_map(|node| [node.pid, node.engine()]).collect();
        let service = described["service_addresses"][0].as_str().unwrap().parse().unwrap();
        let key = args.iter().position(|arg| *arg == "--cluster-key").map(|at| args[at + 1]);
        let key = key.map_or_else(ClusterKey::loopback, |key| ClusterKey::from_hex(key).unwrap());
        let nodes = Nodes { nodes, key };
        Local { process: Some(process), nodes, service, processes, folder }
    }

    /// Presses Ctrl-C: SIGINT for the whole process group, as a terminal sends it. The cluster must end by
    /// itself, with success, and leave nothing behind.
    pub(crate) fn interrupt(mut self) -> Ended {
        let process = self.process.take().unwrap();
        super::sh(&format!("kill -s INT -- -{}", process.pid()));
        let ended = process.finish(Duration::from_secs(10));
        assert!(ended.status.success(), "{ended:?}");
        super::assert_no_panic(&ended.err);
        self.assert_all_gone();
        ended
    }

    pub(crate) fn assert_all_gone(&self) {
        let lives = || self.processes.iter().filter(|pid| super::lives(**pid)).collect::<Vec<_>>();
        until(Duration::from_secs(5), || lives().is_empty());
        assert!(lives().is_empty(), "left over: {:?}", lives());
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        drop(self.process.take());
        // Nodes end with their `tandem local`, but for one that a failed test has left frozen.
        for pid in self.processes.iter().filter(|pid| super::lives(**pid)) {
            let _ = signal(*pid, Signal::Kill);
        }
    }
}
