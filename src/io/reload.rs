//! The routes of a node: read when it starts, and again when it is asked to (SIGHUP, `tandem reload`).
//!
//! They are read in a thread of their own, because a file may be slow, and checked as a whole: what is wrong changes
//! nothing. What is right goes to every shard, which tells the keepers of the slots it owns through their logs, so that
//! all members of a slot switch at the same entry; slots whose log begins later are told first.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use serde_json::{Value, json};

use super::cells::{NodeCells, Notice};
use crate::app::sip::routes::{RouteError, Routes};
use crate::config::{App, Route, Settings};

/// The kind of notice that names the routes: its first byte.
const ROUTES: u8 = b'R';
/// How long the shards may take to say how many slots they have told.
const TELL_WITHIN: Duration = Duration::from_millis(500);

/// Why routes are not taken.
#[derive(Debug, thiserror::Error)]
pub enum RoutesError {
    /// The file cannot be read.
    #[error("TANDEM_ROUTES={}: cannot be read: {error}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It says what cannot be, or what TANDEM_ROUTE contradicts.
    #[error("{of}: {error}")]
    Wrong {
        /// Where they come from.
        of: String,
        /// What is wrong.
        error: RouteError,
    },
}

/// Where the routes come from.
#[derive(Clone, Debug)]
pub struct RouteSource {
    file: Option<PathBuf>,
    more: Vec<Route>,
}

impl RouteSource {
    /// As the settings say.
    pub fn new(settings: &Settings) -> RouteSource {
        RouteSource { file: settings.routes.clone(), more: settings.route.clone() }
    }

    /// Reads and checks them: the file, and after it what was given by itself.
    ///
    /// # Errors
    /// See [`RoutesError`]; it names the line and what is wrong in it.
    pub fn read(&self) -> Result<Routes, RoutesError> {
        let mut text = match &self.file {
            Some(file) => read_file(file)?,
            None => String::new(),
        };
        let lines = text.lines().count();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        self.more.iter().for_each(|route| text += &format!("{route}\n"));
        Routes::parse(&text).map_err(|error| {
            let of = match &self.file {
                Some(file) if error.line <= lines.max(1) => format!("TANDEM_ROUTES={}", file.display()),
                _ => "TANDEM_ROUTE (--route)".into(),
            };
            RoutesError::Wrong { of, error }
        })
    }
}

fn read_file(file: &Path) -> Result<String, RoutesError> {
    std::fs::read_to_string(file).map_err(|error| RoutesError::File { file: file.into(), error })
}

/// The notice that names routes.
pub fn notice(routes: &Routes) -> Arc<[u8]> {
    [&[ROUTES], routes.text().as_bytes()].concat().into()
}

/// Asks for the routes to be read again, and says where the answer goes, if anybody waits for it.
pub type Ask = Option<Sender<Value>>;

/// What reads the routes again.
pub struct Reloader {
    node: u16,
    source: Option<RouteSource>,
    cells: Arc<NodeCells>,
}

impl Reloader {
    /// For this node.
    pub fn new(settings: &Settings, cells: Arc<NodeCells>) -> Reloader {
        let source = (settings.app == App::Sip).then(|| RouteSource::new(settings));
        Reloader { node: settings.node.0, source, cells }
    }

    /// Answers until nobody can ask any more.
    pub fn run(&self, asked: &Receiver<Ask>) {
        for ask in asked {
            // What others may have moved away is opened anew whatever becomes of the routes.
            self.cells.reopen();
            let answer = self.reload();
            if let Some(reply) = ask {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(answer);
            }
        }
    }

    fn reload(&self) -> Value {
        let Some(source) = &self.source else {
            return json!({ "accepted": false, "why": "this application has no routes (TANDEM_APP)" });
        };
        match source.read() {
            Ok(routes) => {
                let (version, slots) = (format!("{:016x}", routes.hash()), self.tell(&routes));
                tracing::info!(version, slots, targets = routes.targets().len(), "routes read again");
                let targets = routes.targets().len();
                json!({ "accepted": true, "node": self.node, "routes": version, "slots": slots, "targets": targets })
            }
            Err(error) => {
                tracing::error!("routes stay as they are: {error}");
                json!({ "accepted": false, "why": error.to_string() })
            }
        }
    }

    /// Tells every shard; returns how many slots were told.
    fn tell(&self, routes: &Routes) -> usize {
        let (told, counts) = channel::bounded(self.cells.shards.len());
        let full = self.cells.notify(&Notice { bytes: notice(routes), founding: true, told: Some(told) });
        if full > 0 {
            tracing::error!(full, "shards have too much to hear: ask for the routes to be read again");
        }
        let until = Instant::now() + TELL_WITHIN;
        // Ends when every shard has dropped its sender.
        std::iter::from_fn(|| counts.recv_deadline(until).ok()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(file: Option<&Path>, routes: &str) -> RouteSource {
        let file = file.map(|file| file.display().to_string()).unwrap_or_default();
        let pairs = [("ROUTES", file.as_str()), ("ROUTE", routes), ("APP", "sip")];
        RouteSource::new(&Settings::from_pairs(&pairs).unwrap())
    }

    #[test]
    fn routes_come_from_the_file_and_the_flags_and_errors_name_the_place() {
        let file = std::env::temp_dir().join(format!("tandem-routes-{}", std::process::id()));
        std::fs::write(&file, "# ours\nuser +49 127.0.0.1:5081").unwrap();
        let routes = source(Some(&file), "default=127.0.0.1:5080").read().unwrap();
        assert_eq!(routes.targets().len(), 2);
        assert_eq!(source(None, "default=127.0.0.1:5080").read().unwrap().targets().len(), 1);
        assert!(notice(&routes).starts_with(b"Ruser +49 127.0.0.1:5081"));
        std::fs::write(&file, "default 127.0.0.1:5081\n\nuser 1 nowhere\n").unwrap();
        let error = source(Some(&file), "").read().unwrap_err().to_string();
        for part in [&format!("TANDEM_ROUTES={}", file.display()), "line 3", "nowhere"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        std::fs::write(&file, "default 127.0.0.1:5081\n").unwrap();
        let twice = source(Some(&file), "default=127.0.0.1:5080").read().map(|routes| routes.hash());
        assert!(twice.is_err_and(|error| error.to_string().contains("--route")));
        std::fs::remove_file(&file).unwrap();
        let error = source(Some(&file), "").read().unwrap_err().to_string();
        assert!(error.contains("cannot be read") && error.contains("No such file"), "{error}");
    }
}
