//! UDP sockets and their options: `socket2` where it has them, `setsockopt(2)` where it does not.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// The buffer sizes of a socket in bytes: asked for, or granted (payload and bookkeeping; `socket(7)`: the kernel
/// doubles what is asked).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// The receive buffer.
    pub recv: usize,
    /// The send buffer.
    pub send: usize,
}

/// Opens a non-blocking UDP socket bound to `address`; with `shared`, other sockets of this user may bind it too
/// (`SO_REUSEPORT`, `socket(7)`: the kernel spreads senders over them).
///
/// # Errors
/// `AddrInUse`, `AddrNotAvailable`, `PermissionDenied` and the like, from `bind(2)`.
pub fn bind(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    bind_to(address, shared, false)
}

/// As [`bind`], also while no interface of this machine has `address` (`IP_FREEBIND`, `ip(7)`).
///
/// # Errors
/// As [`bind`], but for `AddrNotAvailable`.
pub fn bind_early(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    bind_to(address, shared, true)
}

fn bind_to(address: SocketAddr, shared: bool, early: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(early)?;
    } else {
        socket.set_freebind_v4(early)?;
    }
    socket.set_reuse_port(shared)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Whether this machine has the address: without it nothing can be sent from there.
pub fn is_here(address: IpAddr) -> bool {
    bind(SocketAddr::new(address, 0), false).is_ok()
}

/// Opens a non-blocking raw socket that sends IP packets with the headers they are given (`IPPROTO_RAW`, `raw(7)`) and
/// receives nothing. They are routed as packets from `source`, which no interface needs to have yet.
///
/// # Errors
/// `PermissionDenied` without CAP_NET_RAW.
pub fn raw_sender(source: IpAddr) -> io::Result<OwnedFd> {
    let source = SocketAddr::new(source, 0);
    let protocol = Protocol::from(libc::IPPROTO_RAW);
    let socket = Socket::new(Domain::for_address(source), Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if source.is_ipv6() {
        socket.set_freebind_v6(true)?
    } else {
        socket.set_freebind_v4(true)?
    }
    socket.bind(&source.into())?;
    Ok(socket.into())
}

/// Makes the kernel say of each datagram where it was sent to: address and port (`IP_RECVORIGDSTADDR`, `ip(7)`, and its
/// like for IPv6).
///
/// # Errors
/// From `setsockopt(2)`.
pub fn tell_destination(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set_int(socket, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR, 1)
    } else {
        set_int(socket, libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1)
    }
}

/// Fails if any socket is bound to `address`, also one that would share it: `SO_REUSEPORT` would otherwise
/// let a second process of the same user take half of the traffic without a word.
///
/// # Errors
/// As [`bind`].
pub fn probe_free(address: SocketAddr) -> io::Result<()> {
    bind(address, false).map(drop)
}

/// Asks for buffers of these sizes, past the system's limit where allowed (`SO_RCVBUFFORCE`,
/// `SO_SNDBUFFORCE` need CAP_NET_ADMIN), else up to it; returns what was granted.
///
/// # Errors
/// From `setsockopt(2)` and `getsockopt(2)`.
pub fn set_buffers(socket: BorrowedFd<'_>, wanted: Buffers) -> io::Result<Buffers> {
    let int = |bytes: usize| libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let view = SockRef::from(&socket);
    if set_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, int(wanted.recv)).is_err() {
        view.set_recv_buffer_size(wanted.recv)?;
    }
    if set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, int(wanted.send)).is_err() {
        view.set_send_buffer_size(wanted.send)?;
    }
    Ok(Buffers { recv: view.recv_buffer_size()?, send: view.send_buffer_size()? })
}

/// Lets the kernel hand over several datagrams of one sender joined (`UDP_GRO`, `udp(7)`).
///
/// # Errors
/// From `setsockopt(2)`; `ENOPROTOOPT` before Linux 5.0.
pub fn enable_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Sends by the interface's MTU, deaf to ICMP "fragmentation needed" (which can be forged), and fragments what
/// is longer (`IP_PMTUDISC_OMIT`, `ip(7)`).
///
/// # Errors
/// From `setsockopt(2)`.
pub fn ignore_path_mtu(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_OMIT)
    } else {
        set_int(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)
    }
}

/// Joins the IPv4 multicast `group` on the interface that has the address `interface`.
///
/// # Errors
/// From `setsockopt(2)`: `ENODEV` when no interface has that address.
pub fn join_multicast(socket: BorrowedFd<'_>, group: Ipv4Addr, interface: Ipv4Addr) -> io::Result<()> {
    SockRef::from(&socket).join_multicast_v4(&group, &interface)
}

/// Makes multicast sends leave by the interface that has the address `interface`, with `ttl` hops, and be
/// heard by other sockets of this machine.
///
/// # Errors
/// From `setsockopt(2)`.
pub fn send_multicast_by(socket: BorrowedFd<'_>, interface: Ipv4Addr, ttl: u32) -> io::Result<()> {
    let view = SockRef::from(&socket);
    view.set_multicast_if_v4(&interface)?;
    view.set_multicast_ttl_v4(ttl)?;
    view.set_multicast_loop_v4(true)
}

/// Takes the error that waits on the socket (`SO_ERROR`), e.g. from an ICMP message; `None` when there is none.
pub fn take_error(socket: BorrowedFd<'_>) -> Option<io::Error> {
    SockRef::from(&socket).take_error().ok().flatten()
}

/// How many datagrams the kernel dropped because this socket's receive buffer was full (`SO_MEMINFO`, sock_diag(7)).
///
/// # Errors
/// From `getsockopt(2)`.
pub fn kernel_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    /// Index of the drop count in the array (`SK_MEMINFO_DROPS`, linux/sock_diag.h).
    const DROPS: usize = 8;
    let mut values = [0_u32; DROPS + 1];
    let mut len = size_of_val(&values) as libc::socklen_t;
    // SAFETY: getsockopt(2): `values` is writable for `len` bytes, and `len` for the kernel's answer.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if status == 0 { Ok(values[DROPS]) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option whose value is an int.
///
/// # Errors
/// From `setsockopt(2)`.
pub fn set_int(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: setsockopt(2) reads `len` bytes at the pointer, which is a live int of that size.
    let status = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::time::Duration;

    fn any() -> UdpSocket {
        bind("127.0.0.1:0".parse().unwrap(), true).unwrap()
    }

    #[test]
    fn a_shared_address_can_be_bound_twice_and_is_seen_as_taken() {
        let first = any();
        let address = first.local_addr().unwrap();
        assert!(bind(address, true).is_ok());
        assert_eq!(probe_free(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(probe_free(address).is_ok());
    }

    #[test]
    fn an_address_can_be_bound_before_this_machine_has_it() {
        for address in ["192.0.2.1:7", "[2001:db8::1]:7"] {
            let address = address.parse().unwrap();
            assert_eq!(bind(address, true).unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
            assert_eq!(bind_early(address, true).unwrap().local_addr().unwrap(), address);
        }
    }

    #[test]
    fn buffers_are_reported_as_granted() {
        let socket = any();
        let granted = set_buffers(socket.as_fd(), Buffers { recv: 64 << 10, send: 32 << 10 }).unwrap();
        assert_eq!(granted, Buffers { recv: 128 << 10, send: 64 << 10 });
    }

    #[test]
    fn multicast_is_heard_by_a_member_of_the_group_only() {
        let group = Ipv4Addr::new(239, 255, 77, 1);
        let member = bind(SocketAddr::new(group.into(), 0), true).unwrap();
        join_multicast(member.as_fd(), group, Ipv4Addr::LOCALHOST).unwrap();
        let sender = any();
        send_multicast_by(sender.as_fd(), Ipv4Addr::LOCALHOST, 1).unwrap();
        let port = member.local_addr().unwrap().port();
        let other = bind(SocketAddr::new(Ipv4Addr::new(239, 255, 77, 2).into(), port), true).unwrap();
        sender.send_to(b"all", SocketAddr::new(group.into(), port)).unwrap();
        member.set_nonblocking(false).unwrap();
        member.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(member.recv(&mut buffer).unwrap(), 3);
        assert_eq!(other.recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn kernel_drops_count_what_did_not_fit() {
        let receiver = any();
        SockRef::from(&receiver).set_recv_buffer_size(4_096).unwrap();
        let sender = any();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        assert_eq!(kernel_drops(receiver.as_fd()).unwrap(), 0);
        for _ in 0..200 {
            sender.send(&[0; 1_000]).unwrap();
        }
        assert!(kernel_drops(receiver.as_fd()).unwrap() > 100);
    }

    #[test]
    fn an_icmp_error_waits_to_be_taken_once() {
        let socket = any();
        let closed = any().local_addr().unwrap();
        socket.connect(closed).unwrap();
        socket.send(b"x").unwrap();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(take_error(socket.as_fd()).unwrap().kind(), io::ErrorKind::ConnectionRefused);
        assert!(take_error(socket.as_fd()).is_none());
    }

    #[test]
    fn a_destination_is_told_with_its_port() {
        for any in ["0.0.0.0:0", "[::]:0"] {
            let socket = bind(any.parse().unwrap(), false).unwrap();
            let at = socket.local_addr().unwrap();
            tell_destination(socket.as_fd(), at.is_ipv6()).unwrap();
            let here = if at.is_ipv6() { "::1" } else { "127.7.7.7" };
            let here = SocketAddr::new(here.parse().unwrap(), at.port());
            bind(SocketAddr::new(at.ip(), 0), false).unwrap().send_to(b"x", here).unwrap();
            let mut batch = crate::io::sys_recv::RecvBatch::new(1, 9);
            assert_eq!(batch.recv(socket.as_fd()).unwrap(), 1);
            assert_eq!(batch.get(0).unwrap().destination, Some(here));
        }
    }

    #[test]
    fn the_remaining_options_are_taken() {
        let socket = any();
        enable_gro(socket.as_fd()).unwrap();
        ignore_path_mtu(socket.as_fd(), false).unwrap();
        let v6 = bind("[::1]:0".parse().unwrap(), false).unwrap();
        ignore_path_mtu(v6.as_fd(), true).unwrap();
    }
}
