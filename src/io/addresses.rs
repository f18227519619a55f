//! The service addresses that this node holds, on this machine: put on an interface, announced, taken off again
//! (`TANDEM_VIP`), and the operator's own command for each change (`TANDEM_ON_ADDRESS`).
//!
//! What was added stands in a file of `TANDEM_RUN_DIR` until it is removed. So the supervisor can take it off after a
//! crash of the engine, and the next supervisor if both died.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};

use super::cells::NodeCells;
use super::{netlink, sys_announce, sys_socket};
use crate::config::{Settings, Vip};
use crate::types::Term;

/// When a new address is announced, counted from when it was added: broadcasts get lost.
const ANNOUNCE_AT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200)];
/// How long an address that was handed over stays, for what was sent here by those who have not heard of it.
const LINGER: Duration = Duration::from_millis(30);
/// How long to wait for the shards' sockets before the first client can reach them.
const SOCKETS_WITHIN: Duration = Duration::from_millis(20);
/// How long the operator's command may take...
const COMMAND_WITHIN: Duration = Duration::from_secs(10);
/// ...and when the node ends.
const LAST_COMMAND_WITHIN: Duration = Duration::from_secs(1);

/// This node has gained or lost a service address.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub address: IpAddr,
    /// The term in which it held it, or holds it now.
    pub term: Term,
    /// What has happened.
    pub news: News,
}

/// What has happened to a service address.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// This node holds it, by the map of this version.
    Gained(u32),
    /// Another node holds it.
    Moved,
    /// This node's lease has run out, and any other may hold it.
    Expired,
}

/// See the module's page.
pub struct Addresses {
    changes: Sender<Change>,
    threads: Vec<JoinHandle<()>>,
}

impl Addresses {
    /// Starts the threads that follow the changes.
    ///
    /// # Errors
    /// From the system: no more threads.
    pub fn start(settings: &Settings, cells: Arc<NodeCells>) -> io::Result<Addresses> {
        let (changes, follow) = channel::unbounded();
        let (told, tell) = channel::unbounded();
        let mut keeper = Keeper {
            auto: settings.vip == Vip::Auto,
            own: settings.me().address.ip(),
            ledger: ledger(settings),
            cells,
            held: BTreeMap::new(),
            added: BTreeMap::new(),
            due: Vec::new(),
            warned: false,
            told,
        };
        let command = settings.on_address.clone();
        let spawn =
            |name: &str, work: Box<dyn FnOnce() + Send>| thread::Builder::new().name(name.into()).spawn(work);
        let threads = vec![
            spawn("tandem-address", Box::new(move || keeper.run(&follow)))?,
            spawn("tandem-hook", Box::new(move || run_commands(&command, &tell)))?,
        ];
        Ok(Addresses { changes, threads })
    }

    /// Where changes are said, in their order.
    pub fn changes(&self) -> Sender<Change> {
        self.changes.clone()
    }

    /// Gives up every address and waits until that is done. All that [`Addresses::changes`] has given out must be gone.
    pub fn stop(self) {
        drop(self.changes);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// What was added to which interface.
type Added = BTreeMap<IpAddr, u32>;

/// Something to be done later.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Task {
    Announce,
    Remove(Term),
}

struct Keeper {
    auto: bool,
    own: IpAddr,
    ledger: PathBuf,
    cells: Arc<NodeCells>,
    held: BTreeMap<IpAddr, Term>,
    added: Added,
    due: Vec<(Instant, IpAddr, Task)>,
    /// It was said once that a privilege is missing.
    warned: bool,
    told: Sender<Told>,
}

impl Keeper {
    fn run(&mut self, changes: &Receiver<Change>) {
        loop {
            let next = self.due.iter().map(|(at, ..)| *at).min();
            let change = match next {
                Some(at) => changes.recv_deadline(at),
                None => changes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match change {
                Ok(change) => self.take(change),
                Err(RecvTimeoutError::Timeout) => self.do_due(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return self.end(),
            }
        }
    }

    fn take(&mut self, Change { address, term, news }: Change) {
        // Whatever was under way for this address is overtaken; but it must not stay if it was to go.
        let leaving = self.due.iter().find_map(|(_, of, task)| match task {
            Task::Remove(term) if *of == address => Some(*term),
            _ => None,
        });
        self.due.retain(|(_, of, _)| *of != address);
        if let Some(term) = leaving {
            self.remove(address, term);
        }
        match news {
            News::Gained(version) => self.add(address, term, version),
            News::Moved => {
                self.held.remove(&address);
                self.due.push((Instant::now() + LINGER, address, Task::Remove(term)));
            }
            News::Expired => {
                self.held.remove(&address);
                self.remove(address, term);
            }
        }
    }

    fn add(&mut self, address: IpAddr, term: Term, version: u32) {
        self.held.insert(address, term);
        if self.auto && !address.is_loopback() {
            let began = Instant::now();
            // A datagram that comes before the socket is there would be refused.
            let bound = || self.cells.shards.iter().all(|shard| shard.followed() >= version);
            while !bound() && began.elapsed() < SOCKETS_WITHIN {
                thread::sleep(Duration::from_micros(100));
            }
            match self.put_on(address) {
                Ok(Some(interface)) => {
                    tracing::info!(%address, term = term.0, interface, "service address added");
                    let now = Instant::now();
                    self.due.extend(ANNOUNCE_AT.map(|after| (now + after, address, Task::Announce)));
                    self.do_due(now);
                }
                Ok(None) => {
                    tracing::info!(%address, term = term.0, "service address is here already");
                    self.announce_where_it_is(address);
                }
                Err(error) => self.warn(address, "added to an interface", &error),
            }
        }
        self.tell("gained", address, term, COMMAND_WITHIN);
    }

    /// Clients may have sent to another node until now, although the address was configured here all the time.
    fn announce_where_it_is(&self, address: IpAddr) {
        let here = netlink::addresses().unwrap_or_default();
        let Some(at) = here.iter().find(|at| at.address == address) else { return };
        if let Err(error) = sys_announce::announce(address, at.interface) {
            tracing::warn!(%address, %error, "service address cannot be announced");
        }
    }

    /// Adds `address` to an interface; `None` if it is on one already.
    fn put_on(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        let here = netlink::addresses()?;
        if here.iter().any(|at| at.address == address) {
            return Ok(None);
        }
        let subnets = here.iter().filter(|at| at.carries(address) && !at.address.is_loopback());
        let subnet = subnets.max_by_key(|at| at.prefix);
        let interface = subnet.or_else(|| here.iter().find(|at| at.address == self.own));
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no interface carries its subnet");
        let interface = interface.ok_or_else(missing)?.interface;
        self.added.insert(address, interface);
        self.write_ledger();
        let result = netlink::add(address, interface);
        if result.is_err() {
            self.added.remove(&address);
            self.write_ledger();
        }
        result.map(|()| Some(interface))
    }

    fn remove(&mut self, address: IpAddr, term: Term) {
        self.take_off(address);
        self.tell("lost", address, term, COMMAND_WITHIN);
    }

    fn take_off(&mut self, address: IpAddr) {
        let Some(interface) = self.added.remove(&address) else { return };
        match netlink::remove(address, interface) {
            Ok(()) => tracing::info!(%address, interface, "service address removed"),
            Err(error) => self.warn(address, "removed from its interface", &error),
        }
        self.write_ledger();
    }

    fn do_due(&mut self, now: Instant) {
        let (due, later) = self.due.iter().partition(|(at, ..)| *at <= now);
        self.due = later;
        let due: Vec<(Instant, IpAddr, Task)> = due;
        for (_, address, task) in due {
            match (task, self.added.get(&address)) {
                (Task::Remove(term), _) => self.remove(address, term),
                (Task::Announce, Some(interface)) => {
                    if let Err(error) = sys_announce::announce(address, *interface) {
                        self.warn(address, "announced", &error);
                    }
                }
                (Task::Announce, None) => {}
            }
        }
    }

    /// The node ends: whatever it holds or is about to lose goes now.
    fn end(&mut self) {
        let leaving = self.due.iter().filter_map(|(_, address, task)| match task {
            Task::Remove(term) => Some((*address, *term)),
            Task::Announce => None,
        });
        let all: Vec<_> = leaving.chain(self.held.iter().map(|(a, t)| (*a, *t))).collect();
        for (address, term) in all {
            self.take_off(address);
            self.tell("lost", address, term, LAST_COMMAND_WITHIN);
        }
    }

    fn tell(&self, what: &'static str, address: IpAddr, term: Term, within: Duration) {
        // The other thread lives as long as this one.
        let _ = self.told.send(Told { what, address, term, within });
    }

    fn warn(&mut self, address: IpAddr, what: &str, error: &io::Error) {
        if error.kind() != io::ErrorKind::PermissionDenied {
            tracing::warn!(%address, %error, "this service address cannot be {what}");
        } else if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                %address,
                "the service address cannot be {what}: give this program CAP_NET_ADMIN and CAP_NET_RAW, or route the \
                 service addresses here yourself and set TANDEM_VIP=manual"
            );
        }
    }

    fn write_ledger(&mut self) {
        if let Err(error) = write_ledger(&self.ledger, &self.added) {
            let file = self.ledger.display();
            tracing::warn!(%file, %error, "cannot note which addresses were added: after a crash they stay (TANDEM_RUN_DIR)");
        }
    }
}

/// A change that the operator's command is told of.
struct Told {
    what: &'static str,
    address: IpAddr,
    term: Term,
    within: Duration,
}

/// Runs the operator's command for each change, one after the other and apart from the interfaces.
fn run_commands(command: &str, told: &Receiver<Told>) {
    for Told { what, address, term, within } in told.iter().filter(|_| !command.is_empty()) {
        let mut shell = Command::new("sh");
        shell.args(["-c", command, "sh", what, &address.to_string(), &term.0.to_string()]);
        shell.stdin(Stdio::null()).env_remove("TANDEM_CLUSTER_KEY");
        let failed = match run_within(&mut shell, within) {
            Ok(None) => continue,
            Ok(Some(why)) => why,
            Err(error) => error.to_string(),
        };
        tracing::warn!(%address, term = term.0, what, "TANDEM_ON_ADDRESS failed: {failed}");
    }
}

/// Runs a command to its end; why it failed, if it did.
fn run_within(command: &mut Command, within: Duration) -> io::Result<Option<String>> {
    let mut child = command.spawn()?;
    let began = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(None),
            Some(status) => return Ok(Some(status.to_string())),
            None if began.elapsed() > within => {
                child.kill()?;
                child.wait()?;
                return Ok(Some(format!("not over after {within:?}, killed")));
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn ledger(settings: &Settings) -> PathBuf {
    settings.run_dir.join(format!("{}-{}.addresses", settings.cluster, settings.node.0))
}

/// The file is complete or the one before, whenever the machine stops.
fn write_ledger(ledger: &Path, added: &Added) -> io::Result<()> {
    if added.is_empty() {
        return std::fs::remove_file(ledger).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        });
    }
    let mut text = String::new();
    for (address, interface) in added {
        let _ = writeln!(text, "{address} {interface}");
    }
    if let Some(folder) = ledger.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let new = ledger.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, ledger)
}

fn read_ledger(ledger: &Path) -> Added {
    let text = std::fs::read_to_string(ledger).unwrap_or_default();
    let line = |line: &str| {
        let (address, interface) = line.split_once(' ')?;
        Some((address.parse().ok()?, interface.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Takes off what an engine of this node has added and left behind. If one runs (this node was started twice), what was
/// added is not left behind.
pub fn remove_leftovers(settings: &Settings) {
    let ledger = ledger(settings);
    let left = read_ledger(&ledger);
    if left.is_empty() || sys_socket::probe_free(settings.me().address).is_err() {
        return;
    }
    for (address, interface) in &left {
        match netlink::remove(*address, *interface) {
            Ok(()) => tracing::info!(%address, interface, "service address removed after its engine"),
            // Gone with the interface, or by an operator's hand.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(error) => tracing::warn!(%address, interface, %error, "a service address is left behind"),
        }
    }
    let _ = std::fs::remove_file(ledger);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found_again() {
        let folder = std::env::temp_dir().join(format!("tandem-ledger-{}", std::process::id()));
        let file = folder.join("tandem-1.addresses");
        let added = Added::from([("10.0.0.1".parse().unwrap(), 3), ("fd00::1".parse().unwrap(), 4)]);
        write_ledger(&file, &added).unwrap();
        assert_eq!(read_ledger(&file), added);
        std::fs::write(&file, "rubbish\n10.0.0.1 3\n10.0.0.2\n10.0.0.3 x\n").unwrap();
        assert_eq!(read_ledger(&file), Added::from([("10.0.0.1".parse().unwrap(), 3)]));
        write_ledger(&file, &Added::new()).unwrap();
        assert!(!file.exists());
        write_ledger(&file, &Added::new()).unwrap();
        assert_eq!(read_ledger(&file), Added::new());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_command_that_fails_or_takes_too_long_is_told() {
        let sh = |line: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", line]);
            command
        };
        let within = Duration::from_secs(5);
        assert_eq!(run_within(&mut sh("exit 0"), within).unwrap(), None);
        assert!(run_within(&mut sh("exit 3"), within).unwrap().unwrap().contains('3'));
        let slow = run_within(&mut sh("exec sleep 60"), Duration::from_millis(20)).unwrap().unwrap();
        assert!(slow.contains("not over after 20ms"), "{slow}");
    }
}
