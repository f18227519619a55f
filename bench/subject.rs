//! What can go wrong in a measured cluster, and how it is done to one: processes on loopback, or hosts on a bridge.

use crate::bridge::{self, Bridged};
use crate::world;
use anyhow::{Context, bail};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tandem::cli::local::LocalCluster;
use tandem::cli::status::Picture;
use tandem::io::sys_process::{Signal, signal};
use tandem::types::{Nanos, NodeId};

/// How long a node that was away may take until it is master again.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// How long a dead owner may take to be a full member again: its supervisor waits longer after each death.
const WHOLE_WITHIN: Duration = Duration::from_secs(40);

#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    SigKill,
    SigStop,
    Cut,
    Owner,
    Host,
    OwnerStop,
    OwnerCut,
}

impl Fault {
    pub(crate) const ALL: [Fault; 7] = [
        Fault::SigKill,
        Fault::SigStop,
        Fault::Cut,
        Fault::Owner,
        Fault::Host,
        Fault::OwnerStop,
        Fault::OwnerCut,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::SigKill => "sigkill",
            Fault::SigStop => "sigstop",
            Fault::Cut => "cut",
            Fault::Owner => "owner",
            Fault::Host => "host",
            Fault::OwnerStop => "owner-stop",
            Fault::OwnerCut => "owner-cut",
        }
    }

    /// Whether it strikes the node that holds the service address.
    pub(crate) fn of_owner(self) -> bool {
        matches!(self, Fault::Owner | Fault::Host | Fault::OwnerStop | Fault::OwnerCut)
    }

    /// Whether the same process goes on when the fault is over.
    pub(crate) fn returns(self) -> bool {
        matches!(self, Fault::SigStop | Fault::Cut | Fault::OwnerStop | Fault::OwnerCut)
    }

    pub(crate) fn cuts(self) -> bool {
        matches!(self, Fault::Cut | Fault::OwnerCut)
    }

    /// Whether it can only happen between hosts.
    pub(crate) fn needs_bridge(self) -> bool {
        self.cuts() || self == Fault::OwnerStop
    }

    /// Silences that begin this long after a mark belong to it. A signal works at once; what `nft` is told works
    /// some time later. The calls of one master are a third of all, so that among many intervals between their
    /// packets there is always a long one: the shorter, the better.
    pub(crate) fn window(self) -> Nanos {
        Nanos::from_millis(match self {
            Fault::Cut | Fault::OwnerCut => 30,
            Fault::SigKill | Fault::SigStop => 2,
            Fault::Owner | Fault::Host | Fault::OwnerStop => 10,
        })
    }

    /// Suspicions that a fault causes although the victim's beats never stop: a cut link silences it for two
    /// others, and them for it.
    pub(crate) fn rightful(self) -> u64 {
        if self.cuts() { 4 } else { 0 }
    }
}

/// A cluster of either kind.
pub(crate) enum Cluster {
    Local(LocalCluster),
    Bridged(Bridged),
}

impl Cluster {
    /// An owner's death is measured between hosts, where its address must move, if this machine has them.
    pub(crate) fn start(fault: Fault) -> anyhow::Result<Cluster> {
        Cluster::start_with(fault, &[])
    }

    /// The same, on loopback with some settings of its own.
    pub(crate) fn start_with(fault: Fault, settings: &[(&str, &str)]) -> anyhow::Result<Cluster> {
        let between_hosts = fault.needs_bridge() || (fault.of_owner() && bridge::is_inside());
        Ok(match between_hosts {
            true => Cluster::Bridged(Bridged::start(&std::env::var(world::PROGRAM)?)?),
            false => Cluster::Local(world::cluster(3, settings)?),
        })
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Cluster::Local(_) => "loopback",
            Cluster::Bridged(_) => "bridge",
        }
    }

    pub(crate) fn settings(&self) -> &tandem::config::Settings {
        match self {
            Cluster::Local(local) => &local.settings,
            Cluster::Bridged(bridged) => &bridged.settings,
        }
    }

    pub(crate) fn service(&self) -> SocketAddr {
        self.settings().service[0]
    }

    pub(crate) fn pids(&self) -> Vec<(NodeId, u32)> {
        match self {
            Cluster::Local(local) => local.nodes.iter().map(|node| (node.id, node.engine_pid)).collect(),
            Cluster::Bridged(bridged) => bridged.pids(),
        }
    }

    pub(crate) fn status(&self, node: NodeId) -> anyhow::Result<Value> {
        match self {
            Cluster::Local(local) => Ok(local.status(node)?),
            Cluster::Bridged(bridged) => bridged.status(node),
        }
    }

    pub(crate) fn picture(&self) -> Picture {
        match self {
            Cluster::Local(local) => local.picture(),
            Cluster::Bridged(bridged) => bridged.picture(),
        }
    }

    /// Who holds the service address now.
    pub(crate) fn owner(&self) -> NodeId {
        self.picture().owner().unwrap_or(self.settings().owner)
    }

    /// Does it, except for cuts, which take too long for the thread that sends.
    pub(crate) fn strike(&self, fault: Fault, node: NodeId, pid: u32) -> anyhow::Result<()> {
        match (fault, self) {
            (Fault::Host, Cluster::Local(local)) => local.kill_node(node),
            (Fault::Host, Cluster::Bridged(bridged)) => bridged.kill_node(node),
            (Fault::Owner | Fault::SigKill, _) => Ok(signal(pid, Signal::Kill)?),
            (Fault::SigStop | Fault::OwnerStop, _) => Ok(signal(pid, Signal::Stop)?),
            (Fault::Cut | Fault::OwnerCut, _) => Ok(()),
        }
    }

    /// Makes a node hand over what it holds and end, then starts it again and waits until every slot has all its members.
    pub(crate) fn restart(&mut self, node: NodeId) -> anyhow::Result<()> {
        match self {
            Cluster::Local(local) => {
                let of = local.nodes.iter().find(|n| n.id == node).context("no such node")?;
                signal(of.pid, Signal::Terminate)?;
                local.start_again(node)?;
            }
            Cluster::Bridged(bridged) => {
                bridged.end(node)?;
                bridged.start_again(node)?;
            }
        }
        self.wait_until_all_answer(node)
    }

    /// Brings an owner back; returns how long it took until every slot had all its members again.
    pub(crate) fn restore(&mut self, fault: Fault, victim: NodeId) -> anyhow::Result<f64> {
        let start = Instant::now();
        if fault == Fault::Host {
            match self {
                Cluster::Local(local) => local.start_again(victim)?,
                Cluster::Bridged(bridged) => bridged.start_again(victim)?,
            }
        }
        self.wait_until_all_answer(victim)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Waits until `node` and all others answer, and every slot has all its members.
    fn wait_until_all_answer(&mut self, node: NodeId) -> anyhow::Result<()> {
        let start = Instant::now();
        while !self.picture().nodes.iter().all(|node| node.answered) {
            if start.elapsed() > WHOLE_WITHIN {
                bail!("{node} is not back after {WHOLE_WITHIN:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = WHOLE_WITHIN.saturating_sub(start.elapsed());
        match self {
            Cluster::Local(local) => {
                local.wait_until_whole(left)?;
                local.find_engines();
                Ok(())
            }
            Cluster::Bridged(bridged) => bridged.wait_until_whole(left),
        }
    }

    /// The sum over `nodes` of suspicions that turned out wrong.
    pub(crate) fn wrong_suspicions(&self, nodes: &[NodeId]) -> u64 {
        let one = |node: &NodeId| self.status(*node).ok()?["control"]["wrong_suspicions"].as_u64();
        nodes.iter().filter_map(one).sum()
    }

    /// The slots of which each node is master.
    pub(crate) fn masters(&self) -> anyhow::Result<Vec<(u64, u64)>> {
        let status = self.status(self.owner())?;
        let masters =
            serde_json::from_value::<Vec<(u64, u64)>>(status["shards"][0]["engine"]["masters"].clone());
        masters.context("the owner's status names no masters")
    }

    /// Waits until masterships lie as they did.
    pub(crate) fn settle(&self, as_before: &[(u64, u64)]) -> anyhow::Result<()> {
        let start = Instant::now();
        while self.masters().map_or(true, |masters| masters != as_before) {
            if start.elapsed() > BACK_WITHIN {
                bail!("masterships are not back {BACK_WITHIN:?} after the fault: {:?}", self.masters());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}
