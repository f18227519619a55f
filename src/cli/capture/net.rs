//! IP: from an IP packet to UDP datagrams and TCP segments, through fragments and tunnels.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use etherparse::{Ipv6ExtensionSlice, LaxIpSlice};

use super::fragments::{Fragment, Key, Pool};
use super::{Datagram, Segment, link};
use crate::types::Nanos;

/// IP packets inside IP packets that are followed; more is taken for an attack.
const MAX_DEPTH: u32 = 4;

/// When and where in the file a packet was.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) time: Nanos,
    pub(super) frame: u32,
}

/// What a packet turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// UDP, or TCP with or without data.
    Transport,
    /// A fragment, whether or not it completed its packet.
    Fragment,
    /// Anything else.
    Other,
}

/// The state that IP needs between packets.
#[derive(Default)]
pub(super) struct Stack {
    pool: Pool,
}

impl Stack {
    /// Takes one IP packet and appends what it holds. `cut`: its end was not captured.
    pub(super) fn packet(
        &mut self,
        at: Place,
        ip: Bytes,
        cut: bool,
        datagrams: &mut Vec<Datagram>,
        segments: &mut Vec<Segment>,
    ) -> Seen {
        let mut next = Some(ip);
        let mut seen = None;
        for _ in 0..MAX_DEPTH {
            let Some(ip) = next.take() else { break };
            let Some(inner) = self.unwrap_ip(at, ip, cut) else { break };
            if inner.fragment {
                seen = Some(Seen::Fragment);
            }
            let Some(payload) = inner.payload else { break };
            match inner.protocol {
                6 => {
                    segments.extend(tcp(at, inner.source, inner.destination, &payload));
                    seen = seen.or(Some(Seen::Transport));
                }
                17 => {
                    let Some(datagram) = udp(at, inner.source, inner.destination, &payload) else { break };
                    next = gtp(&datagram);
                    if next.is_none() {
                        seen = seen.or(Some(Seen::Transport));
                        datagrams.push(datagram);
                    }
                }
                // IPv4 and IPv6 in IP (RFC 2003, RFC 4213).
                4 | 41 => next = Some(payload),
                47 => next = gre(payload),
                _ => {}
            }
        }
        seen.unwrap_or(Seen::Other)
    }

    /// Fragments that never became a whole packet.
    pub(super) fn incomplete_fragments(&self) -> u32 {
        self.pool.incomplete()
    }

    /// Strips the IP header and its extensions, and puts fragments together.
    fn unwrap_ip(&mut self, at: Place, ip: Bytes, cut: bool) -> Option<Inner> {
        let (parsed, stopped) = LaxIpSlice::from_slice(&ip).ok()?;
        if stopped.is_some() {
            return None;
        }
        let payload = parsed.payload();
        let mut inner = Inner {
            source: parsed.source_addr(),
            destination: parsed.destination_addr(),
            protocol: payload.ip_number.0,
            fragment: payload.fragmented,
            payload: Some(ip.slice_ref(payload.payload)),
        };
        if !payload.fragmented {
            return Some(inner);
        }
        let (identification, offset, more) = match &parsed {
            LaxIpSlice::Ipv4(v4) => {
                let header = v4.header();
                let offset = usize::from(header.fragments_offset().byte_offset());
                (u32::from(header.identification()), offset, header.more_fragments())
            }
            LaxIpSlice::Ipv6(v6) => {
                v6.extensions().clone().into_iter().find_map(|extension| match extension {
                    Ipv6ExtensionSlice::Fragment(f) => Some((
                        f.identification(),
                        usize::from(f.fragment_offset().byte_offset()),
                        f.more_fragments(),
                    )),
                    _ => None,
                })?
            }
        };
        let key = Key {
            source: inner.source,
            destination: inner.destination,
            protocol: inner.protocol,
            identification,
        };
        // A fragment that was not captured whole can never complete its packet.
        let whole = if cut || payload.incomplete { None } else { inner.payload.take() };
        inner.payload =
            whole.and_then(|payload| self.pool.add(at.time, key, Fragment { offset, more, payload }));
        Some(inner)
    }
}

struct Inner {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    fragment: bool,
    /// `None` for a fragment that did not complete its packet.
    payload: Option<Bytes>,
}

/// RFC 768; `None` if the header is not whole or its length impossible.
fn udp(at: Place, source: IpAddr, destination: IpAddr, bytes: &Bytes) -> Option<Datagram> {
    let head: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    let [s0, s1, d0, d1, l0, l1, ..] = head;
    let length = match usize::from(u16::from_be_bytes([l0, l1])) {
        // A jumbogram (RFC 2675) or a packet captured before the card filled in its length.
        0 => bytes.len(),
        length if length < 8 => return None,
        length => length,
    };
    Some(Datagram {
        time: at.time,
        frame: at.frame,
        source: SocketAddr::new(source, u16::from_be_bytes([s0, s1])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([d0, d1])),
        payload: bytes.slice(8..length.min(bytes.len())),
        cut: length > bytes.len(),
    })
}

/// RFC 9293; `None` if the header is not whole or no data follows it.
fn tcp(at: Place, source: IpAddr, destination: IpAddr, bytes: &Bytes) -> Option<Segment> {
    let head: [u8; 20] = bytes.get(..20)?.try_into().ok()?;
    let [s0, s1, d0, d1, q0, q1, q2, q3, _, _, _, _, offset, ..] = head;
    let header = usize::from(offset >> 4) * 4;
    (header >= 20 && header < bytes.len()).then(|| Segment {
        time: at.time,
        frame: at.frame,
        source: SocketAddr::new(source, u16::from_be_bytes([s0, s1])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([d0, d1])),
        sequence: u32::from_be_bytes([q0, q1, q2, q3]),
        payload: bytes.slice(header..),
    })
}

/// The IP packet inside a GRE packet (RFC 2784, RFC 2890).
fn gre(bytes: Bytes) -> Option<Bytes> {
    let head: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    let [flags, version, k0, k1] = head;
    // Checksum, key and sequence number take four bytes each; source routing and version 1 (PPTP) are not followed.
    if flags & 0x40 != 0 || version & 7 != 0 {
        return None;
    }
    let optional = (flags & 0xb0).count_ones() as usize * 4;
    let kind = u16::from_be_bytes([k0, k1]);
    match kind {
        0x6558 => link::ethernet(bytes.slice((4 + optional).min(bytes.len())..)),
        _ => link::ether_type(kind, bytes, 4 + optional),
    }
}

/// The IP packet inside a GTP-U packet of a mobile network (3GPP TS 29.281, sections 4.4.2 and 5).
fn gtp(datagram: &Datagram) -> Option<Bytes> {
    const PORT: u16 = 2_152;
    const DATA: u8 = 255;
    let bytes = &datagram.payload;
    let [flags, kind] = *bytes.first_chunk()?;
    let right = flags >> 4 == 3
        && kind == DATA
        && [datagram.source, datagram.destination].iter().any(|a| a.port() == PORT);
    let mut at = 8;
    if right && flags & 7 != 0 {
        at = 12;
        // Extension headers: their length in units of 4 bytes first, the type of the next one last.
        while *bytes.get(at - 1)? != 0 {
            at += usize::from(*bytes.get(at)?).max(1) * 4;
        }
    }
    (right && matches!(bytes.get(at)? >> 4, 4 | 6)).then(|| bytes.slice(at..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn run(ip: Vec<u8>) -> (Seen, Vec<Datagram>, Vec<Segment>) {
        let (mut datagrams, mut segments) = (Vec::new(), Vec::new());
        let at = Place { time: Nanos(5), frame: 9 };
        let seen = Stack::default().packet(at, Bytes::from(ip), false, &mut datagrams, &mut segments);
        (seen, datagrams, segments)
    }

    fn udp_packet(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(5060, 5061)
            .write(&mut out, payload)
            .expect("a Vec takes all");
        out
    }

    fn ipv4_around(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header = etherparse::Ipv4Header::new(
            payload.len() as u16,
            64,
            etherparse::IpNumber(protocol),
            [192, 0, 2, 1],
            [192, 0, 2, 2],
        )
        .expect("short enough");
        [&header.to_bytes()[..], payload].concat()
    }

    #[test]
    fn udp_comes_out_of_plain_and_tunnelled_packets() {
        let plain = udp_packet(b"hello");
        let v4_in_v4 = ipv4_around(4, &plain);
        let gre_key = ipv4_around(47, &[&[0x20, 0, 8, 0, 1, 2, 3, 4][..], &plain].concat());
        let gre_ether = ipv4_around(47, &[&[0, 0, 0x65, 0x58][..], &[0; 12], &[8, 0], &plain].concat());
        let gtp = |header: &[u8]| {
            let mut out = Vec::new();
            let builder = PacketBuilder::ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64).udp(2_152, 2_152);
            builder.write(&mut out, &[header, &plain].concat()).expect("a Vec takes all");
            out
        };
        let gtp_plain = gtp(&[0x30, 255, 0, 33, 0, 0, 0, 1]);
        let gtp_extended = gtp(&[0x34, 255, 0, 41, 0, 0, 0, 1, 0, 0, 0, 0x85, 1, 0, 9, 0]);
        for packet in [plain, v4_in_v4, gre_key, gre_ether, gtp_plain, gtp_extended] {
            let (seen, datagrams, _) = run(packet);
            assert_eq!(seen, Seen::Transport);
            assert_eq!(datagrams.len(), 1);
            assert_eq!(&datagrams[0].payload[..], b"hello");
            assert_eq!(datagrams[0].source, "10.0.0.1:5060".parse().expect("address"));
            assert_eq!(datagrams[0].destination, "10.0.0.2:5061".parse().expect("address"));
            assert_eq!((datagrams[0].time, datagrams[0].frame, datagrams[0].cut), (Nanos(5), 9, false));
        }
    }

    #[test]
    fn tunnels_without_end_are_not_followed() {
        let mut packet = udp_packet(b"x");
        for _ in 0..20 {
            packet = ipv4_around(4, &packet);
        }
        let (seen, datagrams, _) = run(packet);
        assert_eq!((seen, datagrams.len()), (Seen::Other, 0));
    }

    #[test]
    fn a_cut_datagram_says_so() {
        let mut packet = udp_packet(&[7; 100]);
        packet.truncate(60);
        let (_, datagrams, _) = run(packet);
        assert_eq!((datagrams[0].payload.len(), datagrams[0].cut), (32, true));
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 4u8..=6, protocol: u8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | 5;
            }
            if let Some(field) = bytes.get_mut(9) {
                *field = protocol;
            }
            run(bytes);
        }
    }
}
