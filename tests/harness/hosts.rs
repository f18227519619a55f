//! Three hosts on a bridge: network namespaces `h1` to `h3` with a node each. The client is the sandbox itself, on
//! the bridge. Faults are made at the bridge's ports, where no node can notice them otherwise than by what is missing.

use super::cluster::{Node, Nodes};
use super::{Folder, Process, free_of_settings, run, sh, tandem};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;
use tandem::wire::seal::ClusterKey;

const KEY: &str = "000102030405060708090a0b0c0d0e0f";
/// The first of a node's ports: control; shards follow.
pub(crate) const PORT: u16 = 7_100;
pub(crate) const SERVICE_PORT: u16 = 5_060;

/// Which addresses a cluster uses.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn address(self, last: u16) -> IpAddr {
        let text = match self {
            Family::V4 => format!("10.77.0.{last}"),
            Family::V6 => format!("fd77::{last}"),
        };
        text.parse().unwrap()
    }

    fn nft(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }
}

/// A bridge and its three hosts; goes with its sandbox.
pub(crate) struct Bridge;

impl Bridge {
    /// Host n has 10.77.0.n and fd77::n; host 1 has the service addresses .100 too; the client has .254.
    pub(crate) fn new() -> Bridge {
        let mut line = String::from(
            "ip link add br0 type bridge; ip addr add 10.77.0.254/24 dev br0
             ip addr add fd77::254/64 dev br0 nodad; ip link set br0 up\n",
        );
        for host in 1..=3 {
            let _ = write!(
                line,
                "ip netns add h{host}; ip link add v{host} type veth peer name eth0 netns h{host}
                 ip link set v{host} master br0 up; ip -n h{host} link set lo up; ip -n h{host} link set eth0 mtu 1500 up
                 ip -n h{host} addr add 10.77.0.{host}/24 dev eth0
                 ip -n h{host} addr add fd77::{host}/64 dev eth0 nodad\n"
            );
        }
        line += "ip -n h1 addr add 10.77.0.100/24 dev eth0; ip -n h1 addr add fd77::100/64 dev eth0 nodad";
        sh(&line);
        Bridge
    }

    /// Runs rules for nft(8); they hold until [`Bridge::heal`].
    pub(crate) fn rules(&self, rules: &str) {
        let line = format!("nft -f - <<'END'\n{rules}\nEND");
        sh(&line);
    }

    /// Takes all rules away.
    pub(crate) fn heal(&self) {
        sh("nft flush ruleset");
    }

    /// Between which nodes a rule holds: what comes out of `from`'s host for the others' nodes.
    fn between_nodes(family: Family, from: u16) -> String {
        let others: Vec<_> =
            (1..=3).filter(|id| *id != from).map(|id| family.address(id).to_string()).collect();
        let multicast = if family == Family::V4 { ", 239.77.0.0/16" } else { "" };
        format!("{} daddr {{ {}{multicast} }} udp dport 7000-7199", family.nft(), others.join(", "))
    }

    /// Loses one in a hundred datagrams in each direction of each link between nodes.
    pub(crate) fn lose_one_percent(&self, family: Family) {
        let mut rules = String::from("table netdev faults {\n");
        for id in 1..=3 {
            let between = Bridge::between_nodes(family, id);
            let _ = writeln!(
                rules,
                "chain out{id} {{ type filter hook ingress device v{id} priority 0; {between} numgen random mod 100 < 1 counter drop; }}"
            );
        }
        self.rules(&(rules + "}"));
    }

    /// How many packets the rules have hit.
    pub(crate) fn hits(&self) -> u64 {
        let listed = sh("nft list ruleset");
        let counts = listed.split("counter packets ").skip(1);
        counts.map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Cuts a host off: what it says, what it would hear, or both.
    pub(crate) fn cut(&self, id: u16, says: bool, hears: bool) {
        let hooks = [("says", says, "ingress"), ("hears", hears, "egress")];
        let mut rules = String::from("table netdev faults {\n");
        for (name, _, hook) in hooks.iter().filter(|(_, wanted, _)| *wanted) {
            let _ = writeln!(
                rules,
                "chain {name} {{ type filter hook {hook} device v{id} priority 0; counter drop; }}"
            );
        }
        self.rules(&(rules + "}"));
    }

    /// Sends one datagram in twenty between nodes twice.
    pub(crate) fn duplicate(&self) {
        let mut rules = String::from("table netdev faults {\n");
        for from in 1..=3 {
            let _ = writeln!(rules, "chain out{from} {{ type filter hook ingress device v{from} priority 0;");
            for to in (1..=3).filter(|to| *to != from) {
                let _ = writeln!(
                    rules,
                    "ip daddr 10.77.0.{to} udp dport 7000-7199 numgen random mod 20 < 1 counter dup to v{to}"
                );
            }
            rules += "}\n";
        }
        self.rules(&(rules + "}"));
    }

    /// Sends one datagram in twenty between nodes the long way round, where it is overtaken.
    pub(crate) fn reorder(&self) {
        sh("ip link add slow type veth peer name back
            ip link set back master br0 up; ip link set back type bridge_slave learning off flood off
            ip link set slow up; tc qdisc add dev slow root tbf rate 8mbit burst 2000 limit 1000000");
        let mut rules = String::from("table netdev faults {\n");
        for from in 1..=3 {
            let between = Bridge::between_nodes(Family::V4, from);
            let _ = writeln!(
                rules,
                "chain out{from} {{ type filter hook ingress device v{from} priority 0; {between} numgen random mod 20 < 1 counter fwd to slow; }}"
            );
        }
        self.rules(&(rules + "}"));
    }
}

/// Three nodes, one a host.
pub(crate) struct Cluster {
    pub(crate) nodes: Nodes,
    pub(crate) service: SocketAddr,
    processes: Vec<Process>,
    _folder: Folder,
}

impl Cluster {
    /// Starts the nodes, with some settings of their own, and waits until they have met.
    pub(crate) fn start(family: Family, settings: &[(&str, &str)]) -> Cluster {
        let at = |id: u16| SocketAddr::new(family.address(id), PORT);
        let list: Vec<_> = (1..=3).map(|id| format!("{id}@host{id}={}", at(id))).collect();
        let service = SocketAddr::new(family.address(100), SERVICE_PORT);
        let (mut processes, mut nodes) = (Vec::new(), Vec::new());
        let folder = Folder::new();
        for id in 1..=3 {
            let mut command = Command::new("ip");
            free_of_settings(&mut command);
            command.args(["netns", "exec", &format!("h{id}")]).arg(tandem().get_program()).arg("node");
            command.env("TANDEM_NODE", id.to_string()).env("TANDEM_NODES", list.join(","));
            command.env("TANDEM_SERVICE", service.to_string()).env("TANDEM_CLUSTER_KEY", KEY);
            command.env("TANDEM_SHARDS", "1").env("TANDEM_PIN", "off");
            command.env("TANDEM_DATA_DIR", folder.join("data")).env("TANDEM_RUN_DIR", folder.join("run"));
            command.envs(settings.iter().map(|(name, value)| (format!("TANDEM_{name}"), value)));
            let process = Process::start(&mut command);
            nodes.push(Node { id, pid: process.pid(), control: at(id) });
            processes.push(process);
        }
        let nodes = Nodes { nodes, key: ClusterKey::from_hex(KEY).unwrap() };
        nodes.wait_until_met();
        Cluster { nodes, service, processes, _folder: folder }
    }

    /// Ends the nodes that live with SIGTERM: each must end with success, and no node may have panicked.
    pub(crate) fn end(mut self) -> String {
        let mut said = String::new();
        for process in self.processes.drain(..) {
            let lived = super::lives(process.pid());
            let _ = run(
                Command::new("sh").args(["-c", &format!("kill -TERM {}", process.pid())]),
                Duration::from_secs(5),
            );
            let ended = process.finish(Duration::from_secs(10));
            assert!(ended.status.success() || !lived, "{ended:?}");
            super::assert_no_panic(&ended.err);
            said += &ended.err;
        }
        said
    }
}
