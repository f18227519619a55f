//! Telling a network's machines where an address is now: gratuitous ARP (RFC 5227, section 3) and unsolicited neighbour
//! advertisements (RFC 4861, section 7.2.6).
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

/// An Ethernet address.
type Mac = [u8; 6];
const BROADCAST: Mac = [0xff; 6];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// Says on an interface that `address` is this machine's. Interfaces without Ethernet addresses need no such news.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_RAW; and the like.
pub fn announce(address: IpAddr, interface: u32) -> io::Result<()> {
    let link = PacketSocket::on(interface)?;
    let Some(mac) = link.mac else { return Ok(()) };
    match address {
        IpAddr::V4(v4) => {
            link.broadcast(&arp(REQUEST, mac, v4))?;
            link.broadcast(&arp(REPLY, mac, v4))
        }
        IpAddr::V6(v6) => advertise(mac, v6, interface),
    }
}

/// An ARP packet in which `mac` claims `address`.
fn arp(operation: u8, mac: Mac, address: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    // Ethernet, IPv4, and the lengths of their addresses.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
    packet[8..14].copy_from_slice(&mac);
    packet[14..18].copy_from_slice(&address.octets());
    if operation == REPLY {
        packet[18..24].copy_from_slice(&BROADCAST);
    }
    packet[24..28].copy_from_slice(&address.octets());
    packet
}

/// A neighbour advertisement in which `mac` claims `address`; the kernel fills in the checksum.
fn advertisement(mac: Mac, address: Ipv6Addr) -> [u8; 32] {
    /// Take it over whatever you know.
    const OVERRIDE: u8 = 0x20;
    let mut packet = [0; 32];
    packet[0] = 136;
    packet[4] = OVERRIDE;
    packet[8..24].copy_from_slice(&address.octets());
    // The target's link-layer address, in units of 8 bytes.
    packet[24..26].copy_from_slice(&[2, 1]);
    packet[26..32].copy_from_slice(&mac);
    packet
}

fn advertise(mac: Mac, address: Ipv6Addr, interface: u32) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_if_v6(interface)?;
    socket.bind(&SocketAddrV6::new(address, 0, 0, interface).into())?;
    let everybody = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, interface);
    socket.send_to(&advertisement(mac, address), &everybody.into()).map(drop)
}

/// A socket that sends ARP packets on one interface.
struct PacketSocket {
    fd: OwnedFd,
    interface: libc::c_int,
    mac: Option<Mac>,
}

impl PacketSocket {
    fn on(interface: u32) -> io::Result<PacketSocket> {
        // SAFETY: socket(2) takes three integers. Protocol 0: it receives nothing.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned this descriptor, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let interface = interface as libc::c_int;
        let mut name = blank();
        name.sll_ifindex = interface;
        let mut len = size_of_val(&name) as libc::socklen_t;
        // SAFETY: bind(2) reads `len` bytes at the pointer: a live sockaddr_ll (packet(7)).
        let status = unsafe { libc::bind(fd.as_raw_fd(), (&raw const name).cast(), len) };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: getsockname(2) writes at most `len` bytes at the pointer, which is live for so many, and `len` itself.
        let status = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut name).cast(), &raw mut len) };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
        let ethernet = name.sll_hatype == libc::ARPHRD_ETHER && name.sll_halen == 6;
        let mac = ethernet.then(|| [0, 1, 2, 3, 4, 5].map(|i: usize| name.sll_addr[i]));
        Ok(PacketSocket { fd, interface, mac })
    }

    /// Sends an ARP packet to every machine on the network.
    fn broadcast(&self, packet: &[u8]) -> io::Result<()> {
        let mut to = blank();
        to.sll_ifindex = self.interface;
        to.sll_protocol = (libc::ETH_P_ARP as u16).to_be();
        to.sll_halen = BROADCAST.len() as u8;
        to.sll_addr[..6].copy_from_slice(&BROADCAST);
        let len = size_of_val(&to) as libc::socklen_t;
        // SAFETY: sendto(2) reads the packet and `len` bytes of the address, a live sockaddr_ll (packet(7)).
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                len,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn blank() -> libc::sockaddr_ll {
    // SAFETY: sockaddr_ll is a C struct of integers, for which all-zero bytes are a valid value.
    let mut name: libc::sockaddr_ll = unsafe { mem::zeroed() };
    name.sll_family = libc::AF_PACKET as u16;
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packets_are_as_the_standards_have_them() {
        let mac = [2, 0, 0, 0, 0, 9];
        let request = arp(REQUEST, mac, Ipv4Addr::new(10, 77, 0, 100));
        let expected =
            [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 77, 0, 100, 0, 0, 0, 0, 0, 0, 10, 77, 0, 100];
        assert_eq!(request, expected);
        let reply = arp(REPLY, mac, Ipv4Addr::new(10, 77, 0, 100));
        assert_eq!((reply[7], &reply[18..24]), (2, &BROADCAST[..]));
        let advertisement = advertisement(mac, "fd77::100".parse().unwrap());
        assert_eq!((advertisement[0], advertisement[4]), (136, 0x20));
        assert_eq!(advertisement[8..24], "fd77::100".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(advertisement[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn an_interface_without_ethernet_addresses_needs_no_news() {
        match announce(Ipv4Addr::LOCALHOST.into(), 1) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }
}
