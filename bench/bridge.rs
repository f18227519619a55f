//! A cluster whose nodes can be cut off: each in a network namespace of its own, on a bridge in this process's.
//! Needs root, `unshare`, `nsenter`, `ip` and `nft`. The namespaces have no names, so the kernel takes everything
//! away with the last process, however that ends.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tandem::cli::local::Folder;
use tandem::cli::status::Picture;
use tandem::config::{Settings, resolve_from_environment};
use tandem::io::operator::{self, STATUS};
use tandem::io::sys_process::{Signal, signal};
use tandem::types::{Nanos, NodeId};

/// Set in the process that has a namespace for the bridge.
const INSIDE: &str = "TANDEM_TEST_BRIDGE";
const NODES: u16 = 3;
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Whether this process is in a namespace of its own, in which links may be made and cut.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this program over in a network namespace of its own, if this machine allows that. Returns why not.
pub(crate) fn enter() -> anyhow::Error {
    let tried = run("unshare", &["-n", "sh", "-c", TRIAL]);
    if let Err(error) = tried {
        return error;
    }
    let me = std::env::current_exe().unwrap_or_default();
    let inside = "ip link set lo up && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", inside]).arg(me).args(std::env::args().skip(1)).env(INSIDE, "1");
    command.exec().into()
}

/// Everything that is needed later, tried in a namespace that is gone at once.
const TRIAL: &str = "ip link set lo up && ip link add name b0 type bridge && ip link add name v0 type veth peer name e0 && \
    nft add table bridge t && nsenter -t $$ -n true";

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), said.trim());
    Ok(())
}

/// Several commands of `ip` or `nft`, one a line.
fn script(program: &str, args: &[&str], lines: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("no input")?.write_all(lines.as_bytes())?;
    ensure!(child.wait()?.success(), "{program} {}: refused {lines}", args.join(" "));
    Ok(())
}

/// Cuts the link of a node, both ways: to the other nodes and to the client.
pub(crate) fn cut(node: NodeId) -> anyhow::Result<()> {
    let rule =
        |(chain, side): (&str, &str)| format!("add rule bridge tandem {chain} {side} port{} drop\n", node.0);
    let ways = [("cut", "iifname"), ("cut", "oifname"), ("heard", "iifname"), ("told", "oifname")];
    script("nft", &["-f", "-"], &ways.map(rule).concat())
}

/// Mends every link.
pub(crate) fn mend() -> anyhow::Result<()> {
    script("nft", &["-f", "-"], "flush table bridge tandem\n")
}

/// One node and the cable to it.
struct Plugged {
    id: NodeId,
    child: Child,
    /// The process that holds its state, as it was when last asked.
    engine: u32,
}

/// A running cluster on a bridge; its processes and files end with it.
pub(crate) struct Bridged {
    pub(crate) settings: Settings,
    nodes: Vec<Plugged>,
    environment: Vec<(String, String)>,
    program: String,
    folder: Folder,
}

impl Bridged {
    pub(crate) fn start(program: &str) -> anyhow::Result<Bridged> {
        // Of an earlier cluster of this process there may be some left.
        let _ = run("ip", &["link", "del", "tandem0"]);
        script(
            "ip",
            &["-batch", "-"],
            "link add name tandem0 address 02:77:00:00:00:fe type bridge\nlink set tandem0 up\naddr add 10.77.0.254/24 dev tandem0\n",
        )?;
        let chain = "add table bridge tandem\nadd chain bridge tandem cut { type filter hook forward priority 0; }\n\
            add chain bridge tandem heard { type filter hook input priority 0; }\n\
            add chain bridge tandem told { type filter hook output priority 0; }\nflush table bridge tandem\n";
        script("nft", &["-f", "-"], chain)?;
        let nodes: Vec<String> = (1..=NODES).map(|id| format!("{id}@host{id}=10.77.0.{id}:7100")).collect();
        let flags = [
            ("NODE", "1".to_owned()),
            ("NODES", nodes.join(",")),
            ("SERVICE", "10.77.0.100:5060".to_owned()),
            ("SHARDS", "1".to_owned()),
            ("LOG", "error".to_owned()),
            ("PIN", "off".to_owned()),
            ("CLUSTER_KEY", "c0ffee".repeat(8)),
        ];
        let resolved = resolve_from_environment(&flags.map(|(name, value)| (name.to_owned(), value)));
        let mut cluster = Bridged {
            environment: resolved.environment(),
            settings: resolved.settings?,
            nodes: Vec::new(),
            program: program.to_owned(),
            folder: Folder::new()?,
        };
        for id in 1..=NODES {
            let node = cluster.plug_in(NodeId(id))?;
            cluster.nodes.push(node);
        }
        cluster.wait_until_whole(READY_WITHIN)?;
        Ok(cluster)
    }

    /// Starts a node in a namespace of its own, at the end of a new cable.
    fn plug_in(&self, node: NodeId) -> anyhow::Result<Plugged> {
        let id = node.0;
        let mut command = Command::new("unshare");
        // The node starts once its link stands.
        command.args([
            "-n",
            "sh",
            "-c",
            "read -r go && exec \"$0\" node --until-stdin-closes",
            &self.program,
        ]);
        command.envs(self.environment.iter().cloned()).env("TANDEM_NODE", id.to_string());
        command.env("TANDEM_DATA_DIR", self.folder.folder(&id.to_string(), "data")?);
        command.env("TANDEM_RUN_DIR", self.folder.folder(&id.to_string(), "run")?);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let pid = child.id();
        let space = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net"));
        let start = Instant::now();
        while space(&pid.to_string())? == space("self")? {
            ensure!(start.elapsed() < READY_WITHIN, "unshare made no namespace");
            std::thread::sleep(Duration::from_millis(2));
        }
        let outside = format!(
            "link add name port{id} type veth peer name end{id} netns {pid}\nlink set port{id} master tandem0 up\n"
        );
        script("ip", &["-batch", "-"], &outside)?;
        let inside = format!("link set lo up\naddr add 10.77.0.{id}/24 dev end{id}\nlink set end{id} up\n");
        script("nsenter", &["-t", &pid.to_string(), "-n", "ip", "-batch", "-"], &inside)?;
        child.stdin.as_mut().context("no input")?.write_all(b"go\n")?;
        Ok(Plugged { id: node, engine: pid, child })
    }

    fn node(&self, node: NodeId) -> anyhow::Result<&Plugged> {
        self.nodes.iter().find(|n| n.id == node).with_context(|| format!("there is no {node}"))
    }

    /// The nodes, each with the process that holds its state.
    pub(crate) fn pids(&self) -> Vec<(NodeId, u32)> {
        self.nodes.iter().map(|node| (node.id, node.engine)).collect()
    }

    /// Asks every node which process its engine is now.
    pub(crate) fn find_engines(&mut self) {
        for at in 0..self.nodes.len() {
            let status = self.status(self.nodes[at].id).ok();
            if let Some(pid) = status.and_then(|status| u32::try_from(status["pid"].as_u64()?).ok()) {
                self.nodes[at].engine = pid;
            }
        }
    }

    /// Kills a node's supervisor and engine at once. Its namespace goes with them, and with that its addresses and
    /// its cable, as if its host had died.
    pub(crate) fn kill_node(&self, node: NodeId) -> anyhow::Result<()> {
        let node = self.node(node)?;
        signal(node.child.id(), Signal::Kill)?;
        // It may have ended with its supervisor.
        let _ = signal(node.engine, Signal::Kill);
        Ok(())
    }

    /// Asks a node to hand over what it holds and to end.
    pub(crate) fn end(&self, node: NodeId) -> anyhow::Result<()> {
        Ok(signal(self.node(node)?.child.id(), Signal::Terminate)?)
    }

    /// Starts a node again that was killed, or was asked to end.
    pub(crate) fn start_again(&mut self, node: NodeId) -> anyhow::Result<()> {
        let at =
            self.nodes.iter().position(|n| n.id == node).with_context(|| format!("there is no {node}"))?;
        // `wait` would close its input first, and a node that is draining would end at once.
        let _input = self.nodes[at].child.stdin.take();
        self.nodes[at].child.wait()?;
        let start = Instant::now();
        // What is under /sys/class/net is another namespace's.
        let cable = format!("port{}", node.0);
        while run("ip", &["link", "show", "dev", &cable]).is_ok() {
            ensure!(start.elapsed() < READY_WITHIN, "the cable of {node} is still there");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.nodes[at] = self.plug_in(node)?;
        Ok(())
    }

    /// The state of the cluster as the nodes that answer tell it.
    pub(crate) fn picture(&self) -> Picture {
        let answers: Vec<_> = self.nodes.iter().filter_map(|node| self.status(node.id).ok()).collect();
        Picture::new(&self.settings, &answers, None)
    }

    /// Waits until all nodes answer and every slot has its members.
    pub(crate) fn wait_until_whole(&mut self, patience: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let picture = self.picture();
            let all = picture.nodes.iter().all(|node| node.answered);
            if all && picture.is_whole() && picture.slots.served > 0 {
                self.find_engines();
                return Ok(());
            }
            ensure!(start.elapsed() < patience, "not whole after {patience:?}: {:?}", picture.slots);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn status(&self, node: NodeId) -> anyhow::Result<serde_json::Value> {
        let address: SocketAddr = self.settings.control_address(node).context("no such node")?;
        let patience = Nanos::from_millis(1_000);
        Ok(operator::ask(address, &self.settings.sealing_key(), STATUS, patience)?)
    }
}

impl Drop for Bridged {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Those that have ended need no killing.
            let _ = node.child.kill();
            let _ = signal(node.engine, Signal::Kill);
            let _ = node.child.wait();
        }
    }
}
