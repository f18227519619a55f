//! Why a node cannot start, or had to end: each error says what to change.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::{PortRange, Show as _};
use crate::proto::map::MapError;

/// Why a node cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Somebody has the address.
    #[error("{address} ({what}) is in use: stop the process that has it, or change {setting}")]
    InUse {
        /// What it was to be bound for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The setting it comes from.
        setting: &'static str,
    },
    /// No interface has the address.
    #[error(
        "{address} ({what}) is not an address of this machine: add it to an interface, or change {setting}"
    )]
    NotHere {
        /// What it was to be bound for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The setting it comes from.
        setting: &'static str,
    },
    /// Another error of a socket.
    #[error("{address} ({what}, from {setting}): {error}")]
    Socket {
        /// What it was to be bound for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The setting it comes from.
        setting: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// Fewer open files allowed than needed.
    #[error(
        "this node needs {needed} open files and may have {limit}: raise the limit (ulimit -n, LimitNOFILE=)"
    )]
    OpenFiles {
        /// What it needs.
        needed: u64,
        /// The hard limit.
        limit: u64,
    },
    /// Fewer open files allowed than the media ports need.
    #[error(
        "TANDEM_MEDIA_PORTS={} on {addresses} service addresses: this node needs {needed} open files and may have \
         {limit}: raise the limit (ulimit -n, LimitNOFILE=){}",
        range.show(), remedy(range, *fits)
    )]
    MediaFiles {
        /// The ports.
        range: PortRange,
        /// On so many addresses.
        addresses: u64,
        /// What the node needs.
        needed: u64,
        /// The hard limit.
        limit: u64,
        /// Up to which port the limit would do.
        fits: Option<u16>,
    },
    /// The file of call records.
    #[error("TANDEM_CDR={}: cannot be opened: {error}", file.display())]
    Records {
        /// Which.
        file: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Where calls go.
    #[error(transparent)]
    Routes(#[from] crate::io::reload::RoutesError),
    /// Media cannot be steered.
    #[error(transparent)]
    Steer(#[from] crate::io::steer::SteerError),
    /// The settings make no cluster map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The file in which a voter's votes survive.
    #[error(transparent)]
    VoteFile(#[from] crate::io::vote_file::VoteFileError),
    /// What it holds.
    #[error(transparent)]
    Voter(#[from] crate::proto::voter::VoterError),
    /// Something else the system refused.
    #[error("cannot {what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A thread ended that should not have.
    #[error("the thread {name} ended: {reason}")]
    Thread {
        /// Its name.
        name: String,
        /// What it said.
        reason: String,
    },
}

fn remedy(range: &PortRange, fits: Option<u16>) -> String {
    let fits = fits.map(|last| PortRange { last, ..*range }.show());
    fits.map_or_else(String::new, |fits| format!(", or set TANDEM_MEDIA_PORTS={fits}"))
}

/// Turns what the system said into a [`NodeError`].
pub(in crate::io) fn system(what: &'static str) -> impl FnOnce(io::Error) -> NodeError {
    move |error| NodeError::System { what, error }
}

/// What an address is for, for error messages.
#[derive(Copy, Clone)]
pub(super) struct Purpose {
    what: &'static str,
    setting: &'static str,
}

pub(super) const CONTROL: Purpose = Purpose { what: "control", setting: "TANDEM_NODES" };
pub(super) const SHARD: Purpose = Purpose { what: "shards", setting: "TANDEM_NODES" };
pub(super) const SERVICE: Purpose = Purpose { what: "service endpoint", setting: "TANDEM_SERVICE" };
pub(super) const GROUP: Purpose = Purpose { what: "multicast", setting: "TANDEM_MULTICAST_GROUP" };

impl Purpose {
    pub(super) fn failed(self, address: SocketAddr) -> impl FnOnce(io::Error) -> NodeError {
        let Purpose { what, setting } = self;
        move |error| match error.kind() {
            io::ErrorKind::AddrInUse => NodeError::InUse { what, address, setting },
            io::ErrorKind::AddrNotAvailable => NodeError::NotHere { what, address, setting },
            _ => NodeError::Socket { what, address, setting, error },
        }
    }
}
