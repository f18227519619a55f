//! `tandem local`: a cluster of separate processes on loopback, kept until Ctrl-C. Also what `tandem demo`, the
//! benches and the tests run their load against.

mod cluster;
mod places;

pub use cluster::{ClusterArgs, LocalCluster, LocalNode};
pub use places::Folder;

use super::json;
use crate::config::App;
use anyhow::bail;
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The arguments of `tandem local`.
#[derive(Args, Debug)]
pub struct LocalArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Also write {"nodes": [{name, host, pid, engine_pid}], "service_addresses": ["IP:PORT"]} to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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
    println!("{:<6} {:<8} {:>8} {:>8}  cluster address", "node", "host", "process", "engine");
    for node in &cluster.nodes {
        let address = cluster.settings.control_address(node.id).map(|a| a.to_string()).unwrap_or_default();
        let (id, engine) = (node.id.to_string(), node.engine_pid);
        println!("{id:<6} {:<8} {:>8} {engine:>8}  {address}", node.host, node.pid);
    }
    let service: Vec<String> = cluster.service().iter().map(ToString::to_string).collect();
    println!("service addresses: {}", service.join(", "));
    let try_this = match cluster.settings.app {
        App::Echo => format!("tandem replay FILE --target {}", service[0]),
        App::Sip => format!("call sip:anybody@{}", service[0]),
    };
    println!("try: {try_this}   (Ctrl-C ends the cluster)");
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
