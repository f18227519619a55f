//! The floor to compare with: a bare forwarder, one thread that returns every datagram to its sender with
//! `recvmmsg` and `sendmmsg`. It runs as a process of its own, this bench's program started a second time, so
//! that its CPU time is told like a node's.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::Context;
use tandem::io::sys_recv::RecvBatch;
use tandem::io::sys_send::{SendBatch, Sent};
use tandem::io::{sys_socket, sys_time};

/// The address the second process is to forward at.
const ADDRESS: &str = "TANDEM_BENCH_FLOOR";
/// Datagrams a system call, as TANDEM_BATCH's default.
const BATCH: usize = 64;
const BUFFER: usize = 8 << 20;

/// A running forwarder; it ends with this.
pub(crate) struct Floor {
    pub(crate) address: SocketAddr,
    child: Child,
    _alive: Option<ChildStdin>,
}

impl Floor {
    pub(crate) fn start() -> anyhow::Result<Floor> {
        let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let mut child = Command::new(std::env::current_exe()?)
            .env(ADDRESS, address.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the forwarder")?;
        let alive = child.stdin.take();
        std::thread::sleep(std::time::Duration::from_millis(50));
        Ok(Floor { address, child, _alive: alive })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // Nothing is left to do for a process that has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// To be called first in `main`: if this process was started to be the forwarder, it is nothing else.
pub(crate) fn serve_if_asked() {
    let Ok(address) = std::env::var(ADDRESS) else { return };
    // The bench may be killed: then its end of the pipe closes.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    if let Err(error) = serve(&address) {
        eprintln!("floor at {address}: {error}");
    }
    std::process::exit(1);
}

fn serve(address: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    sys_socket::set_buffers(socket.as_fd(), sys_socket::Buffers { recv: BUFFER, send: BUFFER })?;
    let mut batch = RecvBatch::new(BATCH, 2048);
    let mut out = SendBatch::new(BATCH, BUFFER, false);
    loop {
        let count = batch.recv(socket.as_fd()).unwrap_or(0);
        for index in 0..count {
            if let Some(received) = batch.get(index) {
                out.push(received.source, 0, received.bytes);
            }
        }
        while let Sent::Refused(_) = out.send(socket.as_fd()) {
            out.skip();
        }
        // A short batch leaves the socket dry: the next call would only say so.
        if count < BATCH {
            sys_time::wait_readable(socket.as_fd(), -1)?;
        }
    }
}
