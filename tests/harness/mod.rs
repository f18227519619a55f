//! What the tests with real processes share: commands that end in time, a sandbox that takes everything with it
//! when it ends, clusters, load.
//!
//! A sandbox is this very test, started again by `unshare(1)` in its own process, mount and network namespaces.
//! When its first process ends, however it ends, the kernel ends every other process in it and removes its
//! interfaces and mounts.
#![allow(dead_code)] // each test binary uses its part

pub(crate) mod cluster;
pub(crate) mod hosts;
pub(crate) mod load;
pub(crate) mod parties;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Set in a sandbox, to the name of the one test that runs in it.
const INSIDE: &str = "TANDEM_TEST_INSIDE";
/// Where a sandbox has a file system in memory.
const MEMORY: &str = "/run";
/// How long the test in a sandbox may take.
const SANDBOX_PATIENCE: Duration = Duration::from_secs(120);

/// `tandem`, with no settings from the environment and with backtraces on, so that none can hide.
pub(crate) fn tandem() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    free_of_settings(&mut command);
    command
}

/// Takes the settings of whoever runs the tests out of a command's environment.
pub(crate) fn free_of_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TANDEM_") {
            command.env_remove(name);
        }
    }
    command.env("RUST_BACKTRACE", "1");
}

/// Says, past the capture of test output, what was not checked.
pub(crate) fn loud(what: &str) {
    let _ = writeln!(std::io::stderr(), "\n*** NOT CHECKED: {what} ***\n");
}

/// A child that is killed when it is dropped, and what it writes.
pub(crate) struct Process {
    pub(crate) child: Child,
    out: Option<JoinHandle<String>>,
    err: Option<JoinHandle<String>>,
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

fn reader(stream: Option<impl Read + Send + 'static>) -> Option<JoinHandle<String>> {
    let mut stream = stream?;
    Some(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }))
}

impl Process {
    /// Starts a command; both its outputs are read to their ends.
    pub(crate) fn start(command: &mut Command) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (out, err) = (reader(child.stdout.take()), reader(child.stderr.take()));
        Process { child, out, err }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end; kills it when that takes too long.
    pub(crate) fn finish(mut self, patience: Duration) -> Ended {
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let (out, err) = self.read();
                panic!("not over after {patience:?}\n{out}\n{err}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let (out, err) = self.read();
        Ended { status, out, err }
    }

    fn read(&mut self) -> (String, String) {
        let text = |thread: &mut Option<JoinHandle<String>>| thread.take().map(|t| t.join().unwrap());
        (text(&mut self.out).unwrap_or_default(), text(&mut self.err).unwrap_or_default())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What a node said before its test failed is worth more than what the test saw.
        if std::thread::panicking() {
            let (_, err) = self.read();
            let skip = err.lines().count().saturating_sub(200);
            let last: Vec<&str> = err.lines().skip(skip).collect();
            eprintln!("process {} said in the end:\n{}\n", self.pid(), last.join("\n"));
        }
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command, patience: Duration) -> Ended {
    Process::start(command).finish(patience)
}

/// Runs a shell line that must succeed; returns what it wrote.
pub(crate) fn sh(line: &str) -> String {
    let ended = run(Command::new("sh").args(["-ec", line]), Duration::from_secs(20));
    assert!(ended.status.success(), "{line}: {ended:?}");
    ended.out
}

/// Whether a command is installed.
pub(crate) fn installed(command: &str) -> bool {
    let line = format!("command -v {command}");
    run(Command::new("sh").args(["-c", &line]), Duration::from_secs(5)).status.success()
}

/// Whether a process is there and no zombie.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// The processes that the first thread of a process has started and not yet waited for.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Waits until `done`, at most `patience`; whether it came true.
pub(crate) fn until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A folder that is removed when it is dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Folder {
        let number = Instant::now();
        let name = format!("{}-{number:?}", std::process::id());
        let name: String = name.chars().filter(|c| c.is_ascii_digit() || *c == '-').collect();
        // In a sandbox it is memory: what shares the disk must not decide how fast a vote is kept.
        let inside = std::env::var_os(INSIDE).map(|_| Path::new(MEMORY));
        let path = inside.unwrap_or(Path::new(env!("CARGO_TARGET_TMPDIR"))).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The captures of the tree.
pub(crate) fn samples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    ["call-g711a.pcap", "call-prack-update.pcap", "register.pcap"].map(|name| folder.join(name)).to_vec()
}

/// What to do where a sandbox cannot be had.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum Otherwise {
    /// Run the test as it is: it needs no more than loopback and free ports.
    RunHere,
    /// Say loudly that it was not checked.
    Skip,
}

/// Runs `scenario` in a sandbox with `lo` up. `name` is the name of the calling test; `tools` are the commands
/// it needs. One at a time over all test binaries of this tree: each of them wants the machine's cores.
pub(crate) fn sandboxed(name: &str, tools: &[&str], otherwise: Otherwise, scenario: fn()) {
    if std::env::var(INSIDE).as_deref() == Ok(name) {
        sh(&format!("ip link set lo up; mount -t tmpfs tandem {MEMORY}; mount -t tmpfs tandem /var/lib"));
        scenario();
        return;
    }
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("serial.lock")).unwrap();
    lock.lock().unwrap();
    let missing: Vec<_> = tools.iter().filter(|tool| !installed(tool)).collect();
    if !missing.is_empty() {
        return loud(&format!("{name}: {missing:?} not installed"));
    }
    let unshare = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let possible = installed("unshare")
        && installed("ip")
        && run(Command::new("unshare").args(unshare).arg("true"), Duration::from_secs(5)).status.success();
    match (possible, otherwise) {
        (false, Otherwise::Skip) => loud(&format!("{name}: it needs root, and namespaces (unshare, ip)")),
        (false, Otherwise::RunHere) => scenario(),
        (true, _) => {
            let mut command = Command::new("unshare");
            command.args(unshare).arg(std::env::current_exe().unwrap());
            command.env(INSIDE, name).env("TMPDIR", MEMORY);
            command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
            let ended = run(&mut command, SANDBOX_PATIENCE);
            let passed = ended.status.success() && ended.out.contains("1 passed");
            assert!(passed, "{name} in its sandbox: {}\n{}\n{}", ended.status, ended.out, ended.err);
            print!("{}", ended.out);
            for line in ended.err.lines().filter(|line| line.contains("NOT CHECKED")) {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
        }
    }
}

/// Everything that no program of ours may ever say.
pub(crate) fn assert_no_panic(said: &str) {
    for word in ["panicked at", "RUST_BACKTRACE", "stack backtrace", "unreachable code", "attempt to"] {
        assert!(!said.contains(word), "{word:?} in:\n{said}");
    }
}
