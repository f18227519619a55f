//! Media ports that are a socket each.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use super::MediaPlan;
use crate::io::sys_socket;
use crate::types::LocalId;

/// Datagrams one system call takes from a port: a stream sends one every few milliseconds.
pub(super) const BATCH: usize = 8;
/// Ports that a turn reads.
pub(super) const READS: usize = 256;
/// No such port.
const NONE: u32 = u32::MAX;

/// One port: where it is, and its socket while it is open.
#[derive(Debug)]
struct Port {
    local: LocalId,
    address: u16,
    socket: Option<UdpSocket>,
}

/// See the module's page. A port's place among all of them is its step, its inlet and its source.
#[derive(Debug, Default)]
pub(super) struct Bound {
    ports: Vec<Port>,
    /// By service address: its IP, and its ports among all.
    addresses: Vec<(IpAddr, Range<usize>)>,
    /// By endpoint: its service address, if media leaves from it.
    by_endpoint: Vec<Option<u16>>,
    first_port: u16,
    /// By service address and port less the first: where it is in `ports`.
    places: Vec<Vec<u32>>,
}

impl Bound {
    pub(super) fn new(plan: &MediaPlan) -> Bound {
        let mut all = Bound { first_port: plan.ports.first, ..Bound::default() };
        let width = usize::from(plan.ports.last - plan.ports.first) + 1;
        for ((ip, endpoint), number) in plan.addresses.iter().zip(0_u16..) {
            let (first, mut places) = (all.ports.len(), vec![NONE; width]);
            for port in plan.ports_of(number) {
                places[usize::from(port - plan.ports.first)] = all.ports.len() as u32;
                let local = LocalId::media(*endpoint, port);
                all.ports.push(Port { local, address: number, socket: None });
            }
            all.addresses.push((*ip, first..all.ports.len()));
            all.places.push(places);
            let endpoints = usize::from(*endpoint) + 1;
            all.by_endpoint.resize(all.by_endpoint.len().max(endpoints), None);
            all.by_endpoint[usize::from(*endpoint)] = Some(number);
        }
        all
    }

    pub(super) fn steps(&self, address: u16) -> Range<usize> {
        self.addresses[usize::from(address)].1.clone()
    }

    pub(super) fn address_of(&self, place: usize) -> u16 {
        self.ports[place].address
    }

    pub(super) fn local(&self, place: usize) -> LocalId {
        self.ports[place].local
    }

    pub(super) fn place(&self, local: LocalId) -> Option<u32> {
        let address = (*self.by_endpoint.get(usize::from(local.endpoint))?)?;
        let offset = local.port.checked_sub(self.first_port)?;
        let place = *self.places[usize::from(address)].get(usize::from(offset))?;
        (place != NONE).then_some(place)
    }

    /// True if it was not open.
    pub(super) fn open(&mut self, place: usize) -> io::Result<bool> {
        let port = &mut self.ports[place];
        if port.socket.is_none() {
            let at = SocketAddr::new(self.addresses[usize::from(port.address)].0, port.local.port);
            port.socket = Some(sys_socket::bind_early(at, true)?);
            return Ok(true);
        }
        Ok(false)
    }

    /// True if it was open. This takes it out of the epoll instance too.
    pub(super) fn close(&mut self, place: usize) -> bool {
        self.ports[place].socket.take().is_some()
    }

    pub(super) fn socket(&self, place: usize) -> Option<BorrowedFd<'_>> {
        self.ports.get(place)?.socket.as_ref().map(AsFd::as_fd)
    }
}
