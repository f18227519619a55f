//! Media ports that the kernel steers to one socket a shard ([`crate::io::steer`]).
//!
//! The sockets are there from the start, before any service address is: when one comes or goes there is but a place in a
//! map to be filled or emptied. What leaves goes by raw sockets, which alone can name its port.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{MediaPlan, Waiting};
use crate::io::headers::{Headers, LONGEST};
use crate::io::steer::{SteerError, Steering};
use crate::io::sys_send::SendBatch;
use crate::io::sys_socket::{self, Buffers};
use crate::types::LocalId;

/// Datagrams one system call takes from a socket.
pub(super) const BATCH: usize = 64;
/// How often a turn reads a socket.
pub(super) const READS: usize = 8;
/// The longest packet of IPv6 that passes everywhere (RFC 8200, section 5): nobody on its way cuts it up.
const SURE_TO_PASS: usize = 1_280;

/// A socket that gets what is for one family of service addresses.
#[derive(Debug)]
struct Inlet {
    socket: UdpSocket,
    /// Whether the loop has it in its epoll instance.
    watched: bool,
}

/// One service address.
#[derive(Debug)]
struct Address {
    ip: IpAddr,
    raw: OwnedFd,
    inlet: usize,
    /// How many of its ports are this shard's.
    ports: usize,
    open: bool,
}

/// See the module's page. The number of a service address is its step and its source.
#[derive(Debug)]
pub(super) struct Steered {
    steering: Arc<Steering>,
    plan: MediaPlan,
    inlets: Vec<Inlet>,
    addresses: Vec<Address>,
}

impl Steered {
    pub(super) fn new(
        plan: &MediaPlan,
        steering: Arc<Steering>,
        buffers: Buffers,
    ) -> Result<Steered, SteerError> {
        let (mut inlets, mut addresses) = (Vec::<Inlet>::new(), Vec::new());
        for ((ip, _), number) in plan.addresses.iter().zip(0..) {
            let raw = sys_socket::raw_sender(*ip).map_err(SteerError::new("open a raw socket"))?;
            let raw_buffers = sys_socket::set_buffers(raw.as_fd(), Buffers { recv: 0, ..buffers });
            raw_buffers.map_err(SteerError::new("give a raw socket its buffer"))?;
            let known = addresses.iter().find(|known: &&Address| known.ip.is_ipv4() == ip.is_ipv4());
            let inlet = match known {
                Some(known) => known.inlet,
                None => {
                    let socket = inlet(*ip, buffers).map_err(SteerError::new("open a socket for media"))?;
                    inlets.push(Inlet { socket, watched: false });
                    inlets.len() - 1
                }
            };
            addresses.push(Address {
                ip: *ip,
                raw,
                inlet,
                ports: plan.ports_of(number).count(),
                open: false,
            });
        }
        Ok(Steered { steering, plan: plan.clone(), inlets, addresses })
    }

    pub(super) fn ports(&self, number: usize) -> usize {
        self.addresses[number].ports
    }

    /// True if it was not open; with a number, that inlet is to be watched from now on.
    pub(super) fn open(&mut self, number: usize) -> io::Result<(bool, Option<usize>)> {
        let address = &mut self.addresses[number];
        if address.open {
            return Ok((false, None));
        }
        let inlet = &mut self.inlets[address.inlet];
        self.steering.begin(number as u16, self.plan.shard, inlet.socket.as_fd())?;
        address.open = true;
        let watched = std::mem::replace(&mut inlet.watched, true);
        Ok((true, (!watched).then_some(address.inlet)))
    }

    /// True if it was open.
    pub(super) fn close(&mut self, number: usize) -> bool {
        let open = std::mem::replace(&mut self.addresses[number].open, false);
        if open && let Err(error) = self.steering.end(number as u16, self.plan.shard) {
            // What comes all the same is dropped by `arrived`.
            tracing::warn!(%error, "the kernel goes on steering media of a service address that this node has lost");
        }
        open
    }

    pub(super) fn inlet(&self, number: usize) -> Option<BorrowedFd<'_>> {
        self.inlets.get(number).map(|inlet| inlet.socket.as_fd())
    }

    /// Where a datagram for `destination` arrived; none: at no port that this shard has now.
    pub(super) fn arrived(&self, destination: SocketAddr) -> Option<LocalId> {
        let number = self.addresses.iter().position(|address| address.ip == destination.ip())?;
        let mine = self.plan.is_mine(number as u16, destination.port());
        let (_, endpoint) = self.plan.addresses[number];
        (mine && self.addresses[number].open).then_some(LocalId::media(endpoint, destination.port()))
    }

    pub(super) fn source(&self, local: LocalId) -> Option<u32> {
        let number = self.plan.addresses.iter().position(|(_, endpoint)| *endpoint == local.endpoint)?;
        self.plan.is_mine(number as u16, local.port).then_some(number as u32)
    }

    pub(super) fn outlet(&self, number: u32) -> Option<BorrowedFd<'_>> {
        self.addresses.get(number as usize).filter(|address| address.open).map(|address| address.raw.as_fd())
    }

    pub(super) fn may_share(&self, waiting: &Waiting) -> bool {
        waiting.to.is_ipv4() || LONGEST + waiting.len <= SURE_TO_PASS
    }

    fn from(&self, waiting: &Waiting) -> SocketAddr {
        SocketAddr::new(self.addresses[waiting.source as usize].ip, waiting.port)
    }

    pub(super) fn push(&self, run: &mut SendBatch, tag: u64, waiting: &Waiting, bytes: &[u8]) -> bool {
        let Some(headers) = Headers::new(self.from(waiting), waiting.to, bytes) else { return false };
        // To a raw socket the port says nothing, or a protocol (raw(7), ipv6(7)).
        let to = SocketAddr::new(waiting.to.ip(), 0);
        run.push_with(Some(to), tag, LONGEST + bytes.len(), |out| {
            out.extend_from_slice(headers.bytes());
            out.extend_from_slice(bytes);
        })
    }

    /// By a socket of its own: raw sockets send no packet in pieces.
    pub(super) fn send_alone(&self, waiting: &Waiting, bytes: &[u8]) -> io::Result<()> {
        let socket = sys_socket::bind_early(self.from(waiting), true)?;
        socket.send_to(bytes, waiting.to).map(drop)
    }

    pub(super) fn kernel_drops(&self) -> u64 {
        let drops = |inlet: &Inlet| sys_socket::kernel_drops(inlet.socket.as_fd()).unwrap_or(0);
        self.inlets.iter().map(|inlet| u64::from(drops(inlet))).sum()
    }
}

/// A socket for what is steered. It has a port of its own because the kernel steers to bound sockets only, and has it on
/// loopback so that nobody outside can reach it otherwise.
fn inlet(ip: IpAddr, buffers: Buffers) -> io::Result<UdpSocket> {
    let loopback: IpAddr = if ip.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let socket = sys_socket::bind_early(SocketAddr::new(loopback, 0), false)?;
    sys_socket::tell_destination(socket.as_fd(), ip.is_ipv6())?;
    sys_socket::set_buffers(socket.as_fd(), buffers)?;
    Ok(socket)
}
