//! A cluster whose nodes can be cut off: each in a network namespace of its own, on a bridge in this process's.
//! Needs root, `unshare`, `nsenter`, `ip` and `nft`. The namespaces have no names, so the kernel takes everything
//! away with the last process, however that ends.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tandem::config::{Settings, resolve_from_environment};
use tandem::io::operator::{self, STATUS};
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

/// Cuts the link of a node, both ways.
pub(crate) fn cut(node: NodeId) -> anyhow::Result<()> {
    let rule = |side: &str| format!("add rule bridge tandem cut {side} port{} drop\n", node.0);
    script("nft", &["-f", "-"], &(rule("iifname") + &rule("oifname")))
}

/// Mends every link.
pub(crate) fn mend() -> anyhow::Result<()> {
    script("nft", &["-f", "-"], "flush chain bridge tandem cut\n")
}

/// A running cluster on a bridge; its processes end with it.
pub(crate) struct Bridged {
    pub(crate) settings: Settings,
    pub(crate) nodes: Vec<(NodeId, Child)>,
}

impl Bridged {
    pub(crate) fn start(program: &str) -> anyhow::Result<Bridged> {
        // Of an earlier cluster of this process there may be some left.
        let _ = run("ip", &["link", "del", "tandem0"]);
        script(
            "ip",
            &["-batch", "-"],
            "link add name tandem0 type bridge\nlink set tandem0 up\naddr add 10.77.0.254/24 dev tandem0\n",
        )?;
        let chain = "add table bridge tandem\nadd chain bridge tandem cut { type filter hook forward priority 0; }\nflush chain bridge tandem cut\n";
        script("nft", &["-f", "-"], chain)?;
        let address = |id: u16| format!("10.77.0.{id}");
        let nodes: Vec<String> =
            (1..=NODES).map(|id| format!("{id}@host{id}={}:7100", address(id))).collect();
        let flags = [
            ("NODE", "1".to_owned()),
            ("NODES", nodes.join(",")),
            ("SERVICE", format!("{}:5060", address(1))),
            ("SHARDS", "1".to_owned()),
            ("LOG", "warn".to_owned()),
            ("PIN", "off".to_owned()),
            ("CLUSTER_KEY", "c0ffee".repeat(8)),
        ];
        let resolved = resolve_from_environment(&flags.map(|(name, value)| (name.to_owned(), value)));
        let environment = resolved.environment();
        let mut cluster = Bridged { settings: resolved.settings?, nodes: Vec::new() };
        for id in 1..=NODES {
            let mut command = Command::new("unshare");
            // The node starts once its link stands.
            command.args(["-n", "sh", "-c", "read -r go && exec \"$0\" node --until-stdin-closes", program]);
            command.envs(environment.iter().cloned()).env("TANDEM_NODE", id.to_string());
            let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
            cluster.nodes.push((NodeId(id), child));
            cluster.plug_in(id)?;
        }
        cluster.wait_until_met()?;
        Ok(cluster)
    }

    /// Gives the newest node its end of a cable, and lets it start.
    fn plug_in(&mut self, id: u16) -> anyhow::Result<()> {
        let (_, child) = self.nodes.last_mut().context("no node")?;
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
        Ok(())
    }

    fn wait_until_met(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        for (node, _) in &self.nodes {
            while !self.status(*node).is_ok_and(|status| status["control"]["all_joined"] == true) {
                if start.elapsed() > READY_WITHIN {
                    bail!("{node} has not met the others within {READY_WITHIN:?}");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    pub(crate) fn status(&self, node: NodeId) -> anyhow::Result<serde_json::Value> {
        let address: SocketAddr = self.settings.control_address(node).context("no such node")?;
        let patience = Nanos::from_millis(1_000);
        Ok(operator::ask(address, &self.settings.sealing_key(), STATUS, patience)?)
    }
}

impl Drop for Bridged {
    fn drop(&mut self) {
        for (_, child) in &mut self.nodes {
            // One that has ended needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
