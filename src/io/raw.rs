//! Socket addresses (`ip(7)`, `ipv6(7)`) and control messages (`cmsg(3)`) in the form the kernel reads and
//! writes, without unsafe code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of the longer form, `struct sockaddr_in6`.
const V6_LEN: usize = 28;
/// Bytes of `struct sockaddr_in`.
const V4_LEN: usize = 16;

/// A `sockaddr_in` or `sockaddr_in6`, laid out as Linux has them on every architecture: family (u16, native),
/// port (u16, big endian), then 4 address bytes, or flow (u32, big endian), 16 address bytes, scope (u32, native).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct RawAddress {
    bytes: [u8; V6_LEN],
}

impl RawAddress {
    /// The bytes a buffer for the kernel has.
    pub const CAPACITY: usize = V6_LEN;

    /// The kernel's form of `address`.
    pub fn new(address: SocketAddr) -> RawAddress {
        let mut bytes = [0; V6_LEN];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..].copy_from_slice(&v6.scope_id().to_ne_bytes());
            }
        }
        RawAddress { bytes }
    }

    /// How many bytes of it count: what `msg_namelen` must say.
    pub fn len(&self) -> usize {
        if self.family() == libc::AF_INET as u16 { V4_LEN } else { V6_LEN }
    }

    /// Whether it names no address (nothing was written into it).
    pub fn is_empty(&self) -> bool {
        self.family() == 0
    }

    /// The address, or `None` if the kernel wrote fewer than its bytes or another family.
    pub fn read(&self, written: usize) -> Option<SocketAddr> {
        let port = u16::from_be_bytes([self.bytes[2], self.bytes[3]]);
        let family = libc::c_int::from(self.family());
        if family == libc::AF_INET && written >= V4_LEN {
            let ip: [u8; 4] = self.bytes[4..8].try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port))
        } else if family == libc::AF_INET6 && written >= V6_LEN {
            let ip: [u8; 16] = self.bytes[8..24].try_into().ok()?;
            let scope = u32::from_ne_bytes(self.bytes[24..].try_into().ok()?);
            Some(SocketAddr::V6(std::net::SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope)))
        } else {
            None
        }
    }

    fn family(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[0], self.bytes[1]])
    }
}

/// `CMSG_SPACE` of the longest message: a `cmsghdr` (16 bytes on 64-bit Linux) and a `sockaddr_in6`, padded to 8.
pub(super) const CONTROL_LEN: usize = 48;
/// `CMSG_SPACE` of one `int` or less.
const SEGMENT_LEN: usize = 24;
/// Bytes of `struct cmsghdr` on 64-bit Linux: `cmsg_len` (usize), `cmsg_level` and `cmsg_type` (int).
const CONTROL_HEADER: usize = size_of::<usize>() + 8;
const _: () = assert!(size_of::<usize>() == 8, "control messages are laid out here for 64-bit Linux");

/// One control message in the kernel's layout (`cmsg(3)`), aligned for its header.
#[derive(Copy, Clone, Debug)]
#[repr(C, align(8))]
pub(super) struct Control([u8; CONTROL_LEN]);

impl Control {
    /// Room for the kernel to write into.
    pub(super) const BLANK: Control = Control([0; CONTROL_LEN]);

    /// A `UDP_SEGMENT` control message: the kernel cuts the payload every `size` bytes (`udp(7)`).
    pub(super) fn segment(size: u16) -> (Control, usize) {
        let mut bytes = [0; CONTROL_LEN];
        bytes[..size_of::<usize>()].copy_from_slice(&(CONTROL_HEADER + 2).to_ne_bytes());
        bytes[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
        bytes[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
        bytes[16..18].copy_from_slice(&size.to_ne_bytes());
        (Control(bytes), SEGMENT_LEN)
    }

    /// Where a datagram was sent to (`IP_ORIGDSTADDR`, `IPV6_ORIGDSTADDR`), if that is what the kernel wrote.
    pub(super) fn read_destination(&self, written: usize) -> Option<SocketAddr> {
        let int = |at: usize| self.0[at..at + 4].try_into().map(i32::from_ne_bytes).ok();
        let known = [(libc::SOL_IP, libc::IP_ORIGDSTADDR), (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR)];
        if written < CONTROL_HEADER || !known.contains(&(int(8)?, int(12)?)) {
            return None;
        }
        let bytes = self.0[CONTROL_HEADER..][..V6_LEN].try_into().ok()?;
        RawAddress { bytes }.read(written - CONTROL_HEADER)
    }

    /// The segment size of a `UDP_GRO` control message (an int), if that is what the kernel wrote.
    pub(super) fn read_gro(&self, written: usize) -> Option<usize> {
        if written < CONTROL_HEADER + 4 {
            return None;
        }
        let int = |at: usize| self.0[at..at + 4].try_into().map(i32::from_ne_bytes).ok();
        if int(8)? == libc::SOL_UDP && int(12)? == libc::UDP_GRO {
            usize::try_from(int(16)?).ok().filter(|size| *size > 0)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["127.0.0.1:5060", "[::1]:5060", "[fe80::1%7]:9", "[2001:db8::5]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let raw = RawAddress::new(address);
            assert_eq!(raw.read(raw.len()), Some(address), "{text}");
            assert_eq!(raw.read(raw.len() - 1), None, "{text} cut short");
        }
    }

    #[test]
    fn a_control_message_of_another_kind_is_no_segment_size() {
        let (segment, len) = Control::segment(1_200);
        assert_eq!(segment.read_gro(len), None);
        let mut gro = segment;
        gro.0[12..16].copy_from_slice(&libc::UDP_GRO.to_ne_bytes());
        assert_eq!(gro.read_gro(len), Some(1_200));
        assert_eq!(gro.read_gro(CONTROL_HEADER), None);
        assert_eq!(Control::BLANK.read_gro(CONTROL_LEN), None);
    }

    #[test]
    fn the_destination_is_read_in_both_families() {
        for (text, level, kind) in [
            ("10.9.8.7:20001", libc::SOL_IP, libc::IP_ORIGDSTADDR),
            ("[fd99::1]:65535", libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR),
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let (mut control, raw) = (Control::BLANK, RawAddress::new(address));
            control.0[8..12].copy_from_slice(&level.to_ne_bytes());
            control.0[12..16].copy_from_slice(&kind.to_ne_bytes());
            control.0[16..16 + V6_LEN].copy_from_slice(&raw.bytes);
            assert_eq!(control.read_destination(CONTROL_HEADER + raw.len()), Some(address));
            assert_eq!(control.read_destination(CONTROL_HEADER + raw.len() - 1), None);
            assert_eq!((control.read_destination(0), control.read_gro(CONTROL_LEN)), (None, None));
        }
        assert_eq!(Control::segment(1_200).0.read_destination(CONTROL_LEN), None);
    }

    #[test]
    fn nothing_written_is_no_address() {
        assert!(RawAddress::default().is_empty());
        assert_eq!(RawAddress::default().read(0), None);
    }
}
