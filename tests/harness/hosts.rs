//! Hosts on a bridge: network namespaces `h1`, `h2`... with nodes on them. The client is the sandbox itself, on the
//! bridge. Faults are made at the bridge's ports, where no node can notice them otherwise than by what is missing.

use super::cluster::{Node, Nodes};
use super::{Folder, Process, free_of_settings, sh, tandem, until};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};
use tandem::cli::status::Picture;
use tandem::config::Settings;
use tandem::io::operator::{STATUS, ask};
use tandem::io::sys_process::{Signal, signal};
use tandem::types::Nanos;
use tandem::wire::seal::ClusterKey;

const KEY: &str = "000102030405060708090a0b0c0d0e0f";
pub(crate) const SERVICE_PORT: u16 = 5_060;

/// What makes a verdict hold on a busy machine. Slots: enough for every group, and few enough for a debug build to go
/// through all of them in a millisecond or two. Times: virtual machines stand still for some 20 ms now and then; that is
/// no death here. The benches measure with the times that operators have.
const PATIENT: [(&str, &str); 4] =
    [("SLOTS", "512"), ("SUSPECT_AFTER", "8ms"), ("LEASE", "40ms"), ("DEAD_AFTER", "60ms")];

/// The first of a node's ports: control; shards follow.
fn port(id: u16) -> u16 {
    7_100 + 10 * id
}

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

/// A bridge and its hosts; goes with its sandbox.
pub(crate) struct Bridge {
    hosts: u16,
}

impl Bridge {
    /// Host n has 10.77.0.n and fd77::n; the client has .254. The service addresses .100 come and go with their owner.
    pub(crate) fn new(hosts: u16) -> Bridge {
        let mut line = String::from(
            "ip link add br0 address 02:77:00:00:00:fe type bridge; ip addr add 10.77.0.254/24 dev br0
             ip addr add fd77::254/64 dev br0 nodad; ip link set br0 up\n",
        );
        for host in 1..=hosts {
            let _ = write!(
                line,
                "ip netns add h{host}; ip link add v{host} type veth peer name eth0 netns h{host}
                 ip link set v{host} master br0 up; ip -n h{host} link set lo up; ip -n h{host} link set eth0 mtu 1500 up\n"
            );
        }
        sh(&line);
        let bridge = Bridge { hosts };
        (1..=hosts).for_each(|host| bridge.boot(host));
        bridge
    }

    /// The host has its own addresses, and no others.
    fn boot(&self, host: u16) {
        sh(&format!(
            "ip -n h{host} addr flush dev eth0 scope global
             ip -n h{host} addr add 10.77.0.{host}/24 dev eth0; ip -n h{host} addr add fd77::{host}/64 dev eth0 nodad"
        ));
    }

    /// Puts the host's cable in, or takes it out.
    pub(crate) fn link(&self, host: u16, up: bool) {
        sh(&format!("ip link set v{host} {}", if up { "up" } else { "down" }));
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

    /// A table with a chain at each host's port, for what comes out of that host.
    fn at_each_port(&self, rules: impl Fn(u16) -> String) {
        let mut text = String::from("table netdev faults {\n");
        for host in 1..=self.hosts {
            let rules = rules(host);
            let _ = writeln!(
                text,
                "chain out{host} {{ type filter hook ingress device v{host} priority 0; {rules} }}"
            );
        }
        self.rules(&(text + "}"));
    }

    /// Between which hosts a rule holds: what comes out of `from` for the others' nodes.
    fn between_nodes(&self, family: Family, from: u16) -> String {
        let others = (1..=self.hosts).filter(|id| *id != from);
        let others: Vec<_> = others.map(|id| family.address(id).to_string()).collect();
        let multicast = if family == Family::V4 { ", 239.77.0.0/16" } else { "" };
        format!("{} daddr {{ {}{multicast} }} udp dport 7000-7199", family.nft(), others.join(", "))
    }

    /// Loses so many of a hundred datagrams in each direction of each link between nodes.
    pub(crate) fn lose(&self, family: Family, percent: u32) {
        self.at_each_port(|host| {
            let between = self.between_nodes(family, host);
            format!("{between} numgen random mod 100 < {percent} counter drop;")
        });
    }

    /// How many packets the rules have hit.
    pub(crate) fn hits(&self) -> u64 {
        let listed = sh("nft list ruleset");
        let counts = listed.split("counter packets ").skip(1);
        counts.map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Cuts a host off: what it says, what it would hear, or both.
    pub(crate) fn cut(&self, host: u16, says: bool, hears: bool) {
        let hooks = [("says", says, "ingress"), ("hears", hears, "egress")];
        let mut rules = String::from("table netdev faults {\n");
        for (name, _, hook) in hooks.iter().filter(|(_, wanted, _)| *wanted) {
            let _ = writeln!(
                rules,
                "chain {name} {{ type filter hook {hook} device v{host} priority 0; counter drop; }}"
            );
        }
        self.rules(&(rules + "}"));
    }

    /// Cuts links between hosts, one way each; clients still reach all of them.
    pub(crate) fn part(&self, ways: &[(u16, u16)]) {
        self.at_each_port(|host| {
            let to = ways.iter().filter(|(from, _)| *from == host).map(|(_, to)| *to);
            to.map(|to| format!("ip daddr {} counter drop; ", Family::V4.address(to))).collect()
        });
    }

    /// Sends one datagram in twenty between nodes twice.
    pub(crate) fn duplicate(&self) {
        self.at_each_port(|from| {
            let to = (1..=self.hosts).filter(|to| *to != from);
            to.map(|to| {
                format!(
                    "ip daddr 10.77.0.{to} udp dport 7000-7199 numgen random mod 20 < 1 counter dup to v{to}; "
                )
            })
            .collect()
        });
    }

    /// Sends one datagram in twenty between nodes the long way round, where it is overtaken.
    pub(crate) fn reorder(&self) {
        sh("ip link add slow type veth peer name back
            ip link set back master br0 up; ip link set back type bridge_slave learning off flood off
            ip link set slow up; tc qdisc add dev slow root tbf rate 8mbit burst 2000 limit 1000000");
        self.at_each_port(|from| {
            let between = self.between_nodes(Family::V4, from);
            format!("{between} numgen random mod 20 < 1 counter fwd to slow;")
        });
    }
}

/// What a cluster is made of.
pub(crate) struct Layout<'a> {
    pub(crate) family: Family,
    /// Node n is on the n-th of these hosts.
    pub(crate) hosts: &'a [u16],
    /// How many of the nodes run from the beginning, from the first one on.
    pub(crate) running: usize,
    /// Settings of their own.
    pub(crate) settings: &'a [(&'a str, &'a str)],
}

/// Nodes on hosts.
pub(crate) struct Cluster {
    pub(crate) nodes: Nodes,
    pub(crate) service: SocketAddr,
    /// What all of them are told.
    environment: Vec<(String, String)>,
    hosts: Vec<u16>,
    processes: BTreeMap<u16, Process>,
    folder: Folder,
}

impl Cluster {
    /// Starts three nodes, one a host, with some settings of their own, and waits until they serve.
    pub(crate) fn start(family: Family, settings: &[(&str, &str)]) -> Cluster {
        Cluster::with(&Layout { family, hosts: &[1, 2, 3], running: 3, settings })
    }

    /// Starts the nodes that are to run and waits until they serve.
    pub(crate) fn with(layout: &Layout<'_>) -> Cluster {
        let Layout { family, hosts, running, settings } = *layout;
        let at = |(id, host): (u16, &u16)| {
            format!("{id}@host{host}={}", SocketAddr::new(family.address(*host), port(id)))
        };
        let list: Vec<String> = (1..).zip(hosts).map(at).collect();
        let service = SocketAddr::new(family.address(100), SERVICE_PORT);
        let all =
            [("NODES", list.join(",")), ("SERVICE", service.to_string()), ("CLUSTER_KEY", KEY.to_owned())];
        let mut environment: Vec<(String, String)> = all.map(|(name, value)| (name.to_owned(), value)).into();
        environment.extend(
            [("SHARDS", "1"), ("PIN", "off")]
                .into_iter()
                .chain(PATIENT)
                .map(|(n, v)| (n.to_owned(), v.to_owned())),
        );
        for (name, value) in settings {
            environment.retain(|(known, _)| known != name);
            environment.push(((*name).to_owned(), (*value).to_owned()));
        }
        let nodes = Nodes { nodes: Vec::new(), key: ClusterKey::from_hex(KEY).unwrap() };
        let (processes, folder, hosts) = (BTreeMap::new(), Folder::new(), hosts.to_vec());
        let mut cluster = Cluster { nodes, service, environment, hosts, processes, folder };
        for id in 1..=running as u16 {
            cluster.run(id);
        }
        cluster.nodes.wait_until_met();
        cluster.wait_until_whole();
        cluster
    }

    fn host(&self, id: u16) -> u16 {
        self.hosts[usize::from(id) - 1]
    }

    /// Starts a node, for the first time or again. What survives of an earlier life is its data folder.
    pub(crate) fn run(&mut self, id: u16) {
        let host = self.host(id);
        let mut command = Command::new("ip");
        free_of_settings(&mut command);
        command.args(["netns", "exec", &format!("h{host}")]).arg(tandem().get_program()).arg("node");
        command.envs(self.environment.iter().map(|(name, value)| (format!("TANDEM_{name}"), value)));
        command.env("TANDEM_NODE", id.to_string());
        command.env("TANDEM_DATA_DIR", self.folder.join(&format!("data{id}")));
        command.env("TANDEM_RUN_DIR", self.folder.join(&format!("run{id}")));
        let process = Process::start(&mut command);
        let control = self.settings().control_address(tandem::types::NodeId(id)).unwrap();
        self.nodes.nodes.retain(|node| node.id != id);
        self.nodes.nodes.push(Node { id, pid: process.pid(), control });
        self.nodes.nodes.sort_by_key(|node| node.id);
        self.processes.insert(id, process);
    }

    fn settings(&self) -> Settings {
        let pairs: Vec<(&str, &str)> =
            self.environment.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        Settings::from_pairs(&pairs).unwrap()
    }

    /// The state of the cluster as the running nodes tell it.
    pub(crate) fn picture(&self) -> Picture {
        let ask = |node: &Node| ask(node.control, &self.nodes.key, STATUS, Nanos::from_millis(500)).ok();
        let answers: Vec<_> = self.nodes.nodes.iter().filter_map(ask).collect();
        Picture::new(&self.settings(), &answers, None)
    }

    /// Who holds the service address.
    pub(crate) fn owner(&self) -> u16 {
        self.picture().owner().expect("an owner").0
    }

    /// Waits until all running nodes answer, an owner serves every slot, and each has its members, none of them past
    /// ones; returns how long that took.
    pub(crate) fn wait_until_whole(&self) -> Duration {
        let (start, mut seen) = (Instant::now(), None);
        let whole = until(Duration::from_secs(25), || {
            let picture = self.picture();
            let answered = picture.nodes.iter().filter(|node| node.answered).count();
            let served = picture.slots.served == picture.slots.all;
            let whole = answered == self.nodes.nodes.len() && served && picture.is_whole();
            seen = Some(picture);
            whole
        });
        assert!(whole, "not whole: {seen:#?}");
        start.elapsed()
    }

    /// Takes a host down as a power failure does: nothing is said any more, and nobody tells.
    pub(crate) fn die(&mut self, bridge: &Bridge, hosts: &[u16]) {
        hosts.iter().for_each(|host| bridge.link(*host, false));
        let dying: Vec<u16> =
            self.nodes.nodes.iter().map(|n| n.id).filter(|id| hosts.contains(&self.host(*id))).collect();
        for id in dying {
            self.nodes.kill(id);
            self.nodes.nodes.retain(|node| node.id != id);
            drop(self.processes.remove(&id));
        }
    }

    /// Switches a host on again: of what it had there is left what is on its disk.
    pub(crate) fn revive(&mut self, bridge: &Bridge, host: u16) {
        bridge.boot(host);
        bridge.link(host, true);
        for id in (1..).zip(self.hosts.clone()).filter(|(_, of)| *of == host).map(|(id, _)| id) {
            self.run(id);
        }
    }

    /// Stops a node as an operator does, and starts it again once it has left; returns how long it took to leave.
    pub(crate) fn restart(&mut self, id: u16) -> Duration {
        let process = self.processes.remove(&id).unwrap();
        let start = Instant::now();
        signal(process.pid(), Signal::Terminate).unwrap();
        let ended = process.finish(Duration::from_secs(25));
        assert!(ended.status.success(), "{ended:?}");
        super::assert_no_panic(&ended.err);
        assert!(!ended.err.contains("without handing over"), "{ended:?}");
        let took = start.elapsed();
        println!("n{id} said:\n{}", ended.err);
        self.run(id);
        took
    }

    /// Ends the nodes that live with SIGTERM: each must end with success, and no node may have panicked.
    pub(crate) fn end(mut self) -> String {
        let mut said = String::new();
        // Twice: those that are left in the end could hand over to nobody.
        for _ in 0..2 {
            for process in self.processes.values().filter(|process| super::lives(process.pid())) {
                let _ = signal(process.pid(), Signal::Terminate);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        for (_, process) in std::mem::take(&mut self.processes) {
            let lived = super::lives(process.pid());
            let ended = process.finish(Duration::from_secs(10));
            assert!(ended.status.success() || !lived, "{ended:?}");
            super::assert_no_panic(&ended.err);
            said += &ended.err;
        }
        said
    }
}
