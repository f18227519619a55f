//! Link layers: from a captured packet to the IP packet inside.
//!
//! Numbers and layouts: <https://www.tcpdump.org/linktypes.html>.

use bytes::Bytes;

/// The capinfos name of a LINKTYPE_ number.
pub(super) fn name(link: u32) -> String {
    match link {
        0 => "null",
        1 => "ether",
        12 | 14 | 101 => "rawip",
        108 => "loop",
        113 => "linux-sll",
        228 => "rawip4",
        229 => "rawip6",
        276 => "linux-sll2",
        other => return format!("linktype-{other}"),
    }
    .to_owned()
}

/// The IP packet inside; `None` if there is none or the link type is unknown.
pub(super) fn to_ip(link: u32, packet: Bytes) -> Option<Bytes> {
    match link {
        // The address family is in the byte order of the machine that captured (or, for 108, of the
        // network) and its numbers differ between systems; the IP version says the same with certainty.
        0 | 108 => ip(packet, 4),
        1 => ethernet(packet),
        12 | 14 | 101 | 228 | 229 => ip(packet, 0),
        113 => ether_type(u16_at(&packet, 14)?, packet, 16),
        276 => ether_type(u16_at(&packet, 0)?, packet, 20),
        _ => None,
    }
}

/// The IP packet inside an Ethernet frame.
pub(super) fn ethernet(frame: Bytes) -> Option<Bytes> {
    ether_type(u16_at(&frame, 12)?, frame, 14)
}

/// The IP packet at `at`, behind any VLAN tags and a PPPoE session header. `kind` is the EtherType.
pub(super) fn ether_type(mut kind: u16, packet: Bytes, mut at: usize) -> Option<Bytes> {
    loop {
        match kind {
            0x0800 | 0x86dd => return ip(packet, at),
            // 802.1Q, 802.1ad, and the older numbers for stacked tags.
            0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => {
                kind = u16_at(&packet, at + 2)?;
                at += 4;
            }
            0x8864 => return pppoe(packet, at),
            _ => return None,
        }
    }
}

/// A PPPoE session (RFC 2516): 6 bytes, then a PPP protocol number, which may be one byte long.
fn pppoe(packet: Bytes, at: usize) -> Option<Bytes> {
    let at = at + 6;
    if u16_at(&packet, at - 6)? != 0x1100 {
        return None;
    }
    match (*packet.get(at)?, *packet.get(at + 1)?) {
        (0, 0x21 | 0x57) => ip(packet, at + 2),
        (0x21 | 0x57, _) => ip(packet, at + 1),
        _ => None,
    }
}

fn ip(packet: Bytes, at: usize) -> Option<Bytes> {
    matches!(packet.get(at)? >> 4, 4 | 6).then(|| packet.slice(at..))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_every_kind_lead_to_the_same_packet() {
        let ip: &[u8] = &[0x45, 1, 2, 3];
        let mac: &[u8] = &[0; 12];
        let cases: Vec<(u32, Vec<u8>)> = vec![
            (1, [mac, &[8, 0], ip].concat()),
            (1, [mac, &[0x81, 0, 0, 5, 8, 0], ip].concat()),
            (1, [mac, &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0], ip].concat()),
            (1, [mac, &[0x88, 0x64, 0x11, 0, 0, 1, 0, 6, 0, 0x21], ip].concat()),
            (1, [mac, &[0x88, 0x64, 0x11, 0, 0, 1, 0, 6, 0x21], ip].concat()),
            (0, [&[2, 0, 0, 0], ip].concat()),
            (108, [&[0, 0, 0, 2], ip].concat()),
            (113, [&[0; 14][..], &[8, 0], ip].concat()),
            (276, [&[8, 0][..], &[0; 18], ip].concat()),
            (12, ip.to_vec()),
            (101, ip.to_vec()),
            (228, ip.to_vec()),
        ];
        for (link, packet) in cases {
            let whole = Bytes::from(packet);
            assert_eq!(to_ip(link, whole.clone()).as_deref(), Some(ip), "{} {whole:?}", name(link));
            for length in 0..whole.len() {
                // Cut anywhere: never a panic.
                let _ = to_ip(link, whole.slice(..length));
            }
        }
        assert_eq!(to_ip(1, Bytes::from([mac, &[8, 6], ip].concat())), None);
        assert_eq!(to_ip(147, Bytes::from_static(&[0x45])), None);
        assert_eq!(name(147), "linktype-147");
    }
}
