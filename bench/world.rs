//! The clusters that benches start, with the program of this build.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use tandem::cli::config::SettingArgs;
use tandem::cli::local::{ClusterArgs, LocalCluster};

pub(crate) const PROGRAM: &str = "TANDEM_TEST_PROGRAM";
/// A cluster can lose the race for its ports to another process on the machine.
const STARTS: usize = 3;

/// Starts `nodes` processes that are all members of every slot, with the program of this build.
pub(crate) fn cluster(nodes: u16, settings: &[(&str, &str)]) -> anyhow::Result<LocalCluster> {
    let own = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let flags = own.chain([("R".to_owned(), nodes.to_string())]).collect();
    let args = ClusterArgs { nodes, hosts: None, settings: SettingArgs { flags } };
    let mut result = LocalCluster::start(&args);
    for _ in 1..STARTS {
        if result.is_err() {
            result = LocalCluster::start(&args);
        }
    }
    result.with_context(|| format!("cannot start {nodes} nodes"))
}

/// Nodes run the program that cargo built with this bench, unless TANDEM_TEST_PROGRAM names another: if it is not set,
/// this process starts over with it set.
pub(crate) fn name_program() {
    if std::env::var_os(PROGRAM).is_none() {
        let me = std::env::current_exe().unwrap_or_default();
        let error =
            Command::new(me).args(std::env::args().skip(1)).env(PROGRAM, env!("CARGO_BIN_EXE_tandem")).exec();
        eprintln!("cannot start over with {PROGRAM} set: {error}");
        std::process::exit(1);
    }
}
