//! The IP and UDP headers of datagrams that leave by a raw socket (RFC 791, RFC 8200, RFC 768).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of the longer headers: IPv6 and UDP.
pub const LONGEST: usize = 48;
const UDP_LEN: usize = 8;
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
/// The time to live that Linux gives packets by default (`net.ipv4.ip_default_ttl`, `net.ipv6.conf.*.hop_limit`).
const HOPS: u8 = 64;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// The headers of one packet, to be followed by its payload.
#[derive(Copy, Clone, Debug)]
pub struct Headers {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Headers {
    /// For a UDP datagram with `payload`; `None` if the addresses are of two families or the payload is too long for one
    /// packet.
    ///
    /// Of IPv4 the total length, identification and header checksum are left to the kernel (`raw(7)`); routers may cut
    /// the packet up.
    pub fn new(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<Headers> {
        let length = u16::try_from(UDP_LEN + payload.len()).ok()?;
        let mut bytes = [0; LONGEST];
        let (ip, addresses) = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) if usize::from(length) + V4_LEN <= 65_535 => {
                (V4_LEN, write_v4(&mut bytes, from, to))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => (V6_LEN, write_v6(&mut bytes, from, to, length)),
            _ => return None,
        };
        let header = &mut bytes[ip..ip + UDP_LEN];
        header[..2].copy_from_slice(&from.port().to_be_bytes());
        header[2..4].copy_from_slice(&to.port().to_be_bytes());
        header[4..6].copy_from_slice(&length.to_be_bytes());
        // The pseudo header: addresses, protocol, length; then header and payload.
        let pseudo = addresses + sum(&[0, UDP]) + sum(&length.to_be_bytes());
        let checksum = checksum(pseudo + sum(header) + sum(payload));
        header[6..].copy_from_slice(&checksum);
        Some(Headers { bytes, len: ip + UDP_LEN })
    }

    /// As they go on the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Writes an IPv4 header; returns the sum of its addresses.
fn write_v4(out: &mut [u8], from: Ipv4Addr, to: Ipv4Addr) -> u64 {
    // Version 4, 5 words of header.
    out[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, HOPS, UDP, 0, 0]);
    out[12..16].copy_from_slice(&from.octets());
    out[16..V4_LEN].copy_from_slice(&to.octets());
    sum(&out[12..V4_LEN])
}

/// Writes an IPv6 header; returns the sum of its addresses.
fn write_v6(out: &mut [u8], from: Ipv6Addr, to: Ipv6Addr, length: u16) -> u64 {
    let [high, low] = length.to_be_bytes();
    // Version 6, no class, no flow.
    out[..8].copy_from_slice(&[0x60, 0, 0, 0, high, low, UDP, HOPS]);
    out[8..24].copy_from_slice(&from.octets());
    out[24..V6_LEN].copy_from_slice(&to.octets());
    sum(&out[8..V6_LEN])
}

/// The sum of 16-bit words in the order in which they are in memory: the byte order does not matter until the end
/// (RFC 1071). Wide words are summed alike, because carries are folded back.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().chain([&last]).map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}

/// The checksum field for a sum; never 0, which would say that there is none.
fn checksum(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => [0xff; 2],
        sum => sum.to_ne_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
        let headers = Headers::new(from.parse().unwrap(), to.parse().unwrap(), payload).unwrap();
        [headers.bytes(), payload].concat()
    }

    /// Whether the sum over pseudo header and datagram is all ones: the rule of RFC 768, word by word.
    fn is_right(addresses: &[u8], datagram: &[u8]) -> bool {
        let mut all = addresses.to_vec();
        all.extend([0, UDP]);
        all.extend((datagram.len() as u16).to_be_bytes());
        all.extend(datagram);
        let words = all.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
        let sum: u32 = words.sum();
        (sum & 0xffff) + (sum >> 16) == 0xffff
    }

    #[test]
    fn the_headers_are_as_the_standards_have_them() {
        let v4 = packet("10.9.8.7:20002", "192.0.2.200:4000", b"abc");
        let expected = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 8, 7, 192, 0, 2, 200];
        assert_eq!(v4[..20], expected);
        assert_eq!(v4[20..26], [0x4e, 0x22, 0x0f, 0xa0, 0, 11]);
        // By hand: 0x0a09+0x0807+0xc000+0x02c8+17+11+0x4e22+0x0fa0+11+0x6162+0x6300, folded, inverted.
        assert_eq!(v4[26..], [0x08, 0xdb, b'a', b'b', b'c']);
        let v6 = packet("[fd99::1]:20003", "[2001:db8::2]:65535", b"");
        assert_eq!(v6[..8], [0x60, 0, 0, 0, 0, 8, 17, 64]);
        let addresses: Vec<u8> =
            ["fd99::1", "2001:db8::2"].iter().flat_map(|a| a.parse::<Ipv6Addr>().unwrap().octets()).collect();
        assert_eq!(v6[8..40], addresses);
        assert_eq!((v6.len(), &v6[40..46]), (LONGEST, &[0x4e, 0x23, 0xff, 0xff, 0, 8][..]));
    }

    #[test]
    fn checksums_of_all_lengths_are_right() {
        let payload: Vec<u8> = (0..1_500_u32).map(|n| (n * n % 251) as u8).collect();
        for len in (0..70).chain([159, 160, 172, 1_232, 1_499, 1_500]) {
            for payload in [&payload[..len], &vec![0xff; len]] {
                let v4 = packet("10.9.8.7:20002", "192.0.2.200:4000", payload);
                assert!(is_right(&v4[12..20], &v4[20..]), "{len}");
                let v6 = packet("[fd99::1]:20003", "[2001:db8::2]:65535", payload);
                assert!(is_right(&v6[8..40], &v6[40..]), "{len}");
            }
        }
        // Here the sum would be 0, which means "none".
        let zero = (0..=u16::MAX).map(|n| packet("10.9.8.7:20002", "192.0.2.200:4000", &n.to_be_bytes()));
        assert_eq!(zero.filter(|packet| packet[26..28] == [0xff, 0xff]).count(), 1);
    }

    #[test]
    fn what_fits_in_no_packet_is_refused() {
        let fits = |from: &str, to: &str, len: usize| {
            Headers::new(from.parse().unwrap(), to.parse().unwrap(), &vec![0; len]).is_some()
        };
        assert!(!fits("10.9.8.7:1", "[fd99::1]:1", 1) && !fits("[fd99::1]:1", "10.9.8.7:1", 1));
        assert!(!fits("10.9.8.7:1", "10.9.8.8:1", 65_508) && fits("10.9.8.7:1", "10.9.8.8:1", 65_507));
        assert!(!fits("[fd99::1]:1", "[fd99::2]:1", 65_528) && fits("[fd99::1]:1", "[fd99::2]:1", 65_527));
    }
}
