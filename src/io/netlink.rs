//! The addresses of this machine's interfaces: which there are, adding one, removing one (rtnetlink(7)).

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// An address on an interface.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// The address.
    pub address: IpAddr,
    /// How many bits of it name its subnet.
    pub prefix: u8,
    /// The interface's number.
    pub interface: u32,
}

impl Here {
    /// Whether `other` is in this address's subnet.
    pub fn carries(&self, other: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
            IpAddr::V6(v6) => u128::from(v6),
        };
        let differ = bits(self.address) ^ bits(other);
        self.address.is_ipv4() == other.is_ipv4()
            && differ.checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
    }
}

/// Every address of this machine.
///
/// # Errors
/// From the system.
pub fn addresses() -> io::Result<Vec<Here>> {
    let query = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let mut found = Vec::new();
    exchange(query, NLM_F_DUMP, |answer| {
        let RouteNetlinkMessage::NewAddress(message) = answer else { return };
        let (mut address, mut local) = (None, None);
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Address(ip) => address = Some(ip),
                AddressAttribute::Local(ip) => local = Some(ip),
                _ => {}
            }
        }
        // Of a point-to-point link, `address` is the other end's.
        if let Some(address) = local.or(address) {
            let (prefix, interface) = (message.header.prefix_len, message.header.index);
            found.push(Here { address, prefix, interface });
        }
    })?;
    Ok(found)
}

/// Adds `address` to an interface, for itself alone (/32, /128). An IPv6 address is usable at once (no duplicate
/// detection: it is taken over from a node that may still have it) and never chosen as the source of anything.
///
/// # Errors
/// `AlreadyExists`; `PermissionDenied` without CAP_NET_ADMIN; and the like.
pub fn add(address: IpAddr, interface: u32) -> io::Result<()> {
    let mut message = alone(address, interface);
    if address.is_ipv6() {
        message.header.flags |= AddressHeaderFlags::Nodad;
        let mut lifetimes = CacheInfo::default();
        (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
    }
    exchange(RouteNetlinkMessage::NewAddress(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, |_| ())
}

/// Removes what [`add`] has added.
///
/// # Errors
/// `AddrNotAvailable` if it is not there; `PermissionDenied` without CAP_NET_ADMIN; and the like.
pub fn remove(address: IpAddr, interface: u32) -> io::Result<()> {
    exchange(RouteNetlinkMessage::DelAddress(alone(address, interface)), NLM_F_ACK, |_| ())
}

fn alone(address: IpAddr, interface: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
    message.header.scope = AddressScope::Universe;
    message.header.index = interface;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

/// Sends a request and takes the answers until the kernel says that there are no more.
fn exchange(
    request: RouteNetlinkMessage,
    flags: u16,
    mut take: impl FnMut(RouteNetlinkMessage),
) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (answers, _) = socket.recv_from_full()?;
        let mut rest = &answers[..];
        while !rest.is_empty() {
            let strange = |_| io::Error::new(io::ErrorKind::InvalidData, "an answer that cannot be read");
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(strange)?;
            // The kernel pads each answer to four bytes.
            let length = (answer.header.length as usize).next_multiple_of(4).clamp(1, rest.len());
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(message) => take(message),
                _ => {}
            }
            rest = &rest[length..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_its_loopback_address() {
        let found = addresses().unwrap();
        let loopback = found.iter().find(|here| here.address == IpAddr::from([127, 0, 0, 1])).unwrap();
        assert_eq!(loopback.prefix, 8);
        let again = add(loopback.address, u32::MAX).unwrap_err();
        assert!(again.raw_os_error().is_some(), "{again}");
    }

    #[test]
    fn subnets_carry_their_own_addresses() {
        let here = |address: &str, prefix| Here { address: address.parse().unwrap(), prefix, interface: 1 };
        for (subnet, other, carried) in [
            (here("10.77.0.1", 24), "10.77.0.100", true),
            (here("10.77.0.1", 24), "10.77.1.100", false),
            (here("10.77.0.1", 32), "10.77.0.1", true),
            (here("10.77.0.1", 32), "10.77.0.2", false),
            (here("10.77.0.1", 0), "192.0.2.1", true),
            (here("fd77::1", 64), "fd77::100", true),
            (here("fd77::1", 64), "fd77:0:0:1::100", false),
            (here("fd77::1", 0), "10.77.0.1", false),
        ] {
            assert_eq!(subnet.carries(other.parse().unwrap()), carried, "{subnet:?} {other}");
        }
    }
}
