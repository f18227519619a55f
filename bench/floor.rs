//! The floor that the engine is measured against: the least a UDP server can do on this machine. One thread takes
//! batches with recvmmsg and sends every datagram back with sendmmsg, by the same system-call layer as the engine.
//! It runs in a process of its own, like the nodes, and CPU time is counted the same way for both.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio, exit};

use tandem::io::sys_recv::RecvBatch;
use tandem::io::sys_send::{SendBatch, Sent};
use tandem::io::sys_socket::{self, Buffers};
use tandem::io::sys_time::{process_cpu, wait_readable};
use tandem::types::Nanos;

/// The argument that makes a bench's program the forwarder.
const FLOOR: &str = "--floor";
/// Datagrams in one system call.
const BATCH: usize = 64;
/// Bytes of the socket's buffers, each way: as the nodes ask for by default.
const SOCKET_BYTES: usize = 8 << 20;

/// Becomes the forwarder if this process was started as one. Call it first in `main`.
pub(crate) fn serve_if_asked() {
    if std::env::args().nth(1).as_deref() == Some(FLOOR) {
        let Err(error) = serve();
        eprintln!("floor: {error}");
        exit(1);
    }
}

/// Sends back what arrives, until standard input is closed.
fn serve() -> std::io::Result<std::convert::Infallible> {
    let socket = sys_socket::bind(SocketAddr::from(([127, 0, 0, 1], 0)), false)?;
    sys_socket::set_buffers(socket.as_fd(), Buffers { recv: SOCKET_BYTES, send: SOCKET_BYTES })?;
    println!("{}", socket.local_addr()?);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        exit(0);
    });
    let (mut batch, mut replies) = (RecvBatch::new(BATCH, 2_048), SendBatch::new(BATCH, 1 << 20, false));
    loop {
        wait_readable(socket.as_fd(), -1)?;
        while let Ok(count) = batch.recv(socket.as_fd()) {
            for index in 0..count {
                let received = batch.get(index).expect("as many as recv returned");
                replies.push(received.source, 0, received.bytes);
            }
            send(&socket, &mut replies);
            if count < BATCH {
                break;
            }
        }
    }
}

/// What the kernel does not take is dropped: the bench counts what arrives.
fn send(socket: &UdpSocket, replies: &mut SendBatch) {
    while let Sent::Refused(_) = replies.send(socket.as_fd()) {
        replies.skip();
    }
    replies.clear();
}

/// A running forwarder; it ends with this value.
pub(crate) struct Floor {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Floor {
    /// Starts this program again as the forwarder.
    pub(crate) fn start() -> std::io::Result<Floor> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(FLOOR).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        match line.trim().parse() {
            Ok(address) => Ok(Floor { address, child }),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(std::io::Error::other("the forwarder did not say where it listens"))
            }
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of processes and of the whole machine at one moment.
#[derive(Copy, Clone, Debug)]
pub(crate) struct CpuTimes {
    /// User and system time of all threads of the processes asked about; the kernel counts softirq work in the
    /// context of the thread it interrupts or is called from.
    own: Nanos,
    /// Everything but idle, on all cores, in the clock ticks of /proc/stat (100 a second).
    busy_ticks: u64,
    /// Of that, softirq.
    softirq_ticks: u64,
}

impl CpuTimes {
    /// Reads the clocks; a process that has ended counts as 0.
    pub(crate) fn read(pids: &[u32]) -> CpuTimes {
        let own = pids.iter().map(|pid| process_cpu(*pid).unwrap_or_default().0).sum();
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        // proc_stat(5): user nice system idle iowait irq softirq steal ...
        let fields: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|field| field.parse().ok())
            .collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or(0);
        let busy_ticks = [0, 1, 2, 5, 6, 7].into_iter().map(field).sum();
        CpuTimes { own: Nanos(own), busy_ticks, softirq_ticks: field(6) }
    }

    /// What was used from `before` to now.
    pub(crate) fn since(self, before: CpuTimes) -> CpuUsed {
        let ms = |now: u64, then: u64| now.saturating_sub(then) as f64 * 10.0;
        CpuUsed {
            own: self.own.since(before.own),
            machine_ms: ms(self.busy_ticks, before.busy_ticks),
            softirq_ms: ms(self.softirq_ticks, before.softirq_ticks),
        }
    }
}

/// CPU time between two moments.
#[derive(Copy, Clone, Debug)]
pub(crate) struct CpuUsed {
    /// Of the processes asked about.
    pub(crate) own: Nanos,
    /// Of everything on the machine. What it has beyond the processes asked about, the generator and the bench
    /// itself was used by strangers.
    pub(crate) machine_ms: f64,
    /// Of that, softirq that ran in nobody's context.
    pub(crate) softirq_ms: f64,
}
