//! The client's UDP sockets: one for each flow of each call while the system allows, else shared.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::traffic::{Packet, Shape};
use crate::io::{sys_socket, sys_thread};

/// Files kept free for everything else in this process.
const RESERVED_FILES: u64 = 256;
/// As many sockets as are shared when not every flow can have its own.
const SHARED: usize = 1024;
/// Receive buffer of a shared socket.
const SHARED_BUFFER: usize = 8 << 20;

/// See the module's description.
pub(crate) struct Sockets {
    sockets: Vec<UdpSocket>,
    targets: usize,
    /// Sockets of each target if they are shared between flows.
    shared: Option<usize>,
}

impl Sockets {
    /// Opens what `shape` needs, connected to the targets (seat s talks to target s modulo their number), and
    /// registers each under its number. At most `limit` sockets, if there is a limit.
    pub(crate) fn open(
        shape: Shape,
        targets: &[SocketAddr],
        limit: Option<usize>,
        registry: &Registry,
    ) -> io::Result<Sockets> {
        let files = sys_thread::raise_open_files()?.saturating_sub(RESERVED_FILES) as usize;
        let most = limit.unwrap_or(usize::MAX).min(files).max(targets.len());
        let mut sockets = Sockets { sockets: Vec::new(), targets: targets.len(), shared: None };
        if shape.flows <= most {
            let each = shape.flows / shape.seats.max(1);
            for flow in 0..shape.flows {
                match sockets.add(targets[flow / each.max(1) % targets.len()], None, registry) {
                    Ok(()) => {}
                    // Out of files or of ports: what is there will do, shared.
                    Err(error) if sockets.sockets.len() >= targets.len() && is_exhausted(&error) => break,
                    Err(error) => return Err(error),
                }
            }
            if sockets.sockets.len() == shape.flows {
                return Ok(sockets);
            }
            sockets.sockets.clear();
        }
        let each = (most.min(limit.unwrap_or(SHARED)) / targets.len()).max(1);
        for number in 0..each * targets.len() {
            sockets.add(targets[number / each], Some(SHARED_BUFFER), registry)?;
        }
        sockets.shared = Some(each);
        Ok(sockets)
    }

    fn add(&mut self, target: SocketAddr, buffer: Option<usize>, registry: &Registry) -> io::Result<()> {
        let any = match target.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = sys_socket::bind(SocketAddr::new(any, 0), false)?;
        if let Some(bytes) = buffer {
            sys_socket::set_buffers(socket.as_fd(), sys_socket::Buffers { recv: bytes, send: bytes })?;
        }
        socket.connect(target)?;
        let token = Token(self.sockets.len());
        registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)?;
        self.sockets.push(socket);
        Ok(())
    }

    /// The number of the socket that a packet goes out of and its answer comes back to.
    pub(crate) fn of(&self, packet: &Packet) -> u32 {
        match self.shared {
            None => packet.flow,
            Some(each) => {
                let target = packet.seat as usize % self.targets;
                (target * each + packet.flow as usize % each) as u32
            }
        }
    }

    pub(crate) fn get(&self, number: u32) -> Option<&UdpSocket> {
        self.sockets.get(number as usize)
    }

    pub(crate) fn count(&self) -> usize {
        self.sockets.len()
    }

    /// Whether flows share sockets.
    pub(crate) fn are_shared(&self) -> bool {
        self.shared.is_some()
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::EADDRINUSE
                | libc::EADDRNOTAVAIL
                | libc::EAGAIN
                | libc::ENOBUFS
        )
    )
}
